//! What tenants may use, and what is checked of a manifest before it is deployed.

use std::collections::{BTreeMap, HashMap, HashSet};

use sas_core::{
    Error, ErrorKind, Pool as _, QuotaExceeded, QuotaPressure, QuotaResource, Quotas, Result, RevisionSpec,
    ScalingSpec, SpecErrors, TenantKey, TenantQuota, Version,
};

use super::{Control, QUOTAS, Recovery, invalid, precondition, refused};

impl Control {
    /// What the tenant of a namespace may use, unless it may use what all may.
    pub fn tenant_quota(&self, namespace: &str) -> Option<TenantQuota> {
        self.tenant_quotas.get(namespace)
    }

    /// All namespaces whose tenants have a quota of their own.
    pub fn tenant_quotas(&self) -> Vec<(String, TenantQuota)> {
        self.tenant_quotas.all().into_iter().collect()
    }

    /// The version of the quota that was set here for the tenant of a namespace.
    pub(crate) fn tenant_quota_version(&self, namespace: &str) -> Option<Version> {
        self.tenant_quotas.version(namespace)
    }

    /// Gives the tenant of a namespace a quota of its own, and stores it. It goes in place of all that the host
    /// configured, and holds from the next request, start, event and deploy on: what runs is not stopped. `None`: back to
    /// what the host configured.
    ///
    /// # Errors
    /// `InvalidSpec` with the fields; `Unsupported` for what nothing here holds tenants to; `Unavailable` when the store
    /// fails.
    pub async fn set_tenant_quota(&self, namespace: &str, quota: Option<TenantQuota>) -> Result<()> {
        self.open()?;
        if !sas_knative::manifest::is_label(namespace) {
            return Err(invalid("quota", "namespace", namespace, sas_knative::manifest::LABEL));
        }
        if let Some(quota) = &quota {
            quota.validate().map_err(|errors| refused("quota", errors))?;
            self.can_hold(quota)?;
        }
        // Made here, so that the quota holds from the tenant's first request on.
        self.tenant(namespace).await?;
        let key = format!("{QUOTAS}{namespace}");
        // One change at a time: the same turn as that of a service of no name.
        let _changing = self.change(&key).await;
        let before = self.tenant_quotas.version(namespace).or_else(|| self.damaged.version(&key));
        precondition::check(&format!("the quota of {namespace}"), before)?;
        match (quota, before) {
            (Some(quota), before) => {
                let value = serde_json::to_vec(&quota).map_err(|error| {
                    Error::new(ErrorKind::Unexpected, "quota", format!("can't be written: {error}"))
                })?;
                let version = self.store.put(&key, before, value.into()).await?;
                self.damaged.remove(&key);
                self.tenant_quotas.insert(namespace, quota, version);
            }
            (None, Some(before)) => {
                self.store.delete(&key, before).await?;
                self.damaged.remove(&key);
                self.tenant_quotas.remove(namespace);
            }
            (None, None) => {}
        }
        self.limit_tenant(namespace);
        self.recovery_report.came_back(&format!("Quota {namespace}"));
        Ok(())
    }

    /// From now on this is what every tenant may use that has no quota of its own. Not stored: the host says it at each start.
    ///
    /// # Errors
    /// `InvalidSpec` with the fields; `Unsupported` for what nothing here holds tenants to.
    pub fn set_default_tenant_quota(&self, quota: TenantQuota) -> Result<()> {
        quota.validate().map_err(|errors| refused("quota", errors))?;
        self.can_hold(&quota)?;
        self.tenant_quotas.set_default(quota);
        self.tenants.namespaces().iter().for_each(|namespace| self.limit_tenant(namespace));
        Ok(())
    }

    /// Refuses what nothing here holds tenants to.
    fn can_hold(&self, quota: &TenantQuota) -> Result<()> {
        let pool = self.pool.quotas().is_some();
        let events = self.triggers.as_ref().is_some_and(|triggers| triggers.quotas().is_some());
        for (resource, _) in quota.limits() {
            let held = match resource {
                QuotaResource::Rate | QuotaResource::Concurrency => self.tenant_quotas.requests.is_some(),
                QuotaResource::Storage => true,
                QuotaResource::Events => events,
                _ => pool,
            };
            if !held {
                let message =
                    format!("nothing here holds tenants to their quota {}: leave it out", resource.field());
                return Err(Error::new(ErrorKind::Unsupported, "quota", message));
            }
        }
        Ok(())
    }

