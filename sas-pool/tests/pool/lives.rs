//! The lives of instances: growing, shrinking, dying, draining, ending.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use sas_core::{
    Claim, ClaimError, Cx, EnvValue, InstanceId, InstanceState, KeepAlive, KeepAlivePolicy, Load, MeterPhase,
    MeterSink, Metered, Outcome, Pool, RequestId, RevisionKey, RevisionName, SecretSource, TenantKey,
    Timestamp, TokioClock, Usage,
};
use sas_pool::{InstancePool, PoolConfig, config::IdleRule};
use tokio::time::Instant;

use crate::fake::{FakeRuntime, MS, SECOND, Start, claim, deployed, deployed_of};

fn loads(pool: &Arc<InstancePool>) -> Vec<Load> {
    let mut seen = Vec::new();
    for shard in 0..pool.shards() {
        pool.take_load(shard, &mut |load, _| seen.push(*load));
    }
    seen
}

fn warm(pool: &Arc<InstancePool>, key: RevisionKey) -> sas_core::Lease {
    pool.try_claim(&Claim::new(key, TenantKey(1))).expect("a free slot")
}

#[tokio::test(start_paused = true)]
async fn the_pool_follows_decisions_within_the_bounds_of_the_spec() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool
        .register(deployed(&runtime, "a", |spec| {
            spec.scaling.min = 2;
            spec.scaling.max = 5;
        }))
        .unwrap();
    assert_eq!(pool.status(key).unwrap().ready, 2, "the minimum is there from the start");
    pool.set_desired(key, 100);
    assert_eq!(pool.status(key).unwrap().ready, 5);
    pool.set_desired(key, 0);
    assert_eq!(pool.status(key).unwrap().ready, 2);
    assert_eq!((runtime.started(), runtime.stopped()), (5, 3));
}

