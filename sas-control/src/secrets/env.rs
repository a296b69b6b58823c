//! Secrets from the environment of the host.

use std::env;

use async_trait::async_trait;
use bytes::Bytes;
use sas_core::{Error, ErrorKind, Result, SecretSource, TenantKey, secret_bytes};

use super::{Namespaces, missing, parts};

/// A [`SecretSource`] over the host's environment: with the prefix `SAS_SECRET_`, the reference `secret/db/password` of the
/// namespace `shop` is the variable `SAS_SECRET_SHOP__DB__PASSWORD`. Letters are capitals there, every other character but
/// digits is `_`, and `__` stands between namespace, name and key.
///
/// A namespace, name or key that would itself have `__`, or `_` at an end, is refused: two tenants never mean one variable.
/// The environment of a process does not change, so a secret is replaced by a restart of the host. Its copies here are
/// overwritten when they are let go of; the environment itself can't be. Instances do not inherit it.
///
/// The builder's `secrets_env` makes one.
#[derive(Clone, Debug)]
pub struct SecretEnv {
    prefix: String,
    namespaces: Namespaces,
}

impl SecretEnv {
    /// The secrets whose variables begin with `prefix`.
    pub fn new(prefix: impl Into<String>, namespaces: Namespaces) -> Self {
        Self { prefix: prefix.into(), namespaces }
    }

    fn variable(&self, reference: &str, namespace: &str) -> Result<String> {
        let given = parts(reference, 3)?;
        let mut name = self.prefix.clone();
        for (at, part) in [namespace, given[1], given[2]].into_iter().enumerate() {
            let word: String = part
                .chars()
                .map(|char| if char.is_ascii_alphanumeric() { char.to_ascii_uppercase() } else { '_' })
                .collect();
            if word.contains("__") || word.starts_with('_') || word.ends_with('_') {
                let message = format!(
                    "{reference:?} in the namespace {namespace}: {part:?} has no name in the environment that could not \
                     be another's; use letters, digits, and single other characters between them"
                );
                return Err(Error::new(ErrorKind::InvalidSpec, "secret", message));
            }
            if at > 0 {
                name.push_str("__");
            }
            name.push_str(&word);
        }
        Ok(name)
    }
}

#[async_trait]
impl SecretSource for SecretEnv {
    async fn resolve(&self, reference: &str, tenant: TenantKey) -> Result<Bytes> {
        let namespace = self.namespaces.name_of(tenant, reference)?;
        let variable = self.variable(reference, &namespace)?;
        let value = env::var_os(&variable).ok_or_else(|| missing(reference))?;
        Ok(secret_bytes(value.into_encoded_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_tenants_mean_one_variable() {
        let source = SecretEnv::new("P_", Namespaces::default());
        let name = |namespace: &str, reference: &str| source.variable(reference, namespace);
        assert_eq!(name("shop", "secret/db/password").unwrap(), "P_SHOP__DB__PASSWORD");
        assert_eq!(name("my-shop", "secret/db.eu/api-key").unwrap(), "P_MY_SHOP__DB_EU__API_KEY");
        for (namespace, reference) in [
            ("a--b", "secret/key/x"),
            ("a", "secret/b/key__x"),
            ("a", "secret/b-/x"),
            ("a", "secret/_b/x"),
            ("a", "secret/b/x."),
            ("a", "secret/b"),
            ("a", "secret/../x"),
        ] {
            let error = name(namespace, reference).unwrap_err();
            assert_eq!(error.kind, ErrorKind::InvalidSpec, "{namespace} {reference}");
        }
    }
}
