//! From text to sets. Lists, ranges and steps are read by the crate `cron`; what it has no form for (five fields,
//! weekdays as crontab and Quartz number them, `L`, `W`, `#`, names in steps) is read here.

use std::{str::FromStr as _, time::Duration};

use cron::TimeUnitSpec as _;

use super::{
    CronError, Dialect,
    civil::{Days, Fields, MonthDay, Weekdays},
};

/// Longer expressions are refused: the longest that says something is about 600 letters.
const LENGTH_LIMIT: usize = 1024;
const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// `CRON_TZ=zone rest` and `TZ=zone rest`.
pub(super) fn zone_prefix(expression: &str) -> Result<(Option<&str>, &str), CronError> {
    if expression.len() > LENGTH_LIMIT {
        return Err(CronError::new(
            "expression",
            expression,
            format!("has more than {LENGTH_LIMIT} letters"),
        ));
    }
    let text = expression.trim();
    if let Some(problem) = of_aws(text) {
        return Err(CronError::new("expression", text, problem));
    }
    let named = ["CRON_TZ=", "TZ="].into_iter().find_map(|prefix| text.strip_prefix(prefix));
    match named.map(|rest| rest.split_once(char::is_whitespace)) {
        None => Ok((None, text)),
        Some(Some((zone, rest))) => Ok((Some(zone), rest.trim())),
        Some(None) => Err(CronError::new("expression", expression, "names a time zone and no time")),
    }
}

/// What to write instead of AWS's `cron(...)`, `rate(...)` and `at(...)`.
fn of_aws(text: &str) -> Option<String> {
    let inside = |name: &str| text.strip_prefix(name)?.strip_prefix('(')?.strip_suffix(')').map(str::trim);
    if let Some(fields) = inside("cron") {
        return Some(format!(
            "is AWS's form: write `0 {fields}` with the dialect quartz, which numbers weekdays alike"
        ));
    }
    if let Some(rate) = inside("rate") {
        let (count, unit) = rate.split_once(char::is_whitespace).unwrap_or((rate, ""));
        let (scale, unit) = match unit.trim() {
            "minute" | "minutes" => (1, "m"),
            "hour" | "hours" => (1, "h"),
            "day" | "days" => (24, "h"),
            _ => {
                return Some(
                    "is AWS's form: write `@every 5m`, with a duration such as 90s, 5m or 24h".to_owned(),
                );
            }
        };
        return Some(match count.parse::<u32>().ok().and_then(|count| count.checked_mul(scale)) {
            Some(count) if count > 0 => format!("is AWS's form: write `@every {count}{unit}`"),
            _ => "is AWS's form: write `@every 5m`, with a duration such as 90s, 5m or 24h".to_owned(),
        });
    }
    inside("at").map(|_| {
        "is AWS's form for once: write seconds, minute, hour, day, month, `?` and year, such as `0 30 9 24 12 ? 2030`".to_owned()
    })
}

/// `@every 1h30m`: whole seconds, at least one.
pub(super) fn every(text: &str) -> Result<Option<Duration>, CronError> {
    let Some(span) = text.strip_prefix("@every").filter(|rest| rest.starts_with(char::is_whitespace)) else {
        return Ok(None);
    };
    let span = span.trim();
    let period = sas_core::parse_duration(span).ok().and_then(|nanos| u64::try_from(nanos).ok());
    match period.map(Duration::from_nanos) {
        Some(period) if period >= Duration::from_secs(1) => Ok(Some(Duration::from_secs(period.as_secs()))),
        _ => Err(CronError::new(
            "expression",
            span,
            "must be a duration of a second or more, such as 90s or 1h30m",
        )),
    }
}

