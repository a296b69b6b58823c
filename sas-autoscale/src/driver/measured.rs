//! Measurements that the pool can't make: reported from outside, and good for a while.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Load, NamedValues, Result, RevisionKey};

use crate::{
    options::{METRIC_NAME, MOST_CUSTOM, is_metric_name},
    window::Nanos,
};

/// A measurement that the pool can't make, given to [`super::Driver::report`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Measurement {
    /// What waits upstream of the revision's triggers.
    Backlog(u64),
    /// Mean CPU per ready instance, in cores.
    Cpu(f64),
    /// Mean memory per ready instance, in bytes.
    Memory(f64),
    /// What the host calls so, of the whole revision; scalers find it in [`sas_core::ScaleInput::named`].
    Named(String, f64),
}

impl Measurement {
    fn check(&self) -> Result<()> {
        let refused = |message| Err(Error::new(ErrorKind::InvalidSpec, "report", message));
        match self {
            Self::Backlog(_) => Ok(()),
            Self::Named(name, _) if !is_metric_name(name) => {
                refused(format!("{name:?} is no name of a metric: {METRIC_NAME}"))
            }
            Self::Cpu(value) | Self::Memory(value) | Self::Named(_, value)
                if !(*value >= 0.0 && value.is_finite()) =>
            {
                refused(format!("{self:?} is no measurement: give a number from 0"))
            }
            Self::Cpu(_) | Self::Memory(_) | Self::Named(..) => Ok(()),
        }
    }

    /// Whether a revision that sleeps is to be looked at for it.
    pub(super) fn may_wake(&self) -> bool {
        match self {
            Self::Backlog(waiting) => *waiting > 0,
            Self::Named(_, value) => *value > 0.0,
            Self::Cpu(_) | Self::Memory(_) => false,
        }
    }
}

#[derive(Debug, Default)]
struct Reported {
    backlog: Option<(u64, Nanos)>,
    cpu: Option<(f64, Nanos)>,
    memory: Option<(f64, Nanos)>,
    named: BTreeMap<String, (f64, Nanos)>,
}

/// What was reported, by revision.
#[derive(Debug)]
pub(super) struct Measured {
    /// How long a measurement counts.
    age: Nanos,
    /// Revisions at most.
    most: usize,
    reported: Mutex<HashMap<RevisionKey, Reported>>,
}

impl Measured {
    pub(super) fn new(age: Nanos, most: usize) -> Self {
        Self { age, most, reported: Mutex::default() }
    }

    /// Takes a measurement that was made at `at`.
    pub(super) fn take(&self, revision: RevisionKey, measurement: &Measurement, at: Nanos) -> Result<()> {
        measurement.check()?;
        let full = |message| Err(Error::new(ErrorKind::Exhausted, "report", message));
        let mut all = self.reported.lock();
        if all.len() >= self.most && !all.contains_key(&revision) {
            return full(format!("{} revisions have measurements already", all.len()));
        }
        let reported = all.entry(revision).or_default();
        match measurement {
            Measurement::Backlog(value) => reported.backlog = Some((*value, at)),
            Measurement::Cpu(value) => reported.cpu = Some((*value, at)),
            Measurement::Memory(value) => reported.memory = Some((*value, at)),
            Measurement::Named(name, value) => {
                if reported.named.len() >= MOST_CUSTOM && !reported.named.contains_key(name) {
                    return full(format!("the revision has {MOST_CUSTOM} named measurements already"));
                }
                reported.named.insert(name.clone(), (*value, at));
            }
        }
        Ok(())
    }

    /// Adds to `load` and `named` what still counts at `now`.
    fn add(&self, found: &Reported, now: Nanos, load: &mut Load, named: &mut NamedValues) {
        let fresh = |at: Nanos| now.saturating_sub(at) <= self.age;
        if let Some((value, _)) = found.backlog.filter(|(_, at)| fresh(*at)) {
            load.backlog = Some(value);
        }
        if let Some((value, _)) = found.cpu.filter(|(_, at)| fresh(*at)) {
            load.cpu = Some(value);
        }
        if let Some((value, _)) = found.memory.filter(|(_, at)| fresh(*at)) {
            load.memory = Some(value);
        }
        for (name, (value, _)) in found.named.iter().filter(|(_, (_, at))| fresh(*at)) {
            named.insert(name, *value);
        }
    }

    /// Adds what is known of them to loads.
    pub(super) fn add_to<'a>(
        &self,
        loads: impl Iterator<Item = (&'a mut Load, &'a mut NamedValues)>,
        now: Nanos,
    ) {
        let reported = self.reported.lock();
        if reported.is_empty() {
            return;
        }
        for (load, named) in loads {
            if let Some(found) = reported.get(&load.revision) {
                self.add(found, now, load, named);
            }
        }
    }

    /// Forgets what counts no more at `now`.
    pub(super) fn expire(&self, now: Nanos) {
        let fresh = |at: Nanos| now.saturating_sub(at) <= self.age;
        self.reported.lock().retain(|_, reported| {
            reported.named.retain(|_, (_, at)| fresh(*at));
            !reported.named.is_empty()
                || reported.backlog.is_some_and(|(_, at)| fresh(at))
                || reported.cpu.is_some_and(|(_, at)| fresh(at))
                || reported.memory.is_some_and(|(_, at)| fresh(at))
        });
    }
}
