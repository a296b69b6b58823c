//! Kubernetes quantities: `250m`, `1.5`, `2e3`, `64Mi`, `1G`.

/// A quantity as Kubernetes writes it, as a whole number of `unit`s: 1 for whole ones such as bytes, 1000 for
/// thousandths; rounded up, as Kubernetes does. `None` when it is malformed, negative or too large.
///
/// ```
/// use sas_knative::parse_quantity;
/// assert_eq!(parse_quantity("64Mi", 1), Some(64 << 20));
/// assert_eq!(parse_quantity("250m", 1000), Some(250));
/// assert_eq!(parse_quantity("64 MB", 1), None);
/// ```
pub fn parse_quantity(text: &str, unit: u128) -> Option<u64> {
    let (numerator, denominator) = ratio(text)?;
    u64::try_from(numerator.checked_mul(unit)?.div_ceil(denominator)).ok()
}

/// A quantity as a number. `None` when it is malformed, negative or too large.
pub(crate) fn parse(text: &str) -> Option<f64> {
    let (numerator, denominator) = ratio(text)?;
    Some(numerator as f64 / denominator as f64)
}

/// A quantity as a fraction, exactly.
fn ratio(text: &str) -> Option<(u128, u128)> {
    let digits_end = text.bytes().position(|b| !(b.is_ascii_digit() || b == b'.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits_end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || number.len() > 40 {
        return None;
    }
    // value = mantissa × numerator ÷ denominator, all exact.
    let mut mantissa: u128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        mantissa = mantissa.checked_mul(10)?.checked_add(u128::from(digit - b'0'))?;
    }
    let mut denominator: u128 = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let numerator: u128 = match suffix {
        "" => 1,
        "n" | "u" | "m" => {
            denominator = denominator.checked_mul(match suffix {
                "n" => 1_000_000_000,
                "u" => 1_000_000,
                _ => 1_000,
            })?;
            1
        }
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        "P" => 1_000_000_000_000_000,
        "E" => 1_000_000_000_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        "Pi" => 1 << 50,
        "Ei" => 1 << 60,
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_u128.checked_pow(exponent.unsigned_abs())?;
            if exponent < 0 {
                denominator = denominator.checked_mul(power)?;
                1
            } else {
                power
            }
        }
    };
    Some((mantissa.checked_mul(numerator)?, denominator))
}

#[cfg(test)]
mod tests {
    use super::{parse, parse_quantity};

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        for (text, unit, expected) in [
            ("250m", 1000, Some(250)),
            ("1", 1000, Some(1000)),
            ("0.5", 1000, Some(500)),
            (".5", 1000, Some(500)),
            ("1.", 1, Some(1)),
            ("1e3", 1, Some(1000)),
            ("1E-3", 1000, Some(1)),
            ("100M", 1, Some(100_000_000)),
            ("20Mi", 1, Some(20 << 20)),
            ("1.5Gi", 1, Some(3 << 29)),
            ("1Ei", 1, Some(1 << 60)),
            ("0.1m", 1000, Some(1)),
            ("100u", 1000, Some(1)),
            ("0", 1, Some(0)),
            ("16Ei", 1, None),
            ("", 1, None),
            (".", 1, None),
            ("-1", 1, None),
            ("1Kb", 1, None),
            ("1 Gi", 1, None),
            ("1e", 1, None),
            ("1e999999999", 1, None),
            ("1.2.3", 1, None),
            ("99999999999999999999999999999999999999999999", 1, None),
        ] {
            assert_eq!(parse_quantity(text, unit), expected, "{text}");
        }
    }

    #[test]
    fn a_metrics_target_is_a_quantity_too() {
        for (text, expected) in [
            ("10", Some(10.0)),
            ("500m", Some(0.5)),
            ("512Mi", Some(536_870_912.0)),
            ("2Pi", Some(2.0_f64.powi(51))),
            ("250n", Some(2.5e-7)),
            ("1e3", Some(1000.0)),
            ("-1", None),
            ("NaN", None),
            ("many", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
