//! What the control plane acknowledged is there again after every restart, and what was wanted in the end is all there.

use std::collections::{BTreeMap, BTreeSet};

use sas_control::{Control, Recovery};

/// What was said to be kept.
#[derive(Debug, Default)]
pub(crate) struct Durable {
    /// The generation of each service at its last acknowledged change.
    acknowledged: BTreeMap<String, u64>,
    /// Services with a change of which the outcome is not known.
    unsure: BTreeSet<String>,
    /// What was there before the last, orderly, end.
    wanted: Option<Vec<(String, u64)>>,
}

impl Durable {
    /// A change of a service was acknowledged, or its outcome is not known. After a deletion it may be gone then, and
    /// begin anew.
    pub(crate) fn changed(&mut self, control: &Control, service: &str, done: bool, deletion: bool) {
        if !done {
            self.unsure.insert(service.to_owned());
            if deletion {
                self.acknowledged.remove(service);
            }
            return;
        }
        match control.record("default", service) {
            Ok(record) => self.acknowledged.insert(service.to_owned(), record.generation),
            Err(_) => self.acknowledged.remove(service),
        };
    }

    /// The store has only a part of these values. No promise holds for them but one: each is named at the start.
    pub(crate) fn damaged(&mut self, keys: &[String], recovery: &Recovery) -> Option<String> {
        for key in keys {
            let (kind, path) = match key.split_once('/')? {
                ("service", path) => ("Service", path),
                ("triggers", path) => ("Trigger", path),
                ("tenant", path) => ("Tenant", path),
                // The memory of a trigger is looked at when it runs.
                _ => continue,
            };
            if let (true, Some(service)) = (kind == "Service", path.strip_prefix("default/")) {
                self.acknowledged.remove(service);
                self.unsure.insert(service.to_owned());
            }
            let name = format!("{kind} {path}");
            if !recovery.failed.iter().any(|(failed, _)| *failed == name) {
                return Some(format!(
                    "{key} is damaged, and the start does not say so: {:?}",
                    recovery.failed
                ));
            }
        }
        None
    }

    /// The host is about to end in order.
    pub(crate) fn wants(&mut self, control: &Control) {
        self.wanted = Some(all(control));
    }

    /// The host came back: what is missing.
    pub(crate) fn came_back(&mut self, control: &Control) -> Option<String> {
        let back = all(control);
        let there: BTreeMap<&str, u64> =
            back.iter().map(|(name, generation)| (name.as_str(), *generation)).collect();
        for (service, generation) in &self.acknowledged {
            let found = there.get(service.as_str()).copied();
            if found.is_none_or(|found| found < *generation) {
                return Some(format!(
                    "{service} was acknowledged at generation {generation}, and came back at {found:?}"
                ));
            }
        }
        let wanted = self.wanted.take()?;
        let sure = |all: &[(String, u64)]| -> Vec<(String, u64)> {
            all.iter().filter(|(name, _)| !self.unsure.contains(name)).cloned().collect()
        };
        (sure(&back) != sure(&wanted)).then(|| format!("it had {wanted:?}, and came back with {back:?}"))
    }
}

fn all(control: &Control) -> Vec<(String, u64)> {
    control.records().iter().map(|record| (record.name.clone(), record.generation)).collect()
}
