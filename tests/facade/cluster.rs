//! Several platforms on one state, each in a runtime of its own, over real sockets.

mod spread;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use sas::{
    ClusterOptions,
    core::{
        BrokerIngress, BrokerSpec, Clock, EnvValue, MemoryStore, Place, Secret, Store as _, SystemClock,
        Timestamp, TriggerSpec,
    },
    prelude::*,
};
use tokio::runtime::Runtime;

use crate::shared::{call, call_with, eventually};

const TERM: Duration = Duration::from_secs(2);
const SECRET: &str = "0123456789abcdef0123456789abcdef";

/// A host, with threads of its own that die together.
struct Host {
    name: &'static str,
    runtime: Runtime,
    platform: Arc<Platform>,
    listen: SocketAddr,
}

/// What the functions of all hosts saw.
#[derive(Clone, Default)]
struct Seen {
    /// Ids of events, and how often each came.
    fires: Arc<parking_lot::Mutex<BTreeMap<String, u32>>>,
    answered: Arc<AtomicU32>,
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

#[allow(clippy::disallowed_methods, reason = "hosts are threads and die as such; no virtual time spans them")]
fn now() -> Instant {
    Instant::now()
}

fn start(name: &'static str, store: &Arc<MemoryStore>, seen: &Seen) -> Host {
    start_by(name, store, seen, SystemClock)
}

/// The same by a clock of its own.
fn start_by(name: &'static str, store: &Arc<MemoryStore>, seen: &Seen, clock: impl Clock) -> Host {
    start_as(name, store, seen, |builder| builder.clock(clock))
}

/// The same as somebody configures it.
fn start_as(
    name: &'static str,
    store: &Arc<MemoryStore>,
    seen: &Seen,
    configured: impl FnOnce(PlatformBuilder) -> PlatformBuilder,
) -> Host {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("threads");
    let listen = free_port();
    let (ticks, answers) = (seen.clone(), seen.clone());
    let functions = InlineRuntime::new()
        .with("who", move |request: Request, _cx| {
            let answers = answers.clone();
            async move {
                if request.uri().path() == "/work" {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                if request.uri().path() == "/slow" {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                }
                answers.answered.fetch_add(1, Ordering::Relaxed);
                let hops = request.headers().get_all("x-sas-hop").iter().count();
                Response::new(Body::from(format!("{name} {hops}")))
            }
        })
        .with("tick", move |request: Request, _cx| {
            let ticks = ticks.clone();
            async move {
                let id = request.headers()["ce-id"].to_str().unwrap_or_default().to_owned();
                *ticks.fires.lock().entry(id).or_default() += 1;
                Response::new(Body::from("taken"))
            }
        });
    let mut options = ClusterOptions::new(name, listen, Secret::new(SECRET));
    options.term = TERM;
    let building = Platform::builder()
        .runtime(functions)
        .store(Arc::clone(store))
        .admin_token("a-token-of-the-tests")
        .listen(listen)
        .cluster(options);
    let building = configured(building).build();
    let platform = runtime.block_on(building).expect("it is built");
    Host { name, runtime, platform: Arc::new(platform), listen }
}

impl Host {
    /// As `kill -9`: nothing is said to anybody.
    fn kill(self) {
        self.runtime.shutdown_background();
    }

    fn acts_for(&self, path: &str) -> bool {
        matches!(self.platform.cluster().expect("it is a host").place(path), Place::Here(_))
    }

    fn deploy(&self, name: &str, function: &str, version: &str) {
        let mut spec = RevisionSpec::new("inline", Source::Function(function.to_owned()));
        spec.env.insert("VERSION".into(), EnvValue::Literal(version.to_owned()));
        let platform = Arc::clone(&self.platform);
        self.runtime.block_on(platform.deploy("shop", name, spec)).expect("deployed");
    }
}

/// The one that acts for a path, among those that agree.
fn owner<'h>(hosts: &[&'h Host], path: &str) -> Option<&'h Host> {
    let mut acting = hosts.iter().filter(|host| host.acts_for(path));
    let first = acting.next();
    assert!(acting.next().is_none(), "two hosts act for {path}");
    first.copied()
}

