//! What several hosts promise together, whatever becomes of them.

use sas_sim::{SeveralPlant, run_several};

/// `cargo run --release -p sas-sim --example several -- --count 10000` is the long run.
const SEEDS: u64 = 2;

#[test]
fn several_hosts_keep_their_promises_on_any_seed() {
    for seed in 0..SEEDS {
        let run = run_several(seed, None);
        assert!(run.violation.is_none(), "{run}");
        assert!(run.served > 0 && run.changes > 0 && run.fires > 0, "{run}");
    }
}

#[test]
fn every_planted_bug_of_several_hosts_breaks_its_promise() {
    for (plant, promise) in SeveralPlant::ALL {
        let found = (0..60).find(|seed| {
            let run = run_several(*seed, Some(plant));
            run.violation.is_some_and(|violation| violation.invariant == promise)
        });
        let seed = found.unwrap_or_else(|| panic!("{plant:?} does not break {promise:?} in 60 seeds"));
        println!("| {plant:?} | {promise} | seed {seed} |");
    }
}
