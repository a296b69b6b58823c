//! `platform --otlp` against the OpenTelemetry Collector (`sas-otel/tests/collector`): a trace each of a request that
//! finds its service asleep, of a schedule, and of an event, from what the collector took.

mod shared;

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{BufRead as _, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::Value;
use shared::{PlatformProcess, call, call_with, eventually};

/// What the service runs: it logs the trace that it is told of.
const APP: &str = r#"
import json, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class App(BaseHTTPRequestHandler):
    def do_GET(self):
        length = int(self.headers.get("content-length") or 0)
        self.rfile.read(length)
        _, trace, span, flags = self.headers["traceparent"].split("-")
        line = {"level": "warn", "flags": flags, "trace_id": trace, "span_id": span,
                "request_id": self.headers["x-request-id"], "path": self.path}
        print(json.dumps(line), flush=True)
        status = 500 if self.path == "/fail" else 200
        self.send_response(status)
        self.send_header("content-length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    do_POST = do_GET

    def log_message(self, *args):
        pass

ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
"#;

const TRIGGERS: &str = "
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: orders, annotations: {sas.dev/ingress: open}}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: ordered}
spec:
  source: {kind: broker, options: {broker: orders, start: earliest}}
  target: {service: traced, path: /ordered}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: tick}
spec:
  source: {kind: cron, options: {schedule: '* * * * * *'}}
  target: {service: traced, path: /tick}
";

