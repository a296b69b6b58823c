//! The tables, and the statements on them.

use futures_util::future::try_join_all;
use sas_core::{Error, ErrorKind, Result};
use tokio_postgres::{Client, Error as ClientError, Statement};

use crate::answer::{answer, unavailable};

/// The format of the tables that this version writes.
pub(crate) const FORMAT: i32 = 1;

/// What leads from each format to the next: the first makes the tables where there are none.
///
/// A step says which code may go on while hosts of both versions run (`usable_from`): one that only adds columns or
/// tables leaves it as it is.
///
/// Keys are bytes, so that they are in the order of their bytes whatever the database's encoding and collation are.
const STEPS: [&str; FORMAT as usize] = ["
    CREATE TABLE \"$SCHEMA\".meta (
        one boolean PRIMARY KEY DEFAULT true CHECK (one),
        format integer NOT NULL,
        usable_from integer NOT NULL,
        last_version bigint NOT NULL,
        complete_after bigint NOT NULL
    ) WITH (fillfactor = 10);
    CREATE TABLE \"$SCHEMA\".entries (
        key bytea PRIMARY KEY,
        version bigint NOT NULL,
        value bytea NOT NULL
    );
    CREATE TABLE \"$SCHEMA\".changes (
        version bigint NOT NULL,
        place integer NOT NULL,
        batch bytea NOT NULL,
        key bytea NOT NULL,
        value bytea,
        PRIMARY KEY (version, place)
    );
    CREATE TABLE \"$SCHEMA\".objects (
        name text COLLATE \"C\" NOT NULL,
        part integer NOT NULL,
        bytes bytea NOT NULL,
        PRIMARY KEY (name, part)
    );
    INSERT INTO \"$SCHEMA\".meta VALUES (true, 1, 1, 0, 0)"];

/// Makes the tables, or takes over those of an earlier version.
pub(crate) async fn migrate(client: &mut Client, schema: &str) -> Result<()> {
    const OPEN: &str = "open";
    let found = format!("SELECT to_regclass('\"{schema}\".meta') IS NOT NULL");
    let row = answer(OPEN, client.query_one(&found, &[])).await?;
    if row.get(0) && format_of(client, schema).await? == FORMAT {
        return Ok(());
    }
    let transaction = answer(OPEN, client.transaction()).await?;
    // One host at a time makes them; a name of its own, so that it meets no lock of the application's.
    let lock = "SELECT pg_advisory_xact_lock(hashtextextended('sas store ' || $1, 0))";
    answer(OPEN, transaction.execute(lock, &[&schema])).await?;
    let mut format = 0;
    if answer(OPEN, transaction.query_one(&found, &[])).await?.get(0) {
        format = format_of(transaction.client(), schema).await?;
    } else if answer(OPEN, transaction.query_opt("SELECT FROM pg_namespace WHERE nspname = $1", &[&schema]))
        .await?
        .is_none()
    {
        answer(OPEN, transaction.batch_execute(&format!("CREATE SCHEMA \"{schema}\""))).await?;
    }
    for step in &STEPS[usize::try_from(format).unwrap_or(STEPS.len()).min(STEPS.len())..] {
        answer(OPEN, transaction.batch_execute(&step.replace("$SCHEMA", schema))).await?;
    }
    answer(OPEN, transaction.commit()).await
}

/// The format of the tables, unless this version can't use them.
async fn format_of(client: &Client, schema: &str) -> Result<i32> {
    let asked = format!("SELECT format, usable_from FROM \"{schema}\".meta");
    let row = answer("open", client.query_one(&asked, &[])).await?;
    let (format, usable_from): (i32, i32) = (row.get(0), row.get(1));
    if usable_from > FORMAT {
        return Err(too_new(format, usable_from));
    }
    Ok(format.min(FORMAT))
}

/// The error of tables that a later version has made its own.
pub(crate) fn too_new(format: i32, usable_from: i32) -> Error {
    let message = format!(
        "the store's tables are in format {format}, for versions that write {usable_from} or later; this one writes \
         {FORMAT}: use a later version, or another `schema` in the store's URL"
    );
    Error::new(ErrorKind::InvalidSpec, "open", message)
}

/// What is asked on a connection, understood by the server once.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) get: Statement,
    pub(crate) list: Statement,
    pub(crate) version: Statement,
    pub(crate) watch: Statement,
    pub(crate) lock: Statement,
    pub(crate) found: Statement,
    pub(crate) upsert: Statement,
    pub(crate) delete: Statement,
    pub(crate) tell: Statement,
    pub(crate) advance: Statement,
    pub(crate) was_committed: Statement,
    pub(crate) forget: Statement,
    pub(crate) notify: Statement,
}

