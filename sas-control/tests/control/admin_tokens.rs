//! Who may do what at the admin API: each route by each scope and tenant, tokens, the audit log, watches and packages
//! that are sent.

use std::fmt::Write as _;

use sas_control::NewToken;
use sas_core::{Body, Handler as _, Principal, Response, Scope};
use serde_json::{Value, json};

use crate::support::{TOKEN, World};

const SERVICE: &str = "/v1/services/default/hello";

async fn ask(world: &World, token: &str, method: &str, path: &str, body: impl Into<Body>) -> Response {
    let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
    let request = request.header("authorization", format!("Bearer {token}"));
    world.admin.handle(request.body(body.into()).expect("a request")).await
}

async fn json(response: Response) -> Value {
    let body = response.into_body().collect(64 << 20).await.expect("a body");
    serde_json::from_slice(&body).unwrap_or(Value::Null)
}

async fn token(world: &World, name: &str, scopes: &[Scope], namespace: Option<&str>) -> String {
    let mut new = NewToken::new(name, scopes.iter().copied());
    new.namespace = namespace.map(str::to_owned);
    world.control.tokens().create(&Principal::host(), new).await.expect("a token").token
}

/// A column of the table: its heading, and whom its token is for; without a scope nobody.
struct Column {
    heading: String,
    scope: Option<Scope>,
    namespace: Option<&'static str>,
    token: String,
}

impl Column {
    fn all() -> Vec<Self> {
        let column = |heading, scope, namespace| Self { heading, scope, namespace, token: String::new() };
        let mut columns = vec![column("none".to_owned(), None, None)];
        for (whose, namespace) in [("", None), ("own ", Some("default")), ("other ", Some("bank"))] {
            let of = Scope::ALL.map(|scope| column(format!("{whose}{scope}"), Some(scope), namespace));
            columns.extend(of);
        }
        columns
    }

    /// A token that is known now: a new one where a route before took the last, as one that deletes a tenant does.
    async fn token(&mut self, world: &World, turn: usize) -> Option<&str> {
        let scope = self.scope?;
        if ask(world, &self.token, "GET", "/v1/whoami", "").await.status() == 401 {
            self.token = token(world, &format!("{scope}-{turn}"), &[scope], self.namespace).await;
        }
        Some(&self.token)
    }
}

