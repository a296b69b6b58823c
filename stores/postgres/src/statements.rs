//! What is asked of the server.

use futures_util::future::try_join_all;
use sas_core::Result;
use tokio_postgres::{Client, Error as ClientError, Statement};

use crate::answer::unavailable;

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
