//! Leases, the queue, and who gets what.

use std::time::Duration;

use sas_core::{Claim, ClaimError, TenantKey};
use tokio::time::Instant;

use super::kit::{Kit, done};
use crate::check::{Stop, Verdict, drop_after_polls, ensure, eventually};

const TENANT: TenantKey = TenantKey(1);

pub(super) async fn asleep(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.idle_for(Duration::from_secs(5)).await;
    let status = kit.status(revision)?;
    ensure!(
        (status.ready, status.starting, status.queued, status.in_flight) == (0, 0, 0, 0),
        "a revision that nobody called has {status:?}"
    );
    ensure!(kit.pool.instances(revision).is_empty(), "it has instances");
    ensure!(kit.runtime.started() == 0, "{} instances were started", kit.runtime.started());
    ensure!(
        kit.pool.deployed(revision).is_some_and(|deployed| deployed.spec.concurrency == 1),
        "it is not there"
    );
    Ok(())
}

pub(super) async fn try_never_starts(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    for _ in 0..10 {
        ensure!(kit.pool.try_claim(&Claim::new(revision, TENANT)).is_none(), "a lease of nothing");
    }
    kit.idle_for(Duration::from_secs(5)).await;
    ensure!(kit.runtime.started() == 0, "{} instances were started", kit.runtime.started());
    Ok(())
}

pub(super) async fn cold(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.runtime.set_start_time(Duration::from_millis(1500));
    let before = Instant::now();
    let lease = kit.claim(revision).await?;
    let took = before.elapsed();
    ensure!(took >= Duration::from_millis(1500), "a start of 1.5 s was over after {took:?}");
    let Some(start) = &lease.start else {
        return Err(Stop::fail("a claim that waited for a start says nothing of it"));
    };
    ensure!(
        start.ready >= Duration::from_millis(1500) && start.ready <= took + Duration::from_millis(100),
        "a start of 1.5 s, waited for {took:?}, is told as {:?}",
        start.ready
    );
    let status = kit.status(revision)?;
    ensure!(status.in_flight == 1 && status.ready == 1, "with a lease out the status is {status:?}");
    done(lease);
    ensure!(kit.status(revision)?.in_flight == 0, "a lease that came back is still out");
    Ok(())
}

pub(super) async fn warm(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    let first = kit.claim(revision).await?;
    let id = first.instance.id();
    done(first);
    let Some(second) = kit.pool.try_claim(&Claim::new(revision, TENANT)) else {
        return Err(Stop::fail("the one instance is free, and try_claim gives no lease"));
    };
    ensure!(second.instance.id() == id, "another instance than the only one");
    ensure!(second.start.is_none(), "a warm claim says that it waited for a start");
    done(second);
    let third = kit.claim(revision).await?;
    ensure!(third.start.is_none(), "a claim that found a free instance says that it waited for a start");
    ensure!(kit.runtime.started() == 1, "{} instances were started", kit.runtime.started());
    Ok(())
}

pub(super) async fn limit(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(3);
    spec.scaling.max = 2;
    let revision = kit.register(spec).await?;
    let leases = kit.claims(revision, 6).await?;
    for view in kit.pool.instances(revision) {
        let out = leases.iter().filter(|lease| lease.instance.id() == view.id).count();
        ensure!(out == 3, "instance {} has {out} leases out; its limit is 3 and 6 are out on two", view.id);
        ensure!(view.in_flight == 3 && view.limit == 3, "the view says {view:?}");
    }
    ensure!(
        kit.pool.try_claim(&Claim::new(revision, TENANT)).is_none(),
        "a seventh lease of two times three"
    );
    let late = kit.claim_within(revision, Duration::from_secs(1)).await?;
    ensure!(late.is_err(), "a seventh claim got a lease of two times three");
    Ok(())
}

pub(super) async fn in_line(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.scaling.max = 1;
    let revision = kit.register(spec).await?;
    let held = kit.claim(revision).await?;
    let order = parking_lot::Mutex::new(Vec::new());
    let waiting = (0..5).map(|place| {
        let order = &order;
        async move {
            // One after another, so that their places are known.
            kit.idle_for(Duration::from_millis(10 * (place + 1))).await;
            let lease = kit.claim(revision).await?;
            order.lock().push(place);
            kit.idle_for(Duration::from_millis(100)).await;
            done(lease);
            Ok::<(), Stop>(())
        }
    });
    let release = async {
        kit.idle_for(Duration::from_millis(200)).await;
        ensure!(
            kit.status(revision)?.queued == 5,
            "five wait, the status says {}",
            kit.status(revision)?.queued
        );
        done(held);
        Ok(())
    };
    let (served, released) = tokio::join!(futures_util::future::join_all(waiting), release);
    released?;
    served.into_iter().collect::<Verdict<Vec<()>>>()?;
    let order = order.into_inner();
    ensure!(order == [0, 1, 2, 3, 4], "served in the order {order:?}");
    kit.at_rest(revision).await
}

