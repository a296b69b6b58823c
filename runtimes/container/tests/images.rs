//! Images: from registries that work and registries that do not, and layers that mean harm. Needs root and crun or runc.

mod support;

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use sas_core::{ErrorKind, RevisionSpec, Runtime as _, Source, TenantKey};
use sas_runtime_container::{
    ContainerConfig, ContainerRuntime, Credentials, ImageSettings, StaticCredentials, write_image,
};
use sha2::{Digest as _, Sha256};
use support::{Workplace, blobs, get, start};

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn image(name: impl Into<String>) -> RevisionSpec {
    RevisionSpec::new("container", Source::Image(name.into()))
}

/// A layout of one image whose only layer has these bytes, with the digests that are told of it.
fn layout(dir: &Path, layer: &[u8], diff: &str, config: serde_json::Value) -> PathBuf {
    let layout = dir.join("hostile");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        (digest, bytes.len())
    };
    let (layer, size) = put(layer);
    let whole = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [diff]},
    });
    let (config, config_size) = put(whole.to_string().as_bytes());
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "config": {"digest": config, "size": config_size},
        "layers": [{"digest": layer, "size": size, "mediaType": "application/vnd.oci.image.layer.v1.tar"}],
    });
    let (manifest, size) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [{"digest": manifest, "size": size}]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    layout
}

