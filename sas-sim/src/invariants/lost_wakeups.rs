//! Nobody waits while there is a free slot.

use std::{collections::BTreeSet, time::Duration};

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
pub(crate) struct LostWakeups {
    before: BTreeSet<(u32, u64)>,
}

impl Invariant for LostWakeups {
    fn name(&self) -> &'static str {
        "no lost wake-up"
    }

    fn look(&mut self, _: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        let mut now = BTreeSet::new();
        for (key, revision) in &view.revisions {
            let free = revision.instances.iter().any(|(in_flight, limit)| in_flight < limit);
            if revision.queued > 0 && free {
                // Twice in a row, a quarter of a second apart: nothing is just on its way.
                if self.before.contains(key) {
                    return Err(format!("service {} waits beside a free slot: {revision:?}", key.0));
                }
                now.insert(*key);
            }
        }
        self.before = now;
        Ok(())
    }
}
