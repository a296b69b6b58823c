//! Limits of CPU, memory and processes, held by control groups where this machine lets the tests make them.

#![allow(clippy::print_stdout, reason = "a host of this test talks to it over a pipe")]

mod support;

use std::{path::PathBuf, process::Command, sync::Arc, time::Duration};

use rustix::process::{Pid, Signal, kill_process};
use sas_core::Runtime as _;
use sas_runtime_process::{ControlGroups, ProcessConfig, ProcessRuntime};
use support::{app, eventually, fetch, prepare, runs, start, start_deployed};

/// A runtime with control groups; `None`, and a word why, where there are none to be had.
fn with_groups() -> Option<(tempfile::TempDir, Arc<ProcessRuntime>)> {
    let (dir, runtime) = support::runtime();
    if !runtime.capabilities().limits {
        sas_testkit::kernel_lacks("controllers cpu and memory that this user can use");
        return None;
    }
    Some((dir, Arc::new(runtime)))
}

/// The directories of groups that the runs of a store have listed.
fn bases(store: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(store.join("store/runs"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|run| std::fs::read_to_string(run.path().join("cgroups")).ok())
        .flat_map(|list| list.lines().map(PathBuf::from).collect::<Vec<_>>())
        .collect()
}

/// Groups that something runs in: others are kept ready.
fn groups_in(bases: &[PathBuf]) -> usize {
    let inhabited = |entry: &std::fs::DirEntry| {
        std::fs::read_to_string(entry.path().join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty())
    };
    let directories =
        |base: &PathBuf| std::fs::read_dir(base).into_iter().flatten().flatten().filter(inhabited).count();
    bases.iter().map(directories).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_burns_cpu_gets_its_share_and_no_more() {
    let Some((_dir, runtime)) = with_groups() else { return };
    let mut spec = app(&["burn"]);
    spec.resources.cpu_limit_millis = Some(100);
    let started = start(&runtime, spec).await.unwrap();
    let cpu = || started.instance.usage().unwrap().cpu_ns;
    let (before, began) = (cpu(), tokio::time::Instant::now());
    tokio::time::sleep(Duration::from_millis(1200)).await;
    let share = (cpu() - before) as f64 / began.elapsed().as_nanos() as f64;
    // It would take a whole core, and two on a machine that has nothing else to do.
    assert!(share < 0.2, "{share} of a core, 0.1 is its limit");
    assert!(share > 0.01, "{share}: it runs");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_takes_more_memory_than_its_limit_is_ended_and_its_exit_says_why() {
    let Some((_dir, runtime)) = with_groups() else { return };
    let mut spec = app(&[]);
    spec.resources.memory_limit_bytes = Some(64 << 20);
    let deployed = prepare(&runtime, spec).await.unwrap();
    assert_eq!(deployed.artifact.info().notes, Vec::<String>::new(), "everything is enforced");
    let greedy = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let modest = start_deployed(&runtime, &deployed, 2).await.unwrap();
    assert_eq!(fetch(&modest.instance, "/grow/8").await.unwrap(), "grown");
    let _ = fetch(&greedy.instance, "/grow/200").await;
    eventually("it is ended", || !greedy.events.exits().is_empty()).await;
    let report = greedy.events.exits().remove(0).1;
    assert!(report.out_of_memory, "{report:?}");
    assert!(
        report.to_string().contains("67108864") && report.to_string().contains("resources.limits.memory"),
        "{report}"
    );
    assert_eq!(fetch(&modest.instance, "/grow/8").await.unwrap(), "grown", "the other serves on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_counted_for_the_instance_with_its_children() {
    let Some((_dir, runtime)) = with_groups() else { return };
    // A child that was forked before the instance could be put into its group belongs to it all the same.
    let mut spec = app(&["early-child"]);
    spec.resources.memory_limit_bytes = Some(64 << 20);
    let started = start(&runtime, spec).await.unwrap();
    let child = support::on_host(&started.instance, &fetch(&started.instance, "/early").await.unwrap());
    let of = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(of(&child.to_string()).contains("/sas-"), "{}", of(&child.to_string()));
    assert!(!of("self").contains("/sas-"), "the host is in none");
    started.instance.stop(Duration::from_secs(5)).await.unwrap();
    eventually("its child is gone", || !runs(child)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_has_no_more_processes_than_it_may() {
    let Some((_dir, runtime)) = with_groups() else { return };
    let mut spec = app(&[]);
    spec.options.insert("sas.dev/pids-max".into(), "12".into());
    let deployed = prepare(&runtime, spec).await.unwrap();
    if !deployed.artifact.info().notes.is_empty() {
        return sas_testkit::kernel_lacks("controller pids");
    }
    let started = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let mut children = 0;
    while fetch(&started.instance, "/child").await.is_ok() {
        children += 1;
        assert!(children < 12, "more processes than it may have");
    }
    assert!(children > 0, "some it may have");
}

/// A runtime whose instances are held to little unless they say otherwise.
fn with_ceilings(set: impl FnOnce(&mut ProcessConfig)) -> Option<(tempfile::TempDir, Arc<ProcessRuntime>)> {
    drop(with_groups()?);
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    set(&mut config);
    Some((dir, Arc::new(ProcessRuntime::new(config).unwrap())))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_without_limits_is_held_to_the_hosts_ceilings() {
    let Some((dir, runtime)) = with_ceilings(|config| config.jail.instance_memory = Some(64 << 20)) else {
        return;
    };
    let started = start(&runtime, app(&[])).await.unwrap();
    let most = |file: &str| {
        let of = |base: &PathBuf| {
            let entries = std::fs::read_dir(base).into_iter().flatten().flatten();
            entries
                .filter_map(|entry| std::fs::read_to_string(entry.path().join(file)).ok())
                .collect::<Vec<_>>()
        };
        bases(dir.path()).iter().flat_map(of).find_map(|text| text.trim().parse::<u64>().ok())
    };
    assert_eq!(most("pids.max").unwrap_or(1024), 1024, "where the controller is there");
    assert_eq!(most("memory.max").or_else(|| most("memory.limit_in_bytes")), Some(64 << 20));
    let _ = fetch(&started.instance, "/grow/200").await;
    eventually("it is ended", || !started.events.exits().is_empty()).await;
    let report = started.events.exits().remove(0).1.to_string();
    assert!(report.contains("want of memory") && report.contains("jail.instance_memory"), "{report}");
    // One that asks for more gets it.
    let mut spec = app(&[]);
    spec.resources.memory_limit_bytes = Some(512 << 20);
    let started = start(&runtime, spec).await.unwrap();
    assert_eq!(fetch(&started.instance, "/grow/200").await.unwrap(), "grown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_instances_together_have_no_more_memory_than_the_host_leaves_them() {
    let Some((dir, runtime)) = with_ceilings(|config| config.jail.total_memory = Some(160 << 20)) else {
        return;
    };
    let base_of =
        |file: &str| bases(dir.path()).iter().find_map(|base| std::fs::read_to_string(base.join(file)).ok());
    let held = base_of("memory.max").or_else(|| base_of("memory.limit_in_bytes")).unwrap();
    assert_eq!(held.trim(), (160 << 20).to_string());
    let deployed = prepare(&runtime, app(&[])).await.unwrap();
    let (one, two, small) = (
        start_deployed(&runtime, &deployed, 1).await.unwrap(),
        start_deployed(&runtime, &deployed, 2).await.unwrap(),
        start_deployed(&runtime, &deployed, 3).await.unwrap(),
    );
    assert_eq!(fetch(&small.instance, "/grow/8").await.unwrap(), "grown");
    assert_eq!(fetch(&one.instance, "/keep/90").await.unwrap(), "kept");
    // Each is far below its own ceiling.
    let _ = fetch(&two.instance, "/keep/90").await;
    let ended = || one.events.exits().into_iter().chain(two.events.exits()).collect::<Vec<_>>();
    eventually("one of the two is ended", || !ended().is_empty()).await;
    // The kernel may take the other too, before the first has let go of what it held.
    for (_, report) in ended() {
        assert!(report.out_of_memory, "{report:?}");
        let said = report.to_string();
        assert!(
            said.contains("all instances together is 167772160") && said.contains("jail.total_memory"),
            "{said}"
        );
    }
    assert_eq!(fetch(&small.instance, "/grow/8").await.unwrap(), "grown", "the others serve on");
    assert_eq!(small.events.exits().len(), 0);
    // What the ended one held is there for others.
    let after = start_deployed(&runtime, &deployed, 4).await.unwrap();
    assert_eq!(fetch(&after.instance, "/grow/30").await.unwrap(), "grown");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_instances_together_have_no_more_processes_than_the_host_leaves_them() {
    let Some((dir, runtime)) = with_ceilings(|config| {
        config.jail.instance_processes = 20;
        config.jail.total_processes = Some(20);
    }) else {
        return;
    };
    let deployed = prepare(&runtime, app(&[])).await.unwrap();
    if !deployed.artifact.info().notes.is_empty() {
        return sas_testkit::kernel_lacks("controller pids");
    }
    let one = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let two = start_deployed(&runtime, &deployed, 2).await.unwrap();
    let base = bases(dir.path());
    let held = base.iter().find_map(|base| std::fs::read_to_string(base.join("pids.max")).ok()).unwrap();
    assert_eq!(held.trim(), "20", "of the group of all");
    // Both until both are refused. Not counted here: a program that gets no thread to answer with ends, and makes room.
    let mut tries = 0;
    while fetch(&one.instance, "/child").await.is_ok() || fetch(&two.instance, "/child").await.is_ok() {
        tries += 1;
        assert!(tries < 1000, "nobody is refused");
    }
    one.instance.stop(Duration::from_secs(5)).await.unwrap();
    // A killed process counts until its parent has collected it. The other one may have ended: it cannot answer without a thread.
    let room = async {
        loop {
            if let Ok(three) = start_deployed(&runtime, &deployed, 3).await
                && fetch(&three.instance, "/child").await.is_ok()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), room).await.expect("who has left makes room");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_fails_at_the_ceiling_of_processes_says_so() {
    let Some((_dir, runtime)) = with_ceilings(|config| config.jail.instance_processes = 8) else { return };
    let text = "#!/bin/sh\nfor n in 1 2 3 4 5 6 7 8 9 10; do sleep 30 & done\nexit 1\n";
    let source = sas_core::Source::Bytes { name: "app".into(), bytes: text.into() };
    let spec = sas_core::RevisionSpec::new("process", source);
    let deployed = prepare(&runtime, spec).await.unwrap();
    let error = start_deployed(&runtime, &deployed, 1).await.err().unwrap().to_string();
    if runtime.capabilities().limits && !std::path::Path::new("/sys/fs/cgroup").join("pids").exists() {
        let two = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        if !two.contains("pids") {
            return sas_testkit::kernel_lacks("controller pids");
        }
    }
    assert!(error.contains("sas.dev/pids-max") && error.contains("ceiling of 8"), "{error}");
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
}

/// One more start after others, from groups that were kept ready.
async fn deployed_again(runtime: &Arc<ProcessRuntime>) -> support::Started {
    start(runtime, app(&[])).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_goes_with_its_instance_and_with_it_whoever_has_left_its_process_group() {
    let Some((dir, runtime)) = with_groups() else { return };
    let bases = bases(dir.path());
    assert!(!bases.is_empty());
    let plain = start(&runtime, app(&[])).await.unwrap();
    assert_eq!(groups_in(&bases), bases.len(), "an instance without limits is held to the host's");
    plain.instance.stop(Duration::from_secs(5)).await.unwrap();
    let mut spec = app(&[]);
    spec.resources.memory_limit_bytes = Some(64 << 20);
    let started = start(&runtime, spec).await.unwrap();
    assert_eq!(groups_in(&bases), bases.len());
    let daemon = support::on_host(&started.instance, &fetch(&started.instance, "/daemon").await.unwrap());
    assert!(runs(daemon));
    started.instance.stop(Duration::from_secs(5)).await.unwrap();
    runtime.quiesce().await;
    assert_eq!(groups_in(&bases), 0);
    assert!(!runs(daemon), "a session of its own does not save it");
    drop((plain, started, deployed_again(&runtime).await, runtime));
    eventually("the run's directories go with the host", || !bases.iter().any(|base| base.exists())).await;
}

/// A host of the test below, which kills it.
async fn be_the_host(store: &str) {
    let runtime = Arc::new(ProcessRuntime::new(ProcessConfig::in_store(store)).unwrap());
    let mut spec = app(&[]);
    spec.resources.memory_limit_bytes = Some(64 << 20);
    let started = start(&runtime, spec).await.unwrap();
    let daemon = fetch(&started.instance, "/daemon").await.unwrap();
    println!("daemon {}", support::on_host(&started.instance, &daemon));
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_host_leaves_the_next_one_clears() {
    if let Ok(store) = std::env::var("SAS_TEST_GROUPS_STORE") {
        return be_the_host(&store).await;
    }
    if with_groups().is_none() {
        return;
    }
    use std::io::BufRead as _;
    let dir = tempfile::tempdir().unwrap();
    let mut host = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_killed_host_leaves_the_next_one_clears", "--nocapture"])
        .env("SAS_TEST_GROUPS_STORE", dir.path().join("store"))
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let out = std::io::BufReader::new(host.stdout.take().unwrap());
    let daemon: i32 = out
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.split("daemon ").nth(1)?.parse().ok())
        .expect("the host serves");
    kill_process(Pid::from_raw(i32::try_from(host.id()).unwrap()).unwrap(), Signal::KILL).unwrap();
    host.wait().unwrap();
    let left = bases(dir.path());
    assert!(left.iter().any(|base| base.exists()), "{left:?}");
    let runtime = ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("store"))).unwrap();
    assert!(left.iter().all(|base| !base.exists()), "{left:?}");
    assert!(!runs(daemon));
    drop(runtime);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_groups_the_notes_say_what_is_not_enforced_and_why() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.cgroups = ControlGroups::Off;
    let runtime = Arc::new(ProcessRuntime::new(config).unwrap());
    assert!(!runtime.capabilities().limits);
    let mut spec = app(&[]);
    spec.resources.cpu_limit_millis = Some(500);
    spec.resources.memory_limit_bytes = Some(64 << 20);
    spec.options.insert("sas.dev/pids-max".into(), "12".into());
    let deployed = prepare(&runtime, spec).await.unwrap();
    let notes = &deployed.artifact.info().notes;
    for wanted in ["cpu_limit is not enforced", "for the data of each process", "pids-max is not enforced"] {
        assert!(notes.iter().any(|note| note.contains(wanted) && note.contains("switched off")), "{notes:?}");
    }
    // Memory is bounded by an rlimit then.
    let started = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let pid = support::on_host(&started.instance, &fetch(&started.instance, "/pid").await.unwrap());
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    assert!(line.contains(&(64u64 << 20).to_string()), "{line}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_that_the_kernel_refuses_fails_the_start_and_leaves_nothing() {
    if with_groups().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    // The host itself would refuse it else.
    config.jail.max_instance_processes = u64::MAX;
    let runtime = Arc::new(ProcessRuntime::new(config).unwrap());
    let mut spec = app(&[]);
    spec.options.insert("sas.dev/pids-max".into(), u64::MAX.to_string());
    let deployed = prepare(&runtime, spec).await.unwrap();
    if !deployed.artifact.info().notes.is_empty() {
        return sas_testkit::kernel_lacks("controller pids");
    }
    let error = start_deployed(&runtime, &deployed, 1).await.err().unwrap();
    assert!(error.to_string().contains("control group"), "{error}");
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
    assert_eq!(groups_in(&bases(dir.path())), 0);
}

#[test]
fn a_directory_that_is_no_group_is_refused_with_its_field() {
    let mut config = ProcessConfig::default();
    config.cgroups = ControlGroups::Under("/tmp".into());
    let error = config.validate().unwrap_err();
    assert!(error.to_string().contains("cgroups: /tmp"), "{error}");
}
