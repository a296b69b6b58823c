use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{
    Answer, Artifact, ArtifactInfo, Body, Call, CallError, Capabilities, Cx, Deployed, Error, ErrorKind,
    ExitReport, Instance, InstanceEvents, InstanceId, InstanceTarget, LogRecord, LogSink, Request, Response,
    Result, RevisionKey, RevisionSpec, Runtime, StartPhase, StartRequest, Timestamp, Usage,
};
use sas_testkit::{fake::FakeRuntime, runtime, runtime::Fixtures};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    TellsExitTwice,
    NeverTellsExit,
    TellsExitUnderAnotherId,
    TellsExitBeforeTheEnd,
    SecondStopFails,
    SecondStopHangs,
    DroppedStopStopsNothing,
    StopIgnoresGrace,
    StopNeverForces,
    StopDoesNothing,
    DroppedStartLeaks,
    StartsTooEarly,
    AnswersToAnotherId,
    TakesForeignArtifacts,
    MixesUpAnswers,
    TruncatesLargeBodies,
    LosesStreamedBodies,
    IgnoresDeadlines,
    KeepsUnsentRequests,
    ServesAfterItsEnd,
    CrashTakesOthersAlong,
    QuiesceStopsAll,
    QuiesceHangs,
    PreparesAnything,
    PrepareHidesTheField,
    DigestChanges,
    StartIgnoresDeadline,
    CrashOnStartLooksLikeTimeout,
    ShowsSecrets,
    LosesSecrets,
    UsageRunsBackwards,
    DoesWhatItDoesNotClaim,
    SecondSuspendFails,
    LogsUnderAnotherRevision,
    TellsPhasesLate,
    TellsPhasesBackwards,
    CapabilitiesChange,
    TryStartGivesDeadInstances,
    AnswersWithServerErrors,
}

struct Broken {
    inner: Arc<FakeRuntime>,
    bug: Bug,
    leaked: Mutex<Vec<Arc<dyn Instance>>>,
    calls: AtomicU64,
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broken")
    }
}

#[derive(Debug)]
struct Events(Arc<dyn InstanceEvents>, Bug);

impl InstanceEvents for Events {
    fn phase(&self, id: InstanceId, phase: StartPhase) {
        match self.1 {
            Bug::TellsPhasesLate => {
                let events = Arc::clone(&self.0);
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    events.phase(id, phase);
                });
            }
            Bug::TellsPhasesBackwards => {
                self.0.phase(id, phase);
                self.0.phase(id, StartPhase::Spawned);
            }
            _ => self.0.phase(id, phase),
        }
    }

    fn exited(&self, id: InstanceId, report: ExitReport) {
        match self.1 {
            Bug::NeverTellsExit => {}
            Bug::TellsExitUnderAnotherId => self.0.exited(InstanceId(id.0 + 1_000_000), report),
            Bug::TellsExitTwice => {
                self.0.exited(id, report.clone());
                self.0.exited(id, report);
            }
            _ => self.0.exited(id, report),
        }
    }
}

#[derive(Debug)]
struct Logs(Arc<dyn LogSink>);

impl LogSink for Logs {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { instance, request, at, stream, line, .. } = *record;
        self.0.line(&LogRecord::new(instance, RevisionKey(0), at, stream, line).with_request(request));
    }
}

struct BrokenInstance {
    inner: Arc<dyn Instance>,
    runtime: Arc<FakeRuntime>,
    bug: Bug,
    environment: String,
    stopped: AtomicBool,
    suspended: AtomicBool,
    samples: AtomicU64,
    last_body: Mutex<Bytes>,
    ready_at: tokio::time::Instant,
}

impl fmt::Debug for BrokenInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bug == Bug::ShowsSecrets {
            return f.write_str(&self.environment);
        }
        f.write_str("BrokenInstance")
    }
}

fn failed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unexpected, operation, "broken")
}

