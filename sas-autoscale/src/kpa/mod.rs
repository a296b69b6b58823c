//! Knative's pod autoscaler.

mod collector;
mod columns;
pub mod compat;
mod decider;
mod lifecycle;
mod policy;

pub use collector::{Collector, MultiScaler, NoAverages, Stat};
pub use columns::KpaColumns;
pub use decider::{Averages, Decider, DeciderSpec, Ready, Scaled};
pub use lifecycle::{
    Activity, ActivityReason, Lifecycle, LifecycleSpec, Mode, Observed, ScaleAnswer, ScaleCall,
    num_activators, scale,
};
pub use policy::{Kpa, KpaState};
