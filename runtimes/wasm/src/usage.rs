//! What one request uses of the processor and of memory.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::stint::CpuStint;

/// What one request has used: in the extensions of its response, as an `Arc<CallUsage>`, for hosts that bill or show
/// single requests. It goes on counting while the body of the answer streams.
#[derive(Debug, Default)]
pub struct CallUsage {
    cpu_ns: AtomicU64,
    stint: CpuStint,
    memory: AtomicU64,
    high_water: AtomicU64,
}

impl CallUsage {
    /// CPU time that the guest used, up to its last pause.
    ///
    /// A stretch of work of less than 50 µs counts as long as it took by the clock, a longer one by the CPU time of
    /// its thread, to a quarter of a millisecond and never too little.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Bytes of linear memory now.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// The most bytes of linear memory that it had at once.
    pub fn memory_high_water(&self) -> u64 {
        self.high_water.load(Ordering::Relaxed)
    }

    /// The guest goes on the CPU, on this thread.
    pub(crate) fn enter(&self) {
        self.stint.begin();
    }

    /// The guest leaves the CPU, on the thread that it entered on. Gives what was used in between.
    pub(crate) fn leave(&self) -> u64 {
        let used = self.stint.used_ns();
        self.cpu_ns.fetch_add(used, Ordering::Relaxed);
        used
    }

    /// What was used so far, asked by the guest's own thread while it runs.
    pub(crate) fn running_cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed) + self.stint.used_ns()
    }

    /// The guest has `bytes` of linear memory more.
    pub(crate) fn grow(&self, bytes: u64) {
        let now = self.memory.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.high_water.fetch_max(now, Ordering::Relaxed);
    }
}
