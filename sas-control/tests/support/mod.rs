//! A platform around the control plane whose parts only remember what they were told.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_control::{Admin, Control, ControlConfig, Engines, TokenAuthenticator};
use sas_core::{
    Artifact, ArtifactInfo, Body, CallTimings, Capabilities, Claim, Clock, Cx, DataPlane, Deployed, Engine,
    EngineKey, EngineSpec, Error, ErrorKind, Handler, HostPattern, Instance, InstanceId, InstanceView,
    Isolation, Pool, Response, Result, RevisionKey, RevisionSpec, RevisionStatus, Route, RouteAction,
    RouteChange, RouteError, RouteQuery, RouteRule, Router, Runtime, SizeBounds, Source, SpecErrors,
    StartRequest, Store, Timestamp, Waiting,
};
use sas_knative::manifest::{Manifest, ParseOptions, ServiceManifest, parse};
use sas_testkit::fake::{FakeClock, FakeInvoker};
use serde_json::Value;
use tokio::time::Instant;

/// A pool that registers, and drains at once unless it is told that requests run.
#[derive(Debug, Default)]
pub(crate) struct RememberingPool {
    registered: Mutex<BTreeMap<RevisionKey, Arc<Deployed>>>,
    busy: Mutex<BTreeMap<RevisionKey, u32>>,
    start_errors: Mutex<BTreeMap<String, Arc<Error>>>,
    started: Mutex<BTreeSet<RevisionKey>>,
    bounds: Mutex<BTreeMap<RevisionKey, SizeBounds>>,
    next: AtomicU32,
    pub(crate) drained: Mutex<Vec<String>>,
}

impl RememberingPool {
    /// The names of what is registered.
    pub(crate) fn names(&self) -> Vec<String> {
        self.registered.lock().values().map(|deployed| deployed.name.revision().to_owned()).collect()
    }

    pub(crate) fn named(&self, revision: &str) -> Option<Arc<Deployed>> {
        self.registered.lock().values().find(|deployed| deployed.name.revision() == revision).cloned()
    }

    pub(crate) fn key(&self, revision: &str) -> Option<RevisionKey> {
        let registered = self.registered.lock();
        registered.iter().find(|(_, deployed)| deployed.name.revision() == revision).map(|(key, _)| *key)
    }

    /// What holds for the size of a revision; `None`: nothing, or it is not registered.
    pub(crate) fn bounds(&self, revision: &str) -> Option<SizeBounds> {
        self.key(revision).and_then(|key| self.bounds.lock().get(&key).copied())
    }

    /// From now on so many requests run on the revision.
    pub(crate) fn set_busy(&self, revision: &str, requests: u32) {
        let key = self.key(revision).expect("registered");
        self.busy.lock().insert(key, requests);
    }

    /// A start of the revision has succeeded; nothing of it runs now.
    pub(crate) fn succeed_starts(&self, revision: &str) {
        self.start_errors.lock().remove(revision);
        self.started.lock().insert(self.key(revision).expect("registered"));
    }

    pub(crate) fn fail_starts(&self, revision: &str, error: Error) {
        self.start_errors.lock().insert(revision.to_owned(), Arc::new(error));
    }
}

