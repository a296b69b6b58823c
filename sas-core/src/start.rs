//! The start of an instance: what is asked for, and how far it has come.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::{
    Deployed, EnvValue, InstanceEvents, InstanceId, LogSink, RevisionKey, RevisionName, RevisionSpec, Secret,
    TenantKey,
};

/// Everything that a start needs, so that backends keep no registry of their own.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StartRequest {
    /// The id that the instance answers to.
    pub id: InstanceId,
    /// Of which revision.
    pub revision: RevisionKey,
    /// Its code, spec, name and tenant.
    pub deployed: Arc<Deployed>,
    /// The resolved secrets of the environment, by variable name.
    pub secrets: Option<Arc<BTreeMap<String, Secret>>>,
    /// Where its output goes.
    pub logs: Arc<dyn LogSink>,
    /// Whom it tells about its life.
    pub events: Arc<dyn InstanceEvents>,
    /// When the start is given up.
    pub deadline: Instant,
}

impl StartRequest {
    /// A request without secrets.
    pub fn new(
        id: InstanceId,
        revision: RevisionKey,
        deployed: Arc<Deployed>,
        logs: Arc<dyn LogSink>,
        events: Arc<dyn InstanceEvents>,
        deadline: Instant,
    ) -> Self {
        Self { id, revision, deployed, secrets: None, logs, events, deadline }
    }

    /// The spec.
    pub fn spec(&self) -> &Arc<RevisionSpec> {
        &self.deployed.spec
    }

    /// The name.
    pub fn name(&self) -> &RevisionName {
        &self.deployed.name
    }

    /// The tenant.
    pub fn tenant(&self) -> TenantKey {
        self.deployed.tenant
    }

    /// The declared environment with its secrets resolved, in the order of the names. A secret that was not
    /// resolved is left out: the pool refuses such a start before a runtime sees it.
    pub fn environment(&self) -> impl Iterator<Item = (&str, &str)> {
        self.deployed.spec.env.iter().filter_map(|(name, value)| {
            let value = match value {
                EnvValue::Literal(text) => text.as_str(),
                EnvValue::Secret(_) => self.secrets.as_deref()?.get(name)?.expose(),
            };
            Some((name.as_str(), value))
        })
    }
}

/// How far a start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StartPhase {
    /// The process, sandbox or container exists.
    Spawned,
    /// It accepts connections.
    Listening,
    /// It can serve.
    Ready,
}

/// The phases of one start, each counted from the moment the pool decided to start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct StartTimings {
    /// Waiting for the start gate and for budgets.
    pub gated: Duration,
    /// Until it was spawned; `None`: the runtime has no such phase.
    pub spawned: Option<Duration>,
    /// Until it listened; `None`: the runtime has no such phase.
    pub listening: Option<Duration>,
    /// Until it was ready.
    pub ready: Duration,
    /// Whether it was made of a stem.
    pub from_stem: bool,
}
