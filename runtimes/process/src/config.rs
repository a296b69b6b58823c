//! How a process runtime is set up.

use std::{fmt, ops::RangeInclusive, path::PathBuf, sync::Arc, time::Duration};

use sas_core::{Clock, Error, ErrorKind, Recorder, Result, SystemClock};

use sas_runtime_os::{ControlGroups, JailConfig};

use crate::package::PackageLimits;

/// How much output of an instance is kept and passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLimits {
    /// Longest line in bytes; the rest of a longer one is dropped. Default 16 KiB.
    pub line_bytes: usize,
    /// Bytes per second that one instance's streams may hand to the [`sas_core::LogSink`], each; beyond it lines
    /// are dropped and counted. Default 1 MiB.
    pub bytes_per_second: u64,
    /// Bytes per second that are read of one stream at all; beyond it the instance waits when it writes, so that a
    /// program that floods its output slows itself and not the host. Default 16 MiB.
    pub read_bytes_per_second: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { line_bytes: 16 * 1024, bytes_per_second: 1 << 20, read_bytes_per_second: 16 << 20 }
    }
}

/// How Java programs are started, and what their stems are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JavaConfig {
    /// The JDK's directory (with `bin/java`); `None`: `java` of the search path.
    pub home: Option<PathBuf>,
    /// Flags for every JVM, before those of the revision (`sas.dev/java-options`). The default starts fast and small:
    /// `-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData`. Set it to none for programs that run
    /// long and hot.
    pub options: Vec<String>,
    /// Whether `prepare` runs the program once to archive its classes (AppCDS on JDK 17 and later, an AOT cache on
    /// JDK 25 and later). Off by default, since it *runs the program*; a revision asks for it by
    /// `sas.dev/java-archive: "true"`.
    pub archive: bool,
    /// Whether apps may be started from JVM stems. Needs a JRE of version 17 or later.
    pub stems: bool,
    /// Jars that stems put on their class path and load from, in the order of the class path: frameworks that many
    /// apps share. They are part of the stem's class.
    pub shared_jars: Vec<PathBuf>,
    /// Classes of the shared jars that a stem loads and initialises while it boots.
    pub shared_classes: Vec<String>,
}

impl Default for JavaConfig {
    fn default() -> Self {
        Self {
            home: None,
            options: ["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-XX:-UsePerfData"]
                .map(str::to_owned)
                .to_vec(),
            archive: false,
            stems: true,
            shared_jars: Vec::new(),
            shared_classes: Vec::new(),
        }
    }
}

/// Configuration of a [`crate::ProcessRuntime`].
///
/// ```
/// use sas_runtime_process::ProcessConfig;
/// let mut config = ProcessConfig::default();
/// config.ports = 21000..=21999;
/// config.validate()?;
/// # Ok::<(), sas_core::Error>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct ProcessConfig {
    /// Where packages are unpacked to. Several hosts may share it. Default: `sas-packages-<uid>` in the directory for
    /// temporary files; give a lasting one and [`keep_packages`](Self::keep_packages), and packages are found again
    /// after a restart.
    pub store: PathBuf,
    /// How long an unpacked package stays that nothing uses any more. Default none at all, as fits a store that goes with
    /// the host. A host with a lasting store gives minutes: what was in use when it ended is then found by its next
    /// start, which would else unpack it again, and goes when it is not used for as long there.
    pub keep_packages: Duration,
    /// What a package may take.
    pub limits: PackageLimits,
    /// The instances' `PATH`, and where commands and interpreters are looked for. The host's own `PATH` is not
    /// handed on. Default: the directories of a plain Unix system.
    pub path: String,
    /// The ports that instances are given. Default 20000 to 29999: below the range from which Linux takes the ports of
    /// outgoing connections, so that none of these takes an instance's port.
    pub ports: RangeInclusive<u16>,
    /// The bounds on what instances print.
    pub logs: LogLimits,
    /// How limits of CPU and memory are enforced.
    pub cgroups: ControlGroups,
    /// How instances are kept from the host and from each other.
    pub jail: JailConfig,
    /// Whether services may bring a zygote (`sas.dev/zygote`), which forks its instances: it numbers processes for the host,
    /// so it and they run without namespaces as the host's user, held by landlock and seccomp only. Default `false`.
    pub zygotes: bool,
    /// Where the directories are that services ask for by [`crate::options::DATA`]: `<namespace>/<service>` below it.
    /// `None`: `data` in the store. A host that keeps state gives one beside it.
    pub data: Option<PathBuf>,
    /// How Java programs are run and their stems made.
    pub java: JavaConfig,
    /// Where stamps come from.
    pub clock: Arc<dyn Clock>,
    /// The recorder that the runtime's metrics go to.
    pub recorder: Recorder,
}

impl ProcessConfig {
    /// The defaults, with packages in `store`.
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
        if self.ports.is_empty() || *self.ports.start() == 0 {
            return wrong(format!("ports: {:?}: a range that is not empty and does not hold 0", self.ports));
        }
        if self.path.split(':').any(|dir| !dir.starts_with('/')) {
            return wrong(format!("path: {:?}: absolute directories, separated by ':'", self.path));
        }
        if self.logs.line_bytes == 0
            || self.logs.bytes_per_second == 0
            || self.logs.read_bytes_per_second == 0
        {
            return wrong(format!("logs: {:?}: every bound at least 1", self.logs));
        }
        if let ControlGroups::Under(dir) = &self.cgroups
            && !dir.join("cgroup.controllers").is_file()
        {
            return wrong(format!(
                "cgroups: {}: the directory of a control group of version 2 that exists, or Auto or Off",
                dir.display()
            ));
        }
        self.jail.validate()?;
        if let Some(data) = self.data.as_ref().filter(|data| !data.is_absolute()) {
            return wrong(format!("data: {}: an absolute path", data.display()));
        }
        for jar in &self.java.shared_jars {
            if !jar.is_absolute() || !jar.is_file() {
                return wrong(format!("java.shared_jars: {:?}: an absolute path of a jar that exists", jar));
            }
        }
        Ok(())
    }
}

impl Default for ProcessConfig {
    fn default() -> Self {
        let user = rustix::process::geteuid().as_raw();
        Self {
            store: std::env::temp_dir().join(format!("sas-packages-{user}")),
            keep_packages: Duration::ZERO,
            limits: PackageLimits::default(),
            path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into(),
            ports: 20_000..=29_999,
            logs: LogLimits::default(),
            cgroups: ControlGroups::default(),
            jail: JailConfig::default(),
            zygotes: false,
            data: None,
            java: JavaConfig::default(),
            clock: Arc::new(SystemClock),
            recorder: Recorder::default(),
        }
    }
}

impl fmt::Debug for ProcessConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessConfig")
            .field("store", &self.store)
            .field("keep_packages", &self.keep_packages)
            .field("limits", &self.limits)
            .field("path", &self.path)
            .field("ports", &self.ports)
            .field("logs", &self.logs)
            .field("cgroups", &self.cgroups)
            .field("jail", &self.jail)
            .field("zygotes", &self.zygotes)
            .field("data", &self.data)
            .field("java", &self.java)
            .finish_non_exhaustive()
    }
}

/// How long an archive run of a Java program may take in `prepare`.
pub(crate) const ARCHIVE_TIMEOUT: Duration = Duration::from_secs(60);
