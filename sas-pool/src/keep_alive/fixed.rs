use std::time::Duration;

use sas_core::{KeepAlive, KeepAlivePolicy, RevisionKey, Timestamp};

/// Keeps every revision for the same time after its last call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    keep: Duration,
}

impl Fixed {
    /// For `keep` after each call; zero: not at all.
    pub const fn new(keep: Duration) -> Self {
        Self { keep }
    }
}

impl KeepAlivePolicy for Fixed {
    fn called(&mut self, _: RevisionKey, _: Timestamp) {}

    fn idle(&mut self, _: RevisionKey, now: Timestamp) -> KeepAlive {
        KeepAlive::until(now + self.keep)
    }

    fn resolution(&self) -> Duration {
        Duration::ZERO
    }

    fn forget(&mut self, _: RevisionKey) {}

    fn bytes(&self) -> usize {
        0
    }
}
