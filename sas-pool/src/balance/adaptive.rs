use sas_core::{Balancer, Pick, SlotView};

use super::PowerOfTwo;

/// The default: power of two choices.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adaptive(PowerOfTwo);

impl Balancer for Adaptive {
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, cursor: &mut u32) -> Option<usize> {
        self.0.pick(slots, pick, cursor)
    }
}
