//! From `prepare` to the end.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use sas_core::{Artifact, ArtifactInfo, ErrorKind, StartPhase};
use tokio::time::Instant;

use super::kit::Kit;
use crate::check::{Stop, Verdict, drop_after_polls, ensure, within};

pub(super) async fn constant(kit: &Kit) -> Verdict {
    let runtime = &kit.fixtures.runtime;
    let (name, capabilities) = (runtime.name(), runtime.capabilities());
    ensure!(!name.is_empty(), "the name is empty");
    let instance = kit.echo().await?;
    ensure!(runtime.name() == name, "the name changed to {:?}", runtime.name());
    ensure!(runtime.capabilities() == capabilities, "the capabilities changed");
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn prepare_twice(kit: &Kit) -> Verdict {
    let first = kit.prepare(&kit.fixtures.echo).await?;
    let second = kit.prepare(&kit.fixtures.echo).await?;
    ensure!(
        first.info().digest == second.info().digest,
        "two digests of the same code: {:?} and {:?}",
        first.info().digest,
        second.info().digest
    );
    let digest = &first.info().digest;
    let well_formed = digest.is_empty()
        || digest
            .strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()));
    ensure!(well_formed, "the digest {digest:?} is neither empty nor sha256: and 64 hex digits");
    // What both share lives as long as the last clone.
    drop(first);
    let request = kit.request_for(kit.deployed(&kit.fixtures.echo, second));
    let instance = kit.start_with(request).await?;
    kit.echoes(&*instance, "after the first artifact was dropped").await?;
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn prepare_refuses(kit: &Kit) -> Verdict {
    if kit.fixtures.invalid.is_empty() {
        return Err(Stop::skip("no fixture `invalid`"));
    }
    for (spec, mentions) in &kit.fixtures.invalid {
        let prepared =
            within(Duration::from_secs(60), "prepare of an invalid spec", kit.fixtures.runtime.prepare(spec))
                .await?;
        match prepared {
            Ok(_) => return Err(Stop::fail(format!("accepted a spec that is wrong in {mentions:?}"))),
            Err(error) => {
                ensure!(
                    error.kind == ErrorKind::InvalidSpec,
                    "the kind for a spec that is wrong in {mentions:?} is {:?}: {}",
                    error.kind,
                    error.chain()
                );
                ensure!(
                    error.chain().contains(mentions),
                    "{:?} does not mention {mentions:?}",
                    error.chain()
                );
            }
        }
    }
    Ok(())
}

pub(super) async fn dropped_prepare(kit: &Kit) -> Verdict {
    for polls in 0..8 {
        let prepared = drop_after_polls(polls, kit.fixtures.runtime.prepare(&kit.fixtures.echo)).await;
        if let Some(prepared) = prepared {
            prepared.map_err(|error| Stop::fail(format!("prepare: {}", error.chain())))?;
            break;
        }
    }
    let instance = kit.echo().await?;
    kit.echoes(&*instance, "after dropped attempts").await?;
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    drop(instance);
    kit.nothing_left().await
}

pub(super) async fn serves_at_once(kit: &Kit) -> Verdict {
    for round in 0..3 {
        let instance = kit.echo().await?;
        // The very first try counts: a client that has to knock twice found a start that resolved too early.
        kit.echoes(&*instance, format!("round {round}")).await?;
        kit.stop(&*instance, Duration::from_secs(1)).await?;
    }
    Ok(())
}

pub(super) async fn try_start(kit: &Kit) -> Verdict {
    let request = kit.request(&kit.fixtures.echo).await?;
    let id = request.id;
    let Some(started) = kit.fixtures.runtime.try_start(&request) else {
        return Err(Stop::skip("starts of this runtime take time (`try_start` says `None`)"));
    };
    let instance = started.map_err(|error| Stop::fail(format!("try_start: {}", error.chain())))?;
    ensure!(instance.id() == id, "the id is {}, asked for was {id}", instance.id());
    kit.echoes(&*instance, "started at once").await?;
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    kit.exit_told_once(id).await
}

