//! The HTTP ingress.

#[cfg(feature = "tls")]
mod certificate_dir;
mod config;
mod detect;
mod listener;
mod plain;
mod request_line;
#[cfg(feature = "tls")]
mod tls;
mod transport;
mod watch;
mod workers;

use std::{
    convert::Infallible,
    future::poll_fn,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use sas_core::{Body, BoxError, Error, ErrorKind, Handler, Request, Response, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, timeout},
};

pub use self::config::ServerConfig;
#[cfg(unix)]
pub use self::listener::UnixServer;
#[cfg(feature = "tls")]
pub use self::{certificate_dir::CertificateDir, tls::Tls};
use self::{
    detect::{Replayed, Spoken, detect},
    listener::{Accepted, Listener},
    plain::Answered,
    transport::{Carrier, Socket, Transport, error_answer},
    watch::{Busy, Signal, Watch, Watched},
    workers::Workers,
};
use crate::{
    Failure,
    connection::{ClientConnection, Ending},
    identity::IdSource,
    interim::Interim,
    metrics::ServerMetrics,
    stall::{Handover, Limit, WriteBy, Writing},
    timed::{Limits, Timed},
};

/// What all connections of a server share.
#[derive(Debug)]
struct Shared {
    handler: Arc<dyn Handler>,
    config: ServerConfig,
    metrics: ServerMetrics,
    places: Arc<Semaphore>,
    most: usize,
    ids: Arc<IdSource>,
    watch: Arc<Watch>,
    ending: Arc<Ending>,
}

impl Shared {
    fn new(handler: Arc<dyn Handler>, config: ServerConfig) -> Self {
        let most = config.max_connections.unwrap_or(ServerConfig::DEFAULT_MAX_CONNECTIONS);
        let most = most.clamp(1, Semaphore::MAX_PERMITS.min(u32::MAX as usize));
        Self {
            handler,
            metrics: ServerMetrics::new(&config.recorder),
            places: Arc::new(Semaphore::new(most)),
            most,
            ids: Arc::new(IdSource::configured(if config.seed == 0 { 0 } else { config.seed ^ 0x5afe_0001 })),
            watch: Watch::new(&config),
            config,
            ending: Arc::default(),
        }
    }
}

/// Serves a [`Handler`] over HTTP/1.1 and HTTP/2, told apart by ALPN or by the first bytes.
///
/// Dropping it ends everything at once; [`Server::shutdown`] lets requests finish.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> sas_core::Result<()> {
/// use std::{net::Ipv4Addr, sync::Arc, time::Duration};
/// use sas_core::{Body, Handler, Request, Response};
///
/// #[derive(Debug)]
/// struct Hello;
/// #[async_trait::async_trait]
/// impl Handler for Hello {
///     async fn handle(&self, _: Request) -> Response {
///         Response::new(Body::from("hello"))
///     }
/// }
///
/// let address = (Ipv4Addr::LOCALHOST, 0).into();
/// let server = sas_router::Server::bind(address, Arc::new(Hello), Default::default()).await?;
/// println!("serving at http://{}", server.local_addr());
/// server.shutdown(tokio::time::Instant::now() + Duration::from_secs(10)).await;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Server {
    local: SocketAddr,
    shared: Arc<Shared>,
    workers: Workers,
}

impl Server {
    /// Listens on `address` and serves `handler`. Only what the address says is reachable: a loopback address from
    /// this machine, `0.0.0.0` and `[::]` from everywhere. Port 0 takes a free one.
    ///
    /// # Errors
    /// `Unavailable` with the address when it can't be had.
    pub async fn bind(address: SocketAddr, handler: Arc<dyn Handler>, config: ServerConfig) -> Result<Self> {
        Self::serve(Self::listen(address).await?, handler, config)
    }

    /// Listens on `address`, for [`Server::serve`] later: connections that come until then wait in the listener's queue.
    ///
    /// # Errors
    /// `Unavailable` with the address when it can't be had.
    pub async fn listen(address: SocketAddr) -> Result<TcpListener> {
        TcpListener::bind(address).await.map_err(|error| {
            let text =
                format!("can't listen on {address}; does another program, or is it not of this machine?");
            Error::new(ErrorKind::Unavailable, "bind", text).with_source(error)
        })
    }

