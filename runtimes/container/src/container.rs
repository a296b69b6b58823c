//! One container: from its bundle to its end.

use std::{
    fs, io,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use sas_core::{Error, ErrorKind, ExecOutput, ExitReport, LogStream, Result, Usage};
use sas_runtime_os::cgroup::Met;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
    sync::watch,
};

use crate::{
    cgroups::Group,
    engine::{Engine, Killed, Kind},
    logs::{self, LastWords, LogTarget},
    pod::Pod,
    spec::{self, ContainerShape},
};

/// Puts itself into the groups that it is given, up to `--`, and becomes what follows.
const JOIN: &str =
    "while [ \"$1\" != -- ]; do echo $$ >\"$1/cgroup.procs\" || exit 125; shift; done; shift; exec \"$@\"";

/// Output is read for so long after the end of a container at most.
const AFTER_END: Duration = Duration::from_secs(2);

/// How far a container has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Starting,
    Running,
    Ended(ExitReport),
}

/// A container, from the spawn of the program that runs it until that has ended.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) plan: ContainerShape,
    pub(crate) words: LastWords,
    home: PathBuf,
    /// Bytes of memory that it may have.
    memory: Option<u64>,
    /// The groups that a command is put into as well.
    join: Vec<PathBuf>,
    state: Mutex<State>,
    phase: watch::Sender<Phase>,
}

#[derive(Debug, Default)]
struct State {
    init: Option<(Pid, OwnedFd)>,
    kill: bool,
    forced: bool,
    counted: bool,
    usage: Option<Usage>,
}

/// What was spawned.
#[derive(Debug)]
pub(crate) struct Spawned {
    runtime: Pid,
    runtime_fd: OwnedFd,
    stdout: io::PipeReader,
    stderr: io::PipeReader,
    plan: ContainerShape,
    home: PathBuf,
}

/// How the program is called, without what is to be done.
fn call(engine: &Engine, pod: &Pod, join: &[PathBuf]) -> Command {
    let program = &engine.program;
    let mut command = match join {
        [] => Command::new(&program.path),
        join => {
            let mut shell = Command::new("/bin/sh");
            shell.args(["-c", JOIN, "sas-join"]).args(join).arg("--").arg(&program.path);
            shell
        }
    };
    command.arg("--root").arg(pod.dir.join("state"));
    if program.kind == Kind::Crun {
        command.arg("--cgroup-manager=disabled");
    }
    command.env_clear().env("PATH", &engine.config.path).current_dir("/").process_group(0);
    command
}

/// Makes the plan of a container and the bundle in `home`, and spawns what runs it. `plan` is called within the
/// instance's mounts. Blocks.
pub(crate) fn spawn(
    engine: &Engine,
    pod: &Pod,
    home: &Path,
    group: Option<&Group>,
    plan: impl FnOnce() -> io::Result<ContainerShape> + Send,
) -> io::Result<Spawned> {
    // In the host's table of descriptors: that of the thread goes with it.
    let (stdout, stdout_writer) = io::pipe()?;
    let (stderr, stderr_writer) = io::pipe()?;
    let (runtime, plan) = pod.enter(|| {
        let plan = plan()?;
        let text = spec::spec(&plan)
            .map_err(io::Error::other)
            .and_then(|spec| serde_json::to_vec(&spec).map_err(io::Error::other))?;
        fs::write(home.join("config.json"), text)?;
        let stdin = fs::File::open(engine.store.run().stdin())?;
        let mut command = call(engine, pod, group.map(Group::to_join).unwrap_or_default());
        command.arg("run").arg("--bundle").arg(home).arg("--pid-file").arg(home.join("pid"));
        if engine.program.kind == Kind::Runc {
            command.arg("--keep");
        }
        command.arg(id(home)).stdin(stdin);
        command
            .stdout(Stdio::from(stdout_writer.try_clone()?))
            .stderr(Stdio::from(stderr_writer.try_clone()?));
        Ok((Pid::from_child(&command.spawn()?), plan))
    })?;
    // A child of ours that nobody has waited for: the number is its own.
    let runtime_fd = rustix::process::pidfd_open(runtime, PidfdFlags::NONBLOCK)?;
    Ok(Spawned { runtime, runtime_fd, stdout, stderr, plan, home: home.to_path_buf() })
}

