//! Every change of the clocks in every zone, minute by minute, against an oracle that knows no stretches and borders: it
//! walks through time, reads the wall clock each minute, and asks whether the expression names it.
//!
//! `SAS_ZONES=all cargo test --release -p sas-trigger --test triggers zones -- --nocapture` looks at all zones from 2000 to
//! 2040; without the variable a part of them is looked at.

use std::collections::HashSet;

use jiff::{
    SignedDuration, Timestamp as Instant,
    civil::{DateTime, Weekday},
    tz::TimeZone,
};
use sas_core::{Schedule, Timestamp};
use sas_trigger::{CronOptions, CronSchedule, Fold, Gap};

struct Case {
    expression: &'static str,
    /// Whether a minute on the wall is named.
    names: fn(DateTime) -> bool,
    seconds: &'static [i64],
    /// Whether it fires in every hour, so that it follows time as it passes.
    hourly: bool,
}

const CASES: [Case; 7] = [
    Case { expression: "*/20 * * * *", names: |at| at.minute() % 20 == 0, seconds: &[0], hourly: true },
    Case {
        expression: "30 2 * * *",
        names: |at| at.hour() == 2 && at.minute() == 30,
        seconds: &[0],
        hourly: false,
    },
    Case {
        expression: "0 0 * * *",
        names: |at| at.hour() == 0 && at.minute() == 0,
        seconds: &[0],
        hourly: false,
    },
    Case {
        expression: "5,35 0-4 * * *",
        names: |at| at.hour() <= 4 && matches!(at.minute(), 5 | 35),
        seconds: &[0],
        hourly: false,
    },
    Case {
        expression: "10,50 15 */2 * * *",
        names: |at| at.hour() % 2 == 0 && at.minute() == 15,
        seconds: &[10, 50],
        hourly: false,
    },
    Case {
        expression: "59 23 * * SUN,L",
        // `L` among weekdays is Saturday.
        names: |at| {
            at.hour() == 23
                && at.minute() == 59
                && matches!(at.weekday(), Weekday::Sunday | Weekday::Saturday)
        },
        seconds: &[0],
        hourly: false,
    },
    Case {
        expression: "45 1 L * *",
        names: |at| at.hour() == 1 && at.minute() == 45 && at.day() == at.date().days_in_month(),
        seconds: &[0],
        hourly: false,
    },
];

/// How far around a change is looked, in minutes; the wall repeats or loses at most a day.
const AROUND: i64 = 26 * 60;

/// The minutes around a change: the instant, the wall, whether the wall said so before, and the minutes of the wall
/// that were skipped just before it.
struct Minute {
    at: Instant,
    wall: DateTime,
    again: bool,
    skipped: Vec<DateTime>,
}

fn minutes(zone: &TimeZone, change: Instant) -> Vec<Minute> {
    let mut seen = HashSet::new();
    let mut before: Option<DateTime> = None;
    (-AROUND..AROUND)
        .map(|minute| {
            let at = change + SignedDuration::from_mins(minute);
            let wall = zone.to_datetime(at);
            let mut skipped = Vec::new();
            let mut expected = before.map_or(wall, |before| before + SignedDuration::from_mins(1));
            while expected < wall {
                skipped.push(expected);
                expected += SignedDuration::from_mins(1);
            }
            before = Some(wall);
            Minute { at, wall, again: !seen.insert(wall), skipped }
        })
        .collect()
}

fn expected(
    case: &Case,
    minutes: &[Minute],
    gap: Gap,
    fold: Fold,
    from: Instant,
    to: Instant,
) -> Vec<Instant> {
    let mut fires = Vec::new();
    for minute in minutes {
        let moved = gap == Gap::Run && !case.hourly && minute.skipped.iter().any(|wall| (case.names)(*wall));
        let left_out = fold == Fold::First && !case.hourly && minute.again;
        if moved || (case.names)(minute.wall) && !left_out {
            fires.extend(case.seconds.iter().map(|second| minute.at + SignedDuration::from_secs(*second)));
        }
    }
    fires.retain(|at| *at > from && *at <= to);
    fires
}

fn found(schedule: &CronSchedule, from: Instant, to: Instant) -> Vec<Instant> {
    let mut fires = Vec::new();
    let mut after = Timestamp::from_secs(from.as_second());
    while let Some(next) = schedule.next_after(after) {
        let at = Instant::from_second(next.as_secs()).expect("a time of this century");
        assert_eq!(next.0 % 1_000_000_000, 0, "a fire within a second");
        if at > to {
            break;
        }
        fires.push(at);
        after = next;
    }
    fires
}

#[test]
#[allow(clippy::print_stdout, reason = "the line is what a reader of the long run looks for")]
fn around_every_change_of_the_clocks_fires_are_those_that_the_wall_names() {
    let all = std::env::var("SAS_ZONES").is_ok_and(|zones| zones == "all");
    let (first_year, last_year, every) = if all { (2000, 2040, 1) } else { (2005, 2008, 12) };
    let year = |year: i16| DateTime::new(year, 1, 1, 0, 0, 0, 0).unwrap().to_zoned(TimeZone::UTC).unwrap();
    let (start, end) = (year(first_year).timestamp(), year(last_year + 1).timestamp());
    let names: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
    assert!(names.len() > 400, "only {} zones", names.len());
    let rules =
        [(Gap::Run, Fold::Both), (Gap::Run, Fold::First), (Gap::Skip, Fold::Both), (Gap::Skip, Fold::First)];
    let (mut zones, mut changes, mut fires, mut differing) = (0, 0, 0, Vec::new());
    for name in names.iter().step_by(every) {
        let zone = jiff::tz::db().get(name).unwrap();
        zones += 1;
        let schedules: Vec<Vec<CronSchedule>> = CASES
            .iter()
            .map(|case| {
                let with = |(gap, fold)| {
                    let mut options = CronOptions::default();
                    (options.gap, options.fold) = (gap, fold);
                    CronSchedule::with_options(case.expression, name, options)
                        .unwrap_or_else(|error| panic!("{name}: {error}"))
                };
                rules.map(with).into()
            })
            .collect();
        for change in
            zone.following(start).map(|change| change.timestamp()).take_while(|change| *change < end)
        {
            // The minutes of the walk have to be minutes on the wall.
            if zone.to_datetime(change).second() != 0 {
                continue;
            }
            changes += 1;
            let minutes = minutes(&zone, change);
            // The first hours are there to know what the wall said.
            let from = change - SignedDuration::from_hours(1) - SignedDuration::from_secs(1);
            let to = change + SignedDuration::from_hours(25);
            for (case, schedules) in CASES.iter().zip(&schedules) {
                for ((gap, fold), schedule) in rules.iter().zip(schedules) {
                    let (want, got) =
                        (expected(case, &minutes, *gap, *fold, from, to), found(schedule, from, to));
                    fires += want.len();
                    if want != got {
                        differing.push(format!(
                            "{name} at {change}, {}, {gap:?}, {fold:?}: want {want:?}, got {got:?}",
                            case.expression
                        ));
                    }
                }
            }
        }
    }
    println!("{zones} zones, {changes} changes, {fires} fires, {} differences", differing.len());
    assert!(changes > 100 && fires > 1_000, "hardly anything was looked at");
    let shown: Vec<_> = differing.iter().take(5).collect();
    assert!(differing.is_empty(), "first differences: {shown:#?}");
}
