use sas::core::{Decision, Policy, Reason, ScaleInput};
use serde::{Deserialize, Serialize};

/// What it remembers of a revision, between decisions and over restarts: the highest load of late.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Recent {
    peak: f64,
}

/// More requests at once than any revision has.
const MOST: f64 = 1e6;

/// One instance for every five requests at once, and one more while there is any load.
#[derive(Debug)]
pub struct OneSpare;

impl Policy for OneSpare {
    type State = Recent;

    fn name(&self) -> &'static str {
        "one-spare"
    }

    fn decide(&self, state: &mut Recent, input: &ScaleInput<'_>) -> Decision {
        let busy = input.load.concurrency + f64::from(input.load.queued);
        if !busy.is_finite() {
            return Decision::hold(Reason::BadInput);
        }
        // A measurement that went wrong is not remembered for ever.
        state.peak = busy.min(MOST).max(state.peak * 0.9);
        if state.peak < 0.1 {
            return Decision::set(0, Reason::Idle);
        }
        Decision::set((state.peak / 5.0).ceil() as u32 + 1, Reason::Custom(1))
    }
}
