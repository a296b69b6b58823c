//! More than a platform can serve, in virtual time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas::{Machine, Platform, Preset};
use sas_core::{
    Body, Error, ErrorKind, Handler as _, Request, Response, Result, RevisionSpec, Source, Timestamp,
    TokioClock,
};
use sas_router::Failure;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::{draw::Draw, timed::Timed, what_if::load::poisson};

/// One service, its tenant and its load.
#[derive(Clone, Debug)]
#[allow(clippy::exhaustive_structs, reason = "a plain record that callers write down")]
pub struct Asked {
    /// Who owns it; tenants share by weight.
    pub tenant: u32,
    /// How many requests a second arrive.
    pub rate: f64,
    /// Instances at most; 0: as many as the platform gives.
    pub max: u32,
}

/// A platform and more load than it can serve.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Overload {
    /// The services that are asked, each with its rate.
    pub services: Vec<Asked>,
    /// Instances at most in all.
    pub instances: u32,
    /// Requests at once per instance.
    pub concurrency: u32,
    /// Requests that may wait, per service.
    pub queue: u32,
    /// How long a start takes on average.
    pub start: Duration,
    /// How long a request takes on average.
    pub service: Duration,
    /// The longest that a request may take, its wait included.
    pub timeout: Duration,
    /// For how long requests come.
    pub length: Duration,
    /// Where all randomness comes from.
    pub seed: u64,
}

impl Overload {
    /// These services on a platform of a hundred slots: ten instances of ten, 100 ms a request.
    pub fn new(services: Vec<Asked>) -> Self {
        Self {
            services,
            instances: 10,
            concurrency: 10,
            queue: 500,
            start: Duration::from_millis(500),
            service: Duration::from_millis(100),
            timeout: Duration::from_secs(5),
            length: Duration::from_secs(600),
            seed: 1,
        }
    }
}

/// What one service got.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Got {
    /// How many requests arrived at the gateway.
    pub arrived: u64,
    /// Requests that were served.
    pub served: u64,
    /// What the others were told: status and reason.
    pub refused: BTreeMap<String, u64>,
    /// Of these, 429 and 503 that did not say when to come back, and answers without a reason.
    pub unexplained: u64,
    /// The most by which a refusal came after its deadline.
    pub late: Duration,
    /// How long refusals took, in microseconds, sorted.
    pub refusals: Vec<u64>,
    /// Latencies of those that were served, in microseconds, sorted.
    pub latencies: Vec<u64>,
    /// The most that waited.
    pub waited: u32,
}

impl Got {
    /// The latency that a share of the served requests does not exceed.
    pub fn latency(&self, quantile: f64) -> Duration {
        let last = self.latencies.len().saturating_sub(1);
        let at = (quantile.clamp(0.0, 1.0) * last as f64).round() as usize;
        self.latencies.get(at).map_or(Duration::ZERO, |micros| Duration::from_micros(*micros))
    }

    fn take(&mut self, response: &Response, took: Duration, timeout: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let status = response.status();
        if status.is_success() {
            self.served += 1;
            self.latencies.push(micros);
            return;
        }
        let reason = response.extensions().get::<Failure>().map_or("", |failure| failure.reason);
        *self.refused.entry(format!("{} {reason}", status.as_u16())).or_default() += 1;
        let asked_away = matches!(status.as_u16(), 429 | 503);
        let returns = response.headers().contains_key(http::header::RETRY_AFTER);
        self.unexplained += u64::from(reason.is_empty() || (asked_away && !returns));
        self.late = self.late.max(took.saturating_sub(timeout));
        self.refusals.push(micros);
    }
}

/// Runs it in virtual time on this thread, calling `each_second` with the seconds that have passed.
///
/// # Errors
/// `InvalidSpec` when the gateway or a spec refuses what is asked for.
///
/// # Panics
/// When no runtime can be built.
pub fn overload(asked: &Overload, each_second: impl FnMut(u64)) -> Result<Vec<Got>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O");
    runtime.block_on(run(asked, each_second))
}

async fn run(asked: &Overload, mut each_second: impl FnMut(u64)) -> Result<Vec<Got>> {
    let root = Draw::new(asked.seed);
    let instances = asked.instances;
    let platform = Platform::builder()
        .preset(Preset::Knative)
        .machine(Machine::new(2))
        .clock(TokioClock::starting_at(Timestamp::from_secs(1_767_571_200)))
        .seed(asked.seed)
        .configure_pool(move |pool| pool.budget.instances = instances)
        .driver(|driver| driver.history = 0)
        .runtime(Timed::new(asked.start, asked.service, root.fork(1)))
        .build()
        .await
        .map_err(|error| Error::new(ErrorKind::InvalidSpec, "overload", error.to_string()))?;
    let (mut keys, mut hosts) = (Vec::new(), Vec::new());
    for (number, service) in asked.services.iter().enumerate() {
        let mut spec = RevisionSpec::new("timed", Source::Function("f".into()));
        spec.concurrency = asked.concurrency;
        spec.queue_limit = asked.queue;
        spec.scaling.max = service.max;
        spec.scaling.initial = 0;
        spec.timeouts.request = asked.timeout;
        let (namespace, name) = (format!("tenant-{}", service.tenant), format!("svc-{number}"));
        let deployed = platform.deploy(&namespace, &name, spec).await?;
        let key = platform.control().revision_key(&namespace, &name, &deployed.revision);
        keys.push(key.ok_or_else(|| Error::new(ErrorKind::NotFound, "overload", name.clone()))?);
        hosts.push(format!("{name}.{namespace}.localhost"));
    }

    let got: Vec<_> = asked.services.iter().map(|_| Arc::new(Mutex::new(Got::default()))).collect();
    let clients = TaskTracker::new();
    clients.close();
    let (mut draw, timeout) = (root.fork(2), asked.timeout);
    let began = Instant::now();
    let steps = u64::try_from(asked.length.as_millis() / 10).unwrap_or(u64::MAX);
    for step in 1..=steps {
        for (number, host) in hosts.iter().enumerate() {
            let got = &got[number];
            for _ in 0..poisson(&mut draw, asked.services[number].rate / 100.0) {
                let request = http::Request::builder().uri("/").header(http::header::HOST, host);
                let request: Request = request.body(Body::empty()).map_err(|error| {
                    Error::new(ErrorKind::Unexpected, "overload", "a request").with_source(error)
                })?;
                got.lock().arrived += 1;
                let (gateway, got) = (Arc::clone(platform.gateway()), Arc::clone(got));
                clients.spawn(async move {
                    let sent = Instant::now();
                    let response = gateway.handle(request).await;
                    got.lock().take(&response, sent.elapsed(), timeout);
                });
            }
        }
        tokio::time::sleep_until(began + Duration::from_millis(10) * u32::try_from(step).unwrap_or(u32::MAX))
            .await;
        for (key, got) in keys.iter().zip(&got) {
            let queued = platform.pool().status(*key).map_or(0, |status| status.queued);
            let mut got = got.lock();
            got.waited = got.waited.max(queued);
        }
        if step % 100 == 0 {
            each_second(step / 100);
        }
    }
    clients.wait().await;
    platform.shutdown(Duration::from_secs(1)).await;
    Ok(got
        .iter()
        .map(|got| {
            let mut got = std::mem::take(&mut *got.lock());
            got.latencies.sort_unstable();
            got.refusals.sort_unstable();
            got
        })
        .collect())
}
