//! Takes OTLP over HTTP as a collector does, and misbehaves as told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::{
    logs::v1::ExportLogsServiceRequest,
    metrics::v1::ExportMetricsServiceRequest,
    trace::v1::{ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse},
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::net::TcpListener;

/// What came in.
#[derive(Debug, Default)]
pub(crate) struct Received {
    pub(crate) traces: Mutex<Vec<ExportTraceServiceRequest>>,
    pub(crate) metrics: Mutex<Vec<ExportMetricsServiceRequest>>,
    pub(crate) logs: Mutex<Vec<ExportLogsServiceRequest>>,
    pub(crate) headers: Mutex<Vec<http::HeaderMap>>,
    /// So many requests are answered with 503 before one is taken.
    pub(crate) busy: AtomicU32,
    /// Spans that are refused of each request.
    pub(crate) refused: AtomicU32,
    /// Nothing is ever answered.
    pub(crate) hangs: std::sync::atomic::AtomicBool,
}

pub(crate) async fn receiver() -> (String, Arc<Received>) {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let address = listener.local_addr().unwrap();
    let received = Arc::<Received>::default();
    let shared = Arc::clone(&received);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let shared = Arc::clone(&shared);
            let service = service_fn(move |request| take(request, Arc::clone(&shared)));
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    (format!("http://{address}"), received)
}

async fn take(
    request: Request<Incoming>,
    received: Arc<Received>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    if received.hangs.load(Ordering::SeqCst) {
        std::future::pending::<()>().await;
    }
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let left = received.busy.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
    if left.is_ok() {
        let busy = Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).header("retry-after", "0");
        return Ok(busy.body(Full::default()).unwrap());
    }
    assert_eq!(head.headers["content-type"], "application/x-protobuf");
    received.headers.lock().push(head.headers);
    let mut answer = Bytes::new();
    match head.uri.path() {
        "/v1/traces" => {
            received.traces.lock().push(ExportTraceServiceRequest::decode(body).unwrap());
            let rejected_spans = i64::from(received.refused.load(Ordering::SeqCst));
            let partial = ExportTracePartialSuccess { rejected_spans, error_message: "too many".to_owned() };
            let partial_success = (rejected_spans > 0).then_some(partial);
            answer = ExportTraceServiceResponse { partial_success }.encode_to_vec().into();
        }
        "/v1/metrics" => received.metrics.lock().push(ExportMetricsServiceRequest::decode(body).unwrap()),
        "/v1/logs" => received.logs.lock().push(ExportLogsServiceRequest::decode(body).unwrap()),
        other => panic!("{other}"),
    }
    Ok(Response::new(Full::new(answer)))
}

/// Waits until something is so, for ten seconds at most.
pub(crate) async fn until(what: &str, mut is: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if is() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not come");
}
