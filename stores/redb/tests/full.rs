//! A file system that is full: what does not fit is refused, nothing is lost, and with room it goes on.

use std::{path::Path, process::Command};

use sas_core::{Commit, ErrorKind, Store, Version};
use sas_store_redb::RedbStore;

/// A file system of its own.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn new(at: &'a Path, size: &str) -> Self {
        let mut mount = Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).status();
        assert!(done.expect("mount runs").success(), "a tmpfs at {}", at.display());
        Self(at)
    }

    fn resize(&self, size: &str) {
        let mut mount = Command::new("mount");
        let done = mount.args(["-o", &format!("remount,size={size}")]).arg(self.0).status();
        assert!(done.expect("mount runs").success());
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id runs");
    id.stdout == b"0\n"
}

fn value(number: u32) -> String {
    format!("{number}:{}", "x".repeat(60_000))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_file_system_refuses_writes_loses_nothing_and_goes_on_when_there_is_room() {
    if !is_root() {
        return sas_testkit::skip("a file system of its own needs root");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = Mounted::new(dir.path(), "16m");
    let path = dir.path().join("state.redb");
    let store = RedbStore::open(&path).await.expect("opened");
    for round in 0..3 {
        let begun = store.list(&format!("{round}/"), None, 1_000).await.expect("listed").len();
        assert_eq!(begun, 0);
        let mut kept: Vec<(String, Version)> = Vec::new();
        let refused = loop {
            let number = kept.len() as u32;
            let key = format!("{round}/{number:04}");
            match store.put(&key, None, value(number).into()).await {
                Ok(version) => kept.push((key, version)),
                Err(error) => break error,
            }
            assert!(number < 2_000, "it never fills up");
        };
        assert_eq!(refused.kind, ErrorKind::Exhausted, "{refused}");
        assert!(refused.message.contains("state.redb") && refused.message.contains("no room"), "{refused}");
        // Again, and it says the same: not that it is broken.
        let again = store.put("again", None, value(0).into()).await.expect_err("still full");
        assert_eq!(again.kind, ErrorKind::Exhausted, "{again}");
        // What was taken can be read meanwhile.
        for (number, (key, version)) in kept.iter().enumerate() {
            let entry = store.get(key).await.expect("read").unwrap_or_else(|| panic!("{key} is lost"));
            assert_eq!((entry.version, entry.value.as_ref()), (*version, value(number as u32).as_bytes()));
        }
        assert_eq!(store.get("again").await.expect("read"), None);
        assert_eq!(store.version().await.expect("known"), kept.last().expect("some").1);

        mounted.resize(["32m", "48m", "64m"][round]);
        let version = store.put("again", None, "there is room".into()).await.expect("it goes on");
        store.commit(Commit::new().delete("again")).await.expect("deleted");
        assert!(version > kept.last().expect("some").1);
        let all = store.list(&format!("{round}/"), None, 2_000).await.expect("listed").len();
        assert_eq!(all, kept.len());
    }
    store.close().await;
    let again = RedbStore::open(&path).await.expect("opened again");
    let mut all = 0;
    for round in 0..3 {
        all += again.list(&format!("{round}/"), None, 2_000).await.expect("listed").len();
    }
    assert!(all > 100, "{all} entries");
    again.close().await;
}
