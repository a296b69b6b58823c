//! Packages in the same database: objects in parts, a row each.

use std::{fmt, io, path::Path, sync::Arc};

use async_trait::async_trait;
use sas_core::{Error, ErrorKind, ObjectStore, Result};
use tokio::{
    fs::File,
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
};
use tokio_postgres::Client;

use crate::{
    answer::{answer, unavailable},
    options::PostgresOptions,
    session::Dialer,
    tables,
};

/// Bytes of a part.
const PART: usize = 1 << 20;
/// Objects that are written or read at once, each on a connection of its own; more wait.
const AT_ONCE: usize = 2;
const OBJECT: &str = "object";

/// Objects in the table `objects` of a schema of PostgreSQL, in parts of 1 MiB. It may
/// be the schema of a [`PostgresStore`](crate::PostgresStore), or one of its own.
///
/// Memory is bounded by the parts, and connections by two. PostgreSQL is no place for gigabytes:
/// beyond some, a bucket is cheaper and leaves the database's backups small.
#[derive(Clone)]
pub struct PostgresObjects {
    dialer: Arc<Dialer>,
    room: Arc<Semaphore>,
}

impl fmt::Debug for PostgresObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let schema = self.dialer.schema();
        f.debug_struct("PostgresObjects").field("schema", &schema).finish_non_exhaustive()
    }
}

fn local(path: &Path, error: io::Error) -> Error {
    unavailable(OBJECT, format!("{}: {error}", path.display())).with_source(error)
}

impl PostgresObjects {
    /// Opens the place, and makes its tables where there are none, as [`PostgresStore::open`](crate::PostgresStore::open) does.
    ///
    /// # Errors
    /// As there.
    pub async fn open(options: PostgresOptions) -> Result<Self> {
        let dialer = Dialer::new(options);
        tables::migrate(&dialer).await?;
        Ok(Self { dialer: Arc::new(dialer), room: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    fn table(&self) -> String {
        format!("\"{}\".objects", self.dialer.schema())
    }

    /// A transaction on a connection of its own: dropped in the middle of it, the connection ends, and with it the transaction.
    async fn begin(&self) -> Result<Alone> {
        let closed = |_| Error::new(ErrorKind::Unexpected, OBJECT, "the semaphore is closed");
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(closed)?;
        let (client, driver) = self.dialer.connect(|_| {}).await?;
        answer(OBJECT, client.batch_execute("BEGIN")).await?;
        Ok(Alone { client, _driver: driver, _room: room })
    }
}

struct Alone {
    client: Client,
    _driver: JoinSet<()>,
    _room: OwnedSemaphorePermit,
}

impl Alone {
    async fn commit(self) -> Result<()> {
        answer(OBJECT, self.client.batch_execute("COMMIT")).await
    }
}

async fn put(client: &Client, table: &str, name: &str, path: &Path) -> Result<()> {
    let mut file = File::open(path).await.map_err(|error| local(path, error))?;
    // One of two that put it at once waits here for the other.
    answer(OBJECT, client.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 1))", &[&name])).await?;
    answer(OBJECT, client.execute(&format!("DELETE FROM {table} WHERE name = $1"), &[&name])).await?;
    let text = format!("INSERT INTO {table} (name, part, bytes) VALUES ($1, $2, $3)");
    let insert = answer(OBJECT, client.prepare(&text)).await?;
    let (mut part, mut buffer) = (0_i32, vec![0; PART]);
    loop {
        let mut filled = 0;
        while filled < PART {
            match file.read(&mut buffer[filled..]).await.map_err(|error| local(path, error))? {
                0 => break,
                read => filled += read,
            }
        }
        // An empty object has one part, too.
        if filled > 0 || part == 0 {
            answer(OBJECT, client.execute(&insert, &[&name, &part, &&buffer[..filled]])).await?;
        }
        if filled < PART {
            return Ok(());
        }
        part += 1;
    }
}

async fn get(client: &Client, table: &str, name: &str, path: &Path) -> Result<bool> {
    let text = format!("SELECT bytes FROM {table} WHERE name = $1 AND part = $2");
    let select = answer(OBJECT, client.prepare(&text)).await?;
    let mut file = None;
    for part in 0_i32.. {
        let Some(row) = answer(OBJECT, client.query_opt(&select, &[&name, &part])).await? else { break };
        let file = match &mut file {
            Some(file) => file,
            None => file.insert(File::create(path).await.map_err(|error| local(path, error))?),
        };
        file.write_all(row.get(0)).await.map_err(|error| local(path, error))?;
    }
    let Some(mut file) = file else { return Ok(false) };
    file.flush().await.map_err(|error| local(path, error))?;
    Ok(true)
}

#[async_trait]
impl ObjectStore for PostgresObjects {
    async fn put(&self, name: &str, file: &Path) -> Result<()> {
        let alone = self.begin().await?;
        put(&alone.client, &self.table(), name, file).await?;
        alone.commit().await
    }

    async fn get(&self, name: &str, file: &Path) -> Result<bool> {
        let alone = self.begin().await?;
        // Of one moment, also when it is replaced meanwhile.
        let moment = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ";
        answer(OBJECT, alone.client.batch_execute(moment)).await?;
        let found = get(&alone.client, &self.table(), name, file).await?;
        alone.commit().await?;
        Ok(found)
    }

    async fn delete(&self, name: &str) -> Result<()> {
        let (alone, text) = (self.begin().await?, format!("DELETE FROM {} WHERE name = $1", self.table()));
        answer(OBJECT, alone.client.execute(&text, &[&name])).await?;
        alone.commit().await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<String>> {
        let text = format!("SELECT name FROM {} WHERE part = 0 AND starts_with(name, $1)", self.table());
        let alone = self.begin().await?;
        let rows = answer(OBJECT, alone.client.query(&text, &[&prefix])).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
