//! Replays traces through the production policies and compares them with the baselines.
//!
//! ```text
//! cargo run --release --example trace_replay -- [--out DIR] [--rows even|odd|all] [--day N] [FILE...]
//! ```
//!
//! A file is any trace in one of the formats of `sas_pool::trace`, plain or `.gz`; without one, the small excerpts in
//! `sas-pool/tests/traces` are replayed. Traces of functions go through the keep-alive policies, traces of demand
//! through the capacity laws. `--rows`: which rows of a trace of functions are scored; `even` is the default, since
//! the shipped table was fitted to odd rows. `--day`: the day from which capacity is scored, two thirds of the trace
//! by default. Two charts go to DIR (`target/trace_replay`): pool capacity against demand over time, and cold starts
//! against waste with a curve per policy.

#![allow(clippy::print_stdout, reason = "it prints tables")]

use std::{
    collections::BTreeMap,
    error::Error,
    fs,
    path::{Path, PathBuf},
};

use sas_pool::{
    capacity::{FastUpSlowDown, Metered, Seasonal},
    trace::{Function, Series, replay_sizes},
};

#[path = "shared/chart.rs"]
mod chart;
#[path = "shared/replay.rs"]
mod replay;

use replay::{BUDGETS, Loaded, evict, keep, keeper_curves, keepers, laws, load, miss, percent, scored_from};

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::from_arguments(std::env::args().skip(1))?;
    fs::create_dir_all(&options.out)?;
    for path in &options.files {
        println!("\n{}", path.display());
        let stem = path.file_name().and_then(|name| name.to_str()).unwrap_or("trace");
        let stem = stem.split('.').next().unwrap_or(stem);
        match load(path)? {
            Loaded::Functions(rows) => {
                let scored: Vec<_> = rows
                    .iter()
                    .enumerate()
                    .filter(|(row, _)| options.scores(*row))
                    .map(|(_, row)| row)
                    .collect();
                keep_alive(&scored, &options.out.join(format!("{stem}-keep-alive.svg")))?;
            }
            Loaded::Demand(series) => {
                capacity(&series, options.day, &options.out.join(format!("{stem}-capacity.svg")))?;
            }
        }
    }
    Ok(())
}

struct Options {
    out: PathBuf,
    rows: String,
    day: Option<u64>,
    files: Vec<PathBuf>,
}

impl Options {
    fn from_arguments(mut arguments: impl Iterator<Item = String>) -> Result<Self, Box<dyn Error>> {
        let mut options = Self {
            out: PathBuf::from("target/trace_replay"),
            rows: "even".to_owned(),
            day: None,
            files: Vec::new(),
        };
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("`{argument}` needs a value"));
            match argument.as_str() {
                "--out" => options.out = value()?.into(),
                "--rows" => options.rows = value()?,
                "--day" => {
                    let day = value()?;
                    options.day =
                        Some(day.parse().map_err(|_| format!("--day: `{day}` should be a whole number"))?);
                }
                flag if flag.starts_with("--") => return Err(format!("`{flag}` is not an option").into()),
                file => options.files.push(file.into()),
            }
        }
        if !["even", "odd", "all"].contains(&options.rows.as_str()) {
            return Err(format!("--rows: `{}` should be even, odd or all", options.rows).into());
        }
        if options.files.is_empty() {
            let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("sas-pool/tests/traces");
            options.files = ["azure2019_functions_sample.csv", "huawei2025_coldstarts_d14-15.csv"]
                .map(|name| samples.join(name))
                .into();
        }
        Ok(options)
    }

    fn scores(&self, row: usize) -> bool {
        match self.rows.as_str() {
            "even" => row.is_multiple_of(2),
            "odd" => !row.is_multiple_of(2),
            _ => true,
        }
    }
}

