//! What the tests of the runtime share: guests, a started instance, calls.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sas_core::{
    Answer, Body, BoxError, CallError, Cx, Deployed, ErrorKind, ExitReport, Instance, InstanceEvents,
    InstanceId, LogRecord, LogSink, LogStream, Request, RequestId, Response, RevisionKey, RevisionName,
    RevisionSpec, Runtime, Source, StartPhase, StartRequest, TenantKey,
};
use sas_runtime_wasm::{WasmConfig, WasmRuntime};
use tokio::time::Instant;

pub(crate) const HELLO: &str = include_str!("../../guests/hello.wat");
pub(crate) const PROBE: &str = include_str!("../../guests/probe.wat");

/// A probe that takes every request for one to `/path`.
pub(crate) fn always(path: &str) -> String {
    assert!(path.len() >= 3 && PROBE.contains("????"));
    let letters: String = path.chars().chain("\0".chars()).take(4).collect();
    PROBE
        .replace("????", &letters.replace('\0', "\\00"))
        .replace("(call $find_path)\n", "(call $find_path) (global.set $path (i32.const 448))\n")
}

pub(crate) fn spec(code: impl Into<String>) -> RevisionSpec {
    bytes_spec("function.wat", code.into().into_bytes())
}

pub(crate) fn bytes_spec(name: &str, code: Vec<u8>) -> RevisionSpec {
    RevisionSpec::new("wasm", Source::Bytes { name: name.into(), bytes: code.into() })
}

/// What instances told.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) exits: Mutex<Vec<InstanceId>>,
    pub(crate) lines: Mutex<Vec<(Option<RequestId>, LogStream, String)>>,
}

impl InstanceEvents for Told {
    fn phase(&self, _: InstanceId, _: StartPhase) {}
    fn exited(&self, id: InstanceId, _: ExitReport) {
        self.exits.lock().unwrap().push(id);
    }
}

impl LogSink for Told {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { request, stream, line, .. } = *record;
        self.lines.lock().unwrap().push((request, stream, String::from_utf8_lossy(line).into_owned()));
    }
}

pub(crate) struct Stage {
    pub(crate) runtime: Arc<WasmRuntime>,
    pub(crate) told: Arc<Told>,
    next: AtomicU64,
}

impl Stage {
    /// One tenant may have all, unless the test says otherwise.
    pub(crate) fn new(mut config: WasmConfig) -> Self {
        config.tenant_slots.get_or_insert(config.slots);
        config.tenant_memory_bytes.get_or_insert(config.memory_bytes);
        Self::shared(config)
    }

    /// Tenants have shares, as the configuration says.
    pub(crate) fn shared(config: WasmConfig) -> Self {
        Self {
            runtime: Arc::new(WasmRuntime::new(config).unwrap()),
            told: Arc::default(),
            next: AtomicU64::new(1),
        }
    }

    pub(crate) fn small() -> Self {
        Self::new(WasmConfig { slots: 16, ..WasmConfig::default() })
    }

    pub(crate) async fn instance(&self, spec: &RevisionSpec) -> Arc<dyn Instance> {
        self.instance_of(TenantKey(1), spec).await
    }

    pub(crate) async fn instance_of(&self, tenant: TenantKey, spec: &RevisionSpec) -> Arc<dyn Instance> {
        let artifact = self.runtime.prepare(spec).await.unwrap_or_else(|error| panic!("{}", error.chain()));
        let deployed = Arc::new(Deployed::new(
            Arc::clone(&self.runtime) as _,
            artifact,
            Arc::new(spec.clone()),
            RevisionName::new("test", "function", "function-00001"),
            tenant,
        ));
        let id = InstanceId(self.next.fetch_add(1, Ordering::Relaxed));
        let request = StartRequest::new(
            id,
            RevisionKey::new(1, 1),
            deployed,
            Arc::clone(&self.told) as _,
            Arc::clone(&self.told) as _,
            Instant::now() + Duration::from_secs(10),
        );
        self.runtime.try_start(&request).unwrap().unwrap()
    }

    pub(crate) async fn refusal(&self, spec: &RevisionSpec) -> String {
        match self.runtime.prepare(spec).await {
            Ok(_) => panic!("prepare took what it should refuse"),
            Err(error) => {
                assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
                error.chain()
            }
        }
    }
}

pub(crate) fn cx() -> Cx {
    cx_within(Duration::from_secs(30))
}

pub(crate) fn cx_within(limit: Duration) -> Cx {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let id = RequestId(NEXT.fetch_add(1, Ordering::Relaxed).into());
    Cx::new(TenantKey(1), id, Instant::now() + limit)
}

pub(crate) fn get(path: &str) -> Request {
    http::Request::builder().uri(path).header("host", "function.test").body(Body::empty()).unwrap()
}

pub(crate) fn post(path: &str, body: impl Into<Body>) -> Request {
    http::Request::builder()
        .method("POST")
        .uri(path)
        .header("host", "function.test")
        .body(body.into())
        .unwrap()
}

pub(crate) async fn call(instance: &dyn Instance, request: Request, cx: &Cx) -> Result<Response, CallError> {
    match instance.call(request, cx).await? {
        Answer::Http(response) => Ok(response),
        Answer::Upgrade { .. } => panic!("an upgrade"),
    }
}

pub(crate) async fn text(response: Response) -> Result<String, BoxError> {
    let bytes = response.into_body().collect(1 << 30).await?;
    Ok(String::from_utf8(bytes.to_vec())?)
}

/// The status and body of a call that succeeds.
pub(crate) async fn ask(instance: &dyn Instance, request: Request) -> (u16, String) {
    let response =
        call(instance, request, &cx()).await.unwrap_or_else(|failed| panic!("{}", failed.error.chain()));
    let status = response.status().as_u16();
    (status, text(response).await.unwrap())
}

/// The error of a call that fails.
pub(crate) async fn fails(instance: &dyn Instance, request: Request) -> sas_core::Error {
    match call(instance, request, &cx()).await {
        Ok(response) => panic!("answered {response:?}"),
        Err(failed) => failed.error,
    }
}
