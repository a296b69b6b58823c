//! What was read of each partition, in which order it may be delivered, and how far the group's offsets may go. Pure: the
//! source asks it what comes next, and tells it what became of that.

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::record::Record;

/// Which records wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ordering {
    /// One record of a key at a time; those without a key wait for none.
    Key,
    /// One record of a partition at a time.
    Partition,
    /// None waits for another.
    None,
}

/// A partition of a topic.
pub(crate) type Place = (String, i32);

/// Records that are delivered by one call, one after the other in their lane.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) records: Vec<Record>,
    /// Cancelled when the partition went to another host before this was delivered.
    pub(crate) abandoned: CancellationToken,
    lane: Lane,
    assignment: u64,
}

impl Work {
    /// What is left of it when its records are on their way.
    pub(crate) fn receipt(&self) -> Receipt {
        Receipt {
            lane: self.lane.clone(),
            assignment: self.assignment,
            offsets: self.records.iter().map(|record| record.offset).collect(),
        }
    }
}

/// By which the ledger knows what was delivered.
#[derive(Debug)]
pub(crate) struct Receipt {
    lane: Lane,
    assignment: u64,
    offsets: Vec<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Lane {
    place: Place,
    /// `None`: all of the partition that have none.
    key: Option<Bytes>,
    /// Whether its records wait for each other.
    single: bool,
}

#[derive(Debug)]
struct Waiting {
    records: VecDeque<Record>,
    busy: bool,
}

#[derive(Debug)]
struct Partition {
    assignment: u64,
    abandoned: CancellationToken,
    /// Being given back: nothing more of it begins.
    retired: bool,
    /// The offset after the last that was read.
    next: Option<i64>,
    /// Read and not delivered, with their times.
    open: BTreeMap<i64, i64>,
    /// Calls under way.
    running: usize,
    committed: Option<i64>,
    leader_epoch: Option<i32>,
}

impl Partition {
    /// Up to where all was delivered.
    fn delivered(&self) -> Option<i64> {
        self.open.keys().next().copied().or(self.next)
    }
}

/// An offset that the group may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) place: Place,
    pub(crate) offset: i64,
    pub(crate) leader_epoch: Option<i32>,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    ordering: Ordering,
    batch: usize,
    partitions: HashMap<Place, Partition>,
    lanes: HashMap<Lane, Waiting>,
    /// Lanes from which something may begin.
    ready: VecDeque<Lane>,
    waiting: usize,
    waiting_bytes: usize,
    assignments: u64,
}

impl Ledger {
    /// An empty ledger whose work has at most `batch` records.
    pub(crate) fn new(ordering: Ordering, batch: usize) -> Self {
        // In a batch, records of a key would stand beside each other: then the partition is the lane.
        let ordering = if batch > 1 && ordering == Ordering::Key { Ordering::Partition } else { ordering };
        Self {
            ordering,
            batch: batch.max(1),
            partitions: HashMap::new(),
            lanes: HashMap::new(),
            ready: VecDeque::new(),
            waiting: 0,
            waiting_bytes: 0,
            assignments: 0,
        }
    }

    /// Records that wait, and their bytes.
    pub(crate) fn waiting(&self) -> (usize, usize) {
        (self.waiting, self.waiting_bytes)
    }

    /// Whether something may begin.
    pub(crate) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The partition is this host's from now on.
    pub(crate) fn assign(&mut self, place: Place) {
        self.assignments += 1;
        let partition = Partition {
            assignment: self.assignments,
            abandoned: CancellationToken::new(),
            retired: false,
            next: None,
            open: BTreeMap::new(),
            running: 0,
            committed: None,
            leader_epoch: None,
        };
        self.drop_waiting(&place);
        self.partitions.insert(place, partition);
    }

    /// Takes a record in. One of a partition that is no longer this host's is left out: its next owner reads it.
    pub(crate) fn read(&mut self, record: Record, leader_epoch: Option<i32>) {
        let place = (record.topic.clone(), record.partition);
        let Some(partition) = self.partitions.get_mut(&place).filter(|partition| !partition.retired) else {
            return;
        };
        partition.open.insert(record.offset, record.timestamp);
        partition.next = Some(record.offset + 1);
        partition.committed.get_or_insert(record.offset);
        partition.leader_epoch = leader_epoch;
        let (key, single) = match self.ordering {
            Ordering::Key => match record.key.clone().filter(|key| !key.is_empty()) {
                Some(key) => (Some(key), true),
                None => (None, false),
            },
            Ordering::Partition => (None, true),
            Ordering::None => (None, false),
        };
        let lane = Lane { place, key, single };
        self.waiting += 1;
        self.waiting_bytes += record.bytes();
        let entry = self
            .lanes
            .entry(lane.clone())
            .or_insert_with(|| Waiting { records: VecDeque::new(), busy: false });
        entry.records.push_back(record);
        if entry.records.len() == 1 && !entry.busy {
            self.ready.push_back(lane);
        }
    }

