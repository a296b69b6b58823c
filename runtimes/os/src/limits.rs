//! Resource limits of processes that run already.

use std::os::unix::fs::MetadataExt as _;

use rustix::{
    io::Errno,
    process::{Pid, Resource, Rlimit},
};

/// Sets the soft and the hard limit of each resource for one process. One that has ended is left alone.
///
/// Another user's process takes `CAP_SYS_RESOURCE`, which root has not in every container. A thread that takes on that
/// user for a moment needs none.
///
/// # Errors
/// Those of prlimit(2).
pub fn set(pid: Pid, limits: &[(Resource, u64)]) -> rustix::io::Result<()> {
    let set = || {
        for (resource, limit) in limits {
            let limit = Rlimit { current: Some(*limit), maximum: Some(*limit) };
            rustix::process::prlimit(Some(pid), *resource, limit)?;
        }
        Ok(())
    };
    match set() {
        Err(Errno::PERM) => {}
        Err(Errno::SRCH) => return Ok(()),
        other => return other,
    }
    let Ok(owner) = std::fs::metadata(format!("/proc/{}", pid.as_raw_pid())) else { return Ok(()) };
    let dumpable = rustix::process::dumpable_behavior();
    let done = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid()), rustix::fs::Gid::from_raw(owner.gid()));
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            set()
        });
        other.join().unwrap_or(Err(Errno::PERM))
    });
    if let Ok(dumpable) = dumpable {
        let _ = rustix::process::set_dumpable_behavior(dumpable);
    }
    match done {
        Err(Errno::SRCH) => Ok(()),
        other => other,
    }
}

/// Raises this process's soft limit of open files to its hard one, and says what it is now. A host with thousands of
/// connections needs it; programs that it starts get the limit that it gives them.
pub fn raise_open_files() -> Option<u64> {
    let now = rustix::process::getrlimit(Resource::Nofile);
    if now.current != now.maximum {
        let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
    }
    rustix::process::getrlimit(Resource::Nofile).current
}
