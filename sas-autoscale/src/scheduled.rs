//! Floors and ceilings by the clock.

use std::{fmt, sync::Arc, time::Duration};

use sas_core::{
    Clamps, Decision, Metric, Policy, Reason, ScaleInput, ScalingSpec, Schedule, SpecErrors, Timestamp,
    Verdict, Vote,
};
use serde::{Deserialize, Serialize};

use crate::{
    kpa::{Kpa, KpaState},
    options::{self, Options, ScheduleWindow},
};

/// Reads a schedule and its time zone; the host gives one, from the trigger crate's cron or its own.
#[derive(Clone)]
pub struct ScheduleParser(Arc<Parse>);

type Parse = dyn Fn(&str, Option<&str>) -> sas_core::Result<Arc<dyn Schedule>> + Send + Sync;

impl ScheduleParser {
    /// Schedules are read by `parse`, which gets the expression and the name of a time zone, if there is one.
    pub fn new(
        parse: impl Fn(&str, Option<&str>) -> sas_core::Result<Arc<dyn Schedule>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(parse))
    }

    fn parse(&self, window: &ScheduleWindow) -> sas_core::Result<Arc<dyn Schedule>> {
        (self.0)(&window.schedule, window.time_zone.as_deref())
    }

    pub(crate) fn check(&self, windows: &[ScheduleWindow], errors: &mut SpecErrors) {
        for (at, window) in windows.iter().enumerate() {
            if let Err(error) = self.parse(window) {
                errors.push(format!("options.schedule[{at}].schedule"), &window.schedule, error.message);
            }
        }
    }
}

impl fmt::Debug for ScheduleParser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ScheduleParser")
    }
}

/// Which windows are open, remembered from one change to the next.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(crate) struct Windows {
    open: Vec<Opening>,
    /// The schedules, read once; after a restore once more.
    #[serde(skip)]
    schedules: Vec<Option<Arc<dyn Schedule>>>,
}

impl fmt::Debug for Windows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Windows").field(&self.open).finish()
    }
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Opening {
    open: bool,
    /// So from this time,
    from: Timestamp,
    /// until just before this one.
    until: Timestamp,
}

/// What the open windows say together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct WindowBounds {
    /// The highest floor of the open windows.
    pub min: Option<u32>,
    /// The highest ceiling of the open windows that have one.
    pub max: Option<u32>,
}

impl WindowBounds {
    /// `desired` within them; the floor wins over the ceiling.
    pub(crate) fn clamp(&self, desired: u32) -> u32 {
        desired.min(self.max.unwrap_or(u32::MAX)).max(self.min.unwrap_or(0))
    }
}

impl Windows {
    /// The bounds of `windows` at `now`.
    pub(crate) fn bounds(
        &mut self,
        parser: &ScheduleParser,
        windows: &[ScheduleWindow],
        now: Timestamp,
    ) -> WindowBounds {
        if self.open.len() != windows.len() {
            self.open = vec![Opening { open: false, from: now, until: now }; windows.len()];
        }
        if self.schedules.len() != windows.len() {
            self.schedules = windows.iter().map(|window| parser.parse(window).ok()).collect();
        }
        let mut bounds = WindowBounds::default();
        for ((window, opening), schedule) in windows.iter().zip(&mut self.open).zip(&self.schedules) {
            let Some(schedule) = schedule else { continue };
            if now < opening.from || now >= opening.until {
                *opening = opening_at(&**schedule, window.duration, now);
            }
            if opening.open {
                bounds.min = bounds.min.max(window.min);
                bounds.max = bounds.max.max(window.max);
            }
        }
        bounds
    }

    /// When the next of `windows` with a floor opens.
    pub(crate) fn next_floor(&self, windows: &[ScheduleWindow], now: Timestamp) -> Option<Timestamp> {
        windows
            .iter()
            .zip(&self.schedules)
            .filter(|(window, _)| window.min.is_some_and(|min| min > 0))
            .filter_map(|(_, schedule)| schedule.as_ref()?.next_after(now))
            .min()
    }
}

/// A window is open when its schedule fired within the duration before now. The duration is time that passes: a
/// change of the wall clock's offset does not stretch it.
fn opening_at(schedule: &dyn Schedule, duration: Duration, now: Timestamp) -> Opening {
    let just_too_old = now - duration;
    match schedule.next_after(just_too_old) {
        Some(fired) if fired <= now => Opening { open: true, from: fired, until: fired + duration },
        Some(next) => Opening { open: false, from: now, until: next },
        None => Opening { open: false, from: now, until: Timestamp(i64::MAX) },
    }
}

/// The default scaler between floors and ceilings that the clock opens and shuts.
#[derive(Clone, Debug)]
pub struct Scheduled {
    parser: ScheduleParser,
}

impl Scheduled {
    /// With the host's way to read schedules.
    pub const fn new(parser: ScheduleParser) -> Self {
        Self { parser }
    }
}

/// What [`Scheduled`] remembers of a revision.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScheduledState {
    kpa: KpaState,
    windows: Windows,
}

/// Puts `decision` between `bounds`, with a vote for the floor.
pub(crate) fn apply(bounds: WindowBounds, current: u32, decision: &mut Decision) {
    if let Some(min) = bounds.min {
        decision.votes.push(Vote::new(Metric::Schedule, Some(f64::from(min)), 1.0, Some(min)));
    }
    let wanted = match decision.verdict {
        Verdict::Set(wanted) => wanted,
        Verdict::Hold => current,
    };
    let clamped = bounds.clamp(wanted);
    if clamped != wanted {
        decision.verdict = Verdict::Set(clamped);
        decision.reason = Reason::Scheduled;
        decision.clamps.insert(Clamps::SCHEDULE);
    }
}

impl Policy for Scheduled {
    type State = ScheduledState;

    fn name(&self) -> &'static str {
        "scheduled"
    }

    fn validate(&self, spec: &ScalingSpec) -> Result<(), SpecErrors> {
        Options::check(spec, |options, errors| {
            options::need_schedule(options, errors);
            self.parser.check(&options.schedule, errors);
        })
    }

    fn decide(&self, state: &mut ScheduledState, input: &ScaleInput<'_>) -> Decision {
        let mut decision = Kpa::decide_for(&mut state.kpa, input, input.spec.metric, None);
        let bounds = state.windows.bounds(&self.parser, &Options::served(input.spec).schedule, input.now);
        apply(bounds, input.desired.unwrap_or(0), &mut decision);
        decision
    }

    fn wake_at(&self, state: &ScheduledState, input: &ScaleInput<'_>) -> Option<Timestamp> {
        state.windows.next_floor(&Options::served(input.spec).schedule, input.now)
    }
}
