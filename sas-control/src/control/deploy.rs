//! What people ask for: deploy, traffic, roll back, delete.

use super::apps::differs_by_app_only;
use super::identity::identity;
use super::{
    Applied, Control, DeployOutcome, SERVICES, blocking, invalid, no_service, precondition, refused,
};
use crate::admission::AdmissionRequest;
use crate::labels::APP_LABEL;
use crate::package;
use crate::record::{Field, RevisionRecord, RevisionState, ServiceRecord};
use crate::registry::RuntimeRegistry;
use crate::roots::PackageRoots;
use sas_core::{
    BlobStore as _, Error, ErrorKind, LifecycleEvent, LifecycleKind, Principal, Result, RevisionSpec, Source,
    SpecErrors, TenantKey,
};
use sas_knative::keys::own;
use sas_knative::manifest::{Manifest, ServiceManifest, TrafficTarget, parse};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::time::Instant;

type Annotations = BTreeMap<String, String>;

impl Control {
    /// Reads manifests and applies each in turn.
    ///
    /// # Errors
    /// `InvalidSpec` with every mistake of every manifest, before anything is done; later the first error, after
    /// which the rest is not applied: `applied` tells what was.
    pub async fn apply(self: &Arc<Self>, text: &str, applied: &mut Vec<Applied>) -> Result<()> {
        let manifests = parse(text, &self.manifests).map_err(|errors| refused("manifest", errors))?;
        self.apply_all(manifests, applied).await
    }

    /// The same for somebody, who is kept as the author of the revisions that it makes, and whose packages come from the
    /// directories that `roots` allows.
    ///
    /// # Errors
    /// As [`Control::apply`].
    pub async fn apply_for(
        self: &Arc<Self>,
        author: &Principal,
        text: &str,
        roots: &PackageRoots,
        applied: &mut Vec<Applied>,
    ) -> Result<()> {
        let mut manifests = parse(text, &self.manifests).map_err(|errors| refused("manifest", errors))?;
        let sent = self.resolve_digests(&mut manifests).await?;
        let roots = roots.clone();
        let mut manifests = blocking(move || roots.hold(&mut manifests, &sent).map(|()| manifests)).await?;
        for manifest in &mut manifests {
            if let Manifest::Service(service) = manifest {
                service.author = Some(author.clone());
            }
        }
        self.apply_all_as(Some(author), manifests, applied).await
    }

    /// Applies manifests that were read already, each in turn.
    ///
    /// # Errors
    /// As [`Control::apply`].
    pub async fn apply_all(
        self: &Arc<Self>,
        manifests: Vec<Manifest>,
        applied: &mut Vec<Applied>,
    ) -> Result<()> {
        self.apply_all_as(None, manifests, applied).await
    }

    async fn apply_all_as(
        self: &Arc<Self>,
        author: Option<&Principal>,
        manifests: Vec<Manifest>,
        applied: &mut Vec<Applied>,
    ) -> Result<()> {
        self.check_triggers(&manifests)?;
        for manifest in manifests {
            let done = match manifest {
                Manifest::Service(service) => Applied::Service(self.deploy(*service).await?),
                Manifest::Trigger(trigger) => Applied::Trigger(self.apply_trigger(*trigger).await?),
                Manifest::Broker(broker) => Applied::Broker(self.apply_broker(*broker).await?),
                Manifest::Domain(domain) => Applied::Domain(self.apply_domain(author, *domain).await?),
                Manifest::Workflow(workflow) => {
                    let new = self.apply_workflow(&workflow).await?;
                    Applied::Workflow(workflow, new)
                }
            };
            applied.push(done);
        }
        Ok(())
    }

