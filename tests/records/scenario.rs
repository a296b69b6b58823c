//! A platform, killed once and started again, and two that share a state, in which a record of each kind is written.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use sas::{
    ClusterOptions,
    control::{FileUsageExport, PackageDir, UsageKey},
    core::{Event, Place, Secret, Timestamp},
    prelude::*,
};
use sas_testkit::fake::FakeClock;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    golden::Records,
    recording::{Recording, Written},
};

/// Twenty seconds before an hour ends.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_767_571_200 - 20);
pub(crate) const TOKEN: &str = "a-token-of-the-tests";

const SERVICES: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: cart
  namespace: shop
  labels: {sas.dev/app: shop, tier: web}
  annotations:
    sas.dev/function: answers
    sas.dev/rollout: canary
    sas.dev/rollout-steps: "50,100"
    sas.dev/rollout-hold: 10m
    sas.dev/rollout-max-slower: "50"
    sas.dev/no-wake: "/health"
    sas.dev/routes: '[{"tag": "first", "path": "/api", "methods": ["POST"], "headers": {"x-user": "ann"}, "cookies": {"track": "b*"}}]'
    sas.dev/quota-rate: "50"
    sas.dev/quota-concurrency: "10"
    kubernetes.io/change-cause: try NUMBER
spec:
  template:
    metadata:
      labels: {tier: web}
      annotations: {autoscaling.knative.dev/max-scale: "3", autoscaling.knative.dev/window: 6s}
    spec:
      containerConcurrency: 5
      containers:
      - env:
        - {name: VERSION, value: "NUMBER"}
        - {name: KEY, valueFrom: {secretKeyRef: {name: shop, key: key}}}
        livenessProbe: {httpGet: {path: /live, httpHeaders: [{name: x-probe, value: "1"}]}, periodSeconds: 30}
        resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: "1", memory: 128Mi}}
TRAFFIC
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: fails, namespace: shop, annotations: {sas.dev/function: fails}}
spec: {template: {spec: {containers: [{env: []}]}}}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: left, namespace: gone, annotations: {sas.dev/function: answers}}
spec: {template: {spec: {containers: [{env: []}]}}}
"#;

const OTHERS: &str = r#"
apiVersion: serving.knative.dev/v1beta1
kind: DomainMapping
metadata: {name: shop.example.com, namespace: shop}
spec: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: cart}}
---
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: default, namespace: shop, annotations: {sas.dev/ingress: open}}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: orders, namespace: shop}
spec:
  source: {kind: broker, options: {broker: default, start: earliest}}
  filter: {exact: {type: order}}
  target: {service: fails, path: /in}
  delivery: {retry: 1, backoffDelay: 10ms, orderBy: partitionkey}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: nightly, namespace: shop}
spec:
  source: {kind: cron, options: {schedule: '0 3 * * *'}}
  target: {service: cart}
---
apiVersion: sources.knative.dev/v1
kind: PingSource
metadata: {name: greets, namespace: shop}
spec:
  schedule: "0 4 * * *"
  contentType: application/json
  data: '{"hello": 1}'
  sink: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: cart}}
---
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: order, namespace: shop}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  do:
    - reserve: {call: cart, with: {item: '${ .item }'}}
    - parcel: {listen: {to: {one: {with: {type: sent}}}}}
---
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: large, namespace: shop}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  do:
    - grow: {set: {text: '${ [range(3000)] | map(tostring) | join(" ") }'}}
"#;

/// Knows one secret under any name.
#[derive(Debug)]
struct AnySecret;

#[async_trait::async_trait]
impl sas::core::SecretSource for AnySecret {
    async fn resolve(&self, _: &str, _: TenantKey) -> sas::core::Result<bytes::Bytes> {
        Ok("a secret".into())
    }
}

