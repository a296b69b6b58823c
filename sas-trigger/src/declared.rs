//! From a declaration to a source and its delivery.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sas_core::{Recorder, SpecErrors, Timestamp, TriggerSource, TriggerSpec};
use sas_knative::parse_duration;

use crate::{
    cron::{CronOptions, CronSchedule, Dialect, Fold, Gap},
    delivery::{Backoff, DeadLetter, DeliveryConfig},
    every::Every,
    scheduled::{EventTemplate, Misfire, Overlap, SchedulePolicy, Scheduled},
};

/// What Knative's PingSource calls its events.
const PING: &str = "dev.knative.sources.ping";
/// What a timer's events are called.
const TIMER: &str = "dev.sas.timer";

/// Options as they are read, each once.
struct Options<'a> {
    left: BTreeMap<&'a str, &'a str>,
    known: Vec<&'static str>,
    errors: SpecErrors,
}

impl<'a> Options<'a> {
    fn of(spec: &'a TriggerSpec) -> Self {
        let left = spec.options.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        Self { left, known: Vec::new(), errors: SpecErrors::default() }
    }

    fn take(&mut self, name: &'static str) -> Option<&'a str> {
        self.known.push(name);
        self.left.remove(name)
    }

    /// One of several words.
    fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)], default: T) -> T {
        let Some(text) = self.take(name) else { return default };
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => *value,
            None => {
                let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                self.errors.push(
                    format!("options.{name}"),
                    text,
                    format!("must be one of {}", words.join(", ")),
                );
                default
            }
        }
    }

    fn span(&mut self, name: &'static str, most: Duration, default: Duration) -> Duration {
        let Some(text) = self.take(name) else { return default };
        let parsed =
            parse_duration(text).ok().and_then(|nanos| u64::try_from(nanos).ok()).map(Duration::from_nanos);
        match parsed.filter(|span| *span <= most) {
            Some(span) => span,
            None => {
                let problem = format!("must be a duration such as 10s, at most {}s", most.as_secs());
                self.errors.push(format!("options.{name}"), text, problem);
                default
            }
        }
    }

    fn number(&mut self, name: &'static str, range: std::ops::RangeInclusive<u32>, default: u32) -> u32 {
        let Some(text) = self.take(name) else { return default };
        match text.parse::<u32>().ok().filter(|number| range.contains(number)) {
            Some(number) => number,
            None => {
                let problem = format!("must be a whole number from {} to {}", range.start(), range.end());
                self.errors.push(format!("options.{name}"), text, problem);
                default
            }
        }
    }

    fn finish(mut self) -> Result<(), SpecErrors> {
        for (name, value) in &self.left {
            let problem = format!("unknown option; known are {}", self.known.join(", "));
            self.errors.push(format!("options.{name}"), value, problem);
        }
        self.errors.into_result()
    }
}

/// The options of the delivery, and the declaration without them.
pub(crate) fn split(spec: &TriggerSpec, errors: &mut SpecErrors) -> (TriggerSpec, DeliveryConfig) {
    let mut config = DeliveryConfig::new(spec.name.as_str(), spec.target.as_str());
    if spec.name.split('/').filter(|part| !part.is_empty()).count() != 2 {
        errors.push("name", &spec.name, "must be namespace/name");
    }
    if spec.target.split('/').filter(|part| !part.is_empty()).count() != 2 {
        errors.push("target", &spec.target, "must be namespace/service");
    }
    if !spec.path.starts_with('/') || spec.path.parse::<http::uri::PathAndQuery>().is_err() {
        errors.push("path", &spec.path, "must be the path of a URL, beginning with /");
    }
    config.path.clone_from(&spec.path);
    config.payer = spec.tenant.into();
    let mut options = Options::of(spec);
    let retry = &mut config.retry;
    retry.retries = options.number("retry", 0..=1000, retry.retries);
    retry.backoff = options.word(
        "backoff-policy",
        &[("linear", Backoff::Linear), ("exponential", Backoff::Exponential)],
        retry.backoff,
    );
    retry.delay = options.span("backoff-delay", Duration::from_secs(3600), retry.delay);
    retry.longest = retry.longest.max(retry.delay);
    retry.timeout = options.span("timeout", Duration::from_secs(86_400), retry.timeout);
    if retry.timeout.is_zero() {
        options.errors.push("options.timeout", "0s", "must be longer than nothing");
    }
    match options.take("dead-letter") {
        None => {}
        Some("none") => config.dead_letter = DeadLetter::None,
        Some("publish") => config.dead_letter = DeadLetter::Publish,
        Some(service) if service.split('/').filter(|part| !part.is_empty()).count() == 2 => {
            config.dead_letter = DeadLetter::Service(service.to_owned());
        }
        Some(other) => {
            options.errors.push("options.dead-letter", other, "must be namespace/service, publish, or none")
        }
    }
    if let Some(text) = options.take("filter") {
        match serde_json::from_str(text) {
            Ok(filter) => config.filter = Some(filter),
            Err(error) => options.errors.push("options.filter", text, format!("is not a filter: {error}")),
        }
    }
    errors.0.append(&mut options.errors.0);
    let mut own = spec.clone();
    own.options = options.left.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    (own, config)
}

