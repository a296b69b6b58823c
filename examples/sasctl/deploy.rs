//! What `sasctl deploy` is given, made into a manifest: a directory, a file, an image, or a manifest.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};

use super::{Failed, client::Client};

/// Most bytes of a package, as the platform takes it.
const MOST: u64 = 1 << 30;

/// What is deployed, beside where it is.
pub(crate) struct Wanted {
    pub(crate) name: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) command: Option<String>,
    pub(crate) env: Vec<(String, String)>,
}

/// Sends what `what` names, and the manifest that runs it.
pub(crate) async fn deploy(client: &Client, what: &str, wanted: Wanted) -> Result<Value, Failed> {
    let path = Path::new(what);
    let Ok(facts) = std::fs::metadata(path) else {
        // No file: an image, which has a tag, a digest or a registry.
        if !what.contains([':', '/']) || what.starts_with(['.', '/']) {
            return Err(Failed(format!("{what}: there is no such file or directory, and it is no image")));
        }
        let name = what.rsplit('/').next().unwrap_or(what);
        let name = name.split([':', '@']).next().unwrap_or(name);
        return apply(client, &manifest(&service_name(name), &wanted, None, Some(what))).await;
    };
    let kind = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if facts.is_file() && matches!(kind, "yaml" | "yml" | "json") {
        return apply_file(client, path).await;
    }
    let real = std::fs::canonicalize(path).map_err(|error| Failed(format!("{what}: {error}")))?;
    let digest = send(client, &real).await?;
    let name = real.file_name().and_then(|name| name.to_str()).unwrap_or("app");
    apply(client, &manifest(&service_name(name), &wanted, Some(&digest), None)).await
}

/// A manifest as it stands, with the packages that it names by a path beside it sent before.
async fn apply_file(client: &Client, path: &Path) -> Result<Value, Failed> {
    let mut text =
        std::fs::read_to_string(path).map_err(|error| Failed(format!("{}: {error}", path.display())))?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut packages: Vec<String> = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with('#')) {
        let Some((_, rest)) = line.split_once("sas.dev/package") else { continue };
        let value = rest.trim_start_matches(['"', '\'', ':', ' ']);
        let value = value.split([',', '}', '"', '\'', '#']).next().unwrap_or_default().trim();
        if !value.is_empty() && dir.join(value).exists() && !packages.iter().any(|known| known == value) {
            packages.push(value.to_owned());
        }
    }
    for package in packages {
        let real = std::fs::canonicalize(dir.join(&package))
            .map_err(|error| Failed(format!("{package}: {error}")))?;
        let digest = send(client, &real).await?;
        text = text.replace(&package, &digest);
    }
    let kind = if path.extension().is_some_and(|extension| extension == "json") { "json" } else { "yaml" };
    let kind = format!("application/{kind}");
    client.send("POST", "/v1/services", &[("content-type", &kind)], text.into()).await?.json()
}

async fn apply(client: &Client, manifest: &Value) -> Result<Value, Failed> {
    client.post("/v1/services", manifest).await
}

fn manifest(name: &str, wanted: &Wanted, package: Option<&str>, image: Option<&str>) -> Value {
    let mut annotations = serde_json::Map::new();
    if let Some(package) = package {
        annotations.insert("sas.dev/package".to_owned(), package.into());
    }
    if let Some(command) = &wanted.command {
        annotations.insert("sas.dev/command".to_owned(), command.as_str().into());
    }
    let env: Vec<Value> =
        wanted.env.iter().map(|(name, value)| json!({"name": name, "value": value})).collect();
    let mut container = json!({"env": env});
    if let Some(image) = image {
        container["image"] = image.into();
    }
    let mut metadata = json!({"name": wanted.name.as_deref().unwrap_or(name), "annotations": annotations});
    if let Some(namespace) = &wanted.namespace {
        metadata["namespace"] = namespace.as_str().into();
    }
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"template": {"spec": {"containers": [container]}}},
    })
}

