//! The tasks that call something: HTTP, OpenAPI, services and others' functions, as they are read.

use serde_json::Value as Json;

use super::Reader;
use crate::{
    data::Data,
    definition::{Answer, Endpoint, HttpCall, Kind, OpenApiCall},
    mistakes::{Fields, below, shown},
};

impl Reader<'_> {
    pub(super) fn call(&mut self, fields: &mut Fields<'_>) -> Option<Kind> {
        let at = fields.below("call");
        let name = fields.string("call", self.mistakes)?;
        let place = fields.below("with");
        if !matches!(name, "http" | "openapi" | "grpc" | "asyncapi" | "a2a" | "mcp") {
            return self.function(&at, name, fields);
        }
        let Some(json) = fields.take("with") else {
            self.mistakes.push(&fields.at, format!("with is missing: what {name} is told"));
            return None;
        };
        let with = Fields::of(&place, json, self.mistakes)?;
        match name {
            "http" => self.http(with),
            "openapi" => self.openapi(with),
            other => {
                match other {
                    "grpc" => self.grpc(with),
                    "asyncapi" => self.asyncapi(with),
                    "a2a" => self.a2a(with),
                    _ => self.mcp(with),
                }
                Some(self.refuse(
                    &at,
                    format!("calls by {other} are not built here; http, openapi and services are"),
                ))
            }
        }
    }

    fn function(&mut self, at: &str, name: &str, fields: &mut Fields<'_>) -> Option<Kind> {
        let place = fields.below("with");
        let with = match fields.take("with") {
            None => Data::Constant(sas_jq::Value::Null),
            Some(json @ Json::Object(_)) => self.data(&place, json)?,
            Some(other) => {
                self.mistakes.push(&place, format!("is {}, must be an object", shown(other)));
                return None;
            }
        };
        if name.is_empty() {
            self.mistakes.push(at, "must name a function or a service");
            return None;
        }
        if name.contains("://") || name.contains('@') {
            let reason =
                format!("{name}: functions of catalogs are not fetched here; write them into use.functions");
            return Some(self.refuse(at, reason));
        }
        self.calls.push((at.to_owned(), name.to_owned()));
        Some(Kind::Call { name: name.to_owned(), with })
    }

    pub(super) fn endpoint(&mut self, at: &str, json: &Json) -> Option<Endpoint> {
        match json {
            Json::String(_) => Some(Endpoint { uri: self.uri(at, json)?, authentication: None }),
            json => {
                let mut fields = Fields::of(at, json, self.mistakes)?;
                let uri =
                    fields.require("uri", self.mistakes).and_then(|json| self.uri(&below(at, "uri"), json));
                let authentication = fields
                    .take("authentication")
                    .and_then(|json| self.authentication(&below(at, "authentication"), json, true));
                fields.finish(self.mistakes);
                Some(Endpoint { uri: uri?, authentication })
            }
        }
    }

    fn uri(&mut self, at: &str, json: &Json) -> Option<Data> {
        match json {
            Json::String(text) if !text.trim().is_empty() => self.data(at, json),
            other => {
                self.mistakes.push(
                    at,
                    format!("is {}, must be a URI, a template of one, or an expression", shown(other)),
                );
                None
            }
        }
    }

    pub(super) fn resource(&mut self, at: &str, json: &Json) -> Option<Endpoint> {
        let mut fields = Fields::of(at, json, self.mistakes)?;
        fields.string("name", self.mistakes);
        let endpoint = fields
            .require("endpoint", self.mistakes)
            .and_then(|json| self.endpoint(&below(at, "endpoint"), json));
        fields.finish(self.mistakes);
        endpoint
    }

    fn answer(&mut self, fields: &mut Fields<'_>) -> (Answer, bool) {
        let answer = match fields.one_of("output", &["raw", "content", "response"], self.mistakes) {
            Some("raw") => Answer::Raw,
            Some("response") => Answer::Response,
            _ => Answer::Content,
        };
        (answer, fields.boolean("redirect", self.mistakes).unwrap_or(false))
    }

    /// An object of texts, or an expression.
    fn texts(&mut self, fields: &mut Fields<'_>, name: &'static str) -> Option<Data> {
        let at = fields.below(name);
        let json = fields.take(name)?;
        match json {
            Json::Object(members) => {
                for (name, value) in members {
                    if value.is_array() || value.is_object() {
                        self.mistakes.push(&below(&at, name), format!("is {}, must be a text", shown(value)));
                    }
                }
                self.data(&at, json)
            }
            Json::String(text) if text.contains("${") => self.data(&at, json),
            other => {
                self.mistakes.push(&at, format!("is {}, must be an object or an expression", shown(other)));
                None
            }
        }
    }

    fn http(&mut self, mut with: Fields<'_>) -> Option<Kind> {
        let method = self.text(&mut with, "method");
        let at = with.below("endpoint");
        let endpoint = with.require("endpoint", self.mistakes).and_then(|json| self.endpoint(&at, json));
        let headers = self.texts(&mut with, "headers");
        let query = self.texts(&mut with, "query");
        let at = with.below("body");
        let body = with.take("body").and_then(|json| self.data(&at, json));
        let (answer, redirect) = self.answer(&mut with);
        with.finish(self.mistakes);
        let (method, endpoint) = (method?, endpoint?);
        Some(Kind::Http(Box::new(HttpCall { method, endpoint, headers, query, body, answer, redirect })))
    }

    fn openapi(&mut self, mut with: Fields<'_>) -> Option<Kind> {
        let at = with.below("document");
        let document = with.require("document", self.mistakes).and_then(|json| self.resource(&at, json));
        let operation = self.text(&mut with, "operationId");
        let at = with.below("parameters");
        let parameters = match with.take("parameters") {
            None => None,
            Some(json @ Json::Object(_)) => self.data(&at, json),
            Some(other) => {
                self.mistakes.push(&at, format!("is {}, must be an object", shown(other)));
                None
            }
        };
        let at = with.below("authentication");
        let authentication =
            with.take("authentication").and_then(|json| self.authentication(&at, json, true));
        let (answer, redirect) = self.answer(&mut with);
        with.finish(self.mistakes);
        let (document, operation) = (document?, operation?);
        Some(Kind::OpenApi(Box::new(OpenApiCall {
            document,
            operation,
            parameters,
            authentication,
            answer,
            redirect,
        })))
    }

    fn grpc(&mut self, mut with: Fields<'_>) {
        let at = with.below("proto");
        if let Some(json) = with.require("proto", self.mistakes) {
            self.resource(&at, json);
        }
        if !with.has("service") {
            self.mistakes.push(&with.at, "service is missing");
        }
        if let Some(mut service) = with.object("service", self.mistakes) {
            service.required_string("name", self.mistakes);
            service.required_string("host", self.mistakes);
            let at = service.below("port");
            if let Some(port) = service.integer("port", self.mistakes)
                && port > 65_535
            {
                self.mistakes.push(&at, format!("is {port}, must be at most 65535"));
            }
            let at = service.below("authentication");
            if let Some(json) = service.take("authentication") {
                self.authentication(&at, json, true);
            }
            service.finish(self.mistakes);
        }
        with.required_string("method", self.mistakes);
        with.object("arguments", self.mistakes);
        with.finish(self.mistakes);
    }

    fn asyncapi(&mut self, mut with: Fields<'_>) {
        let at = with.below("document");
        if let Some(json) = with.require("document", self.mistakes) {
            self.resource(&at, json);
        }
        let targets = [with.has("channel"), with.has("operation")];
        if targets.iter().filter(|has| **has).count() != 1 {
            self.mistakes.push(&with.at, "must have either channel or operation");
        }
        if with.has("message") == with.has("subscription") {
            self.mistakes.push(&with.at, "must have either message or subscription");
        }
        for name in ["channel", "operation"] {
            with.string(name, self.mistakes);
        }
        const PROTOCOLS: [&str; 19] = [
            "amqp",
            "amqp1",
            "anypointmq",
            "googlepubsub",
            "http",
            "ibmmq",
            "jms",
            "kafka",
            "mercure",
            "mqtt",
            "mqtt5",
            "nats",
            "pulsar",
            "redis",
            "sns",
            "solace",
            "sqs",
            "stomp",
            "ws",
        ];
        with.one_of("protocol", &PROTOCOLS, self.mistakes);
        if let Some(mut server) = with.object("server", self.mistakes) {
            server.required_string("name", self.mistakes);
            server.object("variables", self.mistakes);
            server.finish(self.mistakes);
        }
        if let Some(mut message) = with.object("message", self.mistakes) {
            message.object("payload", self.mistakes);
            message.object("headers", self.mistakes);
            message.finish(self.mistakes);
        }
        if let Some(mut subscription) = with.object("subscription", self.mistakes) {
            self.condition(&mut subscription, "filter");
            if !subscription.has("consume") {
                self.mistakes.push(&subscription.at, "consume is missing");
            }
            if let Some(mut consume) = subscription.object("consume", self.mistakes) {
                self.span(&mut consume, "for");
                let found = ["amount", "while", "until"].into_iter().filter(|name| consume.has(name)).count();
                if found != 1 {
                    self.mistakes.push(&consume.at, "must have one of amount, while, until");
                }
                consume.integer("amount", self.mistakes);
                self.condition(&mut consume, "while");
                self.condition(&mut consume, "until");
                consume.finish(self.mistakes);
            }
            if let Some(mut each) = subscription.object("foreach", self.mistakes) {
                let names = [("item", "item"), ("at", "index")];
                let outer = self.names.len();
                for (name, other) in names {
                    let name = each.string(name, self.mistakes).unwrap_or(other).to_owned();
                    self.names.push(name);
                }
                let at = each.at.clone();
                if let Some(json) = each.take("do") {
                    self.tasks(&below(&at, "do"), json);
                }
                for name in ["output", "export"] {
                    if let Some(json) = each.take(name) {
                        self.filter(&below(&at, name), json, "as");
                    }
                }
                self.names.truncate(outer);
                each.finish(self.mistakes);
            }
            subscription.finish(self.mistakes);
        }
        let at = with.below("authentication");
        if let Some(json) = with.take("authentication") {
            self.authentication(&at, json, true);
        }
        with.finish(self.mistakes);
    }

    fn a2a(&mut self, mut with: Fields<'_>) {
        let at = with.below("agentCard");
        if let Some(json) = with.take("agentCard") {
            self.resource(&at, json);
        }
        let at = with.below("server");
        if let Some(json) = with.take("server") {
            self.endpoint(&at, json);
        }
        const METHODS: [&str; 11] = [
            "message/send",
            "message/stream",
            "tasks/get",
            "tasks/list",
            "tasks/cancel",
            "tasks/resubscribe",
            "tasks/pushNotificationConfig/set",
            "tasks/pushNotificationConfig/get",
            "tasks/pushNotificationConfig/list",
            "tasks/pushNotificationConfig/delete",
            "agent/getAuthenticatedExtendedCard",
        ];
        if !with.has("method") {
            self.mistakes.push(&with.at, "method is missing");
        }
        with.one_of("method", &METHODS, self.mistakes);
        self.parameters(&mut with);
        with.finish(self.mistakes);
    }

    fn parameters(&mut self, with: &mut Fields<'_>) {
        let at = with.below("parameters");
        match with.take("parameters") {
            None => {}
            Some(json @ (Json::Object(_) | Json::String(_))) => drop(self.data(&at, json)),
            Some(other) => {
                self.mistakes.push(&at, format!("is {}, must be an object or an expression", shown(other)));
            }
        }
    }

    fn mcp(&mut self, mut with: Fields<'_>) {
        with.string("protocolVersion", self.mistakes);
        const METHODS: [&str; 7] = [
            "tools/list",
            "tools/call",
            "prompts/list",
            "prompts/get",
            "resources/list",
            "resources/read",
            "resources/templates/list",
        ];
        if !with.has("method") {
            self.mistakes.push(&with.at, "method is missing");
        }
        with.one_of("method", &METHODS, self.mistakes);
        self.parameters(&mut with);
        self.span(&mut with, "timeout");
        if !with.has("transport") {
            self.mistakes.push(&with.at, "transport is missing");
        }
        if let Some(mut transport) = with.object("transport", self.mistakes) {
            if transport.has("http") == transport.has("stdio") {
                self.mistakes.push(&transport.at, "must have either http or stdio");
            }
            if let Some(mut http) = transport.object("http", self.mistakes) {
                let at = http.below("endpoint");
                if let Some(json) = http.require("endpoint", self.mistakes) {
                    self.endpoint(&at, json);
                }
                http.object("headers", self.mistakes);
            }
            if let Some(mut stdio) = transport.object("stdio", self.mistakes) {
                stdio.required_string("command", self.mistakes);
                stdio.list("arguments", self.mistakes);
                stdio.object("environment", self.mistakes);
            }
            transport.object("options", self.mistakes);
        }
        if let Some(mut client) = with.object("client", self.mistakes) {
            client.required_string("name", self.mistakes);
            client.required_string("version", self.mistakes);
        }
    }
}
