//! What waits upstream of declared triggers, told to the scaling driver.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sas_autoscale::{Driver, Measurement};
use sas_control::Control;
use sas_core::Clock;
use sas_trigger::TriggerHost;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

/// How often sources are asked, and how long one may take to answer.
const PERIOD: Duration = Duration::from_secs(2);

/// Asks the sources of declared triggers until `stop`, and reports to each revision its share of what waits, by the
/// share of the traffic that it gets.
pub(crate) async fn report(
    triggers: Arc<TriggerHost>,
    control: Arc<Control>,
    driver: Arc<Driver>,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) {
    let mut every = tokio::time::interval(PERIOD);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let waiting = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            waiting = triggers.backlogs(PERIOD) => waiting,
        };
        for (service, waiting) in waiting {
            let shares = shares(&control, &*clock, &service);
            for (revision, percent) in shares {
                let Some(key) = service
                    .split_once('/')
                    .and_then(|(namespace, name)| control.revision_key(namespace, name, &revision))
                else {
                    continue;
                };
                let share = (u128::from(waiting) * u128::from(percent)).div_ceil(100);
                let backlog = Measurement::Backlog(u64::try_from(share).unwrap_or(u64::MAX));
                if let Err(error) = driver.report(key, backlog) {
                    tracing::warn!(%service, error = %error, "its backlog was not taken");
                }
            }
        }
    }
}

/// Percent of the traffic by revision; none for a service that there is not.
fn shares(control: &Control, clock: &dyn Clock, service: &str) -> BTreeMap<String, u32> {
    let mut shares = BTreeMap::new();
    let record = service.split_once('/').and_then(|(namespace, name)| control.record(namespace, name).ok());
    for share in record.iter().flat_map(|record| record.shares(clock.now())) {
        *shares.entry(share.revision).or_insert(0) += share.percent.min(100);
    }
    shares.retain(|_, percent| *percent > 0);
    shares
}
