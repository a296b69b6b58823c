//! Leases and the queue in every interleaving of a few threads:
//! `RUSTFLAGS="--cfg loom" cargo test -p sas-pool --test loom --release`
#![cfg(loom)]

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use async_trait::async_trait;
use loom::{
    future::block_on,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Claim, Cx, Deployed, Instance, InstanceId, InstanceTarget,
    Isolation, Lease, Pool, RequestId, Result, RevisionKey, RevisionName, RevisionSpec, Runtime, Source,
    StartRequest, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig};
use tokio::time::Instant;

#[derive(Debug)]
struct Noop;

#[derive(Debug)]
struct NoopInstance(InstanceId);

#[async_trait]
impl Runtime for Noop {
    fn name(&self) -> &'static str {
        "noop"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }
    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(Artifact::new((), ArtifactInfo::default()))
    }
    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        Ok(Arc::new(NoopInstance(request.id)))
    }
    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        Some(Ok(Arc::new(NoopInstance(request.id))))
    }
    async fn quiesce(&self) {}
}

/// Nobody calls it.
static NOWHERE: sas_core::Endpoint = sas_core::Endpoint::Tcp(std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    9,
));

#[async_trait]
impl Instance for NoopInstance {
    fn id(&self) -> InstanceId {
        self.0
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&NOWHERE)
    }
    async fn stop(&self, _: Duration) -> Result<()> {
        Ok(())
    }
}

/// A pool of one shard with one revision of at most `max` instances of `concurrency`.
fn pool(concurrency: u32, max: u32) -> (Arc<InstancePool>, RevisionKey) {
    let mut config = PoolConfig::default();
    config.shards = 1;
    let pool = InstancePool::new(config);
    let mut spec = RevisionSpec::new("noop", Source::Function("noop".into()));
    spec.concurrency = concurrency;
    spec.scaling.max = max;
    let deployed = Deployed::new(
        Arc::new(Noop),
        Artifact::new((), ArtifactInfo::default()),
        Arc::new(spec),
        RevisionName::new("a", "b", "c"),
        TenantKey(1),
    );
    let key = pool.register(Arc::new(deployed)).unwrap();
    (pool, key)
}

fn cx() -> Cx {
    // No clock runs in a model: deadlines are never met in it.
    Cx::new(TenantKey(1), RequestId(0), Instant::now() + Duration::from_secs(3600))
}

fn claim(pool: &InstancePool, key: RevisionKey) -> Lease {
    block_on(pool.claim(&Claim::new(key, TenantKey(1)), &cx())).expect("a lease")
}

#[test]
fn no_wake_up_is_lost_and_no_instance_is_above_its_limit() {
    loom::model(|| {
        let (pool, key) = pool(1, 1);
        let running = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (pool, running) = (Arc::clone(&pool), Arc::clone(&running));
                thread::spawn(move || {
                    let lease = claim(&pool, key);
                    assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "the limit is 1");
                    running.fetch_sub(1, Ordering::SeqCst);
                    drop(lease);
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let status = pool.status(key).unwrap();
        assert_eq!((status.in_flight, status.queued, status.ready), (0, 0, 1));
    });
}

#[test]
fn a_cancelled_wait_leaves_no_trace_and_passes_its_slot_on() {
    loom::model(|| {
        let (pool, key) = pool(1, 1);
        let held = claim(&pool, key);
        let mut leaves = pool.claim(&Claim::new(key, TenantKey(1)), &cx());
        let stays = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || drop(claim(&pool, key)))
        };
        let releases = thread::spawn(move || drop(held));
        // Polled once, so that it may have been granted the slot when it goes.
        let mut context = Context::from_waker(Waker::noop());
        let polled = std::pin::Pin::new(&mut leaves).poll(&mut context);
        match polled {
            Poll::Ready(lease) => drop(lease),
            Poll::Pending => drop(leaves),
        }
        releases.join().unwrap();
        stays.join().unwrap();
        let status = pool.status(key).unwrap();
        assert_eq!((status.in_flight, status.queued, status.ready), (0, 0, 1));
    });
}

#[test]
fn a_first_burst_makes_exactly_the_instances_that_it_needs() {
    loom::model(|| {
        let (pool, key) = pool(2, 0);
        let other = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || claim(&pool, key))
        };
        let mine = claim(&pool, key);
        let theirs = other.join().unwrap();
        let status = pool.status(key).unwrap();
        assert_eq!((status.in_flight, status.queued), (2, 0));
        assert!((1..=2).contains(&status.ready), "{}", status.ready);
        drop((mine, theirs));
        assert_eq!(pool.status(key).unwrap().in_flight, 0);
    });
}

#[test]
fn a_decision_to_sleep_and_a_claim_at_once_leave_the_claim_served() {
    loom::model(|| {
        let (pool, key) = pool(1, 1);
        drop(claim(&pool, key));
        let sleeps = {
            let pool = Arc::clone(&pool);
            thread::spawn(move || pool.set_desired(key, 0))
        };
        drop(claim(&pool, key));
        sleeps.join().unwrap();
        let status = pool.status(key).unwrap();
        assert_eq!((status.in_flight, status.queued, status.draining), (0, 0, 0));
        assert!(status.ready <= 1);
    });
}
