//! Calls that are accepted now and made later, with a result to fetch or a callback.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use sas_core::{
    Body, Clock, Commit, Error, ErrorKind, Event, Handler, Recorder, Request, Response, Result, Store,
    Timestamp,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::{
    sync::{Notify, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    answers::{answer, collect, host_of, refused, unavailable},
    delivery::RetryPolicy,
    host::TriggerHost,
    metrics::ASYNC_CALLS,
};

/// Where results are, at the host that was called.
pub(crate) const RESULTS: &str = "/.well-known/sas/async/";
/// Calls that were accepted.
const CALLS: &str = "async/call/";
/// Answers that were got, until they are forgotten.
const ANSWERS: &str = "async/answer/";
/// When answers are forgotten.
const EXPIRIES: &str = "async/expiry/";
/// Entries that are read in one go.
const PAGE: usize = 100;
/// The header that names where the result is to be sent.
const CALLBACK: &str = "x-callback-url";
/// What a result says of itself.
const STATUS: &str = "sas-async-status";

/// How much is accepted, and how it is made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AsyncConfig {
    /// Calls that are accepted and not answered yet, at most; more are refused with 503. Default 10,000.
    pub most_calls: usize,
    /// Bytes of their bodies together, at most. Default 256 MiB.
    pub most_bytes: u64,
    /// Bytes of one body, and of one answer. Default 1 MiB less what the head takes; never more than the store takes.
    pub body: usize,
    /// How long a result can be fetched. Default 24 hours.
    pub keep: Duration,
    /// Calls that are made at once. Default 64.
    pub concurrency: usize,
    /// How a call is made again that got no answer, or 408, 425, 429 or 5xx. Default: twice more, after 1 s and 2 s. The
    /// last answer is the result, whatever it is.
    pub retry: RetryPolicy,
}

impl Default for AsyncConfig {
    fn default() -> Self {
        let retry = RetryPolicy { retries: 2, delay: Duration::from_secs(1), ..RetryPolicy::default() };
        Self {
            most_calls: 10_000,
            most_bytes: 256 << 20,
            body: 1 << 20,
            keep: Duration::from_secs(24 * 3600),
            concurrency: 64,
            retry,
        }
    }
}

/// Takes calls with the header `Prefer: respond-async`: each is stored, answered with 202 and the `Location` of its result,
/// and made through the gateway as if it came then, with an `Idempotency-Key` unless it has one. A call that was accepted
/// is made at least once, also after a kill of the host, as durable as the store is.
///
/// The result is fetched by `GET` from the `Location`: 202 while there is none, then the answer itself, with the header
/// `sas-async-status: done`; `DELETE` forgets it. The id in the `Location` has 128 random bits and is all that is asked
/// for, at the host that was called. With `X-Callback-Url` the answer is sent there too, as a CloudEvent of the type
/// `dev.sas.async.answer`, through the sink `webhook`, which says where to events may go.
pub struct AsyncCalls {
    gateway: Arc<dyn Handler>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    host: Arc<TriggerHost>,
    recorder: Recorder,
    config: AsyncConfig,
    under_way: Semaphore,
    waiting: AtomicUsize,
    bytes: AtomicU64,
    expires: Notify,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl fmt::Debug for AsyncCalls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncCalls")
            .field("config", &self.config)
            .field("waiting", &self.waiting)
            .finish_non_exhaustive()
    }
}

/// What is stored of a call, before its body.
#[derive(Debug, Serialize, Deserialize)]
struct Call {
    method: String,
    uri: String,
    host: String,
    headers: Vec<(String, Vec<u8>)>,
    accepted: i64,
    callback: Option<String>,
}

/// What is stored of an answer, before its body.
#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    status: u16,
    host: String,
    headers: Vec<(String, Vec<u8>)>,
    attempts: u32,
}

/// A head as JSON on one line, then the body.
fn encode<T: Serialize>(head: &T, body: &[u8]) -> Result<Bytes> {
    let mut value = serde_json::to_vec(head)
        .map_err(|error| Error::new(ErrorKind::Unexpected, "async", format!("can't be written: {error}")))?;
    value.push(b'\n');
    value.extend(body);
    Ok(value.into())
}

