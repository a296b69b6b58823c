//! Input that nobody would write: words that matter, in any order, and anything between them.

/// Makes texts out of words that mean something to what reads them. The same seed makes the same texts.
///
/// ```
/// use sas_testkit::soup::Soup;
///
/// let (mut soup, mut again) = (Soup::new(7, &["id", "=", "1"]), Soup::new(7, &["id", "=", "1"]));
/// assert_eq!(soup.text(), again.text());
/// ```
#[derive(Clone, Debug)]
pub struct Soup {
    state: u64,
    words: Vec<&'static str>,
}

/// What messages with CloudEvents in them are made of, whatever carries them.
const OF_EVENTS: &[&str] = &[
    "application/cloudevents",
    "+json",
    "-batch",
    "; charset=utf-8",
    "application/json",
    "text/plain",
    "1.0",
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"specversion\"",
    "\"1.0\"",
    "\"id\"",
    "\"source\"",
    "\"type\"",
    "\"data\"",
    "\"x\"",
    "2147483648",
    "-1",
    "true",
    "2026-01-05T00:00:00Z",
    "2026-01-05T00:00:00.5+01:00",
    "a",
    "%41",
    "%zz",
];

/// What is to be found in every text sooner or later: what no attribute may hold, what is encoded, and what trims and ends.
const STRANGE: [&str; 10] = ["\u{1}", "\u{FFFF}", "\u{FDD0}", "\u{85}", " ", "%", "\"", "ü", "😀", "\r\n"];

impl Soup {
    /// Texts of these words.
    pub fn new(seed: u64, words: &'static [&'static str]) -> Self {
        Self { state: seed, words: words.to_vec() }
    }

    /// Texts of the words that messages with CloudEvents are made of, and of those of one protocol.
    pub fn of_events(seed: u64, own: &'static [&'static str]) -> Self {
        Self { state: seed, words: [OF_EVENTS, own].concat() }
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.state =
            self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // The low bits of such a generator repeat soon.
        (self.state >> 33) as usize % end
    }

    /// No words, or some.
    pub fn text(&mut self) -> String {
        (0..self.below(5))
            .map(|_| match self.below(8) {
                0 => STRANGE[self.below(STRANGE.len())],
                _ => {
                    let at = self.below(self.words.len());
                    self.words[at]
                }
            })
            .collect()
    }

    /// A text, or bytes that are none.
    pub fn bytes(&mut self) -> Vec<u8> {
        let mut bytes = self.text().into_bytes();
        if self.below(4) == 0 {
            bytes.extend_from_slice(&[0xff, 0, self.below(256) as u8]);
        }
        bytes
    }

    /// What `make` makes, in two of three cases.
    pub fn maybe<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        (self.below(3) > 0).then(|| make(self))
    }

    /// The headers of a CloudEvent whose names begin with `prefix`, some of them changed, and others; each value as `value`
    /// makes it of a text.
    pub fn headers<T>(&mut self, prefix: &str, value: impl Fn(Vec<u8>) -> T) -> Vec<(String, T)> {
        let needed = [("specversion", "1.0"), ("id", "7"), ("source", "/s"), ("type", "t")];
        let mut headers = Vec::new();
        let whole = self.below(2) == 0;
        for (name, text) in needed {
            let text = match self.below(if whole { 40 } else { 3 }) {
                0 => self.bytes(),
                _ => text.as_bytes().to_vec(),
            };
            headers.push((format!("{prefix}{name}"), value(text)));
        }
        for _ in 0..self.below(5) {
            let name = match self.below(3) {
                0 => self.text(),
                1 => format!("{prefix}{}", self.text()),
                _ => format!("{prefix}{}", ["subject", "time", "dataschema", "x", "n2"][self.below(5)]),
            };
            headers.push((name, value(self.bytes())));
        }
        headers
    }
}
