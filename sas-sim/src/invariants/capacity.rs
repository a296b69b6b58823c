//! While a roll-out moves, what the scalers of its two revisions may make of them together is no more than both want, and the
//! surge; and the pool holds each to it, but for what requests wait for.

use std::{collections::BTreeMap, time::Duration};

use super::{Invariant, View};
use crate::history::Fact;

/// How long the pool may take to bring a revision down: busy instances drain, and nothing shrinks while requests wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// The surge of the simulated roll-outs, in percent: the default.
const SURGE: u32 = 25;

/// Least instances, most that a decision makes, and most.
type Size = (u32, u32, u32);

#[derive(Debug, Default)]
pub(crate) struct RolloutsConserveCapacity {
    bounds: BTreeMap<u64, Size>,
    /// What the scalers wanted last.
    wished: BTreeMap<u64, u32>,
    /// Since when a revision has more than it may, with nothing waiting.
    over: BTreeMap<u64, Duration>,
    /// Since when decisions for a service may make more than they should.
    excess: BTreeMap<u32, Duration>,
    now: Duration,
}

impl Invariant for RolloutsConserveCapacity {
    fn name(&self) -> &'static str {
        "roll-outs conserve capacity"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        for (at, fact) in facts {
            self.now = *at;
            match fact {
                Fact::Bounded { revision, bounds: Some(bounds) } => {
                    self.bounds.insert(*revision, *bounds);
                }
                Fact::Bounded { revision, bounds: None } => {
                    self.bounds.remove(revision);
                    self.over.remove(revision);
                }
                Fact::Wished { revision, desired } => {
                    self.wished.insert(*revision, *desired);
                }
                Fact::HostDied => *self = Self { now: self.now, ..Self::default() },
                _ => {}
            }
        }
        let mut services: BTreeMap<u32, Vec<(u64, Size)>> = BTreeMap::new();
        for ((service, revision), seen) in &view.revisions {
            let Some(&(floor, ceiling, limit)) = self.bounds.get(revision) else { continue };
            services.entry(*service).or_default().push((*revision, (floor, ceiling, limit)));
            let runs = seen.ready + seen.starting;
            if runs <= ceiling.max(floor).min(limit) || seen.queued > 0 {
                self.over.remove(revision);
            } else if self.now > *self.over.entry(*revision).or_insert(self.now) + PATIENCE {
                return Err(format!(
                    "service {service} has {runs} instances of {revision}, and may have {ceiling} ({limit})"
                ));
            }
        }
        for (service, pair) in services {
            let [(one, (.., first, most)), (two, (.., second, other))] = pair[..] else { continue };
            if first == u32::MAX || second == u32::MAX {
                // One of them is left to its own scaler already.
                continue;
            }
            // The one of the revision that comes holds for both; 0 is none.
            let max = [one, two].map(|revision| view.revisions[&(service, revision)].max);
            let max = if max.contains(&0) { 0 } else { max[0].max(max[1]) };
            let surge = |of: u32| (of * SURGE).div_ceil(100);
            if max > 0 && most.saturating_add(other) > (max + surge(max)).max(2) {
                return Err(format!(
                    "service {service}, of at most {max}, may have {most} and {other} instances"
                ));
            }
            let wish = |revision| self.wished.get(&revision).copied().unwrap_or(0);
            let needed = wish(one) + wish(two);
            // Without any wish there is nothing that a decision could make; and the bounds follow the wishes a second later.
            if needed == 0 || first.saturating_add(second) <= (needed + surge(needed)).max(2) {
                self.excess.remove(&service);
            } else if self.now > *self.excess.entry(service).or_insert(self.now) + PATIENCE {
                return Err(format!(
                    "service {service}: {needed} are wanted, and decisions may make {first} and {second} instances"
                ));
            }
        }
        Ok(())
    }
}
