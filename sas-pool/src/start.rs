//! What a start does: resolves secrets, takes a stem of the class or starts cold. Starts belong to the pool.

use std::{collections::BTreeMap, sync::Arc};

use sas_core::{EnvValue, Error, ErrorKind, Result, Secret, StartRequest};

use crate::{rules::Rules, shared::Shared, start_executor::Made};

/// A start without secrets and stems.
pub(crate) async fn cold(request: StartRequest) -> Made {
    let runtime = Arc::clone(&request.deployed.runtime);
    Made { result: runtime.start(request).await, from_stem: false }
}

/// A start with secrets, or of a class of which stems may be held.
pub(crate) async fn make(shared: Arc<Shared>, mut request: StartRequest) -> Made {
    match secrets(&shared.rules, &request).await {
        Ok(secrets) => request.secrets = secrets,
        Err(error) => return Made::failed(error),
    }
    let runtime = Arc::clone(&request.deployed.runtime);
    if runtime.capabilities().stems
        && let Some(class) = &request.deployed.artifact.info().stem
        && let Some(stem) = shared.stems.take(class)
    {
        match stem.specialize(request.clone()).await {
            Ok(instance) => return Made { result: Ok(instance), from_stem: true },
            Err(error) => {
                shared.rules.metrics.stem_failures.increment(1);
                tracing::warn!(instance = %request.id, error = %error.chain(), "a stem failed: starting cold");
            }
        }
    }
    Made { result: runtime.start(request).await, from_stem: false }
}

/// Resolves the secrets of a spec, all of them.
async fn secrets(rules: &Rules, request: &StartRequest) -> Result<Option<Arc<BTreeMap<String, Secret>>>> {
    let mut secrets = BTreeMap::new();
    for (name, value) in &request.spec().env {
        let EnvValue::Secret(reference) = value else { continue };
        let Some(source) = &rules.config.secrets else {
            return Err(Error::new(
                ErrorKind::InvalidSpec,
                "start",
                format!(
                    "env.{name} refers to the secret {reference:?}, but the platform has no SecretSource"
                ),
            ));
        };
        let bytes = source.resolve(reference, request.tenant()).await?;
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            Error::new(
                ErrorKind::InvalidSpec,
                "start",
                format!(
                    "env.{name}: the secret {reference:?} is not UTF-8, as environment variables must be"
                ),
            )
        })?;
        secrets.insert(name.clone(), Secret::new(text));
    }
    Ok((!secrets.is_empty()).then(|| Arc::new(secrets)))
}
