//! What a revision is: immutable, versioned, the same whatever runtime serves it.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{ContainerSpec, ScalingSpec};

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
    /// The code.
    pub source: Source,
    /// The program and its first arguments; empty: the runtime finds out.
    #[serde(default)]
    pub command: Vec<String>,
    /// Further arguments.
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
    /// What it speaks.
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
    /// Options of the runtime, which validates them in `prepare`. Keys are annotation names such as
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
    /// Requests that may wait, unless said otherwise; as deep as Knative's activator.
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

/// The value of an environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum EnvValue {
    /// The value itself.
    Literal(String),
    /// A reference that [`crate::SecretSource`] resolves at every start.
    Secret(String),
}

/// A resolved secret. Its `Debug` never shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<Arc<str>>) -> Self {
        Self(value.into())
    }

    /// The value, for the one place that hands it to an instance.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
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
    /// A whole request, the wait for an instance included. Knative's `timeoutSeconds`.
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

/// What one instance may use; `None`: no limit, and for requests: unknown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Resources {
    /// Expected CPU use in thousandths of a core.
    pub cpu_request_millis: Option<u32>,
    /// Limit of CPU in thousandths of a core.
    pub cpu_limit_millis: Option<u32>,
    /// Expected memory in bytes, for budgets and for targets in percent.
    pub memory_request_bytes: Option<u64>,
    /// Limit of memory in bytes.
    pub memory_limit_bytes: Option<u64>,
}

/// A health question to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Probe {
    /// How it is asked.
    pub action: ProbeAction,
    /// Wait before the first question.
    #[serde(default)]
    pub initial_delay: Duration,
    /// Time between two questions; zero: as often as makes sense (a few milliseconds while it starts).
    #[serde(default)]
    pub period: Duration,
    /// How long one answer may take.
    #[serde(default = "default_probe_timeout")]
    pub timeout: Duration,
    /// Answers in a row that count as success.
    #[serde(default = "one")]
    pub success_threshold: u32,
    /// Failures in a row that count as failure.
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

fn default_probe_timeout() -> Duration {
    Duration::from_secs(1)
}
fn one() -> u32 {
    1
}
fn three() -> u32 {
    3
}

impl Probe {
    /// A probe with Kubernetes' defaults, asked as often as makes sense.
    pub fn new(action: ProbeAction) -> Self {
        Self {
            action,
            initial_delay: Duration::ZERO,
            period: Duration::ZERO,
            timeout: default_probe_timeout(),
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}

impl Probe {
    /// Checks every field, so that a probe that can be asked at all is known when it is deployed.
    ///
    /// # Errors
    /// All mistakes at once, each with its field path.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.timeout.is_zero() {
            errors.push("timeout", "0s", "longer than nothing");
        }
        for (name, threshold) in
            [("success_threshold", self.success_threshold), ("failure_threshold", self.failure_threshold)]
        {
            if threshold == 0 {
                errors.push(name, 0, "at least 1");
            }
        }
        match &self.action {
            ProbeAction::Http { path, headers, .. } => {
                if path.parse::<http::uri::PathAndQuery>().is_err() || !path.starts_with('/') {
                    errors.push("action.http.path", path, "a path that begins with / and has no blanks");
                }
                for (at, (name, value)) in headers.iter().enumerate() {
                    if name.parse::<http::HeaderName>().is_err()
                        || value.parse::<http::HeaderValue>().is_err()
                    {
                        let field = format!("action.http.headers[{at}]");
                        errors.push(field, name, "a header name and a value of one line");
                    }
                }
            }
            ProbeAction::Exec { command } => {
                if command.first().is_none_or(String::is_empty) {
                    errors.push("action.exec.command", "", "the program that asks, and its arguments");
                }
                if command.iter().any(|word| word.contains('\0')) {
                    errors.push("action.exec.command", "…", "words without NUL");
                }
            }
            ProbeAction::Tcp { .. } | ProbeAction::Grpc { .. } => {}
        }
        let (ProbeAction::Tcp { port } | ProbeAction::Http { port, .. } | ProbeAction::Grpc { port, .. }) =
            &self.action
        else {
            return errors.into_result();
        };
        if *port == Some(0) {
            errors.push("action.port", 0, "1 to 65535, or leave it out for the instance's own");
        }
        errors.into_result()
    }
}

/// How a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeAction {
    /// Connects.
    Tcp {
        /// Another port than the instance's.
        port: Option<u16>,
    },
    /// `GET path`; 200 to 399 is success.
    Http {
        /// Path and query.
        path: String,
        /// Another port than the instance's.
        port: Option<u16>,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// The gRPC health service.
    Grpc {
        /// Another port than the instance's.
        port: Option<u16>,
        /// The service asked about.
        service: Option<String>,
    },
    /// Runs a command in the instance; status 0 is success.
    Exec {
        /// The command.
        command: Vec<String>,
    },
}

/// One mistake in what a user wrote.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpecError {
    /// Where, such as `spec.template.spec.containers[0].ports[0].containerPort`.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// What should.
    pub problem: String,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}: {}", self.field, self.value, self.problem)
    }
}

/// All mistakes that were found in one go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct SpecErrors(pub Vec<SpecError>);

impl SpecErrors {
    /// Adds one: the field's path, its value, and what it should be.
    pub fn push(&mut self, field: impl Into<String>, value: impl fmt::Display, problem: impl Into<String>) {
        self.0.push(SpecError { field: field.into(), value: value.to_string(), problem: problem.into() });
    }

    /// Adds those of a part, with `prefix.` before their fields.
    pub fn extend_under(&mut self, prefix: &str, errors: SpecErrors) {
        self.0.extend(errors.0.into_iter().map(|mut error| {
            error.field = format!("{prefix}.{}", error.field);
            error
        }));
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// `Ok` when there are none.
    ///
    /// # Errors
    /// Itself, when there are some.
    pub fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for SpecErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, error) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}

impl From<SpecErrors> for crate::Error {
    fn from(errors: SpecErrors) -> Self {
        crate::Error::new(crate::ErrorKind::InvalidSpec, "validate", errors.to_string()).with_source(errors)
    }
}
