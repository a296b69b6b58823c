//! Metrics of the data plane. Labels have few values: never a host, a path, a service or an instance.

use metrics::{Counter, Histogram, Unit};
use sas_core::Recorder;

use crate::Failure;

/// Requests answered, by `class` (`2xx` to `5xx`) and `path` (`warm`, `cold`, `refused`).
pub const REQUESTS: &str = "sas_router_requests_total";
/// Requests that the platform itself answered, by `reason` (the word in the JSON).
pub const REFUSALS: &str = "sas_router_refusals_total";
/// Seconds from arrival to the head of the answer, by `path` (`warm`, `cold`).
pub const SECONDS: &str = "sas_router_request_seconds";
/// Second and later attempts.
pub const RETRIES: &str = "sas_router_retries_total";
/// Counts the connections that were accepted.
pub const CONNECTIONS: &str = "sas_router_connections_total";
/// Connections that overran a limit, by `limit` (`head`, `idle`, `write`).
pub const OVERRUNS: &str = "sas_router_overruns_total";
/// What a drain ended, by `kind` (`websocket`, `event_stream`, `http2`, `forced`).
pub const DRAINED: &str = "sas_router_drained_total";

/// Certificates that are shown.
pub const CERTIFICATES: &str = "sas_router_certificates";
/// When the first of them ends, in seconds since 1970.
pub const CERTIFICATE_EXPIRY: &str = "sas_router_certificate_expiry_timestamp_seconds";
/// How often certificates were read again, by `outcome` (`done`, `refused`).
pub const CERTIFICATE_RELOADS: &str = "sas_router_certificate_reloads_total";
/// Copies of requests, by `result` (`answered`, `failed`, `too_large`, `dropped`, `incomplete`). They are not among
/// [`REQUESTS`].
pub const MIRRORED: &str = "sas_router_mirrored_total";
/// Requests that met a fault on purpose, by `kind` (`delay`, `abort`).
pub const FAULTS: &str = "sas_router_faults_total";

/// Tells exporters what the metrics mean.
pub fn describe(recorder: &Recorder) {
    recorder.describe_counter(REQUESTS, "Requests answered, by status class and warm or cold.");
    recorder.describe_counter(REFUSALS, "Requests that the platform itself answered, by reason.");
    recorder.describe_histogram(SECONDS, Unit::Seconds, "From arrival to the head of the answer.");
    recorder.describe_counter(RETRIES, "Attempts after the first.");
    recorder.describe_counter(CONNECTIONS, "Connections taken.");
    recorder.describe_counter(OVERRUNS, "Connections that overran a time limit, by limit.");
    recorder.describe_counter(MIRRORED, "Copies of requests to another revision, by result.");
    recorder.describe_counter(FAULTS, "Requests that met a fault on purpose, by kind.");
    recorder.describe_counter(DRAINED, "What a drain ended, by kind.");
    recorder.describe_gauge(CERTIFICATES, Unit::Count, "Certificates that are shown.");
    recorder.describe_gauge(
        CERTIFICATE_EXPIRY,
        Unit::Seconds,
        "When the first certificate ends, in seconds since 1970.",
    );
    recorder.describe_counter(CERTIFICATE_RELOADS, "Certificates read again, by outcome.");
}

/// Handles of a server.
pub(crate) struct ServerMetrics {
    connections: Counter,
    head: Counter,
    idle: Counter,
    write: Counter,
    http2: Counter,
    forced: Counter,
}

impl std::fmt::Debug for ServerMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ServerMetrics")
    }
}

impl ServerMetrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        let overruns = |limit| recorder.counter(OVERRUNS, &[("limit", limit)]);
        let drained = |kind| recorder.counter(DRAINED, &[("kind", kind)]);
        Self {
            connections: recorder.counter(CONNECTIONS, &[]),
            head: overruns("head"),
            idle: overruns("idle"),
            write: overruns("write"),
            http2: drained("http2"),
            forced: drained("forced"),
        }
    }

    pub(crate) fn accepted(&self) {
        self.connections.increment(1);
    }

    pub(crate) fn overran(&self, head: u32, idle: u32, write: u32) {
        for (counter, count) in [(&self.head, head), (&self.idle, idle), (&self.write, write)] {
            if count > 0 {
                counter.increment(u64::from(count));
            }
        }
    }

    pub(crate) fn went_away(&self) {
        self.http2.increment(1);
    }

    pub(crate) fn aborted(&self) {
        self.forced.increment(1);
    }
}

/// Handles of a gateway, registered once: counting allocates nothing.
pub(crate) struct GatewayMetrics {
    recorder: Recorder,
    /// By path (warm, cold, refused) and status class (2xx to 5xx).
    requests: [[Counter; 4]; 3],
    seconds: [Histogram; 2],
    pub(crate) retries: Counter,
    pub(crate) websockets: Counter,
    pub(crate) event_streams: Counter,
    pub(crate) forced: Counter,
    pub(crate) mirrored: [Counter; 5],
    pub(crate) delayed: Counter,
    pub(crate) aborted: Counter,
}

impl std::fmt::Debug for GatewayMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("GatewayMetrics")
    }
}

impl GatewayMetrics {
    pub(crate) fn new(recorder: &Recorder) -> Self {
        let requests = ["warm", "cold", "refused"].map(|path| {
            ["2xx", "3xx", "4xx", "5xx"]
                .map(|class| recorder.counter(REQUESTS, &[("class", class), ("path", path)]))
        });
        let drained = |kind| recorder.counter(DRAINED, &[("kind", kind)]);
        Self {
            requests,
            seconds: ["warm", "cold"].map(|path| recorder.histogram(SECONDS, &[("path", path)])),
            retries: recorder.counter(RETRIES, &[]),
            websockets: drained("websocket"),
            event_streams: drained("event_stream"),
            forced: drained("forced"),
            mirrored: ["answered", "failed", "too_large", "dropped", "incomplete"]
                .map(|result| recorder.counter(MIRRORED, &[("result", result)])),
            delayed: recorder.counter(FAULTS, &[("kind", "delay")]),
            aborted: recorder.counter(FAULTS, &[("kind", "abort")]),
            recorder: recorder.clone(),
        }
    }

    /// An instance answered.
    pub(crate) fn answered(&self, status: http::StatusCode, cold: bool, seconds: f64) {
        let path = usize::from(cold);
        self.requests[path][class(status)].increment(1);
        self.seconds[path].record(seconds);
    }

    /// The platform answered.
    pub(crate) fn refused(&self, failure: &Failure) {
        self.requests[2][class(failure.status)].increment(1);
        self.recorder.counter(REFUSALS, &[("reason", failure.reason)]).increment(1);
    }
}

fn class(status: http::StatusCode) -> usize {
    usize::from(status.as_u16() / 100).clamp(2, 5) - 2
}
