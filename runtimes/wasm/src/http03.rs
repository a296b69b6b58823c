//! Components of `wasi:http@0.3`: how a request reaches one, and how its answer streams.
//!
//! A guest of 0.3 is made of tasks that one event loop drives. It returns the head of its answer and goes on to write
//! the body, so that the loop turns until the body has been read and no task is left.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderValue, Uri, header, uri::Authority};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use sas_core::Request;
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime_wasi_http::{
    Error, FieldMap, WasiBody, WasiHttpView as _,
    p3::{self, bindings::Service},
};

use crate::{
    ends::BadAnswer,
    http_guest::{HttpGuest, Incoming, Reply},
};

/// Serves one request, to the last byte of its answer.
pub(crate) async fn handle(
    store: &mut Store<HttpGuest>,
    service: &Service,
    request: Request,
    reply: oneshot::Sender<Reply>,
) -> wasmtime::Result<()> {
    let (head, body) = request.into_parts();
    let authority = authority(&head.uri, head.headers.get(header::HOST));
    let uri = head.uri.into_parts();
    let (request, received) = p3::Request::new(
        head.method,
        Some(uri.scheme.unwrap_or(http::uri::Scheme::HTTP)),
        authority,
        uri.path_and_query,
        FieldMap::new_immutable(store.data_mut().http().hooks, head.headers),
        None,
        Incoming(body),
    );
    store
        .run_concurrent(async |guest| {
            let answer = service.handle(guest, request).await?;
            let answer =
                answer.map_err(|code| BadAnswer(format!("the guest answered with the error {code:?}")))?;
            let (reading, end_of_reading) = oneshot::channel();
            let answer = guest.with(|store| answer.into_http(store, received))?;
            let answer = answer.map(|body| Read { body, reading: Some(reading) }.boxed_unsync());
            // Nobody waits any more: the run is dropped in a moment, and the guest with it.
            let _ = reply.send(Ok(answer));
            let _ = end_of_reading.await;
            poll_fn(|cx| guest.poll_no_interesting_tasks(cx)).await;
            wasmtime::error::Ok(())
        })
        .await?
}

/// The host that the request is for: of its URI, or else of its header.
fn authority(uri: &Uri, host: Option<&HeaderValue>) -> Option<Authority> {
    uri.authority().cloned().or_else(|| Authority::try_from(host?.as_bytes()).ok())
}

/// A body that tells when it was read, or let go.
struct Read {
    body: WasiBody,
    reading: Option<oneshot::Sender<()>>,
}

impl http_body::Body for Read {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self.reading = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_the_uri_goes_before_the_header() {
        let host = HeaderValue::from_static("header.test:81");
        let of = |uri: &'static str, host: Option<&HeaderValue>| {
            authority(&Uri::from_static(uri), host).map(|found| found.to_string())
        };
        assert_eq!(of("http://uri.test/a", Some(&host)).as_deref(), Some("uri.test"));
        assert_eq!(of("/a", Some(&host)).as_deref(), Some("header.test:81"));
        assert_eq!(of("/a", Some(&HeaderValue::from_static("not a host"))), None);
        assert_eq!(of("/a", None), None);
    }
}
