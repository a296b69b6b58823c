//! The one task that commits: commits that wait together share a transaction, and so one flush of the disk.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;

use deadpool::managed::Object;
use futures_util::future;
use sas_core::{Commit, Error, ErrorKind, Result, Version, Work, guard_failed};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};
use tokio_postgres::{Client, Statement, types::ToSql};

use crate::{
    answer::{ANSWER, failed, has_ended, unavailable},
    session::{Held, Session, Sessions},
    statements::{channel, number},
    tables::{FORMAT, too_new},
};

const COMMIT: &str = "commit";
/// Commits that share a transaction at most, and bytes of their values.
const BATCH: usize = 256;
const BATCH_BYTES: usize = 16 << 20;
/// Changes, and bytes of their values, that the history holds.
const HISTORY_CHANGES: i64 = 8192;
const HISTORY_BYTES: i64 = 256 << 20;
/// The history is cut after so many changes, or bytes, of this host.
const FORGET_CHANGES: usize = 1024;
const FORGET_BYTES: usize = 32 << 20;
/// How long the fate of a commit is asked for whose connection broke.
const READ_BACK: Duration = Duration::from_secs(10);

/// A commit that was asked for.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) commit: Commit,
    pub(crate) done: oneshot::Sender<Result<Version>>,
    pub(crate) work: Work,
}

/// What a batch does, once its guards are known to hold.
#[derive(Debug, Default)]
struct Plan {
    outcomes: Vec<Result<Version>>,
    /// The last state of each key that is written.
    entries: HashMap<String, Option<(i64, Bytes)>>,
    changes: Vec<(i64, i32, String, Option<Bytes>)>,
    last: i64,
}

/// Why a batch is not known to be done.
enum Stopped {
    /// It is not, and may be tried again on another connection.
    Ended(Error),
    /// It is not.
    Refused(Error),
    /// The connection broke while the answer to the commit was due.
    Unknown(Box<Plan>, Error),
}

/// Holds the connection that it commits on, and commits until nobody can ask any more.
pub(crate) struct Writer {
    sessions: Sessions,
    held: Option<Held>,
    told: watch::Sender<u64>,
    forget: (usize, usize),
}

impl Writer {
    pub(crate) fn new(sessions: Sessions, told: watch::Sender<u64>) -> Self {
        // What others left is cut with the first commit.
        Self { sessions, held: None, told, forget: (FORGET_CHANGES, 0) }
    }

    pub(crate) async fn run(mut self, mut asked: mpsc::Receiver<Asked>) {
        let mut next = None;
        loop {
            let Some(first) = (match next.take() {
                Some(first) => Some(first),
                None => asked.recv().await,
            }) else {
                return;
            };
            let mut bytes = size(&first.commit);
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(more) = asked.try_recv()
            {
                bytes += size(&more.commit);
                if bytes > BATCH_BYTES {
                    next = Some(more);
                    break;
                }
                batch.push(more);
            }
            batch.retain(|asked| !asked.work.is_abandoned());
            if !batch.is_empty() {
                self.commit(batch).await;
            }
        }
    }

    async fn commit(&mut self, batch: Vec<Asked>) {
        let commits: Vec<&Commit> = batch.iter().map(|asked| &asked.commit).collect();
        let outcome = self.settle(&commits).await;
        let outcomes = match outcome {
            Ok(outcomes) => outcomes,
            Err(error) => batch
                .iter()
                .map(|_| Err(Error::new(error.kind, error.operation, error.message.clone())))
                .collect(),
        };
        for (Asked { commit: _, done, work }, outcome) in batch.into_iter().zip(outcomes) {
            // Whoever reads after an answer that was not waited for finds it settled.
            drop(work);
            let _ = done.send(outcome);
        }
    }

