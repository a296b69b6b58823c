//! Forecasts: against the textbook, and at the edges of slots and seasons.

use super::*;

/// Additive Holt-Winters as the textbooks have it: every level, trend and season by its time.
struct Textbook {
    length: usize,
    level: Vec<f64>,
    trend: Vec<f64>,
    season: Vec<f64>,
    variance: f64,
}

impl Textbook {
    fn of(length: usize, demands: &[f64]) -> Self {
        let first = &demands[..length];
        let mean = first.iter().sum::<f64>() / length as f64;
        let mut model = Self {
            length,
            level: vec![mean],
            trend: vec![0.0],
            season: first.iter().map(|x| x - mean).collect(),
            variance: mean,
        };
        for x in &demands[length..] {
            let (level, trend) = (model.level[model.level.len() - 1], model.trend[model.trend.len() - 1]);
            let season = model.season[model.season.len() - length];
            let error = x - level - trend - season;
            model.variance = model.variance * 0.98 + error * error * 0.02;
            let next = 0.2 * (x - season) + 0.8 * (level + trend);
            model.level.push(next);
            model.trend.push(0.01 * (next - level) + 0.99 * trend);
            model.season.push(0.2 * (x - next) + 0.8 * season);
        }
        model
    }

    fn expect(&self, ahead: usize) -> f64 {
        let at = self.season.len() - self.length + (ahead - 1) % self.length;
        let (level, trend) = (self.level[self.level.len() - 1], self.trend[self.trend.len() - 1]);
        (level + ahead as f64 * trend + self.season[at]).clamp(0.0, 1e12)
    }
}

#[test]
fn the_seasonal_model_is_the_textbooks() {
    for seed in 0..30 {
        let mut random = SmallRng::seed_from_u64(seed);
        let length = random.random_range(2..9_usize);
        let mut model = Seasonal::new(length as u32);
        let mut demands = Vec::new();
        for slot in 0..length * 6 {
            assert_eq!(model.expect(1).is_some(), slot >= length, "silent for one season");
            let (asked, counts) = match random.random_range(0..12) {
                0 => (f64::NAN, 0.0),
                1 => (-3.0, 0.0),
                2 if slot > length => (1e13, 1e12),
                3 => (f64::INFINITY, 0.0),
                _ => {
                    let x = 100.0 * random.random::<f64>() + 50.0 * (slot % length) as f64;
                    (x, x)
                }
            };
            model.observe(asked);
            demands.push(counts);
            if demands.len() >= length {
                let book = Textbook::of(length, &demands);
                for ahead in 1..=2 * length {
                    let said = model.expect(ahead as u32).expect("after a season");
                    assert!(
                        close(said, book.expect(ahead)),
                        "seed {seed}, slot {slot}, {ahead} ahead: {said}"
                    );
                }
                assert!(close(model.deviation(), book.variance.max(0.0).sqrt()), "seed {seed}, slot {slot}");
            }
        }
        assert_eq!(model.expect(0), None, "now is not ahead");
    }
    // One of no length is one of the shortest.
    let mut shortest = Seasonal::default();
    assert_eq!(shortest.expect(1), None);
    for demand in [1.0, 3.0, 1.0] {
        shortest.observe(demand);
    }
    let book = Textbook::of(2, &[1.0, 3.0, 1.0]);
    assert!(close(shortest.expect(1).unwrap(), book.expect(1)));
}

pub(crate) fn quarter_hours(season: u32) -> ForecastSpec {
    let mut spec = ForecastSpec::default();
    spec.slot = Duration::from_secs(900);
    spec.season = season;
    spec.headroom = 2.0;
    spec.lead = Duration::from_secs(60);
    spec
}

/// The start of a slot.
pub(crate) fn slot(number: i64) -> Timestamp {
    Timestamp(number * 900_000_000_000)
}

