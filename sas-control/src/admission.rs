//! Who may deploy what: hooks that are asked at each deploy, and a list of where code may come from.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use sas_core::{Principal, RevisionSpec, Source};
use sas_knative::keys::own;

/// A deploy, as hooks see it: after defaulting and validation, with packages and images pinned, before anything is stored.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct AdmissionRequest<'a> {
    /// Who deploys; `None`: the host itself, by the library.
    pub principal: Option<&'a Principal>,
    /// The namespace of the service, which is its tenant.
    pub namespace: &'a str,
    /// The service's name.
    pub name: &'a str,
    /// Labels of the service.
    pub labels: &'a BTreeMap<String, String>,
    /// Annotations of the service.
    pub annotations: &'a BTreeMap<String, String>,
    /// Annotations of the revision.
    pub template_annotations: &'a BTreeMap<String, String>,
    /// Where the code comes from, as it was asked for.
    pub source: &'a Source,
    /// Whether the code was sent to the platform and is named by its digest.
    pub uploaded: bool,
    /// What would run: its source is the platform's copy of a package, or an image by its digest.
    pub spec: &'a RevisionSpec,
    /// The digest of the package, where there is one: `sha256` of its content, in hexadecimal digits.
    pub package: Option<&'a str>,
}

/// Why a deploy is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The field of the manifest that it is about, such as `metadata.labels.team`.
    pub field: String,
    /// What is there.
    pub value: String,
    /// What is wrong with it and what to do.
    pub reason: String,
}

impl Refusal {
    /// Refused for what `field` has.
    pub fn new(field: impl Into<String>, value: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.into(), reason: reason.into() }
    }
}

/// A rule of the host about deploys: a policy, a check of signatures, an inventory. Given to
/// [`crate::ControlConfig::admission`] or the builder's `admission`.
///
/// `examples/admission_signature.rs` has one that checks signatures.
///
/// # Contract
/// Asked at each deploy of a service, by whomever and whatever way, in the order in which hooks were given; the first refusal
/// counts, and nothing is stored then. It may wait, for a service that knows; while it does, the deploy does. Services that
/// were deployed before are not asked about again.
#[async_trait]
pub trait AdmissionHook: fmt::Debug + Send + Sync + 'static {
    /// A short name, for the error and the log.
    fn name(&self) -> &str;

    /// Lets a deploy through, or says why not.
    ///
    /// # Errors
    /// The refusal, which whoever deploys is told. A hook that can't find out refuses, too.
    async fn review(&self, request: &AdmissionRequest<'_>) -> Result<(), Refusal>;
}

/// Forwards, so that the host keeps a handle to what it gave away.
#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: AdmissionHook + ?Sized> AdmissionHook for Arc<T> {
    fn name(&self) -> &str {
        (**self).name()
    }
    async fn review(&self, request: &AdmissionRequest<'_>) -> Result<(), Refusal> {
        (**self).review(request).await
    }
}

/// Code from these places only: images of some registries, packages below some directories. Empty lists allow nothing of
/// their kind; what was sent to the platform itself and functions that the host registered are allowed unless told
/// otherwise.
///
/// ```
/// use sas_control::AllowedSources;
/// let allowed = AllowedSources::none().with_registry("registry.example.org/shop").with_root("/srv/packages");
/// assert!(allowed.allows_image("registry.example.org/shop/web:1"));
/// assert!(!allowed.allows_image("registry.example.org/shopping:1"));
/// assert!(!allowed.allows_image("web:1")); // of docker.io
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedSources {
    registries: Vec<String>,
    roots: Vec<PathBuf>,
    no_uploads: bool,
}

impl AllowedSources {
    /// No registry and no directory.
    pub fn none() -> Self {
        Self::default()
    }

    /// Images of this registry, or of a repository or folder of it: `docker.io`, `registry.example.org/team`.
    #[must_use]
    pub fn with_registry(mut self, registry: impl Into<String>) -> Self {
        self.registries.push(registry.into().trim_end_matches('/').to_owned());
        self
    }

    /// Packages of this directory and of all below it.
    #[must_use]
    pub fn with_root(mut self, root: impl Into<PathBuf>) -> Self {
        self.roots.push(root.into());
        self
    }