#[async_trait]
impl Call for BrokenInstance {
    async fn call(&self, request: Request, cx: &Cx) -> Result<Answer, CallError> {
        match self.bug {
            Bug::StartsTooEarly if tokio::time::Instant::now() < self.ready_at => {
                Err(CallError::unsent(failed("call"), request))
            }
            Bug::AnswersWithServerErrors => {
                let mut response = Response::new(Body::empty());
                *response.status_mut() = http::StatusCode::BAD_GATEWAY;
                Ok(Answer::Http(response))
            }
            Bug::MixesUpAnswers => {
                let body = request.into_body().collect(64 << 20).await.unwrap_or_default();
                *self.last_body.lock() = body;
                tokio::task::yield_now().await;
                Ok(Answer::Http(Response::new(Body::from(self.last_body.lock().clone()))))
            }
            Bug::TruncatesLargeBodies => {
                let body = request.into_body().collect(64 << 20).await.unwrap_or_default();
                Ok(Answer::Http(Response::new(Body::from(body.slice(..body.len().min(1 << 20))))))
            }
            Bug::LosesStreamedBodies if request.body().try_clone().is_none() => {
                Ok(Answer::Http(Response::new(Body::empty())))
            }
            Bug::IgnoresDeadlines => {
                let mut cx = *cx;
                cx.deadline += Duration::from_secs(3600);
                self.inner.call(request, &cx).await
            }
            Bug::KeepsUnsentRequests => {
                self.inner.call(request, cx).await.map_err(|error| CallError::sent(error.error))
            }
            Bug::ServesAfterItsEnd => {
                let body = request.into_body().collect(64 << 20).await.unwrap_or_default();
                Ok(Answer::Http(Response::new(Body::from(body))))
            }
            Bug::CrashTakesOthersAlong if request.uri().path() == "/crash" => {
                let answer = self.inner.call(request, cx).await;
                for id in self.runtime.live() {
                    self.runtime.kill(id);
                }
                answer
            }
            _ => self.inner.call(request, cx).await,
        }
    }
}

#[async_trait]
impl Instance for BrokenInstance {
    fn id(&self) -> InstanceId {
        let id = self.inner.id();
        if self.bug == Bug::AnswersToAnotherId { InstanceId(id.0 + 1) } else { id }
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    fn usage(&self) -> Option<Usage> {
        let usage = self.inner.usage()?;
        if self.bug == Bug::UsageRunsBackwards {
            let sample = self.samples.fetch_add(1, SeqCst);
            return Some(Usage::new(1_000_000 - sample * 1000, usage.memory_bytes));
        }
        Some(usage)
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        let again = self.stopped.swap(true, SeqCst);
        match self.bug {
            Bug::SecondStopFails if again => Err(failed("stop")),
            Bug::SecondStopHangs if again => std::future::pending().await,
            Bug::StopDoesNothing => Ok(()),
            Bug::DroppedStopStopsNothing => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                self.inner.stop(grace).await
            }
            Bug::StopIgnoresGrace => self.inner.stop(Duration::ZERO).await,
            Bug::StopNeverForces => self.inner.stop(Duration::from_secs(3600)).await,
            _ => self.inner.stop(grace).await,
        }
    }

    async fn suspend(&self) -> Result<()> {
        if self.bug == Bug::SecondSuspendFails && self.suspended.swap(true, SeqCst) {
            return Err(failed("suspend"));
        }
        self.inner.suspend().await
    }

    async fn resume(&self) -> Result<()> {
        self.suspended.store(false, SeqCst);
        self.inner.resume().await
    }
}

impl Broken {
    fn wrap(&self, request: &StartRequest, inner: Arc<dyn Instance>) -> Arc<dyn Instance> {
        let environment: Vec<String> =
            request.environment().map(|(name, value)| format!("{name}={value}")).collect();
        Arc::new(BrokenInstance {
            inner,
            runtime: Arc::clone(&self.inner),
            bug: self.bug,
            environment: environment.join(" "),
            stopped: AtomicBool::new(false),
            suspended: AtomicBool::new(false),
            samples: AtomicU64::new(0),
            last_body: Mutex::default(),
            ready_at: tokio::time::Instant::now() + Duration::from_millis(30),
        })
    }

