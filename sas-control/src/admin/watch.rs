//! Changes of what is wanted, as they are stored.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use sas_core::{Change, Version, Watched};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use utoipa::{IntoParams, ToSchema};

use super::{
    Api,
    extract::{Caller, Query},
    problem::Failure,
};
use crate::{
    control::{BROKERS, Control, SERVICES, TRIGGERS, WORKFLOWS},
    view::ServiceView,
};

/// Clients that watch at once, at most.
const MOST: usize = 64;
/// How often a line is sent while nothing happens, so that dead connections are noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Who may watch now.
#[derive(Clone, Debug)]
pub(super) struct Watchers(Arc<Semaphore>);

impl Default for Watchers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MOST)))
    }
}

/// Of which namespace.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct WatchQuery {
    /// Of this namespace only.
    namespace: Option<String>,
}

/// Where a client was.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "the description of a header that is read by hand")]
pub(super) struct Resume {
    /// The `id` of the last event that was seen.
    #[param(rename = "Last-Event-ID", value_type = Option<u64>)]
    last_event_id: Option<u64>,
}

/// The data of an event `changed`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ChangedEvent {
    /// `Service`, `Trigger` or `Broker`.
    kind: &'static str,
    namespace: String,
    name: String,
    /// Whether it is gone.
    deleted: bool,
    /// The service as it is now.
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<ServiceView>,
}

/// The data of the events `begin` and `list-again`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VersionEvent {
    /// What follows is later than this.
    version: u64,
}

/// Tells changes of services and triggers as server-sent events, until the client goes or the platform ends. The first
/// event is `begin`: list then, and nothing is missed. Each change is an event `changed`, whose `id` is sent back as
/// `Last-Event-ID` to go on without a gap. `list-again` says that the history does not reach back so far: list, and what
/// follows is later. Tells what is wanted of services, not how many instances run. At most 64 clients watch at once; others get 503.
#[utoipa::path(get, path = "/v1/watch", tag = "observe", params(WatchQuery, Resume), security(("token" = ["read"])),
    responses((status = 200, body = ChangedEvent, content_type = "text/event-stream", description = "The events")))]
pub(super) async fn watch(
    State(api): State<Api>,
    Caller(caller): Caller,
    Query(query): Query<WatchQuery>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>> + use<>>, Failure> {
    let namespace = query.namespace.or_else(|| caller.tenant().map(str::to_owned));
    if namespace.as_deref().is_some_and(|namespace| !caller.reaches(namespace)) {
        return Err(Failure::forbidden(format!("{caller} is held to another namespace")));
    }
    let resumed = headers.get("last-event-id").map(|id| {
        let text = id.to_str().unwrap_or_default();
        let wrong =
            || Failure::field("Last-Event-ID", text, "must be the id of an event; leave it out to begin");
        text.parse().map(Version).map_err(|_| wrong())
    });
    let resumed = resumed.transpose()?;
    let permit = Arc::clone(&api.watchers.0).try_acquire_owned().map_err(|_| {
        let message = format!("{MOST} clients watch already; come back later");
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, "too_many_watchers", message).later(5)
    })?;
    let mut watcher = Watcher {
        since: resumed.unwrap_or_default(),
        control: api.control,
        namespace,
        pending: VecDeque::new(),
        _permit: permit,
    };
    if resumed.is_none() {
        watcher.since = watcher.control.store.version().await?;
        watcher.tell_version("begin");
    }
    let events = futures_util::stream::unfold(watcher, async |mut watcher| {
        let event = watcher.next().await?;
        Some((Ok(event), watcher))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

struct Watcher {
    control: Arc<Control>,
    namespace: Option<String>,
    since: Version,
    /// Of one answer of the store, so bounded as its history is.
    pending: VecDeque<Event>,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    async fn next(&mut self) -> Option<Event> {
        let control = Arc::clone(&self.control);
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            let watched = tokio::select! {
                biased;
                () = control.stopping() => return None,
                watched = control.store.watch("", self.since) => watched,
            };
            match watched {
                Ok(Watched::Changes(changes)) => self.tell(&changes),
                Ok(Watched::ListAgain) => {
                    self.since = control.store.version().await.ok()?;
                    self.tell_version("list-again");
                }
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "a watch of the admin API ends");
                    return None;
                }
            }
        }
    }

    /// The version stands on the last change of a commit only: who resumes there has seen all of it.
    fn tell(&mut self, changes: &[Change]) {
        let mut told: Vec<(Version, ChangedEvent)> = Vec::new();
        for change in changes {
            told.extend(self.event(change).map(|event| (change.version, event)));
            self.since = change.version;
        }
        for at in 0..told.len() {
            let (version, data) = &told[at];
            let mut event = named("changed", data);
            if told.get(at + 1).is_none_or(|(next, _)| next != version) {
                event = event.id(version.0.to_string());
            }
            self.pending.push_back(event);
        }
    }

    fn event(&self, change: &Change) -> Option<ChangedEvent> {
        let kinds =
            [("Service", SERVICES), ("Trigger", TRIGGERS), ("Broker", BROKERS), ("Workflow", WORKFLOWS)];
        let (kind, path) =
            kinds.into_iter().find_map(|(kind, prefix)| Some((kind, change.key.strip_prefix(prefix)?)))?;
        let (namespace, name) = path.split_once('/')?;
        if self.namespace.as_deref().is_some_and(|asked| asked != namespace) {
            return None;
        }
        let deleted = change.value.is_none();
        let shown = kind == "Service" && !deleted;
        let record = shown.then(|| self.control.record(namespace, name).ok()).flatten();
        Some(ChangedEvent {
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            deleted,
            service: record.map(|record| self.control.view(&record)),
        })
    }

    fn tell_version(&mut self, name: &str) {
        let event = named(name, &VersionEvent { version: self.since.0 });
        self.pending.push_back(event.id(self.since.0.to_string()));
    }
}

fn named(name: &str, data: &impl Serialize) -> Event {
    // What JSON writes has no line breaks, which is all that an event's data may not have.
    Event::default().event(name).data(serde_json::to_string(data).unwrap_or_default())
}
