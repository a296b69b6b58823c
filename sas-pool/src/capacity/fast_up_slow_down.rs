use sas_core::{CapacityInput, CapacityPolicy, SpecErrors};
use serde::{Deserialize, Serialize};

use super::{check, within};

/// "Expand fast, shrink slowly" on the volume alone.
///
/// With the demand `d` of the slot that ended, the level `l` and the share `down` by which it may fall:
///
/// ```text
/// l ← d                      when d ≥ l      (up at once)
/// l ← l + down · (d − l)     when d < l      (down by a share of the distance)
/// size = ⌈head_room · l⌉, held within min and max
/// ```
///
/// With a head-room of 1 or more it guarantees, for every series:
/// - a step is followed within two slots: the slot after the one that showed it has room for it;
/// - shrinking is bounded: `size` falls by at most `down · size + 1` in a slot;
/// - constant demand does not oscillate: the size never grows under it, and stays where it ends;
/// - `min ≤ size ≤ max`.
///
/// The first slot sets the level.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FastUpSlowDown {
    down: f64,
    head_room: f64,
    level: Option<f64>,
}

impl Default for FastUpSlowDown {
    /// Shrinks by a tenth of the distance per slot, no head-room.
    fn default() -> Self {
        Self { down: 0.1, head_room: 1.0, level: None }
    }
}

impl FastUpSlowDown {
    /// Shrinks by the share `down` (0 to 1) of the distance per slot; `head_room` (0 to 100) multiplies the level.
    ///
    /// # Errors
    /// A parameter that is not a number or out of its range.
    pub fn new(down: f64, head_room: f64) -> Result<Self, SpecErrors> {
        let mut errors = SpecErrors::default();
        check(&mut errors, "down", down, 0.0, 1.0);
        check(&mut errors, "headRoom", head_room, 0.0, 100.0);
        errors.into_result()?;
        Ok(Self { down, head_room, level: None })
    }

    pub(super) const fn falling_by(down: f64) -> Self {
        Self { down, head_room: 1.0, level: None }
    }

    /// The level after a slot with `demand`.
    pub(super) fn follow(&mut self, demand: f64) -> f64 {
        let level = match self.level {
            // Within a hundredth of a stem it has arrived: a share of the distance alone never would.
            Some(level) if level > demand + 0.01 => level + self.down * (demand - level),
            _ => demand,
        };
        self.level = Some(level);
        level
    }
}

impl CapacityPolicy for FastUpSlowDown {
    fn target(&mut self, input: &CapacityInput) -> u32 {
        let level = self.follow(f64::from(input.taken));
        within(self.head_room * level, input)
    }
}
