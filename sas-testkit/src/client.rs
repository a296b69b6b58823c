//! The suites' own HTTP/1.1 client: one connection per call, nothing kept, so that what is seen is the backend's.

use hyper_util::rt::TokioIo;
use sas_core::{Answer, Body, Cx, Endpoint, Instance, InstanceTarget, Request, Response};

/// Why a call got no whole answer.
#[derive(Debug)]
pub(crate) struct CallFailed(pub(crate) String);

/// Calls an instance the way that it offers: through its endpoint, or [`sas_core::Call::call`].
pub(crate) async fn call(instance: &dyn Instance, request: Request, cx: &Cx) -> Result<Response, CallFailed> {
    match instance.target() {
        InstanceTarget::Endpoint(endpoint) => send(endpoint, request).await,
        InstanceTarget::Call(callee) => match callee.call(request, cx).await {
            Ok(Answer::Http(response)) => Ok(response),
            Ok(Answer::Upgrade { .. }) => Err(CallFailed("switched protocols without being asked to".into())),
            Err(failed) => Err(CallFailed(failed.to_string())),
        },
    }
}

/// Sends one request on a connection of its own.
pub(crate) async fn send(endpoint: &Endpoint, request: Request) -> Result<Response, CallFailed> {
    let failed =
        |what: &str, error: &dyn std::fmt::Display| CallFailed(format!("{what} {endpoint}: {error}"));
    match endpoint {
        Endpoint::Tcp(address) => {
            let stream =
                tokio::net::TcpStream::connect(address).await.map_err(|error| failed("connect", &error))?;
            exchange(stream, request).await
        }
        Endpoint::Host { name, port } => {
            let stream = tokio::net::TcpStream::connect((&**name, *port))
                .await
                .map_err(|error| failed("connect", &error))?;
            exchange(stream, request).await
        }
        Endpoint::Unix(path) => {
            let stream =
                tokio::net::UnixStream::connect(path).await.map_err(|error| failed("connect", &error))?;
            exchange(stream, request).await
        }
        Endpoint::Within(address, sockets) => {
            let connecting = async {
                let socket = std::net::TcpStream::from(sockets.tcp_socket(address)?);
                tokio::net::TcpSocket::from_std_stream(socket).connect(*address).await
            };
            exchange(connecting.await.map_err(|error| failed("connect", &error))?, request).await
        }
        _ => Err(CallFailed(format!("no way to reach {endpoint}"))),
    }
}

async fn exchange<S>(stream: S, mut request: Request) -> Result<Response, CallFailed>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let failed = |error: hyper::Error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        CallFailed(format!("{error}{cause}"))
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let driver = tokio::spawn(connection);
    if !request.headers().contains_key(http::header::HOST) {
        let host = http::HeaderValue::from_static("conformance.test");
        request.headers_mut().insert(http::header::HOST, host);
    }
    let response = sender.send_request(request).await.map_err(failed)?;
    // The connection lives in the body: dropping the body closes it.
    Ok(response.map(|body| Body::new(Held { body, driver })))
}

struct Held {
    body: hyper::body::Incoming,
    driver: tokio::task::JoinHandle<hyper::Result<()>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl http_body::Body for Held {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, hyper::Error>>> {
        std::pin::Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The status and the whole body of an answer.
pub(crate) async fn whole(response: Response) -> Result<(http::StatusCode, bytes::Bytes), CallFailed> {
    let status = response.status();
    let body = response.into_body().collect(64 << 20).await;
    Ok((status, body.map_err(|error| CallFailed(format!("body: {error}")))?))
}
