//! Knative's pod autoscaler. A platform takes [`Kpa`] or [`KpaColumns`]; the decider, the life cycle and the windows are
//! the parts that they follow Knative with.

mod columns;
mod decider;
mod lifecycle;
mod policy;

pub use columns::KpaColumns;
#[cfg(test)]
pub(crate) use decider::{Averages, Decider, DeciderSpec, Ready, Scaled};
#[cfg(test)]
pub(crate) use lifecycle::{Activity, Mode, ScaleAnswer, ScaleCall, scale};
pub(crate) use lifecycle::{ActivityReason, Lifecycle, LifecycleSpec, Observed};
pub use policy::{Kpa, KpaState};
