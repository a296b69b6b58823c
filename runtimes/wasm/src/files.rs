//! CGI modules with granted folders: the general implementation of preview 1, with the request on its streams.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http_body::Body as _;
use sas_core::{Body, LogStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use wasmtime::{Linker, Result};
use wasmtime_wasi::{
    I32Exit,
    cli::{IsTerminal, StdinStream, StdoutStream},
    p1::WasiP1Ctx,
    p2::{OutputStream, Pollable, StreamError, StreamResult},
};

use crate::{
    cgi::{Output, environment},
    limits::Limiter,
    preview1::CgiProgram,
    sandbox::{self, Limited, LogStreamOut, Sandbox},
    stdin::Stdin,
    sync::{Lock, Shared},
    usage::CallUsage,
};

/// What the host keeps for one CGI guest with folders.
pub(crate) struct FilesGuest {
    limiter: Limiter,
    wasi: WasiP1Ctx,
    output: Shared<Output>,
}

impl FilesGuest {
    pub(crate) fn new(
        sandbox: &Sandbox,
        usage: Arc<CallUsage>,
        request: http::request::Parts,
        body: Body,
        output: Shared<Output>,
    ) -> Self {
        let stdin = Stdin::new(body, &request.headers);
        let variables = environment(sandbox.instance.declared(), &request, stdin.length);
        let mut builder = sandbox.builder();
        for variable in variables.bytes.split(|byte| *byte == 0) {
            if let Some((name, value)) = String::from_utf8_lossy(variable).split_once('=') {
                builder.env(name, value);
            }
        }
        builder
            .stdin(Input(Arc::new(Lock::new(stdin))))
            .stdout(Answer(Arc::clone(&output)))
            .stderr(LogStreamOut(Arc::new(Lock::new(sandbox.lines(LogStream::Stderr)))));
        Self { limiter: sandbox.limiter(usage), wasi: builder.build_p1(), output }
    }
}

impl Limited for FilesGuest {
    fn limits(&self) -> &Limiter {
        &self.limiter
    }
}

/// Adds all functions of `wasi_snapshot_preview1`.
pub(crate) fn add_to_linker(linker: &mut Linker<FilesGuest>) -> Result<()> {
    wasmtime_wasi::p1::add_to_linker_async(linker, |guest| &mut guest.wasi)
}

/// Serves one request in a fresh sandbox.
pub(crate) async fn serve(program: Arc<CgiProgram<FilesGuest>>, guest: FilesGuest) -> Result<()> {
    let mut store = sandbox::store(program.engine(), guest, |guest| &mut guest.limiter);
    let (start, _) = program.instantiate(&mut store).await?;
    match start.call_async(&mut store, ()).await {
        Err(error) if error.downcast_ref::<I32Exit>().is_none_or(|exit| exit.0 != 0) => return Err(error),
        _ => {}
    }
    store.data().output.lock().finish()
}

/// A request's body, read by whoever holds a handle of standard input.
#[derive(Clone)]
struct Input(Shared<Stdin>);

impl IsTerminal for Input {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdinStream for Input {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(self.clone())
    }
}

impl AsyncRead for Input {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let mut reading = self.0.lock();
        while reading.piece.is_empty() {
            match ready!(Pin::new(&mut reading.body).poll_frame(cx)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(std::io::Error::other(error))),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        reading.piece = data;
                    }
                }
            }
        }
        let length = reading.piece.len().min(buffer.remaining());
        buffer.put_slice(&reading.piece[..length]);
        reading.piece.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// Standard output, which is the answer.
#[derive(Clone)]
struct Answer(Shared<Output>);

impl IsTerminal for Answer {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Answer {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for Answer {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        let mut output = self.0.lock();
        if output.is_ahead() {
            return Poll::Pending;
        }
        Poll::Ready(
            output
                .write(bytes)
                .map(|()| bytes.len())
                .map_err(|error| std::io::Error::other(error.to_string())),
        )
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[async_trait::async_trait]
impl Pollable for Answer {
    /// The reader of the answer polls the guest again after it has taken something, so that nobody needs waking.
    async fn ready(&mut self) {
        std::future::poll_fn(|_| match self.0.lock().is_ahead() {
            true => Poll::Pending,
            false => Poll::Ready(()),
        })
        .await;
    }
}

impl OutputStream for Answer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.lock().write(&bytes).map_err(StreamError::Trap)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        const ROOM: usize = 64 * 1024;
        Ok(if self.0.lock().is_ahead() { 0 } else { ROOM })
    }
}
