//! CPU time of short stretches of work. Asking the kernel for a thread's CPU time takes longer than a small guest's
//! answer, so that it is asked a few thousand times a second at most, and the clock in between.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

/// Stretches shorter than this count by the clock: somebody else can have had the CPU for no longer.
const SHORT_NS: u64 = 50_000;
/// A thread's CPU time that was asked for this long ago is still good as the start of a stretch.
const FRESH_NS: u64 = 250_000;

/// CPU time of a thread at a moment.
#[derive(Clone, Copy)]
struct Reading {
    cpu_ns: u64,
    at_ns: u64,
}

impl Reading {
    fn now(at_ns: u64) -> Self {
        let reading = Self { cpu_ns: clock_ns(rustix::time::ClockId::ThreadCPUTime), at_ns };
        LAST.set(Some(reading));
        reading
    }
}

thread_local! {
    static LAST: Cell<Option<Reading>> = const { Cell::new(None) };
}

/// A stretch of work on one thread.
#[derive(Debug, Default)]
pub(crate) struct CpuStint {
    began_ns: AtomicU64,
    /// The thread's CPU time then, or up to `FRESH_NS` before.
    cpu_ns: AtomicU64,
}

impl CpuStint {
    pub(crate) fn begin(&self) {
        let now = monotonic_ns();
        let last = LAST.get().filter(|last| now.saturating_sub(last.at_ns) < FRESH_NS);
        self.began_ns.store(now, Ordering::Relaxed);
        self.cpu_ns.store(last.unwrap_or_else(|| Reading::now(now)).cpu_ns, Ordering::Relaxed);
    }

    /// CPU time since `begin`, on the same thread.
    pub(crate) fn used_ns(&self) -> u64 {
        let now = monotonic_ns();
        let took = now.saturating_sub(self.began_ns.load(Ordering::Relaxed));
        if took < SHORT_NS {
            return took;
        }
        took.min(Reading::now(now).cpu_ns.saturating_sub(self.cpu_ns.load(Ordering::Relaxed)))
    }
}

fn monotonic_ns() -> u64 {
    clock_ns(rustix::time::ClockId::Monotonic)
}

/// The system's clocks themselves, so that a test's paused clock does not change them.
fn clock_ns(clock: rustix::time::ClockId) -> u64 {
    let time = rustix::time::clock_gettime(clock);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thread_ns() -> u64 {
        clock_ns(rustix::time::ClockId::ThreadCPUTime)
    }

    fn spin(ns: u64) {
        let until = thread_ns() + ns;
        while thread_ns() < until {}
    }

    #[test]
    fn work_counts_and_waiting_does_not() {
        let stint = CpuStint::default();
        let before = thread_ns();
        stint.begin();
        spin(3_000_000);
        std::thread::park_timeout(std::time::Duration::from_millis(20));
        let used = stint.used_ns();
        let real = thread_ns() - before;
        assert!((3_000_000..=real + FRESH_NS).contains(&used), "{used} ns of {real}");
    }

    #[test]
    fn what_the_thread_did_before_counts_for_a_quarter_of_a_millisecond_at_most() {
        let stint = CpuStint::default();
        for idle in [100_000, 5_000_000] {
            stint.begin();
            spin(idle);
            let before = thread_ns();
            stint.begin();
            spin(1_000_000);
            let used = stint.used_ns();
            let real = thread_ns() - before;
            assert!((1_000_000..=real + FRESH_NS).contains(&used), "{used} ns of {real}");
        }
    }

    #[test]
    fn short_stretches_are_never_lost() {
        let stint = CpuStint::default();
        let mut sum = 0;
        let before = thread_ns();
        for _ in 0..200 {
            stint.begin();
            spin(20_000);
            sum += stint.used_ns();
        }
        assert!(sum >= 200 * 20_000, "{sum} ns of {}", thread_ns() - before);
    }
}
