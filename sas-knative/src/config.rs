//! The ConfigMap `config-autoscaler`.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use sas_core::{SpecErrors, parse_duration};

use crate::go::{self, format_duration};

/// Knative's cluster-wide autoscaling configuration, with its defaults.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct AutoscalerConfig {
    /// The share of a concurrency target to aim at, above 0 and at most 1.
    pub container_concurrency_target_fraction: f64,
    /// Requests at once per instance, where a revision says nothing.
    pub container_concurrency_target_default: f64,
    /// Requests per second per instance, where a revision says nothing.
    pub requests_per_second_target_default: f64,
    /// Requests beyond capacity that must find room; -1: unlimited.
    pub target_burst_capacity: f64,
    /// Over how long a metric is averaged.
    pub stable_window: Duration,
    /// The share of the stable window that shows a panic, in percent.
    pub panic_window_percentage: f64,
    /// Panic when the short window wants this many percent of what is ready.
    pub panic_threshold_percentage: f64,
    /// At most this many times the ready instances in one decision.
    pub max_scale_up_rate: f64,
    /// At least one in this many of the ready instances stays in one decision.
    pub max_scale_down_rate: f64,
    /// Whether revisions may sleep.
    pub enable_scale_to_zero: bool,
    /// Whether a revision may ask for an initial scale of 0.
    pub allow_zero_initial_scale: bool,
    /// Instances of a new revision.
    pub initial_scale: i32,
    /// The least instances of a revision that says nothing else.
    pub min_scale: i32,
    /// Most instances; 0: unlimited.
    pub max_scale: i32,
    /// The highest maximum that a revision may ask for; 0: any.
    pub max_scale_limit: i32,
    /// How long a lower decision waits.
    pub scale_down_delay: Duration,
    /// How long the last instance stays, so that the routing can change.
    pub scale_to_zero_grace_period: Duration,
    /// How long the last instance stays at least.
    pub scale_to_zero_pod_retention_period: Duration,
    /// Requests at once per activator.
    pub activator_capacity: f64,
    /// The class of revisions that name none.
    pub pod_autoscaler_class: String,
    /// How long a revision may take to become ready (`config-deployment`).
    pub progress_deadline: Duration,
}

impl Default for AutoscalerConfig {
    fn default() -> Self {
        Self {
            container_concurrency_target_fraction: 0.7,
            container_concurrency_target_default: 100.0,
            requests_per_second_target_default: 200.0,
            target_burst_capacity: 211.0,
            stable_window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            enable_scale_to_zero: true,
            allow_zero_initial_scale: false,
            initial_scale: 1,
            min_scale: 0,
            max_scale: 0,
            max_scale_limit: 0,
            scale_down_delay: Duration::ZERO,
            scale_to_zero_grace_period: Duration::from_secs(30),
            scale_to_zero_pod_retention_period: Duration::ZERO,
            activator_capacity: 100.0,
            pod_autoscaler_class: crate::KPA_CLASS.to_owned(),
            progress_deadline: Duration::from_secs(600),
        }
    }
}

impl AutoscalerConfig {
    /// The share of a requests-per-second target to aim at. No key of the map sets it.
    pub const RPS_TARGET_FRACTION: f64 = 0.7;

    /// Reads the `data` of the ConfigMap. Keys that are not Knative's (`_example`) are left alone.
    ///
    /// # Errors
    /// All mistakes at once, each with its key; then nothing of the map counts. NaN is one, though Knative's own
    /// comparisons let it pass.
    pub fn from_map(data: &BTreeMap<String, String>) -> Result<Self, SpecErrors> {
        let mut read = Reader { data, errors: SpecErrors::default() };
        let mut config = Self::default();
        if let Some(value) = read.float("container-concurrency-target-percentage") {
            config.container_concurrency_target_fraction = if value > 1.0 { value / 100.0 } else { value };
        }
        let default = Self::default();
        config.container_concurrency_target_default = read
            .float("container-concurrency-target-default")
            .unwrap_or(default.container_concurrency_target_default);
        config.requests_per_second_target_default = read
            .float("requests-per-second-target-default")
            .unwrap_or(default.requests_per_second_target_default);
        config.target_burst_capacity =
            read.float("target-burst-capacity").unwrap_or(default.target_burst_capacity);
        config.panic_window_percentage =
            read.float("panic-window-percentage").unwrap_or(default.panic_window_percentage);
        config.panic_threshold_percentage =
            read.float("panic-threshold-percentage").unwrap_or(default.panic_threshold_percentage);
        config.max_scale_up_rate = read.float("max-scale-up-rate").unwrap_or(default.max_scale_up_rate);
        config.max_scale_down_rate = read.float("max-scale-down-rate").unwrap_or(default.max_scale_down_rate);
        config.activator_capacity = read.float("activator-capacity").unwrap_or(default.activator_capacity);
        config.enable_scale_to_zero = read.flag("enable-scale-to-zero").unwrap_or(true);
        config.allow_zero_initial_scale = read.flag("allow-zero-initial-scale").unwrap_or(false);
        config.initial_scale = read.int("initial-scale").unwrap_or(default.initial_scale);
        config.min_scale = read.int("min-scale").unwrap_or(0);
        config.max_scale = read.int("max-scale").unwrap_or(0);
        config.max_scale_limit = read.int("max-scale-limit").unwrap_or(0);
        if let Some(window) = read.span("stable-window", 6_000_000_000, 3_600_000_000_000, true) {
            config.stable_window = window;
        }
        if let Some(delay) = read.span("scale-down-delay", 0, i64::MAX, true) {
            config.scale_down_delay = delay;
        }
        if let Some(grace) = read.span("scale-to-zero-grace-period", 1, i64::MAX, false) {
            config.scale_to_zero_grace_period = grace;
        }
        if let Some(retention) = read.span("scale-to-zero-pod-retention-period", 0, i64::MAX, false) {
            config.scale_to_zero_pod_retention_period = retention;
        }
        if let Some(class) = data.get("pod-autoscaler-class") {
            config.pod_autoscaler_class.clone_from(class);
        }
        let mut errors = read.errors;
        config.check(&mut errors);
        errors.into_result().map(|()| config)
    }

