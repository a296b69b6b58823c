//! A pool of pretended instances: they start after a while, take requests, and are counted as the contract says.
#![allow(dead_code, reason = "each test file uses a part")]

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Claim, ClaimError, Cx, Deployed, Load, Pool, Result, RevisionKey, RevisionName,
    RevisionSpec, RevisionStatus, ScalingSpec, Source, TenantKey, Waiting,
};
use sas_testkit::fake::FakeRuntime;
use tokio::time::Instant;

/// One revision of the pretended pool.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pretended {
    pub(crate) desired: u32,
    pub(crate) ready: u32,
    pub(crate) starting: u32,
    pub(crate) queued: u32,
    pub(crate) concurrency: f64,
    pub(crate) requests: u32,
    pub(crate) backlog: Option<u64>,
    pub(crate) cpu: Option<f64>,
    pub(crate) start_time: Option<Duration>,
    /// Every number that was asked for.
    pub(crate) asked: Vec<u32>,
    pub(crate) was_active: bool,
    pub(crate) visits: u32,
}

/// A pool that does what its test says; `desired` becomes `ready` when the test calls [`FakePool::settle`].
#[derive(Debug, Default)]
pub(crate) struct FakePool {
    state: Mutex<BTreeMap<RevisionKey, (Arc<Deployed>, Pretended)>>,
    shards: usize,
}

impl FakePool {
    pub(crate) fn new(shards: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), shards })
    }

    pub(crate) fn add(&self, slot: u32, scaling: ScalingSpec, concurrency: u32) -> RevisionKey {
        let key = RevisionKey::new(slot, 0);
        self.state.lock().unwrap().insert(key, (deployed(slot, scaling, concurrency), Pretended::default()));
        key
    }

    pub(crate) fn with<T>(&self, key: RevisionKey, f: impl FnOnce(&mut Pretended) -> T) -> T {
        f(&mut self.state.lock().unwrap().get_mut(&key).expect("a registered revision").1)
    }

    /// Instances become what is desired, at once.
    pub(crate) fn settle(&self, key: RevisionKey) -> u32 {
        self.with(key, |revision| {
            revision.ready = revision.desired;
            revision.starting = 0;
            revision.ready
        })
    }

    pub(crate) fn desired(&self, key: RevisionKey) -> u32 {
        self.with(key, |revision| revision.desired)
    }
}

pub(crate) fn deployed(slot: u32, scaling: ScalingSpec, concurrency: u32) -> Arc<Deployed> {
    let mut spec = RevisionSpec::new("none", Source::Function("none".to_owned()));
    spec.scaling = scaling;
    spec.concurrency = concurrency;
    let name = format!("service-{slot}");
    Arc::new(Deployed::new(
        FakeRuntime::new(),
        Artifact::new((), ArtifactInfo::default()),
        Arc::new(spec),
        RevisionName::new("test", &name, &format!("{name}-00001")),
        TenantKey(0),
    ))
}

#[async_trait]
impl Pool for FakePool {
    fn register(&self, _: Arc<Deployed>) -> Result<RevisionKey> {
        unreachable!("tests call add")
    }

    fn unregister(&self, revision: RevisionKey) {
        self.state.lock().unwrap().remove(&revision);
    }

    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        self.state.lock().unwrap().get(&revision).map(|(deployed, _)| deployed.clone())
    }

    fn claim(&self, _: &Claim, _: &Cx) -> Waiting {
        Waiting::ready(Err(ClaimError::Closed))
    }

    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        if let Some((_, revision)) = self.state.lock().unwrap().get_mut(&revision) {
            revision.desired = desired;
            revision.asked.push(desired);
        }
    }

    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        let state = self.state.lock().unwrap();
        let (_, revision) = state.get(&revision)?;
        let mut status = RevisionStatus::default();
        status.desired = revision.desired;
        status.ready = revision.ready;
        status.starting = revision.starting;
        status.queued = revision.queued;
        Some(status)
    }

    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        let mut state = self.state.lock().unwrap();
        for (key, (deployed, revision)) in state.iter_mut() {
            if key.slot() as usize % self.shards != shard {
                continue;
            }
            let active = revision.ready > 0 || revision.starting > 0 || revision.queued > 0;
            if !active && !revision.was_active {
                continue;
            }
            revision.was_active = active;
            revision.visits += 1;
            let mut load = Load::idle(*key);
            load.concurrency = revision.concurrency;
            load.requests = std::mem::take(&mut revision.requests);
            load.queued = revision.queued;
            load.ready = revision.ready;
            load.starting = revision.starting;
            load.backlog = revision.backlog;
            load.cpu = revision.cpu;
            load.start_time = revision.start_time;
            visit(&load, deployed);
        }
    }

    fn shards(&self) -> usize {
        self.shards
    }

    async fn drain(&self, _: RevisionKey, _: Duration) {}

    async fn shutdown(&self, _: Instant) {}
}
