//! What ends a guest: its limits, its traps, its exits; and how each is told.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sas_core::{Error, ErrorKind, Retry};
use wasmtime::{ResourceLimiter, Trap};

use crate::{budget::Budget, config::CallLimits, instance::WasmInstance, stint::CpuStint};

/// A limit that a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// CPU time; `sas.dev/wasm-cpu-limit`.
    Cpu(Duration),
    /// Linear memory in bytes; `resources.memory_limit_bytes`.
    Memory {
        /// The limit.
        limit: u64,
        /// What the guest asked for.
        wanted: u64,
    },
    /// Bytes of all guests of the host together; the platform's `memory_bytes`.
    HostMemory {
        /// What all guests may hold together.
        total: u64,
        /// What the guest asked for on top of what is held.
        wanted: u64,
    },
    /// Elements of a table; the platform's `limits.table_elements`.
    Table {
        /// The limit.
        limit: usize,
        /// What the guest asked for.
        wanted: usize,
    },
    /// The stack of the guest.
    Stack,
    /// Bytes of the response's body; `sas.dev/wasm-response-limit`.
    Response(u64),
    /// The instance was stopped while it worked.
    Stopped,
}

impl Limit {
    /// The name as it appears in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Memory { .. } => "memory",
            Self::HostMemory { .. } => "host_memory",
            Self::Table { .. } => "table",
            Self::Stack => "stack",
            Self::Response(_) => "response",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(limit) => {
                write!(f, "the CPU limit of {limit:?} was met ({})", crate::options::CPU_LIMIT)
            }
            Self::Memory { limit, wanted } => write!(
                f,
                "the memory limit of {limit} bytes was met: the guest asked for {wanted} \
                 (resources.memory_limit_bytes)"
            ),
            Self::HostMemory { total, wanted } => write!(
                f,
                "the guests of this host hold all of the {total} bytes that they may have together: {wanted} more were \
                 asked for (WasmConfig.memory_bytes)"
            ),
            Self::Table { limit, wanted } => write!(
                f,
                "the table limit of {limit} elements was met: the guest asked for {wanted} (limits.table_elements)"
            ),
            Self::Stack => f.write_str("the stack limit was met: the guest calls itself too deeply"),
            Self::Response(limit) => {
                write!(f, "the response limit of {limit} bytes was met ({})", crate::options::RESPONSE_LIMIT)
            }
            Self::Stopped => f.write_str("the instance was stopped while it worked on the request"),
        }
    }
}

impl std::error::Error for Limit {}

/// A guest's own end by `proc_exit` or `wasi:cli/exit`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) i32);

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the guest exited with status {}", self.0)
    }
}

impl std::error::Error for Exit {}

/// A guest that breaks the convention it answers by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BadAnswer(pub(crate) String);

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadAnswer {}

/// Turns what ended a guest into the platform's error. A fresh sandbox would end the same way, so no retry helps.
pub(crate) fn call_error(error: &wasmtime::Error) -> (Error, &'static str) {
    if let Some(limit) = error.downcast_ref::<Limit>() {
        let kind = match limit {
            Limit::Stopped => ErrorKind::Unavailable,
            _ => ErrorKind::Exhausted,
        };
        let mut told = Error::new(kind, "call", limit.to_string());
        if matches!(limit, Limit::HostMemory { .. }) {
            told = told.with_retry(Retry::After(Duration::from_secs(1)));
        }
        return (told, limit.name());
    }
    if let Some(Trap::StackOverflow) = error.downcast_ref::<Trap>() {
        return (Error::new(ErrorKind::Exhausted, "call", Limit::Stack.to_string()), Limit::Stack.name());
    }
    let crashed = |message: String| Error::new(ErrorKind::Crashed, "call", message).with_retry(Retry::Never);
    if let Some(trap) = error.downcast_ref::<Trap>() {
        let place = error
            .downcast_ref::<wasmtime::WasmBacktrace>()
            .and_then(|trace| trace.frames().first())
            .map_or_else(String::new, |frame| match frame.func_name() {
                Some(name) => format!(" in function {name}"),
                None => format!(" in function {}", frame.func_index()),
            });
        return (crashed(format!("the guest trapped: {trap}{place}")), "trap");
    }
    if let Some(exit) = error.downcast_ref::<Exit>() {
        return (crashed(exit.to_string()), "exit");
    }
    if let Some(exit) = error.downcast_ref::<wasmtime_wasi::I32Exit>() {
        return (crashed(Exit(exit.0).to_string()), "exit");
    }
    if let Some(bad) = error.downcast_ref::<BadAnswer>() {
        return (crashed(bad.to_string()), "answer");
    }
    if error.is::<wasmtime::PoolConcurrencyLimitError>() {
        let error = Error::new(ErrorKind::Exhausted, "call", format!("no sandbox is free: {error}"));
        return (error.with_retry(Retry::After(Duration::from_secs(1))), "slots");
    }
    (crashed(format!("the guest failed: {error:#}")), "other")
}