fn policy(options: &mut Options<'_>) -> SchedulePolicy {
    let mut policy = SchedulePolicy::default();
    if let Some(text) = options.take("misfire") {
        let many =
            text.strip_prefix("catch-up(").and_then(|rest| rest.strip_suffix(')')).map(str::parse::<u32>);
        policy.misfire = match (text, many) {
            ("skip", _) => Misfire::Skip,
            ("fire-once", _) => Misfire::FireOnce,
            (_, Some(Ok(most @ 1..=10_000))) => Misfire::CatchUp(most),
            _ => {
                let problem = "must be skip, fire-once or catch-up(n) with n from 1 to 10000";
                options.errors.push("options.misfire", text, problem);
                policy.misfire
            }
        };
    }
    policy.misfire_after = options.span("misfire-after", Duration::from_secs(3600), policy.misfire_after);
    policy.overlap = options.word(
        "overlap",
        &[
            ("allow", Overlap::Allow),
            ("forbid", Overlap::Forbid),
            ("queue", Overlap::Queue),
            ("replace", Overlap::Replace),
        ],
        policy.overlap,
    );
    policy.jitter = options.span("jitter", Duration::from_secs(3600), policy.jitter);
    policy
}

fn template(spec: &TriggerSpec, source: String, kind: &str, errors: &mut SpecErrors) -> EventTemplate {
    let mut template = EventTemplate::new(source, kind);
    template.content_type.clone_from(&spec.content_type);
    template.data = spec.data.clone().into();
    template.extensions.clone_from(&spec.extensions);
    if let Err(error) = template.event(&spec.name, Timestamp(0)) {
        errors.push("extensions", "", error.message);
    }
    if let Some(kind) = &spec.content_type
        && http::HeaderValue::try_from(kind.as_str()).is_err()
    {
        errors.push("content_type", kind, "must be a media type");
    }
    template
}

/// Kind `cron`: `schedule`, `timezone`, `dialect`, `dst-gap`, `dst-fold`, and how it is kept.
pub(crate) fn cron(spec: &TriggerSpec, recorder: &Recorder) -> Result<Arc<dyn TriggerSource>, SpecErrors> {
    let mut options = Options::of(spec);
    let expression = options.take("schedule");
    let zone = options.take("timezone").unwrap_or("UTC");
    let mut reading = CronOptions::default();
    reading.dialect = options.word(
        "dialect",
        &[("standard", Dialect::Standard), ("quartz", Dialect::Quartz)],
        reading.dialect,
    );
    reading.gap = options.word("dst-gap", &[("run", Gap::Run), ("skip", Gap::Skip)], reading.gap);
    reading.fold = options.word("dst-fold", &[("both", Fold::Both), ("first", Fold::First)], reading.fold);
    let policy = policy(&mut options);
    let (namespace, name) = spec.name.split_once('/').unwrap_or(("", &spec.name));
    let source = format!("/apis/v1/namespaces/{namespace}/pingsources/{name}");
    let template = template(spec, source, PING, &mut options.errors);
    let schedule = match expression {
        None => {
            options.errors.push("options.schedule", "", "missing: a cron expression");
            None
        }
        Some(expression) => match CronSchedule::with_options(expression, zone, reading) {
            Ok(schedule) => Some(schedule),
            Err(error) if error.part == "timezone" => {
                options.errors.push("options.timezone", error.value, error.problem);
                None
            }
            Err(error) => {
                options.errors.push("options.schedule", expression, error.to_string());
                None
            }
        },
    };
    options.finish()?;
    match schedule {
        Some(schedule) => {
            Ok(Arc::new(Scheduled::new("cron", Arc::new(schedule), policy, template).with_recorder(recorder)))
        }
        None => Err(SpecErrors::default()),
    }
}

/// Kind `timer`: `period`, and how it is kept.
pub(crate) fn timer(spec: &TriggerSpec, recorder: &Recorder) -> Result<Arc<dyn TriggerSource>, SpecErrors> {
    let mut options = Options::of(spec);
    let most = Duration::from_secs(366 * 86_400);
    let given = options.left.contains_key("period");
    let period = options.span("period", most, Duration::ZERO);
    let schedule = Every::new(period);
    if schedule.is_none() && options.errors.is_empty() {
        let value = if given { format!("{period:?}") } else { String::new() };
        options.errors.push(
            "options.period",
            value,
            "missing or too short: a duration of at least 1ms, such as 10s",
        );
    }
    let policy = policy(&mut options);
    let template = template(spec, format!("/triggers/{}", spec.name), TIMER, &mut options.errors);
    options.finish()?;
    match schedule {
        Some(schedule) => Ok(Arc::new(
            Scheduled::new("timer", Arc::new(schedule), policy, template).with_recorder(recorder),
        )),
        None => Err(SpecErrors::default()),
    }
}
