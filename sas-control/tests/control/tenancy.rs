//! Who may deploy what, whose a host is, and what runs in Knative's shapes.

use std::sync::Arc;

use async_trait::async_trait;
use sas_control::{AdmissionHook, AdmissionRequest, AllowedSources, Refusal};
use sas_core::{Body, ErrorKind, Handler as _, MemoryStore, Store};
use serde_json::{Value, json};

use crate::support::{TOKEN, World};

async fn ask(world: &World, method: &str, path: &str, body: impl Into<Body>) -> (u16, Value) {
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {TOKEN}"));
    let response = world.admin.handle(request.body(body.into()).expect("a request")).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect(64 << 20).await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn mapping(host: &str, namespace: &str, service: &str) -> String {
    format!(
        "{{apiVersion: serving.knative.dev/v1beta1, kind: DomainMapping, metadata: {{name: {host}, namespace: {namespace}}}, \
         spec: {{ref: {{apiVersion: serving.knative.dev/v1, kind: Service, name: {service}}}}}}}"
    )
}

#[tokio::test(start_paused = true)]
async fn a_mapped_host_leads_to_its_service_over_restarts_and_is_one_tenants() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let world = World::with(Arc::clone(&store), |_| {}).await;
    let (status, applied) =
        ask(&world, "POST", "/v1/services", mapping("shop.example.com", "default", "hello")).await;
    assert_eq!((status, &applied["applied"][0]["kind"]), (200, &json!("DomainMapping")));
    assert!(!world.router.hosts().contains(&"shop.example.com".to_owned()), "no service yet");
    let path = "/apis/serving.knative.dev/v1beta1/namespaces/default/domainmappings/shop.example.com";
    let (_, view) = ask(&world, "GET", path, "").await;
    assert_eq!(view["status"]["conditions"][0]["reason"], "ServiceNotFound");
    world.deploy("one").await.expect("deployed");
    assert!(world.router.hosts().contains(&"shop.example.com".to_owned()));
    let (_, view) = ask(&world, "GET", path, "").await;
    assert_eq!(
        (&view["status"]["conditions"][0]["status"], &view["kind"]),
        (&json!("True"), &json!("DomainMapping"))
    );

    let (status, problem) =
        ask(&world, "POST", "/v1/services", mapping("shop.example.com", "bank", "hello")).await;
    assert_eq!(status, 409, "{problem}");
    for host in ["a.b.example.org", "example.org", "a.b.svc"] {
        let (status, problem) = ask(&world, "POST", "/v1/services", mapping(host, "default", "hello")).await;
        assert_eq!((status, &problem["fields"][0]["field"]), (422, &json!("metadata.name")), "{host}");
    }
    let again = World::with(store, |_| {}).await;
    assert!(again.router.hosts().contains(&"shop.example.com".to_owned()), "it came back");
    assert_eq!(ask(&again, "DELETE", "/v1/domains/bank/shop.example.com", "").await.0, 404);
    assert_eq!(ask(&again, "DELETE", "/v1/domains/default/shop.example.com", "").await.0, 200);
    assert!(!again.router.hosts().contains(&"shop.example.com".to_owned()));
    assert_eq!(
        ask(&again, "POST", "/v1/services", mapping("shop.example.com", "bank", "hello")).await.0,
        200,
        "free"
    );
    let (_, listed) = ask(&again, "GET", "/v1/domains", "").await;
    assert_eq!(
        (&listed["domains"][0]["namespace"], &listed["domains"][0]["ready"]),
        (&json!("bank"), &json!(false))
    );
}

