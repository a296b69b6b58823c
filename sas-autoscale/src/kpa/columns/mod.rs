//! The default scaler for many revisions: state in columns, decisions without branches.
//!
//! Rows of one configuration lie in blocks of 64. A block holds all that a tick reads and writes side by side, its ring
//! of samples time-major, so that a tick touches the state and two planes of the ring and nothing else. Inputs that
//! come in the order of the rows are computed in place; others are gathered first.
//!
//! **Invariant:** a row in columns and a [`KpaState`] hold the same, and convert into each other without loss. What
//! the fast way does not handle (a first tick, a tick that is not nearly a second after the one before, a wake-up, bad
//! input) goes through the scalar code on the converted state. Rows of Knative's fidelity, and those with windows or
//! delays of many minutes, keep the scalar state for good.

mod group;
mod pass;

use std::any::Any;

use sas_core::{
    Clamps, Decision, Error, ErrorKind, Metric, Policy, Reason, Result, ScaleInput, Scaler, ScalingSpec,
    SpecErrors, Timestamp, Vote, Votes,
};

use self::{
    group::{Group, Identity, Shape, Tag, spot},
    pass::{COUNT_MAX, Inputs, LANES, Outputs, pass},
};
use super::policy::{Kpa, KpaState, Params};

/// Different configurations that have columns; further ones keep scalar state.
const GROUPS: usize = 64;
/// Inputs in a row from one block that make it worth to compute the whole block in place.
const DENSE: usize = 32;

/// [`Kpa`] with its state in columns: decides the same, bit for bit, for a fraction of the cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct KpaColumns {
    kpa: Kpa,
}

impl KpaColumns {
    /// In the place of [`Kpa::concurrency`].
    pub const fn concurrency() -> Self {
        Self { kpa: Kpa::concurrency() }
    }

    /// In the place of [`Kpa::rps`].
    pub const fn rps() -> Self {
        Self { kpa: Kpa::rps() }
    }
}

#[derive(Clone, Copy, Debug)]
enum Residence {
    Empty,
    Scalar(u32),
    Column { group: u16, at: u32 },
}

/// The states of all rows.
#[derive(Debug, Default)]
struct States {
    rows: Vec<Residence>,
    scalars: Vec<Option<Box<KpaState>>>,
    free_scalars: Vec<u32>,
    groups: Vec<Group>,
    /// Kept between ticks: making it anew would cost as much as a row.
    run: Option<Box<Run>>,
}

/// Inputs that go through the fast way together, and what comes out.
#[derive(Debug)]
struct Run {
    inputs: Inputs,
    outputs: Outputs,
    /// The rows, in the order of their inputs, and the lane that each is computed in.
    rows: [(u32, u8); LANES],
    count: usize,
}

impl Run {
    const fn new() -> Self {
        Self { inputs: Inputs::new(), outputs: Outputs::new(), rows: [(0, 0); LANES], count: 0 }
    }

    /// The decision of a lane.
    #[allow(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "counts, and a set of 16 bits"
    )]
    #[inline(always)]
    fn decision(&self, metric: Metric, lane: usize) -> Decision {
        let (out, lane) = (&self.outputs, lane % LANES);
        let desired = out.desired[lane] as u32;
        let reason = match out.decider[lane] {
            2 => Reason::Delayed,
            1 => Reason::Panic,
            _ if desired == 0 => Reason::Idle,
            _ => Reason::Stable,
        };
        let mut decision = Decision::set(desired, reason);
        decision.clamps = Clamps(out.clamps[lane] as u16);
        decision.excess_burst = out.excess[lane];
        decision.version = Kpa::VERSION;
        let target = self.inputs.target;
        decision.votes = Votes::pair(
            Vote::new(metric, Some(out.stable[lane]), target, Some(out.stable_wants[lane] as u32)),
            Vote::new(metric, Some(out.panic[lane]), target, Some(out.panic_wants[lane] as u32)),
        );
        decision
    }
}

