//! Runs of workflows, by a driver that keeps nothing.

mod checkpoints;
mod ctk;
mod driver;
mod machine;
