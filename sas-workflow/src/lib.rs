#![doc = include_str!("../README.md")]

mod data;
mod definition;
mod fault;
mod machine;
mod mistakes;
mod read;
mod record;

pub use self::{
    definition::{Definition, Refused, Schedule},
    machine::{Machine, MissingSecret, Status, Visit},
    mistakes::{Mistake, Mistakes},
    record::{Body, Command, Outcome, Record, Request},
};
