//! What the sandboxes of an instance see of it, and what they count there. It holds no sandbox, so that sandboxes hold
//! it: an instance may keep them for later requests.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use sas_core::{InstanceId, LogSink, RevisionKey, StartRequest};

use crate::{budget::Share, function::Function};

/// Who an instance is, where its output goes, whether it was killed, and what its guests use together.
pub(crate) struct InstanceContext {
    pub(crate) id: InstanceId,
    pub(crate) revision: RevisionKey,
    pub(crate) function: Arc<Function>,
    /// What its sandboxes hold is taken from this.
    pub(crate) budget: Arc<Share>,
    /// Variables of the revision.
    pub(crate) declared: Option<Arc<[(String, String)]>>,
    pub(crate) logs: Arc<dyn LogSink>,
    killed: AtomicBool,
    cpu_ns: AtomicU64,
    memory: AtomicU64,
}

impl std::fmt::Debug for InstanceContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InstanceContext").field("id", &self.id).finish_non_exhaustive()
    }
}

impl InstanceContext {
    pub(crate) fn new(function: Arc<Function>, request: &StartRequest) -> Self {
        let declared = (!request.spec().env.is_empty()).then(|| {
            request.environment().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
        });
        Self {
            id: request.id,
            revision: request.revision,
            budget: function.host.budget.of(request.tenant()),
            function,
            declared,
            logs: Arc::clone(&request.logs),
            killed: AtomicBool::new(false),
            cpu_ns: AtomicU64::new(0),
            memory: AtomicU64::new(0),
        }
    }

    pub(crate) fn declared(&self) -> &[(String, String)] {
        self.declared.as_deref().unwrap_or_default()
    }

    /// Guests at work end at their next tick or poll.
    pub(crate) fn kill(&self) {
        self.killed.store(true, Ordering::Release);
    }

    pub(crate) fn is_killed(&self) -> bool {
        self.killed.load(Ordering::Acquire)
    }

    /// Nanoseconds on the processor of all requests so far.
    pub(crate) fn cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed)
    }

    pub(crate) fn add_cpu(&self, ns: u64) {
        self.cpu_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// Bytes of linear memory of all sandboxes now.
    pub(crate) fn memory(&self) -> u64 {
        self.memory.load(Ordering::Relaxed)
    }

    pub(crate) fn add_memory(&self, bytes: u64) {
        self.memory.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn remove_memory(&self, bytes: u64) {
        self.memory.fetch_sub(bytes, Ordering::Relaxed);
    }
}
