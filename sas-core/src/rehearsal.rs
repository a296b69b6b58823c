//! What is tried out on live traffic: copies of requests to another revision, and faults on purpose.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::{Result, RevisionKey, RouteMatch};

/// That a share of a service's requests is copied to a revision, whose answers nobody gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mirror {
    /// The revision that gets the copies.
    pub to: RevisionKey,
    /// How many of a hundred requests are copied.
    pub percent: u32,
}

impl Mirror {
    /// Copies `percent` of a hundred requests to `to`.
    pub const fn new(to: RevisionKey, percent: u32) -> Self {
        Self { to, percent }
    }
}

/// What became of the copies of a service's requests since they are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct MirrorCounts {
    /// Copies that were answered with a status below 500.
    pub answered: u64,
    /// Copies that were answered with another status, or not at all.
    pub failed: u64,
    /// Requests that were not copied, since their body is larger than a copy may be.
    pub too_large: u64,
    /// Requests that were not copied, since too many copies wait already.
    pub dropped: u64,
    /// Requests that were not copied, since their body did not come whole.
    pub incomplete: u64,
}

/// A fault that some requests of a service meet on purpose.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// Which requests.
    pub matches: RouteMatch,
    /// Of those only what goes to this revision; `None`: to any.
    pub revision: Option<RevisionKey>,
    /// How many of a hundred of these.
    pub percent: u32,
    /// How long they wait before they go on.
    pub delay: Option<Duration>,
    /// The status that they are answered with instead of by an instance, 400 to 599.
    pub abort: Option<u16>,
}

/// Tries things out on the traffic of services: the gateway.
pub trait Rehearsals: fmt::Debug + Send + Sync + 'static {
    /// Copies requests of a service, named as `namespace/name`, from now on; `None`: no more. Counting begins anew where
    /// the revision is another.
    fn set_mirror(&self, service: &str, mirror: Option<Mirror>);

    /// What became of the copies; `None`: none are made.
    fn mirrored(&self, service: &str) -> Option<MirrorCounts>;

    /// Makes requests of a service meet faults from now on, the first that fits each; an empty list: no more. Counting begins
    /// anew.
    ///
    /// # Errors
    /// `InvalidSpec` with what is wrong with a fault; nothing was changed then.
    fn set_faults(&self, service: &str, faults: Vec<Fault>) -> Result<()>;

    /// How many requests met each fault, in their order.
    fn faulted(&self, service: &str) -> Vec<u64>;
}
