//! A machine as text, from which a replay starts without the records before it.
//!
//! The first line is where the run is, in rows that name each other by number, so that tasks in tasks make no deep JSON; each line after
//! it is a piece of data that those rows name by its number, once however many hold it. No secret is in it: requests by HTTP are made
//! anew, and of a definition that makes data of secrets there is no checkpoint.

use std::collections::{BTreeMap, HashMap};

use sas_jq::Value;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::{
    Machine, MissingSecret, Status, TURN, Visit, exact,
    state::{Answered, Around, Body, Branch, Called, Document, Ended, List, Listening, Phase, State, Try},
};
use crate::{definition::Definition, fault::Fault, record::Command};

/// The form of what is written.
const FORM: u32 = 1;

/// Why there is no checkpoint of a machine now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoCheckpoint {
    /// The run does not run: it has not begun, or has ended.
    #[error("the run does not run")]
    NotRunning,
    /// Its data may hold a secret.
    #[error(
        "{0} makes data of a secret, which would be stored; use secrets in what calls send, and in conditions"
    )]
    Exposes(String),
}

/// A checkpoint cannot be gone on from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoRestore {
    /// A secret that the definition names was not given.
    #[error(transparent)]
    Secret(#[from] MissingSecret),
    /// It is none of this definition, or of a form that this version does not know.
    #[error("the checkpoint cannot be read: {0}")]
    Unreadable(String),
}

/// The number of a line.
type Line = usize;
/// The number of a row of `Head::states`.
type Row = usize;

#[derive(Serialize, Deserialize)]
struct Head {
    checkpoint: u32,
    digest: String,
    id: String,
    seed: u64,
    began: u64,
    now: u64,
    told: u64,
    left: u64,
    life: u64,
    /// Whether it is in the middle of a turn.
    spent: bool,
    deadline: Option<u64>,
    /// The run's input, as it was given.
    input: Line,
    context: Line,
    list: Tasks,
    /// Tasks under way; each after those in it.
    states: Vec<Under>,
    earlier: u64,
    visits: Vec<Visit>,
}

#[derive(Serialize, Deserialize)]
struct Tasks {
    at: usize,
    rounds: Vec<usize>,
    input: Line,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    task: Option<Row>,
}

#[derive(Serialize, Deserialize)]
struct Under {
    step: String,
    input: Line,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    deadline: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    around: Option<Beside>,
    body: Doing,
}

#[derive(Serialize, Deserialize)]
struct Beside {
    before: Vec<usize>,
    after: Vec<usize>,
    list: Option<Tasks>,
    output: Option<Came>,
}

#[derive(Serialize, Deserialize)]
struct Came {
    output: Line,
    all: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Doing {
    New,
    List(Tasks),
    Fork(Vec<Arm>),
    For { items: Vec<Line>, at: usize, list: Option<Tasks>, input: Line },
    Try { began: u64, attempt: u64, phase: Trying },
    Wait(u64),
    Invoke { service: String, input: Line },
    Emit { event: Line, output: Line },
    Start { namespace: String, name: String, version: String, input: Line, wait: bool },
    Call { context: Line, document: Option<Documented> },
    Document { context: Line },
    Listen(Box<Waiting>),
    Function(Row),
}

#[derive(Serialize, Deserialize)]
struct Arm {
    state: Option<Row>,
    output: Option<Came>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Trying {
    Tasks(Tasks, Option<u64>),
    Waiting(u64),
    Handling(Tasks, Line),
}

#[derive(Serialize, Deserialize)]
struct Documented {
    context: Line,
    answered: Answered,
}

#[derive(Serialize, Deserialize)]
struct Waiting {
    since: u64,
    held: usize,
    events: Vec<Line>,
    had: Vec<bool>,
    until_had: Vec<bool>,
    correlated: Vec<(String, Line)>,
    complete: bool,
    made: Vec<Line>,
    list: Option<Tasks>,
}

impl Machine {
    /// The machine as text: [`Machine::restore`] makes one of it that goes on in the same way, without the records that made this one.
    ///
    /// # Errors
    /// There is none now, or none of this definition.
    pub fn checkpoint(&self) -> Result<String, NoCheckpoint> {
        let Some(run) = self.run.as_ref().filter(|_| self.status == Status::Running) else {
            return Err(NoCheckpoint::NotRunning);
        };
        if let Some(pointer) = &self.definition.0.exposes {
            return Err(NoCheckpoint::Exposes(pointer.clone()));
        }
        let cx = &run.cx;
        let mut writer = Writer::default();
        let list = writer.list(&run.list);
        let input = match &cx.workflow {
            Value::Object(members) => members.get("input").cloned().unwrap_or_default(),
            _ => Value::Null,
        };
        let head = Head {
            checkpoint: FORM,
            digest: self.definition.digest().to_owned(),
            id: cx.id.clone(),
            seed: cx.seed,
            began: cx.began,
            now: cx.now,
            told: cx.told,
            left: cx.left,
            life: cx.life,
            spent: cx.turn == 0,
            deadline: run.deadline,
            input: writer.value(&input),
            context: writer.value(&cx.context),
            list,
            states: writer.states,
            earlier: self.earlier_visits(),
            visits: self.visits().to_vec(),
        };
        let mut text = serde_json::to_string(&head).unwrap_or_default();
        let mut lines: Vec<(String, Line)> = writer.lines.into_iter().collect();
        lines.sort_unstable_by_key(|(_, line)| *line);
        for (line, _) in lines {
            text.push('\n');
            text.push_str(&line);
        }
        Ok(text)
    }