    /// Serves `handler` on a listener that the host opened.
    ///
    /// # Errors
    /// `Unavailable` when the listener has no local address, or the threads of [`ServerConfig::workers`] can't be had.
    pub fn serve(listener: TcpListener, handler: Arc<dyn Handler>, config: ServerConfig) -> Result<Self> {
        let local = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::Unavailable, "serve", "the listener has no address").with_source(error)
        })?;
        let shared = Arc::new(Shared::new(handler, config));
        let workers = match shared.config.workers {
            0 => {
                shared.ending.tasks.spawn(accept(Listener::Tcp(listener), Arc::clone(&shared)));
                Workers::default()
            }
            count => {
                let started =
                    listener.into_std().and_then(|listener| Workers::start(count, &listener, &shared));
                started.map_err(|error| {
                    shared.ending.drain.cancel();
                    let text = format!("can't start {count} workers; ServerConfig::workers says how many");
                    Error::new(ErrorKind::Unavailable, "serve", text).with_source(error)
                })?
            }
        };
        shared.ending.tasks.spawn(look(Arc::clone(&shared)));
        Ok(Self { local, shared, workers })
    }

    /// The address on which it listens, with the port that it was given.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Connections that are open, upgraded ones not counted.
    pub fn connections(&self) -> usize {
        self.shared.watch.open()
    }

    /// Takes no more connections and lets what runs finish: HTTP/1.1 answers its request and closes, HTTP/2 sends
    /// GOAWAY, event streams end, WebSockets are closed with 1001. What is left at `deadline` is ended. Resolves
    /// when every task is gone. Idempotent.
    pub async fn shutdown(&self, deadline: Instant) {
        self.shared.ending.run(deadline).await;
        self.workers.end().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.ending.drain.cancel();
        self.shared.ending.abort.cancel();
    }
}

