//! Instances: what they get, how they fail, how they end.

mod support;

use std::{sync::Arc, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use sas_core::{EnvValue, ErrorKind, LogStream, Probe, ProbeAction, RevisionSpec, Runtime as _, Source};
use support::{address, app, eventually, fetch, prepare, request, runs, start, start_deployed};

fn runtime() -> (tempfile::TempDir, Arc<sas_runtime_process::ProcessRuntime>) {
    let (dir, runtime) = support::runtime();
    (dir, Arc::new(runtime))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_gets_knatives_contract_and_nothing_of_the_hosts_environment() {
    let (_dir, runtime) = runtime();
    let mut spec = app(&[]);
    spec.env.insert("GREETING".into(), EnvValue::Literal("hello world".into()));
    let started = start(&runtime, spec).await.unwrap();
    let port = address(&started.instance).port();
    let env = fetch(&started.instance, "/env").await.unwrap();
    let home = env.lines().find_map(|line| line.strip_prefix("HOME=")).expect("a home").to_owned();
    let tmp = env.lines().find_map(|line| line.strip_prefix("TMPDIR=")).expect("a place for temporary files");
    let expected = format!(
        "GREETING=hello world\nHOME={home}\nK_CONFIGURATION=hello\nK_REVISION=hello-00001\nK_SERVICE=hello\n\
         LANG=C.UTF-8\nLOGNAME=app\n\
         PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPORT={port}\n\
         TMPDIR={tmp}\nUSER=app"
    );
    assert_eq!(env, expected);
    let mut spec = app(&[]);
    for (name, value) in [("HOME", "/srv"), ("LANG", "de_DE.UTF-8"), ("TMPDIR", "/dev/shm"), ("USER", "me")] {
        spec.env.insert(name.into(), EnvValue::Literal(value.into()));
    }
    let env = fetch(&start(&runtime, spec).await.unwrap().instance, "/env").await.unwrap();
    assert!(
        env.contains("HOME=/srv\n") && env.contains("LANG=de_DE.UTF-8\n"),
        "what is declared counts: {env}"
    );
    assert!(env.contains("TMPDIR=/dev/shm\n") && env.contains("USER=me"), "{env}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_listens_on_the_loopback_of_ipv6_only_is_served_there() {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        return sas_testkit::kernel_lacks("loopback of IPv6");
    }
    let (_dir, runtime) = runtime();
    let started = start(&runtime, app(&["v6"])).await.unwrap();
    assert!(address(&started.instance).is_ipv6());
    assert!(fetch(&started.instance, "/env").await.unwrap().contains("K_SERVICE=hello"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_its_own_is_gone_with_the_instance_and_is_nobody_elses() {
    let (_dir, runtime) = unjailed();
    let home = async |instance: &Arc<dyn sas_core::Instance>| {
        let env = fetch(instance, "/env").await.unwrap();
        let home = env.lines().find_map(|line| line.strip_prefix("HOME=")).expect("a home").to_owned();
        std::path::PathBuf::from(home)
    };
    let (one, other) = (start(&runtime, app(&[])).await.unwrap(), start(&runtime, app(&[])).await.unwrap());
    let (mine, theirs) = (home(&one.instance).await, home(&other.instance).await);
    assert_ne!(mine, theirs);
    std::fs::write(mine.join("tmp/file"), "its own").unwrap();
    one.instance.stop(Duration::from_secs(5)).await.unwrap();
    runtime.quiesce().await;
    assert!(!mine.exists() && theirs.exists());
}

/// A runtime whose instances see the host's files, as those do that a host can't jail.
fn unjailed() -> (tempfile::TempDir, Arc<sas_runtime_process::ProcessRuntime>) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = sas_runtime_process::ProcessConfig::in_store(dir.path().join("store"));
    config.jail.level = sas_runtime_process::JailLevel::None;
    let runtime = Arc::new(sas_runtime_process::ProcessRuntime::new(config).unwrap());
    (dir, runtime)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_jail_commands_and_home_work_too() {
    let (_dir, runtime) = runtime();
    let script = "test \"$K_SERVICE\" = hello && mkdir -p \"$HOME/.cache/app\" && echo x > \"$TMPDIR/x\"";
    let mut spec = app(&[]);
    spec.readiness =
        Some(Probe::new(ProbeAction::Exec { command: vec!["sh".into(), "-c".into(), script.into()] }));
    start(&runtime, spec).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_are_probes_too_and_end_with_their_time() {
    let (_dir, runtime) = unjailed();
    let exec = |script: &str| {
        Some(Probe::new(ProbeAction::Exec { command: vec!["sh".into(), "-c".into(), script.into()] }))
    };
    let mut spec = app(&[]);
    // Not ready at the first question; it runs with the instance's own environment.
    spec.readiness = exec(
        "test \"$K_SERVICE\" = hello && { test -e \"$HOME/asked\" || { touch \"$HOME/asked\"; exit 1; }; }",
    );
    let started = start(&runtime, spec).await.unwrap();
    assert!(fetch(&started.instance, "/env").await.is_ok());
    let command = |script: &str| ["sh".to_owned(), "-c".to_owned(), script.to_owned()];
    let ran = started.instance.exec(&command("echo some words; exit 3")).await.unwrap();
    assert_eq!((ran.code, String::from_utf8_lossy(&ran.output).as_ref()), (Some(3), "some words"));
    let none = started.instance.exec(&["no-such-program".to_owned()]).await.unwrap_err();
    assert_eq!(none.kind, ErrorKind::NotFound);
    let before = runtime.processes();
    let sleeps = command("sleep 100");
    assert!(tokio::time::timeout(Duration::from_millis(100), started.instance.exec(&sleeps)).await.is_err());
    eventually("the command is gone", || runtime.processes() <= before).await;
    let mut spec = app(&[]);
    spec.readiness = exec("echo the database is away; exit 7");
    spec.timeouts.start = Duration::from_millis(600);
    let error = start(&runtime, spec).await.err().unwrap().to_string();
    assert!(error.contains("status 7") && error.contains("the database is away"), "{error}");
    let mut spec = app(&[]);
    let mut probe = exec("exit 1").unwrap();
    (probe.period, probe.failure_threshold) = (Duration::from_millis(20), 2);
    spec.startup = Some(probe);
    let error = start(&runtime, spec).await.err().unwrap();
    assert!(error.to_string().contains("start-up probe failed as often as it may"), "{error}");
    eventually("what failed to start is gone, and so are the commands", || runtime.processes() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_on_descriptor_0_makes_an_instance_ready_at_once() {
    let (_dir, runtime) = runtime();
    let mut spec = app(&["fd0"]);
    spec.options.insert("sas.dev/listen-fd".into(), "0".into());
    let started = start(&runtime, spec).await.unwrap();
    assert!(fetch(&started.instance, "/env").await.unwrap().contains("K_SERVICE=hello"));
    let at = address(&started.instance);
    started.instance.stop(Duration::from_secs(5)).await.unwrap();
    // A start of another test that is under way has copies of all descriptors until its exec.
    eventually("the host keeps no copy of the socket", || std::net::TcpStream::connect(at).is_err()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_ends_at_once_fails_with_its_status_and_its_last_words() {
    let (_dir, runtime) = runtime();
    let error = start(&runtime, app(&["exit"])).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Crashed);
    for part in ["status 3", "cannot find my configuration", "first line", "PORT"] {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_on_the_wrong_port_fails_with_the_port_it_listens_on() {
    // In a jail it may listen nowhere else, and says so itself.
    let (_dir, jailed) = runtime();
    let wrong = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let error = start(&jailed, app(&["port=29"])).await.err().unwrap();
    assert!(
        error.to_string().contains("PORT") && error.to_string().contains("ermission denied"),
        "{wrong}: {error}"
    );
    let dir = tempfile::tempdir().unwrap();
    let mut config = sas_runtime_process::ProcessConfig::in_store(dir.path().join("store"));
    config.jail.level = sas_runtime_process::JailLevel::None;
    let runtime = Arc::new(sas_runtime_process::ProcessRuntime::new(config).unwrap());
    let wrong = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut spec = app(&[&format!("port={wrong}")]);
    spec.timeouts.start = Duration::from_millis(700);
    let error = start(&runtime, spec).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Timeout);
    assert!(error.to_string().contains(&format!("listens on 127.0.0.1:{wrong} instead")), "{error}");
    let mut spec = app(&["deaf"]);
    spec.timeouts.start = Duration::from_millis(300);
    let error = start(&runtime, spec).await.err().unwrap();
    assert!(error.to_string().contains("no port"), "{error}");
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_insists_on_a_port_is_served_there_once_at_a_time() {
    let (_dir, runtime) = runtime();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut spec = app(&["port=$(PORT)"]);
    spec.port = Some(port);
    let deployed = prepare(&runtime, spec).await.unwrap();
    let first = start_deployed(&runtime, &deployed, 1).await.unwrap();
    assert_eq!(address(&first.instance).port(), port);
    let error = start_deployed(&runtime, &deployed, 2).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Exhausted);
    assert!(error.to_string().contains(&port.to_string()), "{error}");
    first.instance.stop(Duration::from_secs(5)).await.unwrap();
    start_deployed(&runtime, &deployed, 3).await.unwrap();
    // And one that another program holds is refused with the same words.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut spec = app(&[]);
    spec.port = Some(taken.local_addr().unwrap().port());
    let error = start(&runtime, spec).await.err().unwrap();
    assert!(error.to_string().contains("another program"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http_probe_decides_when_an_instance_is_ready() {
    let (_dir, runtime) = runtime();
    let probe = |path: &str| {
        Some(Probe::new(ProbeAction::Http {
            path: path.into(),
            port: None,
            headers: vec![("X-A".into(), "b".into())],
        }))
    };
    let mut spec = app(&[]);
    spec.readiness = probe("/slow");
    let began = tokio::time::Instant::now();
    start(&runtime, spec).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(500), "it waited for the answer");
    let mut spec = app(&[]);
    spec.readiness = probe("/half-not");
    spec.timeouts.start = Duration::from_millis(600);
    start(&runtime, spec).await.unwrap();
    let mut spec = app(&[]);
    spec.readiness = Some(Probe::new(ProbeAction::Tcp { port: Some(1) }));
    spec.timeouts.start = Duration::from_millis(600);
    let error = start(&runtime, spec).await.err().unwrap();
    assert!(error.to_string().contains("the probe that failed: connect to 127.0.0.1:1"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_is_killed_is_told_at_once_and_takes_its_children_with_it() {
    let (_dir, runtime) = runtime();
    let started = start(&runtime, app(&[])).await.unwrap();
    let child = support::on_host(&started.instance, &fetch(&started.instance, "/child").await.unwrap());
    assert!(runs(child));
    let pid = support_pid(&started.instance).await;
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    eventually("the exit is told", || !started.events.exits().is_empty()).await;
    let (_, report) = started.events.exits().remove(0);
    assert_eq!((report.signal, report.code, report.out_of_memory), (Some(9), None, false));
    eventually("its child is gone", || !runs(child)).await;
    started.instance.stop(Duration::ZERO).await.unwrap();
    assert_eq!(started.events.exits().len(), 1);
}

fn text(line: &sas_testkit::fake::Line) -> String {
    String::from_utf8_lossy(&line.line).into_owned()
}

/// The test program's process, found by the port on which it listens.
async fn support_pid(instance: &Arc<dyn sas_core::Instance>) -> i32 {
    let port = address(instance).port();
    let wanted = format!("PORT={port}");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        if environ.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes())
            && std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.ends_with("program"))
        {
            return entry.file_name().to_str().unwrap().parse().unwrap();
        }
    }
    panic!("no process with {wanted}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_ignores_sigterm_is_killed_with_its_whole_group_after_the_grace() {
    let (_dir, runtime) = runtime();
    let started = start(&runtime, app(&["stubborn"])).await.unwrap();
    let child = support::on_host(&started.instance, &fetch(&started.instance, "/child").await.unwrap());
    let began = tokio::time::Instant::now();
    started.instance.stop(Duration::from_millis(300)).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(started.events.exits()[0].1.signal, Some(9));
    eventually("its child is gone", || !runs(child)).await;
    // A polite one gets SIGTERM and its own time.
    let started = start(&runtime, app(&[])).await.unwrap();
    started.instance.stop(Duration::from_secs(20)).await.unwrap();
    assert_eq!(started.events.exits()[0].1.code, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_output_is_cut_and_disturbs_no_other_instance() {
    let (_dir, runtime) = runtime();
    let mut quiet = app(&[]);
    quiet.env.insert("OTHER".into(), EnvValue::Literal("1".into()));
    let quiet = start(&runtime, quiet).await.unwrap();
    let flooding = start(&runtime, app(&["flood"])).await.unwrap();
    eventually("output comes", || flooding.logs.lines().len() > 20).await;
    for _ in 0..20 {
        fetch(&quiet.instance, "/say").await.unwrap();
        fetch(&flooding.instance, "/").await.unwrap();
    }
    eventually("the quiet one's lines come", || {
        quiet.logs.lines().iter().filter(|line| text(line).contains("on stderr")).count() == 20
    })
    .await;
    eventually("the flood's rest is counted", || {
        flooding
            .logs
            .lines()
            .iter()
            .any(|line| line.stream == LogStream::Platform && text(line).contains("dropped"))
    })
    .await;
    flooding.instance.stop(Duration::from_secs(5)).await.unwrap();
    let bytes: usize = flooding.logs.lines().iter().map(|line| line.line.len()).sum();
    assert!(bytes < 32 << 20, "{bytes} bytes were passed on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_revision_are_set_on_the_process() {
    let (_dir, runtime) = runtime();
    let mut spec = app(&[]);
    spec.options.insert("sas.dev/rlimit-nofile".into(), "77".into());
    spec.options.insert("sas.dev/rlimit-core".into(), "0".into());
    let started = start(&runtime, spec).await.unwrap();
    let limits =
        std::fs::read_to_string(format!("/proc/{}/limits", support_pid(&started.instance).await)).unwrap();
    let line = |name: &str| limits.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
    assert!(line("Max open files").contains(" 77 "), "{limits}");
    assert!(line("Max core file size").contains(" 0 "), "{limits}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_runtime_ends_its_instances_and_its_guardian() {
    let (_dir, runtime) = runtime();
    let started = start(&runtime, app(&[])).await.unwrap();
    let (guardian, pid) = (runtime.guardian_pid(), support_pid(&started.instance).await);
    assert!(runs(guardian) && runs(pid));
    let events = Arc::clone(&started.events);
    drop(started);
    drop(runtime);
    eventually("both are gone", || !runs(pid) && !runs(guardian)).await;
    assert_eq!(events.exits().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guardian_that_is_killed_is_replaced() {
    let (_dir, runtime) = runtime();
    let started = start(&runtime, app(&[])).await.unwrap();
    let before = runtime.guardian_pid();
    kill_process(Pid::from_raw(before).unwrap(), Signal::KILL).unwrap();
    eventually("another guards", || runtime.guardian_pid() != before && runs(runtime.guardian_pid())).await;
    assert!(!runs(before));
    assert!(fetch(&started.instance, "/").await.is_ok(), "the instance did not notice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_that_has_passed_starts_nothing_that_stays() {
    let (_dir, runtime) = runtime();
    let deployed = prepare(&runtime, app(&["deaf"])).await.unwrap();
    let (mut late, ..) = request(&deployed, 1);
    late.deadline = tokio::time::Instant::now();
    assert_eq!(runtime.start(late).await.err().unwrap().kind, ErrorKind::Timeout);
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quiet_instances_cost_no_task() {
    let (_dir, runtime) = runtime();
    let deployed = prepare(&runtime, app(&[])).await.unwrap();
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let first = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let before = tasks();
    let mut more = Vec::new();
    for id in 2..12 {
        more.push(start_deployed(&runtime, &deployed, id).await.unwrap());
    }
    assert_eq!(tasks(), before);
    drop((first, more));
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_whose_package_vanishes_cannot_start_and_says_so() {
    let (dir, runtime) = runtime();
    let program = std::fs::read(support::program("app")).unwrap();
    let spec = RevisionSpec::new("process", Source::Bytes { name: "app".into(), bytes: program.into() });
    let deployed = prepare(&runtime, spec).await.unwrap();
    std::fs::remove_dir_all(dir.path().join("store/packages")).unwrap();
    let error = start_deployed(&runtime, &deployed, 1).await.err().unwrap();
    assert!(error.to_string().contains("deploy it again"), "{error}");
}
