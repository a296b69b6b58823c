//! The default scaler for many revisions: state in columns, decisions without branches.
//!
//! Rings of samples are time-major: the values of one second of all revisions lie side by side, so that a tick reads
//! two stretches of memory and writes one. A ring is never cleared: what is older than the revision counts as zero.
//! Rounding is done by adding and taking away 2^52, since plain x86-64 has no instruction for it, and all choices are
//! selections, so that the compiler can do several revisions at once.
//!
//! **Invariant:** a row in columns and a [`KpaState`] hold the same, and convert into each other without loss. What
//! the fast way does not handle (a first tick, a tick that is not nearly a second after the one before, a wake-up, bad
//! input) goes through the scalar code on the converted state. Rows of Knative's preset, with weighted windows or
//! with a scale-down delay keep the scalar state for good.

use std::any::Any;

use sas_core::{
    Aggregation, Clamps, Decision, Error, ErrorKind, Metric, Policy, Preset, Reason, Result, ScaleInput,
    Scaler, ScalingSpec, SpecErrors, Timestamp, Vote, knative::DeciderSpec,
};

use super::{
    decider::Decider,
    policy::{Kpa, KpaState, PEAK_DECAY, Params, Pending, Recent, Sample},
};
use crate::window::{SECOND, Window};

/// Revisions that one pass handles: as many as fit the first-level cache with all their intermediate values.
const LANES: usize = 64;
/// Different configurations that have columns; further ones keep scalar state.
const GROUPS: usize = 64;
/// Different targets within one group.
const TARGETS: usize = 4096;

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
enum Place {
    Empty,
    Scalar(u32),
    Column { group: u16, at: u32 },
}

/// The states of all rows.
#[derive(Debug, Default)]
struct States {
    rows: Vec<Place>,
    scalars: Vec<Option<Box<KpaState>>>,
    free_scalars: Vec<u32>,
    groups: Vec<Group>,
}

/// What rows of one group have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Shape {
    stable: u32,
    panic: u32,
    /// With the targets of no row.
    spec: DeciderSpec,
    metric: Metric,
}

impl Shape {
    /// `None` for what has no columns.
    fn of(params: &Params, preset: Preset) -> Option<Self> {
        let stable = params.spec.stable_window_ns;
        let fits = preset == Preset::Default
            && params.aggregation == Aggregation::Linear
            && params.spec.scale_down_delay_ns == 0
            && stable % SECOND == 0
            && stable >= SECOND
            && params.panic_window <= stable;
        let mut spec = params.spec;
        spec.target_value = 0.0;
        spec.total_value = 0.0;
        fits.then(|| Self {
            stable: u32::try_from(stable / SECOND).unwrap_or(1),
            panic: u32::try_from(params.panic_window / SECOND).unwrap_or(1).max(1),
            spec,
            metric: params.metric,
        })
    }
}

/// The part of a spec that columns are made for, to see whether a row still has the one that it began with.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Identity {
    spec: usize,
    target: f64,
    utilization: f64,
    stable_window: std::time::Duration,
    concurrency: u32,
}

impl Identity {
    fn of(input: &ScaleInput<'_>) -> Self {
        Self {
            spec: std::ptr::from_ref(input.spec).addr(),
            target: input.spec.target,
            utilization: input.spec.utilization,
            stable_window: input.spec.stable_window,
            concurrency: input.concurrency,
        }
    }
}

/// Rows of one shape.
#[derive(Debug)]
struct Group {
    shape: Shape,
    /// Target and total of each row, by index, and who asked for them last.
    targets: Vec<(f64, f64)>,
    known: Option<(Identity, u16)>,
    /// One plane per second of the stable window.
    ring: Vec<Vec<f64>>,
    newest_plane: u16,
    free: Vec<u32>,
    target: Vec<u16>,
    stable_total: Vec<f64>,
    panic_total: Vec<f64>,
    peak: Vec<f32>,
    recent: Vec<f32>,
    before: Vec<f32>,
    drift: Vec<f32>,
    /// Seconds recorded since the first tick; 0: none yet.
    age: Vec<u32>,
    /// In seconds of age; 0: no panic.
    panic_since: Vec<u32>,
    max_panic: Vec<i32>,
    plane: Vec<u16>,
    count: Vec<u16>,
    settling: Vec<u16>,
    full: Vec<u8>,
    /// Rows whose samples do not add up to a second yet: weighted sum and seconds. Rare.
    pending: std::collections::BTreeMap<u32, (f64, f64)>,
}

