//! Several metrics, schedules, backlogs and resources.

use std::{sync::Arc, time::Duration};

use crate::{
    Backlog, Combined, Resource, ScheduleParser, Scheduled, resource::InstanceMetrics, resource::replicas_of,
    scheduled::WindowBounds,
};
use crate::{
    BacklogSpec, Combine, CustomMetric, Fallback, FallbackBehavior, MetricSpec, MetricTarget, Options,
    ResourceSpec, ScalingPolicy, ScalingRules, ScheduleWindow, SelectPolicy,
};
use jiff::{ToSpan as _, tz::TimeZone};
use sas_core::{
    Clamps, Decision, Load, Metric, NamedValues, NamedVote, Policy, Reason, Resources, RevisionKey,
    ScaleInput, ScalingSpec, Schedule, Timestamp, Verdict,
};

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

fn load(ready: u32) -> Load {
    let mut load = Load::idle(RevisionKey::new(0, 0));
    load.ready = ready;
    load
}

struct Run<P: Policy> {
    policy: P,
    spec: ScalingSpec,
    state: P::State,
    desired: Option<u32>,
    now: Timestamp,
}

impl<P: Policy> Run<P> {
    fn new(policy: P, change: impl FnOnce(&mut ScalingSpec)) -> Self {
        let mut spec = ScalingSpec::default();
        spec.scaler = policy.name().to_owned();
        change(&mut spec);
        spec.validate().expect("a valid spec");
        policy.validate(&spec).expect("valid for the policy");
        Self { policy, spec, state: P::State::default(), desired: None, now: START }
    }

    fn tick(&mut self, load: &Load) -> Decision {
        self.tick_with(load, &NamedValues::NONE)
    }

    fn tick_with(&mut self, load: &Load, named: &NamedValues) -> Decision {
        self.now = self.now + Duration::from_secs(1);
        let mut resources = Resources::default();
        resources.cpu_request_millis = Some(1000);
        let input = ScaleInput::new(0, self.now, &self.spec, load, self.desired)
            .named(named)
            .of(10, Some(&resources));
        let decision = self.policy.decide(&mut self.state, &input);
        self.desired = decision.desired().or(self.desired);
        decision
    }
}

fn qps_cpu_and_memory(spec: &mut ScalingSpec) {
    spec.utilization = 1.0;
    Options::edit(spec, |options| {
        options.metrics = vec![
            MetricSpec::new(Metric::Rps, Some(MetricTarget::Average(10.0))),
            MetricSpec::new(Metric::Cpu, Some(MetricTarget::Utilization(50.0))),
            MetricSpec::new(Metric::Memory, Some(MetricTarget::Average(100e6))),
        ]
    })
    .unwrap();
    let mut rules = ResourceSpec::default();
    rules.scale_down.stabilization_window = Duration::ZERO;
    Options::edit(spec, |options| options.resource = Some(rules)).unwrap();
}

fn busy(ready: u32, rps: u32, cpu: Option<f64>, memory: Option<f64>) -> Load {
    let mut load = load(ready);
    load.requests = rps;
    load.concurrency = 1.0;
    load.cpu = cpu;
    load.memory = memory;
    load
}

#[test]
fn the_highest_of_qps_cpu_and_memory_decides_and_each_vote_is_recorded() {
    let mut run = Run::new(Combined::new(), qps_cpu_and_memory);
    let decision = run.tick(&busy(4, 20, Some(0.9), Some(120e6)));
    // 2 by requests, 4 * 0.9 / 0.5 by CPU, 4 * 1.2 by memory.
    assert_eq!(decision.verdict, Verdict::Set(8));
    let votes: Vec<_> = decision
        .votes
        .iter()
        .map(|vote| (vote.metric, vote.desired))
        .filter(|vote| vote.0 != Metric::Rps)
        .collect();
    assert_eq!(votes, [(Metric::Cpu, Some(8)), (Metric::Memory, Some(5))]);
    assert!(decision.votes.iter().any(|vote| vote.metric == Metric::Rps && vote.desired == Some(2)));
}

