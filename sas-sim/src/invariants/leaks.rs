//! At rest nothing waits and nothing is out; after the shutdown no instance and no task is left.

use std::time::Duration;

use sas_core::Pool as _;

use crate::host::Host;

/// What is out or waits though nobody asks for anything.
pub(crate) fn at_rest(host: &Host) -> Vec<String> {
    let mut seen = Vec::new();
    for (name, key) in host.revisions() {
        if let Some(status) = host.pool().status(key)
            && (status.queued, status.in_flight) != (0, 0)
        {
            seen.push(format!("{name} at rest has {status:?}"));
        }
    }
    seen
}

/// What is left of a host that was shut down.
pub(crate) async fn after_shutdown(host: &Host) -> Vec<String> {
    let mut seen = Vec::new();
    let live = host.runtime.live();
    if !live.is_empty() {
        seen.push(format!("after the shutdown {live:?} still run"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    if tasks > 0 {
        seen.push(format!("after the shutdown {tasks} tasks are left"));
    }
    seen
}
