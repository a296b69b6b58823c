use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use sas_core::{InstanceId, LogRecord, LogSink, MeterPhase, MeterSink, Metered, RequestUsage, RevisionKey};
use sas_testkit::{fake::RecordingLogs, logs, meter};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// No bug: the base of the others.
    Sound,
    KeepsLinesBackwards,
    MixesInstances,
    DropsWithoutCounting,
    PanicsOnBytesThatAreNoText,
    CountsInFloats,
    CountsInMilliseconds,
    MixesRevisions,
    LosesOneOfTwoThreads,
    WrapsAround,
    CountsRequestsOnce,
}

#[derive(Debug)]
struct Logs(RecordingLogs, Bug);

impl LogSink for Logs {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { instance, revision, request, at, stream, line, .. } = *record;
        match self.1 {
            Bug::PanicsOnBytesThatAreNoText => assert!(std::str::from_utf8(line).is_ok(), "no text"),
            Bug::DropsWithoutCounting if line.ends_with(b"777") => return,
            _ => {}
        }
        self.0.line(&LogRecord::new(instance, revision, at, stream, line).with_request(request));
    }
}

fn log_subject(bug: Bug) -> logs::Subject {
    let sink = Arc::new(Logs(RecordingLogs::default(), bug));
    let reading = Arc::clone(&sink);
    logs::Subject::new(sink)
        .read(move |instance| {
            let lines = reading.0.lines().into_iter();
            let mut lines: Vec<Vec<u8>> = lines
                .filter(|line| bug == Bug::MixesInstances || line.instance == instance)
                .map(|line| line.line)
                .collect();
            if bug == Bug::KeepsLinesBackwards {
                lines.reverse();
            }
            lines
        })
        .dropped(|| 0)
}

#[derive(Debug)]
struct Meter {
    phases: Mutex<BTreeMap<(RevisionKey, u8), (u128, f64)>>,
    requests: Mutex<BTreeMap<RevisionKey, u64>>,
    bug: Bug,
}

fn at(phase: MeterPhase) -> u8 {
    match phase {
        MeterPhase::Starting => 0,
        MeterPhase::Pooled => 1,
        MeterPhase::Idle => 2,
        MeterPhase::Busy => 3,
        _ => 4,
    }
}

impl Meter {
    fn key(&self, revision: RevisionKey, phase: MeterPhase) -> (RevisionKey, u8) {
        (if self.bug == Bug::MixesRevisions { RevisionKey(0) } else { revision }, at(phase))
    }
}

impl MeterSink for Meter {
    fn phase(&self, of: Metered<'_>, _: InstanceId, phase: MeterPhase, ns: u64) {
        let key = self.key(of.revision, phase);
        if self.bug == Bug::LosesOneOfTwoThreads {
            let before = self.phases.lock().get(&key).copied().unwrap_or_default();
            std::thread::yield_now();
            self.phases.lock().insert(key, (before.0 + u128::from(ns), before.1));
            return;
        }
        let mut phases = self.phases.lock();
        let total = phases.entry(key).or_default();
        let ns = if self.bug == Bug::CountsInMilliseconds { ns / 1_000_000 * 1_000_000 } else { ns };
        total.0 += u128::from(ns);
        if self.bug == Bug::WrapsAround {
            total.0 &= u128::from(u64::MAX);
        }
        total.1 = (total.1 as f32 + ns as f32).into();
    }

    fn requests(&self, of: Metered<'_>, used: &RequestUsage) {
        let (revision, count) = (of.revision, used.requests);
        let count = if self.bug == Bug::CountsRequestsOnce { count.min(1) } else { count };
        let mut requests = self.requests.lock();
        let total = requests.entry(revision).or_default();
        *total = total.saturating_add(count);
    }
}

fn meter_subject(bug: Bug) -> meter::Subject {
    let meter = Arc::new(Meter { phases: Mutex::default(), requests: Mutex::default(), bug });
    let (phases, requests) = (Arc::clone(&meter), Arc::clone(&meter));
    meter::Subject::new(meter)
        .phase(move |revision, _, phase| {
            let total = phases.phases.lock().get(&phases.key(revision, phase)).copied().unwrap_or_default();
            if bug == Bug::CountsInFloats { total.1 as u128 } else { total.0 }
        })
        .requests(move |revision, _| requests.requests.lock().get(&revision).copied().unwrap_or(0))
}

#[tokio::test]
async fn every_broken_log_sink_is_refused() {
    logs::suite(async || ((), log_subject(Bug::Sound))).await.assert_passed_skipping(&[]);
    for (bug, by) in [
        (Bug::KeepsLinesBackwards, "in order"),
        (Bug::MixesInstances, "each other's lines"),
        (Bug::DropsWithoutCounting, "dropped is counted"),
        (Bug::PanicsOnBytesThatAreNoText, "any bytes"),
    ] {
        caught(bug, &logs::suite(async || ((), log_subject(bug))).await, by);
    }
}

#[tokio::test]
async fn every_broken_meter_is_refused() {
    meter::suite(async || ((), meter_subject(Bug::Sound))).await.assert_passed_skipping(&[]);
    for (bug, by) in [
        (Bug::CountsInFloats, "add up exactly, for each phase"),
        (Bug::CountsInMilliseconds, "add up exactly, for each phase"),
        (Bug::MixesRevisions, "kept apart"),
        (Bug::LosesOneOfTwoThreads, "threads"),
        (Bug::WrapsAround, "wraps around"),
        (Bug::CountsRequestsOnce, "requests add up"),
    ] {
        caught(bug, &meter::suite(async || ((), meter_subject(bug))).await, by);
    }
}
