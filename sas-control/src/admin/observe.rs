//! What services do and did: instances, decisions, logs, usage.

use axum::{Json, extract::State};
use sas_core::{
    Decision, DecisionRecord, InstanceId, InstanceState, InstanceView, LogFilter, LogLevel, LogLine, LogPage,
    LogStream, MeterTotals, Place, Principal, RevisionKey, StartTimings, Timestamp, Usage, UsageScope,
};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    activity::request_id,
    extract::{Caller, Path, Query, ServicePath, page_size},
    problem::Failure,
    services::no_revision,
    test_run::millis,
};
use crate::{record::ServiceRecord, stamp::rfc3339};

/// Lines or decisions that are given unless more or less are asked for.
pub(super) const TAIL: usize = 100;
/// Lines or decisions that are given at most.
pub(super) const MOST: usize = 10_000;

type Answer<T> = Result<Json<T>, Failure>;

/// Of which revision.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OfRevision {
    /// Of this revision only.
    revision: Option<String>,
}

/// Which decisions.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct DecisionsQuery {
    /// Of this revision only.
    revision: Option<String>,
    /// At most so many, the last ones; 100 without it.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
}

/// Which lines.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Of this revision only.
    revision: Option<String>,
    /// At most so many, the last ones; 100 without it.
    #[param(minimum = 1, maximum = 10000)]
    tail: Option<u32>,
    /// With a sequence above this one.
    after: Option<u64>,
    /// Of this instance only, by the id that instances are listed with.
    instance: Option<String>,
    /// About this request only: the id of `x-request-id`.
    request: Option<String>,
    /// Of this level or a graver one: `trace`, `debug`, `info`, `warn`, `error`, `fatal`. Lines that say none are left out.
    level: Option<LogLevel>,
    /// With this text in them, in any case.
    text: Option<String>,
    /// From this time on, in seconds since 1970.
    from: Option<i64>,
    /// Before this time, in seconds since 1970.
    until: Option<i64>,
}

impl LogsQuery {
    fn filter(&self) -> Result<LogFilter, Failure> {
        let mut filter = LogFilter::default();
        filter.after = self.after.unwrap_or(0);
        if let Some(instance) = &self.instance {
            let id =
                u64::from_str_radix(instance.strip_prefix("i-").unwrap_or(instance), 16).map_err(|_| {
                    Failure::field("instance", instance, "must be an id as instances are listed with")
                })?;
            filter.instance = Some(InstanceId(id));
        }
        if let Some(request) = &self.request {
            let id = request_id(request);
            let id = id.ok_or_else(|| {
                Failure::field("request", request, "must be 32 hexadecimal digits, as in x-request-id")
            })?;
            filter.request = Some(id);
        }
        filter.level = self.level;
        filter.text.clone_from(&self.text);
        filter.from = self.from.map(Timestamp::from_secs);
        filter.until = self.until.map(Timestamp::from_secs);
        Ok(filter)
    }
}

/// Whose use, and of when.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct UsageQueryParams {
    /// Of this namespace only; those who are held to a namespace see their own.
    namespace: Option<String>,
    /// Of this service only.
    service: Option<String>,
    /// Of this revision only.
    revision: Option<String>,
    /// From the hour of this time on, in seconds since 1970.
    from: Option<i64>,
    /// Until the hour of this time, without it, in seconds since 1970.
    until: Option<i64>,
    /// At most so many entries; 100 without it.
    #[param(minimum = 1, maximum = 10000)]
    limit: Option<u32>,
    /// The `next` of the page before.
    after: Option<String>,
}

impl UsageQueryParams {
    fn scope(&self, caller: &Principal) -> Result<UsageScope, Failure> {
        if let (Some(namespace), Some(tenant)) = (&self.namespace, caller.tenant())
            && namespace != tenant
        {
            return Err(Failure::forbidden(format!("{caller} is held to the namespace {tenant}")));
        }
        let mut scope = UsageScope::all();
        scope.namespace = caller.tenant().map(str::to_owned).or_else(|| self.namespace.clone());
        scope.service.clone_from(&self.service);
        scope.revision.clone_from(&self.revision);
        Ok(scope)
    }

    fn span(&self) -> (Timestamp, Timestamp) {
        let until = self.until.map_or(Timestamp(i64::MAX), Timestamp::from_secs);
        (self.from.map_or(Timestamp(0), Timestamp::from_secs), until)
    }
}

