use std::{collections::HashMap, sync::Arc, time::Duration};

use sas_core::{KeepAlive, KeepAlivePolicy, RevisionKey, SpecErrors, Timestamp};
use serde::{Deserialize, Serialize};

mod fit;
mod memory;
mod shipped;
mod signals;
mod table;
mod weights;

pub use fit::Fit;
pub use table::{HazardTable, Tree};

use super::minute;
use memory::Memory;
use signals::Situation;

/// No plan looks further at once; it goes on with a new one when it ends.
const LOOK: usize = 8;
/// Calls are told apart by the minute; a plan looks at hundreds of them, so it is made for what rests only.
const RESOLUTION: Duration = Duration::from_secs(2);
/// How late the end of a plan may be noticed.
const LATE: Duration = Duration::from_secs(5);

/// What a [`Hazard`] policy may be told. The defaults are the ones that the figures in `docs/policies.md` are for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[non_exhaustive]
pub struct HazardConfig {
    /// A minute is worth being warm when a call in it is at least as likely as this, 0.0001 to 0.9: the one knob
    /// between cold starts and idle memory. 0.015 says that a cold start is as bad as 66 idle minutes.
    pub threshold: f64,
    /// How far ahead a wake is planned, in minutes, 1 to 1,440.
    pub horizon_minutes: u32,
    /// A wake begins so many seconds before its minute, 0 to 59: the time that a start takes.
    pub lead_seconds: u32,
    /// What sleeps at once still lives so many seconds, 0 to 59: calls come in clusters.
    pub linger_seconds: u32,
}

impl Default for HazardConfig {
    fn default() -> Self {
        Self { threshold: 0.015, horizon_minutes: 300, lead_seconds: 10, linger_seconds: 30 }
    }
}

impl HazardConfig {
    /// The defaults with another threshold.
    pub fn with_threshold(threshold: f64) -> Self {
        Self { threshold, ..Self::default() }
    }

    /// Whether every value is in its range.
    ///
    /// # Errors
    /// All the values that are not, by field.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if !(0.000_1..=0.9).contains(&self.threshold) {
            errors.push("threshold", self.threshold, "a number from 0.0001 to 0.9");
        }
        if !(1..=1_440).contains(&self.horizon_minutes) {
            errors.push("horizonMinutes", self.horizon_minutes, "1 to 1440");
        }
        for (field, value) in [("leadSeconds", self.lead_seconds), ("lingerSeconds", self.linger_seconds)] {
            if value > 59 {
                errors.push(field, value, "0 to 59");
            }
        }
        errors.into_result()
    }
}

/// Warm in the minutes in which a call is likely enough: keeps alive and wakes ahead by one rule.
///
/// For each minute after a call it estimates the chance of a call then, given that none came before, from the
/// revision's own idle times, the last day minute by minute, and what a population of functions did in the
/// same situation ([`HazardTable`]). The revision is warm in the minutes in which that chance is at least the
/// threshold. So a timer sleeps between its calls and is woken for each, a busy function stays, and a function with no
/// pattern is kept about as long as functions like it deserve.
///
/// Deterministic. Remembers 472 bytes for each revision that was called, whatever its age, and nothing for others.
///
/// ```
/// use sas_core::RevisionKey;
/// use sas_pool::{keep_alive::Hazard, trace::{Function, replay_keep_alive}};
///
/// // Every half an hour for a day: 48 calls, 1,392 minutes between them.
/// let timer = Function::new("timer", 1_440, (0..48).map(|call| (30 * call, 1)).collect());
/// let score = replay_keep_alive(&mut Hazard::default(), RevisionKey::new(0, 0), &timer);
/// assert!(score.cold < 5 && score.waste < 400, "{score:?}");
/// ```
#[derive(Clone, Debug)]
pub struct Hazard {
    table: Arc<HazardTable>,
    threshold: i32,
    horizon: usize,
    lead: Duration,
    linger: Duration,
    revisions: HashMap<RevisionKey, Box<Memory>>,
}

impl Default for Hazard {
    fn default() -> Self {
        Self::of(&HazardConfig::default(), Arc::new(HazardTable::shipped()))
    }
}

impl Hazard {
    /// With the table that comes with the crate.
    ///
    /// # Errors
    /// A value of `config` that is out of its range.
    pub fn new(config: &HazardConfig) -> Result<Self, SpecErrors> {
        Self::with_table(config, Arc::new(HazardTable::shipped()))
    }

    /// With a table of one's own.
    ///
    /// # Errors
    /// A value of `config` that is out of its range.
    pub fn with_table(config: &HazardConfig, table: Arc<HazardTable>) -> Result<Self, SpecErrors> {
        config.validate()?;
        Ok(Self::of(config, table))
    }

