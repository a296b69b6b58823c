//! Workflows on the platform: what their steps do, and how events and schedules start and reach them.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use async_trait::async_trait;
use sas_control::Control;
use sas_core::{
    Clock, Error, ErrorKind, Event, EventPublisher, Hosts, Invoker, Place, Recorder, Result, RunStart,
    SecretSource, SinkSpec, SpecErrors, Store, TraceSink, TriggerOptions, TriggerSpec, Triggers as _,
};
use sas_trigger::TriggerHost;
use sas_workflow::{
    Actions, Body, Outcome, Request, Schedule, StepKey, WorkflowConfig, Workflows, invoke_service,
};
use serde_json::Value as Json;
use tokio_util::sync::CancellationToken;

use crate::PlatformBuilder;

/// For how long an event is offered again to a broker that has no room or no store, before the step counts as failed.
const PATIENCE: Duration = Duration::from_secs(600);

/// How the steps of workflows reach what they ask for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StepConfig {
    /// How long a service of the platform, or a URL, may take to answer a step. 60 s.
    pub timeout: Duration,
    /// How many bytes of an answer are taken. 4 MiB.
    pub answer_bytes: usize,
    /// The broker that `emit` publishes to, in the namespace of the run. `default`.
    pub broker: String,
}

impl Default for StepConfig {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), answer_bytes: 4 << 20, broker: "default".to_owned() }
    }
}

/// What a host changes of a configuration.
type Change<C> = Box<dyn FnOnce(&mut C) + Send + Sync>;

/// What a builder was told of workflows.
#[derive(Default)]
pub(crate) struct Wanted {
    runs: Vec<Change<WorkflowConfig>>,
    steps: Vec<Change<StepConfig>>,
    #[cfg(feature = "webhook")]
    urls: Option<sas_sinks::Webhooks>,
}

impl PlatformBuilder {
    /// Changes how much of the host workflows may take, and for how long runs are kept that have ended.
    #[must_use]
    pub fn workflows(mut self, change: impl FnOnce(&mut WorkflowConfig) + Send + Sync + 'static) -> Self {
        self.workflow.runs.push(Box::new(change));
        self
    }

    /// Changes how the steps of workflows reach services and brokers.
    #[must_use]
    pub fn workflow_steps(mut self, change: impl FnOnce(&mut StepConfig) + Send + Sync + 'static) -> Self {
        self.workflow.steps.push(Box::new(change));
        self
    }

    /// Lets workflows call URLs of these hosts: names as they stand in URLs, with a port where only that one is meant, or
    /// `*.example.org`. Without it they call services of the platform only, so that no tenant reaches the operator's network.
    ///
    /// ```
    /// use sas::prelude::*;
    /// let builder = Platform::builder().workflow_hosts(["api.example.org"]);
    /// ```
    #[cfg(feature = "webhook")]
    #[must_use]
    pub fn workflow_hosts<H: Into<String>>(mut self, hosts: impl IntoIterator<Item = H>) -> Self {
        self.workflow.urls = Some(sas_sinks::Webhooks::to_hosts(hosts));
        self
    }
}

/// What workflows are made of, beside what the builder was told of them.
pub(crate) struct Around {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) invoker: Arc<dyn Invoker>,
    pub(crate) secrets: Option<Arc<dyn SecretSource>>,
    pub(crate) hosts: Option<Arc<dyn Hosts>>,
    pub(crate) recorder: Recorder,
    pub(crate) traces: Option<Arc<dyn TraceSink>>,
}

/// The workflows of a platform, and what their steps do.
pub(crate) fn compose(
    wanted: Wanted,
    around: Around,
    triggers: &Arc<TriggerHost>,
) -> (Workflows, Arc<PlatformActions>) {
    let Around { store, clock, invoker, secrets, hosts, recorder, traces } = around;
    let (mut runs, mut steps) = (WorkflowConfig::default(), StepConfig::default());
    wanted.runs.into_iter().for_each(|change| change(&mut runs));
    wanted.steps.into_iter().for_each(|change| change(&mut steps));
    (runs.hosts, runs.recorder, runs.traces) = (hosts.clone(), recorder, traces);
    let actions = Arc::new(PlatformActions {
        config: steps,
        hosts,
        invoker,
        triggers: Arc::clone(triggers),
        secrets,
        control: OnceLock::new(),
        #[cfg(feature = "webhook")]
        urls: wanted.urls,
    });
    let workflows = Workflows::with_config(store, clock, Arc::clone(&actions) as _, runs);
    let own = workflows.clone();
    triggers.register_sink("workflow", move |spec, _| starts(&own, spec));
    let own = workflows.clone();
    triggers.register_sink("workflow-events", move |spec, _| tells(&own, spec));
    (workflows, actions)
}