fn decode<T: for<'de> Deserialize<'de>>(value: &Bytes) -> Result<(T, Bytes)> {
    let damaged =
        |problem: String| Error::new(ErrorKind::InvalidSpec, "async", format!("damaged: {problem}"));
    let at = value.iter().position(|byte| *byte == b'\n').ok_or_else(|| damaged("no head".to_owned()))?;
    let head = serde_json::from_slice(&value[..at]).map_err(|error| damaged(error.to_string()))?;
    Ok((head, value.slice(at + 1..)))
}

/// Headers that are about one connection, or about answering later, and go no further.
fn kept(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    const LEFT_OUT: [&str; 10] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "content-length",
        "prefer",
        CALLBACK,
    ];
    let kept = headers.iter().filter(|(name, _)| !LEFT_OUT.contains(&name.as_str()));
    kept.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect()
}

impl AsyncCalls {
    /// Calls through `gateway`, kept in `store`. Must be called within a tokio runtime: [`AsyncCalls::recover`] goes on
    /// with what was accepted before.
    pub fn new(
        gateway: Arc<dyn Handler>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        host: Arc<TriggerHost>,
        config: AsyncConfig,
    ) -> Arc<Self> {
        let recorder = host.recorder().clone();
        let calls = Arc::new(Self {
            gateway,
            store,
            clock,
            host,
            recorder,
            under_way: Semaphore::new(config.concurrency.clamp(1, Semaphore::MAX_PERMITS)),
            config,
            waiting: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            expires: Notify::new(),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let sweeper = Arc::clone(&calls);
        calls.tasks.spawn(async move { sweeper.sweep().await });
        calls
    }

    /// Whether the call's sender wants no answer now, by `Prefer: respond-async` (RFC 7240).
    pub fn is_wanted(headers: &HeaderMap) -> bool {
        headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value.split(',').any(|preference| {
                let name = preference.split([';', '=']).next().unwrap_or_default();
                name.trim().eq_ignore_ascii_case("respond-async")
            })
        })
    }

    /// Goes on with the calls that were accepted and not answered. How many.
    ///
    /// # Errors
    /// `Unavailable` when the store can't be read.
    pub async fn recover(self: &Arc<Self>) -> Result<usize> {
        let (mut count, mut after): (usize, Option<String>) = (0, None);
        loop {
            let entries = self.store.list(CALLS, after.as_deref(), PAGE).await?;
            for entry in &entries {
                self.waiting.fetch_add(1, Ordering::Relaxed);
                self.bytes.fetch_add(entry.value.len() as u64, Ordering::Relaxed);
                self.begin(entry.key[CALLS.len()..].to_owned(), entry.value.clone());
                count += 1;
            }
            match entries.last() {
                Some(entry) if entries.len() == PAGE => after = Some(entry.key.clone()),
                _ => break,
            }
        }
        self.expires.notify_one();
        Ok(count)
    }

