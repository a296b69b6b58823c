//! How much of data is shown, and how.

use serde_json::{Value as Json, json};

use crate::{Body, Outcome};

/// How many bytes of an input, an output or an error are shown of one run.
pub(super) const SHOWN: usize = 64 << 10;
/// How many of each are shown in a list, and of a step.
pub(super) const LISTED: usize = 4 << 10;

/// What is too large stands as its size.
pub(super) fn cut(value: Option<&Json>, most: usize) -> Json {
    let Some(value) = value else { return Json::Null };
    match value.to_string().len() {
        bytes if bytes > most => json!({ "truncatedBytes": bytes }),
        _ => value.clone(),
    }
}

pub(super) fn failure(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Answer { status, .. } => *status >= 400,
        Outcome::Output(_) => false,
        Outcome::Failed { .. } | Outcome::Error(_) => true,
    }
}

/// What is shown of an answer, in so many bytes of data.
pub(super) fn shown(outcome: &Outcome, most: usize) -> Json {
    match outcome {
        Outcome::Answer { status, body, .. } => {
            let body = match body {
                Body::Text(text) => json!(text),
                Body::Base64(text) => json!({ "base64": text }),
            };
            json!({"status": status, "body": cut(Some(&body), most)})
        }
        Outcome::Output(output) => json!({"output": cut(Some(output), most)}),
        Outcome::Failed { reason } => {
            json!({"failed": reason.chars().take(most.min(1_000)).collect::<String>()})
        }
        Outcome::Error(error) => json!({"error": cut(Some(error), most)}),
    }
}