    /// No packages that were sent to the platform.
    #[must_use]
    pub fn without_uploads(mut self) -> Self {
        self.no_uploads = true;
        self
    }

    /// Whether an image is of an allowed registry. One without a registry is of `docker.io`.
    pub fn allows_image(&self, image: &str) -> bool {
        let full = full_name(image);
        self.registries.iter().any(|allowed| {
            full.strip_prefix(allowed.as_str()).is_some_and(|rest| {
                rest.is_empty()
                    || rest.starts_with('/')
                    || (allowed.contains('/') && rest.starts_with([':', '@']))
            })
        })
    }

    /// Whether a package really lies below an allowed directory. Blocking.
    fn allows_path(&self, path: &Path) -> bool {
        let Ok(real) = std::fs::canonicalize(path) else { return false };
        let mut roots = self.roots.iter().filter_map(|root| std::fs::canonicalize(root).ok());
        roots.any(|root| real.starts_with(root))
    }
}

/// An image's name with its registry, as the tools of containers complete it.
fn full_name(image: &str) -> String {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => image.to_owned(),
        Some(_) => format!("docker.io/{image}"),
        None => format!("docker.io/library/{image}"),
    }
}

#[async_trait]
impl AdmissionHook for AllowedSources {
    fn name(&self) -> &str {
        "allowed-sources"
    }

    async fn review(&self, request: &AdmissionRequest<'_>) -> Result<(), Refusal> {
        let package = || format!("spec.template.metadata.annotations[{}]", own::PACKAGE);
        let refuse_image = |field: String, image: &str| {
            let allowed =
                if self.registries.is_empty() { "none".to_owned() } else { self.registries.join(", ") };
            Err(Refusal::new(field, image, format!("is not of an allowed registry; allowed: {allowed}")))
        };
        match request.source {
            Source::Image(image) if !self.allows_image(image) => {
                return refuse_image("spec.template.spec.containers[0].image".to_owned(), image);
            }
            Source::Path(_) | Source::Bytes { .. } if request.uploaded && self.no_uploads => {
                let reason = "packages that are sent to the platform are not allowed here";
                return Err(Refusal::new(package(), "", reason));
            }
            Source::Path(_) | Source::Bytes { .. } if request.uploaded => {}
            Source::Path(path) => {
                let (allowed, asked) = (self.clone(), path.clone());
                let inside = tokio::task::spawn_blocking(move || allowed.allows_path(&asked)).await;
                if !inside.unwrap_or(false) {
                    let reason = "is not below a directory from which packages may come";
                    return Err(Refusal::new(package(), path.display().to_string(), reason));
                }
            }
            _ => {}
        }
        let pod = request.spec.container.as_deref();
        let companions = pod.into_iter().flat_map(|pod| {
            let init = pod.init.iter().map(|one| ("initContainers", one));
            init.chain(pod.sidecars.iter().map(|one| ("containers", one)))
        });
        for (list, companion) in companions {
            if !self.allows_image(&companion.image) {
                let field = format!("spec.template.spec.{list}[{}].image", companion.name);
                return refuse_image(field, &companion.image);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_allowed_by_whole_parts_of_their_names() {
        let allowed = AllowedSources::none()
            .with_registry("docker.io/library")
            .with_registry("ghcr.io/acme/web")
            .with_registry("localhost:5000");
        for (image, is) in [
            ("nginx", true),
            ("nginx:1.27", true),
            ("docker.io/library/nginx@sha256:00", true),
            ("acme/nginx", false),
            ("ghcr.io/acme/web:1", true),
            ("ghcr.io/acme/web/front:1", true),
            ("ghcr.io/acme/website:1", false),
            ("ghcr.io/acme", false),
            ("localhost:5000/a:1", true),
            ("localhost:5001/a:1", false),
            ("localhost:50000/a:1", false),
            ("docker.io.evil.example/library/nginx", false),
        ] {
            assert_eq!(allowed.allows_image(image), is, "{image}");
        }
        assert!(!AllowedSources::none().allows_image("nginx"));
    }
}