    /// Deploys a service: stores what is wanted, prepares a new revision if the manifest describes one, and moves the
    /// traffic. When the revision can't be prepared the service keeps what it had, and the revision's condition says
    /// why. Traffic is what the manifest says: without `spec.traffic`, all of it goes to the latest revision, also where it
    /// was pinned or split before.
    ///
    /// **Cancel safety:** what was stored is done all the same, at the latest by housekeeping.
    ///
    /// # Errors
    /// `InvalidSpec` with fields for what can never run, `Unsupported` for what this platform has not,
    /// `Conflict` when the revision's name is taken, `Exhausted` when the tenant has too many services, and whatever
    /// the runtime's `prepare` gives.
    pub async fn deploy(self: &Arc<Self>, manifest: ServiceManifest) -> Result<DeployOutcome> {
        self.deploy_as(manifest, false).await
    }

    /// Deploys a spec as a service, leaving where the traffic goes as it is: shares that name a revision keep it, and
    /// shares of the latest follow to the new one. A new service takes all of its traffic. Unlike a manifest, a spec says
    /// nothing of traffic, so it changes nothing of it.
    ///
    /// **Cancel safety:** as [`Control::deploy`].
    ///
    /// # Errors
    /// As [`Control::deploy`], with the fields of [`RevisionSpec`] instead of a manifest's, such as
    /// `RevisionSpec.concurrency`.
    pub async fn deploy_spec(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        spec: RevisionSpec,
    ) -> Result<DeployOutcome> {
        self.deploy_as(ServiceManifest::new(namespace, name, spec), true).await.map_err(in_library_terms)
    }

    async fn deploy_as(self: &Arc<Self>, manifest: ServiceManifest, keep: bool) -> Result<DeployOutcome> {
        let began = Instant::now();
        let named = format!("Service {}/{}", manifest.namespace, manifest.name);
        let deployed = self.deploy_inner(manifest, keep).await;
        if deployed.is_ok() {
            self.recovery_report.came_back(&named);
        }
        self.metrics.deployed(deployed.is_ok(), began.elapsed());
        self.metrics.services(self.services.len());
        deployed
    }