    /// The machine of a checkpoint. Secrets are given anew: what was asked for and holds one is made of their values now.
    ///
    /// # Errors
    /// A secret is missing; the checkpoint is of another definition, or cannot be read.
    pub fn restore(
        definition: Definition,
        secrets: &BTreeMap<String, Json>,
        checkpoint: &str,
    ) -> Result<Self, NoRestore> {
        let mut machine = Self::new(definition, secrets)?;
        let unreadable = |problem: String| NoRestore::Unreadable(problem);
        let mut lines = checkpoint.split('\n');
        let head = serde_json::from_str::<Head>(lines.next().unwrap_or_default());
        let head = head.map_err(|error| unreadable(error.to_string()))?;
        if head.checkpoint != FORM {
            return Err(unreadable(format!("it has the form {}; known is {FORM}", head.checkpoint)));
        }
        if head.digest != machine.definition.digest() {
            return Err(unreadable("it is of another definition".to_owned()));
        }
        let mut reader = Reader { lines: lines.collect(), known: HashMap::new(), states: Vec::new() };
        reader.states = head.states.into_iter().map(Some).collect();
        let Some(run) = &mut machine.run else { return Err(unreadable("it has ended".to_owned())) };
        run.list = reader.list(head.list).map_err(unreadable)?;
        run.deadline = head.deadline;
        let cx = &mut run.cx;
        (cx.id, cx.seed, cx.began, cx.now) = (head.id, head.seed, head.began, head.now);
        (cx.told, cx.left, cx.life) = (head.told, head.left, head.life);
        cx.context = reader.value(head.context).map_err(unreadable)?;
        let input = reader.value(head.input).map_err(unreadable)?;
        cx.describe(input).map_err(|error| unreadable(error.to_string()))?;
        (machine.earlier, machine.visits) = (head.earlier, head.visits);
        machine.status = Status::Running;
        // Without a turn no task begins: what is under way asks again, and no more.
        cx.turn = 0;
        machine.go_on();
        if let Some(run) = &mut machine.run {
            run.cx.turn = if head.spent { 0 } else { TURN };
        }
        Ok(machine)
    }
}

#[derive(Default)]
struct Writer {
    lines: HashMap<String, Line>,
    states: Vec<Under>,
}

impl Writer {
    fn line(&mut self, text: String) -> Line {
        let next = self.lines.len();
        *self.lines.entry(text).or_insert(next)
    }

    fn value(&mut self, value: &Value) -> Line {
        // Values are finite trees of what JSON has, so that writing them does not fail.
        let text = exact::text(value).unwrap_or_default();
        self.line(text)
    }

    fn values<'v>(&mut self, values: impl IntoIterator<Item = &'v Value>) -> Vec<Line> {
        values.into_iter().map(|value| self.value(value)).collect()
    }

    fn json(&mut self, json: &Json) -> Line {
        self.line(json.to_string())
    }

    fn list(&mut self, list: &List) -> Tasks {
        let task = list.task.as_ref().map(|state| self.state(state));
        Tasks { at: list.at, rounds: list.rounds.clone(), input: self.value(&list.input), task }
    }

    fn maybe(&mut self, list: Option<&List>) -> Option<Tasks> {
        list.map(|list| self.list(list))
    }

