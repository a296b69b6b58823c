//! Images behind the whole platform: real manifests with their images replaced by a local one, and what is refused is told
//! at the fields of the document. Needs root, crun or runc, and a static busybox.
#![cfg(target_os = "linux")]
#![allow(clippy::print_stdout, reason = "it says what became of the manifests")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use sas::{
    bytes::Bytes,
    container::{ImageSettings, write_image},
    core::SecretSource,
    prelude::*,
};

fn busybox() -> Option<PathBuf> {
    let found =
        ["/bin/busybox", "/usr/bin/busybox"].into_iter().map(PathBuf::from).find(|path| path.is_file());
    if found.is_none() {
        sas_testkit::skip("busybox is not installed");
    }
    found
}

/// An image of busybox's web server that has a page wherever the manifests' probes look for one. Where it is told no port,
/// as sidecars are not, it listens on `otherwise`.
fn build(dir: &Path, busybox: &Path, tag: &str, otherwise: u16) {
    let root = dir.join(tag);
    for page in ["www", "www/health", "www/healthz", "www/healthz/ready", "www/healthz/live", "bin"] {
        fs::create_dir_all(root.join(page)).unwrap();
        if page.starts_with("www") {
            fs::write(root.join(page).join("index.html"), "served\n").unwrap();
        }
    }
    fs::copy(busybox, root.join("bin/busybox")).unwrap();
    let run = format!("exec /bin/busybox httpd -f -h /www -p ${{PORT:-{otherwise}}}");
    let mut settings = ImageSettings::new(["/bin/busybox", "sh", "-c"]);
    settings.cmd = vec![run];
    settings.prefix = Some("/".into());
    write_image(&root, &dir.join("layout"), tag, &settings).unwrap();
}

/// Has whatever is asked for.
#[derive(Debug)]
struct Everything;

#[async_trait::async_trait]
impl SecretSource for Everything {
    async fn resolve(&self, reference: &str, _: TenantKey) -> sas::core::Result<Bytes> {
        Ok(Bytes::from(format!("value of {reference}")))
    }

    async fn entries(&self, reference: &str, _: TenantKey) -> sas::core::Result<BTreeMap<String, Bytes>> {
        Ok(BTreeMap::from([("key".to_owned(), Bytes::from(reference.to_owned()))]))
    }
}

/// A platform with images below a directory; `None` where containers can't be run, which in CI they have to be.
async fn platform(dir: &Path) -> Option<Platform> {
    let mut config = ContainerConfig::in_store(dir.join("store"));
    config.local_images.push(dir.to_path_buf());
    config.secrets = Some(std::sync::Arc::new(Everything));
    match ContainerRuntime::new(config) {
        Ok(runtime) => Some(Platform::builder().runtime(runtime).secrets(Everything).build().await.unwrap()),
        Err(error) => {
            sas_testkit::skip(&error.to_string());
            None
        }
    }
}