/// A builder with all that the records here need.
pub(crate) fn builder(store: Arc<Recording>, clock: &FakeClock) -> PlatformBuilder {
    let functions = InlineRuntime::new()
        .with("answers", |_request: Request, _cx| async { Response::new(Body::from(r#"{"done": true}"#)) })
        .with("fails", |_request: Request, _cx| async {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = http::StatusCode::BAD_REQUEST;
            response
        });
    Platform::builder()
        .runtime(functions)
        .store(store)
        .clock(clock.clone())
        .admin_token(TOKEN)
        .allow_faults()
        .secrets(AnySecret)
        .meter(|config| config.checkpoint = Duration::from_millis(50))
}

/// Asks the admin API: status and what it says.
pub(crate) async fn admin(platform: &Platform, method: &str, path: &str, body: Value) -> (u16, Value) {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("content-type", "application/json")
        .body(Body::from(text))
        .expect("a request");
    let response = platform.admin().handle(request).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect(4 << 20).await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// The same, which has to be done.
async fn done(platform: &Platform, method: &str, path: &str, body: Value) -> Value {
    let (status, said) = admin(platform, method, path, body).await;
    assert!((200..300).contains(&status), "{method} {path}: {status} {said}");
    said
}

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let late = Instant::now() + Duration::from_secs(120);
    while !holds().await {
        assert!(Instant::now() < late, "never: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn call(platform: &Platform, host: &str, later: bool) -> u16 {
    let mut request = http::Request::post(format!("http://{host}/")).header("host", host);
    if later {
        request = request.header("prefer", "respond-async");
    }
    let response = platform.entrance().handle(request.body(Body::from("body")).expect("a request")).await;
    let status = response.status().as_u16();
    let _ = response.into_body().collect(1 << 20).await;
    status
}

fn on_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
}

async fn has(store: &Recording, prefix: &str) -> bool {
    !sas::core::Store::list(store, prefix, None, 1).await.expect("memory").is_empty()
}

/// Everything that can be declared is, and killed after it was stored.
async fn first_life(store: &Arc<Recording>, clock: &FakeClock, dir: &Path) {
    let builder = builder(Arc::clone(store), clock).packages(PackageDir::new(dir.join("packages")));
    let platform = Box::pin(builder.build()).await.expect("a platform");
    let engine = json!({"kind": "dedicated", "namespaces": ["bank"], "reserved": {"memoryBytes": 1_048_576}});
    done(&platform, "PUT", "/v1/engines/bank", engine).await;
    let traffic = "  traffic:\n  - {latestRevision: true, percent: 100}\n  - {revisionName: cart-00001, percent: 0, tag: first}";
    let services = SERVICES.replace("TRAFFIC", "").replace("NUMBER", "1");
    let services: String =
        services.lines().filter(|line| !line.contains("/routes")).map(|line| format!("{line}\n")).collect();
    platform.apply(&services, None).await.expect("applied");
    done(
        &platform,
        "PUT",
        "/v1/apps/shop/shop/environment",
        json!({"variables": {"A": "1", "B": {"secret": "shop/b"}}, "reason": "a test"}),
    )
    .await;
    let cart = SERVICES.split("---").next().expect("the first");
    platform.apply(&cart.replace("TRAFFIC", traffic).replace("NUMBER", "2"), None).await.expect("applied");
    until("its roll-out is under way", async || {
        let record = platform.control().record("shop", "cart").expect("there");
        record.rolling.as_ref().is_some_and(|rolling| rolling.progress.is_some())
    })
    .await;
    let at = "/v1/services/shop/cart";
    done(&platform, "PUT", &format!("{at}/aliases/stable"), json!({"revision": "cart-00001"})).await;
    done(&platform, "PUT", &format!("{at}/mirror"), json!({"tag": "first", "percent": 100})).await;
    let faults = json!({"faults": [{"path": "/never", "percent": 30, "delay": "250ms", "abort": 503}]});
    done(&platform, "PUT", &format!("{at}/faults"), faults).await;
    platform.apply(OTHERS, None).await.expect("applied");
    let broker = json!({"apiVersion": "eventing.knative.dev/v1", "kind": "Broker", "metadata": {"name": "other", "namespace": "shop"}});
    done(&platform, "POST", "/v1/services", broker).await;
    let quota =
        json!({"rate": 500, "burst": 100, "concurrency": 50, "instances": 20, "coldStartsPerSecond": 10});
    done(&platform, "PUT", "/v1/quotas/shop", quota).await;
    let token = json!({"name": "ann", "scopes": ["read", "deploy"], "namespace": "shop", "expiresInSeconds": 864_000});
    let (status, said) = admin(&platform, "POST", "/v1/tokens", token).await;
    assert_eq!(status, 201, "{said}");

    assert_eq!(call(&platform, "shop.example.com", false).await, 200);
    let event = Event::new("7", "/shop", "order").expect("valid");
    let event = event.with_data("application/json", r#"{"total": 3}"#).expect("valid");
    platform.control().accept_events("shop", "default", vec![event]).await.expect("accepted");
    assert_eq!(call(&platform, "cart.shop.localhost", true).await, 202);
    let run = json!({"id": "o-1", "input": {"item": "bicycle"}, "labels": {"customer": "c7"}});
    done(&platform, "POST", "/v1/workflows/shop/order/runs", run).await;
    done(&platform, "POST", "/v1/workflows/shop/large/runs", json!({"id": "l-1"})).await;
    done(&platform, "DELETE", "/v1/tenants/gone", Value::Null).await;
    done(&platform, "POST", "/v1/services/shop/fails/disable", json!({"reason": "a test"})).await;
    // Which revision answers is drawn, and nothing is copied to the one that does.
    until("a copy is metered", async || {
        assert_eq!(call(&platform, "shop.example.com", false).await, 200);
        let written = store.written();
        let mut sums = written.iter().filter(|(key, _)| key.starts_with("usage/total/shop/cart/"));
        sums.any(|(_, values)| {
            values.iter().any(|value| value.windows(10).any(|part| part == b"\"mirrored\""))
        })
    })
    .await;
    for prefix in [
        "async/answer/",
        "deadletter/shop/orders/",
        "broker/shop/default/cursor/",
        "trigger/shop/nightly/",
        "usage/total/shop/cart/",
        "workflow/listens/shop/o-1",
        "workflow/ended/shop/l-1",
    ] {
        until(prefix, async || has(store, prefix).await).await;
    }
    store.end_with_open_books();
    until("its books are open", async || {
        call(&platform, "shop.example.com", false).await;
        store.has_ended()
    })
    .await;
}

async fn second_life(store: &Arc<Recording>, clock: &FakeClock, dir: &Path) {
    let key = UsageKey::new("k1", Secret::new("0123456789abcdef0123456789abcdef")).expect("a key");
    let builder =
        builder(Arc::clone(store), clock).usage_export("bills", key, FileUsageExport::new(dir.join("usage")));
    let builder = builder.packages(PackageDir::new(dir.join("packages")));
    let platform = Box::pin(builder.build()).await.expect("a platform");
    until("the hours before are exported", async || has(store, "usage/export/").await).await;
    // A run of it has not ended, so it stays; that none may start meanwhile was written down.
    let (status, said) =
        admin(&platform, "DELETE", "/v1/workflows/shop/order/versions/1.0.0", Value::Null).await;
    assert_eq!(status, 409, "{said}");
    platform.shutdown(Duration::from_secs(10)).await;
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

pub(crate) async fn host(store: &Arc<Recording>, name: &str) -> Platform {
    let mut tries = 0;
    loop {
        let listen = free_port();
        let mut options = ClusterOptions::new(name, listen, Secret::new("0123456789abcdef0123456789abcdef"));
        // Long beside what a busy machine may do without a thread.
        options.term = Duration::from_secs(10);
        let clock = FakeClock::starting_at(START);
        let builder = builder(Arc::clone(store), &clock).listen(listen).cluster(options);
        match Box::pin(builder.build()).await {
            Ok(platform) => return platform,
            // Somebody else may have taken the port since.
            Err(error) if tries == 5 => panic!("no host: {error}"),
            Err(_) => tries += 1,
        }
    }
}

/// What hosts write that share a state.
async fn two_hosts(store: &Arc<Recording>) {
    let (a, b) = (host(store, "a").await, host(store, "b").await);
    let acts =
        |platform: &Platform| matches!(platform.cluster().expect("a host").place("shop"), Place::Here(_));
    until("the shards are shared", async || {
        [&a, &b].iter().all(|host| {
            let list = host.cluster().expect("a host").list();
            list.iter().filter(|one| one.shards > 0).count() == 2
                && list.iter().map(|one| one.shards).sum::<usize>() == 256
        })
    })
    .await;
    let (owner, other) = if acts(&a) { (&a, &b) } else { (&b, &a) };
    owner
        .apply(
            &SERVICES
                .replace("TRAFFIC", "")
                .replace("NUMBER", "1")
                .lines()
                .filter(|line| !line.contains("/routes"))
                .map(|line| format!("{line}\n"))
                .collect::<String>(),
            None,
        )
        .await
        .expect("applied");
    owner.apply(OTHERS, None).await.expect("applied");
    until("it answers", async || call(&a, "cart.shop.localhost", false).await == 200).await;
    assert_eq!(call(&a, "cart.shop.localhost", true).await, 202);
    until("the other knows the workflow", async || {
        admin(other, "GET", "/v1/workflows/shop/order", Value::Null).await.0 == 200
    })
    .await;
    done(other, "POST", "/v1/workflows/shop/order/runs", json!({"id": "o-1", "input": {"item": "bicycle"}}))
        .await;
    until("it was told", async || store.written().keys().any(|key| key.starts_with("workflow/told/"))).await;
    for platform in [a, b] {
        platform.shutdown(Duration::from_secs(5)).await;
    }
}

/// What is in the stores in the end, and all that was ever written. Of what only hosts have that share a state, one of each kind.
pub(crate) fn run() -> (Records, Written) {
    let (alone, shared) = (Arc::new(Recording::default()), Arc::new(Recording::default()));
    let dir = tempfile::tempdir().expect("a directory");
    let clock = FakeClock::starting_at(START);
    let runtime = on_threads();
    runtime.block_on(first_life(&alone, &clock, dir.path()));
    // As a kill: nothing is told to anybody. Afterwards no task of it is left that could still write.
    runtime.shutdown_timeout(Duration::from_secs(60));
    alone.go_on();
    clock.jump_forward(Duration::from_secs(3 * 3600));
    on_threads().block_on(second_life(&alone, &clock, dir.path()));
    let runtime = on_threads();
    runtime.block_on(two_hosts(&shared));
    let kept = runtime.block_on(alone.present());
    let mut written = alone.written();
    for (key, values) in shared.written() {
        written.entry(key).or_default().extend(values);
    }
    (kept, written)
}
