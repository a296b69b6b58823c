//! The Pods of this host, by name, as the watch last saw them. Nothing waits on a quiet one.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use metrics::Gauge;
use parking_lot::Mutex;
use sas_core::{Error, ErrorKind, ExitReport, InstanceEvents, InstanceId, Timestamp};
use tokio::sync::watch;

use crate::{
    output::LogTarget,
    status::{Ended, Seen},
};

/// One Pod, from before it is asked for until the cluster has forgotten it.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    /// Whether a secret of the same name goes with it.
    pub(crate) has_secret: bool,
    seen: watch::Sender<Arc<Seen>>,
    life: Mutex<Life>,
}

/// What is done once in the life of a Pod.
#[derive(Debug, Default)]
struct Life {
    /// Who is told the end; from the moment that the instance serves until it is told.
    owner: Option<(InstanceId, Arc<dyn InstanceEvents>)>,
    ended: Option<ExitReport>,
    is_gone: bool,
    /// Its removal was asked for, with this grace in seconds.
    removal: Option<u32>,
    /// To whom what it writes goes; until somebody reads it.
    output: Option<LogTarget>,
}

/// What is to be done about the removal of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Ask for it, and see it through.
    First,
    /// Somebody sees it through; ask for a shorter grace.
    Sooner,
    /// Nothing.
    UnderWay,
}

impl Slot {
    /// As it was last seen, and each change.
    pub(crate) fn seen(&self) -> watch::Receiver<Arc<Seen>> {
        self.seen.subscribe()
    }

    /// From now on `events` are told its end.
    ///
    /// # Errors
    /// `Crashed` when it has ended meanwhile.
    pub(crate) fn serves(&self, id: InstanceId, events: Arc<dyn InstanceEvents>) -> Result<(), Error> {
        let mut life = self.life.lock();
        if let Some(report) = &life.ended {
            let what = format!("the container {report} as soon as it was ready");
            return Err(Error::new(ErrorKind::Crashed, "start", what));
        }
        life.owner = Some((id, events));
        Ok(())
    }

