//! Lines of instances in files that rotate.

use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use dashmap::DashMap;
use metrics::Counter;
use parking_lot::Mutex;
use sas_core::{
    Error, ErrorKind, InstanceId, LogLine, LogQuery, LogRecord, LogSink, LogStream, Recorder, RequestId,
    Result, RevisionKey, RevisionName, TenantKey, Timestamp,
};
use serde::Serialize;

use crate::{metrics::log_lines_dropped, stamp::rfc3339};

/// How log files are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogFileLimits {
    /// Bytes after which a file is put aside as `NAME.1`. 64 MiB.
    pub bytes: u64,
    /// Files that were put aside and are kept. 4.
    pub files: u32,
    /// Lines that wait to be written; beyond it lines are dropped, and counted. 8,192.
    pub waiting: usize,
}

impl Default for LogFileLimits {
    fn default() -> Self {
        Self { bytes: 64 << 20, files: 4, waiting: 8192 }
    }
}

/// A line as it waits for the writer.
struct Waiting {
    name: Option<RevisionName>,
    instance: InstanceId,
    request: Option<RequestId>,
    at: Timestamp,
    stream: LogStream,
    line: Box<[u8]>,
}

/// A line in the file.
#[derive(Serialize)]
struct Entry<'a> {
    at: String,
    namespace: Option<&'a str>,
    service: Option<&'a str>,
    revision: Option<&'a str>,
    instance: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<RequestId>,
    stream: LogStream,
    #[serde(skip_serializing_if = "Option::is_none")]
    level: Option<&'static str>,
    /// The members of a line that is a JSON object.
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<serde_json::Map<String, serde_json::Value>>,
    /// Any other line.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<&'a str>,
}

enum Order {
    Line(Waiting),
    Flush(mpsc::SyncSender<()>),
}

/// A [`LogSink`] that writes lines as JSON, one object a line, to a file that rotates by size, and passes each on to
/// another sink, such as the [`crate::LogBuffer`] that is read back.
///
/// Writing is done by a thread of its own. One that can't keep up never holds an instance: lines that find no room are
/// dropped and counted ([`LogFiles::dropped`], and as [`LOG_LINES_DROPPED`](crate::metrics::LOG_LINES_DROPPED) with
/// `sink="file"`), and so are those that the disk does not take.
pub struct LogFiles {
    next: Arc<dyn LogSink>,
    names: DashMap<RevisionKey, RevisionName>,
    orders: Mutex<Option<mpsc::SyncSender<Order>>>,
    dropped: Arc<AtomicU64>,
    no_room: Counter,
}

impl fmt::Debug for LogFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogFiles")
            .field("next", &self.next)
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

impl LogFiles {
    /// Writes to `path`, which is made with mode 0600 if it is not there and else appended to, and passes lines on to
    /// `next`. What is dropped is counted at `recorder`.
    ///
    /// # Errors
    /// `Unavailable` when the file can't be opened, or no thread be had.
    pub fn new(
        path: impl Into<PathBuf>,
        limits: LogFileLimits,
        next: Arc<dyn LogSink>,
        recorder: &Recorder,
    ) -> Result<Self> {
        let path = path.into();
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Unavailable, "log file", format!("{}: {error}", path.display()))
        };
        let (orders, receiver) = mpsc::sync_channel(limits.waiting.max(1));
        let dropped = Arc::<AtomicU64>::default();
        let not_taken = log_lines_dropped(recorder, "file", "disk");
        let mut writer =
            Writer::open(path.clone(), limits, Arc::clone(&dropped), not_taken).map_err(failed)?;
        let thread = std::thread::Builder::new().name("sas-log-file".to_owned());
        thread.spawn(move || writer.run(&receiver)).map_err(failed)?;
        let no_room = log_lines_dropped(recorder, "file", "room");
        Ok(Self { next, names: DashMap::new(), orders: Mutex::new(Some(orders)), dropped, no_room })
    }

    /// Lines that were dropped since the start: there was no room, or the disk did not take them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Waits until what came before is in the file. Blocks: not for async code.
    pub fn flush(&self) {
        let orders = self.orders.lock().clone();
        let (done, written) = mpsc::sync_channel(1);
        if orders.is_some_and(|orders| orders.send(Order::Flush(done)).is_ok()) {
            let _ = written.recv();
        }
    }
}

