//! Events: those that are made, and those that are waited for.

use sas_jq::Value;
use serde_json::{Map, Value as Json};

use super::{
    Cx, Scope, failed,
    state::{Ended, List, Listening},
};
use crate::{
    data::{Data, HELD},
    definition::{Consumption, EventFilter, Listen, Read, Until},
    fault::{Fault, Standard},
    record::Command,
};

/// Most events that one listener consumes.
const MOST_EVENTS: usize = 10_000;

impl Listening {
    fn hold(&mut self, value: &Value, pointer: &str) -> Result<(), Fault> {
        self.held = self.held.saturating_add(value.weight());
        if self.held <= HELD {
            return Ok(());
        }
        let problem = format!("the events of one listener take more than {HELD} bytes");
        Err(Fault::new(Standard::Runtime, pointer, problem))
    }
}

impl Cx {
    /// The event that `emit` publishes: what is not given is made of the run and the step.
    pub(super) fn event_of(
        &self,
        data: &Data,
        step: &str,
        input: &Value,
        scope: &Scope<'_>,
    ) -> Result<Json, Fault> {
        let Json::Object(mut event) = self.evaluate(data, input, scope)?.to_json() else {
            return Err(Fault::new(Standard::Configuration, scope.pointer, "an event must be an object"));
        };
        let (namespace, name) = (self.definition.namespace(), self.definition.name());
        let now = jiff::Timestamp::from_millisecond(i64::try_from(self.now).unwrap_or(i64::MAX))
            .unwrap_or_default();
        event.insert("specversion".to_owned(), "1.0".into());
        event.entry("id").or_insert_with(|| format!("{}{step}", self.id).into());
        event.entry("source").or_insert_with(|| format!("/workflows/{namespace}/{name}").into());
        event.entry("time").or_insert_with(|| now.to_string().into());
        if event.contains_key("data") {
            event.entry("datacontenttype").or_insert_with(|| "application/json".into());
        }
        Ok(Json::Object(event))
    }

    pub(super) fn listen(
        &mut self,
        listen: &Listen,
        listening: &mut Listening,
        step: &str,
        scope: &Scope<'_>,
    ) -> Result<Option<Ended>, Fault> {
        if !listening.complete
            && listening.since < self.told
            && let Some(event) = self.event.clone()
        {
            self.consume(listen, listening, &event, scope)?;
        }
        if let Some(each) = &listen.each {
            while let Some(item) = listening.events.get(listening.made.len()).cloned() {
                let at = listening.made.len();
                let mut inner = scope.locals.clone();
                inner.extend([(each.item.clone(), item.clone()), (each.at.clone(), at.into())]);
                let list = listening.list.get_or_insert_with(|| List::new(item));
                let Some(ended) = self.list(&each.tasks, list, &format!("{step}/foreach/{at}/do"), &inner)?
                else {
                    break;
                };
                listening.list = None;
                let scope = Scope { locals: &inner, ..*scope };
                let output = self.outgoing(&each.output, ended.output, &scope)?;
                if each.export.change.is_some() {
                    let scope = Scope { output: Some(&output), ..scope };
                    self.context = self.outgoing(&each.export, output.clone(), &scope)?;
                }
                listening.hold(&output, scope.pointer)?;
                listening.made.push(output);
                if ended.all {
                    let output = Value::list(std::mem::take(&mut listening.made)).unwrap_or_default();
                    return Ok(Some(Ended { output, all: true }));
                }
            }
        }
        let busy = listen.each.is_some() && listening.made.len() < listening.events.len();
        if listening.complete && !busy {
            let read = if listen.each.is_some() { &mut listening.made } else { &mut listening.events };
            let output = Value::list(std::mem::take(read));
            return output
                .map(|output| Some(Ended::with(output)))
                .map_err(|error| Fault::evaluation(scope.pointer, &error));
        }
        if !listening.complete {
            let mut types = Vec::new();
            if !types_of(&listen.to, &mut types) {
                types.clear();
            }
            self.commands.push(Command::Subscribe { step: step.to_owned(), types });
        }
        Ok(None)
    }

    fn consume(
        &self,
        listen: &Listen,
        listening: &mut Listening,
        event: &Json,
        scope: &Scope<'_>,
    ) -> Result<(), Fault> {
        let Json::Object(members) = event else { return Ok(()) };
        let counts = match &listen.to {
            Consumption::One(filter) => {
                let one = self.fits(filter, members, listening, scope)?;
                listening.complete = one;
                one
            }
            Consumption::All(filters) => {
                let (fits, complete) = self.all(filters, members, listening, scope, false)?;
                listening.complete = complete;
                fits
            }
            Consumption::Any(filters, until) => {
                if let Some(Until::Events(end)) = until
                    && self.ended(end, members, listening, scope)?
                {
                    listening.complete = true;
                    return Ok(());
                }
                let mut fits = filters.is_empty();
                for filter in filters {
                    fits = fits || self.fits(filter, members, listening, scope)?;
                }
                listening.complete = fits && until.is_none();
                fits
            }
        };
        if !counts {
            return Ok(());
        }
        if listening.events.len() == MOST_EVENTS {
            let problem = format!("more than {MOST_EVENTS} events for one listener");
            return Err(Fault::new(Standard::Runtime, scope.pointer, problem));
        }
        let read = match listen.read {
            Read::Envelope => event.clone(),
            Read::Data => members.get("data").cloned().unwrap_or(Json::Null),
            Read::Raw => match members.get("data") {
                Some(Json::String(text)) => text.as_str().into(),
                Some(data) => data.to_string().into(),
                None => Json::Null,
            },
        };
        let read = Value::from_json(&read).map_err(|error| Fault::evaluation(scope.pointer, &error))?;
        listening.hold(&read, scope.pointer)?;
        listening.events.push(read);
        if let Consumption::Any(_, Some(Until::Condition(condition))) = &listen.to {
            let events = Value::list(listening.events.clone())
                .map_err(|error| Fault::evaluation(scope.pointer, &error))?;
            listening.complete = self.holds(condition, &events, scope)?;
        }
        Ok(())
    }

