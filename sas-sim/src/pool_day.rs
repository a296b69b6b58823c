//! A scripted day of many apps that sleep between their calls, on a platform of the default preset, in virtual time.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas::{Machine, Platform, Preset};
use sas_core::{
    Body, CapacityReason, Error, ErrorKind, Request, Result, RevisionSpec, Source, Timestamp, TokioClock,
};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

use crate::{draw::Draw, timed::Timed, what_if::load::poisson};

/// The script. Each day has working hours with a dip at noon and a quiet night; on top of it come bursts, in which many
/// apps are asked for at one instant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PoolDay {
    /// How many days. The capacity law is sure of itself after about three.
    pub days: u32,
    /// Apps that are called at random, by sessions of a few requests.
    pub apps: u32,
    /// Sessions a minute in the busiest hours.
    pub sessions: f64,
    /// Apps that nobody else asks for, and that are all asked for at one instant: each day, and once more on the last.
    pub burst_apps: u32,
    /// In which minute of each day: 540 is nine o'clock. It comes in the middle of the minute; stems are held by the
    /// minute, so that a burst in the first second of one meets what was held in the minute before.
    pub burst_minute: u32,
    /// In which minute of the last day they are asked for once more, which no day before had.
    pub surprise_minute: u32,
    /// How long a cold start takes on average.
    pub start: Duration,
    /// How long a start from a stem takes on average.
    pub specialize: Duration,
    /// How long a request takes on average.
    pub service: Duration,
    /// What the platform runs on; its preset takes its bounds from it.
    pub machine: Machine,
    /// Where all randomness comes from.
    pub seed: u64,
}

impl Default for PoolDay {
    fn default() -> Self {
        Self {
            days: 4,
            apps: 200,
            sessions: 12.0,
            burst_apps: 50,
            burst_minute: 9 * 60,
            surprise_minute: 20 * 60 + 30,
            start: Duration::from_millis(1500),
            specialize: Duration::from_millis(100),
            service: Duration::from_millis(50),
            machine: Machine::new(4).with_memory(64 << 30),
            seed: 1,
        }
    }
}

/// One minute of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Minute {
    /// Which, from the beginning.
    pub minute: u32,
    /// Requests in it.
    pub requests: u32,
    /// Starts that took a stem.
    pub from_stem: u64,
    /// Starts that found none.
    pub cold: u64,
    /// Stems that are held at its end.
    pub stems: u32,
    /// How many are to be held.
    pub size: u32,
    /// Why so many.
    pub reason: CapacityReason,
    /// Instances at its end.
    pub instances: u64,
    /// The longest that a request of it took.
    pub slowest: Duration,
}

/// What the clients saw in a minute.
#[derive(Debug, Default)]
struct Seen {
    requests: u32,
    slowest: Duration,
    failed: Option<String>,
}

/// Runs it on this thread, through [`Platform`], and tells every minute.
///
/// # Errors
/// `InvalidSpec` when the platform refuses what is asked for; `Unexpected` when a request fails.
///
/// # Panics
/// When no runtime can be built.
pub fn pool_day(script: &PoolDay) -> Result<Vec<Minute>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(run(script))
}

/// How busy a minute of the day is, 0 to 1: from eight to eighteen o'clock, less at noon, a little at night.
fn business(minute: u32) -> f64 {
    let hour = f64::from(minute) / 60.0;
    let bump = |middle: f64, width: f64| (-((hour - middle) / width).powi(2)).exp();
    (bump(10.5, 2.0) + 0.9 * bump(15.5, 2.2) + 0.25 * bump(20.5, 1.5)).clamp(0.03, 1.0)
}

async fn call(platform: Arc<Platform>, name: String, seen: Arc<Mutex<Seen>>) {
    let sent = Instant::now();
    let failed = match platform.call("default", &name, Request::new(Body::empty())).await {
        Ok(response) => match response.into_body().collect(64).await {
            Ok(_) => None,
            Err(error) => Some(error.to_string()),
        },
        Err(error) => Some(error.error.chain()),
    };
    let mut seen = seen.lock();
    seen.requests += 1;
    seen.slowest = seen.slowest.max(sent.elapsed());
    seen.failed = seen.failed.take().or(failed);
}

