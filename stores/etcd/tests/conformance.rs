//! The store on a real etcd keeps the contract of `Store`, and so does the log on it.

#![cfg(unix)]
#![allow(clippy::print_stdout, reason = "the reports are what the tests are read for")]

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering::Relaxed},
};

use sas_core::{EventLog, Secret, Store, StoreLog};
use sas_store_etcd::{EtcdOptions, EtcdStore};
use sas_testkit::{event_log, server::EtcdServer, store};

/// A prefix that nobody has used.
fn fresh(server: &EtcdServer) -> EtcdOptions {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let (port, serial) = (server.port(), SERIAL.fetch_add(1, Relaxed));
    EtcdOptions::new(Secret::new(format!("etcd://127.0.0.1:{port}/check/{serial}"))).expect("a URL")
}

async fn open(options: &EtcdOptions) -> Arc<EtcdStore> {
    Arc::new(EtcdStore::open(options.clone()).await.expect("opened"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_the_store_suite() {
    let Some(server) = EtcdServer::start().await else { return };
    let report = store::suite(async || {
        let options = fresh(&server);
        let subject = store::Subject::new(open(&options).await).reopen(move || {
            let options = options.clone();
            async move { open(&options).await as Arc<dyn Store> }
        });
        ((), subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_on_it_passes_the_event_log_suite() {
    let Some(server) = EtcdServer::start().await else { return };
    let report = event_log::suite(async || {
        let options = fresh(&server);
        let log = StoreLog::new(open(&options).await, "log");
        let subject = event_log::Subject::new(Arc::new(log)).reopen(move || {
            let options = options.clone();
            async move { Arc::new(StoreLog::new(open(&options).await, "log")) as Arc<dyn EventLog> }
        });
        ((), subject)
    })
    .await;
    println!("{report}");
    report.assert_passed_skipping(&[]);
}
