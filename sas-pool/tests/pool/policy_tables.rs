//! Capacity laws and what they say of themselves, against figures that were worked out by hand or by a naive model.

use std::time::Duration;

use sas_core::{CapacityInput, CapacityPolicy, Timestamp};
use sas_pool::capacity::{Metered, MovingAverage, Static};

fn slot(number: u32, taken: u32) -> CapacityInput {
    let length = Duration::from_secs(20);
    CapacityInput::new(Timestamp::from_secs(1_700_000_000) + length * number, length, taken)
}

#[test]
fn a_metered_law_says_what_it_bought() {
    let mut law = Metered::new(Static::new(7));
    // Taken, missed, ready at the end; more cannot be missed than was asked for.
    for (number, (taken, missed, ready)) in (0..).zip([(5, 2, 3), (0, 0, 7), (4, 9, 1)]) {
        let mut input = slot(number, taken);
        (input.missed, input.ready) = (missed, ready);
        assert_eq!(law.target(&input), 7);
    }
    let told = law.read_out();
    assert_eq!((told.slots, told.taken, told.missed, told.avoided, told.peak), (3, 9, 6, 3, 7));
    assert_eq!(told.idle_seconds, 220.0);
    assert_eq!(told.miss_ratio(), 6.0 / 9.0);
    // 220 idle stem-seconds; demand could have used nine stems for 20 seconds each.
    assert_eq!(told.over(Duration::from_secs(20)), 220.0 / 180.0);
    assert_eq!(told.over(Duration::ZERO), 0.0);
    let nothing = Metered::new(Static::new(7)).read_out();
    assert_eq!((nothing.miss_ratio(), nothing.over(Duration::from_secs(20))), (0.0, 0.0));
}

#[test]
fn a_moving_average_is_mean_and_sample_deviation_of_its_window() {
    for window in [1, 2, 3, 7, 60] {
        for k in [-1.0, 0.0, 0.5, 3.0] {
            let mut law = MovingAverage::new(window, k).unwrap();
            let mut seen: Vec<f64> = Vec::new();
            for number in 0..100 {
                let taken = number * number * 7_919 % 1_000;
                seen.push(f64::from(taken));
                let last = &seen[seen.len().saturating_sub(window)..];
                let mean = last.iter().sum::<f64>() / last.len() as f64;
                let squares = last.iter().map(|demand| (demand - mean) * (demand - mean)).sum::<f64>();
                let deviation =
                    if last.len() < 2 { 0.0 } else { (squares / (last.len() as f64 - 1.0)).sqrt() };
                let size = (mean + k * deviation).max(0.0).ceil() as u32;
                assert_eq!(law.target(&slot(number, taken)), size, "window {window}, k {k}, slot {number}");
            }
        }
    }
}