pub(super) async fn identity(kit: &Kit) -> Verdict {
    let request = kit.request(&kit.fixtures.echo).await?;
    let id = request.id;
    let instance = kit.start_with(request).await?;
    let endpoint = instance.endpoint().cloned();
    kit.echoes(&*instance, "x").await?;
    ensure!(instance.id() == id, "the id is {}, asked for was {id}", instance.id());
    ensure!(instance.endpoint().cloned() == endpoint, "the endpoint moved to {:?}", instance.endpoint());
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    ensure!(instance.id() == id, "the id changed with the stop");
    ensure!(instance.endpoint().cloned() == endpoint, "the endpoint changed with the stop");
    Ok(())
}

pub(super) async fn phases(kit: &Kit) -> Verdict {
    let request = kit.request(&kit.fixtures.echo).await?;
    let id = request.id;
    let instance = kit.start_with(request).await?;
    let phases = kit.told.phases.lock().clone();
    ensure!(phases.iter().all(|(of, _)| *of == id), "phases were told under other ids than {id}: {phases:?}");
    let order: Vec<StartPhase> = phases.iter().map(|(_, phase)| *phase).collect();
    ensure!(order.windows(2).all(|pair| pair[0] < pair[1]), "phases out of order or repeated: {order:?}");
    kit.echoes(&*instance, "x").await?;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let late = kit.told.phases.lock().len();
    ensure!(late == phases.len(), "{} phases were told after the start had resolved", late - phases.len());
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn foreign_artifact(kit: &Kit) -> Verdict {
    #[derive(Debug)]
    struct Foreign;
    let artifact = Artifact::new(Foreign, ArtifactInfo::default());
    let request = kit.request_for(kit.deployed(&kit.fixtures.echo, artifact));
    let id = request.id;
    let outcome = within(Duration::from_secs(10), "the refusal", kit.begin(request)).await?;
    let Err(error) = outcome else {
        return Err(Stop::fail("an artifact of another runtime was started"));
    };
    ensure!(error.kind == ErrorKind::InvalidSpec, "the kind is {:?}, not InvalidSpec", error.kind);
    kit.quiesce().await?;
    ensure!(kit.told.exits_of(id) == 0, "an exit was told of an instance that never was");
    Ok(())
}

pub(super) async fn dropped_start(kit: &Kit) -> Verdict {
    let artifact = kit.prepare(&kit.fixtures.echo).await?;
    let deployed = kit.deployed(&kit.fixtures.echo, artifact);
    // At every point where it can be dropped: after each of its first polls, then later and later.
    for polls in 0..24 {
        let request = kit.request_for(Arc::clone(&deployed));
        let id = request.id;
        let points = if polls < 12 { polls } else { 1 << (polls / 3) };
        let ended = drop_after_polls(points, kit.fixtures.runtime.start(request)).await;
        if let Some(started) = ended {
            let instance = started.map_err(|error| Stop::fail(format!("start: {}", error.chain())))?;
            kit.stop(&*instance, Duration::ZERO).await?;
            kit.exit_told(id).await?;
            break;
        }
    }
    kit.nothing_left().await?;
    let instance = kit.start_with(kit.request_for(deployed)).await?;
    kit.echoes(&*instance, "the runtime goes on").await?;
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    drop(instance);
    kit.nothing_left().await
}

pub(super) async fn late_start(kit: &Kit) -> Verdict {
    let mut request = kit.request(&kit.fixtures.echo).await?;
    request.deadline = Instant::now();
    let id = request.id;
    let outcome =
        within(Duration::from_secs(10), "a start after its deadline", kit.fixtures.runtime.start(request))
            .await?;
    match outcome {
        // One that needs no time can't be late.
        Ok(instance) => {
            kit.echoes(&*instance, "x").await?;
            kit.stop(&*instance, Duration::ZERO).await?;
            kit.exit_told_once(id).await?;
        }
        Err(error) => {
            ensure!(error.kind == ErrorKind::Timeout, "the kind is {:?}, not Timeout: {error}", error.kind);
            kit.quiesce().await?;
            ensure!(kit.told.exits_of(id) <= 1, "its exit was told more than once");
        }
    }
    kit.nothing_left().await
}

pub(super) async fn together(kit: &Kit) -> Verdict {
    let artifact = kit.prepare(&kit.fixtures.echo).await?;
    let deployed = kit.deployed(&kit.fixtures.echo, artifact);
    let starts = (0..6).map(|_| kit.start_with(kit.request_for(Arc::clone(&deployed))));
    let mut instances = Vec::new();
    for started in join_all(starts).await {
        instances.push(started?);
    }
    for (at, one) in instances.iter().enumerate() {
        for other in &instances[at + 1..] {
            ensure!(one.id() != other.id(), "two instances have the id {}", one.id());
            let shared = one.endpoint().is_some() && one.endpoint() == other.endpoint();
            ensure!(!shared, "two instances listen at {:?}", one.endpoint());
        }
        kit.echoes(&**one, format!("instance {at}")).await?;
    }
    for stopped in join_all(instances.iter().map(|one| kit.stop(&**one, Duration::from_secs(1)))).await {
        stopped?;
    }
    for instance in &instances {
        kit.exit_told(instance.id()).await?;
    }
    drop(instances);
    kit.nothing_left().await
}

pub(super) async fn stop_once(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    kit.echoes(&*instance, "x").await?;
    ensure!(kit.told.exits_of(instance.id()) == 0, "the exit was told while it ran");
    kit.stop(&*instance, Duration::from_secs(2)).await?;
    kit.exit_told_once(instance.id()).await?;
    let id = instance.id();
    drop(instance);
    kit.exit_told_once(id).await?;
    kit.nothing_left().await
}

pub(super) async fn stop_often(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    let stops = (0..4).map(|_| kit.stop(&*instance, Duration::from_secs(1)));
    for stopped in join_all(stops).await {
        stopped?;
    }
    kit.stop(&*instance, Duration::from_secs(1)).await?;
    kit.stop(&*instance, Duration::ZERO).await?;
    kit.exit_told_once(instance.id()).await
}

pub(super) async fn dropped_stop(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    let id = instance.id();
    let _ = drop_after_polls(1, instance.stop(Duration::from_millis(200))).await;
    kit.exit_told_once(id).await?;
    drop(instance);
    kit.nothing_left().await
}

pub(super) async fn independent(kit: &Kit) -> Verdict {
    let (one, other) = (kit.echo().await?, kit.echo().await?);
    kit.stop(&*one, Duration::ZERO).await?;
    kit.exit_told(one.id()).await?;
    kit.echoes(&*other, "still here").await?;
    drop(one);
    kit.echoes(&*other, "and still").await?;
    ensure!(kit.told.exits_of(other.id()) == 0, "the exit of the other was told");
    kit.stop(&*other, Duration::from_secs(1)).await?;
    kit.exit_told_once(other.id()).await
}

pub(super) async fn quiesce_keeps(kit: &Kit) -> Verdict {
    let instance = kit.echo().await?;
    kit.quiesce().await?;
    kit.echoes(&*instance, "after quiesce").await?;
    ensure!(kit.told.exits_of(instance.id()) == 0, "quiesce ended a running instance");
    kit.stop(&*instance, Duration::from_secs(1)).await
}

pub(super) async fn churn(kit: &Kit) -> Verdict {
    let artifact = kit.prepare(&kit.fixtures.echo).await?;
    let deployed = kit.deployed(&kit.fixtures.echo, artifact);
    for round in 0..10 {
        let instance = kit.start_with(kit.request_for(Arc::clone(&deployed))).await?;
        let id = instance.id();
        if round % 3 != 0 {
            kit.echoes(&*instance, format!("round {round}")).await?;
        }
        kit.stop(&*instance, Duration::from_millis(if round % 2 == 0 { 0 } else { 500 })).await?;
        drop(instance);
        kit.exit_told(id).await?;
    }
    kit.nothing_left().await
}
