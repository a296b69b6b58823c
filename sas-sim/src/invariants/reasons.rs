//! The size of a revision is never changed without a decision that says why; decisions are counted without a gap. That holds
//! for starts, too, that requests cause between two ticks: the next decision says so.

use std::{collections::BTreeMap, time::Duration};

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
pub(crate) struct Reasons {
    /// The last number that was decided for each revision, and how many decisions there were.
    decided: BTreeMap<u64, (u64, Option<u32>)>,
    /// Numbers that were set before their decision was told, at the same moment.
    open: Vec<(Duration, u64, u32)>,
    /// Starts, by revision, that no decision had asked for.
    started: BTreeMap<u64, Duration>,
    /// How many instances a roll-out keeps of each revision, whatever its scaler decides: told by a decision when they are
    /// set, and held to when a start has failed.
    floors: BTreeMap<u64, u32>,
}

/// The reasons with which the pool tells that it started something.
const STARTS: [&str; 4] = ["Activated", "Expected", "RollOut", "Part"];

impl Invariant for Reasons {
    fn name(&self) -> &'static str {
        "reasons"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], _: &View) -> Result<(), String> {
        for (at, fact) in facts {
            if let Some((since, revision, desired)) = self.open.first()
                && since < at
            {
                return Err(format!("revision {revision:x} was set to {desired} without a decision"));
            }
            match fact {
                Fact::Decided { revision, sequence, desired, grounds, reason } => {
                    if !grounds {
                        return Err(format!(
                            "decision {sequence} of {revision:x} ({reason}) says not from what"
                        ));
                    }
                    let entry = self.decided.entry(*revision).or_insert((*sequence - 1, None));
                    // A revision that slept long enough is counted anew.
                    if *sequence != entry.0 + 1 && *sequence != 1 {
                        return Err(format!("decision {sequence} of {revision:x} came after {}", entry.0));
                    }
                    entry.0 = *sequence;
                    if let Some(since) = self.started.remove(revision) {
                        let asked = STARTS.contains(&reason.as_str())
                            || (since == *at && desired.is_some_and(|desired| desired > 0));
                        if !asked {
                            return Err(format!(
                                "revision {revision:x} was started at {since:?} without a decision; the next one is {reason}"
                            ));
                        }
                    }
                    if desired.is_some() {
                        entry.1 = *desired;
                    }
                    self.open.retain(|(_, of, number)| of != revision || Some(*number) != *desired);
                }
                // Each is told again when it has its number, at the same moment.
                Fact::OwnSize { revision, desired, .. } => self.open.push((*at, *revision, *desired)),
                Fact::Wished { revision, desired } => {
                    let known =
                        self.decided.get(revision).is_some_and(|(_, number)| *number == Some(*desired));
                    if !known {
                        self.open.push((*at, *revision, *desired));
                    }
                }
                Fact::Starting { revision, .. } => {
                    let wanted = self.decided.get(revision).and_then(|(_, number)| *number).unwrap_or(0);
                    let floor = self.floors.get(revision).copied().unwrap_or(0);
                    if wanted.max(floor) == 0 {
                        self.started.entry(*revision).or_insert(*at);
                    }
                }
                Fact::Bounded { revision, bounds } => match bounds {
                    Some((floor, ..)) => drop(self.floors.insert(*revision, *floor)),
                    None => drop(self.floors.remove(revision)),
                },
                Fact::HostDied => {
                    self.started.clear();
                    self.floors.clear();
                }
                _ => {}
            }
        }
        Ok(())
    }
}
