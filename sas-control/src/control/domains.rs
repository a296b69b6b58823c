//! Hosts that are mapped to services: whose a host is, and what answers there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;
use sas_core::{Error, ErrorKind, Principal, Result, Timestamp, Version};
use sas_knative::manifest::DomainMapping;
use serde::{Deserialize, Serialize};

use super::{Control, DOMAINS, Recovery, precondition};
use crate::invalid::{invalid, refused};

/// Hosts that one namespace may have mapped.
const MOST: usize = 1000;

/// A mapped host, as the store holds it under `domain/<host>`. The first namespace that maps a host has it until it lets
/// go of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
#[non_exhaustive]
pub struct DomainRecord {
    /// What is mapped.
    pub mapping: DomainMapping,
    /// When the host was first mapped.
    pub created_at: Timestamp,
    /// Who asked for the last change, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_by: Option<Principal>,
}

impl DomainRecord {
    /// The service, as `namespace/name`.
    pub fn service(&self) -> String {
        format!("{}/{}", self.mapping.namespace, self.mapping.service)
    }
}

/// All mapped hosts, and those of each service.
#[derive(Debug, Default)]
pub(crate) struct Domains(RwLock<Known>, RwLock<Vec<String>>);

#[derive(Debug, Default)]
struct Known {
    hosts: BTreeMap<String, (Arc<DomainRecord>, Version)>,
    of: BTreeMap<String, BTreeSet<String>>,
}

impl Domains {
    /// Takes these hosts, with or without ports, for those of the admin API, which nobody maps: a browser that has signed in
    /// there would send its cookie to the service.
    pub(crate) fn reserve(&self, hosts: &[String]) {
        *self.1.write() = hosts.iter().map(|host| host_only(host).to_ascii_lowercase()).collect();
    }

    fn is_reserved(&self, host: &str) -> bool {
        self.1.read().iter().any(|own| own == host)
    }

    pub(super) fn get(&self, host: &str) -> Option<(Arc<DomainRecord>, Version)> {
        self.0.read().hosts.get(host).cloned()
    }

    /// The hosts of a service.
    pub(super) fn of(&self, service: &str) -> BTreeSet<String> {
        self.0.read().of.get(service).cloned().unwrap_or_default()
    }

    fn all(&self) -> Vec<Arc<DomainRecord>> {
        self.0.read().hosts.values().map(|(record, _)| Arc::clone(record)).collect()
    }

    fn count(&self, namespace: &str) -> usize {
        self.0.read().hosts.values().filter(|(record, _)| record.mapping.namespace == namespace).count()
    }

    pub(super) fn insert(&self, record: DomainRecord, version: Version) {
        let mut known = self.0.write();
        let host = record.mapping.host.clone();
        if let Some((before, _)) = known.hosts.get(&host).cloned() {
            known.forget(&before.service(), &host);
        }
        known.of.entry(record.service()).or_default().insert(host.clone());
        known.hosts.insert(host, (Arc::new(record), version));
    }

    pub(super) fn remove(&self, host: &str) {
        let mut known = self.0.write();
        if let Some((before, _)) = known.hosts.remove(host) {
            known.forget(&before.service(), host);
        }
    }
}

impl Known {
    fn forget(&mut self, service: &str, host: &str) {
        if let Some(hosts) = self.of.get_mut(service) {
            hosts.remove(host);
            if hosts.is_empty() {
                self.of.remove(service);
            }
        }
    }
}

fn host_only(host: &str) -> &str {
    host.split_once(':').map_or(host, |(name, _)| name).trim_end_matches('.')
}

fn taken(host: &str) -> Error {
    // Whose it is, is not told.
    let message =
        format!("metadata.name {host:?}: is mapped by another namespace, which has to let go of it first");
    Error::new(ErrorKind::Conflict, "domain", message)
}

impl Control {
    /// All mapped hosts, in their order.
    pub fn domains(&self) -> Vec<Arc<DomainRecord>> {
        self.domains.all()
    }

    /// A mapped host, and the version of what is stored of it.
    pub(crate) fn domain(&self, host: &str) -> Option<(Arc<DomainRecord>, Version)> {
        self.domains.get(host)
    }

