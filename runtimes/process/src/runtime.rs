//! The runtime: prepare, start, quiesce.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::Arc,
};

use async_trait::async_trait;
use sas_core::{
    Artifact, Capabilities, Endpoint, Error, ErrorKind, ExitReport, Instance, Isolation, Result, Retry,
    RevisionSpec, Runtime, Source, SpecErrors, StartPhase, StartRequest, Stem, StemClass, StemRequest,
};
use tokio::time::Instant;

use sas_runtime_os::{JailLevel, cgroup::Limits, jail::JailReport};

use crate::{
    artifact::{self, ProcessArtifact},
    config::ProcessConfig,
    engine::{Engine, Proc},
    instance::ProcessInstance,
    jvm::jdk::Jdk,
    logs::LogTarget,
    options,
    package::store::Store,
    ready::{self, Quickest},
    spawn::{self, Environment, Plan},
};

/// Runs code packages as native processes of this host. See the crate's documentation.
///
/// It belongs to the tokio runtime in which it is first used. When it is dropped, all its instances are killed.
#[derive(Debug)]
pub struct ProcessRuntime {
    engine: Arc<Engine>,
}

impl ProcessRuntime {
    /// The name by which specs ask for it.
    pub const NAME: &'static str = "process";

    /// Opens the package store, ends what a dead host has left in it, and starts the guardian.
    ///
    /// # Errors
    /// `InvalidSpec` for a wrong configuration; `Unavailable` or `Conflict` when the store can't be used.
    pub fn new(config: ProcessConfig) -> Result<Self> {
        config.validate()?;
        // Its instances get limits of their own.
        sas_runtime_os::limits::raise_open_files();
        crate::metrics::describe(&config.recorder);
        let store = Store::open(&config.store, config.limits, &config.path)?;
        Ok(Self { engine: Engine::new(Arc::new(config), store)? })
    }

    /// The class of the JVM stems from which apps without flags of their own come. Writes the jar of the stem's Java side if
    /// that was not done yet.
    ///
    /// # Errors
    /// `Unsupported`, with what is missing: a JRE or JDK of at least 17.
    pub async fn java_stem_class(&self) -> Result<StemClass> {
        self.engine.ensure_running()?;
        let unsupported = |reason: String| Error::new(ErrorKind::Unsupported, "java_stem_class", reason);
        let jdk = Jdk::find(&self.engine.config).map_err(unsupported)?;
        let options = self.engine.config.java.options.clone();
        self.engine.stems.class(&self.engine, &jdk, &options).await.map_err(unsupported)
    }

    /// What this machine gives of the jail, and why the rest is missing.
    pub fn jail_report(&self) -> &JailReport {
        self.engine.jails.report()
    }

    /// How many processes of instances live now, on their way up and down included.
    pub fn processes(&self) -> usize {
        self.engine.count()
    }

    /// The process that ends the instances when the host dies.
    pub fn guardian_pid(&self) -> i32 {
        self.engine.guardian.pid()
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        self.engine.close();
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(Isolation::Process);
        capabilities.suspend = true;
        capabilities.usage = true;
        capabilities.cpu_bound_start = true;
        capabilities.stems =
            self.engine.config.java.stems && self.engine.config.jail.level != JailLevel::Strict;
        // Without groups memory is bounded per process by an rlimit, CPU not at all: less than the flag promises.
        capabilities.limits = self.engine.cgroups.missing().is_none();
        capabilities
    }

    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        let mut errors = spec.container_fields(Self::NAME);
        match &spec.source {
            Source::Image(_) => {
                let problem = "an image needs a container runtime; give a package instead";
                errors.push("source.image", &spec.source, problem);
            }
            Source::Path(_) | Source::Bytes { .. } => {
                if spec.runtime.is_empty() && spec.source.has_extension(&["wasm", "wat"]) {
                    let problem =
                        "a WebAssembly module is no program of this host; it needs the wasm runtime";
                    errors.push("source", &spec.source, problem);
                }
            }
            other => errors.push("source", other, "the process runtime takes code packages"),
        }
        errors.into_result()
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.engine.ensure_running()?;
        artifact::prepare(&self.engine, spec).await
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.engine.ensure_running()?;
        let deployed = Arc::clone(&request.deployed);
        let artifact = deployed.artifact.downcast::<ProcessArtifact>().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidSpec,
                "start",
                "artifact: it was prepared by another runtime; prepare it with this one",
            )
        })?;
        start(&self.engine, artifact, request).await
    }

    async fn quiesce(&self) {
        self.engine.quiesce().await;
    }

    async fn start_stem(&self, request: StemRequest) -> Result<Box<dyn Stem>> {
        if !self.capabilities().stems {
            return Err(Error::unsupported("start_stem"));
        }
        self.engine.ensure_running()?;
        self.engine.stems.start(&self.engine, request).await
    }
}

