//! A persistent map from hosts to entries: a new version shares all but the path to what changed.
//!
//! Three levels of 32 children and leaves of about N / 32,768 entries: at a million hosts a change copies three
//! arrays of 32 pointers and a leaf of some thirty slots, instead of the table. A leaf lies in two blocks, its slots
//! with their entries and the names of its hosts, so that a look-up in a large table waits for memory three times.

use std::sync::Arc;

const FAN: usize = 32;
const BITS: u32 = FAN.trailing_zeros();

type Low<T> = Arc<[Arc<Leaf<T>>; FAN]>;
type Mid<T> = Arc<[Low<T>; FAN]>;

#[derive(Clone, Debug)]
struct Leaf<T> {
    slots: Vec<Slot<T>>,
    /// The hosts of the slots, in lower case, one after the other.
    names: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Slot<T> {
    /// The low word of the hash; slots are sorted by it.
    tag: u32,
    /// Where its host ends among the names.
    end: u32,
    entry: T,
}

/// The map. Cloning it costs 32 reference counts.
#[derive(Debug)]
pub(crate) struct HostMap<T>([Mid<T>; FAN]);

impl<T> Clone for HostMap<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

fn path(hash: u64) -> (usize, usize, usize, u32) {
    let step = |level: u32| (hash >> (64 - BITS * level)) as usize % FAN;
    (step(1), step(2), step(3), hash as u32)
}

impl<T> Leaf<T> {
    /// Where the slots of `tag` begin, or would. Tags are spread evenly, so the place is nearly known.
    fn first(&self, tag: u32) -> usize {
        let slots = self.slots.as_slice();
        let mut at = ((u64::from(tag) * slots.len() as u64) >> 32) as usize;
        while slots.get(at).is_some_and(|slot| slot.tag < tag) {
            at += 1;
        }
        while at > 0 && slots[at - 1].tag >= tag {
            at -= 1;
        }
        at
    }

    /// Where the name of the slot at `at` begins.
    fn begin(&self, at: usize) -> usize {
        if at == 0 { 0 } else { self.slots[at - 1].end as usize }
    }

    /// The slot of a host, of those from `first` on.
    fn find(&self, first: usize, tag: u32, host: &[u8]) -> Option<usize> {
        let same = self.slots[first..].iter().take_while(|slot| slot.tag == tag).count();
        (first..first + same).find(|&at| self.names[self.begin(at)..self.slots[at].end as usize] == *host)
    }

    fn insert(&mut self, at: usize, tag: u32, host: &[u8], entry: T) {
        let begin = self.begin(at);
        make_room(&mut self.slots, 1);
        make_room(&mut self.names, host.len());
        self.names.extend_from_slice(host);
        self.names[begin..].rotate_right(host.len());
        self.slots.insert(at, Slot { tag, end: begin as u32, entry });
        for slot in &mut self.slots[at..] {
            slot.end += host.len() as u32;
        }
    }

    fn remove(&mut self, at: usize) -> T {
        let begin = self.begin(at);
        let slot = self.slots.remove(at);
        self.names.drain(begin..slot.end as usize);
        let length = slot.end - begin as u32;
        for slot in &mut self.slots[at..] {
            slot.end -= length;
        }
        slot.entry
    }
}

/// Leaves are many, and most are as large as they will ever be: they grow by an eighth, not to the double.
fn make_room<T>(list: &mut Vec<T>, more: usize) {
    if list.capacity() - list.len() < more {
        list.reserve_exact(more + list.len() / 8);
    }
}

impl<T: Clone> HostMap<T> {
    /// A map of nothing, in three allocations.
    pub(crate) fn new() -> Self {
        let leaf = Arc::new(Leaf { slots: Vec::new(), names: Vec::new() });
        let low: Low<T> = Arc::new(std::array::from_fn(|_| Arc::clone(&leaf)));
        let mid: Mid<T> = Arc::new(std::array::from_fn(|_| Arc::clone(&low)));
        Self(std::array::from_fn(|_| Arc::clone(&mid)))
    }

    /// The entry of `host`, which has this `hash`.
    pub(crate) fn get(&self, hash: u64, host: &[u8]) -> Option<&T> {
        let (top, mid, low, tag) = path(hash);
        let leaf = &self.0[top][mid][low];
        let at = leaf.find(leaf.first(tag), tag, host)?;
        Some(&leaf.slots[at].entry)
    }

