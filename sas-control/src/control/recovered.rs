//! What a start could not bring back, as long as it is not back.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Control, Recovery};

/// The outcome of the last start, less what has come back since.
#[derive(Debug, Default)]
pub(super) struct RecoveryReport(Mutex<Recovery>);

impl RecoveryReport {
    /// Keeps it, and writes what failed to the log.
    pub(super) fn keep(&self, recovery: &Recovery) {
        for (what, error) in &recovery.failed {
            tracing::error!(what, error = %error.chain(), "did not come back after the start");
        }
        if recovery.failed.is_empty() {
            tracing::info!(
                services = recovery.services,
                triggers = recovery.triggers,
                "everything came back"
            );
        }
        *self.0.lock() = recovery.clone();
    }

    /// It was declared again, or deleted.
    pub(super) fn came_back(&self, what: &str) {
        self.0.lock().failed.retain(|(failed, _)| failed != what);
    }
}

impl Control {
    /// What the last [`Control::recover`] brought back, and what of the rest is still missing: services and triggers that
    /// were declared again or deleted since are not in it.
    pub fn recovery(&self) -> Recovery {
        self.recovery_report.0.lock().clone()
    }

    /// What of the last start is still missing, in words: `Service namespace/name` with the reason.
    pub(crate) fn missing(&self) -> Vec<(String, Arc<sas_core::Error>)> {
        self.recovery_report.0.lock().failed.clone()
    }
}
