//! Where events come from: sources, triggers that are declared, and brokers.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use crate::{
    Clock, Error, ErrorKind, Event, EventSink, Hosts, Quotas, Result, SecretSource, SpecErrors, Store,
    TenantKey, Timestamp,
};

/// What a trigger source gets to run with.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TriggerCx {
    /// A name that is unique among the platform's triggers and stable over restarts: its part of the store.
    pub name: Arc<str>,
    /// The sink that the source delivers its events to.
    pub sink: Arc<dyn EventSink>,
    /// What must outlive a restart, such as the last fire time. Keys start with `trigger/<name>/`.
    pub store: Arc<dyn Store>,
    /// The clock that the source reads.
    pub clock: Arc<dyn Clock>,
    /// Resolves the references to secrets in the trigger's options. Ask before each connection, so that a secret that was
    /// replaced counts without a restart.
    pub secrets: TriggerSecrets,
    /// The hosts that share the store; `None`: this is the only one. What is to be begun by one host only is claimed first,
    /// by a write that [`commit_as_owner`](crate::commit_as_owner) guards.
    pub hosts: Option<Arc<dyn Hosts>>,
    /// The source ends its run in order when this is cancelled.
    pub shutdown: CancellationToken,
}

impl TriggerCx {
    /// The context of a run of a source.
    pub fn new(
        name: impl Into<Arc<str>>,
        sink: Arc<dyn EventSink>,
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        shutdown: CancellationToken,
    ) -> Self {
        let (name, secrets) = (name.into(), TriggerSecrets::default());
        Self { name, sink, store, clock, secrets, hosts: None, shutdown }
    }

    /// As one of several hosts.
    #[must_use]
    pub fn with_hosts(mut self, hosts: Arc<dyn Hosts>) -> Self {
        self.hosts = Some(hosts);
        self
    }

    /// With a way to the secrets that options refer to.
    #[must_use]
    pub fn with_secrets(mut self, secrets: TriggerSecrets) -> Self {
        self.secrets = secrets;
        self
    }
}

/// The secrets that one trigger, or what it sends to, may read. By convention an option whose name ends in `-secret`
/// holds a reference, in the terms of the platform's [`SecretSource`].
#[derive(Clone, Debug, Default)]
pub struct TriggerSecrets {
    source: Option<Arc<dyn SecretSource>>,
    tenant: Option<TenantKey>,
}

impl TriggerSecrets {
    /// The secrets of `tenant` in `source`.
    pub fn new(source: Option<Arc<dyn SecretSource>>, tenant: Option<TenantKey>) -> Self {
        Self { source, tenant }
    }

    /// The value behind `reference`, as it is now.
    ///
    /// # Errors
    /// `Unsupported` where the platform has no source of secrets, or the trigger belongs to no tenant; else as
    /// [`SecretSource::resolve`].
    pub async fn get(&self, reference: &str) -> Result<Bytes> {
        let (Some(source), Some(tenant)) = (&self.source, self.tenant) else {
            let missing = if self.source.is_none() {
                "this platform has no source of secrets: give its builder one by `secrets`"
            } else {
                "a trigger without a tenant has no secrets: let a control plane declare it, which knows whose it is"
            };
            return Err(Error::new(ErrorKind::Unsupported, "secret", format!("{reference}: {missing}")));
        };
        source.resolve(reference, tenant).await
    }

    /// The same as text, without the line's end that a file of one secret has.
    ///
    /// # Errors
    /// As [`TriggerSecrets::get`]; `InvalidSpec` where it is no text.
    pub async fn text(&self, reference: &str) -> Result<String> {
        let secret = self.get(reference).await?;
        match std::str::from_utf8(&secret) {
            Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
            Err(_) => {
                let message = format!("{reference}: must be text in UTF-8");
                Err(Error::new(ErrorKind::InvalidSpec, "secret", message))
            }
        }
    }
}

