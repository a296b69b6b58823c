//! Declared triggers, where they may send, and their dead letters.

use super::{Control, DEAD_LETTERS, TRIGGERS, refused};
use crate::record::ServiceRecord;
use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Result, SpecErrors, TriggerSpec, TriggerStatus, Triggers};
use sas_knative::{keys::own::EVENTS_FROM, manifest::Manifest};
use std::{collections::BTreeMap, sync::Arc};

/// Triggers that send into another namespace, and whether they run.
#[derive(Debug, Default)]
pub(super) struct Crossing(Mutex<BTreeMap<String, (TriggerSpec, bool)>>);

/// The services that a trigger sends to: its target, and the one that gets its dead letters.
fn sinks(spec: &TriggerSpec) -> impl Iterator<Item = (&'static str, &str)> {
    let letters = spec.options.get("dead-letter").map(String::as_str).filter(|at| at.contains('/'));
    std::iter::once(("target", spec.target.as_str())).chain(letters.map(|at| ("options.dead-letter", at)))
}

fn namespace_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

fn crosses(spec: &TriggerSpec) -> bool {
    sinks(spec).any(|(_, sink)| namespace_of(sink) != namespace_of(&spec.name))
}

impl Control {
    /// A trigger sends to services of its own namespace, and to those that grant it by an annotation: their owner pays
    /// for what it wakes.
    fn check_sinks(&self, spec: &TriggerSpec) -> std::result::Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        let own = namespace_of(&spec.name);
        for (field, sink) in sinks(spec) {
            let (namespace, name) = sink.split_once('/').unwrap_or((sink, ""));
            if namespace == own {
                continue;
            }
            let granted = self.record(namespace, name).is_ok_and(|record| {
                record.annotations.get(EVENTS_FROM).is_some_and(|granted| {
                    granted.split(',').map(str::trim).any(|granted| granted == own || granted == "*")
                })
            });
            if !granted {
                errors.push(
                    field,
                    sink,
                    format!(
                        "is in another namespace, and does not take events from {own}: send to a service of {own}, or \
                         let the other's owner deploy it first with the annotation {EVENTS_FROM}: {own}"
                    ),
                );
            }
        }
        errors.into_result()
    }

    /// After a deploy of a service: triggers of other namespaces that it does not grant any more stop, and those that it
    /// grants again go on.
    pub(super) async fn check_grants(&self, record: &ServiceRecord) {
        let path = record.path();
        let about: Vec<(TriggerSpec, bool)> = {
            let crossing = self.crossing.0.lock();
            let meant = |spec: &TriggerSpec| sinks(spec).any(|(_, sink)| sink == path);
            crossing.values().filter(|(spec, _)| meant(spec)).cloned().collect()
        };
        for (spec, runs) in about {
            let granted = self.check_sinks(&spec);
            let Ok(host) = self.trigger_host() else { return };
            let now_runs = match (&granted, runs) {
                (Err(errors), true) => {
                    tracing::warn!(trigger = spec.name, %errors, "stopped: its grant was taken back");
                    host.pause(&spec.name).await;
                    false
                }
                (Ok(()), false) => match host.apply(spec.clone()).await {
                    Ok(()) => {
                        self.recovery_report.came_back(&format!("Trigger {}", spec.name));
                        true
                    }
                    Err(error) => {
                        tracing::warn!(trigger = spec.name, error = %error.chain(), "granted, and does not run");
                        false
                    }
                },
                _ => continue,
            };
            if let Some(known) = self.crossing.0.lock().get_mut(&spec.name) {
                known.1 = now_runs;
            }
        }
    }

    /// Remembers a trigger if it sends into another namespace.
    fn note_crossing(&self, spec: &TriggerSpec, runs: bool) {
        let mut crossing = self.crossing.0.lock();
        if crosses(spec) {
            crossing.insert(spec.name.clone(), (spec.clone(), runs));
        } else {
            crossing.remove(&spec.name);
        }
    }

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
        let host = self.trigger_host()?;
        let mut spec = spec;
        spec.tenant = Some(self.tenant(namespace_of(&spec.name)).await?);
        self.note_crossing(&spec, false);
        self.check_sinks(&spec).map_err(|errors| refused("recover", errors))?;
        host.apply(spec.clone()).await?;
        self.note_crossing(&spec, true);
        Ok(())
    }

    /// Declares a trigger and runs it.
    ///
    /// # Errors
    /// `InvalidSpec` with fields; `Unsupported` when the platform runs no triggers.
    pub async fn apply_trigger(&self, mut spec: TriggerSpec) -> Result<TriggerSpec> {
        self.open()?;
        let host = self.trigger_host()?;
        // Who causes the events pays for them, wherever they go.
        let namespace = spec.name.split('/').next().unwrap_or_default();
        spec.tenant = Some(self.tenant(namespace).await?);
        let mut errors = host.check(&spec).err().unwrap_or_default();
        errors.0.extend(self.check_sinks(&spec).err().unwrap_or_default().0);
        if !errors.is_empty() {
            return Err(refused("trigger", trigger_fields(errors)));
        }
        let key = format!("{TRIGGERS}{}", spec.name);
        let value = serde_json::to_vec(&spec).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "trigger", format!("{} can't be written: {error}", spec.name))
        })?;
        let expected = self.store.get(&key).await?.map(|entry| entry.version);
        self.store.put(&key, expected, value.into()).await?;
        host.apply(spec.clone()).await?;
        self.note_crossing(&spec, true);
        self.recovery_report.came_back(&format!("Trigger {}", spec.name));
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
        self.crossing.0.lock().remove(&name);
        self.recovery_report.came_back(&format!("Trigger {name}"));
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
            None if error.field == "target" => "spec.sink".to_owned(),
            None => format!("spec.{}", error.field),
        };
        renamed.push(field, error.value, error.problem);
    }
    renamed
}