    /// Maps a host to a service of its namespace, which may come later. From then on the gateway routes the host as it
    /// routes the service's own.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no host, a host below the platform's own domain, or one of the admin API's hosts; `Conflict` when another namespace has
    /// the host; `Exhausted` when the namespace has 1,000; `Unavailable` when the store fails.
    pub async fn apply_domain(
        self: &Arc<Self>,
        principal: Option<&Principal>,
        mapping: DomainMapping,
    ) -> Result<DomainMapping> {
        self.open()?;
        mapping.validate().map_err(|errors| refused("domain", errors))?;
        let below = |domain: &str| mapping.host == domain || mapping.host.ends_with(&format!(".{domain}"));
        if below(&self.rules.domain) || below(&self.rules.internal) {
            let problem =
                "is below the platform's own domain, whose hosts are given to services by their names";
            return Err(invalid("domain", "metadata.name", &mapping.host, problem));
        }
        if self.domains.is_reserved(&mapping.host) {
            let problem = "is a host of the platform's admin API, whose pages keep sessions in its cookies; map another";
            return Err(invalid("domain", "metadata.name", &mapping.host, problem));
        }
        self.tenant(&mapping.namespace).await?;
        let key = format!("{DOMAINS}{}", mapping.host);
        let changing = self.change(&key).await;
        let before = self.domains.get(&mapping.host);
        match &before {
            Some((record, _)) if record.mapping.namespace != mapping.namespace => {
                return Err(taken(&mapping.host));
            }
            None if self.domains.count(&mapping.namespace) >= MOST => {
                let message =
                    format!("namespace {} has {MOST} mapped hosts; delete one first", mapping.namespace);
                return Err(Error::new(ErrorKind::Exhausted, "deploy", message));
            }
            _ => {}
        }
        let created_at = before.as_ref().map_or_else(|| self.clock.now(), |(record, _)| record.created_at);
        let record = DomainRecord { mapping: mapping.clone(), created_at, changed_by: principal.cloned() };
        let value = serde_json::to_vec(&record).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "domain", format!("{key} can't be written: {error}"))
        })?;
        let expected = before.as_ref().map(|(_, version)| *version).or_else(|| self.damaged.version(&key));
        let version = self.store.put(&key, expected, value.into()).await?;
        self.damaged.remove(&key);
        let service = record.service();
        self.domains.insert(record, version);
        drop(changing);
        self.recovery_report.came_back(&format!("DomainMapping {}", mapping.host));
        // The old service lets go of the host before the new one takes it.
        if let Some(old) = before.map(|(record, _)| record.service()).filter(|old| *old != service) {
            self.settle_service(&old).await?;
        }
        self.settle_service(&service).await?;
        Ok(mapping)
    }

    /// Takes a mapped host back.
    ///
    /// # Errors
    /// `NotFound` when the namespace has not mapped it; `Unavailable` when the store fails.
    pub async fn delete_domain(self: &Arc<Self>, namespace: &str, host: &str) -> Result<()> {
        self.open()?;
        let key = format!("{DOMAINS}{host}");
        let changing = self.change(&key).await;
        let found = self.domains.get(host).filter(|(record, _)| record.mapping.namespace == namespace);
        let Some((record, version)) = found else {
            let message = format!("{namespace} has not mapped the host {host}");
            return Err(Error::new(ErrorKind::NotFound, "domain", message));
        };
        precondition::check(host, Some(version))?;
        self.store.delete(&key, version).await?;
        self.domains.remove(host);
        drop(changing);
        self.settle_service(&record.service()).await
    }

    pub(super) async fn settle_service(self: &Arc<Self>, path: &str) -> Result<()> {
        let _changing = self.change(path).await;
        self.settle(path).await
    }

    /// Brings back what the store holds of mapped hosts, before the services that they lead to.
    pub(super) async fn recover_domains(&self, recovery: &mut Recovery) -> Result<()> {
        for entry in self.entries(DOMAINS).await? {
            let host = &entry.key[DOMAINS.len()..];
            match serde_json::from_slice::<DomainRecord>(&entry.value) {
                Ok(record) if record.mapping.host == host => self.domains.insert(record, entry.version),
                damaged => {
                    let problem = damaged.err().map_or_else(String::new, |error| format!(": {error}"));
                    let message = format!("{} is no mapped host{problem}; map it again", entry.key);
                    let error = Error::new(ErrorKind::InvalidSpec, "recover", message);
                    self.damaged.add(&entry.key, entry.version);
                    recovery.failed.push((format!("DomainMapping {host}"), Arc::new(error)));
                }
            }
        }
        Ok(())
    }
}
