//! The steps that [`reconcile`] asks for, done.

use super::deploy::fields_of;
use super::{Control, Live, ROUNDS, blocking, invalid};
use crate::package;
use crate::reconcile::{Command, Registration, reconcile, reconcile_away, reconcile_part, waits_for_time};
use crate::record::{Field, RevisionRecord, RevisionState, Rolling, ServiceRecord};
use crate::rollout::RolloutProgress;
use sas_core::{
    Artifact, Deployed, Error, ErrorKind, Place, Result, RevisionKey, RevisionName, RevisionSpec, Source,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

impl Control {
    /// Does what [`reconcile`] asks for until it asks for nothing. The caller has the turn.
    pub(crate) async fn settle(self: &Arc<Self>, path: &str) -> Result<()> {
        self.pending_reconcile.add(path);
        let mut advanced = false;
        for _ in 0..ROUNDS {
            let Some(live) = self.live(path) else { return Ok(()) };
            let (record, commands, undecided) = {
                let mut state = live.state.lock();
                state.observed.domains = self.domains.of(path);
                state.observed.standing = self.standing(path);
                let record = state.record.clone();
                let (desired, now) = (record.as_deref(), self.clock.now());
                let place = self.place(path);
                let undecided = matches!(place, Some(Place::Undecided));
                let commands = match (place, &self.hosts) {
                    (Some(Place::There(peer)), _) if state.observed.standing.part.is_some() => {
                        reconcile_part(desired, &state.observed, now, &self.rules, &peer)
                    }
                    (Some(Place::There(peer)), _) => {
                        reconcile_away(desired, &state.observed, now, &self.rules, &peer)
                    }
                    // Nobody acts for it: what is there stays, and who asks waits.
                    (Some(Place::Undecided), Some(hosts))
                        if desired.is_none() || state.observed.hosts.is_empty() =>
                    {
                        reconcile_away(desired, &state.observed, now, &self.rules, hosts.name())
                    }
                    (Some(Place::Undecided), _) => Vec::new(),
                    (None | Some(Place::Here(_)), _) => reconcile(desired, &state.observed, now, &self.rules),
                };
                (record, commands, undecided)
            };
            if commands.is_empty() {
                self.count_answers(&live);
                self.size(path);
                if !undecided {
                    let mut state = live.state.lock();
                    state.applied = state.observed.standing.version;
                }
                // A roll-out that has nothing to wait for goes on at once; but each step is seen by itself.
                if !std::mem::replace(&mut advanced, true)
                    && self.acts_for(path)
                    && self.advance(path, &live).await?
                {
                    continue;
                }
                let state = live.state.lock();
                let waits = !state.bounded.is_empty()
                    || waits_for_time(state.record.as_deref(), &state.observed, &self.rules);
                if !waits || !self.acts_for(path) && state.observed.registrations.is_empty() {
                    self.pending_reconcile.remove(path);
                }
                return Ok(());
            }
            for command in commands {
                self.execute(path, &live, record.as_deref(), command).await?;
            }
        }
        Err(Error::new(
            ErrorKind::Unexpected,
            "reconcile",
            format!("{path} does not settle in {ROUNDS} rounds"),
        ))
    }

    pub(super) async fn execute(
        self: &Arc<Self>,
        path: &str,
        live: &Arc<Live>,
        record: Option<&ServiceRecord>,
        command: Command,
    ) -> Result<()> {
        match command {
            Command::Start { revision } => {
                let Some(record) = record else { return Ok(()) };
                let was_ready = record.revision(&revision).is_some_and(|r| r.state == RevisionState::Ready);
                match self.start(live, record, &revision, true).await {
                    Ok((_, artifact)) => {
                        live.state.lock().observed.blocked.remove(&revision);
                        if was_ready && !self.acts_for(path) {
                            // A part of what another host acts for: that one writes what follows.
                            return Ok(());
                        }
                        self.prepared(path, live, &revision, Ok(&artifact)).await
                    }
                    // It ran before: what hinders it now may pass, so it is tried again.
                    Err(error) if was_ready => {
                        tracing::warn!(service = %path, revision, error = %error.chain(), "starting failed");
                        let now = self.clock.now();
                        let mut state = live.state.lock();
                        let blocked = state.observed.blocked.entry(revision).or_default();
                        blocked.fail(now, error.message);
                        Ok(())
                    }
                    Err(error) => self.prepared(path, live, &revision, Err(&error)).await,
                }
            }
            Command::Prepare { revision } => {
                let Some(record) = record else { return Ok(()) };
                let prepared = self.artifact(live, record, &revision).await;
                self.prepared(path, live, &revision, prepared.as_ref()).await
            }
            Command::Limit(quota) => {
                if let Some(quotas) = &self.tenant_quotas.requests {
                    quotas.set_service(path, quota);
                }
                live.state.lock().observed.quota = quota;
                Ok(())
            }
            Command::Share(hosts) => {
                if let Some(shares) = &self.shares {
                    shares.set_hosts(path, hosts.clone());
                }
                live.state.lock().observed.shared = hosts;
                Ok(())
            }
            Command::Rehearse(rehearsal) => {
                if let Some(rehearsals) = &self.rehearsals {
                    rehearsals.set_mirror(path, rehearsal.mirror);
                    rehearsals.set_faults(path, rehearsal.faults.clone())?;
                }
                live.state.lock().observed.rehearsal = rehearsal;
                Ok(())
            }
            Command::Route(changes) => {
                // Before there are requests for what was held back.
                self.size(path);
                self.router.apply(changes.clone())?;
                if let Some(triggers) = &self.triggers {
                    triggers.retry_now(path);
                }
                let mut state = live.state.lock();
                for change in changes {
                    match change {
                        sas_core::RouteChange::Set { host, rules } => {
                            state.observed.hosts.insert(host, rules);
                        }
                        sas_core::RouteChange::Remove { host } => {
                            state.observed.hosts.remove(&host);
                        }
                        _ => {}
                    }
                }
                Ok(())
            }
            Command::Retire { key } => {
                self.retire(live, key);
                Ok(())
            }
            Command::MarkRetired { revision, retired } => {
                let now = self.clock.now();
                self.amend_as_owner(path, live, |record| {
                    if let Some(revision) = record.revision_mut(&revision) {
                        revision.retired_at = retired.then_some(now);
                    }
                })
                .await
            }
            Command::Collect { revisions } => {
                let mut packages = Vec::new();
                self.amend_as_owner(path, live, |record| {
                    record.revisions.retain(|revision| {
                        let goes = revisions.contains(&revision.name);
                        if goes {
                            packages.extend(revision.package.clone());
                        }
                        !goes
                    });
                })
                .await?;
                live.forget(|name| revisions.iter().any(|revision| revision == name));
                self.drop_packages(packages).await;
                Ok(())
            }
            Command::FinishRollout => self.amend_as_owner(path, live, |record| record.rolling = None).await,
        }
    }

    /// Changes the record without a new generation.
    pub(super) async fn amend(
        &self,
        path: &str,
        live: &Live,
        change: impl FnOnce(&mut ServiceRecord),
    ) -> Result<()> {
        let Some(record) = live.record() else { return Ok(()) };
        let mut record = ServiceRecord::clone(&record);
        change(&mut record);
        self.save(path, record, false).await.map(|_| ())
    }

    /// The same, for what only the host that acts for the service may write.
    pub(super) async fn amend_as_owner(
        &self,
        path: &str,
        live: &Live,
        change: impl FnOnce(&mut ServiceRecord),
    ) -> Result<()> {
        let Some(record) = live.record() else { return Ok(()) };
        let mut record = ServiceRecord::clone(&record);
        change(&mut record);
        self.save_by(true, path, record, false).await.map(|_| ())
    }

    /// Notes how preparing went, and starts the roll-out of a revision that got ready.
    pub(super) async fn prepared(
        &self,
        path: &str,
        live: &Live,
        revision: &str,
        result: std::result::Result<&Artifact, &Error>,
    ) -> Result<()> {
        let now = self.clock.now();
        self.amend_as_owner(path, live, |record| {
            let before = record.latest_ready().map(|revision| revision.name.clone());
            let (over, plan) = (record.rollout, record.plan.clone());
            // A revision that was stopped, or is not proved yet, is none to come from.
            let proved = record.rolling.as_ref().filter(|rolling| rolling.progress.is_some());
            let before = proved.map(|rolling| rolling.from.clone()).or(before);
            let Some(changed) = record.revision_mut(revision) else { return };
            let was_pending = changed.state == RevisionState::Pending;
            match result {
                Ok(artifact) => {
                    changed.state = RevisionState::Ready;
                    let digest = &artifact.info().digest;
                    changed.artifact = (!digest.is_empty()).then(|| digest.clone());
                    changed.notes.clone_from(&artifact.info().notes);
                }
                Err(error) => {
                    tracing::warn!(service = %path, revision, error = %error.chain(), "preparing failed");
                    let fields = fields_of(error);
                    changed.state = RevisionState::Failed {
                        reason: error.kind.as_str().to_owned(),
                        message: error.message.clone(),
                        fields: fields.0.iter().map(Field::from).collect(),
                    };
                }
            }
            let after = record.latest_ready().map(|revision| revision.name.clone());
            if was_pending
                && result.is_ok()
                && let (Some(from), Some(to)) = (before, after)
                && from != to
            {
                // A plan was checked when it was read.
                let progress = plan.and_then(|plan| RolloutProgress::new(plan, now).ok());
                let moves = record.latest_has_traffic() && (progress.is_some() || !over.is_zero());
                record.rolling =
                    moves.then_some(Rolling { from, to, since: now, over, progress, reason: None });
            }
        })
        .await
    }

    /// What preparing the revision made; from before, if it is still there.
    pub(super) async fn artifact(
        &self,
        live: &Live,
        record: &ServiceRecord,
        revision: &str,
    ) -> Result<Artifact> {
        let found = found(record, revision)?;
        let running = self.engines.of(&record.namespace)?;
        let runtime = running.runtimes.runtime(&found.spec.runtime, record.tenant)?;
        if let Some(artifact) = live.state.lock().artifacts.get(revision).cloned() {
            return Ok(artifact);
        }
        self.unchanged(found).await?;
        let began = Instant::now();
        let artifact = match self.brought_here(found).await? {
            Some(source) => {
                let mut spec = RevisionSpec::clone(&found.spec);
                spec.source = source;
                runtime.prepare_for(&spec, record.tenant).await?
            }
            None => runtime.prepare_for(&found.spec, record.tenant).await?,
        };
        self.metrics.prepared(began.elapsed());
        live.state.lock().artifacts.insert(revision.to_owned(), artifact.clone());
        Ok(artifact)
    }

    /// Prepares and registers a revision, to take traffic or for test runs only.
    pub(crate) async fn start(
        &self,
        live: &Live,
        record: &ServiceRecord,
        revision: &str,
        routable: bool,
    ) -> Result<(RevisionKey, Artifact)> {
        let found = found(record, revision)?;
        let running = self.engines.of(&record.namespace)?;
        let runtime = running.runtimes.runtime(&found.spec.runtime, record.tenant)?;
        let artifact = self.artifact(live, record, revision).await?;
        // It runs already when the write failed that was to note that it does.
        let runs = live.state.lock().observed.running(revision).map(|registration| registration.key);
        if routable && let Some(key) = runs {
            return Ok((key, artifact));
        }
        let spec = if routable && self.runs_all(&record.path()) || found.spec.scaling.min == 0 {
            Arc::clone(&found.spec)
        } else {
            // A revision without traffic has no minimum, as Knative's unreachable ones. Of what several hosts run, the part
            // says what is kept.
            let mut spec = RevisionSpec::clone(&found.spec);
            spec.scaling.min = 0;
            Arc::new(spec)
        };
        let deployed = Arc::new(Deployed::new(
            Arc::clone(runtime),
            artifact.clone(),
            spec,
            RevisionName::new(&record.namespace, &record.name, revision),
            record.tenant,
        ));
        let key = self.engines.register_on(&running, deployed)?;
        let registration = Registration::new(revision, key, routable, self.clock.now());
        {
            let _one = live.sizing.lock();
            if routable {
                self.hold_back(live, record, revision, key);
            }
            live.state.lock().observed.registrations.push(registration);
        }
        Ok((key, artifact))
    }

    /// The copy of the revision's package on this host, if that is elsewhere than where it was deployed: another host may
    /// have deployed it, and a state directory may have been moved.
    async fn brought_here(&self, revision: &RevisionRecord) -> Result<Option<Source>> {
        let (Some(packages), Some(digest), Source::Path(deployed)) =
            (self.pins.copies(), &revision.package, &revision.spec.source)
        else {
            return Ok(None);
        };
        match packages.get(digest).await? {
            Some(Source::Path(here)) if here == *deployed => Ok(None),
            Some(source) => Ok(Some(source)),
            None => {
                let problem = format!("the copy of it is gone; deploy {} again", revision.name);
                Err(invalid("prepare", "source", digest, problem))
            }
        }
    }

    /// Without copies of packages, a revision is refused when its package is no longer what it was.
    pub(super) async fn unchanged(&self, revision: &RevisionRecord) -> Result<()> {
        let (None, Some(recorded)) = (self.pins.copies(), &revision.package) else { return Ok(()) };
        let source = revision.spec.source.clone();
        let digest = blocking(move || package::digest(&source)).await?;
        if digest.as_ref() == Some(recorded) {
            return Ok(());
        }
        let problem = format!("changed since {} was deployed; deploy it again", revision.name);
        Err(invalid("prepare", "source", digest.unwrap_or_default(), problem))
    }

    /// Drains a registration in the background, then unregisters it.
    pub(super) fn retire(self: &Arc<Self>, live: &Arc<Live>, key: RevisionKey) {
        {
            let mut state = live.state.lock();
            let Some(registration) = state.observed.registrations.iter_mut().find(|r| r.key == key) else {
                return;
            };
            registration.retiring = true;
        }
        let (control, live) = (Arc::clone(self), Arc::clone(live));
        self.lifecycle.tasks.spawn(async move {
            let deadline = Instant::now() + control.drain_grace;
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                control.pool.drain(key, left).await;
                // A request that was routed before the routes changed may have come in since.
                let busy = control.pool.status(key).is_some_and(|status| {
                    status.in_flight + status.queued + status.ready + status.starting > 0
                });
                if !busy || left.is_zero() || control.lifecycle.is_stopping() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let started = control.pool.status(key).is_some_and(|status| status.started);
            control.pool.unregister(key);
            let forgotten = live.retired(key, started);
            for key in forgotten {
                control.sinks.logs.forget(key);
                control.sinks.decisions.forget(key);
                control.sinks.meter.forget(key);
            }
        });
    }
}

pub(super) fn found<'r>(record: &'r ServiceRecord, revision: &str) -> Result<&'r RevisionRecord> {
    record.revision(revision).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "revision", format!("{} has no revision {revision}", record.path()))
    })
}
