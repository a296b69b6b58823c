//! What comes in over HTTP: events for brokers, signed webhooks, and calls that are answered later.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use hmac::{Hmac, Mac as _};
use http::StatusCode;
use sas_core::{
    Body, BrokerIngress, BrokerSpec, Error, ErrorKind, Handler, Invoker, MemoryStore, Request, Response,
    Result, SecretSource, Store, TenantKey, Timestamp, TriggerSpec, Triggers as _,
};
use sas_testkit::fake::{FakeClock, FakeInvoker};
use sas_trigger::{AsyncCalls, AsyncConfig, EventIngress, TriggerHost, TriggerHostConfig};
use sha2::Sha256;
use tokio::time::{Instant, sleep};

const START: Timestamp = Timestamp::from_secs(1_767_571_200);
const TENANT: TenantKey = TenantKey(1);

/// `hook` is `s3cret`, `rotating` two secrets, `token` a token.
#[derive(Debug)]
struct Secrets;

#[async_trait]
impl SecretSource for Secrets {
    async fn resolve(&self, reference: &str, _: TenantKey) -> Result<Bytes> {
        match reference {
            "hook" => Ok("s3cret".into()),
            "rotating" => Ok("old\nnew\n".into()),
            "token" => Ok("t0ken\n".into()),
            _ => Err(Error::new(ErrorKind::NotFound, "secret", "there is none")),
        }
    }
}

/// Fails as often as it was told to, then answers with what it was sent.
#[derive(Debug)]
struct Gateway {
    failures: AtomicU32,
    calls: AtomicU32,
}

#[async_trait]
impl Handler for Gateway {
    async fn handle(&self, request: Request) -> Response {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let (head, body) = request.into_parts();
        let mut response = Response::new(Body::empty());
        if self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return response;
        }
        assert!(!head.headers.contains_key("prefer"));
        let key = head.headers["idempotency-key"].to_str().unwrap();
        let text = format!(
            "{} {} {} key {} {}",
            head.method,
            head.headers["host"].to_str().unwrap(),
            head.uri,
            key.len(),
            String::from_utf8_lossy(&body.collect(1 << 20).await.unwrap())
        );
        *response.status_mut() = StatusCode::CREATED;
        response.headers_mut().insert("x-own", "1".parse().unwrap());
        *response.body_mut() = Body::from(text);
        response
    }
}

struct World {
    ingress: EventIngress,
    host: Arc<TriggerHost>,
    calls: Arc<AsyncCalls>,
    gateway: Arc<Gateway>,
    invoker: Arc<FakeInvoker>,
}

fn world_on(store: &Arc<MemoryStore>, failures: u32, change: impl FnOnce(&mut AsyncConfig)) -> World {
    let invoker = FakeInvoker::new(|_| Ok(Response::new(Body::empty())));
    let clock = Arc::new(FakeClock::starting_at(START));
    let store = Arc::clone(store) as Arc<dyn Store>;
    let mut config = TriggerHostConfig::new(Arc::clone(&invoker) as Arc<dyn Invoker>, Arc::clone(&store));
    config.clock = Arc::clone(&clock) as _;
    config.secrets = Some(Arc::new(Secrets));
    let host = TriggerHost::new(config);
    let gateway = Arc::new(Gateway { failures: AtomicU32::new(failures), calls: AtomicU32::new(0) });
    let mut async_config = AsyncConfig::default();
    change(&mut async_config);
    let calls = AsyncCalls::new(Arc::clone(&gateway) as _, store, clock, Arc::clone(&host), async_config);
    let ingress = EventIngress::new(Arc::clone(&gateway) as _, Arc::clone(&host), "example.org")
        .with_async_calls(Arc::clone(&calls));
    World { ingress, host, calls, gateway, invoker }
}

impl World {
    async fn send(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, http::HeaderMap, String) {
        let mut request = http::Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.ingress.handle(request.body(Body::from(body.to_owned())).unwrap()).await;
        let (head, body) = response.into_parts();
        let body = body.collect(1 << 21).await.unwrap();
        (head.status.as_u16(), head.headers, String::from_utf8_lossy(&body).into_owned())
    }

