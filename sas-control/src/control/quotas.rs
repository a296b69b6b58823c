//! What tenants and services may use.

use sas_core::{Error, ErrorKind, Quota, QuotaPressure, Result, ScalingSpec, SpecErrors};

use super::{Control, QUOTAS, Recovery, invalid, refused};

impl Control {
    /// What the tenant of a namespace may use; `None`: what all tenants may.
    pub fn tenant_quota(&self, namespace: &str) -> Option<Quota> {
        self.tenant_quotas.get(namespace)
    }

    /// All namespaces whose tenants have a quota of their own.
    pub fn tenant_quotas(&self) -> Vec<(String, Quota)> {
        self.tenant_quotas.all().into_iter().collect()
    }

    /// Gives the tenant of a namespace a quota of its own, and stores it. `None`: back to what the host configured.
    ///
    /// # Errors
    /// `InvalidSpec` with the fields; `Unsupported` where nothing holds requests to quotas; `Unavailable` when the store
    /// fails.
    pub async fn set_tenant_quota(&self, namespace: &str, quota: Option<Quota>) -> Result<()> {
        self.open()?;
        if !sas_knative::manifest::is_label(namespace) {
            return Err(invalid("quota", "namespace", namespace, sas_knative::manifest::LABEL));
        }
        if self.tenant_quotas.enforcer.is_none() {
            return Err(Error::unsupported("quotas"));
        }
        if let Some(quota) = &quota {
            quota.validate().map_err(|errors| refused("quota", errors))?;
        }
        // Made here, so that the quota holds from the tenant's first request on.
        self.tenant(namespace).await?;
        let key = format!("{QUOTAS}{namespace}");
        // One change at a time: the same turn as that of a service of no name.
        let _changing = self.change(&key).await;
        let before = self.tenant_quotas.version(namespace).or_else(|| self.damaged.version(&key));
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

    /// What is used of quotas, and what they refused.
    pub(crate) fn quota_pressure(&self) -> Vec<QuotaPressure> {
        self.tenant_quotas.enforcer.as_ref().map_or_else(Vec::new, |quotas| quotas.pressure())
    }

    /// Tells the data plane what a tenant that is known may use.
    pub(super) fn limit_tenant(&self, namespace: &str) {
        let tenant = self.tenants.get(namespace);
        if let (Some(quotas), Some(tenant)) = (&self.tenant_quotas.enforcer, tenant) {
            quotas.set_tenant(tenant, self.tenant_quota(namespace));
        }
    }

    /// Brings back what the store holds of quotas; tenants are known already.
    pub(super) async fn recover_quotas(&self, recovery: &mut Recovery) -> Result<()> {
        for entry in self.entries(QUOTAS).await? {
            let namespace = entry.key[QUOTAS.len()..].to_owned();
            match serde_json::from_slice::<Quota>(&entry.value) {
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
        if quota && self.tenant_quotas.enforcer.is_none() {
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
