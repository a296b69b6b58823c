#![forbid(unsafe_code)]
#![cfg_attr(feature = "inline", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "inline"),
    doc = "The facade of the `sas` serverless SDK; the README shows how to use it."
)]

mod access;
mod backlog;
mod build_error;
mod builder;
#[cfg(feature = "tls")]
mod certificates;
mod engines;
mod lifecycle;
mod machine;
mod membership;
mod own_store;
mod platform;
mod preset;
mod requests;
#[cfg(feature = "redb")]
mod restore;
mod schedules;
#[cfg(feature = "workflow")]
mod workflows;

pub use build_error::{BuildError, BuildPart};
pub use builder::PlatformBuilder;
pub use machine::Machine;
pub use membership::ClusterOptions;
pub use own_store::{open_packages, open_store};
pub use platform::{Platform, ShutdownReport};
pub use preset::{Preset, UnknownPreset};
#[cfg(feature = "redb")]
pub use restore::restore;
#[cfg(feature = "workflow")]
pub use workflows::StepConfig;

/// The crates whose types stand in the API, in the versions that it uses.
pub use {async_trait::async_trait, bytes, http};

pub use sas_autoscale as autoscale;
pub use sas_cluster as cluster;
#[cfg(feature = "console")]
pub use sas_console as console;
pub use sas_control as control;
pub use sas_core as core;
pub use sas_knative as knative;
#[cfg(feature = "otel")]
pub use sas_otel as otel;
pub use sas_pool as pool;
pub use sas_router as router;
#[cfg(all(feature = "container", target_os = "linux"))]
pub use sas_runtime_container as container;
#[cfg(feature = "inline")]
pub use sas_runtime_inline as inline;
#[cfg(feature = "kubernetes")]
pub use sas_runtime_kubernetes as kubernetes;
#[cfg(feature = "process")]
pub use sas_runtime_process as process;
#[cfg(feature = "wasm")]
pub use sas_runtime_wasm as wasm;
pub use sas_trigger as trigger;
#[cfg(feature = "workflow")]
pub use sas_workflow as workflow;

/// What most programs need.
pub mod prelude {
    pub use crate::{Platform, PlatformBuilder, Preset, ShutdownReport};
    pub use sas_core::{
        Body, Cx, EngineKind, EngineSpec, Error, ErrorKind, Fidelity, Handler, Invoker, Purpose, Quota,
        Request, RequestId, Response, RevisionSpec, Source, Target, TenantKey, TenantQuota,
    };
    pub use sas_knative::manifest::ServiceManifest;
    #[cfg(all(feature = "container", target_os = "linux"))]
    pub use sas_runtime_container::{ContainerConfig, ContainerRuntime};
    #[cfg(feature = "inline")]
    pub use sas_runtime_inline::InlineRuntime;
    #[cfg(feature = "kubernetes")]
    pub use sas_runtime_kubernetes::{Access, KubernetesConfig, KubernetesRuntime, PodOverlay};
    #[cfg(feature = "process")]
    pub use sas_runtime_process::{ProcessConfig, ProcessRuntime};
    #[cfg(feature = "wasm")]
    pub use sas_runtime_wasm::{WasmConfig, WasmRuntime};
}

/// The code in the guides is compiled and run.
#[cfg(all(doctest, feature = "inline"))]
#[doc = include_str!("../docs/day-two.md")]
struct Guides;
