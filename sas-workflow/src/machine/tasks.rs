//! Tasks, one step after the other.

use sas_jq::Value;
use serde_json::Value as Json;

use super::{
    Cx, DEEPEST, Locals, MOST_AT_ONCE, MOST_TASKS, Scope, Visit,
    state::{Around, Body, Branch, Ended, List, Listening, Phase, State, Try},
};
use crate::{
    data::{Data, HELD},
    definition::{Backoff, Catch, Kind, Raised, Retry, Task, Then},
    fault::{Fault, Standard},
    record::{Body as Bytes, Command, Outcome},
};

/// Most rounds of a loop.
const MOST_ITEMS: usize = 100_000;

/// `None`: it waits.
type Advanced = Result<Option<Ended>, Fault>;

impl Cx {
    /// Goes on with a list as far as it can. `at` is the id of the list.
    pub(super) fn list(&mut self, tasks: &[Task], list: &mut List, at: &str, locals: &Locals) -> Advanced {
        list.rounds.resize(tasks.len(), 0);
        while let Some(task) = tasks.get(list.at) {
            if list.task.is_none() {
                if self.turn == 0 {
                    self.commands.push(Command::Arm { step: format!("{at}/turn"), at: self.now });
                    return Ok(None);
                }
                let round = list.rounds[list.at];
                list.rounds[list.at] += 1;
                let name = task.pointer.rsplit('/').next().unwrap_or_default();
                let again = if round == 0 { String::new() } else { format!("#{round}") };
                let step = format!("{at}/{}/{name}{again}", list.at);
                match self.enter(task, step, list.input.clone(), locals)? {
                    Some(state) => list.task = Some(Box::new(state)),
                    None => {
                        list.at += 1;
                        continue;
                    }
                }
            }
            let Some(state) = &mut list.task else { return Ok(None) };
            let Some((ended, then)) = self.task(task, state, locals)? else { return Ok(None) };
            list.task = None;
            list.input = ended.output;
            if ended.all {
                return Ok(Some(Ended { output: std::mem::take(&mut list.input), all: true }));
            }
            match then {
                Then::Continue => list.at += 1,
                Then::Exit => break,
                Then::End => return Ok(Some(Ended { output: std::mem::take(&mut list.input), all: true })),
                Then::Task(name) => match tasks.iter().position(|task| task.name == name) {
                    Some(next) => list.at = next,
                    None => {
                        let problem = format!("there is no task {name:?} to go to");
                        return Err(Fault::new(Standard::Configuration, &task.pointer, problem));
                    }
                },
            }
        }
        Ok(Some(Ended::with(std::mem::take(&mut list.input))))
    }

    /// `None`: its condition does not hold.
    fn enter(
        &mut self,
        task: &Task,
        step: String,
        raw: Value,
        locals: &Locals,
    ) -> Result<Option<State>, Fault> {
        let most = match (self.left.checked_sub(1), self.life.checked_sub(1)) {
            (Some(left), Some(life)) => {
                (self.left, self.life) = (left, life);
                None
            }
            (None, _) => {
                Some(format!("the run comes to more than {MOST_AT_ONCE} tasks without waiting for anything"))
            }
            (_, None) => Some(format!(
                "the run comes to more than {MOST_TASKS} tasks: let it start another one, and end"
            )),
        };
        if let Some(problem) = most {
            return Err(Fault::new(Standard::Runtime, &task.pointer, problem));
        }
        self.turn = self.turn.saturating_sub(1);
        let name = Some(task.name.as_str());
        let scope = Scope { pointer: &task.pointer, input: &raw, output: None, locals, task: name };
        if let Some(condition) = &task.condition
            && !self.holds(condition, &raw, &scope)?
        {
            return Ok(None);
        }
        self.visits.push(Visit {
            step: step.clone(),
            task: task.name.clone(),
            pointer: task.pointer.clone(),
            at: self.now,
        });
        let null = Value::Null;
        let scope = Scope { input: &null, ..scope };
        let input = self.incoming(&task.input, raw.clone(), &scope)?;
        let scope = Scope { pointer: &task.pointer, input: &input, output: None, locals, task: name };
        let deadline = match &task.timeout {
            Some(timeout) => Some(self.deadline(timeout, &scope)?),
            None => None,
        };
        let around = self.around(task, &scope)?;
        Ok(Some(State { step, input, deadline, around, body: Body::New }))
    }