    fn of(config: &HazardConfig, table: Arc<HazardTable>) -> Self {
        Self {
            table,
            threshold: HazardTable::score_of(config.threshold),
            horizon: usize::try_from(config.horizon_minutes).unwrap_or(usize::MAX),
            lead: Duration::from_secs(config.lead_seconds.into()),
            linger: Duration::from_secs(config.linger_seconds.into()),
            revisions: HashMap::new(),
        }
    }

    /// Bytes for one revision that was called, without the table's own slack.
    pub const fn bytes_per_revision() -> usize {
        size_of::<Memory>() + size_of::<(RevisionKey, Box<Memory>)>()
    }

    /// The chance of a call in the minute of `at`, given that none came since the last one; `None` for a revision that
    /// was never called and for times before the minute after its last call.
    pub fn chance(&self, revision: RevisionKey, at: Timestamp) -> Option<f64> {
        let memory = self.revisions.get(&revision)?;
        let age = usize::try_from(minute(at).checked_sub(memory.last())?).ok().filter(|&age| age > 0)?;
        Some(HazardTable::chance(self.table.score(&Situation::new(memory).at(age))))
    }

    fn is_warm(&self, situation: &Situation<'_>, age: usize) -> bool {
        self.table.score(&situation.at(age)) >= self.threshold
    }

    /// The minutes from age `from` on that are warm without a break, within a look.
    fn run(&self, situation: &Situation<'_>, from: usize) -> usize {
        (from..from.saturating_add(LOOK)).take_while(|&age| self.is_warm(situation, age)).count()
    }

    fn plan(&self, memory: &Memory, now: Timestamp, from: Timestamp, linger: Duration) -> KeepAlive {
        let Ok(passed) = usize::try_from(minute(from).saturating_sub(memory.last())) else {
            // The clock went back behind the last call: nothing is known of this time.
            return KeepAlive::until(now + linger);
        };
        let situation = Situation::new(memory);
        let kept = self.run(&situation, passed + 1);
        if kept > 0 {
            return KeepAlive::until(end_of(memory.last(), passed + kept).max(now + linger));
        }
        let ahead = passed + 2..=self.horizon;
        let Some(wake) = ahead.into_iter().find(|&age| self.is_warm(&situation, age)) else {
            return KeepAlive::until(now + linger);
        };
        let until = wake + self.run(&situation, wake) - 1;
        let begins = (start_of(memory.last(), wake) - self.lead).max(now + linger);
        KeepAlive::with_wake(now + linger, begins, end_of(memory.last(), until).max(begins))
    }
}

fn start_of(last: i64, age: usize) -> Timestamp {
    Timestamp::from_secs(last.saturating_add_unsigned(age as u64).saturating_mul(60))
}

/// The last instant of the minute.
fn end_of(last: i64, age: usize) -> Timestamp {
    start_of(last, age + 1) - Duration::from_nanos(1)
}

#[deny(clippy::missing_trait_methods)]
impl KeepAlivePolicy for Hazard {
    fn called(&mut self, revision: RevisionKey, now: Timestamp) {
        let now = minute(now);
        self.revisions
            .entry(revision)
            .and_modify(|memory| memory.call(now))
            .or_insert_with(|| Box::new(Memory::new(now)));
    }

    fn idle(&mut self, revision: RevisionKey, now: Timestamp) -> KeepAlive {
        match self.revisions.get(&revision) {
            Some(memory) => self.plan(memory, now, now, self.linger),
            None => KeepAlive::until(now),
        }
    }

    fn unused(&mut self, revision: RevisionKey, now: Timestamp) -> KeepAlive {
        match self.revisions.get(&revision) {
            // Timers fire late: the minute that the plan ended with is still the one to go on from.
            Some(memory) => self.plan(memory, now, now - LATE, Duration::ZERO),
            None => KeepAlive::until(now),
        }
    }

    fn started(&mut self, _: RevisionKey, _: u64, _: Duration) {}

    fn worth(&self, _: RevisionKey) -> Option<f64> {
        None
    }

    fn evicted(&mut self, _: RevisionKey) {}

    fn resolution(&self) -> Duration {
        RESOLUTION
    }

    fn forget(&mut self, revision: RevisionKey) {
        self.revisions.remove(&revision);
    }

    fn bytes(&self) -> usize {
        self.revisions.len() * size_of::<Memory>()
            + self.revisions.capacity() * size_of::<(RevisionKey, Box<Memory>)>()
    }
}
