//! Peaks that come with the clock: a seasonal forecast that learns as it goes, and raises the floor ahead of them.

use std::time::Duration;

use sas_core::{
    Decision, Metric, Policy, Reason, ScaleInput, ScalingSpec, SpecErrors, Timestamp, Verdict, Vote,
};
use serde::{Deserialize, Serialize};

use crate::{
    kpa::{Kpa, KpaState},
    options::{ForecastSpec, Options},
};

/// How fast the level follows.
const LEVEL: f64 = 0.2;
/// How fast the trend follows.
const TREND: f64 = 0.01;
/// How fast the season follows.
const SEASON: f64 = 0.2;
/// How much of the error's variance is remembered.
const VARIANCE: f64 = 0.98;
/// A forecast below this share of one instance's target is noise, and wakes nobody.
const NOISE: f64 = 0.05;
/// More than this is no measurement.
const VALUE_MAX: f64 = 1e12;

/// Demand per slot with a season: Holt and Winters' additive smoothing, with the variance of its own error.
///
/// Needs one whole season before it says anything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Seasonal {
    length: u32,
    season: Vec<f64>,
    level: f64,
    trend: f64,
    variance: f64,
    /// Slots observed.
    observed: u64,
}

impl Seasonal {
    /// A model of `length` slots per season.
    pub(crate) fn new(length: u32) -> Self {
        Self { length: length.max(2), ..Self::default() }
    }

    /// At least two slots, also of a model that was made without a length.
    fn slots(&self) -> u32 {
        self.length.max(2)
    }

    fn place(&self, slot: u64) -> usize {
        usize::try_from(slot % u64::from(self.slots())).unwrap_or(0)
    }

    /// The demand of the next slot. What is no measurement counts as none.
    pub(crate) fn observe(&mut self, demand: f64) {
        let demand = if demand.is_finite() { demand.clamp(0.0, VALUE_MAX) } else { 0.0 };
        let length = u64::from(self.slots());
        if self.observed < length {
            self.season.push(demand);
            self.observed += 1;
            if self.observed == length {
                self.level = self.season.iter().sum::<f64>() / f64::from(self.slots());
                self.variance = self.level;
                for value in &mut self.season {
                    *value -= self.level;
                }
            }
            return;
        }
        let place = self.place(self.observed);
        let season = self.season[place];
        let error = demand - (self.level + self.trend + season);
        self.variance = VARIANCE * self.variance + (1.0 - VARIANCE) * error * error;
        let before = self.level;
        self.level = LEVEL * (demand - season) + (1.0 - LEVEL) * (before + self.trend);
        self.trend = TREND * (self.level - before) + (1.0 - TREND) * self.trend;
        self.season[place] = SEASON * (demand - self.level) + (1.0 - SEASON) * season;
        self.observed += 1;
    }

    /// The demand `ahead` slots after the last one that was observed; `None` before the first season is over.
    pub(crate) fn expect(&self, ahead: u32) -> Option<f64> {
        if self.observed < u64::from(self.slots()) || ahead == 0 {
            return None;
        }
        let place = self.place(self.observed + u64::from(ahead) - 1);
        Some((self.level + f64::from(ahead) * self.trend + self.season[place]).clamp(0.0, VALUE_MAX))
    }

    /// The standard deviation of its error one slot ahead.
    pub(crate) fn deviation(&self) -> f64 {
        self.variance.max(0.0).sqrt()
    }
}

/// The slots of a revision on the wall clock, and what the model says of the next ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Forecaster {
    model: Seasonal,
    slot: Option<i64>,
    weighted: f64,
    seconds: f64,
}

impl Forecaster {
    fn slot_of(spec: &ForecastSpec, now: Timestamp) -> i64 {
        let length = i64::try_from(spec.slot.as_nanos()).unwrap_or(i64::MAX).max(1);
        now.0.div_euclid(length)
    }

    /// Takes the demand of a tick.
    pub(crate) fn observe(&mut self, spec: &ForecastSpec, now: Timestamp, demand: f64, elapsed: Duration) {
        if self.model.length != spec.season.max(2) {
            *self = Self { model: Seasonal::new(spec.season), ..Self::default() };
        }
        let slot = Self::slot_of(spec, now);
        let current = *self.slot.get_or_insert(slot);
        if slot > current {
            let mean = if self.seconds > 0.0 { self.weighted / self.seconds } else { 0.0 };
            self.model.observe(mean);
            // Between, nobody ticked: it slept. After a season of that, nothing else is left to learn.
            for _ in 1..(slot - current).min(i64::from(spec.season) + 1) {
                self.model.observe(0.0);
            }
            self.weighted = 0.0;
            self.seconds = 0.0;
            self.slot = Some(slot);
        }
        // A clock that went back adds to the slot that it had reached.
        let seconds = elapsed.as_secs_f64().min(spec.slot.as_secs_f64());
        if demand.is_finite() && (0.0..=VALUE_MAX).contains(&demand) {
            self.weighted += demand * seconds;
            self.seconds += seconds;
        }
    }

