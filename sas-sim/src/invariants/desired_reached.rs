//! Once nothing is asked for, nothing runs. (The runner looks at the sizes in the end; here, that nothing starts.)

use std::time::Duration;

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
pub(crate) struct DesiredReached {
    quiet_since: Option<Duration>,
}

impl Invariant for DesiredReached {
    fn name(&self) -> &'static str {
        "desired is reached"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], _: &View) -> Result<(), String> {
        for (at, fact) in facts {
            match fact {
                Fact::QuietEnds => self.quiet_since = Some(*at),
                Fact::Control { what, .. } if what == "boot" => self.quiet_since = None,
                Fact::Starting { instance } => {
                    // An event that was on its way may still wake its service.
                    if let Some(since) = self.quiet_since
                        && *at > since + Duration::from_secs(20)
                    {
                        return Err(format!(
                            "instance {instance} starts {:?} after the last request",
                            *at - since
                        ));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}
