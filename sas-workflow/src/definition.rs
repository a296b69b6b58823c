//! A definition that was read, with its parts.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};

use crate::data::{Data, Expression, Span, Variables};

/// A workflow's definition, read and found right: what is not refused now does not fail for its form later.
///
/// It keeps the document that it was read from, so that no field of it is lost.
#[derive(Clone, Debug)]
pub struct Definition(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) document: Json,
    /// The document for expressions: one for all runs.
    pub(crate) value: sas_jq::Value,
    pub(crate) digest: String,
    pub(crate) head: Head,
    pub(crate) uses: Uses,
    pub(crate) input: Filter,
    pub(crate) output: Filter,
    pub(crate) timeout: Option<Timeout>,
    pub(crate) schedule: Option<Schedule>,
    pub(crate) tasks: Vec<Task>,
    pub(crate) refused: Vec<Refused>,
    /// Where other workflows are run, as JSON pointers, and of which namespaces.
    pub(crate) starts: Vec<(String, String)>,
    /// The first place that makes data of a secret, as a JSON pointer.
    pub(crate) exposes: Option<String>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Head {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: String,
}

/// A part of a definition that is right, but that cannot be run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Where, as a JSON pointer into the definition.
    pub pointer: String,
    /// What it is and why it cannot be run.
    pub reason: String,
}

/// When runs are started by themselves.
#[derive(Clone, Debug, Default)]
pub struct Schedule {
    /// A run each time that this has passed.
    pub every: Option<std::time::Duration>,
    /// Runs by a cron expression.
    pub cron: Option<String>,
    /// A run when this has passed since the last one ended.
    pub after: Option<std::time::Duration>,
    pub(crate) on: Option<Consumption>,
    /// How events are to be read, where that is not their data.
    pub(crate) read: Option<String>,
}

/// For people: `every 60s`, `cron 0 2 * * *`.
impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        parts.extend(self.every.map(|every| format!("every {every:?}")));
        parts.extend(self.cron.as_ref().map(|cron| format!("cron {cron}")));
        parts.extend(self.after.map(|after| format!("{after:?} after the last one")));
        parts.extend(self.on.is_some().then(|| "on events".to_owned()));
        f.write_str(&parts.join(", "))
    }
}

impl Schedule {
    /// Whether all of it can be kept here.
    ///
    /// # Errors
    /// What cannot be, and what to write instead.
    pub(crate) fn runnable(&self) -> Result<(), &'static str> {
        if self.after.is_some() {
            return Err(
                "after is not run here: use every, or let the workflow wait at its end and start the next one",
            );
        }
        if self.read.is_some() {
            return Err(
                "read is run here as data only: leave it out, or let a trigger start the workflow with input: event",
            );
        }
        let filters = match &self.on {
            Some(Consumption::One(filter)) => std::slice::from_ref(filter),
            Some(Consumption::Any(filters, None)) => filters.as_slice(),
            _ => &[],
        };
        if filters.iter().any(|filter| !filter.correlate.is_empty()) {
            return Err("on correlates no events here: one event starts one run; leave correlate out");
        }
        match &self.on {
            None | Some(Consumption::One(_) | Consumption::Any(_, None)) => Ok(()),
            Some(_) => Err(
                "on starts a run by one event here: use one, or any without until, and listen for the rest",
            ),
        }
    }

    /// Whether this event starts a run.
    pub(crate) fn wants(&self, event: &Json) -> bool {
        let filters = match &self.on {
            Some(Consumption::One(filter)) => std::slice::from_ref(filter),
            Some(Consumption::Any(filters, None)) => filters.as_slice(),
            _ => return false,
        };
        let any = matches!(self.on, Some(Consumption::Any(..))) && filters.is_empty();
        any || filters.iter().any(|filter| filter.takes(event))
    }

    /// What the run gets: the event's data in a list, as the language has it.
    pub(crate) fn input(&self, event: &Json) -> Json {
        Json::Array(vec![event.get("data").cloned().unwrap_or(Json::Null)])
    }

    /// Whether events start runs.
    pub fn on_events(&self) -> bool {
        self.on.is_some()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Uses {
    pub(crate) authentications: BTreeMap<String, Authentication>,
    pub(crate) errors: BTreeMap<String, Raised>,
    pub(crate) retries: BTreeMap<String, Retry>,
    pub(crate) timeouts: BTreeMap<String, Span>,
    pub(crate) functions: BTreeMap<String, Task>,
    pub(crate) extensions: Vec<Extension>,
    pub(crate) secrets: Vec<String>,
}

/// What happens to data on its way in or out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Filter {
    pub(crate) schema: Option<Schema>,
    pub(crate) change: Option<Data>,
}

#[derive(Clone, Debug)]
pub(crate) struct Schema(pub(crate) Arc<jsonschema::Validator>);

