//! The arithmetic of one second of 64 rows, without a branch on the data of one.
//!
//! Counts are 32-bit integers: four of them fit a register of plain x86-64, where two floats do. Averages are `f64`
//! as in the scalar code, in the same order of operations. What goes in is bounded by [`VALUE_MAX`] and
//! [`COUNT_MAX`], so that nothing overflows and rounding needs no guard. Lanes that take no part may hold anything;
//! theirs wraps around, and nobody looks.

#![allow(
    clippy::cast_possible_truncation,
    reason = "numbers are read off the low bits of a float, and rounded as in the scalar code"
)]

use sas_core::Clamps;

use crate::kpa::policy::PEAK_DECAY;

/// Rows that are computed together.
pub(super) const LANES: usize = 64;
/// One value per row.
pub(super) type Lane<T> = [T; LANES];

/// More instances than this, ready, starting or wanted, are left to the scalar code.
pub(super) const COUNT_MAX: i32 = 1 << 29;
/// Samples above this too: a million times an average has to stay below 2^52.
pub(super) const VALUE_MAX: f64 = 1e9;
/// In the place of a recent maximum that is not known yet: more than any number, twice it included.
const UNKNOWN: i32 = i32::MAX / 2;
/// 2^52: adding and taking it away rounds to a whole number, for which plain x86-64 has no instruction.
const WHOLE: f64 = 4_503_599_627_370_496.0;
const MOST: f64 = i32::MAX as f64;

/// What all rows of a group have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rules {
    /// Seconds of the stable window.
    pub(super) stable: i32,
    /// Seconds of the panic window.
    pub(super) panic: i32,
    /// Slots of two seconds for which an earlier, higher decision holds the number; 0: none does.
    pub(super) delay: i32,
    pub(super) weighted: bool,
    /// Whether the metric counts what waits.
    pub(super) counts_queue: bool,
    pub(super) max_scale_up_rate: f64,
    pub(super) max_scale_down_rate: f64,
    pub(super) panic_threshold: f64,
    pub(super) target_burst_capacity: f64,
    pub(super) activation: i32,
    pub(super) reachable: bool,
}

impl Rules {
    /// Seconds that a ring holds.
    pub(super) fn planes(&self) -> usize {
        usize::try_from(self.stable.max(self.delay * 2)).unwrap_or(1)
    }
}

/// What is remembered of 64 rows, beside their rings.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) stable_total: Lane<f64>,
    pub(super) panic_total: Lane<f64>,
    pub(super) drift: Lane<f32>,
    pub(super) peak: Lane<f32>,
    pub(super) current: Lane<f32>,
    pub(super) before: Lane<f32>,
    /// Seconds recorded since the first tick; 0: none yet.
    pub(super) age: Lane<i32>,
    /// In seconds of age; 0: no panic.
    pub(super) panic_since: Lane<i32>,
    pub(super) max_panic: Lane<i32>,
    pub(super) count: Lane<i32>,
    pub(super) full: Lane<i32>,
    pub(super) settling: Lane<i32>,
}

/// 64 rows with their rings, which are time-major: a plane per second. A ring is never cleared: what is older than
/// the row counts as zero.
#[derive(Clone, Debug)]
pub(super) struct Block {
    pub(super) rows: Rows,
    pub(super) ring: Vec<Lane<f64>>,
    /// The decisions before the delay; empty where there is none.
    pub(super) decided: Vec<Lane<i32>>,
}

impl Block {
    pub(super) fn new(rules: &Rules) -> Box<Self> {
        let rows = Rows {
            stable_total: [0.0; LANES],
            panic_total: [0.0; LANES],
            drift: [0.0; LANES],
            peak: [0.0; LANES],
            current: [0.0; LANES],
            before: [0.0; LANES],
            age: [0; LANES],
            panic_since: [0; LANES],
            max_panic: [0; LANES],
            count: [0; LANES],
            full: [0; LANES],
            settling: [0; LANES],
        };
        let decided = if rules.delay > 0 { vec![[i32::MIN; LANES]; rules.planes()] } else { Vec::new() };
        Box::new(Self { rows, ring: vec![[0.0; LANES]; rules.planes()], decided })
    }

