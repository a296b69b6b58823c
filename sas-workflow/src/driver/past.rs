//! What is known of a run beside its machine: of records that are gone, what a checkpoint keeps of it.

use std::collections::{BTreeMap, HashSet, VecDeque};

use sas_core::IdempotencyKey;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::shown::{SHOWN, cut, failure, shown};
use crate::Record;

/// How many answers are kept for the path of a run: the last ones.
const ENDS: usize = 1_000;
/// How many bytes of each.
const END: usize = 512;
/// How many events are known again: the last ones.
const SEEN: usize = 10_000;

/// How a step was answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct End {
    pub(super) step: String,
    pub(super) at: u64,
    pub(super) outcome: Json,
    pub(super) failed: bool,
}

/// What is known of a run beside its machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Past {
    /// The input, where it is not too large to be shown.
    pub(super) input: Json,
    pub(super) ends: VecDeque<End>,
    /// How often steps were begun anew by an operator.
    pub(super) retries: BTreeMap<String, u64>,
    #[serde(with = "ids")]
    seen: Seen,
}

/// Events that came, the last ones.
#[derive(Clone, Debug, Default)]
struct Seen {
    known: HashSet<u128>,
    order: VecDeque<u128>,
}

impl Past {
    /// Takes note of a record, in order.
    pub(super) fn note(&mut self, record: &Record) {
        match record {
            Record::Started { input, .. } => self.input = cut(Some(input), SHOWN),
            Record::Done { step, outcome, at } => {
                if self.ends.len() == ENDS {
                    self.ends.pop_front();
                }
                let (outcome, failed) = (shown(outcome, END), failure(outcome));
                self.ends.push_back(End { step: step.clone(), at: *at, outcome, failed });
            }
            Record::Retried { step, .. } => {
                // Its answer does not count any more.
                if self.ends.back().is_some_and(|end| end.step == *step) {
                    self.ends.pop_back();
                }
                *self.retries.entry(step.clone()).or_default() += 1;
            }
            Record::Event { event, .. } => {
                if let Some(id) = event_id(event) {
                    self.seen.insert(id);
                }
            }
            Record::Time { .. } | Record::Cancelled { .. } => {}
        }
    }

    /// Whether this event came, as far as it is known: brokers deliver at least once.
    pub(super) fn has_seen(&self, event: &Json) -> bool {
        event_id(event).is_some_and(|id| self.seen.known.contains(&id))
    }
}

/// What tells an event from all others, by CloudEvents: its source with its id.
fn event_id(event: &Json) -> Option<u128> {
    let (source, id) = (event.get("source")?.as_str()?, event.get("id")?.as_str()?);
    Some(IdempotencyKey::of(&["event", source, id]).0)
}

impl Seen {
    fn insert(&mut self, id: u128) {
        if !self.known.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

/// Ids as hexadecimal texts: JSON has no whole numbers of 128 bits.
mod ids {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::Seen;

    pub(super) fn serialize<S: Serializer>(seen: &Seen, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(seen.order.iter().map(|id| format!("{id:032x}")))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Seen, D::Error> {
        let mut seen = Seen::default();
        for id in Vec::<String>::deserialize(from)? {
            seen.insert(u128::from_str_radix(&id, 16).map_err(D::Error::custom)?);
        }
        Ok(seen)
    }
}
