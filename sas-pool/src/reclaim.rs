//! Room in the budgets: when somebody waits for memory or an instance, idle instances go before anybody is refused.

use std::sync::Arc;

use crate::{core::Core, gate::Shortage};

/// Gives stems up, then stops idle instances, until what is short can be given. Says whether stems were given up:
/// their memory is free at once.
pub(crate) fn make_room(core: &Arc<Core>, shortage: Shortage) -> bool {
    let mut left = shortage;
    core.stems.give_up(core, &mut left.memory);
    let given_up = left.memory < shortage.memory;
    // Those of tenants over their share go first.
    for over_share_only in [true, false] {
        for shard in core.shards() {
            if left == Shortage::default() {
                return given_up;
            }
            shard.reclaim(&mut left, over_share_only);
        }
    }
    given_up
}
