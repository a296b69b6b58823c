//! Control groups: limits of CPU, memory and processes for an instance as a whole, where this host may make groups.
//!
//! Version 2 is used where its `cpu` and `memory` controllers can be had, else version 1, else neither, which is said
//! in the notes of what is prepared and in the runtime's capabilities. Every instance with a limit gets a group, which
//! by default is every instance; a few groups with the limits that were asked for last are kept ready.
//! The groups of a run are listed in its directory, so that whoever finds the run dead can remove them.
//!
//! In version 1 a thread can join a group by itself, and what it spawns is born there: nothing runs outside for a moment,
//! and the kernel waits for nobody. In version 2 a process is moved after its spawn.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};

/// The run of a host: a directory that others find when the host died, and somebody who cleans up.
pub trait Run: std::fmt::Debug + Send + Sync + 'static {
    /// The directory of this run.
    fn dir(&self) -> &Path;
    /// Something waits to be removed by [`Cgroups::remove_unused`]. Returns at once.
    fn wake_sweeper(&self);
    /// Something could not be removed: the run's directory stays for the next host.
    fn leave(&self);
}

use crate::config::ControlGroups;

/// The file of a run that lists its groups.
pub const LIST: &str = "cgroups";

/// The period over which CPU is counted, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;
/// The kernel takes no smaller quota.
const LEAST_QUOTA_US: u64 = 1_000;

/// What an instance may use at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Thousandths of a core.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory of all its processes.
    pub memory_bytes: Option<u64>,
    /// Processes and threads at a time.
    pub processes: Option<u64>,
}

impl Limits {
    /// Whether there is a limit at all.
    pub fn any(&self) -> bool {
        *self != Self::default()
    }
}

/// Groups that are kept ready.
const READY: usize = 2;

/// Groups with the limits that were asked for last.
#[derive(Debug, Default)]
struct Stock {
    limits: Limits,
    waiting: Vec<Vec<PathBuf>>,
}

/// Where groups can be made: one directory per hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Bases {
    One { cpu: PathBuf, memory: PathBuf, pids: Option<PathBuf> },
    Two(PathBuf),
}

/// The groups of one host.
#[derive(Clone, Debug)]
pub struct Cgroups(Result<Arc<Groups>, String>);

#[derive(Debug)]
struct Groups {
    /// The directories of this run, in the order of [`Bases`].
    bases: Bases,
    next_name: AtomicU64,
    ready: Mutex<Stock>,
    unused: Mutex<Vec<Vec<PathBuf>>>,
    /// Could not be removed so far.
    stuck: Mutex<Vec<Vec<PathBuf>>>,
    run: Arc<dyn Run>,
}

/// The group of one instance; its directories are removed after it was dropped.
#[derive(Debug)]
pub struct Cgroup {
    dirs: Vec<PathBuf>,
    limits: Mutex<Limits>,
    groups: Arc<Groups>,
}

impl Cgroups {
    /// Finds out what can be had here, and makes the directories of this run.
    pub fn open(config: &ControlGroups, run: &Arc<dyn Run>) -> Self {
        let place = match config {
            ControlGroups::Off => Err("control groups are switched off (ProcessConfig::cgroups)".to_owned()),
            ControlGroups::Under(dir) => under(dir),
            ControlGroups::Auto => here(),
        };
        let made = place.and_then(|place| {
            let name = base_name(run.dir());
            let bases = place.join(&name);
            // Known before they are made, so that none is forgotten.
            let list = run.dir().join(LIST);
            let lines: String = bases.dirs().iter().map(|dir| format!("{}\n", dir.display())).collect();
            fs::write(&list, lines).map_err(|error| format!("{}: {error}", list.display()))?;
            place.prepare()?;
            for dir in bases.dirs() {
                remove_base(dir);
                fs::create_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            }
            bases.prepare()?;
            Ok(bases)
        });
        Self(made.map(|bases| {
            Arc::new(Groups {
                bases,
                next_name: AtomicU64::new(0),
                ready: Mutex::default(),
                unused: Mutex::default(),
                stuck: Mutex::default(),
                run: Arc::clone(run),
            })
        }))
    }

