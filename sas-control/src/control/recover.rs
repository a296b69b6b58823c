//! After a start, after a failed write, and when time has passed.

use super::{BROKERS, Control, HOUSEKEEPING, Live, RECOVERIES, Recovery, SERVICES, TENANTS, TRIGGERS};
use crate::reconcile::reconcile;
use crate::record::ServiceRecord;
use sas_core::{BlobStore, Error, ErrorKind, Result, TenantKey};
use std::collections::HashSet;
use std::sync::{Arc, Weak};
use tokio_util::sync::CancellationToken;

/// Rounds of housekeeping after which services and revisions are counted.
const COUNTED: u64 = 15;
/// What tells this store from every other, for the packages that belong to it.
const STORE_ID: &str = "platform/id";

impl Control {
    /// Brings back the services and triggers of the store: prepared, registered, routed. What fails is reported and
    /// does not hold up the rest. Afterwards [`Control::is_ready`].
    ///
    /// # Errors
    /// `Unavailable` when the store can't be read.
    pub async fn recover(self: &Arc<Self>) -> Result<Recovery> {
        let mut recovery = Recovery::default();
        let since = self.store.version().await?;
        for entry in self.entries(TENANTS).await? {
            let namespace = &entry.key[TENANTS.len()..];
            match serde_json::from_slice(&entry.value) {
                Ok(id) => self.tenants.insert(namespace, TenantKey(id)),
                Err(error) => {
                    let message =
                        format!("{} is not a tenant: {error}; the next deploy writes it anew", entry.key);
                    let error = Error::new(ErrorKind::InvalidSpec, "recover", message);
                    recovery.failed.push((format!("Tenant {namespace}"), Arc::new(error)));
                }
            }
        }
        self.recover_quotas(&mut recovery).await?;
        self.recover_domains(&mut recovery).await?;
        self.recover_engines(&mut recovery).await?;
        self.recover_apps(&mut recovery).await?;
        self.recover_purges().await?;
        self.recover_spreads().await?;
        let mut paths = Vec::new();
        for entry in self.entries(SERVICES).await? {
            match ServiceRecord::decode(&entry.key, &entry.value) {
                Ok(record) => {
                    paths.push(record.path());
                    self.services.insert(record.path(), Live::new(record, entry.version));
                }
                Err(error) => {
                    let path = &entry.key[SERVICES.len()..];
                    self.unreadable.add(&entry.key);
                    // What another version wrote is whole, and nothing writes over it.
                    if error.kind != ErrorKind::Unsupported {
                        self.damaged.add(&entry.key, entry.version);
                    }
                    recovery.failed.push((format!("Service {path}"), Arc::new(error)));
                }
            }
        }
        self.recover_packages(&mut recovery).await?;
        let mut settling = tokio::task::JoinSet::new();
        let mut paths = paths.into_iter();
        loop {
            // Not a task for each at once: with many services those that wait would be most of the memory.
            while settling.len() < RECOVERIES
                && let Some(path) = paths.next()
            {
                let control = Arc::clone(self);
                settling.spawn(async move {
                    let _changing = control.change(&path).await;
                    let settled = control.settle(&path).await.and_then(|()| control.unblocked(&path));
                    (path, settled)
                });
            }
            let Some(joined) = settling.join_next().await else { break };
            match joined {
                Ok((_, Ok(()))) => recovery.services += 1,
                Ok((path, Err(error))) => recovery.failed.push((format!("Service {path}"), Arc::new(error))),
                Err(error) => {
                    let error = Error::new(ErrorKind::Unexpected, "recover", error.to_string());
                    recovery.failed.push(("Service".to_owned(), Arc::new(error)));
                }
            }
        }
        if self.hosts.is_some() {
            self.place_triggers().await?;
            self.follow_others(since);
            self.note_behind();
            recovery.failed.sort_by(|a, b| a.0.cmp(&b.0));
            self.recovery_report.keep(&recovery);
            self.count();
            self.lifecycle.recovered();
            return Ok(recovery);
        }
        // Before the triggers, which read from them.
        for entry in self.entries(BROKERS).await? {
            if let Err(error) = self.recover_broker(&entry.value).await {
                let name = format!("Broker {}", &entry.key[BROKERS.len()..]);
                recovery.failed.push((name, Arc::new(error)));
            }
        }
        for entry in self.entries(TRIGGERS).await? {
            match self.recover_trigger(&entry.value).await {
                Ok(()) => recovery.triggers += 1,
                Err(error) => {
                    let name = format!("Trigger {}", &entry.key[TRIGGERS.len()..]);
                    recovery.failed.push((name, Arc::new(error)));
                }
            }
        }
        self.note_behind();
        self.follow_apps().await;
        self.purge_all().await;
        recovery.failed.sort_by(|a, b| a.0.cmp(&b.0));
        self.recovery_report.keep(&recovery);
        self.count();
        self.lifecycle.recovered();
        Ok(recovery)
    }