/// `GET /v1/services/<namespace>/<name>/instances`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct InstancesPage {
    pub(super) instances: Vec<InstanceEntry>,
}

/// An instance.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct InstanceEntry {
    id: String,
    revision: String,
    state: InstanceState,
    in_flight: u32,
    /// `null`: unlimited.
    limit: Option<u32>,
    age_ms: u64,
    endpoint: Option<String>,
    usage: Option<Usage>,
    ejected: bool,
    /// `null` while it starts.
    start: Option<StartEntry>,
}

/// How an instance started.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct StartEntry {
    gated_ms: f64,
    spawned_ms: Option<f64>,
    listening_ms: Option<f64>,
    ready_ms: f64,
    from_stem: bool,
}

impl InstanceEntry {
    pub(super) fn new(revision: &str, view: &InstanceView) -> Self {
        Self {
            id: view.id.to_string(),
            revision: revision.to_owned(),
            state: view.state,
            in_flight: view.in_flight,
            limit: (view.limit != u32::MAX).then_some(view.limit),
            age_ms: u64::try_from(view.age.as_millis()).unwrap_or(u64::MAX),
            endpoint: view.endpoint.as_ref().map(ToString::to_string),
            usage: view.usage,
            ejected: view.ejected,
            start: view.start.as_ref().map(StartEntry::from),
        }
    }
}

impl From<&StartTimings> for StartEntry {
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

/// `GET /v1/services/<namespace>/<name>/logs`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogsPage {
    lines: Vec<LogEntry>,
    /// Lines of the revisions asked for that are no longer kept.
    dropped: u64,
    /// Whether younger lines than the one of `after` are not among these: there were more than `tail`, or they came and went
    /// since, and may have been what was asked for.
    gap: bool,
    /// The sequence of the youngest line that was looked at, whether it was asked for or not: for the next `after`.
    last: u64,
}

/// A line.
#[derive(Debug, Serialize, ToSchema)]
struct LogEntry {
    sequence: u64,
    /// In RFC 3339.
    at: String,
    instance: String,
    request: Option<String>,
    stream: LogStream,
    /// As far as the line says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<LogLevel>,
    /// The members of a line that is a JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    fields: Option<serde_json::Map<String, serde_json::Value>>,
    line: String,
}

impl From<LogPage> for LogsPage {
    fn from(page: LogPage) -> Self {
        let LogPage { lines, dropped, gap, last, .. } = page;
        Self { lines: lines.into_iter().map(LogEntry::from).collect(), dropped, gap, last }
    }
}

impl From<LogLine> for LogEntry {
    fn from(line: LogLine) -> Self {
        Self {
            sequence: line.sequence,
            at: rfc3339(line.at),
            instance: line.instance.to_string(),
            request: line.about().map(|request| request.to_string()),
            stream: line.stream,
            level: line.level(),
            fields: line.fields(),
            line: line.line,
        }
    }
}

/// `GET /v1/services/<namespace>/<name>/decisions`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DecisionsPage {
    decisions: Vec<DecisionEntry>,
    /// The host that acts for the service, if that is another than the one that was asked: its decisions are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    elsewhere: Option<String>,
}

/// A decision with all that it was made from. The names of its record's fields, as replay reads them.
#[derive(Debug, Serialize, ToSchema)]
struct DecisionEntry {
    #[serde(skip)]
    made: Timestamp,
    revision: String,
    /// In RFC 3339.
    at: String,
    sequence: u64,
    #[schema(value_type = Object)]
    elapsed: std::time::Duration,
    #[schema(value_type = Object)]
    load: sas_core::Load,
    /// What the host reported by name.
    #[schema(value_type = Object)]
    #[serde(skip_serializing_if = "sas_core::NamedValues::is_empty")]
    named: sas_core::NamedValues,
    previous: Option<u32>,
    decision: VerdictEntry,
    /// The host that decided, where several share a state.
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
}

/// What was decided, and why.
#[derive(Debug, Serialize, ToSchema)]
struct VerdictEntry {
    #[schema(value_type = Value)]
    verdict: sas_core::Verdict,
    #[schema(value_type = Value)]
    reason: sas_core::Reason,
    /// By name: the number of the set means nothing to a reader.
    clamps: Vec<&'static str>,
    excess_burst: i32,
    proposed: Option<u32>,
    version: u32,
    #[schema(value_type = Vec<Object>)]
    votes: sas_core::Votes,
    #[schema(value_type = Object)]
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Box<sas_core::Details>>,
}

