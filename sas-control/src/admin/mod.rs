//! The admin API: JSON over HTTP, for operators and their tools. It asks an [`Authenticator`] who is there, and refuses
//! foreign hosts, foreign origins and bodies that a web page could send unasked.

#![allow(unused_qualifications, reason = "utoipa::path writes types of its arguments with a qualification")]

mod access;
mod activity;
mod applied;
mod apps;
mod authorize;
mod backup;
mod config;
mod describe;
mod engines;
mod events;
mod extract;
mod guard;
mod hosts;
mod knative;
mod life;
mod limit;
mod observe;
mod overview;
mod packages;
mod platform;
mod problem;
mod rehearsals;
mod services;
mod settings;
mod test_run;
mod token;
mod triggers;
mod warm;
mod watch;
mod workflows;

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use axum::middleware;
use http::{HeaderValue, Method, StatusCode, Uri, header};
use sas_core::{Authenticator, Body, Denied, Handler, Principal, Request, RequestId, Response};
use tower_service::Service as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::{router::OpenApiRouter, routes};

use tokio::time::Instant;

use crate::{audit::AuditRecord, configuration::ProgramConfig, control::Control, roots::PackageRoots};
use authorize::{Rules, authorize};
use extract::Seen;
use limit::Room;
use problem::Failure;
use settings::InForce;
use watch::Watchers;

pub use settings::AdminSettings;
pub use token::{PeerAuthenticator, TokenAuthenticator};

type Text = dyn Fn() -> String + Send + Sync;

/// The admin API of a [`Control`].
///
/// `/healthz` and `/readyz` are open; `/metrics` is if [`Admin::with_open_metrics`] says so. Everything else is asked of
/// the [`Authenticator`], whose [`Principal`] is written to the log with each change, and kept as the author of
/// revisions and of a service's last change. Before that it refuses, with 403, every `Host` but loopback and [`Admin::with_host`], and every `Origin`
/// but the host's own and [`Admin::with_origin`]; after that, with 415, bodies that are neither JSON nor YAML by their
/// type, unless the request carries a bearer token.
pub struct Admin {
    authenticator: Arc<dyn Authenticator>,
    api: Api,
    /// Made of `api` when it is first asked.
    router: OnceLock<axum::Router>,
}

/// What handlers work with.
#[derive(Clone)]
struct Api {
    control: Arc<Control>,
    metrics: Option<Arc<Text>>,
    config: Option<Arc<dyn ProgramConfig>>,
    in_force: Arc<ArcSwap<InForce>>,
    watchers: Watchers,
    room: Room,
}

/// What a change was about, for the audit log, where the path does not say it.
#[derive(Clone, Debug, Default)]
struct Touched {
    /// The one namespace of all of it.
    namespace: Option<String>,
    objects: Vec<String>,
}

/// A mark of requests that ask this host by its own name.
#[derive(Clone, Copy)]
struct Named;

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("authenticator", &self.authenticator)
            .field("settings", &self.settings())
            .field("metrics", &self.api.metrics.is_some())
            .finish_non_exhaustive()
    }
}

impl Admin {
    /// The API of `control`, for those whom `authenticator` knows, without `/metrics`.
    pub fn new(control: Arc<Control>, authenticator: Arc<dyn Authenticator>) -> Self {
        Self {
            authenticator,
            api: Api {
                control,
                metrics: None,
                config: None,
                in_force: Arc::new(ArcSwap::from_pointee(AdminSettings::default().into())),
                watchers: Watchers::default(),
                room: Room::default(),
            },
            router: OnceLock::new(),
        }
    }

