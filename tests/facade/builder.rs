//! Values that a host gives to the builder's closures reach the part that they are for.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas::{
    core::{
        Clock, Error, ErrorKind, Hour, MemoryStore, Store as _, Timestamp, TokioClock, TriggerCx,
        TriggerSource, TriggerSpec,
    },
    prelude::*,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

const START: Timestamp = Timestamp::from_secs(1_767_571_200);
const TOKEN: &str = "a-token-of-the-tests";

fn runtime() -> InlineRuntime {
    InlineRuntime::new().with("quick", |_: Request, _cx| async { Response::new(Body::from("quick")) }).with(
        "slow",
        |_: Request, _cx| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            Response::new(Body::from("slow"))
        },
    )
}

fn builder() -> PlatformBuilder {
    Platform::builder().admin_token(TOKEN).runtime(runtime()).clock(TokioClock::starting_at(START))
}

/// Deploys the next revision of `name`.
async fn deploy(platform: &Platform, name: &str, function: &str, version: u32) {
    let mut spec = RevisionSpec::new("inline", Source::Function(function.into()));
    spec.timeouts.stop_grace = Duration::from_secs(1);
    spec.env.insert("VERSION".into(), sas::core::EnvValue::Literal(version.to_string()));
    platform.deploy("default", name, spec).await.expect("deployed");
}

