//! The life of an instance: the requests at work, the sandboxes kept between them, the stop, and the one report of
//! its end.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use sas_core::{ExitReport, InstanceEvents, StartRequest};

use crate::{component::Warm, context::InstanceContext, function::Function, slots::SlotPermit, sync::Lock};

/// No more requests; the bit above the count of those at work.
const STOPPING: usize = 1 << (usize::BITS - 1);

/// A streamed answer, whose guest works while it is read.
pub(crate) trait Stream: Send + Sync + 'static {
    /// Ends the guest, also while nobody reads.
    fn end(&self);
}

/// What an instance shares with its requests.
pub(crate) struct Lifecycle {
    pub(crate) context: Arc<InstanceContext>,
    events: Arc<dyn InstanceEvents>,
    state: AtomicUsize,
    told: AtomicBool,
    kept: Lock<Vec<Warm>>,
    streams: Lock<Vec<Weak<dyn Stream>>>,
}

impl std::fmt::Debug for Lifecycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lifecycle")
            .field("context", &self.context)
            .field("at_work", &(self.state.load(Ordering::Relaxed) & !STOPPING))
            .finish_non_exhaustive()
    }
}

impl Lifecycle {
    pub(crate) fn start(function: Arc<Function>, request: &StartRequest) -> Arc<Self> {
        Arc::new(Self {
            context: Arc::new(InstanceContext::new(function, request)),
            events: Arc::clone(&request.events),
            state: AtomicUsize::new(0),
            told: AtomicBool::new(false),
            kept: Lock::default(),
            streams: Lock::default(),
        })
    }

    /// Keeps a sandbox for later requests, if it may serve more and there is room.
    pub(crate) fn keep(&self, mut warm: Warm, place: Option<SlotPermit>) {
        let reuse = self.context.function.options.reuse;
        if !reuse.keeps() || !warm.is_fit(reuse.requests, reuse.age) || self.is_stopping() {
            return;
        }
        let (Some(place), Some(keep)) =
            (place, self.context.function.slots.try_keep(self.context.function.units))
        else {
            return;
        };
        warm.place = Some((place, keep));
        let mut kept = self.kept.lock();
        if kept.len() < reuse.concurrency as usize {
            kept.push(warm);
        }
    }

    /// A kept sandbox that may still serve. The latest first, so that those too many grow old and go.
    pub(crate) fn take_kept(&self) -> Option<Warm> {
        let reuse = self.context.function.options.reuse;
        if !reuse.keeps() {
            return None;
        }
        let mut kept = self.kept.lock();
        let unfit: Vec<Warm> = kept.extract_if(.., |warm| !warm.is_fit(reuse.requests, reuse.age)).collect();
        let taken = kept.pop();
        drop(kept);
        drop(unfit);
        taken
    }

    /// Remembers the guest of a streamed answer, so that it can be ended while nobody reads.
    pub(crate) fn add_stream(&self, stream: &Arc<impl Stream>) {
        let mut streams = self.streams.lock();
        streams.retain(|stream| stream.strong_count() > 0);
        let stream: Weak<dyn Stream> = Arc::downgrade(stream) as _;
        streams.push(stream);
    }

    fn is_stopping(&self) -> bool {
        self.state.load(Ordering::Acquire) & STOPPING != 0
    }

    /// A request comes in; `None` when the instance is being stopped.
    pub(crate) fn enter(self: &Arc<Self>) -> Option<Entered> {
        if self.state.fetch_add(1, Ordering::AcqRel) & STOPPING != 0 {
            self.leave();
            return None;
        }
        Some(Entered(Arc::clone(self)))
    }

    fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::AcqRel) == STOPPING + 1 {
            self.tell_exit();
        }
    }

    fn tell_exit(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            let at = self.context.function.host.config.clock.now();
            self.events.exited(self.context.id, ExitReport::at(at).with_code(0));
            self.context.function.host.ended();
        }
    }

    pub(crate) fn is_gone(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Ends what is left: guests that are polled end at their next poll, streams that nobody reads end here.
    pub(crate) fn kill(&self) {
        self.context.kill();
        self.context.function.host.stop_now();
        let streams = std::mem::take(&mut *self.streams.lock());
        for stream in streams {
            if let Some(stream) = stream.upgrade() {
                stream.end();
            }
        }
    }

    /// Takes no more requests, and lets the kept sandboxes go. Tells whether requests are still at work, and whether
    /// this was the first stop; `None` when nothing was at work, so that all is over.
    pub(crate) fn stop(&self) -> Option<FirstStop> {
        let before = self.state.fetch_or(STOPPING, Ordering::AcqRel);
        drop(std::mem::take(&mut *self.kept.lock()));
        if before == 0 {
            self.tell_exit();
            return None;
        }
        Some(FirstStop(before & STOPPING == 0))
    }
}

/// Whether nobody had stopped the instance before.
pub(crate) struct FirstStop(pub(crate) bool);

impl Drop for Lifecycle {
    /// An instance that was let go without a stop is gone too.
    fn drop(&mut self) {
        self.tell_exit();
    }
}

/// A request that counts as the instance's.
#[derive(Debug)]
pub(crate) struct Entered(Arc<Lifecycle>);

impl Entered {
    pub(crate) fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.leave();
    }
}
