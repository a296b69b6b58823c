//! Bench d: HTTP on loopback through the whole way, a fresh WebAssembly sandbox for every request.
//!
//! `cargo bench --bench wasm_http_cold` prints a table in about three minutes. The server (ingress, gateway, routes,
//! pool, wasm runtime) is a process of its own with one thread; this process makes the load. Every connection asks a
//! revision of its own whose instance is stopped after each request, so that each arrival finds none: the server
//! counts the starts, and the table is void unless there is one per request. That the sandbox is fresh the guests
//! prove: they count the requests they have seen, and a count other than 1 is an error. Every revision has code of its
//! own, compiled for it alone; in one row all have the same component, as `wasmtime serve` has but one to serve.
//!
//! `wasmtime serve` (with one request per instance) and `workerd` join in when they are found in PATH, or at
//! `SAS_WASMTIME` and `SAS_WORKERD`.
//!
//! - `-- phases` prints what each phase costs without the network, and no more.
//! - `-- calls d1 200000` makes so many calls of `d1` or `d2` without the network, to be profiled.
//! - `-- load d1 5` asks a server of `d1`, `d2` or `same` as fast as it goes, so many times for 1.5 s each.
//! - `-- functions 10000` deploys so many different functions in one process and asks each once.
//! - `-- soak 60` mixes traps, loops and memory bombs with good requests for so many seconds.
#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{
    io::Write as _,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Answer, Artifact, Body, Capabilities, Cx, Deployed, HostPattern, Instance, InstanceEvents, InstanceId,
    NoSink, Pool as _, RequestId, Result, RevisionKey, RevisionName, RevisionSpec, RouteAction, RouteChange,
    RouteRule, Router as _, Runtime, Source, Split, StartPhase, StartRequest, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig, config::IdleRule};
use sas_router::{Gateway, GatewayConfig, RouteTable, Server, ServerConfig};
use sas_runtime_wasm::{CallLimits, WasmConfig, WasmRuntime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

const COMPONENT: &[u8] = include_bytes!("../runtimes/wasm/guests/wasi-http/probe.wasm");
const PROBE: &str = include_str!("../runtimes/wasm/guests/probe.wat");
const HELLO: &str = include_str!("../runtimes/wasm/guests/hello.wat");
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 5;
/// Rows of this runtime, before those of others.
const OURS: usize = 3;
const MEASURE: Duration = Duration::from_millis(1_500);

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let number = |at: usize, default: usize| {
        arguments.get(at).and_then(|text| text.parse::<usize>().ok()).unwrap_or(default)
    };
    match (std::env::var("SAS_BENCH_WASM_ROLE").as_deref(), arguments.first().map(String::as_str)) {
        (Ok(kind), _) => block_on(serve(kind == "d1", kind == "same")),
        (_, Some("phases")) => block_on(phases()),
        (_, Some("calls")) => {
            block_on(calls(arguments.get(1).is_some_and(|way| way == "d1"), number(2, 200_000)));
        }
        (_, Some("load")) => {
            let kind = arguments.get(1).map_or("d1", String::as_str);
            block_on(load(Way::ours(kind), number(2, ROUNDS)));
        }
        (_, Some("functions")) => block_on(functions(number(1, 10_000))),
        (_, Some("soak")) => block_on(soak(Duration::from_secs(number(1, 60) as u64))),
        _ => block_on(bench()),
    }
}

fn block_on(future: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future);
}

/// A greeting that a sandbox says once: a second request to the same memory traps.
fn once() -> Vec<u8> {
    HELLO
        .replace(
            "(drop (call",
            "(if (i32.load (i32.const 60000)) (then (unreachable))) (i32.store (i32.const 60000) (i32.const 1)) (drop (call",
        )
        .into_bytes()
}

/// The function of the revision with this number: no two have the same bytes.
fn spec(d1: bool, number: usize) -> RevisionSpec {
    let (name, bytes) = if d1 {
        let mine = format!("(data (i32.const 61000) \"{number:08}\")");
        let code = String::from_utf8(once())
            .expect("text")
            .replace("(data (i32.const 0)", &format!("{mine} (data (i32.const 0)"));
        ("once.wat", code.into_bytes())
    } else {
        // A section that nobody reads: its length, the length of its name, the name.
        let section = [b"\0\x09\x08".as_slice(), format!("{number:08}").as_bytes()].concat();
        ("probe.wasm", [COMPONENT, &section].concat())
    };
    RevisionSpec::new("wasm", Source::Bytes { name: name.into(), bytes: bytes.into() })
}

