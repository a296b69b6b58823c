//! What was used stays known: over retired revisions, restarts, kills, stores that fail, and exports that are cut off.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use sas_control::{
    EventUsageExport, FileUsageExport, Meter, MeterConfig, PriceTable, UsageExport, UsageExporter, UsageKey,
    UsageRecord,
};
use sas_core::{
    Clock, Commit, Entry, Error, ErrorKind, Event, EventPublisher, Hour, InstanceId, MemoryStore, MeterPhase,
    MeterSink, MeterTotals, Metered, RequestUsage, Result, RevisionKey, RevisionName, RevisionUsage, Secret,
    Store, StoreLimits, TenantKey, Timestamp, TokioClock, UsageQuery, UsageScope, Version, Watched,
};
use sas_testkit::fault::SlowDisk;
use tokio_util::sync::CancellationToken;

const START: Timestamp = Timestamp::from_secs(1_767_571_200); // 2026-01-05T00:00:00Z
const HOUR: Duration = Duration::from_secs(3_600);

fn meter(store: &Arc<dyn Store>, clock: TokioClock) -> Arc<Meter> {
    let mut config = MeterConfig::default();
    config.store = Arc::clone(store);
    config.clock = Arc::new(clock);
    Arc::new(Meter::new(config))
}

fn meter_of(store: &Arc<dyn Store>, clock: TokioClock, host: &str) -> Arc<Meter> {
    let mut config = MeterConfig::default();
    config.store = Arc::clone(store);
    config.clock = Arc::new(clock);
    config.host = host.into();
    Arc::new(Meter::new(config))
}

fn clock() -> TokioClock {
    TokioClock::starting_at(START)
}

fn busy(meter: &Meter, revision: &str, ns: u64) {
    let name = RevisionName::new("shop", "cart", revision);
    let key = RevisionKey::new(revision.len() as u32, 0);
    meter.phase(Metered::of(key, TenantKey(1), &name), InstanceId(1), MeterPhase::Busy, ns);
}

async fn busy_ns(meter: &Meter, scope: &UsageScope) -> u128 {
    meter.totals(scope).await.unwrap().iter().map(|used| used.totals.busy_ns).sum()
}

fn key() -> UsageKey {
    UsageKey::new("test", Secret::new("a key of a test, more than 32 bytes long")).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_retired_revision_and_a_restart_forget_nothing() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let clock = clock();
    let first = meter(&store, clock);
    assert_eq!(first.begin().await.unwrap(), None);
    busy(&first, "a", 5);
    busy(&first, "bb", 7);
    first.forget(RevisionKey::new(1, 0));
    first.close().await.unwrap();

    let second = meter(&store, clock);
    assert_eq!(second.begin().await.unwrap(), None, "it was closed");
    busy(&second, "a", 1);
    let scope = UsageScope::revision("shop", "cart", "a");
    assert_eq!(busy_ns(&second, &scope).await, 6);
    assert_eq!(busy_ns(&second, &UsageScope::service("shop", "cart")).await, 13);
    assert_eq!(busy_ns(&second, &UsageScope::namespace("other")).await, 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_kill_what_follows_the_last_checkpoint_is_missing_and_the_gap_is_a_record() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let clock = clock();
    let first = meter(&store, clock);
    first.begin().await.unwrap();
    let running = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.run(CancellationToken::new()).await }
    });
    // Quiet at first: nothing is written, and a kill would leave no gap.
    tokio::time::sleep(HOUR / 2).await;
    assert_eq!(store.version().await.unwrap(), Version(0));
    for _ in 0..26 {
        busy(&first, "a", 1_000_000_000);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Killed: what was read since the checkpoint of 20 s is lost.
    let last = clock.now();
    running.abort();
    drop(first);
    tokio::time::sleep(Duration::from_secs(60)).await;

    let second = meter(&store, clock);
    let gap = second.begin().await.unwrap().expect("nobody closed");
    assert!(gap.from < last && last.since(gap.from) <= Duration::from_secs(10), "{gap:?}");
    assert_eq!(gap.until, clock.now());
    let kept = busy_ns(&second, &UsageScope::all()).await;
    assert_eq!(kept, gap.from.since(START + HOUR / 2).as_secs() as u128 * 1_000_000_000 + 1_000_000_000);
    assert_eq!(second.gaps().await.unwrap(), [gap]);
    second.close().await.unwrap();
    assert_eq!(meter(&store, clock).begin().await.unwrap(), None, "a gap is found once");
}