/// `docs/admin-scopes.md`, made of the answers of every route. Written with `SAS_WRITE_DOCS=1`.
#[tokio::test(start_paused = true)]
async fn every_route_by_scope_and_tenant_is_allowed_or_403_as_the_table_says() {
    let world = World::new().await;
    let document: Value = serde_json::from_str(&sas_control::Admin::openapi()).expect("JSON");
    let mut table = String::from(
        "# Who may use which route\n\nMade by a test of every route (`sas-control/tests/control/admin_tokens.rs`): `+` allowed, `403` or \
         `401` not. First tokens that are held to no namespace, then such as are held to the namespace of the path, then to \
         another; lists show them their own. `deploy` includes `read`, `admin` all.\n\n| Route |",
    );
    let mut columns = Column::all();
    table.extend(columns.iter().map(|column| format!(" {} |", column.heading)));
    table.push_str("\n|---|");
    table.push_str(&"---|".repeat(columns.len()));
    table.push('\n');
    let mut turn = 0;
    for (path, operations) in document["paths"].as_object().expect("paths") {
        for method in operations.as_object().expect("operations").keys() {
            let method = method.to_uppercase();
            write!(table, "| `{method} {path}` |").expect("written");
            let path = path.replace("{namespace}", "default").replace("{name}", "none");
            let path = path.replace("{revision}", "none").replace("{id}", "0123456789abcdef");
            for column in &mut columns {
                turn += 1;
                let heading = column.heading.clone();
                let token = column.token(&world, turn).await.map(str::to_owned);
                let response = match &token {
                    Some(token) => ask(&world, token, &method, &path, "").await,
                    None => {
                        let request = http::Request::builder().method(&*method).uri(&path);
                        let request = request.header("host", "localhost").body(Body::empty());
                        world.admin.handle(request.expect("a request")).await
                    }
                };
                let status = response.status().as_u16();
                assert!(status < 500, "{method} {path} with {heading}: {status}");
                assert!(
                    token.is_none() || status != 401,
                    "{method} {path} with {heading}: the token is not known"
                );
                match status {
                    401 | 403 => write!(table, " {status} |").expect("written"),
                    _ => table.push_str(" + |"),
                }
            }
            table.push('\n');
        }
    }
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/admin-scopes.md");
    if std::env::var_os("SAS_WRITE_DOCS").is_some() {
        std::fs::write(&file, &table).expect("written");
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(
        written == table,
        "{} differs: look whether it should, and write it with SAS_WRITE_DOCS=1",
        file.display()
    );
}

#[tokio::test(start_paused = true)]
async fn tokens_are_made_shown_once_and_taken_back_at_the_api() {
    let world = World::new().await;
    let body =
        json!({"name": "ci", "scopes": ["deploy", "invoke"], "namespace": "default", "expiresInSeconds": 60});
    let made = ask(&world, TOKEN, "POST", "/v1/tokens", body.to_string()).await;
    assert_eq!(made.status(), 201);
    let made = json(made).await;
    let (secret, id) = (made["token"].as_str().expect("a token"), made["id"].as_str().expect("an id"));
    let who = json(ask(&world, secret, "GET", "/v1/whoami", "").await).await;
    assert_eq!(who, json!({"name": "ci", "scopes": ["read", "deploy", "invoke"], "namespace": "default"}));
    let listed = json(ask(&world, TOKEN, "GET", "/v1/tokens", "").await).await;
    assert_eq!(listed["tokens"][0]["name"], "ci");
    assert!(!listed.to_string().contains(secret), "shown once");

    let foreign = world.manifest("one").replace("  name: hello", "  name: hello\n  namespace: bank");
    let answer = ask(&world, secret, "POST", "/v1/services", foreign).await;
    assert_eq!(answer.status(), 403);
    let path = ask(&world, secret, "POST", "/v1/services", world.manifest("one")).await;
    assert_eq!(path.status(), 422, "a path of the host is the operator's");
    assert!(world.control.records().is_empty());

    for (body, field) in [
        ("", "name"),
        (r#"{"name": "x", "scopes": []}"#, "scopes"),
        (r#"{"name": "x", "scopes": ["root"]}"#, "$"),
        (r#"{"name": "x", "scopes": ["read"], "expiresInSeconds": 0}"#, "expiresInSeconds"),
        (r#"{"name": "x", "scopes": ["read"], "secret": "y"}"#, "$"),
    ] {
        let answer = ask(&world, TOKEN, "POST", "/v1/tokens", body).await;
        assert_eq!(answer.status(), 422, "{body}");
        assert_eq!(json(answer).await["fields"][0]["field"], field, "{body}");
    }
    assert_eq!(ask(&world, TOKEN, "DELETE", &format!("/v1/tokens/{id}"), "").await.status(), 200);
    assert_eq!(ask(&world, secret, "GET", "/v1/whoami", "").await.status(), 401);

    let boss = token(&world, "boss", &[Scope::Admin], Some("shop")).await;
    let own = ask(&world, &boss, "POST", "/v1/tokens", r#"{"name": "a", "scopes": ["admin"]}"#).await;
    assert_eq!(json(own).await["namespace"], "shop", "a tenant's token makes tokens of the tenant");
    let body = r#"{"name": "b", "scopes": ["read"], "namespace": "bank"}"#;
    assert_eq!(ask(&world, &boss, "POST", "/v1/tokens", body).await.status(), 403);
}

#[tokio::test(start_paused = true)]
async fn lists_show_those_who_are_held_to_a_namespace_their_own() {
    let world = World::new().await;
    for namespace in ["bank", "shop"] {
        let manifest = world
            .manifest("one")
            .replace("  name: hello", &format!("  name: hello\n  namespace: {namespace}"));
        assert_eq!(ask(&world, TOKEN, "POST", "/v1/services", manifest).await.status(), 201);
        let path = format!("/v1/quotas/{namespace}");
        let quota = ask(&world, TOKEN, "PUT", &path, r#"{"rate": 5}"#).await;
        assert!(matches!(quota.status().as_u16(), 200 | 422), "{:?}", json(quota).await);
    }
    let shop = token(&world, "reader", &[Scope::Read], Some("shop")).await;
    for path in ["/v1/services", "/v1/usage", "/v1/quotas", "/v1/triggers"] {
        let seen = json(ask(&world, &shop, "GET", path, "").await).await.to_string();
        assert!(!seen.contains("bank"), "{path}: {seen}");
    }
    let listed = json(ask(&world, &shop, "GET", "/v1/services?namespace=bank", "").await).await;
    assert_eq!(listed["services"], json!([]));
    let shown = json(ask(&world, &shop, "GET", "/v1/services", "").await).await;
    assert_eq!(shown["services"].as_array().map(Vec::len), Some(1));
}

#[tokio::test(start_paused = true)]
async fn every_change_is_in_the_audit_log_done_or_refused() {
    let world = World::new().await;
    let reader = token(&world, "reader", &[Scope::Read], None).await;
    let created = ask(&world, TOKEN, "POST", "/v1/services", world.manifest("one")).await;
    let id = created.headers()["x-request-id"].to_str().expect("ASCII").to_owned();
    world.clock.jump_forward(std::time::Duration::from_secs(1));
    assert_eq!(ask(&world, &reader, "DELETE", SERVICE, "").await.status(), 403);
    world.clock.jump_forward(std::time::Duration::from_secs(1));
    assert_eq!(ask(&world, TOKEN, "GET", SERVICE, "").await.status(), 200);
    assert_eq!(ask(&world, TOKEN, "DELETE", SERVICE, "").await.status(), 200);
    let log = json(ask(&world, TOKEN, "GET", "/v1/audit", "").await).await;
    let told: Vec<_> = log["records"]
        .as_array()
        .expect("records")
        .iter()
        .map(|record| {
            format!("{} {} {} {}", record["principal"], record["method"], record["status"], record["reason"])
        })
        .collect();
    assert_eq!(
        told,
        [
            r#""admin" "DELETE" 200 null"#,
            r#""reader" "DELETE" 403 "forbidden""#,
            r#""admin" "POST" 201 null"#
        ]
    );
    let first = &log["records"][2];
    assert_eq!((&first["requestId"], &first["namespace"]), (&json!(id), &json!("default")));
    assert_eq!(first["objects"], json!(["Service default/hello"]));
    assert_eq!(first["at"], "2026-01-05T00:00:00.000Z");
    let page = json(ask(&world, TOKEN, "GET", "/v1/audit?limit=2", "").await).await;
    let next = page["continue"].as_str().expect("there is more");
    let rest = json(ask(&world, TOKEN, "GET", &format!("/v1/audit?limit=2&continue={next}"), "").await).await;
    assert_eq!(rest["records"], json!([first]));
    assert_eq!(world.control.audit(10).await.expect("the store is there").len(), 3);
}

#[tokio::test(start_paused = true)]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let mut world = World::new().await;
    let tokens = sas_control::TokenAuthenticator::new(TOKEN).expect("a token");
    world.admin =
        sas_control::Admin::new(world.control.clone(), std::sync::Arc::new(tokens)).with_rate_limit(1.0, 3);
    let other = token(&world, "other", &[Scope::Read], None).await;
    let statuses = async |token: &str| {
        let mut statuses = Vec::new();
        for _ in 0..4 {
            statuses.push(ask(&world, token, "GET", "/v1/services", "").await.status().as_u16());
        }
        statuses
    };
    assert_eq!(statuses(TOKEN).await, [200, 200, 200, 429]);
    let refused = ask(&world, TOKEN, "GET", "/v1/services", "").await;
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(statuses(&other).await, [200, 200, 200, 429], "each for itself");
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    assert_eq!(ask(&world, TOKEN, "GET", "/v1/services", "").await.status(), 200);
}

/// The next event that is no comment.
async fn event(body: &mut Body) -> String {
    use http_body::Body as _;
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await;
        let data = frame.expect("the stream goes on").expect("a frame").into_data().expect("data");
        let text = String::from_utf8(data.to_vec()).expect("UTF-8");
        if !text.starts_with(':') {
            return text;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_changes_goes_on_where_it_was_and_keeps_to_its_namespace() {
    let world = World::new().await;
    let response = ask(&world, TOKEN, "GET", "/v1/watch", "").await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let mut events = response.into_body();
    let begin = event(&mut events).await;
    assert!(begin.contains("event: begin") && begin.contains("\"version\":"), "{begin}");
    world.deploy("one").await.expect("deployed");
    let changed = event(&mut events).await;
    assert!(changed.contains("event: changed") && changed.contains(r#""name":"hello""#), "{changed}");
    assert!(changed.contains(r#""deleted":false,"service":{"#), "{changed}");
    let id = changed.lines().find_map(|line| line.strip_prefix("id: ")).expect("an id").to_owned();
    drop(events);

    assert_eq!(ask(&world, TOKEN, "DELETE", SERVICE, "").await.status(), 200);
    let resume = |token: &str, id: &str| {
        let request = http::Request::get("/v1/watch").header("host", "localhost").header("last-event-id", id);
        world.admin.handle(
            request
                .header("authorization", format!("Bearer {token}"))
                .body(Body::empty())
                .expect("a request"),
        )
    };
    let mut events = resume(TOKEN, &id).await.into_body();
    loop {
        let next = event(&mut events).await;
        assert!(next.contains("event: changed"), "nothing is told twice from the beginning: {next}");
        if next.contains(r#""deleted":true"#) {
            break;
        }
    }
    assert_eq!(resume(TOKEN, "soon").await.status(), 422);
    let mut ahead = resume(TOKEN, "999999999").await.into_body();
    let again = event(&mut ahead).await;
    assert!(again.contains("event: list-again"), "of another history: {again}");

    let bank = token(&world, "bank", &[Scope::Read], Some("bank")).await;
    let mut held = ask(&world, &bank, "GET", "/v1/watch", "").await.into_body();
    event(&mut held).await;
    world.deploy("two").await.expect("deployed");
    let other = world.manifest("one").replace("  name: hello", "  name: own\n  namespace: bank");
    assert_eq!(ask(&world, TOKEN, "POST", "/v1/services", other).await.status(), 201);
    let seen = event(&mut held).await;
    assert!(seen.contains(r#""namespace":"bank","name":"own""#), "{seen}");
    assert_eq!(ask(&world, &bank, "GET", "/v1/watch?namespace=default", "").await.status(), 403);
}

#[tokio::test(start_paused = true)]
async fn only_so_many_watch_and_a_watch_ends_with_the_platform() {
    let world = World::new().await;
    let mut watches = Vec::new();
    for _ in 0..64 {
        let response = ask(&world, TOKEN, "GET", "/v1/watch", "").await;
        assert_eq!(response.status(), 200);
        watches.push(response.into_body());
    }
    let refused = ask(&world, TOKEN, "GET", "/v1/watch", "").await;
    assert_eq!(refused.status(), 503);
    assert!(refused.headers().contains_key("retry-after"));
    watches.pop();
    assert_eq!(ask(&world, TOKEN, "GET", "/v1/watch", "").await.status(), 200);
    let last = watches.pop().expect("one of them");
    world.control.shutdown(tokio::time::Instant::now() + std::time::Duration::from_secs(1)).await;
    last.collect(1 << 20).await.expect("it ends");
}

#[tokio::test(start_paused = true)]
async fn a_package_is_sent_and_deployed_by_its_digest_in_its_namespace() {
    let world = World::new().await;
    let shop = token(&world, "shop", &[Scope::Deploy], Some("shop")).await;
    let bank = token(&world, "bank", &[Scope::Deploy], Some("bank")).await;
    let sent = ask(&world, &shop, "POST", "/v1/packages?name=app.sh", "#!/bin/sh\n").await;
    assert_eq!(sent.status(), 201);
    let sent = json(sent).await;
    let digest = sent["digest"].as_str().expect("a digest").to_owned();
    assert_eq!(sent["size"], 10);
    let again = json(ask(&world, &shop, "POST", "/v1/packages?name=app.sh", "#!/bin/sh\n").await).await;
    assert_eq!(again["digest"], digest.as_str());
    let manifest = |namespace: &str, package: &str| {
        format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: hello\n  namespace: {namespace}\n  \
             annotations: {{sas.dev/package: \"{package}\"}}\nspec: {{template: {{spec: {{}}}}}}\n"
        )
    };
    let foreign = ask(&world, &bank, "POST", "/v1/services", manifest("bank", &digest)).await;
    assert_eq!(foreign.status(), 422);
    assert!(json(foreign).await["detail"].as_str().expect("a text").contains("POST /v1/packages"));
    let deployed = ask(&world, &shop, "POST", "/v1/services", manifest("shop", &digest)).await;
    assert_eq!(deployed.status(), 201, "{:?}", json(deployed).await);
    let record = world.control.record("shop", "hello").expect("it is there");
    assert_eq!(record.revisions[0].package.as_deref(), Some(digest.as_str()));
    let unknown = format!("sha256:{}", "0".repeat(64));
    assert_eq!(ask(&world, TOKEN, "POST", "/v1/services", manifest("shop", &unknown)).await.status(), 422);

    for name in ["", "..%2Fx", ".hidden", "a%00b", "a%2Fb"] {
        let answer = ask(&world, &shop, "POST", &format!("/v1/packages?name={name}"), "x").await;
        assert_eq!(answer.status(), 422, "{name}");
    }
    assert_eq!(ask(&world, &shop, "POST", "/v1/packages?name=a.sh", "").await.status(), 422);
    assert_eq!(ask(&world, &shop, "POST", "/v1/packages", "x").await.status(), 422);
}
