use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::SeqCst},
};

use async_trait::async_trait;
use bytes::Bytes;
use sas_core::{EventLog, LogEntry, MemoryStore, Result, StoreLog};
use sas_testkit::event_log::{self, Subject};

use crate::caught;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    Nothing,
    AnEmptyStreamIsAtOne,
    LosesEmptyRecords,
    ReadsBackwards,
    GivesTheFirstPosition,
    CountsAppends,
    ReadsThePositionToGoOnAfter,
    IgnoresTheLimit,
    RefusesToBeginAtZero,
    IgnoresTheExpectation,
    WritesBeforeItChecks,
    ChecksBeforeItWrites,
    AppendsOneByOne,
    TrimsOneLess,
    TrimsTheLimitToo,
    TrimsWhatComes,
    CountsAnewAfterATrim,
    OneStreamForAllCases,
    TakesAnyName,
    RefusesLongNames,
    HalfWritesWhenDropped,
    ForgetsEverythingWhenOpenedAgain,
    ForgetsWhatWasTrimmedWhenOpenedAgain,
}

#[derive(Debug)]
struct Broken {
    inner: StoreLog,
    bug: Bug,
    /// The trim of the highest position.
    trimmed: AtomicU64,
    /// Counts positions anew from here on.
    base: AtomicU64,
}

impl Broken {
    fn new(bug: Bug) -> Self {
        let inner = StoreLog::new(Arc::new(MemoryStore::default()), "log");
        Self { inner, bug, trimmed: AtomicU64::new(0), base: AtomicU64::new(0) }
    }

    fn name(&self, stream: &str) -> String {
        match self.bug {
            Bug::OneStreamForAllCases => stream.to_ascii_lowercase(),
            Bug::TakesAnyName => {
                let name: String = stream.replace('/', "-").chars().take(100).collect();
                format!("{name}-")
            }
            Bug::RefusesLongNames if stream.len() > 150 => String::new(),
            _ => stream.to_owned(),
        }
    }
}

#[async_trait]
impl EventLog for Broken {
    async fn append(&self, stream: &str, expected: Option<u64>, mut records: Vec<Bytes>) -> Result<u64> {
        let stream = self.name(stream);
        let base = self.base.load(SeqCst);
        let expected = expected.map(|expected| expected.saturating_add(base));
        let count = records.len() as u64;
        match self.bug {
            Bug::LosesEmptyRecords => records.retain(|record| !record.is_empty()),
            Bug::RefusesToBeginAtZero if expected == Some(0) => {
                return self.inner.append(&stream, Some(u64::MAX), records).await;
            }
            Bug::IgnoresTheExpectation => return self.inner.append(&stream, None, records).await,
            Bug::WritesBeforeItChecks if expected.is_some_and(|expected| expected > 0) => {
                let last = self.inner.last(&stream).await?;
                if expected != Some(last) {
                    self.inner.append(&stream, None, records.split_off(records.len() - 1)).await?;
                }
            }
            Bug::ChecksBeforeItWrites if expected == Some(self.inner.last(&stream).await?) => {
                tokio::task::yield_now().await;
                return self.inner.append(&stream, None, records).await;
            }
            // With an expectation, as it should be: only what has none comes in parts.
            Bug::AppendsOneByOne | Bug::HalfWritesWhenDropped if expected.is_none() => {
                let mut end = 0;
                for record in records {
                    end = self.inner.append(&stream, None, vec![record]).await?;
                    tokio::task::yield_now().await;
                }
                return Ok(end);
            }
            _ => {}
        }
        let end = self.inner.append(&stream, expected, records).await?;
        Ok(match self.bug {
            Bug::GivesTheFirstPosition => end - count + 1,
            Bug::CountsAppends => end.min(2),
            _ => end - base,
        })
    }