/// Runs workflows until `stop`; a store that is away at the start is waited for.
pub(crate) async fn run(workflows: Workflows, stop: CancellationToken) {
    let mut wait = Duration::from_millis(200);
    while let Err(error) = workflows.run(stop.clone()).await {
        tracing::error!(error = %error.chain(), "workflows do not go on yet");
        if stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
            return;
        }
        wait = (wait * 2).min(Duration::from_secs(10));
    }
}

#[derive(Debug)]
pub(crate) struct PlatformActions {
    pub(crate) config: StepConfig,
    pub(crate) hosts: Option<Arc<dyn Hosts>>,
    pub(crate) invoker: Arc<dyn Invoker>,
    pub(crate) triggers: Arc<TriggerHost>,
    pub(crate) secrets: Option<Arc<dyn SecretSource>>,
    /// Set when the control plane is there.
    pub(crate) control: OnceLock<Weak<Control>>,
    #[cfg(feature = "webhook")]
    pub(crate) urls: Option<sas_sinks::Webhooks>,
}

fn failed(reason: impl Into<String>) -> Outcome {
    Outcome::Failed { reason: reason.into() }
}

impl PlatformActions {
    /// The triggers by which a definition starts by itself: the names of all, and what those are that it wants.
    fn scheduled(
        &self,
        namespace: &str,
        name: &str,
        schedule: Option<&Schedule>,
    ) -> [(String, Option<TriggerSpec>); 3] {
        let every =
            schedule.and_then(|schedule| schedule.every).map(|every| format!("{}ms", every.as_millis()));
        let cron = schedule.and_then(|schedule| schedule.cron.clone());
        let on = schedule.filter(|schedule| schedule.on_events()).map(|_| self.config.broker.clone());
        [("timer", "period", every), ("cron", "schedule", cron), ("broker", "broker", on)].map(
            |(kind, option, value)| {
                let trigger = format!("{namespace}/{name}.{kind}");
                let spec = value.map(|value| {
                    let spec = TriggerSpec::new(&trigger, kind, "sink:workflow")
                        .with_option(option, value)
                        .with_option("sink.name", name);
                    if kind == "broker" { spec.with_option("sink.when", "schedule") } else { spec }
                });
                (trigger, spec)
            },
        )
    }

    async fn is_declared(&self, broker: &str) -> Result<bool> {
        match self.control.get().and_then(Weak::upgrade) {
            Some(control) => control.has_broker(broker).await,
            None => Ok(false),
        }
    }

    /// Gives an event to a broker, if this is the host that acts for it.
    async fn accept(&self, namespace: &str, broker: &str, event: Event) -> Result<()> {
        match self.hosts.as_ref().map(|hosts| hosts.place(namespace)) {
            None | Some(Place::Here(_)) => match self.triggers.accept(broker, vec![event]).await {
                // It is declared, and this host has just taken it over.
                Err(error) if error.kind == ErrorKind::NotFound && self.is_declared(broker).await? => {
                    Err(Error::new(ErrorKind::Unavailable, "emit", error.message))
                }
                accepted => accepted,
            },
            Some(_) => {
                // The run goes on at the host that does, or here once that is known.
                let message = format!("another host has taken over {namespace}");
                Err(Error::new(ErrorKind::Unavailable, "emit", message))
            }
        }
    }

