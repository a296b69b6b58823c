//! A request that may not be executed twice is not.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
pub(crate) struct ExecutedOnce {
    once: BTreeSet<u64>,
    executed: BTreeMap<u64, u64>,
}

impl Invariant for ExecutedOnce {
    fn name(&self) -> &'static str {
        "executed once"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], _: &View) -> Result<(), String> {
        for (_, fact) in facts {
            match fact {
                Fact::Sent { request, idempotent: false, .. } => {
                    self.once.insert(*request);
                }
                Fact::Executed { request, instance, .. } if self.once.contains(request) => {
                    if let Some(before) = self.executed.insert(*request, *instance) {
                        return Err(format!("request {request} was executed on {before} and on {instance}"));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