/// Where events come from: a timer, a queue, a topic.
///
/// The trigger host runs it. It is given to the builder's `trigger_kind`, or to `Platform::triggers`; `examples/custom_trigger.rs`
/// has one.
///
/// # Contract
/// - Takes a slot from [`EventSink::ready`] before it pulls from upstream, so that back-pressure reaches it.
/// - Acknowledges upstream only after [`EventSink::deliver`] returned `Ok`: at least once.
/// - Ends soon after `shutdown`, with what is under way acknowledged or left for the next run.
#[async_trait]
pub trait TriggerSource: fmt::Debug + Send + Sync + 'static {
    /// What it is, such as `cron`.
    fn kind(&self) -> &'static str;

    /// Owns its loop until `shutdown`.
    ///
    /// **Cancel safety:** dropping the future is like a crash of the host: events may come again, none is lost.
    ///
    /// # Errors
    /// When it can't go on; the platform starts it again with back-off.
    async fn run(&self, cx: TriggerCx) -> Result<()>;

    /// What waits upstream, for the scaler; `None` when it can't be known.
    ///
    /// # Errors
    /// When upstream does not answer.
    async fn backlog(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Since when the oldest event waits upstream, as far as the source knows without asking; `None`: nothing waits, or it
    /// can't be known.
    fn oldest(&self) -> Option<Timestamp> {
        None
    }

    /// Whether the platform calls [`TriggerSource::wake`] at the times that it names, instead of [`TriggerSource::run`].
    /// Such a source has no task while it sleeps: the platform keeps the times of all of them in one timer. For what
    /// follows a schedule, and for what polls seldom. Constant.
    fn sleeps(&self) -> bool {
        false
    }

    /// Does what is due now, and returns when it wants to be woken again; `None`: never. Called at the start, and then at
    /// the time that the last call named, or a little earlier: never twice at once. `run` of such a source does the same
    /// in a loop, for those who run it themselves.
    ///
    /// **Cancel safety:** as [`TriggerSource::run`].
    ///
    /// # Errors
    /// When it can't go on; the platform wakes it again after a back-off. `Unsupported` unless it sleeps.
    async fn wake(&self, cx: &TriggerCx) -> Result<Option<Timestamp>> {
        let _ = cx;
        Err(Error::unsupported("waking a source that does not sleep"))
    }

    /// When it fires after `now`, and when it fired last, for sources that follow a schedule.
    fn fires(&self, now: Timestamp) -> Fires {
        let _ = now;
        Fires::default()
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl<T: TriggerSource + ?Sized> TriggerSource for Arc<T> {
    fn kind(&self) -> &'static str {
        (**self).kind()
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        (**self).run(cx).await
    }

    async fn backlog(&self) -> Result<Option<u64>> {
        (**self).backlog().await
    }

    fn oldest(&self) -> Option<Timestamp> {
        (**self).oldest()
    }

    fn sleeps(&self) -> bool {
        (**self).sleeps()
    }

    async fn wake(&self, cx: &TriggerCx) -> Result<Option<Timestamp>> {
        (**self).wake(cx).await
    }

    fn fires(&self, now: Timestamp) -> Fires {
        (**self).fires(now)
    }
}

/// When a schedule fires. Jitter comes on top.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fires {
    /// The last fire that was made since the source runs; `None` before the first.
    pub last: Option<Timestamp>,
    /// The next one; `None` when there is none any more, or when it follows no schedule.
    pub next: Option<Timestamp>,
}

impl Fires {
    /// The last fire and the next one, as far as they are known.
    pub const fn new(last: Option<Timestamp>, next: Option<Timestamp>) -> Self {
        Self { last, next }
    }
}

