//! The HTTP ingress.

mod config;
mod detect;

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use sas_core::{Body, Error, ErrorKind, Handler, Result};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::config::ServerConfig;
use self::detect::{Replayed, Spoken, detect};
use crate::connection::ClientConnection;

/// What all connections of a server share.
#[derive(Debug)]
struct Shared {
    handler: Arc<dyn Handler>,
    config: ServerConfig,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Take no more connections; end those that there are after their requests.
    drain: CancellationToken,
    /// End everything.
    abort: CancellationToken,
}

/// Serves a [`Handler`] over HTTP/1.1 and HTTP/2 (prior knowledge; told apart by the first bytes).
///
/// Dropping it ends everything at once; [`Server::shutdown`] lets requests finish.
#[derive(Debug)]
pub struct Server {
    local: SocketAddr,
    shared: Arc<Shared>,
}

impl Server {
    /// Listens on `address` and serves `handler`. A bare port is bound on loopback only by callers: say
    /// `0.0.0.0:80` to be reached from elsewhere.
    ///
    /// # Errors
    /// `Unavailable` with the address when it can't be had.
    pub async fn bind(address: SocketAddr, handler: Arc<dyn Handler>, config: ServerConfig) -> Result<Self> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            let text =
                format!("can't listen on {address}; is another program there, or is the port below 1024?");
            Error::new(ErrorKind::Unavailable, "bind", text).with_source(error)
        })?;
        Self::serve(listener, handler, config)
    }

    /// Serves `handler` on a listener that the host opened.
    ///
    /// # Errors
    /// `Unavailable` when the listener has no local address.
    pub fn serve(listener: TcpListener, handler: Arc<dyn Handler>, config: ServerConfig) -> Result<Self> {
        let local = listener.local_addr().map_err(|error| {
            Error::new(ErrorKind::Unavailable, "serve", "the listener has no address").with_source(error)
        })?;
        let shared = Arc::new(Shared {
            handler,
            places: Arc::new(Semaphore::new(config.max_connections)),
            config,
            tasks: TaskTracker::new(),
            drain: CancellationToken::new(),
            abort: CancellationToken::new(),
        });
        shared.tasks.spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { local, shared })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Takes no more connections, lets requests finish until `deadline`, then ends what is left. Resolves when
    /// every task has ended. Idempotent.
    pub async fn shutdown(&self, deadline: Instant) {
        self.shared.drain.cancel();
        self.shared.tasks.close();
        if timeout_at(deadline, self.shared.tasks.wait()).await.is_err() {
            self.shared.abort.cancel();
            self.shared.tasks.wait().await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.drain.cancel();
        self.shared.abort.cancel();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let accepted = async {
            let place = Arc::clone(&shared.places).acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let accepted = tokio::select! {
            biased;
            () = shared.drain.cancelled() => return,
            accepted = accepted => accepted,
        };
        match accepted {
            Some((Ok((stream, peer)), place)) => {
                let shared = Arc::clone(&shared);
                shared.tasks.clone().spawn(async move {
                    let abort = shared.abort.clone();
                    tokio::select! {
                        biased;
                        () = abort.cancelled() => {}
                        served = connection(stream, peer, shared) => {
                            if let Err(error) = served {
                                tracing::debug!(%peer, %error, "a connection ended with an error");
                            }
                        }
                    }
                    drop(place);
                });
            }
            Some((Err(error), _)) => {
                // Out of file descriptors, mostly: those in use must end first, and a busy loop helps nobody.
                tracing::warn!(%error, "can't take a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            None => return,
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let detecting = timeout(shared.config.idle_timeout, detect(stream));
    let detected = tokio::select! {
        biased;
        () = shared.drain.cancelled() => return Ok(()),
        detected = detecting => detected,
    };
    let Ok(Some((spoken, stream))) = detected.map_err(io::Error::other)? else { return Ok(()) };
    serve(stream, spoken, Arc::new(ClientConnection::new(Some(peer), false)), shared).await
}

async fn serve(
    stream: Replayed<TcpStream>,
    spoken: Spoken,
    client: Arc<ClientConnection>,
    shared: Arc<Shared>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let config = &shared.config;
    let handler = Arc::clone(&shared.handler);
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (handler, client) = (Arc::clone(&handler), Arc::clone(&client));
        async move {
            let mut request = request.map(|body| {
                if http_body::Body::is_end_stream(&body) { Body::empty() } else { Body::new(body) }
            });
            request.extensions_mut().insert(client);
            Ok::<_, Infallible>(handler.handle(request).await)
        }
    });
    let io = TokioIo::new(stream);
    match spoken {
        Spoken::Http1 => {
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(config.header_timeout)
                .max_headers(config.max_headers)
                .max_header_size(config.max_header_bytes as usize);
            let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
            tokio::select! {
                biased;
                served = connection.as_mut() => return Ok(served?),
                () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            Ok(connection.await?)
        }
        Spoken::Http2 => {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(config.max_streams)
                .max_pending_accept_reset_streams(config.max_reset_streams)
                .max_header_list_size(config.max_header_bytes)
                .keep_alive_interval(config.ping)
                .keep_alive_timeout(config.ping)
                .adaptive_window(true);
            let mut connection = std::pin::pin!(builder.serve_connection(io, service));
            tokio::select! {
                biased;
                served = connection.as_mut() => return Ok(served?),
                () = shared.drain.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            Ok(connection.await?)
        }
    }
}
