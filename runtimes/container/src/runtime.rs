//! The runtime: accepts, pin, prepare, start, quiesce.

use std::sync::Arc;

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Companion, Error, ErrorKind, Instance, Isolation, Mount,
    ProbeAction, Result, RevisionSpec, Runtime, SecurityContext, Source, SpecErrors, StartRequest, TenantKey,
    Volume, VolumeSource,
};
use tokio::time::Instant;

use crate::{
    artifact::ContainerArtifact,
    config::{ContainerConfig, Network},
    engine::Engine,
    images::Image,
    name::ImageName,
    spec::capability,
    start,
};

/// Runs OCI images as containers of this host. See the crate's documentation.
///
/// It belongs to the tokio runtime in which it is first used. When it is dropped, all its containers are killed.
#[derive(Debug)]
pub struct ContainerRuntime {
    engine: Arc<Engine>,
}

impl ContainerRuntime {
    /// The name by which specs ask for it.
    pub const NAME: &'static str = "container";

    /// Finds a program that runs containers, opens the image store, ends what a dead host has left in it, and starts
    /// the guardian.
    ///
    /// # Errors
    /// `InvalidSpec` for a wrong configuration; `Unsupported`, with the remedy, where there is no such program, no root
    /// or no right to make namespaces; `Unavailable` or `Conflict` when the store can't be used.
    pub fn new(config: ContainerConfig) -> Result<Self> {
        Engine::open(config).map(|engine| Self { engine })
    }

    /// The program that runs containers, as it calls itself, such as `crun version 1.8.1`.
    pub fn program(&self) -> &str {
        &self.engine.program.version
    }

    /// Why the layers of an image are copied for each instance; `None`: they are stacked by overlayfs.
    pub fn no_overlay(&self) -> Option<&str> {
        self.engine.no_overlay.as_deref()
    }

    /// How many containers live now, on their way up and down included.
    pub fn containers(&self) -> usize {
        self.engine.containers.living()
    }

    /// The process that ends the containers when the host dies.
    pub fn guardian_pid(&self) -> i32 {
        self.engine.guardian.pid()
    }

    /// Removes layers that nobody uses until what is left takes at most `most` bytes. Returns how many bytes went.
    ///
    /// # Errors
    /// `Unexpected` when the work could not be done at all.
    pub async fn collect(&self, most: u64) -> Result<u64> {
        let store = Arc::clone(&self.engine.store);
        crate::images::blocking(move || Ok(store.collect(most, 0))).await
    }

