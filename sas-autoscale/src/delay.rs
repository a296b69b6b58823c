//! A lower decision waits: for scalers that have no such window of their own.

use std::time::Duration;

use sas_core::{Clamps, Decision, Reason, Verdict};
use serde::{Deserialize, Serialize};

use crate::window::{MaxWindow, Nanos, SECOND};

/// Counts the time that ticks cover, and holds a number for the scale-down delay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Delay {
    clock: Nanos,
    window: Option<MaxWindow>,
}

impl Delay {
    /// Time passes.
    pub(crate) fn pass(&mut self, elapsed: Duration) -> Nanos {
        self.clock = self.clock.saturating_add(i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX));
        self.clock
    }

    /// Holds `decision` up when it is lower than one of the last `delay`.
    pub(crate) fn hold(&mut self, delay: Duration, decision: &mut Decision) {
        if delay.is_zero() {
            return;
        }
        let Verdict::Set(desired) = decision.verdict else { return };
        let length = i64::try_from(delay.as_nanos()).unwrap_or(i64::MAX);
        let window = self.window.get_or_insert_with(|| MaxWindow::new(length, SECOND));
        window.record(self.clock, i32::try_from(desired).unwrap_or(i32::MAX));
        let held = u32::try_from(window.current()).unwrap_or(0);
        if held > desired {
            decision.verdict = Verdict::Set(held);
            decision.reason = Reason::Delayed;
            decision.clamps.insert(Clamps::DELAY);
        }
    }
}
