//! The what-if runs the production pool and scaler in virtual time.

use sas_sim::{Setup, what_if};

#[test]
fn a_quiet_hour_costs_little_and_a_burst_is_served() {
    let mut arrivals = vec![0.0; 300];
    arrivals[10..40].fill(50.0);
    let mut setup = Setup::new(arrivals);
    setup.scaling.stable_window = std::time::Duration::from_secs(10);
    setup.scaling.scale_to_zero_grace = std::time::Duration::from_secs(2);
    let summary = what_if(&setup).expect("a valid setup");
    assert_eq!(summary.failed, 0);
    assert!((1_200..1_800).contains(&summary.requests), "{}", summary.requests);
    assert!(summary.cold > 0 && summary.cold < summary.requests / 2, "{}", summary.cold);
    assert_eq!(summary.series.last().map(|(_, live)| *live), Some(0), "asleep in the end");
    let again = what_if(&setup).expect("a valid setup");
    assert_eq!((again.requests, again.cold, again.waits), (summary.requests, summary.cold, summary.waits));
}

#[test]
fn many_revisions_share_a_load_by_popularity() {
    let mut setup = Setup::new(vec![200.0; 20]);
    setup.revisions = 10_000;
    let summary = what_if(&setup).expect("a valid setup");
    assert!(summary.requests + summary.failed > 3_000, "{}", summary.requests);
    assert!(summary.peak > 100, "the tail wakes many: {}", summary.peak);
}

#[test]
fn a_setup_that_makes_no_sense_is_refused() {
    let mut setup = Setup::new(vec![1.0]);
    setup.revisions = 0;
    assert!(what_if(&setup).unwrap_err().message.contains("revisions"));
}
