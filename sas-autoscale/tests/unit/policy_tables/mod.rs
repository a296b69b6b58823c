//! Pure policies against naive models of them, and tables of their edges.

mod forecast;

use std::{sync::Arc, time::Duration};

use crate::{
    Combine, ForecastSpec, MetricSpec, MetricTarget, Options, ResourceSpec, ScalingPolicy, ScalingRules,
    ScheduleWindow, SelectPolicy,
};
use crate::{
    Combined, Forecast, ForecastState, Kpa, Resource, ScheduleParser, forecast::Forecaster,
    forecast::Seasonal, govern::Governor, resource::InstanceMetrics, resource::replicas_of,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use sas_core::{
    Clamps, Decision, Load, Metric, Policy, Reason, Resources, RevisionKey, ScaleInput, ScalingSpec,
    Schedule, Timestamp,
};

use forecast::{quarter_hours, slot};

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

fn load(ready: u32) -> Load {
    let mut load = Load::idle(RevisionKey::new(0, 0));
    load.ready = ready;
    load
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-9 * a.abs().max(b.abs()).max(1.0)
}

/// What Kubernetes' documents say of `desiredReplicas`, with the instances one by one.
fn naive_replicas(metrics: &InstanceMetrics, current: u32, tolerance: f64) -> Option<u32> {
    if metrics.measured == 0 || !metrics.ratio.is_finite() || metrics.ratio < 0.0 {
        return None;
    }
    let within = |ratio: f64| (1.0 - ratio).abs() <= tolerance;
    let mut values = vec![metrics.ratio; metrics.measured as usize];
    let (up, down) = (metrics.ratio > 1.0, metrics.ratio < 1.0);
    let mut assumed = false;
    if metrics.missing > 0 {
        assumed = true;
        let counts = if down { metrics.missing_counts_as } else { 0.0 };
        if up || down {
            values.extend(vec![counts; metrics.missing as usize]);
        }
    }
    if up && metrics.unready > 0 {
        assumed = true;
        values.extend(vec![0.0; metrics.unready as usize]);
    }
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    if !assumed {
        return Some(if within(metrics.ratio) { current } else { (metrics.ratio * n).ceil() as u32 });
    }
    if within(mean) || (down && mean > 1.0) || (up && mean < 1.0) {
        return Some(current);
    }
    let wanted = (mean * n).ceil() as u32;
    let turns = (mean < 1.0 && wanted > current) || (mean > 1.0 && wanted < current);
    Some(if turns { current } else { wanted })
}

#[test]
fn replicas_are_those_of_the_documents_for_every_small_case() {
    let mut cases = 0;
    for ratio in [-0.5, 0.0, 0.25, 0.5, 0.75, 0.875, 1.0, 1.125, 1.25, 1.5, 2.0, 4.0, f64::NAN, f64::INFINITY]
    {
        for measured in 0..5 {
            for missing in 0..4 {
                for unready in 0..4 {
                    for counts in [1.0, 1.25, 2.0] {
                        for tolerance in [0.0, 0.125, 0.25] {
                            for current in 0..8 {
                                let metrics = InstanceMetrics {
                                    ratio,
                                    measured,
                                    missing,
                                    unready,
                                    missing_counts_as: counts,
                                };
                                let said = replicas_of(&metrics, current, tolerance);
                                let wanted = naive_replicas(&metrics, current, tolerance);
                                assert_eq!(said, wanted, "{metrics:?}, {current}, {tolerance}");
                                cases += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    assert_eq!(cases, 14 * 5 * 4 * 4 * 3 * 3 * 8);
    let absurd = InstanceMetrics { ratio: 1e30, measured: 9, missing: 0, unready: 0, missing_counts_as: 1.0 };
    assert_eq!(replicas_of(&absurd, 1, 0.1), Some(i32::MAX as u32));
}

/// The limits of Kubernetes' `behavior`, from all recommendations and steps since the beginning.
struct NaiveMoves {
    recommended: Vec<(u64, i64)>,
    steps: Vec<(u64, i64)>,
}

impl NaiveMoves {
    /// What stabilisation makes of it, and the policies of that.
    fn limit(&mut self, spec: &ResourceSpec, now: u64, current: i64, recommended: i64) -> (i64, i64) {
        self.recommended.push((now, recommended));
        let over = |window: Duration| {
            let window = window.as_secs();
            let mut within: Vec<i64> = self
                .recommended
                .iter()
                .filter(|(at, _)| at + window > now)
                .map(|(_, value)| *value)
                .collect();
            // The one of now counts also when the window is nothing.
            within.push(recommended);
            within
        };
        let up = *over(spec.scale_up.stabilization_window).iter().min().unwrap();
        let down = *over(spec.scale_down.stabilization_window).iter().max().unwrap();
        let mut stable = current.max(up);
        stable = stable.min(down);
        let at_start = |period: Duration| {
            let since = |at: u64| at + period.as_secs() > now;
            current - self.steps.iter().filter(|(at, _)| since(*at)).map(|(_, by)| by).sum::<i64>()
        };
        let limits = |rules: &ScalingRules, sign: i64| -> Vec<i64> {
            let policies = rules.policies.iter();
            policies
                .map(|policy| match policy {
                    ScalingPolicy::Pods { value, period } => at_start(*period) + sign * i64::from(*value),
                    ScalingPolicy::Percent { value, period } => {
                        let share = 1.0 + sign as f64 * f64::from(*value) / 100.0;
                        let limit = at_start(*period) as f64 * share;
                        if sign > 0 { limit.max(0.0).ceil() as i64 } else { limit as i64 }
                    }
                })
                .collect()
        };
        let limited = if stable > current {
            let each = limits(&spec.scale_up, 1);
            let limit = match spec.scale_up.select {
                SelectPolicy::Max => each.iter().max().copied(),
                SelectPolicy::Min => each.iter().min().copied(),
                _ => None,
            };
            stable.min(limit.unwrap_or(current).max(current))
        } else if stable < current {
            let each = limits(&spec.scale_down, -1);
            let limit = match spec.scale_down.select {
                SelectPolicy::Max => each.iter().min().copied(),
                SelectPolicy::Min => each.iter().max().copied(),
                _ => None,
            };
            stable.max(limit.unwrap_or(current).min(current).max(0))
        } else {
            stable
        };
        if limited != current {
            self.steps.push((now, limited - current));
        }
        (stable, limited)
    }
}

fn rules(random: &mut SmallRng) -> ScalingRules {
    let window = Duration::from_secs(random.random_range(0..8));
    let select = [SelectPolicy::Max, SelectPolicy::Min, SelectPolicy::Disabled][random.random_range(0..3)];
    let policies = (0..random.random_range(1..3))
        .map(|_| {
            let period = Duration::from_secs(random.random_range(1..8));
            match random.random::<bool>() {
                true => ScalingPolicy::Pods { value: random.random_range(1..6), period },
                false => ScalingPolicy::Percent { value: random.random_range(10..150), period },
            }
        })
        .collect();
    ScalingRules::new(window, select, policies)
}

#[test]
fn steps_and_stabilisation_are_those_of_a_model_that_forgets_nothing() {
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut spec = ScalingSpec::default();
        spec.scaler = "resource".to_owned();
        Options::edit(&mut spec, |options| {
            options.metrics = vec![MetricSpec::new(Metric::Cpu, Some(MetricTarget::Average(1.0)))]
        })
        .unwrap();
        let mut resource = ResourceSpec::default();
        (resource.scale_up, resource.scale_down) = (rules(&mut random), rules(&mut random));
        resource.tolerance = 0.0;
        Options::edit(&mut spec, |options| options.resource = Some(resource.clone())).unwrap();
        let mut naive = NaiveMoves { recommended: Vec::new(), steps: Vec::new() };
        let mut state = <Resource as Policy>::State::default();
        let mut current = 4;
        for second in 1..60 {
            let wanted = random.random_range(1..20_u32);
            let mut busy = load(current);
            busy.requests = 1;
            busy.cpu = Some(f64::from(wanted) / f64::from(current));
            let recommended = (busy.cpu.unwrap() * f64::from(current)).ceil().max(1.0) as u32;
            let now = START + Duration::from_secs(second);
            let input = ScaleInput::new(0, now, &spec, &busy, Some(current));
            let decision = Resource.decide(&mut state, &input);
            let (stable, limited) =
                naive.limit(&resource, second, i64::from(current), i64::from(recommended));
            let clamped = |clamp| decision.clamps.contains(clamp);
            assert_eq!(
                clamped(Clamps::STABILIZATION),
                stable != i64::from(recommended),
                "seed {seed}, {second}"
            );
            assert_eq!(clamped(Clamps::POLICY), limited != stable, "seed {seed}, second {second}");
            let limited = limited.max(1) as u32;
            assert_eq!(
                decision.desired(),
                Some(limited),
                "seed {seed}, second {second}: {current} -> {wanted}"
            );
            let vote = decision.votes[0];
            assert_eq!((vote.value, vote.target, vote.desired), (busy.cpu, 1.0, Some(recommended)));
            current = limited;
        }
    }
}

struct Run {
    spec: ScalingSpec,
    state: <Combined as Policy>::State,
    now: Timestamp,
    desired: Option<u32>,
}

impl Run {
    fn new(metrics: Vec<MetricSpec>, change: impl FnOnce(&mut ScalingSpec)) -> Self {
        let mut spec = ScalingSpec::default();
        spec.scaler = "combined".to_owned();
        Options::edit(&mut spec, |options| options.metrics = metrics).unwrap();
        change(&mut spec);
        Self { spec, state: <Combined as Policy>::State::default(), now: START, desired: None }
    }

    fn tick(&mut self, load: &Load) -> Decision {
        self.now = self.now + Duration::from_secs(1);
        let mut resources = Resources::default();
        resources.cpu_request_millis = Some(1000);
        resources.memory_request_bytes = Some(1000);
        let input = ScaleInput::new(0, self.now, &self.spec, load, self.desired).of(10, Some(&resources));
        let decision = Combined::new().decide(&mut self.state, &input);
        self.desired = decision.desired().or(self.desired);
        decision
    }
}

#[test]
fn a_lower_decision_waits_for_the_delay_and_a_higher_one_does_not() {
    let backlog = |waiting| {
        let mut load = load(1);
        load.requests = 1;
        load.backlog = Some(waiting);
        load
    };
    let mut run =
        Run::new(vec![MetricSpec::new(Metric::Backlog, Some(MetricTarget::Average(10.0)))], |spec| {
            spec.scale_down_delay = Duration::from_secs(5);
        });
    assert_eq!(run.tick(&backlog(100)).desired(), Some(10));
    for second in 1..5 {
        let held = run.tick(&backlog(20));
        assert_eq!(held.desired(), Some(10), "{second} s after");
        assert_eq!(held.reason, Reason::Delayed);
        assert!(held.clamps.contains(Clamps::DELAY));
    }
    let higher = run.tick(&backlog(120));
    assert_eq!((higher.desired(), higher.clamps.contains(Clamps::DELAY)), (Some(12), false));
    let same = run.tick(&backlog(120));
    assert_eq!((same.desired(), same.reason), (Some(12), Reason::Stable), "the same is not held");
    let mut seconds = 0;
    while run.tick(&backlog(20)).desired() != Some(2) {
        seconds += 1;
        assert!(seconds < 10, "held for ever");
    }
    assert_eq!(seconds, 4, "the second of the decision is the first of the five");

    let mut at_once = Run::new(Options::of(&run.spec).unwrap().metrics.clone(), |_| {});
    assert_eq!(at_once.tick(&backlog(100)).desired(), Some(10));
    assert_eq!(at_once.tick(&backlog(20)).desired(), Some(2));
}

#[test]
fn combined_says_what_each_metric_said() {
    let cpu = MetricSpec::new(Metric::Cpu, Some(MetricTarget::Utilization(50.0)));
    let memory = MetricSpec::new(Metric::Memory, Some(MetricTarget::Average(100.0)));
    let backlog = MetricSpec::new(Metric::Backlog, Some(MetricTarget::Average(10.0)));
    let rps = MetricSpec::new(Metric::Rps, Some(MetricTarget::Average(10.0)));
    let mut busy = load(4);
    busy.requests = 1;
    busy.concurrency = 1.0;

    // Of equals the first is named; a backlog is asked by its own target.
    let mut run = Run::new(vec![backlog, rps], |spec| spec.utilization = 1.0);
    busy.backlog = Some(45);
    busy.requests = 50;
    let decision = run.tick(&busy);
    assert_eq!((decision.desired(), decision.reason), (Some(5), Reason::Stable));
    let votes: Vec<_> = decision.votes.iter().map(|vote| (vote.metric, vote.desired)).collect();
    assert_eq!(votes[0], (Metric::Backlog, Some(5)));
    assert!((decision.votes[0].target, decision.votes[0].value) == (10.0, Some(45.0)));

    // Both resources are there, but nothing was measured: it stays. One of them: only upwards.
    busy.backlog = None;
    let mut run = Run::new(vec![cpu, memory], |_| {});
    assert_eq!(run.tick(&busy), {
        let mut hold = Decision::hold(Reason::NoData);
        hold.votes = run.tick(&busy).votes;
        hold
    });
    (busy.cpu, busy.memory) = (Some(0.1), None);
    assert_eq!(run.tick(&busy).desired(), None, "memory may need what CPU does not");
    busy.cpu = Some(0.5);
    assert_eq!(run.tick(&busy).desired(), Some(4), "what is there is what it takes");
    busy.cpu = Some(1.0);
    assert_eq!(run.tick(&busy).desired(), Some(8), "twice the half of a core");

    // By priority the second speaks where the first was not measured, and it is said to be the fall-back.
    let mut run = Run::new(vec![cpu, memory], |spec| {
        Options::edit(spec, |options| options.combine = Combine::Priority).unwrap()
    });
    (busy.cpu, busy.memory) = (None, Some(200.0));
    let decision = run.tick(&busy);
    assert_eq!((decision.desired(), decision.reason), (Some(8), Reason::Fallback));
    (busy.cpu, busy.memory) = (None, None);
    let decision = run.tick(&busy);
    assert_eq!((decision.desired(), decision.reason), (None, Reason::NoData));
    // Nobody measured and nobody there: nothing is wanted.
    let decision = Run::new(vec![cpu, memory], |spec| {
        Options::edit(spec, |options| options.combine = Combine::Priority).unwrap()
    })
    .tick(&load(0));
    assert_eq!((decision.desired(), decision.reason), (Some(0), Reason::Idle));
}

#[test]
fn resources_have_no_opinion_on_who_slept_for_a_window() {
    let cpu = MetricSpec::new(Metric::Cpu, Some(MetricTarget::Utilization(50.0)));
    for combine in [Combine::Max, Combine::Priority] {
        let mut run = Run::new(vec![cpu], |spec| {
            Options::edit(spec, |options| options.combine = combine).unwrap();
            spec.stable_window = Duration::from_secs(10);
        });
        let mut idle = load(2);
        idle.cpu = Some(0.5);
        let mut busy = idle;
        busy.requests = 1;
        run.tick(&busy);
        for second in 0..10 {
            assert_eq!(run.tick(&idle).desired(), Some(2), "{second} s after");
        }
        let asleep = run.tick(&idle);
        assert_eq!((asleep.desired(), asleep.reason), (Some(0), Reason::Idle));
        assert_eq!((asleep.votes[0].value, asleep.votes[0].desired), (None, None));
        assert_eq!(run.tick(&busy).desired(), Some(2), "awake again at once");
    }
}

#[test]
fn who_waits_is_served_whatever_the_metrics_are_about() {
    let backlog = MetricSpec::new(Metric::Backlog, Some(MetricTarget::Average(10.0)));
    for (queued, requests, concurrency, limit, wanted) in [
        (25, 0, 0.0, 10, 3),
        (20, 0, 0.0, 10, 2),
        (25, 0, 0.0, 0, 1),
        (0, 1, 0.0, 10, 1),
        (0, 0, 0.5, 10, 1),
        (0, 0, 0.0, 10, 0),
    ] {
        let mut spec = ScalingSpec::default();
        Options::edit(&mut spec, |options| options.metrics = vec![backlog]).unwrap();
        let mut waiting = load(0);
        (waiting.queued, waiting.requests, waiting.concurrency) = (queued, requests, concurrency);
        waiting.backlog = Some(0);
        let input = ScaleInput::new(0, START, &spec, &waiting, None).of(limit, None);
        let decision = Combined::new().decide(&mut <Combined as Policy>::State::default(), &input);
        assert_eq!(decision.desired(), Some(wanted), "{waiting:?}");
        let reason = if wanted > 0 { Reason::Waiting } else { Reason::Idle };
        assert_eq!(decision.reason, reason, "{waiting:?}");
    }
}

/// Fires at each full multiple of its seconds.
#[derive(Debug)]
struct Each(i64);

impl Schedule for Each {
    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let period = self.0 * 1_000_000_000;
        Some(Timestamp((after.0.div_euclid(period) + 1) * period))
    }
}

/// Reads seconds.
fn seconds() -> ScheduleParser {
    ScheduleParser::new(|text, _| {
        let seconds = text.parse().map_err(|_| {
            sas_core::Error::new(sas_core::ErrorKind::InvalidSpec, "parse", "write a number of seconds")
        })?;
        Ok(Arc::new(Each(seconds)) as Arc<dyn Schedule>)
    })
}

fn windows(text: &str, open: u64, min: Option<u32>, max: Option<u32>) -> Vec<ScheduleWindow> {
    let mut window = ScheduleWindow::floor(text, Duration::from_secs(open), 0);
    (window.min, window.max) = (min, max);
    vec![window]
}

#[test]
fn combined_refuses_schedules_that_it_does_not_read() {
    let schedule = MetricSpec::new(Metric::Schedule, None);
    let rps = MetricSpec::new(Metric::Rps, Some(MetricTarget::Average(10.0)));
    let spec = |metrics: Vec<MetricSpec>, text: &str| {
        let mut spec = ScalingSpec::default();
        Options::edit(&mut spec, |options| options.metrics = metrics).unwrap();
        Options::edit(&mut spec, |options| options.schedule = windows(text, 60, Some(1), None)).unwrap();
        spec
    };
    let field = |result: Result<(), sas_core::SpecErrors>| result.unwrap_err().0[0].field.clone();
    let (without, with) = (Combined::new(), Combined::with_schedules(seconds()));
    assert_eq!(field(without.validate(&spec(vec![rps, schedule], "60"))), "options.metrics");
    assert!(without.validate(&spec(vec![rps], "60")).is_ok());
    assert!(with.validate(&spec(vec![rps, schedule], "60")).is_ok());
    assert_eq!(field(with.validate(&spec(vec![rps, schedule], "often"))), "options.schedule[0].schedule");
    assert!(with.validate(&spec(vec![rps], "often")).is_ok(), "nobody asked for it");
}

#[test]
fn combined_keeps_the_bounds_of_schedules_and_forecasts_and_wakes_for_them() {
    let schedule = MetricSpec::new(Metric::Schedule, None);
    let forecast = MetricSpec::new(Metric::Forecast, None);
    let backlog = MetricSpec::new(Metric::Backlog, Some(MetricTarget::Average(10.0)));
    let combined = Combined::with_schedules(seconds());
    // A window of a minute at each full thousand seconds: 1_700_000_000 is one.
    for (metrics, after, waiting, wanted, reason) in [
        (vec![backlog, schedule], 10, 0, 3, Reason::Scheduled),
        (vec![backlog, schedule], 10, 45, 5, Reason::Stable),
        (vec![backlog, schedule], 10, 200, 7, Reason::Scheduled),
        (vec![backlog, schedule], 60, 200, 20, Reason::Stable),
        (vec![backlog], 10, 0, 0, Reason::Idle),
    ] {
        let mut spec = ScalingSpec::default();
        Options::edit(&mut spec, |options| options.metrics = metrics).unwrap();
        Options::edit(&mut spec, |options| options.schedule = windows("1000", 60, Some(3), Some(7))).unwrap();
        let mut load = load(0);
        load.backlog = Some(waiting);
        let input = ScaleInput::new(0, START + Duration::from_secs(after), &spec, &load, None);
        let decision = combined.decide(&mut <Combined as Policy>::State::default(), &input);
        assert_eq!((decision.desired(), decision.reason), (Some(wanted), reason), "{after}, {waiting}");
        assert_eq!(decision.clamps.contains(Clamps::SCHEDULE), reason == Reason::Scheduled);
    }

    let peak = [0.0, 0.0, 500.0, 0.0];
    let asleep_at = slot(123);
    // Windows open at each full 1,000 s, peaks come at each fourth quarter of an hour.
    let opens = Timestamp((asleep_at.0 / 1_000_000_000_000 + 1) * 1_000_000_000_000);
    let peaks = slot(126) - Duration::from_secs(60);
    assert!(opens < peaks);
    for (metrics, wakes) in [
        (vec![backlog], None),
        (vec![schedule], Some(opens)),
        (vec![forecast], Some(peaks)),
        (vec![backlog, schedule], Some(opens)),
        (vec![backlog, forecast], Some(peaks)),
        (vec![backlog, forecast, schedule], Some(opens)),
    ] {
        let mut spec = ScalingSpec::default();
        Options::edit(&mut spec, |options| options.metrics = metrics.clone()).unwrap();
        Options::edit(&mut spec, |options| options.forecast = Some(quarter_hours(4))).unwrap();
        Options::edit(&mut spec, |options| options.schedule = windows("1000", 60, Some(3), None)).unwrap();
        let mut state = <Combined as Policy>::State::default();
        for number in 0..=123_i64 {
            let mut load = load(1);
            load.concurrency = if number < 123 { peak[(number % 4) as usize] } else { 0.0 };
            load.backlog = Some(0);
            let input = ScaleInput::new(0, slot(number), &spec, &load, None).over(Duration::from_secs(900));
            let decision = combined.decide(&mut state, &input);
            let voted = decision.votes.iter().any(|vote| vote.metric == Metric::Forecast);
            assert_eq!(voted, metrics.contains(&forecast));
        }
        let load = load(0);
        let input = ScaleInput::new(0, asleep_at, &spec, &load, None);
        assert_eq!(combined.wake_at(&state, &input), wakes, "{metrics:?}");
    }
}

#[test]
fn a_forecast_among_others_is_about_their_first_traffic_metric() {
    let forecast = MetricSpec::new(Metric::Forecast, None);
    let of = |metric| MetricSpec::new(metric, Some(MetricTarget::Average(10.0)));
    let backlog = of(Metric::Backlog);
    for (metrics, own, demand) in [
        (vec![of(Metric::Rps), of(Metric::Concurrency), forecast], Metric::Concurrency, 30.0),
        (vec![of(Metric::Concurrency), of(Metric::Rps), forecast], Metric::Rps, 4.0),
        (vec![backlog, forecast], Metric::Rps, 30.0),
        (vec![backlog, forecast], Metric::Concurrency, 4.0),
    ] {
        let mut run = Run::new(metrics.clone(), |spec| {
            spec.metric = own;
            spec.target = 1.0;
            spec.utilization = 1.0;
            let mut rules = quarter_hours(2);
            (rules.slot, rules.headroom) = (Duration::from_secs(1), 0.0);
            Options::edit(spec, |options| options.forecast = Some(rules)).unwrap();
        });
        let mut busy = load(1);
        (busy.requests, busy.concurrency, busy.backlog) = (30, 4.0, Some(0));
        let mut last = None;
        for _ in 0..10 {
            last = Some(run.tick(&busy));
        }
        let decision = last.unwrap();
        let vote = |metric| decision.votes.iter().find(|vote| vote.metric == metric).copied();
        assert!(close(vote(Metric::Forecast).unwrap().value.unwrap(), demand), "{metrics:?}, {own:?}");
        // Each traffic metric has a memory of its own.
        for (metric, value) in [(Metric::Rps, 30.0), (Metric::Concurrency, 4.0)] {
            if let Some(vote) = metrics.iter().any(|it| it.metric == metric).then(|| vote(metric)).flatten() {
                assert!(close(vote.value.unwrap(), value), "{vote:?}");
            }
        }
    }
}

/// One revision's governor by the second.
struct Governed {
    spec: ScalingSpec,
    governor: Governor,
    seconds: u64,
}

impl Governed {
    fn new(load: &Load, restarted: bool, initialized: bool, change: impl FnOnce(&mut ScalingSpec)) -> Self {
        let mut spec = ScalingSpec::default();
        change(&mut spec);
        let governor = Governor::new(&spec, load, restarted, initialized);
        Self { spec, governor, seconds: 0 }
    }

    fn apply(&mut self, load: &Load, in_force: Option<u32>, mut decision: Decision) -> Decision {
        self.seconds += 1;
        let now = START + Duration::from_secs(self.seconds);
        self.governor.apply(&ScaleInput::new(0, now, &self.spec, load, in_force), &mut decision);
        decision
    }
}

#[test]
fn bounds_hold_for_what_is_wanted_and_for_what_is_kept() {
    let three = load(3);
    for (min, max, wanted, given, clamp) in [
        (0, 0, 5, 5, None),
        (2, 0, 1, 2, Some(Clamps::MIN)),
        (2, 0, 2, 2, None),
        (0, 4, 5, 4, Some(Clamps::MAX)),
        (0, 4, 4, 4, None),
        (0, 0, u32::MAX, i32::MAX as u32, None),
    ] {
        let mut governed = Governed::new(&three, false, true, |spec| (spec.min, spec.max) = (min, max));
        let decision = governed.apply(&three, Some(3), Decision::set(wanted, Reason::Stable));
        assert_eq!((decision.desired(), decision.proposed), (Some(given), Some(wanted)));
        assert_eq!(decision.clamps, clamp.unwrap_or_default(), "{min}, {max}, {wanted}");
    }
    // Nothing to decide from: what is in force stays, but not below the least.
    for (min, in_force, given) in
        [(2, Some(3), None), (2, Some(2), None), (4, Some(3), Some(4)), (2, None, Some(2))]
    {
        let mut governed = Governed::new(&three, false, true, |spec| spec.min = min);
        let decision = governed.apply(&three, in_force, Decision::hold(Reason::NoData));
        assert_eq!((decision.desired(), decision.proposed), (given, None), "{min}, {in_force:?}");
        assert_eq!(decision.clamps.contains(Clamps::MIN), given.is_some());
    }
}

#[test]
fn the_initial_scale_holds_until_it_was_reached_and_the_delay_is_over() {
    let mut governed = Governed::new(&load(0), false, false, |spec| {
        spec.initial = 3;
        spec.scale_down_delay = Duration::from_secs(4);
    });
    let one = || Decision::set(1, Reason::Stable);
    assert!(!governed.governor.is_initialized());
    for ready in [0, 1, 2] {
        let decision = governed.apply(&load(ready), None, one());
        assert_eq!((decision.desired(), decision.clamps), (Some(3), Clamps::INITIAL), "{ready} ready");
        assert!(!governed.governor.is_initialized());
    }
    // Reached: for four seconds more.
    for second in 0..4 {
        assert_eq!(governed.apply(&load(3), None, one()).desired(), Some(3), "{second} s after");
        assert!(governed.governor.is_initialized());
    }
    let decision = governed.apply(&load(3), None, one());
    assert_eq!((decision.desired(), decision.clamps), (Some(1), Clamps::default()));
    let known = Governed::new(&load(1), false, true, |spec| spec.initial = 3).apply(&load(1), None, one());
    assert_eq!(known.desired(), Some(1), "it was reached before");
    // An initial scale of one holds nobody up.
    let single = Governed::new(&load(0), false, false, |spec| spec.initial = 1).apply(
        &load(0),
        None,
        Decision::set(0, Reason::Idle),
    );
    assert_eq!((single.desired(), single.clamps), (Some(0), Clamps::default()));
}

#[test]
fn the_last_instance_waits_for_grace_and_retention_and_for_whoever_queues() {
    let idle = || Decision::set(0, Reason::Idle);
    let seconds = |governed: &mut Governed, load: &Load| {
        (0..100).find(|_| governed.apply(load, Some(1), idle()).desired() == Some(0)).expect("it goes")
    };
    let with = |grace: u64, retention: u64| {
        Governed::new(&load(1), false, true, |spec| {
            spec.scale_to_zero_grace = Duration::from_secs(grace);
            spec.retention = Duration::from_secs(retention);
        })
    };
    assert_eq!(seconds(&mut with(5, 0), &load(1)), 5);
    assert_eq!(seconds(&mut with(0, 0), &load(1)), 0);
    assert_eq!(seconds(&mut with(5, 0), &load(0)), 0, "there is none to keep");
    let mut starting = load(0);
    starting.starting = 1;
    assert_eq!(seconds(&mut with(5, 0), &starting), 5);
    // The retention counts from the last traffic, the grace from the first idle decision.
    for (concurrency, requests, queued) in [(0.5, 0, 0), (0.0, 1, 0), (0.0, 0, 1)] {
        let mut governed = with(2, 6);
        let mut busy = load(1);
        (busy.concurrency, busy.requests, busy.queued) = (concurrency, requests, queued);
        assert_eq!(governed.apply(&busy, Some(1), Decision::set(1, Reason::Stable)).desired(), Some(1));
        assert_eq!(seconds(&mut governed, &load(1)), 5);
    }
    // The grace begins anew after something was wanted.
    let mut governed = with(5, 0);
    for _ in 0..3 {
        let kept = governed.apply(&load(1), Some(1), idle());
        assert_eq!((kept.desired(), kept.clamps), (Some(1), Clamps::ZERO));
    }
    governed.apply(&load(1), Some(1), Decision::set(1, Reason::Stable));
    assert_eq!(seconds(&mut governed, &load(1)), 5);

    let mut awake = Governed::new(&load(1), false, true, |spec| spec.scale_to_zero = false);
    for _ in 0..100 {
        let kept = awake.apply(&load(1), Some(1), idle());
        assert_eq!((kept.desired(), kept.clamps), (Some(1), Clamps::ZERO));
    }
    let mut queued = load(0);
    queued.queued = 1;
    let waits = with(0, 0).apply(&queued, Some(0), idle());
    assert_eq!((waits.desired(), waits.reason), (Some(1), Reason::Waiting));
}

#[test]
fn after_a_restart_nothing_falls_for_one_stable_window() {
    let change = |spec: &mut ScalingSpec| spec.stable_window = Duration::from_secs(10);
    let mut governed = Governed::new(&load(4), true, true, change);
    for _ in 0..10 {
        let held = governed.apply(&load(4), Some(4), Decision::set(1, Reason::Stable));
        assert_eq!((held.desired(), held.reason, held.clamps), (Some(4), Reason::WarmingUp, Clamps::RESTART));
    }
    let after = governed.apply(&load(4), Some(4), Decision::set(1, Reason::Stable));
    assert_eq!((after.desired(), after.reason, after.clamps), (Some(1), Reason::Stable, Clamps::default()));

    let mut governed = Governed::new(&load(4), true, true, change);
    let same = governed.apply(&load(4), Some(4), Decision::set(4, Reason::Stable));
    assert_eq!((same.desired(), same.reason, same.clamps), (Some(4), Reason::Stable, Clamps::default()));
    // With nothing to decide from the floor holds too.
    let kept = governed.apply(&load(4), Some(2), Decision::hold(Reason::NoData));
    assert_eq!((kept.desired(), kept.reason), (Some(4), Reason::WarmingUp));
    for (restarted, ready) in [(false, 4), (true, 0)] {
        let mut governed = Governed::new(&load(ready), restarted, true, change);
        let free = governed.apply(&load(ready), Some(4), Decision::set(1, Reason::Stable));
        assert_eq!((free.desired(), free.clamps), (Some(1), Clamps::default()));
    }
}

#[test]
fn what_was_not_measured_counts_as_what_it_requests_and_nonsense_as_not_measured() {
    let cpu = MetricSpec::new(Metric::Cpu, Some(MetricTarget::Utilization(50.0)));
    let mut resources = Resources::default();
    resources.cpu_request_millis = Some(1000);
    let mut rules = ResourceSpec::default();
    rules.scale_down.stabilization_window = Duration::ZERO;
    // Seven at half of the target, one that is unknown counts twice the target: 3.75.
    for (value, unmeasured, wanted) in [
        (Some(0.125), 1, Some(4)),
        (Some(0.125), 0, Some(2)),
        (Some(0.125), 8, None),
        (Some(-1.0), 0, None),
        (Some(f64::INFINITY), 0, None),
        (Some(f64::NAN), 0, None),
        (None, 0, None),
    ] {
        let mut spec = ScalingSpec::default();
        Options::edit(&mut spec, |options| options.metrics = vec![cpu]).unwrap();
        Options::edit(&mut spec, |options| options.resource = Some(rules.clone())).unwrap();
        let mut busy = load(8);
        (busy.requests, busy.cpu, busy.unmeasured) = (1, value, unmeasured);
        let input = ScaleInput::new(0, START, &spec, &busy, None).of(10, Some(&resources));
        let decision = Resource.decide(&mut <Resource as Policy>::State::default(), &input);
        assert_eq!(decision.votes[0].desired, wanted, "{value:?}, {unmeasured}");
        assert_eq!(decision.votes[0].target, 0.5);
        assert_eq!(decision.votes[0].value, value.filter(|value| (0.0..1e9).contains(value)));
        assert_eq!(decision.reason == Reason::NoData, wanted.is_none());
    }
}

#[test]
fn whoever_queues_keeps_a_resource_scaler_awake() {
    let mut spec = ScalingSpec::default();
    Options::edit(&mut spec, |options| {
        options.metrics = vec![MetricSpec::new(Metric::Cpu, Some(MetricTarget::Average(1.0)))]
    })
    .unwrap();
    spec.stable_window = Duration::from_secs(10);
    for (concurrency, requests, queued, stays) in
        [(0.5, 0, 0, true), (0.0, 1, 0, true), (0.0, 0, 1, true), (0.0, 0, 0, false)]
    {
        let mut state = <Resource as Policy>::State::default();
        let mut load = load(2);
        (load.concurrency, load.requests, load.queued, load.cpu) = (concurrency, requests, queued, Some(1.0));
        let mut last = None;
        for second in 0..20 {
            let now = START + Duration::from_secs(second);
            last = Resource.decide(&mut state, &ScaleInput::new(0, now, &spec, &load, Some(2))).desired();
        }
        assert_eq!(last, Some(if stays { 2 } else { 0 }), "{concurrency}, {requests}, {queued}");
    }
}

#[test]
fn the_compatible_governor_names_what_held_a_decision() {
    let compatible = |ready: u32, change: &dyn Fn(&mut ScalingSpec), wanted: u32| {
        let mut governed = Governed::new(&load(ready), false, false, |spec| {
            spec.fidelity = sas_core::Fidelity::Exact;
            change(spec);
        });
        let decision = governed.apply(&load(ready), Some(ready), Decision::set(wanted, Reason::Stable));
        (decision.desired(), decision.clamps)
    };
    assert_eq!(compatible(2, &|_| {}, 2), (Some(2), Clamps::default()));
    assert_eq!(compatible(1, &|spec| spec.max = 2, 5), (Some(2), Clamps::MAX));
    assert_eq!(compatible(2, &|spec| spec.max = 2, 2), (Some(2), Clamps::default()));
    assert_eq!(compatible(3, &|spec| spec.min = 3, 1), (Some(3), Clamps::MIN));
    assert_eq!(compatible(3, &|spec| spec.min = 3, 0), (Some(3), Clamps::MIN));
    assert_eq!(compatible(3, &|spec| spec.min = 3, 3), (Some(3), Clamps::default()));
    assert_eq!(compatible(0, &|spec| spec.initial = 4, 1), (Some(4), Clamps::INITIAL));
    assert_eq!(compatible(0, &|spec| (spec.initial, spec.min) = (4, 4), 1), (Some(4), Clamps::MIN));
    // Who was active sleeps only after a while.
    let mut governed =
        Governed::new(&load(1), false, false, |spec| spec.fidelity = sas_core::Fidelity::Exact);
    for _ in 0..3 {
        assert_eq!(governed.apply(&load(1), Some(1), Decision::set(1, Reason::Stable)).desired(), Some(1));
    }
    let kept = governed.apply(&load(1), Some(1), Decision::set(0, Reason::Idle));
    assert_eq!((kept.desired(), kept.clamps), (Some(1), Clamps::ZERO));
}

#[test]
fn policies_of_one_metric_take_that_one_whatever_the_spec_says() {
    let mut busy = load(1);
    (busy.requests, busy.concurrency) = (40, 7.0);
    for (policy, name, own, value) in [
        (Kpa::concurrency(), "concurrency", Metric::Rps, 7.0),
        (Kpa::rps(), "rps", Metric::Concurrency, 40.0),
        (Kpa::default(), "kpa", Metric::Concurrency, 7.0),
        (Kpa::default(), "kpa", Metric::Rps, 40.0),
    ] {
        let mut spec = ScalingSpec::default();
        spec.metric = own;
        let decision = policy
            .decide(&mut <Kpa as Policy>::State::default(), &ScaleInput::new(0, START, &spec, &busy, None));
        assert_eq!((policy.name(), policy.version()), (name, Kpa::VERSION));
        assert!(close(decision.votes[0].value.unwrap(), value), "{name}, {own:?}: {:?}", decision.votes);
    }
}

#[test]
fn a_resource_scaler_says_why() {
    let cpu = MetricSpec::new(Metric::Cpu, Some(MetricTarget::Average(1.0)));
    let memory = MetricSpec::new(Metric::Memory, Some(MetricTarget::Average(100.0)));
    let tolerance = |clamps: Clamps| clamps.contains(Clamps::TOLERANCE);
    // (ready, queued, CPU, memory, both metrics) -> (instances, why, whether the tolerance kept it).
    for (ready, queued, used, held, both, wanted, reason, kept) in [
        (0, 25, None, None, false, Some(3), Reason::Waiting, false),
        (0, 0, None, None, false, Some(0), Reason::Idle, false),
        (4, 1, Some(1.0), None, false, Some(4), Reason::Stable, false),
        (4, 1, Some(1.05), None, false, Some(4), Reason::Stable, true),
        (4, 1, Some(2.0), None, false, Some(8), Reason::Stable, false),
        (4, 1, Some(0.5), None, false, Some(2), Reason::Stable, false),
        // What is not known may be what is needed: it may grow and stay, and not shrink.
        (4, 1, Some(2.0), None, true, Some(8), Reason::Stable, false),
        (4, 1, Some(1.0), None, true, Some(4), Reason::Stable, true),
        (4, 1, Some(0.5), None, true, None, Reason::NoData, false),
        (4, 1, Some(0.5), Some(75.0), true, Some(3), Reason::Stable, false),
        (4, 1, None, None, true, None, Reason::NoData, false),
    ] {
        let mut spec = ScalingSpec::default();
        Options::edit(&mut spec, |options| {
            options.metrics = if both { vec![cpu, memory] } else { vec![cpu] }
        })
        .unwrap();
        let mut rules = ResourceSpec::default();
        rules.scale_down.stabilization_window = Duration::ZERO;
        Options::edit(&mut spec, |options| options.resource = Some(rules)).unwrap();
        let mut busy = load(ready);
        (busy.queued, busy.cpu, busy.memory) = (queued, used, held);
        let input = ScaleInput::new(0, START, &spec, &busy, None).of(10, None);
        let decision = Resource.decide(&mut <Resource as Policy>::State::default(), &input);
        let said = (decision.desired(), decision.reason, tolerance(decision.clamps));
        assert_eq!(said, (wanted, reason, kept), "{ready}, {queued}, {used:?}, {held:?}, {both}");
    }
    assert_eq!(Resource.name(), "resource");

    let mut spec = ScalingSpec::default();
    Options::edit(&mut spec, |options| options.metrics = vec![cpu]).unwrap();
    spec.stable_window = Duration::from_secs(10);
    let mut state = <Resource as Policy>::State::default();
    let mut busy = load(1);
    (busy.requests, busy.cpu) = (1, Some(1.0));
    let mut idle = busy;
    idle.requests = 0;
    let mut tick = |load: &Load| Resource.decide(&mut state, &ScaleInput::new(0, START, &spec, load, None));
    for _ in 0..5 {
        assert_eq!(tick(&busy).desired(), Some(1));
    }
    let awake = (0..100).take_while(|_| tick(&idle).desired() == Some(1)).count();
    assert_eq!(awake, 10, "a stable window");
}