    fn ended(&mut self, ended: Option<&Ended>) -> Option<Came> {
        ended.map(|ended| Came { output: self.value(&ended.output), all: ended.all })
    }

    fn state(&mut self, state: &State) -> Row {
        let body = self.body(&state.body);
        let around = match &state.around {
            Around { before, after, list: None, output: None } if before.is_empty() && after.is_empty() => {
                None
            }
            around => Some(Beside {
                before: around.before.clone(),
                after: around.after.clone(),
                list: self.maybe(around.list.as_ref()),
                output: self.ended(around.output.as_ref()),
            }),
        };
        let input = self.value(&state.input);
        self.states.push(Under { step: state.step.clone(), input, deadline: state.deadline, around, body });
        self.states.len() - 1
    }

    fn body(&mut self, body: &Body) -> Doing {
        match body {
            Body::New => Doing::New,
            Body::List(list) => Doing::List(self.list(list)),
            Body::Fork(branches) => {
                let mut arms = Vec::with_capacity(branches.len());
                for branch in branches {
                    let state = branch.state.as_ref().map(|state| self.state(state));
                    arms.push(Arm { state, output: self.ended(branch.output.as_ref()) });
                }
                Doing::Fork(arms)
            }
            Body::For { items, at, list, input } => Doing::For {
                // Those that were gone over are not looked at again.
                items: self.values(items.iter().skip(*at)),
                at: *at,
                list: self.maybe(list.as_ref()),
                input: self.value(input),
            },
            Body::Try(trying) => Doing::Try {
                began: trying.began,
                attempt: trying.attempt,
                phase: match &trying.phase {
                    Phase::Trying(list, ends) => Trying::Tasks(self.list(list), *ends),
                    Phase::Waiting(at) => Trying::Waiting(*at),
                    Phase::Handling(list, fault) => {
                        let line = self.json(&Json::Object(fault.0.clone()));
                        Trying::Handling(self.list(list), line)
                    }
                },
            },
            Body::Wait(at) => Doing::Wait(*at),
            Body::Asked(command, output) => match &**command {
                Command::Invoke { service, input, .. } => {
                    Doing::Invoke { service: service.clone(), input: self.json(input) }
                }
                Command::Emit { event, .. } => {
                    Doing::Emit { event: self.json(event), output: self.value(output) }
                }
                Command::Start { namespace, name, version, input, wait, .. } => Doing::Start {
                    namespace: namespace.clone(),
                    name: name.clone(),
                    version: version.clone(),
                    input: self.json(input),
                    wait: *wait,
                },
                // A timer and a subscription are asked for by what waits for them.
                Command::Call { .. } | Command::Arm { .. } | Command::Subscribe { .. } => Doing::New,
            },
            Body::Called(called) => Doing::Call {
                context: self.value(&called.context),
                document: called.document.as_ref().map(|document| Documented {
                    context: self.value(&document.context),
                    answered: document.answered.clone(),
                }),
            },
            Body::Document(called) => Doing::Document { context: self.value(&called.context) },
            Body::Listen(listening) => Doing::Listen(Box::new(Waiting {
                since: listening.since,
                held: listening.held,
                events: self.values(&listening.events),
                had: listening.had.clone(),
                until_had: listening.until_had.clone(),
                correlated: listening
                    .correlated
                    .iter()
                    .map(|(name, value)| (name.clone(), self.json(value)))
                    .collect(),
                complete: listening.complete,
                made: self.values(&listening.made),
                list: self.maybe(listening.list.as_ref()),
            })),
            Body::Function(state) => Doing::Function(self.state(state)),
        }
    }
}

/// What cannot be read, in words.
type Read<T> = Result<T, String>;

struct Reader<'t> {
    lines: Vec<&'t str>,
    /// Values that were read: what several hold is one again.
    known: HashMap<Line, Value>,
    /// Those that were not taken yet.
    states: Vec<Option<Under>>,
}

