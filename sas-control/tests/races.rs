//! Changes of one service that come at the same time, and very many changes at once. Time is paused.

mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sas_control::PackageDir;
use sas_core::{Body, ErrorKind, Handler as _, MemoryStore, Store};
use sas_knative::manifest::{ServiceManifest, TrafficTarget};
use support::{TOKEN, World};
use tokio::{task::JoinSet, time::sleep};

fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// A manifest of `hello` with this content, rolled out over a minute.
fn manifest(world: &World, content: &str) -> ServiceManifest {
    let package = world.dir_file(content, content).display().to_string();
    World::service(&format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: hello\n  annotations:\n    \
         sas.dev/package: {package}\n    serving.knative.dev/rollout-duration: 60s\nspec:\n  template:\n    spec:\n      \
         containerConcurrency: 5\n"
    ))
}

/// What there is of `hello` outside the records is what its record says: all of it, or nothing.
async fn is_whole(world: &World, what: &str) {
    let stored = world.store.get("service/default/hello").await.expect("memory");
    let record = world.control.record("default", "hello").ok();
    assert_eq!(stored.is_some(), record.is_some(), "{what}: the store and the platform agree");
    let registered: BTreeSet<String> = world.pool.names().into_iter().collect();
    let packages = std::fs::read_dir(world.dir.path().join("packages")).map_or(0, |entries| {
        entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir())).count()
    });
    let Some(record) = record else {
        assert_eq!(world.router.hosts(), [""; 0], "{what}: no host is left");
        assert_eq!(registered, BTreeSet::new(), "{what}: nothing is registered");
        assert_eq!(packages, 0, "{what}: no package is left");
        return;
    };
    assert_eq!(record.rolling, None, "{what}: roll-outs have ended");
    assert_eq!(world.router.hosts().len(), 2, "{what}: {:?}", world.router.hosts());
    let split = world.split("hello.default.example.org");
    assert_eq!(split.iter().map(|(_, weight)| weight).sum::<u32>(), 100, "{what}: {split:?}");
    let routed: BTreeSet<String> = split.into_iter().map(|(name, _)| name).collect();
    assert_eq!(registered, routed, "{what}: what gets traffic is registered, and nothing else");
    let kept: BTreeSet<&str> = record.revisions.iter().filter_map(|one| one.package.as_deref()).collect();
    assert_eq!(packages, kept.len(), "{what}: the packages of its revisions, each once");
}

#[tokio::test(start_paused = true)]
async fn a_delete_during_a_deploy_during_a_roll_out_leaves_all_or_nothing() {
    let (mut deleted, mut kept) = (0, 0);
    for seed in 0..64 {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_none| tempfile::tempdir()).expect("a directory");
        let packages = dir.path().join("packages");
        let runtime = support::PreparingRuntime::new(sas_core::Isolation::Process);
        let world = World::build(Arc::clone(&store), dir, runtime, |config| {
            config.packages = Some(Arc::new(PackageDir::new(packages)));
        })
        .await;
        let mut state = seed;
        world.control.deploy(manifest(&world, "one")).await.expect("deployed");
        world.control.deploy(manifest(&world, "two")).await.expect("its roll-out begins");
        sleep(Duration::from_secs(5)).await;
        assert!(world.control.record("default", "hello").expect("there").rolling.is_some());

        world.runtime.set_prepare_time(Duration::from_millis(20));
        let mut changes = JoinSet::new();
        for change in 0..4 {
            let wait = Duration::from_millis(draw(&mut state) % 30);
            let (control, next) =
                (Arc::clone(&world.control), manifest(&world, ["three", "four"][change % 2]));
            changes.spawn(async move {
                sleep(wait).await;
                let done = match change {
                    0 | 1 => control.deploy(next).await.map(drop),
                    2 => control.delete("default", "hello").await,
                    _ => {
                        let back = vec![TrafficTarget::revision("hello-00001".to_owned(), 100)];
                        control.set_traffic("default", "hello", back).await.map(drop)
                    }
                };
                // What came after the deletion may find nothing; nothing else goes wrong.
                if let Err(error) = done {
                    assert!(
                        matches!(
                            error.kind,
                            ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::InvalidSpec
                        ),
                        "{change}: {error}"
                    );
                }
            });
        }
        while let Some(done) = changes.join_next().await {
            done.expect("no change panics");
        }
        // The roll-out's minute, drains, and housekeeping.
        sleep(Duration::from_secs(900)).await;
        is_whole(&world, &format!("seed {seed}")).await;
        let there = world.control.record("default", "hello").is_ok();
        *(if there { &mut kept } else { &mut deleted }) += 1;
        let names = |world: &World| {
            world.control.record("default", "hello").map(|record| record.revisions.clone()).ok()
        };
        let before = names(&world);
        let World { dir, .. } = world;
        let runtime = support::PreparingRuntime::new(sas_core::Isolation::Process);
        let packages = dir.path().join("packages");
        let again = World::build(store, dir, runtime, |config| {
            config.packages = Some(Arc::new(PackageDir::new(packages)));
        })
        .await;
        assert_eq!(names(&again), before, "seed {seed}: the next start finds the same");
    }
    assert!(deleted > 5 && kept > 5, "both ends come about: {deleted} deleted, {kept} kept");
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_deploys_at_once_are_done_or_refused_and_none_by_half() {
    const DEPLOYS: usize = 10_000;
    let world = World::new().await;
    world.runtime.set_prepare_time(Duration::from_secs(1));
    world.admin.change(|settings| (settings.rate, settings.burst) = (1e9, u32::MAX));
    let package = world.package("one");
    let admin = Arc::new(world.admin);
    let mut answers = JoinSet::new();
    for number in 0..DEPLOYS {
        let (admin, package) = (Arc::clone(&admin), package.clone());
        answers.spawn(async move {
            let manifest = format!(
                "{{apiVersion: serving.knative.dev/v1, kind: Service, metadata: {{name: s{number:05}, annotations: \
                 {{sas.dev/package: {package}}}}}, spec: {{template: {{spec: {{containerConcurrency: 5}}}}}}}}"
            );
            let request = http::Request::post("/v1/services")
                .header("host", "localhost")
                .header("authorization", format!("Bearer {TOKEN}"))
                .body(Body::from(manifest))
                .expect("a request");
            let response = admin.handle(request).await;
            (number, response.status().as_u16(), response.headers().get("retry-after").cloned())
        });
    }
    let mut done = BTreeSet::new();
    while let Some(answer) = answers.join_next().await {
        let (number, status, again) = answer.expect("no request panics");
        match status {
            201 => assert!(done.insert(format!("s{number:05}"))),
            503 => assert_eq!(again.expect("when to come back"), "1"),
            other => panic!("{number}: {other}"),
        }
    }
    assert_eq!(done.len(), 1024, "so many are under way at once");
    let names = |control: &sas_control::Control| -> BTreeSet<String> {
        control.records().iter().map(|record| record.name.clone()).collect()
    };
    assert_eq!(names(&world.control), done, "what was acknowledged, and nothing of what was refused");
    assert_eq!((world.pool.names().len(), world.router.hosts().len()), (done.len(), 2 * done.len()));
    let again = World::build(world.store, world.dir, world.runtime, |_| {}).await;
    assert_eq!(names(&again.control), done);
    assert_eq!((again.pool.names().len(), again.router.hosts().len()), (done.len(), 2 * done.len()));
}