    /// Reads a value of every cache line that a tick into `plane` will read, so that the processor waits for all of
    /// them at once rather than for one array after the other.
    pub(super) fn touch(&self, rules: &Rules, plane: usize) {
        let Self { rows, ring, .. } = self;
        let leaves = [before(plane, rules.stable, ring.len()), before(plane, rules.panic, ring.len())];
        let (mut floats, mut counts) = (0.0, 0);
        for lane in (0..LANES).step_by(8) {
            floats += rows.stable_total[lane] + rows.panic_total[lane];
            floats += ring[leaves[0]][lane] + ring[leaves[1]][lane];
        }
        for lane in (0..LANES).step_by(16) {
            floats += f64::from(rows.drift[lane] + rows.peak[lane] + rows.current[lane] + rows.before[lane]);
            counts |= rows.age[lane] | rows.panic_since[lane] | rows.max_panic[lane];
            counts |= rows.count[lane] | rows.full[lane] | rows.settling[lane];
        }
        std::hint::black_box((floats, counts));
    }

    /// Takes over one row of another block: all that a tick into `plane` reads of it.
    pub(super) fn take(&mut self, to: usize, other: &Self, from: usize, rules: &Rules, plane: usize) {
        self.rows.take(to, &other.rows, from);
        if rules.weighted {
            for (to_plane, from_plane) in self.ring.iter_mut().zip(&other.ring) {
                to_plane[to] = from_plane[from];
            }
        } else {
            for read in
                [before(plane, rules.stable, self.ring.len()), before(plane, rules.panic, self.ring.len())]
            {
                self.ring[read][to] = other.ring[read][from];
            }
        }
        for (to_plane, from_plane) in self.decided.iter_mut().zip(&other.decided) {
            to_plane[to] = from_plane[from];
        }
    }

    /// Takes over one row of another block after a tick into `plane`: all that it wrote.
    pub(super) fn take_back(&mut self, to: usize, other: &Self, from: usize, plane: usize) {
        self.rows.take(to, &other.rows, from);
        self.ring[plane][to] = other.ring[plane][from];
        if let (Some(to_plane), Some(from_plane)) = (self.decided.get_mut(plane), other.decided.get(plane)) {
            to_plane[to] = from_plane[from];
        }
    }
}

impl Rows {
    #[inline]
    fn take(&mut self, to: usize, other: &Self, from: usize) {
        self.stable_total[to] = other.stable_total[from];
        self.panic_total[to] = other.panic_total[from];
        self.drift[to] = other.drift[from];
        self.peak[to] = other.peak[from];
        self.current[to] = other.current[from];
        self.before[to] = other.before[from];
        self.age[to] = other.age[from];
        self.panic_since[to] = other.panic_since[from];
        self.max_panic[to] = other.max_panic[from];
        self.count[to] = other.count[from];
        self.full[to] = other.full[from];
        self.settling[to] = other.settling[from];
    }
}

/// The plane that is `seconds` before `plane`.
pub(super) fn before(plane: usize, seconds: i32, planes: usize) -> usize {
    let back = usize::try_from(seconds).unwrap_or(0);
    (plane + planes - back) % planes
}

/// What was measured. Lanes that take no part hold old values, which do no harm.
#[derive(Clone, Debug)]
pub(super) struct Inputs {
    pub(super) value: Lane<f64>,
    pub(super) requests: Lane<i32>,
    pub(super) ready: Lane<i32>,
    pub(super) starting: Lane<i32>,
    pub(super) target: f64,
    pub(super) total: f64,
    pub(super) elapsed: f64,
}

impl Inputs {
    pub(super) const fn new() -> Self {
        Self {
            value: [0.0; LANES],
            requests: [0; LANES],
            ready: [0; LANES],
            starting: [0; LANES],
            target: 1.0,
            total: 1.0,
            elapsed: 1.0,
        }
    }
}

