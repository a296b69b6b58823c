//! How many instances does a load need, how long do its requests wait, and what does it cost?
//!
//! The production pool and scaler run in virtual time under a trace of requests per second: a file with one number a
//! line (`--trace FILE`), or a day with a peak at noon, run at sixty times its speed. Three configurations are
//! compared; put your own beside them.
//!
//! `cargo run --release --example simulate -- [--trace FILE] [--price PER_INSTANCE_HOUR] [--chart FILE.svg]`

#![allow(clippy::print_stdout, reason = "what it is for")]

#[path = "shared/chart.rs"]
mod chart;

use std::{path::PathBuf, time::Duration};

use sas_sim::{Setup, what_if};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut trace, mut price, mut file) = (None, 0.04_f64, std::env::temp_dir().join("sas-simulate.svg"));
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument}: needs a value"))?;
        match argument.as_str() {
            "--trace" => trace = Some(PathBuf::from(value)),
            "--price" => price = value.parse().map_err(|_| format!("--price: {value}: must be a number"))?,
            "--chart" => file = PathBuf::from(value),
            _ => return Err(format!("{argument}: unknown; known are --trace, --price, --chart").into()),
        }
    }
    let arrivals = match trace {
        Some(path) => read(&path)?,
        None => (0..1440)
            .map(|minute| 60.0 * (1.0 - (f64::from(minute) / 1440.0 * std::f64::consts::TAU).cos()) / 2.0)
            .collect(),
    };

    let mut quick = Setup::new(arrivals.clone());
    quick.scaling.stable_window = Duration::from_secs(6);
    quick.scaling.scale_to_zero_grace = Duration::from_secs(1);
    let knative = Setup::new(arrivals.clone());
    let mut kept = Setup::new(arrivals.clone());
    kept.scaling.min = 2;

    println!(
        "{:<22} {:>9} {:>7} {:>7} {:>9} {:>9} {:>6} {:>7} {:>8}",
        "configuration", "requests", "cold", "failed", "p50 wait", "p99 wait", "peak", "waste", "cost"
    );
    let points = |values: &mut dyn Iterator<Item = f64>| {
        values.enumerate().map(|(at, value)| (at as f64, value)).collect()
    };
    let mut series = vec![chart::Series {
        name: "requests a second".into(),
        points: points(&mut arrivals.iter().copied()),
    }];
    for (name, setup) in [("windows of 6 s", quick), ("Knative's defaults", knative), ("at least two", kept)]
    {
        let summary = what_if(&setup)?;
        println!(
            "{name:<22} {:>9} {:>7} {:>7} {:>6.0} ms {:>6.0} ms {:>6} {:>6.0}% {:>8.4}",
            summary.requests,
            summary.cold,
            summary.failed,
            summary.wait(0.5).as_secs_f64() * 1000.0,
            summary.wait(0.99).as_secs_f64() * 1000.0,
            summary.peak,
            summary.waste() * 100.0,
            summary.instance_seconds / 3600.0 * price,
        );
        let instances = points(&mut summary.series.iter().map(|(_, live)| *live as f64));
        series.push(chart::Series { name: format!("instances, {name}"), points: instances });
    }
    chart::lines(&file, "Load and instances", "seconds", "requests a second, instances", &series)?;
    println!("chart: {}", file.display());
    Ok(())
}

/// One number of requests per line, for each second.
fn read(path: &std::path::Path) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    text.lines()
        .enumerate()
        .map(|(at, line)| {
            let value = line.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0);
            value.ok_or_else(|| {
                format!("{}:{}: {line:?}: must be a number of requests", path.display(), at + 1).into()
            })
        })
        .collect()
}
