//! The shortest plan that still breaks the same promise.

use crate::{
    Plant,
    plan::Step,
    world::{SeedRun, run},
};

/// Leaves out steps of a failing outcome's plan, halves first, then one by one, as long as the first of its
/// violations stays. At most `runs` runs.
pub fn shrink(failing: SeedRun, plant: Option<Plant>, runs: u32) -> SeedRun {
    let Some(target) = failing.violations.first().map(|violation| violation.invariant) else {
        return failing;
    };
    let seed = failing.seed;
    let mut best = failing;
    let mut left = runs;
    let mut size = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut at = 0;
        let mut smaller = false;
        while at < best.steps.len() && left > 0 {
            let steps: Vec<Step> = best
                .steps
                .iter()
                .enumerate()
                .filter(|(i, _)| !(at..at + size).contains(i))
                .map(|(_, step)| step.clone())
                .collect();
            left -= 1;
            let tried = run(seed, steps, plant);
            if tried.violations.iter().any(|violation| violation.invariant == target) {
                best = tried;
                smaller = true;
            } else {
                at += size;
            }
        }
        if left == 0 || (size == 1 && !smaller) {
            return best;
        }
        size = size.div_ceil(2).max(1);
    }
}