    /// The extensions that apply.
    fn around(&self, task: &Task, scope: &Scope<'_>) -> Result<Around, Fault> {
        let mut around = Around::default();
        // Extensions do not extend their own tasks.
        if task.pointer.starts_with("/use/extensions/") {
            return Ok(around);
        }
        let (kind, composite) = match &task.kind {
            Kind::Set(_) => ("set", false),
            Kind::Do(_) => ("do", true),
            Kind::Fork { .. } => ("fork", true),
            Kind::For { .. } => ("for", true),
            Kind::Try { .. } => ("try", true),
            Kind::Switch(_) => ("switch", false),
            Kind::Raise(_) => ("raise", false),
            Kind::Wait(_) => ("wait", false),
            Kind::Emit(_) => ("emit", false),
            Kind::Listen(_) => ("listen", false),
            Kind::Http(_) | Kind::OpenApi(_) | Kind::Call { .. } => ("call", false),
            Kind::Workflow { .. } | Kind::Refused(_) => ("run", false),
        };
        for (at, extension) in self.definition.0.uses.extensions.iter().enumerate() {
            let extend = extension.extend.as_str();
            if extend != "all" && extend != kind && !(extend == "composite" && composite) {
                continue;
            }
            if let Some(when) = &extension.when
                && !self.holds(when, scope.input, scope)?
            {
                continue;
            }
            around.before.push(at);
            around.after.push(at);
        }
        Ok(around)
    }

    fn task(
        &mut self,
        task: &Task,
        state: &mut State,
        locals: &Locals,
    ) -> Result<Option<(Ended, Then)>, Fault> {
        // An extension may call a function whose tasks it extends: no definition shows how deep that goes.
        if self.depth == DEEPEST {
            let problem = format!("the task {:?} is in more than {DEEPEST} others", task.name);
            return Err(Fault::new(Standard::Runtime, &task.pointer, problem));
        }
        self.depth += 1;
        let ended = self.within(task, state, locals);
        self.depth -= 1;
        ended
    }

    fn within(
        &mut self,
        task: &Task,
        state: &mut State,
        locals: &Locals,
    ) -> Result<Option<(Ended, Then)>, Fault> {
        if let Some(at) = state.deadline {
            if self.now >= at {
                let problem = format!("the task {:?} took longer than its timeout", task.name);
                return Err(Fault::new(Standard::Timeout, &task.pointer, problem));
            }
            self.commands.push(Command::Arm { step: format!("{}/timeout", state.step), at });
        }
        let definition = self.definition.clone();
        let extensions = &definition.0.uses.extensions;
        while let Some(at) = state.around.before.first().copied() {
            let step = format!("{}/before/{at}", state.step);
            let list = state.around.list.get_or_insert_with(|| List::new(state.input.clone()));
            if self.list(&extensions[at].before, list, &step, locals)?.is_none() {
                return Ok(None);
            }
            state.around.list = None;
            state.around.before.remove(0);
        }
        let mut then = task.then.clone();
        let ended = match state.around.output.take() {
            Some(ended) => ended,
            None => {
                let Some(raw) = self.body(task, state, locals, &mut then)? else { return Ok(None) };
                let input = state.input.clone();
                let scope = Scope {
                    pointer: &task.pointer,
                    input: &input,
                    output: None,
                    locals,
                    task: Some(&task.name),
                };
                let output = self.outgoing(&task.output, raw.output, &scope)?;
                if task.export.change.is_some() || task.export.schema.is_some() {
                    let scope = Scope { output: Some(&output), ..scope };
                    self.context = self.outgoing(&task.export, output.clone(), &scope)?;
                }
                Ended { output, all: raw.all }
            }
        };
        while let Some(at) = state.around.after.first().copied() {
            let step = format!("{}/after/{at}", state.step);
            let list = state.around.list.get_or_insert_with(|| List::new(ended.output.clone()));
            match self.list(&extensions[at].after, list, &step, locals)? {
                None => {
                    state.around.output = Some(ended);
                    return Ok(None);
                }
                Some(_) => {
                    state.around.list = None;
                    state.around.after.remove(0);
                }
            }
        }
        Ok(Some((ended, then)))
    }

