//! How a container runtime is set up.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use sas_core::{Clock, Error, ErrorKind, Recorder, Result, SecretSource, SystemClock};
use sas_runtime_os::ControlGroups;

use crate::{credentials::CredentialProvider, progress::PullObserver, unpack::ImageLimits};

/// Which registries are asked, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Registries {
    /// The registries from which images may come, such as `docker.io` or `registry.example.com:5000`; `None`: all. A
    /// platform whose tenants name images should list them: whoever answers is believed to be of bounded malice.
    pub allowed: Option<Vec<String>>,
    /// Registries that are asked by plain HTTP instead of HTTPS, with their port where it is not 80. None by default.
    pub plain_http: Vec<String>,
    /// Hosts that are asked before a registry, in their order, for the same repositories.
    pub mirrors: BTreeMap<String, Vec<String>>,
    /// Certificates of authorities that are trusted beside the system's own, in PEM.
    pub certificates: Vec<Vec<u8>>,
    /// How long a registry may take to answer, and to bring the next 64 KiB of a layer; and how long in all it may have itself
    /// be left alone (`Retry-After`) before a pull is given up with that time in its error. Default one minute.
    pub patience: Duration,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            allowed: None,
            plain_http: Vec::new(),
            mirrors: BTreeMap::new(),
            certificates: Vec::new(),
            patience: Duration::from_secs(60),
        }
    }
}

/// In which network containers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Network {
    /// A network namespace for each instance, with a loopback interface and nothing else: any number of them on one
    /// port, no way to another instance or to the host, and no way out. The platform reaches them by sockets that are made
    /// in it.
    #[default]
    Isolated,
    /// The host's own. Programs must take the port in `PORT`, reach whatever the host reaches but
    /// [`ContainerConfig::closed_ports`], and can be reached by whoever reaches the host's loopback. None has the capability
    /// `NET_RAW`, by which it would read what others send.
    Host,
}

