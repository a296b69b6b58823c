//! A runtime without anything behind it.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{
    Answer, Artifact, ArtifactInfo, Body, BoxError, Call, CallError, Capabilities, Clock, Cx, Error,
    ErrorKind, ExitReport, Instance, InstanceEvents, InstanceId, InstanceTarget, Isolation, LogRecord,
    LogSink, LogStream, Request, Response, Result, Retry, RevisionKey, RevisionSpec, Runtime, Source,
    SpecErrors, StartPhase, StartRequest, SystemClock, Usage,
};
use tokio::time::Instant;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};

use crate::runtime::Fixtures;

/// A runtime in memory whose start times and failures a test sets, and whose instances it can kill.
///
/// The code of a revision is `Source::Function(program)`, where the program is one of those that
/// [`Fixtures`] asks for, under the same name: `echo`, `slow`, `endless`, `crash_on_start`, `never_ready`,
/// `crash_on_call`, `ignores_stop`, `chatty`, `environment`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// use sas_core::{Error, ErrorKind};
/// use sas_testkit::fake::FakeRuntime;
/// use std::time::Duration;
///
/// let runtime = FakeRuntime::new();
/// runtime.set_start_time(Duration::from_millis(1500));
/// runtime.fail_next_start(Error::new(ErrorKind::Crashed, "start", "no luck"));
/// assert_eq!(runtime.started(), 0);
/// # }
/// ```
#[derive(Debug)]
pub struct FakeRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    live: Mutex<BTreeMap<InstanceId, Weak<FakeInstance>>>,
    starting: AtomicU32,
    started: AtomicU64,
    most: AtomicU32,
    immediate: AtomicBool,
    start_time: Mutex<Duration>,
    script: Mutex<VecDeque<Script>>,
    exits_twice: AtomicBool,
    usage: Mutex<Option<Usage>>,
    reapers: TaskTracker,
    clock: Arc<dyn Clock>,
    capabilities: Capabilities,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("live", &self.live.lock().len()).finish_non_exhaustive()
    }
}

/// What the next start does instead of the usual.
#[derive(Debug)]
enum Script {
    Fail(Error),
    Hang,
    Take(Duration),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Echo,
    Slow,
    Endless,
    CrashOnStart,
    NeverReady,
    CrashOnCall,
    IgnoresStop,
    Chatty,
    Environment,
}

const PROGRAMS: [(&str, Program); 9] = [
    ("echo", Program::Echo),
    ("slow", Program::Slow),
    ("endless", Program::Endless),
    ("crash_on_start", Program::CrashOnStart),
    ("never_ready", Program::NeverReady),
    ("crash_on_call", Program::CrashOnCall),
    ("ignores_stop", Program::IgnoresStop),
    ("chatty", Program::Chatty),
    ("environment", Program::Environment),
];

impl FakeRuntime {
    /// The name by which specs ask for it.
    pub const NAME: &'static str = "fake";

    /// A runtime whose starts take no time but are awaited.
    pub fn new() -> Arc<Self> {
        Self::with(Arc::new(SystemClock), false)
    }

    /// A runtime on `clock`; `immediate` ones start by [`Runtime::try_start`] while no time or failure is set.
    pub fn with(clock: Arc<dyn Clock>, immediate: bool) -> Arc<Self> {
        let reapers = TaskTracker::new();
        reapers.close();
        let mut capabilities = Capabilities::new(Isolation::None);
        capabilities.suspend = true;
        capabilities.usage = true;
        Arc::new(Self {
            shared: Arc::new(Shared {
                live: Mutex::default(),
                starting: AtomicU32::new(0),
                started: AtomicU64::new(0),
                most: AtomicU32::new(0),
                immediate: AtomicBool::new(immediate),
                start_time: Mutex::new(Duration::ZERO),
                script: Mutex::default(),
                exits_twice: AtomicBool::new(false),
                usage: Mutex::default(),
                reapers,
                clock,
                capabilities,
            }),
        })
    }

    /// A spec of one of its programs.
    pub fn spec(program: &str) -> RevisionSpec {
        RevisionSpec::new(Self::NAME, Source::Function(program.to_owned()))
    }

