//! What tenants may use, through a whole platform: builder, admin API, gateway, pool and triggers; and that one does not notice
//! another.

use std::{sync::Arc, time::Duration};

use sas::prelude::*;
use serde_json::{Value, json};
use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use crate::{TOKEN, admin};

/// A function that answers, and one that waits until it is told to go on.
fn functions(go_on: &Arc<Notify>) -> InlineRuntime {
    let waits = Arc::clone(go_on);
    InlineRuntime::new().with("good", |_: Request, _cx| async { Response::new(Body::from("good")) }).with(
        "waits",
        move |_: Request, _cx| {
            let waits = Arc::clone(&waits);
            async move {
                waits.notified().await;
                Response::new(Body::from("done"))
            }
        },
    )
}

fn manifest(namespace: &str, name: &str, function: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}, annotations: \
         {{sas.dev/function: {function}}}}}\nspec: {{template: {{spec: {{}}}}}}\n"
    )
}

async fn ask(
    platform: &Platform,
    host: &str,
    request: http::request::Builder,
    body: &str,
) -> (u16, Option<u64>, Value) {
    let request = request.header("host", host).body(Body::from(body.to_owned())).expect("a request");
    let response = platform.entrance().handle(request).await;
    let retry = response
        .headers()
        .get("retry-after")
        .map(|after| after.to_str().expect("digits").parse().expect("digits"));
    let status = response.status().as_u16();
    let body = response.into_body().collect(4096).await.expect("a body");
    (status, retry, serde_json::from_slice(&body).unwrap_or_default())
}

async fn get(platform: &Platform, namespace: &str, name: &str) -> (u16, Option<u64>, Value) {
    ask(platform, &format!("{name}.{namespace}.localhost"), http::Request::get("/"), "").await
}

/// Used, limit and refusals of a field.
async fn usage(platform: &Platform, namespace: &str, field: &str) -> [f64; 3] {
    let (status, tenant) = admin(platform, "GET", &format!("/v1/tenants/{namespace}"), "").await;
    assert_eq!(status, 200, "{tenant}");
    let usage = tenant["usage"].as_array().expect("a list");
    let one = usage.iter().find(|one| one["field"] == field).unwrap_or_else(|| panic!("{field}: {tenant}"));
    ["used", "limit", "refused"].map(|name| one[name].as_f64().expect("a number"))
}

