#![cfg(not(loom))]
//! The suite for pools against [`InstancePool`].

use std::time::Duration;

use sas_pool::{InstancePool, PoolConfig};
use sas_testkit::pool::{Subject, suite};

#[tokio::test(start_paused = true)]
async fn the_pool_keeps_its_contract() {
    let report = suite(async || {
        let pool = InstancePool::new(PoolConfig::seeded(1));
        ((), Subject::new(pool, Duration::from_secs(31)))
    })
    .await;
    report.assert_passed();
}