    /// The outcome of each commit, or the error of all.
    async fn settle(&mut self, commits: &[&Commit]) -> Result<Vec<Result<Version>>> {
        let mut again = true;
        loop {
            let batch: [u8; 16] = random()?;
            match self.attempt(commits, batch).await {
                Ok(plan) => return Ok(self.done(plan).await),
                Err(Stopped::Refused(error)) => return Err(error),
                Err(Stopped::Ended(error)) => {
                    self.give_up();
                    if !again {
                        return Err(error);
                    }
                }
                Err(Stopped::Unknown(plan, error)) => {
                    self.give_up();
                    if self.was_committed(&plan, batch, &error).await? {
                        return Ok(self.done(*plan).await);
                    }
                    if !again {
                        return Err(error);
                    }
                }
            }
            again = false;
        }
    }

    fn give_up(&mut self) {
        if let Some(held) = self.held.take() {
            drop(Object::take(held));
        }
    }

    /// Tells those who watch here and on other hosts.
    async fn done(&mut self, plan: Plan) -> Vec<Result<Version>> {
        if !plan.changes.is_empty() {
            let last = plan.last.unsigned_abs();
            self.told.send_if_modified(|seen| std::mem::replace(seen, last) != last);
            if let Some(session) = &self.held {
                let (channel, payload) = (channel(self.sessions.dialer().schema()), last.to_string());
                // Where it is lost, those who watch find the change when they look by themselves.
                let _ = timeout(
                    ANSWER,
                    session.client.execute(&session.statements.notify, &[&channel, &payload]),
                )
                .await;
            }
        }
        plan.outcomes
    }

    async fn attempt(&mut self, commits: &[&Commit], batch: [u8; 16]) -> std::result::Result<Plan, Stopped> {
        if self.held.as_ref().is_none_or(|held| held.client.is_closed()) {
            self.give_up();
            self.held = Some(self.sessions.get(COMMIT).await.map_err(Stopped::Refused)?);
        }
        let Some(session) = self.held.as_deref() else { unreachable!("it was taken above") };
        let attempt = attempt(session, commits, batch, self.forget).await;
        match &attempt {
            Ok(plan) => {
                if self.forget.0 >= FORGET_CHANGES || self.forget.1 >= FORGET_BYTES {
                    self.forget = (0, 0);
                }
                self.forget.0 += plan.changes.len();
                self.forget.1 += plan
                    .changes
                    .iter()
                    .map(|(.., value)| value.as_ref().map_or(0, Bytes::len))
                    .sum::<usize>();
            }
            // What is half done on the connection ends with it.
            Err(Stopped::Refused(_)) => self.give_up(),
            Err(_) => {}
        }
        attempt
    }

    /// Whether a batch was committed whose connection broke, asked for until the server answers.
    async fn was_committed(&self, plan: &Plan, batch: [u8; 16], lost: &Error) -> Result<bool> {
        let Some(&(version, ..)) = plan.changes.first() else { return Ok(false) };
        let until = Instant::now() + READ_BACK;
        let mut pause = Duration::from_millis(20);
        loop {
            let error = match self.read_back(version, batch).await {
                Ok(Some(committed)) => return Ok(committed),
                Ok(None) => unavailable(COMMIT, "the history does not reach back that far any more"),
                Err(error) => error,
            };
            if Instant::now() >= until {
                let message = format!(
                    "the commit may be done or not: the connection broke ({}), and what became of it can't be found out: {}",
                    lost.message, error.message
                );
                return Err(unavailable(COMMIT, message));
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    /// `None`: the history does not tell.
    async fn read_back(&self, version: i64, batch: [u8; 16]) -> Result<Option<bool>> {
        let held = self.sessions.get(COMMIT).await?;
        let statements = &held.statements;
        let asked = async {
            held.client.batch_execute("BEGIN").await?;
            held.client.query_one(&statements.lock, &[]).await?;
            let row =
                held.client.query_one(&statements.was_committed, &[&version, &batch.as_slice()]).await?;
            held.client.batch_execute("COMMIT").await?;
            Ok(row)
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(row)) => {
                let (complete_after, committed): (i64, bool) = (row.get(0), row.get(1));
                Ok((committed || complete_after < version).then_some(committed))
            }
            Ok(Err(error)) => {
                drop(Object::take(held));
                Err(failed(COMMIT, error))
            }
            Err(_) => {
                drop(Object::take(held));
                Err(unavailable(COMMIT, format!("PostgreSQL: no answer within {ANSWER:?}")))
            }
        }
    }
}

fn size(commit: &Commit) -> usize {
    commit.writes.iter().map(|write| write.value.as_ref().map_or(0, Bytes::len)).sum()
}

fn random() -> Result<[u8; 16]> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| {
        Error::new(ErrorKind::Unexpected, COMMIT, format!("the system gives no random bytes: {error}"))
    })?;
    Ok(bytes)
}

