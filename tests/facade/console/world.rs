//! A whole platform with its console, as an operator's browser asks it.

use std::sync::Arc;

use http::{StatusCode, header};
use sas::{console::Console, prelude::*};
use serde_json::Value;

pub(crate) const TOKEN: &str = "a-token-of-the-tests";

/// A platform with its console.
pub(crate) struct World {
    pub(crate) platform: Platform,
    pub(crate) console: Console,
}

/// A page, or what was answered instead.
pub(crate) struct Page {
    pub(crate) status: StatusCode,
    pub(crate) headers: http::HeaderMap,
    pub(crate) text: String,
}

impl Page {
    /// The mark that the forms of the page carry.
    pub(crate) fn form(&self) -> &str {
        let at = self.text.find(r#"name="form" value=""#).expect("a form") + r#"name="form" value=""#.len();
        self.text[at..].split('"').next().expect("its end")
    }

    pub(crate) fn cookie(&self) -> String {
        let set = self.headers[header::SET_COOKIE].to_str().expect("text");
        set.split(';').next().expect("a cookie").to_owned()
    }
}

impl World {
    pub(crate) async fn new() -> Self {
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

    pub(crate) async fn deploy(&self, namespace: &str, name: &str, function: &str) {
        self.deploy_with(namespace, name, function, "{}").await;
    }

    /// The same with annotations of its revision, in YAML.
    pub(crate) async fn deploy_with(&self, namespace: &str, name: &str, function: &str, annotations: &str) {
        let text = format!(
            "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n  \
             annotations:\n    sas.dev/function: {function}\nspec:\n  template:\n    metadata:\n      annotations: {annotations}\n    \
             spec: {{}}\n"
        );
        self.platform.apply(&text, None).await.expect("deployed");
    }

    pub(crate) async fn call(&self, namespace: &str, name: &str, path: &str) -> StatusCode {
        let request = http::Request::get(path).header("host", format!("{name}.{namespace}.localhost"));
        let response = self.platform.gateway().handle(request.body(Body::empty()).expect("a request")).await;
        let status = response.status();
        response.into_body().collect(1 << 20).await.expect("a body");
        status
    }

    pub(crate) async fn ask(&self, request: http::request::Builder, body: String) -> Page {
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

    pub(crate) async fn page(&self, cookie: &str, path: &str) -> Page {
        let request = http::Request::get(path).header("host", "localhost").header("cookie", cookie);
        self.ask(request, String::new()).await
    }

    pub(crate) async fn send(&self, cookie: &str, path: &str, body: String) -> Page {
        let request = http::Request::post(path).header("host", "localhost").header("cookie", cookie);
        let request = request.header("origin", "http://localhost").header("sec-fetch-site", "same-origin");
        self.ask(request, body).await
    }

    /// Signs in, and gives the cookie.
    pub(crate) async fn sign_in(&self, token: &str) -> String {
        let page = self.send("", "/console/sign-in", format!("token={token}&next=/console/")).await;
        assert_eq!(page.status, StatusCode::SEE_OTHER, "{}", page.text);
        assert!(!page.cookie().contains(token), "the token stays here");
        page.cookie()
    }

    pub(crate) async fn admin(&self, method: &str, path: &str, body: &str) -> Value {
        let request = http::Request::builder().method(method).uri(path).header("host", "localhost");
        let request = request.header("content-type", "application/json");
        let request = request.header("authorization", format!("Bearer {TOKEN}"));
        let request = request.body(Body::from(body.to_owned())).expect("a request");
        let response = self.platform.admin().handle(request).await;
        let body = response.into_body().collect(32 << 20).await.expect("a body");
        serde_json::from_slice(&body).expect("JSON")
    }

    /// A token with these scopes.
    pub(crate) async fn token(&self, name: &str, scopes: &str, namespace: &str) -> String {
        let body = format!(r#"{{"name": "{name}", "scopes": [{scopes}]{namespace}}}"#);
        let made = self.admin("POST", "/v1/tokens", &body).await;
        made["token"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    }
}
