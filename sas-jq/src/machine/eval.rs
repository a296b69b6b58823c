//! The first step of a term.

use std::rc::Rc;

use super::{
    Arguments, Current, Frame, Kind, Next, Outputs, Trail,
    chains::{Env, Slot, Then},
};
use crate::{
    Error,
    access::{self, get},
    compile::{Place, Term, TextPart, library},
    format::Format,
    natives::Native,
    value::{Charge, Value},
};

impl<'p> Outputs<'p> {
    /// A term whose value needs no step of its own.
    pub(super) fn at_once(
        &self,
        term: &Term,
        env: &Env<'p>,
        current: &Current,
    ) -> Result<Option<Value>, Error> {
        Ok(match term {
            Term::Id => Some(current.value.clone()),
            Term::Const(value) => Some(value.clone()),
            Term::Variable(place) => {
                self.walk(*place)?;
                Some(env.value(*place))
            }
            _ => None,
        })
    }

    /// For going so far out in an environment.
    fn walk(&self, place: Place) -> Result<(), Error> {
        self.cx.spend(u64::from(place) / 16)
    }

    pub(super) fn index(
        &self,
        of: Current,
        key: Value,
        optional: bool,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        let trail = match of.trail {
            Trail::Off => Trail::Off,
            Trail::Lost => {
                let message = format!(
                    "Invalid path expression near attempt to access element {} of {}",
                    access::shown(&key),
                    access::shown(&of.value)
                );
                return Err(self.cx.raise(message));
            }
            Trail::At(path) => Trail::At(path),
        };
        let value = match get(&self.cx, &of.value, &key) {
            Ok(value) => value,
            Err(Error::Raised(_)) if optional => return Ok(Next::Backtrack),
            Err(error) => return Err(error),
        };
        let trail = self.further(trail, key)?;
        Ok(Next::Return(Current { value, trail }, then))
    }

    pub(super) fn further(&self, trail: Trail, key: Value) -> Result<Trail, Error> {
        match trail {
            Trail::At(mut path) => {
                self.cx.spend(path.len() as u64)?;
                if path.len() > 1_000 {
                    return Err(self.cx.raise("Path too deep"));
                }
                Rc::make_mut(&mut path).push(key);
                Ok(Trail::At(path))
            }
            other => Ok(other),
        }
    }

