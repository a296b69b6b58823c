//! What only a container can be given.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{EnvValue, Probe, Resources};

/// What a revision asks of a container beyond its image ([`crate::Source::Image`]), its command, arguments,
/// environment and resources, which every runtime understands.
///
/// Whoever declares the revision fills it in; a container runtime reads it. Runtimes that can't honour a field refuse the revision
/// in [`crate::Runtime::accepts`], where [`crate::RevisionSpec::container_fields`] names each one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct ContainerSpec {
    /// The absolute path of the directory to start in; `None`: the image's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Sets of variables whose names stand in a secret or a configuration map.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFrom>,
    /// What can be mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Where it is mounted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// As whom it runs, and what it may do.
    #[serde(skip_serializing_if = "SecurityContext::is_default")]
    pub security: SecurityContext,
    /// Programs that run one after the other, each to its end, before the container starts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub init: Vec<Companion>,
    /// Programs that run beside the container, in its network and with its volumes, as long as it runs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sidecars: Vec<Companion>,
    /// Names of the tenant's secrets that hold credentials of registries, in the form of Docker's `config.json`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pull_secrets: Vec<String>,
    /// Fields of a Pod that have no form of their own here, such as `nodeSelector` or `containers[0].lifecycle`: the JSON of
    /// their value by their path within the Pod's spec. A runtime that does not know one of these refuses it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub other: BTreeMap<String, String>,
}

/// Another container of the same instance: one that prepares it, or one that runs beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Companion {
    /// Its name within the instance, for logs and messages.
    pub name: String,
    /// An OCI image reference.
    pub image: String,
    /// The program and its first arguments; empty: the image's entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Further arguments; empty, without a command: the image's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// The absolute path of the directory to start in; `None`: the image's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// The declared environment, by the names of the variables.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, EnvValue>,
    /// Sets of variables whose names stand in a secret or a configuration map.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_from: Vec<EnvFrom>,
    /// Which of the instance's volumes are mounted, and where.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// As whom it runs, and what it may do.
    #[serde(skip_serializing_if = "SecurityContext::is_default")]
    pub security: SecurityContext,
    /// What it may use.
    pub resources: Resources,
    /// When it has come up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// When it is ready; the instance is when all its containers are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// When the instance must be replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
}

impl Companion {
    /// The image's own program, called `name`.
    pub fn new(name: impl Into<String>, image: impl Into<String>) -> Self {
        Self { name: name.into(), image: image.into(), ..Self::default() }
    }
}

/// Variables that come from a whole secret or configuration map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EnvFrom {
    /// `secret/name` or `configmap/name`, in the tenant's own namespace.
    pub reference: String,
    /// Put before each name.
    #[serde(default)]
    pub prefix: String,
    /// Whether an instance starts without it when it is not there.
    #[serde(default)]
    pub optional: bool,
}

impl EnvFrom {
    /// The variables of `reference`, which has to be there.
    pub fn new(reference: impl Into<String>) -> Self {
        Self { reference: reference.into(), prefix: String::new(), optional: false }
    }
}

/// Something that can be mounted, by a name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Volume {
    /// The name by which a [`Mount`] refers to it.
    pub name: String,
    /// What is in it.
    pub source: VolumeSource,
}

impl Volume {
    /// A volume of `source`, called `name`.
    pub fn new(name: impl Into<String>, source: VolumeSource) -> Self {
        Self { name: name.into(), source }
    }
}

/// What is in a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum VolumeSource {
    /// An empty directory that lives as long as the instance.
    EmptyDir {
        /// The most bytes that it may hold; `None`: as the host allows.
        size_limit_bytes: Option<u64>,
        /// Whether it lies in memory.
        memory: bool,
    },
    /// A file per key of a configuration map in the tenant's namespace.
    ConfigMap {
        /// The map's name.
        name: String,
        /// Keys and the relative paths of their files; empty: every key under its own name.
        items: Vec<(String, String)>,
        /// The permission bits of the files; `None`: 0644.
        mode: Option<u32>,
        /// Whether an instance starts without it when it is not there.
        optional: bool,
    },
    /// A file per key of a secret in the tenant's namespace.
    Secret {
        /// The secret's name.
        name: String,
        /// Keys and the relative paths of their files; empty: every key under its own name.
        items: Vec<(String, String)>,
        /// The permission bits of the files; `None`: 0644.
        mode: Option<u32>,
        /// Whether an instance starts without it when it is not there.
        optional: bool,
    },
    /// Files of several secrets and configuration maps in one directory: [`VolumeSource::ConfigMap`] and
    /// [`VolumeSource::Secret`], nothing else.
    Projected(Vec<VolumeSource>),
    /// A volume that outlives the instance, by the name of its claim.
    Claim {
        /// The claim's name.
        name: String,
        /// Whether all mounts of it are read-only.
        read_only: bool,
    },
    /// Another kind, as the text of its JSON.
    Other(String),
}

/// Where a volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Mount {
    /// The name of the [`Volume`] that is mounted.
    pub volume: String,
    /// The absolute path in the container.
    pub path: String,
    /// The part of the volume that is mounted, as a relative path; `None`: all of it.
    #[serde(default)]
    pub sub_path: Option<String>,
    /// Whether it can't be written to.
    #[serde(default)]
    pub read_only: bool,
}

impl Mount {
    /// All of `volume` at `path`, writable.
    pub fn new(volume: impl Into<String>, path: impl Into<String>) -> Self {
        Self { volume: volume.into(), path: path.into(), sub_path: None, read_only: false }
    }
}

/// As whom a container runs, and what it may do. `None` is the image's or the runtime's own choice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct SecurityContext {
    /// The numeric id of the user as whom it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<u32>,
    /// The numeric id of the group as which it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<u32>,
    /// The group that owns what is in volumes, which the program belongs to as well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs_group: Option<u32>,
    /// Further groups that the program belongs to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub supplemental_groups: Vec<u32>,
    /// Whether a start as user 0 is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_non_root: Option<bool>,
    /// Whether the image's files can't be written to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_root_filesystem: Option<bool>,
    /// Whether a program may gain more rights than the one that started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_privilege_escalation: Option<bool>,
    /// Capabilities that it gets besides the usual ones, such as `NET_BIND_SERVICE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add_capabilities: Vec<String>,
    /// Capabilities that are taken away; `ALL` takes all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drop_capabilities: Vec<String>,
    /// `RuntimeDefault`, `Unconfined` or `Localhost/` and the profile's path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp_profile: Option<String>,
}

impl SecurityContext {
    /// Whether it asks for nothing.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}
