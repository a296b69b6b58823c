//! Calls that guests make: to granted hosts only, and never to an address that was not checked.
//!
//! The name is resolved here and the connection goes to the very address that passed the guard, so that a name which
//! resolves differently a moment later gains nothing. Redirects are the guest's own business: each is a new call.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use http::{Uri, uri::Scheme};
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{self, ClientConfig, RootCertStore, pki_types::ServerName},
};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks, io::TokioIo};

use crate::{options::Options, roots::add_root};

/// For each step of a call that the guest set no time for.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who turns names into addresses.
#[async_trait]
pub(crate) trait Names: std::fmt::Debug + Send + Sync {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// The resolver of the operating system.
#[derive(Debug)]
struct SystemNames;

#[async_trait]
impl Names for SystemNames {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// What all calls of a runtime share: names, and the client side of TLS, made when it is first needed.
#[derive(Debug)]
pub(crate) struct Outside {
    names: Box<dyn Names>,
    roots: RootCertStore,
    tls: OnceLock<Arc<ClientConfig>>,
}

impl Outside {
    /// Trusts the public authorities, and `extra` ones, which [`add_root`] took before.
    pub(crate) fn new(extra: &[Vec<u8>]) -> Self {
        let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        for root in extra {
            if let Err(error) = add_root(&mut roots, root) {
                tracing::error!(%error, "a certificate of WasmConfig.trusted_roots was not taken");
            }
        }
        Self { names: Box::new(SystemNames), roots, tls: OnceLock::new() }
    }

    fn tls(&self) -> Arc<ClientConfig> {
        let made = self.tls.get_or_init(|| {
            let config = ClientConfig::builder().with_root_certificates(self.roots.clone());
            Arc::new(config.with_no_client_auth())
        });
        Arc::clone(made)
    }

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address, port)]);
        }
        let found = self.names.addresses(host, port).await;
        found.map_err(|error| Error::DnsError { rcode: Some(error.to_string()), info_code: None })
    }
}

/// What stands between a guest and the network.
#[derive(Debug)]
pub(crate) struct Outbound {
    pub(crate) options: Arc<Options>,
    pub(crate) outside: Arc<Outside>,
}

type Sent = (http::Response<WasiBody>, Box<dyn Future<Output = Result<()>> + Send>);

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _sent: Box<dyn Future<Output = Result<()>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent>> + Send> {
        let call = Call { grants: Arc::clone(&self.options), outside: Arc::clone(&self.outside) };
        Box::new(call.send(request, options.unwrap_or_default()))
    }
}

struct Call {
    grants: Arc<Options>,
    outside: Arc<Outside>,
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
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(of_hyper)?;
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
        let answer =
            answer.map_err(of_hyper)?.map(|body| Patient { body, between, timer: None }.boxed_unsync());
        Ok((
            answer,
            Box::new(async move {
                if ended {
                    return Ok(());
                }
                connection.await.map_err(of_hyper)
            }),
        ))
    }

    async fn connect(&self, host: &str, port: u16, secure: bool) -> Result<Box<dyn Stream>> {
        let addresses = self.outside.resolve(host, port).await?;
        let allowed: Vec<SocketAddr> =
            addresses.into_iter().filter(|address| self.grants.allows_address(address.ip())).collect();
        if allowed.is_empty() {
            return Err(Error::DestinationIpProhibited);
        }
        let stream = TcpStream::connect(allowed.as_slice()).await.map_err(of_connect)?;
        stream.set_nodelay(true).map_err(of_connect)?;
        if !secure {
            return Ok(Box::new(stream));
        }
        let name = ServerName::try_from(host.to_owned()).map_err(|_| Error::HttpRequestUriInvalid)?;
        let stream = TlsConnector::from(self.outside.tls()).connect(name, stream).await.map_err(of_tls)?;
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

// Failures become codes of `wasi:http` here: left to wasmtime, each would also be a warning in the host's log, which
// guests could fill.

fn of_connect(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::TimedOut => Error::ConnectionTimeout,
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted => Error::ConnectionTerminated,
        _ => Error::ConnectionRefused,
    }
}

fn of_tls(error: io::Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented) => {
            Error::TlsCertificateError
        }
        Some(rustls::Error::AlertReceived(alert)) => {
            Error::TlsAlertReceived { alert_id: Some((*alert).into()), alert_message: None }
        }
        _ => Error::TlsProtocolError,
    }
}

