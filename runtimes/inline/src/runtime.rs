//! The registry of functions and the start of their instances.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use async_trait::async_trait;
use parking_lot::RwLock;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Clock, Cx, Error, ErrorKind, Instance, Isolation, Request, Result,
    RevisionSpec, Runtime, Source, SpecErrors, StartRequest, SystemClock,
};
use tokio_util::task::TaskTracker;

use crate::{artifact::Function, instance::InlineInstance, reply::IntoReply};

/// Runs functions that the host registered by name.
#[derive(Debug)]
pub struct InlineRuntime {
    functions: RwLock<BTreeMap<String, Function>>,
    clock: Arc<dyn Clock>,
    reapers: TaskTracker,
}

impl Default for InlineRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl InlineRuntime {
    /// The name by which specs ask for it.
    pub const NAME: &'static str = "inline";

    /// A runtime without functions, on the system's clock.
    pub fn new() -> Self {
        let reapers = TaskTracker::new();
        reapers.close();
        Self { functions: RwLock::default(), clock: Arc::new(SystemClock), reapers }
    }

    /// The same with another clock for exit reports and log lines.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// The same with a further function; see [`InlineRuntime::register`].
    #[must_use]
    pub fn with<F, Fut>(self, name: impl Into<String>, function: F) -> Self
    where
        F: Fn(Request, Cx) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoReply,
    {
        self.register(name, function);
        self
    }

    /// Registers a function, also while the platform runs. One with the same name is replaced for revisions that
    /// are prepared from now on; those that were prepared before keep what they have.
    ///
    /// ```
    /// use sas_core::{Body, Response};
    /// let runtime = sas_runtime_inline::InlineRuntime::new();
    /// runtime.register("length", |request: sas_core::Request, _cx| async move {
    ///     let body = request.into_body().collect(1 << 20).await?;
    ///     Ok::<_, sas_core::BoxError>(Response::new(Body::from(body.len().to_string())))
    /// });
    /// ```
    pub fn register<F, Fut>(&self, name: impl Into<String>, function: F)
    where
        F: Fn(Request, Cx) -> Fut + Send + Sync + 'static,
        Fut: Future + Send + 'static,
        Fut::Output: IntoReply,
    {
        self.functions.write().insert(name.into(), Function::new(function));
    }

    fn function_of(&self, spec: &RevisionSpec) -> Result<Function, SpecErrors> {
        let mut errors = SpecErrors::default();
        let found = match &spec.source {
            Source::Function(name) => {
                let functions = self.functions.read();
                let found = functions.get(name).cloned();
                if found.is_none() {
                    let known: Vec<&str> = functions.keys().take(10).map(String::as_str).collect();
                    let known = if known.is_empty() { "there are none yet".into() } else { known.join(", ") };
                    errors.push(
                        "source.function",
                        name,
                        format!("register it with the inline runtime first; known functions: {known}"),
                    );
                }
                found
            }
            other => {
                let problem = "the inline runtime runs functions; name one, or use another runtime";
                errors.push("source", kind_of(other), problem);
                None
            }
        };
        for (field, given) in [("command", &spec.command), ("args", &spec.args)] {
            if !given.is_empty() {
                errors.push(field, given.join(" "), "leave it out: a closure has no command line");
            }
        }
        if let Some(dir) = &spec.working_dir {
            errors.push("working_dir", dir, "leave it out: a closure has no directory of its own");
        }
        if let Some(port) = spec.port {
            errors.push("port", port, "leave it out: a closure does not listen");
        }
        for (name, value) in &spec.options {
            errors.push(format!("options[{name}]"), value, "the inline runtime has no options; leave it out");
        }
        errors.into_result()?;
        // `found` is `None` only together with an error.
        found.ok_or_else(SpecErrors::default)
    }
}

fn kind_of(source: &Source) -> &'static str {
    match source {
        Source::Path(_) => "path",
        Source::Bytes { .. } => "bytes",
        Source::Image(_) => "image",
        _ => "another kind",
    }
}

#[async_trait]
impl Runtime for InlineRuntime {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(Isolation::None);
        capabilities.called = true;
        capabilities
    }

    fn accepts(&self, spec: &RevisionSpec) -> Result<(), SpecErrors> {
        let mut errors = spec.container_fields(Self::NAME);
        if let Err(function) = self.function_of(spec) {
            errors.0.extend(function.0);
        }
        errors.into_result()
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        let function = self.function_of(spec)?;
        Ok(Artifact::new(function, ArtifactInfo::default()))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.begin(&request)
    }

    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        Some(self.begin(request))
    }

    async fn quiesce(&self) {
        self.reapers.wait().await;
    }
}

impl InlineRuntime {
    fn begin(&self, request: &StartRequest) -> Result<Arc<dyn Instance>> {
        let Some(function) = request.deployed.artifact.downcast::<Function>() else {
            let message = "artifact: not one of the inline runtime; prepare the revision with it";
            return Err(Error::new(ErrorKind::InvalidSpec, "start", message));
        };
        let (clock, reapers) = (Arc::clone(&self.clock), self.reapers.clone());
        Ok(InlineInstance::start(request, function.clone(), clock, reapers))
    }
}
