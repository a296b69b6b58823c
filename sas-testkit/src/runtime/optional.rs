//! Abilities that a runtime may have, by its [`sas_core::Capabilities`].

use std::{sync::Arc, time::Duration};

use sas_core::{ErrorKind, StemClass};

use super::kit::Kit;
use crate::check::{Stop, Verdict, drop_after_polls, ensure, eventually, within};

fn skip(flag: &str) -> Stop {
    Stop::skip(format!("`Capabilities::{flag}` is false"))
}

pub(super) async fn usage(kit: &Kit) -> Verdict {
    if !kit.fixtures.runtime.capabilities().usage {
        return Err(skip("usage"));
    }
    let instance = kit.echo().await?;
    eventually(Duration::from_secs(5), "a usage sample", || instance.usage().is_some()).await?;
    let mut before = 0;
    for round in 0..5 {
        kit.echoes(&*instance, vec![b'x'; 100_000]).await?;
        let Some(usage) = instance.usage() else {
            return Err(Stop::fail(format!("no usage in round {round}, though there was one before")));
        };
        ensure!(usage.cpu_ns >= before, "CPU time ran backwards, from {before} to {} ns", usage.cpu_ns);
        ensure!(usage.memory_bytes > 0, "a running instance uses no memory");
        before = usage.cpu_ns;
    }
    ensure!(before > 0, "after half a megabyte of echoes it used no CPU time");
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn suspend(kit: &Kit) -> Verdict {
    if !kit.fixtures.runtime.capabilities().suspend {
        return Err(skip("suspend"));
    }
    let instance = kit.echo().await?;
    let failed =
        |what: &'static str| move |error: sas_core::Error| Stop::fail(format!("{what}: {}", error.chain()));
    for _ in 0..2 {
        for _ in 0..2 {
            within(Duration::from_secs(5), "suspend", instance.suspend())
                .await?
                .map_err(failed("suspend"))?;
        }
        if kit.fixtures.runtime.capabilities().usage {
            let before = instance.usage().map(|usage| usage.cpu_ns);
            tokio::time::sleep(Duration::from_millis(50)).await;
            let after = instance.usage().map(|usage| usage.cpu_ns);
            let still = before.zip(after).is_none_or(|(before, after)| after - before < 10_000_000);
            ensure!(still, "a suspended instance used CPU: {before:?} to {after:?} ns");
        }
        for _ in 0..2 {
            within(Duration::from_secs(5), "resume", instance.resume()).await?.map_err(failed("resume"))?;
        }
        kit.echoes(&*instance, "awake").await?;
    }
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    let late = within(Duration::from_secs(5), "suspend of a gone instance", instance.suspend()).await?;
    ensure!(late.is_err(), "an instance that is gone was suspended");
    kit.exit_told_once(instance.id()).await
}

pub(super) async fn stop_suspended(kit: &Kit) -> Verdict {
    if !kit.fixtures.runtime.capabilities().suspend {
        return Err(skip("suspend"));
    }
    let instance = kit.echo().await?;
    instance.suspend().await.map_err(|error| Stop::fail(format!("suspend: {}", error.chain())))?;
    kit.stop(&*instance, Duration::from_millis(300)).await?;
    kit.exit_told_once(instance.id()).await?;
    drop(instance);
    kit.nothing_left().await
}

async fn class(kit: &Kit) -> Verdict<StemClass> {
    if !kit.fixtures.runtime.capabilities().stems {
        return Err(skip("stems"));
    }
    let artifact = kit.prepare(&kit.fixtures.echo).await?;
    artifact.info().stem.clone().ok_or_else(|| Stop::skip("no stem can become the fixture `echo`"))
}

pub(super) async fn stem(kit: &Kit) -> Verdict {
    let class = class(kit).await?;
    let request = kit.stem_request(class);
    let stem_id = request.id;
    let limit = kit.fixtures.start_limit + Duration::from_secs(5);
    let stem = within(limit, "the boot of a stem", kit.fixtures.runtime.start_stem(request))
        .await?
        .map_err(|error| Stop::fail(format!("start_stem: {}", error.chain())))?;
    let request = kit.request(&kit.fixtures.echo).await?;
    let id = request.id;
    let instance = within(limit, "the specialisation", stem.specialize(request))
        .await?
        .map_err(|error| Stop::fail(format!("specialize: {}", error.chain())))?;
    ensure!(instance.id() == id, "the id is {}, asked for was {id}", instance.id());
    kit.echoes(&*instance, "from a stem").await?;
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    kit.exit_told_once(id).await?;
    ensure!(kit.told.exits_of(stem_id) == 0, "the exit was told under the stem's id, too");
    drop(instance);
    kit.nothing_left().await
}

pub(super) async fn stem_ends(kit: &Kit) -> Verdict {
    let class = class(kit).await?;
    let booted = || async {
        kit.fixtures
            .runtime
            .start_stem(kit.stem_request(class.clone()))
            .await
            .map_err(|error| Stop::fail(format!("start_stem: {}", error.chain())))
    };
    let stem = booted().await?;
    within(Duration::from_secs(10), "the stop of a stem", stem.stop())
        .await?
        .map_err(|error| Stop::fail(format!("stop of a stem: {}", error.chain())))?;
    drop(booted().await?);
    let _ = drop_after_polls(2, kit.fixtures.runtime.start_stem(kit.stem_request(class.clone()))).await;
    let stem = booted().await?;
    let request = kit.request(&kit.fixtures.echo).await?;
    if let Some(Ok(instance)) = drop_after_polls(1, stem.specialize(request)).await {
        kit.stop(&*instance, Duration::ZERO).await?;
    }
    kit.nothing_left().await
}

pub(super) async fn unsupported(kit: &Kit) -> Verdict {
    let runtime = &kit.fixtures.runtime;
    let capabilities = runtime.capabilities();
    let refused = |what: &str, kind: Option<ErrorKind>| match kind {
        Some(ErrorKind::Unsupported) => Ok(()),
        other => Err(Stop::fail(format!("{what} is not claimed, but answered {other:?}, not Unsupported"))),
    };
    let kind = |error: sas_core::Error| error.kind;
    let mut looked = 0;
    if !capabilities.stems {
        let stem = runtime.start_stem(kit.stem_request(StemClass(Arc::from("conformance/none")))).await;
        refused("start_stem", stem.err().map(kind))?;
        looked += 1;
    }
    if !capabilities.exec {
        let instance = kit.echo().await?;
        refused("exec", instance.exec(&["true".to_owned()]).await.err().map(kind))?;
        kit.stop(&*instance, Duration::from_secs(1)).await?;
        looked += 1;
    }
    if !capabilities.suspend {
        let instance = kit.echo().await?;
        refused("suspend", instance.suspend().await.err().map(kind))?;
        refused("resume", instance.resume().await.err().map(kind))?;
        kit.echoes(&*instance, "x").await?;
        kit.stop(&*instance, Duration::from_secs(1)).await?;
        looked += 1;
    }
    if looked == 0 { Err(Stop::skip("every ability is claimed")) } else { Ok(()) }
}
