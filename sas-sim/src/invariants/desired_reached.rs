//! Once nothing is asked for, nothing runs. (The runner looks at the sizes in the end; here, that nothing starts but what
//! the pool decided to start ahead of a call that it expects.)

use std::time::Duration;

use super::{Invariant, View};
use crate::history::Fact;

#[derive(Debug, Default)]
pub(crate) struct DesiredReached {
    quiet_since: Option<Duration>,
    /// Starts long after the last request, and decisions of the pool's own to start something.
    started: u32,
    expected: u32,
}

impl Invariant for DesiredReached {
    fn name(&self) -> &'static str {
        "desired is reached"
    }

    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String> {
        for (at, fact) in facts {
            match fact {
                Fact::QuietEnds => self.quiet_since = Some(*at),
                Fact::Control { what, .. } if what == "boot" => self.quiet_since = None,
                Fact::OwnSize { ahead: true, .. } => {
                    let late = |since: Duration| *at > since + Duration::from_secs(20);
                    self.expected += u32::from(self.quiet_since.is_some_and(late));
                }
                Fact::Starting { .. } if view.ahead => {
                    let late = |since: Duration| *at > since + Duration::from_secs(20);
                    self.started += u32::from(self.quiet_since.is_some_and(late));
                }
                Fact::Starting { instance, .. } => {
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
        // A decision is told up to a tick after its start.
        if view.end && self.started > self.expected {
            return Err(format!(
                "{} instances started after the last request, of which {} were expected",
                self.started, self.expected
            ));
        }
        Ok(())
    }
}