#[derive(Clone, Debug)]
pub(crate) enum Timeout {
    After(Span),
    Named(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Continue,
    Exit,
    End,
    Task(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) name: String,
    /// The JSON pointer, as errors name it.
    pub(crate) pointer: String,
    pub(crate) condition: Option<Expression>,
    pub(crate) input: Filter,
    pub(crate) output: Filter,
    pub(crate) export: Filter,
    pub(crate) timeout: Option<Timeout>,
    pub(crate) then: Then,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Set(Data),
    Do(Vec<Task>),
    Fork {
        branches: Vec<Task>,
        compete: bool,
    },
    For {
        each: String,
        at: String,
        items: Data,
        condition: Option<Expression>,
        tasks: Vec<Task>,
    },
    Try {
        tasks: Vec<Task>,
        catch: Box<Catch>,
    },
    Switch(Vec<Case>),
    Raise(Result<Raised, String>),
    Wait(Span),
    Emit(Data),
    Listen(Listen),
    Http(Box<HttpCall>),
    OpenApi(Box<OpenApiCall>),
    /// A function of the definition, or a service of the platform.
    Call {
        name: String,
        with: Data,
    },
    Workflow {
        namespace: String,
        name: String,
        version: String,
        input: Option<Data>,
        wait: bool,
    },
    Refused(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) pointer: String,
    pub(crate) when: Option<Expression>,
    pub(crate) then: Then,
}

#[derive(Clone, Debug)]
pub(crate) struct Catch {
    /// Members that an error must have.
    pub(crate) with: Vec<(String, Json)>,
    pub(crate) name: String,
    pub(crate) when: Option<Expression>,
    pub(crate) except_when: Option<Expression>,
    pub(crate) retry: Option<Result<Retry, String>>,
    pub(crate) tasks: Option<Vec<Task>>,
    pub(crate) then: Then,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Retry {
    pub(crate) when: Option<Expression>,
    pub(crate) except_when: Option<Expression>,
    pub(crate) delay: Option<Span>,
    pub(crate) backoff: Backoff,
    pub(crate) attempts: Option<u64>,
    pub(crate) attempt_duration: Option<Span>,
    pub(crate) duration: Option<Span>,
    pub(crate) jitter: Option<(Span, Span)>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Backoff {
    #[default]
    Constant,
    Linear,
    Exponential,
}

/// An error's members as data.
#[derive(Clone, Debug)]
pub(crate) struct Raised(pub(crate) Data);

#[derive(Clone, Debug)]
pub(crate) struct Listen {
    pub(crate) to: Consumption,
    pub(crate) read: Read,
    pub(crate) each: Option<Each>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Read {
    #[default]
    Data,
    Envelope,
    Raw,
}

#[derive(Clone, Debug)]
pub(crate) struct Each {
    pub(crate) item: String,
    pub(crate) at: String,
    pub(crate) tasks: Vec<Task>,
    pub(crate) output: Filter,
    pub(crate) export: Filter,
}

#[derive(Clone, Debug)]
pub(crate) enum Consumption {
    One(EventFilter),
    All(Vec<EventFilter>),
    Any(Vec<EventFilter>, Option<Until>),
}

#[derive(Clone, Debug)]
pub(crate) enum Until {
    Condition(Expression),
    Events(Box<Consumption>),
}

#[derive(Clone, Debug)]
pub(crate) struct EventFilter {
    /// Attributes: expressions are conditions when they give true or false, values otherwise.
    pub(crate) with: Vec<(String, Data)>,
    pub(crate) correlate: Vec<(String, Expression, Option<Expression>)>,
}

impl EventFilter {
    /// Whether an event has these attributes, for who has no run yet: without variables.
    fn takes(&self, event: &Json) -> bool {
        let variables = Variables::new();
        self.with.iter().all(|(name, wanted)| {
            let own = event.get(name).unwrap_or(&Json::Null);
            let Ok(own) = sas_jq::Value::from_json(own) else { return false };
            match wanted.evaluate(&own, &variables) {
                Ok(sas_jq::Value::Bool(holds)) if !matches!(own, sas_jq::Value::Bool(_)) => holds,
                Ok(wanted) => wanted == own,
                Err(_) => false,
            }
        })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Extension {
    pub(crate) extend: String,
    pub(crate) when: Option<Expression>,
    pub(crate) before: Vec<Task>,
    pub(crate) after: Vec<Task>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Answer {
    #[default]
    Content,
    Raw,
    Response,
}

#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) uri: Data,
    pub(crate) authentication: Option<Result<Authentication, String>>,
}

#[derive(Clone, Debug)]
pub(crate) enum Authentication {
    Basic {
        username: Data,
        password: Data,
    },
    Bearer {
        token: Data,
    },
    /// Basic or bearer, by a secret.
    Secret {
        basic: bool,
        name: String,
    },
    Refused(String),
}

#[derive(Clone, Debug)]
pub(crate) struct HttpCall {
    pub(crate) method: Data,
    pub(crate) endpoint: Endpoint,
    pub(crate) headers: Option<Data>,
    pub(crate) query: Option<Data>,
    pub(crate) body: Option<Data>,
    pub(crate) answer: Answer,
    pub(crate) redirect: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct OpenApiCall {
    pub(crate) document: Endpoint,
    pub(crate) operation: Data,
    pub(crate) parameters: Option<Data>,
    pub(crate) authentication: Option<Result<Authentication, String>>,
    pub(crate) answer: Answer,
    pub(crate) redirect: bool,
}

impl Definition {
    /// The document that it was read from.
    pub fn document(&self) -> &Json {
        &self.0.document
    }

    /// The SHA-256 of the document's canonical JSON (keys sorted), in hexadecimal: runs are pinned to it.
    pub fn digest(&self) -> &str {
        &self.0.digest
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.0.head.namespace
    }

    /// The name, unique in the namespace.
    pub fn name(&self) -> &str {
        &self.0.head.name
    }

    /// The version, as in `1.0.0`.
    pub fn version(&self) -> &str {
        &self.0.head.version
    }

    /// When runs are started by themselves.
    pub fn schedule(&self) -> Option<&Schedule> {
        self.0.schedule.as_ref()
    }

    /// The secrets that it names.
    pub fn secrets(&self) -> &[String] {
        &self.0.uses.secrets
    }

    /// What is right by the language, but cannot be run here: a run that comes to it faults. Empty for most.
    pub fn refused(&self) -> &[Refused] {
        &self.0.refused
    }
}

pub(crate) fn digest(document: &Json) -> String {
    Sha256::digest(document.to_string()).iter().fold(String::new(), |mut text, byte| {
        text.push_str(&format!("{byte:02x}"));
        text
    })
}
