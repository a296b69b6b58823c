//! What the control plane asks of the data plane: quotas, roll-outs that look at errors, rules of paths and tags.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas_control::ControlConfig;
use sas_core::{
    AnswerCounter, AnswerCounts, ErrorKind, MemoryStore, Quota, Quotas, RevisionKey, Store, TenantKey,
    TenantQuota, ValueMatch,
};
use sas_testkit::fault::SlowDisk;

use crate::support::{self, World, eventually};

const HOST: &str = "hello.default.example.org";

/// Remembers quotas, and counts what it is told to.
#[derive(Debug, Default)]
struct DataPlane {
    tenants: Mutex<BTreeMap<u32, TenantQuota>>,
    services: Mutex<BTreeMap<String, Quota>>,
    counts: Mutex<BTreeMap<RevisionKey, AnswerCounts>>,
}

impl Quotas for DataPlane {
    fn set_tenant(&self, tenant: TenantKey, quota: Option<TenantQuota>) {
        match quota {
            Some(quota) => self.tenants.lock().insert(tenant.0, quota),
            None => self.tenants.lock().remove(&tenant.0),
        };
    }
    fn set_service(&self, service: &str, quota: Option<Quota>) {
        match quota {
            Some(quota) => self.services.lock().insert(service.to_owned(), quota),
            None => self.services.lock().remove(service),
        };
    }
}

impl AnswerCounter for DataPlane {
    fn watch_answers(&self, revision: RevisionKey) {
        self.counts.lock().insert(revision, AnswerCounts::default());
    }
    fn unwatch_answers(&self, revision: RevisionKey) {
        self.counts.lock().remove(&revision);
    }
    fn answers(&self, revision: RevisionKey) -> Option<AnswerCounts> {
        self.counts.lock().get(&revision).copied()
    }
}

impl DataPlane {
    fn answered(&self, world: &World, revision: &str, requests: u64, errors: u64) {
        let key = world.pool.key(revision).expect("registered");
        let mut counts = self.counts.lock();
        let counts = counts.get_mut(&key).expect("watched");
        counts.requests += requests;
        counts.errors += errors;
    }

    fn watched(&self) -> usize {
        self.counts.lock().len()
    }
}

fn with(plane: &Arc<DataPlane>) -> impl FnOnce(&mut ControlConfig) + use<> {
    let plane = Arc::clone(plane);
    move |config| {
        config.plane.quotas = Some(Arc::clone(&plane) as _);
        config.plane.answers = Some(plane as _);
    }
}

async fn world() -> (World, Arc<DataPlane>) {
    let plane = Arc::<DataPlane>::default();
    (World::with(Arc::new(MemoryStore::default()), with(&plane)).await, plane)
}

/// The manifest with annotations of the service.
fn annotated(world: &World, content: &str, annotations: &[&str]) -> String {
    let lines: String = annotations.iter().map(|line| format!("    {line}\n")).collect();
    world.manifest(content).replace("  annotations:\n", &format!("  annotations:\n{lines}"))
}

