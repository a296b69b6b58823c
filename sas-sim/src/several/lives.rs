//! The hosts of a run, as whoever looks at them sees them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use parking_lot::Mutex;
use sas::Platform;
use sas_core::{MemoryStore, Place, RevisionKey};
use sas_testkit::fault::LinkFault;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    SeveralPlant, SeveralRun,
    link::{Gate, HostLink},
};
use crate::{clock::SimClock, history::History, host::name, runtime::SimRuntime, world::Violation};

pub(super) const NAMESPACE: &str = "default";
pub(super) const SERVICES: u32 = 5;
/// What hosts act for: services, and the namespace for its triggers.
pub(super) fn paths() -> impl Iterator<Item = String> {
    let services = (0..SERVICES).map(|service| format!("{NAMESPACE}/{}", name(service)));
    services.chain([NAMESPACE.to_owned()])
}

/// One life of a host.
pub(super) struct Life {
    pub(super) name: &'static str,
    pub(super) epoch: u64,
    pub(super) platform: Platform,
    pub(super) link: Arc<HostLink>,
    pub(super) gate: Gate,
    pub(super) runtime: Arc<SimRuntime>,
    pub(super) clock: Arc<SimClock>,
    pub(super) gone: CancellationToken,
    /// Since when it has had no fault; `None`: it has one.
    pub(super) well: Mutex<Option<Instant>>,
}

impl Life {
    /// The service that a revision is of.
    pub(super) fn service_of(&self, key: RevisionKey) -> Option<String> {
        let control = self.platform.control();
        let records = control.records();
        let mut names = records.iter().flat_map(|record| {
            record.revisions.iter().map(move |revision| (record.name.clone(), revision.name.clone()))
        });
        names
            .find(|(service, revision)| control.revision_key(NAMESPACE, service, revision) == Some(key))
            .map(|(service, _)| service)
    }

    pub(super) fn acts_for(&self, path: &str) -> bool {
        matches!(self.platform.cluster().map(|cluster| cluster.place(path)), Some(Place::Here(_)))
    }

    pub(super) fn knows_another(&self, path: &str) -> bool {
        matches!(self.platform.cluster().map(|cluster| cluster.place(path)), Some(Place::There(_)))
    }

    pub(super) fn break_link(&self, fault: LinkFault) {
        *self.well.lock() = None;
        self.link.link.set(fault);
    }

    pub(super) fn mend(&self) {
        self.link.link.set(LinkFault::None);
        self.gate.set(true);
        self.well.lock().get_or_insert_with(Instant::now);
    }

    /// Instances that it has of a service.
    pub(super) fn instances(&self, service: &str) -> u32 {
        let control = self.platform.control();
        let Ok(record) = control.record(NAMESPACE, service) else { return 0 };
        let keys =
            record.revisions.iter().filter_map(|it| control.revision_key(NAMESPACE, service, &it.name));
        keys.filter_map(|key| self.platform.pool().status(key)).map(|it| it.ready + it.starting).sum()
    }
}

/// What all parts of a run share.
pub(super) struct Shared {
    pub(super) plant: Option<SeveralPlant>,
    pub(super) history: Arc<History>,
    pub(super) store: Arc<MemoryStore>,
    pub(super) hosts: Mutex<BTreeMap<&'static str, Arc<Life>>>,
    /// Lives that were ended by a kill.
    pub(super) killed: Mutex<BTreeSet<u64>>,
    /// Writes that were refused in lives that are over.
    pub(super) refused: Mutex<u64>,
    pub(super) sent: Mutex<Vec<Sent>>,
    /// The generation of each service at its last acknowledged change.
    pub(super) kept: Mutex<BTreeMap<String, u64>>,
    pub(super) run: Mutex<SeveralRun>,
    pub(super) broken: Mutex<Option<Violation>>,
}

impl Shared {
    pub(super) fn lives(&self) -> Vec<Arc<Life>> {
        self.hosts.lock().values().cloned().collect()
    }

    pub(super) fn life(&self, name: &str) -> Option<Arc<Life>> {
        self.hosts.lock().get(name).cloned()
    }

    /// Since when a life has had no fault.
    pub(super) fn well_since(&self, epoch: u64) -> Option<Instant> {
        self.lives().iter().find(|life| life.epoch == epoch).and_then(|life| *life.well.lock())
    }

    pub(super) fn breaks(&self, violation: Violation) {
        self.broken.lock().get_or_insert(violation);
    }

    pub(super) fn fault(&self, kind: &'static str) {
        *self.run.lock().faults.entry(kind).or_default() += 1;
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("hosts", &self.hosts.lock().len()).finish_non_exhaustive()
    }
}

/// An event that a host's trigger sent.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) id: String,
    pub(super) epoch: u64,
    pub(super) at: Instant,
    pub(super) answered: Option<Instant>,
    /// Whether its host knew then that another one acts for it.
    pub(super) others: bool,
    /// Answered, and its host went on well for long enough to keep that.
    pub(super) kept: bool,
    /// Its host no longer acted before that.
    pub(super) given_away: bool,
}

impl Sent {
    pub(super) fn new(id: String, epoch: u64, others: bool) -> Self {
        Self { id, epoch, at: Instant::now(), answered: None, others, kept: false, given_away: false }
    }
}