fn until(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) -> Duration {
    let began = now();
    while !condition() {
        assert!(began.elapsed() < limit, "within {limit:?}: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
    began.elapsed()
}

/// Until both have about half.
fn until_shared(hosts: &[&Host]) {
    until("the shards are shared", TERM * 2 + Duration::from_secs(2), || {
        hosts.iter().all(|host| {
            let list = host.platform.cluster().expect("it is a host").list();
            list.len() == hosts.len()
                && list.iter().all(|one| one.shards > 0)
                && list.iter().map(|one| one.shards).sum::<usize>() == 256
        })
    });
}

fn client() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads")
}

fn ask(client: &Runtime, host: &Host, service: &str, path: &str) -> (u16, String) {
    let answer = client.block_on(call(host.listen, "GET", &format!("{service}.shop.localhost"), path, ""));
    let answer = answer.expect("an answer");
    (answer.status, answer.body)
}

#[test]
fn what_is_deployed_on_one_host_answers_on_all_and_another_host_goes_on_when_its_own_is_killed() {
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let a = start("a", &store, &seen);
    let b = start("b", &store, &seen);
    until_shared(&[&a, &b]);
    let names: Vec<String> = (0..8).map(|n| format!("s{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let host = if n % 2 == 0 { &a } else { &b };
        host.deploy(name, "who", "1");
        // Both know it within a second, and who acts for it answers, whoever is asked.
        let acting = owner(&[&a, &b], &format!("shop/{name}")).expect("somebody acts for it").name;
        for asked in [&a, &b] {
            until("it is known", Duration::from_secs(1), || ask(&client, asked, name, "/").0 != 404);
            assert_eq!(
                ask(&client, asked, name, "/"),
                (200, format!("{acting} 0")),
                "{name} asked at {}",
                asked.name
            );
        }
    }
    let of = |name: &str| {
        names
            .iter()
            .filter(|n| owner(&[&a, &b], &format!("shop/{n}")).is_some_and(|h| h.name == name))
            .count()
    };
    assert!(of("a") > 0 && of("b") > 0, "the services are spread: {} and {}", of("a"), of("b"));
    let tenant = a.platform.control().record("shop", "s0").expect("it is there").tenant;
    for name in &names {
        let record = b.platform.control().record("shop", name).expect("it is there");
        assert_eq!(record.tenant, tenant, "one namespace, one tenant, whoever deployed");
    }

    // A mark that a client makes up counts for nothing.
    let forged = "x-sas-hop: v2 b a 1 1000 owner traffic 1 1 1 1 s=00\r\n";
    let inside =
        client.block_on(call_with(a.listen, "GET", "s0.shop.svc", forged, "/", "")).expect("an answer");
    assert_eq!(inside.status, 404, "names within the platform are not for clients");

    assert_eq!(spread::spreads(&client, &store), 0, "each runs on one host, and nothing is written of it");
    let gone = names.iter().filter(|n| b.acts_for(&format!("shop/{n}"))).cloned().collect::<Vec<_>>();
    b.kill();
    let killed = now();
    // What was on its way to it at that moment would be lost.
    std::thread::park_timeout(Duration::from_millis(200));
    for name in &gone {
        let (status, body) = ask(&client, &a, name, "/");
        assert_eq!((status, body.as_str()), (200, "a 0"), "the request waited for the take-over");
    }
    let took = killed.elapsed();
    assert!(took <= TERM + Duration::from_secs(1), "take-over took {took:?}");
    assert!(names.iter().all(|name| a.acts_for(&format!("shop/{name}"))));
    a.kill();
}

#[test]
fn a_host_that_is_shut_down_loses_no_request_and_changes_reach_all() {
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let a = start("a", &store, &seen);
    let b = start("b", &store, &seen);
    until_shared(&[&a, &b]);
    let names: Vec<String> = (0..6).map(|n| format!("s{n}")).collect();
    for name in &names {
        a.deploy(name, "who", "1");
    }
    for name in &names {
        until("b knows it", Duration::from_secs(1), || ask(&client, &b, name, "/").0 == 200);
    }
    // Changes on whichever host: switched off here, on there.
    let control = Arc::clone(b.platform.control());
    b.runtime
        .block_on(async move { control.disable(None, "shop", "s1", Some("a test")).await })
        .expect("it is off");
    for host in [&a, &b] {
        until("it is off", Duration::from_secs(1), || ask(&client, host, "s1", "/").0 == 503);
    }
    let control = Arc::clone(a.platform.control());
    a.runtime.block_on(async move { control.enable(None, "shop", "s1").await }).expect("it is on");
    for host in [&a, &b] {
        until("it is on", Duration::from_secs(2), || ask(&client, host, "s1", "/").0 == 200);
    }

    // Load at b while a drains and goes.
    let stop = Arc::new(AtomicBool::new(false));
    let asking: Vec<_> = (0..6)
        .map(|n| {
            let (stop, to, name) = (Arc::clone(&stop), b.listen, format!("s{n}.shop.localhost"));
            client.spawn(async move {
                let (mut answered, mut wrong) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let path = if answered % 5 == 0 { "/slow" } else { "/" };
                    match call(to, "POST", &name, path, "some body").await {
                        Ok(answer) if answer.status == 200 => {}
                        other => wrong.push(format!("{other:?}")),
                    }
                    answered += 1;
                }
                (answered, wrong)
            })
        })
        .collect();
    std::thread::park_timeout(Duration::from_millis(500));
    let report = a.runtime.block_on(a.platform.shutdown(Duration::from_secs(9)));
    assert!(report.drained, "{report:?}");
    std::thread::park_timeout(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    let mut all = 0;
    for asked in asking {
        let (answered, wrong) = client.block_on(asked).expect("it ends");
        assert!(wrong.is_empty(), "lost: {wrong:?}");
        all += answered;
    }
    assert!(all > 50, "{all} requests");
    let list = b.platform.cluster().expect("it is a host").list();
    assert_eq!((list.len(), list[0].shards), (1, 256), "{list:?}");
    a.kill();
    b.kill();
}

#[test]
fn a_schedule_fires_once_and_an_event_comes_once_whichever_host_runs_them() {
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let a = start("a", &store, &seen);
    let b = start("b", &store, &seen);
    until_shared(&[&a, &b]);
    a.deploy("sink", "tick", "1");
    let spec = TriggerSpec::new("shop/clock", "timer", "shop/sink").with_option("period", "1s");
    let control = Arc::clone(b.platform.control());
    b.runtime.block_on(async move { control.apply_trigger(spec).await }).expect("declared");
    // Events for a broker of the namespace are taken at whichever host, and each comes once.
    let mut broker = BrokerSpec::new("shop/inbox");
    broker.ingress = BrokerIngress::Open;
    let reads = TriggerSpec::new("shop/reads", "broker", "shop/sink").with_option("broker", "inbox");
    let control = Arc::clone(a.platform.control());
    let declared = async move {
        control.apply_broker(broker).await?;
        control.apply_trigger(reads).await
    };
    a.runtime.block_on(declared).expect("declared");
    for host in [&a, &b] {
        for n in 0..3 {
            let id = format!("event-{}-{n}", host.name);
            let headers = format!("ce-specversion: 1.0\r\nce-id: {id}\r\nce-type: t\r\nce-source: /s\r\n");
            let send = || call_with(host.listen, "POST", "events.localhost", &headers, "/shop/inbox", "");
            until("it is taken", Duration::from_secs(2), || {
                client.block_on(send()).is_ok_and(|a| a.status == 202)
            });
        }
    }
    let events =
        || seen.fires.lock().iter().filter(|(id, _)| id.starts_with("event-")).map(|(_, n)| *n).collect();
    client.block_on(eventually("all come", Duration::from_secs(5), async || {
        let events: Vec<u32> = events();
        events.len() == 6
    }));
    let events: Vec<u32> = events();
    assert!(events.iter().all(|times| *times == 1), "{events:?}");
    seen.fires.lock().clear();

    let fires = || seen.fires.lock().clone();
    client.block_on(eventually("it fires", Duration::from_secs(8), async || fires().len() >= 3));
    let runs = |host: &Host| host.platform.control().trigger_status().len();
    assert_eq!((runs(&a) + runs(&b), runs(&a) * runs(&b)), (2, 0), "one host runs both");
    let (killed, left) = if runs(&a) == 2 { (a, b) } else { (b, a) };
    let before = fires().len();
    killed.kill();
    client.block_on(eventually("it fires again", TERM + Duration::from_secs(6), async || {
        fires().len() >= before + 3
    }));
    let twice: Vec<_> = fires().into_iter().filter(|(_, times)| *times > 1).collect();
    // The one that was under way when its host was killed may come again, under the same id.
    assert!(twice.len() <= 1, "{twice:?}");
    let distinct: BTreeSet<_> = fires().into_keys().collect();
    assert_eq!(distinct.len(), fires().len());
    left.kill();
}

#[test]
fn what_is_deleted_and_deployed_anew_at_another_host_is_the_new_one_and_a_tenant_is_deleted_from_anywhere() {
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let a = start("a", &store, &seen);
    let b = start("b", &store, &seen);
    until_shared(&[&a, &b]);
    for round in 0..4 {
        let name = format!("s{round}");
        let owns = owner(&[&a, &b], &format!("shop/{name}")).expect("somebody acts for it").name;
        let (owner, other) = if owns == "a" { (&a, &b) } else { (&b, &a) };
        owner.deploy(&name, "who", "1");
        until("the other knows it", Duration::from_secs(2), || ask(&client, other, &name, "/").0 == 200);
        let (control, deleted) = (Arc::clone(other.platform.control()), name.clone());
        other.runtime.block_on(async move { control.delete("shop", &deleted).await }).expect("deleted");
        other.deploy(&name, "tick", "2");
        let send = || {
            let host = format!("{name}.shop.localhost");
            client.block_on(call_with(other.listen, "POST", &host, "ce-id: anew\r\n", "/", ""))
        };
        until("the new one answers", Duration::from_secs(3), || send().is_ok_and(|a| a.body == "taken"));
    }

    let runs = owner(&[&a, &b], "shop").expect("somebody acts for it").name;
    let (owner, other) = if runs == "a" { (&a, &b) } else { (&b, &a) };
    let control = Arc::clone(owner.platform.control());
    owner
        .runtime
        .block_on(async move { control.apply_broker(BrokerSpec::new("shop/inbox")).await })
        .expect("declared");
    let control = Arc::clone(other.platform.control());
    let purged = other.runtime.block_on(async move { control.delete_tenant("shop").await }).expect("deleted");
    assert_eq!(purged.brokers, ["shop/inbox"]);
    for host in [&a, &b] {
        until("nothing is left", Duration::from_secs(2), || ask(&client, host, "s0", "/").0 == 404);
        let control = Arc::clone(host.platform.control());
        until("it may be there again", Duration::from_secs(3), || control.broker_status().is_empty());
        host.deploy("again", "who", "1");
    }
    a.kill();
    b.kill();
}

/// An hour ahead.
#[derive(Debug)]
struct Ahead;

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        Timestamp(SystemClock.now().0 + 3_600_000_000_000)
    }
}

