//! The suite for [`sas_core::Scaler`], and so for every [`sas_core::Policy`].

use std::{any::Any, sync::Arc, time::Duration};

use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use sas_core::{
    Decision, ErrorKind, Load, Reason, RevisionKey, ScaleInput, Scaler, ScalingSpec, Timestamp,
    Verdict as Says,
};

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, ensure},
};

/// A scaler and the spec to try it with.
#[derive(Clone, Debug)]
pub struct Subject {
    scaler: Arc<dyn Scaler>,
    spec: ScalingSpec,
}

impl Subject {
    /// A scaler with the default spec.
    pub fn new(scaler: Arc<dyn Scaler>) -> Self {
        let mut spec = ScalingSpec::default();
        spec.scaler = scaler.name().to_owned();
        Self { scaler, spec }
    }

    /// The same with a spec of its own kind.
    #[must_use]
    pub fn spec(mut self, spec: ScalingSpec) -> Self {
        self.spec = spec;
        self
    }
}

impl From<Arc<dyn Scaler>> for Subject {
    fn from(scaler: Arc<dyn Scaler>) -> Self {
        Self::new(scaler)
    }
}

/// Runs every check on a scaler of its own, made by `builder`.
pub async fn suite<G, T: Into<Subject>>(builder: impl AsyncFn() -> (G, T)) -> Report {
    check::run(
        "Scaler",
        check::LIMIT,
        builder,
        Into::into,
        checks![
            "the name is constant and fit for a spec" => name,
            "a tick pushes one decision for each input, and keeps what was there" => one_each,
            "the same inputs give the same decisions, bit for bit" => deterministic,
            "a row does not depend on the others of its batch" => independent,
            "a batch decides as its inputs one by one" => batches,
            "a retired row starts from nothing" => retired,
            "a checkpoint that is put back goes on as if nothing had happened" => checkpoint,
            "an empty row has no checkpoint" => empty_checkpoint,
            "a foreign checkpoint is refused and changes nothing" => foreign_checkpoint,
            "states of another scaler are a failure, not a panic" => foreign_states,
            "rows far apart are fine" => sparse,
            "measurements that are no numbers neither panic nor run away" => not_numbers,
            "a clock that stands still or jumps neither panics nor runs away" => clock_jumps,
            "what was not measured is no reason to grow" => not_measured,
            "more load never asks for less" => monotone,
            "steady load settles" => settles,
        ],
    )
    .await
}

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

fn load(row: u32, concurrency: f64, ready: u32) -> Load {
    let mut load = Load::idle(RevisionKey::new(row, 0));
    load.concurrency = concurrency;
    // Requests of a tenth of a second.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small number of the suite's own"
    )]
    let requests = if concurrency.is_finite() { (concurrency.max(0.0) * 10.0) as u32 } else { 0 };
    load.requests = requests;
    load.ready = ready;
    load.cpu = Some(concurrency / 100.0);
    load.memory = Some(64e6);
    load
}

/// Drives one scaler with states of its own.
struct Run<'a> {
    subject: &'a Subject,
    states: Box<dyn Any + Send>,
    desired: Vec<Option<u32>>,
}

impl<'a> Run<'a> {
    fn new(subject: &'a Subject, rows: usize) -> Self {
        Self { subject, states: subject.scaler.new_states(), desired: vec![None; rows] }
    }

    fn ready(&self, row: usize) -> u32 {
        self.desired[row].unwrap_or(0).min(1000)
    }

    fn decide(&mut self, row: u32, now: Timestamp, load: &Load) -> Verdict<Decision> {
        let input = ScaleInput::new(row, now, &self.subject.spec, load, self.desired[row as usize]);
        let mut out = Vec::new();
        self.subject.scaler.tick(&mut *self.states, &[input], &mut out);
        ensure!(out.len() == 1, "one input gave {} decisions", out.len());
        let decision = out.remove(0);
        if let Says::Set(desired) = decision.verdict {
            self.desired[row as usize] = Some(desired);
        }
        Ok(decision)
    }

    /// A trace of random load, the same for the same seed.
    fn trace(&mut self, row: u32, seed: u64, from: i64, seconds: i64) -> Verdict<Vec<Decision>> {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut decisions = Vec::new();
        for second in 0..from + seconds {
            let burst = if random.random_bool(0.1) { 500.0 } else { 5.0 };
            let concurrency = if random.random_bool(0.2) { 0.0 } else { random.random_range(0.0..burst) };
            if second < from {
                continue;
            }
            let load = load(row, concurrency, self.ready(row as usize));
            decisions.push(self.decide(row, START + Duration::from_secs(second.unsigned_abs()), &load)?);
        }
        Ok(decisions)
    }
}