/// The port of an instance that has a network of its own and insists on none.
const ALONE: u16 = 8080;

/// Spawns the program and waits until it can serve.
async fn start(
    engine: &Arc<Engine>,
    artifact: &ProcessArtifact,
    request: StartRequest,
) -> Result<Arc<dyn Instance>> {
    let began = Instant::now();
    let own_network = engine.jails.has_own_network(&artifact.jail(engine, Some(request.tenant()), 0));
    let (address, port, stdin) = if own_network && !artifact.options.listen_fd {
        // Nobody else is there: every instance may have the same.
        let port = request.spec().port.unwrap_or(ALONE);
        (SocketAddr::from((Ipv4Addr::LOCALHOST, port)), None, None)
    } else if artifact.options.listen_fd || artifact.zygote.is_some() {
        let listener = listen(request.spec().port)?;
        let address = listener.local_addr().map_err(|error| no_socket(&error))?;
        (address, None, Some(OwnedFd::from(listener)))
    } else {
        let port = match request.spec().port {
            Some(number) => engine.ports.take_fixed(number)?,
            None => engine.ports.take()?,
        };
        (SocketAddr::from((Ipv4Addr::LOCALHOST, port.number())), Some(port), None)
    };
    let inherited = stdin.is_some();
    let env = Environment::of(&request, address.port(), &engine.config.path, &artifact.launch);
    let (program, args) = artifact.command();
    let args = args.iter().map(|arg| env.expand(arg)).collect();
    let rlimits = artifact.rlimits(engine);
    let limits = artifact.limits;
    let logs = log_target(&request);
    let cwd = artifact.launch.cwd.clone();
    let mut jail = artifact.jail(engine, Some(request.tenant()), address.port());
    let mut env = env;
    if let Some(data) = artifact.data(engine, request.name())? {
        env.0.insert(options::DATA_DIR.to_owned(), data.display().to_string());
        jail.data.push(data);
    }
    let env = env;
    let spawned = match (&artifact.zygote, stdin) {
        (Some(zygote), Some(listener)) => {
            let mut bare = Environment::default();
            bare.0.insert("PATH".into(), engine.config.path.clone());
            let boot = || Plan {
                program,
                args,
                env: bare,
                cwd,
                stdin: None,
                rlimits: Vec::new(),
                limits: Limits::default(),
                logs: None,
                jail,
            };
            let forked = tokio::select! {
                biased;
                forked = zygote.fork(boot, listener, &env, logs) => forked?,
                () = tokio::time::sleep_until(request.deadline) => {
                    return Err(Error::new(
                        ErrorKind::Timeout,
                        "start",
                        "the zygote did not fork by the deadline",
                    ));
                }
            };
            spawn::limit(engine, forked.proc(), &rlimits, &limits)?;
            forked
        }
        (_, stdin) => {
            let plan = Plan { program, args, env, cwd, stdin, rlimits, limits, logs: Some(logs), jail };
            spawn::spawn(engine, plan).await?
        }
    };
    spawned.proc().hold(port, &artifact.package);
    request.events.phase(request.id, StartPhase::Spawned);
    if inherited {
        // Whoever connects now is served as soon as the program accepts: the kernel holds the line.
        request.events.phase(request.id, StartPhase::Listening);
    }
    let endpoint = match spawned.proc().network().filter(|_| !inherited) {
        Some(network) => Endpoint::Within(address, network),
        None => Endpoint::Tcp(address),
    };
    if !inherited || request.spec().readiness.is_some() {
        until_ready(artifact, &request, spawned.proc(), &artifact.quickest, &endpoint, address.port())
            .await?;
    }
    if let Err(report) = spawned.proc().started(request.id, Arc::clone(&request.events)) {
        return Err(crashed(spawned.proc(), &report, address.port()));
    }
    request.events.phase(request.id, StartPhase::Ready);
    engine.metrics.ready.record(began.elapsed().as_secs_f64());
    let proc = spawned.keep();
    Ok(Arc::new(ProcessInstance::new(request.id, endpoint, proc, Arc::clone(engine))))
}

