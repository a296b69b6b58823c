//! When an instance can serve.

use std::{
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use sas_core::{Endpoint, Error, ErrorKind, Probe, ProbeAction, Result};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, Interest, unix::AsyncFd},
    net::TcpStream,
    time::Instant,
};

/// Questions as the spec asks them, checked.
#[derive(Clone, Debug)]
pub(crate) enum Readiness {
    /// A connection.
    Connect(Option<u16>),
    /// An HTTP answer of 200 to 399.
    Http { port: Option<u16>, request: String },
}

impl Readiness {
    pub(crate) fn of(probe: Option<&Probe>) -> Result<Self> {
        let Some(probe) = probe else { return Ok(Self::Connect(None)) };
        let wrong = |field: &str, value: &str, remedy: &str| {
            Err(Error::new(
                ErrorKind::InvalidSpec,
                "prepare",
                format!("readiness.action.{field}: {value:?}: {remedy}"),
            ))
        };
        match &probe.action {
            ProbeAction::Tcp { port } => Ok(Self::Connect(*port)),
            ProbeAction::Http { path, port, headers } => {
                if !path.starts_with('/') || path.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
                    return wrong("http.path", path, "a path that begins with / and has no blanks");
                }
                let mut request = format!("GET {path} HTTP/1.1\r\n");
                let mut has_host = false;
                for (name, value) in headers {
                    if name.is_empty()
                        || name.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b':')
                        || value.bytes().any(|byte| byte < b' ' && byte != b'\t')
                    {
                        return wrong("http.headers", name, "a header name and a value of one line");
                    }
                    has_host |= name.eq_ignore_ascii_case("host");
                    request.push_str(&format!("{name}: {value}\r\n"));
                }
                if !has_host {
                    request.push_str("Host: localhost\r\n");
                }
                request.push_str("User-Agent: kube-probe/sas\r\nConnection: close\r\n\r\n");
                Ok(Self::Http { port: *port, request })
            }
            ProbeAction::Grpc { .. } => {
                wrong("grpc", "", "the process runtime asks by tcp or http; use one of these")
            }
            ProbeAction::Exec { .. } => {
                wrong("exec", "", "the process runtime asks by tcp or http; use one of these")
            }
            other => wrong("", &format!("{other:?}"), "the process runtime asks by tcp or http"),
        }
    }
}

/// Sleeps of less than a millisecond, which tokio's timer rounds up: a native program is up in half of one.
#[derive(Debug)]
struct FineTimer(AsyncFd<OwnedFd>);

impl FineTimer {
    fn new() -> io::Result<Self> {
        let fd = rustix::time::timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        #[allow(
            deprecated,
            reason = "its successor is an unsafe fn; the descriptor is owned and never replaced"
        )]
        AsyncFd::with_interest(fd, Interest::READABLE).map(Self)
    }

    async fn sleep(&self, time: Duration) -> io::Result<()> {
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(time.subsec_nanos()).max(1),
        };
        rustix::time::timerfd_settime(
            self.0.get_ref(),
            TimerfdTimerFlags::empty(),
            &Itimerspec { it_interval: none, it_value: value },
        )?;
        loop {
            let mut ready = self.0.readable().await?;
            let mut count = [0u8; 8];
            match ready.try_io(|fd| Ok(rustix::io::read(fd.get_ref(), &mut count)?)) {
                Ok(result) => return result.map(drop),
                Err(_would_block) => {}
            }
        }
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_micros(200);
const LONGEST_PAUSE: Duration = Duration::from_millis(20);
/// Below this a start is not waited out: a core that sleeps wakes later than a question costs.
const WORTH_WAITING: Duration = Duration::from_millis(10);

/// How long starts of one artifact took at least, so that the next is not asked before it can answer.
#[derive(Debug)]
pub(crate) struct Quickest(AtomicU64);

impl Default for Quickest {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Quickest {
    pub(crate) fn took(&self, time: Duration) {
        self.0.fetch_min(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX - 1), Ordering::Relaxed);
    }

    /// The wait before the first question: a part of the quickest start, so that a quicker one is still seen as such.
    fn before_first(&self) -> Duration {
        match self.0.load(Ordering::Relaxed) {
            u64::MAX => Duration::ZERO,
            ns => Some(Duration::from_nanos(ns / 4 * 3))
                .filter(|wait| *wait >= WORTH_WAITING)
                .unwrap_or_default(),
        }
    }
}

