//! What the runs of each namespace take, and whether it may have another one.

use std::collections::HashMap;

use sas_core::{Error, ErrorKind, Result};

use super::{
    Inner,
    records::{Phase, RunState},
};

/// What the runs of one namespace take, as far as this host has seen. Each search of the store counts it anew: other hosts start and end
/// runs, and answers get lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Runs that have not ended.
    pub(super) unended: usize,
    /// Bytes of records and checkpoints, also of those that have ended and are not forgotten.
    pub(super) bytes: u64,
}

/// What the runs of all namespaces take.
pub(super) type Usages = HashMap<String, Usage>;

/// Counts these states.
pub(super) fn count(usages: &mut Usages, states: &[RunState]) {
    for state in states {
        if !usages.contains_key(&state.namespace) {
            usages.insert(state.namespace.clone(), Usage::default());
        }
        let Some(own) = usages.get_mut(&state.namespace) else { continue };
        own.unended += usize::from(state.phase == Phase::Running);
        own.bytes = own.bytes.saturating_add(state.kept_bytes());
    }
}

impl Inner {
    /// All states were counted.
    pub(super) fn counted(&self, usages: Usages) {
        let own: usize = usages
            .iter()
            .filter(|(namespace, _)| self.drives(namespace))
            .map(|(_, usage)| usage.unended)
            .sum();
        self.metrics.unended.set(own as f64);
        *self.usages.lock() = usages;
    }

    /// What a namespace takes has changed.
    pub(super) fn used(&self, namespace: &str, change: impl FnOnce(&mut Usage)) {
        let mut usages = self.usages.lock();
        if let Some(own) = usages.get_mut(namespace) {
            change(own);
            return;
        }
        change(usages.entry(namespace.to_owned()).or_default());
    }

    /// Whether a namespace may have another run.
    pub(super) fn check_room(&self, namespace: &str) -> Result<()> {
        let own = self.usages.lock().get(namespace).copied().unwrap_or_default();
        let (most, most_bytes) = (self.config.runs_per_namespace, self.config.bytes_per_namespace);
        let message = if own.unended >= most {
            format!("{most} runs of {namespace} have not ended; start this one when others have")
        } else if own.bytes >= most_bytes {
            format!(
                "the runs of {namespace} keep {} bytes, and may keep {most_bytes}; start this one when others are forgotten, or let them \
                 be kept for less long",
                own.bytes
            )
        } else {
            return Ok(());
        };
        Err(Error::new(ErrorKind::Exhausted, "deploy", message))
    }
}
