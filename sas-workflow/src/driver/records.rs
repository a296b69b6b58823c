//! Records and states in the store.
//!
//! `workflow/definition/<namespace>/<name>/<version>` is a document, `workflow/retired/...` of the same name says that no run of it
//! starts any more; `workflow/record/<run>/<number>` is a record, as long as no checkpoint stands for it; `workflow/listens/<run>` says that a run listens, and for which types of events;
//! `workflow/ended/<run>` the output and the error of a run, where they are large: states are listed by the hundred;
//! `workflow/run/<run>` the run's state, written with each record: its
//! version is what two drivers race for. `workflow/told/<run>` says that another host than the one that drives a run has written it, until
//! that one has seen it. A run is `<namespace>/<id>` there.

use std::{collections::BTreeMap, sync::Arc};

use sas_core::{
    Commit, Entry, Error, ErrorKind, Hosts, Place, Result, Store, Version, Watched, commit_as_owner,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::{past::Past, wrong};
use crate::{Definition, Outcome, Record};

/// Whether a run still runs, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Phase {
    /// It runs, or waits.
    Running,
    /// It ended with an output.
    Completed,
    /// It ended with an error.
    Faulted,
    /// It was cancelled.
    Cancelled,
}

/// Which checkpoint of a run counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Checkpoint {
    /// How many records it stands for: those that are kept are those after them.
    pub(crate) records: u64,
    /// In how many values of the store it stands.
    pub(crate) parts: usize,
    /// How many bytes it takes.
    pub(crate) bytes: u64,
}

/// How a run stands, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunState {
    /// The run's id, unique in its namespace.
    pub id: String,
    /// The namespace of the definition and of the run.
    pub namespace: String,
    /// The definition's name.
    pub name: String,
    /// The definition's version.
    pub version: String,
    /// The definition's digest.
    pub digest: String,
    /// Whether it still runs, and how it ended.
    pub phase: Phase,
    /// When it was started, in milliseconds since the epoch.
    pub started: u64,
    /// When the last record was stored.
    pub updated: u64,
    /// How many records it has had.
    pub records: u64,
    /// How many bytes those take that are kept: since its last checkpoint.
    #[serde(default)]
    pub bytes: u64,
    /// What stands for the records before those.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) checkpoint: Option<Checkpoint>,
    /// When the next timer is due.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wakes: Option<u64>,
    /// Whether it waits for something that it asked for.
    pub asks: bool,
    /// The output of a run that completed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub output: Option<Json>,
    /// The error of a run that faulted.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub error: Option<Json>,
    /// Whether output and error stand below a key of their own, and here only what they are.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(crate) apart: bool,
    /// The run that waits for this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) parent: Option<Parent>,
    /// The types of events that it listens for; empty: any. `None`: it listens for none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) listens: Option<Vec<String>>,
    /// Whether it begins no step until it is resumed.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub suspended: bool,
    /// What it was started with to be found by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub labels: BTreeMap<String, String>,
}

impl RunState {
    /// `namespace/id`: what tells the run from all others.
    pub fn path(&self) -> String {
        run_path(&self.namespace, &self.id)
    }

    /// The state as it is listed, and what stands apart from it.
    fn parted(&self) -> (Self, Option<Ended>) {
        let size = |value: &Option<Json>| value.as_ref().map_or(0, |value| value.to_string().len());
        let (output, error) = (size(&self.output), size(&self.error));
        let mut listed = Self { apart: output > APART || error > APART, ..self.clone() };
        if !listed.apart {
            return (listed, None);
        }
        let ended = Ended { output: listed.output.take(), error: listed.error.take() };
        listed.output = ended.output.as_ref().map(|_| json!({ "truncatedBytes": output }));
        listed.error = match &ended.error {
            Some(Json::Object(members)) => Some(short(members, 2 * APART)),
            other => other.as_ref().map(|_| json!({ "truncatedBytes": error })),
        };
        (listed, Some(ended))
    }

    /// How many bytes its records and its checkpoint take.
    pub(super) fn kept_bytes(&self) -> u64 {
        self.checkpoint.map_or(0, |kept| kept.bytes).saturating_add(self.bytes)
    }

