//! Time limits of bodies, kept where the body is not.
//!
//! A body that nobody polls can't notice that its time is over: a peer that opens no window, or takes no byte, stops
//! the polling itself. So whoever writes a body leaves marks here, and the task that drives the writing looks at
//! them. A timer is made only while the peer is being waited for.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

/// The marks of one body, or of the bodies of one connection that come one after the other.
#[derive(Debug, Default)]
pub(crate) struct Writing {
    /// A frame was taken from the body, and nobody has asked for the next one: its reader is being waited for.
    waits: AtomicBool,
    frames: AtomicU32,
    deadline: Mutex<Option<Instant>>,
}

impl Writing {
    /// A body that must be written by `deadline`, if by any time.
    pub(crate) fn begins(&self, deadline: Option<Instant>) {
        *self.deadline.lock() = deadline;
        self.waits.store(false, Ordering::Relaxed);
    }

    /// The body was asked for a frame; `gave`: there was one, and there will be more.
    pub(crate) fn asked(&self, gave: bool) {
        if gave {
            self.frames.fetch_add(1, Ordering::Relaxed);
        }
        self.waits.store(gave, Ordering::Relaxed);
    }

    /// The body is written, or given up.
    pub(crate) fn ends(&self) {
        self.waits.store(false, Ordering::Relaxed);
    }
}

/// Looks at marks from the task that drives the writing.
#[derive(Debug)]
pub(crate) struct Limit {
    writing: Arc<Writing>,
    /// How long a frame may lie; `None`: somebody else sees to that.
    stall: Option<Duration>,
    /// The frame that lies, and since when.
    lies: Option<(u32, Instant)>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Limit {
    pub(crate) fn new(writing: Arc<Writing>, stall: Option<Duration>) -> Self {
        Self { writing, stall, lies: None, timer: None }
    }

    /// Ready when the peer has taken too long. To be asked after the writing was driven.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.writing.waits.load(Ordering::Relaxed) {
            self.lies = None;
            return Poll::Pending;
        }
        loop {
            let deadline = *self.writing.deadline.lock();
            let stalled = self.stall.map(|stall| {
                let frame = self.writing.frames.load(Ordering::Relaxed);
                let since = match self.lies {
                    Some((known, since)) if known == frame => since,
                    _ => Instant::now(),
                };
                self.lies = Some((frame, since));
                since + stall
            });
            let due = match (deadline, stalled) {
                (Some(deadline), Some(stalled)) => deadline.min(stalled),
                (Some(due), None) | (None, Some(due)) => due,
                (None, None) => return Poll::Pending,
            };
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
            if timer.deadline() > due {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // Set for an earlier frame: it is moved only when it fires, not with every frame.
            if timer.deadline() >= due {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

/// Travels with an answer: by when it must be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteBy(pub(crate) Instant);

/// Hands the marks of a body over to the task that its library makes for it.
///
/// An HTTP/2 connection asks its executor for a task right after the request that the task is for was looked at, in
/// the same poll: what was put here then belongs to that task.
#[derive(Debug, Default)]
pub(crate) struct Handover(Mutex<Option<Arc<Writing>>>);

impl Handover {
    pub(crate) fn put(&self, writing: Arc<Writing>) {
        *self.0.lock() = Some(writing);
    }

    pub(crate) fn take(&self) -> Option<Arc<Writing>> {
        self.0.lock().take()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_a_byte_now_and_then_is_held_to_the_deadline() {
        let writing = Arc::<Writing>::default();
        let start = Instant::now();
        writing.begins(Some(start + 10 * SECOND));
        let mut limit = Limit::new(Arc::clone(&writing), Some(3 * SECOND));
        for _ in 0..4 {
            writing.asked(true);
            let wait = tokio::time::timeout(2 * SECOND, poll_fn(|cx| limit.poll(cx)));
            assert!(wait.await.is_err(), "it moves");
        }
        writing.asked(true);
        poll_fn(|cx| limit.poll(cx)).await;
        assert_eq!(start.elapsed(), 10 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_held_to_the_stall_and_a_quiet_sender_is_not() {
        let writing = Arc::<Writing>::default();
        writing.begins(None);
        let mut limit = Limit::new(Arc::clone(&writing), Some(3 * SECOND));
        writing.asked(false);
        let start = Instant::now();
        assert!(tokio::time::timeout(60 * SECOND, poll_fn(|cx| limit.poll(cx))).await.is_err());
        writing.asked(true);
        poll_fn(|cx| limit.poll(cx)).await;
        assert_eq!(start.elapsed(), 63 * SECOND);
        writing.ends();
        assert!(tokio::time::timeout(60 * SECOND, poll_fn(|cx| limit.poll(cx))).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_body_of_the_connection_has_its_own_deadline() {
        let writing = Arc::<Writing>::default();
        let start = Instant::now();
        let mut limit = Limit::new(Arc::clone(&writing), None);
        writing.begins(Some(start + 9 * SECOND));
        writing.asked(true);
        assert!(tokio::time::timeout(SECOND, poll_fn(|cx| limit.poll(cx))).await.is_err());
        writing.begins(Some(start + 4 * SECOND));
        writing.asked(true);
        poll_fn(|cx| limit.poll(cx)).await;
        assert_eq!(start.elapsed(), 4 * SECOND);
    }
}
