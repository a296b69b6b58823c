//! Starting an instance: secrets, a stem or a cold start, and what becomes of it. Starts belong to the pool.

use std::{
    collections::BTreeMap,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use sas_core::{
    Claim, EnvValue, Error, ErrorKind, Instance, InstanceEvents, InstanceId, Result, Secret, StartRequest,
};
use tokio::time::Instant;

use crate::{core::Core, effects::Plan, queue::Grant, shard::Shard};

impl Shard {
    /// Makes a start. One that completes at once makes no task; `claim` then gets its first slot.
    pub(crate) fn start(&self, plan: Plan, claim: Option<&Claim>) -> Option<Grant> {
        let id = plan.id;
        // The wait at the gate is not the start's.
        let begun = if plan.gated { Instant::now() } else { self.core.instant(plan.asked) };
        let deadline = begun + plan.deployed.spec.timeouts.start;
        let events = self.me() as Arc<dyn InstanceEvents>;
        let deployed = plan.deployed;
        let request = StartRequest::new(
            id,
            plan.revision,
            Arc::clone(&deployed),
            Arc::clone(&self.core.config.logs),
            events,
            deadline,
        );
        let needs_secrets = deployed.spec.env.values().any(|value| matches!(value, EnvValue::Secret(_)));
        let stem = deployed.artifact.info().stem.is_some() && deployed.runtime.capabilities().stems;
        if !needs_secrets && !stem {
            let guard = Guard { shard: self, id, armed: true };
            let tried = deployed.runtime.try_start(&request);
            guard.disarm();
            if let Some(result) = tried {
                return self.started(id, result, false, claim);
            }
        }
        let mut work = Box::pin(make(Arc::clone(&self.core), request));
        let guard = Guard { shard: self, id, armed: true };
        let polled = work.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        guard.disarm();
        if let Poll::Ready(made) = polled {
            return self.started(id, made.result, made.from_stem, claim);
        }
        let shard = self.me();
        let ended = self.core.ended.clone();
        self.core.spawn(async move {
            let guard = Guard { shard: &shard, id, armed: true };
            let made = tokio::select! {
                biased;
                made = work => made,
                () = tokio::time::sleep_until(deadline + SLACK) => Made::failed(Error::new(
                    ErrorKind::Timeout,
                    "start",
                    "the runtime did not end the start at its deadline (timeouts.start)",
                )),
                () = ended.cancelled() => {
                    Made::failed(Error::new(ErrorKind::Unavailable, "start", "the pool shuts down"))
                }
            };
            guard.disarm();
            shard.started(id, made.result, made.from_stem, None);
        });
        None
    }
}

/// How long after its deadline a start is ended by the pool.
const SLACK: std::time::Duration = std::time::Duration::from_millis(500);

/// Reports a start as failed when its runtime panics.
struct Guard<'a> {
    shard: &'a Shard,
    id: InstanceId,
    armed: bool,
}

impl Guard<'_> {
    fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.armed {
            let error = Error::new(
                ErrorKind::Unexpected,
                "start",
                "the runtime panicked, or the async runtime shut down, while an instance was starting",
            );
            self.shard.started(self.id, Err(error), false, None);
        }
    }
}

/// What a start made.
struct Made {
    result: Result<Arc<dyn Instance>>,
    from_stem: bool,
}

impl Made {
    fn failed(error: Error) -> Self {
        Self { result: Err(error), from_stem: false }
    }
}

async fn make(core: Arc<Core>, mut request: StartRequest) -> Made {
    match secrets(&core, &request).await {
        Ok(secrets) => request.secrets = secrets,
        Err(error) => return Made::failed(error),
    }
    let runtime = Arc::clone(&request.deployed.runtime);
    if runtime.capabilities().stems
        && let Some(class) = &request.deployed.artifact.info().stem
        && let Some(stem) = core.stems.take(&core, class)
    {
        match stem.specialize(request.clone()).await {
            Ok(instance) => return Made { result: Ok(instance), from_stem: true },
            Err(error) => {
                core.metrics.stem_failures.increment(1);
                tracing::warn!(instance = %request.id, error = %error.chain(), "a stem failed: starting cold");
            }
        }
    }
    Made { result: runtime.start(request).await, from_stem: false }
}

/// Resolves the secrets of a spec, all of them.
async fn secrets(core: &Core, request: &StartRequest) -> Result<Option<Arc<BTreeMap<String, Secret>>>> {
    let mut secrets = BTreeMap::new();
    for (name, value) in &request.spec().env {
        let EnvValue::Secret(reference) = value else { continue };
        let Some(source) = &core.config.secrets else {
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                "start",
                format!(
                    "env.{name} refers to the secret {reference:?}, but the platform has no SecretSource"
                ),
            ));
        };
        let bytes = source.resolve(reference, request.tenant()).await?;
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            Error::new(
                ErrorKind::InvalidSpec,
                "start",
                format!(
                    "env.{name}: the secret {reference:?} is not UTF-8, as environment variables must be"
                ),
            )
        })?;
        secrets.insert(name.clone(), Secret::new(text));
    }
    Ok((!secrets.is_empty()).then(|| Arc::new(secrets)))
}