    async fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>> {
        let stream = self.name(stream);
        let base = self.base.load(SeqCst);
        let (after, limit) = match self.bug {
            Bug::ReadsThePositionToGoOnAfter => (after.saturating_sub(1), limit),
            Bug::IgnoresTheLimit => (after, 10_000),
            _ => (after.saturating_add(base), limit),
        };
        let mut found = self.inner.read(&stream, after, limit).await?;
        match self.bug {
            Bug::ReadsBackwards => found.reverse(),
            Bug::TrimsWhatComes => found.retain(|entry| entry.position > self.trimmed.load(SeqCst)),
            Bug::CountsAnewAfterATrim => found.iter_mut().for_each(|entry| entry.position -= base),
            _ => {}
        }
        Ok(found)
    }

    async fn last(&self, stream: &str) -> Result<u64> {
        let last = self.inner.last(&self.name(stream)).await?;
        Ok(if self.bug == Bug::AnEmptyStreamIsAtOne { last.max(1) } else { last - self.base.load(SeqCst) })
    }

    async fn trim(&self, stream: &str, position: u64) -> Result<()> {
        let stream = self.name(stream);
        self.trimmed.fetch_max(position, SeqCst);
        let position = match self.bug {
            Bug::TrimsOneLess => position.saturating_sub(1),
            Bug::TrimsTheLimitToo => position.saturating_add(1),
            _ => position,
        };
        self.inner.trim(&stream, position).await?;
        if self.bug == Bug::CountsAnewAfterATrim && self.inner.read(&stream, 0, 1).await?.is_empty() {
            self.base.store(self.inner.last(&stream).await?, SeqCst);
        }
        Ok(())
    }
}

fn subject(bug: Bug) -> Subject {
    let broken = Arc::new(Broken::new(bug));
    let kept = Arc::clone(&broken);
    Subject::new(broken).reopen(move || {
        let kept = Arc::clone(&kept);
        async move {
            let empty = kept.inner.read("s", 0, 1).await.is_ok_and(|found| found.is_empty());
            let forgets = match bug {
                Bug::ForgetsEverythingWhenOpenedAgain => true,
                Bug::ForgetsWhatWasTrimmedWhenOpenedAgain => empty,
                _ => false,
            };
            (if forgets { Arc::new(Broken::new(bug)) } else { kept }) as Arc<dyn EventLog>
        }
    })
}

const MUTANTS: [(Bug, &str); 22] = [
    (Bug::AnEmptyStreamIsAtOne, "never written is empty"),
    (Bug::LosesEmptyRecords, "any bytes and none"),
    (Bug::ReadsBackwards, "read back in their order"),
    (Bug::GivesTheFirstPosition, "an append gives its last"),
    (Bug::CountsAppends, "positions grow by one"),
    (Bug::ReadsThePositionToGoOnAfter, "a read goes on after a position"),
    (Bug::IgnoresTheLimit, "ends at its limit"),
    (Bug::RefusesToBeginAtZero, "0 on an empty stream"),
    (Bug::IgnoresTheExpectation, "expects another position"),
    (Bug::WritesBeforeItChecks, "expects another position"),
    (Bug::ChecksBeforeItWrites, "expect the same position"),
    (Bug::AppendsOneByOne, "stand together"),
    (Bug::TrimsOneLess, "a trim forgets"),
    (Bug::TrimsTheLimitToo, "no more"),
    (Bug::TrimsWhatComes, "given twice, also after a trim"),
    (Bug::CountsAnewAfterATrim, "given twice, also after a trim"),
    (Bug::OneStreamForAllCases, "nothing to do with each other"),
    (Bug::TakesAnyName, "out of bounds are refused"),
    (Bug::RefusesLongNames, "those at the bounds are kept"),
    (Bug::HalfWritesWhenDropped, "a dropped append"),
    (Bug::ForgetsEverythingWhenOpenedAgain, "what was appended is there"),
    (Bug::ForgetsWhatWasTrimmedWhenOpenedAgain, "positions go on after"),
];

#[tokio::test(start_paused = true)]
async fn every_broken_log_is_refused_by_the_check_that_is_there_for_it() {
    for (bug, by) in MUTANTS {
        let report = event_log::suite(async || ((), subject(bug))).await;
        caught(bug, &report, by);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrapper_without_a_bug_passes() {
    event_log::suite(async || ((), subject(Bug::Nothing))).await.assert_passed_skipping(&[]);
}
