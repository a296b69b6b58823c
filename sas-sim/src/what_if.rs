//! What would a load cost, and how long would it wait: the production pool and scaler under simulated requests.

use std::{
    collections::BinaryHeap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_autoscale::{Driver, DriverConfig};
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Claim, Cx, Deployed, Error, ErrorKind, ExitReport, Instance,
    InstanceEvents, InstanceId, Isolation, Lease, MeterPhase, MeterSink, Outcome, Pool as _, RequestId,
    Result, RevisionKey, RevisionName, RevisionSpec, Runtime, ScalingSpec, Source, StartRequest, TenantKey,
    Timestamp, TokioClock,
};
use sas_pool::{InstancePool, PoolConfig};
use tokio::time::Instant;

use crate::draw::Draw;

/// A platform and its load.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Setup {
    /// Requests that arrive on average in each second.
    pub arrivals: Vec<f64>,
    /// Over how many revisions, of falling popularity.
    pub revisions: u32,
    /// The exponent of that fall (Zipf); 0: all alike.
    pub zipf: f64,
    /// How the number of instances follows.
    pub scaling: ScalingSpec,
    /// Requests at once per instance; 0: unlimited.
    pub concurrency: u32,
    /// How long a start takes on average.
    pub start: Duration,
    /// How long a request takes on average.
    pub service: Duration,
    /// How finely time is cut.
    pub step: Duration,
    /// Where all randomness comes from.
    pub seed: u64,
}

impl Setup {
    /// One revision with default scaling under `arrivals`.
    pub fn new(arrivals: Vec<f64>) -> Self {
        Self {
            arrivals,
            revisions: 1,
            zipf: 1.0,
            scaling: ScalingSpec::default(),
            concurrency: 10,
            start: Duration::from_millis(500),
            service: Duration::from_millis(100),
            step: Duration::from_millis(100),
            seed: 1,
        }
    }
}

/// How it went.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Summary {
    /// Requests that were served.
    pub requests: u64,
    /// Of these, requests that waited for a start.
    pub cold: u64,
    /// Requests that were refused or waited beyond a minute.
    pub failed: u64,
    /// Waits for a slot in microseconds, sorted; every request below a million of them, else every n-th.
    pub waits: Vec<u64>,
    /// Instance-seconds in which at least one request ran.
    pub busy_seconds: f64,
    /// Instance-seconds in all.
    pub instance_seconds: f64,
    /// Starts of instances.
    pub starts: u64,
    /// The most instances at once.
    pub peak: u64,
    /// For each second: requests that arrived, and instances.
    pub series: Vec<(u32, u64)>,
}

impl Summary {
    /// The wait that a share of the requests does not exceed.
    pub fn wait(&self, quantile: f64) -> Duration {
        let last = self.waits.len().saturating_sub(1);
        let at = (quantile.clamp(0.0, 1.0) * last as f64).round() as usize;
        self.waits.get(at).map_or(Duration::ZERO, |micros| Duration::from_micros(*micros))
    }

    /// The share of instance time in which nothing ran.
    pub fn waste(&self) -> f64 {
        if self.instance_seconds > 0.0 { 1.0 - self.busy_seconds / self.instance_seconds } else { 0.0 }
    }
}

#[derive(Debug, Default)]
struct Counted {
    live: AtomicU64,
    starts: AtomicU64,
    peak: AtomicU64,
    busy_ns: AtomicU64,
    other_ns: AtomicU64,
}

impl MeterSink for Counted {
    fn phase(&self, _: InstanceId, _: RevisionKey, _: TenantKey, phase: MeterPhase, ns: u64) {
        let total = if phase == MeterPhase::Busy { &self.busy_ns } else { &self.other_ns };
        total.fetch_add(ns, Relaxed);
    }
}

#[derive(Debug)]
struct Timed {
    start: Duration,
    draw: Mutex<Draw>,
    counted: Arc<Counted>,
}

struct Running {
    id: InstanceId,
    events: Arc<dyn InstanceEvents>,
    counted: Arc<Counted>,
    gone: std::sync::atomic::AtomicBool,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Running({})", self.id)
    }
}

#[async_trait]
impl Instance for Running {
    fn id(&self) -> InstanceId {
        self.id
    }

