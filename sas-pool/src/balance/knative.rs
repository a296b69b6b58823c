use sas_core::{Balancer, Pick, SlotView};

use super::{FirstAvailable, PowerOfTwo, RoundRobin};

/// As Knative's activator: power of two choices without a limit of concurrency, the first available up to a limit
/// of 3, round robin above.
#[derive(Clone, Copy, Debug, Default)]
pub struct Knative;

impl Balancer for Knative {
    fn pick(&self, slots: &[SlotView], pick: &Pick<'_>, cursor: &mut u32) -> Option<usize> {
        match slots.first()?.limit {
            u32::MAX => PowerOfTwo.pick(slots, pick, cursor),
            0..=3 => FirstAvailable.pick(slots, pick, cursor),
            _ => RoundRobin.pick(slots, pick, cursor),
        }
    }
}
