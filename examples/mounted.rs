//! A whole platform in an axum application: the host's own pages, the admin API and the services at one port, behind the
//! host's own middleware.
//!
//! The platform listens nowhere. What the host knows of a connection, the address of its peer, it hands over with each
//! request; services find it in `Forwarded` and `X-Forwarded-For`.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::ConnectInfo,
    middleware::{self, Next},
    routing::get,
};
use sas::{
    prelude::*,
    router::{ClientConnection, HandlerService},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

type ExampleResult<T> = Result<T, Box<dyn std::error::Error>>;

/// The host's middleware: notes who is there for the platform, and how long the answer took for the client.
async fn notes(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    let began = tokio::time::Instant::now();
    request.extensions_mut().insert(Arc::new(ClientConnection::new(Some(peer), false)));
    let mut response = next.run(request).await;
    let took = format!("total;dur={:.1}", began.elapsed().as_secs_f64() * 1000.0);
    if let Ok(took) = took.parse() {
        response.headers_mut().insert("server-timing", took);
    }
    response
}

#[tokio::main]
async fn main() -> ExampleResult<()> {
    let functions = InlineRuntime::new().with("whoami", |request: Request, _cx| async move {
        let address = request.headers().get("x-forwarded-for").and_then(|value| value.to_str().ok());
        Response::new(Body::from(format!("you are {}\n", address.unwrap_or("unknown"))))
    });
    let token = "dG9rZW4tb2YtdGhlLWhvc3Qtb25seQ";
    let platform = Platform::builder().runtime(functions).admin_token(token).build().await?;
    let spec = RevisionSpec::new("inline", Source::Function("whoami".to_owned()));
    platform.deploy("default", "whoami", spec).await?;

    let app = Router::new()
        .route("/own", get(async || "a page of the host's own\n"))
        .nest_service("/admin", HandlerService::new(platform.admin().clone()))
        .fallback_service(HandlerService::new(platform.gateway().clone()))
        .layer(middleware::from_fn(notes));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(async move {
        axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
            .with_graceful_shutdown(async {
                let _ = stopped.await;
            })
            .await
    });

    let host = "whoami.default.localhost";
    for (host, path, authorization, expected) in [
        ("localhost", "/own", "", "a page of the host's own"),
        (host, "/", "", "you are 127.0.0.1"),
        ("localhost", "/admin/v1/services", "", "401"),
        ("localhost", "/admin/v1/services", token, "whoami"),
    ] {
        let answer = ask(address, host, path, authorization).await?;
        let timed = answer.contains("server-timing: total;dur=");
        println!("{host}{path}: {}", answer.lines().last().unwrap_or_default());
        if !timed || !answer.contains(expected) {
            return Err(format!("{host}{path}: {expected:?} is not in, or not timed: {answer}").into());
        }
    }

    // First the server, so that nothing new comes in; then the platform, which drains what there is.
    let _ = stop.send(());
    serving.await??;
    let report = platform.shutdown(Duration::from_secs(5)).await;
    println!("drained: {}", report.drained);
    Ok(())
}

/// One request over a connection of its own; the whole answer as text.
async fn ask(to: SocketAddr, host: &str, path: &str, token: &str) -> ExampleResult<String> {
    let mut stream = TcpStream::connect(to).await?;
    let authorization =
        if token.is_empty() { String::new() } else { format!("authorization: Bearer {token}\r\n") };
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{authorization}connection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
