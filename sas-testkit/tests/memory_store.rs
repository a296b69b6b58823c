//! The store in memory keeps the contract of `Store`.

use std::sync::Arc;

use sas_core::{MemoryStore, Store};
use sas_testkit::store;

#[tokio::test]
async fn the_memory_store_passes_the_store_suite() {
    let report = store::suite(async || ((), Arc::new(MemoryStore::default()) as Arc<dyn Store>)).await;
    println!("{report}");
    report.assert_passed_skipping(&["there after it was opened again", "go on rising after"]);
}
