//! Control groups: limits of CPU, memory and processes for an instance as a whole, where this host may make groups.
//!
//! Version 2 is used where its `cpu` and `memory` controllers can be had, else version 1, else neither, which is said
//! in the notes of what is prepared and in the runtime's capabilities. Every instance with a limit gets a group, which
//! by default is every instance; a few groups with the limits that were asked for last are kept ready.
//! The group of a run, in which those of its instances are, bounds them all together, so that what instances take beyond
//! what is counted with ends one of them and never the host.
//!
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

impl Limits {
    /// What all instances of a runtime may use together: as given, else what this machine (or the host's own control
    /// group) has, less a reserve for the host: an eighth of the memory, 256 MiB at least and half of it at most, and a
    /// quarter of the processes.
    pub fn together(memory_bytes: Option<u64>, processes: Option<u64>) -> Self {
        let memory = || memory_here().map(|all| all - (all / 8).max(LEAST_RESERVE).min(all / 2));
        let count = || processes_here().map(|all| all / 4 * 3);
        Self {
            cpu_millis: None,
            memory_bytes: memory_bytes.or_else(memory),
            processes: processes.or_else(count),
        }
    }
}

/// Memory that is left to the host, unless that is half of all.
const LEAST_RESERVE: u64 = 256 << 20;

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
    /// What all groups below them are held to together.
    together: Limits,
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
    /// Finds out what can be had here, and makes the directories of this run. All groups that are made later are held
    /// to `together`, beside what each is held to.
    pub fn open(config: &ControlGroups, run: &Arc<dyn Run>, together: &Limits) -> Self {
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
            bases.hold(together)?;
            bases.prepare()?;
            Ok(bases)
        });
        Self(made.map(|bases| {
            Arc::new(Groups {
                bases,
                together: *together,
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

    /// What it and all others of its run are held to together.
    pub fn together(&self) -> Limits {
        self.groups.together
    }

    /// Which limit of memory was met, when something in it was killed for want of memory.
    pub fn met_memory(&self) -> Met {
        met_memory(&self.dirs)
    }

    /// Whether all groups of the run have had as many processes as they may have together; true where the kernel does
    /// not say.
    pub fn met_processes_together(&self) -> bool {
        let Some(most) = self.groups.together.processes else { return false };
        let peaks = self.groups.bases.dirs();
        let mut peaks = peaks.iter().filter_map(|dir| fs::read_to_string(dir.join("pids.peak")).ok());
        peaks.next().and_then(|text| text.trim().parse::<u64>().ok()).is_none_or(|peak| peak >= most)
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

    /// Holds all groups that are made below it together, before there is one.
    ///
    /// Whom the kernel ends when they run out of memory is one of them: `memory.oom.group` is left as it is here, since
    /// it would end them all.
    fn hold(&self, limits: &Limits) -> Result<(), String> {
        let write = |dir: &Path, file: &str, text: String| {
            let path = dir.join(file);
            fs::write(&path, &text).map_err(|error| format!("{}: {text}: {error}", path.display()))
        };
        match self {
            Self::One { memory, pids, .. } => {
                if let Some(bytes) = limits.memory_bytes {
                    count_below(memory)
                        .map_err(|error| format!("{}: use_hierarchy: {error}", memory.display()))?;
                    write(memory, "memory.limit_in_bytes", bytes.to_string())?;
                    optional(&memory.join("memory.memsw.limit_in_bytes"), &bytes.to_string())
                        .map_err(|error| format!("{}: swap: {error}", memory.display()))?;
                }
                if let (Some(most), Some(pids)) = (limits.processes, pids) {
                    write(pids, "pids.max", most.to_string())?;
                }
            }
            Self::Two(dir) => {
                if let Some(bytes) = limits.memory_bytes {
                    write(dir, "memory.max", bytes.to_string())?;
                }
                if let Some(most) = limits.processes
                    && dir.parent().is_some_and(|above| hands_on(above, "pids"))
                {
                    write(dir, "pids.max", most.to_string())?;
                }
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

/// Has a group of version 1 count the memory of those below it, as newer kernels always do.
fn count_below(dir: &Path) -> io::Result<()> {
    let hierarchy = dir.join("memory.use_hierarchy");
    if fs::read_to_string(&hierarchy).is_ok_and(|text| text.trim() == "0") {
        fs::write(&hierarchy, "1")?;
    }
    Ok(())
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
    let mounts = Mounts::here();
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
    let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
    });
    let mounts = Mounts::here();
    let groups = least_above(mounts.two, "memory.max");
    groups.into_iter().chain(least_above(mounts.memory, "memory.limit_in_bytes")).chain(total).min()
}

/// Processes and threads that there may be at a time, of the host's control group or the machine.
fn processes_here() -> Option<u64> {
    let kernel = ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"];
    let kernel = kernel.iter().filter_map(|path| fs::read_to_string(path).ok()?.trim().parse().ok());
    let mounts = Mounts::here();
    let groups = least_above(mounts.two, "pids.max").into_iter().chain(least_above(mounts.pids, "pids.max"));
    groups.chain(kernel).min()
}

/// The least number in the files of this name in a directory and those above it.
fn least_above(dir: Option<PathBuf>, file: &str) -> Option<u64> {
    let dir = dir?;
    dir.ancestors().filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()).min()
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
    fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"))
    }

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

/// A limit that was met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// The group's own.
    Own,
    /// That of all groups of a run together.
    Together,
    /// Neither: that of the machine, or of a group above.
    Above,
}

/// Which limit of memory a group has met, by its directories.
pub fn met_memory(dirs: &[PathBuf]) -> Met {
    /// The kernel charges by the page and some pages ahead.
    const NEAR: u64 = 64 << 10;
    let number = |dir: &Path, file: &str| -> Option<u64> {
        fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok()
    };
    let met = |dir: &Path| {
        // Version 1 counts no failures where the limit with swap is met first, so it is the high-water mark that tells.
        let most = number(dir, "memory.limit_in_bytes").zip(number(dir, "memory.max_usage_in_bytes"));
        let events = fs::read_to_string(dir.join("memory.events")).unwrap_or_default();
        most.is_some_and(|(limit, peak)| peak.saturating_add(NEAR) >= limit)
            || events.lines().any(|line| line.strip_prefix("oom ").is_some_and(|count| count.trim() != "0"))
    };
    if dirs.iter().any(|dir| met(dir)) {
        Met::Own
    } else if dirs.iter().filter_map(|dir| dir.parent()).any(met) {
        Met::Together
    } else {
        Met::Above
    }
}

/// Holds all groups that somebody else makes below these directories together, where their files are. Fails with what was
/// not taken; what a hierarchy does not bound is left.
///
/// # Errors
/// Those of the control group file system.
pub fn hold_together(dirs: &[PathBuf], limits: &Limits) -> io::Result<()> {
    for dir in dirs {
        if let Some(bytes) = limits.memory_bytes {
            count_below(dir)?;
            for file in ["memory.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"] {
                optional(&dir.join(file), &bytes.to_string())?;
            }
        }
        if let Some(most) = limits.processes {
            optional(&dir.join("pids.max"), &most.to_string())?;
        }
    }
    Ok(())
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

    #[derive(Debug)]
    struct NoRun(PathBuf);

    impl Run for NoRun {
        fn dir(&self) -> &Path {
            &self.0
        }
        fn wake_sweeper(&self) {}
        fn leave(&self) {}
    }

    /// A tree that looks like version 2 with its controllers, as far as files in a directory can.
    fn version_two(controllers: &str) -> (tempfile::TempDir, PathBuf, Arc<dyn Run>) {
        let dir = tempfile::tempdir().unwrap();
        let (tree, run) = (dir.path().join("tree"), dir.path().join("run"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir(&run).unwrap();
        fs::write(tree.join("cgroup.controllers"), controllers).unwrap();
        fs::write(tree.join("cgroup.subtree_control"), controllers).unwrap();
        (dir, tree, Arc::new(NoRun(run)))
    }

    fn text(dir: &Path, file: &str) -> Option<String> {
        fs::read_to_string(dir.join(file)).ok()
    }

    #[test]
    fn version_two_holds_each_instance_and_all_together() {
        let (_dir, tree, run) = version_two("cpu memory pids");
        let together = Limits { cpu_millis: None, memory_bytes: Some(1 << 30), processes: Some(500) };
        let groups = Cgroups::open(&ControlGroups::Under(tree.clone()), &run, &together);
        assert_eq!(groups.missing(), None);
        let base = tree.join(base_name(run.dir()));
        assert_eq!(text(&base, "memory.max").as_deref(), Some("1073741824"));
        assert_eq!(text(&base, "pids.max").as_deref(), Some("500"));
        assert_eq!(text(&base, "cpu.max"), None, "CPU is shared by weight");
        assert_eq!(text(&base, "memory.oom.group"), None, "one that takes too much does not end them all");
        assert!(text(&base, "cgroup.subtree_control").unwrap().starts_with('+'));
        assert_eq!(text(run.dir(), LIST), Some(format!("{}\n", base.display())), "the next host finds it");

        let own = Limits { cpu_millis: Some(250), memory_bytes: Some(64 << 20), processes: Some(20) };
        let group = groups.make(&own).unwrap().expect("a group");
        let [leaf] = group.dirs() else { panic!("{:?}", group.dirs()) };
        assert_eq!(leaf.parent(), Some(base.as_path()));
        assert_eq!(text(leaf, "memory.max").as_deref(), Some("67108864"));
        assert_eq!(text(leaf, "pids.max").as_deref(), Some("20"));
        assert_eq!(text(leaf, "cpu.max").as_deref(), Some("25000 100000"));
        // The kernel makes these files with the group.
        fs::write(leaf.join("memory.oom.group"), "0").unwrap();
        fs::write(leaf.join("memory.swap.max"), "max").unwrap();
        group.set(&Limits { memory_bytes: Some(32 << 20), ..own }).unwrap();
        assert_eq!(text(leaf, "memory.max").as_deref(), Some("33554432"));
        assert_eq!(text(leaf, "memory.oom.group").as_deref(), Some("1"), "half an instance serves nobody");
        assert_eq!(text(leaf, "memory.swap.max").as_deref(), Some("0"));
        group.add(Pid::from_raw(4_194_000).unwrap()).unwrap();
        assert_eq!(text(leaf, "cgroup.procs").as_deref(), Some("4194000"));
        assert!(!group.join().unwrap(), "a thread can't be moved by itself");
        group.kill();
        assert_eq!(text(leaf, "cgroup.kill").as_deref(), Some("1"));
    }

    #[test]
    fn version_two_tells_an_instances_own_limit_from_that_of_all() {
        let (_dir, tree, run) = version_two("cpu memory pids");
        let together = Limits { memory_bytes: Some(1 << 30), processes: Some(500), ..Limits::default() };
        let groups = Cgroups::open(&ControlGroups::Under(tree), &run, &together);
        let group = groups.make(&Limits { memory_bytes: Some(64 << 20), ..together }).unwrap().unwrap();
        let leaf = group.dirs()[0].clone();
        let base = leaf.parent().unwrap();
        let events = |dir: &Path, oom: u64, kills: u64| {
            let text = format!("low 0\nhigh 0\nmax 7\noom {oom}\noom_kill {kills}\noom_group_kill 0\n");
            fs::write(dir.join("memory.events"), text).unwrap();
        };
        events(&leaf, 0, 0);
        assert!(!group.ran_out_of_memory(), "it gave back what it could");
        events(&leaf, 0, 1);
        assert!(group.ran_out_of_memory());
        assert_eq!(group.met_memory(), Met::Above, "the machine's");
        events(base, 1, 1);
        assert_eq!(group.met_memory(), Met::Together);
        events(&leaf, 1, 1);
        assert_eq!(group.met_memory(), Met::Own);

        assert!(group.met_processes_together(), "an old kernel does not say");
        fs::write(base.join("pids.peak"), "499\n").unwrap();
        assert!(!group.met_processes_together());
        fs::write(base.join("pids.peak"), "500\n").unwrap();
        assert!(group.met_processes_together());
        fs::write(leaf.join("pids.events"), "max 3\n").unwrap();
        assert_eq!(group.refused_processes(), 3);
    }

    #[test]
    fn version_one_tells_an_instances_own_limit_from_that_of_all() {
        let dir = tempfile::tempdir().unwrap();
        let leaf = dir.path().join("0");
        fs::create_dir(&leaf).unwrap();
        for (dir, limit) in [(leaf.as_path(), 1 << 26), (dir.path(), 1 << 27)] {
            fs::write(dir.join("memory.limit_in_bytes"), format!("{limit}\n")).unwrap();
        }
        let peaks = |own: u64, all: u64| {
            fs::write(leaf.join("memory.max_usage_in_bytes"), format!("{own}\n")).unwrap();
            fs::write(dir.path().join("memory.max_usage_in_bytes"), format!("{all}\n")).unwrap();
            met_memory(std::slice::from_ref(&leaf))
        };
        assert_eq!(peaks(1 << 25, 1 << 26), Met::Above);
        assert_eq!(peaks(1 << 25, 1 << 27), Met::Together);
        assert_eq!(peaks((1 << 26) - 4096, 1 << 26), Met::Own);
    }

    #[test]
    fn an_old_kernels_group_counts_those_below_it_before_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let base = |name: &str| {
            let base = dir.path().join(name);
            fs::create_dir(&base).unwrap();
            base
        };
        let (cpu, memory, pids) = (base("cpu"), base("memory"), base("pids"));
        for (file, was) in [("memory.use_hierarchy", "0\n"), ("memory.memsw.limit_in_bytes", "999")] {
            fs::write(memory.join(file), was).unwrap();
        }
        let place = Bases::One { cpu: cpu.clone(), memory: memory.clone(), pids: Some(pids.clone()) };
        place.hold(&Limits { cpu_millis: None, memory_bytes: Some(4096), processes: Some(9) }).unwrap();
        assert_eq!(text(&memory, "memory.use_hierarchy").as_deref(), Some("1"));
        assert_eq!(text(&memory, "memory.limit_in_bytes").as_deref(), Some("4096"));
        assert_eq!(
            text(&memory, "memory.memsw.limit_in_bytes").as_deref(),
            Some("4096"),
            "swap is no way out"
        );
        assert_eq!(text(&pids, "pids.max").as_deref(), Some("9"));
        assert_eq!(fs::read_dir(&cpu).unwrap().count(), 0);
    }

    #[test]
    fn version_two_without_the_controller_of_processes_says_so_and_holds_the_rest() {
        let (_dir, tree, run) = version_two("cpu memory");
        let together = Limits { memory_bytes: Some(1 << 30), processes: Some(500), ..Limits::default() };
        let groups = Cgroups::open(&ControlGroups::Under(tree.clone()), &run, &together);
        assert_eq!(groups.missing(), None);
        assert!(groups.missing_pids().unwrap().contains("pids"));
        let base = tree.join(base_name(run.dir()));
        assert_eq!(text(&base, "memory.max").as_deref(), Some("1073741824"));
        assert_eq!(text(&base, "pids.max"), None);
    }

    #[test]
    fn a_machine_keeps_a_reserve_for_the_host() {
        let given = Limits::together(Some(5), Some(6));
        assert_eq!((given.memory_bytes, given.processes, given.cpu_millis), (Some(5), Some(6), None));
        let (all, together) = (memory_here().unwrap(), Limits::together(None, None));
        let memory = together.memory_bytes.unwrap();
        assert!(memory >= all / 2 && memory <= all - all / 8, "{memory} of {all}");
        let count = together.processes.unwrap();
        assert!(count > 1000 && count < processes_here().unwrap(), "{count}");
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
