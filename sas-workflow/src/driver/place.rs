//! Which of several hosts drives which runs: the one that acts for their namespace, as for its triggers and brokers.

use std::{sync::Arc, time::Duration};

use sas_core::{Error, ErrorKind, Place, Result, Version, Watched};
use tokio_util::sync::CancellationToken;

use super::{
    Inner, Told, Workflows,
    drive::answer,
    records::{DEFINITIONS, TOLD},
    usage,
};

/// After a failure of the store.
const AGAIN: Duration = Duration::from_millis(500);
/// Entries that are read in one go.
const PAGE: usize = 500;

impl Inner {
    /// Who drives a run, given its path or its namespace.
    pub(super) fn place(&self, run: &str) -> Option<Place> {
        self.records.place(run.split('/').next().unwrap_or_default())
    }

    /// Whether this host drives a run, given its path or its namespace.
    pub(super) fn drives(&self, run: &str) -> bool {
        matches!(self.place(run), None | Some(Place::Here(_)))
    }

    /// Stops to drive a run that another host drives. What was asked for and not answered is asked for again there.
    pub(super) fn leave(&self, run: &str) {
        self.timers.lock().set(run, None);
        let Some(live) = self.live.lock().remove(run) else { return };
        for letter in live.inbox {
            let message = format!("the run {run:?} goes on at another host");
            answer(letter, Err(Error::new(ErrorKind::Unavailable, "workflow", message)));
        }
    }

    /// Lets the runs that are driven here look where they belong.
    fn look_around(&self) {
        let driven: Vec<_> =
            self.live.lock().iter().map(|(run, live)| (run.clone(), live.notify.clone())).collect();
        for (run, notify) in driven {
            if !self.drives(&run) {
                notify.notify_one();
            }
        }
    }

    /// What has changed below a prefix since the last time, each with its version if it is there; the first time all that is there.
    async fn changed(
        &self,
        prefix: &str,
        since: &mut Option<Version>,
    ) -> Result<Vec<(String, Option<Version>)>> {
        let store = &self.records.store;
        let Some(from) = *since else {
            let version = store.version().await?;
            let (mut found, mut after) = (Vec::new(), None::<String>);
            loop {
                let page = store.list(prefix, after.as_deref(), PAGE).await?;
                let Some(last) = page.last() else { break };
                after = Some(last.key.clone());
                found.extend(page.into_iter().map(|entry| (entry.key, Some(entry.version))));
            }
            *since = Some(version);
            return Ok(found);
        };
        match store.watch(prefix, from).await? {
            Watched::Changes(changes) => {
                *since = changes.last().map_or(Some(from), |change| Some(change.version));
                let seen = |change: sas_core::Change| {
                    let there = change.value.is_some().then_some(change.version);
                    (change.key, there)
                };
                Ok(changes.into_iter().map(seen).collect())
            }
            Watched::ListAgain => {
                *since = None;
                Ok(Vec::new())
            }
        }
    }

    /// Reads runs that other hosts have written, until `stop`.
    pub(super) async fn follow_words(self: Arc<Self>, stop: &CancellationToken) {
        let mut since = None;
        while self.records.hosts.is_some() {
            let Some(told) = stop.run_until_cancelled(self.changed(TOLD, &mut since)).await else { return };
            let heard = match told {
                Ok(told) => stop.run_until_cancelled(self.hear(told)).await,
                Err(error) => Some(Err(error)),
            };
            match heard {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "what other hosts tell runs cannot be read now; it is tried again");
                    since = None;
                    if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn hear(self: &Arc<Self>, told: Vec<(String, Option<Version>)>) -> Result<()> {
        for (key, version) in told {
            let (Some(run), Some(version)) = (key.strip_prefix(TOLD), version) else { continue };
            if !self.drives(run) {
                continue;
            }
            self.wake(run, Told::Reload);
            self.life.notify_one();
            match self.records.store.delete(&key, version).await {
                // It was told something more: that comes, too.
                Err(error) if error.kind != ErrorKind::Conflict => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Workflows {
    /// Goes on with the runs of all namespaces that this host acts for, and lets the others go.
    pub(super) async fn take_over(&self) -> Result<()> {
        self.reschedule_all().await?;
        self.0.look_around();
        let mut after: Option<String> = None;
        let mut usages = usage::Usages::new();
        loop {
            let states = self.0.records.states("", after.as_deref(), PAGE).await?;
            let Some(last) = states.last() else { break };
            after = Some(last.path());
            usage::count(&mut usages, &states);
            for state in states.iter().filter(|state| state.is_driven() && self.0.drives(&state.namespace)) {
                let run = state.path();
                if self.0.live.lock().contains_key(&run) {
                    // Another host may have driven it meanwhile.
                    self.0.wake(&run, Told::Reload);
                } else if state.asks {
                    self.0.wake(&run, Told::Wake);
                } else {
                    self.0.timers.lock().set_earlier(&run, state.wakes);
                }
            }
        }
        self.0.timers_changed.notify_one();
        self.0.counted(usages);
        self.0.life.notify_one();
        if self.0.records.hosts.is_some() {
            // What was told while nobody was there.
            let left = self.0.changed(TOLD, &mut None).await?;
            self.0.hear(left).await?;
        }
        Ok(())
    }

    /// Takes over and lets go as the hosts change, until `stop`.
    pub(super) async fn follow_hosts(&self, stop: &CancellationToken) {
        let Some(hosts) = &self.0.records.hosts else { return };
        loop {
            let round = hosts.round();
            let Some(taken) = stop.run_until_cancelled(self.take_over()).await else { return };
            if let Err(error) = taken {
                tracing::warn!(%error, "runs are not taken over yet; it is tried again");
                if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                    return;
                }
            } else if stop.run_until_cancelled(hosts.changed(round)).await.is_none() {
                return;
            }
        }
    }

    /// Keeps the schedules of definitions that were changed at other hosts, until `stop`.
    pub(super) async fn follow_definitions(&self, stop: &CancellationToken) {
        let mut since = None;
        while self.0.records.hosts.is_some() {
            match stop.run_until_cancelled(self.follow_definitions_once(&mut since)).await {
                None => return,
                Some(Ok(())) => {}
                Some(Err(error)) => {
                    tracing::warn!(%error, "definitions of other hosts cannot be read now; it is tried again");
                    since = None;
                    if stop.run_until_cancelled(tokio::time::sleep(AGAIN)).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    async fn follow_definitions_once(&self, since: &mut Option<Version>) -> Result<()> {
        if since.is_none() {
            *since = Some(self.0.records.store.version().await?);
            self.0.definitions.lock().clear();
            return self.reschedule_all().await;
        }
        for (key, _) in self.0.changed(DEFINITIONS, since).await? {
            if let Some(path) = key.strip_prefix(DEFINITIONS) {
                self.reschedule_changed(path).await;
            }
        }
        Ok(())
    }
}
