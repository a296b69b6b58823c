//! One record per request.

use std::{fmt, time::Duration};

use http::{Method, StatusCode};
use sas_core::{CallTimings, RequestId, RevisionKey, RevisionName, TenantKey};

/// How a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum End {
    /// With its last byte.
    Complete,
    /// The client left, or the platform ended it.
    Aborted,
    /// The instance was lost, or was too slow.
    Broken,
}

/// A request, as the access log sees it when the last byte of the answer is gone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AccessRecord {
    /// The id of the request, as in logs and answers.
    pub id: RequestId,
    /// The method of the request.
    pub method: Method,
    /// The host that was asked for.
    pub host: String,
    /// The path, without its query: queries hold secrets too often.
    pub path: String,
    /// The status that the client got.
    pub status: StatusCode,
    /// Why the platform answered itself; `None`: an instance answered.
    pub reason: Option<&'static str>,
    /// Who pays; `None`: it was refused before that was known.
    pub tenant: Option<TenantKey>,
    /// Which revision; `None`: as above.
    pub revision: Option<RevisionKey>,
    /// The name of the revision that answered; `None` where no route was found.
    pub name: Option<RevisionName>,
    /// Instance, cold or warm, and the phases, when an instance answered.
    pub timings: Option<CallTimings>,
    /// Bytes of the request's body that were passed on.
    pub bytes_in: u64,
    /// Bytes of the response's body that were passed on.
    pub bytes_out: u64,
    /// From arrival to the last byte.
    pub duration: Duration,
    /// How the answer's body ended.
    pub end: End,
}

/// Takes one record for each request that the gateway has answered; hosts implement it and give it to the gateway's
/// configuration.
pub trait AccessLog: fmt::Debug + Send + Sync + 'static {
    /// One request is over. Returns at once; one that can't keep up drops and counts.
    fn record(&self, record: &AccessRecord);
}

/// Writes access records as events of `tracing`, target `sas::access`, level INFO.
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingAccessLog;

impl AccessLog for TracingAccessLog {
    fn record(&self, record: &AccessRecord) {
        let timings = record.timings.as_ref();
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        tracing::info!(
            target: "sas::access",
            request = %record.id,
            method = %record.method,
            host = %record.host,
            path = %record.path,
            status = record.status.as_u16(),
            reason = record.reason,
            tenant = record.tenant.map(|tenant| tenant.0),
            revision = record.name.as_ref().map(|name| name.as_str()),
            instance = timings.and_then(|timings| timings.instance).map(tracing::field::display),
            cold = timings.map(|timings| timings.cold),
            queued_ms = timings.map(|timings| ms(timings.queued)),
            first_byte_ms = timings.map(|timings| ms(timings.first_byte)),
            duration_ms = ms(record.duration),
            bytes_in = record.bytes_in,
            bytes_out = record.bytes_out,
            end = ?record.end,
        );
    }
}
