//! What happens on a platform, published as CloudEvents; and that nothing that happens waits for who is told.

use std::{sync::Arc, time::Duration};

use metrics_exporter_prometheus::PrometheusBuilder;
use parking_lot::Mutex;
use sas::{
    core::{
        Artifact, Capabilities, DEFAULT_ENGINE, EnvValue, Event, EventPublisher, Instance, Recorder, Runtime,
        StartRequest, Timestamp,
    },
    prelude::*,
};
use sas_testkit::fake::FakeClock;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const START: Timestamp = Timestamp::from_secs(1_767_571_200);

/// Keeps what is published, or never takes anything.
#[derive(Clone, Debug, Default)]
struct Shelf {
    taken: Arc<Mutex<Vec<Event>>>,
    hangs: bool,
}

#[async_trait::async_trait]
impl EventPublisher for Shelf {
    async fn publish(&self, event: Event) -> sas::core::Result<()> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        self.taken.lock().push(event);
        Ok(())
    }
}

impl Shelf {
    fn of(&self, kind: &str) -> Vec<(Event, Value)> {
        let taken = self.taken.lock();
        let found = taken.iter().filter(|event| event.kind() == kind);
        found.map(|event| (event.clone(), serde_json::from_slice(event.data()).expect("JSON"))).collect()
    }

