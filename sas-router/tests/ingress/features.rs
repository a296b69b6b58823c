//! What integrators build on: hooks, quotas, records, tags, fallbacks, and what a cold service shows.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use http::StatusCode;
use sas_core::{
    Affinity, Body, Quota, Quotas as _, Request, Response, RouteAction, RouteRule, Split, TenantKey,
};
use sas_router::{AccessLog, AccessRecord, End, Failure, GatewayConfig, Hook, HookCx, ServerConfig, Step};

use crate::support::*;

const TAG_HEADER: &str = "x-tag";

async fn with(gateway: GatewayConfig) -> Platform {
    Platform::with(spec(), gateway, ServerConfig::default()).await
}

fn says(word: &'static str) -> Arc<dyn sas_core::Handler> {
    handler(move |_| async move { text(200, word) })
}

/// Refuses who has no key, rewrites the path, answers `/early`, and marks what goes out.
#[derive(Debug)]
struct Guard(&'static str, Arc<Mutex<Vec<String>>>);

#[async_trait]
impl Hook for Guard {
    async fn on_request(&self, request: &mut Request, _: &HookCx<'_>) -> Result<Step, Failure> {
        self.1.lock().unwrap().push(format!("{} {}", self.0, request.uri().path()));
        if request.uri().path() == "/early" {
            return Ok(Step::Answer(Box::new(text(418, "early"))));
        }
        if !request.headers().contains_key("x-key") {
            return Err(Failure::new(StatusCode::UNAUTHORIZED, "hook", "no_key", "send x-key"));
        }
        *request.uri_mut() = format!("{}/{}", request.uri().path(), self.0).parse().unwrap();
        Ok(Step::Continue)
    }

    fn on_response(&self, response: &mut Response, _: &HookCx<'_>) {
        self.1.lock().unwrap().push(format!("{} out", self.0));
        response.headers_mut().append("x-passed", self.0.parse().unwrap());
    }
}

#[tokio::test]
async fn hooks_run_in_order_and_answers_pass_them_the_other_way() {
    let calls = Arc::new(Mutex::new(Vec::new()));
    let mut config = GatewayConfig::default();
    config.hooks = vec![Arc::new(Guard("a", Arc::clone(&calls))), Arc::new(Guard("b", Arc::clone(&calls)))];
    let platform = with(config).await;
    platform.pool.add_inside(
        platform.revision,
        handler(|request| async move { text(200, request.uri().path().to_owned()) }),
    );
    let mut client = Client::connect(platform.address()).await;

    let mut allowed = get("/x");
    allowed.headers_mut().insert("x-key", "k".parse().unwrap());
    let response = client.send(allowed).await;
    let passed: Vec<_> = response.headers().get_all("x-passed").iter().collect();
    assert_eq!(passed, ["b", "a"]);
    assert_eq!(read(response).await, "/x/a/b");
    assert_eq!(std::mem::take(&mut *calls.lock().unwrap()), ["a /x", "b /x/a", "b out", "a out"]);

    let response = client.send(get("/x")).await;
    assert_eq!(response.status(), 401);
    assert_eq!(json(response).await["reason"], "no_key");

    calls.lock().unwrap().clear();
    assert_eq!(client.send(get("/early")).await.status(), 418);
    assert_eq!(*calls.lock().unwrap(), ["a /early", "b out", "a out"], "what comes after is not asked");
}

#[tokio::test]
async fn a_quota_answers_429_with_the_time_to_come_back() {
    let config = GatewayConfig::default();
    config.admission.set_service("default/hello", Some(Quota::rate(0.5, 2)));
    let admission = Arc::clone(&config.admission);
    let platform = with(config).await;
    platform.pool.add_inside(platform.revision, says("ok"));
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..2 {
        assert_eq!(client.send(get("/")).await.status(), 200);
    }
    let response = client.send(get("/")).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "2");
    assert_eq!(json(response).await["reason"], "service_rate");
    admission.set_service("default/hello", None);
    assert_eq!(client.send(get("/")).await.status(), 200);
}

