//! The driver over a pool of pretended instances.

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sas_autoscale::{
    Backlog, BacklogSpec, Combined, CustomMetric, Driver, DriverConfig, Kpa, Measurement, Options,
    default_scalers, replay, what_if,
};
use sas_core::{
    Clamps, Decision, DecisionRecord, DecisionSink, Fidelity, Policy, Reason, RevisionKey, ScaleInput,
    Scaler, ScalingSpec, Timestamp, Verdict,
};
use support::FakePool;
use tokio_util::sync::CancellationToken;

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

fn at(second: u64) -> Timestamp {
    START + Duration::from_secs(second)
}

fn spec() -> ScalingSpec {
    ScalingSpec::default()
}

/// A spec for a quick start: windows of a second or two.
fn quick() -> ScalingSpec {
    let mut spec = spec();
    spec.target = 1.0;
    spec.utilization = 1.0;
    spec.stable_window = Duration::from_secs(2);
    spec.scale_to_zero_grace = Duration::from_secs(1);
    spec
}

fn driver(pool: &Arc<FakePool>) -> Arc<Driver> {
    Driver::new(pool.clone(), default_scalers(), DriverConfig::default())
}

#[test]
fn from_nothing_to_many_and_back_to_nothing_within_a_minute() {
    let pool = FakePool::new(4);
    let revision = pool.add(3, quick(), 1);
    let driver = driver(&pool);
    driver.step(at(0));
    assert_eq!(driver.history(revision).len(), 0, "it sleeps");
    // Five requests come; the pool starts the first instances by itself.
    pool.with(revision, |r| {
        r.queued = 5;
        r.starting = 5;
        r.requests = 5;
        r.concurrency = 2.0;
    });
    driver.step(at(1));
    assert_eq!(pool.desired(revision), 5);
    pool.settle(revision);
    let mut highest = 0;
    for second in 2..20 {
        pool.with(revision, |r| {
            r.queued = 0;
            r.requests = 50;
            r.concurrency = 8.0;
        });
        driver.step(at(second));
        highest = highest.max(pool.settle(revision));
    }
    assert_eq!(highest, 8);
    let mut zero_at = None;
    for second in 20..60 {
        pool.with(revision, |r| {
            r.concurrency = 0.0;
            r.requests = 0;
        });
        driver.step(at(second));
        if pool.settle(revision) == 0 && zero_at.is_none() {
            zero_at = Some(second - 20);
        }
    }
    let zero_at = zero_at.expect("it goes back to sleep");
    assert!(zero_at <= 6, "{zero_at} seconds after the last request");
    let visits = pool.with(revision, |r| r.visits);
    driver.step(at(61));
    driver.step(at(62));
    assert_eq!(pool.with(revision, |r| r.visits), visits, "a sleeping revision is not visited");
    let history = driver.history(revision);
    assert!(history.iter().any(|record| record.decision.clamps.contains(Clamps::ZERO)), "the grace was used");
}

#[test]
fn a_burst_from_0_to_40_is_one_decision() {
    let pool = FakePool::new(1);
    let revision = pool.add(0, spec(), 1);
    let driver = driver(&pool);
    driver.step(at(0));
    pool.with(revision, |r| {
        r.queued = 40;
        r.requests = 40;
        // They came in the last tenth of the second.
        r.concurrency = 4.0;
    });
    driver.step(at(1));
    assert_eq!(pool.with(revision, |r| r.asked.clone()), [40]);
    let history = driver.history(revision);
    assert_eq!(history[0].decision.reason, Reason::Waiting);
    // While they start, and when they are ready, the number stays.
    pool.with(revision, |r| {
        r.starting = 40;
        r.concurrency = 40.0;
        r.requests = 0;
    });
    driver.step(at(2));
    assert!(pool.desired(revision) >= 40);
}

#[test]
fn a_backlog_wakes_as_many_as_it_needs_in_one_decision() {
    let pool = FakePool::new(2);
    let mut spec = spec();
    spec.scaler = "backlog".to_owned();
    let mut backlog = BacklogSpec::default();
    backlog.target = 5.0;
    Options::edit(&mut spec, |options| options.backlog = Some(backlog)).unwrap();
    let revision = pool.add(1, spec, 1);
    let driver = driver(&pool);
    driver.step(at(0));
    driver.report(revision, Measurement::Backlog(200)).unwrap();
    assert_eq!(pool.with(revision, |r| r.asked.clone()), [40], "without waiting for a tick");
}

