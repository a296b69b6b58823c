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
    Scaler, ScalingSpec, SpecErrors, Timestamp, Vote, Votes, knative::DeciderSpec,
};

use super::{
    decider::Decider,
    policy::{Kpa, KpaState, PEAK_DECAY, Params, Pending, Recent, SAMPLE_MAX, scale_of},
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
    /// Kept between ticks: making them anew would cost as much as a row.
    lanes: Option<Box<Lanes>>,
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
    /// Seconds recorded since the first tick; 0: none yet. Signed, since plain x86-64 converts only such fast.
    age: Vec<i32>,
    /// In seconds of age; 0: no panic.
    panic_since: Vec<i32>,
    max_panic: Vec<i32>,
    plane: Vec<u16>,
    count: Vec<i16>,
    settling: Vec<i16>,
    full: Vec<i16>,
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
                count: u32::from(self.count[row].unsigned_abs()),
                full: if self.full[row] >= 2 { 2 } else { u8::from(self.full[row] == 1) },
            },
            peak: self.peak[row],
            settling: u32::from(self.settling[row].unsigned_abs()),
        }
    }

    /// Puts scalar state into the row. False when the columns can't hold it.
    fn store(&mut self, at: u32, state: &KpaState) -> bool {
        let row = at as usize;
        let age = state.clock / SECOND;
        let (Some((stable, panic)), Ok(age_seconds)) = (&state.windows, i32::try_from(age)) else {
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
        self.count[row] = i16::try_from(state.recent.count).unwrap_or(0);
        self.full[row] = i16::from(state.recent.full);
        self.settling[row] = i16::try_from(state.settling).unwrap_or(i16::MAX);
        self.drift[row] = state.pending.drift;
        self.panic_since[row] =
            state.decider.panic_since.map_or(0, |since| i32::try_from(since / SECOND).unwrap_or(0));
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

/// One pass: inputs, state and results of up to [`LANES`] rows, side by side. Lanes beyond the count hold old values
/// and are never looked at.
#[derive(Debug)]
struct Lanes {
    at: [u32; LANES],
    value: [f64; LANES],
    requests: [f64; LANES],
    ready: [f64; LANES],
    starting: [f64; LANES],
    target: [f64; LANES],
    total: [f64; LANES],
    peak: [f32; LANES],
    settling: [i16; LANES],
    partly: [u16; LANES],
    drift: [f32; LANES],
    age: [i32; LANES],
    stable_total: [f64; LANES],
    panic_total: [f64; LANES],
    leaves_stable: [f64; LANES],
    leaves_panic: [f64; LANES],
    stable: [f64; LANES],
    panic: [f64; LANES],
    current: [f32; LANES],
    before: [f32; LANES],
    count: [i16; LANES],
    full: [i16; LANES],
    since: [i32; LANES],
    max_panic: [i32; LANES],
    desired: [i32; LANES],
    stable_wants: [i32; LANES],
    panic_wants: [i32; LANES],
    excess: [i32; LANES],
    clamps: [i32; LANES],
    by_panic: [i32; LANES],
}

impl Lanes {
    const fn new() -> Self {
        Self {
            at: [0; LANES],
            value: [0.0; LANES],
            requests: [0.0; LANES],
            ready: [0.0; LANES],
            starting: [0.0; LANES],
            target: [1.0; LANES],
            total: [1.0; LANES],
            peak: [0.0; LANES],
            settling: [0; LANES],
            partly: [0; LANES],
            drift: [0.0; LANES],
            age: [1; LANES],
            stable_total: [0.0; LANES],
            panic_total: [0.0; LANES],
            leaves_stable: [0.0; LANES],
            leaves_panic: [0.0; LANES],
            stable: [0.0; LANES],
            panic: [0.0; LANES],
            current: [0.0; LANES],
            before: [0.0; LANES],
            count: [0; LANES],
            full: [0; LANES],
            since: [0; LANES],
            max_panic: [0; LANES],
            desired: [0; LANES],
            stable_wants: [0; LANES],
            panic_wants: [0; LANES],
            excess: [0; LANES],
            clamps: [0; LANES],
            by_panic: [0; LANES],
        }
    }
}

/// A column's values of a run of rows, into a lane; rows that lie side by side are one copy.
#[inline(always)]
fn take<T: Copy>(lane: &mut [T; LANES], column: &[T], at: &[u32], side_by_side: bool) {
    if side_by_side {
        let from = at[0] as usize;
        lane[..at.len()].copy_from_slice(&column[from..from + at.len()]);
    } else {
        for (value, at) in lane.iter_mut().zip(at) {
            *value = column[*at as usize];
        }
    }
}

/// And back.
#[inline(always)]
fn give<T: Copy>(lane: &[T; LANES], column: &mut [T], at: &[u32], side_by_side: bool) {
    if side_by_side {
        let from = at[0] as usize;
        column[from..from + at.len()].copy_from_slice(&lane[..at.len()]);
    } else {
        for (value, at) in lane.iter().zip(at) {
            column[*at as usize] = *value;
        }
    }
}

/// The larger one, where neither is NaN: one instruction, where `f64::max` needs five.
#[inline(always)]
fn larger(one: f64, other: f64) -> f64 {
    if one > other { one } else { other }
}

/// The smaller one, where neither is NaN.
#[inline(always)]
fn smaller(one: f64, other: f64) -> f64 {
    if one < other { one } else { other }
}

/// A whole number within 32 bits, by the bits that adding 1.5 * 2^52 leaves at the bottom.
#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the low half of the bits is the number")]
fn whole(value: f64) -> i32 {
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    (value + SHIFT).to_bits() as i32
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
    /// One tick of the rows in `lanes`, all of which write the plane `plane`.
    fn pass(&mut self, lanes: &mut Lanes, count: usize, plane: usize, elapsed: f64) {
        let at = lanes.at;
        let at = &at[..count];
        let side_by_side = at[count - 1] - at[0] == count as u32 - 1 && at.is_sorted();
        let length = self.shape.stable as usize;
        let oldest_of_panic = (plane + length - self.shape.panic as usize) % length;
        take(&mut lanes.settling, &self.settling, at, side_by_side);
        take(&mut lanes.peak, &self.peak, at, side_by_side);
        take(&mut lanes.drift, &self.drift, at, side_by_side);
        take(&mut lanes.age, &self.age, at, side_by_side);
        take(&mut lanes.stable_total, &self.stable_total, at, side_by_side);
        take(&mut lanes.panic_total, &self.panic_total, at, side_by_side);
        take(&mut lanes.leaves_stable, &self.ring[plane], at, side_by_side);
        take(&mut lanes.leaves_panic, &self.ring[oldest_of_panic], at, side_by_side);
        take(&mut lanes.current, &self.recent, at, side_by_side);
        take(&mut lanes.before, &self.before, at, side_by_side);
        take(&mut lanes.count, &self.count, at, side_by_side);
        take(&mut lanes.full, &self.full, at, side_by_side);
        take(&mut lanes.since, &self.panic_since, at, side_by_side);
        take(&mut lanes.max_panic, &self.max_panic, at, side_by_side);
        self.shape.measure(lanes, elapsed);
        self.shape.average(lanes, elapsed);
        self.shape.decide(lanes);
        give(&lanes.settling, &mut self.settling, at, side_by_side);
        give(&lanes.peak, &mut self.peak, at, side_by_side);
        give(&lanes.drift, &mut self.drift, at, side_by_side);
        give(&lanes.age, &mut self.age, at, side_by_side);
        give(&lanes.stable_total, &mut self.stable_total, at, side_by_side);
        give(&lanes.panic_total, &mut self.panic_total, at, side_by_side);
        give(&lanes.value, &mut self.ring[plane], at, side_by_side);
        give(&lanes.current, &mut self.recent, at, side_by_side);
        give(&lanes.before, &mut self.before, at, side_by_side);
        give(&lanes.count, &mut self.count, at, side_by_side);
        give(&lanes.full, &mut self.full, at, side_by_side);
        give(&lanes.since, &mut self.panic_since, at, side_by_side);
        give(&lanes.max_panic, &mut self.max_panic, at, side_by_side);
    }
}

impl Shape {
    /// What waits counts only in part while instances start, and shortly after.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a window has at most 3,600 seconds; rates are rounded as in the scalar code"
    )]
    fn measure(&self, lanes: &mut Lanes, elapsed: f64) {
        let panic = self.panic as i16;
        let concurrency = self.metric == Metric::Concurrency;
        for lane in 0..LANES {
            let less = if lanes.settling[lane] > 0 { lanes.settling[lane] - 1 } else { 0 };
            lanes.settling[lane] = if lanes.starting[lane] > 0.0 { panic } else { less };
        }
        for lane in 0..LANES {
            let arrivals = (lanes.requests[lane] / elapsed) as f32;
            let kept = lanes.peak[lane] * PEAK_DECAY;
            lanes.peak[lane] = if arrivals > kept { arrivals } else { kept };
        }
        for lane in 0..LANES {
            let there = smaller(lanes.ready[lane] + lanes.starting[lane], MOST);
            let trusted = larger(f64::from(lanes.peak[lane]), there * lanes.target[lane]);
            let value = lanes.value[lane];
            let partly = (lanes.settling[lane] > 0) & concurrency & (value > trusted);
            lanes.value[lane] = if partly { trusted } else { value };
            lanes.partly[lane] = if partly { Clamps::STARTING.0 } else { 0 };
        }
    }

    /// The windows, and the highest sample of late.
    #[allow(clippy::cast_possible_truncation, reason = "rounded as in the scalar code; windows are short")]
    fn average(&self, lanes: &mut Lanes, elapsed: f64) {
        let (stable_length, panic_length) = (self.stable as i32, self.panic as i32);
        for lane in 0..LANES {
            let due = elapsed + f64::from(lanes.drift[lane]);
            lanes.drift[lane] = smaller(larger(due - 1.0, -0.5), 0.5) as f32;
        }
        for lane in 0..LANES {
            let mean = lanes.value[lane] * elapsed / elapsed;
            lanes.value[lane] = mean;
            let age = lanes.age[lane] + 1;
            lanes.age[lane] = age;
            // What is older than the revision is another's.
            let leaves = if age > stable_length { lanes.leaves_stable[lane] } else { 0.0 };
            let total = (lanes.stable_total[lane] - leaves) + mean;
            lanes.stable_total[lane] = total;
            let filled = if age < stable_length { age } else { stable_length };
            lanes.stable[lane] = round6(total / f64::from(filled));
        }
        for lane in 0..LANES {
            let age = lanes.age[lane];
            let leaves = if age > panic_length { lanes.leaves_panic[lane] } else { 0.0 };
            let total = (lanes.panic_total[lane] - leaves) + lanes.value[lane];
            lanes.panic_total[lane] = total;
            let filled = if age < panic_length { age } else { panic_length };
            lanes.panic[lane] = round6(total / f64::from(filled));
        }
        let stretch = self.panic as i16;
        for lane in 0..LANES {
            let mean = lanes.value[lane] as f32;
            let current = if lanes.current[lane] > mean { lanes.current[lane] } else { mean };
            let next = lanes.count[lane] + 1;
            let ends = next >= stretch;
            lanes.count[lane] = if ends { 0 } else { next };
            lanes.before[lane] = if ends { current } else { lanes.before[lane] };
            lanes.current[lane] = if ends { 0.0 } else { current };
            let full = lanes.full[lane] + i16::from(ends);
            lanes.full[lane] = if full > 2 { 2 } else { full };
        }
    }

    /// The decision, as [`Decider::decide`] makes it.
    fn decide(&self, lanes: &mut Lanes) {
        let spec = self.spec;
        let activation = f64::from(spec.activation_scale);
        let activates = spec.activation_scale > 1;
        let length = f64::from(self.stable);
        let burst = spec.target_burst_capacity;
        let reachable = if spec.reachable { 1.0 } else { 0.0 };
        for lane in 0..LANES {
            let target = lanes.target[lane];
            let ready = lanes.ready[lane];
            let panic_average = lanes.panic[lane];
            let counted = larger(ready, 1.0);
            let up = ceil(spec.max_scale_up_rate * counted);
            let down = floor(counted / spec.max_scale_down_rate) * reachable;
            let window_wants = ceil(lanes.stable[lane] / target);
            let panic_wants = ceil(panic_average / target);
            let least = if window_wants > 0.0 { 1.0 } else { 0.0 };
            let (current, before) = (lanes.current[lane], lanes.before[lane]);
            let highest = f64::from(if current > before { current } else { before });
            // Without a trusted stretch, a value that never says quiet.
            let highest = if lanes.full[lane] >= 2 { highest } else { f64::MAX };
            let recent_wants = larger(ceil(highest / target), least);
            let clear = recent_wants * 2.0 <= window_wants;
            let past = (recent_wants < window_wants) & (ready < window_wants);
            let quiet = clear | past;
            let kept = if past { larger(recent_wants, ready) } else { window_wants };
            let stable_wants = if clear { recent_wants } else { kept };
            let mut stable = smaller(smaller(larger(stable_wants, down), up), MOST);
            let mut panic = smaller(smaller(larger(panic_wants, down), up), MOST);
            let stable_raised = activates & (stable_wants > 0.0) & (activation > stable);
            let panic_raised = activates & (panic_wants > 0.0) & (activation > panic);
            stable = if stable_raised { activation } else { stable };
            panic = if panic_raised { activation } else { panic };
            let judged = larger(smaller(ready + lanes.starting[lane], MOST), 1.0);
            let over = panic_wants / judged >= spec.panic_threshold;
            let age = f64::from(lanes.age[lane]);
            let since = f64::from(lanes.since[lane]);
            let max_panic = f64::from(lanes.max_panic[lane]);
            let calm = recent_wants * 2.0 <= max_panic;
            let ends = !over & (since > 0.0) & ((since + length < age) | calm);
            let since = if ends { 0.0 } else { since };
            let since = if over { age } else { since };
            let max_panic = if ends { 0.0 } else { max_panic };
            let panics = since > 0.0;
            let wanted = larger(stable, panic);
            let held = panics & (max_panic > wanted);
            let max_panic = if panics { larger(max_panic, wanted) } else { max_panic };
            let by_panic = panics & (max_panic > stable);
            let desired = if panics { max_panic } else { stable };
            let wants = if by_panic { panic_wants } else { stable_wants };
            let raised = (by_panic & panic_raised) | (!by_panic & stable_raised);
            let rose = !raised & (larger(wants, down) > up);
            let fell = !raised & !rose & (wants < down);
            // As sums of powers of two, which are whole numbers of the same kind as everything around.
            let flag = |acts: bool, clamp: Clamps| if acts { f64::from(clamp.0) } else { 0.0 };
            let clamps = flag(raised, Clamps::ACTIVATION)
                + flag(rose, Clamps::UP_RATE)
                + flag(fell, Clamps::DOWN_RATE)
                + flag(held, Clamps::PANIC)
                + flag(quiet & !by_panic, Clamps::QUIET);
            let capacity = floor_signed(ready * lanes.total[lane] - burst - panic_average);
            let excess = if burst > 0.0 { capacity } else { -1.0 };
            let excess = if burst == 0.0 { 0.0 } else { excess };
            lanes.since[lane] = whole(since);
            lanes.max_panic[lane] = whole(max_panic);
            lanes.desired[lane] = whole(desired);
            lanes.by_panic[lane] = whole(if by_panic { 1.0 } else { 0.0 });
            lanes.clamps[lane] = whole(clamps);
            lanes.excess[lane] = whole(larger(smaller(excess, MOST), -MOST - 1.0));
            lanes.stable_wants[lane] = whole(smaller(window_wants, MOST));
            lanes.panic_wants[lane] = whole(smaller(panic_wants, MOST));
        }
    }

    /// The decision of a lane.
    #[allow(
        clippy::cast_sign_loss,
        clippy::cast_possible_truncation,
        reason = "counts, and a set of 16 bits"
    )]
    #[inline(always)]
    fn decision(&self, lanes: &Lanes, lane: usize) -> Decision {
        let desired = lanes.desired[lane] as u32;
        let reason = if lanes.by_panic[lane] != 0 {
            Reason::Panic
        } else if desired == 0 {
            Reason::Idle
        } else {
            Reason::Stable
        };
        let mut decision = Decision::set(desired, reason);
        decision.clamps = Clamps(lanes.clamps[lane] as u16 | lanes.partly[lane]);
        decision.excess_burst = lanes.excess[lane];
        decision.version = Kpa::VERSION;
        let target = lanes.target[lane];
        decision.votes = Votes::pair(
            Vote::new(self.metric, Some(lanes.stable[lane]), target, Some(lanes.stable_wants[lane] as u32)),
            Vote::new(self.metric, Some(lanes.panic[lane]), target, Some(lanes.panic_wants[lane] as u32)),
        );
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
        let first = batch.first()?;
        let Place::Column { group, at } = self.place(kpa, first) else { return None };
        let columns = &mut self.groups[usize::from(group)];
        let rows = &self.rows;
        let elapsed = first.elapsed.as_secs_f64().min(3600.0);
        let next = u32::from(columns.plane[at as usize]) + 1;
        let plane = if next >= columns.shape.stable { 0 } else { next as u16 };
        let before = if plane == 0 { columns.shape.stable as u16 - 1 } else { plane - 1 };
        if !columns.pending.is_empty() || elapsed <= 0.0 {
            return None;
        }
        let rps = columns.shape.metric == Metric::Rps;
        // Once per batch it is seen that these are still the spec and limit that the row's target was made from.
        let target = columns.target[at as usize];
        let (spec, concurrency) = (std::ptr::from_ref(first.spec), first.concurrency);
        let (target_value, total_value) = columns.targets[usize::from(target)];
        let mut count = 0;
        for input in batch.iter().take(LANES) {
            let Some(Place::Column { group: other, at }) = rows.get(input.row as usize).copied() else {
                break;
            };
            if other != group {
                break;
            }
            let row = at as usize;
            let load = input.load;
            let due = elapsed + f64::from(columns.drift[row]);
            let requests = f64::from(load.requests);
            let value = if rps { requests / elapsed } else { load.concurrency };
            let regular = std::ptr::eq(input.spec, spec)
                & (input.concurrency == concurrency)
                & (columns.target[row] == target)
                & (columns.plane[row] == before)
                & (input.elapsed == first.elapsed)
                & (columns.age[row] > 0)
                & (columns.age[row] < i32::MAX)
                & (0.5..1.5).contains(&due)
                & (load.concurrency >= 0.0)
                & (load.concurrency <= SAMPLE_MAX)
                & (value <= SAMPLE_MAX)
                & ((load.ready > 0) | (load.queued == 0));
            // The same row twice in a batch waits for its first turn: its plane tells, unless there is but one.
            if !regular || columns.shape.stable == 1 && lanes.at[..count].contains(&at) {
                break;
            }
            columns.plane[row] = plane;
            lanes.at[count] = at;
            lanes.value[count] = value;
            lanes.requests[count] = requests;
            lanes.ready[count] = f64::from(scale_of(load.ready));
            lanes.starting[count] = f64::from(scale_of(load.starting));
            lanes.target[count] = target_value;
            lanes.total[count] = total_value;
            count += 1;
        }
        (count > 0).then(|| Run { group, plane: usize::from(plane), elapsed, count })
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
        let mut lanes = states.lanes.take().unwrap_or_else(|| Box::new(Lanes::new()));
        let mut rest = batch;
        while let Some(first) = rest.first() {
            match states.fill(&self.kpa, rest, &mut lanes) {
                Some(run) => {
                    let group = &mut states.groups[usize::from(run.group)];
                    group.newest_plane = u16::try_from(run.plane).unwrap_or(0);
                    group.pass(&mut lanes, run.count, run.plane, run.elapsed);
                    let shape = group.shape;
                    out.extend((0..run.count).map(|lane| shape.decision(&lanes, lane)));
                    rest = &rest[run.count..];
                }
                None => {
                    let place = states.place(&self.kpa, first);
                    out.push(states.one(&self.kpa, first, place));
                    rest = &rest[1..];
                }
            }
        }
        states.lanes = Some(lanes);
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
