//! One request at a time, over TCP or a Unix socket.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinHandle,
};

use super::Failed;

/// Where the platform is, and who asks.
pub(crate) struct Client {
    at: At,
    token: Option<String>,
}

enum At {
    Address(String),
    Socket(PathBuf),
}

/// An answer: its status and its JSON.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Result<Value, Failed> {
        serde_json::from_slice(&self.body).map_err(|error| Failed(format!("the answer is not JSON: {error}")))
    }
}

impl Client {
    /// Finds address and token: what was said, else what a platform left in its state directory, else its defaults.
    pub(crate) fn find(
        admin: Option<String>,
        token_file: Option<PathBuf>,
        state: Option<&Path>,
    ) -> Result<Self, Failed> {
        let left = state.map(|state| state.join("platform.json"));
        let left: Value = match left.as_deref().map(std::fs::read_to_string) {
            Some(Ok(text)) => serde_json::from_str(&text).unwrap_or_default(),
            Some(Err(error)) if admin.is_none() => {
                let path = left.unwrap_or_default();
                let text = format!("{}: {error}; does a platform run with this --state?", path.display());
                return Err(Failed(text));
            }
            _ => Value::Null,
        };
        let admin = admin.or_else(|| left["admin"].as_str().map(str::to_owned));
        let admin = admin.unwrap_or_else(|| "127.0.0.1:8081".to_owned());
        let at = match admin.strip_prefix("unix:") {
            Some(path) => At::Socket(path.into()),
            None => At::Address(admin.trim_start_matches("http://").trim_end_matches('/').to_owned()),
        };
        let file = token_file.or_else(|| left["adminTokenFile"].as_str().map(PathBuf::from));
        let token = match (std::env::var("SAS_ADMIN_TOKEN").ok(), file) {
            (Some(token), _) => Some(token),
            (None, Some(file)) => Some(
                std::fs::read_to_string(&file)
                    .map_err(|error| Failed(format!("the token's file {}: {error}", file.display())))?
                    .trim()
                    .to_owned(),
            ),
            (None, None) => None,
        };
        Ok(Self { at, token })
    }

    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failed> {
        self.send("GET", path, &[], Bytes::new()).await?.json()
    }

    /// All of a list that comes in pages: what stands as `member` in each. The path has a `?`.
    pub(crate) async fn list(&self, path: &str, member: &str) -> Result<Vec<Value>, Failed> {
        let (mut all, mut next) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}{next}")).await?;
            all.extend(page[member].as_array().into_iter().flatten().cloned());
            match page["continue"].as_str() {
                // Letters, digits, dashes: as it is.
                Some(more) => next = format!("&continue={more}"),
                None => return Ok(all),
            }
        }
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Result<Value, Failed> {
        self.send("POST", path, &[], body.to_string().into()).await?.json()
    }

    /// Sends a request; an answer of 400 or more is a failure, in the words of the platform.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, Failed> {
        let (response, connection) = self.exchange(method, path, headers, body).await?;
        let answer = collected(response).await;
        connection.abort();
        let answer = answer?;
        if answer.status < 400 { Ok(answer) } else { Err(refused(&answer)) }
    }

    /// Asks for what may be large, and writes it as it comes. Tells how many bytes it had.
    pub(crate) async fn download(&self, path: &str, into: &mut impl Write) -> Result<u64, Failed> {
        let (response, connection) = self.exchange("POST", path, &[], Bytes::new()).await?;
        if response.status().as_u16() >= 400 {
            let answer = collected(response).await?;
            return Err(refused(&answer));
        }
        let (mut bytes, mut body) = (0, response.into_body());
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(broke)?.into_data() else { continue };
            into.write_all(&data).map_err(|error| Failed(format!("it can't be written: {error}")))?;
            bytes += data.len() as u64;
        }
        connection.abort();
        Ok(bytes)
    }

    async fn exchange(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>), Failed> {
        match &self.at {
            At::Address(address) => {
                let unreachable = |error| {
                    Failed(format!("{address}: {error}; say where the platform's admin API is: --admin"))
                };
                let stream = tokio::net::TcpStream::connect(address).await.map_err(unreachable)?;
                self.exchange_over(stream, address, method, path, headers, body).await
            }
            At::Socket(socket) => {
                let unreachable = |error| Failed(format!("{}: {error}", socket.display()));
                let stream = tokio::net::UnixStream::connect(socket).await.map_err(unreachable)?;
                self.exchange_over(stream, "localhost", method, path, headers, body).await
            }
        }
    }

    async fn exchange_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        host: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Result<(Response<Incoming>, JoinHandle<hyper::Result<()>>), Failed> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let connection = tokio::spawn(connection);
        let mut request = http::Request::builder().method(method).uri(path).header("host", host);
        if !headers.iter().any(|(name, _)| *name == "content-type") && !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| Failed(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(broke)?;
        Ok((response, connection))
    }
}

fn broke(error: hyper::Error) -> Failed {
    Failed(format!("the connection broke off: {error}"))
}

async fn collected(response: Response<Incoming>) -> Result<Answer, Failed> {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(broke)?.to_bytes();
    Ok(Answer { status: head.status.as_u16(), body })
}

/// Why it was not done, in the words of the platform.
fn refused(answer: &Answer) -> Failed {
    let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let detail = problem["detail"].as_str().unwrap_or("no reason was given");
    let mut text = format!("{} {}: {detail}", answer.status, problem["title"].as_str().unwrap_or("refused"));
    for field in problem["fields"].as_array().into_iter().flatten() {
        let part = |name: &str| field[name].as_str().unwrap_or_default();
        text.push_str(&format!("\n  {} ({}): {}", part("field"), part("value"), part("problem")));
    }
    Failed(text)
}
