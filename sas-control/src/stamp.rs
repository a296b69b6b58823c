//! Times as people read them.

use sas_core::Timestamp;

/// RFC 3339 in UTC with milliseconds, such as `2026-01-05T00:00:00.000Z`. The store keeps nanoseconds; JSON's numbers
/// would lose them, and nobody reads them.
pub(crate) fn rfc3339(time: Timestamp) -> String {
    const DAY: i64 = 86_400;
    let (seconds, millis) = (time.as_secs(), time.as_millis().rem_euclid(1000));
    let (days, second) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    // Days are counted from 0000-03-01, so that the leap day is the last of its year: every month then begins at
    // (153 m + 2) / 5, and 400 years have 146,097 days.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}.{millis:03}Z", second % 60)
}

#[cfg(test)]
mod tests {
    use super::rfc3339;
    use sas_core::Timestamp;

    #[test]
    fn times_are_written_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_799, "2000-02-29T23:59:59.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_767_571_200, "2026-01-05T00:00:00.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(rfc3339(Timestamp::from_secs(seconds)), expected);
        }
        assert_eq!(rfc3339(Timestamp(1_999_999)), "1970-01-01T00:00:00.001Z");
    }
}
