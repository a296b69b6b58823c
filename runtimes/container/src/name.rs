//! How an image is named: at a registry, or in a file of this host.

use std::{fmt, path::PathBuf, str::FromStr};

use oci_client::Reference;
use sas_core::{Error, ErrorKind};

use crate::digest::Digest;

/// Where an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ImageName {
    /// `registry.example.com/team/app:tag@sha256:…`.
    Registry(Reference),
    /// `oci:/dir:tag@sha256:…`: a directory of the OCI image layout.
    Layout(Local),
    /// `docker-archive:/file.tar:name:tag@sha256:…`: what `docker save` writes. The digest is the configuration's.
    Archive(Local),
}

/// An image of a file or directory of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Local {
    pub(crate) path: PathBuf,
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<Digest>,
}

impl Local {
    fn parse(text: &str) -> Result<Self, Error> {
        let (text, digest) = match text.rsplit_once('@') {
            Some((text, digest)) => (text, Some(digest.parse()?)),
            None => (text, None),
        };
        // A path of ours holds no colon, so that what follows the first one is the tag.
        let (path, tag) = match text.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned()).filter(|tag| !tag.is_empty())),
            None => (text, None),
        };
        if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
            let what = format!("source.image: {path:?}: an absolute path without ..");
            return Err(Error::new(ErrorKind::InvalidSpec, "prepare", what));
        }
        Ok(Self { path: path.into(), tag, digest })
    }

    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl ImageName {
    /// The digest that it is pinned to.
    pub(crate) fn digest(&self) -> Option<Digest> {
        match self {
            Self::Registry(reference) => reference.digest()?.parse().ok(),
            Self::Layout(local) | Self::Archive(local) => local.digest.clone(),
        }
    }

    /// The same name, pinned.
    pub(crate) fn pinned(&self, digest: &Digest) -> Self {
        match self {
            Self::Registry(reference) => Self::Registry(match reference.tag() {
                Some(tag) => Reference::with_tag_and_digest(
                    reference.registry().to_owned(),
                    reference.repository().to_owned(),
                    tag.to_owned(),
                    digest.as_str().to_owned(),
                ),
                None => reference.clone_with_digest(digest.as_str().to_owned()),
            }),
            Self::Layout(local) => Self::Layout(Local { digest: Some(digest.clone()), ..local.clone() }),
            Self::Archive(local) => Self::Archive(Local { digest: Some(digest.clone()), ..local.clone() }),
        }
    }
}

impl FromStr for ImageName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Some(rest) = text.strip_prefix("oci:") {
            return Local::parse(rest).map(Self::Layout);
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            return Local::parse(rest).map(Self::Archive);
        }
        let wrong = |why: &dyn fmt::Display| {
            let what = format!(
                "source.image: {text:?}: {why}; write registry/repository:tag, oci:/directory:tag or \
                 docker-archive:/file.tar"
            );
            Error::new(ErrorKind::InvalidSpec, "prepare", what)
        };
        let reference = Reference::try_from(text).map_err(|error| wrong(&error))?;
        if let Some(digest) = reference.digest()
            && digest.parse::<Digest>().is_err()
        {
            return Err(wrong(&"its digest is not of SHA-256"));
        }
        Ok(Self::Registry(reference))
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => f.write_str(&reference.whole()),
            Self::Layout(local) => {
                f.write_str("oci:")?;
                local.write(f)
            }
            Self::Archive(local) => {
                f.write_str("docker-archive:")?;
                local.write(f)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written_and_pinned() {
        let digest: Digest = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        for (text, shown, pinned) in [
            ("nginx", "docker.io/library/nginx:latest", "docker.io/library/nginx:latest@DIGEST"),
            ("localhost:5000/a/b:1", "localhost:5000/a/b:1", "localhost:5000/a/b:1@DIGEST"),
            ("127.0.0.1:5000/a@DIGEST", "127.0.0.1:5000/a@DIGEST", "127.0.0.1:5000/a@DIGEST"),
            ("oci:/srv/a", "oci:/srv/a", "oci:/srv/a@DIGEST"),
            ("oci:/srv/a:v1@DIGEST", "oci:/srv/a:v1@DIGEST", "oci:/srv/a:v1@DIGEST"),
            ("docker-archive:/a.tar:b:c", "docker-archive:/a.tar:b:c", "docker-archive:/a.tar:b:c@DIGEST"),
        ] {
            let fill = |text: &str| text.replace("DIGEST", digest.as_str());
            let name: ImageName = fill(text).parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(name.to_string(), fill(shown));
            assert_eq!(name.pinned(&digest).to_string(), fill(pinned));
            assert_eq!(
                name.pinned(&digest).to_string().parse::<ImageName>().unwrap().digest(),
                Some(digest.clone())
            );
        }
        for wrong in ["", "a b", "oci:srv", "oci:/srv/../etc", "a@sha256:12", "oci:/a@md5:x", "a@sha512:00"] {
            let error = wrong.parse::<ImageName>().expect_err(wrong);
            assert_eq!(error.kind, ErrorKind::InvalidSpec, "{wrong}");
        }
    }
}