    async fn waits_for(&self, kind: &str) -> Vec<(Event, Value)> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let found = self.of(kind);
            if !found.is_empty() {
                return found;
            }
            let kinds = || self.taken.lock().iter().map(|event| event.kind().to_owned()).collect::<Vec<_>>();
            assert!(Instant::now() < deadline, "no {kind} among {:?}", kinds());
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Functions that do not start where the variable `SICK` stands.
#[derive(Debug)]
struct Starting(InlineRuntime);

#[async_trait::async_trait]
impl Runtime for Starting {
    fn name(&self) -> &'static str {
        self.0.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    async fn prepare(&self, spec: &RevisionSpec) -> sas::core::Result<Artifact> {
        self.0.prepare(spec).await
    }
    async fn start(&self, request: StartRequest) -> sas::core::Result<Arc<dyn Instance>> {
        if request.deployed.spec.env.contains_key("SICK") {
            return Err(Error::new(ErrorKind::Crashed, "start", "no such table: orders"));
        }
        self.0.start(request).await
    }
    async fn quiesce(&self) {
        self.0.quiesce().await;
    }
}

fn builder() -> PlatformBuilder {
    let answers = |_: Request, _cx: Cx| async { Response::new(Body::from("here")) };
    Platform::builder()
        .runtime(Starting(InlineRuntime::new().with("answers", answers)))
        .clock(FakeClock::starting_at(START))
}

fn answers() -> RevisionSpec {
    RevisionSpec::new("inline", Source::Function("answers".to_owned()))
}

async fn get(platform: &Platform, name: &str) -> u16 {
    let host = format!("{name}.shop.localhost");
    let request = http::Request::get("/").header("host", host).body(Body::empty()).expect("a request");
    platform.gateway().handle(request).await.status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn services_instances_scalings_engines_and_findings_are_told() {
    let shelf = Shelf::default();
    let platform = builder()
        .lifecycle_publisher(shelf.clone())
        .diagnosis(|diagnosis| diagnosis.every = Duration::from_secs(1))
        .build()
        .await
        .expect("a platform");
    platform.deploy("shop", "cart", answers()).await.expect("deployed");
    let (event, data) = shelf.waits_for("dev.sas.service.deployed").await.remove(0);
    assert_eq!((event.source(), event.subject()), ("/sas/lifecycle", Some("shop/cart")));
    assert_eq!(event.time(), Some(START));
    assert_eq!(event.extensions()["namespace"].to_text(), "shop");
    assert_eq!(data, json!({"revision": "cart-00001", "generation": 1, "created": true}));

    assert_eq!(get(&platform, "cart").await, 200);
    let (_, data) = shelf.waits_for("dev.sas.scaled").await.remove(0);
    assert_eq!((&data["revision"], &data["from"], &data["to"]), (&json!("cart-00001"), &json!(0), &json!(1)));
    assert!(data["reason"].is_string(), "{data}");

    let mut sick = answers();
    sick.env.insert("SICK".to_owned(), EnvValue::Literal("yes".to_owned()));
    platform.deploy("shop", "sick", sick).await.expect("deployed");
    // A machine may have findings of its own, told before the first request.
    let found = |shelf: &Shelf| {
        let raised = shelf.of("dev.sas.finding.raised");
        raised.into_iter().find(|(_, data)| data["check"] == "crash_loop")
    };
    let crash_loop = async {
        while found(&shelf).is_none() {
            assert!(get(&platform, "sick").await >= 500);
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), crash_loop).await.expect("a finding");
    let (event, data) = shelf.waits_for("dev.sas.instance.failed").await.remove(0);
    assert_eq!((event.subject(), &data["reason"]), (Some("shop/sick"), &json!("start_failed")));
    assert!(data["message"].as_str().expect("a message").contains("no such table: orders"), "{data}");
    assert!(data["instance"].is_string(), "{data}");
    let (event, data) = found(&shelf).expect("the finding");
    assert_eq!((event.subject(), &data["severity"]), (Some("shop/sick (sick-00001)"), &json!("critical")));
    assert!(data["evidence"]["failedStarts"].as_u64() >= Some(3), "{data}");
    platform.control().delete("shop", "sick").await.expect("deleted");
    let cleared = async {
        while !shelf.of("dev.sas.finding.cleared").iter().any(|(_, data)| data["check"] == "crash_loop") {
            sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), cleared).await.expect("a finding that is cleared");
    assert_eq!(shelf.waits_for("dev.sas.service.deleted").await.len(), 1);

    let report = platform.control().upgrade_engine(DEFAULT_ENGINE).await.expect("replaced");
    assert!(report.drained, "{report:?}");
    let (event, _) = shelf.waits_for("dev.sas.engine.ready").await.remove(0);
    assert_eq!(event.subject(), Some("default"));
    assert_eq!(event.extensions().len(), 0, "engines are the platform's");
    assert_eq!(shelf.of("dev.sas.engine.upgrading").len(), 1);
    platform.shutdown(Duration::from_secs(5)).await;
    let taken = shelf.taken.lock();
    let mut ids: Vec<_> = taken.iter().map(Event::id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), taken.len(), "each has an id of its own");
}

#[tokio::test(start_paused = true)]
async fn a_publisher_that_hangs_holds_nothing_and_what_it_can_not_be_told_is_counted() {
    let prometheus = PrometheusBuilder::new().build_recorder();
    let rendered = prometheus.handle();
    let shelf = Shelf { hangs: true, ..Shelf::default() };
    let platform = builder()
        .recorder(Recorder::new(Arc::new(prometheus)))
        .lifecycle_publisher(shelf)
        .build()
        .await
        .expect("a platform");
    let lost = |outcome: &str| {
        let text = rendered.render();
        let name = format!("sas_lifecycle_events_total{{outcome=\"{outcome}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&name)?.parse::<u64>().ok()).unwrap_or(0)
    };
    let began = Instant::now();
    for at in 0..700 {
        platform.deploy("shop", &format!("cart-{at}"), answers()).await.expect("deployed");
    }
    assert_eq!(began.elapsed(), Duration::ZERO, "no deploy waited for it");
    // Two for each service: 64 are under way at the publisher at most, 1,024 wait.
    assert!((1_400 - 1_024 - 64..=1_400 - 1_024).contains(&lost("full")), "{} are lost", lost("full"));
    let began = Instant::now();
    platform.shutdown(Duration::from_secs(30)).await;
    assert!(began.elapsed() < Duration::from_secs(10), "nor does the end: {:?}", began.elapsed());
    let all = lost("full") + lost("unfinished") + lost("published");
    assert_eq!((all, lost("published")), (1_400, 0), "each is counted once");
}

#[tokio::test]
async fn a_broker_is_named_with_its_namespace() {
    for name in ["life", "ops/", "/life", "ops/life/more"] {
        let error = builder().lifecycle_events_to(name).build().await.expect_err("refused").to_string();
        assert!(error.contains("lifecycle_events_to") && error.contains("ops/default"), "{name}: {error}");
    }
}