impl States {
    /// Where the row is, given its input; a row without state, or whose configuration changed, is placed.
    fn place(&mut self, kpa: &Kpa, input: &ScaleInput<'_>) -> Residence {
        let row = input.row as usize;
        if self.rows.len() <= row {
            self.rows.resize(row + 1, Residence::Empty);
        }
        match self.rows[row] {
            Residence::Empty => self.begin(kpa, input, None),
            Residence::Scalar(at) => Residence::Scalar(at),
            Residence::Column { group, at } => {
                let found = &mut self.groups[usize::from(group)];
                let identity = Identity::of(input);
                let target = found.tag(at).target();
                if found.known == Some((identity, target)) {
                    return Residence::Column { group, at };
                }
                let params = Params::new(input, kpa.metric(input.spec), None);
                let same = Shape::of(&params, input.spec.fidelity) == Some(found.shape)
                    && found.targets[target] == (params.spec.target_value, params.spec.total_value);
                if same {
                    found.known = Some((identity, target));
                    return Residence::Column { group, at };
                }
                // Another configuration: what was learnt moves with it, as the scalar code has it.
                let state = found.load(at);
                found.remove(at);
                self.rows[row] = Residence::Empty;
                self.begin(kpa, input, Some(state))
            }
        }
    }

    fn begin(&mut self, kpa: &Kpa, input: &ScaleInput<'_>, state: Option<KpaState>) -> Residence {
        let params = Params::new(input, kpa.metric(input.spec), None);
        let column = state.is_none().then(|| self.column(&params, input)).flatten();
        let place = column.unwrap_or_else(|| self.scalar(state.unwrap_or_default()));
        self.rows[input.row as usize] = place;
        place
    }

    fn column(&mut self, params: &Params, input: &ScaleInput<'_>) -> Option<Residence> {
        let shape = Shape::of(params, input.spec.fidelity)?;
        let group = match self.groups.iter().position(|group| group.shape == shape) {
            Some(group) => group,
            None if self.groups.len() < GROUPS => {
                self.groups.push(Group::new(shape));
                self.groups.len() - 1
            }
            None => return None,
        };
        let target = self.groups[group].target_of(params)?;
        let at = self.groups[group].add(target);
        Some(Residence::Column { group: u16::try_from(group).ok()?, at })
    }

    fn scalar(&mut self, state: KpaState) -> Residence {
        let state = Some(Box::new(state));
        match self.free_scalars.pop() {
            Some(at) => {
                self.scalars[at as usize] = state;
                Residence::Scalar(at)
            }
            None => {
                self.scalars.push(state);
                Residence::Scalar(u32::try_from(self.scalars.len() - 1).unwrap_or(u32::MAX))
            }
        }
    }

    /// Decides one row by the scalar code.
    fn one(&mut self, kpa: &Kpa, input: &ScaleInput<'_>, place: Residence) -> Decision {
        match place {
            Residence::Empty => Decision::hold(Reason::ScalerFailed),
            Residence::Scalar(at) => match &mut self.scalars[at as usize] {
                Some(state) => kpa.decide(state, input),
                None => Decision::hold(Reason::ScalerFailed),
            },
            Residence::Column { group, at } => {
                let columns = &mut self.groups[usize::from(group)];
                let mut state = columns.load(at);
                let decision = kpa.decide(&mut state, input);
                if state.windows.is_some() && !columns.store(at, &state) {
                    columns.remove(at);
                    self.rows[input.row as usize] = self.scalar(state);
                }
                decision
            }
        }
    }

    fn state_of(&self, row: u32) -> Option<KpaState> {
        match *self.rows.get(row as usize)? {
            Residence::Empty => None,
            Residence::Scalar(at) => self.scalars[at as usize].as_deref().cloned(),
            Residence::Column { group, at } => Some(self.groups[usize::from(group)].load(at)),
        }
    }

    fn forget(&mut self, row: u32) {
        let Some(place) = self.rows.get_mut(row as usize) else { return };
        match std::mem::replace(place, Residence::Empty) {
            Residence::Empty => {}
            Residence::Scalar(at) => {
                self.scalars[at as usize] = None;
                self.free_scalars.push(at);
            }
            Residence::Column { group, at } => self.groups[usize::from(group)].remove(at),
        }
    }

