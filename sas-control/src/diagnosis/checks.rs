//! The checks, one function each.

use std::time::Duration;

use sas_core::{Isolation, StartTimings};

use super::{
    DiagnosisConfig, Finding, Memory,
    Severity::{Critical, Info, Warning},
    look::{Look, oldest},
    memory::HANDLES,
};

const CRASH_LOOP: &str = "crash_loop";
const SLOW_START: &str = "slow_start";
const QUEUE: &str = "queue_saturation";
const STARVATION: &str = "pool_starvation";
const QUOTA: &str = "quota_pressure";
const CLOCK: &str = "clock_jump";
const DISK: &str = "disk";
const HANDLES_OPEN: &str = "leaked_handles";
const CLAIMS: &str = "runtime_claims";
const AWAKE: &str = "never_sleeps";
const CERTIFICATES: &str = "certificates";
const FAULTS: &str = "faults_on_purpose";
const STUCK: &str = "stuck_runs";
const DAMAGED: &str = "damaged_records";

/// The names of all checks.
pub(super) const NAMES: &[&str] = &[
    CRASH_LOOP,
    SLOW_START,
    QUEUE,
    STARVATION,
    QUOTA,
    CLOCK,
    DISK,
    HANDLES_OPEN,
    CLAIMS,
    AWAKE,
    CERTIFICATES,
    FAULTS,
    STUCK,
    DAMAGED,
];

type Check = fn(&Look, &Memory, &DiagnosisConfig, &mut Vec<Finding>);

pub(super) fn all(look: &Look, memory: &Memory, config: &DiagnosisConfig) -> Vec<Finding> {
    let checks: [Check; 14] = [
        crash_loop,
        slow_start,
        queue,
        starvation,
        quota,
        clock,
        disk,
        handles,
        claims,
        never_sleeps,
        certificates,
        faults,
        stuck_runs,
        damaged_records,
    ];
    let mut findings = Vec::new();
    for check in checks {
        check(look, memory, config, &mut findings);
    }
    findings
}

/// Records in the store that something else wrote over, or a disk lost.
fn damaged_records(look: &Look, _: &Memory, _: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for (key, problem) in &look.damaged {
        let remedy = if key.starts_with("usage/") {
            "the books go on without it; what it held of usage is in no bill, so compare with what was exported, or with a \
             backup"
        } else {
            "declare again what it holds, or put the state back from a backup; see what wrote over it, and whether the disk \
             is sound"
        };
        let finding = format!("the record {key:?} of the store can't be read: {problem}");
        findings.push(
            Finding::new(DAMAGED, Warning, format!("record {key}"), finding, remedy)
                .because("problem", problem.as_str())
                .because("damagedRecords", look.damaged.len()),
        );
    }
}

/// Stuck runs that are named one by one; of the others their number is told.
const STUCK_SHOWN: usize = 20;

/// Runs of workflows that do not go on.
fn stuck_runs(look: &Look, _: &Memory, _: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for run in look.stuck_runs.iter().take(STUCK_SHOWN) {
        let asked = format!("--namespace {} {}", run.namespace, run.id);
        let remedy = match run.why {
            "unreadable" => {
                format!(
                    "bring back what is missing and it goes on, or end it: sasctl workflow cancel {asked}"
                )
            }
            "late" => {
                "see whether the store is slow or the host has no time for its runs; it goes on by itself"
                    .to_owned()
            }
            _ => format!(
                "see what it waits for (sasctl workflow get {asked}), and mend that; or give the answer in its place (skip), or end it \
                 (cancel)"
            ),
        };
        let subject = format!("run {}/{}", run.namespace, run.id);
        findings.push(
            Finding::new(STUCK, Warning, subject, run.message.clone(), remedy)
                .because("why", run.why)
                .because("since", run.since.clone())
                .because("stuckRuns", look.stuck_runs.len()),
        );
    }
}