pub(crate) fn log_target(request: &StartRequest) -> LogTarget {
    LogTarget { instance: request.id, revision: request.revision, sink: Arc::clone(&request.logs) }
}

pub(crate) fn listen(port: Option<u16>) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port.unwrap_or(0))).map_err(|error| no_socket(&error))
}

fn no_socket(error: &std::io::Error) -> Error {
    Error::new(
        ErrorKind::Exhausted,
        "start",
        format!("a listening socket for the instance: {error}; free the port, or leave `port` out"),
    )
    .with_retry(Retry::After(std::time::Duration::from_secs(1)))
}

/// Waits for readiness, the deadline or the exit, whichever is first.
pub(crate) async fn until_ready(
    artifact: &ProcessArtifact,
    request: &StartRequest,
    proc: &Arc<Proc>,
    quickest: &Quickest,
    at: &Endpoint,
    port: u16,
) -> Result<()> {
    let listening = || request.events.phase(request.id, StartPhase::Listening);
    tokio::select! {
        biased;
        report = proc.exited() => Err(crashed(proc, &report, port)),
        ready = ready::wait(
            at,
            &artifact.readiness,
            request.spec().readiness.as_ref(),
            quickest,
            listening,
        ) => {
            ready.map_err(|error| {
                Error::new(ErrorKind::Unavailable, "start", format!("readiness of the instance: {error}"))
                    .with_source(error)
            })?;
            prove(proc, at, port).await
        }
        () = tokio::time::sleep_until(request.deadline) => Err(not_ready(proc, request, port).await),
    }
}

/// Who answers must be the instance: another user's program may have taken its port before it did.
async fn prove(proc: &Arc<Proc>, at: &Endpoint, port: u16) -> Result<()> {
    // A network of its own is nobody else's.
    if !matches!(at, Endpoint::Tcp(_)) {
        return Ok(());
    }
    let asked = Arc::clone(proc);
    let its_own = tokio::task::spawn_blocking(move || asked.listens_on(port)).await.unwrap_or(false);
    if its_own {
        return Ok(());
    }
    let what = format!(
        "port {port} answers, but not by a process of the instance: another program of this machine has taken it, and \
         gets no request; find it (ss -ltnp) or give the instances a network of their own (sas.dev/egress: deny)"
    );
    Err(Error::new(ErrorKind::Conflict, "start", with_last_words(what, proc))
        .with_retry(Retry::AnotherInstance))
}

fn with_last_words(mut message: String, proc: &Proc) -> String {
    if let Some(words) = proc.last_words() {
        message.push_str("; its last output: ");
        message.push_str(&words);
    }
    message
}

pub(crate) fn crashed(proc: &Proc, report: &ExitReport, port: u16) -> Error {
    let message = format!(
        "the program {report} before it was ready on 127.0.0.1:{port}; it must keep running and listen on the port \
         in the variable PORT"
    );
    Error::new(ErrorKind::Crashed, "start", with_last_words(message, proc))
}

async fn not_ready(proc: &Arc<Proc>, request: &StartRequest, port: u16) -> Error {
    let pid = proc.pid();
    let others = tokio::task::spawn_blocking(move || ready::ports_listened_on(pid)).await.unwrap_or_default();
    let what = if others.contains(&port) {
        "it listens, but its readiness probe did not succeed; mend the probe's path or give it more time \
         (timeouts.start)"
            .to_owned()
    } else if others.is_empty() {
        "it listens on no port; it must listen on the port in the variable PORT, or be given more time \
         (timeouts.start)"
            .to_owned()
    } else {
        format!(
            "it listens on {others:?} instead; make it read the variable PORT (or pass $(PORT) in args), or set `port` \
             to {}",
            others[0]
        )
    };
    let limit = request.spec().timeouts.start;
    let message = format!("the program was not ready on 127.0.0.1:{port} (PORT) within {limit:?}: {what}");
    Error::new(ErrorKind::Timeout, "start", with_last_words(message, proc))
}
