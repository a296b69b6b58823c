//! Edge cases of Knative by their names in its specification, on top of the vectors.

use super::knative::MultiScaler;
use crate::{
    kpa::{Averages, Decider, DeciderSpec, Ready},
    window::MaxWindow,
    window::SECOND as SECOND_NS,
    window::Window,
};
use sas_core::Aggregation;

const S: i64 = SECOND_NS;
const T0: i64 = 1_700_000_000 * S;

fn linear(seconds: i64) -> Window {
    Window::new(seconds * S, S, Aggregation::Linear)
}

fn spec() -> DeciderSpec {
    DeciderSpec::for_target(7.0, 10.0)
}

fn averages(stable: f64, panic: f64) -> Option<Averages> {
    Some(Averages { stable, panic })
}

#[test]
fn samples_in_the_same_second_add_up() {
    let mut window = linear(6);
    window.record(T0, 3.0);
    window.record(T0 + S / 2, 4.0);
    assert_eq!(window.average(T0), 7.0);
}

#[test]
fn a_young_window_averages_only_over_its_filled_part() {
    let mut window = linear(60);
    window.record(T0, 10.0);
    assert_eq!(window.average(T0), 10.0);
    window.record(T0 + S, 20.0);
    assert_eq!(window.average(T0 + S), 15.0);
}

#[test]
fn a_gap_shorter_than_the_window_counts_as_zero_in_the_divisor() {
    let mut window = linear(6);
    window.record(T0, 8.0);
    window.record(T0 + 3 * S, 4.0);
    assert_eq!(window.average(T0 + 3 * S), 3.0);
}

#[test]
fn seconds_since_the_last_sample_are_left_out_of_the_divisor() {
    let mut window = linear(6);
    for second in 0..6 {
        window.record(T0 + second * S, 6.0);
    }
    assert_eq!(window.average(T0 + 8 * S), 6.0);
}

#[test]
fn at_the_windows_length_the_average_is_zero_but_it_is_not_empty() {
    let mut window = linear(6);
    window.record(T0, 6.0);
    assert_eq!(window.average(T0 + 6 * S), 0.0);
    assert!(!window.is_empty(T0 + 6 * S));
    assert!(window.is_empty(T0 + 7 * S));
}

#[test]
fn a_resize_forgets_that_the_window_was_young() {
    let mut window = linear(6);
    window.record(T0, 6.0);
    window.resize(T0, 12 * S);
    assert_eq!(window.average(T0), 1.0);
}

#[test]
fn with_default_rates_one_ready_instance_may_go_to_none() {
    let mut decider = Decider::new(&spec(), T0, Ready::Count(1));
    assert_eq!(decider.scale(&spec(), T0, Ready::Count(1), averages(0.0, 0.0)).unwrap().desired, 0);
}

#[test]
fn a_low_down_rate_keeps_nine_of_ten() {
    let mut slow = spec();
    slow.max_scale_down_rate = 1.1;
    let mut decider = Decider::new(&slow, T0, Ready::Count(0));
    assert_eq!(decider.scale(&slow, T0, Ready::Count(10), averages(0.0, 0.0)).unwrap().desired, 9);
}

#[test]
fn the_panic_compares_the_ceiled_count_with_at_least() {
    let mut decider = Decider::new(&spec(), T0, Ready::Count(1));
    // 7.1 / 7 is 2 instances, which is twice what is ready.
    decider.scale(&spec(), T0, Ready::Count(1), averages(0.0, 7.1));
    assert!(decider.is_panicking());
}

#[test]
fn a_panic_ends_strictly_after_the_stable_window() {
    let mut decider = Decider::new(&spec(), T0, Ready::Count(5));
    assert!(decider.is_panicking(), "a restart with more than one ready begins in panic");
    decider.scale(&spec(), T0 + 60 * S, Ready::Count(5), averages(7.0, 7.0));
    assert!(decider.is_panicking());
    decider.scale(&spec(), T0 + 60 * S + 1, Ready::Count(5), averages(7.0, 7.0));
    assert!(!decider.is_panicking());
    assert_eq!(decider.max_panic_pods(), 0);
}