    /// Why there are none; `None`: there are.
    pub fn missing(&self) -> Option<&str> {
        self.0.as_ref().err().map(String::as_str)
    }

    /// Why the number of processes can't be bounded; `None`: it can.
    pub fn missing_pids(&self) -> Option<&str> {
        match &self.0 {
            Err(reason) => Some(reason),
            Ok(groups) => match &groups.bases {
                Bases::One { pids: None, .. } => Some("the controller pids is not mounted"),
                Bases::Two(base) if !hands_on(base, "pids") => Some("the controller pids was not delegated"),
                _ => None,
            },
        }
    }

    /// A group with these limits; `None` where there are no groups or no limits.
    ///
    /// # Errors
    /// Those of the control group file system: a limit that the kernel does not take, say.
    pub fn make(&self, limits: &Limits) -> io::Result<Option<Cgroup>> {
        let Ok(groups) = &self.0 else { return Ok(None) };
        if !limits.any() {
            return Ok(None);
        }
        let waiting = {
            let mut ready = groups.ready.lock();
            if ready.limits == *limits { ready.waiting.pop() } else { None }
        };
        let dirs = match waiting {
            Some(dirs) => dirs,
            None => groups.make(limits)?,
        };
        Ok(Some(Cgroup { dirs, limits: Mutex::new(*limits), groups: Arc::clone(groups) }))
    }

    /// Whether groups with these limits are to be made ready.
    pub fn wants(&self, limits: &Limits) -> bool {
        self.0.as_ref().is_ok_and(|groups| {
            let ready = groups.ready.lock();
            limits.any() && (ready.limits != *limits || ready.waiting.len() < READY)
        })
    }

    /// Makes groups with these limits ready, and gives up what waits with others. Blocks.
    pub fn fill(&self, limits: &Limits) {
        let Ok(groups) = &self.0 else { return };
        if !limits.any() {
            return;
        }
        let other = {
            let mut ready = groups.ready.lock();
            if ready.limits == *limits {
                Vec::new()
            } else {
                ready.limits = *limits;
                std::mem::take(&mut ready.waiting)
            }
        };
        if !other.is_empty() {
            groups.unused.lock().extend(other);
            groups.run.wake_sweeper();
        }
        while groups.ready.lock().waiting.len() < READY {
            // The next start makes its own, and says what is wrong.
            let Ok(dirs) = groups.make(limits) else { return };
            let mut ready = groups.ready.lock();
            if ready.limits == *limits {
                ready.waiting.push(dirs);
            } else {
                drop(ready);
                groups.unused.lock().push(dirs);
                return;
            }
        }
    }

    /// Gives up what waits. Blocks not at all: [`remove_unused`](Self::remove_unused) does.
    pub fn close(&self) {
        if let Ok(groups) = &self.0 {
            let waiting = std::mem::take(&mut groups.ready.lock().waiting);
            groups.unused.lock().extend(waiting);
        }
    }

    /// Whether groups wait for [`Cgroups::remove_unused`].
    pub fn any_unused(&self) -> bool {
        self.0.as_ref().is_ok_and(|groups| !groups.unused.lock().is_empty())
    }

    /// Removes groups whose instances are gone, and ends what they left in them. Blocks.
    pub fn remove_unused(&self) {
        let Ok(groups) = &self.0 else { return };
        let mut all = std::mem::take(&mut *groups.unused.lock());
        all.append(&mut groups.stuck.lock());
        for dirs in all {
            if !dirs.iter().all(|dir| remove_group(dir, 50)) {
                groups.stuck.lock().push(dirs);
            }
        }
    }
}

