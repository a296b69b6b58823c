//! What every capacity law guarantees, for every series of demand.
//!
//! `PROPTEST_CASES=1000000 cargo test --release -p sas-pool capacity::laws` runs each over a million series.

use std::time::Duration;

use proptest::{collection::vec, prelude::*};
use sas_core::{CapacityInput, CapacityPolicy, Timestamp};

use super::{FastUpSlowDown, HoltWinters, MovingAverage, Seasonal, SeasonalConfig, Static};

/// Demand as it comes: quiet, jumping to its maximum and to nothing, or spiking.
fn demands() -> impl Strategy<Value = Vec<u32>> {
    let one = prop_oneof![
        6 => 0_u32..50,
        2 => 0_u32..5_000,
        1 => Just(0_u32),
        1 => Just(u32::MAX),
    ];
    let steps = vec((one, 1_usize..12), 1..14);
    steps.prop_map(|steps| steps.into_iter().flat_map(|(demand, times)| vec![demand; times]).collect())
}

fn input(slot: usize, taken: u32) -> CapacityInput {
    let at = i64::try_from(slot + 1).expect("short series");
    CapacityInput::new(Timestamp::from_secs(60 * at), Duration::from_secs(60), taken)
}

/// A few series, unless `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 48;
    }
    config
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_step_is_followed_within_two_slots(demands in demands()) {
        let (mut law, mut seasonal) = (FastUpSlowDown::default(), Seasonal::default());
        let mut before = 0;
        for (slot, &taken) in demands.iter().enumerate() {
            prop_assert!(law.target(&input(slot, taken)) >= taken);
            prop_assert!(seasonal.target(&input(slot, taken)) >= taken.min(before));
            before = taken;
        }
    }

    #[test]
    fn shrinking_is_bounded_per_slot(demands in demands(), down in 0.0..=1.0_f64) {
        let mut law = FastUpSlowDown::new(down, 1.0).unwrap();
        let config = SeasonalConfig { max_shrink: down, ..SeasonalConfig::default() };
        let mut seasonal = Seasonal::new(config).unwrap();
        let (mut size, mut seasonal_size) = (0, 0);
        for (slot, &taken) in demands.iter().enumerate() {
            let next = law.target(&input(slot, taken));
            prop_assert!(f64::from(next) >= f64::from(size) * (1.0 - down) - 1.0, "{size} to {next}");
            let seasonal_next = seasonal.target(&input(slot, taken));
            let least = f64::from(seasonal_size) * (1.0 - down) - 1.0;
            prop_assert!(f64::from(seasonal_next) >= least, "{seasonal_size} to {seasonal_next}");
            (size, seasonal_size) = (next, seasonal_next);
        }
    }

    #[test]
    fn constant_demand_does_not_oscillate(demands in demands(), constant in 0_u32..100_000) {
        let mut law = FastUpSlowDown::default();
        let mut size = 0;
        for (slot, &taken) in demands.iter().enumerate() {
            size = law.target(&input(slot, taken));
        }
        size = size.max(constant);
        for slot in 0..400 {
            let next = law.target(&input(demands.len() + slot, constant));
            prop_assert!(next <= size, "grew from {size} to {next} at {constant}");
            size = next;
        }
        prop_assert_eq!(size, constant);
    }

    #[test]
    fn the_size_stays_within_its_bounds(demands in demands(), min in 0_u32..100, more in 0_u32..1_000) {
        let max = min + more;
        let mut laws: [Box<dyn CapacityPolicy>; 5] = [
            Box::new(Static::new(50)),
            Box::new(FastUpSlowDown::default()),
            Box::new(MovingAverage::new(5, 2.0).unwrap()),
            Box::new(HoltWinters::new(4, 2.0).unwrap()),
            Box::new(Seasonal::default()),
        ];
        for (slot, &taken) in demands.iter().enumerate() {
            let mut input = input(slot, taken);
            (input.min, input.max) = (min, max);
            for law in &mut laws {
                let size = law.target(&input);
                prop_assert!((min..=max).contains(&size), "{law:?}: {size}");
            }
        }
    }

    #[test]
    fn a_clock_that_jumps_breaks_nothing(jumps in vec((any::<i64>(), 0_u32..500, 0_u64..4_000), 1..40)) {
        let mut seasonal = Seasonal::default();
        for (now, taken, seconds) in jumps {
            let input = CapacityInput::new(Timestamp(now), Duration::from_secs(seconds), taken);
            seasonal.target(&input);
            if let Some((forecast, scale)) = seasonal.forecast() {
                prop_assert!(forecast.is_finite() && forecast >= 0.0 && scale.is_finite());
            }
        }
    }
}