fn same(what: &str, one: &[Decision], other: &[Decision]) -> Verdict {
    ensure!(one.len() == other.len(), "{what}: {} and {} decisions", one.len(), other.len());
    for (at, (one, other)) in one.iter().zip(other).enumerate() {
        // Debug shows each bit of a float that matters, and NaN equals itself.
        ensure!(
            format!("{one:?}") == format!("{other:?}"),
            "{what}: decision {at} is {one:?} once and {other:?} then"
        );
    }
    Ok(())
}

async fn name(subject: &Subject) -> Verdict {
    let name = subject.scaler.name();
    ensure!(!name.is_empty() && !name.contains(char::is_whitespace), "the name is {name:?}");
    Run::new(subject, 1).trace(0, 1, 0, 5)?;
    ensure!(subject.scaler.name() == name, "the name changed to {:?}", subject.scaler.name());
    Ok(())
}

async fn one_each(subject: &Subject) -> Verdict {
    let mut states = subject.scaler.new_states();
    let loads: Vec<Load> = (0..50).map(|row| load(row, f64::from(row), 1)).collect();
    let inputs: Vec<ScaleInput<'_>> =
        (0..).zip(&loads).map(|(row, load)| ScaleInput::new(row, START, &subject.spec, load, None)).collect();
    let mut out = vec![Decision::set(4711, Reason::Custom(1))];
    subject.scaler.tick(&mut *states, &inputs, &mut out);
    ensure!(out.len() == 51, "50 inputs gave {} decisions", out.len() - 1);
    ensure!(
        out[0] == Decision::set(4711, Reason::Custom(1)),
        "what was in `out` was changed to {:?}",
        out[0]
    );
    subject.scaler.tick(&mut *states, &[], &mut out);
    ensure!(out.len() == 51, "no input gave a decision");
    Ok(())
}

async fn deterministic(subject: &Subject) -> Verdict {
    for seed in 0..5 {
        let one = Run::new(subject, 1).trace(0, seed, 0, 200)?;
        let other = Run::new(subject, 1).trace(0, seed, 0, 200)?;
        same("the same trace twice", &one, &other)?;
    }
    Ok(())
}

async fn independent(subject: &Subject) -> Verdict {
    let alone = Run::new(subject, 2).trace(0, 3, 0, 120)?;
    let mut run = Run::new(subject, 2);
    let mut random = SmallRng::seed_from_u64(3);
    let mut between = Vec::new();
    for second in 0..120 {
        let burst = if random.random_bool(0.1) { 500.0 } else { 5.0 };
        let concurrency = if random.random_bool(0.2) { 0.0 } else { random.random_range(0.0..burst) };
        let now = START + Duration::from_secs(second);
        let other = load(1, 1000.0, run.ready(1));
        run.decide(1, now, &other)?;
        let own = load(0, concurrency, run.ready(0));
        between.push(run.decide(0, now, &own)?);
    }
    same("a row beside a busy one", &alone, &between)
}

async fn batches(subject: &Subject) -> Verdict {
    let (mut one_by_one, mut batched) = (subject.scaler.new_states(), subject.scaler.new_states());
    let mut random = SmallRng::seed_from_u64(9);
    for second in 0..90 {
        let now = START + Duration::from_secs(second);
        let loads: Vec<Load> =
            (0..17).map(|row| load(row, random.random_range(0.0..200.0), row % 4)).collect();
        let inputs: Vec<ScaleInput<'_>> = (0..)
            .zip(&loads)
            .map(|(row, load)| ScaleInput::new(row, now, &subject.spec, load, Some(2)))
            .collect();
        let (mut one, mut other) = (Vec::new(), Vec::new());
        for input in &inputs {
            subject.scaler.tick(&mut *one_by_one, std::slice::from_ref(input), &mut one);
        }
        subject.scaler.tick(&mut *batched, &inputs, &mut other);
        same("one by one and as a batch", &one, &other)?;
    }
    Ok(())
}

async fn retired(subject: &Subject) -> Verdict {
    let fresh = Run::new(subject, 1).trace(0, 5, 0, 60)?;
    let mut run = Run::new(subject, 1);
    let heavy = load(0, 900.0, 10);
    for second in 0..100 {
        run.decide(0, START - Duration::from_secs(200 - second), &heavy)?;
    }
    subject.scaler.retire(&mut *run.states, 0);
    ensure!(subject.scaler.checkpoint(&*run.states, 0).is_none(), "a retired row has a checkpoint");
    run.desired = vec![None];
    same("a fresh row and a retired one", &fresh, &run.trace(0, 5, 0, 60)?)?;
    subject.scaler.retire(&mut *run.states, 4_000);
    Ok(())
}

