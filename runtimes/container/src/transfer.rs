//! Images from a registry into a layout, to be built upon, and from a layout to a registry.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use oci_client::{Reference, RegistryOperation, errors::OciDistributionError, secrets::RegistryAuth};
use sas_core::{Error, ErrorKind, Result, TenantKey};
use tokio::io::AsyncReadExt as _;

use crate::{
    config::{ContainerConfig, Registries},
    credentials::{CredentialProvider, Credentials},
    export,
    images::blocking,
    local::Layout,
    manifest::{self, Descriptor, Parsed},
    name::{ImageName, Local},
    place::{self, refuse, unavailable, unreachable},
    progress::Reporter,
    registry::Registry,
    store::Pull,
};

/// Bytes of a layer that are read at a time.
const CHUNK: usize = 256 << 10;

/// Who is asked for images, and as whom.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Transfer {
    /// Which registries are asked, and how.
    pub registries: Registries,
    /// Who knows the credentials for them; those of the host are asked for.
    pub credentials: Option<Arc<dyn CredentialProvider>>,
}

fn wrong(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidSpec, "export", what)
}

fn reference(name: &str) -> Result<Reference> {
    match name.parse()? {
        ImageName::Registry(reference) => Ok(reference),
        ImageName::Layout(_) | ImageName::Archive(_) => Err(wrong(format!(
            "image {name:?}: a name at a registry, such as registry.example.com/team/app:1"
        ))),
    }
}

fn disk(path: &Path, error: std::io::Error) -> Error {
    export::failed("write", path, error)
}