/// A name that a service may have: of `My App.tar.gz`, `my-app`.
fn service_name(file: &str) -> String {
    let known = [".tar.gz", ".tgz", ".tar", ".zip", ".jar", ".war", ".wasm", ".wat"];
    let lower = file.to_ascii_lowercase();
    let stem = known.iter().find_map(|end| lower.strip_suffix(end)).unwrap_or(&lower);
    let stem =
        stem.strip_suffix(".py").or(stem.strip_suffix(".js")).or(stem.strip_suffix(".sh")).unwrap_or(stem);
    let mut name = String::new();
    for letter in stem.chars() {
        let letter = if letter.is_ascii_alphanumeric() { letter } else { '-' };
        if letter != '-' || !name.ends_with('-') {
            name.push(letter);
        }
    }
    let name = name.trim_matches('-');
    let name = &name[..name.len().min(50)];
    match name.chars().next() {
        Some(first) if first.is_ascii_alphabetic() => name.trim_end_matches('-').to_owned(),
        _ => format!("app-{name}").trim_end_matches('-').to_owned(),
    }
}

/// Sends a file as it is, or a directory as an archive; its digest.
async fn send(client: &Client, path: &Path) -> Result<String, Failed> {
    let at = path.to_path_buf();
    let packed = tokio::task::spawn_blocking(move || pack(&at)).await;
    let (name, bytes) = packed.map_err(|error| Failed(error.to_string()))??;
    let name = percent(&name);
    let headers = [("content-type", "application/octet-stream")];
    let answer = client.send("POST", &format!("/v1/packages?name={name}"), &headers, bytes).await?.json()?;
    let digest = answer["digest"].as_str().map(str::to_owned);
    digest.ok_or_else(|| Failed("the platform gave no digest of the package".to_owned()))
}

pub(crate) fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

/// A package's name and bytes. Blocking.
fn pack(path: &Path) -> Result<(String, Bytes), Failed> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| Failed(format!("{}: {error}", path.display()));
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("app").to_owned();
    if !path.is_dir() {
        let facts = std::fs::metadata(path).map_err(|error| failed(path, &error))?;
        if facts.len() > MOST {
            return Err(failed(path, &"has more than 1 GiB, the most that is sent"));
        }
        let bytes = std::fs::read(path).map_err(|error| failed(path, &error))?;
        return Ok((name, bytes.into()));
    }
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    archive.follow_symlinks(false);
    // Names, contents and executable bits only: the same content is the same revision, whoever packs it and when.
    archive.mode(tar::HeaderMode::Deterministic);
    // The same rules as the platform's own for a directory of its host.
    let mut walk = ignore::WalkBuilder::new(path);
    walk.standard_filters(false).add_custom_ignore_filename(".sasignore").follow_links(false);
    walk.sort_by_file_name(Ord::cmp);
    walk.filter_entry(|entry| {
        let name = entry.file_name().to_str().unwrap_or_default();
        !matches!(name, ".git" | ".hg" | ".svn" | "__MACOSX" | ".DS_Store" | "Thumbs.db")
    });
    let mut files = 0_usize;
    for entry in walk.build() {
        let entry = entry.map_err(|error| failed(path, &error))?;
        let inside: PathBuf = entry.path().strip_prefix(path).unwrap_or(entry.path()).to_path_buf();
        if inside.as_os_str().is_empty() {
            continue;
        }
        archive.append_path_with_name(entry.path(), &inside).map_err(|error| failed(entry.path(), &error))?;
        files += 1;
        if archive.get_ref().get_ref().len() as u64 > MOST {
            return Err(failed(path, &"has more than 1 GiB packed, the most that is sent; see .sasignore"));
        }
    }
    if files == 0 {
        return Err(failed(path, &"is empty: there is nothing to deploy"));
    }
    let gzip = archive.into_inner().map_err(|error| failed(path, &error))?;
    let bytes = gzip.finish().map_err(|error| failed(path, &error))?;
    let name: String = name
        .chars()
        .map(|letter| if letter.is_alphanumeric() || "._-+@ ".contains(letter) { letter } else { '-' })
        .collect();
    Ok((format!("{}.tar.gz", name.trim_start_matches(['.', ' '])), bytes.into()))
}
