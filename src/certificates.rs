//! Certificates of a directory, as the platform's parts see them.

use std::{sync::Arc, time::SystemTime};

use sas_control::{CertificateSource, CertificateState};
use sas_core::Timestamp;
use sas_router::CertificateDir;

/// What a diagnosis asks.
#[derive(Debug)]
pub(crate) struct Shown(pub(crate) Arc<CertificateDir>);

impl CertificateSource for Shown {
    fn certificates(&self) -> Vec<CertificateState> {
        let Some(certificates) = self.0.tls().certificates() else { return Vec::new() };
        let states = certificates.views().map(|view| {
            let expires = view.expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let expires = i64::try_from(expires.as_nanos()).unwrap_or(i64::MAX);
            let mut state = CertificateState::new(&view.name, Timestamp(expires));
            state.domains.clone_from(&view.domains);
            state
        });
        states.collect()
    }

    fn problem(&self) -> Option<String> {
        self.0.problem().map(|errors| errors.to_string())
    }
}
