//! Pages that go on by themselves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::header;
use http_body_util::BodyExt;
use sas::{bytes::Bytes, console::Console, prelude::*};

use super::world::{TOKEN, World};

/// What a live page sends, until `wanted` is in it.
async fn until(
    body: &mut (impl BodyExt<Data = Bytes, Error = impl std::fmt::Debug> + Unpin),
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

/// Counts what is asked of the admin API, but for who asks.
#[derive(Debug)]
struct Counted {
    admin: Arc<dyn Handler>,
    asked: AtomicUsize,
}

#[async_trait::async_trait]
impl Handler for Counted {
    async fn handle(&self, request: Request) -> Response {
        if request.uri().path() != "/v1/whoami" {
            self.asked.fetch_add(1, Ordering::Relaxed);
        }
        self.admin.handle(request).await
    }
}

#[tokio::test]
async fn tabs_of_equal_rights_share_what_is_made_of_a_page_and_each_has_its_own_mark() {
    let mut world = World::new().await;
    let admin = Arc::clone(world.platform.admin()) as Arc<dyn Handler>;
    let counted = Arc::new(Counted { admin, asked: 0.into() });
    world.console = Console::new(Arc::clone(&counted) as Arc<dyn Handler>);
    let trigger = "apiVersion: sas.dev/v1\nkind: Trigger\nmetadata: {name: hourly, namespace: shop}\nspec:\n  source: {kind: timer, \
                   options: {period: 1h}}\n  target: {service: cart}\n";
    world.deploy("shop", "cart", "good").await;
    world.platform.apply(trigger, None).await.expect("deployed");
    let scopes = r#""read", "deploy""#;
    let (one, two) = (world.token("one", scopes, "").await, world.token("two", scopes, "").await);
    let reader = world.token("reader", r#""read""#, "").await;
    let page = "/console/events/shop/hourly";
    let mut tabs = Vec::new();
    for token in [&one, &two, &reader] {
        let cookie = world.sign_in(token).await;
        let mark = world.page(&cookie, page).await.form().to_owned();
        for _ in 0..8 {
            let live = format!("/console/live?page={page}");
            let request = http::Request::get(live).header("host", "localhost").header("cookie", &cookie);
            let request = request.body(Body::empty()).expect("a request");
            tabs.push((mark.clone(), world.console.handle(request).await.into_body()));
        }
    }
    let before = counted.asked.load(Ordering::Relaxed);
    for (at, (mark, body)) in tabs.iter_mut().enumerate() {
        let text = until(body, "data: letters").await;
        assert_eq!(text.contains(&format!(r#"name="form" value="{mark}""#)), at < 16, "its own mark: {text}");
        assert_eq!(text.contains("/console/do/trigger-pause"), at < 16, "a reader has no button: {text}");
    }
    // A look at this page asks for three things. All tabs are served well within the time until the next look.
    let asked = counted.asked.load(Ordering::Relaxed) - before;
    assert!((6..=12).contains(&asked), "two looks, one of each kind of rights: {asked}");
}
