//! A running platform.

use std::{net::SocketAddr, path::Path, pin::Pin, sync::Arc, time::Duration};

use sas_autoscale::{Driver, Measurement};
use sas_control::{
    Admin, Applied, Control, DeployOutcome, Engines, LogFiles, Meter, PackageRoots, Recovery, RequestLog,
    UsageExporter,
};
use sas_core::{
    CallError, Clock, Cx, DecisionQuery, Error, ErrorKind, Handler, Hosts, Invoker as _, LogQuery, Payer,
    Pool, Request, Response, Result, RevisionKey, RevisionSpec, Runtime, Source, Target, UsageQuery,
};
use sas_knative::manifest::{Manifest, parse};
#[cfg(unix)]
use sas_router::UnixServer;
use sas_router::{Gateway, Server};
use sas_trigger::{AsyncCalls, EventIngress, TriggerHost};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Keys,
    backlog::shares,
    engines::PlatformEngines,
    lifecycle::{Publishing, Recipient},
    membership::Joined,
    own_store::OwnStore,
};

/// [`Platform::call`] is held to the service's own `timeouts.request`, however long; this only has to be longer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30 * 24 * 3600);

/// A future whose code is compiled here. That of an `async fn` is compiled anew in each program that awaits it, and those of a
/// whole platform are seconds of a build.
pub(crate) type Compiled<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

pub(crate) struct Parts {
    pub(crate) admin: Arc<Admin>,
    /// From where packages may come unless the program says.
    pub(crate) default_roots: PackageRoots,
    /// What the admin listener answers with: the admin API, and the console before it.
    pub(crate) at_listener: Arc<dyn Handler>,
    pub(crate) requests: Option<Arc<RequestLog>>,
    pub(crate) keys: Keys,
    pub(crate) control: Arc<Control>,
    pub(crate) triggers: Arc<TriggerHost>,
    pub(crate) factory: Arc<PlatformEngines>,
    pub(crate) calls: Arc<AsyncCalls>,
    /// What the listener answers with: events, calls that want no answer now, and the gateway behind.
    pub(crate) entrance: Arc<EventIngress>,
    /// Wall time, by which shares of the traffic move.
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) pool: Arc<dyn Pool>,
    pub(crate) runtimes: Vec<Arc<dyn Runtime>>,
    /// Opened by the builder, so closed by the shutdown.
    #[cfg_attr(
        not(feature = "redb"),
        expect(dead_code, reason = "without it no platform opens a store by itself")
    )]
    pub(crate) own_store: Option<Arc<OwnStore>>,
    /// Opened by the start, so closed by the shutdown.
    pub(crate) own_meter: Option<Arc<Meter>>,
    /// Written to the end by the shutdown.
    pub(crate) log_files: Option<Arc<LogFiles>>,
    /// Sent to the end by the shutdown.
    #[cfg(feature = "otel")]
    pub(crate) otel: Option<sas_otel::Otel>,
    /// What is to be started with the platform.
    /// What publishes the events of the platform's life, until it runs.
    pub(crate) publishing: Option<(Recipient, Publishing)>,
    pub(crate) exporters: Vec<UsageExporter>,
    /// This host among several.
    pub(crate) joined: Option<Joined>,
    /// Looked at until the stop.
    #[cfg(feature = "tls")]
    pub(crate) certificates: Option<Arc<sas_router::CertificateDir>>,
    pub(crate) ingress: Option<Server>,
    pub(crate) admin_server: Option<Server>,
    #[cfg(unix)]
    pub(crate) admin_socket: Option<UnixServer>,
    /// The driver, health checks, backlogs: they end at the token.
    pub(crate) tasks: TaskTracker,
    #[cfg(feature = "workflow")]
    pub(crate) workflows: sas_workflow::Workflows,
    /// Workflows stop before what their steps call.
    #[cfg(feature = "workflow")]
    pub(crate) stop_workflows: CancellationToken,
    #[cfg(feature = "workflow")]
    pub(crate) running_workflows: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// A serverless platform in this process. Two of them share nothing.
///
/// Dropping it without [`Platform::shutdown`] stops its tasks; instances in other processes end with this process.
pub struct Platform {
    parts: Parts,
}

/// What a shutdown found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Whether everything had ended by itself at the deadline.
    pub drained: bool,
    /// How long it took.
    pub took: Duration,
}

impl Platform {
    pub(crate) fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// Brings requests to instances: mount it in a server of your own, or call it as an `Invoker`.
    pub fn gateway(&self) -> &Arc<Gateway> {
        &self.parts.gateway
    }