    fn body(&mut self, task: &Task, state: &mut State, locals: &Locals, then: &mut Then) -> Advanced {
        let input = state.input.clone();
        let scope =
            Scope { pointer: &task.pointer, input: &input, output: None, locals, task: Some(&task.name) };
        let step = state.step.clone();
        match &task.kind {
            Kind::Set(data) => self.evaluate(data, &input, &scope).map(|output| Some(Ended::with(output))),
            Kind::Do(tasks) => {
                if matches!(state.body, Body::New) {
                    state.body = Body::List(List::new(input));
                }
                let Body::List(list) = &mut state.body else { return Ok(None) };
                self.list(tasks, list, &format!("{step}/do"), locals)
            }
            Kind::Fork { branches, compete } => self.fork(branches, *compete, state, locals),
            Kind::For { each, at, items, condition, tasks } => {
                if matches!(state.body, Body::New) {
                    let items = match self.evaluate(items, &input, &scope)? {
                        Value::Array(items) => items.as_slice().to_vec(),
                        Value::Null => Vec::new(),
                        other => {
                            let problem = format!("for goes over an array, not {}", other.kind());
                            return Err(Fault::new(Standard::Expression, &task.pointer, problem));
                        }
                    };
                    if items.len() > MOST_ITEMS {
                        let problem = format!("for goes over {} items; at most {MOST_ITEMS}", items.len());
                        return Err(Fault::new(Standard::Runtime, &task.pointer, problem));
                    }
                    state.body = Body::For { items, at: 0, list: None, input: input.clone() };
                }
                let Body::For { items, at: round, list, input } = &mut state.body else { return Ok(None) };
                while let Some(item) = items.get(*round) {
                    let mut inner = locals.clone();
                    inner.extend([(each.clone(), item.clone()), (at.clone(), (*round).into())]);
                    if list.is_none() {
                        let scope = Scope { locals: &inner, input, ..scope };
                        if let Some(condition) = condition
                            && !self.holds(condition, input, &scope)?
                        {
                            break;
                        }
                    }
                    let running = list.get_or_insert_with(|| List::new(input.clone()));
                    let Some(ended) = self.list(tasks, running, &format!("{step}/for/{round}/do"), &inner)?
                    else {
                        return Ok(None);
                    };
                    (*list, *input) = (None, ended.output);
                    if ended.all {
                        return Ok(Some(Ended { output: input.clone(), all: true }));
                    }
                    *round += 1;
                }
                Ok(Some(Ended::with(input.clone())))
            }
            Kind::Try { tasks, catch } => self.try_catch(task, tasks, catch, state, locals, then),
            Kind::Switch(cases) => {
                for case in cases {
                    let holds = match &case.when {
                        Some(when) => self.holds(when, &input, &scope)?,
                        None => true,
                    };
                    if holds {
                        *then = case.then.clone();
                        break;
                    }
                }
                Ok(Some(Ended::with(input)))
            }
            Kind::Raise(error) => Err(self.raised(error, &input, &scope)),
            Kind::Wait(span) => {
                let at = match state.body {
                    Body::Wait(at) => at,
                    _ => self.after(span, &scope)?,
                };
                state.body = Body::Wait(at);
                if self.now >= at {
                    return Ok(Some(Ended::with(input)));
                }
                self.commands.push(Command::Arm { step, at });
                Ok(None)
            }
            Kind::Emit(data) => self.asked(state, &task.pointer, |cx| {
                let event = cx.event_of(data, &step, &input, &scope)?;
                let output = Value::from_json(&event).unwrap_or_default();
                Ok((Command::Emit { step: step.clone(), event }, output))
            }),
            Kind::Call { name, with } => {
                let definition = self.definition.clone();
                match definition.0.uses.functions.get(name) {
                    Some(function) => self.function(function, with, state, &scope, locals),
                    None => self.asked(state, &task.pointer, |cx| {
                        let told = cx.evaluate(with, &input, &scope)?.to_json();
                        Ok((
                            Command::Invoke { step: step.clone(), service: name.clone(), input: told },
                            Value::Null,
                        ))
                    }),
                }
            }
            Kind::Workflow { namespace, name, version, input: data, wait } => {
                let output = self.asked(state, &task.pointer, |cx| {
                    let told = match data {
                        Some(data) => cx.evaluate(data, &input, &scope)?,
                        None => input.clone(),
                    };
                    let start = Command::Start {
                        step: step.clone(),
                        namespace: namespace.clone(),
                        name: name.clone(),
                        version: version.clone(),
                        input: told.to_json(),
                        wait: *wait,
                    };
                    Ok((start, Value::Null))
                })?;
                Ok(output.map(|ended| if *wait { ended } else { Ended::with(input.clone()) }))
            }
            Kind::Http(call) => self.http(call, state, &scope),
            Kind::OpenApi(call) => self.openapi(call, state, &scope),
            Kind::Listen(listen) => {
                if matches!(state.body, Body::New) {
                    state.body = Body::Listen(Listening { since: self.told, ..Listening::default() });
                }
                let Body::Listen(listening) = &mut state.body else { return Ok(None) };
                self.listen(listen, listening, &step, &scope)
            }
            Kind::Refused(reason) => Err(Fault::new(Standard::Runtime, &task.pointer, reason.clone())),
        }
    }

