use std::collections::VecDeque;

use sas_core::{CapacityInput, CapacityPolicy, SpecErrors};
use serde::{Deserialize, Serialize};

use super::{check, within};

/// Mean plus `k` sample standard deviations of the last slots: a baseline.
///
/// Remembers four bytes for each slot of its window, which is made when the first demand comes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MovingAverage {
    window: usize,
    k: f64,
    recent: VecDeque<u32>,
}

impl MovingAverage {
    /// Over the last `window` slots (1 to 100,000).
    ///
    /// # Errors
    /// A window of none or too many slots, a `k` outside -100 to 100.
    pub fn new(window: usize, k: f64) -> Result<Self, SpecErrors> {
        #[allow(clippy::cast_precision_loss, reason = "only compared with a small range")]
        let slots = window as f64;
        let mut errors = SpecErrors::default();
        check(&mut errors, "window", slots, 1.0, 100_000.0);
        check(&mut errors, "k", k, -100.0, 100.0);
        errors.into_result()?;
        Ok(Self { window, k, recent: VecDeque::new() })
    }
}

impl CapacityPolicy for MovingAverage {
    #[allow(clippy::cast_precision_loss, reason = "a window has at most 100,000 slots")]
    fn target(&mut self, input: &CapacityInput) -> u32 {
        if self.recent.len() == self.window {
            self.recent.pop_front();
        }
        self.recent.push_back(input.taken);
        let n = self.recent.len() as f64;
        let mean = self.recent.iter().map(|&d| f64::from(d)).sum::<f64>() / n;
        let squares = self.recent.iter().map(|&d| (f64::from(d) - mean).powi(2)).sum::<f64>();
        let sd = if n > 1.0 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        within(mean + self.k * sd, input)
    }
}