pub(super) async fn dropped(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.runtime.set_start_time(Duration::from_secs(2));
    let claim = Claim::new(revision, TENANT);
    {
        let waiting = kit.pool.claim(&claim, &kit.cx(Duration::from_secs(60)));
        let impatient = tokio::time::timeout(Duration::from_secs(1), waiting).await;
        ensure!(impatient.is_err(), "a start of 2 s was over after 1 s");
    }
    ensure!(kit.status(revision)?.queued == 0, "a dropped claim still waits");
    // Whoever comes next finds the start half done.
    let before = Instant::now();
    let lease = kit.claim(revision).await?;
    let took = before.elapsed();
    ensure!(
        took <= Duration::from_millis(1200),
        "the start was begun anew: the next claim waited for {took:?}"
    );
    ensure!(kit.runtime.started() == 1, "{} instances were started", kit.runtime.started());
    done(lease);
    kit.at_rest(revision).await
}

pub(super) async fn dropped_anywhere(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.scaling.max = 1;
    let revision = kit.register(spec).await?;
    kit.runtime.set_start_time(Duration::from_millis(3));
    for polls in 0..12 {
        let claim = Claim::new(revision, TENANT);
        let held = (polls % 2 == 1).then(|| kit.pool.try_claim(&claim)).flatten();
        let ended = drop_after_polls(polls, kit.pool.claim(&claim, &kit.cx(Duration::from_secs(60)))).await;
        drop((held, ended));
        kit.at_rest(revision).await?;
    }
    let lease = kit.claim(revision).await?;
    done(lease);
    kit.at_rest(revision).await
}

pub(super) async fn deadline(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.runtime.set_start_time(Duration::from_secs(20));
    let before = Instant::now();
    let outcome = kit.claim_within(revision, Duration::from_secs(2)).await?;
    let took = before.elapsed();
    ensure!(matches!(outcome, Err(ClaimError::Deadline)), "at its deadline a claim got {outcome:?}");
    ensure!(took >= Duration::from_secs(2), "answered after {took:?}; the deadline was 2 s");
    ensure!(took <= Duration::from_millis(2200), "answered after {took:?}; the deadline was 2 s");
    ensure!(kit.status(revision)?.queued == 0, "it still waits");
    let past = kit.claim_within(revision, Duration::ZERO).await?;
    ensure!(past.is_err(), "a claim whose deadline has passed got a lease of an instance that is not there");
    Ok(())
}

pub(super) async fn full_queue(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.queue_limit = 3;
    spec.scaling.max = 1;
    let revision = kit.register(spec).await?;
    let held = kit.claim(revision).await?;
    let waiting: Vec<_> = (0..3)
        .map(|_| kit.pool.claim(&Claim::new(revision, TENANT), &kit.cx(Duration::from_secs(60))))
        .collect();
    let mut waiting = waiting;
    for wait in &mut waiting {
        let early = drop_after_polls(1, &mut *wait).await;
        ensure!(early.is_none(), "a claim was answered while the one slot is taken: {early:?}");
    }
    let before = Instant::now();
    match kit.claim_within(revision, Duration::from_secs(60)).await? {
        Err(error @ ClaimError::QueueFull { .. }) => {
            ensure!(
                error.retry_after().is_some_and(|after| !after.is_zero()),
                "it does not say when to come back"
            );
        }
        other => return Err(Stop::fail(format!("a fourth in a queue of three got {other:?}"))),
    }
    ensure!(before.elapsed() < Duration::from_millis(100), "the refusal took {:?}", before.elapsed());
    // A place that is given up is free again.
    drop(waiting.pop());
    let mut again = kit.pool.claim(&Claim::new(revision, TENANT), &kit.cx(Duration::from_secs(60)));
    let early = drop_after_polls(1, &mut again).await;
    ensure!(early.is_none(), "a place was given up, but the next claim got {early:?}");
    done(held);
    for wait in waiting.into_iter().chain([again]) {
        let lease =
            wait.await.map_err(|error| Stop::fail(format!("one of those who waited got: {error}")))?;
        done(lease);
    }
    Ok(())
}

