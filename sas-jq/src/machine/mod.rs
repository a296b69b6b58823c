//! The machine: terms, environments, what is to be done with a result, and what is to be tried next, all on the heap. No
//! program makes the host's own stack grow, and every step takes fuel.

mod chains;
mod eval;
mod resume;

use std::{cell::Cell, rc::Rc};

use self::chains::{Bound, Env, Framed, Slot, Then, Token};

use crate::{
    Error, Limits,
    access::{self, delete_paths},
    ast::{Arithmetic, Comparison},
    compile::{Term, TextPart},
    cx::Cx,
    format::Format,
    natives::Native,
    value::{Charge, Value},
};

/// Where a value lies in the input, when that matters.
#[derive(Clone)]
enum Trail {
    /// Nobody asks.
    Off,
    /// It is no part of the input.
    Lost,
    At(Rc<Vec<Value>>),
}

/// A value on its way.
#[derive(Clone)]
struct Current {
    value: Value,
    trail: Trail,
}

impl Current {
    fn plain(&self) -> Self {
        Self { value: self.value.clone(), trail: Trail::Off }
    }

    /// What was made of it.
    fn made(trail: &Trail, value: Value) -> Self {
        let trail = if matches!(trail, Trail::Off) { Trail::Off } else { Trail::Lost };
        Self { value, trail }
    }
}

type Arguments = Vec<Value>;

#[derive(Clone)]
enum Frame<'p> {
    Pipe(&'p [Term], Env<'p>),
    Bind(&'p Term, Env<'p>, Current),
    Text {
        format: Format,
        parts: &'p [TextPart],
        left: usize,
        got: Env<'p>,
        env: Env<'p>,
        current: Current,
    },
    /// The keys and values that were made, as a chain: frames share it, and each of its nodes is counted.
    Key {
        members: &'p [(Term, Term)],
        at: usize,
        got: Env<'p>,
        env: Env<'p>,
        current: Current,
    },
    Member {
        members: &'p [(Term, Term)],
        at: usize,
        got: Env<'p>,
        key: Value,
        env: Env<'p>,
        current: Current,
    },
    IndexOf {
        of: &'p Term,
        optional: bool,
        env: Env<'p>,
        current: Current,
    },
    IndexBy {
        key: Value,
        optional: bool,
    },
    Iterate {
        optional: bool,
    },
    Negate,
    ArithmeticLeft(Arithmetic, &'p Term, Env<'p>, Current),
    Arithmetic(Arithmetic, Value),
    CompareLeft(Comparison, &'p Term, Env<'p>, Current),
    Compare(Comparison, Value),
    Logic {
        ends_with: bool,
        right: &'p Term,
        env: Env<'p>,
        current: Current,
    },
    Truth,
    /// What comes is no part of the input.
    Detached,
    If {
        branches: &'p [(Term, Term)],
        other: Option<&'p Term>,
        env: Env<'p>,
        current: Current,
    },
    /// The way out of what errors are caught of.
    Leave {
        handler: usize,
    },
    Either(usize),
    Into(usize),
    FoldFrom {
        source: &'p Term,
        step: &'p Term,
        reduce: bool,
        env: Env<'p>,
        current: Current,
    },
    FoldItem {
        mark: usize,
        step: &'p Term,
        reduce: bool,
        env: Env<'p>,
    },
    State(usize),
    StepDone {
        mark: usize,
        extract: Option<&'p Term>,
        env: Env<'p>,
    },
    Arguments {
        native: &'static Native,
        terms: &'p [Term],
        got: Arguments,
        env: Env<'p>,
        current: Current,
    },
    Raise,
    Path(Trail),
    GetPath(Current),
    UpdateAt {
        mark: usize,
        update: &'p Term,
        env: Env<'p>,
    },
    UpdateSet(usize),
    Count {
        skip: bool,
        of: &'p Term,
        env: Env<'p>,
        current: Current,
    },
    Counted(usize),
    Range {
        terms: &'p [Term; 3],
        got: Arguments,
        env: Env<'p>,
        current: Current,
    },
    SliceTo {
        to: &'p Term,
        env: Env<'p>,
        current: Current,
    },
    Slice {
        from: Value,
    },
    Element(Value),
}

