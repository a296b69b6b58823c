//! Declared triggers, where they may send, and their dead letters.

use super::{
    BROKERS, Control, DEAD_LETTERS, Declaration, TRIGGERS, letters::DeadLetter, precondition, refused,
};
use crate::record::ServiceRecord;
use parking_lot::Mutex;
use sas_core::{
    BrokerSpec, BrokerStatus, Error, ErrorKind, Event, Redrive, Redriven, Result, SpecErrors, Timestamp,
    TriggerSpec, TriggerStatus, Triggers,
};
use sas_knative::{keys::own::EVENTS_FROM, manifest::Manifest};
use std::{collections::BTreeMap, sync::Arc};

/// Triggers that send into another namespace, and whether they run.
#[derive(Debug, Default)]
pub(super) struct Crossing(Mutex<BTreeMap<String, (TriggerSpec, bool)>>);

/// The services that a trigger sends to: its target, and those that get its dead letters and replies. Brokers are of its
/// own namespace, which its host sees to, and sinks are outside.
fn sinks(spec: &TriggerSpec) -> impl Iterator<Item = (&'static str, &str)> {
    let option = |field: &'static str, name| spec.options.get(name).map(|sink| (field, sink.as_str()));
    [
        Some(("target", spec.target.as_str())),
        option("options.dead-letter", "dead-letter"),
        option("options.reply", "reply"),
    ]
    .into_iter()
    .flatten()
    .filter(|(_, sink)| sink.contains('/') && !sink.contains(':'))
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
    pub(super) fn check_sinks(&self, spec: &TriggerSpec) -> std::result::Result<(), SpecErrors> {
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
        // Another host runs those of its namespaces.
        let about = about.into_iter().filter(|(spec, _)| self.acts_for(namespace_of(&spec.name)));
        for (spec, runs) in about {
            let granted = self.check_sinks(&spec);
            let Ok(host) = self.trigger_host() else { return };
            let now_runs = match (&granted, runs) {
                (Err(errors), true) => {
                    tracing::warn!(trigger = spec.name, %errors, "stopped: its grant was taken back");
                    host.pause(&spec.name).await;
                    self.unplace_trigger(&spec.name).await;
                    false
                }
                (Ok(()), false) => {
                    let started = match self.hosts {
                        Some(_) => self.place_trigger(&spec.name).await,
                        None => host.apply(self.held(spec.clone())).await,
                    };
                    match started {
                        Ok(()) => {
                            self.recovery_report.came_back(&format!("Trigger {}", spec.name));
                            true
                        }
                        Err(error) => {
                            tracing::warn!(trigger = spec.name, error = %error.chain(), "granted, and does not run");
                            false
                        }
                    }
                }
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

    pub(super) fn forget_crossing(&self, name: &str) {
        self.crossing.0.lock().remove(name);
    }

    pub(super) fn check_triggers(&self, manifests: &[Manifest]) -> Result<()> {
        for manifest in manifests {
            match manifest {
                Manifest::Trigger(trigger) => self
                    .trigger_host()?
                    .check(trigger)
                    .map_err(|errors| refused("manifest", trigger_fields(&trigger.kind, errors)))?,
                Manifest::Broker(broker) => self
                    .trigger_host()?
                    .check_broker(broker)
                    .map_err(|errors| refused("manifest", broker_fields(errors)))?,
                Manifest::Workflow(workflow) => self.check_workflow(workflow)?,
                Manifest::Service(_) | Manifest::Domain(_) => {}
            }
        }
        Ok(())
    }

    pub(super) async fn recover_broker(&self, value: &[u8]) -> Result<()> {
        let mut spec: BrokerSpec = serde_json::from_slice(value).map_err(|error| {
            Error::new(ErrorKind::InvalidSpec, "recover", format!("not a broker: {error}"))
        })?;
        spec.tenant = Some(self.tenant(namespace_of(&spec.name)).await?);
        self.trigger_host()?.apply_broker(spec).await
    }

    /// Declares a broker.
    ///
    /// # Errors
    /// `InvalidSpec` with fields; `Unsupported` when the platform runs no triggers.
    pub async fn apply_broker(&self, mut spec: BrokerSpec) -> Result<BrokerSpec> {
        self.open()?;
        let host = self.trigger_host()?;
        host.check_broker(&spec).map_err(|errors| refused("broker", broker_fields(errors)))?;
        spec.tenant = Some(self.tenant(namespace_of(&spec.name)).await?);
        let key = format!("{BROKERS}{}", spec.name);
        self.keep(&key, &spec).await?;
        if self.hosts.is_some() {
            self.place_triggers().await?.remove(&key).map_or(Ok(()), Err)?;
        } else {
            host.apply_broker(spec.clone()).await?;
        }
        self.recovery_report.came_back(&format!("Broker {}", spec.name));
        Ok(spec)
    }

    /// Removes a broker with the events that it holds.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name; `Conflict` while triggers read from it.
    pub async fn delete_broker(&self, namespace: &str, name: &str) -> Result<()> {
        self.open()?;
        self.triggers_here(namespace)?;
        let name = format!("{namespace}/{name}");
        let key = format!("{BROKERS}{name}");
        let Some(entry) = self.store.get(&key).await? else {
            return Err(Error::new(ErrorKind::NotFound, "broker", format!("there is no broker {name}")));
        };
        precondition::check(&format!("broker {name}"), Some(entry.version))?;
        self.trigger_host()?.remove_broker(&name).await?;
        self.store.delete(&key, entry.version).await?;
        self.recovery_report.came_back(&format!("Broker {name}"));
        Ok(())
    }

    /// Whether a broker of this name, `namespace/name`, is declared, whichever host runs it.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn has_broker(&self, name: &str) -> Result<bool> {
        Ok(self.store.get(&format!("{BROKERS}{name}")).await?.is_some())
    }

    /// All brokers, and how they are doing.
    pub fn broker_status(&self) -> Vec<BrokerStatus> {
        self.triggers.as_ref().map_or_else(Vec::new, |triggers| triggers.brokers())
    }

    /// Gives events to a broker, in their order; durable when it returns.
    ///
    /// # Errors
    /// As [`Triggers::accept`].
    pub async fn accept_events(&self, namespace: &str, broker: &str, events: Vec<Event>) -> Result<()> {
        self.open()?;
        self.triggers_here(namespace)?;
        self.trigger_host()?.accept(&format!("{namespace}/{broker}"), events).await
    }

    pub(super) async fn keep<T: serde::Serialize + Sync>(&self, key: &str, value: &T) -> Result<()> {
        let value = serde_json::to_vec(value).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "keep", format!("{key} can't be written: {error}"))
        })?;
        let expected = self.store.get(key).await?.map(|entry| entry.version);
        precondition::check(key, expected)?;
        self.store.put(key, expected, value.into()).await.map(drop)
    }

    /// The declaration of a trigger, as it is stored.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub async fn trigger_spec(&self, namespace: &str, name: &str) -> Result<TriggerSpec> {
        let name = format!("{namespace}/{name}");
        let Some(entry) = self.store.get(&format!("{TRIGGERS}{name}")).await? else {
            return Err(Error::new(ErrorKind::NotFound, "trigger", format!("there is no trigger {name}")));
        };
        serde_json::from_slice(&entry.value).map_err(|error| {
            Error::new(ErrorKind::InvalidSpec, "trigger", format!("{name} is damaged: {error}"))
        })
    }

    /// Pauses a trigger, or lets it go on. It stays declared, remembers where it was, and what waits upstream goes on
    /// waiting; that survives restarts.
    ///
    /// # Errors
    /// `NotFound` when there is none of that name.
    pub async fn pause_trigger(&self, namespace: &str, name: &str, paused: bool) -> Result<()> {
        let mut spec = self.trigger_spec(namespace, name).await?;
        if spec.paused == paused {
            // Nothing is written, and who expects something else is told all the same.
            let stored = self.declared_version(Declaration::Trigger, &spec.name).await?;
            return precondition::check(&format!("trigger {}", spec.name), stored);
        }
        spec.paused = paused;
        self.apply_trigger(spec).await.map(drop)
    }

    /// Starts a trigger that reads from a broker again from the first event that was accepted at `from` or later.
    ///
    /// # Errors
    /// As [`Triggers::replay`].
    pub async fn replay_trigger(&self, namespace: &str, name: &str, from: Timestamp) -> Result<()> {
        self.open()?;
        self.triggers_here(namespace)?;
        self.trigger_host()?.replay(&format!("{namespace}/{name}"), from).await
    }

    /// Delivers dead letters of a trigger again: one, those that a filter or a reason names, or all; to its own target or
    /// to another one, which must take events from its namespace.
    ///
    /// # Errors
    /// As [`Triggers::redrive`].
    pub async fn redrive(&self, namespace: &str, name: &str, redrive: &Redrive) -> Result<Redriven> {
        self.open()?;
        self.triggers_here(namespace)?;
        let name = format!("{namespace}/{name}");
        if let Some(target) = &redrive.target {
            let probe = TriggerSpec::new(&name, "redrive", target);
            self.check_sinks(&probe).map_err(|errors| refused("redrive", errors))?;
        }
        self.trigger_host()?.redrive(&name, redrive).await
    }

    /// How many dead letters of a trigger there are, by the class of their reason.
    ///
    /// # Errors
    /// `Unavailable` when the store fails.
    pub async fn count_dead_letters(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, usize>> {
        let mut counts = BTreeMap::new();
        for entry in self.entries(&format!("{DEAD_LETTERS}{namespace}/{name}/")).await? {
            let letter: serde_json::Value = serde_json::from_slice(&entry.value).unwrap_or_default();
            let class = letter["class"].as_str().unwrap_or("damaged");
            *counts.entry(class.to_owned()).or_insert(0) += 1;
        }
        Ok(counts)
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
        host.apply(self.held(spec.clone())).await?;
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
            return Err(refused("trigger", trigger_fields(&spec.kind, errors)));
        }
        self.keep(&format!("{TRIGGERS}{}", spec.name), &spec).await?;
        if self.hosts.is_some() {
            self.place_trigger(&spec.name).await?;
        } else {
            host.apply(self.held(spec.clone())).await?;
            self.note_crossing(&spec, true);
        }
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
        precondition::check(&format!("trigger {name}"), Some(entry.version))?;
        self.store.delete(&key, entry.version).await?;
        self.forget_crossing(&name);
        self.recovery_report.came_back(&format!("Trigger {name}"));
        match &self.triggers {
            Some(triggers) => triggers.remove(&name).await,
            None => Ok(()),
        }
    }

    /// Events of a trigger that could not be delivered, oldest first: those after the letter `after`, at most `most`.
    ///
    /// # Errors
    /// `Unavailable` when the store fails; `Unexpected` for one that can't be read.
    pub async fn dead_letters(
        &self,
        namespace: &str,
        name: &str,
        after: Option<&str>,
        most: usize,
    ) -> Result<Vec<DeadLetter>> {
        let prefix = format!("{DEAD_LETTERS}{namespace}/{name}/");
        let after = after.map(|letter| format!("{prefix}{letter}"));
        let entries = self.store.list(&prefix, after.as_deref(), most).await?;
        let letters = entries.iter().map(|entry| {
            let mut letter: DeadLetter = serde_json::from_slice(&entry.value).map_err(|error| {
                Error::new(
                    ErrorKind::Unexpected,
                    "dead letters",
                    format!("{} is not one: {error}; discard them", entry.key),
                )
            })?;
            entry.key.rsplit('/').next().unwrap_or_default().clone_into(&mut letter.letter);
            Ok(letter)
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

    /// The services that triggers send to, and the triggers; empty while the store does not answer.
    pub(crate) async fn trigger_targets(&self) -> Vec<(String, String)> {
        let entries = self.entries(TRIGGERS).await.unwrap_or_default();
        let specs =
            entries.iter().filter_map(|entry| serde_json::from_slice::<TriggerSpec>(&entry.value).ok());
        specs
            .filter(|spec| !spec.paused)
            .map(|spec| (spec.target, format!("{} ({})", spec.name, spec.kind)))
            .collect()
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
pub(super) fn trigger_fields(kind: &str, errors: SpecErrors) -> SpecErrors {
    const SOURCES: [&str; 2] = ["schedule", "timezone"];
    let mut renamed = SpecErrors::default();
    for error in errors.0 {
        let field = match error.field.strip_prefix("options.") {
            Some(option) if kind == "cron" && SOURCES.contains(&option) => format!("spec.{option}"),
            Some(option) if kind == "cron" => format!("metadata.annotations[sas.dev/{option}]"),
            Some(option) => match option.split(['.', '[']).next().unwrap_or(option) {
                "filter" | "transform" | "reply" => format!("spec.{option}"),
                "sink" => format!("spec.target.options{}", option.trim_start_matches("sink")),
                _ => format!("spec.source.options.{option}"),
            },
            None if error.field == "target" && kind == "cron" => "spec.sink".to_owned(),
            None if error.field == "kind" => "spec.source.kind".to_owned(),
            None => format!("spec.{}", error.field),
        };
        renamed.push(field, error.value, error.problem);
    }
    renamed
}

/// The fields of a broker as its manifest has them.
fn broker_fields(errors: SpecErrors) -> SpecErrors {
    let mut renamed = SpecErrors::default();
    for error in errors.0 {
        let field = match error.field.as_str() {
            "name" => "metadata.name".to_owned(),
            "retention" => "metadata.annotations[sas.dev/retention]".to_owned(),
            "most_events" => "metadata.annotations[sas.dev/most-events]".to_owned(),
            other => format!("spec.{other}"),
        };
        renamed.push(field, error.value, error.problem);
    }
    renamed
}
