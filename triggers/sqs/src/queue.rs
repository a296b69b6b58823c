//! What is asked of a queue: requests of SQS's JSON protocol, signed.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use object_store::{
    aws::{AwsAuthorizer, AwsCredential},
    client::HttpRequestBody,
};
use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Result, TriggerSecrets};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::access::Access;

/// After how long an answer is missed, beyond what the server was asked to wait.
const ANSWER: Duration = Duration::from_secs(10);
/// How much of an answer is read: ten messages have a MiB of text at most, which JSON may make six of.
const MOST: usize = 16 << 20;

/// A message as the queue gives it out.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Message {
    pub(crate) message_id: String,
    pub(crate) receipt_handle: String,
    #[serde(default)]
    pub(crate) body: String,
    /// What the queue says of it.
    #[serde(default)]
    pub(crate) attributes: BTreeMap<String, String>,
    /// What its sender says of it.
    #[serde(default)]
    pub(crate) message_attributes: BTreeMap<String, Attribute>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Attribute {
    pub(crate) string_value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Received {
    messages: Vec<Message>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

/// Why a request came to nothing.
#[derive(Debug)]
enum Failure {
    /// There was no whole answer.
    Away(String),
    /// The service said no.
    Refused { status: StatusCode, code: String, message: String },
}

impl Failure {
    fn into_error(self, what: &str) -> Error {
        match self {
            Self::Away(problem) => Error::new(ErrorKind::Unavailable, "sqs", format!("{what}: {problem}")),
            Self::Refused { status, code, message } => {
                // What no repetition changes: a body that the queue never takes.
                let never = status == StatusCode::BAD_REQUEST
                    && matches!(
                        code.as_str(),
                        "InvalidMessageContents" | "InvalidParameterValue" | "MissingParameter"
                    );
                let kind = if never { ErrorKind::InvalidSpec } else { ErrorKind::Unavailable };
                Error::new(kind, "sqs", format!("{what}: {status} {code}: {message}"))
            }
        }
    }
}

/// A queue, and as whom it is spoken to.
pub(crate) struct Queue {
    access: Access,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    credential: Mutex<Arc<AwsCredential>>,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").field("url", &self.access.url).finish_non_exhaustive()
    }
}

impl Queue {
    /// A client of the queue with the credentials as they are now. Nothing is asked of it yet.
    pub(crate) async fn connect(access: &Access, secrets: &TriggerSecrets) -> Result<Self> {
        let tls = access.authorities.client_config(secrets).await?;
        let credential = access.credential(secrets).await?;
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(ANSWER));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(60))
            .build(connector);
        Ok(Self { access: access.clone(), client, credential: Mutex::new(Arc::new(credential)) })
    }

    /// Takes over the credentials as they are now.
    pub(crate) async fn refresh(&self, secrets: &TriggerSecrets) -> Result<()> {
        let credential = self.access.credential(secrets).await?;
        if **self.credential.lock() != credential {
            *self.credential.lock() = Arc::new(credential);
        }
        Ok(())
    }

    /// Messages, `most` of at most ten, waited for at the server for `wait`. Others do not see them for `hidden`.
    pub(crate) async fn receive(
        &self,
        most: usize,
        wait: Duration,
        hidden: Duration,
    ) -> Result<Vec<Message>> {
        let request = json!({
            "MaxNumberOfMessages": most.clamp(1, 10),
            "WaitTimeSeconds": wait.as_secs(),
            "VisibilityTimeout": hidden.as_secs(),
            // The first is the older name of the second, which some servers know alone.
            "AttributeNames": ["All"],
            "MessageSystemAttributeNames": ["All"],
            "MessageAttributeNames": ["All"],
        });
        let what = "ReceiveMessage";
        let answer =
            self.ask(what, request, wait + ANSWER).await.map_err(|failure| failure.into_error(what))?;
        let received: Received = serde_json::from_value(answer).map_err(|error| strange(what, &error))?;
        Ok(received.messages)
    }

    /// Forgets a message for good.
    pub(crate) async fn delete(&self, receipt: &str) -> Result<()> {
        let what = "DeleteMessage";
        let answered = self.ask(what, json!({"ReceiptHandle": receipt}), ANSWER).await;
        answered.map(drop).map_err(|failure| failure.into_error(what))
    }

    /// Hides messages from others from now on for `hidden`; zero: they may come again. What the service refuses is said, and
    /// no more: a message that was deleted meanwhile, or that another host has by now.
    pub(crate) async fn hide(&self, receipts: &[String], hidden: Duration) -> Result<()> {
        let what = "ChangeMessageVisibility";
        for receipt in receipts {
            let request = json!({"ReceiptHandle": receipt, "VisibilityTimeout": hidden.as_secs()});
            match self.ask(what, request, ANSWER).await {
                Ok(_) => {}
                Err(Failure::Refused { status, code, .. }) => {
                    tracing::warn!(queue = self.access.url, %status, code, "a message can't be kept from others any longer");
                }
                Err(away) => return Err(away.into_error(what)),
            }
        }
        Ok(())
    }

    /// Puts a message into the queue.
    pub(crate) async fn send(&self, mut message: Value) -> Result<()> {
        let what = "SendMessage";
        let answered = self.ask(what, message.take(), ANSWER).await;
        answered.map(drop).map_err(|failure| failure.into_error(what))
    }

    /// Messages that wait, and those that were given out and are not deleted.
    pub(crate) async fn backlog(&self) -> Result<u64> {
        const COUNTED: [&str; 2] = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"];
        let what = "GetQueueAttributes";
        let answer = self.ask(what, json!({"AttributeNames": COUNTED}), ANSWER).await;
        let answer = answer.map_err(|failure| failure.into_error(what))?;
        let described: Described = serde_json::from_value(answer).map_err(|error| strange(what, &error))?;
        let mut sum = 0_u64;
        for name in COUNTED {
            let count = described.attributes.get(name).and_then(|count| count.parse::<u64>().ok());
            sum = sum.saturating_add(count.ok_or_else(|| strange(what, &format!("no number {name}")))?);
        }
        Ok(sum)
    }

    async fn ask(
        &self,
        action: &str,
        mut request: Value,
        patience: Duration,
    ) -> std::result::Result<Value, Failure> {
        request["QueueUrl"] = self.access.url.as_str().into();
        let away = |problem: &dyn fmt::Display| Failure::Away(problem.to_string());
        let mut signed = Request::builder()
            .method(Method::POST)
            .uri(self.access.endpoint.clone())
            .header(CONTENT_TYPE, "application/x-amz-json-1.0")
            .header("x-amz-target", format!("AmazonSQS.{action}"))
            .body(HttpRequestBody::from(request.to_string()))
            .map_err(|error| away(&error))?;
        let credential = Arc::clone(&self.credential.lock());
        AwsAuthorizer::new(&credential, "sqs", &self.access.region).authorize(&mut signed, None);
        let (head, body) = signed.into_parts();
        let body = body.as_bytes().cloned().unwrap_or_default();
        let request = Request::from_parts(head, Full::new(body));
        let exchange = async {
            let response =
                self.client.request(request).await.map_err(|error| Failure::Away(chain(&error)))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MOST).collect().await;
            let body =
                body.map_err(|error| Failure::Away(format!("its answer broke off: {error}")))?.to_bytes();
            Ok((head.status, body))
        };
        let (status, body) = timeout(patience, exchange)
            .await
            .map_err(|_elapsed| Failure::Away(format!("no answer within {patience:?}")))??;
        if !status.is_success() {
            return Err(refusal(status, &body));
        }
        // Some requests are answered by nothing.
        if body.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&body)
            .map_err(|error| Failure::Away(format!("its answer is no JSON: {error}")))
    }
}