#[tokio::test(start_paused = true)]
async fn what_is_read_while_a_slow_store_writes_a_checkpoint_is_in_the_gap_of_a_kill() {
    let slow = SlowDisk::new(Arc::new(MemoryStore::default()));
    let store = Arc::clone(&slow) as Arc<dyn Store>;
    let clock = clock();
    let first = meter(&store, clock);
    first.begin().await.unwrap();
    slow.delay(Duration::from_secs(2));
    busy(&first, "a", 1);
    let taken = clock.now();
    let writing = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.checkpoint().await }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    busy(&first, "a", 10);
    writing.await.unwrap().unwrap();
    assert!(clock.now().since(taken) >= Duration::from_secs(4), "it has read and written");
    drop(first);
    slow.delay(Duration::ZERO);

    let second = meter(&store, clock);
    let gap = second.begin().await.unwrap().expect("nobody closed");
    assert_eq!(busy_ns(&second, &UsageScope::all()).await, 1, "the later one is lost");
    assert_eq!(gap.from, taken, "and it is in the gap");
}

#[tokio::test(start_paused = true)]
async fn a_quiet_platform_that_is_killed_has_no_gap() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let clock = clock();
    let first = meter(&store, clock);
    first.begin().await.unwrap();
    let running = tokio::spawn({
        let first = Arc::clone(&first);
        async move { first.run(CancellationToken::new()).await }
    });
    busy(&first, "a", 1);
    tokio::time::sleep(Duration::from_secs(45)).await;
    let version = store.version().await.unwrap();
    tokio::time::sleep(10 * HOUR).await;
    assert_eq!(store.version().await.unwrap(), version, "nothing is written while nothing is used");
    running.abort();
    assert_eq!(meter(&store, clock).begin().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn use_is_known_by_the_hour_in_pages() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let meter = meter(&store, clock());
    let running = tokio::spawn({
        let meter = Arc::clone(&meter);
        async move { meter.run(CancellationToken::new()).await }
    });
    for _ in 0..5 {
        for (revision, ns) in [("a", 1), ("bb", 10), ("ccc", 100)] {
            busy(&meter, revision, ns);
        }
        tokio::time::sleep(HOUR).await;
    }
    busy(&meter, "a", 1);
    let first = Hour::of(START);
    let (from, until) = (Hour(first.0 + 1), Hour(first.0 + 6));
    let mut seen = Vec::new();
    let mut after = None;
    loop {
        let page = meter.hours(&UsageScope::all(), from, until, after.as_deref(), 2).await.unwrap();
        assert!(page.hours.len() <= 2);
        seen.extend(
            page.hours.iter().map(|used| (used.hour.0 - first.0, used.revision.clone(), used.totals.busy_ns)),
        );
        match page.next {
            Some(next) => after = Some(next),
            None => break,
        }
    }
    let mut expected: Vec<(u64, String, u128)> = (1..5)
        .flat_map(|hour| [("a", 1), ("bb", 10), ("ccc", 100)].map(|(name, ns)| (hour, name.to_owned(), ns)))
        .collect();
    expected.push((5, "a".to_owned(), 1));
    assert_eq!(seen, expected);
    let scope = UsageScope::revision("shop", "cart", "bb");
    let page = meter.hours(&scope, first, until, None, 3).await.unwrap();
    assert_eq!(page.hours.len(), 3);
    let rest = meter.hours(&scope, first, until, page.next.as_deref(), 3).await.unwrap();
    assert_eq!((rest.hours.len(), rest.next), (2, None));
    let error = meter.hours(&scope, first, until, Some("x"), 3).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn old_hours_go_and_their_sums_stay() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let mut config = MeterConfig::default();
    config.store = Arc::clone(&store);
    config.clock = Arc::new(clock());
    config.keep_hours = 3;
    let meter = Meter::new(config);
    for at in 0..8 {
        busy(&meter, if at < 2 { "gone" } else { "stays" }, 1);
        tokio::time::sleep(HOUR).await;
        meter.checkpoint().await.unwrap();
    }
    let hours = store.list("usage/hour/", None, 100).await.unwrap();
    assert_eq!(hours.len(), 3, "{hours:?}");
    let totals = meter.totals(&UsageScope::service("shop", "cart")).await.unwrap();
    let totals: Vec<_> = totals.iter().map(|used| (used.revision.as_str(), used.totals.busy_ns)).collect();
    assert_eq!(totals, [("stays", 6), (RevisionUsage::RETIRED, 2)]);
}