    /// The highest demand, head-room included, between `now` and `lead` later; 0 when it is noise for `target`.
    pub(crate) fn demand(
        &self,
        spec: &ForecastSpec,
        now: Timestamp,
        lead: Duration,
        target: f64,
    ) -> Option<f64> {
        let current = self.slot?;
        let last = Self::slot_of(spec, now + lead).min(current.saturating_add(i64::from(spec.season)));
        let mut highest: f64 = 0.0;
        for slot in current..=last.max(current) {
            let ahead = u32::try_from(slot - current + 1).unwrap_or(u32::MAX);
            highest = highest.max(self.model.expect(ahead)?);
        }
        if highest <= NOISE * target {
            return Some(0.0);
        }
        Some(highest + spec.headroom * self.model.deviation())
    }

    /// When to look again while the revision sleeps: `lead` before the next slot in which somebody is expected.
    pub(crate) fn next_peak(
        &self,
        spec: &ForecastSpec,
        now: Timestamp,
        lead: Duration,
        target: f64,
    ) -> Timestamp {
        let current = Self::slot_of(spec, now);
        let observed = self.slot.unwrap_or(current);
        let length = i64::try_from(spec.slot.as_nanos()).unwrap_or(i64::MAX);
        for slot in current + 1..=current.saturating_add(i64::from(spec.season)) {
            let ahead = u32::try_from((slot - observed).max(0) + 1).unwrap_or(u32::MAX);
            if self.model.expect(ahead).is_some_and(|demand| demand > NOISE * target) {
                let wake = Timestamp(slot.saturating_mul(length)) - lead;
                if wake > now {
                    return wake;
                }
            }
        }
        now + spec.slot * spec.season
    }
}

/// How long before a peak instances must be asked for: as long as a start takes, and some more.
pub(crate) fn lead_of(spec: &ForecastSpec, input: &ScaleInput<'_>) -> Duration {
    spec.lead + input.load.start_time.unwrap_or_default().min(Duration::from_secs(600))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
pub(crate) fn instances(demand: f64, target: f64) -> u32 {
    ((demand / target).ceil() as u32).min(i32::MAX as u32)
}

/// The floor that a forecast asks for, with its vote; `None` before it has learnt a season.
pub(crate) fn floor(
    forecaster: &mut Forecaster,
    spec: &ForecastSpec,
    input: &ScaleInput<'_>,
    demand: f64,
    target: f64,
) -> (Option<u32>, Vote) {
    forecaster.observe(spec, input.now, demand, input.elapsed);
    let expected = forecaster.demand(spec, input.now, lead_of(spec, input), target);
    let floor = expected.map(|expected| instances(expected, target));
    (floor, Vote::new(Metric::Forecast, expected, target, floor))
}

/// What one instance should carry, utilisation included, and what is asked now.
pub(crate) fn demand_of(input: &ScaleInput<'_>, metric: Metric) -> (f64, f64) {
    let spec = input.spec;
    let seconds = input.elapsed.as_secs_f64();
    match metric {
        Metric::Rps => {
            let rate = if seconds > 0.0 { f64::from(input.load.requests) / seconds } else { 0.0 };
            ((spec.target * spec.utilization).max(0.01), rate)
        }
        _ => {
            let total = match input.concurrency {
                0 => spec.target,
                limit => spec.target.min(f64::from(limit)),
            };
            ((total * spec.utilization).max(0.01), input.load.concurrency)
        }
    }
}

/// The default scaler above a floor that a forecast raises ahead of known peaks; the forecast never lowers anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Forecast;

/// What [`Forecast`] remembers of a revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ForecastState {
    kpa: KpaState,
    forecaster: Forecaster,
}

impl Policy for Forecast {
    type State = ForecastState;

    fn name(&self) -> &'static str {
        "forecast"
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        Options::check(spec, |_, _| {})
    }

    fn decide(&self, state: &mut ForecastState, input: &ScaleInput<'_>) -> Decision {
        let spec = Options::served(input.spec).forecast.unwrap_or_default();
        let mut decision = Kpa::decide_for(&mut state.kpa, input, input.spec.metric, None);
        let (target, demand) = demand_of(input, input.spec.metric);
        let (floor, vote) = floor(&mut state.forecaster, &spec, input, demand, target);
        decision.votes.push(vote);
        raise(floor, input.desired.unwrap_or(0), &mut decision);
        decision
    }

    fn wake_at(&self, state: &ForecastState, input: &ScaleInput<'_>) -> Option<Timestamp> {
        let spec = Options::served(input.spec).forecast.unwrap_or_default();
        let (target, _) = demand_of(input, input.spec.metric);
        Some(state.forecaster.next_peak(&spec, input.now, lead_of(&spec, input), target))
    }
}

/// Raises a decision to a floor; a hold, when what is in force is lower.
pub(crate) fn raise(floor: Option<u32>, in_force: u32, decision: &mut Decision) {
    let Some(floor) = floor else { return };
    let wanted = match decision.verdict {
        Verdict::Set(wanted) => wanted,
        Verdict::Hold => in_force,
    };
    if floor > wanted {
        decision.verdict = Verdict::Set(floor);
        decision.reason = Reason::Forecast;
    }
}
