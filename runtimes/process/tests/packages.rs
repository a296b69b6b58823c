//! Packages: what is unpacked, what is refused and with which words, and what is left afterwards.

mod support;

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use proptest::prelude::*;
use sas_core::{Error, ErrorKind, RevisionSpec, Runtime as _, Source};
use sas_runtime_process::{PackageLimits, ProcessConfig, ProcessRuntime};
use support::{fetch, spec, start};

/// One entry of a hand-made tar.
struct Entry<'a> {
    name: &'a str,
    kind: tar::EntryType,
    mode: u32,
    link: &'a str,
    content: &'a [u8],
}

fn file<'a>(name: &'a str, content: &'a [u8]) -> Entry<'a> {
    Entry { name, kind: tar::EntryType::Regular, mode: 0o755, link: "", content }
}

fn link<'a>(name: &'a str, to: &'a str) -> Entry<'a> {
    Entry { name, kind: tar::EntryType::Symlink, mode: 0o777, link: to, content: b"" }
}

/// Writes names as they are given: the crate's builder would refuse the bad ones.
fn tar(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        header.as_mut_bytes()[157..157 + entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(entry.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zip(entries: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, mode, content) in entries {
        let options = zip::write::SimpleFileOptions::default().unix_permissions(*mode);
        writer.start_file(*name, options).unwrap();
        writer.write_all(content).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

fn bytes(name: &str, content: Vec<u8>) -> RevisionSpec {
    RevisionSpec::new("process", Source::Bytes { name: name.to_owned(), bytes: Bytes::from(content) })
}

fn runtime_with(limits: PackageLimits) -> (tempfile::TempDir, ProcessRuntime) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = ProcessConfig::in_store(dir.path().join("store"));
    config.limits = limits;
    (dir, ProcessRuntime::new(config).unwrap())
}

/// Everything below packages/ and in the runs' tmp/.
fn left(dir: &Path) -> Vec<PathBuf> {
    let list = |path: PathBuf| fs::read_dir(path).into_iter().flatten().flatten().map(|entry| entry.path());
    let store = dir.join("store");
    let mut found: Vec<PathBuf> = list(store.join("packages")).collect();
    found.extend(list(store.join("runs")).flat_map(|run| list(run.join("tmp"))));
    found
}

async fn refused(runtime: &ProcessRuntime, spec: &RevisionSpec) -> Error {
    match runtime.prepare(spec).await {
        Err(error) => error,
        Ok(artifact) => panic!("accepted: {artifact:?}"),
    }
}

const HELLO: &[u8] = b"#!/bin/sh\nexec sleep 100\n";

#[tokio::test]
async fn malicious_and_broken_packages_are_refused_with_the_entry_and_the_remedy() {
    let mut limits = PackageLimits::default();
    limits.unpacked_bytes = 8 << 20;
    limits.entries = 50;
    limits.ratio = 20;
    limits.packed_bytes = 4 << 20;
    let (dir, runtime) = runtime_with(limits);

    let device = Entry { name: "null", kind: tar::EntryType::Char, mode: 0o644, link: "", content: b"" };
    let fifo = Entry { name: "pipe", kind: tar::EntryType::Fifo, mode: 0o644, link: "", content: b"" };
    let hard = |to| Entry { name: "h", kind: tar::EntryType::Link, mode: 0o644, link: to, content: b"" };
    let whole = gzip(&tar(&[file("run", HELLO), file("data", &[7u8; 5000])]));
    let whole_zip = zip(&[("run", 0o755, HELLO), ("data", 0o644, &[7u8; 5000])]);
    let zeros = vec![0u8; 6 << 20];
    let many: Vec<String> = (0..60).map(|n| format!("f{n}")).collect();
    let many: Vec<Entry<'_>> = many.iter().map(|name| file(name, b"x")).collect();
    let noise: Vec<u8> =
        (0..9u64 << 17).flat_map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes()).collect();
    let escaping_zip_link = {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        writer.add_symlink("l", "../../etc", zip::write::SimpleFileOptions::default()).unwrap();
        writer.finish().unwrap().into_inner()
    };
    let mut huge_name = tar(&[Entry {
        name: "././@LongLink",
        kind: tar::EntryType::GNULongName,
        mode: 0,
        link: "",
        content: &[b'a'; 100_000],
    }]);
    huge_name.extend(tar(&[file("x", b"")]));

    let cases: Vec<(&str, RevisionSpec, &[&str])> = vec![
        (
            "parent",
            bytes("a.tar.gz", gzip(&tar(&[file("../evil", b"x")]))),
            &["\"../evil\"", "..", "relative"],
        ),
        ("inner parent", bytes("a.tgz", gzip(&tar(&[file("a/../../evil", b"x")]))), &["a/../../evil"]),
        ("absolute", bytes("a.tar.gz", gzip(&tar(&[file("/etc/evil", b"x")]))), &["/etc/evil", "absolute"]),
        ("zip parent", bytes("a.zip", zip(&[("../evil", 0o644, b"x")])), &["../evil", ".."]),
        ("zip absolute", bytes("a.zip", zip(&[("/evil", 0o644, b"x")])), &["evil", "absolute"]),
        ("zip link", bytes("a.zip", escaping_zip_link), &["\"l\"", "leads out"]),
        ("link out", bytes("a.tar.gz", gzip(&tar(&[link("l", "../outside")]))), &["\"l\"", "../outside"]),
        (
            "link absolute",
            bytes("a.tar.gz", gzip(&tar(&[link("l", "/etc")]))),
            &["\"l\"", "/etc", "leads out"],
        ),
        (
            "link chain",
            bytes("a.tar.gz", gzip(&tar(&[link("d/up", ".."), link("x", "d/up/../.."), file("d/f", b"")]))),
            &["\"x\"", "leads out"],
        ),
        (
            "write through a link",
            bytes("a.tar.gz", gzip(&tar(&[link("d", "e"), file("d/f", b"x"), file("e/g", b"x")]))),
            &["\"d\"", "same path"],
        ),
        ("link loop", bytes("a.tar.gz", gzip(&tar(&[link("a", "b"), link("b", "a")]))), &["\"a\"", "\"b\""]),
        ("dangling", bytes("a.tar.gz", gzip(&tar(&[link("a", "gone")]))), &["\"a\"", "gone", "pack what"]),
        ("hard link out", bytes("a.tar.gz", gzip(&tar(&[hard("../../etc/passwd")]))), &["../../etc/passwd"]),
        (
            "hard link absolute",
            bytes("a.tar.gz", gzip(&tar(&[hard("/etc/passwd")]))),
            &["/etc/passwd", "absolute"],
        ),
        ("device", bytes("a.tar.gz", gzip(&tar(&[device]))), &["\"null\"", "device"]),
        ("pipe", bytes("a.tar.gz", gzip(&tar(&[fifo]))), &["\"pipe\"", "device file or pipe"]),
        ("ratio", bytes("a.tar.gz", gzip(&tar(&[file("zeros", &zeros)]))), &["zeros", "bomb", "ratio"]),
        ("zip ratio", bytes("a.zip", zip(&[("zeros", 0o644, &zeros)])), &["zeros", "bomb", "ratio"]),
        ("total", bytes("a.tar", tar(&[file("a", &noise[..3 << 20])])[..2 << 20].to_vec()), &["truncated"]),
        ("too big", bytes("a.tar", tar(&[file("a", &noise[..5 << 20])])), &["packed_bytes"]),
        ("too many", bytes("a.tar", tar(&many)), &["50 entries", "PackageLimits::entries"]),
        ("long name", bytes("a.tar", huge_name), &["long name", "65536"]),
        ("cut gzip", bytes("a.tar.gz", whole[..whole.len() / 2].to_vec()), &["truncated"]),
        ("cut gzip tail", bytes("a.tar.gz", whole[..whole.len() - 4].to_vec()), &["whole"]),
        ("cut zip", bytes("a.zip", whole_zip[..whole_zip.len() / 2].to_vec()), &["zip", "again"]),
        ("flipped", bytes("a.tar.gz", flip(&whole)), &["again"]),
        ("not gzip", bytes("a.tar.gz", b"hello".to_vec()), &["a.tar.gz", "not what the name says"]),
        ("not a jar", bytes("a.jar", b"hello".to_vec()), &["a.jar", "not what the name says"]),
        ("gzip of text", bytes("a.gz", gzip(b"just some text that is no tar at all")), &["tar"]),
        ("empty file", bytes("app", Vec::new()), &["empty"]),
        ("text", bytes("notes.txt", b"hello".to_vec()), &["notes.txt", "neither"]),
        ("empty tar", bytes("a.tar.gz", gzip(&[0u8; 1024])), &["empty"]),
        (
            "no way",
            bytes("a.tar.gz", gzip(&tar(&[Entry { mode: 0o644, ..file("readme", b"x") }]))),
            &["no way to start", "command"],
        ),
        (
            "two programs",
            bytes("a.tar.gz", gzip(&tar(&[file("a", HELLO), file("b", HELLO)]))),
            &["several programs", "a, b"],
        ),
        ("bad json", bytes("a.zip", zip(&[("package.json", 0o644, b"{")])), &["package.json", "JSON"]),
        ("no start", bytes("a.zip", zip(&[("package.json", 0o644, b"{}")])), &["scripts.start", "index.js"]),
        ("jar without main", bytes("a.jar", zip(&[("x.txt", 0o644, b"")])), &["Main-Class"]),
        ("cut jar", bytes("a.jar", whole_zip[..whole_zip.len() / 2].to_vec()), &["jar", "no whole jar"]),
        (
            "no interpreter",
            bytes("a", b"#!/no/such/interpreter\n".to_vec()),
            &["/no/such/interpreter", "does not exist"],
        ),
        ("dos line ends", bytes("a", b"#!/bin/sh\r\nexit\r\n".to_vec()), &["CR LF"]),
    ];
    for (what, spec, mentions) in &cases {
        let error = refused(&runtime, spec).await;
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{what}: {error}");
        for mention in *mentions {
            assert!(error.to_string().contains(mention), "{what}: {mention:?} is not in: {error}");
        }
    }
    runtime.quiesce().await;
    assert_eq!(left(dir.path()), Vec::<PathBuf>::new(), "nothing half-made");
    assert!(!dir.path().join("evil").exists() && !dir.path().join("store/evil").exists());
}

fn flip(bytes: &[u8]) -> Vec<u8> {
    let mut flipped = bytes.to_vec();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    flipped
}

#[tokio::test]
async fn bad_options_and_commands_are_refused_with_their_field() {
    let (_dir, runtime) = support::runtime();
    type Change = fn(&mut RevisionSpec);
    let cases: &[(Change, &[&str])] = &[
        (|spec| spec.command = vec!["no-such-command".into()], &["no-such-command", "not found"]),
        (|spec| spec.command = vec!["./missing".into()], &["./missing", "no such file"]),
        (|spec| spec.command = vec!["/no/such/java".into()], &["/no/such/java"]),
        (|spec| spec.command = vec!["./data".into()], &["./data", "not executable"]),
        (|spec| spec.command = vec![String::new()], &["command"]),
        (|spec| spec.working_dir = Some("nowhere".into()), &["working_dir", "nowhere"]),
        (|spec| drop(spec.env.insert("PORT".into(), sas_core::EnvValue::Literal("1".into()))), &["env.PORT"]),
        (|spec| drop(spec.options.insert("sas.dev/listen-fd".into(), "3".into())), &["listen-fd", "\"3\""]),
        (
            |spec| {
                let large = sas_core::EnvValue::Literal("x".repeat(200_000));
                spec.env.insert("LARGE".into(), large);
            },
            &["env.LARGE", "131072 bytes"],
        ),
        (
            |spec| drop(spec.options.insert("sas.dev/java-flags".into(), "x".into())),
            &["sas.dev/java-flags", "knows"],
        ),
        (
            |spec| drop(spec.options.insert("sas.dev/rlimit-nofile".into(), "many".into())),
            &["rlimit-nofile", "many"],
        ),
        (
            |spec| {
                spec.readiness =
                    Some(sas_core::Probe::new(sas_core::ProbeAction::Exec { command: Vec::new() }));
            },
            &["readiness.action.exec.command", "the program that asks"],
        ),
    ];
    let package = zip(&[("run", 0o755, HELLO), ("data", 0o644, b"x")]);
    runtime.prepare(&bytes("a.zip", package.clone())).await.expect("the package itself is fine");
    for (change, mentions) in cases {
        let mut spec = bytes("a.zip", package.clone());
        change(&mut spec);
        let error = refused(&runtime, &spec).await;
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
        for mention in *mentions {
            assert!(error.to_string().contains(mention), "{mention:?} is not in: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_runs_from_every_kind_of_package_without_a_command() {
    let program = fs::read(support::program("app")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("project");
    fs::create_dir_all(project.join("lib")).unwrap();
    fs::copy(support::program("app"), project.join("server")).unwrap();
    fs::write(project.join("lib/data"), "x").unwrap();
    std::os::unix::fs::symlink("lib/data", project.join("current")).unwrap();
    let packed = gzip(&tar(&[
        file("app-1.0/server", &program),
        link("app-1.0/again", "server-data"),
        file("app-1.0/server-data", b"d"),
    ]));
    let packed_file = dir.path().join("app.tar.gz");
    fs::write(&packed_file, &packed).unwrap();
    let (_dir, runtime) = support::runtime();
    let runtime = Arc::new(runtime);
    for (what, spec) in [
        ("directory", spec(&project)),
        ("single program", spec(support::program("app"))),
        ("tar.gz by path, in one top directory", spec(&packed_file)),
        ("tar.gz by bytes", bytes("app.tar.gz", packed.clone())),
        ("zip without modes", bytes("app.zip", zip(&[("server", 0, &program)]))),
        ("program by bytes", bytes("app", program.clone())),
    ] {
        let started = start(&runtime, spec).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let cwd = fetch(&started.instance, "/cwd").await.unwrap();
        assert!(cwd.contains("/store/packages/"), "{what}: {cwd}");
        started.instance.stop(std::time::Duration::from_secs(5)).await.unwrap();
    }
}

/// Where a package was unpacked to.
fn unpacked(dir: &Path) -> PathBuf {
    let found = left(dir);
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

/// A zip as tools of Windows wrote them: its separator in names, and no modes.
fn windows(names: &[(&str, &[u8])]) -> Vec<u8> {
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, content) in names {
        // The writer would turn them round, so they are put in afterwards.
        writer.start_file(name.replace('\\', "|"), stored).unwrap();
        writer.write_all(content).unwrap();
    }
    let mut bytes = writer.finish().unwrap().into_inner();
    bytes.iter_mut().filter(|byte| **byte == b'|').for_each(|byte| *byte = b'\\');
    let headers: Vec<usize> =
        (0..bytes.len() - 46).filter(|at| bytes[*at..].starts_with(b"PK\x01\x02")).collect();
    for at in headers {
        // Made by DOS, and of attributes only that it is to be archived.
        bytes[at + 5] = 0;
        bytes[at + 38..at + 42].copy_from_slice(&[0x20, 0, 0, 0]);
    }
    bytes
}

#[tokio::test]
async fn archives_of_other_systems_are_projects_too() {
    let double = &[0u8, 5, 0x16, 7, 0, 2, 0, 0][..];
    let directory =
        |name| Entry { name, kind: tar::EntryType::Directory, mode: 0o755, link: "", content: b"" };
    let cases: Vec<(&str, RevisionSpec, &[&str], &[&str])> = vec![
        (
            "Finder",
            bytes(
                "a.zip",
                zip(&[
                    ("shop/run", 0o755, HELLO),
                    ("shop/lib/a", 0o644, b"x"),
                    ("__MACOSX/shop/._run", 0o644, double),
                    ("__MACOSX/._shop", 0o644, double),
                    (".DS_Store", 0o644, b"x"),
                    ("shop/lib/.DS_Store", 0o644, b"x"),
                ]),
            ),
            &["shop/run", "shop/lib/a"],
            &["__MACOSX", ".DS_Store", "shop/lib/.DS_Store"],
        ),
        (
            "macOS tar",
            bytes(
                "a.tgz",
                gzip(&tar(&[
                    file("._shop", double),
                    directory("shop"),
                    file("shop/._run", b"of another kind"),
                    file("shop/run", HELLO),
                    file("shop/._alone", double),
                    file("shop/._mine", b"a file of the program"),
                ])),
            ),
            &["shop/run", "shop/._mine"],
            &["._shop", "shop/._run", "shop/._alone"],
        ),
        (
            "Windows",
            bytes("a.zip", windows(&[("shop\\run", HELLO), ("shop\\lib\\a", b"x"), ("shop\\empty\\", b"")])),
            &["shop/run", "shop/lib/a", "shop/empty"],
            &["shop\\run"],
        ),
        (
            "Windows and its shell",
            bytes(
                "a.zip",
                windows(&[("shop\\run", HELLO), ("Thumbs.db", b"x"), ("shop\\desktop.ini", b"x")]),
            ),
            &["shop/run"],
            &["Thumbs.db", "shop/desktop.ini"],
        ),
    ];
    for (what, spec, there, gone) in cases {
        let (dir, runtime) = support::runtime();
        let artifact = runtime.prepare(&spec).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let root = unpacked(dir.path());
        for name in there {
            assert!(root.join(name).exists(), "{what}: {name} is missing");
        }
        for name in gone {
            assert!(!root.join(name).exists(), "{what}: {name} is there");
        }
        let mode = fs::metadata(root.join("shop/run")).unwrap().permissions().mode();
        // The group is that of instances, which write to a view of it.
        assert_eq!(mode & 0o7707, 0o705, "{what}");
        drop(artifact);
    }
    let (_dir, runtime) = support::runtime();
    let error = refused(&runtime, &bytes("a.zip", windows(&[("..\\evil", b"x")]))).await;
    assert!(error.to_string().contains("leads out"), "{error}");
}

#[tokio::test]
async fn a_jar_that_is_a_script_too_is_a_jar() {
    if support::missing("java") {
        return;
    }
    let (_dir, runtime) = support::runtime();
    let manifest = b"Main-Class: org.springframework.boot.loader.launch.JarLauncher\n";
    let mut jar = b"#!/bin/bash\nexec java -jar \"$0\"\nexit 0\n".to_vec();
    jar.extend(zip(&[("META-INF/MANIFEST.MF", 0o644, manifest)]));
    runtime.prepare(&bytes("shop.jar", jar)).await.unwrap();
    let error = refused(&runtime, &bytes("shop.jar", b"#!/bin/bash\n".to_vec())).await;
    assert!(error.to_string().contains("no whole jar"), "{error}");
}

#[tokio::test]
async fn a_virtual_environment_of_another_machine_is_fitted_to_this_host_and_other_links_out_are_refused() {
    if support::missing("python3") {
        return;
    }
    let environment = |target| {
        vec![
            file("main.py", b"print(1)"),
            link(".venv/bin/python", "python3"),
            link(".venv/bin/python3", target),
            link(".venv/lib64", "lib"),
            file(".venv/lib/x", b""),
            file(".venv/bin/tool", b"#!/Users/me/shop/.venv/bin/python\nprint(1)\n"),
            Entry { mode: 0o644, ..file(".venv/pyvenv.cfg", b"home = /opt/homebrew/bin\nversion = 3.9.1\n") },
        ]
    };
    let (dir, runtime) = support::runtime();
    let packed = gzip(&tar(&environment("/opt/homebrew/bin/python3.9")));
    let artifact = runtime.prepare(&bytes("a.tar.gz", packed)).await.unwrap();
    let venv = unpacked(dir.path()).join(".venv");
    let python = fs::read_link(venv.join("bin/python3")).unwrap();
    assert!(python.starts_with("/usr") || python.starts_with("/bin"), "{python:?}");
    let tool = fs::read_to_string(venv.join("bin/tool")).unwrap();
    assert_eq!(tool, "#!/usr/bin/env python3\nprint(1)\n");
    let config = fs::read_to_string(venv.join("pyvenv.cfg")).unwrap();
    assert_eq!(config, format!("home = {}\nversion = 3.9.1\n", python.parent().unwrap().display()));
    let mut ran = std::process::Command::new(venv.join("bin/python"));
    let said = ran.args(["-c", "import sys; print(sys.prefix)"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), venv.display().to_string(), "{said:?}");
    drop(artifact);
    // An interpreter is no way to a file, and without pyvenv.cfg there is no environment.
    let mut bare = environment("/usr/bin/python3");
    bare.pop();
    for (what, entries) in [("a file", environment("/etc/shadow")), ("no environment", bare)] {
        let error = refused(&runtime, &bytes("a.tar.gz", gzip(&tar(&entries)))).await.to_string();
        assert!(error.contains(".venv/bin/python") && error.contains("leads out"), "{what}: {error}");
        assert!(error.contains("pack what it points to"), "{what}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interpreted_programs_are_found_by_their_files() {
    let python = b"import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header('content-length', '6'); self.end_headers(); self.wfile.write(b'python')
    def log_message(self, *a): pass
http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()
";
    let node = b"require('http').createServer((q, s) => { s.setHeader('content-length', '4'); s.end('node') }).listen(process.env.PORT, '127.0.0.1')";
    let cases: Vec<(&str, &str, RevisionSpec, &str)> = vec![
        ("python3", "main.py", bytes("a.zip", zip(&[("main.py", 0o644, python)])), "python"),
        ("python3", "app.py", bytes("a.tar.gz", gzip(&tar(&[file("app.py", python)]))), "python"),
        ("python3", "one .py", bytes("hello.py", python.to_vec()), "python"),
        (
            "node",
            "scripts.start",
            bytes(
                "a.zip",
                zip(&[
                    ("package.json", 0o644, br#"{"scripts":{"start":"node src/s.js"}}"#),
                    ("src/s.js", 0o644, node),
                ]),
            ),
            "node",
        ),
        (
            "node",
            "scripts.start through a shell",
            bytes(
                "a.zip",
                zip(&[
                    ("package.json", 0o644, br#"{"scripts":{"start":"X=1 node src/s.js"}}"#),
                    ("src/s.js", 0o644, node),
                ]),
            ),
            "node",
        ),
        (
            "node",
            "main",
            bytes("a.zip", zip(&[("package.json", 0o644, br#"{"main":"s"}"#), ("s.js", 0o644, node)])),
            "node",
        ),
        ("node", "one .js", bytes("hello.js", node.to_vec()), "node"),
    ];
    let (_dir, runtime) = support::runtime();
    let runtime = Arc::new(runtime);
    for (needs, what, spec, expected) in cases {
        if support::missing(needs) {
            continue;
        }
        let started = start(&runtime, spec).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(fetch(&started.instance, "/").await.unwrap(), expected, "{what}");
        started.instance.stop(std::time::Duration::ZERO).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_deploys_of_one_package_unpack_it_once_and_the_last_to_go_removes_it() {
    let (dir, runtime) = support::runtime();
    let runtime = Arc::new(runtime);
    let package = zip(&[("run", 0o755, HELLO), ("data", 0o644, &[3u8; 100_000])]);
    let many: Vec<_> = (0..16)
        .map(|_| {
            let (runtime, spec) = (Arc::clone(&runtime), bytes("a.zip", package.clone()));
            tokio::spawn(async move { runtime.prepare(&spec).await.unwrap() })
        })
        .collect();
    let mut artifacts = Vec::new();
    for one in many {
        artifacts.push(one.await.unwrap());
    }
    assert!(artifacts.windows(2).all(|pair| pair[0].info() == pair[1].info()));
    assert!(artifacts[0].info().digest.starts_with("sha256:") && artifacts[0].info().bytes > 100_000);
    assert_eq!(left(dir.path()).len(), 1, "one package, nothing temporary");
    artifacts.truncate(1);
    runtime.quiesce().await;
    assert_eq!(left(dir.path()).len(), 1, "still used");
    artifacts.clear();
    runtime.quiesce().await;
    assert_eq!(left(dir.path()), Vec::<PathBuf>::new());
    // And it can come back.
    runtime.prepare(&bytes("a.zip", package)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hosts_share_a_store_and_neither_removes_what_the_other_uses() {
    let dir = tempfile::tempdir().unwrap();
    let open = || ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("store"))).unwrap();
    let (one, two) = (open(), open());
    let spec = bytes("a.zip", zip(&[("run", 0o755, HELLO)]));
    let (of_one, of_two) = (one.prepare(&spec).await.unwrap(), two.prepare(&spec).await.unwrap());
    drop(of_one);
    one.quiesce().await;
    assert_eq!(left(dir.path()).len(), 1, "two still has it");
    drop(of_two);
    two.quiesce().await;
    assert_eq!(left(dir.path()), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn what_a_dead_host_left_half_unpacked_is_cleared_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    // As a host that was killed while it unpacked leaves it: a lock that nobody holds, and a part of a package.
    let dead = store.join("runs/4711-1");
    fs::create_dir_all(dead.join("tmp/unpack-0/half")).unwrap();
    fs::write(dead.join("lock"), "").unwrap();
    fs::write(dead.join("stdin"), "").unwrap();
    let marker = fs::File::open(dead.join("stdin")).unwrap();
    let mut stray = std::process::Command::new("sleep").arg("1000").stdin(marker).spawn().unwrap();
    let _runtime = ProcessRuntime::new(ProcessConfig::in_store(&store)).unwrap();
    assert!(!dead.exists());
    let status = stray.wait().unwrap();
    assert!(!status.success(), "the stray process was killed: {status}");
}

#[tokio::test]
async fn a_host_that_started_nothing_ends_at_once_whatever_another_left() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    let mut config = ProcessConfig::in_store(&store);
    config.keep_packages = std::time::Duration::from_secs(600);
    let earlier = ProcessRuntime::new(config).unwrap();
    let source = Source::Bytes { name: "app".into(), bytes: HELLO.into() };
    drop(earlier.prepare(&RevisionSpec::new("process", source)).await.unwrap());
    drop(earlier);
    assert_eq!(left(dir.path()).len(), 1, "it is kept for the next");
    let next = ProcessRuntime::new(ProcessConfig::in_store(&store)).unwrap();
    tokio::time::timeout(std::time::Duration::from_secs(10), next.quiesce())
        .await
        .expect("nothing has to be started first");
}

#[tokio::test]
async fn a_changed_file_is_another_package_and_modes_are_made_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let project = dir.path().join("project");
    fs::create_dir(&project).unwrap();
    fs::write(project.join("run"), HELLO).unwrap();
    fs::set_permissions(project.join("run"), fs::Permissions::from_mode(0o4755)).unwrap();
    let (store, runtime) = support::runtime();
    let first = runtime.prepare(&spec(&project)).await.unwrap();
    let again = runtime.prepare(&spec(&project)).await.unwrap();
    assert_eq!(first.info().digest, again.info().digest);
    let unpacked = left(store.path()).remove(0).join("run");
    assert_eq!(fs::metadata(unpacked).unwrap().permissions().mode() & 0o7707, 0o705, "no set-user-id");
    fs::write(project.join("more"), "x").unwrap();
    assert_ne!(first.info().digest, runtime.prepare(&spec(&project)).await.unwrap().info().digest);
    // An archive says any mode.
    let set_user =
        Entry { name: "run", kind: tar::EntryType::Regular, mode: 0o6777, link: "", content: HELLO };
    let (store, runtime) = support::runtime();
    let _prepared = runtime.prepare(&bytes("a.tar", tar(&[set_user]))).await.unwrap();
    let unpacked = left(store.path()).remove(0).join("run");
    let mode = fs::metadata(unpacked).unwrap().permissions().mode();
    assert_eq!(mode & 0o7707, 0o705, "and nobody else may write it");
}

/// Whatever the bytes, nothing outside of the store is touched, nothing panics, nothing is left.
#[test]
fn mangled_archives_never_escape_or_leave_anything() {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Opened where it is used: its task belongs to this runtime.
    let (dir, process) = tokio.block_on(async { support::runtime() });
    let listing = || -> Vec<PathBuf> {
        fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path()).collect()
    };
    let before = listing();
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12);
    let cases = (any::<bool>(), edits, any::<prop::sample::Index>());
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let outcome = runner.run(&cases, |(gz, edits, cut)| {
        let mut archive = if gz {
            tar(&[file("run", HELLO), link("d/l", "../run"), file("d/f", &[1; 700])])
        } else {
            zip(&[("run", 0o755, HELLO), ("d/f", 0o644, &[1; 700])])
        };
        for (at, byte) in edits {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        archive.truncate(archive.len() / 2 + cut.index(archive.len() / 2 + 1));
        let name = if gz { "a.tar" } else { "a.zip" };
        tokio.block_on(async {
            drop(process.prepare(&bytes(name, archive)).await);
            process.quiesce().await;
        });
        prop_assert_eq!(left(dir.path()), Vec::<PathBuf>::new());
        prop_assert_eq!(&before, &listing());
        Ok(())
    });
    outcome.unwrap();
    drop(process);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lasting_store_keeps_what_was_in_use_over_a_restart_and_nothing_for_ever() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let open = |keep: std::time::Duration| {
        let mut config = ProcessConfig::in_store(dir.path().join("store"));
        config.keep_packages = keep;
        Arc::new(ProcessRuntime::new(config).unwrap())
    };
    let spec = |text: &str| {
        let source = Source::Bytes { name: "app".into(), bytes: format!("#!/bin/sh\n# {text}\n").into() };
        RevisionSpec::new("process", source)
    };
    let found = || -> Vec<u64> {
        let entries = fs::read_dir(dir.path().join("store/packages")).unwrap().flatten();
        entries.map(|entry| entry.metadata().unwrap().ino()).collect()
    };
    let runtime = open(std::time::Duration::from_secs(3600));
    let used = runtime.prepare(&spec("one")).await.unwrap();
    let first = found();
    assert_eq!(first.len(), 1);
    drop((used, runtime));
    let runtime = open(std::time::Duration::from_secs(3600));
    let again = runtime.prepare(&spec("one")).await.unwrap();
    assert_eq!(found(), first, "it was not unpacked again");
    drop((again, runtime));
    // Used by nobody in a later run it goes, after its time.
    let runtime = open(std::time::Duration::from_millis(50));
    let other = runtime.prepare(&spec("two")).await.unwrap();
    support::eventually("the first is gone", || found().len() == 1 && found() != first).await;
    drop(other);
    support::eventually("the second is gone", || found().is_empty()).await;
}
