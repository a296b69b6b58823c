//! Lines of instances: found by what they say, kept apart by tenant, and in files.

use std::sync::Arc;

use sas_control::{LogBuffer, LogFileLimits, LogFiles, LogLimits};
use sas_core::{
    InstanceId, LogFilter, LogLevel, LogLine, LogQuery as _, LogRecord, LogSink, LogStream, Recorder,
    RequestId, RevisionKey, RevisionName, TenantKey, Timestamp,
};

fn write(sink: &dyn LogSink, revision: u32, instance: u64, at: i64, line: &str) {
    let (instance, key) = (InstanceId(instance), RevisionKey::new(revision, 0));
    sink.line(&LogRecord::new(instance, key, Timestamp::from_secs(at), LogStream::Stdout, line.as_bytes()));
}

fn line(text: &str) -> LogLine {
    LogLine::new(1, Timestamp(0), InstanceId(1), LogStream::Stdout, text.to_owned())
}

#[test]
fn the_level_is_found_as_loggers_write_it() {
    for (text, level) in [
        (r#"{"level":"warn","msg":"x"}"#, Some(LogLevel::Warn)),
        (r#"{"severity":"CRITICAL"}"#, Some(LogLevel::Fatal)),
        (r#"{"level":30,"msg":"pino"}"#, Some(LogLevel::Info)),
        (r#"{"msg":"ERROR is only a word here"}"#, None),
        ("2026-01-05 12:00:00,123 ERROR [main] a.b.C - failed", Some(LogLevel::Error)),
        ("2026-01-05T12:00:00.123Z  WARN 1 --- [main] o.s.b : spring", Some(LogLevel::Warn)),
        ("[debug] nginx", Some(LogLevel::Debug)),
        ("ERROR:root:python", None),
        ("INFO:     127.0.0.1 - uvicorn", Some(LogLevel::Info)),
        ("time=x level=error msg=\"logfmt\"", Some(LogLevel::Error)),
        ("an error that is only told of", None),
        ("", None),
    ] {
        assert_eq!(line(text).level(), level, "{text}");
    }
}

#[test]
fn a_line_says_which_request_it_is_about() {
    let about = |text: &str| line(text).about().map(|id| id.0);
    assert_eq!(about(r#"{"request_id":"000000000000000000000000000000ff"}"#), Some(255));
    assert_eq!(about(r#"{"requestId":"00000000-0000-0000-0000-0000000000ff"}"#), Some(255));
    assert_eq!(about(r#"{"request_id":"ff"}"#), None);
    assert_eq!(about("request_id=000000000000000000000000000000ff"), None);
    let known = line("x").for_request(Some(RequestId(7)));
    assert_eq!(known.about(), Some(RequestId(7)));
}

#[tokio::test]
async fn lines_are_found_by_time_instance_request_level_and_text() {
    let logs = LogBuffer::default();
    for at in 0..100 {
        let level = if at % 10 == 0 { "ERROR" } else { "INFO" };
        write(&logs, 1, at as u64 % 3, at, &format!("{level} step {at}"));
    }
    write(&logs, 1, 9, 200, r#"{"level":"error","request_id":"000000000000000000000000000000ff"}"#);
    let keys = [RevisionKey::new(1, 0), RevisionKey::new(2, 0)];
    let find = async |change: &dyn Fn(&mut LogFilter)| {
        let mut filter = LogFilter::default();
        change(&mut filter);
        logs.search(&keys, &filter, 1000).await.unwrap().lines.len()
    };
    assert_eq!(find(&|_| {}).await, 101);
    assert_eq!(find(&|filter| filter.level = Some(LogLevel::Warn)).await, 11);
    assert_eq!(find(&|filter| filter.text = Some("STEP 9".into())).await, 11);
    assert_eq!(find(&|filter| filter.request = Some(RequestId(255))).await, 1);
    assert_eq!(find(&|filter| filter.instance = Some(InstanceId(2))).await, 33);
    assert_eq!(find(&|filter| filter.from = Some(Timestamp::from_secs(90))).await, 11);
    assert_eq!(find(&|filter| filter.until = Some(Timestamp::from_secs(90))).await, 90);
    assert_eq!(find(&|filter| filter.after = 100).await, 1);
    let mut filter = LogFilter::default();
    filter.level = Some(LogLevel::Error);
    let last = logs.search(&keys, &filter, 2).await.unwrap().lines;
    assert_eq!(last.iter().map(|line| line.sequence).collect::<Vec<_>>(), [91, 101], "the last two");
}

#[tokio::test]
async fn who_follows_learns_that_lines_came_and_went() {
    let mut limits = LogLimits::default();
    limits.lines = 10;
    let logs = LogBuffer::new(limits);
    let key = [RevisionKey::new(1, 0)];
    let look = async |after: u64, text: &str, most: usize| {
        let mut filter = LogFilter::default();
        (filter.after, filter.text) = (after, Some(text.to_owned()));
        let page = logs.search(&key, &filter, most).await.unwrap();
        (page.lines.len(), page.gap, page.last)
    };
    for at in 0..5 {
        write(&logs, 1, 1, at, "line");
    }
    assert_eq!(look(0, "", 5).await, (5, false, 5));
    assert_eq!(look(2, "", 2).await, (2, true, 5), "there are more than were asked for");
    for at in 5..25 {
        write(&logs, 1, 1, at, "line");
    }
    assert_eq!(look(5, "", 100).await, (10, true, 25), "ten of twenty are kept");
    assert_eq!(look(15, "", 100).await, (10, false, 25), "what is gone was seen");
    assert_eq!(look(25, "nobody says this", 100).await, (0, false, 25), "all of it was looked at");
}

#[tokio::test]
async fn who_follows_is_woken_by_a_line() {
    let logs = Arc::new(LogBuffer::default());
    write(&*logs, 1, 1, 1, "first");
    logs.wait(0).await;
    let waiting = tokio::spawn({
        let logs = Arc::clone(&logs);
        async move { logs.wait(1).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished());
    write(&*logs, 1, 1, 2, "second");
    waiting.await.unwrap();
}

#[test]
fn a_flood_of_one_tenant_pushes_out_no_line_of_another() {
    let mut limits = LogLimits::default();
    (limits.lines, limits.revisions) = (100, 8);
    let logs = LogBuffer::new(limits);
    let name = RevisionName::new("quiet", "app", "app-1");
    let quiet = RevisionKey::new(1000, 0);
    logs.starts(quiet, &name, TenantKey(1));
    write(&logs, 1000, 1, 0, "quiet");
    let mut written = 0;
    for revision in 0..50 {
        logs.starts(RevisionKey::new(revision, 0), &name, TenantKey(2));
        for _ in 0..200 {
            write(&logs, revision, 1, 0, "flood");
            written += 1;
        }
    }
    assert_eq!(logs.tail(&[quiet], 10, 0).len(), 1, "the quiet tenant's line is still there");
    let kept: usize = (0..50).map(|at| logs.tail(&[RevisionKey::new(at, 0)], 1000, 0).len()).sum();
    assert_eq!(kept, 700);
    assert_eq!(logs.lost(), [(TenantKey(2), written - 700)].into(), "and what is lost is counted");
}

#[test]
fn files_rotate_and_hold_fields_level_and_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("instances.log");
    let mut limits = LogFileLimits::default();
    (limits.bytes, limits.files) = (2_000, 2);
    let buffer = Arc::new(LogBuffer::default());
    let files = LogFiles::new(&path, limits, Arc::clone(&buffer) as _, &Recorder::default()).unwrap();
    files.starts(RevisionKey::new(1, 0), &RevisionName::new("shop", "cart", "cart-1"), TenantKey(1));
    write(&files, 1, 1, 0, r#"{"level":"warn","order":7,"request_id":"000000000000000000000000000000ff"}"#);
    files.flush();
    let text = std::fs::read_to_string(&path).unwrap();
    let entry: serde_json::Value = serde_json::from_str(text.trim()).unwrap();
    assert_eq!(
        (&entry["level"], &entry["fields"]["order"], &entry["service"], &entry["request"]),
        (&"warn".into(), &7.into(), &"cart".into(), &"000000000000000000000000000000ff".into())
    );
    for at in 0..100 {
        write(&files, 1, 1, at, "a plain line");
    }
    files.flush();
    let mut names: Vec<_> =
        std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["instances.log", "instances.log.1", "instances.log.2"]);
    for name in names {
        let path = dir.path().join(name);
        assert!(std::fs::metadata(&path).unwrap().len() <= 2_000);
        for line in std::fs::read_to_string(path).unwrap().lines() {
            serde_json::from_str::<serde_json::Value>(line).expect("whole lines");
        }
    }
    assert_eq!(files.dropped(), 0);
    assert_eq!(buffer.tail(&[RevisionKey::new(1, 0)], 1000, 0).len(), 101, "and they are passed on");
}

/// A recorder, and what it counted of lines that were dropped, as `reason of sink: lines`.
fn counting() -> (Recorder, impl Fn() -> Vec<String>) {
    let prometheus = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let handle = prometheus.handle();
    let counted = move || {
        let text = handle.render();
        let lines = text.lines().filter_map(|line| line.strip_prefix("sas_log_lines_dropped_total{sink=\""));
        let mut lines: Vec<String> =
            lines.map(|line| line.replace("\",reason=\"", " ").replace("\"}", "")).collect();
        lines.sort();
        lines
    };
    (Recorder::new(Arc::new(prometheus)), counted)
}

#[test]
fn lines_that_made_room_or_were_cut_are_counted_for_the_operator() {
    let (recorder, counted) = counting();
    let mut limits = LogLimits::default();
    (limits.lines, limits.bytes, limits.revisions) = (10, 100, 2);
    let logs = LogBuffer::new(limits).with_recorder(&recorder);
    assert_eq!(counted(), ["buffer cut 0", "buffer room 0"], "there before anything is lost");
    for at in 0..12 {
        write(&logs, 1, 1, at, "line");
    }
    assert_eq!(counted(), ["buffer cut 0", "buffer room 2"]);
    write(&logs, 2, 1, 20, &"x".repeat(101));
    assert_eq!(counted(), ["buffer cut 1", "buffer room 2"], "what is kept of it is its beginning");
    write(&logs, 3, 1, 30, "a third revision, for which the ten lines of the first go");
    assert_eq!(counted(), ["buffer cut 1", "buffer room 12"]);
    assert_eq!(logs.lost(), [(TenantKey::HOST, 13)].into());
}

#[test]
fn losses_are_told_apart_for_a_bounded_number_of_tenants() {
    let mut limits = LogLimits::default();
    (limits.lines, limits.revisions) = (1, 2);
    let logs = LogBuffer::new(limits);
    let name = RevisionName::new("n", "s", "s-1");
    for tenant in 0..5000 {
        logs.starts(RevisionKey::new(tenant, 0), &name, TenantKey(tenant));
        // The first loses most.
        for _ in 0..if tenant == 0 { 10 } else { 2 } {
            write(&logs, tenant, 1, 0, "line");
        }
        logs.forget(RevisionKey::new(tenant, 0));
    }
    let lost = logs.lost();
    assert_eq!((lost.len(), lost.get(&TenantKey(0)), lost.get(&TenantKey(4999))), (4096, Some(&9), Some(&1)));
}

#[test]
#[cfg(target_os = "linux")]
fn lines_that_a_full_disk_does_not_take_are_counted_for_the_operator() {
    let (recorder, counted) = counting();
    let mut limits = LogFileLimits::default();
    limits.waiting = 16;
    let buffer = Arc::new(LogBuffer::default());
    let files = LogFiles::new("/dev/full", limits, Arc::clone(&buffer) as _, &recorder).unwrap();
    for at in 0..1000 {
        write(&files, 1, 1, at, "a line that no disk takes");
    }
    files.flush();
    let counts: Vec<u64> = counted()
        .iter()
        .filter_map(|line| line.strip_prefix("file ")?.rsplit(' ').next()?.parse().ok())
        .collect();
    let total: u64 = counts.iter().sum();
    assert_eq!((counts.len(), total), (2, files.dropped()), "disk and room: {:?}", counted());
    // What the writer still holds fits its buffer of 8 KiB.
    assert!(total > 900, "{total}");
}
