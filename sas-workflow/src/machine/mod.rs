//! The machine: records in, commands out. No I/O, no clock, no randomness but the run's seed.

mod checkpoint;
mod exact;
mod http;
mod listen;
mod state;
mod tasks;

use std::collections::BTreeMap;

use sas_jq::Value;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

pub use self::checkpoint::{NoCheckpoint, NoRestore};
use self::state::List;
use crate::{
    data::{Data, Expression, Variables},
    definition::{Definition, Filter, Timeout},
    fault::{Fault, Standard},
    record::{Command, Outcome, Record},
};

/// How many tasks a run may run in its life.
const MOST_TASKS: u64 = 10_000_000;
/// How many of them one after the other, without waiting for anything: loops that do nothing else end there.
const MOST_AT_ONCE: u64 = 100_000;
/// How many of them one record may make it come to: then it asks to be told the time, so that others get a turn.
const TURN: usize = 1_000;
/// How many tasks may be under way one in the other: each takes of the stack.
const DEEPEST: usize = 64;
/// What `$runtime.version` is. Not the package's version: a run that is replayed by a newer one would go another way.
const RUNTIME_VERSION: &str = "1.0.0";
/// How many visits are kept: the last ones.
const MOST_VISITS: usize = 1_000;

/// How a run stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// `Started` was not told yet.
    Pending,
    /// It runs, or waits.
    Running,
    /// It ended with this output.
    Completed(Json),
    /// It ended with this error.
    Faulted(Json),
    /// It was cancelled.
    Cancelled,
}

impl Status {
    /// Whether nothing happens any more.
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Pending | Self::Running)
    }
}

/// A task that a run came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Visit {
    /// The task's id in the run: its JSON pointer with the rounds of loops and attempts.
    pub step: String,
    /// The task's name.
    pub task: String,
    /// The task's place in the definition, as a JSON pointer.
    pub pointer: String,
    /// When, in milliseconds since the epoch.
    pub at: u64,
}

/// One run of a definition, made of its records.
///
/// [`Machine::apply`] takes a record and goes on as far as it can; [`Machine::commands`] says what the run waits for then, each
/// with an id that is its position (pointer, round, attempt). A driver stores a record, applies it, and does what is asked and was not
/// asked before. Applied to a new machine, the same records give the same run: those that count ([`Record::counting`]).
pub struct Machine {
    definition: Definition,
    status: Status,
    run: Option<Run>,
    commands: Vec<Command>,
    visits: Vec<Visit>,
    /// How many visits were before those.
    earlier: u64,
}

/// Without data: it may hold secrets.
impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("name", &self.definition.name()).finish_non_exhaustive()
    }
}

struct Run {
    cx: Cx,
    list: List,
    deadline: Option<u64>,
}

/// What all tasks of a run share.
pub(crate) struct Cx {
    definition: Definition,
    id: String,
    seed: u64,
    /// When the run was started.
    began: u64,
    now: u64,
    secrets: Value,
    context: Value,
    workflow: Value,
    /// The outcome that was just told, until its step takes it.
    outcome: Option<(String, Outcome)>,
    /// The event that was just told.
    event: Option<Json>,
    commands: Vec<Command>,
    visits: Vec<Visit>,
    /// Tasks that it may still come to before it waits.
    left: u64,
    /// Tasks that it may still come to at all.
    life: u64,
    /// Tasks that this record may still make it come to.
    turn: usize,
    /// How many records were told.
    told: u64,
    /// How many tasks the one that goes on now is in.
    depth: usize,
}

/// The variables of loops and handlers, innermost last.
pub(crate) type Locals = Vec<(String, Value)>;

