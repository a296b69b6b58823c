use std::{collections::HashMap, time::Duration};

use sas_core::{KeepAlive, KeepAlivePolicy, RevisionKey, SpecErrors, Timestamp};

use super::minute;

const BINS: usize = 240;

/// The hybrid histogram policy of Shahrad et al., "Serverless in the Wild" (ATC'20), without its time-series part.
///
/// Per revision a histogram of idle times, 240 bins of a minute, and a count of those beyond. When most lie beyond, it
/// keeps for 10 minutes. When the counts vary little between the bins (coefficient of variation below 2), or nothing is
/// known yet, it keeps for the fall-back time. Otherwise it sleeps at once, wakes at 0.9 × the 5th percentile and
/// keeps to 1.1 × the 99th.
#[derive(Clone, Debug)]
pub struct HybridHistogram {
    fall_back: u16,
    revisions: HashMap<RevisionKey, Box<Idles>>,
}

#[derive(Clone, Debug)]
struct Idles {
    bins: [u16; BINS],
    since: i64,
    in_range: u32,
    beyond: u32,
    /// The sum of the squared counts, kept so that the variation needs no pass.
    squares: u64,
}

impl HybridHistogram {
    /// Falls back to `fall_back`, whole minutes from 1 to 1,440. The paper's is four hours.
    ///
    /// # Errors
    /// A time outside of that.
    pub fn new(fall_back: Duration) -> Result<Self, SpecErrors> {
        let seconds = fall_back.as_secs();
        match u16::try_from(seconds / 60) {
            Ok(minutes @ 1..=1_440) if seconds.is_multiple_of(60) && fall_back.subsec_nanos() == 0 => {
                Ok(Self { fall_back: minutes, revisions: HashMap::new() })
            }
            _ => {
                let mut errors = SpecErrors::default();
                errors.push("fallBack", format!("{fall_back:?}"), "whole minutes from 1 to 1440");
                Err(errors)
            }
        }
    }

    /// Bytes for one revision that was called, without the table's own slack.
    pub const fn bytes_per_revision() -> usize {
        size_of::<Idles>() + size_of::<(RevisionKey, Box<Idles>)>()
    }
}

impl Default for HybridHistogram {
    /// With the paper's fall-back of four hours.
    fn default() -> Self {
        Self { fall_back: 240, revisions: HashMap::new() }
    }
}

impl Idles {
    fn add(&mut self, gap: i64) {
        let Some(bin) = usize::try_from(gap).ok().filter(|gap| (1..=BINS).contains(gap)) else {
            self.beyond = self.beyond.saturating_add(1);
            return;
        };
        let count = &mut self.bins[bin - 1];
        self.squares += 2 * u64::from(*count) + 1;
        self.in_range += 1;
        *count += 1;
        if *count == u16::MAX {
            self.halve();
        }
    }

    /// Old idle times fade when a bin is full, so that no count overflows.
    fn halve(&mut self) {
        self.beyond /= 2;
        (self.in_range, self.squares) = (0, 0);
        for count in &mut self.bins {
            *count /= 2;
            self.in_range += u32::from(*count);
            self.squares += u64::from(*count).pow(2);
        }
    }

    /// When to wake and until when to keep, in minutes after the call; woken at 0: do not sleep.
    fn plan(&self, fall_back: u16) -> (u64, u64) {
        if self.beyond > self.in_range {
            return (0, 10);
        }
        let n = u64::from(self.in_range);
        // Variance ≥ 4 · mean² over the 240 counts, in integers.
        if n == 0 || BINS as u64 * self.squares < 5 * n * n {
            return (0, u64::from(fall_back));
        }
        let (mut sum, mut head, mut tail) = (0_u64, 0_u64, BINS as u64);
        for (bin, &count) in (1..).zip(&self.bins) {
            sum += u64::from(count);
            if head == 0 && 100 * sum >= 5 * n {
                head = bin;
            }
            if 100 * sum >= 99 * n {
                tail = bin;
                break;
            }
        }
        (9 * head.saturating_sub(1) / 10, (11 * tail).div_ceil(10))
    }
}

impl KeepAlivePolicy for HybridHistogram {
    fn called(&mut self, revision: RevisionKey, now: Timestamp) {
        let now = minute(now);
        match self.revisions.get_mut(&revision) {
            Some(idles) if now > idles.since => {
                let gap = now.saturating_sub(idles.since);
                idles.add(gap);
                idles.since = now;
            }
            Some(idles) => idles.since = now,
            None => {
                let new = Idles { bins: [0; BINS], since: now, in_range: 0, beyond: 0, squares: 0 };
                self.revisions.insert(revision, Box::new(new));
            }
        }
    }

    fn idle(&mut self, revision: RevisionKey, now: Timestamp) -> KeepAlive {
        let (wake, keep) = match self.revisions.get_mut(&revision) {
            Some(idles) => {
                idles.since = minute(now);
                idles.plan(self.fall_back)
            }
            None => (0, u64::from(self.fall_back)),
        };
        let after = |minutes: u64| now + Duration::from_secs(60 * minutes);
        if wake == 0 {
            KeepAlive::until(after(keep))
        } else {
            KeepAlive::with_wake(now, after(wake), after(keep.max(wake)))
        }
    }

    fn resolution(&self) -> Duration {
        Duration::ZERO
    }

    fn forget(&mut self, revision: RevisionKey) {
        self.revisions.remove(&revision);
    }

    fn bytes(&self) -> usize {
        self.revisions.len() * size_of::<Idles>()
            + self.revisions.capacity() * size_of::<(RevisionKey, Box<Idles>)>()
    }
}