    pub(super) async fn deploy_inner(
        self: &Arc<Self>,
        mut manifest: ServiceManifest,
        keep: bool,
    ) -> Result<DeployOutcome> {
        self.open()?;
        let path = format!("{}/{}", manifest.namespace, manifest.name);
        manifest.validate().map_err(|errors| refused("deploy", errors))?;
        self.check_scaling(&manifest.spec.scaling)?;
        let tenant = self.tenant(&manifest.namespace).await?;
        // The runtime first: an image where there are no containers is refused for that, not for its volumes.
        let running = self.engines.of(&manifest.namespace)?;
        let chosen = running.runtimes.choose(&manifest.spec, tenant).and_then(|runtime| {
            let admitted = running.engine.pool.admits(&manifest.spec, &**runtime);
            self.check_tenant_holds(&manifest.namespace, &manifest.spec)?;
            admitted.map(|()| runtime.name()).map_err(|errors| refused("deploy", errors))
        });
        match chosen {
            Ok(name) => name.clone_into(&mut manifest.spec.runtime),
            Err(error) if keep => return Err(error),
            Err(error) => return Err(in_manifest_terms(error, &manifest)),
        }
        self.check_data_plane(manifest.quota.is_some(), manifest.plan.is_some())?;
        let annotation = |name: &str| format!("metadata.annotations[{name}]");
        self.check_rehearsal(
            (manifest.mirror.as_ref(), &annotation(own::MIRROR)),
            (&manifest.faults, &annotation(own::FAULTS)),
        )?;
        let pinning = self.pins.pinning().await;
        let (mut spec, package, package_bytes) = self
            .pin(&manifest.spec, &running.runtimes, tenant)
            .await
            .map_err(|error| in_manifest_terms(error, &manifest))?;
        if let Some(package) = &package
            && self.hosts.is_none()
        {
            // Should the deploy be refused; else a record names it by the time that somebody looks.
            self.pins.suspect([package.clone()]);
        }
        self.admit(&manifest, &spec, package.as_deref()).await?;
        let own_digest = identity(&spec, package.as_deref())?;

        let changing = self.change(&path).await;
        let app = manifest.labels.get(APP_LABEL).map(String::as_str).filter(|app| !app.is_empty());
        self.check_purges(&manifest.namespace, app)?;
        let app_env = self.add_app_env(&manifest.namespace, app, &mut spec);
        let digest = identity(&spec, package.as_deref())?;
        let before = self.live(&path).and_then(|live| live.record());
        if before.is_none()
            && let Some(most) = running.runtimes.kind().services_per_tenant()
            && !tenant.is_host()
            && self.records_of(&manifest.namespace).len() >= most
        {
            let message =
                format!("namespace {} has {most} services, its quota; delete one first", manifest.namespace);
            return Err(Error::new(ErrorKind::Exhausted, "deploy", message));
        }
        let storage = self.storage_turn(&manifest.namespace).await;
        if let (Some(package), Some(bytes)) = (&package, package_bytes) {
            self.check_storage(&manifest.namespace, tenant, package, bytes)?;
        }
        let now = self.clock.now();
        let mut record = match &before {
            Some(before) => ServiceRecord::clone(before),
            None => ServiceRecord::new(&manifest.namespace, &manifest.name, tenant, now),
        };
        let reason = change_cause(&manifest.template_annotations, &manifest.annotations);
        record.generation += 1;
        record.changed_by.clone_from(&manifest.author);
        record.labels = manifest.labels;
        record.annotations = manifest.annotations;
        record.cluster_local = manifest.cluster_local;
        record.affinity = manifest.affinity;
        record.placeholder = manifest.placeholder;
        record.no_wake = manifest.no_wake;
        record.routes = manifest.routes;
        record.mirror = manifest.mirror;
        record.faults = manifest.faults;
        record.quota = manifest.quota;
        record.document = manifest.document;
        record.rollout = manifest.rollout;
        record.plan = manifest.plan;
        let same = record.latest_created().filter(|latest| {
            latest.digest == digest && manifest.revision.as_ref().is_none_or(|name| *name == latest.name)
        });
        let (revision, new_revision) = match same {
            Some(latest) => (latest.name.clone(), false),
            None => {
                let name = match manifest.revision {
                    Some(name) => match record.revision(&name) {
                        Some(taken) if taken.digest != digest && !differs_by_app_only(taken, &own_digest) => {
                            let problem = "names a revision that is there and differs; revisions never change: give another name, or none";
                            let field = "spec.template.metadata.name";
                            let mut error = invalid("deploy", field, &name, problem);
                            error.kind = ErrorKind::Conflict;
                            return Err(error);
                        }
                        _ => name,
                    },
                    None => {
                        let (name, next) = record.next_name();
                        record.next_number = next;
                        name
                    }
                };
                let known = record.revision(&name).is_some();
                if !known {
                    record.revisions.push(RevisionRecord {
                        name: name.clone(),
                        generation: record.generation,
                        created_at: now,
                        digest,
                        package,
                        package_bytes,
                        artifact: None,
                        labels: manifest.template_labels,
                        annotations: manifest.template_annotations,
                        spec: Arc::new(spec),
                        state: RevisionState::Pending,
                        notes: Vec::new(),
                        retired_at: None,
                        author: manifest.author,
                        reason,
                        app_env,
                    });
                }
                (name, !known)
            }
        };
        // A revision that failed is tried again when it is asked for again.
        if let Some(failed) = record.revision_mut(&revision)
            && matches!(failed.state, RevisionState::Failed { .. })
        {
            failed.state = RevisionState::Pending;
        }
        if !keep || before.is_none() {
            record.traffic = manifest.traffic.unwrap_or_else(|| vec![TrafficTarget::latest()]);
        }
        check_targets(&record, &record.traffic, "spec.traffic", Some(&revision))?;
        check_routes(&record, &record.traffic)?;
        let record = self.save(&path, record, before.is_none()).await?;
        drop(pinning);
        drop(storage);
        tracing::info!(service = %path, revision, new_revision, "deployed");
        self.check_grants(&record).await;

        self.settle(&path).await?;
        // It may have been changed while this was stored.
        self.follow_app(&path).await?;
        drop(changing);
        self.until_prepared(&path, &revision).await?;
        let record = self.live(&path).and_then(|live| live.record()).unwrap_or(record);
        if let Some(RevisionRecord { state: RevisionState::Failed { reason, message, fields }, .. }) =
            record.revision(&revision)
        {
            return Err(prepare_failed(reason, message, fields));
        }
        Ok(DeployOutcome { record, revision, created: before.is_none(), new_revision })
    }

