//! The client to instances: their connections, kept alive per instance.

mod http1;
mod io;

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use sas_core::{CallError, Endpoint, Error, ErrorKind, InstanceId, Protocol, Request, Retry};
use tokio::{
    sync::OnceCell,
    time::{Instant, timeout},
};

use self::http1::Http1;
pub(crate) use self::http1::{InstanceBody, Outgoing, Progress};
use crate::stall::{Handover, Limit};

/// How connections to instances are made and kept.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct UpstreamConfig {
    /// How long a connection may take to be made. 5 s.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept. 30 s.
    pub idle_timeout: Duration,
    /// Unused HTTP/1.1 connections kept per instance. 256.
    pub max_idle_per_instance: usize,
    /// Longest head of an instance's answer, in bytes; beyond it the client gets 502. 256 KiB.
    pub max_header_bytes: usize,
    /// Most header lines of an instance's answer over HTTP/1.1; beyond it the client gets 502. 1,000.
    pub max_headers: usize,
    /// HTTP/2: how long an instance may leave a ping unanswered before its connection counts as lost. 20 s.
    pub ping_timeout: Duration,
}

impl Default for UpstreamConfig {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(30),
            max_idle_per_instance: 256,
            max_header_bytes: 256 * 1024,
            max_headers: 1_000,
            ping_timeout: Duration::from_secs(20),
        }
    }
}

/// The operation of errors that are the client's: its body came too slowly, or not to its end.
pub(crate) const UPLOAD_LATE: &str = "upload_late";
/// See [`UPLOAD_LATE`].
pub(crate) const UPLOAD_BROKEN: &str = "upload_broken";

const SHARDS: usize = 16;

/// An HTTP/2 connection's sender, and what its executor is told of the bodies that it sends.
#[derive(Clone, Debug)]
struct H2Sender {
    sender: http2::SendRequest<Outgoing>,
    handover: Arc<Handover>,
}

impl H2Sender {
    fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Runs the tasks of an HTTP/2 connection. One that writes a body which the instance does not take ends at the
/// deadline of its request.
#[derive(Clone, Debug)]
struct H2Tasks(Arc<Handover>);

impl<F> hyper::rt::Executor<F> for H2Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, task: F) {
        let Some(writing) = self.0.take() else {
            tokio::spawn(task);
            return;
        };
        let mut limit = Limit::new(writing, None);
        tokio::spawn(async move {
            let mut task = pin!(task);
            poll_fn(|cx| match task.as_mut().poll(cx) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => limit.poll(cx),
            })
            .await;
        });
    }
}

/// The connections of one instance.
#[derive(Debug, Default)]
struct Peer {
    #[allow(clippy::vec_box, reason = "a connection of half a kilobyte moves in and out with every request")]
    idle: Vec<Box<Http1>>,
    http2: Option<Arc<OnceCell<H2Sender>>>,
    http2_used: Option<Instant>,
}

/// Connections to instances, by instance. Dropping it closes what is unused.
#[derive(Debug)]
pub(crate) struct Upstream {
    config: UpstreamConfig,
    shards: [Mutex<HashMap<InstanceId, Peer>>; SHARDS],
    /// Unused HTTP/1.1 connections and open HTTP/2 ones.
    kept: AtomicUsize,
    sweeping: AtomicBool,
}

/// Where a connection goes back to.
#[derive(Clone, Debug)]
struct Home {
    upstream: Arc<Upstream>,
    instance: InstanceId,
}

impl Home {
    fn check_in(&self, mut connection: Box<Http1>) {
        connection.idle_since = Instant::now();
        if connection.keep_for == Some(Duration::ZERO) {
            return;
        }
        let refused = {
            let mut shard = self.upstream.shard(self.instance).lock();
            let idle = &mut shard.entry(self.instance).or_default().idle;
            if idle.len() < self.upstream.config.max_idle_per_instance {
                idle.push(connection);
                None
            } else {
                Some(connection)
            }
        };
        if refused.is_none() {
            self.upstream.kept.fetch_add(1, Ordering::Relaxed);
            self.upstream.sweep_when_due();
        }
    }
}

fn lost(
    error: impl std::error::Error + Send + Sync + 'static,
    operation: &'static str,
    what: String,
) -> Error {
    Error::new(ErrorKind::Crashed, operation, what).with_source(error)
}

