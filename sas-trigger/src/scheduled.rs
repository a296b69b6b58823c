//! The loop behind cron and timer triggers: never early, nothing lost over restarts, bounded work after long sleeps.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::{AbortHandle, Abortable, Aborted};
use parking_lot::Mutex;
use sas_core::{
    Commit, Error, ErrorKind, Event, Fires, Result, Schedule, Timestamp, TriggerCx, TriggerSource, Version,
    commit_as_owner,
};
use serde::{Deserialize, Serialize};

use crate::{metrics::Metrics, under_way::UnderWay};

/// The longest sleep in one go: after it the wall clock is asked again, in case it jumped.
const NAP: Duration = Duration::from_secs(30);
/// A clock that goes back by more than this was wrong before.
const BACKWARDS: Duration = Duration::from_secs(24 * 3600);
/// How long a fire waits that the sink did not take; it doubles.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// The longest such wait.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The most fires that are made up for.
const CATCH_UP_LIMIT: u32 = 10_000;

/// What happens to fires that could not be made in time: the host was down or busy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Misfire {
    /// They are left out.
    Skip,
    /// One is made for all of them: the last.
    #[default]
    FireOnce,
    /// The last so many are made, oldest first.
    CatchUp(u32),
}

/// What happens when a fire is due while the last one is still being delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overlap {
    /// Both go on.
    #[default]
    Allow,
    /// The new one is left out.
    Forbid,
    /// The new one waits.
    Queue,
    /// The old one is given up.
    Replace,
}

/// How a schedule is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SchedulePolicy {
    /// Fires that are too late.
    pub misfire: Misfire,
    /// From when on a fire is too late.
    pub misfire_after: Duration,
    /// Fires that meet their predecessor.
    pub overlap: Overlap,
    /// Each fire is made up to this much later, by an amount that its name and time decide: spreads many triggers of
    /// the same time.
    pub jitter: Duration,
    /// Deliveries at once, for [`Overlap::Allow`]; at this number the next one waits.
    pub concurrent: usize,
}

impl Default for SchedulePolicy {
    fn default() -> Self {
        Self {
            misfire: Misfire::default(),
            misfire_after: Duration::from_secs(60),
            overlap: Overlap::default(),
            jitter: Duration::ZERO,
            concurrent: 100,
        }
    }
}

/// What every event of a scheduled trigger has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventTemplate {
    /// The attribute `source` of each event.
    pub source: String,
    /// The attribute `type` of each event.
    pub kind: String,
    /// The media type of the data.
    pub content_type: Option<String>,
    /// The data of each event; empty for none.
    pub data: Bytes,
    /// The extension attributes of each event, by name.
    pub extensions: BTreeMap<String, String>,
}

impl EventTemplate {
    /// Events of a type from a source, without data.
    pub fn new(source: impl Into<String>, kind: impl Into<String>) -> Self {
        Self {
            source: source.into(),
            kind: kind.into(),
            content_type: None,
            data: Bytes::new(),
            extensions: BTreeMap::new(),
        }
    }

    /// The event of a fire. Its id is the trigger's name and the time, so that a fire that is made again after a crash
    /// is known for what it is.
    ///
    /// # Errors
    /// `InvalidSpec` when an attribute is not what CloudEvents allows.
    pub fn event(&self, trigger: &str, at: Timestamp) -> Result<Event> {
        let mut event =
            Event::new(fire_id(trigger, at), self.source.as_str(), self.kind.as_str())?.with_time(at);
        if let Some(kind) = &self.content_type {
            event = event.with_data(kind.as_str(), self.data.clone())?;
        } else if !self.data.is_empty() {
            event = event.with_data("text/plain", self.data.clone())?;
        }
        for (name, value) in &self.extensions {
            event = event.with_extension(name.as_str(), value.as_str())?;
        }
        Ok(event)
    }
}

/// The id of a fire: `<trigger>@<nanoseconds since the epoch>`.
pub fn fire_id(trigger: &str, at: Timestamp) -> String {
    format!("{trigger}@{}", at.0)
}

/// A trigger source that fires by a [`Schedule`].
pub struct Scheduled {
    kind: &'static str,
    schedule: Arc<dyn Schedule>,
    policy: SchedulePolicy,
    template: EventTemplate,
    metrics: Metrics,
    /// The last fire that was made.
    last: Mutex<Option<Timestamp>>,
}