#[test]
fn with_one_of_several_metrics_missing_the_others_may_raise_and_not_lower() {
    let mut run = Run::new(Combined::new(), qps_cpu_and_memory);
    let raised = run.tick(&busy(4, 200, None, Some(50e6)));
    assert_eq!(raised.verdict, Verdict::Set(20), "requests ask for more");
    let mut run = Run::new(Combined::new(), qps_cpu_and_memory);
    // A scaler that finds several instances begins as in panic; wait until that is over.
    let mut held = run.tick(&busy(4, 10, None, Some(50e6)));
    for _ in 0..70 {
        held = run.tick(&busy(4, 10, None, Some(50e6)));
    }
    assert_eq!((held.verdict, held.reason), (Verdict::Hold, Reason::NoData), "CPU may be what needs four");
    let missing = held.votes.iter().find(|vote| vote.metric == Metric::Cpu).unwrap();
    assert_eq!((missing.value, missing.desired), (None, None));
    let lowered = run.tick(&busy(4, 10, Some(0.1), Some(50e6)));
    assert!(lowered.desired().unwrap() < 4);
}

#[test]
fn by_priority_the_first_metric_that_was_measured_decides() {
    let mut run = Run::new(Combined::new(), |spec| {
        qps_cpu_and_memory(spec);
        Options::edit(spec, |options| options.combine = Combine::Priority).unwrap();
        Options::edit(spec, |options| options.metrics.rotate_left(1)).unwrap();
    });
    let first = run.tick(&busy(4, 500, Some(0.5), Some(500e6)));
    assert_eq!(first.verdict, Verdict::Set(4), "CPU is content, and comes first");
    let second = run.tick(&busy(4, 500, None, Some(800e6)));
    assert_eq!(second.reason, Reason::Fallback);
    assert!(second.desired().unwrap() > 4);
}

#[test]
fn several_metrics_reach_zero_when_traffic_says_so_and_wake_in_one_step() {
    let mut run = Run::new(Combined::new(), |spec| {
        qps_cpu_and_memory(spec);
        spec.stable_window = Duration::from_secs(6);
    });
    run.tick(&busy(3, 30, Some(0.4), Some(90e6)));
    let mut last = None;
    for _ in 0..20 {
        let mut idle = busy(1, 0, Some(0.01), Some(90e6));
        idle.concurrency = 0.0;
        last = run.tick(&idle).desired();
    }
    assert_eq!(last, Some(0), "memory in use is no reason to stay");
    let mut waking = load(0);
    waking.queued = 35;
    waking.requests = 35;
    let decision = run.tick(&waking);
    assert_eq!(decision.desired(), Some(4), "ten at once each");
}

#[test]
fn a_resource_scaler_sleeps_when_nobody_calls() {
    let mut run = Run::new(Resource, |spec| {
        Options::edit(spec, |options| {
            options.metrics = vec![MetricSpec::new(Metric::Cpu, Some(MetricTarget::Average(0.5)))]
        })
        .unwrap();
        spec.stable_window = Duration::from_secs(10);
    });
    let mut idle = busy(2, 0, Some(0.4), None);
    idle.concurrency = 0.0;
    let decisions: Vec<_> = (0..15).map(|_| run.tick(&idle).desired()).collect();
    assert_eq!(decisions[0], Some(2));
    assert_eq!(decisions[14], Some(0));
}

/// Cases of the replica calculation: ratio, measured, missing, unready, current, and what is wanted.
#[test]
fn replicas_follow_kubernetes_rules_for_missing_and_unready_instances() {
    let metrics = |ratio, measured, missing, unready| InstanceMetrics {
        ratio,
        measured,
        missing,
        unready,
        missing_counts_as: 1.0 / 0.5,
    };
    for (given, current, wanted, why) in [
        (metrics(1.05, 10, 0, 0), 10, Some(10), "within the tolerance"),
        (metrics(1.2, 10, 0, 0), 10, Some(12), "beyond it"),
        (metrics(0.5, 10, 0, 0), 10, Some(5), "downwards"),
        (metrics(3.0, 1, 0, 2), 3, Some(3), "two more are coming: 3 * 1 / 3 = 1"),
        (metrics(6.0, 1, 0, 2), 3, Some(6), "which is not enough for twice as much"),
        (metrics(2.0, 2, 2, 0), 4, Some(4), "missing ones count as idle when it would grow"),
        (metrics(0.4, 2, 2, 0), 4, Some(4), "and as busy when it would shrink"),
        (metrics(0.1, 9, 1, 0), 10, Some(3), "which need not keep it: (0.9 + 2) / 10"),
        (metrics(1.0, 0, 3, 0), 3, None, "nothing was measured"),
        (metrics(f64::NAN, 3, 0, 0), 3, None, "that is no measurement"),
    ] {
        assert_eq!(replicas_of(&given, current, 0.1), wanted, "{why}");
    }
}

