//! Cron expressions in time zones.

mod civil;
mod parse;

use std::{fmt, time::Duration};

use jiff::tz::TimeZone;
use sas_core::{Error, ErrorKind, Schedule, SpecErrors, Timestamp};
use serde::{Deserialize, Serialize};

use civil::Fields;

/// How weekdays are numbered, and which ranges there are. All else is read alike in both: five, six or seven fields, names,
/// steps, `?`, `L`, `W`, `#`, and the rule for two days.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Dialect {
    /// Sunday is 0, and 7 too: crontab's numbers, and Knative's. A range that ends before it begins is refused, but for days
    /// of the week (`FRI-MON`).
    #[default]
    Standard,
    /// Sunday is 1, Saturday is 7. A range that ends before it begins goes over the end of its field, as Quartz takes it:
    /// `22-2` in hours is 22, 23, 0, 1, 2, and `NOV-FEB`, `50-10/5` and `25-5` in days likewise; not in years.
    Quartz,
}

/// What happens to a fire whose local time is skipped when clocks go forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Gap {
    /// It fires in the first minute after the gap, at its seconds, however many minutes were skipped: a nightly job runs
    /// every night. Expressions that fire in every hour follow time as it passes and have nothing to make up for.
    #[default]
    Run,
    /// It does not fire.
    Skip,
}

/// What happens to a fire whose local time comes twice when clocks go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Fold {
    /// It fires both times.
    #[default]
    Both,
    /// It fires the first time. Expressions that fire in every hour fire both times all the same.
    First,
}

/// How an expression is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct CronOptions {
    /// How weekdays are numbered.
    pub dialect: Dialect,
    /// What happens when clocks go forward.
    pub gap: Gap,
    /// What happens when clocks go back.
    pub fold: Fold,
}

impl CronOptions {
    /// Quartz's numbers of weekdays.
    pub fn quartz() -> Self {
        Self { dialect: Dialect::Quartz, ..Self::default() }
    }

    /// What Knative's PingSource does: it loses a fire in a gap, and fires twice where time comes twice.
    pub fn knative() -> Self {
        Self { gap: Gap::Skip, ..Self::default() }
    }
}

/// What is wrong with an expression or a time zone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{part}: {value:?}: {problem}")]
#[non_exhaustive]
pub struct CronError {
    /// Which part: `expression`, `second`, `minute`, `hour`, `day of month`, `month`, `day of week`, `year` or `timezone`.
    pub part: &'static str,
    /// The part of the expression, or the zone, that is wrong.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
}

/// `InvalidSpec`; the part is the field of [`Error::fields`].
impl From<CronError> for Error {
    fn from(error: CronError) -> Self {
        let mut fields = SpecErrors::default();
        fields.push(error.part, &error.value, &error.problem);
        Self::new(ErrorKind::InvalidSpec, "cron", error.to_string()).with_source(fields)
    }
}

impl CronError {
    fn new(part: &'static str, value: &str, problem: impl Into<String>) -> Self {
        let value = value.chars().take(100).collect();
        Self { part, value, problem: problem.into() }
    }
}

/// A cron expression in a time zone.
///
/// Five fields (minute, hour, day of month, month, day of week), six (with seconds first), or seven (with years last);
/// `@yearly`, `@annually`, `@monthly`, `@weekly`, `@daily`, `@midnight`, `@hourly`; `@every 90s`. Fields are lists of
/// values, ranges and steps, with names of months and weekdays; days also know `?`, `L`, `L-3`, `LW`, `15W`, `6L` and
/// `MON#2`. When both days are restricted, one of the two has to match, as in crontab. A prefix `CRON_TZ=zone` or
/// `TZ=zone` names a time zone.
///
/// Fires are whole seconds. Equal input gives equal fires on every host with the same time zone data.
///
/// ```
/// use sas_core::{Schedule, Timestamp};
/// use sas_trigger::CronSchedule;
///
/// let nightly = CronSchedule::new("30 2 * * *", "Europe/Berlin")?;
/// let midnight = Timestamp::from_secs(1_774_738_800); // 2026-03-29, when the clocks skip from 2:00 to 3:00
/// let fire = nightly.next_after(midnight).unwrap();
/// assert_eq!(fire, midnight + std::time::Duration::from_secs(2 * 3600)); // 3:00, at the end of the gap
/// # Ok::<(), sas_trigger::CronError>(())
/// ```
#[derive(Clone)]
pub struct CronSchedule {
    kind: Kind,
    zone: TimeZone,
    options: CronOptions,
    source: String,
}

#[derive(Clone, Debug)]
enum Kind {
    Fields(Box<Fields>),
    Every(Duration),
}

impl fmt::Debug for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CronSchedule")
            .field("expression", &self.source)
            .field("zone", &self.zone.iana_name())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl CronSchedule {
    /// Reads an expression; `zone` is an IANA name such as `Europe/Berlin` or `UTC`.
    ///
    /// # Errors
    /// The part that is wrong, its value and what is wrong with it.
    pub fn new(expression: &str, zone: &str) -> Result<Self, CronError> {
        Self::with_options(expression, zone, CronOptions::default())
    }

    /// The same with a dialect and rules for the changes of clocks.
    ///
    /// # Errors
    /// As [`CronSchedule::new`].
    pub fn with_options(expression: &str, zone: &str, options: CronOptions) -> Result<Self, CronError> {
        let (own_zone, text) = parse::zone_prefix(expression)?;
        let zone = own_zone.unwrap_or(zone);
        let zone = TimeZone::get(zone).map_err(|_| {
            CronError::new("timezone", zone, "is no IANA time zone; write one such as Europe/Berlin or UTC")
        })?;
        let kind = match parse::every(text)? {
            Some(period) => Kind::Every(period),
            None => Kind::Fields(Box::new(parse::fields(text, options.dialect)?)),
        };
        Ok(Self { kind, zone, options, source: expression.to_owned() })
    }

    /// The expression as it was given.
    pub fn expression(&self) -> &str {
        &self.source
    }
}

impl Schedule for CronSchedule {
    fn next_after(&self, after: Timestamp) -> Option<Timestamp> {
        match &self.kind {
            Kind::Every(period) => {
                let next = after + *period;
                let whole = Timestamp::from_secs(next.as_secs());
                (next.0 < i64::MAX && whole > after).then_some(whole)
            }
            Kind::Fields(fields) => civil::next_after(fields, &self.zone, self.options, after),
        }
    }
}
