//! Rows of one shape in blocks of 64, and the way from a row to scalar state and back.

use sas_core::{Aggregation, Fidelity, Metric, ScaleInput};

use super::pass::{Block, COUNT_MAX, LANES, Rules, VALUE_MAX, Weights};
use crate::{
    kpa::{
        decider::{DELAY_GRANULARITY, Decider, DeciderSpec},
        policy::{KpaState, Params, Pending, Recent},
    },
    window::{MaxWindow, SECOND, Window, weights},
};

/// Different targets within one group: as many as a tag has bits for.
const TARGETS: usize = 1 << 12;
/// Seconds of a window or delay at most: blocks of longer rings would cost too much for the few rows in them.
const RING_MAX: i64 = 300;
/// Seconds of a delay at most: each of them is looked at in each tick.
const DELAY_MAX: i64 = 120;
/// 34 years of seconds.
const AGE_MAX: i64 = 1 << 30;

/// What rows of one group have in common.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shape {
    pub(super) rules: Rules,
    /// With the targets of no row.
    spec: DeciderSpec,
    pub(super) metric: Metric,
}

impl Shape {
    /// `None` for what has no columns.
    pub(super) fn of(params: &Params, fidelity: Fidelity) -> Option<Self> {
        let stable = params.spec.stable_window_ns;
        let delay = params.spec.scale_down_delay_ns;
        let fits = fidelity == Fidelity::Corrected
            && stable % SECOND == 0
            && (SECOND..=RING_MAX * SECOND).contains(&stable)
            && params.panic_window <= stable
            && (0..=DELAY_MAX * SECOND).contains(&delay)
            && (0..COUNT_MAX).contains(&params.spec.activation_scale);
        if !fits {
            return None;
        }
        let seconds = |nanos: i64| i32::try_from(nanos / SECOND).unwrap_or(1).max(1);
        let slots = (delay + DELAY_GRANULARITY - 1) / DELAY_GRANULARITY;
        let rules = Rules {
            stable: seconds(stable),
            panic: seconds(params.panic_window),
            delay: i32::try_from(slots).unwrap_or(0),
            weighted: params.aggregation == Aggregation::WeightedExponential,
            counts_queue: params.metric == Metric::Concurrency,
            max_scale_up_rate: params.spec.max_scale_up_rate,
            max_scale_down_rate: params.spec.max_scale_down_rate,
            panic_threshold: params.spec.panic_threshold,
            target_burst_capacity: params.spec.target_burst_capacity,
            activation: params.spec.activation_scale,
            reachable: params.spec.reachable,
        };
        let mut spec = params.spec;
        spec.target_value = 0.0;
        spec.total_value = 0.0;
        Some(Self { rules, spec, metric: params.metric })
    }

    const fn aggregation(&self) -> Aggregation {
        if self.rules.weighted { Aggregation::WeightedExponential } else { Aggregation::Linear }
    }
}

/// The part of a spec that columns are made for, to see whether a row still has the one that it began with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Identity {
    spec: usize,
    target: f64,
    utilization: f64,
    stable_window: std::time::Duration,
    concurrency: u32,
}

impl Identity {
    pub(super) fn of(input: &ScaleInput<'_>) -> Self {
        Self {
            spec: std::ptr::from_ref(input.spec).addr(),
            target: input.spec.target,
            utilization: input.spec.utilization,
            stable_window: input.spec.stable_window,
            concurrency: input.concurrency,
        }
    }
}

/// What rows must agree in to be computed together: the newest plane that they wrote, and their target. One number,
/// so that one comparison tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tag(u32);

impl Tag {
    const IRREGULAR: u32 = 1 << 31;

    fn new(plane: usize, target: u16, regular: bool) -> Self {
        let plane = u32::try_from(plane).unwrap_or(0) & 0xffff;
        Self(plane | u32::from(target) << 16 | if regular { 0 } else { Self::IRREGULAR })
    }

    /// Whether the fast way knows all of the row: it has begun, and no part of a second waits.
    pub(super) const fn is_regular(self) -> bool {
        self.0 & Self::IRREGULAR == 0
    }

