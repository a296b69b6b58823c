//! The source: a consumer of a group at a stream.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, future::BoxFuture, poll, stream::FuturesUnordered};
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, RedisError, Value, aio::MultiplexedConnection, cmd,
};
use sas_core::{
    Error, ErrorKind, Result, Slot, SpecErrors, TriggerCx, TriggerSecrets, TriggerSource, TriggerSpec,
};
use tokio::time::Instant;

use crate::entry::Entry;

/// Entries that one request takes from the stream at most.
const TAKEN: usize = 64;
/// Unread entries that are counted one by one at most, where the server has no number.
const COUNTED: usize = 1000;
/// How long one request waits for entries.
const WAIT: Duration = Duration::from_secs(2);
/// After how long an answer is missed.
const ANSWER: Duration = Duration::from_secs(10);

/// The servers that triggers may read from, and the maker of their sources.
#[derive(Clone, Debug)]
pub struct RedisStreams {
    hosts: BTreeSet<String>,
}

impl RedisStreams {
    /// Sources that read from these servers only, each `host:port` as it stands in a trigger's `url`. Whoever declares a
    /// trigger reaches no other address of the platform's network by it.
    pub fn new(hosts: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { hosts: hosts.into_iter().map(Into::into).collect() }
    }

    /// The source that `spec` declares.
    ///
    /// # Errors
    /// All that is wrong with its options.
    pub fn source(&self, spec: &TriggerSpec) -> Result<RedisStream, SpecErrors> {
        let mut errors = SpecErrors::default();
        let option = |name: &str| spec.options.get(name).map_or("", String::as_str);
        let url = option("url");
        let client = url.into_connection_info().and_then(Client::open);
        let address = url.strip_prefix("redis://").map(|rest| rest.split('/').next().unwrap_or(rest));
        match (&client, address) {
            (_, None) => errors.push(
                "options.url",
                url,
                "must be redis://host:port or redis://host:port/database (TLS is not offered)",
            ),
            (_, Some(address)) if address.contains('@') => {
                errors.push(
                    "options.url",
                    "(not shown)",
                    "must hold no credentials: name them by `username` and `password-secret`",
                );
            }
            (_, Some(address)) if !self.hosts.contains(address) => {
                errors.push(
                    "options.url",
                    address,
                    "is none of the servers that the platform allows (`PlatformBuilder::redis_hosts`)",
                );
            }
            (Err(error), _) => errors.push("options.url", url, error.to_string()),
            (Ok(_), Some(_)) => {}
        }
        if option("stream").is_empty() {
            errors.push("options.stream", "", "must name a stream");
        }
        let start = match option("start") {
            "" | "latest" => "$",
            "earliest" => "0",
            other => {
                errors.push(
                    "options.start",
                    other,
                    "must be `latest` or `earliest`; it counts when the group is made",
                );
                "$"
            }
        };
        let claim_after = match option("claim-after") {
            "" => 60,
            given => given.strip_suffix('s').and_then(|secs| secs.parse::<u64>().ok()).unwrap_or(0),
        };
        if !(1..=86_400).contains(&claim_after) {
            errors.push(
                "options.claim-after",
                option("claim-after"),
                "must be whole seconds from 1s to 86400s",
            );
        }
        if !option("username").is_empty() && option("password-secret").is_empty() {
            errors.push("options.password-secret", "", "must refer to the password of `username`");
        }
        let or = |name: &str, default: &str| match option(name) {
            "" => default.to_owned(),
            given => given.to_owned(),
        };
        let consumer = or("consumer", &host_name());
        match client {
            Ok(client) if errors.is_empty() => Ok(RedisStream {
                client,
                stream: option("stream").to_owned(),
                group: or("group", &spec.name),
                consumer,
                start,
                claim_after: Duration::from_secs(claim_after),
                username: Some(option("username").to_owned()).filter(|name| !name.is_empty()),
                password: Some(option("password-secret").to_owned()).filter(|name| !name.is_empty()),
                asking: Mutex::default(),
            }),
            _ => Err(errors),
        }
    }
}

