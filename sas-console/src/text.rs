//! How numbers, times and foreign text are written.

use maud::{Markup, html};

/// Characters of a line of a log that are shown.
pub(crate) const LINE: usize = 2000;
/// Lines of data that are shown.
const ROWS: usize = 400;

/// Milliseconds as a person reads them: three digits that count.
pub(crate) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 0.0005 => "0 ms".to_owned(),
        ms if ms < 10.0 => format!("{ms:.1} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        ms if ms < 60_000.0 => format!("{:.2} s", ms / 1000.0),
        ms => ago((ms / 1000.0) as i64),
    }
}

/// Seconds as a span of time: the largest unit, or two.
pub(crate) fn ago(seconds: i64) -> String {
    match seconds.max(0) {
        s if s < 60 => format!("{s} s"),
        s if s < 3600 => format!("{} min", s / 60),
        s if s < 86_400 => format!("{} h", s / 3600),
        s => format!("{} d", s / 86_400),
    }
}

/// Bytes by powers of 1024.
pub(crate) fn bytes(count: f64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = if count < 1024.0 { 0 } else { ((count.log2() / 10.0) as usize).min(4) };
    let value = count / 1024_f64.powi(power as i32);
    if power == 0 || value >= 100.0 {
        format!("{value:.0} {}", units[power])
    } else {
        format!("{value:.1} {}", units[power])
    }
}

/// A rate per second; nothing is a dash.
pub(crate) fn rate(per_second: f64) -> String {
    match per_second {
        rate if rate <= 0.0 => "–".to_owned(),
        rate if rate < 10.0 => format!("{rate:.1}"),
        rate => count(rate.round() as u64),
    }
}

/// A count with its thousands apart.
pub(crate) fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    text
}

/// Seconds since 1970 of a time in RFC 3339 in UTC, as the admin API writes it.
pub(crate) fn seconds(rfc3339: &str) -> Option<f64> {
    let number = |range: std::ops::Range<usize>| rfc3339.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute) = (number(11..13)?, number(14..16)?);
    let second: f64 = rfc3339.get(17..)?.strip_suffix('Z')?.parse().ok()?;
    // Days since 1970, where years begin in March: the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year.div_euclid(4) - year.div_euclid(100)
        + year.div_euclid(400)
        + (153 * month + 2) / 5
        + day
        - 1
        - 719_468;
    Some((days * 86_400 + hour * 3600 + minute * 60) as f64 + second)
}

/// The time of day of a moment, in UTC.
pub(crate) fn clock(seconds: i64) -> String {
    let of_day = seconds.rem_euclid(86_400);
    format!("{:02}:{:02}:{:02}", of_day / 3600, of_day / 60 % 60, of_day % 60)
}

/// A moment: the time of day in UTC, and the whole of it for who asks. Every clock here is the platform's: the browser's may
/// be in another zone, or wrong.
pub(crate) fn moment(rfc3339: &str) -> Markup {
    let time = rfc3339.get(11..19).unwrap_or(rfc3339);
    html! { time datetime=(rfc3339) title=(rfc3339) { (time) } }
}

/// How long ago a moment was.
pub(crate) fn age(rfc3339: &str, now: i64) -> Markup {
    let age = seconds(rfc3339).map_or_else(|| rfc3339.to_owned(), |at| ago(now - at as i64));
    html! { time datetime=(rfc3339) title=(rfc3339) { (age) } }
}

/// Foreign text as it may be shown: without escape sequences of terminals and without control characters, and no longer
/// than `most` characters. The second value is how many bytes were left out at the end.
pub(crate) fn tame(text: &str, most: usize) -> (String, usize) {
    let mut shown = String::new();
    let (mut rest, mut kept) = (text, 0);
    while let Some(first) = rest.chars().next() {
        if kept >= most {
            break;
        }
        let sequence = escape_sequence(rest);
        if sequence > 0 {
            rest = &rest[sequence..];
            continue;
        }
        rest = &rest[first.len_utf8()..];
        // Marks that change the direction of what follows would make a line say something else than it does.
        let turns =
            matches!(first, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}');
        if first == '\t' {
            shown.push(' ');
        } else if first.is_control() || turns {
            shown.push('\u{fffd}');
        } else {
            shown.push(first);
        }
        kept += 1;
    }
    (shown, rest.len())
}

