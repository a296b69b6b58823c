//! Reads definitions: everything that is wrong is found in one go.

mod calls;
mod events;
mod tasks;

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value as Json;

use crate::{
    data::{Data, Expression, Span},
    definition::{
        Authentication, Backoff, Definition, Extension, Filter, Head, Inner, Raised, Refused, Retry,
        Schedule, Schema, Timeout, Uses, digest,
    },
    exposure,
    mistakes::{Fields, Mistakes, below, shown},
};

/// The longest document, in bytes.
const LONGEST: usize = 1 << 20;
/// How deep a document may be nested.
const DEEPEST: usize = 64;
/// How many functions may call each other, one by the other.
const LONGEST_CHAIN: usize = 32;

impl Definition {
    /// Reads a definition in YAML (1.2) or JSON.
    ///
    /// # Errors
    /// All mistakes at once, each with a JSON pointer.
    pub fn parse(text: &str) -> Result<Self, Mistakes> {
        let one = |problem: String| {
            let mut mistakes = Mistakes::default();
            mistakes.push("", problem);
            mistakes
        };
        if text.len() > LONGEST {
            return Err(one(format!("the document has {} bytes; at most {LONGEST}", text.len())));
        }
        let document: Json = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| one(format!("no JSON: {error}")))?
        } else {
            let mut options = serde_saphyr::Options::default();
            options.strict_booleans = true;
            options.with_snippet = false;
            let mut budget = serde_saphyr::budget::Budget::default();
            budget.max_nodes = 100_000;
            budget.max_depth = DEEPEST;
            budget.max_events = 400_000;
            budget.max_aliases = 1_000;
            options.budget = Some(budget);
            serde_saphyr::from_str_with_options(text, options)
                .map_err(|error| one(format!("no YAML: {error}")))?
        };
        Self::from_json(document)
    }

    /// Reads a definition from JSON that was parsed.
    ///
    /// # Errors
    /// As [`Definition::parse`].
    pub fn from_json(document: Json) -> Result<Self, Mistakes> {
        let mut mistakes = Mistakes::default();
        if depth(&document) > DEEPEST {
            mistakes.push("", format!("the document is nested deeper than {DEEPEST}"));
            return Err(mistakes);
        }
        if !document.is_object() {
            mistakes.push("", format!("is {}, must be an object with document and do", shown(&document)));
            return Err(mistakes);
        }
        let inner = definition(document, &mut mistakes);
        match inner {
            Some(inner) if mistakes.0.is_empty() => Ok(Self(Arc::new(inner))),
            _ => Err(mistakes),
        }
    }
}

/// Without recursion: what comes in may be deep.
fn depth(document: &Json) -> usize {
    let (mut deepest, mut left) = (0, vec![(document, 1)]);
    while let Some((value, depth)) = left.pop() {
        deepest = deepest.max(depth);
        if depth > DEEPEST {
            break;
        }
        match value {
            Json::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
            Json::Object(members) => left.extend(members.values().map(|value| (value, depth + 1))),
            _ => {}
        }
    }
    deepest
}

/// What is read with, and what was found.
pub(crate) struct Reader<'m> {
    mistakes: &'m mut Mistakes,
    /// The variables in scope beside the arguments.
    names: Vec<String>,
    refused: Vec<Refused>,
    /// Names that are used, where they must be defined.
    uses: Vec<(Component, String, String)>,
    calls: Vec<(String, String)>,
    /// Where other workflows are run, and of which namespaces.
    starts: Vec<(String, String)>,
    depth: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Component {
    Authentication,
    Error,
    Retry,
    Timeout,
}

