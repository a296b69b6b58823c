//! Each diagnosis on a platform that really has the illness, beside a service or a platform that has not. Quotas and faults on
//! purpose have theirs in `tenants` and `rollouts`.

use std::{fs, path::Path, process::Command, sync::Arc, time::Duration};

use sas::{
    control::{Evidence, Finding, Severity},
    core::{
        Artifact, Capabilities, EnvValue, Instance, Isolation, Runtime, StartPhase, StartRequest, Timestamp,
    },
    prelude::*,
};
use sas_testkit::fake::FakeClock;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep},
};

const START: Timestamp = Timestamp::from_secs(1_767_571_200);

/// Functions whose instances take as many milliseconds to start as the file in the variable `STARTS` says, on a runtime that
/// claims to measure and to limit them, which it does not.
#[derive(Debug)]
struct Ward {
    functions: InlineRuntime,
    claims: bool,
}

#[async_trait::async_trait]
impl Runtime for Ward {
    fn name(&self) -> &'static str {
        self.functions.name()
    }
    fn capabilities(&self) -> Capabilities {
        let mut can = self.functions.capabilities();
        (can.usage, can.limits) = (self.claims, self.claims);
        can
    }
    async fn prepare(&self, spec: &RevisionSpec) -> sas::core::Result<Artifact> {
        self.functions.prepare(spec).await
    }
    async fn start(&self, request: StartRequest) -> sas::core::Result<Arc<dyn Instance>> {
        if let Some(EnvValue::Literal(file)) = request.deployed.spec.env.get("STARTS") {
            request.events.phase(request.id, StartPhase::Spawned);
            let millis = fs::read_to_string(file).expect("a file").trim().parse().expect("milliseconds");
            sleep(Duration::from_millis(millis)).await;
        }
        self.functions.start(request).await
    }
    async fn quiesce(&self) {
        self.functions.quiesce().await;
    }
}

fn functions(gate: &Arc<Semaphore>) -> InlineRuntime {
    let gate = Arc::clone(gate);
    InlineRuntime::new()
        .with("holds", move |_: Request, _cx| {
            let gate = Arc::clone(&gate);
            async move {
                let _turn = gate.acquire().await;
                Response::new(Body::from("held"))
            }
        })
        .with("works", |_: Request, _cx| async {
            sleep(Duration::from_secs(5)).await;
            Response::new(Body::from("done"))
        })
        .with("answers", |_: Request, _cx| async { Response::new(Body::from("here")) })
}

fn function(name: &str) -> RevisionSpec {
    let mut spec = RevisionSpec::new("inline", Source::Function(name.to_owned()));
    spec.concurrency = 1;
    spec
}

async fn get(platform: &Platform, name: &str) -> u16 {
    let host = format!("{name}.default.localhost");
    let request = http::Request::get("/").header("host", host).body(Body::empty()).expect("a request");
    platform.gateway().handle(request).await.status().as_u16()
}

/// What a check finds now.
async fn found(platform: &Platform, check: &str) -> Vec<Finding> {
    let diagnosis = platform.control().diagnose().await;
    assert!(diagnosis.checks.contains(&check), "{check} is one of {:?}", diagnosis.checks);
    diagnosis.findings.into_iter().filter(|finding| finding.name == check).collect()
}

/// Looks until a check finds something.
async fn finds(platform: &Platform, check: &str) -> Vec<Finding> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let findings = found(platform, check).await;
        if !findings.is_empty() {
            return findings;
        }
        assert!(Instant::now() < deadline, "{check} finds nothing");
        sleep(Duration::from_millis(20)).await;
    }
}

fn count(finding: &Finding, what: &str) -> u64 {
    match finding.evidence.get(what) {
        Some(Evidence::Count(count)) => *count,
        other => panic!("{what}: {other:?} of {finding:?}"),
    }
}

