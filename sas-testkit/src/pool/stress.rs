//! Everything at once, the same for the same seed.

use std::{collections::BTreeMap, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use sas_core::{Claim, ClaimError, Error, ErrorKind, InstanceId, Lease, Outcome, TenantKey, Waiting};

use super::kit::{Kit, ensure_live};
use crate::check::{Stop, Verdict, ensure};

const CONCURRENCY: u32 = 3;
const MAX: u32 = 4;

struct Held {
    lease: Lease,
    id: InstanceId,
}

/// The promises that hold at every moment.
fn check(kit: &Kit, revision: sas_core::RevisionKey, held: &[Held], step: u32) -> Verdict {
    let mut out: BTreeMap<InstanceId, u32> = BTreeMap::new();
    for lease in held {
        *out.entry(lease.id).or_default() += 1;
    }
    for (id, count) in &out {
        ensure!(*count <= CONCURRENCY, "step {step}: {id} has {count} leases out of {CONCURRENCY}");
    }
    let status = kit.status(revision)?;
    ensure!(
        status.ready + status.starting <= MAX,
        "step {step}: max is {MAX}, there are {} ready and {} starting",
        status.ready,
        status.starting
    );
    Ok(())
}

pub(super) async fn random(kit: &Kit) -> Verdict {
    for seed in 0..4 {
        one_seed(kit, seed).await.map_err(|stop| match stop {
            Stop::Fail(message) => Stop::fail(format!("seed {seed}: {message}")),
            skip @ Stop::Skip(_) => skip,
        })?;
    }
    Ok(())
}

async fn one_seed(kit: &Kit, seed: u64) -> Verdict {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut spec = kit.spec(CONCURRENCY);
    spec.scaling.max = MAX;
    spec.timeouts.start = Duration::from_secs(2);
    let revision = kit.register(spec).await?;
    let (mut held, mut waiting): (Vec<Held>, Vec<std::pin::Pin<Box<Waiting>>>) = (Vec::new(), Vec::new());
    for step in 0..1500_u32 {
        match random.random_range(0..100) {
            0..35 => {
                let limit = Duration::from_millis(random.random_range(1..4000));
                waiting.push(Box::pin(kit.pool.claim(&Claim::new(revision, TenantKey(1)), &kit.cx(limit))));
            }
            35..45 => {
                if let Some(lease) = kit.pool.try_claim(&Claim::new(revision, TenantKey(1))) {
                    ensure_live(kit, &lease)?;
                    let id = lease.instance.id();
                    held.push(Held { lease, id });
                }
            }
            45..75 if !held.is_empty() => {
                let mut lease = held.swap_remove(random.random_range(0..held.len())).lease;
                lease.outcome = [Outcome::Ok, Outcome::Failed, Outcome::Lost, Outcome::Unused]
                    .choose(&mut random)
                    .copied()
                    .unwrap_or(Outcome::Ok);
            }
            75..80 if !waiting.is_empty() => {
                drop(waiting.swap_remove(random.random_range(0..waiting.len())));
            }
            80..83 => {
                if let Some(victim) = kit.runtime.live().choose(&mut random) {
                    kit.runtime.kill(*victim);
                }
            }
            83..86 => kit.runtime.fail_next_start(Error::new(ErrorKind::Crashed, "start", "conformance")),
            86..87 => kit.runtime.hang_next_start(),
            87..90 => kit.runtime.next_start_takes(Duration::from_millis(random.random_range(0..900))),
            90..94 => kit.pool.set_desired(revision, random.random_range(0..8)),
            94..95 => {
                if let Some(id) = kit.ready(revision).choose(&mut random) {
                    kit.pool.recycle(revision, *id, Duration::from_millis(random.random_range(0..500)));
                }
            }
            _ => kit.idle_for(Duration::from_millis(random.random_range(1..200))).await,
        }
        let mut at = 0;
        while at < waiting.len() {
            match futures_util::poll!(&mut waiting[at]) {
                std::task::Poll::Ready(answer) => {
                    drop(waiting.swap_remove(at));
                    match answer {
                        Ok(lease) => {
                            let id = lease.instance.id();
                            held.push(Held { lease, id });
                        }
                        Err(
                            ClaimError::Deadline
                            | ClaimError::StartPending { .. }
                            | ClaimError::Start { .. }
                            | ClaimError::QueueFull { .. },
                        ) => {}
                        Err(other) => return Err(Stop::fail(format!("step {step}: a claim got {other:?}"))),
                    }
                }
                std::task::Poll::Pending => at += 1,
            }
        }
        check(kit, revision, &held, step)?;
    }
    // The faults end: everything comes to rest, serves again, and sleeps.
    kit.runtime.forget_script();
    drop(waiting);
    drop(held);
    kit.at_rest(revision).await?;
    kit.idle_for(kit.settle + Duration::from_secs(5)).await;
    let lease = kit.claim(revision).await?;
    ensure_live(kit, &lease)?;
    drop(lease);
    kit.pool.set_desired(revision, 0);
    kit.comes_to(revision, 0).await?;
    kit.runtime_has(0).await?;
    kit.pool.unregister(revision);
    Ok(())
}
