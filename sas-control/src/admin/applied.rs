//! What became of manifests, as it is shown.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::view::ServiceView;

/// What became of one manifest.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum AppliedView {
    /// A service was deployed.
    Service(Box<AppliedService>),
    /// A trigger runs.
    Trigger(AppliedTrigger),
    /// A broker takes events.
    Broker(AppliedBroker),
    /// A host leads to a service.
    Domain(AppliedDomain),
    /// A workflow can be run.
    Workflow(AppliedWorkflow),
}

/// A workflow that can be run.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AppliedWorkflow {
    /// `Workflow`.
    pub(super) kind: &'static str,
    /// `namespace/name`.
    pub(super) name: String,
    pub(super) version: String,
    /// Whether this version is new.
    pub(super) new_version: bool,
}

/// A host that leads to a service.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct AppliedDomain {
    /// `DomainMapping`.
    pub(super) kind: &'static str,
    /// The host.
    pub(super) name: String,
    pub(super) namespace: String,
    /// The name of the service that answers there.
    pub(super) service: String,
}

/// A broker that takes events.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AppliedBroker {
    /// `Broker`.
    pub(super) kind: &'static str,
    /// `namespace/name`.
    pub(super) name: String,
    /// How long events are kept.
    pub(super) retention_seconds: u64,
    /// Most events that it holds.
    pub(super) most_events: u64,
    /// Options of the delivery of its triggers that give none themselves.
    pub(super) delivery: BTreeMap<String, String>,
}

/// A service that was deployed.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct AppliedService {
    /// `Service`.
    pub(super) kind: &'static str,
    #[serde(flatten)]
    pub(super) service: ServiceView,
    /// The revision that the manifest describes.
    pub(super) revision: String,
    /// Whether the service is new.
    pub(super) created: bool,
    /// Whether the revision is new.
    pub(super) new_revision: bool,
}

/// A trigger that runs.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(super) struct AppliedTrigger {
    /// `Trigger`.
    pub(super) kind: String,
    /// The kind of its source.
    pub(super) source: String,
    /// Whether it is declared and does not run.
    pub(super) paused: bool,
    /// `namespace/name`.
    pub(super) name: String,
    /// The service that it sends to.
    pub(super) target: String,
    /// What it was given.
    pub(super) options: BTreeMap<String, String>,
}