#[tokio::test(start_paused = true)]
async fn shrinking_takes_idle_instances_first_and_busy_ones_after_their_drain() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = 1)).unwrap();
    pool.set_desired(key, 3);
    let (first, second) = (warm(&pool, key), warm(&pool, key));
    pool.set_desired(key, 2);
    assert_eq!(runtime.stopped(), 1, "the idle one went");
    assert_eq!(pool.status(key).unwrap().in_flight, 2);
    pool.set_desired(key, 0);
    assert_eq!(runtime.stopped(), 1, "both work");
    assert_eq!((pool.status(key).unwrap().ready, pool.status(key).unwrap().draining), (0, 2));
    drop(first);
    assert_eq!(runtime.stopped(), 2);
    drop(second);
    assert_eq!(runtime.stopped(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_draining_instance_comes_back_before_a_new_one_is_started() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = 2)).unwrap();
    pool.set_desired(key, 1);
    let held = warm(&pool, key);
    pool.set_desired(key, 0);
    assert_eq!(pool.status(key).unwrap().draining, 1);
    let lease = claim(&pool, key, SECOND).await.unwrap();
    assert_eq!(lease.instance.id(), held.instance.id());
    assert_eq!(runtime.started(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_older_decision_never_starves_what_waits() {
    let runtime = FakeRuntime::new(Start::After(40 * MS));
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = 1)).unwrap();
    let cx = Cx::new(TenantKey(1), RequestId(0), Instant::now() + SECOND);
    let claims: Vec<_> = (0..10).map(|_| pool.claim(&Claim::new(key, TenantKey(1)), &cx)).collect();
    pool.set_desired(key, 0);
    for claim in claims {
        drop(claim.await.unwrap());
    }
    assert_eq!(runtime.begun(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_dead_instance_is_replaced_and_its_leases_harm_nobody() {
    let runtime = FakeRuntime::new(Start::After(5 * MS));
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = 1)).unwrap();
    let mut lease = claim(&pool, key, SECOND).await.unwrap();
    lease.outcome = Outcome::Ok;
    drop(lease);
    let lease = claim(&pool, key, SECOND).await.unwrap();
    runtime.live()[0].die();
    assert_eq!(pool.status(key).unwrap().starting, 1, "replaced at once");
    let next = claim(&pool, key, SECOND).await.unwrap();
    assert_ne!(next.instance.id(), lease.instance.id());
    drop(lease);
    assert_eq!(pool.status(key).unwrap().in_flight, 1);
    assert!(pool.try_claim(&Claim::new(key, TenantKey(1))).is_none(), "the late lease freed no slot");
    drop(next);
    assert_eq!(runtime.begun(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_ends_before_its_start_is_over_is_a_failed_start() {
    let runtime = FakeRuntime::new(Start::Die);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    assert!(matches!(claim(&pool, key, SECOND).await, Err(ClaimError::Start { .. })));
    assert_eq!(runtime.begun(), 3);
    assert!(pool.instances(key).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_is_slowed_down() {
    let runtime = FakeRuntime::new(Start::After(MS));
    let pool = InstancePool::new(PoolConfig::default());
    pool.register(deployed(&runtime, "a", |spec| spec.scaling.min = 1)).unwrap();
    for _ in 0..600 {
        tokio::time::sleep(100 * MS).await;
        if let Some(instance) = runtime.live().first() {
            instance.die();
        }
    }
    let begun = runtime.begun();
    // A minute of deaths within 0.1 s: the pauses double from 0.1 s on, though each start succeeds.
    assert!((8..=12).contains(&begun), "{begun}");
}

#[tokio::test(start_paused = true)]
async fn a_recycled_instance_drains_for_its_grace_and_is_replaced_at_once() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let lease = claim(&pool, key, SECOND).await.unwrap();
    let id = lease.instance.id();
    assert!(pool.recycle(key, id, 2 * SECOND));
    assert!(!pool.recycle(key, InstanceId(99), SECOND));
    assert_eq!(pool.status(key).unwrap().ready, 1, "replaced");
    assert_ne!(warm(&pool, key).instance.id(), id);
    let states: Vec<_> = pool.instances(key).iter().map(|view| (view.id == id, view.state)).collect();
    assert_eq!(states, [(true, InstanceState::Draining), (false, InstanceState::Ready)]);
    assert_eq!(lease.draining(), Some(Instant::now() + 2 * SECOND), "a long stream can ask");
    assert_eq!(warm(&pool, key).draining(), None);
    tokio::time::sleep(SECOND).await;
    assert_eq!(runtime.stopped(), 0);
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!(runtime.stopped(), 1, "the grace is over, whatever it still does");
    drop(lease);
    assert_eq!(pool.status(key).unwrap().in_flight, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drained_revision_sleeps_below_its_minimum_and_wakes_on_the_next_claim() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.scaling.min = 2)).unwrap();
    let lease = warm(&pool, key);
    let draining = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.drain(key, 10 * SECOND).await }
    });
    tokio::time::sleep(SECOND).await;
    assert!(!draining.is_finished());
    assert_eq!(runtime.stopped(), 1);
    drop(lease);
    draining.await.unwrap();
    assert_eq!((runtime.stopped(), pool.instances(key).len()), (2, 0));
    drop(claim(&pool, key, SECOND).await.unwrap());
    assert_eq!(pool.status(key).unwrap().ready, 2);
}

#[tokio::test(start_paused = true)]
async fn shutdown_answers_who_waits_stops_everything_and_joins() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = 1)).unwrap();
    let slow = FakeRuntime::new(Start::Hang);
    let hangs = pool.register(deployed(&slow, "b", |_| {})).unwrap();
    pool.set_desired(key, 3);
    for instance in runtime.live() {
        *instance.stop_takes.lock().unwrap() = 300 * MS;
    }
    let lease = warm(&pool, key);
    let waiting = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { claim(&pool, hangs, 60 * SECOND).await }
    });
    tokio::task::yield_now().await;
    let begin = Instant::now();
    let ending = tokio::spawn({
        let pool = Arc::clone(&pool);
        async move { pool.shutdown(Instant::now() + 5 * SECOND).await }
    });
    tokio::time::sleep(SECOND).await;
    assert!(matches!(waiting.await.unwrap(), Err(ClaimError::Closed)));
    assert!(matches!(claim(&pool, key, SECOND).await, Err(ClaimError::Closed)));
    assert_eq!(runtime.stopped(), 2, "idle ones go at once");
    drop(lease);
    ending.await.unwrap();
    assert_eq!(runtime.stopped(), 3);
    assert!(begin.elapsed() < 20 * SECOND, "{:?}", begin.elapsed());
    pool.shutdown(Instant::now()).await;
    assert!(pool.register(deployed(&runtime, "c", |_| {})).is_err());
}

