//! What waits upstream: queue length or lag per instance.

use sas_core::{Decision, Metric, Policy, Reason, ScaleInput, ScalingSpec, SpecErrors, Vote};
use serde::{Deserialize, Serialize};

use crate::{
    delay::Delay,
    options::{BacklogSpec, Options},
    resource::{current_of, fall_back, has_traffic, waiting_needs},
};

/// So many waiting messages per instance; awake from an activation threshold on, with a fall-back when the backlog
/// can't be had: the model of KEDA.
#[derive(Clone, Copy, Debug, Default)]
pub struct Backlog;

/// What [`Backlog`] remembers of a revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BacklogState {
    delay: Delay,
    pub(crate) failures: Failures,
}

/// Ticks in a row without a value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Failures(u32);

/// What a backlog says.
pub(crate) enum Said {
    /// So many instances.
    Wants(u32),
    /// It was not measured, and this is stated for the case.
    Fallback(u32),
    /// It was not measured.
    Missing,
}

impl Failures {
    pub(crate) fn ask(&mut self, spec: &BacklogSpec, target: f64, input: &ScaleInput<'_>) -> Said {
        match input.load.backlog {
            Some(waiting) => {
                self.0 = 0;
                if waiting > spec.activation { Said::Wants(needs(waiting, target)) } else { Said::Wants(0) }
            }
            None => {
                self.0 = self.0.saturating_add(1);
                match &spec.fallback {
                    Some(fallback) if self.0 >= fallback.failure_threshold => {
                        Said::Fallback(fall_back(fallback, current_of(input.load)))
                    }
                    _ => Said::Missing,
                }
            }
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn needs(waiting: u64, target: f64) -> u32 {
    ((waiting as f64 / target).ceil() as u32).clamp(1, i32::MAX as u32)
}

impl Policy for Backlog {
    type State = BacklogState;

    fn name(&self) -> &'static str {
        "backlog"
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        Options::check(spec, |_, _| {})
    }

    fn decide(&self, state: &mut BacklogState, input: &ScaleInput<'_>) -> Decision {
        state.delay.pass(input.elapsed);
        let spec = Options::served(input.spec).backlog.unwrap_or_default();
        let said = state.failures.ask(&spec, spec.target, input);
        let load = input.load;
        let vote = |desired| {
            Vote::new(Metric::Backlog, load.backlog.map(|waiting| waiting as f64), spec.target, desired)
        };
        // Messages that run are no backlog any more, but need their instance.
        let busy = waiting_needs(input).max(u32::from(has_traffic(load)));
        let mut decision = match said {
            Said::Wants(wanted) => {
                let desired = wanted.max(busy);
                let reason = if desired == 0 {
                    Reason::Idle
                } else if wanted < busy {
                    Reason::Waiting
                } else {
                    Reason::Stable
                };
                let mut decision = Decision::set(desired, reason);
                decision.votes.push(vote(Some(wanted)));
                decision
            }
            Said::Fallback(replicas) => {
                let mut decision = Decision::set(replicas.max(busy), Reason::Fallback);
                decision.votes.push(vote(None));
                decision
            }
            Said::Missing => {
                let mut decision = if current_of(load) < busy {
                    Decision::set(busy, Reason::Waiting)
                } else {
                    Decision::hold(Reason::NoData)
                };
                decision.votes.push(vote(None));
                decision
            }
        };
        state.delay.hold(input.spec.scale_down_delay, &mut decision);
        decision
    }
}
