//! That what a file shows is read by a platform of today, and shown by it.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use sas::{control::PackageDir, prelude::*};
use sas_testkit::fake::FakeClock;
use serde_json::{Value, json};

use crate::{
    golden::{Records, kind},
    recording::Recording,
    scenario::{START, admin, builder, host, until},
};

/// Starts a platform on what the file shows, alone and as one of several, and asks it for everything.
pub(crate) fn all(path: &Path, records: &Records) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads").block_on(async {
        let what = path.display().to_string();
        alone(&what, records).await;
        among_hosts(&what, records).await;
    });
}

async fn get(platform: &Platform, path: &str) -> Value {
    let (status, said) = admin(platform, "GET", path, Value::Null).await;
    assert_eq!(status, 200, "{path}: {said}");
    said
}

/// The values of a member in a list of objects.
fn each(list: &Value, member: &str) -> BTreeSet<String> {
    let items = list.as_array().unwrap_or_else(|| panic!("no list: {list}"));
    items.iter().filter_map(|item| Some(item[member].as_str()?.to_owned())).collect()
}

async fn is_gone(store: &Recording, key: &str) {
    until(&format!("{key} is done and gone"), async || {
        sas::core::Store::get(store, key).await.expect("memory").is_none()
    })
    .await;
}

async fn answer(platform: &Platform, host: &str, path: &str) -> u16 {
    let request = http::Request::get(format!("http://{host}{path}")).header("host", host).body(Body::empty());
    platform.entrance().handle(request.expect("a request")).await.status().as_u16()
}

