//! Two hosts of one platform on loopback: what one is asked for and the other serves.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{
    Body, BoxError, Cx, Endpoint, HostShare, HostShares as _, Invoker as _, Payer, Protocol, RequestId,
    RouteAction, RouteRule, Split, Target, TenantKey,
};
use sas_router::{AdmissionConfig, GatewayConfig, Peers, ServerConfig};
use tokio_tungstenite::tungstenite::Message;

use crate::support::*;

const KEY: &[u8] = b"the key that all hosts of a test have";

async fn host(name: &str, key: &[u8]) -> (Platform, Arc<Peers>) {
    let peers = Peers::new(name, key).unwrap();
    let mut config = GatewayConfig::default();
    config.peers = Some(Arc::clone(&peers));
    (Platform::with(spec(), config, ServerConfig::default()).await, peers)
}

/// Host `a` passes the service on to host `b`, which serves it.
async fn pair(protocol: Protocol) -> (Platform, Platform) {
    let ((a, to_b), (b, _)) = (host("a", KEY).await, host("b", KEY).await);
    to_b.set_over("b", Endpoint::Tcp(b.address()), protocol);
    lead(&a, "b");
    (a, b)
}

fn lead(from: &Platform, peer: &str) {
    for host in [HOST, "hello.default.svc"] {
        let rule = RouteRule::new(TenantKey(1), RouteAction::Remote { peer: peer.to_owned() });
        set(&from.table, host, vec![rule]);
    }
}

#[tokio::test]
async fn a_request_goes_one_hop_and_is_the_same_request() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (a, b) = pair(protocol).await;
        b.pool.add_inside(
            b.revision,
            handler(|request| async move {
                let seen = |name: &str| {
                    let value = request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
                    value.unwrap_or_else(|| "-".to_owned())
                };
                let line = format!(
                    "{} {} {} {} {} {} {}",
                    request.method(),
                    request.uri().path_and_query().unwrap(),
                    seen("host"),
                    seen("x-forwarded-for"),
                    seen("x-sas-hop"),
                    seen("cdn-loop"),
                    seen("x-request-id"),
                );
                text(201, line)
            }),
        );
        let mut client = Client::connect(a.address()).await;
        for round in 0..2 {
            let mut request = request("PUT", "/x?y=1", "body");
            // What a client says of hops is not believed and does not reach anybody.
            request.headers_mut().insert("x-sas-hop", "v1 a b 1 1 owner traffic s=00".parse().unwrap());
            let response = client.send(request).await;
            assert_eq!(response.status(), 201, "{protocol:?}, round {round}");
            let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
            let seen = read(response).await;
            // From the client over host a, which b believes; one id all the way.
            let expected = format!("PUT /x?y=1 {HOST} 127.0.0.1, 127.0.0.1 - sas-a {id}");
            assert_eq!(seen, expected, "{protocol:?}, round {round}");
        }
        b.pool.until_idle().await;
    }
}

#[tokio::test]
async fn bodies_stream_through_both_ways() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (a, b) = pair(protocol).await;
        // Answers each piece of the request before the next one is sent.
        b.pool.add_inside(
            b.revision,
            handler(|request| async move {
                let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
                let mut upload = request.into_body();
                tokio::spawn(async move {
                    while let Some(Ok(frame)) = upload.frame().await {
                        if let Ok(data) = frame.into_data()
                            && sender.send_data(data).await.is_err()
                        {
                            return;
                        }
                    }
                });
                sas_core::Response::new(Body::new(body))
            }),
        );
        let mut client = Client::connect(a.address()).await;
        let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
        let sending = client.send(request("POST", "/", Body::new(body)));
        let (response, first) = tokio::join!(sending, sender.send_data(Bytes::from_static(b"piece 0")));
        first.unwrap();
        let mut download = response.into_body();
        for piece in 0..5 {
            let mut got = Vec::new();
            let expected = format!("piece {piece}");
            while got.len() < expected.len() {
                let frame = tokio::time::timeout(Duration::from_secs(20), download.frame()).await;
                got.extend(frame.expect("in time").unwrap().unwrap().into_data().unwrap());
            }
            assert_eq!(got, expected.as_bytes(), "{protocol:?}");
            if piece < 4 {
                sender.send_data(Bytes::from(format!("piece {}", piece + 1))).await.unwrap();
            }
        }
        drop(sender);
        assert!(download.frame().await.is_none(), "{protocol:?}: it ends");
        b.pool.until_idle().await;
    }
}

