//! Runs sources, starts them again when they fail, and joins them in the end.

mod sleepers;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    future::FutureExt as _,
    stream::{FuturesUnordered, StreamExt as _},
};
use parking_lot::Mutex;
use sas_core::{
    BrokerSpec, BrokerStatus, Clock, Error, ErrorKind, Event, EventLog, EventPublisher, EventSink, Hosts,
    Invoker, Quotas, Recorder, Redrive, Redriven, Result, SecretSource, SinkSpec, SpecErrors, Store,
    StoreLog, SystemClock, TenantKey, Timestamp, TraceSink, TriggerCx, TriggerSecrets, TriggerSource,
    TriggerSpec, TriggerStatus, Triggers,
};
use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    broker::{self, BrokerPublisher, BrokerSource, Brokers, Start},
    declared::{self, DESTINATION, Declared, Destination},
    delivery::{Delivery, DeliveryConfig, Way, letters},
    filter::Filter,
    metrics::{LAG, Labels, Metrics, OLDEST},
    quotas::EventQuotas,
    webhook::{self, Hook},
};
use sleepers::Sleepers;

/// A run of this length was a good one: after it, the back-off starts from the beginning.
const LASTED: Duration = Duration::from_secs(60);
/// Entries of a trigger's memory that are removed in one go, and dead letters that are read in one go.
const PAGE: usize = 100;
/// Dead letters that are delivered again in one go unless more or fewer are asked for.
const REDRIVEN: usize = 1000;
/// How long one request may deliver dead letters again.
const REDRIVING: Duration = Duration::from_secs(10);

/// Makes a source of a declaration, or says what is wrong with it; fields as in [`TriggerSpec`].
pub type SourceFactory = dyn Fn(&TriggerSpec) -> Result<Arc<dyn TriggerSource>, SpecErrors> + Send + Sync;

/// Makes a way out of the options that a trigger gives for it, or says what is wrong with them; fields begin with
/// [`SinkSpec::place`]. It is given the secrets that it may read, to be asked before each connection.
pub type SinkFactory =
    dyn Fn(&SinkSpec, TriggerSecrets) -> Result<Arc<dyn EventPublisher>, SpecErrors> + Send + Sync;

/// What a host works with.
#[derive(Clone)]
pub struct TriggerHostConfig {
    /// Who calls the services.
    pub invoker: Arc<dyn Invoker>,
    /// What must outlive a restart.
    pub store: Arc<dyn Store>,
    /// The durable log that brokers keep their events in; their readers' places stay in the store.
    pub log: Arc<dyn EventLog>,
    /// The clock that schedules follow.
    pub clock: Arc<dyn Clock>,
    /// Events under way at once, over all triggers.
    pub slots: usize,
    /// The first wait before a failed source is started again; it doubles.
    pub restart_delay: Duration,
    /// The longest such wait.
    pub longest_restart_delay: Duration,
    /// The recorder that metrics of triggers go to.
    pub recorder: Recorder,
    /// Is told of every delivery when it is over, for traces.
    pub traces: Option<Arc<dyn TraceSink>>,
    /// The way out of the platform for events that can't be delivered, for triggers with `dead-letter: publish`.
    pub publisher: Option<Arc<dyn EventPublisher>>,
    /// What resolves the references to secrets in options of triggers and brokers.
    pub secrets: Option<Arc<dyn SecretSource>>,
    /// The hosts that share the store; `None`: this is the only one. Of several only the one that acts for a declared
    /// trigger's namespace begins its fires.
    pub hosts: Option<Arc<dyn Hosts>>,
}

impl TriggerHostConfig {
    /// On the system's clock, with brokers' events in the store and a thousand events under way at most.
    pub fn new(invoker: Arc<dyn Invoker>, store: Arc<dyn Store>) -> Self {
        Self {
            invoker,
            log: Arc::new(StoreLog::new(Arc::clone(&store), "events")),
            store,
            clock: Arc::new(SystemClock),
            slots: 1000,
            restart_delay: Duration::from_millis(100),
            longest_restart_delay: Duration::from_secs(10),
            recorder: Recorder::default(),
            traces: None,
            publisher: None,
            secrets: None,
            hosts: None,
        }
    }
}

impl fmt::Debug for TriggerHostConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TriggerHostConfig").field("slots", &self.slots).finish_non_exhaustive()
    }
}