#[tokio::test(start_paused = true)]
async fn a_service_is_exported_as_it_was_written_and_seen_in_knatives_shapes() {
    let world = World::new().await;
    let text = world.manifest("one");
    let (status, _) = ask(&world, "POST", "/v1/services", text.clone()).await;
    assert_eq!(status, 201);
    let written = sas_knative::manifest::document(&text).expect("a document");
    let (_, exported) = ask(&world, "GET", "/v1/services/default/hello/manifest", "").await;
    assert_eq!(exported, written);
    let (status, _) = ask(&world, "POST", "/v1/services", exported.to_string()).await;
    assert_eq!(status, 200, "applied again");
    let record = world.control.record("default", "hello").expect("it is there");
    assert_eq!(record.revisions.len(), 1, "nothing changed");

    // Traffic that was moved since is in the export.
    let name = record.revisions[0].name.clone();
    let traffic = json!([{"revisionName": name, "percent": 100, "tag": "now"}]).to_string();
    assert_eq!(ask(&world, "PUT", "/v1/services/default/hello/traffic", traffic).await.0, 200);
    let (_, exported) = ask(&world, "GET", "/v1/services/default/hello/manifest", "").await;
    assert_eq!(exported["spec"]["traffic"][0]["revisionName"], json!(name));
    assert_eq!(exported["spec"]["template"], written["spec"]["template"]);

    let base = "/apis/serving.knative.dev/v1/namespaces/default";
    for (plural, kind, at) in [
        ("services", "Service", "hello"),
        ("configurations", "Configuration", "hello"),
        ("routes", "Route", "hello"),
        ("revisions", "Revision", name.as_str()),
    ] {
        let (status, one) = ask(&world, "GET", &format!("{base}/{plural}/{at}"), "").await;
        assert_eq!((status, &one["kind"], &one["metadata"]["name"]), (200, &json!(kind), &json!(at)));
        assert_eq!(one["status"]["conditions"][0]["type"], "Ready", "{one}");
        let (_, list) = ask(&world, "GET", &format!("{base}/{plural}"), "").await;
        assert_eq!((&list["kind"], &list["items"][0]), (&json!(format!("{kind}List")), &one));
        assert_eq!(ask(&world, "GET", &format!("{base}/{plural}/none"), "").await.0, 404);
    }
    assert_eq!(ask(&world, "GET", &format!("{base}/pods"), "").await.0, 404);
    let (_, route) = ask(&world, "GET", &format!("{base}/routes/hello"), "").await;
    assert_eq!(route["status"]["traffic"][0]["tag"], "now");
    let (_, revision) = ask(&world, "GET", &format!("{base}/revisions/{name}"), "").await;
    assert_eq!(revision["metadata"]["labels"]["serving.knative.dev/service"], "hello");
    let (_, schema) = ask(&world, "GET", "/v1/schema", "").await;
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
}

/// Wants a label, and only of those who are not the host itself.
#[derive(Debug)]
struct Labelled;

#[async_trait]
impl AdmissionHook for Labelled {
    fn name(&self) -> &str {
        "labelled"
    }

    async fn review(&self, request: &AdmissionRequest<'_>) -> Result<(), Refusal> {
        if request.principal.is_none() || request.labels.contains_key("team") {
            return Ok(());
        }
        Err(Refusal::new("metadata.labels.team", "", "missing: who answers for it"))
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_refuses_a_deploy_with_its_reason_and_nothing_is_stored() {
    let world =
        World::with(Arc::new(MemoryStore::default()), |config| config.admission.push(Arc::new(Labelled)))
            .await;
    let text = world.manifest("one");
    let (status, problem) = ask(&world, "POST", "/v1/services", text.clone()).await;
    assert_eq!((status, &problem["fields"][0]["field"]), (422, &json!("metadata.labels.team")), "{problem}");
    assert!(problem["fields"][0]["problem"].as_str().unwrap().contains("refused by labelled"), "{problem}");
    assert!(world.control.records().is_empty());
    let (_, audit) = ask(&world, "GET", "/v1/audit", "").await;
    assert_eq!(audit["records"][0]["status"], 422);
    let labelled = text.replace("  name: hello", "  name: hello\n  labels: {team: shop}");
    assert_eq!(ask(&world, "POST", "/v1/services", labelled).await.0, 201);
    world.control.apply(&text, &mut Vec::new()).await.expect("the host itself");
}

#[tokio::test(start_paused = true)]
async fn code_comes_from_allowed_places_only() {
    let dir = tempfile::tempdir().expect("a directory");
    let allowed = AllowedSources::none().with_root(dir.path()).with_registry("ghcr.io/acme");
    let world =
        World::with(Arc::new(MemoryStore::default()), |config| config.admission.push(Arc::new(allowed)))
            .await;
    let error = world.control.apply(&world.manifest("one"), &mut Vec::new()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidSpec);
    assert!(error.fields().expect("fields").0[0].field.contains("sas.dev/package"), "{error}");
    let inside = dir.path().join("app.jar");
    std::fs::write(&inside, "a jar").expect("written");
    let text = format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: in, annotations: {{sas.dev/package: {}}}}}\n\
         spec: {{template: {{spec: {{}}}}}}",
        inside.display()
    );
    world.control.apply(&text, &mut Vec::new()).await.expect("allowed");
    let outside = dir.path().join("link.jar");
    std::os::unix::fs::symlink("/etc/hostname", &outside).expect("a link");
    let text = text.replace("app.jar", "link.jar").replace("name: in", "name: out");
    assert!(world.control.apply(&text, &mut Vec::new()).await.is_err(), "a link out of it");
}

