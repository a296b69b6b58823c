use std::{
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use adopter::{runtime::FilterRuntime, scaler::OneSpare, store::JournalStore, trigger::Lines};
use sas::{core::Store, prelude::*};
use sas_testkit::{runtime, scaler, store, trigger};

fn spec(filter: &str) -> RevisionSpec {
    RevisionSpec::new("filter", Source::Function(filter.to_owned()))
}

fn filters() -> FilterRuntime {
    FilterRuntime::default()
        .with("echo", <[u8]>::to_vec)
        .with("slow", |_| b"slow".to_vec())
        .with("reverse", |body| body.iter().rev().copied().collect())
}

#[tokio::test(start_paused = true)]
async fn the_runtime_keeps_its_contract() {
    let mut slow = spec("slow");
    slow.options.insert("delay-ms".to_owned(), "500".to_owned());
    let mut late = spec("echo");
    late.options.insert("delay-ms".to_owned(), "soon".to_owned());
    let report = runtime::suite(async || {
        let fixtures = runtime::Fixtures::new(Arc::new(filters()), spec("echo"))
            .slow(slow.clone())
            .invalid(spec("unknown"), "source.function")
            .invalid(late.clone(), "delay-ms");
        ((), fixtures)
    })
    .await;
    println!("{report}");
    report.assert_passed();
}

async fn open(path: &Path) -> Arc<dyn Store> {
    for _ in 0..500 {
        match JournalStore::open(path).await {
            Ok(store) => return Arc::new(store),
            // Whoever held it is letting go of the file.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
    panic!("the file is still held after five seconds");
}

#[tokio::test]
async fn the_store_keeps_its_contract() {
    let report = store::suite(async || {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("journal");
        let subject = store::Subject::new(open(&path).await).reopen(move || {
            let path = path.clone();
            async move { open(&path).await }
        });
        (dir, subject)
    })
    .await;
    println!("{report}");
    // Nothing is skipped: it outlives its process.
    report.assert_passed_skipping(&[]);
}

#[tokio::test(start_paused = true)]
async fn the_source_keeps_its_contract() {
    let report = trigger::suite(async || {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lines");
        let source = Arc::new(Lines { path: path.clone() });
        let subject =
            trigger::Subject::new(source, Duration::from_secs(2)).feed(move || append(&path, "a line"));
        (dir, subject)
    })
    .await;
    println!("{report}");
    report.assert_passed();
}

fn append(path: &Path, line: &str) {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    writeln!(file.expect("opened"), "{line}").expect("written");
}

#[tokio::test]
async fn the_policy_keeps_its_contract() {
    let report = scaler::suite(async || ((), Arc::new(OneSpare) as Arc<dyn sas::core::Scaler>)).await;
    println!("{report}");
    report.assert_passed();
}

#[tokio::test]
async fn a_platform_is_made_of_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let builder = Platform::builder()
        .runtime(filters())
        .store(JournalStore::open(&dir.path().join("journal")).await.expect("opened"))
        .scaler(OneSpare);
    let platform = builder.build().await.expect("built");
    let mut reverse = spec("reverse");
    reverse.scaling.scaler = "one-spare".to_owned();
    platform.deploy("default", "reverse", reverse).await.expect("deployed");
    let answer =
        platform.call("default", "reverse", Request::new(Body::from("abc"))).await.expect("an answer");
    assert_eq!(answer.into_body().collect(16).await.expect("a body"), "cba");
    platform.shutdown(Duration::from_secs(5)).await;
}

/// What is between the fences of `page` as that language.
fn shown(page: &str, language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    page.split(&fence).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}

/// The dependencies of a manifest as a page shows them: from the repository and not from a path.
fn dependencies(manifest: &str) -> String {
    let (_, tables) = manifest.split_once("[dependencies]").expect("a table");
    let tables = tables.split("\n[profile").next().expect("the first part");
    let mut tables = format!("[dependencies]{}\n", tables.trim_end());
    for path in ["../../..", "../../sas-testkit", "../.."] {
        tables = tables.replace(&format!("path = \"{path}\""), "git = \"<this repository>\"");
    }
    tables
}

#[test]
fn the_pages_show_this_code() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read =
        |path: PathBuf| std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let readme = read(here.join("../../README.md"));
    let program = read(here.join("readme/src/main.rs"));
    assert!(shown(&readme, "rust").contains(&program), "readme/src/main.rs is not the README's program");
    let needs = dependencies(&read(here.join("readme/Cargo.toml")));
    let needs = needs.replace(r#", default-features = false, features = ["inline"]"#, "");
    assert!(shown(&readme, "toml").contains(&needs), "the README needs other dependencies:\n{needs}");
    let page = read(here.join("../../docs/backends.md"));
    let needs = dependencies(&read(here.join("Cargo.toml")));
    assert!(shown(&page, "toml").contains(&needs), "docs/backends.md needs other dependencies:\n{needs}");
    let backends = shown(&page, "rust");
    for part in ["runtime", "store", "trigger", "scaler"] {
        let code = read(here.join(format!("src/{part}.rs")));
        assert!(backends.contains(&code), "src/{part}.rs is not what docs/backends.md shows");
    }
}