#[test]
fn policies_and_stabilisation_limit_how_far_a_resource_scaler_goes() {
    let mut run = Run::new(Resource, |spec| {
        Options::edit(spec, |options| {
            options.metrics = vec![MetricSpec::new(Metric::Cpu, Some(MetricTarget::Average(0.5)))]
        })
        .unwrap();
        let mut rules = ResourceSpec::default();
        rules.scale_up = ScalingRules::new(
            Duration::ZERO,
            SelectPolicy::Min,
            vec![
                ScalingPolicy::Pods { value: 3, period: Duration::from_secs(15) },
                ScalingPolicy::Percent { value: 100, period: Duration::from_secs(15) },
            ],
        );
        rules.scale_down.stabilization_window = Duration::from_secs(30);
        rules.scale_down.policies = vec![ScalingPolicy::Pods { value: 2, period: Duration::from_secs(10) }];
        Options::edit(spec, |options| options.resource = Some(rules)).unwrap();
    });
    let first = run.tick(&busy(4, 10, Some(5.0), None));
    assert_eq!(first.desired(), Some(7), "three more in a period");
    assert!(first.clamps.contains(Clamps::POLICY));
    let second = run.tick(&busy(7, 10, Some(5.0), None));
    assert_eq!(second.desired(), Some(7), "and no more within the same one");
    let mut falls = Vec::new();
    for _ in 0..60 {
        let ready = run.desired.unwrap();
        falls.push(run.tick(&busy(ready, 10, Some(0.05), None)).desired().unwrap());
    }
    assert!(falls[..28].iter().all(|desired| *desired >= 7), "the window of thirty seconds: {falls:?}");
    let steps: Vec<_> = falls.windows(2).map(|pair| pair[0] - pair[1]).filter(|step| *step > 0).collect();
    assert!(!steps.is_empty() && steps.iter().all(|step| *step <= 2), "two in a period: {falls:?}");
}

#[test]
fn disabled_scale_down_never_shrinks() {
    let mut run = Run::new(Resource, |spec| {
        Options::edit(spec, |options| {
            options.metrics = vec![MetricSpec::new(Metric::Cpu, Some(MetricTarget::Average(0.5)))]
        })
        .unwrap();
        let mut rules = ResourceSpec::default();
        rules.scale_down = ScalingRules::new(Duration::ZERO, SelectPolicy::Disabled, Vec::new());
        Options::edit(spec, |options| options.resource = Some(rules)).unwrap();
    });
    for _ in 0..100 {
        assert_eq!(run.tick(&busy(6, 10, Some(0.01), None)).desired(), Some(6));
    }
}

#[test]
fn a_backlog_falls_back_when_it_cannot_be_had() {
    let run = |behavior| {
        let mut run = Run::new(Backlog, |spec| {
            let mut backlog = BacklogSpec::default();
            backlog.target = 10.0;
            backlog.activation = 5;
            let mut fallback = Fallback::new(3, 4);
            fallback.behavior = behavior;
            backlog.fallback = Some(fallback);
            Options::edit(spec, |options| options.backlog = Some(backlog)).unwrap();
        });
        let mut known = load(0);
        known.backlog = Some(5);
        assert_eq!(run.tick(&known).desired(), Some(0), "not above the activation threshold");
        known.backlog = Some(61);
        assert_eq!(run.tick(&known).desired(), Some(7), "from nothing to all in one decision");
        assert_eq!(run.tick(&load(7)).verdict, Verdict::Hold);
        assert_eq!(run.tick(&load(7)).verdict, Verdict::Hold);
        let third = run.tick(&load(7));
        assert_eq!(third.reason, Reason::Fallback);
        third.desired()
    };
    assert_eq!(run(FallbackBehavior::Static), Some(4));
    assert_eq!(run(FallbackBehavior::CurrentReplicas), Some(7));
    assert_eq!(run(FallbackBehavior::CurrentReplicasIfHigher), Some(7));
    assert_eq!(run(FallbackBehavior::CurrentReplicasIfLower), Some(4));
}

