use std::{borrow::Cow, fmt};

use super::{
    memory::{CELLS, Cells, Memory, PAIRS, STARTS},
    weights::{BIAS, WEIGHTS},
};
use crate::trace::Function;

/// Steps per unit of log-odds in which weights are kept.
const STEPS: f64 = 16.0;

/// How likely a call in a minute is, by what is remembered of the revision: log-odds as a sum over tables, of each of
/// which one cell counts. Two kilobytes, shared by all revisions.
///
/// [`HazardTable::shipped`] was fitted to the rows with an odd index of a sample of the Azure Functions trace of 2019;
/// [`HazardTable::fit`] makes one from traces of your own.
#[derive(Clone, PartialEq, Eq)]
pub struct HazardTable {
    bias: i32,
    weights: Cow<'static, [i8]>,
}

impl fmt::Debug for HazardTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HazardTable").field("bias", &self.bias).finish_non_exhaustive()
    }
}

/// How a [`HazardTable`] is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Fit {
    /// Passes over the samples.
    pub rounds: u32,
    /// The share of a Newton step that each pass takes.
    pub rate: f64,
    /// Added to the curvature of every cell: how much evidence it takes to leave zero.
    pub ridge: f64,
    /// No function counts for more than this many: a single row must not bend the population.
    pub heaviest: f64,
}

impl Default for Fit {
    fn default() -> Self {
        Self { rounds: 8, rate: 0.5, ridge: 20.0, heaviest: 10.0 }
    }
}

struct Sample {
    cells: Cells,
    called: bool,
    weight: f64,
    logit: f64,
}

impl HazardTable {
    /// Of how many weights it is made.
    pub const WEIGHTS: usize = CELLS;

    /// The one that comes with the crate.
    pub const fn shipped() -> Self {
        Self { bias: BIAS, weights: Cow::Borrowed(&WEIGHTS) }
    }

    /// The log-odds of a minute of which nothing is known, and the weights, both in sixteenths.
    pub fn weights(&self) -> (i32, &[i8]) {
        (self.bias, &self.weights)
    }

    /// A table from what [`HazardTable::weights`] gave; `None` when the number of weights is another one.
    pub fn from_weights(bias: i32, weights: Vec<i8>) -> Option<Self> {
        (weights.len() == CELLS).then_some(Self { bias, weights: Cow::Owned(weights) })
    }

    /// Fits the tables to `functions` by boosting: each pass moves every cell by a share of its Newton step on the
    /// logistic loss. A sample is a minute of a function after its first call; its label, whether it was called then.
    pub fn fit(functions: &[Function], fit: &Fit) -> Self {
        let mut samples = Vec::new();
        for function in functions {
            let weight = function.weight.min(fit.heaviest);
            each_minute(function, |cells, called| samples.push(Sample { cells, called, weight, logit: 0.0 }));
        }
        let (calls, all) = samples.iter().fold((1.0, 2.0), |(calls, all), sample| {
            (calls + sample.weight * f64::from(u8::from(sample.called)), all + sample.weight)
        });
        let odds: f64 = calls / (all - calls);
        let bias = odds.ln();
        for sample in &mut samples {
            sample.logit = bias;
        }
        let mut weights = vec![0.0_f64; CELLS];
        for _ in 0..fit.rounds {
            for (at, pair) in PAIRS.iter().enumerate() {
                let cells = STARTS[at]..STARTS[at] + pair.left * pair.right;
                let mut sums = vec![(0.0, 0.0); cells.len()];
                for sample in &samples {
                    let p = 1.0 / (1.0 + (-sample.logit).exp());
                    let (slope, bend) = &mut sums[usize::from(sample.cells[at]) - cells.start];
                    *slope += sample.weight * (f64::from(u8::from(sample.called)) - p);
                    *bend += sample.weight * p * (1.0 - p);
                }
                let moves: Vec<f64> = sums
                    .iter()
                    .zip(&weights[cells.clone()])
                    .map(|((slope, bend), weight)| {
                        (fit.rate * (slope - fit.ridge * weight) / (bend + fit.ridge)).clamp(-1.0, 1.0)
                    })
                    .collect();
                for (weight, moved) in weights[cells.clone()].iter_mut().zip(&moves) {
                    *weight += moved;
                }
                for sample in &mut samples {
                    sample.logit += moves[usize::from(sample.cells[at]) - cells.start];
                }
            }
        }
        #[allow(clippy::cast_possible_truncation, reason = "clamped to what an i8 holds")]
        let weights =
            weights.into_iter().map(|weight| (weight * STEPS).round().clamp(-127.0, 127.0) as i8).collect();
        #[allow(clippy::cast_possible_truncation, reason = "log-odds of a share")]
        Self { bias: (bias * STEPS).round() as i32, weights }
    }

    /// The log-odds of a call, in steps.
    pub(super) fn score(&self, cells: &Cells) -> i32 {
        self.bias + cells.iter().map(|&cell| i32::from(self.weights[usize::from(cell)])).sum::<i32>()
    }

    /// The probability of a score.
    pub(super) fn chance(score: i32) -> f64 {
        1.0 / (1.0 + (-f64::from(score) / STEPS).exp())
    }

    /// The score of a probability.
    #[allow(clippy::cast_possible_truncation, reason = "log-odds of a probability above 1e-9")]
    pub(super) fn score_of(probability: f64) -> i32 {
        let p = probability.clamp(1e-9, 1.0 - 1e-9);
        ((p / (1.0 - p)).ln() * STEPS).round() as i32
    }
}

/// The minutes of a function after its first call: what was known when each began, and whether it brought a call.
fn each_minute(function: &Function, mut sample: impl FnMut(Cells, bool)) {
    let mut memory: Option<Memory> = None;
    let minutes = function.active.iter().map(|&(minute, _)| minute).chain([function.minutes]);
    for minute in minutes {
        let call = minute < function.minutes;
        match &mut memory {
            None => memory = Some(Memory::new(i64::from(minute))),
            Some(memory) => {
                let gap = usize::try_from(i64::from(minute) - memory.last()).unwrap_or(0);
                for age in 1..=gap {
                    if age < gap || call {
                        sample(memory.cells(age, memory.as_long(age)), age == gap && call);
                    }
                }
                if call {
                    memory.call(i64::from(minute));
                }
            }
        }
    }
}
