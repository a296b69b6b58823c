use std::time::Duration;

use sas_core::{CapacityInput, CapacityPolicy, KeepAlive, KeepAlivePolicy, RevisionKey, Timestamp};

use super::{Function, Series};
use crate::keep_alive::{Footprint, GreedyDual};

/// How one function fared: one container, minutes as bins, calls that take no time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeepAliveScore {
    /// Minutes with a call.
    pub active: u64,
    /// Of these, the ones that found it asleep; the first always does.
    pub cold: u64,
    /// Minutes without a call in which it was warm.
    pub waste: u64,
}

/// Drives `policy` with the calls of `function`, known to it as `revision`. A minute is warm when it lies between a
/// call and `sleep_at`, or between `wake_at` and `wake_until`, ends included.
pub fn replay_keep_alive(
    policy: &mut dyn KeepAlivePolicy,
    revision: RevisionKey,
    function: &Function,
) -> KeepAliveScore {
    let mut score = KeepAliveScore::default();
    let start = i64::from(function.start_minute);
    let at = |minute: i64| Timestamp::from_secs(60 * (start + minute));
    let mut minutes = function.active.iter().map(|&(minute, _)| i64::from(minute)).peekable();
    while let Some(call) = minutes.next() {
        if score.active == 0 {
            score.cold = 1;
        }
        score.active += 1;
        policy.called(revision, at(call));
        let end = minutes.peek().copied();
        let until = end.unwrap_or(i64::from(function.minutes));
        let mut spans = Spans { start, counted: call, until, waste: 0, warm: false };
        let mut now = call;
        let mut plan = policy.idle(revision, at(call));
        while let Some(ends) = spans.add(now, &plan) {
            now = ends.as_secs().div_euclid(60) - start;
            plan = policy.unused(revision, ends);
        }
        score.waste += spans.waste;
        if end.is_some() && !spans.warm {
            score.cold += 1;
        }
    }
    score
}

/// Drives `policy` with the calls of all `functions` at once, in the order of time: they share its budget, and what is
/// warm stays so until it is evicted. Each takes the bytes of `footprint` times its weight, as it stands for so many.
/// The scores are in the order of the functions; a call that does not fit even alone is cold and stays warm all the same.
pub fn replay_evictions(
    policy: &mut GreedyDual,
    functions: &[&Function],
    footprint: Footprint,
) -> Vec<KeepAliveScore> {
    let key = |row: usize| RevisionKey::new(u32::try_from(row).unwrap_or(u32::MAX), 0);
    let mut calls: Vec<(u32, usize)> = Vec::new();
    let mut bytes = Vec::with_capacity(functions.len());
    for (row, function) in functions.iter().enumerate() {
        calls.extend(function.active.iter().map(|&(minute, _)| (function.start_minute + minute, row)));
        #[allow(clippy::cast_precision_loss, reason = "bytes of a trace")]
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "weights are positive")]
        let weighted = (footprint.bytes as f64 * function.weight).max(1.0) as u64;
        // As many starts as bytes: a weight says nothing about which function is worth more.
        let start = footprint.start.mul_f64(function.weight.max(1e-6));
        policy.measured(key(row), Footprint { bytes: weighted, start });
        bytes.push(weighted);
    }
    calls.sort_unstable();
    let mut scores = vec![KeepAliveScore::default(); functions.len()];
    // The minute of the last call of what is warm.
    let mut warm: Vec<Option<u32>> = vec![None; functions.len()];
    for (minute, row) in calls {
        let now = Timestamp::from_secs(60 * i64::from(minute));
        scores[row].active += 1;
        match warm[row] {
            Some(last) => scores[row].waste += u64::from((minute - last).saturating_sub(1)),
            None => {
                scores[row].cold += 1;
                for gone in policy.make_room(bytes[row]) {
                    let gone = gone.slot() as usize;
                    if let Some(last) = warm[gone].take() {
                        scores[gone].waste += u64::from((minute - last).saturating_sub(1));
                    }
                }
            }
        }
        warm[row] = Some(minute);
        policy.called(key(row), now);
        policy.idle(key(row), now);
    }
    for ((function, score), last) in functions.iter().zip(&mut scores).zip(warm) {
        if let Some(last) = last {
            score.waste += u64::from((function.start_minute + function.minutes - 1).saturating_sub(last));
        }
    }
    scores
}

/// The warm minutes of one gap.
struct Spans {
    start: i64,
    /// Minutes up to here are counted.
    counted: i64,
    /// The next call, or the end of the watch.
    until: i64,
    waste: u64,
    /// Whether `until` is warm.
    warm: bool,
}

impl Spans {
    /// Counts what `plan`, made in minute `now`, keeps warm. When it ends before the next call: the time at which it does.
    fn add(&mut self, now: i64, plan: &KeepAlive) -> Option<Timestamp> {
        let start = self.start;
        let last = |time: Timestamp| time.as_secs().div_euclid(60) - start;
        let first = |time: Timestamp| (time.as_secs() + 59).div_euclid(60) - start;
        let sleep = last(plan.sleep_at);
        self.span(now + 1, sleep);
        let Some(wake) = plan.wake_at else {
            return (sleep > now && sleep < self.until).then_some(plan.sleep_at);
        };
        let until = plan.wake_until.unwrap_or(Timestamp(i64::MAX));
        self.span(first(wake).max(now + 1), last(until));
        (last(until) > now && last(until) < self.until).then_some(until)
    }

