//! What the vectors do not hold: macros, rules for changing clocks, hostile expressions, laws.

use std::time::Duration;

use proptest::prelude::*;
use sas_core::{Schedule, Timestamp};
use sas_trigger::{CronOptions, CronSchedule, Fold, Gap};

/// 2026-01-05 00:00:00 UTC, a Monday.
const START: Timestamp = Timestamp::from_secs(1_767_571_200);

fn seconds_after_start(expression: &str, zone: &str, count: usize) -> Vec<i64> {
    let schedule = CronSchedule::new(expression, zone).unwrap_or_else(|error| panic!("{error}"));
    let mut at = START;
    let mut fires = Vec::new();
    while fires.len() < count
        && let Some(next) = schedule.next_after(at)
    {
        at = next;
        fires.push((at.0 - START.0) / 1_000_000_000);
    }
    fires
}

#[test]
fn a_schedule_tells_what_it_was_made_of() {
    let schedule = CronSchedule::new("*/5 * * * *", "Europe/Berlin").expect("an expression");
    assert_eq!(schedule.expression(), "*/5 * * * *");
    assert!(format!("{schedule:?}").contains("*/5 * * * *"), "{schedule:?}");
}

#[test]
fn a_period_ends_with_time_itself() {
    let schedule = CronSchedule::new("@every 10s", "UTC").expect("an expression");
    let second = 1_000_000_000;
    assert_eq!(schedule.next_after(Timestamp(second / 2)), Some(Timestamp(10 * second)));
    assert_eq!(schedule.next_after(Timestamp(i64::MAX)), None);
    assert_eq!(schedule.next_after(Timestamp(i64::MAX - second)), None);
}

#[test]
fn the_nearest_weekday_stays_in_its_month() {
    for (day, month, expected) in [
        (1, 8, 3),    // a Saturday: not back into July
        (1, 2, 2),    // a Sunday
        (2, 8, 3),    // a Sunday
        (15, 8, 14),  // a Saturday
        (16, 8, 17),  // a Sunday
        (31, 5, 29),  // a Sunday: not on into June
        (30, 8, 31),  // a Sunday, the last day but one
        (31, 10, 30), // a Saturday
        (28, 2, 27),  // a Saturday
        (7, 4, 7),    // a Tuesday
        (1, 6, 1),    // a Monday
        (31, 7, 31),  // a Friday
    ] {
        let schedule = CronSchedule::new(&format!("0 0 {day}W {month} *"), "UTC").expect("an expression");
        let fire = schedule.next_after(START).expect("within a year");
        let wanted =
            jiff::civil::date(2026, month, expected).to_zoned(jiff::tz::TimeZone::UTC).expect("a day");
        assert_eq!(i128::from(fire.0), wanted.timestamp().as_nanosecond(), "{day}W of month {month}");
    }
}

#[test]
fn macros_numbers_and_names_mean_what_crontab_means() {
    const DAY: i64 = 86_400;
    for (expression, expected) in [
        ("@hourly", vec![3600, 7200]),
        ("@daily", vec![DAY, 2 * DAY]),
        ("@midnight", vec![DAY, 2 * DAY]),
        ("@weekly", vec![6 * DAY, 13 * DAY]),
        ("@every 90s", vec![90, 180]),
        ("0 0 * * 0", vec![6 * DAY, 13 * DAY]),
        ("0 0 * * 7", vec![6 * DAY, 13 * DAY]),
        ("0 0 * * 5-7", vec![4 * DAY, 5 * DAY, 6 * DAY]),
        ("0 0 * * fri-MON", vec![4 * DAY, 5 * DAY, 6 * DAY, 7 * DAY]),
        ("0 0 * * MON#2", vec![7 * DAY]),
        ("0 0 * * FRIL", vec![25 * DAY]),
        ("0 0 L * *", vec![26 * DAY]),
        ("0 0 L-3 * ?", vec![23 * DAY]),
        ("0 0 LW * ?", vec![25 * DAY]),
        ("0 0 10W * ?", vec![4 * DAY]),
        ("0 0 */2 jan ?", vec![2 * DAY, 4 * DAY]),
        ("CRON_TZ=Asia/Tokyo 0 9 * * *", vec![DAY]),
        ("TZ=UTC 0 1 * * *", vec![3600]),
    ] {
        assert_eq!(seconds_after_start(expression, "UTC", expected.len()), expected, "{expression}");
    }
}

#[test]
fn an_expression_that_never_matches_says_so_at_once() {
    for expression in ["0 0 30 2 *", "0 0 31 4,6,9,11 *", "0 0 0 1 1 ? 1999", "0 0 0 ? 2 MON#5 2027"] {
        let schedule = CronSchedule::new(expression, "Europe/Berlin").unwrap();
        assert_eq!(schedule.next_after(START), None, "{expression}");
    }
}

