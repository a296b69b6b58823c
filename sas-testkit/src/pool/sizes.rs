//! How many instances there are, and which of them go.

use std::time::Duration;

use sas_core::{Claim, Load, RevisionKey, TenantKey, Usage};

use super::kit::{Kit, done};
use crate::check::{Stop, Verdict, ensure};

pub(super) async fn single_flight(kit: &Kit) -> Verdict {
    for concurrency in [0, 1000] {
        let before = kit.runtime.started();
        let revision = kit.revision(concurrency).await?;
        kit.runtime.set_start_time(Duration::from_millis(500));
        let leases = kit.claims(revision, 1000).await?;
        let started = kit.runtime.started() - before;
        ensure!(started == 1, "concurrency {concurrency}: {started} instances were started");
        ensure!(
            kit.status(revision)?.in_flight == 1000,
            "1,000 are out, the status says {:?}",
            kit.status(revision)?
        );
        leases.into_iter().for_each(done);
        kit.at_rest(revision).await?;
        kit.idle_for(Duration::from_secs(2)).await;
        let started = kit.runtime.started() - before;
        ensure!(started == 1, "concurrency {concurrency}: {started} instances were started in the end");
    }
    Ok(())
}

pub(super) async fn exact_flight(kit: &Kit) -> Verdict {
    let revision = kit.revision(10).await?;
    kit.runtime.set_start_time(Duration::from_millis(500));
    let leases = kit.claims(revision, 100).await?;
    kit.idle_for(Duration::from_secs(2)).await;
    ensure!(kit.runtime.started() == 10, "{} instances were started", kit.runtime.started());
    drop(leases);
    Ok(())
}

pub(super) async fn max_holds(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.scaling.max = 2;
    let revision = kit.register(spec).await?;
    kit.runtime.set_start_time(Duration::from_millis(100));
    kit.pool.set_desired(revision, 9);
    let calls = (0..12).map(|_| async {
        let lease = kit.claim(revision).await?;
        let size = kit.pool.instances(revision).len();
        ensure!(size <= 2, "max is 2, there are {size} instances");
        kit.idle_for(Duration::from_millis(50)).await;
        done(lease);
        Ok(())
    });
    futures_util::future::join_all(calls).await.into_iter().collect::<Verdict<Vec<()>>>()?;
    ensure!(kit.runtime.started() == 2, "max is 2, {} instances were started", kit.runtime.started());
    Ok(())
}

pub(super) async fn wishes(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    for desired in [3, 5, 1, 4, 0, 2] {
        kit.pool.set_desired(revision, desired);
        kit.comes_to(revision, desired as usize).await?;
        kit.runtime_has(desired as usize).await?;
        let told = kit.status(revision)?.desired;
        ensure!(told == desired, "the status says that {told} are wanted, not {desired}");
    }
    Ok(())
}

pub(super) async fn wishes_together(kit: &Kit) -> Verdict {
    let mut wishes = Vec::new();
    for number in 0..24 {
        wishes.push((kit.revision(1).await?, number % 3));
    }
    let gone = kit.revision(1).await?;
    kit.pool.unregister(gone);
    let twice = wishes[5].0;
    wishes.insert(0, (gone, 4));
    wishes.insert(3, (twice, 9));
    kit.pool.set_desired_all(&wishes);
    let all: u32 = (0..24).map(|number| number % 3).sum();
    for (revision, desired) in wishes {
        // Of two for one revision the later one counts.
        let desired = if revision == twice { 2 } else { desired };
        if revision == gone {
            ensure!(kit.pool.instances(gone).is_empty(), "a revision that is gone has instances again");
            continue;
        }
        kit.comes_to(revision, desired as usize).await?;
        let told = kit.status(revision)?.desired;
        ensure!(told == desired, "the status says that {told} are wanted, not {desired}");
    }
    kit.runtime_has(all as usize).await
}

pub(super) async fn bounds(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.scaling.min = 1;
    spec.scaling.max = 3;
    let revision = kit.register(spec).await?;
    for (desired, instances) in [(10, 3), (2, 2), (0, 1), (u32::MAX, 3)] {
        kit.pool.set_desired(revision, desired);
        kit.comes_to(revision, instances).await?;
    }
    Ok(())
}

pub(super) async fn demand_floor(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 1);
    kit.comes_to(revision, 1).await?;
    let calls = futures_util::future::join_all((0..9).map(|_| async {
        let lease = kit.claim_within(revision, Duration::from_secs(5)).await?;
        let lease = lease.map_err(|error| Stop::fail(format!("one of nine at once got: {error}")))?;
        kit.idle_for(Duration::from_secs(1)).await;
        done(lease);
        Ok::<(), Stop>(())
    }));
    let wish_less = async {
        for _ in 0..50 {
            kit.pool.set_desired(revision, 1);
            kit.idle_for(Duration::from_millis(1)).await;
        }
        // One took the instance that was there, eight wait.
        let started = kit.runtime.started();
        ensure!(started >= 8, "eight waited at concurrency 1, and {started} instances were started in all");
        Ok(())
    };
    let (served, wished) = tokio::join!(calls, wish_less);
    wished?;
    served.into_iter().collect::<Verdict<Vec<()>>>().map(drop)
}

pub(super) async fn minimum(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.scaling.min = 2;
    let revision = kit.register(spec).await?;
    kit.comes_to(revision, 2).await?;
    kit.pool.unregister(revision);
    kit.runtime_has(0).await
}

