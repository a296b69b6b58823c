#![forbid(unsafe_code)]
#![doc = include_str!("../README.md")]

mod backlog;
mod combined;
mod delay;
mod driver;
mod forecast;
mod govern;
mod history;
mod kpa;
pub mod metrics;
mod options;
mod replay;
mod resource;
mod rows;
mod scheduled;
mod window;

use std::sync::Arc;

pub use backlog::{Backlog, BacklogState};
pub use combined::{Combined, CombinedState};
pub use driver::{Driver, DriverConfig, Measurement};
pub use forecast::{Forecast, ForecastState};
pub use history::{Checkpoint, Stretch};
pub use kpa::{Kpa, KpaColumns, KpaState};
pub use options::{
    BacklogSpec, Combine, CustomMetric, Fallback, FallbackBehavior, ForecastSpec, MetricSpec, MetricTarget,
    Options, ResourceSpec, ScalingPolicy, ScalingRules, ScheduleWindow, SelectPolicy,
};
pub use replay::{ReplayError, replay, simulate, what_if};
pub use resource::{Resource, ResourceState};
pub use scheduled::{ScheduleParser, Scheduled, ScheduledState};

/// All scalers that need nothing of the host; `combined` then refuses schedules.
pub fn default_scalers() -> Vec<Arc<dyn sas_core::Scaler>> {
    let mut scalers = metric_scalers();
    scalers.push(Arc::new(Combined::new()));
    scalers
}

/// All scalers, with the host's way to read schedules.
pub fn scalers_with_schedules(parser: ScheduleParser) -> Vec<Arc<dyn sas_core::Scaler>> {
    let mut scalers = metric_scalers();
    scalers.push(Arc::new(Scheduled::new(parser.clone())));
    scalers.push(Arc::new(Combined::with_schedules(parser)));
    scalers
}

fn metric_scalers() -> Vec<Arc<dyn sas_core::Scaler>> {
    vec![
        Arc::new(KpaColumns::default()),
        Arc::new(KpaColumns::concurrency()),
        Arc::new(KpaColumns::rps()),
        Arc::new(Resource),
        Arc::new(Backlog),
        Arc::new(Forecast),
    ]
}

#[cfg(test)]
#[path = "../tests/unit/mod.rs"]
#[allow(
    clippy::field_reassign_with_default,
    reason = "as whoever uses the library writes it: these types can grow"
)]
mod unit;
