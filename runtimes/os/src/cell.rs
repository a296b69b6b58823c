//! Namespaces that are kept ready, each held by a process that sleeps as process 1.
//!
//! A cell is what a jailed program starts in: namespaces for processes, mounts, IPC and the host's name, and for
//! `strict` one for the network. It is held by a small program that ignores `SIGCHLD`, so that the kernel collects
//! orphans without it (process 1's first duty), and that reads a pipe whose other end the host holds, so that a cell
//! ends with the host, however that died. The program itself is *not* process 1: it gets the signals that it has no
//! handler for, as everywhere (process 1's second duty).
//!
//! Ending the holder ends every process of the cell, whatever group, session or parent it has taken. Nothing of it is
//! left on disk: what the program wrote lies in a sized tmpfs that goes with the mounts.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{fs::PermissionsExt as _, process::CommandExt as _},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sched::{CloneFlags, setns, unshare};
use parking_lot::Mutex;
use rustix::{
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags},
    process::{Pid, PidfdFlags, Signal},
};

use crate::{
    network::Network,
    rules::{Places, Right, Rules},
};

/// Where a cell keeps its own things: on the tmpfs that replaces `/run`.
const OWN: &str = "/run/sas";
/// The home of the program.
pub const HOME: &str = "/run/sas/home";

/// What holds a cell. `/proc` is of the namespace of who mounts it, unless the kernel takes another (`pidns=`, Linux
/// 6.18). A shell waits for whatever child it gets; a `cat` whose `SIGCHLD` is ignored need not even do that.
const HOLDER: &str = "trap '' HUP INT TERM; read -r how; \
    [ \"$how\" = ready ] || mount -t proc -o nosuid,nodev,noexec proc /proc || exit 1; \
    echo ready; exec 3<&0 </dev/null >/dev/null; \
    env --ignore-signal=CHLD true && exec env --ignore-signal=CHLD cat <&3; \
    cat <&3 & wait $!";

/// The same without a shell, where the kernel lets the host mount `/proc` for it.
const QUICK_HOLDER: [&str; 5] = [
    "--ignore-signal=HUP",
    "--ignore-signal=INT",
    "--ignore-signal=TERM",
    "--ignore-signal=CHLD",
    "/bin/cat",
];

/// What a program may write to in a cell beside its package.
/// The most that `/dev/shm` holds, as containers have it; it is beside the budget of the disk, so it is small.
const SHM: u64 = 64 << 20;

const OWN_PLACES: [&str; 4] = [HOME, "/tmp", "/var/tmp", "/dev/shm"];

/// Directories that hold sockets and files of others, and are empty in a cell.
const COVERED: [&str; 6] = ["/run", "/tmp", "/var/tmp", "/dev/shm", "/root", "/home"];

/// How the mounts of cells are made; the same for all cells of a host.
#[derive(Debug)]
pub(crate) struct Layout {
    /// What instances may read beside the system's files.
    pub(crate) readable: Vec<PathBuf>,
    pub(crate) disk_bytes: u64,
    /// Empty directories in a cell, none below another.
    covered: Vec<PathBuf>,
    /// Those of them in which the host's own directories are: what is shown there is for the instance.
    shown: Vec<PathBuf>,
    /// The TCP ports that instances may connect to by default, where they share the host's network.
    ports: Vec<u16>,
    /// Whether [`QUICK_HOLDER`] can hold a cell, once that was seen.
    quick: AtomicBool,
}

impl Layout {
    /// `roots` are directories of the host's own, such as the package store.
    pub(crate) fn new(roots: &[PathBuf], readable: Vec<PathBuf>, disk_bytes: u64, ports: Vec<u16>) -> Self {
        let mut all: Vec<PathBuf> = COVERED.iter().map(PathBuf::from).collect();
        all.extend(roots.iter().cloned());
        all.extend(roots.iter().chain(&readable).filter_map(|path| gate(path)));
        let mut all: Vec<PathBuf> = all.into_iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
        all.sort();
        all.dedup();
        let mut covered: Vec<PathBuf> = Vec::new();
        for path in all {
            if path.is_dir()
                && path.parent().is_some()
                && !covered.iter().any(|above| path.starts_with(above))
            {
                covered.push(path);
            }
        }
        let roots: Vec<PathBuf> = roots.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
        let shown = covered.iter().filter(|dir| roots.iter().any(|root| root.starts_with(dir)));
        let shown = shown.cloned().collect();
        Self { readable, disk_bytes, covered, shown, ports, quick: AtomicBool::new(false) }
    }

