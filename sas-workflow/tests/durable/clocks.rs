//! Clocks that jump, as those of hosts do.

use std::sync::atomic::AtomicI64;

use super::*;

/// A clock that somebody sets.
#[derive(Debug)]
struct Set {
    clock: Arc<TokioClock>,
    seconds: AtomicI64,
}

impl Clock for Set {
    fn now(&self) -> Timestamp {
        Timestamp(self.clock.now().0 + self.seconds.load(SeqCst) * 1_000_000_000)
    }
}

const TWO: &str = "do: [{w: {wait: PT1H}}, {c: {call: stock}}, {v: {wait: PT1M}}]";

/// How the run stands when it has ended, and how long that took.
async fn lasts(set_to: i64) -> (sas_workflow::RunState, Duration, Vec<Record>) {
    let clock = Arc::new(Set { clock: clock(), seconds: AtomicI64::new(0) });
    let host = host(Arc::new(MemoryStore::default()), clock.clone()).await;
    shop(&host, "two", TWO).await;
    let began = tokio::time::Instant::now();
    start(&host, "two", "t").await;
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    clock.seconds.store(set_to, SeqCst);
    let ended = tokio::time::timeout(Duration::from_secs(100_000), host.workflows.ended("shop/t")).await;
    let state = ended.expect("it ends").expect("a store");
    let records = host.workflows.history("shop/t").await.expect("records");
    host.stop.cancel();
    (state, began.elapsed(), records)
}

fn at(record: &Record) -> u64 {
    match record {
        Record::Started { at, .. } | Record::Done { at, .. } | Record::Time { at } => *at,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_makes_no_timer_early_and_no_time_go_back() {
    let (state, took, records) = lasts(-7_200).await;
    assert_eq!(state.phase, Phase::Completed, "{state:?}");
    assert_eq!(records.len(), 4, "{records:?}");
    assert!(records.iter().map(at).is_sorted(), "{records:?}");
    assert!(at(&records[1]) >= state.started + 3_600_000, "{records:?}");
    assert!(at(&records[3]) >= at(&records[2]) + 60_000, "{records:?}");
    // By its own clock, which has the two hours again.
    let due = Duration::from_secs(3_600 + 7_200 + 60);
    assert!(took >= due && took < due + Duration::from_secs(5), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_forward_tells_what_is_due_within_a_minute() {
    let (state, took, records) = lasts(7_200).await;
    assert_eq!(state.phase, Phase::Completed, "{state:?}");
    assert!(records.iter().map(at).is_sorted(), "{records:?}");
    let jump = Duration::from_secs(1_800);
    assert!(took >= jump && took < jump + Duration::from_secs(60 + 60 + 5), "{took:?}");
}
