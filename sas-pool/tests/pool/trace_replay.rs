//! The replay and its policies, on excerpts of real traces, against the definitions written out plainly.

use std::{fs::File, io::BufReader, path::Path, time::Duration};

use sas_core::{CapacityPolicy, KeepAlivePolicy, RevisionKey};
use sas_pool::{
    capacity::{FastUpSlowDown, HoltWinters, MovingAverage, Seasonal, SeasonalConfig},
    keep_alive::{Fixed, Footprint, GreedyDual, Hazard, HybridHistogram},
    trace::{
        self, Function, KeepAliveScore, KeepAliveTotals, Series, Trace, TraceError, miss_at, replay_capacity,
        replay_evictions, replay_keep_alive, replay_sizes,
    },
};

fn open(name: &str) -> Trace<BufReader<File>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/traces").join(name);
    trace::open(BufReader::new(File::open(path).unwrap())).unwrap()
}

fn functions() -> Vec<Function> {
    let Trace::Functions(rows) = open("azure2019_functions_sample.csv") else { panic!("functions") };
    rows.collect::<Result<_, _>>().unwrap()
}

fn demand() -> Vec<Series> {
    let Trace::Demand(rows) = open("huawei2025_coldstarts_d14-15.csv") else { panic!("demand") };
    rows.collect().unwrap()
}

fn gaps(function: &Function) -> Vec<u64> {
    function.active.windows(2).map(|pair| u64::from(pair[1].0 - pair[0].0)).collect()
}

fn replay(policy: &mut dyn KeepAlivePolicy, function: &Function) -> (u64, u64) {
    let KeepAliveScore { cold, waste, active, .. } = replay_keep_alive(policy, RevisionKey(1), function);
    assert_eq!(active, function.active.len() as u64);
    (cold, waste)
}

#[test]
fn a_fixed_keep_alive_scores_as_its_definition() {
    for keep in [1_u64, 10, 60] {
        for row in functions().iter().filter(|row| !row.active.is_empty()) {
            let end = u64::from(row.minutes - 1 - row.active.last().unwrap().0);
            let cold = 1 + gaps(row).iter().filter(|&&gap| gap > keep).count() as u64;
            let idle: u64 =
                gaps(row).iter().map(|&gap| if gap <= keep { keep.min(gap - 1) } else { keep }).sum();
            let mut policy = Fixed::new(Duration::from_secs(60 * keep));
            assert_eq!(replay(&mut policy, row), (cold, idle + keep.min(end)), "{} at {keep}", row.id);
        }
    }
}

/// The hybrid histogram as `docs/policies.md` defines it, in floating point and without shortcuts.
fn plain_hybrid(row: &Function, fall_back: u64) -> (u64, u64) {
    let (mut bins, mut beyond, mut cold, mut waste) = (vec![0_u64; 241], 0_u64, 1, 0);
    let last = u64::from(row.minutes - row.active.last().unwrap().0);
    let all = gaps(row);
    for (at, gap) in all.iter().copied().chain([last]).enumerate() {
        let n: u64 = bins.iter().sum();
        let mean = n as f64 / 240.0;
        let sd = (bins[1..].iter().map(|&c| (c as f64 - mean).powi(2)).sum::<f64>() / 240.0).sqrt();
        let (wake, keep) = if beyond > n {
            (0, 10)
        } else if n > 0 && sd / mean >= 2.0 {
            let first = |share: f64| {
                let mut sum = 0;
                (1..=240).find(|&bin| {
                    sum += bins[bin];
                    sum as f64 >= share * n as f64
                })
            };
            let (head, tail) = (first(0.05).unwrap() as u64, first(0.99).unwrap() as u64);
            (9 * (head - 1) / 10, (11 * tail).div_ceil(10))
        } else {
            (0, fall_back)
        };
        waste += (wake.max(1)..=keep.min(gap - 1)).count() as u64;
        if at == all.len() {
            break;
        }
        cold += u64::from(!(wake..=keep).contains(&gap));
        if gap <= 240 { bins[gap as usize] += 1 } else { beyond += 1 }
    }
    (cold, waste)
}

#[test]
fn the_hybrid_histogram_scores_as_its_definition() {
    for fall_back in [240, 10] {
        for row in functions().iter().filter(|row| !row.active.is_empty()) {
            let mut policy = HybridHistogram::new(Duration::from_secs(60 * fall_back)).unwrap();
            assert_eq!(replay(&mut policy, row), plain_hybrid(row, fall_back), "{} at {fall_back}", row.id);
        }
    }
}

