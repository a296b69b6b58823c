//! A driver without durability: does at once what a machine asks for, and keeps the records.

use std::collections::BTreeMap;

use sas_workflow::{Command, Definition, Machine, NoCheckpoint, Outcome, Record, Request, Status};
use serde_json::Value as Json;

/// 2026-01-01, in milliseconds.
pub(crate) const BEGAN: u64 = 1_767_225_600_000;

/// A run with its records.
pub(crate) struct Run {
    pub(crate) machine: Machine,
    pub(crate) records: Vec<Record>,
    pub(crate) now: u64,
    definition: Definition,
    secrets: BTreeMap<String, Json>,
}

/// What answers calls by HTTP.
pub(crate) type Calls<'c> = &'c mut dyn FnMut(&Request) -> Outcome;

impl Run {
    pub(crate) fn begin(definition: &Definition, input: Json, secrets: &[(&str, Json)]) -> Self {
        let secrets: BTreeMap<String, Json> =
            secrets.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let machine = Machine::new(definition.clone(), &secrets).expect("all secrets");
        let mut run =
            Self { machine, records: Vec::new(), now: BEGAN, definition: definition.clone(), secrets };
        run.tell(Record::Started { id: "run-1".to_owned(), input, seed: 7, at: BEGAN });
        run
    }

    /// From each record on, the machine is one that was made of a checkpoint, where there is one.
    pub(crate) fn tell(&mut self, record: Record) {
        self.machine.apply(&record);
        self.records.push(record);
        match self.machine.checkpoint() {
            Ok(text) => {
                let restored = Machine::restore(self.definition.clone(), &self.secrets, &text);
                let restored = restored.unwrap_or_else(|error| panic!("{error} in {text}"));
                assert_eq!(restored.status(), self.machine.status(), "{text}");
                assert_eq!(restored.commands(), self.machine.commands(), "{text}");
                assert_eq!(restored.visits(), self.machine.visits(), "{text}");
                assert_eq!(restored.checkpoint().as_ref(), Ok(&text));
                self.machine = restored;
            }
            Err(NoCheckpoint::NotRunning) => assert!(self.machine.status().is_final()),
            Err(error) => assert!(!self.secrets.is_empty(), "{error}"),
        }
    }

    pub(crate) fn event(&mut self, event: Json) {
        self.now += 1;
        self.tell(Record::Event { event, at: self.now });
    }

    /// Does what is asked for until nothing is left that happens by itself; times pass as they come.
    pub(crate) fn go_on(&mut self, calls: Calls<'_>) -> &Status {
        for _ in 0..10_000 {
            let command = self
                .machine
                .commands()
                .iter()
                .find(|command| !matches!(command, Command::Arm { .. } | Command::Subscribe { .. }));
            match command.cloned() {
                Some(command) => {
                    let outcome = match &command {
                        Command::Call { request, .. } => calls(request),
                        Command::Invoke { service, input, .. } => {
                            Outcome::Output(serde_json::json!({"by": service, "told": input}))
                        }
                        Command::Emit { .. } => Outcome::Output(Json::Null),
                        Command::Start { wait: false, .. } => Outcome::Output(Json::Null),
                        other => Outcome::Failed { reason: format!("nobody does {other:?}") },
                    };
                    self.now += 1;
                    self.tell(Record::Done { step: command.step().to_owned(), outcome, at: self.now });
                }
                None => {
                    let next = self.machine.commands().iter().filter_map(|command| match command {
                        Command::Arm { at, .. } => Some(*at),
                        _ => None,
                    });
                    let listens = self
                        .machine
                        .commands()
                        .iter()
                        .any(|command| matches!(command, Command::Subscribe { .. }));
                    match next.min() {
                        Some(at) if !listens => {
                            self.now = self.now.max(at);
                            self.tell(Record::Time { at: self.now });
                        }
                        _ => break,
                    }
                }
            }
        }
        self.replays();
        self.machine.status()
    }

    /// The same records make the same run: through JSON, and from the start without any checkpoint.
    pub(crate) fn replays(&self) {
        let mut again = Machine::new(self.definition.clone(), &self.secrets).expect("all secrets");
        for record in &self.records {
            let text = serde_json::to_string(record).expect("JSON");
            again.apply(&serde_json::from_str(&text).expect("a record"));
        }
        assert_eq!(again.status(), self.machine.status());
        assert_eq!(again.commands(), self.machine.commands());
        assert_eq!(again.visits(), self.machine.visits());
    }

    pub(crate) fn output(&self) -> Json {
        match self.machine.status() {
            Status::Completed(output) => output.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn fault(&self) -> Json {
        match self.machine.status() {
            Status::Faulted(error) => error.clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn path(&self) -> Vec<&str> {
        self.machine.visits().iter().map(|visit| visit.task.as_str()).collect()
    }
}
