//! What operators do with runs.

use std::sync::Arc;

use sas_core::{Commit, Error, ErrorKind, Result, RunAction, Version};
use serde_json::Value as Json;

use super::{
    Inner, Told,
    drive::{Loaded, described},
    has_ended,
    records::{Phase, RunState, Writer},
    wrong,
};
use crate::{Command, Outcome, Record, Status};

/// How often a change is tried when others write the same run meanwhile.
const TRIES: usize = 20;

fn conflict(message: String) -> Error {
    Error::new(ErrorKind::Conflict, "workflow", message)
}

/// What is changed: the state, and the records that go with it.
type Change = Option<(RunState, Vec<Record>)>;

impl Inner {
    pub(super) async fn steer(self: Arc<Self>, run: &str, action: RunAction) -> Result<()> {
        match action {
            RunAction::Suspend => self.suspend(run, true).await,
            RunAction::Resume => self.suspend(run, false).await,
            RunAction::Cancel => self.told(run, Told::Cancelled).await,
            RunAction::Event(event) => {
                check_event(&event)?;
                self.told(run, Told::Event(event)).await
            }
            RunAction::Retry => self.go_on(run, None).await,
            RunAction::Skip { step, output } => self.skip(run, step, output).await,
            _ => Err(Error::unsupported("this action")),
        }
    }

    async fn suspend(self: Arc<Self>, run: &str, suspended: bool) -> Result<()> {
        let change = |loaded: Loaded| {
            let Loaded { state, machine, .. } = loaded;
            if state.phase != Phase::Running {
                return Err(has_ended(run));
            }
            if state.suspended == suspended {
                return Ok(None);
            }
            let mut next = RunState { suspended, updated: self.now(), ..state };
            (next.wakes, next.asks) = (None, !suspended);
            if let Ok(machine) = &machine {
                described(&mut next, machine, self.records.most());
            }
            Ok(Some((next, Vec::new())))
        };
        self.change(run, change).await
    }

    /// A run that faulted goes on before the record that made it fault; with an output, that record's step has it.
    async fn go_on(self: Arc<Self>, run: &str, skip: Option<(String, Json)>) -> Result<()> {
        let change = |loaded: Loaded| {
            let Loaded { state, records, machine, .. } = loaded;
            if state.phase != Phase::Faulted {
                return Err(conflict(format!(
                    "the run {run:?} did not fault; only one that ended with an error goes on from there"
                )));
            }
            if let Some(parent) = &state.parent {
                return Err(conflict(format!(
                    "the run {run:?} is a child, and {:?} has had its error; retry that one",
                    parent.run
                )));
            }
            let machine = machine.map_err(|fault| conflict(Json::Object(fault.0).to_string()))?;
            let now = self.now();
            let mut next = RunState { phase: Phase::Running, error: None, updated: now, asks: true, ..state };
            if let (Status::Running, Some((skipped, _))) = (machine.status(), &skip) {
                return Err(conflict(format!(
                    "the run {run:?} faulted at no step, but for want of a secret, which is there now: {skipped:?} is not skipped; \
                     retry the run"
                )));
            }
            if matches!(machine.status(), Status::Running) {
                // No record made it fault: a secret was missing, which is there now.
                return Ok(Some((next, Vec::new())));
            }
            let counting = Record::counting(&records);
            let Some(Record::Done { step, .. }) = counting.last() else {
                return Err(conflict(format!(
                    "the run {run:?} did not fault when a step was answered, but by a timeout, an event or its input, \
                     and would again; start it anew"
                )));
            };
            let mut more = vec![Record::Retried { step: step.clone(), at: now }];
            if let Some((skipped, output)) = &skip {
                if skipped != step {
                    return Err(wrong(format!(
                        "the step {skipped:?} is not the one that the run faulted at, which is {step:?}"
                    )));
                }
                let outcome = Outcome::Output(output.clone());
                more.push(Record::Done { step: step.clone(), outcome, at: now });
            }
            next.records += u64::try_from(more.len()).unwrap_or_default();
            Ok(Some((next, more)))
        };
        self.change(run, change).await
    }