    /// With `/metrics`: `render` gives them in Prometheus' text format.
    #[must_use]
    pub fn with_metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.api.metrics = Some(Arc::new(render));
        self.changed()
    }

    /// With `/v1/config`, which shows and reloads the configuration of the program around.
    #[must_use]
    pub fn with_program_config(mut self, config: Arc<dyn ProgramConfig>) -> Self {
        self.api.config = Some(config);
        self.changed()
    }

    /// How it is used now.
    pub fn settings(&self) -> AdminSettings {
        self.api.in_force.load().settings.clone()
    }

    /// Changes how it is used, from the next request on. Whoever had asked too often begins anew where the rate changes.
    pub fn change(&self, change: impl FnOnce(&mut AdminSettings)) {
        let mut settings = self.settings();
        change(&mut settings);
        if settings != self.settings() {
            self.api.control.domains.reserve(&settings.hosts);
            self.api.in_force.store(Arc::new(settings.into()));
        }
    }

    fn with(self, change: impl FnOnce(&mut AdminSettings)) -> Self {
        self.change(change);
        self
    }

    /// Takes packages that manifests name by a path of the host from these directories; without this, from none.
    /// [`PackageRoots::any`] is only for principals who may do everything: for others it is none.
    #[must_use]
    pub fn with_package_roots(self, roots: PackageRoots) -> Self {
        self.with(|settings| settings.package_roots = roots)
    }

    /// Refuses changes of services, with 428, that do not say what they have seen: without `If-Match`, or
    /// `If-None-Match: *` for a new one. For platforms that several people or programs change.
    #[must_use]
    pub fn with_required_conditions(self) -> Self {
        self.with(|settings| settings.require_conditions = true)
    }

    /// The description of this API in OpenAPI 3.1, as JSON; also at `GET /v1/openapi.json`.
    pub fn openapi() -> String {
        openapi()
    }

    fn changed(mut self) -> Self {
        self.router = OnceLock::new();
        self
    }

    /// Lets each principal ask so often: `rate` requests per second, `burst` at once after quiet; 429 beyond. Without
    /// this, 500 and 1,000.
    #[must_use]
    pub fn with_rate_limit(self, rate: f64, burst: u32) -> Self {
        self.with(|settings| (settings.rate, settings.burst) = (rate, burst))
    }

    /// Gives `/metrics` to whoever asks, as scrapers without credentials need it.
    #[must_use]
    pub fn with_open_metrics(self) -> Self {
        self.with(|settings| settings.open_metrics = true)
    }

    /// Answers for this host too: a name or an address, for any port unless one is given.
    #[must_use]
    pub fn with_host(self, host: impl Into<String>) -> Self {
        self.with(|settings| settings.hosts.push(host.into()))
    }

    /// Answers pages of this origin too, such as `https://console.example.org`.
    #[must_use]
    pub fn with_origin(self, origin: impl Into<String>) -> Self {
        self.with(|settings| settings.origins.push(origin.into()))
    }

    /// Refuses, finds out who asks, answers.
    async fn answer(&self, id: RequestId, request: Request) -> Result<Response, Failure> {
        let (mut head, body) = request.into_parts();
        head.uri = without_last_slash(head.uri);
        let in_force = self.api.in_force.load_full();
        let guarded = in_force.guard.check(&head);
        match head.uri.path() {
            "/healthz" | "/readyz" => {
                head.extensions.clear();
                if guarded.is_ok() {
                    head.extensions.insert(Named);
                }
                return self.route(Request::from_parts(head, body)).await;
            }
            _ => guarded?,
        }
        let open =
            in_force.settings.open_metrics && head.uri.path() == "/metrics" && head.method == Method::GET;
        let principal = match self.authenticate(&head).await {
            // A scraper sees what it may see, whoever else it is.
            _ if open => Principal::new("anybody"),
            Ok(principal) => principal,
            Err(denied) => {
                tracing::debug!(method = %head.method, path = head.uri.path(), %denied, "denied");
                return Err(denied.into());
            }
        };
        check_rate(&in_force, &principal)?;
        guard::check_query(&head)?;
        guard::check_media_type(&head, http_body::Body::is_end_stream(&body))?;
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let changes = !matches!(method, Method::GET | Method::HEAD);
        let _room = match changes.then(|| self.api.room.take(http_body::Body::size_hint(&body).upper())) {
            Some(None) => return Err(busy()),
            taken => taken,
        };
        // What an application that this is mounted in has put there is its own: its routes and parameters are not ours.
        head.extensions.clear();
        head.extensions.insert(principal.clone());
        let answer = self.route(Request::from_parts(head, body)).await;
        // A test run changes nothing, and may be asked for often.
        if changes && !path.ends_with("/invoke") {
            self.keep(id, &principal, &method, &path, &answer).await;
        }
        answer
    }

    /// Who asks: by a token of the platform's own, else whoever the authenticator knows.
    async fn authenticate(&self, head: &http::request::Parts) -> Result<Principal, Denied> {
        let mut values = head.headers.get_all(header::AUTHORIZATION).iter();
        if let (Some(value), None) = (values.next(), values.next())
            && let Some(token) = token::bearer(value)
            && let Some(principal) = self.api.control.tokens().authenticate(token).await?
        {
            return Ok(principal);
        }
        self.authenticator.authenticate(head).await
    }

    /// Writes down who asked for a change, and how it went.
    async fn keep(
        &self,
        id: RequestId,
        principal: &Principal,
        method: &Method,
        path: &str,
        answer: &Result<Response, Failure>,
    ) {
        let status = answer.as_ref().map_or_else(Failure::status, Response::status).as_u16();
        tracing::info!(%principal, %method, path, status, "admin request");
        let touched = answer.as_ref().ok().and_then(|answer| answer.extensions().get::<Touched>());
        let touched = touched.cloned().unwrap_or_default();
        let of_path = path.strip_prefix("/v1/").and_then(|path| {
            let (kind, rest) = path.split_once('/')?;
            let namespace = rest.split('/').next()?;
            matches!(kind, "services" | "triggers" | "quotas" | "domains" | "workflows" | "runs")
                .then(|| namespace.to_owned())
        });
        let held_to = principal.tenant().map(str::to_owned);
        let record = AuditRecord {
            at: String::new(),
            principal: principal.to_string(),
            namespace: held_to.or(of_path).or(touched.namespace),
            method: method.to_string(),
            path: path.to_owned(),
            objects: touched.objects,
            status,
            reason: answer.as_ref().err().map(|failure| failure.reason().to_owned()),
            request_id: id.to_string(),
        };
        self.api.control.audit.record(record).await;
    }

    async fn route(&self, request: Request) -> Result<Response, Failure> {
        let mut router = self.router.get_or_init(|| router(self.api.clone())).clone();
        let Ok(response) = router.call(request).await;
        let (mut head, body) = response.into_parts();
        match head.extensions.remove::<Failure>() {
            Some(failure) => Err(failure),
            None => Ok(Response::from_parts(head, Body::new(body))),
        }
    }
}