#[test]
fn a_decision_that_wakes_has_the_next_number_and_stands_in_the_history() {
    let pool = FakePool::new(2);
    let mut spec = quick();
    spec.scaler = "backlog".to_owned();
    let mut backlog = BacklogSpec::default();
    backlog.target = 5.0;
    Options::edit(&mut spec, |options| options.backlog = Some(backlog)).unwrap();
    let revision = pool.add(1, spec, 1);
    let told = Arc::new(Told::default());
    let mut config = DriverConfig::default();
    config.sink = told.clone();
    let driver = Driver::new(pool.clone(), default_scalers(), config);
    let mut second = 0;
    for woken in 1..=2 {
        second += 1;
        driver.step(at(second));
        let before = driver.history(revision).last().map_or(0, |record| record.sequence);
        driver.report(revision, Measurement::Backlog(20 * woken)).unwrap();
        let history = driver.history(revision);
        let record = history.last().expect("it is kept");
        assert_eq!(record.sequence, before + 1);
        assert_eq!((record.previous, record.load.backlog), (Some(0), Some(20 * woken)));
        assert_eq!(record.decision.desired(), Some(4 * woken as u32));
        let stretch = driver.stretch(revision).unwrap();
        assert_eq!(stretch.records, std::slice::from_ref(record), "nothing came before it");
        let again = replay(&Backlog, &stretch).unwrap();
        assert_eq!(again, std::slice::from_ref(&record.decision), "from the state it names");
        // It runs, what waited is done, and it goes back to sleep.
        for _ in 0..60 {
            second += 1;
            pool.settle(revision);
            driver.report(revision, Measurement::Backlog(0)).unwrap();
            driver.step(at(second));
        }
        assert_eq!(pool.desired(revision), 0);
        pool.settle(revision);
    }
    let numbers: Vec<_> = told.0.lock().unwrap().iter().map(|(_, sequence)| *sequence).collect();
    assert!(numbers.len() > 4, "{numbers:?}");
    assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "each number once, in order: {numbers:?}");
}

