//! Jailed instances as a user of the runtime meets them. What needs root says so when it is skipped.
#![cfg(target_os = "linux")]

mod support;

use std::{
    io::{Read as _, Write as _},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sas_core::{Endpoint, ErrorKind, ProbeAction, RevisionSpec, Runtime as _, Source};
use sas_runtime_process::{JailLevel, ProcessConfig, ProcessRuntime};
use support::{app, fetch, prepare, start, start_deployed};

fn at(level: JailLevel) -> Option<(tempfile::TempDir, Arc<ProcessRuntime>)> {
    if level == JailLevel::Strict && !rustix::process::geteuid().is_root() {
        sas_testkit::skip("strict needs root");
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
async fn the_machines_credentials_are_not_asked_for_though_the_web_is_open() {
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    if !rustix::process::geteuid().is_root() {
        return sas_testkit::skip("rules of routing need root");
    }
    if support::missing("python3") {
        return;
    }
    if let Some(means) = runtime.jail_report().missing().find(|means| means.name.contains("closed networks"))
    {
        return sas_testkit::kernel_lacks(means.name);
    }
    let program = "#!/usr/bin/env python3\nimport http.server, os, socket\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20def do_GET(self):\n\
         \x20 kind, host = self.path[1:].split('/')\n\
         \x20 with socket.socket(socket.AF_INET, getattr(socket, kind)) as s:\n\
         \x20  s.settimeout(0.2)\n\
         \x20  try: s.connect((host, 80)); said = b'reached'\n\
         \x20  except OSError as e: said = type(e).__name__.encode()\n\
         \x20 self.send_response(200); self.send_header('Content-Length', str(len(said))); self.end_headers(); self.wfile.write(said)\n\
         http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n";
    let started = start(&runtime, script(program)).await.unwrap();
    for path in
        ["/SOCK_STREAM/169.254.169.254", "/SOCK_DGRAM/169.254.169.254", "/SOCK_STREAM/100.100.100.200"]
    {
        assert_eq!(fetch(&started.instance, path).await.unwrap(), "PermissionError", "{path}");
    }
    // An address of the documentation's, on a port that every instance may connect to: there may be no way, but none is closed.
    let open = fetch(&started.instance, "/SOCK_STREAM/198.51.100.1").await.unwrap();
    assert_ne!(open, "PermissionError");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_way_out_nothing_is_reached_and_the_instance_still_serves() {
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    if !rustix::process::geteuid().is_root() {
        return sas_testkit::skip("a network of its own needs root");
    }
    if support::missing("python3") {
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
        return sas_testkit::kernel_lacks("landlock that bounds TCP ports");
    }
    // By default neither: the port of the admin API, or of another instance, is none of the list.
    let started = start(&runtime, script(&program)).await.unwrap();
    assert_eq!(fetch(&started.instance, "/").await.unwrap(), "PermissionError");
    let mut listed = script(&program);
    listed.options.insert("sas.dev/egress".into(), format!("443,{port}"));
    let error = prepare(&runtime, listed).await.unwrap_err().to_string();
    assert!(error.contains("sas.dev/egress") && error.contains(&port.to_string()), "{error}");
    // The port of a probe, or of the service, is none either.
    let mut probed = script(&program);
    probed.liveness = Some(sas_core::Probe::new(ProbeAction::Tcp { port: Some(port) }));
    let started = start(&runtime, probed).await.unwrap();
    assert_eq!(fetch(&started.instance, "/").await.unwrap(), "PermissionError");
    // The host's operator may let services reach it, and it is reached by who lists it only.
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.jail.egress_grants = vec![port];
    let runtime = Arc::new(ProcessRuntime::new(config.clone()).unwrap());
    let mut listed = script(&program);
    listed.options.insert("sas.dev/egress".into(), format!("443,{port}"));
    let started = start(&runtime, listed.clone()).await.unwrap();
    assert_eq!(fetch(&started.instance, "/").await.unwrap(), "reached");
    let started = start(&runtime, script(&program)).await.unwrap();
    assert_eq!(fetch(&started.instance, "/").await.unwrap(), "PermissionError");
    // But never one of the host's own.
    let dir = tempfile::tempdir().unwrap();
    config.store = dir.path().join("store");
    config.jail.closed_ports = vec![port];
    config.jail.egress_ports.push(port);
    let runtime = Arc::new(ProcessRuntime::new(config).unwrap());
    assert!(prepare(&runtime, listed).await.unwrap_err().to_string().contains("the host's own"));
    let started = start(&runtime, script(&program)).await.unwrap();
    assert_eq!(fetch(&started.instance, "/").await.unwrap(), "PermissionError");
}

#[tokio::test]
async fn a_manifest_gets_no_more_than_the_host_allows() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.jail.closed_ports = vec![8081];
    let runtime = ProcessRuntime::new(config).unwrap();
    for (name, value, why) in [
        ("sas.dev/egress", "443,8081", "the host's own"),
        ("sas.dev/egress", "20005", "egress_grants"),
        ("sas.dev/zygote", "true", "ProcessConfig::zygotes"),
        ("sas.dev/disk-bytes", "99999999999", "jail.max_disk_bytes"),
        ("sas.dev/pids-max", "8193", "jail.max_instance_processes"),
        ("sas.dev/rlimit-nofile", "18446744073709551614", "at most "),
        ("sas.dev/rlimit-fsize", "2147483649", "at most 2147483648, the host's jail.max_disk_bytes"),
        ("sas.dev/rlimit-core", "2147483649", "at most 2147483648, the host's jail.max_disk_bytes"),
        ("sas.dev/rlimit-data", "9223372036854775808", "at most "),
    ] {
        let mut spec = app(&[]);
        spec.options.insert(name.into(), value.into());
        let error = runtime.prepare(&spec).await.unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(why), "{error}");
        assert!(name.ends_with("egress") || name.ends_with("zygote") || error.contains(value), "{error}");
    }
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    for (name, value, fine) in [
        ("sas.dev/rlimit-fsize", Some(2_147_483_648), true),
        ("sas.dev/rlimit-nofile", most, true),
        ("sas.dev/rlimit-nofile", most.map(|most| most + 1), false),
        ("sas.dev/rlimit-data", Some(64 << 20), true),
        ("sas.dev/rlimit-data", Some((64 << 20) + 1), false),
    ] {
        let Some(value) = value else { continue };
        let mut spec = app(&[]);
        spec.resources.memory_limit_bytes = Some(64 << 20);
        spec.options.insert(name.into(), value.to_string());
        let outcome = runtime.prepare(&spec).await.map(drop).map_err(|error| error.to_string());
        assert_eq!(outcome.is_ok(), fine, "{name}: {value}: {outcome:?}");
    }
    let mut probed = app(&[]);
    probed.liveness = Some(sas_core::Probe::new(ProbeAction::Tcp { port: Some(8081) }));
    let error = runtime.prepare(&probed).await.unwrap_err().to_string();
    assert!(error.contains("liveness.port") && error.contains("8081"), "{error}");
    let mut own = app(&[]);
    own.port = Some(8081);
    assert!(runtime.prepare(&own).await.unwrap_err().to_string().contains("8081"));
}

#[tokio::test]
async fn a_command_opens_no_directory_that_the_host_does_not_show() {
    let dir = tempfile::tempdir().unwrap();
    let private = dir.path().join("private");
    std::fs::create_dir(&private).unwrap();
    std::fs::write(private.join("secret"), "secret").unwrap();
    let program = private.join("program");
    std::fs::copy("/bin/true", &program).unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    let runtime = ProcessRuntime::new(config.clone()).unwrap();
    let commanded = |program: &std::path::Path| {
        let mut spec = script("#!/bin/sh\nexec sleep 30\n");
        spec.command = vec![program.display().to_string()];
        spec
    };
    let error = runtime.prepare(&commanded(&program)).await.unwrap_err().to_string();
    assert!(error.contains("command") && error.contains("jail.readable"), "{error}");
    let around = std::path::Path::new("/usr/bin/../..").join(program.strip_prefix("/").unwrap());
    assert!(runtime.prepare(&commanded(&around)).await.is_err(), "by another spelling");
    runtime.prepare(&commanded(std::path::Path::new("/bin/sh"))).await.unwrap();
    let store = tempfile::tempdir().unwrap();
    config.store = store.path().join("store");
    config.jail.readable.push(private);
    ProcessRuntime::new(config).unwrap().prepare(&commanded(&program)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_an_instances_port_first_gets_no_request() {
    if !rustix::process::geteuid().is_root() {
        return sas_testkit::skip("another user's program needs root");
    }
    if support::missing("python3") || support::missing("setpriv") {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_does_not_fill_the_hosts_disk_by_what_it_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.jail.data_bytes = 8 << 20;
    config.jail.disk_bytes = 1 << 20;
    let runtime = Arc::new(ProcessRuntime::new(config).unwrap());
    if !rustix::process::geteuid().is_root() {
        return sas_testkit::skip("an ordinary user's files are no larger than what each instance may write");
    }
    if support::missing("python3") {
        return;
    }
    let program = "#!/usr/bin/env python3\nimport http.server, os\n\
         class H(http.server.BaseHTTPRequestHandler):\n\
         \x20def do_GET(self):\n\
         \x20 said = b'written'\n\
         \x20 try:\n\
         \x20  with open(os.environ['SAS_DATA_DIR'] + self.path, 'ab') as f: f.write(bytes(6 << 20))\n\
         \x20 except OSError as e: said = type(e).__name__.encode() + str(e.errno).encode()\n\
         \x20 self.send_response(200); self.send_header('Content-Length', str(len(said))); self.end_headers(); self.wfile.write(said)\n\
         import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n\
         http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n";
    let mut spec = script(program);
    spec.options.insert("sas.dev/data".into(), "true".into());
    let deployed = prepare(&runtime, spec).await.unwrap();
    let started = start_deployed(&runtime, &deployed, 1).await.unwrap();
    assert_eq!(fetch(&started.instance, "/one").await.unwrap(), "written");
    // One file does not grow beyond it, at once.
    assert_eq!(fetch(&started.instance, "/one").await.unwrap(), "OSError27", "EFBIG");
    assert_eq!(started.events.exits().len(), 0, "it holds no more than it may");
    std::fs::write(dir.path().join("store/data/default/hello/one"), "less").unwrap();
    assert_eq!(fetch(&started.instance, "/two").await.unwrap(), "written");
    assert_eq!(fetch(&started.instance, "/three").await.unwrap(), "written");
    support::eventually("it is stopped", || !started.events.exits().is_empty()).await;
    let said = started.events.exits().remove(0).1.to_string();
    assert!(said.contains("sas.dev/data") && said.contains("may hold 8388608: jail.data_bytes"), "{said}");
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

/// Runs a test of this file again as an ordinary user; true for that run, and for one that was begun by such a user.
fn as_an_ordinary_user(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        return true;
    }
    use std::os::unix::fs::PermissionsExt as _;
    if support::missing("setpriv") {
        return false;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = dir.path().join("test");
    // By another process: one that this one starts meanwhile would hold the copy open for writing.
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&copy).status().unwrap();
    assert!(copied.success());
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&copy)
        .args(["--exact", test, "--nocapture"])
        .env("TMPDIR", dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "as an ordinary user: {told}");
    false
}

/// Serves, with something done before.
fn serving(before: &str) -> RevisionSpec {
    script(&format!(
        "#!/bin/sh\n{before}\nexec python3 -m http.server --bind 127.0.0.1 --directory . \"$PORT\" 2>/dev/null\n"
    ))
}

fn sleeping(mark: &str) -> usize {
    let line = |entry: std::fs::DirEntry| std::fs::read(entry.path().join("cmdline")).ok();
    let all = std::fs::read_dir("/proc").unwrap().flatten().filter_map(line);
    all.filter(|line| line.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_namespaces_whoever_leaves_its_group_still_ends_with_its_instance() {
    if support::missing("python3")
        || !as_an_ordinary_user("without_namespaces_whoever_leaves_its_group_still_ends_with_its_instance")
    {
        return;
    }
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    // A session of its own with other standard input and no environment, by a double fork.
    let mark = |n: u32| format!("8700{n}.{}", std::process::id());
    let leaves =
        |mark: &str| format!("(setsid sh -c 'env -i sleep {mark} & exit' </dev/null >/dev/null 2>&1 &)");
    let (one, two) = (
        start(&runtime, serving(&leaves(&mark(3)))).await.unwrap(),
        start(&runtime, serving(&leaves(&mark(4)))).await.unwrap(),
    );
    support::eventually("both have left", || sleeping(&mark(3)) == 1 && sleeping(&mark(4)) == 1).await;
    one.instance.stop(Duration::from_secs(5)).await.unwrap();
    assert_eq!((sleeping(&mark(3)), sleeping(&mark(4))), (0, 1), "what is told to be gone is gone");
    let failed = script(&format!("#!/bin/sh\n{}\nexit 3\n", leaves(&mark(5))));
    assert!(start(&runtime, failed).await.is_err());
    assert_eq!(sleeping(&mark(5)), 0, "nor does a start that failed leave anything");
    let guardian = runtime.guardian_pid();
    assert!(support::runs(guardian));
    drop((two, runtime));
    support::eventually("the host's end", || sleeping(&mark(4)) == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_sized_disk_an_instance_that_writes_too_much_is_stopped_with_the_reason() {
    if support::missing("python3")
        || !as_an_ordinary_user(
            "without_a_sized_disk_an_instance_that_writes_too_much_is_stopped_with_the_reason",
        )
    {
        return;
    }
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    let mut spec = serving(
        "(sleep 1; for n in 1 2 3 4 5 6 7 8; do head -c 1000000 /dev/zero > \"$HOME/$n\"; done; sleep 60) &",
    );
    spec.options.insert("sas.dev/disk-bytes".into(), (4 << 20).to_string());
    let started = start(&runtime, spec).await.unwrap();
    support::eventually("it is stopped", || !started.events.exits().is_empty()).await;
    let report = started.events.exits().remove(0).1.to_string();
    assert!(report.contains("sas.dev/disk-bytes") && report.contains("4194304"), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_whose_disk_is_full_says_so_when_it_ends() {
    let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
    let mut spec = script("#!/bin/sh\nhead -c 9000000 /dev/zero > \"$HOME/big\" || exit 4\nexec sleep 60\n");
    spec.options.insert("sas.dev/disk-bytes".into(), (2 << 20).to_string());
    let error = start(&runtime, spec).await.err().unwrap().to_string();
    assert!(error.contains("sas.dev/disk-bytes"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_runs_inside_its_instance() {
    if support::missing("python3") {
        return;
    }
    for level in [JailLevel::Basic, JailLevel::Strict] {
        let Some((_dir, runtime)) = at(level) else { continue };
        let started =
            start(&runtime, serving("echo mine > \"$HOME/written\"; echo beside > changed")).await.unwrap();
        let run = async |text: &str| {
            let ran = started.instance.exec(&["sh".into(), "-c".into(), text.into()]).await.unwrap();
            (ran.code, String::from_utf8_lossy(&ran.output).into_owned())
        };
        let (code, said) = run("cat $HOME/written changed; id -u; ls -d /proc/[0-9]*; \
             python3 -c 'import os, urllib.request as u; \
             print(u.urlopen(\"http://127.0.0.1:\" + os.environ[\"PORT\"] + \"/changed\").read())'")
        .await;
        assert_eq!(code, Some(0), "{said}");
        assert!(said.starts_with("mine | beside | "), "it sees what the instance wrote: {said}");
        assert!(said.contains("b'beside"), "and reaches its port: {said}");
        if rustix::process::geteuid().is_root() {
            let user: u32 = said.split(" | ").nth(2).unwrap().parse().unwrap();
            assert!(user >= 1_900_000_000, "as its user: {said}");
            assert!(
                said.split(" | ").filter(|line| line.starts_with("/proc/")).count() < 12,
                "among its processes: {said}"
            );
            // Its own signals reach the instance, and nobody else.
            let (code, said) = run("kill -0 2 || kill -0 3 || kill -0 4").await;
            assert_eq!(code, Some(0), "{said}");
        }
        let sleeps = ["sleep".to_owned(), "87006.5".to_owned()];
        let (instance, other) = (Arc::clone(&started.instance), Arc::clone(&started.instance));
        let running = tokio::spawn(async move { instance.exec(&sleeps).await });
        support::eventually("the command runs", || sleeping("87006.5") == 1).await;
        if rustix::process::geteuid().is_root() {
            other.stop(Duration::from_secs(5)).await.unwrap();
            support::eventually("the command ends with its instance", || sleeping("87006.5") == 0).await;
        }
        running.abort();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ordinary_users_commands_run_in_their_instances_places() {
    if !support::missing("python3")
        && as_an_ordinary_user("an_ordinary_users_commands_run_in_their_instances_places")
    {
        let Some((_dir, runtime)) = at(JailLevel::Basic) else { return };
        let started =
            start(&runtime, serving("echo mine > \"$HOME/written\"; echo beside > changed")).await.unwrap();
        let ran = started
            .instance
            .exec(&["sh".into(), "-c".into(), "cat $HOME/written changed".into()])
            .await
            .unwrap();
        assert_eq!(String::from_utf8_lossy(&ran.output), "mine | beside");
    }
}
