//! The stores, the log buffer and the meter pass the suites of their traits.

use std::{sync::Arc, time::Duration};

use sas_control::{LogBuffer, MemoryStore, Meter, RedbStore};
use sas_core::{MeterPhase, RevisionKey, Store};
use sas_testkit::{logs, meter, store};

#[tokio::test]
async fn the_memory_store_passes_the_store_suite() {
    let report = store::suite(async || ((), Arc::new(MemoryStore::default()) as Arc<dyn Store>)).await;
    println!("{report}");
    report.assert_passed_skipping(&["there after it was opened again", "go on rising after"]);
}

#[tokio::test]
async fn the_redb_store_passes_the_store_suite() {
    let report = store::suite(async || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state.redb");
        let opened = RedbStore::open(&path).await.expect("opened");
        let subject = store::Subject::new(Arc::new(opened)).reopen(move || {
            let path = path.clone();
            async move {
                // Whoever held it before is still letting go of the file.
                for _ in 0..500 {
                    match RedbStore::open(&path).await {
                        Ok(store) => return Arc::new(store) as Arc<dyn Store>,
                        Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                    }
                }
                panic!("the file is still held after five seconds");
            }
        });
        (dir, subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

#[tokio::test]
async fn the_log_buffer_passes_the_log_sink_suite() {
    // The revision under which the suite writes.
    let revision = RevisionKey::new(1, 0);
    let report = logs::suite(async || {
        let buffer = Arc::new(LogBuffer::default());
        let (reading, counting) = (buffer.clone(), buffer.clone());
        let subject = logs::Subject::new(buffer)
            .read(move |instance| {
                let lines = reading.tail(&[revision], usize::MAX, 0).into_iter();
                lines.filter(|line| line.instance == instance).map(|line| line.line.into_bytes()).collect()
            })
            .dropped(move || counting.dropped(revision));
        ((), subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

#[tokio::test]
async fn the_meter_passes_the_meter_sink_suite() {
    let report = meter::suite(async || {
        let meter = Arc::new(Meter::default());
        let (phases, requests) = (meter.clone(), meter.clone());
        let subject = meter::Subject::new(meter)
            .phase(move |revision, _, phase| {
                let totals = phases.revision(revision);
                match phase {
                    MeterPhase::Starting => totals.starting_ns,
                    MeterPhase::Pooled => totals.pooled_ns,
                    MeterPhase::Idle => totals.idle_ns,
                    MeterPhase::Busy => totals.busy_ns,
                    MeterPhase::Draining => totals.draining_ns,
                    _ => 0,
                }
            })
            .requests(move |revision, _| requests.revision(revision).requests);
        ((), subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}
