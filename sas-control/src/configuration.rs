//! What the program around a platform is configured with, as the admin API shows and reloads it.

use std::fmt;

use async_trait::async_trait;
use sas_core::Result;
use serde::Serialize;
use utoipa::ToSchema;

/// When a change of a field of the configuration holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ChangeTime {
    /// From the reload on.
    Reload,
    /// From the next start on: a reload that changes it is refused.
    Restart,
}

/// Where the value of a field comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ConfigOrigin {
    /// The command line, which goes before the file.
    Flag,
    /// The file.
    File,
    /// Nobody said anything.
    Default,
}

/// A field of the configuration.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[non_exhaustive]
pub struct ConfigField {
    /// Its name in the file.
    pub name: String,
    /// Its option on the command line; empty for what stands there by itself.
    pub flag: String,
    /// Its value; `null` where nobody said anything. Never a secret: those are in files and variables of the environment.
    pub value: serde_json::Value,
    /// Who said so.
    pub origin: ConfigOrigin,
    /// When a change of it holds.
    pub changes: ChangeTime,
    /// What it is.
    pub help: String,
}

impl ConfigField {
    /// A field of which nobody said anything.
    pub fn new(name: impl Into<String>, flag: impl Into<String>, changes: ChangeTime) -> Self {
        Self {
            name: name.into(),
            flag: flag.into(),
            value: serde_json::Value::Null,
            origin: ConfigOrigin::Default,
            changes,
            help: String::new(),
        }
    }
}

/// The configuration of the program that a platform is part of: the admin API shows it at `GET /v1/config`, and has it read
/// again at `POST /v1/config/reload`.
///
/// # Contract
/// A reload is whole: either everything that was read is in force when it returns, or nothing of it is.
#[async_trait]
pub trait ProgramConfig: fmt::Debug + Send + Sync + 'static {
    /// All fields, in an order that stays. Without secrets: whoever may administer the platform sees them.
    fn fields(&self) -> Vec<ConfigField>;

    /// Reads it again, and puts in force what changed. Tells the names of the fields that did.
    ///
    /// # Errors
    /// `InvalidSpec` with every field that is wrong, or that only a restart changes; what was in force before stays so.
    async fn reload(&self) -> Result<Vec<String>>;
}
