use super::{
    memory::Memory,
    signals::{LEVELS, SIGNALS, Signals, Situation},
    table::{DEPTH, HazardTable, LEAVES, STEPS, Tree},
};
use crate::trace::Function;

/// How a [`HazardTable`] is fitted.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Fit {
    /// How many trees are fitted, one after the other.
    pub trees: u32,
    /// The share of a Newton step that each tree takes.
    pub rate: f64,
    /// Added to the curvature of every leaf: how much evidence it takes to leave zero.
    pub ridge: f64,
    /// No function counts for more than this many: a single row must not bend the population.
    pub heaviest: f64,
    /// Of functions that count for less than this, only a share of the minutes is looked at, each for more.
    pub lightest: f64,
}

impl Default for Fit {
    fn default() -> Self {
        Self { trees: 80, rate: 0.25, ridge: 20.0, heaviest: 10.0, lightest: 1.5 }
    }
}

/// The minutes that are learnt from, column by column.
struct Samples {
    signals: Vec<Vec<u8>>,
    called: Vec<bool>,
    weights: Vec<f32>,
    scores: Vec<f32>,
}

impl HazardTable {
    /// Fits trees to `functions` by boosting: each takes a share of a Newton step on the logistic loss, and asks the
    /// four questions that lower it most. A sample is a minute of a function after its first call; its label, whether it
    /// was called then.
    pub fn fit(functions: &[Function], fit: &Fit) -> Self {
        let mut samples = Samples::of(functions, fit);
        let (calls, all) = samples.called.iter().zip(&samples.weights).fold(
            (1.0, 2.0),
            |(calls, all), (&called, &weight)| {
                (calls + f64::from(weight) * f64::from(u8::from(called)), all + f64::from(weight))
            },
        );
        #[allow(clippy::cast_possible_truncation, reason = "log-odds of a share")]
        let bias = ((calls / (all - calls)).ln() * STEPS).round() as i32;
        samples.scores = vec![bias as f32 / STEPS as f32; samples.called.len()];
        let trees = (0..fit.trees).map(|_| samples.grow(fit)).collect();
        Self::of(bias, trees).expect("trees ask about signals that there are")
    }
}

/// Slope and curvature of the loss.
type Sums = (f64, f64);

impl Samples {
    fn of(functions: &[Function], fit: &Fit) -> Self {
        let mut samples = Self {
            signals: vec![Vec::new(); SIGNALS],
            called: Vec::new(),
            weights: Vec::new(),
            scores: Vec::new(),
        };
        for (row, function) in functions.iter().enumerate() {
            let share = (function.weight / fit.lightest).clamp(0.04, 1.0);
            let weight = (function.weight.min(fit.heaviest) / share) as f32;
            each_minute(function, |minute, age, situation, called| {
                if unit(row, minute) < share {
                    let signals: Signals = situation.at(age);
                    for (column, signal) in samples.signals.iter_mut().zip(signals) {
                        column.push(signal);
                    }
                    samples.called.push(called);
                    samples.weights.push(weight);
                }
            });
        }
        samples
    }

    fn grow(&mut self, fit: &Fit) -> Tree {
        let slopes: Vec<(f32, f32)> = (0..self.called.len())
            .map(|at| {
                let p = 1.0 / (1.0 + (-self.scores[at]).exp());
                let weight = self.weights[at];
                (weight * (f32::from(u8::from(self.called[at])) - p), weight * p * (1.0 - p))
            })
            .collect();
        let mut leaves = vec![0_u8; self.called.len()];
        let mut tree = Tree { signals: [0; DEPTH], levels: [1; DEPTH], leaves: [0; LEAVES] };
        let worth = |(slope, bend): Sums| slope * slope / (bend + fit.ridge);
        for depth in 0..DEPTH {
            let mut best = (f64::NEG_INFINITY, 0, 1);
            for (signal, column) in self.signals.iter().enumerate() {
                let mut sums = vec![[(0.0, 0.0); LEVELS]; 1 << depth];
                for ((&level, &leaf), &(slope, bend)) in column.iter().zip(&leaves).zip(&slopes) {
                    let sum: &mut Sums = &mut sums[usize::from(leaf)][usize::from(level)];
                    sum.0 += f64::from(slope);
                    sum.1 += f64::from(bend);
                }
                let all: Vec<Sums> = sums
                    .iter()
                    .map(|leaf| leaf.iter().fold((0.0, 0.0), |a, b| (a.0 + b.0, a.1 + b.1)))
                    .collect();
                let mut below = vec![(0.0, 0.0); 1 << depth];
                for level in 1..LEVELS {
                    let mut gain = 0.0;
                    for ((below, all), leaf) in below.iter_mut().zip(&all).zip(&sums) {
                        below.0 += leaf[level - 1].0;
                        below.1 += leaf[level - 1].1;
                        gain += worth(*below) + worth((all.0 - below.0, all.1 - below.1));
                    }
                    if gain > best.0 {
                        best = (gain, signal, level);
                    }
                }
            }
            let (_, signal, level) = best;
            (tree.signals[depth], tree.levels[depth]) = (signal as u8, level as u8);
            for (leaf, &at) in leaves.iter_mut().zip(&self.signals[signal]) {
                *leaf |= u8::from(usize::from(at) >= level) << depth;
            }
        }
        let mut sums = [(0.0, 0.0); LEAVES];
        for (&leaf, &(slope, bend)) in leaves.iter().zip(&slopes) {
            sums[usize::from(leaf)].0 += f64::from(slope);
            sums[usize::from(leaf)].1 += f64::from(bend);
        }
        tree.leaves = sums.map(|(slope, bend)| {
            (STEPS * fit.rate * slope / (bend + fit.ridge)).round().clamp(-127.0, 127.0) as i8
        });
        for (score, &leaf) in self.scores.iter_mut().zip(&leaves) {
            *score += f32::from(tree.leaves[usize::from(leaf)]) / STEPS as f32;
        }
        tree
    }
}

/// A number from 0 to 1 that a minute of a row always gets.
fn unit(row: usize, minute: u32) -> f64 {
    let mut bits = ((row as u64) << 32 | u64::from(minute)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// The minutes of a function after its first call: what was known when each began, and whether it brought a call.
fn each_minute(function: &Function, mut sample: impl FnMut(u32, usize, &Situation<'_>, bool)) {
    let mut memory: Option<Memory> = None;
    let minutes = function.active.iter().map(|&(minute, _)| minute).chain([function.minutes]);
    for minute in minutes {
        let call = minute < function.minutes;
        match &mut memory {
            None => memory = Some(Memory::new(i64::from(minute))),
            Some(memory) => {
                let gap = usize::try_from(i64::from(minute) - memory.last()).unwrap_or(0);
                let last = minute - u32::try_from(gap).unwrap_or(0);
                let situation = Situation::new(memory);
                for (at, age) in (last + 1..).zip(1..=gap) {
                    if age < gap || call {
                        sample(at, age, &situation, age == gap && call);
                    }
                }
                if call {
                    memory.call(i64::from(minute));
                }
            }
        }
    }
}