    /// Itself with all fixtures of the runtime suite.
    pub fn fixtures() -> Fixtures {
        Self::new().into_fixtures()
    }

    /// This runtime with all fixtures of the runtime suite.
    pub fn into_fixtures(self: Arc<Self>) -> Fixtures {
        let shared = Arc::clone(&self.shared);
        let census = move || {
            let mut left: Vec<String> = shared.live.lock().keys().map(ToString::to_string).collect();
            left.extend((0..shared.starting.load(SeqCst)).map(|start| format!("start {start}")));
            left
        };
        let mut with_port = Self::spec("echo");
        with_port.port = Some(8080);
        Fixtures::new(self, Self::spec("echo"))
            .slow(Self::spec("slow"))
            .endless(Self::spec("endless"))
            .crash_on_start(Self::spec("crash_on_start"))
            .never_ready(Self::spec("never_ready"))
            .crash_on_call(Self::spec("crash_on_call"))
            .ignores_stop(Self::spec("ignores_stop"))
            .chatty(Self::spec("chatty"))
            .environment(Self::spec("environment"))
            .invalid(Self::spec("nonsense"), "source.function")
            .invalid(with_port, "port")
            .census(census)
    }

    /// From now on a start takes this long.
    pub fn set_start_time(&self, time: Duration) {
        *self.shared.start_time.lock() = time;
    }

    /// The next start that has no script yet fails with `error`.
    pub fn fail_next_start(&self, error: Error) {
        self.shared.script.lock().push_back(Script::Fail(error));
    }

    /// The next start that has no script yet never becomes ready.
    pub fn hang_next_start(&self) {
        self.shared.script.lock().push_back(Script::Hang);
    }

    /// The next start that has no script yet takes `time`.
    pub fn next_start_takes(&self, time: Duration) {
        self.shared.script.lock().push_back(Script::Take(time));
    }

    /// Forgets what the coming starts were told to do; those under way go on.
    pub fn forget_script(&self) {
        self.shared.script.lock().clear();
    }

    /// From now on each exit is told twice, as by a backend that watches a process in two ways.
    pub fn tell_exits_twice(&self) {
        self.shared.exits_twice.store(true, SeqCst);
    }

    /// From now on each instance says that it has used this, whatever it did; `None`: the truth again.
    pub fn set_usage(&self, usage: Option<Usage>) {
        *self.shared.usage.lock() = usage;
    }

    /// Starts that succeeded so far.
    pub fn started(&self) -> u64 {
        self.shared.started.load(SeqCst)
    }

    /// How many starts are under way now.
    pub fn starting(&self) -> u32 {
        self.shared.starting.load(SeqCst)
    }

    /// The most starts that were under way at once.
    pub fn most_starting(&self) -> u32 {
        self.shared.most.load(SeqCst)
    }

    /// The instances that run now.
    pub fn live(&self) -> Vec<InstanceId> {
        self.shared.live.lock().keys().copied().collect()
    }

    /// Kills an instance as SIGKILL would a process: its calls fail, its exit is told. False when there is none.
    pub fn kill(&self, id: InstanceId) -> bool {
        let instance = self.shared.live.lock().get(&id).and_then(Weak::upgrade);
        match instance {
            Some(instance) => {
                instance.end(Some(9));
                true
            }
            None => false,
        }
    }

    fn begin(&self, request: &StartRequest) -> Result<Arc<dyn Instance>> {
        let Some(program) = request.deployed.artifact.downcast::<Program>() else {
            let message = "artifact: not one of the fake runtime";
            return Err(Error::new(ErrorKind::InvalidSpec, "start", message));
        };
        if *program == Program::CrashOnStart {
            return Err(Error::new(ErrorKind::Crashed, "start", "the program ended before it was ready"));
        }
        let environment: Vec<String> =
            request.environment().map(|(name, value)| format!("{name}={value}")).collect();
        let instance = Arc::new_cyclic(|this| FakeInstance {
            this: this.clone(),
            id: request.id,
            revision: request.revision,
            program: *program,
            environment: environment.join("\n"),
            logs: Arc::clone(&request.logs),
            events: Arc::clone(&request.events),
            shared: Arc::clone(&self.shared),
            stopping: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            cut: CancellationToken::new(),
            calls: TaskTracker::new(),
            answered: AtomicU64::new(0),
        });
        instance.calls.close();
        self.shared.live.lock().insert(request.id, Arc::downgrade(&instance));
        self.shared.started.fetch_add(1, SeqCst);
        request.events.phase(request.id, StartPhase::Ready);
        Ok(instance)
    }
}

