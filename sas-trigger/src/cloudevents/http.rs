//! CloudEvents over HTTP, binary mode: attributes in headers, data in the body.

use http::{HeaderName, HeaderValue, Method, header};
use percent_encoding::{AsciiSet, CONTROLS, percent_encode};
use sas_core::{Body, Error, ErrorKind, Event, Request, Result};

use super::rfc3339;

/// What the binding has to be encoded: space, double quote, percent, and all that is not printable ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// A `POST` of the event to `path`.
///
/// ```
/// use sas_core::Event;
/// let event = Event::new("1", "/sensors", "reading")?.with_data("text/plain", "21.5")?;
/// let request = sas_trigger::to_request(&event, "/events").expect("a path");
/// assert_eq!(request.headers()["ce-id"], "1");
/// assert_eq!(request.headers()["content-type"], "text/plain");
/// # Ok::<(), sas_core::EventError>(())
/// ```
///
/// # Errors
/// `InvalidSpec` when `path` is not the path of a URL.
pub fn to_request(event: &Event, path: &str) -> Result<Request> {
    let invalid = |message: String| Error::new(ErrorKind::InvalidSpec, "deliver", message);
    let mut request = http::Request::builder()
        .method(Method::POST)
        .uri(path)
        .body(Body::from(event.data().clone()))
        .map_err(|error| invalid(format!("path {path:?}: {error}")))?;
    let headers = request.headers_mut();
    let mut set = |name: &str, value: &str| {
        let encoded = percent_encode(value.as_bytes(), ENCODED).to_string();
        let name = HeaderName::try_from(format!("ce-{name}"));
        let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(encoded)) else {
            return Err(invalid(format!("attribute {value:?} does not fit into a header")));
        };
        headers.insert(name, value);
        Ok(())
    };
    set("specversion", "1.0")?;
    set("id", event.id())?;
    set("source", event.source())?;
    set("type", event.kind())?;
    if let Some(subject) = event.subject() {
        set("subject", subject)?;
    }
    if let Some(time) = event.time().and_then(rfc3339) {
        set("time", &time)?;
    }
    if let Some(schema) = event.data_schema() {
        set("dataschema", schema)?;
    }
    for (name, value) in event.extensions() {
        set(name, &value.to_text())?;
    }
    if let Some(kind) = event.data_content_type() {
        let value = HeaderValue::try_from(kind)
            .map_err(|_| invalid(format!("datacontenttype {kind:?} does not fit into a header")))?;
        request.headers_mut().insert(header::CONTENT_TYPE, value);
    }
    Ok(request)
}
