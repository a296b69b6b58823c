//! The host dies without a word, and its instances with it; a start costs the same whatever the host's memory.

#![allow(clippy::print_stdout, reason = "a host of this test talks to it over a pipe")]

mod support;

use std::{
    io::{BufRead as _, BufReader},
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sas_runtime_process::{ProcessConfig, ProcessRuntime};
use support::{app, fetch, prepare, start_deployed};
use tokio::time::Instant;

/// Processes that run a program of the store or have a run's marker as standard input.
fn instances(store: &Path) -> Vec<i32> {
    let markers: Vec<(u64, u64)> = std::fs::read_dir(store.join("runs"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|run| std::fs::metadata(run.path().join("stdin")).ok())
        .map(|marker| (marker.dev(), marker.ino()))
        .collect();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let marked = std::fs::metadata(entry.path().join("fd/0"))
            .is_ok_and(|stdin| markers.contains(&(stdin.dev(), stdin.ino())));
        let ours = std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.starts_with(store));
        if (marked || ours) && support::runs(pid) {
            found.push(pid);
        }
    }
    found
}

/// Starts instances of three kinds, and goes on starting, stopping and calling until it is killed.
async fn be_the_host(store: &str) {
    let runtime = Arc::new(ProcessRuntime::new(ProcessConfig::in_store(store)).unwrap());
    let plain = prepare(&runtime, app(&[])).await.unwrap();
    let mut with_socket = app(&["fd0"]);
    with_socket.options.insert("sas.dev/listen-fd".into(), "0".into());
    let with_socket = prepare(&runtime, with_socket).await.unwrap();
    let stubborn = prepare(&runtime, app(&["stubborn"])).await.unwrap();
    let mut kept = Vec::new();
    for (id, deployed) in [&plain, &with_socket, &stubborn, &plain].into_iter().enumerate() {
        let started = start_deployed(&runtime, deployed, id as u64).await.unwrap();
        let child = fetch(&started.instance, "/child").await.unwrap();
        println!("child {}", support::on_host(&started.instance, &child));
        kept.push(started);
    }
    println!("serving");
    for id in 10.. {
        let deployed = if id % 2 == 0 { &plain } else { &stubborn };
        let started = start_deployed(&runtime, deployed, id).await.unwrap();
        for started in &kept {
            fetch(&started.instance, "/").await.unwrap();
        }
        started.instance.stop(Duration::from_millis(5)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_killed_under_load_leaves_no_instance_a_second_later() {
    if let Ok(store) = std::env::var("SAS_TEST_HOST_STORE") {
        return be_the_host(&store).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = std::fs::canonicalize(dir.path()).unwrap().join("store");
    for round in 0..3 {
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_host_killed_under_load_leaves_no_instance_a_second_later", "--nocapture"])
            .env("SAS_TEST_HOST_STORE", &store)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(host.stdout.take().unwrap());
        let said: Vec<String> =
            out.lines().map_while(Result::ok).take_while(|line| !line.ends_with("serving")).collect();
        let children: Vec<i32> =
            said.iter().filter_map(|line| line.split("child ").nth(1)?.parse().ok()).collect();
        assert_eq!(children.len(), 4, "the host serves: {said:?}");
        tokio::time::sleep(Duration::from_millis(100 + 37 * round)).await;
        let before = instances(&store);
        assert!(before.len() >= 4, "four instances: {before:?}");
        assert!(children.iter().all(|child| support::runs(*child)), "and a child of each");
        host.kill().unwrap();
        let killed = Instant::now();
        host.wait().unwrap();
        let left_now = || {
            let mut left = instances(&store);
            left.extend(children.iter().filter(|child| support::runs(**child)));
            left
        };
        let mut left = left_now();
        while !left.is_empty() && killed.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(10)).await;
            left = left_now();
        }
        let took = killed.elapsed();
        println!("round {round}: {} processes gone {took:?} after the kill", before.len());
        assert!(left.is_empty(), "still there: {left:?}");
        assert!(took < Duration::from_secs(2), "{took:?}: a second is the promise, another the machine's");
    }
    // The next host finds the store as if nothing had happened.
    let runtime = Arc::new(ProcessRuntime::new(ProcessConfig::in_store(&store)).unwrap());
    assert_eq!(std::fs::read_dir(store.join("runs")).unwrap().count(), 1, "only its own run");
    let deployed = prepare(&runtime, app(&[])).await.unwrap();
    let started = start_deployed(&runtime, &deployed, 1).await.unwrap();
    fetch(&started.instance, "/").await.unwrap();
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn start_time(runtime: &Arc<ProcessRuntime>, deployed: &Arc<sas_core::Deployed>) -> Duration {
    let mut times = Vec::new();
    for id in 0..15 {
        let began = Instant::now();
        let started = start_deployed(runtime, deployed, id).await.unwrap();
        times.push(began.elapsed());
        started.instance.stop(Duration::ZERO).await.unwrap();
    }
    median(times)
}

/// The same exec by `fork`, to which std falls back when a user is set: what a start must not cost.
fn fork_time() -> Duration {
    let uid = rustix::process::geteuid().as_raw();
    let mut times = Vec::new();
    for _ in 0..9 {
        let began = Instant::now();
        let mut child = Command::new("/bin/true").uid(uid).spawn().unwrap();
        times.push(began.elapsed());
        child.wait().unwrap();
    }
    median(times)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_takes_no_longer_in_a_host_with_much_memory() {
    let (_dir, runtime) = support::runtime();
    let runtime = Arc::new(runtime);
    // Ready as soon as it is spawned: what is measured is the spawn.
    let mut spec = app(&["fd0"]);
    spec.options.insert("sas.dev/listen-fd".into(), "0".into());
    let deployed = prepare(&runtime, spec).await.unwrap();
    let (small, small_fork) = (start_time(&runtime, &deployed).await, fork_time());
    let resident: Vec<Vec<u8>> = (0..8192u32).map(|n| vec![n.to_le_bytes()[0] | 1; 65_536]).collect();
    let (large, large_fork) = (start_time(&runtime, &deployed).await, fork_time());
    assert_eq!(resident.iter().filter(|block| block[65_535] != 0).count(), 8192, "still resident");
    println!(
        "start: {small:?} before, {large:?} with 512 MiB; fork + exec: {small_fork:?} and {large_fork:?}"
    );
    // Noise of a busy machine is no copy: that shows in the fork beside it.
    let bound = (small * 3 + Duration::from_millis(2)).max(large_fork / 4);
    assert!(large < bound, "{large:?} against {small:?}: the host was copied");
}