async fn run(script: &PoolDay) -> Result<Vec<Minute>> {
    let root = Draw::new(script.seed);
    let runtime = Timed::new(script.start, script.service, root.fork(1)).with_stems(script.specialize);
    let platform = Platform::builder()
        .preset(Preset::Default)
        .machine(script.machine)
        // Monday, midnight.
        .clock(TokioClock::starting_at(Timestamp::from_secs(1_767_571_200)))
        .seed(script.seed)
        // One thread needs one shard, and a tick that goes round fewer is cheaper.
        .configure_pool(|pool| pool.shards = 1)
        // A day has 86,400 seconds: how many stems are held is decided by the minute, and how many instances often enough.
        .driver(|driver| (driver.tick, driver.history) = (Duration::from_secs(10), 0))
        .runtime(runtime)
        .build()
        .await
        .map_err(|error| Error::new(ErrorKind::InvalidSpec, "pool day", error.to_string()))?;
    let platform = Arc::new(platform);
    let burst = |app: u32| format!("nine-{app}");
    for name in (0..script.apps).map(|app| format!("app-{app}")).chain((0..script.burst_apps).map(burst)) {
        let mut spec = RevisionSpec::new("timed", Source::Function("f".into()));
        spec.scaling.initial = 0;
        platform.deploy("default", &name, spec).await?;
    }
    let clients = TaskTracker::new();
    clients.close();
    let seen: Arc<Mutex<Seen>> = Arc::default();
    let mut draw = root.fork(2);
    let began = Instant::now();
    let mut minutes = Vec::new();
    let (mut used, mut missed) = (0, 0);
    for minute in 0..script.days * 1440 {
        let of_day = minute % 1440;
        let surprise = minute / 1440 + 1 == script.days && of_day == script.surprise_minute;
        if of_day == script.burst_minute || surprise {
            for app in 0..script.burst_apps {
                let (platform, seen) = (Arc::clone(&platform), Arc::clone(&seen));
                clients.spawn(async move {
                    sleep(Duration::from_secs(30)).await;
                    call(platform, burst(app), seen).await;
                });
            }
        }
        for _ in 0..poisson(&mut draw, script.sessions * business(of_day)) {
            let name = format!("app-{}", draw.below(u64::from(script.apps)));
            let after = draw.between(Duration::ZERO, Duration::from_secs(60));
            let pauses: Vec<Duration> =
                (0..1 + draw.below(6)).map(|_| draw.exponential(Duration::from_secs(5))).collect();
            let (platform, seen) = (Arc::clone(&platform), Arc::clone(&seen));
            clients.spawn(async move {
                sleep(after).await;
                for pause in pauses {
                    call(Arc::clone(&platform), name.clone(), Arc::clone(&seen)).await;
                    sleep(pause).await;
                }
            });
        }
        sleep_until(began + Duration::from_secs(60) * (minute + 1)).await;
        let Seen { requests, slowest, failed } = std::mem::take(&mut *seen.lock());
        if let Some(failed) = failed {
            return Err(Error::new(ErrorKind::Unexpected, "pool day", format!("a request failed: {failed}")));
        }
        let stems = platform.pool().stems();
        let stems = stems.first().ok_or_else(|| Error::unsupported("a day of stems without any class"))?;
        minutes.push(Minute {
            minute,
            requests,
            from_stem: stems.used - used,
            cold: stems.missed - missed,
            stems: stems.ready,
            size: stems.size,
            reason: stems.reason,
            instances: platform.pool().totals().instances,
            slowest,
        });
        (used, missed) = (stems.used, stems.missed);
    }
    clients.wait().await;
    platform.shutdown(Duration::from_secs(10)).await;
    Ok(minutes)
}
