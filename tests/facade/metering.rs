//! What is metered equals what the pool and the router saw, exactly, on a whole platform under random load.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics_exporter_prometheus::PrometheusBuilder;
use sas::{
    control::{Meter, MeterConfig},
    core::{
        Hour, InstanceId, MemoryStore, MeterPhase, MeterSink, MeterTotals, Metered, Recorder, RequestUsage,
        RevisionKey, Store as _, Timestamp, TokioClock, UsageQuery, UsageScope,
    },
    prelude::*,
};
use tokio_util::sync::CancellationToken;

/// Twenty seconds before an hour ends.
const START: Timestamp = Timestamp::from_secs(1_767_571_200 - 20);

/// Passes readings on, and adds them up in the plainest way.
#[derive(Debug)]
struct Account {
    meter: Arc<Meter>,
    sums: Mutex<BTreeMap<String, MeterTotals>>,
}

impl Account {
    fn of<'a>(&self, of: Metered<'a>) -> (Metered<'a>, String) {
        (of, of.name.map_or_else(String::new, ToString::to_string))
    }
}

impl MeterSink for Account {
    fn phase(&self, of: Metered<'_>, id: InstanceId, phase: MeterPhase, ns: u64) {
        let (of, name) = self.of(of);
        self.sums.lock().unwrap().entry(name).or_default().add(phase, ns);
        self.meter.phase(of, id, phase, ns);
    }
    fn requests(&self, of: Metered<'_>, used: &RequestUsage) {
        let (of, name) = self.of(of);
        self.sums.lock().unwrap().entry(name).or_default().add_requests(used);
        self.meter.requests(of, used);
    }
    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        Some(&*self.meter)
    }
    fn forget(&self, revision: RevisionKey) {
        self.meter.forget(revision);
    }
}

fn runtime() -> InlineRuntime {
    InlineRuntime::new().with("work", |request: Request, _cx| async move {
        let body = request.into_body().collect(1 << 20).await?;
        let ms: u64 = std::str::from_utf8(&body)?.parse()?;
        tokio::time::sleep(Duration::from_millis(ms)).await;
        if ms.is_multiple_of(11) {
            return Err("a function that fails".into());
        }
        Ok::<_, sas::core::BoxError>(Response::new(Body::from("12345")))
    })
}