#[test]
fn when_clocks_go_forward_a_skipped_fire_runs_or_is_left_out_by_the_rule() {
    // 2026-03-29 01:00 UTC: Berlin goes from 2:00 to 3:00.
    let change = Timestamp::from_secs(1_774_746_000);
    let before = change - Duration::from_secs(3600);
    let next = |gap: Gap, expression: &str| {
        let mut options = CronOptions::default();
        options.gap = gap;
        CronSchedule::with_options(expression, "Europe/Berlin", options).unwrap().next_after(before).unwrap()
    };
    assert_eq!(next(Gap::Run, "30 2 * * *"), change);
    assert_eq!(next(Gap::Skip, "30 2 * * *"), change + Duration::from_secs(86_400 - 1800));
    // One that fires in every hour has nothing to make up for: 1:30, then 3:30.
    let hourly = CronSchedule::new("30 * * * *", "Europe/Berlin").unwrap();
    let first = hourly.next_after(before).unwrap();
    assert_eq!(first, change - Duration::from_secs(1800));
    assert_eq!(hourly.next_after(first).unwrap(), change + Duration::from_secs(1800));
}

#[test]
fn when_clocks_go_back_a_repeated_fire_runs_twice_or_once_by_the_rule() {
    // 2026-10-25 01:00 UTC: Berlin goes from 3:00 to 2:00.
    let change = Timestamp::from_secs(1_792_890_000);
    let before = change - Duration::from_secs(3600);
    let fires = |fold: Fold, expression: &str| {
        let mut options = CronOptions::default();
        options.fold = fold;
        let schedule = CronSchedule::with_options(expression, "Europe/Berlin", options).unwrap();
        let first = schedule.next_after(before).unwrap();
        let second = schedule.next_after(first).unwrap();
        [first, second].map(|fire| (fire.0 - change.0) / 1_000_000_000)
    };
    assert_eq!(fires(Fold::Both, "30 2 * * *"), [-1800, 1800]);
    assert_eq!(fires(Fold::First, "30 2 * * *"), [-1800, 1800 + 86_400]);
    assert_eq!(fires(Fold::First, "30 * * * *"), [-1800, 1800], "every hour is every hour");
    // Asked in the middle of the second pass, the first rule does not fire in it.
    let mut first = CronOptions::default();
    first.fold = Fold::First;
    let schedule = CronSchedule::with_options("30 2 * * *", "Europe/Berlin", first).unwrap();
    let fire = schedule.next_after(change + Duration::from_secs(60)).unwrap();
    assert_eq!((fire.0 - change.0) / 1_000_000_000, 1800 + 86_400);
}

#[test]
fn each_mistake_names_its_part() {
    for (expression, part) in [
        ("61 * * * *", "minute"),
        ("* 24 * * *", "hour"),
        ("* * 0 * *", "day of month"),
        ("* * 32W * *", "day of month"),
        ("* * L-31 * *", "day of month"),
        ("* * * 13 *", "month"),
        ("* * * FOO *", "month"),
        ("* * * * 8", "day of week"),
        ("* * * * MON#6", "day of week"),
        ("* * * * MON/0", "day of week"),
        ("* * * * 1-", "day of week"),
        ("60 * * * * *", "second"),
        ("0 0 0 1 1 ? 1900", "year"),
        ("* * * *", "expression"),
        ("* * * * * * * *", "expression"),
        ("@reboot", "expression"),
        ("@every 0s", "expression"),
        ("@every 1x", "expression"),
        ("TZ=UTC", "expression"),
        ("TZ=Nowhere * * * * *", "timezone"),
        ("", "expression"),
    ] {
        assert_eq!(CronSchedule::new(expression, "UTC").unwrap_err().part, part, "{expression}");
    }
    assert_eq!(CronSchedule::new("* * * * *", "").unwrap_err().part, "timezone");
    assert!(CronSchedule::new(&"1,".repeat(10_000), "UTC").is_err());
}

