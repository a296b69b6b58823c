//! CPU and memory, by the algorithm of Kubernetes' HorizontalPodAutoscaler.

use std::collections::VecDeque;

use sas_core::{Clamps, Decision, Load, Metric, Policy, Reason, ScaleInput, ScalingSpec, SpecErrors, Vote};
use serde::{Deserialize, Serialize};

use crate::{
    delay::Delay,
    options::{
        self, Fallback, FallbackBehavior, MetricSpec, MetricTarget, Options, ResourceSpec, ScalingPolicy,
        ScalingRules, SelectPolicy,
    },
    window::Nanos,
};

/// CPU and memory per instance, as Kubernetes scales by them; but to zero when no request comes for a stable window.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resource;

/// What [`Resource`] remembers of a revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ResourceState {
    clock: Delay,
    idle_since: Option<Nanos>,
    moves: Moves,
}

/// A metric over the instances of a revision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct InstanceMetrics {
    /// Mean over those that were measured, as a multiple of the target.
    pub ratio: f64,
    /// Ready instances that were measured.
    pub measured: u32,
    /// Ready instances that were not.
    pub missing: u32,
    /// Instances that are not ready.
    pub unready: u32,
    /// What a missing one counts as when it would shrink, as a multiple of the target: what it requests, or the
    /// target where that is higher.
    pub missing_counts_as: f64,
}

/// How many instances one metric asks for. `None`: nothing was measured.
///
/// Within the tolerance nothing changes. When it would shrink, what is not known counts as busy; when it would grow,
/// as idle, and so do instances that are not ready; when that turns the direction round, nothing changes.
pub(crate) fn replicas_of(metrics: &InstanceMetrics, current: u32, tolerance: f64) -> Option<u32> {
    let &InstanceMetrics { ratio, measured, missing, unready, missing_counts_as } = metrics;
    if measured == 0 || !ratio.is_finite() || ratio < 0.0 {
        return None;
    }
    let within = |ratio: f64| (ratio - 1.0).abs() <= tolerance;
    let grows_past_unready = unready > 0 && ratio > 1.0;
    if !grows_past_unready && missing == 0 {
        return Some(if within(ratio) { current } else { ceil(ratio * f64::from(measured)) });
    }
    let mut sum = ratio * f64::from(measured);
    let mut count = measured;
    if missing > 0 && ratio != 1.0 {
        count = count.saturating_add(missing);
        if ratio < 1.0 {
            sum += f64::from(missing) * missing_counts_as;
        }
    }
    if grows_past_unready {
        count = count.saturating_add(unready);
    }
    let filled = sum / f64::from(count);
    if within(filled) || ratio < 1.0 && filled > 1.0 || ratio > 1.0 && filled < 1.0 {
        return Some(current);
    }
    let replicas = ceil(filled * f64::from(count));
    if filled < 1.0 && replicas > current || filled > 1.0 && replicas < current {
        return Some(current);
    }
    Some(replicas)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn ceil(value: f64) -> u32 {
    (value.ceil() as u32).min(i32::MAX as u32)
}

/// What one resource says.
pub(crate) struct Opinion {
    pub(crate) vote: Vote,
    /// Whether it was asked and could not answer.
    pub(crate) missing: bool,
}

/// Instances that run or are about to.
pub(crate) fn current_of(load: &Load) -> u32 {
    load.ready.saturating_add(load.starting)
}

pub(crate) fn opinion(input: &ScaleInput<'_>, metric: &MetricSpec, tolerance: f64) -> Opinion {
    let load = input.load;
    let cpu = metric.metric == Metric::Cpu;
    let value = if cpu { load.cpu } else { load.memory }.filter(|value| *value >= 0.0 && value.is_finite());
    let request = input.resources.and_then(|resources| {
        if cpu {
            resources.cpu_request_millis.map(|millis| f64::from(millis) / 1000.0)
        } else {
            resources.memory_request_bytes.map(|bytes| bytes as f64)
        }
    });
    let (target, missing_counts_as) = match metric.target {
        Some(MetricTarget::Average(target)) => (Some(target), 1.0),
        Some(MetricTarget::Utilization(percent)) => {
            (request.map(|request| request * percent / 100.0), percent.max(100.0) / percent)
        }
        None => (None, 1.0),
    };
    let current = current_of(load);
    let missing_instances = load.unmeasured.min(load.ready);
    let desired = value.zip(target).and_then(|(value, target)| {
        let metrics = InstanceMetrics {
            ratio: value / target,
            measured: load.ready - missing_instances,
            missing: missing_instances,
            unready: load.starting,
            missing_counts_as,
        };
        replicas_of(&metrics, current, tolerance)
    });
    Opinion {
        vote: Vote::new(metric.metric, value, target.unwrap_or(0.0), desired),
        missing: desired.is_none() && load.ready > 0,
    }
}

/// Recommendations and steps of late.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Moves {
    /// Recommendations that no later one exceeds, for the way down.
    highest: VecDeque<(Nanos, u32)>,
    /// Recommendations that no later one undercuts, for the way up.
    lowest: VecDeque<(Nanos, u32)>,
    ups: VecDeque<(Nanos, u32)>,
    downs: VecDeque<(Nanos, u32)>,
}

