//! From the name of an image to layers on disk.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, OnceLock},
};

use futures_util::{StreamExt as _, TryStreamExt as _, future::BoxFuture};
use sas_core::{Error, ErrorKind, Result, TenantKey};
use serde::{Deserialize, Serialize};

use crate::{
    config::ContainerConfig,
    credentials::DockerConfig,
    digest::Digest,
    local::{self, Archive, Layout},
    manifest::{self, Descriptor, Parsed},
    name::{ImageName, Local},
    progress::{PullProgress, Reporter},
    registry::Registry,
    store::{Layer, Store},
};

/// Layers of one image that are brought here at a time.
const AT_ONCE: usize = 3;

/// An image whose layers are held on disk.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) name: String,
    pub(crate) digest: Digest,
    pub(crate) config: Defaults,
    /// The lowest first.
    pub(crate) layers: Vec<Arc<Layer>>,
    pub(crate) bytes: u64,
    pub(crate) notes: Vec<String>,
}

/// What a configuration says of how the image runs. The names are those of the image specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct Defaults {
    #[serde(with = "or_nothing")]
    pub(crate) user: String,
    #[serde(with = "or_nothing")]
    pub(crate) env: Vec<String>,
    #[serde(with = "or_nothing")]
    pub(crate) entrypoint: Vec<String>,
    #[serde(with = "or_nothing")]
    pub(crate) cmd: Vec<String>,
    #[serde(with = "or_nothing")]
    pub(crate) working_dir: String,
    #[serde(with = "or_nothing")]
    pub(crate) stop_signal: String,
    #[serde(with = "or_nothing")]
    pub(crate) volumes: BTreeMap<String, serde_json::Value>,
    #[serde(with = "or_nothing")]
    pub(crate) exposed_ports: BTreeMap<String, serde_json::Value>,
}

/// Builders write `null` for what an image has not.
mod or_nothing {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<T: Serialize, S: Serializer>(
        value: &T,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.serialize(serializer)
    }

    pub(super) fn deserialize<'de, T, D>(deserializer: D) -> Result<T, D::Error>
    where
        T: Deserialize<'de> + Default,
        D: Deserializer<'de>,
    {
        Ok(Option::deserialize(deserializer)?.unwrap_or_default())
    }
}

/// The parts of an image's configuration that are read.
#[derive(Deserialize)]
struct Configuration {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default, with = "or_nothing")]
    config: Defaults,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<String>,
}

/// What is kept of an image, so that a restart asks no registry.
#[derive(Serialize, Deserialize)]
struct Kept {
    config: Defaults,
    layers: Vec<KeptLayer>,
}

#[derive(Clone, Serialize, Deserialize)]
struct KeptLayer {
    /// Of the content.
    diff: String,
    /// Of the blob; of an archive, the member's name.
    blob: String,
    size: u64,
}

/// What makes images of names.
#[derive(Debug)]
pub(crate) struct Images {
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) store: Arc<Store>,
    /// Made when a registry is asked for the first time: it reads the system's certificates.
    pub(crate) http: OnceLock<reqwest::Client>,
}

fn wrong(image: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidSpec, "prepare", format!("image {image}: {what}"))
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::new(ErrorKind::Unexpected, "prepare", format!("a blocking task: {error}"))),
    }
}

impl Images {
    fn http(&self) -> Result<reqwest::Client> {
        if let Some(made) = self.http.get() {
            return Ok(made.clone());
        }
        let made = crate::place::client(&self.config.registries)?;
        Ok(self.http.get_or_init(|| made).clone())
    }

    /// What the tenant knows registries by, from its secrets.
    async fn own_credentials(&self, secrets: &[String], tenant: TenantKey) -> Result<Vec<DockerConfig>> {
        let mut own = Vec::new();
        for name in secrets {
            let Some(source) = &self.config.secrets else {
                let what = format!("container.pull_secrets: {name:?}: this platform has no SecretSource");
                return Err(Error::new(ErrorKind::Unsupported, "pull", what));
            };
            let reference = format!("secret/{name}/.dockerconfigjson");
            let text = source.resolve(&reference, tenant).await?;
            own.push(DockerConfig::parse(&text).map_err(|error| {
                let what = format!("container.pull_secrets: {name:?}: {}", error.message);
                Error::new(ErrorKind::InvalidSpec, "pull", what)
            })?);
        }
        Ok(own)
    }