const SENT_TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const EVENT_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The collector as a process, with the lines that it wrote: each what one request brought, in OTLP's JSON.
struct Collector {
    child: Child,
    address: SocketAddr,
    lines: Arc<Mutex<Vec<Value>>>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None`, loudly, where nobody has built it; a failure in CI.
fn collector() -> Option<Collector> {
    let built = std::env::var_os("SAS_OTEL_COLLECTOR").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join("go/bin/sas-otel-collector"));
    let program = built.or_else(home).filter(|program| program.exists());
    let Some(program) = program else {
        sas_testkit::skip(
            "no collector: build it by `go build -C sas-otel/tests/collector -o ~/go/bin/sas-otel-collector .`",
        );
        return None;
    };
    // Free a moment ago: nobody else of this test asks for a port in between.
    let address =
        TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let mut child = Command::new(program)
        .arg(address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = Arc::<Mutex<Vec<Value>>>::default();
    let (stdout, into) = (BufReader::new(child.stdout.take().expect("piped")), Arc::clone(&lines));
    std::thread::spawn(move || {
        for line in stdout.lines().map_while(Result::ok) {
            into.lock().expect("no panic").push(serde_json::from_str(&line).expect("a line is JSON"));
        }
    });
    Some(Collector { child, address, lines })
}

/// A span with its attributes as texts.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    start: u64,
    end: u64,
    attributes: BTreeMap<String, String>,
    error: bool,
}

fn attributes(of: &Value) -> BTreeMap<String, String> {
    let one = |attribute: &Value| {
        let value = attribute["value"].as_object()?.values().next()?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some((attribute["key"].as_str()?.to_owned(), text))
    };
    of["attributes"].as_array().into_iter().flatten().filter_map(one).collect()
}

impl Collector {
    /// All items of a signal, each with its resource's attributes.
    fn items(&self, signal: &str, scopes: &str, items: &str) -> Vec<(BTreeMap<String, String>, Value)> {
        let lines = self.lines.lock().expect("no panic");
        let mut found = Vec::new();
        for resource in lines.iter().filter_map(|line| line[signal].as_array()).flatten() {
            let of = attributes(&resource["resource"]);
            for scope in resource[scopes].as_array().into_iter().flatten() {
                found.extend(
                    scope[items].as_array().into_iter().flatten().map(|item| (of.clone(), item.clone())),
                );
            }
        }
        found
    }

    fn spans(&self) -> Vec<Span> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let nanos = |value: &Value| value.as_str().and_then(|text| text.parse().ok()).expect("nanoseconds");
        let items = self.items("resourceSpans", "scopeSpans", "spans");
        let span = |(resource, span): (BTreeMap<String, String>, Value)| {
            assert_eq!(resource["service.name"], "sas");
            Span {
                trace: text(&span["traceId"]),
                id: text(&span["spanId"]),
                parent: text(&span["parentSpanId"]),
                name: text(&span["name"]),
                kind: span["kind"].as_u64().unwrap_or(0),
                start: nanos(&span["startTimeUnixNano"]),
                end: nanos(&span["endTimeUnixNano"]),
                attributes: attributes(&span),
                error: span["status"]["code"] == 2,
            }
        };
        items.into_iter().map(span).collect()
    }

    /// The trace with a span of which this is so, once `complete` of its spans have come.
    async fn trace(&self, what: &str, complete: usize, is: impl Fn(&Span) -> bool) -> Vec<Span> {
        let mut found = Vec::new();
        eventually(what, Duration::from_secs(60), async || {
            let spans = self.spans();
            let Some(trace) = spans.iter().find(|span| is(span)).map(|span| span.trace.clone()) else {
                return false;
            };
            found = spans.into_iter().filter(|span| span.trace == trace).collect();
            found.len() >= complete
        })
        .await;
        found
    }

    /// The line that the service wrote of the request with this id.
    async fn line(&self, request: &str) -> (BTreeMap<String, String>, Value) {
        let mut found = None;
        eventually("the line of the service", Duration::from_secs(60), async || {
            let mut records = self.items("resourceLogs", "scopeLogs", "logRecords").into_iter();
            found = records.find(|(_, record)| {
                attributes(record).get("faas.invocation_id").is_some_and(|id| id == request)
            });
            found.is_some()
        })
        .await;
        found.expect("it has come")
    }
}

fn named<'a>(trace: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = trace.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "one {name}: {trace:#?}");
    found[0]
}

/// What holds of every trace: one id each, and parents that are there, or outside for one.
fn assert_whole(trace: &[Span], outside: &str) {
    let ids: HashSet<&str> = trace.iter().map(|span| span.id.as_str()).collect();
    assert_eq!(ids.len(), trace.len(), "{trace:#?}");
    let lost: Vec<&Span> = trace.iter().filter(|span| !ids.contains(span.parent.as_str())).collect();
    assert_eq!(lost.len(), 1, "one root: {lost:#?}");
    assert_eq!(lost[0].parent, outside);
    assert!(trace.iter().all(|span| span.start <= span.end && span.end - span.start < 60_000_000_000));
}

fn assert_attributes(span: &Span, expected: &[(&str, &str)]) {
    for (key, value) in expected {
        assert_eq!(span.attributes.get(*key).map(String::as_str), Some(*value), "{key} of {span:#?}");
    }
}

const SERVER: u64 = 2;
const CLIENT: u64 = 3;
const CONSUMER: u64 = 5;
const INTERNAL: u64 = 1;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_a_schedule_and_an_event_are_a_trace_each() {
    let Some(collector) = collector() else { return };
    eventually("the collector listens", Duration::from_secs(60), async || {
        TcpStream::connect(collector.address).is_ok()
    })
    .await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let app = dir.path().join("app");
    fs::create_dir(&app).expect("made");
    fs::write(app.join("main.py"), APP).expect("written");
    let service = format!(
        "apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: traced
  annotations: {{sas.dev/package: {}}}
spec:
  template:
    spec:
      containers: [{{}}]
",
        app.display()
    );
    let (manifest, triggers) = (dir.path().join("service.yaml"), dir.path().join("triggers.yaml"));
    fs::write(&manifest, service).expect("written");
    fs::write(&triggers, TRIGGERS).expect("written");
    let endpoint = format!("http://{}", collector.address);
    let otlp = ["--otlp", &endpoint, "--otlp-ratio", "0", "--otlp-logs"];
    let platform = PlatformProcess::start(&[&otlp[..], &[manifest.to_str().expect("UTF-8")]].concat());

    // A request that finds the service asleep: nobody asked for it to be recorded, a cold start is all the same.
    let traceparent = format!("traceparent: 00-{SENT_TRACE}-00f067aa0ba902b7-00\r\n");
    let host = "traced.default.localhost";
    let answer = call_with(platform.listen, "GET", host, &traceparent, "/cold?secret=1", "").await;
    let answer = answer.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    let request = answer.head.split("x-request-id: ").nth(1).expect("an id")[..32].to_owned();
    let cold = collector.trace("the cold request", 6, |span| span.trace == SENT_TRACE).await;
    assert_whole(&cold, "00f067aa0ba902b7");
    let (whole, queue, upstream) =
        (named(&cold, "GET default/traced"), named(&cold, "sas.queue"), named(&cold, "GET"));
    assert_eq!((whole.kind, queue.kind, upstream.kind), (SERVER, INTERNAL, CLIENT));
    assert_eq!((&queue.parent, &upstream.parent), (&whole.id, &whole.id));
    assert!(whole.start <= queue.start && queue.end <= upstream.start && upstream.end <= whole.end);
    assert_attributes(
        whole,
        &[
            ("http.request.method", "GET"),
            ("url.path", "/cold"),
            ("url.scheme", "http"),
            ("server.address", host),
            ("http.response.status_code", "200"),
            ("http.response.body.size", "3"),
            ("faas.trigger", "http"),
            ("faas.coldstart", "true"),
            ("faas.name", "default/traced"),
            ("faas.version", "traced-00001"),
            ("faas.invocation_id", &request),
        ],
    );
    let phases: Vec<&Span> = cold.iter().filter(|span| span.name.starts_with("sas.start.")).collect();
    assert!(phases.len() >= 3 && phases.iter().all(|phase| phase.parent == queue.id), "{phases:#?}");
    named(&cold, "sas.start.gate");
    let ready = named(&cold, "sas.start.ready");
    let started = ready.end - phases.iter().map(|phase| phase.start).min().expect("phases");
    assert!(started > 10_000_000, "Python takes more than {started} ns to start: these are nanoseconds");
    assert!(whole.end - whole.start >= queue.end - queue.start);

    // Its line: of the instance as a resource, in the trace that the instance was told of.
    let (resource, line) = collector.line(&request).await;
    assert_eq!(
        (resource["service.name"].as_str(), resource["service.namespace"].as_str()),
        ("traced", "default")
    );
    assert_eq!(resource["service.version"], "traced-00001");
    assert_eq!(resource["service.instance.id"], upstream.attributes["faas.instance"]);
    assert_eq!(
        (&line["traceId"], &line["spanId"]),
        (&whole.trace.clone().into(), &upstream.id.clone().into())
    );
    assert_eq!(line["severityText"], "WARN");
    assert!(
        line["body"]["stringValue"].as_str().is_some_and(|text| text.contains(r#""flags": "01""#)),
        "{line}"
    );

    // Warm and well: not recorded. Failed: recorded.
    let warm = call(platform.listen, "GET", host, "/warm", "").await.expect("an answer");
    let failed = call(platform.listen, "GET", host, "/fail", "").await.expect("an answer");
    assert_eq!((warm.status, failed.status), (200, 500));
    let path =
        |path: &'static str| move |span: &Span| span.attributes.get("url.path").is_some_and(|at| at == path);
    let trace = collector.trace("the failed request", 3, path("/fail")).await;
    assert_whole(&trace, "");
    let whole = named(&trace, "GET default/traced");
    assert!(whole.error && named(&trace, "GET").error);
    assert_attributes(whole, &[("error.type", "500"), ("faas.coldstart", "false")]);
    assert_eq!(
        whole.trace, whole.attributes["faas.invocation_id"],
        "a trace that begins here has the request's id"
    );

    assert!(platform.terminate().success());
    assert!(
        !collector.spans().iter().any(path("/warm")),
        "nothing was lost on the way out, and this was not kept"
    );
    let metrics = collector.items("resourceMetrics", "scopeMetrics", "metrics");
    let metric = |name: &str| {
        let found = metrics.iter().rev().find(|(_, metric)| metric["name"] == name);
        found.unwrap_or_else(|| panic!("{name}")).1.clone()
    };
    assert_eq!(metric("sas_router_request_seconds")["unit"], "s");
    let colds = metric("faas.coldstarts");
    let of_http = |points: &Value| {
        let mut points = points.as_array().expect("points").iter();
        points.find(|point| attributes(point)["faas.trigger"] == "http").cloned().expect("of http")
    };
    assert_eq!(of_http(&colds["sum"]["dataPoints"])["asInt"], "1");
    let invoke = metric("faas.invoke_duration");
    let invoke = of_http(&invoke["histogram"]["dataPoints"]);
    assert_eq!(invoke["count"], "3");
    assert!(invoke["exemplars"].as_array().is_some_and(|all| !all.is_empty()), "{invoke}");

    // Schedule and event, all recorded.
    let otlp = ["--otlp", &endpoint, "--otlp-ratio", "1"];
    let manifests = [manifest.to_str().expect("UTF-8"), triggers.to_str().expect("UTF-8")];
    let platform = PlatformProcess::start(&[&otlp[..], &manifests].concat());
    let tick = collector.trace("a tick", 5, |span| span.name == "deliver default/tick").await;
    assert_whole(&tick, "");
    let deliver = named(&tick, "deliver default/tick");
    let attempt = named(&tick, "sas.attempt");
    let served = named(&tick, "POST default/traced");
    assert_eq!((deliver.kind, attempt.kind, served.kind), (INTERNAL, CLIENT, SERVER));
    assert_eq!((&attempt.parent, &served.parent), (&deliver.id, &attempt.id));
    assert_attributes(deliver, &[("faas.trigger", "timer"), ("sas.target", "default/traced")]);
    assert_attributes(served, &[("faas.trigger", "timer"), ("url.path", "/tick"), ("sas.purpose", "event")]);
    assert!(deliver.attributes.contains_key("cloudevents.event_id"));

    let event = format!(
        "ce-specversion: 1.0\r\nce-id: 7\r\nce-source: /shop\r\nce-type: order\r\n\
         ce-traceparent: 00-{EVENT_TRACE}-b7ad6b7169203331-01\r\n"
    );
    let sent = call_with(platform.listen, "POST", "events.localhost", &event, "/default/orders", "{}").await;
    assert_eq!(sent.expect("an answer").status, 202);
    let order = collector.trace("the event", 5, |span| span.trace == EVENT_TRACE).await;
    assert_whole(&order, "b7ad6b7169203331");
    let deliver = named(&order, "deliver default/ordered");
    assert_eq!(deliver.kind, CONSUMER);
    assert_attributes(
        deliver,
        &[
            ("faas.trigger", "pubsub"),
            ("cloudevents.event_id", "7"),
            ("cloudevents.event_source", "/shop"),
            ("cloudevents.event_type", "order"),
        ],
    );
    assert_attributes(named(&order, "sas.attempt"), &[("http.response.status_code", "200")]);
    let served = named(&order, "POST default/traced");
    assert_attributes(served, &[("faas.trigger", "pubsub"), ("url.path", "/ordered")]);
    assert_eq!(named(&order, "POST").parent, served.id);
    assert!(platform.terminate().success());
}

#[tokio::test]
async fn mistakes_are_told_with_their_field() {
    let free = "127.0.0.1:0";
    for (args, words) in [
        (&["--otlp", "localhost:4317"][..], "otel: endpoint"),
        (&["--otlp", "http://127.0.0.1:4318", "--otlp-ratio", "2"], "otlpRatio: \"2\""),
        (&["--otlp-logs"], "otlpLogs: \"true\": wants `otlp`"),
        (&["--otlp-ratio", "much"], "'much' for '--otlp-ratio"),
    ] {
        let all = [&["--listen", free, "--admin", free][..], args].concat();
        let output = shared::platform_command(&all).output().expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && stderr.contains(words), "{args:?}: {stderr}");
    }
    let mut command =
        shared::platform_command(&["--listen", free, "--admin", free, "--otlp", "http://127.0.0.1:1"]);
    let output = command.env("OTEL_EXPORTER_OTLP_HEADERS", "bad name=hidden").output().expect("it runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("headers.bad name"), "{stderr}");
    assert!(!stderr.contains("hidden"), "{stderr}");
}
