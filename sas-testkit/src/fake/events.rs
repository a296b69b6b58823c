//! Where events and invocations end up in tests.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{
    Ack, Body, CallError, Cx, Error, ErrorKind, Event, EventSink, Invoker, Purpose, Request, Response,
    Result, SecretSource, Slot, Target, TenantKey,
};
use tokio::sync::Semaphore;

/// An event sink with a given number of slots that keeps what was delivered and can be made to fail.
#[derive(Debug)]
pub struct FakeEventSink {
    slots: Arc<Semaphore>,
    delivered: Mutex<Vec<Event>>,
    offered: Mutex<u64>,
    refused: Mutex<Vec<Event>>,
    failures: Mutex<VecDeque<ErrorKind>>,
    takes: Mutex<Duration>,
}

impl FakeEventSink {
    /// A sink that takes `slots` events at once.
    pub fn new(slots: usize) -> Arc<Self> {
        Arc::new(Self {
            slots: Arc::new(Semaphore::new(slots)),
            delivered: Mutex::default(),
            offered: Mutex::default(),
            refused: Mutex::default(),
            failures: Mutex::default(),
            takes: Mutex::default(),
        })
    }

    /// From now on a delivery takes this long.
    pub fn set_delivery_time(&self, time: Duration) {
        *self.takes.lock() = time;
    }

    /// The next delivery fails with this kind.
    pub fn fail_next(&self, kind: ErrorKind) {
        self.failures.lock().push_back(kind);
    }

    /// From now on [`EventSink::ready`] fails: the platform shuts down.
    pub fn close(&self) {
        self.slots.close();
    }

    /// What was delivered, in order.
    pub fn delivered(&self) -> Vec<Event> {
        self.delivered.lock().clone()
    }

    /// Deliveries that were begun, failed ones included.
    pub fn offered(&self) -> u64 {
        *self.offered.lock()
    }

    /// What was refused, in order.
    pub fn refused(&self) -> Vec<Event> {
        self.refused.lock().clone()
    }

    /// Slots that nobody holds.
    pub fn free_slots(&self) -> usize {
        self.slots.available_permits()
    }
}

#[async_trait]
impl EventSink for FakeEventSink {
    async fn ready(&self) -> Result<Slot> {
        match Arc::clone(&self.slots).acquire_owned().await {
            Ok(permit) => Ok(Slot(Box::new(permit))),
            Err(_) => Err(Error::new(ErrorKind::Unavailable, "ready", "shutting down")),
        }
    }

    async fn deliver(&self, slot: Slot, event: Event) -> Result<Ack> {
        *self.offered.lock() += 1;
        let takes = *self.takes.lock();
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        drop(slot);
        if let Some(kind) = self.failures.lock().pop_front() {
            self.refused.lock().push(event);
            return Err(Error::new(kind, "deliver", "made to fail"));
        }
        self.delivered.lock().push(event);
        Ok(Ack::Completed)
    }
}

/// An event sink that notes in which order events are offered, and takes some milliseconds for each, so that they would
/// end in another one. It has room for any number.
#[derive(Debug)]
pub struct OrderedEventSink {
    number: fn(&Event) -> usize,
    offered: Mutex<Vec<usize>>,
    done: Mutex<usize>,
}

impl OrderedEventSink {
    /// A sink that tells events apart by a number of theirs.
    pub fn new(number: fn(&Event) -> usize) -> Arc<Self> {
        Arc::new(Self { number, offered: Mutex::default(), done: Mutex::default() })
    }

    /// The numbers of the events, in the order in which they were offered.
    pub fn offered(&self) -> Vec<usize> {
        self.offered.lock().clone()
    }

    /// How many were delivered.
    pub fn done(&self) -> usize {
        *self.done.lock()
    }
}

#[async_trait]
impl EventSink for OrderedEventSink {
    async fn ready(&self) -> Result<Slot> {
        Ok(Slot(Box::new(())))
    }

    async fn deliver(&self, _slot: Slot, event: Event) -> Result<Ack> {
        let number = (self.number)(&event);
        self.offered.lock().push(number);
        tokio::time::sleep(Duration::from_millis((number as u64 * 7) % 11)).await;
        *self.done.lock() += 1;
        Ok(Ack::Completed)
    }
}

/// An event sink that takes several events in one call, and refuses one of them once.
#[derive(Debug)]
pub struct BatchEventSink {
    number: fn(&Event) -> usize,
    limit: usize,
    refuses: usize,
    calls: Mutex<Batches>,
}

#[derive(Debug, Default)]
struct Batches {
    sizes: Vec<usize>,
    taken: Vec<usize>,
    refused: Option<usize>,
}

impl BatchEventSink {
    /// A sink that takes `limit` events in a call, tells them apart by a number of theirs, and refuses the one at the place
    /// `refuses` (from 0) of the first call that has one there.
    pub fn new(limit: usize, refuses: usize, number: fn(&Event) -> usize) -> Arc<Self> {
        Arc::new(Self { number, limit, refuses, calls: Mutex::default() })
    }

