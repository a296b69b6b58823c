//! What ends a guest: its limits, its traps, its exits; and how each is told.

use std::{fmt, time::Duration};

use sas_core::{Error, ErrorKind, Retry};
use wasmtime::Trap;

/// A limit that a request met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
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
    /// Bytes of all guests of a tenant together; the platform's `tenant_memory_bytes`.
    TenantMemory {
        /// What a tenant's guests may hold together.
        share: u64,
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
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            Self::Memory { .. } => "memory",
            Self::HostMemory { .. } => "host_memory",
            Self::TenantMemory { .. } => "tenant_memory",
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
            Self::TenantMemory { share, wanted } => write!(
                f,
                "the guests of this tenant hold all of the {share} bytes that a tenant's may have together: {wanted} more \
                 were asked for (WasmConfig.tenant_memory_bytes)"
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
        if matches!(limit, Limit::HostMemory { .. } | Limit::TenantMemory { .. }) {
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
