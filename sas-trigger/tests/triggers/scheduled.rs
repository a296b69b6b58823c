//! Schedules over restarts, sleeps and overlaps. Time is paused.

use std::{sync::Arc, time::Duration};

use sas_core::{Clock, ErrorKind, Event, Guard, Store, Timestamp, TriggerCx, TriggerSource};
use sas_testkit::{
    fake::{FakeClock, FakeEventSink, FakeStore},
    fault::SlowDisk,
    trigger,
};
use sas_trigger::{
    CronSchedule, CronTrigger, EventTemplate, Misfire, Overlap, SchedulePolicy, TimerTrigger, fire_id,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::hosts::OneOfSeveral;

/// 2026-01-05 00:00:00 UTC, a Monday.
const START: Timestamp = Timestamp::from_secs(1_767_571_200);

struct World {
    clock: FakeClock,
    sink: Arc<FakeEventSink>,
    store: Arc<FakeStore>,
}

impl World {
    fn new() -> Self {
        Self { clock: FakeClock::starting_at(START), sink: FakeEventSink::new(8), store: Arc::default() }
    }

    fn run(&self, source: impl TriggerSource) -> (JoinHandle<sas_core::Result<()>>, CancellationToken) {
        self.run_on(Arc::clone(&self.store) as Arc<dyn Store>, source)
    }

    fn run_on(
        &self,
        store: Arc<dyn Store>,
        source: impl TriggerSource,
    ) -> (JoinHandle<sas_core::Result<()>>, CancellationToken) {
        let stop = CancellationToken::new();
        let cx = TriggerCx::new(
            "default/tick",
            Arc::clone(&self.sink) as _,
            store,
            Arc::new(self.clock.clone()),
            stop.clone(),
        );
        (tokio::spawn(async move { source.run(cx).await }), stop)
    }

    /// Seconds after the start at which the events that came say that they were due.
    fn due(&self) -> Vec<i64> {
        self.sink
            .delivered()
            .iter()
            .map(|event| (event.time().unwrap().0 - START.0) / 1_000_000_000)
            .collect()
    }
}

fn cron(expression: &str, policy: SchedulePolicy) -> CronTrigger {
    let schedule = CronSchedule::new(expression, "UTC").expect("a good expression");
    CronTrigger::new(schedule, policy, EventTemplate::new("/clock", "tick"))
}

fn policy(change: impl FnOnce(&mut SchedulePolicy)) -> SchedulePolicy {
    let mut policy = SchedulePolicy::default();
    change(&mut policy);
    policy
}

async fn stop((task, token): (JoinHandle<sas_core::Result<()>>, CancellationToken)) {
    token.cancel();
    task.await.expect("no panic").expect("ended well");
}

#[tokio::test(start_paused = true)]
async fn cron_and_timer_pass_the_suite_for_sources() {
    let report = trigger::suite(async || {
        let source = Arc::new(cron("*/5 * * * * *", SchedulePolicy::default()));
        ((), trigger::Subject::new(source, Duration::from_secs(5)))
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
    let report = trigger::suite(async || {
        let source = TimerTrigger::new(
            Duration::from_secs(2),
            SchedulePolicy::default(),
            EventTemplate::new("/clock", "tick"),
        );
        ((), trigger::Subject::new(Arc::new(source.expect("a good period")), Duration::from_secs(2)))
    })
    .await;
    report.assert_passed_skipping(&[]);
}

#[tokio::test(start_paused = true)]
async fn fires_come_at_their_seconds_and_never_early() {
    let world = World::new();
    let running = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_millis(9_999)).await;
    assert_eq!(world.due(), [] as [i64; 0]);
    tokio::time::sleep(Duration::from_millis(3)).await;
    assert_eq!(world.due(), [10]);
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(world.due(), [10, 20, 30]);
    let event = &world.sink.delivered()[0];
    assert_eq!(event.id(), fire_id("default/tick", START + Duration::from_secs(10)));
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_missed_and_nothing_comes_twice_over_a_restart() {
    let world = World::new();
    let running = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(25)).await;
    stop(running).await;
    // Two fires are due while nobody runs.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let running = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(world.due(), [10, 20, 30, 40, 50]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_fire_that_was_due_before_the_first_ever_run_ended_is_made_after_it() {
    let world = World::new();
    let running = world.run(cron("0 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop(running).await;
    tokio::time::sleep(Duration::from_secs(90)).await;
    let running = world.run(cron("0 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(world.due(), [60]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_long_sleep_the_misfire_policy_decides() {
    for (misfire, expected) in [
        (Misfire::Skip, vec![]),
        (Misfire::FireOnce, vec![3540]),
        (Misfire::CatchUp(3), vec![3420, 3480, 3540]),
        (Misfire::CatchUp(10_000), (1..=59).map(|minute| minute * 60).collect()),
    ] {
        let world = World::new();
        let policy = policy(|policy| policy.misfire = misfire);
        let running = world.run(cron("0 * * * * *", policy));
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop(running).await;
        world.clock.jump_forward(Duration::from_secs(3600 + 28));
        let running = world.run(cron("0 * * * * *", policy));
        tokio::time::sleep(Duration::from_secs(1)).await;
        // The fire of 3600 is 30 seconds late: in time by the limit of a minute.
        let mut expected = expected;
        expected.push(3600);
        let mut due = world.due();
        due.sort_unstable();
        assert_eq!(due, expected, "{misfire:?}");
        stop(running).await;
    }
}

#[tokio::test(start_paused = true)]
async fn catching_up_with_years_is_bounded() {
    let world = World::new();
    let policy = policy(|policy| policy.misfire = Misfire::CatchUp(2));
    let running = world.run(cron("* * * * * *", policy));
    tokio::time::sleep(Duration::from_millis(10)).await;
    world.clock.jump_forward(Duration::from_secs(10 * 365 * 86_400));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let made = world.sink.delivered().len();
    assert!((60..=64).contains(&made), "two of the missed and a minute's: {made}");
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_a_little_repeats_nothing() {
    let world = World::new();
    let running = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(31)).await;
    world.clock.jump_back(Duration::from_secs(20));
    tokio::time::sleep(Duration::from_secs(35)).await;
    assert_eq!(world.due(), [10, 20, 30, 40]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_wrong_by_days_is_believed_again() {
    let world = World::new();
    world.clock.jump_forward(Duration::from_secs(10 * 86_400));
    let running = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.clock.jump_back(Duration::from_secs(10 * 86_400));
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(!world.due().is_empty() && world.due().iter().all(|due| *due < 100), "{:?}", world.due());
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn overlapping_fires_go_by_the_policy() {
    for (overlap, expected) in [
        // Each takes 25 s. At 45 s those of 10 and 20 are through.
        (Overlap::Allow, vec![10, 20]),
        // That of 10 is through at 35; those of 20 and 30 met it.
        (Overlap::Forbid, vec![10]),
        (Overlap::Queue, vec![10]),
        // Each gives up the one before.
        (Overlap::Replace, vec![]),
    ] {
        let world = World::new();
        world.sink.set_delivery_time(Duration::from_secs(25));
        let policy = policy(|policy| policy.overlap = overlap);
        let running = world.run(cron("*/10 * * * * *", policy));
        tokio::time::sleep(Duration::from_millis(45_500)).await;
        assert_eq!(world.due(), expected, "{overlap:?}");
        let offered = match overlap {
            Overlap::Allow | Overlap::Replace => 4,
            // That of 40 began when that of 10 was through; that of 20 did, if it waited.
            _ => 2,
        };
        assert_eq!(world.sink.offered(), offered, "{overlap:?}");
        if overlap == Overlap::Queue {
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert_eq!(world.due(), [10, 20]);
        }
        drop(running);
    }
}

#[tokio::test(start_paused = true)]
async fn jitter_is_added_within_its_bound_and_is_the_same_each_time() {
    let policy = policy(|policy| policy.jitter = Duration::from_secs(5));
    let mut runs = Vec::new();
    for _ in 0..2 {
        let world = World::new();
        let running = world.run(cron("0 * * * * *", policy));
        tokio::time::sleep(Duration::from_millis(59_990)).await;
        assert!(world.due().is_empty());
        let mut came = None;
        for tenth in 0..55 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if came.is_none() && !world.due().is_empty() {
                came = Some(tenth);
            }
        }
        assert_eq!(world.due(), [60]);
        runs.push(came.expect("within five seconds"));
        stop(running).await;
    }
    assert_eq!(runs[0], runs[1]);
}

#[tokio::test(start_paused = true)]
async fn a_fire_that_the_sink_did_not_take_comes_again_with_the_same_id() {
    let world = World::new();
    for _ in 0..3 {
        world.sink.fail_next(ErrorKind::Unavailable);
    }
    let running = world.run(cron("0 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_millis(60_650)).await;
    assert!(world.due().is_empty(), "after 0, 100 and 300 ms it was not taken");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(world.due(), [60]);
    assert_eq!(world.sink.refused()[0].id(), world.sink.delivered()[0].id());
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn another_schedule_of_the_same_name_starts_anew() {
    let world = World::new();
    let running = world.run(cron("0 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(70)).await;
    stop(running).await;
    let running = world.run(cron("*/20 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(world.due(), [60, 80], "not one of the new schedule's past");
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_that_is_cut_off_leaves_its_fire_to_the_next() {
    let world = World::new();
    world.sink.set_delivery_time(Duration::from_secs(5));
    let (task, _) = world.run(cron("0 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(62)).await;
    task.abort();
    let _ = task.await;
    assert!(world.due().is_empty());
    let running = world.run(cron("0 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(world.due(), [60]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn a_fire_goes_on_while_the_store_writes_that_another_one_is_done() {
    let world = World::new();
    world.sink.set_delivery_time(Duration::from_secs(15));
    let store = SlowDisk::new(Arc::clone(&world.store) as _);
    let running = world.run_on(Arc::clone(&store) as _, cron("*/10 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(21)).await;
    store.delay(Duration::from_secs(15));
    // That of 10 is done at 25, which is written at 40; that of 20 is done at 35.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(world.due(), [10, 20]);
    store.delay(Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(5)).await;
    stop(running).await;
    // Both are settled: the next run makes neither again.
    let running = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(world.due(), [10, 20, 30, 40]);
    stop(running).await;
}

#[tokio::test(start_paused = true)]
async fn two_owners_of_one_schedule_are_noticed() {
    let world = World::new();
    let (first, _a) = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    let (second, _b) = world.run(cron("*/10 * * * * *", SchedulePolicy::default()));
    let error = tokio::select! {
        ended = first => ended.expect("no panic").unwrap_err(),
        ended = second => ended.expect("no panic").unwrap_err(),
    };
    assert_eq!(error.kind, ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_schedules_of_every_second_are_never_early_and_hardly_late() {
    let clock = FakeClock::starting_at(START);
    let store: Arc<dyn Store> = Arc::new(FakeStore::default());
    let stop = CancellationToken::new();
    let sink = Arc::new(Lateness { clock: clock.clone(), late: parking_lot::Mutex::default() });
    let mut tasks = tokio::task::JoinSet::new();
    for at in 0..10_000 {
        let cx = TriggerCx::new(
            format!("default/t{at}"),
            Arc::clone(&sink) as _,
            Arc::clone(&store),
            Arc::new(clock.clone()),
            stop.clone(),
        );
        tasks.spawn(async move { cron("* * * * * *", SchedulePolicy::default()).run(cx).await });
    }
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    stop.cancel();
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no panic").expect("ended well");
    }
    let late = sink.late.lock();
    assert_eq!(late.len(), 10_000);
    assert!(late.iter().all(|late| (0..50_000_000).contains(late)), "{:?}", late.iter().max());
}

#[derive(Debug)]
struct Lateness {
    clock: FakeClock,
    late: parking_lot::Mutex<Vec<i64>>,
}

#[async_trait::async_trait]
impl sas_core::EventSink for Lateness {
    async fn ready(&self) -> sas_core::Result<sas_core::Slot> {
        Ok(sas_core::Slot(Box::new(())))
    }
    async fn deliver(&self, _: sas_core::Slot, event: Event) -> sas_core::Result<sas_core::Ack> {
        self.late.lock().push(self.clock.now().0 - event.time().expect("a time").0);
        Ok(sas_core::Ack::Completed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_begins_no_fire_once_another_one_acts_whether_it_heard_of_that_or_not() {
    let world = World::new();
    let owner = "cluster/shard/0000";
    let version = world.store.put(owner, None, "a".into()).await.expect("written");
    let hosts = OneOfSeveral::acting(Guard { key: owner.to_owned(), expected: Some(version) });
    let clock = Arc::new(world.clock.clone());
    let cx = TriggerCx::new(
        "default/tick",
        world.sink.clone() as _,
        world.store.clone(),
        clock,
        Default::default(),
    );
    let cx = cx.with_hosts(Arc::new(hosts));
    let running =
        tokio::spawn(async move { cron("*/10 * * * * *", SchedulePolicy::default()).run(cx).await });
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(world.due(), [10, 20]);
    world.store.put(owner, Some(version), "b".into()).await.expect("taken over");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.due(), [10, 20], "what is due is the next owner's");
    assert_eq!(running.await.expect("no panic").expect_err("refused").kind, ErrorKind::Conflict);
}
