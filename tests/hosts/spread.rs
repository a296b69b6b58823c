//! A service that one host can't hold.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::{
    is_long,
    load::{Asked, CLIENTS, Load},
    only_under_way,
    shared::{call, eventually},
    term,
    world::{Host, Part, World},
};

/// What a host runs at most, and the service.
const MOST: u32 = 2;
const MAX_SCALE: u32 = 3;

const SERVICE: &str = "big";

/// The host that acts for the service, and another one, with the service on them.
async fn hosts(world: &mut World) -> (Host, Host) {
    world.most = Some(MOST);
    let (a, b) = (world.host("a").await, world.host("b").await);
    world.settled(&["a", "b"]).await;
    let (acts, other) = match World::belongs(SERVICE, &["a", "b"]) {
        "a" => (a, b),
        _ => (b, a),
    };
    // One request at a time for each instance, so that what clients ask for is more than a host has.
    let manifest = world.manifest(SERVICE, 1).replace("containerConcurrency: 20", "containerConcurrency: 1");
    let (window, max) = ("autoscaling.knative.dev/window: 6s", "autoscaling.knative.dev/max-scale");
    acts.deploy(&manifest.replace(window, &format!("{window}, {max}: \"{MAX_SCALE}\""))).await;
    for host in [&acts, &other] {
        eventually("it is known", Duration::from_secs(5), async || {
            let domain = format!("{SERVICE}.default.localhost");
            call(host.listen, "POST", &domain, "/", "").await.expect("an answer").status == 200
        })
        .await;
    }
    (acts, other)
}

/// More than one host can do, asked at one host.
fn load(round: &str, at: &Host) -> Load {
    Load::begin_with(round, &[at.listen], &[SERVICE.to_owned()], |_| 150)
}

/// Instances of the host.
async fn runs(host: &Host) -> u32 {
    host.metric("sas_pool_instances").await as u32
}

/// Waits until both do requests of the service.
async fn until_both_serve(world: &World, hosts: [&Host; 2]) {
    let limit = world.term * 3 + Duration::from_secs(60);
    eventually("both have a part", limit, async || {
        let parts = world.parts(SERVICE);
        let most: u32 = parts.values().map(Part::most).sum();
        assert!(most <= MAX_SCALE, "{parts:?}");
        parts.len() == 2 && parts.values().all(Part::serves)
    })
    .await;
    let before = world.report.done_by();
    eventually("both do requests", limit, async || {
        let done = world.report.done_by();
        let more = |host: &&Host| done.get(host.name) >= before.get(host.name).map(|done| done + 5).as_ref();
        let mut each = hosts.iter().map(|host| (done.contains_key(host.name), more(host)));
        each.all(|(known, more)| known && more)
    })
    .await;
    for host in hosts {
        // What is shown of instances follows them a moment later.
        eventually("its instances are shown", Duration::from_secs(30), async || runs(host).await > 0).await;
        let runs = runs(host).await;
        assert!(runs <= MOST, "{}: {runs}", host.name);
    }
}

