//! The host as process 1, as it is in a container whose image starts it: orphans of the whole container are its children,
//! and it collects those that nobody waits for, and no other.

#![allow(clippy::print_stdout, reason = "a host of this test says how far it came")]

mod support;

use std::{
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use sas_core::Runtime as _;
use support::{app, eventually, fetch, prepare, start_deployed};

/// Children of this process that have ended and were not collected.
fn ended() -> Vec<i32> {
    let stat = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // After the name: state and parent.
        let mut fields = stat[stat.rfind(')')? + 2..].split(' ');
        (fields.next() == Some("Z") && fields.next() == Some("1")).then_some(pid)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(stat).collect()
}

async fn be_process_one() {
    assert_eq!(std::process::id(), 1, "the first of its namespace");
    let (_dir, runtime) = support::runtime();
    let runtime = Arc::new(runtime);
    let deployed = prepare(&runtime, app(&[])).await.unwrap();
    let kept = start_deployed(&runtime, &deployed, 1).await.unwrap();
    let crashes = start_deployed(&runtime, &deployed, 2).await.unwrap();

    // A foreign program that leaves its children behind, one of them in a session of its own.
    let foreign = "(exit 3) & (sleep 0.1; exit 4) & setsid sh -c 'sleep 0.2' & exit 0";
    assert!(Command::new("/bin/sh").args(["-c", foreign]).status().unwrap().success());
    eventually("its children have ended, and nobody has asked for them", || ended().len() == 3).await;
    let orphans = ended();

    // It was looked at once; a minute later nobody will ask any more.
    tokio::time::sleep(Duration::from_millis(2300)).await;
    assert_eq!(ended(), orphans, "whoever started them has a minute");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    // Meanwhile others of the host's own come to their ends.
    let mut own = Command::new("/bin/sh").args(["-c", "exit 5"]).stdin(Stdio::null()).spawn().unwrap();
    let _ = fetch(&crashes.instance, "/crash").await;
    eventually("they are collected", || !ended().iter().any(|pid| orphans.contains(pid))).await;

    eventually("the exit is told", || !crashes.events.exits().is_empty()).await;
    let report = crashes.events.exits().remove(0).1;
    assert_eq!(report.signal, Some(6), "its status was not taken by another: {report:?}");
    assert_eq!(own.wait().expect("it is still there to be waited for").code(), Some(5));
    assert_eq!(fetch(&kept.instance, "/").await.unwrap(), fetch(&kept.instance, "/").await.unwrap());
    kept.instance.stop(Duration::from_secs(5)).await.unwrap();
    eventually("its exit is told too", || !kept.events.exits().is_empty()).await;
    let report = kept.events.exits().remove(0).1;
    assert!(report.code.is_some() || report.signal.is_some(), "{report:?}");
    runtime.quiesce().await;
    println!("process one is done");
}

#[tokio::test]
async fn as_process_one_the_host_collects_orphans_of_others_and_leaves_its_own_to_who_waits() {
    if std::env::var_os("SAS_TEST_PROCESS_ONE").is_some() {
        return be_process_one().await;
    }
    if !rustix::process::geteuid().is_root() {
        return sas_testkit::skip("a namespace whose process 1 is the host needs root");
    }
    if support::missing("unshare") {
        return;
    }
    let name = "as_process_one_the_host_collects_orphans_of_others_and_leaves_its_own_to_who_waits";
    let output = Command::new("unshare")
        .args(["--pid", "--fork", "--mount-proc", "--kill-child"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("SAS_TEST_PROCESS_ONE", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("process one is done"), "{said}\n{told}");
}
