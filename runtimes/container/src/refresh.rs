//! Secrets and configuration maps that change while instances run: the files of their volumes follow.
//!
//! One task for a runtime asks again for what running instances have mounted, and writes what differs. A file is replaced at
//! once, under its name; what has no key any more is removed. Variables, and single files that are mounted by a
//! `subPath`, stay what they were, as in Kubernetes.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Arc, Weak},
};

use bytes::Bytes;
use parking_lot::Mutex;
use sas_core::{SecretSource, TenantKey, Volume, VolumeSource};

use crate::{
    digest::Digest,
    pod::{self, Pod},
    volumes::{self, Filled},
};

/// What an instance has mounted.
#[derive(Debug)]
struct Mounted {
    pod: Weak<Pod>,
    volumes: Vec<Volume>,
    tenant: TenantKey,
    group: Option<u32>,
    /// Digests of what is there, by volume and path.
    there: BTreeMap<(String, String), Digest>,
}

/// What running instances have mounted.
#[derive(Debug, Default)]
pub(crate) struct Refreshed(Mutex<Vec<Mounted>>);

fn digests(filled: &[(String, Filled)]) -> BTreeMap<(String, String), Digest> {
    let files = filled.iter().filter_map(|(name, filled)| match filled {
        Filled::Files(files) => Some(files.iter().map(move |(path, bytes, _)| (name, path, bytes))),
        Filled::Empty(_) => None,
    });
    files.flatten().map(|(name, path, bytes)| ((name.clone(), path.clone()), Digest::of(bytes))).collect()
}

impl Refreshed {
    /// Follows the volumes of an instance as long as its mounts are there.
    pub(crate) fn follow(
        &self,
        pod: &Arc<Pod>,
        volumes: &[Volume],
        tenant: TenantKey,
        group: Option<u32>,
        there: Followed,
    ) {
        let volumes: Vec<Volume> = volumes
            .iter()
            .filter(|volume| !matches!(volume.source, VolumeSource::EmptyDir { .. }))
            .cloned()
            .collect();
        if volumes.is_empty() {
            return;
        }
        let pod = Arc::downgrade(pod);
        self.0.lock().push(Mounted { pod, volumes, tenant, group, there: there.0 });
    }
}

/// What an instance was started with.
pub(crate) struct Followed(BTreeMap<(String, String), Digest>);

impl Followed {
    pub(crate) fn of(filled: &[(String, Filled)]) -> Self {
        Self(digests(filled))
    }
}

impl Refreshed {
    /// Asks for everything that is mounted once.
    pub(crate) async fn once(&self, secrets: &Option<Arc<dyn SecretSource>>) {
        let all = std::mem::take(&mut *self.0.lock());
        let mut kept = Vec::with_capacity(all.len());
        for mut mounted in all {
            let Some(pod) = mounted.pod.upgrade() else { continue };
            match volumes::fill(&mounted.volumes, secrets, mounted.tenant).await {
                Ok(filled) => {
                    let now = digests(&filled);
                    if now != mounted.there {
                        match write(pod, filled, &mounted, &now).await {
                            Ok(()) => mounted.there = now,
                            Err(error) => {
                                tracing::warn!(%error, "a changed secret or configuration map is not written");
                            }
                        }
                    }
                }
                // What is there is better than nothing.
                Err(error) => {
                    tracing::debug!(%error, "a mounted secret or configuration map can't be asked for")
                }
            }
            kept.push(mounted);
        }
        self.0.lock().append(&mut kept);
    }
}

async fn write(
    pod: Arc<Pod>,
    filled: Vec<(String, Filled)>,
    mounted: &Mounted,
    now: &BTreeMap<(String, String), Digest>,
) -> io::Result<()> {
    let gone: Vec<(String, String)> =
        mounted.there.keys().filter(|key| !now.contains_key(key)).cloned().collect();
    let (there, group) = (mounted.there.clone(), mounted.group);
    let written = tokio::task::spawn_blocking(move || {
        pod.enter(|| {
            for (name, filled) in &filled {
                let Filled::Files(files) = filled else { continue };
                for (path, bytes, mode) in files {
                    if there.get(&(name.clone(), path.clone())) != Some(&Digest::of(bytes)) {
                        replace(&pod.dir, name, path, bytes, *mode, group)?;
                    }
                }
            }
            for (name, path) in &gone {
                match fs::remove_file(pod.dir.join("vol").join(name).join(path)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })
    });
    written.await.map_err(io::Error::other)?
}

/// Writes a file of a volume, or another in its place; within the mounts of the instance, which begin at `dir`.
pub(crate) fn replace(
    dir: &Path,
    volume: &str,
    path: &str,
    bytes: &Bytes,
    mode: u32,
    group: Option<u32>,
) -> io::Result<()> {
    let file = dir.join("vol").join(volume).join(path);
    if let Some(parent) = file.parent() {
        fs::create_dir_all(parent)?;
    }
    // Where no container looks, and in the same file system.
    let new = dir.join("new");
    fs::write(&new, bytes)?;
    // A group that owns it may read it, as in Kubernetes.
    let mode = if group.is_some() { mode | 0o040 } else { mode };
    fs::set_permissions(&new, fs::Permissions::from_mode(mode))?;
    if let Some(group) = group {
        pod::give(&new, group)?;
    }
    fs::rename(&new, &file)
}
