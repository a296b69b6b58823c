//! What `prepare` makes of a revision.

use std::{path::PathBuf, sync::Arc};

use sas_core::{Artifact, ArtifactInfo, Result, RevisionSpec, StemClass};

use crate::{
    engine::Engine,
    options::Options,
    package::{
        archive::refused,
        detect::{self, Launch},
        store::Package,
    },
    ready::Readiness,
};

/// The variables that the platform sets; a spec may not.
const RESERVED: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];

/// A package and how it is started.
#[derive(Debug)]
pub(crate) struct ProcessArtifact {
    pub(crate) package: Arc<Package>,
    pub(crate) launch: Launch,
    pub(crate) options: Options,
    pub(crate) readiness: Readiness,
    pub(crate) memory_limit: Option<u64>,
}

/// Checks a spec and unpacks its package. Blocks on disk.
pub(crate) fn prepare(engine: &Arc<Engine>, spec: &RevisionSpec) -> Result<Artifact> {
    spec.validate()?;
    let options = Options::parse(&spec.options)?;
    for name in RESERVED {
        if spec.env.contains_key(name) {
            return Err(refused(format!(
                "env.{name}: the platform sets this variable itself; choose another name (a port that the program \
                 insists on goes into `port`)"
            )));
        }
    }
    let readiness = Readiness::of(spec.readiness.as_ref())?;
    let package = engine.store.add(&spec.source)?;
    let launch = detect::launch(&package, spec, &engine.config)?;
    let mut notes = Vec::new();
    if spec.resources.cpu_limit_millis.is_some() {
        notes.push(
            "resources.cpu_limit is not enforced: the process runtime shares the host's cores; use a container \
             runtime for limits of CPU"
                .to_owned(),
        );
    }
    let stem: Option<StemClass> = None;
    let info = ArtifactInfo { digest: package.digest().to_owned(), bytes: package.bytes(), stem, notes };
    let content = ProcessArtifact {
        package,
        launch,
        options,
        readiness,
        memory_limit: spec.resources.memory_limit_bytes,
    };
    Ok(Artifact::new(content, info))
}

impl ProcessArtifact {
    /// Program and arguments, before variables are expanded.
    pub(crate) fn command(&self, engine: &Engine) -> (PathBuf, Vec<String>) {
        let launch = &self.launch;
        let Some(jar) = &launch.jar else { return (launch.program.clone(), launch.args.clone()) };
        let mut args: Vec<String> = engine.config.java.options.clone();
        args.extend(self.options.java_options.iter().cloned());
        args.push("-jar".into());
        args.push(jar.display().to_string());
        args.extend(launch.args.iter().cloned());
        (launch.program.clone(), args)
    }
}