#[test]
fn the_seasonal_law_holds_exactly_what_constant_demand_takes() {
    let mut seasonal = Seasonal::default();
    let sizes: Vec<u32> = (0..3_000).map(|slot| seasonal.target(&input(slot, 12))).collect();
    assert!(sizes[300..].windows(2).all(|pair| pair[1] <= pair[0]), "{:?}", &sizes[300..]);
    assert_eq!(*sizes.last().unwrap(), 12);
}

#[test]
fn the_seasonal_law_is_ready_for_a_spike_on_the_clock() {
    let demand = |slot: usize| if slot % 60 == 59 { 200_u32 } else { 10 };
    let mut seasonal = Seasonal::default();
    let mut size = 0_u32;
    let (mut missed, mut over) = (0, 0);
    for slot in 0..2_880 {
        if slot >= 1_440 {
            missed += demand(slot).saturating_sub(size);
            over += size.saturating_sub(demand(slot));
        }
        size = seasonal.target(&input(slot, demand(slot)));
    }
    assert!(missed < 24 * 10, "{missed} of {} missed", 24 * 200);
    // A pool as large as the spike would hold 190 idle stems in 59 of 60 minutes.
    assert!(over < 24 * 59 * 190 / 8, "{over}");
}

#[test]
fn a_state_that_was_stored_goes_on_as_if_it_had_not_been() {
    let mut policy = Seasonal::default();
    for slot in 0..200 {
        policy.target(&input(slot, u32::try_from(slot % 17).unwrap()));
    }
    let text = serde_json::to_string(&policy).unwrap();
    let mut again: Seasonal = serde_json::from_str(&text).unwrap();
    for slot in 200..260 {
        assert_eq!(policy.target(&input(slot, 9)), again.target(&input(slot, 9)));
    }
}

#[test]
fn its_memory_is_bounded_whatever_the_slot() {
    for seconds in [1, 60, 300, 86_400, 864_000] {
        let mut policy = Seasonal::default();
        let slot = Duration::from_secs(seconds);
        for at in 1..50 {
            let now = Timestamp::from_secs(i64::try_from(seconds).unwrap() * at);
            policy.target(&CapacityInput::new(now, slot, 3));
        }
        assert!(policy.bytes() < 420_000, "{} bytes at {seconds} s", policy.bytes());
        if seconds == 60 {
            assert!(policy.bytes() < 84_000, "{}", policy.bytes());
        }
    }
}

#[test]
fn a_parameter_out_of_its_range_is_refused_by_name() {
    let config = SeasonalConfig { floor: 1.5, max_shrink: f64::NAN, ..SeasonalConfig::default() };
    let errors = Seasonal::new(config).unwrap_err().to_string();
    assert!(errors.contains("floor") && errors.contains("1.5") && errors.contains("maxShrink"), "{errors}");
    assert!(FastUpSlowDown::new(-0.1, 1.0).unwrap_err().to_string().contains("down"));
    assert!(HoltWinters::new(1, 1.0).unwrap_err().to_string().contains("length"));
    assert!(MovingAverage::new(0, 1.0).unwrap_err().to_string().contains("window"));
}
