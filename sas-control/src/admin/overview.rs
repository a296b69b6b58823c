//! All services at a look, those in trouble first.

use std::{cmp::Reverse, collections::BTreeSet, sync::Arc};

use axum::{Json, extract::State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    activity::RatesView,
    extract::{Caller, Query, page_size},
    problem::Failure,
};
use crate::{
    control::Live,
    record::{RevisionState, ServiceRecord},
    requests::RequestRates,
    view::{InstancesView, TrafficView},
};

/// Services on a page unless more or less are asked for.
const PAGE: usize = 50;
/// Services on a page at most.
const MOST: usize = 1000;
/// Namespaces that are named.
const NAMESPACES: usize = 1000;

/// By what services are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    /// Those that fail first, then those with errors, then those that are asked most.
    #[default]
    Trouble,
    /// By namespace and name.
    Name,
    /// Those that are asked most first.
    Requests,
    /// Those that were deployed last first.
    Age,
}

/// Which services.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct OverviewQuery {
    /// Of this namespace only.
    namespace: Option<String>,
    /// With this text in `namespace/name`.
    search: Option<String>,
    /// `trouble` without it.
    #[param(inline)]
    sort: Option<Order>,
    /// Leaves out so many.
    #[param(minimum = 0, maximum = 1000000)]
    offset: Option<u32>,
    /// At most so many; 50 without it.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
}

/// How a service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = ServiceHealth)]
enum Health {
    /// It can't serve.
    Failing,
    /// It is on its way, or some of its requests fail.
    Warning,
    /// It can serve.
    Ready,
    /// Nothing has started yet: the next request shows.
    Unknown,
    /// It was switched off.
    Off,
}

/// A service at a look.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ServiceRow {
    namespace: String,
    name: String,
    host: String,
    created_at: String,
    health: Health,
    /// One word for why, such as `StartFailed`.
    reason: String,
    /// The same for a person.
    message: String,
    /// Of all its revisions together.
    instances: InstancesView,
    rates: RatesView,
    traffic: Vec<TrafficView>,
    /// Whether traffic moves to a new revision now.
    rolling_out: bool,
}

/// What all services that the caller may see do together.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Totals {
    services: usize,
    failing: usize,
    warning: usize,
    off: usize,
    /// Instances that take requests.
    ready: u64,
    starting: u64,
    draining: u64,
    queued: u64,
    in_flight: u64,
    requests_per_second: f64,
    errors_per_second: f64,
    /// Of the last minute.
    cold_starts: u64,
}

/// `GET /v1/overview`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct OverviewPage {
    totals: Totals,
    /// Namespaces with services; at most 1,000.
    namespaces: Vec<String>,
    /// How many services there are of those that are asked for, on all pages.
    matching: usize,
    services: Vec<ServiceRow>,
    /// Whether the platform keeps requests: without, rates are zero because nobody counts.
    counted: bool,
}

struct Seen {
    record: Arc<ServiceRecord>,
    health: Health,
    instances: InstancesView,
    rates: RequestRates,
}

/// Shows all services at a look, those in trouble first, with their rates of the last moments. It wakes nothing.
#[utoipa::path(get, path = "/v1/overview", operation_id = "overview", tag = "observe", params(OverviewQuery),
    security(("token" = ["read"])),
    responses((status = 200, body = OverviewPage, description = "A page of services")))]
pub(super) async fn overview(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<OverviewQuery>,
) -> Result<Json<OverviewPage>, Failure> {
    let limit = page_size(query.limit, PAGE, MOST)?;
    let control = &api.control;
    let log = control.requests().ok();
    let mut rates = log.map(|log| log.rates_by_service()).unwrap_or_default();
    let search = query.search.as_deref().unwrap_or_default().trim().to_lowercase();
    let (mut totals, mut namespaces, mut found) = (Totals::default(), BTreeSet::new(), Vec::new());
    for live in control.lives() {
        let Some(record) = live.record().filter(|record| caller.reaches(&record.namespace)) else { continue };
        let path = record.path();
        let seen = api.see(record, &live, rates.remove(&path).unwrap_or_default());
        totals.add(&seen);
        if namespaces.len() < NAMESPACES && !namespaces.contains(&seen.record.namespace) {
            namespaces.insert(seen.record.namespace.clone());
        }
        let of = query.namespace.as_ref().is_none_or(|namespace| seen.record.namespace == *namespace);
        if of && (search.is_empty() || path.to_lowercase().contains(&search)) {
            found.push((path, seen));
        }
    }
    let matching = found.len();
    let order = query.sort.unwrap_or_default();
    let before = |one: &(String, Seen), other: &(String, Seen)| {
        order.key(&one.1).cmp(&order.key(&other.1)).then_with(|| one.0.cmp(&other.0))
    };
    // Those of the page and before it are told from the rest first: of ten thousand nobody needs the order of all.
    let offset = query.offset.unwrap_or(0) as usize;
    let wanted = offset.saturating_add(limit);
    if wanted < found.len() {
        found.select_nth_unstable_by(wanted, before);
        found.truncate(wanted);
    }
    found.sort_unstable_by(before);
    let services = found.into_iter().skip(offset).map(|(_, seen)| api.row(seen)).collect();
    let namespaces = namespaces.into_iter().collect();
    Ok(Json(OverviewPage { totals, namespaces, matching, services, counted: log.is_some() }))
}