    fn covers(&self, path: &Path) -> bool {
        self.covered.iter().any(|dir| path.starts_with(dir))
    }

    /// Whether the rules of every cell let its program at a path that it is shown.
    pub(crate) fn allows(&self, path: &Path) -> bool {
        self.shown.iter().any(|dir| path.starts_with(dir))
    }

    /// What every program of a cell may do. What it may write to as well is a matter of its user: the directories in
    /// which things are shown are not its own.
    pub(crate) fn rules(&self, own_network: bool, signals: bool) -> Result<Rules, landlock::RulesetError> {
        let own = ["/run/sas/passwd", "/run/sas/group"].map(Path::new);
        Rules::new(own_network, signals)?
            .add_places(&Places::of_system(&self.readable))?
            .add(self.shown.iter().map(PathBuf::as_path), Right::All)?
            .add(OWN_PLACES.map(Path::new), Right::All)?
            .add(own, Right::Read)
    }
}

/// The view of the disk that one program gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// Written to over itself: what is there stays as it is, and changes go with the cell.
    pub(crate) package: Option<PathBuf>,
    /// There as they are.
    pub(crate) bound: Vec<PathBuf>,
    /// There to be read.
    pub(crate) readable: Vec<PathBuf>,
    /// Whether more is shown later, to a program that runs already.
    pub(crate) more: bool,
    /// Bytes that may be written, where it is not what the layout says.
    pub(crate) disk_bytes: Option<u64>,
}

/// A view, for whom, and of which very directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    view: View,
    user: Option<u32>,
    /// Device, inode and last change of each. One that is made anew at the same path is another.
    of: Vec<Option<(u64, u64, i64, i64)>>,
}

impl Shown {
    pub(crate) fn new(view: View, user: Option<u32>) -> Self {
        use std::os::unix::fs::MetadataExt as _;
        let id = |path: &PathBuf| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino(), metadata.ctime(), metadata.ctime_nsec()))
        };
        let of = view.package.iter().chain(&view.readable).map(id).collect();
        Self { view, user, of }
    }

    /// Whether a cell can show it before it is asked for: nothing comes later, and nothing in it outlives the instance.
    fn can_wait(&self) -> bool {
        self.view.package.is_some() && self.view.bound.is_empty() && !self.view.more
    }
}

/// One set of namespaces, for one instance. Everything in it ends when this is dropped.
#[derive(Debug)]
pub struct Cell {
    holder: Option<Pid>,
    pidfd: OwnedFd,
    /// The host's end of the pipe.
    _alive: OwnedFd,
    network: Option<Arc<Network>>,
    /// What its program may do unless it asks for other ports; until its start.
    rules: Option<Rules>,
    /// The user of its program.
    user: Option<u32>,
    /// Whether its program's files are there already.
    shown: bool,
}

/// A way into a cell that somebody else keeps: for commands that run beside its program.
#[derive(Debug)]
pub struct Entrance {
    pidfd: OwnedFd,
    own_network: bool,
    user: Option<u32>,
}

impl Entrance {
    /// The user of the program that runs there.
    pub(crate) fn user(&self) -> Option<u32> {
        self.user
    }

    pub(crate) fn own_network(&self) -> bool {
        self.own_network
    }

    /// Takes the calling thread, and what it spawns from now on, into the cell.
    pub(crate) fn enter(&self) -> io::Result<()> {
        enter(self.pidfd.as_fd(), self.own_network)
    }
}

fn enter(pidfd: BorrowedFd<'_>, own_network: bool) -> io::Result<()> {
    let mut spaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if own_network {
        spaces |= CloneFlags::CLONE_NEWNET;
    }
    unshare(CloneFlags::CLONE_FS)?;
    Ok(setns(pidfd, spaces)?)
}