    /// Whether a driver has something to do with it.
    pub(super) fn is_driven(&self) -> bool {
        self.phase == Phase::Running && !self.suspended
    }
}

pub(super) fn run_path(namespace: &str, id: &str) -> String {
    format!("{namespace}/{id}")
}

/// Bytes of an output or an error that stand in the state.
const APART: usize = 4 << 10;

/// What came of a run.
#[derive(Serialize, Deserialize)]
struct Ended {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    output: Option<Json>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    error: Option<Json>,
}

/// An error in `most / 2` bytes: of a larger one the standard members, shortened.
pub(super) fn short(error: &Map<String, Json>, most: usize) -> Json {
    if Json::from(error.clone()).to_string().len() <= most / 2 {
        return error.clone().into();
    }
    let names = ["type", "status", "title", "detail", "instance"];
    let kept = names.into_iter().filter_map(|name| {
        let value = match error.get(name)? {
            Json::String(text) => text.chars().take(1_000).collect::<String>().into(),
            number @ Json::Number(_) => number.clone(),
            _ => return None,
        };
        Some((name.to_owned(), value))
    });
    kept.collect::<Map<_, _>>().into()
}

/// A run as the store has it.
pub(super) struct Kept {
    pub(super) state: RunState,
    pub(super) version: Version,
    /// What a checkpoint keeps: of the run, and of its machine.
    pub(super) checkpoint: Option<(Past, String)>,
    /// The number of the first of the records.
    pub(super) first: u64,
    pub(super) records: Vec<Record>,
}

/// What a run is started with, beside its definition.
#[derive(Clone, Debug, Default)]
pub(super) struct Started {
    pub(super) input: Json,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) parent: Option<Parent>,
}

/// Who waits for a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    /// `namespace/id`.
    pub(crate) run: String,
    pub(crate) step: String,
}

/// The events between two states, with the keys under which they wait.
pub(super) type LifeEvents = fn(Option<(&RunState, Version)>, &RunState) -> Vec<(String, String)>;

pub(super) struct Records {
    pub(super) store: Arc<dyn Store>,
    /// Which of several hosts on the store drives which runs.
    pub(super) hosts: Option<Arc<dyn Hosts>>,
    /// What makes the events of the life of runs, where they are to be published.
    pub(super) lifecycle: Option<LifeEvents>,
}

/// Who writes a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Writer {
    /// Who drives it: refused when another host does.
    Driver,
    /// Anybody: whoever drives it is told.
    Anybody,
}

const RUNS: &str = "workflow/run/";
pub(super) const DEFINITIONS: &str = "workflow/definition/";
pub(super) const TOLD: &str = "workflow/told/";

/// Where it stands that a run listens, and for what.
fn listener_key(run: &str) -> String {
    format!("workflow/listens/{run}")
}

fn retired_key(name: &str) -> String {
    format!("workflow/retired/{name}")
}

pub(super) fn ended_key(run: &str) -> String {
    format!("workflow/ended/{run}")
}

pub(super) fn state_key(run: &str) -> String {
    format!("{RUNS}{run}")
}

pub(super) fn record_prefix(run: &str) -> String {
    format!("workflow/record/{run}/")
}

pub(super) fn record_key(run: &str, number: u64) -> String {
    format!("{}{number:020}", record_prefix(run))
}

pub(super) fn encoded(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| wrong(error.to_string()))
}

pub(super) fn decoded<'v, T: Deserialize<'v>>(key: &str, value: &'v [u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        Error::new(ErrorKind::Unexpected, "workflow", format!("{key} in the store cannot be read: {error}"))
    })
}

fn defined(entry: &Entry) -> Result<Definition> {
    Definition::from_json(decoded(&entry.key, &entry.value)?).map_err(|mistakes| {
        Error::new(
            ErrorKind::Unexpected,
            "workflow",
            format!("{} in the store is no definition: {mistakes}", entry.key),
        )
    })
}

impl Records {
    /// Who drives the runs of a namespace: the host that acts for it, as for its triggers and brokers. `None`: this is the only one.
    pub(super) fn place(&self, namespace: &str) -> Option<Place> {
        self.hosts.as_ref().map(|hosts| hosts.place(namespace))
    }

