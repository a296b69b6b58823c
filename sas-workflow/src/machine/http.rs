//! Calls by HTTP: requests are made of the definition, answers become outputs.

use base64::Engine as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sas_jq::Value;
use serde_json::{Map, Value as Json};

use super::{
    Cx, Scope,
    state::{Answered, Body as At, Called, Document, Ended, State},
};
use crate::{
    data::Data,
    definition::{Answer, Authentication, Endpoint, HttpCall, OpenApiCall},
    fault::{Fault, Standard},
    record::{Body, Command, Outcome, Request},
};

/// What stands in URIs as it is: RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The longest URI, in bytes: what the `http` crate takes.
const MOST_URI: usize = 65_534;

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// A value as it stands in a URI or a header.
fn plain(value: &Json) -> String {
    match value {
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// What an error says of a value that this data made.
fn quoted(data: &Data, value: &str) -> String {
    if data.mentions_secrets() { "what is made of a secret".to_owned() } else { format!("{value:?}") }
}

impl Cx {
    pub(super) fn http(
        &mut self,
        call: &HttpCall,
        state: &mut State,
        scope: &Scope<'_>,
    ) -> Result<Option<Ended>, Fault> {
        if matches!(state.body, At::New) {
            state.body = At::Called(Called::new(&self.context));
        }
        if let At::Called(called) = &mut state.body
            && called.command.is_none()
        {
            let request = self.in_context(&called.context, |cx| cx.request(call, scope))?;
            called.command = Some(Box::new(Command::Call { step: state.step.clone(), request }));
        }
        self.answered(state, call.answer, call.redirect, scope)
    }

    /// Makes something as it was made when the run had this context.
    fn in_context<T>(&mut self, context: &Value, make: impl FnOnce(&Self) -> T) -> T {
        let now = std::mem::replace(&mut self.context, context.clone());
        let made = make(self);
        self.context = now;
        made
    }

    /// Waits for the answer that was asked for, and makes an output of it.
    fn answered(
        &mut self,
        state: &mut State,
        answer: Answer,
        redirect: bool,
        scope: &Scope<'_>,
    ) -> Result<Option<Ended>, Fault> {
        // An operator has skipped it.
        if matches!(&self.outcome, Some((step, Outcome::Output(_))) if *step == state.step)
            && let Some(Outcome::Output(given)) = self.take(&state.step)
        {
            let given = Value::from_json(&given).map_err(|error| Fault::evaluation(scope.pointer, &error))?;
            return Ok(Some(Ended::with(given)));
        }
        let At::Called(Called { command: Some(command), .. }) = &state.body else { return Ok(None) };
        let Command::Call { request, .. } = &**command else { return Ok(None) };
        let Some(answered) = self.answer(&state.step, command, redirect, scope)? else { return Ok(None) };
        let output = match answer {
            Answer::Raw => Json::String(match &answered.body {
                Body::Text(text) => base64::engine::general_purpose::STANDARD.encode(text),
                Body::Base64(text) => text.clone(),
            }),
            Answer::Content => content(&answered, scope)?,
            Answer::Response => {
                let headers = |headers: &[(String, String)]| -> Json {
                    let shown = headers.iter().filter(|(name, _)| name != "authorization");
                    shown
                        .map(|(name, value)| (name.clone(), value.as_str().into()))
                        .collect::<Map<_, _>>()
                        .into()
                };
                serde_json::json!({
                    "request": {"method": request.method, "uri": request.uri, "headers": headers(&request.headers)},
                    "statusCode": answered.status,
                    "headers": headers(&answered.headers),
                    "content": content(&answered, scope)?,
                })
            }
        };
        let output = Value::from_json(&output).map_err(|error| Fault::evaluation(scope.pointer, &error))?;
        Ok(Some(Ended::with(output)))
    }

    fn answer(
        &mut self,
        step: &str,
        command: &Command,
        redirect: bool,
        scope: &Scope<'_>,
    ) -> Result<Option<Answered>, Fault> {
        let fault = |detail: String| Fault::new(Standard::Communication, scope.pointer, detail);
        match self.take(step) {
            None => {
                self.commands.push(command.clone());
                Ok(None)
            }
            Some(Outcome::Answer { status, headers, body }) => {
                let fine = (200..300).contains(&status) || (redirect && (300..400).contains(&status));
                if fine {
                    return Ok(Some(Answered { status, headers, body }));
                }
                let text = match &body {
                    Body::Text(text) => text.chars().take(1_000).collect(),
                    Body::Base64(_) => "bytes".to_owned(),
                };
                Err(fault(format!("the answer has the status {status}: {text}")).with_status(status))
            }
            Some(Outcome::Failed { reason }) => Err(fault(reason)),
            Some(Outcome::Error(Json::Object(members))) => Err(Fault(members)),
            Some(other) => Err(fault(format!("no answer of HTTP came but {other:?}"))),
        }
    }

    fn request(&self, call: &HttpCall, scope: &Scope<'_>) -> Result<Request, Fault> {
        let wrong = |detail: String| Fault::new(Standard::Configuration, scope.pointer, detail);
        let method = plain(&self.evaluate(&call.method, scope.input, scope)?.to_json()).to_ascii_uppercase();
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(wrong(format!("{} is no method of HTTP", quoted(&call.method, &method))));
        }
        let mut uri = self.uri(&call.endpoint, scope)?;
        if let Some(query) = &call.query {
            let query = self.texts(query, "query", scope)?;
            append(&mut uri, &query).map_err(wrong)?;
        }
        let mut headers = match &call.headers {
            Some(headers) => self.texts(headers, "headers", scope)?,
            None => Vec::new(),
        };
        for (name, value) in &mut headers {
            name.make_ascii_lowercase();
            if value.contains(['\r', '\n', '\0']) {
                return Err(wrong(format!("the header {name} has a line break in it")));
            }
        }
        let body = match &call.body {
            None => String::new(),
            Some(body) => {
                let body = self.evaluate(body, scope.input, scope)?;
                if body.as_str().is_none() && !headers.iter().any(|(name, _)| name == "content-type") {
                    headers.push(("content-type".to_owned(), "application/json".to_owned()));
                }
                plain(&body.to_json())
            }
        };
        headers.extend(self.authorization(call.endpoint.authentication.as_ref(), scope)?);
        Ok(Request { method, uri, headers, body })
    }

    /// Names with texts.
    fn texts(&self, data: &Data, what: &str, scope: &Scope<'_>) -> Result<Vec<(String, String)>, Fault> {
        match self.evaluate(data, scope.input, scope)?.to_json() {
            Json::Object(members) => {
                let given = members.into_iter().filter(|(_, value)| !value.is_null());
                Ok(given.map(|(name, value)| (name, plain(&value))).collect())
            }
            Json::Null => Ok(Vec::new()),
            other => {
                let other = quoted(data, &other.to_string());
                let problem = format!("{what} must be an object, not {other}");
                Err(Fault::new(Standard::Configuration, scope.pointer, problem))
            }
        }
    }

    /// The URI, with `{name}` replaced by members of the input.
    fn uri(&self, endpoint: &Endpoint, scope: &Scope<'_>) -> Result<String, Fault> {
        let template = plain(&self.evaluate(&endpoint.uri, scope.input, scope)?.to_json());
        let wrong = |detail: String| Fault::new(Standard::Configuration, scope.pointer, detail);
        let shown = quoted(&endpoint.uri, &template);
        let mut uri = String::new();
        let mut rest = template.as_str();
        while let Some((before, after)) = rest.split_once('{') {
            let Some((name, after)) = after.split_once('}') else {
                return Err(wrong(format!("{shown}: a brace is not closed")));
            };
            let value = match scope.input {
                Value::Object(members) => members.get(name).map(Value::to_json),
                _ => None,
            };
            let value = value.or_else(|| {
                scope.locals.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.to_json())
            });
            let Some(value) = value.filter(|value| !value.is_null()) else {
                return Err(wrong(format!("{shown}: the input has no member {name}")));
            };
            uri.push_str(before);
            uri.push_str(&escaped(&plain(&value)));
            if uri.len() > MOST_URI {
                return Err(wrong(too_long()));
            }
            rest = after;
        }
        uri.push_str(rest);
        if uri.len() > MOST_URI {
            return Err(wrong(too_long()));
        }
        if !(uri.starts_with("http://") || uri.starts_with("https://")) || uri.contains(char::is_whitespace) {
            return Err(wrong(format!("{} is no URI of http or https", quoted(&endpoint.uri, &uri))));
        }
        Ok(uri)
    }

    fn authorization(
        &self,
        authentication: Option<&Result<Authentication, String>>,
        scope: &Scope<'_>,
    ) -> Result<Option<(String, String)>, Fault> {
        let authentication = match authentication {
            None => return Ok(None),
            Some(Ok(authentication)) => authentication,
            Some(Err(name)) => match self.definition.0.uses.authentications.get(name) {
                Some(authentication) => authentication,
                None => {
                    let problem = format!("the authentication {name:?} is not defined");
                    return Err(Fault::new(Standard::Configuration, scope.pointer, problem));
                }
            },
        };
        let basic = |username: &str, password: &str| {
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"))
            )
        };
        let text = |data| Ok::<_, Fault>(plain(&self.evaluate(data, scope.input, scope)?.to_json()));
        let value = match authentication {
            Authentication::Basic { username, password } => basic(&text(username)?, &text(password)?),
            Authentication::Bearer { token } => format!("Bearer {}", text(token)?),
            Authentication::Secret { basic: is_basic, name } => {
                let secret = match &self.secrets {
                    Value::Object(secrets) => secrets.get(name).map(Value::to_json),
                    _ => None,
                };
                let member = |member: &str| secret.as_ref().and_then(|secret| secret.get(member)?.as_str());
                let made = if *is_basic {
                    member("username")
                        .zip(member("password"))
                        .map(|(username, password)| basic(username, password))
                } else {
                    member("token").map(|token| format!("Bearer {token}"))
                };
                made.ok_or_else(|| {
                    let needed = if *is_basic { "username and password" } else { "token" };
                    let problem = format!("the secret {name:?} is not there, or has no {needed}");
                    Fault::new(Standard::Authorization, scope.pointer, problem)
                })?
            }
            Authentication::Refused(reason) => {
                return Err(Fault::new(Standard::Configuration, scope.pointer, reason.clone()));
            }
        };
        if value.contains(['\r', '\n', '\0']) {
            return Err(Fault::new(
                Standard::Configuration,
                scope.pointer,
                "a credential has a line break in it",
            ));
        }
        Ok(Some(("authorization".to_owned(), value)))
    }

    pub(super) fn openapi(
        &mut self,
        call: &OpenApiCall,
        state: &mut State,
        scope: &Scope<'_>,
    ) -> Result<Option<Ended>, Fault> {
        if matches!(state.body, At::New) {
            state.body = At::Document(Called::new(&self.context));
        }
        if let At::Document(called) = &mut state.body {
            let command = match &mut called.command {
                Some(command) => command,
                none => {
                    let request = self.in_context(&called.context, |cx| cx.document(call, scope))?;
                    let step = format!("{}/document", state.step);
                    none.insert(Box::new(Command::Call { step, request }))
                }
            };
            let Some(answered) = self.answer(command.step(), command, false, scope)? else {
                return Ok(None);
            };
            let document = Document { context: called.context.clone(), answered };
            state.body =
                At::Called(Called { document: Some(Box::new(document)), ..Called::new(&self.context) });
        }
        if let At::Called(Called { command: command @ None, context, document: Some(document) }) =
            &mut state.body
        {
            let from = self.in_context(&document.context, |cx| cx.uri(&call.document, scope))?;
            let request =
                self.in_context(context, |cx| cx.operation(call, &from, &document.answered, scope))?;
            *command = Some(Box::new(Command::Call { step: state.step.clone(), request }));
        }
        self.answered(state, call.answer, call.redirect, scope)
    }

    /// The request for the OpenAPI document of a call.
    fn document(&self, call: &OpenApiCall, scope: &Scope<'_>) -> Result<Request, Fault> {
        let uri = self.uri(&call.document, scope)?;
        let headers = self.authorization(call.document.authentication.as_ref(), scope)?.into_iter().collect();
        Ok(Request { method: "GET".to_owned(), uri, headers, body: String::new() })
    }

    /// The request of an operation of an OpenAPI document, 2.0 or 3.
    fn operation(
        &self,
        call: &OpenApiCall,
        from: &str,
        document: &Answered,
        scope: &Scope<'_>,
    ) -> Result<Request, Fault> {
        let wrong = |detail: String| Fault::new(Standard::Configuration, scope.pointer, detail);
        let Body::Text(text) = &document.body else {
            return Err(wrong("the OpenAPI document is no text".to_owned()));
        };
        let document: Json = if text.trim_start().starts_with('{') {
            serde_json::from_str(text)
                .map_err(|error| wrong(format!("the OpenAPI document is no JSON: {error}")))?
        } else {
            serde_saphyr::from_str(text)
                .map_err(|error| wrong(format!("the OpenAPI document is no YAML: {error}")))?
        };
        let wanted = plain(&self.evaluate(&call.operation, scope.input, scope)?.to_json());
        let paths = document.get("paths").and_then(Json::as_object);
        let found = paths.into_iter().flatten().find_map(|(path, item)| {
            let (method, operation) = item
                .as_object()?
                .iter()
                .find(|(_, operation)| operation.get("operationId") == Some(&wanted.as_str().into()))?;
            Some((path, item, method, operation))
        });
        let Some((path, item, method, operation)) = found else {
            let wanted = quoted(&call.operation, &wanted);
            return Err(wrong(format!("the OpenAPI document has no operation {wanted}")));
        };
        let mut given = match &call.parameters {
            None => Map::new(),
            Some(data) => match self.evaluate(data, scope.input, scope)?.to_json() {
                Json::Object(members) => members,
                other => {
                    let other = quoted(data, &other.to_string());
                    return Err(wrong(format!("parameters must be an object, not {other}")));
                }
            },
        };
        let (mut path, mut query, mut headers, mut body) = (path.clone(), Vec::new(), Vec::new(), None);
        let declared = [item.get("parameters"), operation.get("parameters")];
        for parameter in declared.into_iter().flatten().filter_map(Json::as_array).flatten() {
            let parameter = resolved(&document, parameter);
            let (Some(name), Some(place)) =
                (parameter.get("name").and_then(Json::as_str), parameter.get("in").and_then(Json::as_str))
            else {
                continue;
            };
            let Some(value) = given.remove(name).filter(|value| !value.is_null()) else {
                if place == "path" || parameter.get("required") == Some(&Json::Bool(true)) {
                    return Err(wrong(format!("the operation {wanted} needs the parameter {name}")));
                }
                continue;
            };
            match place {
                "path" => {
                    let (hole, value) = (format!("{{{name}}}"), escaped(&plain(&value)));
                    let more = path.matches(&hole).count().saturating_mul(value.len());
                    if path.len().saturating_add(more) > MOST_URI {
                        return Err(wrong(too_long()));
                    }
                    path = path.replace(&hole, &value);
                }
                "query" => match &value {
                    // Each takes the name and two characters more.
                    Json::Array(items) if items.len().saturating_mul(name.len() + 2) > MOST_URI => {
                        return Err(wrong(too_long()));
                    }
                    Json::Array(items) => {
                        query.extend(items.iter().map(|item| (name.to_owned(), plain(item))))
                    }
                    value => query.push((name.to_owned(), plain(value))),
                },
                "header" => headers.push((name.to_ascii_lowercase(), plain(&value))),
                "body" => body = Some(value),
                _ => {
                    return Err(wrong(format!(
                        "the parameter {name} stands in {place}, which is not built here"
                    )));
                }
            }
        }
        if body.is_none() && !given.is_empty() {
            if operation.get("requestBody").is_none() {
                let names: Vec<&String> = given.keys().collect();
                return Err(wrong(format!("the operation {wanted} has no parameters {names:?}")));
            }
            body = Some(Json::Object(given));
        }
        if headers.iter().any(|(_, value)| value.contains(['\r', '\n', '\0'])) {
            return Err(wrong("a header has a line break in it".to_owned()));
        }
        let mut uri = format!("{}{path}", server(&document, from).trim_end_matches('/'));
        append(&mut uri, &query).map_err(wrong)?;
        if body.is_some() {
            headers.push(("content-type".to_owned(), "application/json".to_owned()));
        }
        headers.extend(self.authorization(call.authentication.as_ref(), scope)?);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        Ok(Request { method: method.to_ascii_uppercase(), uri, headers, body })
    }
}

