//! Declaring, replacing and removing engines: services move one by one, each when it is ready where it goes.

use std::{sync::Arc, time::Duration};

use sas_core::{DEFAULT_ENGINE, EngineSpec, Error, ErrorKind, Pool as _, Result, RevisionKey};
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};

use super::{Control, Declaration, ENGINES, Live, Recovery, precondition};
use crate::engine::{Declared, EnginePhase, EngineView, LeftBehind, Running, UpgradeReport};

/// Services that move at once.
const MOVES: usize = 8;
/// How long a service may take to get as many instances ready where it goes as it has where it is.
const WARM: Duration = Duration::from_secs(60);
/// How long a request may take from its route to its instance: so long the old registration stays after the routes moved.
const SWITCH: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_millis(10);

impl Control {
    /// All engines, by name.
    pub fn engine_views(&self) -> Vec<EngineView> {
        self.engines().views()
    }

    /// Declares an engine, or declares one anew, and stores it. A new one is built; one whose kind or reserve changes is
    /// replaced as by [`Control::upgrade_engine`]. Then the services of all namespaces move to the engine that they are on
    /// now. It returns when all routes were moved.
    ///
    /// **Cancel safety:** what was stored is so after the next start at the latest; services that were not moved yet stay
    /// where they are until [`Control::upgrade_engine`].
    ///
    /// # Errors
    /// `InvalidSpec` with the fields, `Conflict` for a namespace that is on another engine, `Exhausted` when the machine
    /// has not what is to be set aside or there are too many, `Unsupported` on a host that made its one engine itself.
    pub async fn declare_engine(self: &Arc<Self>, spec: EngineSpec) -> Result<UpgradeReport> {
        self.lifecycle.open()?;
        self.engines_of_one_host(&spec.name)?;
        let engines = Arc::clone(self.engines());
        let _changing = engines.changing.lock().await;
        engines.factory()?;
        engines.check(&spec)?;
        let stored = self.declared_version(Declaration::Engine, &spec.name).await?;
        precondition::check(&format!("engine {}", spec.name), stored)?;
        let before = engines.state.lock().engines.get(&spec.name).map(|declared| declared.spec.clone());
        match before {
            None => {
                if let Err(error) = engines.add(spec.clone()).await {
                    engines.state.lock().engines.remove(&spec.name);
                    return Err(error);
                }
                self.store_engine(&spec).await?;
                Ok(self.move_all().await)
            }
            Some(before) => {
                let rebuilt = before.kind != spec.kind || before.reserved != spec.reserved;
                engines.update(&spec.name, |declared| declared.spec = spec.clone());
                if rebuilt && let Err(error) = self.replace(&spec).await {
                    engines.update(&spec.name, |declared| declared.spec = before);
                    return Err(error);
                }
                self.store_engine(&spec).await?;
                if rebuilt { Ok(self.replaced(&spec.name).await) } else { Ok(self.move_all().await) }
            }
        }
    }

    /// Builds an engine anew, moves each of its services when it is ready on the new one, lets the old one finish what it
    /// has, and ends it. Until then both have what is set aside for it. What could not be moved goes on where it is, and the
    /// engine is degraded then: calling this again tries it again.
    ///
    /// **Cancel safety:** what was begun is finished in the background.
    ///
    /// # Errors
    /// `NotFound` for an engine that was not declared; else as [`sas_core::EngineFactory::build`], when everything is as it
    /// was before.
    pub async fn upgrade_engine(self: &Arc<Self>, name: &str) -> Result<UpgradeReport> {
        self.lifecycle.open()?;
        self.engines_of_one_host(name)?;
        let engines = Arc::clone(self.engines());
        let _changing = engines.changing.lock().await;
        let spec = engines.state.lock().engines.get(name).map(|declared| declared.spec.clone());
        let spec = spec.ok_or_else(|| no_engine(name))?;
        self.replace(&spec).await?;
        Ok(self.replaced(name).await)
    }

