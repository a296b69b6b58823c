//! Components of `wasi:http`: linked ones, kept ones, and the work on one request.

use std::{pin::Pin, sync::Arc, time::Duration};

use sas_core::{Request, RequestId};
use tokio::{sync::oneshot, time::Instant};
use wasmtime::{Engine, Store};
use wasmtime_wasi_http::{
    p2::bindings::{Proxy, ProxyPre},
    p3::bindings::{Service, ServicePre},
};

use crate::{
    context::InstanceContext,
    http_guest::{HttpGuest, Reply},
    http02::{self, Asked},
    http03,
    sandbox::{Sandbox, store},
    slots::{Keep, SlotPermit},
    usage::CallUsage,
};

/// A guest's work. It gives its sandbox back when that may serve again.
pub(crate) type Work = Pin<Box<dyn Future<Output = wasmtime::Result<Option<Warm>>> + Send>>;

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
    pub(crate) place: Option<(SlotPermit, Keep)>,
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

/// Serves one request, in a fresh sandbox or in a kept one, which comes back when all went well.
///
/// What can be done at once is done at once, so that the future is small: it is made for every request.
pub(crate) fn serve(
    linked: &Arc<Linked>,
    kept: Option<Warm>,
    instance: &Arc<InstanceContext>,
    id: RequestId,
    usage: Arc<CallUsage>,
    request: Request,
    reply: oneshot::Sender<Reply>,
) -> Work {
    let (mut store, handler, served, born) = match kept {
        Some(mut warm) => {
            warm.store.data_mut().next_request(id, usage);
            warm.store.set_epoch_deadline(1);
            (warm.store, Some(warm.handler), warm.served, warm.born)
        }
        None => {
            let guest = HttpGuest::new(Sandbox::new(instance, id), usage);
            (store(linked.engine(), guest, |guest| &mut guest.limiter), None, 0, Instant::now())
        }
    };
    let warm = move |(store, handler)| Some(Warm { store, handler, served: served + 1, born, place: None });
    let linked = Arc::clone(linked);
    if let Linked::Http03(_) = *linked {
        return Box::pin(async move { serve_03(store, linked, handler, request, reply).await.map(warm) });
    }
    let asked = http02::ask(&mut store, request, reply);
    Box::pin(async move { serve_02(store, linked, handler, asked?).await.map(warm) })
}

async fn serve_02(
    mut store: Store<HttpGuest>,
    linked: Arc<Linked>,
    handler: Option<Handler>,
    asked: Asked,
) -> wasmtime::Result<(Store<HttpGuest>, Handler)> {
    let proxy = match (handler, &*linked) {
        (Some(Handler::Http02(proxy)), _) => proxy,
        (_, Linked::Http02(pre)) => pre.instantiate_async(&mut store).await?,
        (_, Linked::Http03(_)) => return Err(wasmtime::Error::msg("a component of another version of WASI")),
    };
    http02::handle(&mut store, &proxy, asked).await?;
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
