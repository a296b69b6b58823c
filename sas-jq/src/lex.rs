//! Tokens, read on demand: what a quotation mark begins depends on the parser.

use crate::ParseError;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Token<'s> {
    /// A name, maybe with `::`; keywords too.
    Word(&'s str),
    /// `.name`.
    Field(&'s str),
    /// `$name`, without the dollar.
    Variable(&'s str),
    /// `@name`, with the sign.
    Format(&'s str),
    Number(&'s str),
    /// The quotation mark that begins a text.
    Quote,
    Symbol(&'static str),
    End,
}

impl std::fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Token::Word(text) | Token::Format(text) | Token::Number(text) => f.write_str(text),
            Token::Field(name) => write!(f, ".{name}"),
            Token::Variable(name) => write!(f, "${name}"),
            Token::Quote => f.write_str("\""),
            Token::Symbol(text) => f.write_str(text),
            Token::End => f.write_str("the end"),
        }
    }
}

/// Longest first.
const SYMBOLS: [&str; 35] = [
    "?//=", "?//", "//=", "!=", "==", "|=", "+=", "-=", "*=", "/=", "%=", "//", "<=", ">=", "..", "|", ",",
    "=", "<", ">", "+", "-", "*", "/", "%", "(", ")", "[", "]", "{", "}", ":", ";", ".", "?",
];

pub(crate) struct Lexer<'s> {
    pub(crate) text: &'s str,
    pub(crate) at: usize,
}

impl<'s> Lexer<'s> {
    fn rest(&self) -> &'s str {
        &self.text[self.at..]
    }

    /// Past white space and comments.
    pub(crate) fn skip_space(&mut self) {
        loop {
            let rest = self.rest();
            self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
            if !self.rest().starts_with('#') {
                return;
            }
            // A backslash at the end of a comment's line carries it on, an escaped one does not.
            loop {
                let line = self.rest().split('\n').next().unwrap_or_default();
                self.at = (self.at + line.len() + 1).min(self.text.len());
                let line = line.strip_suffix('\r').unwrap_or(line);
                let slashes = line.len() - line.trim_end_matches('\\').len();
                if slashes.is_multiple_of(2) || self.rest().is_empty() {
                    break;
                }
            }
        }
    }

    fn take(&mut self, length: usize) -> &'s str {
        let taken = &self.rest()[..length];
        self.at += length;
        taken
    }

    /// The next token. A text's quotation mark is the only character of it that is taken.
    pub(crate) fn next(&mut self) -> Result<Token<'s>, ParseError> {
        self.skip_space();
        let rest = self.rest();
        let Some(first) = rest.bytes().next() else {
            return Ok(Token::End);
        };
        let name = |text: &str| {
            if text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
                text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())
            } else {
                0
            }
        };
        let path = |text: &str| {
            let mut length = name(text);
            while length > 0 && text[length..].starts_with("::") {
                match name(&text[length + 2..]) {
                    0 => break,
                    more => length += 2 + more,
                }
            }
            length
        };
        match first {
            b'"' => {
                self.at += 1;
                return Ok(Token::Quote);
            }
            b'0'..=b'9' => return Ok(Token::Number(self.number())),
            b'.' if rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
                return Ok(Token::Number(self.number()));
            }
            b'.' if name(&rest[1..]) > 0 => {
                let length = 1 + name(&rest[1..]);
                return Ok(Token::Field(&self.take(length)[1..]));
            }
            b'$' if path(&rest[1..]) > 0 => {
                let length = 1 + path(&rest[1..]);
                return Ok(Token::Variable(&self.take(length)[1..]));
            }
            b'@' if name(&rest[1..]) > 0 => {
                let length = 1 + name(&rest[1..]);
                return Ok(Token::Format(self.take(length)));
            }
            _ => {}
        }
        match path(rest) {
            0 => {}
            length => return Ok(Token::Word(self.take(length))),
        }
        match SYMBOLS.iter().find(|symbol| rest.starts_with(**symbol)) {
            // `?//=` is no token of jq: it is `?` and `//=`.
            Some(&"?//=") => {
                self.at += 1;
                Ok(Token::Symbol("?"))
            }
            Some(symbol) => {
                self.at += symbol.len();
                Ok(Token::Symbol(symbol))
            }
            None => {
                let c = rest.chars().next().unwrap_or_default();
                Err(ParseError::at(self.text, self.at, format!("{c:?} is no part of the language")))
            }
        }
    }

    fn number(&mut self) -> &'s str {
        let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
        let rest = self.rest();
        let mut length = digits(rest);
        if rest[length..].starts_with('.') {
            length += 1 + digits(&rest[length + 1..]);
        }
        if rest[length..].starts_with(['e', 'E']) {
            let sign = usize::from(rest[length + 1..].starts_with(['+', '-']));
            match digits(&rest[length + 1 + sign..]) {
                0 => {}
                more => length += 1 + sign + more,
            }
        }
        self.take(length)
    }

    /// The piece of a text up to its end, or up to what `\(` begins; which of both it was.
    pub(crate) fn piece(&mut self) -> Result<(String, bool), ParseError> {
        let mut text = String::new();
        let open = self.at;
        loop {
            let Some(c) = self.rest().chars().next() else {
                return Err(ParseError::at(
                    self.text,
                    open,
                    "the text has no end: a quotation mark is missing",
                ));
            };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok((text, false)),
                '\\' => {
                    let Some(escaped) = self.rest().chars().next() else { continue };
                    let at = self.at - 1;
                    self.at += escaped.len_utf8();
                    match escaped {
                        '(' => return Ok((text, true)),
                        '"' | '\\' | '/' => text.push(escaped),
                        'b' => text.push('\u{8}'),
                        'f' => text.push('\u{c}'),
                        'n' => text.push('\n'),
                        'r' => text.push('\r'),
                        't' => text.push('\t'),
                        'u' => {
                            let first = self.hex(at)?;
                            let c = match first {
                                0xd800..=0xdbff if self.rest().starts_with("\\u") => {
                                    let before = self.at;
                                    self.at += 2;
                                    let second = self.hex(at)?;
                                    if (0xdc00..=0xdfff).contains(&second) {
                                        char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00))
                                    } else {
                                        self.at = before;
                                        None
                                    }
                                }
                                first => char::from_u32(first),
                            };
                            text.push(c.unwrap_or(char::REPLACEMENT_CHARACTER));
                        }
                        other => {
                            let message =
                                format!("a text has no escape \\{other}: write \\\\ for a backslash");
                            return Err(ParseError::at(self.text, at, message));
                        }
                    }
                }
                c => text.push(c),
            }
        }
    }

    fn hex(&mut self, at: usize) -> Result<u32, ParseError> {
        let digits = self.rest().get(..4).filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()));
        let Some(digits) = digits else {
            return Err(ParseError::at(self.text, at, "\\u takes four hexadecimal digits"));
        };
        self.at += 4;
        Ok(u32::from_str_radix(digits, 16).unwrap_or(0xfffd))
    }
}