async fn checkpoint(subject: &Subject) -> Verdict {
    for at in (1..40).chain([61, 150]) {
        let mut whole = Run::new(subject, 1);
        whole.trace(0, 8, 0, at)?;
        let Some(checkpoint) = subject.scaler.checkpoint(&*whole.states, 0) else {
            return Err(Stop::fail("a row that was seen has no checkpoint"));
        };
        let text = checkpoint.to_string();
        let back = serde_json::from_str(&text).map_err(|error| Stop::fail(format!("{text}: {error}")))?;
        // Into another row, as after a restart.
        let mut resumed = Run::new(subject, 3);
        subject
            .scaler
            .restore(&mut *resumed.states, 2, back)
            .map_err(|error| Stop::fail(format!("restore: {}", error.chain())))?;
        resumed.desired[2] = whole.desired[0];
        let expected = whole.trace(0, 8, at, 70)?;
        same(&format!("resumed after {at} s"), &expected, &resumed.trace(2, 8, at, 70)?)?;
    }
    Ok(())
}

async fn empty_checkpoint(subject: &Subject) -> Verdict {
    let mut states = subject.scaler.new_states();
    ensure!(subject.scaler.checkpoint(&*states, 0).is_none(), "row 0 of empty states has a checkpoint");
    let load = load(5, 1.0, 1);
    subject.scaler.tick(
        &mut *states,
        &[ScaleInput::new(5, START, &subject.spec, &load, None)],
        &mut Vec::new(),
    );
    ensure!(subject.scaler.checkpoint(&*states, 4).is_none(), "a row that was never seen has a checkpoint");
    ensure!(subject.scaler.checkpoint(&*states, 5).is_some(), "a row that was seen has no checkpoint");
    ensure!(subject.scaler.checkpoint(&*states, 1_000_000).is_none(), "a row beyond all has a checkpoint");
    Ok(())
}

async fn foreign_checkpoint(subject: &Subject) -> Verdict {
    let mut run = Run::new(subject, 1);
    run.trace(0, 2, 0, 30)?;
    let before = subject.scaler.checkpoint(&*run.states, 0);
    for foreign in [
        serde_json::json!("nonsense"),
        serde_json::json!([1, "two", { "three": 3 }]),
        serde_json::json!({ "a_field_that_no_scaler_has": [true] }),
    ] {
        match subject.scaler.restore(&mut *run.states, 0, foreign.clone()) {
            // State of no fields takes whatever stands for nothing.
            Ok(()) => ensure!(
                before.as_ref().is_none_or(serde_json::Value::is_null) || foreign.is_object(),
                "took {foreign} for a checkpoint"
            ),
            Err(error) => {
                ensure!(error.kind == ErrorKind::InvalidSpec, "the kind for {foreign} is {:?}", error.kind);
                let after = subject.scaler.checkpoint(&*run.states, 0);
                ensure!(after == before, "refusing {foreign} changed the state");
            }
        }
    }
    Ok(())
}

async fn foreign_states(subject: &Subject) -> Verdict {
    let mut foreign: Box<dyn Any + Send> = Box::new("not its states");
    let load = load(0, 1.0, 1);
    let inputs = [
        ScaleInput::new(0, START, &subject.spec, &load, None),
        ScaleInput::new(1, START, &subject.spec, &load, None),
    ];
    let mut out = Vec::new();
    subject.scaler.tick(&mut *foreign, &inputs, &mut out);
    ensure!(out.len() == 2, "two inputs gave {} decisions", out.len());
    ensure!(
        out.iter().all(|decision| decision.verdict == Says::Hold),
        "decided from foreign states: {out:?}"
    );
    subject.scaler.retire(&mut *foreign, 0);
    ensure!(subject.scaler.checkpoint(&*foreign, 0).is_none(), "foreign states have a checkpoint");
    let restored = subject.scaler.restore(&mut *foreign, 0, serde_json::Value::Null);
    ensure!(restored.is_err(), "restored into foreign states");
    Ok(())
}

