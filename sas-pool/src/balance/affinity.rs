use std::sync::Arc;

use sas_core::{Balancer, Pick, SlotView};

use super::{PowerOfTwo, hash::best};

/// Requests of one session go to one instance while it has room, whatever else it has to do; without room, and for
/// requests without a session, another balancer chooses.
#[derive(Clone, Debug)]
pub struct SessionAffinity {
    others: Arc<dyn Balancer>,
}

impl SessionAffinity {
    /// With `others` for requests that have no session, or whose instance is full.
    pub fn new(others: Arc<dyn Balancer>) -> Self {
        Self { others }
    }
}

impl Default for SessionAffinity {
    fn default() -> Self {
        Self::new(Arc::new(PowerOfTwo))
    }
}

impl Balancer for SessionAffinity {
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, cursor: &mut u32) -> Option<usize> {
        if let Some(session) = pick.claim.affinity
            && let Some(home) = best(slots, session, |slot| !slot.ejected)
            && slots[home].has_room()
        {
            return Some(home);
        }
        self.others.pick(slots, pick, cursor)
    }
}

#[cfg(test)]
mod tests {
    use sas_core::{Claim, InstanceId, RevisionKey, TenantKey};

    use super::*;

    #[test]
    fn a_session_stays_until_its_instance_is_full_or_gone() {
        let mut slots: Vec<SlotView> = (0..5).map(|id| SlotView::new(InstanceId(id), 3)).collect();
        let mut claim = Claim::new(RevisionKey(0), TenantKey(0));
        claim.affinity = Some(77);
        let balancer = SessionAffinity::default();
        let pick = |slots: &[SlotView], draw| balancer.pick(slots, &Pick::new(&claim, draw, 0), &mut 0);
        let home = pick(&slots, 1).unwrap();
        slots[home].in_flight = 2;
        assert!((0..50).all(|draw| pick(&slots, draw << 40) == Some(home)));
        slots[home].in_flight = 3;
        assert_ne!(pick(&slots, 1).unwrap(), home);
        slots[home].in_flight = 0;
        slots[home].ejected = true;
        let second = pick(&slots, 1).unwrap();
        assert_ne!(second, home);
        assert!((0..50).all(|draw| pick(&slots, draw << 40) == Some(second)));
    }
}