fn keep_alive(rows: &[&Function], path: &Path) -> Result<(), Box<dyn Error>> {
    let mut scores: Vec<_> =
        keepers().iter().map(|keeper| (keeper.name.clone(), keep(keeper, rows))).collect();
    for share in [1.0, 2.0] {
        scores.push((format!("greedy dual, {share} × the memory of 10 min"), evict(share, rows)));
    }
    let ten = scores[1].1.0.waste();
    println!("{:<40} {:>10} {:>10} {:>8} {:>12}", "policy", "cold", "P75", "waste", "bytes each");
    for (name, (totals, _, bytes)) in &scores {
        println!(
            "{name:<40} {:>10} {:>10} {:>8.3} {:>12}",
            percent(Some(totals.cold()), 2),
            percent(totals.p75(), 1),
            totals.waste() / ten,
            bytes / rows.len().max(1),
        );
    }
    let mut curves: BTreeMap<&str, Vec<(f64, f64)>> = BTreeMap::new();
    for keeper in keeper_curves() {
        let (totals, ..) = keep(&keeper, rows);
        curves.entry(keeper.family).or_default().push((totals.waste() / ten, 100.0 * totals.cold()));
    }
    for share in BUDGETS {
        let (totals, ..) = evict(share, rows);
        curves.entry("greedy dual").or_default().push((totals.waste() / ten, 100.0 * totals.cold()));
    }
    let series: Vec<_> = curves
        .into_iter()
        .map(|(name, mut points)| {
            points.sort_by(|left, right| left.0.total_cmp(&right.0));
            // A keep-alive of a minute or two is off any scale that shows the rest.
            points.retain(|point| point.1 <= 15.0);
            chart::Series { name: name.to_owned(), points }
        })
        .collect();
    let (x, y) = ("idle-warm minutes, of those of a fixed 10 minutes", "cold starts per active minute, %");
    chart::lines(path, "Cold starts against waste", x, y, &series)?;
    println!("chart: {}", path.display());
    Ok(())
}

fn capacity(series: &[Series], day: Option<u64>, path: &Path) -> Result<(), Box<dyn Error>> {
    let Some(first) = series.first() else { return Err("a trace without a series".into()) };
    let from = scored_from(first, day);
    if from >= first.demand.len() {
        return Err(format!(
            "--day: the trace has {} slots, and scoring would begin at {from}",
            first.demand.len()
        )
        .into());
    }
    let names: Vec<_> = series.iter().map(|series| format!("{:>12}", series.name)).collect();
    println!("{:<28}{}   missed, where half of the demand is held idle", "law", names.concat());
    for law in laws(first.slot) {
        let cells: Vec<_> =
            series.iter().map(|series| format!("{:>12}", percent(miss(&law, series, from), 3))).collect();
        println!("{:<28}{}", law.name, cells.concat());
    }
    for series in series {
        let mut pool = Metered::new(Seasonal::default());
        replay_sizes(&mut pool, series, |_, _, _| {});
        let bought = pool.read_out();
        println!(
            "{}: seasonal, default head-room: {} cold starts avoided, {} missed, {:.0} idle stem-seconds for each avoided",
            series.name,
            bought.avoided,
            bought.missed,
            bought.idle_seconds / (bought.avoided.max(1) as f64),
        );
    }
    // Three hours can be read; a week cannot.
    let shown = usize::try_from(10_800 / first.slot.as_secs().max(1)).unwrap_or(180).max(12);
    let end = first.demand.len();
    let window = end.saturating_sub(shown).max(from)..end;
    let (mut demand, mut seasonal, mut law) = (Vec::new(), Vec::new(), Vec::new());
    let hours = |slot: usize| slot as f64 * first.slot.as_secs_f64() / 3_600.0;
    replay_sizes(&mut Seasonal::default(), first, |slot, taken, size| {
        if window.contains(&slot) {
            demand.push((hours(slot), f64::from(taken)));
            seasonal.push((hours(slot), f64::from(size)));
        }
    });
    replay_sizes(&mut FastUpSlowDown::default(), first, |slot, _, size| {
        if window.contains(&slot) {
            law.push((hours(slot), f64::from(size)));
        }
    });
    let line = |name: &str, points| chart::Series { name: name.to_owned(), points };
    let lines = [line("demand", demand), line("seasonal", seasonal), line("fast up, slow down", law)];
    let title = format!("Pool capacity against demand: {}", first.name);
    chart::lines(path, &title, "hours", "stems per slot", &lines)?;
    println!("chart: {}", path.display());
    Ok(())
}
