//! Times that are given. There is no clock, and the local zone is UTC: the same expression gives the same on every host.

use jiff::{
    Timestamp,
    civil::{Date, DateTime, Time},
    fmt::strtime::BrokenDownTime,
    tz::TimeZone,
};

use super::{Native, native};
use crate::{Error, access::described, cx::Cx, value::Value};

pub(crate) const NATIVES: &[Native] = &[
    native("mktime", 0, |cx, input, _| {
        let time = civil(cx, &input, "mktime")?;
        let seconds =
            TimeZone::UTC.to_timestamp(time).map_err(|_| cx.raise("invalid gmtime representation"))?;
        #[expect(clippy::cast_precision_loss, reason = "years up to 9999")]
        Ok(Value::Float(seconds.as_second() as f64))
    }),
    native("gmtime", 0, |cx, input, _| broken_down(cx, &input, "gmtime() requires a number")),
    native("localtime", 0, |cx, input, _| broken_down(cx, &input, "localtime() requires a number")),
    native("strftime", 1, |cx, input, arguments| format(cx, &input, &arguments[0], "strftime")),
    native("strflocaltime", 1, |cx, input, arguments| format(cx, &input, &arguments[0], "strflocaltime")),
    native("strptime", 1, parse),
];

/// `[year, month from 0, day, hours, minutes, seconds, day of the week, day of the year from 0]`.
fn parts(cx: &Cx, time: DateTime, seconds: f64) -> Result<Value, Error> {
    let number = |number: i16| Value::Int(number.into());
    cx.make.list(vec![
        number(time.year()),
        number(i16::from(time.month()) - 1),
        number(time.day().into()),
        number(time.hour().into()),
        number(time.minute().into()),
        Value::Float(seconds),
        number(time.weekday().to_sunday_zero_offset().into()),
        number(time.day_of_year() - 1),
    ])
}

fn at(cx: &Cx, seconds: f64) -> Result<(DateTime, f64), Error> {
    let whole = seconds.floor();
    #[expect(clippy::cast_possible_truncation, reason = "out of range is refused")]
    let time =
        Timestamp::from_second(whole as i64).map_err(|_| cx.raise("the time is beyond the year 9999"))?;
    let time = TimeZone::UTC.to_datetime(time);
    let fraction = seconds - whole;
    // A fraction as it was written: what doubles add is beyond microseconds.
    let second = f64::from(time.second()) + (fraction * 1e6).round() / 1e6;
    Ok((time, second))
}

fn broken_down(cx: &Cx, input: &Value, wrong: &str) -> Result<Value, Error> {
    let Some(seconds) = input.as_f64() else {
        return Err(cx.raise(wrong));
    };
    let (time, second) = at(cx, seconds)?;
    parts(cx, time, second)
}

fn civil(cx: &Cx, input: &Value, name: &str) -> Result<DateTime, Error> {
    let wrong = |what: &str| cx.raise(format!("{name} {what}"));
    let Value::Array(list) = input else {
        return Err(wrong("requires array of 6 numbers"));
    };
    if list.as_slice().len() < 6 {
        return Err(wrong("requires array of 6 numbers"));
    }
    let mut numbers = [0_i64; 6];
    for (number, item) in numbers.iter_mut().zip(list.as_slice()) {
        let Some(item) = item.as_f64().filter(|item| item.is_finite()) else {
            return Err(wrong("requires parsed datetime inputs"));
        };
        #[expect(clippy::cast_possible_truncation, reason = "out of range is refused")]
        let whole = item.floor() as i64;
        *number = whole;
    }
    let [year, month, day, hour, minute, second] = numbers;
    let made = || -> Option<DateTime> {
        let year = i16::try_from(year).ok()?;
        let date = Date::new(year, i8::try_from(month + 1).ok()?, i8::try_from(day).ok()?).ok()?;
        let (hour, minute) = (i8::try_from(hour).ok()?, i8::try_from(minute).ok()?);
        let time = Time::new(hour, minute, i8::try_from(second.min(59)).ok()?, 0).ok()?;
        Some(date.to_datetime(time))
    };
    made().ok_or_else(|| wrong("requires parsed datetime inputs: a part is out of its range"))
}

fn format(cx: &Cx, input: &Value, layout: &Value, name: &str) -> Result<Value, Error> {
    let time = match input.as_f64() {
        Some(seconds) => at(cx, seconds)?.0,
        None => match input {
            Value::Array(_) => civil(cx, input, &format!("{name}/1"))?,
            _ => return Err(cx.raise(format!("{name}/1 requires parsed datetime inputs"))),
        },
    };
    let Some(layout) = layout.as_str() else {
        return Err(cx.raise(format!("{name}/1 requires a string format")));
    };
    cx.spend_bytes(layout.len() * 64)?;
    cx.make.room(layout.len() * 64)?;
    let zoned = time.to_zoned(TimeZone::UTC).map_err(|_| cx.raise("the time is beyond the year 9999"))?;
    let text = jiff::fmt::strtime::format(layout, &zoned)
        .map_err(|error| cx.raise(format!("{name}/1: {layout:?}: {error}")))?;
    cx.make.text(text)
}

fn parse(cx: &Cx, input: Value, arguments: &[Value]) -> Result<Value, Error> {
    let (Some(text), Some(layout)) = (input.as_str(), arguments[0].as_str()) else {
        return Err(
            cx.raise(format!("strptime/1 requires string inputs and arguments: {}", described(&input)))
        );
    };
    cx.spend_bytes((text.len() + layout.len()) * 8)?;
    let failed = || cx.raise(format!("date {text:?} does not match format {layout:?}"));
    let parsed = BrokenDownTime::parse(layout, text).map_err(|_| failed())?;
    let date = match parsed.to_date() {
        Ok(date) => date,
        Err(_) => Date::new(1900, 1, 1).map_err(|_| failed())?,
    };
    let time = parsed.to_time().unwrap_or(Time::midnight());
    let mut at = date.to_datetime(time);
    if let Some(offset) = parsed.offset() {
        let utc = offset.to_timestamp(at).map_err(|_| failed())?;
        at = TimeZone::UTC.to_datetime(utc);
    }
    parts(cx, at, f64::from(at.second()))
}