/// Configuration of a [`crate::ContainerRuntime`].
///
/// ```
/// use sas_runtime_container::ContainerConfig;
/// let mut config = ContainerConfig::default();
/// config.registries.plain_http.push("127.0.0.1:5000".into());
/// config.validate()?;
/// # Ok::<(), sas_core::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ContainerConfig {
    /// Where layers are kept. Several hosts may share it. Default: `sas-images-<uid>` in the directory for temporary
    /// files; give a lasting one, and images are found again after a restart.
    pub store: PathBuf,
    /// The programs that run containers, the first that is there and works; names are looked for in [`Self::path`].
    /// Default: `crun`, then `runc`.
    pub programs: Vec<String>,
    /// Where the programs are looked for. Default: the directories of a plain Unix system.
    pub path: String,
    /// Which registries are asked, and how.
    pub registries: Registries,
    /// Directories below which images of files are read (`oci:/directory:tag`, `docker-archive:/file.tar`). None by
    /// default: whoever names an image would choose which files of the host are read.
    pub local_images: Vec<PathBuf>,
    /// Who knows the credentials for registries. `None`: they are asked without, unless a service has pull secrets.
    pub credentials: Option<Arc<dyn CredentialProvider>>,
    /// What resolves secrets and configuration maps of volumes, of `envFrom` and of pull secrets. `None`: a revision
    /// that has any is refused.
    pub secrets: Option<Arc<dyn SecretSource>>,
    /// How often secrets and configuration maps that are mounted are asked for again; what has changed is written into the
    /// volumes of running instances. `None`: never. Default one minute.
    pub refresh: Option<Duration>,
    /// Who is told how pulls are going.
    pub progress: Option<Arc<dyn PullObserver>>,
    /// What images may be.
    pub limits: ImageLimits,
    /// Bytes that layers which nobody uses may take on disk, those in use counted as well. Beyond it those go that were
    /// not wanted for longest. Default 20 GiB.
    pub cache_bytes: u64,
    /// Bytes that are to stay free on the disk of [`Self::store`]; below it layers that nobody uses go. Default 2 GiB.
    pub keep_free_bytes: u64,
    /// How limits of CPU, memory and processes are enforced.
    pub cgroups: ControlGroups,
    /// Processes and threads of one container. Default 4096.
    pub processes: u64,
    /// Bytes of memory of each container that has no limit of its own, what it writes to its files counted as well. `None`,
    /// the default: half of what the host may use (the machine's, or its control group's limit), so that one container never
    /// takes the machine. Held by control groups; without them not at all.
    pub instance_memory: Option<u64>,
    /// Bytes of memory of all containers together, what each may have aside. `None`: seven eighths of the machine's, or
    /// of the host's own control group. The container that asks for more than all may have is ended, or another that
    /// holds more; never the host. Held by control groups; without them not at all.
    pub total_memory: Option<u64>,
    /// Processes and threads of all containers together. `None`: three quarters of what the kernel or the host's own
    /// control group allows.
    pub total_processes: Option<u64>,
    /// Open files of each process of a container. Default 65536.
    pub open_files: u64,
    /// Bytes that an instance may write to its files, `/tmp` and `emptyDir` volumes each; they are held in memory and
    /// count as the instance's. Default 512 MiB.
    pub disk_bytes: u64,
    /// In which network containers run.
    pub network: Network,
    /// TCP ports of this machine that no container connects to or listens on, the admin API's above all. They mean something
    /// in [`Network::Host`] only, which takes a list, if an empty one: `None`, the default, is refused with it. Held by
    /// landlock, for which a kernel of 6.7 is needed; UDP is not closed.
    pub closed_ports: Option<Vec<u16>>,
    /// The ports that instances are given in the host's network. Default 30000 to 31999.
    pub ports: std::ops::RangeInclusive<u16>,
    /// Network namespaces that are kept ready. Default 4.
    pub ready: usize,
    /// Whether a container may run as user 0. It has the capabilities of Docker's default set but `MKNOD` then, within
    /// its namespaces. Default true.
    pub allow_root: bool,
    /// Capabilities that a service may ask for. Default: Docker's default set, without `MKNOD`.
    pub capabilities: Vec<String>,
    /// Whether a root file system is made by overlayfs. Where it can't be mounted, or this is false, the layers are
    /// copied for each instance. Default true.
    pub overlay: bool,
    /// Longest line of output in bytes; the rest of a longer one is dropped. Default 16 KiB.
    pub line_bytes: usize,
    /// Bytes per second of one container's streams that are passed on, each; beyond it lines are dropped and counted.
    /// Default 1 MiB.
    pub log_bytes_per_second: u64,
    /// Where stamps come from.
    pub clock: Arc<dyn Clock>,
    /// Where metrics go.
    pub recorder: Recorder,
}

/// Docker's default set but `MKNOD`: no container makes device nodes, and none has a filter of devices.
pub(crate) const CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

impl Default for ContainerConfig {
    fn default() -> Self {
        let user = rustix::process::geteuid().as_raw();
        Self {
            store: std::env::temp_dir().join(format!("sas-images-{user}")),
            programs: ["crun", "runc"].map(str::to_owned).to_vec(),
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            registries: Registries::default(),
            local_images: Vec::new(),
            credentials: None,
            secrets: None,
            refresh: Some(Duration::from_secs(60)),
            progress: None,
            limits: ImageLimits::default(),
            cache_bytes: 20 << 30,
            keep_free_bytes: 2 << 30,
            cgroups: ControlGroups::default(),
            processes: 4096,
            instance_memory: None,
            total_memory: None,
            total_processes: None,
            open_files: 65_536,
            disk_bytes: 512 << 20,
            network: Network::default(),
            closed_ports: None,
            ports: 30_000..=31_999,
            ready: 4,
            allow_root: true,
            capabilities: CAPABILITIES.map(str::to_owned).to_vec(),
            overlay: true,
            line_bytes: 16 << 10,
            log_bytes_per_second: 1 << 20,
            clock: Arc::new(SystemClock),
            recorder: Recorder::default(),
        }
    }
}

