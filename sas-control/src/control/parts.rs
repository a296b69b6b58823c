//! What a control plane holds, by what it is about. Each part has its own lock, held for one look or one change.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use sas_core::{
    BlobStore, DecisionSink, Error, ErrorKind, LogSink, MeterSink, Quotas, RequestId, Result, TenantKey,
    TenantQuota, Timestamp, Version,
};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Live, blocking};
use crate::{package::PackageDir, record::ServiceRecord};

/// The services, by `namespace/name`.
#[derive(Debug, Default)]
pub(crate) struct Services(RwLock<BTreeMap<String, Arc<Live>>>);

impl Services {
    pub(crate) fn get(&self, path: &str) -> Option<Arc<Live>> {
        self.0.read().get(path).cloned()
    }

    pub(super) fn insert(&self, path: impl Into<String>, live: Live) {
        self.0.write().insert(path.into(), Arc::new(live));
    }

    pub(super) fn remove(&self, path: &str) {
        self.0.write().remove(path);
    }

    /// All of them.
    pub(super) fn lives(&self) -> Vec<Arc<Live>> {
        self.0.read().values().cloned().collect()
    }

    pub(super) fn len(&self) -> usize {
        self.0.read().len()
    }

    /// Those that are not deleted.
    pub(super) fn records(&self) -> Vec<Arc<ServiceRecord>> {
        self.0.read().values().filter_map(|live| live.record()).collect()
    }

    /// The first `most` that are wanted, by their paths: behind the path `after`, and of a namespace alone if one is named.
    /// Looks at no other namespace's, nor at what comes later.
    pub(super) fn page(
        &self,
        namespace: Option<&str>,
        after: Option<&str>,
        most: usize,
        wanted: impl Fn(&ServiceRecord) -> bool,
    ) -> Vec<Arc<ServiceRecord>> {
        let prefix = namespace.map(|namespace| format!("{namespace}/")).unwrap_or_default();
        let first = match after {
            Some(after) if *after >= *prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix.as_str()),
        };
        let services = self.0.read();
        let behind = services.range::<str, _>((first, Bound::Unbounded));
        let within = behind.take_while(|(path, _)| path.starts_with(&prefix));
        within.filter_map(|(_, live)| live.record()).filter(|record| wanted(record)).take(most).collect()
    }
}

/// Paths of services, or keys of the store, that somebody has to come back to.
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<BTreeSet<String>>);

impl Names {
    pub(super) fn add(&self, path: &str) {
        self.0.lock().insert(path.to_owned());
    }

    pub(super) fn remove(&self, path: &str) {
        self.0.lock().remove(path);
    }

    pub(super) fn contains(&self, path: &str) -> bool {
        self.0.lock().contains(path)
    }

    pub(super) fn len(&self) -> usize {
        self.0.lock().len()
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.0.lock().iter().cloned().collect()
    }
}

/// Keys of the store whose value can't be read, and what it takes to write over it.
#[derive(Debug, Default)]
pub(super) struct DamagedKeys(Mutex<BTreeMap<String, Version>>);

impl DamagedKeys {
    pub(super) fn add(&self, key: &str, version: Version) {
        self.0.lock().insert(key.to_owned(), version);
    }

    pub(super) fn remove(&self, key: &str) {
        self.0.lock().remove(key);
    }

    pub(super) fn version(&self, key: &str) -> Option<Version> {
        self.0.lock().get(key).copied()
    }
}

/// One change of a service at a time.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Turns that are kept before those that nobody has are forgotten.
    const FORGET_ABOVE: usize = 1024;

    pub(super) async fn take(&self, path: &str) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock();
            if turns.len() > Self::FORGET_ABOVE {
                turns.retain(|_, turn| turn.strong_count() > 0);
            }
            match turns.get(path).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::new(tokio::sync::Mutex::new(()));
                    turns.insert(path.to_owned(), Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

/// Tenants, by their namespace.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    known: Mutex<HashMap<String, TenantKey>>,
    /// One tenant is made at a time.
    making: tokio::sync::Mutex<()>,
}

