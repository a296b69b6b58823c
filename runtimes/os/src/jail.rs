//! A thread that jails itself, and spawns.
//!
//! On Linux credentials, namespaces, landlock domains, seccomp filters, `no_new_privs` and (after an unshare) the
//! table of descriptors belong to the thread. So a fresh thread takes all of them on, calls `posix_spawn`, and ends:
//! the child has inherited the jail, the host is as before, nothing was forked, and no helper program is shipped.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use rustix::thread::CapabilitySet;
use sas_core::{Error, ErrorKind, Result, TenantKey};

use crate::{
    cell::{self, Cell, Entrance, Layout, Ready, Shown, View},
    cgroup::Cgroup,
    config::{Egress, JailConfig, JailLevel},
    rtnetlink,
    rules::{self, Places, Right, Rules},
    seccomp::Filter,
    strays::Signature,
};

/// A means by which an instance is jailed, and why this machine lacks it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Means {
    /// The name of the means, as the table in SECURITY.md has it.
    pub name: &'static str,
    /// Why there is none; `None`: there is.
    pub missing: Option<String>,
}

/// What this machine gives.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JailReport {
    /// The least that every instance gets.
    pub level: JailLevel,
    /// Each means, in the order in which `SECURITY.md` lists them.
    pub means: Vec<Means>,
}

impl JailReport {
    /// The means that this machine lacks.
    pub fn missing(&self) -> impl Iterator<Item = &Means> {
        self.means.iter().filter(|means| means.missing.is_some())
    }

    fn has(&self, name: &str) -> bool {
        self.means.iter().any(|means| means.name == name && means.missing.is_none())
    }
}

impl fmt::Display for JailReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "jail {}", self.level)?;
        for means in self.missing() {
            write!(f, "; no {}: {}", means.name, means.missing.as_deref().unwrap_or_default())?;
        }
        Ok(())
    }
}

const USERS: &str = "user id per tenant";
const SPACES: &str = "namespaces for processes, mounts and IPC";
const NETWORK: &str = "network namespace";
const FILES: &str = "landlock for files";
const PORTS: &str = "landlock for TCP ports";
const SIGNALS: &str = "landlock for signals and abstract sockets";
const CALLS: &str = "filter of system calls";
const NETWORKS: &str = "routing rules for closed networks";

/// What one instance asks for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct JailRequest {
    /// How much is kept from it: at least the host's level.
    pub level: JailLevel,
    /// Whose it is; `None`: nobody's yet, and it gets a user id that no other has.
    pub tenant: Option<TenantKey>,
    /// Where it may connect to.
    pub egress: Egress,
    /// The TCP ports on which it listens, where it shares the host's network.
    pub ports: Vec<u16>,
    /// The port that it was given and nobody else is, to which it may also connect, where it shares the host's network.
    pub own_port: Option<u16>,
    /// Its package; it sees a view of its own over it that it may write to, where there are namespaces.
    pub package: Option<PathBuf>,
    /// Directories of its own that stay.
    pub data: Vec<PathBuf>,
    /// What it may read beside the system's files and its package.
    pub readable: Vec<PathBuf>,
    /// What it may write to as it is. A place in the host's own directories is there for it only without namespaces.
    pub writable: Vec<PathBuf>,
    /// For a program that learns later what it is to serve: the directory with the packages one of which it is shown
    /// by [`Jails::show`].
    pub later: Option<PathBuf>,
    /// Bytes that it may write, where it is not [`JailConfig::disk_bytes`].
    pub disk_bytes: Option<u64>,
    /// Whether it may be put into namespaces; a process that numbers processes for the host may not.
    pub namespaces: bool,
    /// Whether it gets a network of its own though others of its level do not.
    pub own_network: bool,
}

impl JailRequest {
    /// A request of a tenant, with nothing allowed but what every program needs.
    pub fn new(level: JailLevel, tenant: Option<TenantKey>) -> Self {
        Self {
            level,
            tenant,
            later: None,
            egress: Egress::default(),
            ports: Vec::new(),
            own_port: None,
            package: None,
            data: Vec::new(),
            readable: Vec::new(),
            writable: Vec::new(),
            disk_bytes: None,
            namespaces: true,
            own_network: false,
        }
    }
}

