//! The form of the admin API: problem details, pages, conditional writes, and its description.

use std::collections::BTreeSet;

use sas_core::{Body, Handler as _, Response};
use serde_json::{Value, json};

use crate::support::{TOKEN, World};

const SERVICE: &str = "/v1/services/default/hello";

async fn ask(world: &World, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    request = request.header("authorization", format!("Bearer {TOKEN}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    world.admin.handle(request.body(Body::from(body.to_owned())).expect("a request")).await
}

async fn json(response: Response) -> Value {
    let body = response.into_body().collect(64 << 20).await.expect("a body");
    serde_json::from_slice(&body).unwrap_or(Value::Null)
}

fn named(world: &World, name: &str, labels: &str) -> String {
    let manifest = world.manifest("one").replace("name: hello", &format!("name: {name}"));
    manifest.replace("metadata:\n", &format!("metadata:\n  labels: {labels}\n"))
}

#[tokio::test(start_paused = true)]
async fn errors_are_problem_details_and_name_the_request() {
    let world = World::new().await;
    let response = ask(&world, "GET", SERVICE, &[], "").await;
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let id = response.headers()["x-request-id"].to_str().expect("ASCII").to_owned();
    let problem = json(response).await;
    assert_eq!(
        problem,
        json!({
            "type": "urn:sas:problem:not_found",
            "title": "Not Found",
            "status": 404,
            "detail": "service: not_found: there is no service default/hello",
            "instance": format!("urn:sas:request:{id}"),
            "component": "control",
            "reason": "not_found",
            "message": "service: not_found: there is no service default/hello",
            "requestId": id,
        })
    );
    let fine = ask(&world, "GET", "/v1/services", &[], "").await;
    assert_ne!(fine.headers()["x-request-id"], id.as_str(), "every answer has an id of its own");
}

#[tokio::test(start_paused = true)]
async fn lists_come_in_pages_and_by_namespace_and_labels() {
    let world = World::new().await;
    for (name, labels) in [("a", "{app: shop}"), ("b", "{app: bank}"), ("c", "{app: shop, canary: yes}")] {
        let response = ask(&world, "POST", "/v1/services", &[], &named(&world, name, labels)).await;
        assert_eq!(response.status(), 201, "{:?}", json(response).await);
    }
    let names = async |query: &str| {
        let page = json(ask(&world, "GET", &format!("/v1/services{query}"), &[], "").await).await;
        let list = page["services"].as_array().unwrap_or_else(|| panic!("{query}: {page}"));
        let names: Vec<_> = list.iter().map(|s| s["name"].as_str().expect("a name").to_owned()).collect();
        (names.join(","), page["continue"].as_str().map(str::to_owned))
    };
    assert_eq!(names("").await, ("a,b,c".to_owned(), None));
    let (first, next) = names("?limit=2").await;
    let next = next.expect("there is more");
    assert_eq!(first, "a,b");
    assert_eq!(names(&format!("?limit=2&continue={next}")).await, ("c".to_owned(), None));
    assert_eq!(names("?labels=app%3Dshop").await.0, "a,c");
    assert_eq!(names("?labels=app%3Dshop,!canary").await.0, "a");
    assert_eq!(names("?namespace=other").await.0, "");
    // Names that begin alike, on both sides of the namespace's own.
    for namespace in ["def", "default-1", "defaultx"] {
        let manifest = named(&world, "b", "{app: shop}")
            .replace("metadata:", &format!("metadata:\n  namespace: {namespace}"));
        assert_eq!(ask(&world, "POST", "/v1/services", &[], &manifest).await.status(), 201);
    }
    assert_eq!(names("").await.0, "b,b,a,b,c,b", "def, default-1, default, defaultx");
    for (query, all) in [("namespace=default", "a,b,c"), ("labels=app%3Dshop", "b,b,a,c,b")] {
        let (mut seen, mut at) = (Vec::new(), String::new());
        loop {
            let (page, next) = names(&format!("?{query}&limit=1{at}")).await;
            seen.push(page);
            let Some(next) = next else { break };
            at = format!("&continue={next}");
        }
        assert_eq!(seen.join(","), all, "{query}, one by one");
    }
    for (query, field) in [
        ("limit=0", "limit"),
        ("limit=many", "limit"),
        ("continue=x", "continue"),
        ("labels=%3Dx", "labels"),
        ("lables=app", "lables"),
    ] {
        let response = ask(&world, "GET", &format!("/v1/services?{query}"), &[], "").await;
        assert_eq!(response.status(), 422, "{query}");
        let problem = json(response).await;
        assert!(problem.to_string().contains(field), "{query}: {problem}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_is_done_only_if_what_was_seen_is_still_so() {
    let world = World::new().await;
    let manifest = world.manifest("one");
    let create = [("if-none-match", "*")];
    assert_eq!(ask(&world, "POST", "/v1/services", &create, &manifest).await.status(), 201);
    let again = ask(&world, "POST", "/v1/services", &create, &world.manifest("two")).await;
    assert_eq!(again.status(), 412);
    assert_eq!(json(again).await["reason"], "precondition_failed");

    let shown = ask(&world, "GET", SERVICE, &[], "").await;
    let seen = shown.headers()["etag"].to_str().expect("ASCII").to_owned();
    let fresh = ask(&world, "GET", SERVICE, &[("if-none-match", seen.as_str())], "").await;
    assert_eq!((fresh.status().as_u16(), &fresh.headers()["etag"]), (304, &shown.headers()["etag"]));
    let matching = [("if-match", seen.as_str())];
    let changed = ask(&world, "POST", "/v1/services", &matching, &world.manifest("two")).await;
    assert_eq!(changed.status(), 200, "{:?}", json(changed).await);
    let stale = ask(&world, "GET", SERVICE, &[("if-none-match", seen.as_str())], "").await;
    assert_eq!(stale.status(), 200);
    let now = stale.headers()["etag"].to_str().expect("ASCII").to_owned();

    let split = r#"[{"revisionName": "hello-00001", "percent": 100}]"#;
    let (traffic, rollback) = (format!("{SERVICE}/traffic"), format!("{SERVICE}/rollback"));
    for (method, path, body) in [
        ("PUT", traffic.as_str(), split),
        ("POST", rollback.as_str(), ""),
        ("POST", "/v1/services", &world.manifest("three")),
        ("DELETE", SERVICE, ""),
    ] {
        assert_eq!(ask(&world, method, path, &matching, body).await.status(), 412, "{method} {path}");
    }
    assert_eq!(world.split("hello.default.example.org"), [("hello-00002".to_owned(), 100)]);
    let moved = ask(&world, "PUT", &traffic, &[("if-match", now.as_str())], split).await;
    assert_eq!(moved.status(), 200);
    let now = moved.headers()["etag"].to_str().expect("ASCII").to_owned();
    for (name, wrong) in [("if-match", "hello"), ("if-match", "W/\"1\""), ("if-none-match", "\"1\"")] {
        assert_eq!(ask(&world, "DELETE", SERVICE, &[(name, wrong)], "").await.status(), 422, "{wrong}");
    }
    assert_eq!(ask(&world, "DELETE", SERVICE, &[("if-match", now.as_str())], "").await.status(), 200);
    let gone = ask(&world, "POST", "/v1/services", &[("if-match", now.as_str())], &manifest).await;
    assert_eq!(gone.status(), 412, "what is gone is not what was seen");
}

#[tokio::test(start_paused = true)]
async fn two_changes_of_what_was_seen_once_are_one_change() {
    let world = World::new().await;
    world.deploy("one").await.expect("deployed");
    let shown = ask(&world, "GET", SERVICE, &[], "").await;
    let seen = shown.headers()["etag"].to_str().expect("ASCII").to_owned();
    let headers = [("if-match", seen.as_str())];
    let path = format!("{SERVICE}/traffic");
    let body = r#"[{"revisionName": "hello-00001", "percent": 100}]"#;
    let put = || ask(&world, "PUT", &path, &headers, body);
    let (a, b, c) = tokio::join!(put(), put(), put());
    let mut statuses = [a, b, c].map(|response| response.status().as_u16());
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 412, 412]);
}

#[tokio::test(start_paused = true)]
async fn a_platform_may_ask_for_conditions() {
    let mut world = World::new().await;
    let tokens = sas_control::TokenAuthenticator::new(TOKEN).expect("a token");
    let admin = sas_control::Admin::new(world.control.clone(), std::sync::Arc::new(tokens))
        .with_package_roots(sas_control::PackageRoots::any())
        .with_required_conditions();
    world.admin = admin;
    let unconditional = ask(&world, "POST", "/v1/services", &[], &world.manifest("one")).await;
    assert_eq!(unconditional.status(), 428);
    let created =
        ask(&world, "POST", "/v1/services", &[("if-none-match", "*")], &world.manifest("one")).await;
    assert_eq!(created.status(), 201);
}

#[tokio::test(start_paused = true)]
async fn a_token_in_a_url_is_refused_also_beside_one_in_the_header() {
    let world = World::new().await;
    for query in ["token=x", "a=b&access_token=x", "Authorization=x", "%74oken=x"] {
        let response = ask(&world, "GET", &format!("/v1/pool?{query}"), &[], "").await;
        assert_eq!(response.status(), 400, "{query}");
        assert_eq!(json(response).await["reason"], "token_in_url");
    }
}

/// What a document refers to.
fn references(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(members) => {
            for (name, value) in members {
                match value {
                    Value::String(target) if name == "$ref" => {
                        found.insert(target.clone());
                    }
                    value => references(value, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[tokio::test(start_paused = true)]
async fn the_description_is_openapi_3_1_and_whole() {
    let world = World::new().await;
    let document = json(ask(&world, "GET", "/v1/openapi.json", &[], "").await).await;
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.contains("#/components/schemas/Problem"), "{found:?}");
    for reference in &found {
        let pointer = reference.strip_prefix('#').expect("within the document");
        assert!(document.pointer(pointer).is_some(), "{reference} leads nowhere");
    }
    let mut ids = BTreeSet::new();
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for (method, operation) in operations.as_object().expect("operations") {
            let name = format!("{method} {path}");
            assert!(operation["security"].is_array(), "{name}");
            assert!(operation["summary"].is_string() && operation["tags"].is_array(), "{name}");
            assert!(ids.insert(operation["operationId"].to_string()), "{name}: {}", operation["operationId"]);
            let answers = operation["responses"].as_object().expect("answers");
            assert!(answers.keys().any(|status| status.starts_with('2')), "{name}");
            for status in ["400", "403"] {
                assert!(answers.contains_key(status), "{name}: {status}");
            }
        }
    }
    // Each route of the document is there.
    for (path, operations) in document["paths"].as_object().expect("paths") {
        let path =
            path.replace("{namespace}", "none").replace("{name}", "none").replace("{revision}", "none");
        for method in operations.as_object().expect("operations").keys() {
            let response = ask(&world, &method.to_uppercase(), &path, &[], "").await;
            assert_ne!(response.status(), 405, "{method} {path}");
            if response.headers().get("content-type").is_some_and(|kind| kind == "text/event-stream") {
                continue; // It goes on for ever.
            }
            let told = json(response).await.to_string();
            assert!(!told.contains("there is nothing at"), "{method} {path}");
        }
    }
}
