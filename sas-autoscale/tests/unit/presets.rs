//! Knative's known hazards: the compatible preset has them, the default one does not.

use std::time::Duration;

use crate::{
    govern::Governor,
    kpa::{Activity, Kpa, KpaState, LifecycleSpec, ScaleCall, scale},
};
use sas_core::{
    Clamps, Decision, Fidelity, Load, Policy, Reason, RevisionKey, ScaleInput, ScalingSpec, Timestamp,
    Verdict,
};

const START: Timestamp = Timestamp::from_secs(1_700_000_000);

/// A scaler and what stands between it and the pool, for one revision.
struct Revision {
    spec: ScalingSpec,
    concurrency: u32,
    state: KpaState,
    governor: Option<Governor>,
    desired: Option<u32>,
    second: u64,
}

impl Revision {
    fn new(preset: Fidelity, change: impl FnOnce(&mut ScalingSpec)) -> Self {
        let mut spec = ScalingSpec::default();
        spec.fidelity = preset;
        change(&mut spec);
        spec.validate().expect("a valid spec");
        Self { spec, concurrency: 0, state: KpaState::default(), governor: None, desired: None, second: 0 }
    }

    fn tick(&mut self, load: &Load) -> Decision {
        self.second += 1;
        let now = START + Duration::from_secs(self.second);
        let input = ScaleInput::new(0, now, &self.spec, load, self.desired).of(self.concurrency, None);
        let mut decision = Kpa::default().decide(&mut self.state, &input);
        let governor = self.governor.get_or_insert_with(|| Governor::new(&self.spec, load, false, false));
        governor.apply(&input, &mut decision);
        self.desired = decision.desired().or(self.desired);
        decision
    }
}

fn load(ready: u32, concurrency: f64, requests: u32) -> Load {
    let mut load = Load::idle(RevisionKey::new(0, 0));
    load.ready = ready;
    load.concurrency = concurrency;
    load.requests = requests;
    load
}

#[test]
fn compatible_min_scale_is_lost_after_a_restart_of_the_autoscaler() {
    let mut spec = ScalingSpec::default();
    spec.min = 3;
    let mut call = ScaleCall::new(-1, 0);
    call.activity = Activity::Inactive;
    call.initialized = true;
    let answer = scale(&LifecycleSpec::from_scaling(&spec), &call);
    assert_eq!((answer.want, answer.patched), (-1, None), "nothing is done until traffic comes");
}

#[test]
fn mended_min_scale_is_there_without_any_data() {
    let mut spec = ScalingSpec::default();
    spec.min = 3;
    let load = load(0, 0.0, 0);
    let mut governor = Governor::new(&spec, &load, true, true);
    let mut decision = Decision::hold(Reason::NoData);
    governor.apply(&ScaleInput::new(0, START, &spec, &load, None), &mut decision);
    assert_eq!(decision.verdict, Verdict::Set(3));
    assert!(decision.clamps.contains(Clamps::MIN));
}

/// 20 requests per second of half a second each, on instances for one request that take 20 s to start: 10 run at
/// once. Returns the most that was ever wanted.
fn slow_starters(preset: Fidelity) -> u32 {
    let mut revision = Revision::new(preset, |spec| spec.target = 1.0);
    revision.concurrency = 1;
    let mut starts: Vec<u64> = Vec::new();
    let (mut waiting, mut most) = (0_u32, 0);
    for second in 0..120_u64 {
        let ready = starts.iter().filter(|at| second >= **at + 20).count() as u32;
        let starting = starts.len() as u32 - ready;
        // Each ready instance answers two a second.
        let before = waiting;
        waiting = (waiting + 20).saturating_sub(2 * ready);
        let served = before + 20 - waiting;
        let mut seen = load(ready, f64::from(waiting) + f64::from(served) / 2.0, 20);
        seen.starting = starting;
        seen.queued = waiting;
        let desired = revision.tick(&seen).desired().unwrap_or(0);
        most = most.max(desired);
        while (starts.len() as u32) < desired {
            starts.push(second);
        }
    }
    most
}

