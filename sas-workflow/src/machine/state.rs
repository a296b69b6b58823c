//! Where a run is: a tree of what is under way.

use sas_jq::Value;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use crate::{
    fault::Fault,
    record::{Body as Bytes, Command},
};

/// A list of tasks under way.
#[derive(Default)]
pub(crate) struct List {
    pub(super) at: usize,
    /// How often the list went back to each task: rounds are part of the ids.
    pub(super) rounds: Vec<usize>,
    /// What the next task gets.
    pub(super) input: Value,
    pub(super) task: Option<Box<State>>,
}

impl List {
    pub(crate) fn new(input: Value) -> Self {
        Self { input, ..Self::default() }
    }
}

/// A task under way.
pub(crate) struct State {
    pub(super) step: String,
    pub(super) input: Value,
    pub(super) deadline: Option<u64>,
    /// Extensions before the task, and after it.
    pub(super) around: Around,
    pub(super) body: Body,
}

#[derive(Default)]
pub(crate) struct Around {
    pub(super) before: Vec<usize>,
    pub(super) after: Vec<usize>,
    pub(super) list: Option<List>,
    /// The task's own output while what comes after it runs.
    pub(super) output: Option<Ended>,
}

pub(crate) enum Body {
    /// Nothing is done yet.
    New,
    List(List),
    Fork(Vec<Branch>),
    For {
        items: Vec<Value>,
        at: usize,
        list: Option<List>,
        input: Value,
    },
    Try(Try),
    Wait(u64),
    /// Something was asked for, and what comes out where the answer is `null`.
    Asked(Box<Command>, Value),
    /// A request by HTTP was asked for.
    Called(Called),
    /// The document of an OpenAPI call was asked for.
    Document(Called),
    Listen(Listening),
    Function(Box<State>),
}

/// A request that was asked for. It may hold secrets: a checkpoint keeps what it is made again of.
pub(crate) struct Called {
    /// `None`: it is to be made.
    pub(super) command: Option<Box<Command>>,
    /// The run's context when it was made first; another branch may have changed it since.
    pub(super) context: Value,
    /// What an operation's request is made of.
    pub(super) document: Option<Box<Document>>,
}

impl Called {
    pub(super) fn new(context: &Value) -> Self {
        Self { command: None, context: context.clone(), document: None }
    }
}

/// An answer by HTTP that came.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

/// An OpenAPI document.
pub(crate) struct Document {
    /// The run's context when it was asked for.
    pub(super) context: Value,
    pub(super) answered: Answered,
}

pub(crate) struct Branch {
    pub(super) state: Option<State>,
    pub(super) output: Option<Ended>,
}

pub(crate) struct Try {
    pub(super) began: u64,
    pub(super) attempt: u64,
    pub(super) phase: Phase,
}

pub(crate) enum Phase {
    /// The tasks run; until when they may.
    Trying(List, Option<u64>),
    /// The next attempt waits.
    Waiting(u64),
    /// The error is handled.
    Handling(List, Fault),
}

#[derive(Default)]
pub(crate) struct Listening {
    /// The record that made the run come to it: an event that came with this one was for those before it.
    pub(super) since: u64,
    /// How many bytes `events` and `made` take.
    pub(super) held: usize,
    /// What was read of the events that count.
    pub(super) events: Vec<Value>,
    /// Which filters have had their event.
    pub(super) had: Vec<bool>,
    pub(super) until_had: Vec<bool>,
    pub(super) correlated: Vec<(String, Json)>,
    pub(super) complete: bool,
    /// What the iterator made of events so far, and the one under way.
    pub(super) made: Vec<Value>,
    pub(super) list: Option<List>,
}

/// How a task or a list ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    pub(crate) output: Value,
    /// The whole run ends with it.
    pub(crate) all: bool,
}

impl Ended {
    pub(crate) fn with(output: Value) -> Self {
        Self { output, all: false }
    }
}