    fn request(&self, request: &StartRequest) -> StartRequest {
        let mut request = request.clone();
        request.events = Arc::new(Events(Arc::clone(&request.events), self.bug));
        match self.bug {
            Bug::LogsUnderAnotherRevision => request.logs = Arc::new(Logs(Arc::clone(&request.logs))),
            Bug::LosesSecrets => request.secrets = None,
            Bug::StartIgnoresDeadline => request.deadline += Duration::from_secs(3600),
            _ => {}
        }
        request
    }
}

#[async_trait]
impl Runtime for Broken {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = self.inner.capabilities();
        match self.bug {
            Bug::CapabilitiesChange => {
                capabilities.max_concurrency = u32::try_from(self.calls.fetch_add(1, SeqCst) + 8).ok();
            }
            Bug::DoesWhatItDoesNotClaim => capabilities.suspend = false,
            _ => {}
        }
        capabilities
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        let prepared = self.inner.prepare(spec).await;
        match (self.bug, prepared) {
            (Bug::PreparesAnything, Err(_)) => self.inner.prepare(&FakeRuntime::spec("echo")).await,
            (Bug::PrepareHidesTheField, Err(_)) => {
                Err(Error::new(ErrorKind::InvalidSpec, "prepare", "something is wrong"))
            }
            (Bug::DigestChanges, Ok(_)) => {
                let count = self.calls.fetch_add(1, SeqCst);
                let info = ArtifactInfo { digest: format!("sha256:{count:064x}"), ..ArtifactInfo::default() };
                Ok(Artifact::new((), info))
            }
            (_, prepared) => prepared,
        }
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let mut inner = self.request(&request);
        if self.bug == Bug::TakesForeignArtifacts {
            let artifact = self.inner.prepare(&FakeRuntime::spec("echo")).await?;
            let mut foreign = Deployed::clone(&inner.deployed);
            foreign.artifact = artifact;
            inner.deployed = Arc::new(foreign);
        }
        if self.bug == Bug::DroppedStartLeaks {
            // The start is done; what comes after it can be dropped.
            let instance = self.inner.start(inner).await?;
            self.leaked.lock().push(Arc::clone(&instance));
            tokio::time::sleep(Duration::from_millis(3)).await;
            self.leaked.lock().retain(|leaked| leaked.id() != instance.id());
            return Ok(self.wrap(&request, instance));
        }
        let started = self.inner.start(inner).await.map_err(|mut error| {
            if self.bug == Bug::CrashOnStartLooksLikeTimeout && error.kind == ErrorKind::Crashed {
                error.kind = ErrorKind::Timeout;
            }
            error
        })?;
        if self.bug == Bug::TellsExitBeforeTheEnd {
            request.events.exited(request.id, ExitReport::at(Timestamp(0)));
        }
        Ok(self.wrap(&request, started))
    }

    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        if self.bug != Bug::TryStartGivesDeadInstances {
            return None;
        }
        let started = self.inner.try_start(&self.request(request))?;
        Some(started.map(|instance| {
            self.inner.kill(instance.id());
            self.wrap(request, instance)
        }))
    }

    async fn quiesce(&self) {
        match self.bug {
            Bug::QuiesceStopsAll => {
                for id in self.inner.live() {
                    self.inner.kill(id);
                }
            }
            Bug::QuiesceHangs => std::future::pending().await,
            _ => self.inner.quiesce().await,
        }
    }
}