fn text<'a>(finding: &'a Finding, what: &str) -> &'a str {
    match finding.evidence.get(what) {
        Some(Evidence::Text(text)) => text,
        other => panic!("{what}: {other:?} of {finding:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_ends_at_once_is_a_crash_loop_and_its_last_words_are_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let program = dir.path().join("app");
    fs::write(&program, "#!/bin/sh\necho 'no such table: orders' >&2\nexit 3\n").expect("written");
    let processes =
        ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("store"))).expect("a runtime");
    let platform = Platform::builder()
        .runtime(processes)
        .runtime(functions(&Arc::new(Semaphore::new(0))))
        .configure_pool(|pool| pool.backoff.initial = Duration::from_millis(10))
        .build()
        .await
        .expect("a platform");
    let spec = RevisionSpec::new("process", Source::Path(program));
    platform.deploy("default", "sick", spec).await.expect("deployed");
    platform.deploy("default", "well", function("answers")).await.expect("deployed");
    assert_eq!(get(&platform, "well").await, 200);
    assert_eq!(found(&platform, "crash_loop").await, [], "nothing has started yet");

    let deadline = Instant::now() + Duration::from_secs(20);
    let findings = loop {
        assert!(get(&platform, "sick").await >= 500);
        let findings = found(&platform, "crash_loop").await;
        if !findings.is_empty() {
            break findings;
        }
        assert!(Instant::now() < deadline, "no crash loop");
        sleep(Duration::from_millis(20)).await;
    };
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(
        (finding.subject.as_str(), finding.severity),
        ("default/sick (sick-00001)", Severity::Critical)
    );
    assert!(count(finding, "failedStarts") >= 3, "{finding:?}");
    assert!(text(finding, "lastError").contains("no such table: orders"), "{finding:?}");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn starts_that_take_longer_than_they_used_to_are_told_with_the_phase_that_does() {
    let dir = tempfile::tempdir().expect("a directory");
    let ward = Ward { functions: functions(&Arc::new(Semaphore::new(0))), claims: false };
    let platform = Platform::builder().runtime(ward).build().await.expect("a platform");
    let starts = ["sick", "well"].map(|name| dir.path().join(name));
    for (name, file) in ["sick", "well"].into_iter().zip(&starts) {
        let mut spec = function("answers");
        spec.env.insert("STARTS".to_owned(), EnvValue::Literal(file.display().to_string()));
        platform.deploy("default", name, spec).await.expect("deployed");
        fs::write(file, "30").expect("written");
    }
    let once = async || {
        for name in ["sick", "well"] {
            assert_eq!(get(&platform, name).await, 200);
        }
        let findings = found(&platform, "slow_start").await;
        for name in ["sick", "well"] {
            let key =
                platform.control().revision_key("default", name, &format!("{name}-00001")).expect("it runs");
            for instance in platform.pool().instances(key) {
                platform.pool().recycle(key, instance.id, Duration::ZERO);
            }
        }
        sleep(Duration::from_secs(2)).await;
        findings
    };
    for _ in 0..8 {
        assert_eq!(once().await, [], "as it always was");
    }
    fs::write(&starts[0], "400").expect("written");
    let mut findings = Vec::new();
    for _ in 0..4 {
        findings = once().await;
    }
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(finding.subject, "default/sick (sick-00001)");
    assert_eq!(text(finding, "phase"), "until it was ready", "after it was spawned: {finding:?}");
    let (usual, latest) = (count(finding, "usualMillis"), count(finding, "latestMillis"));
    assert!((30..100).contains(&usual) && (400..500).contains(&latest), "{finding:?}");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_queue_that_fills_up_is_told_before_it_refuses_and_when_it_does() {
    let gate = Arc::new(Semaphore::new(0));
    let platform = Platform::builder().runtime(functions(&gate)).build().await.expect("a platform");
    let mut spec = function("holds");
    (spec.queue_limit, spec.scaling.max) = (5, 1);
    platform.deploy("default", "sick", spec).await.expect("deployed");
    platform.deploy("default", "well", function("answers")).await.expect("deployed");
    let platform = Arc::new(platform);
    let ask = |name: &'static str| {
        let platform = Arc::clone(&platform);
        tokio::spawn(async move { get(&platform, name).await })
    };
    let queued = async || {
        let key = platform.control().revision_key("default", "sick", "sick-00001").expect("it runs");
        platform.pool().status(key).expect("its status").queued
    };
    let mut asked = vec![ask("sick")];
    while platform.pool().totals().instances < 1 {
        sleep(Duration::from_millis(5)).await;
    }
    // The first has the instance by then.
    sleep(Duration::from_millis(50)).await;
    asked.extend((0..3).map(|_| ask("sick")));
    while queued().await != 3 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(get(&platform, "well").await, 200);
    assert_eq!(
        found(&platform, "queue_saturation").await,
        [],
        "three of five wait, which is fewer than 80 %"
    );
    asked.push(ask("sick"));
    let findings = finds(&platform, "queue_saturation").await;
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(
        (finding.subject.as_str(), finding.severity),
        ("default/sick (sick-00001)", Severity::Warning)
    );
    assert_eq!((count(finding, "queued"), count(finding, "limit"), count(finding, "max")), (4, 5, 1));
    assert!(finding.remedy.contains("raise its maximum"), "{finding:?}");
    asked.push(ask("sick"));
    while queued().await < 5 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(found(&platform, "queue_saturation").await[0].severity, Severity::Critical);
    assert_eq!(get(&platform, "sick").await, 503, "and it refuses");
    gate.add_permits(100);
    for one in asked {
        assert_eq!(one.await.expect("an answer"), 200);
    }
    assert_eq!(found(&platform, "queue_saturation").await, []);
    Arc::into_inner(platform).expect("nobody else has it").shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn starts_that_wait_for_a_budget_at_two_looks_are_starved() {
    let gate = Arc::new(Semaphore::new(0));
    let platform = Platform::builder()
        .runtime(functions(&gate))
        .configure_pool(|pool| pool.budget.instances = 1)
        .build()
        .await
        .expect("a platform");
    for (name, does) in [("greedy", "holds"), ("hungry", "answers")] {
        let mut spec = function(does);
        spec.scaling.max = 1;
        platform.deploy("default", name, spec).await.expect("deployed");
    }
    let platform = Arc::new(platform);
    let ask = |name: &'static str| {
        let platform = Arc::clone(&platform);
        tokio::spawn(async move { get(&platform, name).await })
    };
    let greedy = ask("greedy");
    while platform.pool().totals().instances < 1 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(found(&platform, "pool_starvation").await, [], "nothing waits");
    let hungry = ask("hungry");
    while platform.pool().totals().waiting_starts < 1 {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(found(&platform, "pool_starvation").await, [], "a start waits for its turn for a moment");
    let findings = found(&platform, "pool_starvation").await;
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.subject.as_str(), finding.severity), ("engine default", Severity::Critical));
    assert_eq!((count(finding, "waitingStarts"), count(finding, "instances")), (1, 1));
    gate.add_permits(100);
    for one in [greedy, hungry] {
        assert_eq!(one.await.expect("an answer"), 200, "it gives way");
    }
    assert_eq!(found(&platform, "pool_starvation").await, []);
    Arc::into_inner(platform).expect("nobody else has it").shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_is_told_once_with_its_direction() {
    let clock = FakeClock::starting_at(START);
    let platform = Platform::builder().clock(clock.clone()).build().await.expect("a platform");
    let well = Platform::builder().clock(FakeClock::starting_at(START)).build().await.expect("a platform");
    for platform in [&platform, &well] {
        assert_eq!(found(platform, "clock_jump").await, []);
    }
    for (direction, hour) in [("forward", Duration::from_secs(3_600)), ("back", Duration::from_secs(1_800))] {
        sleep(Duration::from_secs(10)).await;
        match direction {
            "forward" => clock.jump_forward(hour),
            _ => clock.jump_back(hour),
        }
        let findings = found(&platform, "clock_jump").await;
        let [finding] = &findings[..] else { panic!("{findings:?}") };
        assert_eq!((finding.subject.as_str(), text(finding, "direction")), ("host", direction));
        let millis = u64::try_from(hour.as_millis()).expect("it fits");
        assert!(count(finding, "jumpMillis").abs_diff(millis) <= 20_000, "{finding:?}");
        assert_eq!(found(&platform, "clock_jump").await, [], "the next look finds it as it was");
        assert_eq!(found(&well, "clock_jump").await, [], "time passed there, too");
    }
    for platform in [platform, well] {
        platform.shutdown(Duration::from_secs(5)).await;
    }
}

