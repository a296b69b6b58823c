//! From a declaration to a source and its delivery.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sas_core::{
    FaasTrigger, Recorder, Schedule, SpecErrors, Timestamp, TriggerOptions, TriggerSource, TriggerSpec,
};

#[cfg(feature = "cron")]
use crate::cron::{CronOptions, CronSchedule, Dialect, Fold, Gap};
use crate::{
    delivery::{Backoff, DeadLetter, DeliveryConfig},
    every::{Every, Within},
    filter::Filter,
    scheduled::{EventTemplate, Misfire, Overlap, SchedulePolicy, Scheduled},
    transform::Transform,
};

/// What Knative's PingSource calls its events.
#[cfg(feature = "cron")]
const PING: &str = "dev.knative.sources.ping";
/// What a timer's events are called.
const TIMER: &str = "dev.sas.timer";

/// Where events go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// `namespace/service`.
    Service(String),
    /// `broker:namespace/name`.
    Broker(String),
    /// `sink:kind`.
    Sink(String),
}

impl Destination {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let path = |text: &str| text.split('/').count() == 2 && text.split('/').all(|part| !part.is_empty());
        if let Some(kind) = text.strip_prefix("sink:") {
            return (!kind.is_empty()).then(|| Self::Sink(kind.to_owned()));
        }
        match text.strip_prefix("broker:") {
            Some(broker) => path(broker).then(|| Self::Broker(broker.to_owned())),
            None => (path(text) && !text.contains(':')).then(|| Self::Service(text.to_owned())),
        }
    }
}

/// What a destination must look like.
pub(crate) const DESTINATION: &str = "must be namespace/service, broker:namespace/name, or sink:kind";

/// A declaration, taken apart.
#[derive(Debug)]
pub(crate) struct Declared {
    /// What the source's kind reads.
    pub(crate) own: TriggerSpec,
    pub(crate) delivery: DeliveryConfig,
    pub(crate) target: Option<Destination>,
    pub(crate) sink_options: BTreeMap<String, String>,
    /// A dead letter that is neither a service nor kept.
    pub(crate) dead_letter: Option<Destination>,
    pub(crate) letter_options: BTreeMap<String, String>,
    pub(crate) reply: Option<Destination>,
}

/// The options of the delivery, and the declaration without them. `defaults` are those of the broker that it reads from.
pub(crate) fn split(
    spec: &TriggerSpec,
    defaults: &BTreeMap<String, String>,
    errors: &mut SpecErrors,
) -> Declared {
    let mut config = DeliveryConfig::new(spec.name.as_str(), spec.target.as_str());
    config.cause = match spec.kind.as_str() {
        "cron" | "timer" => FaasTrigger::Timer,
        "webhook" => FaasTrigger::Http,
        _ => FaasTrigger::PubSub,
    };
    if spec.name.split('/').filter(|part| !part.is_empty()).count() != 2 {
        errors.push("name", &spec.name, "must be namespace/name");
    }
    let target = Destination::parse(&spec.target);
    if target.is_none() {
        errors.push("target", &spec.target, DESTINATION);
    }
    if !spec.path.starts_with('/') || spec.path.parse::<http::uri::PathAndQuery>().is_err() {
        errors.push("path", &spec.path, "must be the path of a URL, beginning with /");
    }
    config.path.clone_from(&spec.path);
    config.payer = spec.tenant.into();
    let mut given = defaults.clone();
    given.extend(spec.options.clone());
    let mut below = |prefix: &str| {
        let mut inside = BTreeMap::new();
        given.retain(|name, value| match name.strip_prefix(prefix) {
            Some(rest) => {
                inside.insert(rest.to_owned(), std::mem::take(value));
                false
            }
            None => true,
        });
        inside
    };
    let (sink_options, letter_options) = (below("sink."), below("dead-letter."));
    for (options, prefix, wanted) in [
        (&sink_options, "sink.", matches!(target, Some(Destination::Sink(_)))),
        (
            &letter_options,
            "dead-letter.",
            given.get("dead-letter").is_some_and(|letter| letter.starts_with("sink:")),
        ),
    ] {
        if let (Some((name, value)), false) = (options.iter().next(), wanted) {
            errors.push(
                format!("options.{prefix}{name}"),
                value,
                "is only for a target sink:kind; leave it out",
            );
        }
    }
    let mut options = TriggerOptions::new(&given, "options.");
    let (dead_letter, reply) = delivery(&mut options, &mut config);
    if config.batch > 1 {
        let reason = match (&target, &reply) {
            (Some(Destination::Broker(_) | Destination::Sink(_)), _) => {
                Some("is for targets that are services")
            }
            (_, Some(_)) => {
                Some("and `reply` exclude each other: the answer to a batch names what failed of it")
            }
            _ if config.order_by.is_some() => Some("and `order-by` exclude each other"),
            _ => None,
        };
        if let Some(reason) = reason {
            let given = config.batch.to_string();
            options.wrong("batch", &given, reason);
        }
    }
    errors.0.append(&mut options.errors.0);
    let mut own = spec.clone();
    own.options = options.rest();
    Declared { own, delivery: config, target, sink_options, dead_letter, letter_options, reply }
}