impl Cell {
    /// Makes a cell, on a thread of its own: a millisecond at most.
    pub(crate) fn make(layout: &Layout, network: bool) -> io::Result<Self> {
        let (reader, mut writer) = io::pipe()?;
        let (mut answer, told) = io::pipe()?;
        let mut rules = None;
        let holder = std::thread::scope(|scope| {
            let made = std::thread::Builder::new().name("sas-cell".into()).spawn_scoped(scope, || {
                let mut spaces = CloneFlags::CLONE_NEWNS
                    | CloneFlags::CLONE_NEWPID
                    | CloneFlags::CLONE_NEWIPC
                    | CloneFlags::CLONE_NEWUTS;
                if network {
                    spaces |= CloneFlags::CLONE_NEWNET;
                }
                unshare(CloneFlags::CLONE_FS | spaces)?;
                if network {
                    crate::rtnetlink::bring_lo_up()?;
                }
                mount_all(layout)?;
                // Their descriptor is the host's, so they are made before the thread has a table of its own.
                let made = layout.rules(network, true).map_err(io::Error::other)?;
                rules = Some(made.add_ports(&[0], &layout.ports).map_err(io::Error::other)?);
                // From here on what it closes stays open in the host.
                unshare(CloneFlags::CLONE_FILES)?;
                close_fds::CloseFdsBuilder::new().cloexecfrom(3);
                let quick = layout.quick.load(Ordering::Relaxed);
                let mut command = if quick { Command::new("/usr/bin/env") } else { Command::new("/bin/sh") };
                if quick {
                    command.args(QUICK_HOLDER).stdout(Stdio::null());
                } else {
                    command
                        .args(["-c", HOLDER, "sas-cell"])
                        .stdout(Stdio::from(told.try_clone()?))
                        .env_clear();
                }
                let child = command
                    .env_clear()
                    .current_dir("/")
                    .stdin(Stdio::from(reader.try_clone()?))
                    .stderr(Stdio::null())
                    .process_group(0)
                    .spawn()?;
                let holder = Pid::from_child(&child);
                Ok::<_, io::Error>((holder, mount_proc(holder).is_ok(), quick))
            })?;
            made.join().map_err(|_panic| io::Error::other("the thread ended"))?
        });
        drop((reader, told));
        let (holder, ready, quick) = holder?;
        let pidfd = rustix::process::pidfd_open(holder, PidfdFlags::NONBLOCK)?;
        if quick {
            if !ready {
                layout.quick.store(false, Ordering::Relaxed);
                let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
                let _ = rustix::process::waitpid(Some(holder), rustix::process::WaitOptions::empty());
                return Err(io::Error::other("/proc could not be mounted in it"));
            }
        } else if !ready {
            writer.write_all(b"mount\n")?;
            let mut word = [0u8; 6];
            if answer.read_exact(&mut word).is_err() {
                let _ = rustix::process::waitpid(Some(holder), rustix::process::WaitOptions::empty());
                return Err(io::Error::other(
                    "/proc could not be mounted in it: `mount` of util-linux is needed",
                ));
            }
        } else {
            writer.write_all(b"ready\n")?;
            layout.quick.store(can_ignore_signals(), Ordering::Relaxed);
        }
        let network = match network {
            true => Some(Network::of(pidfd.try_clone()?)),
            false => None,
        };
        Ok(Self {
            holder: Some(holder),
            pidfd,
            _alive: OwnedFd::from(writer),
            network,
            rules,
            user: None,
            shown: false,
        })
    }

    /// Its network, where it has one of its own.
    pub fn network(&self) -> Option<&Arc<Network>> {
        self.network.as_ref()
    }

    /// Readable when the cell and everything in it is gone.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The process that holds it, as the host numbers it.
    pub fn holder(&self) -> Option<i32> {
        self.holder.map(Pid::as_raw_pid)
    }

    /// Ends every process in it.
    pub fn kill(&self) {
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Collects the holder; false while something still runs.
    pub fn is_gone(&mut self) -> bool {
        let Some(holder) = self.holder else { return true };
        match rustix::process::waitpid(Some(holder), rustix::process::WaitOptions::NOHANG) {
            Ok(None) => false,
            Ok(Some(_)) | Err(_) => {
                self.holder = None;
                true
            }
        }
    }

    /// A way in for others, that does not keep it.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn entrance(&self) -> io::Result<Entrance> {
        Ok(Entrance { pidfd: self.pidfd.try_clone()?, own_network: self.network.is_some(), user: self.user })
    }

    /// Whether the program's disk is full.
    pub fn is_full(&self) -> bool {
        let Some(holder) = self.holder else { return false };
        let disk = format!("/proc/{}/root{OWN}/tmp", holder.as_raw_pid());
        rustix::fs::statvfs(disk).is_ok_and(|disk| disk.f_bavail == 0)
    }

