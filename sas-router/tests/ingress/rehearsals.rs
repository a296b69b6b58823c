//! Copies of requests to another revision, and faults on purpose, as clients, targets and operators see them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::StatusCode;
use sas_core::{
    AnswerCounter as _, Body, Cx, Fault, Invoker as _, Mirror, MirrorCounts, Payer, Rehearsals as _, Request,
    RequestId, RevisionKey, RouteAction, RouteRule, Split, Target, TenantKey, ValueMatch,
};
use sas_router::{GatewayConfig, ServerConfig};
use tokio::time::Instant;

use crate::support::*;

const SERVICE: &str = "default/hello";

/// A platform whose service answers, and another revision that gets copies, which `copied` answers.
async fn mirroring(gateway: GatewayConfig, copied: Arc<dyn sas_core::Handler>) -> (Platform, RevisionKey) {
    let platform = Platform::with(spec(), gateway, ServerConfig::default()).await;
    let echo = handler(|request: Request| async move {
        let seen = request.headers().contains_key("x-sas-mirrored");
        let bytes = request.into_body().collect(1 << 20).await.unwrap();
        text(200, format!("{} {seen}", bytes.len()))
    });
    platform.pool.add_inside(platform.revision, echo);
    let next = platform.pool.revision("next", spec());
    platform.pool.add_inside(next, copied);
    (platform, next)
}

fn post(body: impl Into<Body>) -> Request {
    let request = http::Request::post("/path?q").header("host", HOST).body(body.into());
    request.unwrap()
}

