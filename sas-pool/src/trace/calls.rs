use std::{collections::BTreeMap, io::BufRead, time::Duration};

use smallvec::SmallVec;

use super::{
    Function, Series, TraceError,
    lines::{Lines, fields, number},
};

/// One call of a trace.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Call {
    /// Which function; empty where the trace does not tell functions apart.
    pub function: String,
    /// When it began, in seconds since the start of the trace.
    pub start: f64,
    /// How long it took, in seconds; zero where the trace does not say.
    pub duration: f64,
}

/// A row per call: `app,func,end_timestamp,duration` in seconds, or `t_ms,…`.
#[derive(Debug)]
pub struct Calls<R> {
    lines: Lines<R>,
    columns: Vec<String>,
    done: bool,
}

/// A year: a call later than that is a mistake, not a trace.
const LONGEST: f64 = 366.0 * 86_400.0;

impl<R: BufRead> Calls<R> {
    pub(super) fn new(lines: Lines<R>, columns: Vec<String>) -> Self {
        Self { lines, columns, done: false }
    }

    fn row(&mut self) -> Result<Option<Call>, TraceError> {
        let line = self.lines.number() + 1;
        let Some(row) = self.lines.next()? else { return Ok(None) };
        let mut cells: SmallVec<[&str; 4]> = SmallVec::new();
        fields(line, row, &self.columns, &mut cells)?;
        let (column, start, duration, function) = if self.columns[0] == "t_ms" {
            (0, number(line, "t_ms", cells[0])? / 1_000.0, 0.0, String::new())
        } else {
            let end = number(line, &self.columns[2], cells[2])?;
            let duration = number(line, &self.columns[3], cells[3])?;
            // What was already running when the trace began, began with it.
            (2, (end - duration).max(0.0), duration, format!("{}/{}", cells[0], cells[1]))
        };
        if start > LONGEST {
            return Err(TraceError::at(line, &self.columns[column], cells[column], "within a year"));
        }
        Ok(Some(Call { function, start, duration }))
    }

    /// Counts the calls of each function per minute, for keep-alive policies.
    ///
    /// # Errors
    /// The first broken row.
    pub fn per_minute(self) -> Result<Vec<Function>, TraceError> {
        let mut functions: BTreeMap<String, BTreeMap<u32, u32>> = BTreeMap::new();
        let mut last = 0;
        for call in self {
            let call = call?;
            let minute = slot_of(call.start, 60.0);
            last = last.max(minute);
            *functions.entry(call.function).or_default().entry(minute).or_default() += 1;
        }
        let functions = functions.into_iter();
        Ok(functions.map(|(id, active)| Function::new(id, last + 1, active.into_iter().collect())).collect())
    }

    /// Counts all calls per `slot`, for capacity laws. A slot under a second counts as one.
    ///
    /// # Errors
    /// The first broken row.
    pub fn per_slot(self, slot: Duration) -> Result<Series, TraceError> {
        let slot = slot.max(Duration::from_secs(1));
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for call in self {
            *counts.entry(slot_of(call?.start, slot.as_secs_f64())).or_default() += 1;
        }
        let length = counts.last_key_value().map_or(0, |(&last, _)| last + 1);
        let demand = (0..length).map(|at| counts.get(&at).copied().unwrap_or(0)).collect();
        Ok(Series { name: "calls".to_owned(), slot, first: 0, demand })
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "starts are from 0 to a year")]
fn slot_of(start: f64, seconds: f64) -> u32 {
    (start / seconds) as u32
}

impl<R: BufRead> Iterator for Calls<R> {
    type Item = Result<Call, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.row().transpose();
        self.done = !matches!(row, Some(Ok(_)));
        row
    }
}