async fn sparse(subject: &Subject) -> Verdict {
    let near = Run::new(subject, 1).trace(0, 4, 0, 30)?;
    let mut run = Run::new(subject, 70_001);
    // Rows that are the same in their low bits are other rows.
    for row in [70_000 % 256, 70_000 % 65_536] {
        for second in 0..30 {
            run.decide(row, START - Duration::from_secs(30 - second), &load(row, 5_000.0, 10))?;
        }
    }
    same("row 0 and row 70,000", &near, &run.trace(70_000, 4, 0, 30)?)
}

/// No scaler may ask for this many from the loads of this suite.
const RUNAWAY: u32 = 1_000_000;

fn sane(decision: &Decision, what: &str) -> Verdict {
    let desired = decision.desired().unwrap_or(0);
    ensure!(desired < RUNAWAY, "{what}: asks for {desired} instances");
    Ok(())
}

async fn not_numbers(subject: &Subject) -> Verdict {
    let mut run = Run::new(subject, 1);
    run.trace(0, 6, 0, 70)?;
    for (at, odd) in (70_u64..).zip([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1e18, 1e300, -0.0]) {
        for field in 0..3 {
            let mut load = load(0, 3.0, run.ready(0));
            match field {
                0 => load.concurrency = odd,
                1 => load.cpu = Some(odd),
                _ => load.memory = Some(odd),
            }
            let decision = run.decide(0, START + Duration::from_secs(at), &load)?;
            if odd.is_nan() || odd < 0.0 {
                sane(&decision, &format!("field {field} is {odd}"))?;
            }
        }
    }
    // Once the measurements are numbers again, so are the decisions.
    let mut last = None;
    for second in 200..400 {
        let load = load(0, 3.0, run.ready(0));
        last = Some(run.decide(0, START + Duration::from_secs(second), &load)?);
    }
    last.map_or(Ok(()), |decision| sane(&decision, "200 s after the odd ones"))
}

async fn clock_jumps(subject: &Subject) -> Verdict {
    let mut run = Run::new(subject, 1);
    run.trace(0, 6, 0, 70)?;
    let day = Duration::from_secs(86_400);
    let now = START + Duration::from_secs(70);
    for at in [
        now,
        now,
        now - Duration::from_secs(30),
        now - day,
        now + day,
        now,
        Timestamp(i64::MIN),
        Timestamp(i64::MAX),
        Timestamp(0),
        now + day,
    ] {
        let load = load(0, 3.0, run.ready(0));
        let decision = run.decide(0, at, &load)?;
        sane(&decision, &format!("at {at:?}"))?;
    }
    for second in 0..200 {
        let load = load(0, 3.0, run.ready(0));
        let decision = run.decide(0, now + day + Duration::from_secs(second), &load)?;
        sane(&decision, "after the jumps")?;
    }
    Ok(())
}

async fn not_measured(subject: &Subject) -> Verdict {
    let mut run = Run::new(subject, 1);
    let mut steady = load(0, 2.0, 1);
    steady.cpu = None;
    steady.memory = None;
    steady.backlog = None;
    for second in 0..120 {
        let decision = run.decide(0, START + Duration::from_secs(second), &steady)?;
        let desired = decision.desired().unwrap_or(0);
        ensure!(desired <= 10, "two requests at once and nothing else measured: asks for {desired}");
    }
    Ok(())
}

fn after_steady(subject: &Subject, concurrency: f64) -> Verdict<u32> {
    let mut run = Run::new(subject, 1);
    for second in 0..240 {
        let load = load(0, concurrency, run.ready(0));
        run.decide(0, START + Duration::from_secs(second), &load)?;
    }
    Ok(run.desired[0].unwrap_or(0))
}

async fn monotone(subject: &Subject) -> Verdict {
    let mut before = (0.0, 0);
    for concurrency in [0.0, 1.0, 10.0, 100.0, 500.0, 2_000.0] {
        let desired = after_steady(subject, concurrency)?;
        ensure!(
            desired >= before.1,
            "{concurrency} requests at once ask for {desired}, {} asked for {}",
            before.0,
            before.1
        );
        before = (concurrency, desired);
    }
    Ok(())
}

async fn settles(subject: &Subject) -> Verdict {
    for concurrency in [0.0, 3.0, 70.0, 433.0] {
        let mut run = Run::new(subject, 1);
        let mut wanted = Vec::new();
        for second in 0..400 {
            let load = load(0, concurrency, run.ready(0));
            run.decide(0, START + Duration::from_secs(second), &load)?;
            wanted.push(run.desired[0]);
        }
        let late = &wanted[300..];
        ensure!(
            late.windows(2).all(|pair| pair[0] == pair[1]),
            "steady {concurrency}: still moves after 300 s: {late:?}"
        );
    }
    Ok(())
}
