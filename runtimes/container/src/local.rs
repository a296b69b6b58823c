//! Images of files of this host: directories of the OCI image layout, and what `docker save` writes.

use std::{
    collections::HashMap,
    fs,
    io::{self, Read, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use sas_core::{Error, ErrorKind, Result};
use serde::Deserialize;

use crate::{
    config::ContainerConfig,
    digest::Digest,
    manifest::{Descriptor, MOST_MANIFEST, Manifest},
    name::Local,
};

fn wrong(local: &Local, what: impl std::fmt::Display) -> Error {
    let what = format!("source.image: {}: {what}", local.path.display());
    Error::new(ErrorKind::InvalidSpec, "prepare", what)
}

fn missing(local: &Local, what: impl std::fmt::Display) -> Error {
    let what = format!("source.image: {}: {what}", local.path.display());
    Error::new(ErrorKind::NotFound, "prepare", what)
}

/// Whether files of this host may be read as images at this place. Blocks.
pub(crate) fn allowed(config: &ContainerConfig, local: &Local) -> Result<PathBuf> {
    let real = fs::canonicalize(&local.path).map_err(|error| missing(local, error))?;
    let below =
        config.local_images.iter().any(|dir| fs::canonicalize(dir).is_ok_and(|dir| real.starts_with(dir)));
    if below {
        return Ok(real);
    }
    let remedy = "images of files are read below ContainerConfig::local_images only; name its directory there, or push \
                  the image to a registry";
    Err(wrong(local, remedy))
}

fn read_small(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MOST_MANIFEST as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MOST_MANIFEST {
        return Err(io::Error::other(format!("larger than {MOST_MANIFEST} bytes")));
    }
    Ok(bytes)
}

/// A directory of the OCI image layout.
pub(crate) struct Layout<'a> {
    local: &'a Local,
    dir: PathBuf,
}

impl<'a> Layout<'a> {
    pub(crate) fn open(local: &'a Local, dir: PathBuf) -> Result<Self> {
        if !dir.join("oci-layout").is_file() {
            return Err(wrong(local, "no directory of the OCI image layout: it has no file oci-layout"));
        }
        Ok(Self { local, dir })
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// What the name stands for now.
    pub(crate) fn resolve(&self) -> Result<Digest> {
        if let Some(digest) = &self.local.digest {
            return Ok(digest.clone());
        }
        let text = read_small(&self.dir.join("index.json"))
            .map_err(|error| wrong(self.local, format!("index.json: {error}")))?;
        let index: Manifest = serde_json::from_slice(&text)
            .map_err(|error| wrong(self.local, format!("index.json: {error}")))?;
        let manifests = index.manifests.unwrap_or_default();
        const NAME: &str = "org.opencontainers.image.ref.name";
        let named: Vec<&Descriptor> = match &self.local.tag {
            None => manifests.iter().collect(),
            Some(tag) => manifests
                .iter()
                .filter(|manifest| {
                    manifest.annotations.get(NAME).is_some_and(|name| {
                        name == tag || name.rsplit_once(':').is_some_and(|(_, last)| last == tag)
                    })
                })
                .collect(),
        };
        match named.as_slice() {
            [only] => Ok(only.digest.clone()),
            [] => {
                let names: Vec<&str> = manifests
                    .iter()
                    .filter_map(|one| one.annotations.get(NAME))
                    .map(String::as_str)
                    .collect();
                let tag = self.local.tag.as_deref().unwrap_or_default();
                Err(missing(
                    self.local,
                    format!("no image of the tag {tag:?}; there are: {}", names.join(", ")),
                ))
            }
            several => {
                Err(wrong(self.local, format!("{} images: name one by oci:<directory>:<tag>", several.len())))
            }
        }
    }

    /// A manifest or a configuration, checked.
    pub(crate) fn small(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = read_small(&self.blob_path(digest))
            .map_err(|error| missing(self.local, format!("blob {digest}: {error}")))?;
        if Digest::of(&bytes) != *digest {
            return Err(wrong(self.local, format!("blob {digest} has another content than its name says")));
        }
        Ok(bytes)
    }

    /// A layer, whose content is checked when it is unpacked.
    pub(crate) fn layer(&self, digest: &Digest) -> Result<fs::File> {
        fs::File::open(self.blob_path(digest))
            .map_err(|error| missing(self.local, format!("layer {digest}: {error}")))
    }
}

/// What `docker save` writes: a tar archive with a `manifest.json`.
pub(crate) struct Archive<'a> {
    local: &'a Local,
    file: fs::File,
    members: HashMap<String, Member>,
}

#[derive(Clone)]
enum Member {
    At { offset: u64, size: u64 },
    Link(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Members of an archive at most.
const MOST_MEMBERS: usize = 10_000;

impl<'a> Archive<'a> {
    pub(crate) fn open(local: &'a Local, path: &Path) -> Result<Self> {
        let file = fs::File::open(path).map_err(|error| missing(local, error))?;
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(&file);
        let broken = |error: io::Error| wrong(local, format!("no archive of docker save: {error}"));
        for entry in archive.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
            let member = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    Member::At { offset: entry.raw_file_position(), size: entry.size() }
                }
                // Layers that are the same stand once, the others are links such as ../<id>/layer.tar.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let link =
                        String::from_utf8_lossy(&entry.link_name_bytes().unwrap_or_default()).into_owned();
                    Member::Link(link.trim_start_matches("../").trim_start_matches("./").to_owned())
                }
                _ => continue,
            };
            members.insert(name, member);
            if members.len() > MOST_MEMBERS {
                return Err(wrong(
                    local,
                    format!("more than {MOST_MEMBERS} members: no archive of docker save"),
                ));
            }
        }
        Ok(Self { local, file, members })
    }

    fn member(&self, name: &str) -> Result<(io::Take<fs::File>, u64)> {
        let none =
            || wrong(self.local, format!("it has no member {name:?}: no whole archive of docker save"));
        let mut member = self.members.get(name).cloned().ok_or_else(none)?;
        // A link leads to a file; a link to a link is nothing that Docker writes.
        if let Member::Link(to) = &member {
            member = self.members.get(to).cloned().ok_or_else(none)?;
        }
        let Member::At { offset, size } = member else { return Err(none()) };
        let broken = |error: io::Error| wrong(self.local, format!("{name}: {error}"));
        // Its own descriptor: two readers of one archive have two positions.
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&self.file));
        let mut file = fs::File::open(path).map_err(broken)?;
        file.seek(SeekFrom::Start(offset)).map_err(broken)?;
        Ok((file.take(size), size))
    }

    fn small(&self, name: &str) -> Result<Vec<u8>> {
        let (reader, size) = self.member(name)?;
        if size > MOST_MANIFEST as u64 {
            return Err(wrong(self.local, format!("{name}: larger than {MOST_MANIFEST} bytes")));
        }
        let mut bytes = Vec::new();
        reader
            .take(size)
            .read_to_end(&mut bytes)
            .map_err(|error| wrong(self.local, format!("{name}: {error}")))?;
        Ok(bytes)
    }

    /// The configuration, its digest and the names of the layers.
    pub(crate) fn image(&self) -> Result<(Vec<u8>, Digest, Vec<String>)> {
        let text = self.small("manifest.json")?;
        let saved: Vec<Saved> = serde_json::from_slice(&text)
            .map_err(|error| wrong(self.local, format!("manifest.json: {error}")))?;
        let fits = |one: &&Saved| {
            let Some(wanted) = &self.local.tag else { return true };
            one.repo_tags.iter().flatten().any(|tag| {
                tag == wanted
                    || tag.rsplit('/').next() == Some(wanted)
                    || tag.rsplit(':').next() == Some(wanted)
            })
        };
        let named: Vec<&Saved> = saved.iter().filter(fits).collect();
        let one = match named.as_slice() {
            [one] => one,
            [] => {
                let all: Vec<String> =
                    saved.iter().flat_map(|one| one.repo_tags.clone().unwrap_or_default()).collect();
                return Err(missing(
                    self.local,
                    format!("no image of that name; there are: {}", all.join(", ")),
                ));
            }
            several => {
                let what = format!("{} images: name one by docker-archive:<file>:<name>", several.len());
                return Err(wrong(self.local, what));
            }
        };
        let config = self.small(&one.config)?;
        let digest = Digest::of(&config);
        if let Some(wanted) = &self.local.digest
            && *wanted != digest
        {
            return Err(wrong(self.local, format!("it has the image {digest} now, not {wanted}")));
        }
        Ok((config, digest, one.layers.clone()))
    }

    pub(crate) fn layer(&self, name: &str) -> Result<(impl Read + use<>, u64)> {
        self.member(name)
    }
}
