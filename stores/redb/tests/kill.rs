//! The file store under SIGKILL: what `put` returned for is there, and nothing is torn.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Command, Stdio},
};

use sas_core::{ErrorKind, Store, Version};
use sas_store_redb::RedbStore;

const CHILD: &str = "SAS_TEST_STORE";

/// Writes counters for ever and says after each `put` how far it is.
async fn write_for_ever(path: &Path) {
    let store = RedbStore::open(path).await.expect("opened");
    let mut versions: Vec<Option<Version>> = Vec::new();
    for key in 0..4 {
        versions.push(store.get(&format!("k{key}")).await.expect("read").map(|entry| entry.version));
    }
    for count in 0_u64.. {
        for (key, version) in versions.iter_mut().enumerate() {
            let value = format!("{count}:{}", "x".repeat(1000)).into();
            *version = Some(store.put(&format!("k{key}"), *version, value).await.expect("written"));
        }
        let mut out = std::io::stdout();
        writeln!(out, "wrote {count}").and_then(|()| out.flush()).expect("told");
    }
}

#[tokio::test]
async fn what_was_put_is_there_after_a_kill() {
    if let Some(path) = std::env::var_os(CHILD) {
        write_for_ever(Path::new(&path)).await;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("state.redb");
    for round in 0..3 {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["what_was_put_is_there_after_a_kill", "--exact", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut last = 0;
        let mut seen = 0;
        while seen < 20 + round * 7 {
            let line = lines.next().expect("the child writes").expect("text");
            if let Some(count) = line.split("wrote ").nth(1) {
                last = count.parse::<u64>().expect("a count");
                seen += 1;
            }
        }
        let busy = RedbStore::open(&path).await.expect_err("another process has it open");
        assert_eq!(busy.kind, ErrorKind::Conflict, "{busy}");
        child.kill().expect("killed");
        child.wait().expect("gone");
        // It went on writing while it was read from.
        for line in lines.map_while(Result::ok) {
            if let Some(count) = line.split("wrote ").nth(1) {
                last = count.parse::<u64>().expect("a count");
            }
        }

        let store = RedbStore::open(&path).await.expect("opened after the kill");
        for key in 0..4 {
            let entry = store.get(&format!("k{key}")).await.expect("read").expect("it is there");
            let text = String::from_utf8(entry.value.to_vec()).expect("text");
            let (count, rest) = text.split_once(':').expect("whole");
            let count: u64 = count.parse().expect("a count");
            assert!(count >= last, "k{key}: {count} is there, {last} was told");
            assert_eq!(rest.len(), 1000, "torn");
        }
        store.close().await;
    }
}