    /// Asks for something once, and takes what comes of it; with `null`, the output is the one that was kept.
    fn asked(
        &mut self,
        state: &mut State,
        pointer: &str,
        ask: impl FnOnce(&Self) -> Result<(Command, Value), Fault>,
    ) -> Advanced {
        if matches!(state.body, Body::New) {
            let (command, output) = ask(self)?;
            state.body = Body::Asked(Box::new(command), output);
        }
        let Body::Asked(command, output) = &state.body else { return Ok(None) };
        match self.take(&state.step) {
            None => {
                self.commands.push(Command::clone(command));
                Ok(None)
            }
            Some(Outcome::Output(Json::Null)) => Ok(Some(Ended::with(output.clone()))),
            Some(Outcome::Output(made)) => match Value::from_json(&made) {
                Ok(made) => Ok(Some(Ended::with(made))),
                Err(error) => Err(Fault::evaluation(pointer, &error)),
            },
            Some(Outcome::Failed { reason }) => Err(Fault::new(Standard::Communication, pointer, reason)),
            Some(Outcome::Error(Json::Object(members))) => Err(Fault(members)),
            Some(Outcome::Error(other)) => Err(Fault::new(Standard::Runtime, pointer, other.to_string())),
            // A service of the platform that answered with no success.
            Some(Outcome::Answer { status, body, .. }) => {
                let text: String = match &body {
                    Bytes::Text(text) => text.chars().take(1_000).collect(),
                    Bytes::Base64(_) => "bytes".to_owned(),
                };
                let detail = format!("the answer has the status {status}: {text}");
                Err(Fault::new(Standard::Communication, pointer, detail).with_status(status))
            }
        }
    }

    fn function(
        &mut self,
        function: &Task,
        with: &Data,
        state: &mut State,
        scope: &Scope<'_>,
        locals: &Locals,
    ) -> Advanced {
        if matches!(state.body, Body::New) {
            let told = self.evaluate(with, scope.input, scope)?;
            let told = if matches!(told, Value::Null) { scope.input.clone() } else { told };
            match self.enter(function, format!("{}/function", state.step), told.clone(), locals)? {
                Some(inner) => state.body = Body::Function(Box::new(inner)),
                None => return Ok(Some(Ended::with(told))),
            }
        }
        let Body::Function(inner) = &mut state.body else { return Ok(None) };
        Ok(self.task(function, inner, locals)?.map(|(ended, _)| ended))
    }

