//! What was measured of a revision: what its scaler decides by.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::RevisionKey;

/// What a revision was asked to do since the last visit. `None` means not measured, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Load {
    /// The revision that was measured.
    pub revision: RevisionKey,
    /// Mean number of requests in the revision (running and waiting), weighted by time, since the last visit.
    pub concurrency: f64,
    /// Requests that arrived since the last visit.
    pub requests: u32,
    /// Requests that wait for a slot now.
    pub queued: u32,
    /// Instances that can take requests now.
    pub ready: u32,
    /// Instances that are starting now.
    pub starting: u32,
    /// Mean CPU use per ready instance since the last visit, in cores.
    pub cpu: Option<f64>,
    /// Mean memory per ready instance, in bytes.
    pub memory: Option<f64>,
    /// Ready instances that `cpu` and `memory` say nothing about.
    #[serde(default)]
    pub unmeasured: u32,
    /// What waits upstream of the revision's triggers.
    pub backlog: Option<u64>,
    /// A recent time from the decision to start until ready; `None`: none started yet.
    pub start_time: Option<Duration>,
}

impl Load {
    /// No load at all.
    pub const fn idle(revision: RevisionKey) -> Self {
        Self {
            revision,
            concurrency: 0.0,
            requests: 0,
            queued: 0,
            ready: 0,
            starting: 0,
            cpu: None,
            memory: None,
            unmeasured: 0,
            backlog: None,
            start_time: None,
        }
    }
}
