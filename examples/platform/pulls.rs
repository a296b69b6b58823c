//! Pulls of images, as whoever started the program likes to watch them.

use std::io::{IsTerminal as _, Write as _};

use sas::container::{PullObserver, PullProgress};

/// Pulls, as a line that a person likes to watch where stderr is a terminal.
#[derive(Debug)]
pub(crate) struct Watch;

impl PullObserver for Watch {
    fn progress(&self, image: &str, progress: &PullProgress) {
        let mut stderr = std::io::stderr();
        if !stderr.is_terminal() {
            if !matches!(progress, PullProgress::Pulling { .. }) {
                tracing::info!(image, %progress, "pull");
            }
            return;
        }
        let end = if matches!(progress, PullProgress::Pulling { .. }) { "" } else { "\n" };
        let _ = write!(stderr, "\r\x1b[2K{image}: {progress}{end}");
        let _ = stderr.flush();
    }
}
