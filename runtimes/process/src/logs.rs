//! Output of instances: lines, cut and counted so that a flood harms nobody else.

use std::{collections::VecDeque, os::fd::OwnedFd, sync::Arc, time::Duration};

use sas_core::{InstanceId, LogRecord, LogSink, LogStream, RevisionKey, Timestamp};
use tokio::time::Instant;

use crate::config::LogLimits;

/// To whom lines go.
#[derive(Clone, Debug)]
pub(crate) struct LogTarget {
    pub(crate) instance: InstanceId,
    pub(crate) revision: RevisionKey,
    pub(crate) sink: Arc<dyn LogSink>,
}

/// The first and the last lines of a program, for the error of a failed start: some tell what is wrong before a long
/// trace, and some after it.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    first: Vec<String>,
    last: VecDeque<String>,
    between: usize,
}

impl LastWords {
    const FIRST: usize = 8;
    const LAST: usize = 12;
    const LINE_BYTES: usize = 400;

    pub(crate) fn push(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(&line[..line.len().min(Self::LINE_BYTES)]);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        if self.first.len() < Self::FIRST {
            self.first.push(text.to_owned());
            return;
        }
        if self.last.len() == Self::LAST {
            self.last.pop_front();
            self.between += 1;
        }
        self.last.push_back(text.to_owned());
    }

    pub(crate) fn text(&self) -> Option<String> {
        let left_out = (self.between > 0).then(|| format!("… {} lines …", self.between));
        let lines: Vec<&str> = (self.first.iter().map(String::as_str))
            .chain(left_out.as_deref())
            .chain(self.last.iter().map(String::as_str))
            .collect();
        (!lines.is_empty()).then(|| lines.join(" | "))
    }
}

/// Cuts a byte stream into lines of bounded length.
#[derive(Debug, Default)]
pub(crate) struct LineSplitter {
    partial: Vec<u8>,
    /// The rest of a line that was too long is skipped up to its end.
    skipping: bool,
}

impl LineSplitter {
    pub(crate) fn feed(&mut self, mut bytes: &[u8], limit: usize, line: &mut dyn FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let piece = &bytes[..end];
            if self.skipping {
                self.skipping = false;
            } else if self.partial.is_empty() {
                line(without_cr(&piece[..piece.len().min(limit)]));
            } else {
                self.extend(piece, limit);
                line(without_cr(&self.partial));
            }
            self.partial.clear();
            bytes = &bytes[end + 1..];
        }
        if !bytes.is_empty() && !self.skipping {
            self.extend(bytes, limit);
            if self.partial.len() == limit {
                line(&self.partial);
                self.partial.clear();
                self.skipping = true;
            }
        }
    }

    fn extend(&mut self, bytes: &[u8], limit: usize) {
        let room = limit.saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// The last line, if it had no end.
    pub(crate) fn finish(&mut self, line: &mut dyn FnMut(&[u8])) {
        if !self.partial.is_empty() {
            line(without_cr(&self.partial));
            self.partial.clear();
        }
    }
}

fn without_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

/// One of the two output pipes of an instance.
#[derive(Debug)]
pub(crate) struct LogPipe {
    pub(crate) fd: OwnedFd,
    stream: LogStream,
    splitter: LineSplitter,
    second: Instant,
    passed: u64,
    dropped: u64,
    slice: Instant,
    read: u64,
}

/// What to do with a pipe next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Read on when more comes.
    Wait,
    /// More is there already.
    More,
    /// Read again at this time, not before.
    Pause(Instant),
    /// It ended.
    Close,
}

const SLICE: Duration = Duration::from_millis(100);

impl LogPipe {
    pub(crate) fn new(fd: OwnedFd, stream: LogStream, now: Instant) -> Self {
        Self {
            fd,
            stream,
            splitter: LineSplitter::default(),
            second: now,
            passed: 0,
            dropped: 0,
            slice: now,
            read: 0,
        }
    }

