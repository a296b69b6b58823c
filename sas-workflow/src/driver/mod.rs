//! The driver: runs that survive crashes, on any [`Store`].

mod actions;
mod drive;
mod records;

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use sas_core::{Clock, Error, ErrorKind, Result, Store};
use serde_json::Value as Json;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use self::records::{Parent, Records};
pub use self::{
    actions::{Actions, StepKey, invoke_service},
    records::{Phase, RunState},
};
use crate::{Definition, Outcome, Record};

/// How many runs may do something at once; those that wait count for nothing.
const ACTIVE: usize = 256;
/// How many events and other words may wait for one run.
const INBOX: usize = 1_000;
/// What the ids of children begin with, and no others: a child's id is made of its parent's, and could be taken before.
const CHILD: &str = "child-";
/// How often the store is searched for runs that nobody goes on with, in milliseconds.
const SEARCH: u64 = 60_000;
/// How much a timer may be late before somebody else tells it, in milliseconds.
const LATE: u64 = 30_000;
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
    active: Semaphore,
    live: Mutex<HashMap<String, Live>>,
    timers: Mutex<Timers>,
    timers_changed: Notify,
    definitions: Mutex<HashMap<String, Definition>>,
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

enum Told {
    Event(Json),
    Done(String, Outcome),
    Cancelled,
    /// Nothing: it is to look.
    Wake,
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
    }
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "workflow", message)
}

impl Workflows {
    /// Workflows in this store, which do what they ask for by `actions`. Nothing happens before [`Workflows::run`].
    pub fn new(store: Arc<dyn Store>, clock: Arc<dyn Clock>, actions: Arc<dyn Actions>) -> Self {
        Self(Arc::new(Inner {
            records: Records { store },
            clock,
            actions,
            active: Semaphore::new(ACTIVE),
            live: Mutex::default(),
            timers: Mutex::default(),
            timers_changed: Notify::new(),
            definitions: Mutex::default(),
        }))
    }

    /// Stores a definition. A version is for ever: the same document again is fine, another one is not.
    ///
    /// # Errors
    /// `Conflict` when the version has another document; the store's.
    pub async fn define(&self, definition: &Definition) -> Result<()> {
        self.0.records.define(definition).await
    }

    /// The definition of this version.
    ///
    /// # Errors
    /// The store's.
    pub async fn definition(&self, namespace: &str, name: &str, version: &str) -> Result<Option<Definition>> {
        self.0.definition(namespace, name, version).await
    }

    /// Starts a run with an id of the caller's: letters, digits and `-._~`, at most 100, not beginning with `child-`. When it returns, the run is stored and will
    /// come to its end. A second start with the same id does nothing and gives the run's state.
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
        if run.starts_with(CHILD) {
            let message = format!(
                "the run's id {run:?} begins with {CHILD}, as only those of children may; give it another one"
            );
            return Err(wrong(message));
        }
        self.0.clone().start([namespace, name, version], run, input, None).await
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