impl fmt::Debug for Scheduled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduled")
            .field("kind", &self.kind)
            .field("schedule", &self.schedule)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl Scheduled {
    /// A source that fires by `schedule`; `kind` is what [`TriggerSource::kind`] says.
    pub fn new(
        kind: &'static str,
        schedule: Arc<dyn Schedule>,
        policy: SchedulePolicy,
        template: EventTemplate,
    ) -> Self {
        Self { kind, schedule, policy, template, metrics: Metrics::default(), last: Mutex::default() }
    }

    /// With metrics that go to `recorder`.
    #[must_use]
    pub fn with_recorder(mut self, recorder: &sas_core::Recorder) -> Self {
        self.metrics = Metrics::new(recorder);
        self
    }

    /// When a fire is made: its time, and its share of the jitter.
    fn due(&self, trigger: &str, at: Timestamp) -> Timestamp {
        let most = u64::try_from(self.policy.jitter.as_nanos()).unwrap_or(u64::MAX);
        if most == 0 {
            return at;
        }
        at + Duration::from_nanos(fnv(trigger, at) % most)
    }

    /// The fires after `after` that are to be made now, oldest first, and whether some were left out.
    fn backlog(&self, after: Timestamp, now: Timestamp) -> (Vec<Timestamp>, bool) {
        let on_time_after = (now - self.policy.misfire_after - self.policy.jitter).max(after);
        let first_missed = self.schedule.next_after(after).filter(|first| *first <= on_time_after);
        let mut fires = match first_missed {
            Some(_) => last_fires(&*self.schedule, after, on_time_after, self.policy.misfire.most()),
            None => Vec::new(),
        };
        let left_out = fires.first().copied() != first_missed;
        let mut at = on_time_after;
        while let Some(next) = self.schedule.next_after(at)
            && next <= now
        {
            fires.push(next);
            at = next;
        }
        (fires, left_out)
    }
}

impl Misfire {
    fn most(self) -> u32 {
        match self {
            Self::Skip => 0,
            Self::FireOnce => 1,
            Self::CatchUp(most) => most.min(CATCH_UP_LIMIT),
        }
    }
}

/// The last `most` fires after `after` up to `until`, oldest first. The work is bounded by twice what is found, however
/// long the stretch: it is looked through backwards, in steps that double.
fn last_fires(schedule: &dyn Schedule, after: Timestamp, until: Timestamp, most: u32) -> Vec<Timestamp> {
    if most == 0 {
        return Vec::new();
    }
    let mut reach = Duration::from_secs(60);
    loop {
        let from = (until - reach).max(after);
        let mut fires = std::collections::VecDeque::new();
        let mut found = 0_u64;
        let mut at = from;
        while let Some(next) = schedule.next_after(at)
            && next <= until
        {
            if fires.len() == most as usize {
                fires.pop_front();
            }
            fires.push_back(next);
            found += 1;
            at = next;
        }
        if found >= u64::from(most) || from == after {
            return fires.into();
        }
        reach = reach.saturating_mul(2);
    }
}

fn fnv(trigger: &str, at: Timestamp) -> u64 {
    // FNV-1a: the same on every host and in every version.
    trigger.bytes().chain(at.0.to_le_bytes()).fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

/// What outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memory {
    /// The schedule that it is about: another one starts anew.
    schedule: String,
    /// Every fire up to here is settled.
    after: Timestamp,
    /// Fires after that which are settled too.
    done: BTreeSet<Timestamp>,
}

/// A fire, and how its delivery ended.
type Delivered = (Timestamp, std::result::Result<Offered, Aborted>);

/// How offering a fire to the sink went.
enum Offered {
    /// Delivered, stored, or not wanted.
    Taken,
    Refused(Error),
    /// The sink gives no more room: the platform shuts down.
    Closed(Error),
}

/// One run of the loop.
struct Run<'a> {
    source: &'a Scheduled,
    cx: &'a TriggerCx,
    key: String,
    version: Option<Version>,
    memory: Memory,
    /// The fire that was looked at last.
    seen: Timestamp,
    /// Fires that are to be made, by the time that they are due.
    pending: BTreeSet<(Timestamp, Timestamp)>,
    under_way: UnderWay<Delivered>,
    running: BTreeMap<Timestamp, AbortHandle>,
    /// Fires in a row that the sink did not take.
    refused: u32,
}

#[async_trait]
impl TriggerSource for Scheduled {
    fn kind(&self) -> &'static str {
        self.kind
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        let mut run = Run::load(self, &cx).await?;
        run.drive(false).await.map(drop)
    }

    fn sleeps(&self) -> bool {
        true
    }

    async fn wake(&self, cx: &TriggerCx) -> Result<Option<Timestamp>> {
        let mut run = Run::load(self, cx).await?;
        run.drive(true).await
    }

    fn fires(&self, now: Timestamp) -> Fires {
        Fires::new(*self.last.lock(), self.schedule.next_after(now))
    }
}