/// Counts a start while it is under way, dropped or not.
struct Starting<'a>(&'a Shared);

impl<'a> Starting<'a> {
    fn new(shared: &'a Shared) -> Self {
        let now = shared.starting.fetch_add(1, SeqCst) + 1;
        shared.most.fetch_max(now, SeqCst);
        Self(shared)
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        self.shared.capabilities
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        let mut errors = SpecErrors::default();
        let program = match &spec.source {
            Source::Function(name) => {
                PROGRAMS.iter().find(|(known, _)| known == name).map(|(_, program)| *program)
            }
            _ => None,
        };
        if program.is_none() {
            errors.push(
                "source.function",
                format!("{:?}", spec.source),
                "one of the fake runtime's programs",
            );
        }
        if let Some(port) = spec.port {
            errors.push("port", port, "leave it out: nothing listens");
        }
        errors.into_result()?;
        // Absent only together with an error.
        let program = program.unwrap_or(Program::Echo);
        Ok(Artifact::new(program, ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let _starting = Starting::new(&self.shared);
        let script = self.shared.script.lock().pop_front();
        let mut time = *self.shared.start_time.lock();
        match script {
            Some(Script::Fail(error)) => return Err(error),
            Some(Script::Hang) => time = Duration::MAX,
            Some(Script::Take(other)) => time = other,
            None => {}
        }
        if request.deployed.artifact.downcast::<Program>() == Some(&Program::NeverReady) {
            time = Duration::MAX;
        }
        if !time.is_zero() {
            let ready_at = Instant::now().checked_add(time);
            if ready_at.is_none_or(|ready_at| ready_at > request.deadline) {
                tokio::time::sleep_until(request.deadline).await;
                return Err(Error::new(ErrorKind::Timeout, "start", "not ready by the deadline"));
            }
            tokio::time::sleep(time).await;
        }
        self.begin(&request)
    }

    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        let usual = self.shared.immediate.load(SeqCst)
            && self.shared.script.lock().is_empty()
            && self.shared.start_time.lock().is_zero()
            && request.deployed.artifact.downcast::<Program>() != Some(&Program::NeverReady);
        usual.then(|| self.begin(request))
    }

    async fn quiesce(&self) {
        self.shared.reapers.wait().await;
    }
}

/// An instance of the [`FakeRuntime`].
pub struct FakeInstance {
    this: Weak<Self>,
    id: InstanceId,
    revision: RevisionKey,
    program: Program,
    environment: String,
    logs: Arc<dyn LogSink>,
    events: Arc<dyn InstanceEvents>,
    shared: Arc<Shared>,
    stopping: AtomicBool,
    gone: AtomicBool,
    suspended: AtomicBool,
    cut: CancellationToken,
    calls: TaskTracker,
    answered: AtomicU64,
}

impl fmt::Debug for FakeInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeInstance")
            .field("id", &self.id)
            .field("program", &self.program)
            .finish_non_exhaustive()
    }
}

impl FakeInstance {
    fn end(&self, signal: Option<i32>) {
        if self.gone.swap(true, SeqCst) {
            return;
        }
        self.stopping.store(true, SeqCst);
        self.cut.cancel();
        self.shared.live.lock().remove(&self.id);
        let report = ExitReport::at(self.shared.clock.now());
        let report = signal.map_or(report.clone(), |signal| report.with_signal(signal));
        if self.shared.exits_twice.load(SeqCst) {
            self.events.exited(self.id, report.clone());
        }
        self.events.exited(self.id, report);
    }

