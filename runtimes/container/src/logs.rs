//! Output of containers: lines, cut and counted.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas_core::{Clock, InstanceId, LogRecord, LogSink, LogStream, RevisionKey};
use tokio::{io::AsyncReadExt as _, net::unix::pipe, time::Instant};

/// To whom lines go.
#[derive(Clone, Debug)]
pub(crate) struct LogTarget {
    pub(crate) instance: InstanceId,
    pub(crate) revision: RevisionKey,
    pub(crate) sink: Arc<dyn LogSink>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) line_bytes: usize,
    pub(crate) bytes_per_second: u64,
}

/// The last lines of a program, for the error of a failed start.
#[derive(Debug, Default)]
pub(crate) struct LastWords(Mutex<VecDeque<String>>);

impl LastWords {
    const LINES: usize = 16;
    const LINE_BYTES: usize = 400;

    fn push(&self, line: &[u8]) {
        let text = String::from_utf8_lossy(&line[..line.len().min(Self::LINE_BYTES)]);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        let mut lines = self.0.lock();
        if lines.len() == Self::LINES {
            lines.pop_front();
        }
        lines.push_back(text.to_owned());
    }

    pub(crate) fn text(&self) -> Option<String> {
        let lines = self.0.lock();
        (!lines.is_empty()).then(|| lines.iter().map(String::as_str).collect::<Vec<_>>().join(" | "))
    }
}

/// Reads one stream to its end.
pub(crate) async fn pump(mut pipe: pipe::Receiver, stream: LogStream, to: &LogTarget, words: &LastWords) {
    let mut buffer = vec![0u8; 16 * 1024];
    let mut line: Vec<u8> = Vec::new();
    let mut skipping = false;
    let (mut second, mut passed, mut dropped) = (Instant::now(), 0u64, 0u64);
    let tell = |stream, text: &[u8]| {
        let at = to.clock.now();
        to.sink.line(&LogRecord::new(to.instance, to.revision, at, stream, text));
    };
    let tell_dropped = |dropped: &mut u64| {
        if *dropped > 0 {
            let text = format!("{dropped} lines of {stream:?} dropped: it writes too fast");
            tell(LogStream::Platform, text.as_bytes());
            *dropped = 0;
        }
    };
    loop {
        let read = match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(read) => read,
        };
        if second.elapsed() >= Duration::from_secs(1) {
            second = Instant::now();
            passed = 0;
            tell_dropped(&mut dropped);
        }
        let mut emit = |line: &[u8]| {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            words.push(line);
            if passed >= to.bytes_per_second {
                dropped += 1;
            } else {
                passed += line.len() as u64 + 1;
                tell(stream, line);
            }
        };
        for piece in buffer[..read].split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if !skipping {
                let room = to.line_bytes.saturating_sub(line.len());
                line.extend_from_slice(&text[..text.len().min(room)]);
                if text.len() > room {
                    emit(&line);
                    line.clear();
                    skipping = true;
                }
            }
            if ends {
                if !std::mem::take(&mut skipping) {
                    emit(&line);
                }
                line.clear();
            }
        }
        // A flood takes turns with everything else that runs here.
        tokio::task::yield_now().await;
    }
    if !line.is_empty() {
        words.push(&line);
        tell(stream, &line);
    }
    tell_dropped(&mut dropped);
}
