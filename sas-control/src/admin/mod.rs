//! The admin API: JSON over HTTP, for operators and their tools. It asks an [`Authenticator`] who is there, and refuses
//! foreign hosts, foreign origins and bodies that a web page could send unasked.

mod answer;
mod guard;
mod pages;
mod test_run;
mod token;

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use http::{HeaderValue, Method, StatusCode, header};
use sas_core::{Authenticator, Body, Handler, MeterTotals, Principal, Quota, Request, Response, RevisionKey};
use sas_knative::manifest::parse_traffic;
use serde_json::{Value, json};

use crate::{
    control::{Applied, Control, DeployOutcome, RolloutAction},
    record::ServiceRecord,
    roots::PackageRoots,
    stamp::rfc3339,
    view::TriggerView,
};
use answer::{Failure, json_response};
use guard::Guard;
use pages::{DecisionsPage, InstanceEntry, InstancesPage, LogsPage, RuntimesPage};

pub use token::{PeerAuthenticator, TokenAuthenticator};

/// Most bytes of a request's body.
const BODY_LIMIT: usize = 5 << 20;
/// Lines or decisions that are given unless asked for more or less.
const TAIL: usize = 100;
/// Reasons that `/readyz` gives at most.
const MISSING: usize = 20;
/// Lines or decisions that are given at most.
const MOST: usize = 10_000;

type Text = dyn Fn() -> String + Send + Sync;

/// The admin API of a [`Control`].
///
/// `/healthz` and `/readyz` are open; `/metrics` is if [`Admin::with_open_metrics`] says so. Everything else is asked of
/// the [`Authenticator`], whose [`Principal`] is written to the log with each change, and kept as the author of
/// revisions and of a service's last change. Before that it refuses, with 403, every `Host` but loopback and [`Admin::with_host`], and every `Origin`
/// but the host's own and [`Admin::with_origin`]; after that, with 415, bodies that are neither JSON nor YAML by their
/// type, unless the request carries a bearer token.
pub struct Admin {
    control: Arc<Control>,
    authenticator: Arc<dyn Authenticator>,
    guard: Guard,
    metrics: Option<Box<Text>>,
    open_metrics: bool,
    roots: PackageRoots,
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("authenticator", &self.authenticator)
            .field("guard", &self.guard)
            .field("metrics", &self.metrics.is_some())
            .finish_non_exhaustive()
    }
}

type Answer = Result<Response, Failure>;

impl Admin {
    /// The API of `control`, for those whom `authenticator` knows, without `/metrics`.
    pub fn new(control: Arc<Control>, authenticator: Arc<dyn Authenticator>) -> Self {
        Self {
            control,
            authenticator,
            guard: Guard::default(),
            metrics: None,
            open_metrics: false,
            roots: PackageRoots::none(),
        }
    }

    /// With `/metrics`: `render` gives them in Prometheus' text format.
    #[must_use]
    pub fn with_metrics(mut self, render: impl Fn() -> String + Send + Sync + 'static) -> Self {
        self.metrics = Some(Box::new(render));
        self
    }

    /// Takes packages that manifests name by a path of the host from these directories; without this, from none.
    #[must_use]
    pub fn with_package_roots(mut self, roots: PackageRoots) -> Self {
        self.roots = roots;
        self
    }

    /// Gives `/metrics` to whoever asks, as scrapers without credentials need it.
    #[must_use]
    pub fn with_open_metrics(mut self) -> Self {
        self.open_metrics = true;
        self
    }

    /// Answers for this host too: a name or an address, for any port unless one is given.
    #[must_use]
    pub fn with_host(mut self, host: impl Into<String>) -> Self {
        self.guard.hosts.push(host.into());
        self
    }

    /// Answers pages of this origin too, such as `https://console.example.org`.
    #[must_use]
    pub fn with_origin(mut self, origin: impl Into<String>) -> Self {
        self.guard.origins.push(origin.into());
        self
    }

