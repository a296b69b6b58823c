use std::io::{self, BufRead, Read};

use super::TraceError;

/// A row is never longer: a day of minutes of a busy function is 10 kB, a year of them 4 MB.
const LONGEST: u64 = 16 << 20;

/// Numbered lines, one at a time.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    line: u64,
    text: String,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, line: 0, text: String::new() }
    }

    pub(super) fn number(&self) -> u64 {
        self.line
    }

    /// The next line without its end. A blank last line is no row.
    pub(super) fn next(&mut self) -> Result<Option<&str>, TraceError> {
        self.text.clear();
        self.line += 1;
        let line = self.line;
        let failed = |source: io::Error| TraceError::Read { line, source };
        let read = self.input.by_ref().take(LONGEST + 1).read_line(&mut self.text).map_err(failed)?;
        if read as u64 > LONGEST {
            let problem = format!("at most {LONGEST} bytes long");
            return Err(TraceError::at(line, "row", &self.text, problem));
        }
        let text = self.text.trim_end_matches(['\n', '\r']);
        if text.is_empty() {
            return if read == 0 || self.input.fill_buf().map_err(failed)?.is_empty() {
                Ok(None)
            } else {
                Err(TraceError::at(line, "row", "", "a row, not a blank line"))
            };
        }
        let length = text.len();
        Ok(Some(&self.text[..length]))
    }
}

/// The fields of a row, as many as the header has.
pub(super) fn fields<'a, const N: usize>(
    line: u64,
    row: &'a str,
    columns: &[String],
    out: &mut smallvec::SmallVec<[&'a str; N]>,
) -> Result<(), TraceError> {
    out.extend(row.split(','));
    if out.len() == columns.len() {
        return Ok(());
    }
    let problem = format!("a row of {} fields, not {}", columns.len(), out.len());
    Err(TraceError::at(line, "row", row, problem))
}

/// A whole, non-negative number.
pub(super) fn whole<T: std::str::FromStr>(line: u64, column: &str, text: &str) -> Result<T, TraceError> {
    text.trim().parse().map_err(|_| TraceError::at(line, column, text, "a whole number"))
}

/// A finite, non-negative number.
pub(super) fn number(line: u64, column: &str, text: &str) -> Result<f64, TraceError> {
    match text.trim().parse::<f64>() {
        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
        _ => Err(TraceError::at(line, column, text, "a number of at least 0")),
    }
}
