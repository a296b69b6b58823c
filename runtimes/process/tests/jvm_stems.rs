//! JVM stems: what an app sees in one is what it sees in a JVM of its own; what cannot be made so starts cold.

mod support;

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

use sas_core::{
    Deployed, EnvValue, ErrorKind, Instance, InstanceEvents, InstanceId, Result, RevisionSpec, Runtime as _,
    Stem, StemClass, StemRequest,
};
use sas_runtime_process::ProcessRuntime;
use sas_testkit::fake::RecordingEvents;
use support::{address, eventually, fetch, prepare, request, spec, start_deployed};

/// A shared store, so that the stem's Java side is compiled and archived once.
fn runtime() -> Arc<ProcessRuntime> {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| tempfile::tempdir().unwrap());
    Arc::new(
        ProcessRuntime::new(sas_runtime_process::ProcessConfig::in_store(dir.path().join("store"))).unwrap(),
    )
}

fn no_jdk() -> bool {
    support::missing("javac") | support::missing("java")
}

/// Compiles a directory of `tests/java`.
fn compile(package: &str) -> Vec<(String, Vec<u8>)> {
    let dir = tempfile::tempdir().unwrap();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/java").join(package);
    let files = fs::read_dir(source).unwrap().flatten().map(|entry| entry.path());
    let output =
        Command::new("javac").args(["--release", "17", "-d"]).arg(dir.path()).args(files).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut classes = Vec::new();
    let mut open = vec![dir.path().to_path_buf()];
    while let Some(at) = open.pop() {
        for path in fs::read_dir(at).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(dir.path()).unwrap().to_str().unwrap().to_owned();
                classes.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    classes.sort();
    classes
}

fn jar(manifest: &str, entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default();
    writer.start_file("META-INF/MANIFEST.MF", options).unwrap();
    writer.write_all(format!("Manifest-Version: 1.0\r\n{manifest}\r\n").as_bytes()).unwrap();
    for (name, bytes) in entries {
        writer.start_file(name, options).unwrap();
        writer.write_all(bytes).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// The probe as people pack apps: a jar, a library beside it, a file that is read by a relative path.
fn probe() -> PathBuf {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let mut classes = compile("probe");
        classes.push(("data.txt".into(), b"data".to_vec()));
        classes.push(("META-INF/services/java.lang.Runnable".into(), b"other.Other".to_vec()));
        let manifest = "Main-Class: probe.Probe\r\nClass-Path: lib/other.jar\r\nImplementation-Version: 1.2\r\n\
                        Implementation-Title: probe\r\nAdd-Opens: java.base/java.util\r\n\
                        Add-Exports: java.base/sun.net.util\r\n";
        // A service of the JDK would keep it out of stems; Runnable is nobody's.
        classes.retain(|(name, _)| name != "META-INF/services/java.lang.Runnable");
        fs::write(dir.path().join("probe.jar"), jar(manifest, &classes)).unwrap();
        let mut other = compile("other");
        other.push(("other.txt".into(), b"other".to_vec()));
        fs::create_dir_all(dir.path().join("lib")).unwrap();
        fs::write(dir.path().join("lib/other.jar"), jar("Created-By: test\r\n", &other)).unwrap();
        fs::create_dir_all(dir.path().join("config")).unwrap();
        fs::write(dir.path().join("config/settings.txt"), "setting").unwrap();
        dir
    });
    dir.path().to_path_buf()
}

fn probe_spec() -> RevisionSpec {
    let mut spec = spec(probe());
    spec.timeouts.start = Duration::from_secs(60);
    spec.args = vec!["one".into(), "two words".into(), "$(GREETING)".into()];
    spec.env.insert("GREETING".into(), EnvValue::Literal("hello".into()));
    spec.options.insert("sas.dev/java-options".into(), "-Dapp.name=probe".into());
    spec
}

async fn boot(
    runtime: &ProcessRuntime,
    class: &StemClass,
    id: u64,
) -> Result<(Box<dyn Stem>, Arc<RecordingEvents>)> {
    let events = Arc::new(RecordingEvents::default());
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    let request = StemRequest::new(
        InstanceId(id),
        class.clone(),
        Arc::clone(&events) as Arc<dyn InstanceEvents>,
        deadline,
    );
    runtime.start_stem(request).await.map(|stem| (stem, events))
}

async fn from_stem(runtime: &ProcessRuntime, deployed: &Arc<Deployed>, id: u64) -> Result<support::Started> {
    let info = deployed.artifact.info();
    let class = info.stem.clone().unwrap_or_else(|| panic!("it may come from a stem: {info:?}"));
    let (stem, stem_events) = boot(runtime, &class, 1000 + id).await.unwrap();
    let (request, logs, events) = request(deployed, id);
    let instance = stem.specialize(request).await?;
    assert!(stem_events.exits().is_empty(), "the stem's own id is never told");
    Ok(support::Started { instance, logs, events })
}

/// The facts of an instance without its port and without identity hashes, which differ between any two JVMs.
async fn facts(instance: &Arc<dyn Instance>) -> Vec<String> {
    let port = address(instance).port().to_string();
    let text = fetch(instance, "/").await.unwrap().replace(&port, "<port>");
    text.lines().map(|line| line.split(" unnamed module @").next().unwrap_or_default().to_owned()).collect()
}

fn lines(started: &support::Started) -> Vec<String> {
    let mut lines: Vec<String> =
        started.logs.lines().iter().map(|line| String::from_utf8_lossy(&line.line).into_owned()).collect();
    lines.sort();
    lines
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_app_sees_the_same_in_a_stem_and_in_a_jvm_of_its_own() {
    if no_jdk() {
        return;
    }
    let runtime = runtime();
    let deployed = prepare(&runtime, probe_spec()).await.unwrap();
    let cold = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let warm = from_stem(&runtime, &deployed, 2).await.unwrap();
    let (of_cold, of_warm) = (facts(&cold.instance).await, facts(&warm.instance).await);
    assert!(of_cold.len() > 30, "{of_cold:#?}");
    for (cold, warm) in of_cold.iter().zip(&of_warm) {
        assert_eq!(cold, warm);
    }
    assert_eq!(of_cold.len(), of_warm.len());
    for expected in ["relative io=setting", "manifest class path=hello from the other jar", "property=probe"]
    {
        assert!(of_cold.iter().any(|fact| fact == expected), "{expected} in {of_cold:#?}");
    }
    // And it ends the same: exit code, shutdown hook, log lines.
    for (path, code) in [("/exit", 7), ("/halt", 9)] {
        let cold = start_deployed(&runtime, &deployed, 3).await.unwrap();
        let warm = from_stem(&runtime, &deployed, 4).await.unwrap();
        for started in [&cold, &warm] {
            let _ = fetch(&started.instance, path).await;
            eventually("it exits", || !started.events.exits().is_empty()).await;
            assert_eq!(started.events.exits()[0].1.code, Some(code), "{path}");
            assert_eq!(started.events.exits()[0].0, started.instance.id());
        }
        assert_eq!(lines(&cold), lines(&warm));
        assert_eq!(lines(&cold).contains(&"hook ran".to_owned()), path == "/exit");
    }
    let (cold_stop, warm_stop) = (cold, warm);
    for started in [&cold_stop, &warm_stop] {
        started.instance.stop(Duration::from_secs(20)).await.unwrap();
        assert_eq!(started.events.exits()[0].1.code, Some(143), "SIGTERM ends a JVM after its hooks");
    }
    assert_eq!(lines(&cold_stop), lines(&warm_stop));
}

/// The probe as frameworks pack apps: one jar, with a launcher that loads classes and libraries from inside of it.
fn fat_jar() -> Vec<u8> {
    let mut inside = compile("nested");
    for (name, bytes) in compile("probe") {
        inside.push((format!("BOOT-INF/classes/{name}"), bytes));
    }
    inside.push(("BOOT-INF/classes/data.txt".into(), b"data".to_vec()));
    let mut other = compile("other");
    other.push(("other.txt".into(), b"other".to_vec()));
    inside.push(("BOOT-INF/lib/other.jar".into(), jar("Created-By: test\r\n", &other)));
    jar("Main-Class: nested.Launcher\r\nStart-Class: probe.Probe\r\n", &inside)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jar_of_jars_with_a_launcher_of_its_own_sees_the_same_in_a_stem() {
    if no_jdk() {
        return;
    }
    let runtime = runtime();
    let source = sas_core::Source::Bytes { name: "fat.jar".into(), bytes: fat_jar().into() };
    let mut spec = probe_spec();
    spec.source = source;
    let deployed = prepare(&runtime, spec).await.unwrap();
    let cold = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let warm = from_stem(&runtime, &deployed, 2).await.unwrap();
    let (of_cold, of_warm) = (facts(&cold.instance).await, facts(&warm.instance).await);
    for (cold, warm) in of_cold.iter().zip(&of_warm) {
        assert_eq!(cold, warm);
    }
    assert_eq!(of_cold.len(), of_warm.len());
    for expected in [
        "loader kind=nested.Launcher",
        "resource=data",
        "manifest class path=hello from the other jar",
        "lib resource=java.lang.NullPointerException",
        "late protocol=data",
        "package=1.3nested",
    ] {
        assert!(of_cold.iter().any(|fact| fact.starts_with(expected)), "{expected} in {of_cold:#?}");
    }
}

/// `SAS_JAR=/path/of/an/app.jar cargo test -p sas-runtime-process --test jvm_stems any_jar -- --nocapture` compares an
/// app of yours, such as a Spring Boot fat jar: what `GET /` answers, and how it ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_jar_that_is_named_answers_the_same_from_a_stem() {
    let Some(jar) = std::env::var_os("SAS_JAR").map(PathBuf::from) else {
        return; // It is a tool, and no test of ours.
    };
    if no_jdk() {
        return;
    }
    let runtime = runtime();
    let mut spec = spec(jar.clone());
    spec.timeouts.start = Duration::from_secs(120);
    let deployed = prepare(&runtime, spec).await.unwrap();
    if deployed.artifact.info().stem.is_none() {
        panic!("{jar:?} starts cold, and is not compared: {:?}", deployed.artifact.info().notes);
    }
    let cold = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let warm = from_stem(&runtime, &deployed, 2).await.unwrap();
    assert_eq!(facts(&cold.instance).await, facts(&warm.instance).await);
    for started in [&cold, &warm] {
        started.instance.stop(Duration::from_secs(30)).await.unwrap();
    }
    let code = |started: &support::Started| started.events.exits()[0].1.code;
    assert_eq!(code(&cold), code(&warm));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_main_that_fails_or_returns_ends_the_same_in_a_stem() {
    if no_jdk() {
        return;
    }
    let runtime = runtime();
    for (mode, code) in [("throw", 1), ("return", 0)] {
        let mut spec = probe_spec();
        spec.env.insert("MODE".into(), EnvValue::Literal(mode.into()));
        let deployed = prepare(&runtime, spec).await.unwrap();
        let cold = start_deployed(&runtime, &deployed, 1).await.err().unwrap();
        let warm = from_stem(&runtime, &deployed, 2).await.err().unwrap();
        for error in [&cold, &warm] {
            assert_eq!(error.kind, ErrorKind::Crashed, "{error}");
            assert!(error.to_string().contains(&format!("status {code}")), "{error}");
        }
        let tail = |error: &sas_core::Error| error.to_string().split("its output").nth(1).unwrap().to_owned();
        assert_eq!(tail(&cold), tail(&warm), "the stack trace too");
    }
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_stem_could_not_equal_starts_cold_with_the_reason() {
    if no_jdk() {
        return;
    }
    let runtime = runtime();
    type Change = fn(&mut RevisionSpec);
    let cases: &[(Change, &str)] = &[
        (|spec| drop(spec.env.insert("TZ".into(), EnvValue::Literal("UTC".into()))), "env.TZ"),
        (|spec| drop(spec.env.insert("LD_PRELOAD".into(), EnvValue::Secret("x".into()))), "env.LD_PRELOAD"),
        (|spec| drop(spec.env.insert("WHO".into(), EnvValue::Literal("Grüße".into()))), "beyond ASCII"),
        (|spec| drop(spec.options.insert("sas.dev/java-stem".into(), "never".into())), "never"),
        (|spec| drop(spec.options.insert("sas.dev/listen-fd".into(), "0".into())), "listen-fd"),
    ];
    for (change, mention) in cases {
        let mut spec = probe_spec();
        change(&mut spec);
        let artifact = runtime.prepare(&spec).await.unwrap();
        assert_eq!(artifact.info().stem, None, "{mention}");
        assert!(artifact.info().notes.iter().any(|note| note.contains(mention)), "{:?}", artifact.info());
    }
    // By what the classes use.
    let class = compile("spawns").remove(0);
    let inner = jar("", std::slice::from_ref(&class));
    for (what, entries, mention) in [
        ("class", vec![class.clone()], "starts processes"),
        ("nested jar", vec![("BOOT-INF/lib/a.jar".to_owned(), inner)], "starts processes"),
        (
            "service",
            vec![("META-INF/services/java.net.spi.URLStreamHandlerProvider".to_owned(), b"x".to_vec())],
            "looks for once",
        ),
    ] {
        let bytes = jar("Main-Class: spawns.Spawns\r\n", &entries);
        let source = sas_core::Source::Bytes { name: "a.jar".into(), bytes: bytes.into() };
        let mut spec = RevisionSpec::new("process", source);
        let info = runtime.prepare(&spec).await.unwrap().info().clone();
        assert!(
            info.stem.is_none() && info.notes.iter().any(|note| note.contains(mention)),
            "{what}: {info:?}"
        );
        spec.options.insert("sas.dev/java-stem".into(), "always".into());
        assert!(runtime.prepare(&spec).await.unwrap().info().stem.is_some(), "{what}");
    }
    // Flags of the JVM itself make another class.
    let plain = runtime.prepare(&probe_spec()).await.unwrap().info().stem.clone().unwrap();
    assert_eq!(plain, runtime.java_stem_class().await.unwrap());
    let mut spec = probe_spec();
    spec.options.insert("sas.dev/java-options".into(), "-Xmx64m -Dapp.name=x".into());
    assert_ne!(runtime.prepare(&spec).await.unwrap().info().stem, Some(plain));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stem_that_dies_or_cannot_become_the_app_leaves_nothing_and_the_app_starts_cold() {
    if no_jdk() {
        return;
    }
    // A store of its own, by which its JVM is told from those of other tests.
    let (dir, runtime) = support::runtime();
    let runtime = Arc::new(runtime);
    let deployed = prepare(&runtime, probe_spec()).await.unwrap();
    let class = deployed.artifact.info().stem.clone().unwrap();
    // Killed while it waits: told under its own id, once; and its use fails.
    let (stem, events) = boot(&runtime, &class, 1).await.unwrap();
    let pid = stem_process(dir.path());
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    eventually("the exit is told", || events.exits().len() == 1).await;
    assert_eq!(events.exits()[0].0, InstanceId(1));
    let (late, ..) = request(&deployed, 2);
    assert_eq!(stem.specialize(late).await.err().unwrap().kind, ErrorKind::Crashed);
    // No main class of that name in the jar: the stem says so and is gone.
    let bytes = jar("Main-Class: no.Such\r\n", &[]);
    let broken =
        RevisionSpec::new("process", sas_core::Source::Bytes { name: "a.jar".into(), bytes: bytes.into() });
    let broken = prepare(&runtime, broken).await.unwrap();
    let error = from_stem(&runtime, &broken, 3).await.err().unwrap();
    assert!(error.to_string().contains("no.Such"), "{error}");
    // Stopped or dropped unused: gone.
    let (stopped, _) = boot(&runtime, &class, 4).await.unwrap();
    assert!(stopped.usage().unwrap().memory_bytes > 10 << 20);
    stopped.stop().await.unwrap();
    let (dropped, _) = boot(&runtime, &class, 5).await.unwrap();
    drop(dropped);
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
    let unknown = boot(&runtime, &StemClass("process/java99/x".into()), 6).await.err().unwrap();
    assert_eq!(unknown.kind, ErrorKind::NotFound);
    let cold = start_deployed(&runtime, &deployed, 7).await.unwrap();
    assert!(facts(&cold.instance).await.len() > 30);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stem_serves_what_asks_for_a_strict_jail_and_who_insists_on_one_is_told() {
    if no_jdk() {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return sas_testkit::skip("strict needs root");
    }
    let runtime = runtime();
    let mut spec = probe_spec();
    assert!(runtime.prepare(&spec).await.unwrap().info().stem.is_some(), "else it comes from one");
    spec.options.insert("sas.dev/jail".into(), "strict".into());
    let deployed = prepare(&runtime, spec.clone()).await.unwrap();
    assert_eq!(deployed.artifact.info().stem, None);
    let cold = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let endpoint = cold.instance.endpoint();
    assert!(matches!(endpoint, Some(sas_core::Endpoint::Within(..))), "a network of its own: {endpoint:?}");
    spec.options.insert("sas.dev/java-stem".into(), "always".into());
    let info = runtime.prepare(&spec).await.unwrap().info().clone();
    assert!(info.stem.is_none() && info.notes.iter().any(|note| note.contains("strict")), "{info:?}");
}

/// The JVM that runs a stem of this store.
fn stem_process(store: &Path) -> i32 {
    let store = store.display().to_string();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).into_owned();
        if command.contains(&store) && command.contains("/stems/") {
            return entry.file_name().to_str().unwrap().parse().unwrap();
        }
    }
    panic!("no stem of {store}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_archive_of_the_apps_classes_is_made_once_and_used() {
    if no_jdk() {
        return;
    }
    let runtime = runtime();
    let mut spec = probe_spec();
    spec.options.insert("sas.dev/java-archive".into(), "true".into());
    let deployed = prepare(&runtime, spec.clone()).await.unwrap();
    assert!(
        !deployed.artifact.info().notes.iter().any(|note| note.contains("archive")),
        "{:?}",
        deployed.artifact
    );
    let started = start_deployed(&runtime, &deployed, 1).await.unwrap();
    assert!(facts(&started.instance).await.len() > 30);
    assert!(lines(&started).iter().all(|line| !line.contains("[warning]")), "{:?}", lines(&started));
    let again = Duration::from_millis(700);
    let second = tokio::time::timeout(again * 20, runtime.prepare(&spec)).await.unwrap().unwrap();
    assert_eq!(second.info(), deployed.artifact.info());
    // A program that never gets ready has none, and says why.
    let mut spec = probe_spec();
    spec.options.insert("sas.dev/java-archive".into(), "true".into());
    spec.env.insert("MODE".into(), EnvValue::Literal("throw".into()));
    spec.args.push("other".into());
    spec.options.insert("sas.dev/java-options".into(), "-Dapp.name=other".into());
    let info = runtime.prepare(&spec).await.unwrap().info().clone();
    assert!(
        info.notes.iter().any(|note| note.contains("without class archive") && note.contains("main failed")),
        "{info:?}"
    );
}