    fn span(&mut self, from: i64, to: i64) {
        self.warm |= (from..=to).contains(&self.until);
        let (from, to) = (from.max(self.counted + 1), to.min(self.until - 1));
        if from <= to {
            self.waste += u64::try_from(to - from + 1).unwrap_or(0);
            self.counted = to;
        }
    }
}

/// The score of a population: every function counts by its weight.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeepAliveTotals {
    active: f64,
    cold: f64,
    waste: f64,
    calls: u64,
    ratios: Vec<(f64, f64)>,
}

impl KeepAliveTotals {
    /// Adds a function that was called at all.
    #[allow(clippy::cast_precision_loss, reason = "counts of a trace")]
    pub fn add(&mut self, function: &Function, score: KeepAliveScore) {
        self.active += function.weight * score.active as f64;
        self.cold += function.weight * score.cold as f64;
        self.waste += function.weight * score.waste as f64;
        self.calls += function.total;
        if score.active >= 5 {
            self.ratios.push((score.cold as f64 / function.total.max(1) as f64, function.weight));
        }
    }

    /// Cold starts per active minute, 0 to 1.
    pub fn cold(&self) -> f64 {
        self.cold / self.active
    }

    /// Idle-warm minutes, weighted. To be divided by those of a fixed ten minutes.
    pub fn waste(&self) -> f64 {
        self.waste
    }

    /// How many calls were replayed, each counted once whatever its weight.
    pub fn calls(&self) -> u64 {
        self.calls
    }

    /// The 75th percentile, by weight, of cold starts per call over functions with at least five active minutes;
    /// `None`: there are none.
    pub fn p75(&self) -> Option<f64> {
        let mut ratios = self.ratios.clone();
        ratios.sort_by(|left, right| left.0.total_cmp(&right.0));
        let goal = 0.75 * ratios.iter().map(|&(_, weight)| weight).sum::<f64>();
        let mut sum = 0.0;
        ratios
            .iter()
            .find(|&&(_, weight)| {
                sum += weight;
                sum >= goal
            })
            .or(ratios.last())
            .map(|&(ratio, _)| ratio)
    }
}

/// How a capacity law fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapacityScore {
    /// How many slots of time were scored.
    pub slots: u64,
    /// Stems asked for in them.
    pub demand: u64,
    /// How many of the stems asked for were not there.
    pub missed: u64,
    /// Stems that nobody took, summed over the slots.
    pub over: u64,
}

impl CapacityScore {
    /// Missing per stem asked for.
    #[allow(clippy::cast_precision_loss, reason = "counts of a trace")]
    pub fn miss(&self) -> f64 {
        self.missed as f64 / self.demand.max(1) as f64
    }

    /// Idle per stem asked for.
    #[allow(clippy::cast_precision_loss, reason = "counts of a trace")]
    pub fn over_ratio(&self) -> f64 {
        self.over as f64 / self.demand.max(1) as f64
    }
}

/// Drives `policy` with the demand of `series`; scores the slots from number `from` on. The size for a slot is decided
/// from the slots before it; before the first there is no stem.
pub fn replay_capacity(policy: &mut dyn CapacityPolicy, series: &Series, from: usize) -> CapacityScore {
    let mut score = CapacityScore::default();
    replay_sizes(policy, series, |slot, demand, size| {
        if slot >= from {
            score.slots += 1;
            score.demand += u64::from(demand);
            score.missed += u64::from(demand.saturating_sub(size));
            score.over += u64::from(size.saturating_sub(demand));
        }
    });
    score
}

/// The same, telling slot, demand and size of each.
pub fn replay_sizes(policy: &mut dyn CapacityPolicy, series: &Series, mut each: impl FnMut(usize, u32, u32)) {
    let mut size = 0;
    let length = i64::try_from(series.slot.as_nanos()).unwrap_or(i64::MAX);
    let mut now = Timestamp(length.saturating_mul(i64::try_from(series.first).unwrap_or(i64::MAX)));
    for (slot, &demand) in series.demand.iter().enumerate() {
        each(slot, demand, size);
        now = now + Duration::from_nanos(length.unsigned_abs());
        let mut input = CapacityInput::new(now, series.slot, demand);
        input.missed = demand.saturating_sub(size);
        input.ready = size.saturating_sub(demand);
        size = policy.target(&input);
    }
}

/// The miss at an over-provisioning of `over`, interpolated between `points` of (over, miss): sorted by over, the
/// running minimum of the miss, linear in between. `None` outside of the points.
pub fn miss_at(points: &[(f64, f64)], over: f64) -> Option<f64> {
    let mut points = points.to_vec();
    points.sort_by(|left, right| left.0.total_cmp(&right.0));
    let mut least = f64::INFINITY;
    for point in &mut points {
        least = least.min(point.1);
        point.1 = least;
    }
    let right = points.iter().position(|point| point.0 >= over)?;
    if right == 0 {
        return (points[0].0 <= over).then_some(points[0].1);
    }
    let [(x0, y0), (x1, y1)] = [points[right - 1], points[right]];
    Some(y0 + (y1 - y0) * (over - x0) / (x1 - x0))
}
