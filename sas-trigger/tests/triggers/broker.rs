//! Brokers: what is accepted is delivered to each trigger at its own pace, in the order promised. Time is paused.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use parking_lot::Mutex;
use sas_core::{
    Body, BrokerSpec, ErrorKind, Event, Invoker, MemoryStore, QuotaResource, Redrive, Response, Retry, Store,
    Target, TenantKey, TenantQuota, Timestamp, TriggerSpec, Triggers as _,
};
use sas_testkit::fake::{FakeClock, FakeInvoker};
use sas_trigger::{TriggerHost, TriggerHostConfig};
use tokio::time::{Instant, sleep};

const START: Timestamp = Timestamp::from_secs(1_767_571_200);

fn host_on(store: &Arc<MemoryStore>, invoker: &Arc<FakeInvoker>, clock: &FakeClock) -> Arc<TriggerHost> {
    let store = Arc::clone(store) as Arc<dyn Store>;
    let mut config = TriggerHostConfig::new(Arc::clone(invoker) as Arc<dyn Invoker>, store);
    config.clock = Arc::new(clock.clone());
    TriggerHost::new(config)
}

fn host(invoker: &Arc<FakeInvoker>) -> (Arc<TriggerHost>, Arc<MemoryStore>, FakeClock) {
    let (store, clock) = (Arc::new(MemoryStore::default()), FakeClock::starting_at(START));
    (host_on(&store, invoker, &clock), store, clock)
}

fn event(id: u32) -> Event {
    Event::new(id.to_string(), "/shop", "order")
        .unwrap()
        .with_extension("partitionkey", (id % 3).to_string())
        .unwrap()
}

fn reads(name: &str, target: &str) -> TriggerSpec {
    TriggerSpec::new(format!("default/{name}"), "broker", target).with_option("broker", "orders")
}

fn ok() -> Response {
    Response::new(Body::empty())
}

fn status(code: u16) -> Response {
    let mut response = ok();
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    response
}

fn ids(invoker: &FakeInvoker, service: &str) -> Vec<String> {
    let target = Target::Service(service.into());
    let seen = invoker.seen();
    let calls = seen.iter().filter(|call| call.target == target);
    calls.map(|call| call.head.headers()["ce-id"].to_str().unwrap().to_owned()).collect()
}

