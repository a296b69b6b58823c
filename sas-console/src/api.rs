//! The admin API as this crate asks it: in process, with the token of the session, so that scopes, tenants, rates and the
//! audit log are the admin API's own and there is no second way in.

use std::{fmt::Write as _, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, header};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sas_core::{Body, Clock, Handler, Request, Secret};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

/// Bytes of an answer that are read: 1,000 services, or 1,000 lines.
const MOST: usize = 32 << 20;

/// What stays as it is in a segment of a path or in a value of a query.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A segment of a path, or a value of a query.
pub(crate) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// A query of the parameters that have a value, with its `?`; empty where none has.
pub(crate) fn query(parameters: &[(&str, &str)]) -> String {
    let mut text = String::new();
    for (name, value) in parameters.iter().filter(|(_, value)| !value.is_empty()) {
        let _ = write!(text, "{}{name}={}", if text.is_empty() { '?' } else { '&' }, escaped(value));
    }
    text
}

/// Why the admin API did not do something.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Problem {
    pub(crate) status: u16,
    pub(crate) title: String,
    pub(crate) detail: String,
    pub(crate) reason: String,
    pub(crate) fields: Option<Vec<FieldProblem>>,
}

/// A mistake in what was sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct FieldProblem {
    pub(crate) field: String,
    pub(crate) value: String,
    pub(crate) problem: String,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or_default().to_owned();
        Self { status: status.as_u16(), title, detail: detail.into(), ..Self::default() }
    }

    pub(crate) fn is(&self, status: StatusCode) -> bool {
        self.status == status.as_u16()
    }

    /// The same for a person: with the fields that were refused.
    pub(crate) fn sentence(&self) -> String {
        let mut text = if self.detail.is_empty() { self.title.clone() } else { self.detail.clone() };
        for field in self.fields.iter().flatten().take(8) {
            if !text.contains(&field.problem) {
                let _ = write!(text, "; {} {:?}: {}", field.field, field.value, field.problem);
            }
        }
        text
    }
}

pub(crate) type Result<T, E = Problem> = std::result::Result<T, E>;

/// The admin API for one who has signed in.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) admin: Arc<dyn Handler>,
    pub(crate) token: Option<Secret>,
    /// The host that the browser asked: the admin API refuses names that are not its own.
    pub(crate) host: HeaderValue,
    pub(crate) clock: Arc<dyn Clock>,
}

impl Api {
    /// Now, in seconds since 1970, by the platform's clock.
    pub(crate) fn now(&self) -> i64 {
        self.clock.now().as_secs()
    }

    /// Asks for something to be seen.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        Ok(self.get_tagged(path).await?.0)
    }

    /// The same with its `ETag`; empty where it has none.
    pub(crate) async fn get_tagged<T: DeserializeOwned>(&self, path: &str) -> Result<(T, String)> {
        let (text, tag) = self.send(Method::GET, path, None, None, Body::empty()).await?;
        let read = serde_json::from_slice(&text).map_err(|error| {
            tracing::warn!(path, %error, "the admin API answers what the console does not read");
            let detail = format!("the admin API answered something else than expected: {error}");
            Problem::new(StatusCode::BAD_GATEWAY, detail)
        })?;
        Ok((read, tag))
    }

    /// The same; `None` where there is no such thing, or where the platform does not keep it.
    pub(crate) async fn find<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>> {
        match self.get(path).await {
            Ok(found) => Ok(Some(found)),
            Err(problem) if problem.is(StatusCode::NOT_FOUND) || problem.reason == "unsupported" => Ok(None),
            Err(problem) => Err(problem),
        }
    }

    /// Asks for something that is no JSON, as it stands.
    pub(crate) async fn text(&self, path: &str) -> Result<Bytes> {
        Ok(self.send(Method::GET, path, None, None, Body::empty()).await?.0)
    }

    /// Asks for a change, with a JSON body.
    pub(crate) async fn change(&self, method: Method, path: &str, body: &Value) -> Result<Value> {
        self.change_seen(method, path, "", body).await
    }

    /// The same, if what it changes still is as it was shown with this `ETag`; empty: however it is.
    pub(crate) async fn change_seen(
        &self,
        method: Method,
        path: &str,
        seen: &str,
        body: &Value,
    ) -> Result<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let condition = (!seen.is_empty()).then_some((header::IF_MATCH, seen));
        let sent = self.send(method, path, Some("application/json"), condition, Body::from(body)).await?;
        self.read(sent.0)
    }

    /// Asks for a change, with a body of any type.
    pub(crate) async fn post(
        &self,
        path: &str,
        kind: &'static str,
        condition: Option<(HeaderName, &str)>,
        body: Body,
    ) -> Result<Value> {
        self.read(self.send(Method::POST, path, Some(kind), condition, body).await?.0)
    }

    fn read(&self, text: Bytes) -> Result<Value> {
        Ok(serde_json::from_slice(&text).unwrap_or(Value::Null))
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        kind: Option<&'static str>,
        condition: Option<(HeaderName, &str)>,
        body: Body,
    ) -> Result<(Bytes, String)> {
        let unsent = |error: &dyn std::fmt::Display| {
            Problem::new(StatusCode::BAD_REQUEST, format!("{path}: not a path: {error}"))
        };
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(|error| unsent(&error))?;
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        if let Some(kind) = kind {
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        }
        if let Some((name, seen)) = condition {
            let seen = HeaderValue::try_from(seen)
                .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "no header can carry what was seen"))?;
            headers.insert(name, seen);
        }
        if let Some(token) = &self.token {
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.expose()))
                .map_err(|_| Problem::new(StatusCode::UNAUTHORIZED, "no header can carry this token"))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let answer = self.admin.handle(request).await;
        let status = answer.status();
        let tag = answer.headers().get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let tag = tag.unwrap_or_default().to_owned();
        let text = answer.into_body().collect(MOST).await.map_err(|error| {
            Problem::new(StatusCode::BAD_GATEWAY, format!("the answer of the admin API broke off: {error}"))
        })?;
        if status.is_success() {
            return Ok((text, tag));
        }
        let mut problem: Problem = serde_json::from_slice(&text).unwrap_or_default();
        problem.status = status.as_u16();
        Err(problem)
    }
}

/// Who has signed in, and what they may do.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Who {
    pub(crate) name: String,
    pub(crate) scopes: Vec<String>,
    pub(crate) namespace: Option<String>,
}

impl Who {
    fn may(&self, scope: &str) -> bool {
        self.scopes.iter().any(|own| own == scope)
    }

    pub(crate) fn may_deploy(&self) -> bool {
        self.may("deploy")
    }

    pub(crate) fn may_invoke(&self) -> bool {
        self.may("invoke")
    }

    pub(crate) fn may_admin(&self) -> bool {
        self.may("admin")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_every_script_stand_in_paths() {
        assert_eq!(escaped("shop/../a b?ü"), "shop%2F..%2Fa%20b%3F%C3%BC");
        assert_eq!(query(&[("search", "a&b"), ("namespace", ""), ("limit", "5")]), "?search=a%26b&limit=5");
        assert_eq!(query(&[("search", "")]), "");
    }
}
