//! The control groups of containers.
//!
//! `crun` runs containers in a group that it was put into; `runc` insists on making groups of its own, in every
//! hierarchy, and is told where and with which limits.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use sas_runtime_os::{
    ControlGroups,
    cgroup::{self, Cgroup, Cgroups, Limits, Met, Run},
};

use crate::store::RunDir;

/// The groups of a host's containers.
#[derive(Debug)]
pub(crate) struct Groups {
    ours: Cgroups,
    /// Where `runc` makes its own: a name below every hierarchy.
    theirs: Option<Theirs>,
}

#[derive(Debug)]
struct Theirs {
    name: String,
    mounts: Vec<PathBuf>,
    next: AtomicU64,
    unused: Arc<Mutex<Vec<Vec<PathBuf>>>>,
    run: Arc<RunDir>,
}

/// The group of one container.
#[derive(Debug)]
pub(crate) enum Group {
    /// It is to be put into these directories before it starts.
    Ours(Cgroup),
    /// The runtime makes it.
    Theirs(TheirGroup),
}

#[derive(Debug)]
pub(crate) struct TheirGroup {
    /// As the specification names it.
    pub(crate) path: String,
    dirs: Vec<PathBuf>,
    unused: Arc<Mutex<Vec<Vec<PathBuf>>>>,
    run: Arc<RunDir>,
}

/// The mount points of all hierarchies.
fn mounts() -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            (kind == "cgroup" || kind == "cgroup2").then(|| left.split(' ').nth(4).map(PathBuf::from))?
        })
        .collect()
}

/// Whether version 2 is mounted beside version 1, without controllers: `crun` refuses to look at it.
pub(crate) fn hybrid() -> Option<&'static Path> {
    let unified = Path::new("/sys/fs/cgroup/unified");
    mounts().iter().any(|mount| mount == unified).then_some(unified)
}

impl Groups {
    /// All of them are held to `together`, beside what each is held to.
    pub(crate) fn open(config: &ControlGroups, run: &Arc<RunDir>, theirs: bool, together: &Limits) -> Self {
        let as_run: Arc<dyn Run> = Arc::clone(run) as Arc<dyn Run>;
        if !theirs || *config == ControlGroups::Off {
            return Self { ours: Cgroups::open(config, &as_run, together), theirs: None };
        }
        let inode = fs::metadata(run.dir()).map_or(0, |metadata| metadata.ino());
        let name = format!("sas-{inode:x}-{}", run.dir().file_name().unwrap_or_default().to_string_lossy());
        let mounts = mounts();
        let list: String = mounts.iter().map(|mount| format!("{}\n", mount.join(&name).display())).collect();
        let ours = Cgroups::open(&ControlGroups::Off, &as_run, together);
        // Known before they are made, so that none is forgotten.
        let listed = fs::write(run.dir().join(cgroup::LIST), list);
        let bases: Vec<PathBuf> = mounts.iter().map(|mount| mount.join(&name)).collect();
        if listed.is_ok() {
            let held = bases
                .iter()
                .try_for_each(fs::create_dir)
                .and_then(|()| cgroup::hold_together(&bases, together));
            if let Err(error) = held {
                tracing::warn!(%error, "containers have no ceiling of memory and processes together");
            }
        }
        let theirs = (!mounts.is_empty() && listed.is_ok()).then(|| Theirs {
            name,
            mounts,
            next: AtomicU64::new(0),
            unused: Arc::default(),
            run: Arc::clone(run),
        });
        Self { ours, theirs }
    }

    /// Why there are none; `None`: there are.
    pub(crate) fn missing(&self) -> Option<&str> {
        if self.theirs.is_some() { None } else { self.ours.missing() }
    }

    pub(crate) fn make(&self, limits: &Limits) -> std::io::Result<Option<Group>> {
        let Some(theirs) = &self.theirs else { return Ok(self.ours.make(limits)?.map(Group::Ours)) };
        let number = theirs.next.fetch_add(1, Ordering::Relaxed);
        let path = format!("/{}/{number}", theirs.name);
        let dirs = theirs.mounts.iter().map(|mount| mount.join(&path[1..])).collect();
        let (unused, run) = (Arc::clone(&theirs.unused), Arc::clone(&theirs.run));
        Ok(Some(Group::Theirs(TheirGroup { path, dirs, unused, run })))
    }

    pub(crate) fn any_unused(&self) -> bool {
        self.ours.any_unused() || self.theirs.as_ref().is_some_and(|theirs| !theirs.unused.lock().is_empty())
    }

    /// Removes groups that no container is in any more. It touches the file system and blocks the caller.
    pub(crate) fn remove_unused(&self) {
        self.ours.remove_unused();
        if let Some(theirs) = &self.theirs {
            for dirs in std::mem::take(&mut *theirs.unused.lock()) {
                for dir in dirs {
                    cgroup::remove(&dir);
                }
            }
        }
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let left = self.mounts.iter().filter(|mount| !cgroup::remove(&mount.join(&self.name))).count();
        if left > 0 {
            self.run.leave();
        }
    }
}

impl Drop for TheirGroup {
    fn drop(&mut self) {
        self.unused.lock().push(std::mem::take(&mut self.dirs));
        self.run.wake_sweeper();
    }
}

impl Group {
    /// Directories into which a container is to be put before it starts.
    pub(crate) fn to_join(&self) -> &[PathBuf] {
        match self {
            Self::Ours(group) => group.dirs(),
            Self::Theirs(_) => &[],
        }
    }

    /// Its directories, for the container to read.
    pub(crate) fn to_show(&self) -> &[PathBuf] {
        match self {
            Self::Ours(group) => group.dirs(),
            // The runtime mounts what it has made.
            Self::Theirs(_) => &[],
        }
    }

    pub(crate) fn ran_out_of_memory(&self) -> bool {
        match self {
            Self::Ours(group) => group.ran_out_of_memory(),
            Self::Theirs(group) => cgroup::ran_out_of_memory(&group.dirs),
        }
    }

    /// Which limit of memory it has met.
    pub(crate) fn met_memory(&self) -> Met {
        match self {
            Self::Ours(group) => group.met_memory(),
            Self::Theirs(group) => cgroup::met_memory(&group.dirs),
        }
    }
}