impl<'a> Run<'a> {
    async fn load(source: &'a Scheduled, cx: &'a TriggerCx) -> Result<Self> {
        let key = format!("trigger/{}/fires", cx.name);
        let stored = cx.store.get(&key).await?;
        let version = stored.as_ref().map(|entry| entry.version);
        let mut memory: Memory = match stored {
            Some(entry) => serde_json::from_slice(&entry.value).map_err(|error| {
                let message = format!(
                    "{key} is not the memory of a schedule: {error}; delete the trigger and declare it again"
                );
                Error::new(ErrorKind::InvalidSpec, "run", message)
            })?,
            None => Memory::default(),
        };
        let schedule = format!("{:?}", source.schedule);
        let anew = version.is_none() || memory.schedule != schedule;
        if anew {
            memory = Memory { schedule, after: cx.clock.now(), done: BTreeSet::new() };
        }
        let seen = memory.after;
        let mut run = Self {
            source,
            cx,
            key,
            version,
            memory,
            seen,
            pending: BTreeSet::new(),
            under_way: UnderWay::new(),
            running: BTreeMap::new(),
            refused: 0,
        };
        if anew {
            // From now on nothing is lost, also if the host goes down before the first fire.
            run.save().await?;
        }
        Ok(run)
    }

    async fn save(&mut self) -> Result<()> {
        let value = serde_json::to_vec(&self.memory).map_err(|error| {
            Error::new(ErrorKind::Unexpected, "run", format!("{} can't be written: {error}", self.key))
        })?;
        let commit = Commit::new().guard(&self.key, self.version).put(&self.key, value);
        let namespace = self.cx.name.split_once('/').map_or(&*self.cx.name, |(namespace, _)| namespace);
        let put = commit_as_owner(&*self.cx.store, self.cx.hosts.as_ref(), namespace, commit);
        self.version = Some(self.under_way.meanwhile(put).await?);
        Ok(())
    }

    /// Before fires are begun, as one of several hosts: a write that is refused once another host acts for the trigger, or has
    /// written since. What is begun and not settled when this host goes comes again, with the next.
    async fn claim(&mut self) -> Result<()> {
        match self.cx.hosts {
            Some(_) => self.save().await,
            None => Ok(()),
        }
    }

    /// Makes fires, until the shutdown or, with `idle`, until nothing is left to be done now: then, when something is.
    async fn drive(&mut self, idle: bool) -> Result<Option<Timestamp>> {
        loop {
            self.look();
            self.start_due().await?;
            if idle && self.running.is_empty() && self.refused == 0 && !self.has_due() {
                return Ok(self.next());
            }
            let nap = self.nap();
            tokio::select! {
                biased;
                () = self.cx.shutdown.cancelled() => return self.finish().await.map(|()| None),
                Some((at, result)) = self.under_way.next() => self.settled(at, result).await?,
                () = tokio::time::sleep(nap) => {}
            }
        }
    }

    /// Takes in the fires that have come since the last look.
    fn look(&mut self) {
        let now = self.cx.clock.now();
        if self.seen.since(now) > BACKWARDS {
            // A small step back repeats nothing. After a large one the old times meant nothing.
            tracing::warn!(trigger = %self.cx.name, "the clock went back; the schedule goes on from now");
            self.seen = now;
            self.memory.after = now;
            self.memory.done.clear();
        }
        if now <= self.seen || !self.has_room() {
            return;
        }
        let (fires, left_out) = self.source.backlog(self.seen, now);
        if left_out {
            self.source.metrics.missed();
            tracing::warn!(trigger = %self.cx.name, "fires came too late and were left out");
        }
        for at in fires {
            if !self.memory.done.contains(&at) {
                self.pending.insert((self.source.due(&self.cx.name, at), at));
            }
        }
        self.seen = now;
    }

    /// Whether more fires can be taken in: what waits is bounded by what one look gives.
    fn has_room(&self) -> bool {
        self.pending.len() < 2 * CATCH_UP_LIMIT as usize
    }