/// Two round trips: who guards what, under the lock; then all writes and the commit.
async fn attempt(
    session: &Session,
    commits: &[&Commit],
    batch: [u8; 16],
    forget: (usize, usize),
) -> std::result::Result<Plan, Stopped> {
    let (client, statements) = (&session.client, &session.statements);
    let not_done = |error: tokio_postgres::Error| match has_ended(&error) {
        true => Stopped::Ended(failed(COMMIT, error)),
        false => Stopped::Refused(failed(COMMIT, error)),
    };
    let late = || unavailable(COMMIT, format!("PostgreSQL: no answer within {ANSWER:?}"));

    let mut asked: Vec<&[u8]> = Vec::new();
    for commit in commits {
        asked.extend(commit.guards.iter().map(|guard| guard.key.as_bytes()));
        asked.extend(
            commit.writes.iter().filter(|write| write.value.is_none()).map(|write| write.key.as_bytes()),
        );
    }
    asked.sort_unstable();
    asked.dedup();
    let begun = timeout(ANSWER, async {
        future::try_join3(
            client.batch_execute("BEGIN"),
            client.query_one(&statements.lock, &[]),
            client.query(&statements.found, &[&asked]),
        )
        .await
    });
    let ((), meta, found) = match begun.await {
        Ok(answers) => answers.map_err(not_done)?,
        Err(_) => return Err(Stopped::Refused(late())),
    };
    let (last, usable_from, format): (i64, i32, i32) = (meta.get(0), meta.get(1), meta.get(2));
    if usable_from > FORMAT {
        return Err(Stopped::Refused(too_new(format, usable_from)));
    }
    let mut known: HashMap<String, Version> = HashMap::new();
    for row in found {
        let (key, version): (Vec<u8>, i64) = (row.get(0), row.get(1));
        let version = number(COMMIT, version).map_err(Stopped::Refused)?;
        known.insert(String::from_utf8_lossy(&key).into_owned(), Version(version));
    }
    let plan = plan(commits, known, last).map_err(Stopped::Refused)?;

    let puts = || plan.entries.iter().filter_map(|(key, state)| Some((key, state.as_ref()?)));
    let put_keys: Vec<&[u8]> = puts().map(|(key, _)| key.as_bytes()).collect();
    let put_versions: Vec<i64> = puts().map(|(_, state)| state.0).collect();
    let put_values: Vec<&[u8]> = puts().map(|(_, state)| &*state.1).collect();
    let gone = plan.entries.iter().filter(|(_, state)| state.is_none());
    let deletes: Vec<&[u8]> = gone.map(|(key, _)| key.as_bytes()).collect();
    let versions: Vec<i64> = plan.changes.iter().map(|change| change.0).collect();
    let places: Vec<i32> = plan.changes.iter().map(|change| change.1).collect();
    let keys: Vec<&[u8]> = plan.changes.iter().map(|change| change.2.as_bytes()).collect();
    let values: Vec<Option<&[u8]>> = plan.changes.iter().map(|change| change.3.as_deref()).collect();
    let batch = batch.as_slice();
    let cut = forget.0 >= FORGET_CHANGES || forget.1 >= FORGET_BYTES;
    // What there is nothing to do for is left out.
    let any = !plan.changes.is_empty();
    // All are sent before the first is answered, and all answers are waited for, also when one is an error: in a
    // transaction that failed the commit is a rollback that says nothing.
    let ended = timeout(ANSWER, async {
        let ((upserted, deleted, told, advanced, forgotten), committed) = future::join(
            future::join5(
                run(
                    client,
                    !put_keys.is_empty(),
                    &statements.upsert,
                    &[&put_keys, &put_versions, &put_values],
                ),
                run(client, !deletes.is_empty(), &statements.delete, &[&deletes]),
                run(client, any, &statements.tell, &[&batch, &versions, &places, &keys, &values]),
                run(client, any, &statements.advance, &[&plan.last]),
                run(client, any && cut, &statements.forget, &[&HISTORY_CHANGES, &HISTORY_BYTES]),
            ),
            client.batch_execute("COMMIT"),
        )
        .await;
        [upserted, deleted, told, advanced, forgotten, committed]
    })
    .await;
    let Ok(answers) = ended else { return Err(Stopped::Unknown(Box::new(plan), late())) };
    match answers.into_iter().find_map(std::result::Result::err) {
        None => Ok(plan),
        // The server said so while the transaction was open: it is rolled back.
        Some(error) if error.as_db_error().is_some() && !has_ended(&error) => {
            Err(Stopped::Refused(failed(COMMIT, error)))
        }
        Some(error) => Err(Stopped::Unknown(Box::new(plan), failed(COMMIT, error))),
    }
}

