//! What an evaluation may still take.

use std::{cell::RefCell, collections::VecDeque};

use crate::{
    Error, Limits,
    fuel::Fuel,
    value::{Charge, Maker, Meter},
};

/// A regular expression that was compiled.
pub(crate) struct Pattern {
    /// The pattern with its flags.
    pub(crate) key: String,
    pub(crate) regex: regex::Regex,
    /// How large it is at most, in bytes.
    pub(crate) size: usize,
    /// Steps for 64 bytes of text.
    pub(crate) per_block: u64,
    pub(crate) _charge: Charge,
}

pub(crate) struct Cx {
    pub(crate) make: Maker,
    /// The regular expressions of late.
    pub(crate) patterns: RefCell<VecDeque<Pattern>>,
}

impl Cx {
    pub(crate) fn new(limits: &Limits) -> Self {
        let make = Maker { meter: Some(Meter::default()), most: limits.bytes, fuel: Fuel::new(limits.steps) };
        Self { make, patterns: RefCell::default() }
    }

    pub(crate) fn left(&self) -> u64 {
        self.make.fuel.left()
    }

    pub(crate) fn spent(&self) -> u64 {
        self.make.fuel.spent()
    }

    pub(crate) fn spend(&self, steps: u64) -> Result<(), Error> {
        self.make.fuel.spend(steps)
    }

    /// For work over so many bytes.
    pub(crate) fn spend_bytes(&self, bytes: usize) -> Result<(), Error> {
        self.spend(bytes as u64 / 64)
    }

    /// An error with this message, which counts as any other text and is cut where it is longer than 1 KiB.
    pub(crate) fn raise(&self, message: impl Into<String>) -> Error {
        const LONGEST: usize = 1 << 10;
        let mut message = message.into();
        if message.len() > LONGEST {
            message.truncate(message.floor_char_boundary(LONGEST - 3));
            message.push_str("...");
            message.shrink_to_fit();
        }
        // To say what is wrong takes more than to do what is right.
        self.spend(8).and_then(|()| self.make.text(message)).map_or_else(|error| error, Error::Raised)
    }
}
