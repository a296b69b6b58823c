//! Apps: the environment that the services of one have in common, in versions, rolled out as revisions.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use sas_core::{
    EnvValue, Error, ErrorKind, Principal, Result, RevisionSpec, Source, SpecErrors, Timestamp, Version,
};
use serde::{Deserialize, Serialize};

use super::{Control, Recovery, identity::identity, invalid, life::check_reason, precondition, refused};
use crate::{
    labels::LabelSelector,
    record::{AppEnv, RevisionRecord, RevisionState, ServiceRecord},
};

/// Where environments of apps are in the store.
pub(super) const APPS: &str = "app/";
/// The format of the records that this version writes.
const FORMAT: u16 = 1;
/// Versions of an environment that are kept.
const VERSIONS: usize = 50;
/// Variables of an environment.
const VARIABLES: usize = 512;
/// Bytes of all names and values of one.
const BYTES: usize = 256 << 10;

/// The environment of an app, as the store holds it under `app/<namespace>/<app>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct AppRecord {
    /// The version of this format.
    pub format: u16,
    /// The namespace that it is in.
    pub namespace: String,
    /// The app: what its services have as the label `sas.dev/app`.
    pub app: String,
    /// Versions of its environment, youngest last; the last is in force. The 50 youngest are kept.
    pub versions: Vec<EnvVersion>,
}

/// One version of the environment of an app. It never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EnvVersion {
    /// Counts from 1.
    pub version: u64,
    /// When it was made.
    pub at: Timestamp,
    /// Who made it, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<Principal>,
    /// Why, where that was said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The earlier version that it goes back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reverts_to: Option<u64>,
    /// The variables: values, and references to secrets.
    pub env: BTreeMap<String, EnvValue>,
}

impl AppRecord {
    /// The version that is in force.
    pub fn current(&self) -> Option<&EnvVersion> {
        self.versions.last()
    }
}

/// Apps with an environment, by `namespace/app`.
#[derive(Debug, Default)]
pub(super) struct Apps(Mutex<BTreeMap<String, (Arc<AppRecord>, Version)>>);

/// The spec without what came from its app.
fn own_spec(revision: &RevisionRecord) -> RevisionSpec {
    let mut spec = RevisionSpec::clone(&revision.spec);
    for name in revision.app_env.iter().flat_map(|env| &env.names) {
        spec.env.remove(name);
    }
    spec
}

/// Gives a spec the variables of its app that it has not itself.
fn with_env(spec: &mut RevisionSpec, app: &AppRecord) -> Option<AppEnv> {
    let current = app.current()?;
    let mut names = Vec::new();
    for (name, value) in &current.env {
        if !spec.env.contains_key(name) {
            spec.env.insert(name.clone(), value.clone());
            names.push(name.clone());
        }
    }
    Some(AppEnv { app: app.app.clone(), version: current.version, names })
}

/// Whether a revision is `own` in all but the environment of its app.
pub(super) fn differs_by_app_only(revision: &RevisionRecord, own: &str) -> bool {
    identity(&own_spec(revision), revision.package.as_deref()).is_ok_and(|digest| digest == own)
}

impl Control {
    /// The environment of an app; `None`: it has none.
    pub fn app(&self, namespace: &str, app: &str) -> Option<Arc<AppRecord>> {
        self.apps.0.lock().get(&format!("{namespace}/{app}")).map(|(record, _)| Arc::clone(record))
    }

    /// The version of the environment of an app.
    pub(crate) fn app_version(&self, namespace: &str, app: &str) -> Option<Version> {
        self.apps.0.lock().get(&format!("{namespace}/{app}")).map(|(_, version)| *version)
    }

    /// The apps of a namespace that have an environment.
    pub(super) fn apps_of(&self, namespace: &str) -> Vec<String> {
        let apps = self.apps.0.lock();
        let own = apps.values().filter(|(record, _)| record.namespace == namespace);
        own.map(|(record, _)| record.app.clone()).collect()
    }

    /// All apps that have an environment or a service, as namespace and name.
    pub fn apps(&self) -> std::collections::BTreeSet<(String, String)> {
        let mut apps: std::collections::BTreeSet<_> = {
            let apps = self.apps.0.lock();
            apps.values().map(|(record, _)| (record.namespace.clone(), record.app.clone())).collect()
        };
        let records = self.records();
        apps.extend(records.iter().filter_map(|r| Some((r.namespace.clone(), r.app()?.to_owned()))));
        apps
    }

    /// Adds the environment of its app to a spec.
    pub(super) fn add_app_env(
        &self,
        namespace: &str,
        app: Option<&str>,
        spec: &mut RevisionSpec,
    ) -> Option<AppEnv> {
        with_env(spec, self.app(namespace, app?)?.as_ref())
    }