impl Group {
    fn new(shape: Shape) -> Self {
        Self {
            shape,
            targets: Vec::new(),
            known: None,
            ring: vec![Vec::new(); shape.stable as usize],
            newest_plane: 0,
            free: Vec::new(),
            target: Vec::new(),
            stable_total: Vec::new(),
            panic_total: Vec::new(),
            peak: Vec::new(),
            recent: Vec::new(),
            before: Vec::new(),
            drift: Vec::new(),
            age: Vec::new(),
            panic_since: Vec::new(),
            max_panic: Vec::new(),
            plane: Vec::new(),
            count: Vec::new(),
            settling: Vec::new(),
            full: Vec::new(),
            pending: std::collections::BTreeMap::new(),
        }
    }

    /// The index of a target, remembered for the rows that come with the same spec.
    fn target_of(&mut self, params: &Params) -> Option<u16> {
        let pair = (params.spec.target_value, params.spec.total_value);
        let found = self.targets.iter().rposition(|known| *known == pair).or_else(|| {
            (self.targets.len() < TARGETS).then(|| {
                self.targets.push(pair);
                self.targets.len() - 1
            })
        });
        found.and_then(|at| u16::try_from(at).ok())
    }

    fn add(&mut self, target: u16) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            for plane in &mut self.ring {
                plane.push(0.0);
            }
            self.target.push(0);
            self.stable_total.push(0.0);
            self.panic_total.push(0.0);
            self.peak.push(0.0);
            self.recent.push(0.0);
            self.before.push(0.0);
            self.drift.push(0.0);
            self.age.push(0);
            self.panic_since.push(0);
            self.max_panic.push(0);
            self.plane.push(0);
            self.count.push(0);
            self.settling.push(0);
            self.full.push(0);
            u32::try_from(self.target.len() - 1).unwrap_or(u32::MAX)
        });
        self.target[at as usize] = target;
        self.age[at as usize] = 0;
        at
    }

    /// The plane of a second of a row's age.
    fn plane_of(&self, at: usize, second: i64) -> usize {
        let back = i64::from(self.age[at]) - second;
        let count = i64::from(self.shape.stable);
        usize::try_from((i64::from(self.plane[at]) - back).rem_euclid(count)).unwrap_or(0)
    }

    /// The row as scalar state.
    fn load(&self, at: u32) -> KpaState {
        let row = at as usize;
        let age = i64::from(self.age[row]);
        if age == 0 {
            return KpaState::default();
        }
        let window = |seconds: u32, total: f64| {
            Window::filled(i64::from(seconds) * SECOND, age, total, |second| {
                self.ring[self.plane_of(row, second)][row]
            })
        };
        let (weighted, seconds) = self.pending.get(&at).copied().unwrap_or_default();
        KpaState {
            windows: Some((
                window(self.shape.stable, self.stable_total[row]),
                window(self.shape.panic, self.panic_total[row]),
            )),
            decider: Decider {
                panic_since: (self.panic_since[row] > 0).then(|| i64::from(self.panic_since[row]) * SECOND),
                max_panic_pods: self.max_panic[row],
                delay: None,
            },
            clock: age * SECOND,
            pending: Pending { weighted, seconds, drift: self.drift[row] },
            recent: Recent {
                current: self.recent[row],
                before: self.before[row],
                count: u32::from(self.count[row]),
                full: self.full[row],
            },
            peak: self.peak[row],
            settling: u32::from(self.settling[row]),
        }
    }

    /// Puts scalar state into the row. False when the columns can't hold it.
    fn store(&mut self, at: u32, state: &KpaState) -> bool {
        let row = at as usize;
        let age = state.clock / SECOND;
        let (Some((stable, panic)), Ok(age_seconds)) = (&state.windows, u32::try_from(age)) else {
            return false;
        };
        let fits = stable.is_filled_to(age)
            && panic.is_filled_to(age)
            && stable.length() == i64::from(self.shape.stable) * SECOND
            && panic.length() == i64::from(self.shape.panic) * SECOND
            && state.decider.delay.is_none()
            && age > 0;
        if !fits {
            return false;
        }
        let first = self.age[row] == 0;
        let moved = age - i64::from(self.age[row]);
        let count = i64::from(self.shape.stable);
        // A row that begins joins the others' newest plane, so that they go on in step.
        self.plane[row] = if first {
            self.newest_plane
        } else {
            u16::try_from((i64::from(self.plane[row]) + moved).rem_euclid(count)).unwrap_or(0)
        };
        self.newest_plane = self.plane[row];
        self.age[row] = age_seconds;
        for second in (age - count + 1).max(1)..=age {
            let plane = self.plane_of(row, second);
            self.ring[plane][row] = stable.value_at(second);
        }
        self.stable_total[row] = stable.total();
        self.panic_total[row] = panic.total();
        self.peak[row] = state.peak;
        self.recent[row] = state.recent.current;
        self.before[row] = state.recent.before;
        self.count[row] = u16::try_from(state.recent.count).unwrap_or(0);
        self.full[row] = state.recent.full;
        self.settling[row] = u16::try_from(state.settling).unwrap_or(u16::MAX);
        self.drift[row] = state.pending.drift;
        self.panic_since[row] =
            state.decider.panic_since.map_or(0, |since| u32::try_from(since / SECOND).unwrap_or(0));
        self.max_panic[row] = state.decider.max_panic_pods;
        if state.pending.seconds == 0.0 && state.pending.weighted == 0.0 {
            self.pending.remove(&at);
        } else {
            self.pending.insert(at, (state.pending.weighted, state.pending.seconds));
        }
        true
    }

    fn remove(&mut self, at: u32) {
        self.age[at as usize] = 0;
        self.pending.remove(&at);
        self.free.push(at);
    }
}

