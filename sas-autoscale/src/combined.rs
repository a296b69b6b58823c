//! Several metrics, one decision.

use sas_core::{
    Clamps, Decision, Metric, NamedVote, Policy, Reason, ScaleInput, ScalingSpec, SpecErrors, Timestamp,
    Verdict, Vote, Votes,
};
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

use crate::{
    backlog::{Failures, Said},
    delay::Delay,
    forecast::{Forecaster, demand_of, floor, instances, lead_of, raise},
    kpa::{Kpa, KpaState},
    options::{self, Combine, MetricSpec, MetricTarget, Options, ResourceSpec},
    resource::{Moves, current_of, has_traffic, opinion, waiting_needs},
    scheduled::{ScheduleParser, Windows, apply},
    window::Nanos,
};

/// The metrics that a spec lists, together: the highest vote, or the first metric in order of priority that was
/// measured. Schedules and forecasts are bounds in either way.
///
/// With a metric missing, the others may raise the number and not lower it. Zero needs every traffic metric to say
/// so: CPU and memory have no opinion on a revision that nobody calls.
#[derive(Clone, Debug, Default)]
pub struct Combined {
    parser: Option<ScheduleParser>,
}

impl Combined {
    /// Without schedules: a spec with `schedule` among its metrics is refused.
    pub const fn new() -> Self {
        Self { parser: None }
    }

    /// With the host's way to read schedules.
    pub const fn with_schedules(parser: ScheduleParser) -> Self {
        Self { parser: Some(parser) }
    }
}

/// What [`Combined`] remembers of a revision: as much as its metrics need.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct CombinedState {
    concurrency: Option<Box<KpaState>>,
    rps: Option<Box<KpaState>>,
    failures: Failures,
    forecaster: Option<Box<Forecaster>>,
    windows: Windows,
    moves: Moves,
    delay: Delay,
    idle_since: Option<Nanos>,
}

/// What one metric says.
enum Says {
    /// So many, for a reason and with clamps.
    Wants(u32, Reason, Clamps),
    /// So many for CPU or memory, before the limits that they share.
    Resource(u32),
    /// It was not measured.
    Missing,
    /// Nothing that concerns it.
    NoOpinion,
}

impl Policy for Combined {
    type State = CombinedState;

