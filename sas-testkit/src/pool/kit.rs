//! Revisions of a fake runtime in the pool under test.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use sas_core::{
    Claim, ClaimError, Cx, Deployed, InstanceId, InstanceState, Lease, Outcome, Pool, RequestId, RevisionKey,
    RevisionName, RevisionSpec, RevisionStatus, Runtime as _, TenantKey,
};
use tokio::time::Instant;

use super::Subject;
use crate::{
    check::{Stop, Verdict, ensure, eventually, within},
    fake::{FakeClock, FakeRuntime},
};

pub(crate) struct Kit {
    pub(crate) pool: Arc<dyn Pool>,
    pub(crate) runtime: Arc<FakeRuntime>,
    pub(crate) settle: Duration,
    pub(crate) clock: Option<FakeClock>,
    next: AtomicU64,
}

impl Kit {
    pub(crate) fn new(subject: Subject) -> Self {
        let runtime = FakeRuntime::new();
        // Long enough that claims which come together wait together.
        runtime.set_start_time(Duration::from_millis(10));
        Self {
            pool: subject.pool,
            runtime,
            settle: subject.settle,
            clock: subject.clock,
            next: AtomicU64::new(1),
        }
    }

    pub(crate) fn spec(&self, concurrency: u32) -> RevisionSpec {
        let mut spec = FakeRuntime::spec("echo");
        spec.concurrency = concurrency;
        spec.timeouts.start = Duration::from_secs(30);
        spec.timeouts.stop_grace = Duration::from_secs(5);
        // What one instance carries is what it may carry, so that a wish is a number of instances.
        spec.scaling.initial = 0;
        spec.scaling.scale_to_zero_grace = Duration::ZERO;
        spec
    }

    pub(crate) async fn register(&self, spec: RevisionSpec) -> Verdict<RevisionKey> {
        let deployed = self.deployed(spec).await?;
        self.pool.register(deployed).map_err(|error| Stop::fail(format!("register: {}", error.chain())))
    }

    pub(crate) async fn deployed(&self, spec: RevisionSpec) -> Verdict<Arc<Deployed>> {
        let artifact = self
            .runtime
            .prepare(&spec)
            .await
            .map_err(|error| Stop::fail(format!("the suite's own runtime: {}", error.chain())))?;
        let number = self.next.fetch_add(1, SeqCst);
        Ok(Arc::new(Deployed::new(
            Arc::clone(&self.runtime) as Arc<dyn sas_core::Runtime>,
            artifact,
            Arc::new(spec),
            RevisionName::new("conformance", "suite", &format!("suite-{number:05}")),
            TenantKey(1),
        )))
    }

    pub(crate) async fn revision(&self, concurrency: u32) -> Verdict<RevisionKey> {
        self.register(self.spec(concurrency)).await
    }

    pub(crate) fn cx(&self, limit: Duration) -> Cx {
        let request = RequestId(u128::from(self.next.fetch_add(1, SeqCst)));
        Cx::new(TenantKey(1), request, Instant::now() + limit)
    }

    pub(crate) async fn claim_within(
        &self,
        revision: RevisionKey,
        limit: Duration,
    ) -> Verdict<Result<Lease, ClaimError>> {
        let waiting = self.pool.claim(&Claim::new(revision, TenantKey(1)), &self.cx(limit));
        within(limit + Duration::from_secs(5), "the answer to a claim", waiting).await
    }

    pub(crate) async fn claim(&self, revision: RevisionKey) -> Verdict<Lease> {
        self.claim_within(revision, Duration::from_secs(60))
            .await?
            .map_err(|error| Stop::fail(format!("a claim failed: {error}")))
    }

    pub(crate) async fn claims(&self, revision: RevisionKey, count: usize) -> Verdict<Vec<Lease>> {
        let claims = (0..count).map(|_| self.claim(revision));
        futures_util::future::join_all(claims).await.into_iter().collect()
    }

    pub(crate) fn status(&self, revision: RevisionKey) -> Verdict<RevisionStatus> {
        self.pool.status(revision).ok_or_else(|| Stop::fail("a registered revision has no status"))
    }

    /// The instances that take requests.
    pub(crate) fn ready(&self, revision: RevisionKey) -> Vec<InstanceId> {
        let views = self.pool.instances(revision);
        views.iter().filter(|view| view.state == InstanceState::Ready).map(|view| view.id).collect()
    }

    /// The pool comes to have exactly this many instances, in its own view and in the runtime's.
    pub(crate) async fn comes_to(&self, revision: RevisionKey, instances: usize) -> Verdict {
        let limit = self.settle + Duration::from_secs(60);
        let reached = eventually(limit, "the size", || {
            self.ready(revision).len() == instances && self.pool.instances(revision).len() == instances
        });
        match reached.await {
            Ok(()) => Ok(()),
            Err(_) => Err(Stop::fail(format!(
                "should come to {instances} instances, has {:?} after {limit:?}",
                self.pool.instances(revision).iter().map(|view| (view.id, view.state)).collect::<Vec<_>>()
            ))),
        }
    }

    /// The runtime comes to have exactly this many instances, of all revisions.
    pub(crate) async fn runtime_has(&self, instances: usize) -> Verdict {
        let limit = self.settle + Duration::from_secs(60);
        let reached = eventually(limit, "the number", || self.runtime.live().len() == instances);
        match reached.await {
            Ok(()) => Ok(()),
            Err(_) => Err(Stop::fail(format!(
                "the runtime should come to {instances} instances, has {:?}",
                self.runtime.live()
            ))),
        }
    }

    /// Nothing waits and nothing is out.
    pub(crate) async fn at_rest(&self, revision: RevisionKey) -> Verdict {
        let reached = eventually(Duration::from_secs(30), "rest", || {
            self.pool.status(revision).is_none_or(|status| status.queued == 0 && status.in_flight == 0)
        });
        match reached.await {
            Ok(()) => Ok(()),
            Err(_) => Err(Stop::fail(format!("should be at rest: {:?}", self.pool.status(revision)))),
        }
    }

    pub(crate) async fn idle_for(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

/// Gives a lease back after a call that went well.
pub(crate) fn done(mut lease: Lease) {
    lease.outcome = Outcome::Ok;
    drop(lease);
}

pub(crate) fn is_start_error(outcome: &Result<Lease, ClaimError>) -> Verdict {
    match outcome {
        Err(ClaimError::Start { .. }) => Ok(()),
        Err(other) => Err(Stop::fail(format!("failed with {other:?}, not with the start's error"))),
        Ok(_) => Err(Stop::fail("got a lease, though starts fail")),
    }
}

pub(crate) fn ensure_live(kit: &Kit, lease: &Lease) -> Verdict {
    let id = lease.instance.id();
    ensure!(kit.runtime.live().contains(&id), "a lease of {id} was given out, which is dead");
    Ok(())
}
