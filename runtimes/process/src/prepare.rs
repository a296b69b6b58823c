//! What `prepare` does: checks a revision, unpacks its package, and makes ready what its starts need.

use std::{path::Path, sync::Arc};

use rustix::process::Resource;
use sas_core::{Artifact, ArtifactInfo, Error, ErrorKind, ProbeAction, Result, RevisionSpec, SpecErrors};

use sas_runtime_os::{JailLevel, cgroup::Limits};

use crate::{
    artifact::{ProcessArtifact, StemPlan},
    engine::Engine,
    home,
    jvm::{Manifest, archive, equal, jdk::Jdk, stem::Stems},
    options::{self, Options, StemUse},
    package::{
        detect,
        error::{disk, refused},
    },
    ready::Quickest,
    zygote::Zygote,
};

/// The variables that the platform sets; a spec may not.
const RESERVED: [&str; 4] = ["PORT", "K_SERVICE", "K_CONFIGURATION", "K_REVISION"];

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
    if options.zygote && !engine.config.zygotes {
        return Err(refused(format!(
            "options.{}: true: this host allows no zygotes, which run without namespaces as the host's user; leave it \
             out, or have the host's operator set ProcessConfig::zygotes",
            options::ZYGOTE
        )));
    }
    let mut errors = SpecErrors::default();
    bounded(engine, spec, &options, &mut errors);
    home::check_size(spec, &mut errors);
    errors.into_result()?;
    let package = engine.store.add(&spec.source)?;
    engine.jails.grant(package.dir()).map_err(|error| disk("give to instances", package.dir(), error))?;
    let launch = detect::launch(&package, spec, &engine.config)?;
    if level != JailLevel::None && !is_given(engine, package.dir(), &launch.program) {
        return Err(refused(format!(
            "command: {:?}: neither in the package nor in a directory that this host shows to instances; pack it, or have \
             the host's operator add its directory to jail.readable",
            launch.program
        )));
    }
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

/// Holds what a manifest asks for to what the host allows.
fn bounded(engine: &Engine, spec: &RevisionSpec, options: &Options, errors: &mut SpecErrors) {
    let jail = &engine.config.jail;
    if let Some(asked) = &options.egress {
        let field = format!("options.{}", options::EGRESS);
        let value = &spec.options[options::EGRESS];
        if let Err(why) = jail.grant(asked) {
            errors.push(field, value, why);
        }
    }
    let own = spec.port.map(|port| ("port".to_owned(), port));
    let probes = [("startup", &spec.startup), ("readiness", &spec.readiness), ("liveness", &spec.liveness)];
    let probes = probes.into_iter().filter_map(|(name, probe)| match &probe.as_ref()?.action {
        ProbeAction::Tcp { port } | ProbeAction::Http { port, .. } | ProbeAction::Grpc { port, .. } => {
            port.map(|port| (format!("{name}.port"), port))
        }
        _ => None,
    });
    for (field, port) in own.into_iter().chain(probes) {
        if jail.closed_ports.contains(&port) {
            errors.push(field, port.to_string(), "another port: the host listens on this one itself");
        }
    }
    for (name, asked, most, setting) in [
        (options::DISK, options.disk_bytes, jail.max_disk_bytes, "jail.max_disk_bytes"),
        (options::PIDS_MAX, options.pids_max, jail.max_instance_processes, "jail.max_instance_processes"),
    ] {
        if let Some(asked) = asked.filter(|asked| *asked > most) {
            errors.push(
                format!("options.{name}"),
                asked.to_string(),
                format!("at most {most}, the host's {setting}"),
            );
        }
    }
    for (resource, asked) in &options.rlimits {
        let (most, setting) = most_of(engine, spec, *resource);
        if *asked > most {
            errors.push(
                format!("options.{}", options::rlimit_name(*resource)),
                asked.to_string(),
                format!("at most {most}, {setting}; leave it out for the host's own"),
            );
        }
    }
}

/// The most that a service may set a limit of its processes to, and whose word that is.
fn most_of(engine: &Engine, spec: &RevisionSpec, resource: Resource) -> (u64, &'static str) {
    let jail = &engine.config.jail;
    let own = (
        rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX),
        "the hard limit of the host itself",
    );
    let other = match resource {
        // With more a process could have what its instance may not.
        Resource::Data => spec.resources.memory_limit_bytes.map_or_else(
            || {
                (
                    engine.ceilings.memory_bytes.unwrap_or(u64::MAX),
                    "the memory of an instance without a limit of its own",
                )
            },
            |bytes| (bytes, "resources.limits.memory"),
        ),
        Resource::Fsize | Resource::Core => (jail.max_disk_bytes, "the host's jail.max_disk_bytes"),
        _ => return own,
    };
    if other.0 < own.0 { other } else { own }
}

/// Whether instances may read a program: it is the package's, the system's, or in a directory that the host configured,
/// where a link is the host's word too.
fn is_given(engine: &Engine, package: &Path, program: &Path) -> bool {
    let in_package = std::fs::canonicalize(program)
        .is_ok_and(|real| std::fs::canonicalize(package).is_ok_and(|package| real.starts_with(package)));
    in_package
        || engine.jails.is_shared(program)
        || program.parent().is_some_and(|dir| engine.jails.is_shared(dir))
}

/// Makes everything ready that a start needs.
pub(crate) async fn prepare(engine: &Arc<Engine>, stems: &Stems, spec: &RevisionSpec) -> Result<Artifact> {
    let mut artifact = {
        let (engine, spec) = (Arc::clone(engine), spec.clone());
        tokio::task::spawn_blocking(move || unpack(&engine, &spec)).await.map_err(|error| {
            Error::new(ErrorKind::Unavailable, "prepare", "the host shuts down").with_source(error)
        })??
    };
    let mut notes = artifact.launch.notes.clone();
    notes.extend(unenforced(engine, &artifact.limits));
    notes.extend(reachable(engine, &artifact, spec.port));
    if let Some(jar) = artifact.launch.jar.clone() {
        java(engine, stems, spec, &mut artifact, &jar, &mut notes).await?;
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
    stems: &Stems,
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
        match stem_plan(engine, stems, spec, artifact, jar, jdk, &flags).await? {
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
    stems: &Stems,
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
    let class = match stems.class(engine, jdk, &boot).await {
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

/// What reaches the instances of an artifact beside the gateway.
fn reachable(engine: &Engine, artifact: &ProcessArtifact, port: Option<u16>) -> Option<String> {
    let port = port.filter(|port| engine.config.jail.reachable_ports().contains(port))?;
    let own = engine.jails.has_own_network(&artifact.jail(engine, None, 0));
    (!own && artifact.level != JailLevel::None).then(|| {
        format!(
            "port {port} is one that instances of this host may connect to, so others reach it past the gateway; leave \
             `port` out, or give it a network of its own (options.{}: strict)",
            options::JAIL
        )
    })
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
