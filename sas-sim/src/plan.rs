//! What will be done to a platform: all of it follows from the seed, and any part of it can be left out.

use std::{fmt, time::Duration};

use crate::{draw::Draw, store::Applied};

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the runner has to take every kind")]
pub enum Action {
    /// Deploys a service, or a new revision of it.
    Deploy {
        /// The service, by its number.
        service: u32,
        /// Requests at once per instance; 0: unlimited.
        concurrency: u32,
        /// Most instances; 0: unlimited.
        max: u32,
    },
    /// Sends this much of the traffic to the revision before the latest.
    Split {
        /// Of which service.
        service: u32,
        /// In percent.
        percent: u32,
    },
    /// Deletes a service.
    Delete {
        /// The service, by its number.
        service: u32,
    },
    /// Requests that arrive at random times.
    Traffic {
        /// To which service.
        service: u32,
        /// How many.
        requests: u32,
        /// Over how long.
        over: Duration,
        /// Draws arrivals, patience and the rest.
        seed: u64,
    },
    /// Kills an instance, as SIGKILL does.
    Kill {
        /// Which of those that run, counted around.
        index: u64,
    },
    /// The next starts fail.
    FailStarts {
        /// How many.
        count: u32,
    },
    /// The next start never ends.
    HangStart,
    /// The next instance dies this soon after its start.
    DieAfter(Duration),
    /// Calls take this long from now on.
    Slow(Duration),
    /// The wall clock jumps by milliseconds.
    ClockJump(i64),
    /// The store fails after so many more writes.
    StoreBreaks {
        /// Writes that still work.
        after: u64,
        /// Whether the failing write is applied all the same.
        applied: bool,
    },
    /// The host is killed and starts again on what the store holds.
    HostCrash,
    /// The host is killed at a write to the store, and starts again on what the store holds.
    CrashAtWrite {
        /// Writes before it, counted from the first of all.
        write: u64,
        /// Whether that write is applied all the same.
        applied: bool,
    },
    /// The same, and the first part of that write is what the store holds afterwards.
    TornWrite {
        /// Writes before it, counted from the first of all.
        write: u64,
        /// How much of the value is kept, in percent.
        percent: u32,
    },
    /// Each operation of the store takes this much longer from now on.
    SlowStore(Duration),
    /// Each exit is told twice from now on.
    ExitsTwice,
    /// An operator recycles an instance.
    Recycle {
        /// Which of those of the service, counted around.
        service: u32,
    },
    /// Deploys a revision that scales or comes in otherwise than by its traffic at once.
    DeployAs {
        /// Of which service.
        service: u32,
        /// What is special about the revision.
        special: Special,
    },
    /// The tenant may use no more than this from now on; 0 limits nothing.
    Quota {
        /// Requests at once.
        concurrency: u32,
        /// Requests a second.
        rate: u32,
        /// Requests that may come at once after a quiet time, at least 1.
        burst: u32,
    },
    /// An instance fails its liveness probe from now on.
    FallIll {
        /// Which of those that run, counted around.
        index: u64,
        /// Whether it does not answer at all, instead of with an error.
        hangs: bool,
    },
    /// Messages come to the queue that a trigger of the first service reads.
    Enqueue {
        /// How many.
        messages: u32,
    },
}

/// What is special about a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_enums, reason = "the runner has to take every kind")]
pub enum Special {
    /// It is scaled by what waits in the queue.
    Backlog,
    /// It has instances by the clock: two, for five of every twenty seconds.
    Scheduled,
    /// Its share of the traffic grows in steps, as long as its answers are good.
    Rollout {
        /// Whether they are not.
        bad: bool,
    },
}

impl Action {
    /// Whether it breaks something.
    pub const fn fault(&self) -> Option<&'static str> {
        Some(match self {
            Self::Kill { .. } => "instance killed",
            Self::FailStarts { .. } => "start failed",
            Self::HangStart => "start hung",
            Self::DieAfter(_) => "instance died young",
            Self::Slow(_) => "slow instances",
            Self::ClockJump(_) => "clock jumped",
            Self::StoreBreaks { .. } => "store broke",
            Self::HostCrash => "host crashed",
            Self::CrashAtWrite { .. } => "host crashed at a write",
            Self::TornWrite { .. } => "write torn by a crash",
            Self::SlowStore(_) => "store slow",
            Self::ExitsTwice => "exits told twice",
            Self::Recycle { .. } => "instance recycled",
            Self::FallIll { .. } => "instance fell ill",
            Self::DeployAs { special: Special::Rollout { bad: true }, .. } => "bad revision rolled out",
            _ => return None,
        })
    }

    /// Whether it strikes at a write that is counted from the first of all.
    pub(crate) const fn is_at_a_write(&self) -> bool {
        matches!(self, Self::CrashAtWrite { .. } | Self::TornWrite { .. })
    }
}

/// A step and its time.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "written down by regression tests")]
pub struct Step {
    /// When, from the beginning.
    pub at: Duration,
    /// What happens in this step.
    pub action: Action,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>9.3} s  {:?}", self.at.as_secs_f64(), self.action)
    }
}

/// How long the safety phase is: faults come in it, and none later.
pub const SAFETY: Duration = Duration::from_secs(40);

