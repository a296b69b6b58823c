//! Against `moto_server`, an emulator of S3 (PyPI: `moto[server]`): the protocol is the real one, the storage is memory.

#![cfg(unix)]

use std::path::Path;

use sas_core::{ErrorKind, ObjectStore, Secret};
use sas_store_s3::S3Objects;
use sas_testkit::{
    broker::until,
    server::{Server, moto},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

struct Moto(Server);

async fn asked(port: u16, head: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    stream
        .write_all(format!("{head} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n").as_bytes())
        .await
        .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    Some(answer)
}

impl Moto {
    /// With a bucket.
    async fn start() -> Option<Self> {
        let server = moto("").await?;
        let port = server.port();
        until("it answers", async || asked(port, "PUT /bucket").await.is_some_and(|it| it.contains("200")))
            .await;
        Some(Self(server))
    }

    fn objects(&self, place: &str) -> S3Objects {
        let url = format!("s3://key:secret@127.0.0.1:{}/{place}", self.0.port());
        S3Objects::new(Secret::new(url)).expect("a URL")
    }
}

fn file(dir: &Path, name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, bytes).expect("written");
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_put_read_listed_and_deleted_also_in_parts() {
    let Some(server) = Moto::start().await else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let (objects, others) = (server.objects("bucket/prod"), server.objects("bucket"));
    let to = dir.path().join("got");
    assert!(!objects.get("packages/a.tar", &to).await.expect("asked"));
    assert!(objects.list("packages/").await.expect("listed").is_empty());
    let large: Vec<u8> = (0..20 << 20).map(|at: u32| (at % 251) as u8).collect();
    for (name, bytes) in [
        ("packages/a.tar", &b"one"[..]),
        ("packages/empty.tar", b""),
        ("packages/large.tar", &large),
        ("owner", b"me"),
    ] {
        let from = file(dir.path(), "put", bytes);
        objects.put(name, &from).await.expect("put");
        assert!(objects.get(name, &to).await.expect("got"), "{name}");
        assert!(std::fs::read(&to).expect("read") == bytes, "{name} came back different");
    }
    objects.put("owner", &file(dir.path(), "put", b"you")).await.expect("replaced");
    assert!(objects.get("owner", &to).await.expect("got"));
    assert_eq!(std::fs::read(&to).expect("read"), b"you");
    let mut names = objects.list("packages/").await.expect("listed");
    names.sort();
    assert_eq!(names, ["packages/a.tar", "packages/empty.tar", "packages/large.tar"]);
    assert_eq!(objects.list("packages/a.tar").await.expect("listed"), ["packages/a.tar"]);
    assert!(others.list("packages/").await.expect("listed").is_empty(), "another prefix is another place");
    for _ in 0..2 {
        objects.delete("packages/a.tar").await.expect("deleted");
        assert!(!objects.get("packages/a.tar", &to).await.expect("asked"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_that_is_not_there_is_unavailable_and_wrong_urls_are_named_without_the_secret() {
    let Some(server) = Moto::start().await else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let missing = server.objects("nobodys-bucket");
    let from = file(dir.path(), "put", b"x");
    let error = missing.put("owner", &from).await.expect_err("no such bucket");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(!error.chain().contains("secret"), "{}", error.chain());
    for (url, says) in [
        ("http://key:hunter2@h/b", "s3://"),
        ("s3://h/b", "KEY:SECRET"),
        ("s3://key:hunter2@h", "BUCKET"),
        ("s3://key:hunter2@h/", "BUCKET"),
        ("s3://key:hunter2@h/b?sslmode=prefer", "sslmode"),
        ("s3://key:hunter2@h/b?colour=hunter2", "parameter"),
    ] {
        let error = S3Objects::new(Secret::new(url)).expect_err(url);
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{url}");
        assert!(error.message.contains(says) && !error.message.contains("hunter2"), "{url}: {error}");
    }
}
