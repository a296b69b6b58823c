//! Workflows as the control plane sees them: definitions, runs, and what an operator does with these.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{Error, Result, SpecErrors};

/// A definition of a workflow as it is declared: its document in the Open Workflow DSL, and where it belongs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct WorkflowSpec {
    /// The namespace, which is the tenant.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
    /// The version, as in `1.0.0`: it names one document for ever.
    pub version: String,
    /// The whole document; its head says the same names and version.
    pub document: Json,
}

impl WorkflowSpec {
    /// The definition of this document.
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        version: impl Into<String>,
        document: Json,
    ) -> Self {
        Self { namespace: namespace.into(), name: name.into(), version: version.into(), document }
    }

    /// `namespace/name version`, for people.
    pub fn shown(&self) -> String {
        format!("{}/{} {}", self.namespace, self.name, self.version)
    }
}

/// A definition as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct WorkflowInfo {
    /// The namespace, which is the tenant.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
    /// The version of the document.
    pub version: String,
    /// The SHA-256 of the document: runs are pinned to it.
    pub digest: String,
    /// What of it cannot be run here, each with its place and why. Empty for most.
    pub refused: Vec<String>,
    /// When runs are started by themselves, in words; `null`: only when somebody asks.
    pub schedule: Option<String>,
}

impl WorkflowInfo {
    /// A definition that is run as a whole, when somebody asks.
    pub fn new(
        namespace: impl Into<String>,
        name: impl Into<String>,
        version: impl Into<String>,
        digest: impl Into<String>,
    ) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
            version: version.into(),
            digest: digest.into(),
            refused: Vec::new(),
            schedule: None,
        }
    }
}

/// A run that is to be started.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct RunStart {
    /// The namespace of the definition, and of the run.
    pub namespace: String,
    /// The definition's name.
    pub workflow: String,
    /// The definition's version; `None`: the greatest one that is there.
    pub version: Option<String>,
    /// The caller's id, which makes the start idempotent; `None`: one is made up.
    pub id: Option<String>,
    /// What the run gets.
    pub input: Json,
    /// What the run can be found by.
    pub labels: BTreeMap<String, String>,
}

impl RunStart {
    /// A run of the greatest version, under an id that is made up.
    pub fn new(namespace: impl Into<String>, workflow: impl Into<String>, input: Json) -> Self {
        Self {
            namespace: namespace.into(),
            workflow: workflow.into(),
            version: None,
            id: None,
            input,
            labels: BTreeMap::new(),
        }
    }
}

/// How a run stands, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum RunStatus {
    /// It runs, or waits.
    Running,
    /// It begins no step until it is resumed.
    Suspended,
    /// It ended with an output.
    Completed,
    /// It ended with an error.
    Faulted,
    /// It was cancelled.
    Cancelled,
}

impl RunStatus {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Running, Self::Suspended, Self::Completed, Self::Faulted, Self::Cancelled];

    /// As it is written.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Completed => "completed",
            Self::Faulted => "faulted",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing happens any more, unless somebody lets it.
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Faulted | Self::Cancelled)
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A run, and how it stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RunView {
    /// The namespace, which is the tenant.
    pub namespace: String,
    /// The run's id, unique in the namespace.
    pub id: String,
    /// The name of the definition.
    pub workflow: String,
    /// The version of the definition.
    pub version: String,
    /// How it stands.
    pub status: RunStatus,
    /// When it was started, in RFC 3339.
    pub started_at: String,
    /// When it last went on, in RFC 3339.
    pub updated_at: String,
    /// When its next timer is due, in RFC 3339; `null`: it waits for no time.
    pub next_timer: Option<String>,
    /// Records that it is made of.
    pub records: u64,
    /// What it was started with to be found by.
    pub labels: BTreeMap<String, String>,
    /// What came out of it; `null` until it completed. A large one is cut: an object with `truncatedBytes`.
    #[cfg_attr(feature = "schema", schema(value_type = Object, nullable = true))]
    pub output: Json,
    /// The error that it ended with; `null` otherwise.
    #[cfg_attr(feature = "schema", schema(value_type = Object, nullable = true))]
    pub error: Json,
    /// The run that waits for this one; `null`: none.
    pub parent: Option<String>,
}

