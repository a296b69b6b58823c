//! Bench h: a warm request through the ingress to a native HTTP instance, beside nginx with the same upstream.
//!
//! `cargo bench --bench proxy` prints a table in about three minutes. Processes of this binary take part: the upstream,
//! our proxy (ingress, gateway, route table, pool) in two layouts, a floor (a proxy on tokio that does the least and checks
//! nothing) and the load generator. nginx and haproxy are started here too, on free ports with configurations of their
//! own in a temporary directory; without one its rows are left out, and said so.
//!
//! The machine is shared by all of them, so requests per second say how fast the chain is, and CPU per request what
//! the proxy costs. Rounds of the ways alternate; the median of the rounds is shown.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    process::{Child, Command, Stdio},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Deployed, Endpoint, HostPattern, Instance, InstanceId,
    InstanceTarget, Isolation, Pool as _, Result, RevisionName, RevisionSpec, RouteAction, RouteChange,
    RouteRule, Router as _, Runtime, Source, Split, StartRequest, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig};
use sas_router::{Gateway, GatewayConfig, RouteTable, Server, ServerConfig};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    time::Instant,
};

const HOST: &str = "hello.default.localhost";
const ROUNDS: usize = 3;
const MEASURE: Duration = Duration::from_millis(2_000);
const KIB: usize = 1024;
const FLOOR: &str = "the floor";

fn main() {
    match std::env::var("SAS_BENCH_PROXY_ROLE").as_deref() {
        Ok("upstream") => runtime(1).block_on(upstream()),
        Ok("sas") => runtime(2).block_on(proxy()),
        Ok("sas-per-core") => runtime(1).block_on(per_core()),
        Ok("floor") => floor(),
        _ => runtime(1).block_on(bench()),
    }
}

fn runtime(workers: usize) -> tokio::runtime::Runtime {
    let mut builder = match workers {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(workers).enable_all().build().expect("a runtime")
}

// The upstream: as little as answers HTTP/1.1 with keep-alive.

async fn upstream() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    announce(listener.local_addr().expect("bound"));
    let small = Arc::new(answer(KIB));
    let large = Arc::new(answer(KIB * KIB));
    loop {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a TCP socket");
        let (small, large) = (Arc::clone(&small), Arc::clone(&large));
        tokio::spawn(async move {
            let mut buffer = Vec::with_capacity(8 * KIB);
            loop {
                match stream.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                if !buffer.ends_with(b"\r\n\r\n") {
                    continue;
                }
                if buffer.starts_with(b"GET /socket ") {
                    // A WebSocket that nobody speaks on.
                    let switched = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n";
                    if stream.write_all(switched).await.is_ok() {
                        let _ended = stream.read(&mut [0; 16]).await;
                    }
                    return;
                }
                let sent = if buffer.starts_with(b"GET /1k ") {
                    stream.write_all(&small).await
                } else if buffer.starts_with(b"GET /1m ") {
                    stream.write_all(&large).await
                } else {
                    stream_chunks(&mut stream).await
                };
                if sent.is_err() {
                    return;
                }
                buffer.clear();
            }
        });
    }
}

fn answer(bytes: usize) -> Vec<u8> {
    let mut answer =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {bytes}\r\n\r\n")
            .into_bytes();
    answer.resize(answer.len() + bytes, b'x');
    answer
}

/// 1 MiB in chunks of 16 KiB.
async fn stream_chunks(stream: &mut TcpStream) -> std::io::Result<()> {
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    let mut chunk = b"4000\r\n".to_vec();
    chunk.resize(chunk.len() + 16 * KIB, b'x');
    chunk.extend_from_slice(b"\r\n");
    for _ in 0..64 {
        stream.write_all(&chunk).await?;
    }
    stream.write_all(b"0\r\n\r\n").await
}

fn announce(address: SocketAddr) {
    use std::io::Write as _;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "{address}").and_then(|()| stdout.flush()).expect("somebody listens");
}

// Our proxy: the production crates, and a runtime whose one instance is the upstream.

