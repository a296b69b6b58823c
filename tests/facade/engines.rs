//! Several engines in one platform: who is on which, what is set aside, and what that gives.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use sas::{
    control::EnginePhase,
    core::{Answer, DEFAULT_ENGINE, Isolation, MemoryStore},
    prelude::*,
};
use tokio::{sync::Semaphore, time::Instant};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, handshake::server::create_response, protocol::Role},
};

/// A function that holds its instance until it is let go, and one that answers at once.
fn functions(gate: &Arc<Semaphore>) -> InlineRuntime {
    let gate = Arc::clone(gate);
    InlineRuntime::new()
        .with("holds", move |_: Request, _cx| {
            let gate = Arc::clone(&gate);
            async move {
                let _turn = gate.acquire().await;
                Response::new(Body::from("held"))
            }
        })
        .with("answers", |_: Request, _cx| async { Response::new(Body::from("here")) })
}

fn one_at_a_time(function: &str) -> RevisionSpec {
    let mut spec = RevisionSpec::new("inline", Source::Function(function.to_owned()));
    spec.concurrency = 1;
    spec
}

fn get(namespace: &str, name: &str) -> Request {
    let host = format!("{name}.{namespace}.localhost");
    http::Request::get("/").header("host", host).body(Body::empty()).expect("a request")
}

#[tokio::test]
async fn what_is_set_aside_for_an_engine_is_there_when_others_take_all_they_can() {
    let gate = Arc::new(Semaphore::new(0));
    let mut bank = EngineSpec::new("bank", EngineKind::Dedicated);
    bank.namespaces.push("bank".to_owned());
    bank.reserved.instances = Some(2);
    let platform = Platform::builder()
        .runtime(functions(&gate))
        .configure_pool(|pool| pool.budget.instances = 6)
        .engine(bank)
        .build()
        .await
        .expect("a platform");
    platform.deploy("default", "greedy", one_at_a_time("holds")).await.expect("deployed");
    platform.deploy("bank", "teller", one_at_a_time("answers")).await.expect("deployed");

    let gateway = platform.gateway();
    let crowd: Vec<_> = (0..20)
        .map(|_| {
            let gateway = Arc::clone(gateway);
            tokio::spawn(async move { gateway.handle(get("default", "greedy")).await.status() })
        })
        .collect();
    let key = |namespace: &str, name: &str| {
        let revision = format!("{name}-00001");
        platform.control().revision_key(namespace, name, &revision).expect("it runs")
    };
    let (greedy, teller) = (key("default", "greedy"), key("bank", "teller"));
    assert_ne!(greedy.place(), teller.place(), "two engines");
    while platform.pool().status(greedy).is_none_or(|status| status.ready < 4) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let status = platform.pool().status(greedy).expect("it is there");
    assert_eq!(
        (status.ready, status.starting.min(1)),
        (4, 1),
        "the default engine has what was not set aside"
    );

    for _ in 0..3 {
        assert_eq!(gateway.handle(get("bank", "teller")).await.status(), 200, "its own engine has room");
    }
    assert_eq!(platform.pool().totals().instances, 5);
    let drivers = [greedy, teller].map(|key| platform.driver_of(key).expect("each engine is driven"));
    assert!(!Arc::ptr_eq(&drivers[0], &drivers[1]));

    gate.add_permits(20);
    for one in crowd {
        assert_eq!(one.await.expect("it ends"), 200);
    }
    assert!(platform.shutdown(Duration::from_secs(5)).await.drained);
}