    /// Whether its programs have ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.life.lock().ended.is_some()
    }

    /// Whether the cluster has forgotten it.
    pub(crate) fn is_gone(&self) -> bool {
        self.life.lock().is_gone
    }

    /// What this caller is to do about its removal.
    pub(crate) fn claim_removal(&self, grace_seconds: u32) -> Removal {
        let mut life = self.life.lock();
        match life.removal {
            None => {
                life.removal = Some(grace_seconds);
                Removal::First
            }
            Some(before) if grace_seconds < before => {
                life.removal = Some(grace_seconds);
                Removal::Sooner
            }
            Some(_) => Removal::UnderWay,
        }
    }

    /// What it will write goes there.
    pub(crate) fn writes_to(&self, target: LogTarget) {
        self.life.lock().output = Some(target);
    }

    /// To whom what it writes goes, for the one caller who is to read it.
    pub(crate) fn claim_output(&self) -> Option<LogTarget> {
        self.life.lock().output.take()
    }

    /// Waits until its programs have ended, or the cluster has forgotten it.
    pub(crate) async fn ended(&self) {
        let mut seen = self.seen();
        while !self.has_ended() {
            // The sender is this slot's own.
            if seen.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits until the cluster has forgotten it.
    pub(crate) async fn gone(&self) {
        let mut seen = self.seen();
        while !self.is_gone() {
            if seen.changed().await.is_err() {
                return;
            }
        }
    }

    fn end(&self, report: ExitReport) {
        let owner = {
            let mut life = self.life.lock();
            if life.ended.is_some() {
                return;
            }
            life.ended = Some(report.clone());
            life.owner.take()
        };
        if let Some((id, events)) = owner {
            events.exited(id, report);
        }
    }

    fn apply(&self, seen: Seen) {
        if let Some(end) = &seen.ended {
            self.end(end.report.clone());
        }
        self.seen.send_if_modified(|known| {
            let differs = **known != seen;
            if differs {
                *known = Arc::new(seen);
            }
            differs
        });
    }

    /// The cluster has forgotten it, with or without its end having been seen.
    fn forget(&self, now: Timestamp) {
        let mut seen = (**self.seen.borrow()).clone();
        if seen.ended.is_none() {
            let why = seen.leaving.clone().unwrap_or_else(|| "the Pod was deleted".to_owned());
            seen.ended = Some(Ended { report: ExitReport::at(now).with_reason(why), words: None });
        }
        self.life.lock().is_gone = true;
        if let Some(end) = &seen.ended {
            self.end(end.report.clone());
        }
        self.seen.send_modify(|known| *known = Arc::new(seen));
    }
}

/// All of them.
#[derive(Debug)]
pub(crate) struct Board {
    slots: Mutex<HashMap<String, Arc<Slot>>>,
    gauge: Gauge,
    /// Told when one goes.
    gone: tokio::sync::Notify,
}

impl Board {
    pub(crate) fn new(gauge: Gauge) -> Self {
        Self { slots: Mutex::default(), gauge, gone: tokio::sync::Notify::new() }
    }

    /// A Pod that will be asked for.
    pub(crate) fn add(&self, name: &str, has_secret: bool) -> Arc<Slot> {
        let slot = Arc::new(Slot {
            name: name.to_owned(),
            has_secret,
            seen: watch::Sender::new(Arc::default()),
            life: Mutex::default(),
        });
        let mut slots = self.slots.lock();
        slots.insert(name.to_owned(), Arc::clone(&slot));
        self.gauge.set(slots.len() as f64);
        slot
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<Slot>> {
        self.slots.lock().get(name).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Slot>> {
        self.slots.lock().values().cloned().collect()
    }

    /// It was seen; `None`: it is none of ours.
    pub(crate) fn seen(&self, name: &str, seen: Seen) -> Option<Arc<Slot>> {
        let slot = self.get(name)?;
        slot.apply(seen);
        Some(slot)
    }

    /// The cluster has forgotten it.
    pub(crate) fn forget(&self, name: &str, now: Timestamp) {
        let slot = {
            let mut slots = self.slots.lock();
            let slot = slots.remove(name);
            self.gauge.set(slots.len() as f64);
            slot
        };
        if let Some(slot) = slot {
            slot.forget(now);
            self.gone.notify_waiters();
        }
    }

    /// All that was ever seen and is not among `there` has been forgotten by the cluster while nobody watched.
    pub(crate) fn only(&self, there: &HashSet<String>, now: Timestamp) {
        let missing: Vec<String> = self
            .slots
            .lock()
            .values()
            .filter(|slot| **slot.seen.borrow() != Seen::default() && !there.contains(&slot.name))
            .map(|slot| slot.name.clone())
            .collect();
        for name in missing {
            self.forget(&name, now);
        }
    }

    /// Waits until nothing is being removed any more.
    pub(crate) async fn quiesce(&self) {
        loop {
            let gone = self.gone.notified();
            tokio::pin!(gone);
            gone.as_mut().enable();
            if !self.slots.lock().values().any(|slot| slot.life.lock().removal.is_some()) {
                return;
            }
            gone.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sas_core::StartPhase;
    use sas_testkit::fake::RecordingEvents;

    fn at() -> Timestamp {
        Timestamp::from_millis(1)
    }

    fn ended(code: i32) -> Seen {
        let report = ExitReport::at(at()).with_code(code);
        Seen { ended: Some(Ended { report, words: None }), ..Seen::default() }
    }

    fn told(events: &RecordingEvents) -> usize {
        events.exits().len()
    }

    #[test]
    fn an_end_is_told_once_however_often_it_is_seen() {
        let board = Board::new(Gauge::noop());
        let slot = board.add("a", false);
        let events = Arc::new(RecordingEvents::default());
        events.phase(InstanceId(1), StartPhase::Ready);
        slot.serves(InstanceId(1), Arc::clone(&events) as _).unwrap();
        board.seen("a", ended(3));
        board.seen("a", ended(3));
        board.forget("a", at());
        assert_eq!(told(&events), 1);
        assert!(slot.is_gone() && board.all().is_empty());
    }

    #[test]
    fn what_ended_before_it_served_is_a_start_that_failed_and_no_exit() {
        let board = Board::new(Gauge::noop());
        let slot = board.add("a", false);
        board.seen("a", ended(3));
        let events = Arc::new(RecordingEvents::default());
        let error = slot.serves(InstanceId(1), Arc::clone(&events) as _).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Crashed);
        board.forget("a", at());
        assert_eq!(told(&events), 0);
    }

    #[test]
    fn what_vanished_while_nobody_watched_has_ended_and_what_was_never_seen_may_still_come() {
        let board = Board::new(Gauge::noop());
        let (seen, asked_for) = (board.add("a", false), board.add("b", false));
        board.seen("a", Seen { has_run: true, ..Seen::default() });
        board.only(&HashSet::new(), at());
        assert!(seen.is_gone());
        assert!(!asked_for.is_gone());
    }

    #[tokio::test]
    async fn quiesce_waits_for_what_is_being_removed_and_for_nothing_else() {
        let board = Board::new(Gauge::noop());
        let (_runs, leaves) = (board.add("a", false), board.add("b", false));
        board.quiesce().await;
        assert_eq!(leaves.claim_removal(10), Removal::First);
        assert_eq!(leaves.claim_removal(10), Removal::UnderWay);
        assert_eq!(leaves.claim_removal(1), Removal::Sooner);
        let quiesced = board.quiesce();
        tokio::pin!(quiesced);
        assert!(futures_util::poll!(quiesced.as_mut()).is_pending());
        board.forget("b", at());
        quiesced.await;
    }
}