    async fn start_due(&mut self) -> Result<()> {
        let now = self.cx.clock.now();
        let mut claimed = false;
        while let Some(&(due, at)) = self.pending.first() {
            if due > now {
                return Ok(());
            }
            let overlaps = !self.running.is_empty();
            match self.source.policy.overlap {
                Overlap::Allow if self.running.len() >= self.source.policy.concurrent.max(1) => {
                    return Ok(());
                }
                Overlap::Queue if overlaps => return Ok(()),
                Overlap::Forbid if overlaps => {
                    self.pending.pop_first();
                    self.source.metrics.overlapped();
                    tracing::warn!(trigger = %self.cx.name, at = at.0, "left out: the last fire is still being delivered");
                    self.memory.done.insert(at);
                    self.advance().await?;
                    continue;
                }
                Overlap::Replace if overlaps => {
                    self.source.metrics.overlapped();
                    for handle in self.running.values() {
                        handle.abort();
                    }
                    // What was given up counts as settled: its successor stands for it.
                    while let Some((at, result)) = self.under_way.next().await {
                        self.settled(at, result).await?;
                    }
                }
                _ => {}
            }
            if !claimed {
                self.claim().await?;
                claimed = true;
            }
            self.pending.pop_first();
            self.source.metrics.fired(now.since(at));
            *self.source.last.lock() = Some(at);
            let event = self.source.template.event(&self.cx.name, at)?;
            let sink = Arc::clone(&self.cx.sink);
            let (handle, registration) = AbortHandle::new_pair();
            let delivery = Abortable::new(
                async move {
                    let slot = match sink.ready().await {
                        Ok(slot) => slot,
                        Err(error) => return Offered::Closed(error),
                    };
                    match sink.deliver(slot, event).await {
                        Ok(_) => Offered::Taken,
                        Err(error) => Offered::Refused(error),
                    }
                },
                registration,
            );
            self.running.insert(at, handle);
            self.under_way.push(async move { (at, delivery.await) });
        }
        Ok(())
    }

    fn has_due(&self) -> bool {
        self.pending.first().is_some_and(|(due, _)| *due <= self.cx.clock.now())
    }

    /// When something is to be done next.
    fn next(&self) -> Option<Timestamp> {
        let now = self.cx.clock.now();
        let waiting = self.pending.first().map(|(due, _)| *due).filter(|due| *due > now);
        let coming = self.source.schedule.next_after(self.seen.max(now)).filter(|_| self.has_room());
        match (waiting, coming) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Until the next fire is due, or until the clock should be asked again.
    fn nap(&self) -> Duration {
        let now = self.cx.clock.now();
        let next = self.next();
        // A millisecond more than nothing: tokio's timers have that resolution, and an early wake-up would spin.
        next.map_or(NAP, |next| next.since(now).max(Duration::from_micros(100)).min(NAP))
    }

    async fn settled(&mut self, at: Timestamp, result: std::result::Result<Offered, Aborted>) -> Result<()> {
        self.running.remove(&at);
        match result {
            Ok(Offered::Taken) => self.refused = 0,
            Err(Aborted) => {
                tracing::warn!(trigger = %self.cx.name, at = at.0, "given up for its successor");
            }
            Ok(Offered::Refused(error)) => {
                let wait = FIRST_WAIT.saturating_mul(1 << self.refused.min(9)).min(LONGEST_WAIT);
                self.refused = self.refused.saturating_add(1);
                self.source.metrics.failed();
                tracing::warn!(trigger = %self.cx.name, at = at.0, error = %error.chain(), ?wait, "offered again later");
                self.pending.insert((self.cx.clock.now() + wait, at));
                return Ok(());
            }
            Ok(Offered::Closed(error)) => return Err(error),
        }
        self.memory.done.insert(at);
        self.advance().await
    }

    /// Moves the mark up to which everything is settled, and stores it.
    async fn advance(&mut self) -> Result<()> {
        let open = self.running.keys().next().copied();
        let waiting = self.pending.iter().map(|(_, at)| *at).min();
        let first_open = match (open, waiting) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
        let settled = match first_open {
            Some(first) => self.memory.done.range(..first).next_back().copied(),
            None => self.memory.done.last().copied(),
        };
        if let Some(settled) = settled {
            self.memory.after = self.memory.after.max(settled);
            self.memory.done = self.memory.done.split_off(&settled);
            self.memory.done.remove(&settled);
        }
        self.save().await
    }

    /// After the shutdown: what is under way is given a moment; what is not settled then comes again with the next run.
    async fn finish(&mut self) -> Result<()> {
        let moment = tokio::time::Instant::now() + Duration::from_millis(500);
        while !self.running.is_empty() {
            match tokio::time::timeout_at(moment, self.under_way.next()).await {
                Ok(Some((at, result))) => self.settled(at, result).await?,
                _ => break,
            }
        }
        Ok(())
    }
}
