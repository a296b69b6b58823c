//! What an engine is doing, as operators see it.

use std::time::Duration;

use sas_core::{EngineSpec, LifecycleKind, PoolTotals, StemView, Timestamp};
use serde::Serialize;

use super::Engines;

/// Where an engine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EnginePhase {
    /// It is being built; its namespaces' services wait for it.
    Provisioning,
    /// It works.
    Ready,
    /// It works, but not all is as it should be: [`EngineView::problem`] says what.
    Degraded,
    /// It takes nothing new, and finishes what it has.
    Draining,
    /// Another one takes its place, service by service.
    Upgrading,
    /// It is not there: it ended, or could not be built.
    Stopped,
}

impl EnginePhase {
    /// What it is to who follows the engine's life.
    pub(super) const fn kind(self) -> LifecycleKind {
        match self {
            Self::Provisioning => LifecycleKind::EngineProvisioning,
            Self::Ready => LifecycleKind::EngineReady,
            Self::Degraded => LifecycleKind::EngineDegraded,
            Self::Draining => LifecycleKind::EngineDraining,
            Self::Upgrading => LifecycleKind::EngineUpgrading,
            Self::Stopped => LifecycleKind::EngineStopped,
        }
    }
}

/// An engine as operators see it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct EngineView {
    /// As it was declared.
    #[serde(flatten)]
    pub spec: EngineSpec,
    /// Where it is in its life.
    pub phase: EnginePhase,
    /// Why it is degraded or stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// How many engines were built before it in this process; `None` while it is not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub number: Option<u16>,
    /// What it holds.
    pub totals: PoolTotals,
    /// Engines that it replaced and that still finish what they have.
    pub draining: usize,
    /// The last time that it was replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_upgrade: Option<UpgradeReport>,
}

/// What came of replacing an engine, or of moving services to another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct UpgradeReport {
    /// When it began.
    pub began: Timestamp,
    /// How long it took until the last route was moved, in milliseconds.
    pub took_millis: u64,
    /// Services whose routes lead to the new engine.
    pub moved: usize,
    /// Services that stay where they were, with the reason.
    pub left_behind: Vec<LeftBehind>,
    /// Whether the engine before has finished everything and is gone.
    pub drained: bool,
}

/// A service that could not be moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeftBehind {
    /// `namespace/name`.
    pub service: String,
    /// Why it was done, for whoever reads the history.
    pub reason: String,
}

impl UpgradeReport {
    pub(crate) fn took(&mut self, took: Duration) {
        self.took_millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    }
}

impl Engines {
    /// All engines, by name.
    pub fn views(&self) -> Vec<EngineView> {
        let engines: Vec<_> = {
            let state = self.state.lock();
            let view = |declared: &super::Declared| {
                let running = declared.running.clone();
                let view = EngineView {
                    spec: declared.spec.clone(),
                    phase: declared.phase,
                    problem: declared.problem.clone(),
                    number: running.as_ref().map(|running| running.engine.key.number()),
                    totals: PoolTotals::default(),
                    draining: declared.draining.len(),
                    last_upgrade: declared.last_upgrade.clone(),
                };
                (view, running)
            };
            state.engines.values().map(view).collect()
        };
        let with_totals = |(mut view, running): (EngineView, Option<std::sync::Arc<super::Running>>)| {
            if let Some(running) = running {
                view.totals = running.engine.pool.totals();
            }
            view
        };
        engines.into_iter().map(with_totals).collect()
    }

    /// What each engine holds, for a diagnosis.
    pub(crate) fn holdings(&self) -> Vec<(String, PoolTotals, Vec<StemView>)> {
        let engines: Vec<_> = {
            let state = self.state.lock();
            let running = |(name, declared): (&String, &super::Declared)| {
                Some((name.clone(), declared.running.clone()?))
            };
            state.engines.iter().filter_map(running).collect()
        };
        let held = |(name, running): (String, std::sync::Arc<super::Running>)| {
            (name, running.engine.pool.totals(), running.engine.pool.stems())
        };
        engines.into_iter().map(held).collect()
    }
}
