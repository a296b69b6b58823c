//! What `prepare` makes of a revision.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::process::Resource;
use sas_core::{
    Artifact, ArtifactInfo, Error, ErrorKind, ProbeAction, Result, RevisionName, RevisionSpec, SpecErrors,
    StemClass, TenantKey,
};

use sas_runtime_os::{JailLevel, cgroup::Limits, jail::JailRequest};

use crate::{
    engine::Engine,
    home,
    jvm::{Manifest, archive, equal, jdk::Jdk},
    options::{self, Options, StemUse},
    package::{
        archive::{disk, refused},
        detect::{self, Launch},
        store::Package,
    },
    ready::Quickest,
    zygote::Zygote,
};

/// The variables that the platform sets; a spec may not.
const RESERVED: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];

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

/// The part of `prepare` that blocks on disk: checks the spec and unpacks the package.
fn unpack(engine: &Arc<Engine>, spec: &RevisionSpec) -> Result<ProcessArtifact> {
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
    let level = options.jail.unwrap_or(engine.config.jail.level);
    if level < engine.config.jail.level {
        return Err(refused(format!(
            "options.{}: {level}: this host gives at least {}; leave it out, or ask for more",
            options::JAIL,
            engine.config.jail.level
        )));
    }
    if level == JailLevel::Strict {
        engine.jails.all_of_it()?;
        if options.zygote {
            return Err(refused(format!(
                "options.{}: true: a zygote numbers processes for the host and can't be jailed strictly; leave it out",
                options::ZYGOTE
            )));
        }
    }
    let mut errors = SpecErrors::default();
    home::check_size(spec, &mut errors);
    errors.into_result()?;
    let package = engine.store.add(&spec.source)?;
    engine.jails.grant(package.dir()).map_err(|error| disk("give to instances", package.dir(), error))?;
    let launch = detect::launch(&package, spec, &engine.config)?;
    if launch.jar.is_none() {
        let java_only = [options::JAVA_OPTIONS, options::JAVA_ARCHIVE, options::JAVA_STEM];
        if let Some(name) = java_only.into_iter().find(|name| spec.options.contains_key(*name)) {
            return Err(refused(format!(
                "options.{name}: the package is not started as `java -jar`; leave the option out, or the command"
            )));
        }
    }
    let limits = Limits {
        cpu_millis: spec.resources.cpu_limit_millis,
        memory_bytes: spec.resources.memory_limit_bytes,
        processes: options.pids_max,
    };
    let mut ports: Vec<u16> = spec.port.into_iter().collect();
    for probe in [&spec.startup, &spec.readiness, &spec.liveness].into_iter().flatten() {
        if let ProbeAction::Tcp { port } | ProbeAction::Http { port, .. } | ProbeAction::Grpc { port, .. } =
            &probe.action
        {
            ports.extend(port);
        }
    }
    Ok(ProcessArtifact {
        level,
        ports,
        zygote: options.zygote.then(|| Zygote::new(engine)),
        program: launch.program.clone(),
        first_args: Vec::new(),
        package,
        launch,
        options,
        quickest: Quickest::default(),
        quickest_from_stem: Quickest::default(),
        limits,
        stem: None,
    })
}

/// Makes everything ready that a start needs.
pub(crate) async fn prepare(engine: &Arc<Engine>, spec: &RevisionSpec) -> Result<Artifact> {
    let mut artifact = {
        let (engine, spec) = (Arc::clone(engine), spec.clone());
        tokio::task::spawn_blocking(move || unpack(&engine, &spec)).await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "prepare", "the host shuts down").with_source(error)
        })??
    };
    let mut notes = artifact.launch.notes.clone();
    notes.extend(unenforced(engine, &artifact.limits));
    if let Some(jar) = artifact.launch.jar.clone() {
        java(engine, spec, &mut artifact, &jar, &mut notes).await?;
    }
    let info = ArtifactInfo {
        digest: artifact.package.digest().to_owned(),
        bytes: artifact.package.bytes(),
        stem: artifact.stem.as_ref().map(|plan| plan.class.clone()),
        notes,
    };
    Ok(Artifact::new(artifact, info))
}

