//! When an instance can serve.

use std::{
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use sas_core::{Endpoint, Probe, ProbeAction, RevisionSpec};
use sas_probe::ProbeFailure;
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::Instant,
};

use crate::beside::Beside;

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

/// Where a program that was told to listen at a port may do so: `localhost` means either.
pub(crate) fn candidates(at: &Endpoint) -> [Endpoint; 2] {
    let other = match at {
        Endpoint::Tcp(address) => Endpoint::Tcp((Ipv6Addr::LOCALHOST, address.port()).into()),
        Endpoint::Within(address, sockets) => {
            Endpoint::Within((Ipv6Addr::LOCALHOST, address.port()).into(), Arc::clone(sockets))
        }
        other => other.clone(),
    };
    [at.clone(), other]
}

/// Below this only the first candidate is asked: most programs that are up so soon listen there.
const SECOND_AFTER: Duration = Duration::from_millis(5);

/// Why asking came to an end.
#[derive(Debug)]
pub(crate) enum NotReady {
    /// The start-up probe failed as often as it may.
    Startup(ProbeFailure),
    /// The host could not ask.
    Host(io::Error),
}

impl fmt::Display for NotReady {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Startup(probe) => probe.fmt(f),
            Self::Host(error) => error.fmt(f),
        }
    }
}

impl From<io::Error> for NotReady {
    fn from(error: io::Error) -> Self {
        Self::Host(error)
    }
}

/// Asks the start-up probe until it is good, then the readiness probe; where the spec has neither, a connection is
/// enough. Gives the candidate that answered. Tells `listening` at the first connection, and keeps the last failure in
/// `last`. Otherwise it never returns: the caller watches the deadline and the exit.
pub(crate) async fn wait(
    candidates: &[Endpoint; 2],
    spec: &RevisionSpec,
    beside: &Beside,
    quickest: &Quickest,
    mut listening: impl FnMut(),
    last: &Mutex<Option<ProbeFailure>>,
) -> Result<Endpoint, NotReady> {
    let connects = Probe::new(ProbeAction::Tcp { port: None });
    let stages: &[(&Probe, bool)] = match (&spec.startup, &spec.readiness) {
        (None, None) => &[(&connects, false)],
        (Some(startup), None) => &[(startup, true)],
        (None, Some(readiness)) => &[(readiness, false)],
        (Some(startup), Some(readiness)) => &[(startup, true), (readiness, false)],
    };
    let fine = FineTimer::new()?;
    let mut found = Found { candidates, at: None, told: false };
    let mut began = Instant::now();
    for (stage, (probe, startup)) in stages.iter().enumerate() {
        if !probe.initial_delay.is_zero() {
            tokio::time::sleep(probe.initial_delay).await;
            began = Instant::now();
        }
        if stage == 0 && probe.period.is_zero() && !quickest.before_first().is_zero() {
            fine.sleep(quickest.before_first()).await?;
        }
        let (mut good, mut bad) = (0, 0);
        loop {
            let asked = Instant::now();
            match found.ask(probe, beside, began.elapsed(), &mut listening).await {
                Ok(()) => {
                    good += 1;
                    bad = 0;
                    if good >= probe.success_threshold.max(1) {
                        break;
                    }
                }
                Err(failure) => {
                    (good, bad) = (0, bad + 1);
                    // Asked as often as makes sense, a count of failures says nothing; the deadline ends it.
                    if *startup && !probe.period.is_zero() && bad >= probe.failure_threshold.max(1) {
                        return Err(NotReady::Startup(failure));
                    }
                    *last.lock() = Some(failure);
                }
            }
            if probe.period.is_zero() {
                fine.sleep(pause(began.elapsed())).await?;
            } else {
                tokio::time::sleep_until(asked + probe.period).await;
            }
        }
    }
    quickest.took(began.elapsed());
    Ok(found.endpoint().await)
}

/// At which candidate it listens, as far as that is known.
struct Found<'a> {
    candidates: &'a [Endpoint; 2],
    at: Option<&'a Endpoint>,
    told: bool,
}

impl Found<'_> {
    async fn ask(
        &mut self,
        probe: &Probe,
        beside: &Beside,
        elapsed: Duration,
        listening: &mut impl FnMut(),
    ) -> Result<(), ProbeFailure> {
        if let ProbeAction::Exec { command } = &probe.action {
            return sas_probe::command(probe, beside.run(command)).await;
        }
        let mut first = None;
        for candidate in self.at.map_or(&self.candidates[..], std::slice::from_ref) {
            let failure = match sas_probe::endpoint(probe, candidate).await {
                Ok(()) => {
                    self.tell(listening);
                    self.at = self.candidates.iter().find(|known| *known == candidate);
                    return Ok(());
                }
                Err(failure) => failure,
            };
            if failure.connected {
                self.tell(listening);
                return Err(failure);
            }
            first.get_or_insert(failure);
            if elapsed < SECOND_AFTER {
                break;
            }
        }
        Err(first.expect("there is always a candidate"))
    }

    fn tell(&mut self, listening: &mut impl FnMut()) {
        if !std::mem::replace(&mut self.told, true) {
            listening();
        }
    }

    /// Where it listens. A command can't tell, so that it is tried now.
    async fn endpoint(&self) -> Endpoint {
        let connects = Probe::new(ProbeAction::Tcp { port: None });
        for candidate in self.at.map_or(&self.candidates[..], std::slice::from_ref) {
            if self.at.is_some() || sas_probe::endpoint(&connects, candidate).await.is_ok() {
                return candidate.clone();
            }
        }
        self.candidates[0].clone()
    }
}

/// Where a process and its descendants listen, to say what is wrong when that is not where they should.
pub(crate) fn listening_sockets(pid: i32) -> Vec<SocketAddr> {
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
    let mut found = Vec::new();
    for table in ["tcp", "tcp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // Local address, state (0A: listening) and inode.
            if let (Some(local), Some(&"0A"), Some(inode)) = (fields.get(1), fields.get(3), fields.get(9))
                && sockets.contains(*inode)
                && let Some(address) = socket_address(local)
            {
                found.push(address);
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// `0100007F:1F90`: words of four bytes in the host's order, and a port.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::with_capacity(16);
    for at in (0..address.len()).step_by(8) {
        bytes.extend_from_slice(&u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    }
    let ip = match <[u8; 4]>::try_from(bytes.as_slice()) {
        Ok(four) => IpAddr::from(four),
        Err(_) => IpAddr::from(<[u8; 16]>::try_from(bytes.as_slice()).ok()?),
    };
    Some((ip, port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_addresses_are_read() {
        for (text, expected) in [
            ("0100007F:1F90", Some("127.0.0.1:8080")),
            ("00000000:0050", Some("0.0.0.0:80")),
            ("00000000000000000000000001000000:1F90", Some("[::1]:8080")),
            ("0100007F", None),
            ("0100:1F90", None),
        ] {
            assert_eq!(
                socket_address(text).map(|address| address.to_string()).as_deref(),
                expected,
                "{text}"
            );
        }
    }

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