impl Machine {
    /// A run that has not begun. Secrets are values by name; they stand in no record.
    ///
    /// # Errors
    /// A secret that the definition names is missing.
    pub fn new(definition: Definition, secrets: &BTreeMap<String, Json>) -> Result<Self, MissingSecret> {
        if let Some(name) = definition.secrets().iter().find(|name| !secrets.contains_key(*name)) {
            return Err(MissingSecret(name.clone()));
        }
        let own = definition.secrets().iter().filter_map(|name| {
            let value = Value::from_json(secrets.get(name)?).ok()?;
            Some((name.clone(), value))
        });
        let secrets = Value::object(own).unwrap_or_default();
        let cx = Cx {
            definition: definition.clone(),
            id: String::new(),
            seed: 0,
            began: 0,
            now: 0,
            secrets,
            context: Value::Null,
            workflow: Value::Null,
            outcome: None,
            event: None,
            commands: Vec::new(),
            visits: Vec::new(),
            left: MOST_AT_ONCE,
            life: MOST_TASKS,
            turn: TURN,
            told: 0,
            depth: 0,
        };
        let run = Some(Run { cx, list: List::default(), deadline: None });
        let (commands, visits) = (Vec::new(), Vec::new());
        Ok(Self { definition, status: Status::Pending, run, commands, visits, earlier: 0 })
    }

    /// How the run stands.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// What the run waits for now, in the order of the definition. What was asked before is asked again, under the same id.
    pub fn commands(&self) -> &[Command] {
        &self.commands
    }

    /// The tasks that the run came to, in order: the last thousand.
    pub fn visits(&self) -> &[Visit] {
        &self.visits[self.visits.len().saturating_sub(MOST_VISITS)..]
    }

    /// How many tasks the run came to before those.
    pub fn earlier_visits(&self) -> u64 {
        self.earlier + u64::try_from(self.visits.len().saturating_sub(MOST_VISITS)).unwrap_or_default()
    }

    /// Takes a record, and goes on as far as it can. After the end, records change nothing.
    pub fn apply(&mut self, record: &Record) {
        if self.status.is_final() {
            return;
        }
        let Some(run) = &mut self.run else { return };
        let at = match record {
            Record::Started { at, .. }
            | Record::Done { at, .. }
            | Record::Event { at, .. }
            | Record::Time { at }
            | Record::Retried { at, .. }
            | Record::Cancelled { at } => *at,
        };
        run.cx.now = run.cx.now.max(at);
        // Being told the time in the middle of a turn is no wait.
        if run.cx.turn > 0 || !matches!(record, Record::Time { .. }) {
            run.cx.left = MOST_AT_ONCE;
        }
        run.cx.turn = TURN;
        run.cx.told += 1;
        match (record, &self.status) {
            (Record::Cancelled { .. }, _) => {
                self.end(Status::Cancelled);
                return;
            }
            (Record::Started { id, input, seed, .. }, Status::Pending) => {
                self.status = Status::Running;
                if let Err(fault) = run.start(id, input, *seed) {
                    self.end(Status::Faulted(Json::Object(fault.0)));
                    return;
                }
            }
            // Before the start and after it, these mean nothing.
            (_, Status::Pending) | (Record::Started { .. }, _) => return,
            (Record::Done { step, outcome, .. }, _) => {
                run.cx.outcome = Some((step.clone(), outcome.clone()));
            }
            (Record::Event { event, .. }, _) => run.cx.event = Some(event.clone()),
            (Record::Time { .. } | Record::Retried { .. }, _) => {}
        }
        self.go_on();
    }

    /// Goes on as far as it can.
    fn go_on(&mut self) {
        let Some(run) = &mut self.run else { return };
        let done = run.advance();
        self.commands = std::mem::take(&mut run.cx.commands);
        self.visits.append(&mut run.cx.visits);
        if self.visits.len() >= 2 * MOST_VISITS {
            self.earlier += u64::try_from(self.visits.len() - MOST_VISITS).unwrap_or_default();
            self.visits.drain(..self.visits.len() - MOST_VISITS);
        }
        match done {
            Ok(None) => {}
            Ok(Some(output)) => self.end(Status::Completed(output.to_json())),
            Err(fault) => self.end(Status::Faulted(Json::Object(fault.0))),
        }
    }

    fn end(&mut self, status: Status) {
        self.status = status;
        self.commands.clear();
        self.run = None;
    }
}

/// A secret that a definition names was not given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret {0:?} is named in use.secrets, and was not given")]
pub struct MissingSecret(pub String);