impl Moves {
    /// Stabilisation, then the policies: what may become of `current` at `now`.
    pub(crate) fn limit(
        &mut self,
        spec: &ResourceSpec,
        now: Nanos,
        current: u32,
        recommended: u32,
        clamps: &mut Clamps,
    ) -> u32 {
        let stable = self.stabilize(spec, now, current, recommended);
        if stable != recommended {
            clamps.insert(Clamps::STABILIZATION);
        }
        let limited = if stable > current {
            stable.min(self.up_limit(&spec.scale_up, now, current).max(current))
        } else if stable < current {
            stable.max(self.down_limit(&spec.scale_down, now, current).min(current))
        } else {
            stable
        };
        if limited != stable {
            clamps.insert(Clamps::POLICY);
        }
        let longest = |rules: &ScalingRules| {
            rules.policies.iter().map(|policy| nanos(period_of(policy))).max().unwrap_or(0)
        };
        expire(&mut self.ups, now - longest(&spec.scale_up).max(longest(&spec.scale_down)));
        expire(&mut self.downs, now - longest(&spec.scale_up).max(longest(&spec.scale_down)));
        if limited > current {
            add(&mut self.ups, now, limited - current);
        } else if limited < current {
            add(&mut self.downs, now, current - limited);
        }
        limited
    }

    fn stabilize(&mut self, spec: &ResourceSpec, now: Nanos, current: u32, recommended: u32) -> u32 {
        expire(&mut self.highest, now - nanos(spec.scale_down.stabilization_window));
        expire(&mut self.lowest, now - nanos(spec.scale_up.stabilization_window));
        let up = self.lowest.front().map_or(recommended, |(_, lowest)| recommended.min(*lowest));
        let down = self.highest.front().map_or(recommended, |(_, highest)| recommended.max(*highest));
        while self.highest.back().is_some_and(|(_, value)| *value <= recommended) {
            self.highest.pop_back();
        }
        self.highest.push_back((now, recommended));
        while self.lowest.back().is_some_and(|(_, value)| *value >= recommended) {
            self.lowest.pop_back();
        }
        self.lowest.push_back((now, recommended));
        let mut stable = current;
        if stable < up {
            stable = up;
        }
        if stable > down {
            stable = down;
        }
        stable
    }

    /// Instances at the beginning of a policy's period.
    fn at_start(&self, policy: &ScalingPolicy, now: Nanos, current: u32) -> i64 {
        let since = now - nanos(period_of(policy));
        let sum = |events: &VecDeque<(Nanos, u32)>| -> i64 {
            events.iter().filter(|(at, _)| *at > since).map(|(_, by)| i64::from(*by)).sum()
        };
        i64::from(current) - sum(&self.ups) + sum(&self.downs)
    }

    fn up_limit(&self, rules: &ScalingRules, now: Nanos, current: u32) -> u32 {
        let limits = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, now, current);
            match policy {
                ScalingPolicy::Percent { value, .. } => {
                    i64::from(ceil((start as f64 * (1.0 + f64::from(*value) / 100.0)).max(0.0)))
                }
                ScalingPolicy::Pods { value, .. } => start + i64::from(*value),
            }
        });
        let limit = match rules.select {
            SelectPolicy::Max => limits.max(),
            SelectPolicy::Min => limits.min(),
            SelectPolicy::Disabled => None,
        };
        to_count(limit.unwrap_or(i64::from(current)))
    }

    #[allow(clippy::cast_possible_truncation, reason = "towards zero, as Kubernetes does")]
    fn down_limit(&self, rules: &ScalingRules, now: Nanos, current: u32) -> u32 {
        let limits = rules.policies.iter().map(|policy| {
            let start = self.at_start(policy, now, current);
            match policy {
                ScalingPolicy::Percent { value, .. } => {
                    (start as f64 * (1.0 - f64::from(*value) / 100.0)) as i64
                }
                ScalingPolicy::Pods { value, .. } => start - i64::from(*value),
            }
        });
        // The policy that allows most is the one that leaves fewest.
        let limit = match rules.select {
            SelectPolicy::Max => limits.min(),
            SelectPolicy::Min => limits.max(),
            SelectPolicy::Disabled => None,
        };
        to_count(limit.unwrap_or(i64::from(current)))
    }
}

