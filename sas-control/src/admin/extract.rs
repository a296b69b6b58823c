//! What handlers take from a request, each with an answer that says what is wrong with it.

use axum::extract::{FromRequest, FromRequestParts, Request, rejection::PathRejection};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header, request::Parts};
use sas_core::{Body, Principal, Version};
use serde::{Deserialize, de::DeserializeOwned};
use utoipa::IntoParams;

use super::problem::Failure;
use crate::control::Expected;

/// Most bytes of a request's body, packages apart.
pub(super) const BODY_LIMIT: usize = 5 << 20;

/// Who asks. The authenticator has found it out before any handler runs.
pub(super) struct Caller(pub(super) Principal);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        let found = parts.extensions.get::<Principal>().cloned();
        found.map(Self).ok_or_else(|| Failure::forbidden("it is not known who asks"))
    }
}

/// The parameters of the path.
pub(super) struct Path<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let read = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Path(found)| Self(found)).map_err(|error: PathRejection| {
            Failure::new(StatusCode::BAD_REQUEST, "bad_request", error.body_text())
        })
    }
}

/// The parameters after the `?`. One that the route does not know is refused: a filter that is misspelt would be no
/// filter.
pub(super) struct Query<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let read = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        read.map(|axum::extract::Query(found)| Self(found)).map_err(|error| {
            let said = error.body_text();
            let problem = said.strip_prefix("Failed to deserialize query string: ").unwrap_or(&said);
            let (field, problem) = problem.split_once(": ").unwrap_or(("query", problem));
            Failure::field(field, "", problem)
        })
    }
}

/// The whole body, at most [`BODY_LIMIT`] bytes of it.
pub(super) struct Sent(pub(super) Bytes);

impl<S: Sync> FromRequest<S> for Sent {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let body = Body::new(request.into_body());
        body.collect(BODY_LIMIT).await.map(Self).map_err(|error| {
            if error.to_string().contains("length limit") {
                too_large(BODY_LIMIT as u64)
            } else {
                Failure::new(StatusCode::BAD_REQUEST, "bad_request", format!("the body broke off: {error}"))
            }
        })
    }
}

pub(super) fn too_large(most: u64) -> Failure {
    Failure::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", format!("the body has more than {most} bytes"))
}

impl Sent {
    pub(super) fn text(&self) -> Result<&str, Failure> {
        std::str::from_utf8(&self.0)
            .map_err(|_| Failure::new(StatusCode::BAD_REQUEST, "bad_request", "the body must be UTF-8"))
    }

    /// A JSON object; nothing stands for an empty one.
    pub(super) fn object<T: DeserializeOwned + Default>(&self) -> Result<T, String> {
        match self.0.trim_ascii() {
            [] => Ok(T::default()),
            text @ [b'{', ..] => serde_json::from_slice(text).map_err(|error| error.to_string()),
            _ => Err("must be a JSON object".to_owned()),
        }
    }
}

/// What the client has seen of what it changes: `If-Match` and `If-None-Match`.
#[derive(Debug)]
pub(super) struct Seen(pub(super) Expected);

impl<S: Sync> FromRequestParts<S> for Seen {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Self::of(&parts.headers)
    }
}

impl Seen {
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let single = |name: http::HeaderName| {
            let mut values = headers.get_all(&name).iter();
            match (values.next(), values.next()) {
                (None, _) => Ok(None),
                (Some(value), None) => Ok(Some(value.to_str().unwrap_or_default().trim())),
                _ => Err(wrong_tag(name, "several")),
            }
        };
        let expected = match (single(header::IF_MATCH)?, single(header::IF_NONE_MATCH)?) {
            (None, None) => Expected::Anything,
            (Some("*"), None) => Expected::Present,
            (None, Some("*")) => Expected::Absent,
            (Some(tag), None) => {
                Expected::At(version_of(tag).ok_or_else(|| wrong_tag(header::IF_MATCH, tag))?)
            }
            (_, Some(tag)) => return Err(wrong_tag(header::IF_NONE_MATCH, tag)),
        };
        Ok(Self(expected))
    }

    pub(super) fn is_anything(&self) -> bool {
        matches!(self.0, Expected::Anything)
    }
}

fn wrong_tag(header: http::HeaderName, value: &str) -> Failure {
    Failure::field(
        header.as_str(),
        value,
        "must be one entity tag as an answer's ETag has it, or * (of If-None-Match with a change: only *)",
    )
}

