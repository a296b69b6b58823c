//! From the tree to terms in which every name is a place: how many bindings further out it stands.

use std::{collections::HashMap, sync::LazyLock};

use crate::{
    ParseError,
    ast::{Arithmetic, Ast, Comparison, Definition, Operator, Part, Pattern},
    format::Format,
    natives::{self, Native},
    parse::Parser,
    value::{Maker, Value},
};

/// A place in the environment: 0 is what was bound last.
pub(crate) type Place = u32;

#[derive(Debug)]
pub(crate) enum Term {
    Id,
    Const(Value),
    Variable(Place),
    Text(Format, Box<[TextPart]>),
    Format(Format),
    Collect(Box<Term>),
    Object(Box<[(Term, Term)]>),
    Index {
        of: Box<Term>,
        key: Box<Term>,
        optional: bool,
    },
    /// The object by which a slice is known: `{"start": …, "end": …}`.
    Slice(Box<Term>, Box<Term>),
    Iterate {
        of: Box<Term>,
        optional: bool,
    },
    Negate(Box<Term>),
    Pipe(Box<[Term]>),
    Comma(Box<[Term]>),
    Arithmetic(Arithmetic, Box<Term>, Box<Term>),
    Compare(Comparison, Box<Term>, Box<Term>),
    And(Box<Term>, Box<Term>),
    Or(Box<Term>, Box<Term>),
    Alternative(Box<Term>, Box<Term>),
    If(Box<[(Term, Term)]>, Option<Box<Term>>),
    Try(Box<Term>, Option<Box<Term>>),
    /// What the first raises goes to the second, with the same input: `?//`.
    Fallback(Box<Term>, Box<Term>),
    /// `step` sees the mark and, bound last, the element.
    Reduce {
        source: Box<Term>,
        init: Box<Term>,
        step: Box<Term>,
    },
    Foreach {
        source: Box<Term>,
        init: Box<Term>,
        step: Box<Term>,
    },
    /// The end of a step: the state is what `update` makes of it; goes on with `extract`.
    Step {
        mark: Place,
        update: Box<Term>,
        extract: Option<Box<Term>>,
    },
    Label(Box<Term>),
    Break(Place),
    Def(Box<Function>, Box<Term>),
    Call(Place, Box<[Term]>),
    CallLibrary(usize, Box<[Term]>),
    /// A parameter that is a filter.
    Parameter(Place),
    Native(&'static Native, Box<[Term]>),
    Bind(Box<Term>, Box<Term>),
    Empty,
    Error(Box<Term>),
    Path(Box<Term>),
    GetPath(Box<Term>),
    Update(Box<Term>, Box<Term>),
    Limit(Box<Term>, Box<Term>),
    Skip(Box<Term>, Box<Term>),
    Range(Box<[Term; 3]>),
    /// Whether a value is an element, or a member, of the input: for taking things apart.
    Element(Box<Term>, Box<Term>),
}

#[derive(Debug)]
pub(crate) enum TextPart {
    Text(String),
    Term(Term),
}

#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) body: Term,
}

/// jq's functions that are written in jq.
pub(crate) struct Library {
    pub(crate) functions: Vec<Function>,
    names: HashMap<(String, usize), usize>,
}

static LIBRARY: LazyLock<Library> = LazyLock::new(|| {
    let definitions =
        Parser::library(include_str!("library.jq")).expect("the library is jq: a test reads it");
    let names: HashMap<_, _> = definitions
        .iter()
        .enumerate()
        .map(|(at, definition)| ((definition.name.clone(), definition.parameters.len()), at))
        .collect();
    let mut compiler = Compiler { text: "", scopes: Vec::new(), names: &names, left: usize::MAX };
    let functions = definitions
        .into_iter()
        .map(|definition| {
            compiler.function(definition).expect("the library's names are known: a test compiles it")
        })
        .collect();
    Library { functions, names }
});

pub(crate) fn library() -> &'static Library {
    &LIBRARY
}