/// Runs trigger sources: those of one's own by [`TriggerHost::run`], declared ones as [`Triggers`].
///
/// Knows the kinds `cron`, `timer`, `broker` and `webhook`; [`TriggerHost::register_kind`] adds others, and
/// [`TriggerHost::register_sink`] ways out.
pub struct TriggerHost {
    config: TriggerHostConfig,
    slots: Arc<Semaphore>,
    kinds: Mutex<HashMap<String, Arc<SourceFactory>>>,
    sinks: Mutex<HashMap<String, Arc<SinkFactory>>>,
    brokers: Arc<Brokers>,
    running: Mutex<BTreeMap<String, Running>>,
    sleepers: Arc<Sleepers>,
    /// Declarations are changed one at a time.
    changing: tokio::sync::Mutex<()>,
    shutdown: CancellationToken,
    labels: Labels,
    metrics: Metrics,
    quotas: Arc<EventQuotas>,
    /// Triggers whose backlog could not be had when it was asked for last.
    unknown: Mutex<BTreeSet<String>>,
}

impl fmt::Debug for TriggerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TriggerHost").field("triggers", &self.running.lock().len()).finish_non_exhaustive()
    }
}

struct Running {
    source: Arc<dyn TriggerSource>,
    sink: Arc<dyn EventSink>,
    declared: Option<Arc<OfDeclared>>,
    stop: CancellationToken,
    /// `None`: it sleeps, or is paused.
    task: Option<JoinHandle<()>>,
    status: Arc<Mutex<TriggerStatus>>,
}

/// What a declared trigger has beside its source.
struct OfDeclared {
    spec: TriggerSpec,
    delivery: Arc<Delivery>,
    /// The broker that it reads from, if it does.
    broker: Option<String>,
    sink_options: BTreeMap<String, String>,
    /// What it takes over HTTP, if it is a webhook.
    hook: Option<Arc<Hook>>,
}

/// A declaration, made.
struct Made {
    source: Arc<dyn TriggerSource>,
    delivery: Delivery,
    reads: Option<(String, Start)>,
    sink_options: BTreeMap<String, String>,
    hook: Option<Arc<Hook>>,
}

