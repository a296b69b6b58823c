//! A running copy of a function: nothing but the right to call it.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Answer, Call, CallError, Clock, Cx, Error, ErrorKind, ExitReport, Instance, InstanceEvents, InstanceId,
    InstanceTarget, LogRecord, LogSink, LogStream, Request, RequestId, Result, RevisionKey, StartRequest,
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use crate::{Env, Function, call::Kept};

const STOPPING: u32 = 1 << 31;
const CUT: u32 = 1 << 30;
const GONE: u32 = 1 << 29;
const CALLS: u32 = GONE - 1;

/// How long a forced stop waits for a function that holds its thread.
const FORCED_WAIT: Duration = Duration::from_secs(1);

/// An instance of an inline function.
pub struct InlineInstance {
    this: Weak<Self>,
    id: InstanceId,
    revision: RevisionKey,
    function: Function,
    env: Option<Env>,
    logs: Arc<dyn LogSink>,
    events: Arc<dyn InstanceEvents>,
    clock: Arc<dyn Clock>,
    reapers: TaskTracker,
    /// Calls under way in the low bits, and how far the end has come in the high ones.
    state: AtomicU32,
    /// Polls of user code going on right now, on any thread.
    polling: AtomicU32,
    /// Told when the instance is cut, and when the last call leaves a stopping one.
    changed: Notify,
}

/// The right to run of one call.
pub(crate) struct Running<'a>(Option<&'a InlineInstance>);

impl Running<'_> {
    /// The same, for a body that outlives the call.
    pub(crate) fn keep(mut self) -> Kept {
        // The caller holds the instance while it calls, so that the upgrade can't fail before `take`.
        let instance =
            self.0.and_then(|instance| instance.this.upgrade()).expect("an instance that is called");
        self.0 = None;
        let waiting = Arc::clone(&instance);
        Kept { instance, cut_off: Some(Box::pin(async move { waiting.cut_off().await })) }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(instance) = self.0 {
            instance.leave();
        }
    }
}

impl InlineInstance {
    pub(crate) fn new(
        request: &StartRequest,
        function: Function,
        clock: Arc<dyn Clock>,
        reapers: TaskTracker,
    ) -> Arc<Self> {
        let env = (!request.spec().env.is_empty()).then(|| {
            let pairs = request.environment().map(|(name, value)| (name.to_owned(), value.to_owned()));
            Env(Arc::new(pairs.collect()))
        });
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            id: request.id,
            revision: request.revision,
            function,
            env,
            logs: Arc::clone(&request.logs),
            events: Arc::clone(&request.events),
            clock,
            reapers,
            state: AtomicU32::new(0),
            polling: AtomicU32::new(0),
            changed: Notify::new(),
        })
    }

    pub(crate) fn env(&self) -> Option<&Env> {
        self.env.as_ref()
    }

    pub(crate) fn log(&self, request: Option<RequestId>, stream: LogStream, text: &str) {
        for line in text.lines() {
            self.logs.line(
                &LogRecord::new(self.id, self.revision, self.clock.now(), stream, line.as_bytes())
                    .with_request(request),
            );
        }
    }

    /// `None` once it is being stopped.
    pub(crate) fn enter(&self) -> Option<Running<'_>> {
        let running = Running(Some(self));
        if self.state.fetch_add(1, SeqCst) & STOPPING == 0 { Some(running) } else { None }
    }

    pub(crate) fn leave(&self) {
        let before = self.state.fetch_sub(1, SeqCst);
        if before & STOPPING != 0 && before & CALLS == 1 {
            self.changed.notify_waiters();
        }
    }

    /// Runs a poll of user code, or says `None` when the instance was cut.
    pub(crate) fn poll_unless_cut<T>(&self, poll: impl FnOnce() -> T) -> Option<T> {
        // Counted before the flag is read: a stop that sets the flag and then sees no poll may call it gone.
        let _polling = Polling::new(&self.polling);
        (self.state.load(SeqCst) & CUT == 0).then(poll)
    }

    /// Resolves when the instance is cut.
    pub(crate) async fn cut_off(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state.load(SeqCst) & CUT != 0 {
                return;
            }
            changed.await;
        }
    }

    async fn drained(&self) {
        loop {
            let changed = self.changed.notified();
            if self.state.load(SeqCst) & CALLS == 0 {
                return;
            }
            changed.await;
        }
    }

    fn gone(&self) {
        if self.state.fetch_or(STOPPING | CUT | GONE, SeqCst) & GONE == 0 {
            self.changed.notify_waiters();
            self.events.exited(self.id, ExitReport::at(self.clock.now()));
        }
    }

    /// Waits for the calls, cuts those that are left, and makes sure that no code of theirs runs any more.
    async fn end(&self, grace: Duration) -> Result<()> {
        if tokio::time::timeout(grace, self.drained()).await.is_err() {
            self.state.fetch_or(CUT, SeqCst);
            self.changed.notify_waiters();
            let force_by = tokio::time::Instant::now() + FORCED_WAIT;
            while self.polling.load(SeqCst) > 0 {
                if tokio::time::Instant::now() >= force_by {
                    let message =
                        "the function holds its thread without an await; it can't be ended, only waited for";
                    return Err(Error::new(ErrorKind::Unexpected, "stop", message));
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        self.gone();
        Ok(())
    }
}

struct Polling<'a>(&'a AtomicU32);

impl<'a> Polling<'a> {
    fn new(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, SeqCst);
        Self(count)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl fmt::Debug for InlineInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(SeqCst);
        f.debug_struct("InlineInstance")
            .field("id", &self.id)
            .field("calls", &(state & CALLS))
            .field("stopping", &(state & STOPPING != 0))
            .finish_non_exhaustive()
    }
}

impl Drop for InlineInstance {
    fn drop(&mut self) {
        self.gone();
    }
}

#[async_trait]
impl Call for InlineInstance {
    // Written out, since the box of the call is the only one that is needed.
    fn call<'life0, 'life1, 'async_trait>(
        &'life0 self,
        request: Request,
        cx: &'life1 Cx,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Answer, CallError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        'life1: 'async_trait,
        Self: 'async_trait,
    {
        self.function.erased().call(self, request, *cx)
    }
}

#[async_trait]
impl Instance for InlineInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        let before = self.state.fetch_or(STOPPING, SeqCst);
        if before & GONE != 0 {
            return Ok(());
        }
        if before & CALLS == 0 {
            self.gone();
            return Ok(());
        }
        // The stop goes on when this future is dropped, so a task has to own it. Two stops may both run: the
        // shorter grace decides, and `gone` tells once.
        let Some(this) = self.this.upgrade() else { return Ok(()) };
        match self.reapers.spawn(async move { this.end(grace).await }).await {
            Ok(ended) => ended,
            Err(join) => {
                Err(Error::new(ErrorKind::Unexpected, "stop", "the task that stops the instance was lost")
                    .with_source(join))
            }
        }
    }
}