impl Transfer {
    /// Brings an image from a registry into `layout`, as `tag`: to build on it, or to keep it. Returns its digest. What is
    /// there already is not brought again; a transfer that breaks off goes on from there.
    ///
    /// # Errors
    /// Those of a pull: `NotFound`, `InvalidSpec` and `Unavailable`, with the remedy; `Exhausted` when the disk is full.
    pub async fn pull(&self, name: &str, layout: &Path, tag: &str) -> Result<String> {
        let mut config = ContainerConfig::default();
        (config.registries, config.credentials) = (self.registries.clone(), self.credentials.clone());
        config.validate()?;
        let config = Arc::new(config);
        crate::engine::provide_cryptography();
        let http = place::client(&config.registries)?;
        let registry = Registry::new(&config, http, reference(name)?, TenantKey::HOST, Vec::new());
        let report = Reporter::new(name, None);
        let most = config.limits.layers;
        let (mut bytes, mut digest) = registry.manifest(None).await?;
        let mut parsed = manifest::parse(name, &bytes, most)?;
        if let Parsed::Platform(one) = &parsed {
            (bytes, digest) = registry.manifest(Some(&one.digest)).await?;
            parsed = manifest::parse(name, &bytes, most)?;
        }
        let Parsed::Image { config: settings, layers } = parsed else {
            return Err(wrong(format!("image {name}: an index within an index")));
        };
        let blobs = layout.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|error| disk(&blobs, error))?;
        for blob in layers.iter().chain([&settings]) {
            let to = blobs.join(blob.digest.hex());
            if to.exists() {
                continue;
            }
            let new = blobs.join(format!(".pull-{}", blob.digest.hex()));
            let mut pull = Pull::at(new.clone())?;
            registry.blob(blob, &mut pull, &report).await?;
            fs::rename(&new, &to).map_err(|error| disk(&to, error))?;
        }
        let to = blobs.join(digest.hex());
        fs::write(&to, &bytes).map_err(|error| disk(&to, error))?;
        export::index(layout, tag, &digest, bytes.len() as u64, manifest::kind(&bytes))?;
        Ok(digest.to_string())
    }

    /// Sends the image `tag` of `layout` to a registry, under the name `to` with a tag. What the registry has of it already
    /// is not sent again. Returns the name with its digest, by which it is deployed.
    ///
    /// # Errors
    /// `InvalidSpec` for a name that is none or that the registry refuses, `NotFound` when the layout has no such image,
    /// `Unavailable` when the registry can't be reached.
    pub async fn push(&self, layout: &Path, tag: &str, to: &str) -> Result<String> {
        let name = reference(to)?;
        if name.digest().is_some() || name.tag().is_none() {
            return Err(wrong(format!(
                "image {to:?}: a tag and no digest, which is the image's own: {to}:1"
            )));
        }
        crate::engine::provide_cryptography();
        let (dir, wanted) = (layout.to_path_buf(), tag.to_owned());
        let (digest, bytes, blobs) = blocking(move || {
            let local = Local { path: dir.clone(), tag: Some(wanted), digest: None };
            let read = Layout::open(&local, dir)?;
            let digest = read.resolve()?;
            let bytes = read.small(&digest)?;
            match manifest::parse("", &bytes, usize::MAX)? {
                Parsed::Image { config, layers } => Ok((digest, bytes, [layers, vec![config]].concat())),
                Parsed::Platform(_) => Err(wrong("an index of several platforms: push one of its images")),
            }
        })
        .await?;
        let host = name.resolve_registry();
        let auth = match &self.credentials {
            Some(provider) => provider.credentials(host, TenantKey::HOST).await?,
            None => None,
        };
        let auth = auth.as_ref().map_or(RegistryAuth::Anonymous, Credentials::to_auth);
        let client = place::tokens(&self.registries)?;
        let failed = |error| refused(&name, error);
        client.auth(&name, &auth, RegistryOperation::Push).await.map_err(failed)?;
        for blob in &blobs {
            self.send(&client, &name, layout, blob).await?;
        }
        let kind = manifest::kind(&bytes);
        let kind = kind.parse().map_err(|_| wrong(format!("its manifest: mediaType {kind:?} is none")))?;
        client.push_manifest_raw(&name, Bytes::from(bytes), kind).await.map_err(failed)?;
        Ok(format!("{}@{digest}", name.whole()))
    }

    async fn send(
        &self,
        client: &oci_client::Client,
        name: &Reference,
        layout: &Path,
        blob: &Descriptor,
    ) -> Result<()> {
        let failed = |error| refused(name, error);
        let digest = blob.digest.as_str();
        if client.blob_exists(name, digest).await.map_err(failed)? {
            return Ok(());
        }
        let path: PathBuf = layout.join("blobs/sha256").join(blob.digest.hex());
        let file =
            tokio::fs::File::open(&path).await.map_err(|error| export::failed("read", &path, error))?;
        let read = futures_util::stream::try_unfold(file, |mut file| async move {
            let mut chunk = vec![0; CHUNK];
            let count = file.read(&mut chunk).await?;
            chunk.truncate(count);
            Ok((count > 0).then(|| (Bytes::from(chunk), file)))
        });
        client.push_blob_stream(name, read, digest, Some(blob.size)).await.map_err(failed)?;
        Ok(())
    }
}

/// What the client says of a push, in our terms.
fn refused(name: &Reference, error: OciDistributionError) -> Error {
    let registry = name.resolve_registry();
    let denied = |code: u16| {
        let what = format!(
            "{registry} takes no push by these credentials ({code}): give such as may write to {}",
            name.repository()
        );
        refuse(name, ErrorKind::InvalidSpec, what)
    };
    match error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            denied(401)
        }
        OciDistributionError::ServerError { code: code @ (401 | 403), .. } => denied(code),
        OciDistributionError::ServerError { code: code @ (408 | 425 | 429 | 500..=599), .. } => {
            unavailable(name, format!("{registry} answers {code}; try again later"))
        }
        OciDistributionError::ServerError { code, .. } => {
            refuse(name, ErrorKind::InvalidSpec, format!("{registry} answers {code}"))
        }
        OciDistributionError::RequestError(error) => unreachable(name, error),
        OciDistributionError::IoError(error) => unavailable(name, format!("{registry}: {error}")),
        OciDistributionError::RegistryError { envelope, .. } => {
            let denied_ = envelope.errors.iter().any(|error| {
                use oci_client::errors::OciErrorCode::{Denied, Unauthorized};
                matches!(error.code, Denied | Unauthorized)
            });
            match denied_ {
                true => denied(403),
                false => refuse(name, ErrorKind::InvalidSpec, format!("{registry}: {envelope}")),
            }
        }
        other => refuse(name, ErrorKind::InvalidSpec, format!("{registry}: {other}")),
    }
}
