//! Ticks the active revisions: load from the pool, a decision, a record, the number back to the pool.

mod batch;
mod config;
mod histories;
mod measured;
mod time;

use std::{
    any::Any,
    cmp::Reverse,
    collections::HashSet,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{
    Decision, DecisionRecord, Deployed, Load, NamedValues, Pool, PoolDecision, RevisionKey, ScaleInput,
    Scaler, Scalers, Timestamp, Verdict,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    govern::Governor,
    history::{Checkpoint, History, Stretch},
    metrics::Handles,
    rows::{Entry, Seen, Shard},
    window::Nanos,
};

pub use config::DriverConfig;
use histories::Histories;
use measured::Measured;
pub use measured::Measurement;
use time::Time;

/// Ticks the active revisions of a pool.
///
/// It visits what the pool calls active and nothing else; the shards are spread over the tick. A scaler that panics
/// costs its revision the tick, not the driver its life. Every decision goes to the pool, into a bounded history and
/// to the sink.
///
/// ```no_run
/// # async fn example(pool: std::sync::Arc<dyn sas_core::Pool>) -> Result<(), sas_core::SpecErrors> {
/// use sas_autoscale::{Driver, DriverConfig, default_scalers};
/// use tokio_util::sync::CancellationToken;
///
/// let driver = Driver::new(pool, default_scalers(), DriverConfig::default());
/// let stop = CancellationToken::new();
/// tokio::spawn({
///     let stop = stop.clone();
///     async move { driver.run(stop).await }
/// });
/// # Ok(())
/// # }
/// ```
pub struct Driver {
    pool: Arc<dyn Pool>,
    scalers: Scalers,
    config: DriverConfig,
    shards: Vec<Mutex<Shard>>,
    measured: Measured,
    histories: Histories,
    initialized: Mutex<HashSet<RevisionKey>>,
    time: Time,
    metrics: Handles,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("scalers", &self.scalers.names().collect::<Vec<_>>())
            .field("shards", &self.shards.len())
            .field("tick", &self.config.tick)
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// A driver of `pool` with `scalers`, found by their names; of two with one name the first counts.
    ///
    /// A configuration out of its bounds is brought within them; [`DriverConfig::validate`] tells beforehand.
    pub fn new(pool: Arc<dyn Pool>, scalers: impl Into<Scalers>, mut config: DriverConfig) -> Arc<Self> {
        let scalers = scalers.into();
        config.tick = config.tick.clamp(Duration::from_millis(50), Duration::from_secs(60));
        config.history = config.history.min(100_000);
        config.measurement_age = config.measurement_age.max(config.tick);
        let metrics = Handles::new(&config.recorder);
        let age = i64::try_from(config.measurement_age.as_nanos()).unwrap_or(i64::MAX);
        let histories = Histories::new(&config);
        let measured = Measured::new(age, config.measured_revisions);
        Arc::new(Self {
            shards: (0..pool.shards()).map(|_| Mutex::new(Shard::new(scalers.as_slice()))).collect(),
            pool,
            scalers,
            config,
            measured,
            histories,
            initialized: Mutex::default(),
            time: Time::new(),
            metrics,
        })
    }

    /// The scalers that it ticks; [`Scalers::validate`] checks a spec as the driver will.
    pub fn scalers(&self) -> &Scalers {
        &self.scalers
    }

    /// Visits the revisions that are active now, in no order that means anything. One short lock per shard.
    pub fn visit_active(&self, mut visit: impl FnMut(RevisionKey, &Arc<Deployed>)) {
        for shard in &self.shards {
            for entry in shard.lock().entries.iter().flatten().filter(|entry| !entry.asleep) {
                visit(entry.key, &entry.deployed);
            }
        }
    }

    /// Ticks until `stop` is cancelled.
    ///
    /// **Cancel safety:** dropping the future ends the ticks between two shards; nothing is lost.
    pub async fn run(&self, stop: CancellationToken) {
        // Not finer than this: shards whose turn comes meanwhile go together.
        let steps = (self.config.tick.as_millis() / 10).clamp(1, self.shards.len().max(1) as u128) as u32;
        let mut timer = tokio::time::interval(self.config.tick / steps);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let count = self.shards.len();
        let mut step: usize = 0;
        let steps = steps as usize;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                _ = timer.tick() => {}
            }
            let began = Instant::now();
            let (now, mono) = (self.config.clock.now(), self.time.now());
            for shard in (count * step / steps)..(count * (step + 1) / steps) {
                self.visit(shard, now, mono);
            }
            step = (step + 1) % steps;
            self.metrics.tick.record(began.elapsed().as_secs_f64());
            if step == 0 {
                self.after_round(mono);
            }
        }
    }

    /// One tick of everything at `now`, for simulators: time is what the caller says. Not to be mixed with
    /// [`Driver::run`].
    pub fn step(&self, now: Timestamp) {
        self.time.step(now.0);
        for shard in 0..self.shards.len() {
            self.visit(shard, now, now.0);
        }
        self.after_round(now.0);
    }

    fn after_round(&self, mono: Nanos) {
        let active: usize = self.shards.iter().map(|shard| shard.lock().rows.len()).sum();
        self.metrics.active.set(active as f64);
        self.measured.expire(mono);
    }

    /// Takes a measurement. A backlog or a named measurement of a revision that sleeps is decided on at once, so that it
    /// wakes with as many instances as are needed.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no measurement (NaN, infinite, negative, no name); `Exhausted` when too many revisions
    /// have measurements, or this one too many names.
    pub fn report(&self, revision: RevisionKey, measurement: Measurement) -> sas_core::Result<()> {
        let at = self.time.now();
        self.measured.take(revision, &measurement, at)?;
        if measurement.may_wake() {
            self.wake(revision, self.config.clock.now(), at);
        }
        Ok(())
    }

    /// Decides for a revision that sleeps. What wakes it has the next number of its decisions and stands in its
    /// history, with the state that it came from.
    fn wake(&self, revision: RevisionKey, now: Timestamp, mono: Nanos) {
        let Some(status) = self.pool.status(revision) else { return };
        if status.ready + status.starting > 0 || status.desired > 0 {
            return;
        }
        let Some(deployed) = self.pool.deployed(revision) else { return };
        let Some((_, scaler)) = self.scaler_of(&deployed) else { return };
        let (mut load, mut named) = (Load::idle(revision), NamedValues::NONE);
        self.measured.add_to(std::iter::once((&mut load, &mut named)), mono);
        let spec = &deployed.spec;
        let input = ScaleInput::new(0, now, &spec.scaling, &load, Some(0))
            .named(&named)
            .of(spec.concurrency, Some(&spec.resources));
        let mut states = scaler.new_states();
        let mut out = Vec::with_capacity(1);
        let tick = AssertUnwindSafe(|| scaler.tick(&mut *states, std::slice::from_ref(&input), &mut out));
        if catch_unwind(tick).is_err() {
            self.metrics.failures.increment(1);
            return;
        }
        let Some(mut decision) = out.pop() else { return };
        decision.version = scaler.version();
        let before = Governor::new(&spec.scaling, &load, false, true);
        before.clone().apply(&input, &mut decision);
        let Verdict::Set(desired @ 1..) = decision.verdict else { return };
        self.metrics.up.increment(1);
        self.pool.set_desired(revision, desired);
        let mut record = DecisionRecord::new(0, now, load, Some(0), decision);
        record.named = named;
        record.host.clone_from(&self.config.host);
        let checkpoint = Checkpoint {
            scaler: scaler.name().to_owned(),
            version: scaler.version(),
            state: None,
            governor: before,
            desired: Some(0),
        };
        self.keep(&deployed, checkpoint, &mut record);
        self.config.sink.decided(revision, &record);
    }

    /// Numbers a decision that was made outside of the ticks, and keeps it where the revision's history is.
    fn keep(&self, deployed: &Arc<Deployed>, checkpoint: Checkpoint, record: &mut DecisionRecord) {
        let revision = record.load.revision;
        for shard in &self.shards {
            let mut shard = shard.lock();
            let Some(row) = shard.rows.get(&revision).copied() else { continue };
            let Some(entry) = shard.entries[row as usize].as_mut() else { continue };
            entry.sequence += 1;
            record.sequence = entry.sequence;
            if let Some(history) = entry.history.as_mut() {
                history.alone(checkpoint, record.clone());
            }
            return;
        }
        let history = self.history_of_inactive(revision);
        record.sequence = history.as_ref().map_or(0, |history| history.last_sequence()) + 1;
        if let Some(mut history) = history {
            history.alone(checkpoint, record.clone());
            self.histories.keep_asleep(revision, Arc::clone(deployed), history);
        }
    }

    /// Numbers a decision that the pool made by itself, and keeps it in the revision's history. It follows from no load
    /// and nothing follows from it for the scaler.
    fn decided_by_pool(&self, shard: &mut Shard, made: &PoolDecision, deployed: &Arc<Deployed>) {
        if self.pool.deployed(made.revision).is_none() {
            return;
        }
        let mut load = Load::idle(made.revision);
        load.ready = made.before;
        let decision = Decision::set(made.desired, made.reason);
        let mut record = DecisionRecord::new(0, made.at, load, Some(made.before), decision);
        record.elapsed = Duration::ZERO;
        record.host.clone_from(&self.config.host);
        if let Some(until) = made.until {
            record.named.insert("kept_for_seconds", until.since(made.at).as_secs_f64());
        }
        if made.waited > 0 {
            record.named.insert("requests_waited", f64::from(made.waited));
        }
        let checkpoint = || {
            let scaler = self.scaler_of(deployed).map(|(_, scaler)| scaler);
            Checkpoint {
                scaler: scaler.map_or_else(String::new, |scaler| scaler.name().to_owned()),
                version: scaler.map_or(0, |scaler| scaler.version()),
                state: None,
                governor: Governor::new(&deployed.spec.scaling, &load, false, true),
                desired: Some(made.before),
            }
        };
        let row = shard.rows.get(&made.revision).copied();
        match row.and_then(|row| shard.entries[row as usize].as_mut()) {
            Some(entry) => {
                entry.sequence += 1;
                record.sequence = entry.sequence;
                match entry.history.as_mut() {
                    Some(history) if history.needs_checkpoint() => {
                        history.alone(checkpoint(), record.clone());
                    }
                    Some(history) => history.push(record.clone()),
                    None => {}
                }
            }
            None => {
                let history = self.history_of_inactive(made.revision);
                record.sequence = history.as_ref().map_or(0, |history| history.last_sequence()) + 1;
                if let Some(mut history) = history {
                    history.alone(checkpoint(), record.clone());
                    self.histories.keep_asleep(made.revision, Arc::clone(deployed), history);
                }
            }
        }
        self.config.sink.decided(made.revision, &record);
    }

    fn scaler_of(&self, deployed: &Deployed) -> Option<(usize, &Arc<dyn Scaler>)> {
        let spec = &deployed.spec.scaling;
        self.scalers.validate(spec).ok().and_then(|()| self.scalers.find(&spec.scaler))
    }

    /// The kept decisions of a revision, oldest first; none when it was not active of late.
    pub fn history(&self, revision: RevisionKey) -> Vec<DecisionRecord> {
        self.with_history(revision, |_, history| history.records()).unwrap_or_default()
    }

    /// The same with all that is needed to [`crate::replay`] them.
    pub fn stretch(&self, revision: RevisionKey) -> Option<Stretch> {
        self.with_history(revision, |deployed, history| {
            let (checkpoint, records) = history.stretch()?;
            Some(Stretch {
                spec: deployed.spec.scaling.clone(),
                concurrency: deployed.spec.concurrency,
                resources: deployed.spec.resources,
                checkpoint: checkpoint.clone(),
                records,
            })
        })?
    }

    /// The scaler of that name.
    pub fn scaler(&self, name: &str) -> Option<Arc<dyn Scaler>> {
        self.scalers.find(name).map(|(_, scaler)| Arc::clone(scaler))
    }

    /// The history that a revision without a row left when it went to sleep, or a new one while there is room.
    fn history_of_inactive(&self, revision: RevisionKey) -> Option<Box<History>> {
        let history = self.histories.take_asleep(revision).or_else(|| self.histories.begin());
        if history.is_none() && self.config.history > 0 {
            self.metrics.without_history.increment(1);
        }
        history
    }

    fn with_history<T>(&self, revision: RevisionKey, read: impl Fn(&Deployed, &History) -> T) -> Option<T> {
        for shard in &self.shards {
            let shard = shard.lock();
            if let Some(entry) =
                shard.rows.get(&revision).and_then(|row| shard.entries[*row as usize].as_ref())
            {
                return entry.history.as_ref().map(|history| read(&entry.deployed, history));
            }
        }
        self.histories.read_asleep(revision, read)
    }

    /// Visits one shard: its active revisions are decided, those that went to sleep are forgotten, and those whose
    /// time to wake has come are asked.
    fn visit(&self, at: usize, now: Timestamp, mono: Nanos) {
        let born = self.time.born(mono);
        let mut shard = self.shards[at].lock();
        let shard = &mut *shard;
        let mut loads = std::mem::take(&mut shard.loads);
        loads.clear();
        self.pool.take_load(at, &mut |load, deployed| {
            let row =
                shard.row(load.revision).unwrap_or_else(|| self.begin(shard, load, deployed, mono, born));
            loads.push(Seen { load: *load, named: NamedValues::NONE, row, scaler: None, elapsed: 0 });
        });
        let mut turns = std::mem::take(&mut shard.turns);
        shard.seat(&loads, &mut turns);
        let tick = i64::try_from(self.config.tick.as_nanos()).unwrap_or(i64::MAX);
        for turn in &turns {
            let seen = &mut loads[*turn as usize];
            let Some(entry) = shard.entries[seen.row as usize].as_mut() else { continue };
            // What the pool measured begins with the wake, not with the sleep before it.
            seen.elapsed = if entry.asleep { tick } else { mono.saturating_sub(entry.seen).max(0) };
            seen.scaler = entry.scaler;
            entry.seen = entry.seen.max(mono);
            entry.asleep = false;
        }
        self.measured.add_to(loads.iter_mut().map(|seen| (&mut seen.load, &mut seen.named)), mono);
        self.pool
            .take_decisions(at, &mut |decision, deployed| self.decided_by_pool(shard, decision, deployed));
        self.decide(shard, &loads, &turns, now);
        shard.loads = loads;
        self.put_to_sleep(shard, &mut turns, now, mono);
        shard.turns = turns;
        self.wake_due(shard, now, mono);
    }

    /// Gives a revision that became active its row.
    fn begin(
        &self,
        shard: &mut Shard,
        load: &Load,
        deployed: &Arc<Deployed>,
        mono: Nanos,
        born: Nanos,
    ) -> u32 {
        let spec = &deployed.spec.scaling;
        let scaler = self.scaler_of(deployed).and_then(|(at, _)| u32::try_from(at).ok());
        if scaler.is_none() {
            tracing::warn!(
                revision = %deployed.name,
                scaler = %spec.scaler,
                "no scaler can serve the revision: it keeps its number of instances"
            );
        }
        let tick = i64::try_from(self.config.tick.as_nanos()).unwrap_or(i64::MAX);
        let window = i64::try_from(spec.stable_window.as_nanos()).unwrap_or(i64::MAX);
        let restarted = mono.saturating_sub(born) < window;
        let initialized = spec.initial > 1 && self.initialized.lock().contains(&load.revision);
        let history = self.history_of_inactive(load.revision);
        let entry = Entry {
            key: load.revision,
            deployed: deployed.clone(),
            scaler,
            governor: Governor::new(spec, load, restarted, initialized),
            sequence: history.as_ref().map_or(0, |history| history.last_sequence()),
            history,
            desired: None,
            seen: mono.saturating_sub(tick),
            asleep: false,
        };
        shard.add(entry)
    }

    /// Forgets what the pool did not show: it sleeps, or is gone.
    fn put_to_sleep(&self, shard: &mut Shard, unseen: &mut Vec<u32>, now: Timestamp, mono: Nanos) {
        unseen.clear();
        unseen.extend(shard.unseen().filter(|row| shard.entry(*row).is_some_and(|entry| !entry.asleep)));
        for row in unseen.iter().copied() {
            let Some(entry) = shard.entry(row) else { continue };
            let key = entry.key;
            let wake = self.wake_time(entry, &shard.states, row, now);
            let registered = wake.is_some() && self.pool.deployed(key).is_some();
            match wake {
                Some(at) if registered => {
                    shard.wakes.push(Reverse((at, row, key)));
                    if let Some(entry) = shard.entries[row as usize].as_mut() {
                        entry.asleep = true;
                        entry.desired = Some(0);
                        entry.seen = mono;
                    }
                }
                _ => self.forget(shard, row),
            }
        }
    }

    fn wake_time(
        &self,
        entry: &Entry,
        states: &[Box<dyn Any + Send>],
        row: u32,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let at = entry.scaler? as usize;
        let load = Load::idle(entry.key);
        let input = input_of(entry, &load, row, 0, now);
        let ask = AssertUnwindSafe(|| self.scalers.as_slice()[at].wake_at(&*states[at], &input));
        catch_unwind(ask).unwrap_or(None)
    }

    fn forget(&self, shard: &mut Shard, row: u32) {
        let Some(entry) = shard.remove(row) else { return };
        if let Some(at) = entry.scaler.map(|at| at as usize) {
            let retire = AssertUnwindSafe(|| self.scalers.as_slice()[at].retire(&mut *shard.states[at], row));
            if catch_unwind(retire).is_err() {
                self.metrics.failures.increment(1);
            }
        }
        let registered = self.pool.deployed(entry.key).is_some();
        if !registered {
            self.initialized.lock().remove(&entry.key);
        }
        let Some(mut history) = entry.history else { return };
        history.interrupt();
        if registered {
            self.histories.keep_asleep(entry.key, entry.deployed, history);
        } else {
            self.histories.give_up();
        }
    }

    /// Asks the scalers of revisions whose time to wake has come.
    fn wake_due(&self, shard: &mut Shard, now: Timestamp, mono: Nanos) {
        while let Some(Reverse((at, row, key))) = shard.wakes.peek().copied() {
            if at > now {
                return;
            }
            shard.wakes.pop();
            let sleeps =
                shard.entries[row as usize].as_ref().is_some_and(|entry| entry.key == key && entry.asleep);
            if !sleeps {
                continue;
            }
            if self.pool.deployed(key).is_none() {
                self.forget(shard, row);
                continue;
            }
            let elapsed =
                shard.entries[row as usize].as_ref().map_or(0, |entry| mono.saturating_sub(entry.seen));
            if let Some(entry) = shard.entries[row as usize].as_mut() {
                entry.seen = mono;
            }
            let scaler = shard.entries[row as usize].as_ref().and_then(|entry| entry.scaler);
            let mut seen = Seen {
                load: Load::idle(key),
                named: NamedValues::NONE,
                row,
                scaler,
                elapsed: elapsed.max(0),
            };
            self.measured.add_to(std::iter::once((&mut seen.load, &mut seen.named)), mono);
            self.decide(shard, &[seen], &[0], now);
            let again = shard.entries[row as usize]
                .as_ref()
                .and_then(|entry| self.wake_time(entry, &shard.states, row, now));
            match again {
                // Later than now, else this loop would not end.
                Some(again) => {
                    let again = again.max(now + self.config.tick);
                    shard.wakes.push(Reverse((again, row, key)));
                }
                None => self.forget(shard, row),
            }
        }
    }
}

fn input_of<'a>(
    entry: &'a Entry,
    load: &'a Load,
    row: u32,
    elapsed: Nanos,
    now: Timestamp,
) -> ScaleInput<'a> {
    let spec = &entry.deployed.spec;
    ScaleInput::new(row, now, &spec.scaling, load, entry.desired)
        .over(Duration::from_nanos(elapsed.unsigned_abs()))
        .of(spec.concurrency, Some(&spec.resources))
}
