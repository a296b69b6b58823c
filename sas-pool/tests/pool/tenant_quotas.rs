//! What a tenant may use of the pool is all that it uses, whatever it asks for; and another notices nothing of it.

use std::{sync::Arc, time::Duration};

use sas_core::{
    Claim, ClaimError, Cx, Isolation, Lease, Outcome, Pool as _, QuotaExceeded, QuotaResource, Quotas as _,
    RequestId, RevisionKey, RevisionSpec, TenantKey, TenantQuota,
};
use sas_pool::{InstancePool, PoolConfig};
use tokio::{task::JoinSet, time::Instant};

use crate::fake::{FakeRuntime, MS, SECOND, Start, deployed_of};

const QUIET: TenantKey = TenantKey(1);
const LOUD: TenantKey = TenantKey(2);

struct Bench {
    pool: Arc<InstancePool>,
    runtime: Arc<FakeRuntime>,
}

impl Bench {
    fn new(config: PoolConfig, starts: Start) -> Self {
        let runtime = FakeRuntime::with(starts, |can| can.isolation = Isolation::Process);
        Self { pool: InstancePool::new(config), runtime }
    }

    fn register(&self, tenant: TenantKey, n: u32, change: impl FnOnce(&mut RevisionSpec)) -> RevisionKey {
        let name = format!("t{}-{n}", tenant.0);
        let deployed = deployed_of(&self.runtime, &name, tenant, None, |spec| {
            spec.concurrency = 1;
            change(spec);
        });
        self.pool.register(deployed).unwrap()
    }

    fn limit(&self, tenant: TenantKey, quota: TenantQuota) {
        self.pool.set_tenant(tenant, Some(quota));
    }

    async fn claim(&self, tenant: TenantKey, key: RevisionKey) -> Result<Lease, ClaimError> {
        let cx = Cx::new(tenant, RequestId(0), Instant::now() + 10 * SECOND);
        self.pool.claim(&Claim::new(key, tenant), &cx).await
    }

    /// A claim that the quota of its tenant refuses, at once.
    async fn refused(&self, tenant: TenantKey, key: RevisionKey) -> QuotaExceeded {
        let began = Instant::now();
        match self.claim(tenant, key).await {
            Err(ClaimError::Quota(over)) => {
                assert_eq!(began.elapsed(), Duration::ZERO, "it is told at once");
                over
            }
            other => panic!("{other:?}"),
        }
    }

    /// Used, of most, and refused.
    fn told(&self, tenant: TenantKey, resource: QuotaResource) -> (f64, f64, u64) {
        let all = self.pool.pressure();
        let one = all.iter().find(|one| one.tenant == Some(tenant) && one.resource == resource);
        one.map(|one| (one.used, one.most, one.refused)).expect("its quota is told")
    }
}

fn numbers(over: &QuotaExceeded) -> (QuotaResource, f64, f64, f64) {
    (over.resource, over.limit, over.used, over.asked)
}