    /// The name with the digest that it stands for now. A registry is asked in any case, so that nobody gets by a digest
    /// what only others may pull.
    pub(crate) async fn pin(&self, text: &str, secrets: &[String], tenant: TenantKey) -> Result<String> {
        let name: ImageName = text.parse()?;
        let digest = match &name {
            ImageName::Registry(reference) => {
                let own = self.own_credentials(secrets, tenant).await?;
                let registry = Registry::new(&self.config, self.http()?, reference.clone(), tenant, own);
                let (bytes, digest) = registry.manifest(None).await?;
                // What can't run here is refused before anything is recorded.
                manifest::parse(text, &bytes, self.config.limits.layers)?;
                digest
            }
            ImageName::Layout(local) => {
                let (config, local) = (Arc::clone(&self.config), local.clone());
                blocking(move || Layout::open(&local, local::allowed(&config, &local)?)?.resolve()).await?
            }
            ImageName::Archive(local) => {
                let (config, local) = (Arc::clone(&self.config), local.clone());
                blocking(move || {
                    let path = local::allowed(&config, &local)?;
                    Archive::open(&local, &path)?.image().map(|(_, digest, _)| digest)
                })
                .await?
            }
        };
        Ok(name.pinned(&digest).to_string())
    }

    /// The image, with all of its layers on disk and held.
    pub(crate) async fn bring(
        &self,
        text: &str,
        secrets: &[String],
        tenant: TenantKey,
    ) -> Result<Arc<Image>> {
        let name: ImageName = text.parse()?;
        let report = Reporter::new(text, self.config.progress.clone());
        if let Some(digest) = name.digest()
            && let Some(kept) = self.kept(&digest)
        {
            let mut layers = Vec::with_capacity(kept.layers.len());
            for layer in &kept.layers {
                match layer.diff.parse().ok().map(|diff| self.store.layer(&diff)).transpose()?.flatten() {
                    Some(layer) => layers.push(layer),
                    None => break,
                }
            }
            if layers.len() == kept.layers.len() {
                return Ok(Arc::new(image(text, digest, kept.config, layers)));
            }
        }
        let (digest, kept, layers) = match &name {
            ImageName::Registry(reference) => {
                let own = self.own_credentials(secrets, tenant).await?;
                let registry = Registry::new(&self.config, self.http()?, reference.clone(), tenant, own);
                self.bring_from_registry(text, &registry, &report).await?
            }
            ImageName::Layout(local) => self.bring_from_layout(text, local, &report).await?,
            ImageName::Archive(local) => self.bring_from_archive(text, local, &report).await?,
        };
        let record = serde_json::to_vec(&kept).map_err(|error| wrong(text, error))?;
        self.store.keep_image(&digest, &record)?;
        let made = image(text, digest, kept.config, layers);
        report.done(made.bytes);
        let store = Arc::clone(&self.store);
        let (most, free) = (self.config.cache_bytes, self.config.keep_free_bytes);
        blocking(move || Ok(store.collect(most, free))).await?;
        Ok(Arc::new(made))
    }

    fn kept(&self, digest: &Digest) -> Option<Kept> {
        serde_json::from_slice(&self.store.image(digest)?).ok()
    }

    async fn bring_from_registry(
        &self,
        text: &str,
        registry: &Registry,
        report: &Reporter,
    ) -> Result<(Digest, Kept, Vec<Arc<Layer>>)> {
        let most = self.config.limits.layers;
        let (bytes, top) = registry.manifest(None).await?;
        let (config, blobs) = match manifest::parse(text, &bytes, most)? {
            Parsed::Image { config, layers } => (config, layers),
            Parsed::Platform(descriptor) => {
                let (bytes, _) = registry.manifest(Some(&descriptor.digest)).await?;
                match manifest::parse(text, &bytes, most)? {
                    Parsed::Image { config, layers } => (config, layers),
                    Parsed::Platform(_) => return Err(wrong(text, "an index within an index")),
                }
            }
        };
        let config = self.small_blob(text, registry, &config, report).await?;
        let (config, diffs) = configuration(text, &config, blobs.len())?;
        self.tell_resolved(&top, &diffs, report)?;
        let mut pulls: Vec<BoxFuture<'_, Result<Arc<Layer>>>> = Vec::with_capacity(blobs.len());
        for (diff, blob) in diffs.iter().zip(&blobs) {
            pulls.push(Box::pin(self.pull_layer(registry, diff, blob, report)));
        }
        let layers: Vec<Arc<Layer>> =
            futures_util::stream::iter(pulls).buffered(AT_ONCE).try_collect().await?;
        self.check_size(text, &layers)?;
        let kept = blobs
            .iter()
            .zip(&diffs)
            .map(|(blob, diff)| KeptLayer {
                diff: diff.to_string(),
                blob: blob.digest.to_string(),
                size: blob.size,
            })
            .collect();
        Ok((top, Kept { config, layers: kept }, layers))
    }