    /// Who holds tenants to their quotas, beside the control plane itself.
    fn enforcers(&self) -> impl Iterator<Item = &dyn Quotas> {
        let triggers = self.triggers.as_ref().and_then(|triggers| triggers.quotas());
        self.tenant_quotas.requests.as_deref().into_iter().chain(self.pool.quotas()).chain(triggers)
    }

    /// What is used of quotas, and what they refused.
    pub(crate) fn quota_pressure(&self) -> Vec<QuotaPressure> {
        let mut all: Vec<QuotaPressure> = self.enforcers().flat_map(Quotas::pressure).collect();
        let storage = |namespace: &String| self.tenant_quotas.in_force(namespace)?.storage_bytes;
        let limited: Vec<(String, u64)> = self
            .tenants
            .namespaces()
            .into_iter()
            .filter_map(|namespace| storage(&namespace).map(|limit| (namespace, limit)))
            .collect();
        // Looks at every revision.
        let stored = if limited.is_empty() { HashMap::new() } else { self.stored_bytes() };
        for (namespace, limit) in limited {
            let Some(tenant) = self.tenants.get(&namespace) else { continue };
            let used = stored.get(&tenant).copied().unwrap_or_default();
            let refused = self.tenant_quotas.refused_storage.lock().get(&namespace).copied();
            all.push(QuotaPressure::of_tenant(
                tenant,
                QuotaResource::Storage,
                limit as f64,
                used as f64,
                refused.unwrap_or_default(),
            ));
        }
        all
    }

    /// What a tenant may use and what it uses, of everything that its quota limits.
    pub(crate) fn tenant_pressure(&self, namespace: &str) -> Vec<QuotaPressure> {
        let Some(tenant) = self.tenants.get(namespace) else { return Vec::new() };
        let Some(quota) = self.tenant_quotas.in_force(namespace) else { return Vec::new() };
        let mut told: BTreeMap<QuotaResource, QuotaPressure> = self
            .quota_pressure()
            .into_iter()
            .filter(|one| one.tenant == Some(tenant))
            .map(|one| (one.resource, one))
            .collect();
        // What nobody has used yet is told too.
        let unused = |resource, limit| QuotaPressure::of_tenant(tenant, resource, limit, 0.0, 0);
        let all = quota.limits();
        all.map(|(resource, limit)| told.remove(&resource).unwrap_or_else(|| unused(resource, limit)))
            .collect()
    }

    /// Whether anything was ever deployed, declared or set in a namespace.
    pub(crate) fn knows_tenant(&self, namespace: &str) -> bool {
        self.tenants.get(namespace).is_some()
    }

    /// Tells those who hold tenants to quotas what a tenant that is known may use.
    pub(super) fn limit_tenant(&self, namespace: &str) {
        if let Some(tenant) = self.tenants.get(namespace) {
            let quota = self.tenant_quotas.in_force(namespace);
            self.enforcers().for_each(|quotas| quotas.set_tenant(tenant, quota));
        }
    }

    /// Brings back what the store holds of quotas; tenants are known already.
    pub(super) async fn recover_quotas(&self, recovery: &mut Recovery) -> Result<()> {
        for entry in self.entries(QUOTAS).await? {
            let namespace = entry.key[QUOTAS.len()..].to_owned();
            match serde_json::from_slice::<TenantQuota>(&entry.value) {
                Ok(quota) => self.tenant_quotas.insert(&namespace, quota, entry.version),
                Err(error) => {
                    let message = format!("{} is no quota: {error}; set it again", entry.key);
                    let error = Error::new(ErrorKind::InvalidSpec, "recover", message);
                    self.damaged.add(&entry.key, entry.version);
                    recovery.failed.push((format!("Quota {namespace}"), std::sync::Arc::new(error)));
                }
            }
        }
        for namespace in self.tenants.namespaces() {
            self.limit_tenant(&namespace);
        }
        Ok(())
    }

    /// Bytes of the packages of each tenant's revisions, each package counted once.
    fn stored_bytes(&self) -> HashMap<TenantKey, u64> {
        let mut counted: HashSet<(TenantKey, String)> = HashSet::new();
        let mut bytes: HashMap<TenantKey, u64> = HashMap::new();
        for record in self.records() {
            for revision in &record.revisions {
                if let (Some(package), Some(size)) = (&revision.package, revision.package_bytes)
                    && counted.insert((record.tenant, package.clone()))
                {
                    *bytes.entry(record.tenant).or_default() += size;
                }
            }
        }
        bytes
    }

