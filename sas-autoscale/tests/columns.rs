//! The scaler with its state in columns against the scalar code: equal in every bit of every decision.

use std::time::Duration;

use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use sas_autoscale::{Kpa, KpaColumns};
use sas_core::{
    Aggregation, Decision, Fidelity, Load, Metric, RevisionKey, ScaleInput, Scaler, ScalingSpec, Timestamp,
};

fn some_spec(random: &mut SmallRng) -> ScalingSpec {
    let mut spec = ScalingSpec::default();
    spec.target = [1.0, 10.0, 100.0, 0.3][random.random_range(0..4)];
    spec.utilization = [0.7, 1.0, 0.55][random.random_range(0..3)];
    spec.stable_window = Duration::from_secs([1, 2, 6, 20, 60][random.random_range(0..5)]);
    spec.panic_window_percentage = [10.0, 25.0, 100.0][random.random_range(0..3)];
    spec.panic_threshold_percentage = [110.0, 200.0][random.random_range(0..2)];
    spec.activation = [0, 0, 5][random.random_range(0..3)];
    spec.max_scale_up_rate = [1000.0, 1.5][random.random_range(0..2)];
    spec.max_scale_down_rate = [2.0, 1.1][random.random_range(0..2)];
    spec.target_burst_capacity = [211.0, 0.0, -1.0, 70.5][random.random_range(0..4)];
    spec.metric = [Metric::Concurrency, Metric::Rps][random.random_range(0..2)];
    if random.random_bool(0.25) {
        spec.aggregation = Aggregation::WeightedExponential;
    }
    if random.random_bool(0.25) {
        spec.scale_down_delay = Duration::from_secs([1, 9, 45, 90, 200][random.random_range(0..5)]);
    }
    if random.random_bool(0.15) {
        spec.fidelity = Fidelity::Exact;
    }
    spec
}

fn some_load(random: &mut SmallRng, row: u32, wanted: u32) -> Load {
    let mut load = Load::idle(RevisionKey::new(row, 0));
    load.concurrency = match random.random_range(0..12) {
        0 | 1 => 0.0,
        2 => random.random_range(0.0..2000.0),
        3 if random.random_bool(0.02) => f64::NAN,
        // More than columns take, and for small targets more instances than they count.
        4 if random.random_bool(0.01) => 3e9,
        5 if random.random_bool(0.01) => 7e8,
        _ => random.random_range(0.0..30.0),
    };
    load.requests = if random.random_bool(0.001) { u32::MAX } else { random.random_range(0..200) };
    load.ready = if random.random_bool(0.7) { wanted.min(500) } else { random.random_range(0..30) };
    load.starting = if random.random_bool(0.2) { random.random_range(0..9) } else { 0 };
    load.queued = if random.random_bool(0.2) { random.random_range(0..90) } else { 0 };
    load
}

/// Of a window that is full it does not matter when it began.
fn without_first_write(mut state: serde_json::Value) -> serde_json::Value {
    for window in state["windows"].as_array_mut().into_iter().flatten() {
        let span = window["window"].as_i64().unwrap_or(0) - 1_000_000_000;
        let (first, last) = (window["first_write"].as_i64(), window["last_write"].as_i64());
        if first.zip(last).is_some_and(|(first, last)| last - first >= span) {
            window["first_write"] = serde_json::Value::Null;
        }
    }
    state
}