/// What was decided, and on the way to it.
#[derive(Clone, Debug)]
pub(super) struct Outputs {
    pub(super) stable: Lane<f64>,
    pub(super) panic: Lane<f64>,
    pub(super) stable_wants: Lane<i32>,
    pub(super) panic_wants: Lane<i32>,
    pub(super) excess: Lane<i32>,
    pub(super) desired: Lane<i32>,
    pub(super) clamps: Lane<i32>,
    /// 0, or 1 where the panic window decided, or 2 where the delay did.
    pub(super) decider: Lane<i32>,
    recent_wants: Lane<i32>,
    up: Lane<i32>,
    down: Lane<i32>,
    over: Lane<i32>,
    partly: Lane<i32>,
}

impl Outputs {
    pub(super) const fn new() -> Self {
        Self {
            stable: [0.0; LANES],
            panic: [0.0; LANES],
            stable_wants: [0; LANES],
            panic_wants: [0; LANES],
            excess: [0; LANES],
            desired: [0; LANES],
            clamps: [0; LANES],
            decider: [0; LANES],
            recent_wants: [0; LANES],
            up: [0; LANES],
            down: [0; LANES],
            over: [0; LANES],
            partly: [0; LANES],
        }
    }
}

/// The larger one, where neither is NaN: one instruction, where `f64::max` needs five.
#[inline(always)]
fn larger(one: f64, other: f64) -> f64 {
    if one > other { one } else { other }
}

#[inline(always)]
fn smaller(one: f64, other: f64) -> f64 {
    if one < other { one } else { other }
}

#[inline(always)]
fn most(one: i32, other: i32) -> i32 {
    if one > other { one } else { other }
}

#[inline(always)]
fn least(one: i32, other: i32) -> i32 {
    if one < other { one } else { other }
}

/// `value.ceil()` from about 0 to 2^31, by the bits that adding 2^52 leaves at the bottom.
#[inline(always)]
fn ceil(value: f64) -> i32 {
    let near = value + WHOLE;
    let up = if near - WHOLE < value { 1 } else { 0 };
    (near.to_bits() as i32).wrapping_add(up)
}

/// `value.floor()` from 0 to 2^31.
#[inline(always)]
fn floor(value: f64) -> i32 {
    let near = value + WHOLE;
    let down = if near - WHOLE > value { 1 } else { 0 };
    (near.to_bits() as i32).wrapping_sub(down)
}

/// `value.floor()` within 32 bits: with one and a half times 2^52 the low bits keep the sign.
#[inline(always)]
fn floor_signed(value: f64) -> i32 {
    const SHIFT: f64 = 1.5 * WHOLE;
    let near = value + SHIFT;
    let down = if near - SHIFT > value { 1 } else { 0 };
    (near.to_bits() as i32).wrapping_sub(down)
}

/// `(value * 1e6).round() / 1e6`: half away from zero.
#[inline(always)]
fn round6(value: f64) -> f64 {
    let scaled = value * 1e6;
    let size = scaled.abs();
    let near = (size + WHOLE) - WHOLE;
    let away = if size - near >= 0.5 { near + 1.0 } else { near };
    away.copysign(scaled) / 1e6
}

#[inline(always)]
const fn flag(acts: bool, clamp: Clamps) -> i32 {
    if acts { clamp.0 as i32 } else { 0 }
}