    async fn bring(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<Artifact> {
        self.engine.ensure_running()?;
        let began = Instant::now();
        let Source::Image(name) = &spec.source else {
            let what = format!("source: {:?}: the container runtime takes images", spec.source.to_string());
            return Err(Error::new(ErrorKind::InvalidSpec, "prepare", what));
        };
        self.accepts(spec)?;
        let none = sas_core::ContainerSpec::default();
        let asked = spec.container.as_deref().unwrap_or(&none);
        let images = &self.engine.images;
        let main = images.bring(name, &asked.pull_secrets, tenant).await?;
        let (mut init, mut sidecars) = (Vec::new(), Vec::new());
        for companion in &asked.init {
            init.push(images.bring(&companion.image, &asked.pull_secrets, tenant).await?);
        }
        for companion in &asked.sidecars {
            sidecars.push(images.bring(&companion.image, &asked.pull_secrets, tenant).await?);
        }
        check_program(&main, &spec.command, &spec.args, "command")?;
        let mut notes = main.notes.clone();
        if let Some(why) = &self.engine.no_overlay {
            notes.push(format!(
                "its files are copied for each instance, since overlayfs can't be used: {why}"
            ));
        }
        if let Some(why) = self.engine.groups.missing() {
            notes.push(format!("limits of CPU, memory and processes are not enforced: {why}"));
        }
        let info = ArtifactInfo {
            digest: main.digest.to_string(),
            bytes: main.bytes + init.iter().chain(&sidecars).map(|image| image.bytes).sum::<u64>(),
            stem: None,
            notes,
        };
        self.engine.metrics.prepare.record(began.elapsed().as_secs_f64());
        Ok(Artifact::new(ContainerArtifact { main, init, sidecars }, info))
    }
}

/// An image without a program can never run unless the spec names one.
fn check_program(image: &Image, command: &[String], args: &[String], field: &str) -> Result<()> {
    let config = &image.config;
    if command.is_empty() && config.entrypoint.is_empty() && config.cmd.is_empty() && args.is_empty() {
        let mut errors = SpecErrors::default();
        let problem = "the image names no program to start (no ENTRYPOINT and no CMD): give one";
        errors.push(field, &image.name, problem);
        return Err(errors.into());
    }
    Ok(())
}

impl Drop for ContainerRuntime {
    fn drop(&mut self) {
        self.engine.close();
    }
}

/// In the host's network nobody is given, and nobody has this host ask, a port that is closed.
fn check_ports(config: &ContainerConfig, spec: &RevisionSpec, errors: &mut SpecErrors) {
    let closed = config.closed_ports.as_deref().unwrap_or_default();
    if config.network != Network::Host || closed.is_empty() {
        return;
    }
    let own = spec.container.iter().flat_map(|asked| &asked.sidecars);
    let probes = [("startup", &spec.startup), ("readiness", &spec.readiness), ("liveness", &spec.liveness)]
        .map(|(field, probe)| (format!("{field}.port"), probe));
    let beside = own.enumerate().flat_map(|(at, one)| {
        [("startup", &one.startup), ("readiness", &one.readiness), ("liveness", &one.liveness)]
            .map(|(field, probe)| (format!("container.sidecars[{at}].{field}.port"), probe))
    });
    let asked = probes.into_iter().chain(beside).filter_map(|(field, probe)| {
        let port = match &probe.as_ref()?.action {
            ProbeAction::Http { port, .. } | ProbeAction::Tcp { port } | ProbeAction::Grpc { port, .. } => {
                *port
            }
            _ => None,
        };
        Some((field, port?))
    });
    for (field, port) in spec.port.map(|port| ("port".to_owned(), port)).into_iter().chain(asked) {
        if closed.contains(&port) {
            errors.push(field, port, "another port: the host listens on this one itself");
        }
    }
}

/// What is asked of one container of an instance.
struct Asked<'a> {
    /// The field's prefix.
    at: String,
    mounts: &'a [Mount],
    security: &'a SecurityContext,
    working_dir: Option<&'a str>,
}