    /// Moves the services of an engine to the default one, ends it when it has finished what it has, and forgets it.
    ///
    /// # Errors
    /// `NotFound` for an engine that was not declared; `Unsupported` for the default one.
    pub async fn remove_engine(self: &Arc<Self>, name: &str) -> Result<UpgradeReport> {
        self.lifecycle.open()?;
        self.engines_of_one_host(name)?;
        if name == DEFAULT_ENGINE {
            return Err(Error::unsupported("removing the default engine"));
        }
        let engines = Arc::clone(self.engines());
        let _changing = engines.changing.lock().await;
        let key = format!("{ENGINES}{name}");
        if !engines.names().iter().any(|known| known == name) {
            return Err(no_engine(name));
        }
        let stored = self.declared_version(Declaration::Engine, name).await?;
        precondition::check(&format!("engine {name}"), stored)?;
        if let Some(version) = stored {
            self.store.delete(&key, version).await?;
        }
        engines.update(name, |declared| {
            declared.spec.namespaces.clear();
            declared.phase = EnginePhase::Draining;
            declared.draining.extend(declared.running.take());
        });
        let mut report = self.move_all().await;
        if report.left_behind.is_empty() {
            report.drained = self.drain_old(name).await;
            engines.state.lock().engines.remove(name);
            engines.told(name, EnginePhase::Stopped, None);
        } else {
            engines.update(name, |declared| declared.problem = Some(problem(&report)));
        }
        Ok(report)
    }

    /// Engines are changed on one host alone: no other one would follow it.
    fn engines_of_one_host(&self, name: &str) -> Result<()> {
        if self.hosts.is_none() {
            return Ok(());
        }
        let message = format!(
            "engine {name}: engines can't be changed while several hosts share the state, since the others would not \
             follow: stop them all, start one of them alone, change it there, and start them again"
        );
        Err(Error::new(ErrorKind::Unsupported, "engine", message))
    }

    /// Builds the next engine of that name; new registrations go there from now on.
    async fn replace(&self, spec: &EngineSpec) -> Result<()> {
        let engines = self.engines();
        let next = engines.provision(spec).await?;
        engines.update(&spec.name, |declared| {
            declared.draining.extend(declared.running.replace(next));
            declared.phase = EnginePhase::Upgrading;
            declared.problem = None;
        });
        Ok(())
    }

    /// Moves what is to be moved after an engine was replaced, and ends what it replaced.
    async fn replaced(self: &Arc<Self>, name: &str) -> UpgradeReport {
        let mut report = self.move_all().await;
        if report.left_behind.is_empty() {
            report.drained = self.drain_old(name).await;
        }
        tracing::info!(
            engine = name,
            moved = report.moved,
            left_behind = report.left_behind.len(),
            drained = report.drained,
            "an engine was replaced"
        );
        self.engines().update(name, |declared: &mut Declared| {
            declared.problem = (!report.left_behind.is_empty()).then(|| problem(&report));
            declared.phase =
                if declared.problem.is_some() { EnginePhase::Degraded } else { EnginePhase::Ready };
            declared.last_upgrade = Some(report.clone());
        });
        report
    }