/// What went wrong, and why.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn strange(what: &str, problem: &dyn fmt::Display) -> Error {
    Error::new(
        ErrorKind::Unexpected,
        "sqs",
        format!("{what}: the server's answer is of no known form: {problem}"),
    )
}

fn refusal(status: StatusCode, body: &[u8]) -> Failure {
    let said: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |name: &str| said.get(name).and_then(Value::as_str).unwrap_or_default();
    let code = text("__type").rsplit('#').next().unwrap_or_default().to_owned();
    let message = [text("message"), text("Message")].into_iter().find(|text| !text.is_empty());
    // What stands before the service may answer in another form.
    let other = String::from_utf8_lossy(body);
    let message = message.unwrap_or(if code.is_empty() { &other } else { "" });
    Failure::Refused { status, code, message: message.chars().take(300).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_with_its_code_and_what_is_never_taken_is_known() {
        let too_long =
            r#"{"__type":"com.amazonaws.sqs#InvalidParameterValue","message":"Message must be shorter"}"#;
        let error = refusal(StatusCode::BAD_REQUEST, too_long.as_bytes()).into_error("SendMessage");
        assert_eq!(error.kind, ErrorKind::InvalidSpec);
        assert!(error.message.contains("400 Bad Request InvalidParameterValue: Message must be shorter"));
        let busy = refusal(StatusCode::SERVICE_UNAVAILABLE, b"<html>").into_error("SendMessage");
        assert!(busy.kind == ErrorKind::Unavailable && busy.message.contains("<html>"));
        let gone = br#"{"__type":"QueueDoesNotExist","Message":"no queue"}"#;
        let error = refusal(StatusCode::BAD_REQUEST, gone).into_error("ReceiveMessage");
        assert!(
            error.kind == ErrorKind::Unavailable && error.message.contains("QueueDoesNotExist: no queue")
        );
    }
}