fn path(d1: bool) -> &'static str {
    if d1 { "/" } else { "/count" }
}

/// The production runtime, with its starts counted.
#[derive(Debug)]
struct Counted {
    runtime: Arc<WasmRuntime>,
    starts: AtomicU64,
}

#[async_trait]
impl Runtime for Counted {
    fn name(&self) -> &'static str {
        self.runtime.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.runtime.capabilities()
    }
    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.runtime.prepare(spec).await
    }
    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        self.runtime.start(request).await
    }
    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        self.starts.fetch_add(1, Ordering::Relaxed);
        self.runtime.try_start(request)
    }
    async fn quiesce(&self) {
        self.runtime.quiesce().await;
    }
}

/// The server: one revision per connection of the bench, and a thousand that are asked once each.
async fn serve(d1: bool, same: bool) {
    let runtime = Arc::new(WasmRuntime::new(WasmConfig::default()).expect("a runtime"));
    let runtime = Arc::new(Counted { runtime, starts: AtomicU64::new(0) });
    let mut config = PoolConfig::seeded(1);
    config.idle = IdleRule::AtOnce;
    let pool = InstancePool::new(config);
    let table = Arc::new(RouteTable::new(1));
    let mut changes = Vec::new();
    for at in 0..CONNECTIONS + 1_000 {
        let name = format!("f{at}");
        let spec = spec(d1, if same { 0 } else { at });
        let deployed = Deployed::new(
            Arc::clone(&runtime) as _,
            runtime.prepare(&spec).await.unwrap_or_else(|error| panic!("{}", error.chain())),
            Arc::new(spec),
            RevisionName::new("default", &name, "00001"),
            TenantKey(1),
        );
        let key = pool.register(Arc::new(deployed)).expect("room");
        let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(key, 100)]));
        changes
            .push(RouteChange::Set { host: HostPattern::Exact(format!("{name}.test")), rules: vec![rule] });
    }
    table.apply(changes).expect("valid routes");
    let gateway = Gateway::new(table, pool, GatewayConfig::default());
    let server = Server::bind((Ipv4Addr::LOCALHOST, 0).into(), gateway, ServerConfig::default())
        .await
        .expect("a free port");
    say(&server.local_addr().to_string());
    // Each line on standard input is answered with the starts so far. A thread of its own, which sleeps meanwhile.
    std::thread::spawn(move || {
        for _ in std::io::stdin().lines().map_while(std::result::Result::ok) {
            say(&runtime.starts.load(Ordering::Relaxed).to_string());
        }
    });
    std::future::pending::<()>().await;
}

fn say(line: &str) {
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).expect("somebody listens");
}

/// A server process that ends with the bench.
struct Way {
    name: &'static str,
    target: &'static str,
    path: &'static str,
    child: Child,
    address: SocketAddr,
    starts: Option<(std::process::ChildStdin, std::io::BufReader<std::process::ChildStdout>)>,
}

impl Drop for Way {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

impl Way {
    fn ours(kind: &str) -> Self {
        use std::io::BufRead as _;
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .env("SAS_BENCH_WASM_ROLE", kind)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let mut stdout = std::io::BufReader::new(child.stdout.take().expect("piped"));
        let mut line = String::new();
        stdout.read_line(&mut line).expect("an address");
        let (name, target) = match kind {
            "d1" => ("d1 CGI module", "≥ 40 k/s/core, p50 ≤ 60 µs, p99 ≤ 500 µs"),
            "d2" => ("d2 wasi:http component", "≥ 30 k/s/core"),
            _ => ("d2, the same in all revisions", "≥ 30 k/s/core, 1.5 × wasmtime serve"),
        };
        let starts = Some((child.stdin.take().expect("piped"), stdout));
        Self {
            name,
            target,
            path: path(kind == "d1"),
            child,
            address: line.trim().parse().expect("an address"),
            starts,
        }
    }

    /// Starts so far, as the server counts them.
    fn starts(&mut self) -> Option<u64> {
        use std::io::BufRead as _;
        let (stdin, stdout) = self.starts.as_mut()?;
        writeln!(stdin, "starts").expect("it listens");
        let mut line = String::new();
        stdout.read_line(&mut line).expect("an answer");
        line.trim().parse().ok()
    }