impl Upstream {
    pub(crate) fn new(config: UpstreamConfig) -> Arc<Self> {
        Arc::new(Self {
            config,
            shards: std::array::from_fn(|_| Mutex::default()),
            kept: AtomicUsize::new(0),
            sweeping: AtomicBool::new(false),
        })
    }

    fn shard(&self, instance: InstanceId) -> &Mutex<HashMap<InstanceId, Peer>> {
        &self.shards[instance.0 as usize % SHARDS]
    }

    /// Connections that are kept for use.
    pub(crate) fn kept(&self) -> usize {
        self.kept.load(Ordering::Relaxed)
    }

    /// Sends `request` to the instance and waits for the head of the answer. The caller bounds the time.
    ///
    /// `careful` is for requests that may not be sent twice: a kept connection is looked at once more.
    ///
    /// **Cancel safety:** dropping the future closes the connection it used.
    pub(crate) async fn send(
        self: &Arc<Self>,
        instance: InstanceId,
        endpoint: &Endpoint,
        protocol: Protocol,
        request: Request,
        progress: Option<Arc<Progress>>,
        careful: bool,
    ) -> Result<http::Response<InstanceBody>, CallError> {
        let request = request.map(|body| Outgoing::new(body, progress));
        match protocol {
            Protocol::H2c => self.send_http2(instance, endpoint, request).await,
            _ => self.send_http1(instance, endpoint, request, careful).await,
        }
    }

    async fn send_http1(
        self: &Arc<Self>,
        instance: InstanceId,
        endpoint: &Endpoint,
        mut request: http::Request<Outgoing>,
        careful: bool,
    ) -> Result<http::Response<InstanceBody>, CallError> {
        let home = Home { upstream: Arc::clone(self), instance };
        loop {
            let kept = poll_fn(|cx| Poll::Ready(self.check_out(instance, cx, careful))).await;
            let reused = kept.is_some();
            let connection = match kept {
                Some(connection) => connection,
                None => match self.connect_http1(endpoint).await {
                    Ok(connection) => connection,
                    Err(error) => return Err(CallError::unsent(error, request.map(Outgoing::into_body))),
                },
            };
            match connection.send(request, home.clone()).await {
                Ok(response) => return Ok(response),
                // A kept connection that ended before it took the request says nothing about the instance.
                Err(http1::Failed { unsent: Some(unsent), .. }) if reused => request = *unsent,
                Err(http1::Failed { unsent: Some(unsent), error }) => {
                    let what = format!("{endpoint} ended the connection before it took a request");
                    let unsent = unsent.map(Outgoing::into_body);
                    return Err(CallError::unsent(lost(error, "send", what), unsent));
                }
                Err(http1::Failed { unsent: None, error }) => {
                    return Err(CallError::sent(self.sent(error, endpoint)));
                }
            }
        }
    }

    async fn connect_http1(&self, endpoint: &Endpoint) -> Result<Box<Http1>, Error> {
        let mut connection = self.within(endpoint, Http1::connect(endpoint, &self.config)).await?;
        if poll_fn(|cx| Poll::Ready(connection.poll_usable(cx, false))).await {
            return Ok(connection);
        }
        let what = format!("{endpoint} took a connection and ended it at once");
        Err(Error::new(ErrorKind::Crashed, "connect", what))
    }

