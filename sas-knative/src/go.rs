//! Numbers and booleans as Go's `strconv` reads them, and durations as its `time` writes them: annotations mean what they
//! mean there. Durations are read by [`sas_core::parse_duration`].

use std::fmt;

/// Why a text is not what it should be. It knows neither the field nor the value, so it does not become an error of the
/// platform by `?`: whoever parses a field adds both ([`sas_core::SpecErrors::push`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// It is not written as such a value is.
    #[error("invalid syntax")]
    Syntax,
    /// It is, but no such value can be held.
    #[error("value out of range")]
    Range,
}

/// `strconv.ParseBool`: 1, t, T, TRUE, true, True and their opposites.
///
/// # Errors
/// `Syntax` for anything else.
pub fn parse_bool(text: &str) -> Result<bool, ParseError> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(ParseError::Syntax),
    }
}

/// `strconv.ParseInt(text, 10, 64)`.
///
/// # Errors
/// `Syntax`, or `Range` beyond 64 bits.
pub fn parse_int(text: &str) -> Result<i64, ParseError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ParseError::Syntax);
    }
    text.parse().map_err(|_| ParseError::Range)
}

/// `strconv.ParseInt(text, 10, 32)`.
pub(super) fn parse_int32(text: &str) -> Result<i32, ParseError> {
    i32::try_from(parse_int(text)?).map_err(|_| ParseError::Range)
}

/// `strconv.ParseFloat(text, 64)`: decimal and hexadecimal, underscores between digits, `NaN`, `Inf`, `Infinity`.
///
/// # Errors
/// `Syntax`, or `Range` when it would be infinite without saying so.
pub fn parse_float(text: &str) -> Result<f64, ParseError> {
    if let Some(special) = special(text) {
        return Ok(special);
    }
    if !is_float(text) {
        return Err(ParseError::Syntax);
    }
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(&plain);
    let value = match unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        Some(hex) => hexadecimal(hex) * if plain.starts_with('-') { -1.0 } else { 1.0 },
        None => plain.parse().map_err(|_| ParseError::Syntax)?,
    };
    if value.is_infinite() { Err(ParseError::Range) } else { Ok(value) }
}

fn special(text: &str) -> Option<f64> {
    let (sign, rest) = match text.as_bytes().first()? {
        b'+' => (Some(1.0), &text[1..]),
        b'-' => (Some(-1.0), &text[1..]),
        _ => (None, text),
    };
    match rest.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => Some(f64::INFINITY * sign.unwrap_or(1.0)),
        "nan" if sign.is_none() => Some(f64::NAN),
        _ => None,
    }
}

/// Whether it is written as Go writes floating-point literals.
fn is_float(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let hex = text.len() > 2 && text.as_bytes()[0] == b'0' && matches!(text.as_bytes()[1], b'x' | b'X');
    let body = if hex { &text[2..] } else { text };
    let (mantissa, exponent) = match body.find(if hex { ['p', 'P'] } else { ['e', 'E'] }) {
        Some(at) => (&body[..at], Some(&body[at + 1..])),
        None => (body, None),
    };
    let digit = |byte: u8| if hex { byte.is_ascii_hexdigit() } else { byte.is_ascii_digit() };
    let mut digits = 0;
    let mut points = 0;
    for byte in mantissa.bytes() {
        match byte {
            b'.' => points += 1,
            b'_' => {}
            byte if digit(byte) => digits += 1,
            _ => return false,
        }
    }
    if digits == 0 || points > 1 {
        return false;
    }
    match exponent {
        None if hex => return false,
        None => {}
        Some(exponent) => {
            let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
            if !exponent.bytes().next().is_some_and(|byte| byte.is_ascii_digit())
                || !exponent.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
            {
                return false;
            }
        }
    }
    !text.contains('_') || underscores_between_digits(text, hex)
}

fn underscores_between_digits(text: &str, hex: bool) -> bool {
    // A base prefix counts as a digit, so that 0x_1 is fine.
    let mut before = if hex { '0' } else { '^' };
    for byte in text.bytes().skip(if hex { 2 } else { 0 }) {
        if byte.is_ascii_digit() || hex && byte.is_ascii_hexdigit() {
            before = '0';
        } else if byte == b'_' {
            if before != '0' {
                return false;
            }
            before = '_';
        } else {
            if before == '_' {
                return false;
            }
            before = '!';
        }
    }
    before != '_'
}

