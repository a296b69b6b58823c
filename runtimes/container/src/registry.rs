//! Images of registries, by `oci-client`.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use oci_client::{
    Client, Reference,
    client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol},
    errors::{OciDistributionError, OciErrorCode},
    secrets::RegistryAuth,
};
use sas_core::{Error, ErrorKind, Result, Retry, TenantKey};
use sha2::Digest as _;
use tokio::{io::AsyncWriteExt as _, time::Instant};

use crate::{
    config::ContainerConfig,
    credentials::{CredentialProvider, Credentials},
    digest::Digest,
    manifest::{Descriptor, MANIFEST_TYPES, MOST_MANIFEST},
    progress::Reporter,
    store::Pull,
};

/// Questions in vain before it is given up. The pauses between them double from [`FIRST_PAUSE`] on.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// After this time a registry that does not answer a question for a manifest is given up.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// A registry, asked as one tenant.
pub(crate) struct Registry {
    config: Arc<ContainerConfig>,
    reference: Reference,
    tenant: TenantKey,
    /// The tenant's own, before those of the host.
    own: Vec<crate::credentials::DockerConfig>,
}

/// Where to ask: a mirror or the registry itself, with who asks.
pub(crate) struct Asked {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Registry {
    pub(crate) fn new(
        config: &Arc<ContainerConfig>,
        reference: Reference,
        tenant: TenantKey,
        own: Vec<crate::credentials::DockerConfig>,
    ) -> Self {
        Self { config: Arc::clone(config), reference, tenant, own }
    }

    /// The mirrors, then the registry itself. A client each: clients keep credentials by registry, and two tenants
    /// have different ones.
    async fn places(&self) -> Result<Vec<Asked>> {
        let registry = self.reference.registry().to_owned();
        if let Some(allowed) = &self.config.registries.allowed
            && !allowed.contains(&registry)
        {
            let what = format!(
                "source.image: registry {registry:?}: this platform pulls from {}; push the image there",
                allowed.join(", ")
            );
            return Err(Error::new(ErrorKind::InvalidSpec, "pull", what));
        }
        let mirrors = self.config.registries.mirrors.get(&registry).cloned().unwrap_or_default();
        let mut places = Vec::new();
        for host in mirrors.iter().chain([&registry]) {
            let mut reference = self.reference.clone();
            if *host != registry {
                reference.set_mirror_registry(host.clone());
            }
            let auth = self.auth(host).await?;
            let mut config = ClientConfig {
                protocol: ClientProtocol::HttpsExcept(self.config.registries.plain_http.clone()),
                read_timeout: Some(Duration::from_secs(30)),
                connect_timeout: Some(Duration::from_secs(10)),
                platform_resolver: None,
                user_agent: concat!("sas-runtime-container/", env!("CARGO_PKG_VERSION")),
                ..ClientConfig::default()
            };
            config.extra_root_certificates = self
                .config
                .registries
                .certificates
                .iter()
                .map(|pem| Certificate { encoding: CertificateEncoding::Pem, data: pem.clone() })
                .collect();
            let client = Client::try_from(config).map_err(|error| {
                Error::new(ErrorKind::Unavailable, "pull", format!("a client for registries: {error}"))
            })?;
            places.push(Asked { client, reference, auth });
        }
        Ok(places)
    }

    async fn auth(&self, host: &str) -> Result<RegistryAuth> {
        let mut found = None;
        for own in &self.own {
            found = own.written(host)?;
            if found.is_some() {
                break;
            }
        }
        if found.is_none()
            && let Some(provider) = &self.config.credentials
        {
            found = CredentialProvider::credentials(&**provider, host, self.tenant).await?;
        }
        Ok(match found {
            None => RegistryAuth::Anonymous,
            Some(Credentials::Basic { user, password }) => {
                RegistryAuth::Basic(user, password.expose().to_owned())
            }
            Some(Credentials::Token(token)) => RegistryAuth::Bearer(token.expose().to_owned()),
        })
    }

    /// The manifest that the name or a digest stands for now, checked against its digest. A mirror that has it not or
    /// does not answer is passed over.
    pub(crate) async fn manifest(&self, digest: Option<&Digest>) -> Result<(Vec<u8>, Digest)> {
        let places = self.places().await?;
        let last = places.len() - 1;
        for (at, place) in places.iter().enumerate() {
            match self.manifest_from(place, at == last, digest).await {
                Err(error) if at < last => {
                    tracing::debug!(mirror = place.reference.resolve_registry(), %error, "a mirror was passed over");
                }
                other => return other,
            }
        }
        unreachable!("the registry itself is always among the places")
    }

