//! What would a load cost, and how long would it wait: the production router, pool and scaler under simulated requests.

pub(crate) mod load;

use std::{
    collections::BinaryHeap,
    fmt::Write as _,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use sas_autoscale::{Driver, DriverConfig};
use sas_core::{
    Claim, Cx, Deployed, Error, ErrorKind, HostPattern, Lease, Outcome, Pool as _, RequestId, Result,
    RevisionKey, RevisionName, RevisionSpec, Route, RouteAction, RouteChange, RouteQuery, RouteRule,
    Router as _, Runtime, ScalingSpec, Source, Split, TenantKey, Timestamp, TokioClock,
};
use sas_pool::{InstancePool, PoolConfig};
use sas_router::RouteTable;
use tokio::time::Instant;

use self::load::{Popularity, poisson};
use crate::{
    draw::Draw,
    timed::{Counted, Timed},
};

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

/// How one replay went, in figures that can be compared between configurations.
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
    /// The instance-seconds of all revisions together.
    pub instance_seconds: f64,
    /// How many instances were started.
    pub starts: u64,
    /// Instances that were stopped.
    pub stops: u64,
    /// Requests that were running on an instance when it was stopped.
    pub cut: u64,
    /// Revisions that had a request at all.
    pub woken: u32,
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
/// Hosts that are routed in one change.
const ROUTED_AT_ONCE: usize = 10_000;
/// How long a request waits at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the load in virtual time on this thread. The same setup gives the same summary.
///
/// Requests arrive and calls end at the steps of the setup's `step`; starts and waits are exact to tokio's millisecond.
///
/// # Errors
/// `InvalidSpec` when the scaling spec is not valid, there is no revision, or the step is no time.
///
/// # Panics
/// When no runtime can be built.
pub fn what_if(setup: &Setup) -> Result<Summary> {
    what_if_watched(setup, |_, _| {})
}

/// The same, calling `each_second` with the seconds that have passed and the instances that live.
///
/// # Errors
/// As [`what_if`].
///
/// # Panics
/// When no runtime can be built.
pub fn what_if_watched(setup: &Setup, each_second: impl FnMut(usize, u64)) -> Result<Summary> {
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
    runtime.block_on(async { Platform::new(setup).await?.run(setup, each_second).await })
}

/// The production parts, with their revisions registered and routed.
struct Platform {
    counted: Arc<Counted>,
    clock: Arc<TokioClock>,
    pool: Arc<InstancePool>,
    router: RouteTable,
    driver: Arc<Driver>,
}

impl Platform {
    async fn new(setup: &Setup) -> Result<Self> {
        let runtime = Timed::new(setup.start, setup.service, Draw::new(setup.seed).fork(1));
        let counted = Arc::clone(&runtime.counted);
        let clock = Arc::new(TokioClock::starting_at(Timestamp::from_secs(1_767_571_200)));
        let mut config = PoolConfig::seeded(setup.seed);
        config.clock = Arc::clone(&clock) as _;
        config.meter = Some(Arc::clone(&counted) as _);
        config.max_revisions = setup.revisions;
        // What is awake in a shard is to fit into a core's cache.
        config.shards = (setup.revisions / 4_096).next_power_of_two().clamp(64, 1_024);
        let pool = InstancePool::new(config);
        let mut config = DriverConfig::default();
        config.clock = Arc::clone(&clock) as _;
        config.history = 0;
        let driver = Driver::new(Arc::clone(&pool) as _, sas_autoscale::default_scalers(), config);
        let platform = Self { counted, clock, pool, router: RouteTable::new(setup.seed), driver };
        platform.deploy(setup, Arc::new(runtime)).await?;
        Ok(platform)
    }

    async fn deploy(&self, setup: &Setup, runtime: Arc<dyn Runtime>) -> Result<()> {
        let mut spec = RevisionSpec::new("timed", Source::Function("f".into()));
        spec.concurrency = setup.concurrency;
        spec.scaling = setup.scaling.clone();
        spec.scaling.initial = 0;
        let artifact = runtime.prepare(&spec).await?;
        let deployed = Arc::new(Deployed::new(
            runtime,
            artifact,
            Arc::new(spec),
            RevisionName::new("default", "what-if", "what-if-00001"),
            TenantKey(1),
        ));
        let mut changes = Vec::with_capacity(ROUTED_AT_ONCE);
        for number in 0..setup.revisions {
            let key = self.pool.register(Arc::clone(&deployed))?;
            let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(key, 100)]));
            let mut host = String::new();
            host_of(number as usize, &mut host);
            changes.push(RouteChange::Set { host: HostPattern::Exact(host), rules: vec![rule] });
            if changes.len() == ROUTED_AT_ONCE || number + 1 == setup.revisions {
                self.router.apply(std::mem::take(&mut changes))?;
            }
        }
        Ok(())
    }

    /// Where the router sends a request of the `number`-th revision.
    fn route(&self, number: usize, host: &mut String, headers: &http::HeaderMap) -> Result<RevisionKey> {
        host_of(number, host);
        let query = RouteQuery { method: &http::Method::GET, host, path: "/", query: None, headers };
        match self.router.route(&query) {
            Ok(Route::To(target)) => Ok(target.revision),
            other => {
                Err(Error::new(ErrorKind::Unexpected, "what_if", format!("{host} is routed to {other:?}")))
            }
        }
    }

    async fn run(self, setup: &Setup, mut each_second: impl FnMut(usize, u64)) -> Result<Summary> {
        let popularity = Popularity::new(setup.revisions, setup.zipf);
        let total: f64 = setup.arrivals.iter().sum();
        let mut taken = Taken {
            draw: Draw::new(setup.seed).fork(2),
            running: BinaryHeap::new(),
            serial: 0,
            service: setup.service,
            every: (total / KEPT as f64).ceil().max(1.0) as u64,
            summary: Summary::default(),
        };
        let mut woken = vec![false; setup.revisions as usize];
        let (mut host, headers) = (String::new(), http::HeaderMap::new());
        let mut waiting = FuturesUnordered::new();
        let steps = (1.0 / setup.step.as_secs_f64()).round().max(1.0) as u32;
        let mut next = Instant::now();
        let mut timer = Box::pin(tokio::time::sleep_until(next));
        for (second, mean) in setup.arrivals.iter().enumerate() {
            let mut arrived = 0;
            for _ in 0..steps {
                let now = Instant::now();
                taken.release(now, &self.counted);
                for _ in 0..poisson(&mut taken.draw, mean / f64::from(steps)) {
                    arrived += 1;
                    let number = popularity.pick(&mut taken.draw);
                    woken[number] = true;
                    let claim = Claim::new(self.route(number, &mut host, &headers)?, TenantKey(1));
                    match self.pool.try_claim(&claim) {
                        Some(lease) => taken.lease(now, lease, &self.counted),
                        None => {
                            let cx = Cx::new(TenantKey(1), RequestId(0), now + PATIENCE);
                            let claimed = self.pool.claim(&claim, &cx);
                            waiting.push(async move { (now, claimed.await) });
                        }
                    }
                }
                next += setup.step;
                timer.as_mut().reset(next);
                loop {
                    tokio::select! {
                        biased;
                        Some((since, claimed)) = waiting.next(), if !waiting.is_empty() => match claimed {
                            Ok(lease) => taken.lease(since, lease, &self.counted),
                            Err(_) => taken.summary.failed += 1,
                        },
                        () = &mut timer => break,
                    }
                }
            }
            self.driver.step(sas_core::Clock::now(&*self.clock));
            let live = self.counted.live.load(Relaxed);
            taken.summary.series.push((arrived, live));
            each_second(second, live);
        }
        // What still runs when the load ends was not cut by the platform.
        let counted = &self.counted;
        (taken.summary.stops, taken.summary.cut) = (counted.stops.load(Relaxed), counted.cut.load(Relaxed));
        drop(waiting);
        taken.running.clear();
        self.pool.shutdown(Instant::now() + Duration::from_secs(1)).await;
        let mut summary = taken.summary;
        summary.waits.sort_unstable();
        summary.woken = woken.iter().map(|woken| u32::from(*woken)).sum();
        summary.starts = counted.starts.load(Relaxed);
        summary.peak = counted.peak.load(Relaxed);
        summary.busy_seconds = counted.busy_ns.load(Relaxed) as f64 / 1e9;
        summary.instance_seconds = summary.busy_seconds + counted.other_ns.load(Relaxed) as f64 / 1e9;
        Ok(summary)
    }
}

