//! The parser: jq's grammar with jq's precedences.

use crate::{
    ParseError,
    ast::{Associative, Ast, Definition, Part, Pattern, operator},
    lex::{Lexer, Token},
    value::Value,
};

/// The longest program, in bytes.
pub(crate) const LONGEST: usize = 16 << 10;
/// How deep a program may be nested, as read and as a tree.
const DEEPEST: usize = 96;
/// How many operators and steps may stand in a row, in all that a term is in.
const TALLEST: usize = 200;
/// How many parts all patterns that a term is in may have: each makes the tree deeper by one.
const MOST_PARTS: usize = 100;

/// What may follow a dot or stand before a colon, and is no name of a function.
const KEYWORDS: [&str; 19] = [
    "def", "if", "then", "elif", "else", "end", "as", "reduce", "foreach", "try", "catch", "label", "import",
    "include", "module", "and", "or", "__loc__", "break",
];

pub(crate) struct Parser<'s> {
    lexer: Lexer<'s>,
    /// The next token, where it begins and where what follows it begins.
    ahead: Option<(Token<'s>, usize, usize)>,
    depth: usize,
    tall: usize,
    /// Parts of patterns around this.
    parts: usize,
    /// In what `as` belongs to a `reduce` or `foreach`.
    source: bool,
}

type Parsed<T> = Result<T, ParseError>;

impl<'s> Parser<'s> {
    pub(crate) fn program(text: &'s str) -> Parsed<Ast> {
        if text.len() > LONGEST {
            let message = format!("the expression has {} bytes; at most {LONGEST}", text.len());
            return Err(ParseError::at(text, 0, message));
        }
        let mut parser =
            Self { lexer: Lexer { text, at: 0 }, ahead: None, depth: 0, tall: 0, parts: 0, source: false };
        if let Token::Word(word @ ("import" | "include" | "module")) = parser.peek()? {
            return Err(parser.wrong(format!(
                "{word}: there are no modules here; write the definitions into the expression"
            )));
        }
        let mut definitions = parser.definitions()?;
        let mut body = if parser.peek()? == Token::End { Ast::Id } else { parser.pipe()? };
        if parser.peek()? != Token::End {
            return Err(parser.unexpected("an operator or the end"));
        }
        while let Some(definition) = definitions.pop() {
            body = Ast::Def(Box::new(definition), Box::new(body));
        }
        Ok(body)
    }

    /// Definitions and nothing else.
    pub(crate) fn library(text: &'s str) -> Parsed<Vec<Definition>> {
        let mut parser =
            Self { lexer: Lexer { text, at: 0 }, ahead: None, depth: 0, tall: 0, parts: 0, source: false };
        let definitions = parser.definitions()?;
        match parser.peek()? {
            Token::End => Ok(definitions),
            _ => Err(parser.unexpected("def")),
        }
    }

    fn definitions(&mut self) -> Parsed<Vec<Definition>> {
        let mut definitions = Vec::new();
        while self.peek()? == Token::Word("def") {
            definitions.push(self.definition()?);
            if definitions.len() > TALLEST {
                return Err(self.wrong(format!("more than {TALLEST} definitions")));
            }
        }
        Ok(definitions)
    }

