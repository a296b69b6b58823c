//! An instance that fails its liveness probe is found and leaves in time, and gets no request after it was found.

use std::{collections::BTreeMap, time::Duration};

use super::{Invariant, View};
use crate::{
    history::Fact,
    host::{PROBE_FAILURES, PROBE_PERIOD, PROBE_TIMEOUT, STOP_GRACE},
};

/// Questions are asked, and answers heard, once a second.
const ROUND: Duration = Duration::from_secs(2);

#[derive(Debug, Default)]
pub(crate) struct Health {
    ill: BTreeMap<u64, Duration>,
    replaced: BTreeMap<u64, Duration>,
}

/// From the first failure to the end of the instance: as many questions as the probe allows to fail, the last answer, a
/// drain, and a stop.
fn latest() -> Duration {
    (PROBE_PERIOD + ROUND) * PROBE_FAILURES + PROBE_TIMEOUT + ROUND + STOP_GRACE * 2
}

impl Invariant for Health {
    fn name(&self) -> &'static str {
        "health"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], _: &View) -> Result<(), String> {
        for (at, fact) in facts {
            match fact {
                Fact::Ill { instance } => {
                    self.ill.insert(*instance, *at);
                }
                Fact::Recycled { instance } => {
                    self.replaced.entry(*instance).or_insert(*at);
                }
                Fact::Executed { instance, .. } | Fact::Fired { instance, .. } => {
                    // What was claimed before may begin at the same moment.
                    if let Some(since) = self.replaced.get(instance).filter(|since| **since < *at) {
                        return Err(format!(
                            "instance {instance} gets a request {:?} after it was to be replaced",
                            *at - *since
                        ));
                    }
                }
                Fact::Gone { instance, .. } => {
                    self.ill.remove(instance);
                    self.replaced.remove(instance);
                }
                Fact::HostDied => {
                    self.ill.clear();
                    self.replaced.clear();
                }
                _ => {}
            }
        }
        let Some((now, _)) = facts.last() else { return Ok(()) };
        match self.ill.iter().find(|(_, since)| *now > **since + latest()) {
            Some((instance, since)) => {
                Err(format!("instance {instance} has failed its probes for {:?} and is there", *now - *since))
            }
            None => Ok(()),
        }
    }
}
