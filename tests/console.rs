//! The console before the admin API of a whole platform: who sees what, what a click does, and what foreign text can't do.

use std::{sync::Arc, time::Duration};

use http::{StatusCode, header};
use sas::{console::Console, prelude::*};
use serde_json::Value;

const TOKEN: &str = "a-token-of-the-tests";

struct World {
    platform: Platform,
    console: Console,
}

/// A page, or what was answered instead.
struct Page {
    status: StatusCode,
    headers: http::HeaderMap,
    text: String,
}

impl Page {
    /// The mark that the forms of the page carry.
    fn form(&self) -> &str {
        let at = self.text.find(r#"name="form" value=""#).expect("a form") + r#"name="form" value=""#.len();
        self.text[at..].split('"').next().expect("its end")
    }

    fn cookie(&self) -> String {
        let set = self.headers[header::SET_COOKIE].to_str().expect("text");
        set.split(';').next().expect("a cookie").to_owned()
    }
}

impl World {
    async fn new() -> Self {
        let functions = InlineRuntime::new()
            .with("good", |_: Request, _cx| async { Response::new(Body::from("good")) })
            .with("bad", |_: Request, _cx| async {
                let mut response = Response::new(Body::from("bad"));
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                response
            });
        let builder = Platform::builder().runtime(functions).admin_token(TOKEN).console();
        let platform = builder.build().await.expect("a platform");
        let console = Console::new(Arc::clone(platform.admin()) as Arc<dyn Handler>);
        Self { platform, console }
    }

    async fn deploy(&self, namespace: &str, name: &str, function: &str) {
        let text = format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
             annotations:\n    sas.dev/function: {function}\nspec:\n  template:\n    spec: {{}}\n"
        );
        self.platform.apply(&text, None).await.expect("deployed");
    }

    async fn call(&self, namespace: &str, name: &str, path: &str) -> StatusCode {
        let request = http::Request::get(path).header("host", format!("{name}.{namespace}.localhost"));
        let response = self.platform.gateway().handle(request.body(Body::empty()).expect("a request")).await;
        let status = response.status();
        response.into_body().collect(1 << 20).await.expect("a body");
        status
    }

    async fn ask(&self, request: http::request::Builder, body: String) -> Page {
        let request = request.body(Body::from(body)).expect("a request");
        let response = self.console.handle(request).await;
        let (head, body) = response.into_parts();
        let body = body.collect(32 << 20).await.expect("a body");
        Page {
            status: head.status,
            headers: head.headers,
            text: String::from_utf8(body.to_vec()).expect("text"),
        }
    }

    async fn page(&self, cookie: &str, path: &str) -> Page {
        let request = http::Request::get(path).header("host", "localhost").header("cookie", cookie);
        self.ask(request, String::new()).await
    }

    async fn send(&self, cookie: &str, path: &str, body: String) -> Page {
        let request = http::Request::post(path).header("host", "localhost").header("cookie", cookie);
        let request = request.header("origin", "http://localhost").header("sec-fetch-site", "same-origin");
        self.ask(request, body).await
    }

    /// Signs in, and gives the cookie.
    async fn sign_in(&self, token: &str) -> String {
        let page = self.send("", "/console/sign-in", format!("token={token}&next=/console/")).await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{}", page.text);
        assert!(!page.cookie().contains(token), "the token stays here");
        page.cookie()
    }

    async fn admin(&self, method: &str, path: &str, body: &str) -> Value {
        let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.header("content-type", "application/json");
        let request = request.header("authorization", format!("Bearer {TOKEN}"));
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = self.platform.admin().handle(request).await;
        let body = response.into_body().collect(32 << 20).await.expect("a body");
        serde_json::from_slice(&body).expect("JSON")
    }