impl From<Decision> for VerdictEntry {
    fn from(decision: Decision) -> Self {
        Self {
            verdict: decision.verdict,
            reason: decision.reason,
            clamps: decision.clamps.names().collect(),
            excess_burst: decision.excess_burst,
            proposed: decision.proposed,
            version: decision.version,
            votes: decision.votes,
            details: decision.details,
        }
    }
}

impl DecisionsPage {
    /// The last `most` of these, oldest first.
    pub(super) fn last(
        records: Vec<(String, DecisionRecord)>,
        most: usize,
        elsewhere: Option<String>,
    ) -> Self {
        let entry = |(revision, record): (String, DecisionRecord)| DecisionEntry {
            made: record.at,
            revision,
            at: rfc3339(record.at),
            sequence: record.sequence,
            elapsed: record.elapsed,
            load: record.load,
            named: record.named,
            previous: record.previous,
            decision: record.decision.into(),
            host: record.host.map(|host| host.to_string()),
        };
        let mut decisions: Vec<DecisionEntry> = records.into_iter().map(entry).collect();
        decisions.sort_by_key(|entry| entry.made);
        let skip = decisions.len().saturating_sub(most);
        decisions.drain(..skip);
        Self { decisions, elsewhere }
    }
}

/// What each revision used since the platform runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceUsage {
    usage: Vec<RevisionUsage>,
    /// Their sum, with what those used that are gone; absent when one revision is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<UsageTotals>,
}

/// What a revision used, however often it was registered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RevisionUsage {
    revision: String,
    totals: UsageTotals,
}

/// Use of instances, in nanoseconds per phase, and requests.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct UsageTotals {
    /// On their way up.
    starting_ns: u64,
    /// As stems.
    pooled_ns: u64,
    /// Ready, without a request.
    idle_ns: u64,
    /// With at least one request.
    busy_ns: u64,
    /// On their way out.
    draining_ns: u64,
    /// On a CPU, as far as runtimes measure it.
    cpu_ns: u64,
    /// Memory held times how long, in byte-nanoseconds, as a decimal string: it is soon beyond what JSON's numbers hold.
    memory_byte_ns: String,
    /// Requests that instances answered.
    requests: u64,
    /// Those of them that waited for a start.
    cold_starts: u64,
    /// Those of them that brought an event.
    events: u64,
    /// Those of them that were copies of others, whose answers nobody got.
    mirrored: u64,
    /// Bytes of the requests' bodies.
    bytes_in: u64,
    /// Bytes of the answers' bodies.
    bytes_out: u64,
}

impl From<&MeterTotals> for UsageTotals {
    fn from(totals: &MeterTotals) -> Self {
        // 584 years fit.
        let short = |ns: u128| u64::try_from(ns).unwrap_or(u64::MAX);
        Self {
            starting_ns: short(totals.starting_ns),
            pooled_ns: short(totals.pooled_ns),
            idle_ns: short(totals.idle_ns),
            busy_ns: short(totals.busy_ns),
            draining_ns: short(totals.draining_ns),
            cpu_ns: short(totals.cpu_ns),
            memory_byte_ns: totals.memory_byte_ns.to_string(),
            requests: totals.requests,
            cold_starts: totals.cold_starts,
            events: totals.events,
            mirrored: totals.mirrored,
            bytes_in: totals.bytes_in,
            bytes_out: totals.bytes_out,
        }
    }
}

/// What tenants used since the platform runs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsagePage {
    tenants: Vec<TenantUsage>,
}

/// What a tenant used.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct TenantUsage {
    /// Its namespace; `null` for the host's own use: stems that belong to nobody yet.
    namespace: Option<String>,
    totals: UsageTotals,
}

/// Lists the instances of a service.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/instances", tag = "observe",
    params(ServicePath, OfRevision), security(("token" = ["read"])),
    responses((status = 200, body = InstancesPage, description = "Its instances")))]
