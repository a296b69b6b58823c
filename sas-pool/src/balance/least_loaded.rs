use sas_core::{Balancer, Pick, SlotView};

/// The instance with the fewest requests; among equals a random one. Looks at all of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoaded;

impl Balancer for LeastLoaded {
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, _: &mut u32) -> Option<usize> {
        let least = slots.iter().filter(|slot| slot.has_room()).map(|slot| slot.in_flight).min()?;
        let equal =
            || slots.iter().enumerate().filter(|(_, slot)| slot.has_room() && slot.in_flight == least);
        let chosen = pick.draw % equal().count() as u64;
        equal().nth(chosen as usize).map(|(at, _)| at)
    }
}

#[cfg(test)]
mod tests {
    use sas_core::{Claim, InstanceId, RevisionKey, TenantKey};

    use super::*;

    #[test]
    fn the_least_loaded_wins_and_equals_share() {
        let claim = Claim::new(RevisionKey(0), TenantKey(0));
        let mut slots: Vec<SlotView> = (0..4).map(|id| SlotView::new(InstanceId(id), 9)).collect();
        slots[0].in_flight = 2;
        slots[1].in_flight = 1;
        slots[2].in_flight = 1;
        slots[3].ejected = true;
        let mut seen = std::collections::BTreeSet::new();
        let mut state = 3;
        for _ in 0..100 {
            let pick = Pick::new(&claim, crate::draw::next(&mut state), 0);
            seen.extend(LeastLoaded.pick(&slots, &pick, &mut 0));
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(LeastLoaded.pick(&[], &Pick::new(&claim, 0, 0), &mut 0), None);
    }
}
