//! A `platform` whose state is in PostgreSQL: killed itself, and with the server killed under load.

mod shared;

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use sas_testkit::server::PostgresServer;
use shared::{PlatformProcess, call, call_admin, eventually, hello_manifest, platform_command};
use tokio::task::JoinSet;

async fn get(platform: &PlatformProcess, service: &str) -> u16 {
    let host = format!("{service}.default.localhost");
    call(platform.listen, "GET", &host, "/", "").await.map_or(0, |answer| answer.status)
}

async fn deploy(platform: &PlatformProcess, name: &str) -> (u16, String) {
    let manifest = hello_manifest(name, "", 0);
    let answer =
        call_admin(platform.admin, "POST", "/v1/services", &manifest).await.expect("the admin API answers");
    (answer.status, answer.body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_deployed_is_there_after_a_kill_and_a_server_that_is_gone_stops_no_traffic() {
    let Some(mut server) = PostgresServer::start().await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (url, state) = (dir.path().join("store-url"), dir.path().join("state"));
    let text = format!("postgres://postgres:admin-pass@127.0.0.1:{}/postgres?connections=4\n", server.port());
    fs::write(&url, text).expect("written");
    let arguments = [
        "--store",
        url.to_str().expect("UTF-8"),
        "--state",
        state.to_str().expect("UTF-8"),
        "--package-root",
        "/",
    ];

    let mut platform = PlatformProcess::start(&arguments);
    for name in ["one", "two"] {
        let (status, body) = deploy(&platform, name).await;
        assert!((200..300).contains(&status), "{status}: {body}");
        assert_eq!(get(&platform, name).await, 200);
    }
    platform.kill();
    assert!(!state.join("state.redb").exists(), "nothing is kept beside the store");

    let platform = PlatformProcess::start(&arguments);
    for name in ["one", "two"] {
        assert_eq!(get(&platform, name).await, 200, "{name} came back");
    }

    // Under load the server goes away for a while.
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut load = JoinSet::new();
    for _ in 0..4 {
        let (stop, asked, listen) = (Arc::clone(&stop), Arc::clone(&asked), platform.listen);
        load.spawn(async move {
            while !stop.load(Relaxed) {
                let answer = call(listen, "GET", "one.default.localhost", "/", "").await.expect("an answer");
                assert_eq!(answer.status, 200, "{answer:?}");
                asked.fetch_add(1, Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    server.kill();
    let before = asked.load(Relaxed);
    let (status, body) = deploy(&platform, "three").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.contains("PostgreSQL"), "{body}");
    eventually("requests go on", Duration::from_secs(30), async || asked.load(Relaxed) > before + 100).await;
    server.restart().await;
    let mut told = String::new();
    eventually("deploys go on", Duration::from_secs(30), async || {
        let (status, body) = deploy(&platform, "three").await;
        told = body;
        (200..300).contains(&status)
    })
    .await;
    assert_eq!(get(&platform, "three").await, 200, "{told}");
    stop.store(true, Relaxed);
    while let Some(ended) = load.join_next().await {
        ended.expect("every request was answered by 200");
    }
    assert!(platform.terminate().success());
}

#[tokio::test]
async fn mistakes_in_the_place_of_the_store_are_told_without_the_password() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = dir.path().join("store-url");
    fs::write(&file, "postgres://sas:hunter2@127.0.0.1:1/sas").expect("written");
    let file = file.to_str().expect("UTF-8");
    for (place, says) in [
        ("postgres://sas:hunter2@127.0.0.1/sas", "belongs into a file"),
        ("mysql://127.0.0.1/sas", "postgres://"),
        ("/nowhere/url", "/nowhere/url"),
        ("postgres://sas@127.0.0.1/sas?schema=A", "schema"),
        (file, "PostgreSQL"),
    ] {
        let output =
            platform_command(&["--store", place, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
                .output();
        let output = output.expect("it runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && stderr.contains(says), "{place}: {stderr}");
        assert!(!stderr.contains("hunter2"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_host_brings_the_packages_from_where_they_are_shared() {
    let Some(server) = PostgresServer::start().await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let url = dir.path().join("store-url");
    let text = format!("postgres://postgres:admin-pass@127.0.0.1:{}/postgres\n", server.port());
    fs::write(&url, text).expect("written");
    let url = url.to_str().expect("UTF-8");
    let on = |host: &str| {
        let state = dir.path().join(host);
        let state = state.to_str().expect("UTF-8").to_owned();
        PlatformProcess::start(&["--store", url, "--packages", url, "--state", &state, "--package-root", "/"])
    };
    let mut first = on("first");
    let (status, body) = deploy(&first, "one").await;
    assert!((200..300).contains(&status), "{status}: {body}");
    first.kill();
    let second = on("second");
    assert_eq!(get(&second, "one").await, 200, "its package was fetched");
    let copies = fs::read_dir(dir.path().join("second/packages")).expect("copies").flatten();
    let copies: Vec<String> = copies.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(copies.len() == 1 && copies[0].starts_with("sha256-"), "{copies:?}");
    assert!(second.terminate().success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_moves_from_a_directory_to_the_server_and_back() {
    let Some(server) = PostgresServer::start().await else { return };
    let dir = tempfile::tempdir().expect("a temporary directory");
    let (url, state) = (dir.path().join("store-url"), dir.path().join("state"));
    let text = format!("postgres://postgres:admin-pass@127.0.0.1:{}/postgres\n", server.port());
    fs::write(&url, text).expect("written");
    let (url, state) = (url.to_str().expect("UTF-8"), state.to_str().expect("UTF-8"));
    let copy = |arguments: &[&str]| {
        let output = platform_command(arguments).output().expect("it runs");
        let told = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&told).into_owned())
    };

    let platform = PlatformProcess::start(&["--state", state, "--package-root", "/"]);
    let (status, body) = deploy(&platform, "one").await;
    assert!((200..300).contains(&status), "{status}: {body}");
    let (done, told) = copy(&["--copy-from", state, "--store", url]);
    assert!(!done && told.contains("open in another process"), "{told}");
    assert!(platform.terminate().success());

    let (done, told) = copy(&["--copy-from", state, "--store", url]);
    assert!(done && told.starts_with("copied "), "{told}");
    let (done, again) = copy(&["--copy-from", state, "--store", url]);
    assert!(!done && again.contains("not empty"), "{again}");
    let platform = PlatformProcess::start(&["--store", url, "--state", state]);
    assert_eq!(get(&platform, "one").await, 200, "it runs from the server");
    assert!(platform.terminate().success());

    fs::remove_file(dir.path().join("state/state.redb")).expect("it was there");
    let (done, told) = copy(&["--copy-from", url, "--state", state]);
    assert!(done && told.starts_with("copied "), "{told}");
    let platform = PlatformProcess::start(&["--state", state]);
    assert_eq!(get(&platform, "one").await, 200, "and from the directory again");
    assert!(platform.terminate().success());
}
