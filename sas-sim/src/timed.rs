//! A runtime whose instances are only a start time and a count.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    Answer, Artifact, ArtifactInfo, Body, Call, CallError, Capabilities, Cx, Error, ErrorKind, ExitReport,
    Instance, InstanceEvents, InstanceId, InstanceTarget, Isolation, MeterPhase, MeterSink, Metered, Request,
    Response, Result, RevisionSpec, Runtime, StartRequest, Stem, StemClass, StemRequest, Timestamp,
};
use tokio::time::Instant;

use crate::draw::Draw;

/// What the runtime and the meter count.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    pub(crate) live: AtomicU64,
    pub(crate) starts: AtomicU64,
    pub(crate) stops: AtomicU64,
    /// Requests that ran on an instance when it was stopped.
    pub(crate) cut: AtomicU64,
    pub(crate) peak: AtomicU64,
    pub(crate) busy_ns: AtomicU64,
    pub(crate) other_ns: AtomicU64,
    /// Requests on each instance that has any.
    running: Mutex<HashMap<InstanceId, u32>>,
}

impl Counted {
    /// A request begins on an instance.
    pub(crate) fn begins(&self, id: InstanceId) {
        *self.running.lock().entry(id).or_default() += 1;
    }

    /// A request ended on an instance.
    pub(crate) fn ends(&self, id: InstanceId) {
        let mut running = self.running.lock();
        if let Some(count) = running.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                running.remove(&id);
            }
        }
    }
}

impl MeterSink for Counted {
    fn phase(&self, _: Metered<'_>, _: InstanceId, phase: MeterPhase, ns: u64) {
        let total = if phase == MeterPhase::Busy { &self.busy_ns } else { &self.other_ns };
        total.fetch_add(ns, Relaxed);
    }
}

/// Starts take half to one and a half of a mean; calls, where any are made, are spread exponentially.
#[derive(Clone, Debug)]
pub(crate) struct Timed {
    start: Duration,
    spread: bool,
    /// How long a stem takes on average to become an instance; `None`: there are no stems.
    specialize: Option<Duration>,
    service: Duration,
    draw: Arc<Mutex<Draw>>,
    pub(crate) counted: Arc<Counted>,
}

impl Timed {
    pub(crate) fn new(start: Duration, service: Duration, draw: Draw) -> Self {
        Self {
            start,
            spread: true,
            specialize: None,
            service,
            draw: Arc::new(Mutex::new(draw)),
            counted: Arc::default(),
        }
    }

    /// Its code can come from stems, which become an instance in this time on average. Starts burn CPU then, as those do
    /// for which stems are worth their memory.
    pub(crate) fn with_stems(self, specialize: Duration) -> Self {
        Self { specialize: Some(specialize), ..self }
    }

    /// Waits for as long as a start of this mean takes.
    async fn take(&self, mean: Duration, deadline: Instant) -> Result<()> {
        let time = match self.spread {
            true => self.draw.lock().between(mean / 2, mean + mean / 2),
            false => mean,
        };
        if Instant::now() + time > deadline {
            tokio::time::sleep_until(deadline).await;
            return Err(Error::new(ErrorKind::Timeout, "start", "longer than the start's deadline"));
        }
        tokio::time::sleep(time).await;
        Ok(())
    }

    fn runs(&self, request: StartRequest) -> Arc<dyn Instance> {
        let now = self.counted.live.fetch_add(1, Relaxed) + 1;
        self.counted.peak.fetch_max(now, Relaxed);
        self.counted.starts.fetch_add(1, Relaxed);
        Arc::new(Running {
            id: request.id,
            service: self.service,
            draw: Arc::clone(&self.draw),
            events: request.events,
            counted: Arc::clone(&self.counted),
            gone: AtomicBool::new(false),
        })
    }

    /// Starts take exactly this long, and calls no time.
    pub(crate) fn exactly(start: Duration) -> Self {
        Self { spread: false, ..Self::new(start, Duration::ZERO, Draw::new(0)) }
    }
}

struct Running {
    id: InstanceId,
    service: Duration,
    draw: Arc<Mutex<Draw>>,
    events: Arc<dyn InstanceEvents>,
    counted: Arc<Counted>,
    gone: AtomicBool,
}

/// A call that runs, counted until it is over, dropped or not.
struct Answering<'a>(&'a Running);

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.counted.ends(self.0.id);
    }
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({})", self.id)
    }
}

#[async_trait]
impl Call for Running {
    async fn call(&self, _: Request, cx: &Cx) -> Result<Answer, CallError> {
        self.counted.begins(self.id);
        let _call = Answering(self);
        let ends = Instant::now() + self.draw.lock().exponential(self.service);
        if !self.service.is_zero() {
            tokio::time::sleep_until(ends.min(cx.deadline)).await;
        }
        if ends > cx.deadline {
            return Err(CallError::sent(Error::new(ErrorKind::Timeout, "call", "simulated: too slow")));
        }
        Ok(Answer::Http(Response::new(Body::from("done"))))
    }
}

#[async_trait]
impl Instance for Running {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    async fn stop(&self, _: Duration) -> Result<()> {
        if !self.gone.swap(true, Relaxed) {
            self.counted.live.fetch_sub(1, Relaxed);
            self.counted.stops.fetch_add(1, Relaxed);
            let running = self.counted.running.lock().get(&self.id).copied().unwrap_or(0);
            self.counted.cut.fetch_add(u64::from(running), Relaxed);
            self.events.exited(self.id, ExitReport::at(Timestamp(0)));
        }
        Ok(())
    }
}

#[async_trait]
impl Runtime for Timed {
    fn name(&self) -> &'static str {
        "timed"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(Isolation::MicroVm);
        capabilities.stems = self.specialize.is_some();
        capabilities.cpu_bound_start = capabilities.stems;
        capabilities
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        let stem = self.specialize.map(|_| StemClass("timed".into()));
        Ok(Artifact::new((), ArtifactInfo { stem, ..ArtifactInfo::default() }))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.take(self.start, request.deadline).await?;
        Ok(self.runs(request))
    }

    async fn start_stem(&self, request: StemRequest) -> Result<Box<dyn Stem>> {
        self.take(self.start, request.deadline).await?;
        Ok(Box::new(Booted { runtime: self.clone(), id: request.id, events: request.events }))
    }

    async fn quiesce(&self) {}
}

/// A stem.
#[derive(Debug)]
struct Booted {
    runtime: Timed,
    id: InstanceId,
    events: Arc<dyn InstanceEvents>,
}

#[async_trait]
impl Stem for Booted {
    async fn specialize(self: Box<Self>, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.runtime.take(self.runtime.specialize.unwrap_or_default(), request.deadline).await?;
        Ok(self.runtime.runs(request))
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.events.exited(self.id, ExitReport::at(Timestamp(0)));
        Ok(())
    }
}
