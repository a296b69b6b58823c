//! The console before the admin API of a whole platform: who sees what, what a click does, and what foreign text can't do.

mod live;
#[cfg(target_os = "linux")]
mod load;
#[cfg(feature = "workflow")]
mod workflows;
mod world;

use std::time::Duration;

use http::{StatusCode, header};
use world::{TOKEN, World};

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
    let refused =
        world.send(&cookie, "/console/do/disable", format!("form={form}&namespace=shop&service=cart")).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(refused.text.contains("needs the scope deploy"), "{}", refused.text);
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

#[tokio::test]
async fn the_pool_tells_who_is_warm_and_what_keeps_it() {
    let world = World::new().await;
    world.deploy("shop", "cart", "good").await;
    let cookie = world.sign_in(TOKEN).await;
    assert!(world.page(&cookie, "/console/pool").await.text.contains("Nobody: all services sleep"));
    assert_eq!(world.call("shop", "cart", "/").await, StatusCode::OK);
    let began = tokio::time::Instant::now();
    loop {
        let page = world.page(&cookie, "/console/pool").await;
        assert_eq!(world.admin("GET", "/v1/pool", "").await["warm"][0]["keptBy"], "decision");
        if page.text.contains("its scaler, at least until nothing was asked of it for 1 min") {
            assert!(page.text.contains("cart-00001"), "{}", page.text);
            break;
        }
        assert!(page.text.contains("the pool, until its scaler decides"), "{}", page.text);
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "the scaler decides at its next tick: {}",
            page.text
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