impl Tenants {
    /// The turn to make one.
    pub(super) async fn make(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.making.lock().await
    }

    pub(super) fn get(&self, namespace: &str) -> Option<TenantKey> {
        self.known.lock().get(namespace).copied()
    }

    pub(super) fn insert(&self, namespace: &str, tenant: TenantKey) {
        self.known.lock().insert(namespace.to_owned(), tenant);
    }

    pub(super) fn namespaces(&self) -> Vec<String> {
        self.known.lock().keys().cloned().collect()
    }

    pub(super) fn namespace_of(&self, tenant: TenantKey) -> Option<String> {
        self.known.lock().iter().find(|(_, key)| **key == tenant).map(|(namespace, _)| namespace.clone())
    }

    /// The largest number that a tenant has.
    pub(super) fn highest(&self) -> Option<u32> {
        self.known.lock().values().map(|tenant| tenant.0).max()
    }
}

/// What tenants may use: what the host configured, and what was set since, which goes before it.
#[derive(Debug)]
pub(super) struct TenantQuotas {
    /// Of those that have none of their own.
    default: Mutex<TenantQuota>,
    configured: BTreeMap<String, TenantQuota>,
    stored: Mutex<BTreeMap<String, (TenantQuota, Version)>>,
    /// Who holds requests to them.
    pub(super) requests: Option<Arc<dyn Quotas>>,
    /// What was refused at deploys, by namespace.
    pub(super) refused_storage: Mutex<BTreeMap<String, u64>>,
}

impl TenantQuotas {
    pub(super) fn new(
        default: TenantQuota,
        configured: BTreeMap<String, TenantQuota>,
        requests: Option<Arc<dyn Quotas>>,
    ) -> Self {
        let default = Mutex::new(default);
        Self { default, configured, stored: Mutex::default(), requests, refused_storage: Mutex::default() }
    }

    /// The quota of a tenant's own.
    pub(super) fn get(&self, namespace: &str) -> Option<TenantQuota> {
        let stored = self.stored.lock().get(namespace).map(|(quota, _)| *quota);
        stored.or_else(|| self.configured.get(namespace).copied())
    }

    /// What holds for a tenant: its own quota, else what all have; `None` where that limits nothing.
    pub(super) fn in_force(&self, namespace: &str) -> Option<TenantQuota> {
        let of_all = || Some(*self.default.lock()).filter(|default| *default != TenantQuota::default());
        self.get(namespace).or_else(of_all)
    }

    pub(super) fn set_default(&self, quota: TenantQuota) {
        *self.default.lock() = quota;
    }

    pub(super) fn all(&self) -> BTreeMap<String, TenantQuota> {
        let mut quotas = self.configured.clone();
        quotas.extend(self.stored.lock().iter().map(|(name, (quota, _))| (name.clone(), *quota)));
        quotas
    }

    /// The version of the one that was set.
    pub(super) fn version(&self, namespace: &str) -> Option<Version> {
        self.stored.lock().get(namespace).map(|(_, version)| *version)
    }

    pub(super) fn insert(&self, namespace: &str, quota: TenantQuota, version: Version) {
        self.stored.lock().insert(namespace.to_owned(), (quota, version));
    }

    pub(super) fn remove(&self, namespace: &str) {
        self.stored.lock().remove(namespace);
    }

    /// The namespaces whose quota was set.
    pub(super) fn stored_names(&self) -> Vec<String> {
        self.stored.lock().keys().cloned().collect()
    }
}

/// Packages as they were when they were deployed, and which of them may go.
#[derive(Debug)]
pub(super) struct Pins {
    /// Where copies are kept, if a place is configured.
    copies: Option<Arc<dyn BlobStore>>,
    /// Where packages that came as bytes are, if none is. Removed by the shutdown.
    scratch: OnceLock<PackageDir>,
    /// Held for reading from before a package is copied until a record names it, for writing while packages are removed:
    /// so what is removed is named by no record, and by none that is about to be written.
    turn: Arc<tokio::sync::RwLock<()>>,
    /// Digests that may be unneeded, until somebody has looked.
    unneeded: Mutex<BTreeSet<String>>,
    /// The copies are another store's: none is removed.
    foreign: AtomicBool,
}

