//! What the API server answers, as errors of this SDK.

use std::time::Duration;

use kube::core::Status;
use sas_core::{Error, ErrorKind, Result, Retry, SpecErrors};
use serde_json::Value;

/// How long to leave alone who is away.
const AWAY: Duration = Duration::from_secs(1);

/// The error of a request to the API server.
pub(crate) fn failure(operation: &'static str, error: kube::Error) -> Error {
    match error {
        kube::Error::Api(status) => refusal(operation, &status),
        other => {
            away(operation, &format!("the API server of the cluster does not answer: {}", chain(&other)))
        }
    }
}

/// It can't be asked now.
pub(crate) fn away(operation: &'static str, what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, what).with_retry(Retry::After(AWAY))
}

/// What is not there any more has been deleted.
pub(crate) fn absent(deleted: Result<Value>) -> Result<()> {
    match deleted {
        Ok(_) => Ok(()),
        Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// What was refused, and what is to be done about it.
fn refusal(operation: &'static str, status: &Status) -> Error {
    let said = &status.message;
    let details = status.details.as_ref();
    let after = details.map_or(0, |details| details.retry_after_seconds);
    let kind = |kind, what: String| Error::new(kind, operation, what);
    match status.code {
        // Of many fields at once.
        422 => {
            let mut errors = SpecErrors::default();
            for cause in details.iter().flat_map(|details| &details.causes) {
                errors.push(format!("pod.{}", cause.field), "", &cause.message);
            }
            if errors.0.is_empty() {
                return kind(ErrorKind::InvalidSpec, said.clone());
            }
            let mut error = kind(ErrorKind::InvalidSpec, format!("the cluster refuses the Pod: {said}"));
            error.source = Some(Box::new(errors));
            error
        }
        400 => kind(ErrorKind::InvalidSpec, format!("the cluster refuses the Pod: {said}")),
        401 => kind(
            ErrorKind::Unavailable,
            format!("the cluster does not know who asks ({said}): renew the credentials of the platform"),
        ),
        // Of a quota, of the rights of this platform, or of an admission plugin.
        403 if said.contains("exceeded quota") || said.contains("unknown for quota") => {
            kind(ErrorKind::Exhausted, said.clone()).with_retry(Retry::After(AWAY))
        }
        403 if said.contains("cannot ") && said.contains("resource") => kind(
            ErrorKind::Unavailable,
            format!(
                "the platform lacks a right in the cluster ({said}): grant it the Role of deploy/kubernetes/role.yaml"
            ),
        ),
        403 => kind(ErrorKind::InvalidSpec, format!("a rule of the cluster forbids the Pod: {said}")),
        404 => kind(ErrorKind::NotFound, said.clone()),
        409 => kind(ErrorKind::Conflict, said.clone()),
        429 => kind(ErrorKind::Unavailable, format!("the cluster asks to be left alone for a while: {said}"))
            .with_retry(Retry::After(Duration::from_secs(after.max(1).into()))),
        _ => away(operation, &format!("the API server of the cluster answers {}: {said}", status.code)),
    }
}

/// An error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Error {
        let status = Status::failure(message, "").with_code(code);
        failure("start", kube::Error::Api(status.boxed()))
    }

    #[test]
    fn each_refusal_says_whether_it_is_the_spec_the_rights_the_quota_or_the_moment() {
        use ErrorKind::{Conflict, Exhausted, InvalidSpec, NotFound, Unavailable};
        let quota =
            "pods \"a\" is forbidden: exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2";
        let rights = "pods is forbidden: User \"x\" cannot create resource \"pods\" in API group \"\"";
        let rule =
            "pods \"a\" is forbidden: violates PodSecurity \"restricted:latest\": runAsNonRoot != true";
        for (code, message, kind) in [
            (400, "strict decoding error: unknown field \"spec.affinity.x\"", InvalidSpec),
            (401, "Unauthorized", Unavailable),
            (403, quota, Exhausted),
            (403, rights, Unavailable),
            (403, rule, InvalidSpec),
            (404, "namespaces \"x\" not found", NotFound),
            (409, "exists", Conflict),
            (422, "Pod \"a\" is invalid", InvalidSpec),
            (429, "too many", Unavailable),
            (500, "etcdserver: request timed out", Unavailable),
            (503, "apiserver not ready", Unavailable),
        ] {
            let error = status(code, message);
            assert_eq!(error.kind, kind, "{code} {message}");
            assert!(error.message.contains(message), "{error}");
        }
    }
}