/// Drives both over the same trace: rows come and go, ticks come early, late and not at all, batches are shuffled.
fn compare(seed: u64, ticks: u32) {
    let mut random = SmallRng::seed_from_u64(seed);
    let rows = [40, 150][random.random_range(0..2)];
    let rows = random.random_range(1..rows);
    // Whole blocks of one configuration, or a mixture; in the order of the rows, or in any.
    let (sharing, shuffled, missing) = (
        [0.6, 1.0][random.random_range(0..2)],
        random.random_bool(0.3),
        [0.1, 0.0][random.random_range(0..2)],
    );
    let mut specs = vec![some_spec(&mut random)];
    let spec_of: Vec<usize> = (0..rows)
        .map(|_| {
            if !random.random_bool(sharing) {
                specs.push(some_spec(&mut random));
                return specs.len() - 1;
            }
            0
        })
        .collect();
    let (scalar, columns) = (Kpa::default(), KpaColumns::default());
    let mut states = (Scaler::new_states(&scalar), columns.new_states());
    let mut now = Timestamp::from_secs(1_700_000_000);
    let mut desired: Vec<Option<u32>> = vec![None; rows as usize];
    for tick in 0..ticks {
        let elapsed = Duration::from_millis(match random.random_range(0..20) {
            0 => random.random_range(0..400),
            1 => random.random_range(1500..9000),
            2..6 => random.random_range(900..1100),
            _ => 1000,
        });
        now = now + elapsed;
        let mut loads: Vec<Load> = Vec::new();
        for row in 0..rows {
            if !random.random_bool(missing) {
                loads.push(some_load(&mut random, row, desired[row as usize].unwrap_or(0)));
            }
        }
        if shuffled {
            for at in (1..loads.len()).rev() {
                loads.swap(at, random.random_range(0..=at));
            }
        }
        let batch: Vec<ScaleInput<'_>> = loads
            .iter()
            .map(|load| {
                let row = load.revision.slot();
                ScaleInput::new(row, now, &specs[spec_of[row as usize]], load, desired[row as usize])
                    .over(elapsed)
                    .of(row % 3, None)
            })
            .collect();
        let (mut one, mut other) = (Vec::new(), Vec::new());
        Scaler::tick(&scalar, &mut *states.0, &batch, &mut one);
        columns.tick(&mut *states.1, &batch, &mut other);
        for (at, input) in batch.iter().enumerate() {
            assert_eq!(one[at], other[at], "seed {seed}, tick {tick}, row {}", input.row);
            desired[input.row as usize] = one[at].desired().or(desired[input.row as usize]);
        }
        if random.random_bool(0.05) {
            let row = random.random_range(0..rows);
            Scaler::retire(&scalar, &mut *states.0, row);
            columns.retire(&mut *states.1, row);
        }
        if random.random_bool(0.02) {
            let row = random.random_range(0..rows);
            // Either goes on with the other's state.
            let (mine, theirs) =
                (Scaler::checkpoint(&scalar, &*states.0, row), columns.checkpoint(&*states.1, row));
            assert_eq!(mine.is_some(), theirs.is_some(), "seed {seed}, tick {tick}, row {row}");
            if let Some((mine, theirs)) = mine.zip(theirs) {
                columns.restore(&mut *states.1, row, mine).unwrap();
                Scaler::restore(&scalar, &mut *states.0, row, theirs).unwrap();
            }
        }
    }
    for row in 0..rows {
        let states = (Scaler::checkpoint(&scalar, &*states.0, row), columns.checkpoint(&*states.1, row));
        let states = (states.0.map(without_first_write), states.1.map(without_first_write));
        assert_eq!(states.0, states.1, "seed {seed}, row {row}: what is remembered");
    }
}

#[test]
fn columns_decide_as_the_scalar_code_on_fixed_traces() {
    for seed in 0..16 {
        compare(seed, 100);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn columns_decide_as_the_scalar_code_on_any_trace(seed: u64) {
        compare(seed, 80);
    }
}

#[test]
fn a_row_that_changes_its_configuration_goes_on_as_the_scalar_code_does() {
    let (scalar, columns) = (Kpa::default(), KpaColumns::default());
    let mut states = (Scaler::new_states(&scalar), columns.new_states());
    let mut specs = [ScalingSpec::default(), ScalingSpec::default()];
    specs[0].target = 10.0;
    specs[1].target = 3.0;
    specs[1].stable_window = Duration::from_secs(12);
    for tick in 0..200_u32 {
        let spec = &specs[(tick / 50 % 2) as usize];
        let mut load = Load::idle(RevisionKey::new(0, 0));
        load.concurrency = f64::from(tick % 31);
        load.ready = 4;
        let now = Timestamp::from_secs(1_700_000_000 + i64::from(tick));
        let input = [ScaleInput::new(0, now, spec, &load, Some(4))];
        let (mut one, mut other): (Vec<Decision>, Vec<Decision>) = (Vec::new(), Vec::new());
        Scaler::tick(&scalar, &mut *states.0, &input, &mut one);
        columns.tick(&mut *states.1, &input, &mut other);
        assert_eq!(one, other, "tick {tick}");
    }
}
