//! The store while etcd is killed, compacted, full, or wants to know who asks.

#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "what was counted is said")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sas_core::{Commit, ErrorKind, Secret, Store, Version, Watched};
use sas_store_etcd::{EtcdOptions, EtcdStore};
use sas_testkit::{broker::until, server::EtcdServer};
use tokio::time::sleep;

async fn open(server: &EtcdServer) -> Arc<EtcdStore> {
    let url = format!("etcd://127.0.0.1:{}/prod", server.port());
    Arc::new(EtcdStore::open(EtcdOptions::new(Secret::new(url)).expect("a URL")).await.expect("opened"))
}

fn etcdctl(server: &EtcdServer, arguments: &[&str]) -> String {
    let output = server.etcdctl().args(arguments).output().expect("etcdctl runs");
    assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_of_commits_it_loses_nothing_that_was_acknowledged() {
    let Some(mut server) = EtcdServer::start().await else { return };
    let store = open(&server).await;
    let (stop, acknowledged, unknown) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..4)
        .map(|at| {
            let (store, stop) = (Arc::clone(&store), Arc::clone(&stop));
            let (acknowledged, unknown) = (Arc::clone(&acknowledged), Arc::clone(&unknown));
            tokio::spawn(async move {
                let key = format!("count/{at}");
                let (mut version, mut count) = (None::<Version>, 0_u64);
                while !stop.load(Relaxed) {
                    let next = count + 1;
                    match store.put(&key, version, next.to_string().into()).await {
                        Ok(done) => {
                            (version, count) = (Some(done), next);
                            acknowledged.fetch_add(1, Relaxed);
                            continue;
                        }
                        Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{key}: {error}"),
                    }
                    unknown.fetch_add(1, Relaxed);
                    let found = loop {
                        match store.get(&key).await {
                            Ok(found) => break found,
                            Err(error) => assert_eq!(error.kind, ErrorKind::Unavailable, "{error}"),
                        }
                        sleep(Duration::from_millis(50)).await;
                    };
                    let now = found
                        .as_ref()
                        .map_or(0, |entry| String::from_utf8_lossy(&entry.value).parse().expect("a number"));
                    assert!(now == count || now == next, "{key}: {now} is there, {count} was acknowledged");
                    (version, count) = (found.map(|entry| entry.version), now);
                }
                (key, count)
            })
        })
        .collect();
    for _ in 0..3 {
        let before = acknowledged.load(Relaxed);
        until("the writers go on", async || acknowledged.load(Relaxed) >= before + 20).await;
        server.kill();
        sleep(Duration::from_millis(200)).await;
        server.restart().await;
    }
    let before = acknowledged.load(Relaxed);
    until("the writers go on", async || acknowledged.load(Relaxed) >= before + 20).await;
    stop.store(true, Relaxed);
    let mut counts = BTreeMap::new();
    for writer in writers {
        let (key, count) = writer.await.expect("a writer ends");
        counts.insert(key, count);
    }
    for entry in store.list("count/", None, 100).await.expect("listed") {
        assert_eq!(String::from_utf8_lossy(&entry.value), counts[&entry.key].to_string(), "{}", entry.key);
    }
    println!("3 kills: {acknowledged:?} acknowledged, {unknown:?} answered Unavailable");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_watches_from_before_a_compaction_lists_again_and_lists_go_over_pages() {
    let Some(server) = EtcdServer::start().await else { return };
    let store = open(&server).await;
    let first = store.put("a", None, "1".into()).await.expect("written");
    let second = store.put("a", Some(first), "2".into()).await.expect("written");
    let third = store.put("a", Some(second), "3".into()).await.expect("written");
    etcdctl(&server, &["compact", &third.0.to_string()]);
    assert_eq!(store.watch("", first).await.expect("watched"), Watched::ListAgain);
    let fourth = store.put("a", Some(third), "4".into()).await.expect("written");
    let Watched::Changes(changes) = store.watch("", third).await.expect("watched") else {
        panic!("it is not that far back")
    };
    assert_eq!((changes.len(), changes[0].version), (1, fourth));

    // What else is in the cluster makes gaps between versions, and no version.
    etcdctl(&server, &["put", "somebody/else", "x"]);
    assert_eq!(store.version().await.expect("a version"), fourth);
    let fifth = store.put("a", Some(fourth), "5".into()).await.expect("written");
    assert_eq!(fifth.0, fourth.0 + 2);

    for round in 0..4 {
        let commit =
            (0..50).fold(Commit::new(), |commit, at| commit.put(format!("many/{round}/{at:02}"), "x"));
        store.commit(commit).await.expect("written");
    }
    let all = store.list("many/", None, 1000).await.expect("listed");
    assert!(all.len() == 200 && all.is_sorted_by(|one, other| one.key < other.key), "{}", all.len());
    assert_eq!(store.list("many/", None, 130).await.expect("listed"), all[..130]);
    let deleted = store.commit(Commit::new().delete("many/0/00").delete("nothing")).await.expect("deleted");
    assert_eq!(store.version().await.expect("a version"), deleted);
    let nothing =
        store.commit(Commit::new().delete("many/0/00").delete("nothing")).await.expect("nothing to do");
    assert_eq!(nothing, deleted, "a deletion of what is absent makes no version");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_is_full_takes_no_writes_says_why_and_takes_them_again() {
    let Some(server) = EtcdServer::start_with(&["--quota-backend-bytes=4000000"]).await else { return };
    let store = open(&server).await;
    let mut refused = None;
    for round in 0..40 {
        match store.commit(Commit::new().put("big", vec![7; 500_000])).await {
            Ok(_) => {}
            Err(error) => {
                refused = Some((round, error));
                break;
            }
        }
    }
    let (round, error) = refused.expect("it fills up");
    assert!(round > 2, "{round}");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(
        error.message.contains("quota-backend-bytes") && !error.message.contains("may be done"),
        "{error}"
    );
    let entry = store.get("big").await.expect("reads go on").expect("there");
    let from = entry.version;
    etcdctl(&server, &["compact", &from.0.to_string()]);
    etcdctl(&server, &["defrag"]);
    etcdctl(&server, &["alarm", "disarm"]);
    store.put("big", Some(from), "small".into()).await.expect("it takes writes again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_that_asks_who_asks_wants_a_user_who_may() {
    let Some(server) = EtcdServer::start().await else { return };
    for arguments in [
        &["user", "add", "root:root-pass"][..],
        &["user", "grant-role", "root", "root"],
        &["user", "add", "sas:sas-pass"],
        &["role", "add", "sas"],
        &["role", "grant-permission", "sas", "--prefix=true", "readwrite", "prod/"],
        &["user", "grant-role", "sas", "sas"],
        &["auth", "enable"],
    ] {
        etcdctl(&server, arguments);
    }
    let open = async |login: &str, prefix: &str| {
        let url = format!("etcd://{login}127.0.0.1:{}/{prefix}", server.port());
        EtcdStore::open(EtcdOptions::new(Secret::new(url)).expect("a URL")).await
    };
    let store = open("sas:sas-pass@", "prod").await.expect("opened");
    store.put("a", None, "1".into()).await.expect("written");
    store.list("", None, 10).await.expect("listed");
    for (login, prefix, says) in [
        ("", "prod", "wants a user"),
        ("sas:wrong-pass@", "prod", "authentication failed"),
        ("sas:sas-pass@", "other", "permission denied"),
    ] {
        let error = open(login, prefix).await.expect_err(says);
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        assert!(error.message.contains(says) && !error.message.contains("-pass"), "{error}");
    }
}
