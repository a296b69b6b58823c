//! The suite for [`sas_core::EventLog`].

use std::{future::Future, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::join_all;
use sas_core::{ErrorKind, EventLog, LogEntry};

use crate::{
    Report,
    check::{self, Stop, Verdict, checks, drop_after_polls, ensure, ok, refused, within},
    medium::Medium,
};

/// A log without any stream, and how to open it again if it outlives its process.
#[derive(Debug)]
pub struct Subject(Medium<dyn EventLog>);

impl Subject {
    /// A log that is empty.
    pub fn new(log: Arc<dyn EventLog>) -> Self {
        Self(Medium::new(log))
    }

    /// Opens the same medium again. The suite has dropped its handle by then.
    #[must_use]
    pub fn reopen<F>(mut self, reopen: impl Fn() -> F + 'static) -> Self
    where
        F: Future<Output = Arc<dyn EventLog>> + 'static,
    {
        self.0.reopen(reopen);
        self
    }

    fn log(&self) -> Arc<dyn EventLog> {
        self.0.part()
    }

    async fn opened_again(&self) -> Verdict<Arc<dyn EventLog>> {
        within(Duration::from_secs(30), "opening again", self.0.opened_again("the log")).await?
    }
}

impl From<Arc<dyn EventLog>> for Subject {
    fn from(log: Arc<dyn EventLog>) -> Self {
        Self::new(log)
    }
}

/// Runs every check on an empty log of its own, made by `builder`.
pub async fn suite<G, T: Into<Subject>>(builder: impl AsyncFn() -> (G, T)) -> Report {
    check::run(
        "EventLog",
        check::LIMIT,
        builder,
        Into::into,
        checks![
            "a stream that was never written is empty" => never_written,
            "records are read back in their order, any bytes and none" => read_back,
            "positions grow by one, from 1 on, and an append gives its last" => positions,
            "a read goes on after a position and ends at its limit" => paged,
            "an append that expects the last position is done, 0 on an empty stream" => expected,
            "an append that expects another position conflicts and writes nothing" => stale,
            "of writers that expect the same position one wins, and the others wrote nothing" => race,
            "appends at once lose no record, and the records of each stand together" => at_once,
            "a trim forgets what is up to its position, no more, also when it is done again" => trimmed,
            "no position is given twice, also after a trim" => never_twice,
            "streams have nothing to do with each other" => apart,
            "names of streams out of bounds are refused, those at the bounds are kept" => names,
            "a dropped append is done or not done at all" => dropped,
            "what was appended is there after it was opened again" => durable,
            "positions go on after it was opened again, also when all was trimmed" => durable_positions,
        ],
    )
    .await
}

fn bytes(records: &[&str]) -> Vec<Bytes> {
    records.iter().map(|record| Bytes::copy_from_slice(record.as_bytes())).collect()
}

async fn append(log: &dyn EventLog, stream: &str, expected: Option<u64>, records: &[&str]) -> Verdict<u64> {
    ok("append", log.append(stream, expected, bytes(records)).await)
}

async fn last(log: &dyn EventLog, stream: &str) -> Verdict<u64> {
    ok("last", log.last(stream).await)
}

/// Fails unless `stream` holds just these after position `after`.
async fn holds(log: &dyn EventLog, stream: &str, after: u64, expected: &[(u64, &str)]) -> Verdict {
    let found = ok("read", log.read(stream, after, 1000).await)?;
    let same = found.len() == expected.len()
        && found
            .iter()
            .zip(expected)
            .all(|(entry, (at, value))| entry.position == *at && entry.value == *value);
    ensure!(same, "after {after} the stream {stream:?} has {found:?}, not {expected:?}");
    Ok(())
}

async fn never_written(subject: &Subject) -> Verdict {
    let log = subject.log();
    for _ in 0..2 {
        ensure!(
            last(&*log, "s").await? == 0,
            "the last position of a stream that was never written is not 0"
        );
        holds(&*log, "s", 0, &[]).await?;
        holds(&*log, "s", 7, &[]).await?;
        // Another one that was written does not change that.
        append(&*log, "other", None, &["x"]).await?;
    }
    Ok(())
}

async fn read_back(subject: &Subject) -> Verdict {
    let log = subject.log();
    let records = vec![
        Bytes::new(),
        (0..=255).collect(),
        "grüße".into(),
        vec![b'x'; 64 << 10].into(),
        "same".into(),
        "same".into(),
    ];
    ok("append", log.append("s", None, records.clone()).await)?;
    let found: Vec<Bytes> =
        ok("read", log.read("s", 0, 100).await)?.into_iter().map(|entry| entry.value).collect();
    ensure!(found == records, "six records came back as {} others", found.len());
    Ok(())
}

async fn positions(subject: &Subject) -> Verdict {
    let log = subject.log();
    let mut end = 0;
    for count in [1, 3, 1, 12, 2] {
        let records = vec![Bytes::from_static(b"x"); count];
        end += count as u64;
        let given = ok("append", log.append("s", None, records).await)?;
        ensure!(given == end, "the append of {count} records gave {given}, not {end}");
        ensure!(last(&*log, "s").await? == end, "after an append that gave {end}, the last is another");
    }
    let found = ok("read", log.read("s", 0, 100).await)?;
    let found: Vec<u64> = found.into_iter().map(|entry| entry.position).collect();
    ensure!(found == (1..=end).collect::<Vec<_>>(), "the positions are {found:?}");
    Ok(())
}

async fn paged(subject: &Subject) -> Verdict {
    let log = subject.log();
    let records: Vec<Bytes> = (1..=23).map(|at| Bytes::from(format!("r{at}"))).collect();
    ok("append", log.append("s", None, records).await)?;
    let mut seen: Vec<LogEntry> = Vec::new();
    loop {
        let after = seen.last().map_or(0, |entry| entry.position);
        let page = ok("read", log.read("s", after, 5).await)?;
        ensure!(page.len() <= 5, "a page of five has {}", page.len());
        if page.is_empty() {
            break;
        }
        seen.extend(page);
        ensure!(seen.len() <= 23, "paging goes in circles: {seen:?}");
    }
    let whole =
        seen.iter().zip(1..).all(|(entry, at)| entry.position == at && entry.value == format!("r{at}"));
    ensure!(seen.len() == 23 && whole, "page by page: {seen:?}");
    ensure!(ok("read", log.read("s", 0, 0).await)?.is_empty(), "a limit of 0 gives something");
    for after in [23, 24, u64::MAX] {
        let found = ok("read", log.read("s", after, 5).await)?;
        ensure!(found.is_empty(), "after {after}, of 23, come {found:?}");
    }
    Ok(())
}

async fn expected(subject: &Subject) -> Verdict {
    let log = subject.log();
    ensure!(append(&*log, "s", Some(0), &["a", "b"]).await? == 2, "two records do not end at 2");
    ensure!(append(&*log, "s", Some(2), &["c"]).await? == 3, "the third record is not at 3");
    holds(&*log, "s", 0, &[(1, "a"), (2, "b"), (3, "c")]).await
}

async fn stale(subject: &Subject) -> Verdict {
    let log = subject.log();
    refused(
        "expecting 1 of an empty stream",
        ErrorKind::Conflict,
        log.append("s", Some(1), bytes(&["x"])).await,
    )?;
    ensure!(last(&*log, "s").await? == 0, "the conflict wrote something");
    append(&*log, "s", None, &["a", "b"]).await?;
    for position in [0, 1, 3, u64::MAX] {
        let stale = log.append("s", Some(position), bytes(&["x", "y"])).await;
        refused(&format!("expecting {position} at 2"), ErrorKind::Conflict, stale)?;
        ensure!(last(&*log, "s").await? == 2, "the conflict at {position} moved the last position");
        holds(&*log, "s", 0, &[(1, "a"), (2, "b")]).await?;
    }
    Ok(())
}

/// The records of each append, by how many writers wrote at once.
async fn blocks(log: &dyn EventLog, size: usize) -> Verdict<Vec<String>> {
    let found = ok("read", log.read("s", 0, 1000).await)?;
    let gapless = found.iter().zip(1..).all(|(entry, at)| entry.position == at);
    ensure!(gapless, "the positions have gaps: {found:?}");
    ensure!(found.len().is_multiple_of(size), "{} records are no whole appends of {size}", found.len());
    let mut names = Vec::new();
    for block in found.chunks(size) {
        let name = String::from_utf8_lossy(&block[0].value).into_owned();
        let name = name.trim_end_matches(|last| last != '/').to_owned();
        for (at, entry) in block.iter().enumerate() {
            ensure!(entry.value == format!("{name}{at}"), "the records of an append stand apart: {block:?}");
        }
        names.push(name);
    }
    Ok(names)
}

fn block(name: &str, size: usize) -> Vec<Bytes> {
    (0..size).map(|at| Bytes::from(format!("{name}/{at}"))).collect()
}

async fn race(subject: &Subject) -> Verdict {
    let log = subject.log();
    for round in 0..5_u64 {
        let writers = (0..4).map(|writer| {
            let log = Arc::clone(&log);
            tokio::spawn(async move {
                log.append("s", Some(round * 2), block(&format!("{round}-{writer}"), 2)).await
            })
        });
        let mut won = Vec::new();
        for (writer, joined) in join_all(writers).await.into_iter().enumerate() {
            match joined.map_err(|error| Stop::fail(format!("a writer: {error}")))? {
                Ok(end) => won.push((writer, end)),
                lost => refused("the append of a writer that was too late", ErrorKind::Conflict, lost)?,
            }
        }
        let end = round * 2 + 2;
        ensure!(won.len() == 1 && won[0].1 == end, "of four writers, these won, ending at {end}: {won:?}");
        let names = blocks(&*log, 2).await?;
        let winner = format!("{round}-{}/", won[0].0);
        ensure!(
            names.len() as u64 == round + 1 && names.last() == Some(&winner),
            "after {winner} won, the stream has {names:?}"
        );
    }
    Ok(())
}

async fn at_once(subject: &Subject) -> Verdict {
    let log = subject.log();
    let writers = (0..4).map(|writer| {
        let log = Arc::clone(&log);
        tokio::spawn(async move {
            for round in 0..8 {
                log.append("s", None, block(&format!("{writer}-{round}"), 3)).await?;
            }
            sas_core::Result::Ok(())
        })
    });
    for joined in join_all(writers).await {
        ok("an append", joined.map_err(|error| Stop::fail(format!("a writer: {error}")))?)?;
    }
    let mut names = blocks(&*log, 3).await?;
    for writer in 0..4 {
        let own = format!("{writer}-");
        let mine = names.iter().filter(|name| name.starts_with(&own));
        ensure!(mine.is_sorted(), "the appends of one writer, one after the other, stand as {names:?}");
    }
    names.sort();
    names.dedup();
    ensure!(names.len() == 32, "of 32 appends {} are there", names.len());
    Ok(())
}

async fn trimmed(subject: &Subject) -> Verdict {
    let log = subject.log();
    append(&*log, "s", None, &["a", "b", "c", "d"]).await?;
    ok("trim", log.trim("s", 0).await)?;
    holds(&*log, "s", 0, &[(1, "a"), (2, "b"), (3, "c"), (4, "d")]).await?;
    for position in [2, 2, 1] {
        ok("trim", log.trim("s", position).await)?;
        holds(&*log, "s", 0, &[(3, "c"), (4, "d")]).await?;
    }
    ensure!(
        ok("read", log.read("s", 0, 1).await)?.len() == 1,
        "records that were trimmed count towards the limit of a read"
    );
    // More than a store takes in one commit.
    let many = vec![Bytes::from_static(b"x"); 60];
    for _ in 0..3 {
        ok("append", log.append("many", None, many.clone()).await)?;
    }
    ok("trim", log.trim("many", 179).await)?;
    holds(&*log, "many", 0, &[(180, "x")]).await
}

async fn never_twice(subject: &Subject) -> Verdict {
    let log = subject.log();
    append(&*log, "s", None, &["a", "b", "c"]).await?;
    ok("trim", log.trim("s", 3).await)?;
    ensure!(last(&*log, "s").await? == 3, "a trim moved the last position");
    refused(
        "expecting an empty stream after a trim",
        ErrorKind::Conflict,
        log.append("s", Some(0), bytes(&["x"])).await,
    )?;
    ensure!(append(&*log, "s", Some(3), &["d"]).await? == 4, "the record after a trim of three is not at 4");
    holds(&*log, "s", 0, &[(4, "d")]).await?;
    // What comes later was not there to be forgotten.
    ok("trim", log.trim("s", u64::MAX).await)?;
    holds(&*log, "s", 0, &[]).await?;
    ensure!(append(&*log, "s", None, &["e"]).await? == 5, "the record after a trim of all is not at 5");
    holds(&*log, "s", 0, &[(5, "e")]).await
}

async fn apart(subject: &Subject) -> Verdict {
    let log = subject.log();
    let names = ["a", "ab", "a.1", "a b", "A", "ä"];
    for round in 1..=2 {
        for name in names {
            ensure!(
                append(&*log, name, Some(round - 1), &[name]).await? == round,
                "{name:?} is not at {round}"
            );
        }
    }
    ok("trim", log.trim("a", 2).await)?;
    holds(&*log, "a", 0, &[]).await?;
    for name in &names[1..] {
        holds(&*log, name, 0, &[(1, name), (2, name)]).await?;
    }
    Ok(())
}

async fn names(subject: &Subject) -> Verdict {
    let log = subject.log();
    for name in ["", "a/b", "/", &"x".repeat(201), &format!("{}x", "ä".repeat(100))] {
        let what = format!("a name of {} bytes, {name:?}", name.len());
        refused(&what, ErrorKind::InvalidSpec, log.append(name, None, bytes(&["x"])).await)?;
        refused(&what, ErrorKind::InvalidSpec, log.read(name, 0, 1).await)?;
        refused(&what, ErrorKind::InvalidSpec, log.last(name).await)?;
        refused(&what, ErrorKind::InvalidSpec, log.trim(name, 1).await)?;
    }
    for name in ["x", ".", "..", " ", "\u{1F600}", &"x".repeat(200), &"ä".repeat(100)] {
        append(&*log, name, Some(0), &[name]).await?;
        holds(&*log, name, 0, &[(1, name)]).await?;
    }
    Ok(())
}

async fn dropped(subject: &Subject) -> Verdict {
    let log = subject.log();
    let mut before: Vec<String> = Vec::new();
    for round in 1..20_u32 {
        let name = format!("{round}");
        let ended = drop_after_polls(round % 5, log.append("s", None, block(&name, 3))).await;
        let acknowledged = ended.is_some();
        if let Some(ended) = ended {
            ok("append", ended)?;
        }
        // An append that goes on without its future is done soon, or not at all.
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = blocks(&*log, 3).await?;
        let end = last(&*log, "s").await?;
        ensure!(
            end == now.len() as u64 * 3,
            "the last position is {end}, and {} records are there",
            now.len() * 3
        );
        let done = now.len() == before.len() + 1 && now.last() == Some(&format!("{name}/"));
        ensure!(
            now.starts_with(&before) && (done || (!acknowledged && now == before)),
            "a dropped append of {name:?} made {now:?} of {before:?}"
        );
        before = now;
    }
    Ok(())
}

async fn durable(subject: &Subject) -> Verdict {
    {
        let log = subject.log();
        append(&*log, "s", None, &["a", "b", "c"]).await?;
        append(&*log, "s", Some(3), &["d"]).await?;
        append(&*log, "other", None, &["x"]).await?;
        ok("trim", log.trim("s", 1).await)?;
    }
    let log = subject.opened_again().await?;
    holds(&*log, "s", 0, &[(2, "b"), (3, "c"), (4, "d")]).await?;
    holds(&*log, "other", 0, &[(1, "x")]).await
}

async fn durable_positions(subject: &Subject) -> Verdict {
    {
        let log = subject.log();
        append(&*log, "s", None, &["a", "b", "c"]).await?;
        ok("trim", log.trim("s", 3).await)?;
    }
    let log = subject.opened_again().await?;
    ensure!(last(&*log, "s").await? == 3, "opened again, the last position of a trimmed stream is another");
    ensure!(append(&*log, "s", Some(3), &["d"]).await? == 4, "opened again, the next record is not at 4");
    holds(&*log, "s", 0, &[(4, "d")]).await
}
