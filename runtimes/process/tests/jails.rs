//! Jailed instances as a user of the runtime meets them. What needs root says so when it is skipped.
#![cfg(target_os = "linux")]

mod support;

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sas_core::{Endpoint, ErrorKind, RevisionSpec, Runtime as _, Source};
use sas_runtime_process::{JailLevel, ProcessConfig, ProcessRuntime};
use support::{app, fetch, prepare, start, start_deployed};

fn at(level: JailLevel) -> Option<(tempfile::TempDir, Arc<ProcessRuntime>)> {
    if level == JailLevel::Strict && !rustix::process::geteuid().is_root() {
        support::skipped("strict needs root");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.jail.level = level;
    let runtime = Arc::new(ProcessRuntime::new(config).unwrap());
    Some((dir, runtime))
}

fn script(text: &str) -> RevisionSpec {
    let source = Source::Bytes { name: "app".into(), bytes: text.to_owned().into() };
    let mut spec = RevisionSpec::new("process", source);
    spec.timeouts.start = Duration::from_secs(20);
    spec
}

/// A GET over whatever leads to the instance; blocking.
fn get(endpoint: &Endpoint, path: &str) -> String {
    let Endpoint::Within(address, sockets) = endpoint else {
        panic!("a network of its own, not {endpoint:?}")
    };
    let socket = sockets.tcp_socket(address).unwrap();
    rustix::io::ioctl_fionbio(&socket, false).unwrap();
    rustix::net::connect(&socket, address).unwrap();
    let mut stream = std::net::TcpStream::from(socket);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut answer = String::new();
    let whole = |answer: &str| {
        let (head, body) = answer.split_once("\r\n\r\n")?;
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        let length = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?.1;
        (body.len() >= length.parse().ok()?).then_some(())
    };
    while whole(&answer).is_none() {
        let mut some = [0u8; 4096];
        let read = stream.read(&mut some).unwrap();
        assert_ne!(read, 0, "it ended in the middle: {answer}");
        answer.push_str(std::str::from_utf8(&some[..read]).unwrap());
    }
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_instances_share_a_port_that_nobody_else_reaches() {
    let Some((_dir, runtime)) = at(JailLevel::Strict) else { return };
    assert_eq!(runtime.jail_report().missing().count(), 0, "{}", runtime.jail_report());
    let deployed = prepare(&runtime, app(&[])).await.unwrap();
    let one = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let two = start_deployed(&runtime, &deployed, 2).await.unwrap();
    for started in [&one, &two] {
        let answer = get(started.instance.endpoint().unwrap(), "/env");
        assert!(answer.contains("PORT=8080"), "{answer}");
    }
    one.instance.stop(Duration::from_secs(5)).await.unwrap();
    assert!(get(two.instance.endpoint().unwrap(), "/env").contains("PORT=8080"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_way_out_nothing_is_reached_and_the_instance_still_serves() {
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    if !rustix::process::geteuid().is_root() || support::missing("python3") {
        return;
    }
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let program = format!(
        "#!/usr/bin/env python3\nimport http.server, os, socket\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20def do_GET(self):\n\
         \x20 try:\n\
         \x20  socket.create_connection((\"127.0.0.1\", {port}), 2); said = b\"reached\"\n\
         \x20 except OSError as e: said = type(e).__name__.encode()\n\
         \x20 self.send_response(200); self.send_header(\"Content-Length\", str(len(said))); self.end_headers(); self.wfile.write(said)\n\
         http.server.HTTPServer((\"127.0.0.1\", int(os.environ[\"PORT\"])), H).serve_forever()\n"
    );
    let mut denied = script(&program);
    denied.options.insert("sas.dev/egress".into(), "deny".into());
    let started = start(&runtime, denied).await.unwrap();
    let answer = get(started.instance.endpoint().unwrap(), "/");
    assert!(answer.ends_with("ConnectionRefusedError"), "{answer}");
    if runtime.jail_report().missing().any(|means| means.name.contains("TCP")) {
        support::skipped("the kernel bounds no TCP ports");
        return;
    }
    // By default neither: the port of the admin API, or of another instance, is none of the list.
    let started = start(&runtime, script(&program)).await.unwrap();
    assert_eq!(fetch(&started.instance, "/").await.unwrap(), "PermissionError");
    let mut listed = script(&program);
    listed.options.insert("sas.dev/egress".into(), format!("443,{port}"));
    let started = start(&runtime, listed).await.unwrap();
    assert_eq!(fetch(&started.instance, "/").await.unwrap(), "reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_an_instances_port_first_gets_no_request() {
    if !rustix::process::geteuid().is_root() || support::missing("python3") || support::missing("setpriv") {
        support::skipped("another user's program needs root, setpriv and python3");
        return;
    }
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut spec = script("#!/bin/sh\nexec sleep 30\n");
    spec.port = Some(port);
    let deployed = prepare(&runtime, spec).await.unwrap();
    let starting = tokio::spawn({
        let (runtime, deployed) = (Arc::clone(&runtime), Arc::clone(&deployed));
        async move { start_deployed(&runtime, &deployed, 1).await.map(drop) }
    });
    support::eventually("it was spawned", || runtime.processes() == 1).await;
    let squat = format!(
        "import http.server\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20def do_GET(self): print('a request', flush=True); self.send_response(200); self.end_headers()\n\
         http.server.HTTPServer(('127.0.0.1', {port}), H).serve_forever()"
    );
    let mut squatter = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--", "/usr/bin/python3", "-c", &squat])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let error = starting.await.unwrap().unwrap_err();
    squatter.kill().unwrap();
    let mut told = String::new();
    squatter.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    squatter.wait().unwrap();
    assert_eq!(error.kind, ErrorKind::Conflict, "{error}");
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    assert_eq!(told, "", "nothing was asked of it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_may_have_a_directory_that_stays() {
    let Some((dir, runtime)) = at(JailLevel::Basic) else { return };
    if support::missing("python3") {
        return;
    }
    let program = "#!/usr/bin/env python3\nimport http.server, os\n\
         kept = os.environ[\"SAS_DATA_DIR\"] + \"/kept\"\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20def do_GET(self):\n\
         \x20 open(kept, \"a\").write(\"x\"); open(\"beside\", \"a\").write(\"x\")\n\
         \x20 said = (open(kept).read() + \" \" + open(\"beside\").read()).encode()\n\
         \x20 self.send_response(200); self.send_header(\"Content-Length\", str(len(said))); self.end_headers(); self.wfile.write(said)\n\
         http.server.HTTPServer((\"127.0.0.1\", int(os.environ[\"PORT\"])), H).serve_forever()\n";
    let mut spec = script(program);
    spec.options.insert("sas.dev/data".into(), "true".into());
    let deployed = prepare(&runtime, spec).await.unwrap();
    for (id, expected) in [(1, "x x"), (2, "xx x")] {
        let started = start_deployed(&runtime, &deployed, id).await.unwrap();
        assert_eq!(
            fetch(&started.instance, "/").await.unwrap(),
            expected,
            "what is beside the code goes with it"
        );
        started.instance.stop(Duration::from_secs(5)).await.unwrap();
    }
    let kept = dir.path().join("store/data");
    assert_eq!(std::fs::read_to_string(kept.join("default/hello/kept")).unwrap(), "xx");
}

#[tokio::test]
async fn a_service_may_ask_for_more_than_the_host_gives_and_never_for_less() {
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    let with = |name: &str, value: &str| {
        let mut spec = app(&[]);
        spec.options.insert(name.into(), value.into());
        spec
    };
    let error = runtime.prepare(&with("sas.dev/jail", "none")).await.unwrap_err().to_string();
    assert!(error.contains("sas.dev/jail") && error.contains("basic"), "{error}");
    for (name, wrong) in [("sas.dev/jail", "hard"), ("sas.dev/egress", "some"), ("sas.dev/data", "yes")] {
        let error = runtime.prepare(&with(name, wrong)).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(wrong), "{error}");
    }
    let strict = runtime.prepare(&with("sas.dev/jail", "strict")).await;
    if rustix::process::geteuid().is_root() {
        strict.unwrap();
    } else {
        assert!(strict.unwrap_err().to_string().contains("strict"));
    }
}
