//! What is asked of a service, by the second, and the ways of single requests.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use sas_core::{FaasTrigger, Purpose, RequestId, StartTimings, UpstreamSpan};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, Path, Query, ServicePath, page_size},
    problem::Failure,
    test_run::millis,
};
use crate::{
    requests::{RequestRates, RequestRecord, RequestSecond},
    stamp::rfc3339,
};

/// Requests that are given unless more or less are asked for.
const PAGE: usize = 50;
/// Requests that are given at most.
const MOST: usize = 1000;

type Answer<T> = Result<Json<T>, Failure>;

/// A request, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct RequestPath {
    /// The id of `x-request-id`: 32 hexadecimal digits.
    id: String,
}

/// Which requests.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RequestsQuery {
    /// Only those that failed or waited for a start, of the last hour: they are kept when the others are gone.
    #[serde(default)]
    notable: bool,
    /// At most so many, the last ones; 50 without it.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// Rates and durations of the last moments.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RatesView {
    /// Requests per second, over ten seconds.
    pub(super) requests_per_second: f64,
    /// Requests per second that failed, over ten seconds.
    pub(super) errors_per_second: f64,
    /// Requests of the last minute.
    pub(super) requests: u64,
    /// Those of them that waited for a start.
    pub(super) cold_starts: u64,
    /// The median of their durations; `null`: there were none.
    pub(super) p50_ms: Option<f64>,
    /// What 99 of 100 of them kept within.
    pub(super) p99_ms: Option<f64>,
}

impl From<&RequestRates> for RatesView {
    fn from(rates: &RequestRates) -> Self {
        Self {
            requests_per_second: rates.requests_per_second,
            errors_per_second: rates.errors_per_second,
            requests: rates.requests,
            cold_starts: rates.cold_starts,
            p50_ms: rates.p50.map(millis),
            p99_ms: rates.p99.map(millis),
        }
    }
}

/// A second in which something was.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct SecondView {
    /// In seconds since 1970.
    at: i64,
    requests: u32,
    errors: u32,
    cold_starts: u32,
    desired: u32,
    ready: u32,
    starting: u32,
    draining: u32,
    queued: u32,
    in_flight: u32,
}

impl From<RequestSecond> for SecondView {
    fn from(second: RequestSecond) -> Self {
        Self {
            at: second.at,
            requests: second.requests,
            errors: second.errors,
            cold_starts: second.cold_starts,
            desired: second.desired,
            ready: second.ready,
            starting: second.starting,
            draining: second.draining,
            queued: second.queued,
            in_flight: second.in_flight,
        }
    }
}

/// What was asked of a revision.
#[derive(Debug, Default, Serialize, ToSchema)]
struct RevisionActivity {
    revision: String,
    rates: RatesView,
    /// Oldest first; those in which nothing was are left out, and the numbers of instances hold until the next one.
    seconds: Vec<SecondView>,
}

/// `GET /v1/services/<namespace>/<name>/activity`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ActivityPage {
    /// Now, in seconds since 1970.
    now: i64,
    /// How many seconds back it goes at most.
    seconds: u64,
    revisions: Vec<RevisionActivity>,
}

/// An exchange with an instance. Times are in milliseconds from the arrival of the request.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ExchangeView {
    /// `null`: another host got the request.
    instance: Option<String>,
    /// When a slot was asked for.
    asked_ms: f64,
    /// When there was one.
    began_ms: f64,
    /// When the head of the answer was there; `null`: it never was.
    answered_ms: Option<f64>,
    status: Option<u16>,
    error: Option<&'static str>,
    /// The start that it waited for; `null`: none.
    start: Option<StartView>,
}

/// The phases of a start in milliseconds, each from its beginning.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StartView {
    /// It waited so long for the start gate and for budgets.
    gated_ms: f64,
    spawned_ms: Option<f64>,
    listening_ms: Option<f64>,
    ready_ms: f64,
    from_stem: bool,
}

impl From<&StartTimings> for StartView {
    fn from(start: &StartTimings) -> Self {
        Self {
            gated_ms: millis(start.gated),
            spawned_ms: start.spawned.map(millis),
            listening_ms: start.listening.map(millis),
            ready_ms: millis(start.ready),
            from_stem: start.from_stem,
        }
    }
}

impl From<&UpstreamSpan> for ExchangeView {
    fn from(exchange: &UpstreamSpan) -> Self {
        Self {
            instance: exchange.instance.map(|instance| instance.to_string()),
            asked_ms: millis(exchange.asked),
            began_ms: millis(exchange.began),
            answered_ms: exchange.answered.map(millis),
            status: exchange.status.map(|status| status.as_u16()),
            error: exchange.error,
            start: exchange.start.as_deref().map(StartView::from),
        }
    }
}