impl Groups {
    /// The directories of a group with these limits; none of them stays when one can't be had.
    fn make(&self, limits: &Limits) -> io::Result<Vec<PathBuf>> {
        let name = self.next_name.fetch_add(1, Ordering::Relaxed).to_string();
        let place = self.bases.join(&name);
        let mut dirs = Vec::new();
        let made = place.dirs().into_iter().try_for_each(|dir| {
            fs::create_dir(dir)?;
            dirs.push(dir.to_path_buf());
            Ok(())
        });
        match made.and_then(|()| place.limit(limits)) {
            Ok(()) => Ok(dirs),
            Err(error) => {
                self.unused.lock().push(dirs);
                self.run.wake_sweeper();
                Err(error)
            }
        }
    }
}

impl Drop for Groups {
    fn drop(&mut self) {
        // All are tried, whatever becomes of the first.
        let left = self.bases.dirs().into_iter().filter(|base| !remove_base(base)).count();
        if left > 0 {
            // The next host clears them, by the list.
            self.run.leave();
        }
    }
}

impl Cgroup {
    /// Takes a process and its descendants in.
    ///
    /// They run since a moment ago: what was allocated before stays with the host, and who was forked before is found.
    ///
    /// # Errors
    /// Those of the control group file system; a process that has ended is none.
    pub fn add(&self, pid: Pid) -> io::Result<()> {
        let mut known = vec![pid.as_raw_pid()];
        self.write(pid.as_raw_pid())?;
        let mut at = 0;
        while let Some(parent) = known.get(at).copied() {
            for child in crate::usage::children(parent) {
                if !known.contains(&child) {
                    self.write(child)?;
                    known.push(child);
                }
            }
            at += 1;
        }
        Ok(())
    }

