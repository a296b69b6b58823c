//! Starting an instance: secrets, a stem or a cold start, and what becomes of it. Starts belong to the pool.

use std::{collections::BTreeMap, sync::Arc};

use sas_core::{Claim, EnvValue, Error, ErrorKind, Instance, InstanceId, Result, Secret, StartRequest};
use tokio::time::Instant;

use crate::{core::Core, effects::Plan, nursery::Work, queue::Grant, shard::Shard};

impl Shard {
    /// Makes a start. One that completes at once costs nothing else; `claim` then gets its first slot.
    pub(crate) fn start(&self, me: Arc<Self>, plan: Plan, claim: Option<&Claim>) -> Option<Grant> {
        let id = plan.id;
        // The wait at the gate is not the start's.
        let begun = if plan.gated { Instant::now() } else { self.core.instant(plan.asked) };
        let deadline = begun + plan.deployed.spec.timeouts.start;
        let logs = Arc::clone(&self.core.config.logs);
        let request = StartRequest::new(id, plan.revision, plan.deployed, logs, me, deadline);
        let deployed = &request.deployed;
        let needs_secrets = deployed.spec.env.values().any(|value| matches!(value, EnvValue::Secret(_)));
        let stem = deployed.artifact.info().stem.is_some() && deployed.runtime.capabilities().stems;
        let work: Work = if needs_secrets || stem {
            Box::pin(make(Arc::clone(&self.core), request))
        } else {
            let guard = Guard::new(self, id);
            let tried = deployed.runtime.try_start(&request);
            guard.disarm();
            if let Some(result) = tried {
                return self.started(id, result, false, claim);
            }
            Box::pin(cold(request))
        };
        let made = self.core.nursery(self.index).admit(&self.core, &self.me(), id, work, deadline + SLACK)?;
        self.started(id, made.result, made.from_stem, claim)
    }
}

/// How long after its deadline a start is ended by the pool.
const SLACK: std::time::Duration = std::time::Duration::from_millis(500);

/// Reports a start as failed when its runtime panics.
pub(crate) struct Guard<'a> {
    shard: &'a Shard,
    id: InstanceId,
    armed: bool,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(shard: &'a Shard, id: InstanceId) -> Self {
        Self { shard, id, armed: true }
    }

    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.shard.started(self.id, Err(panicked()), false, None);
        }
    }
}

pub(crate) fn panicked() -> Error {
    Error::new(
        ErrorKind::Unexpected,
        "start",
        "the runtime panicked, or the async runtime shut down, while an instance was starting",
    )
}

/// What a start made.
pub(crate) struct Made {
    pub(crate) result: Result<Arc<dyn Instance>>,
    pub(crate) from_stem: bool,
}

impl Made {
    pub(crate) fn failed(error: Error) -> Self {
        Self { result: Err(error), from_stem: false }
    }
}

/// A start without secrets and stems.
async fn cold(request: StartRequest) -> Made {
    let runtime = Arc::clone(&request.deployed.runtime);
    Made { result: runtime.start(request).await, from_stem: false }
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