#[test]
fn a_named_measurement_wakes_above_its_activation_and_is_kept_with_the_decision() {
    let pool = FakePool::new(1);
    let mut spec = quick();
    spec.scaler = "combined".to_owned();
    let mut sessions = CustomMetric::new("sessions", 10.0);
    sessions.activation = 5.0;
    Options::edit(&mut spec, |options| options.custom = vec![sessions]).unwrap();
    let revision = pool.add(0, spec, 1);
    let driver = driver(&pool);
    driver.step(at(0));
    let sessions = |value| Measurement::Named("sessions".to_owned(), value);
    driver.report(revision, sessions(5.0)).unwrap();
    driver.report(revision, Measurement::Named("other".to_owned(), 500.0)).unwrap();
    assert!(pool.with(revision, |r| r.asked.is_empty()), "not above it, and nobody asked for the other");
    driver.report(revision, sessions(35.0)).unwrap();
    assert_eq!(pool.with(revision, |r| r.asked.clone()), [4], "without waiting for a tick");
    pool.settle(revision);
    driver.report(revision, sessions(61.0)).unwrap();
    driver.step(at(1));
    let history = driver.history(revision);
    assert_eq!(history.iter().map(|record| record.sequence).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(
        history.iter().map(|record| record.named.get("sessions")).collect::<Vec<_>>(),
        [Some(35.0), Some(61.0)]
    );
    assert_eq!(history[1].decision.desired(), Some(7));
    let stored = serde_json::to_string(&history).unwrap();
    assert_eq!(serde_json::from_str::<Vec<DecisionRecord>>(&stored).unwrap(), history);
    let stretch = driver.stretch(revision).unwrap();
    let again = replay(&Combined::new(), &stretch).unwrap();
    assert_eq!(again, std::slice::from_ref(&history[1].decision));
    // Nobody reports it any more: it counts no longer, and what runs stays.
    pool.settle(revision);
    driver.step(at(2) + DriverConfig::default().measurement_age);
    let last = driver.history(revision).pop().unwrap();
    assert!(last.named.is_empty());
    assert_eq!((last.decision.verdict, last.decision.reason), (Verdict::Hold, Reason::NoData));
}

#[test]
fn what_is_no_measurement_is_refused_by_name() {
    let pool = FakePool::new(1);
    let driver = driver(&pool);
    let report = |measurement| driver.report(RevisionKey::new(0, 0), measurement).unwrap_err().to_string();
    for value in [f64::NAN, f64::INFINITY, -1.0] {
        let error = report(Measurement::Cpu(value));
        assert!(error.contains("Cpu"), "{error}");
        let error = report(Measurement::Named("sessions".to_owned(), value));
        assert!(error.contains("sessions"), "{error}");
    }
    for name in ["", "two words", &"x".repeat(64)] {
        let error = report(Measurement::Named(name.to_owned(), 1.0));
        assert!(error.contains(&format!("{name:?}")) && error.contains("63"), "{error}");
    }
}

#[test]
fn after_a_restart_under_load_it_is_never_below_what_was_ready() {
    for concurrency in [0.0, 3.0, 70.0, 500.0] {
        let pool = FakePool::new(1);
        let revision = pool.add(0, spec(), 0);
        pool.with(revision, |r| {
            r.ready = 7;
            r.concurrency = concurrency;
            r.requests = 10;
        });
        let driver = driver(&pool);
        for second in 0..60 {
            driver.step(at(second));
            assert!(pool.desired(revision) >= 7, "second {second}, concurrency {concurrency}");
        }
        for second in 60..300 {
            driver.step(at(second));
            pool.settle(revision);
        }
        if concurrency == 0.0 {
            assert_eq!(pool.desired(revision), 0, "after a stable window it may sleep");
        }
    }
}

/// Panics when asked about the revision in slot 1.
#[derive(Debug, Default)]
struct Fragile {
    kpa: Kpa,
}

impl Policy for Fragile {
    type State = sas_autoscale::KpaState;
    fn name(&self) -> &'static str {
        "fragile"
    }
    fn decide(&self, state: &mut Self::State, input: &ScaleInput<'_>) -> Decision {
        assert!(
            input.load.revision.slot() != 1 || input.load.concurrency < 50.0,
            "no such load was foreseen"
        );
        self.kpa.decide(state, input)
    }
}

#[test]
fn a_scaler_that_panics_costs_its_revision_the_tick_and_nobody_else_anything() {
    let pool = FakePool::new(1);
    let mut spec = quick();
    spec.scaler = "fragile".to_owned();
    spec.target = 10.0;
    let keys: Vec<_> = (0..3).map(|slot| pool.add(slot, spec.clone(), 0)).collect();
    let driver = Driver::new(
        pool.clone(),
        vec![Arc::new(Fragile::default()) as Arc<dyn Scaler>],
        DriverConfig::default(),
    );
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for second in 0..10 {
        for key in &keys {
            pool.with(*key, |r| {
                r.ready = 2;
                r.concurrency = if second < 5 { 20.0 } else { 60.0 };
            });
        }
        driver.step(at(second));
    }
    std::panic::set_hook(hook);
    assert_eq!([0, 1, 2].map(|at| pool.desired(keys[at])), [6, 2, 6], "the second keeps its last decision");
    let last = driver.history(keys[1]).pop().unwrap();
    assert_eq!((last.decision.verdict, last.decision.reason), (Verdict::Hold, Reason::ScalerFailed));
    // And its stretch replays all the same.
    let stretch = driver.stretch(keys[1]).unwrap();
    let again = replay(&Fragile::default(), &stretch).unwrap();
    assert_eq!(again, stretch.records.iter().map(|record| record.decision.clone()).collect::<Vec<_>>());
}

/// A load that moves: up, down, pauses, from a fixed rule.
fn wave(second: u64) -> (f64, u32) {
    let x = second as f64;
    let concurrency = (40.0 + 35.0 * (x / 17.0).sin() + if second % 61 < 3 { 120.0 } else { 0.0 }).max(0.0);
    let requests = (second * 7 % 90) as u32;
    (concurrency, requests)
}