/// The JVM's flags, the app's class archive and its class of stems. Only the first must succeed.
async fn java(
    engine: &Arc<Engine>,
    spec: &RevisionSpec,
    artifact: &mut ProcessArtifact,
    jar: &Path,
    notes: &mut Vec<String>,
) -> Result<()> {
    let config = &engine.config.java;
    let mut flags: Vec<String> = config.options.clone();
    flags.extend(artifact.options.java_options.iter().cloned());
    let sized = sizes(&artifact.limits, &flags);
    flags.extend(sized.iter().cloned());
    let jdk = match Jdk::find(&engine.config) {
        // A command with a java of its own is that one's business.
        Ok(jdk) if spec.command.is_empty() || is_same(&artifact.launch.program, &jdk.java) => Some(jdk),
        Ok(_) => None,
        Err(reason) => {
            notes.push(format!("starts cold, without class archive: {reason}"));
            None
        }
    };
    if let Some(jdk) = &jdk {
        match stem_plan(engine, spec, artifact, jar, jdk, &flags).await? {
            Ok(plan) => {
                if !sized.is_empty() {
                    notes.push(format!(
                        "its limits size the JVM ({}), so only stems of the class {} can become it",
                        sized.join(" "),
                        plan.class
                    ));
                }
                artifact.stem = Some(plan);
            }
            Err(reason) => notes.push(format!("starts cold: {reason}")),
        }
        if artifact.options.java_archive.unwrap_or(config.archive) {
            let made = archive::make(engine, jdk, artifact, jar, &flags, spec);
            match made.await {
                Ok(file) => flags.push(archive::use_flag(jdk, &file)),
                Err(error) => notes.push(format!("starts without class archive: {}", error.message)),
            }
        }
    }
    flags.push("-jar".into());
    flags.push(jar.display().to_string());
    artifact.first_args = flags;
    Ok(())
}

/// Flags that size a JVM by its limits, as it would size itself in a container; those that were said stay.
///
/// It looks for its control group as it boots, which is before it is in one.
fn sizes(limits: &Limits, said: &[String]) -> Vec<String> {
    let said =
        |prefixes: &[&str]| said.iter().any(|flag| prefixes.iter().any(|prefix| flag.starts_with(prefix)));
    let mut flags = Vec::new();
    if let Some(bytes) = limits.memory_bytes
        && !said(&["-Xmx", "-XX:MaxHeapSize=", "-XX:MaxRAM="])
    {
        flags.push(format!("-XX:MaxRAM={bytes}"));
    }
    if let Some(millis) = limits.cpu_millis
        && !said(&["-XX:ActiveProcessorCount="])
    {
        let cores = std::thread::available_parallelism().map_or(u32::MAX, |cores| cores.get() as u32);
        flags.push(format!("-XX:ActiveProcessorCount={}", millis.div_ceil(1000).clamp(1, cores)));
    }
    flags
}

fn is_same(program: &Path, java: &Path) -> bool {
    std::fs::canonicalize(program).is_ok_and(|program| program == java)
}

