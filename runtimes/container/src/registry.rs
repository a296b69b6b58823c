//! Images of registries.

use std::{sync::Arc, time::Duration};

use oci_client::{Reference, secrets::RegistryAuth};
use reqwest::StatusCode;
use sas_core::{Error, ErrorKind, Result, Retry, TenantKey};
use sha2::Digest as _;
use tokio::{io::AsyncWriteExt as _, sync::OnceCell, time::Instant};

use crate::{
    config::ContainerConfig,
    credentials::{CredentialProvider, Credentials},
    digest::Digest,
    manifest::{Descriptor, MANIFEST_TYPES, MOST_MANIFEST},
    place::{Place, Refusal, refuse, unavailable, unreachable},
    progress::Reporter,
    store::Pull,
};

/// Questions in vain before it is given up. The pauses between them double from [`FIRST_PAUSE`] on.
const TRIES: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// A try that has brought less counts as one in vain, and so does one that takes longer than the patience for
/// [`SLOWEST`]: a registry that drips is one that is down.
const WORTH: u64 = 1 << 20;
const SLOWEST: u64 = 64 << 10;
/// Bytes a second that a layer comes at on the whole, tries and pauses aside.
const FLOOR: u64 = 64 << 10;

/// A registry, asked as one tenant.
pub(crate) struct Registry {
    config: Arc<ContainerConfig>,
    http: reqwest::Client,
    reference: Reference,
    tenant: TenantKey,
    /// The tenant's own, before those of the host.
    own: Vec<crate::credentials::DockerConfig>,
    places: OnceCell<Vec<Place>>,
}

/// How often it was asked in vain, and how long is waited before the next time.
struct Patience {
    /// Whether there is nobody else to ask.
    patient: bool,
    tried: u32,
    pause: Duration,
    /// What may still be waited because a registry asks for it.
    left: Duration,
}

impl Patience {
    fn new(config: &ContainerConfig, patient: bool) -> Self {
        Self { patient, tried: 0, pause: FIRST_PAUSE, left: config.registries.patience }
    }

    /// Waits, where asking again makes sense; else the error.
    async fn wait(&mut self, refusal: Refusal, brought: u64) -> Result<()> {
        if brought >= WORTH {
            (self.tried, self.pause) = (0, FIRST_PAUSE);
        }
        self.tried += 1;
        let Refusal { error, pause } = refusal;
        let told = pause.unwrap_or_default();
        let again = self.patient && self.tried < TRIES && matches!(error.retry, Retry::After(_));
        if !again || told > self.left {
            return Err(error);
        }
        tracing::debug!(%error, tried = self.tried, "a registry is asked again");
        self.left -= told;
        tokio::time::sleep(self.pause.max(told)).await;
        self.pause = (self.pause * 2).min(LAST_PAUSE);
        Ok(())
    }
}

impl Registry {
    pub(crate) fn new(
        config: &Arc<ContainerConfig>,
        http: reqwest::Client,
        reference: Reference,
        tenant: TenantKey,
        own: Vec<crate::credentials::DockerConfig>,
    ) -> Self {
        Self { config: Arc::clone(config), http, reference, tenant, own, places: OnceCell::new() }
    }

    /// What a pull of a blob is known by: another tenant, or another registry, has nothing to do with it.
    pub(crate) fn pull_key(&self, blob: &Digest) -> Digest {
        Digest::of(format!("{}\n{}\n{blob}", self.tenant.0, self.reference.registry()).as_bytes())
    }

    /// The mirrors, then the registry itself.
    async fn places(&self) -> Result<&[Place]> {
        self.places.get_or_try_init(|| self.find_places()).await.map(Vec::as_slice)
    }