fn none(others: &[Asked]) {
    assert!(others.is_empty(), "{others:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_one_host_can_not_hold_is_served_by_two_and_a_killed_one_takes_only_its_own_along() {
    let Some(mut world) = World::new(term()).await else { return };
    let (acts, other) = hosts(&mut world).await;
    let clients = load("grow", &acts);
    until_both_serve(&world, [&acts, &other]).await;
    let (all, others) = clients.end(&world.report).await;
    println!("spread: {all} requests, {} lost", others.len());
    none(&others);

    let clients = load("kill", &acts);
    until_both_serve(&world, [&acts, &other]).await;
    let began = Instant::now();
    other.signal("-KILL");
    other.peers.close();
    sleep(Duration::from_millis(250)).await;
    let gone = Instant::now();
    eventually("it has no part any more", world.term * 2 + Duration::from_secs(20), async || {
        world.parts(SERVICE).is_empty()
    })
    .await;
    sleep(Duration::from_secs(1)).await;
    let (all, others) = clients.end(&world.report).await;
    println!("killed with a part: of {all} requests {} were cut", others.len());
    only_under_way(&others, (began, gone));

    // One that comes again gets a part again, and gives it back when it is shut down.
    let mut other = world.restart(other).await;
    world.settled(&["a", "b"]).await;
    let clients = load("again", &acts);
    until_both_serve(&world, [&acts, &other]).await;
    if is_long() {
        let (_, others) = clients.end(&world.report).await;
        none(&others);
        eventually("it comes back to one host", Duration::from_secs(150), async || {
            world.parts(SERVICE).is_empty()
        })
        .await;
    } else {
        other.signal("-TERM");
        assert!(
            tokio::task::block_in_place(|| other.process.ended(Duration::from_secs(40))),
            "{}",
            world.log(other.name)
        );
        eventually("one host has it again", Duration::from_secs(10), async || {
            world.parts(SERVICE).is_empty()
        })
        .await;
        let (all, others) = clients.end(&world.report).await;
        println!("shut down with a part: {all} requests, {} lost", others.len());
        none(&others);
    }
    eventually("it sleeps", Duration::from_secs(120), async || runs(&acts).await == 0).await;
    world.assert_sound();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_slept_has_no_more_than_its_old_part_when_it_wakes_and_one_that_acted_writes_nothing() {
    if !is_long() {
        println!("skipped: set SAS_LONG=1, it takes more than a minute");
        return;
    }
    let Some(mut world) = World::new(term()).await else { return };
    let (acts, other) = hosts(&mut world).await;
    let clients = load("sleep", &acts);
    until_both_serve(&world, [&acts, &other]).await;
    let old = world.parts(SERVICE)[other.name].most();
    other.signal("-STOP");
    eventually("its part is another's", world.term * 2 + Duration::from_secs(20), async || {
        world.parts(SERVICE).is_empty()
    })
    .await;
    sleep(world.term).await;
    let awake = Instant::now();
    other.signal("-CONT");
    // Until it has a part again, and with it.
    eventually("it has a part again", world.term * 3 + Duration::from_secs(60), async || {
        let (runs, most) =
            (runs(&other).await, || world.parts(SERVICE).get(other.name).map_or(0, Part::most).max(old));
        if runs > most() {
            // The host may have heard of a new part before the test does.
            sleep(Duration::from_secs(2)).await;
            assert!(runs <= most(), "{runs} instances, and a part of {}", most());
        }
        world.parts(SERVICE).len() == 2
    })
    .await;
    until_both_serve(&world, [&acts, &other]).await;
    let (all, others) = clients.end(&world.report).await;
    println!("asleep with a part: of {all} requests {} were not 200", others.len());
    // What was passed on to it, and waited for it.
    assert!(others.len() <= CLIENTS, "{others:#?}");
    for asked in &others {
        assert!(asked.answer.is_ok() && asked.began <= awake, "{asked:?}");
    }

    // Now the one that acts sleeps, while there is a part: the other one goes on with it.
    let clients = load("acts", &other);
    until_both_serve(&world, [&acts, &other]).await;
    let asleep = Instant::now();
    acts.signal("-STOP");
    world.followed(acts.name).await;
    eventually("the other one has all of it", Duration::from_secs(20), async || {
        world.parts(SERVICE).is_empty()
    })
    .await;
    let awake = Instant::now();
    acts.signal("-CONT");
    world.settled(&["a", "b"]).await;
    until_both_serve(&world, [&acts, &other]).await;
    let (all, others) = clients.end(&world.report).await;
    println!("who acts was asleep: of {all} requests {} were not 200", others.len());
    assert!(others.len() <= CLIENTS, "{others:#?}");
    for asked in &others {
        assert!(asked.answer.is_ok() && asked.began <= awake && asked.ended >= asleep, "{asked:?}");
    }
    // What a host starts in the moment that it wakes is of its old part, which it keeps until it hears of another (ADR 0257).
    world.assert_one_owner();
}
