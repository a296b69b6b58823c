//! One run, as long as it does something.

use std::{collections::HashSet, sync::Arc, time::Duration};

use sas_core::{Commit, Error, ErrorKind, Place, Result, Version};
use serde_json::Value as Json;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::{
    CHILD, Inner, Letter, Started, Told,
    actions::StepKey,
    checkpoints::Tried,
    config::Why,
    has_ended,
    past::Past,
    records::{Kept, Parent, Phase, RunState, Writer, short},
};
use crate::{
    Command, Machine, NoRestore, Outcome, Record, Status,
    fault::{Fault, Standard},
};

/// How long the secrets of a run may take before it waits without a turn and asks again.
const SECRETS: Duration = Duration::from_secs(30);
/// For how long the start of a child is tried again that has no room or no store, before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(600);

/// A step, and what came of its action; `None`: it is told later.
type Over = (String, Option<Outcome>);

/// Actions that are under way, a task each: while the driver waits for the store, or for a turn, each goes on, within its own time.
type Flights = JoinSet<Over>;

/// The next action that is over; `None`: none is under way.
///
/// **Cancel safety:** no outcome is lost.
async fn over(flights: &mut Flights) -> Option<Over> {
    loop {
        match flights.join_next().await? {
            Ok(over) => return Some(over),
            // The run broke off, as if it had done the step itself.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime is at its end, and the driver with it.
            Err(_) => {}
        }
    }
}

pub(super) struct Loaded {
    pub(super) state: RunState,
    pub(super) version: Version,
    /// The version of its definition in the store.
    pub(super) defined: Version,
    /// The number of the first of the records.
    pub(super) first: u64,
    /// Those that are kept: all, or those after the last checkpoint.
    pub(super) records: Vec<Record>,
    /// What all of them came to, beside the machine.
    pub(super) past: Past,
    pub(super) machine: std::result::Result<Machine, Fault>,
}

enum Turn {
    /// Nothing is left to do now.
    Parked,
    /// Somebody else has written: read again.
    Again,
    /// Another host drives it.
    Moved,
}

