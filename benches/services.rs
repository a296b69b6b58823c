//! 100,000 services in one state directory: what a start takes, and what an operator waits for then.
//!
//! `cargo bench --no-default-features --features inline,redb --bench services [-- SERVICES]`
//!
//! A first process deploys them, a second one starts on what is there, so that its memory is that of a start. All of it
//! is the platform as a host builds it: redb, the real pool and router, the admin API with its token.

#![allow(clippy::print_stdout, reason = "the table is what it is run for")]

use std::{collections::BTreeMap, path::Path, process::Command, sync::Arc, time::Duration};

use sas::prelude::*;
use sas_knative::manifest::ServiceManifest;
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};

const TOKEN: &str = "a-token-of-the-bench";
/// Deploys that are under way at once.
const AT_ONCE: usize = 64;

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok());
    kib.unwrap_or(0u64) / 1024
}

/// What the process has computed, in steps of 10 ms.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("Linux");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<u64>().expect("a number");
    // User and system time, by proc(5).
    Duration::from_millis((ticks(11) + ticks(12)) * 10)
}

async fn platform(dir: &Path) -> Platform {
    let functions =
        InlineRuntime::new().with("answers", |_: Request, _cx| async { Response::new(Body::from("here")) });
    let builder = Platform::builder().runtime(functions).state_dir(dir).admin_token(TOKEN);
    Box::pin(builder.build()).await.expect("a platform")
}

fn service(number: usize) -> ServiceManifest {
    let mut spec = RevisionSpec::new("inline", Source::Function("answers".into()));
    spec.concurrency = 10;
    let name = format!("s{number:06}");
    let mut service = ServiceManifest::new(format!("team{}", number % 100), name, spec);
    let labels = [("sas.dev/app", format!("app{}", number % 1000)), ("tier", format!("tier{}", number % 7))];
    service.labels =
        labels.into_iter().map(|(name, value)| (name.to_owned(), value)).collect::<BTreeMap<_, _>>();
    service
}

async fn fill(dir: &Path, count: usize) {
    let platform = Arc::new(platform(dir).await);
    let began = Instant::now();
    let mut numbers = 0..count;
    let mut deploys = JoinSet::new();
    loop {
        while deploys.len() < AT_ONCE
            && let Some(number) = numbers.next()
        {
            let control = Arc::clone(platform.control());
            deploys.spawn(async move { control.deploy(service(number)).await.map(drop) });
        }
        let Some(deployed) = deploys.join_next().await else { break };
        deployed.expect("no panic").expect("deployed");
    }
    println!(
        "| {count} deployed, {AT_ONCE} at once | {:.1} s | {} MiB |",
        began.elapsed().as_secs_f64(),
        resident_mib()
    );
    let began = Instant::now();
    Arc::into_inner(platform).expect("nobody else has it").shutdown(Duration::from_secs(60)).await;
    println!("| shut down | {:.2} s | |", began.elapsed().as_secs_f64());
    let files = std::fs::read_dir(dir).expect("the directory").flatten();
    let bytes: u64 =
        files.filter_map(|file| file.metadata().ok()).filter(|it| it.is_file()).map(|it| it.len()).sum();
    println!("| files in the state directory | | {} MiB |", bytes >> 20);
}

async fn ask(platform: &Platform, method: &str, path: &str) -> Value {
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {TOKEN}")).body(Body::empty());
    let response = platform.admin().handle(request.expect("a request")).await;
    assert_eq!(response.status(), 200, "{path}");
    let body = response.into_body().collect(64 << 20).await.expect("a body");
    serde_json::from_slice(&body).unwrap_or_default()
}

/// The median of some, after one that warms up.
async fn timed(platform: &Platform, what: &str, path: &str) -> Value {
    let first = Instant::now();
    let said = ask(platform, "GET", path).await;
    let first = first.elapsed();
    let mut took = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        ask(platform, "GET", path).await;
        took.push(began.elapsed());
    }
    took.sort_unstable();
    println!("| {what}, `{path}` | {:.2?} (the first: {first:.2?}) | |", took[2]);
    said
}

