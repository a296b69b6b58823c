use std::{io::BufRead, time::Duration};

use smallvec::SmallVec;

use super::{
    TraceError,
    lines::{Lines, fields, whole},
};

/// Demand per slot, one column per series: `minute,R1,R2,…`, `t_sec,vms,…` or `req` (a row per second).
///
/// Yields the values of one slot after another. Slots are equally long and none may be missing.
#[derive(Debug)]
pub struct Demand<R> {
    lines: Lines<R>,
    columns: Vec<String>,
    /// Seconds of a unit of the time column; `None`: there is no time column.
    unit: Option<u64>,
    step: Option<u64>,
    last: Option<u64>,
    done: bool,
}

/// A column of demand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// Its name, from the header.
    pub name: String,
    /// The length of its slots.
    pub slot: Duration,
    /// When its first slot begins, in slots since midnight.
    pub first: u64,
    /// Its demand per slot.
    pub demand: Vec<u32>,
}

impl<R: BufRead> Demand<R> {
    pub(super) fn new(lines: Lines<R>, columns: Vec<String>) -> Self {
        let unit = match columns[0].as_str() {
            "minute" => Some(60),
            "t_sec" => Some(1),
            _ => None,
        };
        Self { lines, columns, unit, step: None, last: None, done: false }
    }

    /// The names of the series.
    pub fn names(&self) -> &[String] {
        &self.columns[usize::from(self.unit.is_some())..]
    }

    /// How long a slot is: known after the second row.
    pub fn slot(&self) -> Option<Duration> {
        match self.unit {
            None => Some(Duration::from_secs(1)),
            Some(unit) => self.step.map(|step| Duration::from_secs(step * unit)),
        }
    }

    fn row(&mut self) -> Result<Option<Vec<u32>>, TraceError> {
        let line = self.lines.number() + 1;
        let Some(row) = self.lines.next()? else { return Ok(None) };
        let mut cells: SmallVec<[&str; 8]> = SmallVec::new();
        fields(line, row, &self.columns, &mut cells)?;
        let timed = usize::from(self.unit.is_some());
        if timed == 1 {
            let (column, text) = (&self.columns[0], cells[0]);
            let time: u64 = whole(line, column, text)?;
            if let Some(last) = self.last {
                let step = match self.step {
                    Some(step) => step,
                    None if time > last => *self.step.insert(time - last),
                    None => return Err(TraceError::at(line, column, text, format!("later than {last}"))),
                };
                if last.checked_add(step) != Some(time) {
                    let problem = format!("{}, as slots are {step} apart", last.saturating_add(step));
                    return Err(TraceError::at(line, column, text, problem));
                }
            }
            self.last = Some(time);
        }
        let mut values = Vec::with_capacity(cells.len() - timed);
        for (column, cell) in self.columns.iter().zip(&cells).skip(timed) {
            values.push(whole(line, column, cell)?);
        }
        Ok(Some(values))
    }

    /// Reads all of it into one series per column.
    ///
    /// # Errors
    /// The first broken row.
    pub fn collect(mut self) -> Result<Vec<Series>, TraceError> {
        let mut demand = vec![Vec::new(); self.names().len()];
        let mut first = None;
        while let Some(row) = self.row()? {
            first.get_or_insert(self.last.unwrap_or(0));
            for (series, value) in demand.iter_mut().zip(row) {
                series.push(value);
            }
        }
        // A single row does not say how long its slot is; the unit of its time is the best guess that it allows.
        let slot = self.slot().unwrap_or(Duration::from_secs(self.unit.unwrap_or(1)));
        let first = first.unwrap_or(0) * self.unit.unwrap_or(1) / slot.as_secs().max(1);
        let named = self.names().iter().cloned().zip(demand);
        Ok(named.map(|(name, demand)| Series { name, slot, first, demand }).collect())
    }
}

impl<R: BufRead> Iterator for Demand<R> {
    type Item = Result<Vec<u32>, TraceError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let row = self.row().transpose();
        self.done = !matches!(row, Some(Ok(_)));
        row
    }
}