/// The calls that run, and what came of those before.
struct Taken {
    draw: Draw,
    running: BinaryHeap<Ends>,
    serial: u64,
    service: Duration,
    every: u64,
    summary: Summary,
}

impl Taken {
    /// A request that arrived at `since` has its slot.
    fn lease(&mut self, since: Instant, lease: Lease, counted: &Counted) {
        let now = Instant::now();
        self.summary.requests += 1;
        self.summary.cold += u64::from(lease.start.is_some());
        if self.summary.requests.is_multiple_of(self.every) {
            self.summary.waits.push((now - since).as_micros() as u64);
        }
        counted.begins(lease.instance.id());
        self.serial += 1;
        self.running.push(Ends(now + self.draw.exponential(self.service), self.serial, lease));
    }

    /// Gives back what ended by `now`.
    fn release(&mut self, now: Instant, counted: &Counted) {
        while self.running.peek().is_some_and(|Ends(at, ..)| *at <= now) {
            if let Some(Ends(_, _, mut lease)) = self.running.pop() {
                counted.ends(lease.instance.id());
                lease.outcome = Outcome::Ok;
            }
        }
    }
}

/// The host of the `number`-th revision.
fn host_of(number: usize, host: &mut String) {
    host.clear();
    let _ = write!(host, "app-{number}.example.test");
}
