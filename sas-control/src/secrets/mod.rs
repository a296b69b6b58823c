//! Where secrets come from: files and the environment, by namespace.

mod dir;
mod env;

use std::sync::{Arc, OnceLock, Weak};

use sas_core::{Error, ErrorKind, Result, TenantKey};

pub use dir::SecretDir;
pub use env::SecretEnv;

use crate::control::Control;

/// Whose namespace is whose, for sources of secrets, which are made before the platform: they are asked with a
/// [`TenantKey`], and keep secrets by the namespace's name. The builder's `namespaces` gives one that is told by the platform
/// as soon as it is there.
#[derive(Clone, Debug, Default)]
pub struct Namespaces(Arc<OnceLock<Weak<Control>>>);

impl Namespaces {
    /// Tells this and all its clones whose namespaces are whose. Only the first time counts.
    pub fn bind(&self, control: &Arc<Control>) {
        let _ = self.0.set(Arc::downgrade(control));
    }

    /// The namespace of a tenant, for whom `reference` is resolved.
    ///
    /// # Errors
    /// `Unavailable` before the platform is there and after it has ended; `NotFound` for nobody's tenant, as when it has no
    /// such secret.
    pub fn name_of(&self, tenant: TenantKey, reference: &str) -> Result<String> {
        let control = self.0.get().and_then(Weak::upgrade).ok_or_else(|| {
            let message = format!("{reference}: the platform is starting or has ended");
            Error::new(ErrorKind::Unavailable, "secret", message)
        })?;
        control.namespace_of(tenant).ok_or_else(|| missing(reference))
    }
}

fn missing(reference: &str) -> Error {
    let message = format!("{reference}: this namespace has no such secret");
    Error::new(ErrorKind::NotFound, "secret", message)
}

/// The parts of a reference, of which so many are expected: `secret/NAME/KEY`, or `secret/NAME` for all keys.
fn parts(reference: &str, parts: usize) -> Result<Vec<&str>> {
    let given: Vec<&str> = reference.split('/').collect();
    let plain =
        |part: &&str| !part.is_empty() && !matches!(*part, "." | "..") && !part.chars().any(char::is_control);
    if given.len() != parts || !matches!(given[0], "secret" | "configmap") || !given.iter().all(plain) {
        let rule = if parts == 3 {
            "secret/NAME/KEY or configmap/NAME/KEY"
        } else {
            "secret/NAME or configmap/NAME"
        };
        let message = format!("{reference:?} is no reference to a secret: write {rule}");
        return Err(Error::new(ErrorKind::InvalidSpec, "secret", message));
    }
    Ok(given)
}