/// A trigger as it is declared: what makes events, and where they go.
///
/// ```
/// use sas_core::TriggerSpec;
/// let spec = TriggerSpec::new("default/nightly", "cron", "default/report")
///     .with_option("schedule", "0 2 * * *")
///     .with_option("timezone", "Europe/Berlin");
/// assert_eq!(spec.options["schedule"], "0 2 * * *");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TriggerSpec {
    /// `namespace/name`, unique among the platform's triggers.
    pub name: String,
    /// Which kind of source, such as `cron` or `timer`.
    pub kind: String,
    /// What gets the events: a service as `namespace/service`, a broker as `broker:namespace/name`, or a sink of a
    /// registered kind as `sink:kind`, such as `sink:webhook`, whose options are those that begin with `sink.`.
    pub target: String,
    /// The path of the service that gets them, with its query.
    #[serde(default = "root_path")]
    pub path: String,
    /// The tenant that causes the events, and pays for the calls; `None`: the owner of the target.
    #[serde(default)]
    pub tenant: Option<TenantKey>,
    /// What the source's kind asks for, such as `schedule` or `misfire`, which it validates; beside it, what the delivery
    /// is told: `filter`, `transform`, `retry`, `dead-letter` and the others that `sas-trigger` documents.
    #[serde(default)]
    pub options: BTreeMap<String, String>,
    /// Whether it is declared and does not run. What it remembers stays, and what waits upstream goes on waiting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Extension attributes that every event gets.
    #[serde(default)]
    pub extensions: BTreeMap<String, String>,
    /// The media type of `data`.
    #[serde(default)]
    pub content_type: Option<String>,
    /// The data of every event, for sources that have none of their own.
    #[serde(default)]
    pub data: Vec<u8>,
}

fn root_path() -> String {
    "/".to_owned()
}

impl TriggerSpec {
    /// A trigger of `kind` that sends to `/` of `target`.
    pub fn new(name: impl Into<String>, kind: impl Into<String>, target: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            target: target.into(),
            path: root_path(),
            tenant: None,
            options: BTreeMap::new(),
            paused: false,
            extensions: BTreeMap::new(),
            content_type: None,
            data: Vec::new(),
        }
    }

    /// With an option of its kind.
    #[must_use]
    pub fn with_option(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.options.insert(name.into(), value.into());
        self
    }
}

/// How a trigger is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TriggerStatus {
    /// The name of the trigger, as `namespace/name`.
    pub name: String,
    /// The kind of the source, by which its factory is found.
    pub kind: String,
    /// Whether its source runs now; false while it waits to be started again, or is paused.
    pub running: bool,
    /// Whether it was paused.
    pub paused: bool,
    /// Since when the oldest event waits upstream, where that is known.
    #[serde(skip)]
    pub oldest: Option<Timestamp>,
    /// Attempts to deliver that were made since the platform runs.
    pub attempts: u64,
    /// Whether its target is taken to be down, so that events wait upstream until it answers again.
    pub circuit_open: bool,
    /// How often its source failed and was started again.
    pub restarts: u64,
    /// The error of the last failure, until a run lasts.
    pub last_error: Option<String>,
    /// When it fired last, and fires next, where it follows a schedule.
    #[serde(skip)]
    pub fires: Fires,
}

impl TriggerStatus {
    /// A trigger that runs and never failed.
    pub fn new(name: impl Into<String>, kind: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            kind: kind.into(),
            running: true,
            paused: false,
            oldest: None,
            attempts: 0,
            circuit_open: false,
            restarts: 0,
            last_error: None,
            fires: Fires::default(),
        }
    }
}

