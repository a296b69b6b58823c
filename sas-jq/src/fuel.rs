//! The steps that an evaluation may still take.

use std::cell::Cell;

use crate::Error;

pub(crate) struct Fuel {
    steps: u64,
    left: Cell<u64>,
}

impl Fuel {
    pub(crate) fn new(steps: u64) -> Self {
        Self { steps, left: Cell::new(steps) }
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.get()
    }

    pub(crate) fn spent(&self) -> u64 {
        self.steps - self.left.get()
    }

    pub(crate) fn spend(&self, steps: u64) -> Result<(), Error> {
        match self.left.get().checked_sub(steps) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => {
                self.left.set(0);
                Err(Error::Steps(self.steps))
            }
        }
    }
}
