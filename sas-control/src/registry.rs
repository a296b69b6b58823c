//! The runtimes of one engine, and what tenants may ask of them.

use std::{collections::BTreeMap, sync::Arc};

use sas_core::{Error, ErrorKind, Isolation, Result, Runtime, SpecErrors, TenantKey};

/// For whom a platform is: a preset, not a code path.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Edition {
    /// What it is called in errors.
    pub name: &'static str,
    /// The weakest isolation that tenants other than the platform itself may run on; `None`: any.
    pub isolation: Option<Isolation>,
    /// Services that one tenant may have; `None`: any number.
    pub services_per_tenant: Option<usize>,
}

impl Edition {
    /// All services belong to one owner, who trusts them: any isolation will do.
    pub const fn dedicated() -> Self {
        Self { name: "dedicated", isolation: None, services_per_tenant: None }
    }

    /// Tenants do not trust each other. Processes of one user can read each other's environment, so the weakest
    /// isolation is stated.
    pub const fn shared(isolation: Isolation) -> Self {
        Self { name: "shared", isolation: Some(isolation), services_per_tenant: Some(1000) }
    }
}

impl Default for Edition {
    fn default() -> Self {
        Self::dedicated()
    }
}

/// The runtimes of one engine, by name, and for whom they are.
#[derive(Clone, Debug)]
pub struct RuntimeRegistry {
    edition: Edition,
    runtimes: BTreeMap<&'static str, Arc<dyn Runtime>>,
}

impl RuntimeRegistry {
    /// These runtimes, known by their names.
    pub fn new(edition: Edition, runtimes: impl IntoIterator<Item = Arc<dyn Runtime>>) -> Self {
        Self { edition, runtimes: runtimes.into_iter().map(|runtime| (runtime.name(), runtime)).collect() }
    }

    /// For whom they are.
    pub fn edition(&self) -> &Edition {
        &self.edition
    }

    /// All of them, by name.
    pub fn runtimes(&self) -> impl Iterator<Item = &Arc<dyn Runtime>> {
        self.runtimes.values()
    }

    /// The runtime that `tenant` asks for by name.
    ///
    /// # Errors
    /// `Unsupported` when there is none of that name, or when it keeps tenants apart less than the edition asks for.
    pub fn runtime(&self, name: &str, tenant: TenantKey) -> Result<&Arc<dyn Runtime>> {
        let refuse = |problem: String| {
            let mut errors = SpecErrors::default();
            errors.push("runtime", name, &problem);
            let message = format!("unsupported: {name} runtime: {problem}");
            Error::new(ErrorKind::Unsupported, "deploy", message).with_source(errors)
        };
        let Some(runtime) = self.runtimes.get(name) else {
            let known: Vec<&str> = self.runtimes.keys().copied().collect();
            let hint = if name == "container" {
                "; an image needs a container runtime: give a package by the annotation sas.dev/package instead"
            } else {
                ""
            };
            return Err(refuse(format!("this platform has: {}{hint}", known.join(", "))));
        };
        let given = runtime.capabilities().isolation;
        match self.edition.isolation {
            Some(asked) if given < asked && !tenant.is_host() => Err(refuse(format!(
                "the {} edition asks for isolation {asked:?} or stronger, and this runtime gives {given:?}",
                self.edition.name
            ))),
            _ => Ok(runtime),
        }
    }
}