/// Makes sources from their declarations and runs them; `sas-trigger`'s host is one.
#[async_trait]
pub trait Triggers: fmt::Debug + Send + Sync + 'static {
    /// Checks a declaration without running it.
    ///
    /// # Errors
    /// All mistakes at once; fields are named as in [`TriggerSpec`], such as `options.schedule`.
    fn check(&self, spec: &TriggerSpec) -> std::result::Result<(), SpecErrors>;

    /// Runs the trigger; one of the same name is stopped first, and what it remembers stays.
    ///
    /// **Cancel safety:** the old one may have been stopped without the new one running.
    ///
    /// # Errors
    /// `InvalidSpec` as [`Triggers::check`]; `Unavailable` when the platform shuts down.
    async fn apply(&self, spec: TriggerSpec) -> Result<()>;

    /// Stops the trigger and keeps what it remembers, so that [`Triggers::apply`] goes on from there. Idempotent.
    async fn pause(&self, name: &str);

    /// Stops the trigger and forgets what it remembers. Idempotent.
    ///
    /// # Errors
    /// `Unavailable` when the store fails; the trigger is stopped all the same.
    async fn remove(&self, name: &str) -> Result<()>;

    /// All triggers, by name.
    fn status(&self) -> Vec<TriggerStatus>;

    /// Something else answers at the service `target` (`namespace/name`) from now on: triggers that leave it alone, since
    /// it failed them many times in a row, try it at once. Control calls it after each change of the service's routes; it
    /// does not block.
    fn retry_now(&self, target: &str) {
        let _ = target;
    }

    /// Who holds tenants to their quotas of events; `None`: nobody does, and quotas of these are refused.
    fn quotas(&self) -> Option<&dyn Quotas> {
        None
    }

    /// Starts a trigger that reads from a broker again from the first event that was accepted at `from` or later.
    ///
    /// # Errors
    /// `NotFound` when there is no such trigger; `Unsupported` when it does not read from what can be read again.
    async fn replay(&self, name: &str, from: Timestamp) -> Result<()> {
        let _ = (name, from);
        Err(Error::unsupported("replay"))
    }

    /// Delivers dead letters of a trigger again, oldest first, and forgets those that were delivered. A letter that fails
    /// again stays as it is.
    ///
    /// **Cancel safety:** a letter that was delivered may stay, and be delivered again next time.
    ///
    /// # Errors
    /// `NotFound` when there is no such trigger; `InvalidSpec` for a target or a filter that is none.
    async fn redrive(&self, name: &str, redrive: &Redrive) -> Result<Redriven> {
        let _ = (name, redrive);
        Err(Error::unsupported("redrive"))
    }

    /// Makes a broker, or changes one. Events that it holds stay.
    ///
    /// # Errors
    /// `InvalidSpec` with the fields of [`BrokerSpec`].
    async fn apply_broker(&self, spec: BrokerSpec) -> Result<()> {
        let _ = spec;
        Err(Error::unsupported("brokers"))
    }

    /// Checks a declaration of a broker.
    ///
    /// # Errors
    /// All mistakes at once; fields are named as in [`BrokerSpec`].
    fn check_broker(&self, spec: &BrokerSpec) -> std::result::Result<(), SpecErrors> {
        let mut errors = SpecErrors::default();
        errors.push("name", &spec.name, "this platform was composed without brokers");
        Err(errors)
    }

    /// Removes a broker with the events that it holds. Idempotent.
    ///
    /// # Errors
    /// `Conflict` while triggers read from it; `Unavailable` when the store fails.
    async fn remove_broker(&self, name: &str) -> Result<()> {
        let _ = name;
        Err(Error::unsupported("brokers"))
    }

    /// All brokers, by name.
    fn brokers(&self) -> Vec<BrokerStatus> {
        Vec::new()
    }

    /// Gives events to a broker, in their order. They are durable when it returns.
    ///
    /// **Cancel safety:** they may be accepted.
    ///
    /// # Errors
    /// `NotFound` when there is no such broker; `Exhausted` when it is full; `Unavailable` when the store fails, after
    /// which they may be accepted or not.
    async fn accept(&self, broker: &str, events: Vec<Event>) -> Result<()> {
        let _ = (broker, events);
        Err(Error::unsupported("brokers"))
    }
}

/// Which dead letters are delivered again, and where to.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "camelCase")]
#[non_exhaustive]
pub struct Redrive {
    /// Only these, by the ids of the letters (`letter` where they are listed); empty: all that the rest lets through.
    pub letters: Vec<String>,
    /// Only those whose class of reason is this, such as `status-503` or `timeout`.
    pub reason: Option<String>,
    /// Only those that this filter wants, in the form of a trigger's filter.
    pub filter: Option<serde_json::Value>,
    /// Where to, in the form of [`TriggerSpec::target`]; `None`: to the trigger's own target.
    pub target: Option<String>,
    /// At most so many; `None`: 1,000.
    pub most: Option<usize>,
    /// Only those after this letter: [`Redriven::next`] of the request before.
    pub after: Option<String>,
}

