//! Cold starts of many apps at one instant, in real time: `storm [START_MS]`, 1,500 unless said.
//!
//! Each app is its own revision of the production pool behind the production gateway; its start takes the given time
//! and no CPU, so that what is beyond it is the platform's own.

#![allow(clippy::print_stdout, reason = "what it is for")]

use std::time::Duration;

use sas_sim::storm;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let start = std::env::args().nth(1).map_or(Ok(1500), |text| text.parse())?;
    let start = Duration::from_millis(start);
    println!("{:>6} {:>12} {:>12} {:>12} {:>9}", "apps", "mean", "max", "beyond", "of one");
    let mut one = None;
    for apps in [1, 50, 100, 1000] {
        let took = storm(apps, start)?;
        let mean = took.iter().sum::<Duration>() / u32::try_from(took.len().max(1))?;
        let max = took.iter().max().copied().unwrap_or_default();
        let first = *one.get_or_insert(mean);
        println!(
            "{apps:>6} {:>9.1} ms {:>9.1} ms {:>9.1} ms {:>9.3}",
            mean.as_secs_f64() * 1000.0,
            max.as_secs_f64() * 1000.0,
            mean.saturating_sub(start).as_secs_f64() * 1000.0,
            mean.as_secs_f64() / first.as_secs_f64()
        );
    }
    Ok(())
}
