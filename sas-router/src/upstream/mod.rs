//! The client to instances: their connections, kept alive per instance.

mod http1;
mod io;
mod keep_alive;
mod plain;

use std::{
    collections::HashMap,
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use sas_core::{CallError, Endpoint, Error, ErrorKind, InstanceId, Request, Retry};
use tokio::{
    runtime::{Handle, Id},
    sync::OnceCell,
    time::{Instant, timeout},
};

pub(crate) use self::http1::{InstanceBody, Outgoing, Progress};
use self::{
    http1::Http1,
    io::{Answering, InstanceIo},
    plain::{Exchanged, Plain},
};
use crate::{
    framing,
    interim::Interim,
    retry::again,
    stall::{Handover, Limit},
};

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
    /// Whether HTTP/1.1 requests in memory take the short way past hyper (docs/adr/0186). `false` costs some microseconds
    /// of CPU per request, and nothing else differs. `true`.
    pub plain_http1: bool,
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
            plain_http1: true,
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

/// A connection that can take a request. It begins as a plain one, and becomes hyper's with the first exchange that
/// is not plain.
#[derive(Debug)]
enum Connection {
    Plain(Plain),
    Hyper(Box<Http1>),
}

impl Connection {
    /// Whether a request can be sent now. `doubt` looks at the socket itself, at the price of a system call.
    fn poll_usable(&mut self, cx: &mut Context<'_>, doubt: bool) -> bool {
        match self {
            Self::Plain(plain) => plain.poll_usable(cx, doubt),
            Self::Hyper(hyper) => hyper.poll_usable(cx, doubt),
        }
    }
}

/// A connection for hyper.
enum Given {
    Hyper(Box<Http1>),
    /// Nobody speaks on it.
    Unused(InstanceIo),
    /// The request was sent (with `true`: not all of it) and the answer has begun.
    Begun(InstanceIo, bool),
}

/// A connection that lies unused.
#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
    /// How long the instance keeps it, as it said; `None`: it said nothing.
    keep_for: Option<Duration>,
    /// The runtime that waits for its readiness.
    at: Id,
}

impl Idle {
    /// Whether the instance still keeps it, by its own word.
    fn is_fresh(&self) -> bool {
        self.keep_for.is_none_or(|time| self.since.elapsed() < time)
    }
}

/// The connections of one instance.
#[derive(Debug, Default)]
struct Peer {
    idle: Vec<Idle>,
    http2: Option<Arc<OnceCell<H2Sender>>>,
    http2_used: Option<Instant>,
}

/// Connections to instances, by instance. Dropping it closes what is unused.
#[derive(Debug)]
pub(crate) struct Upstream {
    config: UpstreamConfig,
    shards: [Mutex<HashMap<InstanceId, Peer>>; SHARDS],
    sweeping: AtomicBool,
}

/// Where a connection goes back to.
#[derive(Clone, Debug)]
struct Home {
    upstream: Arc<Upstream>,
    instance: InstanceId,
    at: Id,
}

impl Home {
    fn check_in(&self, connection: Connection, keep_for: Option<Duration>) {
        if keep_for == Some(Duration::ZERO) {
            return;
        }
        let idle = Idle { connection, since: Instant::now(), keep_for, at: self.at };
        let refused = {
            let mut shard = self.upstream.shard(self.instance).lock();
            let all = &mut shard.entry(self.instance).or_default().idle;
            if all.len() < self.upstream.config.max_idle_per_instance {
                all.push(idle);
                None
            } else {
                Some(idle)
            }
        };
        if refused.is_none() {
            self.upstream.sweep_when_due();
        }
    }
}

/// Where a request goes, and how.
#[derive(Clone, Copy)]
pub(crate) struct To<'a> {
    pub(crate) instance: InstanceId,
    pub(crate) endpoint: &'a Endpoint,
    /// Where interim answers go, if the client takes any.
    pub(crate) interim: Option<&'a Arc<Interim>>,
    /// The request may be sent again. One that may not is careful: a kept connection is looked at once more before.
    pub(crate) repeats: bool,
    /// It goes to another host, which ends its connections in order: what it has not begun with may be sent again.
    pub(crate) elsewhere: bool,
}

/// What is left of a request whose call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nothing,
    /// It stands where it was, and may have been executed.
    Sent,
    /// It stands where it was, and no byte of it reached an instance.
    Unsent,
}

/// A call that failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) left: Left,
}