    pub(super) fn iterate(&mut self, of: Current, optional: bool, then: Then<'p>) -> Result<Next<'p>, Error> {
        if let Trail::Lost = of.trail {
            let message = format!(
                "Invalid path expression near attempt to iterate through {}",
                access::shown(&of.value)
            );
            return Err(self.cx.raise(message));
        }
        match &of.value {
            Value::Array(_) | Value::Object(_) => {
                self.choose(Kind::Iterate { of, at: 0 }, then);
                Ok(Next::Backtrack)
            }
            _ if optional => Ok(Next::Backtrack),
            other => Err(self.cx.raise(format!("Cannot iterate over {}", access::described(other)))),
        }
    }

    pub(super) fn eval(
        &mut self,
        term: &'p Term,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        let (mut current, mut then) = (current, then);
        // What is computed is no part of the input, and what it is computed of may be anything.
        if !matches!(current.trail, Trail::Off)
            && matches!(
                term,
                Term::Negate(_)
                    | Term::Arithmetic(..)
                    | Term::Compare(..)
                    | Term::And(..)
                    | Term::Or(..)
                    | Term::Slice(..)
            )
        {
            current.trail = Trail::Off;
            then = self.then(Frame::Detached, then);
        }
        let made = |value| Current::made(&current.trail, value);
        Ok(match term {
            Term::Id => Next::Return(current, then),
            Term::Const(value) => Next::Return(made(value.clone()), then),
            Term::Variable(place) => {
                self.walk(*place)?;
                Next::Return(made(env.value(*place)), then)
            }
            Term::Text(format, parts) => {
                return self.text(*format, parts, parts.len(), Env::default(), env, current, then);
            }
            Term::Format(format) => {
                let value = format.apply(&self.cx, &current.value)?;
                Next::Return(made(value), then)
            }
            Term::Collect(inner) => {
                let kind = Kind::Collect {
                    items: Vec::new(),
                    charge: Charge::default(),
                    trail: current.trail.clone(),
                };
                let mark = self.choose(kind, then);
                let then = self.then(Frame::Into(mark), Then(None));
                Next::Eval(inner, env, Current { trail: Trail::Off, ..current }, then)
            }
            Term::Object(members) => return self.key(members, 0, Env::default(), env, current, then),
            Term::Index { of, key, optional } => match self.at_once(key, &env, &current)? {
                Some(key) => match **of {
                    Term::Id => return self.index(current, key, *optional, then),
                    ref of => {
                        let then = self.then(Frame::IndexBy { key, optional: *optional }, then);
                        Next::Eval(of, env, current, then)
                    }
                },
                None => {
                    let plain = current.plain();
                    let frame = Frame::IndexOf { of, optional: *optional, env: env.clone(), current };
                    Next::Eval(key, env, plain, self.then(frame, then))
                }
            },
            Term::Slice(from, to) => {
                let frame = Frame::SliceTo { to, env: env.clone(), current: current.clone() };
                Next::Eval(from, env, current, self.then(frame, then))
            }
            Term::Iterate { of, optional } => match **of {
                Term::Id => return self.iterate(current, *optional, then),
                ref of => {
                    let then = self.then(Frame::Iterate { optional: *optional }, then);
                    Next::Eval(of, env, current, then)
                }
            },
            Term::Negate(inner) => Next::Eval(inner, env, current, self.then(Frame::Negate, then)),
            Term::Pipe(terms) => match terms.split_first() {
                None => Next::Return(current, then),
                Some((first, rest)) => {
                    let then = self.then(Frame::Pipe(rest, env.clone()), then);
                    Next::Eval(first, env, current, then)
                }
            },
            Term::Comma(terms) => match terms.split_first() {
                None => Next::Backtrack,
                Some((first, rest)) => {
                    self.choose(Kind::Terms(rest, env.clone(), current.clone()), then.clone());
                    Next::Eval(first, env, current, then)
                }
            },
            Term::Arithmetic(operator, left, right) => {
                let plain = current.plain();
                match self.at_once(right, &env, &plain)? {
                    Some(right) => {
                        drop(plain);
                        Next::Eval(left, env, current, self.then(Frame::Arithmetic(*operator, right), then))
                    }
                    None => {
                        let frame = Frame::ArithmeticLeft(*operator, left, env.clone(), current);
                        Next::Eval(right, env, plain, self.then(frame, then))
                    }
                }
            }
            Term::Compare(comparison, left, right) => {
                let plain = current.plain();
                let frame = Frame::CompareLeft(*comparison, left, env.clone(), current);
                Next::Eval(right, env, plain, self.then(frame, then))
            }
            Term::And(left, right) | Term::Or(left, right) => {
                let plain = current.plain();
                let ends_with = matches!(term, Term::Or(..));
                let frame = Frame::Logic { ends_with, right, env: env.clone(), current };
                Next::Eval(left, env, plain, self.then(frame, then))
            }
            Term::Alternative(left, other) => {
                let kind =
                    Kind::Alternative { found: false, other, env: env.clone(), current: current.clone() };
                let mark = self.choose(kind, then.clone());
                Next::Eval(left, env, current, self.then(Frame::Either(mark), then))
            }
            Term::If(branches, other) => return self.branch(branches, other.as_deref(), env, current, then),
            Term::Try(body, catch) => {
                let before = self.handler;
                let kind =
                    Kind::Try { catch: catch.as_deref(), env: env.clone(), trail: current.trail.clone() };
                self.handler = self.choose(kind, then.clone());
                Next::Eval(body, env, current, self.then(Frame::Leave { handler: before }, then))
            }
            Term::Fallback(first, rest) => {
                let before = self.handler;
                let kind = Kind::Fallback(rest, env.clone(), current.clone());
                self.handler = self.choose(kind, then.clone());
                Next::Eval(first, env, current, self.then(Frame::Leave { handler: before }, then))
            }
            Term::Reduce { source, init, step } | Term::Foreach { source, init, step } => {
                let reduce = matches!(term, Term::Reduce { .. });
                let frame =
                    Frame::FoldFrom { source, step, reduce, env: env.clone(), current: current.clone() };
                Next::Eval(init, env, current, self.then(frame, then))
            }
            Term::Step { mark, update, extract } => {
                self.walk(*mark)?;
                let frame =
                    Frame::StepDone { mark: env.mark(*mark), extract: extract.as_deref(), env: env.clone() };
                Next::Eval(update, env, current, self.then(frame, then))
            }
            Term::Label(body) => {
                let mark = self.choose(Kind::Label, Then(None));
                let env = self.bind(env, Slot::Mark(mark));
                Next::Eval(body, env, current, then)
            }
            Term::Break(place) => {
                self.walk(*place)?;
                self.choices.truncate(env.mark(*place));
                Next::Backtrack
            }
            Term::Def(function, rest) => {
                let env = self.bind(env, Slot::Function(function));
                Next::Eval(rest, env, current, then)
            }
            Term::Call(place, arguments) => {
                self.walk(*place)?;
                self.cx.spend(arguments.len() as u64)?;
                let mut inner = env.tail(*place).clone();
                let Some(Slot::Function(function)) = inner.slot(0) else {
                    return Err(self.cx.raise("a function is missing"));
                };
                let function = *function;
                for argument in arguments {
                    inner = self.pass(argument, &env, inner)?;
                }
                Next::Eval(&function.body, inner, current, then)
            }
            Term::CallLibrary(function, arguments) => {
                let mut inner = Env::default();
                for argument in arguments {
                    inner = self.pass(argument, &env, inner)?;
                }
                Next::Eval(&library().functions[*function].body, inner, current, then)
            }
            Term::Parameter(place) => {
                self.walk(*place)?;
                match env.slot(*place) {
                    Some(Slot::Parameter(term, inner)) => Next::Eval(term, inner.clone(), current, then),
                    _ => return Err(self.cx.raise("a parameter is missing")),
                }
            }
            Term::Native(native, terms) => {
                return self.arguments(native, terms, Vec::new(), env, current, then);
            }
            Term::Bind(source, body) => match self.at_once(source, &env, &current)? {
                Some(value) => Next::Eval(body, self.bind(env, Slot::Value(value)), current, then),
                None => {
                    let plain = current.plain();
                    let then = self.then(Frame::Bind(body, env.clone(), current), then);
                    Next::Eval(source, env, plain, then)
                }
            },
            Term::Empty => Next::Backtrack,
            Term::Error(message) => {
                let plain = Current { trail: Trail::Off, ..current };
                Next::Eval(message, env, plain, self.then(Frame::Raise, then))
            }
            Term::Path(inner) => {
                let start = Current { value: current.value, trail: Trail::At(Rc::default()) };
                Next::Eval(inner, env, start, self.then(Frame::Path(current.trail), then))
            }
            Term::GetPath(path) => {
                let plain = current.plain();
                Next::Eval(path, env, plain, self.then(Frame::GetPath(current), then))
            }
            Term::Update(paths, update) => {
                let kind =
                    Kind::Update { root: current.value.clone(), deletes: Vec::new(), trail: current.trail };
                let mark = self.choose(kind, then);
                let start = Current { value: current.value, trail: Trail::At(Rc::default()) };
                let then = self.then(Frame::UpdateAt { mark, update, env: env.clone() }, Then(None));
                Next::Eval(paths, env, start, then)
            }
            Term::Limit(count, of) | Term::Skip(count, of) => {
                let skip = matches!(term, Term::Skip(..));
                match self.at_once(count, &env, &current)? {
                    Some(count) => return self.count(&count, skip, of, env, current, then),
                    None => {
                        let plain = current.plain();
                        let frame = Frame::Count { skip, of, env: env.clone(), current };
                        Next::Eval(count, env, plain, self.then(frame, then))
                    }
                }
            }
            Term::Range(terms) => return self.range(terms, Vec::new(), env, current, then),
            Term::Element(of, key) => {
                let of = self.at_once(of, &env, &current)?.unwrap_or_default();
                match self.at_once(key, &env, &current)? {
                    Some(key) => Next::Return(made(get(&self.cx, &of, &key)?), then),
                    None => Next::Eval(key, env, current, self.then(Frame::Element(of), then)),
                }
            }
        })
    }

    /// An argument that is a filter. One that is a parameter already is passed on as it is, so that recursion makes no chain.
    fn pass(&self, argument: &'p Term, env: &Env<'p>, inner: Env<'p>) -> Result<Env<'p>, Error> {
        let slot = match argument {
            Term::Parameter(place) => {
                self.walk(*place)?;
                env.slot(*place).cloned()
            }
            _ => None,
        };
        Ok(self.bind(inner, slot.unwrap_or_else(|| Slot::Parameter(argument, env.clone()))))
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one frame")]
    pub(super) fn text(
        &mut self,
        format: Format,
        parts: &'p [TextPart],
        mut left: usize,
        mut got: Env<'p>,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        while left > 0 {
            left -= 1;
            self.cx.spend(1)?;
            if let TextPart::Term(term) = &parts[left] {
                match self.at_once(term, &env, &current)? {
                    Some(value) => got = self.bind(got, Slot::Value(format.apply(&self.cx, &value)?)),
                    None => {
                        let plain = current.plain();
                        let frame = Frame::Text { format, parts, left, got, env: env.clone(), current };
                        return Ok(Next::Eval(term, env, plain, self.then(frame, then)));
                    }
                }
            }
        }
        let mut text = String::new();
        // The first part was made last.
        let mut got = got.values();
        for part in parts {
            match part {
                TextPart::Text(part) => text.push_str(part),
                TextPart::Term(_) => text.push_str(got.next().and_then(Value::as_str).unwrap_or_default()),
            }
            self.cx.make.room(text.len())?;
        }
        self.cx.spend((parts.len() + text.len() / 16) as u64)?;
        let value = self.cx.make.text(text)?;
        Ok(Next::Return(Current::made(&current.trail, value), then))
    }

    pub(super) fn key(
        &mut self,
        members: &'p [(Term, Term)],
        at: usize,
        got: Env<'p>,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        let Some((key, _)) = members.get(at) else {
            self.cx.spend(members.len() as u64)?;
            let made: Vec<&Value> = got.values().collect();
            let made = made.chunks_exact(2).rev().map(|member| (member[1].as_str(), member[0].clone()));
            let made = made.map(|(key, value)| (key.unwrap_or_default().into(), value));
            let value = self.cx.make.map(made.collect())?;
            return Ok(Next::Return(Current::made(&current.trail, value), then));
        };
        match self.at_once(key, &env, &current)? {
            Some(key) => self.member(members, at, got, key, env, current, then),
            None => {
                let plain = current.plain();
                let frame = Frame::Key { members, at, got, env: env.clone(), current };
                Ok(Next::Eval(key, env, plain, self.then(frame, then)))
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one frame")]
    pub(super) fn member(
        &mut self,
        members: &'p [(Term, Term)],
        at: usize,
        got: Env<'p>,
        key: Value,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        if key.as_str().is_none() {
            return Err(self
                .cx
                .raise(format!("Object keys must be strings, not {}", access::described(&key))));
        }
        let plain = current.plain();
        let frame = Frame::Member { members, at, got, key, env: env.clone(), current };
        Ok(Next::Eval(&members[at].1, env, plain, self.then(frame, then)))
    }

    pub(super) fn branch(
        &mut self,
        branches: &'p [(Term, Term)],
        other: Option<&'p Term>,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        match (branches.first(), other) {
            (Some((condition, _)), _) => {
                let plain = current.plain();
                let frame = Frame::If { branches, other, env: env.clone(), current };
                Ok(Next::Eval(condition, env, plain, self.then(frame, then)))
            }
            (None, Some(other)) => Ok(Next::Eval(other, env, current, then)),
            (None, None) => Ok(Next::Return(current, then)),
        }
    }

    pub(super) fn arguments(
        &mut self,
        native: &'static Native,
        terms: &'p [Term],
        mut got: Arguments,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        while let Some(term) = terms.get(got.len()) {
            match self.at_once(term, &env, &current)? {
                Some(value) => got.push(value),
                None => {
                    let plain = current.plain();
                    let frame = Frame::Arguments { native, terms, got, env: env.clone(), current };
                    return Ok(Next::Eval(term, env, plain, self.then(frame, then)));
                }
            }
        }
        let value = (native.run)(&self.cx, current.value, &got)?;
        Ok(Next::Return(Current::made(&current.trail, value), then))
    }

    pub(super) fn count(
        &mut self,
        count: &Value,
        skip: bool,
        of: &'p Term,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        let name = if skip { "skip" } else { "limit" };
        let Some(count) = count.as_f64() else {
            return Err(self.cx.raise(format!("{name} needs a number, not {}", access::described(count))));
        };
        if count < 0.0 {
            return Err(self.cx.raise(format!("{name} doesn't support negative count")));
        }
        if count == 0.0 && !skip {
            return Ok(Next::Backtrack);
        }
        let mark = self.choose(if skip { Kind::Skip(count) } else { Kind::Limit(count) }, Then(None));
        Ok(Next::Eval(of, env, current, self.then(Frame::Counted(mark), then)))
    }

    pub(super) fn range(
        &mut self,
        terms: &'p [Term; 3],
        mut got: Arguments,
        env: Env<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        while let Some(term) = terms.get(got.len()) {
            match self.at_once(term, &env, &current)? {
                Some(value) => got.push(value),
                None => {
                    let plain = current.plain();
                    let frame = Frame::Range { terms, got, env: env.clone(), current };
                    return Ok(Next::Eval(term, env, plain, self.then(frame, then)));
                }
            }
        }
        match (got[0].as_f64(), got[1].as_f64(), got[2].as_f64()) {
            (Some(at), Some(to), Some(step)) => {
                self.choose(Kind::Range { at, to, step, trail: current.trail }, then);
                Ok(Next::Backtrack)
            }
            _ => Err(self.cx.raise("Range bounds must be numeric")),
        }
    }
}
