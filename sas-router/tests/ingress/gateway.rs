//! Requests through ingress, gateway and real connections to instances.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt as _;
use sas_core::{Body, CallTimings, Cx, ErrorKind, Invoker, Outcome, Purpose, RequestId, Target, TenantKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::*;

#[tokio::test]
async fn a_request_reaches_the_instance_and_its_answer_the_client() {
    let platform = Platform::start().await;
    let instance = instance(handler(|request| async move {
        let (head, body) = request.into_parts();
        let seen = |name: &str| head.headers[name].to_str().unwrap().to_owned();
        let facts =
            format!("{} {} {} {}", head.uri, seen("host"), seen("x-forwarded-for"), seen("x-request-id"));
        let body = body.collect(100).await.unwrap();
        text(201, format!("{facts} {}", String::from_utf8_lossy(&body)))
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(request("POST", "/a?b=c", "payload")).await;
    assert_eq!(response.status(), 201);
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    assert_eq!(read(response).await, format!("/a?b=c {HOST} 127.0.0.1 {id} payload"));
    platform.pool.until_idle().await;
    assert!(platform.pool.outcomes().iter().all(|(_, outcome)| *outcome == Outcome::Ok));
}

#[tokio::test]
async fn connections_to_instances_are_used_again() {
    let platform = Platform::start().await;
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                }
            });
        }
    });
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..50 {
        assert_eq!(read(client.send(get("/")).await).await, "ok");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_unknown_host_gets_json_with_the_reason() {
    let platform = Platform::start().await;
    let mut client = Client::connect(platform.address()).await;
    let mut unknown = get("/");
    unknown.headers_mut().insert("host", "nobody.example.com".parse().unwrap());
    let response = client.send(unknown).await;
    assert_eq!(response.status(), 404);
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let error = json(response).await;
    assert_eq!((&error["component"], &error["reason"]), (&"router".into(), &"no_route".into()));
    assert_eq!(error["request_id"], id.as_str());
}

#[tokio::test]
async fn a_full_queue_is_said_at_once() {
    let platform = Platform::start().await;
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(get("/")).await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(json(response).await["reason"], "queue_full");
}

#[tokio::test]
async fn the_internal_host_is_not_reachable_from_outside() {
    let platform = Platform::start().await;
    platform.pool.add_inside(platform.revision, handler(|_| async { text(200, "inside") }));
    let mut client = Client::connect(platform.address()).await;
    for host in ["hello.default.svc", "HELLO.default.SVC", "hello.default.svc."] {
        let mut request = get("/");
        request.headers_mut().insert("host", host.parse().unwrap());
        assert_eq!(client.send(request).await.status(), 404, "{host}");
    }
    let cx = Cx::new(TenantKey(1), RequestId(7), deadline());
    let call = http::Request::new(Body::empty());
    let response = platform.gateway.invoke(Target::Service("default/hello".into()), call, &cx).await.unwrap();
    assert_eq!(response.status(), 200);
    let timings = response.extensions().get::<CallTimings>().unwrap().clone();
    assert!(timings.instance.is_some() && !timings.cold && timings.total >= timings.first_byte);
}

#[tokio::test]
async fn a_call_of_nothing_hands_the_request_back() {
    let platform = Platform::start().await;
    let cx = Cx::new(TenantKey(1), RequestId(7), deadline());
    let call = http::Request::new(Body::from("keep me"));
    let target = Target::Service("default/nobody".into());
    let error = platform.gateway.invoke(target, call, &cx).await.unwrap_err();
    assert_eq!(error.error.kind, ErrorKind::NotFound);
    assert_eq!(error.unsent.unwrap().into_body().collect(100).await.unwrap(), "keep me");
}

#[tokio::test]
async fn a_probe_does_not_wake() {
    let platform = Platform::start().await;
    let cx = Cx::new(TenantKey(1), RequestId(7), deadline()).for_purpose(Purpose::Probe);
    let call = http::Request::new(Body::empty());
    let error = platform.gateway.invoke(Target::Revision(platform.revision), call, &cx).await.unwrap_err();
    assert!(error.error.message.contains("asleep"), "{}", error.error);
}

#[tokio::test]
async fn an_instance_that_is_gone_is_passed_over_whatever_the_method() {
    let platform = Platform::start().await;
    let gone = tokio::net::TcpListener::bind(loopback()).await.unwrap().local_addr().unwrap();
    let lost = platform.pool.add_at(platform.revision, gone);
    let instance = instance(handler(|request| async move {
        let body = request.into_body().collect(100).await.unwrap();
        text(200, String::from_utf8_lossy(&body))
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..4 {
        assert_eq!(read(client.send(request("POST", "/", "once")).await).await, "once");
    }
    platform.pool.until_idle().await;
    assert!(platform.pool.outcomes().contains(&(lost, Outcome::Lost)));
}

/// Reads a request's head, and then closes without an answer.
async fn closes_without_answer() -> (std::net::SocketAddr, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    (address, requests)
}

#[tokio::test]
async fn what_is_idempotent_is_sent_again_and_what_is_not_is_lost_with_the_instance() {
    let platform = Platform::start().await;
    let (address, requests) = closes_without_answer().await;
    let good = instance(handler(|_| async { text(200, "good") })).await;
    let mut client = Client::connect(platform.address()).await;

    platform.pool.add_at(platform.revision, address);
    platform.pool.add_at(platform.revision, good.local_addr());
    // The turn is the pool's; one of two calls meets the bad one, which leaves the pool then.
    for _ in 0..2 {
        assert_eq!(read(client.send(get("/")).await).await, "good");
    }
    assert_eq!(requests.load(Ordering::SeqCst), 1);

    platform.pool.add_at(platform.revision, address);
    let mut lost = 0;
    for _ in 0..3 {
        let response = client.send(request("POST", "/", "once")).await;
        if response.status() == 502 {
            assert_eq!(json(response).await["reason"], "instance_lost");
            lost += 1;
        } else {
            assert_eq!(read(response).await, "good");
        }
    }
    assert_eq!((lost, requests.load(Ordering::SeqCst)), (1, 2), "sent once, and not again");
}

#[tokio::test]
async fn a_kept_connection_that_the_instance_closed_loses_no_post() {
    let platform = Platform::start().await;
    let listener = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    platform.pool.add_at(platform.revision, listener.local_addr().unwrap());
    let (closed, mut was_closed) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            // One answer per connection, which then ends without having said so.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 4096];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
            drop(stream);
            closed.send(()).await.unwrap();
        }
    });
    let mut client = Client::connect(platform.address()).await;
    for _ in 0..20 {
        let response = client.send(request("POST", "/", "x")).await;
        assert_eq!(response.status(), 200);
        assert_eq!(read(response).await, "ok");
        was_closed.recv().await.unwrap();
    }
}

#[tokio::test]
async fn an_instance_that_does_not_answer_in_time_gives_504() {
    let mut slow = spec();
    slow.timeouts.response_start = Duration::from_millis(50);
    let platform = Platform::with(slow, Default::default(), Default::default()).await;
    let instance = instance(handler(|_| std::future::pending())).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let response = client.send(get("/")).await;
    assert_eq!(response.status(), 504);
    assert_eq!(json(response).await["reason"], "timeout");
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_streamed_answer_holds_its_slot_to_the_last_byte() {
    let platform = Platform::start().await;
    let (feed, lines) = tokio::sync::mpsc::channel::<&'static str>(1);
    let lines = Arc::new(tokio::sync::Mutex::new(Some(lines)));
    let instance = instance(handler(move |_| {
        let lines = Arc::clone(&lines);
        async move {
            let mut lines = lines.lock().await.take().unwrap();
            let (mut sender, body) =
                http_body_util::channel::Channel::<bytes::Bytes, sas_core::BoxError>::new(1);
            tokio::spawn(async move {
                while let Some(line) = lines.recv().await {
                    sender.send_data(line.into()).await.unwrap();
                }
            });
            sas_core::Response::new(Body::new(body))
        }
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let mut response = client.send(get("/")).await;
    for line in ["one", "two", "three"] {
        feed.send(line).await.unwrap();
        assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), line);
        assert_eq!(platform.pool.leases(), 1, "after {line}");
    }
    drop(feed);
    assert!(response.frame().await.is_none());
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_client_that_leaves_gives_the_slot_back() {
    let platform = Platform::start().await;
    let instance = instance(handler(|_| std::future::pending())).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut stream = tokio::net::TcpStream::connect(platform.address()).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await.unwrap();
    while platform.pool.leases() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(stream);
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn requests_finish_while_the_server_shuts_down() {
    let platform = Platform::start().await;
    let instance = instance(handler(|_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        text(200, "finished")
    }))
    .await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let idle = Client::connect(platform.address()).await;
    let address = platform.address();
    let asking = tokio::spawn(async move { read(client.send(get("/")).await).await });
    while platform.pool.leases() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    platform.server.shutdown(deadline()).await;
    assert_eq!(asking.await.unwrap(), "finished");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the listener is closed");
    drop(idle);
}

#[tokio::test]
async fn what_does_not_finish_is_ended_at_the_deadline() {
    let platform = Platform::start().await;
    let instance = instance(handler(|_| std::future::pending())).await;
    platform.pool.add_at(platform.revision, instance.local_addr());
    let mut client = Client::connect(platform.address()).await;
    let asking = tokio::spawn(async move { client.try_send(get("/")).await });
    while platform.pool.leases() == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    platform.server.shutdown(tokio::time::Instant::now() + Duration::from_millis(50)).await;
    assert!(asking.await.unwrap().is_err());
    platform.pool.until_idle().await;
}

#[tokio::test]
async fn a_call_of_the_platforms_own_is_held_to_the_time_limit_of_the_service() {
    let mut spec = spec();
    spec.timeouts.request = Duration::from_millis(200);
    let platform = Platform::with(spec, Default::default(), Default::default()).await;
    platform.pool.add_inside(
        platform.revision,
        handler(|_| async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            text(200, "too late")
        }),
    );
    let began = tokio::time::Instant::now();
    let cx = Cx::new(TenantKey(1), RequestId(1), began + Duration::from_secs(3600));
    let error =
        platform.gateway.invoke(Target::Revision(platform.revision), get("/"), &cx).await.unwrap_err();
    assert_eq!(error.error.kind, ErrorKind::Timeout, "{error}");
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
