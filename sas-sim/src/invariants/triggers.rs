//! When all is well a timer is heard each period, and each of its events once.

use std::{collections::BTreeSet, time::Duration};

use super::{Invariant, View};
use crate::{history::Fact, queue::PREFIX};

#[derive(Debug, Default)]
pub(crate) struct TriggersFire {
    quiet: bool,
    expected: bool,
    events: BTreeSet<String>,
}

impl Invariant for TriggersFire {
    fn name(&self) -> &'static str {
        "triggers fire"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], _: &View) -> Result<(), String> {
        for (_, fact) in facts {
            match fact {
                Fact::Fired { event, .. } if event.starts_with(PREFIX) => {}
                Fact::Quiet { timer } => (self.quiet, self.expected) = (true, *timer),
                Fact::Fired { event, .. } if self.quiet && !self.events.insert(event.clone()) => {
                    return Err(format!("event {event} was delivered twice, though nothing failed"));
                }
                Fact::QuietEnds => {
                    self.quiet = false;
                    if self.expected && self.events.len() < 4 {
                        return Err(format!("{} events were heard in five periods", self.events.len()));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
