//! Matching on the wall, and from the wall to instants.
//!
//! A zone is walked in stretches of constant offset. Within one, local time is a straight line, so a match is one; what
//! is special happens at the borders only: a gap, or a stretch of local time that comes again.

use jiff::{
    SignedDuration, Timestamp as Instant,
    civil::{Date, DateTime, Weekday},
    tz::{Offset, TimeZone},
};
use sas_core::Timestamp;

use super::{CronOptions, Fold, Gap};

/// The sets of an expression.
#[derive(Clone, Debug)]
pub(super) struct Fields {
    pub(super) seconds: u64,
    pub(super) minutes: u64,
    pub(super) hours: u32,
    pub(super) months: u16,
    /// `None`: every year. Ascending.
    pub(super) years: Option<Vec<u32>>,
    pub(super) days: Days,
    pub(super) weekdays: Weekdays,
}

/// Days of a month.
#[derive(Clone, Debug, Default)]
pub(super) struct Days {
    /// Every day: the field restricts nothing.
    pub(super) any: bool,
    pub(super) set: u32,
    pub(super) special: Vec<MonthDay>,
}

/// A day that depends on the month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MonthDay {
    /// So many days before the last one.
    Last(u8),
    /// The last day from Monday to Friday.
    LastWeekday,
    /// The day from Monday to Friday that is nearest to this one, within the month.
    NearestWeekday(u8),
}

/// Days of a week, Sunday = 0.
#[derive(Clone, Debug, Default)]
pub(super) struct Weekdays {
    /// Every day: the field restricts nothing.
    pub(super) any: bool,
    pub(super) set: u8,
    /// Weekday and which one of the month.
    pub(super) nth: Vec<(u8, u8)>,
    /// The last such weekday of the month.
    pub(super) last: Vec<u8>,
}

impl Fields {
    /// Whether it fires in every hour of a day that it fires on.
    fn hourly(&self) -> bool {
        self.hours == (1 << 24) - 1
    }

    /// The same in every second of the minutes that match.
    fn any_second(&self) -> Self {
        Self { seconds: (1 << 60) - 1, ..self.clone() }
    }

    /// The first of its seconds in the minute after `border`, from `from` on: what a gap skipped is done there.
    fn in_first_minute(&self, border: Instant, from: Instant) -> Option<Instant> {
        (0..60)
            .filter(|second| self.seconds & (1 << second) != 0)
            .filter_map(|second| border.checked_add(SignedDuration::from_secs(second)).ok())
            .find(|at| *at >= from)
    }

    /// The days of a month that match, as bits 1 to 31.
    fn matching_days(&self, year: i16, month: i8) -> u32 {
        let Ok(first) = Date::new(year, month, 1) else { return 0 };
        let length = u8::try_from(first.days_in_month()).unwrap_or(31);
        let all = ((1_u64 << (length + 1)) - 2) as u32;
        // Weekday of the first day, Sunday = 0.
        let first_weekday = u8::try_from(first.weekday().since(Weekday::Sunday)).unwrap_or(0);
        let weekday = |day: u8| (first_weekday + (day - 1)) % 7;

        let mut by_day = self.days.set & all;
        for special in &self.days.special {
            let day = match *special {
                MonthDay::Last(before) => length.checked_sub(before).filter(|day| *day > 0),
                MonthDay::LastWeekday => Some(nearest_weekday(length, length, &weekday)),
                MonthDay::NearestWeekday(day) => {
                    (day <= length).then(|| nearest_weekday(day, length, &weekday))
                }
            };
            by_day |= day.map_or(0, |day| 1 << day);
        }
        let mut by_weekday = 0;
        for day in 1..=length {
            let at = weekday(day);
            let matches = self.weekdays.set & (1 << at) != 0
                || self.weekdays.nth.iter().any(|(on, nth)| *on == at && (day - 1) / 7 + 1 == *nth)
                || self.weekdays.last.iter().any(|on| *on == at && day + 7 > length);
            if matches {
                by_weekday |= 1 << day;
            }
        }
        match (self.days.any, self.weekdays.any) {
            (true, true) => all,
            (true, false) => by_weekday,
            (false, true) => by_day,
            (false, false) => by_day | by_weekday,
        }
    }

    /// The first match from `from` on, before `to`.
    fn next_match(&self, from: DateTime, to: DateTime) -> Option<DateTime> {
        let mut from = from;
        loop {
            if from >= to {
                return None;
            }
            let date = self.next_date(from.date(), to.date())?;
            if date > from.date() {
                from = date.to_datetime(jiff::civil::Time::midnight());
            }
            match self.next_time(from) {
                Some(found) => return (found < to).then_some(found),
                None => from = from.date().tomorrow().ok()?.to_datetime(jiff::civil::Time::midnight()),
            }
        }
    }

