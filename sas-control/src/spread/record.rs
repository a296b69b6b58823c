//! What the store has of a service that several hosts run.

use std::collections::BTreeMap;

use sas_core::{Error, ErrorKind, HostShare, Quota, Result, SizeBounds};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Which hosts run a service together. Written by the host that acts for it, guarded by that, and followed by all. Where
/// there is none, the host that acts for the service runs all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spread {
    /// Counts the writes, so that a host can say which one it has applied.
    pub(crate) version: u64,
    /// The host that acts for the service first, the others in the order in which they came.
    pub(crate) hosts: Vec<Part>,
}

/// What one host may run of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Part {
    pub(crate) host: String,
    pub(crate) state: PartState,
    /// Its share of the service's quota and of the requests that others pass on, in thousandths.
    pub(crate) share: u32,
    /// By the names of the revisions.
    pub(crate) revisions: BTreeMap<String, Range>,
}

/// How far a host is with its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PartState {
    /// It prepares the revisions, and gets no requests yet.
    Joining,
    /// It gets requests.
    Serving,
    /// It gets no new requests, and ends those that it has.
    Leaving,
}

/// How many instances of a revision a host may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Range {
    pub(crate) min: u32,
    /// At most so many now; `u32::MAX`: no bound.
    pub(crate) max: u32,
    /// What `max` becomes as soon as others that have more than their part have given it back.
    pub(crate) goal: u32,
}

/// What a host says of its part. Written by that host alone, when it says something else than before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Report {
    /// The version of the record that it has applied.
    pub(crate) applied: u64,
    /// Whether all revisions of its part are prepared and registered.
    pub(crate) ready: bool,
    /// Why they are not, if that is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    pub(crate) revisions: BTreeMap<String, Reported>,
}

/// What runs of a revision on a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reported {
    /// Instances that its scaler asks for.
    pub(crate) asked: u32,
    /// What its scaler asks for whatever its requests need: the minimum that it was registered with. Who came as one that
    /// has a part has none of its own.
    #[serde(default)]
    pub(crate) least: u32,
    /// Instances that are there, those on their way up included.
    pub(crate) have: u32,
    /// Instances that the host could have in all, as far as its budgets go; `u32::MAX`: no bound.
    pub(crate) room: u32,
}

/// How a service that several hosts run stands with this host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// What this host may run of it, unless it runs all or nothing.
    pub(crate) part: Option<Part>,
    /// The hosts that take its requests; none: only the one that acts for it.
    pub(crate) hosts: Vec<HostShare>,
    /// Of the record that says so.
    pub(crate) version: u64,
}

impl PartState {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Joining => "joining",
            Self::Serving => "serving",
            Self::Leaving => "leaving",
        }
    }
}

impl Spread {
    pub(crate) fn part(&self, host: &str) -> Option<&Part> {
        self.hosts.iter().find(|part| part.host == host)
    }

    /// The hosts that take requests of the service, with their weights.
    pub(crate) fn serving(&self) -> Vec<HostShare> {
        let serving = self.hosts.iter().filter(|part| part.state == PartState::Serving);
        serving.map(|part| HostShare::new(part.host.as_str(), part.share)).collect()
    }
}

impl Part {
    /// Whether it may run instances of all these revisions.
    pub(crate) fn covers<'r>(&self, mut revisions: impl Iterator<Item = &'r str>) -> bool {
        revisions.all(|revision| self.revisions.get(revision).is_some_and(|range| range.max > 0))
    }

    /// This part of a quota. Whatever the share, a request can get in.
    pub(crate) fn of_quota(&self, quota: Quota) -> Quota {
        let part = |of: u32| match of {
            u32::MAX => of,
            of => u32::try_from(u64::from(of) * u64::from(self.share) / 1000).unwrap_or(of).max(1),
        };
        let mut own = quota;
        if quota.limits_rate() {
            own.rate = quota.rate * f64::from(self.share) / 1000.0;
        }
        own.burst = part(quota.burst);
        own.concurrency = if quota.concurrency == 0 { 0 } else { part(quota.concurrency) };
        own
    }
}

impl Range {
    /// As the pool is told.
    pub(crate) fn bounds(&self) -> SizeBounds {
        SizeBounds::part(self.min, self.max)
    }
}

pub(crate) fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).map_err(|error| {
        Error::new(ErrorKind::Unexpected, "spread", format!("can't be written: {error}")).with_source(error)
    })
}

pub(crate) fn decode<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| {
        let message = format!("{key} says nothing about parts of a service: {error}; delete it");
        Error::new(ErrorKind::InvalidSpec, "spread", message).with_source(error)
    })
}