    async fn stop(&self, _: Duration) -> Result<()> {
        if !self.gone.swap(true, Relaxed) {
            self.counted.live.fetch_sub(1, Relaxed);
            self.events.exited(self.id, ExitReport::at(Timestamp(0)));
        }
        Ok(())
    }
}

#[async_trait]
impl Runtime for Timed {
    fn name(&self) -> &'static str {
        "timed"
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::MicroVm)
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(Artifact::new((), ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        let time = self.draw.lock().between(self.start / 2, self.start + self.start / 2);
        if Instant::now() + time > request.deadline {
            tokio::time::sleep_until(request.deadline).await;
            return Err(Error::new(ErrorKind::Timeout, "start", "longer than the start's deadline"));
        }
        tokio::time::sleep(time).await;
        let now = self.counted.live.fetch_add(1, Relaxed) + 1;
        self.counted.peak.fetch_max(now, Relaxed);
        self.counted.starts.fetch_add(1, Relaxed);
        Ok(Arc::new(Running {
            id: request.id,
            events: request.events,
            counted: Arc::clone(&self.counted),
            gone: std::sync::atomic::AtomicBool::new(false),
        }))
    }

    async fn quiesce(&self) {}
}

/// A call that runs; the earliest end is the greatest.
struct Ends(Instant, u64, Lease);

