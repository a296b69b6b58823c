//! What a machine is told, and what it asks for.

use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

/// Something that happened to a run. A run is its records in order: the same records make the same run, bit for bit.
///
/// Times are milliseconds since the Unix epoch and never go back: the machine has no clock but these.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "camelCase")]
pub enum Record {
    /// The run began. The first record, once.
    Started {
        /// The run's id.
        id: String,
        /// The input as it was given.
        input: Json,
        /// What randomness is drawn of: the jitter of retries.
        seed: u64,
        /// When it began, in milliseconds since the Unix epoch.
        at: u64,
    },
    /// What a step asked for is done.
    Done {
        /// The step's id.
        step: String,
        /// How it ended.
        outcome: Outcome,
        /// When that was, in milliseconds since the Unix epoch.
        at: u64,
    },
    /// An event came for the run.
    Event {
        /// The event, in the JSON format of CloudEvents.
        event: Json,
        /// When it came, in milliseconds since the Unix epoch.
        at: u64,
    },
    /// Time passed: a timer's time has come.
    Time {
        /// What time it is now, in milliseconds since the Unix epoch.
        at: u64,
    },
    /// A run that ended with an error goes on: the record before this one, which made it end so, does not count any more, and
    /// the step that it told of is asked for again. See [`Record::counting`].
    Retried {
        /// The step's id.
        step: String,
        /// When somebody asked for it, in milliseconds since the Unix epoch.
        at: u64,
    },
    /// The run was cancelled from outside.
    Cancelled {
        /// When somebody asked for it, in milliseconds since the Unix epoch.
        at: u64,
    },
}

impl Record {
    /// The records that count, in order: without those that a [`Record::Retried`] took back. They make the run.
    pub fn counting(records: &[Record]) -> Vec<&Record> {
        let mut counting: Vec<&Record> = Vec::with_capacity(records.len());
        for record in records {
            if matches!(record, Record::Retried { .. }) {
                counting.pop();
            }
            counting.push(record);
        }
        counting
    }
}

/// How what a step asked for ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// An HTTP answer to `Call`, whatever its status.
    Answer {
        /// The status code.
        status: u16,
        /// The headers, names in lower case.
        headers: Vec<(String, String)>,
        /// The body: text, or base64 where it is no UTF-8.
        body: Body,
    },
    /// What came of `Invoke` or `Start`; of `Emit` nothing is asked (`null`).
    Output(Json),
    /// There is no answer: the target was not reached, or not in time.
    Failed {
        /// Why, for people.
        reason: String,
    },
    /// The child or the service ended with this error.
    Error(Json),
}

/// The bytes of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Body {
    /// UTF-8.
    Text(String),
    /// Base64 of anything else.
    Base64(String),
}

impl Body {
    /// The body of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        use base64::Engine as _;
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Base64(base64::engine::general_purpose::STANDARD.encode(bytes)),
        }
    }
}

/// What a run waits for. The step's id says which it is: the same at every replay, so that it is an idempotency key.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// An HTTP request is to be made.
    Call {
        /// The step's id.
        step: String,
        /// What to send. It may hold secrets: it belongs in no store.
        request: Request,
    },
    /// A service of the platform is to be called, with this as JSON.
    Invoke {
        /// The step's id.
        step: String,
        /// The service's name.
        service: String,
        /// What it is told.
        input: Json,
    },
    /// `Time` is to be told at this time, not before.
    Arm {
        /// The step's id.
        step: String,
        /// The time to wait for, in milliseconds since the Unix epoch. One that is over is told at once.
        at: u64,
    },
    /// An event is to be published.
    Emit {
        /// The step's id.
        step: String,
        /// The event, in the JSON format of CloudEvents.
        event: Json,
    },
    /// Events are to be told to the run, of these types; none: of any.
    Subscribe {
        /// The step's id.
        step: String,
        /// The types, as far as they are fixed.
        types: Vec<String>,
    },
    /// Another workflow is to be run.
    Start {
        /// The step's id.
        step: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Its version.
        version: String,
        /// Its input.
        input: Json,
        /// Whether its output is waited for; otherwise that it was started.
        wait: bool,
    },
}

impl Command {
    /// What it asks for, in one word: `call`, `invoke`, `timer`, `emit`, `event` or `workflow`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Call { .. } => "call",
            Self::Invoke { .. } => "invoke",
            Self::Arm { .. } => "timer",
            Self::Emit { .. } => "emit",
            Self::Subscribe { .. } => "event",
            Self::Start { .. } => "workflow",
        }
    }

    /// The step's id.
    pub fn step(&self) -> &str {
        match self {
            Self::Call { step, .. }
            | Self::Invoke { step, .. }
            | Self::Arm { step, .. }
            | Self::Emit { step, .. }
            | Self::Subscribe { step, .. }
            | Self::Start { step, .. } => step,
        }
    }
}

/// An HTTP request.
#[derive(Clone, PartialEq, Eq)]
pub struct Request {
    /// The method, in upper case.
    pub method: String,
    /// Where to: an absolute URI, with its query.
    pub uri: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body; empty where there is none.
    pub body: String,
}

/// Without values of headers, query and body: they may be secrets.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let uri = self.uri.split('?').next().unwrap_or_default();
        f.debug_struct("Request").field("method", &self.method).field("uri", &uri).finish_non_exhaustive()
    }
}