impl Inner {
    pub(super) async fn drive(self: Arc<Self>, run: &str, why: Why) {
        let namespace = run.split('/').next().unwrap_or_default();
        let Some(mut turn) = self.turns.take(namespace, why).await else { return };
        let mut wait = Duration::from_millis(50);
        // What is under way goes on when the run is read again.
        let mut flights = Flights::new();
        let mut asked: HashSet<String> = HashSet::new();
        loop {
            match self.clone().drive_once(run, &mut flights, &mut asked).await {
                Ok(Turn::Parked) => {
                    self.is_readable(run);
                    return;
                }
                Ok(Turn::Again) => {
                    self.is_readable(run);
                    if self.records.hosts.is_some() {
                        // Another host may have taken over, which this one is about to hear.
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
                Ok(Turn::Moved) => {
                    self.leave(run);
                    return;
                }
                Err(error) if error.kind == ErrorKind::Unavailable => {
                    // The store is away: what was told waits, and who told it, too.
                    tracing::warn!(run, %error, "a run cannot go on now");
                    // Others need the turn more: what keeps this one may be its own tenant's.
                    drop(turn);
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                    // It was cancelled by its state alone.
                    if !self.live.lock().contains_key(run) {
                        return;
                    }
                    let Some(next) = self.turns.take(namespace, why).await else { return };
                    turn = next;
                }
                Err(error) => {
                    tracing::error!(run, %error, "a run cannot go on");
                    self.is_unreadable(run, &error.message);
                    if let Some(live) = self.live.lock().remove(run) {
                        for letter in live.inbox {
                            answer(letter, Err(Error::new(error.kind, "workflow", error.message.clone())));
                        }
                    }
                    return;
                }
            }
        }
    }

    /// A run as its records make it: without a machine when it has no secret that it needs.
    pub(super) async fn load(&self, run: &str) -> Result<Option<Loaded>> {
        match self.records.kept(run).await? {
            Some(kept) => self.replay(kept).await.map(Some),
            None => Ok(None),
        }
    }

    async fn replay(&self, kept: Kept) -> Result<Loaded> {
        let Kept { state, version, checkpoint, first, records } = kept;
        let definition = self.definition(&state.namespace, &state.name, &state.version).await?;
        let Some((definition, defined)) =
            definition.filter(|(definition, _)| definition.digest() == state.digest)
        else {
            let message =
                format!("the definition {}/{} {} is not there", state.namespace, state.name, state.version);
            return Err(Error::new(ErrorKind::NotFound, "workflow", message));
        };
        let secrets = self.actions.secrets(&state.namespace, definition.secrets());
        // A vault that does not answer is no reason to hold a turn, or to keep an operator waiting.
        let secrets = tokio::time::timeout(SECRETS, secrets).await.unwrap_or_else(|_| {
            let message = format!("the secrets of {} did not come within {SECRETS:?}", state.namespace);
            Err(Error::new(ErrorKind::Unavailable, "workflow", message))
        })?;
        let (mut past, machine) = match checkpoint {
            Some((past, text)) => (past, Machine::restore(definition, &secrets, &text)),
            None => (Past::default(), Machine::new(definition, &secrets).map_err(NoRestore::from)),
        };
        records.iter().for_each(|record| past.note(record));
        let mut machine = match machine {
            Ok(machine) => machine,
            Err(NoRestore::Secret(missing)) => {
                let fault = Fault::new(Standard::Authorization, "/use/secrets", missing.to_string());
                let machine = Err(fault);
                return Ok(Loaded { state, version, defined, first, records, past, machine });
            }
            Err(NoRestore::Unreadable(problem)) => {
                let message = format!("the checkpoint of the run {:?}: {problem}", state.path());
                return Err(Error::new(ErrorKind::Unexpected, "workflow", message));
            }
        };
        // A state that is newer than the records that were read is read again with its next append, which fails.
        for (at, record) in Record::counting(&records).into_iter().enumerate() {
            machine.apply(record);
            if at % 64 == 63 {
                tokio::task::yield_now().await;
            }
        }
        Ok(Loaded { state, version, defined, first, records, past, machine: Ok(machine) })
    }

    /// Writes a state that differs from the one of this version, without a record.
    async fn restate(&self, state: &mut RunState, version: &mut Version, next: RunState) -> Result<bool> {
        match self.records.restate(Writer::Driver, state, &next, *version).await {
            Ok(written) => {
                (*state, *version) = (next, written);
                if state.phase != Phase::Running {
                    self.tell_end(state);
                }
                self.life.notify_one();
                Ok(true)
            }
            Err(error) if error.kind == ErrorKind::Conflict => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn drive_once(
        self: Arc<Self>,
        run: &str,
        flights: &mut Flights,
        asked: &mut HashSet<String>,
    ) -> Result<Turn> {
        if !self.is_placed_here(run, flights).await {
            return Ok(Turn::Moved);
        }
        let begun = self.live.lock().get_mut(run).and_then(|own| own.begun.take());
        let kept = match begun {
            Some(begun) => Some(begun),
            None => self.records.kept(run).await?,
        };
        let Some(kept) = kept else {
            self.live.lock().remove(run);
            return Ok(Turn::Parked);
        };
        let loaded = self.replay(kept).await?;
        let Loaded { mut state, mut version, first, records, mut past, machine, .. } = loaded;
        let most = self.records.most();
        let mut next = state.clone();
        match &machine {
            Ok(machine) if state.phase == Phase::Running => described(&mut next, machine, most),
            Err(fault) if state.phase == Phase::Running => {
                (next.wakes, next.asks, next.listens) = (None, false, None);
                (next.phase, next.error) = (Phase::Faulted, Some(short(&fault.0, most)));
            }
            _ => {}
        }
        // How the first record left it, which is its end where nothing is waited for; no other one is without a state.
        if next != state && !self.restate(&mut state, &mut version, next).await? {
            return Ok(Turn::Again);
        }
        let Ok(mut machine) = machine else {
            self.finish(run, &state);
            return Ok(Turn::Parked);
        };
        self.settle(run, first, &records);
        drop(records);
        let mut tried = Tried::default();
        loop {
            if state.phase != Phase::Running {
                self.finish(run, &state);
                return Ok(Turn::Parked);
            }
            if !self.is_placed_here(run, flights).await {
                return Ok(Turn::Moved);
            }
            let kept = (&mut state, &mut version);
            match self.keep_short(kept, &machine, &past, &mut tried).await {
                Err(error) if error.kind == ErrorKind::Conflict => return Ok(Turn::Again),
                short => short?,
            }
            let stopping = self.stopping.is_cancelled();
            let wanted: HashSet<&str> = machine.commands().iter().map(Command::step).collect();
            asked.retain(|step| wanted.contains(step.as_str()));
            for command in machine.commands().iter().filter(|_| !state.suspended && !stopping) {
                if matches!(command, Command::Arm { .. } | Command::Subscribe { .. }) {
                    continue;
                }
                if asked.insert(command.step().to_owned()) {
                    let key = self.key(&state, command.step(), &past);
                    let action = self.clone().act(&state, command.clone(), key);
                    flights.spawn(self.driving.track_future(action));
                }
            }
            let due = next_time(&machine).filter(|_| !state.suspended && !stopping);
            let now = self.now();
            let letter = {
                let mut live = self.live.lock();
                let Some(own) = live.get_mut(run) else { return Ok(Turn::Parked) };
                match own.inbox.pop_front() {
                    Some(letter) => Ok(letter),
                    None if due.is_some_and(|at| at <= now) => Ok(Letter::new(Told::Wake)),
                    None if flights.is_empty() => {
                        // Under the lock: what is told from here on finds nobody, and drives the run anew.
                        live.remove(run);
                        self.timers.lock().set(run, due);
                        self.timers_changed.notify_one();
                        return Ok(Turn::Parked);
                    }
                    None => Err(own.notify.clone()),
                }
            };
            let mut letter = match letter {
                Ok(letter) => letter,
                Err(notify) => {
                    let wait = due.map_or(3_600_000, |at| at.saturating_sub(now).clamp(1, 3_600_000));
                    tokio::select! {
                        biased;
                        Some((step, outcome)) = over(flights) => match outcome {
                            Some(outcome) if machine.commands().iter().any(|own| own.step() == step) => {
                                Letter::new(Told::Done(step, outcome))
                            }
                            // Nobody waits for it any more.
                            _ => continue,
                        },
                        () = notify.notified() => continue,
                        () = self.stopping.cancelled(), if !stopping => continue,
                        () = tokio::time::sleep(Duration::from_millis(wait)) => continue,
                    }
                }
            };
            // Another host's clock may be before this one's.
            let at = self.now().max(state.updated);
            let record = match &letter.told {
                Told::Event(event) => {
                    // Brokers deliver at least once.
                    if past.has_seen(event) {
                        answer(letter, Ok(()));
                        continue;
                    }
                    Record::Event { event: event.clone(), at }
                }
                // Nobody waits for it any more.
                Told::Done(step, _) | Told::Child(step, ..)
                    if !machine.commands().iter().any(|own| own.step() == step) =>
                {
                    answer(letter, Ok(()));
                    continue;
                }
                Told::Done(step, outcome) | Told::Child(step, outcome, _) => {
                    Record::Done { step: step.clone(), outcome: outcome.clone(), at }
                }
                Told::Cancelled => Record::Cancelled { at },
                Told::Wake if due.is_some_and(|due| due <= at) => Record::Time { at },
                Told::Wake => continue,
                Told::Reload => return Ok(Turn::Again),
            };
            let waited = match &letter.told {
                Told::Child(step, ..) => machine.commands().iter().find(|own| own.step() == step),
                _ => None,
            };
            let waited = waited.map(|command| (self.key(&state, command.step(), &past), command.kind()));
            let (next, record) = match self.after(&state, &mut machine, record, at) {
                Ok(made) => made,
                Err(error) => {
                    answer(letter, Err(error));
                    continue;
                }
            };
            let by = (Writer::Driver, Commit::new());
            let records = std::slice::from_ref(&record);
            let began = tokio::time::Instant::now();
            match self.records.append(by, records, &state, &next, version).await {
                Ok(written) => {
                    self.metrics.append.record(began.elapsed().as_secs_f64());
                    if let (Record::Time { at }, Some(due)) = (&record, due) {
                        self.metrics.lateness.record(at.saturating_sub(due) as f64 / 1e3);
                    }
                    let more = next.bytes.saturating_sub(state.bytes);
                    self.used(&state.namespace, |own| own.bytes = own.bytes.saturating_add(more));
                    if let (Some((key, kind)), Told::Child(_, outcome, took)) = (waited, &letter.told) {
                        self.step_is_over(&key, (&state.name, &state.version), kind, outcome, *took);
                    }
                    (state, version) = (next, written);
                    if state.phase != Phase::Running {
                        self.tell_end(&state);
                    }
                    if self.config.lifecycle {
                        self.life.notify_one();
                    }
                    past.note(&record);
                    answer(letter, Ok(()));
                }
                Err(error) => {
                    // What a machine was told and is not stored did not happen; whether it is stored, the records say.
                    letter.tried = Some((state.records, record));
                    if let Some(own) = self.live.lock().get_mut(run) {
                        own.inbox.push_front(letter);
                    }
                    return match error.kind {
                        ErrorKind::Conflict => Ok(Turn::Again),
                        _ => Err(error),
                    };
                }
            }
        }
    }

    /// Tells a machine of a record: the state that it makes, and the record as it is stored.
    pub(super) fn after(
        &self,
        state: &RunState,
        machine: &mut Machine,
        record: Record,
        at: u64,
    ) -> Result<(RunState, Record)> {
        let (record, bytes) = self.records.fitting(record)?;
        machine.apply(&record);
        let mut next = RunState { records: state.records + 1, updated: at, ..state.clone() };
        described(&mut next, machine, self.records.most());
        next.bytes += bytes;
        self.hold(&mut next, machine);
        Ok((next, record))
    }

    /// Whether this host drives a run; it waits while that is not known, and keeps the answers that come meanwhile.
    async fn is_placed_here(&self, run: &str, flights: &mut Flights) -> bool {
        let Some(hosts) = &self.records.hosts else { return true };
        loop {
            let round = hosts.round();
            match self.place(run) {
                None | Some(Place::Here(_)) => return true,
                Some(Place::There(_)) => return false,
                Some(Place::Undecided) => {}
            }
            tokio::select! {
                biased;
                Some((step, outcome)) = over(flights) => {
                    if let (Some(outcome), Some(own)) = (outcome, self.live.lock().get_mut(run)) {
                        own.inbox.push_back(Letter::new(Told::Done(step, outcome)));
                    }
                }
                _ = hosts.changed(round) => {}
            }
        }
    }

    /// Answers the word that was appended without an answer of the store, when the records say that it was.
    fn settle(&self, run: &str, first: u64, records: &[Record]) {
        let mut live = self.live.lock();
        let Some(own) = live.get_mut(run) else { return };
        let stored =
            own.inbox.front().and_then(|letter| letter.tried.as_ref()).is_some_and(|(at, record)| {
                // Before the first, another host has gone on with it: then it is told again, and known again.
                let at = at.checked_sub(first).and_then(|at| usize::try_from(at).ok());
                at.and_then(|at| records.get(at)) == Some(record)
            });
        if let Some(letter) = stored.then(|| own.inbox.pop_front()).flatten() {
            answer(letter, Ok(()));
        }
    }

    /// Ends a run that keeps too much.
    fn hold(&self, state: &mut RunState, machine: &Machine) {
        let (records, bytes) = (self.config.records_per_run, self.config.bytes_per_run);
        let before = state.checkpoint.map_or(0, |kept| kept.records);
        let (own, held) = (state.records.saturating_sub(before), state.kept_bytes());
        if state.phase != Phase::Running || (own <= records && held <= bytes) {
            return;
        }
        let why = match machine.checkpoint() {
            Err(error) => format!("; no checkpoint stands for them, since {error}"),
            Ok(_) => String::new(),
        };
        let detail = format!(
            "the run keeps {own} records, and {held} bytes; a run may keep {records}, and {bytes} bytes{why}: let it start another one, \
             with what it has come to as input, and end"
        );
        let fault = Fault::new(Standard::Runtime, "", detail);
        (state.phase, state.error, state.wakes, state.asks) =
            (Phase::Faulted, Some(fault.0.into()), None, false);
        state.listens = None;
    }

    /// A run has ended: who waits for it is told.
    pub(super) fn finish(self: &Arc<Self>, run: &str, state: &RunState) {
        self.timers.lock().set(run, None);
        if let Some(live) = self.live.lock().remove(run) {
            // Whoever drives it, where another one ended it, drops what is under way.
            live.notify.notify_one();
            for letter in live.inbox {
                answer(letter, Err(has_ended(run)));
            }
        }
        if let (Some(parent), Some(outcome)) = (&state.parent, outcome_of(state)) {
            // A full inbox, or another host: the parent asks again when it goes on.
            let took = Duration::from_millis(state.updated.saturating_sub(state.started));
            self.wake(&parent.run, Told::Child(parent.step.clone(), outcome, took));
        }
    }

    /// The key under which a step is done now.
    fn key(&self, state: &RunState, step: &str, past: &Past) -> StepKey {
        // What was answered with a failure is asked for anew, and not the same again.
        let again = match past.retries.get(step) {
            None | Some(0) => String::new(),
            Some(retries) => format!("~{retries}"),
        };
        self.traced(StepKey {
            namespace: state.namespace.clone(),
            run: state.id.clone(),
            step: format!("{step}{again}"),
            sampled: false,
        })
    }

    fn act(
        self: Arc<Self>,
        state: &RunState,
        command: Command,
        key: StepKey,
    ) -> impl Future<Output = Over> + Send + use<> {
        let step = command.step().to_owned();
        let kind = command.kind();
        let (workflow, version) = (state.name.clone(), state.version.clone());
        let parent = Parent { run: state.path(), step: step.clone() };
        async move {
            self.turns.step(&key.namespace).await;
            let began = tokio::time::Instant::now();
            let outcome = match command {
                Command::Call { request, .. } => Some(self.actions.call(&key, &request).await),
                Command::Invoke { service, input, .. } => {
                    Some(self.actions.invoke(&key, &service, &input).await)
                }
                Command::Emit { event, .. } => Some(self.actions.emit(&key, &event).await),
                Command::Start { namespace, name, version, input, wait, .. } => {
                    let child = Arc::clone(&self);
                    child.child(&key, [&namespace, &name, &version], input, wait.then_some(parent)).await
                }
                Command::Arm { .. } | Command::Subscribe { .. } => None,
            };
            if let Some(outcome) = &outcome {
                self.step_is_over(&key, (&workflow, &version), kind, outcome, began.elapsed());
            }
            (step, outcome)
        }
    }

    async fn child(
        self: Arc<Self>,
        key: &StepKey,
        definition: [&str; 3],
        input: Json,
        parent: Option<Parent>,
    ) -> Option<Outcome> {
        // A run has the secrets of its namespace, and its tenant pays for it: nobody starts one for another.
        if definition[0] != key.namespace {
            let reason = format!(
                "the workflow {}/{} is of another namespace; a run of {} starts those of {}",
                definition[0], definition[1], key.namespace, key.namespace
            );
            return Some(Outcome::Failed { reason });
        }
        let digest = Sha256::new()
            .chain_update(&key.namespace)
            .chain_update([0])
            .chain_update(&key.run)
            .chain_update([0])
            .chain_update(&key.step)
            .finalize();
        let id = digest.iter().take(16).fold(CHILD.to_owned(), |id, byte| format!("{id}{byte:02x}"));
        let waits = parent.is_some();
        let began = tokio::time::Instant::now();
        let mut wait = Duration::from_millis(200);
        loop {
            let started = Started { input: input.clone(), parent: parent.clone(), ..Started::default() };
            match self.clone().start(definition, &id, started).await {
                Ok(_) if !waits => return Some(Outcome::Output(Json::Null)),
                Ok((state, _)) => return outcome_of(&state),
                // It is asked again after the next start, under the same id.
                Err(_) if self.stopping.is_cancelled() => return None,
                Err(error)
                    if matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Exhausted)
                        && began.elapsed() < PATIENCE =>
                {
                    tokio::time::sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(10));
                }
                Err(error) => return Some(Outcome::Failed { reason: error.to_string() }),
            }
        }
    }
}

pub(super) fn answer(letter: Letter, result: Result<()>) {
    if let Some(stored) = letter.stored {
        // Who has gone does not want to know.
        let _ = stored.send(result);
    }
}

/// The types of events that a run listens for; empty: any.
fn listens(machine: &Machine) -> Option<Vec<String>> {
    let mut subscribed = machine.commands().iter().filter_map(|command| match command {
        Command::Subscribe { types, .. } => Some(types),
        _ => None,
    });
    let mut all = subscribed.next()?.clone();
    for types in subscribed {
        if types.is_empty() || all.is_empty() {
            return Some(Vec::new());
        }
        all.extend(types.iter().cloned());
    }
    all.sort_unstable();
    all.dedup();
    Some(all)
}

fn next_time(machine: &Machine) -> Option<u64> {
    let times = machine.commands().iter().filter_map(|command| match command {
        Command::Arm { at, .. } => Some(*at),
        _ => None,
    });
    times.min()
}

/// How a child ended; `None`: it has not.
fn outcome_of(state: &RunState) -> Option<Outcome> {
    let error = |title: &str| serde_json::json!({"type": "about:blank", "status": 500, "title": title});
    match state.phase {
        Phase::Running => None,
        Phase::Completed => Some(Outcome::Output(state.output.clone().unwrap_or(Json::Null))),
        Phase::Faulted => {
            Some(Outcome::Error(state.error.clone().unwrap_or_else(|| error("the child faulted"))))
        }
        Phase::Cancelled => Some(Outcome::Error(error("the child was cancelled"))),
    }
}

/// Writes down how the machine stands. Of a suspended run nothing is to be done.
pub(super) fn described(state: &mut RunState, machine: &Machine, most: usize) {
    state.suspended &= !machine.status().is_final();
    state.wakes = next_time(machine).filter(|_| !state.suspended);
    state.listens = listens(machine);
    state.asks = !state.suspended
        && machine
            .commands()
            .iter()
            .any(|command| !matches!(command, Command::Arm { .. } | Command::Subscribe { .. }));
    match machine.status() {
        Status::Pending | Status::Running => {}
        Status::Completed(output) => {
            let size = output.to_string().len();
            if size > most / 2 {
                state.phase = Phase::Faulted;
                let detail = format!("the output has {size} bytes; this store takes {}", most / 2);
                state.error =
                    Some(serde_json::json!({"type": "about:blank", "status": 500, "detail": detail}));
            } else {
                (state.phase, state.output) = (Phase::Completed, Some(output.clone()));
            }
        }
        Status::Faulted(error) => {
            let error = match error {
                Json::Object(members) => short(members, most),
                other => other.clone(),
            };
            (state.phase, state.error) = (Phase::Faulted, Some(error));
        }
        Status::Cancelled => state.phase = Phase::Cancelled,
    }
}
