#![doc = include_str!("../README.md")]

mod access;
mod arithmetic;
mod ast;
mod compile;
mod cx;
mod format;
mod fuel;
mod lex;
mod machine;
mod natives;
mod number;
mod parse;
mod read;
mod value;

use std::sync::Arc;

pub use self::{
    machine::Outputs,
    value::{List, Map, Text, Value},
};

/// What one evaluation may take. The steps are what bounds the time: a million takes 20 to 90 ms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Steps: one for each term and each result, more for what walks over much.
    pub steps: u64,
    /// Bytes: of all values, environments and choices that live at once, and of any one value when it is written out.
    pub bytes: usize,
}

impl Default for Limits {
    /// Half a million steps and 8 MiB.
    fn default() -> Self {
        Self { steps: 500_000, bytes: 8 << 20 }
    }
}

/// Why an evaluation ended without a result. Only `Raised` can be caught by `try`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The expression raised this, by `error` or by what cannot be done.
    #[error("{}", raised(.0))]
    Raised(Value),
    /// More steps than the limit.
    #[error("the expression takes more than {0} steps; make it do less, or raise the limit")]
    Steps(u64),
    /// More bytes than the limit.
    #[error("the expression takes more than {0} bytes; make it hold less, or raise the limit")]
    Bytes(usize),
    /// A value nested deeper than may be.
    #[error("a value is nested deeper than {0}")]
    Depth(usize),
}

fn raised(value: &Value) -> String {
    match value {
        Value::String(text) => text.as_str().to_owned(),
        other => format!("{other} (not a string)"),
    }
}

/// Why a text is no expression.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct ParseError {
    /// The offset in bytes.
    pub at: usize,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

impl ParseError {
    pub(crate) fn at(text: &str, at: usize, message: impl Into<String>) -> Self {
        let before = &text[..at.min(text.len())];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self { at, line, column, message: message.into() }
    }
}

/// An expression that was read: it can be evaluated any number of times, from any thread.
#[derive(Clone, Debug)]
pub struct Program(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    text: String,
    variables: Vec<String>,
    term: compile::Term,
}

impl PartialEq for Program {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text && self.0.variables == other.0.variables
    }
}

impl Program {
    /// Reads an expression that may use these variables (named without the dollar).
    ///
    /// # Errors
    /// What is wrong and where: no jq, longer than 16 KiB, nested too deep, an unknown name, or a function that would
    /// reach the host (`env`, `input`, `now`, `halt`, `debug` and others).
    pub fn parse(text: &str, variables: &[&str]) -> Result<Self, ParseError> {
        let term = compile::program(text, variables)?;
        let variables = variables.iter().map(|name| (*name).to_owned()).collect();
        Ok(Self(Arc::new(Inner { text: text.to_owned(), variables, term })))
    }

    /// The text that was read.
    pub fn text(&self) -> &str {
        &self.0.text
    }

    /// The names of the variables that it may use, in the order in which `run` takes their values.
    pub fn variables(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.variables.iter().map(String::as_str)
    }

    /// The results for an input, one by one as they are asked for. The variables' values are in the order in which
    /// `parse` named them; one that is missing is `null`.
    pub fn run(&self, input: Value, variables: &[Value], limits: &Limits) -> Outputs<'_> {
        let mut values = variables.to_vec();
        values.resize(self.0.variables.len(), Value::Null);
        Outputs::new(&self.0.term, input, values, limits)
    }

    /// The first result; `None`: there is none.
    ///
    /// # Errors
    /// What the expression raised, or the limit that it met.
    pub fn first(&self, input: Value, variables: &[Value], limits: &Limits) -> Result<Option<Value>, Error> {
        self.run(input, variables, limits).next().transpose()
    }
}
