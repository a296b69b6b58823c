//! The driver: runs that survive crashes, on any [`Store`].

mod actions;
mod checkpoints;
mod config;
mod drive;
mod host;
mod lifecycle;
mod past;
mod place;
mod records;
mod seen;
mod shown;
mod steer;
mod usage;
mod view;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Clock, Error, ErrorKind, Result, Store, Version};
use serde_json::Value as Json;
use tokio::sync::{Notify, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use self::{
    actions::{Actions, StepKey, invoke_service},
    config::WorkflowConfig,
    records::{Phase, RunState},
};
use self::{
    config::{Turns, Why},
    records::{Kept, Records, Started, Writer, run_path},
    seen::Stuck,
    usage::Usages,
};
use crate::{Definition, Outcome, Record, metrics::Metrics};

/// How many events and other words may wait for one run.
const INBOX: usize = 1_000;
/// What the ids of children begin with, and no others: a child's id is made of its parent's, and could be taken before.
const CHILD: &str = "child-";
/// How often the store is searched for runs that nobody goes on with, in milliseconds.
const SEARCH: u64 = 60_000;
/// How much a timer may be late before somebody else tells it, in milliseconds.
const LATE: u64 = 30_000;
/// How long whoever drives a run has to cancel it, before that is done by its state alone.
const CANCEL: Duration = Duration::from_secs(10);
/// How long what a run asked for may take before somebody else asks, too, in milliseconds.
const SILENT: u64 = 600_000;

/// Workflows on a store: their definitions, and the runs of these.
///
/// What happens to a run is a record in the store before anything is done about it; a commit is guarded by the run's state, so that of
/// two drivers one appends and the other reads again. Steps are done at least once: after a crash, what was asked for and not
/// answered is asked for again, under the same [`StepKey`]. A run that waits (for a time, an event, a child) takes no task and no
/// machine: it is its records, and an entry in a list where it waits for a time.
#[derive(Clone, Debug)]
pub struct Workflows(Arc<Inner>);

struct Inner {
    records: Records,
    clock: Arc<dyn Clock>,
    actions: Arc<dyn Actions>,
    config: WorkflowConfig,
    turns: Turns,
    usages: Mutex<Usages>,
    /// No step begins any more.
    stopping: CancellationToken,
    /// What is under way is dropped.
    stopped: CancellationToken,
    driving: TaskTracker,
    live: Mutex<HashMap<String, Live>>,
    timers: Mutex<Timers>,
    timers_changed: Notify,
    definitions: Mutex<HashMap<String, (Definition, Version)>>,
    /// Definitions whose schedules are kept here, by namespace and name.
    scheduled: Mutex<BTreeSet<(String, String)>>,
    metrics: Metrics,
    stuck: Stuck,
    /// Something may wait to be published.
    life: Notify,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workflows").field("live", &self.live.lock().len()).finish_non_exhaustive()
    }
}

/// A run that is being driven.
#[derive(Default)]
struct Live {
    inbox: VecDeque<Letter>,
    notify: Arc<Notify>,
    /// What is stored of a run that was started here just now, so that it is not read again.
    begun: Option<Kept>,
}

/// What a run is told, and who wants to know that it is stored.
struct Letter {
    told: Told,
    stored: Option<oneshot::Sender<Result<()>>>,
    /// The number and the record that it was appended as, when it is not known whether that was done.
    tried: Option<(u64, Record)>,
}

impl Letter {
    fn new(told: Told) -> Self {
        Self { told, stored: None, tried: None }
    }
}

#[derive(Clone)]
enum Told {
    Event(Json),
    Done(String, Outcome),
    /// The run that a step waits for has ended, and took so long.
    Child(String, Outcome, Duration),
    Cancelled,
    /// Nothing: it is to look.
    Wake,
    /// Somebody else has written its state: it is to be read again.
    Reload,
}

#[derive(Default)]
struct Timers {
    due: BTreeSet<(u64, String)>,
    at: HashMap<String, u64>,
}

impl Timers {
    fn set(&mut self, run: &str, at: Option<u64>) {
        if let Some(before) = self.at.remove(run) {
            self.due.remove(&(before, run.to_owned()));
        }
        if let Some(at) = at {
            self.at.insert(run.to_owned(), at);
            self.due.insert((at, run.to_owned()));
        }
    }