impl Failed {
    pub(crate) fn unsent(error: Error) -> Box<Self> {
        Box::new(Self { error, left: Left::Unsent })
    }

    /// Puts what there is of a request back into its place.
    pub(crate) fn put_back(
        error: Error,
        unsent: Option<Box<Request>>,
        copy: Option<Box<Request>>,
        place: &mut Request,
    ) -> Box<Self> {
        let left = match (unsent, copy) {
            (Some(unsent), _) => {
                *place = *unsent;
                Left::Unsent
            }
            (None, Some(copy)) => {
                *place = *copy;
                Left::Sent
            }
            (None, None) => Left::Nothing,
        };
        Box::new(Self { error, left })
    }
}

/// Whether the other end said that it has not begun with the stream (RFC 9113, sections 6.8 and 8.7): it came after the last one
/// that a GOAWAY names, or was refused.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(h2) = inner.downcast_ref::<h2::Error>() {
            let said = h2.reason();
            return h2.is_remote()
                && (h2.is_go_away() && said == Some(h2::Reason::NO_ERROR)
                    || h2.is_reset() && said == Some(h2::Reason::REFUSED_STREAM));
        }
        cause = inner.source();
    }
    false
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
            sweeping: AtomicBool::new(false),
        })
    }

    fn shard(&self, instance: InstanceId) -> &Mutex<HashMap<InstanceId, Peer>> {
        &self.shards[instance.0 as usize % SHARDS]
    }

    /// Connections that are kept for use.
    pub(crate) fn kept(&self) -> usize {
        let of = |peer: &Peer| peer.idle.len() + usize::from(peer.http2.is_some());
        self.shards.iter().map(|shard| shard.lock().values().map(of).sum::<usize>()).sum()
    }

    /// Sends `request` over HTTP/1.1 and waits for the head of the answer. The caller bounds the time. What is sent may be
    /// taken out of the request.
    ///
    /// **Cancel safety:** dropping the future closes the connection it used.
    pub(crate) async fn send_http1(
        self: &Arc<Self>,
        to: To<'_>,
        request: &mut Request,
        progress: Option<&Arc<Progress>>,
    ) -> Result<http::Response<InstanceBody>, Box<Failed>> {
        let home = Home { upstream: Arc::clone(self), instance: to.instance, at: Handle::current().id() };
        framing::measure(request);
        let is_plain = self.config.plain_http1 && plain::is_plain(request);
        loop {
            let kept = poll_fn(|cx| Poll::Ready(self.check_out(&home, cx, !to.repeats))).await;
            let reused = kept.is_some();
            let connection = match kept {
                Some(connection) => connection,
                None => match Box::pin(self.connect_http1(to.endpoint)).await {
                    Ok(plain) => Connection::Plain(plain),
                    Err(error) => return Err(Failed::unsent(error)),
                },
            };
            let given = match connection {
                Connection::Plain(plain) if is_plain => match plain.exchange(request, &home).await {
                    Exchanged::Answer(response) => {
                        if let Some(progress) = progress {
                            progress.went(request.body().in_memory().map_or(0, <[u8]>::len));
                        }
                        return Ok(response.map(|(came, rest)| match rest {
                            None => InstanceBody::whole(came),
                            Some(rest) => InstanceBody::arriving(came, rest),
                        }));
                    }
                    // A kept connection that ended before it took the request says nothing about the instance.
                    Exchanged::Lost { unsent: true, .. } if reused => continue,
                    Exchanged::Lost { unsent: true, error } => {
                        return Err(Failed::unsent(took_nothing(error, to.endpoint)));
                    }
                    Exchanged::Lost { unsent: false, error } => {
                        let left = if to.repeats { Left::Sent } else { Left::Nothing };
                        return Err(Box::new(Failed { error: ended_before(error, to.endpoint), left }));
                    }
                    Exchanged::Odd { io, cut } => Given::Begun(io, cut),
                },
                Connection::Plain(plain) => Given::Unused(plain.into_io()),
                Connection::Hyper(hyper) => Given::Hyper(hyper),
            };
            // In a box, so that plain requests are spared its kilobytes.
            match Box::pin(self.send_general(given, to, request, progress, &home)).await {
                Err(failed) if failed.left == Left::Unsent && reused => {}
                sent => return sent,
            }
        }
    }

    /// Sends a request by hyper, or lets hyper go on with one.
    async fn send_general(
        &self,
        given: Given,
        to: To<'_>,
        request: &mut Request,
        progress: Option<&Arc<Progress>>,
        home: &Home,
    ) -> Result<http::Response<InstanceBody>, Box<Failed>> {
        let hyper = match given {
            Given::Hyper(hyper) => hyper,
            Given::Unused(io) => self.hyper(io, to.endpoint).await.map_err(Failed::unsent)?,
            Given::Begun(io, cut) => match Http1::over(io, &self.config).await {
                Ok(hyper) if cut => hyper.once(),
                Ok(hyper) => hyper,
                Err(error) => {
                    let error = ended_before(error, to.endpoint);
                    return Err(Box::new(Failed { error, left: Left::Nothing }));
                }
            },
        };
        let copy = if to.repeats { again(request) } else { None };
        let mut outgoing = std::mem::take(request).map(|body| Outgoing::new(body, progress.cloned()));
        if let Some(interim) = to.interim {
            let interim = Arc::clone(interim);
            hyper::ext::on_informational(&mut outgoing, move |answer| {
                interim.push(answer.status(), answer.headers());
            });
        }
        hyper.send(outgoing, home.clone()).await.map_err(|http1::Failed { unsent, error }| {
            let error = match &unsent {
                Some(_) => took_nothing(error, to.endpoint),
                None => self.sent(error, to.endpoint),
            };
            let unsent = unsent.map(|unsent| Box::new(unsent.map(Outgoing::into_body)));
            Failed::put_back(error, unsent, copy, request)
        })
    }

    async fn connect_http1(&self, endpoint: &Endpoint) -> Result<Plain, Error> {
        Ok(Plain::new(self.within(endpoint, InstanceIo::connect(endpoint)).await?))
    }

    /// A connection of hyper's over one that nobody has spoken on, or that lies unused.
    async fn hyper(&self, io: InstanceIo, endpoint: &Endpoint) -> Result<Box<Http1>, Error> {
        let made = Http1::over(io, &self.config).await;
        let mut hyper =
            made.map_err(|error| lost(error, "connect", format!("can't connect to {endpoint}")))?;
        if poll_fn(|cx| Poll::Ready(hyper.poll_usable(cx, false))).await {
            return Ok(hyper);
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

    /// The connection that was used last and can take a request: one of the running runtime's, or else of another's. To
    /// make one more instead would leave an instance with connections that nobody uses, and some serve one at a time.
    fn check_out(&self, home: &Home, cx: &mut Context<'_>, careful: bool) -> Option<Connection> {
        loop {
            let mut idle = {
                let mut shard = self.shard(home.instance).lock();
                let all = &mut shard.get_mut(&home.instance)?.idle;
                let last = all.len().checked_sub(1)?;
                let place = all.iter().rposition(|idle| idle.at == home.at).unwrap_or(last);
                all.remove(place)
            };
            if !idle.is_fresh() {
                continue;
            }
            let mut doubt = careful;
            if idle.at != home.at
                && let Connection::Plain(plain) = idle.connection
            {
                let Ok(plain) = plain.move_here() else { continue };
                idle.connection = Connection::Plain(plain);
                // What this runtime knows of the socket begins with its driver's next turn.
                doubt = true;
            }
            if idle.connection.poll_usable(cx, doubt) {
                return Some(idle.connection);
            }
        }
    }

    /// Sends a request that asks for another protocol. An answer of 101 carries [`hyper::upgrade::OnUpgrade`].
    pub(crate) async fn send_upgrade(
        self: &Arc<Self>,
        endpoint: &Endpoint,
        mut request: Request,
    ) -> Result<http::Response<InstanceBody>, CallError> {
        framing::measure(&mut request);
        // A fresh connection: it is given away, and must not be one that just ends.
        let connecting = async { self.hyper(self.connect_http1(endpoint).await?.into_io(), endpoint).await };
        let connection = match connecting.await {
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

    /// The same over HTTP/2.
    pub(crate) async fn send_http2(
        self: &Arc<Self>,
        to: To<'_>,
        request: &mut Request,
        progress: Option<Arc<Progress>>,
    ) -> Result<http::Response<InstanceBody>, Box<Failed>> {
        let copy = if to.repeats || to.elsewhere { again(request) } else { None };
        let mut outgoing = std::mem::take(request).map(|body| Outgoing::new(body, progress));
        // One connection per instance, made by whoever comes first; a second try when a kept one has ended.
        for attempt in 0..2 {
            let cell = self.http2_cell(to.instance);
            let made = cell.get_or_try_init(|| self.connect_http2(to.endpoint, to.elsewhere)).await;
            let mut sender = match made {
                Ok(sender) => sender.clone(),
                Err(error) => {
                    *request = outgoing.map(Outgoing::into_body);
                    return Err(Failed::unsent(error));
                }
            };
            let handover = &sender.handover;
            let given = outgoing.map(|body| body.handed_over(Arc::clone(handover)));
            match sender.sender.try_send_request(given).await {
                Ok(response) => return Ok(response.map(InstanceBody::driven)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if attempt == 0 => {
                        self.forget_http2(to.instance, &cell);
                        outgoing = unsent;
                    }
                    unsent => {
                        let error = error.into_error();
                        let unsent = unsent.map(|unsent| Box::new(unsent.map(Outgoing::into_body)));
                        let (unsent, copy) = match is_unprocessed(&error) {
                            true => (unsent.or(copy), None),
                            false => (unsent, copy.filter(|_| to.repeats)),
                        };
                        let error = self.sent(error, to.endpoint);
                        return Err(Failed::put_back(error, unsent, copy, request));
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
        }
        if let Some(cell) = &peer.http2 {
            return Arc::clone(cell);
        }
        let cell = Arc::new(OnceCell::new());
        peer.http2 = Some(Arc::clone(&cell));
        drop(shard);
        self.sweep_when_due();
        cell
    }

    fn forget_http2(&self, instance: InstanceId, cell: &Arc<OnceCell<H2Sender>>) {
        let mut shard = self.shard(instance).lock();
        if let Some(peer) = shard.get_mut(&instance)
            && peer.http2.as_ref().is_some_and(|kept| Arc::ptr_eq(kept, cell))
        {
            peer.http2 = None;
        }
    }

    /// `answered`: it counts as made when the other end has said something. Whoever stands between two hosts takes connections
    /// for one that has gone already, and ends them: what was asked over such a one was not sent.
    async fn connect_http2(&self, endpoint: &Endpoint, answered: bool) -> Result<H2Sender, Error> {
        let handover = Arc::<Handover>::default();
        let connecting = async {
            let (io, heard) = Answering::new(InstanceIo::connect(endpoint).await?);
            let mut builder = http2::Builder::new(H2Tasks(Arc::clone(&handover)));
            builder
                .timer(TokioTimer::new())
                .adaptive_window(true)
                .max_header_list_size(u32::try_from(self.config.max_header_bytes).unwrap_or(u32::MAX))
                .keep_alive_interval(self.config.ping_timeout)
                .keep_alive_timeout(self.config.ping_timeout);
            let (sender, connection) =
                builder.handshake(TokioIo::new(io)).await.map_err(std::io::Error::other)?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "an HTTP/2 connection to an instance ended");
                }
            });
            if answered && heard.await.is_err() {
                let text = "it was taken and ended before anything was said";
                return Err(std::io::Error::new(std::io::ErrorKind::ConnectionRefused, text));
            }
            Ok(sender)
        };
        let sender = self.within(endpoint, connecting).await?;
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
                drop(http2);
                let cx = &mut Context::from_waker(Waker::noop());
                let mut usable: Vec<_> = idle
                    .into_iter()
                    .filter_map(|mut idle| {
                        let fresh = now.duration_since(idle.since) < timeout && idle.is_fresh();
                        (fresh && idle.connection.poll_usable(cx, false)).then_some(idle)
                    })
                    .collect();
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

/// Tells that nobody sweeps any more, also when the sweeper's runtime ends before it.
struct Sweeping {
    upstream: Weak<Upstream>,
    told: bool,
}

impl Drop for Sweeping {
    fn drop(&mut self) {
        if let (false, Some(upstream)) = (self.told, self.upstream.upgrade()) {
            upstream.sweeping.store(false, Ordering::SeqCst);
        }
    }
}

async fn sweep(upstream: Weak<Upstream>, idle_timeout: Duration) {
    let mut sweeping = Sweeping { upstream: Weak::clone(&upstream), told: false };
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
            sweeping.told = true;
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
    ended_before(error, endpoint)
}

fn took_nothing(error: impl std::error::Error + Send + Sync + 'static, endpoint: &Endpoint) -> Error {
    lost(error, "send", format!("{endpoint} ended the connection before it took a request"))
}

fn ended_before(error: impl std::error::Error + Send + Sync + 'static, endpoint: &Endpoint) -> Error {
    lost(error, "receive", format!("{endpoint} ended the connection before it had answered"))
}
