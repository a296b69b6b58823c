//! A package and what its instances are given: what `prepare` makes and starts read.

use std::{path::PathBuf, sync::Arc};

use rustix::process::Resource;
use sas_core::{Result, RevisionName, StemClass, TenantKey};

use sas_runtime_os::{JailLevel, cgroup::Limits, jail::JailRequest};

use crate::{
    engine::Engine,
    options::Options,
    package::{detect::Launch, error::disk, store::Package},
    ready::Quickest,
    zygote::Zygote,
};

/// A package and how it is started.
#[derive(Debug)]
pub(crate) struct ProcessArtifact {
    pub(crate) package: Arc<Package>,
    pub(crate) launch: Launch,
    pub(crate) options: Options,
    pub(crate) quickest: Quickest,
    pub(crate) quickest_from_stem: Quickest,
    pub(crate) limits: Limits,
    pub(crate) level: JailLevel,
    /// What it listens on beside the port that it is given.
    pub(crate) ports: Vec<u16>,
    /// Program and first arguments, before variables are expanded.
    pub(crate) program: PathBuf,
    pub(crate) first_args: Vec<String>,
    pub(crate) stem: Option<StemPlan>,
    pub(crate) zygote: Option<Zygote>,
}

/// What a stem needs to know to become this app.
#[derive(Clone, Debug)]
pub(crate) struct StemPlan {
    pub(crate) class: StemClass,
    pub(crate) jar: PathBuf,
    pub(crate) main_class: String,
    pub(crate) properties: Vec<(String, String)>,
    pub(crate) exports: Vec<String>,
    pub(crate) opens: Vec<String>,
}

impl ProcessArtifact {
    /// What is kept from an instance of it.
    pub(crate) fn jail(&self, engine: &Engine, tenant: Option<TenantKey>, port: u16) -> JailRequest {
        let mut jail = JailRequest::new(self.level, tenant);
        jail.egress = self.options.egress.clone().unwrap_or_else(|| engine.config.jail.egress.clone());
        jail.ports.clone_from(&self.ports);
        jail.ports.push(port);
        // Only what no other instance is given: a port that the manifest names may be listened on by somebody else.
        jail.own_port = engine.config.ports.contains(&port).then_some(port);
        jail.package = Some(self.package.dir().to_path_buf());
        jail.readable = vec![self.package.archive_dir()];
        jail.readable.extend(self.launch.path_prefix.iter().cloned());
        // Whatever the program is a link to.
        let program = std::fs::canonicalize(&self.program).ok();
        let installed = program.as_deref().and_then(|program| match program.parent() {
            Some(dir) if dir.ends_with("bin") => crate::engine::prefix(dir),
            _ => Some(program.to_path_buf()),
        });
        jail.readable.extend(installed);
        jail.readable.retain(|path| !path.starts_with(self.package.dir()));
        jail.namespaces = self.zygote.is_none();
        jail.disk_bytes = self.options.disk_bytes;
        jail
    }

    /// What an instance of it is held to: what it asks for, else the ceilings of the host.
    pub(crate) fn ceilings(&self, engine: &Engine) -> Limits {
        Limits {
            memory_bytes: self.limits.memory_bytes.or(engine.ceilings.memory_bytes),
            processes: self.limits.processes.or(engine.ceilings.processes),
            cpu_millis: self.limits.cpu_millis,
        }
    }

    /// Bytes that an instance of it may write to its own directories.
    pub(crate) fn disk_bytes(&self, engine: &Engine) -> u64 {
        self.options.disk_bytes.unwrap_or(engine.config.jail.disk_bytes)
    }

    /// The directory of its service that stays, when it asks for one.
    pub(crate) fn data(&self, engine: &Engine, name: &RevisionName) -> Result<Option<PathBuf>> {
        use std::os::unix::fs::DirBuilderExt as _;
        if !self.options.data {
            return Ok(None);
        }
        let dir = engine.data_root().join(name.namespace()).join(name.service());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|error| disk("create", &dir, error))?;
        Ok(Some(dir))
    }

    /// The limits of each process. A group bounds memory better: it counts what is used, and of all together.
    pub(crate) fn rlimits(&self, engine: &Engine) -> Vec<(Resource, u64)> {
        let mut rlimits = self.options.rlimits.clone();
        if let (Some(bytes), true) = (self.ceilings(engine).memory_bytes, engine.cgroups.missing().is_some())
            && !rlimits.iter().any(|(said, _)| *said == Resource::Data)
        {
            rlimits.push((Resource::Data, bytes));
        }
        if self.level != JailLevel::None {
            let jail = &engine.config.jail;
            let most = rustix::process::getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
            let mut ceiling = |resource, limit| {
                if !rlimits.iter().any(|(said, _)| *said == resource) {
                    rlimits.push((resource, limit));
                }
            };
            ceiling(Resource::Nofile, jail.open_files.min(most));
            ceiling(Resource::Core, 0);
            if engine.jails.has_namespaces() && self.zygote.is_none() {
                ceiling(Resource::Nproc, jail.processes);
                if self.options.data {
                    // The look at what its directory holds comes every two seconds only.
                    ceiling(Resource::Fsize, jail.data_bytes.max(self.disk_bytes(engine)));
                }
            } else {
                ceiling(Resource::Fsize, self.disk_bytes(engine));
            }
        }
        rlimits
    }

    /// Program and arguments, before variables are expanded.
    pub(crate) fn command(&self) -> (PathBuf, Vec<String>) {
        let mut args = self.first_args.clone();
        args.extend(self.launch.args.iter().cloned());
        (self.program.clone(), args)
    }
}
