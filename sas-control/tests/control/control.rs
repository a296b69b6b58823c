//! Deploy, update, traffic, roll back, delete: against parts that remember what they were told. Time is paused.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use sas_control::{RevisionState, TestRun};
use sas_core::{
    EngineKind, EngineSpec, Error, ErrorKind, Isolation, MemoryStore, Purpose, RevisionSpec, Store, Target,
};
use sas_knative::manifest::{ServiceManifest, TrafficTarget};
use sas_testkit::fake::FakeStore;

use crate::support::{PreparingRuntime, World, eventually};

const HOST: &str = "hello.default.example.org";

#[tokio::test(start_paused = true)]
async fn a_deployed_service_answers_at_its_host_and_at_the_internal_one() {
    let world = World::new().await;
    let outcome = world.deploy("one").await.unwrap();
    assert!(outcome.created && outcome.new_revision);
    assert_eq!(outcome.revision, "hello-00001");
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
    assert_eq!(world.split("hello.default.svc"), [("hello-00001".to_owned(), 100)]);
    let deployed = world.pool.named("hello-00001").unwrap();
    assert_eq!(deployed.spec.concurrency, 5);
    assert_ne!(deployed.tenant, sas_core::TenantKey::HOST, "a namespace is a tenant, and not the platform's");
}

#[tokio::test(start_paused = true)]
async fn applying_the_same_again_makes_no_revision_and_a_changed_package_does() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    let again = world.deploy("one").await.unwrap();
    assert!(!again.created && !again.new_revision);
    assert_eq!(again.revision, "hello-00001");
    assert_eq!(world.runtime.prepared.load(Ordering::Relaxed), 1);

    let changed = world.deploy("two").await.unwrap();
    assert!(changed.new_revision);
    assert_eq!(changed.revision, "hello-00002");
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn a_superseded_revision_finishes_its_requests_and_is_unregistered() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.pool.set_busy("hello-00001", 2);
    world.deploy("two").await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(world.pool.names().contains(&"hello-00001".to_owned()), "it still has requests");
    world.pool.set_busy("hello-00001", 0);
    eventually(|| world.pool.names() == ["hello-00002"]).await;
    assert_eq!(world.pool.drained.lock()[0], "hello-00001");
}

#[tokio::test(start_paused = true)]
async fn traffic_moves_only_after_prepare_and_a_failure_leaves_the_old_revision_serving() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.runtime.fail(ErrorKind::InvalidSpec, "no way to start it");
    let error = world.deploy("two").await.unwrap_err();
    assert_eq!((error.kind, error.operation), (ErrorKind::InvalidSpec, "prepare"));
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);

    let record = world.control.record("default", "hello").unwrap();
    let failed = record.revision("hello-00002").unwrap();
    assert!(
        matches!(&failed.state, RevisionState::Failed { message, .. } if message == "no way to start it")
    );
    let view = world.control.view(&record);
    assert_eq!((view.conditions[0].kind, view.conditions[0].status), ("Ready", "False"));
    assert_eq!(view.conditions[0].message, "no way to start it");
    assert_eq!((view.conditions[2].kind, view.conditions[2].status), ("RoutesReady", "True"));

    world.runtime.mend();
    let mended = world.deploy("two").await.unwrap();
    assert_eq!(mended.revision, "hello-00002", "the same manifest is the same revision, tried again");
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn while_a_revision_is_prepared_the_old_one_serves() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.runtime.set_prepare_time(Duration::from_secs(10));
    let control = Arc::clone(&world.control);
    let manifest = World::service(&world.manifest("two"));
    let deploying = tokio::spawn(async move { control.deploy(manifest).await });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
    deploying.await.unwrap().unwrap();
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_deploy_is_finished_by_housekeeping() {
    let world = World::new().await;
    world.runtime.set_prepare_time(Duration::from_secs(10));
    let deploying = world.control.deploy(World::service(&world.manifest("one")));
    assert!(tokio::time::timeout(Duration::from_secs(5), deploying).await.is_err());
    eventually(|| !world.split(HOST).is_empty()).await;
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn a_revision_runs_once_though_the_store_fails_when_it_is_noted_as_prepared() {
    for writes in 0.. {
        let store = Arc::new(FakeStore::default());
        let world = World::with(Arc::clone(&store) as _, |_| {}).await;
        world.deploy("one").await.unwrap();
        store.break_after(writes);
        let told = world.deploy("another").await;
        // Housekeeping tries to go on, first in vain.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let registered = world.pool.names().len();
        assert!(registered <= 2, "after {writes} writes: {:?}", world.pool.names());
        store.mend();
        tokio::time::sleep(Duration::from_secs(10)).await;
        let serving = world.split(HOST);
        let names: Vec<&str> = serving.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(world.pool.names(), names, "after {writes} writes nothing else is left with the pool");
        if told.is_ok() {
            assert_eq!(names, ["hello-00002"]);
            assert!(writes > 1, "the revision is stored before it is prepared");
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn traffic_is_split_between_revisions_and_tags_have_hosts_of_their_own() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.deploy("two").await.unwrap();
    let targets = vec![
        TrafficTarget::revision("hello-00001", 30).tagged("old"),
        TrafficTarget::revision("hello-00002", 70),
    ];
    world.control.set_traffic("default", "hello", targets).await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 30), ("hello-00002".to_owned(), 70)]);
    assert_eq!(world.split("old-hello.default.example.org"), [("hello-00001".to_owned(), 100)]);

    let latest = vec![TrafficTarget::latest()];
    world.control.set_traffic("default", "hello", latest).await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
    assert_eq!(world.router.hosts(), [HOST, "hello.default.svc"], "the tag's hosts are gone");
}