    /// What the listener of requests answers with: the gateway, and before it the events for brokers, webhooks, and calls
    /// with `Prefer: respond-async`. Mount this in a server of your own to have these too.
    pub fn entrance(&self) -> &Arc<EventIngress> {
        &self.parts.entrance
    }

    /// The control plane: services, revisions and their traffic.
    pub fn control(&self) -> &Arc<Control> {
        &self.parts.control
    }

    /// The admin API, for a server of your own. It asks the same authenticator as at a listener of the platform.
    pub fn admin(&self) -> &Arc<Admin> {
        &self.parts.admin
    }

    /// The pool that holds the instances.
    pub fn pool(&self) -> &Arc<dyn Pool> {
        &self.parts.pool
    }

    /// What came back at the start, and what of the rest is still missing: as [`Control::recovery`].
    pub fn recovery(&self) -> Recovery {
        self.parts.control.recovery()
    }

    /// The hosts that share the store, if the platform is one of several.
    pub fn cluster(&self) -> Option<&dyn Hosts> {
        self.parts.joined.as_ref().map(|joined| &*joined.cluster as &dyn Hosts)
    }

    /// The engines.
    pub fn engines(&self) -> &Arc<Engines> {
        self.parts.control.engines()
    }

    /// The scaling driver of the default engine, with the history of its decisions.
    pub fn driver(&self) -> Arc<Driver> {
        let key = self.engines().default_key();
        self.parts.factory.driver(key).expect("the default engine is driven as long as it is there")
    }

    /// The scaling driver of the engine that a revision runs on.
    pub fn driver_of(&self, revision: RevisionKey) -> Option<Arc<Driver>> {
        self.parts.factory.driver_of(revision)
    }

    /// Triggers: declared ones come with manifests, those of one's own run by [`TriggerHost::run`].
    pub fn triggers(&self) -> &Arc<TriggerHost> {
        &self.parts.triggers
    }

    /// Workflows: definitions come with manifests or by [`Workflows::define`](sas_workflow::Workflows::define).
    #[cfg(feature = "workflow")]
    pub fn workflows(&self) -> &sas_workflow::Workflows {
        &self.parts.workflows
    }

    /// The last lines of every revision's instances.
    ///
    /// # Errors
    /// `Unsupported` when the log sink that the host gave only passes lines on.
    pub fn logs(&self) -> Result<&dyn LogQuery> {
        self.parts.control.logs()
    }

    /// The last scaling decisions of every revision.
    ///
    /// # Errors
    /// `Unsupported` when the decision sink that the host gave only passes decisions on.
    pub fn decisions(&self) -> Result<&dyn DecisionQuery> {
        self.parts.control.decisions()
    }

    /// What instances and requests used, by revision and by tenant.
    ///
    /// # Errors
    /// `Unsupported` when the meter sink that the host gave only passes readings on.
    pub fn usage(&self) -> Result<&dyn UsageQuery> {
        self.parts.control.usage()
    }

    /// The last requests, by revision and one by one.
    ///
    /// # Errors
    /// `Unsupported` unless the platform was built with [`PlatformBuilder::keep_requests`](crate::PlatformBuilder::keep_requests)
    /// or with a console.
    pub fn requests(&self) -> Result<&Arc<RequestLog>> {
        self.parts.control.requests()
    }

    /// Where it listens, if it does.
    pub fn listen_addr(&self) -> Option<SocketAddr> {
        self.parts.ingress.as_ref().map(Server::local_addr)
    }

