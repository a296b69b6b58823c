//! Distinct Java apps, all cold, all requested at the same instant: the seed's headline, on this machine.
//!
//! ```text
//! cargo run --release --example java_burst -- --apps 1,50,100 --mode cold,stems,pool10 --gate on
//! ```
//!
//! It builds the apps from `examples/apps/java` with `javac`, deploys each as a jar of its own to the process runtime,
//! and lets the pool start them: `cold` as JVMs of their own with the class archive that `prepare` made, `stems` from
//! as many booted stems as apps, `pool10` from ten stems that are refilled, and cold, as in `cold`, where there is none.
//! Every app is asserted to have no instance when it is requested. The time of an app counts from the one instant at
//! which all were requested until its 200.
//!
//! `--app b` is Jetty and Spring MVC with thirty scanned beans, from Debian's packages; `--gate off` lets all starts
//! run at once; `--archive off` starts cold without class archives; `--runs N` repeats, and the row is the median run
//! with the least and the greatest mean; `--chart FILE` says where the chart goes; `--java-home DIR` takes another JDK.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example talks to a terminal")]

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use sas_core::{
    Claim, Cx, Deployed, Endpoint, LogRecord, LogSink, LogStream, Pool as _, RequestId, RevisionKey,
    RevisionName, RevisionSpec, Runtime as _, Source, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig, capacity::FastUpSlowDown, config::StemClassConfig};
use sas_runtime_process::{ProcessConfig, ProcessRuntime};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

#[path = "shared/chart.rs"]
mod chart;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The seed's figures on its cluster: apps at once, mean and shortest, in seconds.
const SEED: [(u32, &str, &str); 2] = [(50, "2.5", "-"), (100, "3-4", "1.5-2")];

