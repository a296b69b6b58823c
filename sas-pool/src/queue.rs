//! The activation queue: who waits for a slot of a revision, in which order.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use sas_core::{Claim, ClaimError, Instance, RevisionKey, StartTimings, TenantKey};
use smallvec::SmallVec;

/// A slot on its way to a claim.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) instance: Arc<dyn Instance>,
    pub(crate) token: u64,
    pub(crate) start: Option<Arc<StartTimings>>,
}

/// What became of a waiting claim.
#[derive(Debug)]
pub(crate) enum WaiterState {
    Free,
    Waiting,
    Granted(Grant),
    Failed(ClaimError),
}

/// A waiting claim.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) generation: u32,
    pub(crate) active: u32,
    pub(crate) claim: Claim,
    pub(crate) place: WaiterState,
    pub(crate) waker: Option<Waker>,
    /// The key of its deadline among the shard's timers.
    pub(crate) timer: Option<(u64, u64)>,
    pub(crate) arrived: u64,
}

impl Waiter {
    /// A slot that nobody waits in.
    pub(crate) fn free() -> Self {
        Self {
            generation: 0,
            active: 0,
            claim: Claim::new(RevisionKey(0), TenantKey(0)),
            place: WaiterState::Free,
            waker: None,
            timer: None,
            arrived: 0,
        }
    }
}

/// The waiters of one priority: slots and their generations.
type Level = (u8, VecDeque<(u32, u32)>);

/// The waiters of one revision: higher priorities first, first come first served within one.
///
/// A waiter that leaves is only marked (its slot in the waiters' slab changes generation), and skipped when its turn
/// comes; `live` counts those that are still there, and the lists are compacted when most entries are dead.
#[derive(Debug, Default)]
pub(crate) struct Line {
    levels: SmallVec<[Level; 1]>,
    live: u32,
    entries: u32,
}

impl Line {
    pub(crate) fn len(&self) -> u32 {
        self.live
    }

    /// Puts a waiter (slot and generation) at the end of its priority.
    pub(crate) fn push(&mut self, priority: u8, waiter: (u32, u32)) {
        self.live += 1;
        self.entries += 1;
        match self.levels.iter().position(|(level, _)| *level <= priority) {
            Some(at) if self.levels[at].0 == priority => self.levels[at].1.push_back(waiter),
            Some(at) => self.levels.insert(at, (priority, VecDeque::from([waiter]))),
            None => self.levels.push((priority, VecDeque::from([waiter]))),
        }
    }

    /// The first waiter for which `choose` is true, taken out. `is_live` says whether an entry is still waiting; dead
    /// ones are dropped on the way.
    pub(crate) fn take(
        &mut self,
        is_live: impl Fn((u32, u32)) -> bool,
        mut choose: impl FnMut(u32) -> bool,
    ) -> Option<u32> {
        for (_, list) in &mut self.levels {
            let mut at = 0;
            while at < list.len() {
                let entry = list[at];
                if !is_live(entry) {
                    list.remove(at);
                    self.entries -= 1;
                    continue;
                }
                if choose(entry.0) {
                    list.remove(at);
                    self.entries -= 1;
                    self.live -= 1;
                    return Some(entry.0);
                }
                at += 1;
            }
        }
        None
    }

    /// Puts a waiter that was taken back to the front of its priority.
    pub(crate) fn put_back(&mut self, priority: u8, waiter: (u32, u32)) {
        self.live += 1;
        self.entries += 1;
        match self.levels.iter_mut().find(|(level, _)| *level == priority) {
            Some((_, list)) => list.push_front(waiter),
            None => {
                let at = self.levels.partition_point(|(level, _)| *level > priority);
                self.levels.insert(at, (priority, VecDeque::from([waiter])));
            }
        }
    }

    /// A waiter left: its slot's generation has moved on already.
    pub(crate) fn left(&mut self, is_live: impl Fn((u32, u32)) -> bool) {
        self.live -= 1;
        if self.live == 0 {
            self.clear();
        } else if self.entries > 32 && self.entries > 2 * self.live {
            for (_, list) in &mut self.levels {
                list.retain(|entry| is_live(*entry));
            }
            self.entries = self.live;
        }
    }

    fn clear(&mut self) {
        // One level is kept with its memory: the next burst of the revision reuses it.
        self.levels.truncate(1);
        for (_, list) in &mut self.levels {
            list.clear();
        }
        self.entries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(line: &mut Line) -> Option<u32> {
        line.take(|_| true, |_| true)
    }

    #[test]
    fn higher_priorities_go_first_and_equal_ones_in_order() {
        let mut line = Line::default();
        for (priority, waiter) in [(0, 1), (5, 2), (0, 3), (9, 4), (5, 5)] {
            line.push(priority, (waiter, 0));
        }
        let order: Vec<u32> = std::iter::from_fn(|| take(&mut line)).collect();
        assert_eq!(order, [4, 2, 5, 1, 3]);
        assert_eq!(line.len(), 0);
    }

    #[test]
    fn those_who_left_are_skipped_and_forgotten() {
        let mut line = Line::default();
        for waiter in 0..100 {
            line.push(0, (waiter, 0));
        }
        for _ in 0..90 {
            line.left(|(waiter, _)| waiter >= 90);
        }
        assert_eq!(line.len(), 10);
        assert!(line.entries <= 32 + 10, "{}", line.entries);
        assert_eq!(line.take(|(waiter, _)| waiter >= 90, |_| true), Some(90));
    }

    #[test]
    fn a_waiter_that_may_not_be_chosen_keeps_its_turn() {
        let mut line = Line::default();
        line.push(0, (1, 0));
        line.push(0, (2, 0));
        assert_eq!(line.take(|_| true, |waiter| waiter != 1), Some(2));
        assert_eq!(take(&mut line), Some(1));
    }
}
