//! The names of all annotations and labels that are read or written, in one place.
//!
//! Knative's are lists: each name is followed by its older alias where there is one, and the first that is present
//! counts. Those of this platform begin with [`own::PREFIX`].

/// The header by which a request asks for the revision of a tag, whatever the weights say.
pub const TAG_HEADER: &str = "knative-serving-tag";

/// Names the autoscaler that decides.
pub const CLASS: &[&str] = &["autoscaling.knative.dev/class"];
/// Names the metric that the target is about.
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
/// The length of the stable window, such as `60s`.
pub const WINDOW: &[&str] = &["autoscaling.knative.dev/window"];
/// The share of the stable window that shows a panic.
pub const PANIC_WINDOW_PERCENTAGE: &[&str] =
    &["autoscaling.knative.dev/panic-window-percentage", "autoscaling.knative.dev/panicWindowPercentage"];
/// What is a panic.
pub const PANIC_THRESHOLD_PERCENTAGE: &[&str] = &[
    "autoscaling.knative.dev/panic-threshold-percentage",
    "autoscaling.knative.dev/panicThresholdPercentage",
];
/// The least instances that a revision keeps.
pub const MIN_SCALE: &[&str] = &["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"];
/// The most instances that a revision may have; `0` is unlimited.
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

/// The class of Knative's own autoscaler.
pub const KPA_CLASS: &str = "kpa.autoscaling.knative.dev";
/// The class of the autoscaler that uses Kubernetes' HorizontalPodAutoscaler.
pub const HPA_CLASS: &str = "hpa.autoscaling.knative.dev";

/// How long traffic takes to move to a new revision; on the service.
pub const ROLLOUT_DURATION: &str = "serving.knative.dev/rollout-duration";
/// Keeps a revision although nothing of it is used; on the template.
pub const NO_GC: &str = "serving.knative.dev/no-gc";
/// The label of a revision that names its service.
pub const SERVICE_LABEL: &str = "serving.knative.dev/service";
/// The label of a revision that names its configuration, which has the service's name.
pub const CONFIGURATION_LABEL: &str = "serving.knative.dev/configuration";
/// The label of a revision that says of which generation of its configuration it is.
pub const CONFIGURATION_GENERATION_LABEL: &str = "serving.knative.dev/configurationGeneration";
/// Labels that make a service answer only at its internal host.
pub const VISIBILITY: [&str; 2] = ["networking.knative.dev/visibility", "serving.knative.dev/visibility"];

/// Names of this platform, for what Knative has no words for.
pub mod own {
    /// What all of them begin with.
    pub const PREFIX: &str = "sas.dev/";

    /// The label that names the app which a service belongs to.
    pub const APP: &str = "sas.dev/app";
    /// Where the code is: a path or a `file:` URL.
    pub const PACKAGE: &str = "sas.dev/package";
    /// A function that the host registered.
    pub const FUNCTION: &str = "sas.dev/function";
    /// The command that starts the program of a package.
    pub const COMMAND: &str = "sas.dev/command";
    /// The name of the runtime that serves the revision.
    pub const RUNTIME: &str = "sas.dev/runtime";
    /// The port that the program insists on.
    pub const PORT: &str = "sas.dev/port";
    /// Requests that may wait for an instance.
    pub const QUEUE_LIMIT: &str = "sas.dev/queue-limit";
    /// How long a start may take.
    pub const START_TIMEOUT: &str = "sas.dev/start-timeout";
    /// How long a polite stop may take.
    pub const STOP_GRACE: &str = "sas.dev/stop-grace";
    /// The namespaces whose triggers may send to the service, with commas between; `*`: all. Without it, only its own.
    pub const EVENTS_FROM: &str = "sas.dev/events-from";