    pub(super) const fn plane(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    pub(super) const fn target(self) -> usize {
        (self.0 >> 16 & 0xfff) as usize
    }

    /// The same a second later.
    pub(super) fn next(self, planes: usize) -> Self {
        let plane = if self.plane() + 1 >= planes { 0 } else { self.plane() + 1 };
        Self(self.0 & !0xffff | u32::try_from(plane).unwrap_or(0))
    }
}

/// Rows of one shape.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) shape: Shape,
    pub(super) weights: Weights,
    /// Target and total of each row, by index.
    pub(super) targets: Vec<(f64, f64)>,
    /// Who asked for a target last.
    pub(super) known: Option<(Identity, usize)>,
    #[allow(clippy::vec_box, reason = "a block is kilobytes: growing the list must not copy them")]
    pub(super) blocks: Vec<Box<Block>>,
    /// Of each row.
    pub(super) tags: Vec<[Tag; LANES]>,
    /// Which lanes of each block are rows.
    pub(super) taken: Vec<u64>,
    /// Where rows of many blocks come together, or those wait that take no part; made when it is first needed.
    pub(super) gathered: Option<Box<Block>>,
    newest_plane: usize,
    free: Vec<u32>,
    /// Rows whose samples do not add up to a second yet: weighted sum and seconds. Rare.
    pending: std::collections::BTreeMap<u32, (f64, f64)>,
}

/// Block and lane of a row.
#[inline(always)]
pub(super) const fn spot(at: u32) -> (usize, usize) {
    (at as usize / LANES, at as usize % LANES)
}

impl Group {
    pub(super) fn new(shape: Shape) -> Self {
        let of = |seconds: i32| weights(usize::try_from(seconds).unwrap_or(1));
        Self {
            shape,
            weights: if shape.rules.weighted {
                Weights { stable: of(shape.rules.stable), panic: of(shape.rules.panic) }
            } else {
                Weights::default()
            },
            targets: Vec::new(),
            known: None,
            blocks: Vec::new(),
            tags: Vec::new(),
            taken: Vec::new(),
            gathered: None,
            newest_plane: 0,
            free: Vec::new(),
            pending: std::collections::BTreeMap::new(),
        }
    }

    /// The index of a target, remembered for the rows that come with the same spec.
    pub(super) fn target_of(&mut self, params: &Params) -> Option<u16> {
        let pair = (params.spec.target_value, params.spec.total_value);
        let found = self.targets.iter().rposition(|known| *known == pair).or_else(|| {
            (self.targets.len() < TARGETS).then(|| {
                self.targets.push(pair);
                self.targets.len() - 1
            })
        });
        found.and_then(|at| u16::try_from(at).ok())
    }

    /// The highest sample that the fast way takes.
    pub(super) fn most_of(target: f64) -> f64 {
        VALUE_MAX.min(f64::from(COUNT_MAX) * target)
    }

    pub(super) fn add(&mut self, target: u16) -> u32 {
        let at = self.free.pop().unwrap_or_else(|| {
            let first = u32::try_from(self.blocks.len() * LANES).unwrap_or(u32::MAX);
            self.blocks.push(Block::new(&self.shape.rules));
            self.tags.push([Tag::new(0, 0, false); LANES]);
            self.taken.push(0);
            self.free.extend((first + 1..first + LANES as u32).rev());
            first
        });
        let (block, lane) = spot(at);
        self.taken[block] |= 1 << lane;
        self.tags[block][lane] = Tag::new(self.newest_plane, target, false);
        self.blocks[block].rows.age[lane] = 0;
        at
    }

    pub(super) fn remove(&mut self, at: u32) {
        let (block, lane) = spot(at);
        self.taken[block] &= !(1 << lane);
        self.tags[block][lane] = Tag::new(0, 0, false);
        self.blocks[block].rows.age[lane] = 0;
        self.pending.remove(&at);
        self.free.push(at);
    }

    pub(super) fn tag(&self, at: u32) -> Tag {
        let (block, lane) = spot(at);
        self.tags[block][lane]
    }

    pub(super) fn wrote(&mut self, plane: usize) {
        self.newest_plane = plane;
    }

    /// The plane of a second of a row's age.
    fn plane_of(&self, at: u32, second: i64) -> usize {
        let (block, lane) = spot(at);
        let back = i64::from(self.blocks[block].rows.age[lane]) - second;
        let planes = self.shape.rules.planes() as i64;
        usize::try_from((self.tag(at).plane() as i64 - back).rem_euclid(planes)).unwrap_or(0)
    }

