//! Several hosts on one state: what this one acts for, and what it follows of what others write.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{
    Change, Commit, Error, ErrorKind, HostPattern, Hosts, Place, Result, RouteAction, RouteChange, RouteRule,
    Store, TenantKey, TenantQuota, Version, Watched,
};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    BROKERS, Control, DOMAINS, QUOTAS, SERVICES, TENANTS, TRIGGERS, domains::DomainRecord, parts::Names,
    spread::SPREAD,
};
use crate::{
    labels::LabelSelector,
    reconcile::{Observed, changes, routes_away},
    record::{RevisionState, ServiceRecord},
    spread::PartState,
};

/// Where the highest number of a tenant is.
const TENANT_NUMBERS: &str = "tenants/numbers";
/// Services that are followed at once.
const FOLLOWED: usize = 16;
/// How long somebody waits for another host to prepare what was deployed here.
const PREPARED: Duration = Duration::from_secs(120);
/// After a failure of the store.
const AGAIN: Duration = Duration::from_millis(200);
/// The longest wait after failures that follow each other.
const LONGEST_AGAIN: Duration = Duration::from_secs(10);
/// What other hosts write that this one holds in memory.
const FOLLOWED_PREFIXES: [&str; 9] =
    [SERVICES, TENANTS, QUOTAS, DOMAINS, super::apps::APPS, TRIGGERS, BROKERS, super::life::PURGES, SPREAD];

/// What is still to be followed.
#[derive(Debug, Default)]
pub(super) struct Following {
    services: Names,
    more: Arc<Notify>,
    /// Triggers and brokers that run here, with the version of their declaration.
    placed: tokio::sync::Mutex<BTreeMap<String, Version>>,
    /// Rules of the host that events are sent to, as they were last set.
    events: Mutex<Vec<RouteRule>>,
}

fn namespace_of(path: &str) -> &str {
    path.split('/').next().unwrap_or_default()
}

impl Control {
    /// The hosts that share this control plane's store, if there are several.
    pub fn hosts(&self) -> Option<&Arc<dyn Hosts>> {
        self.hosts.as_ref()
    }

    /// Who acts for a path; `None`: this is the only host.
    pub(super) fn place(&self, path: &str) -> Option<Place> {
        self.hosts.as_ref().map(|hosts| hosts.place(path))
    }

    /// Whether this host may do for a path what only one host does.
    pub(super) fn acts_for(&self, path: &str) -> bool {
        matches!(self.place(path), None | Some(Place::Here(_)))
    }

    /// Refuses what only the host can do that runs the triggers of a namespace.
    pub(super) fn triggers_here(&self, namespace: &str) -> Result<()> {
        match self.place(namespace) {
            None | Some(Place::Here(_)) => Ok(()),
            Some(Place::There(host)) => {
                let message =
                    format!("the triggers and brokers of {namespace} are on the host {host}: ask that one");
                Err(Error::new(ErrorKind::Conflict, "trigger", message))
            }
            Some(Place::Undecided) => {
                let message =
                    format!("no host runs the triggers of {namespace} now: try again in some seconds");
                Err(Error::new(ErrorKind::Unavailable, "trigger", message))
            }
        }
    }