#[tokio::test]
async fn concurrency_counts_until_the_last_byte() {
    let config = GatewayConfig::default();
    config.admission.set_tenant(TenantKey(1), Some(Quota::UNLIMITED.with_concurrency(1).into()));
    let platform = with(config).await;
    let (open, close) = (Arc::new(tokio::sync::Notify::new()), Arc::new(tokio::sync::Notify::new()));
    let (opened, closing) = (Arc::clone(&open), Arc::clone(&close));
    let instance = instance(handler(move |_| {
        let (open, close) = (Arc::clone(&open), Arc::clone(&close));
        async move {
            let (mut sender, body) =
                http_body_util::channel::Channel::<bytes::Bytes, sas_core::BoxError>::new(1);
            tokio::spawn(async move {
                sender.send_data("first".into()).await.unwrap();
                open.notify_one();
                close.notified().await;
            });
            Response::new(Body::new(body))
        }
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut first = Client::connect(platform.address()).await;
    let streaming = first.send(get("/")).await;
    opened.notified().await;
    let mut second = Client::connect(platform.address()).await;
    let response = second.send(get("/")).await;
    assert_eq!(response.status(), 429);
    assert_eq!(json(response).await["reason"], "tenant_concurrency");
    closing.notify_one();
    assert_eq!(read(streaming).await, "first");
    platform.pool.until_idle().await;
    let again = second.send(get("/")).await;
    assert_eq!(again.status(), 200);
    closing.notify_one();
    read(again).await;
}

#[derive(Debug, Default)]
struct Records(Mutex<Vec<AccessRecord>>);

impl AccessLog for Records {
    fn record(&self, record: &AccessRecord) {
        self.0.lock().unwrap().push(record.clone());
    }
}

impl Records {
    async fn next(&self) -> AccessRecord {
        let by = deadline();
        loop {
            if let Some(record) = self.0.lock().unwrap().pop() {
                return record;
            }
            assert!(tokio::time::Instant::now() < by, "no record came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn every_request_is_recorded_once_when_it_is_over() {
    let records = Arc::new(Records::default());
    let mut config = GatewayConfig::default();
    config.access = Some(records.clone());
    let platform = with(config).await;
    let instance = instance(handler(|request| async move {
        let large = request.uri().path() == "/large";
        let _read = request.into_body().collect(100).await;
        text(200, if large { "x".repeat(1 << 20) } else { "answer".into() })
    }))
    .await;
    let id = platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;

    let response = client.send(request("POST", "/small?secret=1", "four")).await;
    let request_id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    read(response).await;
    let record = records.next().await;
    assert_eq!(record.id.to_string(), request_id);
    assert_eq!(
        (record.method.as_str(), record.host.as_str(), record.path.as_str()),
        ("POST", HOST, "/small")
    );
    assert_eq!((record.status.as_u16(), record.reason, record.end), (200, None, End::Complete));
    assert_eq!((record.bytes_in, record.bytes_out), (4, 6));
    assert_eq!((record.tenant, record.revision), (Some(TenantKey(1)), Some(platform.revision)));
    assert_eq!(record.name.unwrap().as_str(), "default/hello/hello-00001");
    let timings = record.timings.unwrap();
    assert!(timings.instance == Some(id) && !timings.cold && record.duration >= timings.total);

    read(client.send(get("/large")).await).await;
    let record = records.next().await;
    assert_eq!((record.bytes_out, record.end), (1 << 20, End::Complete));

    platform.pool.remove(platform.revision, id);
    read(client.send(get("/nobody")).await).await;
    let record = records.next().await;
    assert_eq!((record.status.as_u16(), record.reason), (503, Some("queue_full")));
    assert!(record.timings.is_none() && records.0.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_client_that_leaves_is_recorded_as_such() {
    let records = Arc::new(Records::default());
    let mut config = GatewayConfig::default();
    config.access = Some(records.clone());
    let platform = with(config).await;
    let instance = instance(handler(|_| async { text(200, "x".repeat(64 << 20)) })).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(get("/")).await;
    drop((response, client));
    assert_eq!(records.next().await.end, End::Aborted);
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn times_are_told_to_who_asks() {
    let platform = with(GatewayConfig::default()).await;
    platform.pool.add_inside(platform.revision, says("ok"));
    let mut client = Client::connect(platform.address()).await;
    assert!(!client.send(get("/")).await.headers().contains_key("server-timing"));
    let mut asking = get("/");
    asking.headers_mut().insert("x-sas-timing", "1".parse().unwrap());
    let response = client.send(asking).await;
    let told = response.headers()["server-timing"].to_str().unwrap();
    for part in ["queue;dur=", "upstream;dur=", "total;dur="] {
        assert!(told.contains(part), "{told}");
    }
}

#[tokio::test]
async fn a_split_and_its_tags_hold_through_the_gateway() {
    let platform = with(GatewayConfig::default()).await;
    let canary = platform.pool.revision("canary", spec());
    platform.pool.add_inside(platform.revision, says("stable"));
    platform.pool.add_inside(canary, says("canary"));
    let split = |weights: &[(_, u32)]| {
        RouteAction::Split(weights.iter().map(|(revision, weight)| Split::new(*revision, *weight)).collect())
    };
    let all = RouteRule::new(TenantKey(1), split(&[(platform.revision, 93), (canary, 7)]));
    let tagged = RouteRule::new(TenantKey(1), split(&[(canary, 100)])).with_header(TAG_HEADER, "next");
    set(&platform.table, HOST, vec![all, tagged.clone()]);
    set(
        &platform.table,
        "next-hello.default.example.com",
        vec![RouteRule::new(TenantKey(1), split(&[(canary, 100)]))],
    );
    let mut client = Client::connect(platform.address()).await;
    let mut canaries = 0;
    for _ in 0..200 {
        canaries += usize::from(read(client.send(get("/")).await).await == "canary");
    }
    assert_eq!(canaries, 14);
    let mut by_header = get("/");
    by_header.headers_mut().insert(TAG_HEADER, "next".parse().unwrap());
    assert_eq!(read(client.send(by_header).await).await, "canary");
    let mut by_host = get("/");
    by_host.headers_mut().insert("host", "next-hello.default.example.com".parse().unwrap());
    assert_eq!(read(client.send(by_host).await).await, "canary");
}

#[tokio::test]
async fn requests_that_belong_together_meet_the_same_instance() {
    let platform = with(GatewayConfig::default()).await;
    for name in ["a", "b", "c"] {
        platform.pool.add_inside(platform.revision, says(name));
    }
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(platform.revision, 100)]));
    rule.affinity = Affinity::Cookie("session".into());
    set(&platform.table, HOST, vec![rule]);
    let mut client = Client::connect(platform.address()).await;
    let mut met = std::collections::BTreeSet::new();
    for session in 0..12 {
        let mut first = None;
        for _ in 0..4 {
            let mut request = get("/");
            request.headers_mut().insert("cookie", format!("x=1; session={session}").parse().unwrap());
            let who = read(client.send(request).await).await;
            assert_eq!(*first.get_or_insert(who.clone()), who, "session {session}");
            met.insert(who);
        }
    }
    assert!(met.len() > 1, "sessions spread: {met:?}");
}

#[tokio::test]
async fn the_fallback_answers_when_the_revision_can_not() {
    let platform = with(GatewayConfig::default()).await;
    let fallback = platform.pool.revision("sorry", spec());
    platform.pool.add_inside(
        fallback,
        handler(|request| async move {
            let body = request.into_body().collect(100).await.unwrap();
            text(200, format!("sorry, {}", String::from_utf8_lossy(&body)))
        }),
    );
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(platform.revision, 100)]));
    rule.fallback = Some(fallback);
    set(&platform.table, HOST, vec![rule]);
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(request("POST", "/", "friend")).await;
    assert_eq!(read(response).await, "sorry, friend", "the request arrives whole");
}

#[tokio::test]
async fn a_rule_may_keep_health_checks_from_waking_a_service() {
    let platform = with(GatewayConfig::default()).await;
    let split = || RouteAction::Split(vec![Split::new(platform.revision, 100)]);
    let mut check = RouteRule::new(TenantKey(1), split()).under("/healthz");
    check.wakes = false;
    set(&platform.table, HOST, vec![RouteRule::new(TenantKey(1), split()), check]);
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(get("/healthz")).await;
    assert_eq!(json(response).await["reason"], "asleep");
    let response = client.send(get("/other")).await;
    assert_eq!(json(response).await["reason"], "queue_full", "others would have woken it");
}

#[tokio::test]
async fn a_redirect_says_where() {
    let platform = with(GatewayConfig::default()).await;
    let location = "https://new.example{path}?{query}".to_owned();
    set(
        &platform.table,
        HOST,
        vec![RouteRule::new(TenantKey(1), RouteAction::Redirect { status: 308, location })],
    );
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(get("/a/b?c=d")).await;
    assert_eq!(response.status(), 308);
    assert_eq!(response.headers()["location"], "https://new.example/a/b?c=d");
    assert!(response.headers().contains_key("x-request-id"));
}

#[tokio::test]
async fn an_instance_that_fails_its_liveness_probe_is_replaced() {
    let mut probed = spec();
    let action = sas_core::ProbeAction::Http { path: "/healthz".into(), port: None, headers: Vec::new() };
    let mut probe = sas_core::Probe::new(action);
    probe.failure_threshold = 2;
    probe.period = Duration::from_nanos(1);
    probed.liveness = Some(probe);
    let platform = Platform::with(probed, GatewayConfig::default(), ServerConfig::default()).await;
    let (well, ill) = (instance(says("ok")).await, instance(handler(|_| async { text(500, "ill") })).await);
    let healthy = platform.pool.add_at(platform.revision, well.local_addr());
    let unhealthy = platform.pool.add_at(platform.revision, ill.local_addr());
    let gone = platform.pool.add_at(platform.revision, "127.0.0.1:1".parse().unwrap());
    let mut checks = sas_router::HealthChecks::new(platform.pool.clone());
    assert_eq!(checks.round(&[platform.revision]).await, [], "once is not often enough");
    let replaced = checks.round(&[platform.revision]).await;
    assert_eq!(replaced, [(platform.revision, unhealthy), (platform.revision, gone)]);
    use sas_core::Pool as _;
    let left: Vec<_> = platform.pool.instances(platform.revision).iter().map(|view| view.id).collect();
    assert_eq!(left, [healthy]);
}

#[tokio::test]
async fn a_liveness_probe_that_cannot_be_asked_replaces_nothing() {
    use sas_core::{Pool as _, Probe, ProbeAction};

    let exec = ProbeAction::Exec { command: vec!["true".to_owned()] };
    for action in [exec, ProbeAction::Grpc { port: None, service: None }] {
        let mut probed = spec();
        let mut probe = Probe::new(action);
        (probe.failure_threshold, probe.period) = (1, Duration::from_nanos(1));
        probed.liveness = Some(probe);
        let platform = Platform::with(probed, GatewayConfig::default(), ServerConfig::default()).await;
        let called = platform.pool.add_inside(platform.revision, says("ok"));
        let mut checks = sas_router::HealthChecks::new(platform.pool.clone());
        for _ in 0..3 {
            assert_eq!(checks.round(&[platform.revision]).await, []);
        }
        let left: Vec<_> = platform.pool.instances(platform.revision).iter().map(|view| view.id).collect();
        assert_eq!(left, [called]);
    }
}

#[tokio::test]
async fn a_browser_gets_a_page_while_the_service_starts_and_others_wait() {
    let platform = with(GatewayConfig::default()).await;
    platform.pool.queue();
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(platform.revision, 100)]));
    rule.placeholder = true;
    set(&platform.table, HOST, vec![rule]);
    let browse = || {
        let mut ask = get("/");
        ask.headers_mut().insert("accept", "text/html,*/*;q=0.8".parse().unwrap());
        ask
    };
    let mut browser = Client::connect(platform.address()).await;
    for asked in 1..=2 {
        let page = browser.send(browse()).await;
        assert_eq!((page.status().as_u16(), &page.headers()["retry-after"]), (503, &"1".parse().unwrap()));
        assert_eq!(page.headers()["cache-control"], "no-store");
        assert!(page.headers()["content-type"].to_str().unwrap().starts_with("text/html"));
        assert!(page.headers().contains_key("x-request-id"));
        let page = read(page).await;
        assert!(page.contains("http-equiv=\"refresh\""), "it comes back by itself: {page}");
        assert_eq!(platform.pool.places(), asked, "asking wakes the service");
    }
    let address = platform.address();
    let program =
        tokio::spawn(async move { read(Client::connect(address).await.send(get("/")).await).await });
    let mut form = request("POST", "/", "a=b");
    form.headers_mut().insert("accept", "text/html".parse().unwrap());
    let form = tokio::spawn(async move { read(Client::connect(address).await.send(form).await).await });
    while platform.pool.places() < 4 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!program.is_finished() && !form.is_finished(), "what is no page view waits");
    platform.pool.add_inside(platform.revision, says("ready"));
    assert_eq!(program.await.unwrap(), "ready");
    assert_eq!(form.await.unwrap(), "ready");
    assert_eq!(read(browser.send(browse()).await).await, "ready", "a warm service shows no page");
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_pool_that_never_answers_holds_no_client_beyond_its_deadline() {
    let platform = with(GatewayConfig::default()).await;
    platform.pool.queue();
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(platform.revision, 100)]));
    rule.timeout = Duration::from_millis(50);
    set(&platform.table, HOST, vec![rule]);
    let answer = Client::connect(platform.address()).await.send(get("/")).await;
    assert_eq!(answer.status(), StatusCode::GATEWAY_TIMEOUT);
    let said = json(answer).await;
    assert_eq!((&said["component"], &said["reason"]), (&"pool".into(), &"queue_timeout".into()));
}

