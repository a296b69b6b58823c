use std::borrow::Cow;

use super::{
    table::HazardTable,
    weights::{BIAS, TREES},
};

impl HazardTable {
    /// The one that comes with the crate.
    pub const fn shipped() -> Self {
        Self { bias: BIAS, trees: Cow::Borrowed(&TREES) }
    }
}