impl Order {
    /// What comes first by this order; of equals the name decides.
    fn key(self, seen: &Seen) -> (Option<Health>, Reverse<u64>, Reverse<u64>, Reverse<i64>) {
        let tenths = |rate: f64| Reverse((rate * 10.0) as u64);
        let (none, requests) = (Reverse(0), tenths(seen.rates.requests_per_second));
        match self {
            Self::Trouble => (Some(seen.health), tenths(seen.rates.errors_per_second), requests, Reverse(0)),
            Self::Name => (None, none, none, Reverse(0)),
            Self::Requests => (None, none, requests, Reverse(0)),
            Self::Age => (None, none, none, Reverse(seen.record.created_at.0)),
        }
    }
}

impl Totals {
    fn add(&mut self, seen: &Seen) {
        self.services += 1;
        match seen.health {
            Health::Failing => self.failing += 1,
            Health::Warning => self.warning += 1,
            Health::Off => self.off += 1,
            Health::Ready | Health::Unknown => {}
        }
        self.ready += u64::from(seen.instances.ready);
        self.starting += u64::from(seen.instances.starting);
        self.draining += u64::from(seen.instances.draining);
        self.queued += u64::from(seen.instances.queued);
        self.in_flight += u64::from(seen.instances.in_flight);
        self.requests_per_second += seen.rates.requests_per_second;
        self.errors_per_second += seen.rates.errors_per_second;
        self.cold_starts += seen.rates.cold_starts;
    }
}

impl Api {
    /// How a service is, from what is at hand: of ten thousand nobody reads why, so no sentence is made here.
    fn see(&self, record: Arc<ServiceRecord>, live: &Live, rates: RequestRates) -> Seen {
        let mut instances =
            InstancesView { desired: 0, ready: 0, starting: 0, draining: 0, queued: 0, in_flight: 0 };
        let (mut failed, mut started) = (false, false);
        {
            let state = live.state.lock();
            for registration in &state.observed.registrations {
                let serves = registration.routable && !registration.retiring;
                failed |= serves && state.observed.blocked.contains_key(&registration.revision);
                started |= serves && state.started.contains(&registration.revision);
                if let Some(status) = self.control.pool.status(registration.key) {
                    failed |= serves && status.failed_starts > 0;
                    started |= serves && (status.started || status.ready > 0);
                    instances.desired += status.desired;
                    instances.ready += status.ready;
                    instances.starting += status.starting;
                    instances.draining += status.draining;
                    instances.queued += status.queued;
                    instances.in_flight += status.in_flight;
                }
            }
        }
        let health = match record.latest_created().map(|latest| &latest.state) {
            _ if record.disabled.is_some() => Health::Off,
            Some(RevisionState::Failed { .. }) => Health::Failing,
            _ if failed => Health::Failing,
            Some(RevisionState::Pending) | None => Health::Warning,
            _ if rates.errors_per_second > 0.0 => Health::Warning,
            _ if started => Health::Ready,
            _ => Health::Unknown,
        };
        Seen { record, health, instances, rates }
    }

    fn row(&self, seen: Seen) -> ServiceRow {
        let record = &seen.record;
        let shares = record.shares(self.control.clock.now());
        let [ready, ..] = self.control.service_conditions(record, &shares);
        let message = match (seen.health, ready.status) {
            (Health::Warning, "True") => {
                format!("{:.1} requests fail per second", seen.rates.errors_per_second)
            }
            _ => ready.message.trim_start_matches("0 starts failed in a row: ").to_owned(),
        };
        ServiceRow {
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            host: self.control.rules.host(record, None),
            created_at: crate::stamp::rfc3339(record.created_at),
            health: seen.health,
            reason: ready.reason,
            message,
            instances: seen.instances,
            rates: RatesView::from(&seen.rates),
            traffic: self.control.traffic_view(record),
            rolling_out: record.rolling.as_ref().is_some_and(|rolling| rolling.reason.is_none()),
        }
    }
}
