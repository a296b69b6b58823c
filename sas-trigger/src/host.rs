//! Runs sources, starts them again when they fail, and joins them in the end.

use std::{
    collections::{BTreeMap, HashMap},
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
    Clock, Error, ErrorKind, EventPublisher, EventSink, Invoker, Recorder, Result, SpecErrors, Store,
    SystemClock, TriggerCx, TriggerSource, TriggerSpec, TriggerStatus, Triggers,
};
use tokio::{sync::Semaphore, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    declared,
    delivery::{Delivery, DeliveryConfig},
    metrics::Metrics,
};

/// A run of this length was a good one: after it, the back-off starts from the beginning.
const LASTED: Duration = Duration::from_secs(60);
/// Entries of a trigger's memory that are removed in one go.
const PAGE: usize = 100;

/// Makes a source of a declaration, or says what is wrong with it; fields as in [`TriggerSpec`].
pub type SourceFactory = dyn Fn(&TriggerSpec) -> Result<Arc<dyn TriggerSource>, SpecErrors> + Send + Sync;

/// What a host works with.
#[derive(Clone)]
pub struct TriggerHostConfig {
    /// Who calls the services.
    pub invoker: Arc<dyn Invoker>,
    /// What must outlive a restart.
    pub store: Arc<dyn Store>,
    /// Wall time.
    pub clock: Arc<dyn Clock>,
    /// Events under way at once, over all triggers.
    pub slots: usize,
    /// The first wait before a failed source is started again; it doubles.
    pub restart_delay: Duration,
    /// The longest such wait.
    pub longest_restart_delay: Duration,
    /// Where metrics go.
    pub recorder: Recorder,
    /// The way out of the platform for events that can't be delivered, for triggers with `dead-letter: publish`.
    pub publisher: Option<Arc<dyn EventPublisher>>,
}