async fn counted(platform: &Platform, until: impl Fn(&MirrorCounts) -> bool) -> MirrorCounts {
    let by = Instant::now() + Duration::from_secs(20);
    loop {
        let counts = platform.gateway.mirrored(SERVICE).expect("a mirror");
        if until(&counts) {
            return counts;
        }
        assert!(Instant::now() < by, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_share_of_the_requests_is_copied_whole_and_marked() {
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    let copied = handler(move |request: Request| {
        let notes = Arc::clone(&notes);
        async move {
            let (head, body) = request.into_parts();
            let bytes = body.collect(1 << 20).await.unwrap();
            let mark = head.headers.get("x-sas-mirrored").map(|mark| mark.to_str().unwrap().to_owned());
            assert_eq!(head.headers["x-forwarded-for"], "127.0.0.1", "as the instance got it");
            notes.lock().unwrap().push((head.method, head.uri.to_string(), mark, bytes.len()));
            text(500, "nobody sees this")
        }
    });
    let (platform, next) = mirroring(GatewayConfig::default(), copied).await;
    platform.gateway.watch_answers(next);
    platform.gateway.set_mirror(SERVICE, Some(Mirror::new(next, 25)));
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..20 {
        let mut request = post("twelve bytes");
        // A client can't make the application believe that.
        request.headers_mut().insert("x-sas-mirrored", "true".parse().unwrap());
        let answer = client.send(request).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(read(answer).await, "12 false");
    }
    let counts = counted(&platform, |counts| counts.failed == 5).await;
    assert_eq!(counts, MirrorCounts { failed: 5, ..MirrorCounts::default() });
    assert_eq!(seen.lock().unwrap().len(), 5);
    for (method, uri, mark, bytes) in seen.lock().unwrap().iter() {
        assert_eq!(
            (method.as_str(), uri.as_str(), mark.as_deref(), *bytes),
            ("POST", "/path?q", Some("true"), 12)
        );
    }
    assert_eq!(platform.gateway.answers(next).unwrap().requests, 0, "copies show nothing of how users fare");
    platform.gateway.set_mirror(SERVICE, None);
    assert_eq!(platform.gateway.mirrored(SERVICE), None);
    assert_eq!(client.send(post("x")).await.status(), 200);
    assert_eq!(seen.lock().unwrap().len(), 5);
}

#[tokio::test]
async fn a_target_that_hangs_slows_nobody_and_what_it_can_not_take_is_dropped() {
    let hangs = handler(|_| async { std::future::pending().await });
    let mut config = GatewayConfig::default();
    (config.mirror.at_once, config.mirror.waiting) = (2, 3);
    let (platform, next) = mirroring(config, hangs).await;
    platform.gateway.set_mirror(SERVICE, Some(Mirror::new(next, 100)));
    let mut client = Client::connect(platform.address()).await;
    let began = Instant::now();
    for _ in 0..50 {
        assert_eq!(client.send(post("x")).await.status(), 200);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    let counts = platform.gateway.mirrored(SERVICE).unwrap();
    assert_eq!(counts, MirrorCounts { dropped: 45, ..MirrorCounts::default() });
    assert_eq!(platform.pool.leases(), 2, "as many copies are under way as may be");
}

#[tokio::test]
async fn large_bodies_streams_and_upgrades_are_copied_as_far_as_they_may_be() {
    let bytes = Arc::new(AtomicUsize::new(0));
    let sum = Arc::clone(&bytes);
    let copied = handler(move |request: Request| {
        let sum = Arc::clone(&sum);
        async move {
            let body = request.into_body().collect(1 << 20).await.unwrap();
            sum.fetch_add(body.len(), Ordering::SeqCst);
            text(200, "")
        }
    });
    let mut config = GatewayConfig::default();
    config.mirror.max_body_bytes = 1_000;
    let (platform, next) = mirroring(config, copied).await;
    platform.gateway.set_mirror(SERVICE, Some(Mirror::new(next, 100)));
    let mut client = Client::connect(platform.address()).await;
    // Of known length, and of a length that shows as it passes by.
    assert_eq!(read(client.send(post("x".repeat(1_001))).await).await, "1001 false");
    let chunks = |count: usize| {
        let pieces = (0..count).map(|_| {
            Ok::<_, sas_core::BoxError>(http_body::Frame::data(bytes::Bytes::from_static(&[7; 300])))
        });
        Body::new(http_body_util::StreamBody::new(futures_util::stream::iter(pieces)))
    };
    assert_eq!(read(client.send(post(chunks(4))).await).await, "1200 false");
    assert_eq!(read(client.send(post(chunks(3))).await).await, "900 false");
    let mut upgrade = get("/");
    upgrade.headers_mut().insert("connection", "upgrade".parse().unwrap());
    upgrade.headers_mut().insert("upgrade", "websocket".parse().unwrap());
    client.send(upgrade).await;
    let counts = counted(&platform, |counts| counts.answered == 1).await;
    assert_eq!(counts, MirrorCounts { answered: 1, too_large: 2, ..MirrorCounts::default() });
    assert_eq!(bytes.load(Ordering::SeqCst), 900);
}

fn fault(change: impl FnOnce(&mut Fault)) -> Fault {
    let mut fault = Fault::default();
    fault.percent = 100;
    change(&mut fault);
    fault
}

#[tokio::test]
async fn faults_delay_and_abort_by_rule_and_share_and_say_so() {
    let platform = Platform::start().await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "answered") }));
    platform.gateway.watch_answers(platform.revision);
    let other = platform.pool.revision("other", spec());
    let faults = vec![
        fault(|fault| {
            fault.revision = Some(other);
            fault.abort = Some(500);
        }),
        fault(|fault| {
            fault.matches.path_prefix = "/slow".into();
            fault.delay = Some(Duration::from_millis(60));
        }),
        fault(|fault| {
            fault.matches.headers.push(("x-test".into(), ValueMatch::Present));
            (fault.percent, fault.abort) = (20, Some(503));
        }),
    ];
    platform.gateway.set_faults(SERVICE, faults).unwrap();
    let mut client = Client::connect(platform.address()).await;
    let plain = client.send(get("/")).await;
    assert_eq!((plain.status(), plain.headers().get("x-sas-fault")), (StatusCode::OK, None));

    let began = Instant::now();
    let slow = client.send(get("/slow/way")).await;
    assert_eq!(
        (slow.status(), slow.headers()["x-sas-fault"].to_str().unwrap()),
        (StatusCode::OK, "delay=60ms")
    );
    assert!(began.elapsed() >= Duration::from_millis(60));

    let mut aborted = 0;
    for _ in 0..100 {
        let mut request = get("/");
        request.headers_mut().insert("x-test", "1".parse().unwrap());
        let answer = client.send(request).await;
        if answer.status() == StatusCode::OK {
            continue;
        }
        assert_eq!(
            (answer.status(), &answer.headers()["x-sas-fault"]),
            (StatusCode::SERVICE_UNAVAILABLE, &"abort=503".parse().unwrap())
        );
        let said = json(answer).await;
        assert_eq!((&said["component"], &said["reason"]), (&"fault".into(), &"injected".into()));
        aborted += 1;
    }
    assert_eq!(aborted, 20);
    assert_eq!(platform.gateway.faulted(SERVICE), [0, 1, 20]);
    // A roll-out sees them as the revision's own.
    let counts = platform.gateway.answers(platform.revision).unwrap();
    assert_eq!((counts.requests, counts.errors), (102, 20));
    let latencies = platform.gateway.latencies(platform.revision).unwrap();
    assert_eq!((latencies.total(), latencies.over(Duration::from_millis(50))), (82, 1));
    // What comes from within meets none.
    let cx = Cx::new(Payer::Tenant(TenantKey(1)), RequestId(1), deadline());
    let request = http::Request::get("/slow").body(Body::empty()).unwrap();
    let inside = platform.gateway.invoke(Target::Service(SERVICE.into()), request, &cx).await.unwrap();
    assert!(!inside.headers().contains_key("x-sas-fault"));

    platform.gateway.set_faults(SERVICE, Vec::new()).unwrap();
    assert!(!client.send(get("/slow")).await.headers().contains_key("x-sas-fault"));
}