/// The wait after a question that came to nothing: it adds at most a third to what a program took that is up within
/// milliseconds, and a twelfth to what a slower one took.
fn pause(elapsed: Duration) -> Duration {
    let slow = (elapsed / 12).max(Duration::from_millis(2));
    (elapsed / 3).min(slow).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Asks until the answer is good. Tells `listening` at the first connection. Never returns otherwise: the caller
/// watches the deadline and the exit.
pub(crate) async fn wait(
    at: &Endpoint,
    readiness: &Readiness,
    probe: Option<&Probe>,
    quickest: &Quickest,
    mut listening: impl FnMut(),
) -> io::Result<()> {
    let (period, timeout, wanted, delay) = match probe {
        Some(probe) => (probe.period, probe.timeout, probe.success_threshold.max(1), probe.initial_delay),
        None => (Duration::ZERO, Duration::from_secs(1), 1, Duration::ZERO),
    };
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let fine = FineTimer::new()?;
    let began = Instant::now();
    if period.is_zero() && !quickest.before_first().is_zero() {
        fine.sleep(quickest.before_first()).await?;
    }
    let mut heard = false;
    let mut good = 0u32;
    loop {
        let asked = Instant::now();
        let answer = tokio::time::timeout(
            timeout,
            ask(at, readiness, &mut || {
                if !heard {
                    heard = true;
                    listening();
                }
            }),
        )
        .await;
        if matches!(answer, Ok(Ok(()))) {
            good += 1;
            if good >= wanted {
                quickest.took(began.elapsed());
                return Ok(());
            }
        } else {
            good = 0;
        }
        if period.is_zero() {
            fine.sleep(pause(began.elapsed())).await?;
        } else {
            tokio::time::sleep_until(asked + period).await;
        }
    }
}

async fn ask(at: &Endpoint, readiness: &Readiness, connected: &mut impl FnMut()) -> io::Result<()> {
    match readiness {
        Readiness::Connect(other) => {
            connect(at, *other).await?;
            connected();
            Ok(())
        }
        Readiness::Http { port: other, request } => {
            let mut stream = connect(at, *other).await?;
            connected();
            stream.write_all(request.as_bytes()).await?;
            // `HTTP/1.1 200`
            let mut head = [0u8; 12];
            stream.read_exact(&mut head).await?;
            let status = std::str::from_utf8(&head)
                .ok()
                .filter(|head| head.starts_with("HTTP/1."))
                .and_then(|head| head.get(9..12)?.parse::<u16>().ok());
            match status {
                Some(200..=399) => Ok(()),
                _ => Err(io::Error::other("not ready")),
            }
        }
    }
}

/// Connects to an instance, on another port than its own when one is given.
async fn connect(at: &Endpoint, other: Option<u16>) -> io::Result<TcpStream> {
    let on = |address: &SocketAddr| SocketAddr::from((address.ip(), other.unwrap_or(address.port())));
    let stream = match at {
        Endpoint::Tcp(address) => TcpStream::connect(on(address)).await?,
        Endpoint::Within(address, sockets) => {
            let socket = std::net::TcpStream::from(sockets.tcp_socket(address)?);
            tokio::net::TcpSocket::from_std_stream(socket).connect(on(address)).await?
        }
        other => return Err(io::Error::other(format!("no way to {other}"))),
    };
    if is_itself(&stream) {
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// TCP can connect a port to itself when nobody listens on it and it is picked as the local one.
fn is_itself(stream: &TcpStream) -> bool {
    stream.local_addr().ok() == stream.peer_addr().ok()
}

/// The ports on which a process and its descendants listen, to say what is wrong when they don't on the right one.
pub(crate) fn ports_listened_on(pid: i32) -> Vec<u16> {
    let mut sockets = std::collections::HashSet::new();
    let mut open = vec![pid];
    let mut seen = 0;
    while let Some(pid) = open.pop() {
        seen += 1;
        if seen > 64 {
            break;
        }
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
            if let Ok(target) = std::fs::read_link(entry.path())
                && let Some(inode) =
                    target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'))
            {
                sockets.insert(inode.to_owned());
            }
        }
        open.extend(sas_runtime_os::usage::children(pid));
    }
    let mut ports = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, state (0A: listening) and inode.
            if let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
                && sockets.contains(*inode)
                && let Some(port) =
                    local.rsplit(':').next().and_then(|port| u16::from_str_radix(port, 16).ok())
            {
                ports.push(port);
            }
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_come_close_at_first_and_never_far_apart() {
        let (mut at, mut asked) = (Duration::ZERO, 0);
        while at < Duration::from_secs(1) {
            let next = pause(at);
            assert!(next <= (at / 3).max(SHORTEST_PAUSE) && next <= LONGEST_PAUSE);
            assert!(at < Duration::from_millis(24) || next <= at / 12, "{at:?}");
            at += next;
            asked += 1;
        }
        assert!((50..=100).contains(&asked), "{asked} questions in a second");
    }

    #[test]
    fn a_quicker_start_moves_the_first_question_on() {
        let quickest = Quickest::default();
        assert_eq!(quickest.before_first(), Duration::ZERO, "nothing is known yet");
        quickest.took(Duration::from_millis(40));
        quickest.took(Duration::from_millis(100));
        assert_eq!(quickest.before_first(), Duration::from_millis(30));
        // Found ready with the first question, it may have been ready before.
        quickest.took(Duration::from_millis(30));
        assert_eq!(quickest.before_first(), Duration::from_micros(22_500));
        quickest.took(Duration::from_millis(5));
        assert_eq!(quickest.before_first(), Duration::ZERO, "it is up before a wait would pay");
    }
}
