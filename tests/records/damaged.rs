//! That a record which can't be read keeps nobody else from starting, keeps its bytes, and is named.

use std::{fs, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream};
use sas::{
    control::{FileUsageExport, PackageDir, UsageKey},
    core::{Secret, Store},
    prelude::*,
};
use sas_testkit::fake::FakeClock;
use serde_json::Value;

use crate::{
    golden::{self, KINDS, Records},
    recording::Recording,
    scenario::{START, admin, builder, host, until},
};

/// What is left of a record that was cut off and written over.
const TORN: &[u8] = b"{\"torn\xff";

/// What a host writes anew each time, with nothing in it that is missed: which commit was its last, and the answer of a call
/// that is made again.
const RENEWED: [&str; 2] = ["usage/mark/", "async/answer/"];

fn newest() -> Records {
    let newest = golden::files().pop().expect("a file");
    golden::read(&fs::read_to_string(&newest).expect("a file")).into_iter().collect()
}

/// The newest file's records, with the first of this kind damaged, and its key.
fn damaged(kind: &str) -> (Records, String) {
    let mut records = newest();
    let key = records.keys().find(|key| key.starts_with(kind)).expect("one of each kind").clone();
    records.insert(key.clone(), TORN.to_vec());
    (records, key)
}

async fn started(store: &Arc<Recording>, dir: &std::path::Path) -> Platform {
    let clock = FakeClock::starting_at(START);
    clock.jump_forward(Duration::from_secs(4 * 3600));
    let key = UsageKey::new("k1", Secret::new("0123456789abcdef0123456789abcdef")).expect("a key");
    let builder = builder(Arc::clone(store), &clock)
        .packages(PackageDir::new(dir.join("packages")))
        .usage_export("bills", key, FileUsageExport::new(dir.join("usage")));
    Box::pin(builder.build()).await.expect("a platform")
}

/// The keys of the finding of damaged records, and how many.
async fn named(platform: &Platform) -> Vec<String> {
    let (status, said) = admin(platform, "GET", "/v1/diagnosis", Value::Null).await;
    assert_eq!(status, 200, "{said}");
    let findings = said["findings"].as_array().expect("findings");
    let subjects = findings.iter().filter(|one| one["name"] == "damaged_records");
    subjects.map(|one| one["subject"].as_str().expect("a subject").replace("record ", "")).collect()
}

async fn answers(platform: &Platform, host: &str) -> u16 {
    let request = http::Request::get(format!("http://{host}/")).header("host", host).body(Body::empty());
    platform.entrance().handle(request.expect("a request")).await.status().as_u16()
}

fn on_threads() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
}

async fn starts_without(kind: &'static str) {
    let (records, key) = damaged(kind);
    let store = Recording::of(records).await;
    let dir = tempfile::tempdir().expect("a directory");
    let platform = started(&store, dir.path()).await;
    // Everything but what was damaged is there.
    if kind != "service/" {
        until(&format!("without {key} a service answers"), async || {
            answers(&platform, "cart.shop.localhost").await == 200
        })
        .await;
    }
    for path in ["/v1/services", "/v1/usage", "/v1/usage/hours", "/v1/audit", "/v1/brokers", "/v1/tokens"] {
        let (status, said) = admin(&platform, "GET", path, Value::Null).await;
        assert_eq!(status, 200, "without {key}: {path}: {said}");
    }
    let rest = key.strip_prefix("usage/").unwrap_or(&key);
    let is_it = |name: &str| {
        name == key || name.strip_prefix("usage/damaged/").is_some_and(|name| name.ends_with(rest))
    };
    if RENEWED.contains(&kind) {
        until(&format!("{key} is written anew"), async || {
            store.get(&key).await.expect("memory").is_some_and(|entry| *entry.value != *TORN)
        })
        .await;
    } else {
        until(&format!("{key} is named"), async || {
            // Records are looked through a second after a start.
            tokio::time::sleep(Duration::from_millis(200)).await;
            named(&platform).await.iter().any(|name| is_it(name))
        })
        .await;
        let mut kept = store.present().await;
        kept.retain(|at, value| is_it(at) && value == TORN);
        assert_eq!(kept.len(), 1, "the bytes of {key} are kept");
    }
    platform.shutdown(Duration::from_secs(10)).await;
}

#[test]
fn a_damaged_record_of_any_kind_keeps_nobody_else_from_starting_and_is_named() {
    on_threads().block_on(async {
        // Not all at once: each is a platform, and what it is asked for in the meantime costs, too.
        stream::iter(KINDS).map(starts_without).buffer_unordered(8).collect::<()>().await;
    });
}

#[test]
fn of_records_that_are_whole_none_is_called_damaged() {
    on_threads().block_on(async {
        let store = Recording::of(newest()).await;
        let dir = tempfile::tempdir().expect("a directory");
        // Read behind all others, so they were read when it is named.
        store.put("workflow/told/~", None, TORN.into()).await.expect("memory");
        let platform = started(&store, dir.path()).await;
        until("the last is named", async || !named(&platform).await.is_empty()).await;
        assert_eq!(named(&platform).await, ["workflow/told/~"]);
        // Who mends it need not start again.
        let found = store.get("workflow/told/~").await.expect("memory").expect("there");
        store.put("workflow/told/~", Some(found.version), "{}".into()).await.expect("memory");
        assert_eq!(named(&platform).await, [""; 0]);
        platform.shutdown(Duration::from_secs(10)).await;
    });
}

/// Who owns what is decided by these: a guess would have two hosts act for the same. A host that starts refuses, and says which
/// record it is and what to do.
#[test]
fn a_host_does_not_guess_at_damaged_records_of_its_cluster() {
    on_threads().block_on(async {
        for kind in ["cluster/host/", "cluster/shard/", "cluster/terms"] {
            let (records, key) = damaged(kind);
            let store = Recording::of(records).await;
            let refused = tokio::spawn(async move { host(&store, "a").await }).await;
            let refused = refused.expect_err("it must not act").into_panic();
            let said = refused.downcast_ref::<String>().expect("the reason");
            assert!(said.contains(&key) && said.contains("stop all hosts and delete it"), "{said}");
        }
    });
}
