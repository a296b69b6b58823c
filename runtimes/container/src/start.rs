//! From a start request to an instance that can serve.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use oci_spec::runtime::Capability;
use sas_core::{
    Companion, ContainerSpec, Endpoint, Error, ErrorKind, Instance, Mount, Probe, ProbeAction, Resources,
    Result, Retry, SecurityContext, StartPhase, StartRequest,
};
use sas_probe::ProbeFailure;
use sas_runtime_os::cgroup::Limits;
use tokio::time::Instant;

use crate::{
    artifact::ContainerArtifact,
    config::{CAPABILITIES, ContainerConfig},
    container::{self, Container},
    engine::{Engine, Killed as _},
    images::Image,
    instance::ContainerInstance,
    logs::LogTarget,
    pod::{self, Pod},
    refresh::Followed,
    spec::{Bind, ContainerShape, User, capability},
    volumes::{self, Filled},
};

/// The port of an instance whose spec names none.
pub(crate) const DEFAULT_PORT: u16 = 8080;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a container is asked to be, whichever of an instance's it is.
struct Asked {
    name: String,
    image: Arc<Image>,
    command: Vec<String>,
    args: Vec<String>,
    working_dir: Option<String>,
    env: BTreeMap<String, String>,
    mounts: Vec<Mount>,
    security: SecurityContext,
    resources: Resources,
}

fn unexpected(what: &str, error: io::Error) -> Error {
    // Whoever is told what a start needs of the spec is told so by an error of ours.
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(own) => Error::new(own.kind, "start", own.message.clone()),
        None => Error::new(ErrorKind::Unavailable, "start", format!("{what}: {error}"))
            .with_source(error)
            .with_retry(Retry::After(Duration::from_secs(1))),
    }
}

fn refuse(what: impl Into<String>) -> io::Error {
    io::Error::other(Error::new(ErrorKind::InvalidSpec, "start", what))
}

async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).and_then(|done| done);
    done.map_err(|error| unexpected(what, error))
}

/// Kills what was started when the start is given up.
struct Started {
    engine: Arc<Engine>,
    containers: Vec<Arc<Container>>,
}

impl Drop for Started {
    fn drop(&mut self) {
        for container in &self.containers {
            container.kill(&self.engine);
        }
    }
}

