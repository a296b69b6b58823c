//! Claims, leases and the activation queue.

use std::{sync::Arc, time::Duration};

use sas_core::{Claim, ClaimError, Cx, ErrorKind, Outcome, Pool, RequestId, TenantKey};
use sas_pool::{InstancePool, PoolConfig};
use tokio::{task::JoinSet, time::Instant};

use crate::fake::{FakeRuntime, MS, SECOND, Start, claim, deployed};

#[tokio::test(start_paused = true)]
async fn a_first_request_starts_an_instance_and_the_next_finds_it_warm() {
    let runtime = FakeRuntime::new(Start::After(40 * MS));
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    assert!(pool.try_claim(&Claim::new(key, TenantKey(1))).is_none());

    let lease = claim(&pool, key, SECOND).await.unwrap();
    let start = lease.start.as_deref().expect("it waited for a start");
    assert_eq!(start.ready, 40 * MS);
    assert_eq!(
        (start.gated, start.spawned, start.listening),
        (Duration::ZERO, Some(Duration::ZERO), Some(40 * MS))
    );

    let warm = pool.try_claim(&Claim::new(key, TenantKey(1))).expect("unlimited concurrency");
    assert_eq!(warm.instance.id(), lease.instance.id());
    assert!(warm.start.is_none());
    assert_eq!(runtime.started(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_first_requests_make_one_start_or_exactly_a_hundred() {
    // One shard as well: there every bit of an id is left for the instance.
    for (concurrency, starts, shards) in
        [(1000, 1, 64), (10, 100, 64), (1, 1000, 64), (0, 1, 64), (10, 100, 1)]
    {
        let runtime = FakeRuntime::new(Start::After(40 * MS));
        let mut config = PoolConfig::default();
        config.shards = shards;
        let pool = InstancePool::new(config);
        let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = concurrency)).unwrap();
        let mut claims = JoinSet::new();
        for _ in 0..1000 {
            let pool = Arc::clone(&pool);
            claims.spawn(async move { claim(&pool, key, SECOND).await.unwrap() });
        }
        let leases = claims.join_all().await;
        assert_eq!(leases.len(), 1000);
        assert_eq!(runtime.begun(), starts, "concurrency {concurrency}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_burst_gets_as_many_instances_when_starts_complete_at_once() {
    for (concurrency, starts) in [(1000, 1), (10, 100), (1, 1000), (0, 1)] {
        let runtime = FakeRuntime::new(Start::AtOnce);
        let pool = InstancePool::new(PoolConfig::default());
        let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = concurrency)).unwrap();
        let mut leases = Vec::new();
        for _ in 0..1000 {
            leases.push(claim(&pool, key, SECOND).await.unwrap());
        }
        assert_eq!(runtime.begun(), starts, "concurrency {concurrency}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_release_hands_the_slot_to_the_next_in_line() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool
        .register(deployed(&runtime, "a", |spec| {
            spec.concurrency = 1;
            spec.scaling.max = 1;
        }))
        .unwrap();
    let first = claim(&pool, key, SECOND).await.unwrap();
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { claim(&pool, key, SECOND).await }
    });
    tokio::time::sleep(10 * MS).await;
    assert_eq!(pool.status(key).unwrap().queued, 1);
    assert!(pool.try_claim(&Claim::new(key, TenantKey(1))).is_none());
    drop(first);
    // Nobody overtakes: the slot is the waiter's already.
    assert!(pool.try_claim(&Claim::new(key, TenantKey(1))).is_none());
    let second = waiting.await.unwrap().unwrap();
    assert_eq!(runtime.started(), 1);
    drop(second);
    assert_eq!(pool.status(key).unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_claim_fails_at_its_deadline_and_not_later() {
    let runtime = FakeRuntime::new(Start::Hang);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let begin = Instant::now();
    let error = claim(&pool, key, 250 * MS).await.unwrap_err();
    assert!(matches!(error, ClaimError::Deadline), "{error}");
    let late = begin.elapsed() - 250 * MS;
    assert!(late <= MS, "{late:?} after the deadline");
    assert_eq!(pool.status(key).unwrap().queued, 0);
    assert_eq!(pool.status(key).unwrap().starting, 1, "the start belongs to the pool");
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_claim_leaves_the_queue() {
    let runtime = FakeRuntime::new(Start::After(40 * MS));
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + SECOND);
    let waiting = pool.claim(&Claim::new(key, TenantKey(1)), &cx);
    assert_eq!(pool.status(key).unwrap().queued, 1);
    drop(waiting);
    assert_eq!(pool.status(key).unwrap().queued, 0);
    // The start goes on, and serves the next.
    tokio::time::sleep(50 * MS).await;
    assert!(pool.try_claim(&Claim::new(key, TenantKey(1))).is_some());
    assert_eq!(runtime.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_slot_granted_to_a_claim_that_just_left_goes_to_the_next() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool
        .register(deployed(&runtime, "a", |spec| {
            spec.concurrency = 1;
            spec.scaling.max = 1;
        }))
        .unwrap();
    let held = claim(&pool, key, SECOND).await.unwrap();
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + SECOND);
    let first = pool.claim(&Claim::new(key, TenantKey(1)), &cx);
    let second = pool.claim(&Claim::new(key, TenantKey(1)), &cx);
    drop(held);
    drop(first);
    let lease = second.await.unwrap();
    assert_eq!(pool.status(key).unwrap().in_flight, 1);
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn higher_priorities_are_served_first() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool
        .register(deployed(&runtime, "a", |spec| {
            spec.concurrency = 1;
            spec.scaling.max = 1;
        }))
        .unwrap();
    let held = claim(&pool, key, SECOND).await.unwrap();
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + SECOND);
    let ordinary = pool.claim(&Claim::new(key, TenantKey(1)), &cx);
    let mut urgent = Claim::new(key, TenantKey(1));
    urgent.priority = 7;
    let urgent = pool.claim(&urgent, &cx);
    drop(held);
    let lease = tokio::select! {
        biased;
        _ = ordinary => panic!("the ordinary claim went first"),
        lease = urgent => lease.unwrap(),
    };
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn every_bound_of_the_queue_is_kept_and_named() {
    let runtime = FakeRuntime::new(Start::Hang);
    let mut config = PoolConfig::default();
    config.queue.revision_bytes = 100;
    config.queue.tenant_requests = 5;
    config.queue.host_requests = 6;
    let pool = InstancePool::new(config);
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + SECOND);
    let refused = |tenant: u32, key, bytes| {
        let mut claim = Claim::new(key, TenantKey(tenant));
        claim.bytes = bytes;
        pool.claim(&claim, &cx)
    };
    let a = pool.register(deployed(&runtime, "a", |spec| spec.queue_limit = 3)).unwrap();
    let b = pool.register(deployed(&runtime, "b", |_| {})).unwrap();
    let mut held = vec![refused(1, a, 60)];
    for (tenant, key, bytes, expected) in [
        (1, a, 60, "revision bytes"),
        (1, a, 0, ""),
        (1, a, 0, ""),
        (1, a, 0, "revision"),
        (1, b, 0, ""),
        (1, b, 0, ""),
        (1, b, 0, "tenant"),
        (2, b, 0, ""),
        (3, b, 0, "host"),
    ] {
        let waiting = refused(tenant, key, bytes);
        if expected.is_empty() {
            held.push(waiting);
            continue;
        }
        match waiting.await {
            Err(ClaimError::QueueFull { resource, retry_after }) => {
                assert_eq!(resource, expected);
                assert_eq!(retry_after, SECOND);
            }
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert_eq!(pool.status(a).unwrap().queued + pool.status(b).unwrap().queued, 6);
    drop(held);
    assert_eq!(pool.status(a).unwrap().queued + pool.status(b).unwrap().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn a_probe_does_not_wake_a_sleeper() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + SECOND);
    let mut probe = Claim::new(key, TenantKey(1));
    probe.wakes = false;
    assert!(matches!(pool.claim(&probe, &cx).await, Err(ClaimError::Asleep)));
    assert_eq!(runtime.begun(), 0);
    drop(claim(&pool, key, SECOND).await.unwrap());
    assert!(pool.claim(&probe, &cx).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_failed_the_request_is_avoided_while_there_is_another() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = 10)).unwrap();
    pool.set_desired(key, 2);
    let mut first = pool.try_claim(&Claim::new(key, TenantKey(1))).unwrap();
    first.outcome = Outcome::Lost;
    let mut again = Claim::new(key, TenantKey(1));
    again.exclude = Some(first.instance.id());
    for _ in 0..50 {
        assert_ne!(pool.try_claim(&again).unwrap().instance.id(), first.instance.id());
    }
    drop(first);
    pool.set_desired(key, 1);
    assert!(pool.try_claim(&again).is_some(), "the only one is better than none");
}

#[tokio::test(start_paused = true)]
async fn claims_of_an_unknown_or_forgotten_revision_say_so() {
    let runtime = FakeRuntime::new(Start::Hang);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { claim(&pool, key, SECOND).await }
    });
    tokio::task::yield_now().await;
    pool.unregister(key);
    pool.unregister(key);
    assert!(matches!(waiting.await.unwrap(), Err(ClaimError::Unknown)));
    assert!(matches!(claim(&pool, key, SECOND).await, Err(ClaimError::Unknown)));
    let next = pool.register(deployed(&runtime, "b", |_| {})).unwrap();
    assert_ne!(next, key, "a key never names another revision");
    assert!(pool.deployed(key).is_none());
    assert!(pool.deployed(next).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_start_error_reaches_those_who_wait_and_opens_again_after_the_pause() {
    let runtime = FakeRuntime::new(Start::Fail(ErrorKind::Crashed, 10 * MS));
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let begin = Instant::now();
    let error = claim(&pool, key, Duration::from_secs(60)).await.unwrap_err();
    let ClaimError::Start { error, retry_after } = error else { panic!("{error}") };
    assert_eq!(error.message, "as the test wants");
    assert_eq!(runtime.begun(), 3, "three attempts");
    assert!(begin.elapsed() < SECOND, "{:?}", begin.elapsed());
    // Fails fast while the pause lasts, without an attempt.
    let begin = Instant::now();
    assert!(matches!(claim(&pool, key, SECOND).await, Err(ClaimError::Start { .. })));
    assert_eq!((begin.elapsed(), runtime.begun()), (Duration::ZERO, 3));
    assert_eq!(pool.status(key).unwrap().failed_starts, 3);
    assert!(!pool.status(key).unwrap().started);
    assert!(pool.status(key).unwrap().last_start_error.is_some());
    // Then one claim tries again, and the pause doubles.
    tokio::time::sleep(retry_after + MS).await;
    let error = claim(&pool, key, SECOND).await.unwrap_err();
    assert!(error.retry_after().unwrap() > retry_after, "{error:?}");
    assert_eq!(runtime.begun(), 4);
    // And when it works, all is forgotten.
    *runtime.rest.lock().unwrap() = Start::After(10 * MS);
    tokio::time::sleep(SECOND).await;
    let lease = claim(&pool, key, SECOND).await.unwrap();
    assert_eq!(pool.status(key).unwrap().failed_starts, 0);
    // That it worked once stays known while it sleeps, and is nothing that the next revision in its place inherits.
    drop(lease);
    pool.drain(key, SECOND).await;
    let status = pool.status(key).unwrap();
    assert_eq!((status.ready, status.starting, status.started), (0, 0, true));
    pool.unregister(key);
    let mut register = || pool.register(deployed(&runtime, "b", |_| {})).unwrap();
    let next = std::iter::repeat_with(&mut register).take(1000).find(|next| next.slot() == key.slot());
    assert!(!pool.status(next.expect("the place is taken again")).unwrap().started);
}

#[tokio::test(start_paused = true)]
async fn a_spec_that_can_never_start_fails_at_once() {
    let runtime = FakeRuntime::new(Start::Fail(ErrorKind::InvalidSpec, Duration::ZERO));
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    assert!(matches!(claim(&pool, key, SECOND).await, Err(ClaimError::Start { .. })));
    assert_eq!(runtime.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn unmetered_claims_are_not_load() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let mut test_run = Claim::new(key, TenantKey(1));
    test_run.metered = false;
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + SECOND);
    let lease = pool.claim(&test_run, &cx).await.unwrap();
    tokio::time::sleep(SECOND).await;
    let mut seen = Vec::new();
    for shard in 0..pool.shards() {
        pool.take_load(shard, &mut |load, _| seen.push(*load));
    }
    assert_eq!(seen.len(), 1);
    assert_eq!((seen[0].concurrency, seen[0].requests, seen[0].ready), (0.0, 0, 1));
    drop(lease);
}