fn id(home: &Path) -> String {
    format!("sas-{}", home.file_name().unwrap_or_default().to_string_lossy())
}

/// `AsyncFd` of a descriptor that is owned and never replaced.
fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    #[allow(deprecated, reason = "its successor is an unsafe fn; the descriptor is owned and never replaced")]
    AsyncFd::with_interest(fd, Interest::READABLE)
}

impl Container {
    /// Watches what was spawned from now on.
    pub(crate) fn watch(
        engine: &Arc<Engine>,
        name: &str,
        memory: Option<u64>,
        spawned: Spawned,
        group: Option<Group>,
        target: LogTarget,
        pod: &Arc<Pod>,
    ) -> io::Result<Arc<Self>> {
        let Spawned { runtime, runtime_fd, stdout, stderr, plan, home } = spawned;
        engine.guardian.watch(runtime);
        let open = |pipe: io::PipeReader| {
            let pipe = OwnedFd::from(pipe);
            rustix::io::ioctl_fionbio(&pipe, true)?;
            pipe::Receiver::from_owned_fd(pipe)
        };
        let (stdout, stderr, exited) = (open(stdout)?, open(stderr)?, watched(runtime_fd)?);
        let container = Arc::new(Self {
            name: name.to_owned(),
            plan,
            words: LastWords::default(),
            home,
            memory,
            join: group.as_ref().map(|group| group.to_join().to_vec()).unwrap_or_default(),
            state: Mutex::default(),
            phase: watch::Sender::new(Phase::Starting),
        });
        let run = Run {
            container: Arc::clone(&container),
            engine: Arc::clone(engine),
            pod: Arc::clone(pod),
            runtime,
            group,
        };
        engine.containers.began();
        tokio::spawn(run.watch_until_end(exited, stdout, stderr, target));
        Ok(container)
    }

    pub(crate) fn ended(&self) -> Option<ExitReport> {
        match &*self.phase.borrow() {
            Phase::Ended(report) => Some(report.clone()),
            _ => None,
        }
    }

