//! What the export of telemetry costs a request: none, a collector that takes it, one that is down, one that hangs.
//!
//! ```text
//! cargo bench --features otel --bench telemetry
//! ```
//! Requests go over HTTP to a function in this process, in turns so that all ways meet the same moments of the machine.
//! Times are the median from send to answer, and the CPU time of the whole process (client, gateway, function and exporter)
//! for each request.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use sas::{otel::OtelConfig, prelude::*};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::Instant,
};

const ROUNDS: usize = 40;
const REQUESTS: usize = 1_000;
const CLIENTS: usize = 4;

fn main() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all().build().expect("a runtime").block_on(bench());
}

struct Way {
    name: &'static str,
    platform: Platform,
    latencies: Vec<u64>,
    cpu: Vec<f64>,
}

async fn bench() {
    let (good, hangs) = (collector(true).await, collector(false).await);
    let nowhere =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port").local_addr().expect("bound");
    let mut ways = Vec::new();
    for (name, collector, ratio) in [
        ("none", None, 0.0),
        ("1 % to a collector", Some(good), 0.01),
        ("1 %, the collector down", Some(nowhere), 0.01),
        ("1 %, the collector hangs", Some(hangs), 0.01),
        ("all to a collector", Some(good), 1.0),
        ("all, the collector down", Some(nowhere), 1.0),
        ("all, the collector hangs", Some(hangs), 1.0),
    ] {
        let platform = platform(collector, ratio).await;
        ways.push(Way { name, platform, latencies: Vec::new(), cpu: Vec::new() });
    }
    for round in 0..=ROUNDS {
        for way in &mut ways {
            let before = cpu_seconds();
            let latencies = round_of_requests(way.platform.listen_addr().expect("it listens")).await;
            let cpu = (cpu_seconds() - before) / latencies.len() as f64;
            // The first warms up.
            if round > 0 {
                way.latencies.extend(latencies);
                way.cpu.push(cpu);
            }
        }
    }
    let mut of_none = None;
    for way in &mut ways {
        way.latencies.sort_unstable();
        way.cpu.sort_by(f64::total_cmp);
        let median = way.latencies[way.latencies.len() / 2] as f64 / 1e3;
        let cpu = way.cpu.iter().sum::<f64>() / way.cpu.len() as f64 * 1e6;
        let (none, none_cpu) = *of_none.get_or_insert((median, cpu));
        let more = |now: f64, then: f64| (now / then - 1.0) * 100.0;
        println!(
            "{:26} median {median:7.1} us ({:+5.1} %)   CPU {cpu:6.1} us ({:+5.1} %)",
            way.name,
            more(median, none),
            more(cpu, none_cpu),
        );
    }
    for way in ways {
        way.platform.shutdown(Duration::from_secs(1)).await;
    }
}

async fn platform(collector: Option<SocketAddr>, ratio: f64) -> Platform {
    let functions = InlineRuntime::new()
        .with("hello", |_request: Request, _cx| async { Response::new(Body::from("hello")) });
    let mut builder = Platform::builder().runtime(functions).listen((Ipv4Addr::LOCALHOST, 0).into());
    if let Some(collector) = collector {
        let mut config = OtelConfig::new(format!("http://{collector}"));
        config.sampling.ratio = ratio;
        builder = builder.otel(config);
    }
    let platform = builder.build().await.expect("it builds");
    let mut spec = RevisionSpec::new("inline", Source::Function("hello".to_owned()));
    spec.scaling.min = 1;
    platform.deploy("default", "hello", spec).await.expect("deployed");
    platform
}

/// Takes what comes and answers 200, or takes it and answers never.
async fn collector(answers: bool) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut read = Vec::new();
                while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                    while let Some(whole) = whole_request(&read) {
                        read.drain(..whole);
                        if answers {
                            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                        }
                    }
                }
            });
        }
    });
    address
}

fn whole_request(read: &[u8]) -> Option<usize> {
    let head = read.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&read[..head]).ok()?;
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok())?;
    (read.len() >= head + length).then_some(head + length)
}

/// Nanoseconds of each request of a round.
async fn round_of_requests(address: SocketAddr) -> Vec<u64> {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        clients.spawn(async move {
            let mut stream = TcpStream::connect(address).await.expect("it listens");
            stream.set_nodelay(true).expect("a TCP socket");
            let mut latencies = Vec::with_capacity(REQUESTS / CLIENTS);
            let mut answer = Vec::with_capacity(1024);
            for _ in 0..REQUESTS / CLIENTS {
                let sent = Instant::now();
                let request = b"GET / HTTP/1.1\r\nhost: hello.default.localhost\r\n\r\n";
                stream.write_all(request).await.expect("sent");
                answer.clear();
                while !answer.ends_with(b"hello") {
                    assert_ne!(stream.read_buf(&mut answer).await.expect("an answer"), 0, "it ended");
                }
                assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
                latencies.push(sent.elapsed().as_nanos() as u64);
            }
            latencies
        });
    }
    clients.join_all().await.into_iter().flatten().collect()
}

/// CPU time of this process so far, in steps of 10 ms.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit_once(')').expect("a name").1.split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) / 100.0
}
