//! Events of the life of runs, as the specification names them. They are stored with the record that tells the same, and published from
//! there: at least once, under one id.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sas_core::{IdempotencyKey, Result, Version};
use serde_json::{Value as Json, json};
use tokio_util::sync::CancellationToken;

use super::{
    Inner,
    records::{Phase, RunState},
    view::rfc3339,
};

/// Where they wait: `workflow/outbox/<namespace>/<id>/<version of the state before>-<time>-<number>-<type>`, in their order.
pub(super) const OUTBOX: &str = "workflow/outbox/";
/// How many are read at once.
const PAGE: usize = 100;
/// How long those wait that could not be published.
const AGAIN: Duration = Duration::from_secs(5);
/// How often it is looked without a word.
const LOOK: Duration = Duration::from_secs(60);

/// What has happened between two states of a run: the last part of the type, and its data.
fn happened(before: Option<&RunState>, now: &RunState) -> Vec<(&'static str, Json)> {
    let name = format!("{}-{}.{}", now.name, now.id, now.namespace);
    let at = |what: &str, millis: u64| json!({ "name": name, what: rfc3339(millis) });
    let Some(before) = before else {
        let mut data = at("startedAt", now.started);
        data["definition"] = json!({"name": now.name, "namespace": now.namespace, "version": now.version});
        return vec![("started", data)];
    };
    let mut events = Vec::new();
    let listens = |state: &RunState| state.phase == Phase::Running && state.listens.is_some();
    if listens(before) && !listens(now) && matches!(now.phase, Phase::Running | Phase::Completed) {
        events.push(("correlation-completed", at("completedAt", now.updated)));
    }
    match (before.phase, now.phase) {
        (Phase::Running, Phase::Running) => match (before.suspended, now.suspended) {
            (false, true) => events.push(("suspended", at("suspendedAt", now.updated))),
            (true, false) => events.push(("resumed", at("resumedAt", now.updated))),
            _ => {}
        },
        // An operator let it go on after its fault.
        (_, Phase::Running) => events.push(("resumed", at("resumedAt", now.updated))),
        (Phase::Running, Phase::Completed) => events.push(("completed", at("completedAt", now.updated))),
        (Phase::Running, Phase::Cancelled) => events.push(("cancelled", at("cancelledAt", now.updated))),
        (Phase::Running, Phase::Faulted) => {
            let mut data = at("faultedAt", now.updated);
            data["error"] = now.error.clone().unwrap_or_default();
            events.push(("faulted", data));
        }
        _ => {}
    }
    if !listens(before) && listens(now) {
        events.push(("correlation-started", at("startedAt", now.updated)));
    }
    events
}

/// The events between two states, in the JSON format of CloudEvents, with the keys under which they wait.
pub(super) fn events(before: Option<(&RunState, Version)>, now: &RunState) -> Vec<(String, String)> {
    let version = before.map_or(0, |(_, version)| version.0);
    let before = before.map(|(state, _)| state);
    let made = happened(before, now).into_iter().enumerate().map(|(at, (kind, data))| {
        let place = format!("{version:020}-{:020}-{at}-{kind}", now.updated);
        let event = json!({
            "specversion": "1.0",
            "id": format!("{:032x}", IdempotencyKey::of(&["life", &now.path(), &place]).0),
            "source": format!("/workflows/{}/{}", now.namespace, now.name),
            "subject": now.id,
            "type": format!("io.serverlessworkflow.workflow.{kind}.v1"),
            "time": rfc3339(now.updated),
            "datacontenttype": "application/json",
            "data": data,
        });
        (format!("{OUTBOX}{}/{place}", now.path()), event.to_string())
    });
    made.collect()
}

impl Inner {
    /// Publishes what waits, until `stop`.
    pub(super) async fn publish_life(self: Arc<Self>, stop: &CancellationToken) {
        if !self.config.lifecycle {
            return;
        }
        loop {
            let wait = match stop.run_until_cancelled(self.publish_waiting()).await {
                None => return,
                Some(Ok(true)) => LOOK,
                Some(Ok(false)) => AGAIN,
                Some(Err(error)) => {
                    tracing::warn!(%error, "events of the life of runs cannot be read now; it is tried again");
                    AGAIN
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.life.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Whether all are published that this host has to.
    async fn publish_waiting(&self) -> Result<bool> {
        let store = &self.records.store;
        let (mut after, mut waiting) = (None::<String>, 0_u32);
        let mut refused: BTreeSet<String> = BTreeSet::new();
        loop {
            let page = store.list(OUTBOX, after.as_deref(), PAGE).await?;
            let Some(last) = page.last() else { break };
            after = Some(last.key.clone());
            for entry in page {
                let namespace = entry.key[OUTBOX.len()..].split('/').next().unwrap_or_default().to_owned();
                if !self.drives(&namespace) {
                    continue;
                }
                // In their order: one that is refused holds up those of its namespace.
                if refused.contains(&namespace) {
                    waiting += 1;
                    continue;
                }
                let published = match serde_json::from_slice(&entry.value) {
                    Ok(event) => self.actions.lifecycle(&namespace, &event).await,
                    Err(error) => {
                        tracing::error!(key = entry.key, %error, "is no event, and is left out");
                        Ok(())
                    }
                };
                if let Err(error) = published {
                    tracing::warn!(namespace, %error, "events of the life of runs are not published; it is tried again");
                    refused.insert(namespace);
                    waiting += 1;
                    continue;
                }
                match store.delete(&entry.key, entry.version).await {
                    // Another host was first.
                    Err(error) if error.kind == sas_core::ErrorKind::Conflict => {}
                    deleted => deleted?,
                }
            }
        }
        self.metrics.outbox.set(f64::from(waiting));
        Ok(refused.is_empty())
    }
}