/// Every day at a time of a zone; a time that a day does not have is taken an hour later, one that it has twice the
/// first time.
#[derive(Debug)]
struct Daily {
    hour: i8,
    minute: i8,
    zone: TimeZone,
}

impl Schedule for Daily {
    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        let after = jiff::Timestamp::from_nanosecond(i128::from(after.0)).ok()?;
        let mut day = after.to_zoned(self.zone.clone()).date().checked_sub(1.day()).ok()?;
        loop {
            let fires = day.at(self.hour, self.minute, 0, 0).to_zoned(self.zone.clone()).ok()?.timestamp();
            if fires > after {
                return i64::try_from(fires.as_nanosecond()).ok().map(Timestamp);
            }
            day = day.tomorrow().ok()?;
        }
    }
}

/// Reads `hh:mm`.
fn parser() -> ScheduleParser {
    ScheduleParser::new(|text, zone| {
        let bad = || sas_core::Error::new(sas_core::ErrorKind::InvalidSpec, "parse", "write hh:mm");
        let (hour, minute) = text.split_once(':').ok_or_else(bad)?;
        let zone = TimeZone::get(zone.unwrap_or("UTC")).map_err(|_| bad())?;
        Ok(Arc::new(Daily {
            hour: hour.parse().map_err(|_| bad())?,
            minute: minute.parse().map_err(|_| bad())?,
            zone,
        }) as Arc<dyn Schedule>)
    })
}

fn window(at: &str, hours: u64, min: Option<u32>, max: Option<u32>) -> ScheduleWindow {
    let mut window = ScheduleWindow::floor(at, Duration::from_secs(hours * 3600), 0);
    window.time_zone = Some("Europe/Berlin".to_owned());
    window.min = min;
    window.max = max;
    window
}

fn utc(text: &str) -> Timestamp {
    let at: jiff::Timestamp = text.parse().unwrap();
    Timestamp(i64::try_from(at.as_nanosecond()).unwrap())
}

fn scheduled(windows: Vec<ScheduleWindow>) -> Run<Scheduled> {
    Run::new(Scheduled::new(parser()), |spec| {
        Options::edit(spec, |options| options.schedule = windows).unwrap()
    })
}

fn desired_at(run: &mut Run<Scheduled>, at: &str) -> u32 {
    run.now = utc(at);
    let decision = run.tick(&load(0));
    if decision.desired() > Some(0) {
        assert_eq!(decision.reason, Reason::Scheduled);
        assert!(decision.clamps.contains(Clamps::SCHEDULE));
    }
    decision.desired().unwrap()
}

#[test]
fn a_window_across_the_spring_change_lasts_as_long_as_it_says() {
    // 2026-03-29: 02:00 CET becomes 03:00 CEST at 01:00 UTC. From 01:30 CET, two hours later it is 04:30 CEST.
    let mut run = scheduled(vec![window("01:30", 2, Some(5), None)]);
    for (at, wanted) in [
        ("2026-03-29T00:29:00Z", 0),
        ("2026-03-29T00:30:00Z", 5),
        ("2026-03-29T01:15:00Z", 5),
        ("2026-03-29T02:29:00Z", 5),
        ("2026-03-29T02:30:00Z", 0),
        ("2026-03-29T23:31:00Z", 5),
    ] {
        assert_eq!(desired_at(&mut run, at), wanted, "{at}");
    }
}

#[test]
fn a_window_across_the_autumn_change_lasts_as_long_as_it_says_and_opens_once() {
    // 2026-10-25: 03:00 CEST becomes 02:00 CET at 01:00 UTC, so that 02:30 comes twice.
    let mut run = scheduled(vec![window("02:30", 1, Some(5), None)]);
    for (at, wanted) in [
        ("2026-10-25T00:29:00Z", 0),
        ("2026-10-25T00:30:00Z", 5),
        ("2026-10-25T01:29:00Z", 5),
        ("2026-10-25T01:30:00Z", 0),
        ("2026-10-25T02:00:00Z", 0),
        ("2026-10-26T01:30:00Z", 5),
    ] {
        assert_eq!(desired_at(&mut run, at), wanted, "{at}");
    }
}

