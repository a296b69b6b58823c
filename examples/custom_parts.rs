//! Every part of a platform replaced: each by a thin wrapper that counts how often the platform used it.
//!
//! Ends with the counts; a part that was not used is an error. Start from the wrapper of the part that differs for you:
//! it shows the trait, and the line of `main` that puts it in.

#![allow(clippy::print_stdout, reason = "this program talks to a terminal")]

use std::{
    any::Any,
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sas::{
    async_trait,
    bytes::Bytes,
    control::{
        AdmissionHook, AdmissionRequest, AuditRecord, AuditSink, DecisionLog, LogBuffer, Meter, PackageDir,
        Refusal,
    },
    core::{
        AppendLimits, Artifact, Blob, BlobStore, BrokerSpec, Capabilities, Claim, Clock, Commit, Decision,
        DecisionQuery, DecisionRecord, DecisionSink, DeliverySpan, Deployed, Entry, EnvValue, Event,
        EventLog, Instance, InstanceId, InstanceView, Lease, Load, LogEntry, LogQuery, LogRecord, LogSink,
        MemoryStore, MeterPhase, MeterSink, Metered, ParentSpan, Pool, PoolBudget, PoolDecision, PoolTotals,
        Quotas, RequestSpan, RequestUsage, Result, RevisionKey, RevisionName, RevisionSpec, RevisionStatus,
        Route, RouteChange, RouteError, RouteQuery, Router, Runtime, ScaleInput, Scaler, ScalingSpec,
        SecretSource, SizeBounds, SpecErrors, StartRequest, Stem, StemRequest, StemView, StepSpan, Store,
        StoreLimits, StoreLog, SystemClock, Timestamp, TraceSink, TriggerCx, TriggerSource, TriggerSpec,
        UsageQuery, UsageScope, Version, Waiting, Watched,
    },
    http,
    inline::InlineRuntime,
    pool::InstancePool,
    prelude::*,
    router::RouteTable,
};
use tokio::time::Instant;

/// How often a part was used.
type Uses = Arc<AtomicU64>;

/// Any part, and a count of its uses.
#[derive(Debug)]
struct Counted<T: ?Sized> {
    uses: Uses,
    part: T,
}

impl<T> Counted<T> {
    fn new(uses: &Uses, part: T) -> Self {
        Self { uses: Arc::clone(uses), part }
    }

    /// The part, used once more.
    fn used(&self) -> &T {
        self.uses.fetch_add(1, Ordering::Relaxed);
        &self.part
    }
}

#[async_trait]
impl Pool for Counted<Arc<InstancePool>> {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        self.part.register(deployed)
    }
    fn admits(&self, spec: &RevisionSpec, runtime: &dyn Runtime) -> Result<(), SpecErrors> {
        self.part.admits(spec, runtime)
    }
    fn unregister(&self, revision: RevisionKey) {
        self.part.unregister(revision);
    }
    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        self.part.deployed(revision)
    }
    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        self.used().try_claim(claim)
    }
    fn claim(&self, claim: &Claim, cx: &Cx) -> Waiting {
        self.used().claim(claim, cx)
    }
    fn set_desired(&self, revision: RevisionKey, desired: u32) {
        self.part.set_desired(revision, desired);
    }
    fn set_desired_all(&self, decisions: &[(RevisionKey, u32)]) {
        self.part.set_desired_all(decisions);
    }
    fn set_bounds(&self, revision: RevisionKey, bounds: Option<SizeBounds>) {
        self.part.set_bounds(revision, bounds);
    }
    fn is_full(&self, revision: RevisionKey) -> bool {
        self.part.is_full(revision)
    }
    fn visit_short(&self, shard: usize, visit: &mut dyn FnMut(&Arc<Deployed>)) {
        self.part.visit_short(shard, visit);
    }
    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        self.part.instances(revision)
    }
    fn status(&self, revision: RevisionKey) -> Option<RevisionStatus> {
        self.part.status(revision)
    }
    fn recycle(&self, revision: RevisionKey, instance: InstanceId, grace: Duration) -> bool {
        self.part.recycle(revision, instance, grace)
    }
    fn take_load(&self, shard: usize, visit: &mut dyn FnMut(&Load, &Arc<Deployed>)) {
        self.part.take_load(shard, visit);
    }
    fn shards(&self) -> usize {
        self.part.shards()
    }
    fn stems(&self) -> Vec<StemView> {
        self.part.stems()
    }
    fn totals(&self) -> PoolTotals {
        self.part.totals()
    }
    fn instance(&self, revision: RevisionKey, id: InstanceId) -> Option<Arc<dyn Instance>> {
        self.part.instance(revision, id)
    }
    fn take_decisions(&self, shard: usize, visit: &mut dyn FnMut(&PoolDecision, &Arc<Deployed>)) {
        self.part.take_decisions(shard, visit);
    }
    fn quotas(&self) -> Option<&dyn Quotas> {
        self.part.quotas()
    }
    fn set_budget(&self, budget: PoolBudget) -> Result<()> {
        self.part.set_budget(budget)
    }
    async fn drain(&self, revision: RevisionKey, grace: Duration) {
        self.part.drain(revision, grace).await;
    }
    async fn shutdown(&self, deadline: Instant) {
        self.part.shutdown(deadline).await;
    }
}

