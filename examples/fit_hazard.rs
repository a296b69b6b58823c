//! Fits the table of the keep-alive policy `Hazard` to a trace, and prints it as Rust source; or checks how the policy
//! does on what its table was not fitted to.
//!
//! ```text
//! cargo run --release --example fit_hazard -- TRACE.csv[.gz] [odd|even|all] > sas-pool/src/keep_alive/hazard/weights.rs
//! cargo run --release --example fit_hazard -- TRACE.csv[.gz] check
//! ```
//!
//! The table that ships was fitted so, to the rows with an odd index of the sample of the Azure Functions trace of 2019
//! that `sas-pool/tests/traces/SOURCES.md` names. `check` fits a table to a part of the rows, scores the others, part
//! after part, and prints the score beside those of the hybrid histogram and of a fixed keep-alive of ten minutes.

#![allow(clippy::print_stdout, reason = "it prints a table")]

use std::{
    error::Error,
    fs::File,
    io::{BufRead, BufReader, Write},
    sync::Arc,
    time::Duration,
};

use sas_core::{KeepAlivePolicy, RevisionKey};
use sas_pool::{
    keep_alive::{Fit, Fixed, Hazard, HazardConfig, HazardTable, HybridHistogram},
    trace::{self, Function, KeepAliveTotals, Trace, replay_keep_alive},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: fit_hazard TRACE.csv[.gz] [odd|even|all|check]")?;
    let which = arguments.next().unwrap_or_else(|| "odd".to_owned());
    let rows = load(&path)?;
    match which.as_str() {
        "odd" => print_source(&fitted(&rows, |row| row % 2 == 1)),
        "even" => print_source(&fitted(&rows, |row| row % 2 == 0)),
        "all" => print_source(&fitted(&rows, |_| true)),
        "check" => {
            check(&rows);
            Ok(())
        }
        other => Err(format!("`{other}` should be odd, even, all or check").into()),
    }
}

fn load(path: &str) -> Result<Vec<Function>, Box<dyn Error>> {
    let file = File::open(path).map_err(|error| format!("{path}: {error}"))?;
    let input: Box<dyn BufRead> = if path.ends_with(".gz") {
        Box::new(BufReader::new(flate2::read::GzDecoder::new(file)))
    } else {
        Box::new(BufReader::new(file))
    };
    Ok(match trace::open(input)? {
        Trace::Functions(rows) => rows.collect::<Result<Vec<_>, _>>()?,
        Trace::Calls(calls) => calls.per_minute()?,
        Trace::Demand(_) => return Err("that trace does not tell functions apart".into()),
    })
}

fn chosen(rows: &[Function], keep: impl Fn(usize) -> bool) -> Vec<Function> {
    rows.iter().enumerate().filter(|&(row, _)| keep(row)).map(|(_, row)| row.clone()).collect()
}

fn fitted(rows: &[Function], keep: impl Fn(usize) -> bool) -> HazardTable {
    HazardTable::fit(&chosen(rows, keep), &Fit::default())
}

fn print_source(table: &HazardTable) -> Result<(), Box<dyn Error>> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "//! Fitted by `examples/fit_hazard.rs`; see `docs/policies.md`. Not to be edited by hand.\n"
    )?;
    writeln!(out, "use super::table::Tree;\n")?;
    writeln!(out, "pub(super) const BIAS: i32 = {};\n", table.bias())?;
    writeln!(out, "#[rustfmt::skip]\npub(super) static TREES: [Tree; {}] = [", table.trees().len())?;
    for tree in table.trees() {
        writeln!(
            out,
            "    Tree {{ signals: {:?}, levels: {:?}, leaves: {:?} }},",
            tree.signals, tree.levels, tree.leaves
        )?;
    }
    writeln!(out, "];")?;
    Ok(())
}

/// Which of `parts` random parts of the rows `row` lies in; another `draw` divides them in another way.
fn part(draw: u64, row: usize, parts: u64) -> u64 {
    let mut bits =
        (row as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (bits ^ (bits >> 31)) % parts
}

fn check(rows: &[Function]) {
    println!(
        "{:<34} {:>17} {:>17} {:>17} {:>15}",
        "fitted to others, scored on",
        "cold (histogram)",
        "P75 (histogram)",
        "waste (× its)",
        "cold, of 10 min"
    );
    let odd = Arc::new(fitted(rows, |row| row % 2 == 1));
    let even_rows = chosen(rows, |row| row % 2 == 0);
    score("even rows", &odd, &even_rows);
    for (name, from, to) in
        [("even rows, first half of the day", 0, 720), ("even rows, second half", 720, 1_440)]
    {
        score(name, &odd, &even_rows.iter().map(|row| window(row, from, to)).collect::<Vec<_>>());
    }
    for (name, from, to) in [
        ("even rows of weight below 0.1", 0.0, 0.1),
        ("even rows of weight 0.1 to 1", 0.1, 1.0),
        ("even rows of weight 1 to 10", 1.0, 10.0),
        ("even rows of weight 10 and more", 10.0, f64::INFINITY),
    ] {
        let band: Vec<_> = even_rows.iter().filter(|row| (from..to).contains(&row.weight)).cloned().collect();
        score(name, &odd, &band);
    }
    score("odd rows", &Arc::new(fitted(rows, |row| row % 2 == 0)), &chosen(rows, |row| row % 2 == 1));
    for (name, draw, parts) in [("half", 1, 2), ("half", 2, 2), ("half", 3, 2), ("third", 77, 3)] {
        for at in 0..parts {
            let table = Arc::new(fitted(rows, |row| part(draw, row, parts) != at));
            let scored = chosen(rows, |row| part(draw, row, parts) == at);
            score(&format!("{name} {} of draw {draw}", at + 1), &table, &scored);
        }
    }
}

/// What a function did in some of its minutes.
fn window(row: &Function, from: u32, to: u32) -> Function {
    let active =
        row.active.iter().filter(|(at, _)| (from..to).contains(at)).map(|&(at, calls)| (at - from, calls));
    let to = to.min(row.minutes);
    let mut function = Function::new(row.id.clone(), to.saturating_sub(from), active.collect());
    function.weight = row.weight;
    function.start_minute = row.start_minute + from;
    function
}

fn score(name: &str, table: &Arc<HazardTable>, rows: &[Function]) {
    let hazard =
        Hazard::with_table(&HazardConfig::default(), Arc::clone(table)).expect("the defaults are valid");
    let [ours, histogram, ten] = [
        totals(hazard, rows),
        totals(HybridHistogram::default(), rows),
        totals(Fixed::new(Duration::from_secs(600)), rows),
    ];
    let percent = |share: f64| format!("{:.2}", 100.0 * share);
    let of = |ours: f64, theirs: f64| format!("{} ({}) %", percent(ours), percent(theirs));
    println!(
        "{name:<34} {:>17} {:>17} {:>17} {:>15.3}",
        of(ours.cold(), histogram.cold()),
        of(ours.p75().unwrap_or(f64::NAN), histogram.p75().unwrap_or(f64::NAN)),
        format!("{:.3} ({:.3})", ours.waste() / ten.waste(), ours.waste() / histogram.waste()),
        ours.cold() / ten.cold(),
    );
}

fn totals(mut policy: impl KeepAlivePolicy, rows: &[Function]) -> KeepAliveTotals {
    let mut totals = KeepAliveTotals::default();
    for (slot, row) in (0..).zip(rows).filter(|(_, row)| !row.active.is_empty()) {
        totals.add(row, replay_keep_alive(&mut policy, RevisionKey::new(slot, 0), row));
    }
    totals
}
