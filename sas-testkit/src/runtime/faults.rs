//! Programs that misbehave, and what they are told and tell.

use std::time::Duration;

use futures_util::future::join_all;
use sas_core::{Body, EnvValue, ErrorKind};
use tokio::time::Instant;

use super::kit::{Kit, STOP_LIMIT, fixture, post};
use crate::{
    check::{Stop, Verdict, drop_after_polls, ensure, eventually, within},
    client,
};

pub(super) async fn crash_on_call(kit: &Kit) -> Verdict {
    let spec = fixture(&kit.fixtures.crash_on_call, "crash_on_call")?;
    let (one, other) = (kit.start(spec).await?, kit.start(spec).await?);
    kit.echoes(&*one, "before").await?;
    let cx = kit.cx();
    let failed = match one.endpoint() {
        Some(endpoint) => {
            let call =
                async { client::whole(client::send(endpoint, post("/crash", Body::empty())).await?).await };
            within(Duration::from_secs(10), "the end of a call that crashes", call).await?.is_err()
        }
        None => {
            let call = one.call(post("/crash", Body::empty()), &cx);
            match within(Duration::from_secs(10), "the end of a call that crashes", call).await? {
                Ok(_) => false,
                Err(failed) => {
                    let kind = failed.error.kind;
                    ensure!(kind == ErrorKind::Crashed, "the kind is {kind:?}, not Crashed");
                    ensure!(failed.unsent.is_none(), "the request was handed back, though it was used");
                    true
                }
            }
        }
    };
    ensure!(failed, "a call that crashes its program was answered");
    kit.echoes(&*other, "untouched").await?;
    // A runtime may lose the call alone (a panic that was caught, a trap) or the instance. It says so either way.
    if one.endpoint().is_some() {
        kit.exit_told(one.id()).await?;
    } else {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if kit.told.exits_of(one.id()) == 0 {
            kit.echoes(&*one, "after").await?;
        }
    }
    kit.stop(&*one, Duration::ZERO).await?;
    kit.exit_told_once(one.id()).await?;
    ensure!(kit.told.exits_of(other.id()) == 0, "the exit of the other was told");
    kit.stop(&*other, Duration::ZERO).await?;
    drop((one, other));
    kit.nothing_left().await
}

pub(super) async fn crash_on_start(kit: &Kit) -> Verdict {
    let spec = fixture(&kit.fixtures.crash_on_start, "crash_on_start")?;
    let request = kit.request(spec).await?;
    let id = request.id;
    let before = Instant::now();
    let limit = kit.fixtures.start_limit + Duration::from_secs(5);
    let outcome =
        within(limit, "the end of a start that crashes", kit.fixtures.runtime.start(request)).await?;
    let Err(error) = outcome else {
        return Err(Stop::fail("a program that ended before it was ready counts as started"));
    };
    ensure!(error.kind == ErrorKind::Crashed, "the kind is {:?}, not Crashed: {}", error.kind, error.chain());
    let took = before.elapsed();
    ensure!(took < kit.fixtures.start_limit / 2, "it took {took:?} to see that the program had ended");
    kit.quiesce().await?;
    ensure!(kit.told.exits_of(id) <= 1, "its exit was told more than once");
    kit.nothing_left().await
}

pub(super) async fn never_ready(kit: &Kit) -> Verdict {
    let spec = fixture(&kit.fixtures.never_ready, "never_ready")?;
    let mut request = kit.request(spec).await?;
    let limit = Duration::from_millis(700);
    request.deadline = Instant::now() + limit;
    let id = request.id;
    let before = Instant::now();
    let outcome =
        within(limit + STOP_LIMIT, "the end of a start at its deadline", kit.fixtures.runtime.start(request))
            .await?;
    let Err(error) = outcome else {
        return Err(Stop::fail("a program that is never ready counts as started"));
    };
    ensure!(error.kind == ErrorKind::Timeout, "the kind is {:?}, not Timeout: {}", error.kind, error.chain());
    let took = before.elapsed();
    ensure!(took >= limit - Duration::from_millis(20), "gave up after {took:?}; the deadline was {limit:?}");
    kit.quiesce().await?;
    ensure!(kit.told.exits_of(id) <= 1, "its exit was told more than once");
    kit.nothing_left().await
}

pub(super) async fn dropped_never_ready(kit: &Kit) -> Verdict {
    let spec = fixture(&kit.fixtures.never_ready, "never_ready")?;
    for polls in [1, 2, 4, 16, 64] {
        let request = kit.request(spec).await?;
        let ended = drop_after_polls(polls, kit.fixtures.runtime.start(request)).await;
        ensure!(ended.is_none(), "a start that can't succeed ended within {polls} polls");
    }
    kit.nothing_left().await
}

