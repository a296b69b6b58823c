//! What the integrator decides for all functions of a runtime.

use std::{path::PathBuf, sync::Arc, time::Duration};

use sas_core::{Clock, Recorder, SpecErrors, SystemClock};

use tokio_rustls::rustls::RootCertStore;

use crate::{memory::default_total, network::Network, roots::add_root};

/// Bytes of a WebAssembly page.
pub(crate) const PAGE: u64 = 64 * 1024;

/// Configuration of a [`crate::WasmRuntime`]. All fields have defaults that suit one machine with many tenants.
///
/// ```
/// use sas_runtime_wasm::WasmConfig;
/// let mut config = WasmConfig::default();
/// config.slots = 100;
/// config.validate()?;
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Debug)]
pub struct WasmConfig {
    /// Sandboxes that may exist at once, over all functions. Each reserves address space (4 GiB), not memory.
    /// 1 to 16,384.
    pub slots: u32,
    /// Of these, the most that one tenant has at once; `None`: three quarters, so that there is room for others. The
    /// queue is shared alike. Among those who wait, the tenant that has the fewest sandboxes is served first.
    pub tenant_slots: Option<u32>,
    /// Bytes of linear memory of all sandboxes together. By default half of the memory that this process may have: of
    /// its control group or of the machine. A guest that asks for more is ended, and the client may come back.
    pub memory_bytes: u64,
    /// Of these, the most that the sandboxes of one tenant hold together; `None`: three quarters, so that there is
    /// room for others. 64 KiB to `memory_bytes`. A guest that asks for more is ended, and the client may come back.
    pub tenant_memory_bytes: Option<u64>,
    /// Requests that may wait for a sandbox when all are taken; more are refused at once.
    pub queue: u32,
    /// Where compiled code is kept between runs, in files that only this user can read and write; `None`: compiled
    /// code lives in memory only. The directory is made if it is missing.
    pub cache_dir: Option<PathBuf>,
    /// Bounds of what `prepare` accepts and how long it may take.
    pub compile: CompileLimits,
    /// What a request may use unless its revision says less (or more, up to [`WasmConfig::ceiling`]).
    pub limits: CallLimits,
    /// What a revision may ask for at most.
    pub ceiling: CallLimits,
    /// What revisions may ask for beyond pure computing. Nothing by default.
    pub grants: Ceilings,
    /// Certificates (DER) of authorities that calls over TLS trust besides the public ones, such as a company's own.
    pub trusted_roots: Vec<Vec<u8>>,
    /// Whether components of WASI 0.3 are taken, too. Off by default: wasmtime 48 calls its own implementation
    /// experimental and makes no security releases for it, so that it is for code that the operator trusts.
    /// With it, stores of all components keep tables of tasks.
    pub wasi_03: bool,
    /// How often a running guest gives way to others, and the grain of the CPU limit. 1 ms to 1 s.
    pub tick: Duration,
    /// Bytes of each sandbox's memory that stay resident for the next request instead of going back to the
    /// operating system. More is faster for small guests and costs `slots` times as much memory at worst.
    pub keep_resident: usize,
    /// Wall time, for guests and for the stamps of their logs.
    pub clock: Arc<dyn Clock>,
    /// The recorder that the runtime's metrics go to.
    pub recorder: Recorder,
}

impl Default for WasmConfig {
    fn default() -> Self {
        Self {
            slots: 1_000,
            tenant_slots: None,
            memory_bytes: default_total(),
            tenant_memory_bytes: None,
            queue: 10_000,
            cache_dir: None,
            compile: CompileLimits::default(),
            limits: CallLimits::default(),
            ceiling: CallLimits {
                cpu: Duration::from_secs(300),
                memory_bytes: 4 << 30,
                table_elements: 20_000,
                response_bytes: 4 << 30,
                log_bytes: 64 << 20,
            },
            grants: Ceilings::default(),
            trusted_roots: Vec::new(),
            wasi_03: false,
            tick: Duration::from_millis(1),
            keep_resident: 128 * 1024,
            clock: Arc::new(SystemClock),
            recorder: Recorder::default(),
        }
    }
}

/// What one function may cost to compile: part of [`WasmConfig`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileLimits {
    /// Bytes of a module, component or text.
    pub code_bytes: usize,
    /// Bytes of a text: it takes many times as many while it is assembled. More is deployed in its binary form.
    pub text_bytes: usize,
    /// Bytes of one function's body: the time and memory of the compiler grow faster than its size.
    pub function_bytes: u32,
    /// Blocks inside of blocks of one function: the compiler's time grows with the square of it.
    pub block_depth: u32,
    /// The locals of one function times the bytes of its body: the compiler's time and memory grow with the product.
    /// A function of 20,000 locals and 1 MB takes it seconds and a gigabyte.
    pub function_weight: u64,
    /// The same product, over all functions: many just below that bound would keep the compiler busy for minutes. The
    /// largest engines of Python, JavaScript and Go have 2^26 to 2^28.
    pub module_weight: u64,
    /// Functions, imports, exports, types and the like, each.
    pub entities: u32,
    /// Modules and components inside of a component, at any depth.
    pub nested: u32,
    /// How long `prepare` waits for the compiler, its turn included. The compiler can't be stopped half-way: one that
    /// is late keeps its place in [`CompileLimits::parallel`] until it is done, so that late ones can't pile up.
    pub time: Duration,
    /// Compilations at once; each may use all cores for a large module. One tenant has at most all but one of them, and
    /// those who wait take turns by tenant.
    pub parallel: u32,
}

