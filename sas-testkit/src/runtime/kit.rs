//! What the checks start instances with, and what they are told.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{
    Artifact, Body, Cx, Deployed, Error, ExitReport, Instance, InstanceEvents, InstanceId, LogRecord,
    LogSink, LogStream, Request, RequestId, Result, RevisionKey, RevisionName, RevisionSpec, Secret,
    StartPhase, StartRequest, StemRequest, TenantKey,
};
use tokio::time::Instant;

use super::Fixtures;
use crate::{
    check::{Stop, Verdict, ensure, eventually, within},
    client,
};

/// Who wrote what, and where.
type Line = (InstanceId, RevisionKey, LogStream, Vec<u8>);

/// What instances told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) phases: Mutex<Vec<(InstanceId, StartPhase)>>,
    pub(crate) exits: Mutex<Vec<(InstanceId, ExitReport)>>,
    pub(crate) lines: Mutex<Vec<Line>>,
}

impl Told {
    pub(crate) fn exits_of(&self, id: InstanceId) -> usize {
        self.exits.lock().iter().filter(|(of, _)| *of == id).count()
    }
}

impl InstanceEvents for Told {
    fn phase(&self, id: InstanceId, phase: StartPhase) {
        self.phases.lock().push((id, phase));
    }
    fn exited(&self, id: InstanceId, report: ExitReport) {
        self.exits.lock().push((id, report));
    }
}

impl LogSink for Told {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { instance, revision, stream, line, .. } = *record;
        self.lines.lock().push((instance, revision, stream, line.to_vec()));
    }
}

/// The subject of the runtime checks.
pub(crate) struct Kit {
    pub(crate) fixtures: Fixtures,
    pub(crate) told: Arc<Told>,
    next: AtomicU64,
}

/// How long an exit may take to be told after its cause.
pub(crate) const EXIT_LIMIT: Duration = Duration::from_secs(5);
/// How long a stop may take beyond its grace.
pub(crate) const STOP_LIMIT: Duration = Duration::from_secs(10);

impl Kit {
    pub(crate) fn new(fixtures: Fixtures) -> Self {
        Self { fixtures, told: Arc::default(), next: AtomicU64::new(1) }
    }

    pub(crate) fn id(&self) -> InstanceId {
        InstanceId(self.next.fetch_add(1, SeqCst))
    }

    pub(crate) fn cx(&self) -> Cx {
        self.cx_within(Duration::from_secs(20))
    }

    pub(crate) fn cx_within(&self, limit: Duration) -> Cx {
        Cx::new(TenantKey(1), RequestId(u128::from(self.id().0)), Instant::now() + limit)
    }

    pub(crate) async fn prepare(&self, spec: &RevisionSpec) -> Verdict<Artifact> {
        let prepared =
            within(Duration::from_secs(60), "prepare", self.fixtures.runtime.prepare(spec)).await?;
        prepared.map_err(|error| Stop::fail(format!("prepare of a valid spec: {}", error.chain())))
    }

    pub(crate) fn deployed(&self, spec: &RevisionSpec, artifact: Artifact) -> Arc<Deployed> {
        Arc::new(Deployed::new(
            Arc::clone(&self.fixtures.runtime),
            artifact,
            Arc::new(spec.clone()),
            RevisionName::new("conformance", "suite", "suite-00001"),
            TenantKey(1),
        ))
    }

    pub(crate) fn revision(&self) -> RevisionKey {
        RevisionKey::new(7, 3)
    }

    pub(crate) async fn request(&self, spec: &RevisionSpec) -> Verdict<StartRequest> {
        let artifact = self.prepare(spec).await?;
        Ok(self.request_for(self.deployed(spec, artifact)))
    }

    pub(crate) fn request_for(&self, deployed: Arc<Deployed>) -> StartRequest {
        let deadline = Instant::now() + self.fixtures.start_limit;
        let (logs, events) = (Arc::clone(&self.told), Arc::clone(&self.told));
        StartRequest::new(self.id(), self.revision(), deployed, logs, events, deadline)
    }

    pub(crate) fn with_secret(mut request: StartRequest, name: &str, value: &str) -> StartRequest {
        request.secrets = Some(Arc::new(BTreeMap::from([(name.to_owned(), Secret::new(value))])));
        request
    }

    pub(crate) fn stem_request(&self, class: sas_core::StemClass) -> StemRequest {
        let deadline = Instant::now() + self.fixtures.start_limit;
        StemRequest::new(self.id(), class, Arc::clone(&self.told) as Arc<dyn InstanceEvents>, deadline)
    }

