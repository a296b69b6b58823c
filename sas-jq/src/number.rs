//! Numbers as jq prints them.

/// The shortest digits that read back as the same double, in jq's layout: whole numbers without a point, an exponent of at
/// least two digits where the point would stand far away.
pub(crate) fn write(number: f64, out: &mut String) {
    if number.is_nan() {
        return out.push_str("null");
    }
    #[expect(clippy::cast_possible_truncation, reason = "a whole number of at most 15 digits")]
    if number.trunc() == number && number.abs() < 1e15 && (number != 0.0 || number.is_sign_positive()) {
        return out.push_str(&(number as i64).to_string());
    }
    let number = number.clamp(-f64::MAX, f64::MAX);
    if number.is_sign_negative() {
        out.push('-');
    }
    let number = number.abs();
    if number == 0.0 {
        return out.push('0');
    }
    // `{:e}` gives `d.ddde±x` with the shortest digits.
    let text = format!("{number:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let digits: String = digits.chars().filter(char::is_ascii_digit).collect();
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let (count, point) = (i32::try_from(digits.len()).unwrap_or(i32::MAX), exponent + 1);
    let zeros = |count: i32| "0".repeat(usize::try_from(count).unwrap_or(0));
    if point <= -5 || point > count + 15 {
        out.push_str(&digits[..1]);
        if digits.len() > 1 {
            out.push('.');
            out.push_str(&digits[1..]);
        }
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("e{sign}{:02}", exponent.abs()));
    } else if point <= 0 {
        out.push_str(&format!("0.{}{digits}", zeros(-point)));
    } else if point >= count {
        out.push_str(&format!("{digits}{}", zeros(point - count)));
    } else {
        let point = usize::try_from(point).unwrap_or(0);
        out.push_str(&format!("{}.{}", &digits[..point], &digits[point..]));
    }
}

pub(crate) fn to_json(number: f64) -> serde_json::Value {
    if number.is_nan() {
        return serde_json::Value::Null;
    }
    let number = number.clamp(-f64::MAX, f64::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "a whole number below 2^63")]
    if number.trunc() == number && number.abs() < 9.2e18 {
        return serde_json::Value::from(number as i64);
    }
    serde_json::Value::from(number)
}