/// Reads what the delivery is told; where dead letters and replies go.
fn delivery(
    options: &mut TriggerOptions<'_>,
    config: &mut DeliveryConfig,
) -> (Option<Destination>, Option<Destination>) {
    const HOUR: Duration = Duration::from_secs(3600);
    const DAY: Duration = Duration::from_secs(86_400);
    let small = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
    let retry = &mut config.retry;
    retry.retries = small(options.number("retry", 0..=1000, retry.retries.into()));
    retry.backoff = options.word(
        "backoff-policy",
        &[("linear", Backoff::Linear), ("exponential", Backoff::Exponential)],
        retry.backoff,
    );
    retry.delay = options.span("backoff-delay", HOUR, retry.delay);
    retry.longest = options.span("backoff-longest", DAY, retry.longest.max(retry.delay));
    retry.jitter = small(options.number("backoff-jitter", 0..=100, 0));
    retry.timeout = options.span("timeout", DAY, retry.timeout);
    if retry.timeout.is_zero() {
        options.wrong("timeout", "0s", "must be longer than nothing");
    }
    if options.has("deadline") {
        retry.deadline = Some(options.span("deadline", 30 * DAY, DAY)).filter(|deadline| !deadline.is_zero());
        if retry.deadline.is_none() {
            options.wrong("deadline", "0s", "must be longer than nothing");
        }
    }
    config.concurrency = small(options.number("concurrency", 1..=10_000, 100)) as usize;
    config.order_by = options.take("order-by").map(str::to_owned);
    if let Some(name) = config.order_by.clone()
        && (name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()))
    {
        options.wrong("order-by", &name, "must be the name of an attribute, such as partitionkey or subject");
    }
    config.batch = small(options.number("batch", 1..=1000, 1)) as usize;
    config.dedup.events = small(options.number("dedup-events", 0..=100_000, 1024)) as usize;
    config.dedup.window = options.span("dedup-window", 7 * DAY, config.dedup.window);
    config.circuit.failures = small(options.number("circuit-failures", 0..=10_000, 10));
    config.circuit.longest = options.span("circuit-longest", HOUR, config.circuit.longest);
    config.circuit.first = config.circuit.first.min(config.circuit.longest);
    config.hops = u16::try_from(options.number("hops", 1..=255, 32)).unwrap_or(32);
    let mut letters = None;
    match options.take("dead-letter") {
        None | Some("keep") => {}
        Some("none") => config.dead_letter = DeadLetter::None,
        Some("publish") => config.dead_letter = DeadLetter::Publish,
        Some(other) => match Destination::parse(other) {
            Some(Destination::Service(service)) => config.dead_letter = DeadLetter::Service(service),
            Some(way) => {
                config.dead_letter = DeadLetter::Publish;
                letters = Some(way);
            }
            None => {
                let problem =
                    "must be keep, none, publish, namespace/service, broker:namespace/name, or sink:kind";
                options.wrong("dead-letter", other, problem);
            }
        },
    }
    let mut reply = None;
    match options.take("reply") {
        None | Some("none") => {}
        Some(text) => match Destination::parse(text) {
            Some(Destination::Sink(_)) | None => {
                options.wrong("reply", text, "must be none, namespace/service or broker:namespace/name");
            }
            found => reply = found,
        },
    }
    if let Some(text) = options.take("filter") {
        match serde_json::from_str::<Filter>(text).map_err(|error| error.to_string()) {
            Ok(filter) => match filter.validate() {
                Ok(()) => config.filter = Some(filter),
                Err(wrong) => options.errors.extend_under("options", wrong),
            },
            Err(error) => options.wrong("filter", text, format!("is not a filter: {error}")),
        }
    }
    if let Some(text) = options.take("transform") {
        match Transform::parse(text) {
            Ok(transform) => config.transform = Some(transform),
            Err(wrong) => options.errors.extend_under("options", wrong),
        }
    }
    (letters, reply)
}

