//! Finds processes that belong to a host or to one of its instances, wherever they have gone.
//!
//! A process can leave its group, its session and its parent, and take other standard input. Where no namespace and no
//! control group holds it, a mark does: a resource limit that nobody uses (`RLIMIT_RTTIME`, the time of real-time
//! processes, at many thousand years), whose value says whose the process is. It is inherited by whatever a program
//! starts, and can be lowered but never raised again. It needs no privilege, no process that all are children of, and
//! leaves the host's own children alone. A program that lowers it on purpose is not found: that takes a namespace.
//!
//! Other processes are found by the empty file that a host gave all its instances as standard input.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::process::{Pid, Resource, Signal, kill_process};

/// The file of a run that holds its number.
pub const MARK: &str = "mark";

/// Values are `4`, eight digits of the run, ten of the instance: a text of nineteen digits, in which a run is a prefix.
const BASE: u64 = 4_000_000_000_000_000_000;
const RUNS: u64 = 100_000_000;
const EACH: u64 = 10_000_000_000;

/// The marks of one run of a host.
#[derive(Debug)]
pub struct Marks {
    run: u64,
    given: AtomicU64,
}

/// How processes of a jail are told from all others: the filters of system calls that it adds to the host's.
///
/// What a program has started in the instant between its own start and its mark has no mark. It is among the processes
/// that are younger than the program, and, as long as one program is started at a time, the only one that is jailed and
/// not marked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(u32);

impl Signature {
    /// Of jails that add so many filters. `None` where the kernel does not count them (before Linux 5.9).
    pub fn of(added: u32) -> Option<Self> {
        let own = field(&fs::read_to_string("/proc/self/status").ok()?, "Seccomp_filters:")?;
        (added > 0).then_some(Self(own + added))
    }

    fn is_on(self, status: &str) -> bool {
        field(status, "NoNewPrivs:") == Some(1) && field(status, "Seccomp_filters:") >= Some(self.0)
    }
}

fn field(status: &str, name: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// The mark of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

impl Marks {
    /// Begins a run, whose number is written to its directory, so that whoever finds it dead can end what it left.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(run: &Path) -> io::Result<Self> {
        use std::hash::{BuildHasher as _, Hasher as _};
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let marks = Self { run: random % RUNS, given: AtomicU64::new(0) };
        fs::write(run.join(MARK), marks.prefix())?;
        Ok(marks)
    }

    /// The first digits of all marks of the run.
    pub fn prefix(&self) -> String {
        prefix(self.run)
    }

    /// The next one, less than all before it: what descends from one instance can still be marked as another.
    pub fn next(&self) -> Mark {
        let given = self.given.fetch_add(1, Ordering::Relaxed) % EACH;
        Mark(BASE + self.run * EACH + (EACH - 1 - given))
    }
}

fn prefix(run: u64) -> String {
    format!("4{run:08}")
}

impl Mark {
    /// Marks a process that was started just now, and what it has started so far: its descendants, and what is jailed
    /// like it, younger, and not marked. One that has ended is left alone.
    ///
    /// # Errors
    /// Those of prlimit(2).
    pub fn put(self, pid: Pid, signature: Option<Signature>) -> rustix::io::Result<()> {
        let mut all = vec![pid.as_raw_pid()];
        let mut at = 0;
        loop {
            while let Some(pid) = all.get(at).copied() {
                if let Some(pid) = Pid::from_raw(pid) {
                    crate::limits::set(pid, &[(Resource::Rttime, self.0)])?;
                }
                all.extend(
                    crate::usage::children(pid)
                        .into_iter()
                        .filter(|child| !all.contains(child))
                        .collect::<Vec<_>>(),
                );
                at += 1;
            }
            if let Some(signature) = signature {
                all.extend(
                    younger(pid.as_raw_pid())
                        .into_iter()
                        .filter(|pid| {
                            let read = |file: &str| {
                                fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default()
                            };
                            !all.contains(pid)
                                && signature.is_on(&read("status"))
                                && mark_of(&read("limits")).is_none()
                        })
                        .collect::<Vec<_>>(),
                );
            }
            if at == all.len() {
                return Ok(());
            }
        }
    }

    /// Ends every process that has it. Returns how many there were. Blocks on `/proc`.
    pub fn kill(self) -> usize {
        kill_marked(&self.0.to_string())
    }
}

/// Ends what a run has left, by the number in its directory. Returns how many processes there were. Blocks on `/proc`.
pub fn kill_run(run: &Path) -> usize {
    let Ok(text) = fs::read_to_string(run.join(MARK)) else { return 0 };
    match text.strip_prefix('4').filter(|run| run.len() == 8).and_then(|run| run.parse().ok()) {
        Some(run) => kill_marked(&prefix(run)),
        None => 0,
    }
}

/// Processes that were started after one. Where numbers have gone round meanwhile, all of them.
fn younger(than: i32) -> Vec<i32> {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let last = load.split_whitespace().last().and_then(|last| last.parse::<i32>().ok()).unwrap_or(0);
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let all = entries.filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse().ok()));
    all.filter(|pid| last < than || *pid > than).collect()
}

/// The mark in a text of limits.
fn mark_of(limits: &str) -> Option<&str> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max realtime timeout"))?;
    line.split_whitespace().nth(1).filter(|hard| hard.len() == 19 && hard.starts_with('4'))
}