    fn write(&self, pid: i32) -> io::Result<()> {
        for dir in &self.dirs {
            match fs::write(dir.join("cgroup.procs"), pid.to_string()) {
                // It has ended already: there is nothing to limit.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Takes the calling thread in, so that what it spawns is born in the group. False where that can't be done, and the
    /// process is to be [`add`](Self::add)ed.
    ///
    /// # Errors
    /// Those of the control group file system.
    pub fn join(&self) -> io::Result<bool> {
        // The thread counts until it ends: with a limit of one there would be no room for what it spawns.
        if matches!(self.groups.bases, Bases::Two(_)) || self.limits().processes.is_some_and(|most| most < 2)
        {
            return Ok(false);
        }
        for dir in &self.dirs {
            fs::write(dir.join("tasks"), "0")?;
        }
        Ok(true)
    }

    /// Ends every process in it, whatever group, session or parent it has taken.
    pub fn kill(&self) {
        for dir in &self.dirs {
            if fs::write(dir.join("cgroup.kill"), "1").is_err() {
                kill_all(dir);
            }
        }
    }

    /// Holds it to other limits.
    ///
    /// # Errors
    /// Those of the control group file system: a limit that the kernel does not take, say.
    pub fn set(&self, limits: &Limits) -> io::Result<()> {
        let mut held = self.limits.lock();
        if *held != *limits
            && let Some(name) = self.dirs.first().and_then(|dir| dir.file_name()?.to_str())
        {
            self.groups.bases.join(name).limit(limits)?;
            *held = *limits;
        }
        Ok(())
    }

    /// What it is held to.
    pub fn limits(&self) -> Limits {
        *self.limits.lock()
    }

    /// How often it was refused another process or thread.
    pub fn refused_processes(&self) -> u64 {
        let count = |dir: &PathBuf| -> Option<u64> {
            let text = fs::read_to_string(dir.join("pids.events")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("max ")?.trim().parse().ok())
        };
        self.dirs.iter().filter_map(count).max().unwrap_or(0)
    }

    /// Its directories, one per hierarchy.
    pub fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Whether the kernel has killed something in it for want of memory.
    pub fn ran_out_of_memory(&self) -> bool {
        ran_out_of_memory(&self.dirs)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        self.groups.unused.lock().push(std::mem::take(&mut self.dirs));
        self.groups.run.wake_sweeper();
    }
}

impl Bases {
    fn dirs(&self) -> Vec<&Path> {
        match self {
            // Controllers may be mounted together.
            Self::One { cpu, memory, pids } => {
                let mut dirs = vec![cpu.as_path()];
                dirs.extend(Some(memory.as_path()).filter(|memory| *memory != cpu));
                dirs.extend(pids.as_deref().filter(|pids| *pids != cpu && *pids != memory));
                dirs
            }
            Self::Two(dir) => vec![dir],
        }
    }

    fn join(&self, name: &str) -> Self {
        match self {
            Self::One { cpu, memory, pids } => Self::One {
                cpu: cpu.join(name),
                memory: memory.join(name),
                pids: pids.as_ref().map(|pids| pids.join(name)),
            },
            Self::Two(dir) => Self::Two(dir.join(name)),
        }
    }

    /// Lets groups below it have the controllers.
    fn prepare(&self) -> Result<(), String> {
        let Self::Two(dir) = self else { return Ok(()) };
        let control = dir.join("cgroup.subtree_control");
        for controller in ["cpu", "memory", "pids"] {
            if !hands_on(dir, controller)
                && let Err(error) = fs::write(&control, format!("+{controller}"))
                && controller != "pids"
            {
                return Err(format!(
                    "{}: +{controller}: {error}; delegate a control group without processes of its own to this host \
                     and name it in ProcessConfig::cgroups",
                    control.display()
                ));
            }
        }
        Ok(())
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        let quota = |millis: u32| (u64::from(millis) * PERIOD_US / 1000).max(LEAST_QUOTA_US);
        match self {
            Self::One { cpu, memory, pids } => {
                if let Some(millis) = limits.cpu_millis {
                    fs::write(cpu.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
                    fs::write(cpu.join("cpu.cfs_quota_us"), quota(millis).to_string())?;
                }
                if let Some(bytes) = limits.memory_bytes {
                    fs::write(memory.join("memory.limit_in_bytes"), bytes.to_string())?;
                    optional(&memory.join("memory.memsw.limit_in_bytes"), &bytes.to_string())?;
                }
                if let (Some(most), Some(pids)) = (limits.processes, pids) {
                    fs::write(pids.join("pids.max"), most.to_string())?;
                }
            }
            Self::Two(dir) => {
                if let Some(millis) = limits.cpu_millis {
                    fs::write(dir.join("cpu.max"), format!("{} {PERIOD_US}", quota(millis)))?;
                }
                if let Some(bytes) = limits.memory_bytes {
                    fs::write(dir.join("memory.max"), bytes.to_string())?;
                    optional(&dir.join("memory.swap.max"), "0")?;
                    // Half an instance serves nobody.
                    optional(&dir.join("memory.oom.group"), "1")?;
                }
                if let Some(most) = limits.processes {
                    fs::write(dir.join("pids.max"), most.to_string())?;
                }
            }
        }
        Ok(())
    }
}

/// Whether groups below a directory of version 2 have a controller.
fn hands_on(dir: &Path, controller: &str) -> bool {
    fs::read_to_string(dir.join("cgroup.subtree_control"))
        .is_ok_and(|text| text.split_whitespace().any(|one| one == controller))
}

/// Writes where the kernel has the file at all.
fn optional(path: &Path, text: &str) -> io::Result<()> {
    if path.exists() { fs::write(path, text) } else { Ok(()) }
}

/// One name per run, also beside the runs of other stores.
fn base_name(run: &Path) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let inode = fs::metadata(run).map_or(0, |metadata| metadata.ino());
    format!("sas-{inode:x}-{}", run.file_name().unwrap_or_default().to_string_lossy())
}

/// Where groups below this process's own could be made.
fn here() -> Result<Bases, String> {
    let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let mounts = Mounts::parse(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
    if let Some(dir) = &mounts.two
        && has_controllers(dir)
    {
        return Ok(Bases::Two(dir.clone()));
    }
    match (mounts.cpu, mounts.memory) {
        (Some(cpu), Some(memory)) => Ok(Bases::One { cpu, memory, pids: mounts.pids }),
        (cpu, memory) => Err(format!(
            "this host has no control groups with the controllers cpu and memory (version 2: {}, version 1: cpu {}, \
             memory {})",
            mounts.two.map_or("not mounted", |_| "without them"),
            cpu.map_or("no", |_| "yes"),
            memory.map_or("no", |_| "yes"),
        )),
    }
}

/// The memory that this host may use: the machine's, or what its control group or one above it leaves of it. Bytes.
pub fn memory_here() -> Option<u64> {
    let read = |path: &Path| fs::read_to_string(path).ok();
    let total = read(Path::new("/proc/meminfo")).and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let own = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    let mounts = Mounts::parse(&read(Path::new("/proc/self/mountinfo")).unwrap_or_default(), &own);
    let above = |dir: Option<PathBuf>, file: &str| -> Vec<u64> {
        let dir = dir.unwrap_or_default();
        dir.ancestors().filter_map(|dir| read(&dir.join(file))?.trim().parse().ok()).collect()
    };
    let mut all = above(mounts.two, "memory.max");
    all.extend(above(mounts.memory, "memory.limit_in_bytes"));
    all.into_iter().chain(total).min()
}

fn under(dir: &Path) -> Result<Bases, String> {
    if has_controllers(dir) {
        return Ok(Bases::Two(dir.to_path_buf()));
    }
    Err(format!(
        "cgroups: {}: it is no directory of control groups of version 2 with the controllers cpu and memory",
        dir.display()
    ))
}

fn has_controllers(dir: &Path) -> bool {
    fs::read_to_string(dir.join("cgroup.controllers")).is_ok_and(|text| {
        ["cpu", "memory"].iter().all(|wanted| text.split_whitespace().any(|one| one == *wanted))
    })
}

/// This process's own group in each hierarchy, as a directory.
#[derive(Debug, Default, PartialEq, Eq)]
struct Mounts {
    cpu: Option<PathBuf>,
    memory: Option<PathBuf>,
    pids: Option<PathBuf>,
    two: Option<PathBuf>,
}

impl Mounts {
    /// From `/proc/self/mountinfo` and `/proc/self/cgroup`.
    fn parse(mountinfo: &str, own: &str) -> Self {
        let mut mounts = Self::default();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let left: Vec<&str> = left.split(' ').collect();
            let right: Vec<&str> = right.split(' ').collect();
            let (Some(root), Some(point), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
                continue;
            };
            let dir = |controller: &str| {
                let path = own.lines().find_map(|line| {
                    let mut parts = line.splitn(3, ':').skip(1);
                    let (names, path) = (parts.next()?, parts.next()?);
                    names.split(',').any(|name| name == controller).then_some(path)
                })?;
                // In a container the mount shows a part of the tree only.
                let below = if *root == "/" { path } else { path.strip_prefix(root)? };
                Some(Path::new(point).join(below.trim_start_matches('/')))
            };
            if *kind == "cgroup2" {
                mounts.two = mounts.two.or_else(|| dir(""));
            } else if *kind == "cgroup" {
                let options = right.last().copied().unwrap_or_default();
                for controller in options.split(',') {
                    match controller {
                        "cpu" => mounts.cpu = mounts.cpu.take().or_else(|| dir("cpu")),
                        "memory" => mounts.memory = mounts.memory.take().or_else(|| dir("memory")),
                        "pids" => mounts.pids = mounts.pids.take().or_else(|| dir("pids")),
                        _ => {}
                    }
                }
            }
        }
        mounts
    }
}

/// Whether the kernel has killed something in a group for want of memory, by its directories.
pub fn ran_out_of_memory(dirs: &[PathBuf]) -> bool {
    dirs.iter().any(|dir| {
        ["memory.events", "memory.oom_control"].iter().any(|file| {
            fs::read_to_string(dir.join(file)).is_ok_and(|text| {
                text.lines()
                    .filter_map(|line| line.strip_prefix("oom_kill "))
                    .any(|count| count.trim() != "0")
            })
        })
    })
}

/// Ends what runs in a group and in the groups below it and removes them; false when something does not go, and for a
/// directory that is none of ours: it or one above it has a name that begins with `sas-`. Blocks.
pub fn remove(group: &Path) -> bool {
    group.ancestors().any(is_ours) && (!group.exists() || remove_base(group))
}

/// Removes the groups that a dead run has listed. False when something is left.
pub fn clear(list: &Path) -> bool {
    let Ok(text) = fs::read_to_string(list) else { return true };
    text.lines().map(Path::new).filter(|base| is_ours(base)).filter(|base| !remove_base(base)).count() == 0
}

/// Lists are read by whoever finds them: nothing but a directory of ours is ever removed.
fn is_ours(base: &Path) -> bool {
    base.is_absolute()
        && base.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("sas-"))
}

/// Removes the directory of a run and all groups in it.
fn remove_base(base: &Path) -> bool {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_group(&entry.path(), 50);
        }
    }
    remove_group(base, 1)
}