#[tokio::test]
async fn a_delay_that_takes_all_of_the_time_is_not_the_instances_fault() {
    let platform = Platform::start().await;
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(platform.revision, 100)]));
    rule.timeout = Duration::from_millis(50);
    set(&platform.table, HOST, vec![rule]);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let answers = handler(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        async { text(200, "answered") }
    });
    platform.pool.add_inside(platform.revision, answers);
    let long = fault(|fault| fault.delay = Some(Duration::from_secs(20)));
    platform.gateway.set_faults(SERVICE, vec![long]).unwrap();
    let late = Client::connect(platform.address()).await.send(get("/")).await;
    assert_eq!(
        (late.status(), &late.headers()["x-sas-fault"]),
        (StatusCode::GATEWAY_TIMEOUT, &"delay=20000ms".parse().unwrap())
    );
    let said = json(late).await;
    assert_eq!((&said["component"], &said["reason"]), (&"fault".into(), &"timeout".into()));
    assert_eq!((asked.load(Ordering::SeqCst), platform.pool.leases()), (0, 0));
}

#[tokio::test]
async fn bodies_on_their_way_have_their_place_among_the_copies() {
    let mut config = GatewayConfig::default();
    (config.mirror.at_once, config.mirror.waiting) = (1, 1);
    let (platform, next) = mirroring(config, handler(|_| async { text(200, "") })).await;
    platform.gateway.set_mirror(SERVICE, Some(Mirror::new(next, 100)));
    let endless = || {
        let first = futures_util::stream::iter([Ok::<_, sas_core::BoxError>(http_body::Frame::data(
            bytes::Bytes::from_static(b"first"),
        ))]);
        let body = futures_util::StreamExt::chain(first, futures_util::stream::pending());
        post(Body::new(http_body_util::StreamBody::new(body)))
    };
    let mut uploads = Vec::new();
    for _ in 0..5 {
        let mut client = Client::connect(platform.address()).await;
        let request = endless();
        uploads.push(tokio::spawn(async move { client.send(request).await }));
    }
    let counts = counted(&platform, |counts| counts.dropped == 3).await;
    assert_eq!(counts, MirrorCounts { dropped: 3, ..MirrorCounts::default() });
    uploads.into_iter().for_each(|upload| upload.abort());
    counted(&platform, |counts| counts.incomplete == 2).await;
    let mut client = Client::connect(platform.address()).await;
    assert_eq!(client.send(post("x")).await.status(), 200);
    counted(&platform, |counts| counts.answered == 1).await;
}

#[tokio::test]
async fn faults_that_make_no_sense_are_refused_and_change_nothing() {
    let platform = Platform::start().await;
    let good = || fault(|fault| fault.abort = Some(503));
    platform.gateway.set_faults(SERVICE, vec![good()]).unwrap();
    for (wrong, says) in [
        (fault(|_| {}), "faults[1].abort"),
        (fault(|fault| fault.abort = Some(200)), "faults[1].abort"),
        (fault(|fault| (fault.percent, fault.abort) = (0, Some(503))), "faults[1].percent"),
        (fault(|fault| (fault.percent, fault.abort) = (101, Some(503))), "faults[1].percent"),
        (fault(|fault| (fault.matches.path_prefix, fault.abort) = ("x".into(), Some(503))), "faults[1].path"),
    ] {
        let error = platform.gateway.set_faults(SERVICE, vec![good(), wrong]).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    assert_eq!(platform.gateway.faulted(SERVICE), [0]);
}