    /// Resolves when its program runs, or has ended.
    pub(crate) async fn running(&self) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase != Phase::Starting).await;
    }

    /// Resolves when it has ended.
    pub(crate) async fn end(&self) -> ExitReport {
        let mut phases = self.phase.subscribe();
        let ended = phases.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
        match ended.as_deref() {
            Ok(Phase::Ended(report)) => report.clone(),
            // The sender is this container's own.
            _ => unreachable!("a phase has been waited for, and its sender is held"),
        }
    }

    /// The first process in it, as the host numbers it.
    pub(crate) fn pid(&self) -> Option<i32> {
        self.state.lock().init.as_ref().map(|(pid, _)| pid.as_raw_pid())
    }

    pub(crate) fn usage(&self) -> Option<Usage> {
        let mut state = self.state.lock();
        let pid = state.init.as_ref().map(|(pid, _)| pid.as_raw_pid());
        if let Some(mut usage) = pid.and_then(sas_runtime_os::usage::sample) {
            // A descendant that ended without being waited for takes its time with it.
            usage.cpu_ns = usage.cpu_ns.max(state.usage.map_or(0, |before| before.cpu_ns));
            state.usage = Some(usage);
        }
        state.usage
    }

    /// A signal to its first process; nothing when that is gone.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some((_, init)) = &self.state.lock().init {
            let _ = rustix::process::pidfd_send_signal(init, signal);
        }
    }

    /// It is to end: what was dropped or stopped is waited for by `quiesce`.
    pub(crate) fn ending(&self, engine: &Engine) {
        let mut state = self.state.lock();
        if self.ended().is_none() && !std::mem::replace(&mut state.counted, true) {
            engine.containers.ending();
        }
    }

    /// Runs a command in it.
    pub(crate) async fn exec(
        self: &Arc<Self>,
        engine: &Arc<Engine>,
        pod: &Arc<Pod>,
        command: &[String],
    ) -> Result<ExecOutput> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Unavailable, "exec", format!("run a command in a container: {error}"))
                .with_source(error)
        };
        let number = engine.next_number();
        let process = spec::process(&self.plan, command.to_vec())
            .map_err(io::Error::other)
            .and_then(|process| serde_json::to_vec(&process).map_err(io::Error::other))
            .map_err(failed)?;
        let (container, engine, pod) = (Arc::clone(self), Arc::clone(engine), Arc::clone(pod));
        let spawned = engine
            .spawning({
                let engine = Arc::clone(&engine);
                move || {
                    let (output, writer) = io::pipe()?;
                    let file = container.home.join(format!("exec-{number}.json"));
                    let pid_file = container.home.join(format!("exec-{number}.pid"));
                    let pid = pod.enter(|| {
                        fs::write(&file, &process)?;
                        let mut command = call(&engine, &pod, &container.join);
                        command.arg("exec").arg("--process").arg(&file).arg("--pid-file").arg(&pid_file);
                        command.arg(id(&container.home)).stdin(Stdio::null());
                        command
                            .stdout(Stdio::from(writer.try_clone()?))
                            .stderr(Stdio::from(writer.try_clone()?));
                        Ok(Pid::from_child(&command.spawn()?))
                    })?;
                    let running = Running { pid, pid_file, file, done: false };
                    let fd = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)?;
                    Ok::<_, io::Error>((running, fd, output))
                }
            })
            .await;
        let (mut command, fd, output) = spawned.map_err(failed)?;
        let output = OwnedFd::from(output);
        rustix::io::ioctl_fionbio(&output, true).map_err(|error| failed(error.into()))?;
        let mut output = pipe::Receiver::from_owned_fd(output).map_err(failed)?;
        let mut kept = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            use tokio::io::AsyncReadExt as _;
            match output.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    let room = ExecOutput::MOST.saturating_sub(kept.len());
                    kept.extend_from_slice(&buffer[..read.min(room)]);
                }
            }
        }
        let exited = watched(fd).map_err(failed)?;
        let status = wait(&exited).await.map_err(failed)?;
        command.done = true;
        command.clear();
        let code = match status {
            Status::Code(code) if code > 128 => None,
            Status::Code(code) => Some(code),
            Status::Signal(_) => None,
        };
        if code != Some(0)
            && let Some(missing) = not_found(&String::from_utf8_lossy(&kept))
        {
            return Err(Error::new(ErrorKind::NotFound, "exec", missing));
        }
        Ok(ExecOutput::new(code, kept))
    }
}

impl Killed for Container {
    fn kill(&self, engine: &Engine) {
        self.ending(engine);
        let mut state = self.state.lock();
        state.kill = true;
        if let Some((_, init)) = &state.init {
            let _ = rustix::process::pidfd_send_signal(init, Signal::KILL);
            state.forced = true;
        }
    }
}

/// What `crun` and `runc` say when there is no such program.
fn not_found(said: &str) -> Option<String> {
    said.lines()
        .map(str::trim)
        .find(|line| {
            (line.contains("executable file") && line.contains("not found"))
                || (line.contains("exec failed") && line.contains("no such file"))
        })
        .map(str::to_owned)
}

/// A command that runs in a container: ended when dropped.
struct Running {
    pid: Pid,
    pid_file: PathBuf,
    file: PathBuf,
    done: bool,
}

impl Running {
    /// As the host finds what lies in the mounts of the instance.
    fn seen(&self, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{}", self.pid.as_raw_pid(), path.display()))
    }

    fn clear(&self) {
        let _ = fs::remove_file(self.seen(&self.file));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let text = fs::read_to_string(self.seen(&self.pid_file)).unwrap_or_default();
        if let Some(inner) = text.trim().parse().ok().and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process(inner, Signal::KILL);
        }
        let pid = self.pid;
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        let _ = std::thread::Builder::new().name("sas-exec-end".into()).spawn(move || {
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        });
    }
}

enum Status {
    Code(i32),
    Signal(i32),
}

