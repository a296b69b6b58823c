//! Which instance a request gets. Pure and seeded: slots, claim and a draw decide.

mod adaptive;
mod p2c;

pub use adaptive::Adaptive;
pub use p2c::PowerOfTwo;

/// Whether one more of `total` instances may be left out while `out` are: at most the configured share, and never
/// the last one.
pub(crate) fn may_eject(config: &crate::config::OutlierConfig, total: u32, out: u32) -> bool {
    let most = u64::from(total) * u64::from(config.max_ejected_percent) / 100;
    u64::from(out) < most && out + 1 < total
}
