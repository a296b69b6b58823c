//! Public applications, as their registries give them, and small projects of the same layouts: deployed by
//! `sas.dev/package` alone, they answer. `tests/apps/README.md` lists them; `tests/apps/fetch` fetches them.

mod shared;

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use shared::{PlatformProcess, call, call_admin};

/// Name, the file to deploy of its directory ("" for all of it), a path to ask, and what its answer holds.
const APPS: [(&str, &str, &str, &str); 13] = [
    ("httpbin", "", "/get?a=1", "\"args\":{\"a\":\"1\"}"),
    ("datasette", "", "/-/versions.json", "\"datasette\""),
    ("django", "", "/", "{\"django\": \"works\"}"),
    ("fastapi", "", "/items/7?q=x", "{\"item\":7,\"q\":\"x\"}"),
    ("json-server", "", "/posts/1", "a title"),
    ("verdaccio", "", "/-/ping", "{}"),
    ("express", "", "/", "{\"version\":\"1.2.3\",\"preloaded\":\"yes\"}"),
    ("fastify", "", "/", "{\"fastify\":\"works\"}"),
    ("wiremock", "", "/hello", "from a stub"),
    ("zipkin", "zipkin-server-3.4.2-exec.jar", "/health", "\"status\""),
    ("spring", "target/shop-1.0.jar", "/", "from Spring Boot"),
    ("exploded", "", "/", "from Spring Boot"),
    ("scripted", "", "/", "by its start script"),
];

/// Where the applications are kept between runs: beside what cargo builds.
fn directory() -> PathBuf {
    if let Some(named) = std::env::var_os("SAS_REAL_APPS_DIR") {
        return named.into();
    }
    let tests = std::env::current_exe().expect("its path");
    tests.ancestors().nth(3).expect("the target directory").join("real-apps")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn public_applications_answer_as_they_are() {
    if std::env::var_os("SAS_REAL_APPS").is_none() {
        println!("skipped: fetches applications from PyPI, npm and Maven Central; set SAS_REAL_APPS=1");
        return;
    }
    let apps = directory();
    let fetch = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps/fetch");
    let fetched = Command::new("timeout").arg("600").arg(&fetch).arg(&apps).status().expect("it runs");
    assert!(fetched.success(), "tests/apps/fetch: {fetched}");

    let mut manifest = String::new();
    for (name, file, _, _) in APPS {
        let package = apps.join(name).join(file);
        write!(
            manifest,
            "---\napiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations:\n    \
             sas.dev/package: {}\nspec:\n  template:\n    spec:\n      containers:\n        - image: \"\"\n",
            package.display()
        )
        .expect("text");
    }
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = apps.join("services.yaml");
    std::fs::write(&path, manifest).expect("written");
    let state = dir.path().join("state");
    let arguments = ["--state", state.to_str().expect("UTF-8"), path.to_str().expect("UTF-8")];
    let platform = PlatformProcess::start(&arguments);
    let mut wrong = Vec::new();
    for (name, _, path, expected) in APPS {
        let began = tokio::time::Instant::now();
        let host = format!("{name}.default.localhost");
        let answer =
            tokio::time::timeout(Duration::from_secs(120), call(platform.listen, "GET", &host, path, ""));
        match answer.await {
            Ok(Ok(answer)) if answer.status == 200 && answer.body.contains(expected) => {
                println!(
                    "{name}: answered {:.1} s after it was asked, from nothing",
                    began.elapsed().as_secs_f64()
                );
            }
            Ok(Ok(answer)) => wrong.push(format!("{name}: {} {}", answer.status, answer.body)),
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    for service in wrong.clone() {
        let name = service.split(':').next().unwrap_or_default();
        let logs = call_admin(platform.admin, "GET", &format!("/v1/services/default/{name}/logs"), "").await;
        wrong.push(format!("{logs:?}"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(platform.terminate().success());
}
