//! The suite for [`sas_core::LogSink`].

use std::{fmt, sync::Arc, time::Duration};

use sas_core::{InstanceId, LogRecord, LogSink, LogStream, RequestId, RevisionKey, Timestamp};
use tokio::time::Instant;

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, ensure},
};

type Read = Box<dyn Fn(InstanceId) -> Vec<Vec<u8>>>;
type Count = Box<dyn Fn() -> u64>;

/// A sink, and how to read what it kept.
pub struct Subject {
    sink: Arc<dyn LogSink>,
    read: Option<Read>,
    dropped: Option<Count>,
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject").field("sink", &self.sink).finish_non_exhaustive()
    }
}

impl Subject {
    /// A sink that is empty.
    pub fn new(sink: Arc<dyn LogSink>) -> Self {
        Self { sink, read: None, dropped: None }
    }

    /// The lines of an instance that it kept, oldest first.
    #[must_use]
    pub fn read(mut self, read: impl Fn(InstanceId) -> Vec<Vec<u8>> + 'static) -> Self {
        self.read = Some(Box::new(read));
        self
    }

    /// How many lines it dropped so far.
    #[must_use]
    pub fn dropped(mut self, dropped: impl Fn() -> u64 + 'static) -> Self {
        self.dropped = Some(Box::new(dropped));
        self
    }

    fn lines(&self, instance: InstanceId) -> Verdict<Vec<Vec<u8>>> {
        let read = self.read.as_ref().ok_or_else(|| Stop::skip("what it keeps can't be read (no `read`)"))?;
        Ok(read(instance))
    }

    fn write(&self, instance: InstanceId, line: &[u8]) {
        let at = Timestamp::from_secs(1_700_000_000);
        self.sink.line(&LogRecord::new(instance, RevisionKey::new(1, 0), at, LogStream::Stdout, line));
    }
}

/// Runs every check on a sink of its own, made by `builder`.
pub async fn suite<G>(builder: impl AsyncFn() -> (G, Subject)) -> Report {
    check::run(
        "LogSink",
        check::LIMIT,
        builder,
        |subject| subject,
        checks![
            "the lines of an instance come back in order" => in_order,
            "instances do not get each other's lines" => apart,
            "any bytes, an empty and a very long line are fine" => any_bytes,
            "every stream, time and request is fine" => all_arguments,
            "a flood returns at once, and what is dropped is counted" => flood,
            "threads that write at once lose nothing of each other" => threads,
        ],
    )
    .await
}

async fn in_order(subject: &Subject) -> Verdict {
    for line in 0..20 {
        subject.write(InstanceId(1), format!("line {line}").as_bytes());
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let lines = subject.lines(InstanceId(1))?;
    let expected: Vec<Vec<u8>> = (0..20).map(|line| format!("line {line}").into_bytes()).collect();
    ensure!(lines == expected, "20 lines came back as {} others", lines.len());
    Ok(())
}

async fn apart(subject: &Subject) -> Verdict {
    for line in 0..10 {
        for instance in 1..4 {
            subject.write(InstanceId(instance), format!("{instance}/{line}").as_bytes());
        }
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    for instance in 1..4 {
        let lines = subject.lines(InstanceId(instance))?;
        let own = format!("{instance}/").into_bytes();
        ensure!(
            lines.len() == 10 && lines.iter().all(|line| line.starts_with(&own)),
            "instance {instance} has {} lines, not its own ten",
            lines.len()
        );
    }
    Ok(())
}

async fn any_bytes(subject: &Subject) -> Verdict {
    let every: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    subject.write(InstanceId(1), &every);
    subject.write(InstanceId(1), b"");
    subject.write(InstanceId(1), &vec![b'x'; 1 << 20]);
    subject.write(InstanceId(1), "grüße 你好 \u{1F600}".as_bytes());
    subject.write(InstanceId(1), b"last");
    tokio::time::sleep(Duration::from_millis(20)).await;
    let lines = subject.lines(InstanceId(1))?;
    ensure!(lines.last().is_some_and(|line| line == b"last"), "the last line is {:?}", lines.last());
    Ok(())
}

async fn all_arguments(subject: &Subject) -> Verdict {
    for stream in [LogStream::Stdout, LogStream::Stderr, LogStream::Platform] {
        for at in [Timestamp(i64::MIN), Timestamp(0), Timestamp(i64::MAX)] {
            for request in [None, Some(RequestId(u128::MAX))] {
                subject.sink.line(
                    &LogRecord::new(InstanceId(u64::MAX), RevisionKey(u64::MAX), at, stream, b"x")
                        .with_request(request),
                );
            }
        }
    }
    Ok(())
}

async fn flood(subject: &Subject) -> Verdict {
    const LINES: u64 = 100_000;
    let before = Instant::now();
    for line in 0..LINES {
        subject.write(InstanceId(1), format!("flood {line}").as_bytes());
    }
    let took = before.elapsed();
    ensure!(took < Duration::from_secs(20), "{LINES} lines took {took:?}");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let kept = subject.lines(InstanceId(1))?.len() as u64;
    let Some(dropped) = &subject.dropped else {
        ensure!(kept <= LINES, "{kept} lines were kept of {LINES}");
        return Ok(());
    };
    let dropped = dropped();
    ensure!(kept + dropped == LINES, "of {LINES} lines {kept} were kept and {dropped} counted as dropped");
    Ok(())
}

async fn threads(subject: &Subject) -> Verdict {
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let sink = Arc::clone(&subject.sink);
            std::thread::spawn(move || {
                let at = Timestamp::from_secs(1_700_000_000);
                for line in 0..25 {
                    let text = format!("{thread}/{line:02}");
                    let revision = RevisionKey::new(1, 0);
                    sink.line(&LogRecord::new(
                        InstanceId(1),
                        revision,
                        at,
                        LogStream::Stderr,
                        text.as_bytes(),
                    ));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| Stop::fail("a line panicked"))?;
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let lines = subject.lines(InstanceId(1))?;
    ensure!(lines.len() == 100, "four threads of 25 lines each left {}", lines.len());
    for thread in 0..4 {
        let own = format!("{thread}/").into_bytes();
        let mine: Vec<&Vec<u8>> = lines.iter().filter(|line| line.starts_with(&own)).collect();
        ensure!(mine.len() == 25 && mine.is_sorted(), "the lines of one thread are out of order");
    }
    Ok(())
}
