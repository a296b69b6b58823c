//! Granted folders, for modules and through wasi-libc.

use std::fs;

use sas_core::{LogStream, RevisionSpec};
use sas_runtime_wasm::{Ceilings, WasmConfig, options};

use crate::support::{Stage, ask, bytes_spec, get, post};

const FILES: &[u8] = include_bytes!("../../guests/c/files.wasm");

fn spec(value: &str) -> RevisionSpec {
    let mut spec = bytes_spec("files.wasm", FILES.to_vec());
    spec.options.insert(options::DIRECTORIES.into(), value.into());
    spec
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_sees_the_folders_that_it_was_granted_and_nothing_beside_them() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("tenant");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("greeting.txt"), "hello from a file\n").unwrap();
    fs::write(home.path().join("secret.txt"), "not for guests").unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(home.path().join("secret.txt"), folder.join("link.txt")).unwrap();
    let grants = Ceilings { directories: vec![folder.clone()], ..Ceilings::default() };
    let stage = Stage::new(WasmConfig { slots: 4, grants, ..WasmConfig::default() });

    let read_only = stage.instance(&spec(&format!("/data={}:ro", folder.display()))).await;
    assert_eq!(ask(&*read_only, get("/greeting.txt")).await, (200, "hello from a file\n".to_owned()));
    for path in ["/none.txt", "/../secret.txt", "/link.txt"] {
        assert_eq!(ask(&*read_only, get(path)).await.0, 404, "{path}");
    }
    assert_eq!(ask(&*read_only, post("/new.txt", "x")).await.0, 403);
    let lines = stage.told.lines.lock().unwrap().clone();
    assert!(
        lines
            .iter()
            .any(|(_, stream, line)| *stream == LogStream::Stderr && line == "no file /data/none.txt")
    );

    let writable = stage.instance(&spec(&format!("/data={}:rw", folder.display()))).await;
    assert_eq!(ask(&*writable, post("/new.txt", "written")).await, (200, "written".to_owned()));
    assert_eq!(fs::read_to_string(folder.join("new.txt")).unwrap(), "written");
}

#[tokio::test]
async fn a_guest_without_folders_finds_none() {
    let stage = Stage::small();
    let files = stage.instance(&bytes_spec("files.wasm", FILES.to_vec())).await;
    assert_eq!(ask(&*files, get("/etc/passwd")).await.0, 404);
    assert_eq!(ask(&*files, post("/new.txt", "x")).await.0, 403);
}