    /// Up to `limit` runs whose ids come after `after`, in the order of their ids.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self, after: Option<&str>, limit: usize) -> Result<Vec<RunState>> {
        self.0.records.states(after, limit).await
    }

    /// All records of a run, in order.
    ///
    /// # Errors
    /// The store's.
    pub async fn history(&self, run: &str) -> Result<Vec<Record>> {
        self.0.records.history(run).await
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

    /// Goes on with all runs of the store that have not ended, and tells runs the time when it has come, until `stop`.
    ///
    /// # Errors
    /// The store's, when the runs cannot be listed.
    pub async fn run(&self, stop: CancellationToken) -> Result<()> {
        let mut after: Option<String> = None;
        loop {
            let states = self.0.records.states(after.as_deref(), 500).await?;
            let Some(last) = states.last() else { break };
            after = Some(last.id.clone());
            for state in states.iter().filter(|state| state.phase == Phase::Running) {
                if state.asks {
                    // A full inbox wakes it, too.
                    let _ = self.0.clone().post(&state.id, Letter::new(Told::Wake));
                } else {
                    self.0.timers.lock().set_earlier(&state.id, state.wakes);
                }
            }
        }
        tokio::join!(self.0.clone().tell_times(&stop), self.0.clone().look_for_stuck(&stop));
        Ok(())
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

    async fn definition(&self, namespace: &str, name: &str, version: &str) -> Result<Option<Definition>> {
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

    async fn start(
        self: Arc<Self>,
        [namespace, name, version]: [&str; 3],
        run: &str,
        input: Json,
        parent: Option<Parent>,
    ) -> Result<RunState> {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        if run.is_empty()
            || run.len() > 200
            || !run.bytes().all(known)
            || (run.len() > 100 && parent.is_none())
        {
            return Err(wrong(format!("the run's id {run:?} must be 1 to 100 letters, digits and -._~")));
        }
        let Some(definition) = self.definition(namespace, name, version).await? else {
            let message = format!("there is no workflow {namespace}/{name} {version}");
            return Err(Error::new(ErrorKind::NotFound, "workflow", message));
        };
        let (state, new) = self.records.start(&definition, run, input, parent, self.now()).await?;
        if new || state.phase == Phase::Running {
            self.post(run, Letter::new(Told::Wake))?;
        }
        Ok(state)
    }

    async fn told(self: Arc<Self>, run: &str, told: Told) -> Result<()> {
        match self.records.state(run).await? {
            None => Err(Error::new(ErrorKind::NotFound, "workflow", format!("there is no run {run:?}"))),
            Some((state, _)) if state.phase != Phase::Running => Err(has_ended(run)),
            Some(_) => {
                let (stored, is_stored) = oneshot::channel();
                let cancels = matches!(told, Told::Cancelled);
                self.clone().post(run, Letter { stored: Some(stored), ..Letter::new(told) })?;
                let told = is_stored.await.unwrap_or_else(|_| {
                    let message = format!("the run {run:?} broke off before the word was stored");
                    Err(Error::new(ErrorKind::Unavailable, "workflow", message))
                });
                match told {
                    Err(error) if cancels && error.kind != ErrorKind::Conflict => {
                        self.cancel_unread(run).await
                    }
                    told => told,
                }
            }
        }
    }

    /// Ends a run that cannot be driven, by its state alone.
    async fn cancel_unread(self: Arc<Self>, run: &str) -> Result<()> {
        let Some((state, version)) =
            self.records.state(run).await?.filter(|(s, _)| s.phase == Phase::Running)
        else {
            return Err(has_ended(run));
        };
        let (phase, updated) = (Phase::Cancelled, self.now());
        let state = RunState { phase, updated, wakes: None, asks: false, ..state };
        self.records.restate(&state, version).await?;
        self.finish(run, &state);
        Ok(())
    }

    /// Puts a letter into a run's inbox; a run that nobody drives is driven.
    fn post(self: Arc<Self>, run: &str, letter: Letter) -> Result<()> {
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
        let notify = Arc::new(Notify::new());
        live.insert(run.to_owned(), Live { inbox: [letter].into(), notify: notify.clone() });
        drop(live);
        let driven = Driven { inner: self.clone(), run: run.to_owned(), notify };
        tokio::spawn(async move { self.drive(&driven.run).await });
        Ok(())
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
            for run in due {
                // A full inbox wakes it, too.
                let _ = self.clone().post(&run, Letter::new(Told::Wake));
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
        loop {
            let states = self.records.states(after.as_deref(), 500).await?;
            let Some(last) = states.last() else { return Ok(()) };
            after = Some(last.id.clone());
            let now = self.now();
            for state in states.iter().filter(|state| state.phase == Phase::Running) {
                let late = state.wakes.is_some_and(|at| at.saturating_add(LATE) <= now);
                let silent = state.asks && state.updated.saturating_add(SILENT) <= now;
                if (late || silent) && !self.live.lock().contains_key(&state.id) {
                    // A full inbox wakes it, too.
                    let _ = self.clone().post(&state.id, Letter::new(Told::Wake));
                }
            }
        }
    }
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
