//! The data plane of a platform, and the engines that it works over: what a control plane drives without knowing how
//! either is made.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    AnswerCounter, EngineKey, HostShares, Invoker, Isolation, Pool, Quotas, Rehearsals, Result, Router,
    Runtime, SpecErrors,
};

/// What requests come in through: one for all engines of a platform.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DataPlane {
    /// Which revision answers a request.
    pub router: Arc<dyn Router>,
    /// Who calls, for test runs and triggers.
    pub invoker: Arc<dyn Invoker>,
    /// Who holds requests to quotas; `None`: nobody does, and services with quotas are refused.
    pub quotas: Option<Arc<dyn Quotas>>,
    /// Who counts answers; `None`: nobody does, and roll-outs that look at errors are refused.
    pub answers: Option<Arc<dyn AnswerCounter>>,
    /// Who copies requests and makes faults; `None`: nobody does, and services with mirrors or faults are refused.
    pub rehearsals: Option<Arc<dyn Rehearsals>>,
    /// Who passes requests on to hosts that run a part of a service; `None`: nobody does, and each service stays on one host.
    pub shares: Option<Arc<dyn HostShares>>,
}

impl DataPlane {
    /// One that neither holds requests to quotas nor counts answers.
    pub fn new(router: Arc<dyn Router>, invoker: Arc<dyn Invoker>) -> Self {
        Self { router, invoker, quotas: None, answers: None, rehearsals: None, shares: None }
    }
}

/// For whom an engine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", rename_all_fields = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub enum EngineKind {
    /// All of its services belong to one owner, who trusts them: any isolation will do.
    Dedicated,
    /// Its tenants do not trust each other.
    Shared {
        /// The weakest isolation that a tenant may run on. Processes of one user can read each other's environment, so
        /// it is stated.
        isolation: Isolation,
        /// Services that one tenant may have; `None`: any number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        services_per_tenant: Option<usize>,
    },
}

impl EngineKind {
    /// Shared by tenants that run on `isolation` or stronger, with up to 1,000 services each.
    pub const fn shared(isolation: Isolation) -> Self {
        Self::Shared { isolation, services_per_tenant: Some(1000) }
    }