    #[cfg(feature = "webhook")]
    async fn request(&self, step: &StepKey, request: &Request) -> Outcome {
        let Some(urls) = &self.urls else {
            return failed("this platform lets workflows call no URLs (workflow_hosts of the builder)");
        };
        let mut made = http::Request::builder().method(request.method.as_str()).uri(&request.uri);
        for (name, value) in &request.headers {
            made = made.header(name, value);
        }
        if !request.headers.iter().any(|(name, _)| name == "idempotency-key") {
            made = made.header("idempotency-key", step.idempotency().to_string());
        }
        let made = match made.body(request.body.clone().into()) {
            Ok(mut made) => {
                if !made.headers().contains_key("traceparent") {
                    step.trace().put(made.headers_mut());
                }
                made
            }
            Err(error) => return failed(error.to_string()),
        };
        let sent = tokio::time::timeout(self.config.timeout, urls.request(made, self.config.answer_bytes));
        match sent.await {
            Ok(Ok(answer)) => {
                let (head, body) = answer.into_parts();
                let headers = head.headers.iter().map(|(name, value)| {
                    (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                });
                Outcome::Answer {
                    status: head.status.as_u16(),
                    headers: headers.collect(),
                    body: Body::of(&body),
                }
            }
            Ok(Err(error)) => failed(error.message),
            Err(_) => failed(format!("no answer within {:?}", self.config.timeout)),
        }
    }

    #[cfg(not(feature = "webhook"))]
    async fn request(&self, _: &StepKey, _: &Request) -> Outcome {
        failed("this platform was built without the feature webhook, by which workflows call URLs")
    }
}

#[async_trait]
impl Actions for PlatformActions {
    async fn call(&self, step: &StepKey, request: &Request) -> Outcome {
        self.request(step, request).await
    }

    async fn invoke(&self, step: &StepKey, service: &str, input: &Json) -> Outcome {
        let StepConfig { timeout, answer_bytes, .. } = self.config;
        // Who a run belongs to pays for its calls, and calls its own: as triggers, which ask for a grant.
        if service.split_once('/').is_some_and(|(namespace, _)| namespace != step.namespace) {
            return failed(format!(
                "{service} is in another namespace; a workflow of {} calls services of {}",
                step.namespace, step.namespace
            ));
        }
        invoke_service(&*self.invoker, step, service, input, timeout, answer_bytes).await
    }

    async fn emit(&self, step: &StepKey, event: &Json) -> Outcome {
        let event = match sas_cloudevents::from_json(event.to_string().as_bytes()) {
            Ok(event) => event,
            Err(error) => return failed(format!("the event is none: {error}")),
        };
        let broker = format!("{}/{}", step.namespace, self.config.broker);
        let began = tokio::time::Instant::now();
        let mut wait = Duration::from_millis(200);
        loop {
            let error = match self.accept(&step.namespace, &broker, event.clone()).await {
                Ok(()) => return Outcome::Output(Json::Null),
                Err(error) => error,
            };
            let passes = matches!(error.kind, ErrorKind::Unavailable | ErrorKind::Exhausted);
            if !passes || began.elapsed() >= PATIENCE {
                return failed(format!("{broker}: {}", error.message));
            }
            // Its id tells who takes it that it is the same.
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(10));
        }
    }

    async fn secrets(&self, namespace: &str, names: &[String]) -> Result<BTreeMap<String, Json>> {
        let mut secrets = BTreeMap::new();
        if names.is_empty() {
            return Ok(secrets);
        }
        let Some(source) = &self.secrets else { return Ok(secrets) };
        let control = self.control.get().and_then(Weak::upgrade);
        // A run that is read without a secret that is only away for a moment would fault for good.
        let Some(tenant) = control.and_then(|control| control.tenant_of(namespace)) else {
            let message = format!("whose the namespace {namespace} is, is not known now");
            return Err(Error::new(ErrorKind::Unavailable, "secret", message));
        };
        for name in names {
            // One name is one secret: `vault/key` as it stands, `password` as the only key of the secret of that name.
            let reference = match name.contains('/') {
                true => format!("secret/{name}"),
                false => format!("secret/{name}/{name}"),
            };
            let value = match source.resolve(&reference, tenant).await {
                Err(error) if error.kind == ErrorKind::Unavailable => return Err(error),
                resolved => resolved.ok(),
            };
            let Some(text) = value.as_deref().and_then(|value| std::str::from_utf8(value).ok()) else {
                continue;
            };
            let text = text.trim_end_matches(['\r', '\n']);
            // User and password are an object; all else is a text.
            let object = serde_json::from_str(text).ok().filter(Json::is_object);
            secrets.insert(name.clone(), object.unwrap_or_else(|| text.into()));
        }
        Ok(secrets)
    }

    async fn schedule(&self, namespace: &str, name: &str, schedule: Option<&Schedule>) -> Result<()> {
        let tenant = self.control.get().and_then(Weak::upgrade).and_then(|it| it.tenant_of(namespace));
        for (trigger, spec) in self.scheduled(namespace, name, schedule) {
            match spec {
                Some(mut spec) => {
                    spec.tenant = tenant;
                    self.triggers.apply(spec).await?;
                }
                None => self.triggers.remove(&trigger).await?,
            }
        }
        Ok(())
    }

