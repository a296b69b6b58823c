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
    /// How many runs may do something at once; those that wait count for nothing. A quarter of them, and of those of a namespace, is
    /// for runs whose timer is due, so that none is late because many are started. 256.
    pub active: usize,
    /// How many of them may be of one namespace, so that one tenant's slow calls do not hold up the others. 64.
    pub active_per_namespace: usize,
    /// How many steps the runs of one namespace may begin in a second; more wait for their turn. `None`: as many as they like, which
    /// is the default.
    pub steps_per_second: Option<f64>,
    /// How many runs of one namespace may not have ended, as this host counts them; a start beyond is refused. 100,000.
    pub runs_per_namespace: usize,
    /// How many bytes of records and checkpoints the runs of one namespace may keep, as this host counts them, with those that have
    /// ended and are not forgotten; a start beyond is refused, and runs that are there go on, each within `bytes_per_run`. 8 GiB.
    pub bytes_per_namespace: u64,
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
            bytes_per_namespace: 8 << 30,
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
    all: Arc<Lanes>,
    per_namespace: usize,
    namespaces: Mutex<HashMap<String, Weak<Lanes>>>,
    /// Between two steps of a namespace; zero: nothing.
    interval: Duration,
    /// When the next step of a namespace may begin.
    next: Mutex<HashMap<String, Instant>>,
}

/// Turns in two lanes: a timer is due at a time, and thousands of starts before it must not make it late.
#[derive(Debug)]
struct Lanes {
    any: Arc<Semaphore>,
    /// For runs whose time has come; they take one of the others where that is free sooner.
    due: Arc<Semaphore>,
}

impl Lanes {
    fn new(turns: usize) -> Arc<Self> {
        let due = turns / 4;
        Arc::new(Self { any: Arc::new(Semaphore::new(turns - due)), due: Arc::new(Semaphore::new(due)) })
    }

    async fn take(&self, why: Why) -> Option<OwnedSemaphorePermit> {
        match why {
            Why::Told => self.any.clone().acquire_owned().await.ok(),
            Why::Due => {
                let turn = tokio::select! {
                    biased;
                    turn = self.due.clone().acquire_owned() => turn,
                    turn = self.any.clone().acquire_owned() => turn,
                };
                turn.ok()
            }
        }
    }
}

/// Why a run is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It was started, or told something.
    Told,
    /// Its time has come.
    Due,
}

/// A turn, which ends when it is dropped. The lanes of a namespace are there as long as somebody has a turn in them.
#[derive(Debug)]
pub(super) struct Turn {
    _lanes: Arc<Lanes>,
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// Namespaces that are remembered before those without anything to remember are forgotten.
const FORGET_ABOVE: usize = 1_024;

impl Turns {
    pub(super) fn new(config: &WorkflowConfig) -> Self {
        let interval = config.steps_per_second.filter(|steps| *steps > 0.0).map(|steps| 1.0 / steps);
        Self {
            all: Lanes::new(config.active.max(1)),
            per_namespace: config.active_per_namespace.max(1),
            namespaces: Mutex::default(),
            interval: interval.map(Duration::from_secs_f64).unwrap_or_default(),
            next: Mutex::default(),
        }
    }

    /// A turn of a namespace: first among its own runs, so that those that wait there hold nothing of the others.
    pub(super) async fn take(&self, namespace: &str, why: Why) -> Option<Turn> {
        let lanes = {
            let mut namespaces = self.namespaces.lock();
            if namespaces.len() > FORGET_ABOVE {
                namespaces.retain(|_, lanes| lanes.strong_count() > 0);
            }
            match namespaces.get(namespace).and_then(Weak::upgrade) {
                Some(lanes) => lanes,
                None => {
                    let lanes = Lanes::new(self.per_namespace);
                    namespaces.insert(namespace.to_owned(), Arc::downgrade(&lanes));
                    lanes
                }
            }
        };
        let own = lanes.take(why).await?;
        let all = self.all.take(why).await?;
        Some(Turn { _lanes: lanes, _own: own, _all: all })
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
