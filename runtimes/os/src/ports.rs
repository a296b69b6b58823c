//! Ports for instances, each given to one at a time.
//!
//! Between the moment when a port is chosen and the moment when the program listens on it, nothing of TCP says that it
//! is taken. So each port has a lock that all hosts of a user see and that the kernel frees however its host ends: a
//! file in a directory that nobody else may enter, so that nobody else can hold it.
//!
//! What listens on a port in the end may still be another's: [`belongs`] tells.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddrV4},
    ops::RangeInclusive,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, Result, Retry};

/// Hands out the ports of a range.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    except: HashSet<u16>,
    locks: PathBuf,
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
    lock: Option<OwnedFd>,
    ports: Arc<Ports>,
}

impl Port {
    /// The number of the port.
    pub const fn number(&self) -> u16 {
        self.number
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        // First, so that whoever sees the number free finds the lock free. By a call of its own: a thread that spawns at
        // this moment has a copy of the descriptor, which would hold the lock until that goes too.
        if let Some(lock) = self.lock.take() {
            let _ = rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock);
        }
        self.ports.state.lock().used.remove(&self.number);
    }
}

impl Ports {
    /// The ports of a range, with their locks in `locks`: a directory of this user's alone, which is made where it is
    /// missing. Hosts that share it never give out the same port. Those of `except` are never given out: ports that
    /// instances may connect to, who would reach each other there.
    ///
    /// # Errors
    /// `Conflict` when the directory is another user's or may be entered by others; `Unavailable` when it can't be made.
    pub fn new(range: RangeInclusive<u16>, except: &[u16], locks: &Path) -> Result<Arc<Self>> {
        private(locks)?;
        let count = u32::from(*range.end()) - u32::from(*range.start()) + 1;
        // Hosts on one machine begin at different places, so that they rarely try the same port.
        let offset = std::process::id().wrapping_mul(7919) % count;
        let next = range.start() + u16::try_from(offset).unwrap_or(0);
        let state = Mutex::new(State { used: HashSet::new(), next });
        let except = except.iter().copied().collect();
        Ok(Arc::new(Self { range, except, locks: locks.to_path_buf(), state }))
    }

    /// A port on which nobody listens.
    ///
    /// Goes round the range, so that a port rests as long as possible before it is given out again.
    ///
    /// # Errors
    /// `Exhausted` when all are taken.
    pub fn take(self: &Arc<Self>) -> Result<Port> {
        let count = usize::from(*self.range.end() - self.range.start()) + 1;
        for _ in 0..count {
            let number = {
                let mut state = self.state.lock();
                let number = state.next;
                state.next = if number == *self.range.end() { *self.range.start() } else { number + 1 };
                if self.except.contains(&number) || !state.used.insert(number) {
                    continue;
                }
                number
            };
            let mut port = Port { number, lock: None, ports: Arc::clone(self) };
            port.lock = self.lock(number);
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
    ///
    /// # Errors
    /// `Exhausted` when it is taken, and by whom.
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
        port.lock = self.lock(number);
        if port.lock.is_none() {
            return Err(taken("an instance of another host"));
        }
        if is_free(number) { Ok(port) } else { Err(taken("another program of this machine")) }
    }
}

impl Ports {
    /// The lock of a port; `None` when another host has it.
    fn lock(&self, port: u16) -> Option<OwnedFd> {
        use rustix::fs::{FlockOperation, Mode, OFlags};
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file =
            rustix::fs::open(self.locks.join(port.to_string()), flags, Mode::RUSR | Mode::WUSR).ok()?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        Some(file)
    }
}

/// Where the hosts of this user keep their locks: a directory that the system made for the user, else `otherwise`.
pub fn locks_dir(otherwise: &Path) -> PathBuf {
    let user = rustix::process::geteuid();
    let runtime = if user.is_root() { "/run".into() } else { format!("/run/user/{}", user.as_raw()) };
    let dir = Path::new(&runtime).join("sas-ports");
    match private(&dir) {
        Ok(()) => dir,
        Err(_) => otherwise.to_path_buf(),
    }
}

fn private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
    let failed = |error: std::io::Error| {
        let what = format!("the directory for locks of ports: {}: {error}", dir.display());
        Error::new(ErrorKind::Unavailable, "open", what).with_source(error)
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
    let metadata = std::fs::symlink_metadata(dir).map_err(failed)?;
    if metadata.is_dir()
        && metadata.uid() == rustix::process::geteuid().as_raw()
        && metadata.mode() & 0o077 == 0
    {
        return Ok(());
    }
    let what =
        format!("{}: it must be a directory that this user alone may enter (mode 0700)", dir.display());
    Err(Error::new(ErrorKind::Conflict, "open", what))
}

/// The sockets that listen on a TCP port of this network namespace, by inode.
///
/// The kernel is asked by `sock_diag`, for sockets that listen only: to read `/proc/net/tcp` costs milliseconds on a
/// machine with much memory, since the kernel then walks its whole table of connections, however empty. That is the
/// fallback of a kernel without `sock_diag`.
fn listeners(port: u16) -> HashSet<u64> {
    diagnosed(port).unwrap_or_else(|_| read_listeners(port))
}

/// What `sock_diag` says of the sockets that listen on a port, over IPv4 and IPv6.
fn diagnosed(port: u16) -> std::io::Result<HashSet<u64>> {
    use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
    use netlink_packet_sock_diag::{
        SockDiagMessage,
        constants::{AF_INET, AF_INET6, IPPROTO_TCP},
        inet::{ExtensionFlags, InetRequest, SocketId, StateFlags},
    };
    use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

    let socket = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    // The kernel answers at once or not at all; a lost answer (its queue overflows) must not wait for ever.
    let limit = Some(std::time::Duration::from_secs(1));
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Recv, limit)?;
    let kernel = netlink::SocketAddrNetlink::new(0, 0);
    let odd = |what: String| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut found = HashSet::new();
    let mut answer = vec![0; 32 * 1024];
    for (family, mut socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        socket_id.source_port = port;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let request = InetRequest {
            family,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            socket_id,
        };
        let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        rustix::net::sendto(&socket, &bytes, SendFlags::empty(), &kernel)?;
        'dump: loop {
            let (length, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
            let mut rest = answer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                    .map_err(|error| odd(error.to_string()))?;
                // Messages begin at multiples of four bytes.
                let length = (message.header.length as usize).next_multiple_of(4);
                match message.payload {
                    NetlinkPayload::Done(_) => break 'dump,
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response))
                        if response.header.socket_id.source_port == port =>
                    {
                        found.insert(response.header.inode.into());
                    }
                    _ => {}
                }
                if length == 0 {
                    return Err(odd("a message without a length".into()));
                }
                rest = rest.get(length..).unwrap_or_default();
            }
        }
    }
    Ok(found)
}

