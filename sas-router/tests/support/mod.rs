//! A pool without scaling, and instances that answer what a test wants.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of it")]

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{SinkExt as _, StreamExt as _};
use sas_core::*;
use sas_router::{Gateway, GatewayConfig, RouteTable, Server, ServerConfig};
use tokio::{net::TcpListener, time::Instant};
use tokio_tungstenite::tungstenite::Message;

#[derive(Debug)]
struct NoRuntime;

#[async_trait]
impl Runtime for NoRuntime {
    fn name(&self) -> &'static str {
        "none"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities::new(Isolation::None)
    }
    async fn prepare(&self, _: &RevisionSpec) -> Result<Artifact> {
        Err(Error::unsupported("prepare"))
    }
    async fn start(&self, _: StartRequest) -> Result<Arc<dyn Instance>> {
        Err(Error::unsupported("start"))
    }
    async fn quiesce(&self) {}
}

/// An instance at an address.
#[derive(Debug)]
pub struct Remote {
    pub id: InstanceId,
    pub endpoint: Endpoint,
}

#[async_trait]
impl Instance for Remote {
    fn id(&self) -> InstanceId {
        self.id
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Endpoint(&self.endpoint)
    }
    async fn stop(&self, _: Duration) -> Result<()> {
        Ok(())
    }
}

type Answering = Pin<Box<dyn Future<Output = Response> + Send>>;

/// A handler out of a closure.
pub struct Closure<F>(pub F);

impl<F> fmt::Debug for Closure<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Closure")
    }
}

#[async_trait]
impl<F: Fn(Request) -> Answering + Send + Sync + 'static> Handler for Closure<F> {
    async fn handle(&self, request: Request) -> Response {
        (self.0)(request).await
    }
}

/// A handler of an async closure.
pub fn handler<F, Fut>(f: F) -> Arc<dyn Handler>
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Response> + Send + 'static,
{
    Arc::new(Closure(move |request| -> Answering { Box::pin(f(request)) }))
}

/// Waits until there is an instance, looking now and then; or for ever.
struct Patience {
    pool: Arc<FixedPool>,
    revision: RevisionKey,
}

impl WaitList for Patience {
    fn poll(
        &self,
        _: u64,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<std::result::Result<Lease, ClaimError>> {
        if let Some(lease) = self.pool.try_claim(&Claim::new(self.revision, TenantKey(1))) {
            return std::task::Poll::Ready(Ok(lease));
        }
        let waker = cx.waker().clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            waker.wake();
        });
        std::task::Poll::Pending
    }
    fn leave(&self, _: u64) {}
}

/// Counts, by name and labels, what a platform counts.
#[derive(Debug, Default)]
pub struct Counts(Mutex<HashMap<String, Arc<AtomicU64>>>);

impl Counts {
    pub fn recorder() -> (Arc<Self>, Recorder) {
        let counts = Arc::<Self>::default();
        (Arc::clone(&counts), Recorder::new(counts))
    }

    /// What a drain ended of this kind.
    pub fn drained(&self, kind: &str) -> u64 {
        let name = format!("{} kind={kind}", sas_router::metrics::DRAINED);
        self.0.lock().unwrap().get(&name).map_or(0, |count| count.load(Ordering::SeqCst))
    }
}

impl metrics::Recorder for Counts {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let name = format!("{} {}", key.name(), labels.join(","));
        let count = Arc::clone(self.0.lock().unwrap().entry(name).or_default());
        metrics::Counter::from_arc(count)
    }
    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::noop()
    }
    fn register_histogram(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::noop()
    }
}

/// An instance in this process.
#[derive(Debug)]
pub struct Inside {
    pub id: InstanceId,
    pub handler: Arc<dyn Handler>,
}

#[async_trait]
impl Call for Inside {
    async fn call(&self, request: Request, _: &Cx) -> Result<Answer, CallError> {
        Ok(Answer::Http(self.handler.handle(request).await))
    }
}

#[async_trait]
impl Instance for Inside {
    fn id(&self) -> InstanceId {
        self.id
    }
    fn target(&self) -> InstanceTarget<'_> {
        InstanceTarget::Call(self)
    }
    async fn stop(&self, _: Duration) -> Result<()> {
        Ok(())
    }
}

#[derive(Debug)]
struct Slot {
    instance: Arc<dyn Instance>,
    in_flight: usize,
}

#[derive(Debug)]
struct Registered {
    deployed: Arc<Deployed>,
    slots: Vec<Slot>,
    turn: usize,
}

