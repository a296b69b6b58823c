//! Text to tree: a recursive descent over the precedences of the specification's section 3.6.

use super::{DEEPEST, LONGEST, ParseError, Value, like::Pattern};

/// An expression.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Literal(Value),
    Attribute(String),
    Exists(String),
    Not(Box<Node>),
    Negate(Box<Node>),
    /// Operators of one precedence from left to right. A list, so that a long chain is no deep tree.
    Chain(Box<Node>, Vec<(Operator, Node)>),
    Like {
        value: Box<Node>,
        pattern: Pattern,
        negated: bool,
    },
    In {
        value: Box<Node>,
        set: Vec<Node>,
        negated: bool,
    },
    Call {
        name: String,
        arguments: Vec<Node>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Multiply,
    Divide,
    Remainder,
    Add,
    Subtract,
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    And,
    Or,
    Xor,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Digits(String),
    Text(String),
    Sign(&'static str),
    End,
}

pub(super) fn parse(text: &str) -> Result<Node, ParseError> {
    if text.len() > LONGEST {
        let problem = format!("an expression has at most {LONGEST} bytes, this one {}", text.len());
        return Err(ParseError { at: LONGEST, problem });
    }
    let mut parser = Parser { tokens: tokens(text)?, at: 0, depth: 0 };
    let node = parser.expression()?;
    match parser.peek() {
        Token::End => Ok(node),
        _ => parser.fail("an operator or the end"),
    }
}

const SIGNS: [&str; 16] =
    ["<>", "<=", ">=", "!=", "(", ")", ",", "+", "-", "*", "/", "%", "=", "<", ">", "!"];

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, ParseError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(letter) = text[at..].chars().next() {
        let rest = &text[at..];
        let token = if letter.is_ascii_whitespace() {
            at += 1;
            continue;
        } else if letter.is_ascii_alphanumeric() || letter == '_' {
            let word: String =
                rest.chars().take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_').collect();
            let digits = word.bytes().all(|byte| byte.is_ascii_digit());
            let begin = at;
            at += word.len();
            tokens.push((begin, if digits { Token::Digits(word) } else { Token::Word(word) }));
            continue;
        } else if letter == '\'' || letter == '"' {
            let (value, length) = string(rest, letter)
                .ok_or_else(|| ParseError { at, problem: format!("no closing {letter} follows") })?;
            let begin = at;
            at += length;
            tokens.push((begin, Token::Text(value)));
            continue;
        } else if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            Token::Sign(sign)
        } else {
            return Err(ParseError { at, problem: format!("{letter:?} has no meaning here") });
        };
        let Token::Sign(sign) = token else { unreachable!("all others went on") };
        tokens.push((at, token));
        at += sign.len();
    }
    tokens.push((text.len(), Token::End));
    Ok(tokens)
}

/// A string literal at the start of `text`: its value, and how many bytes it takes. A backslash before the delimiter
/// escapes it; any other stays, for patterns.
fn string(text: &str, delimiter: char) -> Option<(String, usize)> {
    let mut value = String::new();
    let mut letters = text.char_indices().skip(1);
    while let Some((at, letter)) = letters.next() {
        if letter == delimiter {
            return Some((value, at + 1));
        }
        if letter == '\\' {
            let (_, escaped) = letters.next()?;
            if escaped != delimiter {
                value.push('\\');
            }
            value.push(escaped);
        } else {
            value.push(letter);
        }
    }
    None
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    at: usize,
    depth: usize,
}

