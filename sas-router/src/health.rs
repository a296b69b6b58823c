//! Active health checks: instances are asked, and those that fail are replaced.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use sas_core::{InstanceId, InstanceState, Pool, RevisionKey};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout_at},
};

/// How often an instance is asked whose probe does not say.
const PERIOD: Duration = Duration::from_secs(10);
/// How long a round waits for answers. What takes longer counts in a later round, so that one slow instance delays
/// nobody else's questions.
const ROUND: Duration = Duration::from_secs(1);
/// Questions at once; what is due beyond that is asked in the next round.
const AT_ONCE: usize = 256;

/// Asks the ready instances of revisions that have a liveness probe, and has the pool replace those that fail as often
/// in a row as the probe allows. All kinds of probes are asked of all kinds of instances: by a connection, by a call, or
/// by a command that the runtime runs. They are asked at the same time, each with its own time-out. What a runtime can't
/// ask at all says nothing of an instance: it is a warning, once for each revision.
///
/// The host calls [`HealthChecks::round`] every second or so, with the revisions that have instances. Passive checks need
/// nothing of this: every failed call is told to the pool with its lease.
#[derive(Debug)]
pub struct HealthChecks {
    pool: Arc<dyn Pool>,
    asked: HashMap<InstanceId, Asked>,
    running: JoinSet<Answered>,
    asking: HashSet<InstanceId>,
    /// Revisions whose probe can't be asked, which was said.
    unasked: HashSet<RevisionKey>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    next: Instant,
    failures: u32,
}

#[derive(Debug)]
struct Answered {
    revision: RevisionKey,
    instance: InstanceId,
    failure: Option<sas_probe::ProbeFailure>,
}

impl HealthChecks {
    /// Checks of the instances of `pool`.
    pub fn new(pool: Arc<dyn Pool>) -> Self {
        Self {
            pool,
            asked: HashMap::new(),
            running: JoinSet::new(),
            asking: HashSet::new(),
            unasked: HashSet::new(),
        }
    }

    /// Asks every instance that is due, and gives back those that are being replaced. It takes at most a second.
    ///
    /// **Cancel safety:** what was answered counts in the next round; dropping the checks ends the questions.
    pub async fn round(&mut self, revisions: &[RevisionKey]) -> Vec<(RevisionKey, InstanceId)> {
        let until = Instant::now() + ROUND;
        self.ask(revisions);
        let mut replaced = Vec::new();
        while let Ok(Some(answered)) = timeout_at(until, self.running.join_next()).await {
            // A question that was aborted or panicked says nothing of its instance.
            let Ok(answered) = answered else { continue };
            self.asking.remove(&answered.instance);
            replaced.extend(self.take(answered));
        }
        replaced.sort_unstable();
        replaced
    }

    /// Begins the questions that are due.
    fn ask(&mut self, revisions: &[RevisionKey]) {
        let mut seen = HashMap::with_capacity(self.asked.len());
        for revision in revisions {
            let Some(deployed) = self.pool.deployed(*revision) else { continue };
            let Some(probe) = &deployed.spec.liveness else { continue };
            for view in self.pool.instances(*revision) {
                if view.state != InstanceState::Ready {
                    continue;
                }
                let now = Instant::now();
                let mut asked = self.asked.get(&view.id).copied().unwrap_or(Asked { next: now, failures: 0 });
                let due = view.age >= probe.initial_delay && asked.next <= now;
                if due
                    && self.running.len() < AT_ONCE
                    && let Some(instance) = self.pool.instance(*revision, view.id)
                    && self.asking.insert(view.id)
                {
                    let period = if probe.period.is_zero() { PERIOD } else { probe.period };
                    asked.next = now + period;
                    let (probe, tenant) = (probe.clone(), deployed.tenant);
                    let (revision, id) = (*revision, view.id);
                    self.running.spawn(async move {
                        let asked = sas_probe::instance(&probe, &*instance, tenant).await;
                        Answered { revision, instance: id, failure: asked.err() }
                    });
                }
                seen.insert(view.id, asked);
            }
        }
        // Instances that are gone are forgotten.
        self.asked = seen;
        self.unasked.retain(|revision| self.pool.deployed(*revision).is_some());
    }

    fn take(&mut self, answered: Answered) -> Option<(RevisionKey, InstanceId)> {
        let Answered { revision, instance, failure } = answered;
        let asked = self.asked.get_mut(&instance)?;
        let Some(failure) = failure else {
            asked.failures = 0;
            return None;
        };
        let deployed = self.pool.deployed(revision)?;
        if failure.unsupported {
            if self.unasked.insert(revision) {
                let remedy =
                    "its instances are not asked; deploy it with a liveness probe that its runtime can ask";
                tracing::warn!(revision = %deployed.name, %failure, remedy, "a liveness probe can't be asked");
            }
            return None;
        }
        asked.failures += 1;
        let probe = deployed.spec.liveness.as_ref()?;
        if asked.failures < probe.failure_threshold.max(1) {
            return None;
        }
        self.asked.remove(&instance);
        tracing::warn!(revision = %deployed.name, %instance, %failure, "replacing an unhealthy instance");
        self.pool
            .recycle(revision, instance, deployed.spec.timeouts.stop_grace)
            .then_some((revision, instance))
    }
}