    async fn manifest_from(
        &self,
        place: &Asked,
        patient: bool,
        digest: Option<&Digest>,
    ) -> Result<(Vec<u8>, Digest)> {
        let reference = match digest {
            Some(digest) => place.reference.clone_with_digest(digest.as_str().to_owned()),
            None => place.reference.clone(),
        };
        let (mut tried, mut pause) = (0, FIRST_PAUSE);
        let bytes = loop {
            tried += 1;
            let pulled = place.client.pull_manifest_raw(&reference, &place.auth, &MANIFEST_TYPES);
            let error = match tokio::time::timeout(ANSWER_WITHIN, pulled).await {
                Ok(Ok((bytes, _))) => break bytes,
                Ok(Err(error)) => told(&self.reference, error),
                Err(_) => unavailable(&self.reference, format!("no answer within {ANSWER_WITHIN:?}")),
            };
            if !patient || tried >= TRIES || !matches!(error.retry, Retry::After(_)) {
                return Err(error);
            }
            tracing::debug!(%error, tried, "a manifest is asked for again");
            tokio::time::sleep(pause).await;
            pause *= 2;
        };
        if bytes.len() > MOST_MANIFEST {
            let what = format!("image {}: its manifest is larger than {MOST_MANIFEST} bytes", self.reference);
            return Err(Error::new(ErrorKind::InvalidSpec, "pull", what));
        }
        let found = Digest::of(&bytes);
        let wanted = digest.cloned().or_else(|| self.reference.digest().and_then(|text| text.parse().ok()));
        match wanted {
            Some(wanted) if wanted != found => Err(lied(&self.reference, &wanted, &found)),
            _ => Ok((bytes.to_vec(), found)),
        }
    }

    /// Brings a blob to `to`, from where that ended before. What is there then has the digest.
    pub(crate) async fn blob(&self, blob: &Descriptor, to: &mut Pull, report: &Reporter) -> Result<()> {
        let places = self.places().await?;
        let last = places.len() - 1;
        for (at, place) in places.iter().enumerate() {
            match self.blob_from(place, at == last, blob, to, report).await {
                Err(error) if at < last => {
                    tracing::debug!(mirror = place.reference.resolve_registry(), %error, "a mirror was passed over");
                }
                other => return other,
            }
        }
        unreachable!("the registry itself is always among the places")
    }

