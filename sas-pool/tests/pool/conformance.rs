//! The suite for pools against [`InstancePool`].

use std::time::Duration;

use sas_core::Timestamp;
use sas_pool::{InstancePool, PoolConfig};
use sas_testkit::{
    fake::FakeClock,
    pool::{Subject, suite},
};

#[tokio::test(start_paused = true)]
async fn the_pool_keeps_its_contract() {
    let report = suite(async || {
        let clock = FakeClock::starting_at(Timestamp::from_secs(1_767_571_200));
        let mut config = PoolConfig::seeded(1);
        config.clock = std::sync::Arc::new(clock.clone());
        ((), Subject::new(InstancePool::new(config), Duration::from_secs(31)).on_clock(clock))
    })
    .await;
    report.assert_passed_skipping(&[]);
}