/// Waits for the end of a child of ours.
async fn wait(fd: &AsyncFd<OwnedFd>) -> io::Result<Status> {
    loop {
        let mut ready = fd.readable().await?;
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match rustix::process::waitid(WaitId::PidFd(fd.get_ref().as_fd()), options) {
            Ok(Some(status)) => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (_, Some(signal)) => Status::Signal(signal),
                    (code, None) => Status::Code(code.unwrap_or_default()),
                });
            }
            Ok(None) => ready.clear_ready(),
            Err(error) => return Err(error.into()),
        }
    }
}

struct Run {
    container: Arc<Container>,
    engine: Arc<Engine>,
    pod: Arc<Pod>,
    runtime: Pid,
    group: Option<Group>,
}

impl Run {
    async fn watch_until_end(
        self,
        exited: AsyncFd<OwnedFd>,
        stdout: pipe::Receiver,
        stderr: pipe::Receiver,
        target: LogTarget,
    ) {
        let container = Arc::clone(&self.container);
        let mut pumps = std::pin::pin!(async {
            tokio::join!(
                logs::pump(stdout, LogStream::Stdout, &target, &container.words),
                logs::pump(stderr, LogStream::Stderr, &target, &container.words),
            )
        });
        let mut pumped = false;
        let status = {
            let mut waited = std::pin::pin!(wait(&exited));
            let mut found = std::pin::pin!(self.find_init());
            let mut running = false;
            loop {
                tokio::select! {
                    biased;
                    status = &mut waited => break status,
                    () = &mut found, if !running => running = true,
                    _ = &mut pumps, if !pumped => pumped = true,
                }
            }
        };
        if !pumped {
            let _ = tokio::time::timeout(AFTER_END, &mut pumps).await;
        }
        self.finish(status);
    }

    /// Waits until the first process of the container is there.
    async fn find_init(&self) {
        let path = self.container.home.join("pid");
        let path = format!("/proc/{}/root{}", self.runtime.as_raw_pid(), path.display());
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(pid) = fs::read_to_string(&path)
                .ok()
                .and_then(|text| text.trim().parse().ok())
                .and_then(Pid::from_raw)
                && let Ok(fd) = rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK)
            {
                self.engine.guardian.watch(pid);
                let mut state = self.container.state.lock();
                if state.kill {
                    let _ = rustix::process::pidfd_send_signal(&fd, Signal::KILL);
                    state.forced = true;
                }
                state.init = Some((pid, fd));
                drop(state);
                self.container.phase.send_replace(Phase::Running);
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(4));
        }
    }

    fn finish(self, status: io::Result<Status>) {
        let Self { container, engine, pod, runtime, group } = self;
        engine.guardian.forget(runtime);
        let mut report = ExitReport::at(engine.config.clock.now());
        let counted = {
            let mut state = container.state.lock();
            if let Some((pid, _)) = state.init.take() {
                engine.guardian.forget(pid);
            }
            let signal = match status {
                Ok(Status::Signal(signal)) => Some(signal),
                // What ran the container tells a signal as shells do.
                Ok(Status::Code(code)) if (129..=192).contains(&code) => Some(code - 128),
                Ok(Status::Code(code)) => {
                    report = report.with_code(code);
                    None
                }
                Err(_) => None,
            };
            if let Some(signal) = signal {
                report = report.with_signal(signal);
                if signal == Signal::KILL.as_raw()
                    && !state.forced
                    && group.as_ref().is_some_and(Group::ran_out_of_memory)
                {
                    report = report.with_out_of_memory();
                    let met = group.as_ref().map(Group::met_memory);
                    let why = match (met, container.memory) {
                        (Some(Met::Together), _) => {
                            "the ceiling of all containers together: ContainerConfig::total_memory".to_owned()
                        }
                        (Some(Met::Own), Some(most)) => format!(
                            "its ceiling is {most} bytes: resources.limits.memory, or ContainerConfig::instance_memory"
                        ),
                        _ => "the machine, or the host's own control group, had none left".to_owned(),
                    };
                    report = report.with_reason(why);
                    engine.metrics.out_of_memory.increment(1);
                }
            }
            state.counted
        };
        drop(group);
        drop(pod);
        container.phase.send_replace(Phase::Ended(report));
        engine.containers.ended(counted);
        engine.sweep();
    }
}
