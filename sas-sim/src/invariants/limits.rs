//! No instance works on more requests than its limit, and no revision has more instances than its maximum.

use std::time::Duration;

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
pub(crate) struct Limits;

impl Invariant for Limits {
    fn name(&self) -> &'static str {
        "limits"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        for (_, fact) in facts {
            if let Fact::Executed { request, instance, at_once, limit } = fact
                && *limit > 0
                && at_once > limit
            {
                return Err(format!(
                    "request {request} is one of {at_once} on instance {instance}, which may have {limit}"
                ));
            }
        }
        for ((service, _), revision) in &view.revisions {
            if revision.max > 0 && revision.ready + revision.starting > revision.max {
                return Err(format!("service {service} has {revision:?}"));
            }
        }
        Ok(())
    }
}