    fn next_date(&self, from: Date, to: Date) -> Option<Date> {
        let (mut year, mut month, mut day) = (from.year(), from.month(), from.day());
        loop {
            if (year, month) > (to.year(), to.month()) {
                return None;
            }
            if let Some(years) = &self.years {
                let next = years.iter().find(|next| i64::from(**next) >= i64::from(year))?;
                let next = i16::try_from(*next).ok()?;
                if next > year {
                    (year, month, day) = (next, 1, 1);
                }
            }
            if self.months & (1 << month) != 0 {
                let left = self.matching_days(year, month) & !((1_u32 << day) - 1);
                if left != 0 {
                    let found = i8::try_from(left.trailing_zeros()).ok()?;
                    return Date::new(year, month, found).ok();
                }
            }
            day = 1;
            month += 1;
            if month > 12 {
                month = 1;
                year = year.checked_add(1)?;
            }
        }
    }

    /// The first match on the day of `from`, from its time on.
    fn next_time(&self, from: DateTime) -> Option<DateTime> {
        let bit = |set: u64, from: i8| {
            let left = if from >= 64 { 0 } else { set & (u64::MAX << from) };
            (left != 0).then(|| left.trailing_zeros() as i8)
        };
        let (hour, minute, second) = (from.hour(), from.minute(), from.second());
        let at = |hour, minute, second| from.date().at(hour, minute, second, 0);
        let next_hour = bit(u64::from(self.hours), hour)?;
        if next_hour == hour {
            if let Some(next_minute) = bit(self.minutes, minute) {
                if next_minute == minute
                    && let Some(next_second) = bit(self.seconds, second)
                {
                    return Some(at(hour, minute, next_second));
                }
                let later =
                    if next_minute == minute { bit(self.minutes, minute + 1) } else { Some(next_minute) };
                if let Some(later) = later {
                    return Some(at(hour, later, bit(self.seconds, 0)?));
                }
            }
            let later = bit(u64::from(self.hours), hour + 1)?;
            return Some(at(later, bit(self.minutes, 0)?, bit(self.seconds, 0)?));
        }
        Some(at(next_hour, bit(self.minutes, 0)?, bit(self.seconds, 0)?))
    }
}

/// The day from Monday to Friday nearest to `day`, not leaving the month.
fn nearest_weekday(day: u8, length: u8, weekday: &impl Fn(u8) -> u8) -> u8 {
    match weekday(day) {
        // Saturday: the Friday before, or the Monday after the first.
        6 if day > 1 => day - 1,
        6 => day + 2,
        // Sunday: the Monday after, or the Friday before the last.
        0 if day < length => day + 1,
        0 => day - 2,
        _ => day,
    }
}

/// The first fire after `after`.
pub(super) fn next_after(
    fields: &Fields,
    zone: &TimeZone,
    options: CronOptions,
    after: Timestamp,
) -> Option<Timestamp> {
    // Fires are whole seconds: the next one is the first that can be meant.
    let first = Instant::from_second(after.as_secs().checked_add(1)?).ok()?;
    let horizon = Instant::from_nanosecond(i128::from(i64::MAX)).ok()?;
    let mut from = first;
    // The border at which the stretch of `from` began.
    let mut border = zone
        .preceding(first.checked_add(SignedDuration::from_nanos(1)).ok()?)
        .next()
        .map(|border| border.timestamp());
    let mut borders = zone.following(first);
    loop {
        let end = borders.next().map(|next| next.timestamp()).filter(|next| *next < horizon);
        let change = border.and_then(|border| Change::at(zone, border));
        if let Some(found) =
            next_within(fields, options, zone.to_offset(from), change, from, end.unwrap_or(horizon))
        {
            return i64::try_from(found.as_nanosecond()).ok().map(Timestamp);
        }
        from = end?;
        border = end;
    }
}

/// A change of the offset.
struct Change {
    at: Instant,
    /// Local time at which the old offset ended.
    old: DateTime,
    /// Local time at which the new one began: later than `old` after a gap, earlier where time comes again.
    new: DateTime,
}

impl Change {
    fn at(zone: &TimeZone, at: Instant) -> Option<Self> {
        let before = zone.to_offset(at.checked_sub(SignedDuration::from_nanos(1)).ok()?);
        Some(Self { at, old: before.to_datetime(at), new: zone.to_offset(at).to_datetime(at) })
    }
}

/// The first fire from `from` on, before `end`, in a stretch of one offset that began with `change`.
fn next_within(
    fields: &Fields,
    options: CronOptions,
    offset: Offset,
    change: Option<Change>,
    from: Instant,
    end: Instant,
) -> Option<Instant> {
    let mut start = offset.to_datetime(from);
    let mut moved = None;
    // Expressions that fire in every hour follow time as it passes: nothing of theirs is lost or done twice.
    if let Some(change) = change
        && !fields.hourly()
    {
        if options.fold == Fold::First && change.new < change.old {
            start = start.max(change.old);
        }
        if options.gap == Gap::Run
            && change.new > change.old
            && fields.any_second().next_match(change.old, change.new).is_some()
        {
            moved = fields.in_first_minute(change.at, from);
        }
    }
    let regular =
        fields.next_match(start, offset.to_datetime(end)).and_then(|at| offset.to_timestamp(at).ok());
    match (moved, regular) {
        (Some(moved), Some(regular)) => Some(moved.min(regular)),
        (moved, regular) => moved.or(regular),
    }
}