fn header(kind: tar::EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(0o755);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// A tar archive of members: name, kind, link, content. Names are written as they are.
fn archive(members: &[(&str, tar::EntryType, &str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, link, content) in members {
        let mut header = header(*kind, content.len() as u64);
        let bytes = header.as_mut_bytes();
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[157..157 + link.len()].copy_from_slice(link.as_bytes());
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(8).unwrap();
            header.set_device_minor(0).unwrap();
        }
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn layers_that_mean_harm_are_refused_and_nothing_is_written_outside() {
    support::needs_containers!();
    use tar::EntryType::{Block, Directory, Link, Regular, Symlink};
    let run = serde_json::json!({"Entrypoint": ["/bin/app"]});
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("victim");
    let escape = outside.path().display().to_string();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("dots", archive(&[("../../../../victim", Regular, "", b"x")]), "leads out"),
        ("dots inside", archive(&[("a/../../victim", Regular, "", b"x")]), "leads out"),
        ("hard link out", archive(&[("a", Link, "../../etc/passwd", b"")]), "leads out"),
        ("hard link to nothing", archive(&[("a", Link, "etc/passwd", b"")]), "no file of the layer"),
        ("below a file", archive(&[("a", Regular, "", b"x"), ("a/b", Regular, "", b"x")]), "no directory"),
        ("whiteout of dots", archive(&[(".wh...", Regular, "", b"")]), "without a name"),
        ("no archive", b"this is no archive".repeat(100), "tar"),
        ("broken off", archive(&[("a", Regular, "", &[1; 4096])])[..2000].to_vec(), "layer"),
    ];
    for (name, layer, part) in cases {
        let place = Workplace::new();
        let made = layout(place.dir.path(), &layer, &digest(&layer), run.clone());
        let mut config = place.config();
        config.local_images.push(made.clone());
        let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
        let error = runtime.prepare(&image(format!("oci:{}", made.display()))).await.expect_err(name);
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{name}: {error}");
        assert!(error.message.contains(part), "{name}: {error}");
        assert_eq!(support::census(&place.store()), Vec::<String>::new(), "{name}");
    }
    // A link out of the layer is a link within the container: what is written through it stays in the layer.
    let layer = archive(&[
        ("out", Symlink, &escape, b""),
        ("out/victim", Regular, "", b"x"),
        ("dev", Directory, "", b""),
        ("dev/sda", Block, "", b""),
    ]);
    let place = Workplace::new();
    let made = layout(place.dir.path(), &layer, &digest(&layer), run);
    let mut config = place.config();
    config.local_images.push(made.clone());
    let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
    let outcome = runtime.prepare(&image(format!("oci:{}", made.display()))).await;
    assert!(!target.exists());
    match outcome {
        Ok(artifact) => assert!(artifact.info().notes[0].contains("1 device nodes"), "{:?}", artifact.info()),
        Err(error) => assert!(error.message.contains("no directory"), "{error}"),
    }
}

#[tokio::test]
async fn limits_of_size_of_ratio_and_of_number_hold_while_a_layer_is_unpacked() {
    support::needs_containers!();
    let zeros = vec![0u8; 70 << 20];
    let bomb = archive(&[("zeros", tar::EntryType::Regular, "", &zeros)]);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(&bomb).unwrap();
    let packed = packed.finish().unwrap();
    let many: Vec<(String, tar::EntryType)> =
        (0..200).map(|number| (format!("f{number}"), tar::EntryType::Regular)).collect();
    let many =
        archive(&many.iter().map(|(name, kind)| (name.as_str(), *kind, "", &b""[..])).collect::<Vec<_>>());
    for (layer, content, part) in [
        (&packed, &bomb, "times as large"),
        (&many, &many, "more than 100 members"),
        (&bomb, &bomb, "larger than"),
    ] {
        let place = Workplace::new();
        let run = serde_json::json!({"Entrypoint": ["/bin/app"]});
        let made = layout(place.dir.path(), layer, &digest(content), run);
        let mut config = place.config();
        config.local_images.push(made.clone());
        config.limits.files = 100;
        config.limits.bytes = if part == "larger than" { 1 << 20 } else { 1 << 30 };
        let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
        let error = runtime.prepare(&image(format!("oci:{}", made.display()))).await.expect_err(part);
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
        assert!(error.message.contains(part), "{error}");
    }
}

#[tokio::test]
async fn an_image_without_a_program_a_digest_that_lies_and_another_platform_are_refused() {
    support::needs_containers!();
    let layer = archive(&[("a", tar::EntryType::Regular, "", b"x")]);
    let place = Workplace::new();
    let made = layout(place.dir.path(), &layer, &digest(&layer), serde_json::json!({}));
    let mut config = place.config();
    config.local_images.push(made.clone());
    let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
    let name = format!("oci:{}", made.display());
    let error = runtime.prepare(&image(&name)).await.unwrap_err();
    assert!(error.message.contains("ENTRYPOINT"), "{error}");
    let mut given = image(&name);
    given.command = vec!["/a".into()];
    runtime.prepare(&given).await.unwrap();

    let other = digest(b"another content");
    let made = layout(
        place.dir.path(),
        &archive(&[("b", tar::EntryType::Regular, "", b"x")]),
        &other,
        serde_json::json!({"Cmd": ["/a"]}),
    );
    let error = runtime.prepare(&image(format!("oci:{}", made.display()))).await.unwrap_err();
    assert!(error.message.contains("unpacks to"), "{error}");
}

#[tokio::test]
async fn later_layers_hide_what_lower_ones_have_with_an_overlay_and_with_a_copy() {
    support::needs_containers!();
    use tar::EntryType::{Directory, Regular, Symlink};
    let place = Workplace::new();
    let app = fs::read(support::program()).unwrap();
    let lower = archive(&[
        ("bin", Directory, "", b""),
        ("bin/app", Regular, "", &app),
        ("gone", Regular, "", b"x"),
        ("dir", Directory, "", b""),
        ("dir/old", Regular, "", b"x"),
        ("kept", Regular, "", b"kept"),
        ("link", Symlink, "kept", b""),
    ]);
    let upper = archive(&[
        (".wh.gone", Regular, "", b""),
        ("dir/.wh..wh..opq", Regular, "", b""),
        ("dir/new", Regular, "", b"new"),
    ]);
    // One packed by gzip, one not at all.
    let layout_dir = place.dir.path().join("two");
    let blobs = layout_dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = digest(bytes);
        fs::write(blobs.join(&digest[7..]), bytes).unwrap();
        serde_json::json!({"digest": digest, "size": bytes.len(), "mediaType": ""})
    };
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&lower).unwrap();
    let layers = [put(&packed.finish().unwrap()), put(&upper)];
    let config = serde_json::json!({
        "os": "linux", "config": {"Entrypoint": ["/bin/app"], "Env": null},
        "rootfs": {"type": "layers", "diff_ids": [digest(&lower), digest(&upper)]},
    });
    let config = put(config.to_string().as_bytes());
    let manifest = put(serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers})
        .to_string()
        .as_bytes());
    fs::write(
        layout_dir.join("index.json"),
        serde_json::json!({"schemaVersion": 2, "manifests": [manifest]}).to_string(),
    )
    .unwrap();
    fs::write(layout_dir.join("oci-layout"), "{}").unwrap();
    for overlay in [true, false] {
        let mut config = place.config();
        config.store = place.dir.path().join(format!("store-{overlay}"));
        config.local_images.push(layout_dir.clone());
        config.overlay = overlay;
        let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
        assert_eq!(runtime.no_overlay().is_some(), !overlay);
        let mut spec = image(format!("oci:{}", layout_dir.display()));
        spec.command = vec!["/bin/app".into()];
        let started = start(&runtime, spec).await.unwrap();
        assert_eq!(get(&*started.instance, "/list/dir").await, "new");
        assert!(get(&*started.instance, "/read/gone").await.starts_with("refused"));
        assert_eq!(get(&*started.instance, "/read/link").await, "kept");
    }
}