#[tokio::test(start_paused = true)]
async fn shutdown_stops_what_is_still_busy_at_the_deadline() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let lease = claim(&pool, key, SECOND).await.unwrap();
    let begin = Instant::now();
    pool.shutdown(Instant::now() + 2 * SECOND).await;
    assert!((2 * SECOND..4 * SECOND).contains(&begin.elapsed()), "{:?}", begin.elapsed());
    assert_eq!(runtime.stopped(), 1);
    drop(lease);
}

#[tokio::test(start_paused = true)]
async fn the_load_is_weighted_by_time_and_told_once_more_after_the_end() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    assert!(loads(&pool).is_empty(), "a sleeper is not visited");
    let one = claim(&pool, key, SECOND).await.unwrap();
    let two = claim(&pool, key, SECOND).await.unwrap();
    tokio::time::sleep(250 * MS).await;
    drop(one);
    tokio::time::sleep(750 * MS).await;
    let seen = loads(&pool);
    assert_eq!(seen.len(), 1);
    assert!((seen[0].concurrency - 1.25).abs() < 1e-6, "{:?}", seen[0]);
    assert_eq!((seen[0].requests, seen[0].ready, seen[0].queued), (2, 1, 0));
    tokio::time::sleep(500 * MS).await;
    drop(two);
    tokio::time::sleep(500 * MS).await;
    pool.set_desired(key, 0);
    let seen = loads(&pool);
    assert!((seen[0].concurrency - 0.5).abs() < 1e-6, "once more: {:?}", seen[0]);
    assert_eq!((seen[0].requests, seen[0].ready), (0, 0));
    assert!(loads(&pool).is_empty(), "and never again");
    // What happens between two visits is not lost, though the revision sleeps at both.
    drop(claim(&pool, key, SECOND).await.unwrap());
    pool.set_desired(key, 0);
    drop(claim(&pool, key, SECOND).await.unwrap());
    pool.set_desired(key, 0);
    tokio::time::sleep(SECOND).await;
    let seen = loads(&pool);
    assert_eq!((seen.len(), seen[0].requests), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn usage_is_sampled_when_the_load_is_drained() {
    let runtime = FakeRuntime::with(Start::AtOnce, |can| can.usage = true);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    pool.set_desired(key, 2);
    assert_eq!(loads(&pool)[0].cpu, None, "nothing was measured yet");
    let set = |cpu_ms: [u64; 2]| {
        for (instance, ms) in runtime.live().iter().zip(cpu_ms) {
            *instance.usage.lock().unwrap() = Some(Usage::new(ms * 1_000_000, 100));
        }
    };
    set([0, 0]);
    loads(&pool);
    tokio::time::sleep(SECOND).await;
    set([500, 1500]);
    let load = loads(&pool)[0];
    assert!((load.cpu.unwrap() - 1.0).abs() < 1e-6, "{load:?}");
    assert_eq!(load.memory, Some(100.0));
}

#[derive(Debug, Default)]
struct Sums(Mutex<BTreeMap<(u64, String), u64>>);

impl MeterSink for Sums {
    fn phase(&self, of: Metered<'_>, id: InstanceId, phase: MeterPhase, ns: u64) {
        assert_eq!(of.tenant, TenantKey(1));
        assert_eq!(of.name.map(RevisionName::revision), Some("a"));
        *self.0.lock().unwrap().entry((id.0, format!("{phase:?}"))).or_default() += ns;
    }
}

#[tokio::test(start_paused = true)]
async fn the_metered_phases_add_up_to_each_life_exactly() {
    let runtime = FakeRuntime::new(Start::After(40 * MS));
    let sums = Arc::new(Sums::default());
    let mut config = PoolConfig::default();
    config.meter = Some(Arc::clone(&sums) as Arc<dyn MeterSink>);
    let pool = InstancePool::new(config);
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    let begin = Instant::now();
    let mut lease = claim(&pool, key, SECOND).await.unwrap();
    lease.outcome = Outcome::Ok;
    tokio::time::sleep(123 * MS).await;
    loads(&pool);
    drop(lease);
    tokio::time::sleep(77 * MS).await;
    let lease = warm(&pool, key);
    pool.set_desired(key, 0);
    tokio::time::sleep(11 * MS).await;
    drop(lease);
    let life = begin.elapsed().as_nanos() as u64;
    let by_phase: BTreeMap<String, u64> =
        sums.0.lock().unwrap().iter().map(|((_, phase), ns)| (phase.clone(), *ns)).collect();
    let ms = |n: u64| n * 1_000_000;
    assert_eq!(by_phase["Idle"], ms(77));
    assert_eq!(by_phase["Draining"], ms(11));
    assert_eq!(by_phase["Busy"], ms(123));
    assert_eq!(by_phase.values().sum::<u64>(), life);
}

#[tokio::test(start_paused = true)]
async fn with_keep_alive_zero_every_request_of_a_quiet_revision_is_cold() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let mut config = PoolConfig::default();
    config.idle = IdleRule::AtOnce;
    let pool = InstancePool::new(config);
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    for cycle in 1..=5 {
        let lease = claim(&pool, key, SECOND).await.unwrap();
        assert!(lease.start.is_some());
        drop(lease);
        assert_eq!((runtime.started(), runtime.stopped()), (cycle, cycle));
        assert!(pool.instances(key).is_empty());
    }
    pool.set_desired(key, 1);
    drop(claim(&pool, key, SECOND).await.unwrap());
    assert_eq!(pool.status(key).unwrap().ready, 1, "but a decision holds");
}