#[test]
fn any_kept_stretch_replays_bit_for_bit() {
    for preset in [Fidelity::Corrected, Fidelity::Exact] {
        for scaler in ["kpa", "rps", "forecast", "combined"] {
            let pool = FakePool::new(1);
            let mut spec = spec();
            spec.fidelity = preset;
            spec.scaler = scaler.to_owned();
            spec.target = 10.0;
            spec.scale_down_delay = Duration::from_secs(7);
            Options::edit(&mut spec, |options| {
                options.metrics = vec![
                    sas_autoscale::MetricSpec::new(sas_core::Metric::Concurrency, None),
                    sas_autoscale::MetricSpec::new(
                        sas_core::Metric::Cpu,
                        Some(sas_autoscale::MetricTarget::Average(0.5)),
                    ),
                ]
            })
            .unwrap();
            let revision = pool.add(0, spec, 0);
            let mut config = DriverConfig::default();
            config.history = 50;
            let driver = Driver::new(pool.clone(), default_scalers(), config);
            let mut now = START;
            for second in 0..400 {
                let (concurrency, requests) = wave(second);
                pool.with(revision, |r| {
                    r.concurrency = concurrency;
                    r.requests = requests;
                    r.cpu = (second % 5 > 0).then_some(concurrency / 50.0);
                    r.ready = r.desired.max(1);
                });
                // Ticks come early and late, and one in a while not at all.
                now = now + Duration::from_millis([1000, 1013, 987, 1000, 2000][(second % 5) as usize]);
                driver.step(now);
                if second % 37 == 36 {
                    let stretch = driver.stretch(revision).unwrap();
                    assert!((20..=50).contains(&stretch.records.len()) || second < 60);
                    let made: Vec<_> = stretch.records.iter().map(|record| record.decision.clone()).collect();
                    let scaler = driver.scaler(scaler).unwrap();
                    assert_eq!(replay(&*scaler, &stretch).unwrap(), made);
                    // Also through its serialised form.
                    let text = serde_json::to_string(&stretch).unwrap();
                    let back: sas_autoscale::Stretch = serde_json::from_str(&text).unwrap();
                    assert_eq!(replay(&*scaler, &back).unwrap(), made, "{text}");
                }
            }
        }
    }
}

#[test]
fn what_if_answers_for_another_configuration() {
    let pool = FakePool::new(1);
    let mut configured = spec();
    configured.target = 10.0;
    let revision = pool.add(0, configured.clone(), 0);
    let driver = driver(&pool);
    for second in 0..100 {
        pool.with(revision, |r| {
            r.ready = r.desired.max(1);
            r.concurrency = 70.0;
            r.requests = 70;
        });
        driver.step(at(second));
    }
    let stretch = driver.stretch(revision).unwrap();
    configured.target = 20.0;
    let half = what_if(&Kpa::default(), &stretch, &configured).unwrap();
    assert_eq!(stretch.records.last().unwrap().decision.desired(), Some(10));
    assert_eq!(half.last().unwrap().desired(), Some(5));
    configured.target = f64::NAN;
    let error = what_if(&Kpa::default(), &stretch, &configured).unwrap_err();
    assert!(error.to_string().contains("target"), "{error}");
}

#[test]
fn a_stretch_is_not_replayed_by_another_scaler() {
    let pool = FakePool::new(1);
    let revision = pool.add(0, spec(), 0);
    pool.with(revision, |r| r.ready = 1);
    let driver = driver(&pool);
    driver.step(at(0));
    let stretch = driver.stretch(revision).unwrap();
    assert!(replay(&Kpa::rps(), &stretch).unwrap_err().to_string().contains("kpa"));
}

#[derive(Debug, Default)]
struct Told(Mutex<Vec<(RevisionKey, u64)>>);

impl DecisionSink for Told {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        self.0.lock().unwrap().push((revision, record.sequence));
    }
}

