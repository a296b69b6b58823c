//! Each check finds its illness, and is silent on a healthy platform.

use std::{sync::Arc, time::Duration};

use sas_core::{
    Capabilities, Error, ErrorKind, InstanceId, InstanceState, InstanceView, Isolation, PoolTotals,
    QuotaPressure, QuotaResource, RevisionKey, RevisionSpec, RevisionStatus, Source, StartTimings, StemClass,
    StemView, TenantKey, Timestamp, Usage,
};
use tokio::time::Instant;

use crate::Evidence;

use super::{
    CertificateState, DiagnosisConfig, Finding, Memory, Severity, checks,
    host::{Disk, Host},
    look::{EngineLook, Look, QuotaLook, RevisionLook},
};

const HOUR: Duration = Duration::from_secs(3600);

fn instance(id: u64, age: Duration, ready: Duration) -> InstanceView {
    let mut start = StartTimings::default();
    start.spawned = Some(Duration::from_millis(5));
    start.listening = Some(ready.saturating_sub(Duration::from_millis(5)));
    start.ready = ready;
    let mut view = InstanceView::new(InstanceId(id), InstanceState::Ready, 0, 10, age);
    view.start = Some(start);
    view.usage = Some(Usage::default());
    view
}

/// A platform of one service that works.
fn healthy() -> Look {
    let mut can = Capabilities::new(Isolation::Process);
    can.usage = true;
    let mut status = RevisionStatus::default();
    (status.ready, status.started) = (1, true);
    let mut spec = RevisionSpec::new("process", Source::Path("app.jar".into()));
    spec.queue_limit = 100;
    let mut totals = PoolTotals::default();
    (totals.instances, totals.memory_bytes, totals.memory_limit_bytes) = (1, 50, Some(100));
    let mut stems = StemView::new(StemClass("jvm".into()), 1);
    (stems.booted, stems.failed) = (5, 1);
    Look {
        faults: Vec::new(),
        at: Timestamp(1_000_000_000_000),
        mono: Instant::now(),
        revisions: vec![RevisionLook {
            key: RevisionKey(1),
            subject: "default/hello (hello-00001)".to_owned(),
            service: "default/hello".to_owned(),
            spec: Arc::new(spec),
            can,
            runtime: "process",
            status,
            instances: vec![instance(1, Duration::from_secs(60), Duration::from_millis(50))],
            requests: Some(10),
        }],
        engines: vec![EngineLook { name: "default".to_owned(), totals, stems: vec![stems] }],
        quotas: vec![QuotaLook {
            subject: "tenant default".to_owned(),
            pressure: QuotaPressure::of_tenant(TenantKey(1), QuotaResource::Concurrency, 10.0, 5.0, 0),
        }],
        triggers: vec![("default/hello".to_owned(), "default/tick (timer)".to_owned())],
        host: Host {
            descriptors: Some((100, 1024)),
            disks: vec![Disk { directory: "/var".into(), bytes: 100, free: 50, files: 100, files_free: 50 }],
        },
        certificates: vec![certificate(Duration::from_secs(90 * 24 * 3600))],
        certificate_problem: None,
        stuck_runs: Vec::new(),
        damaged: Vec::new(),
    }
}

fn certificate(left: Duration) -> CertificateState {
    let mut certificate = CertificateState::new("shop", Timestamp(1_000_000_000_000) + left);
    certificate.domains = vec!["shop.example.org".to_owned()];
    certificate
}

/// The platform a second later.
fn later(look: &Look, by: Duration) -> Look {
    let mut next = look.clone();
    next.at = Timestamp(next.at.0 + i64::try_from(by.as_nanos()).unwrap());
    next.mono += by;
    next
}

fn found(looks: &[Look]) -> Vec<Finding> {
    let mut memory = Memory::default();
    for look in looks {
        memory.remember(look);
    }
    checks::all(looks.last().unwrap(), &memory, &DiagnosisConfig::default())
}

/// What one look, made ill by `change`, and the healthy one before it show.
fn one(change: impl FnOnce(&mut Look)) -> Finding {
    let well = healthy();
    let mut ill = later(&well, Duration::from_secs(60));
    change(&mut ill);
    let mut found = found(&[well, ill]);
    assert_eq!(found.len(), 1, "{found:#?}");
    found.remove(0)
}

fn named(finding: &Finding, name: &str, severity: Severity, says: &str) {
    assert_eq!((finding.name, finding.severity), (name, severity), "{finding:?}");
    assert!(finding.finding.contains(says), "{finding:?}");
    assert!(!finding.remedy.is_empty() && !finding.evidence.is_empty() && !finding.subject.is_empty());
    assert!(checks::NAMES.contains(&finding.name));
}

