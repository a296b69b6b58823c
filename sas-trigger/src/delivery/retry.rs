//! When an event is tried again.

use std::time::Duration;

/// How attempts are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backoff {
    /// The n-th retry waits n times the first wait.
    Linear,
    /// Twice the time of the attempt before.
    #[default]
    Exponential,
}

/// How an event is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub retries: u32,
    /// How they are spaced.
    pub backoff: Backoff,
    /// How long the first retry waits.
    pub delay: Duration,
    /// No retry waits for longer than this.
    pub longest: Duration,
    /// By how many percent at most a wait is made shorter, by an amount that event and attempt decide, so that events
    /// that failed together do not come again together. 0 to 100.
    pub jitter: u32,
    /// How long one attempt may take, the start of an instance included.
    pub timeout: Duration,
    /// How long all attempts of an event may take together, waits included; `None`: as long as the retries take.
    pub deadline: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retries: 5,
            backoff: Backoff::default(),
            delay: Duration::from_millis(500),
            longest: Duration::from_secs(60),
            jitter: 0,
            timeout: Duration::from_secs(300),
            deadline: None,
        }
    }
}

impl RetryPolicy {
    /// The wait before the retry of that number, counted from 0, without jitter.
    pub fn wait(&self, retry: u32) -> Duration {
        let wait = match self.backoff {
            Backoff::Linear => self.delay.saturating_mul(retry.saturating_add(1)),
            Backoff::Exponential => self.delay.saturating_mul(2_u32.saturating_pow(retry)),
        };
        wait.min(self.longest)
    }

    /// The same with the jitter that `seed` decides.
    pub(super) fn jittered(&self, retry: u32, seed: u64) -> Duration {
        let wait = self.wait(retry);
        if self.jitter == 0 {
            return wait;
        }
        // The last step of SplitMix64: neighbouring seeds give numbers that have nothing in common.
        let mut mixed = seed.wrapping_add(u64::from(retry).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let thousandths = u32::try_from((mixed ^ (mixed >> 31)) % 1001).unwrap_or(0);
        wait - wait * self.jitter.min(100) / 100 * thousandths / 1000
    }
}
