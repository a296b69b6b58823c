//! Events to services: attempts, waits, dead letters, slots. And the host that keeps sources running. Time is paused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;
use sas_core::{
    Ack, Body, Error, ErrorKind, Event, EventSink, Guard, Invoker, Purpose, Response, Result, Retry, Store,
    Target, Timestamp, TriggerCx, TriggerSource, TriggerSpec, Triggers,
};
use sas_testkit::fake::{FakeClock, FakeEventSink, FakeInvoker, FakeStore};
use sas_trigger::{
    Backoff, DeadLetter, Delivery, DeliveryConfig, Filter, RetryPolicy, TriggerHost, TriggerHostConfig,
};
use tokio::{sync::Semaphore, time::Instant};

use crate::hosts::OneOfSeveral;

const START: Timestamp = Timestamp::from_secs(1_767_571_200);

/// An invoker that gives these statuses in turn, then 200.
fn answering(statuses: &[u16]) -> Arc<FakeInvoker> {
    let statuses: Vec<u16> = statuses.to_vec();
    let at = AtomicU32::new(0);
    FakeInvoker::new(move |_| {
        let at = at.fetch_add(1, Ordering::Relaxed) as usize;
        let mut response = Response::new(Body::empty());
        *response.status_mut() =
            StatusCode::from_u16(statuses.get(at).copied().unwrap_or(200)).expect("a status");
        Ok(response)
    })
}

fn delivery(
    invoker: &Arc<FakeInvoker>,
    store: &Arc<FakeStore>,
    change: impl FnOnce(&mut DeliveryConfig),
) -> Delivery {
    let mut config = DeliveryConfig::new("default/t", "default/hello");
    change(&mut config);
    Delivery::new(
        config,
        Arc::clone(invoker) as Arc<dyn Invoker>,
        Arc::clone(store) as Arc<dyn Store>,
        Arc::new(Semaphore::new(4)),
    )
}

fn event(id: &str) -> Event {
    Event::new(id, "/clock", "tick")
        .unwrap()
        .with_data("application/json", "{\"a\":1}")
        .unwrap()
        .with_time(START)
}

async fn send(delivery: &Delivery, event: Event) -> Result<Ack> {
    let slot = delivery.ready().await?;
    delivery.deliver(slot, event).await
}

