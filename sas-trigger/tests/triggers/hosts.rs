//! One of several hosts, as triggers see it.

use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use sas_core::{Guard, HostStatus, Hosts, Place, Version};

/// It takes itself for the one that acts until it is told otherwise.
#[derive(Debug)]
pub(crate) struct OneOfSeveral {
    guard: Guard,
    acts: AtomicBool,
}

impl OneOfSeveral {
    pub(crate) fn acting(guard: Guard) -> Self {
        Self { guard, acts: AtomicBool::new(true) }
    }

    /// Nobody acts any more, that it knows of.
    pub(crate) fn loses(&self) {
        self.acts.store(false, Ordering::SeqCst);
    }
}

#[async_trait]
impl Hosts for OneOfSeveral {
    fn name(&self) -> &'static str {
        "a"
    }
    fn place(&self, path: &str) -> Place {
        assert_eq!(path, "default", "triggers are their namespace's");
        match self.acts.load(Ordering::SeqCst) {
            true => Place::Here(self.guard.clone()),
            false => Place::Undecided,
        }
    }
    fn seen(&self) -> Version {
        Version(0)
    }
    fn list(&self) -> Vec<HostStatus> {
        vec![HostStatus::new("a", "127.0.0.1:1")]
    }
    fn round(&self) -> u64 {
        0
    }
    async fn changed(&self, _: u64) -> u64 {
        std::future::pending().await
    }
    fn refused(&self, _: &Guard) {}
}