    async fn lifecycle(&self, namespace: &str, event: &Json) -> Result<()> {
        let event = sas_cloudevents::from_json(event.to_string().as_bytes())
            .map_err(|error| Error::new(ErrorKind::Unexpected, "lifecycle", error.to_string()))?;
        let broker = format!("{namespace}/{}", self.config.broker);
        match self.accept(namespace, &broker, event).await {
            // Nobody can listen there.
            Err(error) if error.kind == ErrorKind::NotFound => Ok(()),
            accepted => accepted,
        }
    }

    async fn release_schedule(&self, namespace: &str, name: &str) {
        for (trigger, _) in self.scheduled(namespace, name, None) {
            self.triggers.pause(&trigger).await;
        }
    }

    fn check_schedule(
        &self,
        namespace: &str,
        name: &str,
        schedule: &Schedule,
    ) -> std::result::Result<(), String> {
        // All that is applied later: what is stored and cannot be applied would be refused at each start.
        for (_, spec) in self.scheduled(namespace, name, Some(schedule)) {
            if let Some(spec) = spec {
                self.triggers.check(&spec).map_err(|errors| errors.to_string())?;
            }
        }
        Ok(())
    }
}

/// The sink `workflow`: an event starts a run, under an id that the event makes, so that one event starts one run.
pub(crate) fn starts(
    workflows: &Workflows,
    spec: &SinkSpec,
) -> std::result::Result<Arc<dyn EventPublisher>, SpecErrors> {
    let mut options = TriggerOptions::new(&spec.options, spec.place);
    let name = options.required("name").to_owned();
    let version = options.take("version").map(str::to_owned);
    let whole = options.word("input", &[("data", false), ("event", true)], false);
    let scheduled = options.word("when", &[("always", false), ("schedule", true)], false);
    options.finish()?;
    let namespace = spec.trigger.split('/').next().unwrap_or_default().to_owned();
    Ok(Arc::new(Starts { workflows: workflows.clone(), namespace, name, version, whole, scheduled }))
}

/// The sink `workflow-events`: an event is told to the runs of the namespace that listen for it.
pub(crate) fn tells(
    workflows: &Workflows,
    spec: &SinkSpec,
) -> std::result::Result<Arc<dyn EventPublisher>, SpecErrors> {
    TriggerOptions::new(&spec.options, spec.place).finish()?;
    let namespace = spec.trigger.split('/').next().unwrap_or_default().to_owned();
    Ok(Arc::new(Tells { workflows: workflows.clone(), namespace }))
}

#[derive(Debug)]
struct Starts {
    workflows: Workflows,
    namespace: String,
    name: String,
    version: Option<String>,
    /// Whether the run gets the event, and not its data.
    whole: bool,
    /// Whether only events that the definition's own schedule asks for start one.
    scheduled: bool,
}

fn json(event: &Event) -> Result<Json> {
    serde_json::from_str(&sas_cloudevents::to_json(event))
        .map_err(|error| Error::new(ErrorKind::InvalidSpec, "publish", error.to_string()))
}

#[async_trait]
impl EventPublisher for Starts {
    async fn publish(&self, event: Event) -> Result<()> {
        let document = json(&event)?;
        let input = match (self.scheduled, self.whole) {
            (true, _) => match self.workflows.scheduled_by(&self.namespace, &self.name, &document).await? {
                Some(input) => input,
                None => return Ok(()),
            },
            (false, true) => document,
            (false, false) => document.get("data").cloned().unwrap_or_else(|| serde_json::json!({})),
        };
        let mut start = RunStart::new(&self.namespace, &self.name, input);
        let id = sas_core::IdempotencyKey::of(&["event", &self.name, event.source(), event.id()]);
        (start.id, start.version) = (Some(format!("event-{:032x}", id.0)), self.version.clone());
        self.workflows.start_run(start).await.map(drop).map_err(undelivered)
    }
}

#[derive(Debug)]
struct Tells {
    workflows: Workflows,
    namespace: String,
}

#[async_trait]
impl EventPublisher for Tells {
    async fn publish(&self, event: Event) -> Result<()> {
        self.workflows.deliver(&self.namespace, json(&event)?).await.map(drop).map_err(undelivered)
    }
}

/// What is tried again is what may pass.
fn undelivered(error: Error) -> Error {
    match error.kind {
        ErrorKind::Exhausted | ErrorKind::Unavailable | ErrorKind::NotFound => {
            Error::new(ErrorKind::Unavailable, "publish", error.message)
        }
        _ => error,
    }
}