/// All functions, as `name/arity`.
pub(crate) fn builtins() -> Vec<String> {
    let special = SPECIAL.iter().map(|(name, arity)| format!("{name}/{arity}"));
    let natives = natives::all().map(|native| format!("{}/{}", native.name, native.arity));
    let library = library().names.keys().map(|(name, arity)| format!("{name}/{arity}"));
    let mut all: Vec<String> =
        special.chain(natives).chain(library).filter(|name| !name.starts_with('_')).collect();
    all.sort_unstable();
    all
}

const SPECIAL: [(&str, usize); 13] = [
    ("empty", 0),
    ("error", 0),
    ("error", 1),
    ("path", 1),
    ("getpath", 1),
    ("limit", 2),
    ("first", 1),
    ("skip", 2),
    ("range", 1),
    ("range", 2),
    ("range", 3),
    ("_modify", 2),
    ("not", 0),
];

/// What reaches outside of the expression: host, clock, other inputs.
const REFUSED: [(&str, &str); 18] = [
    ("env", "the environment is the host's; pass what is needed as a variable"),
    ("input", "an expression has one input"),
    ("inputs", "an expression has one input"),
    ("input_line_number", "an expression has one input"),
    ("input_filename", "an expression has one input"),
    ("halt", "it would end the host; use error"),
    ("halt_error", "it would end the host; use error"),
    ("now", "the same expression must always give the same; pass the time as a variable"),
    ("debug", "there is nowhere to write to"),
    ("stderr", "there is nowhere to write to"),
    ("get_search_list", "there are no modules here"),
    ("modulemeta", "there are no modules here"),
    ("get_prog_origin", "there are no modules here"),
    ("get_jq_origin", "there are no modules here"),
    ("$ENV", "the environment is the host's; pass what is needed as a variable"),
    ("$__prog_args", "there are no arguments; pass what is needed as a variable"),
    ("getenv", "the environment is the host's; pass what is needed as a variable"),
    ("splitpath", "there are no files here"),
];

enum Scope {
    Function { name: String, arity: usize },
    Parameter(String),
    Variable(String),
    Label(String),
    Hidden,
}

struct Compiler<'s, 'n> {
    text: &'s str,
    scopes: Vec<Scope>,
    names: &'n HashMap<(String, usize), usize>,
    /// How many terms may still be made: alternative patterns compile their bodies more than once.
    left: usize,
}

/// Most terms of a program.
const MOST_TERMS: usize = 1 << 16;

/// Compiles a program that may use these variables; the last is the one bound last.
pub(crate) fn program(text: &str, variables: &[&str]) -> Result<Term, ParseError> {
    let ast = Parser::program(text)?;
    let scopes = variables.iter().map(|name| Scope::Variable((*name).to_owned())).collect();
    let mut compiler = Compiler { text, scopes, names: &library().names, left: MOST_TERMS };
    compiler.term(ast)
}

type Compiled<T> = Result<T, ParseError>;

impl Compiler<'_, '_> {
    fn wrong(&self, at: usize, message: String) -> ParseError {
        ParseError::at(self.text, at.min(self.text.len()), message)
    }

    fn within<T>(&mut self, scope: Scope, compile: impl FnOnce(&mut Self) -> Compiled<T>) -> Compiled<T> {
        self.scopes.push(scope);
        let compiled = compile(self);
        self.scopes.pop();
        compiled
    }

    fn find(&self, is: impl Fn(&Scope) -> bool) -> Option<Place> {
        let place = self.scopes.iter().rev().position(is)?;
        Place::try_from(place).ok()
    }

    fn boxed(&mut self, ast: Ast) -> Compiled<Box<Term>> {
        Ok(Box::new(self.term(ast)?))
    }

    fn terms(&mut self, terms: Vec<Ast>) -> Compiled<Box<[Term]>> {
        terms.into_iter().map(|term| self.term(term)).collect()
    }

