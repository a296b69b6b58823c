//! Requests of other kinds to the hosts that are allowed, for those who want the answer.

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use sas_core::{Error, ErrorKind, Result};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{Webhooks, webhook::port};

impl Webhooks {
    /// Sends a request whose URI is absolute, over a connection of its own, and reads the answer, of at most `most` bytes. A
    /// redirect is an answer as any other: where it leads may not be allowed.
    ///
    /// **Cancel safety:** the request may have been taken.
    ///
    /// # Errors
    /// `InvalidSpec` when its host is not allowed; `Unavailable` when there is no whole answer. It sets no time limit.
    pub async fn request(&self, request: Request<Bytes>, most: usize) -> Result<Response<Bytes>> {
        let (mut head, body) = request.into_parts();
        // Without the query, which may hold a secret.
        let shown = head.uri.to_string().split('?').next().unwrap_or_default().to_owned();
        let uri = self.allows(&head.uri.to_string()).map_err(|problem| {
            Error::new(ErrorKind::InvalidSpec, "request", format!("{shown}: {problem}"))
        })?;
        let away = |problem: &dyn std::fmt::Display| {
            Error::new(ErrorKind::Unavailable, "request", format!("{shown}: {problem}"))
        };
        let authority = uri.authority().map(http::uri::Authority::as_str).unwrap_or_default();
        let host = HeaderValue::try_from(authority).map_err(|error| away(&error))?;
        head.headers.insert(header::HOST, host);
        head.uri = uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).parse().map_err(
            |error: http::uri::InvalidUri| Error::new(ErrorKind::InvalidSpec, "request", error.to_string()),
        )?;
        let request = Request::from_parts(head, Full::new(body));
        let name = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let stream = TcpStream::connect((name.as_str(), port(&uri))).await.map_err(|error| away(&error))?;
        let exchanged = if uri.scheme_str() == Some("https") {
            let name = ServerName::try_from(name).map_err(|error| away(&error))?;
            let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await;
            exchange(TokioIo::new(stream.map_err(|error| away(&error))?), request, most).await
        } else {
            exchange(TokioIo::new(stream), request, most).await
        };
        exchanged.map_err(|error| away(&error))
    }
}

async fn exchange<I>(
    io: I,
    request: Request<Full<Bytes>>,
    most: usize,
) -> std::result::Result<Response<Bytes>, Box<dyn std::error::Error + Send + Sync>>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    // Within this task: who gives up takes the connection along.
    let answered = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, most).collect().await?.to_bytes();
        Ok(Response::from_parts(head, body))
    };
    tokio::pin!(answered);
    tokio::select! {
        answer = &mut answered => answer,
        // It ended with the answer's last byte, or too early.
        _ = connection => answered.await,
    }
}
