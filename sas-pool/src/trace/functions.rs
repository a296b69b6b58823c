use std::io::BufRead;

use smallvec::SmallVec;

use super::{
    TraceError,
    lines::{Lines, fields, number, whole},
};

/// When a function was called: the minutes in which it was active.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Function {
    /// Its id in the trace.
    pub id: String,
    /// How many functions of the population it stands for.
    pub weight: f64,
    /// How often the function was called in the whole trace.
    pub total: u64,
    /// How many minutes were watched.
    pub minutes: u32,
    /// The minute of the day in which the watch began.
    pub start_minute: u32,
    /// The minutes with a call, counted from the start of the watch, ascending, and the calls (or busy containers) in
    /// each.
    pub active: Vec<(u32, u32)>,
}

impl Function {
    /// A function of weight 1, watched for `minutes` from midnight, with `active` ascending and below `minutes`.
    pub fn new(id: impl Into<String>, minutes: u32, active: Vec<(u32, u32)>) -> Self {
        let total = active.iter().map(|&(_, calls)| u64::from(calls)).sum();
        Self { id: id.into(), weight: 1.0, total, minutes, start_minute: 0, active }
    }
}

/// A row per function: `fid,…,counts`, run-length coded (`zN`: N minutes of nothing, `v*N`: v in each of N minutes), or
/// `app,mem_mb,invocations,containers_per_min`.
#[derive(Debug)]
pub struct Functions<R> {
    lines: Lines<R>,
    columns: Vec<String>,
    at: Columns,
    done: bool,
}

#[derive(Clone, Copy, Debug)]
struct Columns {
    id: usize,
    total: usize,
    counts: usize,
    weight: Option<usize>,
    minutes: Option<usize>,
    start: Option<usize>,
}

impl<R: BufRead> Functions<R> {
    pub(super) fn new(lines: Lines<R>, columns: Vec<String>) -> Result<Self, TraceError> {
        let find = |name: &str| columns.iter().position(|column| column == name);
        let needed = |name: &str| {
            let problem = format!("a header with a column `{name}`");
            find(name).ok_or_else(|| TraceError::at(1, "header", &columns.join(","), problem))
        };
        let at = if columns[0] == "fid" {
            Columns {
                id: 0,
                total: needed("total")?,
                counts: needed("counts")?,
                weight: Some(needed("weight")?),
                minutes: Some(needed("minutes")?),
                start: Some(needed("start_minute")?),
            }
        } else {
            let (total, counts) = (needed("invocations")?, needed("containers_per_min")?);
            Columns { id: 0, total, counts, weight: None, minutes: None, start: None }
        };
        Ok(Self { lines, columns, at, done: false })
    }

    fn row(&mut self) -> Result<Option<Function>, TraceError> {
        let line = self.lines.number() + 1;
        let Some(row) = self.lines.next()? else { return Ok(None) };
        let mut cells: SmallVec<[&str; 16]> = SmallVec::new();
        fields(line, row, &self.columns, &mut cells)?;
        let (at, columns) = (self.at, &self.columns);
        let optional = |at: Option<usize>| at.map(|at| whole(line, &columns[at], cells[at])).transpose();
        let total: u64 = whole(line, &columns[at.total], cells[at.total])?;
        let minutes: Option<u32> = optional(at.minutes)?;
        let start_minute: u32 = optional(at.start)?.unwrap_or(0);
        let weight = match at.weight {
            Some(at) => number(line, &columns[at], cells[at])?,
            None => 1.0,
        };
        let (seen, active) = counts(line, &columns[at.counts], cells[at.counts])?;
        if let Some(minutes) = minutes
            && minutes != seen
        {
            let problem = format!("{minutes} minutes long, not {seen}");
            return Err(TraceError::at(line, &columns[at.counts], cells[at.counts], problem));
        }
        let sum: u64 = active.iter().map(|&(_, calls)| u64::from(calls)).sum();
        if at.weight.is_some() && sum != total {
            let problem = format!("{sum}, the sum of the counts");
            return Err(TraceError::at(line, &columns[at.total], cells[at.total], problem));
        }
        let id = cells[at.id].to_owned();
        Ok(Some(Function { id, weight, total, minutes: seen, start_minute, active }))
    }
}

/// Decodes the run lengths: how many minutes, and the active ones.
fn counts(line: u64, column: &str, text: &str) -> Result<(u32, Vec<(u32, u32)>), TraceError> {
    let broken = |token: &str| TraceError::at(line, column, token, "`v`, `v*N` or `zN`, with N from 1");
    let (mut minute, mut active) = (0_u32, Vec::new());
    for token in text.split_ascii_whitespace() {
        let (value, times) = match (token.strip_prefix('z'), token.split_once('*')) {
            (Some(times), _) => (Some(0), times.parse().ok()),
            (None, Some((value, times))) => (value.parse().ok(), times.parse().ok()),
            (None, None) => (token.parse().ok(), Some(1)),
        };
        let (Some(value), Some(times @ 1..)) = (value, times) else { return Err(broken(token)) };
        let until: u32 = minute.checked_add(times).ok_or_else(|| broken(token))?;
        if until > LONGEST {
            return Err(TraceError::at(line, column, token, format!("at most {LONGEST} minutes in all")));
        }
        if value > 0 {
            active.extend((minute..until).map(|minute| (minute, value)));
        }
        minute = until;
    }
    if minute == 0 {
        return Err(TraceError::at(line, column, text, "at least one minute"));
    }
    Ok((minute, active))
}

/// A year of minutes: a run length beyond it is a mistake, not a trace.
const LONGEST: u32 = 366 * 1_440;

impl<R: BufRead> Iterator for Functions<R> {
    type Item = Result<Function, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.row().transpose();
        self.done = !matches!(row, Some(Ok(_)));
        row
    }
}
