//! Many apps that are asked for at one instant, in real time.

use std::{sync::Arc, time::Duration};

use sas_core::{
    Body, Deployed, Error, ErrorKind, Handler as _, HostPattern, Pool, Request, Result, RevisionName,
    RevisionSpec, RouteAction, RouteChange, RouteRule, Router as _, Runtime, Source, Split, TenantKey,
};
use sas_pool::{InstancePool, PoolConfig};
use sas_router::{Gateway, GatewayConfig, RouteTable};
use tokio::{sync::Barrier, task::JoinSet, time::Instant};

use crate::timed::Timed;

/// Asks for `apps` sleeping apps at one instant, each of which takes `start` to start and then answers at once, and
/// tells how long each answer took. In real time, on one thread, through the production gateway, router and pool.
///
/// # Errors
/// When a request is not answered with 200, or the pool or the router refuse an app.
///
/// # Panics
/// When no runtime can be built.
pub fn storm(apps: usize, start: Duration) -> Result<Vec<Duration>> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime without I/O");
    runtime.block_on(run(apps, start))
}

async fn run(apps: usize, start: Duration) -> Result<Vec<Duration>> {
    let runtime: Arc<dyn Runtime> = Arc::new(Timed::exactly(start));
    let pool = InstancePool::new(PoolConfig::seeded(1));
    let router = Arc::new(RouteTable::new(1));
    let gateway =
        Gateway::new(Arc::clone(&router) as _, Arc::clone(&pool) as Arc<dyn Pool>, GatewayConfig::default());
    let mut clients = JoinSet::new();
    let at_once = Arc::new(Barrier::new(apps));
    for app in 0..apps {
        let mut spec = RevisionSpec::new("timed", Source::Function("f".into()));
        spec.scaling.initial = 0;
        let artifact = runtime.prepare(&spec).await?;
        let key = pool.register(Arc::new(Deployed::new(
            Arc::clone(&runtime),
            artifact,
            Arc::new(spec),
            RevisionName::new("default", &format!("app-{app}"), &format!("app-{app}-00001")),
            TenantKey(1),
        )))?;
        let host = format!("app-{app}.example.test");
        let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(key, 100)]));
        router.apply(vec![RouteChange::Set { host: HostPattern::Exact(host.clone()), rules: vec![rule] }])?;
        let request: Request =
            http::Request::builder().uri("/").header(http::header::HOST, host).body(Body::empty()).map_err(
                |error| Error::new(ErrorKind::Unexpected, "storm", "a request").with_source(error),
            )?;
        let (gateway, at_once) = (Arc::clone(&gateway), Arc::clone(&at_once));
        clients.spawn(async move {
            at_once.wait().await;
            let sent = Instant::now();
            let response = gateway.handle(request).await;
            (response.status(), sent.elapsed())
        });
    }
    let mut took = Vec::with_capacity(apps);
    while let Some(joined) = clients.join_next().await {
        let (status, time) = joined
            .map_err(|error| Error::new(ErrorKind::Unexpected, "storm", "a client").with_source(error))?;
        if status != http::StatusCode::OK {
            return Err(Error::new(ErrorKind::Unexpected, "storm", format!("an app answers {status}")));
        }
        took.push(time);
    }
    let deadline = Instant::now() + Duration::from_secs(1);
    gateway.shutdown(deadline).await;
    pool.shutdown(deadline).await;
    Ok(took)
}
