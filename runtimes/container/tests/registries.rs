//! Registries that are slow, busy, talk without end or lead elsewhere. Needs root and crun or runc.

mod support;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use sas_core::{ErrorKind, Retry, RevisionSpec, Runtime as _, Source, TenantKey};
use sas_runtime_container::{ContainerRuntime, Credentials, StaticCredentials};
use support::{Fake, Workplace, blobs};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::Instant,
};

fn status(code: u16) -> http::response::Builder {
    Response::builder().status(StatusCode::from_u16(code).unwrap())
}

fn empty(builder: http::response::Builder) -> Response<Full<Bytes>> {
    builder.body(Full::default()).unwrap()
}

fn sent(bytes: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(bytes.into()))
}

fn image(registry: SocketAddr) -> RevisionSpec {
    RevisionSpec::new("container", Source::Image(format!("{registry}/team/app:1")))
}

fn runtime(place: &Workplace, registry: SocketAddr, patience: Duration) -> Arc<ContainerRuntime> {
    let mut config = place.config();
    config.registries.plain_http.push(registry.to_string());
    config.registries.patience = patience;
    config.credentials = Some(Arc::new(
        StaticCredentials::default().for_all(registry.to_string(), Credentials::basic("user", "right")),
    ));
    Arc::new(ContainerRuntime::new(config).unwrap())
}

#[tokio::test]
async fn what_a_busy_registry_asks_for_is_waited_for_and_told_where_it_is_too_long() {
    support::needs_containers!();
    let place = Workplace::new();
    let (_, manifest) = blobs(&place);
    let busy = |code: u16, after: &'static str| {
        let manifest = manifest.clone();
        let first = std::sync::atomic::AtomicBool::new(true);
        Fake::start(move |asked, _| match asked.uri.path() {
            path if !path.contains("/manifests/") => empty(status(200)),
            _ if first.swap(false, std::sync::atomic::Ordering::SeqCst) => {
                empty(status(code).header(header::RETRY_AFTER, after))
            }
            _ => sent(manifest.clone()),
        })
    };
    for (code, after, least) in
        [(429, "1", Duration::from_secs(1)), (503, "Thu, 01 Jan 2015 00:00:00 GMT", Duration::ZERO)]
    {
        let registry = busy(code, after).await;
        let runtime = runtime(&place, registry.address, Duration::from_secs(5));
        let began = Instant::now();
        runtime.pin(&image(registry.address), TenantKey(1)).await.unwrap();
        assert!(
            began.elapsed() >= least && began.elapsed() < Duration::from_secs(4),
            "{:?}",
            began.elapsed()
        );
    }
    let registry = busy(429, "120").await;
    let runtime = runtime(&place, registry.address, Duration::from_secs(5));
    let began = Instant::now();
    let error = runtime.pin(&image(registry.address), TenantKey(1)).await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(2), "nobody waits for two minutes");
    assert_eq!((error.kind, error.retry), (ErrorKind::Unavailable, Retry::After(Duration::from_secs(120))));
    assert!(error.message.contains("429") && error.message.contains("in 120 s"), "{error}");
}

