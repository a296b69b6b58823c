//! From a source to a service: filter, bounded slots, attempts with back-off, dead letter.

use std::{
    collections::{HashSet, VecDeque},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{StatusCode, header};
use parking_lot::Mutex;
use sas_core::{
    Ack, Clock, Cx, Error, ErrorKind, Event, EventPublisher, EventSink, IdempotencyKey, Invoker, Payer,
    Purpose, Recorder, RequestId, Response, Result, Retry, Slot, Store, SystemClock, Target,
};
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

use crate::{cloudevents::to_request, filter::Filter, metrics::Metrics};

/// How much of an answer's body is waited for; what an event's answer says is not used.
const ANSWER_LIMIT: usize = 64 << 10;
/// Events whose source and id are remembered, so that one that comes again is not delivered again.
const REMEMBERED: usize = 1024;
/// The longest wait that an answer's `Retry-After` can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// How attempts are spaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Backoff {
    /// The same time again and again.
    Linear,
    /// Twice the time of the attempt before.
    #[default]
    Exponential,
}

/// How an event is tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts after the first.
    pub retries: u32,
    /// How they are spaced.
    pub backoff: Backoff,
    /// The first wait.
    pub delay: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// How long one attempt may take, the start of an instance included.
    pub timeout: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retries: 5,
            backoff: Backoff::default(),
            delay: Duration::from_millis(500),
            longest: Duration::from_secs(60),
            timeout: Duration::from_secs(300),
        }
    }
}

impl RetryPolicy {
    /// The wait before the retry of that number, counted from 0.
    pub fn wait(&self, retry: u32) -> Duration {
        let wait = match self.backoff {
            Backoff::Linear => self.delay,
            Backoff::Exponential => self.delay.saturating_mul(2_u32.saturating_pow(retry)),
        };
        wait.min(self.longest)
    }
}

/// Where an event goes that could not be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadLetter {
    /// Into the store, under `deadletter/<trigger>/`; at this many the delivery fails and the event comes again.
    Keep(usize),
    /// To this service, as `namespace/service`, with the reason in extension attributes as Knative writes them. If that
    /// fails too, the delivery fails and the event comes again.
    Service(String),
    /// Out of the platform, by [`Delivery::with_publisher`], with the same extension attributes. If that fails, or there
    /// is no publisher, the delivery fails and the event comes again.
    Publish,
    /// Nowhere: the delivery fails and the event comes again.
    None,
}

impl Default for DeadLetter {
    fn default() -> Self {
        Self::Keep(1000)
    }
}

/// What a delivery is for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DeliveryConfig {
    /// The trigger's name.
    pub trigger: Arc<str>,
    /// The service, as `namespace/service`.
    pub target: Arc<str>,
    /// The path of the service, with its query.
    pub path: String,
    /// Who pays.
    pub payer: Payer,
    /// Which events are wanted; `None`: all.
    pub filter: Option<Filter>,
    /// How events are tried again.
    pub retry: RetryPolicy,
    /// Where those go that could not be delivered.
    pub dead_letter: DeadLetter,
}

impl DeliveryConfig {
    /// All events to `/` of `target`, with retries, kept when they fail.
    pub fn new(trigger: impl Into<Arc<str>>, target: impl Into<Arc<str>>) -> Self {
        Self {
            trigger: trigger.into(),
            target: target.into(),
            path: "/".to_owned(),
            payer: Payer::Owner,
            filter: None,
            retry: RetryPolicy::default(),
            dead_letter: DeadLetter::default(),
        }
    }
}

/// An [`EventSink`] that calls a service, waking it if it sleeps. As an [`EventPublisher`] it does the same with events of
/// the program's own.
///
/// An event whose source and id are those of one of the last 1,024 that were taken is answered with [`Ack::Duplicate`] and
/// not delivered. They are remembered in memory, so that after a restart one may be delivered twice; every attempt carries
/// an [`IdempotencyKey`] of source and id, by which the service can tell.
///
/// Slots are shared by all deliveries that were made with the same semaphore: the platform's bound on events under way.
pub struct Delivery {
    invoker: Arc<dyn Invoker>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    slots: Arc<Semaphore>,
    publisher: Option<Arc<dyn EventPublisher>>,
    config: DeliveryConfig,
    remembered: Mutex<Remembered>,
    calls: AtomicU64,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Remembered {
    order: VecDeque<(String, String)>,
    known: HashSet<(String, String)>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("config", &self.config).finish_non_exhaustive()
    }
}

/// How one attempt went.
enum Attempt {
    Done,
    /// It may succeed after a while; the target may have said after which.
    Again(String, Option<u16>, Option<Duration>),
    /// It never will.
    Refused(String, Option<u16>),
}

