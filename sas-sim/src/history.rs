//! What happened, in order, and its hash.

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Something that happened. Requests and instances go by the numbers that the simulator gave them.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::exhaustive_enums, reason = "invariants have to look at every kind")]
pub enum Fact {
    /// A step of the plan was taken.
    Step(String),
    /// A client sent a request.
    Sent {
        /// The request, by the number that the simulator gave it.
        request: u64,
        /// To which service.
        service: u32,
        /// Whether it may be executed twice.
        idempotent: bool,
    },
    /// A client got its answer, or gave up.
    Answered {
        /// Which request.
        request: u64,
        /// What it got.
        answer: Answered,
    },
    /// An instance began to work on a request.
    Executed {
        /// The request, by the number that the simulator gave it.
        request: u64,
        /// The instance, by the number that the simulator gave it.
        instance: u64,
        /// How many run there now, this one included.
        at_once: u32,
        /// How many may, by the spec of its revision; 0: any number.
        limit: u32,
    },
    /// The pool asked the runtime for an instance.
    Starting {
        /// The instance, by the number that the simulator gave it.
        instance: u64,
        /// Slot and generation of its revision's key.
        revision: u64,
    },
    /// An instance can serve.
    Ready {
        /// The instance, by the number that the simulator gave it.
        instance: u64,
    },
    /// An instance is gone, or its start was given up.
    Gone {
        /// The instance, by the number that the simulator gave it.
        instance: u64,
        /// Whether it was killed by a fault.
        killed: bool,
    },
    /// The scaler's number for a revision.
    Decided {
        /// Slot and generation of its key.
        revision: u64,
        /// Counts its decisions.
        sequence: u64,
        /// The number; `None`: it stays.
        desired: Option<u32>,
        /// The reason that the decision gives, by its name.
        reason: String,
        /// Whether it says from what.
        grounds: bool,
    },
    /// The pool was told a number.
    Wished {
        /// Slot and generation of the revision's key.
        revision: u64,
        /// The number.
        desired: u32,
    },
    /// What holds for the size of a revision beside its spec; `None`: nothing any more.
    Bounded {
        /// Slot and generation of the revision's key.
        revision: u64,
        /// Least instances, most that a decision makes, and most.
        bounds: Option<(u32, u32, u32)>,
    },
    /// The pool told a size that it decided by itself.
    OwnSize {
        /// Slot and generation of the revision's key.
        revision: u64,
        /// The size.
        desired: u32,
        /// Whether it is a start ahead of a call that is expected.
        ahead: bool,
    },
    /// The host was killed.
    HostDied,
    /// A change of the control plane was acknowledged or refused.
    Control {
        /// What was asked for.
        what: String,
        /// Whether it was acknowledged.
        done: bool,
    },
    /// A trigger's event was executed.
    Fired {
        /// The event's id.
        event: String,
        /// The instance, by the number that the simulator gave it.
        instance: u64,
    },
    /// An instance that stops gave a request back unused.
    GivenBack {
        /// Which instance.
        instance: u64,
    },
    /// A call that an instance worked on failed, or was dropped before its end.
    CutShort {
        /// Which instance.
        instance: u64,
    },
    /// An instance fails its liveness probe from now on.
    Ill {
        /// The instance, by the number that the simulator gave it.
        instance: u64,
    },
    /// The pool was told to replace an instance.
    Recycled {
        /// The instance, by the number that the simulator gave it.
        instance: u64,
    },
    /// What the tenant may use is being changed, or whether it was is not known: nothing certain holds.
    QuotaUnsure,
    /// What the tenant may use from now on; `None`: anything.
    Quota(Option<QuotaSet>),
    /// A message came to the queue.
    Queued {
        /// The message, by its place among all that ever came.
        message: u64,
    },
    /// A message was taken off the queue: its delivery was acknowledged.
    Acknowledged {
        /// The message, by its place among all that ever came.
        message: u64,
        /// Whether its target is said to have answered; else it went to the dead letters, or came twice.
        executed: bool,
    },
    /// From here on nobody sends anything but triggers.
    Quiet {
        /// Whether a timer has a service to call.
        timer: bool,
    },
    /// The timers are taken away.
    QuietEnds,
    /// Nanoseconds that were metered to an instance.
    Metered {
        /// The instance, by the number that the simulator gave it.
        instance: u64,
        /// How many.
        ns: u64,
    },
    /// Requests that were metered.
    MeteredRequests {
        /// In which life of the host.
        epoch: u64,
        /// How many.
        count: u64,
    },
}

/// A quota that was acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a plain record")]
pub struct QuotaSet {
    /// Requests at once; 0: no limit.
    pub concurrency: u32,
    /// Requests a second; 0: no limit.
    pub rate: u32,
    /// Requests that may come at once after a quiet time.
    pub burst: u32,
}

/// How a request ended for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "invariants have to look at every kind")]
pub enum Answered {
    /// An HTTP answer of this status.
    Status(u16),
    /// The platform's error, by its kind.
    Error(&'static str),
    /// The client went away.
    Left,
}

/// All facts with their virtual time, and a hash that is the same for the same history.
pub struct History {
    began: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    facts: Vec<(Duration, Fact)>,
    seen: u64,
    hash: u64,
    keep: bool,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("facts", &self.len()).finish_non_exhaustive()
    }
}

impl History {
    /// An empty history that begins now.
    pub fn new() -> Self {
        let inner = Inner { facts: Vec::new(), seen: 0, hash: 0xCBF2_9CE4_8422_2325, keep: true };
        Self { began: Instant::now(), inner: Mutex::new(inner) }
    }

    /// Records that something happened at this moment.
    pub fn tell(&self, fact: Fact) {
        use fmt::Write as _;
        struct Fnv(u64);
        impl fmt::Write for Fnv {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                for byte in text.bytes() {
                    self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
                }
                Ok(())
            }
        }
        let at = self.began.elapsed();
        let mut inner = self.inner.lock();
        let mut hash = Fnv(inner.hash);
        let _ = write!(hash, "{}{fact:?}", at.as_nanos());
        inner.hash = hash.0;
        inner.seen += 1;
        if inner.keep {
            inner.facts.push((at, fact));
        }
    }

    /// FNV-1a over everything that happened.
    pub fn hash(&self) -> u64 {
        self.inner.lock().hash
    }

    /// How many facts were recorded in all.
    pub fn len(&self) -> u64 {
        self.inner.lock().seen
    }

    /// Whether no fact was recorded at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Hands out what was told since the last call.
    pub fn drain(&self) -> Vec<(Duration, Fact)> {
        std::mem::take(&mut self.inner.lock().facts)
    }
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}