/// Starts an instance and waits until it can serve.
pub(crate) async fn start(
    engine: &Arc<Engine>,
    artifact: &ContainerArtifact,
    request: StartRequest,
) -> Result<Arc<dyn Instance>> {
    let began = Instant::now();
    let spec = Arc::clone(request.spec());
    let none = ContainerSpec::default();
    let asked = spec.container.as_deref().unwrap_or(&none);
    let tenant = request.tenant();
    let config = Arc::clone(&engine.config);

    let (address, port) = match config.network {
        crate::Network::Isolated => {
            (SocketAddr::from((Ipv4Addr::LOCALHOST, spec.port.unwrap_or(DEFAULT_PORT))), None)
        }
        crate::Network::Host => {
            let port = match spec.port {
                Some(number) => engine.ports.take_fixed(number)?,
                None => engine.ports.take()?,
            };
            (SocketAddr::from((Ipv4Addr::LOCALHOST, port.number())), Some(port))
        }
    };
    let mut own_env = volumes::environment(
        &asked.env_from,
        &spec.env,
        |name| request.environment().find(|(known, _)| *known == name).map(|(_, value)| value.to_owned()),
        &config.secrets,
        tenant,
    )
    .await?;
    let contract = [
        ("PORT", address.port().to_string()),
        ("K_SERVICE", request.name().service().to_owned()),
        ("K_CONFIGURATION", request.name().service().to_owned()),
        ("K_REVISION", request.name().revision().to_owned()),
    ];
    own_env.extend(contract.map(|(name, value)| (name.to_owned(), value)));
    let main = Asked {
        name: "user-container".to_owned(),
        image: Arc::clone(&artifact.main),
        command: spec.command.clone(),
        args: spec.args.clone(),
        working_dir: asked.working_dir.clone(),
        env: own_env,
        mounts: asked.mounts.clone(),
        security: asked.security.clone(),
        resources: spec.resources,
    };
    let mut init = Vec::new();
    for (companion, image) in asked.init.iter().zip(&artifact.init) {
        init.push(beside(companion, image, engine, &request).await?);
    }
    let mut sidecars = Vec::new();
    for (companion, image) in asked.sidecars.iter().zip(&artifact.sidecars) {
        sidecars.push(beside(companion, image, engine, &request).await?);
    }
    let filled = volumes::fill(&asked.volumes, &config.secrets, tenant).await?;

    let followed = Followed::of(&filled);
    let hostname = hostname(&request);
    let containers = 1 + init.len() + sidecars.len();
    let pod = {
        let (engine, name, groups) = (Arc::clone(engine), hostname.clone(), asked.security.fs_group);
        let bytes = config.disk_bytes.saturating_mul(containers as u64);
        blocking("the instance's mounts", move || {
            let network = engine.network()?;
            let pod = Pod::make(&engine.store.run().pod(), network, bytes, engine.hidden.as_deref())?;
            pod.enter(|| furnish(&pod, &name, &filled, groups))?;
            Ok(Arc::new(pod))
        })
        .await?
    };
    let mut started = Started { engine: Arc::clone(engine), containers: Vec::new() };
    let target = LogTarget {
        instance: request.id,
        revision: request.revision,
        sink: Arc::clone(&request.logs),
        clock: Arc::clone(&config.clock),
        line_bytes: config.line_bytes,
        bytes_per_second: config.log_bytes_per_second,
    };
    for asked in init {
        let name = asked.name.clone();
        let container = launch(engine, &pod, asked, &hostname, &target).await?;
        started.containers.push(Arc::clone(&container));
        let ended = tokio::time::timeout_at(request.deadline, container.end()).await;
        match ended {
            Ok(report) if report.code == Some(0) => {}
            Ok(report) => return Err(crashed(&container, &format!("init container {name:?} {report}"))),
            Err(_) => {
                let what = format!("init container {name:?} was not done within {:?}", spec.timeouts.start);
                return Err(late(&container, &what, None));
            }
        }
        started.containers.pop();
    }
    let mut beside_it = Vec::new();
    for asked in sidecars {
        let container = launch(engine, &pod, asked, &hostname, &target).await?;
        started.containers.push(Arc::clone(&container));
        beside_it.push(container);
    }
    let container = launch(engine, &pod, main, &hostname, &target).await?;
    started.containers.push(Arc::clone(&container));
    tokio::select! {
        biased;
        () = container.running() => {}
        () = tokio::time::sleep_until(request.deadline) => {
            let what = format!("{} did not start it within {:?}", engine.program.version, spec.timeouts.start);
            return Err(late(&container, &what, None));
        }
    }
    request.events.phase(request.id, StartPhase::Spawned);
    let at = match pod.network() {
        Some(network) => Endpoint::Within(address, Arc::clone(network) as Arc<dyn sas_core::SocketSource>),
        None => Endpoint::Tcp(address),
    };
    let endpoint = until_ready(engine, &pod, &request, &container, &beside_it, &at).await?;
    if port.is_some() {
        prove(&container, &endpoint, address.port()).await?;
    }
    engine.refreshed.follow(&pod, &asked.volumes, tenant, asked.security.fs_group, followed);
    request.events.phase(request.id, StartPhase::Ready);
    engine.metrics.started.increment(1);
    engine.metrics.ready.record(began.elapsed().as_secs_f64());
    started.containers.clear();
    drop(started);
    Ok(ContainerInstance::begin(engine, request, endpoint, container, beside_it, pod, port, artifact))
}

async fn beside(
    companion: &Companion,
    image: &Arc<Image>,
    engine: &Arc<Engine>,
    request: &StartRequest,
) -> Result<Asked> {
    let secrets = &engine.config.secrets;
    let env = volumes::environment(&companion.env_from, &companion.env, |_| None, secrets, request.tenant())
        .await?;
    Ok(Asked {
        name: companion.name.clone(),
        image: Arc::clone(image),
        command: companion.command.clone(),
        args: companion.args.clone(),
        working_dir: companion.working_dir.clone(),
        env,
        mounts: companion.mounts.clone(),
        security: companion.security.clone(),
        resources: companion.resources,
    })
}

/// A name of the revision's and of this instance's own, as Pods have: at most 63 letters.
fn hostname(request: &StartRequest) -> String {
    let number = format!("{:x}", request.id.0);
    let mut name = request.name().revision().to_ascii_lowercase();
    name.truncate(63 - 1 - number.len());
    format!("{}-{number}", name.trim_end_matches('-'))
}

