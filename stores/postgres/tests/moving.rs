//! State moves from a file to PostgreSQL and back, and is the same.

#![cfg(unix)]

use std::sync::Arc;

use sas_core::{Commit, ErrorKind, EventLog, MemoryStore, Secret, Store, StoreLog, copy_store};
use sas_store_postgres::{PostgresOptions, PostgresStore};
use sas_testkit::server::PostgresServer;

async fn all(store: &dyn Store) -> Vec<(String, Vec<u8>)> {
    let listed = store.list("", None, usize::MAX).await.expect("listed").into_iter();
    listed.map(|entry| (entry.key, entry.value.to_vec())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_memory_to_postgresql_and_back_every_record_is_the_same() {
    let Some(server) = PostgresServer::start().await else { return };
    let url = format!("postgres://postgres:admin-pass@127.0.0.1:{}/postgres", server.port());
    let options = PostgresOptions::new(Secret::new(url)).expect("a URL");
    let there = PostgresStore::open(options).await.expect("opened");
    let first = Arc::new(MemoryStore::default());
    for round in 0..5 {
        let commit = (0..700).fold(Commit::new(), |commit, at| {
            commit.put(format!("service/{round}/{at}"), vec![u8::try_from(at % 256).expect("a byte"); at])
        });
        first.commit(commit).await.expect("written");
    }
    first.put("any \0 key/ä", None, vec![0, 255].into()).await.expect("written");
    for at in 0..3 {
        first.put(&format!("big/{at}"), None, vec![at; 16 << 20].into()).await.expect("written");
    }
    let log = StoreLog::new(Arc::clone(&first) as Arc<dyn Store>, "log");
    log.append("orders", None, vec!["one".into(), "two".into()]).await.expect("appended");

    let copied = copy_store(&*first, &there).await.expect("copied");
    assert_eq!(copied.entries, 3507);
    let refused = copy_store(&*first, &there).await.expect_err("it is not empty");
    assert_eq!(refused.kind, ErrorKind::Conflict, "{refused}");
    let back = Arc::new(MemoryStore::default());
    assert_eq!(copy_store(&there, &*back).await.expect("copied back"), copied);
    assert!(all(&*first).await == all(&there).await && all(&*first).await == all(&*back).await);
    let log = StoreLog::new(back, "log");
    assert_eq!(log.append("orders", Some(2), vec!["three".into()]).await.expect("it goes on"), 3);
}