impl Router for Counted<RouteTable> {
    fn route(&self, query: &RouteQuery<'_>) -> std::result::Result<Route, RouteError> {
        self.used().route(query)
    }
    fn apply(&self, changes: Vec<RouteChange>) -> Result<()> {
        self.part.apply(changes)
    }
}

#[async_trait]
impl Store for Counted<MemoryStore> {
    fn limits(&self) -> StoreLimits {
        self.part.limits()
    }
    async fn version(&self) -> Result<Version> {
        self.part.version().await
    }
    async fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.part.get(key).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<Entry>> {
        self.part.list(prefix, after, limit).await
    }
    async fn commit(&self, commit: Commit) -> Result<Version> {
        self.used().commit(commit).await
    }
    async fn watch(&self, prefix: &str, since: Version) -> Result<Watched> {
        self.part.watch(prefix, since).await
    }
}

#[async_trait]
impl EventLog for Counted<StoreLog> {
    fn limits(&self) -> AppendLimits {
        self.part.limits()
    }
    async fn append(&self, stream: &str, expected: Option<u64>, records: Vec<Bytes>) -> Result<u64> {
        self.used().append(stream, expected, records).await
    }
    async fn read(&self, stream: &str, after: u64, limit: usize) -> Result<Vec<LogEntry>> {
        self.part.read(stream, after, limit).await
    }
    async fn last(&self, stream: &str) -> Result<u64> {
        self.part.last(stream).await
    }
    async fn trim(&self, stream: &str, position: u64) -> Result<()> {
        self.part.trim(stream, position).await
    }
}

#[async_trait]
impl BlobStore for Counted<PackageDir> {
    async fn put(&self, source: &Source) -> Result<Blob> {
        self.part.put(source).await
    }
    async fn get(&self, digest: &str) -> Result<Option<Source>> {
        self.part.get(digest).await
    }
    async fn delete(&self, digest: &str) -> Result<()> {
        self.part.delete(digest).await
    }
    async fn list(&self) -> Result<Vec<String>> {
        // The functions here come as closures, so that no package is put; what is left over is looked for at the start.
        self.used().list().await
    }
    async fn exists(&self, digest: &str) -> Result<bool> {
        self.part.exists(digest).await
    }
    async fn owner(&self) -> Result<Option<String>> {
        self.part.owner().await
    }
    async fn set_owner(&self, owner: &str) -> Result<()> {
        self.part.set_owner(owner).await
    }
    async fn tidy(&self) -> Result<()> {
        self.part.tidy().await
    }
}

#[async_trait]
impl Runtime for Counted<InlineRuntime> {
    fn name(&self) -> &'static str {
        self.part.name()
    }
    fn capabilities(&self) -> Capabilities {
        self.part.capabilities()
    }
    fn accepts(&self, spec: &RevisionSpec) -> std::result::Result<(), SpecErrors> {
        self.part.accepts(spec)
    }
    async fn prepare(&self, spec: &RevisionSpec) -> Result<Artifact> {
        self.part.prepare(spec).await
    }
    async fn start(&self, request: StartRequest) -> Result<Arc<dyn Instance>> {
        self.used().start(request).await
    }
    fn try_start(&self, request: &StartRequest) -> Option<Result<Arc<dyn Instance>>> {
        self.used().try_start(request)
    }
    async fn quiesce(&self) {
        self.part.quiesce().await;
    }
    async fn start_stem(&self, request: StemRequest) -> Result<Box<dyn Stem>> {
        self.part.start_stem(request).await
    }
}

/// The platform's own scaler under another name.
impl Scaler for Counted<Arc<dyn Scaler>> {
    fn name(&self) -> &'static str {
        "counted"
    }
    fn version(&self) -> u32 {
        self.part.version()
    }
    fn validate(&self, spec: &ScalingSpec) -> std::result::Result<(), SpecErrors> {
        self.part.validate(spec)
    }
    fn wake_at(&self, states: &(dyn Any + Send), input: &ScaleInput<'_>) -> Option<Timestamp> {
        self.part.wake_at(states, input)
    }
    fn new_states(&self) -> Box<dyn Any + Send> {
        self.part.new_states()
    }
    fn tick(&self, states: &mut (dyn Any + Send), batch: &[ScaleInput<'_>], out: &mut Vec<Decision>) {
        self.used().tick(states, batch, out);
    }
    fn retire(&self, states: &mut (dyn Any + Send), row: u32) {
        self.part.retire(states, row);
    }
    fn checkpoint(&self, states: &(dyn Any + Send), row: u32) -> Option<serde_json::Value> {
        self.part.checkpoint(states, row)
    }
    fn restore(&self, states: &mut (dyn Any + Send), row: u32, checkpoint: serde_json::Value) -> Result<()> {
        self.part.restore(states, row, checkpoint)
    }
}

