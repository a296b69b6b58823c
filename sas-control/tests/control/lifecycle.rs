//! What is told of services, engines and findings, to who follows their life. Time is paused.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use sas_core::{ErrorKind, LifecycleEvent, LifecycleKind, LifecycleSink, MemoryStore};
use serde_json::json;

use crate::support::{self, World, eventually};

/// Remembers what it is told.
#[derive(Clone, Debug, Default)]
struct Follower(Arc<Mutex<Vec<LifecycleEvent>>>);

impl LifecycleSink for Follower {
    fn told(&self, event: LifecycleEvent) {
        self.0.lock().push(event);
    }
}

impl Follower {
    /// What was told since it was asked before.
    fn heard(&self) -> Vec<LifecycleEvent> {
        std::mem::take(&mut *self.0.lock())
    }

    fn kinds(&self) -> Vec<&'static str> {
        self.heard().iter().map(|event| event.kind.as_str()).collect()
    }
}

async fn followed() -> (World, Follower) {
    let follower = Follower::default();
    let followers = Arc::new(follower.clone());
    let store = Arc::new(MemoryStore::default());
    let world = World::with(store, move |config| config.lifecycle = Some(followers)).await;
    (world, follower)
}

#[tokio::test(start_paused = true)]
async fn each_change_of_a_service_is_told_once_with_its_revision() {
    let (world, follower) = followed().await;
    world.deploy("one").await.unwrap();
    let heard = follower.heard();
    let kinds: Vec<_> = heard.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, [LifecycleKind::ServiceDeployed, LifecycleKind::RevisionReady]);
    for event in &heard {
        assert_eq!((event.subject.as_str(), event.namespace.as_deref()), ("default/hello", Some("default")));
        assert_eq!((event.at, &event.data["revision"]), (support::START, &json!("hello-00001")));
    }
    assert_eq!((&heard[0].data["created"], &heard[0].data["generation"]), (&json!(true), &json!(1)));

    world.deploy("one").await.unwrap();
    assert_eq!(follower.kinds(), [""; 0], "nothing has changed");
    world.deploy("two").await.unwrap();
    let heard = follower.heard();
    assert_eq!((heard[0].kind, &heard[0].data["created"]), (LifecycleKind::ServiceDeployed, &json!(false)));
    assert_eq!(
        (heard[1].kind, &heard[1].data["revision"]),
        (LifecycleKind::RevisionReady, &json!("hello-00002"))
    );

    world.runtime.fail(ErrorKind::InvalidSpec, "no way to start it");
    world.deploy("three").await.unwrap_err();
    let heard = follower.heard();
    assert_eq!((heard.len(), heard[1].kind), (2, LifecycleKind::RevisionFailed));
    assert_eq!(heard[1].data["message"], "no way to start it");
    assert_eq!(heard[1].data["reason"], "invalid_spec");
    world.runtime.mend();

    let service = "/v1/services/default/hello";
    let (status, said) =
        world.call("POST", &format!("{service}/disable"), r#"{"reason": "a holiday"}"#).await;
    assert_eq!(status, 200, "{said}");
    let heard = follower.heard();
    assert_eq!((heard.len(), heard[0].kind), (1, LifecycleKind::ServiceDisabled));
    assert_eq!(heard[0].data["reason"], "a holiday");
    let (status, said) = world.call("POST", &format!("{service}/enable"), "").await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(follower.kinds(), ["service.enabled"]);
    world.control.delete("default", "hello").await.unwrap();
    assert_eq!(follower.kinds(), ["service.deleted"]);
}

#[tokio::test(start_paused = true)]
async fn a_roll_out_is_told_from_its_start_to_its_end() {
    let (world, follower) = followed().await;
    let rolling = |content: &str| {
        let annotations = "  annotations:\n    serving.knative.dev/rollout-duration: 100s\n";
        World::service(&world.manifest(content).replacen("  annotations:\n", annotations, 1))
    };
    world.control.deploy(rolling("one")).await.unwrap();
    follower.heard();
    world.control.deploy(rolling("two")).await.unwrap();
    let heard = follower.heard();
    let started = heard.iter().find(|event| event.kind == LifecycleKind::RolloutStarted).expect("it starts");
    assert_eq!((&started.data["from"], &started.data["to"]), (&json!("hello-00001"), &json!("hello-00002")));
    tokio::time::sleep(Duration::from_secs(120)).await;
    eventually(|| world.control.record("default", "hello").is_ok_and(|record| record.rolling.is_none()))
        .await;
    let heard = follower.heard();
    let rollout: Vec<_> = heard.iter().filter(|event| event.kind.as_str().starts_with("rollout.")).collect();
    assert_eq!((rollout.len(), rollout[0].kind), (1, LifecycleKind::RolloutFinished), "{heard:?}");
}