/// Sleeps after 10 s, wakes after 60 s for 5 s.
#[derive(Debug, Default)]
struct Minutely(Arc<Mutex<Vec<&'static str>>>);

impl KeepAlivePolicy for Minutely {
    fn called(&mut self, _: RevisionKey, _: Timestamp) {
        self.0.lock().unwrap().push("called");
    }
    fn idle(&mut self, _: RevisionKey, now: Timestamp) -> KeepAlive {
        self.0.lock().unwrap().push("idle");
        KeepAlive::with_wake(now + 10 * SECOND, now + 60 * SECOND, now + 65 * SECOND)
    }
    fn forget(&mut self, _: RevisionKey) {
        self.0.lock().unwrap().push("forget");
    }
    fn bytes(&self) -> usize {
        0
    }
}

#[tokio::test(start_paused = true)]
async fn a_keep_alive_policy_decides_when_a_revision_sleeps_and_wakes_it_ahead() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut config = PoolConfig::default();
    config.idle = IdleRule::policy(Minutely(Arc::clone(&told)));
    config.clock = Arc::new(TokioClock::starting_at(Timestamp::from_secs(1_000)));
    let pool = InstancePool::new(config);
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    drop(claim(&pool, key, SECOND).await.unwrap());
    pool.set_desired(key, 0);
    tokio::time::sleep(9 * SECOND).await;
    assert_eq!(runtime.stopped(), 0, "the policy has the last word about the last one");
    tokio::time::sleep(2 * SECOND).await;
    assert_eq!((runtime.started(), runtime.stopped()), (1, 1));
    tokio::time::sleep(50 * SECOND).await;
    assert_eq!((runtime.started(), runtime.stopped()), (2, 1), "woken at 60 s");
    drop(warm(&pool, key));
    tokio::time::sleep(6 * SECOND).await;
    assert_eq!(runtime.stopped(), 1, "called: the 5 s of the wake are void, 10 s hold");
    tokio::time::sleep(5 * SECOND).await;
    assert_eq!(runtime.stopped(), 2);
    tokio::time::sleep(60 * SECOND).await;
    assert_eq!((runtime.started(), runtime.stopped()), (3, 3), "woken, not called, asleep again");
    tokio::time::sleep(600 * SECOND).await;
    assert_eq!(runtime.started(), 3, "and not woken again without a call");
    let totals = pool.totals();
    let wakes = (totals.wake_aheads, totals.wake_aheads_used, totals.wake_aheads_wasted);
    assert_eq!(wakes, (2, 1, 1), "the first paid, the second did not");
    pool.unregister(key);
    assert_eq!(*told.lock().unwrap(), ["called", "idle", "called", "idle", "forget"]);
}

