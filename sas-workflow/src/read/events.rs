//! Which events are waited for.

use serde_json::Value as Json;

use super::Reader;
use crate::{
    data::{Data, Expression},
    definition::{Consumption, EventFilter, Until},
    mistakes::{Fields, below, shown},
};

impl Reader<'_> {
    pub(super) fn consumption(&mut self, at: &str, json: &Json) -> Option<Consumption> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        let found: Vec<&str> = ["one", "all", "any"].into_iter().filter(|name| fields.has(name)).collect();
        if found.len() != 1 {
            self.mistakes.push(at, "must have one of one, all, any");
            return None;
        }
        let consumption = if let Some(json) = fields.take("one") {
            self.event_filter(&below(at, "one"), json).map(Consumption::One)
        } else if let Some(filters) = fields.list("all", self.mistakes) {
            Some(Consumption::All(self.event_filters(&below(at, "all"), filters)))
        } else if let Some(filters) = fields.list("any", self.mistakes) {
            let filters = self.event_filters(&below(at, "any"), filters);
            let place = below(at, "until");
            let until = match fields.take("until") {
                None => None,
                Some(Json::String(text)) => {
                    Expression::read(&place, text, &self.names, self.mistakes).map(Until::Condition)
                }
                Some(json) => {
                    if json.get("until").is_some() {
                        self.mistakes
                            .push(&below(&place, "until"), "what ends a consumption has no end of its own");
                    }
                    self.consumption(&place, json).map(|until| Until::Events(Box::new(until)))
                }
            };
            Some(Consumption::Any(filters, until))
        } else {
            None
        };
        fields.finish(self.mistakes);
        consumption
    }

    fn event_filters(&mut self, at: &str, filters: &[Json]) -> Vec<EventFilter> {
        let filters = filters.iter().enumerate();
        filters.filter_map(|(n, json)| self.event_filter(&format!("{at}/{n}"), json)).collect()
    }

    fn event_filter(&mut self, at: &str, json: &Json) -> Option<EventFilter> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        let place = below(at, "with");
        let with = match fields.require("with", self.mistakes) {
            Some(json) => self.event_properties(&place, json),
            None => None,
        };
        if let Some(with) = &with
            && with.is_empty()
        {
            self.mistakes.push(&place, "must name at least one attribute");
        }
        let mut correlate = Vec::new();
        if let Some(mut keys) = fields.object("correlate", self.mistakes) {
            let at = keys.at.clone();
            for (name, json) in keys.rest() {
                let at = below(&at, name);
                let Some(mut key) = Fields::of(&at, json, self.mistakes) else { continue };
                if !key.has("from") {
                    self.mistakes.push(&at, "from is missing");
                }
                let from = self.condition(&mut key, "from");
                let expect = self.condition(&mut key, "expect");
                key.finish(self.mistakes);
                if let Some(from) = from {
                    correlate.push((name.to_owned(), from, expect));
                }
            }
        }
        fields.finish(self.mistakes);
        Some(EventFilter { with: with?, correlate })
    }

    /// An event's attributes and data, which may be expressions.
    pub(super) fn event_properties(&mut self, at: &str, json: &Json) -> Option<Vec<(String, Data)>> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        let mut properties = Vec::new();
        for (name, json) in fields.rest() {
            let at = below(at, name);
            let is_text = matches!(
                name,
                "id" | "source" | "type" | "time" | "subject" | "datacontenttype" | "dataschema"
            );
            if is_text && !json.is_string() {
                self.mistakes.push(&at, format!("is {}, must be a text", shown(json)));
            }
            if let Some(data) = self.data(&at, json) {
                properties.push((name.to_owned(), data));
            }
        }
        Some(properties)
    }
}
