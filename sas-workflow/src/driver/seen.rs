//! What is told of runs: metrics, spans, and those that do not go on.

use std::{collections::BTreeMap, time::Duration};

use parking_lot::Mutex;
use sas_core::{ParentSpan, StepSpan, StuckRun};

use super::{
    Inner, LATE, SILENT,
    actions::StepKey,
    records::{Phase, RunState},
    shown::failure,
    view::{rfc3339, status},
};
use crate::Outcome;

/// How many runs that do not go on are remembered of each sort, and how many are told.
const REMEMBERED: usize = 1_000;
const TOLD: usize = 100;

/// Runs that do not go on although they should.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    /// Those that cannot be read, and why.
    unreadable: Mutex<BTreeMap<String, String>>,
    /// Those that the last search has found late or silent.
    found: Mutex<Vec<StuckRun>>,
}

impl Inner {
    pub(super) fn is_unreadable(&self, run: &str, why: &str) {
        let mut unreadable = self.stuck.unreadable.lock();
        if unreadable.len() < REMEMBERED || unreadable.contains_key(run) {
            unreadable.insert(run.to_owned(), why.to_owned());
        }
    }

    pub(super) fn is_known_unreadable(&self, run: &str) -> bool {
        self.stuck.unreadable.lock().contains_key(run)
    }

    pub(super) fn is_readable(&self, run: &str) {
        self.stuck.unreadable.lock().remove(run);
    }

    /// What a search says of a run that has not ended.
    pub(super) fn looked_at(&self, state: &RunState, now: u64) -> Option<StuckRun> {
        let (why, message) = match state.wakes {
            Some(at) if at.saturating_add(LATE) <= now => {
                ("late", format!("its timer was due at {}, and it was not told", rfc3339(at)))
            }
            _ if state.asks && state.updated.saturating_add(SILENT) <= now => {
                ("silent", format!("what it asked for at {} was not answered", rfc3339(state.updated)))
            }
            _ => return None,
        };
        let mut stuck = StuckRun::new(&state.namespace, &state.id, why, message);
        stuck.since = Some(rfc3339(state.updated));
        Some(stuck)
    }

    /// A search is over: these were late or silent, and these have not ended.
    pub(super) fn searched(&self, mut found: Vec<StuckRun>, runs: impl Fn(&str) -> bool) {
        found.truncate(REMEMBERED);
        self.stuck.unreadable.lock().retain(|run, _| runs(run));
        *self.stuck.found.lock() = found;
        self.metrics.stuck.set(self.stuck_runs(REMEMBERED).len() as f64);
    }

    fn stuck_runs(&self, most: usize) -> Vec<StuckRun> {
        let unreadable = self.stuck.unreadable.lock().clone();
        let mut runs: Vec<StuckRun> = unreadable
            .iter()
            .filter_map(|(run, why)| {
                let (namespace, id) = run.split_once('/')?;
                Some(StuckRun::new(namespace, id, "unreadable", why))
            })
            .collect();
        let found = self.stuck.found.lock();
        let others =
            found.iter().filter(|run| !unreadable.contains_key(&format!("{}/{}", run.namespace, run.id)));
        runs.extend(others.cloned());
        runs.truncate(most);
        runs
    }

    /// Those that do not go on, as far as it is known.
    pub(super) fn stuck(&self) -> Vec<StuckRun> {
        self.stuck_runs(TOLD)
    }

    /// The key with whether its run's trace is recorded.
    pub(super) fn traced(&self, mut key: StepKey) -> StepKey {
        key.sampled = self.config.traces.as_ref().is_some_and(|sink| sink.samples(key.trace().trace, None));
        key
    }

    pub(super) fn step_is_over(
        &self,
        key: &StepKey,
        (workflow, version): (&str, &str),
        kind: &'static str,
        outcome: &Outcome,
        took: Duration,
    ) {
        let failed = failure(outcome);
        self.metrics.step(kind, failed, took);
        let Some(sink) = &self.config.traces else { return };
        let why = match outcome {
            Outcome::Failed { reason } => Some(reason.clone()),
            Outcome::Answer { status, .. } if failed => Some(format!("answered {status}")),
            Outcome::Error(error) => {
                Some(error["title"].as_str().unwrap_or("it ended with an error").to_owned())
            }
            _ => None,
        };
        let mut span = StepSpan::run(key.trace(), &key.namespace, workflow, &key.run);
        span.parent = Some(ParentSpan::new(key.of_run().trace(), false));
        (span.version, span.step, span.kind) = (version, &key.step, kind);
        (span.error, span.duration) = (why.as_deref(), took);
        sink.step(&span);
    }

    /// A run of this host's has ended: it is counted, and told of.
    pub(super) fn tell_end(&self, state: &RunState) {
        self.used(&state.namespace, |own| own.unended = own.unended.saturating_sub(1));
        self.metrics.ended(&state.namespace, status(state).as_str());
        let Some(sink) = &self.config.traces else { return };
        let key = self.traced(StepKey {
            namespace: state.namespace.clone(),
            run: state.id.clone(),
            step: String::new(),
            sampled: false,
        });
        let why = match state.phase {
            Phase::Faulted => {
                let title = state.error.as_ref().and_then(|error| error.get("title")?.as_str());
                Some(title.unwrap_or("it faulted"))
            }
            _ => None,
        };
        let mut span = StepSpan::run(key.trace(), &state.namespace, &state.name, &state.id);
        (span.version, span.error) = (&state.version, why);
        span.duration = Duration::from_millis(state.updated.saturating_sub(state.started));
        sink.step(&span);
    }
}
