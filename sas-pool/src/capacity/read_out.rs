use std::time::Duration;

use sas_core::{CapacityInput, CapacityPolicy};
use serde::{Deserialize, Serialize};

/// What a stem pool bought, and what it cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ReadOut {
    /// How many slots of time the policy has seen.
    pub slots: u64,
    /// How many stems were asked for in these slots.
    pub taken: u64,
    /// Starts that found no stem.
    pub missed: u64,
    /// Cold starts that a stem made short: what was bought.
    pub avoided: u64,
    /// Stem-seconds that nobody used: what it cost.
    pub idle_seconds: f64,
    /// The largest size decided.
    pub peak: u32,
}

impl ReadOut {
    /// Counts the slot that `input` describes; what is ready at its end counts as idle through it.
    pub fn record(&mut self, input: &CapacityInput) {
        let missed = input.missed.min(input.taken);
        self.slots += 1;
        self.taken = self.taken.saturating_add(u64::from(input.taken));
        self.missed = self.missed.saturating_add(u64::from(missed));
        self.avoided = self.avoided.saturating_add(u64::from(input.taken - missed));
        self.idle_seconds += f64::from(input.ready) * input.slot.as_secs_f64();
    }

    /// Missed over asked for, 0 to 1.
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn miss_ratio(&self) -> f64 {
        if self.taken == 0 { 0.0 } else { self.missed as f64 / self.taken as f64 }
    }

    /// Idle stem-seconds over those that demand could have used: the over-provisioning of `slot`s.
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn over(&self, slot: Duration) -> f64 {
        let used = self.taken as f64 * slot.as_secs_f64();
        if used == 0.0 { 0.0 } else { self.idle_seconds / used }
    }
}

/// A policy that also says what it bought.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Metered<P> {
    policy: P,
    read_out: ReadOut,
}

impl<P> Metered<P> {
    /// Counts from now on.
    pub fn new(policy: P) -> Self {
        Self { policy, read_out: ReadOut::default() }
    }

    /// The sums so far.
    pub fn read_out(&self) -> ReadOut {
        self.read_out
    }

    /// The policy whose decisions are read out.
    pub fn policy(&self) -> &P {
        &self.policy
    }
}

#[deny(clippy::missing_trait_methods)]
impl<P: CapacityPolicy> CapacityPolicy for Metered<P> {
    fn target(&mut self, input: &CapacityInput) -> u32 {
        self.read_out.record(input);
        let size = self.policy.target(input);
        self.read_out.peak = self.read_out.peak.max(size);
        size
    }
}