/// A place for one program.
#[derive(Debug)]
pub struct Jail<'a> {
    jails: &'a Jails,
    request: JailRequest,
    user: Option<u32>,
    place: Namespaces<'a>,
}

/// The namespaces of a program.
#[derive(Debug)]
enum Namespaces<'a> {
    /// The host's.
    Host,
    /// Its own.
    Own(Cell),
    /// Those of a program that runs already.
    Beside(&'a Entrance),
}

/// The jails of a host.
#[derive(Debug)]
pub struct Jails {
    config: JailConfig,
    report: JailReport,
    root: bool,
    filter: Option<Filter>,
    ready: Arc<Ready>,
    /// What every program outside of a cell reads.
    places: Places,
    /// What every program reads beside the system's files.
    shared: Vec<PathBuf>,
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    of: HashMap<TenantKey, u32>,
    /// User ids of nobody's that were given out; they go round in the upper half of the range.
    fresh: u32,
}

impl Jails {
    /// Finds out what this machine gives.
    ///
    /// `roots` are the directories of the host's own, with packages and data; `readable` is what instances read beside
    /// the system's files, such as the places of interpreters.
    ///
    /// # Errors
    /// `InvalidSpec` for a wrong configuration; `Unsupported`, with what is missing, when the level is strict and the
    /// machine does not give all of it.
    pub fn open(config: JailConfig, roots: &[PathBuf], readable: &[PathBuf]) -> Result<Self> {
        config.validate()?;
        let mut readable: Vec<PathBuf> = readable
            .iter()
            .chain(&config.readable)
            .map(PathBuf::as_path)
            .chain([Path::new("/run/systemd/resolve"), Path::new("/run/resolvconf")])
            .filter_map(|path| fs::canonicalize(path).ok())
            .collect();
        readable.sort();
        readable.dedup();
        let ports = config.open_ports();
        let places = Places::of_system(&readable);
        let shared = readable.clone();
        let layout = Layout::new(roots, readable, config.disk_bytes, ports);
        let root = rustix::thread::capabilities(None).is_ok_and(|own| {
            own.effective.contains(
                CapabilitySet::SYS_ADMIN
                    | CapabilitySet::SETUID
                    | CapabilitySet::SETGID
                    | CapabilitySet::CHOWN
                    | CapabilitySet::KILL
                    | CapabilitySet::DAC_OVERRIDE,
            )
        });
        let filter = Filter::new();
        let mut means = Vec::new();
        let mut tell = |name, missing: Option<String>| means.push(Means { name, missing });
        let not_root = || "the host is not root (CAP_SYS_ADMIN, CAP_SETUID, CAP_CHOWN, ...)".to_owned();
        if config.level == JailLevel::None {
            tell(USERS, None);
        } else {
            tell(USERS, (!root).then(not_root));
            for (name, network) in [(SPACES, false), (NETWORK, true)] {
                let missing = if root { probe_spaces(network) } else { Some(not_root()) };
                tell(name, missing);
            }
            for (name, missing) in [FILES, PORTS, SIGNALS].into_iter().zip(rules::missing()) {
                tell(name, missing);
            }
            let no_filter = match &filter {
                Err(error) => Some(error.to_string()),
                Ok(_) if !Path::new("/proc/sys/kernel/seccomp").exists() => {
                    Some("the kernel has no seccomp filters".to_owned())
                }
                Ok(_) => None,
            };
            tell(CALLS, no_filter);
            // Who has a network of its own reaches none of the host's.
            if config.level == JailLevel::Basic && !config.closed_networks.is_empty() {
                let closed = match root {
                    true => rtnetlink::close_networks(&config.closed_networks, &config.uids)
                        .map_err(|error| format!("{error} (CAP_NET_ADMIN and policy routing are needed)")),
                    false => Err(not_root()),
                };
                tell(NETWORKS, closed.err());
            }
        }
        let report = JailReport { level: config.level, means };
        let this = Self {
            root: root && report.has(USERS) && config.level != JailLevel::None,
            filter: filter.ok().filter(|_| report.has(CALLS)),
            ready: Ready::new(layout, config.ready),
            places,
            shared,
            users: Mutex::default(),
            config,
            report,
        };
        if this.config.level == JailLevel::Strict {
            this.all_of_it()?;
        }
        if this.config.level != JailLevel::None && this.report.missing().next().is_some() {
            tracing::warn!(report = %this.report, "instances are jailed by what this machine gives");
        }
        Ok(this)
    }

