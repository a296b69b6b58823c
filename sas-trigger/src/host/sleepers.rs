//! The one timer of all sources that sleep between times, and the housekeeping of brokers.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures_util::future::FutureExt as _;
use parking_lot::Mutex;
use sas_core::{Clock, Timestamp, TriggerCx, TriggerSource, TriggerStatus};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{broker::Brokers, metrics::Metrics};

/// The longest sleep in one go: after it the wall clock is asked again, in case it jumped.
const NAP: Duration = Duration::from_secs(30);
/// How often brokers look for events that are past their time.
const TIDIED_EVERY: Duration = Duration::from_secs(60);
/// A clock that goes back by more than this was set: what was to come is asked for again.
const BACKWARDS: Duration = Duration::from_secs(1);

pub(super) struct Sleepers {
    clock: Arc<dyn Clock>,
    brokers: Arc<Brokers>,
    /// The first wait before a failed source is woken again, and the longest.
    delays: (Duration, Duration),
    metrics: Metrics,
    shutdown: CancellationToken,
    changed: Notify,
    state: Mutex<State>,
}

impl fmt::Debug for Sleepers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleepers")
            .field("sleepers", &self.state.lock().sleepers.len())
            .finish_non_exhaustive()
    }
}

#[derive(Default)]
struct State {
    sleepers: BTreeMap<Arc<str>, Arc<Sleeper>>,
    due: BTreeSet<(Timestamp, Arc<str>)>,
    /// The timer, once there was something to wait for.
    timer: Option<JoinHandle<()>>,
}

struct Sleeper {
    source: Arc<dyn TriggerSource>,
    cx: TriggerCx,
    status: Arc<Mutex<TriggerStatus>>,
    /// When it is to be woken, and the task while it is awake.
    sleep: Mutex<Sleep>,
}

#[derive(Default)]
struct Sleep {
    due: Option<Timestamp>,
    awake: Option<JoinHandle<()>>,
    /// The wait after the next failure.
    delay: Duration,
}