#[tokio::test(start_paused = true)]
async fn idle_instances_leave_the_cpu_and_come_back_on_a_claim() {
    let runtime = FakeRuntime::with(Start::AtOnce, |can| can.suspend = true);
    let mut config = PoolConfig::default();
    config.suspend_after = Some(SECOND);
    let pool = InstancePool::new(config);
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    drop(claim(&pool, key, SECOND).await.unwrap());
    tokio::time::sleep(500 * MS).await;
    drop(warm(&pool, key));
    tokio::time::sleep(800 * MS).await;
    assert_eq!(pool.instances(key)[0].state, InstanceState::Ready, "it was used half a second ago");
    tokio::time::sleep(300 * MS).await;
    assert_eq!(pool.instances(key)[0].state, InstanceState::Suspended);
    assert!(pool.try_claim(&Claim::new(key, TenantKey(1))).is_none());
    let lease = claim(&pool, key, SECOND).await.unwrap();
    assert_eq!((runtime.started(), pool.instances(key)[0].state), (1, InstanceState::Ready));
    drop(lease);
    tokio::time::sleep(2 * SECOND).await;
    pool.set_desired(key, 0);
    tokio::time::sleep(MS).await;
    assert_eq!(runtime.stopped(), 1);
    use std::sync::atomic::Ordering;
    assert_eq!(runtime.suspends.load(Ordering::SeqCst), 2);
    assert_eq!(runtime.resumes.load(Ordering::SeqCst), 2, "thawed to end politely");
}

#[derive(Debug)]
struct Vault;

#[async_trait::async_trait]
impl SecretSource for Vault {
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> sas_core::Result<bytes::Bytes> {
        assert_eq!(tenant, TenantKey(1));
        tokio::time::sleep(MS).await;
        Ok(format!("value of {reference}").into())
    }
}

#[tokio::test(start_paused = true)]
async fn secrets_are_resolved_at_the_start_or_the_start_says_why_not() {
    let secret = |spec: &mut sas_core::RevisionSpec| {
        spec.env.insert("TOKEN".into(), EnvValue::Secret("vault/token".into()));
        spec.env.insert("PLAIN".into(), EnvValue::Literal("x".into()));
    };
    let runtime = FakeRuntime::new(Start::AtOnce);
    let mut config = PoolConfig::default();
    config.secrets = Some(Arc::new(Vault));
    let pool = InstancePool::new(config);
    let key = pool.register(deployed(&runtime, "a", secret)).unwrap();
    drop(claim(&pool, key, SECOND).await.unwrap());
    let seen = runtime.secrets.lock().unwrap().clone();
    let expected = [("PLAIN", "x"), ("TOKEN", "value of vault/token")];
    assert_eq!(seen, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));

    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", secret)).unwrap();
    let error = claim(&pool, key, SECOND).await.unwrap_err().to_string();
    assert!(error.contains("env.TOKEN") && error.contains("SecretSource"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn an_outlier_is_left_out_for_a_while_but_never_the_last_one() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |spec| spec.concurrency = 100)).unwrap();
    pool.set_desired(key, 2);
    let bad = pool.instances(key)[0].id;
    let mut hits = 0;
    for _ in 0..100 {
        let mut lease = warm(&pool, key);
        hits += u32::from(lease.instance.id() == bad);
        lease.outcome = if lease.instance.id() == bad { Outcome::Failed } else { Outcome::Ok };
    }
    assert_eq!(hits, 5, "ejected after five failures in a row");
    assert!(pool.instances(key).iter().any(|view| view.ejected && view.id == bad));
    tokio::time::sleep(31 * SECOND).await;
    assert!(pool.instances(key).iter().all(|view| !view.ejected));
    // The other one alone fails: it stays.
    pool.set_desired(key, 1);
    for _ in 0..20 {
        warm(&pool, key).outcome = Outcome::Failed;
    }
    assert!(pool.try_claim(&Claim::new(key, TenantKey(1))).is_some());
}