fn definition(document: Json, mistakes: &mut Mistakes) -> Option<Inner> {
    let mut reader = Reader {
        mistakes,
        names: Vec::new(),
        refused: Vec::new(),
        uses: Vec::new(),
        calls: Vec::new(),
        starts: Vec::new(),
        depth: 0,
    };
    let mut fields = Fields::of("", &document, reader.mistakes)?;
    let head = reader.head(&mut fields);
    let uses = match fields.object("use", reader.mistakes) {
        Some(uses) => reader.uses(uses),
        None => Uses::default(),
    };
    let input = fields.take("input").map(|json| reader.filter("/input", json, "from")).unwrap_or_default();
    let output = fields.take("output").map(|json| reader.filter("/output", json, "as")).unwrap_or_default();
    let timeout = fields.take("timeout").and_then(|json| reader.timeout("/timeout", json));
    let schedule = fields.take("schedule").and_then(|json| reader.schedule("/schedule", json));
    if let Some(mut evaluate) = fields.object("evaluate", reader.mistakes) {
        if let Some(language) = evaluate.string("language", reader.mistakes)
            && language != "jq"
        {
            reader
                .mistakes
                .push("/evaluate/language", format!("is {language:?}, must be jq: there is no other here"));
        }
        evaluate.one_of("mode", &["strict", "loose"], reader.mistakes);
        evaluate.finish(reader.mistakes);
    }
    let tasks = match fields.require("do", reader.mistakes) {
        Some(json) => reader.tasks("/do", json),
        None => Vec::new(),
    };
    fields.finish(reader.mistakes);
    reader.check(&uses);
    let (refused, starts) = (reader.refused, reader.starts);
    let digest = digest(&document);
    // No deeper than `DEEPEST`, and so never too deep for a value.
    let value = sas_jq::Value::from_json(&document).unwrap_or_default();
    let mut inner = Inner {
        digest,
        head: head?,
        uses,
        input,
        output,
        timeout,
        schedule,
        tasks,
        refused,
        starts,
        value,
        document,
        exposes: None,
    };
    inner.exposes = exposure::first(&inner);
    Some(inner)
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or_default();
    let numbers: Vec<&str> = core.split('.').collect();
    let number = |text: &&str| {
        !text.is_empty()
            && text.bytes().all(|b| b.is_ascii_digit())
            && (text.len() == 1 || !text.starts_with('0'))
    };
    let rest = &text[core.len()..];
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'+');
    numbers.len() == 3 && numbers.iter().all(number) && rest.bytes().all(allowed) && rest.len() != 1
}