    /// As `set`, but what is known already and is earlier stands: it may be newer. A time too early wakes a run in vain, no more.
    fn set_earlier(&mut self, run: &str, at: Option<u64>) {
        if let Some(at) = at.filter(|at| self.at.get(run).is_none_or(|known| at < known)) {
            self.set(run, Some(at));
        }
    }
}

/// Holds a run's entry in the list of those that are driven. It goes with the task, also when this panics: what is told then drives the
/// run anew, and who waits for a word to be stored hears that it was not.
struct Driven {
    inner: Arc<Inner>,
    run: String,
    notify: Arc<Notify>,
}

impl Drop for Driven {
    fn drop(&mut self) {
        let mut live = self.inner.live.lock();
        // Who parked has left the list, and may have a successor there.
        if live.get(&self.run).is_some_and(|own| Arc::ptr_eq(&own.notify, &self.notify)) {
            live.remove(&self.run);
        }
        self.inner.metrics.driven.set(live.len() as f64);
        drop(live);
        if std::thread::panicking() {
            self.inner.is_unreadable(&self.run, "going on with it panicked; the log says where");
        }
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "workflow", message)
}

impl Workflows {
    /// Workflows in this store, which do what they ask for by `actions`. Nothing happens before [`Workflows::run`].
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, actions: Arc<dyn Actions>) -> Self {
        Self::with_config(store, clock, actions, WorkflowConfig::default())
    }

    /// The same, with bounds of one's own.
    pub fn with_config(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        actions: Arc<dyn Actions>,
        config: WorkflowConfig,
    ) -> Self {
        Self(Arc::new(Inner {
            records: Records {
                store,
                hosts: config.hosts.clone(),
                lifecycle: config.lifecycle.then_some(lifecycle::events as records::LifeEvents),
            },
            metrics: Metrics::new(&config.recorder),
            stuck: Stuck::default(),
            life: Notify::new(),
            clock,
            actions,
            turns: Turns::new(&config),
            config,
            usages: Mutex::default(),
            stopping: CancellationToken::new(),
            stopped: CancellationToken::new(),
            driving: TaskTracker::new(),
            live: Mutex::default(),
            timers: Mutex::default(),
            timers_changed: Notify::new(),
            definitions: Mutex::default(),
            scheduled: Mutex::default(),
        }))
    }

    /// Stores a definition. A version is for ever: the same document again is fine, another one is not.
    ///
    /// # Errors
    /// `Conflict` when the version has another document; the store's.
    pub async fn define(&self, definition: &Definition) -> Result<()> {
        self.0.records.define(definition).await.map(drop)
    }

    /// Forgets a definition. From then on, no run of it starts.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while a run of it has not ended, which goes on; the store's.
    pub async fn remove(&self, namespace: &str, name: &str, version: &str) -> Result<()> {
        self.0.remove([namespace, name, version]).await
    }

    /// The definition of this version.
    ///
    /// # Errors
    /// The store's.
    pub async fn definition(&self, namespace: &str, name: &str, version: &str) -> Result<Option<Definition>> {
        Ok(self.0.definition(namespace, name, version).await?.map(|(definition, _)| definition))
    }

    /// Starts a run with an id of the caller's, unique in the namespace: letters, digits and `-._~`, at most 100, not beginning with
    /// `child-`. When it returns, the run is stored and will come to its end. A second start with the same id does nothing and gives
    /// the run's state. Elsewhere, a run is named by its path, `namespace/id` ([`RunState::path`]).
    ///
    /// # Errors
    /// `NotFound` when the definition is not there; `InvalidSpec` for a bad id or too large an input; `Conflict` when a run of another
    /// definition has the id; the store's.
    pub async fn start(
        &self,
        namespace: &str,
        name: &str,
        version: &str,
        run: &str,
        input: Json,
    ) -> Result<RunState> {
        check_id(run)?;
        let started = Started { input, ..Started::default() };
        self.0.clone().start([namespace, name, version], run, started).await.map(|(state, _)| state)
    }

    /// Tells a run of an event, in the JSON format of CloudEvents. When it returns, the run has it for good; an event that the run
    /// does not wait for is kept as a record and changes nothing, one that it has had (`source` and `id`) is not kept again.
    ///
    /// # Errors
    /// `NotFound`, `Conflict` when the run has ended, `Exhausted` when too many events wait for it; the store's.
    pub async fn event(&self, run: &str, event: Json) -> Result<()> {
        self.0.clone().told(run, Told::Event(event)).await
    }

    /// Ends a run where it is. What was asked for and is under way may still happen.
    ///
    /// # Errors
    /// As [`Workflows::event`].
    pub async fn cancel(&self, run: &str) -> Result<()> {
        self.0.clone().told(run, Told::Cancelled).await
    }

    /// How a run stands.
    ///
    /// # Errors
    /// The store's.
    pub async fn state(&self, run: &str) -> Result<Option<RunState>> {
        Ok(self.0.records.state(run).await?.map(|(state, _)| state))
    }

    /// Up to `limit` runs whose paths come after `after`, in the order of their paths. Of an output or an error of more than 4 KiB they
    /// have the size, or what it is called: [`Workflows::state`] has all of it.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<RunState>> {
        self.0.records.states("", after, limit).await
    }

    /// The records of a run that are kept, in order: all, or those after its last checkpoint
    /// ([`WorkflowConfig::checkpoint_records`]). Empty where there is no such run.
    ///
    /// # Errors
    /// The store's.
    pub async fn history(&self, run: &str) -> Result<Vec<Record>> {
        Ok(self.0.records.kept(run).await?.map(|kept| kept.records).unwrap_or_default())
    }

    /// Waits until the run has ended.
    ///
    /// **Cancel safety:** dropping it leaves nothing behind.
    ///
    /// # Errors
    /// `NotFound`; the store's.
    pub async fn ended(&self, run: &str) -> Result<RunState> {
        self.0.records.ended(run).await
    }

    /// Goes on with all runs of the store that have not ended, and tells runs the time when it has come, until `stop`. Then no step
    /// begins any more; it returns when those that are under way are done, at the latest after [`WorkflowConfig::grace`], and nothing
    /// of this `Workflows` goes on after that: make another one to go on.
    ///
    /// # Errors
    /// The store's, when the runs cannot be listed.
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        self.take_over().await?;
        tokio::join!(
            self.0.clone().tell_times(&stop),
            self.0.clone().look_for_stuck(&stop),
            self.follow_hosts(&stop),
            self.0.clone().follow_words(&stop),
            self.follow_definitions(&stop),
            self.0.clone().publish_life(&stop),
        );
        self.0.stop().await;
        Ok(())
    }

    /// Drops what is under way without an answer, as a crash would: it is done again by whoever goes on with the runs. What
    /// [`Workflows::run`] does after its grace, at once.
    pub async fn halt(&self) {
        self.0.stopping.cancel();
        self.0.stopped.cancel();
        self.0.driving.close();
        self.0.driving.wait().await;
    }

    /// How many runs are being driven now.
    pub fn driven(&self) -> usize {
        self.0.live.lock().len()
    }
}