/// A source that sends one event and waits for its end.
#[async_trait]
impl TriggerSource for Counted<String> {
    fn kind(&self) -> &'static str {
        "once"
    }
    async fn run(&self, cx: TriggerCx) -> Result<()> {
        let room = cx.sink.ready().await?;
        let event = Event::new("1", self.used(), "com.example.once")?;
        cx.sink.deliver(room, event).await?;
        cx.shutdown.cancelled().await;
        Ok(())
    }
}

impl LogSink for Counted<LogBuffer> {
    fn line(&self, record: &LogRecord<'_>) {
        self.used().line(record);
    }
    fn starts(&self, revision: RevisionKey, name: &RevisionName, tenant: TenantKey) {
        self.part.starts(revision, name, tenant);
    }
    fn log_query(&self) -> Option<&dyn LogQuery> {
        self.part.log_query()
    }
    fn forget(&self, revision: RevisionKey) {
        LogSink::forget(&self.part, revision);
    }
}

impl DecisionSink for Counted<DecisionLog> {
    fn decided(&self, revision: RevisionKey, record: &DecisionRecord) {
        self.used().decided(revision, record);
    }
    fn decision_query(&self) -> Option<&dyn DecisionQuery> {
        self.part.decision_query()
    }
    fn forget(&self, revision: RevisionKey) {
        DecisionSink::forget(&self.part, revision);
    }
}

impl MeterSink for Counted<Meter> {
    fn phase(&self, of: Metered<'_>, instance: InstanceId, phase: MeterPhase, ns: u64) {
        self.used().phase(of, instance, phase, ns);
    }
    fn resources(&self, of: Metered<'_>, instance: InstanceId, cpu_ns: u64, memory_byte_ns: u128) {
        self.part.resources(of, instance, cpu_ns, memory_byte_ns);
    }
    fn requests(&self, of: Metered<'_>, used: &RequestUsage) {
        self.part.requests(of, used);
    }
    fn usage_query(&self) -> Option<&dyn UsageQuery> {
        self.part.usage_query()
    }
    fn forget(&self, revision: RevisionKey) {
        MeterSink::forget(&self.part, revision);
    }
}

/// A trail of changes that forgets them.
impl AuditSink for Counted<()> {
    fn changed(&self, _record: &AuditRecord) {
        self.used();
    }
}

/// A rule that lets every deploy through. Given away as an `Arc`, so that the host keeps a handle to what it asks.
#[async_trait]
impl AdmissionHook for Counted<&'static str> {
    fn name(&self) -> &str {
        self.part
    }
    async fn review(&self, _request: &AdmissionRequest<'_>) -> std::result::Result<(), Refusal> {
        self.used();
        Ok(())
    }
}

/// Counts what is told for traces.
impl TraceSink for Counted<()> {
    fn samples(&self, _trace: u128, _parent: Option<ParentSpan>) -> bool {
        false
    }
    fn request(&self, _span: &RequestSpan<'_>) {
        self.used();
    }
    fn delivery(&self, _span: &DeliverySpan<'_>) {
        self.used();
    }
    fn step(&self, _span: &StepSpan<'_>) {
        self.used();
    }
}

/// Secrets by name.
#[async_trait]
impl SecretSource for Counted<BTreeMap<&'static str, &'static str>> {
    async fn resolve(&self, reference: &str, _tenant: TenantKey) -> Result<Bytes> {
        let missing = || Error::new(ErrorKind::NotFound, "resolve", format!("no secret {reference:?}"));
        self.used().get(reference).map(|value| Bytes::from_static(value.as_bytes())).ok_or_else(missing)
    }
}

