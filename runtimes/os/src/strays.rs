//! Finds processes that belong to a host or to one of its instances, wherever they have gone.
//!
//! A process can leave its group, its session and its parent, and take other standard input. Where no namespace and no
//! control group holds it, a mark does: a resource limit that nobody uses (`RLIMIT_RTTIME`, the time of real-time
//! processes, at many thousand years), whose value says whose the process is. It is inherited by whatever a program
//! starts. It needs no privilege, no process that all are children of, and leaves the host's own children alone. A
//! program that changes it on purpose is not found: that takes a namespace.
//!
//! A program has its mark from birth ([`Mark::spawn`]): the host has it as its soft limit for as long as the spawn takes.
//! Afterwards the program gets it as its hard limit too. What has the soft limit only is the program's when it is jailed,
//! and else a child that the host has started in that very moment for something else, which is left alone.
//!
//! Other processes are found by the empty file that a host gave all its instances as standard input.

use std::{
    collections::{BTreeSet, HashMap},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::RwLock;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};

/// The file of a run that holds the first digits of its marks, and the [`Signature`] of its jails.
pub const MARK: &str = "mark";

/// Values are `4`, eight digits of the run, ten of the instance: a text of nineteen digits, in which a run is a prefix.
const BASE: u64 = 4_000_000_000_000_000_000;
const RUNS: u64 = 100_000_000;
const EACH: u64 = 10_000_000_000;

/// A limit is the whole process's, so one program is started at a time by a mark, and no other beside it.
static STARTS: RwLock<()> = RwLock::new(());

/// Spawns a program of a jail that has no mark.
pub fn spawn_unmarked<T>(spawn: impl FnOnce() -> T) -> T {
    let _beside_others = STARTS.read();
    spawn()
}

/// The marks of one run of a host.
#[derive(Debug)]
pub struct Marks {
    run: u64,
    given: AtomicU64,
    signature: Option<Signature>,
}

/// How processes of a jail are told from all others: the filters of system calls that it adds to the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature(u32);

impl Signature {
    /// Of jails that add so many filters. `None` where the kernel does not count them (before Linux 5.9).
    pub fn of(added: u32) -> Option<Self> {
        let own = field(&fs::read_to_string("/proc/self/status").ok()?, "Seccomp_filters:")?;
        (added > 0).then_some(Self(own + added))
    }

    /// How many filters a jailed process has at least.
    pub(crate) const fn filters(self) -> u32 {
        self.0
    }

    fn is_on(self, pid: i32) -> bool {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        field(&status, "NoNewPrivs:") == Some(1) && field(&status, "Seccomp_filters:") >= Some(self.0)
    }
}

fn field(status: &str, name: &str) -> Option<u32> {
    status.lines().find_map(|line| line.strip_prefix(name))?.trim().parse().ok()
}

/// The mark of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64, Option<Signature>);

impl Marks {
    /// Begins a run, whose number is written to its directory, so that whoever finds it dead can end what it left.
    /// `signature` is that of its jails.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(run: &Path, signature: Option<Signature>) -> io::Result<Self> {
        use std::hash::{BuildHasher as _, Hasher as _};
        let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
        let marks = Self { run: random % RUNS, given: AtomicU64::new(0), signature };
        let filters = signature.map(|signature| format!(" {}", signature.filters())).unwrap_or_default();
        fs::write(run.join(MARK), marks.prefix() + &filters)?;
        Ok(marks)
    }

    /// The first digits of all marks of the run.
    pub fn prefix(&self) -> String {
        format!("4{:08}", self.run)
    }

    /// How the run's jailed processes are known.
    pub fn signature(&self) -> Option<Signature> {
        self.signature
    }

    /// The next one, less than all before it: what descends from one instance can still be marked as another.
    pub fn next(&self) -> Mark {
        let given = self.given.fetch_add(1, Ordering::Relaxed) % EACH;
        Mark(BASE + self.run * EACH + (EACH - 1 - given), self.signature)
    }
}

/// Gives the host its soft limit back.
struct Lent(Rlimit);

impl Drop for Lent {
    fn drop(&mut self) {
        // Never above the hard limit, which nobody has touched.
        let _ = setrlimit(Resource::Rttime, self.0);
    }
}

