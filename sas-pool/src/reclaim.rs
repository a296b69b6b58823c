//! Room in the budgets: when somebody waits for memory or an instance, idle instances go before anybody is refused.

use std::sync::Arc;

use sas_core::InstanceId;

use crate::{core::Core, gate::Shortage};

/// An idle instance that may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) id: InstanceId,
    /// What it is worth to keep it, as the keep-alive policy says.
    pub(crate) worth: f64,
    /// Since when it is idle.
    pub(crate) since: u64,
}

/// Gives stems up, then stops idle instances, until what is short can be given. Says whether stems were given up:
/// their memory is free at once.
pub(crate) fn make_room(core: &Arc<Core>, shortage: Shortage) -> bool {
    let mut left = shortage;
    core.stems.give_up(core, &mut left.memory);
    let given_up = left.memory < shortage.memory;
    if left == Shortage::default() {
        return given_up;
    }
    // Over all shards, so that the cheapest to lose goes first wherever it is.
    let mut idle: Vec<Candidate> = core.shards().flat_map(|shard| shard.state.lock().idle(core)).collect();
    idle.sort_by(|one, two| {
        one.worth.total_cmp(&two.worth).then(one.since.cmp(&two.since)).then(one.id.cmp(&two.id))
    });
    // Those of tenants over their share go first.
    for over_share_only in [true, false] {
        for candidate in &idle {
            if left == Shortage::default() {
                return given_up;
            }
            if let Some(shard) = core.shard(core.shard_of(candidate.id)) {
                shard.reclaim(candidate.id, &mut left, over_share_only);
            }
        }
    }
    given_up
}