/// One pass: inputs and results of up to [`LANES`] rows, side by side.
struct Lanes {
    at: [u32; LANES],
    value: [f64; LANES],
    peak: [f32; LANES],
    queued: [f64; LANES],
    ready: [f64; LANES],
    starting: [f64; LANES],
    target: [f64; LANES],
    total: [f64; LANES],
    stable: [f64; LANES],
    panic: [f64; LANES],
    recent: [f64; LANES],
    desired: [f64; LANES],
    stable_wants: [f64; LANES],
    panic_wants: [f64; LANES],
    excess: [f64; LANES],
    clamps: [u16; LANES],
    by_panic: [bool; LANES],
}

impl Lanes {
    const fn new() -> Self {
        Self {
            at: [0; LANES],
            value: [0.0; LANES],
            peak: [0.0; LANES],
            queued: [0.0; LANES],
            ready: [0.0; LANES],
            starting: [0.0; LANES],
            target: [1.0; LANES],
            total: [1.0; LANES],
            stable: [0.0; LANES],
            panic: [0.0; LANES],
            recent: [0.0; LANES],
            desired: [0.0; LANES],
            stable_wants: [0.0; LANES],
            panic_wants: [0.0; LANES],
            excess: [0.0; LANES],
            clamps: [0; LANES],
            by_panic: [false; LANES],
        }
    }
}

/// 2^52: above it, an f64 has no fraction.
const WHOLE: f64 = 4_503_599_627_370_496.0;
/// The most that a count of instances can be.
const MOST: f64 = i32::MAX as f64;

