//! Putting the parts together, and starting them.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use sas_autoscale::ScheduleParser;
use sas_control::{
    Admin, Control, ControlConfig, Engines, LogBuffer, LogFiles, Meter, MeterConfig, PackageDir, RequestLog,
    UsageExporter,
};
use sas_core::{
    AnswerCounter, DataPlane, EngineFactory, EngineKey, EngineSpec, Error, ErrorKind, Handler, HostShares,
    Hosts, Invoker, MemoryStore, MeterSink, Pool, Quotas, Rehearsals, Scalers, SpecErrors, Store, Triggers,
};
#[cfg(feature = "tls")]
use sas_router::CertificateDir;
#[cfg(unix)]
use sas_router::UnixServer;
use sas_router::{Admission, Gateway, RouteTable, Server, ServerConfig};
use sas_trigger::{AsyncCalls, EventIngress, TriggerHost, TriggerHostConfig};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::PlatformBuilder;
#[cfg(feature = "tls")]
use crate::certificates::Shown;
use crate::{
    backlog,
    build_error::{BuildError, BuildPart},
    engines::{PlatformEngines, Template},
    lifecycle::{self, Recipient, Scalings},
    machine::Machine,
    membership::{self, OwnCalls},
    own_store::open_state,
    platform::{Compiled, Parts, Platform},
    preset::Preset,
    requests,
    schedules::cron,
};

fn invalid(part: BuildPart) -> impl Fn(SpecErrors) -> BuildError {
    move |errors| BuildError::Config { part, errors }
}

fn part(part: BuildPart) -> impl Fn(Error) -> BuildError {
    move |error| BuildError::Part { part, error }
}

impl PlatformBuilder {
    /// Builds the platform, brings back what the store holds, and starts to listen where asked to. On an error
    /// nothing is left running.
    ///
    /// # Errors
    /// [`BuildError`] names the part and what it refused.
    pub async fn build(self) -> Result<Platform, BuildError> {
        self.composing().await
    }

