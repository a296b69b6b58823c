//! A directory of certificates that is looked at while it is used.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use sas_core::{Recorder, SpecErrors};
use tokio_util::sync::CancellationToken;

use super::Tls;
use crate::{
    certificates::Certificates,
    metrics::{CERTIFICATE_EXPIRY, CERTIFICATE_RELOADS, CERTIFICATES},
};

/// How often files are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// The certificates of a directory, which are read again when a file of it changes. Changes that make a pair wrong leave those
/// before in force, and are told in the log and by [`CertificateDir::problem`].
pub struct CertificateDir {
    dir: PathBuf,
    tls: Tls,
    recorder: Recorder,
    /// The files as they were when they were read last, whether that was good or not.
    seen: Mutex<Files>,
    problem: Mutex<Option<SpecErrors>>,
}

type Files = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

impl fmt::Debug for CertificateDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateDir").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl CertificateDir {
    /// Reads a directory as [`Certificates::read`] does. Blocking.
    ///
    /// # Errors
    /// Every pair that is none.
    pub fn open(dir: impl Into<PathBuf>, recorder: Recorder) -> Result<Self, SpecErrors> {
        let dir = dir.into();
        let seen = files(&dir);
        let tls = Tls::from_certificates(Certificates::read(&dir)?);
        let opened = Self { dir, tls, recorder, seen: Mutex::new(seen), problem: Mutex::default() };
        opened.tell();
        Ok(opened)
    }

    /// What a server is given: it shows what was read last.
    pub fn tls(&self) -> &Tls {
        &self.tls
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Why what is there now is not in force, if it is not.
    pub fn problem(&self) -> Option<SpecErrors> {
        self.problem.lock().clone()
    }

    /// Reads the directory again, for connections to come. Blocking.
    ///
    /// # Errors
    /// Every pair that is none; those before stay in force.
    pub fn reload(&self) -> Result<(), SpecErrors> {
        // Taken first: what changes meanwhile is read the next time.
        *self.seen.lock() = files(&self.dir);
        let read = Certificates::read(&self.dir);
        let outcome = if read.is_ok() { "done" } else { "refused" };
        self.recorder.counter(CERTIFICATE_RELOADS, &[("outcome", outcome)]).increment(1);
        let read = read.map(|certificates| self.tls.replace(certificates));
        *self.problem.lock() = read.as_ref().err().cloned();
        self.tell();
        read
    }

    /// Reads the directory again whenever a file of it has changed, until `stop`.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            let this = Arc::clone(&self);
            let looking = tokio::task::spawn_blocking(move || {
                if *this.seen.lock() == files(&this.dir) {
                    return;
                }
                match this.reload() {
                    Ok(()) => tracing::info!(dir = %this.dir.display(), "certificates were read again"),
                    Err(errors) => {
                        tracing::error!(dir = %this.dir.display(), %errors, "new certificates are wrong: those before stay in force");
                    }
                }
            });
            // It ends by itself; a panic in it has been told.
            let _ = looking.await;
        }
    }

    fn tell(&self) {
        let Some(certificates) = self.tls.certificates() else { return };
        let (mut count, mut first) = (0_u32, None);
        for view in certificates.views() {
            count += 1;
            first = Some(first.map_or(view.expires, |first: SystemTime| first.min(view.expires)));
        }
        self.recorder.gauge(CERTIFICATES, &[]).set(f64::from(count));
        if let Some(first) = first.and_then(|first| first.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            self.recorder.gauge(CERTIFICATE_EXPIRY, &[]).set(first.as_secs_f64());
        }
    }
}

/// The files of a directory and of those in it, with what tells that one was changed.
fn files(dir: &Path) -> Files {
    let mut seen = Files::new();
    let mut look = |path: PathBuf| {
        // Of what a link leads to: certbot and Kubernetes exchange links.
        if let Ok(known) = fs::metadata(&path) {
            seen.insert(path, (known.modified().ok(), known.len()));
        }
    };
    for path in paths(dir) {
        if path.is_dir() {
            paths(&path).into_iter().for_each(&mut look);
        }
        look(path);
    }
    seen
}

fn paths(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}