    async fn find_places(&self) -> Result<Vec<Place>> {
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
            places.push(Place::new(&self.config, &self.http, reference, self.auth(host).await?));
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
        Ok(found.as_ref().map_or(RegistryAuth::Anonymous, Credentials::to_auth))
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
        place: &Place,
        patient: bool,
        digest: Option<&Digest>,
    ) -> Result<(Vec<u8>, Digest)> {
        let name = match (digest, self.reference.digest()) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(pinned)) => pinned,
            (None, None) => self.reference.tag().unwrap_or("latest"),
        };
        let what = format!("manifests/{name}");
        let mut patience = Patience::new(&self.config, patient);
        let bytes = loop {
            let asked = async { self.small(place.ask(&what, &MANIFEST_TYPES.join(", "), 0).await?).await };
            match asked.await {
                Ok(bytes) => break bytes,
                Err(refusal) => patience.wait(refusal, 0).await?,
            }
        };
        let found = Digest::of(&bytes);
        let wanted = digest.cloned().or_else(|| self.reference.digest().and_then(|text| text.parse().ok()));
        match wanted {
            Some(wanted) if wanted != found => Err(lied(&self.reference, &wanted, &found)),
            _ => Ok((bytes, found)),
        }
    }

    /// The whole of a small answer, within the patience.
    async fn small(&self, mut response: reqwest::Response) -> std::result::Result<Vec<u8>, Refusal> {
        let read = async {
            let mut bytes = Vec::new();
            while let Some(chunk) =
                response.chunk().await.map_err(|error| unreachable(&self.reference, error))?
            {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > MOST_MANIFEST {
                    let what = format!("its manifest is larger than {MOST_MANIFEST} bytes");
                    return Err(refuse(&self.reference, ErrorKind::InvalidSpec, what).into());
                }
            }
            Ok(bytes)
        };
        let patience = self.config.registries.patience;
        let late = || unavailable(&self.reference, format!("no whole manifest within {patience:?}")).into();
        tokio::time::timeout(patience, read).await.unwrap_or_else(|_| Err(late()))
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
        place: &Place,
        patient: bool,
        blob: &Descriptor,
        to: &mut Pull,
        report: &Reporter,
    ) -> Result<()> {
        let disk = |error| disk(blob, error);
        let mut patience = Patience::new(&self.config, patient);
        let whole =
            (self.config.registries.patience + LAST_PAUSE) * TRIES + Duration::from_secs(blob.size / FLOOR);
        let until = Instant::now() + whole;
        loop {
            let (before, hash) = to.so_far().map_err(disk)?;
            if before > blob.size {
                to.restart().map_err(disk)?;
                continue;
            }
            let mut here = Here { have: before, hash };
            let pulled = match before == blob.size {
                true => Ok(()),
                false => self.rest(place, blob, &mut here, to, report, until).await,
            };
            match pulled {
                Ok(()) => {
                    report.pulling(&blob.digest, here.have, blob.size);
                    let found = Digest::of_hash(&here.hash.finalize());
                    if found == blob.digest {
                        return Ok(());
                    }
                    to.restart().map_err(disk)?;
                    return Err(lied(&self.reference, &blob.digest, &found));
                }
                Err(refusal) => {
                    if refusal.error.kind == ErrorKind::InvalidSpec {
                        to.restart().map_err(disk)?;
                    }
                    if Instant::now() >= until {
                        return Err(refusal.error);
                    }
                    patience.wait(refusal, here.have.saturating_sub(before)).await?;
                }
            }
        }
    }

    /// Brings what is missing of a blob, as far as it comes.
    async fn rest(
        &self,
        place: &Place,
        blob: &Descriptor,
        here: &mut Here,
        to: &mut Pull,
        report: &Reporter,
        until: Instant,
    ) -> std::result::Result<(), Refusal> {
        let disk = |error| Refusal::from(disk(blob, error));
        let mut response = place.ask(&format!("blobs/{}", blob.digest), "*/*", here.have).await?;
        if response.status() == StatusCode::OK && here.have > 0 {
            // It does not know ranges.
            to.restart().map_err(disk)?;
            *here = Here { have: 0, hash: sha2::Sha256::new() };
        }
        let too_long = || {
            let what = format!(
                "layer {} is longer than the {} bytes that its manifest says; push it again",
                blob.digest, blob.size
            );
            Refusal::from(refuse(&self.reference, ErrorKind::InvalidSpec, what))
        };
        if response.content_length().is_some_and(|length| here.have.saturating_add(length) > blob.size) {
            return Err(too_long());
        }
        let mut file = tokio::fs::File::from_std(to.writer().map_err(disk)?);
        let patience = self.config.registries.patience;
        let (mut told_at, mut slow_at, mut slow_from) = (Instant::now(), Instant::now(), here.have);
        let ended = loop {
            let Ok(chunk) = tokio::time::timeout_at(until, response.chunk()).await else {
                let what = format!(
                    "layer {}: {} of {} bytes in time, which is less than {FLOOR} a second",
                    blob.digest, here.have, blob.size
                );
                break Err(unavailable(&self.reference, what).into());
            };
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) if here.have == blob.size => break Ok(()),
                Ok(None) => {
                    let what = format!(
                        "layer {}: broke off after {} of {} bytes",
                        blob.digest, here.have, blob.size
                    );
                    break Err(unavailable(&self.reference, what).into());
                }
                Err(error) => break Err(unreachable(&self.reference, error).into()),
            };
            here.have += chunk.len() as u64;
            if here.have > blob.size {
                break Err(too_long());
            }
            here.hash.update(&chunk);
            file.write_all(&chunk).await.map_err(disk)?;
            if told_at.elapsed() >= Duration::from_millis(100) {
                told_at = Instant::now();
                report.pulling(&blob.digest, here.have, blob.size);
            }
            if here.have - slow_from >= SLOWEST {
                (slow_at, slow_from) = (Instant::now(), here.have);
            } else if slow_at.elapsed() > patience {
                let what = format!(
                    "layer {}: {} bytes within {patience:?}, and {SLOWEST} are the least",
                    blob.digest,
                    here.have - slow_from
                );
                break Err(unavailable(&self.reference, what).into());
            }
        };
        file.flush().await.map_err(disk)?;
        ended
    }
}

/// How much of a blob is here.
struct Here {
    have: u64,
    hash: sha2::Sha256,
}

fn disk(blob: &Descriptor, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "pull", format!("layer {}: {error}", blob.digest)).with_source(error)
}

fn lied(image: &Reference, wanted: &Digest, found: &Digest) -> Error {
    let what = format!(
        "the registry sent {found} for {wanted}: it is broken, or somebody between changed it; push the image again"
    );
    refuse(image, ErrorKind::InvalidSpec, what)
}