/// Sets as a reader without tricks would keep them, to check the matcher against minute by minute.
fn field(least: u32, most: u32) -> impl Strategy<Value = (String, Vec<u32>)> {
    let all: Vec<u32> = (least..=most).collect();
    prop_oneof![
        2 => Just(("*".to_owned(), all)),
        2 => proptest::collection::btree_set(least..=most, 1..4).prop_map(|set| {
            let values: Vec<u32> = set.into_iter().collect();
            (values.iter().map(u32::to_string).collect::<Vec<_>>().join(","), values)
        }),
        1 => (least..=most, least..=most, 1_u32..5).prop_map(|(a, b, step)| {
            let (from, to) = (a.min(b), a.max(b));
            (format!("{from}-{to}/{step}"), (from..=to).step_by(step as usize).collect())
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_utc_fires_are_exactly_the_minutes_that_match(
        minute in field(0, 59), hour in field(0, 23), month in field(1, 12), offset in 0_i64..400 * 86_400
    ) {
        let expression = format!("{} {} * {} *", minute.0, hour.0, month.0);
        let schedule = CronSchedule::new(&expression, "UTC").unwrap();
        let from = START + Duration::from_secs(offset as u64);
        let fire = schedule.next_after(from).unwrap();
        let matches = |at: i64| {
            let date = jiff::Timestamp::from_second(at).unwrap().to_zoned(jiff::tz::TimeZone::UTC);
            minute.1.contains(&(date.minute() as u32)) && hour.1.contains(&(date.hour() as u32))
                && month.1.contains(&(date.month() as u32)) && date.second() == 0
        };
        prop_assert!(fire > from);
        prop_assert!(matches(fire.as_secs()));
        // No match lies between; looked at minute by minute for at most two days before the fire.
        let first = (from.as_secs() / 60 + 1) * 60;
        let mut at = first.max(fire.as_secs() - 2 * 86_400);
        while at < fire.as_secs() {
            prop_assert!(!matches(at), "{expression} at {at}");
            at += 60;
        }
    }

    #[test]
    fn fires_rise_in_every_zone_and_do_not_depend_on_where_one_asks_from(
        zone in prop::sample::select(vec![
            "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kathmandu", "Africa/Casablanca",
            "America/St_Johns", "Asia/Tehran", "Antarctica/Troll", "Pacific/Chatham",
        ]),
        minute in field(0, 59), hour in field(0, 23), offset in 0_u64..15 * 365 * 86_400,
        gap in prop::sample::select(vec![Gap::Run, Gap::Skip]), fold in prop::sample::select(vec![Fold::Both, Fold::First]),
    ) {
        let mut options = CronOptions::default();
        options.gap = gap;
        options.fold = fold;
        let expression = format!("{} {} * * *", minute.0, hour.0);
        let schedule = CronSchedule::with_options(&expression, zone, options).unwrap();
        let from = START + Duration::from_secs(offset);
        let first = schedule.next_after(from).unwrap();
        prop_assert!(first > from);
        prop_assert!(first.since(from) <= Duration::from_secs(3 * 86_400));
        let between = Timestamp(from.0 + (first.0 - from.0) / 2);
        prop_assert_eq!(schedule.next_after(between), Some(first));
        prop_assert_eq!(schedule.next_after(first - Duration::from_nanos(1)), Some(first));
        let second = schedule.next_after(first).unwrap();
        prop_assert!(second > first);
    }

    #[test]
    fn any_text_is_an_expression_or_an_error(text in "[-*/?,#@LWlw0-9A-Za-z =]{0,60}", zone in "\\PC{0,20}") {
        if let Ok(schedule) = CronSchedule::new(&text, "Europe/Berlin") {
            let _ = schedule.next_after(START);
            let _ = schedule.next_after(Timestamp(i64::MAX));
            let _ = schedule.next_after(Timestamp(i64::MIN));
        }
        let _ = CronSchedule::new("* * * * *", &zone);
    }
}

#[test]
fn quartz_ranges_go_over_the_end_of_every_field_but_years() {
    let first = |expression: &str, options: CronOptions, count: usize| {
        let schedule =
            CronSchedule::with_options(expression, "UTC", options).map_err(|error| error.to_string())?;
        let mut at = Timestamp::from_secs(1_767_225_599); // 2025-12-31T23:59:59Z
        let mut fires = Vec::new();
        for _ in 0..count {
            at = schedule.next_after(at).ok_or("no more")?;
            fires.push(at);
        }
        Ok::<_, String>(fires)
    };
    for (wrapping, list) in [
        ("0 0 22-2 * * ?", "0 0 22,23,0,1,2 * * ?"),
        ("0 0 22-4/3 * * ?", "0 0 22,1,4 * * ?"),
        ("50-10/5 * * * * ?", "50,55,0,5,10 * * * * ?"),
        ("0 58-1 * * * ?", "0 58,59,0,1 * * * ?"),
        ("0 0 0 25-5 * ?", "0 0 0 25,26,27,28,29,30,31,1,2,3,4,5 * ?"),
        ("0 0 0 1 NOV-FEB ?", "0 0 0 1 11,12,1,2 ?"),
        ("0 0 0 1 11-2/2 ?", "0 0 0 1 11,1 ?"),
        ("0 0 0 ? * FRI-MON", "0 0 0 ? * 6,7,1,2"),
        ("0 0 3,22-1 * * ?", "0 0 3,22,23,0,1 * * ?"),
    ] {
        let expected = first(list, CronOptions::quartz(), 60).expect(list);
        assert_eq!(first(wrapping, CronOptions::quartz(), 60), Ok(expected), "{wrapping}");
    }
    for refused in
        ["0 0 0 1 1 ? 2030-2027", "0 0 22-25 * * ?", "0 0 25-2 * * ?", "0 0 22-2/0 * * ?", "0 60-2 * * * ?"]
    {
        assert!(first(refused, CronOptions::quartz(), 1).is_err(), "{refused}");
    }
    assert!(first("0 22-2 * * *", CronOptions::default(), 1).is_err(), "crontab has no such range");
}
