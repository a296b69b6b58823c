//! Values of which a broken medium kept only the first part: refused by name, in nobody's way, and written anew.

use std::sync::Arc;

use sas_control::Recovery;
use sas_core::{
    Commit, Entry, Error, ErrorKind, MemoryStore, Store, StoreLimits, TenantKey, Version, Watched,
};

use crate::support::{PreparingRuntime, World};

/// The world of the same store and packages after a restart, and what came back.
async fn restarted(world: World) -> (World, Recovery) {
    let store = Arc::clone(&world.store);
    let runtime = PreparingRuntime::new(sas_core::Isolation::Process);
    let again = World::build(store, world.dir, runtime, |_| {}).await;
    // Asked a second time, it says the same of what is damaged.
    let recovery = again.control.recover().await.expect("the store can be read");
    (again, recovery)
}

/// Keeps only the first `kept` bytes of a value.
async fn tear(store: &dyn Store, key: &str, kept: usize) {
    let entry = store.get(key).await.expect("a read").expect("a value");
    assert!(kept < entry.value.len(), "{key}: {kept} of {}", entry.value.len());
    store.put(key, Some(entry.version), entry.value.slice(..kept)).await.expect("a write");
}

async fn with_two_services() -> World {
    let world = World::with(Arc::new(MemoryStore::default()), |_| {}).await;
    world.deploy("one").await.expect("a deploy");
    let other = world.manifest("one").replace("name: hello", "name: other");
    world.control.deploy(World::service(&other)).await.expect("a deploy");
    world
}

#[tokio::test(start_paused = true)]
async fn a_service_of_which_half_is_left_is_named_and_the_others_serve() {
    let length = {
        let world = with_two_services().await;
        world.store.get("service/default/hello").await.expect("a read").expect("a value").value.len()
    };
    for kept in [0, 1, length / 2, length - 1] {
        let world = with_two_services().await;
        tear(&*world.store, "service/default/hello", kept).await;
        let (world, recovery) = restarted(world).await;
        let [(name, error)] = &recovery.failed[..] else { panic!("{kept}: {recovery:?}") };
        assert_eq!((name.as_str(), error.kind), ("Service default/hello", ErrorKind::InvalidSpec));
        assert!(error.message.contains("service/default/hello"), "{error}");
        assert!(error.message.contains("deploy it again or delete it"), "{error}");
        assert_eq!(world.control.record("default", "hello").unwrap_err().kind, ErrorKind::NotFound);
        assert!(world.control.record("default", "other").is_ok());
        assert!(world.split("hello.default.example.org").is_empty());
        assert!(!world.split("other.default.example.org").is_empty());

        let outcome = world.deploy("one").await.expect("the deploy that mends it");
        assert!(outcome.created);
        assert!(!world.split("hello.default.example.org").is_empty());
        let (world, recovery) = restarted(world).await;
        assert!(recovery.failed.is_empty(), "{recovery:?}");
        assert!(world.control.record("default", "hello").is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_of_a_service_can_be_deleted() {
    let world = with_two_services().await;
    tear(&*world.store, "service/default/hello", 10).await;
    let (world, _) = restarted(world).await;
    world.control.delete("default", "hello").await.expect("the deletion");
    assert!(world.store.get("service/default/hello").await.expect("a read").is_none());
    assert_eq!(world.control.delete("default", "hello").await.unwrap_err().kind, ErrorKind::NotFound);
    let (_, recovery) = restarted(world).await;
    assert!(recovery.failed.is_empty(), "{recovery:?}");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_tenant_is_named_and_written_anew_as_its_services_have_it() {
    let world = with_two_services().await;
    let tenant = world.control.record("default", "hello").expect("a service").tenant;
    assert_ne!(tenant, TenantKey::HOST);
    tear(&*world.store, "tenant/default", 0).await;
    let (world, recovery) = restarted(world).await;
    assert_eq!(recovery.services, 2, "the services come back all the same");
    let [(name, error)] = &recovery.failed[..] else { panic!("{recovery:?}") };
    assert_eq!((name.as_str(), error.kind), ("Tenant default", ErrorKind::InvalidSpec));
    assert!(error.message.contains("tenant/default"), "{error}");
    world.deploy("one").await.expect("a deploy");
    assert_eq!(world.control.record("default", "hello").expect("a service").tenant, tenant);
    let (_, recovery) = restarted(world).await;
    assert!(recovery.failed.is_empty(), "{recovery:?}");
}

#[tokio::test(start_paused = true)]
async fn what_another_version_wrote_is_named_and_nothing_writes_over_it() {
    let world = with_two_services().await;
    let key = "service/default/hello";
    let entry = world.store.get(key).await.expect("a read").expect("a value");
    let mut record: serde_json::Value = serde_json::from_slice(&entry.value).expect("a record");
    record["format"] = 2.into();
    record["newerThanThis"] = true.into();
    let written = record.to_string();
    world.store.put(key, Some(entry.version), written.clone().into()).await.expect("a write");
    let (world, recovery) = restarted(world).await;
    let [(name, error)] = &recovery.failed[..] else { panic!("{recovery:?}") };
    assert_eq!((name.as_str(), error.kind), ("Service default/hello", ErrorKind::Unsupported));
    assert!(error.message.contains("format 2"), "{error}");
    // Twice: a change of which nobody knows whether it was done is looked after first.
    for _ in 0..2 {
        assert_eq!(world.deploy("one").await.unwrap_err().kind, ErrorKind::Conflict);
        assert_eq!(world.control.delete("default", "hello").await.unwrap_err().kind, ErrorKind::NotFound);
    }
    let there = world.store.get(key).await.expect("a read").expect("a value");
    assert_eq!(there.value, written);
}

/// A store that does a deletion and says that it failed.
#[derive(Debug, Default)]
struct Silent(MemoryStore);

#[async_trait::async_trait]
impl Store for Silent {
    fn limits(&self) -> StoreLimits {
        self.0.limits()
    }
    async fn version(&self) -> sas_core::Result<Version> {
        self.0.version().await
    }
    async fn get(&self, key: &str) -> sas_core::Result<Option<Entry>> {
        self.0.get(key).await
    }
    async fn commit(&self, commit: Commit) -> sas_core::Result<Version> {
        let deletes = commit.writes.iter().any(|write| write.value.is_none());
        let version = self.0.commit(commit).await?;
        if deletes {
            return Err(Error::new(ErrorKind::Unavailable, "delete", "the answer is lost"));
        }
        Ok(version)
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> sas_core::Result<Vec<Entry>> {
        self.0.list(prefix, after, limit).await
    }
    async fn watch(&self, prefix: &str, since: Version) -> sas_core::Result<Watched> {
        self.0.watch(prefix, since).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_deletion_of_what_is_left_may_be_done_without_an_answer() {
    let world = World::with(Arc::new(Silent::default()), |_| {}).await;
    world.deploy("one").await.expect("a deploy");
    tear(&*world.store, "service/default/hello", 10).await;
    let (world, _) = restarted(world).await;
    assert_eq!(world.control.delete("default", "hello").await.unwrap_err().kind, ErrorKind::Unavailable);
    assert_eq!(world.control.delete("default", "hello").await.unwrap_err().kind, ErrorKind::NotFound);
    assert!(world.deploy("one").await.expect("a deploy").created);
}