    /// The rules that were made with it.
    pub(crate) fn rules(&self) -> Option<&Rules> {
        self.rules.as_ref()
    }

    /// They are in force.
    pub(crate) fn forget_rules(&mut self) {
        self.rules = None;
    }

    /// Whether the program's files are there already.
    pub(crate) fn is_shown(&self) -> bool {
        self.shown
    }

    /// Whose program it holds.
    pub(crate) fn belongs_to(&mut self, user: Option<u32>) {
        self.user = user;
    }

    /// Takes the calling thread, and what it spawns from now on, into the cell.
    pub(crate) fn enter(&self) -> io::Result<()> {
        enter(self.pidfd.as_fd(), self.network.is_some())
    }

    /// Shows more files to a program that runs in it already, the last.
    pub(crate) fn show(&self, layout: &Layout, view: &View, user: Option<u32>) -> io::Result<()> {
        std::thread::scope(|scope| {
            let showing = std::thread::Builder::new().name("sas-show".into()).spawn_scoped(scope, || {
                unshare(CloneFlags::CLONE_FS)?;
                setns(&self.pidfd, CloneFlags::CLONE_NEWNS)?;
                show(layout, view, user)
            })?;
            showing.join().map_err(|_panic| io::Error::other("the thread ended"))?
        })
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        self.kill();
        // Who waited for its end has collected it. Else somebody must, and nothing blocks here.
        if let Some(holder) = self.holder.take() {
            let _ = std::thread::Builder::new().name("sas-cell-end".into()).spawn(move || {
                let _ = rustix::process::waitpid(Some(holder), rustix::process::WaitOptions::empty());
            });
        }
    }
}

/// Whether this machine's `env` can have a program ignore signals (coreutils 8.31).
fn can_ignore_signals() -> bool {
    let tried = Command::new("/usr/bin/env")
        .args(["--ignore-signal=CHLD", "/bin/cat"])
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    tried.is_ok_and(|status| status.success())
}

fn at(error: impl Into<io::Error>, what: &str, path: &Path) -> io::Error {
    let error = error.into();
    io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
}

fn tmpfs(target: &Path, data: &str) -> io::Result<()> {
    let data = std::ffi::CString::new(data)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, data.as_c_str())
        .map_err(|error| at(error, "tmpfs on", target))
}

fn bind(source: &Path, target: &Path) -> io::Result<()> {
    if source.is_dir() {
        make_dirs(target)?;
    } else {
        if let Some(parent) = target.parent() {
            make_dirs(parent)?;
        }
        if !target.exists() {
            fs::write(target, "")?;
        }
    }
    rustix::mount::mount_bind_recursive(source, target).map_err(|error| at(error, "bind to", target))
}

fn make_dirs(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Ok(()) => fs::set_permissions(path, fs::Permissions::from_mode(0o755)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dirs(path.parent().ok_or(error)?)?;
            make_dirs(path)
        }
        Err(error) => Err(at(error, "create", path)),
    }
}

/// The topmost directory above `path` that not everybody may pass.
fn gate(path: &Path) -> Option<PathBuf> {
    let mut above: Vec<&Path> = path.ancestors().skip(1).filter(|dir| dir.parent().is_some()).collect();
    above.reverse();
    above
        .into_iter()
        .find(|dir| fs::metadata(dir).is_ok_and(|metadata| metadata.permissions().mode() & 0o001 == 0))
        .map(Path::to_path_buf)
}

