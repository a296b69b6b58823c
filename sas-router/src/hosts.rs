//! A persistent map from hosts to entries: a new version shares all but the path to what changed.
//!
//! Three levels of 32 children and leaves of about N / 32,768 entries: at a million hosts a change copies three
//! arrays of 32 pointers and a leaf of some thirty slots, instead of the table.

use std::sync::Arc;

const FAN: usize = 32;
const BITS: u32 = FAN.trailing_zeros();

type Leaf<T> = Arc<Vec<Slot<T>>>;
type Low<T> = Arc<[Leaf<T>; FAN]>;
type Mid<T> = Arc<[Low<T>; FAN]>;

#[derive(Debug)]
struct Slot<T> {
    /// The low word of the hash; leaves are sorted by it.
    tag: u32,
    entry: Arc<T>,
}

impl<T> Clone for Slot<T> {
    fn clone(&self) -> Self {
        Self { tag: self.tag, entry: Arc::clone(&self.entry) }
    }
}

/// What an entry is found by.
pub(crate) trait Hosted {
    /// The host, in lower case.
    fn host(&self) -> &[u8];
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

impl<T: Hosted> HostMap<T> {
    /// A map of nothing, in three allocations.
    pub(crate) fn new() -> Self {
        let leaf: Leaf<T> = Arc::new(Vec::new());
        let low: Low<T> = Arc::new(std::array::from_fn(|_| Arc::clone(&leaf)));
        let mid: Mid<T> = Arc::new(std::array::from_fn(|_| Arc::clone(&low)));
        Self(std::array::from_fn(|_| Arc::clone(&mid)))
    }

    /// The entry of `host`, which has this `hash`.
    pub(crate) fn get(&self, hash: u64, host: &[u8]) -> Option<&Arc<T>> {
        let (top, mid, low, tag) = path(hash);
        let leaf = &self.0[top][mid][low];
        let from = leaf.partition_point(|slot| slot.tag < tag);
        leaf[from..]
            .iter()
            .take_while(|slot| slot.tag == tag)
            .find(|slot| slot.entry.host() == host)
            .map(|slot| &slot.entry)
    }

    /// Puts `entry` in, and gives back what stood there.
    pub(crate) fn insert(&mut self, hash: u64, entry: Arc<T>) -> Option<Arc<T>> {
        let (tag, leaf) = self.leaf(hash);
        let from = leaf.partition_point(|slot| slot.tag < tag);
        for slot in leaf[from..].iter_mut().take_while(|slot| slot.tag == tag) {
            if slot.entry.host() == entry.host() {
                return Some(std::mem::replace(&mut slot.entry, entry));
            }
        }
        leaf.insert(from, Slot { tag, entry });
        None
    }

    /// Takes the entry of `host` out.
    pub(crate) fn remove(&mut self, hash: u64, host: &[u8]) -> Option<Arc<T>> {
        self.get(hash, host)?;
        let (tag, leaf) = self.leaf(hash);
        let at = leaf.iter().position(|slot| slot.tag == tag && slot.entry.host() == host)?;
        Some(leaf.remove(at).entry)
    }

    /// The leaf of a hash, its own and that of its parents made private to this version.
    fn leaf(&mut self, hash: u64) -> (u32, &mut Vec<Slot<T>>) {
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

    #[derive(Debug, PartialEq)]
    struct Named(String, u32);

    impl Hosted for Named {
        fn host(&self) -> &[u8] {
            self.0.as_bytes()
        }
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
            map.insert(hash(n), Arc::new(Named(n.to_string(), n)));
        }
        let before = map.clone();
        map.insert(hash(7), Arc::new(Named("7".into(), 0)));
        let copied = |one: &HostMap<Named>, two: &HostMap<Named>| {
            one.0.iter().zip(&two.0).filter(|(one, two)| !Arc::ptr_eq(one, two)).count()
        };
        assert_eq!(copied(&before, &map), 1, "of the 32 children of the root");
        let (top, mid, low, _) = path(hash(7));
        let kept = (0..FAN).filter(|at| *at != low);
        for at in kept {
            assert!(Arc::ptr_eq(&before.0[top][mid][at], &map.0[top][mid][at]), "leaf {at} was copied");
        }
        assert_eq!(before.get(hash(7), b"7").unwrap().1, 7);
        assert_eq!(map.get(hash(7), b"7").unwrap().1, 0);
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
                        let entry = Arc::new(Named(key.to_string(), value));
                        let before = map.insert(hash(key), entry).map(|named| named.1);
                        prop_assert_eq!(before, model.insert(key, value));
                    }
                    Step::Remove(key) => {
                        let before = map.remove(hash(key), key.to_string().as_bytes()).map(|named| named.1);
                        prop_assert_eq!(before, model.remove(&key));
                    }
                }
                for key in (0..=u8::MAX).step_by(7) {
                    let host = key.to_string();
                    let value = |map: &HostMap<Named>| map.get(hash(key), host.as_bytes()).map(|named| named.1);
                    prop_assert_eq!(value(&map), model.get(&key).copied());
                    prop_assert_eq!(value(&old), old_model.get(&key).copied());
                }
            }
        }
    }
}