    /// Adds what is to be published of a change.
    fn with_life(&self, commit: Commit, before: Option<(&RunState, Version)>, now: &RunState) -> Commit {
        let Some(events) = self.lifecycle else { return commit };
        events(before, now).into_iter().fold(commit, |commit, (key, event)| commit.put(key, event))
    }

    /// Commits what changes a run.
    pub(super) async fn commit(
        &self,
        (namespace, id): (&str, &str),
        by: Writer,
        commit: Commit,
    ) -> Result<Version> {
        let told = match (by, self.place(namespace)) {
            (Writer::Driver, _) => {
                return commit_as_owner(&*self.store, self.hosts.as_ref(), namespace, commit).await;
            }
            (Writer::Anybody, None) => return self.store.commit(commit).await,
            (Writer::Anybody, Some(Place::Here(guard))) => {
                match self.store.commit(commit.clone().guarded_by(guard)).await {
                    // Another host may have taken over.
                    Err(error) if error.kind == ErrorKind::Conflict => commit,
                    committed => return committed,
                }
            }
            (Writer::Anybody, Some(_)) => commit,
        };
        self.store.commit(told.put(format!("{TOLD}{}", run_path(namespace, id)), "{}")).await
    }

    /// How many bytes a record, or a state, may take: half of what every store takes in a commit.
    pub(super) fn most(&self) -> usize {
        let limits = self.store.limits();
        limits.value_bytes.min(limits.commit_bytes / 2)
    }

    /// Whether it is new.
    pub(super) async fn define(&self, definition: &Definition) -> Result<bool> {
        let name = format!("{}/{}/{}", definition.namespace(), definition.name(), definition.version());
        let key = format!("{DEFINITIONS}{name}");
        let document = definition.document().to_string();
        if document.len() > self.most() {
            let message =
                format!("the definition has {} bytes; this store takes {}", document.len(), self.most());
            return Err(wrong(message));
        }
        match self.store.put(&key, None, document.clone().into()).await {
            Err(error) if error.kind == ErrorKind::Conflict => match self.store.get(&key).await? {
                Some(entry) if entry.value == document => {
                    // A removal that was refused or cut short: it is wanted after all.
                    if let Some(retired) = self.store.get(&retired_key(&name)).await? {
                        self.store.delete(&retired_key(&name), retired.version).await?;
                    }
                    Ok(false)
                }
                _ => {
                    let message = format!("{name} is there with another document; give it another version");
                    Err(Error::new(ErrorKind::Conflict, "workflow", message))
                }
            },
            other => other.map(|_| true),
        }
    }

    /// The definition `namespace/name/version`, and the version of what is stored.
    pub(super) async fn definition(&self, name: &str) -> Result<Option<(Definition, Version)>> {
        let key = format!("{DEFINITIONS}{name}");
        match self.store.get(&key).await? {
            Some(entry) => Ok(Some((defined(&entry)?, entry.version))),
            None => Ok(None),
        }
    }

    /// The names of definitions below a prefix, as `namespace/name/version`, after one of them.
    pub(super) async fn definitions(
        &self,
        below: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Result<Definition>)>> {
        let after = after.map(|after| format!("{DEFINITIONS}{after}"));
        let entries = self.store.list(&format!("{DEFINITIONS}{below}"), after.as_deref(), limit).await?;
        let read = |entry: &Entry| (entry.key[DEFINITIONS.len()..].to_owned(), defined(entry));
        Ok(entries.iter().map(read).collect())
    }

    /// Lets no run of it start from now on. Whoever starts one guards that it is not so.
    pub(super) async fn retire(&self, name: &str) -> Result<()> {
        match self.store.put(&retired_key(name), None, "{}".into()).await {
            Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
            other => other.map(drop),
        }
    }

    /// Takes [`Records::retire`] back.
    pub(super) async fn revive(&self, name: &str) -> Result<()> {
        match self.store.get(&retired_key(name)).await? {
            Some(entry) => self.store.delete(&retired_key(name), entry.version).await,
            None => Ok(()),
        }
    }

    /// Forgets a definition that was retired.
    pub(super) async fn undefine(&self, name: &str, version: Version) -> Result<()> {
        let key = format!("{DEFINITIONS}{name}");
        let commit = Commit::new().guard(&key, Some(version)).delete(&key).delete(retired_key(name));
        self.store.commit(commit).await.map(drop)
    }

