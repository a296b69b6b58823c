//! From a source to its target: filter, transformation, bounded slots, attempts with back-off, dead letter.

mod circuit;
pub(crate) mod letters;
mod retry;
mod span;
mod turns;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use sas_core::{
    Ack, CallError, Clock, Cx, Error, ErrorKind, Event, EventPublisher, EventSink, FaasTrigger, Hosts,
    IdempotencyKey, Invoker, Payer, Place, Purpose, Recorder, Request, RequestId, Response, Result, Retry,
    Slot, Store, SystemClock, Target, TenantKey, TraceContext, TraceSink,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout_at},
};

use crate::{
    cloudevents::{self, Limits, to_request},
    filter::Filter,
    metrics::Metrics,
    quotas::EventQuotas,
    transform::Transform,
};
use circuit::Circuit;
use letters::Failure;
use span::SpanDraft;
use turns::{Remembered, Turns};

pub use circuit::CircuitPolicy;
pub use retry::{Backoff, RetryPolicy};
pub use turns::Dedup;

/// How much of an answer's body is waited for where no reply is wanted; what such an answer says is not used.
const ANSWER_LIMIT: usize = 64 << 10;
/// The longest wait that an answer's `Retry-After` can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// A time so far away that nobody waits for it.
const NEVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
/// The attribute that counts down with each reply, as Knative's brokers have it.
const HOPS: &str = "knativebrokerttl";

/// Where an event goes that could not be delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeadLetter {
    /// Into the store, under `deadletter/<trigger>/`; at this many the delivery fails and the event comes again.
    Keep(usize),
    /// To this service, as `namespace/service`, with the reason in extension attributes as Knative writes them. If that
    /// fails too, the delivery fails and the event comes again.
    Service(String),
    /// Out of the delivery by [`Delivery::with_publisher`]: to a broker, a sink, or out of the platform, with the same
    /// extension attributes. If that fails, or there is no publisher, the delivery fails and the event comes again.
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
    /// The name of the trigger, in metrics and dead letters.
    pub trigger: Arc<str>,
    /// The service, as `namespace/service`; with [`Delivery::with_target`], what that is called.
    pub target: Arc<str>,
    /// The path of the service, with its query.
    pub path: String,
    /// What the trigger is, for traces.
    pub cause: FaasTrigger,
    /// The tenant and service that pay for the calls.
    pub payer: Payer,
    /// Which events are wanted; `None`: all.
    pub filter: Option<Filter>,
    /// What is made of an event before it is sent; `None`: it is sent as it is.
    pub transform: Option<Transform>,
    /// How events are tried again.
    pub retry: RetryPolicy,
    /// Where those go that could not be delivered.
    pub dead_letter: DeadLetter,
    /// Events of this trigger under way at once, at least one.
    pub concurrency: usize,
    /// The attribute by whose value events are delivered one after the other, in the order in which they came; those of
    /// other values pass. Events without it have no order. `None`: no event waits for another.
    pub order_by: Option<String>,
    /// Most events of one call to a service, for sources that have several at once; 1: each event is a call.
    pub batch: usize,
    /// Which repetitions are left out.
    pub dedup: Dedup,
    /// When the target is left alone.
    pub circuit: CircuitPolicy,
    /// Replies of replies, at most.
    pub hops: u16,
}

impl DeliveryConfig {
    /// All events to `/` of `target`, with retries, kept when they fail.
    pub fn new(trigger: impl Into<Arc<str>>, target: impl Into<Arc<str>>) -> Self {
        Self {
            trigger: trigger.into(),
            target: target.into(),
            path: "/".to_owned(),
            cause: FaasTrigger::PubSub,
            payer: Payer::Owner,
            filter: None,
            transform: None,
            retry: RetryPolicy::default(),
            dead_letter: DeadLetter::default(),
            concurrency: 100,
            order_by: None,
            batch: 1,
            dedup: Dedup::default(),
            circuit: CircuitPolicy::default(),
            hops: 32,
        }
    }
}

