//! Hourly records on their way out: in order, signed, and from where the last run ended.

use std::{
    fmt,
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use sas_core::{Commit, Entry, Error, ErrorKind, Event, EventPublisher, Hour, HourUsage, Result, UsageScope};
use tokio_util::sync::CancellationToken;

use super::{
    Meter,
    ledger::{EXPORTS, HOURS, gap, hour_of, in_scope, is_gap, set_aside, unreadable, used},
    record::{UsageKey, UsageRecord, to_value},
};

/// Records that go out in one go.
const BATCH: usize = 256;

/// Takes usage records: a file, a webhook, a billing system.
///
/// The exporter gives it the records of complete hours, again until it takes them. It is given to the builder's `usage_export`.
#[async_trait]
pub trait UsageExport: fmt::Debug + Send + Sync + 'static {
    /// Takes records, in the order of hours and names, and returns when whoever takes them answers for them. After an
    /// error, or a kill, some may come again: [`UsageRecord::id`] tells.
    ///
    /// # Errors
    /// `Unavailable` when they can't be taken now: the same come again later.
    async fn export(&self, records: &[UsageRecord]) -> Result<()>;
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: UsageExport + ?Sized> UsageExport for Arc<T> {
    async fn export(&self, records: &[UsageRecord]) -> Result<()> {
        (**self).export(records).await
    }
}

/// Exports complete hours, each record once it can't change any more, and keeps in the store how far it is.
#[derive(Debug)]
pub struct UsageExporter {
    meter: Arc<Meter>,
    cursor: String,
    key: UsageKey,
    target: Arc<dyn UsageExport>,
}

impl UsageExporter {
    /// An exporter called `name`, 1 to 63 letters, digits and dashes: under it the store remembers how far it is.
    ///
    /// # Errors
    /// `InvalidSpec` for another name.
    pub fn new(meter: Arc<Meter>, name: &str, key: UsageKey, target: Arc<dyn UsageExport>) -> Result<Self> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(fits) {
            let message = format!("{name:?}: an exporter has a name of 1 to 63 letters, digits and dashes");
            return Err(Error::new(ErrorKind::InvalidSpec, "usage export", message));
        }
        Ok(Self { meter, cursor: format!("{EXPORTS}{name}"), key, target })
    }

    /// Exports what is complete and was not exported yet; how many records. The cursor is written after each batch.
    ///
    /// # Errors
    /// The target's, or the store's; what was taken stays taken.
    pub async fn run_once(&self) -> Result<usize> {
        let until = self.meter.complete_before().await?;
        let store = self.meter.store();
        let mut count = 0;
        loop {
            let entry = store.get(&self.cursor).await?;
            let at = match &entry {
                Some(entry) => {
                    let text = std::str::from_utf8(&entry.value).ok().filter(|text| hour_of(text).is_some());
                    let Some(text) = text else {
                        self.begin_anew(entry, until).await?;
                        continue;
                    };
                    Some(text.to_owned())
                }
                None => None,
            };
            let page = store.list(HOURS, at.as_deref(), BATCH).await?;
            let full = page.len() == BATCH;
            let mut records = Vec::new();
            let mut last = None;
            let mut reached = false;
            for entry in page {
                let Some((hour, path)) = hour_of(&entry.key) else { continue };
                if hour >= until {
                    reached = true;
                    break;
                }
                if is_gap(path) {
                    let gap = gap(&entry.key, &entry.value);
                    records.extend(gap.map(|gap| UsageRecord::sign_gap(&gap, &self.key)));
                } else if let Some(totals) = used(&entry.key, &entry.value) {
                    let usage = in_scope(&UsageScope::all(), path, totals)
                        .ok_or_else(|| unreadable(&entry.key, "it names no revision"))?;
                    records.push(UsageRecord::sign_usage(&HourUsage::new(hour, usage), &self.key));
                }
                last = Some(entry.key);
            }
            let Some(last) = last else { return Ok(count) };
            if !records.is_empty() {
                self.target.export(&records).await?;
            }
            count += records.len();
            store.put(&self.cursor, entry.map(|entry| entry.version), last.into()).await?;
            if reached || !full {
                return Ok(count);
            }
        }
    }

    /// How far it was can't be read: all that the store has comes again, and whoever takes it knows it by its ids.
    async fn begin_anew(&self, found: &Entry, until: Hour) -> Result<()> {
        tracing::error!(
            key = self.cursor,
            "how far the export of usage was can't be read: it begins anew, and records come again with the same ids"
        );
        let commit = Commit::new().guard(&self.cursor, Some(found.version)).delete(&self.cursor);
        self.meter.store().commit(set_aside(commit, until, found)).await.map(drop)
    }

    /// Exports at the end of each hour until `stop`, which ends an export that is under way too: what the target took by
    /// then it may be given again. After an error, or where an export takes longer than ten minutes, again after a minute.
    pub async fn run(&self, stop: CancellationToken) {
        loop {
            let once = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                once = tokio::time::timeout(LONGEST, self.run_once()) => once,
            };
            let once = once.unwrap_or_else(|_| {
                let message = format!("the target took longer than {} s", LONGEST.as_secs());
                Err(Error::new(ErrorKind::Unavailable, "usage export", message))
            });
            let wait = match once {
                Ok(_) => {
                    let now = self.meter.clock().now();
                    // A moment later, for readings that are on their way.
                    Hour(Hour::of(now).0 + 1).start().since(now) + Duration::from_secs(15)
                }
                Err(error) => {
                    tracing::warn!(error = %error.chain(), "usage records wait for their export");
                    Duration::from_secs(60)
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

/// Appends records to a file, one JSON object a line. A record that is its last line already is not written again, and a
/// line that a kill cut off is removed first, so that every record stands in it once.
#[derive(Debug)]
pub struct FileUsageExport {
    path: PathBuf,
}

impl FileUsageExport {
    /// Exports to this file, which is made with mode 0600 if it is not there.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

/// How long the records of one look may take.
const LONGEST: Duration = Duration::from_secs(600);

/// The last bytes of a file that are searched for the last line.
const LAST_BYTES: u64 = 64 << 10;

fn append(path: &std::path::Path, records: &[UsageRecord]) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.create(true).read(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    let length = file.metadata()?.len();
    let from = length.saturating_sub(LAST_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    let whole = tail.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    if whole < tail.len() {
        file.set_len(from + whole as u64)?;
        tail.truncate(whole);
    }
    let last = tail.trim_ascii_end().rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    let last = std::str::from_utf8(last).ok().and_then(|line| UsageRecord::from_json(line).ok());
    let known = last.and_then(|last| records.iter().position(|record| record.id() == last.id()));
    let mut text = String::new();
    for record in &records[known.map_or(0, |at| at + 1)..] {
        text.push_str(&record.to_json());
        text.push('\n');
    }
    file.write_all(text.as_bytes())?;
    file.sync_data()
}

#[async_trait]
impl UsageExport for FileUsageExport {
    async fn export(&self, records: &[UsageRecord]) -> Result<()> {
        let (path, records) = (self.path.clone(), records.to_vec());
        let written = tokio::task::spawn_blocking(move || append(&path, &records)).await;
        let failed = |problem: String| {
            Error::new(ErrorKind::Unavailable, "usage export", format!("{}: {problem}", self.path.display()))
        };
        written.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}

/// Sends each record as a CloudEvent of the type `dev.sas.usage.hour` or `dev.sas.usage.gap`: to a webhook, a service or a
/// broker, as the publisher has it. Its id is [`UsageRecord::id`], its data the signed record.
#[derive(Debug)]
pub struct EventUsageExport(Arc<dyn EventPublisher>);

impl EventUsageExport {
    /// Exports through this publisher.
    pub fn new(publisher: Arc<dyn EventPublisher>) -> Self {
        Self(publisher)
    }
}

#[async_trait]
impl UsageExport for EventUsageExport {
    async fn export(&self, records: &[UsageRecord]) -> Result<()> {
        for record in records {
            let kind = match record.get("kind") {
                Some("gap") => "dev.sas.usage.gap",
                _ => "dev.sas.usage.hour",
            };
            let invalid = |error: sas_core::EventError| {
                Error::new(ErrorKind::InvalidSpec, "usage export", error.to_string()).with_source(error)
            };
            let event = Event::new(record.id(), "/sas/usage", kind).map_err(invalid)?;
            let data = serde_json::to_vec(&to_value(record)).expect("strings");
            self.0.publish(event.with_data("application/json", data).map_err(invalid)?).await?;
        }
        Ok(())
    }
}
