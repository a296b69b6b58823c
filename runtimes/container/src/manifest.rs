//! Manifests and indexes of images, of OCI and of Docker's second schema.

use sas_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What registries are asked for.
pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// What a manifest says that it is; one of OCI need not say it.
pub(crate) fn kind(bytes: &[u8]) -> String {
    let read = serde_json::from_slice::<Manifest>(bytes).ok();
    read.and_then(|manifest| manifest.media_type).unwrap_or_else(|| MANIFEST_TYPES[2].to_owned())
}

/// Bytes of a manifest, an index or a configuration at most.
pub(crate) const MOST_MANIFEST: usize = 4 << 20;

/// A blob, as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(with = "as_text")]
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
}

mod as_text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::digest::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(digest.as_str())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(|error: sas_core::Error| D::Error::custom(error.message))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    pub(crate) architecture: String,
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

/// A manifest or an index of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    #[serde(default)]
    pub(crate) schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) media_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) layers: Option<Vec<Descriptor>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) manifests: Option<Vec<Descriptor>>,
}

/// What a manifest says.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Of one image: its configuration and its layers, the lowest first.
    Image { config: Descriptor, layers: Vec<Descriptor> },
    /// The manifest of this platform.
    Platform(Descriptor),
}

fn wrong(image: &str, what: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidSpec, "pull", format!("image {image}: {what}"))
}

/// This machine, as images call it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// Reads a manifest of `image`, which has at most `most` layers.
pub(crate) fn parse(image: &str, bytes: &[u8], most: usize) -> Result<Parsed> {
    if bytes.len() > MOST_MANIFEST {
        return Err(wrong(image, format!("its manifest is larger than {MOST_MANIFEST} bytes")));
    }
    let manifest: Manifest = serde_json::from_slice(bytes)
        .map_err(|error| wrong(image, format!("its manifest can't be read: {error}")))?;
    let kind = manifest.media_type.as_deref().unwrap_or_default();
    if manifest.schema_version == 1 || kind.contains("docker.distribution.manifest.v1") {
        let remedy = "it is in Docker's first schema of manifests, which nobody writes any more; build and push it anew";
        return Err(wrong(image, remedy));
    }
    if manifest.schema_version != 2 {
        return Err(wrong(
            image,
            format!("its manifest is of schema version {}, not 2", manifest.schema_version),
        ));
    }
    if let Some(manifests) = manifest.manifests {
        return choose(image, manifests).map(Parsed::Platform);
    }
    let (Some(config), Some(layers)) = (manifest.config, manifest.layers) else {
        return Err(wrong(image, "its manifest names no configuration and layers: it is no image"));
    };
    if layers.len() > most {
        return Err(wrong(image, format!("it has {} layers, and images may have {most}", layers.len())));
    }
    for layer in &layers {
        let kind = &layer.media_type;
        if kind.contains("nondistributable") || kind.contains("foreign") {
            let remedy = "lies elsewhere than at the registry (a foreign layer); build it on a base without such layers";
            return Err(wrong(image, format!("its layer {} {remedy}", layer.digest)));
        }
        let known = kind.is_empty()
            || kind.starts_with("application/vnd.oci.image.layer.v1.tar")
            || kind.starts_with("application/vnd.docker.image.rootfs.diff.tar")
            || kind == "application/vnd.docker.image.rootfs.diff.tar.gzip";
        if !known {
            return Err(wrong(
                image,
                format!("its layer {} is of the kind {kind:?}: it is no image to run", layer.digest),
            ));
        }
    }
    Ok(Parsed::Image { config, layers })
}

fn choose(image: &str, manifests: Vec<Descriptor>) -> Result<Descriptor> {
    let here = architecture();
    let fits = |manifest: &Descriptor| {
        manifest
            .platform
            .as_ref()
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == here)
    };
    let rank = |manifest: &Descriptor| {
        let variant = manifest.platform.as_ref().and_then(|platform| platform.variant.as_deref());
        match (here, variant) {
            (_, None) | ("arm64", Some("v8")) => 0,
            ("amd64", Some("v1")) => 1,
            // A variant that this machine may lack.
            _ => 2,
        }
    };
    let mut fitting: Vec<&Descriptor> = manifests.iter().filter(|manifest| fits(manifest)).collect();
    fitting.sort_by_key(|manifest| rank(manifest));
    if let Some(found) = fitting.first() {
        return Ok((*found).clone());
    }
    // What says nothing of platforms has one image for all.
    if let [only] = manifests.as_slice()
        && only.platform.is_none()
    {
        return Ok(only.clone());
    }
    let mut known: Vec<String> = manifests
        .iter()
        .filter_map(|manifest| manifest.platform.as_ref())
        .map(|platform| format!("{}/{}", platform.os, platform.architecture))
        .filter(|platform| platform != "unknown/unknown")
        .collect();
    known.dedup();
    let problem =
        format!("it is there for {}, not for linux/{here}; build it for this platform too", known.join(", "));
    Err(wrong(image, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(fill: &str) -> String {
        format!("sha256:{}", fill.repeat(64))
    }

    #[test]
    fn the_image_of_this_platform_is_chosen() {
        let entry = |os: &str, arch: &str, fill: &str| serde_json::json!({"digest": digest(fill), "size": 1, "mediaType": "x", "platform": {"os": os, "architecture": arch}});
        let index = |manifests: Vec<serde_json::Value>| {
            serde_json::to_vec(&serde_json::json!({"schemaVersion": 2, "manifests": manifests})).unwrap()
        };
        let here = architecture();
        let several = index(vec![
            entry("windows", here, "a"),
            entry("linux", "riscv64", "b"),
            entry("linux", here, "c"),
        ]);
        match parse("i", &several, 9).unwrap() {
            Parsed::Platform(found) => assert_eq!(found.digest.as_str(), digest("c")),
            other => panic!("{other:?}"),
        }
        let none = index(vec![entry("windows", "amd64", "a"), entry("linux", "riscv64", "b")]);
        let error = parse("i", &none, 9).unwrap_err().to_string();
        assert!(error.contains("windows/amd64, linux/riscv64") && error.contains(here), "{error}");
    }

    #[test]
    fn what_is_no_image_to_run_is_refused_with_the_remedy() {
        let blob = |kind: &str| serde_json::json!({"digest": digest("a"), "size": 1, "mediaType": kind});
        let image = |layers: Vec<serde_json::Value>| serde_json::json!({"schemaVersion": 2, "config": blob("c"), "layers": layers});
        for (manifest, part) in [
            (serde_json::json!({"schemaVersion": 1, "fsLayers": []}), "first schema"),
            (serde_json::json!({"schemaVersion": 3}), "version 3"),
            (serde_json::json!({"schemaVersion": 2}), "no configuration"),
            (image(vec![blob("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")]), "foreign layer"),
            (
                image(vec![blob("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip")]),
                "foreign layer",
            ),
            (image(vec![blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip")]), "no image to run"),
            (image(vec![blob(""); 10]), "10 layers"),
            (
                serde_json::json!({"schemaVersion": 2, "config": {"digest": "sha256:zz", "size": 1}, "layers": []}),
                "digest",
            ),
        ] {
            let error = parse("i", &serde_json::to_vec(&manifest).unwrap(), 9).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert!(parse("i", b"<html>", 9).is_err());
    }
}