#[test]
fn a_forecaster_takes_the_mean_of_a_slot_by_time_and_nothing_for_slots_that_were_slept_through() {
    let spec = quarter_hours(4);
    let mut forecaster = Forecaster::default();
    let mut model = Seasonal::new(4);
    let second = Duration::from_secs(1);
    let tick = |forecaster: &mut Forecaster, number: i64, demand: f64, elapsed: Duration| {
        forecaster.observe(&spec, slot(number) + second, demand, elapsed);
    };
    // 30 s of 10 and 10 s of 50: 20 on average; what is no measurement does not count.
    tick(&mut forecaster, 100, 10.0, second * 30);
    tick(&mut forecaster, 100, 50.0, second * 10);
    tick(&mut forecaster, 100, f64::NAN, second * 500);
    tick(&mut forecaster, 100, -1.0, second * 500);
    tick(&mut forecaster, 100, 2e12, second * 500);
    // Three slots later: the two between were slept through. A clock that went back adds to the slot it had reached.
    tick(&mut forecaster, 103, 8.0, second * 10);
    tick(&mut forecaster, 99, 4.0, second * 30);
    tick(&mut forecaster, 104, 1.0, second);
    for mean in [20.0, 0.0, 0.0, 5.0] {
        model.observe(mean);
    }
    // A tick that tells of more than a slot counts as one slot.
    tick(&mut forecaster, 104, 100.0, second * 5000);
    tick(&mut forecaster, 105, 0.0, second);
    model.observe((1.0 + 100.0 * 900.0) / 901.0);
    let wanted = model.expect(1).unwrap() + 2.0 * model.deviation();
    let said = forecaster.demand(&spec, slot(105), Duration::ZERO, 1.0).unwrap();
    assert!(close(said, wanted), "{said} is not {wanted}");
    // A sleep of years is a season of nothing and not more.
    tick(&mut forecaster, 1_000_000, 0.0, second);
    model.observe(0.0);
    for _ in 0..4 {
        model.observe(0.0);
    }
    let said = forecaster.demand(&spec, slot(1_000_000), spec.slot * 3, 1e-9).unwrap();
    let highest = (1..=4).filter_map(|ahead| model.expect(ahead)).fold(0.0, f64::max);
    assert!(highest > 0.1, "{highest}");
    let wanted = highest + 2.0 * model.deviation();
    assert!(close(said, wanted), "{said} is not {wanted}");
    // Another season is another model.
    forecaster.observe(&quarter_hours(6), slot(1_000_001), 5.0, second);
    assert_eq!(forecaster.demand(&spec, slot(1_000_001), Duration::ZERO, 1.0), None);
}

/// A forecaster that saw `days` seasons of these demands, up to the last slot's end.
fn taught(spec: &ForecastSpec, season: &[f64], days: usize) -> (Forecaster, Seasonal, i64) {
    let (mut forecaster, mut model) = (Forecaster::default(), Seasonal::new(spec.season));
    let slots = season.len() * days;
    for number in 0..slots {
        let demand = season[number % season.len()];
        forecaster.observe(spec, slot(number as i64), demand, spec.slot);
        model.observe(demand);
    }
    // The first tick of the next slot ends the last one.
    forecaster.observe(spec, slot(slots as i64), season[0], Duration::from_secs(1));
    (forecaster, model, slots as i64)
}

#[test]
fn the_demand_is_the_highest_within_the_lead_with_head_room_and_noise_is_nothing() {
    let spec = quarter_hours(4);
    let (forecaster, model, now) = taught(&spec, &[0.0, 10.0, 40.0, 0.0], 30);
    let with = |value: f64| value + 2.0 * model.deviation();
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let at = slot(now);
    let said = |lead: Duration, target: f64| forecaster.demand(&spec, at, lead, target).unwrap();
    let expected = |ahead| model.expect(ahead).unwrap();
    assert_eq!(said(minutes(14), 100.0), 0.0, "of the slot that runs nothing is expected");
    assert!(close(said(minutes(15), 1.0), with(expected(2))));
    assert!(close(said(minutes(30), 1.0), with(expected(3))));
    assert!(close(said(minutes(45), 1.0), with(expected(3))), "the highest, and not the last");
    assert!(close(said(minutes(10_000), 1.0), with(expected(3))), "not beyond one season");
    // A twentieth of a target is noise.
    let peak = expected(3);
    assert_eq!(said(minutes(30), peak / 0.05 * 1.000_001), 0.0);
    assert!(close(said(minutes(30), peak / 0.05 * 0.999_999), with(peak)));
    assert_eq!(Forecaster::default().demand(&spec, at, minutes(1), 1.0), None);
}

