use sas_core::{CapacityInput, CapacityPolicy, SpecErrors};
use serde::{Deserialize, Serialize};

use super::{check, within};

/// Additive Holt-Winters with one season: a baseline.
///
/// ```text
/// l' = α(d − S) + (1 − α)(l + b)     b' = β(l' − l) + (1 − β)b     S' = γ(d − l') + (1 − γ)S
/// v' = 0.98·v + 0.02·e²              size = ⌈f + k·√v⌉
/// ```
///
/// with α 0.2, β 0.01, γ 0.2, the forecast `f = l + b + S` and its error `e`. The first season is buffered: its mean
/// is the first level and the first `v`, its deviations the first `S`; then it is replayed. Until then the size is
/// the largest demand seen. Remembers 8 bytes for each slot of a season.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HoltWinters {
    k: f64,
    length: usize,
    season: Vec<f64>,
    at: usize,
    level: f64,
    trend: f64,
    variance: f64,
    ready: bool,
}

const ALPHA: f64 = 0.2;
const BETA: f64 = 0.01;
const GAMMA: f64 = 0.2;

impl HoltWinters {
    /// A season of `length` slots (2 to 100,000), `k` standard deviations of head-room (-100 to 100).
    ///
    /// # Errors
    /// A parameter that is not a number or out of its range.
    pub fn new(length: usize, k: f64) -> Result<Self, SpecErrors> {
        #[allow(clippy::cast_precision_loss, reason = "only compared with a small range")]
        let slots = length as f64;
        let mut errors = SpecErrors::default();
        check(&mut errors, "length", slots, 2.0, 100_000.0);
        check(&mut errors, "k", k, -100.0, 100.0);
        errors.into_result()?;
        Ok(Self { k, length, season: Vec::new(), at: 0, level: 0.0, trend: 0.0, variance: 0.0, ready: false })
    }

    fn learn(&mut self, demand: f64) {
        let old = self.season[self.at];
        let error = demand - (self.level + self.trend + old);
        let level = ALPHA * (demand - old) + (1.0 - ALPHA) * (self.level + self.trend);
        self.trend = BETA * (level - self.level) + (1.0 - BETA) * self.trend;
        self.level = level;
        self.season[self.at] = GAMMA * (demand - level) + (1.0 - GAMMA) * old;
        self.variance = 0.98 * self.variance + 0.02 * error * error;
        self.at = (self.at + 1) % self.length;
    }
}

impl CapacityPolicy for HoltWinters {
    #[allow(clippy::cast_precision_loss, reason = "a season has at most 100,000 slots")]
    fn target(&mut self, input: &CapacityInput) -> u32 {
        let demand = f64::from(input.taken);
        if self.ready {
            self.learn(demand);
        } else {
            self.season.push(demand);
            if self.season.len() < self.length {
                let most = self.season.iter().copied().fold(0.0, f64::max);
                return within(most, input);
            }
            let first = self.season.clone();
            self.level = first.iter().sum::<f64>() / self.length as f64;
            self.variance = self.level;
            for slot in &mut self.season {
                *slot -= self.level;
            }
            self.ready = true;
            for demand in first {
                self.learn(demand);
            }
        }
        let forecast = self.level + self.trend + self.season[self.at];
        within(forecast + self.k * self.variance.sqrt(), input)
    }
}
