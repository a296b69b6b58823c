//! The life of services beyond deploys: switched off and on, revisions with names of one's own, and what is deleted as a
//! whole.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Principal, Result, Timestamp, TriggerSpec};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::{BROKERS, Control, DEAD_LETTERS, SERVICES, TRIGGERS, invalid, precondition};
use crate::{
    labels::LabelSelector,
    record::{Disabled, LATEST, ServiceRecord},
};

/// Where deletions of many things are in the store, until they are done.
pub(super) const PURGES: &str = "purge/";
/// How long a deletion that other hosts have a part in is waited for.
const PURGED: Duration = Duration::from_secs(60);
/// Aliases that a service may have.
const ALIASES: usize = 64;
/// Bytes of a reason.
const REASON: usize = 1024;

/// Many things that are being deleted: an app, or all that a namespace has.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Purge {
    format: u16,
    namespace: String,
    /// Only what belongs to this app.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    /// Since when.
    at: Timestamp,
}

impl Purge {
    fn key(&self) -> String {
        match &self.app {
            // No namespace has a slash, and no app is called nothing.
            Some(app) => format!("{PURGES}{}/{app}", self.namespace),
            None => format!("{PURGES}{}", self.namespace),
        }
    }

    fn covers(&self, namespace: &str, app: Option<&str>) -> bool {
        self.namespace == namespace && (self.app.is_none() || self.app.as_deref() == app)
    }
}

/// Deletions that are not done yet.
#[derive(Debug, Default)]
pub(super) struct Purges(Mutex<BTreeSet<Purge>>);

/// What was deleted with an app or a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[non_exhaustive]
pub struct Purged {
    /// Services, as `namespace/name`.
    pub services: Vec<String>,
    /// Triggers, as `namespace/name`.
    pub triggers: Vec<String>,
    /// Brokers with their events, as `namespace/name`.
    pub brokers: Vec<String>,
    /// Definitions of workflows, with their runs, as `namespace/name/version`.
    pub workflows: Vec<String>,
    /// Tokens of the admin API that were revoked, by their ids.
    pub tokens: Vec<String>,
}

impl Control {
    /// The services with these labels, by namespace and name; of one namespace, or of all.
    pub fn select(&self, namespace: Option<&str>, labels: &LabelSelector) -> Vec<Arc<ServiceRecord>> {
        let mut records = self.records();
        records.retain(|record| {
            namespace.is_none_or(|namespace| record.namespace == namespace) && labels.matches(&record.labels)
        });
        records
    }

    /// Switches a service off: it keeps all that it has, nothing of it starts, its triggers wait, and requests to it are
    /// answered with 503. That survives restarts. What runs of it is drained. Deploys go on to be prepared.
    ///
    /// # Errors
    /// `NotFound`; `InvalidSpec` for a reason of more than 1 KiB; `Unavailable` when the store fails.
    pub async fn disable(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        name: &str,
        reason: Option<&str>,
    ) -> Result<Arc<ServiceRecord>> {
        check_reason(reason)?;
        let disabled = Disabled { at: self.clock.now(), by: by.cloned(), reason: reason.map(str::to_owned) };
        self.switch(by, namespace, name, Some(disabled)).await
    }

    /// Switches a service on again.
    ///
    /// # Errors
    /// `NotFound`; `Unavailable` when the store fails.
    pub async fn enable(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<ServiceRecord>> {
        self.switch(by, namespace, name, None).await
    }

    async fn switch(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        name: &str,
        disabled: Option<Disabled>,
    ) -> Result<Arc<ServiceRecord>> {
        let record = self
            .change_record(by, namespace, name, |record| {
                // Who switches off what is off changes nothing, and does not take the place of who did.
                if record.disabled.is_some() != disabled.is_some() {
                    record.disabled = disabled;
                }
                Ok(())
            })
            .await?;
        self.hold_triggers(&record.path()).await;
        Ok(record)
    }

    /// One change of what is stored of a service, then all that follows of it.
    pub(super) async fn change_record(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut ServiceRecord) -> Result<()>,
    ) -> Result<Arc<ServiceRecord>> {
        self.open()?;
        let path = format!("{namespace}/{name}");
        let _changing = self.change(&path).await;
        let before = self.record(namespace, name)?;
        let mut record = ServiceRecord::clone(&before);
        change(&mut record)?;
        if record == *before {
            precondition::check(&path, self.version(namespace, name))?;
            return Ok(before);
        }
        record.generation += 1;
        record.changed_by = by.cloned();
        let record = self.save(&path, record, false).await?;
        self.settle(&path).await?;
        Ok(self.live(&path).and_then(|live| live.record()).unwrap_or(record))
    }