#[test]
fn hazard_meets_fewer_cold_starts_than_ten_minutes_and_than_the_histogram() {
    let rows = functions();
    let totals = |policy: &mut dyn KeepAlivePolicy| {
        let mut totals = KeepAliveTotals::default();
        for (slot, row) in (0..).zip(rows.iter().step_by(2)) {
            totals.add(row, replay_keep_alive(policy, RevisionKey::new(slot, 0), row));
        }
        totals
    };
    let mut hazard = Hazard::default();
    let (ours, histogram) = (totals(&mut hazard), totals(&mut HybridHistogram::default()));
    let ten = totals(&mut Fixed::new(Duration::from_secs(600)));
    assert!(ours.cold() < 0.6 * ten.cold(), "{} {}", ours.cold(), ten.cold());
    assert!(
        ours.waste() < 1.2 * histogram.waste() && ours.cold() < 0.8 * histogram.cold(),
        "{} {}",
        ours.waste(),
        histogram.waste()
    );
    assert!(hazard.bytes() <= 41 * 560, "{} bytes for 41 functions", hazard.bytes());
}

#[test]
fn evictions_share_a_budget_and_nothing_goes_before_it_is_full() {
    let rows = functions();
    let rows: Vec<_> = rows.iter().filter(|row| !row.active.is_empty()).collect();
    let footprint = Footprint::default();
    let all: f64 = rows.iter().map(|row| row.weight * footprint.bytes as f64).sum();
    let unbounded = replay_evictions(&mut GreedyDual::new(u64::MAX), &rows, footprint);
    for (row, score) in rows.iter().zip(&unbounded) {
        let idle = u64::from(row.minutes - row.active[0].0) - score.active;
        assert_eq!((score.cold, score.waste), (1, idle), "{}: warm from its first call on", row.id);
    }
    let mut before = u64::MAX;
    for share in [0.02, 0.1, 0.5] {
        let mut policy = GreedyDual::new((share * all) as u64);
        let scores = replay_evictions(&mut policy, &rows, footprint);
        let cold: u64 = scores.iter().map(|score| score.cold).sum();
        assert!(cold <= before, "more memory, {cold} cold starts after {before}");
        before = cold;
        // The budget bounds what is warm, but for what is larger than all of it.
        let largest = rows.iter().map(|row| row.weight).fold(0.0, f64::max) * footprint.bytes as f64;
        assert!(policy.held() as f64 <= (share * all).max(largest) + 1.0);
    }
    // Two that take turns where one fits are always cold.
    let turns: Vec<_> = (0..2)
        .map(|row| Function::new(format!("{row}"), 100, (0..50).map(|call| (2 * call + row, 1)).collect()))
        .collect();
    let turns: Vec<_> = turns.iter().collect();
    let scores = replay_evictions(&mut GreedyDual::new(footprint.bytes), &turns, footprint);
    assert_eq!(scores.iter().map(|score| (score.cold, score.waste)).collect::<Vec<_>>(), [(50, 0), (50, 0)]);
}

#[test]
fn holt_winters_sizes_are_those_of_its_recursion() {
    for series in demand() {
        let length = 60;
        let (mut policy, k) = (HoltWinters::new(length, 1.5).unwrap(), 1.5);
        let mut sizes = Vec::new();
        replay_sizes(&mut policy, &series, |_, _, size| sizes.push(size));
        let d: Vec<f64> = series.demand.iter().map(|&d| f64::from(d)).collect();
        let mut level = d[..length].iter().sum::<f64>() / length as f64;
        let mut season: Vec<f64> = d[..length].iter().map(|d| d - level).collect();
        let (mut trend, mut variance) = (0.0, level);
        for (slot, &demand) in d.iter().enumerate() {
            let old = season[slot % length];
            let forecast = level + trend + old;
            if slot > length {
                let size = (forecast + k * f64::sqrt(variance)).max(0.0).ceil();
                assert_eq!(f64::from(sizes[slot]), size, "{} slot {slot}", series.name);
            }
            let next = 0.2 * (demand - old) + 0.8 * (level + trend);
            trend = 0.01 * (next - level) + 0.99 * trend;
            level = next;
            season[slot % length] = 0.2 * (demand - level) + 0.8 * old;
            variance = 0.98 * variance + 0.02 * (demand - forecast) * (demand - forecast);
        }
    }
}

#[test]
fn after_a_day_the_seasonal_law_misses_less_than_half_of_what_laws_without_a_clock_miss() {
    let scales = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0];
    let law = [0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0];
    for mut series in demand() {
        series.demand.truncate(2_160);
        let at_half = |grid: &[f64], make: &dyn Fn(f64) -> Box<dyn CapacityPolicy>| {
            let points: Vec<_> = grid
                .iter()
                .map(|&k| {
                    let score = replay_capacity(&mut *make(k), &series, 1_440);
                    (score.over_ratio(), score.miss())
                })
                .collect();
            miss_at(&points, 0.5).unwrap()
        };
        let ours = at_half(&scales, &|k| Box::new(Seasonal::new(SeasonalConfig::with_head_room(k)).unwrap()));
        let volume = at_half(&law, &|h| Box::new(FastUpSlowDown::new(0.1, h).unwrap()));
        let average = at_half(&[-0.5, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0], &|k| {
            Box::new(MovingAverage::new(60, k).unwrap())
        });
        for (name, theirs) in [("volume", volume), ("average", average)] {
            assert!(ours < theirs / 2.0, "{}: {ours} against {name} {theirs}", series.name);
        }
    }
}