    /// What makes requests belong to one instance.
    pub const AFFINITY: &str = "sas.dev/affinity";
    /// Whether browsers get a page that reloads itself while the service starts.
    pub const PLACEHOLDER: &str = "sas.dev/placeholder";
    /// Paths whose requests start no instance.
    pub const NO_WAKE: &str = "sas.dev/no-wake";
    /// Which requests go to the revision of a tag, whatever the shares say: a list in JSON.
    pub const ROUTES: &str = "sas.dev/routes";
    /// The requests per second that a service may have in the long run.
    pub const QUOTA_RATE: &str = "sas.dev/quota-rate";
    /// Requests at once after a quiet stretch.
    pub const QUOTA_BURST: &str = "sas.dev/quota-burst";
    /// The requests that a service may have at once.
    pub const QUOTA_CONCURRENCY: &str = "sas.dev/quota-concurrency";
    /// The shares in which traffic moves to a new revision.
    pub const ROLLOUT_STEPS: &str = "sas.dev/rollout-steps";
    /// How long each step is held.
    pub const ROLLOUT_HOLD: &str = "sas.dev/rollout-hold";
    /// Requests that a step must have seen.
    pub const ROLLOUT_MIN_REQUESTS: &str = "sas.dev/rollout-min-requests";
    /// How many more errors than before make the traffic go back.
    pub const ROLLOUT_MAX_MORE_ERRORS: &str = "sas.dev/rollout-max-more-errors";
    /// Which way traffic goes to a new revision: `canary` or `blue-green`.
    pub const ROLLOUT: &str = "sas.dev/rollout";
    /// By how much a new revision may be slower, such as `50%`.
    pub const ROLLOUT_MAX_SLOWER: &str = "sas.dev/rollout-max-slower";
    /// Where latencies are compared, such as `p95`.
    pub const ROLLOUT_QUANTILE: &str = "sas.dev/rollout-quantile";
    /// Instances that both revisions may have beyond what the service needs, such as `2` or `25%`.
    pub const ROLLOUT_SURGE: &str = "sas.dev/rollout-surge";
    /// How long the new revision may take to have the instances of a step.
    pub const ROLLOUT_READY_WITHIN: &str = "sas.dev/rollout-ready-within";
    /// How long the old revision keeps its size once the new one has everything.
    pub const ROLLOUT_KEEP_OLD: &str = "sas.dev/rollout-keep-old";

    /// Which tag gets copies of how many requests, such as `next=10%`.
    pub const MIRROR: &str = "sas.dev/mirror";
    /// Faults that requests meet on purpose.
    pub const FAULTS: &str = "sas.dev/faults";

    /// Which scaler, by its name.
    pub const SCALER: &str = "sas.dev/scaler";
    /// The metrics of the scalers that look at several.
    pub const METRICS: &str = "sas.dev/metrics";
    /// How several metrics make one decision.
    pub const COMBINE: &str = "sas.dev/combine";
    /// Windows of a schedule.
    pub const SCHEDULE: &str = "sas.dev/schedule";
    /// What may wait upstream per instance.
    pub const BACKLOG: &str = "sas.dev/backlog";
    /// What the forecast learns.
    pub const FORECAST: &str = "sas.dev/forecast";
    /// How the scaler by resources moves.
    pub const RESOURCE: &str = "sas.dev/resource";
    /// How long the last instance stays after the decision to sleep.
    pub const SCALE_TO_ZERO_GRACE: &str = "sas.dev/scale-to-zero-grace-period";
    /// At most this many times the ready instances in one decision.
    pub const MAX_SCALE_UP_RATE: &str = "sas.dev/max-scale-up-rate";
    /// At least one in this many of the ready instances stays in one decision.
    pub const MAX_SCALE_DOWN_RATE: &str = "sas.dev/max-scale-down-rate";
    /// Whether the revision may sleep.
    pub const SCALE_TO_ZERO: &str = "sas.dev/enable-scale-to-zero";
    /// What the names of a custom scaler's options begin with.
    pub const SCALER_OPTION: &str = "sas.dev/scaler-option.";

    /// Read from the service or the template, and not passed on to the runtime.
    #[cfg(feature = "manifest")]
    pub(crate) const OF_SERVICE: [&str; 28] = [
        EVENTS_FROM,
        PACKAGE,
        FUNCTION,
        COMMAND,
        RUNTIME,
        PORT,
        QUEUE_LIMIT,
        START_TIMEOUT,
        STOP_GRACE,
        AFFINITY,
        PLACEHOLDER,
        NO_WAKE,
        ROUTES,
        QUOTA_RATE,
        QUOTA_BURST,
        QUOTA_CONCURRENCY,
        ROLLOUT_STEPS,
        ROLLOUT_HOLD,
        ROLLOUT_MIN_REQUESTS,
        ROLLOUT_MAX_MORE_ERRORS,
        ROLLOUT,
        ROLLOUT_MAX_SLOWER,
        ROLLOUT_QUANTILE,
        ROLLOUT_SURGE,
        ROLLOUT_READY_WITHIN,
        ROLLOUT_KEEP_OLD,
        MIRROR,
        FAULTS,
    ];
    const OF_SCALING: [&str; 11] = [
        SCALER,
        METRICS,
        COMBINE,
        SCHEDULE,
        BACKLOG,
        FORECAST,
        RESOURCE,
        SCALE_TO_ZERO_GRACE,
        MAX_SCALE_UP_RATE,
        MAX_SCALE_DOWN_RATE,
        SCALE_TO_ZERO,
    ];

    /// Whether `name` is about scaling; such annotations belong to the template.
    pub fn is_scaling(name: &str) -> bool {
        OF_SCALING.contains(&name) || name.starts_with(SCALER_OPTION)
    }
}
