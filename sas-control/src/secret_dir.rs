//! Secrets from files.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock, Weak},
};

use async_trait::async_trait;
use bytes::Bytes;
use sas_core::{Error, ErrorKind, Result, SecretSource, TenantKey};

use crate::control::{Control, blocking};

/// Bytes of one value at most.
const MOST: u64 = 1 << 20;

/// A [`SecretSource`] over a directory: the reference `secret/db/password` of the namespace `shop` is the file
/// `shop/secret/db/password` below it, `configmap/flags/color` is `shop/configmap/flags/color`. It is laid out so that
/// mounted secrets of Kubernetes fit. A namespace reads its own directory only.
///
/// Files are read each time that a value is asked for, so a changed file counts without a deploy: for new instances, for each
/// event that a webhook source checks, and whenever a trigger's source begins. Instances that run keep what they were started
/// with. The trailing line break that editors leave is part of the value.
///
/// Useless before it is told whose namespaces are whose, by [`SecretDir::bind`]; the builder's `secrets_dir` does.
#[derive(Clone, Debug)]
pub struct SecretDir {
    dir: PathBuf,
    control: Arc<OnceLock<Weak<Control>>>,
}

impl SecretDir {
    /// The secrets of a directory, which nobody but this user should be able to read.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), control: Arc::default() }
    }

    /// Tells this and all its clones whose namespaces are whose. Only the first time counts.
    pub fn bind(&self, control: &Arc<Control>) {
        let _ = self.control.set(Arc::downgrade(control));
    }

    /// Where `reference` is, of which `parts` are expected.
    fn path(&self, reference: &str, tenant: TenantKey, parts: usize) -> Result<PathBuf> {
        let control = self.control.get().and_then(Weak::upgrade).ok_or_else(|| {
            let message = format!("{reference}: the platform is starting or has ended");
            Error::new(ErrorKind::Unavailable, "secret", message)
        })?;
        let namespace = control.namespace_of(tenant).ok_or_else(|| missing(reference))?;
        let given: Vec<&str> = reference.split('/').collect();
        let plain = |part: &&str| {
            !part.is_empty() && !matches!(*part, "." | "..") && !part.chars().any(char::is_control)
        };
        if given.len() != parts || !matches!(given[0], "secret" | "configmap") || !given.iter().all(plain) {
            let rule = if parts == 3 {
                "secret/NAME/KEY or configmap/NAME/KEY"
            } else {
                "secret/NAME or configmap/NAME"
            };
            let message = format!("{reference:?} is no reference to a secret: write {rule}");
            return Err(Error::new(ErrorKind::InvalidSpec, "secret", message));
        }
        Ok(given.iter().fold(self.dir.join(namespace), |path, part| path.join(part)))
    }
}

fn missing(reference: &str) -> Error {
    let message = format!("{reference}: this namespace has no such secret");
    Error::new(ErrorKind::NotFound, "secret", message)
}

/// The content of a file. Blocking.
fn read(path: &Path, reference: &str) -> Result<Bytes> {
    let failed = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => missing(reference),
        kind => Error::new(ErrorKind::Unavailable, "secret", format!("{reference}: can't be read: {kind}")),
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(missing(reference));
    }
    let mut value = Vec::new();
    file.take(MOST + 1).read_to_end(&mut value).map_err(failed)?;
    if value.len() as u64 > MOST {
        let message = format!("{reference}: a secret has at most {MOST} bytes");
        return Err(Error::new(ErrorKind::InvalidSpec, "secret", message));
    }
    Ok(value.into())
}

#[async_trait]
impl SecretSource for SecretDir {
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> Result<Bytes> {
        let (path, reference) = (self.path(reference, tenant, 3)?, reference.to_owned());
        blocking(move || read(&path, &reference)).await
    }

    async fn entries(&self, reference: &str, tenant: TenantKey) -> Result<BTreeMap<String, Bytes>> {
        let (path, reference) = (self.path(reference, tenant, 2)?, reference.to_owned());
        blocking(move || {
            let mut entries = BTreeMap::new();
            for file in std::fs::read_dir(&path).map_err(|_| missing(&reference))? {
                let Ok(name) = file.map_err(|_| missing(&reference))?.file_name().into_string() else {
                    continue;
                };
                // `..data` and its like are how Kubernetes replaces a mounted secret as a whole.
                if !name.starts_with("..") && path.join(&name).is_file() {
                    let value = read(&path.join(&name), &format!("{reference}/{name}"))?;
                    entries.insert(name, value);
                }
            }
            Ok(entries)
        })
        .await
    }
}