/// The plan of a seed, in order of time.
pub fn plan(seed: u64) -> Vec<Step> {
    let mut steps = base(seed);
    let mut draw = Draw::new(seed).fork(3);
    for _ in 0..draw.below(3) {
        let at = Duration::from_secs(1) + draw.between(Duration::ZERO, SAFETY - Duration::from_secs(2));
        let step = match draw.below(3) {
            // Counted from the first write, so it is said before that.
            0 => Step {
                at: Duration::ZERO,
                action: Action::CrashAtWrite { write: draw.below(24), applied: draw.chance(0.5) },
            },
            1 => Step {
                at,
                action: Action::SlowStore(draw.between(Duration::from_millis(1), Duration::from_secs(2))),
            },
            _ => Step { at, action: Action::ExitsTwice },
        };
        steps.push(step);
    }
    // A store has one such moment; that of a crash stays where there is one.
    let mut draw = Draw::new(seed).fork(4);
    let dies = steps.iter().any(|step| matches!(step.action, Action::CrashAtWrite { .. }));
    if draw.chance(0.25) && !dies {
        let action = Action::TornWrite { write: draw.below(24), percent: draw.below(100) as u32 };
        steps.push(Step { at: Duration::ZERO, action });
    }
    // What more than traffic decides about instances: quotas, probes, queues, schedules, answers.
    let mut draw = Draw::new(seed).fork(5);
    let deployed = steps.iter().filter_map(|step| match step.action {
        Action::Deploy { service, .. } => Some(service + 1),
        _ => None,
    });
    let services = u64::from(deployed.max().unwrap_or(1));
    for _ in 0..draw.below(5) {
        let at = Duration::from_secs(1) + draw.between(Duration::ZERO, SAFETY - Duration::from_secs(4));
        let service = draw.below(services) as u32;
        let action = match draw.below(8) {
            0 | 1 => Action::Quota {
                concurrency: *draw.pick(&[0, 1, 3, 8]).unwrap_or(&0),
                rate: *draw.pick(&[0, 1, 5]).unwrap_or(&0),
                burst: 1 + draw.below(5) as u32,
            },
            2..5 => Action::FallIll { index: draw.below(64), hangs: draw.chance(0.5) },
            5 => Action::Enqueue { messages: 1 + draw.below(40) as u32 },
            6 => Action::DeployAs { service, special: Special::Rollout { bad: draw.chance(0.5) } },
            _ if draw.chance(0.5) => Action::DeployAs { service, special: Special::Scheduled },
            _ => Action::DeployAs { service: 0, special: Special::Backlog },
        };
        steps.push(Step { at, action });
    }
    steps.sort_by_key(|step| step.at);
    steps
}

/// The plan of a seed with the kinds of faults that there were at first. Seeds that found something are kept as
/// regression tests by it, so it never changes.
pub fn base(seed: u64) -> Vec<Step> {
    let root = Draw::new(seed);
    let mut draw = root.fork(1);
    let services = 1 + draw.below(3) as u32;
    let mut steps = Vec::new();
    for service in 0..services {
        let concurrency = *draw.pick(&[1, 1, 2, 5, 10, 0]).unwrap_or(&1);
        let max = *draw.pick(&[0, 1, 3, 20]).unwrap_or(&0);
        let at = Duration::from_millis(draw.below(500));
        steps.push(Step { at, action: Action::Deploy { service, concurrency, max } });
    }
    let within = |draw: &mut Draw| {
        Duration::from_secs(1) + draw.between(Duration::ZERO, SAFETY - Duration::from_secs(2))
    };
    for _ in 0..3 + draw.below(5) {
        let at = within(&mut draw);
        let action = Action::Traffic {
            service: draw.below(u64::from(services)) as u32,
            requests: 1 + draw.below(60) as u32,
            over: draw.between(Duration::ZERO, Duration::from_secs(5)),
            seed: draw.next(),
        };
        steps.push(Step { at, action });
    }
    for _ in 0..draw.below(12) {
        let at = within(&mut draw);
        let service = draw.below(u64::from(services)) as u32;
        let action = match draw.below(16) {
            0..4 => Action::Kill { index: draw.below(64) },
            4 => Action::FailStarts { count: 1 + draw.below(6) as u32 },
            5 => Action::HangStart,
            6 => Action::DieAfter(draw.between(Duration::ZERO, Duration::from_secs(3))),
            7 => Action::Slow(draw.between(Duration::from_millis(100), Duration::from_secs(3))),
            8 => Action::ClockJump(draw.below(240_000) as i64 - 120_000),
            9 => Action::StoreBreaks { after: draw.below(6), applied: draw.chance(0.5) },
            10 => Action::HostCrash,
            11 => Action::Recycle { service },
            12 | 13 => Action::Deploy {
                service,
                concurrency: *draw.pick(&[1, 2, 10]).unwrap_or(&1),
                max: *draw.pick(&[0, 2]).unwrap_or(&0),
            },
            14 => Action::Split { service, percent: draw.below(101) as u32 },
            _ => Action::Delete { service },
        };
        steps.push(Step { at, action });
    }
    steps.sort_by_key(|step| step.at);
    steps
}

/// The plan of a seed without the steps that break the store: what it writes can be counted.
pub fn sound_store(seed: u64) -> Vec<Step> {
    let mut steps = plan(seed);
    steps.retain(|step| {
        let breaks = matches!(step.action, Action::StoreBreaks { .. });
        !breaks && !step.action.is_at_a_write()
    });
    steps
}

/// The same, with the host killed at one write, of which the store keeps what `applied` says.
pub fn with_crash(seed: u64, write: u64, applied: Applied) -> Vec<Step> {
    let mut steps = sound_store(seed);
    let action = match applied {
        Applied::Not => Action::CrashAtWrite { write, applied: false },
        Applied::Whole => Action::CrashAtWrite { write, applied: true },
        Applied::Part(percent) => Action::TornWrite { write, percent },
    };
    steps.insert(0, Step { at: Duration::ZERO, action });
    steps
}

/// Only these steps of a plan, counted from 0.
pub fn only(steps: Vec<Step>, kept: &[usize]) -> Vec<Step> {
    steps.into_iter().enumerate().filter(|(at, _)| kept.contains(at)).map(|(_, step)| step).collect()
}