    async fn run(&self, request: Request) -> Result<Response, CallError> {
        self.answered.fetch_add(1, SeqCst);
        let body = match self.program {
            Program::Slow => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                Body::from("slow")
            }
            Program::Endless => Body::new(Endless {
                next: Box::pin(tokio::time::sleep(Duration::ZERO)),
                cut: Box::pin(self.cut.clone().cancelled_owned()),
                _call: self.calls.token(),
            }),
            Program::CrashOnCall if request.uri().path() == "/crash" => {
                self.end(Some(11));
                return Err(CallError::sent(Error::new(ErrorKind::Crashed, "call", "killed by signal 11")));
            }
            Program::Environment => Body::from(self.environment.clone()),
            program => {
                if program == Program::Chatty {
                    let now = self.shared.clock.now();
                    let line = b"conformance-output: a request";
                    self.logs.line(&LogRecord::new(self.id, self.revision, now, LogStream::Stdout, line));
                }
                // Read in full before it is answered, as most programs do.
                let body = request.into_body().collect(64 << 20).await.map_err(|error| {
                    CallError::sent(
                        Error::new(ErrorKind::Crashed, "call", "the request broke off").with_source(error),
                    )
                })?;
                Body::from(body)
            }
        };
        Ok(Response::new(body))
    }
}

/// A body without end.
struct Endless {
    next: Pin<Box<tokio::time::Sleep>>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _call: tokio_util::task::task_tracker::TaskTrackerToken,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BoxError>>> {
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err("the instance is gone".into())));
        }
        std::task::ready!(self.next.as_mut().poll(cx));
        self.next.as_mut().reset(Instant::now() + Duration::from_millis(50));
        Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(b"more and ")))))
    }
}

impl Drop for FakeInstance {
    fn drop(&mut self) {
        self.end(None);
    }
}

#[async_trait]
impl Call for FakeInstance {
    async fn call(&self, request: Request, cx: &Cx) -> Result<Answer, CallError> {
        if self.stopping.load(SeqCst) {
            let error = Error::new(ErrorKind::Unavailable, "call", "the instance is stopping")
                .with_retry(Retry::AnotherInstance);
            return Err(CallError::unsent(error, request));
        }
        let _call = self.calls.token();
        tokio::select! {
            biased;
            () = self.cut.cancelled() => {
                Err(CallError::sent(Error::new(ErrorKind::Crashed, "call", "the instance ended")))
            }
            answered = self.run(request) => answered.map(Answer::Http),
            () = tokio::time::sleep_until(cx.deadline) => {
                Err(CallError::sent(Error::new(ErrorKind::Timeout, "call", "no answer by the deadline")))
            }
        }
    }
}

#[async_trait]
impl Instance for FakeInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    fn usage(&self) -> Option<Usage> {
        let told = *self.shared.usage.lock();
        Some(told.unwrap_or_else(|| Usage::new(self.answered.load(SeqCst) * 1_000_000, 1 << 20)))
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        self.stopping.store(true, SeqCst);
        let Some(this) = self.this.upgrade() else { return Ok(()) };
        if self.gone.load(SeqCst) {
            return Ok(());
        }
        let waits = async move {
            let polite = async {
                this.calls.wait().await;
                if this.program == Program::IgnoresStop {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                () = this.cut.cancelled() => {}
                _ = tokio::time::timeout(grace, polite) => this.end(None),
            }
        };
        let joined = self.shared.reapers.spawn(waits).await;
        joined.map_err(|error| {
            Error::new(ErrorKind::Unexpected, "stop", "the task that stops it was lost").with_source(error)
        })
    }

    async fn suspend(&self) -> Result<()> {
        if self.gone.load(SeqCst) {
            return Err(Error::new(ErrorKind::Crashed, "suspend", "the instance is gone"));
        }
        self.suspended.store(true, SeqCst);
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        if self.gone.load(SeqCst) {
            return Err(Error::new(ErrorKind::Crashed, "resume", "the instance is gone"));
        }
        self.suspended.store(false, SeqCst);
        Ok(())
    }
}
