//! The tree of a program, and the operators with their precedences.

use crate::{lex::Token, value::Value};

#[derive(Clone, Debug)]
pub(crate) enum Ast {
    Id,
    Recurse,
    Const(Value),
    Text {
        format: Option<String>,
        parts: Vec<Part>,
    },
    Format(String),
    Array(Option<Box<Ast>>),
    Object(Vec<(Ast, Ast)>),
    Index {
        of: Box<Ast>,
        key: Box<Ast>,
        optional: bool,
    },
    Slice {
        of: Box<Ast>,
        from: Option<Box<Ast>>,
        to: Option<Box<Ast>>,
        optional: bool,
    },
    Iterate {
        of: Box<Ast>,
        optional: bool,
    },
    Negate(Box<Ast>),
    Pipe(Vec<Ast>),
    Comma(Vec<Ast>),
    Binary(Operator, Box<Ast>, Box<Ast>),
    If(Vec<(Ast, Ast)>, Option<Box<Ast>>),
    Try(Box<Ast>, Option<Box<Ast>>),
    Reduce {
        source: Box<Ast>,
        patterns: Vec<Pattern>,
        init: Box<Ast>,
        update: Box<Ast>,
    },
    Foreach {
        source: Box<Ast>,
        patterns: Vec<Pattern>,
        init: Box<Ast>,
        update: Box<Ast>,
        extract: Option<Box<Ast>>,
    },
    Label(String, Box<Ast>),
    Break {
        name: String,
        at: usize,
    },
    Def(Box<Definition>, Box<Ast>),
    Call {
        name: String,
        arguments: Vec<Ast>,
        at: usize,
    },
    Variable {
        name: String,
        at: usize,
    },
    Bind {
        source: Box<Ast>,
        patterns: Vec<Pattern>,
        body: Box<Ast>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum Part {
    Text(String),
    Term(Ast),
}

#[derive(Clone, Debug)]
pub(crate) enum Pattern {
    Variable(String),
    Array(Vec<Pattern>),
    /// Keys; the variable that the key's value is bound to; what takes it apart.
    Object(Vec<(Ast, Option<String>, Option<Pattern>)>),
}

#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) name: String,
    /// With a dollar where it is a value.
    pub(crate) parameters: Vec<String>,
    pub(crate) body: Ast,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Alternative,
    Assign,
    Update,
    UpdateBy(Arithmetic),
    UpdateAlternative,
    Or,
    And,
    Compare(Comparison),
    Arithmetic(Arithmetic),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

#[derive(PartialEq)]
pub(crate) enum Associative {
    Left,
    Right,
    Not,
}

pub(crate) fn operator(token: Token<'_>) -> Option<(Operator, u8, Associative)> {
    use self::{Arithmetic as A, Comparison as C, Operator as O};
    Some(match token {
        Token::Symbol(symbol) => match symbol {
            "//" | "?//" => (O::Alternative, 3, Associative::Right),
            "=" => (O::Assign, 4, Associative::Not),
            "|=" => (O::Update, 4, Associative::Not),
            "+=" => (O::UpdateBy(A::Add), 4, Associative::Not),
            "-=" => (O::UpdateBy(A::Subtract), 4, Associative::Not),
            "*=" => (O::UpdateBy(A::Multiply), 4, Associative::Not),
            "/=" => (O::UpdateBy(A::Divide), 4, Associative::Not),
            "%=" => (O::UpdateBy(A::Remainder), 4, Associative::Not),
            "//=" => (O::UpdateAlternative, 4, Associative::Not),
            "==" => (O::Compare(C::Equal), 7, Associative::Not),
            "!=" => (O::Compare(C::NotEqual), 7, Associative::Not),
            "<" => (O::Compare(C::Less), 7, Associative::Not),
            "<=" => (O::Compare(C::LessOrEqual), 7, Associative::Not),
            ">" => (O::Compare(C::Greater), 7, Associative::Not),
            ">=" => (O::Compare(C::GreaterOrEqual), 7, Associative::Not),
            "+" => (O::Arithmetic(A::Add), 8, Associative::Left),
            "-" => (O::Arithmetic(A::Subtract), 8, Associative::Left),
            "*" => (O::Arithmetic(A::Multiply), 9, Associative::Left),
            "/" => (O::Arithmetic(A::Divide), 9, Associative::Left),
            "%" => (O::Arithmetic(A::Remainder), 9, Associative::Left),
            _ => return None,
        },
        Token::Word("or") => (O::Or, 5, Associative::Left),
        Token::Word("and") => (O::And, 6, Associative::Left),
        _ => return None,
    })
}

impl Ast {
    pub(crate) fn optional(self) -> Self {
        match self {
            Ast::Index { of, key, .. } => Ast::Index { of, key, optional: true },
            Ast::Slice { of, from, to, .. } => Ast::Slice { of, from, to, optional: true },
            Ast::Iterate { of, .. } => Ast::Iterate { of, optional: true },
            other => Ast::Try(Box::new(other), None),
        }
    }
}