#[tokio::test]
async fn an_upgrade_goes_through_over_any_protocol_of_the_peer() {
    for protocol in [Protocol::Http1, Protocol::H2c] {
        let (a, b) = pair(protocol).await;
        let (address, mut endings) = echo("b: ").await;
        b.pool.add_at(b.revision, address);
        let stream = tokio::net::TcpStream::connect(a.address()).await.unwrap();
        let (mut socket, _) =
            tokio_tungstenite::client_async(format!("ws://{HOST}/chat"), stream).await.unwrap();
        for round in 0..3 {
            socket.send(Message::text(format!("{round}"))).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(format!("b: {round}")));
        }
        socket.close(None).await.unwrap();
        endings.recv().await.unwrap();
        b.pool.until_idle().await;
    }
}

#[tokio::test]
async fn a_circle_ends_with_508_also_where_the_keys_differ() {
    for key in [KEY, b"some other key that is as long as it is".as_slice()] {
        let ((a, to_b), (b, to_a)) = (host("a", KEY).await, host("b", key).await);
        to_b.set("b", Endpoint::Tcp(b.address()));
        to_a.set("a", Endpoint::Tcp(a.address()));
        lead(&a, "b");
        lead(&b, "a");
        let mut client = Client::connect(a.address()).await;
        let response = client.send(get("/")).await;
        assert_eq!(response.status(), 508);
        let said = json(response).await;
        assert_eq!((&said["component"], &said["reason"]), (&"router".into(), &"loop".into()));
    }
}

#[tokio::test]
async fn what_is_left_of_the_time_goes_along() {
    let (a, b) = pair(Protocol::Http1).await;
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Remote { peer: "b".to_owned() });
    rule.timeout = Duration::from_millis(300);
    set(&a.table, HOST, vec![rule]);
    // Its own route gives it 300 s.
    b.pool.add_inside(b.revision, handler(|_| std::future::pending()));
    let mut client = Client::connect(a.address()).await;
    let response = client.send(get("/")).await;
    assert_eq!(response.status(), 504);
    b.pool.until_idle().await;
}

#[tokio::test]
async fn calls_of_the_platform_go_along_and_are_admitted_where_they_are_served() {
    let quotas = |rate: f64| {
        let mut admission = AdmissionConfig::default();
        admission.per_tenant = sas_core::Quota::rate(rate, 1);
        sas_router::Admission::new(admission)
    };
    let peers = Peers::new("a", KEY).unwrap();
    let mut config = GatewayConfig::default();
    config.peers = Some(Arc::clone(&peers));
    // Nothing is let in here that is served here.
    config.admission = quotas(0.0);
    let a = Platform::with(spec(), config, ServerConfig::default()).await;
    let mut config = GatewayConfig::default();
    config.peers = Some(Peers::new("b", KEY).unwrap());
    config.admission = quotas(0.001);
    let b = Platform::with(spec(), config, ServerConfig::default()).await;
    b.pool.add_inside(b.revision, handler(|_| async { text(200, "served") }));
    peers.set("b", Endpoint::Tcp(b.address()));
    lead(&a, "b");
    let call = async |payer| {
        let cx = Cx::new(payer, RequestId(7), deadline());
        let answer = a.gateway.invoke(Target::Service("default/hello".into()), get("/"), &cx).await;
        answer.map(|response| response.status().as_u16()).map_err(|error| error.error.message)
    };
    assert_eq!(call(Payer::Owner).await, Ok(200));
    assert_eq!(call(Payer::Owner).await, Ok(429), "the owner's quota is used up, at b");
    assert_eq!(call(Payer::Tenant(TenantKey(5))).await, Ok(200), "another one pays, also at b");
    // From outside nobody gets at names of the inside.
    let mut client = Client::connect(b.address()).await;
    let mut inside = get("/");
    inside.headers_mut().insert("host", "hello.default.svc".parse().unwrap());
    assert_eq!(client.send(inside).await.status(), 404);
}

