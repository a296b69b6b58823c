//! The life of an instance, below its calls: who is in, who is to be cut, and the one report of its end.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::Context,
    time::Duration,
};

use sas_core::{
    Clock, Error, ErrorKind, ExitReport, InstanceEvents, InstanceId, LogRecord, LogSink, LogStream,
    RequestId, Result, RevisionKey, Secret, StartRequest,
};
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

const STOPPING: u32 = 1 << 31;
const CUT: u32 = 1 << 30;
const GONE: u32 = 1 << 29;
const CALLS: u32 = GONE - 1;

/// How long a forced stop waits for a function that holds its thread.
const FORCED_WAIT: Duration = Duration::from_secs(1);

/// The declared environment of the revision with its secrets resolved. Found in the extensions of each request
/// whose revision declares any.
#[derive(Clone, PartialEq, Eq)]
pub struct Env(pub(crate) Arc<BTreeMap<String, Secret>>);

impl Env {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(Secret::expose)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

impl fmt::Debug for Env {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Who has a life. What outlives a call holds this: the instance is one allocation.
pub(crate) trait Alive: Send + Sync + 'static {
    fn life(&self) -> &Life;
}

/// What an instance and its calls share.
pub(crate) struct Life {
    this: Weak<dyn Alive>,
    pub(crate) id: InstanceId,
    revision: RevisionKey,
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
pub(crate) struct Running<'a>(Option<&'a Life>);

impl Running<'_> {
    /// The same, for a body that outlives the call.
    pub(crate) fn keep(mut self) -> Kept {
        // The caller holds the instance while it calls, so that the upgrade can't fail before `take`.
        let instance = self.0.and_then(|life| life.this.upgrade()).expect("an instance that is called");
        self.0 = None;
        let waiting = Arc::clone(&instance);
        Kept { instance, cut_off: Some(Box::pin(async move { waiting.life().cut_off().await })) }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(instance) = self.0 {
            instance.leave();
        }
    }
}

/// The right to run of a call whose future has ended.
pub(crate) struct Kept {
    pub(crate) instance: Arc<dyn Alive>,
    pub(crate) cut_off: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Kept {
    /// Runs a poll of user code and sees to it that `task` wakes when the instance is cut; `None` when it was.
    pub(crate) fn poll<T>(
        &mut self,
        task: &mut Context<'_>,
        poll: impl FnOnce(&mut Context<'_>) -> T,
    ) -> Option<T> {
        if self.cut_off.as_mut().is_some_and(|cut_off| cut_off.as_mut().poll(task).is_ready()) {
            self.cut_off = None;
        }
        self.instance.life().poll_unless_cut(|| poll(task))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.instance.life().leave();
    }
}

impl Life {
    pub(crate) fn new(
        request: &StartRequest,
        this: Weak<dyn Alive>,
        clock: Arc<dyn Clock>,
        reapers: TaskTracker,
    ) -> Self {
        let env = (!request.spec().env.is_empty()).then(|| {
            let pairs = request.environment().map(|(name, value)| (name.to_owned(), Secret::new(value)));
            Env(Arc::new(pairs.collect()))
        });
        Self {
            this,
            id: request.id,
            revision: request.revision,
            env,
            logs: Arc::clone(&request.logs),
            events: Arc::clone(&request.events),
            clock,
            reapers,
            state: AtomicU32::new(0),
            polling: AtomicU32::new(0),
            changed: Notify::new(),
        }
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

    /// Takes no more calls, gives those under way `grace`, and cuts what is left then.
    pub(crate) async fn stop(&self, grace: Duration) -> Result<()> {
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
        match self.reapers.spawn(async move { this.life().end(grace).await }).await {
            Ok(ended) => ended,
            Err(join) => {
                Err(Error::new(ErrorKind::Unexpected, "stop", "the task that stops the instance was lost")
                    .with_source(join))
            }
        }
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

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.load(SeqCst);
        f.debug_struct("Life")
            .field("id", &self.id)
            .field("calls", &(state & CALLS))
            .field("stopping", &(state & STOPPING != 0))
            .finish_non_exhaustive()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.gone();
    }
}
