//! The functions that are written in Rust. Each pays for what it does before it does it.

mod lists;
mod matching;
mod math;
mod text;
mod time;

use crate::{Error, cx::Cx, value::Value};

pub(crate) type Run = fn(&Cx, Value, &[Value]) -> Result<Value, Error>;

pub(crate) struct Native {
    pub(crate) name: &'static str,
    pub(crate) arity: usize,
    pub(crate) run: Run,
}

impl std::fmt::Debug for Native {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.name, self.arity)
    }
}

const fn native(name: &'static str, arity: usize, run: Run) -> Native {
    Native { name, arity, run }
}

pub(crate) fn all() -> impl Iterator<Item = &'static Native> {
    [lists::NATIVES, math::NATIVES, matching::NATIVES, text::NATIVES, time::NATIVES].into_iter().flatten()
}

pub(crate) fn find(name: &str, arity: usize) -> Option<&'static Native> {
    all().find(|native| native.arity == arity && native.name == name)
}