    /// Starts as the pool does: at once where the runtime can, else by the future.
    pub(crate) async fn begin(&self, request: StartRequest) -> Result<Arc<dyn Instance>, Error> {
        match self.fixtures.runtime.try_start(&request) {
            Some(started) => started,
            None => self.fixtures.runtime.start(request).await,
        }
    }

    pub(crate) async fn start_with(&self, request: StartRequest) -> Verdict<Arc<dyn Instance>> {
        let limit = self.fixtures.start_limit + Duration::from_secs(5);
        let started = within(limit, "the start", self.fixtures.runtime.start(request)).await?;
        started.map_err(|error| Stop::fail(format!("start: {}", error.chain())))
    }

    pub(crate) async fn start(&self, spec: &RevisionSpec) -> Verdict<Arc<dyn Instance>> {
        self.start_with(self.request(spec).await?).await
    }

    pub(crate) async fn echo(&self) -> Verdict<Arc<dyn Instance>> {
        self.start(&self.fixtures.echo).await
    }

    /// Requests at once that `instance` takes, at most `wanted`.
    pub(crate) fn at_once(&self, wanted: usize) -> usize {
        let most = self.fixtures.runtime.capabilities().max_concurrency;
        most.map_or(wanted, |most| wanted.min(most as usize))
    }

    /// A call of `echo` that has to come back.
    pub(crate) async fn echoes(&self, instance: &dyn Instance, body: impl Into<Bytes>) -> Verdict {
        let body = body.into();
        let request = post("/", Body::from(body.clone()));
        let back = self.answer(instance, request).await?;
        ensure!(
            back == body,
            "sent {} bytes, got {} back that differ ({:?}...)",
            body.len(),
            back.len(),
            String::from_utf8_lossy(&back[..back.len().min(60)])
        );
        Ok(())
    }

    /// The body of a 200.
    pub(crate) async fn answer(&self, instance: &dyn Instance, request: Request) -> Verdict<Bytes> {
        let cx = self.cx();
        let call = async { client::whole(client::call(instance, request, &cx).await?).await };
        let (status, body) = within(Duration::from_secs(30), "an answer", call)
            .await?
            .map_err(|failed| Stop::fail(format!("a call failed: {}", failed.0)))?;
        ensure!(status == 200, "the answer has status {status}");
        Ok(body)
    }

    pub(crate) async fn stop(&self, instance: &dyn Instance, grace: Duration) -> Verdict {
        within(grace + STOP_LIMIT, "the stop", instance.stop(grace))
            .await?
            .map_err(|error| Stop::fail(format!("stop: {}", error.chain())))
    }

    pub(crate) async fn exit_told(&self, id: InstanceId) -> Verdict {
        eventually(EXIT_LIMIT, "the exit of a gone instance", || self.told.exits_of(id) > 0).await
    }

    /// The exit of `id` is told, and told once even after the runtime has come to rest.
    pub(crate) async fn exit_told_once(&self, id: InstanceId) -> Verdict {
        self.exit_told(id).await?;
        self.quiesce().await?;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let told = self.told.exits_of(id);
        ensure!(told == 1, "the exit of {id} was told {told} times");
        Ok(())
    }

    pub(crate) async fn quiesce(&self) -> Verdict {
        within(self.fixtures.start_limit, "quiesce", self.fixtures.runtime.quiesce()).await
    }

    /// Comes to rest, and then nothing of instances is there, and no exit was told twice.
    pub(crate) async fn nothing_left(&self) -> Verdict {
        self.quiesce().await?;
        if let Some(census) = &self.fixtures.census {
            let left = census();
            ensure!(left.is_empty(), "left behind after quiesce: {}", left.join(", "));
        }
        let exits = self.told.exits.lock();
        for (id, _) in exits.iter() {
            let told = exits.iter().filter(|(of, _)| of == id).count();
            ensure!(told == 1, "the exit of {id} was told {told} times");
        }
        Ok(())
    }
}

pub(crate) fn post(path: &str, body: Body) -> Request {
    let mut request = Request::new(body);
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = path.parse().expect("a path of the suite's own");
    request
}

/// The fixture, or the reason why the check is skipped.
pub(crate) fn fixture<'a>(spec: &'a Option<RevisionSpec>, name: &str) -> Verdict<&'a RevisionSpec> {
    spec.as_ref().ok_or_else(|| Stop::skip(format!("no fixture `{name}`")))
}
