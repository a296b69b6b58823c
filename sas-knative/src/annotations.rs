//! What Knative's webhook says about the autoscaling annotations of a revision.

use std::collections::BTreeMap;

use sas_core::{SpecErrors, parse_duration};

use crate::{
    AutoscalerConfig,
    go::{self, format_duration},
    keys::{self, HPA_CLASS, KPA_CLASS},
};

/// The name and value of the first key that is present.
pub(super) fn get<'a>(
    annotations: &'a BTreeMap<String, String>,
    keys: &[&'static str],
) -> Option<(&'static str, &'a str)> {
    keys.iter().find_map(|key| annotations.get(*key).map(|value| (*key, value.as_str())))
}

/// Checks the annotations of one revision.
///
/// # Errors
/// All mistakes at once, each with its annotation.
pub fn validate_annotations(
    annotations: &BTreeMap<String, String>,
    config: &AutoscalerConfig,
) -> Result<(), SpecErrors> {
    let mut check = Check { annotations, errors: SpecErrors::default() };
    check.class_and_metric();
    check.float(keys::TARGET, 0.01, f64::INFINITY, "at least 0.01");
    check.float(keys::TARGET_UTILIZATION, 1.0, 100.0, "1 to 100");
    check.float(keys::PANIC_WINDOW_PERCENTAGE, 1.0, 100.0, "1 to 100");
    check.float(keys::PANIC_THRESHOLD_PERCENTAGE, 110.0, 1000.0, "110 to 1000");
    if let Some((key, text)) = get(annotations, keys::TARGET_BURST_CAPACITY) {
        match go::parse_float(text) {
            Ok(value) if value >= 0.0 || value == -1.0 => {}
            Ok(_) => check.errors.push(key, text, "at least 0, or -1 for unlimited"),
            Err(error) => check.errors.push(key, text, format!("a number ({error})")),
        }
    }
    const HOUR: i64 = 3_600_000_000_000;
    check.span(keys::WINDOW, 6_000_000_000, HOUR, true);
    check.span(keys::SCALE_DOWN_DELAY, 0, HOUR, true);
    check.span(keys::RETENTION, 0, HOUR, false);
    check.scales(config);
    check.errors.into_result()
}

struct Check<'a> {
    annotations: &'a BTreeMap<String, String>,
    errors: SpecErrors,
}

impl Check<'_> {
    fn class_and_metric(&mut self) {
        let class = get(self.annotations, keys::CLASS);
        if let Some((key, class)) = class
            && class.ends_with(".knative.dev")
            && class != KPA_CLASS
            && class != HPA_CLASS
        {
            self.errors.push(key, class, format!("{KPA_CLASS}, {HPA_CLASS}, or a class of your own"));
        }
        if let Some((key, metric)) = get(self.annotations, keys::METRIC) {
            match class.map_or(KPA_CLASS, |(_, class)| class) {
                KPA_CLASS if !matches!(metric, "concurrency" | "rps") => {
                    self.errors.push(key, metric, "concurrency or rps");
                }
                HPA_CLASS if metric.is_empty() => {
                    self.errors.push(key, metric, "cpu, memory, or the name of a metric");
                }
                _ => {}
            }
        }
        if class.is_some_and(|(_, class)| class == KPA_CLASS)
            && let Some((key, algorithm)) = get(self.annotations, keys::AGGREGATION)
            && !matches!(algorithm, "linear" | "weighted-exponential" | "weightedExponential")
        {
            self.errors.push(key, algorithm, "linear or weighted-exponential");
        }
    }

    fn float(&mut self, keys: &[&'static str], least: f64, most: f64, range: &str) {
        if let Some((key, text)) = get(self.annotations, keys) {
            match go::parse_float(text) {
                // Written so that NaN fails.
                Ok(value) if value >= least && value <= most => {}
                Ok(_) => self.errors.push(key, text, range),
                Err(error) => self.errors.push(key, text, format!("a number ({error})")),
            }
        }
    }

    fn span(&mut self, keys: &[&'static str], least: i64, most: i64, whole_seconds: bool) {
        if let Some((key, text)) = get(self.annotations, keys) {
            match parse_duration(text) {
                Ok(nanos) if nanos < least || nanos > most => {
                    let (least, most) = (format_duration(least), format_duration(most));
                    self.errors.push(key, text, format!("{least} to {most}"));
                }
                Ok(nanos) if whole_seconds && nanos % 1_000_000_000 != 0 => {
                    self.errors.push(key, text, "whole seconds");
                }
                Ok(_) => {}
                Err(error) => self.errors.push(key, text, format!("a duration such as 60s ({error})")),
            }
        }
    }

    /// The value of a scale; 0 when it is absent or wrong, as the comparisons between them count it.
    fn scale(&mut self, keys: &[&'static str]) -> i32 {
        let Some((key, text)) = get(self.annotations, keys) else { return 0 };
        match go::parse_int32(text) {
            Ok(value) if value >= 0 => value,
            Ok(_) | Err(go::ParseError::Range) => {
                self.errors.push(key, text, format!("0 to {}", i32::MAX));
                0
            }
            Err(error) => {
                self.errors.push(key, text, format!("a whole number ({error})"));
                0
            }
        }
    }

    fn scales(&mut self, config: &AutoscalerConfig) {
        let min = self.scale(keys::MIN_SCALE);
        let max = self.scale(keys::MAX_SCALE);
        if max != 0 && max < min {
            let (key, text) = get(self.annotations, keys::MAX_SCALE).unwrap_or((keys::MAX_SCALE[0], ""));
            self.errors.push(key, text, format!("at least min-scale, which is {min}"));
        }
        let limit = config.max_scale_limit;
        if limit > 0
            && let Some((key, text)) = get(self.annotations, keys::MAX_SCALE)
            && !(1..=limit).contains(&max)
        {
            self.errors.push(key, text, format!("1 to max-scale-limit, which is {limit}"));
        }
        if let Some((key, text)) = get(self.annotations, keys::INITIAL_SCALE) {
            match go::parse_int32(text) {
                Ok(0) if config.allow_zero_initial_scale => {}
                Ok(0) => self.errors.push(key, text, "at least 1: the platform does not allow 0"),
                Ok(value) if value > 0 => {}
                Ok(_) => self.errors.push(key, text, "at least 0"),
                Err(error) => self.errors.push(key, text, format!("a whole number ({error})")),
            }
        }
        if let Some((key, text)) = get(self.annotations, keys::ACTIVATION_SCALE) {
            match go::parse_int(text) {
                Ok(value) if value < 2 => self.errors.push(key, text, "at least 2"),
                Ok(value) if value < i64::from(min) => {
                    self.errors.push(key, text, format!("at least min-scale, which is {min}"));
                }
                Ok(value) if max != 0 && value > i64::from(max) => {
                    self.errors.push(key, text, format!("at most max-scale, which is {max}"));
                }
                Ok(_) => {}
                Err(error) => self.errors.push(key, text, format!("a whole number ({error})")),
            }
        }
    }
}