    /// Clears what a crash left of packages. Nothing is removed while a record can't be read, since it may need anything
    /// that is there, nor from a place that is another store's: a database that was lost, or put back from a copy, must
    /// not take the code with it.
    async fn recover_packages(&self, recovery: &mut Recovery) -> Result<()> {
        let Some(packages) = self.pins.copies() else { return Ok(()) };
        if self.hosts.is_some() {
            // Another host may be copying one now: nothing is removed.
            let shared = async { self.share_packages(&**packages, &packages.list().await?).await };
            if let Err(error) = shared.await {
                recovery.failed.push(("Packages".to_owned(), Arc::new(error)));
            }
            return Ok(());
        }
        let _alone = self.pins.removing().await;
        let (there, kept) = (packages.list().await?, self.package_digests());
        let stored = self.store.get(STORE_ID).await?;
        let id = stored.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
        let owner = packages.owner().await?;
        let ours = match (&owner, &id) {
            (Some(owner), Some(id)) => owner == id,
            // From before packages had an owner, or a start that was cut short.
            (None, _) => there.is_empty() || there.iter().any(|digest| kept.contains(digest)),
            (Some(_), None) => false,
        };
        if !ours {
            self.pins.mark_foreign();
            let message = format!(
                "{} packages were there before this state and belong to another: none is removed; put the state back that \
                 they belong to, or remove them yourself",
                there.len()
            );
            let error = Error::new(ErrorKind::Conflict, "recover", message);
            recovery.failed.push(("Packages".to_owned(), Arc::new(error)));
            return Ok(());
        }
        if owner.is_none() {
            let id = match id {
                Some(id) => id,
                None => {
                    let id = format!("{:032x}", self.request_id().0);
                    let expected = stored.map(|entry| entry.version);
                    self.store.put(STORE_ID, expected, id.clone().into()).await?;
                    id
                }
            };
            packages.set_owner(&id).await?;
        }
        let unreadable = self.unreadable.len();
        let unneeded = there.iter().filter(|digest| !kept.contains(*digest)).cloned();
        if unreadable > 0 {
            let unneeded: Vec<String> = unneeded.collect();
            tracing::warn!(
                unreadable,
                packages = unneeded.len(),
                "records can't be read, so no package is removed"
            );
            self.pins.suspect(unneeded);
            return Ok(());
        }
        // Tidying would remove the last copy of what the storage has not.
        self.share_packages(&**packages, &there).await?;
        packages.tidy().await?;
        for digest in unneeded {
            packages.delete(&digest).await?;
        }
        Ok(())
    }

    /// A place that hosts share may be new, or have lost what this host has a copy of still: it gets what records name.
    async fn share_packages(&self, packages: &dyn BlobStore, there: &[String]) -> Result<()> {
        let there: HashSet<&String> = there.iter().collect();
        for digest in self.package_digests().iter().filter(|digest| !there.contains(digest)) {
            if let Some(source) = packages.get(digest).await? {
                packages.put(&source).await?;
            }
        }
        Ok(())
    }

    /// What keeps a revision of the service from running, as an error.
    pub(super) fn unblocked(&self, path: &str) -> Result<()> {
        let Some(live) = self.live(path) else { return Ok(()) };
        let state = live.state.lock();
        match state.observed.blocked.iter().next() {
            Some((revision, blocked)) => {
                let message = format!("{revision}: {}", blocked.message);
                Err(Error::new(ErrorKind::Unavailable, "recover", message))
            }
            None => Ok(()),
        }
    }