pub(super) fn fields(text: &str, dialect: Dialect) -> Result<Fields, CronError> {
    let text = match text {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => match dialect {
            Dialect::Standard => "0 0 * * 0",
            Dialect::Quartz => "0 0 * * 1",
        },
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        other if other.starts_with('@') => {
            let problem =
                "must be @yearly, @annually, @monthly, @weekly, @daily, @midnight, @hourly or @every";
            return Err(CronError::new("expression", other, problem));
        }
        other => other,
    };
    let parts: Vec<&str> = text.split_whitespace().collect();
    let (second, [minute, hour, day, month, weekday], year) = match parts[..] {
        [a, b, c, d, e] => ("0", [a, b, c, d, e], None),
        [s, a, b, c, d, e] => (s, [a, b, c, d, e], None),
        [s, a, b, c, d, e, y] => (s, [a, b, c, d, e], Some(y)),
        _ => {
            let problem =
                format!("has {} fields; 5, 6 (seconds first) or 7 (years last) are known", parts.len());
            return Err(CronError::new("expression", text, problem));
        }
    };
    let days = days(day, dialect)?;
    let weekdays = weekdays(weekday, dialect)?;
    let month = numbered(month, &MONTHS, 1);
    let every_year = matches!(year, None | Some("*"));
    // One field at a time, so that the error says which.
    let read = |part: &'static str, position: usize, field: &str| {
        let (first, last) = [(0, 59), (0, 59), (0, 23), (1, 31), (1, 12)].get(position).copied().unzip();
        let field = &match (dialect, first, last) {
            (Dialect::Quartz, Some(first), Some(last)) => wrapped(field, first, last),
            _ => field.to_owned(),
        };
        let mut sample = ["0", "0", "0", "1", "1", "*", "*"];
        sample[position] = field;
        cron::Schedule::from_str(&sample.join(" ")).map_err(|_| {
            CronError::new(part, field, "is no list of values, ranges and steps in this field's bounds")
        })
    };
    Ok(Fields {
        seconds: bits(read("second", 0, second)?.seconds()),
        minutes: bits(read("minute", 1, minute)?.minutes()),
        hours: u32::try_from(bits(read("hour", 2, hour)?.hours())).unwrap_or(0),
        months: u16::try_from(bits(read("month", 4, &month)?.months())).unwrap_or(0),
        years: match year {
            Some(year) if !every_year => Some(read("year", 6, year)?.years().iter().collect()),
            _ => None,
        },
        days,
        weekdays,
    })
}

/// Quartz's ranges that go over the end of a field, such as `22-2` in hours, as lists: `22,23,0,1,2`. Steps go over the
/// end too. What is no such range stays as it is.
fn wrapped(field: &str, first: u32, last: u32) -> String {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u32>().ok().filter(|number| digits && (first..=last).contains(number))
    };
    let items = field.split(',').map(|item| {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, step.parse::<usize>().ok().filter(|step| *step > 0)),
            None => (item, Some(1)),
        };
        let bounds = range.split_once('-').map(|(from, to)| (number(from), number(to)));
        match (bounds, step) {
            (Some((Some(from), Some(to))), Some(step)) if to < from => {
                let length = last - first + 1;
                let values = (from..=to + length)
                    .step_by(step)
                    .map(|value| (if value > last { value - length } else { value }).to_string());
                values.collect::<Vec<_>>().join(",")
            }
            _ => item.to_owned(),
        }
    });
    items.collect::<Vec<_>>().join(",")
}

fn bits(ordinals: &impl cron::TimeUnitSpec) -> u64 {
    ordinals.iter().fold(0, |bits, ordinal| bits | 1 << ordinal)
}