    /// Asks the admission hooks.
    async fn admit(
        &self,
        manifest: &ServiceManifest,
        spec: &RevisionSpec,
        package: Option<&str>,
    ) -> Result<()> {
        let named = manifest.template_annotations.get(own::PACKAGE);
        let named = named.or_else(|| manifest.annotations.get(own::PACKAGE));
        let request = AdmissionRequest {
            principal: manifest.author.as_ref(),
            namespace: &manifest.namespace,
            name: &manifest.name,
            labels: &manifest.labels,
            annotations: &manifest.annotations,
            template_annotations: &manifest.template_annotations,
            source: &manifest.spec.source,
            uploaded: matches!(manifest.spec.source, Source::Bytes { .. })
                || named.is_some_and(|named| named.starts_with("sha256:")),
            spec,
            package,
        };
        for hook in &self.admission {
            if let Err(refusal) = hook.review(&request).await {
                let service = format!("{}/{}", manifest.namespace, manifest.name);
                tracing::warn!(
                    service,
                    hook = hook.name(),
                    field = refusal.field,
                    reason = refusal.reason,
                    "refused"
                );
                let reason = format!("{} (refused by {})", refusal.reason, hook.name());
                return Err(invalid("deploy", refusal.field, refusal.value, reason));
            }
        }
        Ok(())
    }

    /// The spec with its package pinned, the package's digest, and the bytes of the copy.
    pub(super) async fn pin(
        &self,
        spec: &RevisionSpec,
        runtimes: &RuntimeRegistry,
        tenant: TenantKey,
    ) -> Result<(RevisionSpec, Option<String>, Option<u64>)> {
        let mut spec = spec.clone();
        if let Source::Image(_) = &spec.source {
            spec = runtimes.runtime(&spec.runtime, tenant)?.pin(&spec, tenant).await?;
        }
        if let Source::Path(path) = &spec.source {
            let absolute = std::path::absolute(path).map_err(|error| {
                invalid("deploy", "source", path.display(), format!("is not a path: {error}"))
            })?;
            spec.source = Source::Path(absolute);
        }
        match (&spec.source, self.pins.copies()) {
            (Source::Path(_) | Source::Bytes { .. }, Some(packages)) => {
                let pinned = packages.put(&spec.source).await?;
                spec.source = pinned.source;
                Ok((spec, Some(pinned.digest), pinned.bytes))
            }
            (Source::Bytes { .. }, None) => {
                let pinned = self.pins.scratch().put(&spec.source).await?;
                spec.source = pinned.source;
                Ok((spec, Some(pinned.digest), pinned.bytes))
            }
            (Source::Path(_), None) => {
                let source = spec.source.clone();
                let digest = blocking(move || package::digest(&source)).await?;
                Ok((spec, digest, None))
            }
            _ => Ok((spec, None, None)),
        }
    }

    /// Changes where the traffic of a service goes.
    ///
    /// # Errors
    /// `NotFound`; `InvalidSpec` for targets that name no ready revision of the service or do not add up to 100.
    pub async fn set_traffic(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        targets: Vec<TrafficTarget>,
    ) -> Result<Arc<ServiceRecord>> {
        self.set_traffic_as(None, namespace, name, targets).await
    }

    /// The same for somebody, who is kept with the change.
    ///
    /// # Errors
    /// As [`Control::set_traffic`].
    pub async fn set_traffic_for(
        self: &Arc<Self>,
        principal: &Principal,
        namespace: &str,
        name: &str,
        targets: Vec<TrafficTarget>,
    ) -> Result<Arc<ServiceRecord>> {
        self.set_traffic_as(Some(principal), namespace, name, targets).await
    }