#[tokio::test(start_paused = true)]
async fn a_healthy_platform_has_nothing() {
    let well = healthy();
    let looks: Vec<Look> = (0..20).map(|round| later(&well, Duration::from_secs(60) * round)).collect();
    assert_eq!(found(&looks), []);
}

#[tokio::test(start_paused = true)]
async fn crash_loops_and_full_queues_are_found() {
    let fails = |look: &mut Look| {
        let status = &mut look.revisions[0].status;
        (status.ready, status.failed_starts) = (0, 3);
        status.last_start_error =
            Some(Arc::new(Error::new(ErrorKind::Crashed, "start", "it ended with code 1")));
    };
    named(&one(fails), "crash_loop", Severity::Critical, "it ended with code 1");
    let some = one(|look| {
        fails(look);
        look.revisions[0].status.ready = 1;
    });
    named(&some, "crash_loop", Severity::Warning, "3 starts failed");
    let queued = |queued| move |look: &mut Look| look.revisions[0].status.queued = queued;
    named(&one(queued(80)), "queue_saturation", Severity::Warning, "80 of at most 100");
    named(&one(queued(100)), "queue_saturation", Severity::Critical, "100 of at most 100");
}

#[tokio::test(start_paused = true)]
async fn slow_starts_are_found_with_the_phase_that_grew() {
    let mut looks = vec![healthy()];
    for id in 2..12 {
        let mut next = later(looks.last().unwrap(), Duration::from_secs(60));
        // Listening takes as long as ever; readiness does not.
        let mut view = instance(id, Duration::from_secs(1), Duration::from_millis(50));
        if id >= 9 {
            view.start.as_mut().unwrap().ready = Duration::from_millis(450);
        }
        next.revisions[0].instances = vec![view];
        looks.push(next);
    }
    let slow = found(&looks);
    assert_eq!(slow.len(), 1, "{slow:#?}");
    named(&slow[0], "slow_start", Severity::Warning, "until it was ready took 405ms instead of 5ms");
    assert_eq!(slow[0].evidence["phase"], "until it was ready".into());
    assert_eq!(found(&looks[..9]), [], "one slow one may be chance");
}

