//! More requests than sandboxes.

use std::{sync::Arc, time::Duration};

use sas_core::{ErrorKind, Retry};
use sas_runtime_wasm::WasmConfig;

use crate::support::{HELLO, Stage, always, ask, call, cx, cx_within, get, post, spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_at_once_are_served_by_a_thousand_sandboxes() {
    let stage = Stage::new(WasmConfig { slots: 1_000, queue: 10_000, ..WasmConfig::default() });
    let hello = stage.instance(&spec(HELLO)).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..10_000 {
        let hello = Arc::clone(&hello);
        calls.spawn(async move { ask(&*hello, get("/")).await.0 });
    }
    let mut served = 0;
    while let Some(status) = calls.join_next().await {
        assert_eq!(status.unwrap(), 200);
        served += 1;
    }
    assert_eq!(served, 10_000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn past_sandboxes_and_queue_requests_are_refused_at_once_and_handed_back() {
    let stage = Stage::new(WasmConfig { slots: 20, queue: 50, ..WasmConfig::default() });
    let slow = stage.instance(&spec(always("slow"))).await;
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let slow = Arc::clone(&slow);
        calls.spawn(async move { call(&*slow, post("/", "kept"), &cx()).await });
    }
    let (mut served, mut refused) = (0, 0);
    while let Some(outcome) = calls.join_next().await {
        match outcome.unwrap() {
            Ok(_) => served += 1,
            Err(failed) => {
                assert_eq!(failed.error.kind, ErrorKind::Exhausted, "{}", failed.error);
                assert_eq!(failed.error.retry, Retry::After(Duration::from_secs(1)));
                assert!(failed.error.message.contains("20 sandboxes that a tenant may have"));
                let body = failed.unsent.expect("the request is handed back").into_body();
                assert_eq!(body.collect(10).await.unwrap(), "kept");
                refused += 1;
            }
        }
    }
    assert_eq!((served, refused), (70, 30));
}

#[tokio::test]
async fn who_waits_for_a_sandbox_leaves_at_its_deadline() {
    let stage = Stage::new(WasmConfig { slots: 1, queue: 5, ..WasmConfig::default() });
    let slow = stage.instance(&spec(always("slow"))).await;
    let long = cx();
    let running = call(&*slow, get("/"), &long);
    let short = cx_within(Duration::from_millis(50));
    let (first, second) = tokio::join!(running, call(&*slow, get("/"), &short));
    assert_eq!(first.unwrap().status(), 200);
    let failed = second.unwrap_err();
    assert_eq!(failed.error.kind, ErrorKind::Timeout, "{}", failed.error);
    assert!(failed.unsent.is_some() && failed.error.message.contains("one of the 1 sandboxes"));
}

#[tokio::test]
async fn many_functions_live_side_by_side() {
    let stage = Stage::new(WasmConfig { slots: 50, ..WasmConfig::default() });
    for at in 0..100 {
        let code = HELLO.replace("hello, world!", &format!("hello, {at:05}!"));
        let instance = stage.instance(&spec(code)).await;
        assert_eq!(ask(&*instance, get("/")).await.1, format!("hello, {at:05}!\n"));
    }
}