impl RunView {
    /// A run that was just started.
    pub fn new(
        namespace: impl Into<String>,
        id: impl Into<String>,
        workflow: impl Into<String>,
        version: impl Into<String>,
        started_at: impl Into<String>,
    ) -> Self {
        let started_at = started_at.into();
        Self {
            namespace: namespace.into(),
            id: id.into(),
            workflow: workflow.into(),
            version: version.into(),
            status: RunStatus::Running,
            updated_at: started_at.clone(),
            started_at,
            next_timer: None,
            records: 1,
            labels: BTreeMap::new(),
            output: Json::Null,
            error: Json::Null,
            parent: None,
        }
    }
}

/// Which runs are listed.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RunQuery {
    /// Those of this namespace.
    pub namespace: String,
    /// Those of this definition.
    pub workflow: Option<String>,
    /// Those of this version.
    pub version: Option<String>,
    /// Those that stand so.
    pub status: Option<RunStatus>,
    /// Those that have this label, with this value.
    pub label: Option<(String, String)>,
    /// Those whose error holds this text.
    pub error: Option<String>,
    /// Those started at this time or later, in milliseconds since the epoch.
    pub started_after: Option<u64>,
    /// Those started before this time.
    pub started_before: Option<u64>,
    /// Those whose ids come after this one.
    pub after: Option<String>,
    /// At most so many.
    pub limit: usize,
}

impl RunQuery {
    /// The first hundred runs of a namespace.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            workflow: None,
            version: None,
            status: None,
            label: None,
            error: None,
            started_after: None,
            started_before: None,
            after: None,
            limit: 100,
        }
    }
}

/// A page of runs, by their ids.
#[derive(Clone, Debug, PartialEq, Default)]
#[non_exhaustive]
pub struct RunPage {
    /// Those that fit.
    pub runs: Vec<RunView>,
    /// Where the next page begins; `None`: there is none. A search looks at a bounded number of runs, so that a page may hold
    /// fewer than were asked for, and none, and still have a next one.
    pub next: Option<String>,
}

/// A step that a run came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct StepView {
    /// Its id: the task's place, with rounds and attempts.
    pub step: String,
    /// The task's name.
    pub task: String,
    /// The task's place in the definition, as a JSON pointer.
    pub pointer: String,
    /// When the run came to it, in RFC 3339.
    pub at: String,
    /// When what it asked for was done; `null`: it asked for nothing, or is not done.
    pub done_at: Option<String>,
    /// `active`, `answered`, `failed`, or `passed` for those that ask for nothing.
    pub state: &'static str,
    /// What it asked for waits for: `call`, `invoke`, `timer`, `emit`, `event` or `workflow`; `null`: nothing.
    pub waits_for: Option<&'static str>,
    /// How often what it asks for was begun anew by an operator.
    pub retries: u64,
    /// What came of what it asked for, cut where it is large; `null`: nothing.
    #[cfg_attr(feature = "schema", schema(value_type = Object, nullable = true))]
    pub outcome: Json,
}

impl StepView {
    /// A step that asks for nothing.
    pub fn new(
        step: impl Into<String>,
        task: impl Into<String>,
        pointer: impl Into<String>,
        at: impl Into<String>,
    ) -> Self {
        Self {
            step: step.into(),
            task: task.into(),
            pointer: pointer.into(),
            at: at.into(),
            done_at: None,
            state: "passed",
            waits_for: None,
            retries: 0,
            outcome: Json::Null,
        }
    }
}

/// A run with its path.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct RunDetail {
    /// How it stands.
    #[serde(flatten)]
    pub run: RunView,
    /// What it was started with, cut where it is large.
    #[cfg_attr(feature = "schema", schema(value_type = Object, nullable = true))]
    pub input: Json,
    /// The steps that it came to, in order: the last ones, when there are more than a thousand.
    pub steps: Vec<StepView>,
    /// Steps that came before those.
    pub earlier_steps: usize,
    /// Why its path cannot be told now; `null`: it is told.
    pub unreadable: Option<String>,
}

impl RunDetail {
    /// A run without its path.
    pub fn new(run: RunView) -> Self {
        Self { run, input: Json::Null, steps: Vec::new(), earlier_steps: 0, unreadable: None }
    }
}

/// A run that does not go on, as a diagnosis tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StuckRun {
    /// The namespace, which is the tenant.
    pub namespace: String,
    /// The run's id, unique in the namespace.
    pub id: String,
    /// `unreadable`: its definition or its records cannot be read; `late`: its timer was due and nobody told it; `silent`: what it asked
    /// for was not answered for long.
    pub why: &'static str,
    /// The same for a person.
    pub message: String,
    /// When it went on last, in RFC 3339; `None`: it is not known.
    pub since: Option<String>,
}

