//! What is exported, where to, and how much of it may wait.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Uri};
use sas_core::{Clock, Recorder, Secret, SpecErrors, SystemClock};

/// Which traces are recorded. Beside these every request that failed and every one that waited for a start is, whatever
/// was said when it began: of those that follow from an error alone, spans of instances are missing, since their instance
/// was told that nobody records it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Sampling {
    /// The share of the traces that begin here, from 0 to 1. Which ones is decided by the id of the trace, so that all
    /// hosts with the same ratio decide alike.
    pub ratio: f64,
    /// Whether a request from outside that says that its trace is recorded (or that it is not) is believed. False where
    /// clients are strangers, who could have everything recorded: then the ratio decides about theirs, too.
    pub parent: bool,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { ratio: 0.1, parent: true }
    }
}

/// How telemetry leaves the process: per signal a bounded queue, and one request to the collector at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batching {
    /// Most bytes that wait for export, per signal, estimated. What comes beyond is dropped and counted. 8 MiB.
    pub queue_bytes: usize,
    /// Most requests, deliveries or log lines of one export. 512.
    pub most: usize,
    /// How long the first of a batch waits for others. 1 s.
    pub delay: Duration,
    /// How long one request to the collector may take. 10 s.
    pub timeout: Duration,
    /// How long a batch that the collector could not take is tried again; then it is dropped and counted. 30 s.
    pub retry_for: Duration,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            queue_bytes: 8 << 20,
            most: 512,
            delay: Duration::from_secs(1),
            timeout: Duration::from_secs(10),
            retry_for: Duration::from_secs(30),
        }
    }
}

/// Configuration of [`crate::Otel`]. Made by [`OtelConfig::new`] and then filled in.
///
/// ```
/// use sas_otel::OtelConfig;
/// let mut config = OtelConfig::new("http://127.0.0.1:4318");
/// config.sampling.ratio = 0.01;
/// config.logs = true;
/// assert!(config.validate().is_ok());
/// config.sampling.ratio = 1.5;
/// assert!(config.validate().unwrap_err().to_string().contains("sampling.ratio"));
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct OtelConfig {
    /// Where the collector takes OTLP over HTTP, as `http://host:4318` or `https://host/prefix`: `/v1/traces`,
    /// `/v1/metrics` and `/v1/logs` are appended.
    pub endpoint: String,
    /// Headers of every request to it, such as `authorization`.
    pub headers: Vec<(String, Secret)>,
    /// The `service.name` of the platform itself. `sas`.
    pub service_name: String,
    /// More attributes of the platform as a resource, such as `service.instance.id` or `deployment.environment.name`.
    pub attributes: Vec<(String, String)>,
    /// Whether traces are exported. True.
    pub traces: bool,
    /// Whether metrics are exported. True.
    pub metrics: bool,
    /// Whether the lines of instances are exported. False: they are many, and hold what users write.
    pub logs: bool,
    /// Which traces are recorded.
    pub sampling: Sampling,
    /// How often metrics are exported. 60 s.
    pub metrics_interval: Duration,
    /// Most series of metrics; further ones are counted together, with the attribute `otel.metric.overflow`. 10,000.
    pub most_series: usize,
    /// How telemetry leaves the process.
    pub batching: Batching,
    /// Where the exporter counts what it exported and lost.
    pub recorder: Recorder,
    /// Wall time, for the stamps of spans.
    pub clock: Arc<dyn Clock>,
}

impl OtelConfig {
    /// Traces and metrics to the collector at `endpoint`, with the defaults of each field.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            headers: Vec::new(),
            service_name: "sas".to_owned(),
            attributes: Vec::new(),
            traces: true,
            metrics: true,
            logs: false,
            sampling: Sampling::default(),
            metrics_interval: Duration::from_secs(60),
            most_series: 10_000,
            batching: Batching::default(),
            recorder: Recorder::default(),
            clock: Arc::new(SystemClock),
        }
    }

    /// Checks all fields.
    ///
    /// # Errors
    /// Every field that is wrong, with its value and what should stand there.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if let Err(problem) = base(&self.endpoint) {
            errors.push("endpoint", &self.endpoint, problem);
        }
        for (name, value) in &self.headers {
            if let Err(problem) = header(name, value) {
                // Never the value: it is a secret.
                errors.push(format!("headers.{name}"), "…", problem);
            }
        }
        if self.service_name.is_empty() {
            errors.push("service_name", "", "must not be empty");
        }
        if !(0.0..=1.0).contains(&self.sampling.ratio) {
            errors.push("sampling.ratio", self.sampling.ratio, "must be from 0 to 1");
        }
        let positive =
            [("metrics_interval", self.metrics_interval), ("batching.timeout", self.batching.timeout)];
        for (field, span) in positive {
            if span.is_zero() {
                errors.push(field, format!("{span:?}"), "must be longer than zero");
            }
        }
        let counts = [
            ("most_series", self.most_series),
            ("batching.queue_bytes", self.batching.queue_bytes),
            ("batching.most", self.batching.most),
        ];
        for (field, count) in counts {
            if count == 0 {
                errors.push(field, count, "must be at least 1");
            }
        }
        errors.into_result()
    }
}

/// The base of the signals' URLs.
pub(crate) fn base(endpoint: &str) -> Result<Uri, String> {
    let example = "write one like http://127.0.0.1:4318";
    let uri: Uri = endpoint.parse().map_err(|error| format!("{error}; {example}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(format!("must be a URL with http or https and a host; {example}"));
    }
    if uri.query().is_some() {
        return Err(format!("must have no query; {example}"));
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("must hold no user and password: give them as a header".to_owned());
    }
    Ok(uri)
}

/// A header that is sent along.
pub(crate) fn header(name: &str, value: &Secret) -> Result<(HeaderName, HeaderValue), String> {
    let name = HeaderName::try_from(name).map_err(|_| "no name of a header".to_owned())?;
    let mut value =
        HeaderValue::try_from(value.expose()).map_err(|_| "its value fits into no header".to_owned())?;
    value.set_sensitive(true);
    Ok((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_of_a_host() {
        for good in ["http://127.0.0.1:4318", "https://otlp.example.org/team/", "http://[::1]:4318"] {
            assert!(base(good).is_ok(), "{good}");
        }
        for bad in ["", "127.0.0.1:4318", "grpc://a:4317", "http://", "http://a?x=1", "http://u:p@a"] {
            assert!(base(bad).is_err(), "{bad}");
        }
    }
}