    async fn store_engine(&self, spec: &EngineSpec) -> Result<()> {
        let key = format!("{ENGINES}{}", spec.name);
        let value = serde_json::to_vec(spec).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "engine", format!("{} can't be written: {error}", spec.name))
        })?;
        let expected = self.store.get(&key).await?.map(|entry| entry.version);
        self.store.put(&key, expected, value.into()).await.map(|_| ())
    }

    /// Builds the engines that the store has, before anything starts. What can't be built keeps its namespaces, so that
    /// nothing of them starts on another engine.
    pub(super) async fn recover_engines(self: &Arc<Self>, recovery: &mut Recovery) -> Result<()> {
        let engines = Arc::clone(self.engines());
        for entry in self.entries(ENGINES).await? {
            let name = entry.key[ENGINES.len()..].to_owned();
            let built = match serde_json::from_slice::<EngineSpec>(&entry.value) {
                // What the host declares at the start goes before what was declared later.
                Ok(spec) if engines.names().contains(&spec.name) && spec.name != DEFAULT_ENGINE => Ok(()),
                Ok(spec) if spec.name == DEFAULT_ENGINE => {
                    engines.update(DEFAULT_ENGINE, |declared| declared.spec = spec.clone());
                    match self.replace(&spec).await {
                        Ok(()) => {
                            self.drain_old(DEFAULT_ENGINE).await;
                            engines.update(DEFAULT_ENGINE, |declared| declared.phase = EnginePhase::Ready);
                            Ok(())
                        }
                        Err(error) => Err(error),
                    }
                }
                Ok(spec) => engines.add(spec).await,
                Err(error) => {
                    let message = format!("{} is no engine: {error}; declare it again", entry.key);
                    Err(Error::new(ErrorKind::InvalidSpec, "recover", message))
                }
            };
            if let Err(error) = built {
                recovery.failed.push((format!("Engine {name}"), Arc::new(error)));
            }
        }
        Ok(())
    }

    /// Moves every service that is elsewhere than its namespace's engine.
    async fn move_all(self: &Arc<Self>) -> UpgradeReport {
        let began = Instant::now();
        let mut report = UpgradeReport { began: self.clock.now(), ..UpgradeReport::default() };
        let limit = Arc::new(Semaphore::new(MOVES));
        let mut moves = JoinSet::new();
        for record in self.records() {
            let (control, limit, path) = (Arc::clone(self), Arc::clone(&limit), record.path());
            moves.spawn(async move {
                let _permit = limit.acquire().await;
                let moved = control.move_service(&path).await;
                (path, moved)
            });
        }
        while let Some(joined) = moves.join_next().await {
            match joined {
                Ok((_, Ok(moved))) => report.moved += usize::from(moved),
                Ok((service, Err(error))) => {
                    let reason = error.chain();
                    tracing::warn!(service, reason, "stays on the engine where it is");
                    report.left_behind.push(LeftBehind { service, reason });
                }
                Err(error) => report
                    .left_behind
                    .push(LeftBehind { service: String::new(), reason: format!("the move ended: {error}") }),
            }
        }
        report.left_behind.sort_by(|one, two| one.service.cmp(&two.service));
        report.took(began.elapsed());
        report
    }

    /// Moves a service to its namespace's engine: registered there, as many instances ready as here, then the routes, then
    /// the end of what was here. False when it is there already.
    async fn move_service(self: &Arc<Self>, path: &str) -> Result<bool> {
        let _changing = self.change(path).await;
        let Some(live) = self.live(path) else { return Ok(false) };
        let Some(record) = live.record() else { return Ok(false) };
        let target = self.engines().of(&record.namespace)?;
        let place = target.engine.key.place();
        let elsewhere: Vec<_> = {
            let state = live.state.lock();
            let registrations = state.observed.registrations.iter();
            registrations.filter(|r| !r.retiring && r.key.place() != place).cloned().collect()
        };
        if elsewhere.is_empty() {
            return Ok(false);
        }
        let mut pairs: Vec<(RevisionKey, RevisionKey)> = Vec::new();
        let mut result = Ok(());
        for old in elsewhere.iter().filter(|old| old.routable) {
            self.forget_foreign_artifact(&live, &target, old.key, &old.revision);
            match self.start(&live, &record, &old.revision, true).await {
                Ok((new, _)) => pairs.push((old.key, new)),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        if result.is_ok() {
            result = self.warm(&target, &pairs).await;
        }
        if result.is_ok() {
            live.retiring(elsewhere.iter().map(|old| old.key), true);
            result = self.settle(path).await;
            if result.is_err() {
                live.retiring(elsewhere.iter().map(|old| old.key), false);
            }
        }
        if let Err(error) = result {
            // Back to how it was: routes lead to the old ones, and the new ones go.
            live.retiring(pairs.iter().map(|(_, new)| *new), true);
            if let Err(error) = self.settle(path).await {
                tracing::warn!(service = path, error = %error.chain(), "its routes are set again by housekeeping");
            }
            for (_, new) in pairs {
                self.retire(&live, new);
            }
            return Err(error);
        }
        // A request that was routed a moment ago finds its instance still.
        tokio::time::sleep(SWITCH).await;
        for old in elsewhere {
            self.retire(&live, old.key);
        }
        Ok(true)
    }

    /// What a runtime prepared is of no use to another one.
    fn forget_foreign_artifact(&self, live: &Live, target: &Running, old: RevisionKey, revision: &str) {
        let Some(deployed) = self.pool.deployed(old) else { return };
        let same = target.engine.runtimes.iter().any(|runtime| Arc::ptr_eq(runtime, &deployed.runtime));
        if !same {
            live.state.lock().artifacts.remove(revision);
        }
    }

    /// Gets as many instances ready under the new keys as there are under the old ones.
    async fn warm(&self, target: &Running, pairs: &[(RevisionKey, RevisionKey)]) -> Result<()> {
        let pool = &target.engine.pool;
        let deadline = Instant::now() + WARM;
        for (old, new) in pairs {
            // A pool that does not tell sizes itself, and one that sleeps wakes with its next request.
            let Some(before) = self.pool.status(*old) else { continue };
            let wanted = before.ready;
            if wanted == 0 || pool.status(*new).is_none() {
                continue;
            }
            pool.set_desired(*new, wanted);
            loop {
                let Some(status) = pool.status(*new) else { break };
                if status.ready >= wanted {
                    break;
                }
                if status.ready == 0
                    && let Some(error) = &status.last_start_error
                {
                    let message = format!("its instances do not start there: {}", error.chain());
                    return Err(Error::new(ErrorKind::Unavailable, "move", message));
                }
                if Instant::now() >= deadline || self.lifecycle.is_stopping() {
                    // Some are better than none: the others start as they are needed.
                    if status.ready > 0 {
                        break;
                    }
                    let message = format!("none of {wanted} instances was ready there within {WARM:?}");
                    return Err(Error::new(ErrorKind::Timeout, "move", message));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Waits until what engines of that name were replaced have finished, and ends them. It is done also when nobody waits.
    async fn drain_old(self: &Arc<Self>, name: &str) -> bool {
        let old = self.engines().update(name, |declared| declared.draining.clone()).unwrap_or_default();
        let (control, name) = (Arc::clone(self), name.to_owned());
        let drained = self.lifecycle.tasks.spawn(async move {
            // Retiring registrations are let go of by force after the grace.
            let deadline = Instant::now() + control.drain_grace + WARM;
            let mut all = true;
            for running in old {
                let place = running.engine.key.place();
                let holds = || {
                    let services = control.services.lives();
                    services.iter().any(|live| {
                        live.state.lock().observed.registrations.iter().any(|r| r.key.place() == place)
                    })
                };
                while holds() && Instant::now() < deadline && !control.lifecycle.is_stopping() {
                    tokio::time::sleep(LOOK).await;
                }
                if holds() {
                    all = false;
                    continue;
                }
                control.engines().end(&running, deadline).await;
                control.engines().places[place].store(None);
                control.engines().update(&name, |declared| {
                    declared.draining.retain(|other| !Arc::ptr_eq(other, &running));
                });
            }
            all
        });
        drained.await.unwrap_or(false)
    }
}

fn no_engine(name: &str) -> Error {
    Error::new(ErrorKind::NotFound, "engine", format!("there is no engine {name}"))
}

fn problem(report: &UpgradeReport) -> String {
    let first: Vec<String> =
        report.left_behind.iter().take(3).map(|left| format!("{} ({})", left.service, left.reason)).collect();
    format!("{} services could not be moved: {}", report.left_behind.len(), first.join("; "))
}
