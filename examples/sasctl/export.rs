//! `sasctl export`: a package as a container image, in a layout or at a registry. It asks no platform.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use sas::{
    container::{DockerConfig, ImageBase, ImageSettings, Transfer, write_image},
    knative::manifest::Manifest,
    prelude::*,
    process::JailLevel,
};
use serde_json::{Value, json};

use super::{Failed, cell};

/// Where the package stands in the image.
const AT: &str = "/app";

/// What is written out, and where to.
#[derive(clap::Args)]
pub(crate) struct Export {
    /// A directory, an archive, a jar, or a manifest that names one.
    what: PathBuf,
    /// Where to: oci:DIRECTORY:TAG, or REGISTRY/NAME:TAG.
    #[arg(long)]
    image: String,
    /// The image that it is built upon, which has the interpreter: oci:DIRECTORY:TAG, or REGISTRY/NAME:TAG. Without one
    /// there is the package and nothing else.
    #[arg(long)]
    base: Option<String>,
    /// Whom it runs as: a number or a name; else as the base says.
    #[arg(long)]
    user: Option<String>,
    /// How it starts, unless that is found by itself.
    #[arg(long)]
    command: Option<String>,
    /// A registry that speaks plain HTTP.
    #[arg(long, value_name = "HOST:PORT")]
    plain_http: Vec<String>,
    /// Docker's file with credentials for registries; else ~/.docker/config.json where it is.
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
}

fn failed(error: impl std::fmt::Display) -> Failed {
    Failed(error.to_string())
}

/// `oci:DIRECTORY:TAG`.
fn layout(name: &str) -> Result<Option<(PathBuf, String)>, Failed> {
    let Some(rest) = name.strip_prefix("oci:") else { return Ok(None) };
    match rest.split_once(':') {
        Some((dir, tag)) if !dir.is_empty() && !tag.is_empty() => Ok(Some((dir.into(), tag.to_owned()))),
        _ => Err(Failed(format!("{name}: write oci:DIRECTORY:TAG"))),
    }
}

/// The spec of what a manifest or a path names.
async fn spec(what: &Path, command: Option<String>) -> Result<RevisionSpec, Failed> {
    let real = std::fs::canonicalize(what).map_err(|error| Failed(format!("{}: {error}", what.display())))?;
    let end = real.extension().and_then(|end| end.to_str()).unwrap_or_default();
    let mut spec = if real.is_file() && matches!(end, "yaml" | "yml" | "json") {
        let text =
            std::fs::read_to_string(&real).map_err(|error| Failed(format!("{}: {error}", what.display())))?;
        let manifests = sas::knative::manifest::parse(&text, &Default::default()).map_err(failed)?;
        let mut services = manifests.into_iter().filter_map(|one| match one {
            Manifest::Service(service) => Some(service),
            _ => None,
        });
        let (Some(service), None) = (services.next(), services.next()) else {
            return Err(Failed(format!("{}: a manifest of one service", what.display())));
        };
        let mut spec = service.spec;
        if let Source::Path(path) = &mut spec.source
            && let Some(dir) = real.parent()
        {
            *path = dir.join(&*path);
        }
        spec
    } else {
        RevisionSpec::new(ProcessRuntime::NAME, Source::Path(real))
    };
    if let Some(command) = command {
        spec.command = command.split_whitespace().map(str::to_owned).collect();
    }
    Ok(spec)
}

pub(crate) async fn export(wanted: Export) -> Result<Value, Failed> {
    let spec = spec(&wanted.what, wanted.command).await?;
    let scratch = tempfile::tempdir().map_err(failed)?;
    let dir = std::fs::canonicalize(scratch.path()).map_err(failed)?;
    let mut config = ProcessConfig::default();
    config.store = dir.join("packages");
    // Nothing is started.
    (config.jail.level, config.jail.ready) = (JailLevel::None, 0);
    let runtime = ProcessRuntime::new(config).map_err(failed)?;
    let found = runtime.find_start(&spec, Path::new(AT)).await.map_err(failed)?;

    let mut transfer = Transfer::default();
    transfer.registries.plain_http = wanted.plain_http;
    let named = wanted.docker_config.is_some();
    match DockerConfig::read(wanted.docker_config).await {
        Ok(config) => transfer.credentials = Some(Arc::new(config)),
        // Who has none is asked for none.
        Err(error) if !named && error.kind == ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let own = dir.join("layout");
    let mut settings = ImageSettings::new(found.command.clone());
    settings.env = found.env.clone();
    settings.working_dir = Some(found.working_dir.clone());
    settings.prefix = Some(AT.to_owned());
    settings.port = spec.port;
    settings.user = wanted.user.unwrap_or_default();
    if let Some(base) = wanted.base {
        settings.base = Some(match layout(&base)? {
            Some((layout, tag)) => ImageBase { layout, tag },
            None => {
                transfer.pull(&base, &own, "base").await.map_err(failed)?;
                ImageBase { layout: own.clone(), tag: "base".to_owned() }
            }
        });
    }
    let (to, tag) = match layout(&wanted.image)? {
        Some((layout, tag)) => (layout, tag),
        None => (own, "image".to_owned()),
    };
    let (files, at, name) = (found.files.clone(), to.clone(), tag.clone());
    let written = tokio::task::spawn_blocking(move || write_image(&files, &at, &name, &settings));
    let digest = written.await.map_err(failed)?.map_err(failed)?;
    let image = match wanted.image.starts_with("oci:") {
        true => wanted.image,
        false => transfer.push(&to, &tag, &wanted.image).await.map_err(failed)?,
    };
    Ok(json!({"image": image, "digest": digest, "command": found.command, "notes": found.notes}))
}

pub(crate) fn shown(made: &Value) -> String {
    let words = made["command"].as_array().into_iter().flatten().map(cell).collect::<Vec<_>>().join(" ");
    let notes = made["notes"].as_array().into_iter().flatten().map(|note| format!("\nnote: {}", cell(note)));
    format!(
        "{}\n{}\nstarts: {words}{}",
        cell(&made["image"]),
        cell(&made["digest"]),
        notes.collect::<String>()
    )
}