    /// Gives an app an environment: the variables that all its services have which do not set them themselves. Each of
    /// its services gets a new revision, which takes the traffic as its roll-out says. The version is kept with who made
    /// it, when and why.
    ///
    /// **Cancel safety:** what was stored is done all the same, at the latest after a restart.
    ///
    /// # Errors
    /// `InvalidSpec` with fields for names and values that no environment can have, and too many; `Unavailable` when the
    /// store fails. That a service can't run with it is no error here: its condition says so, and it keeps serving as it
    /// did.
    pub async fn set_app_env(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        app: &str,
        env: BTreeMap<String, EnvValue>,
        reason: Option<&str>,
    ) -> Result<Arc<AppRecord>> {
        check_env(&env)?;
        self.change_app(by, namespace, app, reason, |_| Ok((env, None))).await
    }

    /// Goes back to an earlier version of the environment of an app, as a new version with its variables.
    ///
    /// # Errors
    /// `NotFound` when there is no such version, or none any more; otherwise as [`Control::set_app_env`].
    pub async fn revert_app_env(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        app: &str,
        version: u64,
        reason: Option<&str>,
    ) -> Result<Arc<AppRecord>> {
        self.change_app(by, namespace, app, reason, |record| {
            let found = record.and_then(|record| record.versions.iter().find(|v| v.version == version));
            match found {
                Some(found) => Ok((found.env.clone(), Some(version))),
                None => {
                    let message = format!("{namespace}/{app} has no version {version} of its environment");
                    Err(Error::new(ErrorKind::NotFound, "environment", message))
                }
            }
        })
        .await
    }

    async fn change_app(
        self: &Arc<Self>,
        by: Option<&Principal>,
        namespace: &str,
        app: &str,
        reason: Option<&str>,
        env: impl FnOnce(Option<&AppRecord>) -> Result<(BTreeMap<String, EnvValue>, Option<u64>)>,
    ) -> Result<Arc<AppRecord>> {
        self.open()?;
        check_reason(reason)?;
        for (field, value) in [("namespace", namespace), ("app", app)] {
            if !sas_knative::manifest::is_label(value) {
                return Err(invalid("environment", field, value, sas_knative::manifest::LABEL));
            }
        }
        self.tenant(namespace).await?;
        let path = format!("{namespace}/{app}");
        let key = format!("{APPS}{path}");
        // The same turn as that of a service of no such name.
        let _changing = self.change(&key).await;
        self.check_purges(namespace, Some(app))?;
        // What is stored, and not what is remembered: an earlier write may have failed only for who asked for it.
        let stored = self.store.get(&key).await?;
        precondition::check(
            &format!("the environment of {path}"),
            stored.as_ref().map(|entry| entry.version),
        )?;
        let before = match &stored {
            Some(entry) => decode(&entry.key, &entry.value).ok(),
            None => None,
        };
        let (env, reverts_to) = env(before.as_ref())?;
        let mut record = before.unwrap_or_else(|| AppRecord {
            format: FORMAT,
            namespace: namespace.to_owned(),
            app: app.to_owned(),
            versions: Vec::new(),
        });
        let version = record.current().map_or(1, |current| current.version + 1);
        let at = self.clock.now();
        let reason = reason.map(str::to_owned);
        record.versions.push(EnvVersion { version, at, by: by.cloned(), reason, reverts_to, env });
        let surplus = record.versions.len().saturating_sub(VERSIONS);
        record.versions.drain(..surplus);
        let value = serde_json::to_vec(&record).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "environment", format!("{key} can't be written: {error}"))
        })?;
        let version = self.store.put(&key, stored.map(|entry| entry.version), value.into()).await?;
        let record = Arc::new(record);
        self.apps.0.lock().insert(path.clone(), (Arc::clone(&record), version));
        tracing::info!(app = path, version = record.current().map(|v| v.version), "environment changed");
        for service in self.select(Some(namespace), &LabelSelector::app(app)) {
            let path = service.path();
            let _changing = self.change(&path).await;
            if let Err(error) = self.follow_app(&path).await {
                // Housekeeping and the next start go on with it.
                self.behind.add(&path);
                tracing::warn!(service = %path, error = %error.chain(), "has not the new environment yet");
            }
        }
        Ok(record)
    }

    /// Gives a service a revision with the environment that its app has now, if its latest one has another. The caller has
    /// the turn.
    pub(super) async fn follow_app(self: &Arc<Self>, path: &str) -> Result<()> {
        let Some(before) = self.live(path).and_then(|live| live.record()) else { return Ok(()) };
        // One host makes the revision.
        if !self.acts_for(path) {
            return Ok(());
        }
        let Some(latest) = before.latest_created() else { return Ok(()) };
        let mut spec = own_spec(latest);
        let app_env = self.add_app_env(&before.namespace, before.app(), &mut spec);
        if app_env == latest.app_env {
            return Ok(());
        }
        let digest = identity(&spec, latest.package.as_deref())?;
        let mut record = ServiceRecord::clone(&before);
        if digest == latest.digest {
            // It sets all of it itself.
            if let Some(latest) = record.revisions.last_mut() {
                latest.app_env = app_env;
            }
            self.save(path, record, false).await?;
            return self.settle(path).await;
        }
        let current = self.app(&before.namespace, before.app().unwrap_or_default());
        let current = current.as_ref().and_then(|app| app.current());
        let why = match (&app_env, current.and_then(|current| current.reason.as_deref())) {
            (Some(env), Some(reason)) => format!("environment {} of {}: {reason}", env.version, env.app),
            (Some(env), None) => format!("environment {} of {}", env.version, env.app),
            (None, _) => "its app has no environment any more".to_owned(),
        };
        let author = current.and_then(|current| current.by.clone());
        record.generation += 1;
        record.changed_by.clone_from(&author);
        let (name, next) = record.next_name();
        record.next_number = next;
        let revision = RevisionRecord {
            name,
            generation: record.generation,
            created_at: self.clock.now(),
            digest,
            artifact: None,
            spec: Arc::new(spec),
            state: RevisionState::Pending,
            notes: Vec::new(),
            retired_at: None,
            author,
            reason: Some(why),
            app_env,
            ..latest.clone()
        };
        record.revisions.push(revision);
        self.save(path, record, false).await?;
        self.settle(path).await
    }

    /// Services whose latest revision has not the environment of its app: a kill came between.
    pub(super) async fn follow_apps(self: &Arc<Self>) {
        for path in self.behind.all() {
            let _changing = self.change(&path).await;
            match self.follow_app(&path).await {
                Ok(()) => self.behind.remove(&path),
                Err(error) => {
                    tracing::warn!(service = %path, error = %error.chain(), "has not the environment of its app yet");
                }
            }
        }
    }

    /// Takes over what another host wrote of an app's environment.
    pub(super) fn follow_app_record(&self, path: &str, value: Option<&[u8]>, version: Version) {
        let mut apps = self.apps.0.lock();
        match value.map(|value| decode(path, value)) {
            Some(Ok(record)) => {
                apps.insert(path.to_owned(), (Arc::new(record), version));
            }
            Some(Err(error)) => {
                tracing::error!(app = path, error = %error.chain(), "its environment stays as it was")
            }
            None => {
                apps.remove(path);
            }
        }
    }

    pub(super) async fn recover_apps(&self, recovery: &mut Recovery) -> Result<()> {
        for entry in self.entries(APPS).await? {
            let path = entry.key[APPS.len()..].to_owned();
            match decode(&entry.key, &entry.value) {
                Ok(record) => {
                    self.apps.0.lock().insert(path, (Arc::new(record), entry.version));
                }
                Err(error) => recovery.failed.push((format!("App {path}"), Arc::new(error))),
            }
        }
        Ok(())
    }

    /// Notes which services have not the environment of their app, once both are read.
    pub(super) fn note_behind(&self) {
        for record in self.records() {
            let known = record.app().and_then(|app| self.app(&record.namespace, app));
            let is = known.as_ref().and_then(|app| app.current()).map(|current| current.version);
            let has =
                record.latest_created().and_then(|latest| latest.app_env.as_ref()).map(|env| env.version);
            // An environment that can't be read is none that was taken away.
            if is.is_some() && is != has {
                self.behind.add(&record.path());
            }
        }
    }

    /// Forgets the environment of an app.
    pub(super) async fn forget_app(&self, namespace: &str, app: &str) -> Result<()> {
        let path = format!("{namespace}/{app}");
        let key = format!("{APPS}{path}");
        let _changing = self.change(&key).await;
        if let Some(entry) = self.store.get(&key).await? {
            self.store.delete(&key, entry.version).await?;
        }
        self.apps.0.lock().remove(&path);
        Ok(())
    }
}