/// The machine's name, which tells the consumers of a group apart and is the same after a restart.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "sas".to_owned() } else { name.trim().to_owned() }
}

/// What questions for the backlog are asked with: the secrets of the run that began last, and its connection.
#[derive(Debug, Default)]
struct Asking {
    secrets: Option<TriggerSecrets>,
    connection: Option<Connection>,
}

#[derive(Clone)]
struct Connection(MultiplexedConnection);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// The entries of one stream as events, read as a consumer of a group.
#[derive(Debug)]
pub struct RedisStream {
    client: Client,
    stream: String,
    group: String,
    consumer: String,
    start: &'static str,
    claim_after: Duration,
    username: Option<String>,
    password: Option<String>,
    asking: Mutex<Asking>,
}

fn failed(what: &str) -> impl Fn(RedisError) -> Error + '_ {
    move |error| Error::new(ErrorKind::Unavailable, "redis", format!("{what}: {error}"))
}

fn strange(what: &str) -> Error {
    Error::new(ErrorKind::Unexpected, "redis", format!("{what}: the server's answer is of no known form"))
}

type Delivered = (String, Result<()>);

impl RedisStream {
    /// A connection with the credentials as they are now.
    async fn connect(&self, secrets: &TriggerSecrets) -> Result<MultiplexedConnection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER));
        let connected = self.client.get_multiplexed_async_connection_with_config(&config).await;
        let mut connection = connected.map_err(failed("connecting"))?;
        if let Some(reference) = &self.password {
            let password = secrets.get(reference).await?;
            let mut auth = cmd("AUTH");
            if let Some(username) = &self.username {
                auth.arg(username);
            }
            auth.arg(password.as_ref());
            auth.query_async::<()>(&mut connection).await.map_err(failed("AUTH"))?;
        }
        Ok(connection)
    }

    async fn make_group(&self, connection: &mut MultiplexedConnection) -> Result<()> {
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&self.stream).arg(&self.group).arg(self.start).arg("MKSTREAM");
        match create.query_async::<()>(connection).await {
            Err(error) if error.code() != Some("BUSYGROUP") => Err(failed("XGROUP CREATE")(error)),
            _ => Ok(()),
        }
    }

    /// Entries after `from`: of this consumer that are unacknowledged, or new ones (`>`), which are waited for.
    async fn take(
        &self,
        connection: &mut MultiplexedConnection,
        from: &str,
        most: usize,
    ) -> Result<Vec<Entry>> {
        let mut read = cmd("XREADGROUP");
        read.arg("GROUP").arg(&self.group).arg(&self.consumer).arg("COUNT").arg(most);
        read.arg("BLOCK").arg(u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX));
        read.arg("STREAMS").arg(&self.stream).arg(from);
        let answer: Value = read.query_async(connection).await.map_err(failed("XREADGROUP"))?;
        let Value::Array(mut streams) = answer else { return Ok(Vec::new()) };
        match streams.pop() {
            Some(Value::Array(mut stream)) if stream.len() == 2 => {
                entries(stream.pop().unwrap_or(Value::Nil))
            }
            _ => Err(strange("XREADGROUP")),
        }
    }

    /// Takes over what others of the group left for too long.
    async fn claim(&self, connection: &mut MultiplexedConnection) -> Result<Vec<Entry>> {
        let mut claim = cmd("XAUTOCLAIM");
        claim.arg(&self.stream).arg(&self.group).arg(&self.consumer);
        claim
            .arg(u64::try_from(self.claim_after.as_millis()).unwrap_or(u64::MAX))
            .arg("0")
            .arg("COUNT")
            .arg(TAKEN);
        match claim.query_async(connection).await.map_err(failed("XAUTOCLAIM"))? {
            Value::Array(answer) if answer.len() >= 2 => {
                entries(answer.into_iter().nth(1).unwrap_or(Value::Nil))
            }
            _ => Err(strange("XAUTOCLAIM")),
        }
    }

    async fn acknowledge(&self, connection: &mut MultiplexedConnection, id: &str) -> Result<()> {
        let mut ack = cmd("XACK");
        ack.arg(&self.stream).arg(&self.group).arg(id);
        ack.query_async::<()>(connection).await.map_err(failed("XACK"))
    }

    async fn follow(&self, cx: &TriggerCx) -> Result<()> {
        let mut reading = self.connect(&cx.secrets).await?;
        let mut acks = self.connect(&cx.secrets).await?;
        {
            let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            *asking =
                Asking { secrets: Some(cx.secrets.clone()), connection: Some(Connection(acks.clone())) };
        }
        self.make_group(&mut acks).await?;
        let mut under_way = UnderWay::default();
        let followed = self.pull(cx, &mut reading, &mut acks, &mut under_way).await;
        // What is under way is acknowledged, so that it does not come twice for the sake of another.
        while let Some((id, delivered)) = under_way.futures.next().await {
            if delivered.is_ok() {
                self.acknowledge(&mut acks, &id).await?;
            }
        }
        followed
    }

    async fn pull(
        &self,
        cx: &TriggerCx,
        reading: &mut MultiplexedConnection,
        acks: &mut MultiplexedConnection,
        under_way: &mut UnderWay,
    ) -> Result<()> {
        // First what a former run left: its own entries that are unacknowledged.
        let mut from = Some("0".to_owned());
        let mut next_claim = Instant::now() + self.claim_after;
        loop {
            let room = self.room(cx, acks, under_way).await?;
            let taken = if let Some(after) = &from {
                let left = self.take(reading, after, TAKEN).await?;
                from = left.last().map(|last| last.id.clone());
                left
            } else if Instant::now() >= next_claim {
                // An entry under way here must not be taken as one that was left.
                if under_way.futures.is_empty() {
                    next_claim = Instant::now() + self.claim_after;
                    self.claim(acks).await?
                } else {
                    self.new_entries(reading, acks, under_way).await?
                }
            } else {
                self.new_entries(reading, acks, under_way).await?
            };
            let mut room = Some(room);
            for entry in taken {
                if entry.deleted {
                    tracing::warn!(
                        stream = self.stream,
                        entry = entry.id,
                        "deleted from the stream before it was delivered"
                    );
                    self.acknowledge(acks, &entry.id).await?;
                    continue;
                }
                let room = match room.take() {
                    Some(room) => room,
                    None => self.room(cx, acks, under_way).await?,
                };
                let event = entry.event(&self.stream)?;
                let sink = Arc::clone(&cx.sink);
                let mut delivery: BoxFuture<'static, Delivered> =
                    Box::pin(async move { (entry.id, sink.deliver(room, event).await.map(drop)) });
                // Begun at once, so that the sink gets events in the stream's order.
                match poll!(Pin::new(&mut delivery)) {
                    std::task::Poll::Ready(delivered) => self.settle(acks, delivered).await?,
                    std::task::Poll::Pending => under_way.futures.push(delivery),
                }
            }
        }
    }

    /// Room for one event; what is delivered meanwhile is acknowledged.
    async fn room(
        &self,
        cx: &TriggerCx,
        acks: &mut MultiplexedConnection,
        under_way: &mut UnderWay,
    ) -> Result<Slot> {
        let ready = cx.sink.ready();
        tokio::pin!(ready);
        loop {
            tokio::select! {
                Some(delivered) = under_way.futures.next() => self.settle(acks, delivered).await?,
                room = &mut ready => return room,
            }
        }
    }

    async fn new_entries(
        &self,
        reading: &mut MultiplexedConnection,
        acks: &mut MultiplexedConnection,
        under_way: &mut UnderWay,
    ) -> Result<Vec<Entry>> {
        let taking = self.take(reading, ">", TAKEN);
        tokio::pin!(taking);
        loop {
            tokio::select! {
                Some(delivered) = under_way.futures.next() => self.settle(acks, delivered).await?,
                taken = &mut taking => return taken,
            }
        }
    }

    async fn settle(&self, acks: &mut MultiplexedConnection, (id, delivered): Delivered) -> Result<()> {
        delivered?;
        self.acknowledge(acks, &id).await
    }

    async fn ask(&self, connection: &mut MultiplexedConnection) -> Result<Option<u64>> {
        let mut info = cmd("XINFO");
        info.arg("GROUPS").arg(&self.stream);
        let groups: Vec<std::collections::HashMap<String, Value>> =
            info.query_async(connection).await.map_err(failed("XINFO GROUPS"))?;
        let number = |value: Option<&Value>| match value {
            Some(Value::Int(number)) => u64::try_from(*number).ok(),
            _ => None,
        };
        let named = |group: &&std::collections::HashMap<String, Value>| matches!(group.get("name"), Some(Value::BulkString(name)) if name == self.group.as_bytes());
        let Some(group) = groups.iter().find(named) else { return Ok(None) };
        let Some(pending) = number(group.get("pending")) else { return Err(strange("XINFO GROUPS")) };
        if let Some(lag) = number(group.get("lag")) {
            return Ok(Some(lag + pending));
        }
        // After deletions, and some restarts, the server does not know how many are unread: then they are counted, up to a bound.
        let Some(Value::BulkString(last)) = group.get("last-delivered-id") else {
            return Err(strange("XINFO GROUPS"));
        };
        let mut range = cmd("XRANGE");
        range.arg(&self.stream).arg([b"(".as_slice(), last].concat()).arg("+").arg("COUNT").arg(COUNTED);
        let unread = entries(range.query_async(connection).await.map_err(failed("XRANGE"))?)?.len();
        Ok(Some(u64::try_from(unread).unwrap_or(u64::MAX).saturating_add(pending)))
    }
}