    async fn blob_from(
        &self,
        place: &Asked,
        patient: bool,
        blob: &Descriptor,
        to: &mut Pull,
        report: &Reporter,
    ) -> Result<()> {
        let disk = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
                _ => ErrorKind::Unavailable,
            };
            Error::new(kind, "pull", format!("layer {}: {error}", blob.digest)).with_source(error)
        };
        let (mut tried, mut pause) = (0, FIRST_PAUSE);
        place.client.store_auth_if_needed(place.reference.resolve_registry(), &place.auth).await;
        loop {
            let (mut have, mut hash) = to.so_far().map_err(disk)?;
            if have > blob.size {
                to.restart().map_err(disk)?;
                continue;
            }
            if have == blob.size {
                let found = Digest::of_hash(&hash.finalize());
                if found == blob.digest {
                    return Ok(());
                }
                to.restart().map_err(disk)?;
                return Err(lied(&self.reference, &blob.digest, &found));
            }
            let before = have;
            let pulled = async {
                let asked =
                    place.client.pull_blob_stream_partial(&place.reference, blob.digest.as_str(), have, None);
                let mut stream = match asked.await.map_err(|error| told(&self.reference, error))? {
                    BlobResponse::Partial(stream) => stream,
                    BlobResponse::Full(stream) => {
                        // It does not know ranges.
                        if have > 0 {
                            to.restart().map_err(disk)?;
                            (have, hash) = (0, sha2::Sha256::new());
                        }
                        stream
                    }
                };
                let mut file = tokio::fs::File::from_std(to.writer().map_err(disk)?);
                let mut told_at = Instant::now();
                while let Some(chunk) = stream.next().await {
                    let chunk = match chunk {
                        Ok(chunk) => chunk,
                        Err(error) => {
                            file.flush().await.map_err(disk)?;
                            // The client checks what it streams in full; what it says then is about the digest.
                            if error.to_string().to_lowercase().contains("digest") {
                                return Err(Error::new(
                                    ErrorKind::InvalidSpec,
                                    "pull",
                                    format!("image {}: layer {}: {error}", self.reference, blob.digest),
                                ));
                            }
                            return Err(unavailable(
                                &self.reference,
                                format!("layer {}: {error}", blob.digest),
                            ));
                        }
                    };
                    have += chunk.len() as u64;
                    if have > blob.size {
                        return Err(Error::new(
                            ErrorKind::InvalidSpec,
                            "pull",
                            format!(
                                "image {}: layer {} is longer than the {} bytes that its manifest says; push it again",
                                self.reference, blob.digest, blob.size
                            ),
                        ));
                    }
                    hash.update(&chunk);
                    file.write_all(&chunk).await.map_err(disk)?;
                    if told_at.elapsed() >= Duration::from_millis(100) {
                        told_at = Instant::now();
                        report.pulling(&blob.digest, have, blob.size);
                    }
                }
                file.flush().await.map_err(disk)?;
                if have < blob.size {
                    let what =
                        format!("layer {}: broke off after {have} of {} bytes", blob.digest, blob.size);
                    return Err(unavailable(&self.reference, what));
                }
                Ok(())
            };
            match pulled.await {
                Ok(()) => {
                    report.pulling(&blob.digest, have, blob.size);
                    let found = Digest::of_hash(&hash.finalize());
                    if found == blob.digest {
                        return Ok(());
                    }
                    to.restart().map_err(disk)?;
                    return Err(lied(&self.reference, &blob.digest, &found));
                }
                Err(error) => {
                    if error.kind == ErrorKind::InvalidSpec {
                        to.restart().map_err(disk)?;
                    }
                    tried = if have > before { 1 } else { tried + 1 };
                    if !patient || tried >= TRIES || !matches!(error.retry, Retry::After(_)) {
                        return Err(error);
                    }
                    tracing::debug!(%error, have, "a pull goes on");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        }
    }
}

fn lied(image: &Reference, wanted: &Digest, found: &Digest) -> Error {
    let what = format!(
        "image {image}: the registry sent {found} for {wanted}: it is broken, or somebody between changed it; push the \
         image again"
    );
    Error::new(ErrorKind::InvalidSpec, "pull", what)
}

fn unavailable(image: &Reference, why: String) -> Error {
    Error::new(ErrorKind::Unavailable, "pull", format!("image {image}: {why}"))
        .with_retry(Retry::After(Duration::from_secs(5)))
}

/// What the client says, in our terms.
fn told(image: &Reference, error: OciDistributionError) -> Error {
    let registry = image.resolve_registry();
    let refuse = |kind, what: String| Error::new(kind, "pull", format!("image {image}: {what}"));
    let no_entry = || {
        refuse(
            ErrorKind::InvalidSpec,
            format!(
                "{registry} asks who pulls it (401): give credentials, in a manifest by imagePullSecrets, or correct the name"
            ),
        )
    };
    let denied = || {
        refuse(
            ErrorKind::InvalidSpec,
            format!("{registry} refuses it to these credentials (403): ask for the right to pull it"),
        )
    };
    let missing = || {
        refuse(
            ErrorKind::NotFound,
            format!("{registry} has none of that name (404): correct it, or push the image"),
        )
    };
    let busy = |code: u16| unavailable(image, format!("{registry} answers {code}; try again later"));
    match &error {
        OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
            no_entry()
        }
        OciDistributionError::ImageManifestNotFoundError(_) => missing(),
        OciDistributionError::ServerError { code, .. } => match code {
            401 => no_entry(),
            403 => denied(),
            404 => missing(),
            408 | 425 | 429 | 500..=599 => busy(*code),
            code => refuse(ErrorKind::InvalidSpec, format!("{registry} answers {code}")),
        },
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|error| &error.code) {
                Some(OciErrorCode::Unauthorized) => no_entry(),
                Some(OciErrorCode::Denied) => denied(),
                Some(OciErrorCode::Toomanyrequests) => busy(429),
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::NotFound
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::ManifestBlobUnknown,
                ) => missing(),
                _ => refuse(ErrorKind::InvalidSpec, format!("{registry}: {envelope}")),
            }
        }
        OciDistributionError::RequestError(request) if !request.is_builder() => {
            let mut why = error.to_string();
            let mut source = std::error::Error::source(request);
            while let Some(inner) = source {
                why = format!("{why}: {inner}");
                source = inner.source();
            }
            unavailable(image, format!("{registry} can't be reached: {why}"))
        }
        OciDistributionError::IoError(io) => unavailable(image, format!("{registry}: {io}")),
        OciDistributionError::DigestError(digest) => refuse(
            ErrorKind::InvalidSpec,
            format!("{registry} sent something else than it says: {digest}; push the image again"),
        ),
        other => refuse(ErrorKind::InvalidSpec, format!("{registry}: {other}")),
    }
}
