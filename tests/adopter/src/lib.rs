//! The parts of `docs/backends.md`, in a crate of their own. `tests/proved.rs` proves them, and that the page shows them.

pub mod runtime;
pub mod scaler;
pub mod store;
pub mod trigger;
