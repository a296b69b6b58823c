//! The log buffer and the meter pass the suites of their traits.

use std::{
    future::Future as _,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use sas_control::{LogBuffer, Meter};
use sas_core::{MeterPhase, MeterTotals, RevisionKey, UsageQuery, UsageScope};
use sas_testkit::{logs, meter};

#[tokio::test]
async fn the_log_buffer_passes_the_log_sink_suite() {
    // The revision under which the suite writes.
    let revision = RevisionKey::new(1, 0);
    let report = logs::suite(async || {
        let buffer = Arc::new(LogBuffer::default());
        let (reading, counting) = (buffer.clone(), buffer.clone());
        let subject = logs::Subject::new(buffer)
            .read(move |instance| {
                let lines = reading.tail(&[revision], usize::MAX, 0).into_iter();
                lines.filter(|line| line.instance == instance).map(|line| line.line.into_bytes()).collect()
            })
            .dropped(move || counting.dropped(revision));
        ((), subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

/// On a store in memory, which answers at once.
fn read(meter: &Meter, revision: RevisionKey) -> MeterTotals {
    let name = meter::name_of(revision);
    let scope = UsageScope::revision(name.namespace(), name.service(), name.revision());
    let mut asked = std::pin::pin!(meter.totals(&scope));
    match asked.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(found) => found.unwrap().first().map_or_else(MeterTotals::default, |used| used.totals),
        Poll::Pending => panic!("nobody else asks"),
    }
}

#[tokio::test]
async fn the_meter_passes_the_meter_sink_suite() {
    let report = meter::suite(async || {
        let meter = Arc::new(Meter::default());
        let (phases, requests) = (meter.clone(), meter.clone());
        let subject = meter::Subject::new(meter)
            .phase(move |revision, _, phase| {
                let totals = read(&phases, revision);
                match phase {
                    MeterPhase::Starting => totals.starting_ns,
                    MeterPhase::Pooled => totals.pooled_ns,
                    MeterPhase::Idle => totals.idle_ns,
                    MeterPhase::Busy => totals.busy_ns,
                    MeterPhase::Draining => totals.draining_ns,
                    _ => 0,
                }
            })
            .requests(move |revision, _| read(&requests, revision).requests);
        ((), subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}
