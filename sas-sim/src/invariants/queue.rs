//! A message of which it is said that its target answered was executed.

use std::{collections::BTreeSet, time::Duration};

use super::{Invariant, View};
use crate::{history::Fact, queue::PREFIX};

#[derive(Debug, Default)]
pub(crate) struct MessagesArrive {
    executed: BTreeSet<u64>,
}

impl Invariant for MessagesArrive {
    fn name(&self) -> &'static str {
        "messages arrive"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], _: &View) -> Result<(), String> {
        for (_, fact) in facts {
            match fact {
                Fact::Fired { event, .. } => {
                    self.executed.extend(event.strip_prefix(PREFIX).and_then(|id| id.parse::<u64>().ok()));
                }
                Fact::Acknowledged { message, executed: true } if !self.executed.contains(message) => {
                    return Err(format!("message {message} was acknowledged, and no instance had it"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