    /// Takes over what the store has of a service after a write of which nobody knows whether it was done. To be
    /// called in the service's turn.
    pub(super) async fn read_again(&self, path: &str) -> Result<()> {
        let key = format!("{SERVICES}{path}");
        match self.store.get(&key).await? {
            Some(entry) => match (ServiceRecord::decode(&entry.key, &entry.value), self.live(path)) {
                (Ok(record), Some(live)) => {
                    let mut state = live.state.lock();
                    state.version = entry.version;
                    state.record = Some(Arc::new(record));
                }
                (Ok(record), None) => {
                    self.services.insert(path, Live::new(record, entry.version));
                }
                (Err(error), _) if error.kind == ErrorKind::Unsupported => return Err(error),
                (Err(error), live) => {
                    tracing::error!(service = %path, error = %error.chain(), "the next change writes over it");
                    match live {
                        // What is known of it is better than what is there.
                        Some(live) => live.state.lock().version = entry.version,
                        None => self.damaged.add(&key, entry.version),
                    }
                }
            },
            None => {
                self.damaged.remove(&key);
                if let Some(live) = self.live(path) {
                    live.state.lock().record = None;
                }
            }
        }
        self.stale_after_write.remove(path);
        Ok(())
    }

    /// Makes housekeeping look at a service.
    pub(crate) fn keep_an_eye_on(&self, path: &str) {
        self.pending_reconcile.add(path);
    }

    /// Finishes what was left half done by writes that failed.
    pub(super) async fn mend(self: &Arc<Self>) {
        for path in self.stale_after_write.all() {
            let _changing = self.change(&path).await;
            if self.stale_after_write.contains(&path) {
                // The store still fails; the next round may find it well.
                continue;
            }
            if let Err(error) = self.settle(&path).await {
                tracing::warn!(service = %path, error = %error.chain(), "not settled after a failed write");
            }
            if self.live(&path).is_some_and(|live| live.record().is_none()) {
                self.services.remove(&path);
            }
        }
    }

    /// What is due without anybody asking: roll-outs, old revisions, unused test registrations, and what a cancelled
    /// change left.
    pub(super) async fn tidy(self: &Arc<Self>) {
        let pending = self.pending_reconcile.all();
        for path in &pending {
            if !self.acts_for(path) {
                if self.standing(path).part.is_some() {
                    self.size(path);
                }
                continue;
            }
            self.size(path);
            if let Err(error) = self.roll(path).await {
                tracing::warn!(service = %path, error = %error.chain(), "a roll-out could not go on; it is tried again");
            }
        }
        let now = self.clock.now();
        let mut due = pending;
        due.retain(|path| match self.live(path) {
            Some(live) => {
                let state = live.state.lock();
                !self.acts_for(path)
                    || !reconcile(state.record.as_deref(), &state.observed, now, &self.rules).is_empty()
            }
            None => {
                self.pending_reconcile.remove(path);
                false
            }
        });
        for path in due {
            if self.lifecycle.is_stopping() {
                return;
            }
            let _changing = self.change(&path).await;
            if let Err(error) = self.settle(&path).await {
                tracing::warn!(service = %path, error = %error.chain(), "reconciling failed; it is tried again");
            }
        }
    }
}

pub(super) async fn housekeeping(control: Weak<Control>, stop: CancellationToken) {
    for round in 1_u64.. {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING) => {}
        }
        let Some(control) = control.upgrade() else { return };
        control.mend().await;
        control.tidy().await;
        control.follow_apps().await;
        control.purge_all().await;
        control.forget_old_uploads().await;
        control.collect_packages().await;
        if let Err(error) = control.stored.read_on(&control.store).await {
            tracing::debug!(error = %error.chain(), "records are looked through again when the store answers");
        }
        if round.is_multiple_of(control.diagnosis_config.every.as_secs().max(1)) {
            control.diagnose_by_itself().await;
        }
        if round % COUNTED == 0 {
            control.count();
        }
    }
}
