//! What a revision is: immutable, versioned, the same whatever runtime serves it.

use std::{collections::BTreeMap, fmt, path::PathBuf, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{ContainerSpec, EnvValue, Probe, Resources, ScalingSpec, SpecErrors};

/// Everything that decides how a revision runs, without its name, so that equal specs can be shared.
///
/// Serialised with a `version`; unknown fields are refused. Made by [`RevisionSpec::new`] and then filled in:
///
/// ```
/// use sas_core::{RevisionSpec, Source};
/// let mut spec = RevisionSpec::new("process", Source::Path("apps/hello".into()));
/// spec.concurrency = 10;
/// spec.validate()?;
/// # Ok::<(), sas_core::SpecErrors>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct RevisionSpec {
    /// The version of this format: [`RevisionSpec::VERSION`].
    pub version: u16,
    /// Which runtime serves it, by [`crate::Runtime::name`]. Empty: the control plane asks its runtimes which of them
    /// accepts it ([`crate::Runtime::accepts`]), and records the one that does.
    #[serde(default)]
    pub runtime: String,
    /// Where the code comes from.
    pub source: Source,
    /// The program and its first arguments; empty: the runtime finds out.
    #[serde(default)]
    pub command: Vec<String>,
    /// Further arguments, after those of the command.
    #[serde(default)]
    pub args: Vec<String>,
    /// Directory to start in, relative to the package's root.
    #[serde(default)]
    pub working_dir: Option<String>,
    /// Declared environment; an instance gets nothing of the host's.
    #[serde(default)]
    pub env: BTreeMap<String, EnvValue>,
    /// The port that the program insists on; `None`: it takes the one in `PORT`.
    #[serde(default)]
    pub port: Option<u16>,
    /// The protocol that the program speaks on its port.
    #[serde(default)]
    pub protocol: Protocol,
    /// Requests at once per instance, a hard limit; 0: unlimited.
    #[serde(default)]
    pub concurrency: u32,
    /// How long things may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// What an instance may use.
    #[serde(default)]
    pub resources: Resources,
    /// When an instance has come up: until it succeeds, neither of the other two is asked. `None`: they are asked from
    /// the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// When an instance is ready; `None`: when its start-up probe has succeeded, or without one when it accepts a
    /// connection.
    #[serde(default)]
    pub readiness: Option<Probe>,
    /// When an instance must be replaced; `None`: never asked.
    #[serde(default)]
    pub liveness: Option<Probe>,
    /// Requests that may wait for an instance; more are refused at once.
    #[serde(default = "default_queue_limit")]
    pub queue_limit: u32,
    /// How many instances, and why.
    #[serde(default)]
    pub scaling: ScalingSpec,
    /// Options of the runtime, which validates them in `prepare`. Keys begin with a domain of whoever named them, such as
    /// `sas.dev/wasm-reuse`.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// What only a container can be given; `None`: nothing of that kind is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Box<ContainerSpec>>,
}

fn default_queue_limit() -> u32 {
    RevisionSpec::DEFAULT_QUEUE_LIMIT
}

impl RevisionSpec {
    /// The version of the format that this crate writes.
    pub const VERSION: u16 = 1;
    /// Requests that may wait, unless said otherwise.
    pub const DEFAULT_QUEUE_LIMIT: u32 = 10_000;