/// Requests meet faults that somebody asked for, and may have forgotten.
fn faults(look: &Look, _: &Memory, _: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for (service, count, met) in &look.faults {
        let text =
            format!("its requests meet faults on purpose: {count} are set, {met} requests met one so far");
        let remedy = format!(
            "once the test is over, DELETE /v1/services/{service}/faults, or apply its manifest without sas.dev/faults"
        );
        let subject = format!("service {service}");
        findings.push(
            Finding::new(FAULTS, Warning, &subject, text, remedy)
                .because("faults", *count)
                .because("met", *met),
        );
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Instances that fail to start, or die as soon as they are ready, again and again.
fn crash_loop(look: &Look, _: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for revision in &look.revisions {
        let status = &revision.status;
        if status.failed_starts < config.crash_loop {
            continue;
        }
        let error = status.last_start_error.as_ref().map_or_else(String::new, |error| error.chain());
        let severity = if status.ready == 0 { Critical } else { Warning };
        let text = format!("its last {} starts failed in a row: {error}", status.failed_starts);
        let remedy = format!(
            "read its log (the last lines before it ended), mend it and deploy again, or roll {} back; until then \
             requests are answered with this error",
            revision.service
        );
        findings.push(
            Finding::new(CRASH_LOOP, severity, &revision.subject, text, remedy)
                .because("failedStarts", status.failed_starts)
                .because("lastError", error)
                .because("ready", status.ready),
        );
    }
}

/// How long each phase of a start took: its name, and the time since the phase before.
fn phases(start: &StartTimings) -> [(&'static str, Duration); 4] {
    let spawned = start.spawned.unwrap_or(start.gated);
    let listening = start.listening.unwrap_or(spawned);
    [
        ("gated", start.gated),
        ("spawning", spawned.saturating_sub(start.gated)),
        ("until it listened", listening.saturating_sub(spawned)),
        ("until it was ready", start.ready.saturating_sub(listening)),
    ]
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Starts that usual ones are known from, and those that are compared with them.
const USUAL: usize = 5;
const LATEST: usize = 3;
/// Slower by less than this is nobody's trouble.
const NOTICEABLE: Duration = Duration::from_millis(100);

/// The last starts took much longer than those before.
fn slow_start(look: &Look, memory: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for revision in &look.revisions {
        let Some(past) = memory.past(revision.key).filter(|past| past.starts.len() >= USUAL + LATEST) else {
            continue;
        };
        let starts: Vec<&StartTimings> = past.starts.iter().collect();
        let (usual, latest) = starts.split_at(starts.len() - LATEST);
        let of = |some: &[&StartTimings]| median(some.iter().map(|start| start.ready).collect());
        let (before, now) = (of(usual), of(latest));
        if now < before.mul_f64(config.slow_start.max(1.0)) || now < before + NOTICEABLE {
            continue;
        }
        let phase =
            |some: &[&StartTimings], at: usize| median(some.iter().map(|s| phases(s)[at].1).collect());
        let grown = (0..4).max_by_key(|at| phase(latest, *at).saturating_sub(phase(usual, *at))).unwrap_or(0);
        let name = phases(latest[0])[grown].0;
        let (was, is) = (phase(usual, grown), phase(latest, grown));
        let remedy = match grown {
            0 => {
                "starts wait for their turn or for memory: look for what else starts, or give the engine more"
            }
            1 => "the host is slow to make processes or sandboxes: look at its load, memory and disk",
            2 => {
                "the program is slow to open its port: look at what it does first, and at the CPU that it gets"
            }
            _ => "it listens and its readiness probe fails for long: look at what it waits for",
        };
        let text = format!(
            "its last starts took {now:.0?}, {before:.0?} before; {name} took {is:.0?} instead of {was:.0?}"
        );
        findings.push(
            Finding::new(SLOW_START, Warning, &revision.subject, text, remedy)
                .because("usualMillis", millis(before))
                .because("latestMillis", millis(now))
                .because("phase", name)
                .because("phaseUsualMillis", millis(was))
                .because("phaseLatestMillis", millis(is))
                .because("starts", starts.len()),
        );
    }
}

/// A queue that is nearly full, or refuses already.
fn queue(look: &Look, _: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for revision in &look.revisions {
        let (queued, limit) = (u64::from(revision.status.queued), u64::from(revision.spec.queue_limit));
        if queued == 0 || queued * 100 < limit * config.queue_percent {
            continue;
        }
        let severity = if queued >= limit { Critical } else { Warning };
        let text =
            format!("{queued} of at most {limit} requests wait for {} instances", revision.status.ready);
        let max = revision.spec.scaling.max;
        let remedy = if max > 0 && revision.status.ready >= max {
            format!("it has all the {max} instances that it may have: raise its maximum, or its concurrency")
        } else {
            "more instances are on their way or can't start: look at its starts, its concurrency and the engine's budget"
                .to_owned()
        };
        findings.push(
            Finding::new(QUEUE, severity, &revision.subject, text, remedy)
                .because("queued", queued)
                .because("limit", limit)
                .because("ready", revision.status.ready)
                .because("starting", revision.status.starting)
                .because("max", max),
        );
    }
}

/// Starts that wait because a budget is used up.
fn starvation(look: &Look, memory: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for engine in &look.engines {
        let totals = &engine.totals;
        if totals.waiting_starts == 0 {
            continue;
        }
        let full = totals.memory_limit_bytes.filter(|limit| {
            u128::from(totals.memory_bytes) * 100 >= u128::from(*limit) * u128::from(config.full_percent)
        });
        let waited = memory
            .before
            .as_ref()
            .is_some_and(|before| before.waiting.get(&engine.name).is_some_and(|waiting| *waiting > 0));
        // A burst waits for its turn for a moment, and nothing is wrong.
        if full.is_none() && !waited {
            continue;
        }
        let why = match full {
            Some(limit) => format!("its memory is used up ({} of {limit} bytes)", totals.memory_bytes),
            None => "they waited at the look before, too".to_owned(),
        };
        let text = format!("{} starts wait: {why}", totals.waiting_starts);
        let remedy = "set more aside for the engine, lower the memory requests of its services, or move a tenant to another";
        findings.push(
            Finding::new(STARVATION, Critical, format!("engine {}", engine.name), text, remedy)
                .because("waitingStarts", totals.waiting_starts)
                .because("instances", totals.instances)
                .because("memoryBytes", totals.memory_bytes)
                .because("memoryLimitBytes", totals.memory_limit_bytes),
        );
    }
}

/// Quotas that refuse, or are nearly used up.
fn quota(look: &Look, memory: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for quota in &look.quotas {
        let pressure = &quota.pressure;
        let key = (quota.subject.clone(), pressure.resource);
        let before = memory.before.as_ref().and_then(|before| before.refused.get(&key)).copied();
        let refused = pressure.refused.saturating_sub(before.unwrap_or(0));
        // A burst that was used is no sign of anything.
        let near = pressure.resource.is_held()
            && pressure.most > 0.0
            && pressure.used * 100.0 >= pressure.most * config.full_percent as f64;
        if refused == 0 && !near {
            continue;
        }
        let (what, field) = (pressure.resource.counted(), pressure.resource.field());
        let (limit, used) = (pressure.limit, pressure.used);
        let (severity, text) = if refused > 0 {
            let text =
                format!("its quota {field} of {limit} {what} refused {refused} times since the look before");
            (Warning, text)
        } else {
            (Info, format!("{used:.0} of at most {limit} {what} are used"))
        };
        let remedy = "raise its quota if it may have more, or ask its owner to use less or to retry later";
        findings.push(
            Finding::new(QUOTA, severity, &quota.subject, text, remedy)
                .because("resource", pressure.resource.as_str())
                .because("refused", refused)
                .because("used", used.round() as u64)
                .because("limit", limit),
        );
    }
}

/// The wall clock went otherwise than the time that passed.
fn clock(look: &Look, memory: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    let Some(before) = &memory.before else { return };
    let passed = look.mono.saturating_duration_since(before.mono);
    let (forth, back) = (look.at.since(before.at), before.at.since(look.at));
    let apart = if back.is_zero() { forth.abs_diff(passed) } else { back + passed };
    if apart <= config.clock_jump {
        return;
    }
    let direction = if back.is_zero() && forth > passed { "forward" } else { "back" };
    let text = format!("the wall clock jumped {direction} by {apart:.1?} within {passed:.1?}");
    let remedy =
        "let the clock be slewed instead of set (chrony, ntpd); schedules fired or will fire off their time";
    findings.push(
        Finding::new(CLOCK, Warning, "host", text, remedy)
            .because("jumpMillis", millis(apart))
            .because("passedMillis", millis(passed))
            .because("direction", direction),
    );
}

/// File systems that fill up.
fn disk(look: &Look, _: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for disk in &look.host.disks {
        for (what, all, free) in [("bytes", disk.bytes, disk.free), ("files", disk.files, disk.files_free)] {
            let used = u128::from(all.saturating_sub(free)) * 100;
            if all == 0 || used < u128::from(all) * u128::from(config.full_percent) {
                continue;
            }
            let severity = if free * 50 < all { Critical } else { Warning };
            let directory = disk.directory.display();
            let text = format!("{free} of {all} {what} are free where {directory} is");
            let remedy =
                "free some: old revisions and their packages go by garbage collection, logs by their bounds";
            findings.push(
                Finding::new(DISK, severity, format!("host {directory}"), text, remedy)
                    .because("what", what)
                    .because("all", all)
                    .because("free", free),
            );
        }
    }
}

/// Descriptors that are nearly used up, or grow and grow.
fn handles(look: &Look, memory: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    let Some((open, limit)) = look.host.descriptors else { return };
    let near = u128::from(open) * 100 >= u128::from(limit) * u128::from(config.full_percent);
    let looks = &memory.handles;
    let grown = match (looks.front(), looks.back()) {
        (Some((first, held)), Some((last, holds))) if looks.len() == HANDLES => {
            let steady = looks.iter().zip(looks.iter().skip(1)).all(|(one, next)| next.0 > one.0);
            // An instance takes some; that many more are no leak.
            (steady && holds <= held).then(|| last - first).filter(|grown| *grown >= 64)
        }
        _ => None,
    };
    if !near && grown.is_none() {
        return;
    }
    let text = match grown {
        Some(grown) => {
            format!("{grown} more descriptors are open than {} looks ago, and no more instances", HANDLES - 1)
        }
        None => format!("{open} of {limit} descriptors are open"),
    };
    let remedy = "look at /proc/self/fd of the platform for what they are (sockets of idle clients, pipes, files), and raise \
                  the limit of open files";
    let severity = if near { Critical } else { Warning };
    findings.push(
        Finding::new(HANDLES_OPEN, severity, "host", text, remedy)
            .because("open", open)
            .because("limit", limit)
            .because("grown", grown),
    );
}

/// How long an instance may be up before its runtime should know what it uses.
const MEASURED: Duration = Duration::from_secs(10);
/// Boots that must have failed before stems count as impossible.
const BOOTS: u64 = 3;

/// Runtimes that say that they can do something, and do not.
fn claims(look: &Look, _: &Memory, _: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    let mut said: Vec<&str> = Vec::new();
    for revision in &look.revisions {
        let old: Vec<_> =
            revision.instances.iter().filter(|i| i.start.is_some() && i.age > MEASURED).collect();
        let silent = !old.is_empty() && old.iter().all(|instance| instance.usage.is_none());
        if revision.can.usage && silent && !said.contains(&revision.runtime) {
            said.push(revision.runtime);
            let text =
                format!("it claims to measure its instances, and says nothing of {}", revision.subject);
            let remedy = "scaling by CPU or memory and budgets by what is measured do not work: look at the control groups \
                          that it needs, or correct what it claims (Capabilities::usage)";
            findings.push(
                Finding::new(CLAIMS, Warning, format!("runtime {}", revision.runtime), text, remedy)
                    .because("claims", "usage")
                    .because("instances", old.len()),
            );
        }
        if revision.can.isolation == Isolation::None
            && revision.spec.resources.memory_limit_bytes.is_some()
            && revision.can.limits
        {
            let text =
                "it claims to enforce limits of memory and runs everything in the platform's own process";
            let remedy =
                "correct what it claims (Capabilities::limits), or run the service on another runtime";
            findings.push(
                Finding::new(CLAIMS, Warning, format!("runtime {}", revision.runtime), text, remedy)
                    .because("claims", "limits"),
            );
        }
    }
    for engine in &look.engines {
        for stems in &engine.stems {
            if stems.failed < BOOTS || stems.booted > 0 {
                continue;
            }
            let subject = format!("engine {} (class {})", engine.name, stems.class);
            let text = format!("stems of the class were begun {} times, and none booted", stems.failed);
            let remedy = "every start of the class is cold: look at the platform's log for why they fail, or leave the class out";
            findings.push(
                Finding::new(CLAIMS, Warning, subject, text, remedy)
                    .because("claims", "stems")
                    .because("failed", stems.failed),
            );
        }
    }
}

/// Services that may sleep and never do, and who keeps them awake.
fn never_sleeps(look: &Look, memory: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    for revision in &look.revisions {
        let Some((since, requests)) = memory.past(revision.key).and_then(|past| past.awake) else { continue };
        let seen = look.mono.saturating_duration_since(since);
        let awake = seen.max(oldest(revision));
        if awake < config.never_sleeps {
            continue;
        }
        let scaling = &revision.spec.scaling;
        let triggers: Vec<&str> = look
            .triggers
            .iter()
            .filter(|(service, _)| *service == revision.service)
            .map(|(_, trigger)| trigger.as_str())
            .collect();
        let asked = revision.requests.zip(requests).map(|(now, then)| now.saturating_sub(then));
        let (who, remedy) = if scaling.min > 0 {
            (format!("its minimum of {} instances", scaling.min), "set its minimum to 0 if it may sleep")
        } else if !triggers.is_empty() && asked != Some(0) {
            (
                format!("triggers: {}", triggers.join(", ")),
                "let them fire less often than its window, or send several events at once",
            )
        } else if asked == Some(0) && revision.status.in_flight > 0 {
            (
                format!("{} connections or streams that stay open", revision.status.in_flight),
                "close idle WebSockets and streams, or set timeouts.idle",
            )
        } else {
            match asked {
                Some(0) => (
                    "nobody: it may sleep and does not".to_owned(),
                    "look at its last decisions for what holds it",
                ),
                Some(asked) => (
                    format!("its callers: {asked} requests in {seen:.0?}"),
                    "look at its access log for health checks and pollers, and exclude their paths (sas.dev/no-wake)",
                ),
                None => ("its callers".to_owned(), "look at its access log for health checks and pollers"),
            }
        };
        let text = format!("it is awake for {awake:.0?} without a pause, kept by {who}");
        findings.push(
            Finding::new(AWAKE, Info, &revision.subject, text, remedy)
                .because("awakeSeconds", awake.as_secs())
                .because("keptBy", who)
                .because("requests", asked)
                .because("inFlight", revision.status.in_flight)
                .because("min", scaling.min),
        );
    }
}

/// Certificates that end soon or have ended, and new ones that are not used because they are wrong.
fn certificates(look: &Look, _: &Memory, config: &DiagnosisConfig, findings: &mut Vec<Finding>) {
    const RENEW: &str =
        "renew it and put the new files in its place: they are used within seconds, without a restart";
    for certificate in &look.certificates {
        let left = certificate.expires.since(look.at);
        let domains = certificate.domains.join(", ");
        let ended = certificate.expires <= look.at;
        if !ended && left > config.certificate_renewal {
            continue;
        }
        let (severity, text) = if ended {
            (Critical, format!("it has ended, and clients refuse it: {domains}"))
        } else {
            (Warning, format!("it ends in {} hours: {domains}", left.as_secs() / 3600))
        };
        findings.push(
            Finding::new(CERTIFICATES, severity, format!("certificate {}", certificate.name), text, RENEW)
                .because("domains", domains)
                .because("secondsLeft", left.as_secs())
                .because("expired", ended),
        );
    }
    if let Some(problem) = &look.certificate_problem {
        let text = format!("new certificates are not used, those before still are: {problem}");
        let remedy = "mend the files that are named: certificate and key must be PEM, and belong together";
        findings.push(
            Finding::new(CERTIFICATES, Warning, "certificates", text, remedy)
                .because("problem", problem.clone()),
        );
    }
}