async fn shut(host: &TriggerHost) {
    host.shutdown(Instant::now() + Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn every_trigger_gets_every_event_and_a_slow_one_holds_up_nobody() {
    let slow = Target::Service("default/slow".into());
    let invoker = FakeInvoker::new(move |call| if call.target == slow { Ok(status(503)) } else { Ok(ok()) });
    let (host, ..) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("quick", "default/quick")).await.unwrap();
    host.apply(reads("slow", "default/slow").with_option("concurrency", "2")).await.unwrap();
    let wanted = reads("some", "default/some")
        .with_option("filter", r#"{"sql": "partitionkey = '0' AND type LIKE 'ord%'"}"#);
    host.apply(wanted).await.unwrap();
    host.accept("default/orders", (0..300).map(event).collect()).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ids(&invoker, "default/quick").len(), 300);
    assert_eq!(ids(&invoker, "default/some").len(), 100);
    assert!(ids(&invoker, "default/slow").len() < 20, "it is left alone while it is down");
    let backlog = host.backlogs(Duration::from_secs(1)).await;
    assert_eq!((backlog["default/quick"], backlog["default/slow"]), (0, 300));
    let status = host.status();
    let first = status.iter().find(|status| status.name == "default/slow").unwrap();
    assert_eq!(first.oldest, Some(START), "{first:?}");
    sleep(Duration::from_secs(60)).await;
    let slow = |host: &TriggerHost| {
        let status = host.status();
        status.into_iter().find(|status| status.name == "default/slow").unwrap()
    };
    let before = slow(&host);
    assert!(before.circuit_open, "{before:?}");
    // No spin: one attempt per opening of the circuit, which is 30 s by now.
    sleep(Duration::from_secs(600)).await;
    let after = slow(&host);
    assert!(after.attempts - before.attempts < 30, "{before:?} to {after:?}");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn a_place_costs_no_write_for_each_event_where_one_is_under_way_at_a_time() {
    let invoker = FakeInvoker::new(|_| Ok(ok()));
    let (host, store, _) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("one", "default/one").with_option("concurrency", "1")).await.unwrap();
    let before = store.version().await.unwrap().0;
    host.accept("default/orders", (0..1000).map(event).collect()).await.unwrap();
    sleep(Duration::from_millis(1)).await;
    assert_eq!(ids(&invoker, "default/one").len(), 1000);
    // Its place after 256 events each time and at the end, and the events themselves.
    let writes = store.version().await.unwrap().0 - before;
    assert!(writes < 10, "{writes} writes for 1,000 events");
    let place = store.get("broker/default/orders/cursor/default/one").await.unwrap().unwrap();
    assert_eq!(place.value, "1000", "nothing waits, so it is stored");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_comes_back_gets_all_that_waited() {
    let down = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&down);
    let invoker =
        FakeInvoker::new(move |_| if flag.load(Ordering::Relaxed) { Ok(status(503)) } else { Ok(ok()) });
    let (host, ..) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("t", "default/t").with_option("retry", "1000").with_option("concurrency", "4"))
        .await
        .unwrap();
    host.accept("default/orders", (0..50).map(event).collect()).await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    down.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(120)).await;
    assert_eq!(host.backlogs(Duration::from_secs(1)).await["default/t"], 0);
    let letters = host.redrive("default/t", &Redrive::default()).await.unwrap();
    assert_eq!(letters.delivered + letters.failed, 0, "nothing was given up in an hour");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn a_target_that_is_deployed_anew_is_tried_at_once() {
    let down = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&down);
    let invoker =
        FakeInvoker::new(move |_| if flag.load(Ordering::Relaxed) { Ok(status(503)) } else { Ok(ok()) });
    let (host, ..) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("t", "default/t").with_option("retry", "1000").with_option("concurrency", "4"))
        .await
        .unwrap();
    host.accept("default/orders", (0..50).map(event).collect()).await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    let waiting = async |host: &TriggerHost| host.backlogs(Duration::from_secs(1)).await["default/t"];
    let attempts = |host: &TriggerHost| host.status()[0].attempts;
    let before = attempts(&host);
    host.retry_now("default/other");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(attempts(&host), before, "that was another service");
    host.retry_now("default/t");
    sleep(Duration::from_millis(10)).await;
    assert_eq!(
        (attempts(&host), waiting(&host).await),
        (before + 1, 50),
        "one attempt shows that it is still down"
    );
    sleep(Duration::from_secs(10)).await;
    let again = attempts(&host) - before;
    assert!((3..=6).contains(&again), "the pauses begin anew, and there are {again} attempts in 10 s");

    down.store(false, Ordering::Relaxed);
    host.retry_now("default/t");
    sleep(Duration::from_millis(100)).await;
    assert_eq!(waiting(&host).await, 0, "all that waited, without the rest of any pause");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn events_of_one_key_are_delivered_in_order_and_others_pass() {
    let seen: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
    let failures = AtomicU32::new(0);
    let told = Arc::clone(&seen);
    let invoker = FakeInvoker::new(move |call| {
        let header = |name: &str| call.head.headers()[name].to_str().unwrap().to_owned();
        // The first event of key 0 fails three times; all of its key wait for it.
        if header("ce-id") == "0" && failures.fetch_add(1, Ordering::Relaxed) < 3 {
            return Ok(status(500));
        }
        told.lock().push((header("ce-partitionkey"), header("ce-id")));
        Ok(ok())
    });
    let (host, ..) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("t", "default/t").with_option("order-by", "partitionkey")).await.unwrap();
    host.accept("default/orders", (0..60).map(event).collect()).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    let passed = seen.lock().len();
    assert!(passed >= 30, "the other keys pass: {passed}");
    sleep(Duration::from_secs(60)).await;
    let seen = seen.lock();
    assert_eq!(seen.len(), 60);
    for key in ["0", "1", "2"] {
        let order: Vec<u32> =
            seen.iter().filter(|(of, _)| of == key).map(|(_, id)| id.parse().unwrap()).collect();
        assert!(order.is_sorted(), "{key}: {order:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restart_goes_on_where_it_was_and_a_replay_begins_at_a_time() {
    let invoker = FakeInvoker::new(|_| Ok(ok()));
    let (first, store, clock) = host(&invoker);
    first.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    first.accept("default/orders", vec![event(1)]).await.unwrap();
    first.apply(reads("t", "default/t")).await.unwrap();
    first.accept("default/orders", vec![event(2)]).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(ids(&invoker, "default/t"), ["2"], "what was accepted before the trigger is not its");
    shut(&first).await;

    let second = host_on(&store, &invoker, &clock);
    second.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    let mut paused = reads("t", "default/t");
    paused.paused = true;
    second.apply(paused).await.unwrap();
    second.accept("default/orders", vec![event(3), event(4)]).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    assert_eq!(ids(&invoker, "default/t"), ["2"], "it is paused");
    assert!(second.status()[0].paused && !second.status()[0].running);
    second.apply(reads("t", "default/t")).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ids(&invoker, "default/t"), ["2", "3", "4"]);
    second.replay("default/t", START + Duration::from_secs(10)).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ids(&invoker, "default/t"), ["2", "3", "4", "3", "4"]);
    assert_eq!(second.replay("default/none", START).await.unwrap_err().kind, ErrorKind::NotFound);
    shut(&second).await;
}

