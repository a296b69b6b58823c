//! Bench b: a1 with a thousand, a hundred thousand and a million registered revisions, uniform and Zipf(0.9), beside
//! what one dependent memory miss costs on this machine.
//!
//! `cargo bench --bench sched_scale [-- MOST_REVISIONS]`

#[path = "shared/sched.rs"]
mod sched;

use std::{sync::Arc, time::Duration};

use sas_core::Pool as _;
use sas_pool::config::IdleRule;
use sched::{
    Counting, Draws, Noop, context, cpu_time, live_bytes, now_or_panic, peak_rss_mib, row, spread, world,
};
use tokio::time::Instant;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RUNS: usize = 5;
const CYCLES: usize = 400_000;
/// How long idleness is watched.
const IDLE: Duration = Duration::from_secs(20);

fn main() {
    let most = std::env::args().skip(1).find_map(|text| text.parse().ok()).unwrap_or(1_000_000);
    row("what", "median [min .. max] of five runs", "target");
    let miss = miss();
    row("one dependent memory miss (256 MiB chase)", &format!("{miss:.0} ns"), "");
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut small = 0.0;
    for revisions in [1_000, 100_000, 1_000_000].into_iter().filter(|n| *n <= most) {
        let _entered = tokio.enter();
        let (bytes, begin) = (live_bytes(), Instant::now());
        let world = world(Arc::new(Noop), revisions, 1, IdleRule::AtOnce);
        let registered = begin.elapsed();
        let names: usize = world.hosts.iter().map(|host| host.capacity() + size_of::<String>() + 8).sum();
        let held = (live_bytes() - bytes).saturating_sub(names as u64) as f64 / revisions as f64;
        let tasks = tokio.metrics().num_alive_tasks();
        assert_eq!(tasks, 0, "no task for a sleeping revision");
        for (law, zipf) in [("uniform", false), ("Zipf(0.9)", true)] {
            let order = if zipf { zipf_order(revisions) } else { uniform_order(revisions) };
            let (median, least, least_most) = cycles(&world, &order);
            let mut target = String::new();
            if revisions == 1_000 && !zipf {
                small = median;
            } else if revisions == 1_000_000 && !zipf {
                target = format!("≤ {:.0} ns (cost(1 k) + 5 misses)", small + 5.0 * miss);
            }
            row(
                &format!("{revisions} revisions, {law}"),
                &format!(
                    "{median:.0} ns a cycle [{least:.0} .. {least_most:.0}], {:.2} × 1 k",
                    median / small
                ),
                &target,
            );
        }
        row(
            "   registered, routes included",
            &format!("{:.2} s, {held:.0} B a revision in all", registered.as_secs_f64()),
            if revisions == 1_000_000 { "≤ 1 s, ≤ 256 B" } else { "" },
        );
        pool_alone(revisions);
        if revisions == 1_000_000 {
            // The kernel brings the time of a thread that runs up to date once in some milliseconds: over a short wait
            // that alone would be more than what is looked for.
            let cpu = cpu_time();
            tokio.block_on(tokio::time::sleep(IDLE));
            let share = (cpu_time() - cpu).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
            row("   idle", &format!("{share:.3} % of a core"), "≤ 0.1 %");
        }
        drop(world);
    }
    row("peak RSS", &format!("{} MiB", peak_rss_mib()), "");
}

/// What the pool alone holds, with and without the config that it was given.
fn pool_alone(revisions: usize) {
    use sas_core::{Deployed, RevisionName, RevisionSpec, Runtime, Source, TenantKey};
    let pool = sas_pool::InstancePool::new(sas_pool::PoolConfig::default());
    let runtime: Arc<dyn Runtime> = Arc::new(Noop);
    let (spec, artifact) =
        (Arc::new(RevisionSpec::new("noop", Source::Function("noop".into()))), sched::artifact());
    let begin = live_bytes();
    let deployed: Vec<Arc<Deployed>> = (0..revisions)
        .map(|n| {
            Arc::new(Deployed::new(
                Arc::clone(&runtime),
                artifact.clone(),
                Arc::clone(&spec),
                RevisionName::new("default", &format!("s{n:06}"), "00001"),
                TenantKey(1),
            ))
        })
        .collect();
    let config = (live_bytes() - begin) as f64 / revisions as f64 - size_of::<Arc<Deployed>>() as f64;
    let (before, begin) = (live_bytes(), Instant::now());
    for deployed in &deployed {
        pool.register(Arc::clone(deployed)).expect("room");
    }
    let took = begin.elapsed();
    let core = (live_bytes() - before) as f64 / revisions as f64;
    row(
        "   the pool alone",
        &format!("{:.3} s, {core:.0} B core + {config:.0} B config", took.as_secs_f64()),
        if revisions == 1_000_000 { "≤ 1 s, ≤ 128 B core, ≤ 256 B" } else { "" },
    );
}

fn uniform_order(revisions: usize) -> Vec<u32> {
    let mut draws = Draws(21);
    (0..CYCLES).map(|_| draws.below(revisions) as u32).collect()
}

/// Ranks by Zipf's law, spread over the revisions.
fn zipf_order(revisions: usize) -> Vec<u32> {
    let mut sum = 0.0;
    let cumulated: Vec<f64> = (1..=revisions)
        .map(|rank| {
            sum += (rank as f64).powf(-0.9);
            sum
        })
        .collect();
    let mut draws = Draws(22);
    (0..CYCLES)
        .map(|_| {
            let rank = cumulated.partition_point(|at| *at < draws.unit() * sum).min(revisions - 1);
            // A fixed permutation, so that the popular ones are not neighbours.
            (rank as u64 * 7_919 % revisions as u64) as u32
        })
        .collect()
}

/// Nanoseconds of CPU per cold cycle.
fn cycles(world: &sched::World, order: &[u32]) -> (f64, f64, f64) {
    let headers = http::HeaderMap::new();
    let cx = context();
    let mut costs = Vec::new();
    for run in 0..=RUNS {
        let cpu = cpu_time();
        for &at in order {
            let lease = now_or_panic(world.assign(&world.hosts[at as usize], &headers, &cx));
            drop(lease);
        }
        if run > 0 {
            costs.push((cpu_time() - cpu).as_nanos() as f64 / order.len() as f64);
        }
    }
    spread(&mut costs)
}

/// The cost of a load whose address comes from the load before, over more memory than any cache holds.
fn miss() -> f64 {
    let count = (256 << 20) / 64;
    let mut chain: Vec<[u64; 8]> = vec![[0; 8]; count];
    // Sattolo's shuffle: one cycle through all of it.
    let mut order: Vec<u32> = (0..count as u32).collect();
    let mut draws = Draws(23);
    for at in (1..count).rev() {
        order.swap(at, draws.below(at));
    }
    for at in 0..count {
        chain[order[at] as usize][0] = u64::from(order[(at + 1) % count]);
    }
    drop(order);
    let mut costs = Vec::new();
    let mut at = 0u64;
    for _ in 0..RUNS {
        let begin = Instant::now();
        for _ in 0..1_000_000 {
            at = chain[at as usize][0];
        }
        costs.push(begin.elapsed().as_nanos() as f64 / 1e6);
    }
    assert!(at < count as u64);
    spread(&mut costs).0
}
