//! How many stems to hold: pure laws from demand per slot to a size.
//!
//! | Policy | Size | Use it |
//! |---|---|---|
//! | [`Static`] | a constant | demand is flat, or memory is not the point |
//! | [`FastUpSlowDown`] | follows demand up at once, shrinks by a share per slot | there is no season |
//! | [`Seasonal`] | a forecast, a quantile of head-room above it, the law below it | otherwise; the default |
//! | [`HoltWinters`], [`MovingAverage`] | what the literature compares with | as baselines |
//!
//! All of them are deterministic functions of the inputs they have seen, hold no clock and no randomness, and keep
//! `min ≤ size ≤ max`. `docs/policies.md` has the formulas, the guarantees and the figures on public traces.
//!
//! ```
//! use sas_core::{CapacityInput, CapacityPolicy, Timestamp};
//! use sas_pool::capacity::{FastUpSlowDown, Metered};
//! use std::time::Duration;
//!
//! let slot = Duration::from_secs(60);
//! let mut pool = Metered::new(FastUpSlowDown::default());
//! let mut size = 0;
//! for (minute, taken) in [(1, 0), (2, 40), (3, 40), (4, 0), (5, 0)] {
//!     let mut input = CapacityInput::new(Timestamp::from_secs(60 * minute), slot, taken);
//!     input.missed = taken.saturating_sub(size);
//!     input.ready = size.saturating_sub(taken); // what is left over at the end of the slot
//!     size = pool.target(&input);
//! }
//! assert_eq!(size, 33); // 40, then two slots of ×0.9, rounded up
//! assert_eq!(pool.read_out().avoided, 40); // the second forty found stems
//! ```

mod fast_up_slow_down;
mod fixed;
mod holt_winters;
#[cfg(test)]
mod laws;
mod moving_average;
mod read_out;
mod rls;
mod seasonal;

pub use fast_up_slow_down::FastUpSlowDown;
pub use fixed::Static;
pub use holt_winters::HoltWinters;
pub use moving_average::MovingAverage;
pub use read_out::{Metered, ReadOut};
pub use seasonal::{Seasonal, SeasonalConfig};

use sas_core::{CapacityInput, SpecErrors};

/// The whole number of stems that holds `size`, within the input's bounds. `max` wins over `min`; a size that is not
/// a number counts as none.
fn within(size: f64, input: &CapacityInput) -> u32 {
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, which is what is wanted"
    )]
    let whole = size.max(0.0).ceil() as u32;
    whole.max(input.min).min(input.max)
}

/// Notes a parameter outside `[low, high]`.
fn check(errors: &mut SpecErrors, field: &str, value: f64, low: f64, high: f64) {
    if !(value.is_finite() && (low..=high).contains(&value)) {
        errors.push(field, value, format!("a number from {low} to {high}"));
    }
}