    fn term(&mut self, ast: Ast) -> Compiled<Term> {
        self.left = match self.left.checked_sub(1) {
            Some(left) => left,
            None => return Err(self.wrong(0, format!("the expression makes more than {MOST_TERMS} terms"))),
        };
        Ok(match ast {
            Ast::Id => Term::Id,
            Ast::Recurse => self.call("recurse".to_owned(), Vec::new(), 0)?,
            Ast::Const(value) => Term::Const(value),
            Ast::Text { format, parts } => self.interpolation(format, parts)?,
            Ast::Format(name) => Term::Format(self.format(&name)?),
            Ast::Array(None) => Term::Const(Maker::outside().list(Vec::new()).unwrap_or_default()),
            Ast::Array(Some(inner)) => Term::Collect(self.boxed(*inner)?),
            Ast::Object(members) => Term::Object(
                members
                    .into_iter()
                    .map(|(key, value)| Ok((self.term(key)?, self.term(value)?)))
                    .collect::<Compiled<_>>()?,
            ),
            Ast::Index { of, key, optional } => {
                Term::Index { of: self.boxed(*of)?, key: self.boxed(*key)?, optional }
            }
            Ast::Slice { of, from, to, optional } => {
                let mut bound = |bound: Option<Box<Ast>>| match bound {
                    Some(bound) => self.boxed(*bound),
                    None => Ok(Box::new(Term::Const(Value::Null))),
                };
                let (from, to) = (bound(from)?, bound(to)?);
                Term::Index { of: self.boxed(*of)?, key: Box::new(Term::Slice(from, to)), optional }
            }
            Ast::Iterate { of, optional } => Term::Iterate { of: self.boxed(*of)?, optional },
            Ast::Negate(inner) => Term::Negate(self.boxed(*inner)?),
            Ast::Pipe(terms) => Term::Pipe(self.terms(terms)?),
            Ast::Comma(terms) => Term::Comma(self.terms(terms)?),
            Ast::Binary(operator, a, b) => self.binary(operator, *a, *b)?,
            Ast::If(branches, other) => self.branches(branches, other)?,
            Ast::Try(body, catch) => {
                let body = self.boxed(*body)?;
                Term::Try(body, catch.map(|catch| self.boxed(*catch)).transpose()?)
            }
            Ast::Reduce { source, patterns, init, update } => {
                self.fold(*source, &patterns, *init, *update, None, true)?
            }
            Ast::Foreach { source, patterns, init, update, extract } => {
                self.fold(*source, &patterns, *init, *update, extract, false)?
            }
            Ast::Label(name, body) => {
                let body = self.within(Scope::Label(name), |inner| inner.boxed(*body))?;
                Term::Label(body)
            }
            Ast::Break { name, at } => {
                match self.find(|scope| matches!(scope, Scope::Label(label) if *label == name)) {
                    Some(place) => Term::Break(place),
                    None => return Err(self.wrong(at, format!("$*label-{name} is not defined"))),
                }
            }
            Ast::Def(definition, rest) => {
                let scope =
                    Scope::Function { name: definition.name.clone(), arity: definition.parameters.len() };
                self.within(scope, |inner| {
                    let function = Box::new(inner.function(*definition)?);
                    Ok(Term::Def(function, inner.boxed(*rest)?))
                })?
            }
            Ast::Call { name, arguments, at } => self.call(name, arguments, at)?,
            Ast::Variable { name, at } => self.variable(&name, at)?,
            Ast::Bind { source, patterns, body } => {
                let source = self.boxed(*source)?;
                let body = self.within(Scope::Hidden, |inner| {
                    inner.destructured(&patterns, &mut |inner| inner.term((*body).clone()))
                })?;
                Term::Bind(source, Box::new(body))
            }
        })
    }

