//! One task for all instances of a runtime: it notices exits, reads output, and uses force when grace is over.
//!
//! Every pidfd and every output pipe is registered with one epoll instance, which is itself one descriptor of tokio's
//! reactor. So a quiet instance costs three descriptors and no task, timer or channel.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::{
    event::epoll,
    process::{Pid, Signal, WaitId, WaitIdOptions},
};
use sas_core::{Error, ErrorKind, ExitReport, InstanceEvents, InstanceId, LogStream, Result, Usage};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::Instant,
};

use sas_runtime_os::{
    cell::Cell,
    cell::Entrance,
    cgroup::{Cgroup, Cgroups, Limits, Met, Run},
    guardian::Guardian,
    jail::Jails,
    network::Network,
    ports::{Port, Ports, locks_dir},
    strays::{Mark, Marks, Orphans, spawn_unmarked},
    view,
};

use crate::{
    config::ProcessConfig,
    logs::{LastWords, LogPipe, LogTarget, Next},
    metrics::Metrics,
    package::store::{Discard, Package, Store},
};

/// Bytes read of one pipe before others have their turn.
const TURN_BYTES: usize = 64 * 1024;
/// Bytes read of a pipe after the exit of its process.
const LAST_BYTES: usize = 1 << 20;

/// Between two looks at disks, and at orphans where the host is process 1.
const LOOK: Duration = Duration::from_secs(2);
/// By how much the disk as a whole must have filled for its instances to be looked at.
const WORTH_A_LOOK: u64 = 1 << 20;

/// What is known since the last look at what instances have written.
#[derive(Default)]
struct LastLook {
    /// Bytes in use on the disk at its emptiest.
    emptiest: Option<u64>,
    /// How many looks were left out.
    left_out: u32,
}
/// No instance is held to less by default, however small the machine.
const LEAST_MEMORY: u64 = 64 << 20;

const GUARDIAN: u64 = 0;
const EXIT: u64 = 0;
const STDOUT: u64 = 1;
const STDERR: u64 = 2;
const CELL: u64 = 3;

/// A process of ours, from its spawn until it was reaped.
#[derive(Debug)]
pub(crate) struct Proc {
    token: u64,
    pid: Pid,
    pidfd: OwnedFd,
    pipes: Mutex<[Option<LogPipe>; 2]>,
    state: Mutex<State>,
    changed: Notify,
    /// Descends from a zygote that is its parent, so that its status is not ours to collect.
    adopted: bool,
    /// By which its processes are found wherever they go, where no namespace holds them.
    mark: Option<Mark>,
}

#[derive(Debug, Default)]
struct State {
    exit: Option<ExitReport>,
    told: Option<(InstanceId, Arc<dyn InstanceEvents>)>,
    logs: Option<LogTarget>,
    last_words: Option<LastWords>,
    force_at: Option<Instant>,
    ending: bool,
    forced: bool,
    usage: Option<Usage>,
    port: Option<Port>,
    /// Not to be removed from the store while it runs.
    package: Option<Arc<Package>>,
    /// Its own directories, removed after it.
    dirs: Vec<Discard>,
    /// What holds it to its limits.
    group: Option<Arc<Cgroup>>,
    /// What it may write to its directories, where nothing but a look from time to time bounds it.
    disk: Option<Disk>,
    /// The directory of its service that stays, which is looked at too.
    data: Option<PathBuf>,
    /// Why it is ended by force.
    why: Option<Arc<str>>,
    /// The namespaces that it runs in. They end with it, and nothing in them stays.
    cell: Option<Cell>,
    /// How it ended, while its cell has not yet.
    report: Option<ExitReport>,
}

#[derive(Clone, Copy, Debug)]
struct Disk {
    ceiling: u64,
    /// What its copy of the package takes.
    copied: u64,
}

impl Proc {
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    pub(crate) fn exit(&self) -> Option<ExitReport> {
        self.state.lock().exit.clone()
    }

