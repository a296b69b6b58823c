use sas_core::{Balancer, Pick, SlotView};

/// The first instance with room, in the order in which they became ready, so that the last ones fall idle and can go.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstAvailable;

impl Balancer for FirstAvailable {
    fn pick(&self, slots: &[SlotView], _: &Pick<'_>, _: &mut u32) -> Option<usize> {
        slots.iter().position(SlotView::has_room)
    }
}
