//! What breaks, and what is left then.

use std::time::Duration;

use sas_core::{Claim, ClaimError, Error, ErrorKind, Outcome, TenantKey};
use tokio::time::Instant;

use super::kit::{Kit, done, ensure_live, is_start_error};
use crate::check::{Stop, Verdict, drop_after_polls, ensure, eventually, within};

fn broken() -> Error {
    Error::new(ErrorKind::Crashed, "start", "conformance: made to fail")
}

pub(super) async fn failed_start(kit: &Kit) -> Verdict {
    let revision = kit.revision(10).await?;
    kit.runtime.set_start_time(Duration::from_millis(100));
    for _ in 0..50 {
        kit.runtime.fail_next_start(broken());
    }
    let before = Instant::now();
    let claims = (0..5).map(|_| kit.claim_within(revision, Duration::from_secs(300)));
    for outcome in futures_util::future::join_all(claims).await {
        let outcome = outcome?;
        is_start_error(&outcome)?;
        if let Err(ClaimError::Start { error, .. }) = outcome {
            ensure!(error.to_string().contains("made to fail"), "the error is {error}, not the start's own");
        }
    }
    let took = before.elapsed();
    ensure!(took < Duration::from_secs(60) + kit.settle, "those who waited hung for {took:?}");
    let status = kit.status(revision)?;
    ensure!(
        status.failed_starts > 0 && status.last_start_error.is_some(),
        "the status knows nothing: {status:?}"
    );
    Ok(())
}

pub(super) async fn recovers(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    for _ in 0..1000 {
        kit.runtime.fail_next_start(broken());
    }
    for _ in 0..3 {
        is_start_error(&kit.claim_within(revision, Duration::from_secs(120)).await?)?;
    }
    // Shut: the next one is told at once, and nothing is tried for it.
    let before = Instant::now();
    let outcome = kit.claim_within(revision, Duration::from_secs(120)).await?;
    is_start_error(&outcome)?;
    ensure!(
        outcome.as_ref().err().and_then(ClaimError::retry_after).is_some(),
        "a claim that fails fast is not told when to come back"
    );
    ensure!(before.elapsed() <= kit.settle, "failing fast took {:?}", before.elapsed());
    // The scripted failures run out: from now on starts succeed.
    kit.runtime.forget_script();
    kit.idle_for(kit.settle + Duration::from_secs(1)).await;
    let lease = kit.claim(revision).await?;
    done(lease);
    let status = kit.status(revision)?;
    ensure!(
        status.failed_starts == 0 && status.last_start_error.is_none(),
        "after a start that succeeded the status still says {status:?}"
    );
    Ok(())
}

pub(super) async fn hung_start(kit: &Kit) -> Verdict {
    let mut spec = kit.spec(1);
    spec.timeouts.start = Duration::from_secs(5);
    spec.scaling.max = 1;
    let revision = kit.register(spec).await?;
    kit.runtime.hang_next_start();
    let outcome = kit.claim_within(revision, Duration::from_secs(300)).await?;
    // Either the one who waited is told, or the pool tried again for it.
    if let Err(error) = outcome {
        ensure!(matches!(error, ClaimError::Start { .. }), "a start that hangs is told as {error:?}");
        kit.idle_for(kit.settle + Duration::from_secs(1)).await;
        done(kit.claim(revision).await?);
    }
    ensure!(kit.runtime.starting() == 0, "{} starts still hang", kit.runtime.starting());
    Ok(())
}

pub(super) async fn dead(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 3);
    kit.comes_to(revision, 3).await?;
    for round in 0..5 {
        let victim = kit.ready(revision)[0];
        kit.runtime.kill(victim);
        // From the moment the exit was told nobody gets it.
        for _ in 0..3 {
            if let Some(lease) = kit.pool.try_claim(&Claim::new(revision, TenantKey(1))) {
                ensure_live(kit, &lease)?;
                done(lease);
            }
        }
        kit.comes_to(revision, 3).await?;
        ensure!(!kit.ready(revision).contains(&victim), "round {round}: the dead {victim} is still there");
    }
    // One that dies with a lease out is gone, too, and its lease may come back late.
    let mut lease = kit.claim(revision).await?;
    let victim = lease.instance.id();
    kit.runtime.kill(victim);
    kit.comes_to(revision, 3).await?;
    lease.outcome = Outcome::Lost;
    drop(lease);
    kit.at_rest(revision).await?;
    kit.comes_to(revision, 3).await
}

