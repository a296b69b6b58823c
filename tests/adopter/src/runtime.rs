use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use sas::{
    bytes::Bytes,
    core::{
        Answer, Artifact, ArtifactInfo, Call, CallError, Capabilities, Clock as _, Cx, Error, ErrorKind,
        ExitReport, Instance, InstanceEvents, InstanceId, InstanceTarget, Isolation, Request, Response,
        Result, Retry, RevisionSpec, Runtime, Source, StartRequest, SystemClock,
    },
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What is done to the body of a request.
type Step = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

/// Runs filters: functions from bytes to bytes, known by name. The option `delay-ms` holds each answer back.
#[derive(Default)]
pub struct FilterRuntime {
    filters: BTreeMap<String, Step>,
    /// Instances that are being stopped.
    ending: TaskTracker,
}

impl fmt::Debug for FilterRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.filters.keys()).finish()
    }
}

impl FilterRuntime {
    pub fn with(mut self, name: &str, step: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        self.filters.insert(name.to_owned(), Arc::new(step));
        self
    }
}

/// What `prepare` makes of a spec.
struct Prepared {
    step: Step,
    delay: Duration,
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", message)
}

#[sas::async_trait]
impl Runtime for FilterRuntime {
    fn name(&self) -> &'static str {
        "filter"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        let Source::Function(name) = &spec.source else {
            return Err(invalid("source: name a filter as a function".to_owned()));
        };
        let step = self.filters.get(name).cloned().ok_or_else(|| {
            let known: Vec<&str> = self.filters.keys().map(String::as_str).collect();
            invalid(format!("source.function: {name}: no such filter; known: {}", known.join(", ")))
        })?;
        let given = spec.options.get("delay-ms").map_or("0", String::as_str);
        let delay = given.parse().map_err(|_| {
            invalid(format!("options[delay-ms]: {given}: must be a whole number of milliseconds"))
        })?;
        let prepared = Prepared { step, delay: Duration::from_millis(delay) };
        Ok(Artifact::new(Arc::new(prepared), ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let Some(prepared) = request.deployed.artifact.downcast::<Arc<Prepared>>() else {
            return Err(Error::new(ErrorKind::InvalidSpec, "start", "the artifact is of another runtime"));
        };
        Ok(Arc::new(FilterInstance {
            id: request.id,
            prepared: Arc::clone(prepared),
            ending: self.ending.clone(),
            life: Arc::new(Life {
                calls: TaskTracker::new(),
                cut: CancellationToken::new(),
                events: Mutex::new(Some(request.events)),
            }),
        }))
    }

    async fn quiesce(&self) {
        self.ending.close();
        self.ending.wait().await;
        self.ending.reopen();
    }
}

struct FilterInstance {
    id: InstanceId,
    prepared: Arc<Prepared>,
    life: Arc<Life>,
    ending: TaskTracker,
}

/// What outlives a stop that its caller gave up.
struct Life {
    /// Calls under way. Closed when the instance is being stopped.
    calls: TaskTracker,
    /// Ends the calls that are left when the grace is over.
    cut: CancellationToken,
    /// Taken by whoever tells the exit, so that it is told once.
    events: Mutex<Option<Arc<dyn InstanceEvents>>>,
}

impl fmt::Debug for FilterInstance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FilterInstance").field(&self.id).finish()
    }
}

#[sas::async_trait]
impl Call for FilterInstance {
    async fn call(&self, request: Request, cx: &Cx) -> Result<Answer, CallError> {
        let _under_way = self.life.calls.token();
        if self.life.calls.is_closed() {
            // Nothing was done with the request: it goes back, for another instance.
            let error = Error::new(ErrorKind::Unavailable, "call", "the instance is being stopped");
            return Err(CallError::unsent(error.with_retry(Retry::AnotherInstance), request));
        }
        let work = async {
            let body = request.into_body().collect(64 << 20).await;
            let body: Bytes =
                body.map_err(|error| Error::new(ErrorKind::InvalidSpec, "call", error.to_string()))?;
            tokio::time::sleep(self.prepared.delay).await;
            Ok((self.prepared.step)(&body))
        };
        let done = tokio::select! {
            biased;
            () = self.life.cut.cancelled() => Err(Error::new(ErrorKind::Crashed, "call", "the instance was stopped")),
            () = tokio::time::sleep_until(cx.deadline) => Err(Error::new(ErrorKind::Timeout, "call", "too late")),
            done = work => done,
        };
        // Without `unsent`, it may have been done: only the caller knows whether to send it again.
        done.map(|bytes| Answer::Http(Response::new(bytes.into()))).map_err(CallError::sent)
    }
}

#[sas::async_trait]
impl Instance for FilterInstance {
    fn id(&self) -> InstanceId {
        self.id
    }

    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }

    async fn stop(&self, grace: Duration) -> Result<()> {
        let (id, life) = (self.id, Arc::clone(&self.life));
        // A task: a caller who gives up does not stop the stop.
        let end = self.ending.spawn(async move {
            life.calls.close();
            if tokio::time::timeout(grace, life.calls.wait()).await.is_err() {
                life.cut.cancel();
                life.calls.wait().await;
            }
            let events = life.events.lock().expect("nothing panics under this lock").take();
            if let Some(events) = events {
                events.exited(id, ExitReport::at(SystemClock.now()));
            }
        });
        end.await.map_err(|error| Error::new(ErrorKind::Unexpected, "stop", error.to_string()))
    }
}