fn check_rate(in_force: &InForce, principal: &Principal) -> Result<(), Failure> {
    // Names are apart within a namespace only.
    let who = format!("{}/{principal}", principal.tenant().unwrap_or_default());
    in_force.rate.take(&who, Instant::now()).map_err(|wait| {
        let message = format!("{principal} asks too often; come back in {wait:?}");
        let failure = Failure::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message);
        failure.later(wait.as_secs_f64().ceil() as u64)
    })
}

fn busy() -> Failure {
    let message =
        "1,024 changes, or 256 MiB of their bodies, are under way at once; come back when some are done";
    Failure::new(StatusCode::SERVICE_UNAVAILABLE, "busy", message).later(1)
}

/// The routes with their description.
fn described() -> OpenApiRouter<Api> {
    let mut routes = OpenApiRouter::with_openapi(describe::base())
        .routes(routes!(platform::healthz))
        .routes(routes!(platform::readyz))
        .routes(routes!(platform::metrics))
        .routes(routes!(platform::openapi))
        .routes(routes!(config::show))
        .routes(routes!(config::reload))
        .routes(routes!(backup::backup))
        .routes(routes!(platform::runtimes))
        .routes(routes!(platform::recovery))
        .routes(routes!(platform::pool))
        .routes(routes!(engines::list))
        .routes(routes!(engines::show, engines::declare, engines::remove))
        .routes(routes!(engines::upgrade))
        .routes(routes!(engines::diagnosis))
        .routes(routes!(hosts::list))
        .routes(routes!(platform::quotas))
        .routes(routes!(platform::quota, platform::set_quota, platform::delete_quota))
        .routes(routes!(access::whoami))
        .routes(routes!(access::tokens, access::create_token))
        .routes(routes!(access::revoke_token))
        .routes(routes!(access::audit))
        .routes(routes!(watch::watch))
        .routes(routes!(packages::upload))
        .routes(routes!(services::list, services::apply))
        .routes(routes!(services::show, services::delete))
        .routes(routes!(services::revisions))
        .routes(routes!(services::revision, life::delete_revision))
        .routes(routes!(life::revisions))
        .routes(routes!(life::disable))
        .routes(routes!(life::enable))
        .routes(routes!(life::set_alias, life::remove_alias))
        .routes(routes!(platform::tenant, life::delete_tenant))
        .routes(routes!(apps::list))
        .routes(routes!(apps::show, apps::delete))
        .routes(routes!(apps::set_environment))
        .routes(routes!(apps::revert))
        .routes(routes!(services::traffic, services::set_traffic))
        .routes(routes!(services::rollout, services::steer_rollout))
        .routes(routes!(rehearsals::mirror, rehearsals::set_mirror, rehearsals::delete_mirror))
        .routes(routes!(rehearsals::faults, rehearsals::set_faults, rehearsals::delete_faults))
        .routes(routes!(services::roll_back))
        .routes(routes!(services::manifest))
        .routes(routes!(knative::schema))
        .routes(routes!(knative::domains))
        .routes(routes!(knative::domain, knative::delete_domain))
        .routes(routes!(knative::list))
        .routes(routes!(knative::get))
        .routes(routes!(knative::list_domain_mappings))
        .routes(routes!(knative::get_domain_mapping))
        .routes(routes!(test_run::invoke))
        .routes(routes!(overview::overview))
        .routes(routes!(activity::request))
        .routes(routes!(activity::requests))
        .routes(routes!(activity::activity))
        .routes(routes!(observe::instances))
        .routes(routes!(observe::decisions))
        .routes(routes!(observe::logs))
        .routes(routes!(observe::service_usage))
        .routes(routes!(observe::usage))
        .routes(routes!(observe::usage_hours))
        .routes(routes!(observe::usage_cost))
        .routes(routes!(triggers::list))
        .routes(routes!(triggers::show, triggers::delete))
        .routes(routes!(triggers::dead_letters, triggers::discard_dead_letters))
        .routes(routes!(events::count_letters))
        .routes(routes!(events::redrive))
        .routes(routes!(events::pause))
        .routes(routes!(events::resume))
        .routes(routes!(events::replay))
        .routes(routes!(events::brokers))
        .routes(routes!(events::broker, events::delete_broker))
        .routes(routes!(events::send))
        .routes(routes!(workflows::list))
        .routes(routes!(workflows::show))
        .routes(routes!(workflows::graph))
        .routes(routes!(workflows::delete))
        .routes(routes!(workflows::start))
        .routes(routes!(workflows::runs))
        .routes(routes!(workflows::run))
        .routes(routes!(workflows::run_graph))
        .routes(routes!(workflows::suspend))
        .routes(routes!(workflows::resume))
        .routes(routes!(workflows::cancel))
        .routes(routes!(workflows::retry))
        .routes(routes!(workflows::skip))
        .routes(routes!(workflows::event));
    describe::finish(routes.get_openapi_mut());
    routes
}