#[derive(Debug)]
struct Elsewhere(SocketAddr);

#[derive(Debug)]
struct There(InstanceId, Endpoint);

#[async_trait]
impl Instance for There {
    fn id(&self) -> InstanceId {
        self.0
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&self.1)
    }
    async fn stop(&self, _: Duration) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Runtime for Elsewhere {
    fn name(&self) -> &'static str {
        "elsewhere"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }
    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(Artifact::new((), ArtifactInfo::default()))
    }
    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        Ok(Arc::new(There(request.id, Endpoint::Tcp(self.0))))
    }
    async fn quiesce(&self) {}
}

async fn gateway() -> Arc<Gateway> {
    let to: SocketAddr =
        std::env::var("SAS_BENCH_PROXY_UPSTREAM").ok().and_then(|to| to.parse().ok()).expect("where to");
    let pool = InstancePool::new(PoolConfig::default());
    let runtime = Arc::new(Elsewhere(to));
    let spec = RevisionSpec::new("elsewhere", Source::Function("upstream".into()));
    let artifact = runtime.prepare(&spec).await.expect("nothing to prepare");
    let name = RevisionName::new("default", "hello", "hello-00001");
    let tenant = TenantKey(1);
    let deployed = Deployed::new(runtime, artifact, Arc::new(spec), name, tenant);
    let revision = pool.register(Arc::new(deployed)).expect("an empty pool");
    let table = Arc::new(RouteTable::new(1));
    let rule = RouteRule::new(tenant, RouteAction::Split(vec![Split::new(revision, 100)]));
    table
        .apply(vec![RouteChange::Set { host: HostPattern::Exact(HOST.into()), rules: vec![rule] }])
        .expect("a valid rule");
    Gateway::new(table, pool, GatewayConfig::default())
}

fn server_config() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.max_connections = Some(20_000);
    config
}

/// One runtime whose workers share the connections, as a program has it that does other things as well.
async fn proxy() {
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let server = Server::bind(address, gateway().await, server_config()).await.expect("a free port");
    announce(server.local_addr());
    std::future::pending::<()>().await;
}

/// Two workers, each with its own share of the connections, as nginx has its workers. Pool, table and gateway are one.
async fn per_core() {
    let mut config = server_config();
    config.workers = 2;
    let address = (Ipv4Addr::LOCALHOST, 0).into();
    let server = Server::bind(address, gateway().await, config).await.expect("a free port");
    announce(server.local_addr());
    std::future::pending::<()>().await;
}

// The floor: what a proxy on tokio costs that knows one shape of request and answer. A measuring stick, not a proxy.

fn floor() {
    let to: SocketAddr =
        std::env::var("SAS_BENCH_PROXY_UPSTREAM").ok().and_then(|to| to.parse().ok()).expect("where to");
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    announce(listener.local_addr().expect("bound"));
    let worker = move |listener: std::net::TcpListener| {
        tokio::task::LocalSet::new().block_on(&runtime(1), async {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let idle = Rc::<RefCell<Vec<TcpStream>>>::default();
            loop {
                let (client, _) = listener.accept().await.expect("a connection");
                client.set_nodelay(true).expect("a TCP socket");
                tokio::task::spawn_local(least(client, to, Rc::clone(&idle)));
            }
        });
    };
    let second = listener.try_clone().expect("a descriptor");
    let second = std::thread::spawn(move || worker(second));
    worker(listener);
    second.join().expect("it serves for ever");
}