pub(super) async fn instances(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<OfRevision>,
) -> Answer<InstancesPage> {
    let record = api.control.record(&at.namespace, &at.name)?;
    let mut instances = Vec::new();
    for (revision, key) in api.keys(&record, query.revision.as_deref())? {
        let views = api.control.pool.instances(key);
        instances.extend(views.iter().map(|view| InstanceEntry::new(&revision, view)));
    }
    Ok(Json(InstancesPage { instances }))
}

/// Lists the last scaling decisions of a service, oldest first, each with its inputs, votes and reason.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/decisions", tag = "observe",
    params(ServicePath, DecisionsQuery), security(("token" = ["read"])),
    responses((status = 200, body = DecisionsPage, description = "Its last decisions")))]
pub(super) async fn decisions(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<DecisionsQuery>,
) -> Answer<DecisionsPage> {
    let most = page_size(query.limit, TAIL, MOST)?;
    let record = api.control.record(&at.namespace, &at.name)?;
    let mut records = Vec::new();
    for (revision, key) in api.all_keys(&record, query.revision.as_deref())? {
        let last = api.control.decisions()?.last_decisions(key, most).await?;
        records.extend(last.into_iter().map(|record| (revision.clone(), record)));
    }
    let place = api.control.hosts().map(|hosts| hosts.place(&format!("{}/{}", at.namespace, at.name)));
    let elsewhere = match place {
        Some(Place::There(host)) => Some(host.to_string()),
        _ => None,
    };
    Ok(Json(DecisionsPage::last(records, most, elsewhere)))
}

/// Gives the last lines that the instances of a service wrote.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/logs", tag = "observe",
    params(ServicePath, LogsQuery), security(("token" = ["read"])),
    responses((status = 200, body = LogsPage, description = "Its last lines, oldest first")))]
pub(super) async fn logs(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<LogsQuery>,
) -> Answer<LogsPage> {
    let most = page_size(query.tail, TAIL, MOST)?;
    let record = api.control.record(&at.namespace, &at.name)?;
    let keys = api.all_keys(&record, query.revision.as_deref())?;
    let keys: Vec<RevisionKey> = keys.into_iter().map(|(_, key)| key).collect();
    let page = api.control.logs()?.search(&keys, &query.filter()?, most).await?;
    Ok(Json(LogsPage::from(page)))
}

/// Tells what the revisions of a service used.
#[utoipa::path(get, path = "/v1/services/{namespace}/{name}/usage", tag = "observe",
    params(ServicePath, OfRevision), security(("token" = ["read"])),
    responses((status = 200, body = ServiceUsage, description = "What they used")))]
pub(super) async fn service_usage(
    State(api): State<Api>,
    Path(at): Path<ServicePath>,
    Query(query): Query<OfRevision>,
) -> Answer<ServiceUsage> {
    let record = api.control.record(&at.namespace, &at.name)?;
    let mut scope = UsageScope::service(&record.namespace, &record.name);
    scope.revision.clone_from(&query.revision);
    let used = api.control.usage_of(&scope).await?;
    let total = query.revision.is_none().then(|| UsageTotals::from(&used.total));
    let usage = used.usage.iter();
    let usage =
        usage.map(|used| RevisionUsage { revision: used.revision.clone(), totals: (&used.totals).into() });
    Ok(Json(ServiceUsage { usage: usage.collect(), total }))
}

/// Tells what tenants used; those who are held to a namespace see their own.
#[utoipa::path(get, path = "/v1/usage", tag = "observe", security(("token" = ["read"])),
    responses((status = 200, body = UsagePage, description = "What tenants used")))]
pub(super) async fn usage(State(api): State<Api>, Caller(caller): Caller) -> Answer<UsagePage> {
    let used = api.control.usage_by_namespace().await?;
    let tenants = used.into_iter().map(|used| TenantUsage {
        namespace: (!used.namespace.is_empty()).then_some(used.namespace),
        totals: (&used.totals).into(),
    });
    let seen = tenants.filter(|used| match &used.namespace {
        Some(namespace) => caller.reaches(namespace),
        None => caller.tenant().is_none(),
    });
    Ok(Json(UsagePage { tenants: seen.collect() }))
}

/// A page of what was used by the hour.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct UsageHoursPage {
    hours: Vec<HourEntry>,
    /// Where the next page begins; absent with the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Times of which readings are missing, since the host died before they were written.
    gaps: Vec<GapEntry>,
}