    /// Where the admin API listens, if it does.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.parts.admin_server.as_ref().map(Server::local_addr)
    }

    /// The Unix socket of the admin API, if it has one.
    #[cfg(unix)]
    pub fn admin_socket(&self) -> Option<&Path> {
        self.parts.admin_socket.as_ref().map(UnixServer::path)
    }

    /// The file that holds the admin token, if one does.
    pub fn admin_token_file(&self) -> Option<&Path> {
        self.parts.keys.tokens.as_ref().and_then(|tokens| tokens.path())
    }

    /// From now on this is the admin token, in its file too if it has one; the one before opens nothing any more.
    ///
    /// # Errors
    /// `InvalidSpec` for a token that no header can carry; `Unavailable` when its file can't be written; `Unsupported`
    /// where an authenticator of the host's own, or nothing, decides.
    pub fn replace_admin_token(&self, token: &str) -> Result<()> {
        let unsupported = || Error::unsupported("replacing the token without a token");
        self.parts.keys.tokens.as_ref().ok_or_else(unsupported)?.replace(token)
    }

    /// From now on a manifest that comes over the admin API may take its package from these directories; `None`: from where
    /// it may when nothing is said, as [`crate::PlatformBuilder::package_roots`] has it.
    pub fn set_package_roots(&self, roots: Option<PackageRoots>) {
        let roots = roots.unwrap_or_else(|| self.parts.default_roots.clone());
        self.parts.admin.change(|settings| settings.package_roots = roots);
    }

    /// Reads the certificates of [`crate::PlatformBuilder::certificates`] again, for connections to come.
    ///
    /// # Errors
    /// `InvalidSpec` with every pair that is none: those before stay in force then. `Unsupported` without such a directory.
    #[cfg(feature = "tls")]
    pub async fn reload_certificates(&self) -> Result<()> {
        let Some(certificates) = self.parts.certificates.clone() else {
            return Err(Error::unsupported("reading certificates again without a directory of them"));
        };
        let read = tokio::task::spawn_blocking(move || certificates.reload()).await;
        let read =
            read.map_err(|error| Error::new(ErrorKind::Unexpected, "certificates", error.to_string()))?;
        read.map_err(|errors| {
            Error::new(ErrorKind::InvalidSpec, "certificates", errors.to_string()).with_source(errors)
        })
    }

    /// Applies manifests, in order. Paths of packages in them that are relative are taken from `base`: the manifest's
    /// directory, usually; `None`: the process's.
    ///
    /// # Errors
    /// `InvalidSpec` with every mistake of every manifest, before anything is done; else the first error of a deploy,
    /// after which the rest is not applied.
    pub async fn apply(&self, text: &str, base: Option<&Path>) -> Result<Vec<Applied>> {
        self.applying(text, base).await
    }

    fn applying<'a>(&'a self, text: &'a str, base: Option<&'a Path>) -> Compiled<'a, Result<Vec<Applied>>> {
        Box::pin(self.apply_all(text, base))
    }

    async fn apply_all(&self, text: &str, base: Option<&Path>) -> Result<Vec<Applied>> {
        let control = &self.parts.control;
        let mut manifests = parse(text, control.manifest_options())?;
        for manifest in &mut manifests {
            if let (Manifest::Service(service), Some(base)) = (manifest, base)
                && let Source::Path(path) = &mut service.spec.source
            {
                *path = base.join(&*path);
            }
        }
        let mut applied = Vec::new();
        control.apply_all(manifests, &mut applied).await?;
        Ok(applied)
    }

    /// Deploys a spec as a service: a new revision when anything that runs has changed. Where the traffic goes is left as
    /// it is: shares that are pinned to a revision stay there, and shares of the latest follow to the new one.
    ///
    /// # Errors
    /// `InvalidSpec` with the fields, when namespace, name or spec are refused; the runtime's error when the code
    /// can't be prepared. What served before goes on serving.
    pub async fn deploy(&self, namespace: &str, name: &str, spec: RevisionSpec) -> Result<DeployOutcome> {
        self.deploying(namespace, name, spec).await
    }

    fn deploying<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
        spec: RevisionSpec,
    ) -> Compiled<'a, Result<DeployOutcome>> {
        Box::pin(self.parts.control.deploy_spec(namespace, name, spec))
    }

    /// Reports what the host measured of a service: sessions, orders in progress, the depth of a queue. It is of the
    /// whole service, in the unit of the target that the spec names (`sas.dev/metrics: custom.NAME=TARGET`); each
    /// revision gets its share by its share of the traffic. It counts for `DriverConfig::measurement_age`, so it is to
    /// be reported again before that. A revision that sleeps wakes for it at once, with as many instances as are
    /// needed.
    ///
    /// # Errors
    /// `NotFound` when there is no such service; `InvalidSpec` for a value that is not a number from 0, or a name that
    /// is not 1 to 63 letters, digits, dashes, dots or underscores; `Unavailable` when no revision of it takes traffic
    /// yet; `Exhausted` when too many are measured. With several revisions the shares of the others are taken all the same.
    pub fn report_metric(&self, namespace: &str, service: &str, name: &str, value: f64) -> Result<()> {
        let parts = &self.parts;
        let shares = shares(&parts.control, &*parts.clock, namespace, service)?;
        if shares.is_empty() {
            let message =
                format!("no revision of {namespace}/{service} takes traffic yet: report it again later");
            return Err(Error::new(ErrorKind::Unavailable, "report", message));
        }
        let mut outcome = Ok(());
        for (revision, percent) in shares {
            let share = value * f64::from(percent) / 100.0;
            if let Some(driver) = self.driver_of(revision) {
                // One revision that takes no more leaves the others' shares as they were measured.
                outcome = outcome.and(driver.report(revision, Measurement::Named(name.to_owned(), share)));
            }
        }
        outcome
    }

    /// Calls a service as a trigger or a client would: routed, metered, waking it.
    ///
    /// # Errors
    /// As [`sas_core::Invoker::invoke`].
    pub async fn call(&self, namespace: &str, name: &str, request: Request) -> Result<Response, CallError> {
        if let Err(error) = self.parts.control.record(namespace, name) {
            return Err(CallError::unsent(error, request));
        }
        let cx = Cx::new(Payer::Owner, self.parts.gateway.next_request_id(), Instant::now() + CALL_TIMEOUT);
        let target = Target::Service(format!("{namespace}/{name}").into());
        self.parts.gateway.invoke(target, request, &cx).await
    }

    /// Ends everything within `limit`: triggers first, then requests drain, then instances stop, then tasks are
    /// joined. What is not done in time is ended by force. Idempotent.
    pub async fn shutdown(&self, limit: Duration) -> ShutdownReport {
        self.shutting_down(limit).await
    }

    fn shutting_down(&self, limit: Duration) -> Compiled<'_, ShutdownReport> {
        Box::pin(self.end(limit))
    }

    async fn end(&self, limit: Duration) -> ShutdownReport {
        let began = Instant::now();
        let deadline = began + limit;
        let parts = &self.parts;
        // First of all, so that no step begins that is cut off later.
        #[cfg(feature = "workflow")]
        parts.stop_workflows.cancel();
        let workflows = async {
            // What is not done by then is done again after the next start, or by another host, under the same key. Nothing waits for an
            // answer any more when the gateway ends calls: that would be stored as the step's failure.
            #[cfg(feature = "workflow")]
            {
                let share = if parts.joined.is_some() { limit / 3 } else { limit / 2 };
                parts.running_workflows.close();
                let _ = tokio::time::timeout_at(began + share, parts.running_workflows.wait()).await;
                parts.workflows.halt().await;
            }
        };
        let late = match &parts.joined {
            None => tokio::join!(parts.triggers.shutdown(deadline), workflows).0,
            // Others act first, while this host still passes on and ends what it has.
            Some(joined) => {
                // Before its runs are theirs: what is answered by then is not asked for again.
                workflows.await;
                let _ = tokio::time::timeout(limit / 3, joined.cluster.drained()).await;
                let given_back = tokio::time::timeout_at(began + limit / 2, parts.control.parts_given_back());
                tokio::join!(parts.triggers.shutdown(deadline), given_back).0
            }
        };
        if let Some(server) = &parts.ingress {
            server.shutdown(deadline).await;
        }
        // Half of the time: a call that is not done by then is made after the next start.
        parts.calls.shutdown(began + limit / 2).await;
        parts.gateway.shutdown(deadline).await;
        parts.stop.cancel();
        parts.tasks.close();
        // A part of somebody else's that hangs does not hold the rest: what must be written is written below.
        let ended = tokio::time::timeout_at(
            deadline.max(Instant::now()) + Duration::from_secs(1),
            parts.tasks.wait(),
        )
        .await;
        if ended.is_err() {
            tracing::warn!(tasks = parts.tasks.len(), "tasks did not end in time");
        }
        parts.control.shutdown(deadline).await;
        parts.pool.shutdown(deadline).await;
        if let Some(server) = &parts.admin_server {
            server.shutdown(deadline).await;
        }
        #[cfg(unix)]
        if let Some(server) = &parts.admin_socket {
            server.shutdown(deadline).await;
        }
        let mut drained = late.is_empty() && Instant::now() <= deadline;
        // Forced stops need a moment after the deadline; a runtime that hangs does not hold the shutdown for ever.
        let forced = deadline.max(Instant::now()) + Duration::from_secs(1);
        for runtime in &parts.runtimes {
            drained &= tokio::time::timeout_at(forced, runtime.quiesce()).await.is_ok();
        }
        if let Some(meter) = &parts.own_meter
            && let Err(error) = meter.close().await
        {
            tracing::error!(error = %error.chain(), "the last readings of usage were not written");
            drained = false;
        }
        if let Some(files) = parts.log_files.clone() {
            let _ = tokio::task::spawn_blocking(move || files.flush()).await;
        }
        #[cfg(feature = "otel")]
        if let Some(otel) = &parts.otel {
            // A moment even when the time is over: a collector that is there needs no more.
            otel.shutdown(deadline.max(Instant::now() + Duration::from_millis(500))).await;
        }
        #[cfg(feature = "redb")]
        if let Some(store) = &parts.own_store {
            store.close().await;
        }
        ShutdownReport { drained, took: began.elapsed() }
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        #[cfg(feature = "workflow")]
        self.parts.stop_workflows.cancel();
        self.parts.stop.cancel();
    }
}

impl std::fmt::Debug for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Platform")
            .field("listen", &self.listen_addr())
            .field("admin", &self.admin_addr())
            .finish_non_exhaustive()
    }
}