#[tokio::test(start_paused = true)]
async fn starved_pools_and_quotas_are_found() {
    let full = one(|look| {
        let totals = &mut look.engines[0].totals;
        (totals.waiting_starts, totals.memory_bytes) = (4, 95);
    });
    named(&full, "pool_starvation", Severity::Critical, "4 starts wait: its memory is used up");
    let burst = |look: &mut Look| look.engines[0].totals.waiting_starts = 4;
    let (well, mut ill) = (healthy(), healthy());
    burst(&mut ill);
    assert_eq!(found(&[well, ill.clone()]), [], "a burst waits for its turn");
    let again = found(&[ill.clone(), later(&ill, Duration::from_secs(60))]);
    named(&again[0], "pool_starvation", Severity::Critical, "waited at the look before");

    let refused = one(|look| look.quotas[0].pressure.refused = 7);
    named(&refused, "quota_pressure", Severity::Warning, "refused 7 times");
    let near = one(|look| look.quotas[0].pressure.used = 9.0);
    named(&near, "quota_pressure", Severity::Info, "9 of at most 10 requests at once");
    for resource in QuotaResource::ALL {
        let refused = one(|look| {
            look.quotas[0].pressure = QuotaPressure::of_tenant(TenantKey(1), resource, 10.0, 10.0, 3);
        });
        named(&refused, "quota_pressure", Severity::Warning, resource.field());
        let full = |look: &mut Look| {
            look.quotas[0].pressure = QuotaPressure::of_tenant(TenantKey(1), resource, 10.0, 10.0, 0);
        };
        let mut ill = healthy();
        full(&mut ill);
        let told = found(&[healthy(), ill]);
        assert_eq!(told.len(), usize::from(resource.is_held()), "{resource:?}: {told:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn clocks_disks_and_descriptors_are_looked_at() {
    let ahead = one(|look| look.at = Timestamp(look.at.0 + 5_000_000_000));
    named(&ahead, "clock_jump", Severity::Warning, "jumped forward by 5.0s");
    let back = one(|look| look.at = Timestamp(look.at.0 - 65_000_000_000));
    named(&back, "clock_jump", Severity::Warning, "jumped back by 65.0s");
    let frozen = one(|look| look.at = Timestamp(look.at.0 - 30_000_000_000));
    named(&frozen, "clock_jump", Severity::Warning, "jumped back by 30.0s");

    named(&one(|look| look.host.disks[0].free = 10), "disk", Severity::Warning, "10 of 100 bytes");
    named(&one(|look| look.host.disks[0].files_free = 1), "disk", Severity::Critical, "1 of 100 files");
    named(
        &one(|look| look.host.descriptors = Some((930, 1024))),
        "leaked_handles",
        Severity::Critical,
        "930 of 1024",
    );
    let leaking = |step: u64, instances: u64| {
        let looks: Vec<Look> = (0..12)
            .map(|round| {
                let mut look = later(&healthy(), Duration::from_secs(60) * round as u32);
                look.host.descriptors = Some((100 + step * round, 100_000));
                look.engines[0].totals.instances = 1 + instances * round;
                look
            })
            .collect();
        found(&looks)
    };
    named(&leaking(10, 0)[0], "leaked_handles", Severity::Warning, "90 more descriptors");
    assert_eq!(leaking(10, 1), [], "instances take them");
    assert_eq!(leaking(2, 0), [], "a few are clients");
}

#[tokio::test(start_paused = true)]
async fn claims_that_are_not_kept_are_found() {
    let silent = one(|look| look.revisions[0].instances[0].usage = None);
    named(&silent, "runtime_claims", Severity::Warning, "claims to measure");
    let young = healthy();
    let mut next = later(&young, Duration::from_secs(60));
    next.revisions[0].instances[0].usage = None;
    next.revisions[0].instances[0].age = Duration::from_secs(1);
    assert_eq!(found(&[young, next]), [], "it has not been measured yet");
    let stems = one(|look| (look.engines[0].stems[0].booted, look.engines[0].stems[0].failed) = (0, 3));
    named(&stems, "runtime_claims", Severity::Warning, "none booted");
}

#[tokio::test(start_paused = true)]
async fn who_keeps_a_service_awake_is_named() {
    let awake = |change: fn(&mut Look)| {
        let first = healthy();
        let mut last = later(&first, HOUR * 7);
        last.revisions[0].requests = Some(1_000);
        change(&mut last);
        let mut memory = Memory::default();
        memory.remember(&first);
        memory.remember(&last);
        let mut found = checks::all(&last, &memory, &DiagnosisConfig::default());
        assert_eq!(found.len(), 1, "{found:#?}");
        found.remove(0)
    };
    named(&awake(|_| {}), "never_sleeps", Severity::Info, "triggers: default/tick (timer)");
    named(&awake(|look| look.triggers.clear()), "never_sleeps", Severity::Info, "its callers: 990 requests");
    let open = awake(|look| {
        look.revisions[0].requests = Some(10);
        look.revisions[0].status.in_flight = 2;
    });
    named(&open, "never_sleeps", Severity::Info, "2 connections or streams that stay open");
    let least = awake(|look| {
        let mut spec = RevisionSpec::clone(&look.revisions[0].spec);
        spec.scaling.min = 1;
        look.revisions[0].spec = Arc::new(spec);
    });
    named(&least, "never_sleeps", Severity::Info, "its minimum of 1");
    let first = healthy();
    let mut asleep = later(&first, HOUR * 3);
    asleep.revisions[0].status.ready = 0;
    asleep.revisions[0].instances.clear();
    let again = later(&healthy(), HOUR * 7);
    assert_eq!(found(&[first, asleep, again]), [], "it slept in between");
}

#[test]
fn a_certificate_that_ends_soon_has_ended_or_is_wrong_is_told_with_the_remedy() {
    for (left, severity) in
        [(Duration::from_secs(24 * 3600), Severity::Warning), (Duration::ZERO, Severity::Critical)]
    {
        let mut look = healthy();
        look.certificates.push(certificate(left));
        let found = found(&[look]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!((found[0].name, found[0].severity), ("certificates", severity));
        assert!(
            found[0].finding.contains("shop.example.org") && found[0].remedy.contains("renew"),
            "{found:?}"
        );
    }
    let mut look = healthy();
    look.certificate_problem = Some("shop (shop.key): no private key".to_owned());
    let found = found(&[look]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].finding.contains("shop.key"), "{found:?}");
}

#[test]
fn runs_that_do_not_go_on_are_named_with_what_to_do() {
    let mut look = healthy();
    for n in 0..30 {
        look.stuck_runs.push(sas_core::StuckRun::new(
            "shop",
            format!("r-{n}"),
            "unreadable",
            "no definition",
        ));
    }
    let found = found(&[look]);
    assert_eq!(found.len(), 20, "some are named, and the number of all");
    named(&found[0], "stuck_runs", Severity::Warning, "no definition");
    assert_eq!(found[0].subject, "run shop/r-0");
    assert_eq!(found[0].evidence["stuckRuns"], Evidence::Count(30));
    assert!(found[0].remedy.contains("sasctl workflow cancel --namespace shop r-0"), "{}", found[0].remedy);
}