impl Inner {
    fn now(&self) -> u64 {
        u64::try_from(self.clock.now().0 / 1_000_000).unwrap_or(0)
    }

    async fn definition(
        &self,
        namespace: &str,
        name: &str,
        version: &str,
    ) -> Result<Option<(Definition, Version)>> {
        let key = format!("{namespace}/{name}/{version}");
        if let Some(definition) = self.definitions.lock().get(&key) {
            return Ok(Some(definition.clone()));
        }
        let definition = self.records.definition(&key).await?;
        if let Some(definition) = &definition {
            let mut kept = self.definitions.lock();
            // Definitions are some 100 KB at most times; beyond a thousand they are read again.
            if kept.len() >= 1_000 {
                kept.clear();
            }
            kept.insert(key, definition.clone());
        }
        Ok(definition)
    }

    /// The state, and whether the run is new.
    async fn start(
        self: Arc<Self>,
        [namespace, name, version]: [&str; 3],
        id: &str,
        started: Started,
    ) -> Result<(RunState, bool)> {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        if id.is_empty()
            || id.len() > 200
            || !id.bytes().all(known)
            || (id.len() > 100 && started.parent.is_none())
        {
            return Err(wrong(format!("the run's id {id:?} must be 1 to 100 letters, digits and -._~")));
        }
        if let Err(full) = self.check_room(namespace)
            && self.records.state(&run_path(namespace, id)).await?.is_none()
        {
            return Err(full);
        }
        loop {
            let Some((definition, defined)) = self.definition(namespace, name, version).await? else {
                let message = format!("there is no workflow {namespace}/{name} {version}");
                return Err(Error::new(ErrorKind::NotFound, "workflow", message));
            };
            let started = started.clone();
            let Some((state, begun)) =
                self.records.start((&definition, defined), id, started, self.now()).await?
            else {
                // Another host has deleted it, or put it back.
                self.definitions.lock().remove(&format!("{namespace}/{name}/{version}"));
                continue;
            };
            let new = begun.is_some();
            if new {
                let bytes = state.kept_bytes();
                self.used(namespace, |own| {
                    own.unended += 1;
                    own.bytes = own.bytes.saturating_add(bytes);
                });
                self.metrics.started(namespace);
                self.life.notify_one();
            }
            if (new || state.is_driven()) && self.drives(namespace) {
                self.post_as(&state.path(), Letter::new(Told::Wake), Why::Told, begun)?;
            }
            return Ok((state, new));
        }
    }

