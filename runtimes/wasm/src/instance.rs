//! An instance of a function: a cheap handle, under which each request gets a sandbox.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Answer, Call, CallError, Cx, Error, ErrorKind, ExitReport, Instance, InstanceEvents, InstanceId,
    InstanceTarget, LogSink, LogStream, Request, Result, Retry, RevisionKey, StartRequest, TenantKey, Usage,
};
use tokio::sync::oneshot;

use crate::{
    admission::{Place, RETRY_AFTER, Refusal},
    cgi::Output,
    files::{self, FilesGuest},
    function::{Function, Program},
    http02::{self, Warm},
    limits::{Limit, Meter},
    preview1::{self, CgiGuest, Stdin},
    run::{ResponseSource, Run, Work, answer},
    sandbox::Sandbox,
    sync::{Lock, Shared},
};

/// No more requests; the bit above the count of those at work.
const STOPPING: usize = 1 << (usize::BITS - 1);

/// A running copy of a revision. It holds no sandbox while it has no request (or those it keeps for reuse).
pub struct WasmInstance {
    me: Weak<Self>,
    id: InstanceId,
    revision: RevisionKey,
    tenant: TenantKey,
    function: Arc<Function>,
    declared: Option<Arc<[(String, String)]>>,
    logs: Arc<dyn LogSink>,
    events: Arc<dyn InstanceEvents>,
    state: AtomicUsize,
    killed: AtomicBool,
    told: AtomicBool,
    cpu_ns: AtomicU64,
    memory: AtomicU64,
    kept: Lock<Vec<Warm>>,
    streams: Lock<Vec<Weak<Lock<Option<Run>>>>>,
}

impl fmt::Debug for WasmInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WasmInstance")
            .field("id", &self.id)
            .field("at_work", &(self.state.load(Ordering::Relaxed) & !STOPPING))
            .finish_non_exhaustive()
    }
}