#[test]
fn hosts_whose_clocks_are_an_hour_apart_pass_requests_on_and_follow_each_other_in_time() {
    let (store, seen, client) = (Arc::new(MemoryStore::default()), Seen::default(), client());
    let a = start("a", &store, &seen);
    let b = start_by("b", &store, &seen, Ahead);
    until_shared(&[&a, &b]);
    let names: Vec<String> = (0..8).map(|n| format!("s{n}")).collect();
    for name in &names {
        a.deploy(name, "who", "1");
        let acting = owner(&[&a, &b], &format!("shop/{name}")).expect("somebody acts for it").name;
        for asked in [&a, &b] {
            until("it is known", Duration::from_secs(1), || ask(&client, asked, name, "/").0 != 404);
            let (status, body) = ask(&client, asked, name, "/");
            assert_eq!((status, body), (200, format!("{acting} 0")), "{name} asked at {}", asked.name);
        }
    }
    assert!(names.iter().any(|name| b.acts_for(&format!("shop/{name}"))));
    // Leases are by clocks that nobody sets.
    b.kill();
    let took = until("a acts for all", TERM + Duration::from_secs(1), || {
        names.iter().all(|name| a.acts_for(&format!("shop/{name}")))
    });
    assert!(took >= TERM / 2, "{took:?}: it was not waited for");
    a.kill();
}

#[tokio::test]
async fn a_host_without_what_several_need_is_refused() {
    let options = || ClusterOptions::new("a", ([127, 0, 0, 1], 1).into(), Secret::new(SECRET));
    let alone = Platform::builder().listen(([127, 0, 0, 1], 0).into()).cluster(options()).build().await;
    assert!(alone.expect_err("its store is its own").to_string().contains("store"));
    let mut short = options();
    short.secret = Secret::new("short");
    let store = Arc::new(MemoryStore::default());
    let built =
        Platform::builder().store(store).listen(([127, 0, 0, 1], 0).into()).cluster(short).build().await;
    let refused = format!("{:?}", built.expect_err("it could be guessed"));
    assert!(refused.contains("32") && !refused.contains("short"), "{refused}");
}