impl Run {
    fn start(&mut self, id: &str, input: &Json, seed: u64) -> Result<(), Fault> {
        let cx = &mut self.cx;
        let deep = |error: sas_jq::Error| Fault::evaluation("", &error);
        (cx.id, cx.seed) = (id.to_owned(), seed);
        let raw = Value::from_json(input).map_err(deep)?;
        cx.began = cx.now;
        cx.describe(raw.clone()).map_err(deep)?;
        let definition = cx.definition.clone();
        let inner = &*definition.0;
        let locals = Locals::new();
        let scope = Scope { pointer: "", input: &Value::Null, output: None, locals: &locals, task: None };
        let input = cx.incoming(&inner.input, raw, &scope)?;
        self.list = List::new(input.clone());
        let scope = Scope { input: &input, ..scope };
        self.deadline = match &inner.timeout {
            Some(timeout) => Some(cx.deadline(timeout, &scope)?),
            None => None,
        };
        Ok(())
    }

    /// The output, when there is one now.
    fn advance(&mut self) -> Result<Option<Value>, Fault> {
        let definition = self.cx.definition.clone();
        let inner = &*definition.0;
        if let Some(at) = self.deadline {
            if self.cx.now >= at {
                return Err(Fault::new(Standard::Timeout, "", "the workflow took longer than its timeout"));
            }
            self.cx.commands.push(Command::Arm { step: "/timeout".to_owned(), at });
        }
        let ended = self.cx.list(&inner.tasks, &mut self.list, "/do", &Locals::new())?;
        (self.cx.outcome, self.cx.event) = (None, None);
        let Some(ended) = ended else { return Ok(None) };
        let scope =
            Scope { pointer: "", input: &Value::Null, output: None, locals: &Locals::new(), task: None };
        self.cx.outgoing(&inner.output, ended.output, &scope).map(Some)
    }
}

/// What an expression sees.
pub(crate) struct Scope<'s> {
    pub(crate) pointer: &'s str,
    pub(crate) input: &'s Value,
    pub(crate) output: Option<&'s Value>,
    pub(crate) locals: &'s Locals,
    pub(crate) task: Option<&'s str>,
}

impl Cx {
    /// What `$workflow` is.
    fn describe(&mut self, input: Value) -> Result<(), sas_jq::Error> {
        let began = jiff::Timestamp::from_millisecond(i64::try_from(self.began).unwrap_or(i64::MAX))
            .unwrap_or_default();
        let epoch = [
            ("seconds".to_owned(), Value::Int(began.as_second())),
            ("milliseconds".to_owned(), Value::Int(began.as_millisecond())),
        ];
        let started =
            [("iso8601".to_owned(), began.to_string().into()), ("epoch".to_owned(), Value::object(epoch)?)];
        let workflow = [
            ("id".to_owned(), self.id.as_str().into()),
            ("definition".to_owned(), self.definition.0.value.clone()),
            ("input".to_owned(), input),
            ("startedAt".to_owned(), Value::object(started)?),
        ];
        self.workflow = Value::object(workflow)?;
        Ok(())
    }

    pub(crate) fn variables(&self, scope: &Scope<'_>) -> Variables {
        let mut variables = Variables::new();
        let mut set = |name: &str, value: Value| drop(variables.insert(name.to_owned(), value));
        set("context", self.context.clone());
        set("input", scope.input.clone());
        set("output", scope.output.cloned().unwrap_or_default());
        set("secrets", self.secrets.clone());
        set("secret", self.secrets.clone());
        set("workflow", self.workflow.clone());
        let runtime = [("name".to_owned(), "sas".into()), ("version".to_owned(), RUNTIME_VERSION.into())];
        set("runtime", Value::object(runtime).unwrap_or_default());
        if let Some(name) = scope.task {
            let task = [
                ("name".to_owned(), name.into()),
                ("reference".to_owned(), scope.pointer.into()),
                ("input".to_owned(), scope.input.clone()),
            ];
            set("task", Value::object(task).unwrap_or_default());
        }
        for (name, value) in scope.locals {
            set(name, value.clone());
        }
        variables
    }