/// `value.ceil()` for any value from -1 on.
#[inline(always)]
fn ceil(value: f64) -> f64 {
    let near = (value + WHOLE) - WHOLE;
    let up = if near < value { near + 1.0 } else { near };
    if value < WHOLE { up } else { value }
}

/// `value.floor()` for any value from 0 on.
#[inline(always)]
fn floor(value: f64) -> f64 {
    let near = (value + WHOLE) - WHOLE;
    let down = if near > value { near - 1.0 } else { near };
    if value < WHOLE { down } else { value }
}

/// `value.floor()` for any value.
#[inline(always)]
fn floor_signed(value: f64) -> f64 {
    let size = value.abs();
    let near = ((size + WHOLE) - WHOLE).copysign(value);
    let down = if near > value { near - 1.0 } else { near };
    if size < WHOLE { down } else { value }
}

/// `(value * 1e6).round() / 1e6`: half away from zero.
#[inline(always)]
fn round6(value: f64) -> f64 {
    let scaled = value * 1e6;
    let size = scaled.abs();
    let near = (size + WHOLE) - WHOLE;
    let away = if size - near >= 0.5 { near + 1.0 } else { near };
    let rounded = if size < WHOLE { away } else { size };
    rounded.copysign(scaled) / 1e6
}

impl Group {
    /// Whether the fast way can take the row with this input, and what it measured.
    #[inline]
    fn regular(&self, at: usize, sample: &Sample) -> bool {
        let due = sample.elapsed + f64::from(self.drift[at]);
        self.age[at] > 0
            && self.age[at] < u32::MAX
            && (0.5..1.5).contains(&due)
            && self.pending.is_empty()
            && (sample.ready > 0 || sample.queued == 0.0)
    }