    /// CPU seconds so far, those of threads that have ended included, to a hundredth.
    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        // The name, in brackets, may have spaces in it; what follows has not.
        let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
        fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
    }

    fn peak_mib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1_024
    }
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Some(path.into());
    }
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

async fn peer(
    name: &'static str,
    path: &'static str,
    command: &mut Command,
    address: SocketAddr,
) -> Option<Way> {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let way = Way { name, target: "", path, child, address, starts: None };
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(25)).await;
        if TcpStream::connect(address).await.is_ok() {
            return Some(way);
        }
    }
    None
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("bound")
}

async fn wasmtime_serve(directory: &std::path::Path) -> Option<Way> {
    let binary = find("SAS_WASMTIME", "wasmtime")?;
    let component = directory.join("probe.wasm");
    std::fs::write(&component, COMPONENT).ok()?;
    let address = free_port();
    let mut command = Command::new(binary);
    command.args(["serve", "-Scli", "--max-instance-reuse-count", "1", "--addr"]);
    command.arg(address.to_string()).arg(&component).env("TOKIO_WORKER_THREADS", "1");
    peer("wasmtime serve, fresh", "/count", &mut command, address).await
}

async fn workerd(directory: &std::path::Path) -> Option<Way> {
    let binary = find("SAS_WORKERD", "workerd")?;
    let address = free_port();
    let config = format!(
        "using W = import \"/workerd/workerd.capnp\";\nconst config :W.Config = (services = [(name = \"main\", worker = \
         (serviceWorkerScript = \"addEventListener('fetch', e => e.respondWith(new Response('1')))\", \
         compatibilityDate = \"2024-01-01\"))], sockets = [(name = \"http\", address = \"{address}\", http = (), \
         service = \"main\")]);\n"
    );
    let file = directory.join("config.capnp");
    std::fs::write(&file, config).ok()?;
    peer("workerd, warm", "/", Command::new(binary).arg("serve").arg(&file), address).await
}

/// One connection; answers have a Content-Length or are chunked in one read.
struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    async fn open(address: SocketAddr, host: usize, path: &str) -> Self {
        let stream = TcpStream::connect(address).await.expect("a listener");
        stream.set_nodelay(true).expect("a TCP socket");
        let request = format!("GET {path} HTTP/1.1\r\nhost: f{host}.test\r\n\r\n").into_bytes();
        Self { stream, request, buffer: vec![0; 4_096] }
    }

    async fn ask(&mut self) {
        self.stream.write_all(&self.request).await.expect("an open connection");
        let mut have = 0;
        loop {
            let count = self.stream.read(&mut self.buffer[have..]).await.expect("an answer");
            assert!(count > 0, "closed: {}", String::from_utf8_lossy(&self.buffer[..have]));
            have += count;
            if is_whole(&self.buffer[..have]) {
                break;
            }
        }
        let answer = &self.buffer[..have];
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(answer));
        let fresh = answer.ends_with(b"world!\n")
            || answer.ends_with(b"\r\n1")
            || answer.ends_with(b"1\r\n0\r\n\r\n");
        assert!(fresh, "not from a fresh sandbox: {}", String::from_utf8_lossy(answer));
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(head) = answer.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(&answer[..head]).to_ascii_lowercase();
    match text
        .split("content-length: ")
        .nth(1)
        .and_then(|rest| rest.lines().next()?.trim().parse::<usize>().ok())
    {
        Some(length) => answer.len() == head + 4 + length,
        None => answer.ends_with(b"0\r\n\r\n"),
    }
}

/// Everything at once, as fast as it goes: requests, and the server's CPU time for each.
async fn closed_loop(way: &Way) -> (u64, f64, f64) {
    let before = way.cpu_seconds();
    let began = Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for host in 0..CONNECTIONS {
        let (address, path) = (way.address, way.path);
        asking.spawn(async move {
            let mut client = Client::open(address, host, path).await;
            let mut count = 0_u64;
            while began.elapsed() < MEASURE {
                client.ask().await;
                count += 1;
            }
            count
        });
    }
    let mut requests = 0;
    while let Some(count) = asking.join_next().await {
        requests += count.expect("no answer was wrong");
    }
    let wall = began.elapsed().as_secs_f64();
    let cpu = way.cpu_seconds() - before;
    (requests, requests as f64 / cpu, requests as f64 / wall)
}

