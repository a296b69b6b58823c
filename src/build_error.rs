//! Why a platform could not be built.

use std::fmt;

use sas_core::{Error, SpecErrors};

/// The part of a platform that could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BuildPart {
    /// The pool.
    Pool,
    /// The engines, of [`PlatformBuilder::engine`](crate::PlatformBuilder::engine).
    Engines,
    /// The scaling driver.
    Driver,
    /// The quota of a tenant, of [`PlatformBuilder::tenant_quota`](crate::PlatformBuilder::tenant_quota).
    TenantQuota,
    /// The state directory, of [`PlatformBuilder::state_dir`](crate::PlatformBuilder::state_dir).
    StateDirectory,
    /// The admin token, of [`PlatformBuilder::admin_token`](crate::PlatformBuilder::admin_token) or [`PlatformBuilder::admin_token_file`](crate::PlatformBuilder::admin_token_file).
    AdminToken,
    /// The listener for requests, of [`PlatformBuilder::listen`](crate::PlatformBuilder::listen).
    Ingress,
    /// The listener of the admin API, of [`PlatformBuilder::admin`](crate::PlatformBuilder::admin) or `admin_socket`.
    Admin,
    /// The directory of certificates, of `PlatformBuilder::certificates`.
    Certificates,
    /// The store, when what it holds was to be brought back.
    Recovery,
    /// The meter, or an export of usage, of [`PlatformBuilder::usage_export`](crate::PlatformBuilder::usage_export).
    Usage,
    /// The file of [`PlatformBuilder::log_file`](crate::PlatformBuilder::log_file).
    LogFile,
    /// The hosts that share the store, of [`PlatformBuilder::cluster`](crate::PlatformBuilder::cluster).
    Cluster,
    /// The events of the platform's life, of [`PlatformBuilder::lifecycle_events_to`](crate::PlatformBuilder::lifecycle_events_to).
    Lifecycle,
    /// The exporter of traces, metrics and logs, of `PlatformBuilder::otel`.
    Otel,
}

impl fmt::Display for BuildPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pool => "pool",
            Self::Engines => "engines",
            Self::Driver => "driver",
            Self::TenantQuota => "tenant quota",
            Self::StateDirectory => "state directory",
            Self::AdminToken => "admin token",
            Self::Ingress => "ingress",
            Self::Admin => "admin",
            Self::Certificates => "certificates",
            Self::Recovery => "recovery",
            Self::Usage => "usage",
            Self::LogFile => "log file",
            Self::Cluster => "cluster",
            Self::Lifecycle => "lifecycle events",
            Self::Otel => "otel",
        })
    }
}

/// Why a platform could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A part's configuration has mistakes, each with its field.
    #[error("{part}: {errors}")]
    Config {
        /// Which part.
        part: BuildPart,
        /// What is wrong.
        #[source]
        errors: SpecErrors,
    },
    /// A part refused to start.
    #[error("{part}: {error}")]
    Part {
        /// Which part.
        part: BuildPart,
        /// What went wrong, as the part says it.
        #[source]
        error: Error,
    },
}