impl ContainerConfig {
    /// The defaults, with layers in `store`.
    pub fn in_store(store: impl Into<PathBuf>) -> Self {
        Self { store: store.into(), ..Self::default() }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// `InvalidSpec` with the field, the value and the remedy.
    pub fn validate(&self) -> Result<()> {
        let wrong = |message: String| Err(Error::new(ErrorKind::InvalidSpec, "configure", message));
        if self.store.as_os_str().is_empty() {
            return wrong("store: \"\": name a directory that this user may write to".into());
        }
        // It stands in the options of a mount.
        if self.store.to_string_lossy().contains([':', ',', '\\']) {
            return wrong(format!("store: {}: a path without ':', ',' and '\\'", self.store.display()));
        }
        if self.programs.is_empty() {
            return wrong("programs: []: name one, such as crun or runc".into());
        }
        if self.path.split(':').any(|dir| !dir.starts_with('/')) {
            return wrong(format!("path: {:?}: absolute directories, separated by ':'", self.path));
        }
        if let Some(dir) = self.local_images.iter().find(|dir| !dir.is_absolute()) {
            return wrong(format!("local_images: {}: absolute paths", dir.display()));
        }
        for (field, value, least) in [
            ("processes", self.processes, 8),
            ("instance_memory", self.instance_memory.unwrap_or(u64::MAX), 16 << 20),
            ("total_memory", self.total_memory.unwrap_or(u64::MAX), self.instance_memory.unwrap_or(16 << 20)),
            ("total_processes", self.total_processes.unwrap_or(u64::MAX), self.processes),
            ("open_files", self.open_files, 64),
            ("disk_bytes", self.disk_bytes, 1 << 20),
            ("limits.bytes", self.limits.bytes, 1),
            ("limits.files", self.limits.files, 1),
            ("limits.ratio", self.limits.ratio, 1),
            ("limits.layers", self.limits.layers as u64, 1),
            ("line_bytes", self.line_bytes as u64, 1),
            ("log_bytes_per_second", self.log_bytes_per_second, 1),
        ] {
            if value < least {
                return wrong(format!("{field}: {value}: at least {least}"));
            }
        }
        if self.ready > 256 {
            return wrong(format!("ready: {}: at most 256", self.ready));
        }
        match &self.closed_ports {
            None if self.network == Network::Host => {
                return wrong(
                    "closed_ports: None: in the host's network containers reach what the host reaches: name the ports that \
                     they must not, such as the admin API's, or an empty list where there is none"
                        .into(),
                );
            }
            Some(closed) if closed.contains(&0) => {
                return wrong("closed_ports: 0: ports from 1 to 65535".into());
            }
            _ => {}
        }
        if self.ports.is_empty() || *self.ports.start() == 0 {
            return wrong(format!("ports: {:?}: a range that is not empty and does not hold 0", self.ports));
        }
        if let Some(unknown) = self.capabilities.iter().find(|name| crate::spec::capability(name).is_none()) {
            return wrong(format!("capabilities: {unknown:?}: names such as NET_BIND_SERVICE"));
        }
        if self.refresh.is_some_and(|period| period < Duration::from_millis(10)) {
            return wrong(format!("refresh: {:?}: at least 10 ms, or None for never", self.refresh));
        }
        if self.registries.patience.is_zero() {
            return wrong("registries.patience: 0: longer than nothing".into());
        }
        for host in self.registries.mirrors.values().flatten().chain(&self.registries.plain_http) {
            if host.is_empty() || host.contains('/') {
                return wrong(format!("registries: {host:?}: a host and a port, without a scheme"));
            }
        }
        Ok(())
    }

    /// The program of this name in the search path.
    pub(crate) fn find(&self, program: &str) -> Option<PathBuf> {
        if program.starts_with('/') {
            return Some(PathBuf::from(program)).filter(|path| path.is_file());
        }
        self.path.split(':').map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
    }
}

impl fmt::Debug for ContainerConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerConfig")
            .field("store", &self.store)
            .field("programs", &self.programs)
            .field("registries", &self.registries.allowed)
            .field("plain_http", &self.registries.plain_http)
            .field("local_images", &self.local_images)
            .field("limits", &self.limits)
            .field("network", &self.network)
            .field("closed_ports", &self.closed_ports)
            .field("cgroups", &self.cgroups)
            .finish_non_exhaustive()
    }
}