    /// Resolves when it was reaped.
    pub(crate) async fn exited(&self) -> ExitReport {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(report) = self.exit() {
                return report;
            }
            changed.await;
        }
    }

    /// Lines go to `target` from now on.
    pub(crate) fn log_to(&self, target: LogTarget) {
        self.state.lock().logs = Some(target);
    }

    /// Keeps these for it until it has exited.
    pub(crate) fn hold(&self, port: Option<Port>, package: &Arc<Package>) {
        let mut state = self.state.lock();
        if state.exit.is_none() {
            state.port = port;
            state.package = Some(Arc::clone(package));
        }
    }

    /// Keeps a directory for it until it has exited.
    pub(crate) fn hold_dir(&self, dir: Discard) {
        let mut state = self.state.lock();
        if state.exit.is_none() {
            state.dirs.push(dir);
        }
    }

    /// Has it held to its limits by `group` until it has exited.
    pub(crate) fn enter(&self, group: Cgroup) -> std::io::Result<()> {
        let mut state = self.state.lock();
        if state.exit.is_none() {
            // Under the lock, so that the number is still this process's.
            let entered = group.add(self.pid);
            state.group = Some(Arc::new(group));
            entered?;
        }
        Ok(())
    }

    /// It was born in `group`.
    pub(crate) fn born_in(&self, group: Cgroup) {
        let mut state = self.state.lock();
        if state.exit.is_none() {
            state.group = Some(Arc::new(group));
        }
    }

    /// What holds it to its limits.
    pub(crate) fn group(&self) -> Option<Arc<Cgroup>> {
        self.state.lock().group.clone()
    }

    /// By which its processes are found.
    pub(crate) fn mark(&self) -> Option<Mark> {
        self.mark
    }

    /// A way into its namespaces, where it has some.
    pub(crate) fn entrance(&self) -> std::io::Result<Option<Entrance>> {
        self.state.lock().cell.as_ref().map(Cell::entrance).transpose()
    }

    /// Shows a package to a program that was started without, in its cell. Blocks for some mounts.
    pub(crate) fn show(&self, jails: &Jails, package: &Path, readable: &[PathBuf]) -> std::io::Result<()> {
        jails.show(self.state.lock().cell.as_ref(), package, readable)
    }

    /// The network of its own, where it has one.
    pub(crate) fn network(&self) -> Option<Arc<Network>> {
        self.state.lock().cell.as_ref().and_then(|cell| cell.network().cloned())
    }

    /// Whether what listens on `port` is a process of this instance. Blocks on `/proc`.
    pub(crate) fn listens_on(&self, port: u16) -> bool {
        let mut roots = vec![self.pid()];
        roots.extend(self.holder());
        sas_runtime_os::ports::belongs(port, &roots)
    }

    /// Whether it runs in namespaces of its own, with a view of the disk.
    pub(crate) fn has_cell(&self) -> bool {
        self.state.lock().cell.is_some()
    }

    /// The process that its orphans belong to.
    fn holder(&self) -> Option<i32> {
        self.state.lock().cell.as_ref().and_then(Cell::holder)
    }

    pub(crate) fn pid_for_limits(&self) -> Option<Pid> {
        self.state.lock().exit.is_none().then_some(self.pid)
    }

    /// The ceiling that it has met, as far as that is known, and how it is changed.
    pub(crate) fn ceiling(&self) -> Option<String> {
        self.group().and_then(|group| refused_processes(&group))
    }

    pub(crate) fn last_words(&self) -> Option<String> {
        self.state.lock().last_words.as_ref().and_then(LastWords::text)
    }

    /// From here on `events` is told of the exit. Fails when it has exited already.
    pub(crate) fn started(
        &self,
        id: InstanceId,
        events: Arc<dyn InstanceEvents>,
    ) -> std::result::Result<(), ExitReport> {
        let mut state = self.state.lock();
        match &state.exit {
            Some(report) => Err(report.clone()),
            None => {
                state.told = Some((id, events));
                state.last_words = None;
                Ok(())
            }
        }
    }

    /// Begins to collect last words again, and forgets who was told: a stem that becomes an instance.
    pub(crate) fn restarted(&self) {
        let mut state = self.state.lock();
        state.told = None;
        state.last_words = Some(LastWords::default());
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        let mut state = self.state.lock();
        if state.exit.is_none()
            && let Some(mut usage) = sas_runtime_os::usage::sample(self.pid())
        {
            // A descendant that ended without being waited for takes its time with it.
            usage.cpu_ns = usage.cpu_ns.max(state.usage.map_or(0, |before| before.cpu_ns));
            state.usage = Some(usage);
        }
        state.usage
    }

    /// Sends a signal to the whole group; nothing when it has exited.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let state = self.state.lock();
        if state.exit.is_some() {
            return Err(Error::new(ErrorKind::Crashed, "signal", "the instance is gone"));
        }
        signal_group(self.pid, signal);
        Ok(())
    }
}

fn refused_processes(group: &Cgroup) -> Option<String> {
    let (most, refused) = (group.limits().processes?, group.refused_processes());
    (refused > 0).then(|| {
        let together = group.together().processes.filter(|_| group.met_processes_together());
        let together = together.map_or_else(String::new, |most| {
            format!(", or at that of all instances together, {most}: jail.total_processes of the host")
        });
        format!(
            "it was refused a process or thread {refused} times, at its ceiling of {most}: {}, or jail.instance_processes of \
             the host{together}",
            crate::options::PIDS_MAX
        )
    })
}