impl TriggerHostConfig {
    /// On the system's clock, with a thousand events under way at most.
    pub fn new(invoker: Arc<dyn Invoker>, store: Arc<dyn Store>) -> Self {
        Self {
            invoker,
            store,
            clock: Arc::new(SystemClock),
            slots: 1000,
            restart_delay: Duration::from_millis(100),
            longest_restart_delay: Duration::from_secs(30),
            recorder: Recorder::default(),
            publisher: None,
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
/// Knows the kinds `cron` and `timer`; [`TriggerHost::register_kind`] adds others.
pub struct TriggerHost {
    config: TriggerHostConfig,
    slots: Arc<Semaphore>,
    kinds: Mutex<HashMap<String, Arc<SourceFactory>>>,
    running: Mutex<BTreeMap<String, Running>>,
    /// Declarations are changed one at a time.
    changing: tokio::sync::Mutex<()>,
    shutdown: CancellationToken,
    metrics: Metrics,
}

impl fmt::Debug for TriggerHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TriggerHost").field("triggers", &self.running.lock().len()).finish_non_exhaustive()
    }
}

struct Running {
    source: Arc<dyn TriggerSource>,
    /// The service that gets the events of a declared trigger.
    target: Option<String>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    status: Arc<Mutex<TriggerStatus>>,
}

impl TriggerHost {
    /// A host that runs nothing yet.
    pub fn new(config: TriggerHostConfig) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(config.slots.clamp(1, Semaphore::MAX_PERMITS)));
        let metrics = Metrics::new(&config.recorder);
        let recorder = config.recorder.clone();
        let host = Self {
            config,
            slots,
            kinds: Mutex::default(),
            running: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            shutdown: CancellationToken::new(),
            metrics,
        };
        let cron_recorder = recorder.clone();
        host.register_kind("cron", move |spec| declared::cron(spec, &cron_recorder));
        host.register_kind("timer", move |spec| declared::timer(spec, &recorder));
        Arc::new(host)
    }

    /// Makes declarations of `kind` known.
    pub fn register_kind(
        &self,
        kind: impl Into<String>,
        make: impl Fn(&TriggerSpec) -> Result<Arc<dyn TriggerSource>, SpecErrors> + Send + Sync + 'static,
    ) {
        self.kinds.lock().insert(kind.into(), Arc::new(make));
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
        self.replace(name, None, source, sink).await
    }

    async fn replace(
        &self,
        name: &str,
        target: Option<String>,
        source: Arc<dyn TriggerSource>,
        sink: Arc<dyn EventSink>,
    ) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.stop(name).await;
        self.start(name, target, source, sink)
    }

    /// What waits upstream of the declared triggers, by the service (`namespace/name`) that gets their events: the sum
    /// of what [`TriggerSource::backlog`] says, for the scaler. A service with a source that fails, panics or does not
    /// answer within `patience` is left out, since a part of the sum is no measurement; so is one whose sources know of
    /// no backlog.
    ///
    /// **Cancel safety:** dropping the future drops the questions.
    pub async fn backlogs(&self, patience: Duration) -> BTreeMap<String, u64> {
        let asked: Vec<(String, Arc<dyn TriggerSource>)> = self
            .running
            .lock()
            .values()
            .filter_map(|running| Some((running.target.clone()?, Arc::clone(&running.source))))
            .collect();
        let mut answers: FuturesUnordered<_> = asked
            .into_iter()
            .map(|(target, source)| async move {
                let asked = AssertUnwindSafe(async { source.backlog().await }).catch_unwind();
                let answer = match tokio::time::timeout(patience, asked).await {
                    Ok(Ok(Ok(known))) => Ok(known),
                    Ok(Ok(Err(error))) => Err(error.chain()),
                    Ok(Err(_)) => Err("the source panicked".to_owned()),
                    Err(_) => Err(format!("no answer within {patience:?}")),
                };
                (target, answer)
            })
            .collect();
        let mut sums: BTreeMap<String, Option<u64>> = BTreeMap::new();
        while let Some((target, answer)) = answers.next().await {
            match answer {
                Ok(None) => {}
                Ok(Some(waiting)) => {
                    let sum = sums.entry(target).or_insert(Some(0));
                    *sum = sum.map(|sum| sum.saturating_add(waiting));
                }
                Err(error) => {
                    tracing::warn!(service = %target, error, "the backlog of a trigger is not known");
                    sums.insert(target, None);
                }
            }
        }
        sums.into_iter().filter_map(|(target, sum)| Some((target, sum?))).collect()
    }

    /// A delivery to a service that shares the host's slots.
    pub fn delivery(&self, config: DeliveryConfig) -> Delivery {
        let delivery = Delivery::new(
            config,
            Arc::clone(&self.config.invoker),
            Arc::clone(&self.config.store),
            Arc::clone(&self.slots),
        )
        .with_clock(Arc::clone(&self.config.clock))
        .with_recorder(&self.config.recorder);
        match &self.config.publisher {
            Some(publisher) => delivery.with_publisher(Arc::clone(publisher)),
            None => delivery,
        }
    }

    fn start(
        &self,
        name: &str,
        target: Option<String>,
        source: Arc<dyn TriggerSource>,
        sink: Arc<dyn EventSink>,
    ) -> Result<()> {
        if self.shutdown.is_cancelled() {
            return Err(Error::new(ErrorKind::Unavailable, "trigger", "the platform is shutting down"));
        }
        let stop = self.shutdown.child_token();
        let status = Arc::new(Mutex::new(TriggerStatus::new(name, source.kind())));
        let cx = TriggerCx::new(
            name,
            sink,
            Arc::clone(&self.config.store),
            Arc::clone(&self.config.clock),
            stop.clone(),
        );
        let keeper = Keeper {
            source: Arc::clone(&source),
            cx,
            status: Arc::clone(&status),
            first_delay: self.config.restart_delay,
            longest_delay: self.config.longest_restart_delay,
            metrics: self.metrics.clone(),
        };
        let task = tokio::spawn(keeper.keep());
        self.running.lock().insert(name.to_owned(), Running { source, target, stop, task, status });
        Ok(())
    }

    async fn stop(&self, name: &str) {
        let running = self.running.lock().remove(name);
        if let Some(running) = running {
            running.stop.cancel();
            // Its only failure is a panic of the keeper's own, which has nothing left to do then.
            let _ = running.task.await;
        }
    }

    /// Stops all sources and waits for them until `deadline`; those that do not end by then are dropped, which is like a
    /// crash of the host to them. Idempotent. The names of those that were dropped.
    pub async fn shutdown(&self, deadline: Instant) -> Vec<String> {
        self.shutdown.cancel();
        let running = std::mem::take(&mut *self.running.lock());
        let mut late = Vec::new();
        for (name, mut running) in running {
            if tokio::time::timeout_at(deadline, &mut running.task).await.is_err() {
                running.task.abort();
                let _ = running.task.await;
                late.push(name);
            }
        }
        self.slots.close();
        late
    }

    fn make(&self, spec: &TriggerSpec) -> Result<(Arc<dyn TriggerSource>, DeliveryConfig), SpecErrors> {
        let mut errors = SpecErrors::default();
        let (own, delivery) = declared::split(spec, &mut errors);
        let make = self.kinds.lock().get(&spec.kind).cloned();
        let made = match make {
            Some(make) => match make(&own) {
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
        errors.into_result()?;
        match made {
            Some(source) => Ok((source, delivery)),
            None => Err(SpecErrors::default()),
        }
    }
}

#[async_trait]
impl Triggers for TriggerHost {
    fn check(&self, spec: &TriggerSpec) -> std::result::Result<(), SpecErrors> {
        let (source, _) = self.make(spec)?;
        // Only when it is declared: one that is stored may have had its last fire.
        if spec.kind == "cron" && source.fires(self.config.clock.now()).next.is_none() {
            let mut errors = SpecErrors::default();
            let schedule = spec.options.get("schedule").map_or("", String::as_str);
            errors.push("options.schedule", schedule, "never fires: no such time is to come");
            return Err(errors);
        }
        Ok(())
    }

    async fn apply(&self, spec: TriggerSpec) -> Result<()> {
        let (source, delivery) = self.make(&spec)?;
        let sink = Arc::new(self.delivery(delivery));
        self.replace(&spec.name, Some(spec.target), source, sink).await
    }

    async fn pause(&self, name: &str) {
        let _changing = self.changing.lock().await;
        self.stop(name).await;
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let _changing = self.changing.lock().await;
        self.stop(name).await;
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
            status
        });
        with_fires.collect()
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