/// The value of a well-formed hexadecimal float without its prefix, rounded half to even.
fn hexadecimal(text: &str) -> f64 {
    let (mantissa, exponent) = text.split_once(['p', 'P']).unwrap_or((text, "0"));
    // Beyond this the value is 0 or infinite whatever the mantissa says, as long as that is short enough to type.
    let mut exponent: i64 = exponent.parse::<i64>().map_or_else(
        |_| if exponent.starts_with('-') { -1 << 40 } else { 1 << 40 },
        |exponent| exponent.clamp(-1 << 40, 1 << 40),
    );
    let mut value: u64 = 0;
    let mut sticky = false;
    let mut fraction = false;
    for byte in mantissa.bytes() {
        let Some(digit) = char::from(byte).to_digit(16) else {
            fraction = true;
            continue;
        };
        if value >> 58 == 0 {
            value = value << 4 | u64::from(digit);
            exponent -= if fraction { 4 } else { 0 };
        } else {
            sticky |= digit != 0;
            exponent += if fraction { 0 } else { 4 };
        }
    }
    if value == 0 {
        return 0.0;
    }
    let top = 63 - i64::from(value.leading_zeros());
    // How many low bits do not fit: more of them when the result is subnormal.
    let lowest = (top + exponent - 52).max(-1074);
    let drop = lowest - exponent;
    let (mut kept, scale) = if drop <= 0 {
        (value, exponent)
    } else if drop > 64 {
        (0, lowest)
    } else {
        let wide = u128::from(value);
        let kept = wide >> drop;
        let rest = wide & ((1 << drop) - 1);
        let half = 1_u128 << (drop - 1);
        let up = rest > half || rest == half && (sticky || kept & 1 == 1);
        (u64::try_from(kept).unwrap_or(u64::MAX) + u64::from(up), lowest)
    };
    if kept == 0 {
        return 0.0;
    }
    let mut scale = scale;
    while kept.trailing_zeros() > 0 && kept >> 53 != 0 {
        kept >>= 1;
        scale += 1;
    }
    // Exact: the kept bits fit, and each factor is a power of two that does not round before the last.
    let mut result = kept as f64;
    while scale > 0 {
        let step = scale.min(1000);
        result *= 2_f64.powi(i32::try_from(step).unwrap_or(1000));
        scale -= step;
        if result.is_infinite() {
            return result;
        }
    }
    while scale < 0 {
        let step = (-scale).min(1000);
        result *= 2_f64.powi(-i32::try_from(step).unwrap_or(1000));
        scale += step;
        if result == 0.0 {
            return result;
        }
    }
    result
}

/// Nanoseconds as Go prints a `time.Duration`: `1h1m0s`, `1.5s`, `100ms`, `0s`.
pub fn format_duration(nanos: i64) -> impl fmt::Display {
    struct Go(i64);
    impl fmt::Display for Go {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let nanos = self.0.unsigned_abs();
            if self.0 < 0 {
                f.write_str("-")?;
            }
            let decimal = |f: &mut fmt::Formatter<'_>, value: u64, unit: u64, name: &str| {
                let (whole, part) = (value / unit, value % unit);
                write!(f, "{whole}")?;
                if part > 0 {
                    let width = unit.ilog10() as usize;
                    let text = format!("{part:0width$}");
                    write!(f, ".{}", text.trim_end_matches('0'))?;
                }
                f.write_str(name)
            };
            match nanos {
                0 => f.write_str("0s"),
                1..1_000 => write!(f, "{nanos}ns"),
                1_000..1_000_000 => decimal(f, nanos, 1_000, "\u{b5}s"),
                1_000_000..1_000_000_000 => decimal(f, nanos, 1_000_000, "ms"),
                _ => {
                    let minutes = nanos / 60_000_000_000;
                    if minutes >= 60 {
                        write!(f, "{}h", minutes / 60)?;
                    }
                    if minutes > 0 {
                        write!(f, "{}m", minutes % 60)?;
                    }
                    decimal(f, nanos % 60_000_000_000, 1_000_000_000, "s")
                }
            }
        }
    }
    Go(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (1, "1ns"),
            (1_100, "1.1\u{b5}s"),
            (100_000_000, "100ms"),
            (1_500_000_000, "1.5s"),
            (60_000_000_000, "1m0s"),
            (3_660_000_000_000, "1h1m0s"),
            (-5_000_000_000, "-5s"),
        ] {
            assert_eq!(format_duration(nanos).to_string(), text);
        }
    }

    #[test]
    fn floats_are_read_as_go_reads_them() {
        for (text, value) in [
            ("1", 1.0),
            ("+1.", 1.0),
            (".5", 0.5),
            ("1e3", 1000.0),
            ("-0", -0.0),
            ("1_23.50_0_0e+1_2", 123.5e12),
            ("0x1p-2", 0.25),
            ("0X1.8P1", 3.0),
            ("0x_1_2.3_4_5p+1_2", 74565.0),
            ("0x1.fffffffffffff8p0", 2.0),
            ("0x1.00000000000008p0", 1.0),
            ("0x1.000000000000081p0", 1.000_000_000_000_000_2),
            ("0x1p-1074", 5e-324),
            ("0x1p-1075", 0.0),
            ("0x1.8p-1075", 5e-324),
            ("0x1.fffffffffffffp1023", f64::MAX),
            ("-infinity", f64::NEG_INFINITY),
            ("+Inf", f64::INFINITY),
        ] {
            let read = parse_float(text).unwrap();
            assert_eq!(read.to_bits(), f64::to_bits(value), "{text}: {read}");
        }
        assert!(parse_float("nan").unwrap().is_nan());
        for text in [
            "", "+", ".", "1e", "1e+", "1x", " 1", "_1", "1__2", "1_.5", "1._5", "0x1", "0x.p1", "+nan",
            "1e_3",
        ] {
            assert_eq!(parse_float(text), Err(ParseError::Syntax), "{text}");
        }
        assert_eq!(parse_float("1e400"), Err(ParseError::Range));
        assert_eq!(parse_float("0x1p1024"), Err(ParseError::Range));
    }

    #[test]
    fn booleans_are_read_as_go_reads_them() {
        for text in ["1", "t", "T", "TRUE", "true", "True"] {
            assert_eq!(parse_bool(text), Ok(true));
        }
        for text in ["yes", "", "tRUE", "on"] {
            assert_eq!(parse_bool(text), Err(ParseError::Syntax));
        }
    }
}
