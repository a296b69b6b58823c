//! A runtime whose instances exist in virtual time only.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_core::{
    Answer, Artifact, ArtifactInfo, Body, Call, CallError, Capabilities, Clock, Cx, EnvValue, Error,
    ErrorKind, ExitReport, Instance, InstanceEvents, InstanceId, InstanceTarget, Isolation, Purpose, Request,
    Response, Result, Retry, RevisionSpec, Runtime, StartRequest,
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::task::TaskTracker;

use crate::{
    Plant,
    draw::Draw,
    history::{Fact, History},
};

/// Header with the simulator's number of a request.
pub const REQUEST: &str = "x-sim-request";
/// Variable with the concurrency that a deploy asked for.
pub const LIMIT: &str = "SIM_LIMIT";
/// Variable of a revision that answers with 500.
pub const BAD: &str = "SIM_BAD";

/// How long starts take, from measurements of real programs on two cores (milliseconds, exec to first answer):
/// native 1, Node and Python about 50, Java hello 145 to 178, a Spring application 600 to 1,475.
pub const START_TIMES_MS: [u64; 8] = [1, 2, 50, 60, 145, 178, 600, 1475];

/// What the next start does instead of the usual.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFault {
    /// It fails after its time.
    Fail,
    /// It never ends by itself.
    Hang,
    /// It succeeds, and the instance dies this soon.
    Die(Duration),
}

/// A runtime whose instances live in virtual time and do what the plan of a run says.
pub struct SimRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    history: Arc<History>,
    clock: Arc<dyn Clock>,
    draw: Mutex<Draw>,
    live: Mutex<BTreeMap<InstanceId, Weak<SimInstance>>>,
    faults: Mutex<VecDeque<StartFault>>,
    start_ms: u64,
    service: Mutex<Duration>,
    tasks: TaskTracker,
    plant: Option<Plant>,
    epoch: u64,
    dead: AtomicBool,
    exits_twice: AtomicBool,
}

impl Shared {
    fn tell(&self, fact: Fact) {
        // A dead host tells nobody anything.
        if !self.dead.load(SeqCst) {
            self.history.tell(fact);
        }
    }

    fn number(&self, id: InstanceId) -> u64 {
        (self.epoch << 48) ^ id.0
    }
}

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimRuntime").field("live", &self.shared.live.lock().len()).finish_non_exhaustive()
    }
}

impl SimRuntime {
    /// A runtime that tells `history`.
    pub fn new(
        history: Arc<History>,
        clock: Arc<dyn Clock>,
        mut draw: Draw,
        plant: Option<Plant>,
        epoch: u64,
    ) -> Self {
        let start_ms = *draw.pick(&START_TIMES_MS).unwrap_or(&50);
        let tasks = TaskTracker::new();
        tasks.close();
        Self {
            shared: Arc::new(Shared {
                history,
                clock,
                draw: Mutex::new(draw),
                live: Mutex::default(),
                faults: Mutex::default(),
                start_ms,
                service: Mutex::new(Duration::from_millis(40)),
                tasks,
                plant,
                epoch,
                dead: AtomicBool::new(false),
                exits_twice: AtomicBool::new(false),
            }),
        }
    }

    /// The next start has this fault.
    pub fn next_start(&self, fault: StartFault) {
        self.shared.faults.lock().push_back(fault);
    }

    /// Calls take this long on average from now on.
    pub fn set_service_time(&self, mean: Duration) {
        *self.shared.service.lock() = mean;
    }

    /// Each exit is told twice from now on.
    pub fn tell_exits_twice(&self) {
        self.shared.exits_twice.store(true, SeqCst);
    }

    /// No more faults, and calls are as quick as at first.
    pub fn mend(&self) {
        self.shared.faults.lock().clear();
        self.shared.exits_twice.store(false, SeqCst);
        self.set_service_time(Duration::from_millis(40));
    }

    /// The instances that run.
    pub fn live(&self) -> Vec<InstanceId> {
        self.shared.live.lock().keys().copied().collect()
    }

    /// Kills the `index`-th of the running instances, counted around.
    pub fn kill(&self, index: u64) -> bool {
        self.nth(index).is_some_and(|victim| victim.end(true))
    }

    /// From now on the `index`-th of the running instances, counted around, fails its probes: it answers them with 500,
    /// or not at all. Requests it answers as before, so that only its probes can tell.
    pub fn fall_ill(&self, index: u64, hangs: bool) -> bool {
        let Some(instance) = self.nth(index) else { return false };
        if instance.health.swap(if hangs { HANGS } else { FAILS }, SeqCst) == WELL {
            self.shared.tell(Fact::Ill { instance: self.shared.number(instance.id) });
        }
        true
    }