impl Delivery {
    /// A delivery with `slots` shared between all that are given the same.
    pub fn new(
        config: DeliveryConfig,
        invoker: Arc<dyn Invoker>,
        store: Arc<dyn Store>,
        slots: Arc<Semaphore>,
    ) -> Self {
        Self {
            invoker,
            store,
            clock: Arc::new(SystemClock),
            slots,
            publisher: None,
            config,
            remembered: Mutex::default(),
            calls: AtomicU64::new(0),
            metrics: Metrics::default(),
        }
    }

    /// With another wall clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// With a way out of the platform for what can't be delivered, for [`DeadLetter::Publish`].
    #[must_use]
    pub fn with_publisher(mut self, publisher: Arc<dyn EventPublisher>) -> Self {
        self.publisher = Some(publisher);
        self
    }

    /// With metrics that go to `recorder`.
    #[must_use]
    pub fn with_recorder(mut self, recorder: &Recorder) -> Self {
        self.metrics = Metrics::new(recorder);
        self
    }

    /// The attempts, until one succeeds or none may any more.
    async fn attempts(
        &self,
        target: &Arc<str>,
        path: &str,
        event: &Event,
    ) -> std::result::Result<(), (String, Option<u16>)> {
        let mut retry = 0;
        loop {
            match self.attempt(target, path, event).await {
                Attempt::Done => return Ok(()),
                Attempt::Refused(reason, status) => return Err((reason, status)),
                Attempt::Again(reason, status, _) if retry >= self.config.retry.retries => {
                    return Err((format!("{reason}; gave up after {} attempts", retry + 1), status));
                }
                Attempt::Again(reason, _, asked) => {
                    tracing::debug!(trigger = %self.config.trigger, event = event.id(), reason, "tried again later");
                    self.metrics.retries.increment(1);
                    let wait = self.config.retry.wait(retry).max(asked.unwrap_or_default());
                    retry += 1;
                    sleep(wait).await;
                }
            }
        }
    }

    async fn attempt(&self, target: &Arc<str>, path: &str, event: &Event) -> Attempt {
        let request = match to_request(event, path) {
            Ok(request) => request,
            Err(error) => return Attempt::Refused(error.message, None),
        };
        let deadline = Instant::now() + self.config.retry.timeout;
        let cx = Cx::new(self.config.payer, self.request_id(), deadline)
            .for_purpose(Purpose::Event)
            .with_idempotency(IdempotencyKey::of(&[event.source(), event.id()]));
        let call = self.invoker.invoke(Target::Service(Arc::clone(target)), request, &cx);
        match tokio::time::timeout_at(deadline, call).await {
            Err(_) => Attempt::Again(format!("no answer within {:?}", self.config.retry.timeout), None, None),
            Ok(Err(failed)) => match failed.error.kind {
                ErrorKind::InvalidSpec | ErrorKind::Unsupported => {
                    Attempt::Refused(failed.error.chain(), None)
                }
                _ => {
                    let asked = match failed.error.retry {
                        Retry::After(asked) => Some(asked),
                        _ => None,
                    };
                    Attempt::Again(failed.error.chain(), None, asked)
                }
            },
            Ok(Ok(response)) => judge(response, deadline).await,
        }
    }

    fn request_id(&self) -> RequestId {
        let count = self.calls.fetch_add(1, Ordering::Relaxed);
        let hash = self.config.trigger.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        let now = self.clock.now().0.cast_unsigned();
        RequestId(u128::from(hash ^ now) << 64 | u128::from(now.wrapping_add(count)))
    }

    /// What becomes of an event that could not be delivered.
    async fn give_up(&self, event: Event, reason: String, status: Option<u16>) -> Result<Ack> {
        let failed = |why: String| {
            self.metrics.undelivered.increment(1);
            Error::new(
                ErrorKind::Unavailable,
                "deliver",
                format!("{} to {}: {why}", event.id(), self.config.target),
            )
        };
        match &self.config.dead_letter {
            DeadLetter::None => Err(failed(reason)),
            DeadLetter::Publish => {
                let Some(publisher) = &self.publisher else {
                    return Err(failed(format!("{reason}; its dead letter: nobody publishes events here")));
                };
                let letter = self.letter(&event, &reason, status)?;
                match publisher.publish(letter).await {
                    Ok(()) => {
                        self.metrics.dead_letter.increment(1);
                        Ok(Ack::Stored)
                    }
                    Err(second) => Err(failed(format!("{reason}; its dead letter: {}", second.chain()))),
                }
            }
            DeadLetter::Service(service) => {
                let letter = self.letter(&event, &reason, status)?;
                let service: Arc<str> = Arc::from(service.as_str());
                match self.attempts(&service, "/", &letter).await {
                    Ok(()) => {
                        self.metrics.dead_letter.increment(1);
                        Ok(Ack::Stored)
                    }
                    Err((second, _)) => {
                        Err(failed(format!("{reason}; its dead letter to {service}: {second}")))
                    }
                }
            }
            DeadLetter::Keep(most) => {
                let prefix = format!("deadletter/{}/", self.config.trigger);
                if self.store.list(&prefix, None, *most).await?.len() >= *most {
                    return Err(failed(format!(
                        "{reason}; {most} dead letters are kept already: read and delete them"
                    )));
                }
                let key = format!(
                    "{prefix}{:020}-{}",
                    self.clock.now().0,
                    self.calls.fetch_add(1, Ordering::Relaxed)
                );
                let letter = serde_json::json!({
                    "id": event.id(),
                    "source": event.source(),
                    "type": event.kind(),
                    "subject": event.subject(),
                    "time": event.time(),
                    "datacontenttype": event.data_content_type(),
                    "extensions": event.extensions(),
                    "data": event.data().as_ref(),
                    "target": self.config.target.as_ref(),
                    "reason": reason,
                    "status": status,
                });
                self.store.put(&key, None, letter.to_string().into()).await?;
                self.metrics.dead_letter.increment(1);
                tracing::warn!(trigger = %self.config.trigger, event = event.id(), reason, "kept as a dead letter");
                Ok(Ack::Stored)
            }
        }
    }

