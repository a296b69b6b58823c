#![forbid(unsafe_code)]
//! Control plane.
mod admin;
mod control;
mod decisions;
mod engine;
mod invoke;
mod logs;
pub mod manifest;
mod meter;
pub mod metrics;
mod package;
mod reconcile;
mod record;
mod store;
mod view;

pub use admin::Admin;
pub use control::{Applied, Control, ControlConfig, DeployOutcome, Recovery};
pub use decisions::DecisionLog;
pub use engine::{Edition, Engine};
pub use invoke::{Phases, TestReport, TestRun};
pub use logs::{LogBuffer, LogLimits, LogLine};
pub use meter::{Meter, MeterTotals};
pub use reconcile::{Blocked, Command, GcLimits, Observed, Registration, Rules, reconcile};
pub use record::{Field, RevisionRecord, RevisionState, Rolling, ServiceRecord, Share};
pub use store::{MemoryStore, RedbStore};
pub use view::{Condition, RevisionView, ServiceView};
