//! Ports for instances, each given to one at a time.
//!
//! Between the moment when a port is chosen and the moment when the program listens on it, nothing of TCP says that it
//! is taken. So each port has a lock that all hosts of a network namespace see and that the kernel frees however its
//! host ends: a Unix socket with an abstract name.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    sync::Arc,
};

use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Result, Retry};

/// Hands out the ports of a range.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: HashSet<u16>,
    next: u16,
}

/// A port, until dropped.
#[derive(Debug)]
pub struct Port {
    number: u16,
    lock: Option<UnixDatagram>,
    ports: Arc<Ports>,
}

impl Port {
    /// Its number.
    pub const fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // First, so that whoever sees the number free finds the lock free.
        self.lock = None;
        self.ports.state.lock().used.remove(&self.number);
    }
}

impl Ports {
    /// The ports of a range.
    pub fn new(range: RangeInclusive<u16>) -> Arc<Self> {
        let count = u32::from(*range.end()) - u32::from(*range.start()) + 1;
        // Hosts on one machine begin at different places, so that they rarely try the same port.
        let offset = std::process::id().wrapping_mul(7919) % count;
        let next = range.start() + u16::try_from(offset).unwrap_or(0);
        Arc::new(Self { range, state: Mutex::new(State { used: HashSet::new(), next }) })
    }

    /// A port on which nobody listens.
    ///
    /// Goes round the range, so that a port rests as long as possible before it is given out again.
    pub fn take(self: &Arc<Self>) -> Result<Port> {
        let count = usize::from(*self.range.end() - self.range.start()) + 1;
        for _ in 0..count {
            let number = {
                let mut state = self.state.lock();
                let number = state.next;
                state.next = if number == *self.range.end() { *self.range.start() } else { number + 1 };
                if !state.used.insert(number) {
                    continue;
                }
                number
            };
            let mut port = Port { number, lock: None, ports: Arc::clone(self) };
            port.lock = lock(number);
            if port.lock.is_some() && is_free(number) {
                return Ok(port);
            }
        }
        Err(Error::new(
            ErrorKind::Exhausted,
            "start",
            format!(
                "all ports from {} to {} are taken; widen ProcessConfig::ports or run fewer instances",
                self.range.start(),
                self.range.end()
            ),
        )
        .with_retry(Retry::After(std::time::Duration::from_secs(1))))
    }

    /// The port that a program insists on.
    pub fn take_fixed(self: &Arc<Self>, number: u16) -> Result<Port> {
        let taken = |by: &str| {
            Error::new(
                ErrorKind::Exhausted,
                "start",
                format!(
                    "port {number} is taken by {by}: a program that insists on a port can have one instance per host; \
                     leave `port` out and read the variable PORT to have several"
                ),
            )
            .with_retry(Retry::After(std::time::Duration::from_secs(1)))
        };
        if !self.state.lock().used.insert(number) {
            return Err(taken("another instance"));
        }
        let mut port = Port { number, lock: None, ports: Arc::clone(self) };
        port.lock = lock(number);
        if port.lock.is_none() {
            return Err(taken("an instance of another host"));
        }
        if is_free(number) { Ok(port) } else { Err(taken("another program of this machine")) }
    }
}

/// The lock of a port; `None` when another host has it.
fn lock(port: u16) -> Option<UnixDatagram> {
    let name = SocketAddr::from_abstract_name(format!("sas-port-{port}")).ok()?;
    UnixDatagram::bind_addr(&name).ok()
}

/// Whether a program could listen on the port.
///
/// The socket is bound and never listens. Between its fork and its exec a process that another thread spawns right now
/// has a copy of each of our descriptors: from a copy that listens, the readiness probe and even the first request
/// would get a connection that breaks when the exec closes it.
fn is_free(port: u16) -> bool {
    let bound = || -> rustix::io::Result<()> {
        let socket = rustix::net::socket_with(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )?;
        rustix::net::sockopt::set_socket_reuseaddr(&socket, true)?;
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
    };
    bound().is_ok()
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, TcpListener, TcpStream},
        sync::atomic::{AtomicBool, Ordering},
    };

    use super::{Ports, is_free};

    #[test]
    fn a_port_is_free_unless_somebody_listens_on_it() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let number = taken.local_addr().unwrap().port();
        assert!(!is_free(number));
        drop(taken);
        assert!(is_free(number));
        let everywhere = TcpListener::bind((Ipv4Addr::UNSPECIFIED, number)).unwrap();
        assert!(!is_free(number));
        drop(everywhere);
    }

    #[test]
    fn looking_whether_a_port_is_free_never_takes_a_connection() {
        // Outside of the range of outgoing connections, where nothing else comes by.
        let number = 31_317;
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..5_000 {
                    is_free(number);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let met = TcpStream::connect((Ipv4Addr::LOCALHOST, number)).is_ok();
                assert!(!met, "somebody would have been connected to nobody");
            }
        });
    }

    #[test]
    fn two_hosts_never_give_out_the_same_port() {
        let (one, two) = (Ports::new(31_300..=31_309), Ports::new(31_300..=31_309));
        let mut taken: Vec<_> = (0..5).flat_map(|_| [one.take().unwrap(), two.take().unwrap()]).collect();
        let mut numbers: Vec<u16> = taken.iter().map(super::Port::number).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 10);
        let full = one.take().unwrap_err();
        assert!(full.to_string().contains("ProcessConfig::ports"), "{full}");
        let fixed = one.take_fixed(numbers[0]).unwrap_err();
        assert!(fixed.to_string().contains("another"), "{fixed}");
        let freed = taken.pop().unwrap().number();
        assert_eq!(one.take().unwrap().number(), freed);
    }
}
