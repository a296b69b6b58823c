//! A runtime whose starts do what a test says, and that counts what it made.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Claim, ClaimError, Cx, Deployed, Error, ErrorKind, ExitReport,
    Instance, InstanceEvents, InstanceId, InstanceTarget, Isolation, Lease, Pool, RequestId, Result,
    RevisionKey, RevisionName, RevisionSpec, Runtime, Source, StartPhase, StartRequest, StemClass, TenantKey,
    Timestamp, Usage,
};
use tokio::time::Instant;

/// What the next start does.
#[derive(Clone, Debug)]
pub enum Start {
    /// Completes in the call.
    AtOnce,
    /// Completes after a while.
    After(Duration),
    /// Fails after a while.
    Fail(ErrorKind, Duration),
    /// Never completes.
    Hang,
    /// Completes, and the instance ends at once.
    Die,
}

#[derive(Debug)]
pub struct FakeRuntime {
    pub capabilities: Mutex<Capabilities>,
    /// What starts do: these first, in order, then `rest`.
    pub script: Mutex<VecDeque<Start>>,
    pub rest: Mutex<Start>,
    pub begun: AtomicU32,
    pub started: AtomicU32,
    pub stopped: AtomicU32,
    pub starting: AtomicU32,
    pub most_starting: AtomicU32,
    pub suspends: AtomicU32,
    pub resumes: AtomicU32,
    pub order: Mutex<Vec<(String, Instant)>>,
    pub live: Mutex<Vec<Arc<FakeInstance>>>,
    pub secrets: Mutex<Vec<(String, String)>>,
}

impl FakeRuntime {
    pub fn new(rest: Start) -> Arc<Self> {
        Arc::new(Self {
            capabilities: Mutex::new(Capabilities::new(Isolation::None)),
            script: Mutex::default(),
            rest: Mutex::new(rest),
            begun: AtomicU32::new(0),
            started: AtomicU32::new(0),
            stopped: AtomicU32::new(0),
            starting: AtomicU32::new(0),
            most_starting: AtomicU32::new(0),
            suspends: AtomicU32::new(0),
            resumes: AtomicU32::new(0),
            order: Mutex::default(),
            live: Mutex::default(),
            secrets: Mutex::default(),
        })
    }

    pub fn with(rest: Start, change: impl FnOnce(&mut Capabilities)) -> Arc<Self> {
        let runtime = Self::new(rest);
        change(&mut runtime.capabilities.lock().unwrap());
        runtime
    }

    pub fn begun(&self) -> u32 {
        self.begun.load(Ordering::SeqCst)
    }

    pub fn started(&self) -> u32 {
        self.started.load(Ordering::SeqCst)
    }

    pub fn stopped(&self) -> u32 {
        self.stopped.load(Ordering::SeqCst)
    }

    pub fn live(&self) -> Vec<Arc<FakeInstance>> {
        self.live.lock().unwrap().clone()
    }

    fn next(&self) -> Start {
        self.script.lock().unwrap().pop_front().unwrap_or_else(|| self.rest.lock().unwrap().clone())
    }

    fn make(self: &Arc<Self>, request: &StartRequest) -> Arc<FakeInstance> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let instance = Arc::new(FakeInstance {
            id: request.id,
            events: Arc::clone(&request.events),
            runtime: Arc::clone(self),
            gone: AtomicBool::new(false),
            usage: Mutex::new(None),
            stop_takes: Mutex::new(Duration::ZERO),
        });
        self.live.lock().unwrap().push(Arc::clone(&instance));
        instance
    }
}

/// Counts a start that goes on, also when it is dropped.
struct Starting<'a>(&'a FakeRuntime);

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.starting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The runtime as specs know it; a wrapper, since instances refer back to it.
#[derive(Debug)]
pub struct Handle(pub Arc<FakeRuntime>);

