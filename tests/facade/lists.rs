//! Lists of the admin API come in pages, and what stands in them is changed only as it was seen.

use std::collections::BTreeSet;

use sas::{core::Event, prelude::*};
use serde_json::{Value, json};

use super::{TOKEN, admin};

const MANIFESTS: &str = "
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: fails, namespace: shop, labels: {sas.dev/app: shop}, annotations: {sas.dev/function: fails}}
spec: {template: {spec: {containers: [{env: []}]}}}
---
";

fn each(text: &str) -> String {
    ["a", "b", "c"].map(|name| text.replace("NAME", name)).join("---\n")
}

/// Three quotas, mapped hosts, engines beside the default one, triggers, brokers, tokens and dead letters.
async fn platform() -> Platform {
    let functions = InlineRuntime::new().with("fails", |_request: Request, _cx| async {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::BAD_REQUEST;
        response
    });
    let platform =
        Platform::builder().runtime(functions).admin_token(TOKEN).build().await.expect("a platform");
    let domains = "
apiVersion: serving.knative.dev/v1beta1
kind: DomainMapping
metadata: {name: NAME.example.com, namespace: shop}
spec: {ref: {apiVersion: serving.knative.dev/v1, kind: Service, name: fails}}
";
    let events = "
apiVersion: eventing.knative.dev/v1
kind: Broker
metadata: {name: NAME, namespace: shop}
---
apiVersion: sas.dev/v1
kind: Trigger
metadata: {name: of-NAME, namespace: shop}
spec:
  source: {kind: broker, options: {broker: NAME, start: earliest}}
  target: {service: fails}
  delivery: {retry: 0}
";
    platform
        .apply(&(MANIFESTS.to_owned() + &each(domains) + "---\n" + &each(events)), None)
        .await
        .expect("applied");
    for name in ["a", "b", "c"] {
        let engine = json!({"kind": "dedicated", "namespaces": [format!("of-{name}")]}).to_string();
        assert_eq!(admin(&platform, "PUT", &format!("/v1/engines/{name}"), &engine).await.0, 200);
        let quota = r#"{"concurrency": 5}"#;
        assert_eq!(admin(&platform, "PUT", &format!("/v1/quotas/{name}"), quota).await.0, 200);
        // Two of one name, each in a namespace of its own.
        let called = if name == "c" { "b" } else { name };
        let token =
            json!({"name": called, "scopes": ["read"], "namespace": format!("of-{name}")}).to_string();
        assert_eq!(admin(&platform, "POST", "/v1/tokens", &token).await.0, 201);
        let event = Event::new(name, "/test", "order").expect("an event");
        platform.control().accept_events("shop", "a", vec![event]).await.expect("accepted");
    }
    platform
}