fn policy(options: &mut TriggerOptions<'_>) -> SchedulePolicy {
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

/// `start` and `end`, as RFC 3339 has times.
fn bounds(options: &mut TriggerOptions<'_>) -> (Option<Timestamp>, Option<Timestamp>) {
    let mut bound = |name: &'static str| {
        let text = options.take(name)?;
        match text.parse::<jiff::Timestamp>().map(|at| i64::try_from(at.as_nanosecond())) {
            Ok(Ok(at)) => Some(Timestamp(at)),
            _ => {
                options.wrong(name, text, "must be a time such as 2030-01-31T09:00:00Z, from 1677 to 2262");
                None
            }
        }
    };
    let (start, end) = (bound("start"), bound("end"));
    if let (Some(from), Some(to)) = (start, end)
        && to <= from
    {
        options.wrong("end", "", "must be after start");
    }
    (start, end)
}

/// The schedule within its bounds.
fn within(schedule: impl Schedule, bounds: (Option<Timestamp>, Option<Timestamp>)) -> Arc<dyn Schedule> {
    match bounds {
        (None, None) => Arc::new(schedule),
        (start, end) => Arc::new(Within::new(Arc::new(schedule), start, end)),
    }
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
#[cfg(feature = "cron")]
pub(crate) fn cron(spec: &TriggerSpec, recorder: &Recorder) -> Result<Arc<dyn TriggerSource>, SpecErrors> {
    let mut options = TriggerOptions::new(&spec.options, "options.");
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
    let bounds = bounds(&mut options);
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
        Some(schedule) => Ok(Arc::new(
            Scheduled::new("cron", within(schedule, bounds), policy, template).with_recorder(recorder),
        )),
        None => Err(SpecErrors::default()),
    }
}

/// Kind `cron`, which this build can't read.
///
/// # Errors
/// Always, at `kind`: this build was made without the feature `cron`.
#[cfg(not(feature = "cron"))]
pub(crate) fn cron(spec: &TriggerSpec, _: &Recorder) -> Result<Arc<dyn TriggerSource>, SpecErrors> {
    let mut errors = SpecErrors::default();
    errors.push(
        "kind",
        &spec.kind,
        "this platform was built without the feature cron; build it with, or use timer",
    );
    Err(errors)
}

/// Kind `timer`: `period`, and how it is kept.
pub(crate) fn timer(spec: &TriggerSpec, recorder: &Recorder) -> Result<Arc<dyn TriggerSource>, SpecErrors> {
    let mut options = TriggerOptions::new(&spec.options, "options.");
    let most = Duration::from_secs(366 * 86_400);
    let given = options.has("period");
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
    let bounds = bounds(&mut options);
    let template = template(spec, format!("/triggers/{}", spec.name), TIMER, &mut options.errors);
    options.finish()?;
    match schedule {
        Some(schedule) => Ok(Arc::new(
            Scheduled::new("timer", within(schedule, bounds), policy, template).with_recorder(recorder),
        )),
        None => Err(SpecErrors::default()),
    }
}