    /// The turn to store a package, of a tenant whose storage is limited: until a record names the package, so that two
    /// deploys do not both find the last of the room.
    pub(super) async fn storage_turn(&self, namespace: &str) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        self.tenant_quotas.in_force(namespace)?.storage_bytes?;
        // No service has such a path.
        Some(self.turns.take(&format!("{QUOTAS}{namespace}/storage")).await)
    }

    /// Refuses a package that a tenant's storage has no room for, beside those of its other revisions.
    pub(super) fn check_storage(
        &self,
        namespace: &str,
        tenant: TenantKey,
        package: &str,
        size: u64,
    ) -> Result<()> {
        let Some(limit) = self.tenant_quotas.in_force(namespace).and_then(|quota| quota.storage_bytes) else {
            return Ok(());
        };
        let of_tenant = |record: &&std::sync::Arc<crate::record::ServiceRecord>| record.tenant == tenant;
        let known = self
            .records()
            .iter()
            .filter(of_tenant)
            .any(|record| record.revisions.iter().any(|one| one.package.as_deref() == Some(package)));
        let used = self.stored_bytes().get(&tenant).copied().unwrap_or_default();
        if known || used.saturating_add(size) <= limit {
            return Ok(());
        }
        *self.tenant_quotas.refused_storage.lock().entry(namespace.to_owned()).or_default() += 1;
        let over = QuotaExceeded::new(QuotaResource::Storage, limit as f64, used as f64, size as f64);
        let message = format!("{over}; delete revisions, or ask for a larger quota");
        Err(Error::new(ErrorKind::Exhausted, "deploy", message).with_source(over))
    }

    /// Refuses a spec of which a tenant's quota could not even hold what it is to have at the least.
    pub(super) fn check_tenant_holds(&self, namespace: &str, spec: &RevisionSpec) -> Result<()> {
        let Some(quota) = self.tenant_quotas.in_force(namespace) else { return Ok(()) };
        let mut errors = SpecErrors::default();
        let least = u64::from(match spec.scaling.max {
            0 => spec.scaling.min,
            most => spec.scaling.min.min(most),
        });
        let resources = &spec.resources;
        let memory = resources.memory_request_bytes.or(resources.memory_limit_bytes);
        let cpu = resources.cpu_request_millis.or(resources.cpu_limit_millis).map(u64::from);
        if let Some(most) = quota.instances.map(u64::from).filter(|most| least > *most) {
            let problem = format!("the tenant may have {most} instances (its quota): keep at most that many");
            errors.push("scaling.min", least, problem);
        }
        for (field, unit, said, most) in [
            ("resources.memory_request_bytes", "bytes of memory", memory, quota.memory_bytes),
            ("resources.cpu_request_millis", "thousandths of a core", cpu, quota.cpu_millis),
        ] {
            let Some((said, most)) = said.zip(most) else { continue };
            if said.saturating_mul(least.max(1)) > most {
                let problem = format!(
                    "the tenant may have {most} {unit} (its quota), and {} instances are to be there at the least: \
                     ask for less, or for a larger quota",
                    least.max(1),
                );
                errors.push(field, said, problem);
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(refused("deploy", errors)) }
    }

    /// Refuses a spec that no scaler of this platform serves.
    pub(super) fn check_scaling(&self, spec: &ScalingSpec) -> Result<()> {
        let Some(Err(found)) = self.manifests.scalers.as_ref().map(|scalers| scalers.validate(spec)) else {
            return Ok(());
        };
        let mut errors = SpecErrors::default();
        errors.extend_under("spec.template.spec.scaling", found);
        Err(refused("deploy", errors))
    }

    /// Refuses what of a manifest needs a part of the data plane that this platform has not.
    pub(super) fn check_data_plane(&self, quota: bool, plan: bool) -> Result<()> {
        let mut errors = SpecErrors::default();
        if quota && self.tenant_quotas.requests.is_none() {
            errors.push("metadata.annotations[sas.dev/quota-*]", "", "nothing here holds requests to quotas");
        }
        if plan && self.answers.is_none() {
            errors.push(
                "metadata.annotations[sas.dev/rollout-*]",
                "",
                "nothing here counts the errors of answers",
            );
        }
        if errors.is_empty() {
            return Ok(());
        }
        let message = errors.to_string();
        Err(Error::new(ErrorKind::Unsupported, "deploy", message).with_source(errors))
    }
}
