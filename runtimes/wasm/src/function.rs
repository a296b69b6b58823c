//! What a function was made with: what its revision asked for, and the host that it runs on.

use std::{fmt, sync::Arc};

use crate::{cgi::Block, host::Host, kind::Kind, options::Options, slots::FairSlots};

/// All of a function but its code.
pub(crate) struct Function {
    pub(crate) kind: Kind,
    pub(crate) options: Arc<Options>,
    pub(crate) arguments: Arc<Block>,
    pub(crate) slots: Arc<FairSlots>,
    /// Slots that one sandbox takes.
    pub(crate) units: u32,
    /// Bytes of the compiled code, which all instances share.
    pub(crate) code_bytes: u64,
    pub(crate) host: Arc<Host>,
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("kind", &self.kind)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
