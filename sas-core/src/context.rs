//! What travels with a call.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{RequestId, TenantKey};

/// Why a call is made: it decides metering and whether the call may wake a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Purpose {
    /// A request of a user: metered, wakes.
    Traffic,
    /// An event of a trigger: metered, wakes.
    Event,
    /// A test run by an operator or a developer: not metered, wakes.
    Test,
    /// A health check from outside: not metered, does not wake.
    Probe,
}

impl Purpose {
    /// Whether such a call is metered and counts for scaling.
    pub const fn metered(self) -> bool {
        matches!(self, Self::Traffic | Self::Event)
    }

    /// Whether such a call may start an instance.
    pub const fn wakes(self) -> bool {
        !matches!(self, Self::Probe)
    }
}

/// Per-call context, `Copy`. Dropping the call's future cancels it; there is no token.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Cx {
    /// Who pays.
    pub tenant: TenantKey,
    /// When the caller stops waiting, for the whole call.
    pub deadline: Instant,
    /// The id that ties answer, logs and access log together.
    pub request: RequestId,
    /// Why.
    pub purpose: Purpose,
    /// 0 is ordinary; higher goes first where requests wait for the same thing.
    pub priority: u8,
}

impl Cx {
    /// Context of an ordinary request.
    pub fn new(tenant: TenantKey, request: RequestId, deadline: Instant) -> Self {
        Self { tenant, deadline, request, purpose: Purpose::Traffic, priority: 0 }
    }

    /// The same with another purpose.
    #[must_use]
    pub fn for_purpose(mut self, purpose: Purpose) -> Self {
        self.purpose = purpose;
        self
    }

    /// Time left until the deadline, zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
