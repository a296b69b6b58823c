//! The active revisions of one shard: a row for each, and the loads of a visit in the order of the rows.

use std::{
    any::Any,
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    sync::Arc,
};

use sas_core::{Decision, Deployed, Load, NamedValues, RevisionKey, Scaler, Timestamp};

use crate::{govern::Governor, history::History, window::Nanos};

/// An active revision.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: RevisionKey,
    pub(crate) deployed: Arc<Deployed>,
    /// Index of its scaler; `None`: there is none that can serve it.
    pub(crate) scaler: Option<u32>,
    pub(crate) governor: Governor,
    pub(crate) history: Option<Box<History>>,
    pub(crate) desired: Option<u32>,
    pub(crate) seen: Nanos,
    pub(crate) sequence: u64,
    pub(crate) asleep: bool,
}

/// The load of a row at a visit.
pub(crate) struct Seen {
    pub(crate) load: Load,
    pub(crate) named: NamedValues,
    pub(crate) row: u32,
    /// Index of its scaler, as in [`Entry`].
    pub(crate) scaler: Option<u32>,
    pub(crate) elapsed: Nanos,
}

/// No load has this place.
const NOBODY: u32 = u32::MAX;

/// One shard's share of all state.
pub(crate) struct Shard {
    pub(crate) rows: HashMap<RevisionKey, u32>,
    pub(crate) entries: Vec<Option<Entry>>,
    free: Vec<u32>,
    pub(crate) states: Vec<Box<dyn Any + Send>>,
    pub(crate) wakes: BinaryHeap<Reverse<(Timestamp, u32, RevisionKey)>>,
    /// The revisions and rows in the order of the last visit. The next one has almost the same, and to look there
    /// first spares a search for each.
    order: Vec<(RevisionKey, u32)>,
    turn: usize,
    /// For each row the place of its load in this visit, else [`NOBODY`].
    seats: Vec<u32>,
    /// Kept between ticks, so that a tick allocates nothing.
    pub(crate) loads: Vec<Seen>,
    pub(crate) turns: Vec<u32>,
    pub(crate) decisions: Vec<Decision>,
}

impl Shard {
    pub(crate) fn new(scalers: &[Arc<dyn Scaler>]) -> Self {
        Self {
            rows: HashMap::new(),
            entries: Vec::new(),
            free: Vec::new(),
            states: scalers.iter().map(|scaler| scaler.new_states()).collect(),
            wakes: BinaryHeap::new(),
            order: Vec::new(),
            turn: 0,
            seats: Vec::new(),
            loads: Vec::new(),
            turns: Vec::new(),
            decisions: Vec::new(),
        }
    }

    pub(crate) fn entry(&self, row: u32) -> Option<&Entry> {
        self.entries[row as usize].as_ref()
    }

    /// The row of a revision, if it has one.
    pub(crate) fn row(&mut self, revision: RevisionKey) -> Option<u32> {
        // One or two that were there at the last visit are gone since.
        let ahead = self.order.iter().skip(self.turn).take(3);
        if let Some((ahead, row)) =
            ahead.enumerate().find_map(|(ahead, (key, row))| (*key == revision).then_some((ahead, *row)))
        {
            self.turn += ahead + 1;
            return Some(row);
        }
        self.rows.get(&revision).copied()
    }

    /// Gives an active revision its row.
    pub(crate) fn add(&mut self, entry: Entry) -> u32 {
        let key = entry.key;
        let row = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        self.entries[row as usize] = Some(entry);
        self.rows.insert(key, row);
        row
    }

    /// Takes a row out.
    pub(crate) fn remove(&mut self, row: u32) -> Option<Entry> {
        let entry = self.entries[row as usize].take()?;
        self.rows.remove(&entry.key);
        self.free.push(row);
        Some(entry)
    }

    /// Puts the loads of a visit, and the rows that the next will look for, in order: `turns` become the places of the
    /// loads by row, so that all that is kept of the rows is met as it lies in memory. A row that was visited twice
    /// has its further turns at the end.
    pub(crate) fn seat(&mut self, loads: &[Seen], turns: &mut Vec<u32>) {
        self.turn = 0;
        self.order.clear();
        self.seats.clear();
        self.seats.resize(self.entries.len(), NOBODY);
        turns.clear();
        let mut again = false;
        for (place, seen) in (0..).zip(loads) {
            self.order.push((seen.load.revision, seen.row));
            let seat = &mut self.seats[seen.row as usize];
            again |= *seat != NOBODY;
            if *seat == NOBODY {
                *seat = place;
            }
        }
        turns.extend(self.seats.iter().filter(|seat| **seat != NOBODY));
        if again {
            turns.extend(
                (0..)
                    .zip(loads)
                    .filter_map(|(place, seen)| (self.seats[seen.row as usize] != place).then_some(place)),
            );
        }
    }

    /// Rows that the last visit did not see.
    pub(crate) fn unseen(&self) -> impl Iterator<Item = u32> + use<'_> {
        (0..).zip(&self.seats).filter(|(_, seat)| **seat == NOBODY).map(|(row, _)| row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(key: u64, row: u32) -> Seen {
        Seen { load: Load::idle(RevisionKey(key)), named: NamedValues::NONE, row, scaler: None, elapsed: 0 }
    }

    fn shard(entries: usize) -> Shard {
        let mut shard = Shard::new(&[]);
        shard.entries.resize_with(entries, || None);
        shard
    }

    #[test]
    fn turns_are_by_row_and_a_second_turn_of_a_row_comes_last() {
        let mut shard = shard(5);
        let mut turns = Vec::new();
        shard.seat(&[seen(10, 3), seen(11, 0), seen(10, 3), seen(12, 2)], &mut turns);
        assert_eq!(turns, [1, 3, 0, 2]);
        assert_eq!(shard.unseen().collect::<Vec<_>>(), [1, 4]);
    }

    #[test]
    fn a_row_is_found_near_its_turn_of_the_last_visit_and_else_by_its_key() {
        let mut shard = shard(6);
        let all: Vec<_> = (0..6).map(|n| seen(100 + u64::from(n), 5 - n)).collect();
        shard.rows = all.iter().map(|seen| (seen.load.revision, seen.row)).collect();
        shard.seat(&all, &mut Vec::new());
        // One is gone, a new one comes between, then four are gone, and one is out of its order.
        for (key, row) in
            [(100, Some(5)), (102, Some(3)), (900, None), (103, Some(2)), (105, Some(0)), (101, Some(4))]
        {
            assert_eq!(shard.row(RevisionKey(key)), row, "{key}");
        }
    }
}
