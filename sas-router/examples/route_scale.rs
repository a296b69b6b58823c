//! A route table of a million hosts: what a host, a change and a look-up cost.
//!
//! `cargo run --release -p sas-router --example route_scale -- [HOSTS]`. Memory is read from `/proc`, so those columns
//! need Linux.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{hint::black_box, time::Duration};

use http::{HeaderMap, Method};
use sas_core::{
    HostPattern, RevisionKey, Route, RouteAction, RouteChange, RouteQuery, RouteRule, Router as _, Split,
    TenantKey,
};
use sas_router::RouteTable;
use tokio::time::Instant;

/// Samples of each figure.
const SAMPLES: usize = 200_000;
/// Hosts that are put in with one change, as a control plane that starts does it.
const BATCH: usize = 1_000;

fn host(n: usize) -> String {
    format!("service-{n}.tenant-{}.example.org", n % 5_000)
}

fn rule(n: usize) -> RouteRule {
    RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(RevisionKey(n as u64), 100)]))
}

fn set(n: usize, revision: usize) -> RouteChange {
    RouteChange::Set { host: HostPattern::Exact(host(n)), rules: vec![rule(revision)] }
}

fn resident() -> f64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<f64>().ok());
    pages.map_or(f64::NAN, |pages| pages * 4096.0)
}

/// A spread order without a table of it: steps of a prime through the numbers.
fn spread(at: usize, hosts: usize) -> usize {
    (at.wrapping_mul(7_919)) % hosts
}

fn at(sorted: &[Duration], quantile: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * quantile) as usize].as_nanos() as f64
}

fn row(hosts: usize) {
    let table = RouteTable::new(1);
    let before = resident();
    let began = Instant::now();
    for from in (0..hosts).step_by(BATCH) {
        let batch = (from..hosts.min(from + BATCH)).map(|n| set(n, n)).collect();
        table.apply(batch).expect("sound rules");
    }
    let filled = began.elapsed();
    let bytes = (resident() - before) / hosts as f64;

    let headers = HeaderMap::new();
    let names: Vec<String> = (0..SAMPLES.min(hosts)).map(|n| host(spread(n, hosts))).collect();
    let look = |name: &str| {
        let query =
            RouteQuery { method: &Method::GET, host: name, path: "/", query: None, headers: &headers };
        match table.route(&query) {
            Ok(Route::To(target)) => target.revision,
            other => panic!("{name}: {other:?}"),
        }
    };
    for name in &names {
        black_box(look(name));
    }
    let began = Instant::now();
    for name in names.iter().cycle().take(SAMPLES) {
        black_box(look(name));
    }
    let lookup = began.elapsed().as_nanos() as f64 / SAMPLES as f64;

    let mut changes: Vec<Duration> = (0..SAMPLES / 10)
        .map(|n| {
            let change = vec![set(spread(n, hosts), n)];
            let began = Instant::now();
            table.apply(change).expect("a sound rule");
            began.elapsed()
        })
        .collect();
    changes.sort_unstable();
    let began = Instant::now();
    drop(table);
    println!(
        "| {hosts} | {bytes:.0} | {:.2} s | {lookup:.0} ns | {:.1} µs | {:.1} µs | {:.1} µs | {:.2} s |",
        filled.as_secs_f64(),
        at(&changes, 0.5) / 1e3,
        at(&changes, 0.99) / 1e3,
        at(&changes, 1.0) / 1e3,
        began.elapsed().as_secs_f64(),
    );
}

fn main() {
    if let Some(hosts) = std::env::args().nth(1) {
        return row(hosts.parse().expect("a number of hosts"));
    }
    println!("| hosts | bytes a host | filled in | look-up | change p50 | p99 | worst | dropped in |");
    println!("|---|---|---|---|---|---|---|---|");
    for hosts in ["1000", "100000", "1000000"] {
        // A process each: what an allocator keeps of the table before would hide what the next one takes.
        let program = std::env::current_exe().expect("this program");
        let status = std::process::Command::new(program).arg(hosts).status().expect("it runs");
        assert!(status.success(), "{hosts} hosts: {status}");
    }
}