async fn alone(what: &str, records: &Records) {
    let store = Recording::of(records.clone()).await;
    let clock = FakeClock::starting_at(START);
    clock.jump_forward(Duration::from_secs(4 * 3600));
    let packages = tempfile::tempdir().expect("a directory");
    let started = async || {
        let builder = builder(Arc::clone(&store), &clock).packages(PackageDir::new(packages.path()));
        Box::pin(builder.build()).await.expect("a platform")
    };
    let platform = started().await;
    assert_eq!(get(&platform, "/v1/recovery").await["missing"], json!([]), "{what}");
    let count = |of: &str| records.keys().filter(|key| key.starts_with(of)).count();
    let audit = get(&platform, "/v1/audit?limit=1000").await;
    assert_eq!(audit["records"].as_array().map(Vec::len), Some(count("audit/")), "{what}");
    let brokers = get(&platform, "/v1/brokers").await["brokers"].clone();
    let triggers = each(&get(&platform, "/v1/triggers").await["triggers"], "name");
    let usage = get(&platform, "/v1/usage/hours?limit=1000").await;
    let expired: Vec<(String, String)> = answers(records);
    for (key, value) in records {
        let kind = kind(key).unwrap_or_else(|| panic!("{what}: {key} is of no kind that is known"));
        let rest = &key[kind.len()..];
        let value: Value = serde_json::from_slice(value).unwrap_or_default();
        match kind {
            "app/" => {
                let shown = get(&platform, &format!("/v1/apps/{rest}")).await;
                assert_eq!(
                    shown["environments"].as_array().map(Vec::len),
                    value["versions"].as_array().map(Vec::len),
                    "{shown}"
                );
            }
            "async/answer/" => {
                let (host, _) = expired.iter().find(|(_, id)| id == rest).expect("it has a host");
                assert_eq!(
                    answer(&platform, host, &format!("/.well-known/sas/async/{rest}")).await,
                    200,
                    "{key}"
                );
            }
            "async/call/" | "purge/" => is_gone(&store, key).await,
            "brokers/" | "broker/" => {
                let name = rest.split("/cursor/").next().expect("a name");
                assert!(each(&brokers, "name").contains(name), "{what}: {key}: {brokers}");
            }
            "events/last/" => {
                let broker = brokers
                    .as_array()
                    .expect("brokers")
                    .iter()
                    .find(|one| one["name"] == rest.replace('.', "/"));
                assert_eq!(broker.expect("there")["accepted"], value, "{key}");
            }
            "events/records/" => {
                assert!(brokers.as_array().expect("brokers").iter().any(|one| one["held"] != 0), "{key}")
            }
            "deadletter/" => {
                let (trigger, letter) = rest.rsplit_once('/').expect("a letter");
                let letters = get(&platform, &format!("/v1/triggers/{trigger}/deadletters")).await;
                assert!(each(&letters["deadLetters"], "letter").contains(letter), "{what}: {key}: {letters}");
            }
            "domain/" => {
                let domains = get(&platform, "/v1/domains").await;
                assert!(domains.to_string().contains(&format!("\"{rest}\"")), "{what}: {key}: {domains}");
            }
            "engine/" => {
                let engines = get(&platform, "/v1/engines").await;
                assert!(each(&engines["engines"], "name").contains(rest), "{what}: {key}: {engines}");
            }
            "platform/id" => {
                let now = sas::core::Store::get(&*store, key).await.expect("memory").expect("there");
                assert_eq!(now.value.to_vec(), records[key], "{what}: the platform keeps its id");
            }
            "quota/" => {
                assert_eq!(get(&platform, &format!("/v1/quotas/{rest}")).await["quota"], value, "{key}")
            }
            "service/" => {
                let shown = get(&platform, &format!("/v1/services/{rest}")).await;
                assert_eq!(shown["generation"], value["generation"], "{what}: {key}");
                let revisions = get(&platform, &format!("/v1/services/{rest}/revisions")).await;
                let stored = each(&value["revisions"], "name");
                assert_eq!(each(&revisions["revisions"], "name"), stored, "{what}: {key}");
            }
            "tenant/" => drop(get(&platform, &format!("/v1/tenants/{rest}")).await),
            "token/" => {
                let tokens = get(&platform, "/v1/tokens").await;
                assert!(each(&tokens["tokens"], "id").contains(rest), "{what}: {key}: {tokens}");
            }
            "trigger/" => {
                let name = rest.rsplit_once('/').expect("what it remembers").0;
                assert!(triggers.contains(name), "{what}: {key}: {triggers:?}");
            }
            "triggers/" => assert!(triggers.contains(rest), "{what}: {key}: {triggers:?}"),
            "usage/gap/" => assert_ne!(usage["gaps"], json!([]), "{what}: {key}: {usage}"),
            "usage/hour/" if !rest.contains('~') => {
                let revision = rest.rsplit('/').next().expect("a revision");
                assert!(usage["hours"].to_string().contains(revision), "{what}: {key}: {usage}");
            }
            "usage/total/" if !rest.contains('~') => {
                let shown = get(&platform, "/v1/usage").await;
                let namespace = rest.split('/').next().expect("a namespace");
                assert!(each(&shown["tenants"], "namespace").contains(namespace), "{what}: {key}: {shown}");
            }
            "workflow/definition/" => {
                let (name, version) = rest.rsplit_once('/').expect("a version");
                get(&platform, &format!("/v1/workflows/{name}?version={version}")).await;
            }
            "workflow/ended/" => {
                let shown = get(&platform, &format!("/v1/runs/{rest}")).await;
                assert_eq!(shown["output"], value["output"], "{what}: {key}");
            }
            "workflow/run/" | "workflow/listens/" => drop(get(&platform, &format!("/v1/runs/{rest}")).await),
            "workflow/record/" => {
                let run = rest.rsplit_once('/').expect("a number").0;
                let shown = get(&platform, &format!("/v1/runs/{run}")).await;
                assert_ne!(shown["steps"], json!([]), "{what}: {key}");
            }
            // Read when the books are opened and written, below; what only hosts have that share a state, further below.
            "async/expiry/" | "audit/" | "workflow/retired/" | "workflow/told/" => {}
            kind if kind.starts_with("usage/") => {}
            kind if kind.starts_with("cluster/")
                || kind == "tenants/numbers"
                || kind == "async/calls-of/" => {}
            other => panic!("{other} has nothing here that reads it"),
        }
    }
    // A run that waited goes on from its records.
    for key in records.keys().filter_map(|key| key.strip_prefix("workflow/listens/")) {
        let event = json!({"specversion": "1.0", "id": "1", "source": "/post", "type": "sent", "data": {"number": 7}});
        let (status, said) = admin(&platform, "POST", &format!("/v1/runs/{key}/events"), event).await;
        assert!((200..300).contains(&status), "{what}: {key}: {status} {said}");
        until("the run ends", async || {
            get(&platform, &format!("/v1/runs/{key}")).await["status"] == "completed"
        })
        .await;
    }
    // Answers are forgotten at the time that stands in the store.
    clock.jump_forward(Duration::from_secs(48 * 3600));
    platform.shutdown(Duration::from_secs(10)).await;
    let platform = started().await;
    for key in records.keys().filter(|key| key.starts_with("async/expiry/")) {
        is_gone(&store, key).await;
    }
    platform.shutdown(Duration::from_secs(10)).await;
}

/// The hosts that answers are of, and their ids.
fn answers(records: &Records) -> Vec<(String, String)> {
    let of = |(key, value): (&String, &Vec<u8>)| {
        let id = key.strip_prefix("async/answer/")?;
        let head: Value = serde_json::from_slice(value.split(|byte| *byte == b'\n').next()?).ok()?;
        Some((head["host"].as_str()?.to_owned(), id.to_owned()))
    };
    records.iter().filter_map(of).collect()
}

async fn among_hosts(what: &str, records: &Records) {
    let store = Recording::of(records.clone()).await;
    let platform = host(&store, "a").await;
    let cluster = platform.cluster().expect("a host");
    until("it acts for the namespace", async || matches!(cluster.place("shop"), sas::core::Place::Here(_)))
        .await;
    assert_eq!(get(&platform, "/v1/recovery").await["missing"], json!([]), "{what}");
    until("a service of the file answers", async || {
        answer(&platform, "cart.shop.localhost", "/").await == 200
    })
    .await;
    for key in
        records.keys().filter(|key| key.starts_with("async/calls-of/a/") || key.starts_with("workflow/told/"))
    {
        is_gone(&store, key).await;
    }
    platform.shutdown(Duration::from_secs(5)).await;
}