#[tokio::test]
async fn secrets_of_a_directory_are_their_namespaces_and_are_read_anew() {
    use sas_core::SecretSource as _;
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path: &str, value: &str| {
        let file = dir.path().join(path);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        std::fs::write(file, value).expect("written");
    };
    write("default/secret/db/password", "m4rk3r-1");
    write("default/secret/db/user", "shop");
    write("bank/secret/db/password", "m4rk3r-bank");
    let namespaces = sas_control::Namespaces::default();
    let source = sas_control::SecretDir::new(dir.path(), namespaces.clone());
    let world = World::new().await;
    let early = source.resolve("secret/db/password", sas_core::TenantKey(1)).await.unwrap_err();
    assert_eq!(early.kind, ErrorKind::Unavailable);
    namespaces.bind(&world.control);
    world.deploy("one").await.expect("deployed");
    let tenant = world.control.record("default", "hello").expect("there").tenant;
    assert_eq!(source.resolve("secret/db/password", tenant).await.unwrap(), "m4rk3r-1");
    write("default/secret/db/password", "m4rk3r-2");
    assert_eq!(source.resolve("secret/db/password", tenant).await.unwrap(), "m4rk3r-2", "rotated");
    let all = source.entries("secret/db", tenant).await.unwrap();
    assert_eq!(all.keys().collect::<Vec<_>>(), ["password", "user"]);
    let longer_than_files = format!("secret/{}/password", "k".repeat(300));
    for (reference, kind) in [
        (longer_than_files.as_str(), ErrorKind::NotFound),
        ("secret/db/none", ErrorKind::NotFound),
        ("secret/none/password", ErrorKind::NotFound),
        ("secret/db", ErrorKind::InvalidSpec),
        ("secret/../../bank/secret/db/password", ErrorKind::InvalidSpec),
        ("secret/../password", ErrorKind::InvalidSpec),
        ("secret//password", ErrorKind::InvalidSpec),
        ("/etc/passwd", ErrorKind::InvalidSpec),
    ] {
        let error = source.resolve(reference, tenant).await.unwrap_err();
        assert_eq!(error.kind, kind, "{reference}: {error}");
        assert!(!format!("{error:?} {error}").contains("m4rk3r"), "{error}");
    }
    for nobody in [sas_core::TenantKey::HOST, sas_core::TenantKey(99)] {
        let error = source.resolve("secret/db/password", nobody).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
    }
    assert!(!format!("{source:?}").contains("m4rk3r"));
}

fn service(namespace: &str, name: &str, package: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, annotations: \
         {{sas.dev/package: {package}}}}}\nspec: {{template: {{spec: {{}}}}}}\n"
    )
}