    /// The state with all of its output or error.
    pub(super) async fn state(&self, run: &str) -> Result<Option<(RunState, Version)>> {
        let key = ended_key(run);
        loop {
            let Some((mut state, version)) = self.listed(run).await? else { return Ok(None) };
            if !state.apart {
                return Ok(Some((state, version)));
            }
            if let Some(entry) = self.store.get(&key).await? {
                let ended: Ended = decoded(&key, &entry.value)?;
                (state.output, state.error) = (ended.output, ended.error);
                return Ok(Some((state, version)));
            }
            // It went on, or was forgotten, between the two; then the state is another one.
            if self.listed(run).await?.is_some_and(|(_, now)| now == version) {
                return Err(Error::new(
                    ErrorKind::Unexpected,
                    "workflow",
                    format!("{key} is not in the store"),
                ));
            }
        }
    }

    /// The state as it is listed.
    pub(super) async fn listed(&self, run: &str) -> Result<Option<(RunState, Version)>> {
        let key = state_key(run);
        match self.store.get(&key).await? {
            Some(entry) => Ok(Some((decoded(&key, &entry.value)?, entry.version))),
            None => Ok(None),
        }
    }

    /// States of runs whose paths begin with `below`, after the one with the path `after`.
    pub(super) async fn states(
        &self,
        below: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<RunState>> {
        let after = after.map(state_key);
        let entries = self.store.list(&state_key(below), after.as_deref(), limit).await?;
        entries.iter().map(|entry| decoded(&entry.key, &entry.value)).collect()
    }

    /// The state, and of a new run what is stored; `None`: the definition is not as it was read, or not to be started any more.
    pub(super) async fn start(
        &self,
        (definition, defined): (&Definition, Version),
        id: &str,
        started: Started,
        now: u64,
    ) -> Result<Option<(RunState, Option<Kept>)>> {
        let run = run_path(definition.namespace(), id);
        let seed = sas_core::IdempotencyKey::of(&["seed", &run, &now.to_string()]).0;
        let seed = u64::try_from(seed & u128::from(u64::MAX)).unwrap_or_default();
        let record = Record::Started { id: id.to_owned(), input: started.input, seed, at: now };
        let state = RunState {
            id: id.to_owned(),
            namespace: definition.namespace().to_owned(),
            name: definition.name().to_owned(),
            version: definition.version().to_owned(),
            digest: definition.digest().to_owned(),
            phase: Phase::Running,
            started: now,
            updated: now,
            records: 1,
            bytes: 0,
            checkpoint: None,
            wakes: None,
            asks: true,
            output: None,
            error: None,
            apart: false,
            parent: started.parent,
            suspended: false,
            listens: None,
            labels: started.labels,
        };
        let first = encoded(&record)?;
        if first.len() > self.most() {
            return Err(wrong(format!(
                "the input has {} bytes; this store takes {}",
                first.len(),
                self.most()
            )));
        }
        let name = format!("{}/{}/{}", state.namespace, state.name, state.version);
        let state = RunState { bytes: u64::try_from(first.len()).unwrap_or(u64::MAX), ..state };
        let key = state_key(&run);
        let commit = Commit::new()
            .guard(&key, None)
            .guard(format!("{DEFINITIONS}{name}"), Some(defined))
            .guard(retired_key(&name), None)
            .put(record_key(&run, 0), first)
            .put(&key, encoded(&state)?);
        let commit = self.with_life(commit, None, &state);
        match self.commit((&state.namespace, id), Writer::Anybody, commit).await {
            Ok(version) => {
                let (first, records, checkpoint) = (0, vec![record], None);
                let kept = Kept { state: state.clone(), version, checkpoint, first, records };
                Ok(Some((state, Some(kept))))
            }
            Err(error) if error.kind == ErrorKind::Conflict => match self.state(&run).await? {
                Some((other, _)) if other.digest == state.digest => Ok(Some((other, None))),
                Some(_) => {
                    let message = format!("a run of another definition has the id {id:?}");
                    Err(Error::new(ErrorKind::Conflict, "workflow", message))
                }
                None if self.store.get(&retired_key(&name)).await?.is_some() => {
                    let message = format!(
                        "the workflow {}/{} {} is being deleted",
                        state.namespace, state.name, state.version
                    );
                    Err(Error::new(ErrorKind::Conflict, "workflow", message))
                }
                None => Ok(None),
            },
            Err(error) => Err(error),
        }
    }

    /// Guards that a definition is as it was read, and that runs of it may start.
    pub(super) fn startable(&self, name: &str, defined: Version) -> Commit {
        Commit::new().guard(format!("{DEFINITIONS}{name}"), Some(defined)).guard(retired_key(name), None)
    }

    /// Whether no run of a definition starts any more.
    pub(super) async fn is_retired(&self, name: &str) -> Result<bool> {
        Ok(self.store.get(&retired_key(name)).await?.is_some())
    }

    /// Appends these, the last of which is the last of the state's, if the state is still of this version, and what `guarded` guards
    /// holds.
    pub(super) async fn append(
        &self,
        (by, guarded): (Writer, Commit),
        records: &[Record],
        before: &RunState,
        state: &RunState,
        expected: Version,
    ) -> Result<Version> {
        let run = state.path();
        let first = state.records - u64::try_from(records.len()).unwrap_or_default();
        let mut commit = guarded.guard(state_key(&run), Some(expected));
        for (number, record) in (first..).zip(records) {
            commit = commit.put(record_key(&run, number), encoded(record)?);
        }
        // Who is told of events: in the same commit, so that no listener is forgotten.
        let commit = match &state.listens {
            now if *now == before.listens => commit,
            Some(types) => commit.put(listener_key(&run), encoded(types)?),
            None => commit.delete(listener_key(&run)),
        };
        let (listed, ended) = state.parted();
        let commit = match ended {
            Some(ended) => commit.put(ended_key(&run), encoded(&ended)?),
            None if state.apart => commit.delete(ended_key(&run)),
            None => commit,
        };
        let commit = self.with_life(commit, Some((before, expected)), state);
        let commit = commit.put(state_key(&run), encoded(&listed)?);
        self.commit((&state.namespace, &state.id), by, commit).await
    }

    /// The runs of a namespace that listen, by their ids, with the types that they listen for.
    pub(super) async fn listeners(
        &self,
        namespace: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<(String, Vec<String>)>> {
        let prefix = listener_key(&run_path(namespace, ""));
        let after = after.map(|id| format!("{prefix}{id}"));
        let entries = self.store.list(&prefix, after.as_deref(), limit).await?;
        let read =
            |entry: &Entry| Ok((entry.key[prefix.len()..].to_owned(), decoded(&entry.key, &entry.value)?));
        entries.iter().map(read).collect()
    }

    /// Writes the state, if it is still of this version.
    pub(super) async fn restate(
        &self,
        by: Writer,
        before: &RunState,
        state: &RunState,
        expected: Version,
    ) -> Result<Version> {
        self.append((by, Commit::new()), &[], before, state, expected).await
    }

    /// The record, or what stands for it where it is too large to be stored; and its bytes.
    pub(super) fn fitting(&self, record: Record) -> Result<(Record, u64)> {
        let size = encoded(&record)?.len();
        let bytes = u64::try_from(size).unwrap_or(u64::MAX);
        if size <= self.most() {
            return Ok((record, bytes));
        }
        let reason = format!("what came has {size} bytes; this store takes {}", self.most());
        match record {
            Record::Done { step, at, .. } => {
                Ok((Record::Done { step, outcome: Outcome::Failed { reason }, at }, 1_000))
            }
            _ => Err(wrong(reason)),
        }
    }

    pub(super) async fn ended(&self, run: &str) -> Result<RunState> {
        let key = state_key(run);
        loop {
            let since = self.store.version().await?;
            match self.state(run).await? {
                None => {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        "workflow",
                        format!("there is no run {run:?}"),
                    ));
                }
                Some((state, _)) if state.phase != Phase::Running => return Ok(state),
                Some(_) => match self.store.watch(&key, since).await? {
                    Watched::Changes(_) | Watched::ListAgain => {}
                },
            }
        }
    }
}
