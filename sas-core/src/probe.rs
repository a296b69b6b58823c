//! Health questions to an instance.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::SpecErrors;

/// A health question to an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct Probe {
    /// How it is asked.
    pub action: ProbeAction,
    /// Wait before the first question.
    #[serde(default)]
    pub initial_delay: Duration,
    /// Time between two questions; zero: as often as makes sense (a few milliseconds while it starts).
    #[serde(default)]
    pub period: Duration,
    /// How long one answer may take.
    #[serde(default = "default_probe_timeout")]
    pub timeout: Duration,
    /// Answers in a row that count as success.
    #[serde(default = "one")]
    pub success_threshold: u32,
    /// Failures in a row that count as failure.
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

fn default_probe_timeout() -> Duration {
    Duration::from_secs(1)
}
fn one() -> u32 {
    1
}
fn three() -> u32 {
    3
}

impl Probe {
    /// A probe with Kubernetes' defaults, asked as often as makes sense.
    pub fn new(action: ProbeAction) -> Self {
        Self {
            action,
            initial_delay: Duration::ZERO,
            period: Duration::ZERO,
            timeout: default_probe_timeout(),
            success_threshold: 1,
            failure_threshold: 3,
        }
    }
}

impl Probe {
    /// Checks every field, so that a probe that can be asked at all is known when it is deployed.
    ///
    /// # Errors
    /// All mistakes at once, each with its field path.
    pub fn validate(&self) -> Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        if self.timeout.is_zero() {
            errors.push("timeout", "0s", "longer than nothing");
        }
        for (name, threshold) in
            [("success_threshold", self.success_threshold), ("failure_threshold", self.failure_threshold)]
        {
            if threshold == 0 {
                errors.push(name, 0, "at least 1");
            }
        }
        match &self.action {
            ProbeAction::Http { path, headers, .. } => {
                if path.parse::<http::uri::PathAndQuery>().is_err() || !path.starts_with('/') {
                    errors.push("action.http.path", path, "a path that begins with / and has no blanks");
                }
                for (at, (name, value)) in headers.iter().enumerate() {
                    if name.parse::<http::HeaderName>().is_err()
                        || value.parse::<http::HeaderValue>().is_err()
                    {
                        let field = format!("action.http.headers[{at}]");
                        errors.push(field, name, "a header name and a value of one line");
                    }
                }
            }
            ProbeAction::Exec { command } => {
                if command.first().is_none_or(String::is_empty) {
                    errors.push("action.exec.command", "", "the program that asks, and its arguments");
                }
                if command.iter().any(|word| word.contains('\0')) {
                    errors.push("action.exec.command", "…", "words without NUL");
                }
            }
            ProbeAction::Tcp { .. } | ProbeAction::Grpc { .. } => {}
        }
        let (ProbeAction::Tcp { port } | ProbeAction::Http { port, .. } | ProbeAction::Grpc { port, .. }) =
            &self.action
        else {
            return errors.into_result();
        };
        if *port == Some(0) {
            errors.push("action.port", 0, "1 to 65535, or leave it out for the instance's own");
        }
        errors.into_result()
    }
}

/// How a probe asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ProbeAction {
    /// Opens a connection, which is closed again at once: success is that somebody takes it.
    Tcp {
        /// Another port than the instance's.
        port: Option<u16>,
    },
    /// `GET path`; 200 to 399 is success.
    Http {
        /// Path and query.
        path: String,
        /// Another port than the instance's.
        port: Option<u16>,
        /// Further headers.
        headers: Vec<(String, String)>,
    },
    /// The gRPC health service.
    Grpc {
        /// Another port than the instance's.
        port: Option<u16>,
        /// The service asked about.
        service: Option<String>,
    },
    /// Runs a command in the instance; status 0 is success.
    Exec {
        /// The command.
        command: Vec<String>,
    },
}