    /// The event with what went wrong, as Knative writes it.
    fn letter(&self, event: &Event, reason: &str, status: Option<u16>) -> Result<Event> {
        let text: String = reason.chars().filter(|letter| !letter.is_control()).take(1024).collect();
        event
            .clone()
            .with_extension("knativeerrordest", self.config.target.as_ref())
            .and_then(|event| {
                event.with_extension("knativeerrorcode", status.map_or("0".to_owned(), |s| s.to_string()))
            })
            .and_then(|event| event.with_extension("knativeerrordata", text))
            .map_err(|error| Error::new(ErrorKind::Unexpected, "deliver", error.to_string()))
    }
}

/// Knative's rule: 2xx is success; 404, 408, 409, 425, 429 and 5xx may pass; the rest never will.
async fn judge(response: Response, deadline: Instant) -> Attempt {
    let status = response.status();
    let asked = response
        .headers()
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse::<u64>().ok())
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_WAIT));
    if status.is_success() {
        // The instance works until its answer ends: an event is delivered when it is.
        return match tokio::time::timeout_at(deadline, response.into_body().collect(ANSWER_LIMIT)).await {
            Ok(Err(error)) if !error.to_string().contains("length limit") => {
                Attempt::Again(format!("the answer broke off: {error}"), Some(status.as_u16()), None)
            }
            _ => Attempt::Done,
        };
    }
    let passes = status.is_server_error()
        || [
            StatusCode::NOT_FOUND,
            StatusCode::REQUEST_TIMEOUT,
            StatusCode::CONFLICT,
            StatusCode::TOO_EARLY,
            StatusCode::TOO_MANY_REQUESTS,
        ]
        .contains(&status);
    let reason = format!("the service answered {status}");
    if passes {
        Attempt::Again(reason, Some(status.as_u16()), asked)
    } else {
        Attempt::Refused(reason, Some(status.as_u16()))
    }
}

#[async_trait]
impl EventSink for Delivery {
    async fn ready(&self) -> Result<Slot> {
        let permit = Arc::clone(&self.slots).acquire_owned().await;
        permit
            .map(|permit| Slot(Box::new(permit)))
            .map_err(|_| Error::new(ErrorKind::Unavailable, "ready", "the platform is shutting down"))
    }

    async fn deliver(&self, slot: Slot, event: Event) -> Result<Ack> {
        if let Some(filter) = &self.config.filter
            && !filter.wants(&event)
        {
            self.metrics.filtered.increment(1);
            return Ok(Ack::Filtered);
        }
        let id = (event.source().to_owned(), event.id().to_owned());
        if self.remembered.lock().known.contains(&id) {
            self.metrics.repeated.increment(1);
            return Ok(Ack::Duplicate);
        }
        let ack = match self.attempts(&self.config.target, &self.config.path, &event).await {
            Ok(()) => {
                self.metrics.completed.increment(1);
                Ack::Completed
            }
            Err((reason, status)) => self.give_up(event, reason, status).await?,
        };
        let mut remembered = self.remembered.lock();
        if remembered.known.insert(id.clone()) {
            remembered.order.push_back(id);
        }
        if remembered.order.len() > REMEMBERED
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.known.remove(&oldest);
        }
        drop(remembered);
        drop(slot);
        Ok(ack)
    }
}

#[async_trait]
impl EventPublisher for Delivery {
    async fn publish(&self, event: Event) -> Result<()> {
        let slot = self.ready().await?;
        self.deliver(slot, event).await.map(|_| ())
    }
}
