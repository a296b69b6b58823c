//! How hosts of one platform know of each other's death: each renews a Lease, and what a silent one has left is taken
//! away by whoever notices. Nobody compares clocks: silence is what a host has itself not heard for a whole term.

use std::{collections::HashMap, sync::Arc, time::Duration};

use kube::api::ListParams;
use sas_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use crate::{
    cluster::Cluster,
    config::KubernetesConfig,
    engine::{Engine, absent},
    failure::failure,
    pod::{self, GENERATION, PLATFORM},
};

/// How many terms pass between two looks for Pods whose Lease is gone altogether.
const SWEEP_EVERY: u32 = 20;

/// The Lease of this life of this host.
#[derive(Debug)]
pub(crate) struct Lease {
    name: String,
    body: Value,
    /// As what it makes refers to it. Its identity changes when it had to be made anew.
    owner: parking_lot::Mutex<Value>,
}

/// The time as a Lease has it; only for humans.
fn stamp(config: &KubernetesConfig) -> Value {
    let now = jiff::Timestamp::from_millisecond(config.clock.now().as_millis()).unwrap_or_default();
    // A Lease has microseconds, with all their digits.
    json!(format!("{now:.6}"))
}

fn owner(lease: &Value) -> Value {
    json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
           "name": lease["metadata"]["name"], "uid": lease["metadata"]["uid"]})
}

impl Lease {
    pub(crate) async fn take(cluster: &Cluster, config: &KubernetesConfig, generation: &str) -> Result<Self> {
        let name = format!("sas-{}-{generation}", config.platform);
        let body = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": name, "namespace": config.namespace, "labels": pod::labels(config, generation)},
            "spec": {"holderIdentity": generation, "leaseDurationSeconds": config.term.as_secs(),
                     "renewTime": stamp(config)},
        });
        let made =
            cluster.create("configure", "leases", &body, false).await.map_err(|error| match error.kind {
                ErrorKind::NotFound => {
                    let what =
                        format!("namespace: {:?}: there is none of that name: make it", config.namespace);
                    Error::new(ErrorKind::InvalidSpec, "configure", what)
                }
                _ => error,
            })?;
        Ok(Self { name, body, owner: parking_lot::Mutex::new(owner(&made)) })
    }

    /// As a Pod refers to its owner.
    pub(crate) fn owner(&self) -> Value {
        self.owner.lock().clone()
    }

    async fn renew(&self, engine: &Engine) -> Result<()> {
        let renewed = json!({"spec": {"renewTime": stamp(&engine.config)}});
        match engine.cluster.merge("leases", &self.name, &renewed).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                tracing::warn!(
                    lease = self.name,
                    "this host was silent for so long that another has taken its Pods away, or its Lease was deleted by hand"
                );
                let made = engine.cluster.create("renew", "leases", &self.body, false).await?;
                *self.owner.lock() = owner(&made);
                Ok(())
            }
            other => other.map(drop),
        }
    }

    pub(crate) async fn release(&self, cluster: &Cluster) -> Result<()> {
        absent(cluster.delete("leases", &self.name).await)
    }
}

/// Another host's Lease as this one has watched it.
#[derive(Debug)]
struct Heard {
    version: String,
    since: Instant,
}

/// What was heard of the others.
#[derive(Debug, Default)]
struct Others(HashMap<String, Heard>);

impl Others {
    /// Takes what the API server has of all hosts. Returns those that were silent for their own term and for this host's:
    /// the life, the Lease and its version.
    fn hear(
        &mut self,
        own: &str,
        leases: &[Value],
        term: Duration,
        now: Instant,
    ) -> Vec<(String, String, String)> {
        let mut silent = Vec::new();
        let mut there = HashMap::new();
        for lease in leases {
            let metadata = &lease["metadata"];
            let (Some(life), Some(name), Some(version)) = (
                metadata["labels"][GENERATION].as_str(),
                metadata["name"].as_str(),
                metadata["resourceVersion"].as_str(),
            ) else {
                continue;
            };
            if life == own {
                continue;
            }
            let theirs = Duration::from_secs(lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or(0));
            let heard = match self.0.remove(life) {
                Some(heard) if heard.version == version => heard,
                _ => Heard { version: version.to_owned(), since: now },
            };
            if now.duration_since(heard.since) >= term.max(theirs) {
                silent.push((life.to_owned(), name.to_owned(), version.to_owned()));
            }
            there.insert(life.to_owned(), heard);
        }
        self.0 = there;
        silent
    }
}

/// Renews this host's Lease, and takes away what silent hosts have left. Ends never.
pub(crate) async fn keep(engine: &Arc<Engine>) {
    let mut others = Others::default();
    let mut ticks = tokio::time::interval(engine.config.term / 3);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut round = 0u32;
    loop {
        ticks.tick().await;
        if let Err(error) = engine.lease.renew(engine).await {
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
async fn lives_of_pods(engine: &Engine, selector: &str) -> Result<std::collections::BTreeSet<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(life: &str, version: &str) -> Value {
        json!({"metadata": {"name": format!("sas-{life}"), "resourceVersion": version, "labels": {GENERATION: life}},
               "spec": {"leaseDurationSeconds": 15}})
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_gone_when_nothing_was_heard_of_it_for_a_whole_term_by_ones_own_clock() {
        let mut others = Others::default();
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let term = Duration::from_secs(10);
        let hear = |others: &mut Others, version: &str, seconds| {
            others.hear("me", &[lease("me", "1"), lease("other", version)], term, at(seconds)).len()
        };
        // However old what it finds may be, it listens for a term of its own first: the longer of the two.
        assert_eq!(hear(&mut others, "1", 0), 0);
        assert_eq!(hear(&mut others, "1", 14), 0);
        assert_eq!(hear(&mut others, "2", 14), 0);
        assert_eq!(hear(&mut others, "2", 28), 0);
        assert_eq!(hear(&mut others, "2", 29), 1);
        assert_eq!(hear(&mut others, "3", 30), 0);
    }
}
