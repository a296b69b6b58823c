//! What instances write: followed through the API server, a connection for each.

use std::sync::Arc;

use futures_util::AsyncReadExt as _;
use kube::api::LogParams;
use sas_core::LogStream;
use tokio::time::{Duration, Instant};

use crate::{board::Slot, engine::Engine, output::LogTarget, pod};

/// Follows the output of an instance from its beginning to its end, once.
pub(crate) fn follow(engine: &Arc<Engine>, slot: &Arc<Slot>) {
    let Some(target) = slot.claim_output() else { return };
    let Ok(permit) = Arc::clone(&engine.following).try_acquire_owned() else {
        let text = format!(
            "the output of this instance is not read: that of {} others is, the most that this platform follows",
            engine.config.followed
        );
        target.tell(&*engine.config.clock, LogStream::Platform, text.as_bytes());
        return;
    };
    let (engine, slot) = (Arc::clone(engine), Arc::clone(slot));
    tokio::spawn(async move {
        let mut lines = Lines::new(&engine, &target);
        loop {
            let ended = slot.has_ended();
            let read = read(&engine, &slot, &mut lines).await;
            // What was written until the end has been read then; one that is gone has nothing to read any more.
            if ended || slot.is_gone() {
                break;
            }
            if let Err(why) = read {
                tracing::debug!(pod = slot.name, why, "its output is read again");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        lines.end();
        drop(permit);
    });
}

async fn read(engine: &Engine, slot: &Slot, lines: &mut Lines<'_>) -> Result<(), String> {
    let params = LogParams {
        container: Some(pod::MAIN.to_owned()),
        follow: true,
        // By which lines that come again after an interruption are known.
        timestamps: true,
        since_time: lines.last,
        ..LogParams::default()
    };
    let stream =
        engine.cluster.pods().log_stream(&slot.name, &params).await.map_err(|error| error.to_string())?;
    let mut stream = std::pin::pin!(stream);
    let mut buffer = vec![0u8; 16 << 10];
    lines.resume();
    loop {
        match stream.read(&mut buffer).await.map_err(|error| error.to_string())? {
            0 => return Ok(()),
            read => lines.take(&buffer[..read]),
        }
        // A flood takes turns with everything else that runs here.
        tokio::task::yield_now().await;
    }
}

/// Cuts what comes into lines, each with the time of the cluster before it, and passes on what is new and not too much.
struct Lines<'a> {
    engine: &'a Engine,
    target: &'a LogTarget,
    line: Vec<u8>,
    skipping: bool,
    /// The time of the last line that was passed on.
    last: Option<jiff::Timestamp>,
    /// Lines of that time and before are known.
    known: Option<jiff::Timestamp>,
    second: Instant,
    passed: u64,
    dropped: u64,
}

/// Letters of a time before a line, at most.
const TIME: usize = 36;

impl<'a> Lines<'a> {
    fn new(engine: &'a Engine, target: &'a LogTarget) -> Self {
        Self {
            engine,
            target,
            line: Vec::new(),
            skipping: false,
            last: None,
            known: None,
            second: Instant::now(),
            passed: 0,
            dropped: 0,
        }
    }

    /// A stream begins: with lines that were seen before, from the second of the last one on.
    fn resume(&mut self) {
        self.line.clear();
        self.skipping = false;
        self.known = self.last;
    }

    fn take(&mut self, bytes: &[u8]) {
        let most = self.engine.config.line_bytes + TIME;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if !self.skipping {
                let room = most.saturating_sub(self.line.len());
                self.line.extend_from_slice(&text[..text.len().min(room)]);
                self.skipping = text.len() > room;
            }
            if ends {
                let line = std::mem::take(&mut self.line);
                self.pass(&line);
                self.skipping = false;
            }
        }
    }

    fn pass(&mut self, line: &[u8]) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.passed = 0;
            self.tell_dropped();
        }
        let (at, text) = timed(line);
        if at.is_some() && at <= self.known {
            return;
        }
        self.last = at.or(self.last);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        if self.passed >= self.engine.config.log_bytes_per_second {
            self.dropped += 1;
            return;
        }
        self.passed += text.len() as u64 + 1;
        // The cluster keeps both streams as one.
        self.target.tell(&*self.engine.config.clock, LogStream::Stdout, text);
    }

    fn tell_dropped(&mut self) {
        if self.dropped > 0 {
            let text = format!("{} lines dropped: it writes too fast", self.dropped);
            self.target.tell(&*self.engine.config.clock, LogStream::Platform, text.as_bytes());
            self.dropped = 0;
        }
    }

    fn end(&mut self) {
        self.tell_dropped();
    }
}

/// The time before a line, and the line.
fn timed(line: &[u8]) -> (Option<jiff::Timestamp>, &[u8]) {
    let Some(at) = line.iter().take(TIME).position(|byte| *byte == b' ') else { return (None, line) };
    let time = std::str::from_utf8(&line[..at]).ok().and_then(|time| time.parse().ok());
    match time {
        Some(time) => (Some(time), &line[at + 1..]),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_time_is_taken_off_a_line_and_what_has_none_stays_whole() {
        let (at, text) = timed(b"2026-01-01T00:00:00.123456789Z hello  world");
        assert_eq!((at.unwrap().as_second(), text), (1_767_225_600, &b"hello  world"[..]));
        assert_eq!(timed(b"2026-01-01T00:00:00Z ").1, b"");
        assert_eq!(timed(b"failed to watch file").1, b"failed to watch file");
    }
}
