//! What a quiet tenant sees while another asks for a hundred times its share.

use std::{sync::Arc, time::Duration};

use sas_core::{Claim, Cx, Outcome, Pool, RequestId, TenantKey};
use sas_pool::{InstancePool, PoolConfig};
use tokio::{task::JoinSet, time::Instant};

use crate::fake::{FakeRuntime, MS, SECOND, Start, deployed_of};

const QUIET: TenantKey = TenantKey(1);
const LOUD: TenantKey = TenantKey(2);

/// Cold starts of the quiet tenant, one every half second, each to a revision of its own; the sorted waits.
async fn quiet_waits(config: PoolConfig, gated: bool, loud_requests: u32) -> Vec<Duration> {
    let runtime = FakeRuntime::with(Start::After(100 * MS), |can| can.cpu_bound_start = gated);
    let pool = InstancePool::new(config);
    let register = |tenant: TenantKey, n: u32| {
        pool.register(deployed_of(&runtime, &format!("t{}-{n}", tenant.0), tenant, None, |spec| {
            spec.concurrency = 1;
        }))
        .unwrap()
    };
    let mut loud = JoinSet::new();
    for n in 0..loud_requests {
        let (pool, key) = (Arc::clone(&pool), register(LOUD, n));
        loud.spawn(async move {
            // Spread over the run, so that there is always a line.
            tokio::time::sleep(MS * (n % 5_000)).await;
            let cx = Cx::new(LOUD, RequestId(0), Instant::now() + 600 * SECOND);
            let mut lease = pool.claim(&Claim::new(key, LOUD), &cx).await.unwrap();
            tokio::time::sleep(20 * MS).await;
            lease.outcome = Outcome::Ok;
        });
    }
    let mut waits = Vec::new();
    for n in 0..100 {
        let key = register(QUIET, n);
        let begin = Instant::now();
        let cx = Cx::new(QUIET, RequestId(0), begin + 600 * SECOND);
        let mut lease = pool.claim(&Claim::new(key, QUIET), &cx).await.unwrap();
        assert!(lease.start.is_some(), "cold");
        waits.push(begin.elapsed());
        lease.outcome = Outcome::Ok;
        tokio::time::sleep(20 * MS).await;
        drop(lease);
        pool.set_desired(key, 0);
        tokio::time::sleep(50 * MS).await;
    }
    loud.shutdown().await;
    waits.sort_unstable();
    waits
}

fn p99(waits: &[Duration]) -> Duration {
    waits[waits.len() * 99 / 100 - 1]
}

#[tokio::test(start_paused = true)]
async fn at_the_start_gate_the_quiet_tenant_waits_at_most_half_as_long_again() {
    let config = || {
        let mut config = PoolConfig::default();
        config.gate.starts = 3;
        config
    };
    let alone = p99(&quiet_waits(config(), true, 0).await);
    let beside = p99(&quiet_waits(config(), true, 10_000).await);
    println!("cold-start p99 at the start gate: alone {alone:?}, beside 100 x {beside:?}");
    assert!(beside <= alone * 3 / 2, "{alone:?} alone, {beside:?} beside the other");
}

#[tokio::test(start_paused = true)]
async fn at_the_budget_of_instances_the_quiet_tenant_waits_at_most_half_as_long_again() {
    let config = || {
        let mut config = PoolConfig::default();
        config.budget.instances = 40;
        config
    };
    let alone = p99(&quiet_waits(config(), false, 0).await);
    let beside = p99(&quiet_waits(config(), false, 10_000).await);
    println!("cold-start p99 at the budget of instances: alone {alone:?}, beside 100 x {beside:?}");
    assert!(beside <= alone * 3 / 2, "{alone:?} alone, {beside:?} beside the other");
}

#[tokio::test(start_paused = true)]
async fn at_the_budget_of_memory_the_quiet_tenant_waits_at_most_half_as_long_again() {
    let config = || {
        let mut config = PoolConfig::default();
        config.budget.memory_bytes = 40 << 26;
        config
    };
    let alone = p99(&quiet_waits(config(), false, 0).await);
    let beside = p99(&quiet_waits(config(), false, 10_000).await);
    println!("cold-start p99 at the budget of memory: alone {alone:?}, beside 100 x {beside:?}");
    assert!(beside <= alone * 3 / 2, "{alone:?} alone, {beside:?} beside the other");
}
