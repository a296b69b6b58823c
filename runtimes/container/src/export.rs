//! Code written out as an image, so that who leaves takes a standard form along.
//!
//! The same files and settings give the same bytes, whenever and wherever they are written: names in order, no times, no
//! owners, permission bits as packages have them ([`sas_core::package::file_mode`]).

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::{Path, PathBuf},
};

use sas_core::{Error, ErrorKind, Result, package::file_mode};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::{
    digest::Digest,
    local::Layout,
    manifest::{self, Parsed},
    name::Local,
};

/// How an image runs what it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImageSettings {
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// Further arguments, which whoever runs the image may replace.
    pub cmd: Vec<String>,
    /// Variables that every container of the image is given.
    pub env: BTreeMap<String, String>,
    /// The directory to start in. Default: where the files are.
    pub working_dir: Option<String>,
    /// `user`, `uid` or `uid:gid`; empty: 0.
    pub user: String,
    /// The port that it listens on.
    pub port: Option<u16>,
    /// Labels of the image, by key.
    pub labels: BTreeMap<String, String>,
    /// Where the files stand in the image. Default `/app`; `/` for a whole root file system.
    pub prefix: Option<String>,
    /// The image that it is built upon, such as one that has an interpreter: its layers come first, and what is not set
    /// here is as it says.
    pub base: Option<ImageBase>,
}

/// An image of an OCI layout, upon which another is built. [`Transfer::pull`](crate::Transfer::pull) brings one there from
/// a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageBase {
    /// The layout's directory.
    pub layout: PathBuf,
    /// The image's tag in it.
    pub tag: String,
}

/// What a base has.
#[derive(Default)]
struct Below {
    layers: Vec<manifest::Descriptor>,
    /// The whole configuration.
    config: serde_json::Value,
}

impl Below {
    /// Reads a base, and has its layers in `blobs`.
    fn read(base: &ImageBase, blobs: &Path) -> Result<Self> {
        let dir = fs::canonicalize(&base.layout).map_err(|error| failed("open", &base.layout, error))?;
        let local = Local { path: dir.clone(), tag: Some(base.tag.clone()), digest: None };
        let layout = Layout::open(&local, dir.clone())?;
        let mut parsed = manifest::parse(&base.tag, &layout.small(&layout.resolve()?)?, usize::MAX)?;
        if let Parsed::Platform(one) = &parsed {
            parsed = manifest::parse(&base.tag, &layout.small(&one.digest)?, usize::MAX)?;
        }
        let Parsed::Image { config, mut layers } = parsed else {
            let what = format!("base: {}: an index within an index", base.layout.display());
            return Err(Error::new(ErrorKind::InvalidSpec, "export", what));
        };
        let config = serde_json::from_slice(&layout.small(&config.digest)?).map_err(|error| {
            let what = format!("base: {}: its configuration can't be read: {error}", base.layout.display());
            Error::new(ErrorKind::InvalidSpec, "export", what)
        })?;
        for layer in &mut layers {
            // The same bytes by the name that a manifest of OCI has for them.
            if layer.media_type.starts_with("application/vnd.docker.image.rootfs.diff.tar") {
                layer.media_type = layer
                    .media_type
                    .replace(
                        "application/vnd.docker.image.rootfs.diff.tar",
                        "application/vnd.oci.image.layer.v1.tar",
                    )
                    .replace(".gzip", "+gzip");
            }
            let (from, to) =
                (dir.join("blobs/sha256").join(layer.digest.hex()), blobs.join(layer.digest.hex()));
            if !to.exists() {
                fs::copy(&from, &to).map_err(|error| failed("copy", &from, error))?;
            }
        }
        Ok(Self { layers, config })
    }
}