/// A file system of its own, of a megabyte.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path) -> Self {
        let mut mount = Command::new("mount");
        let done =
            mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(at).status().expect("mount runs");
        assert!(done.success(), "a tmpfs at {}", at.display());
        Self(at)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

#[tokio::test]
async fn a_file_system_that_fills_up_is_told_and_one_with_room_is_not() {
    if !rustix::process::geteuid().is_root() {
        return sas_testkit::skip("a file system of its own needs root");
    }
    let dirs = [tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory")];
    let [sick, well] = [Mounted::new(dirs[0].path()), Mounted::new(dirs[1].path())];
    let watched = [sick.0.to_owned(), well.0.to_owned()];
    let platform = Platform::builder()
        .diagnosis(move |diagnosis| diagnosis.directories.extend(watched))
        .build()
        .await
        .expect("a platform");
    let of_ours = async || {
        let mut findings = found(&platform, "disk").await;
        // The others are the machine's own, and may be full.
        findings.retain(|finding| {
            [&sick, &well].iter().any(|ours| finding.subject.ends_with(ours.0.to_str().expect("UTF-8")))
        });
        findings
    };
    assert_eq!(of_ours().await, []);
    fs::write(well.0.join("half"), vec![1; 512 << 10]).expect("written");
    fs::write(sick.0.join("much"), vec![1; 960 << 10]).expect("written");
    let findings = of_ours().await;
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!(finding.subject, format!("host {}", sick.0.display()));
    assert_eq!((text(finding, "what"), count(finding, "free")), ("bytes", 64 << 10));
    fs::remove_file(sick.0.join("much")).expect("removed");
    assert_eq!(of_ours().await, [], "there is room again");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn descriptors_that_grow_at_every_look_are_told_and_not_once_they_are_closed() {
    let platform = Platform::builder().build().await.expect("a platform");
    let mut leaked = Vec::new();
    let mut findings = Vec::new();
    // Ten in a row; the tests beside this one may close more in between than this one opens, and it takes ten after that.
    for look in 0..30 {
        leaked.extend((0..20).map(|_| fs::File::open("/dev/null").expect("a descriptor")));
        findings = found(&platform, "leaked_handles").await;
        if !findings.is_empty() {
            assert!(look >= 9, "{look} looks say nothing yet: {findings:?}");
            break;
        }
    }
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.subject.as_str(), finding.severity), ("host", Severity::Warning));
    assert!(count(finding, "grown") >= 64, "{finding:?}");
    drop(leaked);
    assert_eq!(found(&platform, "leaked_handles").await, []);
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_claims_what_it_does_not_do_is_told_and_one_that_claims_nothing_is_not() {
    let mut spec = function("answers");
    spec.resources.memory_limit_bytes = Some(64 << 20);
    spec.scaling.min = 1;
    for claims in [true, false] {
        let ward = Ward { functions: functions(&Arc::new(Semaphore::new(0))), claims };
        assert_eq!(ward.capabilities().isolation, Isolation::None);
        let platform = Platform::builder().runtime(ward).build().await.expect("a platform");
        platform.deploy("default", "hello", spec.clone()).await.expect("deployed");
        assert_eq!(get(&platform, "hello").await, 200);
        let said = async || {
            let findings = found(&platform, "runtime_claims").await;
            findings.iter().map(|finding| text(finding, "claims").to_owned()).collect::<Vec<_>>()
        };
        let limits = if claims { vec!["limits"] } else { vec![] };
        assert_eq!(said().await, limits, "it may be about to measure");
        sleep(Duration::from_secs(15)).await;
        let both = if claims { vec!["usage", "limits"] } else { vec![] };
        assert_eq!(said().await, both);
        platform.shutdown(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_never_sleeps_is_told_with_who_keeps_it_awake() {
    let platform = Platform::builder()
        .runtime(functions(&Arc::new(Semaphore::new(0))))
        .preset(Preset::Knative)
        .diagnosis(|diagnosis| diagnosis.never_sleeps = Duration::from_secs(300))
        .build()
        .await
        .expect("a platform");
    let mut kept = function("answers");
    kept.scaling.min = 1;
    platform.deploy("default", "kept", kept).await.expect("deployed");
    for name in ["polled", "well"] {
        platform.deploy("default", name, function("works")).await.expect("deployed");
    }
    assert_eq!(get(&platform, "well").await, 200);
    for minute in 0..6 {
        assert_eq!(get(&platform, "kept").await, 200);
        for _ in 0..3 {
            assert_eq!(get(&platform, "polled").await, 200);
            sleep(Duration::from_secs(15)).await;
        }
        let findings = found(&platform, "never_sleeps").await;
        assert!(minute >= 4 || findings.is_empty(), "after {minute} minutes: {findings:?}");
    }
    let findings = found(&platform, "never_sleeps").await;
    let said: Vec<_> =
        findings.iter().map(|finding| (finding.subject.as_str(), text(finding, "keptBy"))).collect();
    assert_eq!(said.len(), 2, "the one that nobody asks sleeps: {said:?}");
    assert_eq!(said[0], ("default/kept (kept-00001)", "its minimum of 1 instances"));
    assert_eq!(said[1].0, "default/polled (polled-00001)");
    assert!(said[1].1.starts_with("its callers: "), "{said:?}");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[cfg(feature = "workflow")]
#[tokio::test(start_paused = true)]
async fn a_run_that_does_not_go_on_is_told_until_it_does() {
    use sas::core::{MemoryStore, Store as _};
    let (store, clock) = (Arc::new(MemoryStore::default()), FakeClock::starting_at(START));
    let started = async || {
        let builder = Platform::builder().store(Arc::clone(&store)).clock(clock.clone());
        builder.admin_token(crate::TOKEN).build().await.expect("a platform")
    };
    let platform = started().await;
    for name in ["sick", "well"] {
        let workflow = format!(
            "apiVersion: sas.dev/v1\nkind: Workflow\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
             document: {{dsl: '1.0.3', version: '1.0.0'}}\n  do: [{{rest: {{wait: PT2M}}}}]\n"
        );
        platform.apply(&workflow, None).await.expect("applied");
        let (runs, run) = (format!("/v1/workflows/shop/{name}/runs"), format!(r#"{{"id": "run-{name}"}}"#));
        assert_eq!(crate::admin(&platform, "POST", &runs, &run).await.0, 202);
    }
    assert_eq!(found(&platform, "stuck_runs").await, []);
    platform.shutdown(Duration::from_secs(5)).await;

    // What the run follows is lost behind the platform's back: the next start does not find it.
    let key = "workflow/definition/shop/sick/1.0.0";
    let definition = store.get(key).await.expect("memory").expect("there");
    store.delete(key, definition.version).await.expect("deleted");
    let platform = started().await;
    sleep(Duration::from_secs(300)).await;
    let findings = found(&platform, "stuck_runs").await;
    let [finding] = &findings[..] else { panic!("{findings:?}") };
    assert_eq!((finding.subject.as_str(), finding.severity), ("run shop/run-sick", Severity::Warning));
    assert_eq!(text(finding, "why"), "unreadable");
    assert!(finding.finding.contains("shop/sick 1.0.0 is not there"), "{finding:?}");
    assert!(
        finding.remedy.ends_with("sasctl workflow cancel --namespace shop run-sick"),
        "which can be typed: {finding:?}"
    );

    store.put(key, None, definition.value).await.expect("back");
    sleep(Duration::from_secs(300)).await;
    assert_eq!(found(&platform, "stuck_runs").await, [], "it went on");
    platform.shutdown(Duration::from_secs(5)).await;
}

#[cfg(feature = "tls")]
#[tokio::test]
async fn a_certificate_that_ends_soon_is_told_and_one_with_time_is_not() {
    use sas_testkit::server::Authority;
    const DAY: i64 = 24 * 3_600;
    let authority = Authority::new();
    for (days, severity) in [(30, None), (3, Some(Severity::Warning)), (-1, Some(Severity::Critical))] {
        let dir = tempfile::tempdir().expect("a directory");
        // Ends with 2031-01-31.
        let certificate = authority.certify_until("shop.example.org", (2031, 2, 1));
        fs::write(dir.path().join("shop.crt"), certificate.pem).expect("written");
        fs::write(dir.path().join("shop.key"), certificate.key).expect("written");
        let ends = 1_927_670_400;
        let platform = Platform::builder()
            .clock(FakeClock::starting_at(Timestamp::from_secs(ends - days * DAY)))
            .certificates(dir.path())
            .build()
            .await
            .expect("a platform");
        let findings = found(&platform, "certificates").await;
        assert_eq!(findings.first().map(|finding| finding.severity), severity, "{findings:?}");
        for finding in &findings {
            assert_eq!(
                (finding.subject.as_str(), text(finding, "domains")),
                ("certificate shop", "shop.example.org")
            );
            assert!(
                count(finding, "secondsLeft").abs_diff(days.max(0).unsigned_abs() * 86_400) < 60,
                "{finding:?}"
            );
        }
        platform.shutdown(Duration::from_secs(5)).await;
    }
}