    fn tell_resolved(&self, digest: &Digest, diffs: &[Digest], report: &Reporter) -> Result<()> {
        let mut missing = 0;
        for diff in diffs {
            missing += usize::from(self.store.layer(diff)?.is_none());
        }
        report.tell(PullProgress::Resolved { digest: digest.to_string(), layers: diffs.len(), missing });
        Ok(())
    }

    fn check_size(&self, text: &str, layers: &[Arc<Layer>]) -> Result<()> {
        let bytes: u64 = layers.iter().map(|layer| layer.bytes).sum();
        let most = self.config.limits.bytes;
        if bytes > most {
            return Err(wrong(text, format!("{bytes} bytes unpacked, and images may have {most}")));
        }
        Ok(())
    }

    async fn small_blob(
        &self,
        text: &str,
        registry: &Registry,
        blob: &Descriptor,
        report: &Reporter,
    ) -> Result<Vec<u8>> {
        if blob.size > manifest::MOST_MANIFEST as u64 {
            return Err(wrong(
                text,
                format!("its configuration is larger than {} bytes", manifest::MOST_MANIFEST),
            ));
        }
        let mut pull = self.store.pull(&registry.pull_key(&blob.digest))?;
        registry.blob(blob, &mut pull, report).await?;
        let mut bytes = Vec::new();
        let read = pull.reader().and_then(|mut file| io::Read::read_to_end(&mut file, &mut bytes));
        pull.remove();
        read.map_err(|error| wrong(text, format!("its configuration: {error}")))?;
        Ok(bytes)
    }

    async fn pull_layer(
        &self,
        registry: &Registry,
        diff: &Digest,
        blob: &Descriptor,
        report: &Reporter,
    ) -> Result<Arc<Layer>> {
        if let Some(layer) = self.store.layer(diff)? {
            return Ok(layer);
        }
        if blob.size > self.config.limits.bytes {
            let what =
                format!("layer {}: {} packed bytes, more than an image may have", blob.digest, blob.size);
            return Err(Error::new(ErrorKind::InvalidSpec, "pull", what));
        }
        // What its content is to be, an image only claims: whoever pulls a common layer from elsewhere does not wait for
        // this registry.
        let key = registry.pull_key(&blob.digest);
        let pulls = self.store.turn(&key).await;
        if let Some(layer) = self.store.layer(diff)? {
            return Ok(layer);
        }
        let mut pull = self.store.pull(&key)?;
        registry.blob(blob, &mut pull, report).await?;
        let _turn = self.store.turn(diff).await;
        if let Some(layer) = self.store.layer(diff)? {
            pull.remove();
            return Ok(layer);
        }
        let (store, diff, size) = (Arc::clone(&self.store), diff.clone(), blob.size);
        let layer = blocking(move || {
            let unpacked = pull
                .reader()
                .map_err(|error| Error::new(ErrorKind::Unavailable, "pull", format!("read a layer: {error}")))
                .and_then(|file| store.unpack(&diff, file, size, 0));
            pull.remove();
            unpacked
        })
        .await?;
        drop(pulls);
        report.tell(PullProgress::Unpacked { layer: layer.digest.to_string(), bytes: layer.bytes });
        Ok(layer)
    }

    async fn bring_from_layout(
        &self,
        text: &str,
        local: &Local,
        report: &Reporter,
    ) -> Result<(Digest, Kept, Vec<Arc<Layer>>)> {
        let (config, local, owned) = (Arc::clone(&self.config), local.clone(), text.to_owned());
        let (top, config, blobs, dir) = blocking(move || {
            let dir = local::allowed(&config, &local)?;
            let layout = Layout::open(&local, dir.clone())?;
            let top = layout.resolve()?;
            let most = config.limits.layers;
            let (config, blobs) = match manifest::parse(&owned, &layout.small(&top)?, most)? {
                Parsed::Image { config, layers } => (config, layers),
                Parsed::Platform(one) => match manifest::parse(&owned, &layout.small(&one.digest)?, most)? {
                    Parsed::Image { config, layers } => (config, layers),
                    Parsed::Platform(_) => return Err(wrong(&owned, "an index within an index")),
                },
            };
            Ok((top, layout.small(&config.digest)?, blobs, (local, dir)))
        })
        .await?;
        let (config, diffs) = configuration(text, &config, blobs.len())?;
        self.tell_resolved(&top, &diffs, report)?;
        let mut layers = Vec::with_capacity(blobs.len());
        for (diff, blob) in diffs.iter().zip(&blobs) {
            let (local, dir) = dir.clone();
            let digest = blob.digest.clone();
            let open = move || Layout::open(&local, dir)?.layer(&digest);
            layers.push(self.local_layer(diff, open, blob.size, report).await?);
        }
        self.check_size(text, &layers)?;
        let kept = blobs
            .iter()
            .zip(&diffs)
            .map(|(blob, diff)| KeptLayer {
                diff: diff.to_string(),
                blob: blob.digest.to_string(),
                size: blob.size,
            })
            .collect();
        Ok((top, Kept { config, layers: kept }, layers))
    }

