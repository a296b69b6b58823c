//! Whether a new revision fails more often than the old one by more than it may, and by more than chance. The same evidence
//! as for latencies: `docs/adr/0166-latency-in-roll-outs.md`.

use sas_core::AnswerCounts;

use super::slower::{FALSE_ALARMS, SURE, evidence};

/// One failure alone never stops anything.
const FEWEST: u64 = 2;

/// Whether the new revision fails too often. Nobody can tell as long as the old one has answered nothing.
pub(super) fn fails(old: AnswerCounts, new: AnswerCounts, max_more: f64) -> bool {
    let borne = upper(old) + max_more;
    new.errors >= FEWEST
        && old.requests > 0
        && borne < 1.0
        && new.share() > borne
        && evidence(new.errors.min(new.requests), new.requests, borne) >= FALSE_ALARMS
}

/// The upper end of what the share of errors may be, after these answers (Wilson's interval): above 0 also without one.
fn upper(seen: AnswerCounts) -> f64 {
    let (share, answers) = (seen.share(), seen.requests.max(1) as f64);
    let sure = SURE * SURE / answers;
    let middle = share + sure / 2.0;
    let spread = SURE * (share * (1.0 - share).max(0.0) / answers + sure / answers / 4.0).sqrt();
    (middle + spread) / (1.0 + sure)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws of who fails.
    struct Draws(u64);

    impl Draws {
        fn fails(&mut self, share: f64) -> u64 {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut mixed = self.0;
            mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            u64::from((((mixed ^ (mixed >> 31)) >> 11) as f64) < share * (1_u64 << 53) as f64)
        }
    }

    /// After how many answers of the new revision it was stopped, of `most`, looked at after each; it has one in `part` of the
    /// traffic. `None`: never.
    fn stopped_after(seed: u64, shares: [f64; 2], part: u64, max_more: f64, most: u64) -> Option<u64> {
        let mut draws = Draws(seed.wrapping_mul(0xD134_2543_DE82_EF95));
        let [mut old, mut new] = [AnswerCounts { requests: 0, errors: 0 }; 2];
        (1..=most).find(|_| {
            for _ in 1..part {
                old.requests += 1;
                old.errors += draws.fails(shares[0]);
            }
            new.requests += 1;
            new.errors += draws.fails(shares[1]);
            fails(old, new, max_more)
        })
    }

    #[test]
    fn equal_revisions_are_hardly_ever_stopped_by_chance() {
        for share in [0.01, 0.03, 0.05, 0.1] {
            for (part, max_more) in [(2, 0.01), (10, 0.01), (4, 0.0)] {
                let stops = |seed: &u64| stopped_after(*seed, [share; 2], part, max_more, 1_000).is_some();
                let stopped = (0..400).filter(stops).count();
                assert!(stopped < 4, "{stopped} of 400 at {share}, one in {part}, {max_more} more");
            }
        }
    }

    #[test]
    fn one_that_fails_every_second_time_is_stopped_within_twenty_answers() {
        let old = AnswerCounts { requests: 1_000, errors: 0 };
        assert!(fails(old, AnswerCounts { requests: 20, errors: 10 }, 0.01));
        let mut after: Vec<u64> =
            (0..400).filter_map(|seed| stopped_after(seed, [0.01, 0.5], 100, 0.01, 60)).collect();
        after.sort_unstable();
        assert_eq!(after.len(), 400);
        assert!(after[200] <= 10 && after[380] <= 24, "{} and {} answers", after[200], after[380]);
    }

    #[test]
    fn five_points_more_are_found_within_a_thousand_answers() {
        let mut after: Vec<u64> =
            (0..200).filter_map(|seed| stopped_after(seed, [0.01, 0.06], 10, 0.01, 3_000)).collect();
        after.sort_unstable();
        assert!(after.len() == 200 && after[190] <= 1_000, "{} found, {:?}", after.len(), after.get(190));
    }

    #[test]
    fn without_answers_of_the_old_one_nobody_can_tell() {
        let all = AnswerCounts { requests: 50, errors: 50 };
        assert!(!fails(AnswerCounts::default(), all, 0.01));
        assert!(fails(AnswerCounts { requests: 100, errors: 3 }, all, 0.01));
        assert!(!fails(all, all, 0.01), "both are down");
    }
}