fn tell_unmarked(marked: rustix::io::Result<()>) {
    if let Err(error) = marked {
        tracing::warn!(%error, "a process could not be marked: what leaves its group and session would outlive it");
    }
}

fn signal_group(group: Pid, signal: Signal) {
    // Only ESRCH is possible for our own children: gone is what is wanted.
    let _ = rustix::process::kill_process_group(group, signal);
}

/// A process that was spawned and is not in anybody's hands yet: killed when dropped.
#[derive(Debug)]
pub(crate) struct Spawned {
    proc: Option<Arc<Proc>>,
    engine: Arc<Engine>,
}

impl Spawned {
    pub(crate) fn proc(&self) -> &Arc<Proc> {
        self.proc.as_ref().expect("taken only by keep, which consumes")
    }

    pub(crate) fn keep(mut self) -> Arc<Proc> {
        self.proc.take().expect("taken only here")
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        if let Some(proc) = self.proc.take() {
            self.engine.stop(&proc, Duration::ZERO);
        }
    }
}

/// What the engine is to watch.
#[derive(Debug)]
pub(crate) struct NewProc {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) logs: Option<LogTarget>,
    pub(crate) adopted: bool,
    pub(crate) cell: Option<Cell>,
    pub(crate) mark: Option<Mark>,
}

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: Arc<ProcessConfig>,
    pub(crate) store: Store,
    pub(crate) ports: Arc<Ports>,
    pub(crate) cgroups: Cgroups,
    /// What instances without limits of their own are held to.
    pub(crate) ceilings: Limits,
    marks: Marks,
    /// Instances whose disk is looked at.
    watched: AtomicUsize,
    pub(crate) jails: Jails,
    pub(crate) guardian: Guardian,
    pub(crate) metrics: Metrics,
    guardian_pidfd: Mutex<OwnedFd>,
    poll: Arc<OwnedFd>,
    procs: Mutex<HashMap<u64, Arc<Proc>>>,
    timers: Mutex<BinaryHeap<Reverse<(Instant, u64)>>>,
    next_token: AtomicU64,
    /// Processes that were asked to end and have not.
    ending: AtomicUsize,
    removing: AtomicUsize,
    quiet: Notify,
    wake: Notify,
    closed: AtomicBool,
    running: AtomicBool,
    oom_kills: AtomicU64,
}

impl Engine {
    pub(crate) fn new(config: Arc<ProcessConfig>, store: Store) -> Result<Arc<Self>> {
        let failed = |error: rustix::io::Errno| {
            Error::new(ErrorKind::Unavailable, "open", format!("epoll: {error}")).with_source(error)
        };
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
        let jails = open_jails(&config, &store)?;
        let marks = Marks::open(store.run_dir(), jails.signature()).map_err(|error| {
            Error::new(ErrorKind::Unavailable, "open", format!("{}: {error}", store.run_dir().display()))
                .with_source(error)
        })?;
        let (guardian, pidfd) = Guardian::start(&store.run_dir().join("stdin"), &marks)?;
        epoll::add(&poll, &pidfd, epoll::EventData::new_u64(GUARDIAN), epoll::EventFlags::IN)
            .map_err(failed)?;
        let run: Arc<dyn Run> = Arc::new(store.clone());
        let together = Limits::together(config.jail.total_memory, config.jail.total_processes);
        let cgroups = Cgroups::open(&config.cgroups, &run, &together);
        if let Some(reason) = cgroups.missing() {
            tracing::warn!(reason, "all instances together have no ceiling of memory and processes here");
        }
        let half = || sas_runtime_os::cgroup::memory_here().map(|bytes| (bytes / 2).max(LEAST_MEMORY));
        let ceilings = Limits {
            memory_bytes: config.jail.instance_memory.or_else(half),
            processes: cgroups.missing_pids().is_none().then_some(config.jail.instance_processes),
            cpu_millis: None,
        };
        Ok(Arc::new(Self {
            ports: Ports::new(
                config.ports.clone(),
                &config.jail.reachable_ports(),
                &locks_dir(&store.root().join("ports")),
            )?,
            jails,
            cgroups,
            ceilings,
            marks,
            watched: AtomicUsize::new(0),
            metrics: Metrics::new(&config.recorder),
            config,
            store,
            guardian,
            guardian_pidfd: Mutex::new(pidfd),
            poll: Arc::new(poll),
            procs: Mutex::default(),
            timers: Mutex::default(),
            next_token: AtomicU64::new(1),
            ending: AtomicUsize::new(0),
            removing: AtomicUsize::new(0),
            quiet: Notify::new(),
            wake: Notify::new(),
            closed: AtomicBool::new(false),
            running: AtomicBool::new(false),
            oom_kills: AtomicU64::new(kernel_oom_kills()),
        }))
    }