    async fn remove(&self, [namespace, name, version]: [&str; 3]) -> Result<()> {
        let path = format!("{namespace}/{name}/{version}");
        let Some((_, defined)) = self.records.definition(&path).await? else {
            let message = format!("there is no workflow {namespace}/{name} {version}");
            return Err(Error::new(ErrorKind::NotFound, "workflow", message));
        };
        // First no run starts any more; then it is looked for those that did.
        self.records.retire(&path).await?;
        let (mut after, below) = (None::<String>, format!("{namespace}/"));
        loop {
            let states = self.records.states(&below, after.as_deref(), 500).await?;
            let Some(last) = states.last() else { break };
            after = Some(last.path());
            let live = states.iter().find(|state| {
                state.phase == Phase::Running && state.name == name && state.version == version
            });
            if let Some(live) = live {
                self.records.revive(&path).await?;
                let message = format!(
                    "the run {:?} of {namespace}/{name} {version} has not ended; wait for it or cancel it, and those \
                     like it, first",
                    live.id
                );
                return Err(Error::new(ErrorKind::Conflict, "workflow", message));
            }
        }
        self.records.undefine(&path, defined).await?;
        self.definitions.lock().remove(&path);
        Ok(())
    }

    async fn told(self: Arc<Self>, run: &str, told: Told) -> Result<()> {
        match self.records.state(run).await? {
            None => Err(Error::new(ErrorKind::NotFound, "workflow", format!("there is no run {run:?}"))),
            Some((state, _)) if state.phase != Phase::Running => Err(has_ended(run)),
            Some(_) if self.drives(run) => match self.clone().told_here(run, told.clone()).await {
                // It has left this host meanwhile.
                Err(error) if error.kind == ErrorKind::Unavailable && !self.drives(run) => {
                    self.told_elsewhere(run, &told).await
                }
                told => told,
            },
            Some(_) => self.told_elsewhere(run, &told).await,
        }
    }

    async fn told_elsewhere(self: Arc<Self>, run: &str, told: &Told) -> Result<()> {
        match self.tell_elsewhere(run, told).await {
            // A run that cannot be read now is cancelled all the same.
            Err(error) if matches!(told, Told::Cancelled) && error.kind != ErrorKind::Conflict => {
                self.cancel_unread(run).await
            }
            told => told,
        }
    }

    async fn told_here(self: Arc<Self>, run: &str, told: Told) -> Result<()> {
        let (stored, is_stored) = oneshot::channel();
        let cancels = matches!(told, Told::Cancelled);
        self.clone().post(run, Letter { stored: Some(stored), ..Letter::new(told) })?;
        let broke_off = |_| {
            let message = format!("the run {run:?} broke off before the word was stored");
            Err(Error::new(ErrorKind::Unavailable, "workflow", message))
        };
        let told = match cancels {
            false => is_stored.await.unwrap_or_else(broke_off),
            // A run that cannot be read now, or gets no turn, is cancelled all the same.
            true => match tokio::time::timeout(CANCEL, is_stored).await {
                Ok(told) => told.unwrap_or_else(broke_off),
                Err(_) => return self.cancel_unread(run).await,
            },
        };
        match told {
            Err(error) if cancels && error.kind != ErrorKind::Conflict => self.cancel_unread(run).await,
            told => told,
        }
    }