    /// Whether every instance may read a path, links followed: the system's files and what the host has configured.
    pub fn is_shared(&self, path: &Path) -> bool {
        fs::canonicalize(path).is_ok_and(|path| {
            rules::is_systems(&path) || self.shared.iter().any(|shared| path.starts_with(shared))
        })
    }

    /// What this machine gives.
    pub fn report(&self) -> &JailReport {
        &self.report
    }

    /// The configuration that this jail was made with.
    pub fn config(&self) -> &JailConfig {
        &self.config
    }

    /// Whether instances are put into namespaces, with a view of the disk of their own.
    pub fn has_namespaces(&self) -> bool {
        self.root && self.report.has(SPACES)
    }

    /// The group that packages belong to, so that an instance may write to its view of them. `None`: instances have
    /// the host's own user.
    pub fn package_group(&self) -> Option<u32> {
        self.root.then(|| *self.config.uids.start())
    }

    /// Whether an instance that asks for this has a network of its own.
    pub fn has_own_network(&self, request: &JailRequest) -> bool {
        self.has_namespaces()
            && request.namespaces
            && self.report.has(NETWORK)
            && (request.level == JailLevel::Strict || request.egress == Egress::Denied || request.own_network)
    }

    /// Why not everything of `strict` can be had here.
    ///
    /// # Errors
    /// `Unsupported`, with what is missing.
    pub fn all_of_it(&self) -> Result<()> {
        let missing: Vec<String> = if self.config.level == JailLevel::None {
            vec!["the host's level is none, so nothing was made ready".to_owned()]
        } else {
            self.report
                .missing()
                .filter(|means| means.name != NETWORKS)
                .map(|means| format!("no {} ({})", means.name, means.missing.as_deref().unwrap_or_default()))
                .collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let what = format!("jail: strict: this machine gives {}; set it to basic", missing.join(", "));
        Err(Error::new(ErrorKind::Unsupported, "jail", what))
    }

    /// How processes outside of cells are known to be jailed.
    pub fn signature(&self) -> Option<Signature> {
        Signature::of(u32::from(self.filter.is_some()))
    }

    /// Keeps cells ready from now on.
    pub fn warm(&self, request: &JailRequest) {
        if self.has_namespaces() && request.namespaces && request.level != JailLevel::None {
            self.ready.fill(self.has_own_network(request));
        }
    }

    /// Ends the cells that wait.
    pub fn close(&self) {
        self.ready.close();
    }

    /// Lets instances write to their views of a package, and read all of it. Its files get the group of packages, with
    /// the rights that their owner has.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn grant(&self, package: &Path) -> io::Result<()> {
        let Some(group) = self.package_group() else { return Ok(()) };
        if std::os::unix::fs::MetadataExt::gid(&fs::metadata(package)?) == group {
            return Ok(());
        }
        let mut open = Vec::new();
        let give = |path: &Path| -> io::Result<bool> {
            let metadata = fs::symlink_metadata(path)?;
            if metadata.is_symlink() {
                return Ok(false);
            }
            rustix::fs::chown(path, None, Some(rustix::fs::Gid::from_raw(group)))?;
            let mode = metadata.permissions().mode() & 0o777;
            // Its owner's rights for the group; the owner may have none to write where the package said so.
            let wanted = mode | 0o200 | (mode & 0o700) >> 3 | 0o020;
            fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
            Ok(metadata.is_dir())
        };
        open.push(package.to_path_buf());
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(&dir)? {
                let path = entry?.path();
                if give(&path)? {
                    open.push(path);
                }
            }
        }
        // Last, so that a package with the group is one whose files all have it.
        give(package).map(drop)
    }

    /// The user id of a tenant, from the lower half of the range; one of nobody's from the upper.
    fn user(&self, tenant: Option<TenantKey>) -> Result<u32> {
        let (first, last) = (*self.config.uids.start(), *self.config.uids.end());
        let half = (last - first).div_ceil(2);
        let mut users = self.users.lock();
        let Some(tenant) = tenant else {
            let user = last - users.fresh % (last - first - half).max(1);
            users.fresh = users.fresh.wrapping_add(1);
            return Ok(user);
        };
        if let Some(user) = users.of.get(&tenant) {
            return Ok(*user);
        }
        let user =
            u32::try_from(users.of.len()).ok().filter(|taken| *taken < half).map(|taken| first + 1 + taken);
        let user = user.ok_or_else(|| {
            let what = format!(
                "jail.uids: {:?}: half of them for tenants, and there are more; widen it",
                self.config.uids
            );
            Error::new(ErrorKind::Exhausted, "start", what)
        })?;
        users.of.insert(tenant, user);
        Ok(user)
    }

    /// Shows a package, and what else it may read, to a program that was started without ([`JailRequest::later`]).
    ///
    /// # Errors
    /// Those of the mounts. Nothing is needed, and nothing done, where the program has no cell.
    pub fn show(&self, cell: Option<&Cell>, package: &Path, readable: &[PathBuf]) -> io::Result<()> {
        let Some(cell) = cell else { return Ok(()) };
        let view =
            View { package: Some(package.to_path_buf()), readable: readable.to_vec(), ..View::default() };
        cell.show(self.ready.layout(), &view, None)
    }

    /// A place for one program. Takes a cell where there are any.
    ///
    /// # Errors
    /// `Unsupported` for `strict` where something of it is missing, `Exhausted` and `Unavailable` when no cell can be
    /// made.
    pub fn enter(&self, request: JailRequest) -> Result<Jail<'_>> {
        if request.level == JailLevel::Strict {
            self.all_of_it()?;
            if !request.namespaces {
                let what = "jail: strict: this program can't be put into namespaces; start it without zygote";
                return Err(Error::new(ErrorKind::Unsupported, "jail", what));
            }
        }
        if request.level == JailLevel::None || self.config.level == JailLevel::None {
            let request = JailRequest { level: JailLevel::None, ..request };
            return Ok(Jail { jails: self, request, user: None, place: Namespaces::Host });
        }
        // Without mounts of its own another user would not find its package.
        let user =
            if self.has_namespaces() && request.namespaces { Some(self.user(request.tenant)?) } else { None };
        if let Some(user) = user {
            for dir in &request.data {
                own(dir, user).map_err(|error| {
                    let what = format!("{}: {error}; it could not be given to the instance", dir.display());
                    Error::new(ErrorKind::Unavailable, "start", what).with_source(error)
                })?;
            }
        }
        let cell = if self.has_namespaces() && request.namespaces {
            let made = self
                .ready
                .take(self.has_own_network(&request), Shown::new(view(&request), user))
                .map_err(|error| {
                    Error::new(ErrorKind::Exhausted, "start", format!("namespaces for the instance: {error}"))
                        .with_source(error)
                })?;
            Namespaces::Own(made)
        } else {
            Namespaces::Host
        };
        Ok(Jail { jails: self, request, user, place: cell })
    }

    /// A place in the namespaces of a program that runs already, with its user and what it may do: for commands that
    /// belong to it. What runs there ends with it.
    pub fn beside<'a>(&'a self, entrance: &'a Entrance, request: JailRequest) -> Jail<'a> {
        Jail { jails: self, request, user: entrance.user(), place: Namespaces::Beside(entrance) }
    }
}

