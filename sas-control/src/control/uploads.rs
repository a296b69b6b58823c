//! Packages that were sent over the network, until a manifest names them.

use std::{collections::VecDeque, path::PathBuf, time::Duration};

use parking_lot::Mutex;
use sas_core::{BlobStore as _, Error, ErrorKind, Principal, Result, Source, Timestamp};
use sas_knative::manifest::Manifest;

use super::{Control, invalid};

/// How long a package waits to be named by a manifest.
const WAITS: Duration = Duration::from_secs(3600);
/// Packages that wait at most; the oldest goes first.
const MOST: usize = 256;

#[derive(Debug)]
struct Upload {
    digest: String,
    path: PathBuf,
    /// The namespace whose manifests may name it; `None`: any.
    namespace: Option<String>,
    at: Timestamp,
}

/// Packages that wait.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<VecDeque<Upload>>);

impl Uploads {
    fn add(&self, upload: Upload) {
        let mut waiting = self.0.lock();
        waiting.retain(|other| other.digest != upload.digest || other.namespace != upload.namespace);
        waiting.push_back(upload);
    }

    /// Those that have waited too long, or are too many.
    fn take_old(&self, now: Timestamp) -> Vec<String> {
        let mut waiting = self.0.lock();
        let young = waiting.iter().skip(waiting.len().saturating_sub(MOST));
        let kept = young.filter(|upload| now.since(upload.at) < WAITS).count();
        let surplus = waiting.len() - kept;
        waiting.drain(..surplus).map(|upload| upload.digest).collect()
    }

    fn find(&self, digest: &str, namespace: &str) -> Option<PathBuf> {
        let waiting = self.0.lock();
        let reaches = |upload: &&Upload| upload.namespace.as_deref().is_none_or(|own| own == namespace);
        waiting
            .iter()
            .filter(|upload| upload.digest == digest)
            .find(reaches)
            .map(|upload| upload.path.clone())
    }

    pub(super) fn digests(&self) -> Vec<String> {
        self.0.lock().iter().map(|upload| upload.digest.clone()).collect()
    }
}

/// `sha256:` and 64 hexadecimal digits: a package by its digest.
fn is_digest(path: &std::path::Path) -> bool {
    let digits = path.to_str().and_then(|text| text.strip_prefix("sha256:"));
    digits.is_some_and(|digits| {
        digits.len() == 64
            && digits.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    })
}

impl Control {
    /// Takes a copy of a package, a file of this host that somebody sent, and gives its digest, by which the manifests
    /// that `by` may apply name it (`sas.dev/package: sha256:…`). It waits for that for an hour, in this process; what a
    /// revision names stays as long as the revision does.
    ///
    /// # Errors
    /// `InvalidSpec` for what is no package; `Unavailable` when it can't be kept, or the platform shuts down.
    pub async fn upload_package(&self, by: &Principal, path: PathBuf) -> Result<String> {
        self.open()?;
        self.forget_old_uploads().await;
        let _pinning = self.pins.pinning().await;
        let source = Source::Path(path);
        let blob = match self.pins.copies() {
            Some(copies) => copies.put(&source).await?,
            None => self.pins.scratch().put(&source).await?,
        };
        let Source::Path(path) = blob.source else {
            return Err(Error::new(ErrorKind::Unexpected, "package", "a copy of a package has no path here"));
        };
        let namespace = by.tenant().map(str::to_owned);
        self.uploads.add(Upload { digest: blob.digest.clone(), path, namespace, at: self.clock.now() });
        Ok(blob.digest)
    }

    /// Lets go of packages that no manifest has named in time.
    pub(super) async fn forget_old_uploads(&self) {
        let old = self.uploads.take_old(self.clock.now());
        if old.is_empty() {
            return;
        }
        if self.pins.copies().is_some() {
            return self.drop_packages(old).await;
        }
        let used = self.package_digests();
        for digest in old.into_iter().filter(|digest| !used.contains(digest)) {
            if let Err(error) = self.pins.scratch().delete(&digest).await {
                tracing::warn!(error = %error.chain(), "a package that nobody named could not be removed");
            }
        }
    }

    /// Puts the place of a package where a manifest names its digest, and gives these places: what was sent here, or is
    /// a revision's of the same namespace.
    pub(super) async fn resolve_digests(&self, manifests: &mut [Manifest]) -> Result<Vec<PathBuf>> {
        let mut places = Vec::new();
        for manifest in manifests {
            let Manifest::Service(service) = manifest else { continue };
            let Source::Path(path) = &mut service.spec.source else { continue };
            if !is_digest(path) {
                continue;
            }
            let digest = path.to_string_lossy().into_owned();
            let found = match self.uploads.find(&digest, &service.namespace) {
                Some(found) => Some(found),
                None => self.deployed_before(&digest, &service.namespace).await?,
            };
            let Some(found) = found else {
                let problem = "was not sent here within the last hour, and is no revision's of this namespace; send it \
                               with POST /v1/packages";
                return Err(invalid("deploy", service.field_of("source"), digest, problem));
            };
            path.clone_from(&found);
            places.push(found);
        }
        Ok(places)
    }

    async fn deployed_before(&self, digest: &str, namespace: &str) -> Result<Option<PathBuf>> {
        let Some(copies) = self.pins.copies() else { return Ok(None) };
        let known = self.records_of(namespace).iter().any(|record| {
            record.revisions.iter().any(|revision| revision.package.as_deref() == Some(digest))
        });
        match if known { copies.get(digest).await? } else { None } {
            Some(Source::Path(path)) => Ok(Some(path)),
            _ => Ok(None),
        }
    }
}
