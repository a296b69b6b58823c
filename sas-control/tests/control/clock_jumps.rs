//! The books of usage under clocks that jump: back, ahead by hours, over the end of an hour, and with kills in between.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_control::{Meter, MeterConfig, UsageExport, UsageExporter, UsageKey, UsageRecord};
use sas_core::{
    Hour, InstanceId, MemoryStore, MeterPhase, MeterSink as _, Metered, Result, RevisionKey, RevisionName,
    Secret, Store, TenantKey, Timestamp, UsageQuery as _, UsageScope,
};
use sas_testkit::fake::FakeClock;

/// Ten minutes before an hour ends.
const START: Timestamp = Timestamp::from_secs(1_767_571_200 - 600);

#[derive(Debug, Default)]
struct Taken(Mutex<Vec<UsageRecord>>);

#[async_trait]
impl UsageExport for Taken {
    async fn export(&self, records: &[UsageRecord]) -> Result<()> {
        self.0.lock().extend_from_slice(records);
        Ok(())
    }
}

/// A life of the platform, as its meter and its export see it.
struct Life {
    meter: Arc<Meter>,
    export: UsageExporter,
    /// Read, and not yet in a checkpoint.
    fresh: u128,
    /// Whether a kill now leaves a gap.
    open: bool,
}

impl Life {
    async fn begin(store: &Arc<dyn Store>, clock: &FakeClock, taken: &Arc<Taken>) -> Self {
        let mut config = MeterConfig::default();
        config.store = Arc::clone(store);
        config.clock = Arc::new(clock.clone());
        let meter = Arc::new(Meter::new(config));
        meter.begin().await.expect("the books open");
        let key =
            UsageKey::new("test", Secret::new("a key of a test, more than 32 bytes long")).expect("a key");
        let target = Arc::clone(taken) as Arc<dyn UsageExport>;
        let export = UsageExporter::new(Arc::clone(&meter), "bills", key, target).expect("an exporter");
        Self { meter, export, fresh: 0, open: false }
    }

    fn busy(&mut self, ns: u64) {
        let name = RevisionName::new("shop", "cart", "cart-1");
        let of = Metered::of(RevisionKey::new(1, 0), TenantKey(1), &name);
        self.meter.phase(of, InstanceId(1), MeterPhase::Busy, ns);
        self.fresh += u128::from(ns);
    }

    async fn checkpoint(&mut self) -> u128 {
        self.meter.checkpoint().await.expect("memory");
        self.open = true;
        std::mem::take(&mut self.fresh)
    }

    async fn export(&mut self) -> u128 {
        self.export.run_once().await.expect("taken");
        std::mem::take(&mut self.fresh)
    }
}

fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// What the records say together; each id once, since two of one id would be billed as one.
fn exported(taken: &Taken) -> u128 {
    let mut by_id: BTreeMap<String, String> = BTreeMap::new();
    for record in taken.0.lock().iter() {
        if let Some(busy) = record.get("busy_ns") {
            let twice = by_id.insert(record.id().to_owned(), busy.to_owned());
            assert_eq!(twice, None, "{} was exported twice", record.id());
        }
    }
    by_id.values().map(|ns| ns.parse::<u128>().expect("a number")).sum()
}

/// Days of readings, checkpoints, exports, jumps, shutdowns and kills, in an order that the seed draws.
async fn random_days(seed: u64) {
    let (store, clock) = (Arc::new(MemoryStore::default()) as Arc<dyn Store>, FakeClock::starting_at(START));
    let taken = Arc::new(Taken::default());
    let mut life = Life::begin(&store, &clock, &taken).await;
    let (mut state, mut kept, mut gaps, mut ahead) = (seed, 0_u128, 0, 0_i64);
    for _ in 0..120 {
        // No two checkpoints are of one moment.
        tokio::time::advance(Duration::from_millis(1)).await;
        match draw(&mut state) % 12 {
            0..=3 => life.busy(1 + draw(&mut state) % 1000),
            4 | 5 => kept += life.checkpoint().await,
            6 => kept += life.export().await,
            7 | 8 => {
                let by = draw(&mut state) % (5 * 3600);
                clock.jump_forward(Duration::from_secs(by));
                ahead += by as i64;
            }
            9 => {
                let by = draw(&mut state) % (3 * 3600);
                clock.jump_back(Duration::from_secs(by));
                ahead -= by as i64;
            }
            10 => {
                kept += life.fresh;
                life.meter.close().await.expect("memory");
                life = Life::begin(&store, &clock, &taken).await;
            }
            _ => {
                // A kill: what was read since the last checkpoint is gone, and that is written down.
                gaps += usize::from(life.open);
                life = Life::begin(&store, &clock, &taken).await;
            }
        }
    }
    kept += life.fresh;
    life.meter.close().await.expect("memory");
    let meter = &life.meter;
    let totals: u128 =
        meter.totals(&UsageScope::all()).await.unwrap().iter().map(|of| of.totals.busy_ns).sum();
    assert_eq!(totals, kept, "seed {seed}: every reading that was kept, once");
    let page = meter.hours(&UsageScope::all(), Hour(0), Hour(u64::MAX), None, 10_000).await.unwrap();
    let hours: u128 = page.hours.iter().map(|hour| hour.totals.busy_ns).sum();
    assert_eq!(hours, kept, "seed {seed}: the hours add up to the totals");
    let found = meter.gaps().await.unwrap();
    assert_eq!(found.len(), gaps, "seed {seed}: a gap for each kill");
    assert!(found.iter().all(|gap| gap.from <= gap.until), "seed {seed}: {found:?}");

    // Ahead of all that the clock ever said: everything is complete.
    clock.jump_forward(Duration::from_secs((200 * 3600 - ahead.min(0)).unsigned_abs() + 120 * 5 * 3600));
    life.export().await;
    assert_eq!(exported(&taken), kept, "seed {seed}: what is exported is what was used");
}

#[tokio::test(start_paused = true)]
async fn the_books_are_exact_whatever_the_clock_does() {
    for seed in 0..300 {
        random_days(seed).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_that_was_exported_by_a_clock_that_was_ahead_gets_nothing_added_after_a_restart() {
    let (store, clock) = (Arc::new(MemoryStore::default()) as Arc<dyn Store>, FakeClock::starting_at(START));
    let taken = Arc::new(Taken::default());
    let mut life = Life::begin(&store, &clock, &taken).await;
    life.busy(5);
    life.meter.close().await.unwrap();
    clock.jump_forward(Duration::from_secs(4 * 3600));
    life.export().await;
    assert_eq!(exported(&taken), 5);
    clock.jump_back(Duration::from_secs(4 * 3600));
    let mut life = Life::begin(&store, &clock, &taken).await;
    life.busy(7);
    life.meter.close().await.unwrap();
    clock.jump_forward(Duration::from_secs(10 * 3600));
    life.export().await;
    assert_eq!(exported(&taken), 12, "in the hour after, which was not exported yet");
}