    /// One tick of the rows in `lanes`, all of which write the plane `plane`.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counts of seconds and of instances, which are whole and in range; rates and drift are rounded as \
                  in the scalar code"
    )]
    fn pass(&mut self, lanes: &mut Lanes, count: usize, plane: usize, elapsed: f64) {
        let shape = self.shape;
        let (stable_length, panic_length) = (shape.stable, shape.panic);
        let spec = shape.spec;
        let concurrency = shape.metric == Metric::Concurrency;
        let oldest_of_panic = (plane + (stable_length - panic_length) as usize) % stable_length as usize;
        // What waits counts only in part while instances start, and shortly after.
        for lane in 0..count {
            let at = lanes.at[lane] as usize;
            let settling = if lanes.starting[lane] > 0.0 {
                panic_length as u16
            } else {
                self.settling[at].saturating_sub(1)
            };
            self.settling[at] = settling;
            let peak = lanes.peak[lane].max(self.peak[at] * PEAK_DECAY);
            self.peak[at] = peak;
            let (target, total) = self.targets[usize::from(self.target[at])];
            lanes.target[lane] = target;
            lanes.total[lane] = total;
            let trusted = f64::from(peak).max((lanes.ready[lane] + lanes.starting[lane]).min(MOST) * total);
            let excess = (lanes.queued[lane] - trusted).max(0.0);
            let partly = settling > 0 && excess > 0.0;
            let value = lanes.value[lane];
            if partly & concurrency {
                lanes.value[lane] = (value - excess).max(value.min(trusted));
            }
            lanes.clamps[lane] = if partly { Clamps::STARTING.0 } else { 0 };
        }
        // Windows.
        for lane in 0..count {
            let at = lanes.at[lane] as usize;
            let weighted = lanes.value[lane] * elapsed;
            let mean = weighted / elapsed;
            let due = elapsed + f64::from(self.drift[at]);
            self.drift[at] = (due - 1.0).clamp(-0.5, 0.5) as f32;
            let age = self.age[at] + 1;
            let leaves_stable = if age > stable_length { self.ring[plane][at] } else { 0.0 };
            let leaves_panic = if age > panic_length { self.ring[oldest_of_panic][at] } else { 0.0 };
            self.ring[plane][at] = mean;
            let stable_total = (self.stable_total[at] - leaves_stable) + mean;
            let panic_total = (self.panic_total[at] - leaves_panic) + mean;
            self.stable_total[at] = stable_total;
            self.panic_total[at] = panic_total;
            self.age[at] = age;
            lanes.stable[lane] = stable_total / f64::from(age.min(stable_length));
            lanes.panic[lane] = panic_total / f64::from(age.min(panic_length));
            let current = self.recent[at].max(mean as f32);
            let ends = u32::from(self.count[at]) + 1 >= panic_length;
            self.count[at] = if ends { 0 } else { self.count[at] + 1 };
            let before = if ends { current } else { self.before[at] };
            let current = if ends { 0.0 } else { current };
            self.before[at] = before;
            self.recent[at] = current;
            let full = (self.full[at] + u8::from(ends)).min(2);
            self.full[at] = full;
            // Without a trusted stretch, a value that never says quiet.
            lanes.recent[lane] = if full == 2 { f64::from(current.max(before)) } else { f64::INFINITY };
        }
        // The decision.
        let activation = f64::from(spec.activation_scale);
        let activates = spec.activation_scale > 1;
        for lane in 0..count {
            let at = lanes.at[lane] as usize;
            let target = lanes.target[lane];
            let ready = lanes.ready[lane];
            let (stable_average, panic_average) = (round6(lanes.stable[lane]), round6(lanes.panic[lane]));
            lanes.stable[lane] = stable_average;
            lanes.panic[lane] = panic_average;
            let counted = ready.max(1.0);
            let up = ceil(spec.max_scale_up_rate * counted);
            let down = if spec.reachable { floor(counted / spec.max_scale_down_rate) } else { 0.0 };
            let window_wants = ceil(stable_average / target);
            let panic_wants = ceil(panic_average / target);
            let least = if window_wants > 0.0 { 1.0 } else { 0.0 };
            let recent_wants = ceil(lanes.recent[lane] / target).max(least);
            let quiet = recent_wants * 2.0 <= window_wants;
            let stable_wants = if quiet { recent_wants } else { window_wants };
            let mut stable = stable_wants.max(down).min(up).min(MOST);
            let mut panic = panic_wants.max(down).min(up).min(MOST);
            let stable_raised = activates & (stable_wants > 0.0) & (activation > stable);
            let panic_raised = activates & (panic_wants > 0.0) & (activation > panic);
            stable = if stable_raised { activation } else { stable };
            panic = if panic_raised { activation } else { panic };
            let judged = (ready + lanes.starting[lane]).min(MOST).max(1.0);
            let over = panic_wants / judged >= spec.panic_threshold;
            let age = self.age[at];
            let since = self.panic_since[at];
            let max_panic = f64::from(self.max_panic[at]);
            let calm = recent_wants * 2.0 <= max_panic;
            let ends =
                !over & (since > 0) & ((u64::from(since) + u64::from(stable_length) < u64::from(age)) | calm);
            let since = if over {
                age
            } else if ends {
                0
            } else {
                since
            };
            let max_panic = if ends { 0.0 } else { max_panic };
            let panics = since > 0;
            let wanted = stable.max(panic);
            let held = panics & (max_panic > wanted);
            let max_panic = if panics { max_panic.max(wanted) } else { max_panic };
            let by_panic = panics & (max_panic > stable);
            let desired = if panics { max_panic } else { stable };
            self.panic_since[at] = since;
            self.max_panic[at] = max_panic as i32;
            let wants = if by_panic { panic_wants } else { stable_wants };
            let raised = if by_panic { panic_raised } else { stable_raised };
            let limit = if raised {
                Clamps::ACTIVATION.0
            } else if wants.max(down) > up {
                Clamps::UP_RATE.0
            } else if wants < down {
                Clamps::DOWN_RATE.0
            } else {
                0
            };
            lanes.clamps[lane] |= limit
                | if held { Clamps::PANIC.0 } else { 0 }
                | if quiet & !by_panic { Clamps::QUIET.0 } else { 0 };
            lanes.by_panic[lane] = by_panic;
            lanes.desired[lane] = desired;
            lanes.stable_wants[lane] = window_wants;
            lanes.panic_wants[lane] = panic_wants;
            let burst = spec.target_burst_capacity;
            lanes.excess[lane] = if burst == 0.0 {
                0.0
            } else if burst > 0.0 {
                floor_signed(ready * lanes.total[lane] - burst - panic_average)
            } else {
                -1.0
            };
        }
    }

    /// The decision of a lane.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole numbers; saturates")]
    fn decision(&self, lanes: &Lanes, lane: usize) -> Decision {
        let desired = lanes.desired[lane] as u32;
        let reason = if lanes.by_panic[lane] {
            Reason::Panic
        } else if desired == 0 {
            Reason::Idle
        } else {
            Reason::Stable
        };
        let mut decision = Decision::set(desired, reason);
        decision.clamps = Clamps(lanes.clamps[lane]);
        decision.excess_burst = lanes.excess[lane] as i32;
        decision.version = Kpa::VERSION;
        let vote = |value: f64, wants: f64| {
            Vote::new(self.shape.metric, Some(value), lanes.target[lane], Some(wants.min(MOST) as u32))
        };
        decision.votes.push(vote(lanes.stable[lane], lanes.stable_wants[lane]));
        decision.votes.push(vote(lanes.panic[lane], lanes.panic_wants[lane]));
        decision
    }
}