    /// Starts the task, once, on the tokio runtime of the caller.
    pub(crate) fn ensure_running(self: &Arc<Self>) -> Result<()> {
        if self.running.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        #[allow(
            deprecated,
            reason = "its successor is an unsafe fn; the descriptor is owned and never replaced"
        )]
        let poll = AsyncFd::with_interest(Arc::clone(&self.poll), Interest::READABLE).map_err(|error| {
            self.running.store(false, Ordering::Release);
            Error::new(ErrorKind::Unavailable, "start", format!("tokio's reactor: {error}"))
                .with_source(error)
        })?;
        tokio::spawn(run(Arc::clone(self), poll));
        Ok(())
    }

    /// Watches a process that was just spawned.
    pub(crate) fn adopt(self: &Arc<Self>, new: NewProc) -> Result<Spawned> {
        let now = Instant::now();
        let token = self.next_token.fetch_add(1, Ordering::Relaxed);
        let proc = Arc::new(Proc {
            mark: new.mark,
            token,
            pid: new.pid,
            pidfd: new.pidfd,
            pipes: Mutex::new([
                new.stdout.map(|fd| LogPipe::new(fd, LogStream::Stdout, now)),
                new.stderr.map(|fd| LogPipe::new(fd, LogStream::Stderr, now)),
            ]),
            state: Mutex::new(State {
                logs: new.logs,
                last_words: Some(LastWords::default()),
                cell: new.cell,
                ..State::default()
            }),
            changed: Notify::new(),
            adopted: new.adopted,
        });
        self.guardian.watch(new.pid);
        self.procs.lock().insert(token, Arc::clone(&proc));
        let spawned = Spawned { proc: Some(Arc::clone(&proc)), engine: Arc::clone(self) };
        let failed = |error: rustix::io::Errno| {
            Error::new(ErrorKind::Exhausted, "start", format!("watch the process: {error}"))
                .with_source(error)
        };
        for (kind, pipe) in [STDOUT, STDERR].into_iter().zip(proc.pipes.lock().iter()) {
            if let Some(pipe) = pipe {
                self.watch(&pipe.fd, token << 2 | kind).map_err(failed)?;
            }
        }
        self.watch(&proc.pidfd, token << 2 | EXIT).map_err(failed)?;
        self.metrics.spawned.increment(1);
        self.metrics.processes.increment(1.0);
        Ok(spawned)
    }

    fn watch(&self, fd: impl std::os::fd::AsFd, data: u64) -> rustix::io::Result<()> {
        epoll::add(&self.poll, fd, epoll::EventData::new_u64(data), epoll::EventFlags::IN)
    }

    /// Ends it: politely now, by force after `grace`. Returns at once; [`Proc::exited`] tells the rest.
    pub(crate) fn stop(&self, proc: &Proc, grace: Duration) {
        let force_at = Instant::now().checked_add(grace);
        {
            let mut state = proc.state.lock();
            if state.exit.is_some() {
                return;
            }
            if !state.ending {
                state.ending = true;
                self.ending.fetch_add(1, Ordering::AcqRel);
                if !grace.is_zero() {
                    signal_group(proc.pid, Signal::TERM);
                    // One that is suspended could not hear it.
                    signal_group(proc.pid, Signal::CONT);
                }
            }
            if grace.is_zero() {
                state.forced = true;
                signal_group(proc.pid, Signal::KILL);
                return;
            }
            state.force_at = match (state.force_at, force_at) {
                (Some(before), Some(now)) => Some(before.min(now)),
                (before, now) => before.or(now),
            };
        }
        if let Some(at) = force_at {
            self.timers.lock().push(Reverse((at, proc.token << 2 | EXIT)));
            self.wake.notify_one();
        }
    }

    /// Waits until all that was asked to end has ended, and unused packages are removed.
    pub(crate) async fn quiesce(self: &Arc<Self>) {
        loop {
            let mut quiet = std::pin::pin!(self.quiet.notified());
            quiet.as_mut().enable();
            // The task runs from the first start on. Until then nobody else removes what an earlier host left.
            if !self.running.load(Ordering::Acquire)
                && self.removing.load(Ordering::Acquire) == 0
                && self.any_unused()
            {
                self.sweep();
            }
            if self.ending.load(Ordering::Acquire) == 0
                && self.removing.load(Ordering::Acquire) == 0
                && !self.any_unused()
            {
                return;
            }
            if self.closed.load(Ordering::Acquire) && !self.running.load(Ordering::Acquire) {
                return;
            }
            quiet.await;
        }
    }

    /// Kills everything; the task ends when all is gone.
    pub(crate) fn close(&self) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let all: Vec<Arc<Proc>> = self.procs.lock().values().cloned().collect();
        for proc in all {
            self.stop(&proc, Duration::ZERO);
        }
        self.jails.close();
        self.cgroups.close();
        self.wake.notify_one();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// How many processes live.
    pub(crate) fn count(&self) -> usize {
        self.procs.lock().len()
    }

    fn proc(&self, token: u64) -> Option<Arc<Proc>> {
        self.procs.lock().get(&token).cloned()
    }

    /// What epoll has to say now, without waiting.
    fn told(&self) -> Vec<u64> {
        let mut events: Vec<epoll::Event> = Vec::with_capacity(128);
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        loop {
            match epoll::wait(&self.poll, rustix::buffer::spare_capacity(&mut events), Some(&zero)) {
                Err(rustix::io::Errno::INTR) => {}
                // No other error is possible with a descriptor of our own.
                Ok(_) | Err(_) => return events.iter().map(|event| event.data.u64()).collect(),
            }
        }
    }

    /// A mark for a new instance.
    pub(crate) fn mark(&self) -> Mark {
        self.marks.next()
    }

    /// Spawns a program, with its mark where it has one.
    pub(crate) fn spawn(
        &self,
        mark: Option<Mark>,
        spawn: impl FnOnce() -> std::io::Result<Pid>,
    ) -> std::io::Result<Pid> {
        let Some(mark) = mark else { return spawn_unmarked(spawn) };
        let (pid, marked) = mark.spawn(spawn)?;
        tell_unmarked(marked);
        Ok(pid)
    }

    /// Marks a process that was forked, and what it has started so far.
    pub(crate) fn put_mark(&self, mark: Mark, pid: Pid) {
        tell_unmarked(mark.put(pid));
    }

    /// Watches what an instance writes, where nothing else bounds it.
    pub(crate) fn bound_disk(&self, proc: &Proc, ceiling: u64, copied: u64) {
        let mut state = proc.state.lock();
        if state.exit.is_none() && state.cell.is_none() {
            state.disk = Some(Disk { ceiling, copied });
            self.watched.fetch_add(1, Ordering::AcqRel);
            self.wake.notify_one();
        }
    }

    /// Where the directories are that services ask for.
    pub(crate) fn data_root(&self) -> PathBuf {
        self.config.data.clone().unwrap_or_else(|| self.store.root().join("data"))
    }

    /// Watches what the directory of an instance's service holds: nothing else bounds it.
    pub(crate) fn bound_data(&self, proc: &Proc, dir: PathBuf) {
        let mut state = proc.state.lock();
        if state.exit.is_none() {
            state.data = Some(dir);
            self.watched.fetch_add(1, Ordering::AcqRel);
            self.wake.notify_one();
        }
    }

    /// Looks at what instances have written, unless the disk as a whole is hardly fuller than at its emptiest since the
    /// last look; then only at every fifth time, since somebody may remove as much as an instance writes. Blocks on the disk.
    fn look_at_disks(&self, last: &Mutex<LastLook>) {
        let used = [self.store.run_dir().to_path_buf(), self.data_root()];
        let used = used.iter().filter_map(|dir| rustix::fs::statvfs(dir).ok());
        let used: u64 = used
            .map(|disk| disk.f_blocks.saturating_sub(disk.f_bfree).saturating_mul(disk.f_frsize))
            .fold(0, u64::saturating_add);
        {
            let mut last = last.lock();
            let before = last.emptiest.unwrap_or(used);
            if used.saturating_sub(before) < WORTH_A_LOOK && last.left_out < 4 {
                *last = LastLook { emptiest: Some(before.min(used)), left_out: last.left_out + 1 };
                return;
            }
            *last = LastLook { emptiest: Some(used), left_out: 0 };
        }
        let all: Vec<Arc<Proc>> = self.procs.lock().values().cloned().collect();
        // Instances of a service share its directory.
        let mut held: HashMap<PathBuf, u64> = HashMap::new();
        for proc in all {
            let (disk, data, dirs) = {
                let state = proc.state.lock();
                if state.exit.is_some() || state.ending {
                    continue;
                }
                let dirs: Vec<PathBuf> = state.dirs.iter().map(|dir| dir.path().to_path_buf()).collect();
                (state.disk, state.data.clone(), dirs)
            };
            let mut why = None;
            if let Some(Disk { ceiling, copied }) = disk {
                let written: u64 = dirs.iter().map(|dir| view::bytes(dir)).sum();
                let written = written + view::unlinked_bytes(proc.pid(), self.store.run_dir());
                why = (written.saturating_sub(copied) > ceiling).then(|| {
                    format!(
                        "it had written {} bytes to its own directories, and may write {ceiling}: {}, or jail.disk_bytes \
                         of the host",
                        written - copied,
                        crate::options::DISK
                    )
                });
            }
            if let Some(dir) = data {
                let unlinked = view::unlinked_bytes(proc.pid(), &dir);
                let bytes = *held.entry(dir).or_insert_with_key(|dir| view::bytes(dir));
                let most = self.config.jail.data_bytes;
                if bytes.saturating_add(unlinked) > most {
                    why.get_or_insert(format!(
                        "its service's directory ({}) held {} bytes, and may hold {most}: jail.data_bytes of the host",
                        crate::options::DATA,
                        bytes.saturating_add(unlinked)
                    ));
                }
            }
            if let Some(why) = why {
                tracing::warn!(pid = proc.pid(), why, "an instance is stopped");
                proc.state.lock().why = Some(why.into());
                self.stop(&proc, Duration::ZERO);
            }
        }
    }

    fn dispatch(self: &Arc<Self>, data: u64) {
        if data == GUARDIAN {
            self.guardian_died();
            return;
        }
        let Some(proc) = self.proc(data >> 2) else { return };
        match data & 3 {
            EXIT | CELL => self.reap(&proc),
            kind => self.pump(&proc, kind),
        }
    }

    fn guardian_died(&self) {
        if self.is_closed() {
            let _ = epoll::delete(&self.poll, &*self.guardian_pidfd.lock());
            return;
        }
        let mut held = self.guardian_pidfd.lock();
        let _ = epoll::delete(&self.poll, &*held);
        match self.guardian.restart() {
            Ok(pidfd) => {
                let _ = self.watch(&pidfd, GUARDIAN);
                *held = pidfd;
                tracing::warn!("the guardian was ended from outside; another one watches now");
            }
            Err(error) => tracing::error!(%error, "no guardian: instances would outlive a killed host"),
        }
    }

    fn pump(&self, proc: &Proc, kind: u64) {
        let at = usize::from(kind == STDERR);
        let mut pipes = proc.pipes.lock();
        let Some(pipe) = pipes[at].as_mut() else { return };
        let (target, mut words) = {
            let mut state = proc.state.lock();
            (state.logs.clone(), state.last_words.take())
        };
        let had_words = words.is_some();
        let next = pipe.pump(
            &self.config.logs,
            target.as_ref(),
            words.as_mut(),
            Instant::now(),
            self.config.clock.now(),
            TURN_BYTES,
        );
        if had_words {
            let mut state = proc.state.lock();
            // It may have become ready meanwhile, and nobody wants them any more.
            if state.told.is_none() && state.last_words.is_none() {
                state.last_words = words;
            }
        }
        match next {
            Next::Wait | Next::More => {}
            Next::Close => {
                let _ = epoll::delete(&self.poll, &pipe.fd);
                pipes[at] = None;
            }
            Next::Pause(until) => {
                let _ = epoll::delete(&self.poll, &pipe.fd);
                self.metrics.paused.increment(1);
                self.timers.lock().push(Reverse((until, proc.token << 2 | kind)));
            }
        }
    }

    /// Collects the status of a process that has exited. Its group goes with it.
    fn reap(self: &Arc<Self>, proc: &Arc<Proc>) {
        use std::os::fd::AsFd as _;
        let mut state = proc.state.lock();
        if state.exit.is_some() {
            return;
        }
        if state.report.is_some() {
            if state.cell.is_some() {
                self.after_cell(proc, state);
            }
            return;
        }
        // While the leader is a zombie its number is reserved, so the group that we kill is its own.
        signal_group(proc.pid, Signal::KILL);
        self.guardian.forget(proc.pid);
        let status = rustix::process::waitid(
            WaitId::PidFd(proc.pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
        );
        let mut report = ExitReport::at(self.config.clock.now());
        match status {
            Ok(None) if !proc.adopted => {
                // Not yet: level-triggered, it is told again.
                self.guardian.watch(proc.pid);
                return;
            }
            Ok(Some(status)) => {
                if let Some(code) = status.exit_status() {
                    report = report.with_code(code);
                }
                if let Some(signal) = status.terminating_signal() {
                    report = report.with_signal(signal);
                    // The kernel's out-of-memory killer sends what nobody here has sent.
                    let out_of_memory = || match &state.group {
                        Some(group) => group.ran_out_of_memory(),
                        None => self.kernel_ran_out_of_memory(),
                    };
                    if signal == Signal::KILL.as_raw() && !state.forced && out_of_memory() {
                        report = report.with_out_of_memory();
                    }
                }
            }
            // A child of its zygote, which has its status.
            Ok(None) | Err(_) => {}
        }
        let _ = epoll::delete(&self.poll, &proc.pidfd);
        if let Some(reason) = self.reason(&state, &report) {
            report = report.with_reason(reason);
        }
        state.report = Some(report);
        if let Some(cell) = &state.cell {
            // Whatever left its group, session or parent ends with the namespace that it can't leave.
            cell.kill();
            if self.watch(cell.pidfd(), proc.token << 2 | CELL).is_ok() {
                return;
            }
        }
        let whole = state.group.clone();
        let Some(mark) = proc.mark.filter(|_| state.cell.is_none()) else {
            self.after_cell(proc, state);
            return;
        };
        drop(state);
        // Whoever left its group and its session is found by control group or mark, where blocking is allowed.
        let (engine, proc) = (Arc::clone(self), Arc::clone(proc));
        tokio::task::spawn_blocking(move || {
            match whole {
                Some(group) => group.kill(),
                None => {
                    mark.kill();
                }
            }
            engine.after_cell(&proc, proc.state.lock());
            engine.wake.notify_one();
        });
    }

    /// Which ceiling an instance has met that ended, as far as that is known.
    fn reason(&self, state: &State, report: &ExitReport) -> Option<Arc<str>> {
        if state.why.is_some() {
            return state.why.clone();
        }
        if report.out_of_memory {
            let group = state.group.as_ref()?;
            return Some(match group.met_memory() {
                Met::Own => {
                    let most = group.limits().memory_bytes?;
                    let how = "resources.limits.memory, or jail.instance_memory of the host";
                    format!("its ceiling is {most} bytes: {how}").into()
                }
                Met::Together => {
                    let most = group.together().memory_bytes?;
                    let how = "jail.total_memory of the host";
                    format!("the ceiling of all instances together is {most} bytes: {how}").into()
                }
                Met::Above => "the machine, or the host's own control group, had none left".into(),
            });
        }
        if state.forced || state.ending || report.code == Some(0) {
            return None;
        }
        let disk = format!("{}, or jail.disk_bytes of the host", crate::options::DISK);
        if report.signal == Some(Signal::XFSZ.as_raw()) {
            return Some(format!("a file would have grown beyond its ceiling: {disk}").into());
        }
        if state.cell.as_ref().is_some_and(Cell::is_full) {
            return Some(format!("its disk was full: {disk}").into());
        }
        state.group.as_ref().and_then(|group| refused_processes(group)).map(Into::into)
    }

    /// Tells the end of a process, as soon as nothing of it is left.
    fn after_cell(&self, proc: &Proc, mut state: parking_lot::MutexGuard<'_, State>) {
        if let Some(cell) = &mut state.cell {
            if !cell.is_gone() {
                return;
            }
            let _ = epoll::delete(&self.poll, cell.pidfd());
        }
        let Some(report) = state.report.clone() else { return };
        let (target, mut words) = (state.logs.clone(), state.last_words.take());
        drop(state);
        {
            let mut pipes = proc.pipes.lock();
            for pipe in pipes.iter_mut().filter_map(Option::take) {
                let mut pipe = pipe;
                let at = self.config.clock.now();
                let limits = crate::config::LogLimits { read_bytes_per_second: u64::MAX, ..self.config.logs };
                pipe.pump(&limits, target.as_ref(), words.as_mut(), Instant::now(), at, LAST_BYTES);
                pipe.finish(target.as_ref(), words.as_mut(), at);
                let _ = epoll::delete(&self.poll, &pipe.fd);
            }
        }
        let (told, ending) = {
            let mut state = proc.state.lock();
            state.last_words = words;
            state.exit = Some(report.clone());
            state.logs = None;
            state.port = None;
            state.package = None;
            state.dirs.clear();
            state.group = None;
            state.cell = None;
            let looked_at =
                usize::from(state.disk.take().is_some()) + usize::from(state.data.take().is_some());
            self.watched.fetch_sub(looked_at, Ordering::AcqRel);
            (state.told.take(), state.ending)
        };
        self.procs.lock().remove(&proc.token);
        self.metrics.exited.increment(1);
        self.metrics.processes.decrement(1.0);
        if let Some((id, events)) = told {
            events.exited(id, report);
        }
        proc.changed.notify_waiters();
        if ending {
            self.ending.fetch_sub(1, Ordering::AcqRel);
            self.quiet.notify_waiters();
        }
    }

    /// Whether the kernel has killed something for want of memory since we last looked. It does not say whom; together
    /// with a SIGKILL that nobody here has sent that is as far as one can tell without a cgroup per instance.
    fn kernel_ran_out_of_memory(&self) -> bool {
        let now = kernel_oom_kills();
        self.oom_kills.swap(now, Ordering::AcqRel) < now
    }

    /// Does what is due, and says when something is due next.
    fn fire(&self, now: Instant) -> Option<Instant> {
        loop {
            let data = {
                let mut timers = self.timers.lock();
                match timers.peek() {
                    Some(Reverse((at, _))) if *at <= now => timers.pop().map(|Reverse((_, data))| data),
                    Some(Reverse((at, _))) => return Some(*at),
                    None => return None,
                }
            };
            let data = data?;
            let Some(proc) = self.proc(data >> 2) else { continue };
            match data & 3 {
                EXIT => {
                    let mut state = proc.state.lock();
                    if state.exit.is_none() && state.force_at.is_some_and(|at| at <= now) {
                        state.forced = true;
                        signal_group(proc.pid, Signal::KILL);
                        self.metrics.forced.increment(1);
                    }
                }
                kind => {
                    if let Some(pipe) = &proc.pipes.lock()[usize::from(kind == STDERR)] {
                        let _ = self.watch(&pipe.fd, data);
                    }
                }
            }
        }
    }

    fn any_unused(&self) -> bool {
        self.store.any_unused() || self.cgroups.any_unused()
    }

    /// Removes unused packages and groups on a blocking thread.
    fn sweep(self: &Arc<Self>) {
        self.removing.fetch_add(1, Ordering::AcqRel);
        let engine = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            engine.store.remove_unused();
            engine.cgroups.remove_unused();
            engine.removing.fetch_sub(1, Ordering::AcqRel);
            engine.quiet.notify_waiters();
        });
    }
}

