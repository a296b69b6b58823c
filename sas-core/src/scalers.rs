//! The scalers of a platform, by name.

use std::sync::Arc;

use crate::{Scaler, ScalingSpec, SpecErrors};

/// The scalers that a platform has, found by their names. Cheap to clone.
///
/// Who takes specs in asks [`Scalers::validate`], so that a spec that nobody could serve
/// is refused before it is stored; the driver ticks the same ones.
#[derive(Clone, Debug)]
pub struct Scalers(Arc<[Arc<dyn Scaler>]>);

impl Scalers {
    /// These, of which the first counts when two have one name.
    pub fn new(scalers: impl IntoIterator<Item = Arc<dyn Scaler>>) -> Self {
        let mut distinct: Vec<Arc<dyn Scaler>> = Vec::new();
        for scaler in scalers {
            if !distinct.iter().any(|other| other.name() == scaler.name()) {
                distinct.push(scaler);
            }
        }
        Self(distinct.into())
    }

    /// Their names, in order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.0.iter().map(|scaler| scaler.name())
    }

    /// All of them, in order.
    pub fn as_slice(&self) -> &[Arc<dyn Scaler>] {
        &self.0
    }

    /// The place and the scaler of this name.
    pub fn find(&self, name: &str) -> Option<(usize, &Arc<dyn Scaler>)> {
        self.0.iter().enumerate().find(|(_, scaler)| scaler.name() == name)
    }

    /// Checks all of a spec: the fields that scalers share, that its scaler is one of these, and what that scaler says.
    ///
    /// # Errors
    /// All mistakes at once, each with its field; for a scaler that there is not, the names of those that there are.
    pub fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        let mut errors = spec.validate().err().unwrap_or_default();
        match self.find(&spec.scaler) {
            Some((_, scaler)) => {
                if let Err(mut found) = scaler.validate(spec) {
                    errors.0.append(&mut found.0);
                }
            }
            // An empty name was refused already.
            None if spec.scaler.is_empty() => {}
            None => {
                let names: Vec<_> = self.names().collect();
                errors.push(
                    "scaler",
                    &spec.scaler,
                    format!("is not a scaler of this platform: one of {}", names.join(", ")),
                );
            }
        }
        errors.into_result()
    }
}

impl<I: IntoIterator<Item = Arc<dyn Scaler>>> From<I> for Scalers {
    fn from(scalers: I) -> Self {
        Self::new(scalers)
    }
}