pub(super) async fn dies_early(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 1);
    kit.comes_to(revision, 1).await?;
    let victim = kit.ready(revision)[0];
    kit.runtime.kill(victim);
    let lease = kit.claim(revision).await?;
    ensure!(lease.instance.id() != victim, "the dead instance was given out");
    ensure_live(kit, &lease)
}

pub(super) async fn exit_twice(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.runtime.tell_exits_twice();
    kit.pool.set_desired(revision, 4);
    kit.comes_to(revision, 4).await?;
    for round in 0..4 {
        let victim = kit.ready(revision)[round % 4];
        kit.runtime.kill(victim);
        kit.comes_to(revision, 4).await?;
        kit.runtime_has(4).await?;
        let started = kit.runtime.started();
        ensure!(
            started == 5 + round as u64,
            "{} died, and {started} were started for a size of four",
            round + 1
        );
    }
    kit.pool.set_desired(revision, 0);
    kit.comes_to(revision, 0).await?;
    kit.runtime_has(0).await
}

pub(super) async fn clock_jumps(kit: &Kit) -> Verdict {
    let Some(clock) = &kit.clock else {
        return Err(Stop::Skip("the pool has no wall clock that the suite may set".into()));
    };
    let revision = kit.revision(1).await?;
    let day = Duration::from_secs(86_400);
    for ahead in [true, false, true] {
        kit.runtime.set_start_time(Duration::from_secs(1));
        let waiting = kit.claim(revision);
        let jump = async {
            kit.idle_for(Duration::from_millis(500)).await;
            if ahead {
                clock.jump_forward(day * 400);
            } else {
                clock.jump_back(day * 800);
            }
        };
        let (lease, ()) = tokio::join!(waiting, jump);
        done(lease?);
        let Some(warm) = kit.pool.try_claim(&Claim::new(revision, TenantKey(1))) else {
            return Err(Stop::fail("after a jump of the clock the free instance is not given out"));
        };
        done(warm);
        for shard in 0..kit.pool.shards() {
            kit.pool.take_load(shard, &mut |_, _| {});
        }
        kit.pool.set_desired(revision, 0);
        kit.comes_to(revision, 0).await?;
        kit.runtime_has(0).await?;
    }
    Ok(())
}

pub(super) async fn recycle(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 2);
    kit.comes_to(revision, 2).await?;
    let lease = kit.claim(revision).await?;
    let id = lease.instance.id();
    ensure!(kit.pool.recycle(revision, id, Duration::from_secs(30)), "there is no such instance, it says");
    ensure!(
        !kit.pool.recycle(revision, sas_core::InstanceId(u64::MAX), Duration::ZERO),
        "an instance that never was is recycled, it says"
    );
    kit.idle_for(Duration::from_secs(1)).await;
    ensure!(kit.runtime.live().contains(&id), "it was stopped with a lease out, within its grace");
    for _ in 0..4 {
        if let Some(other) = kit.pool.try_claim(&Claim::new(revision, TenantKey(1))) {
            ensure!(other.instance.id() != id, "it is still given out");
            done(other);
        }
    }
    done(lease);
    eventually(Duration::from_secs(60), "the end of the recycled instance", || {
        !kit.runtime.live().contains(&id)
    })
    .await?;
    kit.comes_to(revision, 2).await
}

