//! What is wrong with a definition: all of it at once, each with its place.

use std::{collections::BTreeMap, fmt};

use serde_json::Value as Json;

/// One mistake in a definition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where, as a JSON pointer into the definition.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub problem: String,
}

/// All mistakes of a definition, at most a hundred.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, Mistake { pointer, problem }) in self.0.iter().enumerate() {
            let pointer = if pointer.is_empty() { "/" } else { pointer };
            write!(f, "{}{pointer}: {problem}", if at > 0 { "; " } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Mistakes {}

const MOST: usize = 100;

impl Mistakes {
    pub(crate) fn push(&mut self, pointer: &str, problem: impl Into<String>) {
        if self.0.len() < MOST {
            self.0.push(Mistake { pointer: pointer.to_owned(), problem: problem.into() });
        }
    }
}

/// The pointer to what is below `at`.
pub(crate) fn below(at: &str, name: &str) -> String {
    format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// A value in a message, short.
pub(crate) fn shown(value: &Json) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text,
    }
}

/// The members of an object that were not read yet.
pub(crate) struct Fields<'d> {
    pub(crate) at: String,
    left: BTreeMap<&'d str, &'d Json>,
    known: Vec<&'static str>,
}

impl<'d> Fields<'d> {
    pub(crate) fn of(at: &str, value: &'d Json, mistakes: &mut Mistakes) -> Option<Self> {
        match value {
            Json::Object(members) => Some(Self {
                at: at.to_owned(),
                left: members.iter().map(|(name, value)| (name.as_str(), value)).collect(),
                known: Vec::new(),
            }),
            other => {
                mistakes.push(at, format!("is {}, must be an object", shown(other)));
                None
            }
        }
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    pub(crate) fn below(&self, name: &str) -> String {
        below(&self.at, name)
    }

    pub(crate) fn take(&mut self, name: &'static str) -> Option<&'d Json> {
        self.known.push(name);
        self.left.remove(name)
    }

    pub(crate) fn require(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<&'d Json> {
        let found = self.take(name);
        if found.is_none() {
            mistakes.push(&self.at, format!("{name} is missing"));
        }
        found
    }

    pub(crate) fn string(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<&'d str> {
        let at = self.below(name);
        self.take(name).and_then(|value| match value {
            Json::String(text) => Some(text.as_str()),
            other => {
                mistakes.push(&at, format!("is {}, must be a text", shown(other)));
                None
            }
        })
    }

    pub(crate) fn required_string(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<&'d str> {
        if !self.has(name) {
            mistakes.push(&self.at, format!("{name} is missing"));
        }
        self.string(name, mistakes)
    }

    pub(crate) fn one_of(
        &mut self,
        name: &'static str,
        words: &[&'static str],
        mistakes: &mut Mistakes,
    ) -> Option<&'d str> {
        let at = self.below(name);
        let text = self.string(name, mistakes)?;
        if words.contains(&text) {
            return Some(text);
        }
        mistakes.push(&at, format!("is {text:?}, must be one of {}", words.join(", ")));
        None
    }

    pub(crate) fn boolean(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<bool> {
        let at = self.below(name);
        self.take(name).and_then(|value| match value {
            Json::Bool(value) => Some(*value),
            other => {
                mistakes.push(&at, format!("is {}, must be true or false", shown(other)));
                None
            }
        })
    }

    pub(crate) fn integer(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<u64> {
        let at = self.below(name);
        self.take(name).and_then(|value| {
            let number = value.as_u64();
            if number.is_none() {
                mistakes.push(&at, format!("is {}, must be a whole number, 0 or more", shown(value)));
            }
            number
        })
    }

    pub(crate) fn list(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<&'d [Json]> {
        let at = self.below(name);
        self.take(name).and_then(|value| match value {
            Json::Array(items) => Some(items.as_slice()),
            other => {
                mistakes.push(&at, format!("is {}, must be a list", shown(other)));
                None
            }
        })
    }

    pub(crate) fn object(&mut self, name: &'static str, mistakes: &mut Mistakes) -> Option<Fields<'d>> {
        let at = self.below(name);
        self.take(name).and_then(|value| Fields::of(&at, value, mistakes))
    }

    /// All that is left, whatever its name.
    pub(crate) fn rest(&mut self) -> Vec<(&'d str, &'d Json)> {
        std::mem::take(&mut self.left).into_iter().collect()
    }

    /// What is still there is unknown.
    pub(crate) fn finish(self, mistakes: &mut Mistakes) {
        for name in self.left.keys() {
            let mut known = self.known.clone();
            known.sort_unstable();
            known.dedup();
            mistakes.push(&below(&self.at, name), format!("unknown; known are {}", known.join(", ")));
        }
    }
}
