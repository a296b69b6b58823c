//! Active health checks: instances are asked, and those that fail are replaced.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sas_core::{Body, Endpoint, InstanceId, InstanceState, Pool, Probe, ProbeAction, RevisionKey};
use tokio::time::{Instant, timeout};

use crate::upstream::Upstream;

/// How often an instance is asked whose probe does not say.
const PERIOD: Duration = Duration::from_secs(10);

/// Asks the ready instances of revisions that have a liveness probe, and has the pool replace those that fail as often
/// in a row as the probe allows. TCP and HTTP probes of instances behind a socket are asked; others are the runtime's.
///
/// It has no task of its own: the host calls [`HealthChecks::round`] every second or so, with the revisions that have
/// instances. Passive checks need nothing of this: every failed call is told to the pool with its lease.
#[derive(Debug)]
pub struct HealthChecks {
    pool: Arc<dyn Pool>,
    upstream: Arc<Upstream>,
    asked: HashMap<InstanceId, Asked>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    next: Instant,
    failures: u32,
}

impl HealthChecks {
    /// Checks of the instances of `pool`.
    pub fn new(pool: Arc<dyn Pool>) -> Self {
        Self { pool, upstream: Upstream::new(crate::UpstreamConfig::default()), asked: HashMap::new() }
    }

    /// Asks every instance that is due, one after the other, and gives back those that are being replaced.
    ///
    /// **Cancel safety:** what was not asked yet is asked in the next round.
    pub async fn round(&mut self, revisions: &[RevisionKey]) -> Vec<(RevisionKey, InstanceId)> {
        let mut replaced = Vec::new();
        let mut seen = HashMap::with_capacity(self.asked.len());
        for revision in revisions {
            let Some(deployed) = self.pool.deployed(*revision) else { continue };
            let Some(probe) = &deployed.spec.liveness else { continue };
            for view in self.pool.instances(*revision) {
                let (Some(endpoint), InstanceState::Ready) = (&view.endpoint, view.state) else { continue };
                let now = Instant::now();
                let mut asked = self.asked.get(&view.id).copied().unwrap_or(Asked { next: now, failures: 0 });
                if view.age >= probe.initial_delay && asked.next <= now {
                    let period = if probe.period.is_zero() { PERIOD } else { probe.period };
                    asked.next = now + period;
                    match self.ask(probe, endpoint).await {
                        Some(false) => asked.failures += 1,
                        _ => asked.failures = 0,
                    }
                }
                if asked.failures >= probe.failure_threshold.max(1) {
                    tracing::warn!(revision = %deployed.name, instance = %view.id, "replacing an unhealthy instance");
                    if self.pool.recycle(*revision, view.id, deployed.spec.timeouts.stop_grace) {
                        replaced.push((*revision, view.id));
                    }
                } else {
                    seen.insert(view.id, asked);
                }
            }
        }
        // Instances that are gone are forgotten.
        self.asked = seen;
        replaced
    }

    /// `None`: not for us to ask.
    async fn ask(&self, probe: &Probe, endpoint: &Endpoint) -> Option<bool> {
        let at = |port: &Option<u16>| match (endpoint, port) {
            (Endpoint::Tcp(address), Some(port)) => Endpoint::Tcp((address.ip(), *port).into()),
            (Endpoint::Within(address, sockets), Some(port)) => {
                Endpoint::Within((address.ip(), *port).into(), Arc::clone(sockets))
            }
            _ => endpoint.clone(),
        };
        match &probe.action {
            ProbeAction::Tcp { port } => Some(
                timeout(probe.timeout, self.upstream.probe(&at(port))).await.is_ok_and(|made| made.is_ok()),
            ),
            ProbeAction::Http { path, port, headers } => {
                let mut request = http::Request::get(path.as_str()).header(http::header::HOST, "localhost");
                for (name, value) in headers {
                    request = request.header(name, value);
                }
                // A probe that can't be a request fails as often as it is asked, and the log says which.
                let Ok(request) = request.header(http::header::CONNECTION, "close").body(Body::empty())
                else {
                    return Some(false);
                };
                let endpoint = at(port);
                let answered = timeout(probe.timeout, self.upstream.send_upgrade(&endpoint, request)).await;
                Some(answered.is_ok_and(|answer| {
                    answer.is_ok_and(|answer| (200..400).contains(&answer.status().as_u16()))
                }))
            }
            _ => None,
        }
    }
}
