//! Where packages that are named over the network may come from.

use std::path::{Path, PathBuf};

use sas_core::{Result, Source};
use sas_knative::manifest::Manifest;

use crate::invalid::invalid;

/// From which directories of the host a manifest that comes over the network may take its package. None by default: a
/// path in a manifest would read files of the host with the platform's rights.
///
/// ```
/// use sas_control::PackageRoots;
/// let roots = PackageRoots::none().with("/srv/packages");
/// assert!(!roots.allows_any());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackageRoots {
    any: bool,
    dirs: Vec<PathBuf>,
}

impl PackageRoots {
    /// No directory at all.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every directory: for callers that may run any program as the host's user in any case.
    pub fn any() -> Self {
        Self { any: true, dirs: Vec::new() }
    }

    /// This directory too, with all below it.
    #[must_use]
    pub fn with(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dirs.push(dir.into());
        self
    }

    /// Whether every directory is allowed.
    pub fn allows_any(&self) -> bool {
        self.any
    }

    /// Where a path really leads, if that is below one of the directories. Says the same of what is elsewhere and of
    /// what is not there, so that nobody learns which files the host has. Blocking.
    fn resolve(&self, path: &Path) -> Option<PathBuf> {
        let real = std::fs::canonicalize(path).ok()?;
        let mut roots = self.dirs.iter().filter_map(|dir| std::fs::canonicalize(dir).ok());
        roots.any(|root| real.starts_with(root)).then_some(real)
    }

    /// Refuses manifests whose packages come from elsewhere, unless they are among those that were `sent` to the platform;
    /// the rest name where they really lie. Blocking.
    pub(crate) fn hold(&self, manifests: &mut [Manifest], sent: &[PathBuf]) -> Result<()> {
        if self.any {
            return Ok(());
        }
        for manifest in manifests {
            let Manifest::Service(service) = manifest else { continue };
            let Source::Path(path) = &mut service.spec.source else { continue };
            if sent.contains(path) {
                continue;
            }
            match self.resolve(path) {
                Some(real) => *path = real,
                None => {
                    let problem = "is not in a directory from which packages that are named over the network may come; \
                                   name it as a package root of the platform (`package_roots`, --package-root), or \
                                   deploy from the host";
                    let value = path.display().to_string();
                    return Err(invalid("deploy", service.field_of("source"), value, problem));
                }
            }
        }
        Ok(())
    }
}
