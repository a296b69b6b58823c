//! What an error of the server means to who asked, and answers that do not come.

use std::time::Duration;

use sas_core::{Error, ErrorKind, Result};
use tokio::time::timeout;
use tokio_postgres::error::SqlState;

/// After how long an answer is missed; longer than the server works on a statement.
pub(crate) const ANSWER: Duration = Duration::from_secs(15);

pub(crate) fn unavailable(operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, operation, message)
}

/// What an error of the client or the server means to who asked.
pub(crate) fn failed(operation: &'static str, error: tokio_postgres::Error) -> Error {
    let Some(told) = error.as_db_error() else {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        return unavailable(operation, format!("PostgreSQL: {error}{cause}")).with_source(error);
    };
    let remedy = match told.code() {
        &SqlState::READ_ONLY_SQL_TRANSACTION => {
            "; the server takes no writes: name the one that does, or all of them separated by commas"
        }
        &SqlState::DISK_FULL => "; its disk is full",
        &SqlState::TOO_MANY_CONNECTIONS => {
            "; lower `connections` in the store's URL, or raise max_connections"
        }
        &SqlState::LOCK_NOT_AVAILABLE => {
            "; another host holds the store for long: is it stopped, or far away?"
        }
        &SqlState::INSUFFICIENT_PRIVILEGE => {
            "; the role needs USAGE on the schema, and SELECT, INSERT, UPDATE and DELETE on its tables"
        }
        &SqlState::UNDEFINED_TABLE | &SqlState::INVALID_SCHEMA_NAME => {
            "; the store's tables are gone: bring them back from a copy, or start the platform anew"
        }
        _ => "",
    };
    let message = format!("PostgreSQL: {} ({}){remedy}", told.message(), told.code().code());
    unavailable(operation, message).with_source(error)
}

/// What the server answers, or an error when it does not.
pub(crate) async fn answer<T>(
    operation: &'static str,
    asked: impl Future<Output = std::result::Result<T, tokio_postgres::Error>>,
) -> Result<T> {
    match timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(|error| failed(operation, error)),
        Err(_) => Err(unavailable(operation, format!("PostgreSQL: no answer within {ANSWER:?}"))),
    }
}

/// Whether nothing more can be asked on the connection.
pub(crate) fn has_ended(error: &tokio_postgres::Error) -> bool {
    let Some(code) = error.code() else { return true };
    [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::CANNOT_CONNECT_NOW]
        .iter()
        .any(|ended| ended == code)
        || *code == SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
}
