//! Hosts in one process on one store, each over a connection of its own that can be cut, slowed and frozen.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use sas_cluster::{Cluster, ClusterConfig, shard_of};
use sas_core::{Commit, Guard, Hosts as _, MemoryStore, Place, Store as _};
use sas_testkit::fault::{LinkFault, StoreLink};
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

pub(crate) const TERM: Duration = Duration::from_secs(10);
pub(crate) const SHARDS: usize = 256;

struct Host {
    cluster: Arc<Cluster>,
    link: Arc<StoreLink>,
    running: JoinHandle<()>,
    stop: CancellationToken,
}

/// Who acted for a shard in an epoch, of all that were ever seen to.
type Acted = BTreeMap<(u16, u64), String>;

pub(crate) struct Hosts {
    store: Arc<MemoryStore>,
    hosts: BTreeMap<String, Host>,
    lives: u64,
    acted: Mutex<Acted>,
}

impl Default for Hosts {
    fn default() -> Self {
        Self {
            store: Arc::new(MemoryStore::default()),
            hosts: BTreeMap::new(),
            lives: 0,
            acted: Mutex::default(),
        }
    }
}

impl Hosts {
    fn link(&self) -> Arc<StoreLink> {
        Arc::new(StoreLink::new(Arc::clone(&self.store) as _))
    }

    pub(crate) fn config(&self, name: &str) -> ClusterConfig {
        let mut config = ClusterConfig::new(self.link(), name, ([127, 0, 0, 1], 8080).into());
        config.term = TERM;
        config.process = format!("{name}-{}", self.lives);
        config
    }

