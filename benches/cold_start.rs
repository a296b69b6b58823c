//! Cold-start scheduling throughput under criterion: a request accepted → an instance assigned, given back and stopped,
//! with the real router and pool around a runtime whose starts do nothing. Every request is cold, which is asserted.
//!
//! `cargo bench --bench cold_start`; `-- --save-baseline NAME` and `-- --baseline NAME` compare two versions of the
//! code. What criterion's closed loop cannot measure (open loops, other processes, tail latency) is in `sched_noop`.

#[path = "shared/sched.rs"]
mod sched;

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sas_core::Pool as _;
use sas_pool::config::IdleRule;
use sched::{Draws, Noop, context, now_or_panic, world};

/// One whole cycle, over ever more registered revisions that sleep.
fn cycle(criterion: &mut Criterion) {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = tokio.enter();
    let headers = http::HeaderMap::new();
    let mut group = criterion.benchmark_group("cold_cycle");
    group.throughput(Throughput::Elements(1));
    for revisions in [1_000, 100_000] {
        let world = world(Arc::new(Noop), revisions, 1, IdleRule::AtOnce);
        let cx = context();
        let mut draws = Draws(7);
        group.bench_function(BenchmarkId::new("registered", revisions), |bencher| {
            bencher.iter(|| {
                let host = &world.hosts[draws.below(revisions)];
                let lease = now_or_panic(world.assign(host, &headers, &cx));
                assert!(lease.start.is_some(), "the request was not cold");
                drop(black_box(lease));
            });
        });
    }
    group.finish();
}

/// A hundred requests at one instant to one cold revision that takes one request at a time: a hundred starts.
fn burst(criterion: &mut Criterion) {
    const REQUESTS: u32 = 100;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _entered = tokio.enter();
    let headers = http::HeaderMap::new();
    let mut group = criterion.benchmark_group("cold_burst");
    group.throughput(Throughput::Elements(u64::from(REQUESTS)));
    group.bench_function("one_revision", |bencher| {
        bencher.iter_batched(
            || (world(Arc::new(Noop), 1, 1, IdleRule::Decided), context()),
            |(world, cx)| {
                let leases: Vec<_> = (0..REQUESTS)
                    .map(|_| {
                        let claim = world.claim_of(&world.hosts[0], &headers);
                        assert!(world.pool.try_claim(&claim).is_none(), "the request was not cold");
                        now_or_panic(world.pool.claim(&claim, &cx))
                    })
                    .collect();
                // Given back and torn down outside of what is timed.
                (world, leases)
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    targets = cycle, burst
}
criterion_main!(benches);
