//! What revisions used: added up in memory, kept in the store by hour, signed, exported, and priced.

mod export;
mod ledger;
mod price;
mod record;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use dashmap::DashMap;
use sas_core::{
    Clock, Hour, InstanceId, MemoryStore, MeterPhase, MeterSink, MeterTotals, Metered, RequestUsage, Result,
    RevisionName, RevisionUsage, Store, SystemClock, UsageGap, UsagePage, UsageQuery, UsageScope,
};
use tokio::sync::{Mutex, Notify};
use tokio_util::sync::CancellationToken;

pub use export::{EventUsageExport, FileUsageExport, UsageExport, UsageExporter};
use ledger::Ledger;
pub use price::{Cost, CostLine, PriceTable, Prices};
pub use record::{UsageKey, UsageRecord};

/// How a [`Meter`] keeps what it counts.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MeterConfig {
    /// Where it keeps it. In memory unless this says otherwise.
    pub store: Arc<dyn Store>,
    /// Wall time, which decides the hour that a reading counts for.
    pub clock: Arc<dyn Clock>,
    /// How often readings are written while there are any: what a kill may cost. 10 s.
    pub checkpoint: Duration,
    /// Hours whose records are kept; sums are kept for good. 2,160, which are 90 days.
    pub keep_hours: u64,
    /// The name of this host, where several share a store: each has a checkpoint of its own. `host`.
    pub host: String,
}

impl Default for MeterConfig {
    fn default() -> Self {
        Self {
            store: Arc::new(MemoryStore::default()),
            clock: Arc::new(SystemClock),
            checkpoint: Duration::from_secs(10),
            keep_hours: 90 * 24,
            host: "host".to_owned(),
        }
    }
}

/// A [`MeterSink`] that adds up by revision and hour, and keeps the sums in a store: what a revision used stays known
/// after it is gone, and after a restart.
///
/// Readings are added up in memory, and written at each checkpoint (10 s while anything is used), at the end of each
/// hour, and by [`Meter::close`]. After a kill the next [`Meter::begin`] finds that nobody closed, and writes down the
/// gap: from the last checkpoint until now ([`UsageQuery::gaps`]). Nothing else is lost. When the store fails, readings
/// stay in memory and are written with the next checkpoint.
///
/// The platform builder makes one on the platform's store. Made by hand, [`Meter::begin`] it, [`Meter::run`] it in a
/// task, and [`Meter::close`] it at the end; without, it counts in memory.
#[derive(Debug)]
pub struct Meter {
    /// What is not in the ledger yet; by name, since engines give keys of their own.
    fresh: DashMap<RevisionName, MeterTotals>,
    /// The same of stems.
    stems: parking_lot::Mutex<MeterTotals>,
    /// Whether anything was read since the last checkpoint began.
    touched: AtomicBool,
    woken: Notify,
    ledger: Mutex<Ledger>,
    config: MeterConfig,
}

impl Default for Meter {
    fn default() -> Self {
        Self::new(MeterConfig::default())
    }
}

impl Meter {
    /// A meter that has read nothing.
    pub fn new(config: MeterConfig) -> Self {
        Self {
            fresh: DashMap::new(),
            stems: parking_lot::Mutex::default(),
            touched: AtomicBool::new(false),
            woken: Notify::new(),
            ledger: Mutex::new(Ledger::new(&config)),
            config,
        }
    }

    /// Takes the books over as an earlier life left them; a life that was not closed leaves a gap, which is returned and
    /// written down. Once, before the first reading.
    ///
    /// # Errors
    /// `Unavailable` when the store can't be reached; `InvalidSpec` when what it holds can't be read.
    pub async fn begin(&self) -> Result<Option<UsageGap>> {
        let gap = self.ledger.lock().await.begin().await?;
        if let Some(gap) = gap {
            tracing::warn!(
                from = gap.from.0,
                until = gap.until.0,
                "the last life of this platform was not closed: readings in between are missing"
            );
        }
        Ok(gap)
    }