/// One second of the rows of `block`, whose samples go to the plane `plane`.
pub(super) fn pass(
    rules: &Rules,
    weights: &Weights,
    block: &mut Block,
    plane: usize,
    input: &Inputs,
    out: &mut Outputs,
) {
    let Block { rows, ring, decided } = block;
    let planes = ring.len();
    // Copied before the sample is written: they may be the same plane.
    let leaves_stable = ring[before(plane, rules.stable, planes)];
    let leaves_panic = ring[before(plane, rules.panic, planes)];
    let value = &mut ring[plane];
    measure(rules, rows, input, value, &mut out.partly);
    for age in &mut rows.age {
        *age += 1;
    }
    slide(rules.stable, &rows.age, &leaves_stable, value, &mut rows.stable_total, &mut out.stable);
    slide(rules.panic, &rows.age, &leaves_panic, value, &mut rows.panic_total, &mut out.panic);
    remember(rules, rows, input.elapsed, value);
    if rules.weighted {
        weigh(&weights.stable, &rows.age, ring, plane, &mut out.stable);
        weigh(&weights.panic, &rows.age, ring, plane, &mut out.panic);
    }
    wants(rules, rows, input, out);
    if rules.activation > 1 {
        decide::<true>(rules, rows, input, out);
    } else {
        // Above 1 and not above 0: an activation scale of 1 says nothing.
        decide::<false>(rules, rows, input, out);
    }
    if rules.delay > 0 {
        hold(rules.delay, &rows.age, decided, plane, out);
    }
}

/// What waits counts only in part while instances start, and shortly after.
fn measure(rules: &Rules, rows: &mut Rows, input: &Inputs, value: &mut Lane<f64>, partly: &mut Lane<i32>) {
    let panic = rules.panic;
    for lane in 0..LANES {
        let less = most(rows.settling[lane] - 1, 0);
        rows.settling[lane] = if input.starting[lane] > 0 { panic } else { less };
    }
    let elapsed = input.elapsed;
    for lane in 0..LANES {
        // A division by one is left out, not approximated.
        let arrivals = if elapsed == 1.0 {
            input.requests[lane] as f32
        } else {
            (f64::from(input.requests[lane]) / elapsed) as f32
        };
        let kept = rows.peak[lane] * PEAK_DECAY;
        rows.peak[lane] = if arrivals > kept { arrivals } else { kept };
    }
    if rules.counts_queue {
        for lane in 0..LANES {
            let there = f64::from(input.ready[lane] + input.starting[lane]);
            let trusted = larger(f64::from(rows.peak[lane]), there * input.target);
            let given = input.value[lane];
            let trims = (rows.settling[lane] > 0) & (given > trusted);
            value[lane] = if trims { trusted } else { given };
            partly[lane] = flag(trims, Clamps::STARTING);
        }
    } else {
        *value = input.value;
        *partly = [0; LANES];
    }
    if elapsed != 1.0 {
        for value in value {
            *value = *value * elapsed / elapsed;
        }
    }
}

/// One linear window: its running total and its average.
fn slide(
    length: i32,
    age: &Lane<i32>,
    leaves: &Lane<f64>,
    enters: &Lane<f64>,
    totals: &mut Lane<f64>,
    averages: &mut Lane<f64>,
) {
    let youngest = age.iter().fold(i32::MAX, |young, age| least(young, *age));
    if youngest > length {
        let length = f64::from(length);
        for lane in 0..LANES {
            let total = (totals[lane] - leaves[lane]) + enters[lane];
            totals[lane] = total;
            averages[lane] = round6(total / length);
        }
    } else {
        for lane in 0..LANES {
            // What is older than the row is another's.
            let leaves = if age[lane] > length { leaves[lane] } else { 0.0 };
            let total = (totals[lane] - leaves) + enters[lane];
            totals[lane] = total;
            averages[lane] = round6(total / f64::from(least(age[lane], length)));
        }
    }
}

/// The weight of each second of a window, newest first, made as the scalar code makes it.
#[derive(Clone, Debug, Default)]
pub(super) struct Weights {
    pub(super) stable: Vec<f64>,
    pub(super) panic: Vec<f64>,
}

