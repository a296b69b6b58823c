//! Knative's autoscaling configuration: the ConfigMap `config-autoscaler`, the annotations of a revision, and what
//! both mean together.
//!
//! Two ways lead through this module. A platform takes [`scaling_from_annotations`], which refuses what Knative's
//! webhook refuses and gives a [`crate::ScalingSpec`]. Who replays Knative takes [`resolve`], which gives what its
//! run-time code makes of annotations, valid or not.
//!
//! ```
//! use std::collections::BTreeMap;
//! use sas_core::knative::{AutoscalerConfig, Preset, scaling_from_annotations};
//!
//! let annotations = BTreeMap::from([
//!     ("autoscaling.knative.dev/target".to_owned(), "10".to_owned()),
//!     ("autoscaling.knative.dev/window".to_owned(), "30s".to_owned()),
//! ]);
//! let spec = scaling_from_annotations(&annotations, 0, &AutoscalerConfig::default(), Preset::Default)?;
//! assert_eq!((spec.target, spec.utilization), (10.0, 0.7));
//!
//! let wrong = BTreeMap::from([("autoscaling.knative.dev/window".to_owned(), "soon".to_owned())]);
//! let errors = scaling_from_annotations(&wrong, 0, &AutoscalerConfig::default(), Preset::Default).unwrap_err();
//! assert_eq!(errors.0[0].field, "autoscaling.knative.dev/window");
//! # Ok::<(), sas_core::SpecErrors>(())
//! ```

mod annotations;
mod config;
mod go;
mod own;
mod resolve;

pub use annotations::validate_annotations;
pub use config::AutoscalerConfig;
pub use go::{ParseError, format_duration, parse_bool, parse_duration, parse_float, parse_int};
pub use resolve::{DeciderSpec, Reachability, Resolved, resolve, scaling_from_annotations};

pub use crate::Preset;

/// Names of annotations, each followed by its older alias where there is one. The first that is present counts.
pub mod keys {
    /// Which autoscaler.
    pub const CLASS: &[&str] = &["autoscaling.knative.dev/class"];
    /// Which metric.
    pub const METRIC: &[&str] = &["autoscaling.knative.dev/metric"];
    /// What one instance should carry.
    pub const TARGET: &[&str] = &["autoscaling.knative.dev/target"];
    /// The share of the target to aim at, in percent.
    pub const TARGET_UTILIZATION: &[&str] = &[
        "autoscaling.knative.dev/target-utilization-percentage",
        "autoscaling.knative.dev/targetUtilizationPercentage",
    ];
    /// Requests beyond capacity that must find room.
    pub const TARGET_BURST_CAPACITY: &[&str] =
        &["autoscaling.knative.dev/target-burst-capacity", "autoscaling.knative.dev/targetBurstCapacity"];
    /// The stable window.
    pub const WINDOW: &[&str] = &["autoscaling.knative.dev/window"];
    /// The share of the stable window that shows a panic.
    pub const PANIC_WINDOW_PERCENTAGE: &[&str] =
        &["autoscaling.knative.dev/panic-window-percentage", "autoscaling.knative.dev/panicWindowPercentage"];
    /// What is a panic.
    pub const PANIC_THRESHOLD_PERCENTAGE: &[&str] = &[
        "autoscaling.knative.dev/panic-threshold-percentage",
        "autoscaling.knative.dev/panicThresholdPercentage",
    ];
    /// Least instances.
    pub const MIN_SCALE: &[&str] = &["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"];
    /// Most instances.
    pub const MAX_SCALE: &[&str] = &["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"];
    /// Instances of a new revision.
    pub const INITIAL_SCALE: &[&str] =
        &["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"];
    /// Instances to wake up to.
    pub const ACTIVATION_SCALE: &[&str] = &["autoscaling.knative.dev/activation-scale"];
    /// How long a lower decision waits.
    pub const SCALE_DOWN_DELAY: &[&str] =
        &["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"];
    /// How long the last instance stays at least.
    pub const RETENTION: &[&str] = &[
        "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
        "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
    ];
    /// How a window is averaged.
    pub const AGGREGATION: &[&str] = &[
        "autoscaling.knative.dev/metric-aggregation-algorithm",
        "autoscaling.knative.dev/metricAggregationAlgorithm",
    ];
    /// How long a revision may take to become ready.
    pub const PROGRESS_DEADLINE: &[&str] = &["serving.knative.dev/progress-deadline"];
}

/// The class of Knative's own autoscaler.
pub const KPA_CLASS: &str = "kpa.autoscaling.knative.dev";
/// The class of the autoscaler that uses Kubernetes' HorizontalPodAutoscaler.
pub const HPA_CLASS: &str = "hpa.autoscaling.knative.dev";