impl TriggerHost {
    /// A host that runs nothing yet.
    pub fn new(config: TriggerHostConfig) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(config.slots.clamp(1, Semaphore::MAX_PERMITS)));
        let metrics = Metrics::new(&config.recorder);
        let recorder = config.recorder.clone();
        let brokers = Brokers::new(
            Arc::clone(&config.log),
            Arc::clone(&config.store),
            Arc::clone(&config.clock),
            metrics.clone(),
        );
        let shutdown = CancellationToken::new();
        let sleepers = Sleepers::new(
            Arc::clone(&config.clock),
            Arc::clone(&brokers),
            (config.restart_delay, config.longest_restart_delay),
            metrics.clone(),
            shutdown.clone(),
        );
        let host = Self {
            config,
            slots,
            kinds: Mutex::default(),
            sinks: Mutex::default(),
            brokers: Arc::clone(&brokers),
            running: Mutex::default(),
            sleepers,
            changing: tokio::sync::Mutex::default(),
            shutdown,
            labels: Labels::default(),
            metrics,
            quotas: Arc::new(EventQuotas::new()),
            unknown: Mutex::default(),
        };
        let cron_recorder = recorder.clone();
        host.register_kind("cron", move |spec| declared::cron(spec, &cron_recorder));
        host.register_kind("timer", move |spec| declared::timer(spec, &recorder));
        let hooked = Arc::clone(&brokers);
        host.register_kind("broker", move |spec| {
            let (name, _) = broker::options(spec)?;
            Ok(Arc::new(BrokerSource::new("broker", Arc::clone(&brokers), name)))
        });
        host.register_kind("webhook", move |spec| {
            webhook::hook(spec, TriggerSecrets::default())?;
            let name = broker::hook_broker(&spec.name);
            Ok(Arc::new(BrokerSource::new("webhook", Arc::clone(&hooked), name)))
        });
        Arc::new(host)
    }

    /// Makes declarations of `kind` known. Its options must not have the names of those of the delivery.
    pub fn register_kind(
        &self,
        kind: impl Into<String>,
        make: impl Fn(&TriggerSpec) -> Result<Arc<dyn TriggerSource>, SpecErrors> + Send + Sync + 'static,
    ) {
        self.kinds.lock().insert(kind.into(), Arc::new(make));
    }

    /// Makes ways out of `kind` known: the target `sink:kind` of triggers, and their dead letters.
    pub fn register_sink(
        &self,
        kind: impl Into<String>,
        make: impl Fn(&SinkSpec, TriggerSecrets) -> Result<Arc<dyn EventPublisher>, SpecErrors>
        + Send
        + Sync
        + 'static,
    ) {
        self.sinks.lock().insert(kind.into(), Arc::new(make));
    }

    /// Runs a source that sends to `sink`, until [`Triggers::remove`] or the shutdown. One of the same name is stopped
    /// first. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Unavailable` when the host shuts down.
    pub async fn run(
        &self,
        name: &str,
        source: Arc<dyn TriggerSource>,
        sink: Arc<dyn EventSink>,
    ) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.stop(name).await;
        self.start(name, None, source, sink)
    }

    /// What waits upstream of the declared triggers, by the service (`namespace/name`) that gets their events: the sum
    /// of what [`TriggerSource::backlog`] says, for the scaler. A service with a source that fails, panics or does not
    /// answer within `patience` is left out, since a part of the sum is no measurement; so is one whose sources know of
    /// no backlog.
    ///
    /// **Cancel safety:** dropping the future drops the questions.
    pub async fn backlogs(&self, patience: Duration) -> BTreeMap<String, u64> {
        let asked: Vec<(String, String, Arc<dyn TriggerSource>)> = self
            .running
            .lock()
            .iter()
            .filter_map(|(name, running)| {
                let declared = running.declared.as_ref().filter(|declared| !declared.spec.paused)?;
                Some((name.clone(), declared.spec.target.clone(), Arc::clone(&running.source)))
            })
            .collect();
        let mut answers: FuturesUnordered<_> = asked
            .into_iter()
            .map(|(name, target, source)| async move {
                let asked = AssertUnwindSafe(async { source.backlog().await }).catch_unwind();
                let answer = match tokio::time::timeout(patience, asked).await {
                    Ok(Ok(Ok(known))) => Ok(known),
                    Ok(Ok(Err(error))) => Err(error.chain()),
                    Ok(Err(_)) => Err("the source panicked".to_owned()),
                    Err(_) => Err(format!("no answer within {patience:?}")),
                };
                (name, target, source.oldest(), answer)
            })
            .collect();
        let now = self.config.clock.now();
        let mut sums: BTreeMap<String, Option<u64>> = BTreeMap::new();
        let mut gauges: BTreeMap<String, (u64, Duration)> = BTreeMap::new();
        let mut unknown = BTreeSet::new();
        while let Some((name, target, oldest, answer)) = answers.next().await {
            match answer {
                Ok(None) => {}
                Ok(Some(waiting)) => {
                    let gauge = gauges.entry(self.labels.of(&name)).or_default();
                    gauge.0 = gauge.0.saturating_add(waiting);
                    gauge.1 = gauge.1.max(oldest.map_or(Duration::ZERO, |oldest| now.since(oldest)));
                    let sum = sums.entry(target).or_insert(Some(0));
                    *sum = sum.map(|sum| sum.saturating_add(waiting));
                }
                Err(error) => {
                    // It is asked often, and why its source fails is said each time that it is started again.
                    if !self.unknown.lock().contains(&name) {
                        tracing::warn!(trigger = name, service = %target, error, "its backlog is not known");
                    }
                    unknown.insert(name);
                    sums.insert(target, None);
                }
            }
        }
        *self.unknown.lock() = unknown;
        for (label, (waiting, age)) in gauges {
            let labels = [("trigger", label.as_str())];
            self.config.recorder.gauge(LAG, &labels).set(waiting as f64);
            self.config.recorder.gauge(OLDEST, &labels).set(age.as_secs_f64());
        }
        sums.into_iter().filter_map(|(target, sum)| Some((target, sum?))).collect()
    }

    /// A delivery to a service that shares the host's slots.
    pub fn delivery(&self, config: DeliveryConfig) -> Delivery {
        let metrics = self.metrics.labelled(&self.config.recorder, &self.labels.of(&config.trigger));
        let mut delivery = Delivery::new(
            config,
            Arc::clone(&self.config.invoker),
            Arc::clone(&self.config.store),
            Arc::clone(&self.slots),
        )
        .with_clock(Arc::clone(&self.config.clock))
        .with_metrics(metrics)
        .with_quotas(&self.quotas);
        if let Some(traces) = &self.config.traces {
            delivery = delivery.with_traces(Arc::clone(traces));
        }
        match &self.config.publisher {
            Some(publisher) => delivery.with_publisher(Arc::clone(publisher)),
            None => delivery,
        }
    }

    fn secrets(&self, spec: &TriggerSpec) -> TriggerSecrets {
        TriggerSecrets::new(self.config.secrets.clone(), spec.tenant)
    }

    fn start(
        &self,
        name: &str,
        declared: Option<Arc<OfDeclared>>,
        source: Arc<dyn TriggerSource>,
        sink: Arc<dyn EventSink>,
    ) -> Result<()> {
        if self.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Unavailable, "trigger", "the platform is shutting down"));
        }
        let stop = self.shutdown.child_token();
        let status = Arc::new(Mutex::new(TriggerStatus::new(name, source.kind())));
        let paused = declared.as_ref().is_some_and(|declared| declared.spec.paused);
        let mut running = Running {
            source: Arc::clone(&source),
            sink: Arc::clone(&sink),
            declared,
            stop: stop.clone(),
            task: None,
            status: Arc::clone(&status),
        };
        if paused {
            let mut status = status.lock();
            (status.paused, status.running) = (true, false);
        } else {
            let secrets = running
                .declared
                .as_ref()
                .map_or_else(TriggerSecrets::default, |declared| self.secrets(&declared.spec));
            let (store, clock) = (Arc::clone(&self.config.store), Arc::clone(&self.config.clock));
            let mut cx = TriggerCx::new(name, sink, store, clock, stop).with_secrets(secrets);
            // What a host runs of its own is no namespace's.
            cx.hosts = running.declared.as_ref().and_then(|_| self.config.hosts.clone());
            if source.sleeps() {
                self.sleepers.add(source, cx, status);
            } else {
                let keeper = Keeper {
                    source,
                    cx,
                    status,
                    first_delay: self.config.restart_delay,
                    longest_delay: self.config.longest_restart_delay,
                    metrics: self.metrics.clone(),
                };
                running.task = Some(tokio::spawn(keeper.keep()));
            }
        }
        self.running.lock().insert(name.to_owned(), running);
        Ok(())
    }

    async fn stop(&self, name: &str) -> Option<Running> {
        let mut running = self.running.lock().remove(name)?;
        running.stop.cancel();
        self.sleepers.remove(name).await;
        if let Some(task) = running.task.take() {
            // Its only failure is a panic of the keeper's own, which has nothing left to do then.
            let _ = task.await;
        }
        Some(running)
    }

    /// Stops all sources and waits for them until `deadline`; those that do not end by then are dropped, which is like a
    /// crash of the host to them. Idempotent. The names of those that were dropped.
    pub async fn shutdown(&self, deadline: Instant) -> Vec<String> {
        self.shutdown.cancel();
        let running = std::mem::take(&mut *self.running.lock());
        let mut late = Vec::new();
        for (name, running) in running {
            let Some(mut task) = running.task else { continue };
            if tokio::time::timeout_at(deadline, &mut task).await.is_err() {
                task.abort();
                let _ = task.await;
                late.push(name);
            }
        }
        late.extend(self.sleepers.shutdown(deadline).await);
        late.sort_unstable();
        self.slots.close();
        late
    }

    fn make(&self, spec: &TriggerSpec) -> Result<Made, SpecErrors> {
        let mut errors = SpecErrors::default();
        let namespace = spec.name.split('/').next().unwrap_or_default();
        let reads_of = (spec.kind == "broker").then(|| spec.options.get("broker")).flatten();
        let reads_of = reads_of.map(|broker| match broker.contains('/') {
            true => broker.clone(),
            false => format!("{namespace}/{broker}"),
        });
        let defaults =
            reads_of.as_ref().and_then(|broker| self.brokers.spec(broker)).map(|spec| spec.delivery);
        let mut declared = declared::split(spec, &defaults.unwrap_or_default(), &mut errors);
        if let (None, Some(broker), false) = (&declared.reply, &reads_of, spec.options.contains_key("reply"))
            && declared.delivery.batch == 1
        {
            // As Knative has it: what a subscriber answers goes back to the broker.
            declared.reply = Some(Destination::Broker(broker.clone()));
        }
        let make = self.kinds.lock().get(&spec.kind).cloned();
        let made = match make {
            Some(make) => match make(&declared.own) {
                Ok(source) => Some(source),
                Err(wrong) => {
                    errors.0.extend(wrong.0);
                    None
                }
            },
            None => {
                let mut kinds: Vec<String> = self.kinds.lock().keys().cloned().collect();
                kinds.sort_unstable();
                errors.push("kind", &spec.kind, format!("must be one of {}", kinds.join(", ")));
                None
            }
        };
        let reads = match spec.kind.as_str() {
            "broker" => broker::options(&declared.own).ok(),
            "webhook" => Some((broker::hook_broker(&spec.name), Start::Earliest)),
            _ => None,
        };
        let hook = (spec.kind == "webhook")
            .then(|| webhook::hook(&declared.own, self.secrets(spec)).ok())
            .flatten()
            .map(Arc::new);
        let Declared { delivery, target, sink_options, dead_letter, letter_options, reply, .. } = declared;
        if delivery.dead_letter == crate::DeadLetter::Publish
            && dead_letter.is_none()
            && self.config.publisher.is_none()
        {
            errors.push(
                "options.dead-letter",
                "publish",
                "nobody publishes events on this platform: give its builder an `event_publisher`, or let dead letters \
                 be kept (`keep`), or name a service, a broker or a sink",
            );
        }
        let mut way_out = |destination: Option<Destination>, options: &BTreeMap<String, String>, field| {
            let destination =
                destination.filter(|destination| !matches!(destination, Destination::Service(_)))?;
            self.publisher(spec, &destination, options, field, &mut errors)
        };
        let to = way_out(target, &sink_options, "target");
        let letters = way_out(dead_letter, &letter_options, "options.dead-letter");
        let replies = match reply {
            Some(Destination::Service(service)) => {
                let mut config = DeliveryConfig::new(spec.name.as_str(), service);
                config.payer = spec.tenant.into();
                config.dead_letter = crate::DeadLetter::None;
                Some(Arc::new(self.delivery(config)) as Arc<dyn EventPublisher>)
            }
            other => way_out(other, &BTreeMap::new(), "options.reply"),
        };
        errors.into_result()?;
        let Some(source) = made else { return Err(SpecErrors::default()) };
        let mut delivery = self.delivery(delivery);
        if let Some(hosts) = &self.config.hosts {
            delivery = delivery.with_hosts(Arc::clone(hosts));
        }
        if let Some(to) = to {
            delivery = delivery.with_target(to);
        }
        if let Some(letters) = letters {
            delivery = delivery.with_publisher(letters);
        }
        if let Some(replies) = replies {
            delivery = delivery.with_reply(replies);
        }
        Ok(Made { source, delivery, reads, sink_options, hook })
    }

    /// Who takes events for a broker or a sink.
    fn publisher(
        &self,
        spec: &TriggerSpec,
        destination: &Destination,
        options: &BTreeMap<String, String>,
        field: &'static str,
        errors: &mut SpecErrors,
    ) -> Option<Arc<dyn EventPublisher>> {
        match destination {
            Destination::Service(_) => None,
            Destination::Broker(name) => {
                if name.split('/').next() != spec.name.split('/').next() {
                    errors.push(
                        field,
                        format!("broker:{name}"),
                        "must be a broker of the trigger's own namespace",
                    );
                }
                Some(Arc::new(BrokerPublisher { brokers: Arc::clone(&self.brokers), name: name.clone() }))
            }
            Destination::Sink(kind) => {
                let make = self.sinks.lock().get(kind).cloned();
                let Some(make) = make else {
                    let mut kinds: Vec<String> = self.sinks.lock().keys().cloned().collect();
                    kinds.sort_unstable();
                    let known = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
                    errors.push(
                        field,
                        format!("sink:{kind}"),
                        format!("sinks that this platform knows: {known}"),
                    );
                    return None;
                };
                let mut sink = SinkSpec::new(&spec.name, kind, options.clone());
                if field == "options.dead-letter" {
                    sink.place = "options.dead-letter.";
                }
                match make(&sink, self.secrets(spec)) {
                    Ok(publisher) => Some(publisher),
                    Err(wrong) => {
                        errors.0.extend(wrong.0);
                        None
                    }
                }
            }
        }
    }

    /// Applies a declaration while no other change is under way.
    async fn apply_alone(&self, spec: TriggerSpec) -> Result<()> {
        let made = self.make(&spec)?;
        if let Some((broker, start)) = &made.reads {
            if made.hook.is_some() {
                self.brokers.apply(BrokerSpec::new(broker)).await?;
            }
            self.brokers.enrol(&spec.name, broker, *start).await?;
        }
        let name = spec.name.clone();
        self.stop(&name).await;
        let delivery = Arc::new(made.delivery);
        let declared = OfDeclared {
            spec,
            delivery: Arc::clone(&delivery),
            broker: made.reads.map(|(broker, _)| broker),
            sink_options: made.sink_options,
            hook: made.hook,
        };
        self.start(&name, Some(Arc::new(declared)), made.source, delivery)
    }

    /// A broker as it was declared.
    pub(crate) fn broker_spec(&self, name: &str) -> Option<BrokerSpec> {
        self.brokers.spec(name).filter(|spec| !spec.name.contains('~'))
    }

    /// What a webhook takes.
    pub(crate) fn hook(&self, name: &str) -> Option<Arc<Hook>> {
        self.declared(name).ok().and_then(|declared| declared.hook.clone())
    }

    /// Whose events a broker, or the one behind a webhook, takes.
    fn tenant_of(&self, broker: &str) -> Option<TenantKey> {
        match broker.strip_suffix(broker::HOOK) {
            Some(trigger) => self.declared(trigger).ok()?.spec.tenant,
            None => self.broker_spec(broker)?.tenant,
        }
    }

    pub(crate) fn secret_source(&self) -> Option<Arc<dyn SecretSource>> {
        self.config.secrets.clone()
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.config.recorder
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.config.clock.now()
    }

    /// Whoever sends events to this URL, if the sink `webhook` allows it.
    pub(crate) fn webhook(&self, url: &str) -> Result<Arc<dyn EventPublisher>> {
        let make = self.sinks.lock().get("webhook").cloned();
        let Some(make) = make else {
            let message =
                "this platform sends to no URLs: its builder has to allow their hosts by webhook_hosts";
            return Err(Error::new(ErrorKind::Unsupported, "webhook", message));
        };
        let options = BTreeMap::from([("url".to_owned(), url.to_owned())]);
        make(&SinkSpec::new("async/callback", "webhook", options), TriggerSecrets::default())
            .map_err(|errors| Error::new(ErrorKind::InvalidSpec, "webhook", errors.to_string()))
    }

    fn declared(&self, name: &str) -> Result<Arc<OfDeclared>> {
        let running = self.running.lock();
        running
            .get(name)
            .and_then(|running| running.declared.clone())
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "trigger", format!("there is no trigger {name}")))
    }
}