fn of_hyper(error: hyper::Error) -> Error {
    if error.is_incomplete_message() {
        return Error::HttpResponseIncomplete;
    }
    // A body that the guest sent, or one of ours that failed, knows better.
    match std::error::Error::source(&error).and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(broken) if broken.kind() == io::ErrorKind::TimedOut => Error::ConnectionReadTimeout,
        Some(_) => Error::ConnectionTerminated,
        None => Error::HttpProtocolError,
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
                Poll::Ready(frame.map(|frame| frame.map_err(of_hyper)))
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

    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    };

    use http_body_util::Empty;
    use sas_core::{RevisionSpec, Source};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use crate::{
        config::{Ceilings, WasmConfig},
        options::{ALLOW_HOSTS, ALLOW_NETWORKS},
    };

    /// Answers with the first list first, then with the next; with the last for ever.
    #[derive(Debug)]
    struct Changing {
        answers: Mutex<Vec<Vec<SocketAddr>>>,
        asked: Arc<AtomicUsize>,
    }

    #[async_trait]
    impl Names for Changing {
        async fn addresses(&self, _: &str, _: u16) -> io::Result<Vec<SocketAddr>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            let mut answers = self.answers.lock().unwrap();
            Ok(if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() })
        }
    }

    struct Stage {
        options: Arc<Options>,
        outside: Arc<Outside>,
        asked: Arc<AtomicUsize>,
    }

    /// Grants every host, and of the private addresses the network `granted` alone.
    fn stage(granted: &str, answers: Vec<Vec<SocketAddr>>) -> Stage {
        let grants =
            Ceilings { private_networks: vec![granted.parse().unwrap()], ..Ceilings::public_hosts() };
        let config = WasmConfig { grants, ..WasmConfig::default() };
        let source = Source::Bytes { name: "f.wasm".into(), bytes: Vec::new().into() };
        let mut spec = RevisionSpec::new("wasm", source);
        spec.options.insert(ALLOW_HOSTS.into(), "*".into());
        spec.options.insert(ALLOW_NETWORKS.into(), granted.into());
        let asked = Arc::new(AtomicUsize::new(0));
        let names = Changing { answers: Mutex::new(answers), asked: Arc::clone(&asked) };
        let outside = Outside { names: Box::new(names), ..Outside::new(&[]) };
        Stage {
            options: Arc::new(Options::parse(&spec, &config).unwrap()),
            outside: Arc::new(outside),
            asked,
        }
    }

    async fn call(stage: &Stage, uri: &str) -> Result<u16> {
        let call = Call { grants: Arc::clone(&stage.options), outside: Arc::clone(&stage.outside) };
        let body = Empty::new().map_err(|never: std::convert::Infallible| match never {}).boxed_unsync();
        let request = http::Request::builder().uri(uri).body(body).unwrap();
        Ok(call.send(request, RequestOptions::default()).await?.0.status().as_u16())
    }

    /// Counts connections and answers each with 204.
    fn serve(listener: TcpListener) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 1_024]).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n").await;
            }
        });
        count
    }

    /// Two servers on one port: of 127.0.0.2, which is granted, and of 127.0.0.1, which is not.
    async fn servers() -> [(SocketAddr, Arc<AtomicUsize>); 2] {
        loop {
            let granted = TcpListener::bind("127.0.0.2:0").await.unwrap();
            let at = granted.local_addr().unwrap();
            let secret = SocketAddr::new("127.0.0.1".parse().unwrap(), at.port());
            if let Ok(listener) = TcpListener::bind(secret).await {
                return [(at, serve(granted)), (secret, serve(listener))];
            }
        }
    }

    #[tokio::test]
    async fn a_name_that_is_bound_anew_gains_nothing() {
        let [(granted, served), (secret, touched)] = servers().await;
        // The first look-up gives the granted address, all later ones the secret.
        let stage = stage("127.0.0.2/32", vec![vec![granted], vec![secret]]);
        let uri = format!("http://name.test:{}/", granted.port());
        assert_eq!(call(&stage, &uri).await.unwrap(), 204);
        assert_eq!(stage.asked.load(Ordering::Relaxed), 1, "what was checked is what was connected to");
        assert!(matches!(call(&stage, &uri).await, Err(Error::DestinationIpProhibited)));
        assert_eq!((served.load(Ordering::Relaxed), touched.load(Ordering::Relaxed)), (1, 0));
    }

    #[tokio::test]
    async fn of_several_addresses_only_the_granted_are_tried() {
        let [(granted, served), (secret, touched)] = servers().await;
        let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), granted.port());
        let stage = stage("127.0.0.2/32", vec![vec![secret, mapped, granted]]);
        assert_eq!(call(&stage, &format!("http://name.test:{}/", granted.port())).await.unwrap(), 204);
        assert_eq!((served.load(Ordering::Relaxed), touched.load(Ordering::Relaxed)), (1, 0));
    }

    #[tokio::test]
    async fn no_spelling_of_a_private_address_passes_whether_as_name_or_as_number() {
        for address in [
            "127.0.0.1",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "100.64.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
        ] {
            let address: IpAddr = address.parse().unwrap();
            let named = stage("203.0.113.0/24", vec![vec![SocketAddr::new(address, 80)]]);
            let by_name = call(&named, "http://name.test/").await;
            assert!(matches!(by_name, Err(Error::DestinationIpProhibited)), "{address} by name: {by_name:?}");
            let number = SocketAddr::new(address, 80);
            let by_number = call(&named, &format!("http://{number}/")).await;
            assert!(matches!(by_number, Err(Error::DestinationIpProhibited)), "{address}: {by_number:?}");
        }
    }

    #[tokio::test]
    async fn addresses_written_as_the_system_reads_them_are_guarded_too() {
        let system = Outside::new(&[]);
        let mut stage = stage("203.0.113.0/24", vec![Vec::new()]);
        stage.outside = Arc::new(system);
        for host in ["2130706433", "0x7f000001", "127.1", "0177.0.0.1"] {
            let refused = call(&stage, &format!("http://{host}/")).await;
            let guarded = matches!(refused, Err(Error::DestinationIpProhibited | Error::DnsError { .. }));
            assert!(guarded, "{host}: {refused:?}");
        }
    }

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