/// One weighted window: the sum over its seconds, newest first, as the scalar code adds them.
fn weigh(weights: &[f64], age: &Lane<i32>, ring: &[Lane<f64>], plane: usize, averages: &mut Lane<f64>) {
    *averages = [0.0; LANES];
    let youngest = age.iter().fold(i32::MAX, |young, age| least(young, *age));
    let mut at = plane;
    for (back, weight) in (0_i32..).zip(weights) {
        let values = &ring[at];
        if youngest > back {
            for lane in 0..LANES {
                averages[lane] += values[lane] * weight;
            }
        } else {
            for lane in 0..LANES {
                let value = if age[lane] > back { values[lane] } else { 0.0 };
                averages[lane] += value * weight;
            }
        }
        at = if at == 0 { ring.len() - 1 } else { at - 1 };
    }
}

/// The highest sample of late, and how far ticks are ahead of the seconds counted.
fn remember(rules: &Rules, rows: &mut Rows, elapsed: f64, value: &Lane<f64>) {
    let stretch = rules.panic;
    for drift in &mut rows.drift {
        let due = elapsed + f64::from(*drift);
        *drift = smaller(larger(due - 1.0, -0.5), 0.5) as f32;
    }
    for (lane, value) in value.iter().enumerate() {
        let mean = *value as f32;
        let current = if rows.current[lane] > mean { rows.current[lane] } else { mean };
        let next = rows.count[lane] + 1;
        let ends = next >= stretch;
        rows.count[lane] = if ends { 0 } else { next };
        rows.before[lane] = if ends { current } else { rows.before[lane] };
        rows.current[lane] = if ends { 0.0 } else { current };
        rows.full[lane] = least(rows.full[lane] + if ends { 1 } else { 0 }, 2);
    }
}

/// What the windows ask for, and the limits of one step.
fn wants(rules: &Rules, rows: &Rows, input: &Inputs, out: &mut Outputs) {
    let target = input.target;
    for lane in 0..LANES {
        out.stable_wants[lane] = ceil(out.stable[lane] / target);
    }
    for lane in 0..LANES {
        out.panic_wants[lane] = ceil(out.panic[lane] / target);
    }
    for lane in 0..LANES {
        let (current, before) = (rows.current[lane], rows.before[lane]);
        let highest = if current > before { current } else { before };
        let least = if out.stable_wants[lane] > 0 { 1 } else { 0 };
        let known = most(ceil(f64::from(highest) / target), least);
        out.recent_wants[lane] = if rows.full[lane] >= 2 { known } else { UNKNOWN };
    }
    let wants = out.stable_wants.iter().zip(&out.panic_wants);
    let highest = wants.fold(0, |highest, (stable, panic)| most(highest, most(*stable, *panic)));
    if f64::from(highest) <= rules.max_scale_up_rate {
        // From one instance on it limits nobody.
        out.up = [i32::MAX; LANES];
    } else {
        for lane in 0..LANES {
            let counted = f64::from(most(input.ready[lane], 1));
            out.up[lane] = ceil(smaller(rules.max_scale_up_rate * counted, MOST));
        }
    }
    let rate = rules.max_scale_down_rate;
    if !rules.reachable {
        out.down = [0; LANES];
    } else if rate == 2.0 {
        for lane in 0..LANES {
            out.down[lane] = most(input.ready[lane], 1) >> 1;
        }
    } else {
        for lane in 0..LANES {
            out.down[lane] = floor(f64::from(most(input.ready[lane], 1)) / rate);
        }
    }
    let threshold = rules.panic_threshold;
    if threshold == 2.0 {
        // Exact: a quotient of such numbers that is below two stays so when it is rounded.
        for lane in 0..LANES {
            let judged = most(input.ready[lane] + input.starting[lane], 1);
            out.over[lane] = if out.panic_wants[lane] >= judged * 2 { 1 } else { 0 };
        }
    } else {
        for lane in 0..LANES {
            let judged = f64::from(most(input.ready[lane] + input.starting[lane], 1));
            out.over[lane] = if f64::from(out.panic_wants[lane]) / judged >= threshold { 1 } else { 0 };
        }
    }
    let burst = rules.target_burst_capacity;
    if burst > 0.0 {
        for lane in 0..LANES {
            let capacity = f64::from(input.ready[lane]) * input.total - burst - out.panic[lane];
            out.excess[lane] = floor_signed(larger(smaller(capacity, MOST), -MOST - 1.0));
        }
    } else {
        out.excess = [if burst == 0.0 { 0 } else { -1 }; LANES];
    }
}

