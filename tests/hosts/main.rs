//! Several `platform` processes on one PostgreSQL: killed, asleep, cut off, shut down one after the other, under load.
//!
//! With `SAS_LONG=1` terms, sleeps and rounds are as long as they are in production.

#[path = "../shared/mod.rs"]
mod shared;

mod gate;
mod load;
mod spread;
mod world;

use std::time::Duration;

use load::{Asked, CLIENTS, Load};
use shared::{call, call_admin, eventually};
use tokio::time::{Instant, sleep};
use world::{Host, World};

fn is_long() -> bool {
    std::env::var_os("SAS_LONG").is_some()
}

/// For how long a silent host is not disturbed.
fn term() -> Duration {
    Duration::from_secs(if is_long() { 10 } else { 3 })
}

/// What a take-over may take beyond the term.
const BEYOND: Duration = Duration::from_secs(1);

const CLOCK: &str = "apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: clock, namespace: default}
spec:
  source: {kind: timer, options: {period: 1s}}
  target: {service: clock}
";

/// Services for each host, each asked once at each.
async fn services(world: &World, hosts: &[&Host]) -> Vec<String> {
    let names: Vec<&'static str> = hosts.iter().map(|host| host.name).collect();
    world.settled(&names).await;
    let services = World::names(&names, 2);
    for (n, service) in services.iter().enumerate() {
        hosts[n % hosts.len()].deploy(&world.manifest(service, 1)).await;
    }
    for service in &services {
        for host in hosts {
            eventually("it is known", Duration::from_secs(5), async || {
                let domain = format!("{service}.default.localhost");
                call(host.listen, "POST", &domain, "/", "").await.expect("an answer").status == 200
            })
            .await;
        }
    }
    services
}

/// None but those under way in that moment were not answered as they should, and those were answered too.
fn only_under_way(others: &[Asked], (from, until): (Instant, Instant)) {
    assert!(others.len() <= CLIENTS, "{}: {others:#?}", others.len());
    for asked in others {
        assert!(asked.began <= until && from <= asked.ended, "{from:?} to {until:?}: {asked:?}");
        assert!(asked.answer.is_ok(), "no answer: {asked:?}");
    }
}

