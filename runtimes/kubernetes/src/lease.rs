//! How hosts of one platform know of each other's death: each renews a Lease. Nobody compares clocks: silence is what a host has itself not heard for a whole term.

use std::{collections::HashMap, time::Duration};

use sas_core::{Error, ErrorKind, Result};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    cluster::Cluster,
    config::KubernetesConfig,
    failure::absent,
    pod::{self, GENERATION},
};

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

    pub(crate) async fn renew(&self, cluster: &Cluster, config: &KubernetesConfig) -> Result<()> {
        let renewed = json!({"spec": {"renewTime": stamp(config)}});
        match cluster.merge("leases", &self.name, &renewed).await {
            Err(error) if error.kind == ErrorKind::NotFound => {
                tracing::warn!(
                    lease = self.name,
                    "this host was silent for so long that another has taken its Pods away, or its Lease was deleted by hand"
                );
                let made = cluster.create("renew", "leases", &self.body, false).await?;
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
pub(crate) struct Others(HashMap<String, Heard>);

impl Others {
    /// Takes what the API server has of all hosts. Returns those that were silent for their own term and for this host's:
    /// the life, the Lease and its version.
    pub(crate) fn hear(
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
