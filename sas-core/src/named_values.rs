//! Measurements that have a name of their own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a host measures beyond the pool's load, by name: the depth of a queue, sessions, orders in progress. Reported
/// per service, given to scalers in [`crate::ScaleInput::named`], kept with the decision in
/// [`crate::DecisionRecord::named`]. One pointer while there are none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
#[allow(
    clippy::box_collection,
    reason = "one pointer, not three, in each load of a tick: almost all have none"
)]
pub struct NamedValues(Option<Box<BTreeMap<String, f64>>>);

/// What inputs without named values refer to.
pub(crate) static NO_VALUES: NamedValues = NamedValues::NONE;

impl NamedValues {
    /// No values at all.
    pub const NONE: Self = Self(None);

    /// The value of `name`; `None`: it was not measured.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.as_ref()?.get(name).copied()
    }

    /// Sets the value of `name`.
    pub fn insert(&mut self, name: impl Into<String>, value: f64) {
        self.0.get_or_insert_default().insert(name.into(), value);
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(|values| values.is_empty())
    }

    /// All of them, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().flat_map(|values| values.iter().map(|(name, value)| (name.as_str(), *value)))
    }
}

/// What one named measurement wanted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct NamedVote {
    /// The name of the measurement.
    pub name: String,
    /// Its value; `None`: not measured.
    pub value: Option<f64>,
    /// What one instance should carry.
    pub target: f64,
    /// The instances that it asks for; `None`: no opinion.
    pub desired: Option<u32>,
}

impl NamedVote {
    /// What the measurement `name` wants, from its value and its target.
    pub fn new(name: impl Into<String>, value: Option<f64>, target: f64, desired: Option<u32>) -> Self {
        Self { name: name.into(), value, target, desired }
    }
}