fn to_count(value: i64) -> u32 {
    u32::try_from(value.clamp(0, i64::from(i32::MAX))).unwrap_or(0)
}

fn period_of(policy: &ScalingPolicy) -> std::time::Duration {
    match policy {
        ScalingPolicy::Pods { period, .. } | ScalingPolicy::Percent { period, .. } => *period,
    }
}

fn nanos(duration: std::time::Duration) -> Nanos {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// Drops what is not younger than `since`.
fn expire(events: &mut VecDeque<(Nanos, u32)>, since: Nanos) {
    while events.front().is_some_and(|(at, _)| *at <= since) {
        events.pop_front();
    }
}

/// Events of one second are one, which bounds the list by the longest period.
fn add(events: &mut VecDeque<(Nanos, u32)>, now: Nanos, by: u32) {
    match events.back_mut() {
        Some((at, sum)) if now - *at < crate::window::SECOND => *sum = sum.saturating_add(by),
        _ => events.push_back((now, by)),
    }
}

/// How many instances what waits needs at once, when nothing is ready.
pub(crate) fn waiting_needs(input: &ScaleInput<'_>) -> u32 {
    match (input.load.queued, input.concurrency) {
        (0, _) => 0,
        (_, 0) => 1,
        (queued, limit) => queued.div_ceil(limit),
    }
}

/// Whether anything was asked of the revision.
pub(crate) fn has_traffic(load: &Load) -> bool {
    load.requests > 0 || load.queued > 0 || load.concurrency > 0.0
}

/// The number that a fall-back gives.
pub(crate) fn fall_back(fallback: &Fallback, current: u32) -> u32 {
    match fallback.behavior {
        FallbackBehavior::CurrentReplicas => current,
        FallbackBehavior::CurrentReplicasIfHigher => fallback.replicas.max(current),
        FallbackBehavior::CurrentReplicasIfLower => fallback.replicas.min(current),
        FallbackBehavior::Static => fallback.replicas,
    }
}

impl Policy for Resource {
    type State = ResourceState;

    fn name(&self) -> &'static str {
        "resource"
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        Options::check(spec, options::need_resources)
    }

    fn decide(&self, state: &mut ResourceState, input: &ScaleInput<'_>) -> Decision {
        let now = state.clock.pass(input.elapsed);
        let options = Options::served(input.spec);
        let default;
        let rules = match &options.resource {
            Some(rules) => rules,
            None => {
                default = ResourceSpec::default();
                &default
            }
        };
        let load = input.load;
        let current = current_of(load);
        if has_traffic(load) {
            state.idle_since = None;
        } else {
            state.idle_since.get_or_insert(now);
        }
        if current == 0 {
            let needs = waiting_needs(input).max(u32::from(has_traffic(load)));
            return Decision::set(needs, if needs > 0 { Reason::Waiting } else { Reason::Idle });
        }
        let idle = state.idle_since.is_some_and(|since| now - since >= nanos(input.spec.stable_window));
        let opinions: Vec<Opinion> =
            options.metrics.iter().map(|metric| opinion(input, metric, rules.tolerance)).collect();
        let votes = opinions.iter().map(|opinion| opinion.vote).collect();
        let wanted = opinions.iter().filter_map(|opinion| opinion.vote.desired).max();
        let missing = opinions.iter().any(|opinion| opinion.missing);
        let mut decision = match wanted {
            _ if idle => Decision::set(0, Reason::Idle),
            // What is not known may be what is needed.
            Some(wanted) if missing && wanted < current => Decision::hold(Reason::NoData),
            Some(wanted) => {
                let mut decision = Decision::set(0, Reason::Stable);
                if wanted == current
                    && opinions.iter().any(|opinion| opinion.vote.value != Some(opinion.vote.target))
                {
                    decision.clamps.insert(Clamps::TOLERANCE);
                }
                // Kubernetes' least is one: only traffic can say zero.
                let limited = state.moves.limit(rules, now, current, wanted.max(1), &mut decision.clamps);
                decision.verdict = sas_core::Verdict::Set(limited.max(1));
                decision
            }
            None => Decision::hold(Reason::NoData),
        };
        decision.votes = votes;
        decision
    }
}
