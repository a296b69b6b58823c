//! How much of the host workflows may take, and for how long they are kept.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Hosts, Recorder, TraceSink};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

/// How much of the host workflows may take, and for how long they are kept.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct WorkflowConfig {
    /// How many runs may do something at once; those that wait count for nothing. 256.
    pub active: usize,
    /// How many of them may be of one namespace, so that one tenant's slow calls do not hold up the others. 64.
    pub active_per_namespace: usize,
    /// How many steps the runs of one namespace may begin in a second; more wait for their turn. `None`: as many as they like, which
    /// is the default.
    pub steps_per_second: Option<f64>,
    /// How many runs of one namespace may not have ended, as this host counts them; a start beyond is refused. 100,000.
    pub runs_per_namespace: usize,
    /// After how many records a checkpoint is made of a run: a replay starts there, and the records before it go. 1,000.
    pub checkpoint_records: u64,
    /// After how many bytes of records one is made, when they come to that sooner. 4 MiB.
    pub checkpoint_bytes: u64,
    /// How many records a run may keep: without checkpoints, since its data may hold a secret, it faults with the next. 50,000.
    pub records_per_run: u64,
    /// How many bytes a run may keep, its checkpoint and the records after it; it faults with the next record. 64 MiB.
    pub bytes_per_run: u64,
    /// For how long runs are kept that have ended: they are forgotten at the first search after that. Until then a caller's id is
    /// taken. A week; `None`: for ever.
    pub retention: Option<Duration>,
    /// How long steps that are under way have when the host stops; those that are not done by then are done again after the next
    /// start. 5 s.
    pub grace: Duration,
    /// The hosts that share the store: each drives the runs of the namespaces that it acts for, and what it writes of them is refused once
    /// another one has taken over. `None`, the default: this is the only one, or they all drive all runs, and do steps twice.
    pub hosts: Option<Arc<dyn Hosts>>,
    /// Whether events of the life of runs (`io.serverlessworkflow.workflow.started.v1` and so on) are published by
    /// [`Actions::lifecycle`](crate::Actions::lifecycle). Each costs a write and a deletion. `false`.
    pub lifecycle: bool,
    /// Where the metrics go.
    pub recorder: Recorder,
    /// Who is told of each step and each run when it is over. `None`: nobody.
    pub traces: Option<Arc<dyn TraceSink>>,
}

impl Default for WorkflowConfig {
    fn default() -> Self {
        Self {
            active: 256,
            active_per_namespace: 64,
            steps_per_second: None,
            runs_per_namespace: 100_000,
            checkpoint_records: 1_000,
            checkpoint_bytes: 4 << 20,
            records_per_run: 50_000,
            bytes_per_run: 64 << 20,
            retention: Some(Duration::from_secs(7 * 24 * 3_600)),
            grace: Duration::from_secs(5),
            hosts: None,
            lifecycle: false,
            recorder: Recorder::default(),
            traces: None,
        }
    }
}

/// Who may do something now.
#[derive(Debug)]
pub(super) struct Turns {
    all: Arc<Semaphore>,
    per_namespace: usize,
    namespaces: Mutex<HashMap<String, Weak<Semaphore>>>,
    /// Between two steps of a namespace; zero: nothing.
    interval: Duration,
    /// When the next step of a namespace may begin.
    next: Mutex<HashMap<String, Instant>>,
}

/// Namespaces that are remembered before those without anything to remember are forgotten.
const FORGET_ABOVE: usize = 1_024;

impl Turns {
    pub(super) fn new(config: &WorkflowConfig) -> Self {
        let interval = config.steps_per_second.filter(|steps| *steps > 0.0).map(|steps| 1.0 / steps);
        Self {
            all: Arc::new(Semaphore::new(config.active.max(1))),
            per_namespace: config.active_per_namespace.max(1),
            namespaces: Mutex::default(),
            interval: interval.map(Duration::from_secs_f64).unwrap_or_default(),
            next: Mutex::default(),
        }
    }

    /// A turn of a namespace: first among its own runs, so that those that wait there hold nothing of the others.
    pub(super) async fn take(
        &self,
        namespace: &str,
    ) -> Option<(Arc<Semaphore>, OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = {
            let mut namespaces = self.namespaces.lock();
            if namespaces.len() > FORGET_ABOVE {
                namespaces.retain(|_, turns| turns.strong_count() > 0);
            }
            match namespaces.get(namespace).and_then(Weak::upgrade) {
                Some(own) => own,
                None => {
                    let own = Arc::new(Semaphore::new(self.per_namespace));
                    namespaces.insert(namespace.to_owned(), Arc::downgrade(&own));
                    own
                }
            }
        };
        let first = own.clone().acquire_owned().await.ok()?;
        let second = self.all.clone().acquire_owned().await.ok()?;
        Some((own, first, second))
    }

    /// Waits until a namespace may begin another step.
    pub(super) async fn step(&self, namespace: &str) {
        if self.interval.is_zero() {
            return;
        }
        let at = {
            let (mut next, now) = (self.next.lock(), Instant::now());
            if next.len() > FORGET_ABOVE {
                next.retain(|_, at| *at > now);
            }
            let own = next.entry(namespace.to_owned()).or_insert(now);
            let at = (*own).max(now);
            *own = at + self.interval;
            at
        };
        tokio::time::sleep_until(at).await;
    }
}
