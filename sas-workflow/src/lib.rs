#![doc = include_str!("../README.md")]

mod data;
mod definition;
mod driver;
mod exposure;
mod fault;
mod graph;
mod machine;
pub mod metrics;
mod mistakes;
mod read;
mod record;

pub use self::{
    definition::{Definition, Refused, Schedule},
    driver::{Actions, Phase, RunState, StepKey, WorkflowConfig, Workflows, invoke_service},
    machine::{Machine, MissingSecret, NoCheckpoint, NoRestore, Status, Visit},
    mistakes::{Mistake, Mistakes},
    record::{Body, Command, Outcome, Record, Request},
};
