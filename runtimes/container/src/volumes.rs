//! What volumes and variables hold that come from secrets and configuration maps.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use sas_core::{EnvFrom, EnvValue, Error, ErrorKind, Result, SecretSource, TenantKey, Volume, VolumeSource};

/// Bytes of all files of one volume at most: what Kubernetes allows for a secret.
const MOST_BYTES: usize = 1 << 20;
const DEFAULT_MODE: u32 = 0o644;

/// A volume, ready to be written.
#[derive(Clone, Debug)]
pub(crate) enum Filled {
    /// Empty, with a limit of its own where it has one.
    Empty(Option<u64>),
    /// Files by their relative paths, each with its mode.
    Files(Vec<(String, Bytes, u32)>),
}

fn source(secrets: &Option<Arc<dyn SecretSource>>) -> Result<&Arc<dyn SecretSource>> {
    secrets.as_ref().ok_or_else(|| {
        let what = "the platform has no SecretSource for secrets and configuration maps";
        Error::new(ErrorKind::Unsupported, "start", what)
    })
}

fn absent(error: &Error) -> bool {
    error.kind == ErrorKind::NotFound
}

/// What the volumes of a spec hold.
pub(crate) async fn fill(
    volumes: &[Volume],
    secrets: &Option<Arc<dyn SecretSource>>,
    tenant: TenantKey,
) -> Result<Vec<(String, Filled)>> {
    let mut filled = Vec::with_capacity(volumes.len());
    for volume in volumes {
        let made = match &volume.source {
            VolumeSource::EmptyDir { size_limit_bytes, .. } => Filled::Empty(*size_limit_bytes),
            VolumeSource::Projected(sources) => {
                let mut all = Vec::new();
                for one in sources {
                    all.append(&mut files(&volume.name, one, secrets, tenant).await?);
                }
                Filled::Files(all)
            }
            other => Filled::Files(files(&volume.name, other, secrets, tenant).await?),
        };
        filled.push((volume.name.clone(), made));
    }
    Ok(filled)
}

async fn files(
    volume: &str,
    from: &VolumeSource,
    secrets: &Option<Arc<dyn SecretSource>>,
    tenant: TenantKey,
) -> Result<Vec<(String, Bytes, u32)>> {
    let (kind, name, items, mode, optional) = match from {
        VolumeSource::ConfigMap { name, items, mode, optional } => {
            ("configmap", name, items, mode, *optional)
        }
        VolumeSource::Secret { name, items, mode, optional } => ("secret", name, items, mode, *optional),
        other => {
            let what = format!("volume {volume:?}: this runtime has no volumes of the kind {other:?}");
            return Err(Error::new(ErrorKind::Unsupported, "start", what));
        }
    };
    let mode = mode.unwrap_or(DEFAULT_MODE);
    let of_volume = |error: Error| {
        let what = format!("volume {volume:?}: {}", error.message);
        Error::new(error.kind, "start", what).with_retry(error.retry)
    };
    let secrets = source(secrets).map_err(of_volume)?;
    let mut files = Vec::new();
    if items.is_empty() {
        match secrets.entries(&format!("{kind}/{name}"), tenant).await {
            Ok(entries) => files.extend(entries.into_iter().map(|(key, value)| (key, value, mode))),
            Err(error) if optional && absent(&error) => {}
            Err(error) => return Err(of_volume(error)),
        }
    } else {
        for (key, path) in items {
            match secrets.resolve(&format!("{kind}/{name}/{key}"), tenant).await {
                Ok(value) => files.push((path.clone(), value, mode)),
                Err(error) if optional && absent(&error) => {}
                Err(error) => return Err(of_volume(error)),
            }
        }
    }
    let bytes: usize = files.iter().map(|(_, value, _)| value.len()).sum();
    if bytes > MOST_BYTES {
        let what = format!(
            "volume {volume:?}: {bytes} bytes, and secrets and configuration maps have at most {MOST_BYTES}"
        );
        return Err(Error::new(ErrorKind::InvalidSpec, "start", what));
    }
    for (path, ..) in &files {
        if path.is_empty()
            || path.starts_with('/')
            || path.split('/').any(|part| matches!(part, ".." | "." | ""))
        {
            let what = format!("volume {volume:?}: the key {path:?} is no name of a file");
            return Err(Error::new(ErrorKind::InvalidSpec, "start", what));
        }
    }
    Ok(files)
}

/// The variables of a container that come from elsewhere than its image. Later ones win: `env_from` in its order, then
/// `env`. `resolved` are values that were resolved before.
pub(crate) async fn environment(
    env_from: &[EnvFrom],
    env: &BTreeMap<String, EnvValue>,
    resolved: impl Fn(&str) -> Option<String>,
    secrets: &Option<Arc<dyn SecretSource>>,
    tenant: TenantKey,
) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for from in env_from {
        let entries = match source(secrets)?.entries(&from.reference, tenant).await {
            Ok(entries) => entries,
            Err(error) if from.optional && absent(&error) => continue,
            Err(error) => return Err(error),
        };
        for (key, value) in entries {
            let name = format!("{}{key}", from.prefix);
            // As in Kubernetes: what is no name of a variable is left out.
            if name.is_empty() || name.contains(['=', '\0']) {
                continue;
            }
            variables.insert(name, text(&from.reference, &value)?);
        }
    }
    for (name, value) in env {
        let value = match value {
            EnvValue::Literal(text) => text.clone(),
            EnvValue::Secret(reference) => match resolved(name) {
                Some(value) => value,
                None => text(reference, &source(secrets)?.resolve(reference, tenant).await?)?,
            },
            other => {
                let what = format!("env.{name}: this runtime knows no value of the kind {other:?}");
                return Err(Error::new(ErrorKind::Unsupported, "start", what));
            }
        };
        variables.insert(name.clone(), value);
    }
    Ok(variables)
}

fn text(reference: &str, bytes: &[u8]) -> Result<String> {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => Ok(text.to_owned()),
        _ => {
            let what =
                format!("{reference:?} holds a value that is not UTF-8 without NUL, as variables must be");
            Err(Error::new(ErrorKind::InvalidSpec, "start", what))
        }
    }
}
