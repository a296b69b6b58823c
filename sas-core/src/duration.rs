//! Durations in text: one way to write them in annotations, options of triggers and options of runtimes.

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationError {
    /// It is not written as durations are.
    #[error("invalid syntax")]
    Syntax,
    /// It is, but 63 bits of nanoseconds can't hold it.
    #[error("value out of range")]
    Range,
    /// A number has no unit.
    #[error("missing unit in duration")]
    MissingUnit,
    /// A number has a unit that there is not.
    #[error("unknown unit in duration")]
    UnknownUnit,
}

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("\u{b5}s", 1_000),
    ("\u{3bc}s", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// A duration as Go's `time.ParseDuration` reads it, in nanoseconds: `0`, or a sign and numbers with units such as
/// `1h30m` and `-1.5s`. Whoever takes no negative one converts it to `u64`.
///
/// ```
/// assert_eq!(sas_core::parse_duration("1m0.5s"), Ok(60_500_000_000));
/// assert_eq!(sas_core::parse_duration("90"), Err(sas_core::DurationError::MissingUnit));
/// ```
///
/// # Errors
/// What is wrong with it. The error knows neither field nor value: whoever reads a field adds both.
pub fn parse_duration(text: &str) -> Result<i64, DurationError> {
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['+', '-']).unwrap_or(text);
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(DurationError::Syntax);
    }
    const LIMIT: u64 = 1 << 63;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let whole_len = rest.bytes().take_while(u8::is_ascii_digit).count();
        let mut whole: u64 = 0;
        for byte in rest[..whole_len].bytes() {
            whole = whole
                .checked_mul(10)
                .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                .filter(|value| *value <= LIMIT)
                .ok_or(DurationError::Range)?;
        }
        rest = &rest[whole_len..];
        let (mut fraction, mut scale, mut fraction_len) = (0_u64, 1.0_f64, 0);
        if let Some(after) = rest.strip_prefix('.') {
            fraction_len = after.bytes().take_while(u8::is_ascii_digit).count();
            let mut full = false;
            for byte in after[..fraction_len].bytes() {
                // Digits beyond what 63 bits hold are dropped, not refused.
                let next = fraction
                    .checked_mul(10)
                    .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                    .filter(|value| *value <= LIMIT);
                match next {
                    Some(next) if !full => {
                        fraction = next;
                        scale *= 10.0;
                    }
                    _ => full = true,
                }
            }
            rest = &after[fraction_len..];
        }
        if whole_len == 0 && fraction_len == 0 {
            return Err(DurationError::Syntax);
        }
        let unit_len = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        if unit_len == 0 {
            return Err(DurationError::MissingUnit);
        }
        let (_, unit) =
            UNITS.iter().find(|(name, _)| *name == &rest[..unit_len]).ok_or(DurationError::UnknownUnit)?;
        rest = &rest[unit_len..];
        let mut value =
            whole.checked_mul(*unit).filter(|value| *value <= LIMIT).ok_or(DurationError::Range)?;
        if fraction > 0 {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "below one unit, so it fits"
            )]
            let part = (fraction as f64 * (*unit as f64 / scale)) as u64;
            value = value.checked_add(part).filter(|value| *value <= LIMIT).ok_or(DurationError::Range)?;
        }
        total = total.checked_add(value).filter(|value| *value <= LIMIT).ok_or(DurationError::Range)?;
    }
    if negative {
        return Ok(0_i64.wrapping_sub_unsigned(total));
    }
    i64::try_from(total).map_err(|_| DurationError::Range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let hour = 3_600_000_000_000;
        for (text, nanos) in [
            ("0", 0),
            ("-0", 0),
            ("+5s", 5_000_000_000),
            ("1h30m", hour + hour / 2),
            ("1.5s", 1_500_000_000),
            (".5m", 30_000_000_000),
            ("5.s", 5_000_000_000),
            ("-1.5h", -hour - hour / 2),
            ("3\u{b5}s2\u{3bc}s1us", 6_000),
            ("0.100000000000000000000h", 360_000_000_000),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
            ("0.830103483285477580700h", 2_988_372_539_827),
        ] {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
        }
        for (text, error) in [
            ("", DurationError::Syntax),
            ("-", DurationError::Syntax),
            ("3", DurationError::MissingUnit),
            ("s", DurationError::Syntax),
            (".s", DurationError::Syntax),
            (" 1s", DurationError::Syntax),
            ("1s ", DurationError::UnknownUnit),
            ("1d", DurationError::UnknownUnit),
            ("1S", DurationError::UnknownUnit),
            ("9223372036854775808ns", DurationError::Range),
            ("3000000h", DurationError::Range),
        ] {
            assert_eq!(parse_duration(text), Err(error), "{text}");
        }
    }
}
