//! The pool and its keep-alive policy, over time.

use std::sync::Arc;

use sas_core::{KeepAlive, KeepAlivePolicy, Pool, RevisionKey, Timestamp, TokioClock};
use sas_pool::{
    InstancePool, PoolConfig,
    config::IdleRule,
    keep_alive::{Fixed, GreedyDual, Hazard},
};

use crate::fake::{FakeRuntime, MS, SECOND, Start, claim, deployed};

/// Keeps for 10 s, then for 10 s more, then wakes after 30 s for 5 s, then sleeps for good.
#[derive(Debug, Default)]
struct InTurn {
    asked: u32,
}

impl KeepAlivePolicy for InTurn {
    fn called(&mut self, _: RevisionKey, _: Timestamp) {
        self.asked = 0;
    }
    fn idle(&mut self, _: RevisionKey, now: Timestamp) -> KeepAlive {
        KeepAlive::until(now + 10 * SECOND)
    }
    fn unused(&mut self, _: RevisionKey, now: Timestamp) -> KeepAlive {
        self.asked += 1;
        match self.asked {
            1 => KeepAlive::until(now + 10 * SECOND),
            2 => KeepAlive::with_wake(now, now + 30 * SECOND, now + 35 * SECOND),
            _ => KeepAlive::until(now),
        }
    }
    fn forget(&mut self, _: RevisionKey) {}
    fn bytes(&self) -> usize {
        0
    }
}

fn pool(policy: impl KeepAlivePolicy) -> Arc<InstancePool> {
    let mut config = PoolConfig::default();
    config.idle = IdleRule::policy(policy);
    config.clock = Arc::new(TokioClock::starting_at(Timestamp::from_secs(6_000)));
    InstancePool::new(config)
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_ends_without_a_call_is_renewed() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = pool(InTurn::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    drop(claim(&pool, key, SECOND).await.unwrap());
    let seen = async |seconds: u32| {
        tokio::time::sleep(seconds * SECOND).await;
        (runtime.started(), runtime.stopped())
    };
    let plan = || {
        let status = pool.status(key).unwrap();
        (status.sleeps_at.map(Timestamp::as_secs), status.wakes_at.map(Timestamp::as_secs))
    };
    assert_eq!(plan(), (Some(6_010), None));
    assert_eq!(seen(15).await, (1, 0), "kept on after ten seconds");
    assert_eq!(plan(), (Some(6_020), None));
    assert_eq!(seen(10).await, (1, 1), "asleep after twenty");
    assert_eq!(plan(), (None, Some(6_050)));
    assert_eq!(seen(27).await, (2, 1), "woken thirty seconds later");
    assert_eq!(plan(), (Some(6_055), None));
    assert_eq!(seen(10).await, (2, 2), "and asleep when nobody came");
    assert_eq!(seen(600).await, (2, 2), "for good");
}

#[tokio::test(start_paused = true)]
async fn a_timer_finds_its_revision_warm_and_lets_it_sleep_between() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = pool(Hazard::default());
    let key = pool.register(deployed(&runtime, "timer", |_| {})).unwrap();
    let mut cold = Vec::new();
    for _ in 0..24 {
        let lease = claim(&pool, key, SECOND).await.unwrap();
        cold.push(lease.start.is_some());
        drop(lease);
        tokio::time::sleep(1_800 * SECOND).await;
    }
    let found_cold = cold.iter().filter(|&&cold| cold).count();
    assert!(found_cold <= 4, "{cold:?}");
    assert!(runtime.stopped() >= 15, "it slept {} times between 24 calls", runtime.stopped());
}

/// A pool with room for two, in which a slow starter and a fast one idle, the slow one for longer; which of them is
/// left when a third one comes.
async fn left_when_room_is_short(policy: impl KeepAlivePolicy) -> [usize; 2] {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let mut config = PoolConfig::default();
    config.idle = IdleRule::policy(policy);
    config.clock = Arc::new(TokioClock::starting_at(Timestamp::from_secs(6_000)));
    config.budget.instances = 2;
    config.budget.reserve = 0.0;
    let pool = InstancePool::new(config);
    // Two thirds of the keys lie in other shards: what goes first does not hang on where it lies.
    let keys: Vec<_> =
        (0..3).map(|n| pool.register(deployed(&runtime, &format!("r{n}"), |_| {})).unwrap()).collect();
    for (key, start) in [(keys[0], 900 * MS), (keys[1], 100 * MS)] {
        runtime.script.lock().unwrap().push_back(Start::After(start));
        drop(claim(&pool, key, SECOND).await.unwrap());
        tokio::time::sleep(SECOND).await;
    }
    drop(claim(&pool, keys[2], SECOND).await.unwrap());
    [keys[0], keys[1]].map(|key| pool.instances(key).len())
}

#[tokio::test(start_paused = true)]
async fn when_memory_is_short_the_policy_says_what_goes_first() {
    let fixed = || Fixed::new(600 * SECOND);
    assert_eq!(left_when_room_is_short(fixed()).await, [0, 1], "what was idle longest");
    assert_eq!(left_when_room_is_short(GreedyDual::new(0)).await, [1, 0], "what starts fast");
    assert_eq!(left_when_room_is_short(GreedyDual::new(0).with(fixed())).await, [1, 0]);
}