/// A store that fails every so many commits, half of them after it has done them.
#[derive(Debug)]
struct Unsure {
    inner: MemoryStore,
    commits: AtomicU32,
}

#[async_trait]
impl Store for Unsure {
    fn limits(&self) -> StoreLimits {
        StoreLimits::SMALLEST
    }
    async fn version(&self) -> Result<Version> {
        self.inner.version().await
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.inner.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.inner.list(prefix, after, limit).await
    }
    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.inner.watch(prefix, since).await
    }
    async fn commit(&self, commit: Commit) -> Result<Version> {
        let turn = self.commits.fetch_add(1, Ordering::Relaxed);
        if turn.is_multiple_of(6) {
            self.inner.commit(commit).await?;
        } else if !turn.is_multiple_of(3) {
            return self.inner.commit(commit).await;
        }
        Err(Error::new(ErrorKind::Unavailable, "commit", "nobody knows whether it was done"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_neither_loses_nor_doubles_a_reading() {
    let store: Arc<dyn Store> =
        Arc::new(Unsure { inner: MemoryStore::default(), commits: AtomicU32::new(0) });
    let meter = meter(&store, clock());
    let mut expected = 0_u128;
    let mut failed = 0;
    for at in 0..400_u64 {
        // More revisions than a commit holds, so that a checkpoint is several.
        for revision in 0..40 {
            let name = RevisionName::new("shop", "cart", &format!("r{revision}"));
            let of = Metered::of(RevisionKey::new(revision, 0), TenantKey(1), &name);
            meter.phase(of, InstanceId(1), MeterPhase::Busy, at);
            meter.requests(of, &RequestUsage::of(1));
            expected += u128::from(at);
        }
        failed += u32::from(meter.checkpoint().await.is_err());
        tokio::time::sleep(Duration::from_secs(60)).await;
        if at % 10 == 0 {
            assert_eq!(busy_ns(&meter, &UsageScope::all()).await, expected);
        }
    }
    assert!(failed > 100, "{failed}");
    while meter.close().await.is_err() {}
    let page = meter.hours(&UsageScope::all(), Hour(0), Hour(u64::MAX), None, 10_000).await.unwrap();
    assert_eq!(page.hours.iter().map(|used| used.totals.busy_ns).sum::<u128>(), expected);
    assert_eq!(page.hours.iter().map(|used| used.totals.requests).sum::<u64>(), 16_000);
    assert_eq!(busy_ns(&meter, &UsageScope::all()).await, expected);
}

/// What both write is written by the other in between, so that nothing there tells whose commit was the last.
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_under_two_hosts_neither_loses_nor_doubles_a_reading() {
    let store: Arc<dyn Store> =
        Arc::new(Unsure { inner: MemoryStore::default(), commits: AtomicU32::new(0) });
    let hosts = ["one", "two"].map(|host| meter_of(&store, clock(), host));
    let (mut expected, mut failed) = (0_u128, 0);
    for at in 1..=400_u64 {
        for meter in &hosts {
            meter.phase(Metered::host(RevisionKey::new(9, 0)), InstanceId(1), MeterPhase::Pooled, at);
            busy(meter, "a", at);
            expected += u128::from(at);
            failed += u32::from(meter.checkpoint().await.is_err());
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert!(failed > 100, "{failed}");
    for meter in &hosts {
        while meter.close().await.is_err() {}
    }
    let totals = hosts[0].totals(&UsageScope::all()).await.unwrap();
    assert_eq!(totals.iter().map(|used| used.totals.busy_ns).sum::<u128>(), expected);
    assert_eq!(totals.iter().map(|used| used.totals.pooled_ns).sum::<u128>(), expected, "of stems");
}

#[tokio::test(start_paused = true)]
async fn an_hour_is_exported_when_every_host_has_left_it() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let clock = clock();
    let (one, two) = (meter_of(&store, clock, "one"), meter_of(&store, clock, "two"));
    let taken = Arc::new(Taken::default());
    let export = UsageExporter::new(Arc::clone(&one), "billing", key(), Arc::clone(&taken) as _).unwrap();
    tokio::time::sleep(HOUR - Duration::from_secs(5)).await;
    busy(&one, "a", 5);
    busy(&two, "a", 7);
    for meter in [&one, &two] {
        meter.checkpoint().await.unwrap();
    }
    busy(&two, "a", 1);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(export.run_once().await.unwrap(), 0, "the other host has more of the hour that is over");
    two.checkpoint().await.unwrap();
    assert_eq!(export.run_once().await.unwrap(), 1);
    assert_eq!(taken.records.lock()[0].get("busy_ns"), Some("13"));
    // A host that was killed and stays away holds nothing up for longer than an hour.
    busy(&one, "a", 2);
    one.checkpoint().await.unwrap();
    tokio::time::sleep(HOUR + Duration::from_secs(60)).await;
    assert_eq!(export.run_once().await.unwrap(), 1);
}

/// Takes nothing and never says so.
#[derive(Debug)]
struct Hanging;

#[async_trait]
impl UsageExport for Hanging {
    async fn export(&self, _: &[UsageRecord]) -> Result<()> {
        std::future::pending().await
    }
}

#[tokio::test(start_paused = true)]
async fn an_export_that_hangs_ends_when_it_is_to() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let meter = meter(&store, clock());
    busy(&meter, "a", 5);
    meter.checkpoint().await.unwrap();
    let export = UsageExporter::new(Arc::clone(&meter), "billing", key(), Arc::new(Hanging)).unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { export.run(stop).await }
    });
    tokio::time::sleep(HOUR * 2).await;
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(1), running).await.expect("it ends").unwrap();
    meter.close().await.expect("and the last readings are written");
}