async fn least(
    mut client: TcpStream,
    to: SocketAddr,
    idle: Rc<RefCell<Vec<TcpStream>>>,
) -> std::io::Result<()> {
    const ADDED: &[u8] =
        b"forwarded: for=127.0.0.1;proto=http\r\nx-forwarded-for: 127.0.0.1\r\nx-forwarded-proto: http\r\n\
        x-request-id: 0123456789abcdef0123456789abcdef\r\n\
        traceparent: 00-0123456789abcdef0123456789abcdef-0123456789abcdef-01\r\n\r\n";
    let [mut asked, mut answer, mut out] = [(); 3].map(|()| Vec::<u8>::with_capacity(16 * KIB));
    let put = |headers: &[httparse::Header<'_>], out: &mut Vec<u8>| {
        for header in headers.iter().filter(|header| !header.name.eq_ignore_ascii_case("connection")) {
            for part in [header.name.as_bytes(), b": ", header.value, b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    };
    loop {
        let head = loop {
            let mut lines = [httparse::EMPTY_HEADER; 64];
            let mut request = httparse::Request::new(&mut lines);
            if let Ok(httparse::Status::Complete(head)) = request.parse(&asked) {
                out.clear();
                let (method, path) = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
                for part in [method, " ", path, " HTTP/1.1\r\n"] {
                    out.extend_from_slice(part.as_bytes());
                }
                put(request.headers, &mut out);
                out.extend_from_slice(ADDED);
                break head;
            }
            if client.read_buf(&mut asked).await? == 0 {
                return Ok(());
            }
        };
        asked.drain(..head);
        let kept = idle.borrow_mut().pop();
        let mut instance = match kept {
            Some(kept) => kept,
            None => {
                let made = TcpStream::connect(to).await?;
                made.set_nodelay(true)?;
                made
            }
        };
        instance.write_all(&out).await?;
        answer.clear();
        let (head, length) = loop {
            if instance.read_buf(&mut answer).await? == 0 {
                return Ok(());
            }
            let mut lines = [httparse::EMPTY_HEADER; 64];
            let mut response = httparse::Response::new(&mut lines);
            if let Ok(httparse::Status::Complete(head)) = response.parse(&answer) {
                out.clear();
                out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
                put(response.headers, &mut out);
                out.extend_from_slice(b"x-request-id: 0123456789abcdef0123456789abcdef\r\n\r\n");
                let length = response.headers.iter().find(|header| header.name == "content-length");
                let length = length.and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok());
                break (head, length.unwrap_or(0));
            }
        };
        while answer.len() < head + length {
            if instance.read_buf(&mut answer).await? == 0 {
                return Ok(());
            }
        }
        out.extend_from_slice(&answer[head..]);
        client.write_all(&out).await?;
        idle.borrow_mut().push(instance);
    }
}

// The bench.

struct Way {
    name: &'static str,
    address: SocketAddr,
    /// Whose CPU time counts.
    pid: Option<u32>,
}

/// A process that ends with the bench. nginx is asked to end, since its workers would outlive a kill.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status();
        if !asked.is_ok_and(|status| status.success()) {
            let _gone = self.0.kill();
        }
        let _reaped = self.0.wait();
    }
}

async fn role(role: &str, upstream: Option<SocketAddr>) -> (Ended, SocketAddr) {
    let mut command = Command::new(std::env::current_exe().expect("this binary"));
    command.env("SAS_BENCH_PROXY_ROLE", role).stdout(Stdio::piped());
    if let Some(upstream) = upstream {
        command.env("SAS_BENCH_PROXY_UPSTREAM", upstream.to_string());
    }
    let mut child = command.spawn().expect("a process");
    let stdout = tokio::process::ChildStdout::from_std(child.stdout.take().expect("piped")).expect("a pipe");
    let line = BufReader::new(stdout).lines().next_line().await.expect("a line").expect("an address");
    (Ended(child), line.parse().expect("an address"))
}

/// nginx as a proxy of the same upstream, with as many workers as ours has.
async fn nginx(upstream: SocketAddr, directory: &Path) -> Option<(Ended, SocketAddr, u32)> {
    let binary = ["/usr/sbin/nginx", "/usr/bin/nginx", "/usr/local/bin/nginx"]
        .into_iter()
        .find(|path| Path::new(path).exists())?;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?.local_addr().ok()?;
    let at = directory.display();
    let config = format!(
        "daemon off; worker_processes 2; pid {at}/pid; error_log {at}/error.log crit;
events {{ worker_connections 20000; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 300s;
  client_body_temp_path {at}/1; proxy_temp_path {at}/2; fastcgi_temp_path {at}/3; uwsgi_temp_path {at}/4; scgi_temp_path {at}/5;
  upstream instance {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen {free} backlog=1024;
    location / {{
      proxy_pass http://instance; proxy_http_version 1.1; proxy_set_header Connection \"\";
      proxy_set_header Host $host; proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Request-Id $request_id;
    }}
  }}
}}
"
    );
    let file = directory.join("nginx.conf");
    std::fs::write(&file, config).ok()?;
    started(Command::new(binary).arg("-p").arg(directory).arg("-c").arg(&file), free).await
}

