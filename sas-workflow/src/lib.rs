#![doc = include_str!("../README.md")]

#[allow(dead_code, reason = "the machine, which comes next, evaluates and reads these")]
mod data;
#[allow(dead_code, reason = "the machine, which comes next, evaluates and reads these")]
mod definition;
mod mistakes;
mod read;

pub use self::{
    definition::{Definition, Refused, Schedule},
    mistakes::{Mistake, Mistakes},
};