#[tokio::test]
async fn a_host_that_is_not_there_is_said() {
    let (a, peers) = host("a", KEY).await;
    lead(&a, "b");
    let mut client = Client::connect(a.address()).await;
    let reason = async |client: &mut Client| {
        let response = client.send(get("/")).await;
        let status = response.status().as_u16();
        (status, json(response).await["reason"].as_str().unwrap().to_owned())
    };
    assert_eq!(reason(&mut client).await, (503, "no_such_peer".to_owned()));
    let nobody = tokio::net::TcpListener::bind(loopback()).await.unwrap();
    let address = nobody.local_addr().unwrap();
    drop(nobody);
    peers.set("b", Endpoint::Tcp(address));
    assert_eq!(reason(&mut client).await, (503, "unreachable".to_owned()));
    let (b, _) = host("b", KEY).await;
    b.pool.add_inside(b.revision, handler(|_| async { text(200, "b") }));
    peers.set("b", Endpoint::Tcp(b.address()));
    assert_eq!(client.send(get("/")).await.status(), 200, "it is back, elsewhere");
    peers.remove("b");
    assert_eq!(reason(&mut client).await, (503, "no_such_peer".to_owned()));
}

/// A platform whose function says which host it is on.
async fn named(name: &'static str) -> (Platform, Arc<Peers>) {
    let (host, peers) = host(name, KEY).await;
    let answer = move |request: sas_core::Request| async move {
        let passed = request.headers().get_all("cdn-loop").iter();
        let passed: Vec<&str> = passed.map(|value| value.to_str().unwrap()).collect();
        text(200, format!("{name} after {}", passed.join(", ")))
    };
    host.pool.add_inside(host.revision, handler(answer));
    (host, peers)
}

