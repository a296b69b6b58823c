//! Runs of workflows, by a driver that keeps nothing.

mod ctk;
mod driver;
mod machine;