impl Clock for Counted<SystemClock> {
    fn now(&self) -> Timestamp {
        self.used().now()
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let names = [
        "pool",
        "router",
        "store",
        "log of events",
        "packages",
        "runtime",
        "scaler",
        "trigger",
        "logs",
        "decisions",
        "meter",
        "changes",
        "admission",
        "traces",
        "secrets",
        "clock",
    ];
    let uses: BTreeMap<&str, Uses> = names.into_iter().map(|name| (name, Uses::default())).collect();
    let pool_uses = Arc::clone(&uses["pool"]);
    let trigger_uses = Arc::clone(&uses["trigger"]);

    let functions = InlineRuntime::new().with("hello", |request: Request, _cx| async move {
        assert!(request.headers().get("ce-type").is_none_or(|kind| kind != "panic"), "asked to");
        Response::new(Body::from("hello"))
    });
    let kpa = sas::autoscale::default_scalers()
        .into_iter()
        .find(|scaler| scaler.name() == "kpa")
        .ok_or("the platform's own scaler")?;
    let dir = tempfile::tempdir()?;
    let platform = Platform::builder()
        .pool(move |config| Arc::new(Counted::new(&pool_uses, InstancePool::new(config))))
        .router(Counted::new(&uses["router"], RouteTable::new(0)))
        .store(Counted::new(&uses["store"], MemoryStore::default()))
        .event_log(Counted::new(
            &uses["log of events"],
            StoreLog::new(Arc::new(MemoryStore::default()), "events"),
        ))
        .packages(Counted::new(&uses["packages"], PackageDir::new(dir.path().join("packages"))))
        .runtime(Counted::new(&uses["runtime"], functions))
        .scaler(Counted::new(&uses["scaler"], kpa))
        .trigger_kind("once", move |spec| match spec.options.get("source") {
            Some(source) => Ok(Arc::new(Counted::new(&trigger_uses, source.clone()))),
            None => {
                let mut errors = SpecErrors::default();
                errors.push("options.source", "", "name the source of the event, such as /demo");
                Err(errors)
            }
        })
        .log_sink(Counted::new(&uses["logs"], LogBuffer::default()))
        .decision_sink(Counted::new(&uses["decisions"], DecisionLog::default()))
        .meter_sink(Counted::new(&uses["meter"], Meter::default()))
        .admin_token("for-this-program-alone")
        .audit_sink(Counted::new(&uses["changes"], ()))
        .admission(Arc::new(Counted::new(&uses["admission"], "lets-all-through")))
        .trace_sink(Arc::new(Counted::new(&uses["traces"], ())))
        .secrets(Counted::new(&uses["secrets"], BTreeMap::from([("greeting", "hello")])))
        .clock(Counted::new(&uses["clock"], SystemClock))
        .driver(|driver| driver.tick = Duration::from_millis(100))
        .build()
        .await?;

    let mut spec = RevisionSpec::new("inline", Source::Function("hello".to_owned()));
    spec.scaling.scaler = "counted".to_owned();
    spec.env.insert("GREETING".to_owned(), EnvValue::Secret("greeting".to_owned()));
    platform.deploy("default", "hello", spec).await?;
    let trigger = TriggerSpec::new("default/once", "once", "default/hello");
    let refused = platform.control().apply_trigger(trigger.clone()).await.expect_err("it names no source");
    println!("refused as it should be: {}", refused.message);
    platform.control().apply_trigger(trigger.with_option("source", "/demo")).await?;

    // An event for a broker, and a change at the admin API that is refused: both are kept in order to be read later.
    platform.control().apply_broker(BrokerSpec::new("default/orders")).await?;
    let event = Event::new("1", "/demo", "com.example.order")?;
    platform.control().accept_events("default", "orders", vec![event]).await?;
    let delete = http::Request::delete("/v1/services/default/nobody")
        .header("host", "localhost")
        .header("authorization", "Bearer for-this-program-alone")
        .body(Body::empty())?;
    assert_eq!(platform.admin().handle(delete).await.status(), 404);

    let get = || http::Request::get("/").header("host", "hello.default.localhost").body(Body::empty());
    // By its host, as over the wire: through the route table.
    let answer = platform.gateway().handle(get()?).await;
    assert_eq!(answer.status(), 200);
    // A function that panics (its log is the place for the message, not this terminal): the platform writes about it to the instance's log.
    std::panic::set_hook(Box::new(|_| {}));
    let panics = http::Request::get("/").header("ce-type", "panic").body(Body::empty())?;
    let _ = platform.call("default", "hello", panics).await;
    drop(std::panic::take_hook());
    tokio::time::sleep(Duration::from_millis(500)).await;

    let key = platform.control().revision_key("default", "hello", "hello-00001").ok_or("it is deployed")?;
    println!("log: {:?}", platform.logs()?.lines(&[key], 5, 0).await?.lines.first().map(|line| &line.line));
    println!("decisions kept: {}", platform.decisions()?.last_decisions(key, 100).await?.len());
    println!("requests metered: {}", platform.control().usage_of(&UsageScope::all()).await?.total.requests);
    platform.shutdown(Duration::from_secs(5)).await;

    let mut unused = Vec::new();
    for (name, uses) in &uses {
        let uses = uses.load(Ordering::Relaxed);
        println!("{name:<13} used {uses:>4} times");
        if uses == 0 {
            unused.push(*name);
        }
    }
    if unused.is_empty() { Ok(()) } else { Err(format!("not used: {unused:?}").into()) }
}