    pub(crate) fn evaluate(&self, data: &Data, on: &Value, scope: &Scope<'_>) -> Result<Value, Fault> {
        let made = data.evaluate(on, &self.variables(scope));
        made.map_err(|error| failed(scope.pointer, &error, data.mentions_secrets()))
    }

    pub(crate) fn holds(&self, condition: &Expression, on: &Value, scope: &Scope<'_>) -> Result<bool, Fault> {
        let value = condition.evaluate(on.clone(), &self.variables(scope));
        value
            .map(|value| value.is_truthy())
            .map_err(|error| failed(scope.pointer, &error, condition.mentions_secrets()))
    }

    /// Checks what comes in, and changes it.
    pub(crate) fn incoming(&self, filter: &Filter, raw: Value, scope: &Scope<'_>) -> Result<Value, Fault> {
        check(filter, scope.pointer, &raw)?;
        match &filter.change {
            Some(change) => self.evaluate(change, &raw, scope),
            None => Ok(raw),
        }
    }

    /// Changes what goes out, and checks what it was changed into.
    pub(crate) fn outgoing(&self, filter: &Filter, raw: Value, scope: &Scope<'_>) -> Result<Value, Fault> {
        let changed = match &filter.change {
            Some(change) => self.evaluate(change, &raw, scope)?,
            None => raw,
        };
        check(filter, scope.pointer, &changed)?;
        Ok(changed)
    }

    pub(crate) fn deadline(&self, timeout: &Timeout, scope: &Scope<'_>) -> Result<u64, Fault> {
        let span = match timeout {
            Timeout::After(span) => span,
            Timeout::Named(name) => match self.definition.0.uses.timeouts.get(name) {
                Some(span) => span,
                None => {
                    let problem = format!("the timeout {name:?} is not defined");
                    return Err(Fault::new(Standard::Configuration, scope.pointer, problem));
                }
            },
        };
        self.after(span, scope)
    }

    /// When this will have passed.
    pub(crate) fn after(&self, span: &crate::data::Span, scope: &Scope<'_>) -> Result<u64, Fault> {
        let span = span
            .evaluate(scope.input, &self.variables(scope))
            .map_err(|error| failed(scope.pointer, &error, span.mentions_secrets()))?;
        Ok(self.now.saturating_add(u64::try_from(span.as_millis()).unwrap_or(u64::MAX)))
    }

    /// The outcome of this step, if it was just told.
    pub(crate) fn take(&mut self, step: &str) -> Option<Outcome> {
        match &self.outcome {
            Some((told, _)) if told == step => self.outcome.take().map(|(_, outcome)| outcome),
            _ => None,
        }
    }

    /// A number from 0 to below 1 that belongs to the step.
    pub(crate) fn random(&self, step: &str) -> f64 {
        use sha2::{Digest as _, Sha256};
        let digest = Sha256::new().chain_update(self.seed.to_be_bytes()).chain_update(step).finalize();
        let bits = digest.iter().take(4).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        f64::from(bits) / (f64::from(u32::MAX) + 1.0)
    }
}

/// The fault of an expression. What jq says of it quotes what it was about, which may be a secret.
fn failed(pointer: &str, error: &sas_jq::Error, secret: bool) -> Fault {
    match secret {
        false => Fault::evaluation(pointer, error),
        true => {
            let detail = "an expression that asks for secrets failed; what it says is not shown, since it may quote them";
            Fault::new(Standard::Expression, pointer, detail)
        }
    }
}

fn check(filter: &Filter, pointer: &str, value: &Value) -> Result<(), Fault> {
    let Some(schema) = &filter.schema else { return Ok(()) };
    let json = value.to_json();
    let problems: Vec<String> = schema
        .0
        .iter_errors(&json)
        .take(10)
        .map(|error| {
            let at = error.instance_path().to_string();
            format!("{}: {}", if at.is_empty() { "/" } else { &at }, error.masked())
        })
        .collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(Fault::new(Standard::Validation, pointer, problems.join("; ")))
}
