//! What the host keeps for one component of `wasi:http`, whichever version of WASI it speaks.

use std::sync::Arc;

use sas_core::{BoxError, RequestId};
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    Error, WasiHttpCtx, WasiHttpCtxView, WasiHttpView,
    p2::{bindings::http::types::ErrorCode, body::HyperOutgoingBody},
};
use wasmtime_wasi_io::IoView;

use crate::{
    limits::Limiter,
    outbound::Outbound,
    sandbox::{Limited, Sandbox},
    usage::CallUsage,
};

/// What the host keeps for one component. The WASI context is made when the guest first asks for something of it.
pub(crate) struct HttpGuest {
    pub(crate) limiter: Limiter,
    sandbox: Sandbox,
    outbound: Outbound,
    table: ResourceTable,
    http: WasiHttpCtx,
    wasi: Option<Box<WasiCtx>>,
}

impl HttpGuest {
    pub(crate) fn new(sandbox: Sandbox, usage: Arc<CallUsage>) -> Self {
        let function = &sandbox.instance.function;
        let outbound =
            Outbound { options: Arc::clone(&function.options), outside: Arc::clone(&function.host.outside) };
        Self {
            limiter: sandbox.limiter(usage),
            sandbox,
            outbound,
            table: ResourceTable::new(),
            http: WasiHttpCtx::new(),
            wasi: None,
        }
    }

    /// The sandbox is kept and takes another request.
    pub(crate) fn next_request(&mut self, request: RequestId, usage: Arc<CallUsage>) {
        self.sandbox.next_request(request);
        self.limiter.next_request(usage);
    }
}

impl Limited for HttpGuest {
    fn limits(&self) -> &Limiter {
        &self.limiter
    }
}

impl IoView for HttpGuest {
    fn table(&mut self) -> &mut ResourceTable {
        &mut self.table
    }
}

impl WasiView for HttpGuest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let Self { wasi, table, sandbox, .. } = self;
        WasiCtxView { ctx: wasi.get_or_insert_with(|| Box::new(sandbox.wasi())), table }
    }
}

impl WasiHttpView for HttpGuest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outbound, table: &mut self.table, ctx: &mut self.http }
    }
}

/// What a component sets its answer through.
pub(crate) type Reply = Result<http::Response<HyperOutgoingBody>, ErrorCode>;

/// A request's body as the guest's host functions want it.
pub(crate) struct Incoming(pub(crate) sas_core::Body);

impl http_body::Body for Incoming {
    type Data = bytes::Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Error>>> {
        let failed = |error: BoxError| Error::InternalError(Some(error.to_string()));
        std::pin::Pin::new(&mut self.0).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(failed)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}
