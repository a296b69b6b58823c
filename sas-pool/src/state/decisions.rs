//! What the pool decides by itself, kept until a driver takes it into the history of decisions.

use std::collections::VecDeque;

use sas_core::{PoolDecision, Reason, Timestamp};

use super::*;

/// How many are kept in a shard between two visits. When there are more the oldest go, and the log says how many: a
/// second in which a shard decides more often than this is one in which its host runs out of memory.
const KEPT: usize = 4096;

/// The decisions since the last visit of a driver.
#[derive(Debug, Default)]
pub(crate) struct OwnDecisions {
    kept: VecDeque<(PoolDecision, Arc<Deployed>)>,
    lost: u64,
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
        let active = &self.actives[a as usize];
        let name = &self.deployed(a).name;
        tracing::debug!(revision = %name, before, desired, ?reason, "the pool changes a size by itself");
        if self.visited.is_none() || active.orphan {
            return;
        }
        let mut decision = PoolDecision::new(active.key.0, rules.config.clock.now(), before, desired, reason);
        decision.until = until;
        let deployed = Arc::clone(self.deployed(a));
        if self.own.kept.len() >= KEPT {
            self.own.kept.pop_front();
            self.own.lost += 1;
        }
        self.own.kept.push_back((decision, deployed));
    }

    /// What was decided here since the last call.
    pub(crate) fn take_decisions(&mut self) -> VecDeque<(PoolDecision, Arc<Deployed>)> {
        let lost = std::mem::take(&mut self.own.lost);
        if lost > 0 {
            tracing::warn!(lost, "decisions of the pool's own were not taken in time");
        }
        std::mem::take(&mut self.own.kept)
    }
}
