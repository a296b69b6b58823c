use sas_core::{Balancer, Pick, SlotView};

/// Each instance with room in its turn. The index, its reset when the list became shorter and its rest when nothing
/// is free are Knative's, to the pick.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundRobin;

impl Balancer for RoundRobin {
    fn pick(&self, slots: &[SlotView], _: &Pick<'_>, cursor: &mut u32) -> Option<usize> {
        let mut from = *cursor as usize;
        if from >= slots.len() {
            from = 0;
            *cursor = 0;
        }
        let picked = (from..slots.len()).chain(0..from).find(|&at| slots[at].has_room())?;
        // May equal the length: the next pick begins again.
        *cursor = picked as u32 + 1;
        Some(picked)
    }
}
