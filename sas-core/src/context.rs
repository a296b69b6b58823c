//! What travels with a call.

use std::{fmt, time::Duration};

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
    /// A step of a workflow: metered, wakes.
    Workflow,
    /// A test run by an operator or a developer: not metered, wakes.
    Test,
    /// A health check from outside: not metered, does not wake.
    Probe,
    /// The copy of a request, whose answer nobody gets: metered as such, wakes, and is held to no quota of requests.
    Mirrored,
}

impl Purpose {
    /// Whether such a call is metered and counts for scaling.
    pub const fn metered(self) -> bool {
        matches!(self, Self::Traffic | Self::Event | Self::Workflow | Self::Mirrored)
    }

    /// Whether such a call is held to quotas of requests.
    pub const fn held_to_quotas(self) -> bool {
        self.metered() && !matches!(self, Self::Mirrored)
    }

    /// Whether such a call may start an instance.
    pub const fn wakes(self) -> bool {
        !matches!(self, Self::Probe)
    }
}

/// What made a function run, in the words of OpenTelemetry's `faas.trigger`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FaasTrigger {
    /// A change of data elsewhere, such as a row or a file.
    Datasource,
    /// A request from outside.
    Http,
    /// A message or an event of a broker, queue or stream.
    PubSub,
    /// A time, once or again and again.
    Timer,
    /// None of these: a test run, a step of a workflow.
    Other,
}

impl FaasTrigger {
    /// What calls of this purpose are caused by, unless who makes them knows better.
    pub const fn of(purpose: Purpose) -> Self {
        match purpose {
            Purpose::Traffic => Self::Http,
            Purpose::Event => Self::PubSub,
            _ => Self::Other,
        }
    }

    /// The word of the semantic conventions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Datasource => "datasource",
            Self::Http => "http",
            Self::PubSub => "pubsub",
            Self::Timer => "timer",
            Self::Other => "other",
        }
    }
}

/// Who pays for a call: whose quota it uses, and whose turn it takes where tenants wait for the same thing. The time of
/// instances is always the owner's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Payer {
    /// The tenant whose the called service is, as with requests from outside.
    #[default]
    Owner,
    /// This tenant, since it causes the call: the one whose trigger or workflow it is.
    Tenant(TenantKey),
}

impl From<TenantKey> for Payer {
    fn from(tenant: TenantKey) -> Self {
        Self::Tenant(tenant)
    }
}

impl From<Option<TenantKey>> for Payer {
    fn from(tenant: Option<TenantKey>) -> Self {
        tenant.map_or(Self::Owner, Self::Tenant)
    }
}

impl Payer {
    /// The tenant, for a call to a service of `owner`.
    pub const fn tenant(self, owner: TenantKey) -> TenantKey {
        match self {
            Self::Owner => owner,
            Self::Tenant(tenant) => tenant,
        }
    }
}

/// Names what a call does, so that whoever is called can tell a repetition: all attempts of one delivery have the same
/// key, also after a restart. The data plane sends it as the header `Idempotency-Key`, unless the request has one.
///
/// ```
/// use sas_core::IdempotencyKey;
/// let key = IdempotencyKey::of(&["/apis/v1/namespaces/default/pingsources/nightly", "default/nightly@7"]);
/// assert_eq!(key, IdempotencyKey::of(&["/apis/v1/namespaces/default/pingsources/nightly", "default/nightly@7"]));
/// assert_ne!(key, IdempotencyKey::of(&["/apis/v1/namespaces/default/pingsources/nightly", "default/nightly@8"]));
/// assert_eq!(key.to_string().len(), 32);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(pub u128);

impl IdempotencyKey {
    /// The key of what these parts name together: 128 bits of FNV-1a, the same on every host and in every version. It
    /// tells honest names apart; it is no proof against someone who looks for two names with one key.
    pub fn of(parts: &[&str]) -> Self {
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013B;
        let mut hash = 0x6C62_272E_07BB_0142_62B8_2175_6295_C58D_u128;
        for part in parts {
            // The length first, so that no two lists of parts run into the same bytes.
            for byte in (part.len() as u64).to_le_bytes().into_iter().chain(part.bytes()) {
                hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
            }
        }
        Self(hash)
    }
}

impl fmt::Display for IdempotencyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Per-call context, `Copy`. Dropping the call's future cancels it; there is no token.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Cx {
    /// The tenant and the service that pay for the call.
    pub payer: Payer,
    /// When the caller stops waiting, for the whole call.
    pub deadline: Instant,
    /// The id that ties answer, logs and access log together.
    pub request: RequestId,
    /// Why the call is made, which decides metering and waking.
    pub purpose: Purpose,
    /// What caused the call, for traces.
    pub trigger: FaasTrigger,
    /// 0 is ordinary; higher goes first where requests wait for the same thing.
    pub priority: u8,
    /// What the call does, where a repetition is to be told.
    pub idempotency: Option<IdempotencyKey>,
}

impl Cx {
    /// Context of an ordinary request, paid by a tenant or by the owner of what is called.
    pub fn new(payer: impl Into<Payer>, request: RequestId, deadline: Instant) -> Self {
        let payer = payer.into();
        Self {
            payer,
            deadline,
            request,
            purpose: Purpose::Traffic,
            trigger: FaasTrigger::Http,
            priority: 0,
            idempotency: None,
        }
    }

    /// The same for a call that does what `key` names.
    #[must_use]
    pub fn with_idempotency(mut self, key: IdempotencyKey) -> Self {
        self.idempotency = Some(key);
        self
    }

    /// The same with another purpose, and what calls of that purpose are caused by.
    #[must_use]
    pub fn for_purpose(mut self, purpose: Purpose) -> Self {
        self.purpose = purpose;
        self.trigger = FaasTrigger::of(purpose);
        self
    }

    /// The same, caused by something else than most calls of its purpose.
    #[must_use]
    pub fn caused_by(mut self, trigger: FaasTrigger) -> Self {
        self.trigger = trigger;
        self
    }

    /// Time left until the deadline, zero when it has passed.
    pub fn remaining(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }
}
