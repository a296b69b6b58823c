//! Apps, aliases, services switched off, and what is deleted as a whole; and that a kill at any write leaves the old or
//! the new. Time is paused.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sas_control::{Control, LabelSelector, ServiceRecord};
use sas_core::{EnvValue, ErrorKind, Isolation, MemoryStore, Principal, Result, RevisionSpec, Source, Store};
use sas_core::{RouteAction, RouteMatch, ValueMatch};
use sas_knative::manifest::TrafficTarget;
use sas_testkit::fake::FakeStore;
use serde_json::json;

use crate::support::{PreparingRuntime, World};

const HOST: &str = "hello.default.example.org";

/// A manifest of a service of the app `shop` with an environment of its own.
fn of_shop(world: &World, name: &str) -> String {
    let manifest = world.manifest("one").replace("name: hello", &format!("name: {name}"));
    manifest.replace(
        "  annotations:\n",
        "  labels:\n    sas.dev/app: shop\n    tier: web\n  annotations:\n    kubernetes.io/change-cause: first try\n",
    ) + "      containers:\n      - image: x\n        env:\n        - name: MINE\n          value: own\n"
}

fn without_image(manifest: &str) -> String {
    manifest.replace("      - image: x\n        env:", "      - env:")
}

async fn deploy(world: &World, name: &str) -> Result<sas_control::DeployOutcome> {
    world.control.deploy(World::service(&without_image(&of_shop(world, name)))).await
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, EnvValue> {
    let literal = |text: &str| match text.strip_prefix("secret:") {
        Some(secret) => EnvValue::Secret(secret.to_owned()),
        None => EnvValue::Literal(text.to_owned()),
    };
    pairs.iter().map(|(name, value)| ((*name).to_owned(), literal(value))).collect()
}

fn latest_env(record: &ServiceRecord) -> BTreeMap<String, EnvValue> {
    record.latest_created().expect("a revision").spec.env.clone()
}

async fn reopened(world: World) -> World {
    let store = Arc::clone(&world.store);
    World::build(store, world.dir, PreparingRuntime::new(Isolation::Process), |_| {}).await
}

#[tokio::test(start_paused = true)]
async fn a_disabled_service_runs_nothing_keeps_everything_and_stays_so_over_a_restart() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    let record = world.control.disable(None, "default", "hello", Some("holiday")).await.unwrap();
    assert_eq!(record.disabled.as_ref().unwrap().reason.as_deref(), Some("holiday"));
    assert_eq!(world.router.split(HOST), Some(Vec::new()), "the route is there and leads to nothing");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(world.pool.names().is_empty(), "nothing of it runs");
    let view = world.control.view(&record);
    assert_eq!((view.conditions[0].status, view.conditions[0].reason.as_str()), ("False", "Disabled"));
    assert!(view.conditions[0].message.contains("holiday"));

    // A deploy is prepared, and waits with the rest.
    let deployed = world.deploy("two").await.unwrap();
    assert_eq!(deployed.record.latest_ready().unwrap().name, "hello-00002");
    assert!(world.pool.names().is_empty());
    let run = sas_control::TestRun::default();
    let refused = world.control.invoke("default", "hello", run).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Conflict);

    let world = reopened(world).await;
    assert_eq!(world.router.split(HOST), Some(Vec::new()));
    assert!(world.pool.names().is_empty());
    world.control.enable(None, "default", "hello").await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00002".to_owned(), 100)]);
    let again = world.control.enable(None, "default", "hello").await.unwrap();
    assert_eq!(again.generation, world.control.record("default", "hello").unwrap().generation);
}