#[async_trait]
impl Pool for RememberingPool {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        let key = RevisionKey::new(self.next.fetch_add(1, Ordering::Relaxed), 0);
        self.registered.lock().insert(key, deployed);
        Ok(key)
    }
    fn unregister(&self, revision: RevisionKey) {
        self.registered.lock().remove(&revision);
    }
    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        self.registered.lock().get(&revision).cloned()
    }
    fn claim(&self, _: &Claim, _: &Cx) -> Waiting {
        Waiting::ready(Err(sas_core::ClaimError::Closed))
    }
    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        let busy = self.busy.lock().get(&revision).copied().unwrap_or(0);
        let state = sas_core::InstanceState::Ready;
        vec![InstanceView::new(InstanceId(revision.0), state, busy, u32::MAX, Duration::from_secs(1))]
    }
    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        let registered = self.registered.lock();
        let deployed = registered.get(&revision)?;
        let mut status = RevisionStatus::default();
        status.in_flight = self.busy.lock().get(&revision).copied().unwrap_or(0);
        status.last_start_error = self.start_errors.lock().get(deployed.name.revision()).cloned();
        status.started = self.started.lock().contains(&revision);
        status.failed_starts = u32::from(status.last_start_error.is_some());
        Some(status)
    }
    fn set_bounds(&self, revision: RevisionKey, bounds: Option<SizeBounds>) {
        match bounds {
            Some(bounds) => self.bounds.lock().insert(revision, bounds),
            None => self.bounds.lock().remove(&revision),
        };
    }
    async fn drain(&self, revision: RevisionKey, grace: Duration) {
        if let Some(deployed) = self.deployed(revision) {
            self.drained.lock().push(deployed.name.revision().to_owned());
        }
        let deadline = Instant::now() + grace;
        while Instant::now() < deadline && self.busy.lock().get(&revision).is_some_and(|busy| *busy > 0) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    async fn shutdown(&self, _: Instant) {}
}

/// A router that is a map.
#[derive(Debug, Default)]
pub(crate) struct RememberingRouter {
    hosts: Mutex<BTreeMap<HostPattern, Vec<RouteRule>>>,
    pub(crate) applied: AtomicU32,
}

impl RememberingRouter {
    /// The split of a host as revision keys with their weights.
    pub(crate) fn split(&self, host: &str) -> Option<Vec<(RevisionKey, u32)>> {
        let hosts = self.hosts.lock();
        let rules = hosts.get(&HostPattern::Exact(host.to_owned()))?;
        let RouteAction::Split(splits) = &rules[0].action else { return None };
        Some(splits.iter().map(|split| (split.revision, split.weight)).collect())
    }

    pub(crate) fn hosts(&self) -> Vec<String> {
        self.hosts.lock().keys().map(ToString::to_string).collect()
    }

    pub(crate) fn rules(&self, host: &str) -> Vec<RouteRule> {
        self.hosts.lock().get(&HostPattern::Exact(host.to_owned())).cloned().unwrap_or_default()
    }

    pub(crate) fn rule(&self, host: &str) -> Option<RouteRule> {
        self.hosts.lock().get(&HostPattern::Exact(host.to_owned()))?.first().cloned()
    }
}

impl Router for RememberingRouter {
    fn route(&self, _: &RouteQuery<'_>) -> Result<Route, RouteError> {
        Err(RouteError::NoRoute)
    }
    fn apply(&self, changes: Vec<RouteChange>) -> Result<()> {
        self.applied.fetch_add(1, Ordering::Relaxed);
        let mut hosts = self.hosts.lock();
        for change in changes {
            match change {
                RouteChange::Set { host, rules } => {
                    hosts.insert(host, rules);
                }
                RouteChange::Remove { host } => {
                    hosts.remove(&host);
                }
                other => panic!("unknown change {other:?}"),
            }
        }
        Ok(())
    }
}

/// A runtime that prepares everything but what it was told to refuse.
#[derive(Debug)]
pub(crate) struct PreparingRuntime {
    pub(crate) prepared: AtomicU32,
    failing: Mutex<Option<(ErrorKind, String)>>,
    takes: Mutex<Duration>,
    isolation: Isolation,
}

impl PreparingRuntime {
    pub(crate) fn new(isolation: Isolation) -> Arc<Self> {
        Arc::new(Self {
            prepared: AtomicU32::new(0),
            failing: Mutex::default(),
            takes: Mutex::default(),
            isolation,
        })
    }

    pub(crate) fn fail(&self, kind: ErrorKind, message: &str) {
        *self.failing.lock() = Some((kind, message.to_owned()));
    }

    pub(crate) fn mend(&self) {
        *self.failing.lock() = None;
    }