/// haproxy as a proxy of the same upstream, with two threads.
async fn haproxy(upstream: SocketAddr, directory: &Path) -> Option<(Ended, SocketAddr, u32)> {
    let binary = ["/usr/sbin/haproxy", "/usr/bin/haproxy", "/usr/local/sbin/haproxy"]
        .into_iter()
        .find(|path| Path::new(path).exists())?;
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.ok()?.local_addr().ok()?;
    let config = format!(
        "global
  nbthread 2
  maxconn 5000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  option forwardfor
  http-reuse always
frontend in
  bind {free}
  unique-id-format %{{+X}}o\\ %ci:%cp_%fi:%fp_%Ts_%rt:%pid
  http-request set-header X-Request-Id %[unique-id]
  default_backend instance
backend instance
  server one {upstream}
"
    );
    let file = directory.join("haproxy.cfg");
    std::fs::write(&file, config).ok()?;
    started(Command::new(binary).arg("-q").arg("-db").arg("-f").arg(&file), free).await
}

/// Starts another proxy, and waits until it listens.
async fn started(command: &mut Command, at: SocketAddr) -> Option<(Ended, SocketAddr, u32)> {
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let pid = child.id();
    let child = Ended(child);
    for _ in 0..200 {
        if TcpStream::connect(at).await.is_ok() {
            return Some((child, at, pid));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}

/// A process and its children.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    if let Ok(children) = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")) {
        all.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
    }
    all
}

/// CPU seconds that a family has used; clock ticks are hundredths on Linux.
fn cpu_seconds(pid: u32) -> f64 {
    family(pid)
        .into_iter()
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let after = stat.rsplit_once(')')?.1;
            let mut fields = after.split_whitespace().skip(11);
            let ticks: f64 = fields.next()?.parse::<f64>().ok()? + fields.next()?.parse::<f64>().ok()?;
            Some(ticks / 100.0)
        })
        .sum()
}

/// Bytes of memory that a family holds.
fn memory(pid: u32) -> f64 {
    family(pid)
        .into_iter()
        .filter_map(|pid| {
            let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
            Some(statm.split_whitespace().nth(1)?.parse::<f64>().ok()? * 4096.0)
        })
        .sum()
}

#[derive(Clone, Copy, Debug)]
struct Figures {
    per_second: f64,
    p50: f64,
    p99: f64,
    cpu: f64,
}