/// What became of dead letters that were delivered again.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize)]
#[non_exhaustive]
pub struct Redriven {
    /// Delivered, and forgotten as letters.
    pub delivered: usize,
    /// Failed again, and kept.
    pub failed: usize,
    /// The reason of the last failure.
    pub last_error: Option<String>,
    /// The last letter that was looked at, when there may be more: give it as [`Redrive::after`]. One request goes on for ten
    /// seconds at most; a letter whose attempts do not end by then has failed and is kept.
    pub next: Option<String>,
}

/// A broker as it is declared: a durable log of events that triggers read, each at its own pace.
///
/// ```
/// let spec = sas_core::BrokerSpec::new("default/orders");
/// assert_eq!(spec.retention, std::time::Duration::from_secs(24 * 3600));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct BrokerSpec {
    /// `namespace/name`, unique among the platform's brokers.
    pub name: String,
    /// How long events are kept, for replay. Those that a trigger has not taken yet are kept longer.
    #[serde(default = "one_day")]
    pub retention: Duration,
    /// Most events that it holds; more are refused, so that those who send wait.
    #[serde(default = "one_million")]
    pub most_events: u64,
    /// Options of the delivery of its triggers that give none themselves, such as `retry` or `dead-letter`.
    #[serde(default)]
    pub delivery: BTreeMap<String, String>,
    /// Who may send events over the platform's ingress.
    #[serde(default)]
    pub ingress: BrokerIngress,
    /// The tenant that it belongs to.
    #[serde(default)]
    pub tenant: Option<TenantKey>,
}

const fn one_day() -> Duration {
    Duration::from_secs(24 * 3600)
}

const fn one_million() -> u64 {
    1_000_000
}

impl BrokerSpec {
    /// A broker that keeps events for a day, a million at most, and takes none over the ingress.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            retention: one_day(),
            most_events: one_million(),
            delivery: BTreeMap::new(),
            ingress: BrokerIngress::default(),
            tenant: None,
        }
    }
}

/// Who may send events to a broker over the platform's ingress. The admin API and the program itself always may.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum BrokerIngress {
    /// Nobody is told.
    #[default]
    Closed,
    /// Whoever has the bearer token that this reference to a secret stands for.
    Token(String),
    /// Everybody who reaches the ingress.
    Open,
}

/// How a broker is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BrokerStatus {
    /// The name of the trigger, as `namespace/name`.
    pub name: String,
    /// Events that it holds, those among them that every trigger has taken.
    pub held: u64,
    /// Events that were ever accepted.
    pub accepted: u64,
    /// Triggers that read from it.
    pub readers: usize,
}

impl BrokerStatus {
    /// Of a broker that holds nothing.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), held: 0, accepted: 0, readers: 0 }
    }
}

/// A way out of the platform as a trigger declares it: the kind of sink after `sink:` and its options.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SinkSpec {
    /// The trigger that sends to it.
    pub trigger: String,
    /// Which kind, such as `webhook` or `kafka`.
    pub kind: String,
    /// The options that began with `sink.`, or with `dead-letter.`, without that. The kind validates them.
    pub options: BTreeMap<String, String>,
    /// Where in the declaration its options stand, for errors: `options.sink.` or `options.dead-letter.`.
    pub place: &'static str,
}

impl SinkSpec {
    /// A sink of `kind` for a trigger.
    pub fn new(
        trigger: impl Into<String>,
        kind: impl Into<String>,
        options: BTreeMap<String, String>,
    ) -> Self {
        Self { trigger: trigger.into(), kind: kind.into(), options, place: "options.sink." }
    }
}