impl ImageSettings {
    /// An image that starts `entrypoint`.
    pub fn new(entrypoint: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { entrypoint: entrypoint.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

pub(crate) fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Exhausted,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "export", format!("{what} {}: {error}", path.display())).with_source(error)
}

/// Writes the file or directory `files` as an image called `tag` into `layout`, a directory of the OCI image layout that
/// is made if it is not there. Any tool that knows the layout takes it from there, such as
/// `skopeo copy oci:<layout>:<tag> docker://registry/name:tag`. Blocks. Returns the digest of its manifest.
///
/// # Errors
/// `InvalidSpec` for a name or a prefix that is none; `NotFound` when the files are not there; `Unavailable` and
/// `Exhausted` when the disk fails.
pub fn write_image(files: &Path, layout: &Path, tag: &str, settings: &ImageSettings) -> Result<String> {
    let tag_ok = !tag.is_empty()
        && tag.len() <= 128
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !tag.starts_with(['.', '-']);
    if !tag_ok {
        let what = format!(
            "tag: {tag:?}: at most 128 letters, digits, '.', '_' and '-', none of the last two first"
        );
        return Err(Error::new(ErrorKind::InvalidSpec, "export", what));
    }
    let prefix = settings.prefix.as_deref().unwrap_or("/app");
    if !prefix.starts_with('/') || prefix.split('/').any(|part| part == "..") {
        let what = format!("prefix: {prefix:?}: an absolute path without ..");
        return Err(Error::new(ErrorKind::InvalidSpec, "export", what));
    }
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(|error| failed("create", &blobs, error))?;
    let below = settings.base.as_ref().map(|base| Below::read(base, &blobs)).transpose()?.unwrap_or_default();
    let (layer, diff, size) = layer(files, prefix, &blobs)?;
    let config = configuration(&below, settings, prefix, &diff);
    let (config_digest, config_size) = put(&blobs, &config)?;
    let own = json!({
        "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
        "digest": layer.as_str(),
        "size": size,
    });
    let layers: Vec<serde_json::Value> = below.layers.iter().map(|layer| json!(layer)).chain([own]).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": config_digest.as_str(),
            "size": config_size,
        },
        "layers": layers,
    });
    let (digest, size) = put(&blobs, &manifest)?;
    index(layout, tag, &digest, size, manifest::MANIFEST_TYPES[2].to_owned())?;
    Ok(digest.to_string())
}