#[test]
fn compatible_panics_overshoot_with_slow_starters_and_mended_ones_count_what_starts() {
    let compatible = slow_starters(Fidelity::Exact);
    let mended = slow_starters(Fidelity::Corrected);
    assert!(compatible > 400, "the whole queue of twenty seconds: {compatible}");
    assert!(mended >= 10, "enough for what comes: {mended}");
    assert!(mended * 4 < compatible, "{mended} against {compatible}");
}

/// A new revision with five instances to begin with, a delay of a minute and no traffic: what it wants, per second.
fn initial_scale(preset: Fidelity) -> Vec<u32> {
    let mut revision = Revision::new(preset, |spec| {
        spec.initial = 5;
        spec.scale_down_delay = Duration::from_secs(60);
        spec.stable_window = Duration::from_secs(6);
    });
    let mut ready = 0;
    (0..50)
        .map(|_| {
            let desired = revision.tick(&load(ready, 0.0, 0)).desired().unwrap_or(ready);
            ready = desired;
            desired
        })
        .collect()
}

#[test]
fn compatible_initial_scale_ignores_the_scale_down_delay_and_mended_does_not() {
    let compatible = initial_scale(Fidelity::Exact);
    assert!(compatible.contains(&5));
    assert!(*compatible.last().unwrap() < 5, "it fell within the delay: {compatible:?}");
    let mended = initial_scale(Fidelity::Corrected);
    assert!(mended.iter().all(|desired| *desired == 5), "{mended:?}");
}

/// Seconds from the end of a load of 100 instances until at most 20 are wanted for what is left.
fn seconds_to_shrink(preset: Fidelity) -> usize {
    let mut revision = Revision::new(preset, |spec| {
        spec.target = 10.0;
        spec.utilization = 1.0;
    });
    let mut ready = 100;
    for _ in 0..200 {
        ready = revision.tick(&load(ready, 1000.0, 1000)).desired().unwrap();
    }
    assert_eq!(ready, 100);
    for second in 0..300 {
        ready = revision.tick(&load(ready, 100.0, 100)).desired().unwrap();
        assert!(ready >= 10, "never below what the load needs");
        if ready <= 20 {
            return second;
        }
    }
    panic!("it never shrank");
}

#[test]
fn compatible_scale_down_takes_a_whole_window_and_mended_a_clear_case_a_fifth_of_it() {
    let compatible = seconds_to_shrink(Fidelity::Exact);
    let mended = seconds_to_shrink(Fidelity::Corrected);
    assert!(compatible >= 50, "{compatible}");
    assert!(mended <= 20, "{mended}");
}

#[test]
fn mended_what_shrank_does_not_come_back_for_an_old_average() {
    let mut revision = Revision::new(Fidelity::Corrected, |spec| {
        spec.target = 10.0;
        spec.utilization = 1.0;
    });
    let mut ready = 20;
    for _ in 0..200 {
        ready = revision.tick(&load(ready, 200.0, 200)).desired().unwrap();
    }
    let mut wanted = Vec::new();
    for _ in 0..120 {
        ready = revision.tick(&load(ready, 80.0, 80)).desired().unwrap();
        wanted.push(ready);
    }
    assert_eq!(*wanted.last().unwrap(), 8);
    assert!(wanted.is_sorted_by(|earlier, later| earlier >= later), "{wanted:?}");
}

#[test]
fn mended_the_last_instance_still_waits_for_a_whole_quiet_window() {
    let mut revision = Revision::new(Fidelity::Corrected, |spec| spec.scale_to_zero_grace = Duration::ZERO);
    for _ in 0..100 {
        revision.tick(&load(1, 50.0, 50));
    }
    let mut quiet = 0;
    while revision.tick(&load(1, 0.0, 0)).desired() != Some(0) {
        quiet += 1;
        assert!(quiet < 200);
    }
    assert!((59..=61).contains(&quiet), "{quiet}");
}

#[test]
fn a_scaler_with_bad_input_keeps_the_last_good_decision_and_says_so() {
    for preset in [Fidelity::Corrected, Fidelity::Exact] {
        let mut revision = Revision::new(preset, |spec| spec.target = 10.0);
        for _ in 0..30 {
            revision.tick(&load(10, 70.0, 70));
        }
        assert_eq!(revision.desired, Some(10));
        for bad in [f64::NAN, f64::INFINITY, -1.0, 1e300] {
            let decision = revision.tick(&load(10, bad, 70));
            assert_eq!(decision.reason, Reason::BadInput, "{bad}");
            assert_eq!(decision.proposed, None, "{bad}");
            assert_eq!(revision.desired, Some(10));
        }
    }
}