    async fn set_traffic_as(
        self: &Arc<Self>,
        principal: Option<&Principal>,
        namespace: &str,
        name: &str,
        mut targets: Vec<TrafficTarget>,
    ) -> Result<Arc<ServiceRecord>> {
        self.open()?;
        let path = format!("{namespace}/{name}");
        let _changing = self.change(&path).await;
        let before = self.record(namespace, name)?;
        // As wide as any list of shares can be.
        let sum: u64 = targets.iter().map(|target| u64::from(target.percent)).sum();
        if sum != 100 {
            return Err(invalid("traffic", "traffic", format!("{sum} %"), "the percents must add up to 100"));
        }
        for target in &mut targets {
            // An alias means the revision that it names now.
            let named = target.revision_name.as_deref().and_then(|name| before.resolve(name));
            target.revision_name = named.map(|named| named.name.clone()).or(target.revision_name.take());
        }
        check_targets(&before, &targets, "traffic", None)?;
        check_routes(&before, &targets)?;
        let mut record = ServiceRecord::clone(&before);
        record.generation += 1;
        record.changed_by = principal.cloned();
        record.traffic = targets;
        // Who sets the traffic by hand wants it now.
        record.rolling = None;
        let record = self.save(&path, record, false).await?;
        self.settle(&path).await?;
        Ok(self.live(&path).and_then(|live| live.record()).unwrap_or(record))
    }

    /// Sends all traffic to an earlier revision: the one that is named, or the ready one before the youngest that takes
    /// traffic now. So a canary is taken back to the revision before it, whatever its share; and a second roll-back goes
    /// one further. Tags stay, without a share.
    ///
    /// # Errors
    /// `NotFound` when there is no such revision, or none to go back to; otherwise as [`Control::set_traffic`].
    pub async fn roll_back(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        to: Option<&str>,
    ) -> Result<Arc<ServiceRecord>> {
        self.roll_back_as(None, namespace, name, to).await
    }

    /// The same for somebody, who is kept with the change.
    ///
    /// # Errors
    /// As [`Control::roll_back`].
    pub async fn roll_back_for(
        self: &Arc<Self>,
        principal: &Principal,
        namespace: &str,
        name: &str,
        to: Option<&str>,
    ) -> Result<Arc<ServiceRecord>> {
        self.roll_back_as(Some(principal), namespace, name, to).await
    }

    async fn roll_back_as(
        self: &Arc<Self>,
        principal: Option<&Principal>,
        namespace: &str,
        name: &str,
        to: Option<&str>,
    ) -> Result<Arc<ServiceRecord>> {
        let record = self.record(namespace, name)?;
        let target = match to {
            Some(to) => record.resolve(to),
            None => {
                let now = self.clock.now();
                let shares = record.shares(now);
                let serves =
                    |name: &str| shares.iter().any(|share| share.percent > 0 && share.revision == name);
                let at = record.revisions.iter().rposition(|revision| serves(&revision.name));
                let older = record.revisions.iter().take(at.unwrap_or(record.revisions.len()));
                older.rev().find(|revision| revision.state == RevisionState::Ready)
            }
        };
        let Some(target) = target else {
            let message = match to {
                Some(to) => format!("{namespace}/{name} has no revision and no alias {to}"),
                None => format!("{namespace}/{name} has no earlier revision that is ready"),
            };
            return Err(Error::new(ErrorKind::NotFound, "roll back", message));
        };
        let tags = record.traffic.iter().filter(|target| target.tag.is_some()).cloned().map(|mut tagged| {
            tagged.percent = 0;
            tagged
        });
        let targets =
            std::iter::once(TrafficTarget::revision(target.name.clone(), 100)).chain(tags).collect();
        self.set_traffic_as(principal, namespace, name, targets).await
    }

