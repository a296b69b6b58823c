//! The last lines that instances wrote, per revision and bounded.

use std::{
    collections::VecDeque,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use dashmap::DashMap;
use sas_core::{LogLine, LogPage, LogQuery, LogRecord, LogSink, Result, RevisionKey};

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLimits {
    /// How many lines are kept for each revision.
    pub lines: usize,
    /// Bytes of text per revision.
    pub bytes: usize,
    /// Revisions; the one that was silent longest goes first.
    pub revisions: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { lines: 1000, bytes: 256 << 10, revisions: 4096 }
    }
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    dropped: u64,
}

/// A [`LogSink`] that keeps the last lines of each revision.
///
/// ```
/// use sas_control::LogBuffer;
/// use sas_core::{InstanceId, LogRecord, LogSink, LogStream, RevisionKey, Timestamp};
///
/// let logs = LogBuffer::default();
/// let key = RevisionKey::new(0, 0);
/// logs.line(&LogRecord::new(InstanceId(1), key, Timestamp(0), LogStream::Stdout, b"hello"));
/// assert_eq!(logs.tail(&[key], 10, 0)[0].line, "hello");
/// ```
#[derive(Debug)]
pub struct LogBuffer {
    rings: DashMap<RevisionKey, Ring>,
    limits: LogLimits,
    sequence: AtomicU64,
}

impl Default for LogBuffer {
    fn default() -> Self {
        Self::new(LogLimits::default())
    }
}

impl LogBuffer {
    /// A buffer with these limits.
    pub fn new(limits: LogLimits) -> Self {
        Self { rings: DashMap::new(), limits, sequence: AtomicU64::new(0) }
    }

    /// The last `most` lines of these revisions together with a sequence above `after`, oldest first.
    pub fn tail(&self, revisions: &[RevisionKey], most: usize, after: u64) -> Vec<LogLine> {
        let mut lines: Vec<LogLine> = Vec::new();
        for revision in revisions {
            if let Some(ring) = self.rings.get(revision) {
                lines
                    .extend(ring.lines.iter().rev().take(most).filter(|line| line.sequence > after).cloned());
            }
        }
        lines.sort_unstable_by_key(|line| line.sequence);
        let from = lines.len().saturating_sub(most);
        lines.split_off(from)
    }

    /// Lines of the revision that made room for younger ones.
    pub fn dropped(&self, revision: RevisionKey) -> u64 {
        self.rings.get(&revision).map_or(0, |ring| ring.dropped)
    }

    fn make_room(&self) {
        while self.rings.len() >= self.limits.revisions.max(1) {
            let silent = self
                .rings
                .iter()
                .map(|ring| (ring.lines.back().map_or(0, |line| line.sequence), *ring.key()))
                .min();
            let Some((_, key)) = silent else { return };
            self.rings.remove(&key);
        }
    }
}

impl LogSink for LogBuffer {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { instance, revision, request, at, stream, line, .. } = *record;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let text = String::from_utf8_lossy(&line[..line.len().min(self.limits.bytes)]).into_owned();
        let kept = LogLine::new(sequence, at, instance, stream, text).for_request(request);
        if !self.rings.contains_key(&revision) {
            self.make_room();
        }
        let mut ring = self.rings.entry(revision).or_default();
        ring.bytes += kept.line.len();
        ring.lines.push_back(kept);
        while ring.lines.len() > self.limits.lines || ring.bytes > self.limits.bytes {
            let Some(old) = ring.lines.pop_front() else { break };
            ring.bytes -= old.line.len();
            ring.dropped += 1;
        }
    }

    fn log_query(&self) -> Option<&dyn LogQuery> {
        Some(self)
    }

    fn forget(&self, revision: RevisionKey) {
        self.rings.remove(&revision);
    }
}

#[async_trait]
impl LogQuery for LogBuffer {
    async fn lines(&self, revisions: &[RevisionKey], most: usize, after: u64) -> Result<LogPage> {
        let dropped = revisions.iter().map(|revision| self.dropped(*revision)).sum();
        Ok(LogPage::new(self.tail(revisions, most, after), dropped))
    }
}