pub(crate) async fn prepare(client: &Client, schema: &str) -> std::result::Result<Statements, ClientError> {
    let texts = [
        "SELECT version, value FROM $SCHEMA.entries WHERE key = $1",
        "SELECT key, version, value FROM $SCHEMA.entries WHERE key >= $1 AND key < $2 ORDER BY key LIMIT $3",
        "SELECT last_version FROM $SCHEMA.meta",
        // Of one moment: what was forgotten meanwhile is never taken for nothing. Whole commits until there are enough
        // bytes of values; the one that follows is left out when it is cut off by the limit.
        "SELECT m.complete_after, m.last_version, c.version, c.key, c.value
         FROM $SCHEMA.meta m LEFT JOIN LATERAL (
             SELECT version, place, key, value FROM (
                 SELECT version, place, key, value,
                     sum(coalesce(octet_length(value), 0)) OVER (ORDER BY version)
                     - sum(coalesce(octet_length(value), 0)) OVER (PARTITION BY version) AS before
                 FROM (
                     SELECT version, place, key, value FROM $SCHEMA.changes
                     WHERE version > $1 AND key >= $2 AND key < $3 ORDER BY version, place LIMIT $4
                 ) found
             ) summed WHERE before < $5
         ) c ON true ORDER BY c.version, c.place",
        // Whoever commits holds this row until the commit is over, so versions are in the order of commits.
        "SELECT last_version, usable_from, format FROM $SCHEMA.meta FOR UPDATE",
        "SELECT key, version FROM $SCHEMA.entries WHERE key = ANY($1)",
        "INSERT INTO $SCHEMA.entries (key, version, value)
         SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[])
         ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value",
        "DELETE FROM $SCHEMA.entries WHERE key = ANY($1)",
        "INSERT INTO $SCHEMA.changes (batch, version, place, key, value)
         SELECT $1, * FROM unnest($2::bigint[], $3::integer[], $4::bytea[], $5::bytea[])",
        "UPDATE $SCHEMA.meta SET last_version = $1",
        // It waits for a transaction that may still be under way.
        "SELECT m.complete_after, EXISTS (SELECT FROM $SCHEMA.changes WHERE version = $1 AND batch = $2)
         FROM $SCHEMA.meta m",
        "WITH cut AS (
             SELECT max(version) AS version FROM (
                 SELECT version, row_number() OVER latest AS place,
                     sum(coalesce(octet_length(value), 0)) OVER latest AS bytes
                 FROM $SCHEMA.changes WINDOW latest AS (ORDER BY version DESC, place DESC)
             ) c WHERE c.place > $1 OR c.bytes > $2
         ), gone AS (
             DELETE FROM $SCHEMA.changes c USING cut WHERE c.version <= cut.version
         )
         UPDATE $SCHEMA.meta SET complete_after = greatest(complete_after, cut.version) FROM cut
         WHERE cut.version IS NOT NULL",
        // Only a wake-up: whether it is on the disk is of no interest.
        "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)",
    ];
    let quoted = format!("\"{schema}\"");
    let texts: Vec<String> = texts.iter().map(|text| text.replace("$SCHEMA", &quoted)).collect();
    let prepared = try_join_all(texts.iter().map(|text| client.prepare(text))).await?;
    let Ok(
        [
            get,
            list,
            version,
            watch,
            lock,
            found,
            upsert,
            delete,
            tell,
            advance,
            was_committed,
            forget,
            notify,
        ],
    ) = <[Statement; 13]>::try_from(prepared)
    else {
        unreachable!("as many as there are texts")
    };
    Ok(Statements {
        get,
        list,
        version,
        watch,
        lock,
        found,
        upsert,
        delete,
        tell,
        advance,
        was_committed,
        forget,
        notify,
    })
}

/// The channel that commits are told on.
pub(crate) fn channel(schema: &str) -> String {
    format!("sas_{schema}")
}

/// Where a prefix ends: no text has the byte 255.
pub(crate) fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(u8::MAX),
    }
    end
}

/// A number that the server keeps.
pub(crate) fn number(operation: &'static str, number: i64) -> Result<u64> {
    u64::try_from(number)
        .map_err(|_| unavailable(operation, format!("PostgreSQL holds {number} as a version")))
}