/// An [`EventSink`] that calls a service, waking it if it sleeps, or publishes. As an [`EventPublisher`] it does the same
/// with events of the program's own.
///
/// An event whose source and id are those of one that was taken within [`DeliveryConfig::dedup`] is answered with
/// [`Ack::Duplicate`] and not delivered. They are remembered in memory, so that after a restart one may be delivered
/// twice; every attempt carries an [`IdempotencyKey`] of source and id, by which the service can tell.
///
/// A target that fails [`CircuitPolicy::failures`] times in a row is left alone for a while: [`EventSink::ready`] gives no
/// room then, so that events wait upstream, and one attempt at a time finds out whether it is back.
///
/// Slots are shared by all deliveries that were made with the same semaphore: the platform's bound on events under way. An
/// event that waits for its next attempt, or for its turn, holds none.
pub struct Delivery {
    invoker: Arc<dyn Invoker>,
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    slots: Arc<Semaphore>,
    /// Events of this trigger under way.
    own: Arc<Semaphore>,
    target: Option<Arc<dyn EventPublisher>>,
    reply: Option<Arc<dyn EventPublisher>>,
    publisher: Option<Arc<dyn EventPublisher>>,
    config: DeliveryConfig,
    circuit: Circuit,
    quotas: Option<(TenantKey, Arc<EventQuotas>)>,
    turns: Turns,
    remembered: Mutex<Remembered>,
    calls: AtomicU64,
    attempts: AtomicU64,
    metrics: Metrics,
    traces: Option<Arc<dyn TraceSink>>,
    hosts: Option<Arc<dyn Hosts>>,
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery").field("config", &self.config).finish_non_exhaustive()
    }
}

/// The room of one event: given back for as long as it only waits.
struct Permits {
    shared: Option<OwnedSemaphorePermit>,
    _own: Option<Box<dyn std::any::Any + Send>>,
}

impl Permits {
    fn of(slot: Slot) -> Self {
        match slot.0.downcast::<Self>() {
            Ok(permits) => *permits,
            Err(other) => Self { shared: None, _own: Some(other) },
        }
    }

    fn release(&mut self) {
        self.shared = None;
    }

    async fn renew(&mut self, slots: &Arc<Semaphore>) -> std::result::Result<(), Failed> {
        if self.shared.is_none() {
            self.shared = Some(
                Arc::clone(slots)
                    .acquire_owned()
                    .await
                    .map_err(|_| Failed::Left(shutting_down("deliver")))?,
            );
        }
        Ok(())
    }
}

/// How one attempt went.
enum Attempt {
    Done(Vec<Event>),
    /// It may succeed after a while; the target may have said after which.
    Again(Failure, Option<Duration>),
    /// It never will.
    Refused(Failure),
}

/// Why attempts ended without success.
enum Failed {
    For(Failure),
    /// The platform shuts down, or another host has taken over: the event comes again.
    Left(Error),
}