async fn until(what: &str, mut is: impl AsyncFnMut() -> bool) {
    let by = Instant::now() + Duration::from_secs(20);
    while !is().await {
        assert!(Instant::now() < by, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_tenants_instances_are_its_quota_however_it_was_set_and_another_has_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let go_on = Arc::new(Notify::new());
    let build = || {
        Platform::builder()
            .admin_token(TOKEN)
            .state_dir(dir.path())
            .runtime(functions(&go_on))
            .default_tenant_quota(TenantQuota::default().with_instances(2))
            .build()
    };
    let platform = Arc::new(build().await.expect("a platform"));
    for (namespace, name, function) in [
        ("loud", "one", "waits"),
        ("loud", "two", "good"),
        ("loud", "three", "good"),
        ("quiet", "one", "good"),
    ] {
        platform.apply(&manifest(namespace, name, function), None).await.expect("deployed");
    }
    // Two of its own instances: one works, one is idle and goes for the third service.
    let busy = tokio::spawn({
        let platform = Arc::clone(&platform);
        async move { get(&platform, "loud", "one").await.0 }
    });
    until("it works", async || usage(&platform, "loud", "instances").await[0] >= 1.0).await;
    assert_eq!(get(&platform, "loud", "two").await.0, 200);
    assert_eq!(get(&platform, "loud", "three").await.0, 200, "what was idle made room");
    assert_eq!(usage(&platform, "loud", "instances").await[..2], [2.0, 2.0]);

    // Set lower while it runs: at once, and nothing is stopped for it.
    let (status, said) = admin(&platform, "PUT", "/v1/quotas/loud", r#"{"instances": 1}"#).await;
    assert_eq!((status, &said["quota"]), (200, &json!({"instances": 1})));
    let (status, retry, problem) = get(&platform, "loud", "two").await;
    assert_eq!(
        (status, &problem["reason"], &problem["component"]),
        (429, &json!("tenant_instances"), &json!("pool"))
    );
    assert!(retry.is_some_and(|seconds| seconds >= 1), "{retry:?}");
    let message = problem["message"].as_str().expect("a message");
    assert!(message.contains("2 of 1 instances"), "it names limit and use: {message}");
    assert!(usage(&platform, "loud", "instances").await[2] >= 1.0, "and it is counted");
    let diagnosis = admin(&platform, "GET", "/v1/diagnosis", "").await.1;
    let findings = diagnosis["findings"].as_array().expect("a list");
    let pressure = findings
        .iter()
        .find(|finding| finding["name"] == "quota_pressure" || finding["check"] == "quota_pressure");
    assert!(pressure.is_some_and(|finding| finding["subject"] == "tenant loud"), "{diagnosis}");
    assert_eq!(get(&platform, "quiet", "one").await.0, 200, "another tenant is not held to it");

    // Raised, without a restart; and what was set is there after one.
    assert_eq!(
        admin(&platform, "PUT", "/v1/quotas/loud", r#"{"instances": 3, "coldStartsPerSecond": 100}"#).await.0,
        200
    );
    assert_eq!(get(&platform, "loud", "two").await.0, 200);
    go_on.notify_one();
    assert_eq!(busy.await.expect("no panic"), 200);
    Arc::into_inner(platform).expect("nobody else has it").shutdown(Duration::from_secs(5)).await;
    let platform = build().await.expect("it comes back");
    assert_eq!(usage(&platform, "loud", "instances").await[1], 3.0);
    assert_eq!(usage(&platform, "loud", "coldStartsPerSecond").await[1], 100.0);
    assert_eq!(usage(&platform, "quiet", "instances").await[1], 2.0, "what all have");
    for (body, status) in
        [(r#"{"instances": -1}"#, 422), (r#"{"coldStartsPerSecond": -1}"#, 422), (r#"{"burst": 3}"#, 422)]
    {
        let (given, problem) = admin(&platform, "PUT", "/v1/quotas/loud", body).await;
        assert_eq!(given, status, "{problem}");
    }
    platform.shutdown(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_tenants_events_are_refused_beyond_its_rate_and_anothers_are_taken() {
    let go_on = Arc::new(Notify::new());
    let platform = Platform::builder()
        .admin_token(TOKEN)
        .runtime(functions(&go_on))
        .tenant_quota("loud", TenantQuota::default().with_events_per_second(2.0))
        .build()
        .await
        .expect("a platform");
    for namespace in ["loud", "quiet"] {
        let broker = format!(
            "apiVersion: eventing.knative.dev/v1\nkind: Broker\nmetadata: {{name: orders, namespace: {namespace}, annotations: \
             {{sas.dev/ingress: open}}}}\n"
        );
        platform.apply(&broker, None).await.expect("declared");
    }
    let send = async |namespace: &str| {
        let request = http::Request::post(format!("/{namespace}/orders"))
            .header("ce-specversion", "1.0")
            .header("ce-id", "1")
            .header("ce-source", "/shop")
            .header("ce-type", "order");
        ask(&platform, "events.localhost", request, "{}").await
    };
    let mut refused = None;
    for _ in 0..20 {
        let answer = send("loud").await;
        if answer.0 != 202 {
            refused = Some(answer);
        }
        assert_eq!(send("quiet").await.0, 202, "another tenant's");
    }
    let (status, retry, problem) = refused.expect("twenty at once are too many");
    assert_eq!((status, &problem["reason"]), (429, &json!("tenant_events")), "{problem}");
    assert!(retry.is_some_and(|seconds| seconds >= 1));
    assert!(problem["message"].as_str().is_some_and(|text| text.contains("eventsPerSecond")), "{problem}");
    assert!(usage(&platform, "loud", "eventsPerSecond").await[2] >= 10.0);
    platform.shutdown(Duration::from_secs(5)).await;
}

/// Requests of the quiet tenant, half of them cold; the sorted times.
async fn quiet(platform: &Platform) -> Vec<Duration> {
    let mut times = Vec::new();
    for n in 0..200 {
        let name = if n % 2 == 0 { "one" } else { "two" };
        let began = Instant::now();
        let asked = timeout(Duration::from_secs(20), get(platform, "quiet", name)).await;
        assert_eq!(asked.expect("an answer").0, 200);
        times.push(began.elapsed());
        if n % 10 == 0 {
            let key =
                platform.control().revision_key("quiet", name, &format!("{name}-00001")).expect("registered");
            platform.pool().drain(key, Duration::ZERO).await;
        }
    }
    times.sort_unstable();
    times
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_floods_what_it_may_not_have_leaves_the_other_its_times() {
    let go_on = Arc::new(Notify::new());
    let platform = Platform::builder()
        .admin_token(TOKEN)
        .runtime(functions(&go_on))
        .configure_pool(|pool| pool.budget.instances = 100)
        .build()
        .await
        .expect("a platform");
    for (namespace, name, function) in
        [("quiet", "one", "good"), ("quiet", "two", "good"), ("loud", "hog", "waits")]
    {
        platform.apply(&manifest(namespace, name, function), None).await.expect("deployed");
    }
    for n in 0..40 {
        platform.apply(&manifest("loud", &format!("s{n}"), "good"), None).await.expect("deployed");
    }
    let alone = quiet(&platform).await;
    let platform = Arc::new(platform);
    for quota in [
        r#"{"rate": 50, "burst": 10}"#,
        r#"{"concurrency": 3}"#,
        r#"{"instances": 3}"#,
        r#"{"coldStartsPerSecond": 5}"#,
        r#"{"queueBytes": 10000}"#,
    ] {
        assert_eq!(admin(&platform, "PUT", "/v1/quotas/loud", quota).await.0, 200);
        let flood: Vec<_> = (0..8)
            .map(|at| {
                let platform = Arc::clone(&platform);
                tokio::spawn(async move {
                    let mut refused = 0_u64;
                    for n in (at..).step_by(8) {
                        let (status, ..) = get(&platform, "loud", &format!("s{}", n % 40)).await;
                        refused += u64::from(status == 429);
                        if status == 200 {
                            let name = format!("s{}", n % 40);
                            if let Some(key) =
                                platform.control().revision_key("loud", &name, &format!("{name}-00001"))
                            {
                                platform.pool().set_desired(key, 0);
                            }
                        }
                        if refused % 64 == 63 {
                            // What a client that is refused would do, and no less.
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                        tokio::task::yield_now().await;
                    }
                })
            })
            .collect();
        let beside = quiet(&platform).await;
        flood.iter().for_each(tokio::task::JoinHandle::abort);
        let p99 = |times: &[Duration]| times[times.len() * 99 / 100 - 1];
        println!(
            "p99 of the quiet tenant: alone {:?}, beside a flood held to {quota} {:?}",
            p99(&alone),
            p99(&beside)
        );
        assert!(p99(&beside) < p99(&alone) * 20 + Duration::from_millis(250), "{quota}: {:?}", p99(&beside));
    }
    go_on.notify_waiters();
    drop(Arc::into_inner(platform));
}