    /// The row as scalar state.
    pub(super) fn load(&self, at: u32) -> KpaState {
        let (block, lane) = spot(at);
        let rows = &self.blocks[block].rows;
        let age = i64::from(rows.age[lane]);
        if age == 0 {
            return KpaState::default();
        }
        let window = |seconds: i32, total: f64| {
            Window::filled(i64::from(seconds) * SECOND, self.shape.aggregation(), age, total, |second| {
                self.blocks[block].ring[self.plane_of(at, second)][lane]
            })
        };
        let delay = (self.shape.rules.delay > 0).then(|| {
            MaxWindow::filled(self.shape.spec.scale_down_delay_ns, DELAY_GRANULARITY, age / 2, |slot| {
                [2 * slot, 2 * slot + 1]
                    .into_iter()
                    .filter(|second| (1..=age).contains(second))
                    .map(|second| self.blocks[block].decided[self.plane_of(at, second)][lane])
                    .max()
                    .unwrap_or(i32::MIN)
            })
        });
        let (weighted, seconds) = self.pending.get(&at).copied().unwrap_or_default();
        KpaState {
            windows: Some((
                window(self.shape.rules.stable, rows.stable_total[lane]),
                window(self.shape.rules.panic, rows.panic_total[lane]),
            )),
            decider: Decider {
                panic_since: (rows.panic_since[lane] > 0).then(|| i64::from(rows.panic_since[lane]) * SECOND),
                max_panic_pods: rows.max_panic[lane],
                delay,
            },
            clock: age * SECOND,
            pending: Pending { weighted, seconds, drift: rows.drift[lane] },
            recent: Recent {
                current: rows.current[lane],
                before: rows.before[lane],
                count: rows.count[lane].unsigned_abs(),
                full: if rows.full[lane] >= 2 { 2 } else { u8::from(rows.full[lane] == 1) },
            },
            peak: rows.peak[lane],
            settling: rows.settling[lane].unsigned_abs(),
            decided: None,
        }
    }

    /// Puts scalar state into the row. False when the columns can't hold it.
    pub(super) fn store(&mut self, at: u32, state: &KpaState) -> bool {
        let (block, lane) = spot(at);
        let rules = self.shape.rules;
        let age = state.clock / SECOND;
        let Some((stable, panic)) = &state.windows else { return false };
        let target = self.tag(at).target();
        let most = Self::most_of(self.targets[target].0);
        let kept = (age - i64::from(rules.stable) + 1).max(1)..=age;
        let delay = state.decider.delay.as_ref();
        let fits = (1..AGE_MAX).contains(&age)
            && stable.is_filled_to(age, self.shape.aggregation())
            && panic.is_filled_to(age, self.shape.aggregation())
            && stable.length() == i64::from(rules.stable) * SECOND
            && panic.length() == i64::from(rules.panic) * SECOND
            && delay.is_some() == (rules.delay > 0)
            && delay
                .is_none_or(|delay| delay.is_recorded_to(age / 2) && delay.slots() == i64::from(rules.delay))
            && (0..COUNT_MAX).contains(&state.decider.max_panic_pods)
            && f64::from(state.recent.current.max(state.recent.before)) <= most
            && kept.clone().all(|second| stable.value_at(second) <= most);
        let (Ok(age_seconds), true) = (i32::try_from(age), fits) else { return false };
        let since = state.decider.panic_since.map_or(0, |since| i32::try_from(since / SECOND).unwrap_or(0));
        let count = |count: u32| i32::try_from(count).unwrap_or(i32::MAX);

        let rows = &mut self.blocks[block].rows;
        let first = rows.age[lane] == 0;
        let moved = age - i64::from(rows.age[lane]);
        rows.age[lane] = age_seconds;
        rows.stable_total[lane] = stable.total();
        rows.panic_total[lane] = panic.total();
        rows.peak[lane] = state.peak;
        rows.current[lane] = state.recent.current;
        rows.before[lane] = state.recent.before;
        rows.count[lane] = count(state.recent.count);
        rows.full[lane] = i32::from(state.recent.full);
        rows.settling[lane] = count(state.settling);
        rows.drift[lane] = state.pending.drift;
        rows.panic_since[lane] = since;
        rows.max_panic[lane] = state.decider.max_panic_pods;
        // A row that begins joins the others' newest plane, so that they go on in step.
        let planes = rules.planes() as i64;
        let plane = if first {
            self.newest_plane
        } else {
            usize::try_from((self.tag(at).plane() as i64 + moved).rem_euclid(planes)).unwrap_or(0)
        };
        self.newest_plane = plane;
        let whole = state.pending.seconds == 0.0 && state.pending.weighted == 0.0;
        if whole {
            self.pending.remove(&at);
        } else {
            self.pending.insert(at, (state.pending.weighted, state.pending.seconds));
        }
        self.tags[block][lane] = Tag::new(plane, u16::try_from(target).unwrap_or(0), whole);
        for second in kept {
            let plane = self.plane_of(at, second);
            self.blocks[block].ring[plane][lane] = stable.value_at(second);
        }
        if let Some(delay) = delay {
            let oldest = 2 * (age / 2 - i64::from(rules.delay) + 1);
            for second in oldest.max(1)..=age {
                let plane = self.plane_of(at, second);
                self.blocks[block].decided[plane][lane] = delay.value_at(second / 2);
            }
        }
        true
    }
}
