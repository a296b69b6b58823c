use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use sas_core::{Decision, Error, ErrorKind, Reason, Result, ScaleInput, Scaler};
use sas_testkit::scaler;

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// No bug: the base of the others.
    Sound,
    DecidesByAGlobalCounter,
    SharesStateBetweenRows,
    ForgetsToRetire,
    CheckpointLosesState,
    CheckpointOfEmptyRows,
    TakesAnyCheckpoint,
    DecidesOncePerBatch,
    ClearsTheOutput,
    PanicsOnForeignStates,
    RunsAwayOnNan,
    PanicsWhenTheClockJumpsBack,
    TakesUnmeasuredForFull,
    AsksForLessUnderMoreLoad,
    NeverSettles,
    RowsAreBytes,
}

/// One instance for every ten requests at once, averaged with what was before.
#[derive(Debug)]
struct Averaging {
    bug: Bug,
    ticks: AtomicU64,
}

type Rows = Vec<Option<(f64, i64, u64)>>;

impl Averaging {
    fn decide(&self, state: &mut (f64, i64, u64), input: &ScaleInput<'_>) -> Decision {
        let load = input.load;
        let usable = load.concurrency.is_finite() && load.concurrency >= 0.0;
        if self.bug == Bug::RunsAwayOnNan && load.concurrency.is_nan() {
            return Decision::set(u32::MAX, Reason::Stable);
        }
        if !usable {
            return Decision::hold(Reason::BadInput);
        }
        if self.bug == Bug::PanicsWhenTheClockJumpsBack {
            let elapsed = u64::try_from(input.now.0.saturating_sub(state.1)).expect("time goes on");
            let _ = elapsed;
        }
        state.0 = if state.2 == 0 { load.concurrency } else { state.0.mul_add(0.5, load.concurrency * 0.5) };
        state.1 = input.now.0;
        state.2 += 1;
        let mut wanted = (state.0 / 10.0).round();
        match self.bug {
            Bug::DecidesByAGlobalCounter => wanted += (self.ticks.fetch_add(1, SeqCst) % 7 / 6) as f64,
            Bug::TakesUnmeasuredForFull if load.cpu.is_none() => wanted += 50.0,
            Bug::AsksForLessUnderMoreLoad if wanted > 20.0 => wanted = 5.0,
            Bug::NeverSettles => wanted += (state.2 % 2) as f64,
            _ => {}
        }
        Decision::set(wanted.min(100_000.0) as u32, Reason::Stable)
    }

    fn row(&self, row: u32) -> usize {
        match self.bug {
            Bug::SharesStateBetweenRows => 0,
            Bug::RowsAreBytes => usize::from(row as u8),
            _ => row as usize,
        }
    }
}

impl Scaler for Averaging {
    fn name(&self) -> &'static str {
        "averaging"
    }

    fn new_states(&self) -> Box<dyn Any + Send> {
        Box::<Rows>::default()
    }

    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>) {
        let Some(rows) = states.downcast_mut::<Rows>() else {
            assert!(self.bug != Bug::PanicsOnForeignStates, "these are not my states");
            out.extend(batch.iter().map(|_| Decision::hold(Reason::ScalerFailed)));
            return;
        };
        if self.bug == Bug::ClearsTheOutput {
            out.clear();
        }
        for input in batch.iter().take(if self.bug == Bug::DecidesOncePerBatch { 1 } else { usize::MAX }) {
            let row = self.row(input.row);
            if rows.len() <= row {
                rows.resize(row + 1, None);
            }
            out.push(self.decide(rows[row].get_or_insert_default(), input));
        }
    }

    fn retire(&self, states: &mut (dyn Any + Send), row: u32) {
        if self.bug == Bug::ForgetsToRetire {
            return;
        }
        if let Some(slot) = states.downcast_mut::<Rows>().and_then(|rows| rows.get_mut(self.row(row))) {
            *slot = None;
        }
    }

    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value> {
        let state = states.downcast_ref::<Rows>()?.get(self.row(row)).copied().flatten();
        let state = if self.bug == Bug::CheckpointOfEmptyRows { state.unwrap_or_default() } else { state? };
        let seen = if self.bug == Bug::CheckpointLosesState { 0 } else { state.2 };
        Some(serde_json::json!({ "average": state.0, "at": state.1, "seen": seen }))
    }

    fn restore(&self, states: &mut (dyn Any + Send), row: u32, checkpoint: serde_json::Value) -> Result<()> {
        let bad = || Error::new(ErrorKind::InvalidSpec, "restore", "not a checkpoint of this scaler");
        let read = || {
            let average = checkpoint.get("average")?.as_f64()?;
            Some((average, checkpoint.get("at")?.as_i64()?, checkpoint.get("seen")?.as_u64()?))
        };
        let state = match read() {
            Some(state) => state,
            None if self.bug == Bug::TakesAnyCheckpoint => (0.0, 0, 0),
            None => return Err(bad()),
        };
        let rows = states.downcast_mut::<Rows>().ok_or_else(bad)?;
        let row = self.row(row);
        if rows.len() <= row {
            rows.resize(row + 1, None);
        }
        rows[row] = Some(state);
        Ok(())
    }
}

const MUTANTS: [(Bug, &str); 15] = [
    (Bug::DecidesByAGlobalCounter, "bit for bit"),
    (Bug::SharesStateBetweenRows, "does not depend on the others"),
    (Bug::ForgetsToRetire, "starts from nothing"),
    (Bug::CheckpointLosesState, "as if nothing had happened"),
    (Bug::CheckpointOfEmptyRows, "an empty row"),
    (Bug::TakesAnyCheckpoint, "a foreign checkpoint"),
    (Bug::DecidesOncePerBatch, "one decision for each input"),
    (Bug::ClearsTheOutput, "keeps what was there"),
    (Bug::PanicsOnForeignStates, "states of another scaler"),
    (Bug::RunsAwayOnNan, "that are no numbers"),
    (Bug::PanicsWhenTheClockJumpsBack, "jumps"),
    (Bug::TakesUnmeasuredForFull, "not measured"),
    (Bug::AsksForLessUnderMoreLoad, "more load"),
    (Bug::NeverSettles, "settles"),
    (Bug::RowsAreBytes, "rows far apart"),
];

fn broken(bug: Bug) -> Arc<dyn Scaler> {
    Arc::new(Averaging { bug, ticks: AtomicU64::new(0) })
}

#[tokio::test]
async fn every_broken_scaler_is_refused() {
    scaler::suite(async || ((), broken(Bug::Sound))).await.assert_passed_skipping(&[]);
    for (bug, by) in MUTANTS {
        let report = scaler::suite(async || ((), broken(bug))).await;
        caught(bug, &report, by);
    }
}