    /// Ends a run that cannot be driven, by its state alone.
    async fn cancel_unread(self: Arc<Self>, run: &str) -> Result<()> {
        for _ in 0..20 {
            let Some((state, version)) =
                self.records.state(run).await?.filter(|(s, _)| s.phase == Phase::Running)
            else {
                return Err(has_ended(run));
            };
            let (phase, updated) = (Phase::Cancelled, self.now());
            let before = state.clone();
            let state = RunState {
                phase,
                updated,
                wakes: None,
                asks: false,
                listens: None,
                suspended: false,
                ..state
            };
            match self.records.restate(Writer::Anybody, &before, &state, version).await {
                // Whoever drives it was first; it is tried on what that one wrote.
                Err(error) if error.kind == ErrorKind::Conflict => continue,
                written => written?,
            };
            self.tell_end(&state);
            self.life.notify_one();
            self.finish(run, &state);
            return Ok(());
        }
        let message = format!("the run {run:?} goes on too fast; try again");
        Err(Error::new(ErrorKind::Unavailable, "workflow", message))
    }

    /// Tells a run something that it need not be told: it learns it when it goes on.
    fn wake(self: &Arc<Self>, run: &str, told: Told) {
        if self.drives(run) {
            // A full inbox wakes it, too.
            let _ = self.clone().post(run, Letter::new(told));
        }
    }

    /// Puts a letter into a run's inbox; a run that nobody drives is driven.
    fn post(self: Arc<Self>, run: &str, letter: Letter) -> Result<()> {
        self.post_as(run, letter, Why::Told, None)
    }

    fn post_as(self: Arc<Self>, run: &str, letter: Letter, why: Why, begun: Option<Kept>) -> Result<()> {
        let mut live = self.live.lock();
        if let Some(driven) = live.get_mut(run) {
            if driven.inbox.len() >= INBOX {
                let message = format!("{INBOX} words wait for the run {run:?}; tell it later");
                return Err(Error::new(ErrorKind::Exhausted, "workflow", message));
            }
            driven.inbox.push_back(letter);
            driven.notify.notify_one();
            return Ok(());
        }
        if self.stopping.is_cancelled() {
            return Err(Error::new(ErrorKind::Unavailable, "workflow", "workflows are stopping here"));
        }
        let notify = Arc::new(Notify::new());
        // What waits for a turn is bounded by what has one: the others are read.
        let begun = begun.filter(|_| live.len() < self.config.active);
        live.insert(run.to_owned(), Live { inbox: [letter].into(), notify: notify.clone(), begun });
        self.metrics.driven.set(live.len() as f64);
        drop(live);
        let driven = Driven { inner: self.clone(), run: run.to_owned(), notify };
        let (driving, stopped) = (self.driving.clone(), self.stopped.clone());
        driving.spawn(async move {
            // Dropping a run is like a crash of its host: it goes on from the store.
            stopped.run_until_cancelled(self.drive(&driven.run, why)).await;
        });
        Ok(())
    }

    /// No step begins any more, and those that are under way have some time.
    async fn stop(&self) {
        self.stopping.cancel();
        self.driving.close();
        if tokio::time::timeout(self.config.grace, self.driving.wait()).await.is_err() {
            self.stopped.cancel();
            self.driving.wait().await;
        }
    }

    /// One task for all timers.
    async fn tell_times(self: Arc<Self>, stop: &CancellationToken) {
        loop {
            let now = self.now();
            let (due, next) = {
                let mut timers = self.timers.lock();
                let mut due = Vec::new();
                while let Some((at, run)) = timers.due.first().cloned().filter(|(at, _)| *at <= now) {
                    timers.due.remove(&(at, run.clone()));
                    timers.at.remove(&run);
                    due.push(run);
                }
                (due, timers.due.first().map(|(at, _)| *at))
            };
            for run in due.into_iter().filter(|run| self.drives(run)) {
                // A full inbox wakes it, too.
                let _ = self.clone().post_as(&run, Letter::new(Told::Wake), Why::Due, None);
            }
            // The wall clock may jump: it is looked at once a minute at least.
            let wait = next.map_or(60_000, |at| at.saturating_sub(now).clamp(1, 60_000));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.timers_changed.notified() => {}
                () = tokio::time::sleep(Duration::from_millis(wait)) => {}
            }
        }
    }
}