impl Sleepers {
    pub(super) fn new(
        clock: Arc<dyn Clock>,
        brokers: Arc<Brokers>,
        delays: (Duration, Duration),
        metrics: Metrics,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock,
            brokers,
            delays,
            metrics,
            shutdown,
            changed: Notify::new(),
            state: Mutex::default(),
        })
    }

    /// Adds a source, which is woken at once.
    pub(super) fn add(
        self: &Arc<Self>,
        source: Arc<dyn TriggerSource>,
        cx: TriggerCx,
        status: Arc<Mutex<TriggerStatus>>,
    ) {
        let name = Arc::clone(&cx.name);
        let sleep = Sleep { due: None, awake: None, delay: self.delays.0 };
        let sleeper = Arc::new(Sleeper { source, cx, status, sleep: Mutex::new(sleep) });
        let mut state = self.state.lock();
        state.sleepers.insert(name, Arc::clone(&sleeper));
        self.wake(&sleeper);
        drop(state);
        self.changed();
    }

    /// Removes a source, and waits until it sleeps. Its shutdown was asked for already.
    pub(super) async fn remove(&self, name: &str) {
        let awake = {
            let mut state = self.state.lock();
            let Some((name, sleeper)) = state.sleepers.remove_entry(name) else { return };
            let mut sleep = sleeper.sleep.lock();
            if let Some(due) = sleep.due.take() {
                state.due.remove(&(due, name));
            }
            sleep.awake.take()
        };
        if let Some(awake) = awake {
            let _ = awake.await;
        }
    }

    /// Ends the timer and waits for all that are awake; the names of those that were dropped.
    pub(super) async fn shutdown(&self, deadline: Instant) -> Vec<String> {
        let (sleepers, timer) = {
            let mut state = self.state.lock();
            state.due.clear();
            (std::mem::take(&mut state.sleepers), state.timer.take())
        };
        let mut late = Vec::new();
        for (name, sleeper) in sleepers {
            let awake = sleeper.sleep.lock().awake.take();
            let Some(mut awake) = awake else { continue };
            if tokio::time::timeout_at(deadline, &mut awake).await.is_err() {
                awake.abort();
                let _ = awake.await;
                late.push(name.to_string());
            }
        }
        if let Some(timer) = timer {
            let _ = timer.await;
        }
        late
    }

    /// There is something new to wait for: makes the timer, or has it look.
    pub(super) fn changed(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.timer.is_none() && !self.shutdown.is_cancelled() {
            let sleepers = Arc::clone(self);
            state.timer = Some(tokio::spawn(async move { sleepers.keep_time().await }));
        }
        drop(state);
        self.changed.notify_one();
    }

    async fn keep_time(self: Arc<Self>) {
        let mut tidied = Instant::now();
        let mut before = self.clock.now();
        loop {
            let now = self.clock.now();
            self.wake_due(now, before.since(now) > BACKWARDS);
            before = now;
            if tidied.elapsed() >= TIDIED_EVERY {
                self.brokers.tidy_all().await;
                tidied = Instant::now();
            }
            let next = self.state.lock().due.first().map(|(due, _)| *due);
            // A little more than nothing: tokio's timers have a resolution of 1 ms, and an early wake-up would spin.
            let nap = next.map_or(NAP, |next| next.since(now).max(Duration::from_micros(100)).min(NAP));
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return,
                () = self.changed.notified() => {}
                () = sleep(nap) => {}
            }
        }
    }

    fn wake_due(self: &Arc<Self>, now: Timestamp, all: bool) {
        let mut state = self.state.lock();
        while let Some((due, _)) = state.due.first()
            && (all || *due <= now)
            && let Some((_, name)) = state.due.pop_first()
        {
            let sleeper = state.sleepers.get(&name).cloned();
            if let Some(sleeper) = sleeper {
                self.wake(&sleeper);
            }
        }
    }

    /// Wakes a sleeper, which is not awake.
    fn wake(self: &Arc<Self>, sleeper: &Arc<Sleeper>) {
        let mut sleep = sleeper.sleep.lock();
        sleep.due = None;
        let (sleepers, awake) = (Arc::clone(self), Arc::clone(sleeper));
        sleep.awake = Some(tokio::spawn(async move { sleepers.run(awake).await }));
    }

    /// One waking, and when the next one is.
    async fn run(self: Arc<Self>, sleeper: Arc<Sleeper>) {
        sleeper.status.lock().running = true;
        let woken = AssertUnwindSafe(sleeper.source.wake(&sleeper.cx)).catch_unwind().await;
        let due = match woken {
            Ok(Ok(next)) => {
                sleeper.sleep.lock().delay = self.delays.0;
                sleeper.status.lock().last_error = None;
                next
            }
            _ if sleeper.cx.shutdown.is_cancelled() => None,
            failed => {
                let error = match failed {
                    Ok(Err(error)) => error.chain(),
                    _ => "the source panicked".to_owned(),
                };
                let delay = {
                    let mut sleep = sleeper.sleep.lock();
                    let next = sleep.delay.saturating_mul(2).min(self.delays.1);
                    std::mem::replace(&mut sleep.delay, next)
                };
                tracing::warn!(trigger = %sleeper.cx.name, error, ?delay, "a source failed; it is woken again");
                self.metrics.restarts.increment(1);
                let mut status = sleeper.status.lock();
                status.running = false;
                status.restarts += 1;
                status.last_error = Some(error);
                Some(self.clock.now() + delay)
            }
        };
        let mut state = self.state.lock();
        let name = Arc::clone(&sleeper.cx.name);
        // It may have been removed, or replaced, meanwhile.
        if state.sleepers.get(&name).is_some_and(|known| Arc::ptr_eq(known, &sleeper)) {
            let mut sleep = sleeper.sleep.lock();
            sleep.due = due;
            sleep.awake = None;
            if let Some(due) = due {
                state.due.insert((due, name));
            }
        }
        drop(state);
        self.changed.notify_one();
    }
}
