//! What all instances share: the cluster, the board, and what is done about Pods that are to go.

use std::{sync::Arc, time::Duration};

use sas_core::{Error, ErrorKind, Result};
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    board::{Board, Removal, Slot},
    cluster::Cluster,
    config::KubernetesConfig,
    failure::{absent, away},
    lease::Lease,
    metrics::Metrics,
    pod,
    usage::Usages,
};

/// The longest pause between two attempts at what must be done.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) config: KubernetesConfig,
    pub(crate) cluster: Cluster,
    /// The life of this host, in the labels and names of all that it makes.
    pub(crate) generation: String,
    pub(crate) lease: Lease,
    pub(crate) board: Arc<Board>,
    pub(crate) metrics: Metrics,
    /// `None`: the cluster does not measure.
    pub(crate) usages: Option<Usages>,
    /// A permit for each instance whose output is read.
    pub(crate) following: Arc<Semaphore>,
    /// What ends by itself: making and removing.
    pub(crate) tasks: TaskTracker,
    closed: CancellationToken,
}

impl Engine {
    pub(crate) async fn open(config: KubernetesConfig) -> Result<Arc<Self>> {
        config.validate()?;
        let cluster = Cluster::new(&config).await?;
        let generation = generation()?;
        let lease = Lease::take(&cluster, &config, &generation).await?;
        let usages = Usages::find(&cluster, &config, &generation).await?;
        let metrics = Metrics::new(&config.recorder);
        Ok(Arc::new(Self {
            board: Arc::new(Board::new(metrics.pods.clone())),
            following: Arc::new(Semaphore::new(config.followed)),
            tasks: TaskTracker::new(),
            closed: CancellationToken::new(),
            config,
            cluster,
            generation,
            lease,
            metrics,
            usages,
        }))
    }

    /// Runs a part of this host beside the others until the runtime is dropped.
    pub(crate) fn run(&self, part: impl Future<Output = ()> + Send + 'static) {
        let closed = self.closed.clone();
        tokio::spawn(async move { closed.run_until_cancelled(part).await });
    }

    /// # Errors
    /// `Unavailable` when the runtime was dropped.
    pub(crate) fn ensure_running(&self) -> Result<()> {
        match self.closed.is_cancelled() {
            true => Err(Error::new(ErrorKind::Unavailable, "start", "the kubernetes runtime was shut down")),
            false => Ok(()),
        }
    }

    /// The labels of all that this host has made.
    pub(crate) fn selector(&self) -> String {
        format!("{}={}", pod::GENERATION, self.generation)
    }

    /// Asks for the end of a Pod, until the cluster has heard it, and forgets it once it is gone. `grace` is whole seconds;
    /// zero only for one whose programs have ended.
    pub(crate) fn remove(self: &Arc<Self>, slot: &Arc<Slot>, grace_seconds: u32) {
        let removal = slot.claim_removal(grace_seconds);
        if removal == Removal::UnderWay {
            return;
        }
        let (engine, slot) = (Arc::clone(self), Arc::clone(slot));
        self.tasks.spawn(async move {
            engine.end(&slot.name, grace_seconds).await;
            if removal == Removal::First {
                engine.see_off(&slot).await;
            }
        });
    }

    /// A Pod whose end somebody else has asked for, and whose programs have ended.
    pub(crate) fn removed_by_others(self: &Arc<Self>, slot: &Arc<Slot>) {
        if slot.claim_removal(0) == Removal::First {
            let (engine, slot) = (Arc::clone(self), Arc::clone(slot));
            self.tasks.spawn(async move { engine.see_off(&slot).await });
        }
    }

    async fn see_off(&self, slot: &Slot) {
        slot.gone().await;
        if slot.has_secret {
            self.insist(|| async { absent(self.cluster.delete("secrets", &slot.name).await) }).await;
        }
    }

    /// A Pod on a node that is out of sight: the cluster keeps it until the node is back or is taken out of the cluster, and
    /// nobody here waits for that.
    pub(crate) fn give_up(self: &Arc<Self>, slot: &Arc<Slot>) {
        self.board.forget(&slot.name, self.config.clock.now());
        if slot.has_secret {
            let (engine, slot) = (Arc::clone(self), Arc::clone(slot));
            self.tasks.spawn(async move {
                engine.insist(|| async { absent(engine.cluster.delete("secrets", &slot.name).await) }).await;
            });
        }
    }

    /// A Pod of this host that nobody here knows: one whose making was given up and came through all the same.
    pub(crate) fn remove_stray(self: &Arc<Self>, name: String) {
        let engine = Arc::clone(self);
        self.tasks.spawn(async move {
            tracing::info!(pod = name, "a Pod of this host that nobody waits for is removed");
            engine.end(&name, 1).await;
        });
    }

    async fn end(&self, name: &str, grace_seconds: u32) {
        let asked = || async {
            let found = self.cluster.end_pod(name, grace_seconds).await?;
            if !found {
                self.board.forget(name, self.config.clock.now());
            }
            Ok(())
        };
        self.insist(asked).await;
    }

    /// Tries until it is done, or the runtime is dropped; then once more.
    pub(crate) async fn insist<F: Future<Output = Result<()>>>(&self, attempt: impl Fn() -> F) {
        let mut pause = Duration::from_millis(100);
        while let Err(error) = attempt().await {
            tracing::debug!(%error, "the cluster is asked again");
            if self.closed.is_cancelled() {
                return;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Ends everything, in the background: the Pods, then the Lease that says whose they are.
    pub(crate) fn close(self: &Arc<Self>) {
        let engine = Arc::clone(self);
        let Ok(handle) = tokio::runtime::Handle::try_current() else {
            // The others find the Lease silent, and do it.
            self.closed.cancel();
            return;
        };
        let slots = self.board.all();
        for slot in &slots {
            self.remove(slot, 1);
        }
        handle.spawn(async move {
            let all = async {
                for slot in &slots {
                    slot.gone().await;
                }
                engine.tasks.close();
                engine.tasks.wait().await;
            };
            // Whatever is left after this is taken away by the others, or by the cluster with the Lease.
            let _ = tokio::time::timeout(engine.config.term, all).await;
            engine.closed.cancel();
            if let Err(error) = engine.lease.release(&engine.cluster).await {
                tracing::debug!(%error, "the Lease of this host is left to be found silent");
            }
        });
    }

    pub(crate) async fn quiesce(&self) {
        loop {
            self.board.quiesce().await;
            self.tasks.close();
            self.tasks.wait().await;
            self.tasks.reopen();
            if self.tasks.is_empty() {
                return;
            }
        }
    }
}

/// A name that no other life of a host has.
fn generation() -> Result<String> {
    let mut random = [0u8; 5];
    getrandom::fill(&mut random)
        .map_err(|error| away("configure", &format!("no random numbers: {error}")))?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}
