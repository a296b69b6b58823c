//! What all containers of a runtime share.

use std::{
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Result};
use sas_runtime_os::{
    ClosedPorts,
    cgroup::{Limits, Run},
    guardian::Guardian,
    network::Network,
    ports::{Ports, locks_dir},
    strays::{Marks, Orphans},
};
use tokio::sync::Notify;

use crate::{
    cgroups::{self, Groups},
    config::{ContainerConfig, Network as NetworkKind},
    images::Images,
    metrics::Metrics,
    pod,
    refresh::Refreshed,
    store::Store,
};

/// What is killed when the engine is closed.
pub(crate) trait Killed: Send + Sync {
    /// Ends it by force, as soon as there is something to end.
    fn kill(&self, engine: &Engine);
}

/// Which program runs containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Crun,
    Runc,
}

/// The program that runs containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) kind: Kind,
    pub(crate) path: PathBuf,
    pub(crate) version: String,
}

/// How many containers there are, and how many of them are to end.
#[derive(Debug, Default)]
pub(crate) struct Count {
    living: AtomicUsize,
    ending: AtomicUsize,
    /// What is being made or removed on other threads.
    sweeping: AtomicUsize,
    changed: Notify,
}

impl Count {
    pub(crate) fn began(&self) {
        self.living.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn ending(&self) {
        self.ending.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn ended(&self, counted: bool) {
        self.living.fetch_sub(1, Ordering::AcqRel);
        if counted {
            self.ending.fetch_sub(1, Ordering::AcqRel);
        }
        self.changed.notify_waiters();
    }

    pub(crate) fn living(&self) -> usize {
        self.living.load(Ordering::Acquire)
    }
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) store: Arc<Store>,
    pub(crate) images: Images,
    pub(crate) program: Program,
    pub(crate) groups: Groups,
    pub(crate) guardian: Guardian,
    pub(crate) containers: Count,
    pub(crate) metrics: Metrics,
    pub(crate) ports: Arc<Ports>,
    /// What containers in the host's network do not reach.
    closed_ports: Option<ClosedPorts>,
    /// What a container may use that has no limits of its own.
    pub(crate) ceilings: Limits,
    /// Why layers are copied instead of stacked.
    pub(crate) no_overlay: Option<String>,
    /// Unmounted for what runs containers.
    pub(crate) hidden: Option<PathBuf>,
    /// What instances have mounted that may change.
    pub(crate) refreshed: Refreshed,
    guardian_fd: Mutex<Option<OwnedFd>>,
    all: Mutex<Vec<std::sync::Weak<dyn Killed>>>,
    networks: Mutex<Vec<Arc<Network>>>,
    filling: AtomicBool,
    next: AtomicU64,
    closed: AtomicBool,
    running: AtomicBool,
}

/// The least default ceiling of a container, where the machine has next to nothing.
const LEAST_MEMORY: u64 = 64 << 20;

/// Counted by `quiesce` until it is dropped.
#[derive(Debug)]
pub(crate) struct Making(Arc<Engine>);

impl Drop for Making {
    fn drop(&mut self) {
        self.0.containers.sweeping.fetch_sub(1, Ordering::AcqRel);
        self.0.containers.changed.notify_waiters();
    }
}

/// The client of registries asks for the process's provider of cryptography; whoever has one keeps it.
pub(crate) fn provide_cryptography() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Finds the first program that is there and says what it is.
fn find(config: &ContainerConfig) -> Result<Program> {
    let mut why = Vec::new();
    for name in &config.programs {
        let Some(path) = config.find(name) else {
            why.push(format!("{name} is not in {}", config.path));
            continue;
        };
        let said = std::process::Command::new(&path).arg("--version").env_clear().output();
        match said {
            Ok(output) if output.status.success() => {
                let text = String::from_utf8_lossy(&output.stdout).into_owned();
                let version = text.lines().next().unwrap_or_default().to_owned();
                let kind = match version.split_whitespace().next() {
                    Some("crun") => Kind::Crun,
                    Some("runc") => Kind::Runc,
                    _ => {
                        why.push(format!(
                            "{} calls itself {version:?}, neither crun nor runc",
                            path.display()
                        ));
                        continue;
                    }
                };
                return Ok(Program { kind, path, version });
            }
            Ok(output) => why.push(format!("{} --version ended with {}", path.display(), output.status)),
            Err(error) => why.push(format!("{}: {error}", path.display())),
        }
    }
    let what = format!(
        "programs: no program that runs containers: {}; install crun or runc, or leave the container runtime out",
        why.join("; ")
    );
    Err(Error::new(ErrorKind::Unsupported, "open", what))
}

impl Engine {
    pub(crate) fn open(config: ContainerConfig) -> Result<Arc<Self>> {
        config.validate()?;
        if !rustix::process::geteuid().is_root() {
            let what = "containers are run as root here: this process is an ordinary user's, which can make no network and \
                        mount namespaces; run it as root, or give packages instead of images";
            return Err(Error::new(ErrorKind::Unsupported, "open", what));
        }
        let program = find(&config)?;
        provide_cryptography();
        sas_runtime_os::limits::raise_open_files();
        crate::metrics::describe(&config.recorder);
        let store = Arc::new(Store::open(&config.store, config.limits)?);
        let unsupported = |what: String| Error::new(ErrorKind::Unsupported, "open", what);
        if let Err(error) = Network::make() {
            return Err(unsupported(format!(
                "no network namespace can be made ({error}); containers need the right to (CAP_SYS_ADMIN)"
            )));
        }
        let closed_ports = match (config.network, config.closed_ports.as_deref().unwrap_or_default()) {
            (NetworkKind::Isolated, _) | (_, []) => None,
            (_, ports) => Some(ClosedPorts::new(ports).map_err(|error| {
                unsupported(format!(
                    "closed_ports: {ports:?}: {error}; take Network::Isolated, or say by an empty list that containers may \
                     reach every port of this host"
                ))
            })?),
        };
        let no_overlay = match config.overlay {
            false => Some("ContainerConfig::overlay is false".to_owned()),
            true => pod::overlay_works(&store.run().pod()).err(),
        };
        if let Some(why) = &no_overlay {
            tracing::warn!(why, "no overlayfs: the layers of an image are copied for each instance");
        }
        std::fs::create_dir_all(store.run().pod())
            .map_err(|error| crate::store::disk("create", &store.run().pod(), error))?;
        let together = Limits::together(config.total_memory, config.total_processes);
        let groups = Groups::open(&config.cgroups, store.run(), program.kind == Kind::Runc, &together);
        let hidden =
            (program.kind == Kind::Crun).then(cgroups::hybrid).flatten().map(std::path::Path::to_path_buf);
        // Containers are found by their standard input, which no process of theirs can leave behind with its namespace;
        // none is marked.
        let marks = Marks::open(Run::dir(&**store.run()), None)
            .map_err(|error| crate::store::disk("write to", Run::dir(&**store.run()), error))?;
        let (guardian, guardian_fd) = Guardian::start(&store.run().stdin(), &marks)?;
        let half = || sas_runtime_os::cgroup::memory_here().map(|bytes| (bytes / 2).max(LEAST_MEMORY));
        let ceilings = Limits {
            cpu_millis: None,
            memory_bytes: config.instance_memory.or_else(half),
            processes: Some(config.processes),
        };
        let taken = config.closed_ports.as_deref().unwrap_or_default();
        let ports = Ports::new(config.ports.clone(), taken, &locks_dir(store.run().pod().as_path()))?;
        let metrics = Metrics::new(&config.recorder);
        let config = Arc::new(config);
        let images = Images { config: Arc::clone(&config), store: Arc::clone(&store), http: OnceLock::new() };
        tracing::info!(program = program.version, "containers are run");
        Ok(Arc::new(Self {
            config,
            store,
            images,
            program,
            groups,
            guardian,
            containers: Count::default(),
            metrics,
            ports,
            closed_ports,
            ceilings,
            no_overlay,
            hidden,
            refreshed: Refreshed::default(),
            guardian_fd: Mutex::new(Some(guardian_fd)),
            all: Mutex::default(),
            networks: Mutex::default(),
            filling: AtomicBool::new(false),
            next: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            running: AtomicBool::new(false),
        }))
    }