#[derive(Debug, Default)]
struct Taken {
    records: Mutex<Vec<UsageRecord>>,
    failing: Mutex<bool>,
}

#[async_trait]
impl UsageExport for Taken {
    async fn export(&self, records: &[UsageRecord]) -> Result<()> {
        if *self.failing.lock() {
            return Err(Error::new(ErrorKind::Unavailable, "export", "down"));
        }
        self.records.lock().extend_from_slice(records);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn exports_are_signed_and_go_on_where_they_ended() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let clock = clock();
    let first = meter(&store, clock);
    let taken = Arc::new(Taken::default());
    let exporter = |meter: &Arc<Meter>| {
        UsageExporter::new(Arc::clone(meter), "billing", key(), Arc::clone(&taken) as _).unwrap()
    };
    let export = exporter(&first);
    busy(&first, "a", 5);
    assert_eq!(export.run_once().await.unwrap(), 0, "the hour is not over");
    tokio::time::sleep(HOUR).await;
    *taken.failing.lock() = true;
    assert!(export.run_once().await.is_err());
    *taken.failing.lock() = false;
    assert_eq!(export.run_once().await.unwrap(), 1, "what was not taken comes again");
    assert_eq!(export.run_once().await.unwrap(), 0);
    busy(&first, "a", 6);
    busy(&first, "bb", 7);
    first.checkpoint().await.unwrap();
    // Killed and started again: the gap goes out too, and nothing a second time.
    tokio::time::sleep(HOUR).await;
    let second = meter(&store, clock);
    second.begin().await.unwrap().expect("a gap");
    tokio::time::sleep(HOUR).await;
    assert_eq!(exporter(&second).run_once().await.unwrap(), 3);

    let records = taken.records.lock().clone();
    let told: Vec<_> = records
        .iter()
        .map(|record| (record.get("kind").unwrap(), record.get("revision"), record.get("busy_ns")))
        .collect();
    assert_eq!(
        told,
        [
            ("usage", Some("a"), Some("5")),
            ("usage", Some("a"), Some("6")),
            ("usage", Some("bb"), Some("7")),
            ("gap", None, None)
        ]
    );
    assert_eq!(records[0].get("hour"), Some("2026-01-05T00:00:00.000Z"));
    for record in &records {
        record.verify(&key()).unwrap();
        let forged = record.to_json().replace("\"busy_ns\":\"7\"", "\"busy_ns\":\"8\"");
        let forged = UsageRecord::from_json(&forged).unwrap();
        assert_eq!(forged.verify(&key()).is_err(), record.get("busy_ns") == Some("7"));
    }
    let other = UsageKey::new("test", Secret::new("another key, and more than 32 bytes long too")).unwrap();
    assert!(records[0].verify(&other).is_err());
    assert!(!format!("{:?} {:?}", key(), export).contains("a key of a test"), "keys are not printed");
}

#[test]
fn a_signature_is_that_of_the_canonical_bytes() {
    let mut used = MeterTotals::default();
    used.busy_ns = u128::from(u64::MAX) + 1;
    let hour = sas_core::HourUsage::new(Hour(490_325), RevisionUsage::new("shop", "cart", "a", used));
    let record = UsageRecord::sign_usage(&hour, &key());
    let canonical = String::from_utf8(record.canonical()).unwrap();
    assert_eq!(
        canonical,
        r#"{"busy_ns":"18446744073709551616","bytes_in":"0","bytes_out":"0","cold_starts":"0","cpu_ns":"0","draining_ns":"0","events":"0","hour":"2025-12-08T05:00:00.000Z","id":"490325/shop/cart/a","idle_ns":"0","key":"test","kind":"usage","memory_byte_ns":"0","namespace":"shop","pooled_ns":"0","requests":"0","revision":"a","service":"cart","starting_ns":"0"}"#
    );
    // Made with `openssl dgst -sha256 -hmac`, over the bytes above.
    assert_eq!(record.signature(), "50140b5ce0fb5b001ac63dcc1448f4c9e7f8de0dc7367bc59db0ee563f21cb66");
    assert!(UsageKey::new("short", Secret::new("short")).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_file_has_every_record_once_also_after_it_was_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("usage.jsonl");
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let meter = meter(&store, clock());
    for _ in 0..3 {
        busy(&meter, "a", 1);
        meter.close().await.unwrap();
        tokio::time::sleep(HOUR).await;
    }
    let file = FileUsageExport::new(&path);
    let taken = Arc::new(Taken::default());
    let all = UsageExporter::new(Arc::clone(&meter), "all", key(), Arc::clone(&taken) as _).unwrap();
    assert_eq!(all.run_once().await.unwrap(), 3);
    let records = taken.records.lock().clone();
    // The first two were written, the third in part, and the cursor not at all.
    file.export(&records[..2]).await.unwrap();
    let mut text = std::fs::read_to_string(&path).unwrap();
    text.push_str(&records[2].to_json()[..40]);
    std::fs::write(&path, &text).unwrap();
    let export = UsageExporter::new(Arc::clone(&meter), "file", key(), Arc::new(file)).unwrap();
    assert_eq!(export.run_once().await.unwrap(), 3);
    let text = std::fs::read_to_string(&path).unwrap();
    let lines: Vec<UsageRecord> = text.lines().map(|line| UsageRecord::from_json(line).unwrap()).collect();
    assert_eq!(lines, records);
}

#[derive(Debug, Default)]
struct Published(Mutex<Vec<Event>>);

#[async_trait]
impl EventPublisher for Published {
    async fn publish(&self, event: Event) -> Result<()> {
        self.0.lock().push(event);
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn records_go_out_as_events() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let meter = meter(&store, clock());
    busy(&meter, "a", 5);
    meter.checkpoint().await.unwrap();
    tokio::time::sleep(HOUR).await;
    let published = Arc::new(Published::default());
    let target = Arc::new(EventUsageExport::new(Arc::clone(&published) as _));
    UsageExporter::new(meter, "events", key(), target).unwrap().run_once().await.unwrap();
    let events = published.0.lock();
    let [event] = &events[..] else { panic!("{events:?}") };
    assert_eq!((event.kind(), event.data_content_type()), ("dev.sas.usage.hour", Some("application/json")));
    let record = UsageRecord::from_json(std::str::from_utf8(event.data()).unwrap()).unwrap();
    record.verify(&key()).unwrap();
    assert_eq!((event.id(), record.get("busy_ns")), (record.id(), Some("5")));
}

#[test]
fn idle_is_priced_apart_from_busy_and_a_gap_in_the_table_is_named() {
    let table = r#"{"currency": "EUR", "default": {"busySecond": 100, "idleSecond": 10, "startingSecond": 1,
        "drainingSecond": 0, "pooledSecond": 0, "cpuSecond": 0, "gibSecond": 7, "millionRequests": 1000000,
        "gibTransferred": 0}, "namespaces": {"free": {"busySecond": 0, "idleSecond": 0, "startingSecond": 0,
        "drainingSecond": 0, "pooledSecond": 0, "cpuSecond": 0, "gibSecond": 0, "millionRequests": 0,
        "gibTransferred": 0}}}"#;
    let prices = PriceTable::parse(table).unwrap();
    let mut used = MeterTotals::default();
    used.busy_ns = 2_000_000_000;
    used.idle_ns = 30_500_000_000;
    used.starting_ns = 4_000_000_000;
    used.memory_byte_ns = 3 * (1 << 30) * 1_000_000_000;
    used.requests = 5;
    let cost = prices.cost(&[
        RevisionUsage::new("shop", "cart", "a", used),
        RevisionUsage::new("free", "cart", "a", used),
    ]);
    assert_eq!((cost.busy, cost.idle, cost.other, cost.total), (200, 305, 4 + 21 + 5, 535));
    assert_eq!(cost.lines[1].total, 0);

    for (bad, named) in [
        (table.replace(r#""gibSecond": 7, "#, ""), "default.gibSecond: \"\": missing"),
        (table.replace(r#""idleSecond": 0"#, r#""idleSecond": -1"#), "namespaces.free.idleSecond"),
        (table.replace("busySecond\": 100", "busySecond\": 1.5"), "default.busySecond"),
        (table.replace("busySecond\": 100", "busySecond\": 1, \"busyHour\": 2"), "default.busyHour"),
        (table.replace("\"currency\": \"EUR\", ", ""), "currency"),
        ("currency: EUR".to_owned(), "default: \"\": missing"),
        ("[1".to_owned(), "not YAML"),
    ] {
        let error = PriceTable::parse(&bad).unwrap_err();
        assert!(error.to_string().contains(named), "{named}: {error}");
    }
}

/// The formats of what is stored: whoever changes them breaks the books of those who run an older version.
#[tokio::test(start_paused = true)]
async fn the_stored_formats_are_as_they_were() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let meter = meter(&store, clock());
    busy(&meter, "a", 5);
    meter.checkpoint().await.unwrap();
    let stored: BTreeMap<String, String> = store
        .list("usage/", None, 100)
        .await
        .unwrap()
        .into_iter()
        .map(|entry| (entry.key, String::from_utf8(entry.value.to_vec()).unwrap()))
        .collect();
    let used = r#""used":{"starting_ns":0,"pooled_ns":0,"idle_ns":0,"busy_ns":5,"draining_ns":0,"cpu_ns":0,"memory_byte_ns":"0","requests":0,"cold_starts":0,"events":0,"bytes_in":0,"bytes_out":0}}"#;
    let mark = START.0 + 1;
    let expected = [
        (
            "usage/checkpoint/host".to_owned(),
            format!(r#"{{"v":1,"at":{},"open":true,"hour":490992}}"#, START.0),
        ),
        ("usage/hour/0000490992/shop/cart/a".to_owned(), format!(r#"{{"v":1,{used}"#)),
        ("usage/mark/host".to_owned(), format!(r#"{{"v":1,"mark":{mark}}}"#)),
        ("usage/total/shop/cart/a".to_owned(), format!(r#"{{"v":1,"last":490992,{used}"#)),
    ];
    assert_eq!(stored, expected.into());
}
