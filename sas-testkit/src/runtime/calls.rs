//! Requests to a running instance.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt as _, channel::Channel};
use sas_core::{Body, BoxError, ErrorKind, Retry};
use tokio::time::Instant;

use super::kit::{Kit, fixture, post};
use crate::{
    check::{Stop, Verdict, drop_after_polls, ensure, within},
    client,
};

pub(super) async fn one(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    for round in 0..5 {
        kit.echoes(&*instance, format!("call {round}")).await?;
    }
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn concurrent(kit: &Kit) -> Verdict {
    let at_once = kit.at_once(32);
    if at_once < 2 {
        return Err(Stop::skip("an instance takes one request at a time (`max_concurrency`)"));
    }
    let instance = kit.echo().await?;
    for round in 0..4 {
        let calls = (0..at_once).map(|call| kit.echoes(&*instance, format!("call {round}/{call}")));
        for echoed in join_all(calls).await {
            echoed?;
        }
    }
    kit.stop(&*instance, Duration::from_secs(1)).await
}

/// Bytes that differ everywhere, so that a piece that is lost, doubled or swapped shows.
fn pattern(bytes: usize) -> Bytes {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut out = Vec::with_capacity(bytes + 8);
    while out.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(bytes);
    out.into()
}

pub(super) async fn large(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    for bytes in [64 << 10, 4 << 20] {
        kit.echoes(&*instance, pattern(bytes)).await?;
    }
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn streamed(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    let whole = pattern(200_000);
    let (mut sender, body) = Channel::<Bytes, BoxError>::new(2);
    let send = async {
        for (at, piece) in whole.chunks(7_001).enumerate() {
            if sender.send_data(Bytes::copy_from_slice(piece)).await.is_err() {
                return Err(Stop::fail(format!("the body was dropped after {at} pieces")));
            }
            tokio::task::yield_now().await;
        }
        drop(sender);
        Ok(())
    };
    let request = post("/", Body::new(body));
    let (sent, back) = tokio::join!(send, kit.answer(&*instance, request));
    let back = back?;
    sent?;
    ensure!(back == whole, "sent {} bytes in pieces, got {} back that differ", whole.len(), back.len());
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn unusual(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    kit.echoes(&*instance, "").await?;
    let mut request = post("/a/b%20c?x=1&y=%26", Body::from("put"));
    *request.method_mut() = http::Method::PUT;
    let back = kit.answer(&*instance, request).await?;
    ensure!(back == "put", "a PUT was answered with {back:?}");
    let mut request = post("/", Body::from("{}"));
    for (name, value) in [("content-type", "application/json"), ("x-long", "0123456789abcdef")] {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    let back = kit.answer(&*instance, request).await?;
    ensure!(back == "{}", "a request with headers was answered with {back:?}");
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn deadline(kit: &Kit) -> Verdict {
    let slow = fixture(&kit.fixtures.slow, "slow")?;
    let instance = kit.start(slow).await?;
    if instance.endpoint().is_some() {
        kit.stop(&*instance, Duration::ZERO).await?;
        return Err(Stop::skip("behind an endpoint deadlines belong to the data plane"));
    }
    let before = Instant::now();
    let cx = kit.cx_within(Duration::from_millis(100));
    let call = instance.call(post("/", Body::empty()), &cx);
    let outcome = within(Duration::from_secs(5), "the end of a call after its deadline", call).await?;
    let Err(failed) = outcome else {
        return Err(Stop::fail("a call that takes 500 ms was answered within a deadline of 100 ms"));
    };
    ensure!(failed.error.kind == ErrorKind::Timeout, "the kind is {:?}, not Timeout", failed.error.kind);
    let took = before.elapsed();
    ensure!(took >= Duration::from_millis(95), "gave up after {took:?}, before the deadline of 100 ms");
    // In time means earlier than the answer would have come; wide, for machines that are busy.
    ensure!(took < Duration::from_millis(480), "gave up after {took:?}, the deadline was 100 ms");
    kit.stop(&*instance, Duration::ZERO).await
}

pub(super) async fn dropped(kit: &Kit) -> Verdict {
    let slow = fixture(&kit.fixtures.slow, "slow")?;
    let instance = kit.start(slow).await?;
    let cx = kit.cx();
    for polls in [1, 2, 8] {
        let call = client::call(&*instance, post("/", Body::from("x")), &cx);
        let ended = drop_after_polls(polls, call).await;
        ensure!(ended.is_none(), "a call of 500 ms ended within {polls} polls");
    }
    let back = kit.answer(&*instance, post("/", Body::empty())).await?;
    ensure!(back == "slow", "after dropped calls the answer is {back:?}");
    kit.stop(&*instance, Duration::from_secs(2)).await?;
    kit.exit_told_once(instance.id()).await
}

pub(super) async fn dropped_body(kit: &Kit) -> Verdict {
    let endless = fixture(&kit.fixtures.endless, "endless")?;
    let instance = kit.start(endless).await?;
    let cx = kit.cx();
    for _ in 0..kit.at_once(3).max(2) {
        let response = within(
            Duration::from_secs(10),
            "the head of an endless answer",
            client::call(&*instance, post("/", Body::empty()), &cx),
        )
        .await?
        .map_err(|failed| Stop::fail(format!("a call failed: {}", failed.0)))?;
        let mut body = response.into_body();
        for _ in 0..3 {
            let frame = within(Duration::from_secs(10), "a frame of an endless answer", body.frame()).await?;
            ensure!(matches!(frame, Some(Ok(_))), "an endless answer ended: {frame:?}");
        }
    }
    // Nothing runs any more, so a polite stop needs none of its grace.
    let before = Instant::now();
    kit.stop(&*instance, Duration::from_secs(20)).await?;
    let took = before.elapsed();
    ensure!(took < Duration::from_secs(15), "dropped answers held the stop for {took:?}");
    kit.exit_told_once(instance.id()).await
}

pub(super) async fn graceful(kit: &Kit) -> Verdict {
    let slow = fixture(&kit.fixtures.slow, "slow")?;
    let instance = kit.start(slow).await?;
    if instance.endpoint().is_some() {
        kit.stop(&*instance, Duration::ZERO).await?;
        return Err(Stop::skip("behind an endpoint the program itself decides what it finishes"));
    }
    let running = kit.answer(&*instance, post("/", Body::empty()));
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        kit.stop(&*instance, Duration::from_secs(20)).await
    };
    let (answered, stopped) = tokio::join!(running, stopping);
    let body = answered.map_err(|stop| match stop {
        Stop::Fail(message) => Stop::fail(format!("a call that was running at the stop: {message}")),
        skip @ Stop::Skip(_) => skip,
    })?;
    ensure!(body == "slow", "a call that was running at the stop was answered {body:?}");
    stopped?;
    kit.exit_told_once(instance.id()).await
}

pub(super) async fn after_stop(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    kit.stop(&*instance, Duration::ZERO).await?;
    let cx = kit.cx();
    if instance.endpoint().is_some() {
        let call = client::call(&*instance, post("/", Body::from("late")), &cx);
        let outcome =
            within(Duration::from_secs(10), "the failure of a call on a gone instance", call).await?;
        ensure!(outcome.is_err(), "an instance that is gone answered at {:?}", instance.endpoint());
        return Ok(());
    }
    let call = instance.call(post("/late", Body::from("late")), &cx);
    let outcome = within(Duration::from_secs(10), "the failure of a call on a gone instance", call).await?;
    let Err(failed) = outcome else {
        return Err(Stop::fail("an instance that is gone answered"));
    };
    let Some(request) = failed.unsent else {
        return Err(Stop::fail("the request was not handed back, though nothing of it was used"));
    };
    ensure!(request.uri().path() == "/late", "another request was handed back: {}", request.uri());
    let body = request.into_body().collect(10).await;
    ensure!(body.as_ref().is_ok_and(|body| body == "late"), "its body was handed back as {body:?}");
    ensure!(
        failed.error.retry == Retry::AnotherInstance,
        "retry is {:?}, though another instance may do it",
        failed.error.retry
    );
    Ok(())
}
