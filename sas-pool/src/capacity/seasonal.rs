use std::time::Duration;

use sas_core::{CapacityInput, CapacityPolicy, SpecErrors};
use serde::{Deserialize, Serialize};

use super::{FastUpSlowDown, check, rls::Rls};

/// What a [`Seasonal`] policy may be told. The defaults are the ones that the figures in `docs/policies.md` are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SeasonalConfig {
    /// Scales of the forecast's error to hold above the forecast: the one knob between idle stems and misses.
    /// -100 to 100; 1.5 holds about half of the mean demand idle where demand is bursty, and misses 2 % of it.
    pub head_room: f64,
    /// The law underneath: by which share of the distance its level falls per slot, 0 to 1.
    pub down: f64,
    /// The share of the law's level that is always held, 0 to 1.
    pub floor: f64,
    /// The share of its size by which the pool may shrink in one slot, 0 to 1.
    pub max_shrink: f64,
}

impl Default for SeasonalConfig {
    fn default() -> Self {
        Self { head_room: 1.5, down: 0.1, floor: 0.3, max_shrink: 0.7 }
    }
}

impl SeasonalConfig {
    /// The defaults with another head-room.
    pub fn with_head_room(head_room: f64) -> Self {
        Self { head_room, ..Self::default() }
    }

    /// Whether every value is in its range.
    ///
    /// # Errors
    /// All the values that are not, by field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        check(&mut errors, "headRoom", self.head_room, -100.0, 100.0);
        check(&mut errors, "down", self.down, 0.0, 1.0);
        check(&mut errors, "floor", self.floor, 0.0, 1.0);
        check(&mut errors, "maxShrink", self.max_shrink, 0.0, 1.0);
        errors.into_result()
    }
}

/// A forecast by the clock, a quantile of head-room above it, and "expand fast, shrink slowly" below it.
///
/// ```text
/// size = ⌈max(f + k·s, floor · l, min(d₋₁, d₋₂), (1 − max_shrink) · size₋₁)⌉, held within min and max
/// ```
///
/// - `f`: one linear model, refitted after each slot (recursive least squares), of the last slots, the same minute
///   of the last hours, days and week, the profiles of the hour and of the day, and recent levels;
/// - `s`: the scale of its error, forecast in the same way from the errors at this minute of the hour, of the day,
///   lately and long ago; `k` is the head-room;
/// - `l`: the level of [`FastUpSlowDown`], `d₋₁` and `d₋₂` the demands of the last two slots.
///
/// So, whatever was learnt: a step that lasts is followed within two slots; the pool shrinks by no more than a bounded
/// share per slot, and never below a share of the recent maximum's slow decay; constant demand does not oscillate; the
/// bounds hold. A slot that was not reported (a suspended host, a clock that jumped) is filled from the profile and
/// not learnt from. A slot of length zero has no place on the clock: then only the law decides.
///
/// It learns one slot at a time and needs no training; it is sure of itself after about three days. Memory: [`Seasonal::bytes`], 84 kB at one-minute slots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Seasonal {
    config: SeasonalConfig,
    law: FastUpSlowDown,
    before: f64,
    size: u32,
    model: Option<Box<Model>>,
}

impl Default for Seasonal {
    fn default() -> Self {
        Self::of(SeasonalConfig::default())
    }
}

impl Seasonal {
    /// A policy that has seen nothing.
    ///
    /// # Errors
    /// A value of `config` that is out of its range.
    pub fn new(config: SeasonalConfig) -> Result<Self, SpecErrors> {
        config.validate()?;
        Ok(Self::of(config))
    }

    fn of(config: SeasonalConfig) -> Self {
        let law = FastUpSlowDown::falling_by(config.down);
        Self { config, law, before: 0.0, size: 0, model: None }
    }

    /// The forecast for the slot that begins, and the scale of its error; `None` before the first slot.
    pub fn forecast(&self) -> Option<(f64, f64)> {
        self.model.as_ref().map(|model| (model.next.forecast, model.next.scale))
    }

    /// How many bytes the state of the forecast takes.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.model.as_ref().map_or(0, |model| model.bytes())
    }
}