    async fn within<T>(
        &self,
        endpoint: &Endpoint,
        connecting: impl Future<Output = std::io::Result<T>>,
    ) -> Result<T, Error> {
        match timeout(self.config.connect_timeout, connecting).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(lost(error, "connect", format!("can't connect to {endpoint}"))),
            Err(_) => {
                let what = format!("{endpoint} took no connection within {:?}", self.config.connect_timeout);
                Err(Error::new(ErrorKind::Timeout, "connect", what).with_retry(Retry::AnotherInstance))
            }
        }
    }

    /// The connection that was used last and can take a request.
    fn check_out(&self, instance: InstanceId, cx: &mut Context<'_>, careful: bool) -> Option<Box<Http1>> {
        loop {
            let mut connection = self.shard(instance).lock().get_mut(&instance)?.idle.pop()?;
            self.kept.fetch_sub(1, Ordering::Relaxed);
            if connection.is_fresh() && connection.poll_usable(cx, careful) {
                return Some(connection);
            }
        }
    }

    /// Sends a request that asks for another protocol. An answer of 101 carries [`hyper::upgrade::OnUpgrade`].
    pub(crate) async fn send_upgrade(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        request: Request,
    ) -> Result<http::Response<InstanceBody>, CallError> {
        // A fresh connection: it is given away, and must not be one that just ends.
        let connection = match self.connect_http1(endpoint).await {
            Ok(connection) => connection,
            Err(error) => return Err(CallError::unsent(error, request)),
        };
        let mut sender = connection.upgradable();
        match sender.try_send_request(request.map(|body| Outgoing::new(body, None))).await {
            Ok(response) => Ok(response.map(InstanceBody::driven)),
            Err(mut error) => {
                let unsent = error.take_message();
                let error = self.sent(error.into_error(), endpoint);
                Err(match unsent {
                    Some(unsent) => CallError::unsent(error, unsent.map(Outgoing::into_body)),
                    None => CallError::sent(error),
                })
            }
        }
    }

    async fn send_http2(
        self: &Arc<Self>,
        instance: InstanceId,
        endpoint: &Endpoint,
        mut request: http::Request<Outgoing>,
    ) -> Result<http::Response<InstanceBody>, CallError> {
        // One connection per instance, made by whoever comes first; a second try when a kept one has ended.
        for attempt in 0..2 {
            let cell = self.http2_cell(instance);
            let made = cell.get_or_try_init(|| self.connect_http2(endpoint)).await;
            let mut sender = match made {
                Ok(sender) => sender.clone(),
                Err(error) => return Err(CallError::unsent(error, request.map(Outgoing::into_body))),
            };
            let handover = &sender.handover;
            let given = request.map(|body| body.handed_over(Arc::clone(handover)));
            match sender.sender.try_send_request(given).await {
                Ok(response) => return Ok(response.map(InstanceBody::driven)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if attempt == 0 => {
                        self.forget_http2(instance, &cell);
                        request = unsent;
                    }
                    unsent => {
                        let error = self.sent(error.into_error(), endpoint);
                        return Err(match unsent {
                            Some(unsent) => CallError::unsent(error, unsent.map(Outgoing::into_body)),
                            None => CallError::sent(error),
                        });
                    }
                },
            }
        }
        unreachable!("the second attempt returns")
    }

    fn http2_cell(self: &Arc<Self>, instance: InstanceId) -> Arc<OnceCell<H2Sender>> {
        let mut shard = self.shard(instance).lock();
        let peer = shard.entry(instance).or_default();
        peer.http2_used = Some(Instant::now());
        let ended = peer.http2.as_ref().is_some_and(|cell| cell.get().is_some_and(H2Sender::is_closed));
        if ended {
            peer.http2 = None;
            self.kept.fetch_sub(1, Ordering::Relaxed);
        }
        if let Some(cell) = &peer.http2 {
            return Arc::clone(cell);
        }
        let cell = Arc::new(OnceCell::new());
        peer.http2 = Some(Arc::clone(&cell));
        drop(shard);
        self.kept.fetch_add(1, Ordering::Relaxed);
        self.sweep_when_due();
        cell
    }

    fn forget_http2(&self, instance: InstanceId, cell: &Arc<OnceCell<H2Sender>>) {
        let mut shard = self.shard(instance).lock();
        if let Some(peer) = shard.get_mut(&instance)
            && peer.http2.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, cell))
        {
            peer.http2 = None;
            self.kept.fetch_sub(1, Ordering::Relaxed);
        }
    }

    async fn connect_http2(&self, endpoint: &Endpoint) -> Result<H2Sender, Error> {
        let handover = Arc::<Handover>::default();
        let connecting = async {
            let io = io::InstanceIo::connect(endpoint).await?;
            let mut builder = http2::Builder::new(H2Tasks(Arc::clone(&handover)));
            builder
                .timer(TokioTimer::new())
                .adaptive_window(true)
                .max_header_list_size(u32::try_from(self.config.max_header_bytes).unwrap_or(u32::MAX))
                .keep_alive_interval(self.config.ping_timeout)
                .keep_alive_timeout(self.config.ping_timeout);
            builder.handshake(TokioIo::new(io)).await.map_err(std::io::Error::other)
        };
        let (sender, connection) = self.within(endpoint, connecting).await?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an HTTP/2 connection to an instance ended");
            }
        });
        Ok(H2Sender { sender, handover })
    }

    fn sent(&self, error: hyper::Error, endpoint: &Endpoint) -> Error {
        sent(error, endpoint, &self.config)
    }

    /// Starts the sweeper unless it runs: there is one only while there are connections.
    fn sweep_when_due(self: &Arc<Self>) {
        if !self.sweeping.load(Ordering::Relaxed) && !self.sweeping.swap(true, Ordering::SeqCst) {
            tokio::spawn(sweep(Arc::downgrade(self), self.config.idle_timeout));
        }
    }

    /// Closes what has ended, or was not used for too long. True when nothing is left.
    fn sweep(&self) -> bool {
        let now = Instant::now();
        let timeout = self.config.idle_timeout;
        for shard in &self.shards {
            let instances: Vec<InstanceId> = shard.lock().keys().copied().collect();
            for instance in instances {
                let (idle, http2) = {
                    let mut shard = shard.lock();
                    let Some(peer) = shard.get_mut(&instance) else { continue };
                    let stale = peer.http2_used.is_some_and(|used| now.duration_since(used) >= timeout);
                    let http2 = match &peer.http2 {
                        // Streams that still run hold the connection; only new ones make another.
                        Some(cell) if stale || cell.get().is_some_and(H2Sender::is_closed) => {
                            peer.http2.take()
                        }
                        _ => None,
                    };
                    (std::mem::take(&mut peer.idle), http2)
                };
                let before = idle.len() + usize::from(http2.is_some());
                drop(http2);
                let cx = &mut Context::from_waker(Waker::noop());
                let mut usable: Vec<_> = idle
                    .into_iter()
                    .filter_map(|mut connection| {
                        let fresh =
                            now.duration_since(connection.idle_since) < timeout && connection.is_fresh();
                        (fresh && connection.poll_usable(cx, false)).then_some(connection)
                    })
                    .collect();
                self.kept.fetch_sub(before - usable.len(), Ordering::Relaxed);
                let mut shard = shard.lock();
                let peer = shard.entry(instance).or_default();
                // Those that came back meanwhile were used last and stay on top.
                usable.append(&mut peer.idle);
                peer.idle = usable;
                if peer.idle.is_empty() && peer.http2.is_none() {
                    shard.remove(&instance);
                }
            }
        }
        self.kept() == 0
    }
}

