//! What guests write, as lines with the id of their request.

use std::sync::Arc;

use sas_core::{Clock, InstanceId, LogRecord, LogSink, LogStream, RequestId, RevisionKey};

/// Longer lines are cut into pieces of this many bytes.
pub(crate) const LONGEST_LINE: usize = 16 * 1024;

/// Cuts the output of one request into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    sink: Arc<dyn LogSink>,
    clock: Arc<dyn Clock>,
    instance: InstanceId,
    revision: RevisionKey,
    request: RequestId,
    stream: LogStream,
    line: Vec<u8>,
    budget: u64,
    dropped: u64,
}

impl Lines {
    pub(crate) fn new(
        sink: Arc<dyn LogSink>,
        clock: Arc<dyn Clock>,
        instance: InstanceId,
        revision: RevisionKey,
        request: RequestId,
        stream: LogStream,
        budget: u64,
    ) -> Self {
        Self { sink, clock, instance, revision, request, stream, line: Vec::new(), budget, dropped: 0 }
    }

    /// What follows belongs to another request, which has a budget of its own.
    pub(crate) fn next_request(&mut self, request: RequestId, budget: u64) {
        self.flush();
        self.request = request;
        self.budget = budget;
    }

    /// Takes more output. Past the budget it is dropped and counted.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let room = usize::try_from(self.budget).unwrap_or(usize::MAX).min(bytes.len());
        let (taken, dropped) = bytes.split_at(room);
        self.budget -= taken.len() as u64;
        self.dropped += dropped.len() as u64;
        for piece in taken.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            self.extend(text);
            if ends {
                self.end_line();
            }
        }
    }

    fn extend(&mut self, mut text: &[u8]) {
        while self.line.len() + text.len() > LONGEST_LINE {
            let (head, tail) = text.split_at(LONGEST_LINE - self.line.len());
            self.line.extend_from_slice(head);
            self.end_line();
            text = tail;
        }
        self.line.extend_from_slice(text);
    }

    fn end_line(&mut self) {
        let line = self.line.strip_suffix(b"\r").unwrap_or(&self.line);
        self.tell(self.stream, line);
        self.line.clear();
    }

    fn tell(&self, stream: LogStream, line: &[u8]) {
        self.sink.line(
            &LogRecord::new(self.instance, self.revision, self.clock.now(), stream, line)
                .with_request(Some(self.request)),
        );
    }
}

impl Lines {
    /// The last line may lack its end.
    fn flush(&mut self) {
        if !self.line.is_empty() {
            self.end_line();
        }
        if self.dropped > 0 {
            let line = format!(
                "{} bytes of output over the limit were dropped ({})",
                self.dropped,
                crate::options::LOG_LIMIT
            );
            self.tell(LogStream::Platform, line.as_bytes());
            self.dropped = 0;
        }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use sas_core::SystemClock;

    use super::*;

    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<(LogStream, String)>>);

    impl LogSink for Kept {
        fn line(&self, record: &LogRecord<'_>) {
            let LogRecord { request, stream, line, .. } = *record;
            assert_eq!(request, Some(RequestId(7)));
            self.0.lock().unwrap().push((stream, String::from_utf8_lossy(line).into_owned()));
        }
    }

    fn told(budget: u64, writes: &[&[u8]]) -> Vec<(LogStream, String)> {
        let sink = Arc::new(Kept::default());
        let mut lines = Lines::new(
            Arc::clone(&sink) as _,
            Arc::new(SystemClock),
            InstanceId(1),
            RevisionKey(1),
            RequestId(7),
            LogStream::Stderr,
            budget,
        );
        for write in writes {
            lines.write(write);
        }
        drop(lines);
        std::mem::take(&mut *sink.0.lock().unwrap())
    }

    #[test]
    fn output_is_cut_into_lines_whatever_its_pieces() {
        let told = told(1_000, &[b"a", b"b\nc\r\n\nlast", b" words"]);
        let lines: Vec<&str> = told.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(lines, ["ab", "c", "", "last words"]);
    }

    #[test]
    fn long_lines_are_cut_and_output_over_the_budget_is_counted() {
        let long = vec![b'x'; LONGEST_LINE * 2 + 5];
        let told = told(long.len() as u64 + 3, &[&long, b"\nabcdef"]);
        let lengths: Vec<usize> = told.iter().map(|(_, line)| line.len()).collect();
        assert_eq!(lengths[..3], [LONGEST_LINE, LONGEST_LINE, 5]);
        assert_eq!(told[3].1, "ab");
        assert_eq!(told[4].0, LogStream::Platform);
        assert!(told[4].1.starts_with("4 bytes of output"), "{told:?}");
    }
}
