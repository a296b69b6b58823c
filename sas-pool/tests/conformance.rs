//! The instance pool passes the suite for pools.

use std::time::Duration;

use sas_pool::{InstancePool, PoolConfig};
use sas_testkit::pool::{self, Subject};

#[tokio::test(start_paused = true)]
async fn the_instance_pool_passes_the_pool_suite() {
    let report = pool::suite(async || {
        let pool = InstancePool::new(PoolConfig::seeded(7));
        ((), Subject::new(pool, Duration::from_secs(60)))
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}
