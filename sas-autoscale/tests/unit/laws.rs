//! What holds for every scaler on any trace.
//!
//! `SAS_TRACES=1000000 cargo test --release -p sas-autoscale --lib laws` is the long run; without the variable a
//! short one is made.

use std::{sync::Arc, time::Duration};

use super::knative::MultiScaler;
use crate::{BacklogSpec, Combine, Fallback, ForecastSpec, MetricSpec, MetricTarget, Options};
use crate::{default_scalers, govern::Governor, window::Window};
use proptest::prelude::*;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use sas_core::{
    Aggregation, Clamps, Decision, Fidelity, Load, Metric, RevisionKey, ScaleInput, Scaler, ScalingSpec,
    Timestamp, Verdict,
};

fn traces() -> u32 {
    match std::env::var("SAS_TRACES") {
        Ok(count) => count.parse().expect("SAS_TRACES is a number of traces"),
        Err(_) => 400,
    }
}

fn any_spec(random: &mut SmallRng) -> ScalingSpec {
    let mut spec = ScalingSpec::default();
    spec.fidelity = if random.random_bool(0.5) { Fidelity::Corrected } else { Fidelity::Exact };
    spec.max = random.random_range(0..60);
    spec.min =
        if spec.max == 0 { random.random_range(0..4) } else { random.random_range(0..=spec.max.min(4)) };
    spec.initial = random.random_range(0..6);
    spec.target = [0.01, 1.0, 70.0, 1e9][random.random_range(0..4)];
    spec.stable_window = Duration::from_secs(random.random_range(6..70));
    spec.panic_window_percentage = random.random_range(1.0..=100.0);
    spec.max_scale_up_rate = [1.01, 10.0, 1e9][random.random_range(0..3)];
    spec.max_scale_down_rate = [1.01, 2.0, 1e9][random.random_range(0..3)];
    spec.scale_down_delay = Duration::from_secs([0, 0, 5, 40][random.random_range(0..4)]);
    spec.scale_to_zero_grace = Duration::from_secs(random.random_range(0..20));
    spec.target_burst_capacity = [-1.0, 0.0, 211.0][random.random_range(0..3)];
    spec.aggregation = [Aggregation::Linear, Aggregation::WeightedExponential][random.random_range(0..2)];
    Options::edit(&mut spec, |options| {
        options.combine = [Combine::Max, Combine::Priority][random.random_range(0..2)]
    })
    .unwrap();
    Options::edit(&mut spec, |options| {
        options.metrics = vec![
            MetricSpec::new(Metric::Rps, Some(MetricTarget::Average(50.0))),
            MetricSpec::new(Metric::Cpu, Some(MetricTarget::Average(0.5))),
            MetricSpec::new(Metric::Backlog, None),
            MetricSpec::new(Metric::Forecast, None),
        ]
    })
    .unwrap();
    let mut backlog = BacklogSpec::default();
    backlog.fallback = random.random_bool(0.5).then(|| Fallback::new(3, 4));
    Options::edit(&mut spec, |options| options.backlog = Some(backlog)).unwrap();
    let mut forecast = ForecastSpec::default();
    forecast.slot = Duration::from_secs(2);
    forecast.season = 10;
    Options::edit(&mut spec, |options| options.forecast = Some(forecast)).unwrap();
    spec
}

/// Anything that a pool, or a broken one, may say.
fn any_load(random: &mut SmallRng) -> Load {
    let mut load = Load::idle(RevisionKey::new(0, 0));
    load.concurrency = match random.random_range(0..14) {
        0 => f64::NAN,
        1 => f64::INFINITY,
        2 => -5.0,
        3 => 1e300,
        4..7 => 0.0,
        _ => random.random_range(0.0..300.0),
    };
    load.requests = if random.random_bool(0.05) { u32::MAX } else { random.random_range(0..500) };
    load.ready = if random.random_bool(0.02) { u32::MAX } else { random.random_range(0..40) };
    load.starting = if random.random_bool(0.02) { u32::MAX } else { random.random_range(0..10) };
    load.queued = if random.random_bool(0.02) { u32::MAX } else { random.random_range(0..20) };
    load.cpu = random.random_bool(0.7).then(|| [f64::NAN, -1.0, 0.1, 0.7, 1e18][random.random_range(0..5)]);
    load.memory = random.random_bool(0.5).then_some(1e9);
    load.backlog = random.random_bool(0.6).then(|| [0, 3, 1_000, u64::MAX][random.random_range(0..4)]);
    load.start_time = random.random_bool(0.5).then(|| Duration::from_secs(random.random_range(0..900)));
    load
}

struct Run<'a> {
    spec: &'a ScalingSpec,
    scaler: &'a dyn Scaler,
    states: Box<dyn std::any::Any + Send>,
    governor: Option<Governor>,
    desired: Option<u32>,
}

