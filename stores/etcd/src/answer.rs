//! What an error of etcd means to who asked, and answers that do not come.

use std::time::Duration;

use sas_core::{Error, ErrorKind, Result};
use tokio::time::timeout;

/// After how long an answer is missed. etcd gives up by itself after seven seconds without a leader.
const ANSWER: Duration = Duration::from_secs(10);

pub(crate) fn unavailable(operation: &'static str, message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Unavailable, operation, message)
}

/// What etcd says, without what its client puts around it.
pub(crate) fn told(error: &etcd_client::Error) -> String {
    match error {
        etcd_client::Error::GRpcStatus(status) => status.message().to_owned(),
        other => other.to_string(),
    }
}

pub(crate) fn failed(operation: &'static str, error: etcd_client::Error) -> Error {
    let told = told(&error);
    let remedies = [
        (
            "database space exceeded",
            "; compact it, defragment it and disarm its alarm (etcdctl), or raise --quota-backend-bytes; \
             --auto-compaction-retention keeps it from filling up again",
        ),
        ("too large", "; raise --max-request-bytes to its default or more"),
        ("too many operations", "; raise --max-txn-ops to its default or more"),
        ("permission denied", "; the user needs to read and write all keys of the store's prefix"),
        ("user name is empty", "; it wants a user: write etcd://USER:PASSWORD@HOST:PORT/PREFIX into a file"),
    ];
    let remedy = remedies.iter().find(|(part, _)| told.contains(part)).map_or("", |(_, remedy)| remedy);
    unavailable(operation, format!("etcd: {told}{remedy}")).with_source(error)
}

/// What etcd answers, or an error when it does not.
pub(crate) async fn answer<T>(
    operation: &'static str,
    asked: impl Future<Output = std::result::Result<T, etcd_client::Error>>,
) -> Result<T> {
    match timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(|error| failed(operation, error)),
        Err(_) => Err(unavailable(operation, format!("etcd: no answer within {ANSWER:?}"))),
    }
}