/// Where one delivery goes.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Service(Arc<str>, String),
    Publisher(Arc<dyn EventPublisher>),
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
            own: Arc::new(Semaphore::new(config.concurrency.clamp(1, Semaphore::MAX_PERMITS))),
            target: None,
            reply: None,
            publisher: None,
            circuit: Circuit::new(config.circuit),
            quotas: None,
            config,
            turns: Turns::default(),
            remembered: Mutex::default(),
            calls: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            metrics: Metrics::default(),
            traces: None,
            hosts: None,
        }
    }

    /// Of a trigger that is declared, on one of several hosts: an event is tried again only while this one acts for the trigger's
    /// namespace. After that it fails, and comes again where another one does.
    #[must_use]
    pub fn with_hosts(mut self, hosts: Arc<dyn Hosts>) -> Self {
        self.hosts = Some(hosts);
        self
    }

    /// With another wall clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// To a publisher instead of a service.
    #[must_use]
    pub fn with_target(mut self, target: Arc<dyn EventPublisher>) -> Self {
        self.target = Some(target);
        self
    }

    /// With somebody who takes the events that a service answers with. The delivery of an event is not done before its
    /// reply is taken.
    #[must_use]
    pub fn with_reply(mut self, reply: Arc<dyn EventPublisher>) -> Self {
        self.reply = Some(reply);
        self
    }

    /// With a way out for what can't be delivered, for [`DeadLetter::Publish`].
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

    /// With somebody who is told of each delivery when it is over.
    #[must_use]
    pub fn with_traces(mut self, traces: Arc<dyn TraceSink>) -> Self {
        self.traces = Some(traces);
        self
    }

    /// Held to the quota of events of whoever pays for the calls, if a tenant of its own does.
    pub(crate) fn with_quotas(mut self, quotas: &Arc<EventQuotas>) -> Self {
        if let Payer::Tenant(tenant) = self.config.payer {
            self.quotas = Some((tenant, Arc::clone(quotas)));
        }
        self
    }

    pub(crate) fn with_metrics(mut self, metrics: Metrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Attempts that were made.
    pub fn attempts_made(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Whether the target is left alone now, since it failed many times in a row.
    pub fn is_circuit_open(&self) -> bool {
        self.circuit.is_open()
    }

    /// The target is another than the one that failed: it is tried at once.
    pub(crate) fn retry_now(&self) {
        self.circuit.retry_now();
    }

    fn way(&self) -> Way {
        match &self.target {
            Some(publisher) => Way::Publisher(Arc::clone(publisher)),
            None => Way::Service(Arc::clone(&self.config.target), self.config.path.clone()),
        }
    }

    /// Delivers an event again that was given up, past filter and memory.
    pub(crate) async fn again(&self, event: &Event, way: Option<&Way>) -> std::result::Result<(), String> {
        let slot = self.ready().await.map_err(|error| error.chain())?;
        let shaped = self.shaped(event).map_err(|failure| failure.reason)?;
        let own = self.way();
        let attempts = self
            .attempts(
                way.unwrap_or(&own),
                shaped.as_ref().unwrap_or(event),
                &mut Permits::of(slot),
                &mut None,
            )
            .await;
        match attempts {
            Ok(()) => Ok(()),
            Err(Failed::For(failure)) => Err(failure.reason),
            Err(Failed::Left(error)) => Err(error.message),
        }
    }

    /// So many events go out now.
    fn counts(&self, events: usize) {
        if let Some((tenant, quotas)) = &self.quotas {
            quotas.deliver(*tenant, events);
        }
    }

    fn shaped(&self, event: &Event) -> std::result::Result<Option<Event>, Failure> {
        let Some(transform) = &self.config.transform else { return Ok(None) };
        transform.apply(event).map(Some).map_err(|problem| Failure::new("transform", problem))
    }

    /// The attempts, until one succeeds or none may any more.
    async fn attempts(
        &self,
        way: &Way,
        event: &Event,
        permits: &mut Permits,
        span: &mut Option<SpanDraft>,
    ) -> std::result::Result<(), Failed> {
        let seed = IdempotencyKey::of(&[event.source(), event.id()]).0 as u64;
        let until = Instant::now() + self.config.retry.deadline.unwrap_or(NEVER);
        let mut retry = 0;
        loop {
            self.room(until, permits, retry).await?;
            let Ok(pass) = timeout_at(until, self.circuit.admit()).await else {
                return Err(self.too_late(retry));
            };
            permits.renew(&self.slots).await?;
            self.attempts.fetch_add(1, Ordering::Relaxed);
            self.metrics.attempts.increment(1);
            let context = span.as_mut().map(SpanDraft::attempts);
            let attempt = self.attempt(way, event, until, context, span).await;
            if let Some(span) = span {
                span.attempted(&attempt);
            }
            match attempt {
                Attempt::Done(replies) => {
                    pass.succeeded();
                    return self
                        .pass_on(event, replies, context)
                        .await
                        .map_err(|failure| Failed::For(Failure { attempts: retry + 1, ..failure }));
                }
                Attempt::Refused(failure) => {
                    pass.succeeded();
                    return Err(Failed::For(Failure { attempts: retry + 1, ..failure }));
                }
                Attempt::Again(failure, asked) => {
                    if failure.status.is_none_or(|status| status >= 500) {
                        pass.failed(asked);
                    } else {
                        pass.succeeded();
                    }
                    self.still_acts()?;
                    if retry >= self.config.retry.retries {
                        let reason = format!("{}; gave up after {} attempts", failure.reason, retry + 1);
                        return Err(Failed::For(Failure { reason, attempts: retry + 1, ..failure }));
                    }
                    tracing::debug!(trigger = %self.config.trigger, event = event.id(), reason = failure.reason, "tried again later");
                    self.metrics.retries.increment(1);
                    let wait = self.config.retry.jittered(retry, seed).max(asked.unwrap_or_default());
                    retry += 1;
                    if Instant::now() + wait > until {
                        return Err(self.too_late(retry));
                    }
                    permits.release();
                    tokio::select! {
                        biased;
                        () = self.circuit.renewed() => {}
                        () = sleep(wait) => {}
                    }
                    self.still_acts()?;
                }
            }
        }
    }

    /// Before an attempt that is not the first: what another host has taken over comes again there, and may be done by now.
    fn still_acts(&self) -> std::result::Result<(), Failed> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        let trigger = &*self.config.trigger;
        let namespace = trigger.split_once('/').map_or(trigger, |(namespace, _)| namespace);
        match hosts.place(namespace) {
            Place::Here(_) => Ok(()),
            Place::There(_) | Place::Undecided => Err(Failed::Left(elsewhere(namespace))),
        }
    }

    /// Gives the shared slot back while the target is left alone.
    async fn room(
        &self,
        until: Instant,
        permits: &mut Permits,
        made: u32,
    ) -> std::result::Result<(), Failed> {
        if self.circuit.is_open() {
            permits.release();
            if timeout_at(until, self.circuit.passable()).await.is_err() {
                return Err(self.too_late(made));
            }
        }
        Ok(())
    }

    fn too_late(&self, attempts: u32) -> Failed {
        let deadline = self.config.retry.deadline.unwrap_or_default();
        let reason = format!("not delivered within {deadline:?}; gave up after {attempts} attempts");
        Failed::For(Failure { attempts, ..Failure::new("deadline", reason) })
    }

    async fn attempt(
        &self,
        way: &Way,
        event: &Event,
        until: Instant,
        context: Option<TraceContext>,
        span: &mut Option<SpanDraft>,
    ) -> Attempt {
        match way {
            Way::Service(target, path) => {
                let mut request = match to_request(event, path) {
                    Ok(request) => request,
                    Err(error) => return Attempt::Refused(Failure::new("refused", error.message)),
                };
                let key = IdempotencyKey::of(&[event.source(), event.id()]);
                span::put(request.headers_mut(), event, context);
                self.call(target, request, key, until, span).await
            }
            Way::Publisher(publisher) => {
                let deadline = (Instant::now() + self.config.retry.timeout).min(until);
                match timeout_at(deadline, publisher.publish(span::carried(event.clone(), context))).await {
                    Err(_) => Attempt::Again(self.no_answer(), None),
                    Ok(Ok(())) => Attempt::Done(Vec::new()),
                    Ok(Err(error)) => failed(&error),
                }
            }
        }
    }

    async fn call(
        &self,
        target: &Arc<str>,
        request: Request,
        key: IdempotencyKey,
        until: Instant,
        span: &mut Option<SpanDraft>,
    ) -> Attempt {
        match self.answer(target, request, key, until, span).await {
            Err(attempt) => attempt,
            Ok((response, deadline)) => self.judge(response, deadline).await,
        }
    }

    /// The head of the answer, and when it has to be over.
    async fn answer(
        &self,
        target: &Arc<str>,
        request: Request,
        key: IdempotencyKey,
        until: Instant,
        span: &mut Option<SpanDraft>,
    ) -> std::result::Result<(Response, Instant), Attempt> {
        let deadline = (Instant::now() + self.config.retry.timeout).min(until);
        let cx = Cx::new(self.config.payer, self.request_id(), deadline)
            .for_purpose(Purpose::Event)
            .caused_by(self.config.cause)
            .with_idempotency(key);
        let call = self.invoker.invoke(Target::Service(Arc::clone(target)), request, &cx);
        match timeout_at(deadline, call).await {
            Err(_) => Err(Attempt::Again(self.no_answer(), None)),
            Ok(Err(CallError { error, .. })) => Err(failed(&error)),
            Ok(Ok(response)) => {
                if let Some(span) = span {
                    span.answered(&response);
                }
                Ok((response, deadline))
            }
        }
    }

    fn no_answer(&self) -> Failure {
        Failure::new("timeout", format!("no answer within {:?}", self.config.retry.timeout))
    }

    fn request_id(&self) -> RequestId {
        let count = self.calls.fetch_add(1, Ordering::Relaxed);
        let hash = self.config.trigger.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        let now = self.clock.now().0.cast_unsigned();
        RequestId(u128::from(hash ^ now) << 64 | u128::from(now.wrapping_add(count)))
    }

    /// Knative's rule: 2xx is success; 404, 408, 409, 425, 429 and 5xx may pass; the rest never will.
    async fn judge(&self, response: Response, deadline: Instant) -> Attempt {
        let status = response.status();
        if !status.is_success() {
            return self.judged(status, response.headers());
        }
        let headers = response.headers().clone();
        let limit = if self.reply.is_some() { Limits::default().bytes } else { ANSWER_LIMIT };
        // The instance works until its answer ends: an event is delivered when it is.
        match timeout_at(deadline, response.into_body().collect(limit)).await {
            Err(_) if self.reply.is_none() => Attempt::Done(Vec::new()),
            Err(_) => Attempt::Again(self.no_answer(), None),
            Ok(Ok(body)) if self.reply.is_some() && carries_event(&headers) => {
                match cloudevents::from_message(&headers, body, &Limits::default()) {
                    Ok(replies) => Attempt::Done(replies),
                    Err(error) => Attempt::Refused(Failure {
                        status: Some(status.as_u16()),
                        ..Failure::new("reply", format!("its reply is no CloudEvent: {error}"))
                    }),
                }
            }
            Ok(Ok(_)) => Attempt::Done(Vec::new()),
            Ok(Err(error)) if error.to_string().contains("length limit") => match self.reply {
                Some(_) if carries_event(&headers) => Attempt::Refused(Failure {
                    status: Some(status.as_u16()),
                    ..Failure::new("reply", format!("its reply has more than {limit} bytes"))
                }),
                _ => Attempt::Done(Vec::new()),
            },
            Ok(Err(error)) => {
                Attempt::Again(Failure::new("broken-off", format!("the answer broke off: {error}")), None)
            }
        }
    }

    /// An answer that is no success.
    fn judged(&self, status: StatusCode, headers: &HeaderMap) -> Attempt {
        let passes = status.is_server_error()
            || [
                StatusCode::NOT_FOUND,
                StatusCode::REQUEST_TIMEOUT,
                StatusCode::CONFLICT,
                StatusCode::TOO_EARLY,
                StatusCode::TOO_MANY_REQUESTS,
            ]
            .contains(&status);
        let failure = Failure {
            status: Some(status.as_u16()),
            ..Failure::new(format!("status-{}", status.as_u16()), format!("the service answered {status}"))
        };
        if passes { Attempt::Again(failure, self.asked(headers)) } else { Attempt::Refused(failure) }
    }

    /// `Retry-After`, in seconds or as a date.
    fn asked(&self, headers: &HeaderMap) -> Option<Duration> {
        let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
        let asked = match text.parse::<u64>() {
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => {
                let at = jiff::fmt::rfc2822::parse(text).ok()?.timestamp().as_nanosecond();
                let left = at - i128::from(self.clock.now().0);
                Duration::from_nanos(u64::try_from(left.max(0)).ok()?)
            }
        };
        Some(asked.min(LONGEST_WAIT))
    }

    /// Passes the service's answer on as the next events.
    async fn pass_on(
        &self,
        cause: &Event,
        replies: Vec<Event>,
        context: Option<TraceContext>,
    ) -> std::result::Result<(), Failure> {
        let Some(reply) = &self.reply else { return Ok(()) };
        let left = match cause.extensions().get(HOPS).map(|value| value.to_text().parse::<i32>()) {
            Some(Ok(left)) => left.min(i32::from(self.config.hops)) - 1,
            _ => i32::from(self.config.hops) - 1,
        };
        for event in replies {
            if left <= 0 {
                let reason = format!(
                    "the reply {} is one reply of a reply too many ({} are allowed): services answer each other in a circle",
                    event.id(),
                    self.config.hops
                );
                return Err(Failure::new("hops", reason));
            }
            let marked =
                event.with_extension(HOPS, left).map_err(|error| Failure::new("reply", error.to_string()))?;
            // A service that knows of traces says itself what its reply belongs to.
            let context = context.filter(|_| span::context_of(&marked).is_none());
            let marked = span::carried(marked, context);
            reply.publish(marked).await.map_err(|error| {
                Failure::new("reply", format!("its reply was not taken: {}", error.chain()))
            })?;
            self.metrics.replies.increment(1);
        }
        Ok(())
    }

    /// What becomes of an event that could not be delivered.
    async fn give_up(&self, event: &Event, failure: Failure, permits: &mut Permits) -> Result<Ack> {
        let failed = |why: String| {
            self.metrics.undelivered.increment(1);
            Error::new(
                ErrorKind::Unavailable,
                "deliver",
                format!("{} to {}: {why}", event.id(), self.config.target),
            )
        };
        let (trigger, target) = (&*self.config.trigger, &*self.config.target);
        let way = match &self.config.dead_letter {
            DeadLetter::None => return Err(failed(failure.reason)),
            DeadLetter::Keep(most) => {
                self.keep(event, &failure, *most, failed).await?;
                self.metrics.dead_letter.increment(1);
                return Ok(Ack::Stored);
            }
            DeadLetter::Publish => match &self.publisher {
                Some(publisher) => Way::Publisher(Arc::clone(publisher)),
                None => {
                    let why = format!("{}; its dead letter: nobody publishes events here", failure.reason);
                    return Err(failed(why));
                }
            },
            DeadLetter::Service(service) => Way::Service(Arc::from(service.as_str()), "/".to_owned()),
        };
        let letter = letters::addressed(event, trigger, target, &failure)?;
        match self.last_attempts(&way, &letter, permits).await {
            Ok(()) => {
                self.metrics.dead_letter.increment(1);
                Ok(Ack::Stored)
            }
            Err(second) => Err(failed(format!("{}; its dead letter: {second}", failure.reason))),
        }
    }

    /// The attempts of a dead letter: the circuit is the target's, and does not count.
    async fn last_attempts(
        &self,
        way: &Way,
        letter: &Event,
        permits: &mut Permits,
    ) -> std::result::Result<(), String> {
        let mut retry = 0;
        loop {
            if permits.renew(&self.slots).await.is_err() {
                return Err("the platform is shutting down".to_owned());
            }
            let attempt = self.attempt(way, letter, Instant::now() + NEVER, None, &mut None).await;
            let failure = match attempt {
                Attempt::Done(_) => return Ok(()),
                Attempt::Refused(failure) => return Err(failure.reason),
                Attempt::Again(failure, _) => failure,
            };
            if retry >= self.config.retry.retries {
                return Err(failure.reason);
            }
            permits.release();
            sleep(self.config.retry.wait(retry)).await;
            if let Err(Failed::Left(error)) = self.still_acts() {
                return Err(error.message);
            }
            retry += 1;
        }
    }

    async fn keep(
        &self,
        event: &Event,
        failure: &Failure,
        most: usize,
        failed: impl Fn(String) -> Error,
    ) -> Result<()> {
        let (trigger, target) = (&*self.config.trigger, &*self.config.target);
        let prefix = letters::prefix(trigger);
        if self.store.list(&prefix, None, most).await?.len() >= most {
            let reason = &failure.reason;
            return Err(failed(format!(
                "{reason}; {most} dead letters are kept already: deliver them again, or discard them"
            )));
        }
        let now = self.clock.now().0;
        let key = format!("{prefix}{now:020}-{}", self.calls.fetch_add(1, Ordering::Relaxed));
        let letter = letters::stored(event, trigger, target, failure, now)?;
        self.store.put(&key, None, letter.to_string().into()).await?;
        tracing::warn!(trigger, event = event.id(), reason = failure.reason, "kept as a dead letter");
        Ok(())
    }

    /// An event, past its filter, to the end.
    async fn send(&self, event: &Event, permits: &mut Permits) -> Result<Ack> {
        let mut span = self.span(std::slice::from_ref(event));
        let failure = match self.shaped(event) {
            Err(failure) => failure,
            Ok(shaped) => {
                let sent = shaped.as_ref().unwrap_or(event);
                match self.attempts(&self.way(), sent, permits, &mut span).await {
                    Ok(()) => {
                        self.metrics.completed.increment(1);
                        self.tell(span, std::slice::from_ref(event), None);
                        return Ok(Ack::Completed);
                    }
                    Err(Failed::Left(error)) => return Err(error),
                    Err(Failed::For(failure)) => failure,
                }
            }
        };
        self.tell(span, std::slice::from_ref(event), Some(&failure));
        self.give_up(event, failure, permits).await
    }

    fn span(&self, events: &[Event]) -> Option<SpanDraft> {
        let sink = self.traces.as_ref()?;
        Some(SpanDraft::begin(sink, self.config.cause, events, self.request_id()))
    }

    fn tell(&self, span: Option<SpanDraft>, events: &[Event], failure: Option<&Failure>) {
        if let Some(span) = span {
            let reason = failure.map(|failure| failure.reason.as_str());
            span.tell(events, &self.config.trigger, &self.config.target, reason);
        }
    }

    /// Whether the event is to be left out.
    fn left_out(&self, event: &Event, identity: &(String, String)) -> Option<Ack> {
        if let Some(filter) = &self.config.filter
            && !filter.wants(event)
        {
            self.metrics.filtered.increment(1);
            return Some(Ack::Filtered);
        }
        if self.remembered.lock().knows(identity, &self.config.dedup) {
            self.metrics.repeated.increment(1);
            return Some(Ack::Duplicate);
        }
        None
    }

    /// One call for all events of `open`, again for those of them that failed; how each ended.
    async fn send_batch(&self, events: &[Event], permits: &mut Permits) -> Vec<Result<Ack>> {
        let mut answers: Vec<Option<Result<Ack>>> = events.iter().map(|_| None).collect();
        let mut shaped = Vec::with_capacity(events.len());
        for (at, event) in events.iter().enumerate() {
            match self.shaped(event) {
                Ok(other) => shaped.push((at, other.unwrap_or_else(|| event.clone()))),
                Err(failure) => answers[at] = Some(self.give_up(event, failure, permits).await),
            }
        }
        let until = Instant::now() + self.config.retry.deadline.unwrap_or(NEVER);
        let mut span = if shaped.is_empty() { None } else { self.span(events) };
        let mut given_up = None;
        let mut retry = 0;
        while !shaped.is_empty() {
            let attempt = match self.still_acts() {
                Err(left) if retry > 0 => Err(left),
                _ => self.attempt_batch(&mut shaped, &mut answers, until, permits, &mut span).await,
            };
            if let Some(span) = &mut span {
                span.ended(match &attempt {
                    Ok(None) | Err(Failed::Left(_)) => None,
                    Ok(Some((failure, _))) | Err(Failed::For(failure)) => Some(failure),
                });
            }
            let failed = match attempt {
                Ok(None) => break,
                Ok(Some((failure, asked))) if retry < self.config.retry.retries => {
                    self.metrics.retries.increment(1);
                    let wait = self.config.retry.jittered(retry, shaped.len() as u64);
                    let wait = wait.max(asked.unwrap_or_default());
                    retry += 1;
                    if Instant::now() + wait <= until {
                        permits.release();
                        sleep(wait).await;
                        continue;
                    }
                    Failed::For(failure)
                }
                Ok(Some((failure, _))) => Failed::For(failure),
                Err(failed) => failed,
            };
            let failure = match (failed, self.still_acts()) {
                (Failed::Left(error), _) | (_, Err(Failed::Left(error))) => {
                    for (at, _) in shaped.drain(..) {
                        answers[at] = Some(Err(Error::new(error.kind, "deliver", error.message.clone())));
                    }
                    break;
                }
                (Failed::For(failure), _) => failure,
            };
            let failure = Failure { attempts: retry + 1, ..failure };
            for (at, _) in shaped.drain(..) {
                answers[at] = Some(self.give_up(&events[at], failure.clone(), permits).await);
            }
            given_up = Some(failure);
        }
        self.tell(span, events, given_up.as_ref());
        answers.into_iter().map(|answer| answer.unwrap_or(Ok(Ack::Completed))).collect()
    }

    /// One call for what is left; what was taken goes from `left` to `answers`. `None`: all was.
    async fn attempt_batch(
        &self,
        left: &mut Vec<(usize, Event)>,
        answers: &mut [Option<Result<Ack>>],
        until: Instant,
        permits: &mut Permits,
        span: &mut Option<SpanDraft>,
    ) -> std::result::Result<Option<(Failure, Option<Duration>)>, Failed> {
        self.room(until, permits, 0).await?;
        let Ok(pass) = timeout_at(until, self.circuit.admit()).await else { return Err(self.too_late(0)) };
        permits.renew(&self.slots).await?;
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.metrics.attempts.increment(1);
        let events: Vec<Event> = left.iter().map(|(_, event)| event.clone()).collect();
        let message = cloudevents::batched(&events);
        let mut request = cloudevents::message_request(message, &self.config.path)
            .map_err(|error| Failed::For(Failure::new("refused", error.message)))?;
        if let Some(span) = span {
            span.attempts().put(request.headers_mut());
        }
        let ids: Vec<&str> = events.iter().flat_map(|event| [event.source(), event.id()]).collect();
        let key = IdempotencyKey::of(&ids);
        let (response, deadline) = match self.answer(&self.config.target, request, key, until, span).await {
            Ok(answer) => answer,
            Err(Attempt::Again(failure, asked)) => {
                pass.failed(asked);
                return Ok(Some((failure, asked)));
            }
            Err(Attempt::Refused(failure)) => {
                pass.succeeded();
                return Err(Failed::For(failure));
            }
            Err(Attempt::Done(_)) => return Ok(None),
        };
        let status = response.status();
        if !status.is_success() {
            return match self.judged(status, response.headers()) {
                Attempt::Again(failure, asked) if status.is_server_error() => {
                    pass.failed(asked);
                    Ok(Some((failure, asked)))
                }
                Attempt::Again(failure, asked) => {
                    pass.succeeded();
                    Ok(Some((failure, asked)))
                }
                Attempt::Refused(failure) => {
                    pass.succeeded();
                    Err(Failed::For(failure))
                }
                Attempt::Done(_) => Ok(None),
            };
        }
        let body = match timeout_at(deadline, response.into_body().collect(ANSWER_LIMIT)).await {
            Err(_) => {
                pass.failed(None);
                return Ok(Some((self.no_answer(), None)));
            }
            Ok(Err(error)) => {
                pass.failed(None);
                return Ok(Some((
                    Failure::new("broken-off", format!("the answer broke off: {error}")),
                    None,
                )));
            }
            Ok(Ok(body)) => body,
        };
        pass.succeeded();
        let failed = partly_failed(&body, &events);
        let mut kept = Vec::new();
        for (at, event) in left.drain(..) {
            if failed.iter().any(|id| id == event.id()) {
                kept.push((at, event));
            } else {
                self.metrics.completed.increment(1);
                answers[at] = Some(Ok(Ack::Completed));
            }
        }
        *left = kept;
        if left.is_empty() {
            return Ok(None);
        }
        let reason = format!("the service named {} of {} events as failed", left.len(), events.len());
        Ok(Some((Failure { status: Some(status.as_u16()), ..Failure::new("item", reason) }, None)))
    }
}

