//! Looking at instances by the second, for those who ask later.

use std::{sync::Arc, time::Duration};

use sas_control::RequestLog;
use sas_core::Pool;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// Samples the instances of those revisions that were asked lately, until `stop`.
pub(crate) async fn sample(requests: Arc<RequestLog>, pool: Arc<dyn Pool>, stop: CancellationToken) {
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = every.tick() => requests.sample(&*pool),
        }
    }
}
