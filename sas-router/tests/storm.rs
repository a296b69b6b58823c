//! Load at 80 % of what the platform was seen to bear, and all the while instances that are killed, scaled down and
//! replaced, ten a second, and traffic that moves between revisions. Every request gets one answer; what is idempotent succeeds; what is not is executed at most once.
//!
//! Three seconds here. At length: `SAS_STORM_SECONDS=600 cargo test --release -p sas-router --test storm`.

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sas_core::{InstanceId, RevisionKey, RouteAction, RouteRule, Split, TenantKey};
use sas_router::{GatewayConfig, Server, ServerConfig};
use support::*;

const CLIENTS: u32 = 8;

type Executed = Arc<Mutex<HashMap<u64, u32>>>;

async fn worker(executed: &Executed) -> Server {
    let executed = Arc::clone(executed);
    instance(handler(move |request| {
        let executed = Arc::clone(&executed);
        async move {
            let id: u64 = request.headers()["x-number"].to_str().unwrap().parse().unwrap();
            *executed.lock().unwrap().entry(id).or_default() += 1;
            tokio::time::sleep(Duration::from_millis(id % 4)).await;
            text(200, id.to_string())
        }
    }))
    .await
}

#[derive(Debug, Default)]
struct Seen {
    answered: AtomicU64,
    attributed: AtomicU64,
}

async fn client(
    platform: Arc<Platform>,
    numbers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    seen: Arc<Seen>,
    executed: Executed,
    pace: Option<Duration>,
) {
    let mut client = Client::connect(platform.address()).await;
    let mut turns = pace.map(|pace| {
        let mut turns = tokio::time::interval(pace);
        turns.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
        turns
    });
    while !stop.load(Ordering::Relaxed) {
        if let Some(turns) = &mut turns {
            turns.tick().await;
        }
        let number = numbers.fetch_add(1, Ordering::Relaxed);
        let method = if number.is_multiple_of(3) { "POST" } else { "GET" };
        let mut asked = request(method, "/", if method == "POST" { "payload" } else { "" });
        asked.headers_mut().insert("x-number", number.into());
        let response = client.send(asked).await;
        if response.status() == 200 {
            assert_eq!(read(response).await, number.to_string());
        } else {
            assert_eq!(method, "POST", "an idempotent request failed: {:?}", json(response).await);
            assert_eq!(response.status(), 502);
            assert_eq!(json(response).await["reason"], "instance_lost");
            seen.attributed.fetch_add(1, Ordering::Relaxed);
        }
        if method == "POST" {
            let times = executed.lock().unwrap().get(&number).copied().unwrap_or(0);
            assert!(times <= 1, "request {number} was executed {times} times");
        }
        seen.answered.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn nothing_is_lost_while_everything_changes() {
    let seconds = std::env::var("SAS_STORM_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut config = GatewayConfig::default();
    // Far more kills per request than any budget for production would bear.
    config.retry.attempts = 6;
    config.retry.per_second = 10_000.0;
    config.retry.burst = 10_000.0;
    let platform = Arc::new(Platform::with(spec(), config, ServerConfig::default()).await);
    let second = platform.pool.revision("second", spec());
    let revisions = [platform.revision, second];
    let executed = Executed::default();
    let mut workers: Vec<(RevisionKey, InstanceId, Server)> = Vec::new();
    for turn in 0..8 {
        let server = worker(&executed).await;
        let revision = revisions[turn % 2];
        workers.push((revision, platform.pool.add_at(revision, server.local_addr()), server));
    }
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Seen::default()));
    let numbers = Arc::new(AtomicU64::new(0));
    let clients = |pace: Option<Duration>, stop: &Arc<AtomicBool>| -> Vec<_> {
        (0..CLIENTS)
            .map(|_| {
                let (numbers, stop, seen) = (Arc::clone(&numbers), Arc::clone(stop), Arc::clone(&seen));
                tokio::spawn(client(Arc::clone(&platform), numbers, stop, seen, Arc::clone(&executed), pace))
            })
            .collect()
    };
    // What it bears when nothing changes and everybody asks at once.
    let (calm, measured) = (Arc::<AtomicBool>::default(), Duration::from_millis(500));
    let asking = clients(None, &calm);
    tokio::time::sleep(measured).await;
    calm.store(true, Ordering::Relaxed);
    for client in asking {
        client.await.unwrap();
    }
    let bears = numbers.load(Ordering::Relaxed) as f64 / measured.as_secs_f64();
    let clients = clients(Some(Duration::from_secs_f64(f64::from(CLIENTS) / (0.8 * bears))), &stop);

    let until = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut turn = 0_usize;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(100)).await;
        turn += 1;
        // The oldest goes, each time in another way, and a new one of its revision comes first.
        let (revision, instance, server) = workers.remove(0);
        let fresh = worker(&executed).await;
        workers.push((revision, platform.pool.add_at(revision, fresh.local_addr()), fresh));
        if turn.is_multiple_of(2) {
            // Killed: connections break wherever they are.
            drop(server);
        } else {
            // Scaled down: out of the rotation first, then the end of what it has.
            platform.pool.remove(revision, instance);
            tokio::spawn(async move { server.shutdown(deadline()).await });
        }
        let share = [0, 1, 10, 50, 90, 100][turn % 6];
        let splits = vec![Split::new(revisions[0], 100 - share), Split::new(revisions[1], share)];
        set(&platform.table, HOST, vec![RouteRule::new(TenantKey(1), RouteAction::Split(splits))]);
    }
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    platform.pool.until_idle().await;
    let answered = seen.answered.load(Ordering::Relaxed);
    assert_eq!(answered, numbers.load(Ordering::Relaxed), "one answer each");
    println!(
        "{turn} instances went, half of them killed, under {:.0} requests/s of {bears:.0}; {answered} requests, lost: 0, lost with their instance: {}",
        answered as f64 / (seconds as f64 + measured.as_secs_f64()),
        seen.attributed.load(Ordering::Relaxed)
    );
    assert!(answered > 100 * seconds, "only {answered} in {seconds} s");
}
