//! Workflows and their runs in the console.

use std::time::Duration;

use http::{StatusCode, header};

use super::world::{TOKEN, World};

const ORDER: &str = "
apiVersion: sas.dev/v1
kind: Workflow
metadata: {name: order, namespace: shop}
spec:
  document: {dsl: '1.0.3', version: '1.0.0'}
  do:
    - pay: {call: till, with: {amount: 7}}
    - parcel: {listen: {to: {one: {with: {type: sent}}}}}
    - done: {set: {parcel: '${ .[0].number }'}}
";

#[tokio::test]
async fn a_run_is_seen_with_its_path_and_steered_by_whom_the_token_lets() {
    let world = World::new().await;
    world.deploy("shop", "till", "bad").await;
    let cookie = world.sign_in(TOKEN).await;
    assert!(world.page(&cookie, "/console/workflows").await.text.contains("There is no workflow yet"));
    world.platform.apply(ORDER, None).await.expect("deployed");
    let of = world.page(&cookie, "/console/workflows/shop/order").await;
    assert!(of.text.contains("/console/pictures/workflows/shop/order?version=1.0.0"), "{}", of.text);
    let form = of.form().to_owned();
    let act = async |action: &str, rest: &str| {
        let body = format!("form={form}&namespace=shop&run=o-1&{rest}");
        let done = world.send(&cookie, &format!("/console/do/run-{action}"), body).await;
        assert_eq!(done.status, StatusCode::SEE_OTHER, "{}", done.text);
        world.page(&cookie, "/console/audit").await.text
    };
    let until = async |status: &str| {
        let began = tokio::time::Instant::now();
        loop {
            let run = world.admin("GET", "/v1/runs/shop/o-1", "").await;
            if run["status"] == status {
                return world.page(&cookie, "/console/runs/shop/o-1").await.text;
            }
            assert!(began.elapsed() < Duration::from_secs(10), "{status}: {run:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let started = act("start", "workflow=order&id=o-1&input=%7B%22who%22%3A%22%3Cb%3E%22%7D").await;
    assert!(started.contains("shop/o-1 runs"), "{started}");
    let faulted = until("faulted").await;
    for part in ["It faulted. ", "/do/0/pay", "/console/do/run-retry", "Skip a step", "&lt;b&gt;"] {
        assert!(faulted.contains(part), "{part}: {faulted}");
    }
    let picture = world.page(&cookie, "/console/pictures/runs/shop/o-1?records=2").await;
    assert_eq!(picture.headers[header::CONTENT_TYPE], "image/svg+xml");
    assert_eq!(picture.headers[header::CONTENT_SECURITY_POLICY], "default-src 'none'; sandbox");
    assert!(picture.text.starts_with("<svg") && picture.text.contains("faulted"), "{}", picture.text);

    // What somebody else gave in its place counts, and what is no JSON is told.
    assert!(act("skip", "step=/do/0/pay&output=by+hand").await.contains("is no JSON"));
    let skipped = act("skip", "step=/do/0/pay&output=%7B%22by%22%3A%22hand%22%7D").await;
    assert!(skipped.contains("goes on as if /do/0/pay had given that"), "{skipped}");
    let running = until("running").await;
    assert!(running.contains("waits for") && running.contains("an event"), "{running}");
    assert!(act("suspend", "").await.contains("shop/o-1 is suspended"));
    assert!(until("suspended").await.contains("/console/do/run-resume"));
    assert!(act("resume", "").await.contains("shop/o-1 goes on"));
    assert!(act("event", "type=sent&data=%7B%22number%22%3A7%7D").await.contains("has the event"));
    assert!(until("completed").await.contains("&quot;parcel&quot;: 7"));
    let found = world.page(&cookie, "/console/workflows?namespace=shop&status=completed").await;
    assert!(found.text.contains("/console/runs/shop/o-1"), "{}", found.text);
    let none = world.page(&cookie, "/console/workflows?namespace=shop&status=faulted").await;
    assert!(none.text.contains("No run is so"), "{}", none.text);

    let reader = world.token("reader", r#""read""#, r#", "namespace": "bank""#).await;
    let other = world.sign_in(&reader).await;
    for path in
        ["/console/runs/shop/o-1", "/console/pictures/runs/shop/o-1", "/console/workflows?namespace=shop"]
    {
        assert_eq!(world.page(&other, path).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    assert!(!world.page(&other, "/console/workflows").await.text.contains("order"));
}
