//! What the scheduling benches share: a counting allocator, clocks, a runtime whose starts do nothing, and the real
//! router, pool and scaler around it.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "a module of benches, each of which uses a part of it"
)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Claim, Cx, Deployed, HostPattern, Instance, InstanceId,
    InstanceTarget, Isolation, Lease, Pool, RequestId, Result, RevisionKey, RevisionName, RevisionSpec,
    Route, RouteAction, RouteChange, RouteQuery, RouteRule, Router, Runtime, Source, Split, StartRequest,
    TenantKey,
};
use sas_pool::{InstancePool, PoolConfig, config::IdleRule};
use sas_router::RouteTable;
use tokio::time::Instant;

/// Counts what is allocated, by everybody.
pub struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
static LIVE: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counters touch no allocated memory.
#[allow(unsafe_code, reason = "an allocator that counts has no safe form")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

pub fn allocations() -> u64 {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// Bytes that are allocated now, as asked for.
pub fn live_bytes() -> u64 {
    LIVE.load(Ordering::Relaxed)
}

/// CPU time of the whole process so far.
pub fn cpu_time() -> Duration {
    let mut ns = 0;
    for task in std::fs::read_dir("/proc/self/task").expect("a Linux machine") {
        let path = task.expect("a task").path().join("schedstat");
        // A task may end between the listing and the reading.
        if let Ok(text) = std::fs::read_to_string(path) {
            ns += text.split(' ').next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Duration::from_nanos(ns)
}

/// Peak resident memory in MiB.
pub fn peak_rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024)
}

/// SplitMix64.
pub struct Draws(pub u64);

impl Draws {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// Arrivals of a Poisson process, in nanoseconds from its begin.
pub fn arrivals(seed: u64, per_second: f64, count: usize) -> Vec<u64> {
    let mut draws = Draws(seed);
    let mut at = 0.0;
    (0..count)
        .map(|_| {
            at += -(1.0 - draws.unit()).ln() / per_second * 1e9;
            at as u64
        })
        .collect()
}

/// A runtime whose start is nothing but making the instance.
#[derive(Debug)]
pub struct Noop;

#[derive(Debug)]
pub struct NoopInstance(pub InstanceId);

#[async_trait]
impl Runtime for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(artifact())
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        Ok(Arc::new(NoopInstance(request.id)))
    }

    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        Some(Ok(Arc::new(NoopInstance(request.id))))
    }

    async fn quiesce(&self) {}
}

/// Nobody calls it.
static NOWHERE: sas_core::Endpoint = sas_core::Endpoint::Tcp(std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    9,
));

#[async_trait]
impl Instance for NoopInstance {
    fn id(&self) -> InstanceId {
        self.0
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&NOWHERE)
    }

    async fn stop(&self, _: Duration) -> Result<()> {
        Ok(())
    }
}

pub fn artifact() -> Artifact {
    Artifact::new((), ArtifactInfo::default())
}

/// The platform's parts, and what their revisions are.
pub struct World {
    pub router: RouteTable,
    pub pool: Arc<InstancePool>,
    pub hosts: Vec<String>,
    pub keys: Vec<RevisionKey>,
}

/// A world of `revisions`, every one at zero, with keep-alive 0. Spec, artifact and runtime are shared.
pub fn world(runtime: Arc<dyn Runtime>, revisions: usize, concurrency: u32, idle: IdleRule) -> World {
    let mut config = PoolConfig::seeded(1);
    config.idle = idle;
    let pool = InstancePool::new(config);
    let router = RouteTable::new(1);
    let mut spec = RevisionSpec::new("noop", Source::Function("noop".into()));
    spec.concurrency = concurrency;
    let (spec, artifact) = (Arc::new(spec), artifact());
    let mut world = World { router, pool, hosts: Vec::new(), keys: Vec::new() };
    let mut changes = Vec::with_capacity(revisions);
    for n in 0..revisions {
        let service = format!("s{n:06}");
        let host = format!("{service}.default.example");
        let deployed = Deployed::new(
            Arc::clone(&runtime),
            artifact.clone(),
            Arc::clone(&spec),
            RevisionName::new("default", &service, "00001"),
            TenantKey(1),
        );
        let key = world.pool.register(Arc::new(deployed)).expect("room");
        let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(key, 100)]));
        changes.push(RouteChange::Set { host: HostPattern::Exact(host.clone()), rules: vec![rule] });
        world.hosts.push(host);
        world.keys.push(key);
    }
    world.router.apply(changes).expect("valid routes");
    world
}

impl World {
    /// Route and warm way, then the cold way; asserts that nothing was there. The lease is what a request would be
    /// sent on.
    pub fn assign(&self, host: &str, headers: &http::HeaderMap, cx: &Cx) -> sas_core::Waiting {
        let claim = self.claim_of(host, headers);
        assert!(self.pool.try_claim(&claim).is_none(), "the revision was not cold");
        self.pool.claim(&claim, cx)
    }

    pub fn claim_of(&self, host: &str, headers: &http::HeaderMap) -> Claim {
        let query = RouteQuery { method: &http::Method::GET, host, path: "/", query: None, headers };
        match self.router.route(&query) {
            Ok(Route::To(target)) => Claim::new(target.revision, target.tenant),
            other => panic!("no route: {other:?}"),
        }
    }
}

/// A context with a deadline that is never met.
pub fn context() -> Cx {
    Cx::new(TenantKey(1), RequestId(1), Instant::now() + Duration::from_secs(3600))
}

/// What a future that is ready at once gives.
pub fn now_or_panic(waiting: sas_core::Waiting) -> Lease {
    let mut waiting = std::pin::pin!(waiting);
    match waiting.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(Ok(lease)) => lease,
        std::task::Poll::Ready(Err(error)) => panic!("{error}"),
        std::task::Poll::Pending => panic!("a start that completes at once waited"),
    }
}

/// Median with least and most.
pub fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

/// The value below which `share` of the sorted latencies are.
pub fn percentile(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() as f64 * share) as usize).min(sorted.len() - 1)]
}

/// A row of the table.
pub fn row(name: &str, figure: &str, target: &str) {
    #[allow(clippy::print_stdout, reason = "a bench prints its table")]
    {
        println!("{name:<44} {figure:<58} {target}");
    }
}