#[tokio::test(start_paused = true)]
async fn old_events_go_when_all_have_them_and_a_full_broker_takes_no_more() {
    let up = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&up);
    let invoker =
        FakeInvoker::new(move |_| Ok(if flag.load(Ordering::Relaxed) { ok() } else { status(503) }));
    let (host, ..) = host(&invoker);
    let mut spec = BrokerSpec::new("default/orders");
    spec.most_events = 100;
    spec.retention = Duration::from_secs(600);
    host.apply_broker(spec).await.unwrap();
    host.apply(reads("t", "default/t").with_option("retry", "1000")).await.unwrap();
    host.accept("default/orders", (0..100).map(event).collect()).await.unwrap();
    let full = host.accept("default/orders", vec![event(100)]).await.unwrap_err();
    assert_eq!(full.kind, ErrorKind::Exhausted, "{full}");
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(host.brokers()[0].held, 100, "what is not delivered is kept, however old");
    up.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(120)).await;
    assert_eq!((host.brokers()[0].held, host.brokers()[0].accepted), (0, 100));
    host.accept("default/orders", vec![event(100)]).await.unwrap();
    let in_use = host.remove_broker("default/orders").await.unwrap_err();
    assert_eq!(in_use.kind, ErrorKind::Conflict, "{in_use}");
    host.remove("default/t").await.unwrap();
    host.remove_broker("default/orders").await.unwrap();
    assert_eq!(host.accept("default/orders", vec![event(1)]).await.unwrap_err().kind, ErrorKind::NotFound);
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn replies_are_the_next_events_until_they_go_in_a_circle() {
    let invoker = FakeInvoker::new(move |call| {
        let id: u32 = call.head.headers()["ce-id"].to_str().unwrap().parse().unwrap();
        let mut response = ok();
        let headers = response.headers_mut();
        for (name, value) in [
            ("ce-specversion", "1.0".to_owned()),
            ("ce-id", (id + 1).to_string()),
            ("ce-type", "order".to_owned()),
        ] {
            headers.insert(name, value.parse().unwrap());
        }
        headers.insert("ce-source", "/echo".parse().unwrap());
        Ok(response)
    });
    let (host, store, _) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("echo", "default/echo").with_option("hops", "5")).await.unwrap();
    host.accept("default/orders", vec![event(1)]).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(ids(&invoker, "default/echo"), ["1", "2", "3", "4", "5"]);
    let letters = store.list("deadletter/default/echo/", None, 9).await.unwrap();
    let letter: serde_json::Value = serde_json::from_slice(&letters[0].value).unwrap();
    assert_eq!((letters.len(), &letter["class"]), (1, &"hops".into()), "{letter}");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn batches_are_one_call_and_only_what_failed_of_them_comes_again() {
    let calls: Arc<Mutex<Vec<usize>>> = Arc::default();
    let told = Arc::clone(&calls);
    let invoker = FakeInvoker::new(move |call| {
        let events: Vec<serde_json::Value> = serde_json::from_slice(&call.body).unwrap();
        told.lock().push(events.len());
        assert!(
            call.head.headers()["content-type"]
                .to_str()
                .unwrap()
                .starts_with("application/cloudevents-batch+json")
        );
        let poison = events.iter().any(|event| event["id"] == "7");
        let answer = if poison { r#"{"batchItemFailures": [{"itemIdentifier": "7"}]}"# } else { "" };
        Ok(Response::new(Body::from(answer)))
    });
    let (host, store, _) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    let spec = reads("t", "default/t").with_option("batch", "10").with_option("retry", "2");
    host.apply(spec).await.unwrap();
    host.accept("default/orders", (0..30).map(event).collect()).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let mut calls = calls.lock().clone();
    calls.sort_unstable();
    assert_eq!(calls, [1, 1, 10, 10, 10]);
    let letters = store.list("deadletter/default/t/", None, 9).await.unwrap();
    let letter: serde_json::Value = serde_json::from_slice(&letters[0].value).unwrap();
    assert_eq!((letters.len(), &letter["id"], &letter["class"]), (1, &"7".into(), &"item".into()));
    assert_eq!(host.backlogs(Duration::from_secs(1)).await["default/t"], 0);
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn one_request_to_deliver_letters_again_ends_in_time_and_the_next_goes_on() {
    let invoker = FakeInvoker::new(|_call| Ok(status(503)));
    let (host, store, _) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("t", "default/t")).await.unwrap();
    host.accept("default/orders", (0..3).map(event).collect()).await.unwrap();
    sleep(Duration::from_secs(6 * 3600)).await;
    assert_eq!(store.list("deadletter/default/t/", None, 99).await.unwrap().len(), 3);
    let (mut redrive, mut failed) = (Redrive::default(), 0);
    for _request in 0..4 {
        let began = Instant::now();
        let redriven = host.redrive("default/t", &redrive).await.unwrap();
        assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
        assert!(redriven.delivered == 0 && (redriven.failed > 0 || redriven.next.is_none()), "{redriven:?}");
        failed += redriven.failed;
        redrive.after = redriven.next;
        if redrive.after.is_none() {
            break;
        }
    }
    assert_eq!((failed, redrive.after), (3, None), "each was tried once");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn dead_letters_are_delivered_again_by_filter_by_reason_and_elsewhere() {
    let invoker = FakeInvoker::new(|call| {
        let elsewhere = call.target == Target::Service("default/other".into());
        Ok(if elsewhere { ok() } else { status(400) })
    });
    let (host, store, _) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply(reads("t", "default/t")).await.unwrap();
    host.accept("default/orders", (0..10).map(event).collect()).await.unwrap();
    sleep(Duration::from_secs(10)).await;
    let left = async || store.list("deadletter/default/t/", None, 99).await.unwrap().len();
    assert_eq!(left().await, 10);
    let again = host.redrive("default/t", &Redrive::default()).await.unwrap();
    assert_eq!((again.delivered, again.failed, left().await), (0, 10, 10), "it still fails");
    let mut redrive = Redrive::default();
    redrive.target = Some("default/other".to_owned());
    redrive.reason = Some("status-503".to_owned());
    assert_eq!(host.redrive("default/t", &redrive).await.unwrap().delivered, 0);
    redrive.reason = Some("status-400".to_owned());
    redrive.filter = Some(serde_json::json!({"exact": {"partitionkey": "0"}}));
    assert_eq!(host.redrive("default/t", &redrive).await.unwrap().delivered, 4);
    redrive.filter = None;
    redrive.most = Some(1);
    assert_eq!(host.redrive("default/t", &redrive).await.unwrap().delivered, 1);
    let key = store.list("deadletter/default/t/", None, 1).await.unwrap()[0].key.clone();
    redrive.letters = vec![key.rsplit('/').next().unwrap().to_owned()];
    redrive.most = None;
    assert_eq!(host.redrive("default/t", &redrive).await.unwrap().delivered, 1);
    redrive.letters.clear();
    assert_eq!((host.redrive("default/t", &redrive).await.unwrap().delivered, left().await), (4, 0));
    redrive.target = Some("nowhere".to_owned());
    assert_eq!(host.redrive("default/t", &redrive).await.unwrap_err().kind, ErrorKind::InvalidSpec);
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn events_go_on_to_brokers_and_are_transformed_on_the_way() {
    let invoker = FakeInvoker::new(|_| Ok(ok()));
    let (host, ..) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    host.apply_broker(BrokerSpec::new("default/billing")).await.unwrap();
    let on = reads("on", "broker:default/billing").with_option(
        "transform",
        r#"{"type": "bill.{{ type }}", "extensions": {"partitionkey": null, "of": "{{ partitionkey }}"}, "data": {"n": "{{ data.n }}"}}"#,
    );
    host.apply(on).await.unwrap();
    let end =
        TriggerSpec::new("default/end", "broker", "default/end").with_option("broker", "default/billing");
    host.apply(end).await.unwrap();
    let sent = event(4).with_data("application/json", r#"{"n": 12, "secret": true}"#).unwrap();
    host.accept("default/orders", vec![sent, event(5)]).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let seen = invoker.seen();
    let headers = seen[0].head.headers();
    assert_eq!(
        (&headers["ce-type"], &headers["ce-of"]),
        (&"bill.order".parse().unwrap(), &"1".parse().unwrap())
    );
    assert!(!headers.contains_key("ce-partitionkey"));
    assert_eq!(seen[0].body, r#"{"n":12}"#);
    assert_eq!(seen.len(), 1, "the one without data.n is a dead letter");
    let other = reads("x", "broker:elsewhere/billing");
    assert_eq!(host.check(&other).unwrap_err().0[0].field, "target");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn events_are_transformed_in_jq() {
    let invoker = FakeInvoker::new(|_| Ok(ok()));
    let (host, store, _) = host(&invoker);
    host.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    let jq = |program: &str| {
        let option = serde_json::json!({"jq": program}).to_string();
        reads("t", "default/t").with_option("transform", option)
    };
    host.apply(jq(
        r#".type = "bill" | .of = .partitionkey | .id = "other" | .data |= {n: (.n | map(. * 2) | add)}"#,
    ))
    .await
    .unwrap();
    let sent = event(4).with_data("application/json", r#"{"n": [1, 2], "secret": true}"#).unwrap();
    let id = sent.id().to_owned();
    host.accept("default/orders", vec![sent, event(5)]).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let seen = invoker.seen();
    let headers = seen[0].head.headers();
    assert_eq!((&headers["ce-type"], &headers["ce-of"]), (&"bill".parse().unwrap(), &"1".parse().unwrap()));
    assert_eq!((&headers["ce-id"], &*seen[0].body), (&id.parse().unwrap(), br#"{"n":6}"#.as_slice()));
    assert_eq!(seen.len(), 1, "the one whose n is no list is a dead letter");
    assert_eq!(store.list("deadletter/", None, 9).await.unwrap().len(), 1);
    for (program, problem) in
        [("env.HOME", "env is refused"), (".a | ", "expected a term"), ("f", "f/0 is not defined")]
    {
        let errors = host.check(&jq(program)).unwrap_err();
        assert_eq!(errors.0[0].field, "options.transform.jq");
        assert!(errors.to_string().contains(problem), "{errors}");
    }
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn a_trigger_takes_over_what_its_broker_says_of_delivery() {
    let invoker = FakeInvoker::new(|_| Ok(status(503)));
    let (host, store, _) = host(&invoker);
    let mut spec = BrokerSpec::new("default/orders");
    spec.delivery.insert("retry".to_owned(), "0".to_owned());
    host.apply(reads("t", "default/t")).await.unwrap();
    host.apply_broker(spec.clone()).await.unwrap();
    host.accept("default/orders", vec![event(1)]).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(
        (ids(&invoker, "default/t").len(), store.list("deadletter/", None, 9).await.unwrap().len()),
        (1, 1)
    );
    spec.delivery.insert("retyr".to_owned(), "0".to_owned());
    assert_eq!(host.check_broker(&spec).unwrap_err().0[0].field, "delivery.retyr");
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn a_tenants_events_come_in_and_go_out_no_faster_than_its_quota_and_anothers_as_they_come() {
    let (loud, quiet) = (TenantKey(1), TenantKey(2));
    let invoker = FakeInvoker::new(|_| Ok(ok()));
    let (host, ..) = host(&invoker);
    for (tenant, name) in [(loud, "loud"), (quiet, "quiet")] {
        let mut broker = BrokerSpec::new(format!("{name}/orders"));
        broker.tenant = Some(tenant);
        host.apply_broker(broker).await.unwrap();
        let mut trigger = TriggerSpec::new(format!("{name}/t"), "broker", format!("{name}/t"));
        trigger = trigger.with_option("broker", "orders");
        trigger.tenant = Some(tenant);
        host.apply(trigger).await.unwrap();
    }
    let quotas = host.quotas().expect("it holds tenants to quotas");
    let per_second = |events: f64| Some(TenantQuota::default().with_events_per_second(events));
    quotas.set_tenant(loud, per_second(10.0));

    // In: a second's worth at once, then as the rate lets them; what is refused is told when to come back.
    host.accept("loud/orders", (0..100).map(event).collect()).await.expect("the first of them");
    let error = host.accept("loud/orders", vec![event(100)]).await.unwrap_err();
    let over = *sas_core::QuotaExceeded::of(&error).expect("a quota");
    assert_eq!((over.resource, over.limit, over.asked), (QuotaResource::Events, 10.0, 1.0));
    assert_eq!(error.retry, Retry::After(over.retry_after));
    assert!(over.retry_after > Duration::from_secs(9), "what was too many comes first: {over:?}");
    host.accept("quiet/orders", (0..1_000).map(event).collect()).await.expect("another's");

    // Out: the rest waits in the broker, and nothing is lost.
    sleep(Duration::from_millis(500)).await;
    assert_eq!(ids(&invoker, "quiet/t").len(), 1_000, "another's are delivered as they come");
    let delivered = ids(&invoker, "loud/t").len();
    assert!((10..=16).contains(&delivered), "{delivered} in half a second");
    sleep(Duration::from_secs(4)).await;
    let delivered = ids(&invoker, "loud/t").len();
    assert!((50..=56).contains(&delivered), "{delivered} after four and a half");
    let told = quotas.pressure();
    let told = told.iter().find(|told| told.tenant == Some(loud)).expect("it is told");
    assert_eq!((told.limit, told.most, told.refused), (10.0, 10.0, 1));

    // Raised while it waits.
    quotas.set_tenant(loud, per_second(1_000.0));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ids(&invoker, "loud/t").len(), 100);
    quotas.set_tenant(loud, None);
    host.accept("loud/orders", (200..2_000).map(event).collect()).await.expect("no limit any more");
    assert!(quotas.pressure().is_empty());
    shut(&host).await;
}

#[tokio::test(start_paused = true)]
async fn a_trigger_that_is_removed_where_its_broker_is_not_known_keeps_no_place() {
    let invoker = FakeInvoker::new(|_| Ok(ok()));
    let (runs, store, clock) = host(&invoker);
    runs.apply_broker(BrokerSpec::new("default/orders")).await.unwrap();
    runs.apply(reads("t", "default/a")).await.unwrap();
    runs.apply(reads("other", "default/a")).await.unwrap();
    let places = async || {
        let entries = store.list("broker/default/orders/cursor/", None, 10).await.unwrap();
        entries.into_iter().map(|entry| entry.key).collect::<Vec<_>>()
    };
    assert_eq!(places().await.len(), 2);
    let elsewhere = host_on(&store, &invoker, &clock);
    elsewhere.remove("default/t").await.unwrap();
    assert_eq!(places().await, ["broker/default/orders/cursor/default/other"]);
}