fn fixtures(bug: Bug) -> Fixtures {
    let immediate = bug == Bug::TryStartGivesDeadInstances;
    let inner = FakeRuntime::with(Arc::new(sas_core::SystemClock), immediate);
    let watched = Arc::clone(&inner);
    let broken = Broken { inner, bug, leaked: Mutex::default(), calls: AtomicU64::new(0) };
    let mut with_port = FakeRuntime::spec("echo");
    with_port.port = Some(8080);
    let spec = FakeRuntime::spec;
    Fixtures::new(Arc::new(broken), spec("echo"))
        .slow(spec("slow"))
        .endless(spec("endless"))
        .crash_on_start(spec("crash_on_start"))
        .never_ready(spec("never_ready"))
        .crash_on_call(spec("crash_on_call"))
        .ignores_stop(spec("ignores_stop"))
        .chatty(spec("chatty"))
        .environment(spec("environment"))
        .invalid(spec("nonsense"), "source.function")
        .invalid(with_port, "port")
        .census(move || watched.live().iter().map(ToString::to_string).collect())
}

const MUTANTS: [(Bug, &str); 39] = [
    (Bug::TellsExitTwice, "tells its exit once"),
    (Bug::NeverTellsExit, "tells its exit once"),
    (Bug::TellsExitUnderAnotherId, "tells its exit once"),
    (Bug::TellsExitBeforeTheEnd, "tells its exit once"),
    (Bug::SecondStopFails, "stop is idempotent"),
    (Bug::SecondStopHangs, "stop is idempotent"),
    (Bug::DroppedStopStopsNothing, "a stop that is dropped"),
    (Bug::StopIgnoresGrace, "running calls finish within the grace"),
    (Bug::StopNeverForces, "ended by force"),
    (Bug::StopDoesNothing, "stop ends the instance"),
    (Bug::DroppedStartLeaks, "a dropped start"),
    (Bug::StartsTooEarly, "start resolves when the instance can serve"),
    (Bug::AnswersToAnotherId, "has the id of its request"),
    (Bug::TakesForeignArtifacts, "artifact of another runtime"),
    (Bug::MixesUpAnswers, "concurrent calls"),
    (Bug::TruncatesLargeBodies, "a large body"),
    (Bug::LosesStreamedBodies, "a streamed body"),
    (Bug::IgnoresDeadlines, "ends at its deadline"),
    (Bug::KeepsUnsentRequests, "hands the request back"),
    (Bug::ServesAfterItsEnd, "hands the request back"),
    (Bug::CrashTakesOthersAlong, "a crash fails its call"),
    (Bug::QuiesceStopsAll, "quiesce stops nothing"),
    (Bug::QuiesceHangs, "quiesce stops nothing"),
    (Bug::PreparesAnything, "prepare refuses"),
    (Bug::PrepareHidesTheField, "prepare refuses"),
    (Bug::DigestChanges, "prepare is idempotent"),
    (Bug::StartIgnoresDeadline, "never ready times out"),
    (Bug::CrashOnStartLooksLikeTimeout, "ends before it is ready"),
    (Bug::ShowsSecrets, "secrets are in no Debug"),
    (Bug::LosesSecrets, "declared environment"),
    (Bug::UsageRunsBackwards, "never runs backwards"),
    (Bug::DoesWhatItDoesNotClaim, "not claimed"),
    (Bug::SecondSuspendFails, "suspend and resume are idempotent"),
    (Bug::LogsUnderAnotherRevision, "output reaches the log sink"),
    (Bug::TellsPhasesLate, "phases are told in order"),
    (Bug::TellsPhasesBackwards, "phases are told in order"),
    (Bug::CapabilitiesChange, "are constant"),
    (Bug::TryStartGivesDeadInstances, "try_start does what start does"),
    (Bug::AnswersWithServerErrors, "a call gets its answer"),
];

#[tokio::test(start_paused = true)]
async fn every_broken_runtime_is_refused() {
    for (bug, by) in MUTANTS {
        let report = runtime::suite(async || ((), fixtures(bug))).await;
        caught(bug, &report, by);
    }
}