fn check(config: &ContainerConfig, asked: &Asked<'_>, volumes: &[Volume], errors: &mut SpecErrors) {
    let at = |field: &str| format!("{}{field}", asked.at);
    if let Some(dir) = asked.working_dir
        && !dir.starts_with('/')
    {
        errors.push(at("working_dir"), dir, "an absolute path in the image");
    }
    for (number, mount) in asked.mounts.iter().enumerate() {
        let field = at(&format!("mounts[{number}]"));
        if !volumes.iter().any(|volume| volume.name == mount.volume) {
            errors.push(&field, &mount.volume, "no volume of that name is declared");
        }
        let clean = mount.path.starts_with('/')
            && mount.path.len() > 1
            && !mount.path.split('/').any(|part| part == "..");
        let taken = ["/proc", "/sys", "/dev"].iter().any(|own| {
            mount.path.strip_prefix(own).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if !clean || (taken && mount.path != "/dev/shm") {
            errors.push(&field, &mount.path, "an absolute path without .., outside of /proc, /sys and /dev");
        }
        if mount
            .sub_path
            .as_ref()
            .is_some_and(|sub| sub.starts_with('/') || sub.split('/').any(|part| part == ".."))
        {
            errors.push(&field, mount.sub_path.as_deref().unwrap_or_default(), "a relative path without ..");
        }
    }
    let security = asked.security;
    if security.run_as_user == Some(0) && (!config.allow_root || security.run_as_non_root == Some(true)) {
        errors.push(at("security.run_as_user"), 0, "another user: 0 is forbidden here");
    }
    for (number, name) in security.add_capabilities.iter().enumerate() {
        let allowed = capability(name).is_some_and(|wanted| {
            config.capabilities.iter().filter_map(|known| capability(known)).any(|known| known == wanted)
        });
        if !allowed {
            let field = at(&format!("security.add_capabilities[{number}]"));
            errors.push(
                field,
                name,
                format!("this platform gives {}; leave it out", config.capabilities.join(", ")),
            );
        }
    }
    for (number, name) in security.drop_capabilities.iter().enumerate() {
        if !name.eq_ignore_ascii_case("ALL") && capability(name).is_none() {
            errors.push(
                at(&format!("security.drop_capabilities[{number}]")),
                name,
                "a capability's name, or ALL",
            );
        }
    }
    if let Some(profile) = security.seccomp_profile.as_deref().filter(|profile| *profile != "RuntimeDefault")
    {
        let problem = "RuntimeDefault, which every container has; leave it out";
        errors.push(at("security.seccomp_profile"), profile, problem);
    }
}

/// What to do about a field that is not known here.
fn remedy(path: &str) -> &'static str {
    let last = path.rsplit('.').next().unwrap_or(path);
    match last {
        "affinity"
        | "nodeSelector"
        | "tolerations"
        | "topologySpreadConstraints"
        | "schedulerName"
        | "priorityClassName" => "this platform places no work on machines; leave it out",
        "hostNetwork" | "hostPID" | "hostIPC" | "hostUsers" | "shareProcessNamespace" => {
            "a container has namespaces of its own here; leave it out"
        }
        "privileged" => {
            "no container has the host's rights here; leave it out, or ask for single capabilities"
        }
        "runtimeClassName" => "choose a runtime by the annotation sas.dev/runtime instead",
        "lifecycle" => "there are no hooks here: do it in the program, which gets SIGTERM and its grace",
        "tty" | "stdin" | "stdinOnce" => {
            "a container has no terminal and an empty standard input; leave it out"
        }
        "dnsConfig" | "dnsPolicy" | "hostAliases" => {
            "a container in a network of its own reaches no name server, and one in the host's asks the host's; leave it out"
        }
        _ => "the container runtime does not know it; leave it out",
    }
}

#[async_trait]
impl Runtime for ContainerRuntime {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(Isolation::Container);
        capabilities.usage = true;
        capabilities.exec = true;
        capabilities.cpu_bound_start = true;
        capabilities.limits = self.engine.groups.missing().is_none();
        capabilities
    }

    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        let config = &self.engine.config;
        let mut errors = SpecErrors::default();
        match &spec.source {
            Source::Image(name) => {
                if let Err(error) = name.parse::<ImageName>() {
                    errors.push("source.image", name, error.message);
                }
            }
            other => errors.push("source", other, "the container runtime takes images"),
        }
        if let Some(dir) = &spec.working_dir {
            errors.push("working_dir", dir, "in an image it is an absolute path: container.working_dir");
        }
        for name in spec.options.keys().filter(|name| name.starts_with("sas.dev/")) {
            errors.push(
                format!("options[{name}]"),
                &spec.options[name],
                "the container runtime has no such option; leave it out",
            );
        }
        check_ports(config, spec, &mut errors);
        let none = sas_core::ContainerSpec::default();
        let asked = spec.container.as_deref().unwrap_or(&none);
        for (at, volume) in asked.volumes.iter().enumerate() {
            check_volume(
                config,
                &format!("container.volumes[{at}]"),
                &volume.name,
                &volume.source,
                &mut errors,
            );
        }
        let own = Asked {
            at: "container.".to_owned(),
            mounts: &asked.mounts,
            security: &asked.security,
            working_dir: asked.working_dir.as_deref(),
        };
        check(config, &own, &asked.volumes, &mut errors);
        for (list, companions) in [("init", &asked.init), ("sidecars", &asked.sidecars)] {
            for (at, companion) in companions.iter().enumerate() {
                check_companion(
                    config,
                    &format!("container.{list}[{at}]."),
                    companion,
                    &asked.volumes,
                    &mut errors,
                );
            }
        }
        if config.secrets.is_none() {
            let problem =
                "this platform has no SecretSource for secrets and configuration maps; leave it out";
            for (at, from) in asked.env_from.iter().enumerate() {
                errors.push(format!("container.env_from[{at}]"), &from.reference, problem);
            }
            for (at, name) in asked.pull_secrets.iter().enumerate() {
                errors.push(format!("container.pull_secrets[{at}]"), name, problem);
            }
        }
        for (path, value) in &asked.other {
            errors.push(format!("container.other[{path}]"), value, remedy(path));
        }
        errors.into_result()
    }

    async fn pin(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<RevisionSpec> {
        self.engine.ensure_running()?;
        let mut pinned = spec.clone();
        let secrets = spec.container.as_ref().map(|asked| asked.pull_secrets.clone()).unwrap_or_default();
        let images = &self.engine.images;
        if let Source::Image(name) = &spec.source {
            pinned.source = Source::Image(images.pin(name, &secrets, tenant).await?);
        }
        if let Some(asked) = &mut pinned.container {
            for companion in asked.init.iter_mut().chain(&mut asked.sidecars) {
                companion.image = images.pin(&companion.image, &secrets, tenant).await?;
            }
        }
        Ok(pinned)
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.bring(spec, TenantKey::HOST).await
    }

    async fn prepare_for(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<Artifact> {
        self.bring(spec, tenant).await
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.engine.ensure_running()?;
        let deployed = Arc::clone(&request.deployed);
        let artifact = deployed.artifact.downcast::<ContainerArtifact>().ok_or_else(|| {
            let what = "artifact: it was prepared by another runtime; prepare it with this one";
            Error::new(ErrorKind::InvalidSpec, "start", what)
        })?;
        start::start(&self.engine, artifact, request).await
    }

    async fn quiesce(&self) {
        self.engine.quiesce().await;
    }
}

fn check_volume(
    config: &ContainerConfig,
    at: &str,
    name: &str,
    source: &VolumeSource,
    errors: &mut SpecErrors,
) {
    let safe = !name.is_empty() && !name.contains('/') && name != ".." && name != ".";
    if !safe {
        errors.push(at, name, "a name without slashes");
    }
    match source {
        VolumeSource::EmptyDir { size_limit_bytes, .. } => {
            if size_limit_bytes.is_some_and(|limit| limit > config.disk_bytes) {
                let problem =
                    format!("a limit of at most {} bytes, what this platform gives", config.disk_bytes);
                errors.push(at, size_limit_bytes.unwrap_or_default(), problem);
            }
        }
        VolumeSource::ConfigMap { name, .. } | VolumeSource::Secret { name, .. } => {
            if config.secrets.is_none() {
                let problem =
                    "this platform has no SecretSource for secrets and configuration maps; leave it out";
                errors.push(at, name, problem);
            }
        }
        VolumeSource::Projected(sources) => {
            for source in sources {
                match source {
                    VolumeSource::ConfigMap { .. } | VolumeSource::Secret { .. } => {
                        check_volume(config, at, name, source, errors);
                    }
                    _ => errors.push(at, name, "secrets and configuration maps, and nothing else"),
                }
            }
        }
        VolumeSource::Claim { name, .. } => {
            errors.push(
                at,
                name,
                "there are no volumes here that outlive an instance; keep state in a database",
            );
        }
        VolumeSource::Other(kind) => {
            errors.push(
                at,
                kind,
                "an emptyDir, a secret, a configMap or a projection of these; there is no other kind",
            );
        }
        other => errors.push(at, format!("{other:?}"), "this runtime has no volumes of this kind"),
    }
}

fn check_companion(
    config: &ContainerConfig,
    at: &str,
    companion: &Companion,
    volumes: &[Volume],
    errors: &mut SpecErrors,
) {
    if let Err(error) = companion.image.parse::<ImageName>() {
        errors.push(format!("{at}image"), &companion.image, error.message);
    }
    if at.starts_with("container.init") {
        for (name, probe) in [
            ("startup", &companion.startup),
            ("readiness", &companion.readiness),
            ("liveness", &companion.liveness),
        ] {
            if probe.is_some() {
                let problem = "an init container ends before anything is asked; leave it out";
                errors.push(format!("{at}{name}"), &companion.name, problem);
            }
        }
    }
    let asked = Asked {
        at: at.to_owned(),
        mounts: &companion.mounts,
        security: &companion.security,
        working_dir: companion.working_dir.as_deref(),
    };
    check(config, &asked, volumes, errors);
}
