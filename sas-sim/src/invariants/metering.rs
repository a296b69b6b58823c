//! The metered phases of an instance add up to its life, to the nanosecond.

use std::{collections::BTreeMap, time::Duration};

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
pub(crate) struct Metering {
    began: BTreeMap<u64, Duration>,
    /// Lives that are over, and whether they ended by a fault of the host.
    ended: BTreeMap<u64, Duration>,
    metered: BTreeMap<u64, u64>,
    killed_hosts: u64,
    last_epoch: u64,
}

impl Invariant for Metering {
    fn name(&self) -> &'static str {
        "metering"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        for (at, fact) in facts {
            match fact {
                Fact::Starting { instance, .. } => {
                    self.last_epoch = self.last_epoch.max(instance >> 48);
                    self.began.insert(*instance, *at);
                }
                Fact::Gone { instance, .. } => {
                    if let Some(began) = self.began.remove(instance) {
                        self.ended.insert(*instance, *at - began);
                    }
                }
                Fact::Metered { instance, ns } => *self.metered.entry(*instance).or_default() += ns,
                Fact::HostDied => self.killed_hosts = self.last_epoch,
                _ => {}
            }
        }
        if !view.end {
            return Ok(());
        }
        for (instance, life) in &self.ended {
            // What a host that was killed had not told yet is lost with it.
            if instance >> 48 <= self.killed_hosts {
                continue;
            }
            let metered = self.metered.get(instance).copied().unwrap_or(0);
            if u128::from(metered) != life.as_nanos() {
                return Err(format!(
                    "instance {instance} lived {} ns, metered were {metered}",
                    life.as_nanos()
                ));
            }
        }
        Ok(())
    }
}
