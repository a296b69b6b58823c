//! What can be seen of a platform at one moment.

use std::{collections::HashMap, sync::Arc, time::Duration};

use sas_core::{
    Capabilities, Deployed, InstanceView, PoolTotals, QuotaPressure, RevisionKey, RevisionSpec,
    RevisionStatus, StemView, StuckRun, Timestamp, UsageScope,
};
use tokio::time::Instant;

use super::{
    CertificateState,
    host::{self, Host},
};
use crate::control::Control;

/// A revision that is registered.
#[derive(Clone, Debug)]
pub(super) struct RevisionLook {
    pub(super) key: RevisionKey,
    /// `namespace/name (revision)`.
    pub(super) subject: String,
    pub(super) service: String,
    pub(super) spec: Arc<RevisionSpec>,
    pub(super) can: Capabilities,
    pub(super) runtime: &'static str,
    pub(super) status: RevisionStatus,
    pub(super) instances: Vec<InstanceView>,
    /// Requests since it was registered; `None`: not known here.
    pub(super) requests: Option<u64>,
}

/// An engine.
#[derive(Clone, Debug)]
pub(super) struct EngineLook {
    pub(super) name: String,
    pub(super) totals: PoolTotals,
    pub(super) stems: Vec<StemView>,
}

/// A quota, and what is used of it.
#[derive(Clone, Debug)]
pub(super) struct QuotaLook {
    pub(super) subject: String,
    pub(super) pressure: QuotaPressure,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) at: Timestamp,
    pub(super) mono: Instant,
    pub(super) revisions: Vec<RevisionLook>,
    pub(super) engines: Vec<EngineLook>,
    pub(super) quotas: Vec<QuotaLook>,
    /// Services whose requests meet faults on purpose, with how many were set and met.
    pub(super) faults: Vec<(String, usize, u64)>,
    /// Triggers by the service that they send to.
    pub(super) triggers: Vec<(String, String)>,
    pub(super) host: Host,
    pub(super) certificates: Vec<CertificateState>,
    pub(super) certificate_problem: Option<String>,
    /// Runs of workflows that do not go on.
    pub(super) stuck_runs: Vec<StuckRun>,
    /// Records in the store that can't be read, each with what is wrong.
    pub(super) damaged: Vec<(String, String)>,
}

impl Control {
    fn faulty_services(&self) -> Vec<(String, usize, u64)> {
        if !self.rules.allow_faults {
            return Vec::new();
        }
        let records = self.records();
        let faulty = records.iter().filter(|record| !record.faults.is_empty());
        faulty.map(|record| (record.path(), record.faults.len(), self.faulted(record).iter().sum())).collect()
    }

    pub(super) async fn look(&self) -> Look {
        let directories = self.diagnosis_config.directories.clone();
        let host = tokio::task::spawn_blocking(move || host::look(&directories)).await.unwrap_or_default();
        let mut registered: Vec<(RevisionKey, Arc<Deployed>)> = Vec::new();
        for live in self.lives() {
            let keys: Vec<RevisionKey> = live
                .state
                .lock()
                .observed
                .registrations
                .iter()
                .filter(|r| !r.retiring)
                .map(|r| r.key)
                .collect();
            registered.extend(keys.into_iter().filter_map(|key| Some((key, self.pool.deployed(key)?))));
        }
        let used = match self.usage() {
            Ok(usage) => usage.totals(&UsageScope::all()).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let used: HashMap<(String, String), u64> = used
            .into_iter()
            .map(|used| {
                ((format!("{}/{}", used.namespace, used.service), used.revision), used.totals.requests)
            })
            .collect();
        let mut revisions = Vec::with_capacity(registered.len());
        for (key, deployed) in registered {
            let Some(status) = self.pool.status(key) else { continue };
            let name = &deployed.name;
            let asked = (name.service_path().to_owned(), name.revision().to_owned());
            let requests = used.get(&asked).copied();
            revisions.push(RevisionLook {
                key,
                subject: format!("{} ({})", deployed.name.service_path(), deployed.name.revision()),
                service: deployed.name.service_path().to_owned(),
                spec: Arc::clone(&deployed.spec),
                can: deployed.runtime.capabilities(),
                runtime: deployed.runtime.name(),
                instances: if status.ready + status.starting > 0 {
                    self.pool.instances(key)
                } else {
                    Vec::new()
                },
                status,
                requests,
            });
        }
        let awake = revisions.iter().any(|revision| revision.status.ready > 0);
        let triggers = if awake { self.trigger_targets().await } else { Vec::new() };
        let quotas = self.quota_pressure().into_iter().map(|pressure| {
            let subject = match (&pressure.service, pressure.tenant) {
                (Some(service), _) => format!("service {service}"),
                (None, Some(tenant)) => match self.namespace_of(tenant) {
                    Some(namespace) => format!("tenant {namespace}"),
                    None => format!("tenant {}", tenant.0),
                },
                (None, None) => "host".to_owned(),
            };
            QuotaLook { subject, pressure }
        });
        let certificates = self.diagnosis_config.certificates.as_ref();
        Look {
            at: self.clock.now(),
            mono: Instant::now(),
            revisions,
            engines: self
                .engines()
                .holdings()
                .into_iter()
                .map(|(name, totals, stems)| EngineLook { name, totals, stems })
                .collect(),
            quotas: quotas.collect(),
            faults: self.faulty_services(),
            triggers,
            host,
            certificates: certificates.map(|source| source.certificates()).unwrap_or_default(),
            certificate_problem: certificates.and_then(|source| source.problem()),
            damaged: self.stored.damaged(&self.store).await,
            stuck_runs: self.workflow_host().map(|host| host.stuck()).unwrap_or_default(),
        }
    }
}

/// The age of the oldest instance that takes requests.
pub(super) fn oldest(revision: &RevisionLook) -> Duration {
    revision.instances.iter().map(|instance| instance.age).max().unwrap_or_default()
}
