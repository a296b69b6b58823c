//! TCP ports of this machine that programs in its network neither connect to nor listen on, while nothing else of theirs is
//! bounded.
//!
//! Landlock lists what is allowed, so that all ports but the closed ones are listed; and it has who is in one domain look
//! after those of the same domain only, so that a program which enters another's namespaces must be in that one's. So there
//! is one domain, of one thread, whose threads run what spawns programs: what it costs is paid once.
//!
//! It bounds TCP by that name only: whoever uses it refuses other names of TCP (MPTCP, SMC) and `MSG_FASTOPEN` by a
//! filter of system calls.

use std::{
    io,
    sync::mpsc::{SyncSender, sync_channel},
};

use landlock::{
    ABI, Access as _, AccessNet, CompatLevel, Compatible as _, NetPort, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetError, RulesetStatus,
};

type Work = Box<dyn FnOnce() + Send>;

/// Work that waits for its thread at most.
const MOST_WAITING: usize = 256;

/// The ports that stay closed for whatever is spawned by the work that this runs.
#[derive(Debug)]
pub struct ClosedPorts {
    work: SyncSender<Work>,
}

fn restrict(ports: &[u16]) -> Result<RulesetStatus, RulesetError> {
    let access = AccessNet::from_all(ABI::V4);
    let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    // Setuid programs stay what they are: this is about ports only, and root may take it on without.
    let set = rules.handle_access(access)?.create()?.no_new_privs(false);
    let open = (0..=u16::MAX).filter(|port| !ports.contains(port));
    let set = set.add_rules(open.map(|port| Ok::<_, RulesetError>(NetPort::new(port, access))))?;
    Ok(set.restrict_self()?.ruleset)
}

impl ClosedPorts {
    /// Closes `ports`. Takes some ten milliseconds and the rights of root.
    ///
    /// # Errors
    /// `Unsupported` where the kernel's landlock knows no ports (before Linux 6.7) or is switched off; those of a thread
    /// that can't be made.
    pub fn new(ports: &[u16]) -> io::Result<Self> {
        let (work, works) = sync_channel::<Work>(MOST_WAITING);
        let (tell, told) = sync_channel(1);
        let ports = ports.to_vec();
        std::thread::Builder::new().name("sas-closed-ports".into()).spawn(move || {
            let restricted = restrict(&ports);
            let holds = matches!(restricted, Ok(RulesetStatus::FullyEnforced));
            let _ = tell.send(restricted);
            // Another thread for each, since one may block: it is in the domain of the thread that makes it.
            while holds && let Ok(work) = works.recv() {
                let _ = std::thread::Builder::new().name("sas-closed".into()).spawn(work);
            }
        })?;
        let why = match told.recv().map_err(io::Error::other)? {
            Ok(RulesetStatus::FullyEnforced) => return Ok(Self { work }),
            Ok(other) => format!("{other:?}"),
            Err(error) => error.to_string(),
        };
        let what = format!(
            "ports can't be closed to programs of this network, for which landlock of Linux 6.7 is needed: {why}"
        );
        Err(io::Error::new(io::ErrorKind::Unsupported, what))
    }

    /// Runs `work` on a thread that is held to the ports which are not closed, and so is what it spawns. Returns at once;
    /// work that can't be given a thread is dropped.
    ///
    /// # Errors
    /// When too much is waiting already.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        self.work.try_send(Box::new(work)).map_err(|error| io::Error::other(format!("closed ports: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_thread_and_what_it_spawns_reach_and_take_every_port_but_the_closed_one() {
        if !rustix::process::geteuid().is_root() {
            return sas_testkit::skip("it needs root");
        }
        let (closed, open) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let (to_closed, to_open) = (closed.local_addr().unwrap(), open.local_addr().unwrap());
        let Ok(ports) = ClosedPorts::new(&[to_closed.port()]) else {
            return sas_testkit::kernel_lacks("landlock with ports");
        };
        let (tell, told) = sync_channel(1);
        ports
            .run(move || {
                assert!(TcpStream::connect(to_open).is_ok());
                let refused = TcpStream::connect(to_closed).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{refused}");
                assert!(TcpListener::bind("127.0.0.1:0").is_ok());
                let taken = TcpListener::bind(("127.0.0.2", to_closed.port())).unwrap_err();
                assert_eq!(taken.kind(), io::ErrorKind::PermissionDenied, "{taken}");
                // What is spawned is held to it as well, and may mount and change its user as before.
                let probe = format!("exec 3<>/dev/tcp/127.0.0.1/{}", to_closed.port());
                let status = std::process::Command::new("bash").args(["-c", &probe]).status();
                assert!(status.is_ok_and(|status| !status.success()));
                let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
                assert!(status.contains("NoNewPrivs:\t0"), "{status}");
                tell.send(()).unwrap();
            })
            .unwrap();
        told.recv().expect("all of it holds");
        assert!(TcpStream::connect(to_closed).is_ok(), "the host itself reaches it");
    }
}