impl StuckRun {
    /// A run that does not go on.
    pub fn new(
        namespace: impl Into<String>,
        id: impl Into<String>,
        why: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { namespace: namespace.into(), id: id.into(), why, message: message.into(), since: None }
    }
}

/// What is done with a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum RunAction {
    /// It begins no step from now on; what is under way ends, and what comes is kept.
    Suspend,
    /// It goes on.
    Resume,
    /// It ends where it is.
    Cancel,
    /// A run that ended with an error goes on from the step that last asked for something, which is asked for again.
    Retry,
    /// A step that the run waits for, or that it faulted at, counts as done, with this output.
    Skip {
        /// The step's id.
        step: String,
        /// What it is taken to have given.
        output: Json,
    },
    /// It is told of this event, in the JSON format of CloudEvents.
    Event(Json),
}

/// Keeps definitions of workflows and runs them; the facade's is one, over `sas-workflow`.
///
/// A control plane asks it for what its admin API offers. It stores what it is given, and comes back with it after a restart.
#[async_trait]
pub trait WorkflowHost: fmt::Debug + Send + Sync + 'static {
    /// Checks a definition.
    ///
    /// # Errors
    /// All mistakes at once; fields are paths into the document.
    fn check(&self, spec: &WorkflowSpec) -> std::result::Result<(), SpecErrors>;

    /// Stores a definition. Whether it is new: the same document again changes nothing.
    ///
    /// # Errors
    /// `InvalidSpec` as [`WorkflowHost::check`]; `Conflict` when the version has another document; the store's.
    async fn apply(&self, spec: &WorkflowSpec) -> Result<bool>;

    /// Forgets a definition that no run needs any more.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while runs of it have not ended; the store's.
    async fn remove(&self, namespace: &str, name: &str, version: &str) -> Result<()>;

    /// Ends all runs of a namespace and forgets these and its definitions.
    ///
    /// # Errors
    /// The store's; it may be called again.
    async fn purge(&self, namespace: &str) -> Result<Vec<String>>;

    /// The definitions of a namespace, or of all, by name and version: those after `after`, at most `limit`.
    ///
    /// # Errors
    /// The store's.
    async fn definitions(
        &self,
        namespace: Option<&str>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<WorkflowInfo>, Option<String>)>;

    /// Runs of this host that do not go on although they should, as far as it has seen: a hundred at most. Asks no store.
    fn stuck(&self) -> Vec<StuckRun>;

    /// The document of a definition; without a version, of the greatest.
    ///
    /// # Errors
    /// `NotFound`; the store's.
    async fn document(&self, namespace: &str, name: &str, version: Option<&str>) -> Result<Json>;

    /// Starts a run. When it returns, the run is stored and comes to its end; whether it is new: a second start with the same id
    /// gives how the first one stands.
    ///
    /// # Errors
    /// `NotFound` when the definition is not there; `InvalidSpec` for a bad id, bad labels or too large an input; `Conflict` when a
    /// run of another definition has the id; `Exhausted` when the tenant has too many; the store's.
    async fn start(&self, start: RunStart) -> Result<(RunView, bool)>;

    /// A page of the runs that fit.
    ///
    /// # Errors
    /// The store's.
    async fn runs(&self, query: &RunQuery) -> Result<RunPage>;

    /// A run with its path.
    ///
    /// # Errors
    /// `NotFound`; the store's.
    async fn detail(&self, namespace: &str, id: &str) -> Result<RunDetail>;

    /// Waits until a run has ended.
    ///
    /// **Cancel safety:** dropping it leaves nothing behind.
    ///
    /// # Errors
    /// `NotFound`; the store's.
    async fn ended(&self, namespace: &str, id: &str) -> Result<RunView>;

    /// Does something with a run. It is stored when it returns.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when the run does not stand so that this can be done; `InvalidSpec` for a step that it does not wait
    /// for, or an event that is none; the store's.
    async fn steer(&self, namespace: &str, id: &str, action: RunAction) -> Result<RunView>;

    /// The picture of a definition, in SVG; with a run, its path is marked.
    ///
    /// # Errors
    /// `Unsupported` unless it draws; `NotFound`; the store's.
    async fn graph(&self, namespace: &str, of: GraphOf<'_>) -> Result<String> {
        let _ = (namespace, of);
        Err(Error::unsupported("drawing workflows"))
    }
}

/// What is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GraphOf<'a> {
    /// A definition; without a version, the greatest.
    Definition {
        /// Its name.
        name: &'a str,
        /// Its version.
        version: Option<&'a str>,
    },
    /// A run of this id.
    Run(&'a str),
}
