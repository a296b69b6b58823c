//! A network namespace of its own for an instance: no port of it can be taken or reached by anybody else.
//!
//! A socket belongs to the namespace in which it was made. So the host makes sockets on a thread that visits the
//! namespace, and connects them from wherever it likes.

use std::{io, net::SocketAddr, os::fd::OwnedFd, sync::Arc};

use nix::sched::{CloneFlags, setns, unshare};
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// Sockets that are made with one visit.
const BATCH: usize = 8;

/// The network of a cell.
#[derive(Debug)]
pub struct Network {
    /// The namespace, or a process that is in it.
    space: OwnedFd,
    /// For IPv4 and IPv6.
    sockets: [Mutex<Vec<OwnedFd>>; 2],
}

impl Network {
    pub(crate) fn of(space: OwnedFd) -> Arc<Self> {
        Arc::new(Self { space, sockets: [Mutex::default(), Mutex::default()] })
    }

    /// A network with a loopback interface and nothing else. It is there as long as this or a process is in it.
    ///
    /// # Errors
    /// Those of unshare(2) and of rtnetlink: without root there is none.
    pub fn make() -> io::Result<Arc<Self>> {
        let space = std::thread::scope(|scope| {
            let making =
                std::thread::Builder::new().name("sas-network".into()).spawn_scoped(scope, || {
                    unshare(CloneFlags::CLONE_NEWNET)?;
                    crate::rtnetlink::bring_lo_up()?;
                    let path = "/proc/thread-self/ns/net";
                    Ok::<_, io::Error>(OwnedFd::from(std::fs::File::open(path)?))
                })?;
            making.join().map_err(|_panic| io::Error::other("the thread ended"))?
        })?;
        Ok(Self::of(space))
    }

    /// Takes the calling thread, and what it spawns from now on, into the network.
    ///
    /// # Errors
    /// Those of setns(2).
    pub fn enter(&self) -> io::Result<()> {
        Ok(setns(&self.space, CloneFlags::CLONE_NEWNET)?)
    }

    fn visit(&self, family: AddressFamily) -> io::Result<Vec<OwnedFd>> {
        std::thread::scope(|scope| {
            let visiting =
                std::thread::Builder::new().name("sas-visit".into()).spawn_scoped(scope, || {
                    self.enter()?;
                    (0..BATCH).map(|_| socket(family)).collect::<io::Result<Vec<_>>>()
                })?;
            visiting.join().map_err(|_panic| io::Error::other("the thread ended"))?
        })
    }
}

fn socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

impl sas_core::SocketSource for Network {
    fn tcp_socket(&self, to: &SocketAddr) -> io::Result<OwnedFd> {
        let (at, family) = if to.is_ipv4() { (0, AddressFamily::INET) } else { (1, AddressFamily::INET6) };
        if let Some(socket) = self.sockets[at].lock().pop() {
            return Ok(socket);
        }
        let mut made = self.visit(family)?;
        let socket = made.pop().ok_or_else(|| io::Error::other("no socket was made"))?;
        self.sockets[at].lock().append(&mut made);
        Ok(socket)
    }
}
