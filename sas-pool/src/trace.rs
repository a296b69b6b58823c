//! Traces: read as they were published, replayed through the policies, scored.
//!
//! It is public for whoever has a policy of their own, or traces of their own platform: they score a policy by it before
//! they configure it ([`crate::config::IdleRule::policy`]), with the yardsticks by which the defaults were chosen.
//!
//! [`open`] tells the format by the header, and streams: a reader holds one row at a time, and a row that is broken is
//! refused with its line, its column, what stands there and what should.
//!
//! | Header | Is | Read as |
//! |---|---|---|
//! | `fid,dayset,…,counts` | calls per minute, a row per function (Azure Functions 2019, sampled) | [`Functions`] |
//! | `minute,R1,…`, `t_sec,…`, `req` | demand per slot, a column per series (Huawei 2025, Azure 2019 totals, Azure VM 2017, NASA 1995) | [`Demand`] |
//! | `app,mem_mb,invocations,containers_per_min` | busy containers per minute, a row per app (Azure 2019) | [`Functions`] |
//! | `app,func,end_timestamp,duration`, `t_ms,…` | one call per row (Azure Functions 2021, Azure LLM 2023) | [`Calls`] |
//!
//! [`KeepAliveScore`] and [`CapacityScore`] are the two yardsticks; `docs/policies.md` defines them.
//!
//! ```
//! use sas_pool::{capacity::FastUpSlowDown, trace::{self, CapacityScore, Trace}};
//!
//! let text = "minute,R1\n0,4\n1,8\n2,2\n3,2\n";
//! let Trace::Demand(rows) = trace::open(text.as_bytes())? else { panic!("one column of demand") };
//! let series = rows.collect()?;
//! let score = trace::replay_capacity(&mut FastUpSlowDown::default(), &series[0], 1);
//! assert_eq!(score, CapacityScore { slots: 3, demand: 12, missed: 4, over: 6 + 6 });
//! # Ok::<(), trace::TraceError>(())
//! ```
//!
//! A broken row:
//!
//! ```
//! use sas_pool::trace::{self, Trace};
//! let Trace::Demand(rows) = trace::open("minute,R1\n0,4\n1,many\n".as_bytes())? else { panic!() };
//! let error = rows.collect().unwrap_err();
//! assert_eq!(error.to_string(), "line 3: R1: `many` should be a whole number");
//! # Ok::<(), trace::TraceError>(())
//! ```

mod calls;
mod demand;
mod error;
mod functions;
mod lines;
mod score;

pub use calls::{Call, Calls};
pub use demand::{Demand, Series};
pub use error::TraceError;
pub use functions::{Function, Functions};
pub use score::{
    CapacityScore, KeepAliveScore, KeepAliveTotals, miss_at, replay_capacity, replay_evictions,
    replay_keep_alive, replay_sizes,
};

use std::io::BufRead;

use lines::Lines;

/// A trace of one of the known formats.
#[derive(Debug)]
pub enum Trace<R> {
    /// Calls or busy containers per minute, a row per function or app.
    Functions(Functions<R>),
    /// Demand per slot.
    Demand(Demand<R>),
    /// One call per row.
    Calls(Calls<R>),
}

/// Tells the format by the header, and reads on from there. Compressed files are to be decompressed by the reader.
///
/// # Errors
/// An empty input, one that cannot be read, and a header of no known format.
pub fn open<R: BufRead>(input: R) -> Result<Trace<R>, TraceError> {
    let mut lines = Lines::new(input);
    let Some(header) = lines.next()? else {
        return Err(TraceError::at(1, "header", "", "the names of the columns"));
    };
    let columns: Vec<String> = header.split(',').map(|name| name.trim().to_owned()).collect();
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    match names.as_slice() {
        ["fid", .., "counts"] | ["app", .., "containers_per_min"] => {
            Ok(Trace::Functions(Functions::new(lines, columns)?))
        }
        ["app", "func", "end_timestamp", "duration"] | ["t_ms", ..] => {
            Ok(Trace::Calls(Calls::new(lines, columns)))
        }
        ["minute" | "t_sec", _, ..] | ["req"] => Ok(Trace::Demand(Demand::new(lines, columns))),
        _ => Err(TraceError::at(1, "header", &columns.join(","), "one of the formats that trace.rs lists")),
    }
}