#[test]
fn with_one_ready_the_maximum_is_kept_although_nothing_panics() {
    let decider = Decider::new(&spec(), T0, Ready::Count(1));
    assert_eq!((decider.is_panicking(), decider.max_panic_pods()), (false, 1));
}

#[test]
fn the_activation_scale_may_exceed_the_rate_limit() {
    let mut raised = spec();
    raised.activation_scale = 50;
    raised.max_scale_up_rate = 2.0;
    let mut decider = Decider::new(&raised, T0, Ready::Count(0));
    assert_eq!(decider.scale(&raised, T0, Ready::Count(0), averages(1.0, 1.0)).unwrap().desired, 50);
}

#[test]
fn a_spec_update_never_makes_or_drops_the_delay_window() {
    let mut delayed = spec();
    delayed.scale_down_delay_ns = 10 * S;
    let mut decider = Decider::new(&spec(), T0, Ready::Count(1));
    decider.scale(&delayed, T0, Ready::Count(1), averages(70.0, 0.0));
    let later = decider.scale(&delayed, T0 + 2 * S, Ready::Count(2), averages(7.0, 0.0)).unwrap();
    assert_eq!(later.desired, 1, "it was made without a delay");
}

#[test]
fn while_it_is_unreachable_the_delay_window_is_neither_read_nor_written() {
    let mut delayed = spec();
    delayed.scale_down_delay_ns = 10 * S;
    let mut decider = Decider::new(&delayed, T0, Ready::Count(0));
    decider.scale(&delayed, T0, Ready::Count(1), averages(70.0, 0.0));
    let mut unreachable = delayed;
    unreachable.reachable = false;
    let away = decider.scale(&unreachable, T0 + 2 * S, Ready::Count(10), averages(0.0, 0.0)).unwrap();
    assert_eq!(away.desired, 0);
    let back = decider.scale(&delayed, T0 + 4 * S, Ready::Count(10), averages(0.0, 0.0)).unwrap();
    assert_eq!(back.desired, 10, "its old content still counts");
}

#[test]
fn a_delay_of_five_seconds_acts_as_six_on_epoch_aligned_slots() {
    let mut window = MaxWindow::new(5 * S, 2 * S);
    window.record(0, 9);
    window.record(4 * S, 1);
    assert_eq!(window.current(), 9);
    window.record(6 * S, 1);
    assert_eq!(window.current(), 1);
}

#[test]
fn a_delay_of_one_second_merges_decisions_of_one_slot() {
    let mut window = MaxWindow::new(S, 2 * S);
    window.record(10 * S, 5);
    window.record(11 * S, 3);
    assert_eq!(window.current(), 5);
    window.record(12 * S, 3);
    assert_eq!(window.current(), 3);
}

#[test]
fn excess_burst_uses_the_real_ready_count_and_the_total_and_the_panic_value() {
    let mut decider = Decider::new(&spec(), T0, Ready::Count(0));
    let scaled = decider.scale(&spec(), T0, Ready::Count(0), averages(3.0, 5.5)).unwrap();
    assert_eq!(scaled.excess_burst, -217);
}

#[test]
fn a_count_that_is_not_found_is_none_and_any_other_error_decides_nothing() {
    let mut decider = Decider::new(&spec(), T0, Ready::Count(1));
    assert!(decider.scale(&spec(), T0, Ready::NotFound, averages(7.0, 0.0)).is_some());
    let before = decider.clone();
    assert_eq!(decider.scale(&spec(), T0 + S, Ready::Unknown, averages(700.0, 700.0)), None);
    assert_eq!(decider.scale(&spec(), T0 + S, Ready::Count(1), None), None);
    assert_eq!(decider, before);
}

#[test]
fn a_new_decider_reports_minus_one_and_the_initial_excess() {
    let scaler = MultiScaler::new(&spec(), T0, Ready::Count(0));
    assert_eq!((scaler.desired(), scaler.excess_burst()), (-1, -201));
    assert!(!scaler.is_poked_by(5.0), "only a decision of none can be poked");
}