/// Arrivals of a seeded Poisson process; latency counts from the intended arrival. Microseconds, sorted; `None` when
/// the server did not keep up with 99 % of what was offered.
async fn open_loop(way: &Way, rate: f64, seed: u64) -> Option<Vec<f64>> {
    let mut state = 0x9e37_79b9_u64 ^ (seed << 32);
    let mut unit = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut schedules = vec![Vec::new(); CONNECTIONS];
    let (mut at, mut turn) = (0.02, 0);
    while at < 0.02 + MEASURE.as_secs_f64() {
        schedules[turn % CONNECTIONS].push(Duration::from_secs_f64(at));
        at += -(1.0 - unit()).ln() / rate;
        turn += 1;
    }
    let began = Instant::now();
    let mut asking = tokio::task::JoinSet::new();
    for (host, schedule) in schedules.into_iter().enumerate() {
        let (address, path) = (way.address, way.path);
        asking.spawn(async move {
            let mut client = Client::open(address, host, path).await;
            let mut times = Vec::with_capacity(schedule.len());
            for due in schedule {
                let due = began + due;
                // The timer's grain is a millisecond: the last stretch is waited out by asking the clock.
                if due.saturating_duration_since(Instant::now()) > Duration::from_millis(2) {
                    tokio::time::sleep_until(due - Duration::from_millis(1)).await;
                }
                while Instant::now() < due {
                    tokio::task::yield_now().await;
                }
                client.ask().await;
                times.push(due.elapsed().as_secs_f64() * 1e6);
            }
            times
        });
    }
    let mut all = Vec::new();
    while let Some(times) = asking.join_next().await {
        all.extend(times.expect("no answer was wrong"));
    }
    let late = began.elapsed().as_secs_f64() / (0.02 + MEASURE.as_secs_f64());
    all.sort_by(f64::total_cmp);
    (late < 1.01).then_some(all)
}

fn spread(values: &mut [f64]) -> (f64, f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0], values[values.len() - 1])
}

