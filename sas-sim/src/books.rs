//! The books of what was used, beside the readings that they are made of.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering::SeqCst},
};

use parking_lot::Mutex;
use sas_core::{MeterTotals, Metered, RevisionUsage};

use crate::store::SimStore;

const TOTALS: &str = "usage/total/";
const HOURS: &str = "usage/hour/";
const GAPS: &str = "usage/gap/";
const CHECKPOINTS: &str = "usage/checkpoint/";

/// What instances lived, as it was read in all lives of the host, and what the store has to hold of it.
#[derive(Debug, Default)]
pub(crate) struct Books {
    accounts: Mutex<BTreeMap<String, Account>>,
    gaps: Mutex<usize>,
    /// Whether the last life of the host said that it had no more to write.
    closed: AtomicBool,
    broken: Mutex<Option<String>>,
}

/// Of one revision.
#[derive(Debug, Default)]
struct Account {
    /// What the store held when this life of the host began.
    before: u128,
    /// What was read since, in all, after each reading.
    sums: Vec<u128>,
    /// So many readings are in the store for certain.
    kept: usize,
    /// So many there were when it took the last checkpoint: the next one has them.
    seen: usize,
}

impl Account {
    fn read(&self) -> u128 {
        self.sums.last().copied().unwrap_or(0)
    }
}

impl Books {
    pub(crate) fn read(&self, of: Metered<'_>, ns: u64) {
        let path = match of.name {
            Some(name) => name.as_str().to_owned(),
            None => format!("//{}", RevisionUsage::STEMS),
        };
        let mut accounts = self.accounts.lock();
        let account = accounts.entry(path).or_default();
        let sum = account.read() + u128::from(ns);
        account.sums.push(sum);
    }

    /// The store took a commit with these keys.
    pub(crate) fn committed<'k>(&self, keys: impl Iterator<Item = &'k str> + Clone) {
        let has = |prefix| keys.clone().any(|key| key.starts_with(prefix));
        // A gap is written before the first reading of a life.
        if has(CHECKPOINTS) && !has(GAPS) {
            for account in self.accounts.lock().values_mut() {
                account.kept = account.seen;
                account.seen = account.sums.len();
            }
        }
    }

    /// A life of the host has no more to write.
    pub(crate) fn close(&self) {
        self.closed.store(true, SeqCst);
    }

    /// What was wrong first.
    pub(crate) fn broken(&self) -> Option<String> {
        self.broken.lock().clone()
    }

    /// Whether the store was told that more follows. A host that dies before it is, at its first reading, leaves no gap.
    pub(crate) async fn is_open(store: &SimStore) -> bool {
        let checkpoints = store.peek(CHECKPOINTS).await;
        let open = |value: &[u8]| {
            let checkpoint: Option<serde_json::Value> = serde_json::from_slice(value).ok();
            checkpoint.is_some_and(|checkpoint| checkpoint["open"] == true)
        };
        checkpoints.iter().any(|(_, value)| open(value))
    }

    /// Looks whether the store holds what was read, and goes on from there: once a start has taken the books over, before
    /// anything runs. `open`: as [`Books::is_open`] was before.
    pub(crate) async fn audit(&self, store: &SimStore, open: bool) {
        let closed = self.closed.swap(false, SeqCst);
        if let Err(message) = self.compare(store, closed, open).await {
            self.broken.lock().get_or_insert(message);
        }
    }

    async fn compare(&self, store: &SimStore, closed: bool, open: bool) -> Result<(), String> {
        let mut held: BTreeMap<String, u128> = BTreeMap::new();
        for (key, value) in store.peek(TOTALS).await {
            held.insert(key[TOTALS.len()..].to_owned(), life(&key, &value)?);
        }
        let mut hours: BTreeMap<String, u128> = BTreeMap::new();
        for (key, value) in store.peek(HOURS).await {
            let (_, path) = key[HOURS.len()..].split_once('/').ok_or(format!("{key} has no revision"))?;
            if !path.starts_with("~gap/") {
                *hours.entry(path.to_owned()).or_default() += life(&key, &value)?;
            }
        }
        if held != hours {
            return Err(format!("all in all {held:?} ns, and {hours:?} ns in the hours"));
        }
        let gaps = store.peek(GAPS).await.len();
        let more_gaps = gaps > std::mem::replace(&mut *self.gaps.lock(), gaps);

        let mut accounts = self.accounts.lock();
        let mut lost = 0;
        for (path, account) in accounts.iter_mut() {
            let (holds, read) = (held.remove(path).unwrap_or(0), account.read());
            // What is written of a revision is all that was read of it until then, since the first reading that may be missing.
            let mut written = std::iter::once(0).chain(account.sums.iter().copied()).skip(account.kept);
            if !written.any(|sum| account.before + sum == holds) || closed && holds != account.before + read {
                return Err(format!(
                    "{path}: the store holds {holds} ns, after {} ns before this life; it read {read} ns in {} readings and was told of \
                     {} that they are kept; closed: {closed}",
                    account.before,
                    account.sums.len(),
                    account.kept
                ));
            }
            lost += account.before + read - holds;
            *account = Account { before: holds, ..Account::default() };
        }
        if let Some((path, holds)) = held.into_iter().next() {
            return Err(format!("{path}: the store holds {holds} ns that nobody has read"));
        }
        if lost > 0 && open && !more_gaps {
            return Err(format!("{lost} ns were lost, and no gap says so"));
        }
        Ok(())
    }
}

/// The phases of a record together.
fn life(key: &str, value: &[u8]) -> Result<u128, String> {
    let read = || {
        let record: serde_json::Value = serde_json::from_slice(value).ok()?;
        serde_json::from_value::<MeterTotals>(record.get("used")?.clone()).ok()
    };
    Ok(read().ok_or(format!("{key} cannot be read"))?.life_ns())
}