#[tokio::test(start_paused = true)]
async fn the_active_set_is_spread_over_the_tick() {
    let pool = FakePool::new(8);
    let keys: Vec<_> = (0..8).map(|slot| pool.add(slot, spec(), 0)).collect();
    for key in &keys {
        pool.with(*key, |r| r.ready = 1);
    }
    let told = Arc::new(Told::default());
    let mut config = DriverConfig::default();
    config.sink = told.clone();
    let driver = Driver::new(pool, default_scalers(), config);
    let stop = CancellationToken::new();
    let running = tokio::spawn({
        let stop = stop.clone();
        async move { driver.run(stop).await }
    });
    tokio::time::sleep(Duration::from_millis(450)).await;
    assert_eq!(told.0.lock().unwrap().len(), 4, "half of the shards in half of the tick");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let counts = keys.iter().map(|key| told.0.lock().unwrap().iter().filter(|(told, _)| told == key).count());
    for count in counts {
        assert!((10..=11).contains(&count), "each revision once per tick, not {count} times in ten");
    }
    stop.cancel();
    running.await.unwrap();
}

#[test]
fn a_revision_whose_scaler_is_missing_is_left_alone_and_counted() {
    let pool = FakePool::new(1);
    let mut lost = spec();
    lost.scaler = "predictive".to_owned();
    let driver = driver(&pool);
    let errors = driver.scalers().validate(&lost).unwrap_err();
    assert_eq!(errors.0[0].field, "scaler");
    assert!(errors.to_string().contains("kpa"), "{errors}");
    let revision = pool.add(0, lost, 0);
    pool.with(revision, |r| r.ready = 3);
    for second in 0..5 {
        driver.step(at(second));
    }
    assert!(pool.with(revision, |r| r.asked.is_empty()));
}

#[test]
fn histories_are_bounded_per_revision_and_in_all() {
    let pool = FakePool::new(1);
    let keys: Vec<_> = (0..20).map(|slot| pool.add(slot, spec(), 0)).collect();
    for key in &keys {
        pool.with(*key, |r| {
            r.ready = 1;
            r.concurrency = 1.0;
        });
    }
    let mut config = DriverConfig::default();
    config.history = 10;
    config.history_revisions = 5;
    let driver = Driver::new(pool, default_scalers(), config);
    for second in 0..100 {
        driver.step(at(second));
    }
    let lengths: Vec<_> = keys.iter().map(|key| driver.history(*key).len()).collect();
    assert_eq!(lengths.iter().filter(|length| **length > 0).count(), 5);
    assert!(lengths.iter().all(|length| *length <= 10), "{lengths:?}");
}

#[test]
fn a_clock_that_jumps_changes_nothing_of_a_steady_revision() {
    let pool = FakePool::new(1);
    let mut configured = spec();
    configured.target = 10.0;
    let revision = pool.add(0, configured, 0);
    pool.with(revision, |r| r.ready = 1);
    let driver = driver(&pool);
    let mut now = START;
    for second in 0..300_u64 {
        pool.with(revision, |r| {
            r.concurrency = 70.0;
            r.requests = 70;
        });
        now = now + Duration::from_secs(1);
        let jumped = match second {
            100 => now + Duration::from_secs(86_400),
            150 => Timestamp(now.0 - 3_600_000_000_000),
            200 => Timestamp(i64::MAX),
            250 => Timestamp(0),
            _ => now,
        };
        driver.step(jumped);
        pool.settle(revision);
        if second > 20 {
            assert_eq!(pool.desired(revision), 10, "second {second}");
        }
    }
}

/// Says nothing about the second half of its inputs.
#[derive(Debug)]
struct Lazy(AtomicBool);

impl Scaler for Lazy {
    fn name(&self) -> &'static str {
        "kpa"
    }
    fn new_states(&self) -> Box<dyn std::any::Any + Send> {
        Box::new(())
    }
    fn tick(&self, _: &mut (dyn std::any::Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>) {
        self.0.store(true, Ordering::Relaxed);
        out.extend(batch.iter().take(batch.len() / 2).map(|_| Decision::set(3, Reason::Stable)));
    }
    fn retire(&self, _: &mut (dyn std::any::Any + Send), _: u32) {}
    fn checkpoint(&self, _: &(dyn std::any::Any + Send), _: u32) -> Option<serde_json::Value> {
        None
    }
    fn restore(
        &self,
        _: &mut (dyn std::any::Any + Send),
        _: u32,
        _: serde_json::Value,
    ) -> sas_core::Result<()> {
        Ok(())
    }
}