impl Mark {
    /// Spawns a program that has the mark from birth, and so has whatever it starts. Also says whether it could be
    /// marked. Blocks other starts of this process for as long as `spawn` takes.
    ///
    /// # Errors
    /// Those of `spawn`.
    pub fn spawn(self, spawn: impl FnOnce() -> io::Result<Pid>) -> io::Result<(Pid, rustix::io::Result<()>)> {
        let pid = {
            let _alone = STARTS.write();
            let before = getrlimit(Resource::Rttime);
            // Where it may not, nor may `put`, which tells.
            let lent = setrlimit(Resource::Rttime, Rlimit { current: Some(self.0), maximum: before.maximum });
            let _lent = lent.is_ok().then_some(Lent(before));
            spawn()?
        };
        Ok((pid, self.put(pid)))
    }

    /// Marks a process that runs already, and its descendants. One that has ended is left alone.
    ///
    /// # Errors
    /// Those of prlimit(2).
    pub fn put(self, pid: Pid) -> rustix::io::Result<()> {
        let mut all = vec![pid.as_raw_pid()];
        let mut at = 0;
        while let Some(pid) = all.get(at).copied() {
            if let Some(pid) = Pid::from_raw(pid) {
                crate::limits::set(pid, &[(Resource::Rttime, self.0)])?;
            }
            let children = crate::usage::children(pid);
            all.extend(children.into_iter().filter(|child| !all.contains(child)).collect::<Vec<_>>());
            at += 1;
        }
        Ok(())
    }

    /// Ends every process that has it, and returns when they have ended. Returns how many there were. Blocks on `/proc`.
    pub fn kill(self) -> usize {
        kill_marked(&self.0.to_string(), self.1)
    }
}

/// Ends what a run has left, by the number in its directory. Returns how many processes there were. Blocks on `/proc`.
pub fn kill_run(run: &Path) -> usize {
    let Ok(text) = fs::read_to_string(run.join(MARK)) else { return 0 };
    let (prefix, filters) = text.split_once(' ').unwrap_or((&text, ""));
    if prefix.len() != 9 || !prefix.starts_with('4') || !prefix.bytes().all(|byte| byte.is_ascii_digit()) {
        return 0;
    }
    kill_marked(prefix, filters.trim().parse().ok().map(Signature))
}

/// The soft and the hard limit in a text of limits, where they are marks.
fn marks_of(limits: &str) -> [Option<&str>; 2] {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max realtime timeout")).unwrap_or_default();
    let mut words = line.split_whitespace();
    [words.next(), words.next()]
        .map(|limit| limit.filter(|limit| limit.len() == 19 && limit.starts_with('4')))
}

/// What one look at all processes has found.
#[derive(Debug, Default)]
struct Look {
    /// Those that have the mark.
    live: BTreeSet<i32>,
    /// Those that had it and wait for their parents.
    ended: BTreeSet<i32>,
    /// Whether one had ended before it was looked at. It may have started another that this look missed.
    lost: bool,
}

/// Looks for processes whose mark begins with `digits`.
fn look(digits: &str, signature: Option<Signature>) -> Look {
    let mut look = Look::default();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let limits = match fs::read_to_string(entry.path().join("limits")) {
            Ok(limits) => limits,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            Err(_gone) => String::new(),
        };
        look.lost |= limits.is_empty();
        let [soft, hard] = marks_of(&limits).map(|mark| mark.is_some_and(|mark| mark.starts_with(digits)));
        if pid == own || !(hard || soft && signature.is_some_and(|signature| signature.is_on(pid))) {
            continue;
        }
        if Pid::from_raw(pid).is_some_and(is_zombie) {
            look.ended.insert(pid);
        } else {
            look.live.insert(pid);
        }
    }
    look
}

/// Whether nothing of a process runs any more, and only its parent's question is awaited.
fn is_zombie(pid: Pid) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())) else { return false };
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    // The first thread may have ended before others (field 20 counts them, this begins with field 3).
    fields.next() == Some("Z") && fields.nth(16).is_some_and(|threads| threads == "1" || threads == "0")
}

/// How often in a row it looks again only because something unknown has ended meanwhile: on a busy machine that is
/// always so.
const UNCLEAR_ROUNDS: usize = 3;

