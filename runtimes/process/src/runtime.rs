//! The runtime: prepare, start, quiesce.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use sas_core::{
    Artifact, Capabilities, Error, ErrorKind, Instance, Isolation, Result, RevisionSpec, Runtime, Source,
    SpecErrors, StartRequest, Stem, StemClass, StemRequest,
};

use sas_runtime_os::{JailLevel, jail::JailReport};

use crate::{
    artifact::ProcessArtifact,
    config::ProcessConfig,
    engine::Engine,
    export::PackageStart,
    home,
    jvm::{jdk::Jdk, stem::Stems},
    launch,
    package::store::Store,
    prepare,
};

/// Runs code packages as native processes of this host. See the crate's documentation.
///
/// It belongs to the tokio runtime in which it is first used. When it is dropped, all its instances are killed.
#[derive(Debug)]
pub struct ProcessRuntime {
    engine: Arc<Engine>,
    stems: Stems,
}

impl ProcessRuntime {
    /// The name by which specs ask for it.
    pub const NAME: &'static str = "process";

    /// Opens the package store, ends what a dead host has left in it, and starts the guardian.
    ///
    /// # Errors
    /// `InvalidSpec` for a wrong configuration; `Unavailable` or `Conflict` when the store can't be used.
    pub fn new(config: ProcessConfig) -> Result<Self> {
        config.validate()?;
        // Its instances get limits of their own.
        sas_runtime_os::limits::raise_open_files();
        crate::metrics::describe(&config.recorder);
        let store = Store::open(&config.store, config.limits, config.keep_packages, &config.path)?;
        Ok(Self { engine: Engine::new(Arc::new(config), store)?, stems: Stems::default() })
    }

    /// The class of the JVM stems from which apps without flags of their own come. Writes the jar of the stem's Java
    /// side if that was not done yet.
    ///
    /// # Errors
    /// `Unsupported`, with what is missing: a JRE or JDK of at least 17.
    pub async fn java_stem_class(&self) -> Result<StemClass> {
        self.engine.ensure_running()?;
        let unsupported = |reason: String| Error::new(ErrorKind::Unsupported, "java_stem_class", reason);
        let jdk = Jdk::find(&self.engine.config).map_err(unsupported)?;
        let options = self.engine.config.java.options.clone();
        self.stems.class(&self.engine, &jdk, &options).await.map_err(unsupported)
    }

    /// Unpacks the package of a spec and finds how it starts when its files lie at `at`, an absolute path in an image: for
    /// who takes it elsewhere.
    ///
    /// # Errors
    /// Those of `prepare`: a package that is none, or in which nothing to start is found.
    pub async fn find_start(&self, spec: &RevisionSpec, at: &Path) -> Result<PackageStart> {
        self.engine.ensure_running()?;
        let (engine, spec, at) = (Arc::clone(&self.engine), spec.clone(), at.to_path_buf());
        let found = tokio::task::spawn_blocking(move || {
            let package = engine.store.add(&spec.source)?;
            crate::export::start(package, &spec, &engine.config, &at)
        });
        found.await.map_err(|error| {
            Error::new(ErrorKind::Unexpected, "find_start", format!("a blocking task: {error}"))
        })?
    }

    /// What this machine gives of the jail, and why the rest is missing.
    pub fn jail_report(&self) -> &JailReport {
        self.engine.jails.report()
    }

    /// How many processes of instances live now, on their way up and down included.
    pub fn processes(&self) -> usize {
        self.engine.count()
    }

    /// The process that ends the instances when the host dies.
    pub fn guardian_pid(&self) -> i32 {
        self.engine.guardian.pid()
    }
}

impl Drop for ProcessRuntime {
    fn drop(&mut self) {
        self.engine.close();
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(Isolation::Process);
        capabilities.suspend = true;
        capabilities.usage = true;
        capabilities.exec = true;
        capabilities.cpu_bound_start = true;
        capabilities.stems =
            self.engine.config.java.stems && self.engine.config.jail.level != JailLevel::Strict;
        // Without groups memory is bounded per process by an rlimit, CPU not at all: less than the flag promises.
        capabilities.limits = self.engine.cgroups.missing().is_none();
        capabilities
    }

    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        let mut errors = spec.container_fields(Self::NAME);
        match &spec.source {
            Source::Image(_) => {
                let problem = "an image needs a container runtime; give a package instead";
                errors.push("source.image", &spec.source, problem);
            }
            Source::Path(_) | Source::Bytes { .. } => {
                if spec.runtime.is_empty() && spec.source.has_extension(&["wasm", "wat"]) {
                    let problem =
                        "a WebAssembly module is no program of this host; it needs the wasm runtime";
                    errors.push("source", &spec.source, problem);
                }
            }
            other => errors.push("source", other, "the process runtime takes code packages"),
        }
        home::check_size(spec, &mut errors);
        errors.into_result()
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.engine.ensure_running()?;
        prepare::prepare(&self.engine, &self.stems, spec).await
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.engine.ensure_running()?;
        let deployed = Arc::clone(&request.deployed);
        let artifact = deployed.artifact.downcast::<ProcessArtifact>().ok_or_else(|| {
            Error::new(
                ErrorKind::InvalidSpec,
                "start",
                "artifact: it was prepared by another runtime; prepare it with this one",
            )
        })?;
        launch::start(&self.engine, artifact, request).await
    }

    async fn quiesce(&self) {
        self.engine.quiesce().await;
    }

    async fn start_stem(&self, request: StemRequest) -> Result<Box<dyn Stem>> {
        if !self.capabilities().stems {
            return Err(Error::unsupported("start_stem"));
        }
        self.engine.ensure_running()?;
        self.stems.start(&self.engine, request).await
    }
}
