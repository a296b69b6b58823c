//! An order as a workflow: it calls three services, one of which fails at first, waits, and takes back what it did when the last
//! one refuses. The host stops in the middle, and another one goes on from the store. The path of the run is drawn to a file: the
//! first argument, or `order-17.svg` in the directory for temporary files.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use sas::{
    core::{GraphOf, MemoryStore, SystemClock, WorkflowHost as _},
    prelude::*,
    workflow::{
        Actions, Definition, Outcome, Record, Request as HttpRequest, StepKey, Workflows, invoke_service,
    },
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const ORDER: &str = r#"
document: {dsl: '1.0.3', namespace: default, name: order, version: '1.0.0'}
do:
  - reserve:
      call: stock
      with: {item: '${ .item }'}
      export: {as: '{reserved: .}'}
  - charge:
      try:
        - pay: {call: billing, with: {item: '${ $context.reserved.item }', amount: 7}}
      catch:
        retry: {delay: PT0.2S, backoff: {exponential: {}}, limit: {attempt: {count: 3}}}
  - cool: {wait: {milliseconds: 500}}
  - ship:
      try:
        - send: {call: shipping, with: {item: '${ $context.reserved.item }'}}
      catch:
        as: problem
        do:
          - refund: {call: billing, with: {item: '${ $context.reserved.item }', amount: -7}}
          - sorry: {set: {shipped: false, because: '${ $problem.detail }'}}
"#;

/// What the steps do: services by the platform's gateway; nothing else is needed here.
#[derive(Debug)]
struct OnPlatform {
    platform: Arc<Platform>,
}

#[async_trait::async_trait]
impl Actions for OnPlatform {
    async fn call(&self, _: &StepKey, request: &HttpRequest) -> Outcome {
        Outcome::Failed { reason: format!("{request:?}: this host calls its own services only") }
    }

    async fn invoke(&self, step: &StepKey, service: &str, input: &Value) -> Outcome {
        let gateway = self.platform.gateway();
        invoke_service(&**gateway, step, service, input, Duration::from_secs(10), 1 << 20).await
    }

    async fn emit(&self, _: &StepKey, _: &Value) -> Outcome {
        Outcome::Failed { reason: "this host has no broker".to_owned() }
    }

    async fn secrets(&self, _: &str, _: &[String]) -> sas_core::Result<BTreeMap<String, Value>> {
        Ok(BTreeMap::new())
    }
}

fn answer(status: u16, body: &Value) -> Response {
    let mut response = Response::new(Body::from(body.to_string()));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap_or_default();
    response
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let attempts = Arc::new(AtomicUsize::new(0));
    let runtime = InlineRuntime::new()
        .with("stock", |request: Request, _cx| async move {
            let order: Value = serde_json::from_slice(&request.into_body().collect(64 * 1024).await?)?;
            Ok::<_, sas::core::BoxError>(answer(200, &json!({"item": order["item"], "shelf": 12})))
        })
        .with("billing", move |request: Request, _cx| {
            let first = attempts.fetch_add(1, Relaxed) == 0;
            async move {
                let key = request.headers().get("idempotency-key").cloned();
                let bill: Value = serde_json::from_slice(&request.into_body().collect(64 * 1024).await?)?;
                println!(
                    "  billing is asked for {} under {key:?}{}",
                    bill["amount"],
                    if first { ", and fails" } else { "" }
                );
                Ok::<_, sas::core::BoxError>(if first {
                    answer(503, &json!("later"))
                } else {
                    answer(200, &bill)
                })
            }
        })
        .with("shipping", |_: Request, _cx| async move {
            Ok::<_, sas::core::BoxError>(answer(409, &json!("no lorry today")))
        });
    let platform = Arc::new(Platform::builder().runtime(runtime).build().await?);
    for name in ["stock", "billing", "shipping"] {
        platform
            .deploy("default", name, RevisionSpec::new("inline", Source::Function(name.to_owned())))
            .await?;
    }

    // Any store: with one in a file (`redb`), a run survives the machine.
    let store = Arc::new(MemoryStore::default());
    let host = || {
        let actions = Arc::new(OnPlatform { platform: Arc::clone(&platform) });
        let workflows = Workflows::new(store.clone(), Arc::new(SystemClock), actions);
        let (stop, running) = (CancellationToken::new(), workflows.clone());
        let token = stop.clone();
        (workflows, stop, tokio::spawn(async move { running.run(token).await }))
    };

    let (workflows, stop, running) = host();
    workflows.define(&Definition::parse(ORDER)?).await?;
    workflows.start("default", "order", "1.0.0", "order-17", json!({"item": "bicycle"})).await?;
    while workflows.state("default/order-17").await?.is_none_or(|state| state.wakes.is_none()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.cancel();
    running.await??;
    println!("the host stops; the run is its records");

    let (workflows, stop, running) = host();
    let state = workflows.ended("default/order-17").await?;
    for record in workflows.history("default/order-17").await? {
        if let Record::Done { step, outcome, .. } = record {
            println!("  {step}: {outcome:?}");
        }
    }
    println!("{:?}: {}", state.phase, state.output.unwrap_or_default());
    let file = std::env::args_os().nth(1).map(std::path::PathBuf::from);
    let file = file.unwrap_or_else(|| std::env::temp_dir().join("order-17.svg"));
    std::fs::write(&file, workflows.graph("default", GraphOf::Run("order-17")).await?)?;
    println!("its path is drawn in {}", file.display());
    stop.cancel();
    running.await??;
    platform.shutdown(Duration::from_secs(5)).await;
    Ok(())
}