/// # Errors
/// `Unsupported` for a record of another version, `InvalidSpec` for what is no record.
fn decode(key: &str, value: &[u8]) -> Result<AppRecord> {
    let record: AppRecord = serde_json::from_slice(value).map_err(|error| {
        let message = format!("{key} is not an app's record: {error}; set its environment again");
        Error::new(ErrorKind::InvalidSpec, "recover", message)
    })?;
    if record.format != FORMAT {
        let message = format!("{key} has format {}; this version reads {FORMAT}", record.format);
        return Err(Error::new(ErrorKind::Unsupported, "recover", message));
    }
    Ok(record)
}

fn check_env(env: &BTreeMap<String, EnvValue>) -> Result<()> {
    let mut probe = RevisionSpec::new("", Source::Path(".".into()));
    probe.env.clone_from(env);
    let found = probe.validate().err().unwrap_or_default();
    let mut errors = SpecErrors::default();
    for error in found.0.into_iter().filter(|error| error.field.starts_with("env")) {
        errors.push(error.field, error.value, error.problem);
    }
    if env.len() > VARIABLES {
        errors.push("env", format!("{} variables", env.len()), format!("must be at most {VARIABLES}"));
    }
    let bytes: usize = env
        .iter()
        .map(|(name, value)| {
            name.len()
                + match value {
                    EnvValue::Literal(text) | EnvValue::Secret(text) => text.len(),
                    _ => 0,
                }
        })
        .sum();
    if bytes > BYTES {
        errors.push("env", format!("{bytes} bytes"), format!("must be at most {BYTES}"));
    }
    if errors.is_empty() { Ok(()) } else { Err(refused("environment", errors)) }
}