impl States {
    /// Where the row is, given its input; a row without state, or whose configuration changed, is placed.
    fn place(&mut self, kpa: &Kpa, input: &ScaleInput<'_>) -> Place {
        let row = input.row as usize;
        if self.rows.len() <= row {
            self.rows.resize(row + 1, Place::Empty);
        }
        match self.rows[row] {
            Place::Empty => self.begin(kpa, input, None),
            Place::Scalar(at) => Place::Scalar(at),
            Place::Column { group, at } => {
                let found = &mut self.groups[usize::from(group)];
                let identity = Identity::of(input);
                let target = found.target[at as usize];
                if found.known == Some((identity, target)) {
                    return Place::Column { group, at };
                }
                let params = Params::new(input, kpa.metric(input.spec), None);
                let same = Shape::of(&params, input.spec.preset) == Some(found.shape)
                    && found.targets[usize::from(target)]
                        == (params.spec.target_value, params.spec.total_value);
                if same {
                    found.known = Some((identity, target));
                    return Place::Column { group, at };
                }
                // Another configuration: what was learnt moves with it, as the scalar code has it.
                let state = found.load(at);
                found.remove(at);
                self.rows[row] = Place::Empty;
                self.begin(kpa, input, Some(state))
            }
        }
    }

    fn begin(&mut self, kpa: &Kpa, input: &ScaleInput<'_>, state: Option<KpaState>) -> Place {
        let params = Params::new(input, kpa.metric(input.spec), None);
        let column = state.is_none().then(|| self.column(&params, input)).flatten();
        let place = column.unwrap_or_else(|| self.scalar(state.unwrap_or_default()));
        self.rows[input.row as usize] = place;
        place
    }

    fn column(&mut self, params: &Params, input: &ScaleInput<'_>) -> Option<Place> {
        let shape = Shape::of(params, input.spec.preset)?;
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
        Some(Place::Column { group: u16::try_from(group).ok()?, at })
    }

    fn scalar(&mut self, state: KpaState) -> Place {
        let state = Some(Box::new(state));
        match self.free_scalars.pop() {
            Some(at) => {
                self.scalars[at as usize] = state;
                Place::Scalar(at)
            }
            None => {
                self.scalars.push(state);
                Place::Scalar(u32::try_from(self.scalars.len() - 1).unwrap_or(u32::MAX))
            }
        }
    }

