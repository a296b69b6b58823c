//! Patterns of `LIKE`.

/// A pattern: `%` stands for any text, `_` for one character, and a backslash before them takes them as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pattern(Vec<Part>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Any,
    One,
    This(char),
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            parts.push(match letter {
                '%' => Part::Any,
                '_' => Part::One,
                '\\' => match letters.next_if(|next| matches!(next, '%' | '_')) {
                    Some(escaped) => Part::This(escaped),
                    None => Part::This('\\'),
                },
                other => Part::This(other),
            });
        }
        parts.dedup_by(|one, before| *one == Part::Any && *before == Part::Any);
        Self(parts)
    }

    /// Whether all of `text` is what the pattern says. After a mismatch only the last `%` takes one character more, so
    /// the time is bounded by the product of both lengths.
    pub(super) fn matches(&self, text: &str) -> bool {
        let letters: Vec<char> = text.chars().collect();
        let (mut at, mut part) = (0, 0);
        let mut resume: Option<(usize, usize)> = None;
        while at < letters.len() {
            match self.0.get(part) {
                Some(Part::Any) => {
                    part += 1;
                    resume = Some((part, at));
                }
                Some(Part::One) => (at, part) = (at + 1, part + 1),
                Some(Part::This(letter)) if *letter == letters[at] => (at, part) = (at + 1, part + 1),
                _ => {
                    let Some((back, taken)) = resume else { return false };
                    resume = Some((back, taken + 1));
                    (at, part) = (taken + 1, back);
                }
            }
        }
        self.0[part..].iter().all(|part| *part == Part::Any)
    }
}
