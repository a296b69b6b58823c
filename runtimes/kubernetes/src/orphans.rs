//! What hosts that are gone have left is taken away by whoever notices.

use std::{collections::BTreeSet, sync::Arc};

use kube::api::ListParams;
use sas_core::{ErrorKind, Result};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    engine::Engine,
    failure::{absent, failure},
    lease::Others,
    pod::{GENERATION, PLATFORM},
};

/// How many terms pass between two looks for Pods whose Lease is gone altogether.
const SWEEP_EVERY: u32 = 20;

/// Renews this host's Lease, and takes away what silent hosts have left. Ends never.
pub(crate) async fn keep(engine: &Arc<Engine>) {
    let mut others = Others::default();
    let mut ticks = tokio::time::interval(engine.config.term / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0u32;
    loop {
        ticks.tick().await;
        if let Err(error) = engine.lease.renew(&engine.cluster, &engine.config).await {
            tracing::warn!(%error, "the Lease of this host could not be renewed");
            // Who can't be heard can't hear either: silence counts anew.
            others = Others::default();
            continue;
        }
        if let Err(error) = look(engine, &mut others, round.is_multiple_of(3 * SWEEP_EVERY)).await {
            tracing::warn!(%error, "what other hosts have left could not be looked for");
            others = Others::default();
        }
        round = round.wrapping_add(1);
    }
}

async fn look(engine: &Arc<Engine>, others: &mut Others, sweep: bool) -> Result<()> {
    let ours = format!("{PLATFORM}={}", engine.config.platform);
    let leases = engine.cluster.list("leases", &ours).await?;
    for (life, name, version) in others.hear(&engine.generation, &leases, engine.config.term, Instant::now())
    {
        // Refused when it was renewed meanwhile, or when another host was faster.
        match engine.cluster.delete_version("leases", &name, &version).await {
            Ok(_) => reap(engine, &life).await?,
            Err(error) if matches!(error.kind, ErrorKind::Conflict | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    if sweep {
        let known: Vec<&str> =
            leases.iter().filter_map(|lease| lease["metadata"]["labels"][GENERATION].as_str()).collect();
        for life in lives_of_pods(engine, &ours).await? {
            if life != engine.generation && !known.contains(&life.as_str()) {
                reap(engine, &life).await?;
            }
        }
    }
    Ok(())
}

/// The lives of which there are Pods. Only the metadata is asked for.
async fn lives_of_pods(engine: &Engine, selector: &str) -> Result<BTreeSet<String>> {
    let params = ListParams::default().labels(selector);
    let pods = engine.cluster.pods().list_metadata(&params).await.map_err(|error| failure("list", error))?;
    Ok(pods.items.into_iter().filter_map(|pod| pod.metadata.labels?.remove(GENERATION)).collect())
}

/// Takes away the Pods of a life that is over, with their secrets.
async fn reap(engine: &Arc<Engine>, life: &str) -> Result<()> {
    let params = ListParams::default().labels(&format!("{GENERATION}={life}"));
    let pods = engine.cluster.pods().list_metadata(&params).await.map_err(|error| failure("list", error))?;
    for pod in pods.items {
        let Some(name) = pod.metadata.name else { continue };
        engine.cluster.end_pod(&name, 1).await?;
        // Most have none; those of the name of a Pod of ours are ours.
        absent(engine.cluster.delete("secrets", &name).await)?;
        engine.metrics.reaped.increment(1);
        tracing::info!(pod = name, life, "a Pod of a host that is gone was taken away");
    }
    Ok(())
}