#[async_trait]
impl Runtime for Handle {
    fn name(&self) -> &'static str {
        "fake"
    }

    fn capabilities(&self) -> Capabilities {
        *self.0.capabilities.lock().unwrap()
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(Artifact::new((), ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let runtime = &self.0;
        runtime.begun.fetch_add(1, Ordering::SeqCst);
        runtime.order.lock().unwrap().push((request.name().to_string(), Instant::now()));
        let now = runtime.starting.fetch_add(1, Ordering::SeqCst) + 1;
        let _starting = Starting(runtime);
        runtime.most_starting.fetch_max(now, Ordering::SeqCst);
        for (name, value) in request.environment() {
            runtime.secrets.lock().unwrap().push((name.to_owned(), value.to_owned()));
        }
        match runtime.next() {
            Start::AtOnce => {}
            Start::After(delay) => {
                request.events.phase(request.id, StartPhase::Spawned);
                tokio::time::sleep(delay).await;
                request.events.phase(request.id, StartPhase::Listening);
            }
            Start::Fail(kind, delay) => {
                tokio::time::sleep(delay).await;
                return Err(Error::new(kind, "start", "as the test wants"));
            }
            Start::Hang => std::future::pending().await,
            Start::Die => {
                let instance = runtime.make(&request);
                instance.die();
                return Ok(instance);
            }
        }
        Ok(runtime.make(&request))
    }

    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        {
            let mut script = self.0.script.lock().unwrap();
            match script.front() {
                Some(Start::AtOnce) => drop(script.pop_front()),
                None if matches!(*self.0.rest.lock().unwrap(), Start::AtOnce) => {}
                _ => return None,
            }
        }
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        Some(Ok(self.0.make(request)))
    }

    async fn quiesce(&self) {}
}

#[derive(Debug)]
pub struct FakeInstance {
    pub id: InstanceId,
    pub events: Arc<dyn InstanceEvents>,
    pub runtime: Arc<FakeRuntime>,
    pub gone: AtomicBool,
    pub usage: Mutex<Option<Usage>>,
    pub stop_takes: Mutex<Duration>,
}

impl FakeInstance {
    /// Ends, as a crash does.
    pub fn die(&self) {
        if !self.gone.swap(true, Ordering::SeqCst) {
            self.runtime.live.lock().unwrap().retain(|other| other.id != self.id);
            self.events.exited(self.id, ExitReport::at(Timestamp(0)).with_signal(9));
        }
    }
}

/// Nobody calls it.
static NOWHERE: sas_core::Endpoint = sas_core::Endpoint::Tcp(std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    9,
));

#[async_trait]
impl Instance for FakeInstance {
    fn id(&self) -> InstanceId {
        self.id
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&NOWHERE)
    }

    fn usage(&self) -> Option<Usage> {
        *self.usage.lock().unwrap()
    }

    async fn stop(&self, _: Duration) -> Result<()> {
        let takes = *self.stop_takes.lock().unwrap();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        if !self.gone.swap(true, Ordering::SeqCst) {
            self.runtime.stopped.fetch_add(1, Ordering::SeqCst);
            self.runtime.live.lock().unwrap().retain(|other| other.id != self.id);
            self.events.exited(self.id, ExitReport::at(Timestamp(0)).with_code(0));
        }
        Ok(())
    }

    async fn suspend(&self) -> Result<()> {
        self.runtime.suspends.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        self.runtime.resumes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

/// A revision of `runtime`, changed by `change`.
pub fn deployed(
    runtime: &Arc<FakeRuntime>,
    name: &str,
    change: impl FnOnce(&mut RevisionSpec),
) -> Arc<Deployed> {
    deployed_of(runtime, name, TenantKey(1), None, change)
}

pub fn deployed_of(
    runtime: &Arc<FakeRuntime>,
    name: &str,
    tenant: TenantKey,
    stem: Option<StemClass>,
    change: impl FnOnce(&mut RevisionSpec),
) -> Arc<Deployed> {
    let mut spec = RevisionSpec::new("fake", Source::Function(name.to_owned()));
    change(&mut spec);
    let info = ArtifactInfo { stem, ..ArtifactInfo::default() };
    Arc::new(Deployed::new(
        Arc::new(Handle(Arc::clone(runtime))),
        Artifact::new((), info),
        Arc::new(spec),
        RevisionName::new("default", name, name),
        tenant,
    ))
}

/// Claims with a deadline from now.
pub async fn claim(pool: &Arc<impl Pool>, key: RevisionKey, patience: Duration) -> Result<Lease, ClaimError> {
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + patience);
    pool.claim(&Claim::new(key, TenantKey(1)), &cx).await
}

pub const SECOND: Duration = Duration::from_secs(1);
pub const MS: Duration = Duration::from_millis(1);