/// One connection that asks over and over. Microseconds per answer.
async fn ask(address: SocketAddr, path: &'static str, stop: Arc<AtomicBool>) -> Vec<f32> {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    stream.set_nodelay(true).expect("a TCP socket");
    let request = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\naccept: */*\r\nuser-agent: bench\r\n\r\n");
    let mut buffer = vec![0; 64 * KIB];
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        stream.write_all(request.as_bytes()).await.expect("an open connection");
        read_answer(&mut stream, &mut buffer).await;
        times.push(asked.elapsed().as_secs_f32() * 1e6);
    }
    times
}

async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) {
    let mut have = 0;
    let head = loop {
        let count = stream.read(&mut buffer[have..]).await.expect("an answer");
        assert!(count > 0, "the connection ended: {}", String::from_utf8_lossy(&buffer[..have]));
        have += count;
        if let Some(at) = buffer[..have].windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
    };
    assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..head]));
    let text = std::str::from_utf8(&buffer[..head]).expect("ASCII").to_ascii_lowercase();
    let length = text.split("content-length: ").nth(1).map(|rest| rest.split("\r\n").next().expect("a line"));
    if let Some(length) = length {
        let mut left = length.parse::<usize>().expect("a length") - (have - head);
        while left > 0 {
            let count = stream.read(buffer).await.expect("a body");
            assert!(count > 0, "the body ended early");
            left -= count;
        }
        return;
    }
    // Chunked: the bench's bodies hold no zero but that of the last chunk.
    let mut end: Vec<u8> = buffer[head.max(have.saturating_sub(5))..have].to_vec();
    while end != b"0\r\n\r\n" {
        let count = stream.read(buffer).await.expect("a body");
        assert!(count > 0, "the body ended early");
        end.extend_from_slice(&buffer[count.saturating_sub(5)..count]);
        end.drain(..end.len().saturating_sub(5));
    }
}

async fn measure(way: &Way, path: &'static str, connections: usize) -> Figures {
    let stop = Arc::new(AtomicBool::new(false));
    let before = way.pid.map(cpu_seconds);
    let started = Instant::now();
    let asking: Vec<_> =
        (0..connections).map(|_| tokio::spawn(ask(way.address, path, Arc::clone(&stop)))).collect();
    tokio::time::sleep(MEASURE).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = Vec::new();
    for one in asking {
        times.extend(one.await.expect("no answer was wrong"));
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = way.pid.map_or(f64::NAN, |pid| cpu_seconds(pid) - before.expect("taken before"));
    times.sort_by(f32::total_cmp);
    let at = |quantile: f64| f64::from(times[((times.len() - 1) as f64 * quantile) as usize]);
    let count = times.len() as f64;
    Figures { per_second: count / seconds, p50: at(0.5), p99: at(0.99), cpu: cpu / count * 1e6 }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[allow(clippy::print_stdout, reason = "a bench prints its table")]
async fn bench() {
    let (_upstream, to) = role("upstream", None).await;
    let (sas, sas_at) = role("sas", Some(to)).await;
    let (split, split_at) = role("sas-per-core", Some(to)).await;
    let directory = tempfile::tempdir().expect("a temporary directory");
    let nginx = nginx(to, directory.path()).await;
    let haproxy = haproxy(to, directory.path()).await;
    let (floor, floor_at) = role("floor", Some(to)).await;
    let mut ways = vec![Way { name: "direct", address: to, pid: None }];
    match &nginx {
        Some((_, address, pid)) => ways.push(Way { name: "nginx", address: *address, pid: Some(*pid) }),
        None => println!(
            "nginx is not installed here (or did not start): its rows are missing, and so is the ratio"
        ),
    }
    match &haproxy {
        Some((_, address, pid)) => ways.push(Way { name: "haproxy", address: *address, pid: Some(*pid) }),
        None => println!("haproxy is not installed here (or did not start): its rows are missing"),
    }
    ways.push(Way { name: FLOOR, address: floor_at, pid: Some(floor.0.id()) });
    ways.push(Way { name: "sas, two workers", address: split_at, pid: Some(split.0.id()) });
    ways.push(Way { name: "sas", address: sas_at, pid: Some(sas.0.id()) });

    let cases = [("/1k", 1), ("/1k", 64), ("/1m", 64), ("/stream", 64)];
    let mut all: BTreeMap<(usize, usize), Vec<Figures>> = BTreeMap::new();
    for _ in 0..ROUNDS {
        for (case, (path, connections)) in cases.iter().enumerate() {
            for (way, named) in ways.iter().enumerate() {
                // It knows answers with a length, that it holds as a whole.
                if named.name == FLOOR && *path != "/1k" {
                    continue;
                }
                all.entry((case, way)).or_default().push(measure(named, path, *connections).await);
            }
        }
    }
    println!("| body | connections | way | requests/s | p50 µs | p99 µs | proxy CPU µs/request |");
    println!("|---|---|---|---|---|---|---|");
    for ((case, way), figures) in &all {
        let of = |pick: fn(&Figures) -> f64| median(figures.iter().map(pick).collect());
        let (path, connections) = cases[*case];
        println!(
            "| {} | {connections} | {} | {:.0} | {:.0} | {:.0} | {:.1} |",
            &path[1..],
            ways[*way].name,
            of(|f| f.per_second),
            of(|f| f.p50),
            of(|f| f.p99),
            of(|f| f.cpu),
        );
    }
    let one = |way: usize, case: usize, pick: fn(&Figures) -> f64| {
        median(all[&(case, way)].iter().map(pick).collect())
    };
    let last = ways.len() - 1;
    println!(
        "\nadded p50 at 1 connection: {:.0} µs (target ≤ 30)",
        one(last, 0, |f| f.p50) - one(0, 0, |f| f.p50)
    );
    if nginx.is_some() {
        println!("added p50 of nginx:        {:.0} µs", one(1, 0, |f| f.p50) - one(0, 0, |f| f.p50));
        for way in [last, last - 1] {
            for (case, (path, connections)) in cases.iter().enumerate() {
                println!(
                    "{} / nginx, {path} at {connections}: requests/s {:.2} (target ≥ 1), CPU per request {:.2}",
                    ways[way].name,
                    one(way, case, |f| f.per_second) / one(1, case, |f| f.per_second),
                    one(way, case, |f| f.cpu) / one(1, case, |f| f.cpu),
                );
            }
        }
    }
    let at = ways.iter().position(|way| way.name == FLOOR).expect("it is always there");
    for way in [last, last - 1] {
        for case in [0, 1] {
            println!(
                "{} / the floor, 1 KiB at {}: CPU per request {:.2} (target ≤ 1.4 at 64)",
                ways[way].name,
                cases[case].1,
                one(way, case, |f| f.cpu) / one(at, case, |f| f.cpu),
            );
        }
    }
    for way in &ways[1..] {
        idle(way).await;
    }
    // A process of its own: what the allocator keeps of the connections before would hide what these take.
    let (fresh, address) = role("sas", Some(to)).await;
    sockets(&Way { name: "sas", address, pid: Some(fresh.0.id()) }).await;
}

/// What a connection costs that has been used once and lies idle.
#[allow(clippy::print_stdout, reason = "a bench prints its table")]
async fn idle(way: &Way) {
    const CONNECTIONS: usize = 1_000;
    let pid = way.pid.expect("a proxy");
    let before = memory(pid);
    let mut kept = Vec::with_capacity(CONNECTIONS);
    let request = format!("GET /1k HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let mut buffer = vec![0; 64 * KIB];
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(way.address).await.expect("a listener");
        stream.write_all(request.as_bytes()).await.expect("an open connection");
        read_answer(&mut stream, &mut buffer).await;
        kept.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let each = (memory(pid) - before) / CONNECTIONS as f64;
    println!("{}: {:.1} KiB of resident memory per idle connection", way.name, each / KIB as f64);
}

/// What a quiet WebSocket costs, with the connection to its instance.
#[allow(clippy::print_stdout, reason = "a bench prints its table")]
async fn sockets(way: &Way) {
    const SOCKETS: usize = 1_000;
    let pid = way.pid.expect("a proxy");
    let before = memory(pid);
    let mut kept = Vec::with_capacity(SOCKETS);
    let request =
        format!("GET /socket HTTP/1.1\r\nhost: {HOST}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
    let mut buffer = vec![0; 4 * KIB];
    for _ in 0..SOCKETS {
        let mut stream = TcpStream::connect(way.address).await.expect("a listener");
        stream.write_all(request.as_bytes()).await.expect("an open connection");
        let count = stream.read(&mut buffer).await.expect("an answer");
        assert!(
            buffer[..count].starts_with(b"HTTP/1.1 101"),
            "{}",
            String::from_utf8_lossy(&buffer[..count])
        );
        kept.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let each = (memory(pid) - before) / SOCKETS as f64;
    println!("{}: {:.1} KiB of resident memory per quiet WebSocket", way.name, each / KIB as f64);
}
