//! Components of `wasi:http`: what the host keeps for one, and how a request reaches one of 0.2 (see `http03` for the
//! other).

use std::{sync::Arc, time::Duration};

use http::{HeaderValue, header};
use sas_core::{BoxError, Request, RequestId};
use tokio::{sync::oneshot, time::Instant};
use wasmtime::{
    Engine, Store,
    component::{Resource, ResourceTable},
};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{
    Error, WasiHttpCtx, WasiHttpCtxView, WasiHttpView,
    p2::{
        bindings::{
            Proxy, ProxyPre,
            http::types::{ErrorCode, Scheme},
        },
        body::HyperOutgoingBody,
        types::{HostIncomingRequest, HostResponseOutparam},
    },
    p3::bindings::{Service, ServicePre},
};

use wasmtime_wasi_io::IoView;

use crate::{
    admission::{Keep, Place},
    http03,
    instance::WasmInstance,
    limits::{Limiter, Meter},
    outbound::Outbound,
    run::Work,
    sandbox::{Limited, Sandbox, store},
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
    pub(crate) fn new(sandbox: Sandbox, meter: Arc<Meter>) -> Self {
        let instance = sandbox.instance();
        let function = instance.function();
        let outbound =
            Outbound { options: Arc::clone(&function.options), outside: Arc::clone(&function.host.outside) };
        Self {
            limiter: sandbox.limiter(meter),
            sandbox,
            outbound,
            table: ResourceTable::new(),
            http: WasiHttpCtx::new(),
            wasi: None,
        }
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

/// A component that was linked, by the version of WASI that it speaks.
pub(crate) enum Linked {
    Http02(ProxyPre<HttpGuest>),
    Http03(ServicePre<HttpGuest>),
}

impl Linked {
    fn engine(&self) -> &Engine {
        match self {
            Self::Http02(pre) => pre.engine(),
            Self::Http03(pre) => pre.engine(),
        }
    }
}

/// The instance of a component.
enum Handler {
    Http02(Proxy),
    Http03(Service),
}

/// A sandbox that has served and may serve again.
pub(crate) struct Warm {
    store: Store<HttpGuest>,
    handler: Handler,
    served: u32,
    born: Instant,
    pub(crate) place: Option<(Place, Keep)>,
}

impl std::fmt::Debug for Warm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Warm").field("served", &self.served).finish_non_exhaustive()
    }
}

impl Warm {
    /// Whether it may serve once more.
    pub(crate) fn is_fit(&self, requests: u32, age: Duration) -> bool {
        self.served < requests && self.born.elapsed() < age
    }
}

/// A request of 0.2 in the table of its sandbox, and where the answer is to be set.
type Asked = (Resource<HostIncomingRequest>, Resource<HostResponseOutparam>);

/// Serves one request, in a fresh sandbox or in a kept one, which comes back when all went well.
///
/// What can be done at once is done at once, so that the future is small: it is made for every request.
pub(crate) fn serve(
    linked: &Arc<Linked>,
    kept: Option<Warm>,
    instance: &Arc<WasmInstance>,
    id: RequestId,
    meter: Arc<Meter>,
    request: Request,
    reply: oneshot::Sender<Reply>,
) -> Work {
    let (mut store, handler, served, born) = match kept {
        Some(mut warm) => {
            let guest = warm.store.data_mut();
            guest.sandbox.next_request(id);
            guest.limiter.next_request(meter);
            warm.store.set_epoch_deadline(1);
            (warm.store, Some(warm.handler), warm.served, warm.born)
        }
        None => {
            let guest = HttpGuest::new(Sandbox::new(instance, id), meter);
            (store(linked.engine(), guest, |guest| &mut guest.limiter), None, 0, Instant::now())
        }
    };
    let warm = move |(store, handler)| Some(Warm { store, handler, served: served + 1, born, place: None });
    let linked = Arc::clone(linked);
    if let Linked::Http03(_) = *linked {
        return Box::pin(async move { serve_03(store, linked, handler, request, reply).await.map(warm) });
    }
    let asked = ask_02(&mut store, request, reply);
    Box::pin(async move { serve_02(store, linked, handler, asked?).await.map(warm) })
}

fn ask_02(
    store: &mut Store<HttpGuest>,
    request: Request,
    reply: oneshot::Sender<Reply>,
) -> wasmtime::Result<Asked> {
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(scheme(&request), with_host(request).map(Incoming))?;
    Ok((request, http.new_response_outparam(reply)?))
}

async fn serve_02(
    mut store: Store<HttpGuest>,
    linked: Arc<Linked>,
    handler: Option<Handler>,
    (request, answer): Asked,
) -> wasmtime::Result<(Store<HttpGuest>, Handler)> {
    let proxy = match (handler, &*linked) {
        (Some(Handler::Http02(proxy)), _) => proxy,
        (_, Linked::Http02(pre)) => pre.instantiate_async(&mut store).await?,
        (_, Linked::Http03(_)) => return Err(wasmtime::Error::msg("a component of another version of WASI")),
    };
    proxy.wasi_http_incoming_handler().call_handle(&mut store, request, answer).await?;
    Ok((store, Handler::Http02(proxy)))
}

async fn serve_03(
    mut store: Store<HttpGuest>,
    linked: Arc<Linked>,
    handler: Option<Handler>,
    request: Request,
    reply: oneshot::Sender<Reply>,
) -> wasmtime::Result<(Store<HttpGuest>, Handler)> {
    let service = match (handler, &*linked) {
        (Some(Handler::Http03(service)), _) => service,
        (_, Linked::Http03(pre)) => pre.instantiate_async(&mut store).await?,
        (_, Linked::Http02(_)) => return Err(wasmtime::Error::msg("a component of another version of WASI")),
    };
    http03::handle(&mut store, &service, request, reply).await?;
    Ok((store, Handler::Http03(service)))
}

fn scheme(request: &Request) -> Scheme {
    match request.uri().scheme_str() {
        Some("https") => Scheme::Https,
        _ => Scheme::Http,
    }
}

/// A request that came without a host (HTTP/1.0, or made by the platform) gets one, as `wasi:http` asks for it.
pub(crate) fn with_host(mut request: Request) -> Request {
    if request.uri().authority().is_none() && !request.headers().contains_key(header::HOST) {
        request.headers_mut().insert(header::HOST, HeaderValue::from_static("localhost"));
    }
    request
}

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