/// Whether a namespace can be made, by making one on a thread that ends.
fn probe_spaces(network: bool) -> Option<String> {
    let flags = match network {
        true => CloneFlags::CLONE_NEWNET,
        false => {
            CloneFlags::CLONE_NEWNS
                | CloneFlags::CLONE_NEWPID
                | CloneFlags::CLONE_NEWIPC
                | CloneFlags::CLONE_NEWUTS
        }
    };
    let made = std::thread::spawn(move || {
        unshare(flags)?;
        if network { rtnetlink::bring_lo_up() } else { Ok(()) }
    });
    match made.join() {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_panic) => Some("the thread ended".to_owned()),
    }
}

/// Gives a directory to a user, with what is in it when it was another's.
fn own(dir: &Path, user: u32) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    if fs::symlink_metadata(dir)?.uid() == user {
        return Ok(());
    }
    let give = |path: &Path| {
        let (uid, gid) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(user));
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(rustix::fs::CWD, path, Some(uid), Some(gid), flags)
    };
    let mut open = vec![dir.to_path_buf()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                give(&entry.path())?;
            }
        }
        give(&dir)?;
    }
    Ok(())
}

impl Jail<'_> {
    /// Whether the program gets a view of its package of its own, at the package's own path.
    pub fn has_view(&self) -> bool {
        !matches!(self.place, Namespaces::Host)
    }

    /// Variables that say where its own places are, where it has some.
    pub fn environment(&self) -> BTreeMap<&'static str, &'static str> {
        match self.place {
            Namespaces::Host => BTreeMap::new(),
            _ => [("HOME", cell::HOME), ("TMPDIR", "/tmp")].into(),
        }
    }

    /// Spawns by `spawn`, which is called on a thread that has jailed itself and ends after it. Returns what `spawn`
    /// did, and the cell that is to be kept while the program runs.
    ///
    /// Descriptors that `spawn` hands to the program must be borrowed and cloned there: the thread has a table of its
    /// own, and what is closed in it stays open in the host's.
    ///
    /// # Errors
    /// Those of the jail, with the means that failed, and those of `spawn`.
    pub fn spawn<T: Send>(
        self,
        spawn: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<(T, Option<Cell>)> {
        self.spawn_in(None, spawn).map(|(spawned, cell, _)| (spawned, cell))
    }

    /// As [`spawn`](Self::spawn), in a control group. Says also whether what was spawned is in it, or is to be
    /// [`add`](Cgroup::add)ed.
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn), and those of the group.
    pub fn spawn_in<T: Send>(
        self,
        group: Option<&Cgroup>,
        spawn: impl FnOnce() -> io::Result<T> + Send,
    ) -> io::Result<(T, Option<Cell>, bool)> {
        let Self { jails, request, user, mut place } = self;
        let dumpable = user.and_then(|_| rustix::process::dumpable_behavior().ok());
        if let Namespaces::Own(cell) = &mut place {
            cell.belongs_to(user);
        }
        let spawned = std::thread::scope(|scope| {
            let jailed = std::thread::Builder::new().name("sas-jail".into()).spawn_scoped(scope, || {
                let joined = match group {
                    Some(group) => group.join().map_err(|error| failed("control group", error))?,
                    None => false,
                };
                jail(jails, &request, user, &place)?;
                Ok((spawn()?, joined))
            })?;
            jailed.join().map_err(|_panic| io::Error::other("the thread that spawns ended"))?
        });
        // A change of user takes it from the whole process, which its crash reports would miss.
        if let Some(dumpable) = dumpable {
            let _ = rustix::process::set_dumpable_behavior(dumpable);
        }
        let cell = match place {
            Namespaces::Own(mut cell) => {
                cell.forget_rules();
                Some(cell)
            }
            _ => None,
        };
        spawned.map(|(spawned, joined)| (spawned, cell, joined))
    }
}