#[tokio::test]
async fn lists_come_in_pages_that_together_are_the_list() {
    let platform = platform().await;
    let letters = "/v1/triggers/shop/of-a/deadletters";
    for _ in 0..1000 {
        let (_, listed) = admin(&platform, "GET", letters, "").await;
        if listed["deadLetters"].as_array().is_some_and(|letters| letters.len() == 3) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    for (path, list, name, count) in [
        ("/v1/quotas", "quotas", "namespace", 3),
        ("/v1/domains", "domains", "name", 3),
        ("/v1/engines", "engines", "name", 4),
        ("/v1/triggers", "triggers", "name", 3),
        ("/v1/brokers", "brokers", "name", 3),
        ("/v1/tokens", "tokens", "id", 3),
        (letters, "deadLetters", "letter", 3),
    ] {
        let (mut seen, mut next, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let (status, page) = admin(&platform, "GET", &format!("{path}?limit=2{next}"), "").await;
            assert_eq!(status, 200, "{path}: {page}");
            let items = page[list].as_array().unwrap_or_else(|| panic!("{path}: {page}"));
            assert!((1..=2).contains(&items.len()), "{path}: {page}");
            seen.extend(items.iter().map(|item| item[name].as_str().expect("a name").to_owned()));
            pages += 1;
            let Some(more) = page["continue"].as_str() else { break };
            next = format!("&continue={more}");
        }
        let apart: BTreeSet<&String> = seen.iter().collect();
        assert_eq!((seen.len(), apart.len(), pages), (count, count, 2), "{path}: {seen:?}");
        for wrong in ["limit=0", "continue=x", "page=2"] {
            assert_eq!(
                admin(&platform, "GET", &format!("{path}?{wrong}"), "").await.0,
                422,
                "{path}?{wrong}"
            );
        }
    }
    platform.shutdown(std::time::Duration::from_secs(5)).await;
}

/// Asks with a condition: status, tag and what is said.
async fn with(
    platform: &Platform,
    method: &str,
    path: &str,
    (name, value): (&str, &str),
    body: &str,
) -> (u16, String) {
    let mut request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("authorization", format!("Bearer {TOKEN}"));
    if !name.is_empty() {
        request = request.header(name, value);
    }
    let response =
        platform.admin().handle(request.body(Body::from(body.to_owned())).expect("a request")).await;
    let tag = response.headers().get("etag").map_or("", |tag| tag.to_str().expect("text")).to_owned();
    (response.status().as_u16(), tag)
}

#[tokio::test]
async fn what_is_listed_is_changed_and_deleted_only_as_it_was_seen() {
    let platform = platform().await;
    let environment = r#"{"variables": {"A": "1"}}"#;
    let new = ("if-none-match", "*");
    let at = "/v1/apps/shop/shop/environment";
    assert_eq!(with(&platform, "PUT", at, ("if-match", "*"), environment).await.0, 412, "there is none yet");
    assert_eq!(with(&platform, "PUT", at, new, environment).await.0, 200);
    for (shown, method, change, body) in [
        ("/v1/quotas/a", "PUT", "/v1/quotas/a", r#"{"concurrency": 6}"#),
        ("/v1/quotas/a", "DELETE", "/v1/quotas/a", ""),
        ("/v1/apps/shop/shop", "PUT", at, r#"{"variables": {"A": "2"}}"#),
        ("/v1/apps/shop/shop", "POST", "/v1/apps/shop/shop/environment/revert", r#"{"version": 1}"#),
        ("/v1/domains/shop/a.example.com", "DELETE", "/v1/domains/shop/a.example.com", ""),
        ("/v1/engines/a", "PUT", "/v1/engines/a", r#"{"kind": "dedicated", "namespaces": ["of-a", "too"]}"#),
        ("/v1/engines/a", "DELETE", "/v1/engines/a", ""),
        ("/v1/triggers/shop/of-a", "POST", "/v1/triggers/shop/of-a/pause", ""),
        ("/v1/triggers/shop/of-a", "POST", "/v1/triggers/shop/of-a/resume", ""),
        ("/v1/triggers/shop/of-a", "DELETE", "/v1/triggers/shop/of-a", ""),
        ("/v1/brokers/shop/a", "DELETE", "/v1/brokers/shop/a", ""),
    ] {
        let what = format!("{method} {change}");
        let (status, tag) = with(&platform, "GET", shown, ("", ""), "").await;
        assert!(status == 200 && !tag.is_empty(), "{shown}: {status} {tag}");
        assert_eq!(with(&platform, "GET", shown, ("if-none-match", &tag), "").await.0, 304, "{shown}");
        assert_eq!(with(&platform, method, change, new, body).await.0, 412, "{what}: it is there");
        let other = r#""1.0000000000000000""#;
        assert_eq!(
            with(&platform, method, change, ("if-match", other), body).await.0,
            412,
            "{what}: it is another"
        );
        assert_eq!(
            with(&platform, "GET", shown, ("", ""), "").await.1,
            tag,
            "{what}: what is refused changes nothing"
        );
        assert_eq!(with(&platform, method, change, ("if-match", &tag), body).await.0, 200, "{what}");
        let again = with(&platform, method, change, ("if-match", &tag), body).await.0;
        assert!(matches!(again, 404 | 412), "{what}: {again}: it was changed since");
    }
    assert_eq!(
        with(&platform, "GET", "/v1/engines/default", ("", ""), "").await,
        (200, String::new()),
        "the host's own"
    );
    let (status, trigger): (u16, Value) = admin(&platform, "GET", "/v1/triggers/shop/of-b", "").await;
    assert_eq!((status, &trigger["name"]), (200, &json!("shop/of-b")));
    for missing in [
        "/v1/engines/none",
        "/v1/triggers/shop/none",
        "/v1/brokers/shop/none",
        "/v1/domains/shop/none.example.com",
    ] {
        assert_eq!(admin(&platform, "GET", missing, "").await.0, 404, "{missing}");
    }
    platform.shutdown(std::time::Duration::from_secs(5)).await;
}
