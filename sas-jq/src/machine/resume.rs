//! What is done with a result.

use std::{mem, rc::Rc};

use super::{
    Choice, Current, Frame, Kind, Next, Outputs, Trail,
    chains::{Slot, Then},
};
use crate::{
    Error, access,
    access::{get, get_path, set_path, take_path},
    arithmetic,
    ast::Comparison,
    value::Value,
};

impl<'p> Outputs<'p> {
    pub(super) fn resume(
        &mut self,
        frame: Frame<'p>,
        current: Current,
        then: Then<'p>,
    ) -> Result<Next<'p>, Error> {
        Ok(match frame {
            Frame::Pipe(terms, env) => match terms {
                [] => Next::Return(current, then),
                [last] => Next::Eval(last, env, current, then),
                [first, rest @ ..] => {
                    let then = self.then(Frame::Pipe(rest, env.clone()), then);
                    Next::Eval(first, env, current, then)
                }
            },
            Frame::Bind(body, env, input) => {
                Next::Eval(body, self.bind(env, Slot::Value(current.value)), input, then)
            }
            Frame::Text { format, parts, left, got, env, current: input } => {
                let got = self.bind(got, Slot::Value(format.apply(&self.cx, &current.value)?));
                return self.text(format, parts, left, got, env, input, then);
            }
            Frame::Key { members, at, got, env, current: input } => {
                return self.member(members, at, got, current.value, env, input, then);
            }
            Frame::Member { members, at, got, key, env, current: input } => {
                let got = self.bind(got, Slot::Value(key));
                let got = self.bind(got, Slot::Value(current.value));
                return self.key(members, at + 1, got, env, input, then);
            }
            Frame::IndexOf { of, optional, env, current: input } => {
                let then = self.then(Frame::IndexBy { key: current.value, optional }, then);
                Next::Eval(of, env, input, then)
            }
            Frame::IndexBy { key, optional } => return self.index(current, key, optional, then),
            Frame::Iterate { optional } => return self.iterate(current, optional, then),
            Frame::Negate => {
                let value = arithmetic::negate(&self.cx, &current.value)?;
                Next::Return(Current::made(&current.trail, value), then)
            }
            Frame::ArithmeticLeft(operator, left, env, input) => {
                let then = self.then(Frame::Arithmetic(operator, current.value), then);
                Next::Eval(left, env, input, then)
            }
            Frame::Arithmetic(operator, right) => {
                let value = arithmetic::apply(&self.cx, operator, current.value, right)?;
                Next::Return(Current::made(&current.trail, value), then)
            }
            Frame::CompareLeft(comparison, left, env, input) => {
                let then = self.then(Frame::Compare(comparison, current.value), then);
                Next::Eval(left, env, input, then)
            }
            Frame::Compare(comparison, right) => {
                let (left, right) = (&current.value, &right);
                let (a, b) = (left.weight(), right.weight());
                // To say which is less, the members of all objects in them may have to be sorted.
                let sorts = !matches!(comparison, Comparison::Equal | Comparison::NotEqual)
                    && matches!(
                        (left, right),
                        (Value::Array(_), Value::Array(_)) | (Value::Object(_), Value::Object(_))
                    );
                self.cx.spend_bytes(if sorts { a.saturating_add(b) } else { a.min(b) })?;
                let value = match comparison {
                    Comparison::Equal => left == right,
                    Comparison::NotEqual => left != right,
                    Comparison::Less => left.compare(right).is_lt(),
                    Comparison::LessOrEqual => left.compare(right).is_le(),
                    Comparison::Greater => left.compare(right).is_gt(),
                    Comparison::GreaterOrEqual => left.compare(right).is_ge(),
                };
                Next::Return(Current::made(&current.trail, Value::Bool(value)), then)
            }
            Frame::Logic { ends_with, right, env, current: input } => {
                if current.value.is_truthy() == ends_with {
                    Next::Return(Current::made(&input.trail, Value::Bool(ends_with)), then)
                } else {
                    Next::Eval(right, env, input, self.then(Frame::Truth, then))
                }
            }
            Frame::Detached => Next::Return(Current { trail: Trail::Lost, ..current }, then),
            Frame::Truth => {
                let value = Value::Bool(current.value.is_truthy());
                Next::Return(Current::made(&current.trail, value), then)
            }
            Frame::If { branches, other, env, current: input } => {
                if current.value.is_truthy() {
                    Next::Eval(&branches[0].1, env, input, then)
                } else {
                    return self.branch(&branches[1..], other, env, input, then);
                }
            }
            Frame::Leave { handler } => {
                self.handler = handler;
                Next::Return(current, then)
            }
            Frame::Either(mark) => {
                if !current.value.is_truthy() {
                    return Ok(Next::Backtrack);
                }
                if let Kind::Alternative { found, .. } = &mut self.choices[mark].kind {
                    *found = true;
                }
                Next::Return(current, then)
            }
            Frame::Into(mark) => {
                if let Kind::Collect { items, charge, .. } = &mut self.choices[mark].kind {
                    let before = items.capacity();
                    items.push(current.value);
                    if items.capacity() != before {
                        *charge = self.cx.make.charge(items.capacity() * size_of::<Value>())?;
                    }
                }
                Next::Backtrack
            }
            Frame::FoldFrom { source, step, reduce, env, current: input } => {
                let before = if reduce { then.clone() } else { Then(None) };
                let mark = self.choose(Kind::Fold { state: current, reduce }, before);
                let after = if reduce { Then(None) } else { then };
                let then = self.then(Frame::FoldItem { mark, step, reduce, env: env.clone() }, after);
                Next::Eval(source, env, input.plain(), then)
            }
            Frame::FoldItem { mark, step, reduce, env } => {
                let Kind::Fold { state, .. } = &mut self.choices[mark].kind else {
                    return Ok(Next::Backtrack);
                };
                let empty = Current::made(&state.trail, Value::Null);
                let state = mem::replace(state, empty);
                let env = self.bind(env, Slot::Mark(mark));
                let env = self.bind(env, Slot::Value(current.value));
                let then = if reduce { self.then(Frame::State(mark), Then(None)) } else { then };
                Next::Eval(step, env, state, then)
            }
            Frame::State(mark) => {
                if let Kind::Fold { state, .. } = &mut self.choices[mark].kind {
                    *state = current;
                }
                Next::Backtrack
            }
            Frame::StepDone { mark, extract, env } => {
                if let Kind::Fold { state, .. } = &mut self.choices[mark].kind {
                    *state = current.clone();
                }
                match extract {
                    Some(extract) => Next::Eval(extract, env, current, then),
                    None => Next::Return(current, then),
                }
            }
            Frame::Arguments { native, terms, mut got, env, current: input } => {
                got.push(current.value);
                return self.arguments(native, terms, got, env, input, then);
            }
            Frame::Raise => return Err(Error::Raised(current.value)),
            Frame::Path(trail) => match current.trail {
                Trail::At(path) => {
                    self.cx.spend(path.len() as u64)?;
                    let value = self.cx.make.list(Rc::unwrap_or_clone(path))?;
                    Next::Return(Current::made(&trail, value), then)
                }
                _ => return Err(self.lost(&current.value)),
            },
            Frame::GetPath(input) => {
                let mut value = get_path(&self.cx, &input.value, &current.value);
                if let Err(Error::Raised(_)) = &value
                    && matches!(input.trail, Trail::At(_))
                    && matches!(input.value, Value::Null)
                {
                    value = Ok(Value::Null);
                }
                let value = value?;
                let mut trail = input.trail;
                if let Value::Array(path) = &current.value {
                    for key in path.as_slice() {
                        trail = self.further(trail, key.clone())?;
                    }
                }
                Next::Return(Current { value, trail }, then)
            }
            Frame::UpdateAt { mark, update, env } => {
                let Trail::At(path) = current.trail else {
                    return Err(self.lost(&current.value));
                };
                drop(current.value);
                let path = Rc::unwrap_or_clone(path);
                self.cx.spend(path.len() as u64)?;
                let Kind::Update { root, .. } = &mut self.choices[mark].kind else {
                    return Ok(Next::Backtrack);
                };
                let value = take_path(&self.cx, root, &path)?;
                let path = self.cx.make.list(path)?;
                let one = self.choose(Kind::UpdateOne { mark, path }, Then(None));
                let current = Current { value, trail: Trail::Off };
                Next::Eval(update, env, current, self.then(Frame::UpdateSet(one), Then(None)))
            }
            Frame::UpdateSet(one) => {
                self.choices.truncate(one + 1);
                let Some(Choice { kind: Kind::UpdateOne { mark, path }, .. }) = self.choices.pop() else {
                    return Ok(Next::Backtrack);
                };
                if let Kind::Update { root, .. } = &mut self.choices[mark].kind
                    && let Value::Array(path) = &path
                {
                    let before = mem::take(root);
                    *root = set_path(&self.cx, before, path.as_slice(), current.value)?;
                }
                Next::Backtrack
            }
            Frame::Count { skip, of, env, current: input } => {
                return self.count(&current.value, skip, of, env, input, then);
            }
            Frame::Counted(mark) => {
                match &mut self.choices[mark].kind {
                    Kind::Limit(left) => {
                        *left -= 1.0;
                        if *left <= 0.0 {
                            self.choices.truncate(mark);
                        }
                    }
                    Kind::Skip(left) if *left > 0.0 => {
                        *left -= 1.0;
                        return Ok(Next::Backtrack);
                    }
                    _ => {}
                }
                Next::Return(current, then)
            }
            Frame::Range { terms, mut got, env, current: input } => {
                got.push(current.value);
                return self.range(terms, got, env, input, then);
            }
            Frame::SliceTo { to, env, current: input } => {
                Next::Eval(to, env, input, self.then(Frame::Slice { from: current.value }, then))
            }
            Frame::Slice { from } => {
                let key = access::slice_key(&self.cx, from, current.value)?;
                Next::Return(Current::made(&current.trail, key), then)
            }
            Frame::Element(of) => {
                let value = get(&self.cx, &of, &current.value)?;
                Next::Return(Current::made(&current.trail, value), then)
            }
        })
    }
}