fn manifest(name: &str, version: u64) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations: \
         {{sas.dev/function: work}}\nspec:\n  template:\n    metadata:\n      annotations: \
         {{autoscaling.knative.dev/window: 6s, autoscaling.knative.dev/scale-to-zero-pod-retention-period: \
         0s}}\n    spec:\n      containerConcurrency: 2\n      containers: [{{env: [{{name: V, value: \
         \"{version}\"}}]}}]\n"
    )
}

/// A counter of the router, over all classes of answers.
fn counted(text: &str, path: &str) -> u64 {
    let lines = text.lines().filter(|line| line.starts_with("sas_router_requests_total{"));
    let lines = lines.filter(|line| line.contains(&format!("path=\"{path}\"")));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[derive(Default)]
struct Sent {
    answered: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

async fn send(platform: &Platform, service: &str, ms: u64, sent: &Sent) {
    let body = ms.to_string();
    let length = body.len() as u64;
    let request = http::Request::builder()
        .method("POST")
        .uri("/")
        .header("host", format!("{service}.default.localhost"))
        .body(Body::from(body))
        .expect("a request");
    let response = platform.gateway().handle(request).await;
    let from_instance = response.status() == 200 || response.status() == 500;
    let bytes = response.into_body().collect(1 << 20).await.map_or(0, |bytes| bytes.len());
    if from_instance {
        sent.answered.fetch_add(1, Ordering::Relaxed);
        sent.bytes_in.fetch_add(length, Ordering::Relaxed);
        sent.bytes_out.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

async fn random_day(seed: u64) {
    let store = Arc::new(MemoryStore::default());
    let clock = TokioClock::starting_at(START);
    let mut expected: BTreeMap<String, MeterTotals> = BTreeMap::new();
    let mut state = seed;
    for life in 0..2 {
        let mut config = MeterConfig::default();
        config.store = Arc::clone(&store) as _;
        config.clock = Arc::new(clock);
        let meter = Arc::new(Meter::new(config));
        assert_eq!(meter.begin().await.unwrap(), None);
        let stop = CancellationToken::new();
        let running = tokio::spawn({
            let (meter, stop) = (Arc::clone(&meter), stop.clone());
            async move { meter.run(stop).await }
        });
        let account = Arc::new(Account { meter: Arc::clone(&meter), sums: Mutex::default() });
        let prometheus = PrometheusBuilder::new().build_recorder();
        let rendered = prometheus.handle();
        let platform = Platform::builder()
            .clock(clock)
            .seed(seed + 1)
            .store(Arc::clone(&store))
            .runtime(runtime())
            .recorder(Recorder::new(Arc::new(prometheus)))
            .meter_sink(Arc::clone(&account))
            .build()
            .await
            .expect("a platform");
        let platform = Arc::new(platform);
        let sent = Arc::new(Sent::default());
        let mut calls = tokio::task::JoinSet::new();
        for step in 0..60 {
            if step % 20 == 0 {
                let name = ["one", "two"][(draw(&mut state) % 2) as usize];
                platform.apply(&manifest(name, life * 100 + step), None).await.expect("it deploys");
            }
            for _ in 0..draw(&mut state) % 4 {
                let (platform, sent) = (Arc::clone(&platform), Arc::clone(&sent));
                let (service, ms) = (["one", "two"][(draw(&mut state) % 2) as usize], draw(&mut state) % 900);
                calls.spawn(async move { send(&platform, service, ms, &sent).await });
            }
            tokio::time::sleep(Duration::from_nanos(draw(&mut state) % 1_500_000_000)).await;
        }
        calls.join_all().await;
        let text = rendered.render();
        platform.shutdown(Duration::from_secs(30)).await;
        stop.cancel();
        running.await.unwrap();
        meter.close().await.unwrap();

        let sums = account.sums.lock().unwrap().clone();
        let all = sums.values().fold(MeterTotals::default(), |mut all, used| {
            all.add_all(used);
            all
        });
        assert!(all.requests > 20 && all.cold_starts > 0 && all.busy_ns > 0 && all.idle_ns > 0, "{all:?}");
        assert_eq!(all.requests, counted(&text, "warm") + counted(&text, "cold"), "{text}");
        assert_eq!(all.cold_starts, counted(&text, "cold"));
        assert_eq!(all.requests, sent.answered.load(Ordering::Relaxed));
        assert_eq!(all.bytes_in, sent.bytes_in.load(Ordering::Relaxed));
        assert_eq!(all.bytes_out, sent.bytes_out.load(Ordering::Relaxed));
        for (name, used) in sums {
            expected.entry(name).or_default().add_all(&used);
        }
    }
    let meter = {
        let mut config = MeterConfig::default();
        config.store = store;
        config.clock = Arc::new(clock);
        Meter::new(config)
    };
    let path = |namespace: &str, service: &str, revision: &str| format!("{namespace}/{service}/{revision}");
    let kept: BTreeMap<String, MeterTotals> = meter
        .totals(&UsageScope::all())
        .await
        .unwrap()
        .into_iter()
        .map(|used| (path(&used.namespace, &used.service, &used.revision), used.totals))
        .collect();
    assert_eq!(kept, expected, "over revisions that are gone and a restart");
    let hours = meter.hours(&UsageScope::all(), Hour(0), Hour(u64::MAX), None, 10_000).await.unwrap().hours;
    let mut by_hour: BTreeMap<String, MeterTotals> = BTreeMap::new();
    for used in &hours {
        by_hour
            .entry(path(&used.namespace, &used.service, &used.revision))
            .or_default()
            .add_all(&used.totals);
    }
    assert_eq!(by_hour, expected, "the hours add up to the sums");
    assert!(hours.iter().any(|used| used.hour > Hour::of(START)) && hours[0].hour == Hour::of(START));
}

#[tokio::test(start_paused = true)]
async fn sums_by_revision_and_hour_equal_every_reading_and_the_routers_counts() {
    for seed in 0..6 {
        random_day(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_platform_keeps_its_meter_in_its_store() {
    let store = Arc::new(MemoryStore::default());
    for life in 1..=3_u64 {
        let platform = Platform::builder()
            .store(Arc::clone(&store))
            .runtime(runtime())
            .build()
            .await
            .expect("a platform");
        assert!(platform.usage().unwrap().gaps().await.unwrap().is_empty());
        platform.apply(&manifest("one", life), None).await.expect("it deploys");
        let sent = Sent::default();
        for _ in 0..10 {
            send(&platform, "one", 1, &sent).await;
        }
        let view = platform.control().usage_of(&UsageScope::service("default", "one")).await.unwrap();
        assert_eq!((view.usage.len() as u64, view.total.requests), (life, life * 10));
        let error = platform.control().usage_cost(&UsageScope::all(), None).await.unwrap_err();
        assert!(error.to_string().contains("price table"), "{error}");
        platform.shutdown(Duration::from_secs(5)).await;
    }
    let stamped = store.get("usage/checkpoint/host").await.unwrap().expect("a last checkpoint");
    assert!(String::from_utf8_lossy(&stamped.value).contains("\"open\":false"));
}