impl LogSink for LogFiles {
    fn line(&self, record: &LogRecord<'_>) {
        self.next.line(record);
        let LogRecord { instance, revision, request, at, stream, line, .. } = *record;
        let name = self.names.get(&revision).map(|name| name.clone());
        let waiting = Waiting { name, instance, request, at, stream, line: line.into() };
        let orders = self.orders.lock();
        if orders.as_ref().is_none_or(|orders| orders.try_send(Order::Line(waiting)).is_err()) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.no_room.increment(1);
        }
    }

    fn starts(&self, revision: RevisionKey, name: &RevisionName, tenant: TenantKey) {
        if !self.names.contains_key(&revision) {
            self.names.insert(revision, name.clone());
        }
        self.next.starts(revision, name, tenant);
    }

    fn log_query(&self) -> Option<&dyn LogQuery> {
        self.next.log_query()
    }

    fn forget(&self, revision: RevisionKey) {
        self.names.remove(&revision);
        self.next.forget(revision);
    }
}

struct Writer {
    path: PathBuf,
    limits: LogFileLimits,
    file: BufWriter<File>,
    bytes: u64,
    dropped: Arc<AtomicU64>,
    not_taken: Counter,
}

fn open(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl Writer {
    fn open(
        path: PathBuf,
        limits: LogFileLimits,
        dropped: Arc<AtomicU64>,
        not_taken: Counter,
    ) -> std::io::Result<Self> {
        let file = open(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, limits, file: BufWriter::new(file), bytes, dropped, not_taken })
    }

    fn run(&mut self, orders: &mpsc::Receiver<Order>) {
        while let Ok(first) = orders.recv() {
            // All that waits goes in one write, if it fits.
            let mut order = Some(first);
            while let Some(taken) = order {
                match taken {
                    Order::Line(line) => {
                        if let Err(error) = self.write(&line) {
                            self.dropped.fetch_add(1, Ordering::Relaxed);
                            self.not_taken.increment(1);
                            tracing::warn!(path = %self.path.display(), %error, "a line of an instance was not written");
                        }
                    }
                    Order::Flush(done) => {
                        let _ = self.file.flush();
                        let _ = done.send(());
                    }
                }
                order = orders.try_recv().ok();
            }
            let _ = self.file.flush();
        }
    }

    fn write(&mut self, waiting: &Waiting) -> std::io::Result<()> {
        let Waiting { name, instance, request, at, stream, line } = waiting;
        let text = String::from_utf8_lossy(line).into_owned();
        let kept = LogLine::new(0, *at, *instance, *stream, text).for_request(*request);
        let fields = kept.fields();
        let entry = Entry {
            at: rfc3339(*at),
            namespace: name.as_ref().map(RevisionName::namespace),
            service: name.as_ref().map(RevisionName::service),
            revision: name.as_ref().map(RevisionName::revision),
            instance: instance.to_string(),
            request: kept.about(),
            stream: *stream,
            level: kept.level().map(sas_core::LogLevel::as_str),
            line: fields.is_none().then_some(&kept.line),
            fields,
        };
        let mut text = serde_json::to_vec(&entry)?;
        text.push(b'\n');
        if self.bytes > 0 && self.bytes + text.len() as u64 > self.limits.bytes {
            self.rotate()?;
        }
        self.file.write_all(&text)?;
        self.bytes += text.len() as u64;
        Ok(())
    }

    /// `NAME` becomes `NAME.1`, `NAME.1` becomes `NAME.2`, and so on; the oldest goes.
    fn rotate(&mut self) -> std::io::Result<()> {
        self.file.flush()?;
        let aside = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.limits.files == 0 {
            std::fs::remove_file(&self.path)?;
        } else {
            for number in (1..self.limits.files).rev() {
                match std::fs::rename(aside(number), aside(number + 1)) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            std::fs::rename(&self.path, aside(1))?;
        }
        self.file = BufWriter::new(open(&self.path)?);
        self.bytes = 0;
        Ok(())
    }
}
