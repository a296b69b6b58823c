use sas_core::{Balancer, Pick, SlotView};

/// Power of two choices: of two distinct instances drawn at random, the one with fewer requests; a tie is a coin flip
/// (as Knative's `randomChoice2`). When neither has room, the next one with room after the draw.
#[derive(Clone, Copy, Debug, Default)]
pub struct PowerOfTwo;

impl Balancer for PowerOfTwo {
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, _: &mut u32) -> Option<usize> {
        let (first, second) = two(slots.len(), pick.draw)?;
        let (a, b) = (&slots[first], &slots[second]);
        match (a.has_room(), b.has_room()) {
            (true, true) if b.in_flight < a.in_flight => Some(second),
            (true, true) if a.in_flight == b.in_flight && pick.draw & 1 == 1 => Some(second),
            (true, _) => Some(first),
            (false, true) => Some(second),
            (false, false) => next_with_room(slots, first),
        }
    }
}

/// Two distinct indices below `len`, uniform; the same one twice when there is only one; the coin is the draw's last
/// bit, which decides neither of them.
pub(crate) fn two(len: usize, draw: u64) -> Option<(usize, usize)> {
    match len {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let first = scale(draw >> 33, 31, len);
            let second = scale((draw >> 1) & 0xffff_ffff, 32, len - 1);
            Some((first, if second >= first { second + 1 } else { second }))
        }
    }
}

/// `draw`, uniform over `bits` bits, scaled to 0..len without a division.
fn scale(draw: u64, bits: u32, len: usize) -> usize {
    ((draw * len as u64) >> bits) as usize
}

/// The first instance with room after `from`, around.
pub(crate) fn next_with_room(slots: &[SlotView], from: usize) -> Option<usize> {
    (from + 1..slots.len()).chain(0..slots.len().min(from + 1)).find(|&at| slots[at].has_room())
}

#[cfg(test)]
mod tests {
    use sas_core::{Claim, InstanceId, RevisionKey, TenantKey};

    use super::*;

    #[test]
    fn the_two_are_distinct_and_each_pair_is_as_likely() {
        let mut counts = std::collections::BTreeMap::new();
        let mut state = 1u64;
        for _ in 0..60_000 {
            let pair = two(4, crate::draw::next(&mut state)).unwrap();
            assert_ne!(pair.0, pair.1);
            *counts.entry(pair).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 12);
        assert!(counts.values().all(|&n| (4_500..5_500).contains(&n)), "{counts:?}");
    }

    #[test]
    fn the_lower_of_two_wins_and_a_tie_is_a_fair_coin() {
        let claim = Claim::new(RevisionKey(0), TenantKey(0));
        let mut slots = [SlotView::new(InstanceId(0), u32::MAX), SlotView::new(InstanceId(1), u32::MAX)];
        let mut state = 7u64;
        let mut picks = |slots: &[SlotView]| {
            (0..10_000)
                .map(|_| {
                    let pick = Pick::new(&claim, crate::draw::next(&mut state), 0);
                    PowerOfTwo.pick(slots, &pick, &mut 0).unwrap()
                })
                .sum::<usize>()
        };
        let ties = picks(&slots);
        assert!((4_700..5_300).contains(&ties), "{ties}");
        slots[0].in_flight = 3;
        assert_eq!(picks(&slots), 10_000);
    }

    #[test]
    fn a_single_free_slot_among_many_is_found() {
        let claim = Claim::new(RevisionKey(0), TenantKey(0));
        let mut slots: Vec<SlotView> = (0..100).map(|id| SlotView::new(InstanceId(id), 1)).collect();
        for slot in &mut slots {
            slot.in_flight = 1;
        }
        assert_eq!(PowerOfTwo.pick(&slots, &Pick::new(&claim, 12345 << 30, 0), &mut 0), None);
        slots[63].in_flight = 0;
        assert_eq!(PowerOfTwo.pick(&slots, &Pick::new(&claim, 12345 << 30, 0), &mut 0), Some(63));
    }
}