#[tokio::test]
async fn a_shared_engine_keeps_its_tenants_on_the_isolation_that_it_states() {
    let gate = Arc::new(Semaphore::new(0));
    let mut trusted = EngineSpec::new("trusted", EngineKind::Dedicated);
    trusted.namespaces.push("ours".to_owned());
    let platform = Platform::builder()
        .runtime(functions(&gate))
        .engine(EngineSpec::new(DEFAULT_ENGINE, EngineKind::shared(Isolation::Process)))
        .engine(trusted)
        .build()
        .await
        .expect("a platform");
    platform.deploy("ours", "hello", one_at_a_time("answers")).await.expect("its owner trusts it");
    let refused = platform.deploy("theirs", "hello", one_at_a_time("answers")).await.expect_err("weaker");
    assert_eq!(refused.kind, ErrorKind::Unsupported);
    assert!(refused.message.contains("asks for isolation Process or stronger"), "{refused}");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn engines_that_can_not_be_are_refused_with_the_field() {
    let build = async |change: fn(&mut [EngineSpec; 2])| {
        let mut specs = ["one", "two"].map(|name| EngineSpec::new(name, EngineKind::Dedicated));
        change(&mut specs);
        let [one, two] = specs;
        let builder = Platform::builder()
            .runtime(functions(&Arc::new(Semaphore::new(0))))
            .configure_pool(|pool| pool.budget.instances = 6)
            .engine(one)
            .engine(two);
        builder.build().await.expect_err("refused").to_string()
    };
    let error = build(|specs| specs[1].name = "Two".to_owned()).await;
    assert!(error.contains("engines: ") && error.contains("name"), "{error}");
    let error = build(|specs| specs.iter_mut().for_each(|spec| spec.namespaces = vec!["a".to_owned()])).await;
    assert!(error.contains("namespace a is on the engine one"), "{error}");
    let error = build(|specs| specs.iter_mut().for_each(|spec| spec.reserved.instances = Some(3))).await;
    assert!(error.contains("reserved.instances") && error.contains("ask for fewer"), "{error}");
}

/// Answers a WebSocket's handshake, and every message with itself.
fn echo(request: &Request) -> Answer {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let mut asked = http::Request::builder().method(request.method()).uri("/");
    asked.headers_mut().expect("a request").clone_from(request.headers());
    let asked = asked.version(http::Version::HTTP_11).body(()).expect("a request");
    let head = create_response(&asked).expect("a handshake");
    tokio::spawn(async move {
        let mut socket = WebSocketStream::from_raw_socket(ours, Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() && socket.send(message).await.is_err() {
                return;
            }
        }
    });
    Answer::Upgrade { head, io: Box::new(theirs) }
}

fn served() -> InlineRuntime {
    InlineRuntime::new()
        .with("web", |_: Request, _cx| async {
            tokio::time::sleep(Duration::from_millis(3)).await;
            Response::new(Body::from("web"))
        })
        .with("echo", |request: Request, _cx| async move { echo(&request) })
}

fn ten_at_a_time(function: &str) -> RevisionSpec {
    let mut spec = RevisionSpec::new("inline", Source::Function(function.to_owned()));
    spec.concurrency = 10;
    spec
}

type Socket = WebSocketStream<tokio::net::TcpStream>;

async fn chat(platform: &Platform) -> Socket {
    let address = platform.listen_addr().expect("it listens");
    let stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
    client_async("ws://echo.default.localhost/", stream).await.expect("a WebSocket").0
}

/// Talks until the other side ends it: how often it was answered, and the code of its Close.
async fn talk(mut socket: Socket) -> (usize, Option<u16>) {
    let mut answered = 0;
    loop {
        let said = Message::text(format!("message {answered}"));
        // It may be closed already, which is read.
        let _ = socket.send(said.clone()).await;
        match socket.next().await {
            Some(Ok(heard)) if heard == said => answered += 1,
            Some(Ok(Message::Close(close))) => return (answered, close.map(|close| close.code.into())),
            other => panic!("after {answered} answers: {other:?}"),
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_replaced_under_load_and_no_request_is_lost() {
    let platform = Platform::builder()
        .runtime(served())
        .listen("127.0.0.1:0".parse().expect("an address"))
        .build()
        .await
        .expect("a platform");
    platform.deploy("default", "web", ten_at_a_time("web")).await.expect("deployed");
    platform.deploy("default", "echo", ten_at_a_time("echo")).await.expect("deployed");
    platform.deploy("default", "quiet", ten_at_a_time("web")).await.expect("deployed");
    let key = || platform.control().revision_key("default", "web", "web-00001").expect("it runs");
    let before = key();

    let stop = Arc::new(AtomicBool::new(false));
    let crowd: Vec<_> = (0..25)
        .map(|_| {
            let (gateway, stop) = (Arc::clone(platform.gateway()), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut statuses = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let response = gateway.handle(get("default", "web")).await;
                    let status = response.status().as_u16();
                    let body = response.into_body().collect(4096).await.expect("a whole body");
                    statuses.push((status, String::from_utf8_lossy(&body).into_owned()));
                }
                statuses
            })
        })
        .collect();
    let talking = tokio::spawn(talk(chat(&platform).await));
    tokio::time::sleep(Duration::from_millis(300)).await;

    let report = platform.control().upgrade_engine(DEFAULT_ENGINE).await.expect("replaced");
    assert_eq!((report.moved, report.left_behind.len(), report.drained), (3, 0, true), "{report:?}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let mut answers = 0;
    for one in crowd {
        for (status, body) in one.await.expect("it ends") {
            assert_eq!((status, body.as_str()), (200, "web"), "after {answers} answers");
            answers += 1;
        }
    }
    assert!(answers > 500, "there was load: {answers}");
    let (heard, code) = talking.await.expect("it ends");
    assert!(heard > 50, "it was answered all along: {heard}");
    assert_eq!(code, Some(1001), "and told to come again, between two messages");

    assert_ne!(before.place(), key().place(), "it runs on the new engine");
    assert!(platform.pool().status(before).is_none(), "and nothing of it on the old one");
    assert_eq!(platform.gateway().handle(get("default", "quiet")).await.status(), 200);
    let mut again = chat(&platform).await;
    again.send(Message::text("again")).await.expect("sent");
    assert_eq!(again.next().await.expect("an answer").expect("a message"), Message::text("again"));
    drop(again);
    let views = platform.control().engine_views();
    assert_eq!((views.len(), views[0].phase, views[0].number), (1, EnginePhase::Ready, Some(1)));
    assert_eq!(views[0].last_upgrade.as_ref(), Some(&report));
    let mut found = platform.control().diagnose().await.findings;
    // What is of the host is the machine's own, such as a full disk.
    found.retain(|finding| !finding.subject.starts_with("host"));
    assert_eq!(found, [], "all is well");
    assert!(platform.shutdown(Duration::from_secs(5)).await.drained);
}

/// Asks `web` once, and counts what is wrong.
async fn ask(gateway: &sas::router::Gateway, wrong: &parking_lot::Mutex<Vec<(u16, String)>>) {
    let response = gateway.handle(get("default", "web")).await;
    let status = response.status().as_u16();
    let body =
        response.into_body().collect(4096).await.map(|body| String::from_utf8_lossy(&body).into_owned());
    match (status, body) {
        (200, Ok(body)) if body == "web" => {}
        (status, body) => wrong.lock().push((status, format!("{body:?}"))),
    }
}

/// Requests come at their times, whether those before were answered or not. `SAS_LONG=1` replaces it ten times.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_is_replaced_at_four_fifths_of_what_it_bears_and_no_request_and_no_socket_is_lost() {
    const CROWD: usize = 64;
    const SOCKETS: usize = 20;
    /// More than wait where four fifths are borne: a machine that got slower meanwhile gets no more than it bears.
    const UNDER_WAY: usize = 1_000;
    let upgrades = if std::env::var_os("SAS_LONG").is_some() { 10 } else { 1 };
    let platform = Platform::builder()
        .runtime(served())
        .listen("127.0.0.1:0".parse().expect("an address"))
        .build()
        .await
        .expect("a platform");
    for (name, function) in [("web", "web"), ("echo", "echo")] {
        platform.deploy("default", name, ten_at_a_time(function)).await.expect("deployed");
    }
    let wrong = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let gateway = Arc::clone(platform.gateway());

    // What it bears: a crowd that asks again as soon as it is answered.
    let end = Instant::now() + Duration::from_secs(2);
    let crowd = (0..CROWD).map(|_| {
        let (gateway, wrong) = (Arc::clone(&gateway), Arc::clone(&wrong));
        tokio::spawn(async move {
            let mut answers = 0_u32;
            while Instant::now() < end {
                ask(&gateway, &wrong).await;
                answers += 1;
            }
            answers
        })
    });
    let mut borne = 0;
    for one in crowd.collect::<Vec<_>>() {
        borne += one.await.expect("it ends");
    }
    let rate = f64::from(borne) / 2.0 * 0.8;

    let stop = Arc::new(AtomicBool::new(false));
    let pacing = tokio::spawn({
        let (gateway, wrong, stop) = (Arc::clone(&gateway), Arc::clone(&wrong), Arc::clone(&stop));
        async move {
            let room = Arc::new(Semaphore::new(UNDER_WAY));
            let (began, mut sent, mut held_back) = (Instant::now(), 0_u32, 0_u32);
            let mut asked = tokio::task::JoinSet::new();
            while !stop.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
                let due = (began.elapsed().as_secs_f64() * rate) as u32;
                while sent + held_back < due {
                    let Ok(place) = Arc::clone(&room).try_acquire_owned() else {
                        held_back += 1;
                        continue;
                    };
                    let (gateway, wrong) = (Arc::clone(&gateway), Arc::clone(&wrong));
                    asked.spawn(async move {
                        ask(&gateway, &wrong).await;
                        drop(place);
                    });
                    sent += 1;
                }
                while asked.try_join_next().is_some() {}
            }
            let took = began.elapsed();
            asked.join_all().await;
            (sent, held_back, f64::from(sent) / took.as_secs_f64())
        }
    });
    for upgrade in 0..upgrades {
        let mut talking = Vec::new();
        for _ in 0..SOCKETS {
            talking.push(tokio::spawn(talk(chat(&platform).await)));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        let report = platform.control().upgrade_engine(DEFAULT_ENGINE).await.expect("replaced");
        assert_eq!((report.moved, report.left_behind.len(), report.drained), (2, 0, true), "{report:?}");
        for one in talking {
            let (heard, code) = one.await.expect("it ends");
            assert!(heard > 0, "upgrade {upgrade}: it was answered until then");
            assert_eq!(code, Some(1001), "upgrade {upgrade}: and told to come again, between two messages");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    stop.store(true, Ordering::Relaxed);
    let (sent, held_back, paced) = pacing.await.expect("it ends");
    let wrong = std::mem::take(&mut *wrong.lock());
    assert!(wrong.is_empty(), "{} of {sent} were lost: {:?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    assert!(sent > 500, "there was load: {sent}");
    println!(
        "{upgrades} upgrades at {paced:.0} requests/s of {:.0} that are borne, {SOCKETS} WebSockets: {sent} sent and 0 lost, \
         {held_back} not sent since {UNDER_WAY} were under way",
        rate / 0.8
    );
    assert!(platform.shutdown(Duration::from_secs(5)).await.drained);
}

#[tokio::test]
async fn what_is_set_aside_for_the_default_engine_stays_when_another_is_declared() {
    let gate = Arc::new(Semaphore::new(0));
    let mut default = EngineSpec::new(DEFAULT_ENGINE, EngineKind::Dedicated);
    default.reserved.instances = Some(2);
    let platform = Platform::builder()
        .runtime(functions(&gate))
        .configure_pool(|pool| pool.budget.instances = 10)
        .engine(default)
        .build()
        .await
        .expect("a platform");
    platform.deploy("default", "greedy", one_at_a_time("holds")).await.expect("deployed");
    let mut bank = EngineSpec::new("bank", EngineKind::Dedicated);
    bank.namespaces.push("bank".to_owned());
    bank.reserved.instances = Some(9);
    let refused = platform.control().declare_engine(bank.clone()).await.expect_err("two are the default's");
    assert_eq!(refused.fields().expect("fields").0[0].field, "reserved.instances");
    bank.reserved.instances = Some(4);
    platform.control().declare_engine(bank).await.expect("declared");

    let gateway = platform.gateway();
    let crowd: Vec<_> = (0..20)
        .map(|_| {
            let gateway = Arc::clone(gateway);
            tokio::spawn(async move { gateway.handle(get("default", "greedy")).await.status() })
        })
        .collect();
    let greedy = platform.control().revision_key("default", "greedy", "greedy-00001").expect("it runs");
    while platform.pool().status(greedy).is_none_or(|status| status.ready < 2) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let status = platform.pool().status(greedy).expect("it is there");
    assert_eq!(status.ready, 2, "what was declared for it, not what the others left");
    gate.add_permits(20);
    for one in crowd {
        assert_eq!(one.await.expect("it ends"), 200);
    }
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn engines_are_declared_while_it_runs_kept_and_taken_away() {
    let store = Arc::new(MemoryStore::default());
    let build = async || {
        let builder = Platform::builder().runtime(served()).store(Arc::clone(&store));
        builder.configure_pool(|pool| pool.budget.instances = 10).build().await.expect("a platform")
    };
    let platform = build().await;
    platform.deploy("bank", "web", ten_at_a_time("web")).await.expect("deployed");
    assert_eq!(platform.gateway().handle(get("bank", "web")).await.status(), 200);
    let place = |platform: &Platform| {
        platform.control().revision_key("bank", "web", "web-00001").expect("it runs").place()
    };
    let first = place(&platform);

    let mut bank = EngineSpec::new("bank", EngineKind::Dedicated);
    bank.namespaces.push("bank".to_owned());
    bank.reserved.instances = Some(10);
    let refused = platform.control().declare_engine(bank.clone()).await.expect_err("all that there is");
    assert_eq!(refused.fields().expect("fields").0[0].field, "reserved.instances");
    assert_eq!((place(&platform), platform.engines().names().len()), (first, 1), "nothing has changed");

    bank.reserved.instances = Some(4);
    let report = platform.control().declare_engine(bank.clone()).await.expect("declared");
    assert_eq!((report.moved, report.left_behind.len()), (1, 0));
    assert_ne!(place(&platform), first);
    assert_eq!(platform.gateway().handle(get("bank", "web")).await.status(), 200);
    let mut other = bank.clone();
    "other".clone_into(&mut other.name);
    assert_eq!(platform.control().declare_engine(other).await.expect_err("taken").kind, ErrorKind::Conflict);
    platform.shutdown(Duration::from_secs(5)).await;

    let platform = build().await;
    assert_eq!(platform.engines().names(), ["bank", DEFAULT_ENGINE]);
    assert_eq!(platform.engines().engine_of("bank"), "bank");
    assert_ne!(place(&platform), platform.engines().default_key().place(), "it came back on its engine");
    let report = platform.control().remove_engine("bank").await.expect("removed");
    assert_eq!((report.moved, report.drained), (1, true));
    assert_eq!(place(&platform), platform.engines().default_key().place());
    assert_eq!(platform.gateway().handle(get("bank", "web")).await.status(), 200);
    assert_eq!(platform.engines().names(), [DEFAULT_ENGINE]);
    assert_eq!(platform.control().remove_engine("bank").await.expect_err("gone").kind, ErrorKind::NotFound);
    platform.shutdown(Duration::from_secs(5)).await;
}
