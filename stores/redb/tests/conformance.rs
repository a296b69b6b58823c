//! The store in a file keeps the contract of `Store`, gives its file back in order, and takes over what earlier versions
//! wrote.

use std::{path::Path, sync::Arc};

use sas_core::{Commit, ErrorKind, EventLog, Store, StoreLog, Version, Watched};
use sas_store_redb::RedbStore;
use sas_testkit::{event_log, store};

/// Opens it when whoever held it before, and was dropped and not closed, has let go of the file.
async fn opened_again(path: &Path) -> Arc<RedbStore> {
    for _ in 0..500 {
        match RedbStore::open(path).await {
            Ok(store) => return Arc::new(store),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
        }
    }
    panic!("the file is still held after five seconds");
}

#[tokio::test]
async fn it_passes_the_store_suite() {
    let report = store::suite(async || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state.redb");
        let opened = RedbStore::open(&path).await.expect("opened");
        let subject = store::Subject::new(Arc::new(opened)).reopen(move || {
            let path = path.clone();
            async move { opened_again(&path).await as Arc<dyn Store> }
        });
        (dir, subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

#[tokio::test]
async fn the_log_on_it_passes_the_event_log_suite() {
    let report = event_log::suite(async || {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("state.redb");
        let log = StoreLog::new(Arc::new(RedbStore::open(&path).await.expect("opened")), "log");
        let subject = event_log::Subject::new(Arc::new(log)).reopen(move || {
            let path = path.clone();
            async move { Arc::new(StoreLog::new(opened_again(&path).await, "log")) as Arc<dyn EventLog> }
        });
        (dir, subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_store_that_was_closed_can_be_opened_at_once_whatever_is_under_way() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.redb");
    for round in 0..20 {
        let store = Arc::new(RedbStore::open(&path).await.expect("opened at once"));
        let from = store.version().await.expect("a version");
        let busy: Vec<_> = (0..8)
            .map(|at| {
                let store = Arc::clone(&store);
                tokio::spawn(async move {
                    for _ in 0..50 {
                        let value = vec![at; 1000];
                        let _ = store.commit(Commit::new().put(format!("k{at}"), value)).await;
                        let _ = store.list("k", None, 100).await;
                    }
                })
            })
            .collect();
        let watching = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.watch("nobody/writes/this", from).await }
        });
        tokio::task::yield_now().await;
        store.close().await;
        let closed = watching.await.expect("it ends").expect_err("there is nothing to tell");
        assert_eq!(closed.kind, ErrorKind::Unavailable, "round {round}: {closed}");
        let again = RedbStore::open(&path).await.expect("opened right after it was closed");
        again.close().await;
        for busy in busy {
            busy.await.expect("refused, not broken");
        }
        assert_eq!(store.get("k1").await.expect_err("it was closed").kind, ErrorKind::Unavailable);
        store.close().await;
    }
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_is_its_owners_alone_also_when_it_was_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.redb");
    let mode = || std::fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
    RedbStore::open(&path).await.expect("made").close().await;
    assert_eq!(mode(), 0o600, "made as {:o}", mode());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644))
        .expect("as an earlier version left it");
    RedbStore::open(&path).await.expect("opened").close().await;
    assert_eq!(mode(), 0o600, "left as {:o}", mode());
}

/// A file as the version before commits of several writes made it.
fn format_1(path: &Path, format: u64) {
    use redb::{Database, TableDefinition};
    const ENTRIES: TableDefinition<'static, &str, (u64, &[u8])> = TableDefinition::new("entries");
    const HISTORY: TableDefinition<'static, u64, (&str, Option<&[u8]>)> = TableDefinition::new("history");
    const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
    let database = Database::create(path).expect("made");
    let transaction = database.begin_write().expect("begun");
    {
        let mut entries = transaction.open_table(ENTRIES).expect("a table");
        entries.insert("service/default/hello", (7, b"record".as_slice())).expect("written");
        let mut history = transaction.open_table(HISTORY).expect("a table");
        history.insert(7, ("service/default/hello", Some(b"record".as_slice()))).expect("written");
        let mut meta = transaction.open_table(META).expect("a table");
        meta.insert("last_version", 7).expect("written");
        meta.insert("format", format).expect("written");
    }
    transaction.commit().expect("written");
}

#[tokio::test]
async fn a_file_of_the_version_before_is_taken_over_and_one_of_a_later_version_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.redb");
    format_1(&path, 1);
    for _ in 0..2 {
        let store = RedbStore::open(&path).await.expect("opened");
        let entry = store.get("service/default/hello").await.expect("read").expect("it is there");
        assert_eq!((entry.version, &*entry.value), (Version(7), b"record".as_slice()));
        assert_eq!(store.watch("", Version(6)).await.expect("watched"), Watched::ListAgain);
        store.close().await;
    }
    let store = RedbStore::open(&path).await.expect("opened");
    let next = store.put("service/default/hello", Some(Version(7)), "new".into()).await.expect("written");
    assert_eq!(next, Version(8));
    assert!(matches!(store.watch("", Version(7)).await, Ok(Watched::Changes(changes)) if changes.len() == 1));

    let later = dir.path().join("later.redb");
    format_1(&later, 3);
    let error = RedbStore::open(&later).await.expect_err("from the future");
    assert_eq!(error.kind, ErrorKind::InvalidSpec);
    assert!(
        error.message.contains("format 3") && error.message.contains("another state directory"),
        "{error}"
    );
}