    fn peek(&mut self) -> Parsed<Token<'s>> {
        if let Some((token, _, _)) = self.ahead {
            return Ok(token);
        }
        self.lexer.skip_space();
        let from = self.lexer.at;
        let token = self.lexer.next()?;
        self.ahead = Some((token, from, self.lexer.at));
        Ok(token)
    }

    fn next(&mut self) -> Parsed<Token<'s>> {
        let token = self.peek()?;
        self.ahead = None;
        Ok(token)
    }

    fn at(&mut self) -> usize {
        match self.ahead {
            Some((_, from, _)) => from,
            None => {
                self.lexer.skip_space();
                self.lexer.at
            }
        }
    }

    fn wrong(&mut self, message: impl Into<String>) -> ParseError {
        let at = self.at();
        ParseError::at(self.lexer.text, at, message)
    }

    fn unexpected(&mut self, wanted: &str) -> ParseError {
        match self.peek() {
            Ok(token) => self.wrong(format!("found {token}, expected {wanted}")),
            Err(error) => error,
        }
    }

    fn eat(&mut self, token: Token<'_>) -> Parsed<bool> {
        let eaten = self.peek()? == token;
        if eaten {
            self.ahead = None;
        }
        Ok(eaten)
    }

    fn symbol(&mut self, symbol: &'static str) -> Parsed<()> {
        if self.eat(Token::Symbol(symbol))? { Ok(()) } else { Err(self.unexpected(symbol)) }
    }

    fn word(&mut self, word: &'static str) -> Parsed<()> {
        if self.eat(Token::Word(word))? { Ok(()) } else { Err(self.unexpected(word)) }
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth >= DEEPEST {
            return Err(self.wrong(format!("nested deeper than {DEEPEST}")));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    /// `a | b | …`, with all that binds tighter.
    pub(crate) fn pipe(&mut self) -> Parsed<Ast> {
        let source = std::mem::take(&mut self.source);
        let parsed = self.nested(|parser| {
            let mut terms = vec![parser.comma()?];
            while parser.eat(Token::Symbol("|"))? {
                terms.push(parser.comma()?);
            }
            Ok(if terms.len() == 1 { terms.swap_remove(0) } else { Ast::Pipe(terms) })
        });
        self.source = source;
        parsed
    }

    /// What `reduce` and `foreach` go over.
    fn source(&mut self) -> Parsed<Ast> {
        let before = std::mem::replace(&mut self.source, true);
        let source = self.binary(3);
        self.source = before;
        source
    }

    fn comma(&mut self) -> Parsed<Ast> {
        let mut terms = vec![self.binary(3)?];
        while self.eat(Token::Symbol(","))? {
            terms.push(self.binary(3)?);
        }
        Ok(if terms.len() == 1 { terms.swap_remove(0) } else { Ast::Comma(terms) })
    }

    /// A value in an object: no commas outside of parentheses.
    fn without_comma(&mut self) -> Parsed<Ast> {
        self.nested(|parser| {
            let mut terms = vec![parser.binary(3)?];
            while parser.eat(Token::Symbol("|"))? {
                terms.push(parser.binary(3)?);
            }
            Ok(if terms.len() == 1 { terms.swap_remove(0) } else { Ast::Pipe(terms) })
        })
    }

    fn binary(&mut self, least: u8) -> Parsed<Ast> {
        self.nested(|parser| {
            let mut left = parser.prefix()?;
            let tall = parser.tall;
            while let Some((operator, level, associative)) = operator(parser.peek()?) {
                if level < least {
                    break;
                }
                parser.tall += 1;
                if parser.tall > TALLEST {
                    return Err(parser.wrong(format!("more than {TALLEST} operators in a row")));
                }
                parser.next()?;
                let right =
                    parser.binary(if associative == Associative::Right { level } else { level + 1 })?;
                left = Ast::Binary(operator, Box::new(left), Box::new(right));
                if associative == Associative::Not
                    && let Some((_, next, _)) = crate::ast::operator(parser.peek()?)
                    && next == level
                {
                    return Err(
                        parser.wrong("comparisons and assignments do not stand in a row: use parentheses")
                    );
                }
            }
            parser.tall = tall;
            Ok(left)
        })
    }

    /// What may stand where a term does and takes all that follows: definitions, labels, bindings.
    fn prefix(&mut self) -> Parsed<Ast> {
        match self.peek()? {
            Token::Word("def") => {
                let definition = self.definition()?;
                let rest = self.pipe()?;
                Ok(Ast::Def(Box::new(definition), Box::new(rest)))
            }
            Token::Word("label") => {
                self.next()?;
                let name = self.variable()?;
                self.symbol("|")?;
                Ok(Ast::Label(name, Box::new(self.pipe()?)))
            }
            _ => {
                let term = self.postfix()?;
                if !self.source && self.eat(Token::Word("as"))? {
                    let parts = self.parts;
                    let patterns = self.patterns()?;
                    self.symbol("|")?;
                    let body = self.pipe()?;
                    self.parts = parts;
                    return Ok(Ast::Bind { source: Box::new(term), patterns, body: Box::new(body) });
                }
                Ok(term)
            }
        }
    }

    fn definition(&mut self) -> Parsed<Definition> {
        self.word("def")?;
        let name = self.name()?;
        let mut parameters = Vec::new();
        if self.eat(Token::Symbol("("))? {
            loop {
                parameters.push(match self.peek()? {
                    Token::Variable(name) => {
                        self.next()?;
                        format!("${name}")
                    }
                    _ => self.name()?,
                });
                if self.eat(Token::Symbol(")"))? {
                    break;
                }
                self.symbol(";")?;
            }
        }
        self.symbol(":")?;
        let body = self.pipe()?;
        self.symbol(";")?;
        Ok(Definition { name, parameters, body })
    }

    fn name(&mut self) -> Parsed<String> {
        match self.peek()? {
            Token::Word(word) if !KEYWORDS.contains(&word) && !word.contains("::") => {
                self.next()?;
                Ok(word.to_owned())
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    fn variable(&mut self) -> Parsed<String> {
        match self.peek()? {
            Token::Variable(name) => {
                self.next()?;
                Ok(name.to_owned())
            }
            _ => Err(self.unexpected("a variable, as in $name")),
        }
    }

    fn patterns(&mut self) -> Parsed<Vec<Pattern>> {
        let mut patterns = vec![self.pattern()?];
        while self.eat(Token::Symbol("?//"))? {
            patterns.push(self.pattern()?);
            if patterns.len() > 8 {
                return Err(self.wrong("more than 8 alternative patterns"));
            }
        }
        Ok(patterns)
    }

    fn pattern(&mut self) -> Parsed<Pattern> {
        self.nested(|parser| match parser.peek()? {
            Token::Variable(_) => Ok(Pattern::Variable(parser.variable()?)),
            Token::Symbol("[") => {
                parser.next()?;
                let mut items = vec![parser.item()?];
                while parser.eat(Token::Symbol(","))? {
                    items.push(parser.item()?);
                }
                parser.symbol("]")?;
                Ok(Pattern::Array(items))
            }
            Token::Symbol("{") => {
                parser.next()?;
                let mut members = vec![parser.pattern_member()?];
                while parser.eat(Token::Symbol(","))? {
                    members.push(parser.pattern_member()?);
                }
                parser.symbol("}")?;
                Ok(Pattern::Object(members))
            }
            _ => Err(parser.unexpected("a pattern: a variable, [ or {")),
        })
    }

    /// One more part of a pattern.
    fn part(&mut self) -> Parsed<()> {
        self.parts += 1;
        if self.parts > MOST_PARTS {
            return Err(self.wrong(format!("patterns of more than {MOST_PARTS} parts in all")));
        }
        Ok(())
    }

    fn item(&mut self) -> Parsed<Pattern> {
        self.part()?;
        self.pattern()
    }

    fn pattern_member(&mut self) -> Parsed<(Ast, Option<String>, Option<Pattern>)> {
        self.part()?;
        if let Token::Variable(name) = self.peek()? {
            self.next()?;
            let inner = if self.eat(Token::Symbol(":"))? { Some(self.pattern()?) } else { None };
            return Ok((Ast::Const(name.into()), Some(name.to_owned()), inner));
        }
        let key = self.key()?;
        self.symbol(":")?;
        Ok((key, None, Some(self.pattern()?)))
    }

    /// A key of an object or of a pattern, but a variable.
    fn key(&mut self) -> Parsed<Ast> {
        match self.peek()? {
            Token::Word(word) if !word.contains("::") => {
                self.next()?;
                Ok(Ast::Const(word.into()))
            }
            Token::Quote | Token::Format(_) => self.text(),
            Token::Symbol("(") => {
                let at = self.at();
                self.next()?;
                let key = self.pipe()?;
                self.symbol(")")?;
                if let Ast::Const(value) = &key
                    && value.as_str().is_none()
                {
                    let message = format!("Cannot use {} ({value}) as object key", value.kind());
                    return Err(ParseError::at(self.lexer.text, at, message));
                }
                Ok(key)
            }
            _ => Err(self.unexpected("a key")),
        }
    }

    /// A term with all that follows it: `.a`, `[…]`, `?`.
    fn postfix(&mut self) -> Parsed<Ast> {
        self.nested(|parser| {
            let mut term = parser.term()?;
            let tall = parser.tall;
            loop {
                parser.tall += 1;
                if parser.tall > TALLEST {
                    return Err(parser.wrong(format!("more than {TALLEST} steps in a row")));
                }
                term = match parser.peek()? {
                    Token::Field(name) => {
                        parser.next()?;
                        Ast::Index {
                            of: Box::new(term),
                            key: Box::new(Ast::Const(name.into())),
                            optional: false,
                        }
                    }
                    Token::Symbol("[") => parser.bracket(term)?,
                    Token::Symbol(".") => {
                        parser.next()?;
                        match parser.peek()? {
                            Token::Quote | Token::Format(_) => {
                                let key = parser.text()?;
                                Ast::Index { of: Box::new(term), key: Box::new(key), optional: false }
                            }
                            Token::Symbol("[") => parser.bracket(term)?,
                            _ => return Err(parser.unexpected("a name, a text or [ after the dot")),
                        }
                    }
                    Token::Symbol("?") => {
                        parser.next()?;
                        Ast::optional(term)
                    }
                    // Outside of patterns it is `?` and `//`.
                    Token::Symbol("?//") => {
                        parser.next()?;
                        parser.lexer.at -= 2;
                        Ast::optional(term)
                    }
                    _ => {
                        parser.tall = tall;
                        return Ok(term);
                    }
                };
            }
        })
    }

    fn bracket(&mut self, of: Ast) -> Parsed<Ast> {
        let of = Box::new(of);
        self.symbol("[")?;
        if self.eat(Token::Symbol("]"))? {
            return Ok(Ast::Iterate { of, optional: false });
        }
        if self.eat(Token::Symbol(":"))? {
            let to = Some(Box::new(self.pipe()?));
            self.symbol("]")?;
            return Ok(Ast::Slice { of, from: None, to, optional: false });
        }
        let key = self.pipe()?;
        if self.eat(Token::Symbol(":"))? {
            let to = if self.peek()? == Token::Symbol("]") { None } else { Some(Box::new(self.pipe()?)) };
            self.symbol("]")?;
            return Ok(Ast::Slice { of, from: Some(Box::new(key)), to, optional: false });
        }
        self.symbol("]")?;
        Ok(Ast::Index { of, key: Box::new(key), optional: false })
    }

    /// A text, maybe with a format before it.
    fn text(&mut self) -> Parsed<Ast> {
        let format = match self.peek()? {
            Token::Format(name) => {
                self.next()?;
                if self.peek()? != Token::Quote {
                    return Ok(Ast::Format(name.to_owned()));
                }
                Some(name.to_owned())
            }
            _ => None,
        };
        self.next()?;
        let mut parts = Vec::new();
        loop {
            let (text, more) = self.lexer.piece()?;
            if !text.is_empty() {
                parts.push(Part::Text(text));
            }
            if !more {
                break;
            }
            parts.push(Part::Term(self.pipe()?));
            if self.peek()? != Token::Symbol(")") {
                return Err(self.unexpected(")"));
            }
            self.next()?;
        }
        Ok(match &mut parts[..] {
            [] => Ast::Const("".into()),
            [Part::Text(text)] => Ast::Const(std::mem::take(text).into()),
            _ => Ast::Text { format, parts },
        })
    }

    fn object(&mut self) -> Parsed<Ast> {
        let mut members = Vec::new();
        if self.eat(Token::Symbol("}"))? {
            return Ok(Ast::Object(members));
        }
        loop {
            let at = self.at();
            let (key, value) = match self.peek()? {
                Token::Variable(name) => {
                    self.next()?;
                    let value = if name == "__loc__" {
                        self.location(at)?
                    } else {
                        Ast::Variable { name: name.to_owned(), at }
                    };
                    // `{$name: …}` has the variable's value as its key.
                    if self.peek()? == Token::Symbol(":") {
                        (value, None)
                    } else {
                        (Ast::Const(name.into()), Some(value))
                    }
                }
                Token::Symbol("(") => (self.key()?, None),
                _ => {
                    let key = self.key()?;
                    if self.peek()? == Token::Symbol(":") {
                        (key, None)
                    } else {
                        let value =
                            Ast::Index { of: Box::new(Ast::Id), key: Box::new(key.clone()), optional: false };
                        (key, Some(value))
                    }
                }
            };
            let value = match value {
                Some(value) => value,
                None => {
                    self.symbol(":")?;
                    self.without_comma()?
                }
            };
            members.push((key, value));
            if self.eat(Token::Symbol("}"))? {
                return Ok(Ast::Object(members));
            }
            self.symbol(",")?;
            if self.eat(Token::Symbol("}"))? {
                return Ok(Ast::Object(members));
            }
        }
    }

    fn location(&self, at: usize) -> Parsed<Ast> {
        let line = self.lexer.text[..at].matches('\n').count() + 1;
        Ok(Ast::Object(vec![
            (Ast::Const("file".into()), Ast::Const("<top-level>".into())),
            (Ast::Const("line".into()), Ast::Const(line.into())),
        ]))
    }

    fn term(&mut self) -> Parsed<Ast> {
        let at = self.at();
        let token = self.peek()?;
        match token {
            Token::Quote | Token::Format(_) => return self.text(),
            Token::Word(word) if KEYWORDS.contains(&word) => {}
            Token::Word(word) => {
                self.next()?;
                let mut arguments = Vec::new();
                if self.eat(Token::Symbol("("))? {
                    loop {
                        arguments.push(self.pipe()?);
                        if self.eat(Token::Symbol(")"))? {
                            break;
                        }
                        self.symbol(";")?;
                    }
                }
                return Ok(match (word, arguments.is_empty()) {
                    ("null", true) => Ast::Const(Value::Null),
                    ("true", true) => Ast::Const(Value::Bool(true)),
                    ("false", true) => Ast::Const(Value::Bool(false)),
                    _ => Ast::Call { name: word.to_owned(), arguments, at },
                });
            }
            _ => {}
        }
        self.next()?;
        Ok(match token {
            Token::Number(text) => Ast::Const(number(text)),
            Token::Field(name) => {
                Ast::Index { of: Box::new(Ast::Id), key: Box::new(Ast::Const(name.into())), optional: false }
            }
            Token::Variable("__loc__") => self.location(at)?,
            Token::Variable(name) => Ast::Variable { name: name.to_owned(), at },
            Token::Symbol("..") => Ast::Recurse,
            Token::Symbol(".") => match self.peek()? {
                Token::Quote | Token::Format(_) => {
                    let key = self.text()?;
                    Ast::Index { of: Box::new(Ast::Id), key: Box::new(key), optional: false }
                }
                _ => Ast::Id,
            },
            Token::Symbol("-") => Ast::Negate(Box::new(self.postfix()?)),
            Token::Symbol("(") => {
                let inner = self.pipe()?;
                self.symbol(")")?;
                inner
            }
            Token::Symbol("[") => {
                if self.eat(Token::Symbol("]"))? {
                    return Ok(Ast::Array(None));
                }
                let inner = self.pipe()?;
                self.symbol("]")?;
                Ast::Array(Some(Box::new(inner)))
            }
            Token::Symbol("{") => self.object()?,
            Token::Word("if") => {
                let mut branches = Vec::new();
                let condition = self.pipe()?;
                self.word("then")?;
                branches.push((condition, self.pipe()?));
                loop {
                    if self.eat(Token::Word("elif"))? {
                        let condition = self.pipe()?;
                        self.word("then")?;
                        branches.push((condition, self.pipe()?));
                        if branches.len() > TALLEST / 4 {
                            return Err(self.wrong(format!("more than {} branches", TALLEST / 4)));
                        }
                    } else if self.eat(Token::Word("else"))? {
                        let other = self.pipe()?;
                        self.word("end")?;
                        break Ast::If(branches, Some(Box::new(other)));
                    } else if self.eat(Token::Word("end"))? {
                        break Ast::If(branches, None);
                    } else {
                        return Err(self.unexpected("elif, else or end"));
                    }
                }
            }
            Token::Word("try") => {
                let body = self.postfix()?;
                let catch =
                    if self.eat(Token::Word("catch"))? { Some(Box::new(self.postfix()?)) } else { None };
                Ast::Try(Box::new(body), catch)
            }
            Token::Word("break") => Ast::Break { name: self.variable()?, at },
            Token::Word(word @ ("reduce" | "foreach")) => {
                let source = Box::new(self.source()?);
                self.word("as")?;
                let parts = self.parts;
                let patterns = self.patterns()?;
                self.symbol("(")?;
                let init = Box::new(self.pipe()?);
                self.symbol(";")?;
                let update = Box::new(self.pipe()?);
                let extract = if word == "foreach" && self.eat(Token::Symbol(";"))? {
                    Some(Box::new(self.pipe()?))
                } else {
                    None
                };
                self.symbol(")")?;
                self.parts = parts;
                if word == "reduce" {
                    Ast::Reduce { source, patterns, init, update }
                } else {
                    Ast::Foreach { source, patterns, init, update, extract }
                }
            }
            token => {
                let message = format!("found {token}, expected a term");
                return Err(ParseError::at(self.lexer.text, at, message));
            }
        })
    }
}

fn number(text: &str) -> Value {
    match text.parse::<i64>() {
        Ok(whole) => Value::Int(whole),
        Err(_) => Value::Float(text.parse().unwrap_or(f64::NAN)),
    }
}