/// The configuration: the base's, with what is set in its place.
fn configuration(below: &Below, settings: &ImageSettings, prefix: &str, diff: &Digest) -> serde_json::Value {
    let list =
        |at: &str| below.config.pointer(at).and_then(|value| value.as_array()).cloned().unwrap_or_default();
    let mut env: BTreeMap<String, String> = list("/config/Env")
        .iter()
        .filter_map(|pair| pair.as_str()?.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    env.extend(settings.env.clone());
    let mut config =
        below.config.get("config").and_then(|config| config.as_object()).cloned().unwrap_or_default();
    let mut set = |name: &str, value: serde_json::Value| config.insert(name.to_owned(), value);
    set("Env", json!(env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()));
    set("WorkingDir", json!(settings.working_dir.as_deref().unwrap_or(prefix)));
    if !settings.entrypoint.is_empty() {
        set("Entrypoint", json!(settings.entrypoint));
        // Those of the base are arguments of another program.
        set("Cmd", json!(settings.cmd));
    } else if !settings.cmd.is_empty() {
        set("Cmd", json!(settings.cmd));
    }
    if !settings.user.is_empty() {
        set("User", json!(settings.user));
    }
    if let Some(port) = settings.port {
        let port = format!("{port}/tcp");
        set("ExposedPorts", json!({port: {}}));
    }
    if !settings.labels.is_empty() {
        set("Labels", json!(settings.labels));
    }
    let mut diffs = list("/rootfs/diff_ids");
    diffs.push(json!(diff.as_str()));
    let mut history = list("/history");
    history.push(json!({"created_by": concat!("sas-runtime-container ", env!("CARGO_PKG_VERSION"))}));
    let said = |name: &str| below.config.get(name).and_then(|value| value.as_str());
    json!({
        "architecture": said("architecture").unwrap_or(manifest::architecture()),
        "os": said("os").unwrap_or("linux"),
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": diffs},
        "history": history,
    })
}

fn put(blobs: &Path, value: &serde_json::Value) -> Result<(Digest, u64)> {
    let bytes = serde_json::to_vec(value)
        .map_err(|error| Error::new(ErrorKind::Unexpected, "export", error.to_string()))?;
    let digest = Digest::of(&bytes);
    let path = blobs.join(digest.hex());
    fs::write(&path, &bytes).map_err(|error| failed("write", &path, error))?;
    Ok((digest, bytes.len() as u64))
}

/// Puts the image into the layout's index, in the place of one of the same tag.
pub(crate) fn index(layout: &Path, tag: &str, digest: &Digest, size: u64, kind: String) -> Result<()> {
    const NAME: &str = "org.opencontainers.image.ref.name";
    let path = layout.join("index.json");
    let before: manifest::Manifest = match fs::read(&path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            let what = format!("{}: no index of an OCI image layout: {error}", path.display());
            Error::new(ErrorKind::InvalidSpec, "export", what)
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => manifest::Manifest {
            schema_version: 2,
            media_type: None,
            config: None,
            layers: None,
            manifests: None,
        },
        Err(error) => return Err(failed("read", &path, error)),
    };
    let mut manifests = before.manifests.clone().unwrap_or_default();
    manifests.retain(|one| one.annotations.get(NAME).is_none_or(|name| name != tag));
    manifests.push(manifest::Descriptor {
        media_type: kind,
        digest: digest.clone(),
        size,
        platform: Some(manifest::Platform {
            architecture: manifest::architecture().to_owned(),
            os: "linux".to_owned(),
            variant: None,
        }),
        annotations: BTreeMap::from([(NAME.to_owned(), tag.to_owned())]),
    });
    manifests.sort_by(|a, b| a.annotations.get(NAME).cmp(&b.annotations.get(NAME)));
    let whole = manifest::Manifest { manifests: Some(manifests), ..before };
    let text = serde_json::to_vec(&whole)
        .map_err(|error| Error::new(ErrorKind::Unexpected, "export", error.to_string()))?;
    let write =
        |path: &Path, text: &[u8]| fs::write(path, text).map_err(|error| failed("write", path, error));
    write(&layout.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    write(&path, &text)
}

struct Hashed<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: io::Write> io::Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The files as a layer: the digest of its blob, of its content, and the blob's size.
fn layer(files: &Path, prefix: &str, blobs: &Path) -> Result<(Digest, Digest, u64)> {
    let new = blobs.join(format!(".new-{}", std::process::id()));
    let done = pack(files, prefix, &new);
    let done = done.and_then(|(blob, content, size)| {
        let to = blobs.join(blob.hex());
        fs::rename(&new, &to).map_err(|error| failed("put the layer at", &to, error))?;
        Ok((blob, content, size))
    });
    if done.is_err() {
        let _ = fs::remove_file(&new);
    }
    done
}

fn pack(files: &Path, prefix: &str, new: &Path) -> Result<(Digest, Digest, u64)> {
    let fail = |error: io::Error| failed("pack", files, error);
    let out = fs::File::create(new).map_err(|error| failed("create", new, error))?;
    let blob = Hashed { inner: io::BufWriter::new(out), hash: Sha256::new(), bytes: 0 };
    let packed = flate2::write::GzEncoder::new(blob, flate2::Compression::new(6));
    let content = Hashed { inner: packed, hash: Sha256::new(), bytes: 0 };
    let mut tar = tar::Builder::new(content);
    let mut above = PathBuf::new();
    for part in Path::new(prefix).components().skip(1) {
        above.push(part);
        directory(&mut tar, &above).map_err(fail)?;
    }
    let metadata = fs::metadata(files).map_err(fail)?;
    if metadata.is_dir() {
        add_all(&mut tar, files, &above).map_err(fail)?;
    } else {
        let name = files.file_name().unwrap_or_default();
        add(&mut tar, files, &above.join(name)).map_err(fail)?;
    }
    let content = tar.into_inner().map_err(fail)?;
    let diff = Digest::of_hash(&content.hash.finalize());
    let mut blob = content.inner.finish().map_err(fail)?;
    io::Write::flush(&mut blob).map_err(fail)?;
    Ok((Digest::of_hash(&blob.hash.finalize()), diff, blob.bytes))
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn directory<W: io::Write>(tar: &mut tar::Builder<W>, at: &Path) -> io::Result<()> {
    let mut name = at.as_os_str().to_owned();
    name.push("/");
    tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), name, io::empty())
}

fn add<W: io::Write>(tar: &mut tar::Builder<W>, from: &Path, at: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(from)?;
    if metadata.is_symlink() {
        let link = fs::read_link(from)?;
        return tar.append_link(&mut header(tar::EntryType::Symlink, 0o777, 0), at, link);
    }
    if !metadata.is_file() {
        // Sockets, pipes and devices are no code.
        return Ok(());
    }
    let mode = file_mode(metadata.permissions().mode());
    let file = fs::File::open(from)?;
    let size = metadata.len();
    tar.append_data(&mut header(tar::EntryType::Regular, mode, size), at, io::Read::take(file, size))
}

fn add_all<W: io::Write>(tar: &mut tar::Builder<W>, dir: &Path, at: &Path) -> io::Result<()> {
    let mut entries = fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by(|a, b| a.file_name().as_bytes().cmp(b.file_name().as_bytes()));
    for entry in entries {
        let (from, at) = (entry.path(), at.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            directory(tar, &at)?;
            add_all(tar, &from, &at)?;
        } else {
            add(tar, &from, &at)?;
        }
    }
    Ok(())
}