    /// Refuses, finds out who asks, answers.
    async fn answer(&self, request: Request) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path().trim_matches('/');
        let guarded = self.guard.check(&head);
        match path {
            "healthz" => {
                only(&head.method, "GET")?;
                return Ok(json_response(StatusCode::OK, &json!({"status": "ok"})));
            }
            "readyz" => {
                only(&head.method, "GET")?;
                return self.ready(guarded.is_ok());
            }
            _ => guarded?,
        }
        if path == "metrics" && self.open_metrics {
            only(&head.method, "GET")?;
            return self.render_metrics();
        }
        let principal = match self.authenticator.authenticate(&head).await {
            Ok(principal) => principal,
            Err(denied) => {
                tracing::debug!(method = %head.method, path = head.uri.path(), %denied, "denied");
                return Err(denied.into());
            }
        };
        guard::check_media_type(&head, http_body::Body::is_end_stream(&body))?;
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let answer = self.route(Request::from_parts(head, body), &principal).await;
        if method != Method::GET {
            let status = answer.as_ref().map_or_else(Failure::status, Response::status).as_u16();
            tracing::info!(%principal, %method, path, status, "admin request");
        }
        answer
    }

    async fn route(&self, request: Request, principal: &Principal) -> Answer {
        let path = request.uri().path().to_owned();
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let method = request.method().clone();
        match parts[..] {
            ["metrics"] => {
                only(&method, "GET")?;
                self.render_metrics()
            }
            ["v1", "services"] => match method.as_str() {
                "GET" => self.list(&Query::of(&request)),
                "POST" => self.apply(request, principal).await,
                _ => Err(Failure::not_allowed(&method, "GET, POST")),
            },
            ["v1", "triggers"] => {
                only(&method, "GET")?;
                Ok(json_response(StatusCode::OK, &json!({"triggers": self.triggers()})))
            }
            ["v1", "triggers", namespace, name] => {
                only(&method, "DELETE")?;
                self.control.delete_trigger(namespace, name).await?;
                Ok(json_response(StatusCode::OK, &json!({"deleted": format!("{namespace}/{name}")})))
            }
            ["v1", "triggers", namespace, name, "deadletters"] => match method.as_str() {
                "GET" => {
                    let most = Query::of(&request).number("limit", TAIL)?;
                    let letters = self.control.dead_letters(namespace, name, most).await?;
                    Ok(json_response(StatusCode::OK, &json!({"deadLetters": letters})))
                }
                "DELETE" => {
                    let discarded = self.control.discard_dead_letters(namespace, name).await?;
                    Ok(json_response(StatusCode::OK, &json!({"discarded": discarded})))
                }
                _ => Err(Failure::not_allowed(&method, "GET, DELETE")),
            },
            ["v1", "quotas"] => {
                only(&method, "GET")?;
                let quotas: Vec<Value> = self
                    .control
                    .tenant_quotas()
                    .into_iter()
                    .map(|(namespace, quota)| json!({"namespace": namespace, "quota": quota}))
                    .collect();
                Ok(json_response(StatusCode::OK, &json!({"quotas": quotas})))
            }
            ["v1", "quotas", namespace] => self.quota(namespace, &method, request).await,
            ["v1", "runtimes"] => {
                only(&method, "GET")?;
                Ok(self.runtimes())
            }
            ["v1", "recovery"] => {
                only(&method, "GET")?;
                let recovery = self.control.recovery();
                let view = json!({
                    "services": recovery.services,
                    "triggers": recovery.triggers,
                    "missing": self.control.missing_view(),
                });
                Ok(json_response(StatusCode::OK, &view))
            }
            ["v1", "pool"] => {
                only(&method, "GET")?;
                Ok(self.pool())
            }
            ["v1", "usage"] => {
                only(&method, "GET")?;
                self.usage().await
            }
            ["v1", "services", namespace, name] => match method.as_str() {
                "GET" => {
                    let record = self.control.record(namespace, name)?;
                    Ok(json_response(StatusCode::OK, &self.control.view(&record)))
                }
                "DELETE" => {
                    self.control.delete(namespace, name).await?;
                    Ok(json_response(StatusCode::OK, &json!({"deleted": format!("{namespace}/{name}")})))
                }
                _ => Err(Failure::not_allowed(&method, "GET, DELETE")),
            },
            ["v1", "services", namespace, name, ref rest @ ..] => {
                self.below_service(namespace, name, rest, request, principal).await
            }
            _ => Err(no_page(&path)),
        }
    }

    async fn below_service(
        &self,
        namespace: &str,
        name: &str,
        rest: &[&str],
        request: Request,
        principal: &Principal,
    ) -> Answer {
        let method = request.method().clone();
        let record = || self.control.record(namespace, name);
        match rest {
            ["instances"] => {
                only(&method, "GET")?;
                self.instances(&*record()?, &Query::of(&request))
            }
            ["decisions"] => {
                only(&method, "GET")?;
                self.decisions(&*record()?, &Query::of(&request)).await
            }
            ["logs"] => {
                only(&method, "GET")?;
                self.logs(&*record()?, &Query::of(&request)).await
            }
            ["usage"] => {
                only(&method, "GET")?;
                self.service_usage(&*record()?, &Query::of(&request)).await
            }
            ["revisions"] => {
                only(&method, "GET")?;
                let view = self.control.view(&*record()?);
                Ok(json_response(StatusCode::OK, &json!({"revisions": view.revisions})))
            }
            ["revisions", revision] => {
                only(&method, "GET")?;
                let record = record()?;
                let found = record.revision(revision).ok_or_else(|| no_revision(&record, revision))?;
                let mut view = json!(self.control.revision_view(&record, found));
                view["spec"] = json!(found.spec);
                Ok(json_response(StatusCode::OK, &view))
            }
            ["invoke"] => {
                only(&method, "POST")?;
                record()?;
                let body = body(request).await?;
                test_run::answer(&self.control, namespace, name, &body).await
            }
            ["traffic"] => match method.as_str() {
                "GET" => {
                    let record = record()?;
                    let view = self.control.view(&record);
                    Ok(json_response(StatusCode::OK, &json!({"spec": view.spec, "traffic": view.traffic})))
                }
                "PUT" => {
                    record()?;
                    let targets = parse_traffic(&text(request).await?, name)?;
                    let record = self.control.set_traffic_for(principal, namespace, name, targets).await?;
                    Ok(json_response(StatusCode::OK, &self.control.view(&record)))
                }
                _ => Err(Failure::not_allowed(&method, "GET, PUT")),
            },
            ["rollout"] => match method.as_str() {
                "GET" => {
                    let view = self.control.rollout_view(&*record()?);
                    Ok(json_response(StatusCode::OK, &json!({"rollout": view})))
                }
                "POST" => {
                    record()?;
                    let action = rollout_action(&body(request).await?)?;
                    let record = self.control.steer_rollout_for(principal, namespace, name, action).await?;
                    Ok(json_response(StatusCode::OK, &self.control.view(&record)))
                }
                _ => Err(Failure::not_allowed(&method, "GET, POST")),
            },
            ["rollback"] => {
                only(&method, "POST")?;
                record()?;
                let to = rollback_target(&body(request).await?)?;
                let record = self.control.roll_back_for(principal, namespace, name, to.as_deref()).await?;
                Ok(json_response(StatusCode::OK, &self.control.view(&record)))
            }
            _ => Err(no_page(&format!("/v1/services/{namespace}/{name}/{}", rest.join("/")))),
        }
    }

    /// What a tenant may use.
    async fn quota(&self, namespace: &str, method: &Method, request: Request) -> Answer {
        match method.as_str() {
            "GET" => {}
            "PUT" => {
                let quota: Quota = object(&body(request).await?)
                    .map_err(|problem| Failure::field("$", "", format!("not a quota: {problem}")))?;
                self.control.set_tenant_quota(namespace, Some(quota)).await?;
            }
            "DELETE" => self.control.set_tenant_quota(namespace, None).await?,
            _ => return Err(Failure::not_allowed(method, "GET, PUT, DELETE")),
        }
        let quota = self.control.tenant_quota(namespace);
        Ok(json_response(StatusCode::OK, &json!({"namespace": namespace, "quota": quota})))
    }

    /// Ready, or ready but for what did not come back. What that is, only for those who ask this host by its own name;
    /// with all its reasons, at `/v1/recovery`.
    fn ready(&self, reasons: bool) -> Answer {
        if self.control.is_ready() {
            let missing = self.control.missing_view();
            let mut view = match missing.len() {
                0 => json!({"status": "ready"}),
                count => json!({"status": "degraded", "missing": count}),
            };
            if reasons && !missing.is_empty() {
                let some = missing.iter().take(MISSING);
                view["reasons"] =
                    some.map(|missing| json!({"what": missing.what, "reason": missing.reason})).collect();
            }
            return Ok(json_response(StatusCode::OK, &view));
        }
        let text = "the platform starts or shuts down";
        Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text))
    }

    fn triggers(&self) -> Vec<TriggerView> {
        self.control.trigger_status().into_iter().map(TriggerView::from).collect()
    }

    /// What each revision used since the platform runs, however often it was registered; and their sum, with what those
    /// used that are gone.
    async fn service_usage(&self, record: &ServiceRecord, query: &Query) -> Answer {
        let mut revisions: BTreeMap<String, MeterTotals> = BTreeMap::new();
        for (revision, key) in self.all_keys(record, query)? {
            let used = self.control.usage()?.revision_usage(key).await?;
            revisions.entry(revision).or_default().add_all(&used);
        }
        let mut view = json!({
            "usage": revisions
                .iter()
                .map(|(revision, totals)| json!({"revision": revision, "totals": totals}))
                .collect::<Vec<_>>(),
        });
        if query.get("revision").is_none() {
            let live = self.control.live(&record.path());
            let mut total = live.map(|live| live.state.lock().retired_usage).unwrap_or_default();
            revisions.values().for_each(|totals| total.add_all(totals));
            view["total"] = json!(total);
        }
        Ok(json_response(StatusCode::OK, &view))
    }

    fn render_metrics(&self) -> Answer {
        let Some(render) = &self.metrics else {
            return Err(Failure::new(
                StatusCode::NOT_FOUND,
                "not_found",
                "this platform exports no metrics here",
            ));
        };
        let mut response = Response::new(Body::from(render()));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        Ok(response)
    }

    fn list(&self, query: &Query) -> Answer {
        let namespace = query.get("namespace");
        let services: Vec<Value> = self
            .control
            .records()
            .iter()
            .filter(|record| namespace.is_none_or(|namespace| record.namespace == namespace))
            .map(|record| {
                let view = self.control.view(record);
                json!({
                    "namespace": view.namespace,
                    "name": view.name,
                    "host": view.host,
                    "generation": view.generation,
                    "latestCreatedRevision": view.latest_created_revision,
                    "latestReadyRevision": view.latest_ready_revision,
                    "traffic": view.traffic,
                    "conditions": view.conditions,
                })
            })
            .collect();
        Ok(json_response(StatusCode::OK, &json!({"services": services})))
    }

    async fn apply(&self, request: Request, principal: &Principal) -> Answer {
        let text = text(request).await?;
        let mut applied = Vec::new();
        let result = self.control.apply_for(principal, &text, &self.roots, &mut applied).await;
        let done: Vec<Value> = applied.iter().map(|applied| self.applied(applied)).collect();
        match result {
            Ok(()) => {
                let created = applied
                    .iter()
                    .any(|applied| matches!(applied, Applied::Service(DeployOutcome { created: true, .. })));
                let status = if created { StatusCode::CREATED } else { StatusCode::OK };
                Ok(json_response(status, &json!({"applied": done})))
            }
            Err(error) => {
                let failure = Failure::from(error);
                Err(if done.is_empty() { failure } else { failure.with("applied", json!(done)) })
            }
        }
    }

    fn applied(&self, applied: &Applied) -> Value {
        match applied {
            Applied::Service(outcome) => {
                let mut view = json!(self.control.view(&outcome.record));
                view["kind"] = json!("Service");
                view["revision"] = json!(outcome.revision);
                view["created"] = json!(outcome.created);
                view["newRevision"] = json!(outcome.new_revision);
                view
            }
            Applied::Trigger(trigger) => json!({
                "kind": "PingSource",
                "name": trigger.name,
                "target": trigger.target,
                "options": trigger.options,
            }),
        }
    }

    /// Revisions with their keys: those that run, or the one that is asked for.
    fn keys(&self, record: &ServiceRecord, query: &Query) -> Result<Vec<(String, RevisionKey)>, Failure> {
        let asked = query.get("revision");
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
    fn all_keys(&self, record: &ServiceRecord, query: &Query) -> Result<Vec<(String, RevisionKey)>, Failure> {
        let mut keys = self.keys(record, query)?;
        let asked = query.get("revision");
        if let Some(live) = self.control.live(&record.path()) {
            let state = live.state.lock();
            keys.extend(
                state
                    .past
                    .iter()
                    .filter(|(revision, _)| asked.is_none_or(|asked| asked == revision))
                    .cloned(),
            );
        }
        Ok(keys)
    }

    fn instances(&self, record: &ServiceRecord, query: &Query) -> Answer {
        let mut instances = Vec::new();
        for (revision, key) in self.keys(record, query)? {
            let views = self.control.pool.instances(key);
            instances.extend(views.iter().map(|view| InstanceEntry::new(&revision, view)));
        }
        Ok(json_response(StatusCode::OK, &InstancesPage { instances }))
    }

    async fn decisions(&self, record: &ServiceRecord, query: &Query) -> Answer {
        let most = query.number("limit", TAIL)?;
        let mut records = Vec::new();
        for (revision, key) in self.all_keys(record, query)? {
            let last = self.control.decisions()?.last_decisions(key, most).await?;
            records.extend(last.into_iter().map(|record| (revision.clone(), record)));
        }
        Ok(json_response(StatusCode::OK, &DecisionsPage::last(records, most)))
    }

    async fn logs(&self, record: &ServiceRecord, query: &Query) -> Answer {
        let most = query.number("tail", TAIL)?;
        let after = query.number("after", 0).map(|after| after as u64)?;
        let keys = self.all_keys(record, query)?;
        let keys: Vec<RevisionKey> = keys.into_iter().map(|(_, key)| key).collect();
        let page = self.control.logs()?.lines(&keys, most, after).await?;
        Ok(json_response(StatusCode::OK, &LogsPage::from(page)))
    }

    /// What the pool holds in all, and what it holds ahead of demand, with the reasons.
    fn pool(&self) -> Response {
        let stems: Vec<Value> = self
            .control
            .pool
            .stems()
            .iter()
            .map(|view| {
                let mut value = json!(view);
                value["decided_at"] = json!(rfc3339(view.decided_at));
                value
            })
            .collect();
        json_response(StatusCode::OK, &json!({"totals": self.control.pool.totals(), "stems": stems}))
    }

    fn runtimes(&self) -> Response {
        json_response(StatusCode::OK, &RuntimesPage::from(&*self.control.runtimes()))
    }

    async fn usage(&self) -> Answer {
        let used = self.control.usage()?.tenant_usage().await?;
        let tenants: Vec<Value> = used
            .into_iter()
            .map(|(tenant, totals)| json!({"namespace": self.control.namespace_of(tenant), "totals": totals}))
            .collect();
        Ok(json_response(StatusCode::OK, &json!({"tenants": tenants})))
    }
}