/// A pool of what a test puts in. It starts nothing; an instance that was lost leaves.
#[derive(Debug, Default)]
pub struct FixedPool {
    revisions: Mutex<HashMap<RevisionKey, Registered>>,
    released: Mutex<Vec<(InstanceId, Outcome)>>,
    leases: AtomicUsize,
    next: AtomicU64,
    drains: Mutex<HashMap<InstanceId, Instant>>,
    /// Whether claims wait for an instance instead of being refused, and for how many places in the queue that was.
    queues: std::sync::atomic::AtomicBool,
    places: AtomicUsize,
    /// Whether it says that it is full.
    full: std::sync::atomic::AtomicBool,
    me: std::sync::Weak<FixedPool>,
}

struct Token {
    pool: Arc<FixedPool>,
    revision: RevisionKey,
    instance: InstanceId,
}

impl LeaseOwner for Token {
    fn release(&self, _: u64, outcome: Outcome) {
        let pool = &self.pool;
        pool.leases.fetch_sub(1, Ordering::SeqCst);
        pool.released.lock().unwrap().push((self.instance, outcome));
        if let Some(registered) = pool.revisions.lock().unwrap().get_mut(&self.revision) {
            for slot in &mut registered.slots {
                if slot.instance.id() == self.instance {
                    slot.in_flight -= 1;
                }
            }
            if outcome == Outcome::Lost {
                registered.slots.retain(|slot| slot.instance.id() != self.instance);
            }
        }
    }

    fn draining(&self, _: u64) -> Option<Instant> {
        self.pool.drains.lock().unwrap().get(&self.instance).copied()
    }
}