    pub(crate) fn set_prepare_time(&self, time: Duration) {
        *self.takes.lock() = time;
    }
}

#[async_trait]
impl Runtime for PreparingRuntime {
    fn name(&self) -> &'static str {
        "process"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(self.isolation)
    }
    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        let mut errors = spec.container_fields(self.name());
        if !matches!(spec.source, Source::Path(_) | Source::Bytes { .. }) {
            errors.push("source", &spec.source, "a package is needed");
        }
        errors.into_result()
    }
    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        let takes = *self.takes.lock();
        tokio::time::sleep(takes).await;
        if let Some((kind, message)) = self.failing.lock().clone() {
            return Err(Error::new(kind, "prepare", message));
        }
        self.prepared.fetch_add(1, Ordering::Relaxed);
        let Source::Path(path) = &spec.source else {
            return Err(Error::new(ErrorKind::InvalidSpec, "prepare", "a path is needed"));
        };
        let content = std::fs::read(path).map_err(|error| {
            Error::new(ErrorKind::InvalidSpec, "prepare", format!("{}: {error}", path.display()))
        })?;
        let info = ArtifactInfo {
            digest: format!("sha256:{:064x}", content.len()),
            bytes: content.len() as u64,
            notes: vec!["starts cold".to_owned()],
            ..ArtifactInfo::default()
        };
        Ok(Artifact::new((), info))
    }
    async fn start(&self, _: StartRequest) -> Result<Arc<dyn Instance>> {
        Err(Error::unsupported("start"))
    }
    async fn quiesce(&self) {}
}

pub(crate) struct World {
    pub(crate) pool: Arc<RememberingPool>,
    pub(crate) router: Arc<RememberingRouter>,
    pub(crate) runtime: Arc<PreparingRuntime>,
    pub(crate) invoker: Arc<FakeInvoker>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: FakeClock,
    pub(crate) control: Arc<Control>,
    pub(crate) admin: Admin,
    pub(crate) dir: tempfile::TempDir,
    logs: Arc<sas_control::LogBuffer>,
    decisions: Arc<sas_control::DecisionLog>,
    meter: Arc<sas_control::Meter>,
}

/// 2026-01-05, a Monday.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_767_571_200);

