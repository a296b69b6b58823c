//! Mounts a gateway in an axum application: the host's own pages beside the services of the platform.
//!
//! `cargo run -p sas-router --features tower --example axum_mount`
#![allow(clippy::print_stdout, reason = "an example shows what happens")]

use std::{net::Ipv4Addr, sync::Arc};

use async_trait::async_trait;
use axum::{Router, routing::get};
use sas_core::{
    Answer, Artifact, ArtifactInfo, Body, Call, CallError, Capabilities, Cx, Deployed, HostPattern, Instance,
    InstanceId, InstanceTarget, Isolation, Pool as _, Request, Response, Result, RevisionName, RevisionSpec,
    RouteAction, RouteChange, RouteRule, Router as _, Runtime, Source, Split, StartRequest, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig};
use sas_router::{Gateway, GatewayConfig, HandlerService, RouteTable};

/// A runtime whose instances greet.
#[derive(Debug)]
struct Greeting;

#[derive(Debug)]
struct Greeter(InstanceId);

#[async_trait]
impl Call for Greeter {
    async fn call(&self, request: Request, _: &Cx) -> Result<Answer, CallError> {
        let text = format!("{} greets you at {}\n", self.0, request.uri().path());
        Ok(Answer::Http(Response::new(Body::from(text))))
    }
}

#[async_trait]
impl Instance for Greeter {
    fn id(&self) -> InstanceId {
        self.0
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }
    async fn stop(&self, _: std::time::Duration) -> Result<()> {
        Ok(())
    }
}

#[async_trait]
impl Runtime for Greeting {
    fn name(&self) -> &'static str {
        "greeting"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }
    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Ok(Artifact::new((), ArtifactInfo::default()))
    }
    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        Ok(Arc::new(Greeter(request.id)))
    }
    async fn quiesce(&self) {}
}

#[tokio::main]
async fn main() -> std::result::Result<(), sas_core::BoxError> {
    let pool = InstancePool::new(PoolConfig::default());
    let runtime = Arc::new(Greeting);
    let spec = Arc::new(RevisionSpec::new("greeting", Source::Function("greet".into())));
    let artifact = runtime.prepare(&spec).await?;
    let name = RevisionName::new("default", "hello", "hello-00001");
    let revision = pool.register(Arc::new(Deployed::new(runtime, artifact, spec, name, TenantKey(1))))?;
    let table = Arc::new(RouteTable::new(1));
    let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(revision, 100)]));
    table.apply(vec![RouteChange::Set { host: HostPattern::Any, rules: vec![rule] }])?;
    let gateway = Gateway::new(table, pool.clone(), GatewayConfig::default());

    // What axum has no route for goes to the services; `/own` stays axum's.
    let app = Router::new()
        .route("/own", get(async || "axum's own page\n"))
        .fallback_service(HandlerService::new(gateway.clone()));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });

    for path in ["/own", "/anything/else"] {
        println!("GET {path}: {}", ask(address, path).await?.trim_end());
    }
    serving.abort();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(5);
    gateway.shutdown(deadline).await;
    pool.shutdown(deadline).await;
    Ok(())
}

async fn ask(address: std::net::SocketAddr, path: &str) -> std::result::Result<String, sas_core::BoxError> {
    let io = hyper_util::rt::TokioIo::new(tokio::net::TcpStream::connect(address).await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    let request = http::Request::get(path).header("host", "localhost").body(Body::empty())?;
    let response = sender.send_request(request).await?;
    let body = Body::new(response.into_body()).collect(64 * 1024).await?;
    Ok(String::from_utf8(body.to_vec())?)
}
