//! The inline runtime passes the suite for runtimes.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::channel::Channel;
use sas_core::{Body, BoxError, Cx, Request, Response, RevisionSpec, Source};
use sas_runtime_inline::{Env, InlineRuntime};
use sas_testkit::runtime::{self, Fixtures};

fn spec(function: &str) -> RevisionSpec {
    RevisionSpec::new("inline", Source::Function(function.to_owned()))
}

async fn echo(request: Request, _cx: Cx) -> Result<Response, BoxError> {
    assert!(request.uri().path() != "/crash", "asked to");
    Ok(Response::new(Body::from(request.into_body().collect(64 << 20).await?)))
}

fn fixtures() -> Fixtures {
    let runtime = InlineRuntime::new()
        .with("echo", echo)
        .with("slow", |_, _| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            Response::new(Body::from("slow"))
        })
        .with("endless", |_, _| async {
            let (mut sender, body) = Channel::<Bytes, BoxError>::new(1);
            tokio::spawn(async move {
                while sender.send_data(Bytes::from_static(b"more and ")).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            });
            Response::new(Body::new(body))
        })
        .with("environment", |request: Request, _| async move {
            let env = request.extensions().get::<Env>().cloned().ok_or("no environment")?;
            let lines: Vec<String> =
                env.names().map(|name| format!("{name}={}", env.get(name).unwrap_or_default())).collect();
            Ok::<_, BoxError>(Response::new(Body::from(lines.join("\n"))))
        });
    let mut with_port = spec("echo");
    with_port.port = Some(80);
    Fixtures::new(Arc::new(runtime), spec("echo"))
        .slow(spec("slow"))
        .endless(spec("endless"))
        .crash_on_call(spec("echo"))
        .environment(spec("environment"))
        .invalid(spec("unknown"), "source.function")
        .invalid(with_port, "port")
        .invalid(RevisionSpec::new("inline", Source::Image("x".into())), "source")
}

/// A closure has no start that could fail or take time, no output of its own and no optional ability.
const SKIPPED: [&str; 10] = [
    "ends before it is ready",
    "a program that is never ready",
    "a dropped start of a program that is never ready",
    "ignores the polite stop",
    "output reaches the log sink",
    "usage is told",
    "suspend and resume",
    "suspended instance can be stopped",
    "stem becomes",
    "stem that is stopped",
];

#[tokio::test(start_paused = true)]
async fn inline_functions_pass_the_runtime_suite() {
    let report = runtime::suite(async || ((), fixtures())).await;
    println!("{report}");
    report.assert_passed_skipping(&SKIPPED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inline_functions_pass_the_runtime_suite_in_real_time() {
    runtime::suite(async || ((), fixtures())).await.assert_passed_skipping(&SKIPPED);
}