pub(super) async fn probe(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    let mut claim = Claim::new(revision, TENANT);
    claim.wakes = false;
    let outcome = kit.pool.claim(&claim, &kit.cx(Duration::from_secs(5))).await;
    ensure!(matches!(outcome, Err(ClaimError::Asleep)), "a probe of a sleeping revision got {outcome:?}");
    kit.idle_for(Duration::from_secs(5)).await;
    ensure!(kit.runtime.started() == 0, "a probe started {} instances", kit.runtime.started());
    done(kit.claim(revision).await?);
    let outcome = kit.pool.claim(&claim, &kit.cx(Duration::from_secs(5))).await;
    ensure!(outcome.is_ok(), "a probe of a revision that is awake got {outcome:?}");
    Ok(())
}

pub(super) async fn excluded(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    let leases = kit.claims(revision, 2).await?;
    let excluded = leases[0].instance.id();
    leases.into_iter().for_each(done);
    let mut claim = Claim::new(revision, TENANT);
    claim.exclude = Some(excluded);
    for _ in 0..10 {
        let outcome = kit.pool.claim(&claim, &kit.cx(Duration::from_secs(30))).await;
        let lease =
            outcome.map_err(|error| Stop::fail(format!("a claim that excludes one failed: {error}")))?;
        ensure!(
            lease.instance.id() != excluded,
            "the excluded instance was given out, though there is another"
        );
        done(lease);
    }
    Ok(())
}

pub(super) async fn threads(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(8);
    spec.scaling.max = 1;
    let revision = kit.register(spec).await?;
    let leases = kit.claims(revision, 8).await?;
    let threads: Vec<_> = leases.into_iter().map(|lease| std::thread::spawn(move || drop(lease))).collect();
    for thread in threads {
        thread.join().map_err(|_| Stop::fail("dropping a lease panicked"))?;
    }
    kit.at_rest(revision).await?;
    let again = kit.claims(revision, 8).await?;
    ensure!(kit.runtime.started() == 1, "slots were lost: {} instances were started", kit.runtime.started());
    drop(again);
    Ok(())
}

pub(super) async fn unregister(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.scaling.max = 1;
    let revision = kit.register(spec).await?;
    let held = kit.claim(revision).await?;
    let waiting = kit.claim_within(revision, Duration::from_secs(60));
    let forget = async {
        kit.idle_for(Duration::from_millis(50)).await;
        kit.pool.unregister(revision);
        kit.pool.unregister(revision);
    };
    let (outcome, ()) = tokio::join!(waiting, forget);
    let outcome = outcome?;
    ensure!(matches!(outcome, Err(ClaimError::Unknown)), "one who waited got {outcome:?}");
    ensure!(kit.pool.deployed(revision).is_none(), "it is still deployed");
    ensure!(kit.pool.status(revision).is_none(), "it still has a status");
    ensure!(kit.pool.try_claim(&Claim::new(revision, TENANT)).is_none(), "its slots are still given out");
    let late = kit.claim_within(revision, Duration::from_secs(5)).await?;
    ensure!(matches!(late, Err(ClaimError::Unknown)), "a late claim got {late:?}");
    kit.pool.set_desired(revision, 5);
    done(held);
    kit.runtime_has(0).await
}

pub(super) async fn keys_unique(kit: &Kit) -> Verdict {
    let mut seen = Vec::new();
    for round in 0..50 {
        let revision = kit.revision(1).await?;
        ensure!(!seen.contains(&revision), "round {round}: {revision:?} was another revision's key");
        seen.push(revision);
        if round % 3 != 0 {
            kit.pool.unregister(revision);
        }
    }
    for (round, revision) in seen.iter().enumerate() {
        let there = kit.pool.deployed(*revision).is_some();
        ensure!(there == (round % 3 == 0), "of round {round} deployed says {there}");
    }
    Ok(())
}

pub(super) async fn apart(kit: &Kit) -> Verdict {
    let (one, other) = (kit.revision(1).await?, kit.revision(1).await?);
    let lease = kit.claim(one).await?;
    done(lease);
    ensure!(
        kit.pool.try_claim(&Claim::new(other, TENANT)).is_none(),
        "the other revision's instance was given out"
    );
    let lease = kit.claim(other).await?;
    ensure!(!kit.ready(one).contains(&lease.instance.id()), "the other revision's instance was given out");
    eventually(Duration::from_secs(5), "two instances", || kit.runtime.live().len() == 2).await
}