/// Looks at all connections from time to time and passes on what a shutdown says, until none is left.
async fn look(shared: Arc<Shared>) {
    let period = shared.watch.period();
    let Ending { drain, abort, .. } = &*shared.ending;
    let mut draining = false;
    // All places free means that no connection is left. An accept that is under way holds one, and gives it back
    // when it is told of the drain.
    let mut all_left = pin!(shared.places.acquire_many(u32::try_from(shared.most).unwrap_or(u32::MAX)));
    loop {
        tokio::select! {
            biased;
            () = abort.cancelled() => {
                shared.watch.tell_all(Signal::Abort);
                return;
            }
            _ = &mut all_left, if draining => return,
            () = drain.cancelled(), if !draining => {
                draining = true;
                shared.watch.tell_all(Signal::Drain);
            }
            () = tokio::time::sleep(period) => {
                let [head, idle, write] = shared.watch.look();
                shared.metrics.overran(head, idle, write);
            }
        }
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>) {
    let drain = &shared.ending.drain;
    let place = loop {
        let place = tokio::select! {
            biased;
            () = drain.cancelled() => break Arc::clone(&shared.places).try_acquire_owned().ok(),
            place = Arc::clone(&shared.places).acquire_owned() => place,
        };
        let Ok(place) = place else { return };
        let accepted = tokio::select! {
            biased;
            () = drain.cancelled() => break Some(place),
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => serve_next(stream, peer, place, &shared),
            Err(error) => {
                // Out of file descriptors, mostly: those in use must end first, and a busy loop helps nobody.
                tracing::warn!(%error, "can't take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    // The kernel took these for this server, and would reset them when it closes.
    if let Some(place) = place.map(Arc::new) {
        for (stream, peer) in listener.taken() {
            serve_next(stream, peer, Arc::clone(&place), &shared);
        }
    }
}

/// Serves a connection as a task of its own, which holds `place`.
fn serve_next(stream: Accepted, peer: Option<SocketAddr>, place: impl Send + 'static, shared: &Arc<Shared>) {
    shared.metrics.accepted();
    shared.ending.tasks.spawn({
        let shared = Arc::clone(shared);
        async move {
            let _place = place;
            let watched = Entered(shared.watch.enter());
            if let Err(error) = connection(stream, peer, &watched.0, &shared).await {
                tracing::debug!(?peer, %error, "a connection ended with an error");
            }
        }
    });
}

/// A connection's place under the watch.
struct Entered(Arc<Watched>);

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// For how long after its accept a connection may begin to speak although the server drains.
const FIRST_BYTES: Duration = Duration::from_secs(1);

async fn connection(
    stream: Accepted,
    peer: Option<SocketAddr>,
    watched: &Arc<Watched>,
    shared: &Arc<Shared>,
) -> Result<(), BoxError> {
    if let Accepted::Tcp(stream) = &stream {
        stream.set_nodelay(true)?;
        // A WebSocket may be quiet for days; a peer that vanished is noticed all the same.
        rustix::net::sockopt::set_socket_keepalive(stream, true)?;
    }
    let mut starting = pin!(timeout(shared.config.header_timeout, start(stream, watched, shared)));
    let accepted = Instant::now();
    let mut known = Signal::Continue;
    let started = loop {
        tokio::select! {
            biased;
            started = &mut starting => break started,
            signal = poll_fn(|cx| watched.poll_signal(known, cx)) => {
                if signal != Signal::Drain {
                    return Ok(());
                }
                known = signal;
            }
            // The kernel took it for this server, so nobody else answers what is on its way.
            () = tokio::time::sleep_until(accepted + FIRST_BYTES), if known == Signal::Drain => return Ok(()),
        }
    };
    // Nobody who says nothing is owed an answer.
    let Ok(started) = started else { return Ok(()) };
    let Some(started) = started? else { return Ok(()) };
    let Started { spoken, stream, secure, .. } = started;
    watched.read();
    let interim = (spoken == Spoken::Http1).then(Arc::<Interim>::default);
    #[cfg_attr(not(feature = "tls"), expect(unused_mut, reason = "a name is asked for by TLS alone"))]
    let mut client = ClientConnection::of(peer, secure, Arc::clone(&shared.ending), interim.clone());
    #[cfg(feature = "tls")]
    {
        client.asked = started.asked;
    }
    let client = Arc::new(client);
    let mut io = Transport::new(stream, Arc::clone(watched), Arc::clone(&shared.ids), interim);
    let mut answered = None;
    if spoken == Spoken::Http1 && shared.config.plain_http1 {
        match plain::serve(&mut io, &client, watched, shared, known).await? {
            plain::Left::Ended => return Ok(()),
            plain::Left::Hyper(first) => answered = first,
        }
    }
    // In a box, so that a connection that does not come here is spared its kilobytes.
    Box::pin(serve(io, spoken, answered, client, watched, shared)).await
}

/// A connection that speaks.
struct Started {
    spoken: Spoken,
    stream: Replayed<Carrier>,
    secure: bool,
    #[cfg(feature = "tls")]
    asked: Option<crate::certificates::Asked>,
}

impl Started {
    fn plain((spoken, stream): (Spoken, Replayed<Carrier>)) -> Self {
        Self {
            spoken,
            stream,
            secure: false,
            #[cfg(feature = "tls")]
            asked: None,
        }
    }
}

/// Encrypts if so configured, and finds out what is spoken.
async fn start(
    stream: Accepted,
    watched: &Arc<Watched>,
    shared: &Arc<Shared>,
) -> Result<Option<Started>, BoxError> {
    let stream = match stream {
        Accepted::Tcp(stream) => Socket::new(stream, watched),
        #[cfg(unix)]
        Accepted::Unix(stream) => {
            let detected = detect(Carrier::Unix(Socket::new(stream, watched))).await?;
            return Ok(detected.map(Started::plain));
        }
    };
    #[cfg(feature = "tls")]
    if let Some(tls) = &shared.config.tls {
        let (acceptor, certificates) = tls.acceptor();
        let stream = acceptor.accept(stream).await?;
        let agreed = stream.get_ref().1;
        let spoken = match agreed.alpn_protocol() {
            Some(b"h2") => Spoken::Http2,
            _ => Spoken::Http1,
        };
        let asked = agreed
            .server_name()
            .zip(certificates)
            .map(|(name, all)| crate::certificates::Asked::new(name, all));
        let stream = Replayed::untouched(Carrier::Tls(Box::new(stream)));
        return Ok(Some(Started { spoken, stream, secure: true, asked }));
    }
    let _ = shared;
    let detected = detect(Carrier::Plain(stream)).await?;
    Ok(detected.map(Started::plain))
}

/// Answers, unless the request is for a host that its connection is not for.
fn handle<'a>(
    shared: &'a Shared,
    client: &ClientConnection,
    request: Request,
) -> Pin<Box<dyn Future<Output = Response> + Send + 'a>> {
    if !client.misdirects(&request) {
        return shared.handler.handle(request);
    }
    let message =
        "this host has another certificate than the connection was shown; ask over a connection of its own";
    let failure = Failure::new(StatusCode::MISDIRECTED_REQUEST, "ingress", "misdirected", message);
    let response = failure.into_response(shared.ids.next());
    Box::pin(std::future::ready(response))
}

/// A response whose connection counts as busy until it is over.
struct Counted {
    body: Body,
    writing: Arc<Writing>,
    _busy: Busy,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.writing.ends();
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.writing.asked(matches!(polled, Poll::Ready(Some(Ok(_)))));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn serve(
    io: Transport<Replayed<Carrier>>,
    spoken: Spoken,
    answered: Option<Answered>,
    client: Arc<ClientConnection>,
    watched: &Arc<Watched>,
    shared: &Arc<Shared>,
) -> Result<(), BoxError> {
    let config = &shared.config;
    // The answer to the first request, if that came over the plain way.
    let answered = Mutex::new(answered);
    // An HTTP/1.1 connection writes one answer after the other; streams of HTTP/2 have marks of their own.
    let answer = Arc::<Writing>::default();
    let handover = Arc::<Handover>::default();
    let service = service_fn({
        let (shared, watched) = (Arc::clone(shared), Arc::clone(watched));
        let (answer, handover) = (Arc::clone(&answer), Arc::clone(&handover));
        move |request: http::Request<Incoming>| {
            let answered = answered.lock().take();
            let (busy, first) = match answered {
                Some(Answered { response, busy }) => (busy, Some(response)),
                None => (watched.begin(), None),
            };
            let (shared, client, watched) = (Arc::clone(&shared), Arc::clone(&client), Arc::clone(&watched));
            let reader = Arc::clone(&watched);
            let writing = match spoken {
                Spoken::Http1 => Arc::clone(&answer),
                Spoken::Http2 => {
                    let writing = Arc::<Writing>::default();
                    handover.put(Arc::clone(&writing));
                    writing
                }
            };
            async move {
                let limits = Limits { deadline: None, idle: shared.config.body_timeout, sender: "client" };
                let mut request = request.map(|body| {
                    if http_body::Body::is_end_stream(&body) {
                        Body::empty()
                    } else {
                        let watched = (spoken == Spoken::Http1).then_some(watched);
                        Body::new(Upload::new(Timed::new(body, limits), watched))
                    }
                });
                let interim = client.interim().cloned();
                let mut response: Response = match first {
                    Some(response) => response,
                    None => {
                        request.extensions_mut().insert(Arc::clone(&client));
                        handle(&shared, &client, request).await
                    }
                };
                if let Some(interim) = interim {
                    interim.close();
                }
                if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                    reader.upgrades();
                } else if spoken == Spoken::Http1 && reader.is_draining() {
                    // hyper hears of the drain after it has read what was there, and would not say that it closes.
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                writing.begins(response.extensions_mut().remove::<WriteBy>().map(|by| by.0));
                Ok::<_, Infallible>(response.map(|body| Counted { body, writing, _busy: busy }))
            }
        }
    });
    let io = TokioIo::new(io);
    match spoken {
        Spoken::Http1 => {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .header_read_timeout(None)
                .max_headers(config.max_headers)
                .max_header_size(config.max_header_bytes as usize)
                .max_buf_size((config.max_header_bytes as usize).max(16 * 1024));
            let mut connection = builder.serve_connection(io, service).with_upgrades();
            let mut known = Signal::Continue;
            // That it takes nothing at all is seen by the watch.
            let mut limit = Limit::new(answer, None);
            loop {
                let told = poll_fn(|cx| match poll_told(Pin::new(&mut connection), watched, known, cx) {
                    Poll::Pending => limit.poll(cx).map(|()| Told::Late),
                    told => told,
                });
                match told.await {
                    Told::Served(served) => {
                        served?;
                        if watched.was_cut_short()
                            && let Some(parts) = connection.into_parts()
                        {
                            linger(parts.io.into_inner().into_stream(), &shared.ending).await;
                        }
                        return Ok(());
                    }
                    Told::Late => {
                        shared.metrics.overran(0, 0, 1);
                        return Ok(());
                    }
                    Told::Signal(Signal::Drain) => Pin::new(&mut connection).graceful_shutdown(),
                    Told::Signal(Signal::Abort) => {
                        shared.metrics.aborted();
                        return Ok(());
                    }
                    Told::Signal(signal) => {
                        known = signal;
                        break;
                    }
                }
                known = Signal::Drain;
            }
            if known == Signal::TooSlow
                && let Some(parts) = connection.into_parts()
            {
                let mut io = parts.io.into_inner();
                let answer = error_answer(StatusCode::REQUEST_TIMEOUT, shared.ids.next());
                let saying = async {
                    io.write_all(&answer).await?;
                    io.shutdown().await
                };
                // Whoever reads as slowly as it writes goes without.
                let _said = timeout(Duration::from_secs(1), saying).await;
            }
            Ok(())
        }
        Spoken::Http2 => {
            let mut builder =
                hyper::server::conn::http2::Builder::new(Spawner { shared: Arc::clone(shared), handover });
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(config.max_streams)
                .max_pending_accept_reset_streams(config.max_reset_streams)
                .max_header_list_size(config.max_header_bytes)
                .keep_alive_interval(config.ping)
                .keep_alive_timeout(config.ping)
                .adaptive_window(true);
            let mut connection = pin!(builder.serve_connection(io, service));
            let mut known = Signal::Continue;
            loop {
                match poll_fn(|cx| poll_told(connection.as_mut(), watched, known, cx)).await {
                    Told::Served(served) => {
                        // Its streams were ended first.
                        if shared.ending.abort.is_cancelled() {
                            shared.metrics.aborted();
                        }
                        return Ok(served?);
                    }
                    Told::Signal(Signal::Abort) => {
                        shared.metrics.aborted();
                        return Ok(());
                    }
                    // Its streams end with it.
                    Told::Signal(Signal::Stuck) | Told::Late => return Ok(()),
                    Told::Signal(signal) => {
                        if signal == Signal::Drain {
                            shared.metrics.went_away();
                        }
                        connection.as_mut().graceful_shutdown();
                        if signal != Signal::Drain && !watched.is_busy() {
                            // Idle, or stuck: the GOAWAY gets as long as any last word.
                            let _late = timeout(Duration::from_secs(1), connection.as_mut()).await;
                            return Ok(());
                        }
                        known = signal;
                    }
                }
            }
        }
    }
}

/// How long a client may go on with an upload after its answer was written.
const LINGER: Duration = Duration::from_secs(5);

/// Reads what a client still sends of an upload that nobody wants. To close on it would reset the connection, and the
/// client would lose the answer that tells it why (RFC 9112, section 9.6).
async fn linger(mut stream: Replayed<Carrier>, ending: &Ending) {
    let mut unwanted = vec![0; 16 * 1024];
    let reading = async { while let Ok(1..) = stream.read(&mut unwanted).await {} };
    tokio::select! {
        biased;
        () = ending.abort.cancelled() => {}
        _ = timeout(LINGER, reading) => {}
    }
}

/// A request's body, which tells the watch how far it came.
struct Upload {
    body: Timed<Incoming>,
    /// `None` for HTTP/2, whose streams say such things themselves.
    watched: Option<Arc<Watched>>,
}

impl Upload {
    fn new(body: Timed<Incoming>, watched: Option<Arc<Watched>>) -> Self {
        if let Some(watched) = &watched {
            watched.uploads(true);
        }
        Self { body, watched }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(watched) = &self.watched {
            watched.cut_short();
        }
    }
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let whole = match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            _ => false,
        };
        if whole && let Some(watched) = self.watched.take() {
            watched.uploads(false);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What ended a wait on a connection.
enum Told<T> {
    Served(T),
    Signal(Signal),
    /// An answer was not taken by its deadline.
    Late,
}

fn poll_told<C: Future>(
    connection: Pin<&mut C>,
    watched: &Watched,
    known: Signal,
    cx: &mut Context<'_>,
) -> Poll<Told<C::Output>> {
    if let Poll::Ready(served) = connection.poll(cx) {
        return Poll::Ready(Told::Served(served));
    }
    watched.poll_signal(known, cx).map(Told::Signal)
}

/// Runs the streams of an HTTP/2 connection as tasks that a shutdown waits for, and ends, and that end by themselves
/// when the client does not take their answer in time.
#[derive(Clone)]
struct Spawner {
    shared: Arc<Shared>,
    handover: Arc<Handover>,
}

impl<F> hyper::rt::Executor<F> for Spawner
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let shared = Arc::clone(&self.shared);
        let stall = shared.config.write_timeout;
        let mut limit = self.handover.take().map(|writing| Limit::new(writing, Some(stall)));
        self.shared.ending.tasks.spawn(async move {
            let mut stream = pin!(stream);
            let ended = poll_fn(|cx| {
                if stream.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(false);
                }
                limit.as_mut().map_or(Poll::Pending, |limit| limit.poll(cx).map(|()| true))
            });
            tokio::select! {
                biased;
                () = shared.ending.abort.cancelled() => {}
                late = ended => if late {
                    shared.metrics.overran(0, 0, 1);
                },
            }
        });
    }
}