/// The tag of a representation: the version of what is stored, which conditional writes look at, and a digest of what is
/// shown, since that also says how things are now.
pub(super) fn entity_tag(version: Version, shown: &[u8]) -> String {
    format!("\"{}.{}\"", version.0, &crate::record::sha256(&[shown])["sha256:".len()..][..16])
}

fn version_of(tag: &str) -> Option<Version> {
    let text = tag.strip_prefix('"')?.strip_suffix('"')?;
    let digits = text.split_once('.').map_or(text, |(version, _)| version);
    digits.parse().ok().map(Version)
}

/// A service, by its path.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ServicePath {
    /// The namespace, which is the tenant.
    pub(super) namespace: String,
    /// The name of the service or trigger.
    pub(super) name: String,
}

/// Things on a page unless more or less are asked for.
pub(super) const PAGE: usize = 500;
/// Things on a page at most.
pub(super) const MOST: usize = 5000;

/// Which page of a list.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct PageQuery {
    /// At most so many; 500 without it.
    #[param(minimum = 1, maximum = 5000)]
    pub(super) limit: Option<u32>,
    /// Goes on after the page that said this.
    #[serde(rename = "continue")]
    #[param(rename = "continue")]
    pub(super) next: Option<String>,
}

impl PageQuery {
    /// The page of `all`, and what to send as `continue` for the next one if there is any. `all` is in the order of what `name`
    /// says, which is another for each.
    pub(super) fn of<T>(
        &self,
        all: impl IntoIterator<Item = T>,
        name: impl Fn(&T) -> String,
    ) -> Result<(Vec<T>, Option<String>), Failure> {
        let (limit, after) = (page_size(self.limit, PAGE, MOST)?, after(self.next.as_deref())?);
        let mut rest = all.into_iter().filter(|one| after.as_ref().is_none_or(|after| name(one) > *after));
        let page: Vec<T> = rest.by_ref().take(limit).collect();
        let next = rest.next().and(page.last()).map(|last| cursor(&name(last)));
        Ok((page, next))
    }
}

/// How much of a list is asked for.
pub(super) fn page_size(limit: Option<u32>, default: usize, most: usize) -> Result<usize, Failure> {
    match limit {
        None => Ok(default),
        Some(0) => Err(Failure::field("limit", 0, format!("must be 1 to {most}"))),
        Some(limit) => Ok((limit as usize).min(most)),
    }
}

/// Where a list goes on: opaque to clients.
pub(super) fn cursor(last: &str) -> String {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.encode(format!("1{last}"))
}

/// What stood last on the page before.
pub(super) fn after(cursor: Option<&str>) -> Result<Option<String>, Failure> {
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    let Some(cursor) = cursor else { return Ok(None) };
    let read = URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match read.as_deref().and_then(|text| text.strip_prefix('1')) {
        Some(last) => Ok(Some(last.to_owned())),
        None => {
            let problem = "must be what `continue` of the page before says; begin again without it";
            Err(Failure::field("continue", cursor, problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_go_on_where_the_one_before_ended_whatever_came_and_went_meanwhile() {
        fn page(all: &[&'static str], next: Option<String>) -> (Vec<&'static str>, Option<String>) {
            let query = PageQuery { limit: Some(2), next };
            query.of(all.iter().copied(), |one| (*one).to_owned()).expect("a page")
        }
        let (first, next) = page(&["a", "c", "e", "g"], None);
        assert_eq!(first, ["a", "c"]);
        let (second, next) = page(&["a", "b", "e", "f", "g"], next);
        assert_eq!(second, ["e", "f"], "what came before is not shown, what is gone is not missed");
        assert_eq!(page(&["e", "g"], next), (vec!["g"], None));
        assert_eq!(page(&["a", "b"], None), (vec!["a", "b"], None), "a full page may be the last");
        let wrong = PageQuery { limit: None, next: Some("a".to_owned()) };
        assert!(wrong.of(["a"], |one| (*one).to_owned()).is_err());
    }

    #[test]
    fn tags_give_the_version_back_whatever_was_shown() {
        let tag = entity_tag(Version(17), b"shown");
        assert_eq!(version_of(&tag), Some(Version(17)));
        assert_ne!(tag, entity_tag(Version(17), b"shown otherwise"));
        for wrong in ["17", "\"\"", "W/\"17.a\"", "\"x.1\"", "\"17"] {
            assert_eq!(version_of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_cursor_is_what_a_page_gave_or_refused() {
        assert_eq!(after(Some(&cursor("default/hello"))).expect("ours"), Some("default/hello".to_owned()));
        assert_eq!(after(None).expect("the first page"), None);
        assert!(after(Some("hello")).is_err());
    }
}
