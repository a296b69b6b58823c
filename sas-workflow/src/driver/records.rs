//! Records and states in the store.
//!
//! `workflow/definition/<namespace>/<name>/<version>` is a document; `workflow/record/<run>/<number>` a record;
//! `workflow/run/<run>` the run's state, written with each record: its version is what two drivers race for.

use std::sync::Arc;

use sas_core::{Commit, Error, ErrorKind, Result, Store, Version, Watched};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::wrong;
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

/// How a run stands, as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunState {
    /// The run's id.
    pub id: String,
    /// The definition's namespace.
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
    /// How many records there are.
    pub records: u64,
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
    /// The run that waits for this one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) parent: Option<Parent>,
}

/// Who waits for a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Parent {
    pub(crate) run: String,
    pub(crate) step: String,
}

pub(super) struct Records {
    pub(super) store: Arc<dyn Store>,
}

const RUNS: &str = "workflow/run/";

fn state_key(run: &str) -> String {
    format!("{RUNS}{run}")
}

fn record_key(run: &str, number: u64) -> String {
    format!("workflow/record/{run}/{number:020}")
}

fn encoded(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| wrong(error.to_string()))
}

fn decoded<'v, T: Deserialize<'v>>(key: &str, value: &'v [u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        Error::new(ErrorKind::Unexpected, "workflow", format!("{key} in the store cannot be read: {error}"))
    })
}

impl Records {
    /// How many bytes a record, or a state, may take: half of what every store takes in a commit.
    pub(super) fn most(&self) -> usize {
        let limits = self.store.limits();
        limits.value_bytes.min(limits.commit_bytes / 2)
    }

    pub(super) async fn define(&self, definition: &Definition) -> Result<()> {
        let name = format!("{}/{}/{}", definition.namespace(), definition.name(), definition.version());
        let key = format!("workflow/definition/{name}");
        let document = definition.document().to_string();
        if document.len() > self.most() {
            let message =
                format!("the definition has {} bytes; this store takes {}", document.len(), self.most());
            return Err(wrong(message));
        }
        match self.store.put(&key, None, document.clone().into()).await {
            Err(error) if error.kind == ErrorKind::Conflict => match self.store.get(&key).await? {
                Some(entry) if entry.value == document => Ok(()),
                _ => {
                    let message = format!("{name} is there with another document; give it another version");
                    Err(Error::new(ErrorKind::Conflict, "workflow", message))
                }
            },
            other => other.map(drop),
        }
    }

    pub(super) async fn definition(&self, name: &str) -> Result<Option<Definition>> {
        let key = format!("workflow/definition/{name}");
        let Some(entry) = self.store.get(&key).await? else { return Ok(None) };
        let document = decoded(&key, &entry.value)?;
        Definition::from_json(document).map(Some).map_err(|mistakes| {
            Error::new(
                ErrorKind::Unexpected,
                "workflow",
                format!("{key} in the store is no definition: {mistakes}"),
            )
        })
    }

    pub(super) async fn state(&self, run: &str) -> Result<Option<(RunState, Version)>> {
        let key = state_key(run);
        match self.store.get(&key).await? {
            Some(entry) => Ok(Some((decoded(&key, &entry.value)?, entry.version))),
            None => Ok(None),
        }
    }

    pub(super) async fn states(&self, after: Option<&str>, limit: usize) -> Result<Vec<RunState>> {
        let after = after.map(state_key);
        let entries = self.store.list(RUNS, after.as_deref(), limit).await?;
        entries.iter().map(|entry| decoded(&entry.key, &entry.value)).collect()
    }

    pub(super) async fn history(&self, run: &str) -> Result<Vec<Record>> {
        let prefix = format!("workflow/record/{run}/");
        let mut records = Vec::new();
        let mut after: Option<String> = None;
        loop {
            let page = self.store.list(&prefix, after.as_deref(), 500).await?;
            let Some(last) = page.last() else { return Ok(records) };
            after = Some(last.key.clone());
            for entry in &page {
                records.push(decoded(&entry.key, &entry.value)?);
            }
        }
    }

    /// The state, and whether the run is new.
    pub(super) async fn start(
        &self,
        definition: &Definition,
        run: &str,
        input: Json,
        parent: Option<Parent>,
        now: u64,
    ) -> Result<(RunState, bool)> {
        let seed = sas_core::IdempotencyKey::of(&["seed", run, &now.to_string()]).0;
        let seed = u64::try_from(seed & u128::from(u64::MAX)).unwrap_or_default();
        let record = Record::Started { id: run.to_owned(), input, seed, at: now };
        let state = RunState {
            id: run.to_owned(),
            namespace: definition.namespace().to_owned(),
            name: definition.name().to_owned(),
            version: definition.version().to_owned(),
            digest: definition.digest().to_owned(),
            phase: Phase::Running,
            started: now,
            updated: now,
            records: 1,
            wakes: None,
            asks: true,
            output: None,
            error: None,
            parent,
        };
        let first = encoded(&record)?;
        if first.len() > self.most() {
            return Err(wrong(format!(
                "the input has {} bytes; this store takes {}",
                first.len(),
                self.most()
            )));
        }
        let key = state_key(run);
        let commit =
            Commit::new().guard(&key, None).put(record_key(run, 0), first).put(&key, encoded(&state)?);
        match self.store.commit(commit).await {
            Ok(_) => Ok((state, true)),
            Err(error) if error.kind == ErrorKind::Conflict => match self.state(run).await? {
                Some((other, _)) if other.digest == state.digest => Ok((other, false)),
                _ => {
                    let message = format!("a run of another definition has the id {run:?}");
                    Err(Error::new(ErrorKind::Conflict, "workflow", message))
                }
            },
            Err(error) => Err(error),
        }
    }

    /// Appends a record and writes the state that it makes, if the state is still of this version.
    pub(super) async fn append(
        &self,
        record: &Record,
        state: &RunState,
        expected: Version,
    ) -> Result<Version> {
        let key = state_key(&state.id);
        let number = record_key(&state.id, state.records - 1);
        let commit = Commit::new()
            .guard(&key, Some(expected))
            .put(number, encoded(record)?)
            .put(&key, encoded(state)?);
        self.store.commit(commit).await
    }

    /// Writes the state, if it is still of this version.
    pub(super) async fn restate(&self, state: &RunState, expected: Version) -> Result<Version> {
        self.store.put(&state_key(&state.id), Some(expected), encoded(state)?.into()).await
    }

    /// The record, or what stands for it where it is too large to be stored.
    pub(super) fn fitting(&self, record: Record) -> Result<Record> {
        let size = encoded(&record)?.len();
        if size <= self.most() {
            return Ok(record);
        }
        let reason = format!("what came has {size} bytes; this store takes {}", self.most());
        match record {
            Record::Done { step, at, .. } => {
                Ok(Record::Done { step, outcome: Outcome::Failed { reason }, at })
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