struct Options {
    apps: Vec<u32>,
    modes: Vec<String>,
    gate: bool,
    archive: bool,
    app: char,
    runs: u32,
    chart: PathBuf,
    java_home: Option<PathBuf>,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self {
            apps: vec![1, 50, 100],
            modes: ["cold", "stems", "pool10"].map(str::to_owned).to_vec(),
            gate: true,
            archive: true,
            app: 'a',
            runs: 1,
            chart: "java_burst.svg".into(),
            java_home: None,
        };
        while let Some(name) = args.next() {
            // `cargo bench` adds this to every bench.
            if name == "--bench" {
                continue;
            }
            let value = args.next().ok_or(format!("{name}: it needs a value"))?;
            let wrong = |wanted: &str| format!("{name} {value:?}: {wanted}");
            let on = || match value.as_str() {
                "on" => Ok(true),
                "off" => Ok(false),
                _ => Err(wrong("on or off")),
            };
            match name.as_str() {
                "--apps" => {
                    options.apps = value
                        .split(',')
                        .map(|n| n.parse().ok().filter(|n| (1..=1000).contains(n)))
                        .collect::<Option<_>>()
                        .ok_or_else(|| wrong("numbers from 1 to 1000, such as 1,50,100"))?;
                }
                "--mode" => {
                    options.modes = value.split(',').map(str::to_owned).collect();
                    if !options.modes.iter().all(|mode| ["cold", "stems", "pool10"].contains(&mode.as_str()))
                    {
                        return Err(wrong("cold, stems, pool10 or several of them"));
                    }
                }
                "--gate" => options.gate = on()?,
                "--archive" => options.archive = on()?,
                "--app" if value == "a" || value == "b" => options.app = if value == "a" { 'a' } else { 'b' },
                "--app" => return Err(wrong("a or b")),
                "--runs" => options.runs = value.parse().map_err(|_| wrong("a number"))?,
                "--chart" => options.chart = value.into(),
                "--java-home" => options.java_home = Some(value.into()),
                _ => {
                    return Err(format!(
                        "{name}: known are --apps --mode --gate --archive --app --runs --chart --java-home"
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// Shows what the apps write to standard error, when the variable `JAVA_BURST_STDERR` is set.
#[derive(Debug)]
struct Complaints;

impl LogSink for Complaints {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { instance: id, stream, line, .. } = *record;
        if stream == LogStream::Stderr && std::env::var_os("JAVA_BURST_STDERR").is_some() {
            eprintln!("{id}: {}", String::from_utf8_lossy(line));
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let options = Options::parse(std::env::args().skip(1))?;
    let config = ProcessConfig::default();
    for tool in ["java", "javac"] {
        let found = config.path.split(':').any(|dir| Path::new(dir).join(tool).is_file());
        if !found {
            println!(
                "{tool} is not installed: install a JDK of at least 17 (Debian: openjdk-17-jdk-headless)"
            );
            return Ok(());
        }
    }
    let work = tempfile::tempdir()?;
    let most = *options.apps.iter().max().unwrap_or(&1);
    let apps = match build(&options, most, work.path()) {
        Ok(apps) => apps,
        Err(missing) => {
            println!("{missing}");
            return Ok(());
        }
    };
    println!(
        "{most} distinct Java apps ({}), {} cores, gate {}",
        if options.app == 'a' { "A: the JDK's HttpServer" } else { "B: Jetty + Spring MVC" },
        std::thread::available_parallelism()?,
        if options.gate { "on" } else { "off" },
    );
    println!(
        "\n{:>5}  {:<7} {:>9} {:>9} {:>9}  {:<16} {:>7} {:>10}  {:>9}",
        "apps", "mode", "mean s", "min s", "max s", "means of the runs", "CPU s", "pool MiB", "seed mean"
    );
    let mut means: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for mode in &options.modes {
        let (runtime, deployed) = deploy(&options, mode, &apps, work.path()).await?;
        for &count in &options.apps {
            let mut runs = Vec::new();
            for _ in 0..options.runs.max(1) {
                runs.push(burst(&options, mode, &runtime, &deployed[..count as usize]).await?);
            }
            runs.sort_by(|a, b| a.mean.total_cmp(&b.mean));
            let measured = &runs[runs.len() / 2];
            let seed = SEED.iter().find(|(apps, ..)| *apps == count).map_or("-", |(_, mean, _)| mean);
            println!(
                "{count:>5}  {mode:<7} {:>9.3} {:>9.3} {:>9.3}  {:<16} {:>7.1} {:>10}  {seed:>9}",
                measured.mean,
                measured.min,
                measured.max,
                format!("{:.3} .. {:.3}", runs[0].mean, runs[runs.len() - 1].mean),
                measured.cpu,
                measured.pool_mib.map_or("-".into(), |mib| mib.to_string()),
            );
            means.entry(format!("{mode}, mean")).or_default().push((f64::from(count), measured.mean));
            means.entry(format!("{mode}, min")).or_default().push((f64::from(count), measured.min));
        }
    }
    println!(
        "\nthe seed, on a cluster: 50 apps 2.5 s on average; 100 apps 3 to 4 s, the shortest 1.5 to 2 s"
    );
    let mut series: Vec<chart::Series> =
        means.into_iter().map(|(name, points)| chart::Series { name, points }).collect();
    series.push(chart::Series { name: "seed, mean".into(), points: vec![(50.0, 2.5), (100.0, 3.5)] });
    chart::lines(
        &options.chart,
        "Java apps started at the same instant",
        "apps at once",
        "seconds",
        &series,
    )?;
    println!("chart: {}", options.chart.display());
    Ok(())
}

struct Measured {
    mean: f64,
    min: f64,
    max: f64,
    cpu: f64,
    /// Proportional memory of the stems before the burst.
    pool_mib: Option<u64>,
}

/// Prepares every app once, a few at a time.
async fn deploy(
    options: &Options,
    mode: &str,
    apps: &[PathBuf],
    work: &Path,
) -> Result<(Arc<ProcessRuntime>, Vec<Arc<Deployed>>), Failure> {
    let stems = mode != "cold";
    let mut config = ProcessConfig::in_store(work.join("store"));
    config.java.home.clone_from(&options.java_home);
    config.java.stems = stems;
    if options.app == 'b' {
        config.java.options.extend(["--add-opens".into(), "java.base/java.lang=ALL-UNNAMED".into()]);
        if stems {
            config.java.shared_jars = framework_jars()?;
            config.java.shared_jars.insert(0, work.join("warm.jar"));
            config.java.shared_classes = vec!["warm.Framework".into()];
        }
    }
    let runtime = Arc::new(ProcessRuntime::new(config)?);
    let mut specs = Vec::new();
    for jar in apps {
        let mut spec = RevisionSpec::new(ProcessRuntime::NAME, Source::Path(jar.clone()));
        spec.concurrency = 10;
        spec.timeouts.start = Duration::from_secs(120);
        if mode != "stems" && options.archive {
            spec.options.insert("sas.dev/java-archive".into(), "true".into());
        }
        if stems {
            // What keeps the frameworks' jars out by rule was looked at for this example.
            spec.options.insert("sas.dev/java-stem".into(), "always".into());
        }
        specs.push(Arc::new(spec));
    }
    let cores = std::thread::available_parallelism()?.get();
    let mut deployed = Vec::new();
    for some in specs.chunks(cores) {
        let preparing: Vec<_> = some
            .iter()
            .map(|spec| {
                let (runtime, spec) = (Arc::clone(&runtime), Arc::clone(spec));
                tokio::spawn(async move { runtime.prepare(&spec).await })
            })
            .collect();
        for (task, spec) in preparing.into_iter().zip(some) {
            let (number, artifact) = (deployed.len(), task.await??);
            for note in artifact.info().notes.iter().filter(|note| stems || !note.contains("stems")) {
                eprintln!("{}: {note}", apps[number].display());
            }
            deployed.push(Arc::new(Deployed::new(
                Arc::clone(&runtime) as Arc<dyn sas_core::Runtime>,
                artifact,
                Arc::clone(spec),
                RevisionName::new("default", &format!("app{number}"), &format!("app{number}-00001")),
                TenantKey(1),
            )));
        }
    }
    Ok((runtime, deployed))
}

async fn burst(
    options: &Options,
    mode: &str,
    runtime: &Arc<ProcessRuntime>,
    apps: &[Arc<Deployed>],
) -> Result<Measured, Failure> {
    let stems = mode != "cold";
    let mut config = PoolConfig::seeded(1);
    config.gate.starts = if options.gate { 0 } else { u32::MAX };
    // There is one tenant, and so nobody to keep a permit for.
    config.gate.reserve = 0;
    config.logs = Arc::new(Complaints);
    let class = apps.first().and_then(|first| first.artifact.info().stem.clone()).filter(|_| stems);
    let wanted = if mode == "pool10" { 10 } else { u32::try_from(apps.len())? };
    if let Some(class) = &class {
        let most = u32::try_from(apps.len())?.max(wanted);
        let held = StemClassConfig::new(Arc::clone(runtime) as _, wanted, most, 64 << 20);
        config.stems.classes.insert(class.clone(), held);
        config.stems.memory_bytes = u64::MAX >> 8;
        config.stems.slot = Duration::from_secs(1);
        config.stems.boot_timeout = Duration::from_secs(300);
        if mode == "pool10" {
            config.stems.capacity =
                Some(Arc::new(|_| Box::new(FastUpSlowDown::new(0.1, 1.0).expect("a law within its bounds"))));
        }
    }
    let pool = InstancePool::new(config);
    let keys: Vec<RevisionKey> =
        apps.iter().map(|deployed| pool.register(Arc::clone(deployed))).collect::<Result<_, _>>()?;
    if let Some(class) = &class {
        let limit = Instant::now() + Duration::from_secs(300);
        while !pool.stems().iter().any(|stems| stems.class == *class && stems.ready >= wanted) {
            if Instant::now() > limit {
                return Err(format!("the stems did not boot: {:?}", pool.stems()).into());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Let what is just booted come to rest.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let pool_mib = class.is_some().then(|| children().iter().filter_map(|pid| pss_mib(*pid)).sum());
    for key in &keys {
        let status = pool.status(*key).ok_or("registered")?;
        assert_eq!((status.ready, status.starting), (0, 0), "it is cold");
    }

    let cpu_before = cpu_ticks();
    let began = Instant::now();
    let tasks: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(number, key)| {
            let (pool, key) = (Arc::clone(&pool), *key);
            tokio::spawn(async move {
                let deadline = began + Duration::from_secs(300);
                let cx = Cx::new(TenantKey(1), RequestId(number as u128), deadline);
                let lease = pool.claim(&Claim::new(key, TenantKey(1)), &cx).await?;
                let Some(Endpoint::Tcp(address)) = lease.instance.endpoint() else {
                    return Err("an instance behind TCP".into());
                };
                let mut stream = tokio::net::TcpStream::connect(address).await?;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n").await?;
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await?;
                let took = began.elapsed();
                if !answer.starts_with(b"HTTP/1.1 200") {
                    return Err(format!("app {number}: {}", String::from_utf8_lossy(&answer)).into());
                }
                Ok::<_, Failure>((took, lease))
            })
        })
        .collect();
    let mut times = Vec::new();
    let mut leases = Vec::new();
    for task in tasks {
        let (took, lease) = task.await??;
        times.push(took.as_secs_f64());
        leases.push(lease);
    }
    let cpu = (cpu_ticks() - cpu_before) as f64 / 100.0;
    drop(leases);
    pool.shutdown(Instant::now() + Duration::from_secs(1)).await;
    runtime.quiesce().await;
    Ok(Measured {
        mean: times.iter().sum::<f64>() / times.len() as f64,
        min: times.iter().copied().fold(f64::INFINITY, f64::min),
        max: times.iter().copied().fold(0.0, f64::max),
        cpu,
        pool_mib,
    })
}

/// The processes that this one has started.
fn children() -> Vec<u32> {
    let me = std::process::id().to_string();
    fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| stat(*pid).is_some_and(|fields| fields.get(1) == Some(&me)))
        .collect()
}

/// The fields of `/proc/PID/stat` from the state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

/// User and system time of this process, its children, and those that are gone, in hundredths of a second.
fn cpu_ticks() -> u64 {
    let sum = |pid: u32| -> u64 {
        let fields = stat(pid).unwrap_or_default();
        (11..15).filter_map(|at| fields.get(at)?.parse::<u64>().ok()).sum()
    };
    sum(std::process::id()) + children().into_iter().map(sum).sum::<u64>()
}

fn pss_mib(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with("Pss:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? / 1024)
}

const FRAMEWORK: [&str; 20] = [
    "jetty9-server",
    "jetty9-servlet",
    "jetty9-http",
    "jetty9-io",
    "jetty9-util",
    "jetty9-util-ajax",
    "jetty9-security",
    "servlet-api",
    "spring3-web",
    "spring3-web.servlet",
    "spring3-context",
    "spring3-core",
    "spring3-beans",
    "spring3-aop",
    "spring3-expression",
    "commons-logging",
    "jackson-core",
    "jackson-databind",
    "jackson-annotations",
    "aopalliance",
];

/// Debian's jars for app B.
fn framework_jars() -> Result<Vec<PathBuf>, Failure> {
    let dir = Path::new("/usr/share/java");
    let jars: Vec<PathBuf> = FRAMEWORK.iter().map(|name| dir.join(format!("{name}.jar"))).collect();
    match jars.iter().find(|jar| !jar.is_file()) {
        None => Ok(jars),
        Some(missing) => Err(format!(
            "app B needs {}: apt-get install libjetty9-java libspring-web-servlet-java libjackson2-databind-java libaopalliance-java",
            missing.display()
        )
        .into()),
    }
}

/// Compiles `count` apps, each in a package of its own, and packs each into a jar of its own.
fn build(options: &Options, count: u32, work: &Path) -> Result<Vec<PathBuf>, Failure> {
    let sources =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/apps/java").join(options.app.to_string());
    let jars = if options.app == 'b' { framework_jars()? } else { Vec::new() };
    let class_path = jars.iter().map(|jar| jar.display().to_string()).collect::<Vec<_>>().join(":");
    let classes = work.join("classes");
    let mut files = Vec::new();
    for number in 0..count {
        let package = format!("app{number:03}");
        let dir = work.join("src").join(&package);
        fs::create_dir_all(&dir)?;
        for entry in fs::read_dir(&sources)?.flatten().filter(|entry| entry.path().is_file()) {
            let text =
                fs::read_to_string(entry.path())?.replace("package app;", &format!("package {package};"));
            let path = dir.join(entry.file_name());
            fs::write(&path, text)?;
            files.push(path);
        }
    }
    // Spring 4.3 reads the class files that it scans, and knows those of Java 8.
    let release = if options.app == 'b' { "8" } else { "17" };
    javac(&files, &class_path, release, &classes)?;
    let mut made = Vec::new();
    for number in 0..count {
        let package = format!("app{number:03}");
        let jar = work.join(format!("{package}.jar"));
        pack(&jar, &classes.join(&package), &package, Some(&format!("{package}.App")), &jars)?;
        made.push(jar);
    }
    if options.app == 'b' {
        let warm = work.join("warm");
        let files: Vec<PathBuf> =
            fs::read_dir(sources.join("warm"))?.flatten().map(|entry| entry.path()).collect();
        javac(&files, &class_path, release, &warm)?;
        pack(&work.join("warm.jar"), &warm.join("warm"), "warm", None, &[])?;
    }
    Ok(made)
}

fn javac(files: &[PathBuf], class_path: &str, release: &str, to: &Path) -> Result<(), Failure> {
    fs::create_dir_all(to)?;
    let output = Command::new("javac")
        .args(["--release", release, "-encoding", "UTF-8", "-nowarn", "-cp", class_path, "-d"])
        .arg(to)
        .args(files)
        .output()?;
    if !output.status.success() {
        return Err(format!("javac: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    Ok(())
}

fn pack(
    jar: &Path,
    classes: &Path,
    package: &str,
    main: Option<&str>,
    class_path: &[PathBuf],
) -> Result<(), Failure> {
    let mut writer = zip::ZipWriter::new(fs::File::create(jar)?);
    let options = zip::write::SimpleFileOptions::default();
    let mut manifest = String::from("Manifest-Version: 1.0\r\n");
    if let Some(main) = main {
        manifest.push_str(&format!("Main-Class: {main}\r\n"));
    }
    if !class_path.is_empty() {
        let paths: Vec<String> = class_path.iter().map(|jar| jar.display().to_string()).collect();
        let line = format!("Class-Path: {}", paths.join(" "));
        let (first, mut rest) = line.split_at(line.len().min(70));
        manifest.push_str(first);
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.len().min(69));
            manifest.push_str("\r\n ");
            manifest.push_str(piece);
            rest = more;
        }
        manifest.push_str("\r\n");
    }
    manifest.push_str("\r\n");
    writer.start_file("META-INF/MANIFEST.MF", options)?;
    writer.write_all(manifest.as_bytes())?;
    // Scanning a package looks the directory itself up.
    writer.add_directory(package, options)?;
    for entry in fs::read_dir(classes)?.flatten() {
        writer.start_file(format!("{package}/{}", entry.file_name().to_string_lossy()), options)?;
        writer.write_all(&fs::read(entry.path())?)?;
    }
    writer.finish()?;
    Ok(())
}