    /// Deletes a service with all its revisions. Requests that it has are finished in the background.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when another control plane changed it; `Unavailable` when the store fails.
    pub async fn delete(self: &Arc<Self>, namespace: &str, name: &str) -> Result<()> {
        self.open()?;
        let path = format!("{namespace}/{name}");
        let _changing = self.change(&path).await;
        let key = format!("{SERVICES}{path}");
        let damaged = self.damaged.version(&key);
        if let Some(version) = damaged {
            self.stale_after_write.add(&path);
            self.store.delete(&key, version).await?;
            self.stale_after_write.remove(&path);
            self.damaged.remove(&key);
            self.recovery_report.came_back(&format!("Service {path}"));
            self.unreadable.remove(&key);
            tracing::info!(service = %path, "what was left of it is deleted");
            return Ok(());
        }
        let live = self.live(&path).ok_or_else(|| no_service(&path))?;
        let (record, version) = {
            let state = live.state.lock();
            (state.record.clone().ok_or_else(|| no_service(&path))?, state.version)
        };
        precondition::check(&path, Some(version))?;
        self.stale_after_write.add(&path);
        self.store.delete(&key, version).await?;
        self.stale_after_write.remove(&path);
        live.state.lock().record = None;
        let now = self.clock.now();
        self.tell([LifecycleEvent::of_service(LifecycleKind::ServiceDeleted, namespace, name, now)]);
        tracing::info!(service = %path, "deleted");
        self.settle(&path).await?;
        self.services.remove(&path);
        let packages = record.revisions.iter().filter_map(|revision| revision.package.clone()).collect();
        self.drop_packages(packages).await;
        self.metrics.services(self.services.len());
        Ok(())
    }

    /// Removes copies of packages that no revision needs any more, now or when that is certain.
    pub(super) async fn drop_packages(&self, digests: Vec<String>) {
        // Another host may be about to name them: nobody looks, and what nobody looks at is not gathered.
        if self.hosts.is_some() {
            return;
        }
        self.pins.suspect(digests);
        self.collect_packages().await;
    }

    /// Looks at what may be unneeded, unless a package is being deployed: then at the next housekeeping.
    pub(super) async fn collect_packages(&self) {
        // Another host may be about to name it in a record.
        let Some(packages) = self.pins.copies().filter(|_| self.hosts.is_none()) else { return };
        let Some(_alone) = self.pins.try_removing() else { return };
        if !self.knows_all_packages() {
            return;
        }
        let kept = self.package_digests();
        let looked_at = self.pins.take_suspects();
        for digest in looked_at.into_iter().filter(|digest| !kept.contains(digest)) {
            if let Err(error) = packages.delete(&digest).await {
                tracing::warn!(error = %error.chain(), "a package that nobody needs could not be removed");
                self.pins.suspect([digest]);
            }
        }
    }

    /// Whether every record is read and as the store has it, so that what no record names is needed by nobody.
    fn knows_all_packages(&self) -> bool {
        self.is_ready()
            && !self.pins.is_foreign()
            && self.stale_after_write.len() == 0
            && self.unreadable.len() == 0
    }

    pub(super) fn package_digests(&self) -> std::collections::HashSet<String> {
        self.records()
            .iter()
            .flat_map(|record| record.revisions.iter().filter_map(|revision| revision.package.clone()))
            .chain(self.uploads.digests())
            .collect()
    }
}

/// Why a revision is made, as people who use `kubectl` say it: the template's word goes before the service's.
fn change_cause(template: &Annotations, service: &Annotations) -> Option<String> {
    const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
    template.get(CHANGE_CAUSE).or_else(|| service.get(CHANGE_CAUSE)).cloned()
}

/// Every route to a tag has a target with that tag.
pub(super) fn check_routes(record: &ServiceRecord, targets: &[TrafficTarget]) -> Result<()> {
    let mut errors = SpecErrors::default();
    for (at, route) in record.routes.iter().enumerate() {
        if !targets.iter().any(|target| target.tag.as_deref() == Some(&route.tag)) {
            let problem =
                "must be the tag of a target of the traffic: give one that tag, or deploy without the route";
            errors.push(format!("metadata.annotations[{}][{at}].tag", own::ROUTES), &route.tag, problem);
        }
    }
    if let Some(mirror) = &record.mirror
        && !targets.iter().any(|target| target.tag.as_deref() == Some(&mirror.tag))
    {
        let problem = "must be the tag of a target of the traffic: give one that tag (percent: 0 will do), or deploy without                        the mirror";
        errors.push(format!("metadata.annotations[{}]", own::MIRROR), &mirror.tag, problem);
    }
    if errors.is_empty() { Ok(()) } else { Err(refused("traffic", errors)) }
}

