//! What must hold, one promise per file.

mod capacity;
mod desired_reached;
pub(crate) mod durable;
mod executed_once;
mod health;
pub(crate) mod leaks;
mod limits;
mod lost_wakeups;
mod metering;
mod one_answer;
mod queue;
mod quotas;
mod reasons;
pub(crate) mod replay;
mod requests;
mod triggers;

use std::{collections::BTreeMap, fmt, time::Duration};

use sas_core::{InstanceState, Pool as _};

use crate::{history::Fact, host::Host};

/// A revision at a moment.
#[derive(Clone, Debug)]
pub(crate) struct RevisionView {
    pub(crate) max: u32,
    pub(crate) ready: u32,
    pub(crate) starting: u32,
    pub(crate) queued: u32,
    /// Leases out and limit of each instance that takes requests.
    pub(crate) instances: Vec<(u32, u32)>,
}

/// The platform at a moment.
#[derive(Debug)]
pub struct View {
    pub(crate) revisions: BTreeMap<(u32, u64), RevisionView>,
    /// Whether the platform keeps instances warm, and starts them ahead of calls, as it pleases.
    pub(crate) ahead: bool,
    /// Whether the plan has any fault.
    pub(crate) faulty: bool,
    /// Whether everything is over.
    pub(crate) end: bool,
}

impl View {
    pub(crate) fn of(host: Option<&Host>, faulty: bool, end: bool) -> Self {
        let mut revisions = BTreeMap::new();
        for service in 0..3 {
            let Some(host) = host else { break };
            for key in host.keys(service) {
                let (Some(status), Some(deployed)) = (host.pool().status(key), host.pool().deployed(key))
                else {
                    continue;
                };
                let instances = host.pool().instances(key);
                let ready = instances.iter().filter(|it| it.state == InstanceState::Ready && !it.ejected);
                let view = RevisionView {
                    max: deployed.spec.scaling.max,
                    ready: status.ready,
                    starting: status.starting,
                    queued: status.queued,
                    instances: ready.map(|it| (it.in_flight, it.limit)).collect(),
                };
                revisions.insert((service, host.life.revision(key)), view);
            }
        }
        Self { revisions, ahead: host.is_some_and(|host| host.ahead), faulty, end }
    }
}

/// A promise. It sees every fact once, in order, and the platform every quarter of a second.
pub trait Invariant: fmt::Debug {
    /// What is promised.
    fn name(&self) -> &'static str;

    /// Looks at what happened since the last look.
    ///
    /// # Errors
    /// What was seen that must not be.
    fn look(&mut self, facts: &[(Duration, Fact)], view: &View) -> Result<(), String>;
}

/// All that look while a plan runs. Leaks and replays are looked at in the end, what is durable at every restart.
pub(crate) fn all() -> Vec<Box<dyn Invariant>> {
    vec![
        Box::<one_answer::OneAnswer>::default(),
        Box::<executed_once::ExecutedOnce>::default(),
        Box::<limits::Limits>::default(),
        Box::<lost_wakeups::LostWakeups>::default(),
        Box::<metering::Metering>::default(),
        Box::<requests::RequestsReconcile>::default(),
        Box::<desired_reached::DesiredReached>::default(),
        Box::<capacity::RolloutsConserveCapacity>::default(),
        Box::<reasons::Reasons>::default(),
        Box::<triggers::TriggersFire>::default(),
        Box::<quotas::Quotas>::default(),
        Box::<health::Health>::default(),
        Box::<queue::MessagesArrive>::default(),
    ]
}