    /// A token with these scopes.
    async fn token(&self, name: &str, scopes: &str, namespace: &str) -> String {
        let body = format!(r#"{{"name": "{name}", "scopes": [{scopes}]{namespace}}}"#);
        let made = self.admin("POST", "/v1/tokens", &body).await;
        made["token"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    }
}

#[tokio::test]
async fn nobody_sees_a_page_without_a_token() {
    let world = World::new().await;
    for path in ["/console/", "/console/services/a/b", "/console/pool", "/console/live?page=/console/"] {
        let page = world.page("", path).await;
        assert_eq!(page.status, StatusCode::UNAUTHORIZED, "{path}");
        assert!(page.text.contains("Sign in") && !page.text.contains("Services"), "{path}");
        let policy = page.headers[header::CONTENT_SECURITY_POLICY].to_str().expect("text");
        assert!(policy.contains("default-src 'none'") && !policy.contains("unsafe"), "{policy}");
        assert_eq!(page.headers[header::CACHE_CONTROL], "no-store");
    }
    let wrong = world.send("", "/console/sign-in", "token=guessed".to_owned()).await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert!(wrong.text.contains("opens nothing") && !wrong.text.contains("guessed"));
    let foreign = http::Request::get("/console/").header("host", "evil.example");
    assert_eq!(world.ask(foreign, String::new()).await.status, StatusCode::FORBIDDEN);
    let through = world.page("", "/healthz").await;
    assert_eq!((through.status, through.text.as_str()), (StatusCode::OK, r#"{"status":"ok"}"#));
}

#[tokio::test]
async fn an_operator_sees_what_runs_and_why_without_waking_it() {
    let world = World::new().await;
    world.deploy("shop", "cart", "good").await;
    world.deploy("shop", "till", "bad").await;
    let cookie = world.sign_in(TOKEN).await;
    let before = world.page(&cookie, "/console/services/shop/cart").await;
    assert!(
        before.text.contains("not started") && before.text.contains("Looking here does not"),
        "{}",
        before.text
    );
    assert!(world.platform.pool().totals().instances == 0, "looking wakes nothing");

    assert_eq!(world.call("shop", "cart", "/a/&lt;'quoted'").await, StatusCode::OK);
    assert_eq!(world.call("shop", "till", "/").await, StatusCode::INTERNAL_SERVER_ERROR);
    world.platform.requests().expect("kept").sample(&**world.platform.pool());
    // The driver numbers what the pool decided by itself at its next tick.
    let began = tokio::time::Instant::now();
    let page = loop {
        let page = world.page(&cookie, "/console/services/shop/cart").await;
        if page.text.contains("no instance was there, so the pool started what they need") {
            break page;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "{}", page.text);
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(page.text.contains("As a table"), "each chart has one");
    let requests = world.page(&cookie, "/console/services/shop/cart/requests").await;
    assert!(requests.text.contains("/a/&amp;lt;'quoted'"), "foreign text is text: {}", requests.text);
    // Functions start at once, within the request: nothing was waited for. The look in a browser sees phases of processes.
    assert!(requests.text.contains("No request waited for a start"), "{}", requests.text);
    let link = requests.text.split("href=\"/console/requests/").nth(1).expect("a request");
    let id = link.split('"').next().expect("its id");
    let request = world.page(&cookie, &format!("/console/requests/{id}")).await;
    assert!(request.text.contains("the last byte was sent"), "{}", request.text);

    // A rate is that of whole seconds.
    let began = tokio::time::Instant::now();
    loop {
        let overview = world.page(&cookie, "/console/").await;
        let (till, cart) = (overview.text.find("/shop/till"), overview.text.find("/shop/cart"));
        if till.expect("listed") < cart.expect("listed") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(8), "trouble first: {}", overview.text);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_click_does_what_the_token_may_and_is_in_the_audit_log() {
    let world = World::new().await;
    world.deploy("shop", "cart", "good").await;
    let cookie = world.sign_in(TOKEN).await;
    let page = world.page(&cookie, "/console/services/shop/cart/steer").await;
    let form = page.form();
    let body = format!(
        "form={form}&namespace=shop&service=cart&reason=a+sale&back=/console/services/shop/cart/steer"
    );
    let done = world.send(&cookie, "/console/do/disable", body.clone()).await;
    assert_eq!(
        (done.status, &done.headers[header::LOCATION]),
        (StatusCode::SEE_OTHER, &"/console/services/shop/cart/steer".parse().unwrap())
    );
    let after = world.page(&cookie, "/console/services/shop/cart/steer").await;
    assert!(after.text.contains("shop/cart is switched off") && after.text.contains("Switch on again"));
    assert!(!world.page(&cookie, "/console/").await.text.contains("is switched off."), "said once");
    let audit = world.admin("GET", "/v1/audit", "").await;
    let last = &audit["records"][0];
    assert_eq!(
        (last["path"].as_str(), last["principal"].as_str()),
        (Some("/v1/services/shop/cart/disable"), Some("admin"))
    );
    assert!(world.page(&cookie, "/console/audit").await.text.contains("/v1/services/shop/cart/disable"));

    let unconfirmed = format!("form={form}&namespace=shop&service=cart&confirm=cat");
    world.send(&cookie, "/console/do/delete", unconfirmed).await;
    assert!(world.page(&cookie, "/console/").await.text.contains("nothing was deleted"));
    world
        .send(&cookie, "/console/do/delete", format!("form={form}&namespace=shop&service=cart&confirm=cart"))
        .await;
    assert!(world.platform.control().record("shop", "cart").is_err());
    let deploy = "form=FORM&manifest=apiVersion%3A+serving.knative.dev%2Fv1%0Akind%3A+Service%0Ametadata%3A%0A++name%3A+UPPER%0Aspec%3A+%7B%7D";
    world.send(&cookie, "/console/do/deploy", deploy.replace("FORM", form)).await;
    assert!(
        world.page(&cookie, "/console/deploy").await.text.contains("metadata.name"),
        "mistakes are told with their fields"
    );
}

#[tokio::test]
async fn forms_of_other_sites_and_sessions_are_not_taken() {
    let world = World::new().await;
    world.deploy("shop", "cart", "good").await;
    let cookie = world.sign_in(TOKEN).await;
    let form = world.page(&cookie, "/console/").await.form().to_owned();
    let other = world.sign_in(TOKEN).await;
    let body = format!("form={form}&namespace=shop&service=cart&confirm=cart");
    let send = |headers: &[(&str, &str)], body: &str| {
        let mut request = http::Request::post("/console/do/delete").header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        world.ask(request, body.to_owned())
    };
    for headers in [
        [("cookie", cookie.as_str()), ("origin", "https://evil.example")],
        [("cookie", cookie.as_str()), ("origin", "null")],
        [("cookie", cookie.as_str()), ("sec-fetch-site", "cross-site")],
        [("cookie", cookie.as_str()), ("sec-fetch-site", "same-site")],
        [("cookie", other.as_str()), ("origin", "http://localhost")],
    ] {
        assert_eq!(send(&headers, &body).await.status, StatusCode::FORBIDDEN, "{headers:?}");
    }
    assert_eq!(
        send(&[("cookie", &cookie)], "namespace=shop&service=cart&confirm=cart").await.status,
        StatusCode::FORBIDDEN
    );
    assert!(world.platform.control().record("shop", "cart").is_ok(), "nothing was done");
    let elsewhere =
        world.send("", "/console/sign-in", format!("token={TOKEN}&next=https://evil.example/")).await;
    assert_eq!(elsewhere.headers[header::LOCATION], "/console/");

    world.send(&cookie, "/console/sign-out", format!("form={form}")).await;
    assert_eq!(world.page(&cookie, "/console/").await.status, StatusCode::UNAUTHORIZED);
    assert_eq!(world.page(&other, "/console/").await.status, StatusCode::OK);
}

#[tokio::test]
async fn who_may_only_look_sees_no_button_and_tenants_see_their_own() {
    let world = World::new().await;
    world.deploy("shop", "cart", "good").await;
    world.deploy("bank", "vault", "good").await;
    world.call("bank", "vault", "/").await;
    let reader = world.token("reader", r#""read""#, r#", "namespace": "shop""#).await;
    let cookie = world.sign_in(&reader).await;
    for path in [
        "/console/",
        "/console/services/shop/cart",
        "/console/services/shop/cart/steer",
        "/console/events",
        "/console/deploy",
    ] {
        let page = world.page(&cookie, path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        assert!(!page.text.contains("/console/do/") && !page.text.contains("vault"), "{path}: {}", page.text);
    }
    for path in [
        "/console/services/bank/vault",
        "/console/services/bank/vault/logs",
        "/console/pool",
        "/console/platform",
        "/console/audit",
    ] {
        assert_eq!(world.page(&cookie, path).await.status, StatusCode::FORBIDDEN, "{path}");
    }
    let log = world.platform.requests().expect("kept");
    let id = log.recent("bank", "vault", 1)[0].id;
    assert_eq!(world.page(&cookie, &format!("/console/requests/{id}")).await.status, StatusCode::NOT_FOUND);
    let form = world.page(&cookie, "/console/").await.form().to_owned();
    world.send(&cookie, "/console/do/disable", format!("form={form}&namespace=shop&service=cart")).await;
    assert!(world.page(&cookie, "/console/").await.text.contains("needs the scope deploy"));
    assert!(world.platform.control().record("shop", "cart").expect("there").disabled.is_none());

    let tokens = world.admin("GET", "/v1/tokens", "").await;
    let id = tokens["tokens"][0]["id"].as_str().expect("an id");
    world.admin("DELETE", &format!("/v1/tokens/{id}"), "").await;
    assert_eq!(
        world.page(&cookie, "/console/").await.status,
        StatusCode::UNAUTHORIZED,
        "a revoked token ends it"
    );
}

/// What a live page sends, until `wanted` is in it.
async fn until(
    body: &mut (impl http_body_util::BodyExt<Data = bytes_of::Bytes, Error = impl std::fmt::Debug> + Unpin),
    wanted: &str,
) -> String {
    let mut text = String::new();
    let read = async {
        while !text.contains(wanted) {
            let frame = body.frame().await.expect("it goes on").expect("a frame");
            text.push_str(&String::from_utf8_lossy(&frame.into_data().unwrap_or_default()));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), read).await.unwrap_or_else(|_| panic!("no {wanted:?}"));
    text
}

mod bytes_of {
    pub(crate) use sas::bytes::Bytes;
}

#[tokio::test]
async fn a_live_page_sends_what_has_changed_and_ends_with_its_session() {
    let world = World::new().await;
    let cookie = world.sign_in(TOKEN).await;
    let request = http::Request::get("/console/live?page=%2Fconsole%2F")
        .header("host", "localhost")
        .header("cookie", &cookie);
    let response = world.console.handle(request.body(Body::empty()).expect("a request")).await;
    assert_eq!(response.headers()[header::CONTENT_TYPE], "text/event-stream");
    let mut body = response.into_body();
    let first = until(&mut body, "There is no service yet").await;
    assert!(first.contains("event: part\ndata: totals\n"));
    world.deploy("shop", "cart", "good").await;
    let next = until(&mut body, "/console/services/shop/cart").await;
    assert!(!next.contains("data: filters\n") || next.contains("shop"), "what has not changed is not sent");
    let form = world.page(&cookie, "/console/").await.form().to_owned();
    world.send(&cookie, "/console/sign-out", format!("form={form}")).await;
    until(&mut body, "event: over").await;
}

#[tokio::test]
async fn who_looks_holds_up_no_shutdown() {
    let functions =
        InlineRuntime::new().with("good", |_: Request, _cx| async { Response::new(Body::from("good")) });
    let builder = Platform::builder().runtime(functions).admin_token(TOKEN).console();
    let platform =
        builder.admin("127.0.0.1:0".parse().expect("an address")).build().await.expect("a platform");
    let address = platform.admin_addr().expect("it listens");
    // The cookie of the platform's own console, which alone is at the listener.
    let ask = async |head: String| {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(address).await.expect("a connection");
        stream.write_all(head.as_bytes()).await.expect("sent");
        let mut text = String::new();
        while !text.contains("set-cookie: ") && !text.contains("event: part") {
            let mut bytes = [0; 4096];
            let read = stream.read(&mut bytes).await.expect("read");
            assert!(read > 0, "{text}");
            text.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        (stream, text)
    };
    let body = format!("token={TOKEN}");
    let sign_in = format!(
        "POST /console/sign-in HTTP/1.1\r\nhost: {address}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let (_, answer) = ask(sign_in).await;
    let cookie = answer.split("set-cookie: ").nth(1).expect("a cookie").split(';').next().expect("its value");
    let look = format!(
        "GET /console/live?page=%2Fconsole%2F HTTP/1.1\r\nhost: {address}\r\ncookie: {cookie}\r\n\r\n"
    );
    let (open, _) = ask(look).await;
    let began = tokio::time::Instant::now();
    platform.shutdown(Duration::from_secs(10)).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    drop(open);
}

#[tokio::test]
async fn moving_the_traffic_keeps_tags_and_what_follows_the_latest() {
    let world = World::new().await;
    world.deploy("shop", "cart", "good").await;
    world.deploy("shop", "cart", "bad").await;
    let targets = r#"{"traffic": [{"latestRevision": true, "percent": 100, "tag": "live"},
        {"revisionName": "cart-00001", "percent": 0, "tag": "old"}]}"#;
    world.platform.admin().change(|settings| settings.require_conditions = true);
    let cookie = world.sign_in(TOKEN).await;
    let send = async |action: &str, rest: &str| {
        let steer = world.page(&cookie, "/console/services/shop/cart/steer").await;
        let seen = steer.text.split(r#"name="seen" value=""#).nth(1).expect("what was seen");
        let seen = seen.split("\"").next().expect("its end").replace("&quot;", "%22");
        let form = steer.form();
        let body = format!("form={form}&namespace=shop&service=cart&seen={seen}&{rest}");
        world.send(&cookie, &format!("/console/do/{action}"), body).await;
        world.page(&cookie, "/console/").await
    };
    world.platform.admin().change(|settings| settings.require_conditions = false);
    let set = world.admin("PUT", "/v1/services/shop/cart/traffic", targets).await;
    assert_eq!(set["spec"][0]["tag"], "live", "{set}");
    world.platform.admin().change(|settings| settings.require_conditions = true);
    let moved = send("traffic", "percent.cart-00002=70&percent.cart-00001=30").await;
    assert!(moved.text.contains("The traffic of shop/cart moves"), "{}", moved.text);
    let now = world.admin("GET", "/v1/services/shop/cart/traffic", "").await;
    let spec = &now["spec"];
    assert_eq!((&spec[0]["tag"], &spec[0]["percent"]), (&"live".into(), &70.into()), "{now}");
    assert!(spec[0]["revisionName"].is_null(), "it follows the latest: {now}");
    assert_eq!((&spec[1]["tag"], &spec[1]["percent"]), (&"old".into(), &30.into()), "{now}");
    // What was seen is no longer so.
    let stale = "percent.cart-00002=0&percent.cart-00001=100&seen=%221.0000000000000000%22";
    let form = world.page(&cookie, "/console/").await.form().to_owned();
    let body = format!("form={form}&namespace=shop&service=cart&{stale}");
    world.send(&cookie, "/console/do/traffic", body).await;
    assert!(world.page(&cookie, "/console/").await.text.contains("was changed since it was read"));
    let off = send("disable", "reason=a+sale").await;
    assert!(off.text.contains("shop/cart is switched off"), "{}", off.text);
    let gone = send("delete", "confirm=cart").await;
    assert!(gone.text.contains("shop/cart is deleted"), "{}", gone.text);
}

#[tokio::test]
async fn no_service_is_at_a_host_of_the_consoles_cookies() {
    let world = World::new().await;
    world.platform.admin().change(|settings| settings.hosts.push("Admin.example.org:8443".into()));
    let mapped = |host: &str| {
        format!(
            "apiVersion: serving.knative.dev/v1beta1\nkind: DomainMapping\nmetadata:\n  name: {host}\n  \
             namespace: shop\nspec:\n  ref:\n    kind: Service\n    name: cart\n    apiVersion: serving.knative.dev/v1\n"
        )
    };
    let refused =
        world.platform.apply(&mapped("admin.example.org"), None).await.expect_err("it is the admin's");
    assert!(refused.to_string().contains("admin API"), "{refused}");
    world.platform.apply(&mapped("shop.example.org"), None).await.expect("another is not");
}

/// Ten thousand services, with the time of the server for a page. The bound is that of an optimised build: run it by
/// `cargo test --release --test console -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "ten thousand deploys take a minute"]
async fn ten_thousand_services_are_a_page_within_a_tenth_of_a_second() {
    let world = World::new().await;
    for at in 0..10_000 {
        world.deploy(&format!("tenant-{}", at % 100), &format!("service-{at}"), "good").await;
    }
    let cookie = world.sign_in(TOKEN).await;
    world.page(&cookie, "/console/").await;
    for path in ["/console/", "/console/?search=service-99&sort=name&page=2", "/console/pool"] {
        let began = tokio::time::Instant::now();
        let page = world.page(&cookie, path).await;
        let took = began.elapsed();
        println!("{path}: {took:?}, {} bytes", page.text.len());
        assert!(took < Duration::from_millis(100), "{path}: {took:?}");
    }
}