    /// Stores the call and answers with 202.
    pub(crate) async fn accept(self: &Arc<Self>, request: Request) -> Response {
        let outcome = |outcome| self.recorder.counter(ASYNC_CALLS, &[("outcome", outcome)]).increment(1);
        if self.stop.is_cancelled() {
            return unavailable("the platform is shutting down", 5);
        }
        let Some(host) = host_of(&request) else {
            return refused(StatusCode::BAD_REQUEST, "the request names no host");
        };
        let (head, body) = request.into_parts();
        if head.headers.contains_key(header::UPGRADE) {
            return refused(StatusCode::BAD_REQUEST, "a connection that is upgraded can't be answered later");
        }
        let callback = match head.headers.get(CALLBACK).map(|url| url.to_str()) {
            None => None,
            Some(Ok(url)) => match self.host.webhook(url) {
                Ok(_) => Some(url.to_owned()),
                Err(error) => {
                    return refused(StatusCode::BAD_REQUEST, format!("{CALLBACK}: {}", error.message));
                }
            },
            Some(Err(_)) => return refused(StatusCode::BAD_REQUEST, format!("{CALLBACK} is no URL")),
        };
        let body = match collect(body, self.config.body).await {
            Ok(body) => body,
            Err(response) => return response,
        };
        let mut random = [0_u8; 16];
        if let Err(error) = getrandom::fill(&mut random) {
            return unavailable(&format!("no random numbers can be had: {error}"), 5);
        }
        let id = format!("{:032x}", u128::from_le_bytes(random));
        let call = Call {
            method: head.method.to_string(),
            uri: head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            host,
            headers: kept(&head.headers),
            accepted: self.clock.now().0,
            callback,
        };
        let value = match encode(&call, &body) {
            Ok(value) => value,
            Err(error) => return unavailable(&error.message, 5),
        };
        if value.len() > self.store.limits().value_bytes {
            let most = self.store.limits().value_bytes;
            let message = format!("headers and body have {} bytes: at most {most} are kept", value.len());
            return refused(StatusCode::PAYLOAD_TOO_LARGE, message);
        }
        let size = value.len() as u64;
        let full = self.waiting.fetch_add(1, Ordering::Relaxed) >= self.config.most_calls
            || self.bytes.fetch_add(size, Ordering::Relaxed) + size > self.config.most_bytes;
        if full {
            self.settled(size);
            outcome("refused");
            return unavailable("too many calls wait to be made: send this one later, or without Prefer", 5);
        }
        if let Err(error) = self.store.put(&format!("{CALLS}{id}"), None, value.clone()).await {
            self.settled(size);
            return unavailable(&format!("the call could not be kept: {}", error.message), 5);
        }
        outcome("accepted");
        self.begin(id.clone(), value);
        let mut response = answer(StatusCode::ACCEPTED, &json!({"id": id, "status": "accepted"}));
        let headers = response.headers_mut();
        for (name, value) in [
            (header::LOCATION, format!("{RESULTS}{id}")),
            (HeaderName::from_static("preference-applied"), "respond-async".to_owned()),
            (HeaderName::from_static("sas-async-id"), id),
        ] {
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name, value);
            }
        }
        response
    }

    fn settled(&self, size: u64) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(size, Ordering::Relaxed);
    }

    /// The result of a call, or what is known of it.
    pub(crate) async fn result(&self, request: &Request) -> Response {
        let id = &request.uri().path()[RESULTS.len()..];
        let host = host_of(request).unwrap_or_default();
        let unknown = || {
            refused(StatusCode::NOT_FOUND, "there is no call of this id here, or its result was forgotten")
        };
        if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return unknown();
        }
        let (call, answer_key) = (format!("{CALLS}{id}"), format!("{ANSWERS}{id}"));
        // The answer first would miss one that is written between the two.
        let (waiting, done) = match (self.store.get(&call).await, self.store.get(&answer_key).await) {
            (Ok(waiting), Ok(done)) => (waiting, done),
            (Err(error), _) | (_, Err(error)) => return unavailable(&error.message, 5),
        };
        if !matches!(*request.method(), Method::GET | Method::HEAD | Method::DELETE) {
            return refused(
                StatusCode::METHOD_NOT_ALLOWED,
                "results are fetched by GET and forgotten by DELETE",
            );
        }
        let deletes = request.method() == Method::DELETE;
        if let Some(entry) = done {
            let (head, body): (Answer, Bytes) = match decode(&entry.value) {
                Ok(found) => found,
                Err(error) => return refused(StatusCode::INTERNAL_SERVER_ERROR, error.message),
            };
            if head.host != host {
                return unknown();
            }
            if deletes {
                return match self.store.commit(Commit::new().delete(answer_key)).await {
                    Ok(_) => answer(StatusCode::OK, &json!({"id": id, "status": "forgotten"})),
                    Err(error) => unavailable(&error.message, 5),
                };
            }
            let mut response = Response::new(Body::from(body));
            *response.status_mut() = StatusCode::from_u16(head.status).unwrap_or(StatusCode::OK);
            put_headers(response.headers_mut(), &head.headers);
            response.headers_mut().insert(STATUS, HeaderValue::from_static("done"));
            response.headers_mut().insert("sas-async-attempts", head.attempts.into());
            return response;
        }
        match waiting.map(|entry| decode::<Call>(&entry.value)) {
            Some(Ok((call, _))) if call.host == host => {
                if deletes {
                    return refused(
                        StatusCode::CONFLICT,
                        "the call is being made; its result can be forgotten afterwards",
                    );
                }
                let mut response = answer(StatusCode::ACCEPTED, &json!({"id": id, "status": "accepted"}));
                response.headers_mut().insert(STATUS, HeaderValue::from_static("accepted"));
                response.headers_mut().insert(header::RETRY_AFTER, 1.into());
                response
            }
            _ => unknown(),
        }
    }

    fn begin(self: &Arc<Self>, id: String, value: Bytes) {
        let calls = Arc::clone(self);
        self.tasks.spawn(async move {
            let size = value.len() as u64;
            tokio::select! {
                biased;
                () = calls.stop.cancelled() => return,
                () = calls.make(&id, &value) => {}
            }
            calls.settled(size);
        });
    }

    /// Makes a call until there is an answer to keep.
    async fn make(&self, id: &str, value: &Bytes) {
        let (call, body): (Call, Bytes) = match decode(value) {
            Ok(found) => found,
            Err(error) => {
                tracing::error!(id, error = %error.chain(), "an accepted call can't be read; it is left out");
                return;
            }
        };
        let mut attempts = 0;
        let (head, body) = loop {
            attempts += 1;
            let permit = self.under_way.acquire().await;
            let (status, headers, answered) = self.attempt(id, &call, body.clone()).await;
            drop(permit);
            let again = status.is_server_error()
                || matches!(
                    status,
                    StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
                );
            if !again || attempts > self.config.retry.retries {
                let head = Answer { status: status.as_u16(), host: call.host.clone(), headers, attempts };
                break (head, answered);
            }
            let asked = headers.iter().find(|(name, _)| name == "retry-after");
            let asked = asked.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
            let asked = Duration::from_secs(asked.unwrap_or(0).min(300));
            sleep(self.config.retry.wait(attempts - 1).max(asked)).await;
        };
        let outcome = if head.status < 500 { "done" } else { "failed" };
        self.keep(id, &head, &body).await;
        self.recorder.counter(ASYNC_CALLS, &[("outcome", outcome)]).increment(1);
        if let Some(url) = &call.callback {
            self.call_back(id, url, &head, body).await;
        }
    }

    async fn attempt(
        &self,
        id: &str,
        call: &Call,
        body: Bytes,
    ) -> (StatusCode, Vec<(String, Vec<u8>)>, Bytes) {
        let failed = |status: StatusCode, message: String| {
            let body = json!({"reason": "async", "message": message}).to_string();
            let kind = ("content-type".to_owned(), b"application/json".to_vec());
            (status, vec![kind], Bytes::from(body))
        };
        let method = Method::from_bytes(call.method.as_bytes()).unwrap_or(Method::GET);
        let request = http::Request::builder().method(method).uri(call.uri.as_str()).body(Body::from(body));
        let mut request = match request {
            Ok(request) => request,
            Err(error) => return failed(StatusCode::BAD_REQUEST, error.to_string()),
        };
        put_headers(request.headers_mut(), &call.headers);
        if let Ok(host) = HeaderValue::try_from(call.host.as_str()) {
            request.headers_mut().insert(header::HOST, host);
        }
        if !request.headers().contains_key("idempotency-key")
            && let Ok(key) = HeaderValue::try_from(id)
        {
            request.headers_mut().insert("idempotency-key", key);
        }
        let called = async {
            let response = self.gateway.handle(request).await;
            let (head, body) = response.into_parts();
            (head, body.collect(self.config.body).await)
        };
        match tokio::time::timeout(self.config.retry.timeout, called).await {
            Err(_) => {
                let message = format!("no answer within {:?}", self.config.retry.timeout);
                failed(StatusCode::GATEWAY_TIMEOUT, message)
            }
            Ok((head, Ok(body))) => (head.status, kept(&head.headers), body),
            Ok((_, Err(error))) if error.to_string().contains("length limit") => {
                let message = format!("the answer has more than {} bytes, and is not kept", self.config.body);
                failed(StatusCode::INSUFFICIENT_STORAGE, message)
            }
            Ok((_, Err(error))) => failed(StatusCode::BAD_GATEWAY, format!("the answer broke off: {error}")),
        }
    }

    /// Stores the answer in place of the call, until it succeeds: a call that is done and not stored would be made again.
    async fn keep(&self, id: &str, head: &Answer, body: &Bytes) {
        let most = self.store.limits().value_bytes;
        let mut wait = Duration::from_millis(100);
        let value = match encode(head, body) {
            Ok(value) if value.len() <= most => value,
            _ => {
                let message = json!({"reason": "async", "message": format!("the answer has more than {most} bytes, and is not kept")});
                let short = Answer {
                    status: StatusCode::INSUFFICIENT_STORAGE.as_u16(),
                    host: head.host.clone(),
                    headers: vec![("content-type".to_owned(), b"application/json".to_vec())],
                    attempts: head.attempts,
                };
                encode(&short, message.to_string().as_bytes()).unwrap_or_default()
            }
        };
        loop {
            let expiry = (self.clock.now() + self.config.keep).0;
            let commit = Commit::new()
                .delete(format!("{CALLS}{id}"))
                .put(format!("{ANSWERS}{id}"), value.clone())
                .put(format!("{EXPIRIES}{expiry:020}/{id}"), Bytes::new());
            match self.store.commit(commit).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::warn!(id, error = %error.chain(), ?wait, "an answer could not be kept; again later");
                    sleep(wait).await;
                    wait = (wait * 2).min(Duration::from_secs(30));
                }
            }
        }
        self.expires.notify_one();
    }

    /// Sends the answer to whom the caller named, as often as the policy has it.
    async fn call_back(&self, id: &str, url: &str, head: &Answer, body: Bytes) {
        let event = Event::new(id, "/async", "dev.sas.async.answer")
            .and_then(|event| event.with_extension("sasstatus", i32::from(head.status)))
            .and_then(|event| {
                let kind = head.headers.iter().find(|(name, _)| name == "content-type");
                match kind.and_then(|(_, kind)| String::from_utf8(kind.clone()).ok()) {
                    Some(kind) => event.with_data(kind, body),
                    None => Ok(event.with_untyped_data(body)),
                }
            });
        let (event, publisher) = match (event, self.host.webhook(url)) {
            (Ok(event), Ok(publisher)) => (event, publisher),
            (Err(error), _) => return tracing::warn!(id, %error, "no callback can be made of an answer"),
            (_, Err(error)) => {
                return tracing::warn!(id, url, error = %error.chain(), "a callback is not allowed any more");
            }
        };
        for retry in 0..=self.config.retry.retries.max(5) {
            match publisher.publish(event.clone().with_time(self.clock.now())).await {
                Ok(()) => return,
                Err(error) => {
                    tracing::warn!(id, url, error = %error.chain(), retry, "a callback was not taken");
                    sleep(self.config.retry.wait(retry)).await;
                }
            }
        }
    }

    /// Forgets answers whose time is over. Sleeps while there are none.
    async fn sweep(&self) {
        loop {
            let next = match self.store.list(EXPIRIES, None, PAGE).await {
                Ok(entries) => {
                    let now = self.clock.now();
                    let mut next = None;
                    for entry in entries {
                        let rest = &entry.key[EXPIRIES.len()..];
                        let Some((at, id)) = rest.split_once('/') else { continue };
                        let at = Timestamp(at.parse().unwrap_or(0));
                        if at > now {
                            next = Some(at.since(now));
                            break;
                        }
                        let commit = Commit::new().delete(format!("{ANSWERS}{id}")).delete(entry.key.clone());
                        match self.store.commit(commit).await {
                            Ok(_) => {
                                self.recorder.counter(ASYNC_CALLS, &[("outcome", "expired")]).increment(1)
                            }
                            Err(_) => next = Some(Duration::from_secs(60)),
                        }
                        next = next.or(Some(Duration::ZERO));
                    }
                    next
                }
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "answers of asynchronous calls can't be looked through");
                    Some(Duration::from_secs(60))
                }
            };
            let next = next.map(|next| next.clamp(Duration::from_millis(10), Duration::from_secs(60)));
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return,
                () = self.expires.notified(), if next.is_none() => {}
                () = sleep(next.unwrap_or_default()), if next.is_some() => {}
            }
        }
    }

    /// Takes no more calls, and waits for those under way until `deadline`. What is not done then is made after the next
    /// start. Idempotent.
    pub async fn shutdown(&self, deadline: Instant) {
        self.tasks.close();
        let patience = async {
            while self.waiting.load(Ordering::Relaxed) > 0 {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let _ = tokio::time::timeout_at(deadline, patience).await;
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

fn put_headers(headers: &mut HeaderMap, kept: &[(String, Vec<u8>)]) {
    for (name, value) in kept {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name.as_str()), HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
}
