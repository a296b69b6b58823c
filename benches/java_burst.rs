//! Bench f: distinct Java apps requested at one instant. The example of the same name does the work and has options;
//! `cargo bench --bench java_burst --no-default-features --features process` runs it with the bench's: app A, 50 apps,
//! cold with class archives (f1), from as many stems (f2) and from ten that are refilled (f3).

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::process::Command;

fn main() {
    let more: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let given = |name: &str| more.iter().any(|arg| arg == name);
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .args([
            "run",
            "--release",
            "--no-default-features",
            "--features",
            "process",
            "--example",
            "java_burst",
            "--",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    if !given("--apps") {
        cargo.args(["--apps", "1,50"]);
    }
    let chart = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/java_burst.svg");
    if !given("--chart") {
        cargo.arg("--chart").arg(chart);
    }
    let status = cargo.args(&more).status().expect("cargo runs");
    println!(
        "targets: f1 mean 1.6 s (50), 3.2 s (100), min 0.2 s; f2 mean 0.25 s, max 0.5 s (50), 0.5 and 1 s (100); f3 mean 1.0 s (50)"
    );
    assert!(status.success(), "the example ended well");
}
