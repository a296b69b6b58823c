//! Events in files.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use sas_core::{Error, ErrorKind, Event, EventPublisher, Result, SinkSpec, SpecErrors, TriggerOptions};
use tokio::sync::Mutex;

/// Files in one directory that triggers may write to, by their name: the kind of sink `file`.
#[derive(Clone, Debug)]
pub struct FileSinks {
    dir: PathBuf,
}

impl FileSinks {
    /// Files in this directory, which is made when the first is written.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// The sink that a trigger declares: its option `name` is the file's, without `.jsonl`, and is put behind that of the
    /// trigger's namespace, so that no namespace writes into another's file.
    ///
    /// # Errors
    /// All mistakes in the options.
    pub fn sink(&self, spec: &SinkSpec) -> Result<Arc<dyn EventPublisher>, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, spec.place);
        let name = options.required("name");
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if name.len() > 100 || !plain {
            options.wrong("name", name, "must be 1 to 100 letters, digits, dashes and underscores");
        }
        options.finish()?;
        let namespace = spec.trigger.split('/').next().unwrap_or_default();
        Ok(Arc::new(FileSink::new(self.dir.join(format!("{namespace}.{name}.jsonl")))))
    }
}

/// Appends events to a file: structured CloudEvents, one a line. An event is on the disk (`fdatasync`) when it is taken.
/// The file may be moved away at any time: the next event makes a new one.
#[derive(Clone, Debug)]
pub struct FileSink {
    path: Arc<PathBuf>,
    /// One event at a time, so that no line is within another.
    writing: Arc<Mutex<()>>,
}

impl FileSink {
    /// Appends to the file of this path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: Arc::new(path.into()), writing: Arc::default() }
    }
}

fn append(path: &Path, line: &[u8]) -> std::io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut file: File = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(line)?;
    file.sync_data()
}

#[async_trait]
impl EventPublisher for FileSink {
    async fn publish(&self, event: Event) -> Result<()> {
        let mut line = sas_cloudevents::to_json(&event).into_bytes();
        line.push(b'\n');
        let alone = Arc::clone(&self.writing).lock_owned().await;
        let path = Arc::clone(&self.path);
        let written = tokio::task::spawn_blocking(move || {
            let _alone = alone;
            append(&path, &line)
        });
        let failed = |problem: String| {
            Error::new(ErrorKind::Unavailable, "publish", format!("{}: {problem}", self.path.display()))
        };
        written.await.map_err(|error| failed(error.to_string()))?.map_err(|error| failed(error.to_string()))
    }
}