/// Ends what is in a group of version 1, until nothing is: who forks meanwhile is found by the next look. This process
/// stands there too while a thread of its own has joined to spawn, and is never ended.
fn kill_all(dir: &Path) {
    let own = rustix::process::getpid();
    for _ in 0..16 {
        let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
        let mut found = false;
        for pid in text.lines().filter_map(|pid| pid.parse().ok().and_then(Pid::from_raw)) {
            found |= pid != own && kill_process(pid, Signal::KILL).is_ok();
        }
        if !found {
            return;
        }
    }
}

/// Ends what is in a group and removes it; false when it does not go.
#[allow(
    clippy::disallowed_methods,
    reason = "where blocking is allowed: a group goes a moment after its processes"
)]
fn remove_group(dir: &Path, rounds: u32) -> bool {
    for round in 0..rounds {
        if round > 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        if fs::write(dir.join("cgroup.kill"), "1").is_err() {
            kill_all(dir);
        }
        match fs::remove_dir(dir) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return true,
            Err(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_kills_a_group_that_a_thread_of_its_own_has_joined_lives_on() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.procs"), format!("{}\n", std::process::id())).unwrap();
        kill_all(dir.path());
    }

    const V2: &str = "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";

    fn dir(path: &str) -> Option<PathBuf> {
        Some(path.into())
    }

    #[test]
    fn own_groups_are_found_in_every_layout() {
        let v1 = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
                  32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        let cases = [
            (
                V2,
                "0::/system.slice/host.service",
                Mounts { two: dir("/sys/fs/cgroup/system.slice/host.service"), ..Mounts::default() },
            ),
            (
                v1,
                "3:cpu,cpuacct:/a\n2:memory:/b/c\n",
                Mounts {
                    cpu: dir("/sys/fs/cgroup/cpu,cpuacct/a"),
                    memory: dir("/sys/fs/cgroup/memory/b/c"),
                    ..Mounts::default()
                },
            ),
            // A container without a namespace for groups sees its own part as the root.
            (
                "35 31 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory",
                "2:memory:/docker/abc",
                Mounts { memory: dir("/sys/fs/cgroup/memory/"), ..Mounts::default() },
            ),
            ("20 1 0:5 / /proc rw - proc proc rw", "0::/", Mounts::default()),
        ];
        for (mountinfo, own, expected) in cases {
            assert_eq!(Mounts::parse(mountinfo, own), expected, "{mountinfo}");
        }
    }

    #[test]
    fn controllers_that_are_mounted_together_have_one_directory() {
        let both = PathBuf::from("/cpu,memory");
        let place = Bases::One { cpu: both.clone(), memory: both.clone(), pids: None };
        assert_eq!(place.dirs(), [both.as_path()]);
    }

    #[test]
    fn only_directories_of_ours_are_ever_removed() {
        for (path, ours) in
            [("/sys/fs/cgroup/sas-1f-12-1", true), ("/sys/fs/cgroup", false), ("sas-x", false), ("/", false)]
        {
            assert_eq!(is_ours(Path::new(path)), ours, "{path}");
        }
    }

    #[test]
    fn what_is_no_control_group_is_refused_by_name() {
        let reason = under(Path::new("/tmp")).unwrap_err();
        assert!(reason.contains("cgroups: /tmp") && reason.contains("version 2"), "{reason}");
    }
}