pub(super) async fn shutdown(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 3);
    kit.comes_to(revision, 3).await?;
    let lease = kit.claim(revision).await?;
    let id = lease.instance.id();
    let ended = async {
        let deadline = Instant::now() + Duration::from_secs(30);
        within(Duration::from_secs(60), "the shutdown", kit.pool.shutdown(deadline)).await
    };
    let running = async {
        kit.idle_for(Duration::from_secs(2)).await;
        ensure!(
            kit.runtime.live().contains(&id),
            "an instance with a lease out was stopped before the deadline"
        );
        let outcome = kit.claim_within(revision, Duration::from_secs(5)).await?;
        ensure!(matches!(outcome, Err(ClaimError::Closed)), "while it shuts down a claim got {outcome:?}");
        done(lease);
        Ok(())
    };
    let (ended, ran) = tokio::join!(ended, running);
    ran?;
    ended?;
    ensure!(kit.runtime.live().is_empty(), "after the shutdown there are {:?}", kit.runtime.live());
    ensure!(kit.runtime.starting() == 0, "after the shutdown {} starts go on", kit.runtime.starting());
    within(Duration::from_secs(10), "the second shutdown", kit.pool.shutdown(Instant::now())).await?;
    ensure!(kit.pool.try_claim(&Claim::new(revision, TenantKey(1))).is_none(), "a lease after the shutdown");
    Ok(())
}

pub(super) async fn closed(kit: &Kit) -> Verdict {
    let deployed = kit.deployed(kit.spec(1)).await?;
    within(Duration::from_secs(60), "the shutdown", kit.pool.shutdown(Instant::now())).await?;
    match kit.pool.register(deployed) {
        Ok(_) => Err(Stop::fail("a pool that was shut down took a revision in")),
        Err(error) => {
            ensure!(error.kind == ErrorKind::Unavailable, "the kind is {:?}, not Unavailable", error.kind);
            Ok(())
        }
    }
}

pub(super) async fn shutdown_dropped(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    let lease = kit.claim(revision).await?;
    let deadline = Instant::now() + Duration::from_secs(30);
    for polls in 0..4 {
        let ended = drop_after_polls(polls, kit.pool.shutdown(deadline)).await;
        ensure!(ended.is_none(), "the shutdown was over while a lease was out");
    }
    done(lease);
    within(Duration::from_secs(60), "the shutdown", kit.pool.shutdown(deadline)).await?;
    ensure!(kit.runtime.live().is_empty(), "after the shutdown there are {:?}", kit.runtime.live());
    ensure!(kit.runtime.starting() == 0, "after the shutdown {} starts go on", kit.runtime.starting());
    Ok(())
}

pub(super) async fn shutdown_deadline(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    let lease = kit.claim(revision).await?;
    let before = Instant::now();
    let deadline = before + Duration::from_secs(3);
    within(Duration::from_secs(60), "the shutdown", kit.pool.shutdown(deadline)).await?;
    let took = before.elapsed();
    ensure!(took >= Duration::from_secs(3), "it did not wait for the lease: {took:?}");
    ensure!(took <= Duration::from_secs(15), "the deadline was 3 s, it took {took:?}");
    ensure!(kit.runtime.live().is_empty(), "after the shutdown there are {:?}", kit.runtime.live());
    drop(lease);
    Ok(())
}

pub(super) async fn shutdown_waiting(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.runtime.set_start_time(Duration::from_secs(20));
    let waiting = kit.claim_within(revision, Duration::from_secs(120));
    let shutdown = async {
        kit.idle_for(Duration::from_secs(1)).await;
        let deadline = Instant::now() + Duration::from_secs(2);
        within(Duration::from_secs(60), "the shutdown", kit.pool.shutdown(deadline)).await
    };
    let (outcome, ended) = tokio::join!(waiting, shutdown);
    ended?;
    match outcome? {
        Err(ClaimError::Closed) => {}
        other => return Err(Stop::fail(format!("one who waited got {other:?}, not that it shuts down"))),
    }
    ensure!(kit.runtime.starting() == 0, "a start goes on after the shutdown");
    ensure!(kit.runtime.live().is_empty(), "after the shutdown there are {:?}", kit.runtime.live());
    Ok(())
}
