//! One event of a key at a time, and no event twice.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Mutex as AsyncMutex, OwnedMutexGuard},
    time::Instant,
};

/// Turns by key, in the order in which they were asked for.
#[derive(Debug, Default)]
pub(super) struct Turns(Mutex<HashMap<String, Arc<AsyncMutex<()>>>>);

#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    key: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Turns {
    pub(super) async fn take(&self, key: String) -> Turn<'_> {
        let lock = Arc::clone(self.0.lock().entry(key.clone()).or_default());
        // Made first, so that a turn that is given up while it waits leaves nothing behind.
        let mut turn = Turn { turns: self, key, guard: None };
        turn.guard = Some(lock.lock_owned().await);
        turn
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        drop(self.guard.take());
        let mut turns = self.turns.0.lock();
        if turns.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            turns.remove(&self.key);
        }
    }
}

/// How far back a repetition of an event is recognised. Both bounds hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dedup {
    /// Most events that are remembered; 0: none, so that every repetition is delivered.
    pub events: usize,
    /// How long an event is remembered.
    pub window: Duration,
}

impl Default for Dedup {
    fn default() -> Self {
        Self { events: 1024, window: Duration::from_secs(3600) }
    }
}

/// Source and id of an event.
type Identity = (String, String);

#[derive(Debug, Default)]
pub(super) struct Remembered {
    order: VecDeque<(Instant, Identity)>,
    known: HashSet<Identity>,
}

impl Remembered {
    pub(super) fn knows(&mut self, identity: &Identity, dedup: &Dedup) -> bool {
        let now = Instant::now();
        while let Some((since, _)) = self.order.front()
            && now.saturating_duration_since(*since) >= dedup.window
        {
            self.forget_oldest();
        }
        self.known.contains(identity)
    }

    pub(super) fn remember(&mut self, identity: Identity, dedup: &Dedup) {
        if dedup.events > 0 && self.known.insert(identity.clone()) {
            self.order.push_back((Instant::now(), identity));
        }
        while self.order.len() > dedup.events {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, oldest)) = self.order.pop_front() {
            self.known.remove(&oldest);
        }
    }
}