#[test]
fn a_sleeper_wakes_ahead_of_the_next_slot_in_which_somebody_comes() {
    let spec = quarter_hours(4);
    let (forecaster, _, now) = taught(&spec, &[0.0, 0.0, 40.0, 0.0], 30);
    let lead = Duration::from_secs(60);
    let next = |at: Timestamp, lead| forecaster.next_peak(&spec, at, lead, 1.0);
    assert_eq!(next(slot(now), lead), slot(now + 2) - lead);
    assert_eq!(next(slot(now + 1), lead), slot(now + 2) - lead);
    // When it is too late for this one, for the next.
    assert_eq!(next(slot(now + 2) - lead, lead), slot(now + 6) - lead);
    assert_eq!(next(slot(now + 2), lead), slot(now + 6) - lead);
    // Nobody that matters: look again in a season.
    assert_eq!(forecaster.next_peak(&spec, slot(now), lead, 1e6), slot(now + 4));
    assert_eq!(Forecaster::default().next_peak(&spec, slot(now), lead, 1.0), slot(now + 4));
}

#[test]
fn a_forecast_raises_the_floor_by_what_one_instance_carries() {
    let mut spec = ScalingSpec::default();
    spec.scaler = "forecast".to_owned();
    Options::edit(&mut spec, |options| options.forecast = Some(quarter_hours(4))).unwrap();
    spec.target = 4.0;
    spec.utilization = 0.5;
    // (metric, limit of an instance, requests, concurrency, seconds) -> what one carries, what is asked.
    for (metric, limit, requests, concurrency, seconds, target, demand) in [
        (Metric::Concurrency, 0, 7, 6.0, 2, 2.0, 6.0),
        (Metric::Concurrency, 3, 7, 6.0, 2, 1.5, 6.0),
        (Metric::Concurrency, 50, 7, 6.0, 2, 2.0, 6.0),
        (Metric::Rps, 3, 12, 6.0, 2, 2.0, 6.0),
        (Metric::Rps, 3, 12, 6.0, 0, 2.0, 0.0),
    ] {
        spec.metric = metric;
        let mut state = ForecastState::default();
        let mut model = Seasonal::new(4);
        let mut busy = load(1);
        (busy.requests, busy.concurrency) = (requests, concurrency);
        let mut last = None;
        for number in 0..6 {
            let input = ScaleInput::new(0, slot(number), &spec, &busy, Some(0))
                .of(limit, None)
                .over(Duration::from_secs(seconds));
            last = Some(Forecast.decide(&mut state, &input));
            if number < 5 {
                model.observe(demand);
            }
        }
        let decision = last.unwrap();
        let vote = decision.votes.iter().find(|vote| vote.metric == Metric::Forecast).unwrap();
        assert!(close(vote.target, target), "{metric:?}, {limit}: {vote:?}");
        let lead = Duration::from_secs(60) + busy.start_time.unwrap_or_default();
        assert!(lead < Duration::from_secs(900));
        let expected = match model.expect(1).unwrap() {
            none if none <= 0.05 * target => 0.0,
            some => some + 2.0 * model.deviation(),
        };
        assert!(close(vote.value.unwrap(), expected), "{metric:?}: {vote:?}, {expected}");
        assert_eq!(vote.desired, Some((expected / target).ceil() as u32));
        if demand > 0.0 {
            assert_eq!(decision.desired(), vote.desired);
            assert_eq!(decision.reason, Reason::Forecast);
        }
    }
}

#[test]
fn a_start_that_takes_long_is_asked_for_as_much_earlier_but_not_more_than_ten_minutes() {
    let mut spec = ScalingSpec::default();
    Options::edit(&mut spec, |options| options.forecast = Some(quarter_hours(4))).unwrap();
    for (start, lead) in [(None, 60), (Some(30), 90), (Some(600), 660), (Some(6_000), 660)] {
        let mut state = ForecastState::default();
        for number in 0..120 {
            let mut busy = load(1);
            busy.concurrency = if number % 4 == 2 { 500.0 } else { 0.0 };
            let input = ScaleInput::new(0, slot(number), &spec, &busy, None).over(Duration::from_secs(900));
            Forecast.decide(&mut state, &input);
        }
        let mut asleep = load(0);
        asleep.start_time = start.map(Duration::from_secs);
        let input = ScaleInput::new(0, slot(120), &spec, &asleep, None);
        Forecast.decide(&mut state, &input);
        assert_eq!(
            Forecast.wake_at(&state, &input),
            Some(slot(122) - Duration::from_secs(lead)),
            "{start:?}"
        );
    }
}
