//! The limits of one sandbox: asked before a memory or a table grows, and at the end of each time slice.

use std::sync::Arc;

use wasmtime::ResourceLimiter;

use crate::{config::CallLimits, context::InstanceContext, ends::Limit, usage::CallUsage};

/// Refuses growth over the limits, and counts what is used.
#[derive(Debug)]
pub(crate) struct Limiter {
    limits: CallLimits,
    memory: u64,
    pub(crate) usage: Arc<CallUsage>,
    instance: Arc<InstanceContext>,
}

impl Limiter {
    pub(crate) fn new(limits: CallLimits, usage: Arc<CallUsage>, instance: Arc<InstanceContext>) -> Self {
        Self { limits, memory: 0, usage, instance }
    }

    /// A kept sandbox takes its next request: what it holds counts for that one from the start.
    pub(crate) fn next_request(&mut self, usage: Arc<CallUsage>) {
        usage.grow(self.memory);
        self.usage = usage;
    }

    /// At the end of a tick: may the guest go on?
    pub(crate) fn tick(&self) -> Result<(), Limit> {
        if self.instance.is_killed() {
            return Err(Limit::Stopped);
        }
        if u128::from(self.usage.running_cpu_ns()) >= self.limits.cpu.as_nanos() {
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
        self.instance.budget.take(more)?;
        self.memory = wanted;
        self.usage.grow(more);
        self.instance.add_memory(more);
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
        self.instance.budget.give(self.memory);
        self.instance.remove_memory(self.memory);
    }
}
