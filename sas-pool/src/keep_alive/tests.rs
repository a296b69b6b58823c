use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use sas_core::{KeepAlivePolicy, RevisionKey, Timestamp};

use super::{Fit, Fixed, Footprint, GreedyDual, Hazard, HazardConfig, HazardTable, HybridHistogram, Tree};
use crate::trace::{Function, replay_keep_alive};

const REVISION: RevisionKey = RevisionKey::new(3, 1);

fn every(minutes: u32, until: u32) -> Function {
    Function::new("timer", until, (0..until).step_by(minutes as usize).map(|minute| (minute, 1)).collect())
}

#[test]
fn a_revision_that_was_never_called_costs_nothing() {
    let mut policies: [Box<dyn KeepAlivePolicy>; 4] = [
        Box::new(Fixed::new(Duration::from_secs(600))),
        Box::new(HybridHistogram::default()),
        Box::new(GreedyDual::new(1 << 30)),
        Box::new(Hazard::default()),
    ];
    for policy in &mut policies {
        policy.forget(REVISION);
        assert_eq!(policy.bytes(), 0, "{policy:?}");
    }
}

#[test]
fn what_is_remembered_of_a_revision_is_bounded_and_forgotten() {
    let mut hazard = Hazard::default();
    let mut histogram = HybridHistogram::default();
    for minute in 0..20_000_i64 {
        let now = Timestamp::from_secs(60 * minute * minute % 9_999_999_999);
        hazard.called(REVISION, now);
        histogram.called(REVISION, now);
    }
    // One revision in a table of the smallest size.
    assert!(hazard.bytes() <= 472 + 8 * 24, "{}", hazard.bytes());
    assert!(histogram.bytes() <= 504 + 8 * 24, "{}", histogram.bytes());
    assert_eq!((Hazard::bytes_per_revision(), HybridHistogram::bytes_per_revision()), (488, 520));
    hazard.forget(REVISION);
    histogram.forget(REVISION);
    assert!(hazard.bytes() <= 8 * 24 && histogram.bytes() <= 8 * 24);
}

#[test]
fn a_timer_sleeps_between_its_calls_and_is_awake_for_each() {
    for period in [15, 30, 60] {
        let timer = every(period, 1_440);
        let score = replay_keep_alive(&mut Hazard::default(), REVISION, &timer);
        let fixed = replay_keep_alive(&mut Fixed::new(Duration::from_secs(60 * 60)), REVISION, &timer);
        assert!(score.cold <= 4, "every {period}: {score:?}");
        assert!(score.waste < fixed.waste / 3, "every {period}: {score:?} against {fixed:?}");
    }
}

#[test]
fn a_busy_function_stays_warm_and_one_that_stopped_does_not() {
    let busy = Function::new("busy", 1_440, (0..400).map(|minute| (minute, 5)).collect());
    let score = replay_keep_alive(&mut Hazard::default(), REVISION, &busy);
    assert_eq!(score.cold, 1);
    assert!(score.waste < 120, "{score:?}");
}

#[test]
fn a_lower_threshold_is_warm_longer_and_cold_less_often() {
    let calls = [3, 9, 40, 44, 45, 90, 130, 133, 200, 260, 262, 300, 410, 415, 500, 640, 650, 700];
    let function = Function::new("irregular", 1_440, calls.map(|minute| (minute, 1)).to_vec());
    let [low, high] = [0.004, 0.05].map(|threshold| {
        let mut policy = Hazard::new(&HazardConfig::with_threshold(threshold)).unwrap();
        replay_keep_alive(&mut policy, REVISION, &function)
    });
    assert!(low.cold < high.cold && low.waste > high.waste, "{low:?} {high:?}");
}

#[test]
fn the_chance_of_a_call_is_highest_when_the_timer_is_due() {
    let mut policy = Hazard::default();
    for call in 0..20 {
        policy.called(REVISION, Timestamp::from_secs(60 * 20 * call));
    }
    let at = |minute: i64| policy.chance(REVISION, Timestamp::from_secs(60 * (19 * 20 + minute)));
    let chances: Vec<f64> = (1..=25).map(|minute| at(minute).unwrap()).collect();
    let due = chances[19];
    assert!(chances.iter().enumerate().all(|(at, &chance)| at == 19 || chance < due / 2.0), "{chances:?}");
    assert_eq!(at(0), None);
    assert_eq!(policy.chance(RevisionKey::new(9, 9), Timestamp(0)), None);
}