/// Every `image:` of a manifest, replaced: that of a sidecar by the one with its own port, that of an init container by one
/// that ends.
fn replaced(text: &str, layout: &Path) -> String {
    let mut sidecars = false;
    let mut init = false;
    let name = |tag: &str| format!("oci:{}:{tag}", layout.display());
    let mut out = String::new();
    // A container without ports beside one that has some is a sidecar.
    let several = text.matches("image:").count() > 1 && !text.contains("initContainers");
    for line in text.lines() {
        let trimmed = line.trim_start_matches([' ', '-']);
        if trimmed.starts_with("initContainers:") {
            init = true;
        } else if trimmed.starts_with("containers:") {
            init = false;
        }
        match line.find("image:") {
            Some(at) if trimmed.starts_with("image:") => {
                let tag = if init {
                    "once"
                } else if several && std::mem::replace(&mut sidecars, true) {
                    "side"
                } else {
                    "web"
                };
                out.push_str(&format!("{}image: {}\n", &line[..at], name(tag)));
            }
            _ => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    out
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_manifests_are_served_with_a_local_image() {
    let Some(busybox) = busybox() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    build(&dir, &busybox, "web", 8080);
    build(&dir, &busybox, "side", 8089);
    let mut once = ImageSettings::new(["/bin/busybox", "true"]);
    once.prefix = Some("/".into());
    write_image(&dir.join("web"), &dir.join("layout"), "once", &once).unwrap();
    let Some(platform) = platform(&dir).await else { return };

    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("sas-knative/tests/vectors/knative/services");
    let place =
        std::env::var_os("SAS_VECTORS_DIR").map_or(own, |dir| PathBuf::from(dir).join("knative/services"));
    let mut files: Vec<PathBuf> = fs::read_dir(place).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut served, mut refused) = (0, 0);
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "yaml")) {
        let text = fs::read_to_string(file).unwrap();
        let shown = file.file_name().unwrap().display();
        // What is no manifest of ours is refused for reasons that have nothing to do with images.
        let Ok(manifests) = sas::knative::manifest::parse(&text, &Default::default()) else { continue };
        let [sas::knative::manifest::Manifest::Service(service)] = &manifests[..] else { continue };
        let (namespace, name) = (service.namespace.clone(), service.name.clone());
        let service_only = text.contains("persistentVolumeClaim");
        match platform.apply(&replaced(&text, &dir.join("layout")), None).await {
            Err(error) if service_only => {
                let fields = error.fields().expect("fields").0[0].field.clone();
                assert_eq!(fields, "spec.template.spec.volumes[0]", "{shown}: {error}");
                refused += 1;
                continue;
            }
            // Traffic to revisions that were never deployed here.
            Err(error) if error.to_string().contains("spec.traffic") => {
                println!("{shown}: {error}");
                refused += 1;
                continue;
            }
            outcome => drop(outcome.unwrap_or_else(|error| panic!("{shown}: {error}"))),
        }
        let request = http::Request::get("/").header("host", "x").body(Body::empty()).unwrap();
        let answered = platform.call(&namespace, &name, request).await;
        let answer = answered.unwrap_or_else(|error| panic!("{shown}: {}", error.error));
        assert_eq!(answer.status(), 200, "{shown}");
        let body = answer.into_body().collect(1024).await.unwrap();
        assert_eq!(&body[..], b"served\n", "{shown}");
        platform.control().delete(&namespace, &name).await.unwrap();
        served += 1;
    }
    println!("{served} manifests served, {refused} refused");
    assert!(served > 0);
    if std::env::var_os("SAS_VECTORS_DIR").is_none() {
        assert!(served + refused == 74 && refused <= 8, "{served} served, {refused} refused");
    }
    platform.shutdown(Duration::from_secs(10)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_container_can_be_given_is_told_at_the_fields_of_the_document() {
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let Some(platform) = platform(&dir).await else { return };
    let text = "
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: page}
spec:
  template:
    metadata: {annotations: {sas.dev/java-options: -Xmx1m}}
    spec:
      nodeSelector: {zone: a}
      containers:
        - image: 'registry.example/page:1'
          tty: true
          volumeMounts: [{name: state, mountPath: /proc/state}]
          securityContext: {privileged: true, capabilities: {add: [SYS_ADMIN]}}
      volumes: [{name: state, persistentVolumeClaim: {claimName: state}}]
";
    let error = platform.apply(text, None).await.unwrap_err();
    let fields: Vec<String> = error.fields().unwrap().0.iter().map(|error| error.field.clone()).collect();
    for field in [
        "spec.template.spec.volumes[0]",
        "spec.template.spec.containers[0].volumeMounts[0]",
        "spec.template.spec.containers[0].securityContext.capabilities.add[0]",
        "spec.template.spec.containers[0].tty",
        "spec.template.spec.containers[0].securityContext.privileged",
        "spec.template.spec.nodeSelector",
    ] {
        assert!(fields.iter().any(|told| told == field), "{field} in {fields:?}");
    }
    platform.shutdown(Duration::from_secs(10)).await;
}