fn failed(what: &str, error: impl fmt::Display) -> io::Error {
    io::Error::other(format!("the jail: {what}: {error}"))
}

/// What it is to see.
fn view(request: &JailRequest) -> View {
    View {
        package: request.package.clone(),
        bound: request.data.clone(),
        readable: request.readable.clone(),
        more: request.later.is_some(),
        disk_bytes: request.disk_bytes,
    }
}

/// Jails the calling thread for good.
fn jail(jails: &Jails, request: &JailRequest, user: Option<u32>, place: &Namespaces<'_>) -> io::Result<()> {
    match place {
        Namespaces::Host => Ok(()),
        Namespaces::Own(cell) => cell.enter(),
        Namespaces::Beside(entrance) => entrance.enter(),
    }
    .map_err(|error| failed("namespaces", error))?;
    unshare(CloneFlags::CLONE_FILES).map_err(|error| failed("descriptors", error))?;
    close_fds::CloseFdsBuilder::new().cloexecfrom(3);
    if request.level == JailLevel::None {
        return Ok(());
    }
    if let Namespaces::Own(cell) = place
        && !cell.is_shown()
    {
        cell::show(jails.ready.layout(), &view(request), user)
            .map_err(|error| io::Error::new(error.kind(), format!("the jail: view: {error}")))?;
    }
    let rules = rules(jails, request, place).map_err(|error| failed("landlock", error))?;
    rustix::thread::set_no_new_privs(true).map_err(|error| failed("no_new_privs", error))?;
    if let Some(user) = user {
        let group = rustix::fs::Gid::from_raw(*jails.config.uids.start());
        let (uid, gid) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(user));
        rustix::thread::set_thread_groups(&[group])
            .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
            .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
            .map_err(|error| failed("user", error))?;
    }
    rustix::thread::set_capabilities(
        None,
        rustix::thread::CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
    .map_err(|error| failed("capabilities", error))?;
    rules.restrict().map_err(|error| failed("landlock", error))?;
    if let Some(filter) = &jails.filter {
        filter.apply().map_err(|error| failed("seccomp", error))?;
    }
    Ok(())
}