/// Writes volumes and files. Called within the instance's mounts.
fn furnish(pod: &Pod, hostname: &str, volumes: &[(String, Filled)], group: Option<u32>) -> io::Result<()> {
    let etc = pod.dir.join("etc");
    let hosts = format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    fs::write(etc.join("hosts"), hosts)?;
    fs::write(etc.join("hostname"), format!("{hostname}\n"))?;
    // In a network of its own no name server is there, the host's least of all: with none named a program asks loopback, where
    // nothing answers, and fails at once instead of waiting for one that it can't reach.
    let resolv = match pod.network() {
        Some(_) => "# no name server is reached from here\n".to_owned(),
        None => fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    fs::write(etc.join("resolv.conf"), resolv)?;
    for (name, filled) in volumes {
        let path = pod.dir.join("vol").join(name);
        match filled {
            Filled::Empty(limit) => pod::empty_volume(&path, *limit, group)?,
            Filled::Files(files) => {
                pod::make_dir(&path, 0o755)?;
                for (file, bytes, mode) in files {
                    crate::refresh::replace(&pod.dir, name, file, bytes, *mode, group)?;
                }
            }
        }
    }
    Ok(())
}

async fn launch(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    asked: Asked,
    hostname: &str,
    target: &LogTarget,
) -> Result<Arc<Container>> {
    let name = asked.name.clone();
    let limits = Limits {
        cpu_millis: asked.resources.cpu_limit_millis,
        memory_bytes: asked.resources.memory_limit_bytes.or(engine.ceilings.memory_bytes),
        ..engine.ceilings
    };
    let number = engine.next_number();
    let (with, pod_, hostname) = (Arc::clone(engine), Arc::clone(pod), hostname.to_owned());
    let target = target.clone();
    // Whoever gives up the start while this goes on finds nothing of it after `quiesce`.
    let making = engine.making();
    let made = engine
        .spawning(move || {
            let _making = making;
            let group = with.groups.make(&limits)?;
            let home = pod_.dir.join(format!("c{number}"));
            let make = match &group {
                Some(crate::cgroups::Group::Theirs(group)) => Some((group.path.clone(), limits)),
                _ => None,
            };
            let shown = group.as_ref().map(|group| group.to_show().to_vec()).unwrap_or_default();
            let spawned = container::spawn(&with, &pod_, &home, group.as_ref(), || {
                pod::make_dir(&home, 0o755)?;
                let root = match &with.no_overlay {
                    None => pod::overlay(&home, &pod_.dir.join("empty"), &asked.image.layers)?,
                    Some(_) => {
                        let root = home.join("rootfs");
                        pod::copy(&root, &asked.image.layers)?;
                        root
                    }
                };
                let mut made = plan(&with.config, &pod_, &asked, &root, number, &hostname)?;
                (made.groups, made.make_group) = (shown, make);
                Ok(made)
            })?;
            let container =
                Container::watch(&with, &name, limits.memory_bytes, spawned, group, target, &pod_)?;
            with.know(Arc::downgrade(&container) as _);
            Ok(Started { engine: with, containers: vec![container] })
        })
        .await;
    let mut made = made.map_err(|error| unexpected("the container", error))?;
    Ok(made.containers.pop().expect("one was made"))
}

/// The plan of a container whose files are there.
fn plan(
    config: &ContainerConfig,
    pod: &Pod,
    asked: &Asked,
    root: &Path,
    number: u64,
    hostname: &str,
) -> io::Result<ContainerShape> {
    let image = &asked.image.config;
    let security = &asked.security;
    let (command, more) = match (asked.args.is_empty(), asked.command.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (false, true) => (&image.entrypoint, &asked.args),
        (_, false) => (&asked.command, &asked.args),
    };
    // What a manifest says is expanded, what an image says is taken as it stands.
    let images_own = [asked.command.is_empty(), asked.command.is_empty() && asked.args.is_empty()];
    let args: Vec<(&String, bool)> = [command, more]
        .into_iter()
        .zip(images_own)
        .flat_map(|(words, own)| words.iter().map(move |word| (word, own)))
        .collect();
    if args.is_empty() {
        return Err(refuse(format!(
            "command: image {} names no program to start (no ENTRYPOINT and no CMD): give one, in a manifest by `command`",
            asked.image.name
        )));
    }
    let user = user(root, &asked.image, security)?;
    if user.uid == 0 && (security.run_as_non_root == Some(true) || !config.allow_root) {
        let rule = if config.allow_root { "container.security.run_as_non_root" } else { "this platform" };
        return Err(refuse(format!(
            "container.security.run_as_user: image {} runs as user 0, which {rule} forbids: set run_as_user, or build the \
             image with a USER",
            asked.image.name
        )));
    }
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    env.insert("PATH".into(), PATH.into());
    env.insert("HOSTNAME".into(), hostname.to_owned());
    if let Some(home) = &user.home {
        env.insert("HOME".into(), home.clone());
    }
    for variable in &image.env {
        if let Some((name, value)) = variable.split_once('=') {
            env.insert(name.to_owned(), value.to_owned());
        }
    }
    env.extend(asked.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let args = args.into_iter().map(|(arg, own)| if own { arg.clone() } else { expand(arg, &env) }).collect();

    let read_only = security.read_only_root_filesystem == Some(true);
    let mut binds = Vec::new();
    for file in ["hosts", "hostname", "resolv.conf"] {
        let (from, to) = (pod.dir.join("etc").join(file), Path::new("/etc").join(file));
        binds.push(Bind { from, to, read_only: true });
    }
    let mut mounted: Vec<&str> = Vec::new();
    for (at, mount) in asked.mounts.iter().enumerate() {
        let volume = pod.dir.join("vol").join(&mount.volume);
        let from = match &mount.sub_path {
            None => volume.clone(),
            Some(sub) => {
                let to = pod.dir.join("sub").join(format!("{number}-{at}"));
                pod::part(&volume, sub, &to).map_err(|error| {
                    refuse(format!(
                        "container.mounts[{at}].sub_path: {sub:?}: {error}; a path within the volume"
                    ))
                })?;
                to
            }
        };
        mounted.push(&mount.path);
        // Only an empty directory is made so that everybody may write to it; secrets and maps are to be read.
        let empty = fs::metadata(&volume)?.permissions().mode() & 0o002 != 0;
        binds.push(Bind { from, to: PathBuf::from(&mount.path), read_only: mount.read_only || !empty });
    }
    // What the contract says can be written to, also where nothing else can or the image has no such directory.
    let mut scratch = Vec::new();
    let mut add = |path: &str, mode: u32| {
        if !mounted.contains(&path) {
            scratch.push((path.to_owned(), mode));
        }
    };
    if read_only || !pod::has(root, "tmp") {
        add("/tmp", 0o1777);
    }
    if read_only || !pod::has(root, "var/log") {
        add("/var/log", 0o777);
    }
    // A volume of the image can be written to, whether the image has its directory or only names it.
    for path in image.volumes.keys().filter(|path| path.starts_with('/') && !path.contains("..")) {
        if read_only || !pod::has(root, path) {
            add(path, 0o777);
        }
    }
    Ok(ContainerShape {
        hostname: hostname.to_owned(),
        root: root.to_path_buf(),
        read_only,
        args,
        env: env.into_iter().collect(),
        cwd: asked
            .working_dir
            .clone()
            .or_else(|| Some(image.working_dir.clone()).filter(|dir| dir.starts_with('/')))
            .unwrap_or_else(|| "/".to_owned()),
        user,
        capabilities: capabilities(security, pod.network().is_none()),
        new_privileges: security.allow_privilege_escalation == Some(true),
        seccomp: true,
        // Landlock closes ports of TCP by that name only.
        plain_sockets: pod.network().is_none()
            && config.closed_ports.as_ref().is_some_and(|closed| !closed.is_empty()),
        open_files: open_files(config.open_files),
        binds,
        scratch,
        disk_bytes: config.disk_bytes,
        groups: Vec::new(),
        make_group: None,
        own_network: pod.network().is_some(),
    })
}

/// More than the host's own hard limit takes a right that root has not in every container.
fn open_files(wanted: u64) -> u64 {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    own.map_or(wanted, |own| wanted.min(own))
}

/// `shared`: in the host's network, where a raw socket would read what the host and others send.
fn capabilities(security: &SecurityContext, shared: bool) -> Vec<Capability> {
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let mut has: Vec<Capability> = match all(&security.drop_capabilities) {
        true => Vec::new(),
        false => CAPABILITIES.iter().filter_map(|name| capability(name)).collect(),
    };
    let dropped: Vec<Capability> =
        security.drop_capabilities.iter().filter_map(|name| capability(name)).collect();
    has.retain(|one| !dropped.contains(one));
    for one in security.add_capabilities.iter().filter_map(|name| capability(name)) {
        if !has.contains(&one) {
            has.push(one);
        }
    }
    has.retain(|one| !(shared && *one == Capability::NetRaw));
    has
}

/// `$(NAME)` becomes the variable's value and `$$` becomes `$`, as in Kubernetes; what names none stays as it is.
fn expand(text: &str, env: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')'))
            && let Some(value) = env.get(name)
        {
            out.push_str(value);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// Bytes of /etc/passwd and /etc/group that are read.
const MOST_USERS: u64 = 1 << 20;

/// As whom it runs: the manifest's choice, else the image's, else 0; names are looked up in the image.
fn user(root: &Path, image: &Image, security: &SecurityContext) -> io::Result<User> {
    let passwd = pod::read_in(root, "etc/passwd", MOST_USERS).unwrap_or_default();
    let group = pod::read_in(root, "etc/group", MOST_USERS).unwrap_or_default();
    let (wanted, wanted_group) = match image.config.user.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (image.config.user.as_str(), None),
    };
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<String>>();
    let line_of = |uid: Option<u32>, name: &str| {
        passwd.lines().map(fields).find(|line| {
            let number = line.get(2).and_then(|text| text.parse().ok());
            uid.map_or_else(|| line.first().is_some_and(|first| first == name), |uid| number == Some(uid))
        })
    };
    let (uid, line) = match security.run_as_user {
        Some(uid) => (uid, line_of(Some(uid), "")),
        None if wanted.is_empty() => (0, line_of(Some(0), "")),
        None => match wanted.parse::<u32>() {
            Ok(uid) => (uid, line_of(Some(uid), "")),
            Err(_) => {
                let line = line_of(None, wanted);
                let uid = line.as_ref().and_then(|line| line.get(2)?.parse().ok());
                let uid = uid.ok_or_else(|| {
                    refuse(format!(
                        "image {}: its user {wanted:?} is not in its /etc/passwd: build it with a number, or set \
                         container.security.run_as_user",
                        image.name
                    ))
                })?;
                (uid, line)
            }
        },
    };
    let group_number = |name: &str| -> Option<u32> {
        name.parse().ok().or_else(|| {
            let line =
                group.lines().map(fields).find(|line| line.first().is_some_and(|first| first == name))?;
            line.get(2)?.parse().ok()
        })
    };
    let of_image = security.run_as_user.is_none();
    let gid = match (security.run_as_group, wanted_group.filter(|_| of_image)) {
        (Some(gid), _) => gid,
        (None, Some(name)) => group_number(name).ok_or_else(|| {
            refuse(format!(
                "image {}: its group {name:?} is not in its /etc/group: build it with a number",
                image.name
            ))
        })?,
        (None, None) => line.as_ref().and_then(|line| line.get(3)?.parse().ok()).unwrap_or(0),
    };
    let mut groups: Vec<u32> =
        security.supplemental_groups.iter().copied().chain(security.fs_group).collect();
    if let Some(name) = line.as_ref().and_then(|line| line.first()) {
        for line in group.lines().map(fields) {
            let member = line.get(3).is_some_and(|members| members.split(',').any(|one| one == name));
            if member && let Some(gid) = line.get(2).and_then(|text| text.parse().ok()) {
                groups.push(gid);
            }
        }
    }
    groups.retain(|one| *one != gid);
    groups.sort_unstable();
    groups.dedup();
    let home = line.and_then(|line| line.get(5).cloned()).filter(|home| home.starts_with('/'));
    Ok(User { uid, gid, groups, home: Some(home.unwrap_or_else(|| "/".to_owned())) })
}

fn with_words(container: &Container, what: &str) -> String {
    match container.words.text() {
        Some(words) => format!("{what}; its last words: {words}"),
        None => what.to_owned(),
    }
}

fn crashed(container: &Container, what: &str) -> Error {
    Error::new(ErrorKind::Crashed, "start", with_words(container, what))
}

fn late(container: &Container, what: &str, probe: Option<ProbeFailure>) -> Error {
    let what = match probe {
        Some(probe) => format!("{what}: {probe}"),
        None => what.to_owned(),
    };
    Error::new(ErrorKind::Timeout, "start", with_words(container, &what))
}

/// Asked often at first, and never less than ten times a second.
fn pause(elapsed: Duration) -> Duration {
    (elapsed / 8).clamp(Duration::from_millis(1), Duration::from_millis(50))
}

/// When a start first tells why it is not ready yet; then after twice as long, and so on.
const FIRST_WORD: Duration = Duration::from_millis(500);

async fn until_ready(
    engine: &Arc<Engine>,
    pod: &Arc<Pod>,
    request: &StartRequest,
    container: &Arc<Container>,
    sidecars: &[Arc<Container>],
    at: &Endpoint,
) -> Result<Endpoint> {
    let spec = request.spec();
    let last = parking_lot::Mutex::new(None);
    let listening = || request.events.phase(request.id, StartPhase::Listening);
    let mut ready = std::pin::pin!(async {
        let ask = Ask { engine, pod, container, last: &last };
        let endpoint = ask.all(spec.startup.as_ref(), spec.readiness.as_ref(), at, listening).await?;
        let companions = spec.container.iter().flat_map(|asked| &asked.sidecars);
        for (companion, container) in companions.zip(sidecars) {
            if companion.startup.is_some() || companion.readiness.is_some() {
                let ask = Ask { engine, pod, container, last: &last };
                ask.all(companion.startup.as_ref(), companion.readiness.as_ref(), at, || ()).await?;
            }
        }
        Ok::<_, ProbeFailure>(endpoint)
    });
    let (mut pause, mut word) = (FIRST_WORD, Instant::now() + FIRST_WORD);
    let waits_for = || match at {
        Endpoint::Within(address, _) | Endpoint::Tcp(address) => format!("port {}", address.port()),
        other => other.to_string(),
    };
    loop {
        tokio::select! {
            biased;
            report = container.end() => {
                return Err(crashed(container, &format!("the container {report} before it was ready at {}", waits_for())));
            }
            (name, report) = any_end(sidecars) => {
                return Err(crashed(container, &format!("sidecar {name:?} {report} before the instance was ready")));
            }
            ready = &mut ready => {
                return ready.map_err(|probe| {
                    let what = format!("the start-up probe failed as often as it may: {probe}");
                    Error::new(ErrorKind::Timeout, "start", with_words(container, &what))
                });
            }
            () = tokio::time::sleep_until(request.deadline) => {
                let what = format!("not ready at {} within {:?}", waits_for(), spec.timeouts.start);
                return Err(late(container, &what, last.lock().take()));
            }
            () = tokio::time::sleep_until(word) => {
                pause *= 2;
                word += pause;
                let what = format!("not ready at {} so far", waits_for());
                let probe = last.lock().clone();
                request.events.waiting(request.id, Arc::new(late(container, &what, probe)));
            }
        }
    }
}

async fn any_end(sidecars: &[Arc<Container>]) -> (String, sas_core::ExitReport) {
    if sidecars.is_empty() {
        return std::future::pending().await;
    }
    let ends = sidecars.iter().map(|one| Box::pin(async move { (one.name.clone(), one.end().await) }));
    futures_util::future::select_all(ends).await.0
}

struct Ask<'a> {
    engine: &'a Arc<Engine>,
    pod: &'a Arc<Pod>,
    container: &'a Arc<Container>,
    last: &'a parking_lot::Mutex<Option<ProbeFailure>>,
}

