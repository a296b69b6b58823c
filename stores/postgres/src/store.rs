//! Reads, watches, and the way to the writer.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use sas_core::{Change, Commit, Entry, Error, Result, Settling, Store, StoreLimits, Version, Watched};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_postgres::types::ToSql;

use crate::{
    answer::{answer, unavailable},
    options::PostgresOptions,
    session::Sessions,
    statements::{channel, end_of, number},
    tables,
    writer::{Asked, Writer},
};

/// Commits that may wait for the writer; more wait for room.
const QUEUE: usize = 1024;
/// Changes, and bytes of their values, that one watch gives at once: as many as two commits may have, so that a whole one
/// is always among them.
const WATCHED: i64 = 2 * StoreLimits::LOCAL.commit_writes as i64;
const WATCHED_BYTES: i64 = 16 << 20;
/// How often those who watch look by themselves: for notices that were lost.
const LOOK: Duration = Duration::from_millis(500);
/// Between attempts to listen again; doubled up to the longest.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A [`Store`] in the tables of a schema of PostgreSQL, 12 or later, which hosts may share.
///
/// It may be cloned by `Arc`; its connections and tasks end when it is dropped.
///
/// Versions are in the order of commits, and a commit is on the server's disk when it returns (as far as the server's
/// `fsync` and, for replicas, `synchronous_standby_names` go). A commit whose connection breaks is looked for on the next
/// one: `Unavailable` says that it may be done or not only where the server does not come back within seconds.
pub struct PostgresStore {
    sessions: Sessions,
    settling: Settling,
    writer: mpsc::Sender<Asked>,
    /// The last version that was heard of.
    last: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

impl fmt::Debug for PostgresStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresStore")
            .field("schema", &self.sessions.dialer().schema())
            .finish_non_exhaustive()
    }
}

impl PostgresStore {
    /// Opens the store, and makes its tables where there are none.
    ///
    /// The role needs to be allowed to make the schema (`CREATE` on the database) when it is opened first, or to have
    /// been given one that is its own; later it needs `USAGE` on it and the four privileges on its tables.
    ///
    /// # Errors
    /// `Unavailable` when the server can't be reached, lets this user not in, or takes no writes; `InvalidSpec` when the
    /// tables are of a later version.
    pub async fn open(options: PostgresOptions) -> Result<Self> {
        let sessions = Sessions::new(options);
        tables::migrate(sessions.dialer()).await?;
        let begun = version(&sessions).await?;
        let (told, last) = watch::channel(begun.0);
        let (writer, asked) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        tasks.spawn(Writer::new(sessions.clone(), told.clone()).run(asked));
        tasks.spawn(listen(sessions.clone(), told));
        Ok(Self { sessions, settling: Settling::default(), writer, last, _tasks: tasks })
    }
}

async fn version(sessions: &Sessions) -> Result<Version> {
    const VERSION: &str = "version";
    let rows = sessions.query(VERSION, |it| &it.version, &[]).await?;
    let row = rows.first().ok_or_else(|| tables_are_empty(VERSION))?;
    number(VERSION, row.get(0)).map(Version)
}

fn tables_are_empty(operation: &'static str) -> Error {
    unavailable(operation, "the store's tables are empty: bring them back from a copy")
}

