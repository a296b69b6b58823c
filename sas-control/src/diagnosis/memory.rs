//! What earlier looks remember. Bounded by what is registered: what is gone is forgotten.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use sas_core::{InstanceId, QuotaResource, RevisionKey, StartTimings, Timestamp};
use tokio::time::Instant;

use super::{Finding, look::Look};

/// Starts that are remembered per revision.
const STARTS: usize = 64;
/// Looks at the descriptors that are remembered: a leak is what grows over all of them.
pub(super) const HANDLES: usize = 10;

/// What is remembered.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// The look before, and the one now.
    pub(super) before: Option<Moment>,
    pub(super) now: Option<Moment>,
    /// Descriptors and instances at the last looks, oldest first.
    pub(super) handles: VecDeque<(u64, u64)>,
    revisions: HashMap<RevisionKey, Past>,
    /// What was told in the log.
    told: Told,
}

/// Findings, by their checks and subjects.
type Told = BTreeSet<(&'static str, String)>;

/// When a look was taken, and what of it is compared with the next.
#[derive(Clone, Debug)]
pub(super) struct Moment {
    pub(super) at: Timestamp,
    pub(super) mono: Instant,
    /// Starts that waited, by engine.
    pub(super) waiting: BTreeMap<String, u64>,
    /// What quotas refused, by whose they are and what they limit.
    pub(super) refused: BTreeMap<(String, QuotaResource), u64>,
}

/// What is remembered of a revision.
#[derive(Debug, Default)]
pub(super) struct Past {
    /// Instances whose starts were noted.
    seen: BTreeSet<InstanceId>,
    /// Their timings, oldest first.
    pub(super) starts: VecDeque<StartTimings>,
    /// Since when it is awake without a pause, and its requests then.
    pub(super) awake: Option<(Instant, Option<u64>)>,
}

impl Memory {
    pub(super) fn remember(&mut self, look: &Look) {
        let moment = Moment {
            at: look.at,
            mono: look.mono,
            waiting: look.engines.iter().map(|e| (e.name.clone(), e.totals.waiting_starts)).collect(),
            refused: look
                .quotas
                .iter()
                .map(|quota| ((quota.subject.clone(), quota.pressure.resource), quota.pressure.refused))
                .collect(),
        };
        self.before = self.now.replace(moment);
        if let Some((open, _)) = look.host.descriptors {
            self.handles.push_back((open, look.engines.iter().map(|engine| engine.totals.instances).sum()));
            let surplus = self.handles.len().saturating_sub(HANDLES);
            self.handles.drain(..surplus);
        }
        let mut revisions = std::mem::take(&mut self.revisions);
        for revision in &look.revisions {
            if revision.status.ready == 0 {
                if let Some(mut past) = revisions.remove(&revision.key) {
                    past.awake = None;
                    past.seen.clear();
                    // How it used to start is known when it wakes.
                    if !past.starts.is_empty() {
                        self.revisions.insert(revision.key, past);
                    }
                }
                continue;
            }
            let mut past = revisions.remove(&revision.key).unwrap_or_default();
            past.awake.get_or_insert((look.mono, revision.requests));
            let mut seen = BTreeSet::new();
            for instance in &revision.instances {
                seen.insert(instance.id);
                if let Some(start) = instance.start.filter(|start| !start.from_stem)
                    && !past.seen.contains(&instance.id)
                {
                    past.starts.push_back(start);
                }
            }
            past.seen = seen;
            let surplus = past.starts.len().saturating_sub(STARTS);
            past.starts.drain(..surplus);
            self.revisions.insert(revision.key, past);
        }
    }

    pub(super) fn past(&self, revision: RevisionKey) -> Option<&Past> {
        self.revisions.get(&revision)
    }

    /// What of `found` was not told yet, and what was told and is over: that may be told again when it comes back.
    pub(super) fn tell(&mut self, found: &[Finding]) -> (Told, Told) {
        let now: Told = found.iter().map(|finding| (finding.name, finding.subject.clone())).collect();
        let before = std::mem::replace(&mut self.told, now);
        (self.told.difference(&before).cloned().collect(), before.difference(&self.told).cloned().collect())
    }
}
