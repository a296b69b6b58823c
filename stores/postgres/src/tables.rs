//! The tables, and how they come to be.

use sas_core::{Error, ErrorKind, Result};
use tokio_postgres::Client;

use crate::{answer::answer, session::Dialer};

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

/// Makes the tables, or takes over those of an earlier version.
pub(crate) async fn migrate(dialer: &Dialer) -> Result<()> {
    const OPEN: &str = "open";
    let (mut client, _driver) = dialer.connect(|_| {}).await?;
    let schema = dialer.schema();
    let row = answer(OPEN, client.query_one("SELECT current_setting('fsync') = 'off'", &[])).await?;
    if row.get(0) {
        tracing::warn!(
            "PostgreSQL runs with fsync = off: what is acknowledged is lost with the machine's power"
        );
    }
    let found = format!("SELECT to_regclass('\"{schema}\".meta') IS NOT NULL");
    let row = answer(OPEN, client.query_one(&found, &[])).await?;
    if row.get(0) && format_of(&client, schema).await? == FORMAT {
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
