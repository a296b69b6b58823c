//! The process runtime on systems that are not Linux: it builds, so that a workspace that names it does, and says what
//! it lacks. The tests compile this file on Linux too.

use std::sync::Arc;

use async_trait::async_trait;
use sas_core::{
    Artifact, Capabilities, Error, ErrorKind, Instance, Isolation, Result, RevisionSpec, Runtime,
    StartRequest, StemClass,
};

use crate::ProcessConfig;

/// Would run code packages as native processes of this host, which needs Linux: [`ProcessRuntime::new`] fails here.
#[derive(Debug)]
pub struct ProcessRuntime {
    /// None can be made.
    never: std::convert::Infallible,
}

fn unsupported(operation: &'static str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        operation,
        format!(
            "the process runtime needs Linux (pidfd, epoll, /proc and abstract sockets), and this is {}: run it in a \
             Linux machine or container, or register the inline or wasm runtime here",
            std::env::consts::OS
        ),
    )
}

impl ProcessRuntime {
    /// The name by which specs ask for it.
    pub const NAME: &'static str = "process";

    /// Fails on this system.
    ///
    /// # Errors
    /// `InvalidSpec` for a wrong configuration, as on Linux; else `Unsupported`, with what is missing.
    pub fn new(config: ProcessConfig) -> Result<Self> {
        config.validate()?;
        Err(unsupported("open"))
    }

    /// The class of the JVM stems from which apps without flags of their own come.
    ///
    /// # Errors
    /// `Unsupported`.
    pub async fn java_stem_class(&self) -> Result<StemClass> {
        match self.never {}
    }

    /// How many processes of instances live now.
    pub fn processes(&self) -> usize {
        match self.never {}
    }

    /// The process that ends the instances when the host dies.
    pub fn guardian_pid(&self) -> i32 {
        match self.never {}
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::Process)
    }

    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Err(unsupported("prepare"))
    }

    async fn start(&self, _: StartRequest) -> Result<Arc<dyn Instance>> {
        Err(unsupported("start"))
    }

    async fn quiesce(&self) {}
}