impl Reader<'_> {
    fn head(&mut self, fields: &mut Fields<'_>) -> Option<Head> {
        let json = fields.require("document", self.mistakes)?;
        let mut document = Fields::of("/document", json, self.mistakes)?;
        let dsl = document.required_string("dsl", self.mistakes);
        if let Some(dsl) = dsl
            && !(is_version(dsl) && dsl.starts_with("1.0."))
        {
            self.mistakes.push(
                "/document/dsl",
                format!("is {dsl:?}, must be a version of the language, 1.0.0 to 1.0.3"),
            );
        }
        let mut name = |field: &'static str| {
            let text = document.required_string(field, self.mistakes)?;
            if !is_name(text) {
                let problem = format!(
                    "is {text:?}, must be at most 63 letters, digits and hyphens, no hyphen first or last"
                );
                self.mistakes.push(&below("/document", field), problem);
            }
            Some(text.to_owned())
        };
        let (namespace, own) = (name("namespace"), name("name"));
        let version = document.required_string("version", self.mistakes).map(str::to_owned);
        if let Some(version) = &version
            && !is_version(version)
        {
            self.mistakes
                .push("/document/version", format!("is {version:?}, must be a semantic version as in 1.0.0"));
        }
        document.string("title", self.mistakes);
        document.string("summary", self.mistakes);
        for name in ["tags", "metadata"] {
            let at = document.below(name);
            if let Some(json) = document.take(name) {
                Fields::of(&at, json, self.mistakes);
            }
        }
        document.finish(self.mistakes);
        Some(Head { namespace: namespace?, name: own?, version: version? })
    }

    fn map<'d>(&mut self, fields: &mut Fields<'d>, name: &'static str) -> Vec<(String, String, &'d Json)> {
        let Some(mut map) = fields.object(name, self.mistakes) else {
            return Vec::new();
        };
        let at = map.at.clone();
        map.rest().into_iter().map(|(name, json)| (name.to_owned(), below(&at, name), json)).collect()
    }

    fn uses(&mut self, mut fields: Fields<'_>) -> Uses {
        let mut uses = Uses::default();
        for (name, at, json) in self.map(&mut fields, "authentications") {
            if let Some(Ok(authentication)) = self.authentication(&at, json, false) {
                uses.authentications.insert(name, authentication);
            }
        }
        for (name, at, json) in self.map(&mut fields, "errors") {
            if let Some(error) = self.error(&at, json) {
                uses.errors.insert(name, error);
            }
        }
        for (name, at, json) in self.map(&mut fields, "retries") {
            if let Some(retry) = self.retry(&at, json) {
                uses.retries.insert(name, retry);
            }
        }
        for (name, at, json) in self.map(&mut fields, "timeouts") {
            if let Some(Timeout::After(span)) = self.timeout(&at, json) {
                uses.timeouts.insert(name, span);
            }
        }
        for (name, at, json) in self.map(&mut fields, "functions") {
            if let Some(task) = self.task(&at, &name, json) {
                uses.functions.insert(name, task);
            }
        }
        for (_, at, json) in self.map(&mut fields, "catalogs") {
            if let Some(mut catalog) = Fields::of(&at, json, self.mistakes) {
                if let Some(json) = catalog.require("endpoint", self.mistakes) {
                    self.endpoint(&format!("{at}/endpoint"), json);
                }
                catalog.finish(self.mistakes);
            }
        }
        let at = fields.below("secrets");
        for (n, json) in fields.list("secrets", self.mistakes).unwrap_or_default().iter().enumerate() {
            match json.as_str() {
                Some(name) if !name.is_empty() && name.len() <= 253 => uses.secrets.push(name.to_owned()),
                Some(name) if !name.is_empty() => self.mistakes.push(
                    &format!("{at}/{n}"),
                    format!("has {} bytes; a secret's name has at most 253", name.len()),
                ),
                _ => self
                    .mistakes
                    .push(&format!("{at}/{n}"), format!("is {}, must be a secret's name", shown(json))),
            }
        }
        let at = fields.below("extensions");
        for (n, json) in fields.list("extensions", self.mistakes).unwrap_or_default().iter().enumerate() {
            let at = format!("{at}/{n}");
            let Some((name, json)) = self.single(&at, json, "an extension") else { continue };
            if let Some(extension) = self.extension(&below(&at, name), json) {
                uses.extensions.push(extension);
            }
        }
        fields.finish(self.mistakes);
        uses
    }

    /// The name and the value of an object with one member.
    fn single<'d>(&mut self, at: &str, json: &'d Json, what: &str) -> Option<(&'d str, &'d Json)> {
        match json {
            Json::Object(members) if members.len() == 1 => {
                members.iter().next().map(|(name, json)| (name.as_str(), json))
            }
            other => {
                self.mistakes.push(
                    at,
                    format!("is {}, must be an object with one member: the name of {what}", shown(other)),
                );
                None
            }
        }
    }

    fn extension(&mut self, at: &str, json: &Json) -> Option<Extension> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        const KINDS: [&str; 12] = [
            "call",
            "composite",
            "emit",
            "for",
            "listen",
            "raise",
            "run",
            "set",
            "switch",
            "try",
            "wait",
            "all",
        ];
        if !fields.has("extend") {
            self.mistakes.push(at, "extend is missing");
        }
        let extend = fields.one_of("extend", &KINDS, self.mistakes).map(str::to_owned);
        let when = self.condition(&mut fields, "when");
        let before =
            fields.take("before").map(|json| self.tasks(&format!("{at}/before"), json)).unwrap_or_default();
        let after =
            fields.take("after").map(|json| self.tasks(&format!("{at}/after"), json)).unwrap_or_default();
        fields.finish(self.mistakes);
        Some(Extension { extend: extend?, when, before, after })
    }

    fn condition(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Expression> {
        let at = fields.below(name);
        let text = fields.string(name, self.mistakes)?;
        Expression::read(&at, text, &self.names, self.mistakes)
    }

    fn data(&mut self, at: &str, json: &Json) -> Option<Data> {
        Data::read(at, json, &self.names, self.mistakes)
    }

    fn span(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Span> {
        let at = fields.below(name);
        let json = fields.take(name)?;
        Span::read(&at, json, &self.names, self.mistakes)
    }

    fn filter(&mut self, at: &str, json: &Json, change: &'static str) -> Filter {
        let Some(mut fields) = Fields::of(at, json, self.mistakes) else {
            return Filter::default();
        };
        let schema = fields.take("schema").and_then(|json| self.schema(&below(at, "schema"), json));
        let change = fields
            .take(change)
            .and_then(|json| Data::expression(&below(at, change), json, &self.names, self.mistakes));
        fields.finish(self.mistakes);
        Filter { schema, change }
    }

    fn schema(&mut self, at: &str, json: &Json) -> Option<Schema> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        if let Some(format) = fields.string("format", self.mistakes)
            && !(format == "json" || format.starts_with("json:"))
        {
            self.refused.push(Refused {
                pointer: below(at, "format"),
                reason: format!("schemas are JSON Schema here, not {format}"),
            });
        }
        let (document, resource) = (fields.take("document"), fields.take("resource"));
        fields.finish(self.mistakes);
        match (document, resource) {
            (Some(document), None) => {
                let options = jsonschema::options().with_pattern_options(jsonschema::PatternOptions::regex());
                match options.build(document) {
                    Ok(validator) => Some(Schema(Arc::new(validator))),
                    Err(error) => {
                        self.mistakes.push(
                            &below(at, "document"),
                            format!("no JSON Schema that can be used: {error}"),
                        );
                        None
                    }
                }
            }
            (None, Some(resource)) => {
                self.resource(&below(at, "resource"), resource);
                self.refused.push(Refused {
                    pointer: below(at, "resource"),
                    reason: "schemas are not fetched: write them into the definition as document".to_owned(),
                });
                None
            }
            _ => {
                self.mistakes.push(at, "must have either document or resource");
                None
            }
        }
    }

    fn timeout(&mut self, at: &str, json: &Json) -> Option<Timeout> {
        if let Json::String(name) = json {
            self.uses.push((Component::Timeout, name.clone(), at.to_owned()));
            return Some(Timeout::Named(name.clone()));
        }
        let mut fields = Fields::of(at, json, self.mistakes)?;
        if !fields.has("after") {
            self.mistakes.push(at, "after is missing");
        }
        let after = self.span(&mut fields, "after");
        fields.finish(self.mistakes);
        after.map(Timeout::After)
    }

    fn schedule(&mut self, at: &str, json: &Json) -> Option<Schedule> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        let mut fixed = |reader: &mut Self, name: &'static str| match reader.span(&mut fields, name)? {
            Span::Fixed(span) => Some(span),
            Span::Computed(_) => {
                reader
                    .mistakes
                    .push(&below(at, name), "must be a fixed duration: no run is there to evaluate it");
                None
            }
        };
        let (every, after) = (fixed(self, "every"), fixed(self, "after"));
        let cron = fields.string("cron", self.mistakes).map(str::to_owned);
        let on = fields.take("on").and_then(|json| self.consumption(&below(at, "on"), json));
        let read = fields.one_of("read", &["data", "envelope", "raw"], self.mistakes);
        if read.is_some() && on.is_none() {
            self.mistakes.push(&below(at, "read"), "says how events are read: on is missing");
        }
        fields.finish(self.mistakes);
        let read = read.filter(|read| *read != "data").map(str::to_owned);
        Some(Schedule { every, cron, after, on, read })
    }

    fn error(&mut self, at: &str, json: &Json) -> Option<Raised> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        fields.required_string("type", self.mistakes);
        match fields.require("status", self.mistakes) {
            None => {}
            Some(Json::Number(number)) if number.is_u64() => {}
            Some(other) => {
                self.mistakes
                    .push(&below(at, "status"), format!("is {}, must be a whole number", shown(other)));
            }
        }
        for name in ["instance", "title", "detail"] {
            fields.string(name, self.mistakes);
        }
        fields.finish(self.mistakes);
        self.data(at, json).map(Raised)
    }

    fn retry(&mut self, at: &str, json: &Json) -> Option<Retry> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        let mut retry = Retry {
            when: self.condition(&mut fields, "when"),
            except_when: self.condition(&mut fields, "exceptWhen"),
            delay: self.span(&mut fields, "delay"),
            ..Retry::default()
        };
        if let Some(mut backoff) = fields.object("backoff", self.mistakes) {
            let mut found = Vec::new();
            for (name, kind) in [
                ("constant", Backoff::Constant),
                ("linear", Backoff::Linear),
                ("exponential", Backoff::Exponential),
            ] {
                if backoff.take(name).is_some() {
                    found.push(kind);
                }
            }
            match &found[..] {
                [kind] => retry.backoff = *kind,
                _ => self.mistakes.push(&backoff.at, "must be one of constant, linear, exponential"),
            }
            backoff.finish(self.mistakes);
        }
        if let Some(mut limit) = fields.object("limit", self.mistakes) {
            if let Some(mut attempt) = limit.object("attempt", self.mistakes) {
                retry.attempts = attempt.integer("count", self.mistakes);
                retry.attempt_duration = self.span(&mut attempt, "duration");
                attempt.finish(self.mistakes);
            }
            retry.duration = self.span(&mut limit, "duration");
            limit.finish(self.mistakes);
        }
        if let Some(mut jitter) = fields.object("jitter", self.mistakes) {
            let (from, to) = (self.span(&mut jitter, "from"), self.span(&mut jitter, "to"));
            match (from, to) {
                (Some(from), Some(to)) => retry.jitter = Some((from, to)),
                _ => self.mistakes.push(&jitter.at, "must have from and to"),
            }
            jitter.finish(self.mistakes);
        }
        fields.finish(self.mistakes);
        Some(retry)
    }

    /// Names must be defined where they are used, and functions may not call each other in a circle.
    fn check(&mut self, uses: &Uses) {
        for (component, name, at) in std::mem::take(&mut self.uses) {
            let (known, what): (Vec<&String>, _) = match component {
                Component::Authentication => (uses.authentications.keys().collect(), "authentications"),
                Component::Error => (uses.errors.keys().collect(), "errors"),
                Component::Retry => (uses.retries.keys().collect(), "retries"),
                Component::Timeout => (uses.timeouts.keys().collect(), "timeouts"),
            };
            if !known.contains(&&name) {
                let known: Vec<&str> = known.into_iter().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                self.mistakes.push(&at, format!("{name:?} is not defined in use.{what}; there are: {known}"));
            }
        }
        let mut edges: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (at, callee) in std::mem::take(&mut self.calls) {
            if let Some(rest) = at.strip_prefix("/use/functions/")
                && uses.functions.contains_key(&callee)
            {
                let caller = rest.split('/').next().unwrap_or_default().replace("~1", "/").replace("~0", "~");
                edges.entry(caller).or_default().push(callee);
            }
        }
        // Functions that call none go first, then those that call only them, and so on: what is left goes in a circle.
        let mut callers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut left: BTreeMap<&str, usize> = BTreeMap::new();
        for (caller, callees) in &edges {
            left.insert(caller, callees.len());
            callees.iter().for_each(|callee| callers.entry(callee).or_default().push(caller));
        }
        let all = uses.functions.keys().map(String::as_str);
        let mut level: Vec<&str> = all.filter(|name| !left.contains_key(name)).collect();
        let mut chain = 1;
        while !level.is_empty() {
            if chain == LONGEST_CHAIN + 1 {
                for name in &level {
                    let problem = format!("calls more than {LONGEST_CHAIN} functions, one by the other");
                    self.mistakes.push(&below("/use/functions", name), problem);
                }
            }
            let mut next = Vec::new();
            for caller in level.iter().filter_map(|name| callers.get(name)).flatten() {
                if let Some(count) = left.get_mut(caller) {
                    *count -= 1;
                    if *count == 0 {
                        left.remove(caller);
                        next.push(*caller);
                    }
                }
            }
            level = next;
            chain += 1;
        }
        for name in left.keys() {
            let problem = "calls itself, directly or by others, or calls one that does";
            self.mistakes.push(&below("/use/functions", name), problem);
        }
    }

    fn authentication(
        &mut self,
        at: &str,
        json: &Json,
        by_name: bool,
    ) -> Option<Result<Authentication, String>> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        if by_name && let Some(name) = fields.string("use", self.mistakes) {
            fields.finish(self.mistakes);
            self.uses.push((Component::Authentication, name.to_owned(), below(at, "use")));
            return Some(Err(name.to_owned()));
        }
        const KINDS: [&str; 5] = ["basic", "bearer", "digest", "oauth2", "oidc"];
        let found: Vec<&str> = KINDS.into_iter().filter(|kind| fields.has(kind)).collect();
        let [kind] = found[..] else {
            self.mistakes.push(at, format!("must have one of {}", KINDS.join(", ")));
            return None;
        };
        let kind = KINDS.into_iter().find(|known| *known == kind).unwrap_or("basic");
        let mut inner = fields.object(kind, self.mistakes)?;
        fields.finish(self.mistakes);
        if let Some(name) = inner.string("use", self.mistakes) {
            inner.finish(self.mistakes);
            return Some(Ok(match kind {
                "basic" | "bearer" => {
                    Authentication::Secret { basic: kind == "basic", name: name.to_owned() }
                }
                _ => self.refuse_authentication(at, kind),
            }));
        }
        let at = inner.at.clone();
        Some(Ok(match kind {
            "basic" | "digest" => {
                let (username, password) =
                    (self.text(&mut inner, "username"), self.text(&mut inner, "password"));
                inner.finish(self.mistakes);
                match kind {
                    "basic" => Authentication::Basic { username: username?, password: password? },
                    _ => self.refuse_authentication(&at, kind),
                }
            }
            "bearer" => {
                let token = self.text(&mut inner, "token");
                inner.finish(self.mistakes);
                Authentication::Bearer { token: token? }
            }
            kind => {
                self.oauth(inner, kind == "oauth2");
                self.refuse_authentication(&at, kind)
            }
        }))
    }

    fn refuse_authentication(&mut self, at: &str, kind: &str) -> Authentication {
        let reason = format!("authentication by {kind} is not built here; basic and bearer are");
        self.refused.push(Refused { pointer: at.to_owned(), reason: reason.clone() });
        Authentication::Refused(reason)
    }

    /// A text that may hold expressions.
    fn text(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Data> {
        let at = fields.below(name);
        let text = fields.required_string(name, self.mistakes)?;
        Data::read(&at, &Json::from(text), &self.names, self.mistakes)
    }

    fn oauth(&mut self, mut fields: Fields<'_>, endpoints: bool) {
        fields.required_string("authority", self.mistakes);
        const GRANTS: [&str; 5] = [
            "authorization_code",
            "client_credentials",
            "password",
            "refresh_token",
            "urn:ietf:params:oauth:grant-type:token-exchange",
        ];
        if !fields.has("grant") {
            self.mistakes.push(&fields.at, "grant is missing");
        }
        fields.one_of("grant", &GRANTS, self.mistakes);
        if let Some(mut client) = fields.object("client", self.mistakes) {
            for name in ["id", "secret", "assertion"] {
                client.string(name, self.mistakes);
            }
            let ways =
                ["client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt", "none"];
            client.one_of("authentication", &ways, self.mistakes);
            client.finish(self.mistakes);
        }
        if let Some(mut request) = fields.object("request", self.mistakes) {
            let encodings = ["application/x-www-form-urlencoded", "application/json"];
            request.one_of("encoding", &encodings, self.mistakes);
        }
        for name in ["issuers", "scopes", "audiences"] {
            let at = fields.below(name);
            for (n, json) in fields.list(name, self.mistakes).unwrap_or_default().iter().enumerate() {
                if !json.is_string() {
                    self.mistakes.push(&format!("{at}/{n}"), format!("is {}, must be a text", shown(json)));
                }
            }
        }
        fields.string("username", self.mistakes);
        fields.string("password", self.mistakes);
        for name in ["subject", "actor"] {
            if let Some(mut token) = fields.object(name, self.mistakes) {
                token.required_string("token", self.mistakes);
                token.required_string("type", self.mistakes);
                token.finish(self.mistakes);
            }
        }
        if endpoints && let Some(mut endpoints) = fields.object("endpoints", self.mistakes) {
            for name in ["token", "revocation", "introspection"] {
                endpoints.string(name, self.mistakes);
            }
        }
        fields.finish(self.mistakes);
    }
}
