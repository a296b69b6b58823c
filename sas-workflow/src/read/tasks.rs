//! Tasks, but calls.

use serde_json::Value as Json;

use super::{Component, Reader};
use crate::{
    data::{Data, Span},
    definition::{Case, Catch, Each, Kind, Listen, Read, Refused, Task, Then},
    mistakes::{Fields, below, shown},
};

/// How deep tasks may stand in tasks.
const DEEPEST: usize = 20;
/// Most tasks of one list.
const MOST: usize = 1_000;

const KINDS: [&str; 12] =
    ["call", "do", "fork", "emit", "for", "listen", "raise", "run", "set", "switch", "try", "wait"];

impl Reader<'_> {
    pub(super) fn tasks(&mut self, at: &str, json: &Json) -> Vec<Task> {
        let Json::Array(items) = json else {
            self.mistakes.push(at, format!("is {}, must be a list of tasks", shown(json)));
            return Vec::new();
        };
        if items.len() > MOST {
            self.mistakes.push(at, format!("has {} tasks; at most {MOST}", items.len()));
            return Vec::new();
        }
        let mut tasks: Vec<Task> = Vec::new();
        let mut names: Vec<String> = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let at = format!("{at}/{n}");
            let Some((name, json)) = self.single(&at, item, "a task") else { continue };
            let at = below(&at, name);
            if names.iter().any(|known| known == name) {
                self.mistakes.push(&at, "another task of the list has this name");
            }
            names.push(name.to_owned());
            tasks.extend(self.task(&at, name, json));
        }
        for task in &tasks {
            let mut check = |then: &Then, at: String| {
                if let Then::Task(name) = then
                    && !names.contains(name)
                {
                    let known = names.join(", ");
                    let problem =
                        format!("{name:?} is no task of this list; there are continue, exit, end, {known}");
                    self.mistakes.push(&at, problem);
                }
            };
            check(&task.then, below(&task.pointer, "then"));
            match &task.kind {
                Kind::Switch(cases) => {
                    for case in cases {
                        check(&case.then, below(&case.pointer, "then"));
                    }
                }
                Kind::Try { catch, .. } => check(&catch.then, format!("{}/catch/then", task.pointer)),
                _ => {}
            }
        }
        tasks
    }

    fn then(&mut self, fields: &mut Fields<'_>) -> Then {
        match fields.string("then", self.mistakes) {
            None | Some("continue") => Then::Continue,
            Some("exit") => Then::Exit,
            Some("end") => Then::End,
            Some(name) => Then::Task(name.to_owned()),
        }
    }

    pub(super) fn task(&mut self, at: &str, name: &str, json: &Json) -> Option<Task> {
        if self.depth == DEEPEST {
            self.mistakes.push(at, format!("tasks stand in tasks deeper than {DEEPEST}"));
            return None;
        }
        self.depth += 1;
        let task = self.read_task(at, name, json);
        self.depth -= 1;
        task
    }

    fn read_task(&mut self, at: &str, name: &str, json: &Json) -> Option<Task> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        let condition = self.condition(&mut fields, "if");
        let mut filter = |reader: &mut Self, name: &'static str, change| {
            fields.take(name).map(|json| reader.filter(&below(at, name), json, change)).unwrap_or_default()
        };
        let input = filter(self, "input", "from");
        let output = filter(self, "output", "as");
        let export = filter(self, "export", "as");
        let timeout = fields.take("timeout").and_then(|json| self.timeout(&below(at, "timeout"), json));
        let then = self.then(&mut fields);
        fields.object("metadata", self.mistakes);
        let found: Vec<&str> = KINDS.into_iter().filter(|kind| fields.has(kind)).collect();
        let kind = match found[..] {
            ["do", "for"] => "for",
            [kind] => kind,
            [] => {
                self.mistakes.push(at, format!("no task: must have one of {}", KINDS.join(", ")));
                return None;
            }
            _ => {
                self.mistakes.push(at, format!("is several tasks at once: {}", found.join(", ")));
                return None;
            }
        };
        let kind = match kind {
            "set" => self.set(&mut fields),
            "do" => fields.take("do").map(|json| Kind::Do(self.tasks(&below(at, "do"), json))),
            "fork" => self.fork(&mut fields),
            "for" => self.for_each(&mut fields),
            "try" => self.try_catch(&mut fields),
            "switch" => self.switch(&mut fields),
            "raise" => self.raise(&mut fields),
            "wait" => fields
                .take("wait")
                .and_then(|json| Span::read(&below(at, "wait"), json, &self.names, self.mistakes))
                .map(Kind::Wait),
            "emit" => self.emit(&mut fields),
            "listen" => self.listen(&mut fields),
            "run" => self.run(&mut fields),
            _ => self.call(&mut fields),
        };
        fields.finish(self.mistakes);
        let (name, pointer) = (name.to_owned(), at.to_owned());
        Some(Task { name, pointer, condition, input, output, export, timeout, then, kind: kind? })
    }

    pub(super) fn refuse(&mut self, at: &str, reason: String) -> Kind {
        self.refused.push(Refused { pointer: at.to_owned(), reason: reason.clone() });
        Kind::Refused(reason)
    }

    fn set(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let at = fields.below("set");
        let json = fields.take("set")?;
        match json {
            Json::Object(members) if !members.is_empty() => self.data(&at, json).map(Kind::Set),
            Json::String(_) => Data::expression(&at, json, &self.names, self.mistakes).map(Kind::Set),
            other => {
                self.mistakes.push(
                    &at,
                    format!("is {}, must be an object with members or an expression", shown(other)),
                );
                None
            }
        }
    }

    fn fork(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let mut fork = fields.object("fork", self.mistakes)?;
        let at = fork.below("branches");
        let compete = fork.boolean("compete", self.mistakes).unwrap_or(false);
        let branches = fork.require("branches", self.mistakes).map(|json| self.tasks(&at, json));
        fork.finish(self.mistakes);
        Some(Kind::Fork { branches: branches?, compete })
    }

    /// A name for a variable.
    fn variable(&mut self, fields: &mut Fields<'_>, name: &'static str, other: &str) -> String {
        let at = fields.below(name);
        let Some(text) = fields.string(name, self.mistakes) else {
            return other.to_owned();
        };
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if !first || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            self.mistakes.push(&at, format!("is {text:?}, must be a variable's name: letters, digits and _"));
        } else if crate::data::ARGUMENTS.contains(&text) {
            self.mistakes.push(&at, format!("is {text:?}, which is a name of the language's own"));
        }
        text.to_owned()
    }

    fn for_each(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let mut inner = fields.object("for", self.mistakes)?;
        let each = self.variable(&mut inner, "each", "item");
        let index = self.variable(&mut inner, "at", "index");
        let at = inner.below("in");
        let items = inner
            .require("in", self.mistakes)
            .and_then(|json| Data::expression(&at, json, &self.names, self.mistakes));
        inner.finish(self.mistakes);
        let outer = self.names.len();
        self.names.extend([each.clone(), index.clone()]);
        let condition = self.condition(fields, "while");
        let at = fields.below("do");
        let tasks = fields.require("do", self.mistakes).map(|json| self.tasks(&at, json));
        self.names.truncate(outer);
        Some(Kind::For { each, at: index, items: items?, condition, tasks: tasks? })
    }

    fn try_catch(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let at = fields.below("try");
        let tasks = fields.take("try").map(|json| self.tasks(&at, json));
        if !fields.has("catch") {
            self.mistakes.push(&fields.at, "catch is missing");
        }
        let mut inner = fields.object("catch", self.mistakes)?;
        let mut with = Vec::new();
        if let Some(mut errors) = inner.object("errors", self.mistakes)
            && let Some(mut members) = errors.object("with", self.mistakes)
        {
            with = members.rest().into_iter().map(|(name, json)| (name.to_owned(), json.clone())).collect();
            if with.is_empty() {
                self.mistakes.push(&members.at, "must name at least one member of the errors to catch");
            }
        }
        let name = self.variable(&mut inner, "as", "error");
        self.names.push(name.clone());
        let when = self.condition(&mut inner, "when");
        let except_when = self.condition(&mut inner, "exceptWhen");
        let at = inner.below("retry");
        let retry = match inner.take("retry") {
            None => None,
            Some(Json::String(name)) => {
                self.uses.push((Component::Retry, name.clone(), at));
                Some(Err(name.clone()))
            }
            Some(json) => self.retry(&at, json).map(Ok),
        };
        let at = inner.below("do");
        let handler = inner.take("do").map(|json| self.tasks(&at, json));
        let then = self.then(&mut inner);
        self.names.pop();
        inner.finish(self.mistakes);
        let catch = Catch { with, name, when, except_when, retry, tasks: handler, then };
        Some(Kind::Try { tasks: tasks?, catch: Box::new(catch) })
    }

    fn switch(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let at = fields.below("switch");
        let items = fields.list("switch", self.mistakes)?;
        if items.is_empty() {
            self.mistakes.push(&at, "must have at least one case");
        }
        let mut cases = Vec::new();
        for (n, item) in items.iter().enumerate() {
            let at = format!("{at}/{n}");
            let Some((name, json)) = self.single(&at, item, "a case") else { continue };
            let at = below(&at, name);
            let Some(mut case) = Fields::of(&at, json, self.mistakes) else { continue };
            let when = self.condition(&mut case, "when");
            if !case.has("then") {
                self.mistakes.push(&case.at, "then is missing");
            }
            let then = self.then(&mut case);
            case.finish(self.mistakes);
            cases.push(Case { pointer: at, when, then });
        }
        Some(Kind::Switch(cases))
    }

    fn raise(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let mut inner = fields.object("raise", self.mistakes)?;
        let at = inner.below("error");
        let error = match inner.require("error", self.mistakes)? {
            Json::String(name) => {
                self.uses.push((Component::Error, name.clone(), at));
                Some(Err(name.clone()))
            }
            json => self.error(&at, json).map(Ok),
        };
        inner.finish(self.mistakes);
        error.map(Kind::Raise)
    }

    fn emit(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let mut emit = fields.object("emit", self.mistakes)?;
        if !emit.has("event") {
            self.mistakes.push(&emit.at, "event is missing");
        }
        let mut event = emit.object("event", self.mistakes)?;
        let at = event.below("with");
        let with = event.require("with", self.mistakes)?;
        let properties = self.event_properties(&at, with);
        if with.get("type").is_none() {
            self.mistakes.push(&at, "type is missing");
        }
        event.finish(self.mistakes);
        emit.finish(self.mistakes);
        properties.map(|properties| Kind::Emit(Data::Map(properties)))
    }

    fn listen(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let mut listen = fields.object("listen", self.mistakes)?;
        let at = listen.below("to");
        let to = listen.require("to", self.mistakes).and_then(|json| self.consumption(&at, json));
        let read = match listen.one_of("read", &["data", "envelope", "raw"], self.mistakes) {
            Some("envelope") => Read::Envelope,
            Some("raw") => Read::Raw,
            _ => Read::Data,
        };
        listen.finish(self.mistakes);
        let each = match fields.object("foreach", self.mistakes) {
            None => None,
            Some(mut each) => {
                let item = self.variable(&mut each, "item", "item");
                let index = self.variable(&mut each, "at", "index");
                let outer = self.names.len();
                self.names.extend([item.clone(), index.clone()]);
                let at = each.at.clone();
                let tasks =
                    each.take("do").map(|json| self.tasks(&below(&at, "do"), json)).unwrap_or_default();
                let mut filter = |reader: &mut Self, name: &'static str| {
                    each.take(name)
                        .map(|json| reader.filter(&below(&at, name), json, "as"))
                        .unwrap_or_default()
                };
                let (output, export) = (filter(self, "output"), filter(self, "export"));
                self.names.truncate(outer);
                each.finish(self.mistakes);
                Some(Each { item, at: index, tasks, output, export })
            }
        };
        Some(Kind::Listen(Listen { to: to?, read, each }))
    }

    fn run(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let mut run = fields.object("run", self.mistakes)?;
        let wait = run.boolean("await", self.mistakes).unwrap_or(true);
        run.one_of("return", &["stdout", "stderr", "code", "all", "none"], self.mistakes);
        const WAYS: [&str; 4] = ["container", "script", "shell", "workflow"];
        let found: Vec<&'static str> = WAYS.into_iter().filter(|way| run.has(way)).collect();
        let [way] = found[..] else {
            self.mistakes.push(&run.at, format!("must have one of {}", WAYS.join(", ")));
            return None;
        };
        let mut inner = run.object(way, self.mistakes)?;
        run.finish(self.mistakes);
        let at = inner.at.clone();
        let kind = if way == "workflow" {
            let mut name = |field| inner.required_string(field, self.mistakes).map(str::to_owned);
            let (namespace, own, version) = (name("namespace"), name("name"), name("version"));
            let input = inner.take("input").and_then(|json| self.data(&below(&at, "input"), json));
            inner.finish(self.mistakes);
            if let Some(namespace) = &namespace {
                self.starts.push((below(&at, "namespace"), namespace.clone()));
            }
            Kind::Workflow { namespace: namespace?, name: own?, version: version?, input, wait }
        } else {
            self.process(way, inner);
            self.refuse(
                &at,
                format!("run {way}: programs are not run by workflows here; call a service that does it"),
            )
        };
        Some(kind)
    }

    fn process(&mut self, way: &str, mut inner: Fields<'_>) {
        match way {
            "container" => {
                inner.required_string("image", self.mistakes);
                inner.string("name", self.mistakes);
                inner.string("command", self.mistakes);
                inner.object("ports", self.mistakes);
                inner.object("volumes", self.mistakes);
                inner.one_of("pullPolicy", &["ifNotPresent", "always", "never"], self.mistakes);
                if let Some(mut lifetime) = inner.object("lifetime", self.mistakes) {
                    if !lifetime.has("cleanup") {
                        self.mistakes.push(&lifetime.at, "cleanup is missing");
                    }
                    let cleanup =
                        lifetime.one_of("cleanup", &["always", "never", "eventually"], self.mistakes);
                    let after = self.span(&mut lifetime, "after");
                    if (cleanup == Some("eventually")) != after.is_some() {
                        self.mistakes
                            .push(&lifetime.at, "after goes with cleanup: eventually, and only with it");
                    }
                    lifetime.finish(self.mistakes);
                }
            }
            "script" => {
                inner.required_string("language", self.mistakes);
                let code = inner.string("code", self.mistakes).is_some();
                let at = inner.below("source");
                let source = inner.take("source");
                if let Some(json) = source {
                    self.resource(&at, json);
                }
                if code == source.is_some() {
                    self.mistakes.push(&inner.at, "must have either code or source");
                }
            }
            _ => {
                inner.required_string("command", self.mistakes);
            }
        }
        inner.string("stdin", self.mistakes);
        let at = inner.below("arguments");
        for (n, json) in inner.list("arguments", self.mistakes).unwrap_or_default().iter().enumerate() {
            if !json.is_string() {
                self.mistakes.push(&format!("{at}/{n}"), format!("is {}, must be a text", shown(json)));
            }
        }
        inner.object("environment", self.mistakes);
        inner.finish(self.mistakes);
    }
}