#[tokio::test(start_paused = true)]
async fn traffic_that_cannot_be_is_refused_and_changes_nothing() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    for targets in [
        vec![TrafficTarget::revision("hello-00001", 99)],
        vec![TrafficTarget::revision("hello-00007", 100)],
        vec![],
    ] {
        let error = world.control.set_traffic("default", "hello", targets).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{error}");
    }
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
    let error =
        world.control.set_traffic("default", "nobody", vec![TrafficTarget::latest()]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn rolling_back_goes_to_the_revision_before_and_again_further() {
    let world = World::new().await;
    for content in ["one", "two", "three"] {
        world.deploy(content).await.unwrap();
    }
    world.control.roll_back("default", "hello", None).await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
    world.control.roll_back("default", "hello", None).await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
    let error = world.control.roll_back("default", "hello", None).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    world.control.roll_back("default", "hello", Some("hello-00003")).await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00003".to_owned(), 100)]);
}

/// What is there but the note whose packages they are.
fn copies(packages: &std::path::Path) -> usize {
    std::fs::read_dir(packages).unwrap().filter(|entry| entry.as_ref().unwrap().path().is_dir()).count()
}

#[tokio::test(start_paused = true)]
async fn a_deleted_service_leaves_nothing_behind() {
    let packages = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let world = World::with(Arc::clone(&store), |config| {
        config.packages = Some(Arc::new(sas_control::PackageDir::new(packages.path())));
    })
    .await;
    world.deploy("one").await.unwrap();
    assert_eq!(copies(packages.path()), 1);
    world.control.delete("default", "hello").await.unwrap();
    assert!(world.router.hosts().is_empty());
    eventually(|| world.pool.names().is_empty()).await;
    assert_eq!(copies(packages.path()), 0);
    assert!(store.list("service/", None, 10).await.unwrap().is_empty());
    assert_eq!(world.control.delete("default", "hello").await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_platform_comes_back_with_its_services_and_their_packages_as_they_were() {
    let packages = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let first = World::with(Arc::clone(&store), |config| {
        config.packages = Some(Arc::new(sas_control::PackageDir::new(packages.path())))
    })
    .await;
    first.deploy("one").await.unwrap();
    first.deploy("two!").await.unwrap();
    let targets =
        vec![TrafficTarget::revision("hello-00001", 10), TrafficTarget::revision("hello-00002", 90)];
    first.control.set_traffic("default", "hello", targets).await.unwrap();
    // The user's file changes and goes: what was deployed does not care.
    first.package("something else entirely");
    drop(first);
    std::fs::create_dir(packages.path().join("incoming-1-1")).unwrap();

    let second = World::with(store, |config| {
        config.packages = Some(Arc::new(sas_control::PackageDir::new(packages.path())))
    })
    .await;
    assert_eq!(second.split(HOST), [("hello-00001".to_owned(), 10), ("hello-00002".to_owned(), 90)]);
    let record = second.control.record("default", "hello").unwrap();
    let artifact = record.revision("hello-00002").unwrap().artifact.clone();
    assert_eq!(artifact, Some(format!("sha256:{:064x}", "two!".len())));
    assert_eq!(copies(packages.path()), 2, "what a crash left is cleared");
    assert!(second.control.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_package_may_come_as_bytes_and_is_gone_after_the_shutdown() {
    let world = World::new().await;
    let source = sas_core::Source::Bytes { name: "app.sh".to_owned(), bytes: "one".into() };
    let spec = RevisionSpec::new("process", source);
    let manifest = ServiceManifest::new("default", "hello", spec);
    let outcome = world.control.deploy(manifest.clone()).await.unwrap();
    assert!(!world.control.deploy(manifest).await.unwrap().new_revision);
    let revision = outcome.record.revision("hello-00001").unwrap();
    let sas_core::Source::Path(path) = &revision.spec.source else { panic!("{revision:?}") };
    assert_eq!(std::fs::read(path).unwrap(), b"one");
    world.control.shutdown(tokio::time::Instant::now() + Duration::from_secs(1)).await;
    assert!(!path.exists());
}

#[tokio::test(start_paused = true)]
async fn a_spec_with_a_bad_name_is_refused_with_its_fields() {
    let world = World::new().await;
    let spec = RevisionSpec::new("process", sas_core::Source::Path("a".into()));
    let mut manifest = ServiceManifest::new("Default", "1hello", spec);
    manifest.traffic = Some(vec![TrafficTarget::revision("x", 7)]);
    let error = world.control.deploy(manifest).await.unwrap_err();
    for field in ["metadata.namespace", "metadata.name", "spec.traffic"] {
        assert!(error.message.contains(field), "{field}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_copies_a_package_that_changed_is_refused_after_a_restart() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let dir = tempfile::tempdir().unwrap();
    let first =
        World::build(Arc::clone(&store), dir, PreparingRuntime::new(Isolation::Process), |_| {}).await;
    first.deploy("one").await.unwrap();
    first.package("changed behind its back");
    let World { dir, .. } = first;
    let second = World::build(store, dir, PreparingRuntime::new(Isolation::Process), |_| {}).await;
    assert!(second.split(HOST).is_empty());
    let view = second.control.view(&second.control.record("default", "hello").unwrap());
    let ready = &view.revisions[0].conditions[0];
    assert_eq!(ready.status, "False");
    assert!(ready.message.contains("changed since hello-00001 was deployed"), "{}", ready.message);

    // It is tried again by itself, and serves when the package is what it was.
    second.package("one");
    eventually(|| second.split(HOST) == [("hello-00001".to_owned(), 100)]).await;
}

#[tokio::test(start_paused = true)]
async fn one_revision_that_can_not_run_does_not_take_the_others_down_after_a_restart() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let dir = tempfile::tempdir().unwrap();
    let first =
        World::build(Arc::clone(&store), dir, PreparingRuntime::new(Isolation::Process), |_| {}).await;
    first.deploy("one").await.unwrap();
    first.deploy("two").await.unwrap();
    let targets =
        vec![TrafficTarget::revision("hello-00001", 40), TrafficTarget::revision("hello-00002", 60)];
    first.control.set_traffic("default", "hello", targets).await.unwrap();
    let World { dir, .. } = first;
    // The package on disk is that of the second revision only.
    let second = World::build(store, dir, PreparingRuntime::new(Isolation::Process), |_| {}).await;
    assert_eq!(second.split(HOST), [("hello-00002".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn a_test_run_reaches_any_revision_unmetered_and_tells_its_phases() {
    let world = World::new().await;
    let mut manifest = World::service(&world.manifest("one"));
    manifest.spec.scaling.min = 3;
    world.control.deploy(manifest).await.unwrap();
    world.deploy("two").await.unwrap();
    eventually(|| world.pool.names() == ["hello-00002"]).await;

    let mut run = TestRun::default();
    run.revision = Some("hello-00001".to_owned());
    run.path = "/ping?x=1".to_owned();
    let report = world.control.invoke("default", "hello", run).await.unwrap();
    assert_eq!((report.revision.as_str(), report.status.as_u16()), ("hello-00001", 200));
    assert_eq!(report.body, "GET /ping?x=1");
    assert!(report.phases.cold && report.phases.queued == Duration::from_millis(3));
    let seen = world.invoker.seen();
    assert_eq!(seen[0].purpose, Purpose::Test);
    assert_eq!(seen[0].head.headers()["host"], HOST);
    let key = world.pool.key("hello-00001").unwrap();
    assert_eq!(seen[0].target, Target::Revision(key));
    assert_eq!(world.pool.named("hello-00001").unwrap().spec.scaling.min, 0, "no minimum without traffic");
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)], "a test run moves no traffic");

    tokio::time::sleep(Duration::from_secs(60)).await;
    eventually(|| world.pool.names() == ["hello-00002"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_test_run_of_what_is_not_there_or_failed_says_so() {
    let world = World::new().await;
    world.runtime.fail(ErrorKind::InvalidSpec, "not a jar");
    world.deploy("one").await.unwrap_err();
    let run = |revision: Option<&str>| {
        let mut run = TestRun::default();
        run.revision = revision.map(str::to_owned);
        world.control.invoke("default", "hello", run)
    };
    let failed = run(None).await.unwrap_err();
    assert!(failed.message.contains("not a jar"), "{failed}");
    assert_eq!(run(Some("hello-00009")).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_revision_whose_instances_fail_to_start_says_so_in_its_condition() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.pool.fail_starts("hello-00001", Error::new(ErrorKind::Crashed, "start", "exited with status 3"));
    let view = world.control.view(&world.control.record("default", "hello").unwrap());
    assert_eq!((view.conditions[0].status, view.conditions[0].reason.as_str()), ("False", "StartFailed"));
    assert!(view.conditions[0].message.contains("exited with status 3"));
}

#[tokio::test(start_paused = true)]
async fn a_revision_is_ready_once_a_start_has_succeeded_and_not_before() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    let shown = |revision: usize| {
        let view = world.control.view(&world.control.record("default", "hello").unwrap());
        let of = &view.revisions[view.revisions.len() - revision].conditions[0];
        (view.conditions[0].status, of.status, of.reason.clone())
    };
    let never = || "NeverStarted".to_owned();
    assert_eq!(shown(1), ("Unknown", "Unknown", never()));
    assert_eq!(
        world.split(HOST),
        [("hello-00001".to_owned(), 100)],
        "it takes traffic, or would never start"
    );
    world.pool.succeed_starts("hello-00001");
    assert_eq!(shown(1), ("True", "True", String::new()));

    // The next revision has to prove itself; what is known of the first one outlives its registration.
    world.deploy("two").await.unwrap();
    eventually(|| world.pool.names() == ["hello-00002"]).await;
    assert_eq!(shown(2), ("Unknown", "Unknown", never()));
    assert_eq!(shown(1), ("Unknown", "True", String::new()));
    world.pool.succeed_starts("hello-00002");
    assert_eq!(shown(2), ("True", "True", String::new()));
}

#[tokio::test(start_paused = true)]
async fn a_shared_engine_refuses_tenants_on_less_isolation_than_it_asks_for() {
    let on = |runtime| {
        let engine = EngineSpec::new("default", EngineKind::shared(Isolation::Sandbox));
        World::on(engine, Arc::new(MemoryStore::default()), tempfile::tempdir().unwrap(), runtime, |_| {})
    };
    let world = on(PreparingRuntime::new(Isolation::Process)).await;
    let error = world.deploy("one").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("isolation"), "{error}");
    assert!(world.control.records().is_empty(), "nothing half done");

    let world = on(PreparingRuntime::new(Isolation::MicroVm)).await;
    world.deploy("one").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_the_runtime_cannot_ask_is_refused_at_its_field_of_the_document() {
    let world = World::new().await;
    let manifest =
        |probe: &str| World::service(&format!("{}      containers: [{{{probe}}}]\n", world.manifest("one")));
    for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let asks = manifest(&format!("{name}: {{exec: {{command: ['false', '-x']}}}}"));
        let error = world.control.deploy(asks).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidSpec);
        let field = format!("spec.template.spec.containers[0].{name}.exec");
        let told = &error.fields().unwrap().0;
        assert_eq!((told.len(), &*told[0].field, &*told[0].value), (1, &*field, "false -x"));
        assert!(error.message.contains(&field), "{error}");
    }
    assert!(world.control.records().is_empty(), "nothing half done");
    for default in ["tcpSocket: {port: 0}", "httpGet: {path: /, port: 0}"] {
        world.control.deploy(manifest(&format!("readinessProbe: {{{default}}}"))).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_is_refused_at_deploy_for_want_of_a_container_runtime() {
    let world = World::new().await;
    let text = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: web}\nspec:\n  template:\n    \
                spec:\n      containers: [{image: nginx, tty: true}]\n";
    let error = world.control.deploy(World::service(text)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.message.contains("no runtime of this platform accepts it"), "{error}");
    let fields = std::error::Error::source(&error).unwrap().to_string();
    assert!(fields.contains("process runtime: a package is needed"), "each says why: {fields}");
    assert!(
        fields.contains("spec.template.spec.containers[0].tty"),
        "all that is missing, at once: {fields}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_is_named_is_never_changed() {
    let world = World::new().await;
    let named = |content: &str| {
        let text = world.manifest(content);
        let text = text.replace("  template:\n", "  template:\n    metadata: {name: hello-blue}\n");
        World::service(&text)
    };
    let first = world.control.deploy(named("one")).await.unwrap();
    assert_eq!(first.revision, "hello-blue");
    assert!(!world.control.deploy(named("one")).await.unwrap().new_revision);
    let error = world.control.deploy(named("two")).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(world.split(HOST), [("hello-blue".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn a_roll_out_moves_traffic_in_steps_and_comes_to_an_end() {
    let world = World::new().await;
    let slowly =
        |content: &str| {
            let text = world.manifest(content);
            World::service(&text.replace(
                "  annotations:\n",
                "  annotations:\n    serving.knative.dev/rollout-duration: 100s\n",
            ))
        };
    world.control.deploy(slowly("one")).await.unwrap();
    assert_eq!(
        world.split(HOST),
        [("hello-00001".to_owned(), 100)],
        "the first has nobody to take over from"
    );
    world.control.deploy(slowly("two")).await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 99), ("hello-00002".to_owned(), 1)]);
    tokio::time::sleep(Duration::from_millis(50_500)).await;
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 50), ("hello-00002".to_owned(), 50)]);
    tokio::time::sleep(Duration::from_secs(55)).await;
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
    eventually(|| world.pool.names() == ["hello-00002"]).await;
    assert!(world.control.record("default", "hello").unwrap().rolling.is_none());
}

#[tokio::test(start_paused = true)]
async fn old_revisions_are_forgotten_by_knatives_limits() {
    let world = World::with(Arc::new(MemoryStore::default()), |config| {
        config.rules.gc.min_non_active = 1;
    })
    .await;
    for content in ["1", "22", "333", "4444"] {
        world.deploy(content).await.unwrap();
    }
    eventually(|| world.pool.names() == ["hello-00004"]).await;
    assert_eq!(world.control.record("default", "hello").unwrap().revisions.len(), 4, "they are too young");
    world.clock.jump_forward(Duration::from_secs(49 * 3600));
    eventually(|| world.control.record("default", "hello").unwrap().revisions.len() == 2).await;
    let record = world.control.record("default", "hello").unwrap();
    let left: Vec<&str> = record.revisions.iter().map(|revision| revision.name.as_str()).collect();
    assert_eq!(left, ["hello-00003", "hello-00004"]);
}

#[tokio::test(start_paused = true)]
async fn another_control_plane_on_the_same_store_is_noticed() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let world = World::with(Arc::clone(&store), |_| {}).await;
    world.deploy("one").await.unwrap();
    let entry = store.get("service/default/hello").await.unwrap().unwrap();
    store.put("service/default/hello", Some(entry.version), entry.value).await.unwrap();
    let error = world.deploy("two").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn after_the_shutdown_nothing_can_be_changed() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.control.shutdown(tokio::time::Instant::now() + Duration::from_secs(1)).await;
    assert_eq!(world.deploy("two").await.unwrap_err().kind, ErrorKind::Unavailable);
    assert!(!world.control.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_canary_is_rolled_back_to_the_revision_before_it() {
    let world = World::new().await;
    for content in ["one", "two", "three"] {
        world.deploy(content).await.unwrap();
    }
    let share = |revision: &str, percent| TrafficTarget::revision(revision.to_owned(), percent);
    let split = vec![share("hello-00002", 90), share("hello-00003", 10)];
    world.control.set_traffic("default", "hello", split).await.unwrap();
    world.control.roll_back("default", "hello", None).await.unwrap();
    assert_eq!(world.split("hello.default.example.org"), [("hello-00002".to_owned(), 100)]);
    world.control.roll_back("default", "hello", None).await.unwrap();
    assert_eq!(world.split("hello.default.example.org"), [("hello-00001".to_owned(), 100)], "one further");
    let none = world.control.roll_back("default", "hello", None).await.unwrap_err();
    assert_eq!(none.kind, ErrorKind::NotFound);
}

#[tokio::test(start_paused = true)]
async fn shares_beyond_all_bounds_are_an_error() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    for percents in [vec![u32::MAX, 101], vec![u32::MAX, u32::MAX, 102], vec![1 << 31, 1 << 31, 100], vec![]]
    {
        let targets: Vec<TrafficTarget> = percents
            .iter()
            .map(|percent| TrafficTarget::revision("hello-00001".to_owned(), *percent))
            .collect();
        let error = world.control.set_traffic("default", "hello", targets).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::InvalidSpec, "{percents:?}: {error}");
    }
    assert_eq!(world.split("hello.default.example.org"), [("hello-00001".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn a_spec_leaves_pinned_traffic_and_a_manifest_says_where_it_goes() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    world.deploy("two").await.unwrap();
    let pin = vec![TrafficTarget::revision("hello-00001".to_owned(), 100)];
    world.control.set_traffic("default", "hello", pin).await.unwrap();
    let mut spec = RevisionSpec::clone(&world.control.record("default", "hello").unwrap().revisions[1].spec);
    spec.concurrency = 77;
    let outcome = world.control.deploy_spec("default", "hello", spec).await.unwrap();
    assert_eq!((outcome.revision.as_str(), outcome.new_revision), ("hello-00003", true));
    assert_eq!(
        world.split("hello.default.example.org"),
        [("hello-00001".to_owned(), 100)],
        "pinned stays pinned"
    );

    let mut half = TrafficTarget::latest();
    half.percent = 50;
    let split = vec![TrafficTarget::revision("hello-00001".to_owned(), 50), half];
    world.control.set_traffic("default", "hello", split).await.unwrap();
    let mut spec = RevisionSpec::clone(&world.control.record("default", "hello").unwrap().revisions[1].spec);
    spec.concurrency = 78;
    world.control.deploy_spec("default", "hello", spec).await.unwrap();
    let split = [("hello-00001".to_owned(), 50), ("hello-00004".to_owned(), 50)];
    assert_eq!(world.split("hello.default.example.org"), split, "the latest's share follows");

    world.deploy("three").await.unwrap();
    assert_eq!(
        world.split("hello.default.example.org"),
        [("hello-00005".to_owned(), 100)],
        "as the manifest says"
    );
}

#[tokio::test(start_paused = true)]
async fn mistakes_in_a_spec_are_told_in_its_own_fields() {
    let world = World::new().await;
    let package = |path: String| sas_core::Source::Path(path.into());
    let field = async |namespace: &str, spec: RevisionSpec| {
        let error = world.control.deploy_spec(namespace, "hello", spec).await.unwrap_err();
        let fields = error.fields().unwrap_or_else(|| panic!("no fields: {error}"));
        assert!(error.to_string().contains(&fields.0[0].field), "{error}");
        fields.0[0].field.clone()
    };
    let sound = RevisionSpec::new("process", package(world.package("one")));
    assert_eq!(field("No Label", sound.clone()).await, "namespace");
    let mut spec = sound.clone();
    spec.queue_limit = 0;
    spec.timeouts.request = Duration::ZERO;
    assert!(field("default", spec).await.starts_with("RevisionSpec."));
    let missing = RevisionSpec::new("process", package("/nowhere/app.sh".to_owned()));
    assert_eq!(field("default", missing).await, "RevisionSpec.source");
    let unknown = RevisionSpec::new("nothing", package(world.package("one")));
    assert_eq!(field("default", unknown).await, "RevisionSpec.runtime");
}