#[test]
fn compatible_a_clock_that_goes_back_holds_the_decision() {
    let mut revision = Revision::new(Fidelity::Exact, |spec| spec.target = 10.0);
    for _ in 0..30 {
        revision.tick(&load(10, 70.0, 70));
    }
    revision.second -= 20;
    let decision = revision.tick(&load(10, 70.0, 70));
    assert_eq!(decision.reason, Reason::BadInput);
}

#[test]
fn a_restart_under_load_is_never_below_what_was_ready_in_either_preset() {
    for preset in [Fidelity::Corrected, Fidelity::Exact] {
        let mut revision = Revision::new(preset, |_| {});
        // The load of ten instances is spread over thirty: without a window's memory, ten would do.
        for second in 0..60 {
            let first = load(30, 700.0, 700);
            let governor = Governor::new(&revision.spec, &first, true, true);
            revision.governor.get_or_insert(governor);
            let decision = revision.tick(&first);
            assert!(decision.desired().is_none_or(|desired| desired >= 30), "{preset:?} second {second}");
        }
    }
}

/// Decides on 100 requests at once for a minute, looked at every `tick`: at how many milliseconds a decision was made,
/// and the average of the stable window in the last one.
fn compatible_ticks(tick: Duration) -> (Vec<u128>, f64) {
    let mut spec = ScalingSpec::default();
    spec.fidelity = Fidelity::Exact;
    let mut state = KpaState::default();
    let mut made = Vec::new();
    let mut average = 0.0;
    let mut passed = Duration::ZERO;
    while passed < Duration::from_secs(90) {
        passed += tick;
        let load = load(2, 100.0, 0);
        let input = ScaleInput::new(0, START + passed, &spec, &load, Some(2)).over(tick);
        let decision = Kpa::default().decide(&mut state, &input);
        match decision.verdict {
            Verdict::Set(_) => {
                made.push(passed.as_millis());
                average = decision.votes[0].value.unwrap();
            }
            Verdict::Hold => assert_eq!(decision.reason, Reason::BetweenTicks),
        }
    }
    (made, average)
}

#[test]
fn compatible_decisions_are_two_seconds_apart_however_often_it_is_looked_at() {
    for tick in [50, 250, 500, 1000, 2000] {
        let (made, average) = compatible_ticks(Duration::from_millis(tick));
        for pair in made.windows(2) {
            assert_eq!(pair[1] - pair[0], 2000, "ticks of {tick} ms");
        }
        assert!(made.len() >= 44, "ticks of {tick} ms: {}", made.len());
        // Each second counts once, not once per look and not in every other one only.
        assert!((average - 100.0).abs() < 4.0, "ticks of {tick} ms: {average}");
    }
    // Later than Knative's own ticks: one decision each.
    let (made, average) = compatible_ticks(Duration::from_secs(5));
    assert!(made.windows(2).all(|pair| pair[1] - pair[0] == 5000));
    assert!((average - 100.0).abs() < 1e-6, "{average}");
}

#[test]
fn compatible_the_first_request_after_zero_is_decided_on_at_once() {
    let mut revision = Revision::new(Fidelity::Exact, |spec| {
        spec.target = 10.0;
        // Without it nothing is decided while nobody reports.
        spec.target_burst_capacity = -1.0;
    });
    for _ in 0..3 {
        assert_eq!(revision.tick(&load(0, 0.0, 0)).proposed.unwrap_or(0), 0);
    }
    // The third tick was a decision, so this one lies between two.
    assert_eq!(revision.tick(&load(0, 0.0, 0)).reason, Reason::BetweenTicks);
    assert!(revision.tick(&load(0, 0.0, 0)).proposed.is_some());
    let woken = revision.tick(&load(0, 50.0, 50));
    assert_eq!(woken.proposed, Some(8), "{woken:?}");
}