    fn nth(&self, index: u64) -> Option<Arc<SimInstance>> {
        let live = self.shared.live.lock();
        let count = live.len().max(1) as u64;
        live.values().nth((index % count) as usize).and_then(Weak::upgrade)
    }

    /// Its host dies, and the instances outlive it: nobody hears of their end.
    pub(crate) fn abandon(&self) {
        self.shared.dead.store(true, SeqCst);
    }

    /// All instances die with their host, and nobody is left to be told.
    pub fn kill_all(&self) {
        let all: Vec<_> = self.shared.live.lock().values().filter_map(Weak::upgrade).collect();
        for instance in &all {
            self.shared.tell(Fact::Gone { instance: self.shared.number(instance.id), killed: true });
        }
        self.shared.dead.store(true, SeqCst);
        for instance in all {
            instance.end(true);
        }
    }
}

#[async_trait]
impl Runtime for SimRuntime {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::MicroVm)
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Ok(Artifact::new((), ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let shared = &self.shared;
        if shared.dead.load(SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "start", "simulated: the host is dead"));
        }
        let mut starting = StartGuard { shared, id: request.id, done: false };
        let revision = (shared.epoch << 48) ^ request.revision.0;
        shared.tell(Fact::Starting { instance: shared.number(request.id), revision });
        let fault = shared.faults.lock().pop_front();
        // Half to twice the usual time: starts of one program differ about that much under load.
        let time = {
            let usual = Duration::from_millis(shared.start_ms);
            shared.draw.lock().between(usual / 2, usual * 2)
        };
        let ready_at = if fault == Some(StartFault::Hang) { None } else { Some(Instant::now() + time) };
        match ready_at.filter(|at| *at <= request.deadline) {
            Some(at) => tokio::time::sleep_until(at).await,
            None => {
                tokio::time::sleep_until(request.deadline).await;
                return Err(Error::new(ErrorKind::Timeout, "start", "simulated: not ready in time"));
            }
        }
        if fault == Some(StartFault::Fail) {
            return Err(Error::new(ErrorKind::Crashed, "start", "simulated: ended before it was ready"));
        }
        starting.done = true;
        let instance = Arc::new_cyclic(|this| SimInstance {
            this: this.clone(),
            id: request.id,
            limit: promised(&request),
            bad: request.spec().env.contains_key(BAD),
            health: AtomicU8::new(WELL),
            events: Arc::clone(&request.events),
            shared: Arc::clone(shared),
            gone: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            calls: AtomicU32::new(0),
            changed: Notify::new(),
        });
        shared.live.lock().insert(request.id, Arc::downgrade(&instance));
        shared.tell(Fact::Ready { instance: shared.number(request.id) });
        if let Some(StartFault::Die(after)) = fault {
            let dying = Arc::downgrade(&instance);
            shared.tasks.spawn(async move {
                tokio::time::sleep(after).await;
                if let Some(instance) = dying.upgrade() {
                    instance.end(true);
                }
            });
        }
        Ok(instance)
    }

    async fn quiesce(&self) {
        self.shared.tasks.wait().await;
    }
}

/// What the one who deployed was promised, whatever the pool made of it.
fn promised(request: &StartRequest) -> u32 {
    match request.spec().env.get(LIMIT) {
        Some(EnvValue::Literal(limit)) => limit.parse().unwrap_or(0),
        _ => request.spec().concurrency,
    }
}

struct StartGuard<'a> {
    shared: &'a Shared,
    id: InstanceId,
    done: bool,
}

impl Drop for StartGuard<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.shared.tell(Fact::Gone { instance: self.shared.number(self.id), killed: false });
        }
    }
}

/// What an instance answers to probes.
const WELL: u8 = 0;
const FAILS: u8 = 1;
const HANGS: u8 = 2;

struct SimInstance {
    this: Weak<Self>,
    id: InstanceId,
    limit: u32,
    /// Answers requests with 500.
    bad: bool,
    health: AtomicU8,
    events: Arc<dyn InstanceEvents>,
    shared: Arc<Shared>,
    gone: AtomicBool,
    stopping: AtomicBool,
    calls: AtomicU32,
    changed: Notify,
}