#[tokio::test(start_paused = true)]
async fn a_tenant_holds_no_more_instances_memory_or_cpu_than_its_quota() {
    let limits = TenantQuota::default();
    let mib = 1 << 20;
    for (quota, resource, of_one, limit) in [
        (limits.with_instances(2), QuotaResource::Instances, 1.0, 2.0),
        (limits.with_memory_bytes(100 * mib), QuotaResource::Memory, (40 * mib) as f64, (100 * mib) as f64),
        (limits.with_cpu_millis(500), QuotaResource::Cpu, 200.0, 500.0),
    ] {
        let bench = Bench::new(PoolConfig::seeded(1), Start::After(100 * MS));
        let sized = |spec: &mut RevisionSpec| {
            spec.resources.memory_request_bytes = Some(40 * mib);
            spec.resources.cpu_request_millis = Some(200);
        };
        bench.limit(LOUD, quota);
        let keys: Vec<_> = (0..3).map(|n| bench.register(LOUD, n, sized)).collect();
        let first = bench.claim(LOUD, keys[0]).await.expect("the first");
        let second = bench.claim(LOUD, keys[1]).await.expect("the second");
        let over = bench.refused(LOUD, keys[2]).await;
        assert_eq!(numbers(&over), (resource, limit, 2.0 * of_one, of_one));
        assert_eq!(bench.told(LOUD, resource), (2.0 * of_one, limit, 1));

        // Those that it has serve what comes: it waits for its turn there.
        let (pool, key) = (Arc::clone(&bench.pool), keys[0]);
        let waits = tokio::spawn(async move {
            let cx = Cx::new(LOUD, RequestId(0), Instant::now() + 10 * SECOND);
            pool.claim(&Claim::new(key, LOUD), &cx).await
        });
        tokio::time::sleep(SECOND).await;
        assert!(!waits.is_finished() && bench.runtime.begun() == 2);
        let quiet = bench.register(QUIET, 0, sized);
        let began = Instant::now();
        drop(bench.claim(QUIET, quiet).await.expect("another tenant"));
        assert_eq!(began.elapsed(), 100 * MS, "is served as if it were alone");
        drop(first);
        let lease = waits.await.unwrap().expect("the slot that came back");

        // What is idle of its own goes for what it needs, and nothing of the other's does.
        drop((lease, second));
        let began = Instant::now();
        bench.claim(LOUD, keys[2]).await.expect("room was made");
        assert_eq!(began.elapsed(), 100 * MS);
        assert_eq!(bench.pool.status(quiet).unwrap().ready, 1, "the other's is still there");

        // Raised, it may have more, without a restart.
        bench.limit(LOUD, limits.with_instances(3));
        let leases = [bench.claim(LOUD, keys[0]).await, bench.claim(LOUD, keys[1]).await];
        assert!(leases.iter().all(Result::is_ok));
        bench.pool.shutdown(Instant::now() + 10 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_tenant_that_is_limited_later_counts_with_what_it_has() {
    let bench = Bench::new(PoolConfig::seeded(1), Start::AtOnce);
    let keys: Vec<_> = (0..3).map(|n| bench.register(LOUD, n, |_| {})).collect();
    let mut leases =
        vec![bench.claim(LOUD, keys[0]).await.unwrap(), bench.claim(LOUD, keys[1]).await.unwrap()];
    bench.limit(LOUD, TenantQuota::default().with_instances(1));
    assert_eq!(bench.told(LOUD, QuotaResource::Instances), (2.0, 1.0, 0), "nothing is stopped for it");
    assert_eq!(numbers(&bench.refused(LOUD, keys[2]).await), (QuotaResource::Instances, 1.0, 2.0, 1.0));
    let kept = leases.pop();
    for key in [keys[0], keys[1]] {
        bench.pool.set_desired(key, 0);
    }
    leases.clear();
    tokio::time::sleep(SECOND).await;
    assert_eq!(bench.told(LOUD, QuotaResource::Instances).0, 1.0, "the other one is gone");
    drop(kept);
    tokio::time::sleep(SECOND).await;
    bench.claim(LOUD, keys[2]).await.expect("there is room now");
    bench.pool.set_tenant(LOUD, None);
    assert!(bench.pool.pressure().is_empty());
    bench.claim(LOUD, keys[0]).await.expect("and no limit");
}

#[tokio::test(start_paused = true)]
async fn a_tenants_instances_start_no_faster_than_its_rate() {
    let bench = Bench::new(PoolConfig::seeded(1), Start::AtOnce);
    bench.limit(LOUD, TenantQuota::default().with_cold_starts_per_second(2.0));
    let keys: Vec<_> = (0..40).map(|n| bench.register(LOUD, n, |_| {})).collect();
    let mut started = 0;
    for tick in 0..100 {
        let key = keys[tick % keys.len()];
        match bench.claim(LOUD, key).await {
            Ok(_) => {
                started += 1;
                bench.pool.set_desired(key, 0);
            }
            Err(ClaimError::Quota(over)) => {
                assert_eq!((over.resource, over.limit), (QuotaResource::ColdStarts, 2.0));
                assert!(over.retry_after <= 500 * MS && !over.retry_after.is_zero(), "{over:?}");
            }
            Err(other) => panic!("{other}"),
        }
        tokio::time::sleep(100 * MS).await;
    }
    // Ten seconds: the burst, and two each.
    assert!((20..=22).contains(&started), "{started} starts in 10 s");
    assert_eq!(bench.told(LOUD, QuotaResource::ColdStarts).2, 100 - started);
    let quiet = bench.register(QUIET, 0, |_| {});
    bench.claim(QUIET, quiet).await.expect("another's are its own");

    // What nobody waits for comes when the rate lets it.
    let many = bench.register(LOUD, 100, |spec| spec.scaling.min = 5);
    tokio::time::sleep(SECOND).await;
    let ready = bench.pool.status(many).unwrap().ready;
    assert!((1..5).contains(&ready), "{ready} of 5 after a second");
    tokio::time::sleep(3 * SECOND).await;
    assert_eq!(bench.pool.status(many).unwrap().ready, 5);
}

#[tokio::test(start_paused = true)]
async fn a_tenants_waiting_requests_hold_no_more_bytes_than_its_quota() {
    let bench = Bench::new(PoolConfig::seeded(1), Start::After(SECOND));
    bench.limit(LOUD, TenantQuota::default().with_queue_bytes(1_000));
    let (loud, quiet) = (bench.register(LOUD, 0, |_| {}), bench.register(QUIET, 0, |_| {}));
    let claim = |tenant: TenantKey, key: RevisionKey| {
        let mut claim = Claim::new(key, tenant);
        claim.bytes = 400;
        let cx = Cx::new(tenant, RequestId(0), Instant::now() + 10 * SECOND);
        bench.pool.claim(&claim, &cx)
    };
    let waiting = [claim(LOUD, loud), claim(LOUD, loud)];
    let Err(ClaimError::Quota(over)) = claim(LOUD, loud).await else { panic!("it is full") };
    assert_eq!(numbers(&over), (QuotaResource::QueueBytes, 1_000.0, 800.0, 400.0));
    assert_eq!(bench.told(LOUD, QuotaResource::QueueBytes), (800.0, 1_000.0, 1));
    let others: Vec<_> = (0..10).map(|_| claim(QUIET, quiet)).collect();
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(bench.pool.status(quiet).unwrap().ready, 10, "another's queue is its own");
    drop((waiting, others));
    assert_eq!(bench.told(LOUD, QuotaResource::QueueBytes).0, 0.0);
}

/// Cold starts of the quiet tenant, each of a revision of its own, while the loud one asks for a thousand instances a
/// second; the sorted waits.
async fn quiet_waits(quota: Option<TenantQuota>, loud: bool) -> Vec<Duration> {
    let bench = Arc::new(Bench::new(
        {
            let mut config = PoolConfig::seeded(1);
            config.budget.instances = 60;
            config.budget.reserve = 0.0;
            config
        },
        Start::After(100 * MS),
    ));
    if let Some(quota) = quota {
        bench.limit(LOUD, quota);
    }
    let mut flood = JoinSet::new();
    if loud {
        let keys: Vec<_> = (0..100).map(|n| bench.register(LOUD, n, |_| {})).collect();
        for n in 0..5_000 {
            let (bench, key) = (Arc::clone(&bench), keys[n % keys.len()]);
            flood.spawn(async move {
                tokio::time::sleep(MS * n as u32).await;
                if let Ok(mut lease) = bench.claim(LOUD, key).await {
                    tokio::time::sleep(2 * SECOND).await;
                    lease.outcome = Outcome::Ok;
                }
            });
        }
    }
    let mut waits = Vec::new();
    for n in 0..40 {
        tokio::time::sleep(100 * MS).await;
        let key = bench.register(QUIET, n, |_| {});
        let began = Instant::now();
        let mut lease = bench.claim(QUIET, key).await.expect("served");
        waits.push(began.elapsed());
        lease.outcome = Outcome::Ok;
        drop(lease);
        bench.pool.set_desired(key, 0);
    }
    flood.shutdown().await;
    waits.sort_unstable();
    waits
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_one_tenant_costs_another_nothing_whatever_its_quota_is_of() {
    let alone = *quiet_waits(None, false).await.last().unwrap();
    let free = *quiet_waits(None, true).await.last().unwrap();
    assert!(
        free > 2 * alone,
        "without quotas the budget is the loud one's: {alone:?} alone, {free:?} beside it"
    );
    let limits = TenantQuota::default();
    for quota in [
        limits.with_instances(10),
        limits.with_memory_bytes(10 * (64 << 20)),
        limits.with_cpu_millis(1_000),
        limits.with_cold_starts_per_second(3.0),
    ] {
        let beside = *quiet_waits(Some(quota), true).await.last().unwrap();
        println!("the slowest cold start: alone {alone:?}, beside a flood held to {quota:?} {beside:?}");
        assert_eq!(beside, alone, "{quota:?}");
    }
}