impl Ask<'_> {
    /// The start-up probe until it is good, then the readiness probe; without either, a connection is enough.
    async fn all(
        &self,
        startup: Option<&Probe>,
        readiness: Option<&Probe>,
        at: &Endpoint,
        mut listening: impl FnMut(),
    ) -> std::result::Result<Endpoint, ProbeFailure> {
        let connects = Probe::new(ProbeAction::Tcp { port: None });
        let stages: Vec<(&Probe, bool)> = match (startup, readiness) {
            (None, None) => vec![(&connects, false)],
            (startup, readiness) => startup
                .map(|probe| (probe, true))
                .into_iter()
                .chain(readiness.map(|probe| (probe, false)))
                .collect(),
        };
        let candidates = candidates(at);
        let (mut found, mut told) = (None::<Endpoint>, false);
        for (probe, startup) in stages {
            if !probe.initial_delay.is_zero() {
                tokio::time::sleep(probe.initial_delay).await;
            }
            let began = Instant::now();
            let (mut good, mut bad) = (0, 0);
            loop {
                let asked = Instant::now();
                let known: &[Endpoint] = found.as_ref().map_or(&candidates, std::slice::from_ref);
                match self.once(probe, known).await {
                    Ok(answered) => {
                        found = answered.or(found);
                        if found.is_some() && !std::mem::replace(&mut told, true) {
                            listening();
                        }
                        (good, bad) = (good + 1, 0);
                        if good >= probe.success_threshold.max(1) {
                            break;
                        }
                    }
                    Err(failure) => {
                        if failure.connected && !std::mem::replace(&mut told, true) {
                            listening();
                        }
                        (good, bad) = (0, bad + 1);
                        // Asked as often as makes sense, a count of failures says nothing; the deadline ends it.
                        if startup && !probe.period.is_zero() && bad >= probe.failure_threshold.max(1) {
                            return Err(failure);
                        }
                        *self.last.lock() = Some(failure);
                    }
                }
                if probe.period.is_zero() {
                    tokio::time::sleep(pause(began.elapsed())).await;
                } else {
                    tokio::time::sleep_until(asked + probe.period).await;
                }
            }
        }
        Ok(found.unwrap_or_else(|| at.clone()))
    }

    async fn once(
        &self,
        probe: &Probe,
        candidates: &[Endpoint],
    ) -> std::result::Result<Option<Endpoint>, ProbeFailure> {
        if let ProbeAction::Exec { command } = &probe.action {
            let run = self.container.exec(self.engine, self.pod, command);
            return sas_probe::command(probe, run).await.map(|()| None);
        }
        let mut first = None;
        for candidate in candidates {
            match sas_probe::endpoint(probe, candidate).await {
                Ok(()) => return Ok(Some(candidate.clone())),
                Err(failure) if failure.connected => return Err(failure),
                Err(failure) => {
                    first.get_or_insert(failure);
                }
            }
        }
        Err(first.expect("there is always a candidate"))
    }
}