/// The ids of events that the answer to a batch names as failed: `{"batchItemFailures": [{"itemIdentifier": "id"}]}`. All,
/// when it names one that was not in the batch: then nobody knows which failed.
fn partly_failed(body: &[u8], events: &[Event]) -> Vec<String> {
    #[derive(serde::Deserialize)]
    struct Answer {
        #[serde(rename = "batchItemFailures", default)]
        failures: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        #[serde(rename = "itemIdentifier")]
        id: String,
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(body) else { return Vec::new() };
    let named: Vec<String> = answer.failures.into_iter().map(|item| item.id).collect();
    if named.iter().all(|id| events.iter().any(|event| event.id() == id)) {
        return named;
    }
    events.iter().map(|event| event.id().to_owned()).collect()
}

fn carries_event(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    headers.contains_key("ce-specversion") || kind.to_ascii_lowercase().starts_with("application/cloudevents")
}

fn failed(error: &Error) -> Attempt {
    match error.kind {
        ErrorKind::InvalidSpec | ErrorKind::Unsupported => {
            Attempt::Refused(Failure::new("refused", error.chain()))
        }
        kind => {
            let asked = match error.retry {
                Retry::After(asked) => Some(asked),
                _ => None,
            };
            Attempt::Again(Failure::new(kind.as_str(), error.chain()), asked)
        }
    }
}

fn elsewhere(namespace: &str) -> Error {
    let message =
        format!("this host does not act for {namespace} now: the event comes again where a host does");
    Error::new(ErrorKind::Unavailable, "deliver", message)
}

fn shutting_down(operation: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, operation, "the platform is shutting down")
}

