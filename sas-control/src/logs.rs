//! The last lines that instances wrote, per revision and bounded, so that no tenant pushes out another's.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use async_trait::async_trait;
use dashmap::DashMap;
use metrics::Counter;
use parking_lot::Mutex;
use sas_core::{
    LogFilter, LogLine, LogPage, LogQuery, LogRecord, LogSink, Recorder, Result, RevisionKey, RevisionName,
    TenantKey,
};
use tokio::sync::Notify;

use crate::metrics::log_lines_dropped;

/// Tenants whose losses are told apart, at most.
const TENANTS: usize = 4096;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogLimits {
    /// Lines per revision.
    pub lines: usize,
    /// Bytes of text per revision.
    pub bytes: usize,
    /// Revisions. When there are more, one of the tenant that has most goes: that which was silent longest.
    pub revisions: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self { lines: 1000, bytes: 256 << 10, revisions: 4096 }
    }
}

#[derive(Debug)]
struct Ring {
    tenant: TenantKey,
    lines: VecDeque<LogLine>,
    bytes: usize,
    dropped: u64,
    /// The sequence of the last line that made room.
    dropped_last: u64,
}

/// A [`LogSink`] that keeps the last lines of each revision.
///
/// Revisions do not share room, and where there are too many revisions the tenant that has most gives one up: a flood of one
/// tenant pushes out its own lines alone. [`LogBuffer::lost`] says how many lines of each tenant are gone or were cut.
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
pub struct LogBuffer {
    rings: DashMap<RevisionKey, Ring>,
    /// The tenants of revisions that have started.
    owners: DashMap<RevisionKey, TenantKey>,
    lost: Mutex<BTreeMap<TenantKey, u64>>,
    limits: LogLimits,
    sequence: AtomicU64,
    written: Notify,
    made_room: Counter,
    cut: Counter,
}

impl fmt::Debug for LogBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogBuffer")
            .field("limits", &self.limits)
            .field("revisions", &self.rings.len())
            .finish_non_exhaustive()
    }
}

impl Default for LogBuffer {
    fn default() -> Self {
        Self::new(LogLimits::default())
    }
}

impl LogBuffer {
    /// A buffer with these limits.
    pub fn new(limits: LogLimits) -> Self {
        Self {
            rings: DashMap::new(),
            owners: DashMap::new(),
            lost: Mutex::default(),
            limits,
            sequence: AtomicU64::new(0),
            written: Notify::new(),
            made_room: Counter::noop(),
            cut: Counter::noop(),
        }
    }

    /// Counts what is lost as [`LOG_LINES_DROPPED`](crate::metrics::LOG_LINES_DROPPED), with `sink="buffer"`.
    #[must_use]
    pub fn with_recorder(mut self, recorder: &Recorder) -> Self {
        self.made_room = log_lines_dropped(recorder, "buffer", "room");
        self.cut = log_lines_dropped(recorder, "buffer", "cut");
        self
    }

    /// The last `most` lines of these revisions together with a sequence above `after`, oldest first.
    pub fn tail(&self, revisions: &[RevisionKey], most: usize, after: u64) -> Vec<LogLine> {
        let mut filter = LogFilter::default();
        filter.after = after;
        self.find(revisions, &filter, most).lines
    }

    fn find(&self, revisions: &[RevisionKey], filter: &LogFilter, most: usize) -> LogPage {
        let mut lines: Vec<LogLine> = Vec::new();
        let (mut dropped, mut gap, mut last) = (0, false, 0);
        for revision in revisions {
            if let Some(ring) = self.rings.get(revision) {
                dropped += ring.dropped;
                gap |= ring.dropped_last > filter.after;
                last = ring.lines.back().map_or(last, |line| last.max(line.sequence));
                let young = ring.lines.iter().rev().take_while(|line| line.sequence > filter.after);
                // One more than is asked for tells that there are more.
                lines.extend(young.filter(|line| filter.matches(line)).take(most.saturating_add(1)).cloned());
            }
        }
        lines.sort_unstable_by_key(|line| line.sequence);
        let surplus = lines.len().saturating_sub(most);
        let mut page = LogPage::new(lines.split_off(surplus), dropped).with_gap(gap || surplus > 0);
        page.last = last;
        page
    }

    /// Lines of the revision that made room for younger ones.
    pub fn dropped(&self, revision: RevisionKey) -> u64 {
        self.rings.get(&revision).map_or(0, |ring| ring.dropped)
    }

