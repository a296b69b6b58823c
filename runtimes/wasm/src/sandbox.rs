//! What all kinds of sandboxes share: their instance, their request, and the WASI context made from them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use sas_core::{Clock, LogStream, RequestId};
use tokio::{io::AsyncWrite, time::Instant};
use wasmtime::{Engine, Store, UpdateDeadline};
use wasmtime_wasi::{
    FsPerms, HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder,
    cli::{IsTerminal, StdoutStream},
    p2::{OutputStream, Pollable, StreamResult},
};

use crate::{
    context::InstanceContext,
    limits::Limiter,
    logs::Lines,
    sync::{Lock, Shared},
    usage::CallUsage,
};

/// One request on one instance.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) instance: Arc<InstanceContext>,
    pub(crate) request: RequestId,
    stdout: Option<Shared<Lines>>,
    stderr: Option<Shared<Lines>>,
}

impl Sandbox {
    pub(crate) fn new(instance: &Arc<InstanceContext>, request: RequestId) -> Self {
        Self { instance: Arc::clone(instance), request, stdout: None, stderr: None }
    }

    /// The sandbox is kept and takes another request.
    pub(crate) fn next_request(&mut self, request: RequestId) {
        self.request = request;
        let budget = self.instance.function.options.limits.log_bytes;
        for lines in [&self.stdout, &self.stderr].into_iter().flatten() {
            lines.lock().next_request(request, budget);
        }
    }

    pub(crate) fn limiter(&self, usage: Arc<CallUsage>) -> Limiter {
        let function = &self.instance.function;
        Limiter::new(function.options.limits, usage, Arc::clone(&self.instance))
    }

    pub(crate) fn lines(&self, stream: LogStream) -> Lines {
        let instance = &self.instance;
        let function = &instance.function;
        Lines::new(
            Arc::clone(&instance.logs),
            Arc::clone(&function.host.config.clock),
            instance.id,
            instance.revision,
            self.request,
            stream,
            function.options.limits.log_bytes,
        )
    }

    /// The context of a component: its output goes to the logs.
    pub(crate) fn wasi(&mut self) -> WasiCtx {
        let stdout = Arc::new(Lock::new(self.lines(LogStream::Stdout)));
        let stderr = Arc::new(Lock::new(self.lines(LogStream::Stderr)));
        let mut builder = self.builder();
        builder.stdout(LogStreamOut(Arc::clone(&stdout))).stderr(LogStreamOut(Arc::clone(&stderr)));
        for (name, value) in self.instance.declared() {
            builder.env(name, value);
        }
        self.stdout = Some(stdout);
        self.stderr = Some(stderr);
        builder.build()
    }

    /// Arguments, clocks and granted folders; no network.
    pub(crate) fn builder(&self) -> WasiCtxBuilder {
        let function = &self.instance.function;
        let mut builder = WasiCtxBuilder::new();
        builder
            .allow_tcp(false)
            .allow_udp(false)
            .wall_clock(Wall(Arc::clone(&function.host.config.clock)))
            .monotonic_clock(Monotonic(function.host.started));
        for argument in
            function.arguments.bytes.split(|byte| *byte == 0).take(function.arguments.count as usize)
        {
            builder.arg(String::from_utf8_lossy(argument));
        }
        for directory in &function.options.directories {
            let perms = if directory.writable { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
            // A folder that has vanished since it was granted is one that the guest does not find.
            if let Err(error) = builder.preopened_dir(&directory.host, &directory.guest, perms) {
                tracing::warn!(%error, folder = %directory.host.display(), "a granted folder can't be opened");
            }
        }
        builder
    }
}

/// A store with its limits and its time slices.
pub(crate) fn store<T: Limited + 'static>(
    engine: &Engine,
    data: T,
    limiter: fn(&mut T) -> &mut Limiter,
) -> Store<T> {
    let mut store = Store::new(engine, data);
    store.limiter(move |data| limiter(data));
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback(|store| {
        store.data().limits().tick()?;
        Ok(UpdateDeadline::Yield(1))
    });
    store
}

/// Data of a store that is limited.
pub(crate) trait Limited {
    fn limits(&self) -> &Limiter;
}

struct Wall(Arc<dyn Clock>);

impl HostWallClock for Wall {
    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }

    fn now(&self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.now().0).unwrap_or(0))
    }
}

struct Monotonic(Instant);

impl HostMonotonicClock for Monotonic {
    fn resolution(&self) -> u64 {
        1_000
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// A stream of a guest that becomes log lines.
#[derive(Clone)]
pub(crate) struct LogStreamOut(pub(crate) Shared<Lines>);

impl IsTerminal for LogStreamOut {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStreamOut {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for LogStreamOut {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.0.lock().write(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Logs never hold a guest up, so that a stream of them always has room.
const ROOM: usize = 64 * 1024;

#[async_trait::async_trait]
impl Pollable for LogStreamOut {
    async fn ready(&mut self) {}
}

impl OutputStream for LogStreamOut {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.0.lock().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(ROOM)
    }
}