/// What is to be tried when there are no more results, or when an error comes.
struct Choice<'p> {
    kind: Kind<'p>,
    then: Then<'p>,
    /// The choice that catches errors where this one goes on.
    handler: usize,
}

enum Kind<'p> {
    Terms(&'p [Term], Env<'p>, Current),
    Iterate { of: Current, at: usize },
    Range { at: f64, to: f64, step: f64, trail: Trail },
    Collect { items: Vec<Value>, charge: Charge, trail: Trail },
    Fold { state: Current, reduce: bool },
    Try { catch: Option<&'p Term>, env: Env<'p>, trail: Trail },
    Fallback(&'p Term, Env<'p>, Current),
    Alternative { found: bool, other: &'p Term, env: Env<'p>, current: Current },
    Label,
    Limit(f64),
    Skip(f64),
    Update { root: Value, deletes: Vec<Value>, trail: Trail },
    UpdateOne { mark: usize, path: Value },
}

enum Next<'p> {
    Eval(&'p Term, Env<'p>, Current, Then<'p>),
    Return(Current, Then<'p>),
    Backtrack,
}

const NONE: usize = usize::MAX;

/// The results of a program, made one by one as they are asked for.
pub struct Outputs<'p> {
    cx: Cx,
    choices: Vec<Choice<'p>>,
    handler: usize,
    nodes: Rc<Cell<usize>>,
    next: Option<Next<'p>>,
}

impl std::fmt::Debug for Outputs<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outputs").field("steps_left", &self.cx.left()).finish_non_exhaustive()
    }
}

impl Iterator for Outputs<'_> {
    type Item = Result<Value, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut next = self.next.take()?;
        loop {
            let done = match self.spend() {
                Err(error) => Err(error),
                Ok(()) => match next {
                    Next::Eval(term, env, current, then) => self.eval(term, env, current, then),
                    Next::Return(current, then) => match then.pop() {
                        Some((frame, then)) => self.resume(frame, current, then),
                        None => {
                            self.next = Some(Next::Backtrack);
                            return Some(Ok(current.value));
                        }
                    },
                    Next::Backtrack => self.backtrack()?,
                },
            };
            next = match done {
                Ok(next) => next,
                Err(Error::Raised(value)) => match self.raise(value) {
                    Ok(next) => next,
                    Err(value) => return Some(Err(Error::Raised(value))),
                },
                Err(error) => {
                    self.choices.clear();
                    return Some(Err(error));
                }
            };
        }
    }
}

impl<'p> Outputs<'p> {
    pub(crate) fn new(term: &'p Term, input: Value, variables: Vec<Value>, limits: &Limits) -> Self {
        let mut outputs = Self {
            cx: Cx::new(limits),
            choices: Vec::new(),
            handler: NONE,
            nodes: Rc::default(),
            next: None,
        };
        let mut env = Env::default();
        for value in variables {
            env = outputs.bind(env, Slot::Value(value));
        }
        let current = Current { value: input, trail: Trail::Off };
        outputs.next = Some(Next::Eval(term, env, current, Then(None)));
        outputs
    }

    /// How many steps have been taken.
    pub fn steps(&self) -> u64 {
        self.cx.spent()
    }

    fn spend(&self) -> Result<(), Error> {
        self.cx.spend(1)?;
        let nodes = self.nodes.get() * size_of::<Framed<'_>>();
        self.cx.make.room(nodes + self.choices.len() * size_of::<Choice<'_>>())
    }

    fn bind(&self, outer: Env<'p>, slot: Slot<'p>) -> Env<'p> {
        Env(Some(Rc::new(Bound { slot, outer, _token: Token::new(&self.nodes) })))
    }