/// A statement of a batch; one that there is nothing to do for is not sent.
async fn run(
    client: &Client,
    wanted: bool,
    statement: &Statement,
    parameters: &[&(dyn ToSql + Sync)],
) -> std::result::Result<(), tokio_postgres::Error> {
    if wanted {
        client.execute(statement, parameters).await?;
    }
    Ok(())
}

/// What the commits do, one after the other, where `known` is what was found of the keys that they guard or delete.
fn plan(commits: &[&Commit], mut known: HashMap<String, Version>, last: i64) -> Result<Plan> {
    let mut plan = Plan { last, ..Plan::default() };
    for commit in commits {
        let failed = commit.guards.iter().find(|guard| known.get(&guard.key).copied() != guard.expected);
        if let Some(guard) = failed {
            plan.outcomes.push(Err(guard_failed(guard, known.get(&guard.key).copied())));
            continue;
        }
        let version = plan.last + 1;
        let mut place = 0;
        for write in &commit.writes {
            match &write.value {
                Some(value) => {
                    known.insert(write.key.clone(), Version(number(COMMIT, version)?));
                    plan.entries.insert(write.key.clone(), Some((version, value.clone())));
                }
                None if known.remove(&write.key).is_none() => continue,
                None => {
                    plan.entries.insert(write.key.clone(), None);
                }
            }
            plan.changes.push((version, place, write.key.clone(), write.value.clone()));
            place += 1;
        }
        if place > 0 {
            plan.last = version;
        }
        plan.outcomes.push(Ok(Version(number(COMMIT, plan.last)?)));
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_of_one_batch_see_what_those_before_them_did() {
        let commits = [
            Commit::new().guard("a", Some(Version(3))).put("a", "1").delete("gone"),
            Commit::new().guard("a", Some(Version(3))).put("a", "late"),
            Commit::new().guard("a", Some(Version(8))).delete("a").put("b", "2"),
            Commit::new().guard("a", None),
            Commit::new().delete("a"),
            Commit::new().guard("b", Some(Version(9))).put("a", "3"),
        ];
        let known = HashMap::from([("a".to_owned(), Version(3))]);
        let plan = plan(&commits.iter().collect::<Vec<_>>(), known, 7).unwrap();
        let outcomes: Vec<Option<u64>> =
            plan.outcomes.iter().map(|outcome| outcome.as_ref().ok().map(|version| version.0)).collect();
        assert_eq!(outcomes, [Some(8), None, Some(9), Some(9), Some(9), Some(10)]);
        let changes: Vec<(i64, i32, &str, bool)> = plan
            .changes
            .iter()
            .map(|(v, place, key, value)| (*v, *place, key.as_str(), value.is_some()))
            .collect();
        assert_eq!(changes, [(8, 0, "a", true), (9, 0, "a", false), (9, 1, "b", true), (10, 0, "a", true)]);
        assert_eq!(plan.entries["a"], Some((10, "3".into())));
        assert_eq!(plan.last, 10);
    }
}
