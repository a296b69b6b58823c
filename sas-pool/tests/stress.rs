//! Admissions from several threads while instances are killed at random: no limit is violated and every claim is
//! answered once. `SAS_POOL_ADMISSIONS=10000000 cargo test -p sas-pool --release --test stress` is the long run.

mod fake;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fake::{FakeRuntime, Start, deployed};
use sas_core::{Claim, ClaimError, Cx, Outcome, Pool, RequestId, TenantKey};
use sas_pool::{InstancePool, PoolConfig};
use tokio::{task::JoinSet, time::Instant};

/// SplitMix64, one per task.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

#[test]
fn no_limit_is_violated_while_instances_are_killed() {
    run(100_000, Start::AtOnce);
}

#[test]
fn nor_when_starts_take_a_while() {
    run(20_000, Start::After(Duration::from_millis(1)));
}

fn run(usual: u64, start: Start) {
    let admissions: u64 = std::env::var("SAS_POOL_ADMISSIONS")
        .map_or(usual, |text| text.parse().expect("SAS_POOL_ADMISSIONS is a number"));
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    tokio.block_on(admit(admissions, start));
}

async fn admit(admissions: u64, start: Start) {
    const TASKS: u64 = 32;
    let runtime = FakeRuntime::new(start);
    let mut config = PoolConfig::seeded(3);
    config.shards = 4;
    config.backoff.settle = Duration::ZERO;
    let pool = InstancePool::new(config);
    let limits = [1u32, 2, 7, 1, 3];
    let keys: Vec<_> = limits
        .iter()
        .enumerate()
        .map(|(n, limit)| {
            pool.register(deployed(&runtime, &format!("r{n}"), |spec| {
                spec.concurrency = *limit;
                spec.scaling.max = 3;
            }))
            .unwrap()
        })
        .collect();
    // Requests on each instance, as those who hold the leases see it.
    let running: Arc<Mutex<HashMap<u64, u32>>> = Arc::default();
    let answered = Arc::new(AtomicU64::new(0));
    let cancelled = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (pool, keys, runtime) = (Arc::clone(&pool), keys.clone(), Arc::clone(&runtime));
        let (running, answered, cancelled) =
            (Arc::clone(&running), Arc::clone(&answered), Arc::clone(&cancelled));
        tasks.spawn(async move {
            let mut draws = Draws(task);
            for _ in 0..admissions / TASKS {
                let at = draws.below(5) as usize;
                let claim = Claim::new(keys[at], TenantKey(1));
                let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + Duration::from_secs(60));
                let lease = match pool.try_claim(&claim) {
                    Some(lease) => Ok(lease),
                    None if draws.below(16) == 0 => {
                        // A client that goes away, sometimes with a slot already on its way to it.
                        let waiting = pool.claim(&claim, &cx);
                        tokio::task::yield_now().await;
                        drop(waiting);
                        cancelled.fetch_add(1, Ordering::Relaxed);
                        continue;
                    }
                    None => pool.claim(&claim, &cx).await,
                };
                answered.fetch_add(1, Ordering::Relaxed);
                let mut lease = match lease {
                    Ok(lease) => lease,
                    Err(ClaimError::Start { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                let id = lease.instance.id().0;
                {
                    let mut running = running.lock().unwrap();
                    let count = running.entry(id).or_default();
                    *count += 1;
                    assert!(*count <= limits[at], "{count} requests on an instance of {}", limits[at]);
                }
                match draws.below(64) {
                    0 => tokio::task::yield_now().await,
                    1 => {
                        let victim = runtime.live().into_iter().find(|live| live.id.0 == id);
                        if let Some(victim) = victim {
                            victim.die();
                        }
                    }
                    2 => pool.set_desired(keys[at], draws.below(4) as u32),
                    3 => drop(pool.recycle(keys[at], lease.instance.id(), Duration::from_millis(1))),
                    _ => {}
                }
                *running.lock().unwrap().get_mut(&id).unwrap() -= 1;
                lease.outcome = Outcome::Ok;
                drop(lease);
            }
        });
    }
    tasks.join_all().await;
    let each = admissions / TASKS * TASKS;
    assert_eq!(answered.load(Ordering::Relaxed) + cancelled.load(Ordering::Relaxed), each);
    for key in keys {
        let status = pool.status(key).unwrap();
        assert_eq!((status.in_flight, status.queued), (0, 0), "{status:?}");
    }
    pool.shutdown(Instant::now() + Duration::from_secs(5)).await;
    assert!(runtime.live().is_empty());
}
