//! Native stems: instances forked by the program itself.

mod support;

use std::{collections::HashSet, sync::Arc, time::Duration};

use sas_core::{ErrorKind, RevisionSpec, Runtime as _};
use sas_runtime_process::{ProcessConfig, ProcessRuntime};
use support::{eventually, fetch, prepare, runs, spec, start_deployed};

fn runtime() -> (tempfile::TempDir, ProcessRuntime) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.zygotes = true;
    (dir, ProcessRuntime::new(config).unwrap())
}

fn zygote(args: &[&str]) -> RevisionSpec {
    let mut spec = spec(support::program("zygote"));
    spec.args = args.iter().map(|arg| (*arg).to_owned()).collect();
    spec.options.insert("sas.dev/zygote".into(), "true".into());
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_start_is_a_fork_of_one_zygote_with_its_own_environment_output_and_status() {
    let (_dir, runtime) = runtime();
    let runtime = Arc::new(runtime);
    let deployed = prepare(&runtime, zygote(&[])).await.unwrap();
    let mut started = Vec::new();
    for id in 0..5 {
        started.push(start_deployed(&runtime, &deployed, id).await.unwrap());
    }
    let mut pids = HashSet::new();
    for one in &started {
        let answer = fetch(&one.instance, "/").await.unwrap();
        let (pid, revision) = answer.split_once(' ').unwrap();
        assert_eq!(revision, "hello-00001");
        pids.insert(pid.parse::<i32>().unwrap());
    }
    assert_eq!(pids.len(), 5);
    assert_eq!(runtime.processes(), 6, "five instances and their zygote");
    let _ = fetch(&started[0].instance, "/exit").await;
    eventually("its exit is told", || !started[0].events.exits().is_empty()).await;
    assert_eq!(started[0].events.exits()[0].1.code, Some(5), "it is our own child");
    assert!(started[0].logs.lines().iter().any(|line| line.line == b"leaving"));
    started[1].instance.stop(Duration::from_secs(5)).await.unwrap();
    assert!(fetch(&started[2].instance, "/").await.is_ok(), "the others serve on");
    drop(started);
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 1, "the zygote waits for the next");
    drop(deployed);
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
    assert!(pids.iter().all(|pid| !runs(*pid)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zygote_that_does_not_come_up_fails_the_start_with_its_last_words() {
    let (_dir, runtime) = runtime();
    let runtime = Arc::new(runtime);
    let deployed = prepare(&runtime, zygote(&["broken"])).await.unwrap();
    let error = start_deployed(&runtime, &deployed, 1).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::Crashed);
    assert!(error.to_string().contains("no database"), "{error}");
    runtime.quiesce().await;
    assert_eq!(runtime.processes(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_forks_each_get_their_own_instance() {
    let (_dir, runtime) = runtime();
    let runtime = Arc::new(runtime);
    let deployed = prepare(&runtime, zygote(&[])).await.unwrap();
    let many: Vec<_> = (0..32)
        .map(|id| {
            let (runtime, deployed) = (Arc::clone(&runtime), Arc::clone(&deployed));
            tokio::spawn(async move { start_deployed(&runtime, &deployed, id).await.unwrap() })
        })
        .collect();
    let mut answers = HashSet::new();
    let mut started = Vec::new();
    for one in many {
        let one = one.await.unwrap();
        answers.insert(fetch(&one.instance, "/").await.unwrap());
        started.push(one);
    }
    assert_eq!(answers.len(), 32);
}