    fn name(&self) -> &'static str {
        "combined"
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        Options::check(spec, |options, errors| {
            options::need_metrics(options, errors);
            let asked = options.metrics.iter().any(|metric| metric.metric == Metric::Schedule);
            match &self.parser {
                Some(parser) if asked => parser.check(&options.schedule, errors),
                None if asked => {
                    let problem = "another metric: this platform reads no schedules";
                    errors.push("options.metrics", "schedule", problem);
                }
                _ => {}
            }
        })
    }

    fn decide(&self, state: &mut CombinedState, input: &ScaleInput<'_>) -> Decision {
        let now = state.delay.pass(input.elapsed);
        if has_traffic(input.load) {
            state.idle_since = None;
        } else {
            state.idle_since.get_or_insert(now);
        }
        let spec = input.spec;
        let options = &*Options::served(spec);
        let current = current_of(input.load);
        let mut votes = Votes::new();
        let mut excess_burst = None;
        // A spec without metrics is refused beforehand; by its own metric it is at least served.
        let own = [MetricSpec::new(spec.metric, None)];
        let metrics =
            if options.metrics.is_empty() && options.custom.is_empty() { &own[..] } else { &options.metrics };
        let mut said: SmallVec<[Says; 4]> = SmallVec::new();
        for metric in metrics {
            said.push(match metric.metric {
                Metric::Concurrency | Metric::Rps => {
                    let decision = traffic(state, input, metric);
                    votes.extend(decision.votes.iter().copied());
                    excess_burst.get_or_insert(decision.excess_burst);
                    match decision.verdict {
                        Verdict::Set(wanted) => Says::Wants(wanted, decision.reason, decision.clamps),
                        Verdict::Hold => Says::Missing,
                    }
                }
                Metric::Cpu | Metric::Memory => resource(state, input, options, metric, now, &mut votes),
                Metric::Backlog => backlog(state, input, options, metric, &mut votes),
                _ => Says::NoOpinion,
            });
        }
        let listed = said.len();
        let mut named = Vec::new();
        for metric in &options.custom {
            let value = input.named.get(&metric.name);
            let desired = value.map(|value| match value > metric.activation {
                true => instances(value, metric.target).max(1),
                false => 0,
            });
            said.push(match desired {
                Some(0) => Says::Wants(0, Reason::Idle, Clamps::default()),
                Some(wanted) => Says::Wants(wanted, Reason::Stable, Clamps::default()),
                None => Says::Missing,
            });
            named.push(NamedVote::new(&metric.name, value, metric.target, desired));
        }
        limit_resources(state, input, options, now, &mut said);
        let mut decision = match options.combine {
            Combine::Priority => by_priority(&said),
            Combine::Max => by_maximum(&said, current),
        };
        let chosen = decision
            .desired()
            .filter(|desired| *desired > 0)
            .and_then(|desired| decided_by(&said, options.combine, desired))
            .and_then(|at| options.custom.get(at.checked_sub(listed)?));
        // Whoever waits is served, whatever the metrics are about; whoever is served needs an instance.
        let needs = match decision.verdict {
            _ if current == 0 => waiting_needs(input).max(u32::from(has_traffic(input.load))),
            Verdict::Set(_) => u32::from(has_traffic(input.load)),
            Verdict::Hold => 0,
        };
        if needs > decision.desired().unwrap_or(0) {
            decision.verdict = Verdict::Set(needs);
            decision.reason = Reason::Waiting;
        }
        decision.votes = votes;
        decision.excess_burst = excess_burst.unwrap_or(0);
        state.delay.hold(spec.scale_down_delay, &mut decision);
        self.bounds(state, input, options, &mut decision);
        for vote in named {
            decision.push_named(vote);
        }
        match chosen {
            // Else something above the metrics decided.
            Some(metric) if matches!(decision.reason, Reason::Stable | Reason::Fallback) => {
                decision.because(&metric.name)
            }
            _ => decision,
        }
    }

    fn wake_at(&self, state: &CombinedState, input: &ScaleInput<'_>) -> Option<Timestamp> {
        let options = &*Options::served(input.spec);
        let asked = |metric| options.metrics.iter().any(|other| other.metric == metric);
        let opens = if asked(Metric::Schedule) {
            state.windows.next_floor(&options.schedule, input.now)
        } else {
            None
        };
        let peak = state.forecaster.as_ref().filter(|_| asked(Metric::Forecast)).map(|forecaster| {
            let forecast = options.forecast.unwrap_or_default();
            let (target, _) = demand_of(input, forecast_metric(input.spec, options));
            forecaster.next_peak(&forecast, input.now, lead_of(&forecast, input), target)
        });
        opens.into_iter().chain(peak).min()
    }
}

/// The metric that a forecast is about: the first traffic metric, else the spec's own.
fn forecast_metric(spec: &ScalingSpec, options: &Options) -> Metric {
    options
        .metrics
        .iter()
        .map(|metric| metric.metric)
        .find(|metric| matches!(metric, Metric::Concurrency | Metric::Rps))
        .unwrap_or(spec.metric)
}

impl Combined {
    fn bounds(
        &self,
        state: &mut CombinedState,
        input: &ScaleInput<'_>,
        options: &Options,
        decision: &mut Decision,
    ) {
        let in_force = input.desired.unwrap_or(0);
        for metric in &options.metrics {
            match metric.metric {
                Metric::Forecast => {
                    let forecast = options.forecast.unwrap_or_default();
                    let (target, demand) = demand_of(input, forecast_metric(input.spec, options));
                    let forecaster = state.forecaster.get_or_insert_default();
                    let (least, vote) = floor(forecaster, &forecast, input, demand, target);
                    decision.votes.push(vote);
                    raise(least, in_force, decision);
                }
                Metric::Schedule => {
                    if let Some(parser) = &self.parser {
                        let bounds = state.windows.bounds(parser, &options.schedule, input.now);
                        apply(bounds, in_force, decision);
                    }
                }
                _ => {}
            }
        }
    }
}

fn traffic(state: &mut CombinedState, input: &ScaleInput<'_>, metric: &MetricSpec) -> Decision {
    let target = match metric.target {
        Some(MetricTarget::Average(target)) => Some(target),
        _ => None,
    };
    let slot = if metric.metric == Metric::Rps { &mut state.rps } else { &mut state.concurrency };
    Kpa::decide_for(slot.get_or_insert_default(), input, metric.metric, target)
}