fn at(sorted: &[f64], share: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

async fn bench() {
    phases().await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut ways = vec![Way::ours("d1"), Way::ours("d2"), Way::ours("same")];
    for (name, found) in
        [("wasmtime", wasmtime_serve(directory.path()).await), ("workerd", workerd(directory.path()).await)]
    {
        match found {
            Some(way) => ways.push(way),
            None => println!("{name} was not found (or did not start): its row is missing"),
        }
    }
    println!(
        "\n| way | requests/s/core (median, min, max) | /s by the clock | half load p50 µs | p99 µs (median, min, max) | p99.9 µs | peak MiB | target |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut medians = Vec::new();
    let mut figures: Vec<(Vec<f64>, Vec<f64>)> = vec![(Vec::new(), Vec::new()); ways.len()];
    for _ in 0..ROUNDS {
        for (way, (per_core, per_second)) in ways.iter_mut().zip(&mut figures) {
            let before = way.starts();
            let (requests, core, wall) = closed_loop(way).await;
            if let (Some(before), Some(after)) = (before, way.starts()) {
                assert_eq!(after - before, requests, "void: a request found an instance");
            }
            per_core.push(core);
            per_second.push(wall);
        }
    }
    for (way, (per_core, per_second)) in ways.iter_mut().zip(&mut figures) {
        let (core, least, most) = spread(per_core);
        let (wall, ..) = spread(per_second);
        let mut shares = [Vec::new(), Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            let Some(times) = open_loop(way, wall / 2.0, round as u64).await else {
                println!("void: {} did not keep up with half of its own rate", way.name);
                continue;
            };
            for (share, found) in [0.5, 0.99, 0.999].into_iter().zip(&mut shares) {
                found.push(at(&times, share));
            }
        }
        if shares[0].is_empty() {
            shares = [vec![f64::NAN], vec![f64::NAN], vec![f64::NAN]];
        }
        let [(half, ..), (tail, tail_least, tail_most), (far, ..)] = shares.each_mut().map(|all| spread(all));
        println!(
            "| {} | {core:.0} ({least:.0}, {most:.0}) | {wall:.0} | {half:.0} | {tail:.0} ({tail_least:.0}, {tail_most:.0}) | {far:.0} | {} | {} |",
            way.name,
            way.peak_mib(),
            way.target,
        );
        medians.push(core);
    }
    for (peer, of_peer) in ways.iter().zip(&medians).skip(OURS) {
        for (way, core) in ways.iter().zip(&medians).take(OURS) {
            println!("{} has {:.2} × the rate per core of {}", way.name, core / of_peer, peer.name);
        }
    }
    for way in ways.iter_mut().take(2) {
        let before = way.starts();
        let mut client = Vec::new();
        for host in CONNECTIONS..CONNECTIONS + 1_000 {
            client.push(Client::open(way.address, host, way.path).await);
        }
        let began = Instant::now();
        for client in &mut client {
            client.ask().await;
        }
        let took = began.elapsed();
        assert_eq!(way.starts().zip(before).map(|(after, before)| after - before), Some(1_000));
        println!(
            "{}: 1,000 distinct revisions once each, one after another: {:.0} µs each",
            way.name,
            took.as_secs_f64() * 1e3
        );
    }
}

#[derive(Debug)]
struct NoEvents;

impl InstanceEvents for NoEvents {
    fn phase(&self, _: InstanceId, _: StartPhase) {}
    fn exited(&self, _: InstanceId, _: sas_core::ExitReport) {}
}

async fn deployed(runtime: &Arc<WasmRuntime>, spec: RevisionSpec) -> StartRequest {
    let artifact = runtime.prepare(&spec).await.unwrap_or_else(|error| panic!("{}", error.chain()));
    let deployed = Deployed::new(
        Arc::clone(runtime) as _,
        artifact,
        Arc::new(spec),
        RevisionName::new("default", "function", "00001"),
        TenantKey(1),
    );
    let deadline = Instant::now() + Duration::from_secs(3_600);
    StartRequest::new(
        InstanceId(1),
        RevisionKey::new(1, 1),
        Arc::new(deployed),
        NoSink::logs(),
        Arc::new(NoEvents),
        deadline,
    )
}

fn request(path: &str) -> sas_core::Request {
    http::Request::builder().uri(path).header("host", "f.test").body(Body::empty()).expect("a request")
}

fn cx() -> Cx {
    Cx::new(TenantKey(1), RequestId(1), Instant::now() + Duration::from_secs(60))
}

async fn ask(instance: &dyn Instance, path: &str) -> std::result::Result<bytes::Bytes, String> {
    match instance.call(request(path), &cx()).await {
        Ok(Answer::Http(response)) => {
            response.into_body().collect(1 << 20).await.map_err(|error| error.to_string())
        }
        Ok(Answer::Upgrade { .. }) => Err("an upgrade".to_owned()),
        Err(failed) => Err(failed.error.to_string()),
    }
}

/// Nothing but requests to one server.
async fn load(way: Way, rounds: usize) {
    let mut per_core = Vec::new();
    for _ in 0..rounds {
        per_core.push(closed_loop(&way).await.1);
    }
    let (median, least, most) = spread(&mut per_core);
    println!("{}: {median:.0} requests/s/core ({least:.0}, {most:.0})", way.name);
}

/// Nothing but calls, for a profiler to look at.
async fn calls(d1: bool, times: usize) {
    let runtime = Arc::new(WasmRuntime::new(WasmConfig::default()).expect("a runtime"));
    let start = deployed(&runtime, spec(d1, 0)).await;
    let instance = runtime.try_start(&start).expect("at once").expect("a start");
    let began = Instant::now();
    for _ in 0..times {
        ask(&*instance, path(d1)).await.expect("an answer");
    }
    println!("{:.2} µs each", began.elapsed().as_secs_f64() * 1e6 / times as f64);
}

/// What each phase costs without the network.
async fn phases() {
    const TIMES: u32 = 20_000;
    let cache = tempfile::tempdir().expect("a temporary directory");
    println!("| phase | d1 CGI module | d2 wasi:http component |\n|---|---|---|");
    let mut rows = vec![Vec::new(); 4];
    for d1 in [true, false] {
        let config =
            || WasmConfig { cache_dir: Some(cache.path().join("compiled")), ..WasmConfig::default() };
        let runtime = Arc::new(WasmRuntime::new(config()).expect("a runtime"));
        let began = Instant::now();
        let start = deployed(&runtime, spec(d1, 0)).await;
        rows[0].push(format!("{:.2} ms", began.elapsed().as_secs_f64() * 1e3));
        let again = Arc::new(WasmRuntime::new(config()).expect("a runtime"));
        let began = Instant::now();
        deployed(&again, spec(d1, 0)).await;
        rows[1].push(format!("{:.0} µs", began.elapsed().as_secs_f64() * 1e6));
        let began = Instant::now();
        for _ in 0..TIMES {
            std::hint::black_box(runtime.try_start(&start).expect("at once").expect("a start"));
        }
        rows[2].push(format!("{:.0} ns", began.elapsed().as_secs_f64() * 1e9 / f64::from(TIMES)));
        let instance = runtime.try_start(&start).expect("at once").expect("a start");
        let began = Instant::now();
        for _ in 0..TIMES {
            ask(&*instance, path(d1)).await.expect("an answer");
        }
        rows[3].push(format!("{:.2} µs", began.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES)));
    }
    let names = [
        "deploy, compiled",
        "deploy, from the cache on disk",
        "start and drop of an instance",
        "call: sandbox, guest, answer, drop",
    ];
    for (name, row) in names.iter().zip(rows) {
        println!("| {name} | {} | {} |", row[0], row[1]);
    }
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) / 1_024
}

