//! Decides for the active revisions of a shard: scalers are asked in batches, and what they say is recorded and told.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use sas_core::{Decision, DecisionRecord, Reason, RevisionKey, ScaleInput, Scaler, Timestamp, Verdict};

use super::{Driver, input_of};
use crate::{
    history::Checkpoint,
    rows::{Entry, Seen, Shard},
};

/// Revisions that are decided in one call of a scaler: few enough that inputs and decisions stay in the cache.
const BATCH: usize = 256;

/// What the pool is to be told of a batch.
type Intents = smallvec::SmallVec<[(RevisionKey, u32); BATCH]>;

/// Decisions of a batch by kind: told together, for a counter that others write too costs more than a decision.
#[derive(Default)]
struct Tally {
    set: u64,
    up: u64,
    down: u64,
    hold: u64,
    unserved: u64,
}

impl Driver {
    /// Decides for `loads`, batch by batch, scaler by scaler.
    pub(super) fn decide(&self, shard: &mut Shard, loads: &[Seen], turns: &[u32], now: Timestamp) {
        let Shard { entries, states, decisions, .. } = shard;
        let mut tally = Tally::default();
        for turns in turns.chunks(BATCH) {
            let batch = || turns.iter().map(|turn| &loads[*turn as usize]);
            // One scaler serves almost all: most batches have no other.
            let mut next = batch().filter_map(|seen| seen.scaler).min();
            while let Some(at) = next {
                let of_scaler = || batch().filter(move |seen| seen.scaler == Some(at));
                self.decide_batch(entries, states, decisions, &mut tally, &of_scaler, at, now);
                next = batch().filter_map(|seen| seen.scaler).filter(|other| *other > at).min();
            }
            tally.unserved += batch().filter(|seen| seen.scaler.is_none()).count() as u64;
        }
        self.metrics.set.increment(tally.set);
        self.metrics.up.increment(tally.up);
        self.metrics.down.increment(tally.down);
        self.metrics.hold.increment(tally.hold);
        self.metrics.unserved.increment(tally.unserved);
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of a shard, borrowed one by one")]
    fn decide_batch<'a, B: Iterator<Item = &'a Seen>>(
        &self,
        entries: &mut [Option<Entry>],
        states: &mut [Box<dyn Any + Send>],
        decisions: &mut Vec<Decision>,
        tally: &mut Tally,
        batch: &impl Fn() -> B,
        at: u32,
        now: Timestamp,
    ) {
        let scaler = &self.scalers.as_slice()[at as usize];
        let states = &mut states[at as usize];
        if self.config.history > 0 {
            for seen in batch() {
                let Some(entry) = entries[seen.row as usize].as_mut() else { continue };
                let Some(history) = entry.history.as_mut().filter(|history| history.needs_checkpoint())
                else {
                    continue;
                };
                let checkpoint = AssertUnwindSafe(|| scaler.checkpoint(&**states, seen.row));
                history.begin(Checkpoint {
                    scaler: scaler.name().to_owned(),
                    version: scaler.version(),
                    state: catch_unwind(checkpoint).unwrap_or(None),
                    governor: entry.governor.clone(),
                    desired: entry.desired,
                });
            }
        }
        decisions.clear();
        {
            // Filled in its place: collecting it would move the whole of it, however few there are.
            let mut inputs = smallvec::SmallVec::<[ScaleInput<'_>; BATCH]>::new();
            for seen in batch() {
                let Some(entry) = entries[seen.row as usize].as_ref() else { continue };
                inputs.push(input_of(entry, &seen.load, seen.row, seen.elapsed, now).named(&seen.named));
            }
            self.tick_all(&**scaler, &mut **states, &inputs, decisions);
        }
        let version = scaler.version();
        let mut intents = Intents::new();
        let mut made = decisions.drain(..);
        for seen in batch() {
            let Some(entry) = entries[seen.row as usize].as_mut() else { continue };
            let mut decision = made.next().unwrap_or(Decision::hold(Reason::ScalerFailed));
            decision.version = version;
            self.conclude(entry, seen, now, decision, tally, &mut intents);
        }
        self.pool.set_desired_all(&intents);
    }

    /// Calls the scaler until each input has its decision: one whose turn made it panic gets a hold.
    fn tick_all(
        &self,
        scaler: &dyn Scaler,
        states: &mut (dyn Any + Send),
        inputs: &[ScaleInput<'_>],
        decisions: &mut Vec<Decision>,
    ) {
        while decisions.len() < inputs.len() {
            let from = decisions.len();
            let tick = AssertUnwindSafe(|| scaler.tick(states, &inputs[from..], decisions));
            match catch_unwind(tick) {
                Ok(()) if decisions.len() == inputs.len() => return,
                Ok(()) => {
                    tracing::error!(
                        scaler = scaler.name(),
                        inputs = inputs.len(),
                        decisions = decisions.len(),
                        "a scaler must give one decision per input; the rest keep theirs"
                    );
                    self.metrics.failures.increment(1);
                    decisions.truncate(inputs.len());
                    decisions.resize_with(inputs.len(), || Decision::hold(Reason::ScalerFailed));
                }
                Err(panic) => {
                    let input = &inputs[decisions.len().min(inputs.len() - 1)];
                    tracing::error!(
                        scaler = scaler.name(),
                        revision = input.load.revision.0,
                        message = message_of(&*panic),
                        "a scaler panicked; the revision keeps its decision, its state begins anew"
                    );
                    self.metrics.failures.increment(1);
                    let retire = AssertUnwindSafe(|| scaler.retire(states, input.row));
                    if catch_unwind(retire).is_err() {
                        tracing::error!(scaler = scaler.name(), "it panicked again when asked to forget it");
                    }
                    decisions.push(Decision::hold(Reason::ScalerFailed));
                }
            }
        }
    }

    fn conclude(
        &self,
        entry: &mut Entry,
        seen: &Seen,
        now: Timestamp,
        mut decision: Decision,
        tally: &mut Tally,
        intents: &mut Intents,
    ) {
        let Entry { key, deployed, governor, history, desired: in_force, sequence, .. } = entry;
        let spec = &deployed.spec;
        let previous = *in_force;
        let elapsed = Duration::from_nanos(seen.elapsed.unsigned_abs());
        let input = ScaleInput::new(seen.row, now, &spec.scaling, &seen.load, previous)
            .over(elapsed)
            .named(&seen.named)
            .of(spec.concurrency, Some(&spec.resources));
        let was_initialized = governor.is_initialized();
        governor.apply(&input, &mut decision);
        if spec.scaling.initial > 1 && !was_initialized && governor.is_initialized() {
            self.initialized.lock().insert(*key);
        }
        match decision.verdict {
            Verdict::Set(desired) => {
                tally.set += 1;
                match previous {
                    Some(before) if desired > before => tally.up += 1,
                    Some(before) if desired < before => tally.down += 1,
                    _ => {}
                }
                *in_force = Some(desired);
                intents.push((*key, desired));
            }
            Verdict::Hold => tally.hold += 1,
        }
        *sequence += 1;
        let mut record = DecisionRecord::new(*sequence, now, seen.load, previous, decision);
        record.elapsed = elapsed;
        record.named = seen.named.clone();
        record.host.clone_from(&self.config.host);
        self.config.sink.decided(*key, &record);
        if let Some(history) = history {
            history.push(record);
        }
    }
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