/// The processes whose mark begins with `digits`.
fn marked(digits: &str) -> Vec<Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(limits) = fs::read_to_string(entry.path().join("limits")) else { continue };
        if mark_of(&limits).is_some_and(|mark| mark.starts_with(digits)) {
            found.extend(Pid::from_raw(pid));
        }
    }
    found
}

fn is_zombie(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid()))
        .is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[allow(
    clippy::disallowed_methods,
    reason = "where blocking is allowed: the killed end when they are scheduled"
)]
fn kill_marked(digits: &str) -> usize {
    let mut killed = 0;
    for round in 0..500 {
        if round > 2 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let found: Vec<Pid> = marked(digits).into_iter().filter(|pid| !is_zombie(*pid)).collect();
        if found.is_empty() {
            break;
        }
        // First none of them runs, so that none can start another while the others are ended.
        let signal = if round == 0 { Signal::STOP } else { Signal::KILL };
        for pid in found {
            let sent = kill_process(pid, signal).is_ok();
            killed += usize::from(sent && round == 1);
        }
    }
    killed
}

/// Kills every process whose standard input is `marker`, until none is found. Returns how many there were.
pub fn kill(marker: &Path) -> usize {
    // The very file, not what a link leads to.
    let Some(wanted) = fs::symlink_metadata(marker).ok().filter(fs::Metadata::is_file) else { return 0 };
    let wanted = (wanted.dev(), wanted.ino());
    let mut killed = 0;
    // A process may fork while we look; a few rounds catch the children of the killed.
    for _ in 0..4 {
        let mut found = 0;
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
                continue;
            };
            // By path, so that the kernel resolves it to the very file that is open.
            let Ok(stdin) = fs::metadata(entry.path().join("fd/0")) else { continue };
            if (stdin.dev(), stdin.ino()) == wanted
                && let Some(pid) = Pid::from_raw(pid)
                && kill_process(pid, Signal::KILL).is_ok()
            {
                found += 1;
            }
        }
        if found == 0 {
            break;
        }
        killed += found;
    }
    killed
}

/// How long a child that has ended is left to whoever may have started it.
const LEFT_FOR: Duration = Duration::from_secs(60);

/// Collects children that the host did not start, as process 1 of a container gets them: orphans of the whole container.
/// One that a library of the host has started and waits for later is left alone for a minute.
#[derive(Debug, Default)]
pub struct Orphans(HashMap<i32, Duration>);

impl Orphans {
    /// Whether this process is the one that gets orphans.
    pub fn are_ours() -> bool {
        std::process::id() == 1
    }

    /// Collects what has ended for long enough. `now` counts from anywhere; `own` are children that somebody waits for.
    /// Returns how many were collected. Blocks on `/proc`.
    pub fn collect(&mut self, now: Duration, own: impl Fn(i32) -> bool) -> usize {
        let this = i32::try_from(std::process::id()).unwrap_or(0);
        let ended: Vec<i32> = crate::usage::children(this)
            .into_iter()
            .filter(|pid| !own(*pid) && Pid::from_raw(*pid).is_some_and(is_zombie))
            .collect();
        self.0.retain(|pid, _| ended.contains(pid));
        let mut collected = 0;
        for pid in ended {
            let since = *self.0.entry(pid).or_insert(now);
            if now.saturating_sub(since) >= LEFT_FOR
                && let Some(child) = Pid::from_raw(pid)
                && rustix::process::waitpid(Some(child), rustix::process::WaitOptions::NOHANG).is_ok()
            {
                self.0.remove(&pid);
                collected += 1;
            }
        }
        collected
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "it waits for what the kernel does")]
    fn what_has_left_everything_else_is_found_by_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path()).unwrap();
        let (one, two) = (marks.next(), marks.next());
        assert!(two.0 < one.0, "a mark can only be lowered");
        let start = |mark: Mark| {
            let child = Command::new("/bin/sh")
                .args(["-c", "sleep 0.2; setsid env -i sleep 87002.5 </dev/null & exit"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            mark.put(Pid::from_child(&child), None).unwrap();
            child
        };
        let (mut first, mut second) = (start(one), start(two));
        first.wait().unwrap();
        second.wait().unwrap();
        let left =
            |mark: Mark| marked(&mark.0.to_string()).into_iter().filter(|pid| !is_zombie(*pid)).count();
        assert_eq!((left(one), left(two)), (1, 1));
        std::thread::sleep(Duration::from_millis(400));
        assert_eq!((left(one), left(two)), (1, 1), "in a session of its own, with other standard input");
        assert!(one.kill() >= 1);
        assert_eq!((left(one), left(two)), (0, 1), "the other instance's is left alone");
        assert!(kill_run(dir.path()) >= 1, "the next host finds the rest");
        assert_eq!(left(two), 0);
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "it waits for what the kernel does")]
    fn an_orphan_is_collected_after_a_while_and_own_children_never() {
        let mut child = Command::new("/bin/true").spawn().unwrap();
        let mut other = Command::new("/bin/true").spawn().unwrap();
        let (own, orphan) = (i32::try_from(child.id()).unwrap(), i32::try_from(other.id()).unwrap());
        let only = |pid: i32| pid == own || pid != orphan;
        while !Pid::from_raw(orphan).is_some_and(is_zombie) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let mut orphans = Orphans::default();
        assert_eq!(orphans.collect(Duration::ZERO, only), 0);
        assert_eq!(orphans.collect(Duration::from_secs(59), only), 0);
        assert_eq!(orphans.collect(Duration::from_secs(60), only), 1);
        assert!(other.wait().is_err(), "it was collected");
        assert!(child.wait().unwrap().success());
    }
}