pub(super) async fn ignores_stop(kit: &Kit) -> Verdict {
    let spec = fixture(&kit.fixtures.ignores_stop, "ignores_stop")?;
    let instance = kit.start(spec).await?;
    kit.echoes(&*instance, "x").await?;
    let grace = Duration::from_millis(300);
    kit.stop(&*instance, grace).await?;
    kit.exit_told_once(instance.id()).await?;
    drop(instance);
    kit.nothing_left().await
}

pub(super) async fn stop_under_load(kit: &Kit) -> Verdict {
    let spec = match &kit.fixtures.slow {
        Some(slow) => slow,
        None => fixture(&kit.fixtures.endless, "slow or endless")?,
    };
    let instance = kit.start(spec).await?;
    let cx = kit.cx();
    let calls = (0..kit.at_once(4)).map(|_| async {
        match client::call(&*instance, post("/", Body::empty()), &cx).await {
            Ok(response) => client::whole(response).await.map(drop),
            Err(failed) => Err(failed),
        }
    });
    let stopping = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let before = Instant::now();
        kit.stop(&*instance, Duration::ZERO).await?;
        Ok::<_, Stop>(before.elapsed())
    };
    let everything = async { tokio::join!(join_all(calls), stopping) };
    let (_, stopped) =
        within(Duration::from_secs(30), "the end of the calls on a stopped instance", everything).await?;
    let took = stopped?;
    ensure!(took < Duration::from_secs(5), "a stop without grace took {took:?}");
    kit.exit_told_once(instance.id()).await?;
    drop(instance);
    kit.nothing_left().await
}

pub(super) async fn chatty(kit: &Kit) -> Verdict {
    let spec = fixture(&kit.fixtures.chatty, "chatty")?;
    let instance = kit.start(spec).await?;
    for _ in 0..3 {
        kit.echoes(&*instance, "x").await?;
    }
    let written = |line: &[u8]| line.windows(18).any(|part| part == b"conformance-output");
    let count = || kit.told.lines.lock().iter().filter(|(.., line)| written(line)).count();
    eventually(Duration::from_secs(5), "a line for each of three requests", || count() >= 3).await?;
    for (of, revision, _, line) in kit.told.lines.lock().iter() {
        ensure!(*of == instance.id(), "a line came under instance {of}, not {}", instance.id());
        ensure!(*revision == kit.revision(), "a line came under revision {revision:?}");
        ensure!(!line.ends_with(b"\n"), "a line came with its end");
    }
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    ensure!(count() == 3, "{} lines came for three requests", count());
    Ok(())
}

const SECRET: &str = "conformance-secret-7d1f";

async fn with_environment(
    kit: &Kit,
    spec: &sas_core::RevisionSpec,
) -> Verdict<std::sync::Arc<dyn sas_core::Instance>> {
    let mut spec = spec.clone();
    spec.env.insert("CONFORMANCE_PLAIN".into(), EnvValue::Literal("plain value = with signs".into()));
    spec.env.insert("CONFORMANCE_SECRET".into(), EnvValue::Secret("some/reference".into()));
    let request = kit.request(&spec).await?;
    kit.start_with(Kit::with_secret(request, "CONFORMANCE_SECRET", SECRET)).await
}

pub(super) async fn environment(kit: &Kit) -> Verdict {
    let spec = fixture(&kit.fixtures.environment, "environment")?;
    let instance = with_environment(kit, spec).await?;
    let body = kit.answer(&*instance, post("/", Body::empty())).await?;
    let text = String::from_utf8_lossy(&body);
    for line in ["CONFORMANCE_PLAIN=plain value = with signs", &format!("CONFORMANCE_SECRET={SECRET}")] {
        ensure!(text.lines().any(|have| have == line), "{line:?} is not in its environment:\n{text}");
    }
    // Cargo sets these for every test; whatever has them got them from the host.
    let leaked: Vec<&str> = text.lines().filter(|line| line.starts_with("CARGO_")).collect();
    ensure!(leaked.is_empty(), "the host's environment reached the instance: {leaked:?}");
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn secrets_hidden(kit: &Kit) -> Verdict {
    let spec = kit.fixtures.environment.as_ref().unwrap_or(&kit.fixtures.echo);
    let instance = with_environment(kit, spec).await?;
    for shown in [format!("{instance:?}"), format!("{:?}", kit.fixtures.runtime)] {
        ensure!(!shown.contains(SECRET), "a secret is in Debug output: {shown}");
    }
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    for (.., line) in kit.told.lines.lock().iter() {
        ensure!(!String::from_utf8_lossy(line).contains(SECRET), "a secret is in the log");
    }
    Ok(())
}