impl fmt::Debug for SimInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimInstance").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SimInstance {
    fn end(&self, killed: bool) -> bool {
        if self.gone.swap(true, SeqCst) {
            return false;
        }
        self.shared.live.lock().remove(&self.id);
        self.shared.tell(Fact::Gone { instance: self.shared.number(self.id), killed });
        self.changed.notify_waiters();
        let report = ExitReport::at(self.shared.clock.now());
        let report = if killed { report.with_signal(9) } else { report };
        if self.shared.exits_twice.load(SeqCst) {
            self.events.exited(self.id, report.clone());
        }
        self.events.exited(self.id, report);
        true
    }

    /// The answer to a probe.
    async fn probed(&self, cx: &Cx) -> Result<Answer, CallError> {
        let status = match self.health.load(SeqCst) {
            WELL => http::StatusCode::OK,
            FAILS => http::StatusCode::INTERNAL_SERVER_ERROR,
            _ => {
                tokio::time::sleep_until(cx.deadline).await;
                let error = Error::new(ErrorKind::Timeout, "call", "simulated: it does not answer");
                return Err(CallError::sent(error));
            }
        };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        Ok(Answer::Http(response))
    }

    async fn until(&self, condition: impl Fn() -> bool) {
        loop {
            let changed = self.changed.notified();
            if condition() {
                return;
            }
            changed.await;
        }
    }
}

struct Answering<'a> {
    instance: &'a SimInstance,
    answered: bool,
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        let instance = self.instance;
        if !self.answered {
            instance.shared.tell(Fact::CutShort { instance: instance.shared.number(instance.id) });
        }
        instance.calls.fetch_sub(1, SeqCst);
        instance.changed.notify_waiters();
    }
}

impl Drop for SimInstance {
    fn drop(&mut self) {
        self.end(false);
    }
}

#[async_trait]
impl Call for SimInstance {
    async fn call(&self, request: Request, cx: &Cx) -> Result<Answer, CallError> {
        if self.gone.load(SeqCst) || self.stopping.load(SeqCst) {
            if cx.purpose == Purpose::Probe {
                let error = Error::new(ErrorKind::Unavailable, "call", "simulated: it ends");
                return Err(CallError::unsent(error, request));
            }
            self.shared.tell(Fact::GivenBack { instance: self.shared.number(self.id) });
            let error = Error::new(ErrorKind::Unavailable, "call", "simulated: the instance is stopping")
                .with_retry(Retry::AnotherInstance);
            return Err(CallError::unsent(error, request));
        }
        if cx.purpose == Purpose::Probe {
            return self.probed(cx).await;
        }
        let at_once = self.calls.fetch_add(1, SeqCst) + 1;
        let mut call = Answering { instance: self, answered: false };
        let number =
            request.headers().get(REQUEST).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        match (number, request.headers().get("ce-id").and_then(|value| value.to_str().ok())) {
            (Some(request), _) => self.shared.tell(Fact::Executed {
                request,
                instance: self.shared.number(self.id),
                at_once,
                limit: self.limit,
            }),
            (None, Some(event)) => self
                .shared
                .tell(Fact::Fired { event: event.to_owned(), instance: self.shared.number(self.id) }),
            (None, None) => {}
        }
        let time = {
            let mean = *self.shared.service.lock();
            self.shared.draw.lock().exponential(mean)
        };
        let outcome = tokio::select! {
            biased;
            () = self.until(|| self.gone.load(SeqCst)) => {
                Err(CallError::sent(Error::new(ErrorKind::Crashed, "call", "simulated: the instance died")))
            }
            () = tokio::time::sleep(time) => {
                let mut response = Response::new(Body::from("done"));
                if self.bad {
                    *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                }
                Ok(Answer::Http(response))
            }
            () = tokio::time::sleep_until(cx.deadline) => {
                Err(CallError::sent(Error::new(ErrorKind::Timeout, "call", "simulated: too slow")))
            }
        };
        call.answered = outcome.is_ok();
        if self.shared.plant == Some(Plant::HandsBackUsedRequests)
            && matches!(&outcome, Err(failed) if failed.error.kind == ErrorKind::Crashed)
        {
            let error =
                Error::new(ErrorKind::Unavailable, "call", "planted").with_retry(Retry::AnotherInstance);
            drop(call);
            return Err(CallError::unsent(error, request));
        }
        outcome
    }
}

#[async_trait]
impl Instance for SimInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        self.stopping.store(true, SeqCst);
        let Some(this) = self.this.upgrade() else { return Ok(()) };
        if self.gone.load(SeqCst) {
            return Ok(());
        }
        if self.calls.load(SeqCst) == 0 {
            self.end(false);
            return Ok(());
        }
        let waits = async move {
            let idle = this.until(|| this.calls.load(SeqCst) == 0 || this.gone.load(SeqCst));
            let _ = tokio::time::timeout(grace, idle).await;
            this.end(false);
        };
        let joined = self.shared.tasks.spawn(waits).await;
        joined.map_err(|error| Error::new(ErrorKind::Unexpected, "stop", "simulated").with_source(error))
    }
}