async fn sweep(upstream: Weak<Upstream>, idle_timeout: Duration) {
    let period = (idle_timeout / 4).clamp(Duration::from_millis(100), Duration::from_secs(5));
    loop {
        tokio::time::sleep(period).await;
        let Some(upstream) = upstream.upgrade() else { return };
        if !upstream.sweep() {
            continue;
        }
        // A connection may have come in between the count and this store; whoever sees it takes the sweeping on.
        upstream.sweeping.store(false, Ordering::SeqCst);
        if upstream.kept() == 0 || upstream.sweeping.swap(true, Ordering::SeqCst) {
            return;
        }
    }
}

fn sent(error: hyper::Error, endpoint: &Endpoint, config: &UpstreamConfig) -> Error {
    if error.is_parse_too_large() {
        let what = format!(
            "the head of the answer of {endpoint} has more than {} bytes or {} lines; UpstreamConfig's \
             max_header_bytes and max_headers set the limits",
            config.max_header_bytes, config.max_headers,
        );
        return Error::new(ErrorKind::InvalidSpec, "receive", what).with_source(error);
    }
    if error.is_parse() {
        let what = format!("{endpoint} answered something that is not HTTP");
        return Error::new(ErrorKind::InvalidSpec, "receive", what).with_source(error);
    }
    if error.is_user() || error.is_body_write_aborted() {
        // The client's own body failed: the instance is not to blame.
        let mut cause = std::error::Error::source(&error);
        let mut late = false;
        while let Some(inner) = cause {
            late |= inner.downcast_ref::<Error>().is_some_and(|error| error.kind == ErrorKind::Timeout);
            cause = inner.source();
        }
        let (operation, what) = match late {
            true => (UPLOAD_LATE, "the request's body came too slowly"),
            false => (UPLOAD_BROKEN, "the request's body ended before it was complete"),
        };
        return Error::new(ErrorKind::Unavailable, operation, what).with_source(error);
    }
    let what = format!("{endpoint} ended the connection before it had answered");
    lost(error, "receive", what)
}