#[async_trait]
impl Handler for Admin {
    async fn handle(&self, request: Request) -> Response {
        self.answer(request).await.unwrap_or_else(|failure| failure.response(self.control.request_id()))
    }
}

fn only(method: &Method, allowed: &'static str) -> Result<(), Failure> {
    if method.as_str() == allowed { Ok(()) } else { Err(Failure::not_allowed(method, allowed)) }
}

fn no_page(path: &str) -> Failure {
    Failure::new(
        StatusCode::NOT_FOUND,
        "not_found",
        format!("there is nothing at {path}; services are at /v1/services"),
    )
}

fn no_revision(record: &ServiceRecord, revision: &str) -> Failure {
    let message = format!("{} has no revision {revision}", record.path());
    Failure::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn body(request: Request) -> Result<bytes::Bytes, Failure> {
    request.into_body().collect(BODY_LIMIT).await.map_err(|error| {
        if error.to_string().contains("length limit") {
            let message = format!("the body has more than {BODY_LIMIT} bytes");
            Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        } else {
            Failure::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body broke off: {error}"))
        }
    })
}

async fn text(request: Request) -> Result<String, Failure> {
    String::from_utf8(body(request).await?.into())
        .map_err(|_| Failure::new(StatusCode::BAD_REQUEST, "bad_request", "the body must be UTF-8"))
}

/// A JSON object; nothing stands for an empty one.
fn object<T: serde::de::DeserializeOwned + Default>(body: &[u8]) -> Result<T, String> {
    match body.trim_ascii() {
        [] => Ok(T::default()),
        text @ [b'{', ..] => serde_json::from_slice(text).map_err(|error| error.to_string()),
        _ => Err("must be a JSON object".to_owned()),
    }
}

/// `{}`, nothing, or `{"revision": "name"}`.
fn rollback_target(body: &[u8]) -> Result<Option<String>, Failure> {
    #[derive(serde::Deserialize, Default)]
    #[serde(deny_unknown_fields)]
    struct Rollback {
        revision: Option<String>,
    }
    let rollback: Rollback =
        object(body).map_err(|problem| Failure::field("$", "", format!("not a roll-back: {problem}")))?;
    Ok(rollback.revision)
}

/// `{"action": "restart"}`, `promote` or `stop`.
fn rollout_action(body: &[u8]) -> Result<RolloutAction, Failure> {
    #[derive(serde::Deserialize, Default)]
    #[serde(deny_unknown_fields)]
    struct Steer {
        action: Option<RolloutAction>,
    }
    const ACTIONS: &str = "must be restart, promote or stop";
    let steer: Steer =
        object(body).map_err(|problem| Failure::field("action", "", format!("{ACTIONS}: {problem}")))?;
    steer.action.ok_or_else(|| Failure::field("action", "", format!("missing: {ACTIONS}")))
}

/// The parameters of a URL.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(request: &Request) -> Self {
        let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let pairs = request.uri().query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn number(&self, name: &str, default: usize) -> Result<usize, Failure> {
        match self.get(name) {
            None => Ok(default),
            Some(text) => match text.parse::<usize>() {
                Ok(number) if name == "after" => Ok(number),
                Ok(number) => Ok(number.min(MOST)),
                Err(_) => Err(Failure::field(name, text, "must be a whole number")),
            },
        }
    }
}