fn router(api: Api) -> axum::Router {
    let (routes, description) = described().split_for_parts();
    let rules = Arc::new(Rules::of(&description));
    routes
        .route_layer(middleware::from_fn_with_state(rules, authorize))
        .fallback(async |uri: Uri| {
            let path = uri.path();
            Failure::not_found(format!("there is nothing at {path}; services are at /v1/services"))
        })
        .with_state(api)
}

/// The description as it is served.
fn openapi() -> String {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| {
        let description: OpenApi = described().into_openapi();
        serde_json::to_string_pretty(&description).expect("a description is JSON")
    });
    text.clone()
}

/// `/v1/services/` is `/v1/services`.
fn without_last_slash(uri: Uri) -> Uri {
    let path = uri.path();
    let short = path.trim_end_matches('/');
    if short.is_empty() || short.len() == path.len() {
        return uri;
    }
    let target = uri.query().map_or_else(|| short.to_owned(), |query| format!("{short}?{query}"));
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = target.parse().ok();
    Uri::from_parts(parts).unwrap_or(uri)
}

impl Api {
    /// From where `caller`'s manifests may take packages of the host.
    fn roots_for(&self, caller: &Principal) -> PackageRoots {
        let may_all = caller.may(sas_core::Scope::Admin) && caller.tenant().is_none();
        let roots = &self.in_force.load().settings.package_roots;
        if roots.allows_any() && !may_all { PackageRoots::none() } else { roots.clone() }
    }

    /// Refuses changes without a condition where the platform asks for one.
    fn asks_for(&self, seen: &Seen) -> Result<(), Failure> {
        if !self.in_force.load().settings.require_conditions || !seen.is_anything() {
            return Ok(());
        }
        let message = "this platform takes changes of services only with If-Match and the ETag that GET answered, or \
                       with If-None-Match: * for a new one";
        Err(Failure::new(StatusCode::PRECONDITION_REQUIRED, "precondition_required", message))
    }
}

#[async_trait]
impl Handler for Admin {
    async fn handle(&self, request: Request) -> Response {
        let id = self.api.control.request_id();
        let mut response = self.answer(id, request).await.unwrap_or_else(|failure| failure.response(id));
        if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
            response.headers_mut().insert("x-request-id", id);
        }
        response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }
}
