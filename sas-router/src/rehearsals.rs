//! What is tried out on the traffic of services, by service. Where nothing is, a request pays for one load.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use sas_core::{Fault, Mirror, MirrorCounts, Result};

use crate::{fault::Faults, mirror::Mirroring};

/// What is tried out on a service.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tried {
    pub(crate) mirror: Option<Arc<Mirroring>>,
    pub(crate) faults: Option<Arc<Faults>>,
}

type All = HashMap<Box<str>, Tried>;

#[derive(Debug, Default)]
pub(crate) struct TriedOut {
    all: ArcSwapOption<All>,
    /// Changes are made one after the other.
    writing: Mutex<()>,
}

impl TriedOut {
    /// What is tried out on a service, named as `namespace/name`.
    pub(crate) fn of(&self, service: &str) -> Option<Tried> {
        self.all.load().as_ref()?.get(service).cloned()
    }

    /// Whether anything is tried out on anybody.
    pub(crate) fn is_empty(&self) -> bool {
        self.all.load().is_none()
    }

    fn change(&self, service: &str, change: impl FnOnce(&mut Tried)) {
        let _one_at_a_time = self.writing.lock();
        let mut all = self.all.load_full().map_or_else(All::default, |all| All::clone(&all));
        let mut tried = all.remove(service).unwrap_or_default();
        change(&mut tried);
        if tried.mirror.is_some() || tried.faults.is_some() {
            all.insert(service.into(), tried);
        }
        self.all.store((!all.is_empty()).then(|| Arc::new(all)));
    }

    /// `make` makes one where the setting is another than before.
    pub(crate) fn set_mirror(
        &self,
        service: &str,
        mirror: Option<Mirror>,
        make: impl FnOnce(Mirror) -> Arc<Mirroring>,
    ) {
        self.change(service, |tried| {
            if tried.mirror.as_ref().map(|mirroring| mirroring.mirror) == mirror {
                return;
            }
            if let Some(before) = tried.mirror.take() {
                before.end();
            }
            tried.mirror = mirror.map(make);
        });
    }

    pub(crate) fn mirrored(&self, service: &str) -> Option<MirrorCounts> {
        Some(self.of(service)?.mirror?.counts())
    }

    /// # Errors
    /// See [`Faults::compile`].
    pub(crate) fn set_faults(&self, service: &str, faults: Vec<Fault>) -> Result<()> {
        let compiled = Faults::compile(faults)?;
        self.change(service, |tried| {
            tried.faults = (!compiled.is_empty()).then(|| Arc::new(compiled));
        });
        Ok(())
    }

    pub(crate) fn faulted(&self, service: &str) -> Vec<u64> {
        self.of(service).and_then(|tried| tried.faults).map_or_else(Vec::new, |faults| faults.counts())
    }
}