#[test]
fn a_scaler_that_answers_for_half_of_its_inputs_holds_the_rest() {
    let pool = FakePool::new(1);
    let keys: Vec<_> = (0..4).map(|slot| pool.add(slot, spec(), 0)).collect();
    for key in &keys {
        pool.with(*key, |r| r.ready = 1);
    }
    let driver = Driver::new(
        pool.clone(),
        vec![Arc::new(Lazy(AtomicBool::new(false))) as Arc<dyn Scaler>],
        DriverConfig::default(),
    );
    driver.step(at(0));
    driver.step(at(1));
    assert_eq!(pool.desired(keys[0]), 3);
    assert_eq!(pool.desired(keys[3]), 1, "what was ready at the restart");
    assert_eq!(driver.history(keys[3])[1].decision.reason, Reason::ScalerFailed);
}

#[test]
fn a_configuration_out_of_bounds_is_told_with_its_field() {
    let mut config = DriverConfig::default();
    config.tick = Duration::ZERO;
    config.history = 1_000_000;
    let errors = config.validate().unwrap_err();
    let fields: Vec<_> = errors.0.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(fields, ["tick", "history"]);
    assert!(DriverConfig::default().validate().is_ok());
}

/// Fires once, at a given second.
#[derive(Debug)]
struct Once(Timestamp);

impl sas_core::Schedule for Once {
    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        (self.0 > after).then_some(self.0)
    }
}

#[test]
fn a_sleeping_revision_with_a_schedule_is_woken_when_its_floor_opens_and_sleeps_again_after() {
    let pool = FakePool::new(2);
    let mut scheduled = quick();
    scheduled.scaler = "scheduled".to_owned();
    Options::edit(&mut scheduled, |options| {
        options.schedule = vec![sas_autoscale::ScheduleWindow::floor("at 100", Duration::from_secs(20), 3)]
    })
    .unwrap();
    let revision = pool.add(0, scheduled, 1);
    let parser =
        sas_autoscale::ScheduleParser::new(|_, _| Ok(Arc::new(Once(at(100))) as Arc<dyn sas_core::Schedule>));
    let driver =
        Driver::new(pool.clone(), sas_autoscale::scalers_with_schedules(parser), DriverConfig::default());
    // A call, so that it is known; then it goes to sleep.
    pool.with(revision, |r| r.ready = 1);
    let mut ready_at = Vec::new();
    for second in 0..160 {
        driver.step(at(second));
        ready_at.push(pool.settle(revision));
    }
    assert_eq!(ready_at[60..100], [0; 40], "asleep");
    assert_eq!(ready_at[100..119], [3; 19], "woken without a request");
    assert_eq!(*ready_at.last().unwrap(), 0, "asleep again");
    let visits = pool.with(revision, |r| r.visits);
    assert!(visits < 60, "while it slept the pool was not asked about it: {visits}");
}

#[test]
fn a_sleeping_revision_with_a_forecast_is_woken_before_its_peak() {
    let pool = FakePool::new(1);
    let mut forecast = quick();
    forecast.scaler = "forecast".to_owned();
    let mut seasonal = sas_autoscale::ForecastSpec::default();
    seasonal.slot = Duration::from_secs(10);
    seasonal.season = 12;
    seasonal.lead = Duration::from_secs(3);
    seasonal.headroom = 0.0;
    Options::edit(&mut forecast, |options| options.forecast = Some(seasonal)).unwrap();
    let revision = pool.add(0, forecast, 1);
    let driver = driver(&pool);
    // Every two minutes, on the minute by this clock, four requests at once for ten seconds.
    let mut ready_before_peak = Vec::new();
    for second in 0..1200_u64 {
        let peak = (START.as_secs() as u64 + second) % 120 < 10;
        pool.with(revision, |r| {
            r.concurrency = if peak { 4.0 } else { 0.0 };
            r.requests = if peak { 8 } else { 0 };
            r.queued = if peak && r.ready == 0 { 4 } else { 0 };
        });
        if (START.as_secs() as u64 + second).is_multiple_of(120) {
            ready_before_peak.push(pool.with(revision, |r| r.ready));
        }
        driver.step(at(second));
        pool.settle(revision);
    }
    assert_eq!(ready_before_peak[1], 0, "nothing is known yet: {ready_before_peak:?}");
    assert!(
        ready_before_peak[5..].iter().all(|ready| *ready > 0),
        "ready before the first request of each later peak: {ready_before_peak:?}"
    );
}