fn too_long() -> String {
    format!("the URI has more than {MOST_URI} bytes; send what is longer as a body")
}

fn append(uri: &mut String, query: &[(String, String)]) -> Result<(), String> {
    for (name, value) in query {
        uri.push(if uri.contains('?') { '&' } else { '?' });
        uri.push_str(&format!("{}={}", escaped(name), escaped(value)));
        if uri.len() > MOST_URI {
            return Err(too_long());
        }
    }
    Ok(())
}

/// What a reference into the same document leads to.
fn resolved<'d>(document: &'d Json, value: &'d Json) -> &'d Json {
    let target = value.get("$ref").and_then(Json::as_str).and_then(|target| target.strip_prefix('#'));
    target.and_then(|pointer| document.pointer(pointer)).unwrap_or(value)
}

/// Where the operations are, as an absolute URI; what the document leaves out is as for the document itself.
fn server(document: &Json, from: &str) -> String {
    let (scheme, rest) = from.split_once("://").unwrap_or(("https", from));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if let Some(url) = document.pointer("/servers/0/url").and_then(Json::as_str) {
        return match url {
            url if url.contains("://") => url.to_owned(),
            path => format!("{scheme}://{authority}/{}", path.trim_start_matches('/')),
        };
    }
    let host = document.get("host").and_then(Json::as_str).unwrap_or(authority);
    let schemes = document.get("schemes").and_then(Json::as_array);
    let schemes: Vec<&str> = schemes.into_iter().flatten().filter_map(Json::as_str).collect();
    let scheme =
        if schemes.contains(&"https") { "https" } else { schemes.first().copied().unwrap_or(scheme) };
    let base = document.get("basePath").and_then(Json::as_str).unwrap_or_default();
    format!("{scheme}://{host}/{}", base.trim_start_matches('/'))
}

fn content(answered: &Answered, scope: &Scope<'_>) -> Result<Json, Fault> {
    let kind =
        answered.headers.iter().find(|(name, _)| name == "content-type").map(|(_, kind)| kind.as_str());
    let essence = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match &answered.body {
        Body::Text(text) if text.is_empty() => Ok(Json::Null),
        Body::Text(text) if essence.ends_with("/json") || essence.ends_with("+json") => {
            serde_json::from_str(text).map_err(|error| {
                let problem = format!("the answer says that it is JSON, and is not: {error}");
                Fault::new(Standard::Communication, scope.pointer, problem)
            })
        }
        Body::Text(text) | Body::Base64(text) => Ok(text.as_str().into()),
    }
}
