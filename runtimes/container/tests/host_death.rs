//! The host dies without a word, and its containers with it; the next one clears what is left. And: cycles of starts and
//! ends leave nothing: no process, mount, namespace, control group or file. Ten cycles and three kills; with `SAS_LONG=1` two
//! hundred and fifty.

#![allow(clippy::print_stdout, reason = "a host of this test talks to it over a pipe")]

mod support;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sas_core::Runtime as _;
use sas_runtime_container::{ContainerConfig, ContainerRuntime};
use support::{Workplace, get, get_with, prepare, start_deployed, until};

fn count(short: u64, long: u64) -> u64 {
    if std::env::var_os("SAS_LONG").is_some() { long } else { short }
}

/// What this process holds is counted, so that no other test of this file may run meanwhile.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// What there is beyond what `census` finds: mounts of a directory's and the files below it; and how many namespaces this process
/// holds.
fn inventory(dir: &Path) -> (BTreeSet<String>, usize) {
    fn walk(dir: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                walk(&path, found);
            }
            found.insert(format!("file {}", path.display()));
        }
    }
    let mut found = BTreeSet::new();
    walk(dir, &mut found);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Those of others come and go. Without the number of the mount, which is no other thing for being another.
    let ours = dir.display().to_string();
    let mounts = mounts.lines().filter(|line| line.contains(&ours));
    found.extend(mounts.filter_map(|line| Some(format!("mount {}", line.split_once(' ')?.1))));
    let mut spaces = 0;
    for fd in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
        let to = std::fs::read_link(fd.path()).unwrap_or_default().display().to_string();
        spaces += usize::from(to.starts_with("net:[") || to.starts_with("mnt:["));
    }
    (found, spaces)
}

/// Nothing is there that was not there before. A runtime that was dropped just before may have made a network meanwhile, which it
/// gives up: that may be less.
fn nothing_more(now: &(BTreeSet<String>, usize), before: &(BTreeSet<String>, usize)) -> bool {
    now.0 == before.0 && now.1 <= before.1
}

/// Control groups of ours, wherever they are mounted.
fn groups() -> Vec<PathBuf> {
    fn walk(dir: &Path, depth: u32, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().starts_with("sas-") {
                found.push(entry.path());
            } else if depth > 0 {
                walk(&entry.path(), depth - 1, found);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), 4, &mut found);
    found
}

/// Groups of the runs of this store, by the inode in their names.
fn groups_of(store: &Path) -> Vec<PathBuf> {
    let lists = std::fs::read_dir(store.join("runs")).into_iter().flatten().flatten();
    let names: Vec<String> = lists
        .filter_map(|run| std::fs::read_to_string(run.path().join("cgroups")).ok())
        .flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    groups().into_iter().filter(|group| names.iter().any(|name| Path::new(name) == group)).collect()
}

async fn be_the_host(layout: &str, store: &str) {
    let mut config = ContainerConfig::in_store(store);
    config.local_images.push(layout.into());
    let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
    let mut spec =
        sas_core::RevisionSpec::new("container", sas_core::Source::Image(format!("oci:{layout}:app")));
    spec.timeouts.start = Duration::from_secs(20);
    let plain = prepare(&runtime, spec.clone()).await.unwrap();
    spec.args = vec!["stubborn".into()];
    let stubborn = prepare(&runtime, spec).await.unwrap();
    let one = start_deployed(&runtime, &plain, 1).await.unwrap();
    let two = start_deployed(&runtime, &stubborn, 2).await.unwrap();
    println!("serving {}", runtime.guardian_pid());
    for id in 10.. {
        let started = start_deployed(&runtime, &plain, id).await.unwrap();
        get(&*one.instance, "/").await;
        get(&*two.instance, "/").await;
        started.instance.stop(Duration::from_millis(5)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_killed_under_load_leaves_nothing_behind() {
    if let (Ok(layout), Ok(store)) = (std::env::var("SAS_TEST_LAYOUT"), std::env::var("SAS_TEST_HOST_STORE"))
    {
        return be_the_host(&layout, &store).await;
    }
    support::needs_containers!();
    let place = Workplace::new();
    let store = place.store();
    let _alone = ALONE.lock().await;
    // A host that came and went: its image is here from now on.
    prepare(&place.runtime(), place.app(&[])).await.unwrap();
    let before = inventory(place.dir.path());
    for round in 0..count(3, 50) {
        let mut host = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_host_killed_under_load_leaves_nothing_behind", "--nocapture"])
            .env("SAS_TEST_HOST_STORE", &store)
            .env("SAS_TEST_LAYOUT", &place.layout)
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let lines = BufReader::new(host.stdout.take().unwrap()).lines();
        let said =
            lines.map_while(Result::ok).find_map(|line| line.strip_prefix("serving ").map(str::to_owned));
        let guardian: i32 = said.expect("the host serves").parse().unwrap();
        tokio::time::sleep(Duration::from_millis(37 * (round % 7))).await;
        // Every other time the guardian goes with it, so that only the next host can clear up.
        if round % 2 == 1 {
            let pid = rustix::process::Pid::from_raw(guardian).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
        host.kill().unwrap();
        host.wait().unwrap();
        if round % 2 == 0 {
            until("the guardian has ended the containers", || {
                !support::census(&store).iter().any(|left| left.starts_with("process"))
            })
            .await;
        }
    }
    // The next host clears what is left of all of them.
    let lists = groups_of(&store);
    let runtime = place.runtime();
    assert_eq!(support::census(&store), Vec::<String>::new(), "after the next host has opened the store");
    let left: Vec<_> = lists.iter().filter(|group| group.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(std::fs::read_dir(store.join("runs")).unwrap().count(), 1, "its own run");
    drop(runtime);
    until("nothing of it is left but what was before", || {
        nothing_more(&inventory(place.dir.path()), &before)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cycles_of_deploy_load_kill_and_removal_leave_nothing_behind() {
    support::needs_containers!();
    let place = Workplace::new();
    let store = place.store();
    let _alone = ALONE.lock().await;
    prepare(&place.runtime(), place.app(&[])).await.unwrap();
    let before = inventory(place.dir.path());
    let runtime = place.runtime();
    for round in 0..count(10, 200) {
        let deployed = prepare(&runtime, place.app(&[])).await.unwrap();
        let started = start_deployed(&runtime, &deployed, round).await.unwrap();
        assert_eq!(get(&*started.instance, "/write/data/file").await, "done: written");
        let (one, two, three, four) = tokio::join!(
            get(&*started.instance, "/"),
            get(&*started.instance, "/env"),
            get(&*started.instance, "/slow"),
            get(&*started.instance, "/list/"),
        );
        assert!(one.is_empty() && two.contains("PORT") && three == "slow" && four.contains("bin"));
        match round % 4 {
            0 => started.instance.stop(Duration::from_secs(5)).await.unwrap(),
            1 => started.instance.stop(Duration::ZERO).await.unwrap(),
            // It ends by itself, and nobody has asked it to.
            2 => {
                assert!(get_with(&*started.instance, "/crash", &[]).await.is_err());
                until("its end is told", || !started.events.exits().is_empty()).await;
            }
            _ => drop(started),
        }
    }
    runtime.quiesce().await;
    assert_eq!(runtime.containers(), 0);
    assert_eq!(support::census(&store), Vec::<String>::new());
    drop(runtime);
    until("its groups are gone with it", || groups_of(&store).is_empty()).await;
    until("nothing of it is left but what was before", || {
        nothing_more(&inventory(place.dir.path()), &before)
    })
    .await;
}