impl WasmInstance {
    pub(crate) fn start(function: Arc<Function>, request: &StartRequest) -> Arc<Self> {
        let declared = (!request.spec().env.is_empty()).then(|| {
            request.environment().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        });
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            id: request.id,
            revision: request.revision,
            tenant: request.tenant(),
            function,
            declared,
            logs: Arc::clone(&request.logs),
            events: Arc::clone(&request.events),
            state: AtomicUsize::new(0),
            killed: AtomicBool::new(false),
            told: AtomicBool::new(false),
            cpu_ns: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            kept: Lock::default(),
            streams: Lock::default(),
        })
    }

    pub(crate) fn function(&self) -> &Arc<Function> {
        &self.function
    }

    pub(crate) fn key(&self) -> InstanceId {
        self.id
    }

    pub(crate) fn revision(&self) -> RevisionKey {
        self.revision
    }

    pub(crate) fn logs(&self) -> &Arc<dyn LogSink> {
        &self.logs
    }

    pub(crate) fn declared(&self) -> &[(String, String)] {
        self.declared.as_deref().unwrap_or_default()
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    pub(crate) fn add_cpu(&self, ns: u64) {
        self.cpu_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(crate) fn add_memory(&self, bytes: u64) {
        self.memory.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove_memory(&self, bytes: u64) {
        self.memory.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Keeps a sandbox for later requests, if it may serve more and there is room.
    pub(crate) fn keep(&self, mut warm: Warm, place: Option<Place>) {
        let reuse = self.function.options.reuse;
        if !reuse.keeps() || !warm.is_fit(reuse.requests, reuse.age) || self.is_stopping() {
            return;
        }
        let (Some(place), Some(keep)) = (place, self.function.admission.try_keep(self.function.units)) else {
            return;
        };
        warm.place = Some((place, keep));
        let mut kept = self.kept.lock();
        if kept.len() < reuse.concurrency as usize {
            kept.push(warm);
        }
    }

    /// A kept sandbox that may still serve. The latest first, so that those too many grow old and go.
    fn take_kept(&self) -> Option<Warm> {
        let reuse = self.function.options.reuse;
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
    pub(crate) fn streams(&self, run: &Shared<Option<Run>>) {
        let mut streams = self.streams.lock();
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(run));
    }

    fn is_stopping(&self) -> bool {
        self.state.load(Ordering::Acquire) & STOPPING != 0
    }

    fn enter(&self) -> Option<Entered> {
        let instance = self.me.upgrade()?;
        if self.state.fetch_add(1, Ordering::AcqRel) & STOPPING != 0 {
            instance.leave();
            return None;
        }
        Some(Entered(instance))
    }

    fn leave(&self) {
        if self.state.fetch_sub(1, Ordering::AcqRel) == STOPPING + 1 {
            self.tell_exit();
        }
    }

    fn tell_exit(&self) {
        if !self.told.swap(true, Ordering::AcqRel) {
            let at = self.function.host.config.clock.now();
            self.events.exited(self.id, ExitReport::at(at).with_code(0));
            self.function.host.ended();
        }
    }

    fn is_gone(&self) -> bool {
        self.told.load(Ordering::Acquire)
    }

    /// Ends what is left: guests that are polled end at their next poll, streams that nobody reads end here.
    fn kill(&self) {
        self.killed.store(true, Ordering::Release);
        self.function.host.stop_now();
        let streams = std::mem::take(&mut *self.streams.lock());
        for stream in streams {
            if let Some(stream) = stream.upgrade() {
                let run = stream.lock().take();
                drop(run);
            }
        }
    }

    async fn wait_for_place(&self, cx: &Cx) -> Result<Place> {
        let function = &self.function;
        function.host.metrics.waited();
        function.admission.enter(Some(self.tenant), function.units, cx.deadline).await.map_err(|refusal| {
            let slots = function.admission.share();
            match refusal {
                Refusal::QueueFull => {
                    let message = format!(
                        "all {slots} sandboxes that a tenant may have, or all there are, are taken and {} requests may \
                         wait for one (WasmConfig.slots, .tenant_slots and .queue)",
                        function.host.config.queue
                    );
                    Error::new(ErrorKind::Exhausted, "call", message).with_retry(Retry::After(RETRY_AFTER))
                }
                Refusal::Deadline => Error::new(
                    ErrorKind::Timeout,
                    "call",
                    format!("the deadline passed while waiting for one of the {slots} sandboxes that a tenant may have \
                         (WasmConfig.slots and .tenant_slots)"),
                ),
            }
        })
    }

    fn output(&self, request: &http::request::Parts) -> Shared<Output> {
        let limit = self.function.options.limits.response_bytes;
        Arc::new(Lock::new(Output::new(limit, request.method == http::Method::HEAD)))
    }

    fn work(
        &self,
        me: &Arc<Self>,
        kept: Option<Warm>,
        request: Request,
        cx: &Cx,
        meter: &Arc<Meter>,
    ) -> (Work, ResponseSource) {
        let (meter, id) = (Arc::clone(meter), cx.request);
        match &self.function.program {
            Program::Cgi(program) => {
                let (head, body) = request.into_parts();
                let output = self.output(&head);
                let sandbox = Sandbox::new(me, id);
                let guest = CgiGuest {
                    limiter: sandbox.limiter(meter),
                    stdin: Stdin::new(body, &head.headers),
                    request: head,
                    declared: self.declared.clone(),
                    arguments: Arc::clone(&self.function.arguments),
                    output: Arc::clone(&output),
                    stderr: sandbox.lines(LogStream::Stderr),
                    clock: Arc::clone(&self.function.host.config.clock),
                    started: self.function.host.started,
                    memory: None,
                    environment: None,
                };
                (preview1::serve(Arc::clone(program), guest), ResponseSource::Cgi(output))
            }
            Program::Files(program) => {
                let (head, body) = request.into_parts();
                let output = self.output(&head);
                let guest = FilesGuest::new(&Sandbox::new(me, id), meter, head, body, Arc::clone(&output));
                let serving = files::serve(Arc::clone(program), guest);
                (Box::pin(async move { serving.await.map(|()| None) }), ResponseSource::Cgi(output))
            }
            Program::Http(linked) => {
                let (reply, answer) = oneshot::channel();
                (http02::serve(linked, kept, me, id, meter, request, reply), ResponseSource::Http(answer))
            }
        }
    }
}

impl Drop for WasmInstance {
    /// An instance that was let go without a stop is gone too.
    fn drop(&mut self) {
        self.tell_exit();
    }
}

#[async_trait]
impl Call for WasmInstance {
    async fn call(&self, request: Request, cx: &Cx) -> std::result::Result<Answer, CallError> {
        let Some(entered) = self.enter() else {
            let error = Error::new(ErrorKind::Unavailable, "call", "the instance is being stopped");
            return Err(CallError::unsent(error.with_retry(Retry::AnotherInstance), request));
        };
        let mut kept = self.take_kept();
        let place = match kept.as_mut().and_then(|warm| warm.place.take()) {
            Some((place, _keep)) => place,
            None => match self.function.admission.try_enter(Some(self.tenant), self.function.units) {
                Some(place) => place,
                // In a box, so that calls that need not wait have no room for it in their future.
                None => match Box::pin(self.wait_for_place(cx)).await {
                    Ok(place) => place,
                    Err(error) => return Err(CallError::unsent(error, request)),
                },
            },
        };
        let meter = Arc::new(Meter::default());
        let (work, source) = self.work(entered.instance(), kept, request, cx, &meter);
        let ticking = self.function.host.ticker.guard();
        let run = Run::new(work, place, meter, cx.deadline, ticking, entered);
        answer(run, source).await.map_err(CallError::sent)
    }
}

#[async_trait]
impl Instance for WasmInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    fn usage(&self) -> Option<Usage> {
        // The code is in memory as long as there is an instance; sandboxes are while there are requests.
        let memory = self.function.code_bytes + self.memory.load(Ordering::Relaxed);
        Some(Usage::new(self.cpu_ns.load(Ordering::Relaxed), memory))
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        let before = self.state.fetch_or(STOPPING, Ordering::AcqRel);
        drop(std::mem::take(&mut *self.kept.lock()));
        if before == 0 {
            self.tell_exit();
            return Ok(());
        }
        let Some(me) = self.me.upgrade() else {
            return Ok(());
        };
        if before & STOPPING == 0 {
            let host = Arc::clone(&self.function.host);
            let reaping = host.reaping();
            // A task of its own, because the stop goes on when its caller goes away.
            tokio::spawn(async move {
                let _ = tokio::time::timeout(grace, host.gone(|| me.is_gone())).await;
                me.kill();
                host.gone(|| me.is_gone()).await;
                drop(reaping);
            });
        }
        let host = Arc::clone(&self.function.host);
        host.gone(|| self.is_gone()).await;
        Ok(())
    }
}

/// A request that counts as the instance's.
#[derive(Debug)]
pub(crate) struct Entered(Arc<WasmInstance>);

impl Entered {
    pub(crate) fn instance(&self) -> &Arc<WasmInstance> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.leave();
    }
}

impl fmt::Display for WasmInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

const _: () = {
    const fn sized<T: Send + Sync>() {}
    sized::<WasmInstance>();
    sized::<Limit>();
};