#[tokio::test(start_paused = true)]
async fn an_alias_stands_for_a_revision_keeps_it_and_is_gone_back_to() {
    let world = World::new().await;
    for content in ["one", "two", "three"] {
        world.deploy(content).await.unwrap();
    }
    let control = &world.control;
    control.set_alias(None, "default", "hello", "stable", Some("hello-00001")).await.unwrap();
    for (alias, revision, kind) in [
        ("latest", "hello-00001", ErrorKind::InvalidSpec),
        ("hello-00002", "hello-00001", ErrorKind::InvalidSpec),
        ("No Label", "hello-00001", ErrorKind::InvalidSpec),
        ("other", "hello-00009", ErrorKind::NotFound),
    ] {
        let error = control.set_alias(None, "default", "hello", alias, Some(revision)).await.unwrap_err();
        assert_eq!(error.kind, kind, "{alias} {revision}: {error}");
    }
    control.roll_back("default", "hello", Some("stable")).await.unwrap();
    assert_eq!(world.split(HOST), [("hello-00001".to_owned(), 100)]);
    let back = control.set_traffic("default", "hello", vec![TrafficTarget::revision("latest", 100)]).await;
    assert_eq!(back.unwrap().traffic[0].revision_name.as_deref(), Some("hello-00003"));

    let kept = control.delete_revision(None, "default", "hello", "hello-00001").await.unwrap_err();
    assert_eq!(kept.kind, ErrorKind::Conflict);
    assert!(kept.message.contains("alias stable"), "{kept}");
    control.set_alias(None, "default", "hello", "stable", None).await.unwrap();
    let none = control.set_alias(None, "default", "hello", "stable", None).await.unwrap_err();
    assert_eq!(none.kind, ErrorKind::NotFound);
    control.delete_revision(None, "default", "hello", "hello-00001").await.unwrap();
    let used = control.delete_revision(None, "default", "hello", "hello-00003").await.unwrap_err();
    assert!(used.message.contains("gets traffic"), "{used}");
    let mut tagged = TrafficTarget::revision("hello-00002", 0);
    tagged.tag = Some("blue".to_owned());
    let targets = vec![TrafficTarget::latest(), tagged];
    control.set_traffic("default", "hello", targets).await.unwrap();
    let tagged = control.delete_revision(None, "default", "hello", "hello-00002").await.unwrap_err();
    assert!(tagged.message.contains("tag blue"), "{tagged}");
    let record = control.record("default", "hello").unwrap();
    let names: Vec<_> = record.revisions.iter().map(|revision| revision.name.as_str()).collect();
    assert_eq!(names, ["hello-00002", "hello-00003"]);
}