    /// Where the consumer stands in a partition of which nothing is left here: markers of transactions and compacted records
    /// lie between, which nobody delivers.
    pub(crate) fn stands_at(&mut self, place: &Place, offset: i64) {
        if let Some(partition) = self.partitions.get_mut(place)
            && partition.open.is_empty()
            && Some(offset) > partition.next
        {
            partition.next = Some(offset);
        }
    }

    /// Partitions of which nothing is left to deliver.
    pub(crate) fn idle(&self) -> Vec<Place> {
        let idle =
            self.partitions.iter().filter(|(_, partition)| partition.open.is_empty() && !partition.retired);
        idle.map(|(place, _)| place.clone()).collect()
    }

    /// What may begin now.
    pub(crate) fn next(&mut self) -> Option<Work> {
        let lane = self.ready.pop_front()?;
        let waiting = self.lanes.get_mut(&lane)?;
        let count = waiting.records.len().min(self.batch);
        let records: Vec<Record> = waiting.records.drain(..count).collect();
        waiting.busy = lane.single;
        if waiting.records.is_empty() {
            if !lane.single {
                self.lanes.remove(&lane);
            }
        } else if !lane.single {
            self.ready.push_back(lane.clone());
        }
        self.waiting -= records.len();
        self.waiting_bytes -= records.iter().map(Record::bytes).sum::<usize>();
        let partition = self.partitions.get_mut(&lane.place)?;
        partition.running += 1;
        Some(Work { records, abandoned: partition.abandoned.clone(), assignment: partition.assignment, lane })
    }

    /// What began is over. Those of its offsets that were not delivered stay open, and the group's offset before them.
    pub(crate) fn over(&mut self, receipt: &Receipt, delivered: impl Fn(usize) -> bool) {
        let Some(partition) = self.partitions.get_mut(&receipt.lane.place) else { return };
        if partition.assignment != receipt.assignment {
            return;
        }
        partition.running -= 1;
        let mut all = true;
        for (at, offset) in receipt.offsets.iter().enumerate() {
            if delivered(at) {
                partition.open.remove(offset);
            } else {
                all = false;
            }
        }
        if !receipt.lane.single {
            return;
        }
        let Some(waiting) = self.lanes.get_mut(&receipt.lane) else { return };
        if !all {
            // What failed comes first, and it comes again by another run: nothing passes it here.
            return;
        }
        waiting.busy = false;
        if waiting.records.is_empty() {
            self.lanes.remove(&receipt.lane);
        } else {
            self.ready.push_back(receipt.lane.clone());
        }
    }

    /// Offsets that the group does not have yet and may.
    pub(crate) fn commits(&self) -> Vec<Commit> {
        let all = self.partitions.iter().filter_map(|(place, partition)| {
            let offset = partition.delivered()?;
            // None: it is not known what the group has.
            (Some(offset) > partition.committed).then(|| Commit {
                place: place.clone(),
                offset,
                leader_epoch: partition.leader_epoch,
            })
        });
        all.collect()
    }

    /// The group has this offset now.
    pub(crate) fn committed(&mut self, commit: &Commit) {
        if let Some(partition) = self.partitions.get_mut(&commit.place) {
            partition.committed = partition.committed.max(Some(commit.offset));
        }
    }

    /// Begins nothing more of these partitions, which are to be given back.
    pub(crate) fn retire(&mut self, places: &[Place]) {
        for place in places {
            self.drop_waiting(place);
            if let Some(partition) = self.partitions.get_mut(place) {
                partition.retired = true;
            }
        }
    }

    /// Breaks off what is under way of these partitions.
    pub(crate) fn abandon(&self, places: &[Place]) {
        for partition in places.iter().filter_map(|place| self.partitions.get(place)) {
            partition.abandoned.cancel();
        }
    }

    /// Calls under way of these partitions.
    pub(crate) fn running(&self, places: &[Place]) -> usize {
        places.iter().filter_map(|place| self.partitions.get(place)).map(|partition| partition.running).sum()
    }

    /// The partitions are another's.
    pub(crate) fn remove(&mut self, places: &[Place]) {
        for place in places {
            self.drop_waiting(place);
            self.partitions.remove(place);
        }
    }