#[test]
fn overlapping_windows_take_the_maximum_of_floors_and_of_ceilings() {
    let mut run = scheduled(
        vec![
            window("08:00", 8, Some(2), Some(10)),
            window("10:00", 2, Some(6), Some(4)),
            window("11:00", 2, Some(3), Some(20)),
        ]
        .into_iter()
        .map(|mut window| {
            // A window by itself must not contradict itself.
            if window.min > window.max {
                window.max = None;
            }
            window
        })
        .collect(),
    );
    assert_eq!(desired_at(&mut run, "2026-06-01T06:30:00Z"), 2);
    assert_eq!(desired_at(&mut run, "2026-06-01T08:30:00Z"), 6);
    assert_eq!(desired_at(&mut run, "2026-06-01T09:30:00Z"), 6);
    assert_eq!(desired_at(&mut run, "2026-06-01T10:30:00Z"), 3);
    let bounds = WindowBounds { min: Some(3), max: Some(20) };
    assert_eq!([1, 10, 99].map(|desired| bounds.clamp(desired)), [3, 10, 20]);
}

#[test]
fn a_clock_that_goes_back_opens_and_shuts_windows_as_the_time_says() {
    let mut run = scheduled(vec![window("08:00", 1, Some(2), None)]);
    assert_eq!(desired_at(&mut run, "2026-06-01T06:30:00Z"), 2);
    assert_eq!(desired_at(&mut run, "2026-06-01T05:30:00Z"), 0);
    assert_eq!(desired_at(&mut run, "2026-06-01T06:59:58Z"), 2);
    assert_eq!(desired_at(&mut run, "2026-06-01T07:00:00Z"), 0);
}

#[test]
fn a_schedule_that_cannot_be_read_is_refused_with_its_field() {
    let mut spec = ScalingSpec::default();
    Options::edit(&mut spec, |options| options.schedule = vec![window("often", 1, Some(2), None)]).unwrap();
    let errors = Scheduled::new(parser()).validate(&spec).unwrap_err();
    assert_eq!(errors.0[0].field, "options.schedule[0].schedule");
    Options::edit(&mut spec, |options| options.metrics = vec![MetricSpec::new(Metric::Schedule, None)])
        .unwrap();
    let errors = Combined::new().validate(&spec).unwrap_err();
    assert_eq!(errors.0[0].field, "options.metrics");
}

#[test]
fn a_sleeping_revision_knows_when_its_next_floor_opens() {
    let mut run = scheduled(vec![window("08:00", 1, Some(2), None), window("07:00", 1, None, Some(9))]);
    desired_at(&mut run, "2026-06-01T08:30:00Z");
    let asleep = load(0);
    let input = ScaleInput::new(0, run.now, &run.spec, &asleep, Some(0));
    assert_eq!(run.policy.wake_at(&run.state, &input), Some(utc("2026-06-02T06:00:00Z")));
}

fn named(values: &[(&str, f64)]) -> NamedValues {
    let mut named = NamedValues::NONE;
    for (name, value) in values {
        named.insert(*name, *value);
    }
    named
}

fn because(decision: &Decision) -> Option<&str> {
    decision.details.as_ref()?.because.as_deref()
}

fn sessions_and_orders(spec: &mut ScalingSpec) {
    Options::edit(spec, |options| {
        options.metrics = vec![MetricSpec::new(Metric::Backlog, Some(MetricTarget::Average(10.0)))];
        options.custom = vec![CustomMetric::new("sessions", 10.0), CustomMetric::new("orders", 2.0)];
    })
    .unwrap();
}

