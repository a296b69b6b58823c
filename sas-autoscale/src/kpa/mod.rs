//! Knative's pod autoscaler. A platform takes [`Kpa`] or [`KpaColumns`]; [`Decider`], [`Lifecycle`] and [`crate::Window`]
//! are the parts that they follow Knative with, public for who replays Knative's own decisions: the vectors do.

mod columns;
mod decider;
mod lifecycle;
mod policy;

pub use columns::KpaColumns;
pub use decider::{Averages, Decider, DeciderSpec, Ready, Scaled};
pub use lifecycle::{
    Activity, ActivityReason, Lifecycle, LifecycleSpec, Mode, Observed, ScaleAnswer, ScaleCall,
    num_activators, scale,
};
pub use policy::{Kpa, KpaState};