#[tokio::test]
async fn a_revision_that_can_not_start_counts_as_failing() {
    use sas_core::AnswerCounter as _;
    let platform = with(GatewayConfig::default()).await;
    assert_eq!(platform.gateway.answers(platform.revision), None, "nobody watches it");
    platform.gateway.watch_answers(platform.revision);
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..3 {
        assert_eq!(client.send(get("/")).await.status(), 503);
    }
    let counts = platform.gateway.answers(platform.revision).unwrap();
    assert_eq!((counts.requests, counts.errors), (3, 3));
    platform.gateway.watch_answers(platform.revision);
    assert_eq!(platform.gateway.answers(platform.revision).unwrap().requests, 0, "counting begins anew");
    platform.gateway.unwatch_answers(platform.revision);
    assert_eq!(platform.gateway.answers(platform.revision), None);
}

#[tokio::test]
async fn a_clients_idempotency_key_reaches_the_instance_as_it_was_sent() {
    use sas_core::{Cx, IdempotencyKey, Invoker as _, RequestId};
    let platform = with(GatewayConfig::default()).await;
    let echo = handler(|request: Request| async move {
        let all: Vec<&str> = request
            .headers()
            .get_all("idempotency-key")
            .iter()
            .map(|value| value.to_str().unwrap_or("not ASCII"))
            .collect();
        text(200, all.join(" and "))
    });
    platform.pool.add_inside(platform.revision, Arc::clone(&echo));
    let outside = instance(echo).await;
    platform.pool.add_at(platform.revision, outside.local_addr());
    let mut client = Client::connect(platform.address()).await;
    // By turns in this process and over a connection; also spelt as no structured field, and none at all.
    for sent in ["\"8e03978e-40d5\"", "\"8e03978e-40d5\"", "bare words", "bare words", "", ""] {
        let mut request = get("/");
        if !sent.is_empty() {
            request.headers_mut().insert("Idempotency-Key", sent.parse().unwrap());
        }
        assert_eq!(read(client.send(request).await).await, sent);
    }
    // A key of the platform's own gives way to one that is there.
    let target = sas_core::Target::Revision(platform.revision);
    let cx = Cx::new(TenantKey(1), RequestId(7), deadline()).with_idempotency(IdempotencyKey(1));
    for (sent, expected) in [("\"mine\"", "\"mine\"".to_owned()), ("", format!("\"{}\"", IdempotencyKey(1)))]
    {
        let mut request = get("/");
        if !sent.is_empty() {
            request.headers_mut().insert("Idempotency-Key", sent.parse().unwrap());
        }
        assert_eq!(
            read(platform.gateway.invoke(target.clone(), request, &cx).await.unwrap()).await,
            expected
        );
    }
}