/// Names as numbers from `first` on, also within ranges and steps.
fn numbered(field: &str, names: &[&str], first: usize) -> String {
    let mut out = String::with_capacity(field.len());
    let mut rest = field;
    while let Some(letter) = rest.chars().next() {
        let length = rest.find(|letter: char| !letter.is_ascii_alphabetic()).unwrap_or(rest.len());
        if length == 0 {
            out.push(letter);
            rest = &rest[letter.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(length);
        match names.iter().position(|name| name.eq_ignore_ascii_case(word)) {
            Some(at) => out.push_str(&(at + first).to_string()),
            None => out.push_str(word),
        }
        rest = after;
    }
    out
}

/// The set of a list of values, ranges and steps, as the crate reads the days of a month.
fn day_set(part: &'static str, field: &str) -> Result<u32, CronError> {
    let schedule = cron::Schedule::from_str(&format!("0 0 0 {field} 1 *")).map_err(|_| {
        CronError::new(part, field, "is no list of values, ranges and steps in this field's bounds")
    })?;
    Ok(schedule.days_of_month().iter().fold(0, |bits, ordinal| bits | 1 << ordinal))
}

fn days(field: &str, dialect: Dialect) -> Result<Days, CronError> {
    const PART: &str = "day of month";
    let mut days = Days { any: matches!(field, "*" | "?" | "*/1" | "?/1"), ..Days::default() };
    if days.any {
        return Ok(days);
    }
    for item in field.split(',') {
        let upper = item.to_ascii_uppercase();
        let number = |text: &str, most: u8| text.parse::<u8>().ok().filter(|n| (1..=most).contains(n));
        let special = match upper.as_str() {
            "L" => Some(MonthDay::Last(0)),
            "LW" | "WL" => Some(MonthDay::LastWeekday),
            other => match (other.strip_prefix("L-"), other.strip_suffix('W')) {
                (Some(before), _) => {
                    let before = number(before, 30)
                        .ok_or_else(|| CronError::new(PART, item, "must be L-1 to L-30"))?;
                    Some(MonthDay::Last(before))
                }
                (None, Some(day)) => {
                    let day = number(day, 31)
                        .ok_or_else(|| CronError::new(PART, item, "must be 1W to 31W, or LW"))?;
                    Some(MonthDay::NearestWeekday(day))
                }
                _ => None,
            },
        };
        match special {
            Some(special) => days.special.push(special),
            None if dialect == Dialect::Quartz => days.set |= day_set(PART, &wrapped(item, 1, 31))?,
            None => days.set |= day_set(PART, item)?,
        }
    }
    Ok(days)
}

fn weekdays(field: &str, dialect: Dialect) -> Result<Weekdays, CronError> {
    const PART: &str = "day of week";
    let mut weekdays = Weekdays { any: matches!(field, "*" | "?" | "*/1" | "?/1"), ..Weekdays::default() };
    if weekdays.any {
        return Ok(weekdays);
    }
    let bounds = match dialect {
        Dialect::Standard => "must be SUN to SAT, or 0 to 7, where 0 and 7 are Sunday",
        Dialect::Quartz => "must be SUN to SAT, or 1 to 7, where 1 is Sunday",
    };
    let (first, last) = match dialect {
        Dialect::Standard => (0, 7),
        Dialect::Quartz => (1, 7),
    };
    // Days are counted from Sunday = 0; 7 stays 7 so that 5-7 is a range.
    let day = |text: &str| -> Result<u8, CronError> {
        let bad = || CronError::new(PART, text, bounds);
        let text = numbered(text, &WEEKDAYS, first);
        let well_formed = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let number = text
            .parse::<usize>()
            .ok()
            .filter(|n| well_formed && (first..=last).contains(n))
            .ok_or_else(bad)?;
        u8::try_from(number - first).map_err(|_| bad())
    };
    for item in field.split(',') {
        if let Some((weekday, nth)) = item.split_once('#') {
            let nth = nth.parse::<u8>().ok().filter(|nth| (1..=5).contains(nth));
            let nth = nth.ok_or_else(|| CronError::new(PART, item, "must end in #1 to #5"))?;
            weekdays.nth.push((day(weekday)? % 7, nth));
            continue;
        }
        if item.eq_ignore_ascii_case("L") {
            weekdays.set |= 1 << 6;
            continue;
        }
        // The last letter of no weekday's name is an L, so `6L` and `FRIL` are the last Friday.
        if let Some(weekday) = item.strip_suffix(['L', 'l']) {
            weekdays.last.push(day(weekday)? % 7);
            continue;
        }
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => {
                let step = step.parse::<u8>().ok().filter(|step| (1..=7).contains(step));
                (range, step.ok_or_else(|| CronError::new(PART, item, "must have a step of 1 to 7"))?)
            }
            None => (item, 1),
        };
        let (from, to) = match range.split_once('-') {
            None if matches!(range, "*" | "?") => (0, 6),
            // As in other fields, a value with a step goes on to the end.
            None => (day(range)?, if item.contains('/') { 6 } else { day(range)? }),
            Some((from, to)) => (day(from)?, day(to)?),
        };
        // FRI-MON goes over the end of the week.
        let to = if to < from { to + 7 } else { to };
        for weekday in (from..=to).step_by(usize::from(step)) {
            weekdays.set |= 1 << (weekday % 7);
        }
    }
    Ok(weekdays)
}
