//! The log on a store.

use std::sync::Arc;

use bytes::Bytes;
use sas_core::{ErrorKind, EventLog, MemoryStore, Store, StoreLog};

fn log() -> (Arc<MemoryStore>, StoreLog) {
    let store = Arc::new(MemoryStore::default());
    (Arc::clone(&store), StoreLog::new(store, "log"))
}

fn records(texts: &[&'static str]) -> Vec<Bytes> {
    texts.iter().map(|text| Bytes::from_static(text.as_bytes())).collect()
}

async fn read(log: &StoreLog, stream: &str, after: u64) -> Vec<(u64, Bytes)> {
    log.read(stream, after, 100)
        .await
        .unwrap()
        .into_iter()
        .map(|entry| (entry.position, entry.value))
        .collect()
}

#[tokio::test]
async fn records_stand_in_their_order_and_streams_apart() {
    let (_, log) = log();
    assert_eq!(log.append("a", None, records(&["1", "2"])).await.unwrap(), 2);
    assert_eq!(log.append("ab", None, records(&["x"])).await.unwrap(), 1);
    assert_eq!(log.append("a", Some(2), records(&["3"])).await.unwrap(), 3);
    assert_eq!(read(&log, "a", 0).await, [(1, "1".into()), (2, "2".into()), (3, "3".into())]);
    assert_eq!(read(&log, "a", 2).await, [(3, "3".into())]);
    assert_eq!(log.read("a", 0, 2).await.unwrap().len(), 2);
    assert_eq!(read(&log, "never", 0).await, []);
    assert_eq!((log.last("a").await.unwrap(), log.last("never").await.unwrap()), (3, 0));
}

#[tokio::test]
async fn who_expects_another_end_writes_nothing() {
    let (store, log) = log();
    log.append("a", Some(0), records(&["1"])).await.unwrap();
    let before = store.version().await.unwrap();
    for expected in [0, 2] {
        let error = log.append("a", Some(expected), records(&["late"])).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
    }
    assert_eq!(store.version().await.unwrap(), before);
}

#[tokio::test]
async fn appends_without_an_expectation_all_find_a_place() {
    let (_, log) = log();
    let log = Arc::new(log);
    let appends = (0..16).map(|_| log.append("a", None, records(&["x", "y"])));
    let mut ends: Vec<u64> =
        futures_util::future::join_all(appends).await.into_iter().map(|end| end.unwrap()).collect();
    ends.sort_unstable();
    assert_eq!(ends, (1..=16).map(|n| n * 2).collect::<Vec<u64>>());
    let all = read(&log, "a", 0).await;
    assert!(
        all.chunks(2).all(|pair| pair[0].1 == "x" && pair[1].1 == "y"),
        "records of one append stand together"
    );
}

#[tokio::test]
async fn a_trim_forgets_the_start_and_no_position_comes_again() {
    let (_, log) = log();
    for _ in 0..50 {
        log.append("a", None, vec![Bytes::from_static(b"r"); 60]).await.unwrap();
    }
    log.trim("a", 2_990).await.unwrap();
    log.trim("a", 2_990).await.unwrap();
    assert_eq!(read(&log, "a", 0).await.first().unwrap().0, 2_991);
    log.trim("a", u64::MAX).await.unwrap();
    assert_eq!(read(&log, "a", 0).await, []);
    assert_eq!(log.append("a", None, records(&["next"])).await.unwrap(), 3_001);
}

#[tokio::test]
async fn names_and_sizes_out_of_bounds_are_refused() {
    let (_, log) = log();
    for stream in ["", "a/b", &"x".repeat(201)] {
        assert_eq!(log.append(stream, None, records(&["r"])).await.unwrap_err().kind, ErrorKind::InvalidSpec);
        assert_eq!(log.last(stream).await.unwrap_err().kind, ErrorKind::InvalidSpec);
    }
    let many = vec![Bytes::from_static(b"r"); 2_000];
    assert_eq!(log.append("a", None, many).await.unwrap_err().kind, ErrorKind::InvalidSpec);
    assert_eq!(log.append("a", None, Vec::new()).await.unwrap(), 0);
}
