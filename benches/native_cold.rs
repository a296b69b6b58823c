//! Bench e: a request to a revision without an instance, until the first byte of a fresh native process.
//!
//! `cargo bench --bench native_cold --no-default-features --features process` prints a table in under a minute. e1
//! starts the program by exec, once with a port that is polled and once with its listening socket inherited; e2 forks
//! it from a zygote. Each request goes through the real pool: claim, start, connect, request, first byte; then the
//! instance is stopped and gone, and the next request is asserted to find none. The program is a static HTTP server
//! of a few lines, compiled with the `rustc` at hand as one would for quick starts: at a fixed address (nothing to
//! relocate), without unwinding and symbols.
//!
//! `p50` and `p99` are of one request at a time; `/s` of four revisions in turn on all cores; `/s/core` is one over the
//! CPU time of the host and of its children per start, by the kernel's count.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use sas_core::{
    Claim, Cx, Deployed, Endpoint, Lease, Pool as _, RequestId, RevisionKey, RevisionName, RevisionSpec,
    Runtime as _, Source, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig};
use sas_runtime_process::{ProcessConfig, ProcessRuntime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

const RUNS: usize = 5;
const ALONE: usize = 200;
const TOGETHER: usize = 200;
const LANES: usize = 4;

fn main() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let program = dir.path().join("server");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("runtimes/process/tests/programs/zygote.rs");
    let built = Command::new("rustc")
        .args(["--edition", "2024", "-C", "opt-level=3", "-C", "target-feature=+crt-static"])
        .args(["-C", "relocation-model=static", "-C", "panic=abort", "-C", "strip=symbols", "-o"])
        .arg(&program)
        .arg(source)
        .status()
        .expect("rustc runs");
    assert!(built.success(), "the server compiles");
    let tokio = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    println!(
        "\n{:<26} {:>10} {:>10} {:>9} {:>9} {:>7}   {:<24} {:>6}",
        "e: cold native start", "p50 ms", "p99 ms", "/s", "/s/core", "errors", "p50 of the runs", "target"
    );
    for (name, args, option, target) in [
        ("e1 exec, port polled", "serve", None, "p50 1 ms, 1,200/s"),
        ("e1 exec, socket inherited", "fd0", Some(("sas.dev/listen-fd", "0")), "p50 1 ms, 1,200/s"),
        ("e2 fork from a zygote", "zygote", Some(("sas.dev/zygote", "true")), "p50 0.2 ms, 6,000/s"),
    ] {
        let mut spec = RevisionSpec::new(ProcessRuntime::NAME, Source::Path(program.clone()));
        spec.args = vec![args.into()];
        spec.concurrency = 1;
        if let Some((name, value)) = option {
            spec.options.insert(name.into(), value.into());
        }
        let mut runs: Vec<Run> = (0..RUNS).map(|_| tokio.block_on(run(&spec, dir.path()))).collect();
        runs.sort_by_key(|run| run.p50);
        let spread = format!("{:.3} .. {:.3}", ms(runs[0].p50), ms(runs[RUNS - 1].p50));
        let median = &runs[RUNS / 2];
        println!(
            "{name:<26} {:>10.3} {:>10.3} {:>9.0} {:>9.0} {:>7}   {spread:<24} {target}",
            ms(median.p50),
            ms(median.p99),
            median.rate,
            median.rate_per_core,
            runs.iter().map(|run| run.errors).sum::<usize>(),
        );
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

struct Run {
    p50: Duration,
    p99: Duration,
    rate: f64,
    rate_per_core: f64,
    /// Connections that broke before the first byte.
    errors: usize,
}

async fn run(spec: &RevisionSpec, dir: &Path) -> Run {
    let mut config = ProcessConfig::in_store(dir.join("store"));
    config.zygotes = true;
    let runtime = Arc::new(ProcessRuntime::new(config).expect("a store"));
    let pool = InstancePool::new(PoolConfig::seeded(1));
    let mut keys = Vec::new();
    for lane in 0..LANES {
        let artifact = runtime.prepare(spec).await.expect("prepared");
        let deployed = Deployed::new(
            Arc::clone(&runtime) as _,
            artifact,
            Arc::new(spec.clone()),
            RevisionName::new("bench", &format!("server{lane}"), "server-00001"),
            TenantKey(1),
        );
        let key = pool.register(Arc::new(deployed)).expect("registered");
        // Whatever is made once per revision is made before it is measured.
        cold(&pool, key).await.expect("an answer");
        keys.push(key);
    }
    let mut times = Vec::with_capacity(ALONE);
    for _ in 0..ALONE {
        times.push(cold(&pool, keys[0]).await.expect("an answer"));
    }
    times.sort_unstable();
    let (cpu, began) = (cpu_seconds(), Instant::now());
    let lanes: Vec<_> = keys
        .iter()
        .map(|key| {
            let (pool, key) = (Arc::clone(&pool), *key);
            tokio::spawn(async move {
                let mut errors = 0;
                for _ in 0..TOGETHER {
                    errors += usize::from(cold(&pool, key).await.is_err());
                }
                errors
            })
        })
        .collect();
    let mut errors = 0;
    for lane in lanes {
        errors += lane.await.expect("a lane");
    }
    let count = (LANES * TOGETHER) as f64;
    let rate = count / began.elapsed().as_secs_f64();
    let rate_per_core = count / (cpu_seconds() - cpu);
    pool.shutdown(Instant::now() + Duration::from_secs(1)).await;
    runtime.quiesce().await;
    Run { p50: times[ALONE / 2], p99: times[ALONE * 99 / 100], rate, rate_per_core, errors }
}

/// One cold request: to the first byte; then the instance goes.
async fn cold(pool: &Arc<InstancePool>, key: RevisionKey) -> std::io::Result<Duration> {
    let status = pool.status(key).expect("registered");
    assert_eq!((status.ready, status.starting), (0, 0), "it is cold");
    let began = Instant::now();
    let cx = Cx::new(TenantKey(1), RequestId(1), began + Duration::from_secs(10));
    let lease: Lease = pool.claim(&Claim::new(key, TenantKey(1)), &cx).await.expect("a lease");
    let Some(Endpoint::Tcp(address)) = lease.instance.endpoint() else { panic!("an instance behind TCP") };
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut first = [0u8; 256];
        let n = stream.read(&mut first).await?;
        let took = began.elapsed();
        assert!(first[..n].starts_with(b"HTTP/1.1 200"), "{:?}", String::from_utf8_lossy(&first[..n]));
        Ok(took)
    };
    let took = exchange.await;
    drop(lease);
    pool.drain(key, Duration::ZERO).await;
    took
}

/// User and system time of this process and of its children that have been waited for.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = text.rsplit(')').next().expect("fields").split_whitespace().collect();
    (11..15).filter_map(|at| fields[at].parse::<f64>().ok()).sum::<f64>() / 100.0
}