/// A program that was told a port may listen at either loopback address.
fn candidates(at: &Endpoint) -> [Endpoint; 2] {
    let other = match at {
        Endpoint::Tcp(address) => Endpoint::Tcp((Ipv6Addr::LOCALHOST, address.port()).into()),
        Endpoint::Within(address, sockets) => {
            Endpoint::Within((Ipv6Addr::LOCALHOST, address.port()).into(), Arc::clone(sockets))
        }
        other => other.clone(),
    };
    [at.clone(), other]
}

/// In the host's network, who answers must be the instance.
async fn prove(container: &Arc<Container>, at: &Endpoint, port: u16) -> Result<()> {
    if !matches!(at, Endpoint::Tcp(_)) {
        return Ok(());
    }
    let pid = container.pid();
    let its_own = tokio::task::spawn_blocking(move || {
        pid.is_some_and(|pid| sas_runtime_os::ports::belongs(port, &[pid]))
    })
    .await
    .unwrap_or(false);
    if its_own {
        return Ok(());
    }
    let what = format!(
        "what answers at port {port} is not the container: another program of this host listens there"
    );
    Err(Error::new(ErrorKind::Conflict, "start", what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_in_arguments_are_expanded_as_kubernetes_does() {
        let env = BTreeMap::from([("A".to_owned(), "x".to_owned())]);
        for (text, expected) in [
            ("--a=$(A)", "--a=x"),
            ("$(B)", "$(B)"),
            ("$$(A)", "$(A)"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("$(A)$(A)", "xx"),
        ] {
            assert_eq!(expand(text, &env), expected, "{text}");
        }
    }

    #[test]
    fn capabilities_are_dockers_without_device_nodes_and_can_be_taken_away() {
        let mut security = SecurityContext::default();
        assert_eq!(capabilities(&security, false).len(), 13);
        assert!(!capabilities(&security, false).contains(&Capability::Mknod));
        security.drop_capabilities = vec!["all".into()];
        assert_eq!(capabilities(&security, false), []);
        security.add_capabilities = vec!["CAP_NET_BIND_SERVICE".into()];
        assert_eq!(capabilities(&security, false), [Capability::NetBindService]);
        assert!(!capabilities(&SecurityContext::default(), true).contains(&Capability::NetRaw));
    }
}