/// The decision, as [`crate::kpa::Decider`] makes it.
fn decide<const ACTIVATES: bool>(rules: &Rules, rows: &mut Rows, input: &Inputs, out: &mut Outputs) {
    let activation = rules.activation;
    let length = rules.stable;
    for lane in 0..LANES {
        let ready = input.ready[lane];
        let (up, down) = (out.up[lane], out.down[lane]);
        let window_wants = out.stable_wants[lane];
        let panic_wants = out.panic_wants[lane];
        let recent_wants = out.recent_wants[lane];
        let over = out.over[lane] > 0;
        let clear = recent_wants.wrapping_mul(2) <= window_wants;
        let past = (recent_wants < window_wants) & (ready < window_wants);
        let quiet = clear | past;
        let kept = if past { most(recent_wants, ready) } else { window_wants };
        let stable_wants = if clear { recent_wants } else { kept };
        let stable = least(most(stable_wants, down), up);
        let panic = least(most(panic_wants, down), up);
        let stable_raised = ACTIVATES & (stable_wants > 0) & (activation > stable);
        let panic_raised = ACTIVATES & (panic_wants > 0) & (activation > panic);
        let stable = if stable_raised { activation } else { stable };
        let panic = if panic_raised { activation } else { panic };
        let age = rows.age[lane];
        let since = rows.panic_since[lane];
        let max_panic = rows.max_panic[lane];
        let calm = recent_wants.wrapping_mul(2) <= max_panic;
        let ends = !over & (since > 0) & ((since + length < age) | calm);
        let since = if ends { 0 } else { since };
        let since = if over { age } else { since };
        let max_panic = if ends { 0 } else { max_panic };
        let panics = since > 0;
        let wanted = most(stable, panic);
        let held = panics & (max_panic > wanted);
        let max_panic = if panics { most(max_panic, wanted) } else { max_panic };
        let by_panic = panics & (max_panic > stable);
        let wants = if by_panic { panic_wants } else { stable_wants };
        let raised = (by_panic & panic_raised) | (!by_panic & stable_raised);
        let rose = !raised & (most(wants, down) > up);
        let fell = !raised & !rose & (wants < down);
        rows.panic_since[lane] = since;
        rows.max_panic[lane] = max_panic;
        out.desired[lane] = if panics { max_panic } else { stable };
        out.decider[lane] = if by_panic { 1 } else { 0 };
        out.clamps[lane] = flag(raised, Clamps::ACTIVATION)
            | flag(rose, Clamps::UP_RATE)
            | flag(fell, Clamps::DOWN_RATE)
            | flag(held, Clamps::PANIC)
            | flag(quiet & !by_panic, Clamps::QUIET)
            | out.partly[lane];
    }
}

/// The scale-down delay: the highest decision of its last slots of two seconds, counted by the row's age.
fn hold(slots: i32, age: &Lane<i32>, decided: &mut [Lane<i32>], plane: usize, out: &mut Outputs) {
    decided[plane] = out.desired;
    let mut highest = out.desired;
    let mut at = plane;
    for back in 1..slots * 2 {
        at = if at == 0 { decided.len() - 1 } else { at - 1 };
        let values = &decided[at];
        for lane in 0..LANES {
            // An even second is the first of its slot, so that the oldest slot ends one second earlier.
            let counts = (age[lane] > back) & (back <= slots * 2 - 2 + (age[lane] & 1));
            let value = if counts { values[lane] } else { i32::MIN };
            highest[lane] = most(highest[lane], value);
        }
    }
    for (lane, highest) in highest.into_iter().enumerate() {
        let delayed = highest > out.desired[lane];
        out.desired[lane] = highest;
        out.decider[lane] = if delayed { 2 } else { out.decider[lane] };
        out.clamps[lane] |= flag(delayed, Clamps::DELAY);
    }
}