#[tokio::test]
async fn a_request_waits_while_its_host_is_about_to_act_or_can_not_be_reached_and_nothing_was_sent() {
    let ((a, peers), (b, _)) = (named("a").await, named("b").await);
    // Without a wait it fails at once, and says when to come back.
    lead(&a, "a");
    let mut client = Client::connect(a.address()).await;
    let response = client.send(request("POST", "/", "body")).await;
    assert_eq!((response.status().as_u16(), response.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(json(response).await["reason"], "moving");

    peers.set_hold(Duration::from_secs(5));
    let asking = tokio::spawn(async move { read(client.send(request("POST", "/", "body")).await).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asking.is_finished(), "it waits");
    route(&a.table, HOST, a.revision);
    assert_eq!(asking.await.unwrap(), "a after ", "this host acts by now");

    // Nobody listens where it leads, and then the host is elsewhere.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    peers.set_over("b", Endpoint::Tcp(nobody), Protocol::H2c);
    lead(&a, "b");
    let mut client = Client::connect(a.address()).await;
    let asking = tokio::spawn(async move { read(client.send(request("POST", "/", "body")).await).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asking.is_finished(), "it waits");
    peers.set_over("b", Endpoint::Tcp(b.address()), Protocol::H2c);
    assert_eq!(asking.await.unwrap(), "b after sas-a", "passed on once, whatever was tried before");

    // Not for ever.
    peers.set_hold(Duration::from_millis(100));
    lead(&a, "a");
    let mut client = Client::connect(a.address()).await;
    assert_eq!(client.send(get("/")).await.status(), 503);
}

#[tokio::test]
async fn hosts_that_gave_a_service_away_pass_its_requests_on_up_to_four_times() {
    let mut hosts = Vec::new();
    for name in ["a", "b", "c", "d", "e", "f"] {
        hosts.push((name, named(name).await));
    }
    for two in hosts.windows(2) {
        let [(_, (from, peers)), (name, (to, _))] = two else { unreachable!("two of them") };
        peers.set_over(*name, Endpoint::Tcp(to.address()), Protocol::H2c);
        lead(from, name);
    }
    let (e, of_e) = &hosts[4].1;
    let mut client = Client::connect(hosts[0].1.0.address()).await;
    assert_eq!(client.send(get("/")).await.status(), 508, "without views a second hop is a mistake");
    for (_, (_, peers)) in &hosts {
        peers.set_view(7);
    }
    // And no fifth.
    assert_eq!(client.send(get("/")).await.status(), 508);
    route(&e.table, HOST, e.revision);
    assert_eq!(read(client.send(get("/")).await).await, "e after sas-a, sas-b, sas-c, sas-d");
    // But what the others know before e does is waited for.
    lead(e, "f");
    of_e.set_hold(Duration::from_secs(5));
    let asking = tokio::spawn(async move { read(client.send(get("/")).await).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asking.is_finished(), "it waits");
    route(&e.table, HOST, e.revision);
    assert_eq!(asking.await.unwrap(), "e after sas-a, sas-b, sas-c, sas-d", "e was about to act");
}

/// As when hosts are replaced one after the other: `a` passes on to `b`, which has given the service to `c`, which has it given
/// back to `a` meanwhile.
#[tokio::test]
async fn a_request_comes_back_to_a_host_that_acts_for_it_by_then() {
    let ((a, of_a), (b, of_b), (c, of_c)) = (named("a").await, named("b").await, named("c").await);
    of_a.set_over("b", Endpoint::Tcp(b.address()), Protocol::H2c);
    of_b.set_over("c", Endpoint::Tcp(c.address()), Protocol::H2c);
    of_c.set_over("a", Endpoint::Tcp(a.address()), Protocol::H2c);
    for peers in [&of_a, &of_b, &of_c] {
        peers.set_hold(Duration::from_secs(5));
        peers.set_view(1);
    }
    lead(&a, "b");
    lead(&b, "c");
    // It waits there, until c knows that it has given the service away.
    lead(&c, "c");
    let mut client = Client::connect(a.address()).await;
    let asking = tokio::spawn(async move { read(client.send(get("/")).await).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asking.is_finished(), "it waits");
    route(&a.table, HOST, a.revision);
    lead(&c, "a");
    assert_eq!(asking.await.unwrap(), "a after sas-a, sas-b, sas-c");
}

#[tokio::test]
async fn a_host_that_knows_less_than_the_one_that_passed_a_request_on_waits_until_it_knows_as_much() {
    let ((a, to_b), (b, of_b)) = (named("a").await, named("b").await);
    to_b.set_over("b", Endpoint::Tcp(b.address()), Protocol::H2c);
    for peers in [&to_b, &of_b] {
        peers.set_hold(Duration::from_secs(5));
        peers.set_view(1);
    }
    lead(&a, "b");
    // b still takes a for the one that acts.
    lead(&b, "a");
    to_b.set_view(2);
    let mut client = Client::connect(a.address()).await;
    let asking = tokio::spawn(async move { read(client.send(get("/")).await).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!asking.is_finished(), "it waits");
    route(&b.table, HOST, b.revision);
    of_b.set_view(2);
    assert_eq!(asking.await.unwrap(), "b after sas-a");
}

/// A platform whose instances answer with its name, and say how often they did.
async fn answering(name: &'static str) -> (Platform, Arc<Peers>) {
    let (platform, peers) = host(name, KEY).await;
    platform.pool.add_inside(platform.revision, handler(move |_| async move { text(200, name.to_owned()) }));
    (platform, peers)
}

fn shares(hosts: &[(&str, u32)]) -> Vec<HostShare> {
    hosts.iter().map(|(host, weight)| HostShare::new(*host, *weight)).collect()
}

async fn ask(client: &mut Client) -> String {
    let response = client.send(get("/")).await;
    assert_eq!(response.status(), 200);
    read(response).await
}

#[tokio::test]
async fn requests_go_to_the_hosts_that_run_parts_and_at_last_to_the_one_that_acts() {
    let ((a, to), (b, _), (c, _)) = (host("a", KEY).await, answering("b").await, answering("c").await);
    to.set_hold(Duration::from_secs(5));
    to.set_over("b", Endpoint::Tcp(b.address()), Protocol::H2c);
    to.set_over("c", Endpoint::Tcp(c.address()), Protocol::H2c);
    let mut rule = RouteRule::new(TenantKey(1), RouteAction::Remote { peer: "b".to_owned() });
    rule.service = Some("default/hello".to_owned());
    set(&a.table, HOST, vec![rule]);
    let mut client = Client::connect(a.address()).await;
    for _ in 0..4 {
        assert_eq!(ask(&mut client).await, "b", "nobody else runs it");
    }
    a.gateway.set_hosts("default/hello", shares(&[("b", 500), ("c", 500)]));
    let mut answered = Vec::new();
    for _ in 0..40 {
        answered.push(ask(&mut client).await);
    }
    let of_c = answered.iter().filter(|name| *name == "c").count();
    assert!((8..=32).contains(&of_c), "{answered:?}");
    // One that is not there loses nothing.
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    to.set_over("c", Endpoint::Tcp(nobody), Protocol::H2c);
    for _ in 0..20 {
        assert_eq!(ask(&mut client).await, "b");
    }
    a.gateway.set_hosts("default/hello", Vec::new());
    assert_eq!(ask(&mut client).await, "b");
}

#[tokio::test]
async fn a_full_part_leaves_requests_of_clients_to_others_and_keeps_those_that_were_passed_on() {
    let ((b, to_c), (c, to_b)) = (answering("b").await, answering("c").await);
    to_c.set_over("c", Endpoint::Tcp(c.address()), Protocol::H2c);
    to_b.set_over("b", Endpoint::Tcp(b.address()), Protocol::H2c);
    for host in [&b, &c] {
        host.gateway.set_hosts("default/hello", shares(&[("b", 500), ("c", 500)]));
    }
    let mut client = Client::connect(b.address()).await;
    assert_eq!(ask(&mut client).await, "b", "it has room");
    b.pool.fill(true);
    assert_eq!(ask(&mut client).await, "c");
    // Both are full: c keeps what b passed on.
    c.pool.fill(true);
    assert_eq!(ask(&mut client).await, "c");
    // Without anybody else it stays.
    to_c.remove("c");
    assert_eq!(ask(&mut client).await, "b");
    let nobody = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    to_c.set_over("c", Endpoint::Tcp(nobody), Protocol::H2c);
    assert_eq!(ask(&mut client).await, "b", "c is not there");
    // What calls from within is passed on, too.
    to_c.set_over("c", Endpoint::Tcp(c.address()), Protocol::H2c);
    let cx = Cx::new(Payer::Owner, RequestId(7), tokio::time::Instant::now() + Duration::from_secs(9));
    let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(b.revision, 100)]));
    set(&b.table, "hello.default.svc", vec![rule]);
    let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(c.revision, 100)]));
    set(&c.table, "hello.default.svc", vec![rule]);
    let called = b.gateway.invoke(Target::Service("default/hello".into()), get("/"), &cx).await;
    assert_eq!(read(called.unwrap()).await, "c");
}