/// Makes the mounts of a cell. The calling thread is in a mount namespace of its own.
fn mount_all(layout: &Layout) -> io::Result<()> {
    let flags = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", flags).map_err(|error| at(error, "make private", Path::new("/")))?;
    // All of it as it is, to be put where the host alone finds it.
    let clone =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::AT_RECURSIVE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let whole = rustix::mount::open_tree(rustix::fs::CWD, "/", clone)
        .map_err(|error| at(error, "clone the mounts below", Path::new("/")))?;
    let own = Path::new(OWN);
    let size = layout.disk_bytes;
    for dir in &layout.covered {
        match dir.as_path() {
            run if run == Path::new("/run") => tmpfs(run, &format!("mode=755,size={size}"))?,
            dir if dir == Path::new("/dev/shm") => tmpfs(dir, &format!("mode=1777,size={}", size.min(SHM)))?,
            dir if dir == Path::new("/tmp") || dir == Path::new("/var/tmp") => {}
            dir => tmpfs(dir, "mode=755,size=1m")?,
        }
    }
    for dir in ["", "home", "tmp", "upper", "work", "host"] {
        make_dirs(&own.join(dir))?;
    }
    fs::set_permissions(own.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    for dir in ["/tmp", "/var/tmp"] {
        bind(&own.join("tmp"), Path::new(dir))?;
    }
    let host = own.join("host");
    make_dirs(&host.join("all"))?;
    fs::set_permissions(&host, fs::Permissions::from_mode(0o700))?;
    rustix::mount::move_mount(
        whole,
        "",
        rustix::fs::CWD,
        host.join("all"),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
    .map_err(|error| at(error, "mount", &host))?;
    for path in layout.readable.iter().filter(|path| layout.covers(path)) {
        bind(&on_host(path), path)?;
    }
    // Programs ask for the name of their user; the one of this cell is written here when it is known.
    for file in ["passwd", "group"] {
        let (from, to) = (Path::new("/etc").join(file), own.join(file));
        fs::write(&to, fs::read(&from).unwrap_or_default())?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
        if from.exists() {
            bind(&to, &from)?;
        }
    }
    Ok(())
}

/// Where the host finds one of its files while it is in a cell.
fn on_host(path: &Path) -> PathBuf {
    let whole = Path::new(OWN).join("host/all");
    match path.strip_prefix("/") {
        Ok(path) => whole.join(path),
        Err(_) => whole,
    }
}

/// Mounts the `/proc` of the namespace of `holder`, where the kernel lets somebody outside of it.
fn mount_proc(holder: Pid) -> io::Result<()> {
    let data = std::ffi::CString::new(format!("pidns=/proc/{}/ns/pid", holder.as_raw_pid()))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("proc", "/proc", "proc", flags, data.as_c_str())?)
}

/// Gives the program of a cell its files. The calling thread is in the cell, and still the host's user.
pub(crate) fn show(layout: &Layout, view: &View, user: Option<u32>) -> io::Result<()> {
    let own = Path::new(OWN);
    if let Some(user) = user {
        let (uid, gid) = (Some(rustix::fs::Uid::from_raw(user)), Some(rustix::fs::Gid::from_raw(user)));
        for dir in ["home", "upper"] {
            rustix::fs::chown(own.join(dir), uid, gid)?;
        }
        let append = |file: &str, line: String| {
            fs::OpenOptions::new().append(true).open(own.join(file))?.write_all(line.as_bytes())
        };
        append("passwd", format!("app:x:{user}:{user}:app:{HOME}:/bin/sh\n"))?;
        append("group", format!("app:x:{user}:\n"))?;
    }
    if let Some(size) = view.disk_bytes.filter(|size| *size != layout.disk_bytes) {
        let disks = [("/run", size), ("/dev/shm", size.min(SHM))].map(|(disk, size)| (Path::new(disk), size));
        for (disk, size) in disks.into_iter().filter(|(disk, _)| disk.exists()) {
            let data = std::ffi::CString::new(format!("size={size}"))?;
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount_remount(disk, flags, data.as_c_str())
                .map_err(|error| at(error, "size of", disk))?;
        }
    }
    if let Some(package) = &view.package {
        make_dirs(package)?;
        let from = on_host(package);
        let metadata = fs::metadata(&from)?;
        fs::set_permissions(own.join("upper"), metadata.permissions())?;
        // Characters that mean something in the list of options.
        let lower = from.display().to_string().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:");
        let data = format!("lowerdir={lower},upperdir={OWN}/upper,workdir={OWN}/work");
        let data = std::ffi::CString::new(data)?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        rustix::mount::mount("overlay", package.as_path(), "overlay", flags, data.as_c_str())
            .map_err(|error| at(error, "overlay on", package))?;
    }
    for path in view.bound.iter().filter(|path| layout.covers(path)) {
        // What is not there now will not be: a class archive, say, that nobody has asked for.
        if on_host(path).exists() {
            bind(&on_host(path), path)?;
        }
    }
    for path in view.readable.iter().filter(|path| layout.covers(path)) {
        if on_host(path).exists() {
            bind(&on_host(path), path)?;
            let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            rustix::mount::mount_remount(path.as_path(), flags, c"")
                .map_err(|error| at(error, "read-only", path))?;
        }
    }
    if !view.more {
        // From here on nothing in the cell leads to the host's own directories.
        // It is covered, not unmounted: that would wait for the whole kernel, for milliseconds.
        tmpfs(&own.join("host"), "mode=000,size=4k")?;
    }
    Ok(())
}

/// Whoever has just taken a cell starts a program now: the next cell is not made beside that, on the same cores.
#[allow(clippy::disallowed_methods, reason = "a thread of its own, that ends when it is done")]
fn rest() {
    std::thread::sleep(Duration::from_millis(5));
}

/// Cells that wait to be used.
#[derive(Debug)]
pub(crate) struct Ready {
    layout: Layout,
    wanted: usize,
    /// Without and with a network of their own.
    waiting: [Mutex<Stock>; 2],
}

#[derive(Debug, Default)]
struct Stock {
    cells: Vec<Cell>,
    /// With the files of the program that was started last, once it was started twice in a row.
    shown: Vec<Cell>,
    last: Option<Shown>,
    again: bool,
    filling: bool,
    closed: bool,
}

impl Ready {
    pub(crate) fn new(layout: Layout, wanted: usize) -> Arc<Self> {
        Arc::new(Self { layout, wanted, waiting: [Mutex::default(), Mutex::default()] })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// A cell for a program that is to see this, best one that shows it already; made now when none is ready.
    pub(crate) fn take(self: &Arc<Self>, network: bool, view: Shown) -> io::Result<Cell> {
        let (ready, _other) = {
            let mut stock = self.waiting[usize::from(network)].lock();
            stock.again = stock.last.as_ref() == Some(&view);
            if stock.again {
                (stock.shown.pop().or_else(|| stock.cells.pop()), Vec::new())
            } else {
                stock.last = Some(view);
                (stock.cells.pop(), std::mem::take(&mut stock.shown))
            }
        };
        self.fill(network);
        match ready {
            Some(cell) => Ok(cell),
            None => Cell::make(&self.layout, network),
        }
    }

    /// What is missing in the stock: a cell, perhaps one that shows something.
    fn missing(&self, stock: &Stock) -> Option<Option<Shown>> {
        if stock.closed {
            return None;
        }
        if stock.cells.len() < self.wanted {
            return Some(None);
        }
        let last = stock.last.as_ref().filter(|last| stock.again && last.can_wait());
        last.filter(|_| stock.shown.len() < self.wanted).cloned().map(Some)
    }

    /// Makes what is missing, on a thread that ends when it is done.
    pub(crate) fn fill(self: &Arc<Self>, network: bool) {
        {
            let mut stock = self.waiting[usize::from(network)].lock();
            if stock.filling || self.missing(&stock).is_none() {
                return;
            }
            stock.filling = true;
        }
        let this = Arc::clone(self);
        let filling = std::thread::Builder::new().name("sas-cells".into()).spawn(move || {
            rest();
            loop {
                let missing = {
                    let mut stock = this.waiting[usize::from(network)].lock();
                    let missing = this.missing(&stock);
                    stock.filling = missing.is_some();
                    missing
                };
                let Some(view) = missing else { return };
                let made = Cell::make(&this.layout, network).and_then(|mut cell| {
                    if let Some(Shown { view, user, .. }) = &view {
                        cell.show(&this.layout, view, *user)?;
                        cell.shown = true;
                    }
                    Ok(cell)
                });
                let mut stock = this.waiting[usize::from(network)].lock();
                match made {
                    Ok(_) if stock.closed => {}
                    Ok(cell) if !cell.shown => stock.cells.push(cell),
                    Ok(cell) if stock.last == view => stock.shown.push(cell),
                    // Something else was started meanwhile.
                    Ok(_) => {}
                    // The next start makes its own, and says what is wrong.
                    Err(error) => {
                        tracing::warn!(%error, "no cell could be made ready");
                        stock.filling = false;
                        return;
                    }
                }
            }
        });
        if filling.is_err() {
            self.waiting[usize::from(network)].lock().filling = false;
        }
    }

    /// Ends what waits, and keeps nothing ready any more.
    pub(crate) fn close(&self) {
        for stock in &self.waiting {
            let mut stock = stock.lock();
            stock.closed = true;
            stock.cells.clear();
            stock.shown.clear();
        }
    }
}