    async fn skip(self: Arc<Self>, run: &str, step: String, output: Json) -> Result<()> {
        let Some(loaded) = self.load(run).await? else { return Err(no_run(run)) };
        match loaded.state.phase {
            Phase::Faulted => return self.go_on(run, Some((step, output))).await,
            Phase::Running => {}
            Phase::Completed | Phase::Cancelled => return Err(has_ended(run)),
        }
        let machine = loaded.machine.map_err(|fault| conflict(Json::Object(fault.0).to_string()))?;
        let skippable =
            |command: &Command| !matches!(command, Command::Arm { .. } | Command::Subscribe { .. });
        let active: Vec<&str> =
            machine.commands().iter().filter(|command| skippable(command)).map(Command::step).collect();
        if !active.contains(&step.as_str()) {
            return Err(wrong(format!(
                "the run {run:?} waits for no answer to the step {step:?}; those that it waits for: {}",
                if active.is_empty() { "none".to_owned() } else { active.join(", ") }
            )));
        }
        self.told(run, Told::Done(step, Outcome::Output(output))).await
    }

    /// Writes a word into a run that another host drives.
    pub(super) async fn tell_elsewhere(self: &Arc<Self>, run: &str, told: &Told) -> Result<()> {
        let change = |loaded: Loaded| {
            let Loaded { state, past, machine, .. } = loaded;
            if state.phase != Phase::Running {
                return Err(has_ended(run));
            }
            let mut machine = machine.map_err(|fault| conflict(Json::Object(fault.0).to_string()))?;
            let at = self.now().max(state.updated);
            let record = match told {
                Told::Event(event) if past.has_seen(event) => return Ok(None),
                Told::Event(event) => Record::Event { event: event.clone(), at },
                Told::Done(step, outcome) if machine.commands().iter().any(|own| own.step() == step) => {
                    Record::Done { step: step.clone(), outcome: outcome.clone(), at }
                }
                Told::Cancelled => Record::Cancelled { at },
                Told::Done(..) | Told::Child(..) | Told::Wake | Told::Reload => return Ok(None),
            };
            let (next, record) = self.after(&state, &mut machine, record, at)?;
            Ok(Some((next, vec![record])))
        };
        self.change(run, change).await
    }

    /// Writes what `make` makes of a run, and lets whoever drives it read it again.
    async fn change(self: &Arc<Self>, run: &str, make: impl Fn(Loaded) -> Result<Change>) -> Result<()> {
        for _ in 0..TRIES {
            let Some(loaded) = self.load(run).await? else { return Err(no_run(run)) };
            let (version, had_ended): (Version, _) = (loaded.version, loaded.state.phase != Phase::Running);
            let before = loaded.state.clone();
            let name = format!("{}/{}/{}", loaded.state.namespace, loaded.state.name, loaded.state.version);
            // A run that goes on again is as a start to who deletes its definition.
            let guarded = match had_ended {
                true => self.records.startable(&name, loaded.defined),
                false => Commit::new(),
            };
            let Some((next, records)) = make(loaded)? else { return Ok(()) };
            let by = (Writer::Anybody, guarded);
            match self.records.append(by, &records, &before, &next, version).await {
                Ok(_) => {
                    if had_ended {
                        self.used(&next.namespace, |own| own.unended += 1);
                    } else if next.phase != Phase::Running {
                        self.tell_end(&next);
                    }
                    self.life.notify_one();
                    self.wake(run, Told::Reload);
                    return Ok(());
                }
                Err(error) if error.kind == ErrorKind::Conflict => {
                    if had_ended && self.records.is_retired(&name).await? {
                        return Err(conflict(format!("the workflow {name} is being deleted")));
                    }
                    // Another host may have put the definition back.
                    self.definitions.lock().remove(&name);
                }
                Err(error) => return Err(error),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            "workflow",
            format!("the run {run:?} goes on too fast; try again"),
        ))
    }
}

fn no_run(run: &str) -> Error {
    Error::new(ErrorKind::NotFound, "workflow", format!("there is no run {run:?}"))
}

/// What every event of CloudEvents has.
pub(super) fn check_event(event: &Json) -> Result<()> {
    for name in ["id", "source", "type"] {
        if event.get(name).and_then(Json::as_str).is_none_or(str::is_empty) {
            return Err(wrong(format!("the event has no {name}: give it one, a text that is not empty")));
        }
    }
    Ok(())
}