#[derive(Default)]
struct UnderWay {
    futures: FuturesUnordered<BoxFuture<'static, Delivered>>,
}

fn entries(answer: Value) -> Result<Vec<Entry>> {
    let Value::Array(answer) = answer else { return Err(strange("a list of entries")) };
    let mut entries = Vec::with_capacity(answer.len());
    for entry in answer {
        let Value::Array(parts) = entry else { return Err(strange("an entry")) };
        let Ok([id, fields]) = <[Value; 2]>::try_from(parts) else { return Err(strange("an entry")) };
        let Value::BulkString(id) = id else { return Err(strange("an entry's id")) };
        let deleted = matches!(fields, Value::Nil);
        let fields = match fields {
            Value::Array(fields) => fields,
            Value::Nil => Vec::new(),
            _ => return Err(strange("an entry's fields")),
        };
        let mut texts = Vec::with_capacity(fields.len());
        for field in fields {
            let Value::BulkString(text) = field else { return Err(strange("an entry's field")) };
            texts.push(text);
        }
        let mut texts = texts.into_iter();
        let mut pairs = Vec::new();
        while let (Some(name), Some(value)) = (texts.next(), texts.next()) {
            pairs.push((name, value));
        }
        entries.push(Entry { id: String::from_utf8_lossy(&id).into_owned(), fields: pairs, deleted });
    }
    Ok(entries)
}

#[async_trait]
impl TriggerSource for RedisStream {
    fn kind(&self) -> &'static str {
        "redis-stream"
    }

    async fn run(&self, cx: TriggerCx) -> Result<()> {
        tokio::select! {
            biased;
            () = cx.shutdown.cancelled() => Ok(()),
            ended = self.follow(&cx) => ended,
        }
    }

    /// What is unread, and what is read and unacknowledged, as the server counts it.
    async fn backlog(&self) -> Result<Option<u64>> {
        let (secrets, connection) = {
            let asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
            (asking.secrets.clone(), asking.connection.clone())
        };
        let Some(secrets) = secrets else { return Ok(None) };
        let mut connection = match connection {
            Some(Connection(connection)) => connection,
            None => self.connect(&secrets).await?,
        };
        let answer = self.ask(&mut connection).await;
        let kept = answer.is_ok().then_some(Connection(connection));
        self.asking.lock().unwrap_or_else(PoisonError::into_inner).connection = kept;
        answer
    }
}