    pub(crate) async fn start(&mut self, name: &str) {
        self.lives += 1;
        let link = self.link();
        let mut config = self.config(name);
        config.store = Arc::clone(&link) as _;
        let cluster = Cluster::new(config).await.expect("the store answers");
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::clone(&cluster).run(stop.clone()));
        self.hosts.insert(name.to_owned(), Host { cluster, link, running, stop });
    }

    pub(crate) fn kill(&mut self, name: &str) {
        self.hosts.remove(name).expect("it runs").running.abort();
    }

    pub(crate) async fn stop(&mut self, name: &str) {
        let host = self.hosts.remove(name).expect("it runs");
        host.stop.cancel();
        host.running.await.expect("it ends");
    }

    pub(crate) fn break_store(&self, name: &str, fault: LinkFault) {
        self.hosts[name].link.set(fault);
    }

    /// As SIGSTOP as far as anybody else can see: nothing goes out, and what was sent arrives when it wakes.
    pub(crate) fn freeze(&self, name: &str) {
        self.break_store(name, LinkFault::Hangs);
    }

    pub(crate) fn thaw(&self, name: &str) {
        self.break_store(name, LinkFault::None);
    }

    pub(crate) fn cluster(&self, name: &str) -> &Arc<Cluster> {
        &self.hosts[name].cluster
    }

    /// For how many shards a host acts now.
    pub(crate) fn owned(&self, name: &str) -> usize {
        (0..SHARDS as u16).filter(|shard| self.cluster(name).epoch(*shard).is_some()).count()
    }

    /// Holder and epoch of a shard, as the store has it.
    pub(crate) fn record(&self, shard: u16) -> (String, u64) {
        let key = format!("cluster/shard/{shard:04}");
        let entry = futures_now(self.store.get(&key)).expect("it answers").expect("somebody owns it");
        let record: serde_json::Value = serde_json::from_slice(&entry.value).expect("it is JSON");
        (record["holder"].as_str().unwrap().to_owned(), record["epoch"].as_u64().unwrap())
    }

    /// A path that a host acts for.
    pub(crate) fn path_of(&self, name: &str) -> String {
        let owns = |path: &String| self.record(shard_of(path, SHARDS as u16)).0 == name;
        (0..10_000).map(|n| format!("t/s{n}")).find(owns).expect("it has some shard")
    }

    pub(crate) async fn write_guarded(&self, name: &str, guard: Guard) -> bool {
        let host = &self.hosts[name];
        let commit = Commit::new().guarded_by(guard.clone()).put("service/t/x", name.to_owned());
        let done = host.link.commit(commit).await;
        if done.is_err() {
            host.cluster.refused(&guard);
        }
        done.is_ok()
    }

    /// Of the hosts that there are.
    pub(crate) fn writes(&self) -> u64 {
        self.hosts.values().map(|host| host.link.writes()).sum()
    }

    /// Notes who acts for what now, and that nobody else did in the same epoch, or does now.
    pub(crate) fn assert_sound(&self) {
        let mut now: BTreeMap<u16, &str> = BTreeMap::new();
        let mut acted = self.acted.lock();
        for (name, host) in &self.hosts {
            for shard in 0..SHARDS as u16 {
                let Some(epoch) = host.cluster.epoch(shard) else { continue };
                if let Some(other) = now.insert(shard, name) {
                    panic!("{other} and {name} act for shard {shard} at the same time");
                }
                let first = acted.entry((shard, epoch)).or_insert_with(|| name.clone());
                assert_eq!(first, name, "both were owners of shard {shard} in epoch {epoch}");
            }
        }
    }

    /// Until each shard has an owner that acts, all hosts know it, and it is the one that it belongs on.
    pub(crate) async fn until_settled(&self, limit: Duration) {
        let draining = |name: &str| self.cluster(name).list().iter().any(|host| host.here && host.draining);
        let names: Vec<&str> = self.hosts.keys().map(String::as_str).filter(|name| !draining(name)).collect();
        let settled = || {
            (0..SHARDS as u16).all(|shard| {
                let owner = sas_cluster::host_of(shard, names.iter().copied()).expect("there are hosts");
                self.hosts[owner].cluster.epoch(shard).is_some()
            }) && (0..40).all(|n| {
                let path = format!("t/s{n}");
                let places: Vec<Place> = self.hosts.values().map(|host| host.cluster.place(&path)).collect();
                let here = places.iter().filter(|place| matches!(place, Place::Here(_))).count();
                here == 1 && !places.contains(&Place::Undecided)
            })
        };
        let wait = async {
            while !settled() {
                self.assert_sound();
                sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(limit, wait).await.is_err() {
            let owned: Vec<_> = names.iter().map(|name| (*name, self.owned(name))).collect();
            panic!("not settled within {limit:?}: {owned:?}");
        }
    }
}

/// What a store in memory answers without waiting.
fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(done) => done,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

/// Five hosts for a while, with everything going wrong, and then well again.
pub(crate) async fn storm(seed: u64, for_so_long: Duration) {
    let mut random = StdRng::seed_from_u64(seed);
    let mut hosts = Hosts::default();
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        hosts.start(name).await;
    }
    let end = tokio::time::Instant::now() + for_so_long;
    while tokio::time::Instant::now() < end {
        let name = names[random.random_range(0..names.len())];
        match random.random_range(0..8) {
            0 if hosts.hosts.contains_key(name) => hosts.kill(name),
            1 if hosts.hosts.contains_key(name) => {
                hosts.thaw(name);
                hosts.stop(name).await;
            }
            0 | 1 => hosts.start(name).await,
            2 | 3 if hosts.hosts.contains_key(name) => hosts.break_store(name, LinkFault::Hangs),
            4 if hosts.hosts.contains_key(name) => hosts.break_store(name, LinkFault::Fails),
            5 if hosts.hosts.contains_key(name) => hosts.break_store(name, LinkFault::Unanswered),
            _ => {
                for host in hosts.hosts.values() {
                    host.link.set(LinkFault::None);
                }
            }
        }
        let until = tokio::time::Instant::now() + Duration::from_millis(random.random_range(1..8_000));
        while tokio::time::Instant::now() < until {
            hosts.assert_sound();
            sleep(Duration::from_millis(331)).await;
        }
    }
    for name in names {
        match hosts.hosts.contains_key(name) {
            true => hosts.thaw(name),
            false => hosts.start(name).await,
        }
    }
    hosts.until_settled(TERM * 2 + Duration::from_secs(2)).await;
}
