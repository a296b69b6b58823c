//! Real connections to servers that answer well, badly, late or not at all.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sas_core::{Endpoint, ExecOutput, Probe, ProbeAction};
use tokio::net::TcpListener;

fn at(address: SocketAddr) -> Endpoint {
    Endpoint::Tcp(address)
}

fn http(path: &str) -> Probe {
    Probe::new(ProbeAction::Http {
        path: path.into(),
        port: None,
        headers: vec![("X-Probe".into(), "1".into())],
    })
}

fn grpc(service: Option<&str>) -> Probe {
    Probe::new(ProbeAction::Grpc { port: None, service: service.map(str::to_owned) })
}

/// Answers `/N` with the status N.
async fn http_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.headers()["x-probe"], "1");
                    let status: u16 = request.uri().path()[1..].parse().unwrap_or(404);
                    if status == 99 {
                        std::future::pending::<()>().await;
                    }
                    Ok::<_, Infallible>(
                        http::Response::builder().status(status).body(Full::new(Bytes::new())).unwrap(),
                    )
                });
            tokio::spawn(
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

/// A health service that serves, but not the service `down`, and knows no `other`.
async fn grpc_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service =
                hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                    let asked = request.into_body().collect().await.unwrap().to_bytes();
                    let asked = String::from_utf8_lossy(asked.get(7..).unwrap_or_default()).into_owned();
                    let (status, serving) = match asked.as_str() {
                        "" | "up" => ("0", 1),
                        "down" => ("0", 2),
                        _ => ("5", 0),
                    };
                    let mut trailers = http::HeaderMap::new();
                    trailers.insert("grpc-status", status.parse().unwrap());
                    let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]);
                    let frames = [hyper::body::Frame::data(message), hyper::body::Frame::trailers(trailers)];
                    let body = StreamBody::new(Frames(frames.into_iter().collect()));
                    Ok::<_, Infallible>(http::Response::new(body))
                });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    address
}

type Frame = hyper::body::Frame<Bytes>;

struct Frames(std::collections::VecDeque<Frame>);

impl futures_util::Stream for Frames {
    type Item = Result<Frame, Infallible>;
    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::task::Poll::Ready(self.0.pop_front().map(Ok))
    }
}

#[tokio::test]
async fn a_status_of_200_to_399_is_success_and_others_are_named() {
    let server = at(http_server().await);
    for good in ["/200", "/204", "/302", "/399"] {
        sas_probe::endpoint(&http(good), &server).await.unwrap();
    }
    for bad in ["/400", "/503"] {
        let failure = sas_probe::endpoint(&http(bad), &server).await.unwrap_err();
        assert!(failure.connected && failure.message.contains(&bad[1..]), "{failure}");
        assert!(failure.message.contains(&server.to_string()), "it names the address: {failure}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_given_up_after_the_probes_own_time() {
    let server = at(http_server().await);
    let mut probe = http("/99");
    probe.timeout = Duration::from_millis(50);
    let failure = sas_probe::endpoint(&probe, &server).await.unwrap_err();
    assert!(failure.connected && failure.message.contains("no answer within 50ms"), "{failure}");
}

#[tokio::test]
async fn where_nobody_listens_nothing_is_connected() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gone = at(listener.local_addr().unwrap());
    let tcp = Probe::new(ProbeAction::Tcp { port: None });
    sas_probe::endpoint(&tcp, &gone).await.unwrap();
    drop(listener);
    for probe in [tcp, http("/200"), grpc(None)] {
        let failure = sas_probe::endpoint(&probe, &gone).await.unwrap_err();
        assert!(!failure.connected && failure.message.contains(&gone.to_string()), "{failure}");
    }
}

#[tokio::test]
async fn the_grpc_health_service_is_asked_by_the_name_of_a_service() {
    let server = at(grpc_server().await);
    sas_probe::endpoint(&grpc(None), &server).await.unwrap();
    sas_probe::endpoint(&grpc(Some("up")), &server).await.unwrap();
    let down = sas_probe::endpoint(&grpc(Some("down")), &server).await.unwrap_err();
    assert!(down.message.contains("NOT_SERVING"), "{down}");
    let unknown = sas_probe::endpoint(&grpc(Some("other")), &server).await.unwrap_err();
    assert!(unknown.message.contains("status 5"), "{unknown}");
    let no_grpc = sas_probe::endpoint(&grpc(None), &at(http_server().await)).await.unwrap_err();
    assert!(no_grpc.connected, "{no_grpc}");
}

#[tokio::test]
async fn a_probe_may_ask_another_port() {
    let server = http_server().await;
    let elsewhere = Endpoint::Tcp((server.ip(), 1).into());
    let probe = Probe::new(ProbeAction::Tcp { port: Some(server.port()) });
    sas_probe::endpoint(&probe, &elsewhere).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_command_succeeds_with_status_0_and_tells_its_words_otherwise() {
    let probe = Probe::new(ProbeAction::Exec { command: vec!["check".into(), "db".into()] });
    sas_probe::command(&probe, async { Ok(ExecOutput::new(Some(0), vec![])) }).await.unwrap();
    let failure =
        sas_probe::command(&probe, async { Ok(ExecOutput::new(Some(3), b"no db\n\n".to_vec())) }).await;
    assert_eq!(failure.unwrap_err().message, "check db: status 3: no db");
    let late = sas_probe::command(&probe, std::future::pending()).await.unwrap_err();
    assert!(late.message.contains("not done within 1s") && !late.unsupported, "{late}");
    let nobody = sas_probe::command(&probe, async { Err(sas_core::Error::unsupported("exec")) }).await;
    assert!(nobody.unwrap_err().unsupported, "who can't ask says nothing of the instance");
}
