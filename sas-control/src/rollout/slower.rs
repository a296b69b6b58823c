//! Whether a new revision is slower than the old one by more than it may, and by more than chance. Why this way:
//! `docs/adr/0166-latency-in-roll-outs.md`.

use std::time::Duration;

use sas_core::LatencyCounts;

/// A revision that is no worse than it may be is called so in one roll-out step of so many, at most.
pub(super) const FALSE_ALARMS: f64 = 1_000.0;

/// How sure it is that the old revision's quantile, or share of errors, is not above what is taken for it, in standard deviations: 99.5 %.
pub(super) const SURE: f64 = 2.58;

/// Answers of the new revision before anything is said, which are too few to be unlucky about.
const FEWEST: u64 = 10;

/// Why the new revision is too slow; `None`: it is not, or nobody can tell yet.
pub(super) fn slower(
    old: &LatencyCounts,
    new: &LatencyCounts,
    quantile: f64,
    max_slower: f64,
) -> Option<String> {
    let (before, answers) = (old.total(), new.total());
    if answers < FEWEST || before == 0 {
        return None;
    }
    // What was seen of the old one is a sample as well: its quantile may be above the sample's, which must not count
    // against the new one.
    let sure = quantile + SURE * (quantile * (1.0 - quantile) / before as f64).sqrt();
    let limit = old.quantile(sure)?.mul_f64(1.0 + max_slower);
    let over = new.over(limit);
    if evidence(over, answers, 1.0 - quantile) < FALSE_ALARMS {
        return None;
    }
    let percentile = quantile * 100.0;
    let borne = (answers as f64 * (1.0 - quantile)).ceil();
    let is = |counts: &LatencyCounts| counts.quantile(quantile).map_or_else(String::new, words);
    Some(format!(
        "{over} of {answers} answers took longer than {}, {borne} may: the p{percentile:.0} is {}, {} on the revision before, \
         and may be {:.0} % slower",
        words(limit),
        is(new),
        is(old),
        max_slower * 100.0,
    ))
}

fn words(time: Duration) -> String {
    match time {
        time if time < Duration::from_millis(10) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
        time if time < Duration::from_secs(10) => format!("{:.0} ms", time.as_secs_f64() * 1e3),
        time => format!("{:.0} s", time.as_secs_f64()),
    }
}

/// How much better larger shares explain that `hits` of `trials` hit than `share` does, which is the largest that is borne. It
/// may be looked at after each trial: where the share is borne, it ever exceeds x with a probability of at most 1/x
/// (Ville's inequality, for it is the mean of likelihood ratios, each a supermartingale then).
pub(super) fn evidence(hits: u64, trials: u64, share: f64) -> f64 {
    const ALTERNATIVES: i32 = 7;
    let (hits, misses) = (hits as f64, (trials - hits) as f64);
    let ratio = |step: i32| {
        let other = share.powf(1.0 - f64::from(step) / f64::from(ALTERNATIVES + 1));
        (hits * (other / share).ln() + misses * ((1.0 - other) / (1.0 - share)).ln()).exp()
    };
    (1..=ALTERNATIVES).map(ratio).sum::<f64>() / f64::from(ALTERNATIVES)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws from a log-normal distribution: what latencies of services look like.
    struct Latencies {
        state: u64,
        median: f64,
        spread: f64,
    }

    impl Latencies {
        fn uniform(&mut self) -> f64 {
            self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = self.state;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
        }

        fn next(&mut self, factor: f64) -> Duration {
            let (one, two) = (self.uniform().max(1e-12), self.uniform());
            let normal = (-2.0 * one.ln()).sqrt() * (std::f64::consts::TAU * two).cos();
            Duration::from_secs_f64(self.median * factor * (self.spread * normal).exp())
        }
    }

    /// After how many answers of the new revision it was called slow, looked at after every ten; `None`: never.
    fn stopped_after(seed: u64, spread: f64, median: f64, max_slower: f64, factor: f64) -> Option<u64> {
        let mut draws = Latencies { state: seed, median, spread };
        let (mut old, mut new) = (LatencyCounts::new(), LatencyCounts::new());
        for answers in 1..=ANSWERS {
            // A quarter of the traffic is the new revision's.
            (0..3).for_each(|_| old.count(draws.next(1.0)));
            new.count(draws.next(factor));
            if answers % 10 == 0 && slower(&old, &new, 0.95, max_slower).is_some() {
                return Some(answers);
            }
        }
        None
    }

    const ANSWERS: u64 = 3_000;

    #[test]
    fn equal_revisions_are_hardly_ever_stopped_by_chance() {
        // The hardest: not slower by anything at all, looked at three hundred times.
        let stopped = (0..400_u64).filter(|seed| {
            let spread = [0.1, 0.5, 1.0][(*seed % 3) as usize];
            stopped_after(seed * 7_919, spread, 0.02, 0.0, 1.0).is_some()
        });
        let stopped = stopped.count();
        assert!(stopped < 2, "{stopped} of 400");
    }

    /// Spreads from narrow to wide and medians from half a millisecond to a second, so close that each place between the
    /// edges of two buckets is among them.
    fn services(widest: f64) -> impl Iterator<Item = (u64, f64, f64)> {
        (0..240_u64).map(move |at| {
            let part = at as f64 / 240.0;
            (at * 104_729, 0.05 + (widest - 0.05) * (part * 17.0).fract(), 0.0005 * 2_000_f64.powf(part))
        })
    }

    #[test]
    fn equal_revisions_go_on() {
        for (seed, spread, median) in services(1.0) {
            let stopped = stopped_after(seed, spread, median, 0.5, 1.0);
            assert_eq!(stopped, None, "{seed}, spread {spread}, median {median} s");
        }
    }

    #[test]
    fn one_of_twice_the_latency_is_stopped_within_three_thousand_answers() {
        for (seed, spread, median) in services(0.6) {
            let stopped = stopped_after(seed, spread, median, 0.5, 2.0);
            assert!(stopped.is_some(), "{seed}, spread {spread}, median {median} s");
        }
    }

    #[test]
    fn what_is_plain_is_seen_soon_and_said_with_numbers() {
        let mut old = LatencyCounts::new();
        (0..500).for_each(|at| old.count(Duration::from_millis(20 + at % 10)));
        let mut new = LatencyCounts::new();
        for answers in 1..=FEWEST {
            assert_eq!(slower(&old, &new, 0.95, 0.5), None, "{answers}");
            new.count(Duration::from_millis(100));
        }
        let why = slower(&old, &new, 0.95, 0.5).unwrap();
        assert!(why.starts_with("10 of 10 answers took longer than"), "{why}");
        assert!(why.contains("p95") && why.contains("50 % slower"), "{why}");
        assert_eq!(slower(&LatencyCounts::new(), &new, 0.95, 0.5), None, "nothing to compare with");
    }
}
