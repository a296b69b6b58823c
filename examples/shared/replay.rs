//! What the replay of a trace needs beside the policies: files, the grids that are compared, tables.

use std::{
    error::Error,
    fs::File,
    io::{BufRead, BufReader},
    path::Path,
    time::Duration,
};

use sas_core::{CapacityPolicy, KeepAlivePolicy, RevisionKey};
use sas_pool::{
    capacity::{FastUpSlowDown, HoltWinters, MovingAverage, Seasonal, SeasonalConfig},
    keep_alive::{Fixed, Footprint, GreedyDual, Hazard, HazardConfig, HybridHistogram},
    trace::{
        self, CapacityScore, Function, KeepAliveTotals, Series, Trace, miss_at, replay_capacity,
        replay_evictions, replay_keep_alive,
    },
};

/// A trace as the two replays take it.
pub(crate) enum Loaded {
    /// For keep-alive policies.
    Functions(Vec<Function>),
    /// For capacity laws.
    Demand(Vec<Series>),
}

/// Reads a file, decompressed when its name ends with `.gz`.
pub(crate) fn load(path: &Path) -> Result<Loaded, Box<dyn Error>> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| named(&error))?;
    let input: Box<dyn BufRead> = if path.extension().is_some_and(|end| end == "gz") {
        Box::new(BufReader::new(flate2::read::GzDecoder::new(file)))
    } else {
        Box::new(BufReader::new(file))
    };
    Ok(match trace::open(input).map_err(|error| named(&error))? {
        Trace::Functions(rows) => {
            Loaded::Functions(rows.collect::<Result<_, _>>().map_err(|error| named(&error))?)
        }
        Trace::Demand(rows) => Loaded::Demand(rows.collect().map_err(|error| named(&error))?),
        Trace::Calls(calls) => Loaded::Functions(calls.per_minute().map_err(|error| named(&error))?),
    })
}

/// A keep-alive policy and its knob.
pub(crate) struct Keeper {
    pub(crate) family: &'static str,
    pub(crate) name: String,
    pub(crate) make: Box<dyn Fn() -> Box<dyn KeepAlivePolicy>>,
}

fn keeper<P: KeepAlivePolicy + Clone>(family: &'static str, name: String, policy: P) -> Keeper {
    Keeper { family, name, make: Box::new(move || Box::new(policy.clone())) }
}

fn fixed(minutes: u64) -> Keeper {
    keeper("fixed", format!("fixed {minutes} min"), Fixed::new(Duration::from_secs(60 * minutes)))
}

fn hybrid(minutes: u64) -> Keeper {
    let policy = HybridHistogram::new(Duration::from_secs(60 * minutes)).expect("minutes up to a day");
    keeper("hybrid histogram", format!("hybrid histogram, {minutes} min fall-back"), policy)
}

fn hazard(config: HazardConfig) -> Keeper {
    let name = format!("hazard, threshold {}", config.threshold);
    keeper("hazard", name, Hazard::new(&config).expect("thresholds in range"))
}

/// The baselines and, last, the default.
pub(crate) fn keepers() -> Vec<Keeper> {
    vec![fixed(1), fixed(10), fixed(60), hybrid(240), hybrid(10), hazard(HazardConfig::default())]
}

/// The same with the knob of each turned, for a curve per policy.
pub(crate) fn keeper_curves() -> Vec<Keeper> {
    let fixed = [1, 2, 5, 10, 15, 20, 30, 45, 60, 90, 120].map(fixed);
    let hybrid = [5, 10, 20, 30, 60, 120, 240].map(hybrid);
    let hazard = [0.003, 0.005, 0.008, 0.011, 0.015, 0.019, 0.024, 0.03, 0.05, 0.1]
        .map(|threshold| hazard(HazardConfig::with_threshold(threshold)));
    fixed.into_iter().chain(hybrid).chain(hazard).collect()
}

/// The score of a policy on `rows`, each its own revision.
pub(crate) fn keep(keeper: &Keeper, rows: &[&Function]) -> (KeepAliveTotals, u64, usize) {
    let (mut policy, mut totals, mut active) = ((keeper.make)(), KeepAliveTotals::default(), 0);
    for (slot, row) in (0..).zip(rows) {
        let score = replay_keep_alive(&mut *policy, RevisionKey::new(slot, 0), row);
        active += score.active;
        totals.add(row, score);
    }
    (totals, active, policy.bytes())
}

