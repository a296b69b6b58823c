//! The guardian: a small child that outlives the host just long enough to end its instances.
//!
//! It is `/bin/sh` with the script below, reading a pipe whose only other end the host holds. The host writes
//! `+ <group>` and `- <group>`; when the pipe ends, however the host died, the guardian kills the groups that are left,
//! and every process that has the run's mark or whose standard input is its marker file: those that had left their group,
//! and the one that was spawned in the instant in which the host died.

use std::{
    collections::BTreeSet,
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use parking_lot::Mutex;
use rustix::process::{Pid, PidfdFlags};
use sas_core::{Error, ErrorKind, Result};

use crate::strays::{Marks, Signature};

const SCRIPT: &str = r#"
trap '' HUP INT QUIT TERM
jailed() {
  while read -r name count; do
    if [ "$name" = Seccomp_filters: ]; then [ "$count" -ge "$2" ]; return; fi
  done <"/proc/$1/status"
  return 1
}
while read -r op group; do
  case $op in
    +) eval "g_$group=1" ;;
    -) unset "g_$group" ;;
  esac
done
set | while IFS='=' read -r name rest; do
  case $name in g_[0-9]*) kill -s KILL -- "-${name#g_}" ;; esac
done
for round in 1 2 3; do
  for process in /proc/[0-9]*; do
    if [ "$process/fd/0" -ef "$1" ]; then kill -s KILL "${process#/proc/}"; fi
  done
  grep -s "^Max realtime timeout .* $2[0-9]* " /proc/[0-9]*/limits | while read -r line time out soft hard unit; do
    process=${line#/proc/}; process=${process%%/*}
    case $hard in
      $2*) kill -s KILL "$process" ;;
      *) if [ -n "$3" ] && jailed "$process" "$3"; then kill -s KILL "$process"; fi ;;
    esac
  done
done
"#;

/// A guardian, while the host lives.
#[derive(Debug)]
pub struct Guardian {
    marker: PathBuf,
    mark: String,
    signature: Option<Signature>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    groups: BTreeSet<i32>,
    /// What the pipe had no room for. Bounded by what is spawned and reaped until it has.
    backlog: Vec<u8>,
    pipe: OwnedFd,
    pid: Pid,
}

impl Guardian {
    /// Starts it. Returns a descriptor that becomes readable when it dies.
    ///
    /// # Errors
    /// `Unavailable` when `/bin/sh` can't be started.
    pub fn start(marker: &Path, marks: &Marks) -> Result<(Self, OwnedFd)> {
        let mark = marks.prefix();
        let signature = marks.signature();
        let (pipe, pid, pidfd) = spawn(marker, &mark, signature)?;
        let state = State { groups: BTreeSet::new(), backlog: Vec::new(), pipe, pid };
        Ok((Self { marker: marker.to_path_buf(), mark, signature, state: Mutex::new(state) }, pidfd))
    }

    /// Has a process group killed when the host dies.
    pub fn watch(&self, group: Pid) {
        let mut state = self.state.lock();
        if state.groups.insert(group.as_raw_pid()) {
            state.send(format!("+ {}\n", group.as_raw_pid()).as_bytes());
        }
    }

    /// The group has ended.
    pub fn forget(&self, group: Pid) {
        let mut state = self.state.lock();
        if state.groups.remove(&group.as_raw_pid()) {
            state.send(format!("- {}\n", group.as_raw_pid()).as_bytes());
        }
    }

    /// Writes what did not fit before; false while something is left.
    pub fn flush(&self) -> bool {
        let mut state = self.state.lock();
        state.send(&[]);
        state.backlog.is_empty()
    }

    /// Somebody killed it: reaps it and starts another that knows all groups.
    ///
    /// # Errors
    /// `Unavailable` when `/bin/sh` can't be started.
    pub fn restart(&self) -> Result<OwnedFd> {
        let mut state = self.state.lock();
        let _ = rustix::process::waitpid(Some(state.pid), rustix::process::WaitOptions::NOHANG);
        let (pipe, pid, pidfd) = spawn(&self.marker, &self.mark, self.signature)?;
        state.pipe = pipe;
        state.pid = pid;
        state.backlog.clear();
        let all: String = state.groups.iter().map(|group| format!("+ {group}\n")).collect();
        state.send(all.as_bytes());
        Ok(pidfd)
    }

    /// Its process, for tests and operators.
    pub fn pid(&self) -> i32 {
        self.state.lock().pid.as_raw_pid()
    }
}

impl State {
    fn send(&mut self, bytes: &[u8]) {
        self.backlog.extend_from_slice(bytes);
        while !self.backlog.is_empty() {
            match rustix::io::write(&self.pipe, &self.backlog) {
                Ok(n) => {
                    self.backlog.drain(..n);
                }
                Err(rustix::io::Errno::INTR) => {}
                // Full: later. Broken: it died, and its successor is told everything.
                Err(_) => break,
            }
        }
    }
}

impl Drop for Guardian {
    fn drop(&mut self) {
        // The pipe ends with us; it finds nothing to kill and goes. Whoever is left of its parents reaps it.
        let state = self.state.get_mut();
        let _ = rustix::process::waitpid(Some(state.pid), rustix::process::WaitOptions::NOHANG);
    }
}

fn spawn(marker: &Path, mark: &str, signature: Option<Signature>) -> Result<(OwnedFd, Pid, OwnedFd)> {
    let failed = |error: io::Error| {
        Error::new(
            ErrorKind::Unavailable,
            "start",
            format!("the guardian that ends instances with the host did not start: /bin/sh: {error}"),
        )
        .with_source(error)
    };
    let (reader, writer) = io::pipe().map_err(failed)?;
    let writer = OwnedFd::from(writer);
    rustix::io::ioctl_fionbio(&writer, true).map_err(|error| failed(error.into()))?;
    let child = Command::new("/bin/sh")
        .arg("-c")
        .arg(SCRIPT)
        .arg("sas-guardian")
        .arg(marker)
        .arg(mark)
        .arg(signature.map(|signature| signature.filters().to_string()).unwrap_or_default())
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(reader))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // Out of the host's group: Ctrl-C in a terminal reaches the host, not the guardian.
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let pid = Pid::from_child(&child);
    let pidfd =
        rustix::process::pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|error| failed(error.into()))?;
    Ok((writer, pid, pidfd))
}