/// Bytes of the escape sequence that `text` begins with: CSI, OSC and the like, or two characters.
fn escape_sequence(text: &str) -> usize {
    let bytes = text.as_bytes();
    if bytes.first() != Some(&0x1b) {
        return 0;
    }
    match bytes.get(1) {
        Some(b'[') => {
            let end = bytes[2..].iter().position(|byte| (0x40..=0x7e).contains(byte) || *byte >= 0x80);
            end.map_or(bytes.len(), |end| if bytes[2 + end] >= 0x80 { 2 + end } else { 3 + end })
        }
        Some(b']' | b'P' | b'_' | b'^' | b'X') => {
            let end = bytes[2..].iter().position(|byte| *byte == 0x07 || *byte == 0x1b);
            match end {
                Some(end) if bytes[2 + end] == 0x1b => (4 + end).min(bytes.len()),
                Some(end) => 3 + end,
                None => bytes.len(),
            }
        }
        Some(byte) if byte.is_ascii() => 2,
        _ => 1,
    }
}

/// Foreign text in a line of a page.
pub(crate) fn foreign(text: &str) -> Markup {
    let (shown, cut) = tame(text, 300);
    html! { bdi { (shown) } @if cut > 0 { span.muted { " … " (bytes(cut as f64)) " more" } } }
}

/// Foreign data as it may be shown: JSON of at most [`ROWS`] lines, each as [`tame`] leaves it.
pub(crate) fn data(value: &serde_json::Value) -> Markup {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    let lines = text.lines().count();
    html! {
        code {
            @for line in text.lines().take(ROWS) { bdi { (tame(line, LINE).0) } "\n" }
        }
        @if lines > ROWS { span.muted { "… " (count((lines - ROWS) as u64)) " more lines" } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_say_their_unit() {
        for (ms, text) in
            [(0.0, "0 ms"), (0.42, "0.4 ms"), (42.4, "42 ms"), (1234.0, "1.23 s"), (90_000.0, "1 min")]
        {
            assert_eq!(millis(ms), text);
        }
        assert_eq!(bytes(1536.0), "1.5 KiB");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!((rate(0.0).as_str(), rate(0.25).as_str(), rate(41.6).as_str()), ("–", "0.2", "42"));
    }

    #[test]
    fn times_are_read_back() {
        assert_eq!(seconds("1970-01-01T00:00:00.000Z"), Some(0.0));
        assert_eq!(seconds("2026-01-05T00:00:01.500Z"), Some(1_767_571_201.5));
        assert_eq!(seconds("2000-02-29T00:00:00.000Z"), Some(951_782_400.0));
        assert_eq!(seconds("yesterday"), None);
        assert_eq!(clock(951_782_461), "00:01:01");
    }

    #[test]
    fn hostile_text_is_tame() {
        let tamed = |text| tame(text, LINE).0;
        assert_eq!(
            tamed("\u{1b}[31mred\u{1b}[0m and \u{1b}]8;;http://evil\u{7}link\u{1b}]8;;\u{1b}\\."),
            "red and link."
        );
        assert_eq!(tamed("a\tb\r\nc\u{202e}d\u{9b}31m"), "a b\u{fffd}\u{fffd}c\u{fffd}d\u{fffd}31m");
        assert_eq!(tamed("\u{1b}"), "");
        assert_eq!(tamed("\u{1b}[é"), "é");
        assert_eq!(tamed("\u{1b}é"), "é");
        let (shown, cut) = tame(&"ü".repeat(1 << 19), LINE);
        assert_eq!((shown.chars().count(), cut), (LINE, (1 << 20) - 2 * LINE));
        assert_eq!(foreign("<script>").into_string(), "<bdi>&lt;script&gt;</bdi>");
        let shown = data(&serde_json::json!({"a": "<b>\u{202e}\u{1b}"})).into_string();
        assert!(shown.contains("&lt;b&gt;\u{fffd}\\u001b"), "{shown}");
        let long = data(&serde_json::json!(vec![0; 500])).into_string();
        assert!(long.contains("… 102 more lines"), "{long}");
    }
}
