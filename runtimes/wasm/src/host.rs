//! What all functions of a runtime share: the engine, its sandboxes, the ticks.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sas_core::{Error, ErrorKind, Result};
use tokio::{
    sync::{Notify, futures::OwnedNotified},
    time::Instant,
};
use wasmtime::{Config, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::{
    budget::Budget, config::WasmConfig, metrics::Metrics, outbound::Outside, slots::FairSlots, ticker::Ticker,
};

/// Core instances and tables per slot: components are made of several modules, and few of them have a memory.
pub(crate) const MODULES_PER_SLOT: u32 = 4;
/// Core instances, memories and tables that one component may have.
const MOST_PARTS: u32 = 64;
/// The guest's part of its stack.
const STACK: usize = 512 * 1024;
/// Frames of a trap's backtrace that are kept.
const FRAMES: usize = 8;

/// What all functions share.
pub(crate) struct Host {
    pub(crate) config: WasmConfig,
    pub(crate) metrics: Metrics,
    pub(crate) ticker: Arc<Ticker>,
    pub(crate) outside: Arc<Outside>,
    pub(crate) started: Instant,
    pub(crate) engine: Engine,
    pub(crate) slots: Arc<FairSlots>,
    pub(crate) budget: Arc<Budget>,
    stops: Arc<Notify>,
    gone: Notify,
    reaping: AtomicUsize,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Host {
    pub(crate) fn new(config: WasmConfig) -> Result<Self> {
        let engine = engine(&config)?;
        let ticker = Ticker::start(&engine, config.tick).map_err(|error| {
            Error::new(
                ErrorKind::Exhausted,
                "start wasm runtime",
                format!("no thread for the ticks: {error}"),
            )
        })?;
        Ok(Self {
            metrics: Metrics::new(&config.recorder),
            outside: Arc::new(Outside::new(&config.trusted_roots)),
            budget: Arc::new(Budget::new(config.memory_bytes, config.tenant_memory())),
            slots: Arc::new(FairSlots::new(
                config.slots,
                config.tenant_slots.unwrap_or(config.slots - config.slots / 4),
                config.queue,
            )),
            config,
            ticker: Arc::new(ticker),
            started: Instant::now(),
            engine,
            stops: Arc::default(),
            gone: Notify::new(),
            reaping: AtomicUsize::new(0),
        })
    }

    /// Resolves at the next forced stop of any instance.
    pub(crate) fn stops(&self) -> OwnedNotified {
        Arc::clone(&self.stops).notified_owned()
    }

    /// Wakes guests that wait, so that those of a killed instance end.
    pub(crate) fn stop_now(&self) {
        self.stops.notify_waiters();
    }

    /// Something came to its end.
    pub(crate) fn ended(&self) {
        self.gone.notify_waiters();
    }

    /// Waits until `is_so`, asked again whenever something came to its end.
    pub(crate) async fn gone(&self, is_so: impl Fn() -> bool) {
        loop {
            let mut change = std::pin::pin!(self.gone.notified());
            change.as_mut().enable();
            if is_so() {
                return;
            }
            change.await;
        }
    }

    /// Work in the background that `quiesce` waits for.
    pub(crate) fn reaping(self: &Arc<Self>) -> Reaping {
        self.reaping.fetch_add(1, Ordering::AcqRel);
        Reaping(Arc::clone(self))
    }

    pub(crate) async fn quiesce(&self) {
        self.gone(|| self.reaping.load(Ordering::Acquire) == 0).await;
    }
}

/// Work in the background.
#[derive(Debug)]
pub(crate) struct Reaping(Arc<Host>);

impl Drop for Reaping {
    fn drop(&mut self) {
        self.0.reaping.fetch_sub(1, Ordering::AcqRel);
        self.0.ended();
    }
}

fn engine(config: &WasmConfig) -> Result<Engine> {
    Engine::new(&engine_config(config)).map_err(|error| {
        let text = format!(
            "{error:#}; each of {} slots reserves 4 GiB of address space: give less slots, or raise the limit of \
             virtual memory (ulimit -v)",
            config.slots
        );
        Error::new(ErrorKind::Exhausted, "start wasm runtime", text)
    })
}

fn engine_config(config: &WasmConfig) -> Config {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_memories(config.slots)
        .total_stacks(config.slots.saturating_mul(2))
        .total_component_instances(config.slots)
        .total_core_instances(config.slots.saturating_mul(MODULES_PER_SLOT))
        .total_tables(config.slots.saturating_mul(MODULES_PER_SLOT))
        .max_core_instances_per_component(MOST_PARTS)
        .max_memories_per_component(MOST_PARTS)
        .max_tables_per_component(MOST_PARTS)
        .max_memories_per_module(MOST_PARTS)
        .max_tables_per_module(MOST_PARTS)
        .max_memory_size(4 << 30)
        .table_elements(config.ceiling.table_elements)
        .linear_memory_keep_resident(config.keep_resident)
        .table_keep_resident(config.keep_resident.min(64 * 1024))
        .max_unused_warm_slots(config.slots.min(100));
    let mut engine = Config::new();
    engine
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .max_wasm_stack(STACK)
        // Each store of an engine with it keeps tables of tasks, which only WASI 0.3 has a use for.
        .concurrency_support(config.wasi_03)
        .wasm_component_model_async(config.wasi_03)
        .wasm_backtrace_max_frames(NonZeroUsize::new(FRAMES))
        // Frames are told by name or number: no map from code back to bytes, and none for system unwinders.
        .generate_address_map(false)
        .native_unwind_info(false);
    engine
}
