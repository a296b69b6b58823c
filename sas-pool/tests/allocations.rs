//! What the hot ways allocate, and what a sleeping revision holds: counted, not measured.

mod fake;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::Arc,
};

use fake::{FakeRuntime, SECOND, Start, claim, deployed};
use sas_core::{Claim, Deployed, Outcome, Pool, RevisionName, TenantKey};
use sas_pool::{InstancePool, PoolConfig};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the counters touch no allocated memory.
#[allow(unsafe_code, reason = "an allocator that counts has no safe form")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        BYTES.with(|bytes| bytes.set(bytes.get().wrapping_add(layout.size() as u64)));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.with(|bytes| bytes.set(bytes.get().wrapping_sub(layout.size() as u64)));
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() -> u64 {
    COUNT.with(Cell::get)
}

fn bytes() -> u64 {
    BYTES.with(Cell::get)
}

#[tokio::test]
async fn the_warm_way_allocates_nothing() {
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    let key = pool.register(deployed(&runtime, "a", |_| {})).unwrap();
    pool.set_desired(key, 3);
    drop(claim(&pool, key, SECOND).await.unwrap());
    let before = count();
    for _ in 0..1_000 {
        let mut lease = pool.try_claim(&Claim::new(key, TenantKey(1))).unwrap();
        lease.outcome = Outcome::Ok;
    }
    assert_eq!(count() - before, 0);
}

#[test]
fn a_sleeping_revision_fits_in_256_bytes_with_its_config() {
    const REVISIONS: u64 = 20_000;
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _entered = tokio.enter();
    let runtime = FakeRuntime::new(Start::AtOnce);
    let pool = InstancePool::new(PoolConfig::default());
    // Equal revisions share spec and artifact.
    let shared = deployed(&runtime, "a", |_| {});
    let begin = bytes();
    for n in 0..REVISIONS {
        let mut revision: Deployed = (*shared).clone();
        revision.name = RevisionName::new("default", &format!("service-{n:06}"), "00001");
        pool.register(Arc::new(revision)).unwrap();
    }
    let each = (bytes() - begin) / REVISIONS;
    println!("{each} bytes a revision with its config");
    assert!(each <= 256, "{each}");
    assert_eq!(tokio.metrics().num_alive_tasks(), 0, "no task for a sleeper");
}

#[test]
fn a_revision_that_slept_again_holds_no_more_than_before() {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    tokio.block_on(async {
        let runtime = FakeRuntime::new(Start::AtOnce);
        let pool = InstancePool::new(PoolConfig::default());
        let keys: Vec<_> = (0..1_000)
            .map(|n| pool.register(deployed(&runtime, &format!("r{n}"), |_| {})).unwrap())
            .collect();
        let round = async |keys: &[sas_core::RevisionKey]| {
            for &key in keys {
                drop(claim(&pool, key, SECOND).await.unwrap());
                pool.set_desired(key, 0);
            }
        };
        round(&keys[..64]).await;
        let before = bytes();
        round(&keys).await;
        let more = bytes().wrapping_sub(before) as i64;
        assert!(more < 64 * 1024, "{more} bytes more after a thousand cycles");
    });
}