#[async_trait]
impl Triggers for TriggerHost {
    fn check(&self, spec: &TriggerSpec) -> std::result::Result<(), SpecErrors> {
        let made = self.make(spec)?;
        // Only when it is declared: one that is stored may have had its last fire.
        if spec.kind == "cron" && made.source.fires(self.config.clock.now()).next.is_none() {
            let mut errors = SpecErrors::default();
            let schedule = spec.options.get("schedule").map_or("", String::as_str);
            errors.push("options.schedule", schedule, "never fires: no such time is to come");
            return Err(errors);
        }
        Ok(())
    }

    async fn apply(&self, spec: TriggerSpec) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.apply_alone(spec).await
    }

    async fn pause(&self, name: &str) {
        let _changing = self.changing.lock().await;
        self.stop(name).await;
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.stop(name).await;
        self.brokers.forget(name).await?;
        self.brokers.remove(&broker::hook_broker(name)).await?;
        let prefix = format!("trigger/{name}/");
        loop {
            let entries = self.config.store.list(&prefix, None, PAGE).await?;
            let last = entries.len() < PAGE;
            for entry in entries {
                self.config.store.delete(&entry.key, entry.version).await?;
            }
            if last {
                return Ok(());
            }
        }
    }

    fn status(&self) -> Vec<TriggerStatus> {
        let now = self.config.clock.now();
        let running = self.running.lock();
        let with_fires = running.values().map(|running| {
            let mut status = running.status.lock().clone();
            status.fires = running.source.fires(now);
            status.oldest = running.source.oldest();
            if let Some(declared) = &running.declared {
                status.attempts = declared.delivery.attempts_made();
                status.circuit_open = declared.delivery.is_circuit_open();
            }
            status
        });
        with_fires.collect()
    }

    fn retry_now(&self, target: &str) {
        let running = self.running.lock();
        for declared in running.values().filter_map(|running| running.declared.as_ref()) {
            if declared.spec.target == target {
                declared.delivery.retry_now();
            }
        }
    }

    async fn replay(&self, name: &str, from: Timestamp) -> Result<()> {
        let _changing = self.changing.lock().await;
        let declared = self.declared(name)?;
        let Some(broker) = &declared.broker else {
            let message = format!("{name} does not read from a broker: what it delivered is not kept");
            return Err(Error::new(ErrorKind::Unsupported, "replay", message));
        };
        let Some(stopped) = self.stop(name).await else { return Ok(()) };
        let moved = self.brokers.seek(name, broker, Start::At(from)).await;
        // The same events come again: a delivery that remembered them would leave them out.
        let started = match self.make(&declared.spec) {
            Ok(made) => {
                let delivery = Arc::new(made.delivery);
                let fresh = OfDeclared {
                    spec: declared.spec.clone(),
                    delivery: Arc::clone(&delivery),
                    broker: declared.broker.clone(),
                    sink_options: made.sink_options,
                    hook: made.hook,
                };
                self.start(name, Some(Arc::new(fresh)), made.source, delivery)
            }
            Err(_) => self.start(name, Some(Arc::clone(&declared)), stopped.source, stopped.sink),
        };
        moved.and(started)
    }

    async fn redrive(&self, name: &str, redrive: &Redrive) -> Result<Redriven> {
        let declared = self.declared(name)?;
        let refused = |field: &str, value: &str, problem: String| {
            let mut errors = SpecErrors::default();
            errors.push(field, value, problem);
            Error::new(ErrorKind::InvalidSpec, "redrive", errors.to_string()).with_source(errors)
        };
        let filter = match &redrive.filter {
            None => None,
            Some(value) => {
                let filter: Filter = serde_json::from_value(value.clone()).map_err(|error| {
                    refused("filter", &value.to_string(), format!("is not a filter: {error}"))
                })?;
                let invalid = |errors: SpecErrors| {
                    Error::new(ErrorKind::InvalidSpec, "redrive", errors.to_string()).with_source(errors)
                };
                filter.validate().map_err(invalid)?;
                Some(filter)
            }
        };
        let way = match redrive.target.as_deref() {
            None => None,
            Some(text) => match Destination::parse(text) {
                None => return Err(refused("target", text, DESTINATION.to_owned())),
                Some(Destination::Service(service)) => {
                    Some(Way::Service(Arc::from(service), declared.spec.path.clone()))
                }
                Some(other) => {
                    let mut errors = SpecErrors::default();
                    let (spec, options) = (&declared.spec, &declared.sink_options);
                    let publisher = self.publisher(spec, &other, options, "target", &mut errors);
                    match publisher {
                        Some(publisher) if errors.is_empty() => Some(Way::Publisher(publisher)),
                        _ => {
                            let message = errors.to_string();
                            return Err(
                                Error::new(ErrorKind::InvalidSpec, "redrive", message).with_source(errors)
                            );
                        }
                    }
                }
            },
        };
        let prefix = letters::prefix(name);
        let most = redrive.most.unwrap_or(REDRIVEN);
        let mut after = redrive.after.as_deref().map(|id| format!("{prefix}{id}"));
        let until = Instant::now() + REDRIVING;
        let mut redriven = Redriven::default();
        loop {
            let entries = self.config.store.list(&prefix, after.as_deref(), PAGE).await?;
            let last = entries.len() < PAGE;
            for entry in entries {
                if redriven.delivered + redriven.failed >= most || Instant::now() >= until {
                    redriven.next = after.map(|key| key[prefix.len()..].to_owned());
                    return Ok(redriven);
                }
                after = Some(entry.key.clone());
                let Ok(letter) = serde_json::from_slice::<serde_json::Value>(&entry.value) else { continue };
                let id = &entry.key[prefix.len()..];
                if !redrive.letters.is_empty() && !redrive.letters.iter().any(|wanted| wanted == id)
                    || redrive.reason.as_deref().is_some_and(|reason| letter["class"] != reason)
                {
                    continue;
                }
                let event = match letters::event_of(&letter) {
                    Ok(event) => event,
                    Err(error) => {
                        redriven.failed += 1;
                        redriven.last_error = Some(format!("{id}: {}", error.message));
                        continue;
                    }
                };
                if filter.as_ref().is_some_and(|filter| !filter.wants(&event)) {
                    continue;
                }
                let again =
                    tokio::time::timeout_at(until, declared.delivery.again(&event, way.as_ref())).await;
                match again
                    .unwrap_or_else(|_elapsed| Err(format!("{id}: its attempts go on beyond {REDRIVING:?}")))
                {
                    Ok(()) => {
                        self.config.store.delete(&entry.key, entry.version).await?;
                        redriven.delivered += 1;
                    }
                    Err(reason) => {
                        redriven.failed += 1;
                        redriven.last_error = Some(reason);
                    }
                }
            }
            if last {
                return Ok(redriven);
            }
        }
    }

    fn check_broker(&self, spec: &BrokerSpec) -> std::result::Result<(), SpecErrors> {
        broker::check(spec)
    }

    async fn apply_broker(&self, spec: BrokerSpec) -> Result<()> {
        broker::check(&spec)?;
        let _changing = self.changing.lock().await;
        let (name, delivery) = (spec.name.clone(), spec.delivery.clone());
        let before = self.brokers.spec(&name).map(|spec| spec.delivery);
        self.brokers.apply(spec).await?;
        self.sleepers.changed();
        if before.unwrap_or_default() == delivery {
            return Ok(());
        }
        // Its triggers take over what it says of the delivery.
        let readers: Vec<TriggerSpec> = {
            let running = self.running.lock();
            let declared = running.values().filter_map(|running| running.declared.as_ref());
            declared
                .filter(|declared| declared.broker.as_ref() == Some(&name))
                .map(|declared| declared.spec.clone())
                .collect()
        };
        for reader in readers {
            self.apply_alone(reader).await?;
        }
        Ok(())
    }

    async fn remove_broker(&self, name: &str) -> Result<()> {
        let _changing = self.changing.lock().await;
        let reader = {
            let running = self.running.lock();
            let mut reading = running.iter().filter(|(_, running)| {
                running.declared.as_ref().is_some_and(|declared| declared.broker.as_deref() == Some(name))
            });
            reading.next().map(|(reader, _)| reader.clone())
        };
        if let Some(reader) = reader {
            let message = format!("trigger {reader} reads from broker {name}: delete it first");
            return Err(Error::new(ErrorKind::Conflict, "broker", message));
        }
        self.brokers.remove(name).await
    }

    fn brokers(&self) -> Vec<BrokerStatus> {
        let mut brokers = self.brokers.status();
        brokers.retain(|broker| !broker.name.contains('~'));
        let running = self.running.lock();
        for running in running.values() {
            let Some(of) = running.declared.as_ref().and_then(|declared| declared.broker.as_ref()) else {
                continue;
            };
            if let Some(broker) = brokers.iter_mut().find(|broker| broker.name == *of) {
                broker.readers += 1;
            }
        }
        brokers
    }

    async fn accept(&self, broker: &str, events: Vec<Event>) -> Result<()> {
        if let Some(tenant) = self.tenant_of(broker) {
            self.quotas.take(tenant, events.len())?;
        }
        self.brokers.accept(broker, &events).await
    }

    fn quotas(&self) -> Option<&dyn Quotas> {
        Some(&*self.quotas)
    }
}