    /// Takes inputs from the front of `batch` for as long as the fast way can take them together, and computes them.
    /// False when it can't take the first.
    fn run(&mut self, kpa: &Kpa, batch: &[ScaleInput<'_>], run: &mut Run) -> bool {
        let Some(first) = batch.first() else { return false };
        let Residence::Column { group, at } = self.place(kpa, first) else { return false };
        let columns = &mut self.groups[usize::from(group)];
        let elapsed = first.elapsed.as_secs_f64();
        let tag = columns.tag(at);
        if !tag.is_regular() || elapsed <= 0.0 || elapsed > 2.0 {
            return false;
        }
        let rules = columns.shape.rules;
        let next = tag.next(rules.planes());
        (run.inputs.target, run.inputs.total) = columns.targets[tag.target()];
        run.inputs.elapsed = elapsed;
        let block = spot(at).0;
        let dense = batch.get(DENSE - 1).is_some_and(|input| {
            matches!(self.rows.get(input.row as usize), Some(Residence::Column { group: other, at })
                if *other == group && spot(*at).0 == block)
        });
        if dense {
            columns.blocks[block].touch(&rules, next.plane());
        }
        let seen = if dense {
            Self::fill::<true>(&self.rows, columns, group, batch, run, (tag, next))
        } else {
            Self::fill::<false>(&self.rows, columns, group, batch, run, (tag, next))
        };
        if run.count == 0 {
            return false;
        }
        let plane = next.plane();
        columns.wrote(plane);
        let rows = &run.rows[..run.count];
        if dense && run.count >= DENSE {
            let absent = columns.taken[block] & !seen;
            if absent == 0 {
                pass(
                    &rules,
                    &columns.weights,
                    &mut columns.blocks[block],
                    plane,
                    &run.inputs,
                    &mut run.outputs,
                );
            } else {
                // Rows of the block that take no part are put aside meanwhile.
                let mut aside = columns.gathered.take().unwrap_or_else(|| pass::Block::new(&rules));
                let own = &mut columns.blocks[block];
                let lanes = || (0..LANES).filter(|lane| absent & (1 << lane) != 0);
                lanes().for_each(|lane| aside.take_back(lane, own, lane, plane));
                pass(&rules, &columns.weights, own, plane, &run.inputs, &mut run.outputs);
                lanes().for_each(|lane| own.take_back(lane, &aside, lane, plane));
                columns.gathered = Some(aside);
            }
        } else {
            let mut gathered = columns.gathered.take().unwrap_or_else(|| pass::Block::new(&rules));
            for (at, to) in rows {
                let (block, lane) = spot(*at);
                gathered.take(usize::from(*to), &columns.blocks[block], lane, &rules, plane);
            }
            pass(&rules, &columns.weights, &mut gathered, plane, &run.inputs, &mut run.outputs);
            for (at, from) in rows {
                let (block, lane) = spot(*at);
                columns.blocks[block].take_back(lane, &gathered, usize::from(*from), plane);
            }
            columns.gathered = Some(gathered);
        }
        true
    }

    /// Collects inputs of rows whose tag is `tag.0`, which becomes `tag.1`: of the first one's block and in their own
    /// lanes, or of any and side by side. Gives the lanes as bits.
    #[inline(always)]
    fn fill<const DENSE: bool>(
        places: &[Residence],
        columns: &mut Group,
        group: u16,
        batch: &[ScaleInput<'_>],
        run: &mut Run,
        tag: (Tag, Tag),
    ) -> u64 {
        let Run { inputs, rows, count: taken, .. } = run;
        *taken = 0;
        let first = &batch[0];
        let Some(Residence::Column { at, .. }) = places.get(first.row as usize) else { return 0 };
        let block = spot(*at).0;
        // Once per run it is seen that these are still the spec and limit that the row's target was made from.
        let (spec, concurrency, lasted) = (std::ptr::from_ref(first.spec), first.concurrency, first.elapsed);
        let elapsed = inputs.elapsed;
        let most = Group::most_of(inputs.target);
        let rps = columns.shape.metric == Metric::Rps;
        let one_plane = tag.0 == tag.1;
        // A little within what rounds to a second, for what the sum loses.
        let drifts = (0.5 - elapsed + 1e-6) as f32..(1.5 - elapsed - 1e-6) as f32;
        let mut seen = 0_u64;
        let mut count = 0;
        for input in batch.iter().take(LANES) {
            let Some(Residence::Column { group: other, at }) = places.get(input.row as usize).copied() else {
                break;
            };
            let (in_block, lane) = spot(at);
            if other != group || DENSE && in_block != block {
                break;
            }
            let in_block = if DENSE { block } else { in_block };
            let load = input.load;
            let (tags, drift) = (&mut columns.tags[in_block], columns.blocks[in_block].rows.drift[lane]);
            let value = if rps { f64::from(load.requests) / elapsed } else { load.concurrency };
            let regular = std::ptr::eq(input.spec, spec)
                & (input.concurrency == concurrency)
                & (tags[lane] == tag.0)
                & (input.elapsed == lasted)
                & (drift >= drifts.start)
                & (drift < drifts.end)
                & (load.concurrency >= 0.0)
                & (load.concurrency <= most)
                & (value <= most)
                & ((load.ready | load.starting | load.requests) < COUNT_MAX as u32)
                & ((load.ready > 0) | (load.queued == 0));
            // The same row twice in a batch waits for its first turn. Its tag tells, unless there is but one plane.
            if !regular || one_plane && rows[..count].iter().any(|(other, _)| *other == at) {
                break;
            }
            tags[lane] = tag.1;
            let to = if DENSE { lane } else { count % LANES };
            inputs.value[to] = value;
            inputs.requests[to] = load.requests as i32;
            inputs.ready[to] = load.ready as i32;
            inputs.starting[to] = load.starting as i32;
            rows[count % LANES] = (at, to as u8);
            seen |= 1 << to;
            count += 1;
        }
        *taken = count;
        seen
    }
}

impl Scaler for KpaColumns {
    fn name(&self) -> &'static str {
        Policy::name(&self.kpa)
    }

    fn version(&self) -> u32 {
        Kpa::VERSION
    }

    fn validate(&self, spec: &ScalingSpec) -> std::result::Result<(), SpecErrors> {
        Policy::validate(&self.kpa, spec)
    }

    fn wake_at(&self, _: &(dyn Any + Send), _: &ScaleInput<'_>) -> Option<Timestamp> {
        None
    }

    fn new_states(&self) -> Box<dyn Any + Send> {
        Box::<States>::default()
    }

    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>) {
        let Some(states) = states.downcast_mut::<States>() else {
            out.extend(batch.iter().map(|_| Decision::hold(Reason::ScalerFailed)));
            return;
        };
        let mut run = states.run.take().unwrap_or_else(|| Box::new(Run::new()));
        let mut rest = batch;
        while let Some(first) = rest.first() {
            if states.run(&self.kpa, rest, &mut run) {
                let metric = self.kpa.metric(first.spec);
                out.extend(
                    run.rows[..run.count].iter().map(|(_, lane)| run.decision(metric, usize::from(*lane))),
                );
                rest = &rest[run.count..];
            } else {
                let place = states.place(&self.kpa, first);
                out.push(states.one(&self.kpa, first, place));
                rest = &rest[1..];
            }
        }
        states.run = Some(run);
    }

    fn retire(&self, states: &mut (dyn Any + Send), row: u32) {
        if let Some(states) = states.downcast_mut::<States>() {
            states.forget(row);
        }
    }

    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value> {
        serde_json::to_value(states.downcast_ref::<States>()?.state_of(row)?).ok()
    }

    fn restore(&self, states: &mut (dyn Any + Send), row: u32, checkpoint: serde_json::Value) -> Result<()> {
        let bad = |message: String| Error::new(ErrorKind::InvalidSpec, "restore", message);
        let state: KpaState = serde_json::from_value(checkpoint)
            .map_err(|error| bad(format!("not a checkpoint of {}: {error}", Policy::name(&self.kpa))))?;
        let states = states
            .downcast_mut::<States>()
            .ok_or_else(|| bad(format!("these are not states of {}", Policy::name(&self.kpa))))?;
        states.forget(row);
        let at = row as usize;
        if states.rows.len() <= at {
            states.rows.resize(at + 1, Residence::Empty);
        }
        // Its configuration comes with the next tick; until then, and from then on, it stays scalar.
        states.rows[at] = states.scalar(state);
        Ok(())
    }
}
