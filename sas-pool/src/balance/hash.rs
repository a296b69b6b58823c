use sas_core::{Balancer, Claim, InstanceId, Pick, SlotView};

use crate::draw;

/// A home for each key, with bounded loads (Mirrokni, Thorup and Zadimoghaddam, SODA 2018): a request goes to the home
/// of its key unless that has `factor` times its even share to do, else to the next home in the key's own order.
///
/// Homes are by rendezvous hashing, which needs no ring: when an instance goes, only its keys move, and when one comes
/// it takes an even share from all. A request without a key gets a home at random, under the same bound.
#[derive(Clone, Copy, Debug)]
pub struct BoundedHash {
    factor: f64,
}

impl BoundedHash {
    /// No instance has more than `factor` times the mean to do; 1.25 is usual, and below 1 counts as 1.
    pub fn new(factor: f64) -> Self {
        Self { factor: factor.max(1.0) }
    }
}

impl Default for BoundedHash {
    fn default() -> Self {
        Self::new(1.25)
    }
}

impl Balancer for BoundedHash {
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, _: &mut u32) -> Option<usize> {
        let usable = || slots.iter().filter(|slot| !slot.ejected);
        let requests: f64 = usable().map(|slot| f64::from(slot.in_flight)).sum::<f64>() + 1.0;
        let bound = (self.factor * requests / usable().count().max(1) as f64).ceil();
        let key = key_of(pick.claim, pick.draw);
        best(slots, key, |slot| slot.has_room() && f64::from(slot.in_flight) < bound)
            .or_else(|| best(slots, key, SlotView::has_room))
    }
}

/// The key of a claim, or a random one.
fn key_of(claim: &Claim, draw: u64) -> u64 {
    claim.affinity.unwrap_or(draw)
}

/// The usable instance that comes first in the order of `key`.
pub(crate) fn best(slots: &[SlotView], key: u64, usable: impl Fn(&SlotView) -> bool) -> Option<usize> {
    slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| usable(slot))
        .max_by_key(|(_, slot)| score(key, slot.id))
        .map(|(at, _)| at)
}

fn score(key: u64, id: InstanceId) -> u64 {
    draw::mix(draw::mix(key) ^ id.0.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

#[cfg(test)]
mod tests {
    use sas_core::{RevisionKey, TenantKey};

    use super::*;

    fn claim(key: u64) -> Claim {
        let mut claim = Claim::new(RevisionKey(0), TenantKey(0));
        claim.affinity = Some(key);
        claim
    }

    fn slots(ids: impl Iterator<Item = u64>) -> Vec<SlotView> {
        ids.map(|id| SlotView::new(InstanceId(id), u32::MAX)).collect()
    }

    fn home(slots: &[SlotView], key: u64) -> u64 {
        let at = BoundedHash::default().pick(slots, &Pick::new(&claim(key), key, 0), &mut 0).unwrap();
        slots[at].id.0
    }

    #[test]
    fn when_an_instance_goes_only_its_keys_move() {
        let all = slots(0..10);
        let fewer = slots((0..10).filter(|id| *id != 4));
        let mut moved = 0;
        for key in 0..2_000 {
            let before = home(&all, key);
            if before == 4 {
                moved += 1;
            } else {
                assert_eq!(home(&fewer, key), before);
            }
        }
        assert!((120..280).contains(&moved), "{moved} of 2000 lived there");
    }

    #[test]
    fn no_instance_gets_more_than_its_bounded_share_even_of_one_hot_key() {
        let mut slots = slots(0..8);
        for requests in 1..=800u32 {
            let pick = claim(7);
            let at = BoundedHash::new(1.25).pick(&slots, &Pick::new(&pick, 0, 0), &mut 0).unwrap();
            slots[at].in_flight += 1;
            let bound = (1.25 * f64::from(requests) / 8.0).ceil() as u32;
            assert!(slots.iter().all(|slot| slot.in_flight <= bound), "{requests}: {slots:?}");
        }
    }

    #[test]
    fn a_full_or_ejected_home_sends_its_keys_to_their_next_home() {
        let mut slots = slots(0..3);
        let first = home(&slots, 99) as usize;
        slots[first].ejected = true;
        let second = home(&slots, 99) as usize;
        assert_ne!(first, second);
        slots[second].limit = 0;
        assert_eq!(home(&slots, 99) as usize, 3 - first - second);
    }
}
