//! Fits the table of the keep-alive policy `Hazard` to a trace, and prints it as Rust source.
//!
//! ```text
//! cargo run --release --example fit_hazard -- TRACE.csv[.gz] [odd|even|all] > sas-pool/src/keep_alive/hazard/weights.rs
//! ```
//!
//! The table that ships was fitted so, to the rows with an odd index of the sample of the Azure Functions trace of 2019
//! that `sas-pool/tests/traces/SOURCES.md` names.

use std::{
    error::Error,
    fs::File,
    io::{BufRead, BufReader, Write},
};

use sas_pool::{
    keep_alive::{Fit, HazardTable},
    trace::{self, Trace},
};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: fit_hazard TRACE.csv[.gz] [odd|even|all]")?;
    let which = arguments.next().unwrap_or_else(|| "odd".to_owned());
    let keep: fn(usize) -> bool = match which.as_str() {
        "odd" => |row| row % 2 == 1,
        "even" => |row| row % 2 == 0,
        "all" => |_| true,
        other => return Err(format!("`{other}` should be odd, even or all").into()),
    };
    let file = File::open(&path).map_err(|error| format!("{path}: {error}"))?;
    let input: Box<dyn BufRead> = if path.ends_with(".gz") {
        Box::new(BufReader::new(flate2::read::GzDecoder::new(file)))
    } else {
        Box::new(BufReader::new(file))
    };
    let rows = match trace::open(input)? {
        Trace::Functions(rows) => rows.collect::<Result<Vec<_>, _>>()?,
        Trace::Calls(calls) => calls.per_minute()?,
        Trace::Demand(_) => return Err("that trace does not tell functions apart".into()),
    };
    let rows: Vec<_> =
        rows.into_iter().enumerate().filter(|&(row, _)| keep(row)).map(|(_, row)| row).collect();
    let table = HazardTable::fit(&rows, &Fit::default());
    let (bias, weights) = table.weights();
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "//! Fitted by `examples/fit_hazard.rs`; see `docs/policies.md`. Not to be edited by hand.\n"
    )?;
    writeln!(out, "use super::memory::CELLS;\n")?;
    writeln!(out, "pub(super) const BIAS: i32 = {bias};\n")?;
    writeln!(out, "#[rustfmt::skip]\npub(super) static WEIGHTS: [i8; CELLS] = [")?;
    for row in weights.chunks(24) {
        let row: Vec<String> = row.iter().map(i8::to_string).collect();
        writeln!(out, "    {},", row.join(", "))?;
    }
    writeln!(out, "];")?;
    Ok(())
}