#[test]
fn a_fitted_table_keeps_its_trees_and_knows_the_population() {
    let population: Vec<Function> = (0..40).map(|_| every(10, 700)).collect();
    let table = HazardTable::fit(&population, &Fit { trees: 20, ..Fit::default() });
    assert_eq!(HazardTable::of(table.bias(), table.trees().to_vec()), Some(table.clone()));
    let unknown = Tree { signals: [200; 4], levels: [1; 4], leaves: [0; 16] };
    assert_eq!(HazardTable::of(table.bias(), vec![unknown]), None);
    let mut policy = Hazard::with_table(&HazardConfig::default(), table.into()).unwrap();
    let score = replay_keep_alive(&mut policy, REVISION, &every(10, 700));
    assert!(score.cold <= 2 && score.waste <= 40, "{score:?}");
}

#[test]
fn a_week_of_calls_is_as_good_as_a_day() {
    // What was fitted to a day must not go astray on the levels that a longer life reaches.
    for period in [7, 30, 60] {
        let [day, week] = [1, 7].map(|days| {
            let score = replay_keep_alive(&mut Hazard::default(), REVISION, &every(period, days * 1_440));
            (score.cold as f64 / score.active as f64, score.waste as f64 / score.active as f64)
        });
        assert!(week.0 <= day.0 && week.1 <= 1.05 * day.1, "every {period}: {week:?} after {day:?}");
    }
}

#[test]
fn the_cheapest_to_lose_goes_first_and_the_busy_never() {
    let mut cache = GreedyDual::new(400);
    let key = |slot| RevisionKey::new(slot, 0);
    for (slot, bytes, start) in [(0, 100, 400), (1, 100, 100), (2, 200, 400)] {
        cache.measured(key(slot), Footprint { bytes, start: Duration::from_millis(start) });
        cache.called(key(slot), Timestamp(0));
    }
    assert_eq!(cache.held(), 400);
    assert!(cache.make_room(1).is_empty(), "all are busy");
    for slot in 0..3 {
        cache.idle(key(slot), Timestamp(0));
    }
    assert_eq!(cache.make_room(100), [key(1)], "it starts fast");
    // Old priorities age: what is called after an eviction outlives what was not.
    cache.called(key(1), Timestamp(1));
    cache.idle(key(1), Timestamp(1));
    cache.called(key(1), Timestamp(2));
    cache.idle(key(1), Timestamp(2));
    assert_eq!(cache.make_room(200), [key(2)]);
    cache.forget(key(0));
    cache.forget(key(1));
    assert_eq!((cache.held(), cache.make_room(400)), (0, vec![]));
}

#[test]
fn a_value_out_of_its_range_is_refused_by_name() {
    let mut config = HazardConfig::with_threshold(0.0);
    config.lead_seconds = 60;
    let errors = Hazard::new(&config).unwrap_err().to_string();
    assert!(
        errors.contains("threshold") && errors.contains("leadSeconds") && errors.contains("60"),
        "{errors}"
    );
    let errors = HybridHistogram::new(Duration::from_millis(90_500)).unwrap_err().to_string();
    assert!(errors.contains("fallBack") && errors.contains("90.5s"), "{errors}");
}

proptest! {
    // Each case follows thousands of plans.
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_never_lies_in_the_past_and_every_plan_ends(times in vec(any::<i64>(), 1..30)) {
        let mut policies: [Box<dyn KeepAlivePolicy>; 2] =
            [Box::new(HybridHistogram::default()), Box::new(Hazard::default())];
        for &time in &times {
            // Ten years around the epoch, so that plans do not saturate.
            let now = Timestamp(time / 30);
            for policy in &mut policies {
                policy.called(REVISION, now);
                let mut plan = policy.idle(REVISION, now);
                let mut at = now;
                for _ in 0..200 {
                    prop_assert!(plan.sleep_at >= at);
                    if let (Some(wake), Some(until)) = (plan.wake_at, plan.wake_until) {
                        prop_assert!(wake >= plan.sleep_at && until >= wake);
                    }
                    let end = plan.wake_until.unwrap_or(plan.sleep_at);
                    if end <= at {
                        break;
                    }
                    at = end;
                    plan = policy.unused(REVISION, at);
                }
                prop_assert!(plan.sleep_at <= at && plan.wake_at.is_none(), "{plan:?} still at {at:?}");
            }
        }
    }
}
