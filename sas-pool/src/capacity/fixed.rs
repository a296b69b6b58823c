use sas_core::{CapacityInput, CapacityPolicy};
use serde::{Deserialize, Serialize};

use super::within;

/// Always the same size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Static {
    /// How many stems are held at any time.
    pub size: u32,
}

impl Static {
    /// Holds `size` stems, within the bounds of each input.
    pub const fn new(size: u32) -> Self {
        Self { size }
    }
}

impl CapacityPolicy for Static {
    fn target(&mut self, input: &CapacityInput) -> u32 {
        within(f64::from(self.size), input)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sas_core::Timestamp;

    use super::*;

    #[test]
    fn the_bounds_win_over_the_size() {
        let mut input = CapacityInput::new(Timestamp(0), Duration::from_secs(1), 9);
        assert_eq!(Static::new(7).target(&input), 7);
        (input.min, input.max) = (2, 5);
        assert_eq!((Static::new(7).target(&input), Static::new(0).target(&input)), (5, 2));
    }
}
