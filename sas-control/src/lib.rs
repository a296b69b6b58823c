#![forbid(unsafe_code)]
//! The control plane of the `sas` serverless SDK: services, revisions, traffic, manifests, stores, test runs, logs,
//! and an admin API over all of it.
//!
//! What is wanted is stored first, by compare-and-swap, and then done: `reconcile` is a pure function from what is
//! wanted and what runs to the next steps, so a crash between two steps is mended by asking again.
//!
//! ```
//! use std::sync::Arc;
//! use sas_control::Control;
//! # use sas_control::{ControlConfig, Engines};
//! # use sas_core::*;
//! # async fn example(
//! #     pool: Arc<dyn Pool>, router: Arc<dyn Router>, gateway: Arc<dyn Invoker>, runtimes: Vec<Arc<dyn Runtime>>,
//! # ) -> Result<()> {
//! let engine = Engine::new(EngineKey::FIRST, pool, runtimes);
//! let engines = Engines::single(engine, EngineSpec::default());
//! let plane = DataPlane::new(router, gateway);
//! let config = ControlConfig::new(Arc::new(MemoryStore::default()), engines, plane);
//! let control = Control::new(config);
//! control.recover().await?;
//!
//! let mut applied = Vec::new();
//! control.apply(
//!     "
//! apiVersion: serving.knative.dev/v1
//! kind: Service
//! metadata:
//!   name: hello
//!   annotations: {sas.dev/package: ./hello.jar}
//! spec:
//!   template: {spec: {containerConcurrency: 10}}
//! ",
//!     &mut applied,
//! ).await?;
//! // hello.default.localhost answers now, and a test run reaches it whatever its traffic:
//! let report = control.invoke("default", "hello", Default::default()).await?;
//! println!("{} after {:?}", report.status, report.phases.total);
//! # Ok(())
//! # }
//! ```
//!
//! | To | See |
//! |---|---|
//! | read manifests and learn every mistake in them | [`sas_knative::manifest`] |
//! | deploy, split traffic, roll back, delete, test | [`Control`] |
//! | serve all of it as JSON over HTTP | [`Admin`] |
//! | give people and programs tokens with scopes | [`Tokens`] |
//! | keep logs, decisions and meter readings | [`LogBuffer`], [`DecisionLog`], [`Meter`] |
//! | say who may deploy what, and from where | [`AdmissionHook`], [`AllowedSources`] |
//! | know what is wrong, and what to do about it | [`Control::diagnose`] |
//! | have several engines, each for somebody | [`Engines`], [`sas_core::EngineSpec`] |
//! | sign, export and price what was used | [`UsageExporter`], [`UsageRecord`], [`PriceTable`] |

mod admin;
mod admission;
mod audit;
mod backup;
mod configuration;
mod control;
mod decisions;
mod diagnosis;
mod engine;
mod invalid;
mod invoke;
mod knative;
mod labels;
mod lifecycle;
mod log_files;
mod logs;
mod meter;
pub mod metrics;
mod package;
mod private;
mod reconcile;
mod record;
mod registry;
mod requests;
mod rollout;
mod roots;
mod secrets;
mod shared_packages;
mod spread;
mod stamp;
mod tokens;
mod view;

pub use admin::{Admin, AdminSettings, PeerAuthenticator, TokenAuthenticator};
pub use admission::{AdmissionHook, AdmissionRequest, AllowedSources, Refusal};
pub use audit::{AuditLimits, AuditRecord, AuditSink};
pub use backup::{BackupStream, Restored, restore};
pub use configuration::{ChangeTime, ConfigField, ConfigOrigin, ProgramConfig};
pub use control::{
    AppRecord, Applied, Control, ControlConfig, DeadLetter, DeployOutcome, DomainRecord, EnvVersion,
    HourUsageView, NamespaceUsageView, Purged, Recovery, RolloutAction, UsageGapView, UsageHoursView,
    UsageView,
};
pub use decisions::DecisionLog;
pub use diagnosis::{
    CertificateSource, CertificateState, Diagnosis, DiagnosisConfig, Evidence, Finding, Severity,
};
pub use engine::{EnginePhase, EngineView, Engines, LeftBehind, UpgradeReport};
pub use invoke::{Phases, TestReport, TestRun};
pub use labels::{APP_LABEL, LabelSelector};
pub use log_files::{LogFileLimits, LogFiles};
pub use logs::{LogBuffer, LogLimits};
pub use meter::{
    Cost, CostLine, EventUsageExport, FileUsageExport, Meter, MeterConfig, PriceTable, Prices, UsageExport,
    UsageExporter, UsageKey, UsageRecord,
};
pub use package::PackageDir;
pub use private::private_dir;
pub use reconcile::{GcLimits, Rules};
pub use record::{AppEnv, Disabled, Field, RevisionRecord, RevisionState, Rolling, ServiceRecord, Share};
pub use registry::RuntimeRegistry;
pub use requests::{RequestLimits, RequestLog, RequestRates, RequestRecord, RequestSecond};
pub use rollout::{RolloutProgress, RolloutState};
pub use roots::PackageRoots;
pub use secrets::{Namespaces, SecretDir, SecretEnv};
pub use shared_packages::SharedPackages;
pub use spread::SpreadConfig;
pub use tokens::{MadeToken, NewToken, TokenView, Tokens};
pub use view::{
    Condition, DisabledView, HostPartView, HostRevisionView, InstancesView, MissingView, RevisionView,
    RolloutAnswers, RolloutInstances, RolloutLatency, RolloutStage, RolloutView, ServiceView, TrafficView,
    TriggerView,
};
