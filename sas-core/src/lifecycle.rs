//! What happens to services, revisions, instances and engines, as it is told to who wants to know.

use std::fmt;

use serde_json::{Map, Value};

use crate::{RevisionName, Timestamp};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum LifecycleKind {
    /// A service is new, or has a new revision.
    ServiceDeployed,
    /// A service was deleted.
    ServiceDeleted,
    /// A service takes no requests any more.
    ServiceDisabled,
    /// A service that was disabled takes requests again.
    ServiceEnabled,
    /// A revision was prepared and may take traffic.
    RevisionReady,
    /// A revision could not be prepared.
    RevisionFailed,
    /// The traffic of a service begins to move from one revision to another.
    RolloutStarted,
    /// A roll-out has taken a step.
    RolloutMoved,
    /// A roll-out was stopped, by what was seen of the new revision or by hand.
    RolloutStopped,
    /// A roll-out is over: it came to its end, or something else took its place.
    RolloutFinished,
    /// An instance crashed, was killed for want of memory, or failed to start.
    InstanceFailed,
    /// Another number of instances of a revision is wanted.
    Scaled,
    /// An engine is being built.
    EngineProvisioning,
    /// An engine works.
    EngineReady,
    /// An engine works, but not all is as it should be.
    EngineDegraded,
    /// An engine takes nothing new.
    EngineDraining,
    /// An engine is being replaced.
    EngineUpgrading,
    /// An engine is not there any more, or could not be built.
    EngineStopped,
    /// The platform's own diagnosis found something that it had not found before.
    FindingRaised,
    /// What a diagnosis had found is over.
    FindingCleared,
}

impl LifecycleKind {
    /// Its name, such as `service.deployed`; `dev.sas.` stands before it in the type of a CloudEvent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServiceDeployed => "service.deployed",
            Self::ServiceDeleted => "service.deleted",
            Self::ServiceDisabled => "service.disabled",
            Self::ServiceEnabled => "service.enabled",
            Self::RevisionReady => "revision.ready",
            Self::RevisionFailed => "revision.failed",
            Self::RolloutStarted => "rollout.started",
            Self::RolloutMoved => "rollout.moved",
            Self::RolloutStopped => "rollout.stopped",
            Self::RolloutFinished => "rollout.finished",
            Self::InstanceFailed => "instance.failed",
            Self::Scaled => "scaled",
            Self::EngineProvisioning => "engine.provisioning",
            Self::EngineReady => "engine.ready",
            Self::EngineDegraded => "engine.degraded",
            Self::EngineDraining => "engine.draining",
            Self::EngineUpgrading => "engine.upgrading",
            Self::EngineStopped => "engine.stopped",
            Self::FindingRaised => "finding.raised",
            Self::FindingCleared => "finding.cleared",
        }
    }
}

impl fmt::Display for LifecycleKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that happened to what a platform runs.
///
/// ```
/// use sas_core::{LifecycleEvent, LifecycleKind, RevisionName, Timestamp};
/// let name = RevisionName::new("shop", "cart", "cart-00003");
/// let event = LifecycleEvent::of_revision(LifecycleKind::RevisionReady, &name, Timestamp::from_secs(5));
/// assert_eq!((event.subject.as_str(), event.namespace.as_deref()), ("shop/cart", Some("shop")));
/// assert_eq!(event.data["revision"], "cart-00003");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LifecycleEvent {
    /// What happened.
    pub kind: LifecycleKind,
    /// What it happened to: `namespace/service`, the name of an engine, or what a finding is about.
    pub subject: String,
    /// Whose that is; `None`: the platform's.
    pub namespace: Option<String>,
    /// When it happened.
    pub at: Timestamp,
    /// More of it, by names that its kind has.
    pub data: Map<String, Value>,
}

impl LifecycleEvent {
    /// An event about the platform itself, with no data yet.
    pub fn new(kind: LifecycleKind, subject: impl Into<String>, at: Timestamp) -> Self {
        Self { kind, subject: subject.into(), namespace: None, at, data: Map::new() }
    }

    /// An event about a service.
    pub fn of_service(kind: LifecycleKind, namespace: &str, service: &str, at: Timestamp) -> Self {
        let mut event = Self::new(kind, format!("{namespace}/{service}"), at);
        event.namespace = Some(namespace.to_owned());
        event
    }

    /// An event about a revision: its service is the subject, and `revision` names it.
    pub fn of_revision(kind: LifecycleKind, name: &RevisionName, at: Timestamp) -> Self {
        Self::of_service(kind, name.namespace(), name.service(), at).with("revision", name.revision())
    }

    /// The same with one more value.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.data.insert(name.to_owned(), value.into());
        self
    }
}

/// Is told what happens to what a platform runs.
///
/// The pool, the control plane and the engines tell it; the facade publishes what it is told as CloudEvents
/// (`lifecycle_events_to` of its builder).
pub trait LifecycleSink: fmt::Debug + Send + Sync + 'static {
    /// Something happened. Returns at once and never blocks: who tells it serves requests.
    fn told(&self, event: LifecycleEvent);
}