#[async_trait]
impl EventSink for Delivery {
    async fn ready(&self) -> Result<Slot> {
        let own = Arc::clone(&self.own).acquire_owned().await.map_err(|_| shutting_down("ready"))?;
        self.circuit.passable().await;
        // Before the shared slot: a tenant that waits for its own quota keeps no other from delivering.
        if let Some((tenant, quotas)) = &self.quotas {
            quotas.room(*tenant).await;
        }
        let shared = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| shutting_down("ready"))?;
        Ok(Slot(Box::new(Permits { shared: Some(shared), _own: Some(Box::new(own)) })))
    }

    async fn deliver(&self, slot: Slot, event: Event) -> Result<Ack> {
        let mut permits = Permits::of(slot);
        let identity = (event.source().to_owned(), event.id().to_owned());
        let key = self.config.order_by.as_deref().and_then(|name| crate::filter::attribute(&event, name));
        let _turn = match key {
            Some(key) => {
                permits.release();
                Some(self.turns.take(key).await)
            }
            None => None,
        };
        if let Some(ack) = self.left_out(&event, &identity) {
            return Ok(ack);
        }
        self.counts(1);
        let ack = self.send(&event, &mut permits).await?;
        self.remembered.lock().remember(identity, &self.config.dedup);
        Ok(ack)
    }

    fn batch_limit(&self) -> usize {
        // Order by key holds back single events, which a batch can't.
        if self.target.is_some() || self.reply.is_some() || self.config.order_by.is_some() {
            return 1;
        }
        self.config.batch.max(1)
    }

    async fn deliver_batch(&self, slot: Slot, events: Vec<Event>) -> Vec<Result<Ack>> {
        let most = self.batch_limit();
        let mut answers = Vec::with_capacity(events.len());
        let mut slot = Some(slot);
        for chunk in events.chunks(most) {
            let room = match slot.take() {
                Some(slot) => Ok(slot),
                None => self.ready().await,
            };
            let room = match room {
                Ok(room) => room,
                Err(error) => {
                    let again = |_| Err(Error::new(error.kind, "ready", error.message.clone()));
                    answers.extend(chunk.iter().map(again));
                    continue;
                }
            };
            if let [event] = chunk {
                answers.push(self.deliver(room, event.clone()).await);
                continue;
            }
            let mut permits = Permits::of(room);
            let mut wanted = Vec::new();
            let mut ends: Vec<Option<Result<Ack>>> = Vec::with_capacity(chunk.len());
            for event in chunk {
                let identity = (event.source().to_owned(), event.id().to_owned());
                let left_out = self.left_out(event, &identity);
                if left_out.is_none() {
                    wanted.push(event.clone());
                }
                ends.push(left_out.map(Ok));
            }
            self.counts(wanted.len());
            let mut sent = self.send_batch(&wanted, &mut permits).await.into_iter();
            for (event, end) in chunk.iter().zip(ends) {
                let end = end.or_else(|| sent.next()).unwrap_or_else(|| Err(shutting_down("deliver")));
                if end.is_ok() {
                    let identity = (event.source().to_owned(), event.id().to_owned());
                    self.remembered.lock().remember(identity, &self.config.dedup);
                }
                answers.push(end);
            }
        }
        answers
    }
}

#[async_trait]
impl EventPublisher for Delivery {
    async fn publish(&self, event: Event) -> Result<()> {
        let slot = self.ready().await?;
        self.deliver(slot, event).await.map(|_| ())
    }
}
