//! Kept decisions, made again: with the same configuration bit for bit, or with another.

use sas_core::{Decision, ScaleInput, Scaler, ScalingSpec};

use crate::history::{Checkpoint, Stretch};

/// Why a stretch can't be replayed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The stretch is of another scaler.
    #[error("the stretch was decided by {found:?}, this is {given:?}: give the scaler of that name")]
    OtherScaler {
        /// The scaler of the stretch.
        found: String,
        /// The scaler that was given.
        given: &'static str,
    },
    /// Its decisions changed since.
    #[error("{scaler} decided in version {found}, this is version {given}: only what_if can compare them")]
    OtherVersion {
        /// The scaler.
        scaler: String,
        /// The version of the stretch.
        found: u32,
        /// The version that was given.
        given: u32,
    },
    /// The checkpoint is not one of this scaler's.
    #[error(transparent)]
    Checkpoint(#[from] sas_core::Error),
    /// The configuration to try is not valid.
    #[error("the configuration to try: {0}")]
    Spec(#[from] sas_core::SpecErrors),
}

/// Makes the decisions of a stretch again, from its checkpoint and inputs alone.
///
/// # Errors
/// When the scaler is another one, or another version of it.
pub fn replay(scaler: &dyn Scaler, stretch: &Stretch) -> Result<Vec<Decision>, ReplayError> {
    let checkpoint = &stretch.checkpoint;
    if checkpoint.scaler != scaler.name() {
        return Err(ReplayError::OtherScaler { found: checkpoint.scaler.clone(), given: scaler.name() });
    }
    if checkpoint.version != scaler.version() {
        return Err(ReplayError::OtherVersion {
            scaler: checkpoint.scaler.clone(),
            found: checkpoint.version,
            given: scaler.version(),
        });
    }
    run(scaler, stretch, &stretch.spec, checkpoint.state.clone())
}

/// What `scaler` would have decided with `spec` on the loads of a stretch.
///
/// The loads stay as they were: what other decisions would have changed about them is not known. The scaler begins
/// with the state of the checkpoint when it is the same one, else with none.
///
/// # Errors
/// When `spec` is not valid.
pub fn what_if(
    scaler: &dyn Scaler,
    stretch: &Stretch,
    spec: &ScalingSpec,
) -> Result<Vec<Decision>, ReplayError> {
    spec.validate()?;
    scaler.validate(spec)?;
    let checkpoint = &stretch.checkpoint;
    let same = checkpoint.scaler == scaler.name()
        && checkpoint.version == scaler.version()
        && stretch.spec.fidelity == spec.fidelity;
    run(scaler, stretch, spec, checkpoint.state.clone().filter(|_| same))
}

fn run(
    scaler: &dyn Scaler,
    stretch: &Stretch,
    spec: &ScalingSpec,
    state: Option<serde_json::Value>,
) -> Result<Vec<Decision>, ReplayError> {
    let Checkpoint { governor, desired, .. } = &stretch.checkpoint;
    let (mut governor, mut desired) = (governor.clone(), *desired);
    if spec.fidelity != stretch.spec.fidelity
        && let Some(first) = stretch.records.first()
    {
        governor = crate::govern::Governor::new(spec, &first.load, false, governor.is_initialized());
    }
    let mut states = scaler.new_states();
    if let Some(state) = state {
        scaler.restore(&mut *states, 0, state)?;
    }
    let mut out = Vec::with_capacity(1);
    let mut decisions = Vec::with_capacity(stretch.records.len());
    for record in &stretch.records {
        // What the pool decided beside the scaler changed nothing for it.
        if record.decision.reason.is_pools_own() {
            decisions.push(record.decision.clone());
            continue;
        }
        let input = ScaleInput::new(0, record.at, spec, &record.load, desired)
            .over(record.elapsed)
            .named(&record.named)
            .of(stretch.concurrency, Some(&stretch.resources));
        out.clear();
        if record.decision.reason == sas_core::Reason::ScalerFailed {
            // The platform forgot the state of a scaler that panicked; so must the replay.
            scaler.retire(&mut *states, 0);
            out.push(Decision::hold(sas_core::Reason::ScalerFailed));
        } else {
            scaler.tick(&mut *states, std::slice::from_ref(&input), &mut out);
        }
        let mut decision = out.pop().unwrap_or(Decision::hold(sas_core::Reason::ScalerFailed));
        decision.version = scaler.version();
        governor.apply(&input, &mut decision);
        desired = decision.desired().or(desired);
        decisions.push(decision);
    }
    Ok(decisions)
}

/// Decisions of `scaler` on loads that a closure makes, one a second for `ticks` seconds from `start`: a stretch like
/// those that a driver keeps, for examples, tests of configurations and simulations.
///
/// The closure gets the second and the decision in force.
///
/// # Errors
/// When `spec` is not valid.
pub fn simulate(
    scaler: &dyn Scaler,
    spec: &ScalingSpec,
    concurrency: u32,
    start: sas_core::Timestamp,
    ticks: u32,
    mut load: impl FnMut(u32, Option<u32>) -> sas_core::Load,
) -> Result<Stretch, ReplayError> {
    spec.validate()?;
    scaler.validate(spec)?;
    let resources = sas_core::Resources::default();
    let mut states = scaler.new_states();
    let mut stretch: Option<Stretch> = None;
    let mut governor = None;
    let mut desired = None;
    let mut out = Vec::with_capacity(1);
    for second in 0..ticks {
        let at = start + std::time::Duration::from_secs(u64::from(second));
        let load = load(second, desired);
        let governor =
            governor.get_or_insert_with(|| crate::govern::Governor::new(spec, &load, false, false));
        let kept = stretch.get_or_insert_with(|| Stretch {
            spec: spec.clone(),
            concurrency,
            resources,
            checkpoint: Checkpoint {
                scaler: scaler.name().to_owned(),
                version: scaler.version(),
                state: None,
                governor: governor.clone(),
                desired: None,
            },
            records: Vec::new(),
        });
        let input = ScaleInput::new(0, at, spec, &load, desired).of(concurrency, Some(&resources));
        out.clear();
        scaler.tick(&mut *states, std::slice::from_ref(&input), &mut out);
        let mut decision = out.pop().unwrap_or(Decision::hold(sas_core::Reason::ScalerFailed));
        decision.version = scaler.version();
        governor.apply(&input, &mut decision);
        let previous = desired;
        desired = decision.desired().or(desired);
        kept.records.push(sas_core::DecisionRecord::new(u64::from(second) + 1, at, load, previous, decision));
    }
    stretch.ok_or_else(|| {
        let mut errors = sas_core::SpecErrors::default();
        errors.push("ticks", 0, "at least 1");
        ReplayError::Spec(errors)
    })
}
