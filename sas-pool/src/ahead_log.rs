//! What the log says of work that was done ahead of demand: a line for each class of stems and one for wake-aheads, at most
//! once a minute, and only when something came of it.

use std::{array, collections::BTreeMap};

use parking_lot::Mutex;
use sas_core::{PoolTotals, StemClass, StemView};

/// Nanoseconds between two times that something is said.
const EVERY: u64 = 60_000_000_000;

/// What of it the log has said.
#[derive(Default)]
pub(crate) struct AheadLog(Mutex<Said>);

#[derive(Default)]
struct Said {
    /// When the next may be said.
    next: u64,
    stems: BTreeMap<StemClass, [u64; 5]>,
    wakes: [u64; 3],
}

/// What came since it was last said: of each class stems booted, used, missed, wasted and failed; wake-aheads begun, used
/// and wasted.
#[derive(Debug, Default, PartialEq)]
struct News {
    stems: Vec<(StemClass, [u64; 5])>,
    wakes: [u64; 3],
}

impl AheadLog {
    /// Says what there is, if it is time. Called at each tick of the driver.
    pub(crate) fn tell(&self, now: u64, stems: &[StemView], totals: &PoolTotals) {
        let news = self.0.lock().news(now, stems, totals);
        for (class, [booted, used, missed, wasted, failed]) in news.stems {
            tracing::info!(%class, booted, used, missed, wasted, failed, "stems since the last line");
        }
        if news.wakes != [0; 3] {
            let [begun, used, wasted] = news.wakes;
            tracing::info!(begun, used, wasted, "wake-aheads since the last line");
        }
    }
}

impl Said {
    fn news(&mut self, now: u64, stems: &[StemView], totals: &PoolTotals) -> News {
        if now < self.next {
            return News::default();
        }
        let count = |view: &StemView| [view.booted, view.used, view.missed, view.wasted, view.failed];
        let counts: BTreeMap<_, _> = stems.iter().map(|view| (view.class.clone(), count(view))).collect();
        let wakes = [totals.wake_aheads, totals.wake_aheads_used, totals.wake_aheads_wasted];
        let mut news = News { wakes: since(wakes, self.wakes), ..News::default() };
        for (class, counts) in &counts {
            let new = since(*counts, self.stems.get(class).copied().unwrap_or_default());
            if new.iter().any(|count| *count > 0) {
                news.stems.push((class.clone(), new));
            }
        }
        (self.stems, self.wakes) = (counts, wakes);
        if news != News::default() {
            self.next = now + EVERY;
        }
        news
    }
}

/// What was counted after `before`. A class that was forgotten meanwhile counts from nothing again.
fn since<const N: usize>(counts: [u64; N], before: [u64; N]) -> [u64; N] {
    if counts.iter().zip(before).any(|(count, before)| *count < before) {
        return counts;
    }
    array::from_fn(|at| counts[at] - before[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn stems(name: &str, booted: u64, used: u64) -> StemView {
        let mut view = StemView::new(StemClass(name.into()), 1 << 20);
        (view.booted, view.used) = (booted, used);
        view
    }

    #[test]
    fn what_came_of_work_ahead_is_said_once_and_at_most_once_a_minute() {
        let mut said = Said::default();
        let mut totals = PoolTotals::default();
        assert_eq!(said.news(0, &[stems("jvm", 0, 0)], &totals), News::default(), "nothing came");
        let jvm = StemClass("jvm".into());
        let first = said.news(SECOND, &[stems("jvm", 2, 0)], &totals);
        assert_eq!(first, News { stems: vec![(jvm.clone(), [2, 0, 0, 0, 0])], wakes: [0; 3] });
        (totals.wake_aheads, totals.wake_aheads_wasted) = (3, 1);
        let now = [stems("jvm", 3, 2), stems("other", 0, 0)];
        assert_eq!(said.news(60 * SECOND, &now, &totals), News::default(), "within a minute");
        let second = said.news(61 * SECOND, &now, &totals);
        assert_eq!(second, News { stems: vec![(jvm.clone(), [1, 2, 0, 0, 0])], wakes: [3, 0, 1] });
        assert_eq!(said.news(200 * SECOND, &now, &totals), News::default(), "it was said");
        // Forgotten and held again, it counts from nothing.
        let again = said.news(201 * SECOND, &[stems("jvm", 1, 1)], &totals);
        assert_eq!(again, News { stems: vec![(jvm, [1, 1, 0, 0, 0])], wakes: [0; 3] });
    }
}