async fn admin(platform: &Platform, method: &str, path: &str, body: &str) -> Value {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"))
        .body(Body::from(body.to_owned()));
    let response = platform.admin().handle(request.expect("a request")).await;
    let body = response.into_body().collect(1 << 20).await.expect("a body");
    serde_json::from_slice(&body).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn limits_of_old_revisions_reach_the_control_plane() {
    for (most, left) in [(2, 3), (1000, 6)] {
        let platform = builder()
            .control(move |control| {
                control.rules.gc.min_non_active = 0;
                control.rules.gc.max_non_active = most;
            })
            .build()
            .await
            .expect("a platform");
        for version in 0..6 {
            deploy(&platform, "shop", "quick", version).await;
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        let record = platform.control().record("default", "shop").expect("deployed");
        assert_eq!(record.revisions.len(), left, "of six, with {most} old ones at most");
        platform.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_grace_of_revisions_that_lost_their_traffic_reaches_the_control_plane() {
    for (grace, ends) in [(2, 2..10), (300, 60..61)] {
        let platform = builder()
            .control(move |control| control.drain_grace = Duration::from_secs(grace))
            .build()
            .await
            .expect("a platform");
        deploy(&platform, "shop", "slow", 1).await;
        let request = http::Request::get("/").body(Body::empty()).expect("a request");
        let asked = Instant::now();
        let call = platform.call("default", "shop", request);
        let next = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            deploy(&platform, "shop", "quick", 2).await;
        };
        let (answer, ()) = tokio::join!(call, next);
        let took = asked.elapsed().as_secs();
        assert!(ends.contains(&took), "a grace of {grace} s, and the call of 60 s ended after {took} s");
        assert_eq!(answer.is_ok_and(|answer| answer.status() == 200), grace == 300);
        platform.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn bounds_of_the_audit_trail_reach_the_control_plane() {
    let platform = builder().control(|control| control.audit.count = 3).build().await.expect("a platform");
    for namespace in 0..8 {
        let path = format!("/v1/quotas/team-{namespace}");
        admin(&platform, "PUT", &path, r#"{"concurrency": 5}"#).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let trail = admin(&platform, "GET", "/v1/audit", "").await;
    assert_eq!(trail["records"].as_array().map(Vec::len), Some(3), "{trail}");
    platform.shutdown(Duration::from_secs(5)).await;
}

/// Fails as soon as it runs.
#[derive(Debug)]
struct Fails(Arc<AtomicU32>);

#[async_trait]
impl TriggerSource for Fails {
    fn kind(&self) -> &'static str {
        "fails"
    }
    async fn run(&self, _: TriggerCx) -> sas::core::Result<()> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(Error::new(ErrorKind::Unavailable, "run", "nothing to read from"))
    }
}

/// Counts how many of its events are under way at once.
#[derive(Debug)]
struct Floods(Arc<AtomicU32>);

#[async_trait]
impl TriggerSource for Floods {
    fn kind(&self) -> &'static str {
        "floods"
    }
    async fn run(&self, cx: TriggerCx) -> sas::core::Result<()> {
        let mut slots = Vec::new();
        loop {
            tokio::select! {
                biased;
                () = cx.shutdown.cancelled() => return Ok(()),
                slot = cx.sink.ready() => slots.push(slot?),
            }
            self.0.store(u32::try_from(slots.len()).unwrap_or(u32::MAX), Ordering::Relaxed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn waits_of_failed_sources_and_slots_reach_the_triggers() {
    for (first, longest, runs) in [(1, 1, 10..=12), (4, 8, 3..=3)] {
        let (made, held) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (of_kind, of_flood) = (Arc::clone(&made), Arc::clone(&held));
        let platform = builder()
            .trigger_kind("fails", move |_| Ok(Arc::new(Fails(Arc::clone(&of_kind))) as _))
            .trigger_kind("floods", move |_| Ok(Arc::new(Floods(Arc::clone(&of_flood))) as _))
            .triggers(move |triggers| {
                triggers.restart_delay = Duration::from_secs(first);
                triggers.longest_restart_delay = Duration::from_secs(longest);
                triggers.slots = 7;
            })
            .build()
            .await
            .expect("a platform");
        deploy(&platform, "shop", "quick", 1).await;
        let control = platform.control();
        control.apply_trigger(TriggerSpec::new("default/f", "fails", "default/shop")).await.expect("applied");
        // 4 s, then 8 s: at 0, 4 and 12. Or 1 s each time.
        let watched = Duration::from_secs(if first == 1 { 10 } else { 19 });
        tokio::time::sleep(watched).await;
        let made = made.load(Ordering::Relaxed);
        assert!(runs.contains(&made), "{made} runs in {watched:?} with waits from {first} s to {longest} s");

        let floods =
            TriggerSpec::new("default/all", "floods", "default/shop").with_option("concurrency", "100");
        control.apply_trigger(floods).await.expect("applied");
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(held.load(Ordering::Relaxed), 7, "events under way at once, over all triggers");
        platform.shutdown(Duration::from_secs(5)).await;
    }
}

/// A clock that is so many seconds ahead.
#[derive(Debug)]
struct Ahead(TokioClock, Arc<AtomicU32>);

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        self.0.now() + Duration::from_secs(self.1.load(Ordering::Relaxed).into())
    }
}

#[tokio::test(start_paused = true)]
async fn the_times_and_the_name_of_the_host_reach_the_meter() {
    for (checkpoint, writes, keep) in [(2, 15..=40, 1), (40, 1..=4, 100)] {
        let store = Arc::new(MemoryStore::default());
        let ahead = Arc::new(AtomicU32::new(0));
        let first = format!("{:010}", Hour::of(START).0);
        let platform = builder()
            .store(Arc::clone(&store))
            .clock(Ahead(TokioClock::starting_at(START), Arc::clone(&ahead)))
            .meter(move |meter| {
                meter.checkpoint = Duration::from_secs(checkpoint);
                meter.keep_hours = keep;
                meter.host = "edge-7".to_owned();
            })
            .build()
            .await
            .expect("a platform");
        deploy(&platform, "shop", "quick", 1).await;
        let call = async || {
            let request = http::Request::get("/").body(Body::empty()).expect("a request");
            let answer = platform.call("default", "shop", request).await.expect("an answer");
            answer.into_body().collect(64).await.expect("a body");
        };
        call().await;
        let mut seen = BTreeSet::new();
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let totals = store.get("usage/total/default/shop/shop-00001").await.expect("read");
            seen.extend(totals.map(|entry| entry.value.to_vec()));
        }
        assert!(writes.contains(&seen.len()), "{} sums in 50 s, written each {checkpoint} s", seen.len());
        let named = store.get("usage/checkpoint/edge-7").await.expect("read");
        assert!(named.is_some(), "its checkpoint has the host's name");

        // Three hours go by, twice.
        for _ in 0..2 {
            ahead.fetch_add(3 * 3600, Ordering::Relaxed);
            call().await;
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        let kept = store.list("usage/hour/", None, 100).await.expect("listed");
        let kept: BTreeSet<&str> = kept.iter().filter_map(|entry| entry.key.split('/').nth(2)).collect();
        assert_eq!(
            kept.contains(first.as_str()),
            keep > 1,
            "{kept:?} of which {keep} are kept, the first is {first}"
        );
        platform.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shutdown_does_not_wait_for_clients_that_keep_idle_connections() {
    let platform = Platform::builder()
        .runtime(runtime())
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .build()
        .await
        .expect("a platform");
    deploy(&platform, "shop", "quick", 1).await;
    let ingress = platform.listen_addr().expect("it listens");
    let mut idle = Vec::new();
    for _ in 0..20 {
        let mut client = TcpStream::connect(ingress).await.expect("connected");
        client.write_all(b"GET / HTTP/1.1\r\nhost: shop.default.localhost\r\n\r\n").await.expect("sent");
        let mut answer = Vec::new();
        while !answer.ends_with(b"quick") {
            assert!(client.read_buf(&mut answer).await.expect("read") > 0, "the connection is kept");
        }
        idle.push(client);
    }
    let began = Instant::now();
    let report = platform.shutdown(Duration::from_secs(20)).await;
    let took = began.elapsed();
    assert!(report.drained, "{report:?}");
    assert!(took < Duration::from_millis(500), "twenty idle connections, and it took {took:?}");
    for mut client in idle {
        assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0, "the client sees the end");
    }
}