/// Tells of commits: what is heard at once, and what was missed when it is looked for, for as long as somebody watches.
async fn listen(sessions: Sessions, told: watch::Sender<u64>) {
    let mut pause = PAUSE;
    loop {
        match heard(&sessions, &told).await {
            Ok(()) => pause = PAUSE,
            Err(error) => {
                tracing::debug!(%error, "the store is not listened to");
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
        sleep(pause).await;
    }
}

async fn heard(sessions: &Sessions, told: &watch::Sender<u64>) -> Result<()> {
    let (lost, mut ended) = oneshot::channel::<()>();
    let heard = told.clone();
    let (client, _driver) = sessions
        .dialer()
        .connect(move |payload| {
            // Dropped with the connection.
            let _lost = &lost;
            if let Ok(version) = payload.parse() {
                tell(&heard, version);
            }
        })
        .await?;
    let listen = format!("LISTEN \"{}\"", channel(sessions.dialer().schema()));
    answer("watch", client.batch_execute(&listen)).await?;
    loop {
        // Also right after it listens: for what came while it did not.
        if told.receiver_count() > 1 {
            tell(told, version(sessions).await?.0);
        }
        if timeout(LOOK, &mut ended).await.is_ok() {
            return Ok(());
        }
    }
}

/// Also a version that is lower: the store was brought back from a copy, and those who watch are to be told.
fn tell(told: &watch::Sender<u64>, version: u64) {
    told.send_if_modified(|seen| std::mem::replace(seen, version) != version);
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[async_trait]
impl Store for PostgresStore {
    fn limits(&self) -> StoreLimits {
        StoreLimits::LOCAL
    }

    async fn version(&self) -> Result<Version> {
        self.settling.settled().await;
        version(&self.sessions).await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        const GET: &str = "get";
        self.limits().check_key(key)?;
        self.settling.settled().await;
        let rows = self.sessions.query(GET, |it| &it.get, &[&key.as_bytes()]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let version = Version(number(GET, row.get(0))?);
        Ok(Some(Entry { key: key.to_owned(), version, value: row.get::<_, Vec<u8>>(1).into() }))
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        const LIST: &str = "list";
        self.settling.settled().await;
        let mut start = prefix.as_bytes().to_vec();
        if let Some(after) = after.filter(|after| *after >= prefix) {
            start = after.as_bytes().to_vec();
            // The first key that is greater.
            start.push(0);
        }
        let (end, limit) = (end_of(prefix), i64::try_from(limit).unwrap_or(i64::MAX));
        let rows = self.sessions.query(LIST, |it| &it.list, &[&start, &end, &limit]).await?;
        rows.into_iter()
            .map(|row| {
                let version = Version(number(LIST, row.get(1))?);
                Ok(Entry { key: key(LIST, row.get(0))?, version, value: row.get::<_, Vec<u8>>(2).into() })
            })
            .collect()
    }

    async fn commit(&self, commit: Commit) -> Result<Version> {
        commit.check(&self.limits())?;
        let closed = || unavailable("commit", "the store was closed");
        let (done, written) = oneshot::channel();
        let (_caller, work) = self.settling.begin();
        self.writer.send(Asked { commit, done, work }).await.map_err(|_| closed())?;
        written.await.map_err(|_| closed())?
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        let mut last = self.last.clone();
        loop {
            last.borrow_and_update();
            if let Some(watched) = self.changes(prefix, since).await? {
                return Ok(watched);
            }
            last.changed().await.map_err(|_| unavailable("watch", "the store was closed"))?;
        }
    }
}

fn key(operation: &'static str, key: Vec<u8>) -> Result<String> {
    String::from_utf8(key).map_err(|_| unavailable(operation, "PostgreSQL holds a key that is no text"))
}

impl PostgresStore {
    /// What there is for a watch; `None`: nothing yet.
    async fn changes(&self, prefix: &str, since: Version) -> Result<Option<Watched>> {
        const WATCH: &str = "watch";
        self.settling.settled().await;
        let (start, end, after) = (prefix.as_bytes(), end_of(prefix), signed(since.0));
        let parameters: &[&(dyn ToSql + Sync)] = &[&after, &start, &end, &WATCHED, &WATCHED_BYTES];
        let rows = self.sessions.query(WATCH, |it| &it.watch, parameters).await?;
        let first = rows.first().ok_or_else(|| tables_are_empty(WATCH))?;
        let (complete_after, last): (i64, i64) = (first.get(0), first.get(1));
        if after < complete_after || since.0 > number(WATCH, last)? {
            return Ok(Some(Watched::ListAgain));
        }
        let cut = rows.len() as i64 >= WATCHED;
        let mut changes = Vec::with_capacity(rows.len());
        for row in rows {
            let Some(version) = row.get::<_, Option<i64>>(2) else { return Ok(None) };
            changes.push(Change {
                version: Version(number(WATCH, version)?),
                key: key(WATCH, row.get(3))?,
                value: row.get::<_, Option<Vec<u8>>>(4).map(Bytes::from),
            });
        }
        // The last commit may go on behind the limit.
        if let (true, Some(last)) = (cut, changes.last().map(|change| change.version)) {
            changes.retain(|change| change.version != last);
        }
        Ok(Some(Watched::Changes(changes)))
    }
}