/// Binary operators by precedence, those that bind least first.
const LEVELS: [&[(&str, Operator)]; 4] = [
    &[("AND", Operator::And), ("OR", Operator::Or), ("XOR", Operator::Xor)],
    &[
        ("=", Operator::Equal),
        ("!=", Operator::NotEqual),
        ("<>", Operator::NotEqual),
        (">=", Operator::GreaterOrEqual),
        ("<=", Operator::LessOrEqual),
        ("<", Operator::Less),
        (">", Operator::Greater),
    ],
    &[("+", Operator::Add), ("-", Operator::Subtract)],
    &[("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)],
];

/// Words that name no attribute.
const KEYWORDS: [&str; 9] = ["and", "or", "xor", "not", "like", "in", "exists", "true", "false"];

impl Parser {
    fn peek(&self) -> &Token {
        &self.tokens[self.at].1
    }

    fn next(&mut self) -> Token {
        let token = self.peek().clone();
        if self.at + 1 < self.tokens.len() {
            self.at += 1;
        }
        token
    }

    fn fail<T>(&self, expected: &str) -> Result<T, ParseError> {
        let (at, token) = &self.tokens[self.at];
        let found = match token {
            Token::Word(word) | Token::Digits(word) => format!("{word:?}"),
            Token::Text(text) => format!("the text {text:?}"),
            Token::Sign(sign) => format!("{sign:?}"),
            Token::End => "the end".to_owned(),
        };
        Err(ParseError { at: *at, problem: format!("expected {expected}, found {found}") })
    }

    fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Token::Word(found) if found.eq_ignore_ascii_case(word))
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        if found {
            self.next();
        }
        found
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        let found = matches!(self.peek(), Token::Sign(found) if *found == sign);
        if found {
            self.next();
        }
        found
    }

    fn expression(&mut self) -> Result<Node, ParseError> {
        self.deeper(|parser| parser.binary(0))
    }

    fn deeper(
        &mut self,
        parse: impl FnOnce(&mut Self) -> Result<Node, ParseError>,
    ) -> Result<Node, ParseError> {
        if self.depth == DEEPEST {
            let problem = format!("nested deeper than {DEEPEST}");
            return Err(ParseError { at: self.tokens[self.at].0, problem });
        }
        self.depth += 1;
        let node = parse(self);
        self.depth -= 1;
        node
    }

    fn binary(&mut self, level: usize) -> Result<Node, ParseError> {
        let Some(operators) = LEVELS.get(level) else { return self.postfix() };
        let first = self.binary(level + 1)?;
        let mut rest = Vec::new();
        while let Some(&(_, operator)) =
            operators.iter().find(|(sign, _)| self.take_word(sign) || self.take_sign(sign))
        {
            rest.push((operator, self.binary(level + 1)?));
        }
        Ok(if rest.is_empty() { first } else { Node::Chain(Box::new(first), rest) })
    }

    /// `LIKE` and `IN`, which bind tighter than binary operators and looser than unary ones.
    fn postfix(&mut self) -> Result<Node, ParseError> {
        let mut value = self.unary()?;
        for depth in self.depth.. {
            if depth > DEEPEST {
                let problem = format!("nested deeper than {DEEPEST}");
                return Err(ParseError { at: self.tokens[self.at].0, problem });
            }
            let before = self.at;
            let negated = self.take_word("NOT");
            if self.take_word("LIKE") {
                let Token::Text(pattern) = self.peek() else {
                    return self.fail("a pattern in quotation marks");
                };
                let pattern = Pattern::new(pattern);
                self.next();
                value = Node::Like { value: Box::new(value), pattern, negated };
            } else if self.take_word("IN") {
                if !self.take_sign("(") {
                    return self.fail("a set in parentheses");
                }
                let set = self.list()?;
                if set.is_empty() {
                    return self.fail("a set of at least one value");
                }
                value = Node::In { value: Box::new(value), set, negated };
            } else {
                self.at = before;
                break;
            }
        }
        Ok(value)
    }

    /// Expressions up to a closing parenthesis.
    fn list(&mut self) -> Result<Vec<Node>, ParseError> {
        let mut nodes = Vec::new();
        if self.take_sign(")") {
            return Ok(nodes);
        }
        loop {
            nodes.push(self.expression()?);
            if self.take_sign(")") {
                return Ok(nodes);
            }
            if !self.take_sign(",") {
                return self.fail("\",\" or \")\"");
            }
        }
    }

    fn unary(&mut self) -> Result<Node, ParseError> {
        if self.take_word("NOT") {
            return Ok(Node::Not(Box::new(self.deeper(Self::unary)?)));
        }
        if self.take_sign("-") {
            // The sign belongs to the literal: -2147483648 has no positive counterpart.
            if let Token::Digits(digits) = self.peek() {
                let literal = format!("-{digits}");
                return self.integer(&literal);
            }
            return Ok(Node::Negate(Box::new(self.deeper(Self::unary)?)));
        }
        if self.take_sign("+") {
            let Token::Digits(digits) = self.peek().clone() else { return self.fail("digits after \"+\"") };
            return self.integer(&digits);
        }
        if self.take_word("EXISTS") {
            return match self.peek() {
                Token::Word(name) | Token::Digits(name) if is_name(name) => {
                    let name = name.to_ascii_lowercase();
                    self.next();
                    Ok(Node::Exists(name))
                }
                _ => self.fail("the name of an attribute"),
            };
        }
        self.primary()
    }

    fn integer(&mut self, literal: &str) -> Result<Node, ParseError> {
        let value = literal.parse().map_err(|_| ParseError {
            at: self.tokens[self.at].0,
            problem: format!("{literal} is not within -2147483648 to 2147483647"),
        })?;
        self.next();
        Ok(Node::Literal(Value::Integer(value)))
    }

    fn primary(&mut self) -> Result<Node, ParseError> {
        match self.peek().clone() {
            Token::Digits(digits) => self.integer(&digits),
            Token::Text(text) => {
                self.next();
                Ok(Node::Literal(Value::String(text)))
            }
            Token::Sign("(") => {
                self.next();
                let node = self.expression()?;
                if self.take_sign(")") { Ok(node) } else { self.fail("\")\"") }
            }
            Token::Word(_) if self.is_word("true") || self.is_word("false") => {
                let value = self.is_word("true");
                self.next();
                Ok(Node::Literal(Value::Boolean(value)))
            }
            Token::Word(name) => {
                let called = matches!(self.tokens.get(self.at + 1), Some((_, Token::Sign("("))));
                if called && is_function(&name) {
                    self.next();
                    self.next();
                    return Ok(Node::Call { name: name.to_ascii_uppercase(), arguments: self.list()? });
                }
                if !is_name(&name) {
                    return self.fail("a value, the name of an attribute (letters and digits) or a function");
                }
                self.next();
                Ok(Node::Attribute(name.to_ascii_lowercase()))
            }
            _ => self.fail("a value"),
        }
    }
}

fn is_name(word: &str) -> bool {
    !word.contains('_') && !KEYWORDS.iter().any(|keyword| word.eq_ignore_ascii_case(keyword))
}

fn is_function(word: &str) -> bool {
    word.starts_with(|letter: char| letter.is_ascii_alphabetic())
        && word.chars().all(|letter| letter.is_ascii_alphabetic() || letter == '_')
        && !KEYWORDS.iter().any(|keyword| word.eq_ignore_ascii_case(keyword))
}