    /// Whether what ends a consumption has come.
    fn ended(
        &self,
        end: &Consumption,
        event: &Map<String, Json>,
        listening: &mut Listening,
        scope: &Scope<'_>,
    ) -> Result<bool, Fault> {
        match end {
            Consumption::One(filter) => self.fits(filter, event, listening, scope),
            Consumption::Any(filters, _) => {
                for filter in filters {
                    if self.fits(filter, event, listening, scope)? {
                        return Ok(true);
                    }
                }
                Ok(filters.is_empty())
            }
            Consumption::All(filters) => {
                self.all(filters, event, listening, scope, true).map(|(_, complete)| complete)
            }
        }
    }

    /// Whether the event is the first of a filter, and whether all have had theirs.
    fn all(
        &self,
        filters: &[EventFilter],
        event: &Map<String, Json>,
        listening: &mut Listening,
        scope: &Scope<'_>,
        until: bool,
    ) -> Result<(bool, bool), Fault> {
        let mut had = std::mem::take(if until { &mut listening.until_had } else { &mut listening.had });
        had.resize(filters.len(), false);
        let mut fits = false;
        for (filter, had) in filters.iter().zip(&mut had) {
            if !*had && !fits && self.fits(filter, event, listening, scope)? {
                (*had, fits) = (true, true);
            }
        }
        let complete = had.iter().all(|had| *had);
        *(if until { &mut listening.until_had } else { &mut listening.had }) = had;
        Ok((fits, complete))
    }

    fn fits(
        &self,
        filter: &EventFilter,
        event: &Map<String, Json>,
        listening: &mut Listening,
        scope: &Scope<'_>,
    ) -> Result<bool, Fault> {
        let deep = |error: sas_jq::Error| Fault::evaluation(scope.pointer, &error);
        for (name, wanted) in &filter.with {
            let own = match event.get(name) {
                Some(own) => Value::from_json(own).map_err(deep)?,
                None => Value::Null,
            };
            // What an expression cannot make of a foreign event is no match.
            let Ok(wanted) = self.evaluate(wanted, &own, scope) else { return Ok(false) };
            let fits = match (&wanted, matches!(own, Value::Bool(_))) {
                (Value::Bool(holds), false) => *holds,
                (wanted, _) => *wanted == own,
            };
            if !fits {
                return Ok(false);
            }
        }
        let whole = Value::from_json(&Json::Object(event.clone())).map_err(deep)?;
        let mut found = Vec::new();
        for (name, from, expect) in &filter.correlate {
            let variables = self.variables(scope);
            let Ok(own) = from.evaluate(whole.clone(), &variables) else { return Ok(false) };
            if matches!(own, Value::Null) {
                return Ok(false);
            }
            let own = own.to_json();
            let wanted = match expect {
                Some(expect) => {
                    let failed = |error| failed(scope.pointer, &error, expect.mentions_secrets());
                    Some(expect.evaluate(scope.input.clone(), &variables).map_err(failed)?.to_json())
                }
                None => listening
                    .correlated
                    .iter()
                    .find(|(known, _)| known == name)
                    .map(|(_, value)| value.clone()),
            };
            match wanted {
                Some(wanted) if wanted != own => return Ok(false),
                Some(_) => {}
                None => found.push((name.clone(), own)),
            }
        }
        // The first event says what the others are held to.
        listening.correlated.append(&mut found);
        Ok(true)
    }
}

/// The types that are fixed; false: some filter takes any.
fn types_of(consumption: &Consumption, types: &mut Vec<String>) -> bool {
    let mut of = |filter: &EventFilter| {
        let found = filter.with.iter().find(|(name, _)| name == "type");
        match found {
            Some((_, Data::Constant(kind))) => {
                types.extend(
                    kind.as_str().filter(|kind| !types.iter().any(|known| known == kind)).map(str::to_owned),
                );
                true
            }
            _ => false,
        }
    };
    match consumption {
        Consumption::One(filter) => of(filter),
        Consumption::All(filters) => filters.iter().all(of),
        Consumption::Any(filters, until) => {
            let fixed = !filters.is_empty() && filters.iter().all(of);
            match until {
                Some(Until::Events(end)) => types_of(end, types) && fixed,
                _ => fixed,
            }
        }
    }
}