#[allow(
    clippy::disallowed_methods,
    reason = "where blocking is allowed: the killed end when they are scheduled"
)]
fn kill_marked(digits: &str, signature: Option<Signature>) -> usize {
    let (mut killed, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut unclear = 0;
    for round in 0..500 {
        if round > 2 {
            std::thread::sleep(Duration::from_millis(2));
        }
        let found = look(digits, signature);
        if found.live.is_empty() {
            unclear += 1;
            if !found.lost && found.ended.is_subset(&ended) || unclear > UNCLEAR_ROUNDS {
                break;
            }
        } else {
            unclear = 0;
        }
        ended = found.ended;
        // First none of them runs, so that none can start another while the others are ended.
        let signal = if round == 0 { Signal::STOP } else { Signal::KILL };
        for pid in found.live {
            let sent = Pid::from_raw(pid).is_some_and(|pid| kill_process(pid, signal).is_ok());
            if sent && signal == Signal::KILL {
                killed.insert(pid);
            }
        }
    }
    killed.len()
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

    fn left(mark: Mark) -> usize {
        look(&mark.0.to_string(), mark.1).live.len()
    }

    #[test]
    #[allow(clippy::disallowed_methods, reason = "it waits for what the kernel does")]
    fn what_has_left_everything_else_is_found_by_its_mark() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path(), None).unwrap();
        let (one, two) = (marks.next(), marks.next());
        assert!(two.0 < one.0, "a mark can only be lowered");
        let start = |mark: Mark| {
            let child = Command::new("/bin/sh")
                .args(["-c", "sleep 0.2; setsid env -i sleep 87002.5 </dev/null & exit"])
                .stdin(Stdio::null())
                .spawn()
                .unwrap();
            mark.put(Pid::from_child(&child)).unwrap();
            child
        };
        let (mut first, mut second) = (start(one), start(two));
        first.wait().unwrap();
        second.wait().unwrap();
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
    fn what_has_left_before_its_start_is_over_is_found_too_and_nobody_elses_child() {
        let dir = tempfile::tempdir().unwrap();
        let signature = Signature::of(1);
        let marks = Marks::open(dir.path(), signature).unwrap();
        let (one, two) = (marks.next(), marks.next());
        let before = getrlimit(Resource::Rttime);
        let start = |mark: Mark| {
            std::thread::scope(|scope| {
                let jailed = scope.spawn(|| {
                    rustix::thread::set_no_new_privs(true).unwrap();
                    crate::seccomp::Filter::new().unwrap().apply().unwrap();
                    let (_, marked) = mark
                        .spawn(|| {
                            let mut child = Command::new("/bin/sh")
                                .args(["-c", "setsid env -i sleep 87002.6 </dev/null & exit"])
                                .spawn()?;
                            // It is gone before it could be marked: what it has left was never seen.
                            child.wait()?;
                            Ok(Pid::from_child(&child))
                        })
                        .unwrap();
                    marked.unwrap();
                });
                jailed.join().unwrap();
            });
        };
        let mut other = None;
        one.spawn(|| {
            let child = Command::new("/bin/sleep").arg("87002.7").spawn()?;
            // Another of the host's own, in that very moment, and with the limit.
            other = Some(Command::new("/bin/sleep").arg("87002.8").spawn()?);
            Ok(Pid::from_child(&child))
        })
        .unwrap()
        .1
        .unwrap();
        start(two);
        let after = getrlimit(Resource::Rttime);
        assert_eq!((after.current, after.maximum), (before.current, before.maximum), "the host is as before");
        if signature.is_some() {
            assert_eq!((left(one), left(two)), (1, 1));
            assert_eq!(two.kill(), 1);
        } else {
            sas_testkit::kernel_lacks("count of filters in /proc");
        }
        assert_eq!((left(one), left(two)), (1, 0));
        assert_eq!(one.kill(), 1);

        // A host that dies leaves it to its guardian.
        let (guardian, _pidfd) = crate::guardian::Guardian::start(&dir.path().join("stdin"), &marks).unwrap();
        start(two);
        assert_eq!(left(two), usize::from(signature.is_some()));
        drop(guardian);
        for _ in 0..1000 {
            if left(two) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(left(two), 0);
        let mut other = other.unwrap();
        assert!(other.try_wait().unwrap().is_none(), "the host's own child is left alone");
        other.kill().unwrap();
        other.wait().unwrap();
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