fn resource(
    state: &CombinedState,
    input: &ScaleInput<'_>,
    options: &Options,
    metric: &MetricSpec,
    now: Nanos,
    votes: &mut Votes,
) -> Says {
    let window = i64::try_from(input.spec.stable_window.as_nanos()).unwrap_or(i64::MAX);
    if current_of(input.load) == 0 || state.idle_since.is_some_and(|since| now - since >= window) {
        votes.push(Vote::new(metric.metric, None, 0.0, None));
        return Says::NoOpinion;
    }
    let tolerance =
        options.resource.as_ref().map_or(ResourceSpec::default().tolerance, |rules| rules.tolerance);
    let opinion = opinion(input, metric, tolerance);
    votes.push(opinion.vote);
    match opinion.vote.desired {
        Some(wanted) => Says::Resource(wanted.max(1)),
        None if opinion.missing => Says::Missing,
        None => Says::NoOpinion,
    }
}

/// The resources are limited together, by the highest of them, as Kubernetes does.
fn limit_resources(
    state: &mut CombinedState,
    input: &ScaleInput<'_>,
    options: &Options,
    now: Nanos,
    said: &mut [Says],
) {
    let highest =
        said.iter().filter_map(|says| if let Says::Resource(wanted) = says { Some(*wanted) } else { None });
    // By priority the first one that was measured speaks for itself.
    let wanted = match options.combine {
        Combine::Priority => highest.into_iter().next(),
        Combine::Max => highest.max(),
    };
    let Some(wanted) = wanted else { return };
    let default;
    let rules = match &options.resource {
        Some(rules) => rules,
        None => {
            default = ResourceSpec::default();
            &default
        }
    };
    let mut clamps = Clamps::default();
    let limited = state.moves.limit(rules, now, current_of(input.load), wanted, &mut clamps).max(1);
    for says in said {
        if matches!(says, Says::Resource(_)) {
            *says = Says::Wants(limited, Reason::Stable, clamps);
        }
    }
}

fn backlog(
    state: &mut CombinedState,
    input: &ScaleInput<'_>,
    options: &Options,
    metric: &MetricSpec,
    votes: &mut Votes,
) -> Says {
    let spec = options.backlog.unwrap_or_default();
    let target = match metric.target {
        Some(MetricTarget::Average(target)) => target,
        _ => spec.target,
    };
    let value = input.load.backlog.map(|waiting| waiting as f64);
    let (said, desired) = match state.failures.ask(&spec, target, input) {
        Said::Wants(0) => (Says::Wants(0, Reason::Idle, Clamps::default()), Some(0)),
        Said::Wants(wanted) => (Says::Wants(wanted, Reason::Stable, Clamps::default()), Some(wanted)),
        Said::Fallback(replicas) => (Says::Wants(replicas, Reason::Fallback, Clamps::default()), None),
        Said::Missing => (Says::Missing, None),
    };
    votes.push(Vote::new(metric.metric, value, target, desired));
    said
}

/// The first that wanted what was decided; by priority the first that wanted anything.
fn decided_by(said: &[Says], combine: Combine, desired: u32) -> Option<usize> {
    said.iter().position(|says| match says {
        Says::Wants(wanted, ..) => *wanted == desired || combine == Combine::Priority,
        _ => false,
    })
}

fn by_maximum(said: &[Says], current: u32) -> Decision {
    let missing = said.iter().any(|says| matches!(says, Says::Missing));
    let highest = said
        .iter()
        .filter_map(|says| match says {
            Says::Wants(wanted, reason, clamps) => Some((*wanted, *reason, *clamps)),
            _ => None,
        })
        // Of equals the first, which is the more important one.
        .reduce(|best, next| if next.0 > best.0 { next } else { best });
    match highest {
        Some((wanted, ..)) if missing && wanted < current => Decision::hold(Reason::NoData),
        Some((wanted, reason, clamps)) => wants(wanted, reason, clamps),
        None if missing => Decision::hold(Reason::NoData),
        None => Decision::set(0, Reason::Idle),
    }
}

fn by_priority(said: &[Says]) -> Decision {
    let mut passed_over = false;
    for says in said {
        match says {
            Says::Wants(wanted, reason, clamps) => {
                let reason = if passed_over { Reason::Fallback } else { *reason };
                return wants(*wanted, reason, *clamps);
            }
            Says::Missing => passed_over = true,
            Says::Resource(_) | Says::NoOpinion => {}
        }
    }
    if passed_over { Decision::hold(Reason::NoData) } else { Decision::set(0, Reason::Idle) }
}

fn wants(wanted: u32, reason: Reason, clamps: Clamps) -> Decision {
    let mut decision = Decision::set(wanted, reason);
    decision.clamps = clamps;
    decision
}
