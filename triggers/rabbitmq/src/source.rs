//! The source: a consumer of a queue.

use std::{
    collections::{BTreeSet, VecDeque},
    fmt,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{
    StreamExt as _,
    future::{Either, select},
};
use lapin::{
    Acker, Channel, Connection, ConnectionProperties, Consumer,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
    uri::{AMQPAuthority, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use sas_core::{
    Connected, Deliveries, Error, ErrorKind, EventSink, Result, Slot, SpecErrors, TriggerCx, TriggerOptions,
    TriggerSecrets, TriggerSource, TriggerSpec,
};
use tokio::{runtime::Handle, time::timeout};

use crate::message::event;

/// After how long an answer is missed.
const ANSWER: Duration = Duration::from_secs(10);
/// How long deliveries under way may go on when a run ends; the rest comes again.
const LAST: Duration = Duration::from_secs(1);
/// Seconds after which a connection without a sign of the other side is broken.
const HEARTBEAT: u16 = 10;
/// AMQP's code for a connection that is closed in order.
const REPLY_SUCCESS: u16 = 200;

/// The servers that triggers may read from, and the maker of their sources.
#[derive(Clone, Debug)]
pub struct RabbitServers {
    hosts: BTreeSet<String>,
}

impl RabbitServers {
    /// Sources that read from these servers only, each `host:port` as it stands in a trigger's `url`. Whoever declares a
    /// trigger reaches no other address of the platform's network by it.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { hosts: hosts.into_iter().map(Into::into).collect() }
    }

    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<RabbitQueue, SpecErrors> {
        let mut options = TriggerOptions::new(&spec.options, "options.");
        if let Some(url) = spec.options.get("url").filter(|url| url.starts_with("amqps://")) {
            let shown = if url.contains('@') { "(not shown)" } else { url };
            options.wrong("url", shown, "TLS is not offered: use amqp://, or a proxy that speaks TLS");
        }
        let server = options.server("url", &["amqp"], &self.hosts, "`PlatformBuilder::rabbitmq_hosts`");
        if server.path.contains(['/', '?', '#', '%']) {
            options.wrong(
                "url",
                server.path,
                "must be amqp://host:port or amqp://host:port/vhost, without parameters",
            );
        }
        let (host, port) = server.host_and_port().unwrap_or_default();
        if !server.address.is_empty() && port == 0 {
            options.wrong("url", server.address, "must name a port, such as 5672");
        }
        let queue = options.required("queue");
        if queue.len() > 255 {
            options.wrong("queue", queue, "must be at most 255 bytes long");
        }
        let prefetch = options.number("prefetch", 1..=u64::from(u16::MAX), 100);
        let username = options.required("username").to_owned();
        let password = options.required("password-secret").to_owned();
        options.finish()?;
        let vhost = if server.path.is_empty() { "/" } else { server.path };
        Ok(RabbitQueue {
            server: format!("amqp://{}", server.address),
            host: host.to_owned(),
            port,
            vhost: vhost.to_owned(),
            queue: queue.to_owned(),
            prefetch: u16::try_from(prefetch).unwrap_or(u16::MAX),
            username,
            password,
            connected: Connected::default(),
        })
    }
}

/// The messages of one queue as events.
pub struct RabbitQueue {
    server: String,
    host: String,
    port: u16,
    vhost: String,
    queue: String,
    prefetch: u16,
    username: String,
    password: String,
    connected: Connected<Link>,
}

impl fmt::Debug for RabbitQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RabbitQueue")
            .field("server", &self.server)
            .field("queue", &self.queue)
            .finish_non_exhaustive()
    }
}

/// A connection, and how many messages the broker has given to it that are not acknowledged.
struct Link {
    /// There until this is dropped.
    connection: Option<Connection>,
    unacknowledged: Arc<AtomicU64>,
}

impl Link {
    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("it is taken out by `drop` alone")
    }
}

/// The client keeps a connection that is dropped while something is asked on it, with its consumer and the messages that
/// the broker gave to that. So it is closed in words.
impl Drop for Link {
    fn drop(&mut self) {
        if let (Some(connection), Ok(runtime)) = (self.connection.take(), Handle::try_current()) {
            runtime.spawn(async move {
                let _ = timeout(ANSWER, connection.close(REPLY_SUCCESS, "the run has ended".into())).await;
            });
        }
    }
}

/// A message that the broker has given to this host. Counted until it is dropped.
struct Taken {
    delivery: Delivery,
    counter: Counted,
}

struct Counted(Arc<AtomicU64>);

impl Counted {
    fn new(counter: &Arc<AtomicU64>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn failed(what: &str) -> impl Fn(lapin::Error) -> Error + '_ {
    move |error| Error::new(ErrorKind::Unavailable, "rabbitmq", format!("{what}: {error}")).with_source(error)
}

/// What the broker answers, or an error when it does not.
async fn answer<T>(what: &str, asked: impl Future<Output = lapin::Result<T>>) -> Result<T> {
    match timeout(ANSWER, asked).await {
        Ok(answer) => answer.map_err(failed(what)),
        Err(_) => Err(missed(what)),
    }
}

fn missed(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, "rabbitmq", format!("{what}: no answer within {ANSWER:?}"))
}

/// Delivers a message and acknowledges it, or gives it back.
async fn deliver(
    sink: Arc<dyn EventSink>,
    slot: Slot,
    event: sas_core::Event,
    acker: Acker,
    counter: Counted,
) -> Result<()> {
    let delivered = sink.deliver(slot, event).await;
    let settled = match &delivered {
        Ok(_) => acker.ack(BasicAckOptions::default()).await.map_err(failed("acknowledging")),
        // It may come again at once, here or at another host; the platform makes this one wait.
        Err(_) => acker
            .nack(BasicNackOptions { requeue: true, multiple: false })
            .await
            .map_err(failed("giving back")),
    };
    drop(counter);
    delivered?;
    settled.map(drop)
}