impl PartialEq for Ends {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}
impl Eq for Ends {}
impl PartialOrd for Ends {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Ends {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}

/// Requests of which every n-th wait is kept, so that a day fits into memory.
const KEPT: u64 = 1_000_000;

/// Runs the load in virtual time on this thread. The same setup gives the same summary.
///
/// # Errors
/// `InvalidSpec` when the scaling spec is not valid or there is no revision.
///
/// # Panics
/// When no runtime can be built.
pub fn what_if(setup: &Setup) -> Result<Summary> {
    setup.scaling.validate()?;
    if setup.revisions == 0 || setup.step.is_zero() {
        let message = "revisions, step: at least one revision, and a step longer than nothing";
        return Err(Error::new(ErrorKind::InvalidSpec, "what_if", message));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(run(setup))
}

async fn run(setup: &Setup) -> Result<Summary> {
    let root = Draw::new(setup.seed);
    let counted = Arc::<Counted>::default();
    let runtime: Arc<dyn Runtime> =
        Arc::new(Timed { start: setup.start, draw: Mutex::new(root.fork(1)), counted: Arc::clone(&counted) });
    let clock = Arc::new(TokioClock::starting_at(Timestamp::from_secs(1_767_571_200)));
    let mut config = PoolConfig::seeded(setup.seed);
    config.clock = Arc::clone(&clock) as _;
    config.meter = Some(Arc::clone(&counted) as _);
    config.max_revisions = setup.revisions.max(1);
    let pool = InstancePool::new(config);
    let mut config = DriverConfig::default();
    config.clock = Arc::clone(&clock) as _;
    config.history = 0;
    let driver = Driver::new(Arc::clone(&pool) as _, sas_autoscale::default_scalers(), config);

    let mut spec = RevisionSpec::new("timed", Source::Function("f".into()));
    spec.concurrency = setup.concurrency;
    spec.scaling = setup.scaling.clone();
    spec.scaling.initial = 0;
    let artifact = runtime.prepare(&spec).await?;
    let deployed = Arc::new(Deployed {
        runtime,
        artifact,
        spec: Arc::new(spec),
        name: RevisionName::new("default", "what-if", "what-if-00001"),
        tenant: TenantKey(1),
    });
    let keys = (0..setup.revisions)
        .map(|_| pool.register(Arc::clone(&deployed)))
        .collect::<Result<Vec<RevisionKey>>>()?;
    let popularity = Popularity::new(setup.revisions, setup.zipf);

    let mut draw = root.fork(2);
    let (mut running, mut serial) = (BinaryHeap::new(), 0_u64);
    let mut waiting: Vec<(Instant, std::pin::Pin<Box<sas_core::Waiting>>)> = Vec::new();
    let mut summary = Summary::default();
    let total: f64 = setup.arrivals.iter().sum();
    let every = (total / KEPT as f64).ceil().max(1.0) as u64;
    let steps = (1.0 / setup.step.as_secs_f64()).round().max(1.0) as u32;
    let mut next = Instant::now();
    for mean in &setup.arrivals {
        let mut arrived = 0;
        for _ in 0..steps {
            let now = Instant::now();
            while running.peek().is_some_and(|Ends(at, ..)| *at <= now) {
                if let Some(Ends(_, _, mut lease)) = running.pop() {
                    lease.outcome = Outcome::Ok;
                }
            }
            let mut done = |since: Instant, lease: Lease, draw: &mut Draw, summary: &mut Summary| {
                summary.requests += 1;
                summary.cold += u64::from(lease.start.is_some());
                if summary.requests.is_multiple_of(every) {
                    summary.waits.push(since.elapsed().as_micros() as u64);
                }
                serial += 1;
                running.push(Ends(Instant::now() + draw.exponential(setup.service), serial, lease));
            };
            let mut at = 0;
            while at < waiting.len() {
                let polled =
                    std::future::poll_fn(|cx| std::task::Poll::Ready(waiting[at].1.as_mut().poll(cx))).await;
                match polled {
                    std::task::Poll::Ready(Ok(lease)) => {
                        let (since, _) = waiting.swap_remove(at);
                        done(since, lease, &mut draw, &mut summary);
                    }
                    std::task::Poll::Ready(Err(_)) => {
                        summary.failed += 1;
                        drop(waiting.swap_remove(at));
                    }
                    std::task::Poll::Pending => at += 1,
                }
            }
            for _ in 0..poisson(&mut draw, mean / f64::from(steps)) {
                arrived += 1;
                let revision = keys[popularity.pick(&mut draw)];
                let claim = Claim::new(revision, TenantKey(1));
                match pool.try_claim(&claim) {
                    Some(lease) => done(now, lease, &mut draw, &mut summary),
                    None => {
                        let cx = Cx::new(TenantKey(1), RequestId(0), now + Duration::from_secs(60));
                        waiting.push((now, Box::pin(pool.claim(&claim, &cx))));
                    }
                }
            }
            next += setup.step;
            tokio::time::sleep_until(next).await;
        }
        driver.step(sas_core::Clock::now(&*clock));
        summary.series.push((arrived, counted.live.load(Relaxed)));
    }
    running.clear();
    drop(waiting);
    pool.shutdown(Instant::now() + Duration::from_secs(1)).await;
    summary.waits.sort_unstable();
    summary.starts = counted.starts.load(Relaxed);
    summary.peak = counted.peak.load(Relaxed);
    summary.busy_seconds = counted.busy_ns.load(Relaxed) as f64 / 1e9;
    summary.instance_seconds = summary.busy_seconds + counted.other_ns.load(Relaxed) as f64 / 1e9;
    Ok(summary)
}

/// How many arrive when `mean` are expected (Knuth for few, the normal approximation for many).
fn poisson(draw: &mut Draw, mean: f64) -> u32 {
    if mean <= 0.0 {
        return 0;
    }
    if mean > 30.0 {
        let normal = (-2.0 * (1.0 - draw.unit()).ln()).sqrt() * (std::f64::consts::TAU * draw.unit()).cos();
        return mean.sqrt().mul_add(normal, mean).round().max(0.0) as u32;
    }
    let limit = (-mean).exp();
    let (mut count, mut product) = (0, draw.unit());
    while product > limit {
        count += 1;
        product *= draw.unit();
    }
    count
}

/// Zipf's law by its inverse, approximated as continuous.
struct Popularity {
    revisions: f64,
    exponent: f64,
}

impl Popularity {
    fn new(revisions: u32, exponent: f64) -> Self {
        Self { revisions: f64::from(revisions), exponent }
    }

    fn pick(&self, draw: &mut Draw) -> usize {
        let u = draw.unit();
        let n = self.revisions;
        let rank = if (self.exponent - 1.0).abs() < 1e-9 {
            (n + 1.0).powf(u)
        } else {
            let power = 1.0 - self.exponent;
            u.mul_add((n + 1.0).powf(power) - 1.0, 1.0).powf(1.0 / power)
        };
        (rank.floor() as usize).clamp(1, n as usize) - 1
    }
}
