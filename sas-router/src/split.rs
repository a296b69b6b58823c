//! Weighted choice that is exact.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use sas_core::{RevisionKey, Split};

use crate::seed::mix;

/// How many requests a run has: weights are percentages.
pub(crate) const RUN: usize = 100;

/// Deals requests to revisions in the order of a seeded permutation of 100 places, over and over. As the order
/// repeats, *any* 100 consecutive requests hold each revision exactly as often as its weight says.
#[derive(Debug)]
pub(crate) struct Deal {
    weights: Vec<Split>,
    targets: Box<[RevisionKey]>,
    places: Box<[u8; RUN]>,
    /// Shared with the deals that follow when a table change leaves the weights alone.
    dealt: Arc<AtomicU64>,
}

impl Deal {
    /// A deal of `splits`, whose weights add up to 100.
    pub(crate) fn new(splits: &[Split], seed: u64) -> Self {
        let weights: Vec<Split> = splits.iter().filter(|split| split.weight > 0).cloned().collect();
        let mut places = Box::new([0_u8; RUN]);
        let mut at = 0;
        for (index, split) in weights.iter().enumerate() {
            for place in &mut places[at..at + split.weight as usize] {
                *place = u8::try_from(index).expect("at most 100 splits have a weight");
            }
            at += split.weight as usize;
        }
        let mut state = seed;
        for last in (1..RUN).rev() {
            state = mix(state);
            // The bias of the remainder is below 2^-57.
            places.swap(last, (state % (last as u64 + 1)) as usize);
        }
        let targets = weights.iter().map(|split| split.revision).collect();
        Self { weights, targets, places, dealt: Arc::default() }
    }

    /// Goes on where `before` is, if the weights are the same.
    pub(crate) fn continue_from(&mut self, before: &Self) {
        if self.weights == before.weights {
            self.dealt = Arc::clone(&before.dealt);
        }
    }

    /// The next request's revision.
    pub(crate) fn next(&self) -> RevisionKey {
        let turn = self.dealt.fetch_add(1, Ordering::Relaxed);
        self.targets[usize::from(self.places[(turn % RUN as u64) as usize])]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn splits(weights: &[u32]) -> Vec<Split> {
        weights.iter().enumerate().map(|(at, weight)| Split::new(RevisionKey(at as u64), *weight)).collect()
    }

    fn weights() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0_u32..=100, 0..8).prop_map(|cuts| {
            let mut cuts: Vec<u32> = cuts.into_iter().chain([0, 100]).collect();
            cuts.sort_unstable();
            cuts.windows(2).map(|pair| pair[1] - pair[0]).collect()
        })
    }

    proptest! {
        #[test]
        fn any_hundred_consecutive_requests_are_split_exactly(
            weights in weights(), seed: u64, skip in 0_usize..250,
        ) {
            let deal = Deal::new(&splits(&weights), seed);
            for _ in 0..skip {
                deal.next();
            }
            let mut counts: HashMap<u64, u32> = HashMap::new();
            for _ in 0..RUN {
                *counts.entry(deal.next().0).or_default() += 1;
            }
            for (at, weight) in weights.iter().enumerate() {
                prop_assert_eq!(counts.get(&(at as u64)).copied().unwrap_or(0), *weight);
            }
        }

        #[test]
        fn the_same_seed_deals_the_same_order(weights in weights(), seed: u64) {
            let (one, two) = (Deal::new(&splits(&weights), seed), Deal::new(&splits(&weights), seed));
            for _ in 0..RUN {
                prop_assert_eq!(one.next(), two.next());
            }
        }
    }

    #[test]
    fn another_seed_deals_another_order() {
        let order = |seed| {
            let deal = Deal::new(&splits(&[50, 50]), seed);
            (0..RUN).map(|_| deal.next().0).collect::<Vec<_>>()
        };
        assert_ne!(order(1), order(2));
    }

    #[test]
    fn unchanged_weights_go_on_where_they_were() {
        let before = Deal::new(&splits(&[10, 90]), 1);
        for _ in 0..37 {
            before.next();
        }
        let mut after = Deal::new(&splits(&[10, 90]), 1);
        after.continue_from(&before);
        let rare = (0..63).filter(|_| after.next().0 == 0).count();
        let again = Deal::new(&splits(&[10, 90]), 1);
        let first = (0..37).filter(|_| again.next().0 == 0).count();
        assert_eq!(rare + first, 10);
    }
}