    /// Reads at most `budget` bytes.
    pub(crate) fn pump(
        &mut self,
        limits: &LogLimits,
        target: Option<&LogTarget>,
        mut last_words: Option<&mut LastWords>,
        now: Instant,
        at: Timestamp,
        budget: usize,
    ) -> Next {
        self.roll(target, now, at);
        let mut buffer = [0u8; 16 * 1024];
        let mut left = budget;
        loop {
            if self.read > limits.read_bytes_per_second / 10 {
                return Next::Pause(self.slice + SLICE);
            }
            if left == 0 {
                return Next::More;
            }
            let wanted = buffer.len().min(left);
            let n = match rustix::io::read(&self.fd, &mut buffer[..wanted]) {
                Ok(0) => {
                    self.finish(target, last_words, at);
                    return Next::Close;
                }
                Ok(n) => n,
                Err(rustix::io::Errno::AGAIN) => return Next::Wait,
                Err(rustix::io::Errno::INTR) => continue,
                Err(_) => return Next::Close,
            };
            left -= n;
            self.read += n as u64;
            let (stream, passed, dropped) = (self.stream, &mut self.passed, &mut self.dropped);
            self.splitter.feed(&buffer[..n], limits.line_bytes, &mut |line| {
                if let Some(words) = last_words.as_deref_mut() {
                    words.push(line);
                }
                if *passed >= limits.bytes_per_second {
                    *dropped += 1;
                } else if let Some(target) = target {
                    *passed += line.len() as u64 + 1;
                    target.sink.line(&LogRecord::new(target.instance, target.revision, at, stream, line));
                }
            });
        }
    }

    fn roll(&mut self, target: Option<&LogTarget>, now: Instant, at: Timestamp) {
        if now >= self.slice + SLICE {
            self.slice = now;
            self.read = 0;
        }
        if now >= self.second + Duration::from_secs(1) {
            self.second = now;
            self.passed = 0;
            self.tell_dropped(target, at);
        }
    }

    fn tell_dropped(&mut self, target: Option<&LogTarget>, at: Timestamp) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0
            && let Some(target) = target
        {
            let text = format!("{dropped} lines of {:?} dropped: it writes too fast", self.stream);
            target.sink.line(&LogRecord::new(
                target.instance,
                target.revision,
                at,
                LogStream::Platform,
                text.as_bytes(),
            ));
        }
    }

    /// Hands on the last line without an end, and what was dropped.
    pub(crate) fn finish(
        &mut self,
        target: Option<&LogTarget>,
        mut last_words: Option<&mut LastWords>,
        at: Timestamp,
    ) {
        let stream = self.stream;
        self.splitter.finish(&mut |line| {
            if let Some(words) = last_words.as_deref_mut() {
                words.push(line);
            }
            if let Some(target) = target {
                target.sink.line(&LogRecord::new(target.instance, target.revision, at, stream, line));
            }
        });
        self.tell_dropped(target, at);
    }
}

#[cfg(test)]
mod tests {
    use super::LineSplitter;

    fn lines(limit: usize, pieces: &[&str]) -> Vec<String> {
        let mut splitter = LineSplitter::default();
        let mut found = Vec::new();
        let mut take = |line: &[u8]| found.push(String::from_utf8_lossy(line).into_owned());
        for piece in pieces {
            splitter.feed(piece.as_bytes(), limit, &mut take);
        }
        splitter.finish(&mut take);
        found
    }

    #[test]
    fn lines_are_cut_at_their_ends_and_at_the_limit() {
        for (pieces, expected) in [
            (&["a\nb\r\n"][..], &["a", "b"][..]),
            (&["a", "b\nc"], &["ab", "c"]),
            (&["", "\n\n"], &["", ""]),
            (&["123456789\nx\n"], &["1234", "x"]),
            (&["12", "3456", "789", "\nx"], &["1234", "x"]),
            (&["1234", "\nx"], &["1234", "x"]),
            (&["123\n"], &["123"]),
        ] {
            assert_eq!(lines(4, pieces), expected, "{pieces:?}");
        }
    }
}
