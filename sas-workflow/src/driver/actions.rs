//! What steps do: the host's part.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use sas_core::{Cx, FaasTrigger, IdempotencyKey, Invoker, Payer, RequestId, Target, TraceContext};
use serde_json::Value as Json;

use crate::{Body, Outcome, Request, Schedule};

/// Which step of which run it is. The same at every repetition of the step, and at no other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StepKey {
    /// The namespace of the run's definition.
    pub namespace: String,
    /// The run's id, unique in the namespace.
    pub run: String,
    /// The step's id: its position, with rounds and attempts, and `~1`, `~2` and so on when an operator began it anew.
    pub step: String,
    /// Whether the run's trace is recorded.
    pub sampled: bool,
}

impl StepKey {
    /// What tells a target that it has seen the step.
    pub fn idempotency(&self) -> IdempotencyKey {
        IdempotencyKey::of(&["workflow", &self.namespace, &self.run, &self.step])
    }

    /// The span of the step, for whoever it calls: in the trace of its run.
    pub fn trace(&self) -> TraceContext {
        let span = IdempotencyKey::of(&["span", &self.namespace, &self.run, &self.step]).0;
        TraceContext {
            trace: IdempotencyKey::of(&["trace", &self.namespace, &self.run]).0.max(1),
            span: u64::try_from(span & u128::from(u64::MAX)).unwrap_or_default().max(1),
            flags: 0,
        }
        .with_sampled(self.sampled)
    }

    /// The run as a step without a name, whose span is above those of its steps.
    pub(super) fn of_run(&self) -> Self {
        Self { step: String::new(), ..self.clone() }
    }
}

/// Does what runs ask for. Each may be asked for the same step again after a crash.
///
/// **Cancel safety:** futures are dropped when their run is cancelled, or when the driver stops.
#[async_trait]
pub trait Actions: std::fmt::Debug + Send + Sync + 'static {
    /// Sends an HTTP request; the answer of any status is an `Answer`. It ends by itself in a bounded time.
    async fn call(&self, step: &StepKey, request: &Request) -> Outcome;

    /// Calls a service of the platform with this as JSON; what it answers is an `Output`.
    async fn invoke(&self, step: &StepKey, service: &str, input: &Json) -> Outcome;

    /// Publishes an event, in the JSON format of CloudEvents; `Output(null)` when it is accepted for good.
    async fn emit(&self, step: &StepKey, event: &Json) -> Outcome;

    /// The values of secrets that a definition of this namespace names. What is not given lets the run fault. After
    /// 30 s without an answer the run gives up its turn, and asks again.
    ///
    /// # Errors
    /// When it is not known now which there are: the run waits, and asks again.
    async fn secrets(&self, namespace: &str, names: &[String]) -> sas_core::Result<BTreeMap<String, Json>>;

    /// From now on, runs of this definition start by this schedule; `None`: by none. Told for the greatest version of each definition,
    /// at each change and after each start of the host; of several hosts, to the one that drives the runs of the namespace. The same again
    /// changes nothing.
    ///
    /// # Errors
    /// When it cannot be kept now.
    async fn schedule(
        &self,
        namespace: &str,
        name: &str,
        schedule: Option<&Schedule>,
    ) -> sas_core::Result<()> {
        let _ = (namespace, name, schedule);
        Ok(())
    }

    /// Publishes an event of a run's life, in the JSON format of CloudEvents; asked only with [`WorkflowConfig::lifecycle`](crate::WorkflowConfig::lifecycle).
    /// It may come twice, under one id.
    ///
    /// # Errors
    /// When it is to be tried again later: those of its namespace wait for it.
    async fn lifecycle(&self, namespace: &str, event: &Json) -> sas_core::Result<()> {
        let _ = (namespace, event);
        Ok(())
    }

    /// From now on another host starts runs of this definition: nothing of it is to run here, and nothing is to be forgotten.
    async fn release_schedule(&self, namespace: &str, name: &str) {
        let _ = (namespace, name);
    }

    /// Whether a definition may be given this schedule.
    ///
    /// # Errors
    /// What is wrong with it.
    fn check_schedule(&self, namespace: &str, name: &str, schedule: &Schedule) -> Result<(), String> {
        let _ = (namespace, name, schedule);
        Ok(())
    }
}

/// Calls a service through an [`Invoker`]: `POST /` with JSON, and the step as `idempotency-key`, `sas-workflow-run` and
/// `sas-workflow-step`. A service's name without a slash is one of the step's namespace. An answer of JSON is the output, any other one a
/// text; a status that is no success is an error of the kind communication with that status.
pub async fn invoke_service(
    invoker: &dyn Invoker,
    step: &StepKey,
    service: &str,
    input: &Json,
    timeout: Duration,
    most: usize,
) -> Outcome {
    let service =
        if service.contains('/') { service.to_owned() } else { format!("{}/{service}", step.namespace) };
    let key = step.idempotency();
    let request = http::Request::post("/")
        .header("content-type", "application/json")
        .header("idempotency-key", key.to_string())
        .header("sas-workflow-run", &step.run)
        .header("sas-workflow-step", &step.step)
        .body(sas_core::Body::from(input.to_string()));
    let request = match request {
        Ok(mut request) => {
            step.trace().put(request.headers_mut());
            request
        }
        Err(error) => return Outcome::Failed { reason: error.to_string() },
    };
    let deadline = tokio::time::Instant::now() + timeout;
    let cx =
        Cx::new(Payer::Owner, RequestId(key.0), deadline).with_idempotency(key).caused_by(FaasTrigger::Other);
    let answered = async {
        let response = invoker
            .invoke(Target::Service(Arc::from(service.as_str())), request, &cx)
            .await
            .map_err(|error| error.error.to_string())?;
        let (head, body) = response.into_parts();
        let body = body.collect(most).await.map_err(|error| error.to_string())?;
        Ok::<_, String>((head, body))
    };
    let (head, body) = match tokio::time::timeout_at(deadline, answered).await {
        Ok(Ok(answered)) => answered,
        Ok(Err(reason)) => return Outcome::Failed { reason: format!("{service}: {reason}") },
        Err(_) => {
            return Outcome::Failed { reason: format!("{service} has not answered within {timeout:?}") };
        }
    };
    if !head.status.is_success() {
        let text: String = String::from_utf8_lossy(&body).chars().take(1_000).collect();
        return Outcome::Answer { status: head.status.as_u16(), headers: Vec::new(), body: Body::Text(text) };
    }
    if body.is_empty() {
        return Outcome::Output(Json::Null);
    }
    match serde_json::from_slice(&body) {
        Ok(json) => Outcome::Output(json),
        Err(_) => Outcome::Output(String::from_utf8_lossy(&body).into_owned().into()),
    }
}