async fn deploy(world: &World, content: &str, annotations: &[&str]) -> sas_core::Result<()> {
    let manifest = World::service(&annotated(world, content, annotations));
    world.control.deploy(manifest).await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn a_services_quota_follows_its_annotations() {
    let (world, plane) = world().await;
    let quota =
        ["sas.dev/quota-rate: \"2.5\"", "sas.dev/quota-burst: \"9\"", "sas.dev/quota-concurrency: \"4\""];
    deploy(&world, "one", &quota).await.unwrap();
    let service = || plane.services.lock().get("default/hello").copied();
    assert_eq!(service(), Some(Quota::rate(2.5, 9).with_concurrency(4)));
    let (_, view) = world.call("GET", "/v1/services/default/hello", "").await;
    assert_eq!(view["quota"], serde_json::json!({"rate": 2.5, "burst": 9, "concurrency": 4}));

    // A new quota is no new revision.
    deploy(&world, "one", &["sas.dev/quota-rate: \"10\""]).await.unwrap();
    assert_eq!(service(), Some(Quota::rate(10.0, 10)), "a second's worth may come at once");
    assert_eq!(world.pool.names(), ["hello-00001"]);
    deploy(&world, "one", &[]).await.unwrap();
    assert_eq!(service(), None);

    deploy(&world, "one", &["sas.dev/quota-concurrency: \"1\""]).await.unwrap();
    world.control.delete("default", "hello").await.unwrap();
    assert_eq!(service(), None, "a service that comes later starts without it");
}

#[tokio::test(start_paused = true)]
async fn a_tenants_quota_is_set_by_host_and_admin_api_and_comes_back() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let configure = |plane: &Arc<DataPlane>| {
        let with = with(plane);
        move |config: &mut ControlConfig| {
            with(config);
            config.tenant_quotas = [("default".to_owned(), Quota::rate(100.0, 100).into())].into();
        }
    };
    let plane = Arc::<DataPlane>::default();
    let world = World::with(Arc::clone(&store), configure(&plane)).await;
    deploy(&world, "one", &[]).await.unwrap();
    let tenant = |plane: &DataPlane| plane.tenants.lock().values().copied().collect::<Vec<_>>();
    assert_eq!(tenant(&plane), [Quota::rate(100.0, 100).into()]);

    let (status, said) = world.call("PUT", "/v1/quotas/default", r#"{"rate": 5, "burst": 2}"#).await;
    assert_eq!((status, said["quota"].clone()), (200, serde_json::json!({"rate": 5.0, "burst": 2})));
    assert_eq!(tenant(&plane), [Quota::rate(5.0, 2).into()]);
    let (status, said) = world.call("PUT", "/v1/quotas/default", r#"{"rate": -5, "burst": 0}"#).await;
    assert_eq!((status, said["fields"].as_array().map(Vec::len)), (422, Some(2)), "{said}");
    let (status, said) = world.call("PUT", "/v1/quotas/default", r#"{"speed": 5}"#).await;
    assert!(status == 422 && said["message"].as_str().unwrap().contains("speed"), "{said}");
    assert_eq!(world.call("PUT", "/v1/quotas/No-Name", "{}").await.0, 422);
    assert_eq!(world.call("POST", "/v1/quotas/default", "{}").await.0, 405);
    let (_, all) = world.call("GET", "/v1/quotas", "").await;
    assert_eq!(all["quotas"][0]["namespace"], "default");

    let later = Arc::<DataPlane>::default();
    let again = World::with(store, configure(&later)).await;
    assert_eq!(
        tenant(&later),
        [Quota::rate(5.0, 2).into()],
        "what was stored goes before what the host says"
    );
    assert_eq!(again.call("DELETE", "/v1/quotas/default", "").await.0, 200);
    assert_eq!(tenant(&later), [Quota::rate(100.0, 100).into()]);
}

#[tokio::test(start_paused = true)]
async fn what_nothing_can_hold_to_is_refused() {
    let world = World::new().await;
    let error = deploy(&world, "one", &["sas.dev/quota-rate: \"1\""]).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.to_string().contains("quota"), "{error}");
    let error = deploy(&world, "one", &["sas.dev/rollout-steps: 1,100"]).await.unwrap_err();
    assert!(error.to_string().contains("rollout"), "{error}");
    assert!(!error.to_string().contains("unsupported: unsupported"), "{error}");
    for quota in [r#"{"rate": 1}"#, r#"{"instances": 1}"#, r#"{"eventsPerSecond": 1}"#] {
        let (status, said) = world.call("PUT", "/v1/quotas/default", quota).await;
        assert_eq!(status, 422, "nothing here would hold it: {said}");
    }
    assert_eq!(world.call("PUT", "/v1/quotas/default", r#"{"storageBytes": 1}"#).await.0, 200);
}

#[test]
fn annotations_of_the_data_plane_are_checked_one_by_one() {
    use sas_knative::manifest::{ParseOptions, parse};
    let manifest = |annotations: &str| {
        format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: hello\n  annotations:\n    \
             sas.dev/package: /app\n{annotations}spec:\n  template:\n    spec: {{}}\n"
        )
    };
    for (line, field) in [
        ("sas.dev/quota-rate: fast", "quota-rate"),
        ("sas.dev/quota-rate: \"-1\"", "quota-rate"),
        ("sas.dev/quota-rate: inf", "quota-rate"),
        ("sas.dev/quota-burst: \"3\"", "quota-burst"),
        ("sas.dev/quota-concurrency: \"0\"", "quota-concurrency"),
        ("sas.dev/rollout-steps: 10,50", "rollout-steps"),
        ("sas.dev/rollout-steps: 50,10,100", "rollout-steps"),
        ("sas.dev/rollout-steps: 0,100", "rollout-steps"),
        ("sas.dev/rollout-hold: soon", "rollout-hold"),
        ("sas.dev/rollout-min-requests: some", "rollout-min-requests"),
        ("sas.dev/rollout-max-more-errors: 101%", "rollout-max-more-errors"),
        ("sas.dev/no-wake: healthz", "no-wake"),
        ("sas.dev/no-wake: /", "no-wake"),
        ("sas.dev/no-wake: /a b", "no-wake"),
        ("serving.knative.dev/rollout-duration: 60s\n    sas.dev/rollout-hold: 1s", "rollout-hold"),
    ] {
        let errors = parse(&manifest(&format!("    {line}\n")), &ParseOptions::default()).unwrap_err();
        let path = format!("metadata.annotations[sas.dev/{field}]");
        assert!(errors.0.iter().any(|error| error.field == path), "{line}: {errors}");
    }
    let good = "    serving.knative.dev/rollout-duration: 60s\n    sas.dev/rollout-max-more-errors: 2%\n";
    parse(&manifest(good), &ParseOptions::default()).unwrap();
}

const PLAN: [&str; 3] =
    ["sas.dev/rollout-steps: 10,50,100", "sas.dev/rollout-hold: 10s", "sas.dev/rollout-min-requests: \"5\""];

/// Lets housekeeping look once.
async fn housekeeping(world: &World, seconds: u64) {
    world.clock.jump_forward(Duration::from_secs(seconds));
    tokio::time::sleep(Duration::from_millis(1_100)).await;
}

#[tokio::test(start_paused = true)]
async fn a_roll_out_moves_step_by_step_as_long_as_the_new_revision_answers() {
    let (world, plane) = world().await;
    deploy(&world, "one", &PLAN).await.unwrap();
    assert_eq!(plane.watched(), 0, "the first revision has nobody to take from");
    deploy(&world, "two", &PLAN).await.unwrap();
    let split = |old, new| [("hello-00001".to_owned(), old), ("hello-00002".to_owned(), new)];
    assert_eq!(world.split(HOST), split(90, 10));
    assert_eq!(plane.watched(), 2);
    housekeeping(&world, 10).await;
    assert_eq!(world.split(HOST), split(90, 10), "without traffic nothing was learnt");
    plane.answered(&world, "hello-00001", 90, 0);
    plane.answered(&world, "hello-00002", 10, 0);
    housekeeping(&world, 1).await;
    assert_eq!(world.split(HOST), split(50, 50));
    let (_, view) = world.call("GET", "/v1/services/default/hello/rollout", "").await;
    assert_eq!(view["rollout"]["state"], "moving");
    assert_eq!(view["rollout"]["percent"], 50);
    assert_eq!(view["rollout"]["answers"]["to"]["requests"], 0, "each step counts for itself");
    housekeeping(&world, 1).await;
    assert_eq!(world.split(HOST), split(50, 50), "a step is held");
    plane.answered(&world, "hello-00002", 10, 0);
    housekeeping(&world, 9).await;
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
    assert_eq!(plane.watched(), 0);
    eventually(|| world.pool.names() == ["hello-00002"]).await;
    let (_, view) = world.call("GET", "/v1/services/default/hello", "").await;
    assert_eq!(view["rollout"], serde_json::Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_revision_that_fails_loses_its_traffic_and_the_next_one_starts_from_the_good_one() {
    let (world, plane) = world().await;
    deploy(&world, "one", &PLAN).await.unwrap();
    deploy(&world, "two", &PLAN).await.unwrap();
    plane.answered(&world, "hello-00001", 90, 0);
    plane.answered(&world, "hello-00002", 10, 6);
    housekeeping(&world, 1).await;
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
    eventually(|| world.pool.names() == ["hello-00001"]).await;
    assert_eq!(plane.watched(), 0);
    let (_, view) = world.call("GET", "/v1/services/default/hello", "").await;
    let last = view["conditions"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(
        (&last["type"], &last["status"], &last["reason"]),
        (&"RolledOut".into(), &"False".into(), &"Stopped".into())
    );
    assert!(last["message"].as_str().unwrap().contains("6 of 10"), "{last}");

    // Applying the same again changes nothing: a loop that applies manifests must not bring it back.
    deploy(&world, "two", &PLAN).await.unwrap();
    housekeeping(&world, 3_600).await;
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);

    deploy(&world, "three", &PLAN).await.unwrap();
    let expected = [("hello-00001".to_owned(), 90), ("hello-00003".to_owned(), 10)];
    assert_eq!(world.split(HOST), expected, "the one that failed is no revision to come from");
}

#[tokio::test(start_paused = true)]
async fn a_roll_out_that_follows_another_leaves_the_service_within_its_maximum() {
    let (store, plane) = (SlowDisk::new(Arc::new(MemoryStore::default())), Arc::<DataPlane>::default());
    let world = World::with(Arc::clone(&store) as _, with(&plane)).await;
    let of_five = |content: &str| {
        let most = "  template:\n    metadata:\n      annotations:\n        autoscaling.knative.dev/max-scale: \"5\"\n";
        World::service(&annotated(&world, content, &PLAN).replace("  template:\n", most))
    };
    world.control.deploy(of_five("one")).await.unwrap();
    world.control.deploy(of_five("two")).await.unwrap();
    let limit = |revision| world.pool.bounds(revision).map(|bounds| bounds.limit);
    assert_eq!(
        [limit("hello-00001"), limit("hello-00002")],
        [Some(5), Some(2)],
        "the maximum, and its surge"
    );

    // Its record is written for as long as housekeeping takes for several looks.
    store.delay(Duration::from_secs(3));
    let deploying = {
        let (control, manifest) = (Arc::clone(&world.control), of_five("three"));
        tokio::spawn(async move { control.deploy(manifest).await })
    };
    let mut seen = Vec::new();
    while !deploying.is_finished() {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if world.pool.named("hello-00003").is_none() {
            continue;
        }
        let bounds = world.pool.bounds("hello-00003").expect("what comes is held back until it is sized");
        let old = limit("hello-00001").expect("one of the two that a roll-out sizes");
        assert!(old.saturating_add(bounds.limit) <= 7, "{old} and {bounds:?}");
        if seen.last() != Some(&bounds.limit) {
            seen.push(bounds.limit);
        }
    }
    deploying.await.unwrap().unwrap();
    assert_eq!(seen, [1, 2], "first held back, then sized");
}

#[tokio::test(start_paused = true)]
async fn people_restart_promote_and_stop_a_roll_out() {
    let (world, plane) = world().await;
    let path = "/v1/services/default/hello/rollout";
    deploy(&world, "one", &PLAN).await.unwrap();
    assert_eq!(world.call("POST", path, r#"{"action": "stop"}"#).await.0, 404, "there is none");
    deploy(&world, "two", &PLAN).await.unwrap();
    assert_eq!(world.call("POST", path, r#"{"action": "halt"}"#).await.0, 422);
    assert_eq!(world.call("POST", path, "{}").await.0, 422);

    let (status, view) = world.call("POST", path, r#"{"action": "stop"}"#).await;
    assert_eq!((status, &view["rollout"]["state"]), (200, &"stopped".into()));
    assert_eq!(view["rollout"]["reason"], "stopped by hand");
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
    let (status, _) = world.call("POST", path, r#"{"action": "restart"}"#).await;
    assert_eq!(status, 200);
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 90), ("hello-00002".to_owned(), 10)]);
    assert_eq!(plane.watched(), 2);
    let (status, view) = world.call("POST", path, r#"{"action": "promote"}"#).await;
    assert_eq!((status, &view["rollout"]), (200, &serde_json::Value::Null));
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
    assert_eq!(plane.watched(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_roll_out_goes_on_after_a_restart_of_the_platform() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
    let plane = Arc::<DataPlane>::default();
    // Copies of packages, so that the old revision comes back although its file has changed.
    let kept = tempfile::tempdir().unwrap();
    let keeping = |plane: &Arc<DataPlane>| {
        let (with, packages) = (with(plane), kept.path().to_owned());
        move |config: &mut ControlConfig| {
            with(config);
            config.packages = Some(Arc::new(sas_control::PackageDir::new(packages)));
        }
    };
    let world = World::with(Arc::clone(&store), keeping(&plane)).await;
    deploy(&world, "one", &PLAN).await.unwrap();
    deploy(&world, "two", &PLAN).await.unwrap();
    // What the old one answered is kept: it may answer nothing in the next step.
    plane.answered(&world, "hello-00001", 90, 0);
    plane.answered(&world, "hello-00002", 10, 0);
    housekeeping(&world, 11).await;
    world.control.shutdown(tokio::time::Instant::now()).await;

    let later = Arc::<DataPlane>::default();
    let again = World::build(
        store,
        world.dir,
        support::PreparingRuntime::new(sas_core::Isolation::Process),
        keeping(&later),
    )
    .await;
    assert_eq!(again.split(HOST), [("hello-00001".to_owned(), 50), ("hello-00002".to_owned(), 50)]);
    assert_eq!(later.watched(), 2);
    later.answered(&again, "hello-00002", 100, 50);
    housekeeping(&again, 1).await;
    assert_eq!(again.split(HOST), [("hello-00001".to_owned(), 100)]);
}

#[tokio::test(start_paused = true)]
async fn tags_are_asked_for_by_header_and_some_paths_wake_nobody() {
    let (world, _) = world().await;
    deploy(&world, "one", &["sas.dev/no-wake: /healthz, /livez,/healthz"]).await.unwrap();
    deploy(&world, "two", &["sas.dev/no-wake: /healthz"]).await.unwrap();
    let targets = vec![
        sas_knative::manifest::TrafficTarget::revision("hello-00001", 0).tagged("old"),
        sas_knative::manifest::TrafficTarget::revision("hello-00002", 100),
    ];
    world.control.set_traffic("default", "hello", targets).await.unwrap();
    let rules = world.router.rules(HOST);
    let quiet: Vec<_> = rules.iter().filter(|rule| !rule.wakes).collect();
    assert_eq!(quiet.len(), 2, "of the service and of its tag");
    assert!(quiet.iter().all(|rule| rule.matches.path_prefix == "/healthz"));
    let tagged: Vec<_> = rules.iter().filter(|rule| !rule.matches.headers.is_empty()).collect();
    assert_eq!(tagged.len(), 2);
    let asks = (sas_knative::TAG_HEADER.to_owned(), ValueMatch::Exact("old".to_owned()));
    assert!(tagged.iter().all(|rule| rule.matches.headers == [asks.clone()]));
}

#[tokio::test(start_paused = true)]
async fn engines_and_the_diagnosis_are_shown_and_a_host_of_one_engine_says_so() {
    let world = World::new().await;
    let (status, said) = world.call("GET", "/v1/engines", "").await;
    let engine = &said["engines"][0];
    assert_eq!(
        (status, &engine["name"], &engine["phase"]),
        (200, &"default".into(), &"ready".into()),
        "{said}"
    );
    let spec = r#"{"kind": "dedicated", "namespaces": ["bank"]}"#;
    let (status, said) = world.call("PUT", "/v1/engines/bank", spec).await;
    assert_eq!(status, 422, "{said}");
    assert!(said.to_string().contains("engine factory"), "{said}");
    assert_eq!(world.call("PUT", "/v1/engines/bank", r#"{"kind": "private"}"#).await.0, 422);
    assert_eq!(world.call("POST", "/v1/engines/bank/upgrade", "").await.0, 404);
    assert_eq!(world.call("DELETE", "/v1/engines/bank", "").await.0, 404);
    let (status, said) = world.call("GET", "/v1/diagnosis", "").await;
    assert_eq!((status, said["checks"].as_array().unwrap().len()), (200, 14), "{said}");
    assert!(
        said["findings"].as_array().unwrap().iter().all(|found| found["name"] == "leaked_handles"),
        "{said}"
    );
}
