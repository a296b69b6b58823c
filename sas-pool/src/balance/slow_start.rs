use std::time::Duration;

use sas_core::{Balancer, Pick, SlotView};

use super::p2c::{next_with_room, two};

/// Power of two choices in which a fresh instance counts as more loaded than it is: its weight grows linearly from
/// `floor` to 1 over `window`, and of two instances the one with the lower (requests + 1) / weight wins. For programs
/// that are slow until their caches and compilers are warm.
#[derive(Clone, Copy, Debug)]
pub struct SlowStart {
    window_ms: u32,
    floor: f64,
}

impl SlowStart {
    /// Full weight after `window`; at first a tenth of it.
    pub fn new(window: Duration) -> Self {
        Self { window_ms: u32::try_from(window.as_millis()).unwrap_or(u32::MAX).max(1), floor: 0.1 }
    }

    fn weight(&self, slot: &SlotView, now_ms: u32) -> f64 {
        let age = now_ms.saturating_sub(slot.ready_ms);
        (f64::from(age) / f64::from(self.window_ms)).clamp(self.floor, 1.0)
    }
}

impl Balancer for SlowStart {
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, _: &mut u32) -> Option<usize> {
        let (first, second) = two(slots.len(), pick.draw)?;
        let cost = |at: usize| (f64::from(slots[at].in_flight) + 1.0) / self.weight(&slots[at], pick.now_ms);
        match (slots[first].has_room(), slots[second].has_room()) {
            (true, true) if cost(second) < cost(first) => Some(second),
            (true, true) if cost(second) == cost(first) && pick.draw & 1 == 1 => Some(second),
            (true, _) => Some(first),
            (false, true) => Some(second),
            (false, false) => next_with_room(slots, first),
        }
    }
}

#[cfg(test)]
mod tests {
    use sas_core::{Claim, InstanceId, RevisionKey, TenantKey};

    use super::*;

    /// Of 10,000 requests that stay for a while, how many a third instance gets that became ready at `ready_ms`.
    fn share(ready_ms: u32, now_ms: u32) -> u32 {
        let claim = Claim::new(RevisionKey(0), TenantKey(0));
        let balancer = SlowStart::new(Duration::from_secs(10));
        let mut slots: Vec<SlotView> = (0..3).map(|id| SlotView::new(InstanceId(id), u32::MAX)).collect();
        slots[2].ready_ms = ready_ms;
        let mut state = 5;
        let (mut running, mut fresh) = (std::collections::VecDeque::new(), 0);
        for _ in 0..10_000 {
            let pick = Pick::new(&claim, crate::draw::next(&mut state), now_ms);
            let at = balancer.pick(&slots, &pick, &mut 0).unwrap();
            slots[at].in_flight += 1;
            fresh += u32::from(at == 2);
            running.push_back(at);
            if running.len() > 90 {
                slots[running.pop_front().unwrap()].in_flight -= 1;
            }
        }
        fresh
    }

    #[test]
    fn a_fresh_instance_gets_a_growing_share_and_an_even_one_in_the_end() {
        let (young, middle, grown) = (share(100_000, 100_000), share(100_000, 105_000), share(0, 100_000));
        assert!(young < middle && middle < grown, "{young} {middle} {grown}");
        assert!((400..900).contains(&young), "about 1/21 of it: {young}");
        assert!((1_700..2_300).contains(&middle), "about 1/5 of it: {middle}");
        assert!((3_100..3_600).contains(&grown), "a third: {grown}");
    }
}