pub(super) async fn idle_first(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 5);
    kit.comes_to(revision, 5).await?;
    let busy = kit.claims(revision, 2).await?;
    kit.pool.set_desired(revision, 2);
    kit.comes_to(revision, 2).await?;
    for lease in &busy {
        let id = lease.instance.id();
        ensure!(kit.ready(revision).contains(&id), "busy {id} was taken though idle ones were there");
    }
    busy.into_iter().for_each(done);
    Ok(())
}

pub(super) async fn after_drain(kit: &Kit) -> Verdict {
    let revision = kit.revision(2).await?;
    let leases = kit.claims(revision, 2).await?;
    kit.pool.set_desired(revision, 0);
    kit.idle_for(Duration::from_secs(2)).await;
    for lease in &leases {
        let id = lease.instance.id();
        ensure!(kit.runtime.live().contains(&id), "{id} was stopped with leases out");
    }
    leases.into_iter().for_each(done);
    kit.runtime_has(0).await
}

pub(super) async fn to_zero(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    for round in 1..=3 {
        let lease = kit.claim(revision).await?;
        done(lease);
        kit.pool.set_desired(revision, 0);
        kit.comes_to(revision, 0).await?;
        kit.runtime_has(0).await?;
        ensure!(kit.runtime.started() == round, "round {round}: {} were started", kit.runtime.started());
    }
    Ok(())
}

fn loads(kit: &Kit) -> Vec<Load> {
    let mut loads = Vec::new();
    for shard in 0..kit.pool.shards() {
        kit.pool.take_load(shard, &mut |load, _| loads.push(*load));
    }
    loads
}

fn load_of(kit: &Kit, revision: RevisionKey) -> Option<Load> {
    loads(kit).into_iter().find(|load| load.revision == revision)
}

pub(super) async fn load(kit: &Kit) -> Verdict {
    ensure!(kit.pool.shards() > 0, "a pool of no shards");
    let asleep = kit.revision(1).await?;
    let mut spec = kit.spec(1);
    spec.scaling.max = 2;
    let revision = kit.register(spec).await?;
    loads(kit);
    let leases = kit.claims(revision, 2).await?;
    let waiting = kit.pool.claim(&Claim::new(revision, TenantKey(1)), &kit.cx(Duration::from_secs(90)));
    let mut waiting = Box::pin(waiting);
    let early = futures_util::poll!(&mut waiting);
    ensure!(early.is_pending(), "a third claim of two times one was answered: {early:?}");
    loads(kit);
    kit.idle_for(Duration::from_secs(10)).await;
    let Some(busy) = load_of(kit, revision) else {
        return Err(Stop::fail("a revision with leases out tells no load"));
    };
    ensure!(busy.ready == 2 && busy.queued == 1, "two are ready and one waits, the load is {busy:?}");
    ensure!(
        (busy.concurrency - 3.0).abs() < 0.05,
        "two ran and one waited for 10 s, the mean concurrency is {}",
        busy.concurrency
    );
    ensure!(busy.requests == 0, "{} requests arrived since the last visit", busy.requests);
    leases.into_iter().for_each(done);
    let third = waiting.await.map_err(|error| Stop::fail(format!("the one who waited got {error}")))?;
    done(third);
    for _ in 0..5 {
        done(kit.claim(revision).await?);
    }
    let Some(after) = load_of(kit, revision) else {
        return Err(Stop::fail("a revision with instances tells no load"));
    };
    ensure!(after.requests == 5, "five requests arrived, the load says {}", after.requests);
    // A test run counts for nothing.
    let mut test = Claim::new(revision, TenantKey(1));
    test.metered = false;
    for _ in 0..3 {
        drop(kit.pool.try_claim(&test));
    }
    let counted = load_of(kit, revision).map(|load| load.requests);
    ensure!(counted == Some(0), "claims that do not count were counted: {counted:?}");
    ensure!(load_of(kit, asleep).is_none(), "a sleeping revision tells a load");
    kit.pool.set_desired(revision, 0);
    kit.comes_to(revision, 0).await?;
    let visits = (0..3).filter(|_| load_of(kit, revision).is_some()).count();
    ensure!(visits <= 1, "a revision without instances was visited {visits} times more");
    Ok(())
}

pub(super) async fn lying_usage(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 2);
    kit.comes_to(revision, 2).await?;
    let lies = [(0, 0), (u64::MAX, u64::MAX), (5, 1 << 60), (0, u64::MAX), (u64::MAX / 2, 0), (u64::MAX, 1)];
    for (cpu_ns, memory_bytes) in lies {
        kit.runtime.set_usage(Some(Usage::new(cpu_ns, memory_bytes)));
        for _ in 0..3 {
            done(kit.claim(revision).await?);
            kit.idle_for(Duration::from_secs(1)).await;
            for load in loads(kit) {
                let sound = |value: Option<f64>| value.is_none_or(|value| value.is_finite() && value >= 0.0);
                ensure!(
                    sound(load.cpu) && sound(load.memory) && load.concurrency.is_finite(),
                    "instances that say they used {cpu_ns} ns and {memory_bytes} bytes make {load:?}"
                );
            }
        }
    }
    kit.runtime.set_usage(None);
    kit.comes_to(revision, 2).await
}