    /// How many events each call had.
    pub fn sizes(&self) -> Vec<usize> {
        self.calls.lock().sizes.clone()
    }

    /// The numbers of the events that it took, in order.
    pub fn taken(&self) -> Vec<usize> {
        self.calls.lock().taken.clone()
    }

    /// The number of the event that it refused.
    pub fn refused(&self) -> Option<usize> {
        self.calls.lock().refused
    }
}

#[async_trait]
impl EventSink for BatchEventSink {
    async fn ready(&self) -> Result<Slot> {
        Ok(Slot(Box::new(())))
    }

    async fn deliver(&self, slot: Slot, event: Event) -> Result<Ack> {
        self.deliver_batch(slot, vec![event]).await.remove(0)
    }

    fn batch_limit(&self) -> usize {
        self.limit
    }

    async fn deliver_batch(&self, _slot: Slot, events: Vec<Event>) -> Vec<Result<Ack>> {
        let mut calls = self.calls.lock();
        calls.sizes.push(events.len());
        let mut answers = Vec::with_capacity(events.len());
        for (at, event) in events.iter().enumerate() {
            let number = (self.number)(event);
            if at == self.refuses && calls.refused.is_none() {
                calls.refused = Some(number);
                answers.push(Err(Error::new(ErrorKind::Unavailable, "deliver", "refused")));
            } else {
                calls.taken.push(number);
                answers.push(Ok(Ack::Completed));
            }
        }
        answers
    }
}

/// Secrets that a test changes while a platform or a source uses them.
#[derive(Default)]
pub struct FakeSecrets(Mutex<HashMap<String, Bytes>>);

impl fmt::Debug for FakeSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeSecrets").finish_non_exhaustive()
    }
}

impl FakeSecrets {
    /// With these references and values.
    pub fn of(secrets: &[(&str, &str)]) -> Arc<Self> {
        let known = Self::default();
        for (reference, value) in secrets {
            known.set(reference, value);
        }
        Arc::new(known)
    }

    /// From now on `reference` has this value.
    pub fn set(&self, reference: &str, value: &str) {
        self.0.lock().insert(reference.to_owned(), Bytes::from(value.to_owned()));
    }
}

#[async_trait]
impl SecretSource for FakeSecrets {
    async fn resolve(&self, reference: &str, _tenant: TenantKey) -> Result<Bytes> {
        let found = self.0.lock().get(reference).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "secret", reference))
    }
}

/// One invocation as it came.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// The target that was called.
    pub target: Target,
    /// The purpose that the call was made for.
    pub purpose: Purpose,
    /// The context that came with the call.
    pub cx: Cx,
    /// With which method, path and headers.
    pub head: http::Request<()>,
    /// The whole body of the request.
    pub body: Bytes,
}

type Respond = dyn Fn(&Invocation) -> Result<Response, Error> + Send + Sync;

/// An invoker that keeps what it was asked and answers as a closure says.
pub struct FakeInvoker {
    seen: Mutex<Vec<Invocation>>,
    respond: Box<Respond>,
    takes: Mutex<Duration>,
}

impl fmt::Debug for FakeInvoker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeInvoker").field("seen", &self.seen.lock().len()).finish_non_exhaustive()
    }
}

impl FakeInvoker {
    /// An invoker that answers by `respond`.
    pub fn new(
        respond: impl Fn(&Invocation) -> Result<Response, Error> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), respond: Box::new(respond), takes: Mutex::default() })
    }

    /// An invoker that answers everything with 200.
    pub fn ok() -> Arc<Self> {
        Self::new(|_| Ok(Response::new(Body::empty())))
    }

    /// From now on an invocation takes this long.
    pub fn set_time(&self, time: Duration) {
        *self.takes.lock() = time;
    }

    /// What it was asked, in order.
    pub fn seen(&self) -> Vec<Invocation> {
        self.seen.lock().clone()
    }
}

#[async_trait]
impl Invoker for FakeInvoker {
    async fn invoke(&self, target: Target, request: Request, cx: &Cx) -> Result<Response, CallError> {
        let takes = *self.takes.lock();
        if !takes.is_zero() && tokio::time::timeout_at(cx.deadline, tokio::time::sleep(takes)).await.is_err()
        {
            return Err(CallError::sent(Error::new(ErrorKind::Timeout, "invoke", "the deadline passed")));
        }
        let (head, body) = request.into_parts();
        let body = body.collect(64 << 20).await.map_err(|error| {
            CallError::sent(
                Error::new(ErrorKind::Crashed, "invoke", "the request broke off").with_source(error),
            )
        })?;
        let invocation = Invocation {
            target,
            purpose: cx.purpose,
            cx: *cx,
            head: http::Request::from_parts(head, ()),
            body,
        };
        let answer = (self.respond)(&invocation);
        self.seen.lock().push(invocation);
        answer.map_err(CallError::sent)
    }
}