/// The jails of a runtime: what is the host's own, and what programs of this configuration read.
fn open_jails(config: &ProcessConfig, store: &Store) -> Result<Jails> {
    let mut roots = vec![store.root().to_path_buf()];
    roots.extend(config.data.clone());
    let mut readable: Vec<PathBuf> =
        config.path.split(':').filter_map(|dir| prefix(Path::new(dir))).collect();
    readable.extend(config.java.home.clone());
    readable.extend(config.java.shared_jars.iter().cloned());
    Jails::open(config.jail.clone(), &roots, &readable)
}

/// What must be readable for programs of a directory to run: what was installed with them.
pub(crate) fn prefix(dir: &Path) -> Option<PathBuf> {
    let dir = std::fs::canonicalize(dir).ok()?;
    match dir.file_name().and_then(|name| name.to_str()) {
        Some("bin" | "sbin" | "shims") => {
            dir.parent().filter(|above| above.parent().is_some()).map(Path::to_path_buf)
        }
        _ => Some(dir),
    }
}

/// How many processes the kernel has killed for want of memory since it booted.
fn kernel_oom_kills() -> u64 {
    std::fs::read_to_string("/proc/vmstat")
        .ok()
        .and_then(|text| text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()))
        .unwrap_or(0)
}

async fn run(engine: Arc<Engine>, poll: AsyncFd<Arc<OwnedFd>>) {
    let began = Instant::now();
    let (last, orphans) =
        (Arc::new(Mutex::new(LastLook::default())), Arc::new(Mutex::new(Orphans::default())));
    let mut next_look = began;
    loop {
        let looks = Orphans::are_ours() || engine.watched.load(Ordering::Acquire) > 0;
        if looks && next_look <= Instant::now() {
            next_look = Instant::now() + LOOK;
            let (engine, last, orphans) = (Arc::clone(&engine), Arc::clone(&last), Arc::clone(&orphans));
            tokio::task::spawn_blocking(move || {
                if engine.watched.load(Ordering::Acquire) > 0 {
                    engine.look_at_disks(&last);
                }
                if Orphans::are_ours() {
                    let mut own: Vec<i32> = engine.procs.lock().values().map(|proc| proc.pid()).collect();
                    own.push(engine.guardian.pid());
                    orphans.lock().collect(began.elapsed(), |pid| own.contains(&pid));
                }
            });
        }
        let next = engine.fire(Instant::now());
        if engine.any_unused() {
            engine.sweep();
        }
        if engine.is_closed() && engine.count() == 0 {
            engine.running.store(false, Ordering::Release);
            engine.quiet.notify_waiters();
            return;
        }
        let backlog = !engine.guardian.flush();
        let far = Instant::now() + Duration::from_secs(3600);
        let until = if backlog { Instant::now() + Duration::from_millis(5) } else { next.unwrap_or(far) };
        let until = if looks { until.min(next_look) } else { until };
        let until = match engine.store.next_unused() {
            Some(at) => until.min(at.max(Instant::now() + Duration::from_millis(10))),
            None => until,
        };
        tokio::select! {
            biased;
            ready = poll.readable() => {
                let Ok(mut ready) = ready else { return };
                let told = engine.told();
                if told.is_empty() {
                    ready.clear_ready();
                } else {
                    for data in told {
                        engine.dispatch(data);
                    }
                    // Floods take turns with everything else that runs here.
                    tokio::task::yield_now().await;
                }
            }
            () = engine.wake.notified() => {}
            () = engine.store.has_unused() => {}
            () = tokio::time::sleep_until(until) => {}
        }
    }
}