    fn fork(&mut self, branches: &[Task], compete: bool, state: &mut State, locals: &Locals) -> Advanced {
        if matches!(state.body, Body::New) {
            let none = |_: &Task| Branch { state: None, output: None };
            state.body = Body::Fork(branches.iter().map(none).collect());
            for (at, task) in branches.iter().enumerate() {
                let step = format!("{}/fork/branches/{at}/{}", state.step, task.name);
                let entered = self.enter(task, step, state.input.clone(), locals)?;
                let Body::Fork(running) = &mut state.body else { return Ok(None) };
                running[at] = match entered {
                    Some(state) => Branch { state: Some(state), output: None },
                    None => Branch { state: None, output: Some(Ended::with(state.input.clone())) },
                };
            }
        }
        let Body::Fork(running) = &mut state.body else { return Ok(None) };
        let weight = |ended: &Ended| ended.output.weight();
        let outputs = running.iter().filter_map(|branch| branch.output.as_ref());
        let mut held = outputs.map(weight).fold(0, usize::saturating_add);
        let mut waiting = false;
        for (task, branch) in branches.iter().zip(running.iter_mut()) {
            if let Some(inner) = &mut branch.state {
                match self.task(task, inner, locals)? {
                    Some((ended, then)) => {
                        let all = ended.all || then == Then::End;
                        if compete || all {
                            return Ok(Some(Ended { output: ended.output, all }));
                        }
                        held = held.saturating_add(weight(&ended));
                        if held > HELD {
                            let problem = format!("the outputs of the branches take more than {HELD} bytes");
                            return Err(Fault::new(Standard::Runtime, &task.pointer, problem));
                        }
                        *branch = Branch { state: None, output: Some(ended) };
                    }
                    None => waiting = true,
                }
            }
        }
        if waiting {
            return Ok(None);
        }
        let outputs: Vec<Value> = running
            .iter()
            .filter_map(|branch| branch.output.as_ref().map(|ended| ended.output.clone()))
            .collect();
        match (compete, Value::list(outputs.clone())) {
            (true, _) => Ok(Some(Ended::with(outputs.into_iter().next().unwrap_or_default()))),
            (false, Ok(outputs)) => Ok(Some(Ended::with(outputs))),
            (false, Err(error)) => Err(Fault::evaluation("", &error)),
        }
    }

    fn raised(&self, error: &Result<Raised, String>, input: &Value, scope: &Scope<'_>) -> Fault {
        let data = match error {
            Ok(Raised(data)) => data,
            Err(name) => match self.definition.0.uses.errors.get(name) {
                Some(Raised(data)) => data,
                None => {
                    let problem = format!("the error {name:?} is not defined");
                    return Fault::new(Standard::Configuration, scope.pointer, problem);
                }
            },
        };
        match self.evaluate(data, input, scope).map(|value| value.to_json()) {
            Ok(Json::Object(mut members)) => {
                members.entry("instance").or_insert_with(|| scope.pointer.into());
                Fault(members)
            }
            Ok(_) => Fault::new(Standard::Configuration, scope.pointer, "an error must be an object"),
            Err(fault) => fault,
        }
    }