    /// The trigger as it is to run: paused while its target is switched off.
    pub(super) fn held(&self, mut spec: TriggerSpec) -> TriggerSpec {
        let target =
            spec.target.split_once('/').and_then(|(namespace, name)| self.record(namespace, name).ok());
        spec.paused |= target.is_some_and(|record| record.disabled.is_some());
        spec
    }

    /// Makes the triggers of a service wait, or go on, as the service is.
    pub(super) async fn hold_triggers(&self, path: &str) {
        let Some(host) = &self.triggers else { return };
        let entries = match self.entries(TRIGGERS).await {
            Ok(entries) => entries,
            Err(error) => {
                tracing::warn!(service = %path, error = %error.chain(), "its triggers can't be read; they hear of it after the next start");
                return;
            }
        };
        let specs =
            entries.iter().filter_map(|entry| serde_json::from_slice::<TriggerSpec>(&entry.value).ok());
        for mut spec in specs.filter(|spec| spec.target == path) {
            let namespace = spec.name.split('/').next().unwrap_or_default();
            if !self.acts_for(namespace) {
                continue;
            }
            spec.tenant = self.tenants.get(namespace);
            let name = spec.name.clone();
            if self.check_sinks(&spec).is_ok()
                && let Err(error) = host.apply(self.held(spec)).await
            {
                tracing::warn!(trigger = name, error = %error.chain(), "can't be made to follow its service");
            }
        }
    }

    /// Gives a revision a name of one's own, or takes the name away (`None`). The revision that an alias names is kept;
    /// an alias stands wherever a revision's name may, and means the revision that it names at that moment.
    ///
    /// # Errors
    /// `NotFound` when there is no such service, revision or alias; `InvalidSpec` for what can't be an alias: no DNS
    /// label, `latest`, or the name of a revision; `Exhausted` for more than 64.
    pub async fn set_alias(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        name: &str,
        alias: &str,
        revision: Option<&str>,
    ) -> Result<Arc<ServiceRecord>> {
        self.change_record(by, namespace, name, |record| {
            let missing = |what: &str| {
                Err(Error::new(ErrorKind::NotFound, "alias", format!("{namespace}/{name} has no {what}")))
            };
            let Some(revision) = revision else {
                return match record.aliases.remove(alias) {
                    Some(_) => Ok(()),
                    None => missing(&format!("alias {alias}")),
                };
            };
            if !sas_knative::manifest::is_label(alias) {
                return Err(invalid("alias", "alias", alias, sas_knative::manifest::LABEL));
            }
            if alias == LATEST || record.revision(alias).is_some() {
                let problem = "means a revision already: take another name";
                return Err(invalid("alias", "alias", alias, problem));
            }
            let Some(named) = record.resolve(revision).map(|named| named.name.clone()) else {
                return missing(&format!("revision {revision}"));
            };
            if !record.aliases.contains_key(alias) && record.aliases.len() >= ALIASES {
                let message = format!("{namespace}/{name} has {ALIASES} aliases, the most: remove one first");
                return Err(Error::new(ErrorKind::Exhausted, "alias", message));
            }
            record.aliases.insert(alias.to_owned(), named);
            Ok(())
        })
        .await
    }

    /// Deletes one revision.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` for one that gets traffic or would get it, holds a tag or an alias, or is part of a
    /// roll-out, with what to do first.
    pub async fn delete_revision(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        name: &str,
        revision: &str,
    ) -> Result<Arc<ServiceRecord>> {
        let now = self.clock.now();
        let mut packages = Vec::new();
        let record = self
            .change_record(by, namespace, name, |record| {
                let Some(found) = record.revision(revision) else {
                    let message = format!("{namespace}/{name} has no revision {revision}");
                    return Err(Error::new(ErrorKind::NotFound, "delete", message));
                };
                if let Some(why) = needed(record, revision, now) {
                    let message = format!("{revision} {why}");
                    return Err(Error::new(ErrorKind::Conflict, "delete", message));
                }
                packages.extend(found.package.clone());
                record.revisions.retain(|other| other.name != revision);
                Ok(())
            })
            .await?;
        if let Some(live) = self.live(&record.path()) {
            live.forget(|name| name == revision);
        }
        self.drop_packages(packages).await;
        Ok(record)
    }

    /// Deletes an app: its services, the triggers of its namespace that send to them, and its environment. Once it was
    /// begun it comes to its end, also when the platform is killed in between: deploys of the app are refused until then.
    ///
    /// # Errors
    /// `NotFound` when nothing belongs to the app; `Unavailable` when the store fails: it goes on by itself.
    pub async fn delete_app(self: &Arc<Self>, namespace: &str, app: &str) -> Result<Purged> {
        let none = self.select(Some(namespace), &LabelSelector::app(app)).is_empty();
        if none && self.app(namespace, app).is_none() {
            let message =
                format!("there is no app {namespace}/{app}: no service has the label sas.dev/app={app}");
            return Err(Error::new(ErrorKind::NotFound, "delete", message));
        }
        self.begin_purge(namespace, Some(app)).await
    }