impl CapacityPolicy for Seasonal {
    fn target(&mut self, input: &CapacityInput) -> u32 {
        let demand = f64::from(input.taken);
        let level = self.law.follow(demand);
        let mut size = (self.config.floor * level)
            .max(demand.min(self.before))
            .max((1.0 - self.config.max_shrink) * f64::from(self.size));
        self.before = demand;
        if let Some(clock) = Slots::of(input.slot) {
            let begins = clock.number(input);
            match &mut self.model {
                Some(model) if model.slots == clock => model.learn(demand, begins),
                model => *model = Some(Box::new(Model::new(clock, demand, begins))),
            }
            if let Some(model) = &self.model {
                size = size.max(model.next.forecast + self.config.head_room * model.next.scale);
            }
        } else {
            size = size.max(level);
        }
        self.size = settle(size, self.size).max(input.min).min(input.max);
        self.size
    }
}

/// Rounds up, but a tenth of a stem is not worth growing for, and what is above the next lower number by more than a
/// fiftieth not worth shrinking for: forecasts quiver, pools should not.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the cast saturates, as is wanted"
)]
fn settle(size: f64, last: u32) -> u32 {
    let least = (size - 0.1).max(0.0).ceil() as u32;
    let most = (size - 0.02).max(0.0).ceil() as u32;
    if least < last && last <= most { last } else { least }
}

const HOUR: u64 = 3_600_000_000_000;
/// No series of slots is kept longer than this: a week of half minutes.
const LONGEST: u64 = 20_160;
/// Features of the forecast.
const FEATURES: usize = 20;
const LAGS: usize = 12;
/// Features of the scale; the last one but one only for the second of its two models.
const SCALES: usize = 9;
/// Slots before the models are trusted over plain averages, at most; a day of minutes.
const WARM_UP: u32 = 1_440;

/// The clock in slots.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Slots {
    length: u64,
}

impl Slots {
    fn of(slot: Duration) -> Option<Self> {
        let length = u64::try_from(slot.as_nanos()).ok()?;
        (length > 0).then_some(Self { length })
    }

    /// The number since the epoch of the slot that begins at `input.now`, to the nearest boundary.
    #[allow(clippy::cast_possible_truncation, reason = "a quotient of an i64 by at least 1 fits")]
    fn number(self, input: &CapacityInput) -> i64 {
        let half = i128::from(self.length / 2);
        (i128::from(input.now.0) + half).div_euclid(i128::from(self.length)) as i64
    }

    /// How many slots `hours` have, 1 at least.
    fn in_hours(self, hours: u64) -> u64 {
        ((hours * HOUR + self.length / 2) / self.length).max(1)
    }

    /// How many phases a profile over `hours` has.
    fn phases(self, hours: u64) -> usize {
        usize::try_from((hours * HOUR).div_ceil(self.length).clamp(1, LONGEST)).unwrap_or(1)
    }

    /// The phase of slot `number` in a profile over `hours`.
    fn phase(self, number: i64, hours: u64) -> usize {
        let at = (i128::from(number) * i128::from(self.length)).rem_euclid(i128::from(hours * HOUR));
        let phase = at / i128::from(self.length);
        usize::try_from(phase).unwrap_or(0).min(self.phases(hours) - 1)
    }
}

/// What is remembered of one phase of the hour or of the day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Phase {
    demand: f32,
    error: f32,
    seen: bool,
}

impl Phase {
    #[allow(clippy::cast_possible_truncation, reason = "seven digits of a demand are enough")]
    fn learn(&mut self, demand: f64, demand_rate: f64, error: f64, error_rate: f64) {
        let mix = |old: f32, new: f64, rate: f64| (f64::from(old) + rate * (new - f64::from(old))) as f32;
        *self = if self.seen {
            Self {
                demand: mix(self.demand, demand, demand_rate),
                error: mix(self.error, error, error_rate),
                seen: true,
            }
        } else {
            Self { demand: demand as f32, error: error as f32, seen: true }
        };
    }
}