    /// Writes checkpoints until `stop`, and none while nothing is used. Then the caller closes.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.woken.notified() => {}
            }
            // The first reading after a quiet time: from here on a kill leaves a gap.
            self.checkpoint_or_warn(true).await;
            loop {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(self.until_checkpoint()) => {}
                }
                let used = self.touched.load(Ordering::Acquire);
                self.checkpoint_or_warn(used).await;
                if !used {
                    break;
                }
            }
        }
    }

    /// Until the next checkpoint, or the end of the hour if that is earlier.
    fn until_checkpoint(&self) -> Duration {
        let now = self.config.clock.now();
        let end = Hour(Hour::of(now).0 + 1).start();
        self.config.checkpoint.min(end.since(now).max(Duration::from_millis(1)))
    }

    async fn checkpoint_or_warn(&self, open: bool) {
        if let Err(error) = self.write(open).await {
            tracing::warn!(error = %error.chain(), "usage stays in memory until the store takes it");
        }
    }

    /// Writes what was read since the last checkpoint. Durable when it returns.
    ///
    /// # Errors
    /// `Unavailable` when the store can't be reached; the readings stay in memory, and go with the next checkpoint.
    pub async fn checkpoint(&self) -> Result<()> {
        self.write(true).await
    }

    /// The last checkpoint, which says that nothing follows: a start after it finds no gap.
    ///
    /// # Errors
    /// As [`Meter::checkpoint`].
    pub async fn close(&self) -> Result<()> {
        self.write(false).await
    }

    async fn write(&self, open: bool) -> Result<()> {
        let mut ledger = self.ledger.lock().await;
        self.drain(&mut ledger);
        ledger.write(open).await
    }

    /// The hours before this one are complete: nothing will be added to them.
    pub(crate) async fn complete_before(&self) -> Result<Hour> {
        let mut ledger = self.ledger.lock().await;
        self.drain(&mut ledger);
        let open = self.touched.load(Ordering::Acquire) || ledger.is_open();
        ledger.write(open).await?;
        ledger.complete_before().await
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.config.store
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.config.clock
    }

    /// Moves what was read into the ledger's hour. Revisions of which nothing was read since the last time go.
    fn drain(&self, ledger: &mut Ledger) {
        self.touched.store(false, Ordering::Release);
        ledger.catch_up();
        self.fresh.retain(|name, totals| {
            if totals.is_zero() {
                return false;
            }
            ledger.add(Some(name), &std::mem::take(totals));
            true
        });
        let stems = std::mem::take(&mut *self.stems.lock());
        if !stems.is_zero() {
            ledger.add(None, &stems);
        }
    }

    fn read(&self, of: Metered<'_>, add: impl FnOnce(&mut MeterTotals)) {
        match of.name {
            Some(name) => match self.fresh.get_mut(name) {
                Some(mut totals) => add(&mut totals),
                None => add(&mut self.fresh.entry(name.clone()).or_default()),
            },
            None => add(&mut self.stems.lock()),
        }
        // After the reading, so that a checkpoint that clears the mark has it, or the mark is set again.
        if !self.touched.load(Ordering::Acquire) && !self.touched.swap(true, Ordering::AcqRel) {
            self.woken.notify_one();
        }
    }
}

impl MeterSink for Meter {
    fn phase(&self, of: Metered<'_>, _: InstanceId, phase: MeterPhase, ns: u64) {
        self.read(of, |totals| totals.add(phase, ns));
    }

    fn resources(&self, of: Metered<'_>, _: InstanceId, cpu_ns: u64, memory_byte_ns: u128) {
        self.read(of, |totals| {
            totals.cpu_ns += u128::from(cpu_ns);
            totals.memory_byte_ns += memory_byte_ns;
        });
    }

    fn requests(&self, of: Metered<'_>, used: &RequestUsage) {
        self.read(of, |totals| totals.add_requests(used));
    }

    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        Some(self)
    }
}

#[async_trait]
impl UsageQuery for Meter {
    async fn totals(&self, scope: &UsageScope) -> Result<Vec<RevisionUsage>> {
        let mut ledger = self.ledger.lock().await;
        self.drain(&mut ledger);
        ledger.totals(scope).await
    }

    async fn hours(
        &self,
        scope: &UsageScope,
        from: Hour,
        until: Hour,
        after: Option<&str>,
        limit: usize,
    ) -> Result<UsagePage> {
        let mut ledger = self.ledger.lock().await;
        self.drain(&mut ledger);
        ledger.hours(scope, from, until, after, limit).await
    }

    async fn gaps(&self) -> Result<Vec<UsageGap>> {
        self.ledger.lock().await.gaps().await
    }
}
