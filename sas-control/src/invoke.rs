//! Test runs: any revision, at any time, unmetered, with the phases of its cold start.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header::HOST};
use sas_core::{
    Body, CallTimings, Cx, Error, ErrorKind, InstanceId, Purpose, RequestId, Result, RevisionKey, Target,
};
use tokio::time::Instant;

use crate::{
    control::{Control, Live, no_service},
    record::{RevisionState, ServiceRecord},
};

/// The most that is kept of an answer.
pub(crate) const BODY_LIMIT: usize = 1 << 20;

/// What a test run sends, and to which revision.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TestRun {
    /// The revision; `None`: the latest one that is ready.
    pub revision: Option<String>,
    /// The method of the test request.
    pub method: Method,
    /// The path and the query of the test request.
    pub path: String,
    /// The headers of the test request.
    pub headers: HeaderMap,
    /// The whole body of the test request.
    pub body: Bytes,
    /// How long it may take in all.
    pub timeout: Duration,
}

impl Default for TestRun {
    fn default() -> Self {
        Self {
            revision: None,
            method: Method::GET,
            path: "/".to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(60),
        }
    }
}

/// How a test run went. Times count from the moment it was asked for, but for `first_byte`, which counts from the slot
/// on an instance.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TestReport {
    /// The revision that answered.
    pub revision: String,
    /// The id that the request had.
    pub request: RequestId,
    /// The instance that answered, where it is known.
    pub instance: Option<InstanceId>,
    /// The status of the answer.
    pub status: StatusCode,
    /// The headers of the answer.
    pub headers: HeaderMap,
    /// The body, at most 1 MiB of it.
    pub body: Bytes,
    /// Whether the body went on.
    pub truncated: bool,
    /// How long each phase of the call took.
    pub phases: Phases,
}

/// The phases of a test run.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Phases {
    /// Whether an instance was started for it.
    pub cold: bool,
    /// Making the code ready: fetch, unpack, compile. Zero when it was ready.
    pub prepared: Duration,
    /// From there until there was a slot on an instance.
    pub queued: Duration,
    /// Of a cold start: waiting for the start gate and for budgets.
    pub gated: Option<Duration>,
    /// Of a cold start: until the instance was spawned.
    pub spawned: Option<Duration>,
    /// Of a cold start: until it listened.
    pub listening: Option<Duration>,
    /// Of a cold start: until it was ready.
    pub ready: Option<Duration>,
    /// From the slot to the first byte of the answer.
    pub first_byte: Duration,
    /// Everything, up to the first byte.
    pub total: Duration,
}

impl Control {
    /// Sends a request to a revision, whatever traffic it gets; starts it if it sleeps, prepares it if it was retired.
    /// It is neither metered nor counted for scaling.
    ///
    /// **Cancel safety:** dropping the future aborts the request; an instance that was started stays with the pool and
    /// goes when it was idle long enough.
    ///
    /// # Errors
    /// `NotFound` when there is no such service or revision; `InvalidSpec` when it failed to prepare or the request is
    /// malformed; `Timeout`, `Crashed` and the like as the call goes. An answer of any status is no error.
    pub async fn invoke(self: &Arc<Self>, namespace: &str, name: &str, run: TestRun) -> Result<TestReport> {
        let result = self.invoke_inner(namespace, name, run).await;
        self.metrics.tested(result.is_ok());
        result
    }

    async fn invoke_inner(self: &Arc<Self>, namespace: &str, name: &str, run: TestRun) -> Result<TestReport> {
        let asked = Instant::now();
        let path = format!("{namespace}/{name}");
        let live = self.live(&path).ok_or_else(|| no_service(&path))?;
        let record = self.record(namespace, name)?;
        let revision = chosen(&record, run.revision.as_deref())?;
        let request = request(&self.rules.host(&record, None), &run)?;

        let (key, prepared) = self.ensure(&path, &live, &record, &revision).await?;
        let waited = asked.elapsed();
        let id = self.request_id();
        let deadline = asked + run.timeout;
        let cx = Cx::new(record.tenant, id, deadline).for_purpose(Purpose::Test);
        let called =
            tokio::time::timeout_at(deadline, self.invoker.invoke(Target::Revision(key), request, &cx)).await;
        self.touch(&live, key);
        let late = || Error::new(ErrorKind::Timeout, "invoke", format!("no answer within {:?}", run.timeout));
        let response = called.map_err(|_| late())?.map_err(|error| error.error)?;

        let (parts, body) = response.into_parts();
        let timings = parts.extensions.get::<CallTimings>().cloned().unwrap_or_default();
        let (body, truncated) = tokio::time::timeout_at(deadline, read(body)).await.map_err(|_| late())??;
        let start = timings.start;
        Ok(TestReport {
            revision,
            request: id,
            instance: timings.instance,
            status: parts.status,
            headers: parts.headers,
            body,
            truncated,
            phases: Phases {
                cold: timings.cold,
                prepared,
                queued: timings.queued,
                gated: start.map(|start| start.gated),
                spawned: start.and_then(|start| start.spawned),
                listening: start.and_then(|start| start.listening),
                ready: start.map(|start| start.ready),
                first_byte: timings.first_byte,
                total: waited + timings.total,
            },
        })
    }

