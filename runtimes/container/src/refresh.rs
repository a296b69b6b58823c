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
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt as _;
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
    there: Mutex<BTreeMap<(String, String), Digest>>,
}

/// How long one instance's secrets and configuration maps are waited for, and for how many instances at a time.
const WITHIN: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 16;

/// What running instances have mounted.
#[derive(Debug, Default)]
pub(crate) struct Refreshed(Mutex<Vec<Arc<Mounted>>>);

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
        self.0.lock().push(Arc::new(Mounted { pod, volumes, tenant, group, there: Mutex::new(there.0) }));
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
        let all = {
            let mut all = self.0.lock();
            all.retain(|mounted| mounted.pod.strong_count() > 0);
            all.clone()
        };
        let asked = all.into_iter().map(|mounted| refresh(mounted, secrets.clone()));
        futures_util::stream::iter(asked).for_each_concurrent(AT_ONCE, |asked| asked).await;
    }
}

async fn refresh(mounted: Arc<Mounted>, secrets: Option<Arc<dyn SecretSource>>) {
    let asked = volumes::fill(&mounted.volumes, &secrets, mounted.tenant);
    let filled = match tokio::time::timeout(WITHIN, asked).await {
        Ok(Ok(filled)) => filled,
        // What is there is better than nothing.
        Ok(Err(error)) => {
            tracing::debug!(%error, "a mounted secret or configuration map can't be asked for");
            return;
        }
        Err(_) => {
            tracing::warn!(within = ?WITHIN, "a mounted secret or configuration map is not told in time");
            return;
        }
    };
    let Some(pod) = mounted.pod.upgrade() else { return };
    let now = digests(&filled);
    if now == *mounted.there.lock() {
        return;
    }
    match write(pod, filled, &mounted, &now).await {
        Ok(()) => *mounted.there.lock() = now,
        Err(error) => tracing::warn!(%error, "a changed secret or configuration map is not written"),
    }
}

async fn write(
    pod: Arc<Pod>,
    filled: Vec<(String, Filled)>,
    mounted: &Mounted,
    now: &BTreeMap<(String, String), Digest>,
) -> io::Result<()> {
    let there = mounted.there.lock().clone();
    let gone: Vec<(String, String)> = there.keys().filter(|key| !now.contains_key(key)).cloned().collect();
    let group = mounted.group;
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