#[tokio::test(start_paused = true)]
async fn a_tenants_packages_take_no_more_than_its_storage_and_a_deploy_beyond_it_is_refused_at_once() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let dir = tempfile::tempdir().expect("a directory");
    let keep = |config: &mut sas_control::ControlConfig| {
        config.packages = Some(Arc::new(sas_control::PackageDir::new(dir.path())));
        config.default_tenant_quota = sas_core::TenantQuota::default().with_storage_bytes(1_000);
    };
    let world = World::with(Arc::clone(&store), keep).await;
    let package = |name: &str, byte: u8, bytes: usize| {
        let content = String::from_utf8(vec![byte; bytes]).expect("letters");
        world.dir_file(name, &content).display().to_string()
    };
    let (first, second, large) =
        (package("a.jar", b'a', 400), package("b.jar", b'b', 500), package("c.jar", b'c', 900));
    let apply = async |namespace: &str, name: &str, package: &str| {
        ask(&world, "POST", "/v1/services", service(namespace, name, package)).await
    };
    let used = async |world: &World, namespace: &str| {
        let (status, tenant) = ask(world, "GET", &format!("/v1/tenants/{namespace}"), "").await;
        assert_eq!((status, &tenant["usage"][0]["field"]), (200, &json!("storageBytes")), "{tenant}");
        ["used", "limit", "refused"].map(|name| tenant["usage"][0][name].as_f64().expect("a number"))
    };
    assert_eq!(apply("shop", "one", &first).await.0, 201);
    assert_eq!(apply("shop", "two", &second).await.0, 201);
    assert_eq!(apply("shop", "again", &first).await.0, 201, "the same package is stored once");
    assert_eq!(used(&world, "shop").await, [900.0, 1_000.0, 0.0]);
    let (status, problem) = apply("shop", "three", &large).await;
    let told = problem["message"].as_str().or(problem["detail"].as_str()).expect("a reason").to_owned();
    assert_eq!(status, 429, "{problem}");
    assert!(
        told.contains("storageBytes") && told.contains("900 of 1000") && told.contains("900 more"),
        "{told}"
    );
    assert!(world.control.record("shop", "three").is_err(), "nothing is stored");
    assert_eq!(used(&world, "shop").await, [900.0, 1_000.0, 1.0]);
    assert_eq!(apply("bank", "one", &large).await.0, 201, "another tenant has its own");

    // What a service had is free when it goes; what is set holds from the next deploy on, also after a restart.
    assert_eq!(ask(&world, "DELETE", "/v1/services/shop/two", "").await.0, 200);
    let larger = r#"{"storageBytes": 2000}"#;
    assert_eq!(ask(&world, "PUT", "/v1/quotas/shop", larger).await.0, 200);
    assert_eq!(apply("shop", "three", &large).await.0, 201);
    let later = World::with(store, keep).await;
    assert_eq!(used(&later, "shop").await[..2], [1_300.0, 2_000.0]);
    let more = service("shop", "four", &package("d.jar", b'd', 800));
    assert_eq!(ask(&later, "POST", "/v1/services", more).await.0, 429);
    assert_eq!(ask(&later, "GET", "/v1/tenants/nobody", "").await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn what_a_tenants_quota_could_never_hold_is_refused_at_the_deploy() {
    let quota =
        sas_core::TenantQuota::default().with_instances(3).with_memory_bytes(1 << 30).with_cpu_millis(900);
    // The pool of these tests holds nobody to anything: what is asked for is checked all the same.
    let world = World::with(Arc::new(MemoryStore::default()), |config| {
        config.tenant_quotas = [("default".to_owned(), quota)].into();
    })
    .await;
    let text = world.manifest("one");
    for (least, memory, cpu, field) in [
        (4, "1Mi", "1m", "min-scale"),
        (0, "2Gi", "1m", "memory"),
        (3, "400Mi", "1m", "memory"),
        (3, "1Mi", "1", "cpu"),
    ] {
        let line = format!("annotations: {{autoscaling.knative.dev/min-scale: \"{least}\"}}");
        let asks = text.replace("  template:\n", &format!("  template:\n    metadata: {{{line}}}\n"))
            + &format!("      containers: [{{resources: {{requests: {{memory: {memory}, cpu: {cpu}}}}}}}]\n");
        let error = world.control.apply(&asks, &mut Vec::new()).await.expect_err(&asks);
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
        let fields = error.fields().expect("fields");
        assert!(fields.0[0].field.contains(field) && fields.0[0].problem.contains("its quota"), "{error}");
    }
    world.control.apply(&text, &mut Vec::new()).await.expect("what fits");
}