    /// The key of the revision in the pool; registers it for test runs when it is not there. With the time that
    /// preparing took.
    async fn ensure(
        self: &Arc<Self>,
        path: &str,
        live: &Live,
        record: &ServiceRecord,
        revision: &str,
    ) -> Result<(RevisionKey, Duration)> {
        if let Some(key) = self.running(live, revision) {
            return Ok((key, Duration::ZERO));
        }
        let _changing = self.change(path).await;
        if let Some(key) = self.running(live, revision) {
            return Ok((key, Duration::ZERO));
        }
        let began = Instant::now();
        let (key, _) = self.start(live, record, revision, false).await?;
        self.keep_an_eye_on(path);
        Ok((key, began.elapsed()))
    }

    /// A registration that takes calls, marked as used so that it stays.
    fn running(&self, live: &Live, revision: &str) -> Option<RevisionKey> {
        let now = self.clock.now();
        let mut state = live.state.lock();
        let found = state.observed.registrations.iter_mut().filter(|r| r.revision == revision && !r.retiring);
        let registration = found.max_by_key(|registration| registration.routable)?;
        registration.last_used = now;
        Some(registration.key)
    }

    fn touch(&self, live: &Live, key: RevisionKey) {
        let now = self.clock.now();
        let mut state = live.state.lock();
        if let Some(registration) = state.observed.registrations.iter_mut().find(|r| r.key == key) {
            registration.last_used = now;
        }
    }
}

fn chosen(record: &ServiceRecord, asked: Option<&str>) -> Result<String> {
    let path = record.path();
    if record.disabled.is_some() {
        let message = format!("{path} is disabled, and nothing of it starts; enable it first");
        return Err(Error::new(ErrorKind::Conflict, "invoke", message));
    }
    let found = match asked {
        Some(name) => record.resolve(name).ok_or_else(|| {
            Error::new(ErrorKind::NotFound, "invoke", format!("{path} has no revision {name}"))
        })?,
        None => record
            .latest_ready()
            .or(record.latest_created())
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "invoke", format!("{path} has no revision")))?,
    };
    match &found.state {
        RevisionState::Failed { message, .. } => {
            let message = format!("{} can't run, it failed: {message}", found.name);
            Err(Error::new(ErrorKind::InvalidSpec, "invoke", message))
        }
        _ => Ok(found.name.clone()),
    }
}

fn request(host: &str, run: &TestRun) -> Result<sas_core::Request> {
    let invalid = |field: &str, value: &str, problem: String| {
        let mut errors = sas_core::SpecErrors::default();
        errors.push(field, value, problem);
        Error::from(errors)
    };
    if !run.path.starts_with('/') {
        return Err(invalid("path", &run.path, "must begin with /".to_owned()));
    }
    let mut request = http::Request::builder()
        .method(run.method.clone())
        .uri(run.path.as_str())
        .body(Body::from(run.body.clone()))
        .map_err(|error| invalid("path", &run.path, error.to_string()))?;
    *request.headers_mut() = run.headers.clone();
    if !request.headers().contains_key(HOST) {
        let value = HeaderValue::from_str(host).map_err(|error| invalid("host", host, error.to_string()))?;
        request.headers_mut().insert(HOST, value);
    }
    Ok(request)
}

/// At most [`BODY_LIMIT`] bytes of a body, and whether there was more.
async fn read(body: Body) -> Result<(Bytes, bool)> {
    use http_body::Body as _;
    let mut body = std::pin::pin!(body);
    let mut kept = Vec::new();
    loop {
        let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await else {
            return Ok((kept.into(), false));
        };
        let frame = frame.map_err(|error| {
            let message = format!("the answer broke off after {} bytes: {error}", kept.len());
            Error::new(ErrorKind::Crashed, "invoke", message).with_source(error)
        })?;
        if let Ok(data) = frame.into_data() {
            let room = BODY_LIMIT - kept.len();
            kept.extend_from_slice(&data[..data.len().min(room)]);
            if data.len() > room {
                return Ok((kept.into(), true));
            }
        }
    }
}
