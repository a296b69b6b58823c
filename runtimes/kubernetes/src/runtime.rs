//! The runtime: accepts, prepare, start, quiesce.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{
    Artifact, ArtifactInfo, Capabilities, Error, ErrorKind, Instance, InstanceId, Result, RevisionName,
    RevisionSpec, Runtime, Source, SpecErrors, StartRequest, TenantKey,
};

use crate::{
    accepts,
    config::KubernetesConfig,
    engine::Engine,
    orphans,
    pod::{self, About},
    start, usage, watch,
};

/// Runs instances as Pods of a Kubernetes cluster. See the crate's documentation.
///
/// It belongs to the tokio runtime in which it is opened. When it is dropped, all its Pods are removed.
#[derive(Debug)]
pub struct KubernetesRuntime {
    engine: Arc<Engine>,
}

/// What `prepare` leaves: the cluster has the code.
struct PodArtifact;

impl KubernetesRuntime {
    /// The name by which specs ask for it.
    pub const NAME: &'static str = "kubernetes";

    /// Connects to the cluster, takes a Lease in the namespace, and begins to watch its Pods. What a host that is gone has
    /// left is taken away from now on.
    ///
    /// # Errors
    /// `InvalidSpec` for a wrong configuration; `Unavailable` when the API server does not answer, or the platform lacks a
    /// right there.
    pub async fn open(config: KubernetesConfig) -> Result<Self> {
        let engine = Engine::open(config).await?;
        let (watches, listens, looks) = (Arc::clone(&engine), Arc::clone(&engine), Arc::clone(&engine));
        engine.run(async move { watch::run(&watches).await });
        engine.run(async move { orphans::keep(&listens).await });
        engine.run(async move {
            if let Some(usages) = &looks.usages {
                let period = looks.config.usage_period;
                usage::look(usages, &looks.cluster, &looks.board, &looks.selector(), period).await;
            }
        });
        Ok(Self { engine })
    }

    /// What the Pods of this life of this host have in the label `sas.dev/generation`.
    pub fn generation(&self) -> &str {
        &self.engine.generation
    }

    /// How many Pods of this host there are, on their way up and down included.
    pub fn pods(&self) -> usize {
        self.engine.board.all().len()
    }
}

impl Drop for KubernetesRuntime {
    fn drop(&mut self) {
        self.engine.close();
    }
}

#[async_trait]
impl Runtime for KubernetesRuntime {
    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::new(self.engine.config.isolation);
        capabilities.usage = self.engine.usages.is_some();
        capabilities.exec = true;
        capabilities.limits = true;
        capabilities
    }

    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        accepts::check(&self.engine.config, Self::NAME, spec)
    }

    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.prepare_for(spec, TenantKey::HOST).await
    }

    async fn prepare_for(&self, spec: &RevisionSpec, tenant: TenantKey) -> Result<Artifact> {
        self.engine.ensure_running()?;
        self.accepts(spec)?;
        // A Pod that is checked by the cluster with all of its rules, and not made.
        let name = RevisionName::new("prepare", "prepare", "prepare");
        let about = About {
            id: InstanceId(0),
            name: &name,
            tenant,
            generation: &self.engine.generation,
            owner: None,
            secrets: &[],
        };
        let body = pod::pod(&self.engine.config, spec, &about)?;
        let mut notes = Vec::new();
        match self.engine.cluster.create("prepare", "pods", &body, true).await {
            Ok(_) => {}
            // It may have room when it is needed.
            Err(error) if error.kind == ErrorKind::Exhausted => notes.push(error.message),
            Err(error) => return Err(error),
        }
        let digest = match &spec.source {
            Source::Image(image) => {
                let digest = image.split_once('@').map(|(_, digest)| digest);
                digest.filter(|digest| digest.starts_with("sha256:")).unwrap_or_default().to_owned()
            }
            _ => String::new(),
        };
        if digest.is_empty() {
            notes.push(
                "the image is named by a tag, which each node resolves for itself: name it by its digest, and all instances \
                 are the same"
                    .to_owned(),
            );
        }
        if spec.timeouts.start < Duration::from_secs(10) {
            notes.push(
                "a node that has not pulled the image yet may take longer than timeouts.start".to_owned(),
            );
        }
        let info = ArtifactInfo { digest, bytes: 0, stem: None, notes };
        Ok(Artifact::new(PodArtifact, info))
    }

    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.engine.ensure_running()?;
        if request.deployed.artifact.downcast::<PodArtifact>().is_none() {
            let what = "artifact: it was prepared by another runtime; prepare it with this one";
            return Err(Error::new(ErrorKind::InvalidSpec, "start", what));
        }
        start::start(&self.engine, request).await
    }

    async fn quiesce(&self) {
        self.engine.quiesce().await;
    }
}
