//! What the default preset does without a word of configuration.

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sas::{Machine, http, prelude::*};

const APP: &str = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class App {
    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", exchange -> {
            byte[] body = "hello".getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
"#;

/// Runs a tool of the JDK; false when it is not installed.
fn tool(name: &str, args: &[&str], dir: &Path) -> bool {
    match Command::new(name).args(args).current_dir(dir).status() {
        Ok(status) => {
            assert!(status.success(), "{name} {args:?}: {status}");
            true
        }
        Err(error) => {
            sas_testkit::skip(&format!("{name}: {error}: no JDK is installed"));
            false
        }
    }
}

/// `app.jar` in `dir`; false where no JDK is installed.
fn jar(dir: &Path) -> bool {
    std::fs::write(dir.join("App.java"), APP).expect("written");
    tool("javac", &["-d", "classes", "App.java"], dir)
        && tool("jar", &["--create", "--file", "app.jar", "--main-class", "App", "-C", "classes", "."], dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jar_starts_from_a_stem_without_a_word_of_configuration() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    if !jar(dir.path()) {
        return;
    }
    let runtime =
        ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("unpacked"))).expect("a runtime");
    let platform = Platform::builder().runtime(runtime).build().await.expect("built");
    let spec = RevisionSpec::new("process", Source::Path(dir.path().join("app.jar")));
    platform.deploy("default", "app", spec).await.expect("deployed");

    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !platform.pool().stems().iter().any(|stems| stems.ready > 0) {
        assert!(tokio::time::Instant::now() < limit, "no stem booted: {:?}", platform.pool().stems());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let request = http::Request::get("/").body(Body::empty()).expect("a valid request");
    let answer = platform.call("default", "app", request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    // The slot is held to the last byte of the answer.
    assert_eq!(answer.into_body().collect(64).await.expect("a body"), "hello");
    let key = platform.control().revision_key("default", "app", "app-00001").expect("registered");
    let start = platform.pool().instances(key)[0].start.expect("it has started");
    assert!(start.from_stem, "{start:?}");
    let stems = platform.pool().stems().remove(0);
    assert_eq!((stems.used, stems.missed), (1, 0), "{stems:?}");

    let report = platform.shutdown(Duration::from_secs(10)).await;
    assert!(report.drained, "{report:?}");
}

/// How often the kernel has killed something for want of memory, since it booted; `None` where it does not say.
fn kills_for_memory() -> Option<u64> {
    let counters = std::fs::read_to_string("/proc/vmstat").ok()?;
    counters.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// Bytes that the descendants of this process hold, each page by its share; those that end meanwhile count with nothing.
fn held_by_descendants() -> u64 {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name in parentheses may hold anything.
        let after = stat.rsplit_once(") ").map_or("", |(_, after)| after);
        if let Some(parent) = after.split(' ').nth(1).and_then(|parent| parent.parse::<u32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut ours = vec![std::process::id()];
    let mut at = 0;
    while let Some(&of) = ours.get(at) {
        ours.extend(parents.iter().filter(|(_, parent)| *parent == of).map(|(pid, _)| *pid));
        at += 1;
    }
    let share = |pid: &u32| {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    ours[1..].iter().filter_map(share).sum::<u64>() * 1024
}

fn get(path: &str) -> Request {
    http::Request::get(path).body(Body::empty()).expect("a valid request")
}

/// Twelve services of 128 MiB on a platform that may use 819 MiB: six fit, and none beside them while a stem is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::print_stdout, reason = "the figures are for whoever asks")]
async fn more_services_than_memory_holds_take_turns_within_the_bound() {
    const SERVICES: usize = 12;
    let dir = tempfile::tempdir().expect("a temporary directory");
    if !jar(dir.path()) {
        return;
    }
    let runtime =
        ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("unpacked"))).expect("a runtime");
    let machine = Machine::new(2).with_memory(1 << 30);
    let platform = Platform::builder().machine(machine).runtime(runtime).build().await.expect("built");
    let platform = Arc::new(platform);
    for service in 0..SERVICES {
        let mut spec = RevisionSpec::new("process", Source::Path(dir.path().join("app.jar")));
        spec.resources.memory_limit_bytes = Some(128 << 20);
        spec.scaling.initial = 0;
        platform.deploy("default", &format!("app-{service}"), spec).await.expect("deployed");
    }
    let mut hasty = RevisionSpec::new("process", Source::Path(dir.path().join("app.jar")));
    hasty.resources.memory_limit_bytes = Some(128 << 20);
    hasty.scaling.initial = 0;
    hasty.timeouts.request = Duration::from_millis(500);
    platform.deploy("default", "hasty", hasty).await.expect("deployed");

    let killed_before = kills_for_memory();
    let bound = platform.pool().totals().memory_limit_bytes.expect("the preset bounds it");
    assert_eq!(bound, (1 << 30) / 100 * 80);
    let over = Arc::new(AtomicBool::new(false));
    let watched = tokio::spawn({
        let (platform, over) = (Arc::clone(&platform), Arc::clone(&over));
        async move {
            let (mut charged, mut held) = (0, 0);
            while !over.load(Ordering::Relaxed) {
                charged = charged.max(platform.pool().totals().memory_bytes);
                held = held.max(tokio::task::spawn_blocking(held_by_descendants).await.expect("read"));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            (charged, held)
        }
    });

    // All at once: those that find no room wait until others are idle, which then make room.
    let calls: Vec<_> = (0..SERVICES)
        .map(|service| {
            let platform = Arc::clone(&platform);
            tokio::spawn(async move {
                let answer = platform.call("default", &format!("app-{service}"), get("/")).await?;
                let status = answer.status();
                // The slot is held to the last byte of the answer.
                let body = answer.into_body().collect(64).await.expect("a body");
                Ok::<_, sas::core::CallError>((status, body))
            })
        })
        .collect();
    for call in calls {
        let (status, body) = call.await.expect("joined").expect("it waited for its turn");
        assert_eq!((status.as_u16(), &body[..]), (200, &b"hello"[..]));
    }

    // While six are busy (an answer that is not read to its end keeps its slot), a request that can't wait is refused at its
    // own deadline.
    let busy: Vec<_> = (0..6)
        .map(|service| {
            let platform = Arc::clone(&platform);
            tokio::spawn(async move { platform.call("default", &format!("app-{service}"), get("/")).await })
        })
        .collect();
    let mut answers = Vec::new();
    for call in busy {
        answers.push(call.await.expect("joined").expect("it waited for its turn"));
    }
    let refused = platform.call("default", "hasty", get("/")).await.expect_err("there is no room").error;
    assert_eq!(refused.kind, ErrorKind::Timeout, "{}", refused.chain());
    assert!(refused.message.contains("queue_timeout"), "{}", refused.chain());
    drop(answers);

    over.store(true, Ordering::Relaxed);
    let (charged, held) = watched.await.expect("watched");
    println!("charged at most {} MiB, held at most {} MiB of {} MiB", charged >> 20, held >> 20, bound >> 20);
    assert!(charged <= bound && charged > 6 * (128 << 20) - 1, "{charged} of {bound} bytes were charged");
    assert!(held > 0 && held <= bound, "{held} of {bound} bytes were held");
    assert_eq!(kills_for_memory(), killed_before, "something was killed for want of memory");
    let report = platform.shutdown(Duration::from_secs(10)).await;
    assert!(report.drained, "{report:?}");
}
