//! What the pool decides by itself, kept until a driver takes it into the history of decisions.

use std::collections::{BTreeSet, VecDeque};

use sas_core::{PoolDecision, Reason, Timestamp};

use super::*;
use crate::revision::Activation;

/// How many are kept in a shard between two visits. When there are more the oldest go, and the log says how many: a
/// second in which a shard decides more often than this is one in which its host runs out of memory.
const KEPT: usize = 4096;

/// The decisions since the last visit of a driver.
#[derive(Debug, Default)]
pub(crate) struct OwnDecisions {
    kept: VecDeque<(PoolDecision, Arc<Deployed>)>,
    lost: u64,
    /// Records that have an activation to tell: however many requests come, a revision has one between two visits.
    activated: BTreeSet<u32>,
}

impl OwnDecisions {
    fn keep(&mut self, decision: (PoolDecision, Arc<Deployed>)) {
        if self.kept.len() >= KEPT {
            self.kept.pop_front();
            self.lost += 1;
        }
        self.kept.push_back(decision);
    }

    /// Nothing is added any more to the activation that this revision may have to tell: something else is decided, or it
    /// is at rest again. It is kept where somebody comes to take it.
    pub(super) fn end_activation(&mut self, active: &mut Active, visited: bool) {
        let told = active.activation.take().and_then(|activation| activation.told(active));
        if let Some(told) = told.filter(|_| visited) {
            self.keep(told);
        }
    }
}

impl Activation {
    fn told(self, active: &Active) -> Option<(PoolDecision, Arc<Deployed>)> {
        let deployed = active.deployed.as_ref().filter(|_| !active.orphan)?;
        let mut decision = PoolDecision::new(active.key.0, self.at, 0, self.started, Reason::Activated);
        decision.waited = self.waited;
        Some((decision, Arc::clone(deployed)))
    }
}

impl State {
    /// Keeps a decision of the pool's own about the size of a revision that is active. Nothing is kept where no driver ever
    /// came by to take it.
    pub(super) fn decided_here(
        &mut self,
        rules: &Rules,
        a: u32,
        (before, desired): (u32, u32),
        reason: Reason,
        until: Option<Timestamp>,
    ) {
        let active = &mut self.actives[a as usize];
        self.own.end_activation(active, self.visited.is_some());
        let active = &self.actives[a as usize];
        let name = &self.deployed(a).name;
        tracing::debug!(revision = %name, before, desired, ?reason, "the pool changes a size by itself");
        if self.visited.is_none() || active.orphan {
            return;
        }
        let mut decision = PoolDecision::new(active.key.0, rules.config.clock.now(), before, desired, reason);
        decision.until = until;
        let deployed = Arc::clone(self.deployed(a));
        self.own.keep((decision, deployed));
    }

    /// So many more requests wait, and the pool may have started something for them: of a revision that had nothing, that is
    /// a decision.
    pub(super) fn note_activation(&mut self, rules: &Rules, a: u32, from_zero: bool, waited: u32) {
        let active = &mut self.actives[a as usize];
        let have = active.have();
        if from_zero && have > 0 && !active.orphan {
            self.own.end_activation(active, self.visited.is_some());
            active.activation = Some(Activation { at: rules.config.clock.now(), started: 0, waited: 0 });
            self.own.activated.insert(a);
        }
        if let Some(activation) = &mut active.activation {
            activation.started = activation.started.max(have);
            activation.waited = activation.waited.saturating_add(waited);
        }
    }

    /// What was decided here since the last call, oldest first for each revision.
    pub(crate) fn take_decisions(&mut self) -> VecDeque<(PoolDecision, Arc<Deployed>)> {
        let lost = std::mem::take(&mut self.own.lost);
        if lost > 0 {
            tracing::warn!(lost, "decisions of the pool's own were not taken in time");
        }
        let mut taken = std::mem::take(&mut self.own.kept);
        for a in std::mem::take(&mut self.own.activated) {
            let active = &mut self.actives[a as usize];
            // The revision may be at rest again, and then this was told.
            taken.extend(active.activation.take().and_then(|activation| activation.told(active)));
        }
        taken
    }
}
