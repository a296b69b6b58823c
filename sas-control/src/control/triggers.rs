//! Declared triggers and their dead letters.

use super::{Control, DEAD_LETTERS, TRIGGERS, refused};
use sas_core::{Error, ErrorKind, Result, SpecErrors, TriggerSpec, TriggerStatus, Triggers};
use sas_knative::manifest::Manifest;
use std::sync::Arc;

impl Control {
    pub(super) fn check_triggers(&self, manifests: &[Manifest]) -> Result<()> {
        for manifest in manifests {
            if let Manifest::Trigger(trigger) = manifest {
                self.trigger_host()?
                    .check(trigger)
                    .map_err(|errors| refused("manifest", trigger_fields(errors)))?;
            }
        }
        Ok(())
    }

    pub(super) async fn recover_trigger(&self, value: &[u8]) -> Result<()> {
        let spec: TriggerSpec = serde_json::from_slice(value).map_err(|error| {
            Error::new(ErrorKind::InvalidSpec, "recover", format!("not a trigger: {error}"))
        })?;
        self.trigger_host()?.apply(spec).await
    }

    /// Declares a trigger and runs it.
    ///
    /// # Errors
    /// `InvalidSpec` with fields; `Unsupported` when the platform runs no triggers.
    pub async fn apply_trigger(&self, mut spec: TriggerSpec) -> Result<TriggerSpec> {
        self.open()?;
        let host = self.trigger_host()?;
        let namespace = spec.target.split('/').next().unwrap_or_default();
        spec.tenant = self.tenant(namespace).await?;
        host.check(&spec).map_err(|errors| refused("trigger", trigger_fields(errors)))?;
        let key = format!("{TRIGGERS}{}", spec.name);
        let value = serde_json::to_vec(&spec).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "trigger", format!("{} can't be written: {error}", spec.name))
        })?;
        let expected = self.store.get(&key).await?.map(|entry| entry.version);
        self.store.put(&key, expected, value.into()).await?;
        host.apply(spec.clone()).await?;
        Ok(spec)
    }

    /// Stops a trigger and forgets it.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub async fn delete_trigger(&self, namespace: &str, name: &str) -> Result<()> {
        self.open()?;
        let name = format!("{namespace}/{name}");
        let key = format!("{TRIGGERS}{name}");
        let Some(entry) = self.store.get(&key).await? else {
            return Err(Error::new(ErrorKind::NotFound, "trigger", format!("there is no trigger {name}")));
        };
        self.store.delete(&key, entry.version).await?;
        match &self.triggers {
            Some(triggers) => triggers.remove(&name).await,
            None => Ok(()),
        }
    }

    /// Events of a trigger that could not be delivered, oldest first, as their deliveries wrote them.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn dead_letters(
        &self,
        namespace: &str,
        name: &str,
        most: usize,
    ) -> Result<Vec<serde_json::Value>> {
        let entries = self.store.list(&format!("{DEAD_LETTERS}{namespace}/{name}/"), None, most).await?;
        let letters = entries.iter().map(|entry| {
            serde_json::from_slice(&entry.value).map_err(|error| {
                Error::new(
                    ErrorKind::Unexpected,
                    "dead letters",
                    format!("{} is not one: {error}; discard them", entry.key),
                )
            })
        });
        letters.collect()
    }

    /// Forgets them. How many there were.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn discard_dead_letters(&self, namespace: &str, name: &str) -> Result<usize> {
        self.open()?;
        let entries = self.entries(&format!("{DEAD_LETTERS}{namespace}/{name}/")).await?;
        for entry in &entries {
            self.store.delete(&entry.key, entry.version).await?;
        }
        Ok(entries.len())
    }

    /// All triggers, and how they are doing.
    pub fn trigger_status(&self) -> Vec<TriggerStatus> {
        self.triggers.as_ref().map_or_else(Vec::new, |triggers| triggers.status())
    }

    pub(super) fn trigger_host(&self) -> Result<&Arc<dyn Triggers>> {
        self.triggers.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "trigger", "this platform was composed without triggers")
        })
    }
}

/// The fields of a trigger as its manifest has them.
pub(super) fn trigger_fields(errors: SpecErrors) -> SpecErrors {
    let mut renamed = SpecErrors::default();
    for error in errors.0 {
        let field = match error.field.strip_prefix("options.") {
            Some(option @ ("schedule" | "timezone")) => format!("spec.{option}"),
            Some(option) => format!("metadata.annotations[sas.dev/{option}]"),
            None => format!("spec.{}", error.field),
        };
        renamed.push(field, error.value, error.problem);
    }
    renamed
}
