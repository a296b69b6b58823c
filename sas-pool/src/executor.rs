//! Where the pool's tasks run, and its one alarm.

use std::sync::{Arc, OnceLock, Weak};

use tokio::{runtime::Handle, sync::Notify};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    clock::PoolClock,
    sync::{AtomicBool, AtomicU64, Ordering},
};

/// Who does what is due.
pub(crate) trait Due: Send + Sync {
    /// Does all that is due, and says when the next is, in nanoseconds of the pool's life; `u64::MAX`: nothing is.
    fn expire(&self) -> u64;
}

/// The tasks of a pool.
pub(crate) struct Executor {
    clock: PoolClock,
    handle: OnceLock<Handle>,
    pub(crate) tasks: TaskTracker,
    /// Ends every task of the pool.
    pub(crate) ended: CancellationToken,
    /// When the alarm's task wakes next, in nanoseconds of the pool's life.
    armed: AtomicU64,
    rearm: Notify,
    ticking: AtomicBool,
    due: OnceLock<Weak<dyn Due>>,
}

impl Executor {
    pub(crate) fn new(clock: PoolClock) -> Self {
        let handle = OnceLock::new();
        if let Ok(current) = Handle::try_current() {
            let _ = handle.set(current);
        }
        Self {
            clock,
            handle,
            tasks: TaskTracker::new(),
            ended: CancellationToken::new(),
            armed: AtomicU64::new(u64::MAX),
            rearm: Notify::new(),
            ticking: AtomicBool::new(false),
            due: OnceLock::new(),
        }
    }

    /// Whom the alarm calls. Said once, when the pool is made.
    pub(crate) fn call(&self, due: Weak<dyn Due>) {
        let _ = self.due.set(due);
    }

    /// The runtime that the pool's tasks run on: that in which the pool was made, else that of the first caller.
    ///
    /// # Panics
    /// When there never was one.
    pub(crate) fn handle(&self) -> &Handle {
        self.handle.get_or_init(Handle::current)
    }

    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(task, self.handle());
    }

    /// Makes sure that the alarm goes off by `at`.
    pub(crate) fn arm(self: &Arc<Self>, at: u64) {
        if self.armed.fetch_min(at, Ordering::AcqRel) <= at {
            return;
        }
        // No clock runs in a model of loom's: its deadlines are never met.
        if cfg!(not(loom)) && !self.ticking.swap(true, Ordering::AcqRel) {
            self.spawn(Self::tick(Arc::downgrade(self), self.ended.clone()));
        }
        self.rearm.notify_one();
    }

    async fn tick(executor: Weak<Self>, ended: CancellationToken) {
        loop {
            let Some(this) = executor.upgrade() else { return };
            let Some(due) = this.due.get().and_then(Weak::upgrade) else { return };
            // Before anybody is asked: a timer that is set meanwhile lowers it again and tells.
            this.armed.store(u64::MAX, Ordering::Release);
            let next = due.expire();
            drop(due);
            let next = next.min(this.armed.fetch_min(next, Ordering::AcqRel));
            let wake = this.clock.instant(next);
            tokio::select! {
                biased;
                () = ended.cancelled() => return,
                () = this.rearm.notified() => {}
                () = tokio::time::sleep_until(wake), if next != u64::MAX => {}
            }
        }
    }
}