#[test]
fn every_format_is_read() {
    let lengths = |name: &str| match open(name) {
        Trace::Functions(rows) => rows.map(|row| row.unwrap().minutes as usize).collect(),
        Trace::Demand(rows) => rows.collect().unwrap().iter().map(|series| series.demand.len()).collect(),
        Trace::Calls(calls) => vec![calls.map(Result::unwrap).count()],
    };
    assert_eq!(lengths("azure2019_functions_sample.csv"), vec![1_440; 82]);
    assert_eq!(lengths("huawei2025_coldstarts_d14-15.csv"), [2_880; 3]);
    assert_eq!(lengths("azure2019_total_head.csv"), [240]);
    assert_eq!(lengths("azure2017_vm_arrivals_head.csv"), [288; 3]);
    assert_eq!(lengths("azure2019_app_concurrency_head.csv"), [1_440; 5]);
    assert_eq!(lengths("azure2021_invocations_head.csv"), [100]);
    assert_eq!(lengths("azure_llm2023_conv_head.csv"), [200]);
    assert_eq!(lengths("nasa1995_req_per_second_head.csv"), [600]);
    let Trace::Calls(calls) = open("azure2021_invocations_head.csv") else { panic!("calls") };
    let per_minute = calls.per_minute().unwrap();
    assert_eq!(per_minute.iter().map(|function| function.total).sum::<u64>(), 100);
    let Trace::Calls(calls) = open("azure_llm2023_conv_head.csv") else { panic!("calls") };
    let series = calls.per_slot(Duration::from_secs(10)).unwrap();
    assert_eq!(series.demand.iter().sum::<u32>(), 200);
}

fn refusal(text: &str) -> TraceError {
    let all = |trace: Trace<&[u8]>| match trace {
        Trace::Functions(rows) => rows.collect::<Result<Vec<_>, _>>().map(drop),
        Trace::Demand(rows) => rows.collect().map(drop),
        Trace::Calls(calls) => calls.collect::<Result<Vec<_>, _>>().map(drop),
    };
    trace::open(text.as_bytes()).and_then(all).unwrap_err()
}

#[test]
fn a_broken_row_is_refused_with_its_line() {
    let functions = "fid,dayset,trigger,start_minute,minutes,weight,total,counts\n";
    let table = [
        (String::new(), 1, "line 1: header: `` should be the names of the columns"),
        ("what,is,this\n".into(), 1, "line 1: header: `what,is,this` should be one of"),
        ("minute,R1\n0,1\n1,2,3\n".into(), 3, "line 3: row: `1,2,3` should be a row of 2 fields, not 3"),
        ("minute,R1\n0,1\n1,-2\n".into(), 3, "line 3: R1: `-2` should be a whole number"),
        ("minute,R1\n0,1\n1,2\n3,2\n".into(), 4, "line 4: minute: `3` should be 2, as slots are 1 apart"),
        ("minute,R1\n5,1\n5,2\n".into(), 3, "line 3: minute: `5` should be later than 5"),
        ("req\n1\n\n2\n".into(), 3, "line 3: row: `` should be a row, not a blank line"),
        ("req\n99999999999\n".into(), 2, "line 2: req: `99999999999` should be a whole number"),
        (
            format!("{functions}a,A,,0,3,1,4,1 z1 3\nb,A,,0,3,1,4,1 z2 3\n"),
            3,
            "should be 3 minutes long, not 4",
        ),
        (
            format!("{functions}a,A,,0,3,1,5,1 z1 3\n"),
            2,
            "line 2: total: `5` should be 4, the sum of the counts",
        ),
        (
            format!("{functions}a,A,,0,3,-1,4,1 z1 3\n"),
            2,
            "line 2: weight: `-1` should be a number of at least 0",
        ),
        (format!("{functions}a,A,,0,3,1,4,1 z0 3\n"), 2, "line 2: counts: `z0` should be `v`, `v*N` or `zN`"),
        (format!("{functions}a,A,,0,3,1,4,1*z 3\n"), 2, "line 2: counts: `1*z` should be"),
        (
            format!("{functions}a,A,,0,3,1,4,z4000000000 3\n"),
            2,
            "line 2: counts: `z4000000000` should be at most",
        ),
        ("fid,counts\n".into(), 1, "line 1: header: `fid,counts` should be a header with a column `total`"),
        ("t_ms,tokens\n1.5,2\nNaN,2\n".into(), 3, "line 3: t_ms: `NaN` should be a number of at least 0"),
        (
            "app,func,end_timestamp,duration\na,b,5\n".into(),
            2,
            "line 2: row: `a,b,5` should be a row of 4 fields",
        ),
    ];
    for (text, line, message) in table {
        let error = refusal(&text);
        assert_eq!(error.line(), line, "{error}");
        assert!(error.to_string().contains(message), "{error} / {message}");
    }
    let not_text = trace::open(&b"minute,R1\n0,1\n\xff\xfe,2\n"[..]).and_then(|trace| match trace {
        Trace::Demand(rows) => rows.collect().map(drop),
        _ => Ok(()),
    });
    assert_eq!(not_text.unwrap_err().line(), 3);
}