/// What landlock lets it do. A cell has most of it already, for who connects to where everybody may.
fn rules(
    jails: &Jails,
    request: &JailRequest,
    place: &Namespaces<'_>,
) -> std::result::Result<Rules, landlock::RulesetError> {
    let config = &jails.config;
    let (out, default): (Vec<u16>, bool) = match &request.egress {
        Egress::Allowed => (config.egress_ports.clone(), config.egress == Egress::Allowed),
        Egress::Ports(ports) => (ports.clone(), false),
        Egress::Denied => (Vec::new(), false),
    };
    // Whoever made the request: the host's own ports are nobody's to reach.
    let out: Vec<u16> = out.into_iter().filter(|port| !config.closed_ports.contains(port)).collect();
    let layout = jails.ready.layout();
    let prepared = match place {
        Namespaces::Own(cell) if default => cell.rules().and_then(|rules| rules.try_clone().ok()),
        _ => None,
    };
    let rules = match (place, prepared) {
        // Its `/proc` was mounted after the rules were made.
        (_, Some(prepared)) => prepared.add([Path::new("/proc")], Right::Read)?,
        // Port 0 is any port of the range for outgoing connections, in which no instance is given one.
        (Namespaces::Host, None) => {
            Rules::new(false, true)?.add_places(&jails.places)?.add_ports(&[0], &out)?
        }
        (Namespaces::Own(cell), None) => {
            layout.rules(cell.network().is_some(), true)?.add_ports(&[0], &out)?
        }
        // Whom it may signal its namespace says: the program that it belongs to.
        (Namespaces::Beside(entrance), None) => {
            layout.rules(entrance.own_network(), false)?.add_ports(&[0], &out)?
        }
    };
    let rules = rules.add_ports(&request.ports, request.own_port.as_slice())?;
    let in_cell = !matches!(place, Namespaces::Host);
    let known = |path: &&Path| !(in_cell && layout.allows(path));
    let all = request.data.iter().chain(&request.writable).map(PathBuf::as_path).filter(known);
    let read = request.readable.iter().map(PathBuf::as_path).filter(known);
    let read = read.filter(|path| !rules::is_systems(path));
    let packages = request.later.iter().chain(&request.package).map(PathBuf::as_path).filter(known);
    let right = if in_cell { Right::All } else { Right::Read };
    rules.add(all, Right::All)?.add(read, Right::Read)?.add(packages, right)
}