/// The score of `GreedyDual` on `rows`, all under one budget: so many times the memory that a fixed keep-alive of ten
/// minutes holds on average.
pub(crate) fn evict(share: f64, rows: &[&Function]) -> (KeepAliveTotals, u64, usize) {
    let footprint = Footprint::default();
    let (mut policy, mut ten) = (Fixed::new(Duration::from_secs(600)), 0.0);
    for row in rows.iter().filter(|row| !row.active.is_empty()) {
        let score = replay_keep_alive(&mut policy, RevisionKey(0), row);
        ten += row.weight * (score.active + score.waste) as f64 / f64::from(row.minutes.max(1));
    }
    let mut policy = GreedyDual::new((share * ten * footprint.bytes as f64) as u64);
    let scores = replay_evictions(&mut policy, rows, footprint);
    let (mut totals, mut active) = (KeepAliveTotals::default(), 0);
    for (row, score) in rows.iter().zip(scores).filter(|(_, score)| score.active > 0) {
        active += score.active;
        totals.add(row, score);
    }
    (totals, active, policy.bytes())
}

/// The budgets of the curve, in those of a fixed keep-alive of ten minutes.
pub(crate) const BUDGETS: [f64; 8] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0];

/// A capacity law and the grid of its knob.
pub(crate) struct Law {
    pub(crate) name: &'static str,
    pub(crate) grid: &'static [f64],
    pub(crate) make: Box<dyn Fn(f64) -> Box<dyn CapacityPolicy>>,
}

const HEAD_ROOMS: &[f64] = &[0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0];
const DEVIATIONS: &[f64] = &[-0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0, 12.0];
const SCALES: &[f64] = &[-0.5, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 6.0, 8.0];

/// The baselines and, last, the default; seasons are an hour and a day of slots.
pub(crate) fn laws(slot: Duration) -> Vec<Law> {
    let slots =
        |seconds: u64| usize::try_from(seconds / slot.as_secs().max(1)).unwrap_or(2).clamp(2, 100_000);
    let (hour, day) = (slots(3_600), slots(86_400));
    let expected = "parameters in range";
    vec![
        Law {
            name: "fast up, slow down",
            grid: HEAD_ROOMS,
            make: Box::new(move |h| Box::new(FastUpSlowDown::new(0.1, h).expect(expected))),
        },
        Law {
            name: "moving average 60 + k·sd",
            grid: DEVIATIONS,
            make: Box::new(move |k| Box::new(MovingAverage::new(60, k).expect(expected))),
        },
        Law {
            name: "Holt-Winters, an hour",
            grid: SCALES,
            make: Box::new(move |k| Box::new(HoltWinters::new(hour, k).expect(expected))),
        },
        Law {
            name: "Holt-Winters, a day",
            grid: SCALES,
            make: Box::new(move |k| Box::new(HoltWinters::new(day, k).expect(expected))),
        },
        Law {
            name: "seasonal",
            grid: SCALES,
            make: Box::new(|k| {
                Box::new(Seasonal::new(SeasonalConfig::with_head_room(k)).expect("head-rooms in range"))
            }),
        },
    ]
}

/// The miss at an over-provisioning of a half, over the grid of `law`, scored from slot `from` on.
pub(crate) fn miss(law: &Law, series: &Series, from: usize) -> Option<f64> {
    let score = |&k: &f64| {
        let score: CapacityScore = replay_capacity(&mut *(law.make)(k), series, from);
        (score.over_ratio(), score.miss())
    };
    miss_at(&law.grid.iter().map(score).collect::<Vec<_>>(), 0.5)
}

/// The first slot that is scored: two thirds of the series, day 14 of 21, or the slot where `day` begins.
pub(crate) fn scored_from(series: &Series, day: Option<u64>) -> usize {
    let per_day = 86_400 / series.slot.as_secs().max(1);
    match day {
        Some(day) => usize::try_from((day * per_day).saturating_sub(series.first)).unwrap_or(usize::MAX),
        None => series.demand.len() * 2 / 3,
    }
}

/// A share as a percentage with `digits`, or a dash.
pub(crate) fn percent(share: Option<f64>, digits: usize) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.digits$} %", 100.0 * share))
}
