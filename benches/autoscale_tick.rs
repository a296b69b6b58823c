//! Bench c: what one active revision costs per tick of the default scaler.
//!
//! `cargo bench --bench autoscale_tick [-- 1000 100000 1000000]`
//!
//! The scaler with its state in columns and the scalar code tick the same revisions with the same loads, in batches
//! as the driver makes them; every decision of the one is compared with that of the other. Timed are the calls of
//! `Scaler::tick` alone, after the windows are full: the median over the ticks, and the least, which other work on
//! the machine disturbs least. Allocations are counted over the timed ticks.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    any::Any,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sas_autoscale::{Kpa, KpaColumns};
use sas_core::{Aggregation, Decision, Load, RevisionKey, ScaleInput, Scaler, ScalingSpec, Timestamp};
use tokio::time::Instant;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call goes to the system's allocator unchanged; the counter touches no allocated memory.
#[allow(unsafe_code, reason = "an allocator that counts has no safe form")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BATCH: usize = 256;
/// Ticks until each window is full and panics have begun and ended.
const WARM: u64 = 66;
const TICKS: u64 = 21;
const TARGET_NS: f64 = 20.0;

/// A load that hangs on row and tick alone: mostly calm, some idle, some in a burst.
fn load_of(row: u32, tick: u64, ready: u32) -> Load {
    let mut x = (u64::from(row) << 20 ^ tick).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    let noise = (x & 0xffff) as f64 / 65_536.0;
    let mut load = Load::idle(RevisionKey::new(row, 0));
    let base = f64::from(row % 97);
    load.concurrency = match row % 16 {
        0 => 0.0,
        1 if tick % 64 > 58 => base * 20.0,
        _ => base + 10.0 * noise,
    };
    load.requests = (load.concurrency * 10.0) as u32;
    load.ready = ready;
    load.starting = u32::from(x >> 60 == 0);
    load
}

struct Side<'a> {
    scaler: &'a dyn Scaler,
    states: Box<dyn Any + Send>,
    out: Vec<Decision>,
    spent: Duration,
    ticks: Vec<f64>,
}

impl<'a> Side<'a> {
    fn new(scaler: &'a dyn Scaler) -> Self {
        Self {
            scaler,
            states: scaler.new_states(),
            out: Vec::with_capacity(BATCH),
            spent: Duration::ZERO,
            ticks: Vec::new(),
        }
    }

    fn tick(&mut self, batch: &[ScaleInput<'_>]) {
        self.out.clear();
        let began = Instant::now();
        self.scaler.tick(&mut *self.states, batch, &mut self.out);
        self.spent += began.elapsed();
    }

    fn end_of_tick(&mut self, revisions: u32) {
        self.ticks.push(self.spent.as_nanos() as f64 / f64::from(revisions));
        self.spent = Duration::ZERO;
    }

    fn shown(&mut self) -> String {
        self.ticks.sort_by(f64::total_cmp);
        format!("{:.1} (min {:.1})", self.ticks[self.ticks.len() / 2], self.ticks[0])
    }
}

struct Figures {
    columns: String,
    scalar: String,
    allocations: u64,
    compared: u64,
    differing: u64,
}

fn run(revisions: u32, spec: &ScalingSpec) -> Figures {
    let (columns, scalar) = (KpaColumns::default(), Kpa::default());
    let mut columns = Side::new(&columns);
    let mut scalar = Side::new(&scalar);
    let mut ready = vec![1_u32; revisions as usize];
    let mut loads: Vec<Load> = Vec::with_capacity(BATCH);
    let (mut allocations, mut compared, mut differing) = (0, 0, 0);
    for tick in 0..WARM + TICKS {
        if tick == WARM {
            columns.ticks.clear();
            scalar.ticks.clear();
        }
        let now = Timestamp::from_secs(1_700_000_000 + tick as i64);
        for from in (0..revisions).step_by(BATCH) {
            let rows = from..(from + BATCH as u32).min(revisions);
            loads.clear();
            loads.extend(rows.clone().map(|row| load_of(row, tick, ready[row as usize])));
            let mut inputs: [Option<ScaleInput<'_>>; BATCH] = [const { None }; BATCH];
            for (slot, load) in inputs.iter_mut().zip(&loads) {
                let row = load.revision.slot();
                *slot = Some(ScaleInput::new(row, now, spec, load, Some(ready[row as usize])));
            }
            let batch: Vec<ScaleInput<'_>> = inputs.iter().flatten().copied().collect();
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            columns.tick(&batch);
            if tick >= WARM {
                allocations += ALLOCATIONS.load(Ordering::Relaxed) - before;
            }
            scalar.tick(&batch);
            for (at, row) in rows.enumerate() {
                compared += 1;
                differing += u64::from(columns.out[at] != scalar.out[at]);
                // Instances follow the decision, one in eight of them late.
                if row % 8 > 0 || tick % 3 == 0 {
                    ready[row as usize] = scalar.out[at].desired().unwrap_or(1).min(1_000);
                }
            }
        }
        columns.end_of_tick(revisions);
        scalar.end_of_tick(revisions);
    }
    Figures { columns: columns.shown(), scalar: scalar.shown(), allocations, compared, differing }
}

#[allow(clippy::print_stdout, reason = "the table is what the bench is for")]
fn main() {
    let given: Vec<u32> = std::env::args().filter_map(|text| text.parse().ok()).collect();
    let sizes = if given.is_empty() { vec![1_000, 100_000, 1_000_000] } else { given };
    println!("default scaler, windows of 60 s and 6 s; ns per revision and tick, target {TARGET_NS} ns");
    println!(
        "| windows | revisions | columns | scalar code | allocations | decisions compared | differing |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut wrong = 0;
    let specs = [
        ("linear", Aggregation::Linear, Duration::ZERO),
        ("weighted", Aggregation::WeightedExponential, Duration::ZERO),
        ("linear, delay of 30 s", Aggregation::Linear, Duration::from_secs(30)),
    ];
    for (name, aggregation, delay) in specs {
        let mut spec = ScalingSpec::default();
        spec.aggregation = aggregation;
        spec.scale_down_delay = delay;
        spec.target = 10.0;
        for revisions in &sizes {
            let figures = run(*revisions, &spec);
            println!(
                "| {name} | {revisions} | {} | {} | {} | {} | {} |",
                figures.columns, figures.scalar, figures.allocations, figures.compared, figures.differing
            );
            wrong += figures.differing;
        }
    }
    assert_eq!(wrong, 0, "the columns must decide as the scalar code");
}