#[tokio::test]
async fn credentials_follow_no_redirect_to_another_host_and_what_comes_from_there_is_checked() {
    support::needs_containers!();
    let place = Workplace::new();
    let (all, manifest) = blobs(&place);
    for honest in [true, false] {
        let all = all.clone();
        let elsewhere = Fake::start(move |asked, _| {
            if asked.headers.contains_key(header::AUTHORIZATION) {
                return empty(status(418));
            }
            let digest = asked.uri.path().rsplit('/').next().unwrap_or_default();
            match all.get(digest) {
                Some(blob) if honest => sent(blob.clone()),
                Some(blob) => sent(vec![7; blob.len()]),
                None => empty(status(404)),
            }
        })
        .await;
        let (to, manifest) = (elsewhere.address, manifest.clone());
        let registry = Fake::start(move |asked, _| {
            let known = asked.headers.get(header::AUTHORIZATION);
            if known.is_none_or(|value| value != "Basic dXNlcjpyaWdodA==") {
                return empty(status(401).header(header::WWW_AUTHENTICATE, "Basic realm=\"here\""));
            }
            match asked.uri.path().rsplit_once("/blobs/") {
                Some((_, digest)) => {
                    let to = format!("http://{to}/signed/{digest}?secret=1");
                    empty(status(307).header(header::LOCATION, to))
                }
                None => sent(manifest.clone()),
            }
        })
        .await;
        let mut config = place.config();
        config.store = place.store().with_file_name(format!("store-{honest}"));
        config.registries.plain_http.push(registry.address.to_string());
        config.credentials = Some(Arc::new(
            StaticCredentials::default()
                .for_all(registry.address.to_string(), Credentials::basic("user", "right"))
                .for_all(elsewhere.address.to_string(), Credentials::basic("user", "right")),
        ));
        let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
        let outcome = runtime.prepare_for(&image(registry.address), TenantKey(1)).await;
        assert!(elsewhere.asked.load(std::sync::atomic::Ordering::SeqCst) > 0);
        match outcome {
            Ok(_) => assert!(honest),
            Err(error) => {
                assert!(!honest && error.kind == ErrorKind::InvalidSpec, "{error}");
                assert!(
                    error.message.contains("the registry sent") && !error.message.contains("secret"),
                    "{error}"
                );
            }
        }
    }
    // One that leads round and round.
    let circle = Fake::start(|asked, _| match asked.uri.path() {
        "/v2/" => empty(status(200)),
        path => empty(status(302).header(header::LOCATION, format!("{path}?again"))),
    })
    .await;
    let error = runtime(&place, circle.address, Duration::from_secs(5))
        .pin(&image(circle.address), TenantKey(1))
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
    assert!(error.message.contains("redirects without end"), "{error}");
}

#[tokio::test]
async fn a_token_that_has_grown_old_is_renewed_and_a_registry_that_gives_none_is_believed() {
    support::needs_containers!();
    let place = Workplace::new();
    let (all, manifest) = blobs(&place);
    let given = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&given);
    let registry = Fake::start(move |asked, _| {
        let host = asked.headers.get(header::HOST).unwrap().to_str().unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"here\"");
        let unknown = || empty(status(401).header(header::WWW_AUTHENTICATE, challenge.clone()));
        let given = count.load(std::sync::atomic::Ordering::SeqCst);
        match asked.uri.path() {
            "/token" => {
                let number = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                sent(format!("{{\"token\": \"t{number}\"}}"))
            }
            "/v2/" => unknown(),
            path => {
                let has =
                    asked.headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
                // The first is good for the manifest only.
                let good = if path.contains("/blobs/") { given.max(2) } else { given };
                match has {
                    Some(has) if has == format!("Bearer t{good}") => {
                        let blob = path.rsplit('/').next().and_then(|digest| all.get(digest));
                        sent(blob.unwrap_or(&manifest).clone())
                    }
                    _ => unknown(),
                }
            }
        }
    })
    .await;
    let runtime = runtime(&place, registry.address, Duration::from_secs(5));
    runtime.prepare_for(&image(registry.address), TenantKey(1)).await.unwrap();
    let given = given.load(std::sync::atomic::Ordering::SeqCst);
    assert!((2..=4).contains(&given), "{given} tokens: one for all, and another when it had grown old");
}