/// The admin token.
pub(crate) const TOKEN: &str = "a-token-of-these-tests";

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Arc::new(sas_core::MemoryStore::default()), |_| {}).await
    }

    pub(crate) async fn with(store: Arc<dyn Store>, change: impl FnOnce(&mut ControlConfig)) -> Self {
        Self::build(
            store,
            tempfile::tempdir().expect("a directory"),
            PreparingRuntime::new(Isolation::Process),
            change,
        )
        .await
    }

    pub(crate) async fn build(
        store: Arc<dyn Store>,
        dir: tempfile::TempDir,
        runtime: Arc<PreparingRuntime>,
        change: impl FnOnce(&mut ControlConfig),
    ) -> Self {
        Self::on(EngineSpec::default(), store, dir, runtime, change).await
    }

    /// The same on an engine of its own kind.
    pub(crate) async fn on(
        engine: EngineSpec,
        store: Arc<dyn Store>,
        dir: tempfile::TempDir,
        runtime: Arc<PreparingRuntime>,
        change: impl FnOnce(&mut ControlConfig),
    ) -> Self {
        let pool = Arc::new(RememberingPool::default());
        let router = Arc::new(RememberingRouter::default());
        let invoker = FakeInvoker::new(|invocation| {
            let mut response =
                Response::new(Body::from(format!("{} {}", invocation.head.method(), invocation.head.uri())));
            let mut timings = CallTimings::default();
            timings.cold = true;
            timings.instance = Some(InstanceId(7));
            timings.queued = Duration::from_millis(3);
            timings.first_byte = Duration::from_millis(1);
            timings.total = Duration::from_millis(4);
            response.extensions_mut().insert(timings);
            response.headers_mut().insert("x-answer", http::HeaderValue::from_static("yes"));
            Ok(response)
        });
        let clock = FakeClock::starting_at(START);
        let parts = Engine::new(
            EngineKey::FIRST,
            Arc::clone(&pool) as _,
            vec![Arc::clone(&runtime) as Arc<dyn Runtime>],
        );
        let plane = DataPlane::new(Arc::clone(&router) as _, Arc::clone(&invoker) as _);
        let mut config = ControlConfig::new(Arc::clone(&store), Engines::single(parts, engine), plane);
        config.clock = Arc::new(clock.clone()) as Arc<dyn Clock>;
        config.domain = "example.org".to_owned();
        let logs = Arc::new(sas_control::LogBuffer::default());
        let decisions = Arc::new(sas_control::DecisionLog::default());
        let meter = Arc::new(sas_control::Meter::default());
        config.logs = Arc::clone(&logs) as _;
        config.decisions = Arc::clone(&decisions) as _;
        config.meter = Arc::clone(&meter) as _;
        change(&mut config);
        let control = Control::new(config);
        control.recover().await.expect("the store can be read");
        let tokens = TokenAuthenticator::new(TOKEN).expect("a token");
        let admin = Admin::new(Arc::clone(&control), Arc::new(tokens))
            .with_package_roots(sas_control::PackageRoots::any())
            .with_metrics(|| "# metrics\n".to_owned());
        Self {
            pool,
            router,
            runtime,
            invoker: Arc::clone(&invoker),
            store,
            clock,
            control,
            admin,
            dir,
            logs,
            decisions,
            meter,
        }
    }

    pub(crate) fn logs(&self) -> &sas_control::LogBuffer {
        &self.logs
    }

    pub(crate) fn decisions(&self) -> &sas_control::DecisionLog {
        &self.decisions
    }

    pub(crate) fn meter(&self) -> &sas_control::Meter {
        &self.meter
    }

    /// A further file of the user's.
    pub(crate) fn dir_file(&self, name: &str, content: &str) -> std::path::PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    }

    /// A package with this content.
    pub(crate) fn package(&self, content: &str) -> String {
        let path = self.dir.path().join("app.sh");
        std::fs::write(&path, content).expect("written");
        path.display().to_string()
    }

    /// A manifest of the service `hello` with a package of this content.
    pub(crate) fn manifest(&self, content: &str) -> String {
        let package = self.package(content);
        format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: hello\n  annotations:\n    \
             sas.dev/package: {package}\nspec:\n  template:\n    spec:\n      containerConcurrency: 5\n"
        )
    }

    pub(crate) fn service(text: &str) -> ServiceManifest {
        match parse(text, &ParseOptions::default()).expect("a good manifest").remove(0) {
            Manifest::Service(service) => *service,
            other => panic!("{other:?} is no service"),
        }
    }

    pub(crate) async fn deploy(&self, content: &str) -> Result<sas_control::DeployOutcome> {
        self.control.deploy(Self::service(&self.manifest(content))).await
    }

    /// The revisions that a host splits between, with their weights.
    pub(crate) fn split(&self, host: &str) -> Vec<(String, u32)> {
        let splits = self.router.split(host).unwrap_or_default();
        splits
            .into_iter()
            .map(|(key, weight)| {
                let name =
                    self.pool.deployed(key).map_or("gone".to_owned(), |d| d.name.revision().to_owned());
                (name, weight)
            })
            .collect()
    }

    /// A call of the admin API: status and JSON.
    pub(crate) async fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let response = self.raw(method, path, body).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect(64 << 20).await.expect("a body");
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub(crate) async fn raw(&self, method: &str, path: &str, body: &str) -> Response {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "localhost")
            .header("authorization", format!("Bearer {TOKEN}"))
            .body(Body::from(body.to_owned()))
            .expect("a request");
        self.admin.handle(request).await
    }
}

/// Lets background tasks and housekeeping go on until `done`.
pub(crate) async fn eventually(done: impl Fn() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never happened");
}
