//! Calls that guests make: to granted hosts only, and never to an address that was not checked.
//!
//! The name is resolved here and the connection goes to the very address that passed the guard, so that a name which
//! resolves differently a moment later gains nothing. Redirects are the guest's own business: each is a new call.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use http::{Uri, uri::Scheme};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks, io::TokioIo};

use crate::options::Options;

/// For each step of a call that the guest set no time for.
const PATIENCE: Duration = Duration::from_secs(60);

/// The client side of TLS, made when it is first needed.
#[derive(Debug, Default)]
pub(crate) struct Tls(OnceLock<Arc<ClientConfig>>);

impl Tls {
    fn config(&self) -> Arc<ClientConfig> {
        let made = self.0.get_or_init(|| {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
        });
        Arc::clone(made)
    }
}

/// What stands between a guest and the network.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) options: Arc<Options>,
    pub(crate) tls: Arc<Tls>,
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<()>> + Send>);

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Box<dyn Future<Output = Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent>> + Send> {
        let call = Call { grants: Arc::clone(&self.options), tls: Arc::clone(&self.tls) };
        Box::new(call.send(request, options.unwrap_or_default()))
    }
}

struct Call {
    grants: Arc<Options>,
    tls: Arc<Tls>,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Call {
    async fn send(self, mut request: http::Request<WasiBody>, options: RequestOptions) -> Result<Sent> {
        let (host, port, secure) = destination(request.uri())?;
        if !self.grants.allows_host(&host, port) {
            return Err(Error::HttpRequestDenied);
        }
        let connect = options.connect_timeout.unwrap_or(PATIENCE);
        let connecting = self.connect(&host, port, secure);
        let stream =
            tokio::time::timeout(connect, connecting).await.map_err(|_| Error::ConnectionTimeout)??;
        let (mut sender, mut connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = path.parse::<Uri>().map_err(|_| Error::HttpRequestUriInvalid)?;
        let patience = options.first_byte_timeout.unwrap_or(PATIENCE);
        let between = options.between_bytes_timeout.unwrap_or(PATIENCE);
        let answer = async {
            let answering = sender.send_request(request);
            tokio::pin!(answering);
            tokio::select! {
                biased;
                answer = &mut answering => (answer, false),
                ended = &mut connection => match ended {
                    Ok(()) => (answering.await, true),
                    Err(error) => (Err(error), true),
                },
            }
        };
        let (answer, ended) =
            tokio::time::timeout(patience, answer).await.map_err(|_| Error::ConnectionReadTimeout)?;
        let answer = answer?.map(|body| Patient { body, between, timer: None }.boxed_unsync());
        Ok((
            answer,
            Box::new(async move {
                if ended {
                    return Ok(());
                }
                connection.await.map_err(Error::from)
            }),
        ))
    }

    async fn connect(&self, host: &str, port: u16, secure: bool) -> Result<Box<dyn Stream>> {
        let addresses = resolve(host, port).await?;
        let allowed: Vec<SocketAddr> =
            addresses.into_iter().filter(|address| self.grants.allows_address(address.ip())).collect();
        if allowed.is_empty() {
            return Err(Error::DestinationIpProhibited);
        }
        let stream = TcpStream::connect(allowed.as_slice()).await.map_err(Error::Connect)?;
        stream.set_nodelay(true).map_err(Error::Connect)?;
        if !secure {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let stream = TlsConnector::from(self.tls.config()).connect(name, stream).await.map_err(Error::Tls)?;
        Ok(Box::new(stream))
    }
}

fn destination(uri: &Uri) -> Result<(String, u16, bool)> {
    let authority = uri.authority().ok_or(Error::HttpRequestUriInvalid)?;
    // `user@host` is an old way to make a host look like another one.
    if authority.as_str().contains('@') {
        return Err(Error::HttpRequestUriInvalid);
    }
    let secure = uri.scheme() == Some(&Scheme::HTTPS);
    let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let port = match authority.port() {
        Some(port) => port.as_u16(),
        None if secure => 443,
        None => 80,
    };
    Ok((host, port, secure))
}

async fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    match tokio::net::lookup_host((host, port)).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(Error::DnsError { rcode: Some(error.to_string()), info_code: None }),
    }
}

/// A body whose pieces must not be too long apart.
struct Patient {
    body: hyper::body::Incoming,
    between: Duration,
    timer: Option<std::pin::Pin<Box<tokio::time::Sleep>>>,
}

impl http_body::Body for Patient {
    type Data = bytes::Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>>>> {
        use std::task::Poll;
        let this = &mut *self;
        match std::pin::Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.timer = None;
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => {
                let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(this.between)));
                timer.as_mut().poll(cx).map(|()| Some(Err(Error::ConnectionReadTimeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_destination_is_what_the_authority_says() {
        let cases = [
            ("http://example.com/a", Some(("example.com", 80, false))),
            ("https://example.com", Some(("example.com", 443, true))),
            ("http://[::1]:8080/", Some(("::1", 8080, false))),
            ("http://good.test@127.0.0.1/", None),
            ("/only/a/path", None),
        ];
        for (uri, expected) in cases {
            let found = destination(&uri.parse().unwrap()).ok();
            let found = found.as_ref().map(|(host, port, secure)| (host.as_str(), *port, *secure));
            assert_eq!(found, expected, "{uri}");
        }
    }
}