impl<'a> Run<'a> {
    fn new(spec: &'a ScalingSpec, scaler: &'a dyn Scaler) -> Self {
        Self { spec, scaler, states: scaler.new_states(), governor: None, desired: None }
    }

    fn tick(&mut self, now: Timestamp, elapsed: Duration, load: &Load) -> Decision {
        let input = ScaleInput::new(0, now, self.spec, load, self.desired).over(elapsed).of(3, None);
        let mut out = Vec::new();
        self.scaler.tick(&mut *self.states, &[input], &mut out);
        let mut decision = out.pop().expect("one decision");
        let governor = self.governor.get_or_insert_with(|| Governor::new(self.spec, load, false, false));
        governor.apply(&input, &mut decision);
        self.desired = decision.desired().or(self.desired);
        decision
    }
}

fn check_trace(scaler: &dyn Scaler, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let spec = any_spec(&mut random);
    spec.validate().unwrap_or_else(|errors| panic!("seed {seed}: {errors}"));
    let (mut one, mut other) = (Run::new(&spec, scaler), Run::new(&spec, scaler));
    let mut now = Timestamp::from_secs(1_700_000_000);
    for tick in 0..40 {
        let elapsed =
            Duration::from_millis([1000, 1000, 1000, 0, 300, 7_000, 90_000_000][random.random_range(0..7)]);
        // The wall clock may say anything.
        now = match random.random_range(0..30) {
            0 => Timestamp(i64::MAX),
            1 => Timestamp(i64::MIN),
            2 => Timestamp(0),
            _ => now + elapsed,
        };
        let load = any_load(&mut random);
        let decision = one.tick(now, elapsed, &load);
        let context = || format!("{} seed {seed} tick {tick}: {decision:?} for {load:?}", scaler.name());
        assert_eq!(decision, other.tick(now, elapsed, &load), "not deterministic: {}", context());
        for vote in &decision.votes {
            assert!(!vote.target.is_nan(), "{}", context());
        }
        if let Verdict::Set(desired) = decision.verdict {
            assert!(desired <= i32::MAX as u32, "{}", context());
            let initial = decision.clamps.contains(Clamps::INITIAL) || spec.fidelity == Fidelity::Exact;
            // Until the initial scale was reached it may be above the maximum; that is Knative's rule.
            let most = if spec.max == 0 { u32::MAX } else { spec.max };
            let most = if initial { most.max(spec.initial) } else { most };
            assert!(desired <= most, "above its maximum: {}", context());
            let first_replicas = spec.fidelity == Fidelity::Exact;
            assert!(desired >= spec.min || first_replicas, "below its minimum: {}", context());
        }
    }
}

#[test]
fn every_scaler_stays_within_bounds_and_is_deterministic_on_any_trace() {
    let scalers: Vec<Arc<dyn Scaler>> = default_scalers();
    let each = traces().div_ceil(scalers.len() as u32);
    for scaler in &scalers {
        for seed in 0..u64::from(each) {
            check_trace(&**scaler, seed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// With all else equal, more load on every tick never asks for less in the end.
    #[test]
    fn the_kpa_is_monotone_in_load(samples in prop::collection::vec(0.0..500.0_f64, 1..80), more in 1.0..5.0_f64) {
        let spec = crate::kpa::DeciderSpec::for_target(7.0, 10.0);
        let second = crate::window::SECOND;
        let run = |factor: f64| {
            let mut windows = [60, 6].map(|length| Window::new(length * second, second, Aggregation::Linear));
            let mut scaler = MultiScaler::new(&spec, 0, crate::kpa::Ready::Count(5));
            for (at, sample) in samples.iter().enumerate() {
                let now = (1_700_000_000 + at as i64) * second;
                for window in &mut windows {
                    window.record(now, sample * factor);
                }
                let averages = crate::kpa::Averages {
                    stable: windows[0].average(now),
                    panic: windows[1].average(now),
                };
                scaler.tick(&spec, now, crate::kpa::Ready::Count(5), Some(averages));
            }
            scaler.desired()
        };
        prop_assert!(run(more) >= run(1.0));
    }

    /// Samples in any order, with any times: never NaN, never negative beyond rounding, never above the highest sum.
    #[test]
    fn a_window_never_leaves_the_range_of_its_samples(
        samples in prop::collection::vec((0_i64..200, 0.0..1e6_f64), 1..120),
        weighted: bool,
    ) {
        let second = crate::window::SECOND;
        let aggregation = if weighted { Aggregation::WeightedExponential } else { Aggregation::Linear };
        let mut window = Window::new(10 * second, second, aggregation);
        let mut sum = 0.0;
        for (at, value) in &samples {
            window.record(at * second, *value);
            sum += value;
            for now in [*at, at + 3, at - 5, at + 50] {
                let average = window.average(now * second);
                prop_assert!(average.is_finite());
                prop_assert!(average >= -1e-3 && average <= sum + 1e-3, "{average} of {sum}");
            }
        }
    }
}