    /// A spec with defaults for all but runtime and code.
    pub fn new(runtime: impl Into<String>, source: Source) -> Self {
        Self {
            version: Self::VERSION,
            runtime: runtime.into(),
            source,
            command: Vec::new(),
            args: Vec::new(),
            working_dir: None,
            env: BTreeMap::new(),
            port: None,
            protocol: Protocol::default(),
            concurrency: 0,
            timeouts: Timeouts::default(),
            resources: Resources::default(),
            startup: None,
            readiness: None,
            liveness: None,
            queue_limit: Self::DEFAULT_QUEUE_LIMIT,
            scaling: ScalingSpec::default(),
            options: BTreeMap::new(),
            container: None,
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// All mistakes at once, each with its field path.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.version != Self::VERSION {
            errors.push("version", self.version, format!("this version of the SDK reads {}", Self::VERSION));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                errors.push(format!("env[{name:?}]"), name, "a name without = and NUL, not empty");
            }
            if matches!(value, EnvValue::Literal(text) if text.contains('\0')) {
                errors.push(format!("env.{name}"), "…", "a value without NUL");
            }
        }
        if self.port == Some(0) {
            errors.push("port", 0, "1 to 65535, or leave it out to be given one in PORT");
        }
        if self.queue_limit == 0 {
            errors.push("queue_limit", 0, "at least 1, else no cold request could ever wait");
        }
        if let Some(dir) = &self.working_dir
            && (dir.starts_with('/') || dir.split('/').any(|part| part == ".."))
        {
            errors.push("working_dir", dir, "a path inside of the package");
        }
        let probes =
            [("startup", &self.startup), ("readiness", &self.readiness), ("liveness", &self.liveness)];
        for (name, probe) in probes {
            if let Some(Err(probe)) = probe.as_ref().map(Probe::validate) {
                errors.extend_under(name, probe);
            }
        }
        for (name, timeout) in [
            ("timeouts.request", self.timeouts.request),
            ("timeouts.response_start", self.timeouts.response_start),
            ("timeouts.start", self.timeouts.start),
        ] {
            if timeout.is_zero() {
                errors.push(name, "0s", "longer than nothing");
            }
        }
        if let Err(scaling) = self.scaling.validate() {
            errors.extend_under("scaling", scaling);
        }
        errors.into_result()
    }

    /// What is set that only a container can be given, each as a mistake at its field. Runtimes that run no containers
    /// begin their [`crate::Runtime::accepts`] with it; `runtime` is named in the message.
    pub fn container_fields(&self, runtime: &str) -> SpecErrors {
        let mut errors = SpecErrors::default();
        let Some(container) = &self.container else { return errors };
        let problem =
            format!("only a container can be given this, and the {runtime} runtime runs none; leave it out");
        let mut refuse = |field: String, value: &str| errors.push(field, value, &problem);
        if let Some(dir) = &container.working_dir {
            refuse("container.working_dir".into(), dir);
        }
        for (at, set) in container.env_from.iter().enumerate() {
            refuse(format!("container.env_from[{at}]"), &set.reference);
        }
        for (at, volume) in container.volumes.iter().enumerate() {
            refuse(format!("container.volumes[{at}]"), &volume.name);
        }
        for (at, mount) in container.mounts.iter().enumerate() {
            refuse(format!("container.mounts[{at}]"), &mount.path);
        }
        let security = &container.security;
        for (field, value) in [
            ("run_as_user", security.run_as_user.map(|id| id.to_string())),
            ("run_as_group", security.run_as_group.map(|id| id.to_string())),
            ("fs_group", security.fs_group.map(|id| id.to_string())),
            ("supplemental_groups", ids(&security.supplemental_groups)),
            ("run_as_non_root", security.run_as_non_root.map(|on| on.to_string())),
            ("read_only_root_filesystem", security.read_only_root_filesystem.map(|on| on.to_string())),
            ("allow_privilege_escalation", security.allow_privilege_escalation.map(|on| on.to_string())),
            ("add_capabilities", some(&security.add_capabilities)),
            ("drop_capabilities", some(&security.drop_capabilities)),
            ("seccomp_profile", security.seccomp_profile.clone()),
        ] {
            if let Some(value) = value {
                refuse(format!("container.security.{field}"), &value);
            }
        }
        for (list, companions) in [("init", &container.init), ("sidecars", &container.sidecars)] {
            for (at, companion) in companions.iter().enumerate() {
                refuse(format!("container.{list}[{at}]"), &companion.image);
            }
        }
        for (path, json) in &container.other {
            refuse(format!("container.other[{path}]"), json);
        }
        errors
    }
}

fn ids(list: &[u32]) -> Option<String> {
    some(&list.iter().map(u32::to_string).collect::<Vec<_>>())
}

fn some(list: &[String]) -> Option<String> {
    (!list.is_empty()).then(|| list.join(", "))
}

/// Where the code is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Source {
    /// A file or directory of this host.
    Path(PathBuf),
    /// The bytes themselves, with a file name that hints at their kind. Never serialised inline by the control
    /// plane: it puts them into the artifact store and records the path.
    Bytes {
        /// A file name such as `app.tar.gz`.
        name: String,
        /// The content.
        #[serde(with = "byte_list")]
        bytes: Bytes,
    },
    /// An OCI image reference.
    Image(String),
    /// A function that the host registered with its runtime under this name.
    Function(String),
}

impl Source {
    /// Whether it is a file whose name ends in one of these extensions (without the dot, in lower case), whatever
    /// the case of its letters. What is in the file is not looked at.
    pub fn has_extension(&self, extensions: &[&str]) -> bool {
        let extension = match self {
            Self::Path(path) => path.extension(),
            Self::Bytes { name, .. } => std::path::Path::new(name).extension(),
            Self::Image(_) | Self::Function(_) => None,
        };
        let extension = extension.and_then(std::ffi::OsStr::to_str).unwrap_or_default();
        extensions.iter().any(|known| extension.eq_ignore_ascii_case(known))
    }
}

/// As errors show it: a path, a file's name, an image's reference, a function's name.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Bytes { name, .. } => f.write_str(name),
            Self::Image(name) | Self::Function(name) => f.write_str(name),
        }
    }
}

mod byte_list {
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        bytes.as_ref().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(Bytes::from)
    }
}

/// What an instance speaks on its port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http1,
    /// HTTP/2 with prior knowledge, as gRPC servers do.
    H2c,
}

/// How long things may take. Zero means "no limit" only where said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Timeouts {
    /// A whole request, the wait for an instance included.
    pub request: Duration,
    /// Until the head of the response.
    pub response_start: Duration,
    /// Between two frames of a body; zero: no limit.
    pub idle: Duration,
    /// One attempt to start an instance, until it is ready.
    pub start: Duration,
    /// Between the polite stop and the forced one.
    pub stop_grace: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(300),
            response_start: Duration::from_secs(300),
            idle: Duration::ZERO,
            start: Duration::from_secs(60),
            stop_grace: Duration::from_secs(10),
        }
    }
}