    /// Lines of each tenant that made room for younger ones, or were cut at [`LogLimits::bytes`], since the platform started;
    /// also of revisions that are gone. Tenants that lost none are left out. Of 4,096 tenants at most: of more, that which
    /// lost least is left out.
    pub fn lost(&self) -> BTreeMap<TenantKey, u64> {
        self.lost.lock().clone()
    }

    fn lose(&self, tenant: TenantKey, lines: u64) {
        if lines == 0 {
            return;
        }
        let mut lost = self.lost.lock();
        if lost.len() >= TENANTS
            && !lost.contains_key(&tenant)
            && let Some(least) = lost.iter().min_by_key(|(_, lines)| **lines).map(|(tenant, _)| *tenant)
        {
            lost.remove(&least);
        }
        *lost.entry(tenant).or_default() += lines;
    }

    fn make_way(&self, tenant: TenantKey, lines: u64) {
        self.made_room.increment(lines);
        self.lose(tenant, lines);
    }

    fn make_room(&self) {
        while self.rings.len() >= self.limits.revisions.max(1) {
            let mut tenants: BTreeMap<TenantKey, (usize, u64, RevisionKey)> = BTreeMap::new();
            for ring in &self.rings {
                let last = ring.lines.back().map_or(0, |line| line.sequence);
                let of = tenants.entry(ring.tenant).or_insert((0, u64::MAX, *ring.key()));
                of.0 += 1;
                if last < of.1 {
                    (of.1, of.2) = (last, *ring.key());
                }
            }
            // Of tenants that have as many, that which was silent longest.
            let most = tenants.values().max_by_key(|(count, silent, _)| (*count, u64::MAX - silent));
            let Some((.., key)) = most else { return };
            if let Some((_, ring)) = self.rings.remove(key) {
                self.make_way(ring.tenant, ring.lines.len() as u64);
            }
        }
    }
}

impl LogSink for LogBuffer {
    fn line(&self, record: &LogRecord<'_>) {
        let LogRecord { instance, revision, request, at, stream, line, .. } = *record;
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let whole = line.len() <= self.limits.bytes;
        let text =
            String::from_utf8_lossy(if whole { line } else { &line[..self.limits.bytes] }).into_owned();
        let kept = LogLine::new(sequence, at, instance, stream, text).for_request(request);
        if !self.rings.contains_key(&revision) {
            self.make_room();
        }
        let mut ring = self.rings.entry(revision).or_insert_with(|| Ring {
            tenant: self.owners.get(&revision).map_or(TenantKey::HOST, |tenant| *tenant),
            lines: VecDeque::new(),
            bytes: 0,
            dropped: 0,
            dropped_last: 0,
        });
        ring.bytes += kept.line.len();
        ring.lines.push_back(kept);
        let mut lost = 0;
        while ring.lines.len() > self.limits.lines || ring.bytes > self.limits.bytes {
            let Some(old) = ring.lines.pop_front() else { break };
            ring.bytes -= old.line.len();
            ring.dropped_last = old.sequence;
            lost += 1;
        }
        ring.dropped += lost;
        let tenant = ring.tenant;
        drop(ring);
        self.make_way(tenant, lost);
        if !whole {
            self.cut.increment(1);
            self.lose(tenant, 1);
        }
        self.written.notify_waiters();
    }

    fn starts(&self, revision: RevisionKey, _: &RevisionName, tenant: TenantKey) {
        if self.owners.get(&revision).is_none_or(|known| *known != tenant) {
            self.owners.insert(revision, tenant);
        }
    }

    fn log_query(&self) -> Option<&dyn LogQuery> {
        Some(self)
    }

    fn forget(&self, revision: RevisionKey) {
        self.rings.remove(&revision);
        self.owners.remove(&revision);
    }
}

#[async_trait]
impl LogQuery for LogBuffer {
    async fn lines(&self, revisions: &[RevisionKey], most: usize, after: u64) -> Result<LogPage> {
        let mut filter = LogFilter::default();
        filter.after = after;
        Ok(self.find(revisions, &filter, most))
    }

    async fn search(&self, revisions: &[RevisionKey], filter: &LogFilter, most: usize) -> Result<LogPage> {
        Ok(self.find(revisions, filter, most))
    }

    async fn wait(&self, after: u64) {
        let written = self.written.notified();
        let mut written = std::pin::pin!(written);
        // Before it is looked: a line in between wakes.
        written.as_mut().enable();
        if self.sequence.load(Ordering::Relaxed) <= after {
            written.await;
        }
    }
}