    /// Whether two hashes share a leaf.
    pub(crate) fn are_near(one: u64, two: u64) -> bool {
        (one ^ two) >> (64 - 3 * BITS) == 0
    }

    /// Makes room for so many hosts more, of so many bytes, in the leaf of `hash`.
    pub(crate) fn reserve(&mut self, hash: u64, hosts: usize, bytes: usize) {
        let (_, leaf) = self.leaf(hash);
        make_room(&mut leaf.slots, hosts);
        make_room(&mut leaf.names, bytes);
    }

    /// Puts `entry` in, and gives back what stood there.
    pub(crate) fn insert(&mut self, hash: u64, host: &[u8], entry: T) -> Option<T> {
        let (tag, leaf) = self.leaf(hash);
        let first = leaf.first(tag);
        match leaf.find(first, tag, host) {
            Some(at) => Some(std::mem::replace(&mut leaf.slots[at].entry, entry)),
            None => {
                leaf.insert(first, tag, host, entry);
                None
            }
        }
    }

    /// Takes the entry of `host` out.
    pub(crate) fn remove(&mut self, hash: u64, host: &[u8]) -> Option<T> {
        self.get(hash, host)?;
        let (tag, leaf) = self.leaf(hash);
        let at = leaf.find(leaf.first(tag), tag, host)?;
        Some(leaf.remove(at))
    }

    /// The leaf of a hash, its own and that of its parents made private to this version.
    fn leaf(&mut self, hash: u64) -> (u32, &mut Leaf<T>) {
        let (top, mid, low, tag) = path(hash);
        let mids = Arc::make_mut(&mut self.0[top]);
        let lows = Arc::make_mut(&mut mids[mid]);
        (tag, Arc::make_mut(&mut lows[low]))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_plain_host_takes_32_bytes_and_its_name() {
        assert_eq!(size_of::<Slot<crate::rule::Entry>>(), 32);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8, u32),
        Remove(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        prop::collection::vec(
            prop_oneof![
                (any::<u8>(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
                any::<u8>().prop_map(Step::Remove),
            ],
            0..200,
        )
    }

    #[test]
    fn a_change_copies_the_path_to_it_and_shares_the_rest() {
        let mut map = HostMap::new();
        let hash = |n: u32| crate::seed::mix(u64::from(n));
        for n in 0..20_000 {
            map.insert(hash(n), n.to_string().as_bytes(), n);
        }
        let before = map.clone();
        map.insert(hash(7), b"7", 0);
        let copied = |one: &HostMap<u32>, two: &HostMap<u32>| {
            one.0.iter().zip(&two.0).filter(|(one, two)| !Arc::ptr_eq(one, two)).count()
        };
        assert_eq!(copied(&before, &map), 1, "of the 32 children of the root");
        let (top, mid, low, _) = path(hash(7));
        let kept = (0..FAN).filter(|at| *at != low);
        for at in kept {
            assert!(Arc::ptr_eq(&before.0[top][mid][at], &map.0[top][mid][at]), "leaf {at} was copied");
        }
        assert_eq!(before.get(hash(7), b"7"), Some(&7));
        assert_eq!(map.get(hash(7), b"7"), Some(&0));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Few distinct hashes, so that tags collide and leaves fill.
        #[test]
        fn behaves_like_a_map_and_leaves_older_versions_alone(steps in steps(), distinct in 1_u64..40) {
            let hash = |key: u8| crate::seed::mix(u64::from(key) % distinct);
            let mut map = HostMap::new();
            let mut model: BTreeMap<u8, u32> = BTreeMap::new();
            for step in steps {
                let (old, old_model) = (map.clone(), model.clone());
                match step {
                    Step::Insert(key, value) => {
                        let before = map.insert(hash(key), key.to_string().as_bytes(), value);
                        prop_assert_eq!(before, model.insert(key, value));
                    }
                    Step::Remove(key) => {
                        let before = map.remove(hash(key), key.to_string().as_bytes());
                        prop_assert_eq!(before, model.remove(&key));
                    }
                }
                for key in (0..=u8::MAX).step_by(7) {
                    let host = key.to_string();
                    let value = |map: &HostMap<u32>| map.get(hash(key), host.as_bytes()).copied();
                    prop_assert_eq!(value(&map), model.get(&key).copied());
                    prop_assert_eq!(value(&old), old_model.get(&key).copied());
                }
            }
        }
    }
}
