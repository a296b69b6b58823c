//! Components of `wasi:http@0.2`: how a request reaches one.

use http::{HeaderValue, header};
use sas_core::Request;
use tokio::sync::oneshot;
use wasmtime::{Store, component::Resource};
use wasmtime_wasi_http::{
    WasiHttpView as _,
    p2::{
        bindings::{Proxy, http::types::Scheme},
        types::{HostIncomingRequest, HostResponseOutparam},
    },
};

use crate::http_guest::{HttpGuest, Incoming, Reply};

/// A request of 0.2 in the table of its sandbox, and where the answer is to be set.
pub(crate) type Asked = (Resource<HostIncomingRequest>, Resource<HostResponseOutparam>);

/// Puts a request into the table of its sandbox. Done before the guest is made, so that its future is small.
pub(crate) fn ask(
    store: &mut Store<HttpGuest>,
    request: Request,
    reply: oneshot::Sender<Reply>,
) -> wasmtime::Result<Asked> {
    let mut http = store.data_mut().http();
    let request = http.new_incoming_request(scheme(&request), with_host(request).map(Incoming))?;
    Ok((request, http.new_response_outparam(reply)?))
}

/// Serves one request, to the last byte of its answer.
pub(crate) async fn handle(
    store: &mut Store<HttpGuest>,
    proxy: &Proxy,
    (request, answer): Asked,
) -> wasmtime::Result<()> {
    proxy.wasi_http_incoming_handler().call_handle(store, request, answer).await
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