/// The stem's plan, or why the app starts cold.
async fn stem_plan(
    engine: &Arc<Engine>,
    spec: &RevisionSpec,
    artifact: &ProcessArtifact,
    jar: &Path,
    jdk: &Jdk,
    flags: &[String],
) -> Result<std::result::Result<StemPlan, String>> {
    let use_of = artifact.options.java_stem;
    let asked = [options::JAIL, options::EGRESS, options::DATA, options::DISK]
        .into_iter()
        .find(|name| spec.options.contains_key(*name));
    if artifact.level == JailLevel::Strict {
        return Ok(Err("strict: a stem's jail is made before it is known whose it will be".into()));
    }
    if let (Some(name), JailLevel::Basic) = (asked, artifact.level) {
        return Ok(Err(format!("{name}: a stem is jailed before it is known what it will serve")));
    }
    if !artifact.ports.is_empty() && artifact.level == JailLevel::Basic {
        return Ok(Err("port: a stem may listen only on the port that it was given when it booted".into()));
    }
    if use_of == StemUse::Never {
        return Ok(Err(format!("{} is never", options::JAVA_STEM)));
    }
    if artifact.options.listen_fd {
        return Ok(Err(format!("{} takes the descriptor by which a stem is spoken to", options::LISTEN_FD)));
    }
    let manifest = Manifest::read(jar)?;
    let Some(main_class) = manifest.main_class().map(str::to_owned) else {
        return Ok(Err("its manifest names no Main-Class".into()));
    };
    if use_of == StemUse::Auto {
        let (jar, manifest, spec) = (jar.to_path_buf(), manifest.clone(), spec.clone());
        let shared = engine.config.java.shared_jars.clone();
        let reason =
            tokio::task::spawn_blocking(move || equal::reason_against(&jar, &manifest, &spec, &shared)).await;
        if let Ok(Some(reason)) = reason {
            return Ok(Err(format!(
                "{reason} (to use a stem all the same, set {} to always)",
                options::JAVA_STEM
            )));
        }
    }
    let (boot, own): (Vec<String>, Vec<String>) =
        flags.iter().cloned().partition(|flag| equal::is_boot_flag(flag));
    let class = match engine.stems.class(engine, jdk, &boot).await {
        Ok(class) => class,
        Err(reason) => return Ok(Err(reason)),
    };
    let properties = own
        .iter()
        .filter_map(|flag| flag.strip_prefix("-D"))
        .map(|property| property.split_once('=').unwrap_or((property, "")))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let words = |name: &str| -> Vec<String> {
        manifest.get(name).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    Ok(Ok(StemPlan {
        class,
        jar: jar.to_path_buf(),
        main_class,
        properties,
        exports: words("Add-Exports"),
        opens: words("Add-Opens"),
    }))
}

/// Which limits this host does not enforce, or not for the instance as a whole, and why.
fn unenforced(engine: &Engine, limits: &Limits) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(reason) = engine.cgroups.missing() {
        if limits.cpu_millis.is_some() {
            notes.push(format!("resources.cpu_limit is not enforced: {reason}"));
        }
        if limits.memory_bytes.is_some() {
            notes.push(format!(
                "resources.memory_limit is enforced for the data of each process, not for the instance: {reason}"
            ));
        }
    }
    if let (Some(_), Some(reason)) = (limits.processes, engine.cgroups.missing_pids()) {
        notes.push(format!("options.{} is not enforced: {reason}", options::PIDS_MAX));
    }
    notes
}

impl ProcessArtifact {
    /// What is kept from an instance of it.
    pub(crate) fn jail(&self, engine: &Engine, tenant: Option<TenantKey>, port: u16) -> JailRequest {
        let mut jail = JailRequest::new(self.level, tenant);
        jail.egress = self.options.egress.clone().unwrap_or_else(|| engine.config.jail.egress.clone());
        jail.ports.clone_from(&self.ports);
        jail.ports.push(port);
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
        let root = engine.config.data.clone().unwrap_or_else(|| engine.store.root().join("data"));
        let dir = root.join(name.namespace()).join(name.service());
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

#[cfg(test)]
mod tests {
    use super::{Limits, sizes};

    #[test]
    fn a_jvm_is_sized_by_its_limits_unless_it_was_told_its_size() {
        let limits = |cpu, memory| Limits { cpu_millis: cpu, memory_bytes: memory, processes: None };
        for (limits, said, expected) in [
            (limits(None, None), "", &[][..]),
            (limits(Some(100), None), "", &["-XX:ActiveProcessorCount=1"]),
            (limits(None, Some(64 << 20)), "-XX:+UseSerialGC", &["-XX:MaxRAM=67108864"]),
            (limits(None, Some(64 << 20)), "-XX:MaxRAMPercentage=75", &["-XX:MaxRAM=67108864"]),
            (limits(None, Some(64 << 20)), "-Xmx32m", &[]),
            (limits(Some(500), None), "-XX:ActiveProcessorCount=2", &[]),
        ] {
            let said: Vec<String> = said.split_whitespace().map(str::to_owned).collect();
            assert_eq!(sizes(&limits, &said), expected, "{said:?}");
        }
    }
}