/// A registry that answers as it is told: to a path, a range, and the number of the question.
type Answer = dyn Fn(&str, Option<&str>, usize) -> Response<Full<Bytes>> + Send + Sync;

async fn fake(answer: Arc<Answer>) -> support::Fake {
    support::Fake::start(move |asked, number| {
        let range = asked.headers.get("range").and_then(|value| value.to_str().ok());
        answer(asked.uri.path(), range, number)
    })
    .await
}

fn status(code: u16) -> Response<Full<Bytes>> {
    Response::builder().status(StatusCode::from_u16(code).unwrap()).body(Full::default()).unwrap()
}

fn sent(bytes: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(bytes.into()))
}

fn runtime_for(place: &Workplace, registry: SocketAddr) -> Arc<ContainerRuntime> {
    let mut config = place.config();
    config.registries.plain_http.push(registry.to_string());
    Arc::new(ContainerRuntime::new(config).unwrap())
}

#[tokio::test]
async fn what_a_registry_answers_is_told_with_the_remedy() {
    support::needs_containers!();
    let place = Workplace::new();
    let schema1 = r#"{"schemaVersion": 1, "name": "a", "fsLayers": []}"#;
    let elsewhere = r#"{"schemaVersion": 2, "manifests": [{"digest": "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "size": 1, "platform": {"os": "plan9", "architecture": "mips"}}]}"#;
    let cases: Vec<(&str, Arc<Answer>, ErrorKind, &str)> = vec![
        ("401", Arc::new(|_, _, _| status(401)), ErrorKind::InvalidSpec, "imagePullSecrets"),
        ("403", Arc::new(|_, _, _| status(403)), ErrorKind::InvalidSpec, "403"),
        ("404", Arc::new(|_, _, _| status(404)), ErrorKind::NotFound, "404"),
        ("418", Arc::new(|_, _, _| status(418)), ErrorKind::InvalidSpec, "418"),
        ("html", Arc::new(|_, _, _| sent("<html>")), ErrorKind::InvalidSpec, "can't be read"),
        (
            "schema 1",
            Arc::new(move |_, _, _| sent(schema1)),
            ErrorKind::InvalidSpec,
            "build and push it anew",
        ),
        ("platform", Arc::new(move |_, _, _| sent(elsewhere)), ErrorKind::InvalidSpec, "plan9/mips"),
    ];
    for (name, answer, kind, part) in cases {
        let told = fake(answer).await;
        let runtime = runtime_for(&place, told.address);
        let spec = image(format!("{}/a:1", told.address));
        let error = runtime.pin(&spec, TenantKey(1)).await.expect_err(name);
        assert_eq!(error.kind, kind, "{name}: {error}");
        assert!(error.message.contains(part), "{name}: {error}");
        assert!(told.asked.load(Ordering::SeqCst) <= 3, "{name}: nothing is gained by asking again");
    }
    // Nobody there.
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let runtime = runtime_for(&place, address);
    let error = runtime.pin(&image(format!("{address}/a:1")), TenantKey(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("can't be reached"), "{error}");
}

#[tokio::test]
async fn a_busy_registry_is_asked_again_and_a_pull_that_breaks_off_goes_on_from_there() {
    support::needs_containers!();
    let place = Workplace::new();
    let (all, manifest) = blobs(&place);
    let ranges = Arc::new(parking_lot::Mutex::new(Vec::<u64>::new()));
    let seen = Arc::clone(&ranges);
    let told = fake(Arc::new(move |path: &str, range: Option<&str>, number: usize| {
        if number == 0 || number == 1 {
            return status(if number == 0 { 429 } else { 503 });
        }
        if path.contains("/manifests/") {
            return sent(manifest.clone());
        }
        let Some(blob) = path.rsplit('/').next().and_then(|digest| all.get(digest)) else {
            return status(200);
        };
        let from: usize = range
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        if blob.len() < 100_000 {
            return sent(blob.slice(from..));
        }
        seen.lock().push(from as u64);
        // A third of it, as if that were all: the next question is for the rest.
        let part = (blob.len() / 3).max(1);
        let response = sent(blob.slice(from..(from + part).min(blob.len())));
        let (mut head, body) = response.into_parts();
        head.status = StatusCode::PARTIAL_CONTENT;
        Response::from_parts(head, body)
    }))
    .await;
    let runtime = runtime_for(&place, told.address);
    let started = start(&runtime, image(format!("{}/team/app:1", told.address))).await.unwrap();
    assert_eq!(get(&*started.instance, "/read/data/file").await, "of the image");
    let ranges = ranges.lock().clone();
    assert!(
        ranges.len() >= 3 && ranges[0] == 0 && ranges.windows(2).all(|two| two[0] < two[1]),
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_blob_that_is_not_what_its_digest_says_is_refused_and_not_kept() {
    support::needs_containers!();
    let place = Workplace::new();
    let (all, manifest) = blobs(&place);
    for lie in ["other bytes", "too long"] {
        let (all, manifest) = (all.clone(), manifest.clone());
        let told = fake(Arc::new(move |path: &str, _: Option<&str>, _: usize| {
            if path.contains("/manifests/") {
                return sent(manifest.clone());
            }
            let Some(blob) = path.rsplit('/').next().and_then(|digest| all.get(digest)) else {
                return status(200);
            };
            if blob.len() < 100_000 {
                return sent(blob.clone());
            }
            let mut wrong = blob.to_vec();
            match lie {
                "too long" => wrong.extend_from_slice(&[0; 1000]),
                _ => wrong[50_000] ^= 1,
            }
            sent(wrong)
        }))
        .await;
        let mut config = place.config();
        config.store = place.dir.path().join(format!("store-{}", lie.len()));
        config.registries.plain_http.push(told.address.to_string());
        let runtime = Arc::new(ContainerRuntime::new(config.clone()).unwrap());
        let spec = image(format!("{}/team/app:1", told.address));
        let error = runtime.prepare(&spec).await.expect_err(lie);
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{lie}: {error}");
        let kept: Vec<_> = fs::read_dir(config.store.join("layers")).unwrap().collect();
        assert!(kept.is_empty(), "{lie}: {kept:?}");
    }
}

#[tokio::test]
async fn a_tag_is_pinned_pulled_once_by_many_and_runs_from_the_store_when_the_registry_is_gone() {
    support::needs_containers!();
    let place = Workplace::new();
    let Some(registry) = support::Registry::start().await else { return };
    let wanted = registry.push(&place.layout, "app", "team/app:live").await;
    let runtime = runtime_for(&place, registry.address);
    let spec = image(format!("{}/team/app:live", registry.address));
    let pinned = runtime.pin(&spec, TenantKey(1)).await.unwrap();
    assert_eq!(pinned.source, Source::Image(format!("{}/team/app:live@{wanted}", registry.address)));
    let (one, two, three) =
        tokio::join!(runtime.prepare(&pinned), runtime.prepare(&pinned), runtime.prepare(&pinned));
    assert_eq!(one.unwrap().info().digest, wanted);
    let held = two.unwrap();
    drop(three);
    // The tag moves on; what was pinned does not.
    let mut settings = support::settings();
    settings.env.insert("FROM_IMAGE".into(), "second".into());
    write_image(&place.layout.parent().unwrap().join("root"), &place.layout, "app", &settings).unwrap();
    let second = registry.push(&place.layout, "app", "team/app:live").await;
    assert_ne!(second, wanted);
    let moved = runtime.pin(&spec, TenantKey(1)).await.unwrap();
    assert!(moved.source.to_string().ends_with(&second), "{}", moved.source);
    drop(registry);
    let started = start_pinned(&runtime, &pinned).await;
    assert!(get(&*started.instance, "/env").await.contains("FROM_IMAGE=yes"));
    assert!(runtime.pin(&spec, TenantKey(1)).await.is_err(), "a tag needs its registry");
    // What is in use stays, whatever the store may take; the rest goes.
    assert_eq!(runtime.collect(0).await.unwrap(), 0);
    started.instance.stop(Duration::ZERO).await.unwrap();
    drop((started, held));
    runtime.quiesce().await;
    support::until("its layer goes when nobody holds it", || {
        fs::read_dir(place.store().join("layers")).unwrap().count() == 0 || {
            let runtime = Arc::clone(&runtime);
            tokio::spawn(async move { runtime.collect(0).await });
            false
        }
    })
    .await;
}

async fn start_pinned(runtime: &Arc<ContainerRuntime>, spec: &RevisionSpec) -> support::Started {
    let artifact = runtime.prepare(spec).await.unwrap();
    let deployed = Arc::new(sas_core::Deployed::new(
        Arc::clone(runtime) as _,
        artifact,
        Arc::new(spec.clone()),
        sas_core::RevisionName::new("default", "hello", "hello-00001"),
        TenantKey(1),
    ));
    support::start_deployed(runtime, &deployed, 9).await.unwrap()
}

#[tokio::test]
async fn credentials_are_those_of_the_tenant_that_asks() {
    support::needs_containers!();
    let place = Workplace::new();
    let (_, manifest) = blobs(&place);
    let told = fake(Arc::new(move |_: &str, _: Option<&str>, _: usize| sent(manifest.clone()))).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let guard = listener.local_addr().unwrap();
    // Asks for Basic credentials and knows one user.
    let behind = told.address;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let service =
                    hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| async move {
                        // user:right
                        let known = request
                            .headers()
                            .get("authorization")
                            .is_some_and(|value| value == "Basic dXNlcjpyaWdodA==");
                        let response = if known && request.uri().path() != "/v2/" {
                            let body = body_of(behind, request.uri().path()).await;
                            sent(body)
                        } else {
                            Response::builder()
                                .status(401)
                                .header("www-authenticate", "Basic realm=\"here\"")
                                .body(Full::default())
                                .unwrap()
                        };
                        Ok::<_, std::convert::Infallible>(response)
                    });
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await;
            });
        }
    });
    let mut config = place.config();
    config.registries.plain_http.push(guard.to_string());
    config.credentials = Some(Arc::new(
        StaticCredentials::default()
            .for_all(guard.to_string(), Credentials::basic("user", "wrong"))
            .for_tenant(TenantKey(2), guard.to_string(), Credentials::basic("user", "right")),
    ));
    let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
    let spec = image(format!("{guard}/a:1"));
    runtime.pin(&spec, TenantKey(2)).await.unwrap();
    let error = runtime.pin(&spec, TenantKey(1)).await.unwrap_err();
    assert!(error.message.contains("401") && !error.message.contains("wrong"), "{error}");
}