impl Default for CompileLimits {
    fn default() -> Self {
        Self {
            code_bytes: 64 << 20,
            text_bytes: 4 << 20,
            function_bytes: 1 << 20,
            block_depth: 5_000,
            function_weight: 1 << 30,
            module_weight: 1 << 31,
            entities: 100_000,
            nested: 256,
            time: Duration::from_secs(60),
            parallel: 2,
        }
    }
}

/// What one request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// CPU time, to the grain of [`WasmConfig::tick`].
    pub cpu: Duration,
    /// Linear memory of all memories of the sandbox together. A guest that asks for more is ended.
    pub memory_bytes: u64,
    /// Elements of each table.
    pub table_elements: usize,
    /// Bytes of the response's body.
    pub response_bytes: u64,
    /// Bytes of output that are passed on as log lines; the rest is dropped, and a last line says so.
    pub log_bytes: u64,
}

impl Default for CallLimits {
    fn default() -> Self {
        Self {
            cpu: Duration::from_secs(10),
            memory_bytes: 128 << 20,
            table_elements: 20_000,
            response_bytes: 256 << 20,
            log_bytes: 1 << 20,
        }
    }
}

/// What the operator lets revisions ask for. A grant needs both: the revision's option, and a place in here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ceilings {
    /// Host directories at or below which revisions may have folders preopened.
    pub directories: Vec<PathBuf>,
    /// Hosts that revisions may call, as in `sas.dev/wasm-allow-hosts`; `*` is every public host.
    pub hosts: Vec<String>,
    /// Non-public networks that revisions may call: addresses of these pass the guard that refuses all others.
    pub private_networks: Vec<Network>,
}

impl Ceilings {
    /// Every public host may be asked for, no directory and no private network.
    pub fn public_hosts() -> Self {
        Self { hosts: vec!["*".to_owned()], ..Self::default() }
    }
}

impl WasmConfig {
    /// Most sandboxes that fit into the address space of a process.
    pub const MOST_SLOTS: u32 = 16_384;

    /// Bytes that the sandboxes of one tenant may hold together. A page at least: with less no guest would start.
    pub(crate) fn tenant_memory(&self) -> u64 {
        self.tenant_memory_bytes.unwrap_or((self.memory_bytes - self.memory_bytes / 4).max(PAGE))
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once, each with its field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.slots == 0 || self.slots > Self::MOST_SLOTS {
            errors.push("slots", self.slots, format!("1 to {}", Self::MOST_SLOTS));
        }
        if self.tick < Duration::from_millis(1) || self.tick > Duration::from_secs(1) {
            errors.push("tick", format!("{:?}", self.tick), "1 ms to 1 s");
        }
        if self.tenant_slots.is_some_and(|most| most == 0 || most > self.slots) {
            let most = self.tenant_slots.unwrap_or_default();
            errors.push("tenant_slots", most, format!("1 to the number of slots, {}", self.slots));
        }
        if self.memory_bytes < PAGE {
            errors.push("memory_bytes", self.memory_bytes, "at least 64 KiB, the page of WebAssembly");
        }
        if self.tenant_memory_bytes.is_some_and(|most| most < PAGE || most > self.memory_bytes) {
            let most = self.tenant_memory_bytes.unwrap_or_default();
            let remedy = format!("65536 (a page) to memory_bytes, {}", self.memory_bytes);
            errors.push("tenant_memory_bytes", most, remedy);
        }
        if self.compile.parallel == 0 {
            errors.push("compile.parallel", 0, "at least 1");
        }
        if self.compile.time.is_zero() {
            errors.push("compile.time", "0s", "longer than nothing");
        }
        if self.keep_resident as u64 > 4 << 30 {
            errors.push("keep_resident", self.keep_resident, "at most 4 GiB");
        }
        for (at, root) in self.trusted_roots.iter().enumerate() {
            if let Err(error) = add_root(&mut RootCertStore::empty(), root) {
                errors.push(
                    format!("trusted_roots[{at}]"),
                    error,
                    "the certificate of an authority in DER form",
                );
            }
        }
        for (name, limits) in [("limits", &self.limits), ("ceiling", &self.ceiling)] {
            if limits.cpu < self.tick {
                errors.push(format!("{name}.cpu"), format!("{:?}", limits.cpu), "at least one tick");
            }
            if limits.memory_bytes < PAGE || limits.memory_bytes > 4 << 30 {
                errors.push(format!("{name}.memory_bytes"), limits.memory_bytes, "64 KiB to 4 GiB");
            }
            if limits.table_elements > 1_000_000 {
                errors.push(format!("{name}.table_elements"), limits.table_elements, "at most 1,000,000");
            }
        }
        let over = [
            ("limits.cpu", self.limits.cpu > self.ceiling.cpu),
            ("limits.memory_bytes", self.limits.memory_bytes > self.ceiling.memory_bytes),
            ("limits.table_elements", self.limits.table_elements > self.ceiling.table_elements),
            ("limits.response_bytes", self.limits.response_bytes > self.ceiling.response_bytes),
            ("limits.log_bytes", self.limits.log_bytes > self.ceiling.log_bytes),
        ];
        for (field, is_over) in over {
            if is_over {
                errors.push(field, "more than the ceiling", "at most the same field of `ceiling`");
            }
        }
        errors.into_result()
    }
}