    /// Runs what blocks and spawns programs, where ports are closed to these.
    pub(crate) async fn spawning<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
    ) -> std::io::Result<T> {
        let Some(closed) = &self.closed_ports else {
            return tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?;
        };
        let (tell, told) = tokio::sync::oneshot::channel();
        let here = tokio::runtime::Handle::current();
        closed.run(move || {
            let _here = here.enter();
            // Nobody is told when nobody waits any more.
            let _ = tell.send(work());
        })?;
        told.await.map_err(|_gone| std::io::Error::other("the thread ended"))?
    }

    /// A number that no other container of this run has.
    pub(crate) fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Begins to look after the guardian, in the tokio runtime of whoever comes first.
    pub(crate) fn ensure_running(self: &Arc<Self>) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::new(ErrorKind::Unavailable, "start", "the container runtime was closed"));
        }
        if self.running.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.fill();
        let engine = Arc::downgrade(self);
        if let Some(period) = self.config.refresh {
            let engine = engine.clone();
            tokio::spawn(async move {
                loop {
                    tokio::time::sleep(period).await;
                    let Some(engine) = engine.upgrade().filter(|engine| !engine.is_closed()) else { return };
                    engine.refreshed.once(&engine.config.secrets).await;
                }
            });
        }
        let Some(fd) = self.guardian_fd.lock().take() else { return Ok(()) };
        tokio::spawn(async move {
            let mut fd = fd;
            let (began, orphans) = (tokio::time::Instant::now(), Arc::new(Mutex::new(Orphans::default())));
            loop {
                #[allow(
                    deprecated,
                    reason = "its successor is an unsafe fn; the descriptor is owned and never replaced"
                )]
                let Ok(watched) = tokio::io::unix::AsyncFd::with_interest(fd, tokio::io::Interest::READABLE)
                else {
                    return;
                };
                loop {
                    let ended =
                        tokio::time::timeout(Duration::from_secs(1), watched.readable()).await.is_ok();
                    let Some(engine) = engine.upgrade() else { return };
                    engine.guardian.flush();
                    if ended {
                        break;
                    }
                    if Orphans::are_ours() {
                        // What runs containers is waited for at once: none of it is left for a minute.
                        let (orphans, guardian) = (Arc::clone(&orphans), engine.guardian.pid());
                        let now = began.elapsed();
                        tokio::task::spawn_blocking(move || {
                            orphans.lock().collect(now, |pid| pid == guardian)
                        });
                    }
                }
                let Some(engine) = engine.upgrade() else { return };
                match engine.guardian.restart() {
                    Ok(next) => {
                        fd = next;
                        tracing::warn!("the guardian was ended from outside; another one watches now");
                    }
                    Err(error) => {
                        tracing::error!(%error, "no guardian: containers would outlive a killed host");
                        return;
                    }
                }
            }
        });
        Ok(())
    }

    /// A network of its own for an instance. Blocks for a millisecond where none is ready.
    pub(crate) fn network(self: &Arc<Self>) -> std::io::Result<Option<Arc<Network>>> {
        if self.config.network == NetworkKind::Host {
            return Ok(None);
        }
        let ready = self.networks.lock().pop();
        let network = match ready {
            Some(network) => network,
            None => Network::make()?,
        };
        self.fill();
        Ok(Some(network))
    }

    fn fill(self: &Arc<Self>) {
        if self.config.network == NetworkKind::Host
            || self.networks.lock().len() >= self.config.ready
            || self.filling.swap(true, Ordering::AcqRel)
        {
            return;
        }
        let engine = Arc::clone(self);
        let made = std::thread::Builder::new().name("sas-networks".into()).spawn(move || {
            while !engine.is_closed() && engine.networks.lock().len() < engine.config.ready {
                match Network::make() {
                    Ok(network) => engine.networks.lock().push(network),
                    Err(_) => break,
                }
            }
            engine.filling.store(false, Ordering::Release);
        });
        if made.is_err() {
            self.filling.store(false, Ordering::Release);
        }
    }

    /// Something is being made that a start which is given up would leave: `quiesce` waits for it.
    pub(crate) fn making(self: &Arc<Self>) -> Making {
        self.containers.sweeping.fetch_add(1, Ordering::AcqRel);
        Making(Arc::clone(self))
    }

    /// Kills this when everything is killed, unless it is gone by then.
    pub(crate) fn know(&self, container: std::sync::Weak<dyn Killed>) {
        let mut all = self.all.lock();
        all.retain(|one| one.strong_count() > 0);
        all.push(container);
    }

    /// Removes groups that nobody is in any more, on a blocking thread.
    pub(crate) fn sweep(self: &Arc<Self>) {
        if !self.groups.any_unused() {
            return;
        }
        self.containers.sweeping.fetch_add(1, Ordering::AcqRel);
        let engine = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            engine.groups.remove_unused();
            engine.containers.sweeping.fetch_sub(1, Ordering::AcqRel);
            engine.containers.changed.notify_waiters();
        });
    }

    /// Waits until what was dropped or stopped is gone.
    pub(crate) async fn quiesce(&self) {
        loop {
            let mut changed = std::pin::pin!(self.containers.changed.notified());
            changed.as_mut().enable();
            let count = &self.containers;
            if count.ending.load(Ordering::Acquire) == 0 && count.sweeping.load(Ordering::Acquire) == 0 {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Kills everything.
    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for container in self.all.lock().iter().filter_map(std::sync::Weak::upgrade) {
            container.kill(self);
        }
        self.networks.lock().clear();
    }
}
