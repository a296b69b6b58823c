//! What is measured of services outside of the pool, told to the scaling driver by the traffic of their revisions.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sas_autoscale::Measurement;
use sas_control::Control;
use sas_core::{Clock, Result, RevisionKey};
use sas_trigger::TriggerHost;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::engines::PlatformEngines;

/// How often sources are asked, and how long one may take to answer.
const PERIOD: Duration = Duration::from_secs(2);

/// Asks the sources of declared triggers until `stop`, and reports to each revision its share of what waits, by the
/// share of the traffic that it gets.
pub(crate) async fn report(
    triggers: Arc<TriggerHost>,
    control: Arc<Control>,
    engines: Arc<PlatformEngines>,
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
            // Services whose triggers stay a moment longer than they do have none.
            let shares = service
                .split_once('/')
                .and_then(|(namespace, name)| shares(&control, &*clock, namespace, name).ok())
                .unwrap_or_default();
            for (key, percent) in shares {
                let share = (u128::from(waiting) * u128::from(percent)).div_ceil(100);
                let backlog = Measurement::Backlog(u64::try_from(share).unwrap_or(u64::MAX));
                if let Some(driver) = engines.driver_of(key)
                    && let Err(error) = driver.report(key, backlog)
                {
                    tracing::warn!(%service, error = %error, "its backlog was not taken");
                }
            }
        }
    }
}

/// Percent of the traffic by revision that runs.
///
/// # Errors
/// `NotFound` when there is no such service.
pub(crate) fn shares(
    control: &Control,
    clock: &dyn Clock,
    namespace: &str,
    service: &str,
) -> Result<BTreeMap<RevisionKey, u32>> {
    let mut shares = BTreeMap::new();
    for share in control.record(namespace, service)?.shares(clock.now()) {
        if let Some(key) = control.revision_key(namespace, service, &share.revision)
            && share.percent > 0
        {
            *shares.entry(key).or_insert(0) += share.percent.min(100);
        }
    }
    Ok(shares)
}
