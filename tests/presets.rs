//! What the default preset does without a word of configuration.

use std::{path::Path, process::Command, time::Duration};

use sas::{http, prelude::*};

const APP: &str = r#"
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
public class App {
    public static void main(String[] args) throws Exception {
        int port = Integer.parseInt(System.getenv("PORT"));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 0);
        server.createContext("/", exchange -> {
            byte[] body = "hello".getBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
"#;

/// Runs a tool of the JDK; false when it is not installed.
#[allow(clippy::print_stdout, reason = "the test's output says why it was skipped")]
fn tool(name: &str, args: &[&str], dir: &Path) -> bool {
    match Command::new(name).args(args).current_dir(dir).status() {
        Ok(status) => {
            assert!(status.success(), "{name} {args:?}: {status}");
            true
        }
        Err(error) => {
            println!("skipped: {name}: {error}: no JDK is installed");
            false
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jar_starts_from_a_stem_without_a_word_of_configuration() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(dir.path().join("App.java"), APP).expect("written");
    if !tool("javac", &["-d", "classes", "App.java"], dir.path())
        || !tool(
            "jar",
            &["--create", "--file", "app.jar", "--main-class", "App", "-C", "classes", "."],
            dir.path(),
        )
    {
        return;
    }
    let runtime =
        ProcessRuntime::new(ProcessConfig::in_store(dir.path().join("unpacked"))).expect("a runtime");
    let platform = Platform::builder().runtime(runtime).build().await.expect("built");
    let spec = RevisionSpec::new("process", Source::Path(dir.path().join("app.jar")));
    platform.deploy("default", "app", spec).await.expect("deployed");

    let limit = tokio::time::Instant::now() + Duration::from_secs(60);
    while !platform.pool().stems().iter().any(|stems| stems.ready > 0) {
        assert!(tokio::time::Instant::now() < limit, "no stem booted: {:?}", platform.pool().stems());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let request = http::Request::get("/").body(Body::empty()).expect("a valid request");
    let answer = platform.call("default", "app", request).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    // The slot is held to the last byte of the answer.
    assert_eq!(answer.into_body().collect(64).await.expect("a body"), "hello");
    let key = platform.control().revision_key("default", "app", "app-00001").expect("registered");
    let start = platform.pool().instances(key)[0].start.expect("it has started");
    assert!(start.from_stem, "{start:?}");
    let stems = platform.pool().stems().remove(0);
    assert_eq!((stems.used, stems.missed), (1, 0), "{stems:?}");

    let report = platform.shutdown(Duration::from_secs(10)).await;
    assert!(report.drained, "{report:?}");
}