    /// Makes the routes of all services say which host acts for each, at once; what else follows of it is done in the
    /// background. To be called after each change of the hosts.
    ///
    /// # Errors
    /// Those of the router.
    pub async fn follow_hosts(self: &Arc<Self>) -> Result<()> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        for live in self.lives() {
            let mut state = live.state.lock();
            let Some(record) = state.record.clone() else { continue };
            let path = record.path();
            let away = state.observed.is_away();
            if self.keeps(&path, &state.observed) {
                self.following.services.add(&path);
                continue;
            }
            let peer = match hosts.place(&path) {
                Place::There(peer) => peer,
                // Until what it needs is there, its requests wait.
                Place::Here(_) if away => Arc::from(hosts.name()),
                _ => continue,
            };
            state.observed.domains = self.domains.of(&path);
            let wanted = routes_away(&record, &state.observed, &self.rules, &peer);
            let changed = changes(&state.observed.hosts, &wanted);
            if changed.is_empty() && away && *peer != *hosts.name() {
                continue;
            }
            if !changed.is_empty() {
                self.router.apply(changed)?;
                state.observed.hosts = wanted;
            }
            self.following.services.add(&path);
        }
        self.following.more.notify_one();
        self.look_at_spreads();
        self.place_all_triggers().await
    }

    /// Runs one that waited for a grant, in a way that it stops when the namespace goes to another host.
    pub(super) async fn place_trigger(&self, name: &str) -> Result<()> {
        let key = format!("{TRIGGERS}{name}");
        self.place_triggers().await?.remove(&key).map_or(Ok(()), Err)
    }

    /// Says that a trigger was stopped, so that it is started when it may run again.
    pub(super) async fn unplace_trigger(&self, name: &str) {
        self.following.placed.lock().await.remove(&format!("{TRIGGERS}{name}"));
    }

    /// [`Control::place_triggers`], with an error if it is worth while to try again.
    async fn place_all_triggers(&self) -> Result<()> {
        // A declaration that is refused is no better when it is tried again: a change of it, or of a grant, is.
        let passing = |error: &Error| !matches!(error.kind, ErrorKind::InvalidSpec | ErrorKind::Unsupported);
        let mut failed = self.place_triggers().await?.into_values();
        failed.find(passing).map_or(Ok(()), Err)
    }

    /// Runs the triggers and brokers of the namespaces that this host acts for, as they are declared now, and no others.
    /// Those that don't run although they should, by their keys.
    pub(super) async fn place_triggers(&self) -> Result<BTreeMap<String, Error>> {
        let mut failed = BTreeMap::new();
        let Ok(host) = self.trigger_host() else { return Ok(failed) };
        let mut placed = self.following.placed.lock().await;
        // Before the store is asked, which may be why this host acts for nothing any more.
        let lost: Vec<String> = placed
            .keys()
            .filter(|key| {
                let name = key.strip_prefix(TRIGGERS).or_else(|| key.strip_prefix(BROKERS)).unwrap_or(key);
                !self.acts_for(namespace_of(name))
            })
            .cloned()
            .collect();
        for key in lost {
            placed.remove(&key);
            if let Some(name) = key.strip_prefix(TRIGGERS) {
                host.pause(name).await;
                self.forget_crossing(name);
            }
        }
        let mut declared = BTreeSet::new();
        let mut elsewhere: BTreeMap<String, Arc<str>> = BTreeMap::new();
        for prefix in [BROKERS, TRIGGERS] {
            for entry in self.entries(prefix).await? {
                let name = &entry.key[prefix.len()..];
                declared.insert(entry.key.clone());
                let place = self.place(namespace_of(name));
                if let Some(Place::There(peer)) = &place {
                    elsewhere.insert(namespace_of(name).to_owned(), Arc::clone(peer));
                }
                match place {
                    None | Some(Place::Here(_)) if placed.get(&entry.key) == Some(&entry.version) => {}
                    None | Some(Place::Here(_)) => {
                        let applied = match prefix {
                            BROKERS => self.recover_broker(&entry.value).await,
                            _ => self.recover_trigger(&entry.value).await,
                        };
                        match applied {
                            Ok(()) => {
                                placed.insert(entry.key, entry.version);
                            }
                            Err(error) => {
                                tracing::warn!(name, error = %error.chain(), "does not run here");
                                failed.insert(entry.key, error);
                            }
                        }
                    }
                    Some(_) => {}
                }
            }
        }
        let gone: Vec<String> = placed.keys().filter(|key| !declared.contains(*key)).cloned().collect();
        for key in gone {
            if let Some(name) = key.strip_prefix(TRIGGERS) {
                // Whoever deleted it could not stop it here: it may have written its place once more since.
                if let Err(error) = host.remove(name).await {
                    tracing::warn!(name, error = %error.chain(), "deleted, and not forgotten yet");
                    failed.insert(key, error);
                    continue;
                }
                self.forget_crossing(name);
            }
            placed.remove(&key);
        }
        self.route_events(&elsewhere)?;
        Ok(failed)
    }

    /// Events for brokers and webhooks of other hosts go there.
    fn route_events(&self, elsewhere: &BTreeMap<String, Arc<str>>) -> Result<()> {
        let mut rules = Vec::new();
        for (namespace, peer) in elsewhere {
            let Some(tenant) = self.tenants.get(namespace) else { continue };
            for prefix in [format!("/{namespace}"), format!("/hooks/{namespace}")] {
                let action = RouteAction::Remote { peer: peer.to_string() };
                rules.push(RouteRule::new(tenant, action).under(prefix));
            }
        }
        let mut before = self.following.events.lock();
        if *before == rules {
            return Ok(());
        }
        let host = HostPattern::Exact(format!("events.{}", self.rules.domain));
        self.router.apply(vec![match rules.is_empty() {
            true => RouteChange::Remove { host },
            false => RouteChange::Set { host, rules: rules.clone() },
        }])?;
        *before = rules;
        Ok(())
    }

    /// A number for a tenant that no other host gives to another one.
    pub(super) async fn number_tenant(&self, namespace: &str) -> Result<TenantKey> {
        let key = format!("{TENANTS}{namespace}");
        loop {
            let counter = self.store.get(TENANT_NUMBERS).await?;
            let stored = self.store.get(&key).await?;
            let read = stored.as_ref().and_then(|entry| serde_json::from_slice(&entry.value).ok());
            if let Some(id) = read {
                return Ok(TenantKey(id));
            }
            let given = self.entries(TENANTS).await?;
            let highest =
                given.iter().filter_map(|entry| serde_json::from_slice::<u32>(&entry.value).ok()).max();
            let number = highest.unwrap_or(0).max(self.tenant_for(namespace).0.saturating_sub(1)) + 1;
            let commit = Commit::new()
                .guard(TENANT_NUMBERS, counter.map(|entry| entry.version))
                .guard(&key, stored.map(|entry| entry.version))
                .put(TENANT_NUMBERS, number.to_string())
                .put(&key, number.to_string());
            match self.store.commit(commit).await {
                Ok(_) => return Ok(TenantKey(number)),
                Err(error) if error.kind == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until the host that acts for the service has prepared the revision. Not to be called in the service's turn.
    pub(super) async fn until_prepared(self: &Arc<Self>, path: &str, revision: &str) -> Result<()> {
        if self.hosts.is_none() {
            return Ok(());
        }
        let deadline = Instant::now() + PREPARED;
        loop {
            let record = self.live(path).and_then(|live| live.record());
            let pending = record
                .as_ref()
                .and_then(|record| record.revision(revision))
                .is_some_and(|found| found.state == RevisionState::Pending);
            if !pending {
                return Ok(());
            }
            if self.acts_for(path) {
                let _changing = self.change(path).await;
                self.settle(path).await?;
            }
            if Instant::now() >= deadline || self.lifecycle.is_stopping() {
                let message = format!(
                    "{path} is stored, and the host that acts for it has not prepared {revision} within {PREPARED:?}; it \
                     goes on: look at its conditions"
                );
                return Err(Error::new(ErrorKind::Timeout, "deploy", message));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Takes over what another host changed, or this one did.
    async fn follow_changes(self: &Arc<Self>, prefix: &'static str, changes: Vec<Change>) -> Result<()> {
        for Change { key, version, value } in changes {
            let name = key[prefix.len()..].to_owned();
            match (prefix, value) {
                (SERVICES, _) => {
                    let known = self.live(&name).is_some_and(|live| {
                        let state = live.state.lock();
                        state.record.is_some() && state.version == version
                    });
                    if !known {
                        self.following.services.add(&name);
                    }
                }
                (TENANTS, Some(value)) => {
                    if let Ok(id) = serde_json::from_slice(&value) {
                        self.tenants.insert(&name, TenantKey(id));
                        self.limit_tenant(&name);
                    }
                }
                (QUOTAS, value) => {
                    match value.map(|value| serde_json::from_slice::<TenantQuota>(&value)) {
                        Some(Ok(quota)) => self.tenant_quotas.insert(&name, quota, version),
                        Some(Err(error)) => tracing::error!(key, %error, "is no quota; set it again"),
                        None => self.tenant_quotas.remove(&name),
                    }
                    self.limit_tenant(&name);
                }
                (DOMAINS, value) => {
                    let record = value.and_then(|value| serde_json::from_slice::<DomainRecord>(&value).ok());
                    self.follow_domain(&key, &name, record, version).await?;
                }
                (super::apps::APPS, value) => {
                    self.follow_app_record(&name, value.as_deref(), version);
                    if let Some((namespace, app)) = name.split_once('/') {
                        for record in self.select(Some(namespace), &LabelSelector::app(app)) {
                            self.behind.add(&record.path());
                        }
                    }
                }
                (super::life::PURGES, value) => self.follow_purge(&name, value.as_deref()),
                (SPREAD, value) => {
                    if let Some(path) = self.follow_spread(&name, value.as_deref(), version) {
                        self.following.services.add(&path);
                    }
                }
                _ => {}
            }
        }
        self.following.more.notify_one();
        match prefix {
            TRIGGERS | BROKERS => self.place_all_triggers().await,
            _ => Ok(()),
        }
    }

    /// Takes over where a mapped host leads now.
    async fn follow_domain(
        self: &Arc<Self>,
        key: &str,
        host: &str,
        record: Option<DomainRecord>,
        version: Version,
    ) -> Result<()> {
        let _changing = self.change(key).await;
        let after = record.as_ref().map(DomainRecord::service);
        let before = self.domains.get(host);
        let left = before.map(|(record, known)| (record.service(), record, known));
        if let Some((service, old, known)) = left.filter(|(service, ..)| after.as_ref() != Some(service)) {
            // The old service lets go of the host before the new one takes it.
            self.domains.remove(host);
            if let Err(error) = self.settle_service(&service).await {
                self.domains.insert(DomainRecord::clone(&old), known);
                return Err(error);
            }
        }
        if let Some(record) = record {
            self.domains.insert(record, version);
        }
        if let Some(service) = after {
            self.following.services.add(&service);
        }
        Ok(())
    }

    /// Everything may be another than it was.
    async fn follow_all(self: &Arc<Self>, prefix: &'static str) -> Result<()> {
        let entries = self.entries(prefix).await?;
        let there: BTreeSet<&str> = entries.iter().map(|entry| &entry.key[prefix.len()..]).collect();
        let known: Vec<String> = match prefix {
            SERVICES => self.records().iter().map(|record| record.path()).collect(),
            DOMAINS => self.domains().iter().map(|record| record.mapping.host.clone()).collect(),
            QUOTAS => self.tenant_quotas.stored_names(),
            SPREAD => self.spreads.keys(),
            super::life::PURGES => self.purges_begun(),
            _ => Vec::new(),
        };
        let gone = known.into_iter().filter(|name| !there.contains(name.as_str()));
        let mut changes: Vec<Change> = gone
            .map(|name| Change { key: format!("{prefix}{name}"), version: Version(0), value: None })
            .collect();
        changes.extend(entries.into_iter().map(|entry| Change {
            key: entry.key,
            version: entry.version,
            value: Some(entry.value),
        }));
        self.follow_changes(prefix, changes).await
    }

    /// Brings what runs of a service up to what the store has of it, and to who acts for it.
    async fn follow_service(self: &Arc<Self>, path: &str) -> Result<()> {
        let _changing = self.change(path).await;
        let stored = self.store.get(&format!("{SERVICES}{path}")).await?;
        let before = self.live(path);
        let known = before.as_ref().map(|live| {
            let state = live.state.lock();
            (state.version, state.record.clone())
        });
        let (version, was) = known.map_or((None, None), |(version, record)| (Some(version), record));
        if stored.as_ref().map(|entry| entry.version) != version || (stored.is_none() && was.is_some()) {
            let now = stored.as_ref().and_then(|entry| ServiceRecord::decode(&entry.key, &entry.value).ok());
            if let (Some(now), Some(live)) = (&now, &before)
                && was.as_ref().is_none_or(|was| was.created_at != now.created_at)
            {
                // Another one of the same name: its revisions have the names of those before, and are others.
                live.state.lock().record = None;
                self.settle(path).await?;
                self.services.remove(path);
            }
            self.read_again(path).await?;
        }
        let record = self.live(path).and_then(|live| live.record());
        if let Some(record) = &record {
            let gone = |name: &str| record.revision(name).is_none();
            if let Some(live) = self.live(path) {
                live.forget(gone);
            }
        }
        self.settle(path).await?;
        match record {
            None => self.services.remove(path),
            Some(record) => {
                let disabled = was.as_ref().is_some_and(|was| was.disabled.is_some());
                if disabled != record.disabled.is_some() {
                    self.hold_triggers(path).await;
                }
                self.check_grants(&record).await;
                // The host that acted before may not have come to it.
                self.follow_app(path).await?;
            }
        }
        Ok(())
    }

    /// Brings what runs of a service up to what is known now.
    pub(super) fn follow_one(&self, path: &str) {
        self.following.services.add(path);
        self.following.more.notify_one();
    }

    /// Whether requests for a service stay at this host although another one acts for it: it runs a part.
    fn keeps(&self, path: &str, observed: &Observed) -> bool {
        matches!(self.place(path), Some(Place::There(_)))
            && !observed.is_away()
            && self.standing(path).part.is_some_and(|part| part.state != PartState::Joining)
    }

    /// Begins to follow what other hosts write, from a version on that all of it was read at or after.
    pub(super) fn follow_others(self: &Arc<Self>, since: Version) {
        for prefix in FOLLOWED_PREFIXES {
            let store = Arc::clone(&self.store);
            let following =
                follow_prefix(Arc::downgrade(self), store, prefix, since, self.lifecycle.stop.clone());
            self.lifecycle.tasks.spawn(following);
        }
        self.lifecycle.tasks.spawn(follow_services(Arc::downgrade(self), self.lifecycle.stop.clone()));
    }
}

async fn follow_prefix(
    control: Weak<Control>,
    store: Arc<dyn Store>,
    prefix: &'static str,
    mut since: Version,
    stop: CancellationToken,
) {
    let mut again = AGAIN;
    loop {
        let watched = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            watched = store.watch(prefix, since) => watched,
        };
        let Some(control) = control.upgrade() else { return };
        let followed = match watched {
            Ok(Watched::Changes(changes)) => {
                let until = changes.last().map_or(since, |change| change.version);
                // What is not done comes once more.
                control.follow_changes(prefix, changes).await.map(|()| since = until)
            }
            Ok(Watched::ListAgain) => match store.version().await {
                Ok(version) => control.follow_all(prefix).await.map(|()| since = version),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = followed {
            tracing::warn!(prefix, error = %error.chain(), "what other hosts write can't be followed; it is tried again");
            drop(control);
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(again) => {}
            }
            again = (again * 2).min(LONGEST_AGAIN);
        } else {
            again = AGAIN;
        }
    }
}

async fn follow_services(control: Weak<Control>, stop: CancellationToken) {
    let mut under_way: BTreeSet<String> = BTreeSet::new();
    let mut tasks: JoinSet<(String, Result<()>)> = JoinSet::new();
    loop {
        {
            let Some(control) = control.upgrade() else { return };
            for path in control.following.services.all() {
                if under_way.len() >= FOLLOWED {
                    break;
                }
                if under_way.insert(path.clone()) {
                    // What changes from now on is followed once more.
                    control.following.services.remove(&path);
                    let control = Arc::clone(&control);
                    tasks.spawn(async move {
                        let followed = control.follow_service(&path).await;
                        if followed.is_err() {
                            tokio::time::sleep(AGAIN).await;
                        }
                        (path, followed)
                    });
                }
            }
        }
        let Some(more) = control.upgrade().map(|control| Arc::clone(&control.following.more)) else { return };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(joined) = tasks.join_next() => {
                let Ok((path, followed)) = joined else { continue };
                under_way.remove(&path);
                let Err(error) = followed else { continue };
                tracing::warn!(service = %path, error = %error.chain(), "what follows of its change is not done");
                // A record that can't be read is no better when it is read again.
                if !matches!(error.kind, ErrorKind::Unsupported | ErrorKind::InvalidSpec)
                    && let Some(control) = control.upgrade()
                {
                    control.following.services.add(&path);
                }
            }
            () = more.notified() => {}
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    }
}