/// What was forecast for a slot, and from what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Forecast {
    slot: i64,
    x: [f64; FEATURES],
    z: [f64; SCALES],
    raw: f64,
    forecast: f64,
    scale: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Model {
    slots: Slots,
    lags: [u64; LAGS],
    /// A ring by slot number.
    history: Vec<f32>,
    oldest: i64,
    hour: Vec<Phase>,
    day: Vec<Phase>,
    seen: u32,
    /// The typical demand, by which all features are divided.
    unit: f64,
    level: f64,
    fast: f64,
    bias: f64,
    peak: f64,
    /// Mean absolute errors: of the last handful of slots, of an hour, of half a day.
    errors: [f64; 3],
    square: f64,
    mean: Rls,
    /// The scale of the error, with and without the root of the level among its features. On bursty series the root
    /// over-fits, on smooth ones it is what counts; their mean is better than either on every series tried.
    scales: [Rls; 2],
    next: Forecast,
}

impl Model {
    fn new(slots: Slots, demand: f64, begins: i64) -> Self {
        let (hour, day, week) = (slots.in_hours(1), slots.in_hours(24), slots.in_hours(168));
        let lags = [1, 2, 3, hour, hour + 1, 2 * hour, 3 * hour, day, day.max(2) - 1, 2 * day, 3 * day, week];
        let longest = lags.iter().copied().filter(|&lag| lag <= LONGEST).max().unwrap_or(1);
        let unit = demand.max(1.0);
        let mut scale = vec![0.0; SCALES];
        scale[3] = 1.0;
        let mut model = Self {
            slots,
            lags,
            history: vec![0.0; usize::try_from(longest).unwrap_or(1)],
            oldest: begins - 1,
            hour: vec![Phase::default(); slots.phases(1)],
            day: vec![Phase::default(); slots.phases(24)],
            seen: 0,
            unit,
            level: demand,
            fast: demand,
            bias: 0.0,
            peak: demand,
            errors: [unit; 3],
            square: unit * unit,
            mean: Rls::new(vec![0.0; FEATURES], 0.999_8),
            scales: [Rls::new(scale.clone(), 0.999_9), Rls::new(scale, 0.999_9)],
            next: Forecast { raw: demand, forecast: demand, scale: unit, ..Forecast::default() },
        };
        model.remember(begins - 1, demand);
        model.predict(begins);
        model
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "a remainder by at most LONGEST; seven digits of a demand are enough"
    )]
    fn remember(&mut self, slot: i64, demand: f64) {
        let at = slot.rem_euclid(self.history.len() as i64) as usize;
        self.history[at] = demand as f32;
    }

    /// The demand `lag` slots before `slot`, if it is known.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "a remainder by at most LONGEST"
    )]
    fn lagged(&self, slot: i64, lag: u64) -> Option<f64> {
        let length = self.history.len() as i64;
        let at = slot.checked_sub(i64::try_from(lag).ok()?)?;
        (lag <= length as u64 && at >= self.oldest)
            .then(|| f64::from(self.history[at.rem_euclid(length) as usize]))
    }

    /// The slot before `begins` had `demand`.
    fn learn(&mut self, demand: f64, begins: i64) {
        let ended = begins.saturating_sub(1);
        if ended == self.next.slot {
            self.fit(demand);
        } else {
            self.jump(ended);
        }
        self.remember(ended, demand);
        self.predict(begins);
    }

    /// The clock went to `ended` without telling of the slots between: they count as usual ones.
    fn jump(&mut self, ended: i64) {
        let expected = self.next.slot;
        if ended > expected {
            let length = i64::try_from(self.history.len()).unwrap_or(i64::MAX);
            for slot in expected.max(ended.saturating_sub(length))..ended {
                let usual = self.usual(slot);
                self.remember(slot, usual);
            }
        } else {
            self.oldest = self.oldest.min(ended);
            if expected.saturating_sub(ended) >= i64::try_from(self.history.len()).unwrap_or(i64::MAX) {
                self.oldest = ended;
            }
        }
    }

    fn usual(&self, slot: i64) -> f64 {
        let [day, hour] = [&self.day[self.slots.phase(slot, 24)], &self.hour[self.slots.phase(slot, 1)]];
        match (day.seen, hour.seen) {
            (true, _) => f64::from(day.demand),
            (false, true) => f64::from(hour.demand),
            _ => self.level,
        }
    }

    /// Learns from the error of the forecast.
    fn fit(&mut self, demand: f64) {
        let next = std::mem::take(&mut self.next);
        let error = demand - next.raw;
        let magnitude = error.abs().min(20.0 * next.scale.max(0.3));
        // One wild slot must not bend the model; the first hours must.
        let bounded =
            if self.seen < WARM_UP / 5 { error } else { error.clamp(-8.0 * next.scale, 8.0 * next.scale) };
        self.mean.learn(&next.x, bounded / self.unit);
        let mut z = next.z;
        for model in &mut self.scales {
            let miss = magnitude / self.unit - model.predict(&z);
            model.learn(&z, miss);
            z[7] = 0.0;
        }
        for (mean, rate) in self.errors.iter_mut().zip([0.2, 0.02, 0.001]) {
            *mean += rate * (magnitude - *mean);
        }
        self.square += 0.02 * (error * error - self.square);
        let usual = next.raw + bounded;
        let (hour, day) = (self.slots.phase(next.slot, 1), self.slots.phase(next.slot, 24));
        self.hour[hour].learn(usual, 0.1, magnitude, 0.05);
        self.day[day].learn(usual, 0.2, magnitude, 0.15);
        self.level += 0.02 * (usual - self.level);
        self.fast += 0.3 * (usual - self.fast);
        self.bias += 0.2 * (bounded - self.bias);
        self.peak = demand.max(self.peak * 0.999_5);
        if self.seen < WARM_UP {
            self.unit = (self.unit + (demand - self.unit) / f64::from(self.seen + 2)).max(1.0);
        }
        self.seen = self.seen.saturating_add(1);
    }

    fn predict(&mut self, slot: i64) {
        let known = |phase: Phase| phase.seen.then(|| f64::from(phase.demand));
        let before = slot.saturating_sub(1);
        let hour = self.hour[self.slots.phase(slot, 1)];
        let day = self.day[self.slots.phase(slot, 24)];
        let profile = [
            known(hour).unwrap_or(self.level),
            known(self.hour[self.slots.phase(before, 1)]).unwrap_or(self.level),
        ];
        let mut x = [1.0; FEATURES];
        for (x, lag) in x[1..].iter_mut().zip(self.lags) {
            *x = self.lagged(slot, lag).unwrap_or(self.level) / self.unit;
        }
        let rest = [
            profile[0],
            profile[1],
            known(day).unwrap_or(profile[0]),
            known(self.day[self.slots.phase(before, 24)]).unwrap_or(profile[1]),
            self.level,
            self.fast,
            self.bias,
        ];
        for (x, value) in x[1 + LAGS..].iter_mut().zip(rest) {
            *x = value / self.unit;
        }
        let raw = self.mean.predict(&x) * self.unit;
        let forecast = if raw.is_finite() { raw.clamp(0.0, 2.0 * self.peak) } else { self.level };
        let usual = self.errors[1];
        let at_hour = if hour.seen { f64::from(hour.error) } else { usual };
        let at_day = if day.seen { f64::from(day.error) } else { at_hour };
        let root = self.square.sqrt();
        let of_unit = |value: f64| value / self.unit;
        let z = [
            1.0,
            of_unit(forecast),
            of_unit(self.errors[0]),
            of_unit(usual),
            of_unit(self.errors[2]),
            of_unit(at_hour),
            of_unit(at_day),
            of_unit(forecast).sqrt(),
            of_unit(root),
        ];
        let learnt = if self.seen < WARM_UP {
            usual
        } else {
            let mut plain = z;
            plain[7] = 0.0;
            let [with, without] = [self.scales[0].predict(&z), self.scales[1].predict(&plain)];
            [with, without]
                .map(|scale| (scale * self.unit).clamp(0.2 * usual, 10.0 * usual))
                .iter()
                .sum::<f64>()
                / 2.0
        };
        let scale = 0.7 * learnt + 0.24 * root;
        self.next = Forecast { slot, x, z, raw: forecast, forecast, scale };
    }

    fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.history.capacity() * size_of::<f32>()
            + (self.hour.capacity() + self.day.capacity()) * size_of::<Phase>()
            + self.mean.bytes()
            + self.scales.iter().map(Rls::bytes).sum::<usize>()
    }
}