    async fn bring_from_archive(
        &self,
        text: &str,
        local: &Local,
        report: &Reporter,
    ) -> Result<(Digest, Kept, Vec<Arc<Layer>>)> {
        let (config, of) = (Arc::clone(&self.config), local.clone());
        let (path, config, top, names) = blocking(move || {
            let path = local::allowed(&config, &of)?;
            let (config, digest, names) = Archive::open(&of, &path)?.image()?;
            Ok((path, config, digest, names))
        })
        .await?;
        let (config, diffs) = configuration(text, &config, names.len())?;
        self.tell_resolved(&top, &diffs, report)?;
        let mut layers = Vec::with_capacity(names.len());
        for (diff, name) in diffs.iter().zip(&names) {
            let (local, path, name) = (local.clone(), path.clone(), name.clone());
            let open = move || Archive::open(&local, &path)?.layer(&name).map(|(reader, _)| reader);
            layers.push(self.local_layer(diff, open, 0, report).await?);
        }
        self.check_size(text, &layers)?;
        let kept = names
            .iter()
            .zip(&diffs)
            .map(|(name, diff)| KeptLayer { diff: diff.to_string(), blob: name.clone(), size: 0 })
            .collect();
        Ok((top, Kept { config, layers: kept }, layers))
    }

    async fn local_layer<R: io::Read + 'static>(
        &self,
        diff: &Digest,
        open: impl FnOnce() -> Result<R> + Send + 'static,
        packed: u64,
        report: &Reporter,
    ) -> Result<Arc<Layer>> {
        let _turn = self.store.turn(diff).await;
        if let Some(layer) = self.store.layer(diff)? {
            return Ok(layer);
        }
        let (store, diff) = (Arc::clone(&self.store), diff.clone());
        let layer = blocking(move || {
            let reader = open()?;
            // A file that is not packed has no ratio to exceed.
            let packed = if packed == 0 { u64::MAX } else { packed };
            store.unpack(&diff, reader, packed, 0)
        })
        .await?;
        report.tell(PullProgress::Unpacked { layer: layer.digest.to_string(), bytes: layer.bytes });
        Ok(layer)
    }
}

fn image(text: &str, digest: Digest, config: Defaults, layers: Vec<Arc<Layer>>) -> Image {
    let devices: u64 = layers.iter().map(|layer| layer.devices).sum();
    let mut notes = Vec::new();
    if devices > 0 {
        notes.push(format!(
            "{devices} device nodes of the image are left out: a container has the usual ones in /dev"
        ));
    }
    let bytes = layers.iter().map(|layer| layer.bytes).sum();
    Image { name: text.to_owned(), digest, config, layers, bytes, notes }
}

/// How it runs, and the digests of its layers' content.
fn configuration(text: &str, bytes: &[u8], layers: usize) -> Result<(Defaults, Vec<Digest>)> {
    let read: Configuration = serde_json::from_slice(bytes)
        .map_err(|error| wrong(text, format!("its configuration can't be read: {error}")))?;
    let here = manifest::architecture();
    if (!read.os.is_empty() && read.os != "linux")
        || (!read.architecture.is_empty() && read.architecture != here)
    {
        let problem = format!(
            "it is built for {}/{}, not for linux/{here}; build it for this platform",
            read.os, read.architecture
        );
        return Err(wrong(text, problem));
    }
    let diffs = read.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if diffs.len() != layers {
        let problem = format!(
            "its configuration names {} layers, its manifest {layers}; it is broken, push it again",
            diffs.len()
        );
        return Err(wrong(text, problem));
    }
    let diffs = diffs.iter().map(|diff| diff.parse()).collect::<Result<Vec<Digest>>>()?;
    Ok((read.config, diffs))
}
