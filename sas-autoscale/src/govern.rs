//! What stands between a scaler's wish and the pool: bounds, the initial scale, scale to zero, and restarts.

use std::time::Duration;

use sas_core::{Clamps, Decision, Fidelity, Load, Reason, ScaleInput, ScalingSpec, Verdict};
use serde::{Deserialize, Serialize};

use crate::{
    kpa::{Lifecycle, LifecycleSpec, Observed},
    window::Nanos,
};

/// The state of one revision between its scaler and the pool. Pure: its own clock counts the time that ticks cover.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Governor {
    clock: Nanos,
    /// Whether the initial scale was reached, and when.
    initialized: Option<Nanos>,
    /// Since when nothing is wanted.
    idle_since: Option<Nanos>,
    last_traffic: Nanos,
    /// What was ready when the driver began: not less before a stable window was seen.
    restart_floor: Option<u32>,
    /// Knative's own, for its fidelity: with the decision and the excess burst capacity in force.
    compatible: Option<Box<(Lifecycle, i32, i32)>>,
}

fn nanos(duration: Duration) -> Nanos {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

fn scale_of(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

impl Governor {
    /// The governor of a revision that is seen for the first time with `load`. `restarted` when the driver is
    /// younger than the revision may be; `initialized` when its initial scale is known to have been reached.
    pub fn new(spec: &ScalingSpec, load: &Load, restarted: bool, initialized: bool) -> Self {
        let compatible = (spec.fidelity == Fidelity::Exact).then(|| {
            // Knative leaves what is there alone for a while; more than the maximum must not be there to begin with.
            let most = if spec.max == 0 { u32::MAX } else { spec.max.max(spec.initial) };
            let there = load.ready.saturating_add(load.starting).min(most);
            let mut life = Lifecycle::new(0, scale_of(there));
            life.create(&lifecycle_spec(spec), 0);
            Box::new((life, -1, 0))
        });
        Self {
            clock: 0,
            initialized: initialized.then_some(Nanos::MIN),
            idle_since: None,
            last_traffic: 0,
            restart_floor: (restarted && load.ready > 0).then_some(load.ready),
            compatible,
        }
    }

    /// Whether the initial scale was reached.
    pub fn is_initialized(&self) -> bool {
        match self.compatible.as_deref() {
            Some((life, ..)) => life.is_initialized(),
            None => self.initialized.is_some(),
        }
    }

    /// Applies everything to what the scaler proposed.
    pub fn apply(&mut self, input: &ScaleInput<'_>, decision: &mut Decision) {
        self.clock = self.clock.saturating_add(nanos(input.elapsed));
        let load = input.load;
        if load.requests > 0 || load.concurrency > 0.0 || load.queued > 0 {
            self.last_traffic = self.clock;
        }
        decision.proposed = decision.desired();
        if self.compatible.is_some() {
            self.apply_compatible(input, decision);
        } else {
            self.apply_default(input, decision);
        }
    }

    fn apply_default(&mut self, input: &ScaleInput<'_>, decision: &mut Decision) {
        let (spec, load) = (input.spec, input.load);
        let wanted = match decision.verdict {
            // More than any host has: an absurd count of instances must not come out as a wish.
            Verdict::Set(wanted) => wanted.min(i32::MAX.unsigned_abs()),
            // Nothing to decide from: what is in force stays, within the bounds all the same.
            Verdict::Hold => {
                let kept = input.desired.unwrap_or(0);
                let mut raised = decision.clone();
                let floor = self.restart(spec, kept, &mut raised);
                let bounded = self.bounds(spec, load, kept.max(floor), &mut raised);
                if bounded > kept {
                    raised.verdict = Verdict::Set(bounded);
                    *decision = raised;
                }
                return;
            }
        };
        let floor = self.restart(spec, wanted, decision);
        let mut desired = self.bounds(spec, load, wanted.max(floor), decision);
        if desired == 0 {
            desired = self.last_instance(spec, load, decision);
        } else {
            self.idle_since = None;
        }
        decision.verdict = Verdict::Set(desired);
    }

    /// The floor after a restart.
    fn restart(&mut self, spec: &ScalingSpec, wanted: u32, decision: &mut Decision) -> u32 {
        let Some(floor) = self.restart_floor else { return 0 };
        // The first tick tells of the time before the restart too.
        if self.clock > nanos(spec.stable_window) {
            self.restart_floor = None;
            return 0;
        }
        if floor > wanted {
            decision.clamps.insert(Clamps::RESTART);
            decision.reason = Reason::WarmingUp;
        }
        floor
    }

    fn bounds(&mut self, spec: &ScalingSpec, load: &Load, wanted: u32, decision: &mut Decision) -> u32 {
        let initial = spec.initial.max(spec.min);
        if self.initialized.is_none() && load.ready >= initial.max(1) {
            self.initialized = Some(self.clock);
        }
        let mut desired = wanted;
        if desired < spec.min {
            desired = spec.min;
            decision.clamps.insert(Clamps::MIN);
        }
        if spec.max != 0 && desired > spec.max {
            desired = spec.max;
            decision.clamps.insert(Clamps::MAX);
        }
        // The initial scale waits for the scale-down delay like any other decision.
        let young = self
            .initialized
            .is_none_or(|since| since.saturating_add(nanos(spec.scale_down_delay)) > self.clock);
        if spec.initial > 1 && young && desired < spec.initial {
            desired = spec.initial;
            decision.clamps.insert(Clamps::INITIAL);
        }
        desired
    }

    /// Nothing is wanted: may the last instance go?
    fn last_instance(&mut self, spec: &ScalingSpec, load: &Load, decision: &mut Decision) -> u32 {
        let since = *self.idle_since.get_or_insert(self.clock);
        if !spec.scale_to_zero {
            decision.clamps.insert(Clamps::ZERO);
            return 1;
        }
        if load.queued > 0 {
            decision.reason = Reason::Waiting;
            return 1;
        }
        if load.ready == 0 && load.starting == 0 {
            return 0;
        }
        let kept = self.clock.saturating_sub(since) < nanos(spec.scale_to_zero_grace)
            || self.clock.saturating_sub(self.last_traffic) < nanos(spec.retention);
        if kept {
            decision.clamps.insert(Clamps::ZERO);
        }
        u32::from(kept)
    }

    fn apply_compatible(&mut self, input: &ScaleInput<'_>, decision: &mut Decision) {
        let Some((life, in_force, excess)) = self.compatible.as_deref_mut() else { return };
        if let Verdict::Set(desired) = decision.verdict {
            *in_force = scale_of(desired);
            *excess = decision.excess_burst;
        }
        let spec = lifecycle_spec(input.spec);
        let seen = Observed::new(self.clock, *in_force, *excess, scale_of(input.load.ready));
        let answer = life.reconcile(&spec, &seen);
        if answer.want < 0 {
            decision.verdict = Verdict::Hold;
            return;
        }
        let replicas = u32::try_from(life.replicas()).unwrap_or(0);
        let wanted = u32::try_from(*in_force).unwrap_or(0);
        if replicas > wanted {
            let clamp = if *in_force == 0 && answer.want <= 1 && spec.min <= 1 {
                Clamps::ZERO
            } else if spec.initial > spec.min && !life.is_initialized() {
                Clamps::INITIAL
            } else {
                Clamps::MIN
            };
            decision.clamps.insert(clamp);
        } else if replicas < wanted {
            decision.clamps.insert(Clamps::MAX);
        }
        if life.activity().1 == crate::kpa::ActivityReason::TimedOut {
            decision.reason = Reason::TimedOut;
        }
        decision.verdict = Verdict::Set(replicas);
    }
}

fn lifecycle_spec(spec: &ScalingSpec) -> LifecycleSpec {
    LifecycleSpec::from_scaling(spec)
}
