//! What is to be done once the shard's lock is released: nothing foreign runs under it.

use std::{sync::Arc, task::Waker, time::Duration};

use sas_core::{Deployed, Instance, InstanceId, MeterPhase, RevisionKey, TenantKey, Usage};
use smallvec::SmallVec;

use crate::{gate::Need, limits::Takes};

/// A start that was decided.
#[derive(Debug)]
pub(crate) struct DecidedStart {
    pub(crate) id: InstanceId,
    pub(crate) revision: RevisionKey,
    pub(crate) deployed: Arc<Deployed>,
    pub(crate) priority: u8,
    /// Who needs it.
    pub(crate) need: Need,
    /// When it was decided, in nanoseconds of the pool's life.
    pub(crate) asked: u64,
    /// It waits for a turn at the gate first.
    pub(crate) gated: bool,
    /// Memory that an instance of the revision was measured to use, in bytes; 0: not measured.
    pub(crate) measured: u64,
}

/// A start that came to its end with an instance.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) from_stem: bool,
}

/// An instance that is to be stopped.
#[derive(Debug)]
pub(crate) struct Stop {
    pub(crate) id: InstanceId,
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) grace: Duration,
    /// It is off the CPU, where it could not end politely.
    pub(crate) thaw: bool,
    /// What was sampled of it last, where its runtime tells what its instances use and somebody meters.
    pub(crate) sample: Option<LastSample>,
}

/// What an instance had used when it was last looked at.
#[derive(Debug)]
pub(crate) struct LastSample {
    pub(crate) revision: RevisionKey,
    pub(crate) deployed: Arc<Deployed>,
    /// When, in nanoseconds of the pool's life.
    pub(crate) at: u64,
    pub(crate) cpu_ns: u64,
}

impl LastSample {
    /// What was used since, by an instance that has used `usage` at `now`; `None`: nothing.
    pub(crate) fn reading(self, id: InstanceId, usage: Usage, now: u64) -> Option<Reading> {
        let cpu_ns = usage.cpu_ns.saturating_sub(self.cpu_ns);
        let held = u128::from(usage.memory_bytes) * u128::from(now.saturating_sub(self.at));
        (cpu_ns > 0 || held > 0).then(|| Reading::Resources(id, self.revision, self.deployed, cpu_ns, held))
    }
}

/// An instance that is to go off the CPU, or to come back.
#[derive(Debug)]
pub(crate) struct Freeze {
    pub(crate) id: InstanceId,
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) thaw: bool,
}

/// What a start holds while it goes on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Holds {
    /// A permit of the gate.
    pub(crate) permit: bool,
    /// A part of the budgets, of so many bytes.
    pub(crate) memory: Option<u64>,
    /// Who needed it when it began.
    pub(crate) need: Need,
}

/// An idle instance that may go when somebody waits for its part of a budget.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: InstanceId,
    pub(crate) tenant: TenantKey,
    pub(crate) takes: Takes,
    /// What it is worth to keep it, as the keep-alive policy says.
    pub(crate) worth: f64,
    /// Since when it is idle.
    pub(crate) since: u64,
}

/// A meter reading.
#[derive(Debug)]
pub(crate) enum Reading {
    Phase(InstanceId, RevisionKey, Arc<Deployed>, MeterPhase, u64),
    /// Nanoseconds on a CPU, and byte-nanoseconds of memory.
    Resources(InstanceId, RevisionKey, Arc<Deployed>, u64, u128),
}

/// An instance that failed, for whoever is told of it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) id: InstanceId,
    pub(crate) deployed: Arc<Deployed>,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// Collected under the lock, done after it.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    pub(crate) wake: SmallVec<[Waker; 2]>,
    pub(crate) begin: SmallVec<[DecidedStart; 1]>,
    pub(crate) stop: SmallVec<[Stop; 1]>,
    pub(crate) freeze: Vec<Freeze>,
    pub(crate) readings: Vec<Reading>,
    pub(crate) failures: Vec<Failure>,
    /// Whose last reference may go with them.
    pub(crate) dropped: SmallVec<[Arc<dyn Instance>; 1]>,
    pub(crate) forgotten: Option<Arc<Deployed>>,
    /// Starts in the gate's line that requests wait for by now.
    pub(crate) promoted: SmallVec<[InstanceId; 1]>,
    /// Starts that left the gate's line without their turn.
    pub(crate) withdrawn: SmallVec<[InstanceId; 1]>,
    /// Permits or budgets were given back: others may have their turn.
    pub(crate) pump: bool,
    /// Instances are gone: somebody may wait for that.
    pub(crate) gone: bool,
    /// The earliest timer that was set.
    pub(crate) armed: Option<u64>,
}

impl Effects {
    /// A timer was set.
    pub(crate) fn arm(&mut self, at: u64) {
        self.armed = Some(self.armed.map_or(at, |armed| armed.min(at)));
    }
}