/// What the tables below `/proc` say of the sockets that listen on a port.
fn read_listeners(port: u16) -> HashSet<u64> {
    let mut found = HashSet::new();
    for table in ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"] {
        use std::io::BufRead as _;
        let Ok(file) = std::fs::File::open(table) else { continue };
        for line in std::io::BufReader::new(file).lines().skip(1).map_while(std::result::Result::ok) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(local), Some(state), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
            else {
                continue;
            };
            // Those that listen (0A) come first, and there may be very many others.
            if *state != "0A" {
                break;
            }
            let at = local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok());
            if at == Some(port)
                && let Ok(inode) = inode.parse()
            {
                found.insert(inode);
            }
        }
    }
    found
}

/// Whether everything that listens on a TCP port belongs to a process of `roots` or to one that descends from them, and
/// something does. Blocks on `/proc`.
pub fn belongs(port: u16, roots: &[i32]) -> bool {
    let mut wanted = listeners(port);
    if wanted.is_empty() {
        return false;
    }
    let mut open = roots.to_vec();
    let mut seen = 0;
    while let Some(pid) = open.pop() {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            let target = std::fs::read_link(entry.path()).unwrap_or_default();
            let inode = target
                .to_str()
                .and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
            if let Some(inode) = inode {
                wanted.remove(&inode);
            }
        }
        if wanted.is_empty() {
            return true;
        }
        seen += 1;
        if seen < 1024 {
            open.extend(crate::usage::children(pid));
        }
    }
    false
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
    fn ports_that_instances_may_connect_to_are_never_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::new(31_330..=31_333, &[31_331, 31_333], &dir.path().join("locks")).unwrap();
        let taken: Vec<_> = std::iter::from_fn(|| ports.take().ok()).collect();
        let mut numbers: Vec<u16> = taken.iter().map(super::Port::number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [31_330, 31_332]);
    }

    #[test]
    fn both_ways_to_ask_for_listeners_agree() {
        let four = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = four.local_addr().unwrap().port();
        let mut sockets = vec![four];
        sockets.extend(TcpListener::bind(("::1", port)));
        let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let found = super::diagnosed(port).unwrap();
        assert_eq!(found.len(), sockets.len(), "the connection is no listener");
        assert_eq!(found, super::read_listeners(port));
        drop((client, sockets));
        assert!(super::diagnosed(port).unwrap().is_empty());
    }

    #[test]
    fn a_listener_belongs_to_its_process_and_to_no_other() {
        let own = i32::try_from(std::process::id()).unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        assert!(super::belongs(port, &[own]));
        assert!(!super::belongs(port, &[]), "a process that is not asked for");
        drop(taken);
        assert!(!super::belongs(port, &[own]), "nobody listens");
    }

    #[test]
    fn locks_are_kept_where_nobody_else_may_enter() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let error = Ports::new(31_310..=31_311, &[], dir.path()).unwrap_err().to_string();
        assert!(error.contains("0700"), "{error}");
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
    fn a_port_is_free_as_soon_as_it_is_given_back_whoever_has_a_copy_of_its_lock() {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::new(31_320..=31_320, &[], &dir.path().join("locks")).unwrap();
        let port = ports.take_fixed(31_320).unwrap();
        let _copy = port.lock.as_ref().unwrap().try_clone().unwrap();
        drop(port);
        ports.take_fixed(31_320).unwrap();
    }

    #[test]
    fn two_hosts_never_give_out_the_same_port() {
        let dir = tempfile::tempdir().unwrap();
        let locks = dir.path().join("locks");
        let (one, two) = (
            Ports::new(31_300..=31_309, &[], &locks).unwrap(),
            Ports::new(31_300..=31_309, &[], &locks).unwrap(),
        );
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