impl Reader<'_> {
    fn line(&self, line: Line) -> Read<&str> {
        self.lines.get(line).copied().ok_or_else(|| format!("it has no line {line}"))
    }

    fn value(&mut self, line: Line) -> Read<Value> {
        if let Some(known) = self.known.get(&line) {
            return Ok(known.clone());
        }
        let value = exact::value(self.line(line)?).map_err(|error| format!("line {line}: {error}"))?;
        self.known.insert(line, value.clone());
        Ok(value)
    }

    fn values(&mut self, lines: Vec<Line>) -> Read<Vec<Value>> {
        lines.into_iter().map(|line| self.value(line)).collect()
    }

    fn json(&self, line: Line) -> Read<Json> {
        serde_json::from_str(self.line(line)?).map_err(|error| format!("line {line}: {error}"))
    }

    fn list(&mut self, list: Tasks) -> Read<List> {
        let task = list.task.map(|row| self.state(row)).transpose()?.map(Box::new);
        Ok(List { at: list.at, rounds: list.rounds, input: self.value(list.input)?, task })
    }

    fn maybe(&mut self, list: Option<Tasks>) -> Read<Option<List>> {
        list.map(|list| self.list(list)).transpose()
    }

    fn ended(&mut self, ended: Option<Came>) -> Read<Option<Ended>> {
        let read = |ended: Came| Ok(Ended { output: self.value(ended.output)?, all: ended.all });
        ended.map(read).transpose()
    }

    /// Each row is taken once, so that rows that name each other end.
    fn state(&mut self, row: Row) -> Read<State> {
        let taken = self.states.get_mut(row).and_then(Option::take);
        let state = taken.ok_or_else(|| format!("the row {row} is not there, or is in two places"))?;
        let around = match state.around {
            None => Around::default(),
            Some(around) => Around {
                before: around.before,
                after: around.after,
                list: self.maybe(around.list)?,
                output: self.ended(around.output)?,
            },
        };
        let input = self.value(state.input)?;
        let body = self.body(state.body, &state.step)?;
        Ok(State { step: state.step, input, deadline: state.deadline, around, body })
    }

    fn body(&mut self, body: Doing, step: &str) -> Read<Body> {
        let step = step.to_owned();
        Ok(match body {
            Doing::New => Body::New,
            Doing::List(list) => Body::List(self.list(list)?),
            Doing::Fork(arms) => {
                let mut branches = Vec::with_capacity(arms.len());
                for arm in arms {
                    let state = arm.state.map(|row| self.state(row)).transpose()?;
                    branches.push(Branch { state, output: self.ended(arm.output)? });
                }
                Body::Fork(branches)
            }
            Doing::For { items: left, at, list, input } => {
                let mut items = vec![Value::Null; at];
                items.append(&mut self.values(left)?);
                Body::For { items, at, list: self.maybe(list)?, input: self.value(input)? }
            }
            Doing::Try { began, attempt, phase } => {
                let phase = match phase {
                    Trying::Tasks(list, ends) => Phase::Trying(self.list(list)?, ends),
                    Trying::Waiting(at) => Phase::Waiting(at),
                    Trying::Handling(list, line) => {
                        let Json::Object(members) = self.json(line)? else {
                            return Err(format!("line {line} is no error"));
                        };
                        Phase::Handling(self.list(list)?, Fault(members))
                    }
                };
                Body::Try(Try { began, attempt, phase })
            }
            Doing::Wait(at) => Body::Wait(at),
            Doing::Invoke { service, input } => {
                let input = self.json(input)?;
                Body::Asked(Box::new(Command::Invoke { step, service, input }), Value::Null)
            }
            Doing::Emit { event, output } => {
                let event = self.json(event)?;
                Body::Asked(Box::new(Command::Emit { step, event }), self.value(output)?)
            }
            Doing::Start { namespace, name, version, input, wait } => {
                let input = self.json(input)?;
                let start = Command::Start { step, namespace, name, version, input, wait };
                Body::Asked(Box::new(start), Value::Null)
            }
            Doing::Call { context, document } => {
                let mut called = Called::new(&self.value(context)?);
                if let Some(document) = document {
                    let context = self.value(document.context)?;
                    called.document = Some(Box::new(Document { context, answered: document.answered }));
                }
                Body::Called(called)
            }
            Doing::Document { context } => Body::Document(Called::new(&self.value(context)?)),
            Doing::Listen(waiting) => {
                let waiting = *waiting;
                let correlated = waiting
                    .correlated
                    .into_iter()
                    .map(|(name, line)| Ok((name, self.json(line)?)))
                    .collect::<Read<_>>()?;
                Body::Listen(Listening {
                    since: waiting.since,
                    held: waiting.held,
                    events: self.values(waiting.events)?,
                    had: waiting.had,
                    until_had: waiting.until_had,
                    correlated,
                    complete: waiting.complete,
                    made: self.values(waiting.made)?,
                    list: self.maybe(waiting.list)?,
                })
            }
            Doing::Function(row) => Body::Function(Box::new(self.state(row)?)),
        })
    }
}
