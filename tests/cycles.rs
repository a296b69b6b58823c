//! 0 → M → N → M → 0 on real processes, with an instance killed by SIGKILL in each cycle, under load.
//!
//! `SAS_CYCLES=500 cargo test --release --test cycles -- --nocapture` is the long run.

mod shared;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::Path,
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use sas::{core::Pool as _, prelude::*};
use shared::{call, eventually, hello, hello_manifest, processes_below};

/// Requests at once on one instance: at most this many can be on the one that is killed.
const CONCURRENCY: usize = 4;

async fn platform(dir: &Path) -> Platform {
    let runtime = ProcessRuntime::new(ProcessConfig::in_store(dir)).expect("the store can be made");
    Platform::builder()
        .runtime(runtime)
        .driver(|driver| driver.tick = Duration::from_millis(250))
        .listen(SocketAddr::from(([127, 0, 0, 1], 0)))
        .build()
        .await
        .expect("a platform")
}

/// What became of one request.
#[derive(Debug)]
struct Sent {
    id: String,
    idempotent: bool,
    answer: Option<(u16, String)>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_lost_while_instances_are_killed() {
    let cycles: u32 = std::env::var("SAS_CYCLES").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let platform = platform(dir.path()).await;
    let ingress = platform.listen_addr().expect("it listens");
    let annotations = "        autoscaling.knative.dev/max-scale: \"8\"
        sas.dev/scale-to-zero-grace-period: 1s";
    let manifest =
        hello_manifest("hello", annotations, CONCURRENCY as u32).replace("window: 6s", "window: 1s");
    platform.apply(&manifest, None).await.expect("deployed");
    let revision = platform.control().revision_key("default", "hello", "hello-00001").expect("registered");

    let (mut sent_total, mut failed_total, mut killed_total) = (0, 0, 0);
    for cycle in 0..cycles {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let mut load = tokio::task::JoinSet::new();
        for worker in 0..12 {
            let sent = Arc::clone(&sent);
            load.spawn(async move {
                for turn in 0..40 {
                    let idempotent = (worker + turn) % 2 == 0;
                    let id = format!("{cycle}-{worker}-{turn}");
                    let (method, path) = match idempotent {
                        true => ("GET", "/work?ms=10".to_owned()),
                        false => ("POST", format!("/once/{id}")),
                    };
                    let answer = call(ingress, method, "hello.default.localhost", &path, "").await;
                    let answer = answer.ok().map(|answer| (answer.status, answer.body));
                    sent.lock().expect("no panic").push(Sent { id, idempotent, answer });
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(150)).await;
        let killed = match processes_below(dir.path()).first() {
            Some(pid) => {
                let status = Command::new("kill").args(["-KILL", &pid.to_string()]).status();
                usize::from(status.is_ok_and(|status| status.success()))
            }
            None => 0,
        };
        load.join_all().await;

        let sent = Arc::into_inner(sent).expect("all workers ended").into_inner().expect("no panic");
        assert_eq!(sent.len(), 12 * 40, "every request was sent");
        let mut failed = 0;
        for request in &sent {
            let Some((status, body)) = &request.answer else {
                panic!("cycle {cycle}: no answer: {request:?}")
            };
            if *status == 200 {
                continue;
            }
            assert!(!request.idempotent, "cycle {cycle}: an idempotent request failed: {request:?}");
            assert!(
                *status == 502 && body.contains("instance_lost"),
                "cycle {cycle}: only a lost instance may fail a request: {request:?}"
            );
            failed += 1;
        }
        assert!(
            failed <= killed * CONCURRENCY,
            "cycle {cycle}: {failed} failed, {killed} instances were killed"
        );
        sent_total += sent.len();
        failed_total += failed;
        killed_total += killed;
        eventually("the service is at zero", Duration::from_secs(30), async || {
            platform.pool().status(revision).is_some_and(|s| s.ready + s.starting + s.draining == 0)
        })
        .await;
        eventually("no process is left", Duration::from_secs(5), async || {
            processes_below(dir.path()).is_empty()
        })
        .await;
        assert_executed_once(&platform, &sent, revision).await;
        if (cycle + 1) % 50 == 0 {
            println!("{} cycles", cycle + 1);
        }
    }
    println!(
        "{cycles} cycles: {sent_total} requests, {killed_total} instances killed, {failed_total} attributed to them"
    );
    assert!(killed_total > 0, "no instance was killed: the test shows nothing");
    let report = platform.shutdown(Duration::from_secs(10)).await;
    assert!(report.drained, "{report:?}");
}

/// The program prints a line for each execution: none may stand there twice.
async fn assert_executed_once(platform: &Platform, sent: &[Sent], revision: sas::core::RevisionKey) {
    let mut executed: HashMap<String, u32> = HashMap::new();
    let log = platform.logs().expect("the default sink").lines(&[revision], 100_000, 0).await.expect("read");
    for line in log.lines {
        if let Some(id) = line.line.strip_prefix("executed ") {
            *executed.entry(id.to_owned()).or_default() += 1;
        }
    }
    for request in sent.iter().filter(|request| !request.idempotent) {
        let times = executed.get(&request.id).copied().unwrap_or(0);
        assert!(times <= 1, "{} was executed {times} times", request.id);
    }
    let seen = sent.iter().filter(|request| executed.contains_key(&request.id)).count();
    assert!(seen > 0, "the log holds none of the cycle's executions: the check would show nothing");
}

async fn first_requests(concurrency: u32) -> u64 {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let platform = Arc::new(platform(dir.path()).await);
    let annotations = "        autoscaling.knative.dev/target-utilization-percentage: \"100\"";
    platform.apply(&hello_manifest("hello", annotations, concurrency), None).await.expect("deployed");
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..1000 {
        let platform = Arc::clone(&platform);
        requests.spawn(async move {
            let request = http::Request::get("/work?ms=3000").body(Body::empty()).expect("a valid request");
            let answer = platform.call("default", "hello", request).await.expect("an answer");
            assert_eq!(answer.status(), 200);
            answer.into_body().collect(1024).await.expect("a body");
        });
    }
    requests.join_all().await;
    let revision = platform.control().revision_key("default", "hello", "hello-00001").expect("registered");
    let log = platform.logs().expect("the default sink").lines(&[revision], 10_000, 0).await.expect("read");
    let ports: std::collections::HashSet<String> = log
        .lines
        .into_iter()
        .filter(|line| line.line.contains("listens on port"))
        .map(|line| line.instance.to_string())
        .collect();
    platform.pool().drain(revision, Duration::from_secs(10)).await;
    ports.len() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_requests_start_one_instance_of_concurrency_1000() {
    assert_eq!(first_requests(1000).await, 1);
    assert!(hello().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_first_requests_start_a_hundred_instances_of_concurrency_10() {
    assert_eq!(first_requests(10).await, 100);
}