    fn try_catch(
        &mut self,
        task: &Task,
        tasks: &[Task],
        catch: &Catch,
        state: &mut State,
        locals: &Locals,
        then: &mut Then,
    ) -> Advanced {
        let input = state.input.clone();
        if matches!(state.body, Body::New) {
            let phase =
                Phase::Trying(List::new(input.clone()), self.attempt_ends(task, catch, &input, locals)?);
            state.body = Body::Try(Try { began: self.now, attempt: 0, phase });
        }
        let step = state.step.clone();
        let Body::Try(trying) = &mut state.body else { return Ok(None) };
        loop {
            let again = if trying.attempt == 0 { String::new() } else { format!("@{}", trying.attempt) };
            let fault = match &mut trying.phase {
                Phase::Waiting(at) => {
                    if self.now < *at {
                        self.commands.push(Command::Arm { step: format!("{step}/retry{again}"), at: *at });
                        return Ok(None);
                    }
                    trying.attempt += 1;
                    let ends = self.attempt_ends(task, catch, &input, locals)?;
                    trying.phase = Phase::Trying(List::new(input.clone()), ends);
                    continue;
                }
                Phase::Handling(list, fault) => {
                    let mut inner = locals.clone();
                    inner.push((catch.name.clone(), fault.value()));
                    let handler = catch.tasks.as_deref().unwrap_or_default();
                    let ended = self.list(handler, list, &format!("{step}/catch/do"), &inner)?;
                    if ended.is_some() && catch.then != Then::Continue {
                        *then = catch.then.clone();
                    }
                    return Ok(ended);
                }
                Phase::Trying(list, ends) => {
                    let late = ends.is_some_and(|ends| self.now >= ends);
                    let ended = if late {
                        Err(Fault::new(
                            Standard::Timeout,
                            &task.pointer,
                            "the attempt took longer than it may",
                        ))
                    } else {
                        self.list(tasks, list, &format!("{step}/try{again}"), locals)
                    };
                    match ended {
                        Ok(Some(ended)) => return Ok(Some(ended)),
                        Ok(None) => {
                            if let Some(at) = *ends {
                                self.commands
                                    .push(Command::Arm { step: format!("{step}/attempt{again}"), at });
                            }
                            return Ok(None);
                        }
                        Err(fault) => fault,
                    }
                }
            };
            let mut inner = locals.clone();
            inner.push((catch.name.clone(), fault.value()));
            let scope = Scope {
                pointer: &task.pointer,
                input: &input,
                output: None,
                locals: &inner,
                task: Some(&task.name),
            };
            let mut caught = fault.is(&catch.with);
            if let Some(when) = &catch.when {
                caught = caught && self.holds(when, &input, &scope)?;
            }
            if let Some(except) = &catch.except_when {
                caught = caught && !self.holds(except, &input, &scope)?;
            }
            if !caught {
                return Err(fault);
            }
            let definition = self.definition.clone();
            let retry = match &catch.retry {
                None => None,
                Some(Ok(retry)) => Some(retry),
                Some(Err(name)) => definition.0.uses.retries.get(name),
            };
            match retry.map(|retry| self.next_attempt(retry, trying, &step, &scope)).transpose()?.flatten() {
                Some(at) => trying.phase = Phase::Waiting(at),
                None if catch.tasks.is_none() && retry.is_some() => return Err(fault),
                None => trying.phase = Phase::Handling(List::new(input.clone()), fault),
            }
        }
    }

    fn attempt_ends(
        &self,
        task: &Task,
        catch: &Catch,
        input: &Value,
        locals: &Locals,
    ) -> Result<Option<u64>, Fault> {
        let retry = match &catch.retry {
            None => None,
            Some(Ok(retry)) => Some(retry),
            Some(Err(name)) => self.definition.0.uses.retries.get(name),
        };
        let scope = Scope { pointer: &task.pointer, input, output: None, locals, task: Some(&task.name) };
        match retry.and_then(|retry| retry.attempt_duration.as_ref()) {
            Some(span) => self.after(span, &scope).map(Some),
            None => Ok(None),
        }
    }

    /// When the next attempt begins; `None`: there is none.
    fn next_attempt(
        &self,
        retry: &Retry,
        trying: &Try,
        step: &str,
        scope: &Scope<'_>,
    ) -> Result<Option<u64>, Fault> {
        if retry.attempts.is_some_and(|most| trying.attempt >= most) {
            return Ok(None);
        }
        if let Some(when) = &retry.when
            && !self.holds(when, scope.input, scope)?
        {
            return Ok(None);
        }
        if let Some(except) = &retry.except_when
            && self.holds(except, scope.input, scope)?
        {
            return Ok(None);
        }
        let span = |span: &Option<crate::data::Span>| match span {
            Some(span) => self.after(span, scope).map(|at| at - self.now),
            None => Ok(0),
        };
        let delay = span(&retry.delay)?;
        let delay = match retry.backoff {
            Backoff::Constant => delay,
            Backoff::Linear => delay.saturating_mul(trying.attempt + 1),
            Backoff::Exponential => delay.saturating_mul(
                1_u64.checked_shl(u32::try_from(trying.attempt).unwrap_or(63).min(63)).unwrap_or(u64::MAX),
            ),
        };
        let jitter = match &retry.jitter {
            None => 0,
            Some((from, to)) => {
                let (from, to) = (self.after(from, scope)? - self.now, self.after(to, scope)? - self.now);
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "milliseconds of at most a hundred years"
                )]
                let more = (to.saturating_sub(from) as f64
                    * self.random(&format!("{step}@{}", trying.attempt))) as u64;
                from + more
            }
        };
        let at = self.now.saturating_add(delay).saturating_add(jitter);
        let most = span(&retry.duration)?;
        if retry.duration.is_some() && at >= trying.began.saturating_add(most) {
            return Ok(None);
        }
        Ok(Some(at))
    }
}
