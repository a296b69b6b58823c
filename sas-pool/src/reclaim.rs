//! Room in the budgets: when somebody waits for memory or an instance, idle instances go before anybody is refused.

use crate::{core::Core, gate::Shortage};

/// Stops idle instances until what is short can be given.
pub(crate) fn make_room(core: &Core, shortage: Shortage) {
    let mut left = shortage;
    // Those of tenants over their share go first.
    for over_share_only in [true, false] {
        for shard in core.shards() {
            if left == Shortage::default() {
                return;
            }
            shard.reclaim(&mut left, over_share_only);
        }
    }
}
