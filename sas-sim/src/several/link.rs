//! How one host reaches the store and the others.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use sas_core::{Commit, Entry, ErrorKind, MemoryStore, Result, Store, StoreLimits, Version, Watched};
use sas_testkit::fault::{LinkFault, StoreLink};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::CancellationToken;

use super::SeveralPlant;

/// Records of who owns a shard: what an owner's writes are guarded by.
const OWNERS: &str = "cluster/shard/";

/// One host's connection to the store.
#[derive(Debug)]
pub(super) struct HostLink {
    pub(super) link: StoreLink,
    store: Arc<Judged>,
    /// The planted bug: no change of a service is heard of.
    deaf: bool,
}

impl HostLink {
    /// `first`: of the host that may be deaf.
    pub(super) fn new(store: &Arc<MemoryStore>, plant: Option<SeveralPlant>, first: bool) -> Self {
        let store = Arc::new(Judged {
            store: Arc::clone(store),
            plant,
            refused: AtomicU64::new(0),
            late: AtomicU64::new(0),
        });
        let deaf = first && plant == Some(SeveralPlant::HearsNothing);
        Self { link: StoreLink::new(Arc::clone(&store) as _), store, deaf }
    }

    /// Writes of a former owner that the store refused.
    pub(super) fn refused(&self) -> u64 {
        self.store.refused.load(SeqCst)
    }

    /// Writes of a former owner that the store did.
    pub(super) fn late(&self) -> u64 {
        self.store.late.load(SeqCst)
    }

    fn has(&self, plant: SeveralPlant) -> bool {
        self.store.plant == Some(plant)
    }
}

#[async_trait]
impl Store for HostLink {
    fn limits(&self) -> StoreLimits {
        self.link.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.link.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.link.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.link.list(prefix, after, limit).await
    }

    async fn commit(&self, mut commit: Commit) -> Result<Version> {
        if self.has(SeveralPlant::LosesChanges) && writes(&commit, "service/") && commit.writes.len() == 1 {
            return self.link.version().await;
        }
        if self.has(SeveralPlant::ForgetsFires) && writes(&commit, "trigger/") {
            for write in &mut commit.writes {
                if let Some(before) = self.store.get(&write.key).await? {
                    write.value = Some(before.value);
                }
            }
        }
        // It takes itself for alive, whatever became of the write.
        if self.has(SeveralPlant::BelievesItself)
            && writes(&commit, "cluster/renewed/")
            && self.link.fault() != LinkFault::None
        {
            return self.store.version().await;
        }
        self.link.commit(commit).await
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        let watched = self.link.watch(prefix, since).await?;
        if self.deaf && prefix.starts_with("service") {
            std::future::pending::<()>().await;
        }
        Ok(watched)
    }
}

fn writes(commit: &Commit, prefix: &str) -> bool {
    commit.writes.iter().any(|write| write.key.starts_with(prefix))
}

/// The store, which looks at what arrives of one host.
#[derive(Debug)]
struct Judged {
    store: Arc<MemoryStore>,
    plant: Option<SeveralPlant>,
    refused: AtomicU64,
    late: AtomicU64,
}

impl Judged {
    /// Whether all that a commit says of owners is as the store has it. The store answers at once, so nothing comes between
    /// this and the commit.
    async fn owns(&self, commit: &Commit) -> Result<bool> {
        for guard in commit.guards.iter().filter(|guard| guard.key.starts_with(OWNERS)) {
            if self.store.get(&guard.key).await?.map(|entry| entry.version) != guard.expected {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[async_trait]
impl Store for Judged {
    fn limits(&self) -> StoreLimits {
        self.store.limits()
    }

    async fn version(&self) -> Result<Version> {
        self.store.version().await
    }

    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.store.list(prefix, after, limit).await
    }

    async fn commit(&self, mut commit: Commit) -> Result<Version> {
        // A commit that takes a shard over is guarded by the record that it writes.
        let takes = writes(&commit, OWNERS);
        let owns = takes || self.owns(&commit).await?;
        if self.plant == Some(SeveralPlant::ForgetsGuards) && !takes {
            commit.guards.retain(|guard| !guard.key.starts_with(OWNERS));
        }
        let done = self.store.commit(commit).await;
        match &done {
            Err(error) if error.kind == ErrorKind::Conflict && !owns => self.refused.fetch_add(1, SeqCst),
            Ok(_) if !owns => self.late.fetch_add(1, SeqCst),
            _ => 0,
        };
        done
    }

    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.store.watch(prefix, since).await
    }
}

/// What stands between the others and a host's listener: open or not. What comes while it is closed arrives when it is
/// open again, as over a network that loses packets for a while.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) address: SocketAddr,
    open: watch::Sender<bool>,
    gone: CancellationToken,
}

impl Gate {
    /// A gate to `host`.
    pub(super) async fn before(host: SocketAddr) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (open, gone) = (watch::Sender::new(true), CancellationToken::new());
        let (opened, ended) = (open.clone(), gone.clone());
        tokio::spawn(ended.clone().run_until_cancelled_owned(async move {
            while let Ok((from, _)) = listener.accept().await {
                let passing = pass(from, host, opened.clone());
                tokio::spawn(ended.clone().run_until_cancelled_owned(passing));
            }
        }));
        Ok(Self { address, open, gone })
    }

    pub(super) fn set(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// All connections break.
    pub(super) fn end(&self) {
        self.gone.cancel();
    }
}

/// Copies both ways while the gate is open.
async fn pass(mut from: TcpStream, host: SocketAddr, open: watch::Sender<bool>) {
    let mut opened = open.subscribe();
    let _ = opened.wait_for(|open| *open).await;
    let Ok(mut to) = TcpStream::connect(host).await else { return };
    // A byte that the kernel holds back is held back in real time, in which no virtual time passes by itself.
    let _ = (from.set_nodelay(true), to.set_nodelay(true));
    let mut copying = std::pin::pin!(copy_bidirectional(&mut from, &mut to));
    loop {
        // Not polled while it is closed, so that nothing passes.
        tokio::select! {
            biased;
            changed = opened.wait_for(|open| !*open) => if changed.is_err() { return },
            _ = &mut copying => return,
        }
        if opened.wait_for(|open| *open).await.is_err() {
            return;
        }
    }
}
