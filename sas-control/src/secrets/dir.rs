//! Secrets from files.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use bytes::Bytes;
use sas_core::{Error, ErrorKind, Result, SecretSource, TenantKey, secret_bytes};
use zeroize::Zeroizing;

use super::{Namespaces, missing};
use crate::control::blocking;

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
/// The builder's `secrets_dir` makes one.
#[derive(Clone, Debug)]
pub struct SecretDir {
    dir: PathBuf,
    namespaces: Namespaces,
}

impl SecretDir {
    /// The secrets of a directory, which nobody but this user should be able to read.
    pub fn new(dir: impl Into<PathBuf>, namespaces: Namespaces) -> Self {
        Self { dir: dir.into(), namespaces }
    }

    /// Where `reference` is, of which `parts` are expected.
    fn path(&self, reference: &str, tenant: TenantKey, parts: usize) -> Result<PathBuf> {
        let namespace = self.namespaces.name_of(tenant, reference)?;
        let given = super::parts(reference, parts)?;
        Ok(given.iter().fold(self.dir.join(namespace), |path, part| path.join(part)))
    }
}

/// The content of a file. Blocking.
fn read(path: &Path, reference: &str) -> Result<Bytes> {
    let failed = |error: std::io::Error| match error.kind() {
        // No file can have such a name, today or later.
        std::io::ErrorKind::InvalidFilename | std::io::ErrorKind::InvalidInput => missing(reference),
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => missing(reference),
        kind => Error::new(ErrorKind::Unavailable, "secret", format!("{reference}: can't be read: {kind}")),
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(missing(reference));
    }
    // As long as it is, so that no shorter copy is left behind by growing.
    let length = file.metadata().map_err(failed)?.len().min(MOST) as usize;
    let mut value = Zeroizing::new(Vec::with_capacity(length + 1));
    file.take(MOST + 1).read_to_end(&mut value).map_err(failed)?;
    if value.len() as u64 > MOST {
        let message = format!("{reference}: a secret has at most {MOST} bytes");
        return Err(Error::new(ErrorKind::InvalidSpec, "secret", message));
    }
    Ok(secret_bytes(std::mem::take(&mut *value)))
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