impl Inner {
    /// Goes on with runs whose driver is gone: their time has long come, or what they asked for was not answered for long.
    async fn look_for_stuck(self: Arc<Self>, stop: &CancellationToken) {
        let mut wait = Duration::from_millis(SEARCH);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            let began = tokio::time::Instant::now();
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                searched = self.clone().wake_stuck() => if let Err(error) = searched {
                    tracing::warn!(%error, "the runs that are stuck cannot be searched for now");
                }
            }
            // However many runs there are, this is a small part of what is done.
            wait = Duration::from_millis(SEARCH).max(began.elapsed() * 20);
        }
    }

    async fn wake_stuck(self: Arc<Self>) -> Result<()> {
        let mut after: Option<String> = None;
        let (mut usages, mut stuck, mut running) = (Usages::new(), Vec::new(), BTreeSet::new());
        loop {
            let states = self.records.states("", after.as_deref(), 500).await?;
            let Some(last) = states.last() else {
                self.counted(usages);
                self.searched(stuck, |run| running.contains(run));
                return Ok(());
            };
            after = Some(last.path());
            let now = self.now();
            usage::count(&mut usages, &states);
            for state in states.iter().filter(|state| state.phase != Phase::Running) {
                self.forget_if_old(state, now).await?;
            }
            for state in states.iter().filter(|state| state.is_driven()) {
                let run = state.path();
                if !self.drives(&run) {
                    continue;
                }
                stuck.extend(self.looked_at(state, now));
                if self.is_known_unreadable(&run) {
                    running.insert(run.clone());
                }
                let late = state.wakes.is_some_and(|at| at.saturating_add(LATE) <= now);
                let silent = state.asks && state.updated.saturating_add(SILENT) <= now;
                if (late || silent) && !self.live.lock().contains_key(&run) {
                    self.wake(&run, Told::Wake);
                }
            }
        }
    }
}

impl Inner {
    /// Forgets a run that ended long ago, unless one that has not ended may still ask for it.
    async fn forget_if_old(&self, state: &RunState, now: u64) -> Result<()> {
        let Some(retention) = self.config.retention else { return Ok(()) };
        let kept = u64::try_from(retention.as_millis()).unwrap_or(u64::MAX);
        if state.updated.saturating_add(kept) > now {
            return Ok(());
        }
        if let Some(parent) = &state.parent
            && let Some((parent, _)) = self.records.state(&parent.run).await?
            && parent.phase == Phase::Running
        {
            return Ok(());
        }
        let run = state.path();
        match self.records.listed(&run).await? {
            Some((own, version)) if own == *state => match self.records.forget(&run, version).await {
                // Somebody let it go on, or was first.
                Err(error) if error.kind == ErrorKind::Conflict => Ok(()),
                forgotten => forgotten,
            },
            _ => Ok(()),
        }
    }
}

/// Ids that callers may give.
fn check_id(id: &str) -> Result<()> {
    if !id.starts_with(CHILD) {
        return Ok(());
    }
    let message = format!(
        "the run's id {id:?} begins with {CHILD}, as only those of children may; give it another one"
    );
    Err(wrong(message))
}

fn has_ended(run: &str) -> Error {
    Error::new(ErrorKind::Conflict, "workflow", format!("the run {run:?} has ended"))
}

#[cfg(test)]
mod tests {
    use super::Timers;

    #[test]
    fn a_stale_listing_makes_no_timer_later() {
        let mut timers = Timers::default();
        timers.set("r", Some(5));
        timers.set_earlier("r", Some(9));
        timers.set_earlier("r", None);
        assert_eq!(timers.due.first(), Some(&(5, "r".to_owned())));
        timers.set_earlier("r", Some(3));
        assert_eq!(timers.due.iter().collect::<Vec<_>>(), [&(3, "r".to_owned())]);
    }
}