    fn variable(&self, name: &str, at: usize) -> Compiled<Term> {
        if let Some(place) = self.find(|scope| matches!(scope, Scope::Variable(known) if known == name)) {
            return Ok(Term::Variable(place));
        }
        let dollar = format!("${name}");
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == dollar) {
            return Err(self.wrong(at, format!("{dollar} is refused: {why}")));
        }
        Err(self.wrong(at, format!("{dollar} is not defined")))
    }

    fn format(&self, name: &str) -> Compiled<Format> {
        Format::named(name).ok_or_else(|| self.wrong(0, format!("{name} is not a valid format")))
    }

    fn interpolation(&mut self, format: Option<String>, parts: Vec<Part>) -> Compiled<Term> {
        let format = self.format(format.as_deref().unwrap_or("@text"))?;
        let parts = parts.into_iter().map(|part| {
            Ok(match part {
                Part::Text(text) => TextPart::Text(text),
                Part::Term(term) => TextPart::Term(self.term(term)?),
            })
        });
        Ok(Term::Text(format, parts.collect::<Compiled<_>>()?))
    }

    fn branches(&mut self, branches: Vec<(Ast, Ast)>, other: Option<Box<Ast>>) -> Compiled<Term> {
        let branches = branches
            .into_iter()
            .map(|(condition, then)| Ok((self.term(condition)?, self.term(then)?)))
            .collect::<Compiled<_>>()?;
        Ok(Term::If(branches, other.map(|other| self.boxed(*other)).transpose()?))
    }

    fn binary(&mut self, operator: Operator, a: Ast, b: Ast) -> Compiled<Term> {
        let updated = |compiler: &mut Self, a: Ast, b: Ast, by: fn(Term) -> Term| {
            let value = compiler.boxed(b)?;
            let update = compiler.within(Scope::Hidden, |inner| {
                Ok(Term::Update(inner.boxed(a)?, Box::new(by(Term::Variable(0)))))
            })?;
            Ok(Term::Bind(value, Box::new(update)))
        };
        Ok(match operator {
            Operator::Alternative => Term::Alternative(self.boxed(a)?, self.boxed(b)?),
            Operator::Or => Term::Or(self.boxed(a)?, self.boxed(b)?),
            Operator::And => Term::And(self.boxed(a)?, self.boxed(b)?),
            Operator::Compare(comparison) => Term::Compare(comparison, self.boxed(a)?, self.boxed(b)?),
            Operator::Arithmetic(arithmetic) => Term::Arithmetic(arithmetic, self.boxed(a)?, self.boxed(b)?),
            Operator::Update => Term::Update(self.boxed(a)?, self.boxed(b)?),
            Operator::Assign => updated(self, a, b, |value| value)?,
            Operator::UpdateAlternative => {
                updated(self, a, b, |value| Term::Alternative(Box::new(Term::Id), Box::new(value)))?
            }
            Operator::UpdateBy(arithmetic) => {
                let by: fn(Term) -> Term = match arithmetic {
                    Arithmetic::Add => |b| Term::Arithmetic(Arithmetic::Add, Box::new(Term::Id), Box::new(b)),
                    Arithmetic::Subtract => {
                        |b| Term::Arithmetic(Arithmetic::Subtract, Box::new(Term::Id), Box::new(b))
                    }
                    Arithmetic::Multiply => {
                        |b| Term::Arithmetic(Arithmetic::Multiply, Box::new(Term::Id), Box::new(b))
                    }
                    Arithmetic::Divide => {
                        |b| Term::Arithmetic(Arithmetic::Divide, Box::new(Term::Id), Box::new(b))
                    }
                    Arithmetic::Remainder => {
                        |b| Term::Arithmetic(Arithmetic::Remainder, Box::new(Term::Id), Box::new(b))
                    }
                };
                updated(self, a, b, by)?
            }
        })
    }

    fn fold(
        &mut self,
        source: Ast,
        patterns: &[Pattern],
        init: Ast,
        update: Ast,
        extract: Option<Box<Ast>>,
        reduce: bool,
    ) -> Compiled<Term> {
        let source = self.boxed(source)?;
        let init = self.boxed(init)?;
        // Below: the mark, then the element.
        let mark = self.scopes.len();
        self.scopes.extend([Scope::Hidden, Scope::Hidden]);
        let step = self.destructured(patterns, &mut |inner| {
            if reduce {
                return inner.term(update.clone());
            }
            let place = Place::try_from(inner.scopes.len() - mark - 1).unwrap_or(Place::MAX);
            let update = inner.boxed(update.clone())?;
            let extract = extract.clone().map(|extract| inner.boxed(*extract)).transpose()?;
            Ok(Term::Step { mark: place, update, extract })
        });
        self.scopes.truncate(mark);
        let step = Box::new(step?);
        Ok(if reduce { Term::Reduce { source, init, step } } else { Term::Foreach { source, init, step } })
    }

    /// Takes apart what was bound last (hidden), and then does `body`.
    fn destructured(
        &mut self,
        patterns: &[Pattern],
        body: &mut dyn FnMut(&mut Self) -> Compiled<Term>,
    ) -> Compiled<Term> {
        if let [pattern] = patterns {
            return self.pattern(pattern, 0, body);
        }
        // All variables of all patterns are there in each; those of the others are null.
        let mut names = Vec::new();
        for pattern in patterns {
            variables(pattern, &mut names);
        }
        let mut term: Option<Term> = None;
        for pattern in patterns.iter().rev() {
            let outer = self.scopes.len();
            self.scopes.extend(names.iter().map(|name| Scope::Variable(name.clone())));
            let place = Place::try_from(names.len()).unwrap_or(Place::MAX);
            let one = self.pattern(pattern, place, body);
            self.scopes.truncate(outer);
            let one = names
                .iter()
                .fold(one?, |body, _| Term::Bind(Box::new(Term::Const(Value::Null)), Box::new(body)));
            term = Some(match term {
                None => one,
                Some(rest) => Term::Fallback(Box::new(one), Box::new(rest)),
            });
        }
        Ok(term.unwrap_or(Term::Empty))
    }

    /// Takes apart what stands at `place`.
    fn pattern(
        &mut self,
        pattern: &Pattern,
        place: Place,
        body: &mut dyn FnMut(&mut Self) -> Compiled<Term>,
    ) -> Compiled<Term> {
        self.left = self.left.saturating_sub(1);
        match pattern {
            Pattern::Variable(name) => {
                let body = self.within(Scope::Variable(name.clone()), |inner| body(inner))?;
                Ok(Term::Bind(Box::new(Term::Variable(place)), Box::new(body)))
            }
            Pattern::Array(items) => self.items(items, 0, self.scopes.len(), place, body),
            Pattern::Object(members) => self.members(members, self.scopes.len(), place, body),
        }
    }

    /// How far out `place`, seen from where `base` scopes were, is now.
    fn moved(&self, base: usize, place: Place) -> Place {
        place + Place::try_from(self.scopes.len() - base).unwrap_or(Place::MAX)
    }

    fn items(
        &mut self,
        items: &[Pattern],
        at: usize,
        base: usize,
        place: Place,
        body: &mut dyn FnMut(&mut Self) -> Compiled<Term>,
    ) -> Compiled<Term> {
        let Some((first, rest)) = items.split_first() else {
            return body(self);
        };
        let of = Box::new(Term::Variable(self.moved(base, place)));
        let element = Term::Element(of, Box::new(Term::Const(at.into())));
        let inner = self.within(Scope::Hidden, |inner| {
            inner.pattern(first, 0, &mut |inner| inner.items(rest, at + 1, base, place, body))
        })?;
        Ok(Term::Bind(Box::new(element), Box::new(inner)))
    }

    fn members(
        &mut self,
        members: &[(Ast, Option<String>, Option<Pattern>)],
        base: usize,
        place: Place,
        body: &mut dyn FnMut(&mut Self) -> Compiled<Term>,
    ) -> Compiled<Term> {
        let Some(((key, name, pattern), rest)) = members.split_first() else {
            return body(self);
        };
        let of = Box::new(Term::Variable(self.moved(base, place)));
        let element = Term::Element(of, self.boxed(key.clone())?);
        let scope = match name {
            Some(name) => Scope::Variable(name.clone()),
            None => Scope::Hidden,
        };
        let inner = self.within(scope, |inner| match pattern {
            Some(pattern) => inner.pattern(pattern, 0, &mut |inner| inner.members(rest, base, place, body)),
            None => inner.members(rest, base, place, body),
        })?;
        Ok(Term::Bind(Box::new(element), Box::new(inner)))
    }

    /// A function's own scope, if it has one, is there already.
    fn function(&mut self, definition: Definition) -> Compiled<Function> {
        let outer = self.scopes.len();
        let parameters = &definition.parameters;
        self.scopes.extend(
            parameters.iter().map(|name| Scope::Parameter(name.strip_prefix('$').unwrap_or(name).to_owned())),
        );
        let values: Vec<&str> = parameters.iter().filter_map(|name| name.strip_prefix('$')).collect();
        let mut sources = Vec::new();
        for name in &values {
            let place = self.find(|scope| matches!(scope, Scope::Parameter(known) if known == name));
            sources.push(Term::Parameter(place.unwrap_or_default()));
            self.scopes.push(Scope::Variable((*name).to_owned()));
        }
        let body = self.term(definition.body);
        self.scopes.truncate(outer);
        let body = sources
            .into_iter()
            .rev()
            .fold(body?, |body, source| Term::Bind(Box::new(source), Box::new(body)));
        Ok(Function { body })
    }

    fn call(&mut self, name: String, arguments: Vec<Ast>, at: usize) -> Compiled<Term> {
        let arity = arguments.len();
        let place = self.find(|scope| match scope {
            Scope::Function { name: known, arity: count } => *known == name && *count == arity,
            Scope::Parameter(known) => *known == name && arity == 0,
            _ => false,
        });
        if let Some(place) = place {
            let scope = &self.scopes[self.scopes.len() - 1 - place as usize];
            if matches!(scope, Scope::Parameter(_)) {
                return Ok(Term::Parameter(place));
            }
            return Ok(Term::Call(place, self.terms(arguments)?));
        }
        if SPECIAL.contains(&(name.as_str(), arity)) {
            return self.special(&name, arguments);
        }
        if let Some(native) = natives::find(&name, arity) {
            return Ok(Term::Native(native, self.terms(arguments)?));
        }
        if let Some(function) = self.names.get(&(name.clone(), arity)) {
            return Ok(Term::CallLibrary(*function, self.terms(arguments)?));
        }
        if let Some((_, why)) = REFUSED.iter().find(|(refused, _)| *refused == name) {
            return Err(self.wrong(at, format!("{name} is refused: {why}")));
        }
        Err(self.wrong(at, format!("{name}/{arity} is not defined")))
    }

    fn special(&mut self, name: &str, arguments: Vec<Ast>) -> Compiled<Term> {
        let one = || Box::new(Term::Const(Value::Int(1)));
        let mut terms = self.terms(arguments)?.into_vec().into_iter();
        let mut next = || Box::new(terms.next().unwrap_or(Term::Id));
        Ok(match name {
            "empty" => Term::Empty,
            "error" => Term::Error(next()),
            "path" => Term::Path(next()),
            "getpath" => Term::GetPath(next()),
            "limit" => Term::Limit(next(), next()),
            "first" => Term::Limit(one(), next()),
            "skip" => Term::Skip(next(), next()),
            "_modify" => Term::Update(next(), next()),
            "not" => Term::If(
                Box::new([(Term::Id, Term::Const(Value::Bool(false)))]),
                Some(Box::new(Term::Const(Value::Bool(true)))),
            ),
            _ => {
                let first = terms.next().unwrap_or(Term::Id);
                match terms.next() {
                    None => Term::Range(Box::new([Term::Const(Value::Int(0)), first, *one()])),
                    Some(second) => {
                        Term::Range(Box::new([first, second, terms.next().unwrap_or_else(|| *one())]))
                    }
                }
            }
        })
    }
}

fn variables(pattern: &Pattern, names: &mut Vec<String>) {
    let mut add = |name: &String| {
        if !names.contains(name) {
            names.push(name.clone());
        }
    };
    match pattern {
        Pattern::Variable(name) => add(name),
        Pattern::Array(items) => items.iter().for_each(|item| variables(item, names)),
        Pattern::Object(members) => {
            for (_, name, _) in members {
                if let Some(name) = name {
                    add(name);
                }
            }
            for (_, _, pattern) in members {
                if let Some(pattern) = pattern {
                    variables(pattern, names);
                }
            }
        }
    }
}