/// Keeps one source running.
struct Keeper {
    source: Arc<dyn TriggerSource>,
    cx: TriggerCx,
    status: Arc<Mutex<TriggerStatus>>,
    first_delay: Duration,
    longest_delay: Duration,
    metrics: Metrics,
}

/// Aborts a task that nobody waits for any more.
struct AbortOnDrop(JoinHandle<Result<()>>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keeper {
    async fn keep(self) {
        let mut delay = self.first_delay;
        loop {
            let began = Instant::now();
            self.status.lock().running = true;
            let (source, cx) = (Arc::clone(&self.source), self.cx.clone());
            // A task of its own, so that a panic ends the run and not its keeper.
            let mut run = AbortOnDrop(tokio::spawn(async move { source.run(cx).await }));
            let ended = (&mut run.0).await;
            if self.cx.shutdown.is_cancelled() {
                return;
            }
            let error = match ended {
                Ok(Ok(())) => "the source ended by itself".to_owned(),
                Ok(Err(error)) => error.chain(),
                Err(panic) => format!("the source panicked: {panic}"),
            };
            if began.elapsed() >= LASTED {
                delay = self.first_delay;
            }
            tracing::warn!(trigger = %self.cx.name, error, ?delay, "a source failed; it is started again");
            self.metrics.restarts.increment(1);
            {
                let mut status = self.status.lock();
                status.running = false;
                status.restarts += 1;
                status.last_error = Some(error);
            }
            tokio::select! {
                biased;
                () = self.cx.shutdown.cancelled() => return,
                () = tokio::time::sleep(delay) => {}
            }
            delay = delay.saturating_mul(2).min(self.longest_delay);
        }
    }
}
