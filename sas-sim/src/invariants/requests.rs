//! The requests that are metered are those that instances answered, one to one.

use std::{collections::BTreeMap, time::Duration};

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
struct Counted {
    /// Requests and events that an instance began with.
    begun: u64,
    /// Of these, calls that failed or were dropped before their end: whether they count is the gateway's affair.
    cut: u64,
    /// Requests that an instance gave back unused.
    given_back: u64,
    metered: u64,
}

#[derive(Debug, Default)]
pub(crate) struct RequestsReconcile {
    lives: BTreeMap<u64, Counted>,
    /// Lives of the host that ended by a fault: what they had not told is lost with them.
    killed: u64,
    last: u64,
}

impl RequestsReconcile {
    fn of(&mut self, epoch: u64) -> &mut Counted {
        self.last = self.last.max(epoch);
        self.lives.entry(epoch).or_default()
    }
}

impl Invariant for RequestsReconcile {
    fn name(&self) -> &'static str {
        "requests reconcile"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        for (_, fact) in facts {
            match fact {
                Fact::Executed { instance, .. } | Fact::Fired { instance, .. } => {
                    self.of(instance >> 48).begun += 1;
                }
                Fact::CutShort { instance } => self.of(instance >> 48).cut += 1,
                Fact::GivenBack { instance } => self.of(instance >> 48).given_back += 1,
                Fact::MeteredRequests { epoch, count } => self.of(*epoch).metered += count,
                Fact::HostDied => self.killed = self.last,
                _ => {}
            }
        }
        if !view.end {
            return Ok(());
        }
        for (epoch, counted) in self.lives.range(self.killed + 1..) {
            let Counted { begun, cut, given_back, metered } = counted;
            if *metered < begun - cut || *metered > begun + given_back {
                return Err(format!(
                    "in life {epoch} instances worked on {begun} requests, {cut} of them cut short, and gave \
                     {given_back} back; metered were {metered}"
                ));
            }
        }
        Ok(())
    }
}