impl Pins {
    pub(super) fn new(copies: Option<Arc<dyn BlobStore>>) -> Self {
        Self {
            copies,
            scratch: OnceLock::new(),
            turn: Arc::default(),
            unneeded: Mutex::default(),
            foreign: AtomicBool::new(false),
        }
    }

    pub(super) fn copies(&self) -> Option<&Arc<dyn BlobStore>> {
        self.copies.as_ref()
    }

    /// A place for what came as bytes, made when it is first asked for.
    pub(super) fn scratch(&self) -> &PackageDir {
        self.scratch.get_or_init(PackageDir::scratch)
    }

    /// The turn to copy a package, kept until a record names it.
    pub(super) async fn pinning(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        Arc::clone(&self.turn).read_owned().await
    }

    /// The turn to remove packages.
    pub(super) async fn removing(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.turn.write().await
    }

    /// The same, if nobody pins now.
    pub(super) fn try_removing(&self) -> Option<tokio::sync::RwLockWriteGuard<'_, ()>> {
        self.turn.try_write().ok()
    }

    /// Somebody is to look whether a record still names these.
    pub(super) fn suspect(&self, digests: impl IntoIterator<Item = String>) {
        self.unneeded.lock().extend(digests);
    }

    /// Takes those that somebody is to look at.
    pub(super) fn take_suspects(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.unneeded.lock())
    }

    pub(super) fn mark_foreign(&self) {
        self.foreign.store(true, Ordering::Release);
    }

    pub(super) fn is_foreign(&self) -> bool {
        self.foreign.load(Ordering::Acquire)
    }

    /// Removes what came as bytes and would not outlive the process.
    pub(super) async fn remove_scratch(&self) {
        if let Some(scratch) = self.scratch.get().cloned()
            && let Err(error) = blocking(move || scratch.remove_all()).await
        {
            tracing::warn!(error = %error.chain(), "packages that came as bytes could not be removed");
        }
    }
}

/// Where logs, decisions and readings of what was used go.
#[derive(Debug)]
pub(super) struct Sinks {
    pub(super) logs: Arc<dyn LogSink>,
    pub(super) decisions: Arc<dyn DecisionSink>,
    pub(super) meter: Arc<dyn MeterSink>,
}

/// Ids of the requests that the control plane makes.
#[derive(Debug)]
pub(super) struct RequestIds {
    seed: u64,
    count: AtomicU64,
}

impl RequestIds {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed, count: AtomicU64::new(0) }
    }

    pub(super) fn next(&self, now: Timestamp) -> RequestId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let high = split_mix(self.seed ^ split_mix(now.0.cast_unsigned()));
        RequestId(u128::from(high) << 64 | u128::from(split_mix(high ^ count)))
    }
}

/// Sebastiano Vigna's SplitMix64.
fn split_mix(state: u64) -> u64 {
    let z = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// From the recovery to the shutdown.
#[derive(Debug, Default)]
pub(super) struct Lifecycle {
    recovered: AtomicBool,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Lifecycle {
    pub(super) fn recovered(&self) {
        self.recovered.store(true, Ordering::Release);
    }

    pub(super) fn is_ready(&self) -> bool {
        self.recovered.load(Ordering::Acquire) && !self.is_stopping()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// # Errors
    /// `Unavailable` once the shutdown began.
    pub(super) fn open(&self) -> Result<()> {
        if self.is_stopping() {
            return Err(Error::new(ErrorKind::Unavailable, "control", "the platform is shutting down"));
        }
        Ok(())
    }

    /// Stops, and waits for what is under way until `deadline`.
    pub(super) async fn end(&self, deadline: Instant) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout_at(deadline, self.tasks.wait()).await;
    }
}