    /// What it is called: `dedicated` or `shared`.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Dedicated => "dedicated",
            Self::Shared { .. } => "shared",
        }
    }

    /// The weakest isolation that tenants may run on; `None`: any.
    pub const fn isolation(&self) -> Option<Isolation> {
        match self {
            Self::Dedicated => None,
            Self::Shared { isolation, .. } => Some(*isolation),
        }
    }

    /// Services that one tenant may have; `None`: any number.
    pub const fn services_per_tenant(&self) -> Option<usize> {
        match self {
            Self::Dedicated => None,
            Self::Shared { services_per_tenant, .. } => *services_per_tenant,
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What of the machine is set aside for an engine, so that no other takes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
#[non_exhaustive]
pub struct Reserved {
    /// Bytes of memory that its instances and stems may count with; `None`: what is left over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Instances that it may have at once; `None`: what is left over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
}

/// The name of the engine of all namespaces that no other engine names.
pub const DEFAULT_ENGINE: &str = "default";

/// An engine as it is declared: for whom it is, and what is set aside for it.
///
/// ```
/// use sas_core::{EngineKind, EngineSpec};
/// let mut spec = EngineSpec::new("payments", EngineKind::Dedicated);
/// spec.namespaces.push("payments".to_owned());
/// spec.reserved.memory_bytes = Some(4 << 30);
/// spec.validate()?;
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct EngineSpec {
    /// Its name: 1 to 63 lower-case letters, digits and dashes, unique on the platform.
    pub name: String,
    /// For whom it is.
    #[serde(flatten)]
    pub kind: EngineKind,
    /// The namespaces whose services run on it. The engine [`DEFAULT_ENGINE`] names none: it has all that no other names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// What is set aside for it.
    #[serde(default)]
    pub reserved: Reserved,
}

impl EngineSpec {
    /// An engine of no namespace yet, with nothing set aside.
    pub fn new(name: impl Into<String>, kind: EngineKind) -> Self {
        Self { name: name.into(), kind, namespaces: Vec::new(), reserved: Reserved::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        let name = self.name.as_bytes();
        let letters = name.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
        if name.is_empty() || name.len() > 63 || !letters {
            errors.push("name", &self.name, "must be 1 to 63 lower-case letters, digits and dashes");
        }
        if self.name == DEFAULT_ENGINE && !self.namespaces.is_empty() {
            let problem = "must be empty: the default engine has every namespace that no other engine names";
            errors.push("namespaces", self.namespaces.join(","), problem);
        }
        for (at, namespace) in self.namespaces.iter().enumerate() {
            if self.namespaces[..at].contains(namespace) {
                errors.push(format!("namespaces[{at}]"), namespace, "is named twice");
            }
        }
        if self.reserved.memory_bytes == Some(0) {
            errors.push(
                "reserved.memoryBytes",
                0,
                "must be more than nothing; leave it out for what is left over",
            );
        }
        if self.reserved.instances == Some(0) {
            errors.push("reserved.instances", 0, "must be at least 1; leave it out for what is left over");
        }
        errors.into_result()
    }
}

impl Default for EngineSpec {
    /// The default engine of a platform of one owner.
    fn default() -> Self {
        Self::new(DEFAULT_ENGINE, EngineKind::Dedicated)
    }
}

/// An engine: the instances of its namespaces' services, the budgets that they share, and the runtimes that run them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Engine {
    /// The key of all that it makes.
    pub key: EngineKey,
    /// Where its instances are. The keys that it gives out are of [`Engine::key`]'s place.
    pub pool: Arc<dyn Pool>,
    /// What can run code on it.
    pub runtimes: Vec<Arc<dyn Runtime>>,
}

impl Engine {
    /// An engine of these parts.
    pub fn new(key: EngineKey, pool: Arc<dyn Pool>, runtimes: Vec<Arc<dyn Runtime>>) -> Self {
        Self { key, pool, runtimes }
    }
}

/// Makes engines, and ends them: the host's, since a control plane knows neither pools nor what drives them.
///
/// `sas_control::Engines` calls it. The facade has one, and a host that composes without the facade brings its own.
///
/// # Contract
/// - Each engine has a pool of its own. Keys of its revisions and ids of its instances are of the place of the key that it
///   was built with ([`EngineKey::first_generation`]), so that those of several engines are never mistaken.
/// - An engine that was built works until it is stopped: it scales, and its instances are looked after.
#[async_trait]
pub trait EngineFactory: fmt::Debug + Send + Sync + 'static {
    /// Builds an engine and starts what drives it.
    ///
    /// **Cancel safety:** what was begun ends when the factory does.
    ///
    /// # Errors
    /// `InvalidSpec` with the field that can't be had; `Exhausted` when the machine has not what is to be set aside;
    /// `Unsupported` by a host that has one engine only.
    async fn build(&self, key: EngineKey, spec: &EngineSpec) -> Result<Engine>;

    /// Ends what [`EngineFactory::build`] began: requests may finish until `deadline`, then all instances stop. Idempotent.
    async fn stop(&self, engine: &Engine, deadline: Instant);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mistake_of_a_spec_has_its_field() {
        let mut spec = EngineSpec::new("Big Engine", EngineKind::shared(Isolation::Container));
        spec.namespaces = vec!["a".to_owned(), "a".to_owned()];
        spec.reserved = Reserved { memory_bytes: Some(0), instances: Some(0) };
        let errors = spec.validate().unwrap_err();
        let fields: Vec<_> = errors.0.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, ["name", "namespaces[1]", "reserved.memoryBytes", "reserved.instances"]);
        let mut default = EngineSpec::default();
        assert!(default.validate().is_ok());
        default.namespaces.push("a".to_owned());
        assert_eq!(default.validate().unwrap_err().0[0].field, "namespaces");
    }

    #[test]
    fn specs_are_written_flat_and_read_strictly() {
        let mut spec = EngineSpec::new("payments", EngineKind::shared(Isolation::MicroVm));
        spec.reserved.instances = Some(7);
        let text = serde_json::to_string(&spec).unwrap();
        assert_eq!(
            text,
            r#"{"name":"payments","kind":"shared","isolation":"micro_vm","servicesPerTenant":1000,"reserved":{"instances":7}}"#
        );
        assert_eq!(serde_json::from_str::<EngineSpec>(&text).unwrap(), spec);
        let least = serde_json::from_str::<EngineSpec>(r#"{"name":"a","kind":"dedicated"}"#).unwrap();
        assert_eq!(least, EngineSpec::new("a", EngineKind::Dedicated));
        assert!(serde_json::from_str::<EngineSpec>(r#"{"name":"a","kind":"dedicatd"}"#).is_err());
    }
}