#[tokio::test(start_paused = true)]
async fn cpu_bound_starts_pass_the_gate_a_few_at_a_time() {
    use std::sync::atomic::Ordering;
    let runtime = FakeRuntime::with(Start::After(100 * MS), |can| can.cpu_bound_start = true);
    let mut config = PoolConfig::default();
    config.gate.starts = 3;
    config.gate.reserve = 0;
    let pool = InstancePool::new(config);
    let mut claims = tokio::task::JoinSet::new();
    for n in 0..12 {
        let key = pool.register(deployed(&runtime, &format!("r{n}"), |_| {})).unwrap();
        let pool = Arc::clone(&pool);
        claims.spawn(async move { claim(&pool, key, 5 * SECOND).await.unwrap() });
    }
    let begin = Instant::now();
    let leases = claims.join_all().await;
    assert_eq!(runtime.most_starting.load(Ordering::SeqCst), 3);
    assert_eq!(begin.elapsed(), 400 * MS);
    let gated: Vec<Duration> = leases.iter().map(|lease| lease.start.as_ref().unwrap().gated).collect();
    assert_eq!(gated.iter().max(), Some(&(300 * MS)));
}

#[tokio::test(start_paused = true)]
async fn a_full_budget_takes_idle_instances_back_before_anybody_waits_in_vain() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let mut config = PoolConfig::default();
    config.budget.instances = 4;
    config.budget.reserve = 0.0;
    let pool = InstancePool::new(config);
    let keys: Vec<_> =
        (0..6).map(|n| pool.register(deployed(&runtime, &format!("r{n}"), |_| {})).unwrap()).collect();
    let mut held = Vec::new();
    for &key in &keys[..4] {
        held.push(claim(&pool, key, SECOND).await.unwrap());
    }
    let Err(ClaimError::StartPending { error }) = claim(&pool, keys[4], 100 * MS).await else {
        panic!("all are busy")
    };
    assert!(error.message.contains("4 instances are all that the budget allows"), "{error}");
    drop(held.remove(1));
    // The idle one made room, for the start that was still wanted or for this claim.
    let lease = claim(&pool, keys[4], SECOND).await.unwrap();
    assert_eq!(runtime.live().len(), 4);
    assert_eq!(pool.instances(keys[1]).len(), 0);
    drop(lease);
    // An idle one that sits there makes room too.
    drop(claim(&pool, keys[5], SECOND).await.unwrap());
    assert!(runtime.live().len() <= 4);
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_panics_fails_the_start_and_nothing_else() {
    #[derive(Debug)]
    struct Panics;
    #[async_trait::async_trait]
    impl sas_core::Runtime for Panics {
        fn name(&self) -> &'static str {
            "panics"
        }
        fn capabilities(&self) -> sas_core::Capabilities {
            sas_core::Capabilities::new(sas_core::Isolation::None)
        }
        async fn prepare(&self, _: &sas_core::RevisionSpec) -> sas_core::Result<sas_core::Artifact> {
            unreachable!("not prepared here")
        }
        async fn start(&self, _: sas_core::StartRequest) -> sas_core::Result<Arc<dyn sas_core::Instance>> {
            tokio::time::sleep(MS).await;
            panic!("a defect of the backend");
        }
        async fn quiesce(&self) {}
    }
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let mut broken = (*deployed(&runtime, "a", |_| {})).clone();
    broken.runtime = Arc::new(Panics);
    let key = pool.register(Arc::new(broken)).unwrap();
    let error = claim(&pool, key, SECOND).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_and_inputs_give_the_same_history() {
    async fn run() -> Vec<(u64, u128)> {
        let runtime = FakeRuntime::new(Start::After(7 * MS));
        let pool = InstancePool::new(PoolConfig::seeded(42));
        let begin = Instant::now();
        let keys: Vec<_> = (0..40)
            .map(|n| {
                pool.register(deployed_of(&runtime, &format!("r{n}"), TenantKey(n % 5), None, |spec| {
                    spec.concurrency = n % 4;
                }))
                .unwrap()
            })
            .collect();
        let mut claims = tokio::task::JoinSet::new();
        for n in 0..800u32 {
            let (pool, key) = (Arc::clone(&pool), keys[(n * 7 % 40) as usize]);
            claims.spawn(async move {
                tokio::time::sleep(MS * (n % 97)).await;
                let lease = claim(&pool, key, SECOND).await.unwrap();
                let id = lease.instance.id().0;
                tokio::time::sleep(MS * (n % 13)).await;
                drop(lease);
                if n % 50 == 0 {
                    pool.set_desired(key, n % 3);
                }
                (id, begin.elapsed().as_nanos())
            });
        }
        claims.join_all().await
    }
    assert_eq!(run().await, run().await);
}