impl RabbitQueue {
    /// A connection with the credentials as they are now.
    async fn connect(&self, secrets: &TriggerSecrets) -> Result<Link> {
        let mut uri = AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: self.username.clone(),
                    password: secrets.text(&self.password).await?,
                },
                host: self.host.clone(),
                port: self.port,
            },
            vhost: self.vhost.clone(),
            query: lapin::uri::AMQPQueryString::default(),
        };
        uri.query.heartbeat = Some(HEARTBEAT);
        let properties = ConnectionProperties::default().with_connection_name("sas".into());
        // In a task of its own: when this run is dropped meanwhile, what comes of it is closed all the same.
        let connecting = tokio::spawn(async move {
            let connected = timeout(ANSWER, Connection::connect_uri(uri, properties)).await;
            connected.map(|connected| {
                connected
                    .map(|connection| Link { connection: Some(connection), unacknowledged: Arc::default() })
            })
        });
        let what = format!("connecting to {}", self.server);
        match connecting.await {
            Ok(Ok(connected)) => connected.map_err(failed(&what)),
            Ok(Err(_)) => Err(missed(&what)),
            Err(error) => Err(Error::new(ErrorKind::Unavailable, "rabbitmq", format!("{what}: {error}"))),
        }
    }

    fn queue(&self) -> ShortString {
        // The declaration bounds its length.
        ShortString::try_new(self.queue.as_str()).unwrap_or_default()
    }

    /// The queue as it is: it must exist, and is not made.
    async fn ready_messages(&self, channel: &Channel) -> Result<u64> {
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let declared = channel.queue_declare(self.queue(), passive, FieldTable::default());
        let queue = answer(&format!("queue {}", self.queue), declared).await?;
        Ok(queue.message_count().into())
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let setup = async {
            let link = self.connect(&cx.secrets).await?;
            let channel = answer("a channel", link.connection().create_channel()).await?;
            self.ready_messages(&channel).await?;
            let qos = channel.basic_qos(self.prefetch, BasicQosOptions::default());
            answer("prefetch", qos).await?;
            let consuming = channel.basic_consume(
                self.queue(),
                ShortString::default(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            );
            let consumer = answer(&format!("consuming from {}", self.queue), consuming).await?;
            Ok::<_, Error>((link, channel, consumer))
        };
        let (link, _channel, consumer) = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => return Ok(()),
            ready = setup => ready?,
        };
        let unacknowledged = Arc::clone(&link.unacknowledged);
        let _connected = self.connected.begin(Arc::new(link));
        let mut deliveries = Deliveries::default();
        let pulled = tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            pulled = self.pull(cx, consumer, &unacknowledged, &mut deliveries) => pulled,
        };
        let _ = timeout(LAST, deliveries.finish()).await;
        pulled
    }

    async fn pull(
        &self,
        cx: &TriggerCx,
        mut consumer: Consumer,
        unacknowledged: &Arc<AtomicU64>,
        deliveries: &mut Deliveries,
    ) -> Result<()> {
        let gone = || {
            let message = format!("{} has ended the consumer of queue {}", self.server, self.queue);
            Error::new(ErrorKind::Unavailable, "rabbitmq", message)
        };
        // Messages without a name get one that no other run gives.
        let mut run = [0_u8; 8];
        getrandom::fill(&mut run)
            .map_err(|error| Error::new(ErrorKind::Unavailable, "rabbitmq", error.to_string()))?;
        let run = u64::from_le_bytes(run);
        // What the broker gave, of which there are `prefetch` at most, and no room was for yet.
        let mut waiting: VecDeque<Taken> = VecDeque::new();
        loop {
            // The broker gives without being asked: what it gave is taken in and counted, whether there is room or not.
            let next = async {
                let room = async {
                    match waiting.is_empty() {
                        true => std::future::pending().await,
                        false => cx.sink.ready().await,
                    }
                };
                match select(consumer.next(), pin!(room)).await {
                    Either::Left((delivery, _)) => {
                        Ok::<_, Error>((None, Some(delivery.ok_or_else(gone)?.map_err(failed("consuming"))?)))
                    }
                    Either::Right((slot, _)) => Ok((Some(slot?), None)),
                }
            };
            let (slot, delivery) = deliveries.meanwhile(next).await??;
            if let Some(delivery) = delivery {
                waiting.push_back(Taken { delivery, counter: Counted::new(unacknowledged) });
            }
            if let Some(slot) = slot
                && let Some(Taken { delivery, counter }) = waiting.pop_front()
            {
                let event = event(&delivery, &self.queue, &format!("{run:016x}-{}", delivery.delivery_tag))?;
                deliveries.begin(deliver(Arc::clone(&cx.sink), slot, event, delivery.acker, counter));
            }
        }
    }
}

#[async_trait]
impl TriggerSource for RabbitQueue {
    fn kind(&self) -> &'static str {
        "rabbitmq-queue"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        self.follow(&cx).await
    }

    /// The messages that are ready in the queue, as the broker counts them, and those that it has given to this host.
    async fn backlog(&self) -> Result<Option<u64>> {
        let Some(link) = self.connected.get(&self.server)? else { return Ok(None) };
        let channel = answer("a channel", link.connection().create_channel()).await?;
        let ready = self.ready_messages(&channel).await?;
        Ok(Some(ready.saturating_add(link.unacknowledged.load(Ordering::Relaxed))))
    }
}