    async fn shut(&self) {
        self.calls.shutdown(Instant::now() + Duration::from_secs(1)).await;
        self.host.shutdown(Instant::now() + Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn brokers_take_events_in_all_three_modes_from_those_who_may() {
    let world = world_on(&Arc::default(), 0, |_| {});
    for (name, ingress) in [
        ("open", BrokerIngress::Open),
        ("closed", BrokerIngress::Closed),
        ("guarded", BrokerIngress::Token("token".to_owned())),
        ("lost", BrokerIngress::Token("nowhere".to_owned())),
    ] {
        let mut spec = BrokerSpec::new(format!("default/{name}"));
        (spec.ingress, spec.tenant) = (ingress, Some(TENANT));
        world.host.apply_broker(spec).await.unwrap();
    }
    let binary = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "/s"), ("ce-type", "t")];
    let one = r#"{"specversion":"1.0","id":"2","source":"/s","type":"t"}"#;
    let structured = [("content-type", "application/cloudevents+json")];
    let batched = [("content-type", "Application/CloudEvents-Batch+JSON; charset=utf-8")];
    let at = |broker: &str| format!("http://events.example.org/default/{broker}");
    let token = [("authorization", "Bearer t0ken")];
    let wrong = [("authorization", "Bearer t0kem")];
    for (broker, headers, body, status) in [
        ("open", [&binary[..], &[]].concat(), "x".to_owned(), 202),
        ("open", structured.to_vec(), one.to_owned(), 202),
        ("open", batched.to_vec(), format!("[{one},{one}]"), 202),
        ("open", binary[1..].to_vec(), String::new(), 400),
        ("open", structured.to_vec(), "{".to_owned(), 400),
        ("open", batched.to_vec(), format!("[{one},{{}}]"), 400),
        ("open", binary.to_vec(), "x".repeat((1 << 20) + 1), 413),
        ("closed", binary.to_vec(), String::new(), 404),
        ("missing", binary.to_vec(), String::new(), 404),
        ("guarded", binary.to_vec(), String::new(), 401),
        ("guarded", [&binary[..], &wrong].concat(), String::new(), 401),
        ("guarded", [&binary[..], &token].concat(), String::new(), 202),
        ("lost", [&binary[..], &token].concat(), String::new(), 503),
    ] {
        let (answered, _, text) = world.send("POST", &at(broker), &headers, &body).await;
        assert_eq!(answered, status, "{broker} {headers:?}: {text}");
    }
    let (status, _, text) = world.send("POST", &at("open"), &binary[1..], "").await;
    assert!(status == 400 && text.contains("specversion"), "the attribute is named: {text}");
    assert_eq!(world.send("GET", &at("open"), &[], "").await.0, 405);
    let accepted = world.host.brokers().iter().find(|broker| broker.name == "default/open").unwrap().accepted;
    assert_eq!(accepted, 4, "a batch with one that is malformed is refused as a whole");
    world.shut().await;
}

fn sign(secret: &str, text: &str) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(start_paused = true)]
async fn webhooks_take_what_is_signed_and_in_time_and_deliver_it() {
    let world = world_on(&Arc::default(), 0, |_| {});
    for (name, signature, secret) in [
        ("github", "github", "hook"),
        ("stripe", "stripe", "rotating"),
        ("slack", "slack", "hook"),
        ("lost", "github", "nowhere"),
    ] {
        let mut spec = TriggerSpec::new(format!("default/{name}"), "webhook", "default/in")
            .with_option("signature", signature)
            .with_option("signing-secret", secret);
        spec.tenant = Some(TENANT);
        world.host.apply(spec).await.unwrap();
    }
    let now = 1_767_571_200_i64;
    let github = |secret: &str, body: &str| format!("sha256={}", sign(secret, body));
    let stripe = |secret: &str, time: i64, body: &str| {
        format!("t={time},v1=00,v1={}", sign(secret, &format!("{time}.{body}")))
    };
    let slack = |time: i64, body: &str| format!("v0={}", sign("s3cret", &format!("v0:{time}:{body}")));
    let body = r#"{"id": "evt_1", "type": "charge.paid", "event_id": "Ev1", "event": {"type": "message"}}"#;
    let (old, late) = ((now - 400).to_string(), now - 400);
    for (name, headers, status) in [
        (
            "github",
            vec![
                ("x-hub-signature-256", github("s3cret", body)),
                ("x-github-event", "push".into()),
                ("x-github-delivery", "d1".into()),
            ],
            202,
        ),
        ("github", vec![("x-hub-signature-256", github("wrong", body))], 401),
        ("github", vec![("x-hub-signature-256", github("s3cret", "other"))], 401),
        ("github", vec![("x-hub-signature-256", "sha256=zz".into())], 401),
        ("github", vec![], 401),
        ("stripe", vec![("stripe-signature", stripe("new", now - 10, body))], 202),
        ("stripe", vec![("stripe-signature", stripe("old", now + 10, body))], 202),
        ("stripe", vec![("stripe-signature", stripe("old", late, body))], 401),
        ("stripe", vec![("stripe-signature", "v1=00".into())], 401),
        ("stripe", vec![("stripe-signature", "t=soon,v1=00".into())], 401),
        (
            "slack",
            vec![("x-slack-signature", slack(now, body)), ("x-slack-request-timestamp", now.to_string())],
            202,
        ),
        ("slack", vec![("x-slack-signature", slack(late, body)), ("x-slack-request-timestamp", old)], 401),
        ("slack", vec![("x-slack-signature", slack(now, body))], 401),
        ("lost", vec![("x-hub-signature-256", github("s3cret", body))], 503),
        ("missing", vec![], 404),
    ] {
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let url = format!("http://events.example.org/hooks/default/{name}");
        let (answered, _, text) = world.send("POST", &url, &headers, body).await;
        assert_eq!(answered, status, "{name} {headers:?}: {text}");
    }
    let challenge = r#"{"type": "url_verification", "challenge": "abc"}"#;
    let (signature, time) = (slack(now, challenge), now.to_string());
    let headers = [("x-slack-signature", signature.as_str()), ("x-slack-request-timestamp", &time)];
    let answered =
        world.send("POST", "http://events.example.org/hooks/default/slack", &headers, challenge).await;
    assert_eq!((answered.0, answered.2.as_str()), (200, "abc"));
    sleep(Duration::from_secs(1)).await;
    let mut seen: Vec<(String, String)> = world
        .invoker
        .seen()
        .iter()
        .map(|call| {
            let header = |name: &str| call.head.headers()[name].to_str().unwrap().to_owned();
            (header("ce-type"), header("ce-id"))
        })
        .collect();
    seen.sort();
    let wanted =
        [("com.github.push", "d1"), ("com.slack.message", "Ev1"), ("com.stripe.charge.paid", "evt_1")];
    // Stripe's came twice, with one id: the second is left out.
    assert_eq!(seen, wanted.map(|(kind, id)| (kind.to_owned(), id.to_owned())));
    let unsigned = TriggerSpec::new("default/x", "webhook", "default/in").with_option("signature", "github");
    assert_eq!(world.host.check(&unsigned).unwrap_err().0[0].field, "options.signing-secret");
    world.shut().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_is_answered_later_and_its_result_fetched() {
    let world = world_on(&Arc::default(), 2, |config| config.keep = Duration::from_secs(3600));
    let url = "http://hello.default.example.org/run?x=1";
    let prefer = [("prefer", "respond-async, wait=10"), ("host", "hello.default.example.org")];
    let (status, headers, _) = world.send("POST", url, &prefer, "body").await;
    assert_eq!((status, &headers["preference-applied"]), (202, &"respond-async".parse().unwrap()));
    let at = format!("http://hello.default.example.org{}", headers["location"].to_str().unwrap());
    let (status, headers, _) = world.send("GET", &at, &[], "").await;
    assert_eq!((status, &headers["sas-async-status"]), (202, &"accepted".parse().unwrap()));
    sleep(Duration::from_secs(10)).await;
    let (status, headers, text) = world.send("GET", &at, &[], "").await;
    assert_eq!(
        (status, &headers["sas-async-status"], &headers["x-own"]),
        (201, &"done".parse().unwrap(), &"1".parse().unwrap())
    );
    assert_eq!(text, "POST hello.default.example.org /run?x=1 key 32 body");
    assert_eq!(world.gateway.calls.load(Ordering::Relaxed), 3, "two failures and a success");
    let elsewhere = at.replace("hello", "other");
    assert_eq!(world.send("GET", &elsewhere, &[], "").await.0, 404, "at another host it is unknown");
    sleep(Duration::from_secs(3700)).await;
    assert_eq!(world.send("GET", &at, &[], "").await.0, 404, "its time is over");
    // Without the header a call is a call.
    let (status, ..) = world.send("POST", url, &[("host", "a"), ("idempotency-key", "k")], "body").await;
    assert_eq!(status, 201);
    // Nobody allowed a URL to be called.
    let callback = [prefer[0], prefer[1], ("x-callback-url", "http://169.254.169.254/")];
    assert_eq!(world.send("POST", url, &callback, "").await.0, 400);
    world.shut().await;
}

#[tokio::test(start_paused = true)]
async fn accepted_calls_are_bounded_and_survive_a_crash() {
    let store = Arc::new(MemoryStore::default());
    let world = world_on(&store, u32::MAX, |config| {
        config.most_calls = 2;
        config.retry.retries = 1000;
    });
    let prefer = [("prefer", "respond-async"), ("host", "h.example.org")];
    let url = "http://h.example.org/";
    let (first, headers, _) = world.send("PUT", url, &prefer, "1").await;
    let (second, ..) = world.send("PUT", url, &prefer, "2").await;
    let (third, refused, _) = world.send("PUT", url, &prefer, "3").await;
    assert_eq!((first, second, third), (202, 202, 503));
    assert!(refused.contains_key("retry-after"));
    sleep(Duration::from_secs(30)).await;
    // The host dies: nothing of it runs any more, and the next one finds the store.
    world.shut().await;
    let next = world_on(&store, 0, |_| {});
    assert_eq!(next.calls.recover().await.unwrap(), 2);
    sleep(Duration::from_secs(5)).await;
    let at = format!("http://h.example.org{}", headers["location"].to_str().unwrap());
    let (status, _, text) = next.send("GET", &at, &[], "").await;
    assert_eq!((status, text.as_str()), (201, "PUT h.example.org / key 32 1"));
    assert_eq!(next.send("DELETE", &at, &[], "").await.0, 200);
    assert_eq!(next.send("GET", &at, &[], "").await.0, 404);
    next.shut().await;
}