/// Every target names a ready revision of the service, or the one that is being deployed.
pub(super) fn check_targets(
    record: &ServiceRecord,
    targets: &[TrafficTarget],
    field: &str,
    coming: Option<&str>,
) -> Result<()> {
    let mut errors = SpecErrors::default();
    for (at, target) in targets.iter().enumerate() {
        let Some(name) = &target.revision_name else { continue };
        let field = format!("{field}[{at}].revisionName");
        match record.revision(name).map(|revision| &revision.state) {
            Some(RevisionState::Ready) => {}
            Some(_) if coming == Some(name) => {}
            Some(RevisionState::Pending) => errors.push(field, name, "is not ready yet"),
            Some(RevisionState::Failed { message, .. }) => {
                errors.push(field, name, format!("can't take traffic, it failed: {message}"));
            }
            None => {
                let known: Vec<&str> =
                    record.revisions.iter().rev().take(10).map(|r| r.name.as_str()).collect();
                errors.push(
                    field,
                    name,
                    format!("is no revision of this service; there are: {}", known.join(", ")),
                );
            }
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(refused("traffic", errors)) }
}

/// What a runtime or a store of packages says of the fields of a spec, at the fields of the document that the spec was read from.
fn in_manifest_terms(mut error: Error, manifest: &ServiceManifest) -> Error {
    let mut errors = fields_of(&error);
    if errors.0.iter().any(|error| manifest.field_of(&error.field) != error.field) {
        let before = errors.to_string();
        for error in &mut errors.0 {
            error.field = manifest.field_of(&error.field);
        }
        error.message = error.message.replace(&before, &errors.to_string());
        error.source = Some(Box::new(errors));
    }
    error
}

/// The same error for whoever deployed a value of this library, and never saw a manifest.
fn in_library_terms(error: Error) -> Error {
    let Some(fields) = error.fields() else { return error };
    let mut renamed = SpecErrors::default();
    for error in &fields.0 {
        let field = match error.field.as_str() {
            "metadata.namespace" => "namespace".to_owned(),
            "metadata.name" => "name".to_owned(),
            "source" => "RevisionSpec.source".to_owned(),
            own::RUNTIME | "runtime" => "RevisionSpec.runtime".to_owned(),
            field => match field.strip_prefix("spec.template.spec.") {
                Some(field) => format!("RevisionSpec.{field}"),
                None if ["container.", "resources.", "scaling."]
                    .iter()
                    .any(|part| field.starts_with(part)) =>
                {
                    format!("RevisionSpec.{field}")
                }
                None => field.to_owned(),
            },
        };
        renamed.push(field, &error.value, &error.problem);
    }
    let mut told = Error::new(error.kind, error.operation, renamed.to_string()).with_retry(error.retry);
    told.source = Some(Box::new(renamed));
    told
}

/// The fields that an error carries.
pub(super) fn fields_of(error: &Error) -> SpecErrors {
    error.fields().cloned().unwrap_or_default()
}

pub(super) fn prepare_failed(reason: &str, message: &str, fields: &[Field]) -> Error {
    const KINDS: [ErrorKind; 9] = [
        ErrorKind::InvalidSpec,
        ErrorKind::NotFound,
        ErrorKind::Conflict,
        ErrorKind::Unsupported,
        ErrorKind::Unavailable,
        ErrorKind::Exhausted,
        ErrorKind::Timeout,
        ErrorKind::Crashed,
        ErrorKind::Unexpected,
    ];
    let kind = KINDS.into_iter().find(|kind| kind.as_str() == reason).unwrap_or(ErrorKind::Unexpected);
    let error = Error::new(kind, "prepare", message);
    if fields.is_empty() {
        return error;
    }
    let mut errors = SpecErrors::default();
    for field in fields {
        errors.push(&field.field, &field.value, &field.problem);
    }
    error.with_source(errors)
}
