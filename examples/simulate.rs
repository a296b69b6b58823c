//! How many instances does a load need, how long do its requests wait, and what does it cost?
//!
//! The production router, pool and scaler run in virtual time under a trace of requests per second: a file with one
//! number a line (`--trace FILE`), or a day with a peak at noon, run at sixty times its speed. Three configurations are
//! compared, and beside them those of the services in a manifest of one's own (`--manifest FILE`).
//!
//! `cargo run --release --example simulate -- [--trace FILE] [--manifest FILE] [--revisions N] [--start-ms MS]
//! [--service-ms MS] [--concurrency N] [--price PER_INSTANCE_HOUR] [--chart FILE.svg]`

#![allow(clippy::print_stdout, reason = "what it is for")]

#[path = "shared/chart.rs"]
mod chart;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use sas::knative::manifest::{Manifest, ParseOptions, parse};
use sas_sim::{Setup, what_if};

const KNOWN: &str =
    "--trace, --manifest, --revisions, --start-ms, --service-ms, --concurrency, --price and --chart";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (mut trace, mut price, mut file) = (None, 0.04_f64, std::env::temp_dir().join("sas-simulate.svg"));
    let (mut manifest, mut base) = (None, Setup::new(Vec::new()));
    while let Some(argument) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{argument}: needs a value"))?;
        let whole =
            || value.parse::<u32>().map_err(|_| format!("{argument}: {value}: must be a whole number"));
        match argument.as_str() {
            "--trace" => trace = Some(PathBuf::from(value)),
            "--manifest" => manifest = Some(PathBuf::from(value)),
            "--revisions" => base.revisions = whole()?,
            "--start-ms" => base.start = Duration::from_millis(whole()?.into()),
            "--service-ms" => base.service = Duration::from_millis(whole()?.into()),
            "--concurrency" => base.concurrency = whole()?,
            "--price" => price = value.parse().map_err(|_| format!("--price: {value}: must be a number"))?,
            "--chart" => file = PathBuf::from(value),
            _ => return Err(format!("{argument}: unknown; known are {KNOWN}").into()),
        }
    }
    base.arrivals = match trace {
        Some(path) => read(&path)?,
        None => (0..1440)
            .map(|minute| 60.0 * (1.0 - (f64::from(minute) / 1440.0 * std::f64::consts::TAU).cos()) / 2.0)
            .collect(),
    };

    let mut quick = base.clone();
    quick.scaling.stable_window = Duration::from_secs(6);
    quick.scaling.scale_to_zero_grace = Duration::from_secs(1);
    let mut kept = base.clone();
    kept.scaling.min = 2;
    let mut compared = vec![
        ("windows of 6 s".to_owned(), quick),
        ("Knative's defaults".to_owned(), base.clone()),
        ("at least two".to_owned(), kept),
    ];
    if let Some(path) = manifest {
        compared.extend(services(&path, &base)?);
    }

    println!(
        "{:<22} {:>9} {:>7} {:>7} {:>9} {:>9} {:>6} {:>7} {:>8}",
        "configuration", "requests", "cold", "failed", "p50 wait", "p99 wait", "peak", "waste", "cost"
    );
    let points = |values: &mut dyn Iterator<Item = f64>| {
        values.enumerate().map(|(at, value)| (at as f64, value)).collect()
    };
    let mut series = vec![chart::Series {
        name: "requests a second".into(),
        points: points(&mut base.arrivals.iter().copied()),
    }];
    for (name, setup) in compared {
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

/// The services of a manifest, each under the whole load: its own concurrency and scaling instead of ours.
fn services(path: &Path, base: &Setup) -> Result<Vec<(String, Setup)>, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let manifests =
        parse(&text, &ParseOptions::default()).map_err(|errors| format!("{}: {errors}", path.display()))?;
    let services = manifests.into_iter().filter_map(|manifest| match manifest {
        Manifest::Service(service) => Some(service),
        _ => None,
    });
    let found: Vec<_> = services
        .map(|service| {
            let mut setup = base.clone();
            setup.concurrency = service.spec.concurrency;
            setup.scaling = service.spec.scaling.clone();
            (service.name.clone(), setup)
        })
        .collect();
    if found.is_empty() {
        return Err(
            format!("{}: holds no service; one with `kind: Service` is needed", path.display()).into()
        );
    }
    Ok(found)
}

/// One number of requests per line, for each second.
fn read(path: &Path) -> Result<Vec<f64>, Box<dyn std::error::Error>> {
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