#[tokio::test(start_paused = true)]
async fn an_event_is_a_post_in_binary_mode_that_wakes_and_is_metered() {
    let (invoker, store) = (answering(&[]), Arc::default());
    let delivery = delivery(&invoker, &store, |config| config.path = "/in?x=1".to_owned());
    let event = event("7").with_subject("ü \"q\" 100%").unwrap().with_extension("team", "a b").unwrap();
    assert_eq!(send(&delivery, event).await.unwrap(), Ack::Completed);
    let seen = invoker.seen();
    let call = &seen[0];
    assert_eq!((call.head.method().as_str(), call.head.uri().to_string()), ("POST", "/in?x=1".to_owned()));
    assert_eq!(
        (call.target.clone(), call.purpose),
        (Target::Service("default/hello".into()), Purpose::Event)
    );
    assert_eq!(call.body, "{\"a\":1}");
    for (name, value) in [
        ("ce-specversion", "1.0"),
        ("ce-id", "7"),
        ("ce-source", "/clock"),
        ("ce-type", "tick"),
        ("ce-subject", "%C3%BC%20%22q%22%20100%25"),
        ("ce-time", "2026-01-05T00:00:00Z"),
        ("ce-team", "a%20b"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(call.head.headers()[name], value, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_pass_is_tried_again_with_growing_waits() {
    let (invoker, store) = (answering(&[503, 429, 404]), Arc::default());
    let delivery = delivery(&invoker, &store, |_| {});
    let began = Instant::now();
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Completed);
    assert_eq!(invoker.seen().len(), 4);
    assert_eq!(began.elapsed().as_millis(), 500 + 1000 + 2000);
}

/// A target that fails `failures` times, while the host that delivers loses its namespace at the attempt `lost_at`.
fn losing(failures: u32, lost_at: u32) -> (Arc<FakeInvoker>, Arc<OneOfSeveral>) {
    let hosts =
        Arc::new(OneOfSeveral::acting(Guard { key: "cluster/shard/0000".to_owned(), expected: None }));
    let (attempts, told) = (AtomicU32::new(0), Arc::clone(&hosts));
    let invoker = FakeInvoker::new(move |_| {
        let attempt = attempts.fetch_add(1, Ordering::Relaxed) + 1;
        if attempt == lost_at {
            told.loses();
        }
        let mut response = Response::new(Body::empty());
        if attempt <= failures {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        Ok(response)
    });
    (invoker, hosts)
}

#[tokio::test(start_paused = true)]
async fn what_another_host_took_over_is_neither_tried_again_nor_given_up_here() {
    let retries = 3;
    // How often it fails, at which attempt the namespace goes, whether it is done, and after how many attempts.
    for (failures, lost_at, done, attempts) in
        [(0, 1, true, 1), (2, 2, false, 2), (3, 4, true, 4), (100, 4, false, 4), (100, 1, false, 1)]
    {
        let (invoker, hosts) = losing(failures, lost_at);
        let store: Arc<FakeStore> = Arc::default();
        let delivery = delivery(&invoker, &store, |config| config.retry.retries = retries).with_hosts(hosts);
        match send(&delivery, event("1")).await {
            Ok(ack) => assert_eq!((ack, done), (Ack::Completed, true)),
            Err(error) => {
                assert_eq!((error.kind, done), (ErrorKind::Unavailable, false), "{error}");
                assert!(error.message.contains("does not act for default"), "{error}");
            }
        }
        assert_eq!(invoker.seen().len(), attempts);
        assert_eq!(
            store.list("deadletter/", None, 10).await.unwrap(),
            [],
            "no letter is written by who may not"
        );
    }
    for (failures, lost_at, attempts) in [(1, 1, 1), (100, 4, 4)] {
        let (invoker, hosts) = losing(failures, lost_at);
        let store: Arc<FakeStore> = Arc::default();
        let delivery = delivery(&invoker, &store, |config| {
            config.batch = 2;
            config.retry.retries = retries;
        })
        .with_hosts(hosts);
        let slot = delivery.ready().await.unwrap();
        let answers = delivery.deliver_batch(slot, vec![event("1"), event("2")]).await;
        assert!(
            answers.iter().all(|it| it.as_ref().is_err_and(|error| error.kind == ErrorKind::Unavailable))
        );
        assert_eq!((answers.len(), invoker.seen().len()), (2, attempts));
        assert_eq!(store.list("deadletter/", None, 10).await.unwrap(), []);
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_after_is_honoured() {
    let asked = AtomicU32::new(0);
    let invoker = FakeInvoker::new(move |_| {
        if asked.fetch_add(1, Ordering::Relaxed) > 0 {
            return Ok(Response::new(Body::empty()));
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        response.headers_mut().insert("retry-after", http::HeaderValue::from_static("17"));
        Ok(response)
    });
    let began = Instant::now();
    send(&delivery(&invoker, &Arc::default(), |_| {}), event("1")).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 17);
}

#[tokio::test(start_paused = true)]
async fn a_failed_start_is_waited_for_as_the_pool_asks() {
    let failed = AtomicU32::new(0);
    let invoker = FakeInvoker::new(move |_| match failed.fetch_add(1, Ordering::Relaxed) {
        0 => Err(Error::new(ErrorKind::Exhausted, "claim", "full")
            .with_retry(Retry::After(Duration::from_secs(9)))),
        _ => Ok(Response::new(Body::empty())),
    });
    let began = Instant::now();
    send(&delivery(&invoker, &Arc::default(), |_| {}), event("1")).await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 9);
}

#[tokio::test(start_paused = true)]
async fn what_never_will_is_not_tried_again_and_kept_as_a_dead_letter() {
    let (invoker, store): (_, Arc<FakeStore>) = (answering(&[400]), Arc::default());
    let delivery = delivery(&invoker, &store, |_| {});
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Stored);
    assert_eq!(invoker.seen().len(), 1);
    let kept = store.list("deadletter/default/t/", None, 10).await.unwrap();
    let letter: serde_json::Value = serde_json::from_slice(&kept[0].value).unwrap();
    assert_eq!((letter["id"].as_str(), letter["status"].as_u64()), (Some("1"), Some(400)));
    assert_eq!(letter["target"], "default/hello");
}

#[tokio::test(start_paused = true)]
async fn a_full_box_of_dead_letters_drops_nothing_silently() {
    let (invoker, store): (_, Arc<FakeStore>) = (answering(&[400, 400, 400]), Arc::default());
    let delivery = delivery(&invoker, &store, |config| config.dead_letter = DeadLetter::Keep(2));
    for id in ["1", "2"] {
        assert_eq!(send(&delivery, event(id)).await.unwrap(), Ack::Stored);
    }
    let error = send(&delivery, event("3")).await.unwrap_err();
    assert!(error.message.contains("2 dead letters are kept already"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_service_gets_the_event_with_the_reason() {
    let invoker = FakeInvoker::new(|call| {
        let mut response = Response::new(Body::empty());
        if call.target == Target::Service("default/hello".into()) {
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        }
        Ok(response)
    });
    let delivery = delivery(&invoker, &Arc::default(), |config| {
        config.dead_letter = DeadLetter::Service("default/graveyard".to_owned());
        config.retry.retries = 1;
    });
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Stored);
    let seen = invoker.seen();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[2].target, Target::Service("default/graveyard".into()));
    assert_eq!(seen[2].head.headers()["ce-knativeerrorcode"], "500");
    assert_eq!(seen[2].head.headers()["ce-knativeerrordest"], "default/hello");
    assert_eq!(seen[2].head.headers()["ce-id"], "1");
}

#[tokio::test(start_paused = true)]
async fn without_a_dead_letter_the_source_must_offer_it_again() {
    let delivery =
        delivery(&answering(&[400]), &Arc::default(), |config| config.dead_letter = DeadLetter::None);
    assert_eq!(send(&delivery, event("1")).await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Completed);
}

#[tokio::test(start_paused = true)]
async fn an_event_that_was_delivered_is_not_delivered_again() {
    let invoker = answering(&[]);
    let delivery = delivery(&invoker, &Arc::default(), |_| {});
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Completed);
    for _ in 0..3 {
        assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Duplicate);
    }
    assert_eq!(invoker.seen().len(), 1);
    // The window: after 1,024 others it is forgotten.
    for at in 2..=1025 {
        assert_eq!(send(&delivery, event(&at.to_string())).await.unwrap(), Ack::Completed);
    }
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Completed);
}

#[tokio::test(start_paused = true)]
async fn what_the_filter_does_not_want_goes_nowhere() {
    let invoker = answering(&[]);
    let filter: Filter =
        serde_json::from_str(r#"{"any": [{"exact": {"type": "other"}}, {"suffix": {"id": "9"}}]}"#).unwrap();
    let delivery = delivery(&invoker, &Arc::default(), |config| config.filter = Some(filter));
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Filtered);
    assert_eq!(send(&delivery, event("19")).await.unwrap(), Ack::Completed);
    assert_eq!(invoker.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_given_up() {
    let invoker = answering(&[]);
    invoker.set_time(Duration::from_secs(100));
    let delivery = delivery(&invoker, &Arc::default(), |config| {
        config.retry.timeout = Duration::from_secs(2);
        config.retry.retries = 2;
        config.retry.backoff = Backoff::Linear;
    });
    let began = Instant::now();
    assert_eq!(send(&delivery, event("1")).await.unwrap(), Ack::Stored);
    assert_eq!(began.elapsed().as_millis(), 3 * 2000 + (500 + 1000));
}

#[tokio::test(start_paused = true)]
async fn slots_bound_what_is_under_way() {
    let invoker = answering(&[]);
    let delivery = delivery(&invoker, &Arc::default(), |_| {});
    let mut slots = Vec::new();
    for _ in 0..4 {
        slots.push(delivery.ready().await.unwrap());
    }
    assert!(tokio::time::timeout(Duration::from_secs(1), delivery.ready()).await.is_err());
    slots.pop();
    assert!(tokio::time::timeout(Duration::from_secs(1), delivery.ready()).await.is_ok());
}

#[test]
fn waits_double_up_to_the_longest() {
    let policy = RetryPolicy::default();
    let waits: Vec<u128> = (0..9).map(|retry| policy.wait(retry).as_millis()).collect();
    assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000]);
    assert_eq!(policy.wait(u32::MAX), Duration::from_secs(60));
}

/// A source that fails, panics or ends as it is told, and then runs.
#[derive(Debug)]
struct Moody {
    runs: AtomicU32,
}

#[async_trait]
impl TriggerSource for Moody {
    fn kind(&self) -> &'static str {
        "moody"
    }
    async fn run(&self, cx: TriggerCx) -> Result<()> {
        match self.runs.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Error::new(ErrorKind::Unavailable, "run", "upstream is not there")),
            1 => panic!("told to"),
            2 => Ok(()),
            _ => {
                cx.shutdown.cancelled().await;
                Ok(())
            }
        }
    }
}

