//! A real application goes 0 → M → N → M → 0 on this machine, with no request lost.
//!
//! Needs nothing but Rust: the program that it deploys is compiled from `examples/apps/hello.rs` first. Where Python or
//! Node is installed, an app in each is deployed and woken too. Ends with a table and a chart, `quickstart.svg`.
//!
//! Where a JDK is installed, a second act compares the first request to a sleeping jar: cold, and from a stem.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

#[path = "shared/chart.rs"]
mod chart;

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    io::{IsTerminal as _, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sas::{
    core::{InstanceId, InstanceState, Pool as _, RevisionKey, StartTimings},
    prelude::*,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

type ExampleResult<T> = Result<T, Box<dyn StdError + Send + Sync>>;

/// What is sent: for how long, and how many requests per second. Each keeps the program busy for 50 ms.
const PHASES: [(&str, Duration, u64); 4] = [
    ("asleep", Duration::from_secs(2), 0),
    ("burst", Duration::from_secs(5), 400),
    ("calm", Duration::from_secs(6), 100),
    ("second burst", Duration::from_secs(4), 300),
];
/// How long the way back to zero may take.
const TO_ZERO: Duration = Duration::from_secs(25);
/// How long the first stem may take: the archive of its classes is made before.
const STEM: Duration = Duration::from_secs(60);

fn manifest(name: &str, package: &Path, concurrency: u32) -> String {
    format!(
        r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: {name}
  annotations:
    sas.dev/package: {}
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/window: 2s
        autoscaling.knative.dev/max-scale: "20"
        sas.dev/scale-to-zero-grace-period: 1s
    spec:
      containerConcurrency: {concurrency}
      containers: [{{}}]
"#,
        package.display()
    )
}

#[tokio::main]
async fn main() -> ExampleResult<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let work = tempfile::tempdir()?;
    let program = compile(&here.join("examples/apps/hello.rs"), work.path())?;

    let platform = Platform::builder()
        .runtime(ProcessRuntime::new(ProcessConfig::in_store(work.path().join("packages")))?)
        .driver(|driver| driver.tick = Duration::from_millis(500))
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .build()
        .await?;
    let ingress = platform.listen_addr().ok_or("it listens")?;
    println!("A platform in this process, at http://{ingress}");
    platform.apply(&manifest("hello", &program, 4), None).await?;
    let revision = platform
        .control()
        .revision_key("default", "hello", "hello-00001")
        .ok_or("the revision is registered")?;
    println!(
        "Deployed examples/apps/hello.rs as a code package: 4 requests at once per instance, at most 20 instances\n"
    );

    let platform = Arc::new(platform);
    let tally = Arc::new(Tally::default());
    let watching = tokio::spawn(watch(Arc::clone(&platform), revision, Arc::clone(&tally)));
    let mut requests = tokio::task::JoinSet::new();
    let mut latencies = Vec::new();
    for (name, length, rate) in PHASES {
        tally.enter(name);
        let began = Instant::now();
        for at in 0..rate * length.as_secs() {
            tokio::time::sleep_until(
                began + Duration::from_secs(1) * u32::try_from(at)? / u32::try_from(rate)?,
            )
            .await;
            requests.spawn(request(ingress, "hello", "/work?ms=50", Arc::clone(&tally)));
        }
        tokio::time::sleep_until(began + length).await;
    }
    tally.enter("back to zero");
    while let Some(latency) = requests.join_next().await {
        latencies.extend(latency?);
    }
    let ended = Instant::now();
    while platform.pool().status(revision).is_some_and(|s| s.ready + s.starting + s.draining > 0) {
        if ended.elapsed() > TO_ZERO {
            return Err(format!("instances are still there {TO_ZERO:?} after the last request").into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let to_zero = ended.elapsed();
    tokio::time::sleep(Duration::from_millis(500)).await;
    tally.finish();
    let seen = watching.await?;

    let others = other_languages(&platform, ingress, here).await?;
    Arc::into_inner(platform)
        .ok_or("nothing else holds the platform")?
        .shutdown(Duration::from_secs(10))
        .await;
    report(&tally, latencies, &seen, to_zero, &others)?;
    second_act(here, work.path()).await
}

/// The first request to a jar that sleeps, on two platforms: one that holds nothing ahead of demand, and one as it comes,
/// which keeps a booted JVM, a stem, for whichever jar is woken next.
async fn second_act(here: &Path, work: &Path) -> ExampleResult<()> {
    println!("\nSecond act: the first request to a Java service that sleeps");
    if let Some(missing) = ["java", "javac", "jar"].into_iter().find(|tool| !installed(tool)) {
        println!("left out: {missing} is not installed; it comes with a JDK (17 or newer)");
        return Ok(());
    }
    run("javac", &["-d", "classes", &here.join("examples/apps/java/a/App.java").to_string_lossy()], work)?;
    let jar = work.join("app.jar");
    run("jar", &["--create", "--file", "app.jar", "--main-class", "app.App", "-C", "classes", "."], work)?;

    let (cold, _) = first_request(Preset::Frugal, &jar, &work.join("cold")).await?;
    let (warm, booted) = first_request(Preset::Default, &jar, &work.join("stems")).await?;
    println!("cold                {cold:.0?}, preset `frugal`");
    println!(
        "from a stem         {warm:.0?}, preset `default`; the first stem was there {booted:.1?} after the deploy"
    );
    Ok(())
}

/// Deploys a jar to a platform of its own and sends it one request, asleep before. Gives how long the answer took, and how
/// long the first stem.
async fn first_request(preset: Preset, jar: &Path, packages: &Path) -> ExampleResult<(Duration, Duration)> {
    let platform = Platform::builder()
        .runtime(ProcessRuntime::new(ProcessConfig::in_store(packages))?)
        .preset(preset)
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .build()
        .await?;
    let ingress = platform.listen_addr().ok_or("it listens")?;
    let deployed = Instant::now();
    platform.apply(&manifest("java", jar, 0), None).await?;
    let stems = preset != Preset::Frugal;
    while stems && !platform.pool().stems().iter().any(|class| class.ready > 0) {
        if deployed.elapsed() > STEM {
            let found = platform.pool().stems();
            return Err(format!("no stem is ready {STEM:?} after the deploy: {found:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let booted = deployed.elapsed();
    let answer = request(ingress, "java", "/", Arc::default()).await.ok_or("the jar gave no good answer")?;
    let revision = platform
        .control()
        .revision_key("default", "java", "java-00001")
        .ok_or("the revision is registered")?;
    let from_stem =
        platform.pool().instances(revision).iter().any(|i| i.start.is_some_and(|start| start.from_stem));
    platform.shutdown(Duration::from_secs(5)).await;
    if from_stem != stems {
        return Err(format!("preset {preset}: from a stem: {from_stem}, expected {stems}").into());
    }
    Ok((answer, booted))
}

fn run(tool: &str, args: &[&str], dir: &Path) -> ExampleResult<()> {
    let output = std::process::Command::new(tool).args(args).current_dir(dir).output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(()) } else { Err(format!("{tool} {args:?}: {said}").into()) }
}

/// Whether a program is in one of the directories of `PATH`.
fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// Compiles a program with the toolchain at hand.
fn compile(source: &Path, into: &Path) -> ExampleResult<PathBuf> {
    let program = into.join("hello");
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = std::process::Command::new(&rustc)
        .args(["-O", "--edition", "2024", "-o"])
        .args([&program, source])
        .status()
        .map_err(|error| format!("{}: {error}; it comes with Rust, or name it in RUSTC", rustc.display()))?;
    if status.success() { Ok(program) } else { Err(format!("rustc failed on {}", source.display()).into()) }
}

/// What was sent and what came back.
#[derive(Debug, Default)]
struct Tally {
    phase: std::sync::Mutex<&'static str>,
    sent: AtomicU64,
    ok: AtomicU64,
    refused: AtomicU64,
    lost: AtomicU64,
}

impl Tally {
    fn enter(&self, phase: &'static str) {
        *self.phase.lock().expect("nothing panics under this lock") = phase;
    }

    fn phase(&self) -> &'static str {
        *self.phase.lock().expect("nothing panics under this lock")
    }

    fn finish(&self) {
        self.enter("");
    }

    fn waiting(&self) -> u64 {
        let answered = [&self.ok, &self.refused, &self.lost].map(|n| n.load(Ordering::Relaxed)).iter().sum();
        self.sent.load(Ordering::Relaxed).saturating_sub(answered)
    }
}

/// One request over a connection of its own. `None`: it got no answer, or not the right one.
async fn request(to: SocketAddr, service: &str, path: &str, tally: Arc<Tally>) -> Option<Duration> {
    let began = Instant::now();
    tally.sent.fetch_add(1, Ordering::Relaxed);
    let exchange = async {
        let mut stream = TcpStream::connect(to).await?;
        let head =
            format!("GET {path} HTTP/1.1\r\nhost: {service}.default.localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(Duration::from_secs(30), exchange).await.ok().and_then(Result::ok);
    let (counter, latency) = match answer {
        Some(answer) if answer.starts_with(b"HTTP/1.1 200") && answer.ends_with(b"\n") => {
            (&tally.ok, Some(began.elapsed()))
        }
        Some(answer) if answer.starts_with(b"HTTP/1.1 ") => (&tally.refused, None),
        _ => (&tally.lost, None),
    };
    counter.fetch_add(1, Ordering::Relaxed);
    latency
}

/// What was seen over time.
#[derive(Debug, Default)]
struct Seen {
    /// Seconds, requests under way, instances ready, instances starting.
    samples: Vec<(f64, u64, u32, u32)>,
    starts: BTreeMap<InstanceId, StartTimings>,
}

async fn watch(platform: Arc<Platform>, revision: RevisionKey, tally: Arc<Tally>) -> Seen {
    let mut seen = Seen::default();
    let began = Instant::now();
    let terminal = std::io::stdout().is_terminal();
    let mut every = tokio::time::interval(Duration::from_millis(100));
    loop {
        every.tick().await;
        let phase = tally.phase();
        if phase.is_empty() {
            if terminal {
                println!();
            }
            return seen;
        }
        let (mut ready, mut starting) = (0, 0);
        for instance in platform.pool().instances(revision) {
            match instance.state {
                InstanceState::Ready => ready += 1,
                InstanceState::Starting => starting += 1,
                _ => {}
            }
            if let Some(start) = instance.start {
                seen.starts.insert(instance.id, start);
            }
        }
        let (at, waiting) = (began.elapsed().as_secs_f64(), tally.waiting());
        seen.samples.push((at, waiting, ready, starting));
        let ok = tally.ok.load(Ordering::Relaxed);
        if terminal {
            let bar = "#".repeat(ready as usize) + &"+".repeat(starting as usize);
            print!(
                "\r{at:5.1} s  {phase:<13} under way {waiting:>4}  answered {ok:>5}  instances {ready:>2} {bar:<20}"
            );
            let _ = std::io::stdout().flush();
        } else if seen.samples.len() % 10 == 1 {
            println!(
                "{at:5.1} s  {phase:<13} under way {waiting:>4}  answered {ok:>5}  instances {ready:>2}"
            );
        }
    }
}

/// Deploys the apps of the languages that this machine has, and wakes each once.
async fn other_languages(
    platform: &Platform,
    ingress: SocketAddr,
    here: &Path,
) -> ExampleResult<Vec<(&'static str, Duration)>> {
    let mut woken = Vec::new();
    for (language, interpreter, name) in
        [("Python", "python3", "hello-python"), ("JavaScript", "node", "hello-node")]
    {
        if !installed(interpreter) {
            println!("{language}: {interpreter} is not installed, so its app is left out");
            continue;
        }
        let package = here.join("examples/apps").join(name);
        if let Err(error) = platform.apply(&manifest(name, &package, 0), None).await {
            println!("{language}: left out: {error}");
            continue;
        }
        match request(ingress, name, "/", Arc::default()).await {
            Some(latency) => woken.push((language, latency)),
            None => return Err(format!("the app in {language} did not answer").into()),
        }
    }
    Ok(woken)
}

fn report(
    tally: &Tally,
    mut latencies: Vec<Duration>,
    seen: &Seen,
    to_zero: Duration,
    others: &[(&'static str, Duration)],
) -> ExampleResult<()> {
    latencies.sort();
    let quantile =
        |q: f64| latencies.get(((latencies.len() as f64 - 1.0) * q) as usize).copied().unwrap_or_default();
    let peak = seen.samples.iter().map(|s| s.2).max().unwrap_or(0);
    let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!();
    println!("requests            {}", load(&tally.sent));
    println!("answered            {}", load(&tally.ok));
    println!("refused             {}", load(&tally.refused));
    println!("lost: {}", load(&tally.lost));
    println!(
        "latency             p50 {:.1?}, p99 {:.1?}, of which the program takes 50ms",
        quantile(0.5),
        quantile(0.99)
    );
    println!(
        "instances           0 -> {peak} -> 0, {} started, at zero {to_zero:.1?} after the last answer",
        seen.starts.len()
    );
    let mean = |phase: fn(&StartTimings) -> Option<Duration>| {
        let times: Vec<Duration> = seen.starts.values().filter_map(phase).collect();
        times.iter().sum::<Duration>() / u32::try_from(times.len().max(1)).unwrap_or(1)
    };
    println!(
        "cold start, mean    gate {:.1?}, spawned {:.1?}, listening {:.1?}, ready {:.1?}",
        mean(|s| Some(s.gated)),
        mean(|s| s.spawned),
        mean(|s| s.listening),
        mean(|s| Some(s.ready)),
    );
    for (language, latency) in others {
        println!("{language:<20}answered its first request {latency:.0?} after it was sent, asleep before");
    }

    let line = |name: &str, value: fn(&(f64, u64, u32, u32)) -> f64| chart::Series {
        name: name.to_owned(),
        points: seen.samples.iter().map(|sample| (sample.0, value(sample))).collect(),
    };
    let path = Path::new("quickstart.svg");
    chart::lines(
        path,
        "0 - M - N - M - 0",
        "seconds",
        "requests, instances",
        &[
            line("requests under way", |s| s.1 as f64),
            line("instances ready", |s| f64::from(s.2)),
            line("instances starting", |s| f64::from(s.3)),
        ],
    )?;
    println!("chart               {}", path.display());
    let failed = load(&tally.lost) + load(&tally.refused);
    if failed > 0 { Err(format!("{failed} requests got no good answer").into()) } else { Ok(()) }
}