/// What one request has used. Shared between the guest's sandbox and whoever asks.
#[derive(Debug, Default)]
pub struct Meter {
    cpu_ns: AtomicU64,
    stint: CpuStint,
    memory: AtomicU64,
    high_water: AtomicU64,
}

impl Meter {
    /// CPU time that the guest used, up to its last pause.
    ///
    /// A stretch of work of less than 50 µs counts as long as it took by the clock, a longer one by the CPU time of
    /// its thread, to a quarter of a millisecond and never too little.
    pub fn cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu_ns.load(Ordering::Relaxed))
    }

    /// Bytes of linear memory now.
    pub fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    /// The most bytes of linear memory that it had at once.
    pub fn memory_high_water(&self) -> u64 {
        self.high_water.load(Ordering::Relaxed)
    }

    /// The guest goes on the CPU, on this thread.
    pub(crate) fn enter(&self) {
        self.stint.begin();
    }

    /// The guest leaves the CPU, on the thread that it entered on. Gives what was used in between.
    pub(crate) fn leave(&self) -> u64 {
        let used = self.stint.used_ns();
        self.cpu_ns.fetch_add(used, Ordering::Relaxed);
        used
    }

    /// What was used so far, asked by the guest's own thread while it runs.
    pub(crate) fn running_cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed) + self.stint.used_ns()
    }

    fn grow(&self, bytes: u64) {
        let now = self.memory.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.high_water.fetch_max(now, Ordering::Relaxed);
    }
}

/// Refuses growth over the limits, and counts what is used.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: CallLimits,
    budget: Arc<Budget>,
    memory: u64,
    pub(crate) meter: Arc<Meter>,
    /// Weak, because an instance may keep the sandbox that this limits.
    instance: Weak<WasmInstance>,
}

impl Limiter {
    pub(crate) fn new(
        limits: CallLimits,
        budget: Arc<Budget>,
        meter: Arc<Meter>,
        instance: Weak<WasmInstance>,
    ) -> Self {
        Self { limits, budget, memory: 0, meter, instance }
    }

    /// A kept sandbox takes its next request: what it holds counts for that one from the start.
    pub(crate) fn next_request(&mut self, meter: Arc<Meter>) {
        meter.grow(self.memory);
        self.meter = meter;
    }

    /// At the end of a tick: may the guest go on?
    pub(crate) fn tick(&self) -> Result<(), Limit> {
        if self.instance.upgrade().is_none_or(|instance| instance.is_killed()) {
            return Err(Limit::Stopped);
        }
        if u128::from(self.meter.running_cpu_ns()) >= self.limits.cpu.as_nanos() {
            return Err(Limit::Cpu(self.limits.cpu));
        }
        Ok(())
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let more = (desired as u64).saturating_sub(current as u64);
        let wanted = self.memory.saturating_add(more);
        if wanted > self.limits.memory_bytes {
            return Err(Limit::Memory { limit: self.limits.memory_bytes, wanted }.into());
        }
        // Past the guest's own maximum the growth fails anyway, as the language defines it.
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        if !self.budget.take(more) {
            return Err(Limit::HostMemory { total: self.budget.total, wanted: more }.into());
        }
        self.memory = wanted;
        self.meter.grow(more);
        if let Some(instance) = self.instance.upgrade() {
            instance.add_memory(more);
        }
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > self.limits.table_elements {
            return Err(Limit::Table { limit: self.limits.table_elements, wanted: desired }.into());
        }
        Ok(maximum.is_none_or(|maximum| desired <= maximum))
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.budget.give(self.memory);
        if let Some(instance) = self.instance.upgrade() {
            instance.remove_memory(self.memory);
        }
    }
}
