use std::{borrow::Cow, fmt};

use super::signals::{LEVELS, SIGNALS, Signals};

/// Steps per unit of log-odds in which leaves are kept.
pub(super) const STEPS: f64 = 64.0;
/// Questions of a tree.
pub(super) const DEPTH: usize = 4;
/// Leaves of a tree.
pub(super) const LEAVES: usize = 1 << DEPTH;

/// A tree of a [`HazardTable`]: four questions, the same on each way down, and sixteen answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tree {
    /// The signals that it asks about.
    pub signals: [u8; DEPTH],
    /// The levels from which on the answer is yes.
    pub levels: [u8; DEPTH],
    /// What it adds to the log-odds, by the answers: the first question is the lowest bit. In 64ths.
    pub leaves: [i8; LEAVES],
}

impl Tree {
    pub(super) fn leaf(&self, signals: &Signals) -> usize {
        (0..DEPTH)
            .map(|at| {
                let level = signals.get(usize::from(self.signals[at])).copied().unwrap_or(0);
                usize::from(level >= self.levels[at]) << at
            })
            .sum()
    }
}

/// How likely a call in a minute is, by what is remembered of the revision: log-odds as a sum over small trees. Two or
/// three kilobytes, shared by all revisions.
///
/// [`HazardTable::shipped`] was fitted to the rows with an odd index of a sample of the Azure Functions trace of 2019;
/// [`HazardTable::fit`] makes one from traces of your own.
#[derive(Clone, PartialEq, Eq)]
pub struct HazardTable {
    pub(super) bias: i32,
    pub(super) trees: Cow<'static, [Tree]>,
}

impl fmt::Debug for HazardTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HazardTable").field("bias", &self.bias).field("trees", &self.trees.len()).finish()
    }
}

impl HazardTable {
    /// The log-odds of a minute of which nothing is known, in 64ths.
    pub fn bias(&self) -> i32 {
        self.bias
    }

    /// The fitted trees, in the order in which their answers are added up.
    pub fn trees(&self) -> &[Tree] {
        &self.trees
    }

    /// A table of what [`HazardTable::bias`] and [`HazardTable::trees`] gave; `None` when a tree asks about a signal or
    /// a level that there is not.
    pub fn of(bias: i32, trees: Vec<Tree>) -> Option<Self> {
        let known = |tree: &Tree| {
            tree.signals.iter().all(|&signal| usize::from(signal) < SIGNALS)
                && tree.levels.iter().all(|&level| usize::from(level) < LEVELS)
        };
        trees.iter().all(known).then_some(Self { bias, trees: Cow::Owned(trees) })
    }

    /// The log-odds of a call, in steps.
    pub(super) fn score(&self, signals: &Signals) -> i32 {
        self.bias + self.trees.iter().map(|tree| i32::from(tree.leaves[tree.leaf(signals)])).sum::<i32>()
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
