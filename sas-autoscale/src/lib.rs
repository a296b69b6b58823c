#![forbid(unsafe_code)]
//! Pure, replayable autoscalers of the sas serverless SDK and the driver that ticks them

mod driver;
mod govern;
mod history;
pub mod kpa;
pub mod metrics;
mod replay;
mod window;

use std::sync::Arc;

pub use driver::{Driver, DriverConfig, Measurement};
pub use govern::Governor;
pub use history::{Checkpoint, Stretch};
pub use replay::{ReplayError, replay, what_if};
pub use window::{MaxWindow, Nanos, Window};

/// One second in the unit of [`Nanos`].
pub const SECOND_NS: Nanos = window::SECOND;

/// The scalers that need nothing of the host.
pub fn default_scalers() -> Vec<Arc<dyn sas_core::Scaler>> {
    vec![Arc::new(kpa::Kpa::default()), Arc::new(kpa::Kpa::concurrency()), Arc::new(kpa::Kpa::rps())]
}