    /// Decides one row by the scalar code.
    fn one(&mut self, kpa: &Kpa, input: &ScaleInput<'_>, place: Place) -> Decision {
        match place {
            Place::Empty => Decision::hold(Reason::ScalerFailed),
            Place::Scalar(at) => match &mut self.scalars[at as usize] {
                Some(state) => kpa.decide(state, input),
                None => Decision::hold(Reason::ScalerFailed),
            },
            Place::Column { group, at } => {
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
            Place::Empty => None,
            Place::Scalar(at) => self.scalars[at as usize].as_deref().cloned(),
            Place::Column { group, at } => Some(self.groups[usize::from(group)].load(at)),
        }
    }

    fn forget(&mut self, row: u32) {
        let Some(place) = self.rows.get_mut(row as usize) else { return };
        match std::mem::replace(place, Place::Empty) {
            Place::Empty => {}
            Place::Scalar(at) => {
                self.scalars[at as usize] = None;
                self.free_scalars.push(at);
            }
            Place::Column { group, at } => self.groups[usize::from(group)].remove(at),
        }
    }

    /// Takes inputs from the front of `batch` into `lanes` for as long as the fast way can take them together.
    fn fill(&mut self, kpa: &Kpa, batch: &[ScaleInput<'_>], lanes: &mut Lanes) -> Option<Run> {
        let mut run: Option<Run> = None;
        for input in batch.iter().take(LANES) {
            let place = self.place(kpa, input);
            let Place::Column { group, at } = place else { break };
            let columns = &mut self.groups[usize::from(group)];
            let row = at as usize;
            let Some(sample) = Sample::of(input.load, input.elapsed, columns.shape.metric) else { break };
            if !columns.regular(row, &sample) {
                break;
            }
            let next = columns.plane[row] + 1;
            let plane = if u32::from(next) == columns.shape.stable { 0 } else { usize::from(next) };
            match &mut run {
                None => run = Some(Run { group, plane, elapsed: sample.elapsed, count: 0 }),
                Some(run) if run.group == group && run.plane == plane && run.elapsed == sample.elapsed => {}
                Some(_) => break,
            }
            let Some(run) = &mut run else { break };
            let lane = run.count;
            // The same row twice in a batch has to wait for its first turn: its plane tells, unless there is but one.
            if columns.shape.stable == 1 && lanes.at[..lane].contains(&at) {
                break;
            }
            columns.plane[row] = u16::try_from(plane).unwrap_or(0);
            lanes.at[lane] = at;
            lanes.value[lane] = sample.value;
            #[allow(clippy::cast_possible_truncation, reason = "seven digits of a rate are enough")]
            {
                lanes.peak[lane] = sample.arrivals as f32;
            }
            lanes.queued[lane] = sample.queued;
            lanes.ready[lane] = f64::from(sample.ready);
            lanes.starting[lane] = f64::from(sample.starting);
            run.count += 1;
        }
        run
    }
}

/// Inputs that go through the fast way together.
struct Run {
    group: u16,
    plane: usize,
    elapsed: f64,
    count: usize,
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
        let mut lanes = Lanes::new();
        let mut rest = batch;
        while let Some(first) = rest.first() {
            match states.fill(&self.kpa, rest, &mut lanes) {
                Some(run) => {
                    let group = &mut states.groups[usize::from(run.group)];
                    group.newest_plane = u16::try_from(run.plane).unwrap_or(0);
                    group.pass(&mut lanes, run.count, run.plane, run.elapsed);
                    out.extend((0..run.count).map(|lane| group.decision(&lanes, lane)));
                    rest = &rest[run.count..];
                }
                None => {
                    let place = states.place(&self.kpa, first);
                    out.push(states.one(&self.kpa, first, place));
                    rest = &rest[1..];
                }
            }
        }
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
            states.rows.resize(at + 1, Place::Empty);
        }
        // Its configuration comes with the next tick; until then, and from then on, it stays scalar.
        states.rows[at] = states.scalar(state);
        Ok(())
    }
}