    /// All partitions that are this host's.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.partitions.keys().cloned().collect()
    }

    /// The time of the oldest record that was read and not delivered, in milliseconds since 1970.
    pub(crate) fn oldest(&self) -> Option<i64> {
        let firsts = self.partitions.values().filter_map(|partition| partition.open.values().next());
        firsts.copied().filter(|millis| *millis >= 0).min()
    }

    /// Forgets what waits. It stays open: the group's offset must not pass it.
    fn drop_waiting(&mut self, place: &Place) {
        let (mut count, mut bytes) = (0, 0);
        self.lanes.retain(|lane, waiting| {
            if lane.place != *place {
                return true;
            }
            count += waiting.records.len();
            bytes += waiting.records.iter().map(Record::bytes).sum::<usize>();
            false
        });
        self.ready.retain(|lane| lane.place != *place);
        self.waiting -= count;
        self.waiting_bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place() -> Place {
        ("orders".to_owned(), 0)
    }

    fn record(offset: i64, key: &str) -> Record {
        let key = (!key.is_empty()).then(|| Bytes::from(key.to_owned()));
        Record { topic: place().0, offset, timestamp: offset, key, ..Record::default() }
    }

    fn ledger(ordering: Ordering, batch: usize, keys: &[&str]) -> Ledger {
        let mut ledger = Ledger::new(ordering, batch);
        ledger.assign(place());
        for (offset, key) in (10..).zip(keys) {
            ledger.read(record(offset, key), Some(3));
        }
        ledger
    }

    fn begun(ledger: &mut Ledger) -> Vec<(Vec<i64>, Receipt)> {
        let begun = std::iter::from_fn(|| ledger.next());
        begun
            .map(|work| (work.records.iter().map(|record| record.offset).collect(), work.receipt()))
            .collect()
    }

    fn offsets(begun: &[(Vec<i64>, Receipt)]) -> Vec<Vec<i64>> {
        begun.iter().map(|(offsets, _)| offsets.clone()).collect()
    }

    fn commit(ledger: &Ledger) -> Option<i64> {
        ledger.commits().first().map(|commit| commit.offset)
    }

    #[test]
    fn one_of_a_key_is_under_way_and_others_pass() {
        let mut ledger = ledger(Ordering::Key, 1, &["a", "a", "b", "", "", "a"]);
        let first = begun(&mut ledger);
        assert_eq!(offsets(&first), [[10], [12], [13], [14]]);
        assert_eq!((ledger.waiting().0, ledger.has_work()), (2, false));
        ledger.over(&first[0].1, |_| true);
        assert_eq!(offsets(&begun(&mut ledger)), [[11]]);
    }

    #[test]
    fn the_offset_follows_the_oldest_that_is_not_delivered() {
        let mut ledger = ledger(Ordering::None, 1, &["a", "a", "b"]);
        let work = begun(&mut ledger);
        assert_eq!((work.len(), commit(&ledger), ledger.oldest()), (3, None, Some(10)));
        ledger.over(&work[1].1, |_| true);
        assert_eq!(commit(&ledger), None, "10 is under way");
        ledger.over(&work[0].1, |_| true);
        assert_eq!(commit(&ledger), Some(12));
        let one = ledger.commits().remove(0);
        assert_eq!(one.leader_epoch, Some(3));
        ledger.committed(&one);
        assert_eq!(commit(&ledger), None, "the group has it");
        ledger.over(&work[2].1, |_| true);
        assert_eq!(commit(&ledger), Some(13));
        ledger.stands_at(&place(), 15);
        assert_eq!((commit(&ledger), ledger.idle()), (Some(15), vec![place()]), "markers lie between");
    }

    #[test]
    fn nothing_passes_what_failed() {
        for ordering in [Ordering::Key, Ordering::Partition] {
            let mut ledger = ledger(ordering, 1, &["a", "a"]);
            let work = begun(&mut ledger);
            ledger.over(&work[0].1, |_| false);
            assert_eq!((ledger.next().is_none(), commit(&ledger)), (true, None));
        }
    }

    #[test]
    fn batches_are_of_one_partition_and_one_at_a_time_where_there_is_order() {
        for (ordering, expected) in
            [(Ordering::Key, vec![vec![10, 11]]), (Ordering::None, vec![vec![10, 11], vec![12]])]
        {
            let mut ledger = ledger(ordering, 2, &["a", "b", "a"]);
            let work = begun(&mut ledger);
            assert_eq!(offsets(&work), expected);
            ledger.over(&work[0].1, |at| at == 0);
            assert_eq!(commit(&ledger), Some(11), "the second of the batch failed");
        }
    }

    #[test]
    fn what_is_given_back_begins_no_more_and_what_was_lost_does_not_count() {
        let mut ledger = ledger(Ordering::Key, 1, &["a", "a", "b"]);
        let work = begun(&mut ledger);
        ledger.retire(&[place()]);
        ledger.read(record(13, "c"), None);
        assert_eq!((ledger.waiting(), ledger.running(&[place()])), ((0, 0), 2));
        ledger.over(&work[0].1, |_| true);
        assert_eq!((ledger.next().is_none(), commit(&ledger)), (true, Some(11)));
        ledger.remove(&[place()]);
        ledger.assign(place());
        ledger.read(record(11, "a"), None);
        ledger.over(&work[1].1, |_| true);
        assert_eq!(offsets(&begun(&mut ledger)), [[11]], "a receipt of before says nothing of now");
    }
}
