//! The suite for [`sas_core::MeterSink`].

use std::{fmt, sync::Arc};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use sas_core::{
    InstanceId, MeterPhase, MeterSink, Metered, RequestUsage, RevisionKey, RevisionName, TenantKey,
};

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, ensure},
};

const PHASES: [MeterPhase; 5] =
    [MeterPhase::Starting, MeterPhase::Pooled, MeterPhase::Idle, MeterPhase::Busy, MeterPhase::Draining];

type ReadPhase = Box<dyn Fn(RevisionKey, TenantKey, MeterPhase) -> u128>;
type ReadRequests = Box<dyn Fn(RevisionKey, TenantKey) -> u64>;

/// A meter, and how to read what it counted.
pub struct Subject {
    sink: Arc<dyn MeterSink>,
    phase: Option<ReadPhase>,
    requests: Option<ReadRequests>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("sink", &self.sink).finish_non_exhaustive()
    }
}

impl Subject {
    /// A meter that has counted nothing.
    pub fn new(sink: Arc<dyn MeterSink>) -> Self {
        Self { sink, phase: None, requests: None }
    }

    /// The nanoseconds of a revision in a phase.
    #[must_use]
    pub fn phase(mut self, read: impl Fn(RevisionKey, TenantKey, MeterPhase) -> u128 + 'static) -> Self {
        self.phase = Some(Box::new(read));
        self
    }

    /// The requests of a revision.
    #[must_use]
    pub fn requests(mut self, read: impl Fn(RevisionKey, TenantKey) -> u64 + 'static) -> Self {
        self.requests = Some(Box::new(read));
        self
    }

    fn read(&self, revision: RevisionKey, tenant: TenantKey, phase: MeterPhase) -> Verdict<u128> {
        let read =
            self.phase.as_ref().ok_or_else(|| Stop::skip("what it counts can't be read (no `phase`)"))?;
        Ok(read(revision, tenant, phase))
    }
}

/// The name under which the suite meters a revision, for meters that are read by name.
pub fn name_of(revision: RevisionKey) -> RevisionName {
    RevisionName::new("default", "metered", &format!("metered-{}", revision.0))
}

/// Runs every check on a meter of its own, made by `builder`.
pub async fn suite<G>(builder: impl AsyncFn() -> (G, Subject)) -> Report {
    check::run(
        "MeterSink",
        check::LIMIT,
        builder,
        |subject| subject,
        checks![
            "nanoseconds add up exactly, for each phase" => exact,
            "revisions and tenants are kept apart" => apart,
            "requests add up exactly" => requests,
            "threads that meter at once lose nothing of each other" => threads,
            "nothing, and more than there can be, neither panics nor wraps around" => extremes,
        ],
    )
    .await
}

const REVISION: RevisionKey = RevisionKey::new(1, 0);
const TENANT: TenantKey = TenantKey(1);

fn phase(sink: &dyn MeterSink, key: RevisionKey, tenant: TenantKey, id: u64, phase: MeterPhase, ns: u64) {
    sink.phase(Metered::of(key, tenant, &name_of(key)), InstanceId(id), phase, ns);
}

fn answered(sink: &dyn MeterSink, requests: u64) {
    sink.requests(Metered::of(REVISION, TENANT, &name_of(REVISION)), &RequestUsage::of(requests));
}

async fn exact(subject: &Subject) -> Verdict {
    let mut random = SmallRng::seed_from_u64(11);
    let mut expected = [0_u128; 5];
    for _ in 0..2_000 {
        let at = random.random_range(0..5);
        // Odd numbers of nanoseconds: whoever counts in floats or milliseconds loses some.
        let ns = random.random_range(0..10_000_000_000_u64) | 1;
        expected[at] += u128::from(ns);
        phase(&*subject.sink, REVISION, TENANT, random.random_range(0..7), PHASES[at], ns);
    }
    for (phase, expected) in PHASES.into_iter().zip(expected) {
        let counted = subject.read(REVISION, TENANT, phase)?;
        ensure!(counted == expected, "{phase:?}: {expected} ns were metered, {counted} counted");
    }
    Ok(())
}

async fn apart(subject: &Subject) -> Verdict {
    for revision in 0..6_u32 {
        // A revision belongs to one tenant, a tenant has several.
        let (key, tenant) = (RevisionKey::new(revision, 1), TenantKey(revision % 3));
        phase(&*subject.sink, key, tenant, 1, MeterPhase::Busy, u64::from(revision) + 1);
    }
    for revision in 0..6_u32 {
        let (key, tenant) = (RevisionKey::new(revision, 1), TenantKey(revision % 3));
        let counted = subject.read(key, tenant, MeterPhase::Busy)?;
        ensure!(
            counted == u128::from(revision) + 1,
            "revision {revision}: {} ns, counted {counted}",
            revision + 1
        );
    }
    let other = subject.read(RevisionKey::new(0, 2), TenantKey(0), MeterPhase::Busy)?;
    ensure!(other == 0, "a later revision in the same slot has {other} ns");
    Ok(())
}

async fn requests(subject: &Subject) -> Verdict {
    for count in 0..100 {
        answered(&*subject.sink, count);
    }
    let read =
        subject.requests.as_ref().ok_or_else(|| Stop::skip("requests can't be read (no `requests`)"))?;
    let counted = read(REVISION, TENANT);
    ensure!(counted == 4950, "4,950 requests were metered, {counted} counted");
    Ok(())
}

async fn threads(subject: &Subject) -> Verdict {
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let sink = Arc::clone(&subject.sink);
            std::thread::spawn(move || {
                for _ in 0..5_000 {
                    phase(&*sink, REVISION, TENANT, thread, MeterPhase::Idle, 3);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| Stop::fail("metering panicked"))?;
    }
    let counted = subject.read(REVISION, TENANT, MeterPhase::Idle)?;
    ensure!(counted == 60_000, "60,000 ns were metered by four threads, {counted} counted");
    Ok(())
}

async fn extremes(subject: &Subject) -> Verdict {
    phase(&*subject.sink, REVISION, TENANT, 0, MeterPhase::Busy, 0);
    answered(&*subject.sink, 0);
    phase(&*subject.sink, REVISION, TENANT, u64::MAX, MeterPhase::Busy, u64::MAX - 1);
    phase(&*subject.sink, REVISION, TENANT, u64::MAX, MeterPhase::Busy, 1000);
    answered(&*subject.sink, u64::MAX);
    answered(&*subject.sink, 1);
    let counted = subject.read(REVISION, TENANT, MeterPhase::Busy)?;
    ensure!(counted >= u128::from(u64::MAX - 1), "more than there can be wrapped around to {counted}");
    Ok(())
}