/// The body that another server of the test answers with.
async fn body_of(address: SocketAddr, path: &str) -> Bytes {
    use http_body_util::BodyExt as _;
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "x").body(Full::<Bytes>::default()).unwrap();
    sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes()
}

#[test]
fn code_is_written_out_as_the_same_bytes_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for (copy, mode) in [("a", 0o644), ("b", 0o600)] {
        let files = dir.path().join(copy);
        fs::create_dir_all(files.join("lib")).unwrap();
        for (name, text) in [("main.py", "print(1)"), ("lib/z.py", "z"), ("lib/a.py", "a")] {
            fs::write(files.join(name), text).unwrap();
        }
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(files.join("lib/z.py"), fs::Permissions::from_mode(mode | 0o044)).unwrap();
        std::os::unix::fs::symlink("lib/z.py", files.join("link")).unwrap();
        let mut settings = ImageSettings::new(["python3", "main.py"]);
        settings.port = Some(8080);
        digests
            .push(write_image(&files, &dir.path().join(format!("layout-{copy}")), "v1", &settings).unwrap());
    }
    assert_eq!(digests[0], digests[1], "whatever else the machine knows of the files");
    let read = |copy: &str| fs::read(dir.path().join(format!("layout-{copy}/index.json"))).unwrap();
    assert_eq!(read("a"), read("b"));
    let error =
        write_image(dir.path(), &dir.path().join("x"), "no tag", &ImageSettings::default()).unwrap_err();
    assert!(error.message.contains("tag"), "{error}");
}

#[test]
fn wrong_settings_are_named() {
    for (change, part) in [
        (
            Box::new(|config: &mut ContainerConfig| config.store = "/a:b".into())
                as Box<dyn Fn(&mut ContainerConfig)>,
            "store",
        ),
        (Box::new(|config: &mut ContainerConfig| config.programs.clear()), "programs"),
        (Box::new(|config: &mut ContainerConfig| config.capabilities.push("FLY".into())), "FLY"),
        (
            Box::new(|config: &mut ContainerConfig| config.registries.plain_http.push("http://a".into())),
            "registries",
        ),
        (Box::new(|config: &mut ContainerConfig| config.local_images.push("a".into())), "local_images"),
    ] {
        let mut config = ContainerConfig::default();
        change(&mut config);
        let error = config.validate().unwrap_err();
        assert!(error.message.contains(part), "{error}");
    }
}
