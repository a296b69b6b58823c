//! What a commit costs on each store, beside what the servers' own tools measure in the same run.
//!
//! `cargo bench --features store-postgres,store-etcd --bench stores [-- SECONDS]`
//!
//! Writers write 256 bytes each to a key of their own, guarded by its version, one commit after the other. Real servers are
//! started on loopback with their data in the system's directory for temporary files, and flush: redb, PostgreSQL
//! (`fsync = on`) and etcd. Beside them `pgbench -N` (an update and an insert in each transaction) and `etcdctl check perf`.

#![allow(clippy::print_stdout, reason = "the table is what it is run for")]

use std::{process::Command, sync::Arc, time::Duration};

use sas_core::{MemoryStore, Secret, Store, Version};
use sas_store_etcd::{EtcdOptions, EtcdStore};
use sas_store_postgres::{PostgresOptions, PostgresStore};
use sas_store_redb::RedbStore;
use sas_testkit::server::{EtcdServer, PostgresServer};
use tokio::{task::JoinSet, time::Instant};

const WRITERS: [usize; 3] = [1, 16, 64];

/// Commits per second, and how long one takes: the median, and the slowest of a hundred.
async fn measure(store: &Arc<dyn Store>, writers: usize, time: Duration) -> (f64, Duration, Duration) {
    let began = Instant::now();
    let mut all = JoinSet::new();
    for writer in 0..writers {
        let store = Arc::clone(store);
        all.spawn(async move {
            let key = format!("bench/{writers}/{writer}");
            let (mut version, mut took) = (None::<Version>, Vec::new());
            while began.elapsed() < time {
                let before = Instant::now();
                version = Some(store.put(&key, version, vec![b'x'; 256].into()).await.expect("written"));
                took.push(before.elapsed());
            }
            took
        });
    }
    let mut took = Vec::new();
    while let Some(one) = all.join_next().await {
        took.extend(one.expect("a writer ends"));
    }
    let rate = took.len() as f64 / began.elapsed().as_secs_f64();
    took.sort_unstable();
    (rate, took[took.len() / 2], took[took.len() * 99 / 100])
}

fn tool(mut command: Command, keep: &[&str]) {
    match command.output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned()
                + &String::from_utf8_lossy(&output.stderr);
            for line in text.split(['\n', '\r']).filter(|line| keep.iter().any(|word| line.contains(word))) {
                println!("    {}", line.trim());
            }
        }
        Err(error) => println!("    {command:?}: {error}"),
    }
}

#[tokio::main]
async fn main() {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(5);
    let time = Duration::from_secs(seconds);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let postgres = PostgresServer::start_with(&["fsync=on", "unix_socket_directories="]).await;
    let etcd = EtcdServer::start().await;
    let mut stores: Vec<(&str, Arc<dyn Store>)> = vec![
        ("memory", Arc::new(MemoryStore::default())),
        ("redb", Arc::new(RedbStore::open(dir.path().join("state.redb")).await.expect("opened"))),
    ];
    if let Some(server) = &postgres {
        let url = format!("postgres://postgres:admin-pass@127.0.0.1:{}/postgres", server.port());
        let options = PostgresOptions::new(Secret::new(url)).expect("a URL");
        stores.push(("PostgreSQL", Arc::new(PostgresStore::open(options).await.expect("opened"))));
    }
    if let Some(server) = &etcd {
        let url = format!("etcd://127.0.0.1:{}/bench", server.port());
        let options = EtcdOptions::new(Secret::new(url)).expect("a URL");
        stores.push(("etcd", Arc::new(EtcdStore::open(options).await.expect("opened"))));
    }
    println!("| store | writers | writes/s | p50 | p99 |");
    println!("|---|---|---|---|---|");
    for (name, store) in &stores {
        for writers in WRITERS {
            let (rate, median, slow) = measure(store, writers, time).await;
            println!("| {name} | {writers} | {rate:.0} | {median:.2?} | {slow:.2?} |");
        }
    }
    if let Some(server) = &postgres {
        let port = server.port().to_string();
        let pgbench = |arguments: &[&str]| {
            let mut command = PostgresServer::command("pgbench");
            command.env("PGPASSWORD", "admin-pass").args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"]);
            command.args(arguments).arg("postgres");
            command
        };
        pgbench(&["-i", "-q"]).output().expect("pgbench runs");
        for writers in WRITERS {
            println!("pgbench -N, {writers} clients:");
            let (clients, length) = (writers.to_string(), seconds.to_string());
            tool(pgbench(&["-N", "-c", &clients, "-T", &length]), &["tps", "latency average"]);
        }
    }
    if let Some(server) = &etcd {
        println!("etcdctl check perf (small: 50 clients, 60 s, no more than 150 writes/s):");
        let mut command = server.etcdctl();
        command.args(["check", "perf"]);
        tool(command, &["PASS", "FAIL", "Throughput", "Slowest", "Stddev"]);
    }
}
