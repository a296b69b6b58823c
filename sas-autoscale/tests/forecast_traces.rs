//! The forecast on a real trace: instances that a cloud's regions took per minute, with peaks on the full hour.

use std::{io::Read as _, time::Duration};

use sas_autoscale::Forecast;
use sas_autoscale::{ForecastSpec, Options};
use sas_core::{Load, Metric, Policy, RevisionKey, ScaleInput, ScalingSpec, Timestamp};

/// Minutes by region, from the file beside the tests or from `SAS_VECTORS_DIR/traces`.
fn trace() -> [Vec<f64>; 3] {
    let name = "huawei2025_coldstarts_R1R2R5_d00-20.csv.gz";
    let path = match std::env::var_os("SAS_VECTORS_DIR") {
        Some(dir) => std::path::PathBuf::from(dir).join("traces").join(name),
        None => std::path::PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/traces").join(name),
    };
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = String::new();
    flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
    let mut regions = [const { Vec::new() }; 3];
    for row in csv::Reader::from_reader(text.as_bytes()).records() {
        let row = row.unwrap();
        for (at, region) in regions.iter_mut().enumerate() {
            region.push(row[at + 1].parse().unwrap());
        }
    }
    regions
}

struct Score {
    peaks: usize,
    met: usize,
    met_by_reaction: usize,
    /// Instance-minutes beyond what the reactive scaler alone holds, and what it holds.
    extra: f64,
    reactive: f64,
    lowered: usize,
}

/// Drives the scaler with the demand of a region as requests at once, one tick a minute with a start time of 50 s.
/// A peak is a minute with twice the mean of the hour before it; it is met when what was wanted a minute before
/// covers nine tenths of it.
fn drive(demand: &[f64], minutes: usize) -> Score {
    let mut spec = ScalingSpec::default();
    spec.scaler = "forecast".to_owned();
    spec.target = 1.0;
    spec.utilization = 1.0;
    let mut forecast = ForecastSpec::default();
    forecast.season = 1440;
    forecast.headroom = 1.0;
    Options::edit(&mut spec, |options| options.forecast = Some(forecast)).unwrap();
    spec.validate().unwrap();
    let mut state = <Forecast as Policy>::State::default();
    let mut score = Score { peaks: 0, met: 0, met_by_reaction: 0, extra: 0.0, reactive: 0.0, lowered: 0 };
    let (mut desired, mut before) = (None, (0_u32, 0_u32));
    let start = Timestamp::from_secs(1_700_002_800);
    for (minute, now) in demand.iter().take(minutes).enumerate() {
        let mut load = Load::idle(RevisionKey::new(0, 0));
        load.concurrency = *now;
        load.requests = 1;
        load.ready = desired.unwrap_or(1);
        load.start_time = Some(Duration::from_secs(50));
        let at = start + Duration::from_secs(60 * minute as u64 + 30);
        let input = ScaleInput::new(0, at, &spec, &load, desired).over(Duration::from_secs(60));
        let decision = Forecast.decide(&mut state, &input);
        let wanted = decision.desired().unwrap();
        let reactive = decision
            .votes
            .iter()
            .filter(|vote| vote.metric == Metric::Concurrency)
            .filter_map(|vote| vote.desired)
            .max();
        let reactive = reactive.unwrap();
        // Two seasons after the first it has learnt.
        if minute >= 3 * 1440 {
            let hour = &demand[minute - 60..minute];
            let mean = hour.iter().sum::<f64>() / 60.0;
            if *now > 2.0 * mean && *now > 10.0 {
                score.peaks += 1;
                score.met += usize::from(f64::from(before.0) >= 0.9 * now);
                score.met_by_reaction += usize::from(f64::from(before.1) >= 0.9 * now);
            }
            score.extra += f64::from(wanted.saturating_sub(reactive));
            score.reactive += f64::from(reactive);
            score.lowered += usize::from(wanted < reactive);
        }
        before = (wanted, reactive);
        desired = Some(wanted);
    }
    score
}

#[test]
fn the_floor_rises_before_the_hourly_peak() {
    let [r1, r2, r5] = trace();
    println!("| region | peaks | met with the forecast | met by reaction alone | extra instance-minutes |");
    println!("|---|---|---|---|---|");
    for (name, demand, least) in [("R1", r1, 0.8), ("R2", r2, 0.5), ("R5", r5, 0.7)] {
        let score = drive(&demand, 7 * 1440);
        let share = score.met as f64 / score.peaks.max(1) as f64;
        let alone = score.met_by_reaction as f64 / score.peaks.max(1) as f64;
        let extra = score.extra / score.reactive;
        println!(
            "| {name} | {} | {:.1} % | {:.1} % | {:.0} ({:.1} % of what reaction holds) |",
            score.peaks,
            100.0 * share,
            100.0 * alone,
            score.extra,
            100.0 * extra
        );
        assert!(score.peaks > 50, "{name} has peaks");
        assert_eq!(score.lowered, 0, "{name}: the forecast never lowers anything");
        assert!(share >= least && share > alone + 0.2, "{name}: {share} against {alone} by reaction alone");
        assert!(extra < 1.0, "{name}: {extra}");
    }
}