fn host(invoker: &Arc<FakeInvoker>, store: &Arc<FakeStore>) -> Arc<TriggerHost> {
    let mut config =
        TriggerHostConfig::new(Arc::clone(invoker) as Arc<dyn Invoker>, Arc::clone(store) as Arc<dyn Store>);
    config.clock = Arc::new(FakeClock::starting_at(START));
    TriggerHost::new(config)
}

#[tokio::test(start_paused = true)]
async fn a_source_that_fails_or_panics_is_started_again_with_growing_waits() {
    let host = host(&answering(&[]), &Arc::default());
    let source = Arc::new(Moody { runs: AtomicU32::new(0) });
    host.run("default/moody", Arc::clone(&source) as _, FakeEventSink::new(1)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let status = &host.status()[0];
    assert!(!status.running);
    assert!(status.last_error.as_ref().unwrap().contains("upstream is not there"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(host.status()[0].last_error.as_ref().unwrap().contains("panicked"));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(host.status()[0].last_error.as_ref().unwrap().contains("ended by itself"));
    tokio::time::sleep(Duration::from_millis(400)).await;
    let status = &host.status()[0];
    assert!(status.running);
    assert_eq!(status.restarts, 3);
    assert!(host.shutdown(Instant::now() + Duration::from_secs(1)).await.is_empty());
    assert!(
        host.run("x/y", source, FakeEventSink::new(1)).await.is_err(),
        "after the shutdown nothing starts"
    );
}

/// A source that does not listen to the shutdown.
#[derive(Debug)]
struct Deaf;

#[async_trait]
impl TriggerSource for Deaf {
    fn kind(&self) -> &'static str {
        "deaf"
    }
    async fn run(&self, _: TriggerCx) -> Result<()> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_does_not_end_is_dropped_at_the_deadline() {
    let host = host(&answering(&[]), &Arc::default());
    host.run("default/deaf", Arc::new(Deaf), FakeEventSink::new(1)).await.unwrap();
    let began = Instant::now();
    let late = host.shutdown(began + Duration::from_secs(2)).await;
    assert_eq!(late, ["default/deaf"]);
    assert_eq!(began.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_declared_cron_trigger_calls_its_service_and_can_be_replaced_and_removed() {
    let (invoker, store) = (answering(&[]), Arc::<FakeStore>::default());
    let host = host(&invoker, &store);
    let mut spec =
        TriggerSpec::new("default/tick", "cron", "default/hello").with_option("schedule", "*/10 * * * * *");
    spec.data = b"hi".to_vec();
    host.apply(spec.clone()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(invoker.seen().len(), 2);
    assert_eq!(invoker.seen()[0].head.headers()["ce-type"], "dev.knative.sources.ping");
    assert_eq!(invoker.seen()[0].head.headers()["ce-source"], "/apis/v1/namespaces/default/pingsources/tick");
    assert_eq!(invoker.seen()[0].body, "hi");

    host.apply(spec.with_option("schedule", "*/2 * * * * *")).await.unwrap();
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(invoker.seen().len(), 2 + 3, "the new one has no past");
    assert_eq!(host.status().len(), 1);
    assert_eq!(store.list("trigger/default/tick/", None, 10).await.unwrap().len(), 1);
    host.remove("default/tick").await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(invoker.seen().len(), 5);
    assert!(store.list("trigger/", None, 10).await.unwrap().is_empty());
    host.remove("default/tick").await.unwrap();
}

#[tokio::test]
async fn declarations_with_mistakes_are_refused_with_all_of_them() {
    let host = host(&answering(&[]), &Arc::default());
    let good = || TriggerSpec::new("default/t", "cron", "default/hello").with_option("schedule", "@daily");
    assert!(host.check(&good()).is_ok());
    let wrong = good()
        .with_option("schedule", "61 * * * *")
        .with_option("timezone", "Mars/Olympus")
        .with_option("misfire", "catch-up(0)")
        .with_option("overlap", "maybe")
        .with_option("jitter", "soon")
        .with_option("retry", "-1")
        .with_option("dead-letter", "nowhere")
        .with_option("filter", "{")
        .with_option("bogus", "1");
    let errors = host.check(&wrong).unwrap_err();
    for field in ["misfire", "overlap", "jitter", "retry", "dead-letter", "filter", "bogus", "timezone"] {
        assert!(errors.0.iter().any(|error| error.field == format!("options.{field}")), "{field}: {errors}");
    }
    let unpublished = host.check(&good().with_option("dead-letter", "publish")).unwrap_err();
    assert_eq!((unpublished.0.len(), &*unpublished.0[0].field), (1, "options.dead-letter"));
    assert!(unpublished.0[0].problem.contains("event_publisher"), "{unpublished}");
    let bad_time = host.check(&good().with_option("schedule", "61 * * * *")).unwrap_err();
    assert_eq!(bad_time.0[0].field, "options.schedule");
    assert!(bad_time.0[0].problem.contains("minute"), "{bad_time}");
    for (spec, field) in [
        (TriggerSpec::new("t", "timer", "default/hello").with_option("period", "1s"), "name"),
        (TriggerSpec::new("a/t", "timer", "hello").with_option("period", "1s"), "target"),
        (TriggerSpec::new("a/t", "timer", "a/b"), "options.period"),
        (TriggerSpec::new("a/t", "timer", "a/b").with_option("period", "0s"), "options.period"),
        (TriggerSpec::new("a/t", "cron", "a/b"), "options.schedule"),
        (TriggerSpec::new("a/t", "kafka", "a/b"), "kind"),
    ] {
        let errors = host.check(&spec).unwrap_err();
        assert_eq!(errors.0[0].field, field, "{errors}");
    }
}

#[tokio::test(start_paused = true)]
async fn kinds_of_ones_own_are_declared_like_the_built_in_ones() {
    let host = host(&answering(&[]), &Arc::default());
    host.register_kind(
        "moody",
        |_| Ok(Arc::new(Moody { runs: AtomicU32::new(9) }) as Arc<dyn TriggerSource>),
    );
    host.apply(TriggerSpec::new("a/m", "moody", "a/b")).await.unwrap();
    assert_eq!(host.status()[0].kind, "moody");
    host.shutdown(Instant::now() + Duration::from_secs(1)).await;
}

type Answer = fn() -> Result<Option<u64>>;

/// A source that says how much waits upstream, or why it does not know.
#[derive(Debug)]
struct Queue(Answer);

#[async_trait]
impl TriggerSource for Queue {
    fn kind(&self) -> &'static str {
        "queue"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        cx.shutdown.cancelled().await;
        Ok(())
    }

    async fn backlog(&self) -> Result<Option<u64>> {
        if (self.0)().is_ok_and(|known| known == Some(u64::MAX)) {
            std::future::pending::<()>().await;
        }
        (self.0)()
    }
}

#[tokio::test(start_paused = true)]
async fn backlogs_add_up_per_service_and_a_part_of_a_sum_is_no_measurement() {
    let host = host(&answering(&[]), &Arc::default());
    let kinds: [(&str, Answer); 6] = [
        ("three", || Ok(Some(3))),
        ("forty", || Ok(Some(40))),
        ("unknown", || Ok(None)),
        ("broken", || Err(Error::new(ErrorKind::Unavailable, "backlog", "no broker"))),
        ("panics", || panic!("on purpose")),
        ("hangs", || Ok(Some(u64::MAX))),
    ];
    for (kind, answer) in kinds {
        host.register_kind(kind, move |_| Ok(Arc::new(Queue(answer)) as Arc<dyn TriggerSource>));
    }
    for (name, kind, target) in [
        ("a/1", "three", "a/sum"),
        ("a/2", "forty", "a/sum"),
        ("a/3", "unknown", "a/sum"),
        ("a/4", "unknown", "a/nothing"),
        ("a/5", "forty", "a/broken"),
        ("a/6", "broken", "a/broken"),
        ("a/7", "panics", "a/panics"),
        ("a/8", "forty", "a/hangs"),
        ("a/9", "hangs", "a/hangs"),
    ] {
        host.apply(TriggerSpec::new(name, kind, target)).await.unwrap();
    }
    let found = host.backlogs(Duration::from_secs(1)).await;
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [("a/sum".to_owned(), 43)]);
    host.remove("a/2").await.unwrap();
    assert_eq!(host.backlogs(Duration::from_secs(1)).await["a/sum"], 3);
    host.shutdown(Instant::now() + Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_batch_is_answered_event_by_event() {
    let delivery = delivery(&answering(&[200, 400, 200]), &Arc::default(), |config| {
        config.dead_letter = DeadLetter::None;
    });
    let slot = delivery.ready().await.unwrap();
    let events = ["1", "2", "3", "1"].map(event).to_vec();
    let answers = delivery.deliver_batch(slot, events).await;
    let acks: Vec<Option<Ack>> = answers.iter().map(|answer| answer.as_ref().ok().copied()).collect();
    assert_eq!(acks, [Some(Ack::Completed), None, Some(Ack::Completed), Some(Ack::Duplicate)]);
}

#[tokio::test(start_paused = true)]
async fn dead_letters_go_out_of_the_platform_where_somebody_publishes() {
    let (outbox, mut inbox) = sas_trigger::outbox(4);
    let config = |config: &mut DeliveryConfig| config.dead_letter = DeadLetter::Publish;
    let published = delivery(&answering(&[400]), &Arc::default(), config).with_publisher(Arc::new(outbox));
    assert_eq!(send(&published, event("1")).await.unwrap(), Ack::Stored);
    let letter = inbox.next().await.unwrap();
    assert_eq!((letter.id(), &*letter.extensions()["knativeerrorcode"].to_text()), ("1", "400"));
    drop(inbox);
    // Nobody takes it any more: the source is to offer it again.
    let nobody = delivery(&answering(&[400]), &Arc::default(), config);
    assert_eq!(send(&nobody, event("1")).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn attempts_of_one_event_carry_one_key_and_say_who_pays() {
    let invoker = answering(&[503, 200, 200]);
    let delivery = delivery(&invoker, &Arc::default(), |config| config.payer = sas_core::TenantKey(7).into());
    send(&delivery, event("1")).await.unwrap();
    send(&delivery, event("2")).await.unwrap();
    let seen = invoker.seen();
    assert_eq!(seen.len(), 3);
    assert!(seen.iter().all(|call| call.cx.payer == sas_core::Payer::Tenant(sas_core::TenantKey(7))));
    assert!(seen[0].cx.idempotency.is_some());
    assert_eq!(seen[0].cx.idempotency, seen[1].cx.idempotency);
    assert_ne!(seen[1].cx.idempotency, seen[2].cx.idempotency);
}