    /// All parts are in what follows: too much to lie in the future of whoever waits for it.
    fn composing(self) -> Compiled<'static, Result<Platform, BuildError>> {
        Box::pin(self.composed())
    }

    async fn composed(mut self) -> Result<Platform, BuildError> {
        #[cfg_attr(not(feature = "otel"), expect(unused_mut, reason = "an exporter is put beside it"))]
        let mut recorder = self.recorder.unwrap_or_default();
        let mut traces = self.traces;
        #[cfg(feature = "otel")]
        let otel = match self.otel {
            Some(mut config) => {
                config.recorder = recorder;
                config.clock = Arc::clone(&self.clock);
                let otel = sas_otel::Otel::start(config).map_err(invalid(BuildPart::Otel))?;
                recorder = otel.recorder().clone();
                traces = traces.or_else(|| otel.traces());
                Some(otel)
            }
            None => None,
        };
        let mut logs = self.logs.unwrap_or_else(|| Arc::new(LogBuffer::default().with_recorder(&recorder)));
        #[cfg(feature = "otel")]
        if let Some(otel) = &otel {
            logs = otel.logs(logs);
        }
        // Before whatever exports traces, which decides what is sampled.
        let exported = traces.clone();
        let requests = self.requests.map(|limits| {
            let log = RequestLog::new(limits, Arc::clone(&self.clock));
            Arc::new(traces.take().into_iter().fold(log, RequestLog::before))
        });
        if let Some(log) = &requests {
            traces = Some(Arc::clone(log) as _);
        }
        for describe in [
            sas_autoscale::metrics::describe,
            sas_control::metrics::describe,
            sas_pool::metrics::describe,
            sas_router::metrics::describe,
            sas_trigger::metrics::describe,
        ] {
            describe(&recorder);
        }

        for quota in self.tenant_quotas.values().chain([&self.default_tenant_quota]) {
            quota.validate().map_err(|errors| BuildError::Config { part: BuildPart::TenantQuota, errors })?;
        }
        self.driver.validate().map_err(|errors| BuildError::Config { part: BuildPart::Driver, errors })?;
        if let Some(dir) = &self.state {
            let dir = dir.clone();
            let made = tokio::task::spawn_blocking(move || sas_control::private_dir(&dir)).await;
            let ended = |error| Error::new(ErrorKind::Unexpected, "state directory", format!("{error}"));
            made.map_err(ended).flatten().map_err(part(BuildPart::StateDirectory))?;
        }
        let store_is_given = self.store.is_some();
        let (store, own_store): (Arc<dyn Store>, _) = match (self.store, &self.state) {
            (Some(store), _) => (store, None),
            (None, Some(dir)) => {
                let own = open_state(dir).await.map_err(part(BuildPart::StateDirectory))?;
                (Arc::clone(&own) as _, Some(own))
            }
            (None, None) => (Arc::new(MemoryStore::default()), None),
        };

        #[cfg(feature = "tls")]
        let certificates = match self.certificates {
            Some(dir) => {
                let recorder = recorder.clone();
                let opening = tokio::task::spawn_blocking(move || CertificateDir::open(dir, recorder)).await;
                let ended = |error| Error::new(ErrorKind::Unexpected, "certificates", format!("{error}"));
                let opened = opening.map_err(ended).map_err(part(BuildPart::Certificates))?;
                let opened = Arc::new(opened.map_err(invalid(BuildPart::Certificates))?);
                self.server.tls = Some(opened.tls().clone());
                self.diagnosis.certificates = Some(Arc::new(Shown(Arc::clone(&opened))));
                Some(opened)
            }
            None => None,
        };
        #[cfg(feature = "tls")]
        let encrypted = self.server.tls.is_some();
        #[cfg(not(feature = "tls"))]
        let encrypted = false;
        let joined = match self.cluster {
            None => None,
            Some(_) if !store_is_given || encrypted || self.listen.is_none() => {
                let message = "several hosts need a store that all of them reach (`store`), and a listener of requests \
                               (`listen`) without TLS";
                let error = Error::new(ErrorKind::InvalidSpec, "cluster", message);
                return Err(BuildError::Part { part: BuildPart::Cluster, error });
            }
            Some(options) => {
                let joining = options.join(&store, &recorder, &self.clock);
                Some(joining.await.map_err(part(BuildPart::Cluster))?)
            }
        };
        let host = joined.as_ref().map(|joined| joined.peers.name().to_owned());

        let (meter, own_meter): (Arc<dyn MeterSink>, _) = match self.meter {
            Some(meter) => (meter, None),
            None => {
                let mut config = MeterConfig::default();
                config.host = host.clone().unwrap_or(config.host);
                for change in self.meter_config {
                    change(&mut config);
                }
                config.store = Arc::clone(&store);
                config.clock = Arc::clone(&self.clock);
                let own = Arc::new(Meter::new(config));
                (Arc::clone(&own) as _, Some(own))
            }
        };
        let mut exporters = Vec::new();
        for (name, key, target) in self.usage_exports {
            let own = own_meter.as_ref().ok_or_else(|| {
                let message =
                    "a meter sink of one's own exports its records itself: leave one of the two out";
                Error::new(ErrorKind::Unsupported, "usage export", message)
            });
            let exporter = own.and_then(|own| UsageExporter::new(Arc::clone(own), &name, key, target));
            exporters.push(exporter.map_err(part(BuildPart::Usage))?);
        }
        let mut log_files = None;
        if let Some((path, limits)) = self.log_file {
            let files = LogFiles::new(path, limits, logs, &recorder).map_err(part(BuildPart::LogFile))?;
            let files = Arc::new(files);
            logs = Arc::clone(&files) as _;
            log_files = Some(files);
        }
        let mut scalers = self.scalers;
        scalers.extend(sas_autoscale::scalers_with_schedules(ScheduleParser::new(cron)));
        let scalers = Scalers::new(scalers);
        lifecycle::check(self.lifecycle.as_ref(), joined.is_some()).map_err(invalid(BuildPart::Lifecycle))?;
        let (followers, publishing) = self
            .lifecycle
            .as_ref()
            .map(|_| lifecycle::channel(&recorder, &*self.clock, host.as_deref()))
            .unzip();
        let scalings =
            followers.clone().map(|told| Arc::new(Scalings::new(Arc::clone(&self.decisions), told)));
        let mut driver = self.driver;
        driver.host = host.as_deref().map(Arc::from);
        driver.clock = Arc::clone(&self.clock);
        driver.sink = match &scalings {
            Some(scalings) => Arc::clone(scalings) as _,
            None => Arc::clone(&self.decisions),
        };
        let stop = CancellationToken::new();
        let machine = self.machine.unwrap_or_else(Machine::here);
        let template = Template {
            preset: self.preset,
            machine,
            configure: self.pool,
            make_pool: self.make_pool,
            seed: self.seed,
            clock: Arc::clone(&self.clock),
            logs: Arc::clone(&logs),
            meter: Arc::clone(&meter),
            lifecycle: followers.clone(),
            secrets: self.secrets.clone(),
            recorder: recorder.clone(),
            runtimes: self.runtimes.clone(),
            scalers: scalers.clone(),
            driver,
            stop: stop.clone(),
        };
        let factory = PlatformEngines::new(template, &self.engines);
        // Each mistake with its field, before anything is built.
        self.access.check_listener(self.admin, encrypted).map_err(invalid(BuildPart::Admin))?;
        for spec in &self.engines {
            factory.config(EngineKey::FIRST, spec).map_err(invalid(BuildPart::Engines))?;
        }
        factory.config(EngineKey::FIRST, &EngineSpec::default()).map_err(invalid(BuildPart::Pool))?;
        let building = Engines::build(Arc::clone(&factory) as Arc<dyn EngineFactory>, self.engines);
        let engines = building.await.map_err(part(BuildPart::Engines))?;
        let pool = Arc::clone(&engines) as Arc<dyn Pool>;
        if let Some(scalings) = scalings {
            scalings.bind(&pool);
        }
        let router = self.router.unwrap_or_else(|| Arc::new(RouteTable::new(self.seed)));
        let mut gateway_config = self.gateway;
        gateway_config.seed = self.seed;
        gateway_config.recorder = recorder.clone();
        gateway_config.meter = Some(Arc::clone(&meter));
        gateway_config.traces = traces;
        if let Some(joined) = &joined {
            gateway_config.peers = Some(Arc::clone(&joined.peers));
        }
        if let Some(quotas) = self.quotas {
            gateway_config.admission = Admission::new(quotas);
        }
        let admission = Arc::clone(&gateway_config.admission);
        let gateway = Gateway::new(Arc::clone(&router), Arc::clone(&pool), gateway_config);

        let invoker = Arc::clone(&gateway) as Arc<dyn Invoker>;
        let invoker = match self.wrap_invoker {
            Some(wrap) => wrap(invoker),
            None => invoker,
        };
        let mut trigger_config = TriggerHostConfig::new(Arc::clone(&invoker), Arc::clone(&store));
        let log = self.events.unwrap_or_else(|| Arc::clone(&trigger_config.log));
        for change in self.triggers {
            change(&mut trigger_config);
        }
        #[cfg(feature = "workflow")]
        let (workflow_invoker, workflow_secrets, workflow_traces) =
            (Arc::clone(&invoker), self.secrets.clone(), exported.clone());
        trigger_config.invoker = invoker;
        trigger_config.store = Arc::clone(&store);
        trigger_config.log = log;
        trigger_config.clock = Arc::clone(&self.clock);
        trigger_config.recorder = recorder.clone();
        trigger_config.traces = exported;
        trigger_config.publisher = self.publisher;
        trigger_config.secrets = self.secrets;
        trigger_config.hosts = joined.as_ref().map(|joined| Arc::clone(&joined.cluster) as Arc<dyn Hosts>);
        let triggers = TriggerHost::new(trigger_config);
        // Before the recovery, which brings stored triggers of these kinds back.
        for (kind, make) in self.kinds {
            triggers.register_kind(kind, make);
        }
        for (kind, make) in self.sinks {
            triggers.register_sink(kind, make);
        }
        let calls_store = match &host {
            Some(host) => Arc::new(OwnCalls::new(Arc::clone(&store), host)) as Arc<dyn Store>,
            None => Arc::clone(&store),
        };
        #[cfg(feature = "workflow")]
        let (workflows, actions) = crate::workflows::compose(
            self.workflow,
            crate::workflows::Around {
                store: Arc::clone(&store),
                clock: Arc::clone(&self.clock),
                invoker: workflow_invoker,
                secrets: workflow_secrets,
                hosts: joined.as_ref().map(|joined| Arc::clone(&joined.cluster) as Arc<dyn Hosts>),
                recorder: recorder.clone(),
                traces: workflow_traces,
            },
            &triggers,
        );
        let calls = AsyncCalls::new(
            Arc::clone(&gateway) as Arc<dyn Handler>,
            calls_store,
            Arc::clone(&self.clock),
            Arc::clone(&triggers),
            self.calls,
        );
        let mut entrance = EventIngress::new(Arc::clone(&gateway) as _, Arc::clone(&triggers), &self.domain)
            .with_async_calls(Arc::clone(&calls));
        if let Some(joined) = &joined {
            entrance = entrance.with_hosts(Arc::clone(&joined.cluster) as Arc<dyn Hosts>);
        }

        let mut plane = DataPlane::new(router, Arc::clone(&gateway) as Arc<dyn Invoker>);
        plane.quotas = Some(admission as Arc<dyn Quotas>);
        plane.answers = Some(Arc::clone(&gateway) as Arc<dyn AnswerCounter>);
        plane.rehearsals = Some(Arc::clone(&gateway) as Arc<dyn Rehearsals>);
        plane.shares = Some(Arc::clone(&gateway) as Arc<dyn HostShares>);
        let mut control_config = ControlConfig::new(Arc::clone(&store), Arc::clone(&engines), plane.clone());
        for change in self.control {
            change(&mut control_config);
        }
        control_config.store = Arc::clone(&store);
        control_config.engines = engines;
        control_config.plane = plane;
        control_config.audit_sink = self.audit;
        control_config.lifecycle = followers;
        control_config.hosts = joined.as_ref().map(|joined| Arc::clone(&joined.cluster) as Arc<dyn Hosts>);
        control_config.triggers = Some(Arc::clone(&triggers) as Arc<dyn Triggers>);
        #[cfg(feature = "workflow")]
        {
            control_config.workflows = Some(Arc::new(workflows.clone()));
        }
        control_config.tenant_quotas = self.tenant_quotas;
        control_config.default_tenant_quota = self.default_tenant_quota;
        control_config.admission.extend(self.admission);
        control_config.scalers = Some(scalers);
        control_config.clock = Arc::clone(&self.clock);
        control_config.domain = self.domain;
        control_config.packages = self
            .packages
            .or_else(|| self.state.as_ref().map(|dir| Arc::new(PackageDir::new(dir.join("packages"))) as _));
        control_config.manifests = self.manifests;
        control_config.manifests.fidelity = self.fidelity.unwrap_or_else(|| self.preset.fidelity());
        control_config.logs = logs;
        control_config.decisions = Arc::clone(&self.decisions);
        control_config.meter = meter;
        control_config.requests = requests.clone();
        control_config.prices = self.prices;
        control_config.diagnosis = self.diagnosis;
        let watched = [Some(std::env::temp_dir()), self.state.clone()];
        control_config.diagnosis.directories.extend(watched.into_iter().flatten());
        control_config.recorder = recorder.clone();
        control_config.seed = self.seed;
        let control = Control::new(control_config);
        self.namespaces.bind(&control);
        #[cfg(feature = "workflow")]
        let _ = actions.control.set(Arc::downgrade(&control));

        let default_roots = self.access.package_roots(None, self.admin);
        let roots = self.package_roots.take().unwrap_or_else(|| default_roots.clone());
        let keys = self
            .access
            .keys(self.state.as_deref(), self.admin.is_some(), instances_are_others())
            .map_err(part(BuildPart::AdminToken))?;
        let mut admin =
            Admin::new(Arc::clone(&control), Arc::clone(&keys.authenticator)).with_package_roots(roots);
        let socket = self.access.socket.take();
        admin = self.access.open(admin, self.admin);
        if let Some(render) = self.metrics {
            admin = admin.with_metrics(render);
        }
        if let Some(config) = self.program_config {
            admin = admin.with_program_config(config);
        }
        let admin = Arc::new(admin);
        let at_listener = Arc::clone(&admin) as Arc<dyn Handler>;
        #[cfg(feature = "console")]
        let at_listener = if self.console {
            let console = sas_console::Console::new(at_listener)
                .with_clock(Arc::clone(&self.clock))
                .ending_with(stop.clone())
                .with_peers(|of| Some(of.get::<Arc<sas_router::ClientConnection>>()?.peer()?.ip()));
            Arc::new(if encrypted { console.with_secure_cookies() } else { console }) as _
        } else {
            at_listener
        };
        let publishing = self.lifecycle.map(|wanted| Recipient::of(wanted, &triggers)).zip(publishing);
        let mut parts = Parts {
            admin,
            default_roots,
            at_listener,
            requests,
            keys,
            control,
            triggers,
            factory,
            calls,
            entrance: Arc::new(entrance),
            clock: self.clock,
            gateway,
            pool,
            runtimes: self.runtimes,
            own_store,
            own_meter: None,
            publishing,
            exporters,
            log_files,
            #[cfg(feature = "otel")]
            otel,
            joined,
            #[cfg(feature = "tls")]
            certificates,
            ingress: None,
            admin_server: None,
            #[cfg(unix)]
            admin_socket: None,
            tasks: TaskTracker::new(),
            #[cfg(feature = "workflow")]
            workflows,
            #[cfg(feature = "workflow")]
            stop_workflows: CancellationToken::new(),
            #[cfg(feature = "workflow")]
            running_workflows: TaskTracker::new(),
            stop,
        };
        let mut server_config = self.server;
        server_config.recorder = recorder;
        server_config.max_connections = Some(Preset::connections(machine, server_config.max_connections));
        let admin = (self.admin, self.admin_listener);
        let requests = (self.listen, self.listener);
        match parts.start(requests, admin, socket, server_config, own_meter).await {
            Ok(()) => Ok(Platform::new(parts)),
            Err(error) => {
                Platform::new(parts).shutdown(Duration::from_secs(1)).await;
                Err(error)
            }
        }
    }
}

