//! The log on a store keeps the contract of `EventLog`, also on a store with the least limits.

use std::sync::Arc;

use sas_core::{EventLog, MemoryStore, StoreLimits, StoreLog};
use sas_testkit::{
    event_log::{self, Subject},
    fake::FakeStore,
};

fn reopened(store: Arc<dyn sas_core::Store>) -> Subject {
    // The store outlives the log, as a file outlives a process.
    let again = Arc::clone(&store);
    Subject::new(Arc::new(StoreLog::new(store, "log"))).reopen(move || {
        let again = Arc::clone(&again);
        async move { Arc::new(StoreLog::new(again, "log")) as Arc<dyn EventLog> }
    })
}

#[tokio::test(start_paused = true)]
async fn the_log_on_the_memory_store_passes_the_event_log_suite() {
    let report = event_log::suite(async || ((), reopened(Arc::new(MemoryStore::default())))).await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

#[tokio::test(start_paused = true)]
async fn so_does_one_on_a_store_with_the_least_limits() {
    let store = || Arc::new(FakeStore::default().with_limits(StoreLimits::SMALLEST));
    let report = event_log::suite(async || ((), reopened(store()))).await;
    report.assert_passed_skipping(&[]);
    let log = || Arc::new(StoreLog::new(store(), "log")) as Arc<dyn EventLog>;
    event_log::suite(async || ((), log()))
        .await
        .assert_passed_skipping(&["opened again", "opened again, also"]);
}