/// A request that is over.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct RequestView {
    id: String,
    /// The id of its trace.
    trace: String,
    namespace: String,
    service: String,
    revision: String,
    /// When it arrived, in RFC 3339.
    began_at: String,
    duration_ms: f64,
    #[schema(value_type = String)]
    purpose: Purpose,
    trigger: &'static str,
    method: String,
    host: Option<String>,
    /// Without the query: that holds secrets too often.
    path: String,
    /// `null`: the caller got no answer.
    status: Option<u16>,
    error: Option<&'static str>,
    message: Option<String>,
    /// Whether the client went away before the last byte.
    aborted: bool,
    cold: bool,
    failed: bool,
    /// When it began to wait for an instance, in milliseconds from its arrival.
    waited_from_ms: Option<f64>,
    exchanges: Vec<ExchangeView>,
    bytes_in: u64,
    bytes_out: u64,
}

impl From<&Arc<RequestRecord>> for RequestView {
    fn from(record: &Arc<RequestRecord>) -> Self {
        let trigger: FaasTrigger = record.trigger;
        let since = |time: Option<Duration>| time.map(millis);
        Self {
            id: record.id.to_string(),
            trace: format!("{:032x}", record.trace),
            namespace: record.revision.namespace().to_owned(),
            service: record.revision.service().to_owned(),
            revision: record.revision.revision().to_owned(),
            began_at: rfc3339(record.at - record.duration),
            duration_ms: millis(record.duration),
            purpose: record.purpose,
            trigger: trigger.as_str(),
            method: record.method.to_string(),
            host: record.host.clone(),
            path: record.path.clone(),
            status: record.status,
            error: record.error,
            message: record.message.clone(),
            aborted: record.aborted,
            cold: record.is_cold(),
            failed: record.failed(),
            waited_from_ms: since(record.waited_from),
            exchanges: record.exchanges.iter().map(ExchangeView::from).collect(),
            bytes_in: record.bytes_in,
            bytes_out: record.bytes_out,
        }
    }
}

/// `GET /v1/services/<namespace>/<name>/requests`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RequestsPage {
    /// Youngest first.
    requests: Vec<RequestView>,
}

/// Tells what was asked of a service, and how many instances it had, by the second; 422 (`unsupported`) where
/// the platform keeps no requests.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/activity", tag = "observe", params(ServicePath),
    security(("token" = ["read"])),
    responses((status = 200, body = ActivityPage, description = "What was asked of it")))]
pub(super) async fn activity(State(api): State<Api>, Path(at): Path<ServicePath>) -> Answer<ActivityPage> {
    api.control.record(&at.namespace, &at.name)?;
    let log = api.control.requests()?;
    let mut rates = log.rates(&at.namespace, &at.name);
    let seconds: BTreeMap<String, Vec<RequestSecond>> = log.seconds(&at.namespace, &at.name);
    let revisions = seconds.into_iter().map(|(revision, seconds)| RevisionActivity {
        rates: rates.remove(&revision).as_ref().map(RatesView::from).unwrap_or_default(),
        revision,
        seconds: seconds.into_iter().map(SecondView::from).collect(),
    });
    Ok(Json(ActivityPage {
        now: api.control.clock.now().as_secs(),
        seconds: log.limits().seconds.as_secs(),
        revisions: revisions.collect(),
    }))
}

/// Lists the last requests of a service that are over, youngest first; 422 (`unsupported`) where the platform keeps none.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/requests", tag = "observe",
    params(ServicePath, RequestsQuery), security(("token" = ["read"])),
    responses((status = 200, body = RequestsPage, description = "Its last requests")))]
pub(super) async fn requests(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<RequestsQuery>,
) -> Answer<RequestsPage> {
    let most = page_size(query.limit, PAGE, MOST)?;
    api.control.record(&at.namespace, &at.name)?;
    let log = api.control.requests()?;
    let found = match query.notable {
        true => log.notable(&at.namespace, &at.name, most),
        false => log.recent(&at.namespace, &at.name, most),
    };
    Ok(Json(RequestsPage { requests: found.iter().map(RequestView::from).collect() }))
}

/// Shows a request that is over: its way, with times. 404 when it is not kept any more; 422 (`unsupported`) where
/// the platform keeps no requests.
#[utoipa::path(get, path = "/v1/requests/{id}", operation_id = "get_request", tag = "observe", params(RequestPath),
    security(("token" = ["read"])),
    responses((status = 200, body = RequestView, description = "The request")))]
pub(super) async fn request(
    State(api): State<Api>,
    Caller(caller): Caller,
    Path(at): Path<RequestPath>,
) -> Answer<RequestView> {
    let id = request_id(&at.id)
        .ok_or_else(|| Failure::field("id", &at.id, "must be 32 hexadecimal digits, as in x-request-id"))?;
    let found = api.control.requests()?.find(id);
    // Whether a tenant's request exists is the tenant's own business.
    let own = found.filter(|record| caller.reaches(record.revision.namespace()));
    let own = own.ok_or_else(|| {
        Failure::not_found(format!("there is no request {id}, or it is too long ago: the last ones are kept"))
    })?;
    Ok(Json(RequestView::from(&own)))
}

/// The id that 32 hexadecimal digits say, with or without dashes.
pub(super) fn request_id(text: &str) -> Option<RequestId> {
    let digits: String = text.chars().filter(|digit| *digit != '-').collect();
    let plain = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    plain.then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(RequestId)
}
