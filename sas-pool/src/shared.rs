//! What the shards of a pool share.

use std::{
    fmt,
    sync::{Arc, OnceLock, Weak},
};

use tokio::sync::Notify;

use crate::{
    effects::Effects,
    executor::Executor,
    rules::Rules,
    start_executor::StartExecutor,
    stems::Stems,
    sync::{AtomicU32, Ordering},
};

/// Who gives turns at the gate, over all shards.
pub(crate) trait Turns: Send + Sync {
    /// Begins all starts that may begin.
    fn pump(&self);
}

pub(crate) struct Shared {
    pub(crate) rules: Arc<Rules>,
    pub(crate) executor: Arc<Executor>,
    pub(crate) stems: Arc<Stems>,
    starts: OnceLock<Box<[StartExecutor]>>,
    turns: OnceLock<Weak<dyn Turns>>,
    /// Told when instances are gone, if anybody waits for it.
    pub(crate) gone: Notify,
    pub(crate) waiting_for_gone: AtomicU32,
}

impl Shared {
    pub(crate) fn new(rules: Rules) -> Self {
        let rules = Arc::new(rules);
        let executor = Arc::new(Executor::new(rules.clock));
        Self {
            stems: Stems::new(&rules, &executor),
            rules,
            executor,
            starts: OnceLock::new(),
            turns: OnceLock::new(),
            gone: Notify::new(),
            waiting_for_gone: AtomicU32::new(0),
        }
    }

    /// Who gives turns. Said once, when the pool is made.
    pub(crate) fn take_turns_from(&self, turns: Weak<dyn Turns>) {
        let _ = self.turns.set(turns);
    }

    /// Begins all starts that may begin, unless the pool is gone.
    pub(crate) fn pump(&self) {
        if let Some(turns) = self.turns.get().and_then(Weak::upgrade) {
            turns.pump();
        }
    }

    /// Where a shard's starts go on: one executor per worker of the runtime.
    pub(crate) fn starts(&self, shard: u32) -> &StartExecutor {
        let starts = self.starts.get_or_init(|| {
            let workers = self.executor.handle().metrics().num_workers();
            (0..workers).map(|_| StartExecutor::new(Arc::clone(&self.executor))).collect()
        });
        &starts[shard as usize % starts.len()]
    }

    /// Tells the meter, and those who wait for instances to be gone.
    pub(crate) fn tell(&self, fx: &mut Effects) {
        self.rules.meter(fx.readings.drain(..));
        if fx.gone && self.waiting_for_gone.load(Ordering::Acquire) > 0 {
            self.gone.notify_waiters();
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("rules", &self.rules).finish_non_exhaustive()
    }
}