    /// Reads `progress-deadline` of the ConfigMap `config-deployment` into this configuration.
    ///
    /// # Errors
    /// When it is there and not a duration of whole seconds, at least one.
    pub fn with_deployment_map(mut self, data: &BTreeMap<String, String>) -> Result<Self, SpecErrors> {
        let mut read = Reader { data, errors: SpecErrors::default() };
        if let Some(deadline) = read.span("progress-deadline", 1_000_000_000, i64::MAX, true) {
            self.progress_deadline = deadline;
        }
        read.errors.into_result().map(|()| self)
    }

    /// The comparisons are written so that NaN fails.
    #[allow(clippy::neg_cmp_op_on_partial_ord, reason = "NaN is to fail")]
    fn check(&self, errors: &mut SpecErrors) {
        let fraction = self.container_concurrency_target_fraction;
        if !(fraction > 0.0 && fraction <= 1.0) {
            errors.push(
                "container-concurrency-target-percentage",
                fraction * 100.0,
                "above 0 and at most 100; 1 and below count as a share",
            );
        } else if !(fraction * self.container_concurrency_target_default >= 0.01) {
            errors.push(
                "container-concurrency-target-default",
                self.container_concurrency_target_default,
                "times container-concurrency-target-percentage at least 0.01",
            );
        }
        if !(self.requests_per_second_target_default >= 0.01) {
            errors.push(
                "requests-per-second-target-default",
                self.requests_per_second_target_default,
                "at least 0.01",
            );
        }
        if !(self.target_burst_capacity >= 0.0 || self.target_burst_capacity == -1.0) {
            errors.push(
                "target-burst-capacity",
                self.target_burst_capacity,
                "at least 0, or -1 for unlimited",
            );
        }
        if !(self.panic_window_percentage >= 1.0 && self.panic_window_percentage <= 100.0) {
            errors.push("panic-window-percentage", self.panic_window_percentage, "1 to 100");
        }
        if self.panic_threshold_percentage.is_nan() {
            errors.push("panic-threshold-percentage", self.panic_threshold_percentage, "a number");
        }
        for (key, value) in
            [("max-scale-up-rate", self.max_scale_up_rate), ("max-scale-down-rate", self.max_scale_down_rate)]
        {
            if !(value > 1.0) {
                errors.push(key, value, "above 1");
            }
        }
        if !(self.activator_capacity >= 1.0) {
            errors.push("activator-capacity", self.activator_capacity, "at least 1");
        }
        let least = i32::from(!self.allow_zero_initial_scale);
        if self.initial_scale < least {
            errors.push(
                "initial-scale",
                self.initial_scale,
                format!("at least {least}; 0 is only possible with allow-zero-initial-scale"),
            );
        }
        if self.max_scale_limit < 0 {
            errors.push("max-scale-limit", self.max_scale_limit, "at least 0");
        }
        if self.max_scale < 0 {
            errors.push("max-scale", self.max_scale, "at least 0");
        } else if self.max_scale_limit > 0 && !(1..=self.max_scale_limit).contains(&self.max_scale) {
            errors.push(
                "max-scale",
                self.max_scale,
                format!("1 to max-scale-limit, which is {}", self.max_scale_limit),
            );
        }
        if self.min_scale < 0 {
            errors.push("min-scale", self.min_scale, "at least 0");
        } else if self.max_scale > 0 && self.min_scale > self.max_scale {
            errors.push(
                "min-scale",
                self.min_scale,
                format!("at most max-scale, which is {}", self.max_scale),
            );
        }
    }
}

struct Reader<'a> {
    data: &'a BTreeMap<String, String>,
    errors: SpecErrors,
}

impl Reader<'_> {
    fn parse<T, E: std::fmt::Display>(
        &mut self,
        key: &str,
        what: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let text = self.data.get(key)?;
        parse(text).map_err(|error| self.errors.push(key, text, format!("{what} ({error})"))).ok()
    }

    fn float(&mut self, key: &str) -> Option<f64> {
        self.parse(key, "a number", go::parse_float)
    }

    fn flag(&mut self, key: &str) -> Option<bool> {
        self.parse(key, "true or false", go::parse_bool)
    }

    fn int(&mut self, key: &str) -> Option<i32> {
        self.parse(key, "a whole number of 32 bits", go::parse_int32)
    }

    fn span(&mut self, key: &str, least: i64, most: i64, whole_seconds: bool) -> Option<Duration> {
        let nanos = self.parse(key, "a duration such as 60s", parse_duration)?;
        if nanos < least || nanos > most {
            let range = if most == i64::MAX {
                format!("at least {}", format_duration(least))
            } else {
                format!("{} to {}", format_duration(least), format_duration(most))
            };
            self.errors.push(key, format_duration(nanos), range);
            return None;
        }
        if whole_seconds && nanos % 1_000_000_000 != 0 {
            self.errors.push(key, format_duration(nanos), "whole seconds");
            return None;
        }
        Some(Duration::from_nanos(nanos.unsigned_abs()))
    }
}
