//! A package that is taken along: deployed as code, written out as an image with the start that was found, pushed to a
//! registry, and deployed from there, where it answers the same. Needs root, crun or runc, a static busybox and
//! docker-registry.
#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use sas::{
    container::{ImageBase, ImageSettings, Transfer, write_image},
    prelude::*,
    process::JailLevel,
};

fn program(names: [&str; 2]) -> Option<PathBuf> {
    let found = names.into_iter().map(PathBuf::from).find(|path| path.is_file());
    if found.is_none() {
        sas_testkit::skip(&format!("there is none of {names:?}"));
    }
    found
}

/// Ends the registry with the test.
struct Registry(Child);

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn registry(dir: &Path, program: &Path) -> (Registry, String) {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let data = dir.join("registry");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
        data.display()
    );
    fs::write(dir.join("registry.yml"), config).unwrap();
    let mut command = Command::new(program);
    command.arg("serve").arg(dir.join("registry.yml"));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let registry = Registry(child);
    for _ in 0..400 {
        if std::net::TcpStream::connect(address).is_ok() {
            return (registry, address.to_string());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("the registry did not come up");
}

async fn get(platform: &Platform, service: &str) -> (u16, String) {
    let request = http::Request::get("/cgi-bin/say").header("host", "x").body(Body::empty()).unwrap();
    let answer = platform.call("default", service, request).await;
    let answer = answer.unwrap_or_else(|error| panic!("{service}: {}", error.error));
    let status = answer.status().as_u16();
    let body = answer.into_body().collect(1024).await.unwrap();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_package_leaves_as_an_image_that_answers_as_it_did() {
    let Some(busybox) = program(["/bin/busybox", "/usr/bin/busybox"]) else { return };
    let Some(server) = program(["/usr/bin/docker-registry", "/usr/local/bin/docker-registry"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let dir = fs::canonicalize(dir.path()).unwrap();
    let (_registry, at) = registry(&dir, &server).await;

    // A project that says how it starts, with a variable in it, and an image that has what it is written in.
    let app = dir.join("app");
    fs::create_dir_all(app.join("www/cgi-bin")).unwrap();
    fs::write(app.join("Procfile"), "web: GREETING='it'\"'\"'s me' busybox httpd -f -h www -p $PORT\n")
        .unwrap();
    let script =
        "#!/bin/sh\nprintf 'content-type: text/plain\\r\\n\\r\\n'\necho \"$GREETING, $FROM in ${PWD##*/}\"\n";
    fs::write(app.join("www/cgi-bin/say"), script).unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(app.join("www/cgi-bin/say"), fs::Permissions::from_mode(0o755)).unwrap();
    let root = dir.join("base");
    fs::create_dir_all(root.join("bin")).unwrap();
    for name in ["busybox", "sh"] {
        fs::copy(&busybox, root.join("bin").join(name)).unwrap();
    }
    let base = ImageBase { layout: dir.join("bases"), tag: "busybox".into() };
    let mut plain = ImageSettings::new(["/bin/sh"]);
    plain.prefix = Some("/".into());
    plain.env.insert("FROM".into(), "the base".into());
    plain.env.insert("PATH".into(), "/bin".into());
    write_image(&root, &base.layout, &base.tag, &plain).unwrap();

    let mut config = ContainerConfig::in_store(dir.join("store"));
    config.registries.plain_http.push(at.clone());
    let containers = match ContainerRuntime::new(config) {
        Ok(runtime) => runtime,
        Err(error) => {
            return sas_testkit::skip(&error.to_string());
        }
    };
    let processes = |level| {
        let mut config = ProcessConfig::default();
        config.store = dir.join(format!("packages-{level}"));
        config.jail.level = level;
        ProcessRuntime::new(config).unwrap()
    };
    let platform =
        Platform::builder().runtime(containers).runtime(processes(JailLevel::None)).build().await.unwrap();
    let manifest = |name: &str, annotations: &str, container: &str| {
        format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  template:\n    \
             metadata: {{annotations: {{{annotations}}}}}\n    spec:\n      containers:\n        - {{{container}}}\n"
        )
    };
    let code =
        manifest("code", "sas.dev/package: app", "image: code, env: [{name: FROM, value: the manifest}]");
    platform.apply(&code, Some(&dir)).await.unwrap();
    let before = get(&platform, "code").await;
    assert_eq!(before, (200, "it's me, the manifest in cgi-bin\n".to_owned()));

    // Twice by a runtime of its own: the same bytes.
    let exporter = processes(JailLevel::Basic);
    let mut spec = RevisionSpec::new(ProcessRuntime::NAME, Source::Path(app.clone()));
    spec.env.insert("FROM".into(), sas::core::EnvValue::Literal("the manifest".into()));
    let mut digests = Vec::new();
    for layout in ["one", "two"] {
        let found = exporter.find_start(&spec, Path::new("/app")).await.unwrap();
        assert_eq!(found.working_dir, "/app");
        let mut settings = ImageSettings::new(found.command.clone());
        settings.env = found.env.clone();
        settings.working_dir = Some(found.working_dir.clone());
        settings.base = Some(base.clone());
        digests.push(write_image(&found.files, &dir.join(layout), "v1", &settings).unwrap());
    }
    assert_eq!(digests[0], digests[1]);

    let mut transfer = Transfer::default();
    transfer.registries.plain_http.push(at.clone());
    let pushed = transfer.push(&dir.join("one"), "v1", &format!("{at}/team/app:1")).await.unwrap();
    assert_eq!(pushed, format!("{at}/team/app:1@{}", digests[0]));
    let again = transfer.push(&dir.join("two"), "v1", &format!("{at}/team/app:1")).await.unwrap();
    assert_eq!(again, pushed, "what is there already is not sent again");
    let back = transfer.pull(&format!("{at}/team/app:1"), &dir.join("back"), "v1").await.unwrap();
    assert_eq!(back, digests[0]);

    platform.apply(&manifest("image", "", &format!("image: '{at}/team/app:1'")), None).await.unwrap();
    assert_eq!(get(&platform, "image").await, before);
    platform.shutdown(Duration::from_secs(10)).await;

    let pinned = format!("127.0.0.1:1/a@{}", digests[0]);
    for (to, part) in [(pinned.as_str(), "a tag and no digest"), ("oci:/a:b", "a name at a registry")] {
        let error = transfer.push(&dir.join("one"), "v1", to).await.unwrap_err();
        assert!(error.message.contains(part), "{error}");
    }
    let error = transfer.push(&dir.join("one"), "v2", &format!("{at}/team/app:2")).await.unwrap_err();
    assert!(error.kind == ErrorKind::NotFound && error.message.contains("v1"), "{error}");
    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    transfer.registries.plain_http.push(refused.clone());
    let error = transfer.push(&dir.join("one"), "v1", &format!("{refused}/app:1")).await.unwrap_err();
    assert!(error.kind == ErrorKind::Unavailable && error.message.contains("can't be reached"), "{error}");
}