/// What a revision used within an hour.
#[derive(Debug, Serialize, ToSchema)]
struct HourEntry {
    /// The begin of the hour, in RFC 3339.
    hour: String,
    namespace: String,
    service: String,
    revision: String,
    totals: UsageTotals,
}

/// A time of which readings are missing.
#[derive(Debug, Serialize, ToSchema)]
struct GapEntry {
    /// In RFC 3339.
    from: String,
    /// In RFC 3339.
    until: String,
}

/// What use costs, in billionths of the currency's smallest unit.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CostPage {
    currency: String,
    /// Of time with requests.
    busy: u64,
    /// Of time without, while instances were kept ready.
    idle: u64,
    /// Of all else.
    other: u64,
    total: u64,
    lines: Vec<CostEntry>,
}

/// What the use of a revision costs.
#[derive(Debug, Serialize, ToSchema)]
struct CostEntry {
    namespace: String,
    service: String,
    revision: String,
    busy: u64,
    idle: u64,
    other: u64,
    total: u64,
}

/// Tells what revisions used by the hour, and the gaps in it.
#[utoipa::path(get, path = "/v1/usage/hours", tag = "observe", params(UsageQueryParams),
    security(("token" = ["read"])),
    responses((status = 200, body = UsageHoursPage, description = "What was used, by hour and revision")))]
pub(super) async fn usage_hours(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<UsageQueryParams>,
) -> Answer<UsageHoursPage> {
    let most = page_size(query.limit, TAIL, MOST)?;
    let (scope, (from, until)) = (query.scope(&caller)?, query.span());
    let view = api.control.usage_hours(&scope, from, until, query.after.as_deref(), most).await?;
    let hours = view.hours.into_iter().map(|used| HourEntry {
        hour: used.hour,
        namespace: used.namespace,
        service: used.service,
        revision: used.revision,
        totals: (&used.totals).into(),
    });
    let gaps = view.gaps.into_iter().map(|gap| GapEntry { from: gap.from, until: gap.until });
    Ok(Json(UsageHoursPage { hours: hours.collect(), next: view.next, gaps: gaps.collect() }))
}

/// Tells what use costs by the platform's price table: within hours, or in all.
#[utoipa::path(get, path = "/v1/usage/cost", tag = "observe", params(UsageQueryParams),
    security(("token" = ["read"])),
    responses((status = 200, body = CostPage, description = "What it costs, idle time apart from busy time")))]
pub(super) async fn usage_cost(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<UsageQueryParams>,
) -> Answer<CostPage> {
    let hours = (query.from.is_some() || query.until.is_some()).then(|| query.span());
    let cost = api.control.usage_cost(&query.scope(&caller)?, hours).await?;
    let lines = cost.lines.into_iter().map(|line| CostEntry {
        namespace: line.namespace,
        service: line.service,
        revision: line.revision,
        busy: line.busy,
        idle: line.idle,
        other: line.other,
        total: line.total,
    });
    let (busy, idle, other, total) = (cost.busy, cost.idle, cost.other, cost.total);
    Ok(Json(CostPage { currency: cost.currency, busy, idle, other, total, lines: lines.collect() }))
}

impl Api {
    /// Revisions with their keys: those that run, or the one that is asked for.
    fn keys(
        &self,
        record: &ServiceRecord,
        asked: Option<&str>,
    ) -> Result<Vec<(String, RevisionKey)>, Failure> {
        if let Some(asked) = asked
            && record.revision(asked).is_none()
        {
            return Err(no_revision(record, asked));
        }
        let Some(live) = self.control.live(&record.path()) else { return Ok(Vec::new()) };
        let state = live.state.lock();
        let running = state.observed.registrations.iter().map(|r| (r.revision.clone(), r.key));
        Ok(running.filter(|(revision, _)| asked.is_none_or(|asked| asked == revision)).collect())
    }

    /// The same with earlier registrations, for what was logged and decided then.
    fn all_keys(
        &self,
        record: &ServiceRecord,
        asked: Option<&str>,
    ) -> Result<Vec<(String, RevisionKey)>, Failure> {
        let mut keys = self.keys(record, asked)?;
        if let Some(live) = self.control.live(&record.path()) {
            let state = live.state.lock();
            let past = state.past.iter();
            keys.extend(past.filter(|(revision, _)| asked.is_none_or(|asked| asked == revision)).cloned());
        }
        Ok(keys)
    }
}