    /// Deletes all that a tenant has: services, triggers, dead letters, brokers with their events, mapped hosts,
    /// environments of apps, the quota that was set, and tokens. What it used, what was asked for, and the number that it is known by stay: who
    /// has used something has still to pay for it. Once begun, it comes to its end, as [`Control::delete_app`] says.
    ///
    /// # Errors
    /// `NotFound` when there is no such tenant; `Unavailable` when the store fails: it goes on by itself.
    pub async fn delete_tenant(self: &Arc<Self>, namespace: &str) -> Result<Purged> {
        if self.tenants.get(namespace).is_none() {
            let message = format!("there is no tenant {namespace}");
            return Err(Error::new(ErrorKind::NotFound, "delete", message));
        }
        self.begin_purge(namespace, None).await
    }

    async fn begin_purge(self: &Arc<Self>, namespace: &str, app: Option<&str>) -> Result<Purged> {
        self.open()?;
        let (namespace, app) = (namespace.to_owned(), app.map(str::to_owned));
        let purge = Purge { format: 1, namespace, app, at: self.clock.now() };
        // Before it is stored: a deploy that begins now would come between.
        self.purges.0.lock().insert(purge.clone());
        // If that fails, nobody knows whether it was stored: housekeeping looks, and goes on or forgets it.
        self.keep(&purge.key(), &purge).await?;
        let mut purged = Purged::default();
        let until = Instant::now() + PURGED;
        loop {
            match self.purge(&purge, &mut purged).await {
                // The host that acts for the namespace has its part in it, and may be quicker with some.
                Err(error)
                    if self.hosts.is_some()
                        && error.kind == ErrorKind::Conflict
                        && Instant::now() < until
                        && !self.lifecycle.is_stopping() =>
                {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                done => return done.map(|()| purged),
            }
        }
    }

    /// Deletions that another host began are refused here too, and those of namespaces that this one acts for are done.
    pub(super) fn follow_purge(&self, name: &str, value: Option<&[u8]>) {
        let mut purges = self.purges.0.lock();
        let key = format!("{PURGES}{name}");
        purges.retain(|purge| purge.key() != key);
        match value.map(serde_json::from_slice::<Purge>) {
            Some(Ok(purge)) => drop(purges.insert(purge)),
            Some(Err(error)) => tracing::error!(key, %error, "is no deletion; it is left alone"),
            None => {}
        }
    }

    /// What is being deleted, by the names of its entries.
    pub(super) fn purges_begun(&self) -> Vec<String> {
        self.purges.0.lock().iter().map(|purge| purge.key()[PURGES.len()..].to_owned()).collect()
    }

    /// Refuses what is being deleted.
    pub(super) fn check_purges(&self, namespace: &str, app: Option<&str>) -> Result<()> {
        if self.purges.0.lock().iter().any(|purge| purge.covers(namespace, app)) {
            let what = app.map_or_else(|| namespace.to_owned(), |app| format!("{namespace}/{app}"));
            let message = format!("{what} is being deleted; try again when that is done");
            return Err(Error::new(ErrorKind::Conflict, "deploy", message));
        }
        Ok(())
    }

    pub(super) async fn recover_purges(&self) -> Result<()> {
        for entry in self.entries(PURGES).await? {
            match serde_json::from_slice::<Purge>(&entry.value) {
                Ok(purge) => {
                    self.purges.0.lock().insert(purge);
                }
                Err(error) => tracing::error!(key = entry.key, %error, "is no deletion; it is left alone"),
            }
        }
        Ok(())
    }

    /// Goes on with deletions that were begun.
    pub(super) async fn purge_all(self: &Arc<Self>) {
        let purges: Vec<Purge> = self.purges.0.lock().iter().cloned().collect();
        // The others are done by the host that runs their brokers.
        for purge in purges.into_iter().filter(|purge| self.acts_for(&purge.namespace)) {
            if let Err(error) = self.purge(&purge, &mut Purged::default()).await {
                tracing::warn!(namespace = purge.namespace, app = purge.app, error = %error.chain(), "not deleted yet; it is tried again");
            }
        }
    }

    async fn purge(self: &Arc<Self>, purge: &Purge, purged: &mut Purged) -> Result<()> {
        if self.store.get(&purge.key()).await?.is_none() {
            // It never began, or another host has done the rest.
            self.purges.0.lock().remove(purge);
            return Ok(());
        }
        let namespace = purge.namespace.as_str();
        let selector = purge.app.as_ref().map_or_else(LabelSelector::default, LabelSelector::app);
        if purge.app.is_none() {
            // First of all: whoever holds one changes nothing any more while the rest is deleted.
            for token in self.tokens.list(&Principal::host()).await? {
                if token.namespace.as_deref() == Some(namespace) {
                    gone(self.tokens.revoke(&Principal::host(), &token.id).await)?;
                    purged.tokens.push(token.id);
                }
            }
        }
        let services = self.select(Some(namespace), &selector);
        for entry in self.entries(&format!("{TRIGGERS}{namespace}/")).await? {
            let name = &entry.key[TRIGGERS.len()..];
            let target = serde_json::from_slice::<TriggerSpec>(&entry.value).map(|spec| spec.target);
            let concerned = purge.app.is_none()
                || target.is_ok_and(|target| services.iter().any(|record| record.path() == target));
            if concerned && let Some((namespace, short)) = name.split_once('/') {
                gone(self.delete_trigger(namespace, short).await)?;
                self.discard_dead_letters(namespace, short).await?;
                purged.triggers.push(name.to_owned());
            }
        }
        for record in services {
            gone(self.delete(&record.namespace, &record.name).await)?;
            purged.services.push(record.path());
        }
        let apps = match &purge.app {
            Some(app) => vec![app.clone()],
            None => self.apps_of(namespace),
        };
        for app in apps {
            self.forget_app(namespace, &app).await?;
        }
        if purge.app.is_none() {
            // What is damaged is in no list of services.
            for entry in self.entries(&format!("{SERVICES}{namespace}/")).await? {
                let path = &entry.key[SERVICES.len()..];
                if let Some((namespace, short)) = path.split_once('/') {
                    gone(self.delete(namespace, short).await)?;
                    purged.services.push(path.to_owned());
                }
            }
            if let Ok(workflows) = self.workflow_host() {
                purged.workflows.extend(workflows.purge(namespace).await?);
            }
            for entry in self.entries(&format!("{DEAD_LETTERS}{namespace}/")).await? {
                gone(self.store.delete(&entry.key, entry.version).await)?;
            }
            for domain in self.domains() {
                if domain.mapping.namespace == namespace {
                    gone(self.delete_domain(namespace, &domain.mapping.host).await)?;
                }
            }
            if self.tenant_quotas.version(namespace).is_some() {
                self.set_tenant_quota(namespace, None).await?;
            }
            // Last, since only the host that runs them can do it.
            for entry in self.entries(&format!("{BROKERS}{namespace}/")).await? {
                let name = &entry.key[BROKERS.len()..];
                if let Some((namespace, short)) = name.split_once('/') {
                    if !purged.brokers.iter().any(|known| known == name) {
                        purged.brokers.push(name.to_owned());
                    }
                    gone(self.delete_broker(namespace, short).await)?;
                }
            }
        }
        if let Some(entry) = self.store.get(&purge.key()).await? {
            gone(self.store.delete(&entry.key, entry.version).await)?;
        }
        self.purges.0.lock().remove(purge);
        tracing::info!(
            namespace,
            app = purge.app,
            services = purged.services.len(),
            "deleted with all that it had"
        );
        Ok(())
    }
}

/// What is gone already needs no deletion.
fn gone<T>(deleted: Result<T>) -> Result<()> {
    match deleted {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}

/// Why a revision can't be deleted now, and what to do first.
fn needed(record: &ServiceRecord, revision: &str, now: Timestamp) -> Option<String> {
    let tag = record
        .shares(now)
        .into_iter()
        .filter(|share| share.revision == revision)
        .map(|share| share.tag)
        .chain(
            record
                .traffic
                .iter()
                .filter(|target| target.revision_name.as_deref() == Some(revision))
                .map(|target| target.tag.clone()),
        )
        .max();
    if let Some(alias) = record.aliases_of(revision).next() {
        return Some(format!("has the alias {alias}; give that to another or remove it first"));
    }
    if record.rolling.as_ref().is_some_and(|rolling| rolling.from == revision || rolling.to == revision) {
        return Some("is part of a roll-out; promote it or roll back first".to_owned());
    }
    match tag {
        Some(Some(tag)) => Some(format!("has the tag {tag}; set the traffic without it first")),
        Some(None) => Some("gets traffic; send that elsewhere first".to_owned()),
        None if record.revisions.len() == 1 => Some("is the only one; delete the service".to_owned()),
        None => None,
    }
}

pub(super) fn check_reason(reason: Option<&str>) -> Result<()> {
    match reason {
        Some(reason) if reason.len() > REASON => {
            let begin: String = reason.chars().take(40).collect();
            Err(invalid("reason", "reason", format!("{begin}…"), format!("must be at most {REASON} bytes")))
        }
        _ => Ok(()),
    }
}