/// An address, or the listener that was opened at it.
type Listen = (Option<SocketAddr>, Option<std::net::TcpListener>);

/// Opens what was not opened yet, if anything is to be listened at.
async fn open((address, listener): Listen) -> Result<Option<TcpListener>, Error> {
    match (address, listener) {
        (_, Some(listener)) => {
            let opened = listener.set_nonblocking(true).and_then(|()| listener.try_into());
            let opened = opened.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "serve", "the listener can't be used").with_source(error)
            });
            opened.map(Some)
        }
        (Some(address), None) => Server::listen(address).await.map(Some),
        (None, None) => Ok(None),
    }
}

impl Parts {
    async fn start(
        &mut self,
        requests: Listen,
        admin: Listen,
        socket: Option<PathBuf>,
        server: ServerConfig,
        own_meter: Option<Arc<Meter>>,
    ) -> Result<(), BuildError> {
        // Ports first: a port that is taken is the mistake that is quickest to mend.
        let requests = open(requests).await.map_err(part(BuildPart::Ingress))?;
        let for_requests = server.clone();
        // The admin API needs no threads of its own.
        let mut server = server;
        server.workers = 0;
        if let Some(listener) = open(admin).await.map_err(part(BuildPart::Admin))? {
            let served = Server::serve(listener, Arc::clone(&self.at_listener), server.clone());
            self.admin_server = Some(served.map_err(part(BuildPart::Admin))?);
        }
        #[cfg(unix)]
        if let Some(path) = socket {
            let bound = UnixServer::bind(path, Arc::clone(&self.admin) as _, server.clone());
            self.admin_socket = Some(bound.map_err(part(BuildPart::Admin))?);
        }
        #[cfg(not(unix))]
        let _ = socket;
        if let Some(meter) = own_meter {
            // Before the first instance, so that no reading comes before the books are open; and only what was opened is
            // closed, or a start that failed would hide the gap of a kill.
            meter.begin().await.map_err(part(BuildPart::Usage))?;
            self.own_meter = Some(Arc::clone(&meter));
            let stop = self.stop.clone();
            self.tasks.spawn(async move { meter.run(stop).await });
        }
        for exporter in self.exporters.drain(..) {
            let stop = self.stop.clone();
            self.tasks.spawn(async move { exporter.run(stop).await });
        }
        if let Some((recipient, publishing)) = self.publishing.take() {
            self.tasks.spawn(publishing.run(recipient, self.stop.clone()));
        }
        self.control.recover().await.map_err(part(BuildPart::Recovery))?;
        self.calls.recover().await.map_err(part(BuildPart::Recovery))?;
        if let Some(joined) = &self.joined {
            self.tasks.spawn(Arc::clone(&joined.cluster).run(self.stop.clone()));
            self.tasks.spawn(membership::follow(
                joined.clone(),
                Arc::clone(&self.control),
                self.stop.clone(),
            ));
        }
        #[cfg(feature = "workflow")]
        {
            let running = crate::workflows::run(self.workflows.clone(), self.stop_workflows.clone());
            self.running_workflows.spawn(running);
            self.running_workflows.close();
        }
        // Requests that came meanwhile have waited: a service that is not back yet is not one that is not there.
        if let Some(listener) = requests {
            let served = Server::serve(listener, Arc::clone(&self.entrance) as _, for_requests);
            self.ingress = Some(served.map_err(part(BuildPart::Ingress))?);
        }
        self.tasks.spawn(backlog::report(
            Arc::clone(&self.triggers),
            Arc::clone(&self.control),
            Arc::clone(&self.factory),
            Arc::clone(&self.clock),
            self.stop.clone(),
        ));
        if let Some(requests) = self.requests.clone() {
            self.tasks.spawn(requests::sample(requests, Arc::clone(&self.pool), self.stop.clone()));
        }
        #[cfg(feature = "tls")]
        if let Some(certificates) = self.certificates.clone() {
            self.tasks.spawn(certificates.run(self.stop.clone()));
        }
        self.tasks.close();
        Ok(())
    }
}

/// Whether instances have other user ids than this platform, which takes root. Others of the same user could open whatever
/// it may open.
fn instances_are_others() -> bool {
    #[cfg(unix)]
    return rustix::process::geteuid().is_root();
    #[cfg(not(unix))]
    false
}