/// So many different functions in one process.
async fn functions(count: usize) {
    let runtime = Arc::new(WasmRuntime::new(WasmConfig::default()).expect("a runtime"));
    let before = rss_mib();
    let began = Instant::now();
    let mut instances = Vec::with_capacity(count);
    for at in 0..count {
        let code = HELLO.replace("hello, world!", &format!("hello {at:07}"));
        let source = Source::Bytes { name: "f.wat".into(), bytes: code.into() };
        let start = deployed(&runtime, RevisionSpec::new("wasm", source)).await;
        instances.push(runtime.try_start(&start).expect("at once").expect("a start"));
    }
    let (deploys, after) = (began.elapsed(), rss_mib());
    let began = Instant::now();
    for (at, instance) in instances.iter().enumerate() {
        let body = ask(&**instance, "/").await.expect("an answer");
        assert_eq!(body, format!("hello {at:07}\n"));
    }
    let asked = began.elapsed();
    println!(
        "| functions | deploy each | memory of all | each | first request each |\n|---|---|---|---|---|"
    );
    println!(
        "| {count} | {:.2} ms | {} MiB | {:.1} KiB | {:.1} µs |",
        deploys.as_secs_f64() * 1e3 / count as f64,
        after - before,
        (after - before) as f64 * 1_024.0 / count as f64,
        asked.as_secs_f64() * 1e6 / count as f64,
    );
}

/// Traps, loops and bombs among good requests: the good ones' latency, and no growth.
async fn soak(time: Duration) {
    let limits =
        CallLimits { cpu: Duration::from_millis(20), memory_bytes: 16 << 20, ..CallLimits::default() };
    let runtime =
        Arc::new(WasmRuntime::new(WasmConfig { limits, ..WasmConfig::default() }).expect("a runtime"));
    let source = Source::Bytes { name: "probe.wat".into(), bytes: PROBE.into() };
    let start = deployed(&runtime, RevisionSpec::new("wasm", source)).await;
    let instance = runtime.try_start(&start).expect("at once").expect("a start");
    let began = Instant::now();
    let mut bad = tokio::task::JoinSet::new();
    for path in ["/crash", "/loop", "/bomb", "/recurse", "/exit", "/silent", "/table", "/illegal"] {
        let instance = Arc::clone(&instance);
        bad.spawn(async move {
            let mut count = 0_u64;
            while began.elapsed() < time {
                ask(&*instance, path).await.expect_err("a bad request was answered");
                count += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            count
        });
    }
    let mut times = Vec::new();
    let mut memory = Vec::new();
    while began.elapsed() < time {
        let asked = Instant::now();
        assert_eq!(ask(&*instance, "/").await.expect("an answer"), "");
        times.push(asked.elapsed().as_secs_f64() * 1e6);
        if times.len() % 200 == 1 {
            memory.push(rss_mib());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let bad: u64 = bad.join_all().await.into_iter().sum();
    times.sort_by(f64::total_cmp);
    let (early, late) = (memory[memory.len() / 4], memory[memory.len() - 1]);
    println!(
        "| good requests | bad requests | good p50 µs | p99 µs | p99.9 µs | MiB after a quarter | at the end |"
    );
    println!("|---|---|---|---|---|---|---|");
    println!(
        "| {} | {bad} | {:.0} | {:.0} | {:.0} | {early} | {late} |",
        times.len(),
        at(&times, 0.5),
        at(&times, 0.99),
        at(&times, 0.999),
    );
    assert!(late <= early + early / 4 + 8, "memory grew from {early} to {late} MiB");
}