/// Answers each question by bytes that come as slowly as it is told; a pause of `None` is for ever.
async fn slow(head: &'static str, pause: Option<Duration>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(head.as_bytes()).await;
                loop {
                    match pause {
                        None => tokio::time::sleep(Duration::from_secs(600)).await,
                        Some(pause) => tokio::time::sleep(pause).await,
                    }
                    if stream.write_all(&[b' '; 64]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_registry_that_hangs_drips_or_talks_without_end_is_given_up() {
    support::needs_containers!();
    let place = Workplace::new();
    const LONG: &str = "HTTP/1.1 200 OK\r\ncontent-length: 3000000\r\n\r\n";
    let cases = [
        ("hangs", slow("", None).await, ["timed out", "within 1s"]),
        ("drips", slow(LONG, Some(Duration::from_millis(20))).await, ["within 1s", "no answer within"]),
    ];
    for (name, registry, parts) in cases {
        let runtime = runtime(&place, registry, Duration::from_secs(1));
        let began = Instant::now();
        let error = runtime.pin(&image(registry), TenantKey(1)).await.expect_err(name);
        assert_eq!(error.kind, ErrorKind::Unavailable, "{name}: {error}");
        assert!(parts.iter().any(|part| error.message.contains(part)), "{name}: {error}");
        assert!(began.elapsed() < Duration::from_secs(20), "{name}: {:?}", began.elapsed());
    }
    let endless = Fake::start(|_, _| sent(vec![b' '; 5 << 20])).await;
    let runtime_ = runtime(&place, endless.address, Duration::from_secs(5));
    let error = runtime_.pin(&image(endless.address), TenantKey(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
    assert!(error.message.contains("larger than"), "{error}");
    // A layer that drips: its manifest is there at once.
    let (all, manifest) = blobs(&place);
    let drips = slow(LONG, Some(Duration::from_millis(20))).await;
    let registry = Fake::start(move |asked, _| match asked.uri.path().rsplit_once("/blobs/") {
        Some((_, digest)) => match all.get(digest) {
            Some(blob) if blob.len() < 100_000 => sent(blob.clone()),
            _ => empty(status(307).header(header::LOCATION, format!("http://{drips}/{digest}"))),
        },
        None => sent(manifest.clone()),
    })
    .await;
    let mut config = place.config();
    config.registries.plain_http.push(registry.address.to_string());
    // What answers at once has done so by then, also on a busy machine.
    config.registries.patience = Duration::from_secs(1);
    let runtime = ContainerRuntime::new(config).unwrap();
    let error = runtime.prepare(&image(registry.address)).await.unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Unavailable | ErrorKind::InvalidSpec), "{error}");
    assert!(error.message.contains("are the least") || error.message.contains("longer than"), "{error}");
}

#[tokio::test]
async fn words_of_an_error_that_drip_are_not_waited_for() {
    support::needs_containers!();
    let place = Workplace::new();
    const LONG: &str = "HTTP/1.1 404 Not Found\r\ncontent-length: 3000000\r\n\r\n";
    let registry = slow(LONG, Some(Duration::from_millis(50))).await;
    let runtime = runtime(&place, registry, Duration::from_secs(1));
    let began = Instant::now();
    let error = runtime.pin(&image(registry), TenantKey(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_registry_that_hangs_keeps_no_other_tenant_from_the_same_layer() {
    support::needs_containers!();
    let place = Workplace::new();
    let (all, manifest) = blobs(&place);
    let nothing = slow("", None).await;
    let registry = |hangs: bool| {
        let (all, manifest) = (all.clone(), manifest.clone());
        Fake::start(move |asked, _| match asked.uri.path().rsplit_once("/blobs/") {
            Some((_, digest)) => match all.get(digest) {
                // The configuration comes, the layer does not.
                Some(blob) if !hangs || blob.starts_with(b"{") => sent(blob.clone()),
                _ => empty(status(307).header(header::LOCATION, format!("http://{nothing}/{digest}"))),
            },
            None => sent(manifest.clone()),
        })
    };
    let (hangs, good) = (registry(true).await, registry(false).await);
    let mut config = place.config();
    config.registries.plain_http.extend([hangs.address.to_string(), good.address.to_string()]);
    let runtime = Arc::new(ContainerRuntime::new(config).unwrap());
    let stuck = tokio::spawn({
        let (runtime, image) = (Arc::clone(&runtime), image(hangs.address));
        async move { runtime.prepare_for(&image, TenantKey(1)).await }
    });
    // For the manifest, the configuration and the layer, and before for who may ask.
    support::until("the layer is asked for", || hangs.asked.load(std::sync::atomic::Ordering::SeqCst) >= 4)
        .await;
    let good = image(good.address);
    let pulled = tokio::time::timeout(Duration::from_secs(20), runtime.prepare_for(&good, TenantKey(2)));
    pulled.await.expect("nobody waits for another tenant's registry").unwrap();
    assert!(!stuck.is_finished(), "the other registry still hangs");
    stuck.abort();
}

#[tokio::test]
async fn a_token_of_any_size_is_not_read() {
    support::needs_containers!();
    let place = Workplace::new();
    let registry = Fake::start(|asked, _| {
        let host = asked.headers.get(header::HOST).unwrap().to_str().unwrap();
        let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"here\"");
        match asked.uri.path() {
            "/token" => sent(format!("{{\"token\": \"{}\"}}", "t".repeat(1 << 20))),
            _ => empty(status(401).header(header::WWW_AUTHENTICATE, challenge)),
        }
    })
    .await;
    let runtime = runtime(&place, registry.address, Duration::from_secs(5));
    let error = runtime.pin(&image(registry.address), TenantKey(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
    assert!(error.message.contains("larger than 65536 bytes"), "{error}");
}
