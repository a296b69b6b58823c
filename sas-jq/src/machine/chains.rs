//! Environments and what is to be done next, as chains that are counted and taken down without recursion.

use std::{cell::Cell, mem, rc::Rc};

use super::Frame;
use crate::{
    compile::{Function, Place, Term},
    value::Value,
};

/// Counts the nodes of environments and frames.
pub(super) struct Token(Rc<Cell<usize>>);

impl Token {
    pub(super) fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Token {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[derive(Clone, Default)]
pub(super) struct Env<'p>(pub(super) Option<Rc<Bound<'p>>>);

pub(super) struct Bound<'p> {
    pub(super) slot: Slot<'p>,
    pub(super) outer: Env<'p>,
    pub(super) _token: Token,
}

#[derive(Clone)]
pub(super) enum Slot<'p> {
    Value(Value),
    /// What it sees begins with itself.
    Function(&'p Function),
    Parameter(&'p Term, Env<'p>),
    /// Where in the choices.
    Mark(usize),
}

/// Long chains are taken down in a loop.
impl Drop for Env<'_> {
    fn drop(&mut self) {
        let Some(first) = self.0.take() else { return };
        let mut next = Some(first);
        let mut more: Vec<Self> = Vec::new();
        loop {
            match next.and_then(Rc::into_inner) {
                Some(mut bound) => {
                    if let Slot::Parameter(_, env) = &mut bound.slot
                        && env.0.is_some()
                    {
                        more.push(mem::take(env));
                    }
                    next = bound.outer.0.take();
                }
                None => match more.pop() {
                    Some(mut env) => next = env.0.take(),
                    None => return,
                },
            }
        }
    }
}

impl<'p> Env<'p> {
    pub(super) fn tail(&self, place: Place) -> &Self {
        let mut env = self;
        for _ in 0..place {
            if let Some(bound) = &env.0 {
                env = &bound.outer;
            }
        }
        env
    }

    pub(super) fn slot(&self, place: Place) -> Option<&Slot<'p>> {
        self.tail(place).0.as_ref().map(|bound| &bound.slot)
    }

    pub(super) fn value(&self, place: Place) -> Value {
        match self.slot(place) {
            Some(Slot::Value(value)) => value.clone(),
            _ => Value::Null,
        }
    }

    /// The values, from the one that was bound last.
    pub(super) fn values(&self) -> impl Iterator<Item = &Value> {
        let bound = std::iter::successors(self.0.as_deref(), |bound| bound.outer.0.as_deref());
        bound.filter_map(|bound| match &bound.slot {
            Slot::Value(value) => Some(value),
            _ => None,
        })
    }

    pub(super) fn mark(&self, place: Place) -> usize {
        match self.slot(place) {
            Some(Slot::Mark(mark)) => *mark,
            _ => usize::MAX,
        }
    }
}

/// What is to be done with a result.
#[derive(Clone, Default)]
pub(super) struct Then<'p>(pub(super) Option<Rc<Framed<'p>>>);

pub(super) struct Framed<'p> {
    pub(super) frame: Frame<'p>,
    pub(super) next: Then<'p>,
    pub(super) _token: Token,
}

impl Drop for Then<'_> {
    fn drop(&mut self) {
        let mut next = self.0.take();
        while let Some(mut framed) = next.and_then(Rc::into_inner) {
            next = framed.next.0.take();
        }
    }
}

impl<'p> Then<'p> {
    pub(super) fn pop(mut self) -> Option<(Frame<'p>, Then<'p>)> {
        Some(match Rc::try_unwrap(self.0.take()?) {
            Ok(framed) => (framed.frame, framed.next),
            Err(shared) => (shared.frame.clone(), shared.next.clone()),
        })
    }
}
