//! Instances that go once their leases are back.

use std::time::Duration;

use tokio::time::Instant;

use super::kit::{Kit, done};
use crate::check::{Stop, Verdict, drop_after_polls, ensure, eventually, within};

pub(super) async fn drain(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    kit.pool.set_desired(revision, 3);
    kit.comes_to(revision, 3).await?;
    let held = kit.claim(revision).await?;
    let drained = async {
        let limit = Duration::from_secs(60);
        within(limit, "the drain", kit.pool.drain(revision, Duration::from_secs(30))).await?;
        Ok::<_, Stop>(Instant::now())
    };
    let release = async {
        kit.idle_for(Duration::from_secs(2)).await;
        let now = Instant::now();
        done(held);
        now
    };
    let (drained, released) = tokio::join!(drained, release);
    ensure!(drained? >= released, "the drain was over while a lease was out");
    ensure!(kit.runtime.live().is_empty(), "after the drain there are {:?}", kit.runtime.live());
    done(kit.claim(revision).await?);
    Ok(())
}

pub(super) async fn grace(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    let held = kit.claim(revision).await?;
    let before = Instant::now();
    let limit = Duration::from_secs(60);
    within(limit, "the drain", kit.pool.drain(revision, Duration::from_secs(3))).await?;
    let took = before.elapsed();
    ensure!(took >= Duration::from_secs(3), "a lease was out, the grace 3 s, and it was over after {took:?}");
    // The runtime has its own grace for stopping.
    ensure!(took <= Duration::from_secs(15), "the grace was 3 s, it took {took:?}");
    ensure!(kit.runtime.live().is_empty(), "after the drain there are {:?}", kit.runtime.live());
    drop(held);
    kit.at_rest(revision).await?;
    done(kit.claim(revision).await?);
    Ok(())
}

pub(super) async fn dropped(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    for polls in 0..4 {
        let held = kit.claim(revision).await?;
        let ended = drop_after_polls(polls, kit.pool.drain(revision, Duration::from_secs(30))).await;
        ensure!(ended.is_none(), "a drain was over while a lease was out");
        done(held);
        // Whether the one that was drained goes or stays is the pool's affair.
        done(kit.claim(revision).await?);
        kit.at_rest(revision).await?;
    }
    kit.pool.set_desired(revision, 0);
    kit.comes_to(revision, 0).await?;
    kit.runtime_has(0).await
}

pub(super) async fn told(kit: &Kit) -> Verdict {
    let revision = kit.revision(1).await?;
    let lease = kit.claim(revision).await?;
    ensure!(lease.draining().is_none(), "an instance that stays is said to drain");
    let id = lease.instance.id();
    let grace = Duration::from_secs(20);
    let until = Instant::now() + grace;
    ensure!(kit.pool.recycle(revision, id, grace), "there is no such instance, it says");
    let Some(told) = lease.draining() else {
        return Err(Stop::fail("an instance that drains is said to stay"));
    };
    let late = Duration::from_secs(1);
    ensure!(told <= until + late, "it stops {:?} from now, and tells {:?}", grace, told - Instant::now());
    ensure!(told + late >= until, "it is given {grace:?}, and tells {:?}", told - Instant::now());
    done(lease);
    eventually(Duration::from_secs(60), "the end of the recycled instance", || {
        !kit.runtime.live().contains(&id)
    })
    .await
}
