//! Commits whose caller has gone, for stores that commit elsewhere than in the caller's future.

use std::{fmt, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    UnderWay,
    Abandoned,
    Settled,
}

/// Commits that are under way although their caller has gone: whoever reads afterwards must find each done or not done, for
/// good. A store that hands commits to a task of its own begins each with [`Settling::begin`], and has its reads wait for
/// [`Settling::settled`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// use sas_core::Settling;
///
/// let settling = Settling::default();
/// let (caller, work) = settling.begin();
/// drop(caller);
/// assert!(work.is_abandoned());
/// tokio::spawn(async move { drop(work) });
/// settling.settled().await;
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Settling(Arc<watch::Sender<usize>>);

struct Shared {
    fate: Mutex<Fate>,
    count: Settling,
}

/// What the caller of a commit holds while it waits.
#[must_use = "dropped, the commit counts as abandoned"]
pub struct Caller(Arc<Shared>);

/// What goes with the commit; dropped when it is done, or will never be.
#[must_use = "dropped, the commit counts as settled"]
pub struct Work(Arc<Shared>);

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Caller")
    }
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Work")
    }
}

impl Settling {
    /// A commit begins: what its caller holds, and what goes with it.
    pub fn begin(&self) -> (Caller, Work) {
        let shared = Arc::new(Shared { fate: Mutex::new(Fate::UnderWay), count: self.clone() });
        (Caller(Arc::clone(&shared)), Work(shared))
    }

    /// Waits until no abandoned commit is under way.
    pub async fn settled(&self) {
        if *self.0.borrow() > 0 {
            // The sender lives as long as this.
            let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
        }
    }
}

impl Work {
    /// Whether the caller has gone. A commit that has not begun may be left out then.
    pub fn is_abandoned(&self) -> bool {
        *self.0.fate.lock() == Fate::Abandoned
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut fate = self.0.fate.lock();
        if *fate == Fate::UnderWay {
            *fate = Fate::Abandoned;
            self.0.count.0.send_modify(|count| *count += 1);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut fate = self.0.fate.lock();
        if *fate == Fate::Abandoned {
            self.0.count.0.send_modify(|count| *count -= 1);
        }
        *fate = Fate::Settled;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_reads_waits_for_abandoned_commits_and_for_no_others() {
        let settling = Settling::default();
        let (caller, work) = settling.begin();
        settling.settled().await;
        assert!(!work.is_abandoned());
        drop(caller);
        assert!(work.is_abandoned());
        let waits = tokio::time::timeout(Duration::from_secs(1), settling.settled()).await;
        assert!(waits.is_err(), "an abandoned commit is under way");
        drop(work);
        settling.settled().await;

        let (caller, work) = settling.begin();
        drop(work);
        drop(caller);
        settling.settled().await;
    }
}