#[tokio::test(start_paused = true)]
async fn the_environment_of_an_app_rolls_out_as_revisions_and_is_gone_back_to() {
    let world = World::new().await;
    let control = &world.control;
    for name in ["one", "two"] {
        deploy(&world, name).await.unwrap();
    }
    world.deploy("one").await.unwrap();
    let first = control.record("default", "one").unwrap();
    assert_eq!(first.revisions[0].reason.as_deref(), Some("first try"));

    let who = Principal::new("ann");
    let wanted = env(&[("MINE", "app"), ("COLOUR", "red"), ("PASSWORD", "secret:db/password")]);
    control.set_app_env(Some(&who), "default", "shop", wanted, Some("paint it")).await.unwrap();
    for name in ["one", "two"] {
        let record = control.record("default", name).unwrap();
        let latest = record.latest_ready().unwrap();
        assert_eq!(record.revisions.len(), 2);
        assert_eq!(latest.app_env.as_ref().unwrap().version, 1);
        assert_eq!(latest.app_env.as_ref().unwrap().names, ["COLOUR", "PASSWORD"]);
        assert_eq!(latest.reason.as_deref(), Some("environment 1 of shop: paint it"));
        assert_eq!(latest.author.as_ref().unwrap().name(), "ann");
        assert_eq!(latest.spec.env["MINE"], EnvValue::Literal("own".to_owned()), "its own goes before");
        assert_eq!(latest.spec.env["PASSWORD"], EnvValue::Secret("db/password".to_owned()));
        assert_eq!(world.split(&format!("{name}.default.example.org")), [(latest.name.clone(), 100)]);
    }
    assert_eq!(control.record("default", "hello").unwrap().revisions.len(), 1, "it belongs to no app");
    // The same manifest again says nothing new.
    assert!(!deploy(&world, "one").await.unwrap().new_revision);

    control.set_app_env(None, "default", "shop", env(&[("COLOUR", "blue")]), None).await.unwrap();
    let now = latest_env(&control.record("default", "one").unwrap());
    assert_eq!(now, env(&[("MINE", "own"), ("COLOUR", "blue")]));
    let reverted = control.revert_app_env(None, "default", "shop", 1, None).await.unwrap();
    assert_eq!(reverted.current().map(|v| (v.version, v.reverts_to)), Some((3, Some(1))));
    assert!(latest_env(&control.record("default", "two").unwrap()).contains_key("PASSWORD"));
    let missing = control.revert_app_env(None, "default", "shop", 9, None).await.unwrap_err();
    assert_eq!(missing.kind, ErrorKind::NotFound);
    let bad = control.set_app_env(None, "default", "shop", env(&[("A=B", "x")]), None).await.unwrap_err();
    assert_eq!(bad.kind, ErrorKind::InvalidSpec);

    // A service that comes later has it too; one that leaves the app has it no more.
    let later = deploy(&world, "three").await.unwrap();
    assert!(latest_env(&later.record).contains_key("PASSWORD"));
    let manifest = without_image(&of_shop(&world, "two")).replace("sas.dev/app: shop", "sas.dev/other: shop");
    let left = world.control.deploy(World::service(&manifest)).await;
    // Names of this platform that it does not know are labels like any other.
    assert_eq!(latest_env(&left.unwrap().record), env(&[("MINE", "own")]));

    let world = reopened(world).await;
    assert_eq!(world.control.app("default", "shop").unwrap().versions.len(), 3);
    assert_eq!(world.control.record("default", "one").unwrap().revisions.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn services_and_revisions_are_found_by_labels_at_the_api() {
    let world = World::new().await;
    for name in ["one", "two"] {
        deploy(&world, name).await.unwrap();
    }
    world.deploy("one").await.unwrap();
    assert_eq!(world.control.select(None, &LabelSelector::app("shop")).len(), 2);
    let (status, found) = world.call("GET", "/v1/services?labels=sas.dev/app%20in%20(shop,bank)", "").await;
    assert_eq!((status, found["services"].as_array().unwrap().len()), (200, 2));
    let (status, refused) = world.call("GET", "/v1/services?labels=a%20within%20(b)", "").await;
    assert_eq!((status, &refused["fields"][0]["field"]), (422, &json!("labels")), "{refused}");

    let put = r#"{"variables": {"COLOUR": "red", "KEY": {"secret": "k"}}, "reason": "paint it"}"#;
    let (status, app) = world.call("PUT", "/v1/apps/default/shop/environment", put).await;
    assert_eq!(status, 200, "{app}");
    assert_eq!(app["environments"][0]["variables"], json!({"COLOUR": "red", "KEY": {"secret": "k"}}));
    assert_eq!(app["services"][0]["environmentVersion"], 1);
    let (_, page) = world.call("GET", "/v1/revisions?limit=2", "").await;
    let next = page["continue"].as_str().unwrap();
    let (_, rest) = world.call("GET", &format!("/v1/revisions?continue={next}"), "").await;
    let services = |page: &serde_json::Value| {
        let all = page["revisions"].as_array().unwrap().iter();
        all.map(|r| r["service"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!([services(&page), services(&rest)].concat(), ["hello", "one", "one", "two", "two"]);

    let (status, _) =
        world.call("POST", "/v1/apps/default/shop/environment/revert", r#"{"version": 7}"#).await;
    assert_eq!(status, 404);
    let (status, _) = world.call("PUT", "/v1/apps/default/shop/environment", "{}").await;
    assert_eq!(status, 422);
    let (status, service) =
        world.call("PUT", "/v1/services/default/one/aliases/stable", r#"{"revision": "latest"}"#).await;
    assert_eq!((status, &service["aliases"]["stable"]), (200, &json!("one-00002")));
    let (status, _) = world.call("DELETE", "/v1/services/default/one/aliases/stable", "").await;
    assert_eq!(status, 200);
    let (status, _) = world.call("DELETE", "/v1/services/default/one/revisions/one-00001", "").await;
    assert_eq!(status, 200);
    let (status, off) = world.call("POST", "/v1/services/default/one/disable", r#"{"reason": "x"}"#).await;
    assert_eq!((status, &off["disabled"]["reason"]), (200, &json!("x")));
    let (status, on) = world.call("POST", "/v1/services/default/one/enable", "").await;
    assert_eq!((status, &on["disabled"]), (200, &json!(null)));
    let (status, gone) = world.call("DELETE", "/v1/apps/default/shop", "").await;
    assert_eq!((status, &gone["services"]), (200, &json!(["default/one", "default/two"])));
    assert_eq!(world.call("GET", "/v1/apps/default/shop", "").await.0, 404);
    let (status, gone) = world.call("DELETE", "/v1/tenants/default", "").await;
    assert_eq!((status, &gone["services"]), (200, &json!(["default/hello"])));
    assert!(world.control.records().is_empty());
    assert_eq!(world.call("DELETE", "/v1/tenants/nobody", "").await.0, 404);
}

/// What a world is, as far as who asked for a change can tell.
type State = Vec<String>;

fn state(control: &Control) -> State {
    let mut state = Vec::new();
    for record in control.records() {
        let revisions: Vec<_> = record
            .revisions
            .iter()
            .map(|r| format!("{}:{:?}:{:?}", r.digest, r.state, r.app_env.as_ref().map(|env| env.version)))
            .collect();
        state.push(format!(
            "{} {:?} {:?} {:?} {:?} {:?}",
            record.path(),
            record.traffic,
            record.aliases,
            record.disabled.is_some(),
            record.rolling.as_ref().map(|rolling| (&rolling.from, &rolling.to)),
            revisions
        ));
    }
    for (namespace, app) in control.apps() {
        let version = control.app(&namespace, &app).and_then(|app| Some(app.current()?.version));
        state.push(format!("app {namespace}/{app} {version:?}"));
    }
    state
}

/// A change that people ask for.
#[derive(Clone, Copy, Debug)]
enum Change {
    Deploy,
    RollOut,
    Alias,
    Disable,
    DeleteRevision,
    AppEnv,
    Delete,
    DeleteApp,
    DeleteTenant,
}

impl Change {
    const ALL: [Self; 9] = [
        Self::Deploy,
        Self::RollOut,
        Self::Alias,
        Self::Disable,
        Self::DeleteRevision,
        Self::AppEnv,
        Self::Delete,
        Self::DeleteApp,
        Self::DeleteTenant,
    ];

    async fn run(self, world: &World) -> Result<()> {
        let control = &world.control;
        match self {
            Self::Deploy => deploy(world, "three").await.map(drop),
            Self::RollOut => {
                let manifest = without_image(&of_shop(world, "one")).replace(
                    "  annotations:\n",
                    "  annotations:\n    serving.knative.dev/rollout-duration: 100s\n",
                );
                let mut manifest = World::service(&manifest);
                manifest.spec.concurrency = 9;
                control.deploy(manifest).await.map(drop)
            }
            Self::Alias => {
                control.set_alias(None, "default", "one", "stable", Some("one-00001")).await.map(drop)
            }
            Self::Disable => control.disable(None, "default", "one", None).await.map(drop),
            Self::DeleteRevision => {
                control.delete_revision(None, "default", "one", "one-00001").await.map(drop)
            }
            Self::AppEnv => {
                control.set_app_env(None, "default", "shop", env(&[("B", "2")]), None).await.map(drop)
            }
            Self::Delete => control.delete("default", "one").await,
            Self::DeleteApp => control.delete_app("default", "shop").await.map(drop),
            Self::DeleteTenant => control.delete_tenant("default").await.map(drop),
        }
    }
}

async fn prepared(store: &Arc<FakeStore>) -> World {
    let world = World::with(Arc::clone(store) as Arc<dyn Store>, |_| {}).await;
    for name in ["one", "two"] {
        deploy(&world, name).await.unwrap();
    }
    world.control.set_app_env(None, "default", "shop", env(&[("A", "1")]), None).await.unwrap();
    world.deploy("one").await.unwrap();
    let mut other = World::service(&world.manifest("one"));
    other.namespace = "other".to_owned();
    world.control.deploy(other).await.unwrap();
    world
}

/// Kills the platform before each write of each change; what the store has is opened again, and is the old or the new
/// state in all that a change touches. Deletions and environments are of many records: once they were begun, the reopened
/// platform brings them to their end.
#[tokio::test(start_paused = true)]
async fn a_kill_at_any_write_leaves_the_old_state_or_the_new() {
    for change in Change::ALL {
        let store = Arc::new(FakeStore::default());
        let world = Box::pin(prepared(&store)).await;
        let old = state(&world.control);
        change.run(&world).await.unwrap_or_else(|error| panic!("{change:?}: {error}"));
        let world = reopened(world).await;
        let new = state(&world.control);
        assert_ne!(old, new, "{change:?}");

        let mut kills = 0;
        for writes in 0.. {
            let store = Arc::new(FakeStore::default());
            let world = Box::pin(prepared(&store)).await;
            store.break_after(writes);
            let told = change.run(&world).await;
            let done = told.is_ok();
            // The process is gone: what it had in memory is lost.
            world.control.shutdown(tokio::time::Instant::now()).await;
            store.mend();
            let world = reopened(world).await;
            let found = state(&world.control);
            assert!(
                found == old || found == new,
                "{change:?} after {writes} writes:\n{found:#?}\n{old:#?}\n{new:#?}"
            );
            if done {
                assert_eq!(found, new, "{change:?}: what was acknowledged is kept");
            }
            let orphans = store.list("purge/", None, 10).await.unwrap();
            assert!(orphans.is_empty(), "{change:?}: {orphans:?}");
            let hosts = world.router.hosts();
            for record in world.control.records() {
                let host = format!("{}.{}.example.org", record.name, record.namespace);
                assert!(hosts.contains(&host), "{change:?}: {host} in {hosts:?}");
            }
            assert_eq!(hosts.len(), 2 * world.control.records().len(), "{change:?}: no host of what is gone");
            kills += 1;
            // Housekeeping apart, no write was left to be cut off.
            if done && found == new {
                break;
            }
        }
        assert!(kills > 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_that_the_store_cuts_short_goes_on_by_itself() {
    let store = Arc::new(FakeStore::default());
    let world = Box::pin(prepared(&store)).await;
    store.break_after(3);
    let error = world.control.delete_tenant("default").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable);
    store.mend();
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let left: Vec<_> = world.control.records().iter().map(|record| record.path()).collect();
    assert_eq!(left, ["other/hello"]);
    deploy(&world, "one").await.expect("it may come again");
    assert_eq!(world.control.app("default", "shop"), None);
}

#[tokio::test(start_paused = true)]
async fn what_is_stored_has_the_format_that_the_golden_file_shows() {
    let world = Box::pin(prepared(&Arc::new(FakeStore::default()))).await;
    let control = &world.control;
    control.set_alias(None, "default", "one", "stable", Some("one-00001")).await.unwrap();
    control.disable(Some(&Principal::new("ann")), "default", "two", Some("old")).await.unwrap();
    let mut golden = String::new();
    for prefix in ["app/", "service/", "tenant/"] {
        for entry in world.store.list(prefix, None, 100).await.unwrap() {
            let value: serde_json::Value = serde_json::from_slice(&entry.value).unwrap();
            let text = serde_json::to_string_pretty(&value).unwrap();
            golden +=
                &format!("{}\n{}\n", entry.key, text.replace(&world.dir.path().display().to_string(), "DIR"));
        }
    }
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/records.txt");
    if std::env::var_os("SAS_WRITE_GOLDEN").is_some() {
        std::fs::write(&file, &golden).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        golden, expected,
        "the format of records changed: older ones must still open; then SAS_WRITE_GOLDEN=1"
    );

    // And what the file shows opens.
    let store = Arc::new(MemoryStore::default());
    let mut lines = expected.lines().peekable();
    while let Some(key) = lines.next() {
        let mut value = String::new();
        while let Some(line) =
            lines.next_if(|line| !["app/", "service/", "tenant/"].iter().any(|p| line.starts_with(p)))
        {
            value += line;
        }
        let value = value.replace("DIR", &world.dir.path().display().to_string());
        store.put(key, None, value.into()).await.unwrap();
    }
    let before = state(control);
    let World { dir, .. } = world;
    let again = World::build(store, dir, PreparingRuntime::new(Isolation::Process), |_| {}).await;
    assert_eq!(state(&again.control), before);
}

/// Not in the ordinary run: `SAS_LONG=1 cargo test --release -p sas-control --test control many -- --nocapture`.
#[tokio::test]
async fn many_services_in_one_store() {
    if std::env::var_os("SAS_LONG").is_none() {
        eprintln!("skipped: it takes a while; set SAS_LONG=1");
        return;
    }
    let count: usize = std::env::var("SAS_SERVICES").ok().and_then(|n| n.parse().ok()).unwrap_or(100_000);
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or("VmRSS: 0").to_owned();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024
    };
    let world = World::new().await;
    let package = world.package("one");
    let began = tokio::time::Instant::now();
    for number in 0..count {
        let spec = RevisionSpec::new("process", Source::Path(package.clone().into()));
        let mut manifest =
            sas_knative::manifest::ServiceManifest::new("default", format!("s{number:06}"), spec);
        manifest.labels.insert("sas.dev/app".to_owned(), format!("app{}", number % 1000));
        world.control.deploy(manifest).await.unwrap();
    }
    println!("{count} services deployed in {:?}; {} MiB", began.elapsed(), resident());
    let store = Arc::clone(&world.store);
    let dir = world.dir;
    drop(world.control);
    let before = resident();
    let began = tokio::time::Instant::now();
    let world = World::build(store, dir, PreparingRuntime::new(Isolation::Process), |_| {}).await;
    println!("start: {:?}; {before} MiB before, {} MiB after", began.elapsed(), resident());
    let began = tokio::time::Instant::now();
    let (_, page) = world.call("GET", "/v1/services?limit=500", "").await;
    println!("list of {}: {:?}", page["services"].as_array().unwrap().len(), began.elapsed());
    let began = tokio::time::Instant::now();
    let (_, page) = world.call("GET", "/v1/services?labels=sas.dev/app%20in%20(app7)", "").await;
    println!("query by label, {} found: {:?}", page["services"].as_array().unwrap().len(), began.elapsed());
    let began = tokio::time::Instant::now();
    let spec = RevisionSpec::new("process", Source::Path(package.into()));
    world.control.deploy_spec("default", "one-more", spec).await.unwrap();
    println!("deploy one more: {:?}", began.elapsed());
    assert_eq!(world.control.records().len(), count + 1);
}

#[tokio::test(start_paused = true)]
async fn requests_go_to_a_tag_by_path_method_header_and_cookie_as_the_manifest_says() {
    let world = World::new().await;
    world.deploy("one").await.unwrap();
    let routes = r#"[{"tag": "beta", "cookies": {"track": "b*"}}, {"tag": "beta", "path": "/api", "methods": ["POST"], "headers": {"x-user": "ann"}}]"#;
    let manifest = world
        .manifest("one")
        .replace("  annotations:\n", &format!("  annotations:\n    sas.dev/routes: '{routes}'\n"));
    let untagged = world.control.deploy(World::service(&manifest)).await.unwrap_err();
    assert_eq!(untagged.kind, ErrorKind::InvalidSpec);
    assert_eq!(untagged.fields().unwrap().0[0].field, "metadata.annotations[sas.dev/routes][0].tag");

    let traffic = "  traffic:\n  - latestRevision: true\n    percent: 100\n  - revisionName: hello-00001\n    percent: 0\n    tag: beta\n";
    world.control.deploy(World::service(&(manifest + traffic))).await.unwrap();
    let rules = world.router.rules(HOST);
    let beta = world.pool.key("hello-00001").unwrap();
    let by = |found: fn(&RouteMatch) -> bool| {
        let rule = rules.iter().find(|rule| found(&rule.matches)).expect("a rule");
        let RouteAction::Split(splits) = &rule.action else { panic!("{rule:?}") };
        assert_eq!(splits.iter().map(|s| (s.revision, s.weight)).collect::<Vec<_>>(), [(beta, 100)]);
        rule.matches.clone()
    };
    let cookie = by(|matches| !matches.cookies.is_empty());
    assert_eq!(cookie.cookies, [("track".to_owned(), ValueMatch::Prefix("b".to_owned()))]);
    let path = by(|matches| matches.path_prefix == "/api");
    assert_eq!(path.methods, ["POST"]);
    assert_eq!(path.headers, [("x-user".to_owned(), ValueMatch::Exact("ann".to_owned()))]);
    let refused =
        world.control.set_traffic("default", "hello", vec![TrafficTarget::latest()]).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidSpec, "a route would lead to nothing");
}