impl FixedPool {
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self { me: me.clone(), ..Self::default() })
    }

    /// Registers a revision of `spec`.
    pub fn revision(&self, name: &str, spec: RevisionSpec) -> RevisionKey {
        let deployed = Deployed::new(
            Arc::new(NoRuntime),
            Artifact::new((), ArtifactInfo::default()),
            Arc::new(spec),
            RevisionName::new("default", name, &format!("{name}-00001")),
            TenantKey(1),
        );
        self.register(Arc::new(deployed)).unwrap()
    }

    pub fn add(&self, revision: RevisionKey, instance: Arc<dyn Instance>) {
        let mut revisions = self.revisions.lock().unwrap();
        revisions.get_mut(&revision).unwrap().slots.push(Slot { instance, in_flight: 0 });
    }

    pub fn add_at(&self, revision: RevisionKey, address: SocketAddr) -> InstanceId {
        let id = InstanceId(self.next.fetch_add(1, Ordering::SeqCst) + 1_000);
        self.add(revision, Arc::new(Remote { id, endpoint: Endpoint::Tcp(address) }));
        id
    }

    pub fn add_inside(&self, revision: RevisionKey, handler: Arc<dyn Handler>) -> InstanceId {
        let id = InstanceId(self.next.fetch_add(1, Ordering::SeqCst) + 1_000);
        self.add(revision, Arc::new(Inside { id, handler }));
        id
    }

    pub fn remove(&self, revision: RevisionKey, instance: InstanceId) {
        let mut revisions = self.revisions.lock().unwrap();
        revisions.get_mut(&revision).unwrap().slots.retain(|slot| slot.instance.id() != instance);
    }

    /// From now on claims wait until there is an instance.
    pub fn queue(&self) {
        self.queues.store(true, Ordering::SeqCst);
    }

    /// Says from now on whether it is full; it serves all the same.
    pub fn fill(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    /// Places in the queue that were given out.
    pub fn places(&self) -> usize {
        self.places.load(Ordering::SeqCst)
    }

    /// Takes an instance out of the rotation; what it has is to end by `deadline`.
    pub fn drain_instance(&self, revision: RevisionKey, instance: InstanceId, deadline: Instant) {
        self.drains.lock().unwrap().insert(instance, deadline);
        self.remove(revision, instance);
    }

    /// Leases that are out.
    pub fn leases(&self) -> usize {
        self.leases.load(Ordering::SeqCst)
    }

    /// How leases came back so far.
    pub fn outcomes(&self) -> Vec<(InstanceId, Outcome)> {
        self.released.lock().unwrap().clone()
    }

    /// Waits until no lease is out.
    pub async fn until_idle(&self) {
        let by = Instant::now() + Duration::from_secs(20);
        while self.leases() > 0 {
            assert!(Instant::now() < by, "{} leases never came back", self.leases());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[async_trait]
impl Pool for FixedPool {
    fn register(&self, deployed: Arc<Deployed>) -> Result<RevisionKey> {
        let key = RevisionKey::new(self.next.fetch_add(1, Ordering::SeqCst) as u32, 1);
        let registered = Registered { deployed, slots: Vec::new(), turn: 0 };
        self.revisions.lock().unwrap().insert(key, registered);
        Ok(key)
    }
    fn unregister(&self, revision: RevisionKey) {
        self.revisions.lock().unwrap().remove(&revision);
    }
    fn deployed(&self, revision: RevisionKey) -> Option<Arc<Deployed>> {
        self.revisions.lock().unwrap().get(&revision).map(|registered| Arc::clone(&registered.deployed))
    }
    fn is_full(&self, _: RevisionKey) -> bool {
        self.full.load(Ordering::SeqCst)
    }
    fn try_claim(&self, claim: &Claim) -> Option<Lease> {
        let mut revisions = self.revisions.lock().unwrap();
        let registered = revisions.get_mut(&claim.revision)?;
        let limit = match registered.deployed.spec.concurrency {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let count = registered.slots.len();
        let turn = claim.affinity.map_or(registered.turn, |key| key as usize);
        registered.turn = registered.turn.wrapping_add(1);
        let at = (0..count).map(|step| turn.wrapping_add(step) % count).find(|at| {
            let slot = &registered.slots[*at];
            slot.in_flight < limit && claim.exclude != Some(slot.instance.id())
        })?;
        let slot = &mut registered.slots[at];
        slot.in_flight += 1;
        self.leases.fetch_add(1, Ordering::SeqCst);
        let owner =
            Token { pool: self.me.upgrade()?, revision: claim.revision, instance: slot.instance.id() };
        Some(Lease::new(Arc::clone(&slot.instance), Arc::new(owner), 0))
    }
    fn claim(&self, claim: &Claim, _: &Cx) -> Waiting {
        if let Some(lease) = self.try_claim(claim) {
            return Waiting::ready(Ok(lease));
        }
        if self.queues.load(Ordering::SeqCst) && claim.wakes {
            self.places.fetch_add(1, Ordering::SeqCst);
            let list = Patience { pool: self.me.upgrade().expect("in use"), revision: claim.revision };
            return Waiting::queued(Arc::new(list), 0);
        }
        let revisions = self.revisions.lock().unwrap();
        Waiting::ready(Err(match revisions.get(&claim.revision) {
            None => ClaimError::Unknown,
            Some(_) if !claim.wakes => ClaimError::Asleep,
            Some(_) => ClaimError::QueueFull { resource: "revision", retry_after: Duration::from_secs(1) },
        }))
    }
    fn instance(&self, revision: RevisionKey, id: InstanceId) -> Option<Arc<dyn Instance>> {
        let revisions = self.revisions.lock().unwrap();
        let slots = &revisions.get(&revision)?.slots;
        slots.iter().map(|slot| &slot.instance).find(|instance| instance.id() == id).cloned()
    }
    fn instances(&self, revision: RevisionKey) -> Vec<InstanceView> {
        let revisions = self.revisions.lock().unwrap();
        let Some(registered) = revisions.get(&revision) else { return Vec::new() };
        registered
            .slots
            .iter()
            .map(|slot| {
                let id = slot.instance.id();
                let in_flight = slot.in_flight as u32;
                let mut view =
                    InstanceView::new(id, InstanceState::Ready, in_flight, u32::MAX, Duration::from_secs(1));
                view.endpoint = slot.instance.endpoint().cloned();
                view
            })
            .collect()
    }
    fn recycle(&self, revision: RevisionKey, instance: InstanceId, _: Duration) -> bool {
        self.remove(revision, instance);
        true
    }
    async fn drain(&self, _: RevisionKey, _: Duration) {}
    async fn shutdown(&self, _: Instant) {}
}

pub fn spec() -> RevisionSpec {
    RevisionSpec::new("none", Source::Function("test".into()))
}

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

pub fn loopback() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

/// Sends everything of `host` to `revision`.
pub fn route(table: &RouteTable, host: &str, revision: RevisionKey) {
    let rule = RouteRule::new(TenantKey(1), RouteAction::Split(vec![Split::new(revision, 100)]));
    set(table, host, vec![rule]);
}

pub fn set(table: &RouteTable, host: &str, rules: Vec<RouteRule>) {
    table.apply(vec![RouteChange::Set { host: HostPattern::Exact(host.into()), rules }]).unwrap();
}

/// A platform of one service, `hello.default.example.com`, with one ingress.
pub struct Platform {
    pub table: Arc<RouteTable>,
    pub pool: Arc<FixedPool>,
    pub gateway: Arc<Gateway>,
    pub server: Server,
    pub revision: RevisionKey,
}

pub const HOST: &str = "hello.default.example.com";

impl Platform {
    pub async fn start() -> Self {
        Self::with(spec(), GatewayConfig::default(), ServerConfig::default()).await
    }

    pub async fn with(spec: RevisionSpec, mut gateway: GatewayConfig, mut server: ServerConfig) -> Self {
        // Every suite must pass on the general way as well: `SAS_TEST_HTTP1=general cargo test -p sas-router`.
        let general = std::env::var("SAS_TEST_HTTP1").is_ok_and(|way| way == "general");
        server.plain_http1 &= !general;
        gateway.upstream.plain_http1 &= !general;
        let table = Arc::new(RouteTable::new(1));
        let pool = FixedPool::new();
        let revision = pool.revision("hello", spec);
        route(&table, HOST, revision);
        route(&table, "hello.default.svc", revision);
        let gateway = Gateway::new(table.clone(), pool.clone(), gateway);
        let server = Server::bind(loopback(), gateway.clone(), server).await.unwrap();
        Self { table, pool, gateway, server, revision }
    }

    pub fn address(&self) -> SocketAddr {
        self.server.local_addr()
    }
}

/// An instance that is a real HTTP server with this handler.
pub async fn instance(handler: Arc<dyn Handler>) -> Server {
    Server::bind(loopback(), handler, ServerConfig::default()).await.unwrap()
}

/// A response as text.
pub fn text(status: u16, text: impl Into<String>) -> Response {
    let mut response = Response::new(Body::from(text.into()));
    *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
    response
}

/// A client's connection over HTTP/1.1.
pub struct Client(pub hyper::client::conn::http1::SendRequest<Body>);

impl Client {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let (sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(async move {
            let _ended = connection.with_upgrades().await;
        });
        Self(sender)
    }

    pub async fn send(&mut self, request: Request) -> http::Response<hyper::body::Incoming> {
        self.try_send(request).await.unwrap()
    }

    pub async fn try_send(
        &mut self,
        request: Request,
    ) -> Result<http::Response<hyper::body::Incoming>, hyper::Error> {
        self.0.ready().await?;
        tokio::time::timeout(Duration::from_secs(20), self.0.send_request(request))
            .await
            .expect("no answer in 20 s")
    }
}

pub fn get(path: &str) -> Request {
    request("GET", path, Body::empty())
}

pub fn request(method: &str, path: &str, body: impl Into<Body>) -> Request {
    http::Request::builder().method(method).uri(path).header("host", HOST).body(body.into()).unwrap()
}

/// A whole body as text.
pub async fn read<B>(response: http::Response<B>) -> String
where
    B: http_body::Body,
    B::Error: fmt::Debug,
{
    use http_body_util::BodyExt as _;
    let body = tokio::time::timeout(Duration::from_secs(20), response.into_body().collect()).await;
    String::from_utf8_lossy(&body.expect("no end in 20 s").unwrap().to_bytes()).into_owned()
}

/// The JSON of an error.
pub async fn json<B>(response: http::Response<B>) -> serde_json::Value
where
    B: http_body::Body,
    B::Error: fmt::Debug,
{
    serde_json::from_str(&read(response).await).unwrap()
}

/// An instance that echoes WebSocket messages, texts with `prefix` before them, and tells the code of the Close frame that
/// it gets.
pub async fn echo(prefix: &'static str) -> (SocketAddr, tokio::sync::mpsc::Receiver<Option<u16>>) {
    let listener = TcpListener::bind(loopback()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ended, endings) = tokio::sync::mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let ended = ended.clone();
            tokio::spawn(async move {
                let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
                let mut code = None;
                while let Some(Ok(message)) = socket.next().await {
                    match message {
                        Message::Text(text) => {
                            socket.send(Message::text(format!("{prefix}{text}"))).await.unwrap();
                        }
                        Message::Binary(_) => socket.send(message).await.unwrap(),
                        Message::Close(close) => code = close.map(|close| u16::from(close.code)),
                        _ => {}
                    }
                }
                ended.send(code).await.unwrap();
            });
        }
    });
    (address, endings)
}