fn took(since: Instant, until: Instant, limit: Duration) -> Duration {
    let took = until.saturating_duration_since(since);
    assert!(took <= limit, "{took:?}, and not within {limit:?}");
    took
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_owner_is_followed_within_the_term_and_a_second_and_every_request_has_one_answer() {
    let Some(world) = World::new(term()).await else { return };
    let mut hosts = vec![world.host("a").await, world.host("b").await, world.host("c").await];
    let services = services(&world, &hosts.iter().collect::<Vec<_>>()).await;
    hosts[0].deploy(&world.manifest("clock", 1)).await;
    hosts[1].deploy(CLOCK).await;
    eventually("it fires", Duration::from_secs(10), async || world.report.events().len() >= 2).await;

    for round in 0..if is_long() { 10 } else { 1 } {
        // The one that runs the schedule first.
        let owners = world.owners();
        let schedules = usize::from(sas::cluster::shard_of("default", 256));
        let victim =
            hosts.iter().position(|host| host.name == owners[schedules].holder).expect("one of them");
        let killed = hosts.remove(victim);
        let left: Vec<_> = hosts.iter().map(|host| host.listen).collect();
        let load = Load::begin(&format!("kill{round}"), &left, &services);
        sleep(Duration::from_millis(700)).await;
        let fires = world.report.events().len();
        let began = Instant::now();
        killed.signal("-KILL");
        killed.peers.close();
        // Its peers learn of it from the ends of their connections; what they pass on until then is lost with it.
        sleep(Duration::from_millis(250)).await;
        let gone = Instant::now();
        let followed = took(began, world.followed(killed.name).await, world.term + BEYOND);
        eventually("it fires again", world.term + Duration::from_secs(10), async || {
            world.report.events().len() >= fires + 3
        })
        .await;
        let (all, others) = load.end(&world.report).await;
        println!("killed: followed after {followed:?}; of {all} requests {} were cut", others.len());
        only_under_way(&others, (began, gone));
        // Under its name it is let in again, and has its part.
        hosts.push(world.restart(killed).await);
        world.settled(&["a", "b", "c"]).await;
        // The fire that was under way may come again, under the same id.
        let twice: Vec<_> = world.report.events().into_iter().filter(|(_, times)| *times > 1).collect();
        assert!(twice.len() <= round + 1, "{twice:?}");
    }
    world.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_that_sleeps_is_followed_and_what_it_wrote_before_is_refused_when_it_arrives() {
    let Some(world) = World::new(term()).await else { return };
    let (a, b) = (world.host("a").await, world.host("b").await);
    let services = services(&world, &[&a, &b]).await;

    let load = Load::begin("sleep", &[b.listen], &services);
    sleep(Duration::from_millis(700)).await;
    let asleep = Instant::now();
    a.signal("-STOP");
    let followed = took(asleep, world.followed("a").await, world.term + BEYOND);
    sleep(if is_long() { Duration::from_secs(30).saturating_sub(asleep.elapsed()) } else { world.term })
        .await;
    let awake = Instant::now();
    a.signal("-CONT");
    world.settled(&["a", "b"]).await;
    let (all, others) = load.end(&world.report).await;
    println!("asleep: followed after {followed:?}; of {all} requests {} were not 200", others.len());
    for asked in &others {
        assert!(asked.answer.is_ok() && asked.began <= awake, "{asked:?}");
    }
    assert!(others.len() <= CLIENTS, "{others:#?}");

    // A commit that only the owner may write is sent, and arrives when another host owns the service.
    let service = services.iter().find(|name| World::belongs(name, &["a", "b"]) == "a").expect("one of them");
    assert_eq!(a.metric("sas_cluster_writes_refused_total").await, 0.0);
    let key = format!("service/default/{service}");
    a.store.cut_before(b"cluster/shard/");
    let cut = Instant::now();
    // Anybody may want it; that it was prepared is what the owner writes.
    let (manifest, admin) = (world.manifest(service, 2), b.process.admin);
    let deploying = tokio::spawn(async move { call_admin(admin, "POST", "/v1/services", &manifest).await });
    eventually("its commit is under way", Duration::from_secs(10), async || a.store.is_cut()).await;
    let followed = took(cut, world.followed("a").await, world.term + BEYOND);
    let path = format!("/v1/services/default/{service}");
    eventually("the other one has done it", Duration::from_secs(10), async || {
        let shown = call_admin(b.process.admin, "GET", &path, "").await.expect("an answer").json();
        shown["latestReadyRevision"] == format!("{service}-00002")
    })
    .await;
    let arrives = world.store.version().await.expect("a version");
    a.store.mend();
    eventually("it is refused", Duration::from_secs(10), async || {
        a.metric("sas_cluster_writes_refused_total").await >= 1.0
    })
    .await;
    world.settled(&["a", "b"]).await;
    // What the new owner wrote meanwhile stands in it, too.
    let written = world.written(&key, arrives, world.moved(service));
    println!(
        "cut in a commit: followed after {followed:?}; refused when it arrived; {written} writes of the new owner"
    );
    let answer = deploying.await.expect("it ends").expect("an answer");
    assert!((200..300).contains(&answer.status), "{}: {}", answer.status, answer.body);
    world.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_restarts_moves_nothing_and_a_host_that_is_cut_off_stops_before_another_follows() {
    let Some(mut world) = World::new(term()).await else { return };
    let (a, b) = (world.host("a").await, world.host("b").await);
    let services = services(&world, &[&a, &b]).await;

    // Away for longer than a term: who ran goes on, and nobody is declared gone.
    let (before, load) = (world.owners(), Load::begin("restart", &[a.listen, b.listen], &services));
    world.server.kill();
    sleep(world.term + Duration::from_secs(1)).await;
    let back = Instant::now();
    world.server.restart().await;
    eventually("both renew", Duration::from_secs(20), async || {
        world.renewed_since("a", back) && world.renewed_since("b", back)
    })
    .await;
    sleep(world.term).await;
    assert_eq!(world.owners(), before, "all go on with what they had, in the same epochs");
    let (all, others) = load.end(&world.report).await;
    assert!(others.is_empty(), "{others:#?}");
    println!("the store was away: {all} requests, 0 lost");

    // A host and the store.
    let load = Load::begin("cut", &[a.listen, b.listen], &services);
    let cut = Instant::now();
    a.store.cut();
    let followed = took(cut, world.followed("a").await, world.term + BEYOND);
    sleep(Duration::from_millis(500)).await;
    let lapses = a.metric("sas_cluster_lapses_total").await;
    assert!(lapses >= 1.0, "it noticed by its own clock");
    a.store.mend();
    world.settled(&["a", "b"]).await;
    let (all, others) = load.end(&world.report).await;
    println!(
        "cut from the store: followed after {followed:?}; of {all} requests {} were not 200",
        others.len()
    );
    assert!(others.is_empty(), "{others:#?}");

    // Two hosts from each other: who waits is answered when the way is whole again, and nothing moves.
    let (before, load) = (world.owners(), Load::begin("apart", &[a.listen, b.listen], &services));
    sleep(Duration::from_millis(300)).await;
    for host in [&a, &b] {
        host.peers.cut();
    }
    sleep(Duration::from_secs(2)).await;
    for host in [&a, &b] {
        host.peers.mend();
    }
    sleep(Duration::from_millis(500)).await;
    let (all, others) = load.end(&world.report).await;
    assert_eq!(world.owners(), before, "hosts agree over the store");
    println!("cut from each other: of {all} requests {} were not 200", others.len());
    assert!(others.is_empty(), "{others:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hosts_are_replaced_one_after_the_other_under_load_and_no_request_is_lost() {
    // As in production: nobody waits for a term here, and requests are held for as long as one where hosts are slow.
    let Some(world) = World::new(Duration::from_secs(10)).await else { return };
    let mut hosts = vec![world.host("a").await, world.host("b").await, world.host("c").await];
    let services = services(&world, &hosts.iter().collect::<Vec<_>>()).await;
    hosts[0].deploy(&world.manifest("clock", 1)).await;
    hosts[1].deploy(CLOCK).await;
    let load = Load::begin("roll", &hosts.iter().map(|host| host.listen).collect::<Vec<_>>(), &services);
    for _ in 0..3 {
        let mut old = hosts.remove(0);
        old.signal("-TERM");
        // As a load balancer learns of it. Until then it gets its requests.
        eventually("it says that it goes", Duration::from_secs(10), async || world.is_draining(old.name))
            .await;
        load.leave(old.listen);
        let ended = tokio::task::block_in_place(|| old.process.ended(Duration::from_secs(30)));
        old.peers.close();
        assert!(ended, "{}", world.log(old.name));
        let new = world.restart(old).await;
        load.join(new.listen);
        hosts.push(new);
        world.settled(&["a", "b", "c"]).await;
    }
    let (all, others) = load.end(&world.report).await;
    println!("rolled: {all} requests, {} lost", others.len());
    assert!(others.is_empty(), "{others:#?}");
    assert!(all > 200, "{all}");
    let events = world.report.events();
    // One that is under way while its namespace moves may come again, under the same id.
    let twice: Vec<_> = events.iter().filter(|(_, times)| **times > 1).collect();
    assert!(
        !events.is_empty() && twice.len() <= 3 && twice.iter().all(|(_, times)| **times == 2),
        "{events:?}"
    );
    println!("rolled: {} fires, {} of them again under their ids", events.len(), twice.len());
    world.assert_sound();
}