async fn start(dir: &Path, count: usize) {
    let before = resident_mib();
    let began = Instant::now();
    let platform = platform(dir).await;
    let took = began.elapsed().as_secs_f64();
    println!(
        "| start | {took:.2} s, CPU {:.2} s | {before} to {} MiB |",
        cpu().as_secs_f64(),
        resident_mib()
    );
    assert_eq!(platform.control().records().len(), count);

    let page = timed(&platform, "a page of 500", "/v1/services?limit=500").await;
    assert_eq!(page["services"].as_array().map(Vec::len), Some(count.min(500)));
    let began = Instant::now();
    let (mut pages, mut seen, mut next) = (0, 0, String::new());
    loop {
        let page = ask(&platform, "GET", &format!("/v1/services?limit=500{next}")).await;
        (pages, seen) = (pages + 1, seen + page["services"].as_array().map_or(0, Vec::len));
        let Some(cursor) = page["continue"].as_str() else { break };
        next = format!("&continue={cursor}");
    }
    println!("| all in {pages} pages of 500 | {:.2?} | |", began.elapsed());
    assert_eq!(seen, count);
    let found = timed(&platform, "by a label", "/v1/services?labels=sas.dev/app%20in%20(app7)").await;
    assert_eq!(found["services"].as_array().map(Vec::len), Some(count.div_ceil(1000)));
    timed(&platform, "those of a namespace", "/v1/services?namespace=team7").await;
    timed(&platform, "one service", "/v1/services/team7/s000007").await;
    timed(&platform, "its revisions", "/v1/services/team7/s000007/revisions").await;
    timed(&platform, "apps", "/v1/apps?limit=500").await;
    timed(&platform, "overview", "/v1/overview").await;
    timed(&platform, "diagnosis", "/v1/diagnosis").await;
    timed(&platform, "usage", "/v1/usage").await;

    let mut took = Vec::new();
    for number in 0..20 {
        let began = Instant::now();
        platform.control().deploy(service(count + number)).await.expect("deployed");
        took.push(began.elapsed());
    }
    took.sort_unstable();
    println!("| deploy one more | {:.2?} (the slowest of 20: {:.2?}) | |", took[10], took[19]);
    let began = Instant::now();
    let host = format!("s{count:06}.team{}.localhost", count % 100);
    let request = http::Request::get("/").header("host", host).body(Body::empty()).expect("a request");
    assert_eq!(platform.gateway().handle(request).await.status(), 200);
    println!("| its first request | {:.2?} | |", began.elapsed());
    let (before, began) = (cpu(), Instant::now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let share = (cpu() - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("| at rest for 20 s | {:.2} % of a core | {} MiB |", share * 100.0, resident_mib());
    let began = Instant::now();
    platform.shutdown(Duration::from_secs(60)).await;
    println!("| shut down | {:.2} s | |", began.elapsed().as_secs_f64());
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|one| one != "--bench").collect();
    let count = arguments.iter().find_map(|one| one.parse().ok()).unwrap_or(100_000);
    match &arguments[..] {
        [what, dir, _] => {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("threads");
            runtime.block_on(async {
                match what.as_str() {
                    "fill" => fill(Path::new(dir), count).await,
                    _ => start(Path::new(dir), count).await,
                }
            });
        }
        _ => {
            let dir = tempfile::tempdir().expect("a directory");
            println!("| What | Time | Memory |\n|---|---|---|");
            for what in ["fill", "start"] {
                let mut child = Command::new(std::env::current_exe().expect("this program"));
                let status =
                    child.arg(what).arg(dir.path()).arg(count.to_string()).status().expect("it runs");
                assert!(status.success(), "{what}: {status}");
            }
        }
    }
}