    fn then(&self, frame: Frame<'p>, next: Then<'p>) -> Then<'p> {
        Then(Some(Rc::new(Framed { frame, next, _token: Token::new(&self.nodes) })))
    }

    fn choose(&mut self, kind: Kind<'p>, then: Then<'p>) -> usize {
        self.choices.push(Choice { kind, then, handler: self.handler });
        self.choices.len() - 1
    }

    fn lost(&self, value: &Value) -> Error {
        self.cx.raise(format!("Invalid path expression with result {}", access::shown(value)))
    }

    /// Goes on with the latest choice; `None`: there is none.
    fn backtrack(&mut self) -> Option<Result<Next<'p>, Error>> {
        let Choice { kind, then, handler } = self.choices.pop()?;
        self.handler = handler;
        Some(Ok(match kind {
            Kind::Terms(terms, env, current) => match terms {
                [] => Next::Backtrack,
                [last] => Next::Eval(last, env, current, then),
                [first, rest @ ..] => {
                    self.choose(Kind::Terms(rest, env.clone(), current.clone()), then.clone());
                    Next::Eval(first, env, current, then)
                }
            },
            Kind::Iterate { of, at } => {
                let (key, value, last) = match &of.value {
                    Value::Array(list) => match list.as_slice().get(at) {
                        Some(value) => (Value::from(at), value.clone(), at + 1 == list.as_slice().len()),
                        None => return Some(Ok(Next::Backtrack)),
                    },
                    Value::Object(map) => match map.members().get_index(at) {
                        Some((name, value)) => {
                            let key = if matches!(of.trail, Trail::Off) {
                                Value::Null
                            } else {
                                match self.cx.make.text(&**name) {
                                    Ok(key) => key,
                                    Err(error) => return Some(Err(error)),
                                }
                            };
                            (key, value.clone(), at + 1 == map.len())
                        }
                        None => return Some(Ok(Next::Backtrack)),
                    },
                    _ => return Some(Ok(Next::Backtrack)),
                };
                let trail = match self.further(of.trail.clone(), key) {
                    Ok(trail) => trail,
                    Err(error) => return Some(Err(error)),
                };
                if last {
                    drop(of);
                    return Some(Ok(Next::Return(Current { value, trail }, then)));
                }
                self.choose(Kind::Iterate { of, at: at + 1 }, then.clone());
                Next::Return(Current { value, trail }, then)
            }
            Kind::Range { at, to, step, trail } => {
                let more = if step > 0.0 { at < to } else { step < 0.0 && at > to };
                if !more {
                    return Some(Ok(Next::Backtrack));
                }
                let current = Current::made(&trail, Value::Float(at));
                self.choose(Kind::Range { at: at + step, to, step, trail }, then.clone());
                Next::Return(current, then)
            }
            Kind::Collect { items, charge, trail } => {
                drop(charge);
                match self.cx.spend(items.len() as u64 / 4).and_then(|()| self.cx.make.list(items)) {
                    Ok(value) => Next::Return(Current::made(&trail, value), then),
                    Err(error) => return Some(Err(error)),
                }
            }
            Kind::Fold { state, reduce: true } => Next::Return(state, then),
            Kind::Fold { .. } | Kind::Try { .. } | Kind::Fallback(..) | Kind::Label => Next::Backtrack,
            Kind::Limit(_) | Kind::Skip(_) => Next::Backtrack,
            Kind::Alternative { found, other, env, current } => {
                if found {
                    Next::Backtrack
                } else {
                    Next::Eval(other, env, current, then)
                }
            }
            Kind::Update { root, deletes, trail } => {
                let root = match deletes.is_empty() {
                    true => Ok(root),
                    false => {
                        self.cx.make.list(deletes).and_then(|paths| delete_paths(&self.cx, root, &paths))
                    }
                };
                match root {
                    Ok(root) => Next::Return(Current::made(&trail, root), then),
                    Err(error) => return Some(Err(error)),
                }
            }
            Kind::UpdateOne { mark, path } => {
                if let Kind::Update { deletes, .. } = &mut self.choices[mark].kind {
                    deletes.push(path);
                }
                Next::Backtrack
            }
        }))
    }

    /// Gives an error to the innermost that catches it; back comes what nothing catches.
    fn raise(&mut self, value: Value) -> Result<Next<'p>, Value> {
        if self.handler >= self.choices.len() {
            self.choices.clear();
            return Err(value);
        }
        self.choices.truncate(self.handler + 1);
        let Some(Choice { kind, then, handler }) = self.choices.pop() else {
            return Err(value);
        };
        self.handler = handler;
        Ok(match kind {
            Kind::Try { catch: Some(catch), env, trail } => {
                Next::Eval(catch, env, Current::made(&trail, value), then)
            }
            Kind::Fallback(rest, env, current) => Next::Eval(rest, env, current, then),
            _ => Next::Backtrack,
        })
    }
}