#[test]
fn named_metrics_vote_and_decide_by_their_names() {
    let mut run = Run::new(Combined::new(), sessions_and_orders);
    let mut load = load(2);
    load.backlog = Some(20);
    let decision = run.tick_with(&load, &named(&[("sessions", 45.0), ("orders", 7.0), ("other", 1e9)]));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Set(5), Reason::Stable));
    assert_eq!(because(&decision), Some("sessions"));
    assert_eq!(
        decision.named_votes(),
        [
            NamedVote::new("sessions", Some(45.0), 10.0, Some(5)),
            NamedVote::new("orders", Some(7.0), 2.0, Some(4)),
        ]
    );
    let decision = run.tick_with(&load, &named(&[("sessions", 45.0), ("orders", 14.0)]));
    assert_eq!((decision.verdict, because(&decision)), (Verdict::Set(7), Some("orders")));
    load.backlog = Some(200);
    let decision = run.tick_with(&load, &named(&[("sessions", 45.0), ("orders", 14.0)]));
    assert_eq!((decision.verdict, because(&decision)), (Verdict::Set(20), None), "the backlog decided");
    assert_eq!(decision.named_votes().len(), 2, "the others have voted all the same");
}

#[test]
fn a_named_metric_that_is_missing_lowers_nothing_and_by_priority_is_passed_over() {
    let mut run = Run::new(Combined::new(), sessions_and_orders);
    let mut load = load(4);
    load.backlog = Some(10);
    let held = run.tick_with(&load, &named(&[("sessions", 10.0)]));
    assert_eq!((held.verdict, held.reason), (Verdict::Hold, Reason::NoData), "orders may be what needs four");
    assert_eq!(held.named_votes()[1], NamedVote::new("orders", None, 2.0, None));
    let raised = run.tick_with(&load, &named(&[("sessions", 60.0)]));
    assert_eq!((raised.verdict, because(&raised)), (Verdict::Set(6), Some("sessions")));

    let mut run = Run::new(Combined::new(), |spec| {
        sessions_and_orders(spec);
        Options::edit(spec, |options| {
            options.metrics = Vec::new();
            options.combine = Combine::Priority;
        })
        .unwrap();
    });
    let decision = run.tick_with(&load, &named(&[("sessions", 10.0), ("orders", 14.0)]));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Set(1), Reason::Stable));
    let decision = run.tick_with(&load, &named(&[("orders", 14.0)]));
    assert_eq!((decision.verdict, decision.reason), (Verdict::Set(7), Reason::Fallback));
    assert_eq!(because(&decision), Some("orders"));
}

#[test]
fn with_named_metrics_at_nothing_it_sleeps_unless_somebody_is_served() {
    let mut run = Run::new(Combined::new(), |spec| {
        Options::edit(spec, |options| options.custom = vec![CustomMetric::new("sessions", 10.0)]).unwrap();
    });
    let none = named(&[("sessions", 0.0)]);
    let idle = run.tick_with(&load(3), &none);
    assert_eq!((idle.verdict, idle.reason), (Verdict::Set(0), Reason::Idle));
    let mut serving = load(3);
    serving.concurrency = 0.5;
    let kept = run.tick_with(&serving, &none);
    assert_eq!((kept.verdict, kept.reason), (Verdict::Set(1), Reason::Waiting));
    assert_eq!(because(&kept), None);
    let mut waiting = load(0);
    waiting.queued = 25;
    let woken = run.tick_with(&waiting, &none);
    assert_eq!((woken.verdict, woken.reason), (Verdict::Set(3), Reason::Waiting));
}

#[test]
fn mistakes_in_named_metrics_are_refused_with_their_fields() {
    let mut spec = ScalingSpec::default();
    spec.scaler = "combined".to_owned();
    Options::edit(&mut spec, |options| {
        options.custom = vec![
            CustomMetric::new("two words", 1.0),
            CustomMetric::new("sessions", 0.0),
            CustomMetric::new("sessions", 1.0),
        ];
        options.custom[0].activation = -1.0;
    })
    .unwrap();
    let errors = Combined::new().validate(&spec).unwrap_err();
    let fields: Vec<_> = errors.0.iter().map(|error| error.field.as_str()).collect();
    for field in ["options.custom[0].name", "options.custom[0].activation", "options.custom[1].target"] {
        assert!(fields.contains(&field), "{field} is not in {fields:?}");
    }
    assert!(fields.contains(&"options.custom[2].name"), "twice: {fields:?}");
}
